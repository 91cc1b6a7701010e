"""Slots of schedules as jobs: whether the last one has ended, storing new ones, letting those go on that follow.

Whether a slot is fired is decided in `liteq.schedule`, and when that is looked at in `liteq.consumer.firing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from liteq import lifecycle, schedule
from liteq.engine import Engine
from liteq.job import FINISHED, Job, JobFilter, JobState, followed
from liteq.schedule import AFTER_JOB, MOST_FOLLOWERS, Busy, Schedule
from liteq.storage.base import Fire

#: How a run ends that had not begun: the one that it waited for may still run.
_UNSTARTED = frozenset({JobState.REVOKED, JobState.EXPIRED})


def busy(engine: Engine, standing: Schedule) -> Busy:
    """Whether the last job of a schedule has not ended, and whether that is because its worker or consumer died."""
    last = None if standing.last_id is None else _unfinished(engine, standing.last_id)
    if last is None:
        return schedule.FREE
    given_back = last.claim > last.attempt or last.crashes > 0
    dead = last.state is JobState.RUNNING and last.owner in engine.storage.dead_owners()
    followers = engine.storage.reasons(f"{AFTER_JOB}{standing.name}@") if last.state is JobState.BLOCKED else ()
    return Busy(True, given_back or dead, len(followers) >= MOST_FOLLOWERS)


def fire(engine: Engine, fires: Sequence[Fire]) -> list[list[Job] | None]:
    """Store slots with their jobs, and announce the jobs; see `Storage.fire`."""
    answers = engine.storage.fire(fires)
    for jobs in answers:
        engine.news.enqueued(jobs or ())
    return answers


def let_follow(engine: Engine) -> tuple[int, int]:
    """Let those jobs go on whose schedule's run before has ended; returns how many did and how many still wait."""
    reasons = engine.storage.reasons(AFTER_JOB)
    heads = _heads(reasons)
    freed, waiting = 0, sum(number for reason, number in reasons.items() if reason not in heads)
    for reason in heads:
        number = reasons[reason]
        if _unfinished(engine, reason.removeprefix(AFTER_JOB)) is not None:
            waiting += number
            continue
        jobs = engine.storage.find(JobFilter(states=frozenset({JobState.BLOCKED}), reason=reason))
        now = engine.clock.now()
        freed += sum(engine.storage.apply([lifecycle.unblock(job, now) for job in jobs], now))
    return freed, waiting


def _unfinished(engine: Engine, job_id: str | None) -> Job | None:
    """This run if it has not ended; if it was revoked or has expired before its turn, the one that it waited for."""
    while job_id is not None:
        job = engine.storage.get(job_id)
        if job is None or job.state not in FINISHED:
            return job
        job_id = followed(job) if job.state in _UNSTARTED else None
    return None


def _heads(reasons: Iterable[str]) -> set[str]:
    """Of jobs that wait for each other in a row, only the first needs a look: that which waits for the oldest slot."""
    rows: dict[str, tuple[str, str]] = {}
    heads = set()
    for reason in reasons:
        name, at, slot = reason.rpartition("@")
        if not at:  # it waits for a run that was started by hand
            heads.add(reason)
            continue
        order = slot.removesuffix("Z").ljust(len("2030-01-01T00:00:00.000000"), ".")  # "." sorts before a digit
        rows[name] = min(rows.get(name, (order, reason)), (order, reason))
    return heads | {reason for _, reason in rows.values()}
