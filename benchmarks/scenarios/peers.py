"""Other queues that need no server, beside liteq in the same rounds. Optional: ``pip install liteq[bench]``.

huey, with its SQLite storage (synchronous=FULL, which is its default, and OFF) and its file storage: one call a job,
and ``huey_consumer`` with two workers on no-ops whose results are stored. huey notes no times, so its rate is read
off the number of stored results, from the first to the last.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.harness import JOBS, TIMES, Bench, Durability, Figure, Skipped
from benchmarks.processes import PATIENCE, ROOT, ProcessFailed, end, environment
from benchmarks.scenarios import drain, enqueue

#: Jobs a round: each peer's own, so that a round takes about a second.
NUMBERS = {"huey-sqlite": 2_000, "huey-sqlite-off": 5_000, "huey-file": 500}
#: What durability of liteq stands beside it.
BESIDE: dict[str, Durability] = {"huey-sqlite": "full", "huey-sqlite-off": "normal", "huey-file": "normal"}
WORKERS = 2
LOOK_EVERY = 0.005
#: Seconds without another result after which the rest is taken for lost.
STALLED = 10.0


def run(bench: Bench) -> Iterator[Figure]:
    """Jobs a second of each, and how many times as many liteq does.

    Raises:
        Skipped: huey is not installed.
    """
    if find_spec("huey") is None:
        raise Skipped("huey is not installed (pip install 'liteq[bench]')")
    bench.say(f"huey {version('huey')}")
    for peer, number in NUMBERS.items():
        number = bench.size(number, 50)
        durability = BESIDE[peer]
        if durability in bench.durabilities:
            yield from _enqueue(bench, peer, number, durability)
            for kind in ("thread",) if bench.quick else ("thread", "process"):
                yield from _drain(bench, peer, number, durability, kind)


def _enqueue(bench: Bench, peer: str, number: int, durability: Durability) -> Iterator[Figure]:
    liteq = partial(enqueue.liteq, durability, number)
    yield from side_by_side(bench, f"{peer}/enqueue", liteq, partial(huey_enqueue, peer, number))


def _drain(bench: Bench, peer: str, number: int, durability: Durability, kind: str) -> Iterator[Figure]:
    prefix = f"{peer}/drain {kind}-{WORKERS}"
    lost: list[float] = []
    with bench.scratch() as directory:
        filled = drain.fill(directory / "filled", bench.size(20_000, 500))
        liteq = partial(drain.liteq, filled, durability, kind, WORKERS)
        yield from side_by_side(bench, prefix, liteq, partial(huey_drain, peer, number, kind, lost))
    yield Figure(f"{prefix}/lost by peer", "jobs", tuple(lost))


def side_by_side(
    bench: Bench, prefix: str, liteq: Callable[[Path], float], peer: Callable[[Path], float]
) -> Iterator[Figure]:
    """The rates of both, and how many times as much liteq does, round by round."""
    rates = bench.take_turns({"liteq": liteq, "peer": peer}, rounds=bench.rounds(3), warm_up=False)
    for name, values in rates.items():
        yield Figure(f"{prefix}/{name}", JOBS, tuple(values))
    ratios = tuple(ours / theirs for ours, theirs in zip(rates["liteq"], rates["peer"], strict=True))
    yield Figure(f"{prefix}/ratio", TIMES, ratios)


def huey_enqueue(peer: str, number: int, directory: Path) -> float:
    """Calls a second."""
    command = [sys.executable, "-m", "benchmarks.programs.huey_enqueue", str(number)]
    environ = environment(directory / "queue") | {"BENCHMARK_PEER": peer}
    done = subprocess.run(command, cwd=ROOT, env=environ, check=True, capture_output=True, text=True, timeout=PATIENCE)
    return float(done.stdout)


def huey_drain(peer: str, number: int, kind: str, lost: list[float], directory: Path) -> float:
    """Jobs a second; how many were never run is added to ``lost``."""
    huey_enqueue(peer, number - 1, directory)  # and the one that makes the file
    environ = environment(directory / "queue") | {"BENCHMARK_PEER": peer}
    app = "benchmarks.programs.huey_app.huey"
    options = ["-k", kind, "-w", str(WORKERS), "--quiet", "--no-periodic"]
    command = [sys.executable, "-m", "huey.bin.huey_consumer", app, *options]
    # Its tracebacks of "database is locked" are not what a reader of figures looks for: the lost jobs are counted.
    process = subprocess.Popen(command, cwd=ROOT, env=environ, text=True, stderr=subprocess.DEVNULL)
    try:
        rate, done = _rate(_results(peer, directory / "queue"), number)
    finally:
        end(process)
    lost.append(number - done)
    return rate


def _results(peer: str, path: Path) -> Callable[[], int]:
    """What counts the stored results, in this process."""
    from benchmarks.programs.huey_app import make

    storage: Any = make(peer, str(path)).storage
    return lambda: int(storage.result_store_size())


def _rate(results: Callable[[], int], number: int) -> tuple[float, int]:
    """Jobs a second from the first to the last that was finished, and how many there were.

    Raises:
        ProcessFailed: not even one was.
    """
    seen, first, began, advanced = 0, 0, 0.0, time.perf_counter()
    while seen < number and time.perf_counter() - advanced < STALLED:
        count, now = results(), time.perf_counter()
        if count > seen:
            if not seen:
                first, began = count, now
            seen, advanced = count, now
        time.sleep(LOOK_EVERY)
    if seen == first:
        raise ProcessFailed("huey_consumer has finished nothing, or everything at once")
    return (seen - first) / (advanced - began), seen
