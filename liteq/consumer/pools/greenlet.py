"""Greenlet workers: N jobs at once in one process of their own, on gevent's hub. The child's side is
`liteq.consumer.pools.hub`.

They are not in the consumer's process, because a job that computes without ever waiting keeps the whole hub busy, and
then neither dispatcher nor shutdown nor deadlines would get on. So the child alone is patched, before it imports the
app; the consumer is not, and any program can have one in the background. And what cannot be stopped can be killed.

A job that has crashed runs alone: in a process beside the other, the cell.

Ten times a second the hub is asked for a sign of life. While there is none it gets no new jobs, and the job that keeps
it busy is reported by name; at its deadline it is struck by a signal, and if that does not help (C code, a task that
catches everything) the process is killed. The other jobs on it are put back and cost no attempt.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from multiprocessing import spawn, util
from queue import Empty, SimpleQueue
from selectors import BaseSelector
from typing import Any

from liteq import logs
from liteq.consumer.loading import split_path
from liteq.consumer.log_setup import LogSetup
from liteq.consumer.options import ConsumerOptions
from liteq.consumer.pools import usage
from liteq.consumer.pools.base import GRACE, Pool, StackSource
from liteq.consumer.pools.child import WorkerProcess
from liteq.consumer.pools.messages import Run, pack_job, unpack_outcome
from liteq.consumer.pools.process import FIRST_RETRY, LAST_RETRY, LEAVE, death_of
from liteq.consumer.pools.pulse import ASK_EVERY, Pulse
from liteq.consumer.pools.worker import WorkerSetup
from liteq.engine import Ended
from liteq.errors import ConfigurationError, TaskTimeout
from liteq.execution import Runtime, is_retryable
from liteq.job import Death, Ending, Job, Outcome, Progress
from liteq.storage import begun

#: Seconds after which a process whose hub does not answer, and that cannot say why either, is taken to be in C code.
MUTE_AFTER = 1.0
#: Seconds to wait for the stack of a job.
STACK_PATIENCE = 1.0


#: Processes at a time: the one that gets new jobs, its successor, the cell, and those on their way out.
MOST_PROCESSES = 8


def numbers(size: int) -> int:
    """How many numbers a consumer with so many greenlets has to record what was begun: for each process, whose code
    runs (these have a black box); for each greenlet; and for each coroutine beside them.
    """
    return MOST_PROCESSES + 2 * size


class GreenletPool(Pool):
    """Up to N jobs at once on greenlets. What it is fed begins at once.

    Args:
        runtime: the app's.
        options: the consumer's.
        liveness: the descriptor that keeps the consumer's owner alive, or ``None``.
        log: where the process's log lines go.

    Raises:
        ConfigurationError: the child could not import the app, or this system cannot start it.
    """

    def __init__(
        self, runtime: Runtime, options: ConsumerOptions, *, liveness: int | None, log: LogSetup | None
    ) -> None:
        if not options.app_path:
            raise ConfigurationError(
                "greenlet workers run in a process of their own, which must import the app: make it a variable of a "
                "module, or name it with app_path='module:name'"
            )
        self.size = options.workers
        self._runtime = runtime
        self._clock = runtime.clock
        self._max_tasks = options.max_tasks
        self._setup = WorkerSetup(0, options.app_path, [], log)
        self._liveness = liveness
        self._numbers = deque(range(MOST_PROCESSES, MOST_PROCESSES + self.size))
        self._backlog: deque[Job] = deque()
        self._suspects: deque[Job] = deque()
        self._ended: list[Ended] = []
        self._progress: dict[tuple[int, int], Progress] = {}
        self._hubs: list[HubProcess] = []
        self._selector: BaseSelector | None = None
        self._failures = 0
        self._start_again_at = 0.0
        self._look_at = 0.0
        self._stopping = self._recalled = False
        self._stuck = 0

    # ── feeding ──────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        self._refill(self._clock.monotonic())

    def watch(self, selector: BaseSelector) -> None:
        self._selector = selector
        for one in self._hubs:
            one.register(selector)

    def about_to_wait(self) -> bool:
        return not self._ended

    @property
    def _hub(self) -> HubProcess | None:
        """The process that gets new jobs: the newest that is up."""
        return next((one for one in reversed(self._hubs) if one.takes_jobs and not one.is_cell), None)

    @property
    def _cell(self) -> HubProcess | None:
        """The process in which jobs that have crashed run, one at a time, so that they take nobody along."""
        return next((one for one in self._hubs if one.is_cell and not one.asked_to_leave), None)

    def feed(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            (self._suspects if job.crashes else self._backlog).append(job)
        self._distribute()

    def _distribute(self) -> None:
        now = self._clock.monotonic()
        if not self._recalled:
            self._give_out(now)
        self._refill(now)

    def _give_out(self, now: float) -> None:
        hub, cell = self._hub, self._cell
        if hub is not None and self._backlog and self._numbers:
            hub.give([self._ticket(self._backlog, now) for _ in range(min(len(self._backlog), len(self._numbers)))])
        if cell is not None and cell.takes_jobs and not cell.tickets and self._suspects and self._numbers:
            cell.give([self._ticket(self._suspects, now)])

    def _ticket(self, waiting: deque[Job], now: float) -> Ticket:
        job = waiting.popleft()
        return Ticket(job, self._numbers.popleft(), now, self._timeout(job))

    def _timeout(self, job: Job) -> float | None:
        definition = self._runtime.tasks.get(job.task)
        return None if definition is None else definition.for_job(job).timeout

    # ── collecting ───────────────────────────────────────────────────────────────────────────────────

    def collect(self) -> list[Ended]:
        for one in tuple(self._hubs):
            self._read(one)
        ended, self._ended = self._ended, []
        self._distribute()
        return ended

    def _read(self, one: HubProcess) -> None:
        for message in one.receive():
            match message:
                case ("done", values):
                    self._end(one, unpack_outcome(values))
                case ("progress", seq, claim, *step):
                    self._progress[seq, claim] = Progress(*step)
                case ("pong", number):
                    one.answer(number)
                case ("blocked", run, place):
                    one.blame(run, place)
                case ("stack", run, text):
                    one.hear_stack(run, text)
                case ("ready",):
                    one.ready = True
                    self._failures = 0
                    self._relieve()
                case ("broken", text):
                    logs.say(logs.ERROR, f"the process of the greenlets could not start:\n{text.rstrip()}")
        if one.at_end and one.is_over(self._clock.monotonic()):
            self._bury(one)

    def _end(self, one: HubProcess, outcome: Outcome) -> None:
        ticket = one.tickets.get((outcome.seq, outcome.claim))
        if ticket is not None:  # it was not given up
            self._settle(one, ticket, outcome)
        self._relieve()

    def _settle(self, one: HubProcess, ticket: Ticket, outcome: Outcome) -> None:
        del one.tickets[ticket.run]
        self._numbers.append(ticket.number)
        self._ended.append(Ended(ticket.job, outcome))

    def progress(self) -> dict[tuple[int, int], Progress]:
        said, self._progress = self._progress, {}
        return said

    @property
    def ready(self) -> int:
        hub = self._hub
        return 0 if hub is None or hub.pulse.blocked else self.size

    @property
    def _tickets(self) -> list[tuple[HubProcess, Ticket]]:
        return [(one, ticket) for one in self._hubs for ticket in one.tickets.values()]

    @property
    def held(self) -> int:
        waiting = len(self._backlog) + len(self._suspects)
        return waiting + sum(len(one.tickets) for one in self._hubs) + len(self._ended)

    @property
    def backlog(self) -> int:
        # Who waits for a process that is being started for him is not given back, to be claimed again at once.
        awaited = not self._recalled and self._cell is not None and not self._cell.ready
        return len(self._backlog) + (0 if awaited else len(self._suspects))

    def take_back(self) -> list[Job]:
        taken = [*self._suspects, *self._backlog]
        self._suspects.clear()
        self._backlog.clear()
        return taken

    def recall(self) -> None:
        self._recalled = True  # what a process was given, it has begun

    def running(self) -> list[Job]:
        return [ticket.job for _, ticket in self._tickets]

    def stack_of(self, seq: int) -> StackSource | None:
        return next((one.ask_stack(ticket.run) for one, ticket in self._tickets if ticket.job.seq == seq), None)

    # ── ending jobs ──────────────────────────────────────────────────────────────────────────────────

    def cancel(self, seq: int, *, stop: bool) -> None:
        for one, ticket in self._tickets:
            if ticket.job.seq == seq:
                one.send(("cancel", ticket.run))
                if stop:
                    one.interrupt(ticket, self._clock.monotonic())

    def interrupt(self) -> None:
        for one, ticket in self._tickets:
            one.interrupt(ticket, self._clock.monotonic())

    def supervise(self, now: float) -> float | None:
        self._refill(now)
        dates = [] if self._stopping or self._newest_lives else [self._start_again_at]
        if self.held or len(self._hubs) > 1 or any(one.at_end for one in self._hubs):
            if now >= self._look_at:
                self._look_at = now + ASK_EVERY
                for one in tuple(self._hubs):
                    self._read(one)  # the dispatcher may have waited for the storage, and the answers for it
                for one in tuple(self._hubs):
                    self._look_after(one, now)
            dates.append(self._look_at)
        return min(dates, default=None)

    def _look_after(self, one: HubProcess, now: float) -> None:
        if one.at_end:
            return  # the next collect() buries it
        if one.leave_by is not None and one.leave_by <= now:
            one.kill()
        if one.ready:
            one.ask(now)
        for ticket in list(one.tickets.values()):
            if ticket.deadline is not None and ticket.deadline <= now:
                self._hurry(one, ticket, now)

    def _hurry(self, one: HubProcess, ticket: Ticket, now: float) -> None:
        """A job goes on although it should not."""
        blamed = one.blamed if one.pulse.blocked else None
        if blamed == ticket.job.seq and not ticket.struck:
            one.strike(ticket, now)
            return
        innocent = one.pulse.blocked and blamed not in (ticket.job.seq, None)
        if innocent and not ticket.interrupted:
            ticket.give_up_at = now + GRACE  # it ends when it can: what keeps it from ending is another job
        if ticket.give_up_at > now:
            return
        if one.pulse.blocked and not innocent:
            one.killed_for = ticket.job.seq
            one.kill()
            return
        one.send(("drop", ticket.run))
        self._settle(one, ticket, self._given_up(ticket))
        if not ticket.interrupted:
            self._stuck += 1
            keys = {"job": ticket.job.id, "task": ticket.job.task, "stuck": self._stuck}
            logs.say(logs.ERROR, "greenlet is stuck and was given up", **keys)

    def _given_up(self, ticket: Ticket) -> Outcome:
        outcome = self._outcome(ticket)
        if ticket.interrupted:
            return outcome
        message = (
            "the task ran longer than its timeout and its greenlet could not be stopped; it may still be running, so "
            "it is not run again (worker processes can be killed: -k process)"
        )
        return outcome._replace(ending=Ending.TIMEOUT, retryable=False, error_type="TaskTimeout", message=message)

    def _outcome(self, ticket: Ticket) -> Outcome:
        """Interrupted now."""
        now, ran = self._clock.now(), self._clock.monotonic() - ticket.began
        return Outcome(ticket.job.seq, ticket.job.claim, Ending.INTERRUPTED, now - ran, now)

    # ── death and replacement ────────────────────────────────────────────────────────────────────────

    def _bury(self, one: HubProcess) -> None:
        """The process is dead: settle what ran on it, and start another one."""
        how, used = one.bury(self._selector)
        self._hubs.remove(one)
        remains = None if self._liveness is None else begun.read_worker(self._liveness, one.number)
        culprit = self._culprit(one, remains)
        for ticket in list(one.tickets.values()):
            if culprit in (ticket.job.seq, None) or self._fails_at_crash(ticket.job):
                death = self._death(one, ticket, used, remains)
                self._settle(one, ticket, self._last_outcome(one, ticket, how, death))
            else:
                self._settle(one, ticket, self._outcome(ticket))
        if not one.ready:
            self._pause_starting()
        if not one.asked_to_leave:
            logs.say(logs.WARNING, "the process of the greenlets died", pid=one.pid, how=how)
        self._refill(self._clock.monotonic())

    def _death(
        self, one: HubProcess, ticket: Ticket, used: usage.Usage | None, remains: begun.Remains | None
    ) -> Death | None:
        """What is known of a job's end: its last lines, and, if its code ran, what it had used."""
        seq = ticket.job.seq
        if remains is not None and remains.seq == seq:
            return death_of(used, remains)
        log = "" if self._liveness is None else begun.log_of(self._liveness, one.number, seq)
        return Death(None if used is None else used.peak, log=log)

    def _culprit(self, one: HubProcess, remains: begun.Remains | None) -> int | None:
        """Whose code the process executed as it died; ``None``: nobody's, so it may have been any of them."""
        if one.killed_for is not None:
            return one.killed_for
        return remains.seq if remains is not None and any(seq == remains.seq for seq, _ in one.tickets) else None

    def _fails_at_crash(self, job: Job) -> bool:
        """Whether it must not be run a second time, whoever is to blame."""
        definition = self._runtime.tasks.get(job.task)
        return definition is not None and definition.for_job(job).policy.on_crash == "fail"

    def _last_outcome(self, one: HubProcess, ticket: Ticket, how: str, death: Death | None) -> Outcome:
        outcome = self._outcome(ticket)
        if one.killed_for is None or one.killed_for != ticket.job.seq:
            message = f"the process of its greenlet died: {how}"
            return outcome._replace(
                ending=Ending.CRASHED, error_type="WorkerCrashed", message=message, details=how, death=death
            )
        if ticket.interrupted:
            return outcome
        definition = self._runtime.tasks.get(ticket.job.task)
        return outcome._replace(
            ending=Ending.TIMEOUT,
            error_type="TaskTimeout",
            message="the task ran longer than its timeout and did not stop; the process of its greenlet was killed",
            details=how,
            death=death,
            retryable=definition is None or is_retryable(TaskTimeout(), definition.for_job(ticket.job)),
        )

    @property
    def _newest_lives(self) -> bool:
        newest = self._newest
        return newest is not None and not newest.asked_to_leave

    @property
    def _newest(self) -> HubProcess | None:
        return next((one for one in reversed(self._hubs) if not one.is_cell), None)

    def _refill(self, now: float) -> None:
        """Start a process where there is none, a successor for one that has done its share, and a cell if needed."""
        if self._stopping or now < self._start_again_at:
            return
        newest = self._newest
        if newest is None or newest.asked_to_leave or newest.is_spent:
            self._start_one(is_cell=False)
        if self._suspects and self._cell is None:
            self._start_one(is_cell=True)

    def _start_one(self, *, is_cell: bool) -> None:
        taken = {one.number for one in self._hubs}
        free = next((one for one in range(MOST_PROCESSES) if one not in taken), None)
        if free is None:
            return  # so many are on their way out; they are killed if they do not get on
        try:
            one = HubProcess(replace(self._setup, number=free), self._liveness, is_cell=is_cell)
        except OSError as error:  # no processes, memory or descriptors left
            logs.say(
                logs.ERROR, "the process of the greenlets could not be started, and will be tried again", error=error
            )
            self._pause_starting()
            return
        one.share = self._max_tasks
        self._hubs.append(one)
        if self._selector is not None:
            one.register(self._selector)

    def _pause_starting(self) -> None:
        self._failures += 1
        wait = min(FIRST_RETRY * 2 ** min(self._failures - 1, 10), LAST_RETRY)
        self._start_again_at = self._clock.monotonic() + wait

    def _relieve(self) -> None:
        """Let those leave that have a successor, as soon as they have ended what they were given."""
        newest = self._hub
        for one in self._hubs:
            is_wanted = one is newest or (one.is_cell and self._suspects)
            if one.ready and not (is_wanted or one.tickets or one.asked_to_leave):
                one.leave(self._clock.monotonic() + LEAVE)

    def stop(self) -> None:
        self._stopping = True
        for one in self._hubs:
            one.leave(self._clock.monotonic() + LEAVE)
        for one in self._hubs:
            one.wait(0.0 if one.pulse.blocked else LEAVE)
            one.bury(self._selector)
        self._hubs.clear()

    def stuck(self) -> int:
        return self._stuck


