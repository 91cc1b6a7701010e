"""Wake-ups: how a consumer or a waiting caller learns that something was written, or that a consumer died.

You stand on floor 1, below the storages. A `Watch` says that it is worth looking; it never says what there is to see,
and it may cry wolf. Whoever waits does this, in this order: drain (`changed`), look, `wait`. What is written after the
draining ends the wait, so nothing is missed. An event comes when a writer *begins* to write: take the write lock, or
pass the turnstile's barrier, before looking.

======== ============================================== ==================================================
kind     data                                           a consumer that died
======== ============================================== ==================================================
inotify  event on each write to the ``-wal`` file       event when the last holder of a slot file is gone
kqueue   the same                                       only when its slot file is removed
polling  times and sizes of the files, 0.02 to 0.2 s    only when its slot file is removed
bell     `Bell.ring`, inside one process                `Bell.ring`
======== ============================================== ==================================================

Consumers recover the dead every few seconds anyway, and every waiter looks once in a while without being told.

The database, ``-wal`` and ``-shm`` are never opened here (but see `KqueueWatch`): closing any descriptor of them drops
SQLite's own locks of the whole process.

A watch belongs to one waiter in one process. In a forked child the kernel's watches are closed, as reading there would
steal the parent's events; a `BellWatch` and a `Waker` start afresh.
"""

from __future__ import annotations

import errno
import math
import os
import select
import struct
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import Any, NamedTuple, Self

from liteq.clock import Clock, SystemClock
from liteq.errors import ConfigurationError, StorageError
from liteq.storage.waker import Waker, of_this_process

# Seconds between two looks of a poller: at first, and after a while without a change.
FAST, SLOW = 0.02, 0.2

# Seconds. Systems have a longest wait; this is below all of them.
LONGEST_DOZE = 3600.0

# A file's time comes from a clock that ticks every 1 to 10 ms. Within two such ticks of a write, another one may leave
# time and size as they were.
TICKS = 0.02


class Change(IntFlag):
    """What may have happened."""

    NOTHING = 0
    DATA = 1
    SLOTS = 2


EVERYTHING = Change.DATA | Change.SLOTS

#: By their values: members of an IntFlag are put together ten times as slowly as plain numbers.
_CHANGES = tuple(Change(value) for value in range(EVERYTHING + 1))


class Watch(ABC):
    """Tells one waiter when it is worth looking."""

    #: ``None`` while `fileno` gives events. Otherwise ask `changed` at least this often, in seconds. It may vary.
    poll_interval: float | None = None

    _clock: Clock = SystemClock()

    @abstractmethod
    def fileno(self) -> int | None:
        """A descriptor that becomes readable when something may have changed; ``None``: there is none, or closed."""

    @abstractmethod
    def changed(self) -> Change:
        """What may have changed since the last call (or since the watch was made). Never waits.

        Raises:
            StorageError: the watch is closed, or was inherited through a fork.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of everything. Idempotent."""

    def wait(self, timeout: float | None = None) -> Change:
        """Wait until something may have changed.

        Args:
            timeout: seconds; ``None``: for ever; ``0``: the same as `changed`.

        Returns:
            What may have changed; `Change.NOTHING` after ``timeout``. A signal handler that raises ends the wait.

        Raises:
            StorageError: the watch is closed.
        """
        deadline = math.inf if timeout is None else self._clock.monotonic() + timeout
        while True:
            change = self.changed()
            left = deadline - self._clock.monotonic()
            if change or left <= 0:
                return change
            self._doze(min(left, LONGEST_DOZE))

    def _doze(self, longest: float) -> None:
        """Sleep until the next event, or the next look of a poller, or for ``longest`` seconds."""
        if self.poll_interval is not None:
            longest = min(longest, self.poll_interval)
        descriptor = self.fileno()
        if descriptor is None:
            self._clock.sleep(longest)
        else:
            _wait_readable(descriptor, longest)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _wait_readable(descriptor: int, longest: float) -> None:
    if not hasattr(select, "poll"):  # Windows, where the descriptor is a socket's
        select.select([descriptor], [], [], longest)
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll(math.ceil(longest * 1000))


