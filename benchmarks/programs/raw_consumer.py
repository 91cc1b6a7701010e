"""The floors' consumers: claim and finish in bare sqlite3.

``python -m benchmarks.programs.raw_consumer drain FILE full|normal``: batch after batch, as long as there is a line
of input to come; looks again each millisecond when there is nothing.

``python -m benchmarks.programs.raw_consumer bell FILE full|normal``: one job for each line of input, which is the
bell that liteq has to find elsewhere; answers with the instant at which its body would have begun, after the finish
is stored.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import cast

from benchmarks import floors
from benchmarks.harness import Durability


def main(kind: str, file: str, durability: str) -> None:
    """Run; the arguments are those of the command line."""
    connection = floors.connect(Path(file), cast(Durability, durability))
    print("ready", flush=True)
    if kind == "bell":
        for _ in sys.stdin:
            claimed = floors.turn(connection, [], 1)
            began = time.time()
            floors.turn(connection, claimed, 0)
            print(began, flush=True)
    else:
        sys.stdin.readline()
        over = threading.Event()
        threading.Thread(target=_wait_for_end, args=(over,), daemon=True).start()
        while not over.is_set():
            if not floors.drain(connection):
                over.wait(0.001)
    connection.close()


def _wait_for_end(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


if __name__ == "__main__":
    main(*sys.argv[1:])
