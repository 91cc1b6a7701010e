"""Process workers by themselves: what is said of one run must not strike another one, nor get lost on the way to it.

What the consumer says travels while jobs end and begin. The two ends of the conversation are tried one at a time here:
the consumer's with this test as its worker, and the alarm of a worker in this very process.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from liteq import LiteQ
from liteq.consumer.pools.child import WorkerProcess
from liteq.consumer.pools.messages import Message, Run, Unframer, frame, pack_outcome
from liteq.consumer.pools.process import ProcessPool
from liteq.consumer.pools.worker import _Alarm
from liteq.execution import Interrupted
from liteq.job import Ending, Job, JobState, Outcome
from liteq.storage import shelter

needs_signals = pytest.mark.skipif(
    not hasattr(signal, "SIGUSR2") or threading.current_thread() is not threading.main_thread(),
    reason="signals are handled in the main thread",
)


def job(seq: int, claim: int = 1) -> Job:
    return Job(seq, f"{seq}-0", "t", JobState.RUNNING, claim=claim)


# ── the consumer's end ───────────────────────────────────────────────────────────────────────────────────


class Line:
    """A pool with one worker, who is this test."""

    def __init__(self) -> None:
        self.app = LiteQ(":memory:")
        near, self.far = socket.socketpair()
        self.far.setblocking(False)
        process = cast(Any, SimpleNamespace(pid=os.getpid(), sentinel=-1))
        self.one = WorkerProcess(0, process, near, cast(Any, SimpleNamespace()))
        self.one.ready = True
        self.pool = ProcessPool(self.app.engine.runtime, 1, app_path="shop:app")
        self.pool._workers.append(self.one)
        self._unframer = Unframer()

    def give(self, *jobs: Job) -> None:
        for one in jobs:
            self.one.take(one, 0.0, 1.0)

    def said(self) -> list[Message]:
        """What the consumer has said."""
        try:
            return list(self._unframer.feed(self.far.recv(1 << 20)))
        except BlockingIOError:
            return []

    def say(self, *messages: Message) -> list[tuple[int, str]]:
        """Say something; returns what has ended by it."""
        for message in messages:
            self.far.sendall(frame(message))
        return [(ended.job.seq, ended.outcome.ending) for ended in self.pool.collect()]

    def close(self) -> None:
        self.far.close()
        self.one.socket.close()
        if self.one.pidfd is not None:
            os.close(self.one.pidfd)
        self.app.close()


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.close()


def done(one: Job) -> Message:
    return ("done", pack_outcome(Outcome(one.seq, one.claim, Ending.SUCCEEDED, 1.0, 2.0)))


@pytest.mark.parametrize("stop", [False, True])
def test_a_job_that_was_revoked_behind_another_one_does_not_go_to_the_next_worker(line: Line, stop: bool) -> None:
    line.give(job(1), job(2), job(3))
    line.pool.cancel(2, stop=stop)
    assert line.said() == [("cancel", 2), *[("interrupt", 2, 1)][:stop]]
    assert line.say(("back", [2, 3])) == [(2, Ending.INTERRUPTED)]
    assert [one.seq for one in line.pool.take_back()] == [3]
    assert line.pool.held == 1


def test_a_revocation_is_forgotten_with_its_job(line: Line) -> None:
    line.give(job(1), job(2))
    line.pool.cancel(1, stop=False)
    line.pool.cancel(9, stop=True)  # another consumer's
    assert line.say(done(job(1))) == [(1, Ending.SUCCEEDED)]
    line.give(job(1, claim=2))
    assert line.say(("back", [1])) == []
    assert [one.claim for one in line.pool.take_back()] == [2]


def test_a_stop_at_once_reaches_a_job_whose_predecessor_has_ended_unheard(line: Line) -> None:
    line.give(job(1), job(2))
    line.pool.interrupt()
    assert line.said() == [("recall",), ("interrupt", 1, 1), ("interrupt", 2, 1)]
    assert line.say(done(job(1)), ("back", [])) == [(1, Ending.SUCCEEDED)]
    assert (line.one.kill_as, line.one.kill_at is not None) == (Ending.INTERRUPTED, True)


# ── the worker's end ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def alarm() -> Iterator[_Alarm]:
    before = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGUSR2)}
    alarm = _Alarm()
    yield alarm
    for number, handler in before.items():
        signal.signal(number, handler)
    shelter.here.shelter = None


A: Run = (1, 1)
B: Run = (2, 1)


@needs_signals
def test_an_interrupt_strikes_the_body_that_is_meant(alarm: _Alarm) -> None:
    alarm.begin(job(1))
    alarm.start(None, raises=True)
    with pytest.raises(Interrupted):
        alarm.interrupt(A)
    assert alarm.interrupted
    alarm.stop()
    alarm.end()
    assert not alarm.interrupted


@needs_signals
@pytest.mark.parametrize("other", [(1, 1), (2, 2)])
def test_an_interrupt_of_another_run_does_not(alarm: _Alarm, other: Run) -> None:
    alarm.begin(job(2))
    alarm.start(None, raises=True)
    alarm.interrupt(other)
    assert not alarm.interrupted
    alarm.stop()
    alarm.end()


@needs_signals
@pytest.mark.parametrize("when", ["on its way", "before its body"])
def test_an_interrupt_that_comes_before_the_body_keeps_it_from_beginning(alarm: _Alarm, when: str) -> None:
    if when == "on its way":
        alarm.interrupt(B)
    alarm.begin(job(2))
    if when == "before its body":
        alarm.interrupt(B)
    with pytest.raises(Interrupted):
        alarm.start(None, raises=True)
    alarm.stop()
    alarm.end()
    alarm.begin(job(2, claim=2))
    alarm.start(None, raises=True)
    alarm.stop()


@needs_signals
def test_an_interrupt_of_a_run_that_was_given_back_is_forgotten(alarm: _Alarm) -> None:
    alarm.interrupt(B)
    alarm.forget(B)
    alarm.begin(job(2))
    alarm.start(None, raises=True)
    alarm.stop()


@needs_signals
@pytest.mark.parametrize("late", [False, True])
def test_a_coroutine_is_cancelled_once_whichever_comes_first(alarm: _Alarm, late: bool) -> None:
    cancelled: list[str] = []
    alarm.begin(job(1))
    alarm.start(None, raises=False)
    if late:
        alarm.interrupt(A)
    alarm.on_cancel(lambda: cancelled.append("cancelled"))
    if not late:
        alarm.interrupt(B)
        assert cancelled == []
        alarm.interrupt(A)
    assert cancelled == ["cancelled"]
    alarm.stop()


@needs_signals
def test_what_is_held_off_is_not_let_in_by_another_thread(alarm: _Alarm) -> None:
    def hold_off() -> None:
        with alarm.held_off():
            pass

    alarm.begin(job(1))
    alarm.start(None, raises=True)
    survived = False
    with pytest.raises(Interrupted), alarm.held_off():
        other = threading.Thread(target=hold_off)
        other.start()
        other.join()
        alarm.interrupt(A)
        survived = True
    assert survived
    alarm.stop()
