"""Enqueues by huey and prints how many calls it made a second: ``python -m benchmarks.programs.huey_enqueue CALLS``."""

from __future__ import annotations

import sys
import time

from benchmarks.programs.huey_app import add

if __name__ == "__main__":
    calls = int(sys.argv[1])
    add(1, 2)
    began = time.perf_counter()
    for _ in range(calls):
        add(1, 2)
    print(calls / (time.perf_counter() - began))
