"""How soon an idle consumer picks a job up, and how soon the caller has its result.

A consumer with four workers sleeps in a process of its own; a job comes every 50 ms. *Pick-up*: from the return of
the call that enqueued it (it is committed then) to the first line of the task's body. *Round trip*: from before the
call to the return of ``result.get()``, in another series, as a caller who waits wants a core as well. Floor: two
processes in bare sqlite3 that do the same three commits one after another and ring each other's bell through a pipe.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from benchmarks import floors
from benchmarks.harness import Bench, Durability, Figure, distribution
from benchmarks.processes import consumer, hear, program, tell
from benchmarks.tasks import Queue, open_queue, payload

T = TypeVar("T")

WORKERS = 4
EVERY = 0.05
SHARES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


class Series(NamedTuple):
    """What one round has shown, in seconds.

    Args:
        pick_ups: from the commit to the body.
        round_trips: from before the call to the result.
    """

    pick_ups: list[float]
    round_trips: list[float]


def run(bench: Bench) -> Iterator[Figure]:
    """Milliseconds, with each durability and kind of worker."""
    number, rounds = bench.size(200, 5), bench.rounds(3)
    for durability in bench.durabilities:
        contestants = {kind: partial(_liteq, durability, kind, number) for kind in ("thread", "process")}
        contestants["floor"] = partial(_floor, durability, number)
        for name, series in bench.take_turns(contestants, rounds=rounds, warm_up=False).items():
            yield from distribution(f"{durability}/{name}/pick-up", [one.pick_ups for one in series], SHARES)
            yield from distribution(f"{durability}/{name}/round-trip", [one.round_trips for one in series], SHARES)


def _liteq(durability: Durability, kind: str, number: int, directory: Path) -> Series:
    queue = open_queue(directory / "queue.db", durability)
    with consumer(directory / "queue.db", durability, kind, WORKERS):
        for _ in range(WORKERS):
            queue.stamp().get(timeout=30)  # it is up, and has run something
        series = Series(_pick_ups(queue, number), _round_trips(queue, number))
    queue.app.close()
    return series


def _pick_ups(queue: Queue, number: int) -> list[float]:
    def enqueue() -> tuple[float, Callable[[], float]]:
        result = queue.stamp()
        return time.time(), lambda: result.get(timeout=10)

    enqueued = list(_paced(number, enqueue))
    return [body() - committed for committed, body in enqueued]


def _round_trips(queue: Queue, number: int) -> list[float]:
    def trip() -> float:
        began = time.perf_counter()
        queue.stamp().get(timeout=10)
        return time.perf_counter() - began

    return list(_paced(number, trip))


def _paced(number: int, call: Callable[[], T]) -> Iterator[T]:
    """One call every EVERY seconds; a late one does not hurry the next."""
    for _ in range(number):
        time.sleep(EVERY)
        yield call()


def _floor(durability: Durability, number: int, directory: Path) -> Series:
    path = directory / "floor.db"
    stored = [payload(open_queue(directory / "unused.db", durability), 1, 2)]
    connection = floors.create(path, durability)
    with program("raw_consumer", "bell", str(path), durability) as bell:

        def trip() -> tuple[float, float]:
            began = time.time()
            floors.insert_each(connection, stored)
            return _ring(bell, began, time.time())

        samples = list(_paced(number, trip))
    connection.close()
    return Series(*([one[part] for one in samples] for part in (0, 1)))


def _ring(bell: subprocess.Popen[str], began: float, committed: float) -> tuple[float, float]:
    tell(bell)
    body = float(hear(bell))
    return body - committed, time.time() - began
