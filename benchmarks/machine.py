"""What the figures were measured on; no names of hosts, users, devices or directories, as results are published."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from liteq import __version__
from liteq.storage.filesystem import filesystem_of, parse_mounts

#: Synced writes of which the median is taken.
SYNCS = 50


@dataclass(frozen=True, slots=True)
class Machine:
    """The conditions of a run.

    Args:
        cores: that this process may use.
        processor: the model, as the system names it.
        system: ``"Linux"``, ``"Darwin"`` …
        python: version.
        sqlite: version of the library in use.
        liteq: version.
        filesystem: type of that on which the files are made; ``"unknown"`` where the system does not tell.
        fsync: microseconds it takes to append 4 KiB to a file and have them on the disk (median).
        load: processes that wanted a core during the last minute before the run, on average; -1 where unknown.
    """

    cores: int
    processor: str
    system: str
    python: str
    sqlite: str
    liteq: str
    filesystem: str
    fsync: float
    load: float

    def __str__(self) -> str:
        cores = f"{self.cores} core{'s' if self.cores != 1 else ''}"
        load = f", load {self.load:.1f} before the run" if self.load >= 0 else ""
        return (
            f"{cores} ({self.processor}), {self.system}, Python {self.python}, SQLite {self.sqlite}, "
            f"liteq {self.liteq}, {self.filesystem}, fsync {self.fsync:,.0f} µs{load}"
        )

    @property
    def is_busy(self) -> bool:
        """Whether others were using the cores: then times are upper bounds, and rates lower ones."""
        return self.load > self.cores / 2


def examine(directory: Path | None = None) -> Machine:
    """Look at this machine.

    Args:
        directory: where the files will be made; ``None``: the system's directory for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="liteq-benchmark-", dir=directory) as name:
        return Machine(
            cores=_cores(),
            processor=_processor(),
            system=platform.system(),
            python=platform.python_version(),
            sqlite=sqlite3.sqlite_version,
            liteq=__version__,
            filesystem=_filesystem(Path(name)),
            fsync=round(_fsync_cost(Path(name)) * 1e6, 1),
            load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else -1.0,
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip().lower() in ("model name", "hardware", "cpu model"):
                return value.strip()
    except FileNotFoundError:
        pass  # not Linux: ask Python instead
    return platform.processor() or platform.machine() or "unknown"


def _filesystem(directory: Path) -> str:
    try:
        mounts = parse_mounts(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"))
    except FileNotFoundError:  # only Linux has it
        return "unknown"
    return filesystem_of(str(directory.resolve()), mounts) or "unknown"


def _fsync_cost(directory: Path) -> float:
    """The median time in seconds of a 4 KiB append with fsync, as in each commit with durability="full"."""
    times = []
    # macOS answers fsync before the disk has it; SQLite then uses F_FULLFSYNC only if told to, as liteq does not.
    descriptor = os.open(directory / "synced", os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        for _ in range(SYNCS):
            began = time.perf_counter()
            os.write(descriptor, bytes(4096))
            os.fsync(descriptor)
            times.append(time.perf_counter() - began)
    finally:
        os.close(descriptor)
    return statistics.median(times)
