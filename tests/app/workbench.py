"""Being a consumer by hand, and programs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from conversation import PATIENCE as PATIENCE
from conversation import ROOT
from conversation import Program as Program

from liteq import Job, LiteQ
from liteq.engine import Ended
from liteq.execution import NoDeadline, execute
from liteq.storage.base import ClaimRequest


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
        command, cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
