"""What threads wait for in a line: each thing wakes one of them.

`queue.SimpleQueue` passes its lock on from getter to getter, so that each thing also wakes a second thread, which finds
nothing, while the first and the dispatcher want the interpreter. Here every thread has a lock of its own, and who has
waited shortest is woken, as he is warm.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Line(Generic[T]):
    """A queue for any number of threads; every step of it is one of the interpreter's own."""

    __slots__ = ("_things", "_waiting")

    def __init__(self) -> None:
        self._things: deque[T] = deque()
        self._waiting: list[threading.Lock] = []

    def put(self, *things: T) -> None:
        """Add these in their order, and wake a thread for each, as long as any waits."""
        self._things.extend(things)  # before the look at who waits, as these look again once they can be seen
        for _ in things:
            try:
                waiting = self._waiting.pop()
            except IndexError:
                return
            waiting.release()

    def get(self, own: threading.Lock) -> T:
        """The oldest one; waits for it.

        Args:
            own: this thread's, locked.
        """
        while True:
            try:
                return self._things.popleft()
            except IndexError:
                self._waiting.append(own)
            if self._things:
                try:
                    self._waiting.remove(own)
                except ValueError:  # somebody has chosen it already
                    own.acquire()
            else:
                own.acquire()

    def take_all(self) -> list[T]:
        """Whatever nobody has got yet."""
        taken = []
        while True:
            try:
                taken.append(self._things.popleft())
            except IndexError:
                return taken

    def __len__(self) -> int:
        return len(self._things)
