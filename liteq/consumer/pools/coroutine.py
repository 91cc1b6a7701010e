"""Coroutine workers: jobs of ``async def`` tasks, many at once, on one event loop in a thread of its own.

The dispatcher is on another thread, so whatever a job does to the loop, jobs are settled, revoked and reported, and the
consumer stops in time. Every tenth of a second the loop is asked for a sign of life. If there is none, the job that
keeps it busy is found by looking at what its thread executes, and is reported by name; until the loop is back it gets
no new jobs.

A job ends itself at its deadline (`asyncio.timeout`). One that blocks the loop is struck by an exception put into the
thread, but only while its own code runs, so that it cannot hit another one. If that does not help (C code, a blocking
call), the job is given up as a stuck thread's is, and new jobs get a new loop; those that wait on the old one go on
when it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from selectors import BaseSelector
from types import FrameType
from typing import Any

from liteq import logs
from liteq.consumer import stacks
from liteq.consumer.pools.base import GRACE, Pool, StackSource
from liteq.consumer.pools.place import place_of
from liteq.consumer.pools.pulse import ASK_EVERY, Pulse
from liteq.context import current_job, this_thread
from liteq.engine import Ended
from liteq.errors import TaskTimeout
from liteq.execution import Interrupted, Runtime, execute_async
from liteq.job import Ending, Job, Outcome, Progress
from liteq.storage import begun
from liteq.storage.shelter import Shelter


class CoroutinePool(Pool):
    """Up to N jobs at once on one loop. What it is fed begins at once.

    Args:
        runtime: the app's.
        size: how many jobs at once; the feeder keeps to it.
        wake: wakes the dispatcher; callable from any thread.
        liveness: the consumer's slot file, to record in what was begun; ``None``: there is none.
        first_number: the first of N numbers in it that are this pool's.
        max_tasks: take a new loop after so many jobs for each of the N; ``None``: never.
    """

    def __init__(
        self,
        runtime: Runtime,
        size: int,
        wake: Callable[[], None],
        *,
        liveness: int | None = None,
        first_number: int = 0,
        max_tasks: int | None = None,
    ) -> None:
        self.runtime = runtime
        self.size = size
        self.inbox: deque[Job] = deque()
        self.recorder = begun.Recorder(liveness) if liveness is not None and begun.CAN_RECORD else None
        self.numbers = deque(range(first_number, first_number + size))
        self._share = None if max_tasks is None else max_tasks * size
        self._wake = wake
        self._ended: deque[Ended] = deque()
        self._progress: dict[tuple[int, int], Progress] = {}
        self._loops: list[LoopThread] = []
        self._held: dict[int, Job] = {}
        self._told: dict[int, bool] = {}
        self._stuck = 0
        self._look_at = 0.0
        self._gives_up_all = False
        self._dispatcher_sleeps = False

    def start(self) -> None:
        if not self._loops:
            self._loops.append(LoopThread(self))

    @property
    def _loop(self) -> LoopThread:
        """The loop that gets new jobs: the last."""
        self.start()
        if self._share is not None and self._loops[-1].begun >= self._share:
            self._replace(self._loops[-1])
        return self._loops[-1]

    def _replace(self, one: LoopThread) -> None:
        """New jobs go to a new loop; the old one ends with the last of its own."""
        if one is self._loops[-1]:
            self._loops.append(LoopThread(self))
            if self.inbox:
                self._loops[-1].poke()
        one.retire()

    def watch(self, selector: BaseSelector) -> None:
        return None  # the loop's thread calls `wake`

    def about_to_wait(self) -> bool:
        self._dispatcher_sleeps = True
        return not self._ended and not self._progress

    def feed(self, jobs: Iterable[Job]) -> None:
        before = len(self._held)
        for job in jobs:
            self._held[job.seq] = job
            self.inbox.append(job)
        if len(self._held) > before:
            self._loop.poke()

    def collect(self) -> list[Ended]:
        self._dispatcher_sleeps = False
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        self._let_go(job for job, _ in ended)
        return ended

    def _let_go(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._held.pop(job.seq, None)
            self._told.pop(job.seq, None)

    def progress(self) -> dict[tuple[int, int], Progress]:
        if not self._progress:
            return {}
        said, self._progress = self._progress, {}
        return said

    @property
    def ready(self) -> int:
        return 0 if self._loops and self._loops[-1].pulse.blocked else self.size

    @property
    def held(self) -> int:
        return len(self._held)

    @property
    def backlog(self) -> int:
        return len(self.inbox)

    def take_back(self) -> list[Job]:
        taken: list[Job] = []
        with contextlib.suppress(IndexError):  # the loop takes from it too
            while True:
                taken.append(self.inbox.popleft())
        self._let_go(taken)
        return taken

    def recall(self) -> None:
        return None  # the loop takes a job only to begin it

    def running(self) -> list[Job]:
        # Not those with a slot: one that the loop has just taken has none yet.
        others = {job.seq for job in self.inbox.copy()} | {ended.job.seq for ended in self._ended.copy()}
        return [job for job in self._held.values() if job.seq not in others]

    def _slots(self) -> list[CoroutineSlot]:
        return [slot for one in self._loops for slot in list(one.slots.values())]

    def stack_of(self, seq: int) -> StackSource | None:
        return next((slot.stack for slot in self._slots() if slot.job.seq == seq), None)

    def cancel(self, seq: int, *, stop: bool) -> None:
        if seq not in self._held:
            return
        self._told[seq] = stop or self._told.get(seq, False)  # before the look at the slots: see `greet`
        for slot in self._slots():
            if slot.job.seq == seq:
                self.greet(slot)

    def interrupt(self) -> None:
        self._gives_up_all = True  # before the look at the slots: see `greet`
        give_up_at = self.runtime.clock.monotonic() + GRACE
        for slot in self._slots():
            slot.interrupt(give_up_at)

    def stop(self) -> None:
        for one in self._loops:
            one.retire()
            one.end()
        for one in self._loops:
            one.join(0.0 if one.pulse.blocked else 2 * GRACE)
        if self.recorder is not None:
            self.recorder.close()

    def stuck(self) -> int:
        return self._stuck

    # ── watching over the loops ──────────────────────────────────────────────────────────────────────

    def supervise(self, now: float) -> float | None:
        if not self._held and len(self._loops) < 2:
            return None
        if now >= self._look_at:
            self._look_at = now + ASK_EVERY
            self._loops = [one for one in self._loops if not one.over or one is self._loops[-1]]
            for one in tuple(self._loops):
                self._look_after(one, now)
        return self._look_at

    def _look_after(self, one: LoopThread, now: float) -> None:
        one.ask(now)
        culprit = one.culprit() if one.pulse.blocked else None
        for slot in list(one.slots.values()):
            if slot.is_overdue(now):
                self._hurry(slot, one, culprit, now)

    def _hurry(self, slot: CoroutineSlot, one: LoopThread, culprit: int | None, now: float) -> None:
        """A job goes on although it should not."""
        innocent = one.pulse.blocked and culprit not in (slot.job.seq, None)
        if culprit == slot.job.seq and slot.strike(now + GRACE):
            return
        if innocent and not slot.interrupted:
            slot.postpone(now + GRACE)  # it ends when it can: what keeps it from ending is another job
        if not slot.is_lost(now):
            return
        outcome = slot.abandon()
        if outcome is None:
            return  # it came back in this very moment
        self._ended.append(Ended(slot.job, outcome))
        if innocent:
            return
        self._stuck += 1
        keys = {"job": slot.job.id, "task": slot.job.task, "stuck": self._stuck}
        logs.say(logs.ERROR, "coroutine is stuck and was given up", **keys)
        if one.pulse.blocked and not self._gives_up_all:
            self._replace(one)

    # ── called by the loops' threads ─────────────────────────────────────────────────────────────────

    def greet(self, slot: CoroutineSlot) -> None:
        """Tell a job what was said of it before it had its slot. Where the loop has taken the job already, the
        dispatcher finds no slot: so he leaves word, then looks at the slots, and the loop does the reverse.
        """
        stop = self._told.pop(slot.job.seq, None)
        if stop is not None:
            slot.cancelled = True
        if stop or self._gives_up_all:
            slot.interrupt(self.runtime.clock.monotonic() + GRACE)

    def report(self, ended: Ended) -> None:
        """A job has ended."""
        self._ended.append(ended)
        self.nudge()

    def say(self, job: Job, progress: Progress) -> None:
        """A job says how far it is."""
        self._progress[job.seq, job.claim] = progress
        self.nudge()

    def nudge(self) -> None:
        """Wake the dispatcher, if it sleeps."""
        if self._dispatcher_sleeps:
            self._dispatcher_sleeps = False
            self._wake()


class LoopThread:
    """An event loop in a thread, and the jobs that run on it."""

    def __init__(self, pool: CoroutinePool) -> None:
        self._pool = pool
        self.loop = asyncio.new_event_loop()
        self.slots: dict[int, CoroutineSlot] = {}
        self.begun = 0
        self.over = False
        self.retired = False
        self._poked = False
        self.pulse = Pulse("event loop")
        self.shelter = Shelter()
        self._told_to_end = self._ending = False
        # The name tells whoever ends the process that a worker may be stuck in here.
        self._thread = threading.Thread(target=self._work, name="liteq-worker", daemon=True)
        self._thread.start()

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        this_thread.is_shared = True
        self.shelter.move_in()
        try:
            while not self._ending:
                self._run(self.loop.run_forever)
            self._run(lambda: self.loop.run_until_complete(self._tidy_up()))
            self.loop.close()
        finally:
            self.over = True
            self._pool.nudge()

    def _run(self, what: Callable[[], object]) -> None:
        try:
            what()
        except (Exception, SystemExit, KeyboardInterrupt, Interrupted) as error:  # noqa: BLE001
            # A task that a job has started may raise SystemExit, which asyncio lets through.
            logs.logger.error("what a job has started on the event loop raised; the loop goes on", exc_info=error)

    async def _tidy_up(self) -> None:
        """End what jobs have left behind, as asyncio.run() does, but wait for it only so long."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=GRACE / 2)
        closing = self.loop.create_task(self.loop.shutdown_asyncgens())
        await asyncio.wait({closing}, timeout=GRACE / 2)

    def _stop(self) -> None:
        self._ending = True  # in the loop's thread, so that it is not found set before the loop has begun to run
        self.loop.stop()

    def _begin_all(self) -> None:
        """Begin what was fed. In the loop's thread."""
        self._poked = False
        pool = self._pool
        while pool.inbox and not self.retired:
            try:
                job = pool.inbox.popleft()
            except IndexError:
                return  # taken back, or taken by another loop
            self.begun += 1
            slot = CoroutineSlot(pool, self, job)
            self.slots[job.seq] = slot
            pool.greet(slot)
            slot.task = self.loop.create_task(Steps(slot), context=contextvars.Context())

    def forget(self, slot: CoroutineSlot) -> None:
        """A job has ended. In the loop's thread, or in the dispatcher's if it is given up."""
        self.slots.pop(slot.job.seq, None)
        self._pool.numbers.append(slot.number)
        if self.retired:
            self.call(self._end_if_empty)

    def _end_if_empty(self) -> None:
        """In the loop's thread: from elsewhere, a job that it is just beginning cannot be seen."""
        if not self.slots:
            self.end()

    # ── called by the dispatcher ─────────────────────────────────────────────────────────────────────

    def poke(self) -> None:
        """There is something to begin."""
        if not self._poked:
            self._poked = True
            self.call(self._begin_all)

    def call(self, what: Callable[[], object]) -> None:
        """Call something in the loop's thread, soon."""
        with contextlib.suppress(RuntimeError):  # closed meanwhile: nothing runs there any more
            self.loop.call_soon_threadsafe(what, context=contextvars.Context())

    def retire(self) -> None:
        """Begin no more, and end with the last job."""
        self.retired = True
        self.call(self._end_if_empty)

    def end(self) -> None:
        """End, whatever still runs."""
        if not self._told_to_end:
            self._told_to_end = True
            self.call(self._stop)

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def ask(self, now: float) -> None:
        """See whether it is alive."""
        if self.pulse.ask(now):
            self.call(self.pulse.answer)

    def culprit(self) -> int | None:
        """Which job keeps the loop's thread busy; reported once in a while. ``None``: it cannot be told."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        job = _job_of(frame)
        if self.pulse.is_to_report:
            self.pulse.report(job, place_of(frame), max(0, len(self.slots) - 1))
        return None if job is None else job.seq

    def stack_for(self, seq: int) -> str | None:
        """What the thread executes, if that is for this job."""
        ident = self._thread.ident or 0
        job = _job_of(sys._current_frames().get(ident))
        return stacks.of_thread(ident) if job is not None and job.seq == seq else None


class CoroutineSlot:
    """One job on a loop: its Deadline and Channel."""

    passes_on = ()

    def __init__(self, pool: CoroutinePool, one: LoopThread, job: Job) -> None:
        self._pool = pool
        self._loop = one
        self.job = job
        self.task: asyncio.Task[None] | None = None
        self.cancelled = False
        self.interrupted = False
        self._lock = threading.Lock()
        self._started = pool.runtime.clock.now()
        self._steps = False
        self._body_runs = False
        self._over = False
        self._deadline: float | None = None
        self._give_up_at: float | None = None
        self._struck: type[BaseException] | None = None
        self._cancel: Callable[[], object] | None = None
        self.number = pool.numbers.popleft()
        if pool.recorder is not None:
            pool.recorder.record(self.number, job.seq)

    async def work(self) -> None:
        """Run the job."""
        try:
            outcome = await execute_async(self.job, self._pool.runtime, self, self)
        except (Interrupted, TaskTimeout, asyncio.CancelledError):  # a moment too late to be the task's
            outcome = self._outcome()
        with self._lock:
            if self._over:
                return  # given up meanwhile: the job was settled
            self._over = True
        self._loop.forget(self)
        self._pool.report(Ended(self.job, outcome))

    def _outcome(self) -> Outcome:
        now = self._pool.runtime.clock.now()
        return Outcome(self.job.seq, self.job.claim, Ending.INTERRUPTED, self._started, now)

    # ── Deadline, called in the loop's thread by `execute_async` ─────────────────────────────────

    def start(self, timeout: float | None, *, raises: bool) -> None:
        with self._lock:  # `interrupt` sets the same dates
            if self.interrupted:
                raise Interrupted
            self._body_runs = True
            if timeout is not None:
                self._deadline = self._pool.runtime.clock.monotonic() + timeout
                self._give_up_at = self._deadline + GRACE

    def stop(self) -> None:
        self._cancel = None
        with self._lock:
            self._body_runs = False
            if self._struck is not None:  # it may not have arrived yet, and must not arrive later
                self._loop.shelter.take_back()

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        self._cancel = cancel
        if self.interrupted:
            cancel()

    # ── called by Steps ──────────────────────────────────────────────────────────────────────────────

    def enter(self) -> None:
        """Its code goes on: it is what keeps the loop's thread busy."""
        self._steps = True

    def leave(self) -> None:
        """It waits for something, or is over: nothing is raised in the thread once this has returned.

        Raises:
            Interrupted, TaskTimeout: it was thrown, and has not arrived until now; call this again.
        """
        self._steps = False
        if self._struck is not None:  # only then the lock is taken: this is called at every step
            with self._lock:
                self._loop.shelter.take_back()

    # ── Channel, called by the task ──────────────────────────────────────────────────────────────────

    def progress(self, job: Job, progress: Progress) -> None:
        self._pool.say(job, progress)

    def is_cancelled(self, job: Job) -> bool:
        return self.cancelled

    # ── called by the dispatcher ─────────────────────────────────────────────────────────────────────

    def interrupt(self, give_up_at: float) -> None:
        """End the body as interrupted: CancelledError at what it waits for."""
        with self._lock:
            if self.interrupted:
                return
            self.interrupted = True
            self._deadline, self._give_up_at = self._pool.runtime.clock.monotonic(), give_up_at
        cancel = self._cancel
        if cancel is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                cancel()

    def is_overdue(self, now: float) -> bool:
        """Whether it should have ended."""
        return self._deadline is not None and self._deadline <= now

    def postpone(self, give_up_at: float) -> None:
        """Give it more time to end."""
        self._give_up_at = give_up_at

    def is_lost(self, now: float) -> bool:
        """Whether it has had time enough to end."""
        return self._give_up_at is not None and self._give_up_at <= now

    def strike(self, give_up_at: float) -> bool:
        """Raise in the body, which runs and runs; False if that was tried already, or it is not the body that runs."""
        with self._lock:
            if self._struck is not None:
                return False
            self._struck = Interrupted if self.interrupted else TaskTimeout  # before the look: `leave` does the reverse
            if not (self._steps and self._body_runs):
                self._struck = None
                return False
            self._give_up_at = give_up_at
            self._loop.shelter.throw(self._struck)
        return True

    def stack(self) -> str | None:
        """Where the job is: in its coroutines, or, if it keeps the loop busy, in its thread. ``None``: it has ended.
        Called on any thread."""
        task = self.task
        if task is None or self._over:
            return None
        text = self._loop.stack_for(self.job.seq) or stacks.of_coroutine_task(task)
        return f"the event loop of process {os.getpid()}:\n{text}"

    def abandon(self) -> Outcome | None:
        """Give the job up; ``None`` if it has just ended."""
        with self._lock:
            if self._over:
                return None
            self._over = True
        self._loop.forget(self)
        outcome = self._outcome()
        if self.interrupted:
            return outcome
        message = (
            "the task ran longer than its timeout and could not be stopped on its event loop; it may still be running, "
            "so it is not run again (worker processes can be killed: -k process)"
        )
        return outcome._replace(ending=Ending.TIMEOUT, retryable=False, error_type="TaskTimeout", message=message)


