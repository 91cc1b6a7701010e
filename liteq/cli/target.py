"""Open what a command is about: an app by its path in Python, or a queue's file or directory without anybody's code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from liteq import LiteQ, Storage
from liteq.cli.endings import MISUSED, Refused

_ENDINGS = (".db", ".sqlite", ".sqlite3")


@contextmanager
def opened(target: str, *, verbose: bool = False, create: bool = False) -> Iterator[LiteQ]:
    """The app that ``target`` names, for the length of the block.

    Args:
        target: ``"module.app"``, or the path of a file or of a directory.
        verbose: show the traceback of an error in the user's module.
        create: make the file, or the directory if the path ends like one, where there is none.

    Raises:
        Refused: there is no such thing, or nothing can be seen of it from here.
    """
    app = _on_file(target, create) if is_file(target) else _imported(target, verbose)
    try:
        if app.immediate or app.storage.location == ":memory:":
            raise Refused(f"{target} keeps its jobs in the memory of the process that enqueues them", MISUSED)
        yield app
    finally:
        app.close()


def is_file(target: str) -> bool:
    """Whether this is the path of a file or of a directory rather than of an app."""
    return any(one in target for one in _separators()) or target.endswith(_ENDINGS) or Path(target).exists()


def _separators() -> tuple[str, ...]:
    return (os.sep,) if os.altsep is None else (os.sep, os.altsep)


def _on_file(path: str, create: bool) -> LiteQ:
    app = LiteQ(_storage_at(path, create))
    app.immediate = False  # LITEQ_IMMEDIATE=1 is meant for an app's tests, not for a file that is looked at
    return app


def _storage_at(path: str, create: bool) -> Storage:
    if Path(path).is_dir() or path.endswith(_separators()):
        from liteq import FileStorage

        return FileStorage(path, create=create)
    from liteq import SqliteStorage  # not for a directory: there may be no sqlite3 here

    return SqliteStorage(path, create=create)


def _imported(path: str, verbose: bool) -> LiteQ:
    from liteq.cli.loading import import_app

    with contextlib.redirect_stdout(sys.stderr):  # what the module prints is not our data
        return import_app(path, verbose=verbose)
