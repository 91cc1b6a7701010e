"""What a consumer's workers have begun, and what they leave behind, recorded where a kill -9 cannot take it back.

A consumer claims ahead, so at its death most of its jobs may not have been begun. Recovery must tell them apart: a job
that was begun has cost an attempt (and may be what killed the consumer), the others go back as if nothing had been. So
each worker writes the ``seq`` it begins into its own eight bytes of the consumer's slot file, whose descriptor it
holds anyway. The file is mapped, so that is a store into the page cache, which outlives every process, and costs 0.2
µs. (A `pwrite` costs 0.7, and lets go of the interpreter: thread workers then ran 65,000 jobs a second instead of
100,000.)

Nothing is erased when a job ends: it is not running any more then, and nobody asks.

Behind those eight bytes each worker process has a black box in the same file: the last lines that its job has logged,
and what it had used of the machine before the job. Whoever finds it dead, its consumer or another one, reads it there.
Where many jobs share a process, its box is shared too, and each line in it says whose it is.
"""

from __future__ import annotations

import mmap
import os
import struct
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from liteq.job import Death

_MAGIC = b"liteq begun 3\n"
#: Not at the start of the file: on Windows its first byte is what is locked.
_START = 16
_WORKERS = struct.Struct("<H")
_FIRST = _START + len(_MAGIC) + _WORKERS.size
_SEQ = struct.Struct("<q")

#: What is kept of a log, in bytes and in lines.
LOG_BYTES, LOG_LINES = 4096, 20
#: Twice that, so that a line that is being written when the worker is killed spoils nothing that is read.
_RING = 2 * LOG_BYTES
#: Where in the log the present job begins, and where it ends; CPU seconds before the job; at the worker's end, where it
#: came to say so: all its CPU seconds, and its peak memory in bytes. The one job that it may still run; 0: any. And 1
#: where several jobs share it.
_HEAD = struct.Struct("<QQddQqq")
_SINCE, _WRITTEN, _BEFORE, _AT_END, _ONLY, _SHARED = 0, 8, 16, 24, 40, 48
_POSITION, _SECONDS, _END = struct.Struct("<Q"), struct.Struct("<d"), struct.Struct("<dQ")
_BOX = _HEAD.size + _RING
#: No job has such a number.
_NOTHING = -1

#: Without pwrite (Windows) nothing is recorded, and recovery takes every job for begun.
CAN_RECORD = hasattr(os, "pwrite")


def prepare(descriptor: int, workers: int, *, boxes: int = 0) -> None:
    """Make room for so many workers, so that recording never needs a new block of a disk that is full by then.

    Args:
        descriptor: of the slot file.
        workers: how many.
        boxes: how many of them, from the first, have a black box.

    Raises:
        OSError: the disk is full already.
    """
    if CAN_RECORD:
        os.pwrite(descriptor, _MAGIC + _WORKERS.pack(workers) + bytes(_SEQ.size * workers + _BOX * boxes), _START)


class Recorder:
    """Records what the workers that share it begin. Holds a copy of the descriptor, and with it the lock, until closed.

    On a filesystem whose files cannot be mapped it writes them, and there are no black boxes.

    Args:
        descriptor: of a slot file that was prepared.
    """

    def __init__(self, descriptor: int) -> None:
        self._file: mmap.mmap | None = None
        self._descriptor = -1
        try:
            self._file = mmap.mmap(descriptor, 0)
        except OSError:  # ENODEV, or whatever such a filesystem says
            self._descriptor = os.dup(descriptor)
        _recorders.add(self)

    def record(self, worker: int, seq: int) -> None:
        """Worker number ``worker`` begins job ``seq``."""
        if self._file is None:
            self._write(_FIRST + _SEQ.size * worker, seq)
        else:
            _SEQ.pack_into(self._file, _FIRST + _SEQ.size * worker, seq)

    def _write(self, at: int, seq: int) -> None:
        os.pwrite(self._descriptor, _SEQ.pack(seq), at)

    def box(self, worker: int) -> BlackBox | None:
        """The black box of this worker, emptied; ``None`` where none was prepared."""
        if self._file is None:
            return None
        at = _box_at(self._file[:_FIRST], worker)
        return BlackBox(self._file, at) if at + _BOX <= len(self._file) else None

    def of(self, worker: int) -> Callable[[int], None]:
        """What worker number ``worker`` calls with the ``seq`` of each job that it begins."""
        at = _FIRST + _SEQ.size * worker
        return partial(self._write, at) if self._file is None else partial(_SEQ.pack_into, self._file, at)

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._file is not None:
            self._file.close()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


