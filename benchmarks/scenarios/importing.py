"""What ``import liteq`` costs a program that only enqueues, beside the modules that any queue on SQLite needs.

*In use* also makes an app with a task, so that nothing is left to be imported later by every program there is. Fresh
interpreters by turns; each times its statement alone. Compiled files are kept in a directory of the run,
so that neither side compiles anything in a round that counts.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.harness import MILLISECONDS, TIMES, Bench, Figure
from benchmarks.processes import ROOT

STATEMENTS = {
    "liteq": "import liteq",
    "liteq in use": "from liteq import LiteQ; LiteQ('unused.db').task(name='benchmarks.none')(lambda: None)",
    "floor": "import sqlite3, json, threading, dataclasses",
}
_PROGRAM = (
    "import sys, time; sys.path.insert(0, sys.argv[1]); t = time.perf_counter(); {}; print(time.perf_counter() - t)"
)


def run(bench: Bench) -> Iterator[Figure]:
    """Milliseconds, and the ratio of the medians."""
    with bench.scratch() as cache:
        contestants = {name: partial(_import, statement, cache) for name, statement in STATEMENTS.items()}
        for contestant in contestants.values():
            contestant(cache)  # compiles
        times = bench.take_turns(contestants, rounds=bench.size(6 * bench.repeat, 2), warm_up=False)
    figures = {name: Figure(name, MILLISECONDS, tuple(1e3 * one for one in values)) for name, values in times.items()}
    yield from figures.values()
    floor = figures.pop("floor").median
    yield Figure("ratio", TIMES, (figures["liteq"].median / floor,))
    yield Figure("ratio in use", TIMES, (figures["liteq in use"].median / floor,))


def _import(statement: str, cache: Path, _directory: Path) -> float:
    """Seconds that one import takes. ``-I``: nothing of the user's environment is imported before."""
    command = [sys.executable, "-I", "-X", f"pycache_prefix={cache}", "-c", _PROGRAM.format(statement), str(ROOT)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
