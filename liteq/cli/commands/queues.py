"""``liteq pause`` and ``liteq resume``: hold a queue back, in every consumer and over restarts."""

from __future__ import annotations

import argparse

from liteq import LiteQ
from liteq.cli.commands import Commands
from liteq.cli.endings import DONE
from liteq.cli.escaping import escaped
from liteq.cli.output import Output


def declare(commands: Commands) -> None:
    """Declare both commands."""
    pause = commands.add(
        "pause", pause_queues, "start no more jobs of a queue until it is resumed; running ones finish"
    )
    pause.add_argument("queues", metavar="QUEUE", nargs="+", help="the name of a queue")
    resume = commands.add("resume", resume_queues, "undo pause")
    resume.add_argument("queues", metavar="QUEUE", nargs="+", help="the name of a queue")


def pause_queues(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Pause each of the queues."""
    for name in arguments.queues:
        changed = name not in app.paused()
        app.pause(name)
        _say(output, name, True, changed)
    return DONE


def resume_queues(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Resume each of the queues."""
    for name in arguments.queues:
        _say(output, name, False, app.resume(name))
    return DONE


def _say(output: Output, name: str, paused: bool, changed: bool) -> None:
    already = "" if changed else ", as it was before"
    words = f"{escaped(name)} is {'paused' if paused else 'not paused'}{already}"
    output.record({"queue": name, "paused": paused, "changed": changed}, words)
