"""``liteq schedules``: what runs by itself, when next, how it went; and changing it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from liteq import ConfigurationError, LiteQ, TriggerError, UnknownTask
from liteq.cli.arguments import duration, whole_number
from liteq.cli.commands import Commands
from liteq.cli.endings import DONE, MISUSED, Refused
from liteq.cli.escaping import escaped
from liteq.cli.output import Output
from liteq.cli.times import age, iso, local

if TYPE_CHECKING:
    from liteq import Schedule, Trigger  # half of what `liteq --help` would take

COMMAND = "schedules"
ACTIONS = ("list", "add", "update", "pause", "resume", "run", "rm", "reset", "preview")
#: The options that take no value.
FLAGS = ("--json", "--replace", "-v", "--verbose", "-h", "--help")

Act = Callable[[LiteQ, argparse.Namespace, Output], int]


def declare(commands: Commands) -> None:
    """Declare the command with its actions; without one it lists."""
    parser = commands.add(COMMAND, list_schedules, "list the schedules that are stored, and change them")
    parser.set_defaults(names=[])
    actions = parser.add_subparsers(title="actions", metavar="ACTION")

    def action(name: str, run: Act, help: str) -> argparse.ArgumentParser:  # noqa: A002 - argparse's word
        one = actions.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON, one object a line")
        one.set_defaults(run=run)
        return one

    listed = action("list", list_schedules, "list schedules (the same as without an action)")
    listed.add_argument("names", metavar="NAME", nargs="*", help="only these")
    _declare_add(action("add", add_schedule, "store a schedule; takes an app, whose code knows the task"))
    _declare_update(action("update", update_schedule, "change what is given, and leave the rest"))
    several = (
        ("pause", pause_schedules, "fire no more until resumed; survives restarts"),
        ("resume", resume_schedules, "undo pause; slots that have passed are not caught up"),
        ("run", run_schedules, "run once now, beside the slots"),
        ("rm", remove_schedules, "delete; jobs that are there already stay"),
        ("reset", reset_schedules, "undo every update of a schedule that is declared in code; takes an app"),
    )
    for name, run, words in several:
        action(name, run, words).add_argument("names", metavar="NAME", nargs="+", help="the name of a schedule")
    preview = action("preview", preview_schedule, "show when it is due next, in its own time zone and in UTC")
    preview.add_argument("name", metavar="NAME", nargs="?", help="a schedule")
    preview.add_argument("--trigger", metavar="TEXT", help="or a trigger: '*/5 * * * *', 'every 90s'")
    preview.add_argument("-n", "--number", metavar="N", type=whole_number(1), default=10, help="so many (default 10)")


def either_order(argv: Sequence[str]) -> list[str]:
    """``schedules list APP`` as ``schedules APP list``: both are understood."""
    words = list(argv)
    if words[:1] == [COMMAND]:
        action = _plain_word(words, 1)
        app = None if action is None or words[action] not in ACTIONS else _plain_word(words, action + 1)
        if action is not None and app is not None:
            words.insert(action, words.pop(app))
    return words


def _plain_word(words: Sequence[str], start: int) -> int | None:
    """The place of the first word from ``start`` that is no option, nor the value of one."""
    is_value = False
    for place in range(start, len(words)):
        word = words[place]
        if not is_value and not word.startswith("-"):
            return place
        is_value = not is_value and _wants_value(word)
    return None


def _wants_value(option: str) -> bool:
    """Whether the word after an option is its value."""
    if option.startswith("--"):
        return "=" not in option and not any(flag.startswith(option) for flag in FLAGS)  # they may be shortened
    return len(option) == len("-n") and option not in FLAGS


def _declare_add(add: argparse.ArgumentParser) -> None:
    add.add_argument("name", metavar="NAME", help="unique in the file")
    add.add_argument("task", metavar="TASK", help="the stored name of a task")
    add.add_argument("trigger", metavar="TRIGGER", help="'0 3 * * *', '@daily in Europe/Berlin', 'every 90s'")
    add.add_argument("--replace", action="store_true", help="exchange a schedule of this name")
    _declare_options(add)


def _declare_update(update: argparse.ArgumentParser) -> None:
    update.add_argument("name", metavar="NAME", help="the name of a schedule")
    update.add_argument("--trigger", metavar="TRIGGER", help="another trigger")
    update.add_argument("--task", metavar="TASK", help="another task, by its stored name; takes an app")
    _declare_options(update)


def _declare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--args", metavar="JSON", type=_array, help="the task's arguments: '[1, \"two\"]'")
    parser.add_argument("--kwargs", metavar="JSON", type=_object, help="its named arguments: '{\"user\": 7}'")
    parser.add_argument("--catch-up", metavar="HOW", help="slots missed in a stop: latest (default), all or skip")
    parser.add_argument("--overlap", metavar="HOW", help="a slot during the run before: skip (default), queue or allow")
    parser.add_argument("--grace", metavar="TIME", type=duration, help="leave a slot out that is later than this")
    parser.add_argument("--jitter", metavar="TIME", type=duration, help="delay each slot by up to so much")
    parser.add_argument("--start", metavar="WHEN", type=_moment, help="not due before: 2030-01-01T09:00")
    parser.add_argument("--end", metavar="WHEN", type=_moment, help="not due after")
    parser.add_argument("--max-runs", metavar="N", type=whole_number(1), help="no more than so many runs")
    parser.add_argument("--queue", metavar="QUEUE", help="the queue of its jobs")
    parser.add_argument("--priority", metavar="N", type=int, help="their priority, higher first")
    parser.add_argument("--retries", metavar="N", type=whole_number(0), help="their further attempts")
    parser.add_argument("--retry-delay", metavar="TIME", type=duration, help="the wait before those")
    parser.add_argument("--timeout", metavar="TIME", type=duration, help="their run time")
    parser.add_argument(
        "--expires", metavar="TIME", type=duration, help="not started so long after its slot: not at all"
    )


_OPTIONS = (
    *("args", "kwargs", "catch_up", "overlap", "grace", "jitter", "start", "end", "max_runs"),
    *("queue", "priority", "retries", "retry_delay", "timeout", "expires"),
)


def _given(arguments: argparse.Namespace, *more: str) -> dict[str, Any]:
    """The options that were given."""
    named = {name: getattr(arguments, name) for name in (*_OPTIONS, *more)}
    return {name: value for name, value in named.items() if value is not None}


# ── what may be given ────────────────────────────────────────────────────────────────────────────────────


def _array(text: str) -> list[Any]:
    return _json(text, list, 'a JSON array such as [1, "two"]')  # type: ignore[no-any-return]


def _object(text: str) -> dict[str, Any]:
    return _json(text, dict, 'a JSON object such as {"user": 7}')  # type: ignore[no-any-return]


def _json(text: str, kind: type, what: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        raise argparse.ArgumentTypeError(f"takes {what}, not {text!r}")
    return value


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a moment such as 2030-01-01T09:00, not {text!r}") from None


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────────


def list_schedules(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """List all, or those that are named."""
    now = app.engine.clock.now()
    found = [app.schedules.get(name) for name in arguments.names] if arguments.names else app.schedules.list()
    for one in found if output.as_json else ():
        output.record(as_keys(one))
    output.table(_HEADINGS, [_row(one, now) for one in found], right=(6,))
    return DONE


_HEADINGS = ("NAME", "STATE", "FROM", "NEXT", "LAST", "OUTCOME", "RUNS", "TASK", "TRIGGER")


def _row(one: Schedule, now: float) -> tuple[object, ...]:
    source = f"{one.source}, edited" if one.edited else one.source
    coming = _read(lambda: None if one.due is None else age(now - one.due), one.due) or ""
    last = _read(lambda: None if one.last_run is None else age(now - one.last_run), one.last_run) or ""
    return (
        one.name,
        _read(lambda: one.state, "garbage"),
        source,
        coming,
        last,
        one.last_outcome or "",
        one.runs,
        one.task,
        one.trigger,
    )


def as_keys(one: Schedule) -> dict[str, Any]:
    """What ``--json`` says of a schedule."""
    return {
        "name": one.name,
        "state": _read(lambda: one.state, "garbage"),
        "source": one.source,
        "edited": one.edited,
        "task": one.task,
        "trigger": one.trigger,
        "description": _described(one),
        "arguments": _read(lambda: one.arguments, one.payload),
        "queue": one.queue,
        "priority": one.priority,
        "options": _read(lambda: None if one.options is None else json.loads(one.options), one.options),
        "expires": one.expires,
        "catch_up": one.catch_up,
        "overlap": one.overlap,
        "grace": one.grace,
        "jitter": one.jitter,
        "start": _read(lambda: iso(one.start_at), one.start),
        "end": _read(lambda: iso(one.end_at), one.end),
        "max_runs": one.max_runs,
        "runs": one.runs,
        "skipped": one.skipped,
        "created_at": _read(lambda: iso(one.created_at), one.created),
        "next_run": _read(lambda: iso(one.next_run), one.due),
        "last_run": _read(lambda: iso(one.last_run_at), one.last_run),
        "last_slot": _read(lambda: iso(one.last_slot_at), one.last_slot),
        "last_job": one.last_id,
        "last_outcome": one.last_outcome,
    }


def _described(one: Schedule) -> str | None:
    try:
        return one.describe()
    except _NONSENSE:  # garbage in the file is shown as it is
        return None


_NONSENSE = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, OSError)


def _read(read: Callable[[], Any], stored: object) -> Any:
    """What a schedule's row says, or, where it cannot be read, what stands there."""
    try:
        return read()
    except _NONSENSE:
        return str(stored)


