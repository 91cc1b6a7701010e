"""``liteq torture``: declared here; what it does is in `liteq.cli.torture`, which only this command needs."""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

from liteq.cli.arguments import duration, names, whole_number
from liteq.cli.commands import Commands
from liteq.cli.endings import Refused
from liteq.cli.output import Output


def declare(commands: Commands) -> None:
    """Declare the command."""
    torture = commands.add_bare(
        "torture", "kill, stop and starve real consumers on this disk, and check that no job is lost or run twice"
    )
    torture.add_argument(
        "path",
        metavar="PATH",
        nargs="?",
        type=Path,
        default=Path(),
        help="the disk: a directory, in which a new one is made, or a queue's file to be (default: here)",
    )
    torture.add_argument(
        "--seconds", metavar="TIME", type=duration, default=60.0, help="how long to torment: 60 (the default), 5m"
    )
    torture.add_argument(
        "-w", "--workers", metavar="N", type=whole_number(1), default=2, help="workers of each consumer (default 2)"
    )
    torture.add_argument(
        "--consumers", metavar="N", type=whole_number(1), default=3, help="how many consumers (default 3)"
    )
    torture.add_argument(
        "-k",
        "--worker-type",
        metavar="KINDS",
        type=names,
        default=("process", "thread"),
        help="their kinds of workers, in turn (default process,thread)",
    )
    torture.add_argument("--seed", metavar="N", type=whole_number(0), help="torment in the order of an earlier run")
    torture.add_argument("--keep", action="store_true", help="keep the queue's file, the diary and the logs")
    torture.set_defaults(run=run)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Torture."""
    if sys.platform == "win32":
        raise Refused("liteq torture stops and kills processes by POSIX signals, which Windows has not")
    from liteq.cli.torture.run import Settings, torture
    from liteq.consumer import ConsumerOptions

    for kind in arguments.worker_type:
        ConsumerOptions(worker_type=kind)
    settings = Settings(
        arguments.seconds,
        arguments.path,
        arguments.workers,
        arguments.consumers,
        arguments.worker_type,
        secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed,
        arguments.keep,
    )
    return torture(settings, output)
