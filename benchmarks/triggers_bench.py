"""How long it takes to read a cron expression and to find its next run, beside cronsim and croniter in the same run.

    python benchmarks/triggers_bench.py --repeat 7            a table
    python benchmarks/triggers_bench.py --json                a JSON line for each measurement

The peers are optional; with them installed, every round times all libraries one after the other, so that a ratio
compares what the machine was like at the same moment. Exit code 1 when a figure misses its goal.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import timeit
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, tzinfo
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median
from zoneinfo import ZoneInfo

from liteq.errors import TriggerError
from liteq.triggers import crontab

ORDINARY = (
    "* * * * *",
    "*/5 * * * *",
    "*/5 9-17 * * mon-fri",
    "30 2 * * *",
    "0 0 * * *",
    "0 22 * * 1-5",
    "23 0-20/2 * * *",
    "0 0,12 1 */2 *",
    "0 9 * * MON#2",
    "0 0 LW * *",
)
FAR = "0 0 29 2 */7"
NEVER = "0 0 30 2 *"
ZONES: tuple[tzinfo, ...] = (UTC, ZoneInfo("Europe/Berlin"))

GOAL = {"parse": 15.0, "next": 15.0, "next, far": 150.0}
"""Microseconds at most."""


@dataclass(frozen=True)
class Measurement:
    """What one library needed for one thing, in microseconds."""

    what: str
    library: str
    expression: str
    zone: str
    median: float
    least: float
    most: float


Timed = dict[str, Callable[[], object]]


def calls(expression: str, now: datetime) -> Iterator[tuple[str, Timed]]:
    """What is timed for one expression: each with a call for each library that can do it."""
    trigger = crontab(expression)
    parse: Timed = {"liteq": lambda: crontab(expression)}
    find: Timed = {"liteq": lambda: trigger.next(now)}
    both: Timed = {"liteq": lambda: crontab(expression).next(now)}
    if find_spec("cronsim"):
        cronsim = import_module("cronsim").CronSim
        parse["cronsim"] = lambda: cronsim(expression, now)
        both["cronsim"] = lambda: next(cronsim(expression, now))
    if find_spec("croniter") and "W" not in expression:
        croniter = import_module("croniter").croniter
        parse["croniter"] = lambda: croniter(expression, now)
        both["croniter"] = lambda: croniter(expression, now).get_next(datetime)
    yield "parse", parse
    yield ("next, far" if expression == FAR else "next"), find
    yield "parse + next", both


def refuse() -> None:
    """Define a trigger whose date never exists."""
    try:
        crontab(NEVER)
    except TriggerError:
        return
    raise AssertionError("a date that never exists was accepted")


def measure(what: str, timed: Timed, expression: str, zone: str, repeat: int) -> Iterator[Measurement]:
    """Time all libraries round by round."""
    timers = {library: timeit.Timer(call) for library, call in timed.items()}
    numbers = {library: max(1, int(0.02 / (timer.timeit(5) / 5))) for library, timer in timers.items()}
    rounds: dict[str, list[float]] = {library: [] for library in timers}
    for _ in range(repeat):
        for library, timer in timers.items():
            rounds[library].append(timer.timeit(numbers[library]) / numbers[library] * 1e6)
    for library, figures in rounds.items():
        yield Measurement(what, library, expression, zone, median(figures), min(figures), max(figures))


def measurements(repeat: int) -> Iterator[Measurement]:
    """Everything."""
    for zone in ZONES:
        now = datetime(2024, 5, 15, 12, 34, 56, tzinfo=zone)
        for expression in (*ORDINARY, FAR):
            for what, timed in calls(expression, now):
                yield from measure(what, timed, expression, str(zone), repeat)
    yield from measure("refuse", {"liteq": refuse}, NEVER, "", repeat)


def machine() -> dict[str, object]:
    """Where this was measured."""
    peers = {name: version(name) for name in ("cronsim", "croniter") if find_spec(name)}
    return {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform(), **peers}


def misses(found: list[Measurement]) -> list[str]:
    """The figures that miss their goal, one line each."""
    own = {(m.what, m.expression, m.zone): m.median for m in found if m.library == "liteq"}
    late = [
        f"{what} of {expression!r} ({zone}): {figure:.1f} µs, the goal is {GOAL[what]:g}"
        for (what, expression, zone), figure in own.items()
        if figure >= GOAL.get(what, float("inf"))
    ]
    slower = [
        f"parse + next of {m.expression!r} ({m.zone}) takes cronsim {m.median:.1f} µs"
        for m in found
        if m.library == "cronsim" and m.what == "parse + next" and m.median < own[m.what, m.expression, m.zone]
    ]
    return late + slower


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time triggers beside cronsim and croniter.")
    parser.add_argument("--repeat", type=int, default=7, help="rounds; the median is reported (default 7)")
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    options = parser.parse_args()
    found = []
    print(json.dumps({"machine": machine()}))
    for figure in measurements(options.repeat):
        found.append(figure)
        if options.json:
            print(json.dumps(asdict(figure)), flush=True)
        else:
            span = f"{figure.least:.1f}-{figure.most:.1f}"
            line = f"{figure.expression:22} {figure.zone:14} {figure.what:13} {figure.library:9}"
            print(f"{line} {figure.median:9.1f} µs  ({span})", flush=True)
    missed = misses(found)
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
