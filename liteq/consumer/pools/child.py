"""A worker process as its consumer sees it: what it was given, what it has said, and its end.

Payloads pass through undecoded. A worker is given one job at a time, or, when its jobs are known to be tiny, several in
one message: never more than about 2 ms of work, so that nothing waits behind a long job and everything else can still
be given back. Its outcomes come one by one and in order, so the first job without one is what it was running when it
died. That it is dead is seen through its sentinel, or the end of its socket.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections import deque
from multiprocessing.process import BaseProcess
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector
from typing import Any

from liteq.clock import Clock
from liteq.consumer.pools import preload, usage
from liteq.consumer.pools.base import GRACE
from liteq.consumer.pools.messages import Message, Unframer, frame
from liteq.consumer.pools.stack_line import StackAsker
from liteq.job import Death, Ending, Job, Outcome

#: How much work a worker may be given at once, in seconds, and how many jobs: enough to last while the dispatcher
#: commits (no-op jobs, 2 workers, durability full: 14,000 jobs a second with 32, 25,000 with 128, the same with 256).
AT_ONCE, MOST_AT_ONCE = 0.002, 128
#: A worker that is busy with one job for so long, in seconds, gives back those behind it.
RECALL_AFTER = 0.02
#: A worker that does not answer that for so long, in seconds, because its job holds the interpreter, is held still for
#: a moment, and they are taken from it.
SEIZE_AFTER = 0.4
#: Seconds that a worker has to die after it has hung up, if nobody asked it to end.
DYING = 0.2


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

    @property
    def excess(self) -> float:
        """How many jobs beyond its share it has been given; of one that has grown too large, more than any number."""
        return float("inf") if self.heavy or self.share is None else self.done + len(self.jobs) - self.share

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
        self._to_stop -= seqs
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
            self._strike(seq)  # it may have begun it already, and our news be old

    def interrupt(self, seq: int, now: float) -> None:
        """Ask the body to end; kill the worker if it does not."""
        if self.kill_as is Ending.INTERRUPTED:
            return
        self.kill_as = Ending.INTERRUPTED
        self.kill_at = now + GRACE
        self._strike(seq)

    def _strike(self, seq: int) -> None:
        """By its claim, too: it may run the job again later."""
        claim = next(job.claim for job in self.jobs if job.seq == seq)
        self.send(("interrupt", seq, claim))

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