def preview_schedule(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Show the next instants of a schedule or of a trigger."""
    if (arguments.name is None) == (arguments.trigger is None):
        raise Refused("preview takes the name of a schedule, or --trigger TEXT", MISUSED)
    if arguments.name is not None:
        found = list(app.schedules.preview(arguments.name, arguments.number))
    else:
        found = _upcoming(app, arguments.trigger, arguments.number)
    rows = [(one.isoformat(sep=" "), one.tzname() or "", _in_utc(one)) for one in found]
    for one in found:
        output.record({"local": one.isoformat(), "utc": _in_utc(one)})
    output.table(("LOCAL", "ZONE", "UTC"), rows)
    return DONE


def _upcoming(app: LiteQ, text: str, number: int) -> list[datetime]:
    from datetime import UTC

    try:
        trigger = _parsed(text).with_timezone(app.engine.timezone)
    except TriggerError as error:
        raise Refused(str(error), MISUSED) from None
    now = datetime.fromtimestamp(app.engine.clock.now(), UTC)
    return list(islice(trigger.anchored(now).upcoming(now), number))


def _in_utc(moment: datetime) -> str:
    from datetime import UTC

    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


# ── changing ─────────────────────────────────────────────────────────────────────────────────────────────


def add_schedule(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Store a schedule."""
    _require_code(app, "add")
    return _changed(
        output,
        "is stored",
        lambda: app.schedules.add(
            arguments.name, arguments.task, arguments.trigger, replace=arguments.replace, **_given(arguments)
        ),
    )


def update_schedule(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Change a schedule."""
    given = _given(arguments, "trigger", "task")
    if not given:
        raise Refused("update takes something to change", MISUSED)
    if {"task", "args", "kwargs"} & set(given):
        _require_code(app, "update --task, --args and --kwargs")
    if not app.tasks and "trigger" in given:
        given["trigger"] = _in_its_zone(app.schedules.get(arguments.name), arguments.trigger)
    return _changed(output, "is changed", lambda: app.schedules.update(arguments.name, **given))


def _in_its_zone(one: Schedule, text: str) -> Trigger | str:
    """Another trigger for a schedule, in the zone that it has: which one the app has is not known from the file."""
    try:
        zone = _parsed(one.trigger).timezone
        return text if zone is None else _parsed(text).with_timezone(zone)
    except TriggerError:  # what is stored is garbage, or what is given: the second is told by whoever takes it
        return text


def reset_schedules(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Let each follow the code again."""
    _require_code(app, "reset")
    for name in arguments.names:
        _changed(output, "is what the code says", lambda name=name: app.schedules.reset(name))  # type: ignore[misc]
    return DONE


def _require_code(app: LiteQ, what: str) -> None:
    if not app.tasks:
        raise Refused(f"{what} takes an app rather than a file: tasks are known to its code alone", MISUSED)


def _changed(output: Output, words: str, change: Callable[[], Schedule]) -> int:
    try:
        one = change()
    except (TriggerError, ConfigurationError, TypeError, UnknownTask) as error:
        raise Refused(str(error), MISUSED) from None
    coming = "not due any more" if one.next_run is None else f"due {local(one.next_run)}"
    output.record(as_keys(one), f"{escaped(one.name)} {words}; {coming}")
    return DONE


def pause_schedules(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Pause each."""
    return _each(arguments, output, app.schedules.pause, "paused", "is paused", "was paused already")


def resume_schedules(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Resume each."""
    for name in arguments.names:
        changed = app.schedules.resume(name)
        words = "was not paused" if not changed else _resumed(app.schedules.get(name))
        output.record({"name": name, "resumed": changed}, f"{escaped(name)} {words}")
    return DONE


def _resumed(one: Schedule) -> str:
    orphaned = "is not paused any more, but fires nothing: it is declared in no code (orphaned)"
    return orphaned if one.state == "orphaned" else "goes on"


def remove_schedules(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Delete each."""
    for name in arguments.names:
        app.schedules.get(name)  # nobody of this name is an error to somebody who types
    return _each(arguments, output, app.schedules.remove, "removed", "is deleted", "was gone already")


def _each(
    arguments: argparse.Namespace, output: Output, do: Callable[[str], bool], key: str, done: str, not_done: str
) -> int:
    for name in arguments.names:
        changed = do(name)
        output.record({"name": name, key: changed}, f"{escaped(name)} {done if changed else not_done}")
    return DONE


def run_schedules(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Run each once."""
    for name in arguments.names:
        result = app.schedules.run_now(name)
        output.record({"name": name, "job": result.id}, f"{escaped(name)} runs as job {escaped(result.id)}")
    return DONE


def _parsed(text: str) -> Trigger:
    from liteq import parse_trigger

    return parse_trigger(text)
