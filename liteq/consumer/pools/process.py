"""Process workers: the consumer's side. The child's side is `liteq.consumer.pools.worker`.

Payloads pass through undecoded. A worker is given one job at a time, or, when its jobs are known to be tiny, several in
one message: never more than about 2 ms of work, so that nothing waits behind a long job and everything else can still
be given back. Its outcomes come one by one and in order, so the first job without one is what it was running when it
died.

A worker is seen to be dead through its sentinel (or the end of its socket); its job is settled as crashed, with the
signal or exit code, the jobs behind it go to others, and its slot is refilled.
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
from collections.abc import Iterable
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector
from typing import Any

from liteq import logs
from liteq.clock import Clock
from liteq.consumer.loading import split_path
from liteq.consumer.log_setup import LogSetup
from liteq.consumer.options import StartMethod
from liteq.consumer.pools import preload, worker
from liteq.consumer.pools.base import GRACE, Pool
from liteq.consumer.pools.messages import Message, Unframer, frame, pack_job, unpack_outcome
from liteq.engine import Ended
from liteq.errors import TaskTimeout
from liteq.execution import Runtime, is_retryable
from liteq.job import Ending, Job, Outcome, Progress

#: How much work a worker may be given at once, in seconds, and how many jobs: enough to last while the dispatcher
#: commits (no-op jobs, 2 workers, durability full: 14,000 jobs a second with 32, 25,000 with 128, the same with 256).
AT_ONCE, MOST_AT_ONCE = 0.002, 128
#: A worker that is busy with one job for so long, in seconds, gives back those behind it.
RECALL_AFTER = 0.02
#: Seconds until a worker that did not come up is started again: doubled from the first to the last.
FIRST_RETRY, LAST_RETRY = 0.1, 5.0
#: Seconds a worker is given to leave by itself.
LEAVE = 5.0


def default_start_method() -> StartMethod:
    """forkserver on Linux (a fork from a clean process that knows the app: 7 ms), spawn elsewhere (200 ms, but
    safe).
    """
    return "forkserver" if sys.platform == "linux" else "spawn"


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
    ) -> None:
        self.size = size
        self.max_tasks = max_tasks
        self.clock: Clock = runtime.clock
        self._starter = _Starter(runtime, app_path, start_method or default_start_method(), liveness, log)
        self._backlog: deque[Job] = deque()
        self._ended: list[Ended] = []
        self._progress: dict[int, Progress] = {}
        self._workers: list[WorkerProcess] = []
        self._leaving: list[WorkerProcess] = []
        self._pace: dict[str, float] = {}
        self._selector: BaseSelector | None = None
        self._failures = 0
        self._start_again_at = 0.0
        self._stopping = False
        self._closed = False

    # ── feeding ──────────────────────────────────────────────────────────────────────────────────────

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
        for one, jobs in given.items():
            one.send(("jobs", [pack_job(job) for job in jobs]))

    def _weight(self, job: Job) -> float:
        """How long it will run, in seconds, as far as is known; a job that has crashed runs alone."""
        return float("inf") if job.crashes else self._pace.get(job.task, float("inf"))

    # ── collecting ───────────────────────────────────────────────────────────────────────────────────

    def collect(self) -> list[Ended]:
        for one in (*self._workers, *self._leaving):
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
                case ("ready",):
                    one.ready = True
                    self._failures = 0
                case ("broken", text):
                    logs.say(logs.ERROR, f"worker process {one.pid} could not start:\n{text.rstrip()}")
        if one.at_end:
            self._bury(one)

    def _end(self, one: WorkerProcess, outcome: Outcome) -> None:
        job = one.finish(outcome, self.clock.monotonic())
        self._learn(job.task, outcome.finished - outcome.started)
        self._ended.append(Ended(job, outcome))
        if self.max_tasks is not None and one.done >= self.max_tasks and one in self._workers:
            self._retire(one)

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
        return sum(one.takes_jobs for one in self._workers)

    @property
    def held(self) -> int:
        given = sum(len(one.jobs) for one in (*self._workers, *self._leaving))
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
        for one in (*self._workers, *self._leaving):
            one.recall()

    def running(self) -> list[Job]:
        return [job for one in (*self._workers, *self._leaving) for job in one.jobs]

    # ── death and replacement ────────────────────────────────────────────────────────────────────────

    def _bury(self, one: WorkerProcess) -> None:
        """A worker is dead: settle what it ran, take back what it had not begun, fill its place."""
        how = one.bury(self._selector)
        if one in self._leaving:
            self._leaving.remove(one)
        else:
            self._workers.remove(one)
        if one.jobs:
            job = one.jobs.popleft()
            outcome = one.last_outcome(job, self.clock.now(), how)
            if outcome.ending is Ending.TIMEOUT:
                outcome = outcome._replace(retryable=self._starter.retries_timeouts(job))
            self._ended.append(Ended(job, outcome))
            self._backlog.extendleft(reversed(one.jobs))
            one.jobs.clear()
        if not one.ready:
            self._pause_starting()
        if not one.asked_to_leave:
            logs.say(logs.WARNING, "worker process died", pid=one.pid, how=how)
        self._refill(self.clock.monotonic())

    def _pause_starting(self) -> None:
        self._failures += 1
        wait = min(FIRST_RETRY * 2 ** min(self._failures - 1, 10), LAST_RETRY)
        self._start_again_at = self.clock.monotonic() + wait

    def _refill(self, now: float) -> None:
        if self._stopping or now < self._start_again_at or len(self._workers) >= self.size:
            return
        try:
            self._starter.prepare()
            while len(self._workers) < self.size:
                self._start_one()
        except (OSError, EOFError) as error:  # no processes, memory or descriptors left; the fork server has just died
            logs.say(logs.ERROR, "a worker process could not be started, and will be tried again", error=repr(error))
            self._pause_starting()

    def _start_one(self) -> None:
        others = (*self._workers, *self._leaving)
        numbers = {other.number for other in others}
        free = next(number for number in range(2 * self.size + 1) if number not in numbers)
        one = self._starter.start(free, [other.socket.fileno() for other in others])
        one.share = self.max_tasks
        self._workers.append(one)
        if self._selector is not None:
            one.register(self._selector)

    def _retire(self, one: WorkerProcess) -> None:
        """Replace a worker that has done its share; it leaves once it has done what it was given."""
        self._workers.remove(one)
        self._leaving.append(one)
        one.leave()
        self._refill(self.clock.monotonic())

    # ── deadlines ────────────────────────────────────────────────────────────────────────────────────

    def supervise(self, now: float) -> float | None:
        self._refill(now)
        dates = [
            date for one in (*self._workers, *self._leaving) if (date := self._supervise_one(one, now)) is not None
        ]
        if len(self._workers) < self.size and not self._stopping:
            dates.append(self._start_again_at)
        return min(dates, default=None)

    def _supervise_one(self, one: WorkerProcess, now: float) -> float | None:
        if not one.jobs:
            return None
        dates = [date for date in (self._kill_date(one), one.recall_date()) if date is not None]
        if dates and min(dates) <= now:
            if one.kill_at is not None and one.kill_at <= now:
                one.kill()
                return None
            one.recall()
            return one.kill_at
        return min(dates, default=None)

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
        for one in (*self._workers, *self._leaving):
            if any(job.seq == seq for job in one.jobs):
                one.send(("cancel", seq))  # if it has not begun it, that is enough
                if stop:
                    one.stop(seq, self.clock.monotonic())

    def interrupt(self) -> None:
        now = self.clock.monotonic()
        for one in (*self._workers, *self._leaving):
            if one.jobs:
                one.recall()
                one.interrupt(one.jobs[0].seq, now)

    def stop(self) -> None:
        self._stopping = True
        for one in (*self._workers, *self._leaving):
            one.leave()
        deadline = self.clock.monotonic() + LEAVE
        for one in (*self._workers, *self._leaving):
            one.wait(max(0.0, deadline - self.clock.monotonic()))
            one.bury(self._selector)
        self._workers.clear()
        self._leaving.clear()

    def stuck(self) -> int:
        return 0  # a process can always be killed


def _load(one: WorkerProcess) -> float:
    return one.load


class WorkerProcess:
    """One worker process as its consumer sees it."""

    def __init__(self, number: int, process: BaseProcess, channel: socket.socket) -> None:
        self.number = number
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
        self.busy_since = 0.0
        self.kill_at: float | None = None
        self.kill_as = Ending.CRASHED
        self.recalled = False
        self._to_stop: set[int] = set()
        self._weights: deque[float] = deque()
        self._unframer = Unframer()
        self._unsent = bytearray()
        self._selector: BaseSelector | None = None
        channel.setblocking(False)

    # ── what it has to do ────────────────────────────────────────────────────────────────────────────

    @property
    def takes_jobs(self) -> bool:
        return self.ready and not self.asked_to_leave and not self.at_end

    def has_room(self, weight: float) -> bool:
        """Whether a job of this length may be added: always to an idle worker, else only tiny ones to tiny ones."""
        if self.share is not None and self.done + len(self.jobs) >= self.share:
            return False
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
        """When to ask back what is behind its present job; ``None``: there is nothing, or it was asked already."""
        return self.busy_since + RECALL_AFTER if len(self.jobs) > 1 and not self.recalled else None

    def recall(self) -> None:
        """Ask back what it has not begun."""
        if len(self.jobs) > 1 and not self.recalled:
            self.recalled = True
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

    def last_outcome(self, job: Job, now: float, how: str) -> Outcome:
        """What became of the job that the worker was running when it died."""
        outcome = Outcome(job.seq, job.claim, Ending.CRASHED, job.started or now, now)
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
            if not self.at_end and not self._lives():
                self.at_end = True
                messages += self.receive()
        except OSError:
            self.at_end = True
        return messages

    def _lives(self) -> bool:
        if not hasattr(select, "poll"):
            return self.process.is_alive()
        poll = select.poll()
        poll.register(self.sentinel, select.POLLIN)
        return not poll.poll(0)

    # ── its end ──────────────────────────────────────────────────────────────────────────────────────

    def leave(self) -> None:
        """Ask it to end after what it was given."""
        self.asked_to_leave = True
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

    def bury(self, selector: BaseSelector | None) -> str:
        """Reap it and let go of its descriptors; says how it ended."""
        if selector is not None:
            for one in (self.socket, self.sentinel):
                with contextlib.suppress(KeyError, ValueError):  # was not registered
                    selector.unregister(one)
        self._selector = None
        self.socket.close()
        self.process.join(GRACE)
        if self.process.is_alive():  # it has closed its socket and lives on: it will hear nothing any more
            self.process.kill()
        self._kill_group()
        self.process.join()
        code = self.process.exitcode
        if self.sentinel != self.process.sentinel:
            os.close(self.sentinel)
        self.process.close()
        return _how(code)


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
    ) -> None:
        self._runtime = runtime
        self._method = method
        self._liveness = liveness
        self._log = log
        self._app_path = app_path or ""
        self._context: BaseContext = multiprocessing.get_context(method)
        if not app_path and method != "fork":
            from liteq.errors import ConfigurationError

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
        forked = self._method == "fork"
        closed = (*siblings, ours.fileno()) if forked else ()
        setup = worker.WorkerSetup(number, self._app_path, [one or os.getcwd() for one in sys.path], self._log, closed)  # noqa: PTH109
        runtime = self._runtime if forked else None
        lent = None if self._liveness is None else os.dup(self._liveness)
        try:
            process = self._context.Process(  # type: ignore[attr-defined]
                target=worker.main, args=(setup, theirs, _Lent(lent, forked), runtime), name="liteq-worker"
            )
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            if lent is not None:
                os.close(lent)
        return WorkerProcess(number, process, ours)


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
