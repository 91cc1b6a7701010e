"""Workflows: a chord of 10,000, a pipeline of 1,000 steps, and what jobs that wait cost those that do not.

*Chord*: a consumer of 4 threads in this program runs 10,000 no-op members and then their callback; from the start of
the first member to the callback's end, as the file tells. Floor: the same consumer on 10,000 no-op jobs that nothing
follows, in the same rounds. *Pipeline*: 1,000 steps, each given the result of the one before; steps a second.
*Blocked*: a turn that settles a batch of jobs and claims the next, on a file where 100,000 jobs wait for one that does
not end, and on one where none does, taking turns.
"""

from __future__ import annotations

import sqlite3
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from benchmarks.harness import JOBS, MICROSECONDS, TIMES, Bench, Durability, Figure
from benchmarks.processes import PATIENCE, ProcessFailed
from benchmarks.tasks import Queue, open_queue
from liteq import JobState, SqliteStorage, chord
from liteq.lifecycle import Success
from liteq.storage.base import ClaimRequest

MEMBERS, STEPS, WAITING = 10_000, 1_000, 100_000
WORKERS = 4
BATCH = 64


def run(bench: Bench) -> Iterator[Figure]:
    """Jobs a second, with each durability; microseconds a turn."""
    members, steps = bench.size(MEMBERS, 50), bench.size(STEPS, 10)
    for durability in bench.durabilities:
        bench.say(f"{durability}: a chord of {members:,}, and as many jobs that nothing follows")
        contestants = {
            "chord": partial(_chord, durability, members),
            "plain": partial(_plain, durability, members),
            "pipeline": partial(_pipeline, durability, steps),
        }
        rates = bench.take_turns(contestants, warm_up=False)
        yield from (Figure(f"{durability}/{name}", JOBS, tuple(values)) for name, values in rates.items())
        ratios = [one / other for one, other in zip(rates["chord"], rates["plain"], strict=True)]
        yield Figure(f"{durability}/chord/ratio", TIMES, tuple(ratios))
    yield from _blocked(bench)


# ── chord and pipeline ───────────────────────────────────────────────────────────────────────────────────


def _chord(durability: Durability, members: int, directory: Path) -> float:
    queue = open_queue(directory / "queue.db", durability)
    total = queue.app.task(name="benchmarks.count")(len)
    last = queue.app.enqueue(chord([queue.add.s(number, 2) for number in range(members)], total))
    with queue.app.run_in_background(workers=WORKERS):
        if last.get(timeout=PATIENCE) != members:
            raise ProcessFailed("the callback was not given the result of each member")
    return _rate(queue, directory)


def _plain(durability: Durability, members: int, directory: Path) -> float:
    queue = open_queue(directory / "queue.db", durability)
    results = queue.add.map([(number, 2) for number in range(members)])
    with queue.app.run_in_background(workers=WORKERS):
        results[-1].get(timeout=PATIENCE)
        while queue.app.counts()[JobState.SUCCEEDED] < members:
            time.sleep(0.001)
    return _rate(queue, directory)


def _pipeline(durability: Durability, steps: int, directory: Path) -> float:
    queue = open_queue(directory / "queue.db", durability)
    workflow = queue.add.s(0, 1)
    for _ in range(steps - 1):
        workflow = workflow.then(queue.add, 1)  # type: ignore[assignment]
    last = queue.app.enqueue(workflow)
    with queue.app.run_in_background(workers=WORKERS):
        if last.get(timeout=PATIENCE) != steps:
            raise ProcessFailed("a step was not given the result of the one before")
    return _rate(queue, directory)


def _rate(queue: Queue, directory: Path) -> float:
    """Jobs a second, from the start of the first to the end of the last, as the file tells."""
    queue.app.close()
    with closing(sqlite3.connect(directory / "queue.db")) as connection:
        question = "SELECT count(*), min(started), max(finished) FROM liteq_done"
        done, first, last = connection.execute(question).fetchone()
    return float(done / (last - first))


# ── beside jobs that wait ────────────────────────────────────────────────────────────────────────────────


def _blocked(bench: Bench) -> Iterator[Figure]:
    turns = bench.size(200, 5)
    with bench.scratch() as directory:
        bench.say("filling the files")
        sides = {
            "none": _Side(directory / "none.db", turns * bench.repeat, 0),
            "blocked": _Side(directory / "blocked.db", turns * bench.repeat, bench.size(WAITING, 200)),
        }
        costs: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(bench.repeat):
            times: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(turns):
                for name, side in sides.items():
                    times[name].append(side.turn())
            for name, values in times.items():
                costs[name].append(1e6 * statistics.median(values))
        for side in sides.values():
            side.close()
    yield from (Figure(f"turn/{name}", MICROSECONDS, tuple(values)) for name, values in costs.items())
    pairs = zip(costs["blocked"], costs["none"], strict=True)
    yield Figure("turn/ratio", TIMES, tuple(blocked / none for blocked, none in pairs))


class _Side:
    """One file, on which a turn settles what the one before has claimed.

    The jobs are older than those that wait: that is the dearer case, as newer ones are known to be part of no plan.

    Args:
        rounds: how many turns there will be.
        waiting: how many jobs wait.
    """

    def __init__(self, path: Path, rounds: int, waiting: int) -> None:
        queue = open_queue(path, "normal")
        queue.add.map([(number, 2) for number in range(BATCH * (rounds + 1))])
        if waiting:
            held_up = queue.add.using(queue="never")(1, 2)
            queue.add.using(after=held_up).map([(number, 2) for number in range(waiting)])
        queue.app.close()
        self._storage = SqliteStorage(path, durability="normal")
        self._request = ClaimRequest(self._storage.register({}), BATCH, ("default",))
        self._jobs = self._storage.turn([], self._request, time.time()).jobs

    def turn(self) -> float:
        """Settle and claim: seconds."""
        now = time.time()
        done = [Success(job.seq, job.claim, job.attempt, 0, 0, now, now, b"3") for job in self._jobs]
        began = time.perf_counter()
        self._jobs = self._storage.turn([], self._request, now, None, done).jobs
        return time.perf_counter() - began

    def close(self) -> None:
        self._storage.close()
