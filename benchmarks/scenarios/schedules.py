"""Schedules: how late a run begins, that none is missing or doubled under kills, and very many at once.

*Punctual*: an idle consumer and a schedule of each second; from the slot to the beginning of the body. *Killed*: 8
consumers, of which one, drawn at random, is killed every 5 s and started again; how many slots have no job, or more
than one. *Many*: 10,000 schedules, all due within a minute, while ordinary jobs are enqueued one by one: from the
enqueue of such a job to the beginning of its body, and how long after its slot a schedule's job was stored.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.harness import Bench, Durability, Figure, Skipped, distribution
from benchmarks.processes import PATIENCE, ProcessFailed, consumer
from benchmarks.tasks import Queue, open_queue
from liteq import Job, every

SLOTS = "slots"
SHARES = {"p50": 0.5, "p99": 0.99, "max": 1.0}
CONSUMERS = 8
KILL_EVERY = 5
MANY = 10_000
#: Seconds between two ordinary jobs.
EVERY = 0.05
NAME = "tick"
_SILENT = ("--logfile", os.devnull)


def run(bench: Bench) -> Iterator[Figure]:
    """Milliseconds, and numbers of slots."""
    if not hasattr(signal, "SIGKILL"):
        raise Skipped("kills by signals, which this system does not have")
    for durability in bench.durabilities:
        bench.say(f"{durability}: a schedule of each second")
        with bench.scratch() as directory:
            yield from _punctual(f"{durability}/punctual", durability, bench.size(60, 2), directory)
        bench.say(f"{durability}: consumers that are killed")
        with bench.scratch() as directory:
            yield from _killed(f"{durability}/killed", durability, bench, directory)
        bench.say(f"{durability}: {MANY:,} schedules")
        with bench.scratch() as directory:
            yield from _many(f"{durability}/many", durability, bench, directory)


def _punctual(prefix: str, durability: Durability, seconds: int, directory: Path) -> Iterator[Figure]:
    queue = open_queue(directory / "queue.db", durability)
    with consumer(directory / "queue.db", durability, "thread", 1, *_SILENT):
        queue.stamp().get(timeout=PATIENCE)
        queue.app.schedules.add(NAME, queue.stamp, every(1))
        time.sleep(seconds + 0.5)
        queue.app.schedules.pause(NAME)
    jobs = _jobs(queue)
    late = [queue.app.result(job.id).get(timeout=0) - _slot(job) for job in jobs]
    yield from distribution(prefix, [late], SHARES)
    yield from _wrong(prefix, jobs)
    queue.app.close()


def _killed(prefix: str, durability: Durability, bench: Bench, directory: Path) -> Iterator[Figure]:
    queue, chance = open_queue(directory / "queue.db", durability), random.Random(4)
    with ExitStack() as stack:

        def launch() -> subprocess.Popen[str]:
            return stack.enter_context(consumer(directory / "queue.db", durability, "thread", 1, *_SILENT))

        consumers = [launch() for _ in range(bench.size(CONSUMERS, 2))]
        queue.stamp().get(timeout=PATIENCE)
        queue.app.schedules.add(NAME, queue.stamp, every(1))
        for _ in range(bench.size(12, 1)):
            time.sleep(bench.size(KILL_EVERY, 3))
            victim = chance.randrange(len(consumers))
            consumers[victim].kill()
            consumers[victim].wait()
            consumers[victim] = launch()
        queue.app.schedules.pause(NAME)
    yield from _wrong(prefix, _jobs(queue))
    queue.app.close()


def _many(prefix: str, durability: Durability, bench: Bench, directory: Path) -> Iterator[Figure]:
    queue, number, spread = open_queue(directory / "queue.db", durability), bench.size(MANY, 100), bench.size(60, 2)
    with consumer(directory / "queue.db", durability, "thread", 2, *_SILENT):
        queue.stamp().get(timeout=PATIENCE)
        begin = time.time() + bench.size(5, 1)
        _store_many(queue, number, begin, spread)
        waits = []
        while time.time() < begin + spread + 1:
            now = time.time()
            waits.append(queue.stamp().get(timeout=PATIENCE) - now)
            time.sleep(EVERY)
    late = [job.created - _slot(job) for job in _jobs(queue)]
    yield from distribution(f"{prefix}/pick-up", [waits], SHARES)
    yield from distribution(f"{prefix}/late", [late], SHARES)
    yield Figure(f"{prefix}/missing", SLOTS, (float(number - len(late)),))
    queue.app.close()


def _store_many(queue: Queue, number: int, begin: float, spread: float) -> None:
    """One schedule is added as anybody does it; the others are copies of it, in one transaction."""
    schedules, storage = queue.app.schedules, queue.app.storage
    schedules.add("0", queue.add.s(1, 2), "every 1h")
    (model,) = storage.schedules("0")
    copies = []
    for copy in range(number):
        due = begin + spread * copy / number
        copies.append(model._replace(name=f"s{copy}", version=0, slot=due, due=due))
    for copy in copies:
        storage.put_schedule(copy)
    schedules.remove("0")


def _jobs(queue: Queue) -> list[Job]:
    """The jobs that schedules made, by slot."""
    jobs = [job for job in queue.app.jobs(limit=None) if job.schedule is not None]
    return sorted(jobs, key=_slot)


def _slot(job: Job) -> float:
    assert job.slot is not None
    return job.slot.timestamp()


def _wrong(prefix: str, jobs: list[Job]) -> Iterator[Figure]:
    """How many slots between the first and the last have no job, and how many have several.

    Raises:
        ProcessFailed: nothing was fired at all.
    """
    if not jobs:
        raise ProcessFailed("no consumer has fired anything")
    times = Counter(round(_slot(job) - _slot(jobs[0])) for job in jobs)
    yield Figure(f"{prefix}/missing", SLOTS, (float(max(times) + 1 - len(times)),))
    yield Figure(f"{prefix}/doubled", SLOTS, (float(sum(number > 1 for number in times.values())),))
