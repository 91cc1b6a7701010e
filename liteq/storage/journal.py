"""The journal: a file to which every verb is appended as one line, with its checksum.

You stand on floor 1, below `replica`. This room knows lines and bytes; what is in a line is `record`'s business. ::

    liteq journal 1 <queue> <generation> <end of the state> <replaced at> <next seq> <crc>      the head, of fixed width
    <crc> <next seq> <JSON>                                                                     the state, in parts
    <crc> <next seq> <JSON>                                                                     a verb
    …

A line counts if it is whole and its checksum is right. What follows the last good line of the file is what a writer
left who died: it was never acknowledged, and is cut off. A bad line *before* a good one is damage, and nothing is read
on from there.

All writing, and reading up to the end, is done in the turn of `liteq.storage.locks.Turnstile`. What lies before an end
that was seen in the turn never changes, and may be read at any time.

A journal that has grown is replaced by a shorter one that begins with the state. Its head says which byte of the old
one the state stands for, so whoever has read that far goes on without reading the state.
"""

from __future__ import annotations

import errno
import os
import stat
from binascii import crc32
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from liteq.errors import StorageError, StorageTooNew, StorageUnusable

FORMAT = 1
NAME = "journal"
#: How the name of the next one begins, until it takes the place of the present one.
NEXT = "journal.new-"

_MAGIC = b"liteq journal "
#: What an append changes besides the data is the length, which this writes too.
_sync = getattr(os, "fdatasync", os.fsync)
#: Read at once: at the end, to find the last line; and on the way, to keep memory low.
_LAST, _CHUNK = 1 << 16, 1 << 22
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)


class Head(NamedTuple):
    """The first line.

    ``queue`` is the same in all generations of one queue. ``state`` is where the state ends and verbs begin; it is that
    of the older generation at byte ``replaced``. ``next_seq`` is that of the next job after the state.
    """

    queue: str
    generation: int
    state: int
    replaced: int
    next_seq: int

    def line(self) -> bytes:
        """Always of the same length."""
        queue, generation, state, replaced, next_seq = self
        text = f"{queue} {generation:016x} {state:016x} {replaced:016x} {next_seq:016x}".encode()
        text = b"%s%d %s " % (_MAGIC, FORMAT, text)
        return text + b"%08x\n" % crc32(text)


#: The length of a head in bytes.
HEAD = len(Head("0" * 32, 0, 0, 0, 0).line())


def fresh_queue() -> Head:
    """The head of a queue that is made now."""
    return Head(os.urandom(16).hex(), 1, HEAD, 0, 1)


def read_head(line: bytes, path: Path) -> Head:
    """Take a head apart.

    Raises:
        StorageTooNew: a newer version of liteq wrote it. StorageUnusable: it is none.
    """
    words = line.split()
    if not line.startswith(_MAGIC) or len(words) < 3 or not words[2].isdigit():
        raise StorageUnusable(f"{path} is not a journal of liteq; it was left untouched")
    if int(words[2]) > FORMAT:
        raise StorageTooNew(
            f"{path} has format {int(words[2])}, and this version of liteq knows only {FORMAT}: it was written by a "
            "newer version, and was left untouched. Upgrade liteq here"
        )
    if len(line) != HEAD or len(words) != 9 or int(words[8], 16) != crc32(line[:-9]):
        raise StorageUnusable(f"{path} has a damaged first line; it was left untouched. Restore it from a backup")
    return Head(words[3].decode(), *(int(word, 16) for word in words[4:8]))


def line_of(text: bytes, next_seq: int) -> bytes:
    """A whole line: ``text`` is one line of JSON, ``next_seq`` the seq that the next job will have."""
    text = b"%x %s\n" % (next_seq, text)
    return b"%08x %s" % (crc32(text), text)


class Line(NamedTuple):
    """A good line: its text, the seq of the next job after it, and where in the file it ends."""

    text: bytes
    next_seq: int
    end: int


def checked(line: bytes) -> tuple[int, bytes] | None:
    """``next_seq`` and text of a line with its end; ``None`` if it is not good."""
    if line[8:9] != b" " or line[-1:] != b"\n":
        return None
    text = line[9:]
    try:
        if int(line[:8], 16) != crc32(text):
            return None
    except ValueError:
        return None
    number, _, text = text.partition(b" ")
    return int(number, 16), text[:-1]


