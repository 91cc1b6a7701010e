"""Find the user's app by what he typed, and say in one line what is wrong where it cannot be imported."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from liteq.cli.endings import MISUSED, Refused

if TYPE_CHECKING:
    from types import TracebackType

    from liteq import LiteQ


class Broken(Refused):
    """The user's module cannot be imported."""


_OWN = str(Path(__file__).parents[1])


def import_app(path: str, *, verbose: bool = False) -> LiteQ:
    """Import the app that ``path`` names.

    Args:
        path: ``"module.app"`` or ``"module:app"``.
        verbose: show the traceback of an error in the user's module.

    Raises:
        Refused: there is no such app. Broken: importing its module raised.
    """
    from liteq.consumer import load_app

    try:
        return cast("LiteQ", load_app(path))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's module may raise anything
        place = _place(error)
        if place is None:  # none of his code was run: it is the path that is wrong
            raise Refused(str(error), MISUSED) from None
        if verbose:
            traceback.print_exception(error)
        raise Broken(f"cannot import {path}: {_what(error)} ({place}); -v shows the traceback", MISUSED) from None


def _what(error: BaseException) -> str:
    lines = str(error).strip().split("\n")
    return f"{type(error).__name__}: {lines[0]}" if lines[0] else type(error).__name__


def _place(error: BaseException) -> str | None:
    """``file:line`` of the user's code, the innermost; ``None`` where none of it was run."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno}"
    places = list(_places(error.__traceback__))
    foreign = (_OWN, *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
    users = [(file, line) for file, line in places if not file.startswith(tuple(one + os.sep for one in foreign))]
    chosen = users or [(file, line) for file, line in places if not file.startswith(_OWN + os.sep)]
    return f"{chosen[-1][0]}:{chosen[-1][1]}" if chosen else None


def _places(trace: TracebackType | None) -> Iterator[tuple[str, int]]:
    """File and line of every step, outermost first, but those inside the import machinery and this program."""
    for frame, line in traceback.walk_tb(trace):
        file = frame.f_code.co_filename
        if not file.startswith("<frozen "):
            yield str(Path(file).absolute()) if not file.startswith("<") else file, line