def _wal_of(database: Path) -> Path:
    return Path(os.path.realpath(database) + "-wal")  # SQLite follows symbolic links too


def _no_longer_open() -> StorageError:
    return StorageError("this watch is closed, or was inherited through a fork: ask the storage for a new one")


# -- Linux -------------------------------------------------------------------------------------------------------------

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_UNMOUNT = 0x2000
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x1000000

# A watch is on the file, not on its name. These say that the name may lead elsewhere now (ATTRIB: a link was removed).
MOVED_AWAY = IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT | IN_IGNORED

WAL_EVENTS = IN_MODIFY | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF
DIRECTORY_EVENTS = IN_CREATE | IN_MOVED_TO | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR
SLOTS_EVENTS = IN_CLOSE_WRITE | IN_DELETE | IN_MOVED_FROM | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR

_EVENT = struct.Struct("iIII")
_BUFFER = 4096  # usually it is one event, and there is a look at every turn
_LONGEST_EVENT = _EVENT.size + 256


class Event(NamedTuple):
    """One record of inotify(7): which watch, what happened, to which entry of a directory (``b""``: to itself)."""

    watch: int
    mask: int
    name: bytes


def parse_events(data: bytes) -> Iterator[Event]:
    """Take apart what was read from an inotify descriptor."""
    offset = 0
    while offset < len(data):
        watch, mask, _cookie, length = _EVENT.unpack_from(data, offset)
        offset += _EVENT.size
        yield Event(watch, mask, data[offset : offset + length].rstrip(b"\0"))
        offset += length


@dataclass(slots=True)
class _Watched:
    """A path, the events asked for, what they mean, and the number of the watch while there is one."""

    path: bytes
    events: int
    meaning: Change
    number: int | None = None


class _Inotify:
    """inotify(7) through ctypes: the system calls and no more.

    Raises:
        OSError: ``EMFILE``: the user's instances (often 128) are used up.
        ImportError, AttributeError: no ctypes, or a C library without inotify.
    """

    def __init__(self) -> None:
        self.descriptor = -1
        import ctypes  # 10 ms that only a waiter should pay

        library = ctypes.CDLL(None, use_errno=True)
        self._last_error = ctypes.get_errno
        self._add_watch = library.inotify_add_watch
        self._add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
        self._remove_watch = library.inotify_rm_watch
        self.descriptor = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise OSError(self._last_error(), os.strerror(self._last_error()))

    def arm(self, watched: _Watched) -> Change:
        """Watch a file or directory.

        Returns:
            Its meaning, as it may have changed before; `Change.NOTHING`: there is no such file.

        Raises:
            OSError: not readable, or (``ENOSPC``) the user's watches are used up.
        """
        number: int = self._add_watch(self.descriptor, watched.path, watched.events)
        if number >= 0:
            watched.number = number
            return watched.meaning
        error = self._last_error()
        if error in (errno.ENOENT, errno.ENOTDIR):
            return Change.NOTHING
        raise OSError(error, os.strerror(error), os.fsdecode(watched.path))

    def disarm(self, watched: _Watched) -> None:
        """Stop watching. The kernel may have done so already, because the file is gone: its answer does not matter."""
        number, watched.number = watched.number, None
        if number is not None:
            self._remove_watch(self.descriptor, number)

    def read(self) -> Iterator[Event]:
        """What has happened, without waiting."""
        while True:
            try:
                data = os.read(self.descriptor, _BUFFER)
            except BlockingIOError:
                return
            yield from parse_events(data)
            if len(data) < _BUFFER - _LONGEST_EVENT:  # it was all there was
                return

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close


