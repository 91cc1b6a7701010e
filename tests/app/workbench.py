"""Being a consumer by hand, and programs of their own."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Self

import pytest

import liteq
from liteq import Job, LiteQ
from liteq.engine import Ended
from liteq.execution import NoDeadline, execute
from liteq.storage.base import ClaimRequest

ROOT = Path(liteq.__file__).parents[1]

PATIENCE = 60.0


class Silent:
    """The way from a job to a consumer who does not listen."""

    def progress(self, job: Job, progress: object) -> None:
        return None

    def is_cancelled(self, job: Job) -> bool:
        return False


def claim(app: LiteQ, wanted: int = 100, **options: Any) -> list[Job]:
    """Take jobs as a consumer does, and do not run them yet."""
    owner = app.storage.register({})
    taken = app.engine.round([], ClaimRequest(owner, wanted, **options))
    if taken.refused:
        app.engine.round([], None, refused=taken.refused)
    return taken.jobs


def run(app: LiteQ, job: Job) -> None:
    """Run a claimed job and settle it."""
    outcome = execute(job, app.engine.runtime, Silent(), NoDeadline())
    app.engine.round([Ended(job, outcome)], None)


def work(app: LiteQ) -> int:
    """Run everything that is ready, and what becomes ready by it; return how many attempts that were."""
    attempts = 0
    while jobs := claim(app):
        for job in jobs:
            run(app, job)
        attempts += len(jobs)
    return attempts


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


def run_python(source: str, *arguments: object, cwd: Path | None = None, **variables: str) -> str:
    """What a program prints; it must end well."""
    return run_command([sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)], cwd, **variables)


def run_command(command: list[str], cwd: Path | None = None, **variables: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Program:
    """A Python process that runs ``source`` and talks in lines (``say``, ``hear``), killed at the end of the block."""

    def __init__(self, source: str, *arguments: object) -> None:
        prelude = (
            "import sys\ndef say(*words): print(*words, flush=True)\ndef hear(): return sys.stdin.readline().strip()\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", prelude + textwrap.dedent(source), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment(),
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

    def finish(self) -> int:
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
