"""Thread workers by themselves: what the dispatcher means for one job must not strike the next one in the same thread.

The dispatcher looks at a thread, and then acts; in between the job that it saw may have ended and another one begun.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from liteq import LiteQ
from liteq.consumer.pools.line import Line
from liteq.consumer.pools.thread import ThreadPool, ThreadSlot
from liteq.execution import Interrupted
from liteq.job import Ending, Job
from liteq.storage.base import ClaimRequest

T = TypeVar("T")
SOON = 30.0


class HidingLine(Line[T]):
    """A line whose threads have taken something for a while before they go on with it."""

    def __init__(self) -> None:
        super().__init__()
        self.taken, self.show = threading.Semaphore(0), threading.Semaphore(0)

    def get(self, own: threading.Lock) -> T:
        thing = super().get(own)
        if thing is not None:
            self.taken.release()
            self.show.acquire()
        return thing


class Bench:
    """A pool of one thread, and a task in it that holds until it is let go."""

    def __init__(self, line: Line[Job | None] | None = None) -> None:
        self.app = LiteQ(":memory:")
        self.engine = self.app.engine
        self.began, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.hold = self.app.task(name="hold")(self._hold)
        self.ahold = self.app.task(name="ahold")(self._ahold)
        self.owner = self.engine.storage.register({})
        self.woken = threading.Event()
        self.pool = ThreadPool(self.engine.runtime, 1, self.woken.set)
        self.pool.jobs = self.pool.jobs if line is None else line
        self.pool.start()
        [self.slot] = self.pool._slots

    def _hold(self) -> str:
        self.began.release()
        while not self.go_on.acquire(timeout=0.001):  # an exception that is thrown in strikes between two of these
            continue
        return "held"

    async def _ahold(self) -> None:
        await asyncio.Event().wait()

    def begin(self, *, timeout: float | None = None) -> Job:
        """Enqueue a call, and give it to the thread."""
        self.hold.using(timeout=timeout)()
        [job] = self.claim(1)
        self.pool.feed([job])
        assert self.began.acquire(timeout=SOON)
        return job

    def claim(self, number: int) -> list[Job]:
        return self.engine.round([], ClaimRequest(self.owner, number)).jobs

    def end(self, eventually: Callable[..., object]) -> None:
        self.go_on.release()
        eventually(lambda: self.slot.job is None)

    def close(self) -> None:
        for _ in range(100):
            self.go_on.release()
        self.pool.stop()
        self.app.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture
def line() -> HidingLine[Job | None]:
    return HidingLine()


@pytest.fixture
def hiding(line: HidingLine[Job | None]) -> Iterator[Bench]:
    bench = Bench(line)
    yield bench
    bench.close()


def endings(bench: Bench, number: int, eventually: Callable[..., object]) -> list[tuple[int, str]]:
    eventually(lambda: len(bench.pool.ended) == number)
    return [(job.seq, outcome.ending) for job, outcome in bench.pool.collect()]


ACTS: dict[str, Callable[[ThreadSlot, Job, float], object]] = {
    "time out": lambda slot, seen, now: slot.time_out(now),
    "tell": lambda slot, seen, now: slot.cancel(seen.seq, None),
    "stop": lambda slot, seen, now: slot.cancel(seen.seq, now + 1),
    "give up": lambda slot, seen, now: slot.abandon(now),
}


@pytest.mark.parametrize("act", ACTS)
def test_what_was_meant_for_a_job_that_has_ended_leaves_the_next_one_alone(
    bench: Bench, act: str, eventually: Callable[..., object]
) -> None:
    first = bench.begin(timeout=100)
    deadline = bench.slot.deadline
    assert deadline is not None
    bench.end(eventually)
    second = bench.begin(timeout=200)
    ACTS[act](bench.slot, first, deadline)  # which the dispatcher has read before the first one ended
    assert not bench.slot.cancelled
    assert bench.slot.job is second
    bench.end(eventually)
    done = [(first.seq, Ending.SUCCEEDED), (second.seq, Ending.SUCCEEDED)]
    assert endings(bench, 2, eventually) == done


@pytest.mark.parametrize(
    ("act", "ending"), [("time out", Ending.TIMEOUT), ("tell", Ending.SUCCEEDED), ("stop", Ending.INTERRUPTED)]
)
def test_what_is_meant_for_the_job_that_runs_strikes_it(
    bench: Bench, act: str, ending: Ending, eventually: Callable[..., object]
) -> None:
    job = bench.begin(timeout=100)
    deadline = bench.slot.deadline
    assert deadline is not None
    ACTS[act](bench.slot, job, deadline)
    if act == "tell":
        assert bench.slot.cancelled
        bench.end(eventually)
    assert endings(bench, 1, eventually) == [(job.seq, ending)]
    following = bench.begin()
    bench.end(eventually)
    assert endings(bench, 1, eventually) == [(following.seq, Ending.SUCCEEDED)]


def test_a_thread_is_given_up_only_when_its_time_is_over(bench: Bench, eventually: Callable[..., object]) -> None:
    job = bench.begin()
    bench.slot.give_up_at = 50.0
    assert bench.slot.abandon(49.0) is None
    bench.end(eventually)
    assert endings(bench, 1, eventually) == [(job.seq, Ending.SUCCEEDED)]
    stuck = bench.begin()
    bench.slot.give_up_at = 50.0
    given_up = bench.slot.abandon(50.0)
    assert given_up is not None
    assert (given_up[0].seq, given_up[1].ending, given_up[1].retryable) == (stuck.seq, Ending.TIMEOUT, False)


def test_a_coroutine_that_is_stopped_before_its_first_step_ends_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., object]
) -> None:
    """A stop after the thread has looked whether it was stopped, and before the coroutine can be reached."""
    start = bench.slot.start

    def start_and_be_stopped(timeout: float | None, *, raises: bool) -> None:
        start(timeout, raises=raises)
        bench.slot.interrupt(bench.engine.clock.monotonic() + SOON)

    monkeypatch.setattr(bench.slot, "start", start_and_be_stopped)
    bench.ahold()
    [job] = bench.claim(1)
    bench.pool.feed([job])
    assert endings(bench, 1, eventually) == [(job.seq, Ending.INTERRUPTED)]


# ── between the line and the slot ────────────────────────────────────────────────────────────────────────


def take(bench: Bench, line: HidingLine[Job | None]) -> Job:
    """A job that the thread has, and no slot shows."""
    bench.hold()
    [job] = bench.claim(1)
    bench.pool.feed([job])
    assert line.taken.acquire(timeout=SOON)
    assert (bench.pool.running(), bench.pool.backlog, bench.pool.held) == ([], 0, 1)
    return job


def test_a_stop_at_once_reaches_a_job_that_its_thread_is_just_taking(
    hiding: Bench, line: HidingLine[Job | None], eventually: Callable[..., object]
) -> None:
    job = take(hiding, line)
    hiding.pool.interrupt()
    line.show.release()
    assert endings(hiding, 1, eventually) == [(job.seq, Ending.INTERRUPTED)]
    assert not hiding.began.acquire(blocking=False)


@pytest.mark.parametrize("stop", [False, True])
def test_a_revocation_reaches_a_job_that_its_thread_is_just_taking(
    hiding: Bench, line: HidingLine[Job | None], stop: bool, eventually: Callable[..., object]
) -> None:
    job = take(hiding, line)
    hiding.pool.cancel(job.seq, stop=stop)
    line.show.release()
    if not stop:
        assert hiding.began.acquire(timeout=SOON)
        assert hiding.slot.cancelled
        hiding.go_on.release()
    ending = Ending.INTERRUPTED if stop else Ending.SUCCEEDED
    assert endings(hiding, 1, eventually) == [(job.seq, ending)]
    hiding.pool.supervise(hiding.engine.clock.monotonic())
    assert hiding.pool.revoked == {}


def test_a_revocation_is_passed_on_before_it_is_forgotten(
    hiding: Bench, line: HidingLine[Job | None], monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., object]
) -> None:
    """The thread has shown its job, and is about to look what was said of it, when the dispatcher tidies up."""
    looks, go_on = threading.Event(), threading.Event()
    catch_up = hiding.slot._catch_up

    def catch_up_late(job: Job) -> None:
        looks.set()
        go_on.wait(SOON)
        catch_up(job)

    monkeypatch.setattr(hiding.slot, "_catch_up", catch_up_late)
    job = take(hiding, line)
    hiding.pool.cancel(job.seq, stop=True)
    line.show.release()
    assert looks.wait(SOON)
    hiding.pool.supervise(hiding.engine.clock.monotonic())
    assert hiding.pool.revoked == {}
    go_on.set()
    assert endings(hiding, 1, eventually) == [(job.seq, Ending.INTERRUPTED)]


def test_what_was_said_of_another_consumers_job_is_not_kept(
    hiding: Bench, line: HidingLine[Job | None], eventually: Callable[..., object]
) -> None:
    hiding.pool.cancel(99, stop=True)
    assert hiding.pool.revoked == {}
    job = take(hiding, line)
    hiding.pool.cancel(99, stop=True)
    line.show.release()
    assert hiding.began.acquire(timeout=SOON)
    hiding.pool.supervise(hiding.engine.clock.monotonic())
    assert hiding.pool.revoked == {}
    hiding.go_on.release()
    assert endings(hiding, 1, eventually) == [(job.seq, Ending.SUCCEEDED)]


# ── what the dispatcher must not sleep through ───────────────────────────────────────────────────────────


def test_a_deadline_that_is_set_between_the_look_and_the_sleep_is_looked_at_first(bench: Bench) -> None:
    now = bench.engine.clock.monotonic()
    bench.pool.supervise(now)
    bench.pool.nudge()  # as a job does whose deadline begins
    assert not bench.pool.about_to_wait()
    bench.pool.supervise(now)
    assert bench.pool.about_to_wait()


def test_an_interrupt_keeps_its_date_if_the_deadline_is_being_set(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., object]
) -> None:
    lock = bench.slot._lock

    class Late:
        """A lock that is got only after the job was interrupted."""

        def __enter__(self) -> None:
            bench.slot.interrupted, bench.slot.give_up_at = True, 5.0
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    monkeypatch.setattr(bench.slot, "_lock", Late())
    with pytest.raises(Interrupted):
        bench.slot.start(100.0, raises=False)
    assert (bench.slot.deadline, bench.slot.give_up_at) == (None, 5.0)
    monkeypatch.undo()


# ── many at once ─────────────────────────────────────────────────────────────────────────────────────────


def test_jobs_that_are_fed_together_run_in_their_order(bench: Bench, eventually: Callable[..., object]) -> None:
    bench.hold.map([() for _ in range(20)])
    jobs = bench.claim(20)
    bench.pool.feed(jobs)
    assert bench.pool.held == 20
    for _ in jobs:
        bench.go_on.release()
    assert endings(bench, 20, eventually) == [(job.seq, Ending.SUCCEEDED) for job in jobs]
    assert (bench.pool.held, bench.pool.backlog) == (0, 0)


def test_everybody_who_waits_is_woken_by_what_is_fed_together(eventually: Callable[..., object]) -> None:
    app = LiteQ(":memory:")
    meet = threading.Barrier(4)

    @app.task
    def together() -> int:
        return meet.wait(SOON)

    pool = ThreadPool(app.engine.runtime, 4, lambda: None)
    pool.start()
    try:
        eventually(lambda: len(pool.jobs._waiting) == 4)
        together.map([() for _ in range(4)])
        owner = app.engine.storage.register({})
        pool.feed(app.engine.round([], ClaimRequest(owner, 4)).jobs)
        eventually(lambda: len(pool.ended) == 4)
        assert {outcome.ending for _, outcome in pool.collect()} == {Ending.SUCCEEDED}
    finally:
        pool.stop()
        app.close()
