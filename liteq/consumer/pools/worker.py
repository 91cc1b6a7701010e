"""A worker process: the child's side of `liteq.consumer.pools.process`.

The main thread runs jobs, one after another. A second thread reads what the consumer sends, so that a job can be told
that it was revoked while it runs, and so that the worker ends at once when its consumer is gone: no orphans. On Linux
the kernel is asked to kill it as well, for the case that C code holds the interpreter.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from liteq import logs
from liteq.consumer.garbage import collect_less_often
from liteq.consumer.loading import load_app
from liteq.consumer.log_setup import LogSetup
from liteq.consumer.pools import usage
from liteq.consumer.pools.last_words import SAMPLE_AFTER, LastWords
from liteq.consumer.pools.messages import Run, Unframer, frame, pack_outcome, unpack_job
from liteq.consumer.pools.stack_line import StackTeller
from liteq.errors import TaskTimeout
from liteq.execution import Interrupted, Runtime, close_loop, execute
from liteq.job import Ending, Job, JobState, Outcome, Progress
from liteq.storage import begun
from liteq.storage.shelter import Shelter

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
#: Seconds; systems refuse timers of centuries. A job with a longer timeout is killed at it without being asked first.
LONGEST_TIMER = 1e9
#: Stands in the queue between the jobs that were taken back and those that may be run again.
_REOPEN = Job(0, "", "", JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker process is told at its start.

    Args:
        number: which of the pool's workers it is, from 0.
        app_path: the app to import; empty: ``runtime`` is inherited (only by a fork).
        import_path: the consumer's ``sys.path``.
        log: where its log lines go; ``None``: as they are set up where it is forked from.
        siblings: descriptors of the consumer's that a fork inherits and must close.
        max_memory: in bytes; having more after a job, it says so. ``None``: it does not look.
    """

    number: int
    app_path: str
    import_path: list[str]
    log: LogSetup | None
    siblings: tuple[int, ...] = ()
    max_memory: int | None = None


def main(
    setup: WorkerSetup, channel: socket.socket, liveness: Any, runtime: Runtime | None, line: socket.socket
) -> None:
    """Run jobs until told to stop.

    Args:
        setup: see there.
        channel: this end of the socket to the consumer.
        liveness: a copy of the consumer's lock, held so that a job still running here is not given to others; in its
            file
            is recorded what was begun.
        runtime: the app's, where it is inherited.
        line: this end of the socket over which it shows what it runs.
    """
    parent = _isolate(setup)
    if setup.log is not None:
        setup.log.apply()
    slot = liveness.detach()  # held to the end of the process
    worker = None
    try:
        if runtime is None:
            sys.path[:] = setup.import_path + [one for one in sys.path if one not in setup.import_path]
            runtime = load_app(setup.app_path).engine.runtime
        _keep_from_grandchildren(channel, slot)
        worker = _Worker(runtime, channel, setup, slot if begun.CAN_RECORD else None, StackTeller(line))
        collect_less_often()
        for hook in runtime.on_startup:
            hook()
    except BaseException as error:  # noqa: BLE001 - told to the consumer, which knows what to do
        _tell_why_not(channel, error)
        raise SystemExit(1) from None
    if parent is not None and os.getppid() != parent:
        os._exit(1)  # it died before the kernel was asked to tell us
    worker.run()


def _isolate(setup: WorkerSetup) -> int | None:
    """Be a worker and nothing else of what the parent was; returns the parent's pid where its death is watched."""
    for descriptor in setup.siblings:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the consumer decides when a worker stops
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not hasattr(os, "setsid"):
        return None
    signal.set_wakeup_fd(-1)
    for name in ("SIGHUP", "SIGUSR1"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.setsid()  # a group of its own, so that a kill reaches what the job has started
    _let_fork_server_go()
    return _die_with_parent()


def _let_fork_server_go() -> None:
    """Close our copy of the pipe whose end tells the fork server to end.

    multiprocessing hands one to every child. With it the server would wait for the last worker, and a worker in C code,
    which hears of its consumer's death only through the server's, for ever.
    """
    server: Any = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    kept = getattr(server, "_forkserver_alive_fd", None)
    if kept is not None:
        server._forkserver_alive_fd = None
        os.close(kept)


def _die_with_parent() -> int | None:
    if sys.platform != "linux":
        return None
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return parent


def _keep_from_grandchildren(channel: socket.socket, slot: int | None) -> None:
    """A process that a task forks must not keep the conversation, nor the consumer, looking alive."""
    if hasattr(os, "register_at_fork"):
        for descriptor in (channel.fileno(), slot):
            if descriptor is not None:
                os.register_at_fork(after_in_child=partial(os.close, descriptor))


def _tell_why_not(channel: socket.socket, error: BaseException) -> None:
    import traceback

    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):  # then nobody is left to tell
        channel.sendall(frame(("broken", text)))