#: A process that is forked must not keep its parent's lock through the copy of the descriptor in a map.
_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _close_in_the_child() -> None:
    for recorder in list(_recorders):
        recorder.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_the_child)


class BlackBox:
    """What is left of a worker process that is killed: written by it, read by whoever finds it dead.

    Args:
        file: the slot file, mapped.
        at: where in it the box is.
    """

    def __init__(self, file: mmap.mmap, at: int) -> None:
        self._file = file
        self._at = at
        self._since = self._written = 0
        _HEAD.pack_into(file, at, 0, 0, 0.0, 0.0, 0, 0, 0)

    @property
    def closed(self) -> bool:
        """Whether this process has let go of it: a job has forked it."""
        return self._file.closed

    def begin(self, before: float | None) -> None:
        """A job begins: what was logged until now is not its own. Called before it is recorded as begun.

        Args:
            before: CPU seconds that the worker has used; ``None``: about what was said last.
        """
        if self._since != self._written:
            self._since = self._written
            _POSITION.pack_into(self._file, self._at + _SINCE, self._since)
        if before is not None:
            _SECONDS.pack_into(self._file, self._at + _BEFORE, before)

    def share(self) -> None:
        """Several jobs log here at once: what is written from now on comes from `tagged`."""
        _SEQ.pack_into(self._file, self._at + _SHARED, 1)

    def resume(self, before: float) -> None:
        """Of those that share it, one goes on.

        Args:
            before: CPU seconds of the worker that were not this job's.
        """
        _SECONDS.pack_into(self._file, self._at + _BEFORE, before)

    def write(self, text: bytes) -> None:
        """Something was logged; of more than LOG_BYTES the end is kept."""
        text = text[-LOG_BYTES:]
        ring = self._at + _HEAD.size
        place = self._written % _RING
        room = min(_RING - place, len(text))
        self._file[ring + place : ring + place + room] = text[:room]
        self._file[ring : ring + len(text) - room] = text[room:]
        self._written += len(text)  # only when it is there
        _POSITION.pack_into(self._file, self._at + _WRITTEN, self._written)

    def may_run(self, seq: int) -> bool:
        """Whether this job, which is recorded as begun, was not taken back in the same moment (see `take_back`)."""
        only = _SEQ.unpack_from(self._file, self._at + _ONLY)[0]
        return only in (0, seq)

    def reopen(self) -> None:
        """Whatever comes next may be run again."""
        _SEQ.pack_into(self._file, self._at + _ONLY, 0)

    def end(self, used: float, peak: int) -> None:
        """The worker ends by itself in the middle of a job; all its CPU seconds, and its peak memory in bytes."""
        _END.pack_into(self._file, self._at + _AT_END, used, peak)


def tagged(seq: int, text: str) -> str:
    """Lines for a box that is shared, as those of this job."""
    return "".join(f"{seq}\t{line}\n" for line in text.splitlines())


def anew(seq: int) -> str:
    """The line for a box that is shared which says that this job begins once more."""
    return f"{seq}\n"


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────


class Remains(NamedTuple):
    """What one worker has recorded: the ``seq`` that it began last, 0 if none; the CPU seconds it had used before; and
    what else is known of its death."""

    seq: int
    before: float
    death: Death


