"""The tasks that every scenario enqueues, under names that do not depend on who registers them."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import Durability
from liteq import FileStorage, LiteQ, Task

ADD, STAMP, LINGER = "benchmarks.add", "benchmarks.stamp", "benchmarks.linger"


class Queue(NamedTuple):
    """An app on one file, and its tasks."""

    app: LiteQ
    add: Task[[int, int], int]
    stamp: Task[[], float]
    linger: Task[[str], float]


def open_queue(path: Path, durability: Durability) -> Queue:
    """The benchmarks' app on this file, or, where the path has no suffix, this directory; close ``app`` when done."""
    app = LiteQ(path, durability=durability) if path.suffix else LiteQ(FileStorage(path, durability=durability))
    return Queue(app, app.task(name=ADD)(add), app.task(name=STAMP)(stamp), app.task(name=LINGER)(linger))


def register_coroutines(app: LiteQ) -> tuple[Task[[int, int], int], Task[[float], None]]:
    """The tasks of the scenario ``coroutines``, known to every consumer."""
    return app.task(name="benchmarks.aadd")(aadd), app.task(name="benchmarks.rest")(rest)


async def aadd(a: int, b: int) -> int:
    """The no-op as a coroutine."""
    return a + b


async def rest(seconds: float) -> None:
    """Wait, and do nothing else."""
    await asyncio.sleep(seconds)


def add(a: int, b: int) -> int:
    """The no-op: two integers in, one out."""
    return a + b


def stamp() -> float:
    """When the body began, in seconds since the epoch: a clock that all processes of a machine share."""
    return time.time()


def linger(log: str) -> float:
    """When the body began, and which process runs it, as a line of a file; only the second one returns."""
    began = time.time()
    with Path(log).open("a", encoding="ascii") as file:
        file.write(f"{os.getpid()} {began}\n")
    if Path(log).read_text(encoding="ascii").count("\n") == 1:
        time.sleep(3600)
    return began


def payload(queue: Queue, a: int, b: int) -> bytes:
    """The bytes that liteq stores for ``add(a, b)``, for the floors to store as well."""
    engine = queue.app.engine
    return engine.runtime.serializer.dumps_call((a, b), {}, ("a", "b"))
