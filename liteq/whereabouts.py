"""Where an app's file is: which storage its first argument means, and from which directory a path is read."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Literal

from liteq.errors import ConfigurationError
from liteq.storage.base import Storage

if TYPE_CHECKING:
    from pathlib import Path  # pathlib is a sixth of what importing an app costs; it comes with the storage


def storage_for(spec: str | Path | Storage, durability: Literal["full", "normal"] | None, base: Path) -> Storage:
    """The storage that the first argument of an app means; a relative path is read from ``base``. Nothing is opened.

    Raises:
        TypeError, ConfigurationError: it means none, or ``durability`` does not fit it.
    """
    if durability not in ("full", "normal", None):
        raise ConfigurationError(f"durability takes 'full' or 'normal', not {durability!r}")
    if isinstance(spec, Storage):
        if durability is not None:
            raise ConfigurationError(
                f"durability={durability!r} has no effect beside a Storage; give it to that: "
                f"{type(spec).__name__}(path, durability={durability!r})"
            )
        return spec
    if not isinstance(spec, (str, os.PathLike)):
        raise TypeError(f"storage takes a path, ':memory:' or a Storage, not {type(spec).__name__} {spec!r}")
    if str(spec) == ":memory:":
        from liteq.storage.memory import MemoryStorage

        return MemoryStorage()
    if not str(spec):
        raise ConfigurationError("storage takes the path of a file, not an empty string")
    if "\0" in str(spec):
        raise ConfigurationError(f"storage takes the path of a file, which cannot hold a NUL: {spec!r}")
    from pathlib import Path

    try:
        from liteq.storage.sqlite import SqliteStorage
    except ModuleNotFoundError as error:
        if error.name not in ("sqlite3", "_sqlite3"):
            raise
        raise ConfigurationError(
            f"this Python was built without sqlite3, so the queue cannot be the SQLite file {spec!s}; "
            "LiteQ(FileStorage('queue/')) keeps it in a directory of plain files"
        ) from error

    return SqliteStorage(base / Path(spec).expanduser(), durability=durability or "full")


def namespace_of_caller(app: object) -> dict[str, Any]:
    """The globals of the module that calls ``LiteQ(...)``."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_locals.get("self") is app:  # our own and subclasses' __init__
        frame = frame.f_back
    return frame.f_globals


def directory_of(namespace: dict[str, Any]) -> Path:
    """The directory of a module; the current one where it has no file."""
    from pathlib import Path

    file = namespace.get("__file__")
    return Path(file).absolute().parent if file else Path.cwd()
