"""The program `liteq`: looks at a queue and puts it right. Also ``python -m liteq``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from liteq import LiteQError, __version__
from liteq.cli.commands import (
    Commands,
    backup,
    change,
    demo,
    doctor,
    health,
    import_huey,
    info,
    install,
    locks,
    look,
    queues,
    schedules,
    stack,
    torture,
    transfer,
    why,
)
from liteq.cli.endings import FAILED, INTERRUPTED, PIPE_CLOSED, Refused, complain, refusal
from liteq.cli.output import Output, prepare_streams
from liteq.cli.target import opened

_PROGRAM = "liteq"

_EPILOG = """\
APP is the path of an app in Python (shop.app), or of a queue's file (data/shop.db) or directory, which is opened
without importing anybody's code: what contains a slash, exists or ends in .db, .sqlite or .sqlite3.

examples:
  liteq demo                                  watch it work: a queue, a consumer, a few hundred jobs
  liteq info shop.app                         how many jobs stand where, and who works on them
  liteq ls shop.db --state failed --newest    the dead letters
  liteq show shop.db 4711                     one of them with every attempt's traceback
  liteq retry shop.db --all --task shop.mail  run them again
  liteq health shop.db --max-age 5m           for a probe: exit code 0 or 1

exit codes: 0 done · 1 not done: no such job, a file that cannot be used, not healthy · 2 a wrong option or app ·
130 Ctrl-C. Data goes to standard output, messages to standard error. NO_COLOR=1 turns colours off.
"""


def parser() -> argparse.ArgumentParser:
    """The command line of `liteq`."""
    description = (
        "Look at a liteq queue and put it right. `liteq COMMAND --help` tells more; liteq_consumer runs the jobs."
    )
    program = argparse.ArgumentParser(
        _PROGRAM, description=description, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    program.add_argument(
        "--version", action="version", version=f"liteq {__version__}", help="show the version and exit"
    )
    commands = Commands(program.add_subparsers(title="commands", metavar="COMMAND", required=True))
    for room in (
        info,
        look,
        why,
        stack,
        change,
        queues,
        locks,
        health,
        demo,
        torture,
        schedules,
        install,
        backup,
        doctor,
        transfer,
        import_huey,
    ):
        room.declare(commands)
    return program


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    Args:
        argv: the arguments; ``None``: the program's own.
    """
    prepare_streams()
    try:
        try:
            words = sys.argv[1:] if argv is None else argv
            return _obey(parser().parse_args(install.in_one_word(schedules.either_order(words))))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _silence(sys.stdout)
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except (
        OSError
    ) as error:  # the disk behind standard output, or a temporary folder: errors of storages are caught below
        _silence(sys.stdout)
        complain(_PROGRAM, f"cannot write: {error}")
        return FAILED


def _obey(arguments: argparse.Namespace) -> int:
    output = Output(as_json=arguments.json)
    try:
        if not hasattr(arguments, "target"):
            return int(arguments.run(arguments, output))
        create = getattr(arguments, "create", False)
        with opened(arguments.target, verbose=arguments.verbose, create=create) as app:
            return int(arguments.run(app, arguments, output))
    except LiteQError as error:
        refused = refusal(error)
    except Refused as error:
        refused = error
    complain(_PROGRAM, str(refused))
    return refused.code


def _silence(stream: object) -> None:
    """Have nothing more written to a stream that cannot be written to, or the interpreter complains at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())  # type: ignore[attr-defined]
    os.close(nowhere)
