"""Who holds SQLite's write lock, for those who have waited for it in vain.

The most frequent one is the caller himself: he has written on a connection of his own, to the same file, and enqueues
before he commits. Waiting would then end with an error a minute later, so it is found out while he waits. The lock is a
range of bytes in the ``-shm`` file, and Linux tells whose it is in ``/proc/locks``.
"""

from __future__ import annotations

import gc
import os
import sqlite3
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

_WRITE_LOCK = 120  # the byte of the -shm file that a writer locks: https://sqlite.org/walformat.html


def holder(path: Path) -> int | None:
    """The process that holds the write lock; ``None``: nobody, or it cannot be told."""
    try:
        inode = path.with_name(f"{path.name}-shm").stat().st_ino
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:  # no such system
        return None
    locks = (line.split() for line in lines if " POSIX " in line and "->" not in line)
    return next((int(fields[4]) for fields in locks if _is_write_lock(fields, inode)), None)


def _is_write_lock(fields: list[str], inode: int) -> bool:
    """Of a line such as ``1: POSIX ADVISORY WRITE 4711 fe:00:2154525 120 120``."""
    if fields[3] != "WRITE" or fields[5].rpartition(":")[2] != str(inode):
        return False
    last = float("inf") if fields[7] == "EOF" else int(fields[7])
    return int(fields[6]) <= _WRITE_LOCK <= last


def waits_for_itself(path: Path, own: Collection[sqlite3.Connection]) -> bool:
    """Whether this thread waits for what only this thread can end: a transaction on a connection of the program's.

    Args:
        path: the queue's file.
        own: liteq's connections to it.
    """
    if holder(path) != os.getpid():
        return False
    # Whether a transaction has written cannot be asked. So there must be no other that it could be.
    suspects = [one for one in _connections() if one not in own and _is_in_transaction(one)]
    ours = _is_alone() or all(_is_of_this_thread(one) for one in suspects)
    return ours and any(_has_open(one, path) for one in suspects)


def _connections() -> list[sqlite3.Connection]:
    return [one for one in gc.get_objects() if isinstance(one, sqlite3.Connection)]


def _is_in_transaction(connection: sqlite3.Connection) -> bool:
    try:
        return connection.in_transaction
    except sqlite3.ProgrammingError:  # closed
        return False


def _is_alone() -> bool:
    """Whether this is the one thread here, but for those in which liteq waits for results."""
    others = [one for one in threading.enumerate() if one is not threading.current_thread()]
    return all(one.name == "liteq-waiters" for one in others)


def _is_of_this_thread(connection: sqlite3.Connection) -> bool:
    """Whether it can be used in this thread, and in no other."""
    answers = [_may_use(connection)]
    thread = threading.Thread(target=lambda: answers.append(_may_use(connection)), daemon=True)
    thread.start()
    thread.join()
    return answers == [True, False]


def _may_use(connection: sqlite3.Connection) -> bool:
    try:
        connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
    except sqlite3.ProgrammingError:
        return False
    return True


def _has_open(connection: sqlite3.Connection, path: Path) -> bool:
    cursor = sqlite3.Cursor(connection)
    cursor.execute("SELECT CAST(file AS BLOB) FROM pragma_database_list WHERE file <> ''")
    for (file,) in cursor.fetchall():
        with suppress(OSError):
            if path.samefile(bytes(file).decode()):
                return True
    return False
