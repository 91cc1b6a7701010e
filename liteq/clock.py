"""The only module that reads time or sleeps.

An app has one Clock; everything below it takes ``now`` as an argument. Inside liteq an instant is a ``float``: seconds
since the Unix epoch, UTC.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """What liteq asks of a clock. Pass your own to ``LiteQ(clock=...)`` in tests."""

    def now(self) -> float:
        """Wall clock: seconds since the Unix epoch. May jump."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start. Never jumps."""
        ...

    def sleep(self, duration: float) -> None:
        """Return after ``duration`` seconds of this clock."""
        ...


class SystemClock:
    """The machine's clock."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)


class ManualClock:
    """A clock that moves only when told to; ``sleep`` moves it. Safe to share between threads.

    Args:
        start: seconds since the Unix epoch.
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._lock = threading.Lock()
        self._now = start
        self._elapsed = 0.0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._elapsed

    def sleep(self, duration: float) -> None:
        self.advance(duration)

    def advance(self, duration: float) -> None:
        """Let ``duration`` seconds pass, on both clocks."""
        with self._lock:
            self._now += duration
            self._elapsed += max(duration, 0.0)

    def jump(self, duration: float) -> None:
        """Set the wall clock forward or back by ``duration`` seconds; no time passes."""
        with self._lock:
            self._now += duration
