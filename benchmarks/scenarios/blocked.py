"""Whether claims cost more while jobs of other tasks are blocked at a lock or a limit.

Contestants: `SqliteStorage.turn`, finishing a batch of a task that needs nothing and claiming the next, on a file where
nobody waits and on one for each kind of gate at which 100,000 jobs are blocked, taking turns in the same loop. Every
claim says what the other tasks need, as a consumer's does. For comparison `hand-over`: one job ends at the full gate,
and the next of the line is claimed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.harness import MICROSECONDS, TIMES, Bench, Durability, Figure
from liteq import Job, JobState, SqliteStorage, gates, rates
from liteq.gates import Need
from liteq.lifecycle import Transition
from liteq.storage.base import ClaimRequest

BLOCKED = 100_000
BATCH = 64

#: What the jobs of each task need; ``none`` is the file where nobody waits.
GATES: Mapping[str, tuple[Need, ...]] = {
    "none": (),
    "lock": (gates.lock("ledger", 1),),
    "limit": (gates.limit("limit", 1, None),),
    "rate": (gates.rate_limit("rate", rates.parse("1/d"), None),),
}


def run(bench: Bench) -> Iterator[Figure]:
    """Microseconds a round beside those that are blocked, with each durability."""
    for durability in bench.durabilities:
        with bench.scratch() as directory:
            bench.say(f"blocking jobs, {durability}")
            sides = {
                name: _Side(directory / f"{name}.db", durability, name, bench.size(BLOCKED, 500)) for name in GATES
            }
            yield from _compare(bench, durability, sides)
            for side in sides.values():
                side.close()


def _compare(bench: Bench, durability: Durability, sides: Mapping[str, _Side]) -> Iterator[Figure]:
    costs: dict[str, list[float]] = {name: [] for name in sides}
    handed: dict[str, list[float]] = {name: [] for name in sides if name in ("lock", "limit")}
    for _ in range(bench.repeat):
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(bench.size(60, 5)):
            for name, side in sides.items():
                times[name].append(side.round())
        for name, values in times.items():
            costs[name].append(1e6 * statistics.median(values))
        for name, values in handed.items():
            values.append(1e6 * statistics.median(sides[name].hand_over() for _ in range(bench.size(60, 5))))
    for name, values in costs.items():
        yield Figure(f"{durability}/{name}", MICROSECONDS, tuple(values))
        if name != "none":
            pairs = zip(values, costs["none"], strict=True)
            yield Figure(f"{durability}/{name}/ratio", TIMES, tuple(one / other for one, other in pairs))
    for name, values in handed.items():
        yield Figure(f"{durability}/{name}/hand-over", MICROSECONDS, tuple(values))


class _Side:
    """One file: jobs that are blocked, and jobs that are not."""

    def __init__(self, path: Path, durability: Durability, gate: str, blocked: int) -> None:
        self._storage = SqliteStorage(path, durability=durability)
        needs = {name: (lambda job, needed=needed: needed) for name, needed in GATES.items() if needed}
        self._request = ClaimRequest(self._storage.register({}), BATCH, needs=needs)
        now = time.time()
        if GATES[gate]:
            self._storage.add([Job(0, "", gate, JobState.READY, created=now) for _ in range(blocked)])
        self._held: list[Job] = []
        while self._storage.queues():
            self._held += self._storage.turn([], self._request, now).jobs
        self._free = [Job(0, "", "free", JobState.READY, created=now) for _ in range(BATCH)]
        for _ in range(16):
            self._storage.add(self._free)
        self._jobs = self._storage.turn([], self._request, now).jobs

    def round(self) -> float:
        """A turn: seconds."""
        now = time.time()
        finished = [_succeeded(job, now) for job in self._jobs]
        began = time.perf_counter()
        self._jobs = self._storage.turn(finished, self._request, now).jobs
        took = time.perf_counter() - began
        self._storage.add(self._free)
        return took

    def hand_over(self) -> float:
        """A turn in which the slot goes to the next in line: seconds."""
        now = time.time()
        began = time.perf_counter()
        # Wanted is one: what was let out is older than all that is free, and comes first.
        self._held = self._storage.turn(
            [_succeeded(job, now) for job in self._held], self._request._replace(wanted=1), now
        ).jobs
        return time.perf_counter() - began

    def close(self) -> None:
        self._storage.close()


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
