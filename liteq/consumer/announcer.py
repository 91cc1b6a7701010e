"""Calls the users' signal receivers on a thread of their own, in order, so that a slow one delays no job."""

from __future__ import annotations

import threading
from queue import SimpleQueue

from liteq.errors import TaskFailed
from liteq.job import Job
from liteq.signals import Signals

Announcement = tuple[str, Job, TaskFailed | None]


class Announcer:
    """The thread between a consumer and the receivers; started with the first announcement that somebody hears."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._queue: SimpleQueue[Announcement | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def announce(self, name: str, job: Job, error: TaskFailed | None) -> None:
        """Have the receivers of ``name`` called soon."""
        if not self._signals.heard(name):
            return
        if self._thread is None or not self._thread.is_alive():  # a fork has none of its parent's threads
            self._thread = threading.Thread(target=self._work, name="liteq-signals", daemon=True)
            self._thread.start()
        self._queue.put((name, job, error))

    def _work(self) -> None:
        while (announcement := self._queue.get()) is not None:
            # On this thread neither sys.exit() nor an interrupt means anything but that the receiver is broken.
            self._signals.send(*announcement, absorbed=BaseException)

    def stop(self, timeout: float) -> None:
        """Wait until what was announced has been heard, at most ``timeout`` seconds."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout)
            self._thread = None
