"""``liteq health``: is this queue being worked on as it should be? For probes and cron jobs: exit code 0 or 1."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from liteq import JobState, LiteQ, StorageError
from liteq.cli.arguments import duration, whole_number
from liteq.cli.commands import Commands
from liteq.cli.endings import DONE, FAILED
from liteq.cli.output import Output
from liteq.cli.times import span


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer.

    Args:
        name: stable, for programs.
        ok: whether all is well.
        detail: for people.
        value: what was measured.
        limit: what it may be at most; ``None``: it is shown and fails nothing.
    """

    name: str
    ok: bool
    detail: str
    value: float | None = None
    limit: float | None = None


def declare(commands: Commands) -> None:
    """Declare the command."""
    health = commands.add(
        "health", check_health, "check that the queue is being worked on: exit code 0, or 1 and what is wrong"
    )
    health.add_argument(
        "--max-age", metavar="TIME", type=duration, help="a job may be ready for so long at most: 30 (seconds), 5m, 1h"
    )
    health.add_argument(
        "--max-failed", metavar="N", type=whole_number(0), help="at most so many failed jobs (default: any number)"
    )


def check_health(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Ask everything and show the answers."""
    checks = list(_checks(app, arguments))
    healthy = all(one.ok for one in checks)
    output.record({"ok": healthy, "location": app.storage.location, "checks": [asdict(one) for one in checks]})
    rows = [("ok" if one.ok else "FAIL", one.name, one.detail) for one in checks]
    output.table(("", "CHECK", "FOUND"), rows)
    return DONE if healthy else FAILED


def _checks(app: LiteQ, arguments: argparse.Namespace) -> Iterator[Check]:
    try:
        counts = app.counts()
        yield Check("storage", True, "can be read")
        yield _consumers(app)
        yield _dead_consumers(app)
        yield _oldest_ready(app, arguments.max_age)
        yield _failed(counts[JobState.FAILED], arguments.max_failed)
    except StorageError as error:
        yield Check("storage", False, str(error))


def _consumers(app: LiteQ) -> Check:
    alive = sum(one.alive for one in app.consumers())
    return Check("consumers", alive > 0, f"{alive} alive" if alive else "none is alive: nothing runs", alive)


def _dead_consumers(app: LiteQ) -> Check:
    dead = sum(not one.alive for one in app.consumers())
    detail = f"{dead} died; the next consumer puts back what they ran" if dead else "none"
    return Check("dead_consumers", dead == 0, detail, dead)


def _oldest_ready(app: LiteQ, limit: float | None) -> Check:
    """Jobs of paused queues wait on purpose."""
    age = app.oldest_ready()
    ok = age is None or limit is None or age <= limit
    detail = "no job is waiting" if age is None else f"the oldest ready job has waited for {span(age)}"
    return Check(
        "oldest_ready", ok, detail if ok or limit is None else f"{detail}, more than {span(limit)}", age, limit
    )


def _failed(number: int, limit: int | None) -> Check:
    ok = limit is None or number <= limit
    detail = f"{number} failed" + ("" if ok else f", more than {limit}")
    return Check("failed", ok, f"{detail} (liteq ls --state failed shows them)" if number else "none", number, limit)
