"""``liteq demo``: declared here; what it does is in `liteq.cli.demo`, which only this command needs."""

from __future__ import annotations

import argparse

from liteq.cli.arguments import whole_number
from liteq.cli.commands import Commands
from liteq.cli.output import Output


def declare(commands: Commands) -> None:
    """Declare the command."""
    demo = commands.add_bare("demo", "watch it work: a queue in a temporary folder, a consumer, a few hundred jobs")
    demo.add_argument(
        "-w", "--workers", metavar="N", type=whole_number(1), default=2, help="how many worker processes (default 2)"
    )
    demo.add_argument(
        "--keep", action="store_true", help="keep the folder with the queue's file and the consumer's log"
    )
    demo.add_argument("-v", "--verbose", action="store_true", help="show the consumer's log")
    demo.set_defaults(run=show)


def show(arguments: argparse.Namespace, output: Output) -> int:
    """Run the demo."""
    from liteq.cli.demo import run

    return run(arguments.workers, output, keep=arguments.keep, verbose=arguments.verbose)
