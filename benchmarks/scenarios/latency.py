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
from typing import TypeVar

from benchmarks import floors
from benchmarks.harness import Bench, Durability, Figure, distribution
from benchmarks.processes import consumer, hear, program, tell
from benchmarks.tasks import Queue, open_queue, payload

T = TypeVar("T")

WORKERS = 4
EVERY = 0.05
SHARES = {"p50": 0.5, "p99": 0.99, "max": 1.0}

#: Seconds from the commit to the body, and seconds from before the call to the result.
Sample = tuple[float, float]


def run(bench: Bench) -> Iterator[Figure]:
    """Milliseconds, with each durability and kind of worker."""
    number, rounds = bench.size(200, 5), bench.rounds(3)
    for durability in bench.durabilities:
        for kind in ("thread", "process"):
            series = [_liteq(bench, durability, kind, number) for _ in range(rounds)]
            yield from distribution(f"{durability}/{kind}/pick-up", [one[0] for one in series], SHARES)
            yield from distribution(f"{durability}/{kind}/round-trip", [one[1] for one in series], SHARES)
        samples = [_floor(bench, durability, number) for _ in range(rounds)]
        yield from distribution(f"{durability}/floor/pick-up", [[one[0] for one in each] for each in samples], SHARES)
        yield from distribution(
            f"{durability}/floor/round-trip", [[one[1] for one in each] for each in samples], SHARES
        )


def _liteq(bench: Bench, durability: Durability, kind: str, number: int) -> tuple[list[float], list[float]]:
    with bench.scratch() as directory:
        queue = open_queue(directory / "queue.db", durability)
        with consumer(directory / "queue.db", durability, kind, WORKERS):
            for _ in range(WORKERS):
                queue.stamp().get(timeout=30)  # it is up, and has run something
            times = _pick_ups(queue, number), _round_trips(queue, number)
        queue.app.close()
    return times


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


def _floor(bench: Bench, durability: Durability, number: int) -> list[Sample]:
    with bench.scratch() as directory:
        stored = [payload(open_queue(directory / "unused.db", durability), 1, 2)]
        connection = floors.create(directory / "floor.db", durability)
        with program("raw_consumer", "bell", str(directory / "floor.db"), durability) as bell:

            def trip() -> Sample:
                began = time.time()
                floors.insert_each(connection, stored)
                return _ring(bell, began, time.time())

            samples = list(_paced(number, trip))
        connection.close()
    return samples


def _ring(bell: subprocess.Popen[str], began: float, committed: float) -> Sample:
    tell(bell)
    body = float(hear(bell))
    return body - committed, time.time() - began