def read(path: Path) -> dict[int, Death] | None:
    """By ``seq``, what was begun, and what the worker has left behind; ``None`` where nothing can be recorded."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if not data[_START:].startswith(_MAGIC):
        return None
    # From the last: what has no box knows only that the job was begun, and comes behind what has one.
    remains = [_remains(data, worker) for worker in reversed(range(_workers(data)))]
    deaths = {one.seq: one.death for one in remains if one.seq}
    for at in _shared_boxes(data):
        for seq, death in deaths.items():
            if not death.log:
                deaths[seq] = death._replace(log=_log_in(data, at, seq))
    return deaths


def read_worker(descriptor: int, worker: int) -> Remains | None:
    """What this worker has left behind; ``None`` where nothing can have been recorded."""
    data = _prepared(descriptor)
    return None if data is None else _remains(data, worker)


def log_of(descriptor: int, worker: int, seq: int) -> str:
    """The last lines that this job, one of those that share the worker's box, has logged."""
    data = _prepared(descriptor)
    at = 0 if data is None else _box_at(data, worker)
    if data is None or at + _BOX > len(data):
        return ""
    return _log_in(data, at, seq)


def _prepared(descriptor: int) -> bytes | None:
    if not CAN_RECORD:
        return None
    data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    return data if data[_START:].startswith(_MAGIC) else None


def take_back(descriptor: int, worker: int) -> int:
    """Keep a worker from running anything but what it has begun last; returns that ``seq``.

    The worker must be stopped by a signal meanwhile: it records what it begins, and then asks whether it may run it. So
    between the two, too, it is told to run exactly what is seen here.
    """
    head = os.pread(descriptor, _FIRST, 0)
    seq = int(_SEQ.unpack(os.pread(descriptor, _SEQ.size, _FIRST + _SEQ.size * worker))[0])
    os.pwrite(descriptor, _SEQ.pack(seq or _NOTHING), _box_at(head, worker) + _ONLY)
    return seq


def _workers(data: bytes) -> int:
    return int(_WORKERS.unpack_from(data, _START + len(_MAGIC))[0])


def _box_at(data: bytes, worker: int) -> int:
    return _FIRST + _SEQ.size * _workers(data) + _BOX * worker


def _shared_boxes(data: bytes) -> list[int]:
    """Where those boxes begin in which several jobs have logged."""
    places = [_box_at(data, worker) for worker in range(_workers(data))]
    return [at for at in places if at + _BOX <= len(data) and _SEQ.unpack_from(data, at + _SHARED)[0]]


def _remains(data: bytes, worker: int) -> Remains:
    (seq,) = _SEQ.unpack_from(data, _FIRST + _SEQ.size * worker)
    at = _box_at(data, worker)
    if at + _BOX > len(data):
        return Remains(seq, 0.0, Death())
    _, _, before, used, peak, _, _ = _HEAD.unpack_from(data, at)
    death = Death(peak or None, max(0.0, used - before) if used else None, _log_in(data, at, seq))
    return Remains(seq, before, death)


def _log_in(data: bytes, at: int, seq: int) -> str:
    """The last lines of this job in the box that begins here."""
    since, written, *_, shared = _HEAD.unpack_from(data, at)
    lines = _lines(data[at + _HEAD.size : at + _BOX], since, written)
    return "\n".join((_own(lines, seq) if shared else lines)[-LOG_LINES:])


def _lines(ring: bytes, since: int, written: int) -> list[str]:
    """The last lines that were written after ``since``."""
    first = max(since, written - LOG_BYTES)
    start, length = first % _RING, max(0, written - first)
    lines = (ring + ring)[start : start + length].decode("utf-8", "replace").splitlines()
    if first > since and len(lines) > 1:
        del lines[0]  # its beginning is lost
    return lines


def _own(lines: list[str], seq: int) -> list[str]:
    """Of lines from `tagged`, those of this job, since it began last."""
    own: list[str] = []
    for line in lines:
        whose, tab, text = line.partition("\t")
        if whose == str(seq):
            own = [*own, text] if tab else []
    return own
