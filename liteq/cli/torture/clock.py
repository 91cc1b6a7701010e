"""The clock of the tortured app: the machine's, but its wall clock jumps when it is told to."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

from liteq import LiteQ

_OFFSET = struct.Struct("<d")

#: The machine's own clock; only an app has one to give.
machine = LiteQ(":memory:").engine.clock


class JumpingClock:
    """The machine's clock, but its wall clock is ahead by what a small file says, in every process at once.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.truncate(descriptor, _OFFSET.size)
            self._file = mmap.mmap(descriptor, _OFFSET.size)
        finally:
            os.close(descriptor)

    @property
    def ahead(self) -> float:
        """Seconds; negative where it is behind."""
        return float(_OFFSET.unpack_from(self._file)[0])

    @ahead.setter
    def ahead(self, seconds: float) -> None:
        _OFFSET.pack_into(self._file, 0, seconds)

    def now(self) -> float:
        return machine.now() + self.ahead

    def monotonic(self) -> float:
        return machine.monotonic()

    def sleep(self, duration: float) -> None:
        machine.sleep(duration)
