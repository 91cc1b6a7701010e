"""A descriptor by which one thread wakes another one of its process, and what becomes of such things in a forked child.

You stand on floor 1, below `liteq.storage.watch`, which tells of other processes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import weakref
from typing import Protocol


class OfOneProcess(Protocol):
    """What holds descriptors that a forked child must not use."""

    def _let_go(self) -> None:
        """In a forked child: leave the parent's descriptors alone."""


#: Whatever is in here hears of a fork in the child.
of_this_process: weakref.WeakSet[OfOneProcess] = weakref.WeakSet()


def _let_go_in_the_child() -> None:
    for holder in list(of_this_process):
        holder._let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_the_child)


class _EventDescriptor:
    """A counter in the kernel (Linux)."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._descriptor

    def write(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: that is awake enough
            os.eventfd_write(self._descriptor, 1)

    def read(self) -> bool:
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self._descriptor)


class _SocketPair:
    """Two sockets: also Windows can wait for those."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    def write(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: that is awake enough
            self._writer.send(b"!")

    def read(self) -> bool:
        woken = False
        while True:
            try:
                self._reader.recv(4096)
            except BlockingIOError:
                return woken
            woken = True

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


_Channel = _EventDescriptor | _SocketPair


def _open_channel() -> _Channel:
    return _EventDescriptor() if hasattr(os, "eventfd") else _SocketPair()


class Waker:
    """Wakes a thread that waits on a descriptor, from any thread or signal handler.

    Several calls of `wake` before one `clear` are one. In a forked child it is a new one, with its own descriptor.

    Raises:
        OSError: no descriptors are left.
    """

    def __init__(self) -> None:
        self._channel: _Channel | None = None
        self._closed = False
        # Reentrant: a signal handler may interrupt its own thread in here.
        self._guard = threading.RLock()
        self._channel = _open_channel()
        of_this_process.add(self)

    def wake(self) -> None:
        """Make `fileno` readable, until `clear`. Never waits. After `close` it does nothing."""
        with self._guard:  # against closing in between, when the number could be another file's already
            if not self._closed:
                self._opened().write()

    def clear(self) -> bool:
        """Forget what was before. Never waits.

        Returns:
            Whether it was woken since the last call.
        """
        with self._guard:
            return not self._closed and self._opened().read()

    def fileno(self) -> int:
        """A descriptor that is readable while the waker is woken.

        Raises:
            ValueError: it is closed.
        """
        with self._guard:
            if self._closed:
                raise ValueError("this waker is closed")
            return self._opened().fileno()

    def close(self) -> None:
        """Let go of the descriptors. Idempotent."""
        with self._guard:
            self._closed = True
            self._close_channel()

    def __del__(self) -> None:
        self._close_channel()

    def _opened(self) -> _Channel:
        if self._channel is None:
            self._channel = _open_channel()
        return self._channel

    def _close_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _let_go(self) -> None:
        self._guard = threading.RLock()
        self._close_channel()
