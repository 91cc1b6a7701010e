"""OS file locks: the writers' turnstile, the slots that show who lives, the election of one housekeeper.

You stand on floor 1, below the storages. They say what is written; this room says who may write now, and who is dead.
All of it is one system call, ``flock``, and its rules:

- A lock belongs to the *open file*, not to the process. Whoever holds a copy of the descriptor (a forked child, a
  worker that was handed one) holds the lock. It ends when the last copy is closed: at the latest by the kernel, when
  the last holder dies, be it by kill -9 or for want of memory.
- ``LOCK_UN`` through any copy frees it for all. So a forked child never unlocks: it closes its copies, at once, in
  `_let_go_in_the_child`.
- Threads that share a descriptor share its lock, therefore a thread lock stands in front.
- Lock files are files of their own. Never lock, or even open, the database here: closing any descriptor of it drops
  SQLite's own locks of the whole process.

Windows has byte-range locks instead (``msvcrt``); `_flock_by_msvcrt` makes them look the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
import weakref
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from liteq.clock import SystemClock
from liteq.errors import StorageBusy, StorageError, StorageUnusable
from liteq.storage.shelter import sheltered

Flock = Callable[[int, int], object]

# The same numbers on every Unix (and in Python's own emulation where the system has no flock).
LOCK_SH, LOCK_EX, LOCK_NB, LOCK_UN = 1, 2, 4, 8

# Who cannot block in the system asks again after this part of the time waited so far, within these bounds (seconds).
# The lock of a busy queue is free for some 30 µs between two writers. Behind four writers of 3 ms each a wait takes
# 17 ms (p99 86) this way, 117 (748) with a pause that doubles up to a millisecond, and 13 (29) in the system's queue.
PATIENCE = 0.001
SHORTEST_PAUSE = 0.00005
LONGEST_PAUSE = 0.001

# Seconds for which a turnstile trusts that its files are still in place. Looking costs half as much as passing.
TRUST = 0.05

# How often a shared lock may be in the way before it counts as held. Somebody who only asks holds it for microseconds.
PROBES_WAITED_OUT = 20

_now = SystemClock.monotonic
_sleep = SystemClock.sleep


def _pause(began: float) -> None:
    """Sleep until it is time to ask again, for one who has waited since ``began``."""
    _sleep(min(max((_now() - began) * PATIENCE, SHORTEST_PAUSE), LONGEST_PAUSE))


# -- the platform ------------------------------------------------------------------------------------------------------


def _flock_by_msvcrt(msvcrt: Any) -> Flock:
    """Make ``flock`` out of Windows' byte-range locks.

    The byte at the file's position is locked: the first, as nobody moves the position. It need not exist. There are no
    shared locks, so a shared one is exclusive too: two who ask at the same moment may see each other. ``LK_LOCK`` gives
    up after ten tries a second apart, hence the own loop.
    """

    def flock(descriptor: int, operation: int) -> None:
        if operation & LOCK_UN:
            with contextlib.suppress(PermissionError):  # was not locked, which flock does not mind
                msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
            return
        began = _now()
        while not _try_byte(descriptor):
            if operation & LOCK_NB:
                raise BlockingIOError(errno.EWOULDBLOCK, "somebody else holds this lock")
            _pause(began)

    def _try_byte(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EDEADLK):
                raise
            return False
        return True

    return flock


def _no_flock(descriptor: int, operation: int) -> None:
    raise StorageUnusable("this platform has neither fcntl nor msvcrt, so no file locks: liteq cannot keep a file here")


def _flock_of_this_platform() -> Flock:
    try:
        return import_module("fcntl").flock  # type: ignore[no-any-return]
    except ImportError:
        pass
    try:
        return _flock_by_msvcrt(import_module("msvcrt"))
    except ImportError:
        return _no_flock


_flock = _flock_of_this_platform()

# Windows refuses to delete an open file.
_OPEN_FILES_CAN_BE_DELETED = os.name != "nt"


# -- forks -------------------------------------------------------------------------------------------------------------

# Whatever holds lock descriptors. A slot is also in `_taken`, so that nothing but `release` or the end of the process
# frees it; a turnstile may be forgotten by its user.
_holders: weakref.WeakSet[Turnstile | Slot | Election] = weakref.WeakSet()
_taken: set[Slot] = set()

# Held while a descriptor is opened and put where the child will find it, and by every fork: no child inherits a lock
# that it does not know of.
_not_forking = threading.Lock()


def _let_go_in_the_child() -> None:
    """Close this child's copies of its parent's lock descriptors. The parent's locks stay locked."""
    _not_forking.release()
    _taken.clear()
    for holder in list(_holders):
        holder._let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_not_forking.acquire, after_in_parent=_not_forking.release, after_in_child=_let_go_in_the_child
    )


