"""``liteq locks``: who holds a lock or a slot of a limit, what may start at a rate, and how many wait."""

from __future__ import annotations

import argparse
from typing import Any

from liteq import LiteQ
from liteq.cli.commands import Commands
from liteq.cli.endings import DONE, FAILED
from liteq.cli.escaping import escaped
from liteq.cli.output import Output
from liteq.cli.times import iso


def declare(commands: Commands) -> None:
    """Declare the command."""
    locks = commands.add("locks", show, "show who holds locks and limits (max_running, rate_limit), and how many wait")
    locks.add_argument(
        "--flush",
        metavar="NAME",
        action="append",
        help="take this lock from whoever holds it, who goes on regardless (may be given several times)",
    )


def show(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Show every lock and limit at which somebody is; or flush."""
    if arguments.flush:
        return _flush(app, arguments.flush, output)
    found = [_lock(one) for one in app.locks()] + [_limit(one) for one in app.limits.list()]
    for one in found:
        output.record(one)
    rows = [(one["kind"], one["name"], _held(one), one["waiting"], _who(one)) for one in found]
    output.table(("KIND", "NAME", "HELD", "WAITING", "HOLDERS"), rows, right=(2, 3))
    return DONE


def _flush(app: LiteQ, names: list[str], output: Output) -> int:
    flushed = app.flush_locks(*names)
    for name in names:
        words = f"{escaped(name)} is free" if name in flushed else f"nobody held {escaped(name)}"
        output.record({"name": name, "flushed": name in flushed}, words)
    return DONE if flushed else FAILED


def _lock(state: Any) -> dict[str, Any]:
    return _keys("lock", state.name, state.slots, state)


def _limit(state: Any) -> dict[str, Any]:
    name = state.task or state.name
    name = name if state.key is None else f"{name}[{state.key}]"
    if state.rate_limit is None:
        return _keys("limit", name, state.max_running, state)
    return {
        "kind": "rate",
        "name": name,
        "rate": state.rate_limit,
        "tokens": state.tokens,
        "waiting": state.waiting,
        "next_at": None if state.next_at is None else iso(state.next_at),
    }


def _keys(kind: str, name: str, slots: int, state: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": name,
        "slots": slots,
        "held": len(state.holders),
        "waiting": state.waiting,
        "holders": [
            {
                "since": iso(holder.since),
                "job": holder.job_id,
                "task": holder.task,
                "process": None if holder.process is None else dict(holder.process),
            }
            for holder in state.holders
        ],
    }


def _held(record: dict[str, Any]) -> str:
    return record["rate"] if record["kind"] == "rate" else f"{record['held']}/{record['slots']}"


def _who(record: dict[str, Any]) -> str:
    if record["kind"] == "rate":
        return f"{record['tokens']} may start" if record["next_at"] is None else f"next at {record['next_at']}"
    return ", ".join(_holder(holder) for holder in record["holders"]) or "-"


def _holder(holder: dict[str, Any]) -> str:
    process = holder["process"] or {}
    return f"job {holder['job']}" if holder["job"] else f"process {process.get('pid')} on {process.get('host')}"
