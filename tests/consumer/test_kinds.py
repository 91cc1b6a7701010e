"""Every kind of worker held against the contract in ``kinds.py``."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from kinds import CrashContract, KindsContract


class TestThread(KindsContract):
    @pytest.fixture
    def kind(self) -> dict[str, Any]:
        return {"worker_type": "thread"}


class _OnFiles:
    """A part of the contract, on the directory of a FileStorage: what goes through the storage in ways of its own."""

    @pytest.fixture
    def path(self, path: Path) -> Path:
        return path.with_name("queue")

    test_many_small_jobs_keep_their_own_results = KindsContract.test_many_small_jobs_keep_their_own_results
    test_a_task_enqueues_others = KindsContract.test_a_task_enqueues_others
    test_a_delayed_job_runs_when_it_is_due = KindsContract.test_a_delayed_job_runs_when_it_is_due
    test_a_failed_job_is_retried_as_often_as_it_may = KindsContract.test_a_failed_job_is_retried_as_often_as_it_may
    test_progress_is_seen_from_outside_while_the_job_runs = (
        KindsContract.test_progress_is_seen_from_outside_while_the_job_runs
    )
    test_a_running_job_is_terminated = KindsContract.test_a_running_job_is_terminated
    test_a_paused_queue_waits_until_it_is_resumed = KindsContract.test_a_paused_queue_waits_until_it_is_resumed
    test_callers_wait_on_many_threads = KindsContract.test_callers_wait_on_many_threads
    test_results_may_be_huge = KindsContract.test_results_may_be_huge


class TestThreadOnFiles(_OnFiles):
    @pytest.fixture
    def kind(self) -> dict[str, Any]:
        return {"worker_type": "thread"}


class TestAsyncioOnFiles(_OnFiles):
    @pytest.fixture
    def kind(self) -> dict[str, Any]:
        return {"worker_type": "asyncio"}


@pytest.mark.slow
class TestGreenletOnFiles(_OnFiles):
    test_a_job_whose_worker_dies_runs_again = CrashContract.test_a_job_whose_worker_dies_runs_again

    @pytest.fixture
    def kind(self) -> dict[str, Any]:
        pytest.importorskip("gevent")
        return {"worker_type": "greenlet"}


@pytest.mark.slow
class TestForkServerOnFiles(_OnFiles):
    test_a_job_whose_worker_dies_runs_again = CrashContract.test_a_job_whose_worker_dies_runs_again

    @pytest.fixture
    def kind(self) -> dict[str, Any]:
        if "forkserver" not in multiprocessing.get_all_start_methods():
            pytest.skip("no forkserver here")
        return {"worker_type": "process", "start_method": "forkserver"}


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
