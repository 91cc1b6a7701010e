"""What a process uses of the machine, as far as the system tells: memory in bytes, CPU in seconds.

Linux tells everything. Elsewhere on Unix a process knows its peak but not what it has now, and nothing of others;
Windows tells nothing here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

#: In what ``ru_maxrss`` is counted.
_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024

#: Whether a worker can tell how much memory it has.
CAN_TELL = resource is not None


class Usage(NamedTuple):
    """CPU seconds in user and system mode, and the most memory that the process has had, in bytes; with those of the
    processes that it has started and waited for."""

    cpu: float
    peak: int


def of_rusage(rusage: object) -> Usage:
    """What the system said of a process at its end."""
    cpu = rusage.ru_utime + rusage.ru_stime  # type: ignore[attr-defined]
    return Usage(cpu, rusage.ru_maxrss * _PEAK_UNIT)  # type: ignore[attr-defined]


def own() -> Usage | None:
    """What this process has used until now; ``None`` where the system does not tell."""
    if resource is None:
        return None
    alone, children = (of_rusage(resource.getrusage(who)) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return Usage(alone.cpu + children.cpu, max(alone.peak, children.peak))


def memory(pid: int | str = "self") -> int | None:
    """How much memory a process has now; ``None`` if it has ended, or the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return None


def own_memory() -> int | None:
    """How much memory this process has now, or, where the system does not tell, has had at most."""
    now = memory()
    if now is not None:
        return now
    return None if resource is None else of_rusage(resource.getrusage(resource.RUSAGE_SELF)).peak