class InotifyWatch(Watch):
    """Linux: sleeps until the kernel reports a write to the ``-wal`` file, or the end of a slot's last holder.

    The ``-wal`` file is deleted when the last connection closes, and created anew. While it is missing the database's
    directory is watched for its return; while it is there the directory is not, as others may be busy in it.

    Args:
        database: the database file; it need not exist.
        slots: the directory of the slot files. The caller creates it (`Slot.take` does); while it is missing each
            `changed` looks for it again.
        journal: watch this file instead, which takes the part of the ``-wal`` file; ``database`` does not matter.

    Raises:
        OSError, ImportError, AttributeError: inotify cannot be used here. (When it stops working later, because the
            user's watches are used up or the directory is gone, ``poll_interval`` is set and each look reports a
            change, until it works again.)
    """

    def __init__(self, database: Path, slots: Path, journal: Path | None = None) -> None:
        self._inotify: _Inotify | None = None
        wal = journal or _wal_of(database)
        self._wal = _Watched(os.fsencode(wal), WAL_EVENTS, Change.DATA)
        self._directory = _Watched(os.fsencode(wal.parent), DIRECTORY_EVENTS, Change.NOTHING)
        self._slots = _Watched(os.fsencode(slots), SLOTS_EVENTS, Change.SLOTS)
        inotify = _Inotify()
        try:
            self._arm(inotify)
        except BaseException:
            inotify.close()
            raise
        self._inotify = inotify
        of_this_process.add(self)

    def fileno(self) -> int | None:
        return None if self._inotify is None else self._inotify.descriptor

    def changed(self) -> Change:
        inotify = self._inotify
        if inotify is None:
            raise _no_longer_open()
        change = 0
        for event in inotify.read():
            change |= int(self._meaning(event, inotify))
        if self._wal.number is None or self._slots.number is None:
            change |= int(self._arm_again(inotify))
        return _CHANGES[change]

    def close(self) -> None:
        inotify, self._inotify = self._inotify, None
        if inotify is not None:
            inotify.close()

    _let_go = close

    def _meaning(self, event: Event, inotify: _Inotify) -> Change:
        if event.mask & IN_Q_OVERFLOW:  # anything may have been lost, the news of a deleted file too
            inotify.disarm(self._wal)
            inotify.disarm(self._slots)
            return EVERYTHING
        for watched in (self._wal, self._slots, self._directory):
            if event.watch == watched.number:
                if event.mask & MOVED_AWAY:
                    inotify.disarm(watched)
                return watched.meaning
        return Change.NOTHING  # late news of a watch that was given up

    def _arm_again(self, inotify: _Inotify) -> Change:
        try:
            return self._arm(inotify)
        except OSError:  # the user's watches are used up: poll until one is free
            self.poll_interval = SLOW
            return EVERYTHING

    def _arm(self, inotify: _Inotify) -> Change:
        """Watch whatever is there and is not watched yet: it may have changed meanwhile."""
        change = Change.NOTHING
        if self._slots.number is None:
            change |= inotify.arm(self._slots)
        if self._wal.number is None:
            change |= self._arm_wal(inotify)
        blind = self._wal.number is None and self._directory.number is None
        self.poll_interval = SLOW if blind else None
        return change | Change.DATA if blind else change

    def _arm_wal(self, inotify: _Inotify) -> Change:
        change = inotify.arm(self._wal)
        if not change and self._directory.number is None:
            inotify.arm(self._directory)
            change = inotify.arm(self._wal)  # it may have been created in between
        if change:
            inotify.disarm(self._directory)
        return change


# -- macOS and the BSDs ------------------------------------------------------------------------------------------------

# The Unix half of `select` that type checkers on other systems do not know.
_kernel: Any = select

# In a forked child a kqueue does not exist, and its number may soon be another file: never close it, so keep it.
_abandoned: list[Any] = []