class _Worker:
    """The two threads of a worker process."""

    def __init__(
        self, runtime: Runtime, channel: socket.socket, setup: WorkerSetup, slot: int | None, stack: StackTeller
    ) -> None:
        self._runtime = runtime
        self._stack = stack
        self._number = setup.number
        self._recorder = begun.Recorder(slot) if slot is not None else None
        self._box = None if self._recorder is None else self._recorder.box(setup.number)
        self._words = None if self._box is None else LastWords(self._box)
        self._max_memory = setup.max_memory
        self._weighed = 0.0
        self._socket = channel
        self._sending = threading.Lock()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._alarm = _Alarm()

    def run(self) -> None:
        """Tell that it is ready, and run jobs until the end."""
        threading.Thread(target=self._read, name="liteq-reader", daemon=True).start()
        self._send(("ready",))
        while (job := self._jobs.get()) is not None:
            outcome = self._execute(job)
            self._cancelled.discard(job.seq)
            if outcome is None:
                continue
            self._send(("done", pack_outcome(outcome)))
            if self._max_memory is not None:
                self._weigh(self._max_memory, outcome.finished)
        self._close()

    def _execute(self, job: Job) -> Outcome | None:
        """Run a job; ``None`` if it was taken back from us."""
        started = self._runtime.clock.now()
        if self._recorder is not None:
            if self._words is not None:
                self._words.begin(started)
            self._recorder.record(self._number, job.seq)
            if self._box is not None and not self._box.may_run(job.seq):
                if job is _REOPEN:
                    self._box.reopen()
                    self._send(("open",))
                return None
        if job.seq in self._cancelled:  # revoked on its way here
            return Outcome(job.seq, job.claim, Ending.INTERRUPTED, started, started)
        self._alarm.begin(job)
        try:
            return execute(job, self._runtime, self, self._alarm)
        except (Interrupted, TaskTimeout):  # raised by a signal that came a moment too late to be the task's
            return Outcome(job.seq, job.claim, Ending.INTERRUPTED, started, self._runtime.clock.now())
        finally:
            self._alarm.end()

    def _weigh(self, limit: int, now: float) -> None:
        """Say so if this process has grown too big; looked at every few milliseconds only, as that costs 10 µs."""
        if abs(now - self._weighed) > SAMPLE_AFTER:
            self._weighed = now
            memory = usage.own_memory()
            if memory is not None and memory > limit:
                self._max_memory = None  # once is enough
                self._send(("heavy", memory))

    def _close(self) -> None:
        for hook in self._runtime.on_shutdown:
            try:
                hook()
            except Exception as error:  # noqa: BLE001 - the other hooks still run
                logs.logger.error("on_shutdown hook %r failed", hook, exc_info=error)
        close_loop()

    def _send(self, message: tuple[Any, ...]) -> None:
        try:
            with self._sending:
                self._socket.sendall(frame(message))
        except TaskTimeout:  # is an OSError, and the job's
            raise
        except OSError:
            self._leave_at_once()  # the consumer is gone; what we did is recovered by another one

    def _leave_at_once(self) -> NoReturn:
        if self._words is not None and self._box is not None and not self._box.closed:  # a fork of a job has let go
            self._words.end()
        os._exit(1)

    # ── Channel ──────────────────────────────────────────────────────────────────────────────────────

    def progress(self, job: Job, progress: Progress) -> None:
        with self._alarm.held_off():  # half a message would be the end of the conversation
            self._send(("progress", job.seq, job.claim, *progress))

    def is_cancelled(self, job: Job) -> bool:
        return job.seq in self._cancelled

    # ── the reading thread ───────────────────────────────────────────────────────────────────────────

    def _read(self) -> None:
        unframer = Unframer()
        while data := self._receive():
            for message in unframer.feed(data):
                self._obey(message)
        self._leave_at_once()  # the consumer is gone, whatever the main thread is doing

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1 << 18)
        except OSError:
            return b""

    def _obey(self, message: tuple[Any, ...]) -> None:
        match message:
            case ("jobs", packed):
                for values in packed:
                    self._jobs.put(unpack_job(values))
            case ("cancel", seq):
                self._cancelled.add(seq)
            case ("interrupt", seq, claim):
                self._alarm.interrupt((seq, claim))
            case ("stack", token):
                self._stack.tell(token)
            case ("recall",):
                self._send(("back", self._drain()))
            case ("reopen",):
                self._jobs.put(_REOPEN)
            case ("stop",):
                self._jobs.put(None)

    def _drain(self) -> list[int]:
        """Take back what the main thread has not begun."""
        drained: list[int] = []
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is None:
                    self._jobs.put(None)  # told to stop already: nothing comes behind that
                    break
                if job is _REOPEN:
                    self._jobs.put(_REOPEN)  # likewise
                    break
                drained.append(job.seq)
                self._alarm.forget((job.seq, job.claim))
        return drained


