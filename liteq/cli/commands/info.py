"""``liteq info``: what there is in a queue, who works on it, and where it is."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from liteq import JobState, LiteQ, __version__
from liteq.cli.commands import Commands
from liteq.cli.endings import DONE
from liteq.cli.escaping import escaped
from liteq.cli.output import Output, in_bytes
from liteq.cli.times import age, iso, local


def declare(commands: Commands) -> None:
    """Declare the command."""
    commands.add("info", info, "show how many jobs stand in each state, the queues, the consumers and the file")


def info(app: LiteQ, _arguments: argparse.Namespace, output: Output) -> int:
    """Show the whole queue."""
    now = app.engine.clock.now()
    seen = look(app)
    output.record(seen)
    _show_file(seen, output)
    output.line()
    output.table(("STATE", "JOBS"), list(seen["jobs"].items()), right=(1,))
    if seen["queues"]:
        output.line()
        rows = [(name, one["ready"], "paused" if one["paused"] else "") for name, one in seen["queues"].items()]
        output.table(("QUEUE", "READY", ""), rows, right=(1,))
    output.line()
    _show_consumers(seen["consumers"], now, output)
    return DONE


def look(app: LiteQ) -> dict[str, Any]:
    """Everything that ``info --json`` says."""
    counts, ready, paused = app.counts(), app.queues(), app.paused()
    due = app.storage.next_due()
    return {
        "location": app.storage.location,
        "size": size_of(app.storage.location),
        "wal_size": size_of(f"{app.storage.location}-wal"),
        "version": __version__,
        "schema": app.storage.schema_version(),
        "jobs": {str(state): counts[state] for state in JobState},
        "next_due_at": None if due is None else iso(datetime.fromtimestamp(due, UTC)),
        "queues": {name: {"ready": ready.get(name, 0), "paused": name in paused} for name in sorted({*ready, *paused})},
        "consumers": [consumer_keys(one.number, one.alive, one.info) for one in app.consumers()],
    }


def consumer_keys(number: int, alive: bool, said: Mapping[str, object]) -> dict[str, Any]:
    """What is known of a consumer: whether it lives, and what it said of itself when it started."""
    started = said.get("started")
    return {
        "number": number,
        "alive": alive,
        "host": said.get("host"),
        "pid": said.get("pid"),
        "app": said.get("app"),
        "name": said.get("name"),
        "workers": said.get("workers"),
        "worker_type": said.get("worker_type"),
        "queues": said.get("queues"),
        "started_at": iso(datetime.fromtimestamp(started, UTC)) if isinstance(started, int | float) else None,
    }


def size_of(path: str) -> int:
    """The size of a file in bytes, or of the files in a directory; 0 where there is none."""
    if Path(path).is_dir():
        return sum(entry.stat().st_size for entry in Path(path).iterdir() if entry.is_file())
    try:
        return Path(path).stat().st_size
    except FileNotFoundError:
        return 0


def _show_file(seen: Mapping[str, Any], output: Output) -> None:
    output.line(f"file      {escaped(seen['location'])}")
    wal = "" if Path(seen["location"]).is_dir() else f", and {in_bytes(seen['wal_size'])} in its WAL"
    output.line(f"size      {in_bytes(seen['size'])}{wal}")
    if seen["schema"] is not None:
        output.line(f"schema    {seen['schema']}")
    if seen["next_due_at"] is not None:
        output.line(f"next due  {local(datetime.fromisoformat(seen['next_due_at']))}")


def _show_consumers(consumers: list[dict[str, Any]], now: float, output: Output) -> None:
    if not consumers:
        output.line("no consumer: nothing runs these jobs (liteq_consumer starts one)")
        return
    rows = [
        (
            "alive" if one["alive"] else "dead",
            one["pid"],
            one["host"],
            f"{one['workers']} {one['worker_type']}",
            "all" if one["queues"] is None else ",".join(map(str, one["queues"])),
            "" if one["started_at"] is None else age(now - datetime.fromisoformat(one["started_at"]).timestamp()),
            one["app"] or "",
        )
        for one in consumers
    ]
    output.table(("CONSUMER", "PID", "HOST", "WORKERS", "QUEUES", "STARTED", "APP"), rows, right=(1,))
