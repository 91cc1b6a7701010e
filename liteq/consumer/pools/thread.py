"""Thread workers: one shared queue, N threads, deadlines by an exception put into the thread.

Such an exception arrives within 0.1 ms in Python code, but not before a blocking call returns and never in C code that
does not come back. Inside a call of liteq's storage it waits until that has ended: see `liteq.storage.shelter`.

A thread that is still there after the grace is given up: its job is settled, its slot gets a new thread, and what it
may yet do is ignored. Python cannot kill a thread, so it lives on until its call returns.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable
from selectors import BaseSelector
from typing import NoReturn

from liteq import logs
from liteq.consumer.pools.base import GRACE, Pool, StackSource
from liteq.consumer.pools.line import Line
from liteq.engine import Ended
from liteq.errors import TaskTimeout
from liteq.execution import Interrupted, Runtime, close_loop, execute
from liteq.job import Ending, Job, Outcome, Progress
from liteq.storage import begun
from liteq.storage.shelter import Shelter

#: How often this process is a fork of one in which a pool could have been.
_forks = [0]

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forks.append(_forks.pop() + 1))


class ThreadPool(Pool):
    """N threads of this process.

    Args:
        runtime: the app's.
        size: how many threads.
        wake: wakes the dispatcher; callable from any thread.
        liveness: the consumer's slot file, to record in what was begun; ``None``: there is none.
        max_tasks: replace a thread after so many jobs; ``None``: never.
    """

    def __init__(
        self,
        runtime: Runtime,
        size: int,
        wake: Callable[[], None],
        *,
        liveness: int | None = None,
        max_tasks: int | None = None,
    ) -> None:
        self.runtime = runtime
        self.recorder = begun.Recorder(liveness) if liveness is not None and begun.CAN_RECORD else None
        self.size = size
        self.max_tasks = max_tasks
        self.jobs: Line[Job | None] = Line()
        self._wake = wake
        self.ended: list[Ended] = []
        self._progress: dict[tuple[int, int], Progress] = {}
        self._slots: list[ThreadSlot] = []
        self._held = 0
        self._stuck = 0
        self.dispatcher_sleeps = False
        self._news = False
        self.forks = _forks[-1]
        #: What was said while a thread had taken a job and not shown it yet, or may have: when to give up whatever
        #: begins, once the consumer stops at once; the revoked, by ``seq``, and when to give those up that are to stop.
        self.give_up_at: float | None = None
        self.revoked: dict[int, float | None] = {}

    def start(self) -> None:
        while len(self._slots) < self.size:
            self._slots.append(ThreadSlot(self, len(self._slots)))

    def watch(self, selector: BaseSelector) -> None:
        return None  # threads call `wake`

    def about_to_wait(self) -> bool:
        self.dispatcher_sleeps = True
        return not (self.ended or self._progress or self._news)

    def feed(self, jobs: Iterable[Job]) -> None:
        fed = tuple(jobs)
        self._held += len(fed)
        self.jobs.put(*fed)

    def collect(self) -> list[Ended]:
        self.dispatcher_sleeps = False
        ended = self.ended[:]
        del self.ended[: len(ended)]  # threads append meanwhile
        self._held -= len(ended)
        return ended

    def progress(self) -> dict[tuple[int, int], Progress]:
        if not self._progress:
            return {}
        said, self._progress = self._progress, {}
        return said

    @property
    def ready(self) -> int:
        return self.size

    @property
    def held(self) -> int:
        return self._held

    @property
    def backlog(self) -> int:
        return len(self.jobs)

    def take_back(self) -> list[Job]:
        taken = [job for job in self.jobs.take_all() if job is not None]
        self._held -= len(taken)
        return taken

    def recall(self) -> None:
        return None  # a thread takes a job only to begin it

    def running(self) -> list[Job]:
        return [job for slot in self._slots if (job := slot.job) is not None]

    def stack_of(self, seq: int) -> StackSource | None:
        slot = next((slot for slot in self._slots if (job := slot.job) is not None and job.seq == seq), None)
        return None if slot is None else lambda: slot.stack_of(seq)

    def cancel(self, seq: int, *, stop: bool) -> None:
        give_up_at = self.runtime.clock.monotonic() + GRACE if stop else None
        if self._hides_some():  # first, as a thread looks here once it has shown its job
            self.revoked[seq] = give_up_at
        self._tell(seq, give_up_at)

    def _tell(self, seq: int, give_up_at: float | None) -> None:
        for slot in self._slots:
            slot.cancel(seq, give_up_at)

    def _hides_some(self) -> bool:
        """Whether a thread may have a job that no slot shows: taken a moment ago, or about to be handed in. A job gets
        from the line into a slot and on to the ended ones; counted from behind, none is counted twice.
        """
        seen = len(self.ended) + sum(slot.job is not None for slot in self._slots) + len(self.jobs)
        return seen < self._held

    def supervise(self, now: float) -> float | None:
        self._news = False
        if self.revoked and not self._hides_some():  # all can be seen by now, and may have been shown unheard
            for seq, give_up_at in tuple(self.revoked.items()):
                self._tell(seq, give_up_at)
            self.revoked.clear()
        dates = [date for slot in tuple(self._slots) if (date := self._supervise_slot(slot, now)) is not None]
        return min(dates, default=None)

    def _supervise_slot(self, slot: ThreadSlot, now: float) -> float | None:
        if slot.gone:
            self._replace(slot)
            return None
        if slot.give_up_at is not None and slot.give_up_at <= now:
            self._give_up(slot, now)
            return None
        if slot.deadline is not None and slot.deadline <= now:
            slot.time_out(now)
        return min((date for date in (slot.deadline, slot.give_up_at) if date is not None), default=None)

    def _replace(self, slot: ThreadSlot) -> None:
        self._slots[slot.number] = ThreadSlot(self, slot.number)

    def _give_up(self, slot: ThreadSlot, now: float) -> None:
        """Settle the job of a thread that nothing stops, without a retry: it may still be running."""
        outcome = slot.abandon(now)
        if outcome is None:
            return  # it came back in this very moment
        job, ended = outcome
        self._stuck += 1
        logs.say(logs.ERROR, "worker thread is stuck and was replaced", job=job.id, task=job.task, stuck=self._stuck)
        self.ended.append(Ended(job, ended))
        self._replace(slot)

    def interrupt(self) -> None:
        self.give_up_at = give_up_at = self.runtime.clock.monotonic() + GRACE  # first, as in `cancel`
        for slot in self._slots:
            slot.interrupt(give_up_at)

    def stop(self) -> None:
        for _ in self._slots:
            self.jobs.put(None)
        for slot in self._slots:
            slot.join(GRACE)
        if self.recorder is not None:
            self.recorder.close()

    def stuck(self) -> int:
        return self._stuck

    # ── called by the worker threads ─────────────────────────────────────────────────────────────────

    def say(self, job: Job, progress: Progress) -> None:
        """A job says how far it is."""
        self._progress[job.seq, job.claim] = progress
        self.nudge()

    def nudge(self) -> None:
        """There is something that the dispatcher must look at: a job that has ended, a deadline."""
        self._news = True
        if self.dispatcher_sleeps:
            self.dispatcher_sleeps = False
            self._wake()


class ThreadSlot:
    """One worker thread, and the Deadline and Channel of what it runs.

    The dispatcher acts on a slot's job with the lock, and only after it has seen there that it still is the job it
    means. The thread takes the lock to end a job, and otherwise only where the dispatcher has left a word: each of the
    two says what it does before it looks at what the other has said.
    """

    passes_on = ()

    def __init__(self, pool: ThreadPool, number: int) -> None:
        self._pool = pool
        self.number = number
        self._lock = threading.Lock()
        self.job: Job | None = None
        self.deadline: float | None = None
        self.give_up_at: float | None = None
        self.cancelled = False
        self.gone = False
        self.interrupted = False
        self._body_runs = False
        self._injected: type[BaseException] | None = None
        self._cancel_coroutine: Callable[[], object] | None = None
        self._abandoned = False
        self._shelter = Shelter()
        self._thread = threading.Thread(target=self._work, name="liteq-worker", daemon=True)
        self._thread.start()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def _work(self) -> None:
        pool, ended = self._pool, self._pool.ended
        record = None if pool.recorder is None else pool.recorder.of(self.number)
        make = tuple.__new__  # a third of the constructor's time
        left = pool.max_tasks or -1
        own = threading.Lock()
        own.acquire()
        self._shelter.move_in()
        try:
            while left and (job := pool.jobs.get(own)) is not None:
                left -= 1
                if record is not None:
                    record(job.seq)
                self.cancelled = self.interrupted = False
                self.job = job
                if pool.revoked or pool.give_up_at is not None:
                    self._catch_up(job)
                try:
                    outcome = execute(job, pool.runtime, self, self)
                except (Interrupted, TaskTimeout):  # put into this thread a moment too late to be the task's
                    outcome = self._interrupted(job)
                if pool.forks != _forks[-1]:
                    _leave_fork(outcome)
                if not self._finish():
                    return  # given up meanwhile: the job was settled, and another thread has this one's place
                ended.append(make(Ended, (job, outcome)))
                if pool.dispatcher_sleeps:
                    pool.nudge()
        finally:
            close_loop()
            self.gone = True
            pool.nudge()

    def _catch_up(self, job: Job) -> None:
        """Hear what was said before this job could be seen here."""
        pool = self._pool
        for seq, give_up_at in pool.revoked.copy().items():  # the dispatcher may clear it, having said the same
            if seq == job.seq:
                self.cancel(seq, give_up_at)
        if pool.give_up_at is not None:
            self.interrupt(pool.give_up_at)

    def _interrupted(self, job: Job) -> Outcome:
        now = self._pool.runtime.clock.now()
        return Outcome(job.seq, job.claim, Ending.INTERRUPTED, job.started or now, now)

    def _finish(self) -> bool:
        with self._lock:
            self.job = self._injected = None
            self.deadline = self.give_up_at = None
            return not self._abandoned

    # ── Deadline, called in this thread by `execute` ─────────────────────────────────────────────────

    def start(self, timeout: float | None, *, raises: bool) -> None:
        self._cancel_coroutine = None
        self._body_runs = raises
        if self.interrupted:  # between its begin and this: nothing else would tell the body
            raise Interrupted
        if timeout is None:
            return
        with self._lock:
            # A coroutine ends itself (`asyncio.timeout`); here is only what to do if it does not.
            if self.interrupted:  # since the line above; its date stands
                raise Interrupted
            now = self._pool.runtime.clock.monotonic()
            self.deadline, self.give_up_at = (now + timeout, None) if raises else (None, now + timeout + GRACE)
        self._pool.nudge()

    def stop(self) -> None:
        self._body_runs = False
        self._cancel_coroutine = None
        if self._injected is not None:
            with self._lock:
                if self._injected is not None:  # it may not have arrived yet, and must not arrive later
                    self._shelter.take_back()

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        with self._lock:
            if self.interrupted:  # since it was started
                cancel()
            else:
                self._cancel_coroutine = cancel

    # ── Channel, called in this thread by the task ───────────────────────────────────────────────────

    def progress(self, job: Job, progress: Progress) -> None:
        self._pool.say(job, progress)

    def is_cancelled(self, job: Job) -> bool:
        return self.cancelled

    # ── called by the dispatcher ─────────────────────────────────────────────────────────────────────

    def time_out(self, now: float) -> None:
        """Raise TaskTimeout in the body, if it still is one whose time is over."""
        with self._lock:
            if self.deadline is None or self.deadline > now:
                return
            self.deadline = None
            if self._throw(TaskTimeout):
                self.give_up_at = now + GRACE

    def cancel(self, seq: int, give_up_at: float | None) -> None:
        """Tell this job, if it runs here, that it was revoked.

        Args:
            give_up_at: when to give it up; ``None``: it goes on.
        """
        with self._lock:
            if self.job is not None and self.job.seq == seq:
                self.cancelled = True
                if give_up_at is not None:
                    self._interrupt(give_up_at)

    def interrupt(self, give_up_at: float) -> None:
        """End whatever body runs here as interrupted."""
        with self._lock:
            if self.job is not None:
                self._interrupt(give_up_at)

    def _interrupt(self, give_up_at: float) -> None:
        if self.interrupted:
            return
        self.interrupted = True
        self.deadline, self.give_up_at = None, give_up_at
        cancel = self._cancel_coroutine
        if cancel is not None:
            cancel()
        else:
            self._throw(Interrupted)

    def _throw(self, error: type[BaseException]) -> bool:
        """Put an exception into the body; False if it is over, or has not begun."""
        self._injected = error  # before the look: `stop` does the reverse
        if not self._body_runs:
            self._injected = None
            return False
        self._shelter.throw(error)
        return True

    def stack_of(self, seq: int) -> str | None:
        """What the thread is doing for this job; ``None``: it has ended it. Called on any thread."""
        from liteq.consumer import stacks

        text = stacks.of_thread(self._thread.ident or 0)
        job = self.job
        if text is None or job is None or job.seq != seq:
            return None
        return f"worker thread {self.number} of process {os.getpid()}:\n{text}"

    def abandon(self, now: float) -> tuple[Job, Outcome] | None:
        """Give the thread up; ``None`` if it has just finished, and may run something else by now."""
        with self._lock:
            job = self.job
            if job is None or self.give_up_at is None or self.give_up_at > now:
                return None
            self._abandoned = True
            outcome = self._interrupted(job)
            if self.interrupted:
                return job, outcome
            message = (
                "the task ran longer than its timeout and its thread could not be stopped; it may still be running, "
                "so it is not run again (worker processes can be killed: -k process)"
            )
            return job, outcome._replace(
                ending=Ending.TIMEOUT, retryable=False, error_type="TaskTimeout", message=message
            )


def _leave_fork(outcome: Outcome) -> NoReturn:
    """A job has forked this process, and its function has returned here too: end, as the thread's function would have.

    It is no worker: the pool, its line and its outcomes are the parent's.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(0 if outcome.ending is Ending.SUCCEEDED else 1)
