"""What the tests of the commands share: a shop with tasks, its consumer as a real process, and commands that are run to
their end.

Tasks that wait do so at a named pipe: opening it for reading blocks until the test opens it for writing, and the file
beside it (``….entered``) shows that the task has come so far.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import liteq
from liteq import LiteQ, Task

#: Seconds after which a program that should have ended is killed, and its test fails.
PATIENCE = 60.0
ROOT = Path(liteq.__file__).parents[1]

#: The type of the fixture of this name.
Eventually = Callable[..., Any]

SHOP = """
import atexit, logging, os, pathlib, threading
from liteq import LiteQ

app = LiteQ("shop.db")

@app.task
def add(a, b):
    return a + b

@app.task
def pid():
    return os.getpid()

@app.task(max_crashes=2)
def die():
    logging.getLogger("shop").warning("now\\x1b it ends")
    os.kill(os.getpid(), 9)

@app.task
def hold(gate):
    pathlib.Path(f"{gate}.entered").touch()
    with open(gate):
        return "released"

@app.task
def note(path, text):
    with open(path, "a") as file:
        file.write(text)

@app.task
def talk():
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logging.getLogger("shop").log(level, "said at %s", logging.getLevelName(level))

@app.task
def fail(text):
    raise ValueError(text)

@app.task
def hang(entered):
    pathlib.Path(entered).touch()
    threading.Event().wait()

if "SHOP_ATEXIT" in os.environ:
    atexit.register(pathlib.Path(os.environ["SHOP_ATEXIT"]).touch)
"""


class Shop:
    """A directory with ``shop.py`` and its queue.

    Args:
        directory: empty.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.module("shop", SHOP)
        self.file = directory / "shop.db"
        self.app = LiteQ(self.file)
        self._processes: list[subprocess.Popen[Any]] = []

    def module(self, name: str, source: str) -> None:
        (self.directory / f"{name}.py").write_text(source, encoding="utf-8")

    def task(self, name: str) -> Task[..., Any]:
        """A task of the shop, to enqueue from here, where its module is not imported."""
        known = self.app.tasks.get(f"shop.{name}")
        return known or self.app.task(name=f"shop.{name}")(lambda *args: None)

    def gate(self, name: str = "gate") -> Path:
        """A pipe at which `hold` waits."""
        path = self.directory / name
        os.mkfifo(path)
        return path

    def environment(self, **variables: str) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(ROOT), "TZ": "UTC"} | variables

    # ── programs ─────────────────────────────────────────────────────────────────────────────────────

    def start(self, *command: str, cwd: Path | None = None, **variables: str) -> Program:
        """Start a program in the background; it is killed at the end of the test at the latest."""
        log = self.directory / f"log-{len(self._processes)}"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=cwd or self.directory,
                env=self.environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self._processes.append(process)
        return Program(process, log)

    def consumer(self, *options: str, **variables: str) -> Program:
        """Start a consumer of the shop."""
        return self.start("-m", "liteq.cli.consumer", "shop.app", *options, **variables)

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return subprocess.run(
            [sys.executable, *command],
            cwd=cwd or self.directory,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE,
            check=False,
        )

    def consume(self, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run what is due, with ``--burst``."""
        return self.run("-m", "liteq.cli.consumer", "shop.app", "--burst", *options, **variables)

    def liteq(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a command of `liteq`."""
        return self.run("-m", "liteq", *arguments, **more)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self.app.close()


class Program:
    """A program that runs, and what it has written to standard output and error."""

    def __init__(self, process: subprocess.Popen[Any], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8")

    def says(self, text: str) -> Callable[[], bool]:
        """A condition: it has written this, or has ended, in which case it never will."""

        def said() -> bool:
            assert text in self.log or self.process.poll() is None, self.log
            return text in self.log

        return said

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ends(self) -> int:
        """Wait for its end; its exit code."""
        return self.process.wait(PATIENCE)


@contextmanager
def shop_in(directory: Path) -> Iterator[Shop]:
    """A shop for the length of the block."""
    shop = Shop(directory)
    try:
        yield shop
    finally:
        shop.close()


def release(gate: Path) -> None:
    """Let the one that waits at a gate go on."""
    gate.write_text("")


def has_entered(gate: Path) -> Callable[[], bool]:
    """A condition: a task waits at the gate, or is about to."""
    return Path(f"{gate}.entered").exists
