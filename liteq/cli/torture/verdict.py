"""What was lost, and what was run twice while its first owner lived. Pure: facts in, figures out.

Every fact comes from outside liteq, but one: in which state liteq says that each job stands at the end. A job is

- **lost** if its enqueue returned and it has not ended as its task is made to end, or is said to have succeeded without
  ever having been run to its end;
- **run twice** if a run of it begins while an earlier one still goes on, or has reached its end, and both the worker
  and the consumer of the earlier one are known to have lived on past that beginning. (One that was killed between the
  end of a job and the commit of its outcome had to be run again: nobody can know.)
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from liteq import JobState

#: The task that is made to fail for good, and how often it is run for that.
DOOMED, DOOMED_RUNS = "doomed", 2


@dataclass(slots=True)
class Run:
    """One execution of a job; instants on the monotonic clock."""

    job: str
    number: str
    worker: str
    consumer: str
    started: float
    ended: float | None = None
    how: str = ""


@dataclass(frozen=True, slots=True)
class Kill:
    """A kill -9, and when: a moment before it."""

    at: float
    role: str
    name: str


@dataclass(slots=True)
class Facts:
    """What is known.

    Args:
        enqueued: the task of each job whose enqueue has returned.
        runs: of each job, in the order in which they were told.
        alive_until: for each worker and consumer, when it was last known to live.
        kills: all that were done.
        refused: the errors that callers of liteq have seen: type and message.
        states: in which state liteq says that each job stands at the end.
    """

    enqueued: dict[str, str] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=dict)
    alive_until: dict[str, float] = field(default_factory=dict)
    kills: list[Kill] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    states: dict[str, JobState] = field(default_factory=dict)

    def seen(self, name: str, at: float) -> None:
        """It lived then."""
        self.alive_until[name] = max(at, self.alive_until.get(name, at))


def lost(facts: Facts) -> Iterator[str]:
    """The jobs that were lost, each with what became of it."""
    for job, task in facts.enqueued.items():
        state = facts.states.get(job)
        ends = [run.how for run in facts.runs.get(job, ())]
        if state is None:
            yield f"job {job} of {task} was enqueued and is not there"
        elif task == DOOMED:
            if state is not JobState.FAILED or ends.count("failed") < DOOMED_RUNS:
                yield f"job {job} of {task} is {state} after {ends.count('failed')} failures"
        elif state is not JobState.SUCCEEDED:
            yield f"job {job} of {task} is {state} after {len(ends)} runs"
        elif "ok" not in ends:
            yield f"job {job} of {task} is said to have succeeded, but was never run to its end"


def run_twice(facts: Facts) -> Iterator[str]:
    """The runs that should not have been."""
    for job, runs in facts.runs.items():
        ordered = sorted(runs, key=lambda run: run.started)
        for number, later in enumerate(ordered):
            for earlier in ordered[:number]:
                if _is_doubled(earlier, later, facts.alive_until):
                    yield _doubling(job, earlier, later)


def _is_doubled(earlier: Run, later: Run, alive_until: Mapping[str, float]) -> bool:
    if earlier.ended is not None and earlier.ended > later.started:
        return True  # whoever ended it lived
    if earlier.how in ("failed", "stopped"):
        return False  # a retry, or given back: it was to be run again
    owners = (alive_until.get(name, 0.0) for name in (earlier.worker, earlier.consumer))
    return min(owners) > later.started


def _doubling(job: str, earlier: Run, later: Run) -> str:
    def told(run: Run) -> str:
        return f"{run.number} by worker {run.worker} of {run.consumer} ({run.how or 'unfinished'})"

    after = later.started - earlier.started
    return f"job {job}: attempt/claim {told(earlier)}, and {after:.3f} s later {told(later)}"


def recoveries(facts: Facts, role: str) -> list[float]:
    """For each job that was running in a worker, or consumer, when that was killed: seconds until it ran again."""
    kills = {kill.name: kill.at for kill in facts.kills if kill.role == role}
    found = []
    for runs in facts.runs.values():
        for run in runs:
            at = kills.get(run.worker if role == "worker" else run.consumer)
            if at is not None and run.started < at and run.ended is None:
                found += [min(again) - at] if (again := _starts_after(at, runs)) else []
    return found


def _starts_after(at: float, runs: Iterable[Run]) -> list[float]:
    return [run.started for run in runs if run.started > at]


def is_locked(error: tuple[str, str]) -> bool:
    """Whether an error says that somebody else had the file's lock."""
    return error[0] == "StorageBusy" or "locked" in error[1]


def spread(times: Sequence[float]) -> dict[str, float | int | None]:
    """Number, median and maximum of some seconds."""
    if not times:
        return {"number": 0, "p50": None, "max": None}
    return {"number": len(times), "p50": round(statistics.median(times), 4), "max": round(max(times), 4)}