@dataclass(slots=True, eq=False)
class Ticket:
    """A job that was given to the process.

    Args:
        job: running.
        number: under which the process records that it has begun it.
        began: on the monotonic clock.
        timeout: in seconds.
    """

    job: Job
    number: int
    began: float
    timeout: float | None
    interrupted: bool = False
    struck: bool = False
    deadline: float | None = None
    give_up_at: float = float("inf")

    def __post_init__(self) -> None:
        if self.timeout is not None:
            self.deadline = self.began + self.timeout
            self.give_up_at = self.deadline + GRACE

    @property
    def run(self) -> Run:
        """Which run of the job: one that was given up may go on beside the next."""
        return self.job.seq, self.job.claim


class HubProcess(WorkerProcess):
    """The process of the greenlets as its consumer sees it.

    Args:
        setup: what it is told at its start.
        liveness: the consumer's lock, of which it holds a copy.
        is_cell: it is for jobs that have crashed, one at a time.

    Raises:
        OSError: it could not be started.
    """

    def __init__(self, setup: WorkerSetup, liveness: int | None, *, is_cell: bool) -> None:
        preparation = _preparation(setup.app_path)
        ours, theirs = socket.socketpair()
        try:
            super().__init__(setup.number, _Spawned(theirs, liveness), ours, _NoStack())  # type: ignore[arg-type]
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.is_cell = is_cell
        self.tickets: dict[Run, Ticket] = {}
        self.pulse = Pulse("hub of the greenlets")
        self.killed_for: int | None = None
        self.blamed: int | None = None
        self._asked = 0
        self._given = 0
        self._reported_mute = False
        self._asked_stacks: dict[Run, list[SimpleQueue[str | None]]] = {}
        self.send(("setup", pickle.dumps((setup, preparation))))

    @property
    def is_spent(self) -> bool:
        return self.share is not None and self._given >= self.share

    def give(self, tickets: list[Ticket]) -> None:
        """Have it begin these."""
        self._given += len(tickets)
        self.tickets |= {ticket.run: ticket for ticket in tickets}
        self.send(("jobs", [(ticket.number, pack_job(ticket.job)) for ticket in tickets]))

    # ── whether it is alive ──────────────────────────────────────────────────────────────────────────

    def ask(self, now: float) -> None:
        """Ask the hub for an answer; and where it owes one, the process, who is to blame."""
        if self.pulse.ask(now):
            self._asked += 1
            self.blamed = None
            self._reported_mute = False
            self.send(("ping", self._asked))
        elif self.pulse.blocked:
            if self.blamed is None and self.pulse.silence >= MUTE_AFTER and not self._reported_mute:
                self._reported_mute = True
                jobs = ",".join(ticket.job.id for ticket in self.tickets.values())
                message = "a job holds the interpreter of the greenlets in C code, and with it all others"
                logs.say(logs.WARNING, message, one_of=jobs, blocked=f"{self.pulse.silence:.1f}s")
            self.send(("who",))

    def answer(self, number: int) -> None:
        """The hub has answered a question."""
        if number == self._asked:
            self.pulse.answer()

    def blame(self, run: Run, place: str) -> None:
        """The process has said what keeps its hub busy: no job, perhaps, or one that was given up."""
        ticket = self.tickets.get(run)
        self.blamed = 0 if ticket is None else ticket.job.seq
        if self.pulse.is_to_report:
            waiting = len(self.tickets) - (ticket is not None)
            self.pulse.report(None if ticket is None else ticket.job, place, waiting)

    def ask_stack(self, run: Run) -> StackSource:
        """Ask what a job is doing; what is returned waits for the answer."""
        answer: SimpleQueue[str | None] = SimpleQueue()
        self._asked_stacks.setdefault(run, []).append(answer)
        self.send(("stack", run))

        def look() -> str | None:
            try:
                text = answer.get(timeout=STACK_PATIENCE)
            except Empty:
                return f"process {self.pid} of the greenlets does not answer: C code holds its interpreter\n"
            return None if text is None else f"greenlet of process {self.pid}:\n{text}"

        return look

    def hear_stack(self, run: Run, text: str | None) -> None:
        """The answer to `ask_stack`."""
        for answer in self._asked_stacks.pop(run, ()):
            answer.put(text)

    # ── ending its jobs ──────────────────────────────────────────────────────────────────────────────

    def interrupt(self, ticket: Ticket, now: float) -> None:  # type: ignore[override]
        """End the body as interrupted."""
        if not ticket.interrupted:
            ticket.interrupted = True
            ticket.deadline, ticket.give_up_at = now, now + GRACE
            self.send(("interrupt", ticket.run))

    def strike(self, ticket: Ticket, now: float) -> None:
        """Raise in the body, which computes and never waits."""
        ticket.struck = True
        ticket.give_up_at = now + GRACE
        self.send(("strike", ticket.run))


