"""What can be wrong with the directory of a FileStorage and its journal. Looks only; changes nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from liteq.errors import StorageError
from liteq.findings import Finding, Verdict
from liteq.storage import surroundings
from liteq.storage.journal import HEAD, NAME, NEXT, Journal, is_torn
from liteq.storage.replica import is_neglected


def of_directory(directory: Path) -> Iterator[Finding]:
    """The directory and what is in it, without taking a turn."""
    journal = directory / NAME
    yield surroundings.filesystem(directory)
    yield _modes(directory, journal)
    yield surroundings.directory("directory", directory)
    yield surroundings.space(journal)
    yield surroundings.openers(journal)
    yield _leftovers(directory)


def of_journal(journal: Journal, thorough: bool) -> Iterator[Finding]:
    """The journal itself.

    Args:
        journal: open; others may write to it meanwhile.
        thorough: also read all of it, which takes about a second for each 100 MB.

    Raises:
        StorageError: it cannot be read.
    """
    size, state = journal.size(), journal.head.state
    found = f"{size >> 10:,} KiB, of which {(state - HEAD) >> 10:,} KiB are the state it begins with"
    if is_neglected(journal, size):
        advice = "it has grown: a consumer replaces it by a shorter one; start one, or look for errors in its log"
        yield Finding("size", Verdict.WARNING, found, advice)
    else:
        yield Finding("size", Verdict.OK, found)
    if thorough:
        yield _integrity(journal, size)


def _integrity(journal: Journal, size: int) -> Finding:
    number, end = 0, HEAD
    for lines in journal.lines(HEAD, size):
        number, end = number + len(lines), lines[-1].end
    if end == size:
        return Finding("integrity", Verdict.OK, f"each of {number:,} records is what was written")
    if is_torn(journal.read(end, size)):
        found = f"{number:,} sound records, and the beginning of one whose writer died, or is writing"
        return Finding("integrity", Verdict.OK, found)
    advice = "stop everything, then restore a backup, or call FileStorage(...).salvage(); see docs/storages.md"
    return Finding("integrity", Verdict.WRONG, f"damaged at byte {end}, behind {number:,} sound records", advice)


def _modes(directory: Path, journal: Path) -> Finding:
    for path in (directory, journal):
        try:
            status = path.stat()
        except OSError as error:
            found = f"{path} cannot be looked at: {error.strerror}"
            return Finding("file", Verdict.WRONG, found, "look at the path and its owner")
        if not (os.access(path, os.R_OK) and os.access(path, os.W_OK)):
            mode = stat.filemode(status.st_mode)
            found = f"{path} is not readable and writable for {surroundings.user()} (owner {status.st_uid}, {mode})"
            return Finding("file", Verdict.WRONG, found, "run as its owner, or change its owner or mode")
    others = [path for path in (directory, journal) if path.stat().st_mode & 0o077]
    if others:
        advice = f"chmod go-rwx {others[0]}, unless that is meant: it holds all arguments"
        return Finding("file", Verdict.WARNING, f"others may use {others[0]}", advice)
    return Finding("file", Verdict.OK, "readable and writable, and nobody else's")


def _leftovers(directory: Path) -> Finding:
    left = sorted(one.name for one in directory.glob(f"{NAME}.*"))
    damaged = [name for name in left if not name.startswith(NEXT)]
    if damaged:
        advice = "it was set aside by salvage(); delete it when nothing is wanted from it any more"
        return Finding("leftovers", Verdict.NOTE, ", ".join(damaged[:5]), advice)
    if left:
        advice = "a journal that is being written, or whose writer has died: the next replacement removes it"
        return Finding("leftovers", Verdict.NOTE, ", ".join(left[:5]), advice)
    return Finding("leftovers", Verdict.OK, "none")


def examine(directory: Path, *, thorough: bool) -> Iterator[Finding]:
    """Everything that can be told without taking a turn.

    Raises:
        StorageError: on the way: there is no journal, or it cannot be opened.
    """
    yield from of_directory(directory)
    try:
        journal = Journal(directory, "normal")
    except FileNotFoundError:
        raise StorageError(f"{directory} holds no liteq queue") from None
    try:
        yield from of_journal(journal, thorough)
    finally:
        journal.close()