def _signals_are_heard() -> bool:
    """Whether handlers run in this process. CPython 3.13.0 runs none in a child forked by another than the main
    thread.
    """
    by_main_thread = type(threading.main_thread()).__name__ == "_MainThread"
    return by_main_thread or sys.version_info < (3, 13)


class _Alarm:
    """Deadlines in the main thread of a process: by a timer signal where there is one.

    What the signal does not stop (C code, a task that catches everything) is killed by the consumer.
    """

    passes_on = ()

    def __init__(self) -> None:
        #: Which runs are to be interrupted, as the reading thread was told; and which one is on, to compare where it
        #: counts: in the main thread.
        self._wanted: set[Run] = set()
        self._run: Run | None = None
        self._telling = threading.Lock()
        self._cancel_coroutine: Callable[[], object] | None = None
        self._body_runs = False
        self._holding_off = False
        self._held_off: type[BaseException] | None = None
        self._main = threading.main_thread().ident or 0
        self._by_signal = hasattr(signal, "setitimer") and _signals_are_heard()
        self._timer: threading.Timer | None = None
        self._armed = False
        self._shelter = Shelter()
        if self._by_signal:
            self._shelter.move_in()
            signal.signal(signal.SIGALRM, self._on_alarm)
            signal.signal(signal.SIGUSR2, self._on_interrupt)

    def begin(self, job: Job) -> None:
        """A job begins; its body does with `start`."""
        self._run = (job.seq, job.claim)

    def end(self) -> None:
        """It has ended, with its body or before."""
        run, self._run = self._run, None
        if run is not None:
            self.forget(run)

    def forget(self, run: Run) -> None:
        """This one will not run."""
        self._wanted.discard(run)

    @property
    def interrupted(self) -> bool:
        return self._run in self._wanted

    def start(self, timeout: float | None, *, raises: bool) -> None:
        self._cancel_coroutine = None
        self._body_runs = raises
        if self._wanted and self.interrupted:  # since it began, or on its way here
            raise Interrupted
        if timeout is None or timeout > LONGEST_TIMER or not raises:
            return
        self._armed = True
        if self._by_signal:
            signal.setitimer(signal.ITIMER_REAL, timeout)
        else:
            self._timer = threading.Timer(timeout, self._inject, (TaskTimeout,))
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        self._body_runs = False
        self._cancel_coroutine = None
        if not self._armed:
            return
        self._armed = False
        if self._by_signal:
            signal.setitimer(signal.ITIMER_REAL, 0)
        elif self._timer is not None:
            self._timer.cancel()
            self._inject(None)

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        with self._telling:
            if self.interrupted:
                cancel()
            else:
                self._cancel_coroutine = cancel

    def interrupt(self, run: Run) -> None:
        """End this run as interrupted, if it is on or still comes. Called on the reading thread."""
        with self._telling:
            self._wanted.add(run)
            cancel = self._cancel_coroutine if self._run == run else None
            if cancel is not None:
                cancel()  # of a run that has ended meanwhile: then it does nothing
                return
        if self._by_signal:
            signal.pthread_kill(self._main, signal.SIGUSR2)
        elif self._body_runs and self._run == run:
            self._inject(Interrupted)

    @contextlib.contextmanager
    def held_off(self) -> Iterator[None]:
        """Nothing is raised inside by a signal; what came meanwhile is raised at the end. Other threads of a task's own
        are not signalled, and hold nothing off.
        """
        if threading.get_ident() != self._main:
            yield
            return
        self._holding_off = True
        try:
            yield
        finally:
            self._holding_off = False
        late, self._held_off = self._held_off, None
        if late is not None:
            raise late

    def _on_alarm(self, _number: int, _frame: object) -> None:
        self._raise(TaskTimeout)

    def _on_interrupt(self, _number: int, _frame: object) -> None:
        if self.interrupted:  # not the run before, which has ended while the signal was on its way
            self._raise(Interrupted)

    def _raise(self, error: type[BaseException]) -> None:
        if self._holding_off:
            self._held_off = error
        elif self._body_runs:
            self._shelter.strike(error)

    def _inject(self, error: type[BaseException] | None) -> None:
        import ctypes

        argument = None if error is None else ctypes.py_object(error)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._main), argument)
