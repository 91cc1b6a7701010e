"""What can be told about the place where a queue is kept, without opening it; the same for every kind of storage.

You stand on floor 1, below `sqlite_checkup` and `file_checkup`. Looks only; changes nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from liteq.findings import Finding, Verdict
from liteq.storage.filesystem import NETWORK_FILESYSTEMS
from liteq.storage.filesystem import filesystem as kind_of

#: Free space in bytes below which a warning is given: a checkpoint needs room for what is in the WAL, 16 MiB at most as
#: a rule, a new journal for what is in the queue; and both grow by what is enqueued.
LITTLE_SPACE = 100 << 20


def filesystem(path: Path) -> Finding:
    """Whether it is one on which locks work."""
    kind = kind_of(path)
    if kind not in NETWORK_FILESYSTEMS:
        return Finding("filesystem", Verdict.OK, kind or "this system does not tell")
    advice = "move the queue to a local disk: locks on network filesystems fail silently"
    return Finding("filesystem", Verdict.WRONG, f"a network filesystem ({kind})", advice)


def user() -> str:
    """Who asks."""
    return f"user {os.getuid()}" if hasattr(os, "getuid") else "this user"


def directory(name: str, directory: Path) -> Finding:
    """Whether this user may write there."""
    if os.access(directory, os.W_OK | os.X_OK):
        return Finding(name, Verdict.OK, "writable")
    advice = "a queue consists of several files: let this user write there"
    return Finding(name, Verdict.WRONG, f"{directory} is not writable", advice)


def space(path: Path) -> Finding:
    """How much room there is beside ``path``."""
    free = shutil.disk_usage(path.parent).free
    if free >= LITTLE_SPACE:
        return Finding("free_space", Verdict.OK, f"{free >> 20:,} MiB")
    verdict = Verdict.WARNING if free else Verdict.WRONG
    advice = "make room: when the disk is full nothing can be enqueued, and outcomes wait in memory"
    return Finding("free_space", verdict, f"{free >> 20:,} MiB", advice)


def openers(path: Path) -> Finding:
    """Which other processes have this file open."""
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


def slot_files(known: Collection[str], slots: Path) -> Finding:
    """Whether each lock file in ``slots`` is one of the registered consumers', whose names are ``known``."""
    there = set(_names(slots))
    orphans = there - set(known)
    if not orphans:
        return Finding("lock_files", Verdict.OK, f"{len(there)}, each of a registered consumer")
    found = f"{len(orphans)} of {len(there)} belong to no registered consumer: {', '.join(sorted(orphans)[:5])}"
    advice = f"they do no harm; if no process has them open, delete them from {slots}"
    return Finding("lock_files", Verdict.NOTE, found, advice)


def _names(directory: Path) -> Iterable[str]:
    return (entry.name for entry in directory.iterdir()) if directory.is_dir() else ()