class KqueueWatch(Watch):
    """macOS and the BSDs: sleeps until the kernel reports a write to the ``-wal`` file, or that a slot was removed.

    The kernel does not report here that a file was closed: a consumer that is killed is found by the next recovery.

    Args:
        database: the database file; it need not exist.
        slots: the directory of the slot files; while it is missing each `changed` looks for it again.
        journal: watch this file instead, which takes the part of the ``-wal`` file.

    Raises:
        OSError, AttributeError: kqueue cannot be used here.
    """

    def __init__(self, database: Path, slots: Path, journal: Path | None = None) -> None:
        self._queue: Any = None
        self._open: dict[Path, int] = {}
        wal = journal or _wal_of(database)
        self._directory = wal.parent
        self._meanings = {wal.parent: Change.NOTHING, wal: Change.DATA, Path(slots): Change.SLOTS}
        self._queue = _kernel.kqueue()
        of_this_process.add(self)
        try:
            self._arm()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int | None:
        return None if self._queue is None else self._queue.fileno()

    def changed(self) -> Change:
        if self._queue is None:
            raise _no_longer_open()
        change = Change.NOTHING
        for event in self._queue.control(None, 64, 0):
            change |= self._meaning(event)
        return change | self._arm()

    def close(self) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.close()
        self._close_files()

    __del__ = close

    def _let_go(self) -> None:
        _abandoned.append(self._queue)
        self._queue = None
        self._close_files()

    def _close_files(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def _meaning(self, event: Any) -> Change:
        for path, descriptor in self._open.items():
            if descriptor == event.ident:
                if event.fflags & (_kernel.KQ_NOTE_DELETE | _kernel.KQ_NOTE_RENAME):
                    os.close(self._open.pop(path))
                return self._meanings[path]
        return Change.NOTHING  # late news of a file that is closed

    def _arm(self) -> Change:
        """Watch whatever is there and is not watched yet, the directory first; it may have changed meanwhile."""
        change = Change.NOTHING
        for path, meaning in self._meanings.items():
            if path not in self._open and self._arm_one(path):
                change |= meaning
        blind = self._directory not in self._open
        self.poll_interval = SLOW if blind else None
        return change | Change.DATA if blind else change

    def _arm_one(self, path: Path) -> bool:
        # The -wal too is opened here, for reading. That is harmless: SQLite's locks are on the database and the -shm.
        try:
            descriptor = os.open(path, getattr(os, "O_EVTONLY", os.O_RDONLY))
        except (FileNotFoundError, NotADirectoryError):
            return False
        self._open[path] = descriptor
        events = _kernel.KQ_NOTE_WRITE | _kernel.KQ_NOTE_EXTEND | _kernel.KQ_NOTE_DELETE | _kernel.KQ_NOTE_RENAME
        flags = _kernel.KQ_EV_ADD | _kernel.KQ_EV_CLEAR
        self._queue.control([_kernel.kevent(descriptor, _kernel.KQ_FILTER_VNODE, flags, events)], 0, 0)
        return True


# -- anywhere ----------------------------------------------------------------------------------------------------------


class _Trace(NamedTuple):
    """What a look at a file shows without opening it."""

    inode: int
    modified: int
    size: int


def _look_at(path: Path) -> _Trace | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"cannot watch {path}: {error.strerror}") from error
    return _Trace(status.st_ino, status.st_mtime_ns, status.st_size)


