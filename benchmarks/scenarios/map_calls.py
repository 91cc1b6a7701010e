"""How fast ``task.map`` stores many jobs in one transaction.

Contestant: ``add.map(calls)`` with 10,000 pairs of integers, which includes making 10,000 Results. Floor: the same rows
by multi-row inserts, payload bytes made beforehand. Fresh file for each; the median of three calls on it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import floors
from benchmarks.harness import JOBS, Bench, Durability, Figure, against_floor
from benchmarks.tasks import open_queue, payload

CALLS = 10_000
TIMES = 3


def run(bench: Bench) -> Iterator[Figure]:
    """Jobs a second, with each durability."""
    number = bench.size(CALLS, 500)
    for durability in bench.durabilities:
        contestants = {"liteq": partial(_liteq, durability, number), "floor": partial(_floor, durability, number)}
        yield from against_floor(durability, JOBS, **bench.take_turns(contestants))


def _liteq(durability: Durability, number: int, directory: Path) -> float:
    app, add, *_ = open_queue(directory / "queue.db", durability)
    add(1, 2)
    calls = [(one, 2) for one in range(number)]
    rate = number / _typical(lambda: add.map(calls))
    app.close()
    return rate


def _floor(durability: Durability, number: int, directory: Path) -> float:
    queue = open_queue(directory / "unused.db", durability)
    payloads = [payload(queue, one, 2) for one in range(number)]
    connection = floors.create(directory / "floor.db", durability)
    floors.insert_each(connection, payloads[:1])
    rate = number / _typical(lambda: floors.insert_all(connection, payloads))
    connection.close()
    return rate


def _typical(call: Callable[[], object]) -> float:
    times = []
    for _ in range(TIMES):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
