"""How fast a program can call a task: one call, one job, one transaction, one process.

Contestant: ``add(1, 2)`` through the public API. Floor: the same insert, trigger included, in a loop. Fresh file for
each; the first call, which makes the file, is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import floors
from benchmarks.harness import JOBS, Bench, Durability, Figure, against_floor
from benchmarks.tasks import open_queue, payload


def run(bench: Bench) -> Iterator[Figure]:
    """Calls a second, with each durability."""
    for durability in bench.durabilities:
        # A FULL commit takes ten times as long: so do fewer.
        calls = bench.size({"full": 1_500, "normal": 10_000}[durability], 50)
        contestants = {"liteq": partial(liteq, durability, calls), "floor": partial(_floor, durability, calls)}
        yield from against_floor(durability, JOBS, **bench.take_turns(contestants))


def liteq(durability: Durability, calls: int, directory: Path) -> float:
    """One contestant: calls a second."""
    app, add, *_ = open_queue(directory / "queue.db", durability)
    add(1, 2)
    began = time.perf_counter()
    for _ in range(calls):
        add(1, 2)
    took = time.perf_counter() - began
    app.close()
    return calls / took


def _floor(durability: Durability, calls: int, directory: Path) -> float:
    payloads = [payload(open_queue(directory / "unused.db", durability), 1, 2)] * calls
    connection = floors.create(directory / "floor.db", durability)
    floors.insert_each(connection, payloads[:1])
    began = time.perf_counter()
    floors.insert_each(connection, payloads)
    took = time.perf_counter() - began
    connection.close()
    return calls / took