class Steps(Coroutine[Any, Any, None]):
    """The coroutine of a slot, which knows at any time whether its own code runs or it waits for something.

    Only while it runs may something be raised in the loop's thread that is meant for it. To whoever looks at what an
    asyncio task waits for, this is the coroutine itself.
    """

    def __init__(self, slot: CoroutineSlot) -> None:
        self._slot = slot
        self._work: Any = slot.work()

    def send(self, value: Any) -> Any:
        return self._step(self._work.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._work.throw, *error)

    def _step(self, step: Callable[..., Any], *arguments: Any) -> Any:
        slot = self._slot
        slot.enter()
        try:  # in this function, not in one that it calls: what is thrown from here on may strike as that begins
            return step(*arguments)
        except StopIteration:
            raise
        except BaseException as error:
            if self._work.cr_frame is not None:
                return self._work.throw(error)  # raised in between its last line and ours: it is its to hear
            if isinstance(error, Interrupted | TaskTimeout):
                raise StopIteration from None  # it has ended, and handed in its outcome
            raise
        finally:
            try:
                slot.leave()
            except (Interrupted, TaskTimeout):  # a moment too late to be its
                slot.leave()

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, None]:
        yield from self._work.__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)  # cr_await, cr_frame, cr_code …


# ── whose code a thread executes ─────────────────────────────────────────────────────────────────────────


def _job_of(frame: FrameType | None) -> Job | None:
    """The job for which a loop's thread executes something: asyncio calls everything, a job's coroutine and whatever
    that has started, in a context which says whose it is.
    """
    while frame is not None:
        if frame.f_code is asyncio.Handle._run.__code__:
            handle = frame.f_locals.get("self")
            context: contextvars.Context | None = getattr(handle, "_context", None)
            return None if context is None else context.get(current_job)
        frame = frame.f_back
    return None
