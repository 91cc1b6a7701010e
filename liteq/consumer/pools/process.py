"""Process workers: the consumer's side. The child's side is `liteq.consumer.pools.worker`.

Payloads pass through undecoded. A worker is given one job at a time, or, when its jobs are known to be tiny, several in
one message: never more than about 2 ms of work, so that nothing waits behind a long job and everything else can still
be given back. Its outcomes come one by one and in order, so the first job without one is what it was running when it
died.

A worker is seen to be dead through its sentinel (or the end of its socket); its job is settled as crashed, with the
signal or exit code and what the worker has left behind, the jobs behind it go to others, and its slot is refilled. A
job that has crashed is given to an idle worker, and nothing else to that one until it has ended.

A worker that has done its share, or has too much memory, rests while its successor starts, and leaves when that one is
up. One rests at a time, so that at most one slot is empty; the others go on meanwhile, beyond their share if need be.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector
from typing import Any

from liteq import logs
from liteq.clock import Clock
from liteq.consumer.loading import split_path
from liteq.consumer.log_setup import LogSetup
from liteq.consumer.options import StartMethod
from liteq.consumer.pools import preload, usage, worker
from liteq.consumer.pools.base import GRACE, Pool, StackSource
from liteq.consumer.pools.messages import Message, Unframer, frame, pack_job, unpack_outcome
from liteq.consumer.pools.stack_line import StackAsker
from liteq.engine import Ended
from liteq.errors import ConfigurationError, TaskTimeout
from liteq.execution import Runtime, is_retryable
from liteq.job import Death, Ending, Job, Outcome, Progress
from liteq.storage import begun

#: How much work a worker may be given at once, in seconds, and how many jobs: enough to last while the dispatcher
#: commits (no-op jobs, 2 workers, durability full: 14,000 jobs a second with 32, 25,000 with 128, the same with 256).
AT_ONCE, MOST_AT_ONCE = 0.002, 128
#: A worker that is busy with one job for so long, in seconds, gives back those behind it.
RECALL_AFTER = 0.02
#: A worker that does not answer that for so long, in seconds, because its job holds the interpreter, is held still for
#: a moment, and they are taken from it; so long is waited for it to be still.
SEIZE_AFTER, STILL = 0.4, 0.02
#: Seconds until a worker that did not come up is started again: doubled from the first to the last.
FIRST_RETRY, LAST_RETRY = 0.1, 5.0
#: Seconds a worker is given to leave by itself; one that has nothing more to say, and one whose end nobody asked for.
LEAVE, DYING = 5.0, 0.2
#: How often to look at the memory of a worker that runs a job, in seconds, and how many times too much is reported.
WEIGH_EVERY, FAR_TOO_MUCH = 1.0, 2


def default_start_method() -> StartMethod:
    """forkserver on Linux (a fork from a clean process that knows the app: 7 ms), spawn elsewhere (200 ms, but
    safe).
    """
    return "forkserver" if sys.platform == "linux" else "spawn"


def numbers(size: int) -> int:
    """How many worker processes a pool of this size has at most: its own, those that replace them, and those that are
    on their way out.
    """
    return 3 * size + 2


class ProcessPool(Pool):
    """N processes.

    Args:
        runtime: the app's; inherited by a fork that has no ``app_path``.
        size: how many processes.
        app_path: ``"module:name"`` of the app, for the workers to import.
        start_method: how processes are started; ``None``: `default_start_method`.
        liveness: the descriptor that keeps the consumer's owner alive, or ``None``.
        log: where the workers' log lines go.
        max_tasks: replace a worker after so many jobs; ``None``: never.
        max_memory: replace a worker that has more, in bytes, after a job; ``None``: never.
    """

    def __init__(
        self,
        runtime: Runtime,
        size: int,
        *,
        app_path: str | None,
        start_method: StartMethod | None = None,
        liveness: int | None = None,
        log: LogSetup | None = None,
        max_tasks: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        if max_memory is not None and not usage.CAN_TELL:
            raise ConfigurationError("max_memory: this system does not tell how much memory a worker process has")
        self.size = size
        self.max_tasks = max_tasks
        self.max_memory = max_memory
        self.clock: Clock = runtime.clock
        method = start_method or default_start_method()
        self._starter = _Starter(runtime, app_path, method, liveness, log, max_memory)
        self._backlog: deque[Job] = deque()
        self._ended: list[Ended] = []
        self._progress: dict[int, Progress] = {}
        self._workers: list[WorkerProcess] = []
        self._spares: list[WorkerProcess] = []
        self._leaving: list[WorkerProcess] = []
        self._pace: dict[str, float] = {}
        self._excused: set[int] = set()
        self._recycles = max_tasks is not None or max_memory is not None
        self._selector: BaseSelector | None = None
        self._started = 0
        self._failures = 0
        self._start_again_at = 0.0
        self._stopping = False
        self._closed = False

    # ── feeding ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def _all(self) -> list[WorkerProcess]:
        return [*self._workers, *self._spares, *self._leaving]

    def start(self) -> None:
        self._refill(self.clock.monotonic())

    def watch(self, selector: BaseSelector) -> None:
        self._selector = selector
        for one in self._workers:
            one.register(selector)

    def about_to_wait(self) -> bool:
        return not self._ended

    def feed(self, jobs: Iterable[Job]) -> None:
        self._backlog.extend(jobs)
        self._distribute()

    def _distribute(self) -> None:
        """Give the backlog, in order, to the workers that have room."""
        if self._closed:
            return
        given: dict[WorkerProcess, list[Job]] = {}
        # What was asked back from a worker is not for that worker: it runs something long.
        ready = [one for one in self._workers if one.takes_jobs and not one.recalled]
        while self._backlog and ready:
            job = self._backlog[0]
            weight = self._weight(job)
            one = min(ready, key=_load)
            if not one.has_room(weight):
                break
            self._backlog.popleft()
            one.take(job, weight, self.clock.monotonic())
            given.setdefault(one, []).append(job)
            if self._recycles and one.is_spent and self._rests(one):
                ready.remove(one)
        for one, jobs in given.items():
            one.send(("jobs", [pack_job(job) for job in jobs]))
        if self._recycles and self._lacks_successors > 0:
            self._refill(self.clock.monotonic())

    def _weight(self, job: Job) -> float:
        """How long it will run, in seconds, as far as is known; a job that has crashed runs alone."""
        return float("inf") if job.crashes else self._pace.get(job.task, float("inf"))

    # ── collecting ───────────────────────────────────────────────────────────────────────────────────

    def collect(self) -> list[Ended]:
        for one in self._all:
            self._read(one)
        ended, self._ended = self._ended, []
        self._distribute()
        return ended

    def _read(self, one: WorkerProcess) -> None:
        for message in one.receive():
            match message:
                case ("done", values):
                    self._end(one, unpack_outcome(values))
                case ("progress", seq, *step):
                    self._progress[seq] = Progress(*step)
                case ("back", seqs):
                    self._backlog.extendleft(reversed(one.give_back(set(seqs))))
                    if one.resting:
                        self._relieve()
                case ("ready",):
                    one.ready = True
                    self._failures = 0
                    if self._spares:
                        self._relieve()
                case ("heavy", memory):
                    self._grew(one, memory)
                case ("open",):
                    one.seized = False
                case ("broken", text):
                    logs.say(logs.ERROR, f"worker process {one.pid} could not start:\n{text.rstrip()}")
        if one.at_end and one.is_over(self.clock.monotonic()):
            self._bury(one)

    def _end(self, one: WorkerProcess, outcome: Outcome) -> None:
        job = one.finish(outcome, self.clock.monotonic())
        self._learn(job.task, outcome.finished - outcome.started)
        self._ended.append(Ended(job, outcome))
        if self._excused:
            self._excused.discard(job.seq)
        if self._recycles and (one.is_spent or one.resting) and one in self._workers:
            self._rests(one)
            self._relieve()

    def _learn(self, task: str, duration: float) -> None:
        known = self._pace.get(task)
        if known is None or duration > known:
            self._pace[task] = duration  # slower than thought: believed at once
        else:
            self._pace[task] = known + 0.1 * (duration - known)

    def progress(self) -> dict[int, Progress]:
        said, self._progress = self._progress, {}
        return said

    @property
    def ready(self) -> int:
        # Jobs of workers that take no more are held, too, and must not count against the others.
        return sum(1 if one.takes_jobs else len(one.jobs) for one in (*self._workers, *self._leaving))

    @property
    def held(self) -> int:
        given = sum(len(one.jobs) for one in self._all)
        return len(self._backlog) + given + len(self._ended)

    @property
    def backlog(self) -> int:
        return len(self._backlog)

    def take_back(self) -> list[Job]:
        taken = list(self._backlog)
        self._backlog.clear()
        return taken

    def withdraw(self, seq: int) -> Job | None:
        for job in self._backlog:
            if job.seq == seq:
                self._backlog.remove(job)
                return job
        return None

    def recall(self) -> None:
        self._closed = True
        for one in self._all:
            one.recall(self.clock.monotonic())

    def running(self) -> list[Job]:
        return [job for one in self._all for job in one.jobs]

    def stack_of(self, seq: int) -> StackSource | None:
        one = next((one for one in self._all if one.jobs and one.jobs[0].seq == seq), None)
        return None if one is None else one.stack.ask(one.send, one.pid, one.pidfd)

    # ── death and replacement ────────────────────────────────────────────────────────────────────────

    def _bury(self, one: WorkerProcess) -> None:
        """A worker is dead: settle what it ran, take back what it had not begun, fill its place."""
        how, used = one.bury(self._selector)
        for among in (self._workers, self._spares, self._leaving):
            if one in among:
                among.remove(one)
        if one.jobs:
            self._settle(one, how, used)
        if not one.ready:
            self._pause_starting()
        if not one.asked_to_leave:
            logs.say(logs.WARNING, "worker process died", pid=one.pid, how=how)
        if self._spares and len(self._workers) < self.size:
            self._workers.append(self._spares.pop(0))
        self._refill(self.clock.monotonic())

    def _settle(self, one: WorkerProcess, how: str, used: usage.Usage | None) -> None:
        """The end of the job that a dead worker was running; those behind it go to others."""
        remains = self._starter.remains(one.number)
        job = one.jobs[0]
        crashed = one.kill_as is Ending.CRASHED
        if crashed and remains is not None and remains.seq != job.seq and job.seq not in self._excused:
            self._excused.add(job.seq)  # it was killed before it began it: no reason to blame the job, once
        else:
            one.jobs.popleft()
            outcome = one.last_outcome(job, self.clock, how, _death(used, remains))
            if outcome.ending is Ending.TIMEOUT:
                outcome = outcome._replace(retryable=self._starter.retries_timeouts(job))
            self._excused.discard(job.seq)
            self._ended.append(Ended(job, outcome))
        self._backlog.extendleft(reversed(one.jobs))
        one.jobs.clear()

    def _pause_starting(self) -> None:
        for one in self._workers:
            one.resting = False  # it goes on, since there is nobody to replace it
        self._failures += 1
        wait = min(FIRST_RETRY * 2 ** min(self._failures - 1, 10), LAST_RETRY)
        self._start_again_at = self.clock.monotonic() + wait

    def _refill(self, now: float) -> None:
        if self._stopping or now < self._start_again_at:
            return
        for one in self._workers:
            if one.is_spent:
                self._rests(one)
        missing = self.size - len(self._workers) + self._lacks_successors
        if missing <= 0:
            return
        try:
            self._starter.prepare()
            for _ in range(missing):
                self._start_one()
        except (OSError, EOFError) as error:  # no processes, memory or descriptors left; the fork server has just died
            logs.say(logs.ERROR, "a worker process could not be started, and will be tried again", error=repr(error))
            self._pause_starting()

    def _start_one(self) -> None:
        others = self._all
        taken = {other.number for other in others}
        free = next((number for number in range(numbers(self.size)) if number not in taken), None)
        if free is None:
            return  # so many are on their way out; they are killed if they do not get on
        one = self._starter.start(free, [fd.fileno() for other in others for fd in (other.socket, other.stack)])
        one.share = self._share()
        (self._workers if len(self._workers) < self.size else self._spares).append(one)
        if self._selector is not None:
            one.register(self._selector)

    def _share(self) -> int | None:
        """After how many jobs a new worker is replaced. Those that start together get shares of different sizes, so
        that they do not all reach their ends together for ever.
        """
        if self.max_tasks is None or self._started >= self.size:
            return self.max_tasks
        self._started += 1
        return max(1, self.max_tasks * self._started // self.size)

    # ── recycling ────────────────────────────────────────────────────────────────────────────────────

    def _rests(self, one: WorkerProcess) -> bool:
        """Whether a worker that is to be replaced takes no more jobs: only one at a time, so that slots stay. With one
        job for each worker there is no such bound: that number is chosen for the sake of clean processes.
        """
        resting = sum(other.resting for other in self._workers)
        at_once = self.size if self.max_tasks == 1 else 1
        if not one.resting and resting < at_once and self.clock.monotonic() >= self._start_again_at:
            one.resting = not self._stopping
        return one.resting

    @property
    def _lacks_successors(self) -> int:
        return sum(one.resting for one in self._workers) - len(self._spares)

    def _relieve(self) -> None:
        """Let successors that are up take the places of those that rest and have ended what they were given."""
        for one in [one for one in self._workers if one.resting and not one.jobs]:
            spare = next((spare for spare in self._spares if spare.ready), None)
            if spare is None:
                break
            self._spares.remove(spare)
            self._workers[self._workers.index(one)] = spare
            self._leaving.append(one)
            one.leave(self.clock.monotonic() + LEAVE)
        self._refill(self.clock.monotonic())

    def _grew(self, one: WorkerProcess, memory: int) -> None:
        one.heavy = True
        logs.say(logs.INFO, "worker process is replaced for its memory", pid=one.pid, memory=_megabytes(memory))
        if one in self._workers:
            self._rests(one)
            self._relieve()

    def _weigh(self, one: WorkerProcess, now: float) -> float | None:
        """Report a worker that has far too much memory while it runs a job, once; returns when to look again."""
        if self.max_memory is None or one.reported == one.jobs[0].seq:
            return None
        date = max(one.weighed, one.busy_since) + WEIGH_EVERY
        if date > now:
            return date
        one.weighed = now
        memory = usage.memory(one.pid) or 0
        if memory > FAR_TOO_MUCH * self.max_memory:
            job = one.jobs[0]
            one.reported = job.seq
            keys = {"job": job.id, "task": job.task, "pid": one.pid, "memory": _megabytes(memory)}
            message = "a running job has far more memory than max_memory; its worker is replaced when it has ended"
            logs.say(logs.WARNING, message, **keys)
        return now + WEIGH_EVERY

    # ── deadlines ────────────────────────────────────────────────────────────────────────────────────

    def supervise(self, now: float) -> float | None:
        self._refill(now)
        dates = [date for one in self._all if (date := self._supervise_one(one, now)) is not None]
        if (len(self._workers) < self.size or self._lacks_successors > 0) and not self._stopping:
            dates.append(self._start_again_at)
        return min(dates, default=None)

    def _supervise_one(self, one: WorkerProcess, now: float) -> float | None:
        if one.at_end:
            return one.end_by
        if not one.jobs:
            return self._hurry(one, now)
        weigh_again = self._weigh(one, now)
        dates = [date for date in (self._kill_date(one), one.recall_date()) if date is not None]
        if dates and min(dates) <= now:
            if one.kill_at is not None and one.kill_at <= now:
                one.kill()
                return None
            if one.recalled:
                self._seize(one, now)
            else:
                one.recall(now)
            return self._supervise_one(one, now)
        return min([*dates, *filter(None, [weigh_again])], default=None)

    def _seize(self, one: WorkerProcess, now: float) -> None:
        """Take back what a worker has not begun and does not give back: nobody in it listens, because the job holds
        the interpreter, in C code.
        """
        seq = self._starter.take_back(one)
        if seq is None:
            one.recalled_at = now  # it could not be held still: it is tried again
            return
        self._backlog.extendleft(reversed(one.lose_all_behind(seq)))
        one.send(("reopen",))

    def _hurry(self, one: WorkerProcess, now: float) -> float | None:
        """Kill a worker that was told to leave and does not."""
        if one.leave_by is not None and one.leave_by <= now:
            one.leave_by = None
            logs.say(logs.WARNING, "worker process did not leave and was killed", pid=one.pid)
            one.kill()
        return one.leave_by

    def _kill_date(self, one: WorkerProcess) -> float | None:
        """When the worker is to be killed if its job has not ended by then."""
        if one.kill_at is None:
            timeout = self._starter.timeout(one.jobs[0])
            if timeout is None:
                return None
            one.kill_at = one.busy_since + timeout + GRACE
            one.kill_as = Ending.TIMEOUT
        return one.kill_at

    def cancel(self, seq: int, *, stop: bool) -> None:
        for one in self._all:
            if any(job.seq == seq for job in one.jobs):
                one.send(("cancel", seq))  # if it has not begun it, that is enough
                if stop:
                    one.stop(seq, self.clock.monotonic())

    def interrupt(self) -> None:
        now = self.clock.monotonic()
        for one in self._all:
            if one.jobs:
                one.recall(now)
                one.interrupt(one.jobs[0].seq, now)

    def stop(self) -> None:
        self._stopping = True
        deadline = self.clock.monotonic() + LEAVE
        for one in self._all:
            one.leave(deadline)
        for one in self._all:
            one.wait(max(0.0, deadline - self.clock.monotonic()))
            one.bury(self._selector)
        for among in (self._workers, self._spares, self._leaving):
            among.clear()

    def stuck(self) -> int:
        return 0  # a process can always be killed


def _load(one: WorkerProcess) -> float:
    return one.load


def _megabytes(memory: int) -> str:
    return f"{memory / 2**20:.0f}MB"


def _death(used: usage.Usage | None, remains: begun.Remains | None) -> Death | None:
    """What is known of the last attempt of a worker that has used so much in all."""
    if remains is None:
        return None if used is None else Death(used.peak)
    if used is None:
        return remains.death
    return Death(used.peak, max(0.0, used.cpu - remains.before), remains.death.log)


class WorkerProcess:
    """One worker process as its consumer sees it."""

    def __init__(self, number: int, process: BaseProcess, channel: socket.socket, stack: StackAsker) -> None:
        self.number = number
        self.stack = stack
        self.process = process
        self.socket = channel
        self.pid = process.pid or 0
        self.sentinel = _sentinel(process)
        self.jobs: deque[Job] = deque()
        self.load = 0.0
        self.ready = False
        self.at_end = False
        self.asked_to_leave = False
        self.done = 0
        self.share: int | None = None
        self.heavy = False
        self.resting = False
        self.leave_by: float | None = None
        self.end_by: float | None = None
        self.weighed = 0.0
        self.reported: int | None = None
        self.busy_since = 0.0
        self.kill_at: float | None = None
        self.kill_as = Ending.CRASHED
        self.recalled = False
        self.recalled_at = 0.0
        self.seized = False
        self._to_stop: set[int] = set()
        self._weights: deque[float] = deque()
        self._unframer = Unframer()
        self._unsent = bytearray()
        self._selector: BaseSelector | None = None
        channel.setblocking(False)

    @property
    def pidfd(self) -> int | None:
        """A descriptor of the process itself, where the system has such a thing."""
        return None if self.sentinel == self.process.sentinel else self.sentinel

    # ── what it has to do ────────────────────────────────────────────────────────────────────────────

    @property
    def takes_jobs(self) -> bool:
        return self.ready and not (self.asked_to_leave or self.at_end or self.resting or self.seized)

    @property
    def is_spent(self) -> bool:
        """Whether it is to be replaced."""
        return self.heavy or (self.share is not None and self.done + len(self.jobs) >= self.share)

    def has_room(self, weight: float) -> bool:
        """Whether a job of this length may be added: always to an idle worker, else only tiny ones to tiny ones."""
        return not self.jobs or (self.load + weight <= AT_ONCE and len(self.jobs) < MOST_AT_ONCE)

    def take(self, job: Job, weight: float, now: float) -> None:
        if not self.jobs:
            self._begin(now)
        self.jobs.append(job)
        self._weights.append(weight)
        self.load += weight

    def finish(self, outcome: Outcome, now: float) -> Job:
        """The job whose outcome has come; the next one, if any, begins now."""
        job = self.jobs.popleft()
        self._weights.popleft()
        self.load = sum(self._weights)
        self.done += 1
        self._to_stop.discard(job.seq)
        self._begin(now)
        return job

    def _begin(self, now: float) -> None:
        self.busy_since = now
        self.kill_at = None
        self.kill_as = Ending.CRASHED
        self.recalled = False
        if self.jobs and self.jobs[0].seq in self._to_stop:
            self.interrupt(self.jobs[0].seq, now)

    def recall_date(self) -> float | None:
        """When to ask back what is behind its present job, or, if it does not answer, to take it; ``None``: there is
        nothing.
        """
        if len(self.jobs) < 2 or self.seized:
            return None
        return self.recalled_at + SEIZE_AFTER if self.recalled else self.busy_since + RECALL_AFTER

    def recall(self, now: float) -> None:
        """Ask back what it has not begun."""
        if len(self.jobs) > 1 and not self.recalled:
            self.recalled = True
            self.recalled_at = now
            self.send(("recall",))

    def give_back(self, seqs: set[int]) -> list[Job]:
        """These jobs are not its own any more."""
        kept = [(job, weight) for job, weight in zip(self.jobs, self._weights, strict=True) if job.seq not in seqs]
        given_back = [job for job in self.jobs if job.seq in seqs]
        self.jobs = deque(job for job, _ in kept)
        self._weights = deque(weight for _, weight in kept)
        self.load = sum(self._weights)
        self.recalled = self.recalled and bool(self.jobs)  # it had not even begun the first: nothing holds it up
        return given_back

    def lose_all_behind(self, seq: int) -> list[Job]:
        """It may run nothing behind the job that it has begun last; those before it have ended, and say so soon."""
        self.seized = True
        seqs = [job.seq for job in self.jobs]
        while seqs and seqs[-1] != seq:
            seqs.pop()
        return self.give_back({job.seq for job in self.jobs} - set(seqs))

    def last_outcome(self, job: Job, clock: Clock, how: str, death: Death | None) -> Outcome:
        """What became of the job that the worker was running when it died."""
        now = clock.now()
        outcome = Outcome(
            job.seq, job.claim, Ending.CRASHED, now - (clock.monotonic() - self.busy_since), now, death=death
        )
        match self.kill_as:
            case Ending.TIMEOUT:
                message = "the task ran longer than its timeout and did not stop; its worker process was killed"
                return outcome._replace(ending=Ending.TIMEOUT, error_type="TaskTimeout", message=message, details=how)
            case Ending.INTERRUPTED:
                return outcome._replace(ending=Ending.INTERRUPTED)
        message = f"its worker process died: {how}"
        return outcome._replace(error_type="WorkerCrashed", message=message, details=how)

    # ── the socket ───────────────────────────────────────────────────────────────────────────────────

    def register(self, selector: BaseSelector) -> None:
        self._selector = selector
        selector.register(self.socket, EVENT_READ)
        with contextlib.suppress(ValueError, OSError, KeyError):  # Windows: a handle that select does not take
            selector.register(self.sentinel, EVENT_READ)

    def send(self, message: Message) -> None:
        """Send without ever waiting; what does not fit goes out when the worker has read some."""
        self._unsent += frame(message)
        self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                sent = self.socket.send(self._unsent)
                del self._unsent[:sent]
        except BlockingIOError:
            pass  # the selector tells when there is room
        except OSError:
            self._unsent.clear()  # it is dead, which reading will show
        if self._selector is not None:
            self._selector.modify(self.socket, EVENT_READ | EVENT_WRITE if self._unsent else EVENT_READ)

    def receive(self) -> list[Message]:
        """What it has said."""
        if self._unsent:
            self._flush()
        messages: list[Message] = []
        try:
            while data := self.socket.recv(1 << 18):
                messages += self._unframer.feed(data)
                if len(data) < 1 << 16:
                    break
            else:
                self.at_end = True
        except BlockingIOError:
            # A grandchild may hold the socket open: the sentinel knows better. What it said last is read then.
            if not self.at_end and not self.lives():
                self.at_end = True
                messages += self.receive()
        except OSError:
            self.at_end = True
        return messages

    def lives(self) -> bool:
        """Whether the process has not ended."""
        if not hasattr(select, "poll"):
            return self.process.is_alive()
        poll = select.poll()
        poll.register(self.sentinel, select.POLLIN)
        return not poll.poll(0)

    # ── its end ──────────────────────────────────────────────────────────────────────────────────────

    def is_over(self, now: float) -> bool:
        """Whether it can be buried, having hung up: it is dead, or has taken too long to die."""
        if self.end_by is None:
            if self._selector is not None:  # its socket shows nothing new any more, and would show it all the time
                self._selector.unregister(self.socket)
                self._selector = None
            self.end_by = now + (GRACE if self.asked_to_leave or not self.ready else DYING)
        return now >= self.end_by or not self.lives()

    def leave(self, by: float) -> None:
        """Ask it to end after what it was given; it is killed if it has not ``by`` then."""
        self.asked_to_leave = True
        self.leave_by = by
        self.send(("stop",))

    def stop(self, seq: int, now: float) -> None:
        """End this one of its jobs: now, or as soon as it has begun it."""
        self._to_stop.add(seq)
        if self.jobs[0].seq == seq:
            self.interrupt(seq, now)
        else:
            self.send(("interrupt", seq))  # it may have begun it already, and our news be old

    def interrupt(self, seq: int, now: float) -> None:
        """Ask the body to end; kill the worker if it does not."""
        if self.kill_as is Ending.INTERRUPTED:
            return
        self.kill_as = Ending.INTERRUPTED
        self.kill_at = now + GRACE
        self.send(("interrupt", seq))

    def kill(self) -> None:
        """Kill it with what it has started, now."""
        self._kill_group()
        with contextlib.suppress(ProcessLookupError):  # it was faster
            self.process.kill()

    def _kill_group(self) -> None:
        """Kill its grandchildren. Before it is reaped its pid, and so the group's number, cannot be somebody else's."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or it never became a group leader
                os.killpg(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> None:
        """Wait for it to end by itself; kill it if it does not."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.kill()

    def bury(self, selector: BaseSelector | None) -> tuple[str, usage.Usage | None]:
        """Reap it and let go of its descriptors; says how it ended, and what it had used, where that is known."""
        if selector is not None:
            for one in (self.socket, self.sentinel):
                with contextlib.suppress(KeyError, ValueError):  # was not registered
                    selector.unregister(one)
        self._selector = None
        self.socket.close()
        self.stack.close()
        if self.lives():  # it has closed its socket and lives on: it will hear nothing any more
            self.process.kill()
        self._kill_group()
        used = self._reap()
        code = self.process.exitcode
        if self.sentinel != self.process.sentinel:
            os.close(self.sentinel)
        self.process.close()
        return _how(code), used

    def _reap(self) -> usage.Usage | None:
        """Wait for the end of the process, which is near, by the one call that also tells what it has used.

        Then multiprocessing finds no child any more, and is told the exit code. A fork server's children are not ours:
        it adds to their exit codes what they have used, if it is our own (see `preload`).
        """
        popen: Any = getattr(self.process, "_popen", None)
        used = None
        if hasattr(os, "wait4") and getattr(popen, "method", "") in ("fork", "spawn") and popen.returncode is None:
            with contextlib.suppress(ChildProcessError):  # reaped already, by somebody who waits for any child
                _, status, rusage = os.wait4(self.pid, 0)
                popen.returncode = os.waitstatus_to_exitcode(status)
                used = usage.of_rusage(rusage)
        self.process.join()
        return preload.read_usage(self.process.sentinel) if getattr(popen, "method", "") == "forkserver" else used


def _sentinel(process: BaseProcess) -> int:
    """What becomes readable at its death: multiprocessing's own is a pipe, which a process forked by a task holds
    open.
    """
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # an old kernel, or a sandbox
            return os.pidfd_open(process.pid or 0)
    return process.sentinel


def _how(code: int | None) -> str:
    if code is None:
        return "ended in an unknown way"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


@contextlib.contextmanager
def _held_still(pid: int) -> Iterator[bool]:
    """Keep the main thread of a worker from going on for the length of the block, if this system tells that it does."""
    if not Path(f"/proc/{pid}/stat").exists():
        yield False
        return
    by_us = not _is_stopped(pid)  # somebody else's stop is not ended here
    if by_us:
        _signal(pid, signal.SIGSTOP)
    try:
        for _ in range(20):
            if _is_stopped(pid):
                break
            select.select([], [], [], STILL / 20)
        yield _is_stopped(pid)
    finally:
        if by_us:
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.kill(pid, number)


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] in (b"T", b"t")
    except FileNotFoundError:
        return False


#: Held while the environment is changed: two consumers of one program would restore each other's changes.
_environment = threading.Lock()


class _Starter:
    """Starts worker processes by one of multiprocessing's methods."""

    def __init__(
        self,
        runtime: Runtime,
        app_path: str | None,
        method: StartMethod,
        liveness: int | None,
        log: LogSetup | None,
        max_memory: int | None,
    ) -> None:
        self._runtime = runtime
        self._method = method
        self._liveness = liveness
        self._max_memory = max_memory
        self._log = log
        self._app_path = app_path or ""
        self._context: BaseContext = multiprocessing.get_context(method)
        if not app_path and method != "fork":
            raise ConfigurationError(
                f"worker processes started by {method!r} must import the app: make it a variable of a module, "
                "or name it with app_path='module:name'"
            )

    def timeout(self, job: Job) -> float | None:
        """The job's timeout in seconds, if it has one."""
        definition = self._runtime.tasks.get(job.task)
        return None if definition is None else definition.for_job(job).timeout

    def retries_timeouts(self, job: Job) -> bool:
        """Whether a timeout is an error that the job's task retries."""
        definition = self._runtime.tasks.get(job.task)
        return definition is None or is_retryable(TaskTimeout(), definition.for_job(job))

    def remains(self, number: int) -> begun.Remains | None:
        """What this worker has left behind."""
        return None if self._liveness is None else begun.read_worker(self._liveness, number)

    def take_back(self, one: WorkerProcess) -> int | None:
        """Hold a worker still, and tell it to run nothing but what it has begun last; returns which job that is, or
        ``None`` where that is not possible.
        """
        if self._liveness is None or not begun.CAN_RECORD:
            return None
        with _held_still(one.pid) as is_still:
            return begun.take_back(self._liveness, one.number) if is_still else None

    def prepare(self) -> None:
        """Start the fork server with the app's module in it, if it does not run (any more)."""
        if self._method != "forkserver":
            return
        from multiprocessing import forkserver

        module, _ = split_path(self._app_path)
        self._context.set_forkserver_preload([preload.__name__])
        # The server starts with a bare interpreter's path, and ignores what it cannot import.
        path = os.pathsep.join(one or os.getcwd() for one in sys.path)  # noqa: PTH109
        extra = {"PYTHONPATH": path, preload.VARIABLE: "" if module == "__main__" else module}
        with _environment:
            before = {name: os.environ.get(name) for name in extra}
            os.environ.update(extra)
            try:
                forkserver.ensure_running()
            finally:
                for name, value in before.items():
                    if value is None:
                        del os.environ[name]
                    else:
                        os.environ[name] = value

    def start(self, number: int, siblings: list[int]) -> WorkerProcess:
        ours, theirs = socket.socketpair()
        asker, teller = socket.socketpair()
        forked = self._method == "fork"
        closed = (*siblings, ours.fileno(), asker.fileno()) if forked else ()
        path = [one or os.getcwd() for one in sys.path]  # noqa: PTH109
        setup = worker.WorkerSetup(number, self._app_path, path, self._log, closed, self._max_memory)
        runtime = self._runtime if forked else None
        lent = None if self._liveness is None else os.dup(self._liveness)
        try:
            process = self._context.Process(  # type: ignore[attr-defined]
                target=worker.main, args=(setup, theirs, _Lent(lent, forked), runtime, teller), name="liteq-worker"
            )
            process.start()
        except BaseException:
            ours.close()
            asker.close()
            raise
        finally:
            theirs.close()
            teller.close()
            if lent is not None:
                os.close(lent)
        return WorkerProcess(number, process, ours, StackAsker(asker))


class _Lent:
    """The consumer's lock on its way to a worker: a fork inherits the descriptor, other methods pass it on."""

    def __init__(self, descriptor: int | None, forked: bool) -> None:
        self._descriptor = descriptor
        self._passed: Any = None
        self._forked = forked

    def __getstate__(self) -> dict[str, Any]:
        passed = None
        if self._descriptor is not None and sys.platform != "win32":
            from multiprocessing import reduction

            passed = reduction.DupFd(self._descriptor)  # only valid while a process is being started
        return {"_descriptor": None, "_passed": passed, "_forked": False}

    def detach(self) -> int | None:
        """The descriptor in this process."""
        return self._descriptor if self._passed is None else int(self._passed.detach())
