"""Deadlines that strike while the task's own code is inside liteq's storage: nothing is lost, nobody is held up."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from pathlib import Path

import pytest

from liteq import JobState, LiteQ, ResultTimeout, TaskLocked
from liteq.consumer.pools import coroutine, pulse
from liteq.job import FINISHED

WORKERS = 4
SECONDS = 1.5
DRAINED = 30.0


@pytest.mark.parametrize("where", ["file", "memory"])
def test_many_deadlines_within_storage_calls_lose_nothing_and_hold_nobody_up(where: str, path: Path) -> None:
    app = LiteQ(path if where == "file" else ":memory:")
    stored: list[str] = []
    ended = threading.Event()

    @app.task
    def small() -> int:
        return 1

    @app.task
    def hammer(kind: int) -> None:
        while not ended.is_set():
            result = small()
            stored.append(result.id)
            if kind == 1:
                app.jobs(limit=5)
            elif kind == 2:
                with app.batch():
                    small.map([(), ()])
            elif kind == 3:
                with contextlib.suppress(TaskLocked), app.lock_task("one"):
                    app.job(result.id)
            elif kind == 4:
                with contextlib.suppress(ResultTimeout):
                    result.get(0.001)

    kinds = (0, 1, 2, 3, 4) if where == "file" else (0, 1, 2)
    dice = random.Random(7)
    with contextlib.closing(app), app.run_in_background(workers=WORKERS) as consumer:
        ends = time.monotonic() + SECONDS
        struck = []
        while time.monotonic() < ends:
            calls = [hammer.using(timeout=dice.uniform(0.001, 0.02), priority=9)(kind) for kind in kinds]
            for call in calls:
                with pytest.raises(Exception, match="timeout"):
                    call.get(DRAINED)
            struck += calls
        ended.set()
        last = [small() for _ in range(10)]
        assert [one.get(DRAINED) for one in last] == [1] * 10
        deadline = time.monotonic() + DRAINED
        while sum(n for state, n in app.counts().items() if state not in FINISHED):
            assert time.monotonic() < deadline, f"{app.counts()}"
            app.storage.barrier()
        assert all(app.job(one).state is JobState.SUCCEEDED for one in stored)
        assert all(one.job().attempts[-1].error_type == "TaskTimeout" for one in struck)
        assert app.locks() == []
        stopping = threading.Thread(target=consumer.stop, daemon=True)
        stopping.start()
        stopping.join(DRAINED)
        assert not stopping.is_alive()


@pytest.mark.parametrize("where", ["file", "memory"])
def test_a_coroutine_that_never_waits_is_struck_within_storage_calls_and_holds_nobody_up(
    where: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop's thread is thrown into as a worker thread is: by the dispatcher, when it finds the loop blocked."""
    monkeypatch.setattr(pulse, "ASK_EVERY", 0.005)
    monkeypatch.setattr(coroutine, "ASK_EVERY", 0.002)
    app = LiteQ(path if where == "file" else ":memory:")
    stored: list[str] = []
    ended = threading.Event()

    @app.task
    async def small() -> int:
        return 1

    @app.task
    async def hammer(kind: int) -> None:
        while not ended.is_set():
            stored.append(small().id)
            if kind == 1:
                app.jobs(limit=5)
            elif kind == 2:
                with app.batch():
                    small.map([(), ()])

    dice = random.Random(11)
    with contextlib.closing(app), app.run_in_background(workers=3, worker_type="asyncio") as consumer:
        ends = time.monotonic() + SECONDS
        struck = []
        while time.monotonic() < ends:
            calls = [hammer.using(timeout=dice.uniform(0.001, 0.02), priority=9)(kind) for kind in range(3)]
            for call in calls:
                with pytest.raises(Exception, match="timeout"):
                    call.get(DRAINED)
            struck += calls
        ended.set()
        assert [one.get(DRAINED) for one in [small() for _ in range(10)]] == [1] * 10
        deadline = time.monotonic() + DRAINED
        while sum(n for state, n in app.counts().items() if state not in FINISHED):
            assert time.monotonic() < deadline, f"{app.counts()}"
            app.storage.barrier()
        assert all(app.job(one).state is JobState.SUCCEEDED for one in stored)
        assert all(one.job().attempts[-1].error_type == "TaskTimeout" for one in struck)
        stopping = threading.Thread(target=consumer.stop, daemon=True)
        stopping.start()
        stopping.join(DRAINED)
        assert not stopping.is_alive()
