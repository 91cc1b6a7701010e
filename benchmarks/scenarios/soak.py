"""What a day's work leaves behind: 10,000,000 jobs, or as many as an hour allows, through one file and two consumers.

Most jobs are no-ops; some of each thousand fail once, fail for good, wait for a second, are asked for again, or come as
a pipeline or a chord; a schedule runs each second, and worker processes are replaced as they grow old. Outcomes are
kept for 20 s, so that after the first minute as many rows go as come. Every few seconds the sizes of the file and its
WAL are taken, and memory and open descriptors of the consumers, with their workers, and of the producer.

A figure has one value for each of these looks, in order of time. Its *growth* is the mean of the last quarter of them
against the mean of the second: 1 is flat.
"""

from __future__ import annotations

import importlib
import itertools
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from benchmarks.harness import JOBS, MEBIBYTES, TIMES, Bench, Figure, Skipped
from benchmarks.processes import ProcessFailed, consumer
from liteq import chord
from liteq.job import JobState

NUMBER = 10_000_000
#: Seconds after which it ends with what it has.
LONGEST = 3600.0
LOOK_EVERY = 5.0
#: It goes on until there are so many looks, however fast the jobs go: growth compares quarters of them.
FEWEST_LOOKS = 4
#: The producer waits while more than this is ready.
BACKLOG = 20_000
BATCH = 1000
APP = "benchmarks.programs.soak_app"
#: What fails here fails on purpose.
_SILENT = ("--logfile", os.devnull)
FILES, DESCRIPTORS = "files", "descriptors"


class Look(NamedTuple):
    """One moment: seconds and jobs since the beginning; bytes; a number."""

    seconds: float
    jobs: int
    file: int
    wal: int
    consumers: int
    producer: int
    descriptors: int


def run(bench: Bench) -> Iterator[Figure]:
    """With ``durability="normal"``, under which more jobs go through."""
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        raise Skipped("needs psutil: pip install 'liteq[bench]'") from None
    with bench.scratch() as directory:
        every = 0.1 if bench.quick else LOOK_EVERY
        looks = _soak(psutil, directory / "queue.db", bench.size(NUMBER, 5000), every, bench)
    yield from figures(looks)


def figures(looks: Sequence[Look]) -> Iterator[Figure]:
    """What was seen, as series, and whether it grew."""
    yield Figure("time", "s", tuple(look.seconds for look in looks))
    yield Figure("jobs", "jobs", tuple(float(look.jobs) for look in looks))
    yield Figure("rate", JOBS, tuple((b.jobs - a.jobs) / (b.seconds - a.seconds) for a, b in itertools.pairwise(looks)))
    for name, unit, scale in (
        ("file", MEBIBYTES, 1 << 20),
        ("wal", MEBIBYTES, 1 << 20),
        ("consumers", MEBIBYTES, 1 << 20),
        ("producer", MEBIBYTES, 1 << 20),
        ("descriptors", DESCRIPTORS, 1),
    ):
        values = tuple(getattr(look, name) / scale for look in looks)
        yield Figure(name, unit, values)
        yield Figure(f"{name}/growth", TIMES, (growth(values),))


def growth(values: Sequence[float]) -> float:
    """The last quarter's mean against the second's."""
    quarter = max(1, len(values) // 4)
    return statistics.fmean(values[-quarter:]) / statistics.fmean(values[quarter : 2 * quarter] or values)


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _soak(psutil: Any, path: Path, number: int, every: float, bench: Bench) -> list[Look]:
    with mock.patch.dict(os.environ, {"BENCHMARK_FILE": str(path), "BENCHMARK_DURABILITY": "normal"}):
        app_module = importlib.import_module(APP)
    looks: list[Look] = []
    with (
        consumer(path, "normal", "thread", 4, *_SILENT, app=f"{APP}:app") as one,
        consumer(path, "normal", "process", 2, "--max-tasks", "50000", *_SILENT, app=f"{APP}:app") as other,
    ):
        began = time.monotonic()
        done = 0
        while (done < number or len(looks) < FEWEST_LOOKS) and time.monotonic() - began < LONGEST:
            done += _enqueue(app_module, done)
            counts = app_module.app.storage.counts()
            while counts[JobState.READY] > BACKLOG:
                time.sleep(0.01)
                counts = app_module.app.storage.counts()
            if time.monotonic() - began >= len(looks) * every:
                if one.poll() is not None or other.poll() is not None:
                    raise ProcessFailed("a consumer has ended")
                family = [psutil.Process(each.pid) for each in (one, other)]
                jobs = done - counts[JobState.READY] - counts[JobState.RUNNING]
                looks.append(_look(psutil, path, family, time.monotonic() - began, jobs))
                bench.say(f"  {done:,} jobs in {time.monotonic() - began:,.0f} s")
        _until_nothing_is_left(app_module.app)
    app_module.app.close()
    return looks


def _enqueue(tasks: Any, done: int) -> int:
    """A batch of everything; returns how many jobs."""
    tasks.add.map([(number, 1) for number in range(BATCH)])
    with tasks.app.batch():
        for number in range(3):
            tasks.stumble()
            tasks.add.using(delay=1.0)(number, 1)
        tasks.fail()
    for _ in range(4):
        tasks.refresh(done // BATCH % 10)
    tasks.app.enqueue(tasks.add.s(1, 1).then(tasks.add, 1).then(tasks.add, 1))
    tasks.app.enqueue(chord([tasks.add.s(number, 1) for number in range(5)], tasks.total))
    return BATCH + 16  # most refreshments are refused


def _look(psutil: Any, path: Path, family: Sequence[Any], seconds: float, jobs: int) -> Look:
    wal = path.with_name(f"{path.name}-wal")
    memory = descriptors = 0
    for process in [*family, *(child for one in family for child in one.children(recursive=True))]:
        try:
            memory += process.memory_info().rss
            descriptors += process.num_fds()
        except psutil.NoSuchProcess:  # it was replaced meanwhile
            continue
    own = psutil.Process()
    return Look(
        seconds,
        jobs,
        path.stat().st_size,
        wal.stat().st_size,
        memory,
        own.memory_info().rss,
        descriptors + own.num_fds(),
    )


def _until_nothing_is_left(app: Any) -> None:
    """Raises ProcessFailed if a job was forgotten."""
    deadline = time.monotonic() + 60.0
    unfinished = (JobState.READY, JobState.RUNNING, JobState.SCHEDULED, JobState.BLOCKED)
    while sum(app.storage.counts()[state] for state in unfinished):
        if time.monotonic() > deadline:
            raise ProcessFailed(f"jobs are left: {app.storage.counts()}")
        time.sleep(0.05)
