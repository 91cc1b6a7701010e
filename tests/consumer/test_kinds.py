"""Every kind of worker held against the contract in ``kinds.py``."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
from kinds import CrashContract, KindsContract


class TestThread(KindsContract):
    @pytest.fixture
    def kind(self) -> dict[str, Any]:
        return {"worker_type": "thread"}


class TestAsyncio(KindsContract):
    @pytest.fixture
    def kind(self) -> dict[str, Any]:
        return {"worker_type": "asyncio"}


@pytest.mark.slow
class TestGreenlet(KindsContract, CrashContract):
    @pytest.fixture
    def kind(self) -> dict[str, Any]:
        pytest.importorskip("gevent")
        return {"worker_type": "greenlet"}


class _Process(KindsContract, CrashContract):
    start_method = ""

    @pytest.fixture
    def kind(self) -> dict[str, Any]:
        if self.start_method not in multiprocessing.get_all_start_methods():
            pytest.skip(f"no {self.start_method} here")
        return {"worker_type": "process", "start_method": self.start_method}


class TestForkServer(_Process):
    start_method = "forkserver"


@pytest.mark.slow
# Python 3.12 warns of every fork beside other threads; the consumer's are idle or know how to survive it.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
class TestFork(_Process):
    start_method = "fork"


@pytest.mark.slow
class TestSpawn(_Process):
    start_method = "spawn"
