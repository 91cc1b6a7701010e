"""What `liteq` can do. Each module declares its commands with `Commands.add` and holds what they run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from liteq import LiteQ
from liteq.cli.output import Output

if TYPE_CHECKING:
    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

#: What a command runs: it returns the exit code.
Run = Callable[[LiteQ, argparse.Namespace, Output], int]


class Commands:
    """The commands of a parser while they are being declared.

    Args:
        parsers: where argparse keeps them.
    """

    def __init__(self, parsers: SubParsers) -> None:
        self._parsers = parsers

    def add(self, name: str, run: Run, help: str, **more: Any) -> argparse.ArgumentParser:  # noqa: A002 - argparse's word
        """Declare a command about an app, and what runs it."""
        parser = self.add_bare(name, help, **more)
        parser.add_argument("target", metavar="APP", help="module.app, or the path of a queue's file: path/to/app.db")
        parser.add_argument(
            "-v", "--verbose", action="store_true", help="show the traceback if the app cannot be imported"
        )
        parser.set_defaults(run=run)
        return parser

    def add_bare(self, name: str, help: str, **more: Any) -> argparse.ArgumentParser:  # noqa: A002
        """Declare a command that is about no app."""
        parser = self._parsers.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", **more)
        parser.add_argument("--json", action="store_true", help="print JSON, one object a line, with keys that stay")
        return parser
