"""The diary: what every process of a torture says about itself, kept apart from liteq, so that it can be evidence.

A line is one JSON list, written with one `write` of less than PIPE_BUF bytes into a named pipe: whole, in order, and
kept by the kernel whoever is killed next. A pipe rather than a file, because a victim whose files may not grow (the
"full disk") must still be able to say what it does. The reader appends every line to a file.

A **lifeline** is an empty file that a worker's process keeps locked for as long as it lives: whoever can lock it knows
that the process is dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: A write of so much to a pipe is never torn (the least that POSIX allows is 512; Linux has 4096).
LONGEST_LINE = 512

Line = list[Any]


class Pen:
    """A victim's end of the diary, and its lifeline.

    Args:
        folder: of the torture.
        monotonic: seconds, on a clock that all processes share.
    """

    def __init__(self, folder: Path, monotonic: Callable[[], float]) -> None:
        self._folder = folder
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._pid = 0
        self._pipe = -1
        self._name = ""

    @property
    def name(self) -> str:
        """This process: its id and when it first wrote, so that no later process is taken for it."""
        if self._pid != os.getpid():
            with self._lock:
                self._open()
        return self._name

    def write(self, what: str, *details: object) -> None:
        """Write a line: what happens, when, and ``details``. Ends the process if nobody reads any more."""
        name = self.name
        line = json.dumps([what, self._monotonic(), name, *details]).encode() + b"\n"
        if len(line) > LONGEST_LINE:
            raise ValueError(f"a line of {len(line)} bytes would be torn")
        try:
            os.write(self._pipe, line)
        except BrokenPipeError:
            os._exit(1)

    def _open(self) -> None:
        pid = os.getpid()
        if self._pid == pid:
            return
        self._pipe = os.open(self._folder / "diary", os.O_WRONLY)
        self._name = f"{pid}.{int(self._monotonic() * 1e6)}"
        self._lifeline = os.open(self._folder / "lives" / self._name, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lifeline, fcntl.LOCK_EX)
        self._pid = pid


def pid_of(name: str) -> int:
    """The process id in a `Pen.name`."""
    return int(name.partition(".")[0])


class Diary:
    """The torturer's end: collects the lines.

    Args:
        folder: of the torture; the pipe, the file ``diary.jsonl`` and the lifelines are made in it.
        read: called with every line, in order, on a thread of its own.
    """

    def __init__(self, folder: Path, read: Callable[[Line], None]) -> None:
        self._folder = folder
        self._read = read
        (folder / "lives").mkdir()
        os.mkfifo(folder / "diary", 0o600)
        # Open for writing too, so that it neither waits for the first victim nor ends with the last.
        self._pipe = os.open(folder / "diary", os.O_RDWR)
        self._thread = threading.Thread(target=self._collect, name="diary")
        self._thread.start()

    def close(self) -> None:
        """Read what has been written so far, and no more."""
        os.write(self._pipe, b"\n")
        self._thread.join()
        os.close(self._pipe)

    def _collect(self) -> None:
        rest = b""
        with (self._folder / "diary.jsonl").open("wb") as file:
            while True:
                data = os.read(self._pipe, 65536)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if not line:  # from `close`
                        return
                    with contextlib.suppress(OSError):  # a full disk: it is known here all the same
                        file.write(line + b"\n")
                    self._read(json.loads(line))

    def lives(self, name: str) -> bool:
        """Whether the process of this name is alive, stopped or not."""
        lifeline = os.open(self._folder / "lives" / name, os.O_RDONLY)
        try:
            fcntl.flock(lifeline, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lifeline)
        return False
