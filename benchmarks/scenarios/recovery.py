"""How soon the job of a dead worker, or a dead consumer, runs again.

A job writes down when its body begins, and then stays, until its process is killed with ``kill -9``; the second time it
returns at once. *Worker*: from the kill of a worker process to the second line, once with another worker that is idle
and once with none, so that one has to be started. *Consumer*: from the kill of the whole consumer, with another one
that sleeps. *Restart*: from the start of the only consumer's successor, its own start and imports included.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_all_start_methods
from pathlib import Path

from benchmarks.harness import Bench, Durability, Figure, Skipped, distribution
from benchmarks.processes import PATIENCE, ProcessFailed, consumer
from benchmarks.tasks import open_queue

SHARES = {"p50": 0.5, "max": 1.0}
#: With so many workers one is idle, or none.
WORKERS = {"idle": 2, "none": 1}
#: Seconds before each kill in which the worker that replaces the one before comes up.
SETTLE = 0.5
#: It has to say quite a lot about so many deaths.
_SILENT = ("--logfile", os.devnull)


def run(bench: Bench) -> Iterator[Figure]:
    """Milliseconds, with each durability and way to start processes."""
    if not hasattr(signal, "SIGKILL"):
        raise Skipped("kills by signals, which this system does not have")
    number, rounds = bench.size(10, 1), bench.rounds(3)
    for durability in bench.durabilities:
        contestants = {
            f"{durability}/worker/{method}/{name}": partial(_workers_die, durability, method, workers, number)
            for method in get_all_start_methods()
            for name, workers in WORKERS.items()
        }
        few = bench.size(5, 1)
        for kind in ("thread", "process"):
            contestants[f"{durability}/consumer/{kind}"] = partial(_consumers_die, durability, kind, few)
            contestants[f"{durability}/restart/{kind}"] = partial(_the_only_one_dies, durability, kind, few)
        for name, samples in bench.take_turns(contestants, rounds=rounds, warm_up=False).items():
            yield from distribution(name, samples, SHARES)


def _workers_die(durability: Durability, method: str, workers: int, number: int, directory: Path) -> list[float]:
    queue = open_queue(directory / "queue.db", durability)
    samples = []
    with consumer(directory / "queue.db", durability, "process", workers, "--start-method", method, *_SILENT):
        for one in range(number):
            result, log = queue.linger(str(directory / f"log-{one}")), directory / f"log-{one}"
            pid = _first_line(log)
            time.sleep(SETTLE)
            killed = time.time()
            os.kill(pid, signal.SIGKILL)
            samples.append(result.get(timeout=PATIENCE) - killed)
    queue.app.close()
    return samples


def _consumers_die(durability: Durability, kind: str, number: int, directory: Path) -> list[float]:
    queue, path = open_queue(directory / "queue.db", durability), directory / "queue.db"
    samples = []
    for one in range(number):
        with consumer(path, durability, kind, 1, *_SILENT) as victim:
            result = queue.linger(str(directory / f"log-{one}"))
            _first_line(directory / f"log-{one}")
            with consumer(path, durability, kind, 1, *_SILENT):
                _until(lambda: sum(each.alive for each in queue.app.consumers()) == 2)
                time.sleep(SETTLE)
                killed = _kill(victim)
                samples.append(result.get(timeout=PATIENCE) - killed)
    queue.app.close()
    return samples


def _the_only_one_dies(durability: Durability, kind: str, number: int, directory: Path) -> list[float]:
    queue, path = open_queue(directory / "queue.db", durability), directory / "queue.db"
    samples = []
    for one in range(number):
        with consumer(path, durability, kind, 1, *_SILENT) as victim:
            result = queue.linger(str(directory / f"log-{one}"))
            _first_line(directory / f"log-{one}")
            _kill(victim)
        started = time.time()
        with consumer(path, durability, kind, 1, *_SILENT):
            samples.append(result.get(timeout=PATIENCE) - started)
    queue.app.close()
    return samples


def _kill(process: subprocess.Popen[str]) -> float:
    killed = time.time()
    process.kill()
    process.wait()
    return killed


def _first_line(log: Path) -> int:
    """The process that runs the job, once it does."""
    _until(lambda: log.exists() and "\n" in log.read_text(encoding="ascii"))
    return int(log.read_text(encoding="ascii").split()[0])


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise ProcessFailed("a consumer does not run its job")
        time.sleep(0.001)
