"""The scenarios by name, in the order in which they run. Each module has one, and says what it measures and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks.harness import Bench, Figure
from benchmarks.scenarios import (
    blocked,
    contention,
    coroutines,
    depth,
    drain,
    enqueue,
    files,
    idle,
    importing,
    latency,
    map_calls,
    peers,
    recovery,
    schedules,
    soak,
    steps,
    triggers,
    unique,
    upkeep,
    workflows,
)


class Scenario(NamedTuple):
    """One line of ``python -m benchmarks``.

    Args:
        title: what is measured, for people.
        run: yields the figures as they come in.
        on_request: it takes so long that it only runs where it is named.
    """

    title: str
    run: Callable[[Bench], Iterator[Figure]]
    on_request: bool = False


SCENARIOS = {
    "enqueue": Scenario("one call a job, one process", enqueue.run),
    "unique": Scenario("one call a job, with a key and without", unique.run),
    "map": Scenario(f"{map_calls.CALLS:,} jobs a call", map_calls.run),
    "drain": Scenario("no-op jobs, results stored", drain.run),
    "coroutines": Scenario("no-op async def jobs, and hundreds that wait at once", coroutines.run),
    "latency": Scenario(f"an idle consumer, a job every {latency.EVERY * 1e3:.0f} ms", latency.run),
    "idle": Scenario(f"a consumer with {idle.WORKERS} workers and nothing to do", idle.run),
    "depth": Scenario("a round of claim and finish, by how much waits", depth.run),
    "blocked": Scenario(f"a round of claim and finish beside {blocked.BLOCKED:,} blocked jobs", blocked.run),
    "contention": Scenario(f"{contention.PRODUCERS} producers and a consumer, all saturating", contention.run),
    "file": Scenario("a directory of plain files instead of SQLite, beside huey's", files.run),
    "recovery": Scenario("from kill -9 to the second run of what was running", recovery.run),
    "schedules": Scenario("each slot once and on time, under kills, and 10,000 schedules", schedules.run),
    "steps": Scenario("one recorded step, plain and as a coroutine, beside one insert", steps.run),
    "workflows": Scenario("a chord, a pipeline, and 100,000 jobs that wait", workflows.run),
    "upkeep": Scenario("purge and backup of a large file in use, and what is left of it", upkeep.run),
    "soak": Scenario(
        "10,000,000 jobs of many kinds, and what grows (an hour; only where named)", soak.run, on_request=True
    ),
    "triggers": Scenario("cron expressions, read and asked for their next run", triggers.run),
    "import": Scenario("the import statement, in fresh processes", importing.run),
    "peers": Scenario("other queues on this machine, as they come", peers.run),
}
