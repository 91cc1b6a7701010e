"""Whether somebody else may have put a file where ours should be: what a storage refuses before it opens one.

Where anybody may create files (``/tmp``), another user can leave a file, a symbolic link or a directory under the name
that we are about to use, to be given our jobs or to have us write into a file of his. The rules are those of Linux's
``fs.protected_symlinks`` and ``fs.protected_regular``, which not every system has.

A file with several names (hard links) is refused anywhere: SQLite names the WAL after the name by which it was opened,
so two programs that use two names overwrite each other's commits (https://sqlite.org/howtocorrupt.html, 2.5).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from liteq.errors import StorageUnusable


def refuse_planted(path: Path) -> None:
    """Refuse a path under which somebody else may have put something.

    Args:
        path: absolute; need not exist.

    Raises:
        StorageUnusable: it is a link or a file of another user's in a directory where anybody may create files, or it
            has several names.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if os.name == "posix" and _anybody_may_create_in(path.parent) and found.st_uid != os.geteuid():
        kind = "symbolic link" if stat.S_ISLNK(found.st_mode) else "file"
        raise StorageUnusable(
            f"{path} is a {kind} of user {found.st_uid} in a directory where anybody may create files, and may have "
            "been put there to be given your jobs; it was left untouched. Use a directory of your own"
        )
    if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
        raise StorageUnusable(
            f"{path} has {found.st_nlink} names (hard links), each of which would get a write-ahead log of its own: "
            "commits would be lost. Delete the other names; for a copy, use `liteq backup`"
        )


def refuse_planted_directory(directory: Path) -> None:
    """Refuse a directory for lock files that is none, or that is another user's where anybody may create some.

    Raises:
        StorageUnusable: likewise.
    """
    try:
        found = directory.lstat()
    except FileNotFoundError:
        return
    strange = not stat.S_ISDIR(found.st_mode)
    if os.name == "posix" and not strange:
        strange = found.st_uid != os.geteuid() and _anybody_may_create_in(directory.parent)
    if strange:
        raise StorageUnusable(
            f"{directory} is not a directory of this user's, as it must be to keep a queue's lock files, and somebody "
            "may have put it there. It was left untouched"
        )


def _anybody_may_create_in(directory: Path) -> bool:
    return bool(directory.stat().st_mode & stat.S_IWOTH)
