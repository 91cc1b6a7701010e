"""What a durable step costs: one result, recorded in a transaction of its own, before the job goes on.

Contestants: a job of thousands of steps that do nothing, run by a consumer with one thread, as a plain function
(``task.step``) and as a coroutine (``await task.astep``); the time is taken inside the job, so starting and settling it
are not in it. Floor: the single insert of `enqueue`, trigger included, in a loop: the least that any call of a task
costs. Fresh file for each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import floors
from benchmarks.harness import MICROSECONDS, TIMES, Bench, Durability, Figure
from benchmarks.processes import PATIENCE
from benchmarks.tasks import open_queue, payload
from liteq import LiteQ, Task, TaskContext


def run(bench: Bench) -> Iterator[Figure]:
    """Microseconds a step, and how many times the floor that is."""
    for durability in bench.durabilities:
        number = bench.size({"full": 1_000, "normal": 5_000}[durability], 20)
        contestants = {
            "step": partial(_steps, durability, number, "plain"),
            "astep": partial(_steps, durability, number, "coroutine"),
            "floor": partial(_floor, durability, number),
        }
        took = bench.take_turns(contestants)
        for name, rounds in took.items():
            yield Figure(f"{durability}/{name}", MICROSECONDS, tuple(rounds))
        for name in ("step", "astep"):
            ratios = tuple(one / floor for one, floor in zip(took[name], took["floor"], strict=True))
            yield Figure(f"{durability}/{name}/ratio", TIMES, ratios)


def _tasks(app: LiteQ) -> dict[str, Task[[int], float]]:
    @app.task(context=True, name="benchmarks.steps")
    def plain(number: int, *, task: TaskContext) -> float:
        began = time.perf_counter()
        for step in range(number):
            task.step(f"{step}", _nothing, step)
        return time.perf_counter() - began

    @app.task(context=True, name="benchmarks.asteps")
    async def coroutine(number: int, *, task: TaskContext) -> float:
        began = time.perf_counter()
        for step in range(number):
            await task.astep(f"{step}", _anothing, step)
        return time.perf_counter() - began

    return {"plain": plain, "coroutine": coroutine}


def _nothing(step: int) -> int:
    return step


async def _anothing(step: int) -> int:
    return step


def _steps(durability: Durability, number: int, which: str, directory: Path) -> float:
    """One contestant: microseconds a step."""
    app = open_queue(directory / "queue.db", durability).app
    task = _tasks(app)[which]
    with app.run_in_background(workers=1):
        took = task(number).get(timeout=PATIENCE)
    app.close()
    return 1e6 * took / number


def _floor(durability: Durability, number: int, directory: Path) -> float:
    payloads = [payload(open_queue(directory / "unused.db", durability), 1, 2)] * number
    connection = floors.create(directory / "floor.db", durability)
    floors.insert_each(connection, payloads[:1])
    began = time.perf_counter()
    floors.insert_each(connection, payloads)
    took = time.perf_counter() - began
    connection.close()
    return 1e6 * took / number
