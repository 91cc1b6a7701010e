"""What a consumer costs that has nothing to do: CPU time of it and all its worker processes, as a share of one core,
and the memory of them all, each page that several share counted once (the sum of their PSS; Linux only).

It has run something before, so that everything is loaded, and then is left alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from benchmarks.harness import MEBIBYTES, PERCENT, Bench, Figure, Skipped
from benchmarks.processes import consumer
from benchmarks.tasks import open_queue

WORKERS = 4
#: Seconds between the last job and the beginning: caches are warm, helpers that linger are gone.
SETTLE = 6

_PROC = Path("/proc")


def run(bench: Bench) -> Iterator[Figure]:
    """Percent of a core, with each kind of worker."""
    seconds = bench.size(30, 1)
    for kind in ("thread", "process"):
        bench.say(f"watching {WORKERS} idle {kind} workers for {seconds} s")
        share, memory = _share_and_memory(bench, kind, seconds)
        yield Figure(kind, PERCENT, (100 * share,))
        if memory is not None:
            yield Figure(f"{kind}/memory", MEBIBYTES, (memory,))


def _share_and_memory(bench: Bench, kind: str, seconds: float) -> tuple[float, float | None]:
    with bench.scratch() as directory:
        queue = open_queue(directory / "queue.db", "full")
        with consumer(directory / "queue.db", "full", kind, WORKERS) as process:
            for result in [queue.add(1, 2) for _ in range(WORKERS)]:
                result.get(timeout=30)
            queue.app.close()
            time.sleep(bench.size(SETTLE, 1))
            before, began = cpu_time(process.pid), time.perf_counter()
            time.sleep(seconds)
            used, took = cpu_time(process.pid) - before, time.perf_counter() - began
            memory = _memory(process.pid)
    return used / took, memory


def cpu_time(pid: int) -> float:
    """Seconds of CPU that a process and all below it have used, in user and system mode.

    Raises:
        Skipped: this system does not tell.
    """
    if (_PROC / "self" / "schedstat").exists():
        return sum(_scheduled(one) for one in _family(pid))
    if find_spec("psutil") is None:
        raise Skipped("without /proc/<pid>/schedstat the CPU time of other processes is read with psutil: install it")
    import psutil  # type: ignore[import-untyped,unused-ignore]

    root = psutil.Process(pid)
    times = [one.cpu_times() for one in (root, *root.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def _memory(pid: int) -> float | None:
    """Mebibytes that a process and all below it keep from others; ``None`` where the system does not tell."""
    if not (_PROC / str(pid) / "smaps_rollup").exists():
        return None
    kibibytes = 0
    for one in _family(pid):
        lines = (_PROC / str(one) / "smaps_rollup").read_text().splitlines()
        kibibytes += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kibibytes / 1024


def _scheduled(pid: int) -> float:
    """Of all threads of a process; in nanoseconds where /proc/<pid>/stat counts in hundredths of a second."""
    threads = (_PROC / str(pid) / "task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, int] = {}
    for status in _PROC.glob("[0-9]*/stat"):
        try:
            fields = status.read_text(errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        parents[int(status.parent.name)] = int(fields[1])
    family = [pid]
    for one in family:  # grows while it is gone through
        family += [child for child, parent in parents.items() if parent == one]
    return family
