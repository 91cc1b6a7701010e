"""What happens when everybody writes at once: four producers that never pause, and a consumer that runs what they
make.

Each producer is a process that enqueues one job a call and notes how long each call took. Floor: the same producers
and a consuming loop in bare sqlite3, whose writers meet in SQLite's busy handler; it sleeps and retries blindly, so
its rates are high and its longest waits are seconds. (It is no ceiling for liteq's waits: the turnstile is there to
be better.)
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import floors
from benchmarks.harness import JOBS, Bench, Durability, Figure, distribution
from benchmarks.processes import ProcessFailed, consumer, hear, program, tell
from benchmarks.tasks import open_queue

PRODUCERS = 4
CONSUMING_WORKERS = 2
SHARES = {"p50": 0.5, "p99.9": 0.999, "max": 1.0}


class Round(NamedTuple):
    """What one round has shown.

    Args:
        calls: seconds of every call of every producer.
        enqueued: jobs a second.
        slowest: of the producer that was let in the least, jobs a second.
        finished: jobs a second.
    """

    calls: list[float]
    enqueued: float
    slowest: float
    finished: float


def run(bench: Bench) -> Iterator[Figure]:
    """Rates, and how long calls take, with each durability."""
    seconds = bench.size(3, 1)
    for durability in bench.durabilities:
        contestants = {kind: partial(_round, durability, kind, seconds) for kind in ("liteq", "floor")}
        for kind, rounds in bench.take_turns(contestants, rounds=bench.rounds(5), warm_up=False).items():
            yield from _figures(f"{durability}/{kind}", rounds)


def _figures(prefix: str, rounds: list[Round]) -> Iterator[Figure]:
    yield Figure(f"{prefix}/enqueued", JOBS, tuple(one.enqueued for one in rounds))
    yield Figure(f"{prefix}/slowest producer", JOBS, tuple(one.slowest for one in rounds))
    yield Figure(f"{prefix}/finished", JOBS, tuple(one.finished for one in rounds))
    yield from distribution(f"{prefix}/call", [one.calls for one in rounds], SHARES)


def _round(durability: Durability, kind: str, seconds: int, directory: Path) -> Round:
    path = directory / "queue.db"
    if kind == "liteq":
        app, add, *_ = open_queue(path, durability)
        add(1, 2)
        app.close()
    else:
        floors.create(path, durability).close()
    with ExitStack() as stack:
        arguments = (kind, str(path), durability, str(seconds))
        producers = [stack.enter_context(program("producer", *arguments)) for _ in range(PRODUCERS)]
        stack.enter_context(_consumer(path, durability, kind))
        began = time.time()
        for producer in producers:
            tell(producer)
        calls = [_calls(hear(producer)) for producer in producers]
        finished = _finished(path, began, began + seconds)
    rates = [len(one) / seconds for one in calls]
    return Round([call for one in calls for call in one], sum(rates), min(rates), finished / seconds)


@contextmanager
def _consumer(path: Path, durability: Durability, kind: str) -> Iterator[None]:
    """A consumer that is up and waits for jobs."""
    if kind == "floor":
        with program("raw_consumer", "drain", str(path), durability) as process:
            tell(process)
            yield
    else:
        queue = open_queue(path, durability)
        with consumer(path, durability, "thread", CONSUMING_WORKERS):
            queue.add(1, 2).get(timeout=30)
            queue.app.close()
            yield


def _calls(line: str) -> list[float]:
    if not line:
        raise ProcessFailed("a producer ended early")
    return [microseconds / 1e6 for microseconds in json.loads(line)]


def _finished(path: Path, since: float, until: float) -> int:
    with closing(sqlite3.connect(path)) as connection:
        question = "SELECT count(*) FROM liteq_done WHERE finished BETWEEN ? AND ?"
        return int(connection.execute(question, (since, until)).fetchone()[0])
