"""FileStorage: enqueue and run no-ops, beside huey's FileHuey, and what it costs that many jobs wait.

Enqueue: one call a job, in a process that only enqueues. Drain: as in the scenario ``drain``, on two workers. Open:
the first question of a storage that knows nothing yet, about a journal of so many single enqueues. Claim: a turn that
claims and finishes ten jobs, on a shallow and a deep queue, which take turns in one loop. huey, where it is installed,
runs in the same rounds.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks.harness import JOBS, MICROSECONDS, MILLISECONDS, TIMES, Bench, Durability, Figure
from benchmarks.processes import ProcessFailed, run_burst
from benchmarks.scenarios.peers import huey_drain, huey_enqueue, side_by_side
from benchmarks.tasks import open_queue
from liteq import FileStorage, JobState
from liteq.job import Job
from liteq.lifecycle import Success
from liteq.storage.base import ClaimRequest

SHALLOW, DEEP = 1_000, 100_000
WORKERS, BATCH = 2, 10
PEER, PEER_JOBS = "huey-file", 500


def run(bench: Bench) -> Iterator[Figure]:
    """Rates with each durability, and the costs of depth."""
    for durability in bench.durabilities:
        calls = bench.size(3_000 if durability == "normal" else 300, 50)
        yield from _beside(bench, f"{durability}/enqueue", partial(_enqueue, durability, calls), None)
        with bench.scratch() as directory:
            filled = _fill(directory / "filled", bench.size(20_000, 500))
            for kind in ("thread",) if bench.quick else ("thread", "process"):
                liteq = partial(_drain, filled, durability, kind)
                yield from _beside(bench, f"{durability}/drain {kind}-{WORKERS}", liteq, kind)
    yield from _depth(bench)


def _beside(bench: Bench, prefix: str, liteq: partial[float], kind: str | None) -> Iterator[Figure]:
    number = bench.size(PEER_JOBS, 50)
    if find_spec("huey") is None or prefix.startswith("full"):  # it never asks the disk
        yield Figure(f"{prefix}/liteq", JOBS, tuple(bench.take_turns({"": liteq}, rounds=bench.rounds(3))[""]))
    elif kind is None:
        yield from side_by_side(bench, prefix, liteq, partial(huey_enqueue, PEER, number))
    else:
        yield from side_by_side(bench, prefix, liteq, partial(huey_drain, PEER, number, kind, []))


def _enqueue(durability: Durability, calls: int, directory: Path) -> float:
    app, add, *_ = open_queue(directory / "queue", durability)
    add(1, 2)
    began = time.perf_counter()
    for _ in range(calls):
        add(1, 2)
    took = time.perf_counter() - began
    app.close()
    return calls / took


def _fill(path: Path, number: int) -> Path:
    app, add, *_ = open_queue(path, "normal")
    for _ in range(number):
        add(1, 2)
    app.close()
    return path


def _drain(filled: Path, durability: Durability, kind: str, directory: Path) -> float:
    """Jobs a second, from the start of the first to the end of the last."""
    path = Path(shutil.copytree(filled, directory / "queue"))
    run_burst(path, durability, kind, WORKERS)
    app = open_queue(path, durability).app
    jobs = app.jobs(limit=None)
    app.close()
    left = [job for job in jobs if job.state is not JobState.SUCCEEDED]
    if left:
        raise ProcessFailed(f"{len(left)} of {len(jobs)} jobs were left by a consumer with {WORKERS} {kind} workers")
    return len(jobs) / (max(job.finished or 0.0 for job in jobs) - min(job.started or 0.0 for job in jobs))


# ── depth ────────────────────────────────────────────────────────────────────────────────────────────────


def _depth(bench: Bench) -> Iterator[Figure]:
    sizes = {"1,000": bench.size(SHALLOW, 100), "100,000": bench.size(DEEP, 1_000)}
    with bench.scratch() as directory:
        bench.say("filling the directories")
        paths = {name: _fill(directory / f"of-{number}", number) for name, number in sizes.items()}
        opened: dict[str, list[float]] = {name: [] for name in paths}
        for _ in range(bench.rounds(3)):
            for name, path in paths.items():
                opened[name].append(1e3 * _open(path))
        yield from (Figure(f"open/{name}", MILLISECONDS, tuple(values)) for name, values in opened.items())
        yield from _claims(bench, {name: _Side(path) for name, path in paths.items()})


def _open(path: Path) -> float:
    storage = FileStorage(path, durability="normal")
    began = time.perf_counter()
    storage.counts()
    took = time.perf_counter() - began
    storage.close()
    return took


def _claims(bench: Bench, sides: dict[str, _Side]) -> Iterator[Figure]:
    costs: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(bench.repeat):
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(bench.size(50, 5)):
            for name, side in sides.items():
                times[name].append(side.round())
        for name, values in times.items():
            costs[name].append(1e6 * statistics.median(values))
    for side in sides.values():
        side.close()
    for name, values in costs.items():
        yield Figure(f"claim/{name}", MICROSECONDS, tuple(values))
    shallow, deep = costs.values()
    yield Figure("claim/ratio", TIMES, tuple(more / less for more, less in zip(deep, shallow, strict=True)))


class _Side:
    """One queue, and what was claimed from it."""

    def __init__(self, path: Path) -> None:
        self._storage = FileStorage(path, durability="normal")
        self._request = ClaimRequest(self._storage.register({}), BATCH)
        self._jobs: list[Job] = self._storage.turn([], self._request, time.time()).jobs
        self._again = [job._replace(seq=0, id="", state=JobState.READY) for job in self._jobs]

    def round(self) -> float:
        """A turn: seconds. What it takes away is put back outside the time."""
        now = time.time()
        done = [Success(job.seq, job.claim, job.attempt, job.base, job.crashes, now, now, b"3") for job in self._jobs]
        began = time.perf_counter()
        self._jobs = self._storage.turn([], self._request, now, None, done).jobs
        took = time.perf_counter() - began
        self._storage.add(self._again)
        return took

    def close(self) -> None:
        self._storage.close()
