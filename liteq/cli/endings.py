"""How a program ends: its exit codes, and the one line on standard error that says why it could not do what it was
told.
"""

from __future__ import annotations

import sys

from liteq.cli.escaping import one_line
from liteq.errors import ConfigurationError, LiteQError

#: What was asked for is done.
DONE = 0
#: It could not be done: no such job, a file that cannot be used, an unhealthy queue.
FAILED = 1
#: It makes no sense: a wrong option, a path at which there is no app.
MISUSED = 2
#: Ctrl-C. 128 and the number of the signal is what shells report, and what scripts compare with.
INTERRUPTED = 130
#: Whoever read our output has gone (``| head``).
PIPE_CLOSED = 141


class Refused(Exception):
    """What was asked for cannot be done; the message is for the user, and the program ends with ``code``."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def refusal(error: LiteQError) -> Refused:
    """What an error of liteq is to somebody at a terminal."""
    return Refused(str(error), MISUSED if isinstance(error, ConfigurationError) else FAILED)


def complain(program: str, message: str) -> None:
    """Say one line on standard error."""
    print(f"{program}: {one_line(message)}", file=sys.stderr)
