"""How a worker process shows what it is running: a socket beside the one for jobs.

Asked, its reading thread looks at its main thread and writes down what it sees. If that does not come soon, because
something in C keeps the interpreter, it is sent USR1: there `faulthandler` writes the stack to the same socket from
inside the signal handler, without the interpreter's leave. On Windows there is no such signal, and only the first way.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import socket
import threading
from collections.abc import Callable

from liteq.clock import SystemClock
from liteq.consumer import stacks
from liteq.consumer.pools.base import StackSource

#: Seconds for which a worker may answer by itself, and then, asked by a signal, by its signal handler.
BY_ITSELF, BY_SIGNAL = 0.3, 0.7
#: faulthandler does not say when it has ended; when nothing more has come for so long, in seconds, it has.
SILENCE = 0.03
#: Characters of what has come that are kept for those who have asked too.
MOST_KEPT = 1_000_000

_CAN_INSIST = hasattr(signal, "SIGUSR1") and hasattr(faulthandler, "register")


class StackTeller:
    """The worker's end.

    Args:
        channel: this end of the socket. Nobody may be reading at the other: it is never waited for.
    """

    def __init__(self, channel: socket.socket) -> None:
        channel.setblocking(False)
        self._channel = channel
        if _CAN_INSIST:
            faulthandler.register(signal.SIGUSR1, channel.fileno(), all_threads=True, chain=False)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._close_in_the_child)

    def _close_in_the_child(self) -> None:
        """A process that a task forks shows nothing."""
        if _CAN_INSIST:
            faulthandler.unregister(signal.SIGUSR1)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self._channel.close()

    def tell(self, token: str) -> None:
        """Show what the main thread is doing. Called on another one."""
        text = stacks.tried(lambda: stacks.of_thread(threading.main_thread().ident or 0)) or ""
        data = f"{_begin(token)}{text}{_end(token)}".encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):  # nobody has read the last ones, or is there any more
            self._channel.send(data)


class StackAsker:
    """The consumer's end of one worker's line.

    Args:
        channel: this end of the socket.
    """

    def __init__(self, channel: socket.socket) -> None:
        channel.setblocking(False)
        self._channel = channel
        self._asked = 0
        # Several may ask at once. One listens, and what it hears that is for others they find when it is their turn.
        self._listening = threading.Lock()
        self._heard = ""

    def fileno(self) -> int:
        return self._channel.fileno()

    def close(self) -> None:
        self._channel.close()

    def ask(self, send: Callable[[tuple[str, str]], None], pid: int, sentinel: int | None) -> StackSource:
        """Ask; what is returned waits for the answer, on any thread, at most a second.

        Args:
            send: passes a message to the worker.
            pid: of the worker.
            sentinel: a descriptor of the process itself, where the system has such a thing.
        """
        self._asked += 1
        token = str(self._asked)
        # Copies, as the worker may be buried, and the numbers be somebody else's, while the answer is waited for.
        channel = self._channel.dup()
        process = None if sentinel is None else os.dup(sentinel)
        send(("stack", token))

        def look() -> str | None:
            try:
                with self._listening:
                    listener = _Listener(channel, self._heard)
                    text = _look(listener, token, pid, process)
                    self._heard = listener.text[-MOST_KEPT:]
                    return text
            finally:
                channel.close()
                if process is not None:
                    os.close(process)

        return look


def _look(listener: _Listener, token: str, pid: int, process: int | None) -> str | None:
    where = f"worker process {pid}:\n"
    if listener.hears(_end(token), BY_ITSELF):
        text = listener.text.partition(_begin(token))[2].partition(_end(token))[0]
        return f"{where}{text}" if text else None
    if listener.at_end:
        return None
    if not _CAN_INSIST:
        return f"{where}  it does not answer: C code keeps the interpreter, or it is not being scheduled\n"
    heard = len(listener.text)
    _insist(pid, process)
    listener.hears_to_the_end(BY_SIGNAL)
    fault = stacks.of_fault(listener.text[heard:])
    if fault is None:
        return f"{where}  it does not answer, not even to a signal: it is stopped, or not being scheduled\n"
    return f"{where}  (from inside C code that keeps the interpreter)\n{fault}"


def _insist(pid: int, process: int | None) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended, and nothing will come
        if process is not None:
            signal.pidfd_send_signal(process, signal.SIGUSR1)
        else:
            os.kill(pid, signal.SIGUSR1)


class _Listener:
    """What has come over the line so far."""

    def __init__(self, channel: socket.socket, text: str) -> None:
        self._channel = channel
        self.text = text
        self.at_end = False

    def hears(self, words: str, timeout: float) -> bool:
        """Listen until these words have come; False if they have not within ``timeout`` seconds."""
        deadline = SystemClock.monotonic() + timeout
        while words not in self.text:
            if not self._listen(deadline - SystemClock.monotonic()):
                return False
        return True

    def hears_to_the_end(self, timeout: float) -> None:
        """Listen until something has come and nothing more comes, at most ``timeout`` seconds."""
        if self._listen(timeout):
            while self._listen(SILENCE):
                continue

    def _listen(self, timeout: float) -> bool:
        """Wait for more, at most ``timeout`` seconds; False if nothing came."""
        if timeout <= 0 or self.at_end or not _is_readable(self._channel, timeout):
            return False
        try:
            data = self._channel.recv(1 << 18)
        except OSError:  # reset, as the worker has been killed
            data = b""
        self.at_end = not data
        self.text += data.decode("utf-8", "replace")
        return bool(data)


def _is_readable(channel: socket.socket, timeout: float) -> bool:
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    return bool(select.select([channel], [], [], timeout)[0])


def _begin(token: str) -> str:
    return f"--stack {token}\n"


def _end(token: str) -> str:
    return f"--end of stack {token}\n"
