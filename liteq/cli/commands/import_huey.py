"""``liteq import-huey``: takes over what waits in a SQLite file of huey's."""

from __future__ import annotations

import argparse
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liteq import JobNotFound, LiteQ, LiteQError, Task
from liteq.cli.arguments import renaming
from liteq.cli.commands import Commands
from liteq.cli.endings import DONE, FAILED, MISUSED, Refused
from liteq.cli.output import Output

if TYPE_CHECKING:
    from liteq.cli.huey_file import Call, Entry

TAKEN, KNOWN, LEFT = "taken over", "known already", "left"


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one entry: ``TAKEN``, ``KNOWN`` or ``LEFT``, and why it is left."""

    entry: Entry
    what: str
    reason: str = ""


def declare(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add(
        "import-huey",
        import_huey,
        "take over what waits in a SQLite file of huey's, once however often it is run; huey's file is only read",
    )
    command.add_argument("file", metavar="FILE", help="the file of a SqliteHuey whose consumer is stopped")
    command.add_argument("--queue", metavar="NAME", help="only what was enqueued under this name of a Huey object")
    command.add_argument(
        "--rename",
        metavar="OLD=NEW",
        type=renaming,
        action="append",
        default=[],
        help="the task that huey knows as OLD is NEW here (both as they are stored: module.function)",
    )
    command.add_argument(
        "--local-time", action="store_true", help="huey was made with utc=False: its times are local ones"
    )
    command.add_argument("--dry-run", action="store_true", help="only say what would be taken over")


def import_huey(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Take over what can be, all in one transaction, and say what is left."""
    from liteq.cli.huey_file import NotHuey, entries  # with what pickle and the zones bring along

    if not app.tasks:
        raise Refused("import-huey takes an app rather than a file: its code knows how arguments are stored", MISUSED)
    try:
        found = entries(Path(arguments.file), local=arguments.local_time)
    except NotHuey as error:
        raise Refused(str(error)) from None
    wanted = [one for one in found if arguments.queue is None or one.call is None or one.call.queue == arguments.queue]
    fates = _take_over(app, wanted, dict(arguments.rename), dry=arguments.dry_run)
    _show(fates, output, dry=arguments.dry_run)
    return FAILED if any(fate.what == LEFT for fate in fates) else DONE


class _Enough(Exception):
    """It was tried, and nothing is to be stored."""


def _take_over(app: LiteQ, found: list[Entry], names: dict[str, str], *, dry: bool) -> list[Fate]:
    """Store in one transaction what can be; a dry run is the same, given up before its end."""
    fates: list[Fate] = []
    with suppress(_Enough), app.batch():
        fates += [_fate(app, entry, names) for entry in found]
        if dry:
            raise _Enough
    return fates


def _fate(app: LiteQ, entry: Entry, names: dict[str, str]) -> Fate:
    call = entry.call
    if call is None:
        return Fate(entry, LEFT, entry.problem)
    task = app.tasks.get(names.get(call.task, call.task))
    reason = _why_not(call, task)
    if reason or task is None:
        return Fate(entry, LEFT, reason)
    own = f"huey-{call.id}"
    if _exists(app, own):
        return Fate(entry, KNOWN)
    try:
        task.using(id=own, **_options(call))(*call.args, **call.kwargs)
    except (TypeError, LiteQError) as error:
        return Fate(entry, LEFT, str(error))
    return Fate(entry, TAKEN)


def _why_not(call: Call, task: Task[Any, Any] | None) -> str:
    if call.is_revoked:
        return "it was revoked"
    if call.more:
        return f"it goes on afterwards ({', '.join(call.more)}): let huey finish its pipelines first"
    return f"the app has no task {call.task}; --rename {call.task}=NEW says what it is called here" if not task else ""


def _exists(app: LiteQ, job_id: str) -> bool:
    try:
        app.job(job_id)
    except JobNotFound:
        return False
    return True


def _options(call: Call) -> dict[str, Any]:
    """What the call says itself; huey's defaults say nothing."""
    said = {
        "eta": call.eta,
        "priority": call.priority,
        "retries": call.retries or None,
        "retry_delay": call.retry_delay or None,
        "retry_backoff": call.retry_backoff or None,
        "timeout": call.timeout,
        "expires": call.expires,
    }
    return {name: value for name, value in said.items() if value is not None}


def _show(fates: list[Fate], output: Output, *, dry: bool) -> None:
    numbers = {what: sum(fate.what == what for fate in fates) for what in (TAKEN, KNOWN, LEFT)}
    left = [fate for fate in fates if fate.what == LEFT]
    output.record(
        {
            "taken": numbers[TAKEN],
            "known": numbers[KNOWN],
            "left": [{"row": one.entry.row, "task": _task(one), "reason": one.reason} for one in left],
            "dry_run": dry,
        }
    )
    if left:
        rows = [(one.entry.row, _task(one) or "?", one.reason) for one in left]
        output.table(("ROW", "TASK", "LEFT, BECAUSE"), rows)
    would = "would be taken over" if dry else "taken over"
    output.line(f"{numbers[TAKEN]} {would}, {numbers[KNOWN]} known already, {numbers[LEFT]} left in huey's file")


def _task(fate: Fate) -> str | None:
    return None if fate.entry.call is None else fate.entry.call.task