def good_lines(data: bytes, start: int) -> list[Line]:
    """The lines at the beginning of ``data``, which was read at ``start``, up to the first that is not good."""
    lines = []
    for one in data.splitlines(keepends=True) if b"\r" not in data else _split(data):
        found = checked(one)
        if found is None:
            break
        start += len(one)
        lines.append(tuple.__new__(Line, (found[1], found[0], start)))  # half as long as by its name
    return lines


def _split(data: bytes) -> list[bytes]:
    """Lines with their ends, which are newlines only."""
    whole = data.split(b"\n")
    return [*(one + b"\n" for one in whole[:-1]), *(whole[-1:] if whole[-1] else ())]


def is_torn(rest: bytes) -> bool:
    """Whether what follows the last good line may be a line that was being written, and not one that was stored and has
    changed. A line is written at once, with its end; a block that the disk did not get before a power loss is zeros.
    """
    if any(checked(one) is not None for one in _split(rest)[1:]):
        return False
    return b"\n" not in rest or b"\0" in rest


class Damaged(StorageUnusable):
    """A line in the middle of a journal is not what was written.

    Args:
        path: the journal.
        at: the byte at which the bad line begins.
        intact: how many good lines follow it.
    """

    def __init__(self, path: Path, at: int, intact: int) -> None:
        after = f"the {intact} intact records after it" if intact else "what comes after it"
        super().__init__(
            f"{path} is damaged at byte {at}: what stands there is not what was written. Nothing was changed. "
            f"Everything before it is intact, but {after} cannot be applied to it for certain, so the queue is not "
            f"opened. Restore a backup of {path.parent}, or go on with what is certain, after every program that uses "
            "it has ended: "
            f'python -c "from liteq import FileStorage; print(FileStorage({str(path.parent)!r}).salvage())"'
        )
        self.at = at
        self.intact = intact


