"""Process workers: the consumer's side. The child's side is `liteq.consumer.pools.worker`.

The pool gives the jobs to its workers, settles what becomes of them, and fills the places of those that end. What one
worker process is to it stands in `liteq.consumer.pools.child`, how one is started in `liteq.consumer.pools.starter`.

The job of a worker that dies is settled as crashed, with the signal or exit code and what the worker has left behind,
the jobs behind it go to others, and its slot is refilled. A job that has crashed is given to an idle worker, and
nothing else to that one until it has ended.

A worker that has done its share, or has too much memory, rests while its successor starts, and leaves when that one is
up. One rests at a time, so that at most one slot is empty; the others go on meanwhile, beyond their share if need be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from selectors import BaseSelector

from liteq import logs
from liteq.clock import Clock
from liteq.consumer.log_setup import LogSetup
from liteq.consumer.options import StartMethod
from liteq.consumer.pools import usage
from liteq.consumer.pools.base import GRACE, Pool, StackSource
from liteq.consumer.pools.child import WorkerProcess
from liteq.consumer.pools.messages import pack_job, unpack_outcome
from liteq.consumer.pools.starter import Starter, default_start_method
from liteq.engine import Ended
from liteq.errors import ConfigurationError
from liteq.execution import Runtime
from liteq.job import Death, Ending, Job, Outcome, Progress
from liteq.storage import begun

#: Seconds until a worker that did not come up is started again: doubled from the first to the last.
FIRST_RETRY, LAST_RETRY = 0.1, 5.0
#: Seconds a worker is given to leave by itself.
LEAVE = 5.0
#: How often to look at the memory of a worker that runs a job, in seconds, and how many times too much is reported.
WEIGH_EVERY, FAR_TOO_MUCH = 1.0, 2


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
        self._starter = Starter(runtime, app_path, method, liveness, log, max_memory)
        self._backlog: deque[Job] = deque()
        self._ended: list[Ended] = []
        self._progress: dict[tuple[int, int], Progress] = {}
        self._workers: list[WorkerProcess] = []
        self._spares: list[WorkerProcess] = []
        self._leaving: list[WorkerProcess] = []
        self._pace: dict[str, float] = {}
        self._excused: set[int] = set()
        self._told: set[int] = set()
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
                case ("progress", seq, claim, *step):
                    self._progress[seq, claim] = Progress(*step)
                case ("back", seqs):
                    self._put_back(one.give_back(set(seqs)))
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

    def _put_back(self, jobs: Sequence[Job]) -> None:
        """What a worker was given and will not begin comes to the head of the backlog; not what was revoked meanwhile,
        of which the next worker would know nothing.
        """
        now = self.clock.now()
        revoked = [job for job in jobs if job.seq in self._told]
        self._told.difference_update(job.seq for job in revoked)
        self._ended += [Ended(job, Outcome(job.seq, job.claim, Ending.INTERRUPTED, now, now)) for job in revoked]
        self._backlog.extendleft(job for job in reversed(jobs) if job not in revoked)

    def _end(self, one: WorkerProcess, outcome: Outcome) -> None:
        job = one.finish(outcome, self.clock.monotonic())
        self._learn(job.task, outcome.finished - outcome.started)
        self._ended.append(Ended(job, outcome))
        if self._excused:
            self._excused.discard(job.seq)
        if self._told:
            self._told.discard(job.seq)
        if self._recycles and (one.is_spent or one.resting) and one in self._workers:
            self._rest_spent()
            self._relieve()

    def _learn(self, task: str, duration: float) -> None:
        known = self._pace.get(task)
        if known is None or duration > known:
            self._pace[task] = duration  # slower than thought: believed at once
        else:
            self._pace[task] = known + 0.1 * (duration - known)

    def progress(self) -> dict[tuple[int, int], Progress]:
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
            outcome = one.last_outcome(job, self.clock, how, death_of(used, remains))
            if outcome.ending is Ending.TIMEOUT:
                outcome = outcome._replace(retryable=self._starter.retries_timeouts(job))
            self._excused.discard(job.seq)
            self._told.discard(job.seq)
            self._ended.append(Ended(job, outcome))
        self._put_back(list(one.jobs))
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
        self._rest_spent()
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

    def _rest_spent(self) -> None:
        """Have those rest that are to be replaced, as far as they may; first who is furthest beyond his share.

        In any other order, those whose turn comes first are soon spent again where shares are small and jobs tiny, and
        the others would never be replaced.
        """
        spent = [one for one in self._workers if one.is_spent and not one.resting]
        for one in sorted(spent, key=lambda one: one.excess, reverse=True):
            if not self._rests(one):
                return

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
            self._rest_spent()
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
        self._put_back(one.lose_all_behind(seq))
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
                self._told.add(seq)
                one.send(("cancel", seq))  # if it has not begun it, that is enough
                if stop:
                    one.stop(seq, self.clock.monotonic())

    def interrupt(self) -> None:
        now = self.clock.monotonic()
        for one in self._all:
            one.recall(now)
            for job in tuple(one.jobs):  # which of them it has begun it knows better
                one.stop(job.seq, now)

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


def death_of(used: usage.Usage | None, remains: begun.Remains | None) -> Death | None:
    """What is known of the last attempt of a worker that has used so much in all."""
    if remains is None:
        return None if used is None else Death(used.peak)
    if used is None:
        return remains.death
    return Death(used.peak, max(0.0, used.cpu - remains.before), remains.death.log)