def _preparation(app_path: str) -> dict[str, Any]:
    """What multiprocessing tells a process that it spawns; of the program's main module only where the app is in it.

    Raises:
        RuntimeError: this is such a process, which has just begun to import that module: it must not start others.
    """
    preparation = spawn.get_preparation_data("liteq-worker")
    preparation["authkey"] = bytes(preparation["authkey"])
    if split_path(app_path)[0] != "__main__":
        for key in ("init_main_from_name", "init_main_from_path"):
            preparation.pop(key, None)
    return preparation


class _Spawned:
    """What `WorkerProcess` asks of a process; started by hand, as multiprocessing would import the program's main
    module, and with it perhaps the app, before anything could be patched. (`subprocess` would not do either: in a
    program that gevent has patched, it forks in a way that runs the hooks of `os.register_at_fork`.)
    """

    method = "spawn"  # it is our own child, as one that multiprocessing has spawned

    def __init__(self, channel: socket.socket, liveness: int | None) -> None:
        self.returncode: int | None = None
        self.sentinel, theirs = os.pipe()
        passed = [channel.fileno(), theirs] + ([] if liveness is None else [liveness])
        path = [one or os.getcwd() for one in sys.path]  # noqa: PTH109
        code = f"import sys; sys.path[:] = {path}; from liteq.patched import main; main{(*passed[:2], liveness)}"
        program = os.fsencode(spawn.get_executable())
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        try:
            self.pid: int = util.spawnv_passfds(program, [program, *flags, "-c", code], passed)
        except BaseException:
            os.close(self.sentinel)
            raise
        finally:
            os.close(theirs)
        self._popen = self

    @property
    def exitcode(self) -> int | None:
        return self.returncode

    def is_alive(self) -> bool:
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):  # reaped already, by somebody who waits for any child
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if not pid:
                    return True
                self.returncode = os.waitstatus_to_exitcode(status)
        return False

    def join(self, timeout: float | None = None) -> None:
        if self.returncode is None:
            select.select([self.sentinel], [], [], timeout)  # readable at its end

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        os.close(self.sentinel)


class _NoStack:
    """Stacks come over the one socket: its reading thread is always there."""

    def close(self) -> None:
        return None
