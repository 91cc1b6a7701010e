"""The figures that liteq is to reach on a machine with two cores, and how the recorded ones compare.

For information: nothing fails when one is missed, as a figure says as much about the machine as about the code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.harness import DURABILITIES, PERCENT, TIMES
from benchmarks.report import number
from benchmarks.results import Run


@dataclass(frozen=True, slots=True)
class Target:
    """One bound.

    Args:
        title: for people.
        scenario: where the figure is recorded.
        figure: its name there.
        sense: whether it is to be at least or at most (or below) the bound.
        bound: in the figure's unit.
    """

    title: str
    scenario: str
    figure: str
    sense: Literal["at least", "at most", "below"]
    bound: float

    def is_met(self, value: float) -> bool:
        if self.sense == "at least":
            return value >= self.bound
        return value <= self.bound if self.sense == "at most" else value < self.bound


def _targets() -> Iterator[Target]:
    for each in DURABILITIES:
        yield Target(f"enqueue, {each}", "enqueue", f"{each}/ratio", "at least", 0.7)
    for each in DURABILITIES:
        for kind, words in (("arguments", "unique=True"), ("template", "unique=a string")):
            yield Target(f"enqueue with {words}, {each}", "unique", f"{each}/{kind}/times", "at most", 1.5)
    for each in DURABILITIES:
        yield Target(f"map of 10,000, {each}", "map", f"{each}/ratio", "at least", 0.5)
    for each in DURABILITIES:
        for size in (1, 2, 4):
            title = f"drain, {each}, {size} thread worker{'s'[: size > 1]}"
            yield Target(title, "drain", f"{each}/thread-{size}/liteq", "at least", 40_000)
            yield Target(title, "drain", f"{each}/thread-{size}/ratio", "at least", 0.4)
    for each in DURABILITIES:
        for size in (2, 4):
            title = f"drain, {each}, {size} process workers"
            yield Target(title, "drain", f"{each}/process-{size}/liteq", "at least", 30_000)
    for each in DURABILITIES:
        yield Target(f"async def, {each}, 100 at once", "coroutines", f"{each}/asyncio-100", "at least", 15_000)
        title = f"500 async def that wait 1 s, {each}, beyond it"
        yield Target(title, "coroutines", f"{each}/waiting-500/beyond", "below", 3000.0)
    for each in DURABILITIES:
        for kind, p50 in (("thread", 1.0), ("process", 1.5)):
            title = f"pick-up, {each}, {kind}"
            yield Target(f"{title}, p50", "latency", f"{each}/{kind}/pick-up/p50", "below", p50)
            if kind == "thread":
                yield Target(f"{title}, p99", "latency", f"{each}/{kind}/pick-up/p99", "below", 10.0)
            yield Target(f"round trip, {each}, {kind}, p50", "latency", f"{each}/{kind}/round-trip/p50", "below", 3.0)
    for kind in ("thread", "process"):
        yield Target(f"idle, 4 {kind} workers", "idle", kind, "below", 0.1)
    for each in DURABILITIES:
        for batch in (1, 64):
            title = f"depth 1,000,000 against 1,000, {each}, {batch} job{'s'[: batch > 1]} a round"
            yield Target(title, "depth", f"{each}/batch-{batch}/ratio", "at most", 1.5)
    for each in DURABILITIES:
        for gate in ("lock", "limit", "rate"):
            title = f"claims beside 100,000 blocked ({gate}) against none, {each}"
            yield Target(title, "blocked", f"{each}/{gate}/ratio", "at most", 1.5)
    for each in DURABILITIES:
        for method in ("fork", "forkserver", "spawn"):
            title, figure = f"killed worker, {each}, {method}", f"{each}/worker/{method}"
            yield Target(f"{title}, another idle, p50", "recovery", f"{figure}/idle/p50", "below", 200.0)
            if method != "spawn":  # which takes the start of an interpreter
                yield Target(f"{title}, none idle, p50", "recovery", f"{figure}/none/p50", "below", 200.0)
        for kind in ("thread", "process"):
            title = f"killed consumer, {each}, {kind}"
            yield Target(f"{title}, another alive, max", "recovery", f"{each}/consumer/{kind}/max", "below", 3000.0)
            yield Target(f"{title}, restarted, max", "recovery", f"{each}/restart/{kind}/max", "below", 1000.0)
    for each in DURABILITIES:
        title, figure = f"a schedule of each second, late, {each}, p99", f"{each}/punctual/p99"
        yield Target(title, "schedules", figure, "below", 20.0)
        for what in ("punctual", "killed"):
            for wrong in ("missing", "doubled"):
                title = f"slots {wrong}, {each}, {what}"
                yield Target(title, "schedules", f"{each}/{what}/{wrong}", "at most", 0.0)
        yield Target(f"10,000 schedules, pick-up, {each}, p99", "schedules", f"{each}/many/pick-up/p99", "below", 20.0)
        yield Target(f"10,000 schedules, slots missing, {each}", "schedules", f"{each}/many/missing", "at most", 0.0)
    for each in DURABILITIES:
        for kind, words in (("step", "durable"), ("astep", "coroutine's durable")):
            yield Target(f"a {words} step beside one insert, {each}", "steps", f"{each}/{kind}/ratio", "below", 2.0)
    for each in DURABILITIES:
        yield Target(
            f"chord of 10,000, {each}, against plain drain", "workflows", f"{each}/chord/ratio", "at least", 0.6
        )
        yield Target(f"pipeline of 1,000, {each}, steps/s", "workflows", f"{each}/pipeline", "at least", 2_000)
    title = "claim and finish with 100,000 that wait against none"
    yield Target(title, "workflows", "turn/ratio", "at most", 1.5)
    yield Target("purge of 1,000,000 rows, pick-up meanwhile, p99", "upkeep", "purge/pick-up/p99", "below", 20.0)
    yield Target("backup of 1,000,000 jobs while draining", "upkeep", "backup/time", "below", 5000.0)
    yield Target("drain during a backup, against before", "upkeep", "backup/ratio", "at least", 0.7)
    yield Target("file after 1,000,000 jobs were purged", "upkeep", "size/file", "below", 20.0)
    yield Target("WAL after 1,000,000 jobs were purged", "upkeep", "size/wal", "below", 16.0)
    yield Target("soak, growth of the file, which follows the rate", "soak", "file/growth", "at most", 1.25)
    for what in ("wal", "consumers", "producer", "descriptors"):
        yield Target(f"soak, growth of {what}", "soak", f"{what}/growth", "at most", 1.1)
    for what, most in (("parse", 15.0), ("next", 15.0), ("next, far", 150.0)):
        yield Target(f"cron expression, {what}", "triggers", f"{what}/liteq", "below", most)
    yield Target("cron expression, against cronsim", "triggers", "parse + next/to cronsim", "at most", 1.0)
    yield Target("FileStorage, enqueue, normal", "file", "normal/enqueue/liteq", "at least", 5_000)
    yield Target("FileStorage, drain, normal, 2 threads", "file", "normal/drain thread-2/liteq", "at least", 10_000)
    for what in ("enqueue", "drain thread-2", "drain process-2"):
        yield Target(f"FileStorage, {what}, against FileHuey", "file", f"normal/{what}/ratio", "at least", 1.0)
    yield Target("FileStorage, open with 100,000 waiting", "file", "open/100,000", "below", 2000.0)
    yield Target("FileStorage, claim with 100,000 against 1,000", "file", "claim/ratio", "at most", 1.5)
    yield Target("import liteq", "import", "ratio", "at most", 1.3)


TARGETS = tuple(_targets())


def compare(runs: Mapping[str, Run]) -> Iterator[str]:
    """One line a target: ``pass``, ``miss``, or ``none`` where nothing was recorded."""
    width = max(len(target.title) for target in TARGETS)
    for target in TARGETS:
        run = runs.get(target.scenario)
        figure = run.by_name.get(target.figure) if run is not None else None
        if figure is None:
            yield f"none  {target.title:<{width}}  not measured yet: python -m benchmarks {target.scenario}"
            continue
        verdict = "pass" if target.is_met(figure.median) else "miss"
        unit = figure.unit if figure.unit in (TIMES, PERCENT) else f" {figure.unit}"
        yield (
            f"{verdict}  {target.title:<{width}}  {number(figure.median) + unit:>14}  {target.sense} "
            f"{number(target.bound)}{unit}"
        )
