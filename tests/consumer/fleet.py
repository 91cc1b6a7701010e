"""Consumers in processes of their own, as a user starts them, for the tests that kill, stop or starve them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import workshop

PATIENCE = 50.0
HERE = Path(__file__).resolve().parent

#: The environment variable with which consumers `make_no_rounds`.
NO_ROUNDS = "FLEET_NO_ROUNDS"


def make_no_rounds(set_attribute: Callable[[str, float], None]) -> None:
    """Let consumers that are made from here on look for the dead, and for who may go on, only when they are told."""
    for duty in ("RECOVER_EVERY", "UNPARK_EVERY", "LET_IN_EVERY"):
        set_attribute(f"liteq.consumer.scheduler.{duty}", 600.0)


class Fleet:
    """Consumers of one file; the test ends them all.

    Args:
        path: of the SQLite file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path.with_suffix(".log")
        self.members: list[Member] = []

    def launch(self, **options: Any) -> Member:
        """Start a consumer with these ConsumerOptions; returns at once."""
        member = Member(self.path, self.log, options)
        self.members.append(member)
        return member

    def logged(self, words: str) -> list[str]:
        """The log lines of all consumers that contain these words."""
        return [line for line in workshop.lines(self.log) if words in line]

    def end(self) -> None:
        for member in self.members:
            member.end()


class Member:
    """One consumer process."""

    def __init__(self, path: Path, log: Path, options: dict[str, Any]) -> None:
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "import fleet; fleet.main()", str(path), str(log), json.dumps(options)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])},
                stdin=subprocess.DEVNULL,
                stderr=stderr,
            )
        self.pid = self.process.pid

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def stop(self, timeout: float = PATIENCE) -> int:
        """TERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit code of one that ends by itself."""
        return self.process.wait(timeout)

    def family(self) -> list[psutil.Process]:
        """Every process below it: its workers, and what helps to start them."""
        return psutil.Process(self.pid).children(recursive=True)

    def end(self) -> None:
        """Kill it with everything below it."""
        if self.process.poll() is not None:
            return  # its pid may be somebody else's by now
        family = self.family()
        self.kill()
        _, left = psutil.wait_procs(family, timeout=1.0)  # the fork server tidies up
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


@contextmanager
def fleet_of(path: Path) -> Iterator[Fleet]:
    fleet = Fleet(path)
    try:
        yield fleet
    finally:
        fleet.end()


def main() -> None:
    """Run a consumer until TERM, INT, or the end of its burst."""
    import logging

    from liteq.consumer import LogSetup, scheduler

    if NO_ROUNDS in os.environ:
        make_no_rounds(lambda path, value: setattr(scheduler, path.rpartition(".")[2], value))
    path, log, text = sys.argv[1:]
    setup = LogSetup(level=logging.INFO, file=log)
    setup.apply()
    options = {"app_path": "workshop:app"} | json.loads(text)
    consumer = workshop.build(path).create_consumer(log=setup, **options)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, consumer.on_signal)
    consumer.run()
