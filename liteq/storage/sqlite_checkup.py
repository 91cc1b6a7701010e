"""What can be wrong with a queue's SQLite file, its place and its side files. Looks only; changes nothing.

Two parts: what can be told about a path without opening it (`of_path`), which also works where the file cannot be
opened, and what the open file says of itself (`of_content`).
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from liteq.findings import Finding, Verdict
from liteq.storage.filesystem import NETWORK_FILESYSTEMS, filesystem
from liteq.storage.sqlite_connection import RESTART_ABOVE

#: Free space in bytes below which a warning is given: a checkpoint needs room for what is in the WAL, 16 MiB at most as
#: a rule, and the file grows by what is enqueued.
LITTLE_SPACE = 100 << 20
#: A WAL larger than so many bytes is held by somebody who reads an old state: consumers keep it near 16 MiB.
LARGE_WAL = 64 << 20
#: Versions of SQLite from .. up to which a reset of the WAL can, rarely, corrupt the file (https://sqlite.org/wal.html,
#: "the WAL-reset bug"). liteq resets it under its write lock only, which leaves foreign programs.
WAL_RESET_BUG = ((3, 7, 0), (3, 51, 2))

_TABLES = ("liteq_ready", "liteq_scheduled", "liteq_running", "liteq_blocked", "liteq_done")


# ── the path ─────────────────────────────────────────────────────────────────────────────────────────────


def of_path(path: Path, side: Path) -> Iterator[Finding]:
    """The file and the directories around it, without opening the database."""
    yield _filesystem(path)
    yield from _file(path)
    yield _directory("directory", path.parent)
    if side.is_dir():
        yield _directory("side_directory", side)
    yield _space(path)
    yield _wal(path)
    yield _openers(path)


def _filesystem(path: Path) -> Finding:
    kind = filesystem(path)
    if kind not in NETWORK_FILESYSTEMS:
        return Finding("filesystem", Verdict.OK, kind or "this system does not tell")
    advice = "move the queue to a local disk: locks on network filesystems fail silently"
    return Finding("filesystem", Verdict.WRONG, f"a network filesystem ({kind})", advice)


def _file(path: Path) -> Iterator[Finding]:
    try:
        status = path.stat()
    except OSError as error:
        yield Finding("file", Verdict.WRONG, f"cannot be looked at: {error.strerror}", "look at the path and its owner")
        return
    if not (os.access(path, os.R_OK) and os.access(path, os.W_OK)):
        found = f"not readable and writable for {_user()} (owner {status.st_uid}, {stat.filemode(status.st_mode)})"
        yield Finding("file", Verdict.WRONG, found, "run as its owner, or change its owner or mode")
    elif status.st_nlink > 1:
        found = f"it has {status.st_nlink} names (hard links)"
        yield Finding("file", Verdict.WRONG, found, "keep one name: SQLite puts a WAL beside each, and they differ")
    elif os.name == "posix" and status.st_mode & 0o077:
        found = f"others may use it (mode {stat.filemode(status.st_mode)})"
        yield Finding("file", Verdict.WARNING, found, f"chmod 600 {path}, unless that is meant: it holds all arguments")
    else:
        yield Finding("file", Verdict.OK, "readable and writable, and nobody else's")


def _user() -> str:
    return f"user {os.getuid()}" if hasattr(os, "getuid") else "this user"


def _directory(name: str, directory: Path) -> Finding:
    if os.access(directory, os.W_OK | os.X_OK):
        return Finding(name, Verdict.OK, "writable")
    advice = "SQLite and liteq put files beside the database: let this user write there"
    return Finding(name, Verdict.WRONG, f"{directory} is not writable", advice)


def _space(path: Path) -> Finding:
    free = shutil.disk_usage(path.parent).free
    if free >= LITTLE_SPACE:
        return Finding("free_space", Verdict.OK, f"{free >> 20:,} MiB")
    verdict = Verdict.WARNING if free else Verdict.WRONG
    advice = "make room: when the disk is full nothing can be enqueued, and outcomes wait in memory"
    return Finding("free_space", verdict, f"{free >> 20:,} MiB", advice)


def _wal(path: Path) -> Finding:
    try:
        size = path.with_name(path.name + "-wal").stat().st_size
    except FileNotFoundError:
        return Finding("wal", Verdict.OK, "none: nobody has the file open, or nothing was written yet")
    if size <= LARGE_WAL:
        return Finding("wal", Verdict.OK, f"{size >> 10:,} KiB")
    advice = "somebody reads an old state: end a transaction that was left open, in a database shell perhaps"
    return Finding("wal", Verdict.WARNING, f"{size >> 20:,} MiB", advice)


def _openers(path: Path) -> Finding:
    pids = _who_has_open(path)
    if pids is None:
        return Finding("open_by", Verdict.NOTE, "this system does not tell")
    return Finding("open_by", Verdict.OK, f"processes {', '.join(map(str, pids))}" if pids else "nobody else")


def _who_has_open(path: Path) -> list[int] | None:
    """The processes that have the file open, as far as this user may see; without this one."""
    try:
        wanted = path.stat()
        processes = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    except OSError:  # no Linux
        return None
    others = (pid for pid in processes if pid != os.getpid())
    return sorted(pid for pid in others if _has_open(pid, wanted.st_dev, wanted.st_ino))


def _has_open(pid: int, device: int, inode: int) -> bool:
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                status = descriptor.stat()
            except OSError:  # closed meanwhile
                continue
            if (status.st_dev, status.st_ino) == (device, inode):
                return True
    except OSError:  # gone, or somebody else's
        return False
    return False


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
    yield _slot_files(connection, slots)


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


def _slot_files(connection: sqlite3.Connection, slots: Path) -> Finding:
    known = {row[0] for row in connection.execute("SELECT slot FROM liteq_owner").fetchall()}
    there = set(_names(slots))
    orphans = there - known
    if not orphans:
        return Finding("lock_files", Verdict.OK, f"{len(there)}, each of a registered consumer")
    found = f"{len(orphans)} of {len(there)} belong to no registered consumer: {', '.join(sorted(orphans)[:5])}"
    advice = f"they do no harm; if no process has them open, delete them from {slots}"
    return Finding("lock_files", Verdict.NOTE, found, advice)


def _names(directory: Path) -> Iterable[str]:
    return (entry.name for entry in directory.iterdir()) if directory.is_dir() else ()
