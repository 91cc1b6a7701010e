"""What a program of many habits asks of its queue, for the scenario ``soak``: the file comes from the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

from benchmarks.harness import Durability
from liteq import LiteQ, TaskContext, every

#: Seconds for which outcomes are kept: so short that years of retention pass within the hour.
KEPT = 20.0

app = LiteQ(
    Path(os.environ["BENCHMARK_FILE"]),
    durability=cast(Durability, os.environ["BENCHMARK_DURABILITY"]),
    result_ttl=KEPT,
    failed_ttl=KEPT,
)


@app.task
def add(a: int, b: int) -> int:
    """The most frequent one."""
    return a + b


@app.task
def total(numbers: list[int]) -> int:
    """The end of a chord."""
    return sum(numbers)


@app.task(retries=1, retry_delay=1.0, context=True)
def stumble(task: TaskContext) -> int:
    """Fails once."""
    if task.attempt == 1:
        raise ValueError("not yet")
    return 1


@app.task
def fail() -> None:
    """Fails for good."""
    raise ValueError("never")


@app.task(unique=True)
def refresh(key: int) -> int:
    """Asked for more often than it is wanted."""
    return key


@app.periodic_task(every(seconds=1))
def tick() -> None:
    """A schedule of each second."""
