"""Waiting for jobs to finish: one watcher per app, however many callers wait.

A caller registers a job and is called back once it is neither waiting nor running. A thread, started with the first
waiter and gone soon after the last, sleeps until the storage says that something was written, then asks one question
for all of them.

Protocol, so that nothing is missed: the watch is armed, then the question asked. When the watch wakes, a write may
still be under way (the file changes before its commit is visible), so the watcher passes the storage's barrier before
it asks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from liteq.clock import SystemClock
from liteq.storage.base import Storage

if TYPE_CHECKING:  # a program that waits for nothing never loads what waiting takes
    from liteq.clock import Clock
    from liteq.deadlock import Parents
    from liteq.storage.waker import Waker
    from liteq.storage.watch import Watch

#: Seconds between two questions where no wake-up came; only a missed one makes this matter.
SAFETY_POLL = 1.0
#: Seconds the thread stays after its last waiter left.
LINGER = 5.0
#: On a busy file nearly every wake-up is about other jobs. After this many in vain, the next question waits a little.
PATIENCE = 8
SHORTEST_PAUSE, LONGEST_PAUSE = 0.0005, 0.005
#: While the storage answers but cannot be watched, everybody asks for himself: so long after the last time, doubled
#: from the first to the last.
FIRST_BREATH, LAST_BREATH = 0.01, 1.0

Callback = Callable[[], None]
P = ParamSpec("P")
T = TypeVar("T")


class Waiters:
    """Callers that wait for jobs of one storage. Safe to share between threads; a forked child starts with none.

    Args:
        storage: tells of writes.
        ask: which of these have what they wait for; ``None``: they are jobs, and wait for their end.
    """

    def __init__(self, storage: Storage, ask: Callable[[list[int]], set[int]] | None = None) -> None:
        self._storage = storage
        self._ask = ask or (lambda seqs: storage.finished(seqs))
        self._parents: Parents | None = None
        self._reset()

    def parents(self, clock: Clock) -> Parents:
        """Who watches over the jobs among the callers."""
        return _in_shelter(self._make_parents, clock)

    def _make_parents(self, clock: Clock) -> Parents:
        if self._pid != os.getpid():
            self._reset()
        if self._parents is None:
            from liteq.deadlock import Parents

            with self._lock:
                self._parents = self._parents or Parents(self._storage, clock)
        return self._parents

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._waiting: dict[int, list[Callback]] = {}
        self._thread: threading.Thread | None = None
        self._waker: Waker | None = None
        self._failures = 0

    def add(self, seq: int, callback: Callback) -> None:
        """Call back, on the watcher's thread, once job ``seq`` has finished or is gone."""
        _in_shelter(self._add, seq, callback)

    def _add(self, seq: int, callback: Callback) -> None:
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            self._waiting.setdefault(seq, []).append(callback)
            if self._thread is None:
                from liteq.storage.waker import Waker

                self._waker = Waker()
                self._thread = threading.Thread(
                    target=self._watch, args=(self._waker,), name="liteq-waiters", daemon=True
                )
                self._thread.start()
            elif self._waker is not None:
                self._waker.wake()

    def discard(self, seq: int, callback: Callback) -> None:
        """Do not call back (any more)."""
        _in_shelter(self._discard, seq, callback)

    def _discard(self, seq: int, callback: Callback) -> None:
        with self._lock:
            callbacks = self._waiting.get(seq)
            if callbacks is not None and callback in callbacks:
                callbacks.remove(callback)
                if not callbacks:
                    del self._waiting[seq]

    def close(self) -> None:
        """Stop the thread; whoever still waits is called back, and will find the job unfinished."""
        if self._parents is not None:
            self._parents.close()
        if self._pid != os.getpid():
            return
        with self._lock:
            thread, waker = self._thread, self._waker
            self._thread = None
            left, self._waiting = self._waiting, {}
            if waker is not None and thread is not None:
                waker.wake()
        _call(left)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _watch(self, waker: Waker) -> None:
        try:
            with self._storage.watch() as watch:
                self._look_again_and_again(watch, waker)
        except OSError as error:  # a StorageError is one
            # Whoever waits will ask the storage himself, and raise what is wrong where it can be seen. Who comes back
            # unharmed has found it working, and would start the next thread at once.
            self._failures += 1
            if self._failures > 1:
                self._take_breath(waker, error)
            with self._lock:
                if self._thread is threading.current_thread():
                    self._thread = None
                left, self._waiting = self._waiting, {}
            _call(left)
        finally:
            waker.close()

    def _take_breath(self, waker: Waker, error: OSError) -> None:
        """Sleep, longer each time, unless it is stopped; say why when it begins."""
        if self._failures == 2:
            from liteq import logs

            message = "finished jobs cannot be waited for; until that works again, each is asked for now and then"
            logs.say(logs.WARNING, message, error=error)
        ends = SystemClock.monotonic() + min(FIRST_BREATH * 2 ** min(self._failures - 2, 10), LAST_BREATH)
        while (left := ends - SystemClock.monotonic()) > 0 and self._goes_on(None):
            waker.clear()
            _wait_any(None, waker, left)

    def _look_again_and_again(self, watch: Watch, waker: Waker) -> None:
        in_vain, alone_since = 0, None
        while self._goes_on(alone_since):
            # In this order: what is written after the draining wakes the wait below, what was being written before it
            # is passed at the barrier.
            waker.clear()
            watch.changed()
            if self._waiting:
                self._storage.barrier()
                in_vain, alone_since = 0 if self._tell() else in_vain + 1, None
                self._failures = 0
            elif alone_since is None:
                alone_since = SystemClock.monotonic()
            if in_vain > PATIENCE:
                _wait_any(None, waker, pause_after(in_vain))
            _wait_any(watch, waker, SAFETY_POLL if self._waiting else LINGER)

    def _goes_on(self, alone_since: float | None) -> bool:
        """False, and no thread any more, if it was stopped or nobody has waited for a while."""
        with self._lock:
            if self._thread is not threading.current_thread():
                return False
            if alone_since is not None and not self._waiting and SystemClock.monotonic() - alone_since >= LINGER:
                self._thread = None
                return False
            return True

    def _tell(self) -> bool:
        """Ask once for all; True if somebody was called back."""
        with self._lock:
            asked = list(self._waiting)
        done = self._ask(asked)
        with self._lock:
            told = {seq: self._waiting.pop(seq) for seq in done if seq in self._waiting}
        _call(told)
        return bool(told)


def pause_after(in_vain: int) -> float:
    """How long to look away, in seconds, after so many questions in vain, more than PATIENCE."""
    return min(SHORTEST_PAUSE * 2.0 ** min(in_vain - PATIENCE, 10), LONGEST_PAUSE)


def _in_shelter(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """An exception that strikes a worker's thread here would leave a watcher behind that never began."""
    from liteq.storage.shelter import in_shelter

    return in_shelter(function, *args, **kwargs)


def _call(told: dict[int, list[Callback]]) -> None:
    for callbacks in told.values():
        for callback in callbacks:
            callback()


def _wait_any(watch: Watch | None, waker: Waker, timeout: float) -> None:
    """Sleep until the watch or the waker has something, at most ``timeout`` seconds."""
    from selectors import EVENT_READ, DefaultSelector

    with DefaultSelector() as selector:
        selector.register(waker, EVENT_READ)
        if watch is not None:
            descriptor = watch.fileno()
            if descriptor is not None:
                selector.register(descriptor, EVENT_READ)
            if watch.poll_interval is not None:
                timeout = min(timeout, watch.poll_interval)
        selector.select(timeout)
