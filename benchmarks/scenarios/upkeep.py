"""What keeps a file small and safe for years, while it is used.

*Purge*: a consumer with four threads finds 1,000,000 rows whose time is over; meanwhile a job comes every 50 ms: from
its commit to its body. *Backup*: a copy of a file with 1,000,000 jobs while a consumer drains it, and the rate of the
jobs that were finished during it, against that before. *Size*: of the file and its WAL after 1,000,000 jobs through a
consumer, once the last of them is purged.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import JOBS, MEBIBYTES, MILLISECONDS, TIMES, Bench, Durability, Figure, distribution
from benchmarks.processes import PATIENCE, ProcessFailed, consumer
from benchmarks.scenarios.drain import fill
from benchmarks.tasks import ADD, add, open_queue
from liteq import LiteQ
from liteq.job import Job, JobState
from liteq.storage.cargo import Parcel

ROWS = 1_000_000
EVERY = 0.05
#: Seconds for which results are kept where the size is measured.
KEPT = 2.0
BATCH = 10_000
SHARES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


def run(bench: Bench) -> Iterator[Figure]:
    """With ``durability="normal"``, as these are about amounts: the disk's part is that of other scenarios."""
    number = bench.size(ROWS, 2000)
    yield from _purge(bench, number, "normal")
    yield from _backup(bench, number, "normal")
    yield from _size(bench, number, "normal")


# ── purge ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _purge(bench: Bench, number: int, durability: Durability) -> Iterator[Figure]:
    """Pick-up in milliseconds while rows are purged, and how many rows a second went."""
    contestant = partial(_pick_ups, number, bench.size(400, 20), durability)
    rounds = bench.take_turns({"purge": contestant}, rounds=bench.rounds(3), warm_up=False)["purge"]
    yield from distribution(
        "purge/pick-up", [pick_ups for pick_ups, _ in rounds], {"p50": 0.5, "p99": 0.99, "max": 1.0}
    )
    yield Figure("purge/rows", JOBS, tuple(rate for _, rate in rounds))


def _pick_ups(number: int, most: int, durability: Durability, directory: Path) -> tuple[list[float], float]:
    """Pick-ups for as long as there is something to purge, at most so many; and rows purged a second."""
    path = directory / "queue.db"
    queue = open_queue(path, durability)
    _finish_long_ago(queue.app, number)
    pick_ups: list[float] = []
    with consumer(path, durability, "thread", 4):
        queue.stamp().get(timeout=PATIENCE)
        began, before = time.perf_counter(), _rows(path)
        left = before
        while left > most and len(pick_ups) < most:
            time.sleep(EVERY)
            result = queue.stamp()
            committed = time.time()
            pick_ups.append(result.get(timeout=PATIENCE) - committed)
            left = _rows(path) if len(pick_ups) % 20 == 0 else left
        rate = (before - _rows(path)) / (time.perf_counter() - began)
    queue.app.close()
    return pick_ups, rate


def _finish_long_ago(app: LiteQ, number: int) -> None:
    """Store jobs that have succeeded a year ago, as an import does."""
    then = time.time() - 366 * 86_400
    row = Job(0, "", ADD, JobState.SUCCEEDED, payload=b"[[1,2],{}]", created=then, started=then, finished=then)
    row = row._replace(claim=1, attempt=1, result=b"3")
    for start in range(1, number + 1, BATCH):
        seqs = range(start, min(start + BATCH, number + 1))
        app.storage.take_in([Parcel(row._replace(seq=seq, id=f"{seq}-00000000aa")) for seq in seqs], [], {}, then)


def _rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM liteq_done").fetchone()[0])


# ── backup ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Copy(NamedTuple):
    """What one round has shown: seconds of the backup, jobs a second during it, and before it."""

    seconds: float
    during: float
    alone: float


def _backup(bench: Bench, number: int, durability: Durability) -> Iterator[Figure]:
    """Milliseconds of a backup, and the rate of a drain during it."""
    with bench.scratch() as directory:
        filled = fill(directory / "filled", number)
        contestant = partial(_copied, filled, durability, bench.size(3, 0))
        rounds = bench.take_turns({"backup": contestant}, rounds=bench.rounds(3), warm_up=False)["backup"]
    yield Figure("backup/time", MILLISECONDS, tuple(1e3 * one.seconds for one in rounds))
    yield Figure("backup/drain", JOBS, tuple(one.during for one in rounds))
    yield Figure("backup/ratio", TIMES, tuple(one.during / one.alone for one in rounds if one.alone))


def _copied(filled: Path, durability: Durability, seconds: float, directory: Path) -> Copy:
    """A backup a few seconds after a drain has begun."""
    import shutil

    path = Path(shutil.copytree(filled, directory / "copy")) / "queue.db"
    queue = open_queue(path, durability)
    with consumer(path, durability, "thread", 2, "--burst"):
        _until(lambda: _rows(path) > 0)
        time.sleep(seconds)
        began = time.time()
        queue.app.backup(directory / "backup.db")
        ended = time.time()
    queue.app.close()
    took = ended - began
    alone = seconds or took
    return Copy(took, _rate(path, began, ended), _rate(path, began - alone, began))


def _rate(path: Path, began: float, ended: float) -> float:
    """Jobs a second that were finished between two instants."""
    with closing(sqlite3.connect(path)) as connection:
        statement = "SELECT count(*) FROM liteq_done WHERE finished BETWEEN ? AND ?"
        return float(connection.execute(statement, (began, ended)).fetchone()[0] / (ended - began))


# ── size ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _size(bench: Bench, number: int, durability: Durability) -> Iterator[Figure]:
    """Mebibytes of the file and of its WAL once everything is purged."""
    rounds = bench.take_turns({"size": partial(_left_over, number, durability)}, rounds=bench.rounds(1), warm_up=False)[
        "size"
    ]
    yield Figure("size/file", MEBIBYTES, tuple(file / (1 << 20) for file, _ in rounds))
    yield Figure("size/wal", MEBIBYTES, tuple(wal / (1 << 20) for _, wal in rounds))


def _left_over(number: int, durability: Durability, directory: Path) -> tuple[int, int]:
    path = directory / "queue.db"
    app = LiteQ(path, durability=durability, result_ttl=KEPT)
    task = app.task(name=ADD)(add)
    with app.run_in_background(workers=2):
        for start in range(0, number, BATCH):
            task.map([(1, 2)] * min(BATCH, number - start))
            _until(lambda: app.storage.counts()[JobState.READY] < BATCH)  # as a program that has a file for years
        _until(lambda: app.storage.counts()[JobState.SUCCEEDED] == 0)
        sizes = (0, 0)
        while sizes != (sizes := _sizes(path)):
            time.sleep(KEPT)
    app.close()
    return sizes


def _sizes(path: Path) -> tuple[int, int]:
    wal = path.with_name(f"{path.name}-wal")
    return path.stat().st_size, wal.stat().st_size


def _until(holds: Callable[[], bool]) -> None:
    """Raises ProcessFailed if it does not come true."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise ProcessFailed("the consumer does not go on")
        time.sleep(0.01)
