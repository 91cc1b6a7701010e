"""Apps to test with: in memory, immediate, and on a file; all on a clock that stands still."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from liteq import LiteQ
from liteq.clock import ManualClock

#: Where files cost no disk writes.
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def app(clock: ManualClock) -> Iterator[LiteQ]:
    """An app whose jobs wait in memory until the test works on them (`workbench.work`)."""
    app = LiteQ(":memory:", clock=clock)
    yield app
    app.close()


@pytest.fixture
def immediate(clock: ManualClock, directory: Path) -> Iterator[LiteQ]:
    """An app that runs its jobs in the caller; its file must never come to be."""
    app = LiteQ(directory / "never.db", immediate=True, clock=clock)
    yield app
    app.close()
    assert list(directory.iterdir()) == [], "immediate mode touched a file"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """An empty directory, in memory if possible."""
    if not os.access(SHARED_MEMORY, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(prefix="liteq-test-", dir=SHARED_MEMORY) as name:
        yield Path(name)


@pytest.fixture
def on_file(directory: Path) -> Iterator[LiteQ]:
    """An app on a file, with the machine's clock."""
    app = LiteQ(directory / "queue.db", durability="normal")
    yield app
    app.close()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What liteq logs, from INFO on."""
    caplog.set_level(logging.INFO, "liteq")
    return caplog
