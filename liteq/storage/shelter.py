"""Where an exception that is thrown into a thread does not strike: while the thread changes what others rely on.

A worker's deadline is an exception that another thread throws into it. It strikes between any two steps, also inside
liteq's own bookkeeping, which the task that runs there has called: a lock stays locked, a count is never counted down,
and everybody else waits for ever. So such a thread has a Shelter. What is `sheltered` runs behind its door; what is
thrown meanwhile waits, and is raised as the thread comes out, a few microseconds later.

The door is a lock of the interpreter's own, taken and left by ``with`` in one step each, so that nothing strikes in
between. Who throws needs it too. What he has thrown just before the thread shut it strikes at the very first step of
the sheltered function (Python looks for such exceptions as a function begins), when nothing is done yet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
A = TypeVar("A")
T = TypeVar("T")


class Shelter:
    """One thread's, or greenlet's. `throw` is called in another thread, the rest in that one; never `throw` and
    `take_back` at once.

    Args:
        door: unlocked; where the lock of `threading` is not the interpreter's own.
    """

    __slots__ = ("_door", "_inside", "_late", "_thread")

    def __init__(self, door: threading.Lock | None = None) -> None:
        self._door = threading.Lock() if door is None else door
        self._inside = False
        self._late: list[type[BaseException]] = []
        self._thread = 0

    def move_in(self) -> None:
        """This thread is the one."""
        self._thread = threading.get_ident()
        here.shelter = self

    def call(self, function: Callable[[A], T], argument: A) -> T:
        """Call a function written in Python behind the door; called in the thread."""
        if self._inside:
            return function(argument)
        try:
            with self._door:
                self._inside = True
                try:
                    return function(argument)
                finally:
                    self._inside = False
        finally:
            if self._late and (late := self._taken()) is not None:
                raise late

    def strike(self, error: type[BaseException]) -> None:
        """Raise ``error`` now, or as the thread comes out: what a signal handler calls, in the thread itself.

        Not in a program in which others `throw`.
        """
        if not self.delays(error):
            raise error

    def delays(self, error: type[BaseException]) -> bool:
        """Whether ``error`` has to wait, and is raised as the thread comes out; else it may be raised now. Called where
        the thread cannot move meanwhile.
        """
        inside = self._door.locked()
        if inside:
            self._late.append(error)
        return inside

    def throw(self, error: type[BaseException]) -> None:
        """Have ``error`` raised in the thread: at its next step, or as it comes out."""
        self._late.append(error)  # before the look at the door: who comes out looks at this after he has opened it
        if self._door.acquire(blocking=False):
            try:
                if self._taken() is not None:
                    _set_exception(self._thread, error)
            finally:
                self._door.release()

    def take_back(self) -> None:
        """What was thrown before is raised now, if it has not been, or never will be.

        Now: as this function begins. Asking CPython to take an exception back instead would make it look for one at
        every step from then on, in all threads; 3.11 then hangs where a program is traced.
        """
        self._late.clear()

    def _taken(self) -> type[BaseException] | None:
        """What was thrown, to be raised by whoever gets it from here, and nobody else."""
        try:
            return self._late.pop()
        except IndexError:
            return None


class _Here(threading.local):
    #: ``None``: nobody throws exceptions into this thread.
    shelter: Shelter | None = None


here = _Here()


def in_shelter(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function so that nothing that is thrown into this thread strikes inside. It should not take long."""
    shelter = here.shelter
    if shelter is None:
        return function(*args, **kwargs)
    return shelter.call(lambda _: function(*args, **kwargs), None)


def sheltered(function: Callable[P, T]) -> Callable[P, T]:
    """`in_shelter`, as a decorator."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return in_shelter(function, *args, **kwargs)

    return call


def _set_exception(thread: int, error: type[BaseException]) -> None:
    import ctypes

    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))
