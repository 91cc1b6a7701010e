"""What can be wrong with a queue's SQLite file, its place and its side files. Looks only; changes nothing.

Two parts: what can be told about a path without opening it (`of_path`), which also works where the file cannot be
opened, and what the open file says of itself (`of_content`).
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

from liteq.findings import Finding, Verdict
from liteq.storage import surroundings
from liteq.storage.sqlite_connection import RESTART_ABOVE

#: A WAL larger than so many bytes is held by somebody who reads an old state: consumers keep it near 16 MiB.
LARGE_WAL = 64 << 20
#: Versions of SQLite from .. up to which a reset of the WAL can, rarely, corrupt the file (https://sqlite.org/wal.html,
#: "the WAL-reset bug"). liteq resets it under its write lock only, which leaves foreign programs.
WAL_RESET_BUG = ((3, 7, 0), (3, 51, 2))

_TABLES = ("liteq_ready", "liteq_scheduled", "liteq_running", "liteq_blocked", "liteq_done")


# ── the path ─────────────────────────────────────────────────────────────────────────────────────────────


def of_path(path: Path, side: Path) -> Iterator[Finding]:
    """The file and the directories around it, without opening the database."""
    yield surroundings.filesystem(path)
    yield from _file(path)
    yield surroundings.directory("directory", path.parent)
    if side.is_dir():
        yield surroundings.directory("side_directory", side)
    yield surroundings.space(path)
    yield _wal(path)
    yield surroundings.openers(path)


def _file(path: Path) -> Iterator[Finding]:
    try:
        status = path.stat()
    except OSError as error:
        yield Finding("file", Verdict.WRONG, f"cannot be looked at: {error.strerror}", "look at the path and its owner")
        return
    if not (os.access(path, os.R_OK) and os.access(path, os.W_OK)):
        mode = stat.filemode(status.st_mode)
        found = f"not readable and writable for {surroundings.user()} (owner {status.st_uid}, {mode})"
        yield Finding("file", Verdict.WRONG, found, "run as its owner, or change its owner or mode")
    elif status.st_nlink > 1:
        found = f"it has {status.st_nlink} names (hard links)"
        yield Finding("file", Verdict.WRONG, found, "keep one name: SQLite puts a WAL beside each, and they differ")
    elif os.name == "posix" and status.st_mode & 0o077:
        found = f"others may use it (mode {stat.filemode(status.st_mode)})"
        yield Finding("file", Verdict.WARNING, found, f"chmod 600 {path}, unless that is meant: it holds all arguments")
    else:
        yield Finding("file", Verdict.OK, "readable and writable, and nobody else's")


def _wal(path: Path) -> Finding:
    try:
        size = path.with_name(path.name + "-wal").stat().st_size
    except FileNotFoundError:
        return Finding("wal", Verdict.OK, "none: nobody has the file open, or nothing was written yet")
    if size <= LARGE_WAL:
        return Finding("wal", Verdict.OK, f"{size >> 10:,} KiB")
    advice = "somebody reads an old state: end a transaction that was left open, in a database shell perhaps"
    return Finding("wal", Verdict.WARNING, f"{size >> 20:,} MiB", advice)


# ── what the file says ───────────────────────────────────────────────────────────────────────────────────


def of_content(connection: sqlite3.Connection, slots: Path, thorough: bool) -> Iterator[Finding]:
    """The library, the database and what liteq keeps in it.

    Args:
        connection: in a read transaction.
        slots: the directory of the consumers' lock files.
        thorough: also read every page and every index, which takes about a second for each 100 MB.
    """
    yield _library()
    if thorough:
        yield _integrity(connection)
        yield from _one_place_each(connection)
    yield _pages(connection)
    known = [row[0] for row in connection.execute("SELECT slot FROM liteq_owner").fetchall()]
    yield surroundings.slot_files(known, slots)


def _library() -> Finding:
    version = sqlite3.sqlite_version_info
    first, last = WAL_RESET_BUG
    if not first <= version <= last:
        return Finding("sqlite", Verdict.OK, sqlite3.sqlite_version)
    found = f"{sqlite3.sqlite_version}, in which a checkpoint by a foreign program can, rarely, corrupt the file"
    return Finding("sqlite", Verdict.NOTE, found, "let only liteq write to this file, or use a newer SQLite")


def _integrity(connection: sqlite3.Connection) -> Finding:
    rows = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(5)").fetchall()]
    if rows == ["ok"]:
        return Finding("integrity", Verdict.OK, "every page and index is sound")
    advice = "stop everything, copy the file and its -wal, then restore a backup, or recover it: sqlite3 FILE .recover"
    return Finding("integrity", Verdict.WRONG, "; ".join(rows), advice)


def _one_place_each(connection: sqlite3.Connection) -> Iterator[Finding]:
    """Whether each job stands in exactly one state table."""
    places = " UNION ALL ".join(f"SELECT id FROM {table}" for table in _TABLES)
    statement = (
        f"SELECT count(*) FROM liteq_job j LEFT JOIN (SELECT id, count(*) AS times FROM ({places}) GROUP BY id) s "
        "ON s.id = j.id WHERE j.rnd >= 0 AND s.times IS NOT 1"
    )
    lost = connection.execute(statement).fetchone()[0]
    strays = connection.execute(
        f"SELECT count(*) FROM ({places}) s LEFT JOIN liteq_job j ON j.id = s.id WHERE j.id IS NULL"
    ).fetchone()[0]
    if lost or strays:
        found = f"{lost} jobs stand in no state or in several, {strays} entries have no job"
        yield Finding("jobs", Verdict.WRONG, found, "somebody else has written to liteq's tables; report it if not")
    else:
        yield Finding("jobs", Verdict.OK, "each stands in exactly one state")


def _pages(connection: sqlite3.Connection) -> Finding:
    size, count, free = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
    )
    found = f"{size * count >> 10:,} KiB, of which {size * free >> 10:,} KiB are free"
    if connection.execute("PRAGMA auto_vacuum").fetchone()[0] == 2 or free < RESTART_ABOVE:
        return Finding("size", Verdict.OK, found)
    advice = "free pages are used again, but the file does not shrink by itself: it was not created by liteq"
    return Finding("size", Verdict.NOTE, found, advice)
