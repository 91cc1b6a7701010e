"""How fast a consumer runs jobs that do nothing, with their results stored.

Contestants: ``liteq_consumer --quiet --burst`` with 1, 2 and 4 workers of either kind, in a process of its own, on a
file that was filled beforehand. Start-up is left out: the time goes from the start of the first job to the end of the
last, as the file itself tells. Floor: a loop that claims and finishes in batches (`floors.drain`), in the same
rounds.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from benchmarks import floors
from benchmarks.harness import JOBS, Bench, Durability, Figure, against_floor
from benchmarks.processes import ProcessFailed, run_burst
from benchmarks.tasks import open_queue

KINDS = ("thread", "process")
WORKERS = (1, 2, 4)


def run(bench: Bench) -> Iterator[Figure]:
    """Jobs a second, with each durability, kind of worker, and number of them."""
    number = bench.size(60_000, 500)
    pools = [("thread", 2), ("process", 2)] if bench.quick else [(kind, size) for kind in KINDS for size in WORKERS]
    with bench.scratch() as directory:
        filled = fill(directory / "filled", number)
        for durability in bench.durabilities:
            for kind, workers in pools:
                contestants = {
                    "liteq": partial(liteq, filled, durability, kind, workers),
                    "floor": partial(_floor, filled, durability),
                }
                rates = bench.take_turns(contestants, warm_up=False)
                yield from against_floor(f"{durability}/{kind}-{workers}", JOBS, **rates)


def fill(directory: Path, number: int) -> Path:
    """A directory with a queue of so many waiting jobs in it, to be copied."""
    directory.mkdir()
    app, add, *_ = open_queue(directory / "queue.db", "normal")
    for start in range(0, number, 10_000):
        add.map([(one, 2) for one in range(start, min(number, start + 10_000))])
    app.close()
    return directory


def liteq(filled: Path, durability: Durability, kind: str, workers: int, directory: Path) -> float:
    """One contestant: jobs a second."""
    path = _copied(filled, directory)
    run_burst(path, durability, kind, workers)
    with closing(sqlite3.connect(path)) as connection:
        done, first, last = connection.execute(
            "SELECT count(*), min(started), max(finished) FROM liteq_done"
        ).fetchone()
        (stored,) = connection.execute("SELECT count(*) FROM liteq_job").fetchone()
    if done != stored:
        raise ProcessFailed(f"{stored - done} of {stored} jobs were left by a consumer with {workers} {kind} workers")
    return float(done / (last - first))


def _floor(filled: Path, durability: Durability, directory: Path) -> float:
    connection = floors.connect(_copied(filled, directory), durability)
    began = time.perf_counter()
    number = floors.drain(connection)
    took = time.perf_counter() - began
    connection.close()
    return number / took


def _copied(filled: Path, directory: Path) -> Path:
    """The queue in a copy; nobody has the original open."""
    return Path(shutil.copytree(filled, directory / "copy")) / "queue.db"
