"""``liteq demo``: the main job, end to end, with nothing that a user could not do: an app, a consumer in another
process, a few hundred jobs, their results, and a check that all of it is true."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from liteq.cli.commands import Commands
from liteq.cli.endings import DONE, Refused
from liteq.cli.output import Output

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from liteq import Job, Result

#: Seconds for all of it.
PATIENCE = 30.0
#: Seconds between two looks whether the consumer is still there.
LOOK_EVERY = 0.25
#: How many jobs there are of each kind, where it is not one for each text.
UNRELIABLE, IMPOSSIBLE = 20, 4
DELAY = 1.0


def declare(commands: Commands) -> None:
    """Declare the command."""
    demo = commands.add_bare("demo", "watch it work: a queue in a temporary folder, a consumer, a few hundred jobs")
    demo.add_argument("-w", "--workers", metavar="N", type=int, default=2, help="how many worker processes (default 2)")
    demo.add_argument("--keep", action="store_true", help="keep the folder with the queue and the consumer's log")
    demo.add_argument("-v", "--verbose", action="store_true", help="show the consumer's log")
    demo.set_defaults(run=run)
