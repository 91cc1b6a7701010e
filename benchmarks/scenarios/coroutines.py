"""How fast a consumer runs ``async def`` tasks that do nothing, and what many that wait at once cost.

Contestants: ``liteq_consumer --quiet --burst -k asyncio`` in a process of its own, on a file that was filled
beforehand; the same without start-up as in `drain`. No floor: what `drain` compares with is the same here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.harness import JOBS, MILLISECONDS, Bench, Figure
from benchmarks.scenarios.drain import liteq
from benchmarks.tasks import open_queue, register_coroutines

WORKERS = (10, 100)
#: So many jobs that wait for this many seconds, all at once.
WAITING, SECONDS = 500, 1.0


def run(bench: Bench) -> Iterator[Figure]:
    """Jobs a second, by durability and number of workers; and from the first begin to the last end of those that wait,
    beyond the second that each takes.
    """
    number = bench.size(30_000, 300)
    with bench.scratch() as directory:
        filled = fill(directory / "filled", number)
        waiting = fill(directory / "waiting", bench.size(WAITING, 20), waiting=True)
        for durability in bench.durabilities:
            for workers in WORKERS:
                contestant = {"liteq": partial(liteq, filled, durability, "asyncio", workers)}
                rates = bench.take_turns(contestant, warm_up=False)["liteq"]
                yield Figure(f"{durability}/asyncio-{workers}", JOBS, tuple(rates))
            crowd = {"liteq": partial(liteq, waiting, durability, "asyncio", WAITING)}
            rates = bench.take_turns(crowd, warm_up=False)["liteq"]
            size = bench.size(WAITING, 20)
            beyond = tuple(1e3 * (size / rate - SECONDS) for rate in rates)
            yield Figure(f"{durability}/waiting-{size}/beyond", MILLISECONDS, beyond)


def fill(directory: Path, number: int, *, waiting: bool = False) -> Path:
    """A directory with a queue of so many jobs in it, to be copied."""
    directory.mkdir()
    app = open_queue(directory / "queue.db", "normal").app
    aadd, rest = register_coroutines(app)
    if waiting:
        rest.map([SECONDS] * number)
    else:
        for start in range(0, number, 10_000):
            aadd.map([(one, 2) for one in range(start, min(number, start + 10_000))])
    app.close()
    return directory
