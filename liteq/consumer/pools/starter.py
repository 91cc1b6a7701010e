"""Starts worker processes by one of multiprocessing's methods, and knows what they leave behind.

What a worker has begun stands in a file that it shares with its consumer (`liteq.storage.begun`): what is left of it
can be read when the worker is dead, and what it has not begun can be taken back while it is held still.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from liteq import logs
from liteq.consumer.loading import split_path
from liteq.consumer.log_setup import LogSetup
from liteq.consumer.options import StartMethod
from liteq.consumer.pools import preload, worker
from liteq.consumer.pools.child import WorkerProcess
from liteq.consumer.pools.stack_line import StackAsker
from liteq.errors import ConfigurationError, TaskTimeout
from liteq.execution import Runtime, is_retryable
from liteq.job import Job
from liteq.storage import begun

#: How long, in seconds, is waited for a worker to be still.
STILL = 0.02


def default_start_method() -> StartMethod:
    """forkserver on Linux (a fork from a clean process that knows the app: 7 ms), spawn elsewhere (200 ms, but
    safe).
    """
    return "forkserver" if sys.platform == "linux" else "spawn"


#: Held while the environment is changed: two consumers of one program would restore each other's changes.
_environment = threading.Lock()


class Starter:
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
            except OSError as error:
                if "AF_UNIX path" not in str(error):
                    raise
                self._do_without_fork_server()
            finally:
                for name, value in before.items():
                    if value is None:
                        del os.environ[name]
                    else:
                        os.environ[name] = value

    def _do_without_fork_server(self) -> None:
        """The path of its socket may have some hundred characters, and begins with that of the temporary directory."""
        message = (
            "the temporary directory's path is too long for a fork server; workers are started by spawn, more slowly"
        )
        logs.say(logs.WARNING, message, directory=tempfile.gettempdir())
        self._method = "spawn"
        self._context = multiprocessing.get_context("spawn")

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