class PollingWatch(Watch):
    """Anywhere: looks at times and sizes of the files now and then.

    Args:
        database: the database file; it need not exist.
        slots: the directory of the slot files; it need not exist.
        interval: seconds between two looks while things happen. After a while without a change it is a tenth of that
            while, up to ``slowest``.
        slowest: seconds.
        clock: for tests.

    Raises:
        StorageError: a directory on the way may not be entered (also from `changed`).
    """

    def __init__(
        self,
        database: Path,
        slots: Path,
        interval: float = FAST,
        slowest: float = SLOW,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._aspects = {Change.DATA: (_wal_of(database), Path(database)), Change.SLOTS: (Path(slots),)}
        self._clock = clock or SystemClock()
        self._fastest, self._slowest = interval, slowest
        self._seen: dict[Path, _Trace | None] = {}
        self._unsettled = Change.NOTHING
        self._closed = False
        self._look()
        self._changed_at = self._clock.monotonic()
        self.poll_interval = interval

    def fileno(self) -> None:
        return None

    def changed(self) -> Change:
        if self._closed:
            raise _no_longer_open()
        now = self._clock.monotonic()
        change = self._unsettled | self._look()
        if change:
            self._changed_at = now
        self.poll_interval = min(max((now - self._changed_at) / 10, self._fastest), self._slowest)
        return change

    def close(self) -> None:
        self._closed = True

    def _look(self) -> Change:
        change = self._unsettled = Change.NOTHING
        now = self._clock.now()
        for aspect, paths in self._aspects.items():
            for path in paths:
                trace = _look_at(path)
                if trace != self._seen.get(path):
                    change |= aspect
                if trace is not None and abs(now - trace.modified / 1e9) < TICKS:
                    self._unsettled |= aspect
                self._seen[path] = trace
        return change


# -- inside one process ------------------------------------------------------------------------------------------------


class Bell:
    """Wakes every `BellWatch` that was made for it, in this process. Safe between threads, and after a fork."""

    def __init__(self) -> None:
        self._guard = threading.RLock()
        self._watches: tuple[BellWatch, ...] = ()
        of_this_process.add(self)

    def ring(self, change: Change = Change.DATA) -> None:
        """Tell all watches. Never waits.

        Args:
            change: what may have changed.
        """
        for watch in self._watches:
            watch._ring(change)

    def _let_go(self) -> None:
        self._guard = threading.RLock()

    def _add(self, watch: BellWatch) -> None:
        with self._guard:
            self._watches = (*self._watches, watch)

    def _remove(self, watch: BellWatch) -> None:
        with self._guard:
            self._watches = tuple(other for other in self._watches if other is not watch)


class BellWatch(Watch):
    """Inside one process: woken by a `Bell`. The bell knows it until it is closed.

    Raises:
        OSError: no descriptors are left.
    """

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._pending = Change.NOTHING
        self._closed = False
        self._guard = threading.RLock()
        self._waker = Waker()
        of_this_process.add(self)
        bell._add(self)

    def fileno(self) -> int | None:
        return None if self._closed else self._waker.fileno()

    def changed(self) -> Change:
        with self._guard:
            if self._closed:
                raise _no_longer_open()
            if not self._pending:
                return Change.NOTHING
            self._waker.clear()
            change, self._pending = self._pending, Change.NOTHING
            return change

    def close(self) -> None:
        with self._guard:
            self._closed = True
            self._waker.close()
        self._bell._remove(self)

    def _ring(self, change: Change) -> None:
        with self._guard:
            if not self._pending:
                self._waker.wake()
            self._pending |= change

    def _let_go(self) -> None:
        self._guard = threading.RLock()
        self._pending = Change.NOTHING


# -- the choice --------------------------------------------------------------------------------------------------------

_KINDS: dict[str, type[InotifyWatch] | type[KqueueWatch] | type[PollingWatch]] = {
    "inotify": InotifyWatch,
    "kqueue": KqueueWatch,
    "polling": PollingWatch,
}


def watch_database(database: Path, slots: Path, *, kind: str | None = None) -> Watch:
    """Watch a database in WAL mode with the best means there is.

    Args:
        database: the database file; it need not exist.
        slots: the directory of the consumers' slot files; it need not exist.
        kind: ``"inotify"``, ``"kqueue"`` or ``"polling"``; ``None``: the first that works here. Polling always does,
            also when the user's inotify instances are used up.

    Raises:
        StorageError: the ``kind`` asked for does not work here.
        ConfigurationError: there is no such kind.
    """
    if kind is not None:
        return _watch_by(kind, database, slots)
    for candidate in ("inotify",) if sys.platform == "linux" else ("kqueue",):
        try:
            return _KINDS[candidate](database, slots)
        except (OSError, ImportError, AttributeError):
            continue
    return PollingWatch(database, slots)


def watch_file(journal: Path, slots: Path) -> Watch:
    """Watch a file that is appended to, and replaced now and then, with the best means there is.

    Args:
        journal: the file; it need not exist.
        slots: the directory of the consumers' slot files; it need not exist.
    """
    place = Path(os.path.realpath(journal.parent)) / journal.name
    for candidate in ("inotify",) if sys.platform == "linux" else ("kqueue",):
        try:
            return InotifyWatch(place, slots, place) if candidate == "inotify" else KqueueWatch(place, slots, place)
        except (OSError, ImportError, AttributeError):
            continue
    return PollingWatch(place, slots)


def _watch_by(kind: str, database: Path, slots: Path) -> Watch:
    if kind not in _KINDS:
        raise ConfigurationError(f"kind={kind!r}: a database is watched by one of {', '.join(_KINDS)}")
    try:
        return _KINDS[kind](database, slots)
    except (OSError, ImportError, AttributeError) as error:
        raise StorageError(f"cannot watch {database} by {kind}: {error}") from error
