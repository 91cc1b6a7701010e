"""``liteq export`` and ``liteq import``: a queue as lines of JSON, to move it from any storage to any other."""

from __future__ import annotations

import argparse
import sys

from liteq import LiteQ
from liteq.cli.commands import Commands
from liteq.cli.endings import DONE
from liteq.cli.escaping import escaped
from liteq.cli.output import Output


def declare(commands: Commands) -> None:
    """Declare the commands."""
    out = commands.add("export", export, "write everything in the queue as lines of JSON, for `liteq import`")
    out.add_argument("file", metavar="FILE", nargs="?", help="the new file; without it: standard output")
    out.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    into = commands.add("import", import_, "take in what `liteq export` has written; a queue that is not there is made")
    into.add_argument("file", metavar="FILE", nargs="?", help="the export; without it: standard input")
    into.set_defaults(create=True)


def export(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Write it; what is said goes to standard error where the data goes to standard output."""
    exported = app.export(sys.stdout if arguments.file is None else arguments.file, overwrite=arguments.overwrite)
    said = f"{_counted(exported.jobs, exported.schedules, exported.marks)} written"
    if arguments.file is None:
        print(said, file=sys.stderr)
    else:
        values = {"location": app.storage.location, "file": arguments.file, **exported._asdict()}
        output.record(values, f"{said} to {escaped(arguments.file)}")
    return DONE


def import_(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Take it in."""
    taken = app.import_(sys.stdin.buffer if arguments.file is None else arguments.file)
    said = f"{_counted(taken.jobs, taken.schedules, taken.marks)} imported into {escaped(app.storage.location)}"
    known = f"{taken.known} left out: there is a job with the id, or with the unique key, already"
    lines = [said, known] if taken.known else [said]
    output.record({"location": app.storage.location, **taken._asdict()}, *lines)
    return DONE


def _counted(jobs: int, schedules: int, marks: int) -> str:
    numbers = ((jobs, "job"), (schedules, "schedule"), (marks, "mark"))
    return ", ".join(f"{number} {word}{'' if number == 1 else 's'}" for number, word in numbers)
