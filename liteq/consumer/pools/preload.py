"""Imported once by the fork server, so that worker processes are forks that already know the app (7 ms instead of 200).

The fork server ignores TERM, as worker processes do: a supervisor that signals the whole group must not take the server
away from under jobs that may still finish. It ends with its consumer, whose pipe it watches, and then removes the
directory that the consumer cannot remove any more if it was killed.

It alone learns from the system what a worker has used, because it is its parent. So it adds that to the exit code which
it sends to the consumer; where multiprocessing does not let it, nothing is known.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import select
import shutil
import signal
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

from liteq.consumer.pools import usage

#: Names the module to import; set while the fork server is being started.
VARIABLE = "LITEQ_PRELOAD"

_USAGE = struct.Struct("<dQ")
_EXIT_CODE = struct.Struct("q")  # as multiprocessing.forkserver has it
#: How long to wait, in seconds, until a consumer whose pipe has closed is gone: the system closes the pipe first.
_GOING = 1.0


def read_usage(sentinel: int) -> usage.Usage | None:
    """What a worker has used that a fork server has reaped; ``None`` if the server did not say.

    Args:
        sentinel: the pipe from the server, of which the exit code was read.
    """
    os.set_blocking(sentinel, False)
    try:
        said = os.read(sentinel, _USAGE.size)
    except OSError:  # the server is not ours, and somebody else holds the other end
        return None
    return usage.Usage(*_USAGE.unpack(said)) if len(said) == _USAGE.size else None


class _Reaper(ModuleType):
    """Stands for the module `os` in multiprocessing's fork server, and notes what those have used that it reaps."""

    used: usage.Usage | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def waitpid(self, pid: int, options: int) -> tuple[int, int]:
        found, status, rusage = os.wait4(pid, options)
        self.used = usage.of_rusage(rusage) if found else None
        return found, status

    def write_signed(self, descriptor: int, number: int) -> None:
        """A pid, or, after `waitpid`, an exit code."""
        used, self.used = self.used, None
        os.write(descriptor, _EXIT_CODE.pack(number) + (_USAGE.pack(*used) if used else b""))


def _tell_usage(server: Any) -> None:
    if hasattr(os, "wait4") and hasattr(server, "write_signed") and hasattr(server, "os"):
        reaper = _Reaper("os")
        server.os, server.write_signed = reaper, reaper.write_signed


def _remove_after(consumer: int, server: int, module: Any) -> None:
    """Remove the directory of a consumer that is dead; one that lives removes it itself."""
    address = getattr(getattr(module, "_forkserver", None), "_forkserver_address", None)
    directory = Path(address).parent if isinstance(address, str) and address else None
    if os.getpid() != server or directory is None or not directory.name.startswith("pymp-"):
        return
    for _ in range(100):
        if os.getppid() != consumer:
            shutil.rmtree(directory, ignore_errors=True)
            return
        select.select([], [], [], _GOING / 100)


_module = os.environ.pop(VARIABLE, None)
if _module is not None:  # the consumer imports this too, for its name, and must go on hearing TERM
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _server = importlib.import_module("multiprocessing.forkserver")
    _tell_usage(_server)
    atexit.register(_remove_after, os.getppid(), os.getpid(), _server)
if _module:
    # The server itself must live: each worker imports the module again, and says what is wrong.
    with contextlib.suppress(Exception, SystemExit):
        importlib.import_module(_module)
