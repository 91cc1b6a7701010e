"""Programs that a test talks with, in lines: what happens between processes is told by them as it happens."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Self

import psutil
import pytest

import liteq

ROOT = Path(liteq.__file__).parents[1]

#: Seconds within which a program says something, or has ended.
PATIENCE = 60.0

PRELUDE = """
import sys

def say(*words):
    print(*words, flush=True)

def hear():
    return sys.stdin.readline().strip()

"""


def is_gone(process: psutil.Process) -> bool:
    """Whether it has ended; its parent may not have asked for its exit code yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Program:
    """A Python process that runs ``source`` and talks in lines (``say``, ``hear``), killed at the end of the block.

    Args:
        source: after `prelude`; ``arguments`` are its ``sys.argv[1:]``.
        pass_fds: descriptors that it inherits.
    """

    prelude = PRELUDE

    def __init__(self, source: str, *arguments: object, pass_fds: tuple[int, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.prelude + textwrap.dedent(source), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            pass_fds=pass_fds,
        )

    def hear(self) -> str:
        """The next line it says; ``""`` when it has said its last."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            pytest.fail(f"nothing heard within {PATIENCE:g} s")
        return self.process.stdout.readline().decode().strip()

    def tell(self, line: str = "go") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def finish(self) -> int:
        """Wait until it ends by itself; its exit code."""
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
