"""The same no-op as a task of huey, which ``huey_consumer`` imports. What stores it comes from the environment."""

from __future__ import annotations

import os
from typing import Any

from huey import FileHuey, SqliteHuey  # type: ignore[import-not-found,import-untyped,unused-ignore]


def make(peer: str, path: str) -> Any:
    """huey on this file or directory; ``peer`` as in `benchmarks.scenarios.peers`."""
    if peer == "huey-file":
        return FileHuey("benchmark", path=path)
    if peer == "huey-sqlite-off":
        return SqliteHuey("benchmark", filename=path, fsync=False)
    return SqliteHuey("benchmark", filename=path)  # as it comes: synchronous=FULL


huey = make(os.environ.get("BENCHMARK_PEER", ""), os.environ.get("BENCHMARK_FILE", ":memory:"))


@huey.task()  # type: ignore[untyped-decorator,unused-ignore]
def add(a: int, b: int) -> int:
    """Two integers in, one out."""
    return a + b
