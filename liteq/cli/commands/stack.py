"""``liteq stack``: what running jobs are doing right now."""

from __future__ import annotations

import argparse

from liteq import LiteQ
from liteq.cli.arguments import duration
from liteq.cli.commands import Commands
from liteq.cli.endings import DONE
from liteq.cli.escaping import escaped_lines
from liteq.cli.jobs import find
from liteq.cli.output import Output
from liteq.cli.times import iso


def declare(commands: Commands) -> None:
    """Declare the command."""
    stack = commands.add("stack", show_stacks, "show the Python stack of a running job")
    stack.add_argument("ids", metavar="ID", nargs="+", help="a job's id, or the number before its '-'")
    stack.add_argument(
        "--timeout",
        metavar="TIME",
        type=duration,
        default=5.0,
        help="how long to wait for the consumer's answer: seconds, or 1m (default 5)",
    )


def show_stacks(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Ask for each of the jobs, and show the answer."""
    for number, name in enumerate(arguments.ids):
        job = find(app, name)
        text = app.stack(job.id, arguments.timeout)
        if number:
            output.line()
        keys = {
            "id": job.id,
            "task": job.task,
            "attempt": job.attempt,
            "consumer": job.owner,
            "started_at": iso(job.started_at),
            "stack": text,
        }
        output.record(keys, *escaped_lines(text))
    return DONE