class Journal:
    """One generation of a journal, open.

    Args:
        directory: the queue's.
        durability: ``"full"``: what was appended survives power loss.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it cannot be used.
    """

    def __init__(self, directory: Path, durability: str) -> None:
        self._descriptor = -1
        self.path = directory / NAME
        self._sync = durability == "full"
        #: How much room must be proved before the next line is believed to fit: a disk was full.
        self._wanted = 0
        self._descriptor = _open(self.path, os.O_RDWR)
        try:
            status = os.fstat(self._descriptor)
            _refuse_games(self.path, status)
            self._place = status.st_dev, status.st_ino
            self.head = read_head(self.read(0, HEAD), self.path)
        except BaseException:
            self.close()
            raise

    def is_in_place(self) -> bool:
        """Whether the name still leads to this file. While it is open no other file can have its number."""
        try:
            status = os.stat(self.path, follow_symlinks=False)  # noqa: PTH116 - once a verb; a Path takes twice as long
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._place

    def size(self) -> int:
        """How long it is, in bytes."""
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """Let go of it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────

    def read(self, start: int, end: int) -> bytes:
        """What stands between two bytes; less if it is shorter."""
        pieces = []
        try:
            while start < end and (piece := os.pread(self._descriptor, end - start, start)):
                pieces.append(piece)
                start += len(piece)
        except OSError as error:
            raise unusable(self.path, error) from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def lines(self, start: int, end: int) -> Iterable[list[Line]]:
        """The good lines from ``start``, which begins one, up to ``end``, in chunks; they end where one is not good."""
        size = _CHUNK
        while start < end:
            data = self.read(start, min(start + size, end))
            lines = good_lines(data, start)
            if not lines:
                if len(data) < size:
                    return
                size *= 2  # a line that is longer than this
                continue
            start = lines[-1].end
            yield lines

    def next_seq(self, end: int) -> int | None:
        """The seq of the next job after the last line; ``None`` if that line is not good."""
        if end == HEAD:
            return self.head.next_seq
        length = _LAST
        while True:
            start = max(HEAD, end - length)
            data = self.read(start, end)
            at = data.rfind(b"\n", 0, -1) + 1
            if at or start == HEAD:
                found = checked(data[at:])
                return None if found is None else found[0]
            length *= 4

    # ── writing, in the turn ─────────────────────────────────────────────────────────────────────────

    def append(self, line: bytes, end: int) -> None:
        """Write one line at the end, all of it or nothing.

        Raises:
            StorageError: nothing was stored.
        """
        try:
            try:
                self._write(line, end)
                if self._sync:
                    _sync(self._descriptor)
            except BaseException:
                self._wanted = len(line)
                os.ftruncate(self._descriptor, end)
                raise
        except OSError as error:
            raise unusable(self.path, error) from error

    def prove_room(self, end: int) -> None:
        """After a line did not fit: find out whether it does now, before anything is done that would have to be undone.

        Raises:
            StorageError: the disk is still full.
        """
        if not self._wanted:
            return
        try:
            try:
                self._write(bytes(self._wanted), end)
            finally:
                os.ftruncate(self._descriptor, end)
        except OSError as error:
            raise unusable(self.path, error) from error
        self._wanted = 0

    def cut_or_refuse(self, at: int) -> None:
        """Cut off what follows the last good line, which ends at ``at``: nobody was told that it is stored.

        Raises:
            Damaged: it is not the rest of a line that was being written, but one that was stored and has changed.
        """
        rest = self.read(at, self.size())
        if not is_torn(rest):
            raise Damaged(self.path, at, sum(checked(one) is not None for one in _split(rest)[1:]))
        try:
            os.ftruncate(self._descriptor, at)
        except OSError as error:
            raise unusable(self.path, error) from error

    def _write(self, data: bytes, at: int) -> None:
        written = os.pwrite(self._descriptor, data, at)
        while written < len(data):
            written += os.pwrite(self._descriptor, data[written:], at + written)


class Successor:
    """The next generation while it is being written, until `take_over` puts it in the place of the present one.

    Args:
        directory: the queue's.

    Raises:
        StorageError: it cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / (NEXT + os.urandom(8).hex())
        try:
            self._descriptor = _open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileNotFoundError as error:
            raise unusable(self.path, error) from error
        self.end = HEAD
        self._pending: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._pwrite(data, self.end)
        self.end += len(data)

    def settle(self) -> None:
        """Have all that was written so far on the disk, so that `take_over` takes no longer than it must."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise unusable(self.path, error) from error

    def take_over(self, head: Head, place: Path) -> None:
        """Become the journal. Atomic: whoever opens it finds the old one or this one, whole."""
        self._pwrite(head.line(), 0)
        try:
            os.fsync(self._descriptor)
            self.path.replace(place)
            for left in place.parent.glob(NEXT + "*"):  # by those who died at it, or who come too late
                left.unlink(missing_ok=True)
            sync_directory(place.parent)
        except OSError as error:
            raise unusable(self.path, error) from error

    def close(self) -> None:
        """Let go of it; what has not taken over is deleted."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        try:
            if os.fstat(descriptor).st_nlink and _is_at(descriptor, self.path):
                self.path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    def _pwrite(self, data: bytes, at: int) -> None:
        try:
            view = memoryview(data)
            while view:
                written = os.pwrite(self._descriptor, view, at)
                view, at = view[written:], at + written
        except OSError as error:
            raise unusable(self.path, error) from error


def make_first(directory: Path) -> None:
    """Make the journal of a new queue."""
    first = Successor(directory)
    try:
        first.take_over(fresh_queue(), directory / NAME)
    finally:
        first.close()


def sync_directory(directory: Path) -> None:
    """Have on the disk which names a directory holds."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unusable(path: Path, error: OSError) -> StorageError:
    """The StorageError that says to a user what ``error`` says to a programmer."""
    if error.errno in _FULL:
        return StorageError(f"{path}: the disk is full; nothing was stored")
    if error.errno in _REFUSED:
        return StorageUnusable(f"{path} cannot be used: {error.strerror}")
    return StorageError(f"{path}: {error.strerror or error}; nothing was stored")


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StorageUnusable(
                f"{path} is a symbolic link; a journal is a file of its own, so nothing was read or written through it"
            ) from error
        raise unusable(path, error) from error


def _refuse_games(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StorageUnusable(f"{path} is not a regular file; it was left untouched")
    if status.st_nlink > 1:
        raise StorageUnusable(
            f"{path} has {status.st_nlink} names (hard links), so somebody may write to it behind the queue's back; "
            "make a copy of its own of it, or remove the other names"
        )


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
