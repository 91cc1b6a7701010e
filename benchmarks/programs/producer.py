"""A producer that enqueues as fast as it can for some seconds, and prints how long each call took.

``python -m benchmarks.programs.producer liteq|floor FILE full|normal SECONDS``
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from benchmarks import floors
from benchmarks.harness import Durability
from benchmarks.tasks import open_queue, payload


def main(kind: str, file: str, durability: str, seconds: str) -> None:
    """Run; the arguments are those of the command line."""
    level = cast(Durability, durability)
    queue = open_queue(Path(file), level)
    if kind == "liteq":
        queue.add(1, 2)
        times = _repeat(lambda: queue.add(1, 2), float(seconds))
    else:
        connection = floors.connect(Path(file), level)
        stored = [payload(queue, 1, 2)]
        times = _repeat(lambda: floors.insert_each(connection, stored), float(seconds))
        connection.close()
    queue.app.close()
    print(json.dumps([round(one * 1e6) for one in times]))


def _repeat(call: Callable[[], object], seconds: float) -> list[float]:
    print("ready", flush=True)
    sys.stdin.readline()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        call()
        times.append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    main(*sys.argv[1:])
