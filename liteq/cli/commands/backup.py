"""``liteq backup``: a copy of a queue's file, taken while everything runs."""

from __future__ import annotations

import argparse

from liteq import LiteQ
from liteq.cli.commands import Commands
from liteq.cli.commands.info import size_of
from liteq.cli.endings import DONE
from liteq.cli.escaping import escaped
from liteq.cli.output import Output, in_bytes


def declare(commands: Commands) -> None:
    """Declare the command."""
    backup = commands.add("backup", back_up, "copy the queue to a new file, whole and of one instant, while it is used")
    backup.add_argument("file", metavar="FILE", help="the new file")
    backup.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")


def back_up(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Copy it."""
    path = app.backup(arguments.file, overwrite=arguments.overwrite)
    size = size_of(str(path))
    said = f"{escaped(app.storage.location)} is copied to {escaped(str(path))} ({in_bytes(size)})"
    output.record({"location": app.storage.location, "file": str(path), "size": size}, said)
    return DONE
