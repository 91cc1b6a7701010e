"""What ``unique=`` costs an enqueue: one call, one job, one transaction, one process.

Contestants: ``add(n, 2)`` of a task without a key, with ``unique=True``, and with ``unique="{a}"``, each key a new one;
and a thousand calls of one key, of which the first is stored and the others get its Result. Fresh file for each. The
ratios are times: of a call with a key, to one without.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import JOBS, TIMES, Bench, Durability, Figure
from benchmarks.tasks import add
from liteq import LiteQ

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "arguments": {"unique": True},
    "template": {"unique": "{a}"},
    "known": {"unique": "one key"},
}


def run(bench: Bench) -> Iterator[Figure]:
    """Calls a second, and how many times as long as a plain one each takes."""
    for durability in bench.durabilities:
        calls = bench.size({"full": 1_000, "normal": 6_000}[durability], 50)
        rates = bench.take_turns({kind: partial(_enqueue, durability, kind, calls) for kind in KINDS})
        for kind, found in rates.items():
            yield Figure(f"{durability}/{kind}", JOBS, tuple(found))
        for kind in ("arguments", "template", "known"):
            times = [plain / rate for plain, rate in zip(rates["plain"], rates[kind], strict=True)]
            yield Figure(f"{durability}/{kind}/times", TIMES, tuple(times))


def _enqueue(durability: Durability, kind: str, calls: int, directory: Path) -> float:
    app = LiteQ(directory / "queue.db", durability=durability)
    task = app.task(name="benchmarks.add", **KINDS[kind])(add)
    task(-1, 2)
    began = time.perf_counter()
    for number in range(calls):
        task(number, 2)
    took = time.perf_counter() - began
    app.close()
    return calls / took