# -- small steps -------------------------------------------------------------------------------------------------------


def _open(path: Path) -> int:
    """Open a lock file for writing (closing it then wakes whoever watches), creating it and its directory.

    Returns:
        A descriptor that a program started with exec does not inherit.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(mode=0o700)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _unusable(path: Path, error: OSError) -> StorageError:
    if isinstance(error, StorageError):
        return error
    return StorageUnusable(
        f"cannot use the lock file {path}: {error.strerror or error}. liteq keeps its locks in a directory beside the "
        "queue file, and every process that uses the queue must be able to write there"
    )


def _try_lock(descriptor: int, kind: int) -> bool:
    """Lock without waiting; False if somebody else holds it."""
    try:
        _flock(descriptor, kind | LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_alone(descriptor: int) -> bool:
    """Lock exclusively without waiting for an owner. Others who only ask (shared, for microseconds) are waited out."""
    for _ in range(PROBES_WAITED_OUT):
        if _try_lock(descriptor, LOCK_EX):
            return True
        if not _try_lock(descriptor, LOCK_SH):
            return False
        _flock(descriptor, LOCK_UN)
        _sleep(random.random() * SHORTEST_PAUSE)
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether ``path`` still leads to the open file, and not to nothing or to a new one of the same name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


# -- the turnstile -----------------------------------------------------------------------------------------------------


class Turnstile:
    """Writers take turns: lock A; lock B; unlock A; … work …; unlock B.

    Whoever works holds B; one writer waits for B with A in its hand; all others queue for A. So a writer that has just
    left cannot overtake the next one while that one is being woken, as it does with a single lock (measured: 60 ms at
    worst instead of 17, and seconds with SQLite's own busy handler). Those who queue for A it may still overtake now
    and then.

    Safe between threads and between processes; in a forked child it starts afresh. Not reentrant.

    Args:
        directory: where the lock files ``turn-a`` and ``turn-b`` are. It is created at first use (its parent is not);
            nothing is touched before.
    """

    def __init__(self, directory: Path) -> None:
        self._gates: tuple[int, int] | None = None
        self._files: tuple[os.stat_result, ...] = ()
        self._directory = Path(directory)
        self._flock = _flock
        # Reentrant only because its owner can be told apart, which `_back_out` needs; the turnstile itself is not.
        self._threads = threading.RLock()
        self._trusted_until = 0.0
        #: Whether a thread of this process is inside.
        self.is_taken = False
        self._forked_inside = False
        self._close_on_release = False
        self._peepholes: set[int] = set()
        _holders.add(self)

    def acquire(self, timeout: float | None = None) -> None:
        """Wait for the turn, and take it.

        Args:
            timeout: seconds; ``0``: try once; ``None``: as long as it takes. Other threads run meanwhile, and a signal
                handler that raises ends the wait. A wait with a timeout asks again and again where a wait without one
                stands in the system's queue: under many writers it is served later.

        Raises:
            StorageBusy: not within ``timeout``.
            StorageError: the lock files cannot be used, or were deleted while this process used them (looked for every
                50 ms).
            RuntimeError: this thread is inside already.

        Atomic: after any exception, neither lock is held.
        """
        try:
            if timeout is None:
                self._threads.acquire()
                if self.is_taken:
                    raise RuntimeError(f"this thread holds the turnstile {self._directory} already")
                first, second = self._gates or self._open_gates()
                flock = self._flock
                flock(first, LOCK_EX)
                flock(second, LOCK_EX)
                flock(first, LOCK_UN)
            else:
                self._pass_within(timeout)
            if _now() >= self._trusted_until:
                self._inspect_gates()
            self.is_taken = True
        except BaseException as error:
            self._back_out()
            if isinstance(error, OSError) and not isinstance(error, StorageError):
                raise _unusable(self._directory, error) from error
            raise

    __enter__ = acquire

    def release(self, *_exception: object) -> None:
        """Let the next writer in; arguments are not looked at.

        In a child that was forked inside it does nothing: the turn is the parent's.

        Raises:
            RuntimeError: the turnstile is not held.
        """
        if not self.is_taken:
            self._release_what_is_not_held()
            return
        try:
            self._flock(self._gates[1], LOCK_UN)  # type: ignore[index]  # who is inside has gates
            if self._close_on_release:
                self._close_gates()
        finally:
            self.is_taken = False
            self._threads.release()

    __exit__ = release

    @sheltered
    def barrier(self) -> None:
        """Return once every writer that was inside when this was called has left.

        Takes a shared lock on B alone and drops it, so it does not queue with those who want to write. Where nobody has
        written yet it returns at once, and creates nothing.

        Raises:
            StorageError: the lock file cannot be opened, or not locked.
            RuntimeError: this thread is inside itself.
        """
        if self.is_taken and self.is_mine():
            raise RuntimeError(f"this thread holds the turnstile {self._directory}: it would wait for itself")
        path = self._directory / "turn-b"
        try:
            self._look_through(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unusable(path, error) from error

    def is_mine(self) -> bool:
        """Whether it is this very thread that is inside.

        An exception that strikes at the very first step of `release`, from a signal handler, leaves the turnstile held.
        Whoever comes after it in this thread asks, and releases. (What one thread throws into another does not strike
        there: see `liteq.storage.shelter`.)
        """
        if not self._threads.acquire(blocking=False):
            return False
        self._threads.release()
        return self.is_taken

    def close(self) -> None:
        """Give the descriptors back; a thread that is inside does it when it leaves. Idempotent; `acquire` reopens."""
        if not self._threads.acquire(blocking=False):
            self._close_on_release = True
            return
        try:
            if self.is_taken:
                self._close_on_release = True
            else:
                self._close_gates()
        finally:
            self._threads.release()

    def __del__(self) -> None:
        self._close_gates()

    def _look_through(self, path: Path) -> None:
        # A descriptor of its own each time (about 4 µs): locking a shared one would change the lock of whoever works.
        with _not_forking:
            peephole = os.open(path, os.O_RDONLY)
            self._peepholes.add(peephole)
        try:
            _flock(peephole, LOCK_SH)
            _flock(peephole, LOCK_UN)  # closing is not enough: a child forked meanwhile has a copy
        finally:
            self._peepholes.discard(peephole)
            os.close(peephole)

    def _open_gates(self) -> tuple[int, int]:
        with _not_forking:
            first = _open(self._directory / "turn-a")
            try:
                second = _open(self._directory / "turn-b")
            except BaseException:
                os.close(first)
                raise
            self._gates = first, second
            self._files = os.fstat(first), os.fstat(second)
        return self._gates

    def _close_gates(self) -> None:
        gates, self._gates = self._gates, None
        self._close_on_release = False
        for gate in gates or ():
            os.close(gate)

    def _pass_within(self, timeout: float) -> None:
        deadline = _now() + timeout
        busy = StorageBusy(f"somebody else kept the write lock in {self._directory} for more than {timeout:g} s")
        if not self._threads.acquire(timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX)):
            raise busy
        if self.is_taken:
            raise RuntimeError(f"this thread holds the turnstile {self._directory} already")
        first, second = self._gates or self._open_gates()
        for gate in (first, second):
            began = _now()
            while not _try_lock(gate, LOCK_EX):
                if _now() >= deadline:
                    raise busy
                _pause(began)
        self._flock(first, LOCK_UN)

    def _inspect_gates(self) -> None:
        """Find out whether the lock files are still the ones that a new process would open."""
        gates = self._gates or self._open_gates()
        if all(_is_at(gate, self._directory / name) for gate, name in zip(gates, ("turn-a", "turn-b"), strict=True)):
            self._trusted_until = _now() + TRUST
            return
        for gate, file in zip(gates, self._files, strict=True):
            if os.path.samestat(os.fstat(gate), file):
                os.close(gate)
            else:  # somebody closed it behind our back, and the number is another file now, which is not ours to close
                self._flock(gate, LOCK_UN)
        self._gates = None
        raise StorageError(
            f"the lock files in {self._directory} were deleted while this process used them; nothing was written. They "
            "must stay for as long as any process uses the queue. The next call makes new ones"
        )

    def _back_out(self) -> None:
        """Undo an acquire that was cut short, wherever that was: a signal may have struck between any two steps."""
        if not self._threads.acquire(blocking=False):
            return  # another thread is inside, so this one had not even begun
        try:
            if not self.is_taken and self._gates is not None:
                for gate in self._gates:
                    self._flock(gate, LOCK_UN)
                if self._close_on_release:
                    self._close_gates()
        except OSError:
            self._gates = None  # closed behind our back: these numbers may be other files by now
        finally:
            self._threads.release()
            with contextlib.suppress(RuntimeError):  # it was cut short before it had this lock
                self._threads.release()

    def _release_what_is_not_held(self) -> None:
        if not self._forked_inside:
            raise RuntimeError(f"the turnstile {self._directory} is not held")
        self._forked_inside = False

    def _let_go(self) -> None:
        """In a forked child: close the parent's descriptors, and start afresh."""
        self._forked_inside = self.is_taken and self.is_mine()
        self._threads = threading.RLock()
        self.is_taken = False
        self._close_gates()
        while self._peepholes:
            os.close(self._peepholes.pop())


# -- slots -------------------------------------------------------------------------------------------------------------


class Slot:
    """An exclusive lock on a file of its own, held for as long as its process lives, and the workers it lent it to.

    Whoever can lock the file of a slot knows that its owner is dead. Made by `take` or `try_take`. It ends with
    `release` or with the process, never by being forgotten. A forked child does not hold it: the child's copy is closed
    at once, and its slot is empty.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor
        _holders.add(self)
        _taken.add(self)

    @classmethod
    def take(cls, path: Path) -> Slot:
        """Create the file, and its directory (not the directory's parent), and lock it.

        Raises:
            StorageError: somebody else holds it, or it cannot be created.
        """
        path = Path(path)
        try:
            slot = cls._lock(path, lambda: _open(path))
        except OSError as error:
            raise _unusable(path, error) from error
        if slot is None:
            raise StorageError(f"somebody else holds {path}: two owners may not share one slot")
        return slot

    @classmethod
    def try_take(cls, path: Path) -> Slot | None:
        """Lock a file that exists, for instance a dead owner's, to be the only one who cleans up after it.

        Returns:
            The slot; ``None`` while somebody holds it, and where there is no such file.

        Raises:
            StorageError: the file cannot be opened.
        """
        path = Path(path)
        try:
            # Opened for reading: closing it then wakes nobody, or those who look for the dead would wake each other.
            return cls._lock(path, lambda: os.open(path, os.O_RDONLY))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unusable(path, error) from error

    @classmethod
    def _lock(cls, path: Path, open_file: Callable[[], int]) -> Slot | None:
        while True:
            with _not_forking:
                slot = cls(path, open_file())
            try:
                alone = _lock_alone(slot.fileno())
                if alone and slot.is_intact():
                    return slot
            except BaseException:
                slot._close()
                raise
            slot._close()
            if not alone:
                return None
            # The last holder deleted the file after it was opened here: look again.

    def fileno(self) -> int:
        """The descriptor that holds the lock.

        A program started with it (``pass_fds``, ``multiprocessing.reduction.DupFd``, a Unix socket) shares the lock. A
        plain fork does not: see `lend`.

        Raises:
            StorageError: released, or inherited through a fork.
        """
        if self._descriptor is None:
            raise StorageError(f"the slot {self.path} is not held by this process")
        return self._descriptor

    def lend(self) -> int:
        """A copy of the descriptor that a forked child keeps. The caller closes its own after the fork."""
        return os.dup(self.fileno())

    def is_intact(self) -> bool:
        """Whether it is held and its file is in place. If somebody deleted that, others take this owner for dead."""
        return self._descriptor is not None and _is_at(self._descriptor, self.path)

    def release(self, remove: bool = True) -> None:
        """Give the slot up. Idempotent. It stays locked while a worker that it was lent to lives.

        Args:
            remove: delete the file, before the lock is dropped, so that nobody finds a file without an owner.

        Raises:
            StorageError: the file cannot be deleted; the lock is dropped nevertheless.
        """
        try:
            if remove and self.is_intact():
                self._delete()
        except OSError as error:
            raise _unusable(self.path, error) from error
        finally:
            self._close()

    def _delete(self) -> None:
        if _OPEN_FILES_CAN_BE_DELETED:
            self.path.unlink(missing_ok=True)
            return
        self._close()
        with contextlib.suppress(PermissionError):  # somebody looks at it right now, and sees that it is dead
            self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        """Close and forget, without unlocking: the workers it was lent to hold it still."""
        descriptor, self._descriptor = self._descriptor, None
        _taken.discard(self)
        if descriptor is not None:
            os.close(descriptor)

    _let_go = _close


@sheltered
def is_dead(path: Path) -> bool:
    """Whether nobody holds the slot at ``path``: the file is missing, or its lock can be had. Leaves no trace.

    Right after a `Change.SLOTS` the answer may still be False for some microseconds: the kernel announces that a file
    was closed just before it drops its lock.

    Raises:
        StorageError: the file cannot be opened; whether its owner lives is then unknown.
    """
    path = Path(path)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        # Shared, so that two who ask at once do not take each other for the owner; and unlocked before it is closed, as
        # a child forked in between has a copy.
        dead = _try_lock(descriptor, LOCK_SH)
        _flock(descriptor, LOCK_UN)
    finally:
        os.close(descriptor)
    return dead


# -- one housekeeper ---------------------------------------------------------------------------------------------------


class Election:
    """Elects one of many processes (or objects) to do what only one should do. Whoever dies loses its office.

    Threads may share one, as the consumers of one app do: the office is theirs together.

    Args:
        path: the file to lock, created at first use (with its directory) and never deleted. Not among the slots:
            every candidate that loses would wake those who watch them.
    """

    def __init__(self, path: Path) -> None:
        # Two threads that tried to win at once would stand in each other's way, and forget an office that one of them
        # has: nobody could be elected any more while this process lives.
        self._trying = threading.Lock()
        self._office: Slot | None = None
        self._path = Path(path)
        _holders.add(self)

    def win(self) -> bool:
        """Whether the office is this object's, now; it tries to get it if not. Never waits for an owner.

        Raises:
            StorageError: the file cannot be used.
        """
        with self._trying:
            if self._office is not None and self._office.is_intact():
                return True
            self._leave()
            try:
                self._office = Slot._lock(self._path, lambda: _open(self._path))
            except OSError as error:
                raise _unusable(self._path, error) from error
            return self._office is not None

    def resign(self) -> None:
        """Leave the office to others. Idempotent."""
        with self._trying:
            self._leave()

    def _leave(self) -> None:
        office, self._office = self._office, None
        if office is not None:
            office.release(remove=False)

    def _let_go(self) -> None:
        """In a forked child, where no other thread goes on trying."""
        self._trying = threading.Lock()

    def __del__(self) -> None:
        self._leave()
