"""The tasks that every scenario enqueues, under names that do not depend on who registers them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import Durability
from liteq import LiteQ, Task

ADD, STAMP = "benchmarks.add", "benchmarks.stamp"


class Queue(NamedTuple):
    """An app on one file, and its tasks."""

    app: LiteQ
    add: Task[[int, int], int]
    stamp: Task[[], float]


def open_queue(path: Path, durability: Durability) -> Queue:
    """The benchmarks' app on this file; close ``app`` when done."""
    app = LiteQ(path, durability=durability)
    return Queue(app, app.task(name=ADD)(add), app.task(name=STAMP)(stamp))


def add(a: int, b: int) -> int:
    """The no-op: two integers in, one out."""
    return a + b


def stamp() -> float:
    """When the body began, in seconds since the epoch: a clock that all processes of a machine share."""
    return time.time()


def payload(queue: Queue, a: int, b: int) -> bytes:
    """The bytes that liteq stores for ``add(a, b)``, for the floors to store as well."""
    engine = queue.app.engine
    return engine.runtime.serializer.dumps_call((a, b), {}, ("a", "b"))
