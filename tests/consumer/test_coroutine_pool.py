"""Coroutine workers by themselves: the dispatcher acts while the loop is just taking a job, or while one steps.

A job that the loop has taken from the line has no slot for a moment. There, in these tests, the loop's thread can be
held: the interpreter may change threads anywhere.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from liteq import LiteQ
from liteq.consumer.pools import coroutine
from liteq.consumer.pools.coroutine import CoroutinePool, CoroutineSlot, Steps
from liteq.context import TaskContext
from liteq.errors import TaskTimeout
from liteq.job import Ending, Job
from liteq.storage.base import ClaimRequest

SOON = 30.0


class Bench:
    """A pool whose loop takes a job only while it may, and a task that yields to the loop some times and ends."""

    def __init__(self, max_tasks: int | None = None) -> None:
        self.app = LiteQ(":memory:")
        self.engine = self.app.engine
        self.began: list[str] = []
        self.told = False
        self.turn = self.app.task(name="turn", context=True)(self._turn)
        self.owner = self.engine.storage.register({})
        self.taken, self.may_take = threading.Event(), threading.Event()
        self.may_take.set()
        self.pool = CoroutinePool(self.engine.runtime, 2, lambda: None, max_tasks=max_tasks)

    async def _turn(self, *, task: TaskContext) -> None:
        self.began.append(task.id)
        for _ in range(50):
            await asyncio.sleep(0)
        self.told = task.is_cancelled()

    def take(self) -> None:
        """In the loop's thread, between line and slot."""
        self.taken.set()
        assert self.may_take.wait(SOON)

    def hold(self) -> None:
        self.taken.clear()
        self.may_take.clear()

    def feed(self, *, timeout: float | None = None) -> Job:
        self.turn.using(timeout=timeout)()
        [job] = self.engine.round([], ClaimRequest(self.owner, 1)).jobs
        self.pool.feed([job])
        return job

    def feed_held(self) -> Job:
        """Feed a job, and hold the loop where it has taken that and not yet given it a slot."""
        self.hold()
        job = self.feed()
        assert self.taken.wait(SOON)
        return job


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []
    slot = CoroutineSlot

    def make(max_tasks: int | None = None) -> Bench:
        made.append(Bench(max_tasks))
        return made[-1]

    def held(pool: CoroutinePool, *rest: Any) -> CoroutineSlot:
        [bench] = [one for one in made if one.pool is pool]
        bench.take()
        return slot(pool, *rest)

    monkeypatch.setattr(coroutine, "CoroutineSlot", held)
    yield make
    for bench in made:
        bench.may_take.set()
        bench.pool.stop()
        bench.app.close()


@pytest.fixture
def bench(benches: Callable[..., Bench]) -> Bench:
    return benches()


def endings(bench: Bench, number: int, eventually: Callable[..., object]) -> list[tuple[int, str]]:
    eventually(lambda: len(bench.pool._ended) == number)
    return [(job.seq, outcome.ending) for job, outcome in bench.pool.collect()]


def test_a_job_that_is_just_beginning_as_the_consumer_stops_at_once_is_ended_too(
    bench: Bench, eventually: Callable[..., object]
) -> None:
    job = bench.feed_held()
    bench.pool.recall()
    bench.pool.interrupt()
    bench.may_take.set()
    assert endings(bench, 1, eventually) == [(job.seq, Ending.INTERRUPTED)]
    assert bench.began == []


def test_a_job_that_is_just_beginning_as_it_is_terminated_is_ended(
    bench: Bench, eventually: Callable[..., object]
) -> None:
    job = bench.feed_held()
    assert bench.pool.withdraw(job.seq) is None
    assert bench.pool.running() == [job]
    bench.pool.cancel(job.seq, stop=True)
    bench.may_take.set()
    assert endings(bench, 1, eventually) == [(job.seq, Ending.INTERRUPTED)]
    assert bench.began == []


def test_a_job_that_is_just_beginning_as_it_is_revoked_can_see_it(
    bench: Bench, eventually: Callable[..., object]
) -> None:
    job = bench.feed_held()
    bench.pool.cancel(job.seq, stop=False)
    bench.may_take.set()
    assert endings(bench, 1, eventually) == [(job.seq, Ending.SUCCEEDED)]
    assert bench.told


def test_what_was_said_of_a_job_that_is_not_here_or_has_ended_is_not_kept_for_its_next_run(
    bench: Bench, eventually: Callable[..., object]
) -> None:
    job = bench.feed_held()
    bench.pool.cancel(job.seq + 1, stop=True)
    bench.may_take.set()
    eventually(lambda: len(bench.pool._ended) == 1)
    bench.pool.cancel(job.seq, stop=True)
    assert endings(bench, 1, eventually) == [(job.seq, Ending.SUCCEEDED)]
    bench.pool.feed([job._replace(claim=job.claim + 1), job._replace(seq=job.seq + 1)])
    assert sorted(endings(bench, 2, eventually)) == [(job.seq, Ending.SUCCEEDED), (job.seq + 1, Ending.SUCCEEDED)]


def test_a_job_that_is_just_beginning_as_its_loop_is_replaced_runs_to_its_end(
    benches: Callable[..., Bench], eventually: Callable[..., object]
) -> None:
    bench = benches(max_tasks=1)
    first = bench.feed()
    assert endings(bench, 1, eventually) == [(first.seq, Ending.SUCCEEDED)]
    old = bench.pool._loop
    second = bench.feed_held()
    third = bench.feed()  # this takes a new loop: the old one has taken its share
    assert old.retired
    bench.may_take.set()
    assert sorted(endings(bench, 2, eventually)) == [(second.seq, Ending.SUCCEEDED), (third.seq, Ending.SUCCEEDED)]
    eventually(lambda: old.over)


@pytest.mark.parametrize("stop", [True, False])
def test_a_job_that_is_ended_before_its_function_begins_never_begins_it(
    bench: Bench, eventually: Callable[..., object], stop: bool
) -> None:
    bench.app.pre_execute()(lambda job: bench.pool.cancel(job.seq, stop=True) if stop else bench.pool.interrupt())
    job = bench.feed(timeout=1000)
    assert endings(bench, 1, eventually) == [(job.seq, Ending.INTERRUPTED)]
    assert bench.began == []


class StruckSlot:
    """Stands for a slot whose job is struck in its second step, at once after it has said that its code runs.

    Python raises what was thrown into a thread as a function begins, or one that is written in C has been called. So
    here it is thrown by setting an attribute, which is neither.
    """

    thrown = property(
        None,
        ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(
            ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
        ),
    )

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.work = work
        self.steps = 0
        self._as_parameter_ = threading.get_ident()  # how `thrown` gets at the thread

    def enter(self) -> None:
        self.steps += 1
        if self.steps == 2:
            self.thrown = TaskTimeout

    def leave(self) -> None:
        return None


def test_a_job_that_is_struck_as_its_step_begins_hears_it() -> None:
    heard: list[TaskTimeout] = []

    async def work() -> None:
        try:
            await asyncio.sleep(0)
        except TaskTimeout as error:
            heard.append(error)

    steps = Steps(StruckSlot(work))  # type: ignore[arg-type]
    steps.send(None)
    with pytest.raises(StopIteration):
        steps.send(None)
    assert heard
