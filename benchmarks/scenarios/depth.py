"""Whether a round of the dispatcher costs more when much is waiting.

Contestants: `SqliteStorage.turn`, finishing a batch and claiming the next, on a shallow file (1,000 waiting) and a
deep one (1,000,000 waiting and 100,000 scheduled), taking turns on the two in the same loop. What a turn takes away
is put back before the next, outside the time. Floor: the same rounds in bare sqlite3 on the same files.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import floors
from benchmarks.harness import MICROSECONDS, TIMES, Bench, Durability, Figure
from benchmarks.tasks import open_queue, payload
from liteq import Job, JobState, SqliteStorage
from liteq.lifecycle import Transition
from liteq.storage.base import ClaimRequest

SHALLOW, DEEP, SCHEDULED = 1_000, 1_000_000, 100_000
#: Jobs a turn: a consumer that just keeps up, and one that is saturated.
BATCHES = (1, 64)


def run(bench: Bench) -> Iterator[Figure]:
    """Microseconds a round, with each durability and size of batch."""
    with bench.scratch() as directory:
        bench.say("filling the files")
        shallow, deep = directory / "shallow.db", directory / "deep.db"
        _fill(shallow, bench.size(SHALLOW, 500), 0)
        _fill(deep, bench.size(DEEP, 5_000), bench.size(SCHEDULED, 500))
        for durability in bench.durabilities:
            for batch in BATCHES:
                yield from _compare(bench, durability, batch, {"shallow": shallow, "deep": deep})


def _fill(path: Path, waiting: int, scheduled: int) -> None:
    queue = open_queue(path, "normal")
    stored = payload(queue, 1, 2)
    queue.add(1, 2)
    queue.app.close()
    connection = floors.connect(path, "normal")
    for start in range(1, waiting, 10_000):
        floors.insert_all(connection, [stored] * min(10_000, waiting - start))
    if scheduled:
        floors.insert_all(connection, [stored] * scheduled, delay=30 * 86_400.0)
    connection.close()


def _compare(bench: Bench, durability: Durability, batch: int, files: dict[str, Path]) -> Iterator[Figure]:
    turns = bench.size(100, 5)
    sides = {name: _Side(path, durability, batch) for name, path in files.items()}
    costs: dict[str, list[float]] = {f"{name}/{kind}": [] for name in files for kind in ("liteq", "floor")}
    for _ in range(bench.repeat):
        times: dict[str, list[float]] = {name: [] for name in costs}
        for _ in range(turns):
            for name, side in sides.items():
                times[f"{name}/liteq"].append(side.round())
                times[f"{name}/floor"].append(side.floor())
        for name, values in times.items():
            costs[name].append(1e6 * statistics.median(values))
    for side in sides.values():
        side.close()
    prefix = f"{durability}/batch-{batch}"
    for name, values in costs.items():
        yield Figure(f"{prefix}/{name}", MICROSECONDS, tuple(values))
    for kind in ("liteq", "floor"):
        pairs = zip(costs[f"deep/{kind}"], costs[f"shallow/{kind}"], strict=True)
        name = "ratio" if kind == "liteq" else "floor/ratio"
        yield Figure(f"{prefix}/{name}", TIMES, tuple(deep / shallow for deep, shallow in pairs))


class _Side:
    """One file, and what was claimed from it: by liteq, and by the floor."""

    def __init__(self, path: Path, durability: Durability, batch: int) -> None:
        self._batch = batch
        self._storage = SqliteStorage(path, durability=durability)
        self._request = ClaimRequest(self._storage.register({}), batch)
        self._jobs = self._storage.turn([], self._request, time.time()).jobs
        self._connection = floors.connect(path, durability)
        self._claimed = floors.turn(self._connection, [], batch)
        self._again = [job._replace(seq=0, id="", state=JobState.READY) for job in self._jobs]

    def round(self) -> float:
        """A turn of liteq's: seconds."""
        now = time.time()
        finished = [_succeeded(job, now) for job in self._jobs]
        began = time.perf_counter()
        self._jobs = self._storage.turn(finished, self._request, now).jobs
        took = time.perf_counter() - began
        self._storage.add(self._again)
        return took

    def floor(self) -> float:
        """The same in bare sqlite3: seconds."""
        began = time.perf_counter()
        self._claimed = floors.turn(self._connection, self._claimed, self._batch)
        took = time.perf_counter() - began
        self._storage.add(self._again)
        return took

    def close(self) -> None:
        self._storage.close()
        self._connection.close()


def _succeeded(job: Job, now: float) -> Transition:
    return Transition(
        job.seq,
        JobState.RUNNING,
        job.claim,
        JobState.SUCCEEDED,
        attempt=job.attempt,
        started=now,
        finished=now,
        result=b"3",
    )
