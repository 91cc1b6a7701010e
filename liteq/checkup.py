"""`LiteQ.examine`: what is wrong with a queue, asked of its storage and of what is in it. Looks only."""

from __future__ import annotations

from liteq.engine import Engine
from liteq.errors import StorageError
from liteq.findings import Finding, Verdict
from liteq.job import JobFilter, JobState
from liteq.lifecycle import PAUSE_MARK, UNKNOWN_TASK

#: A job that was enqueued so many seconds after now shows that a clock is wrong.
SKEW = 60.0
#: Of the jobs of a queue, the first so many are looked at for the one that has been ready longest.
LOOKED_AT = 1000
#: Before it, no clock that is right can be (2020-01-01): a computer without a battery starts at 1970 or so.
EARLIEST = 1_577_836_800.0


def examine(engine: Engine, *, thorough: bool = True) -> list[Finding]:
    """Ask everything; see `LiteQ.examine`."""
    findings: list[Finding] = []
    try:
        for finding in engine.storage.examine(thorough=thorough):
            findings.append(finding)  # one by one: what was found before the file turned out unreadable counts
        for question in (_schema, _clock, _consumers, _dead, _oldest, _parked, _failed):
            findings.append(question(engine))
    except StorageError as error:
        advice = "nothing can be told of what is in it until it can be read"
        findings.append(Finding("storage", Verdict.WRONG, str(error), advice))
    return findings


def _schema(engine: Engine) -> Finding:
    version = engine.storage.schema_version()
    return Finding("schema", Verdict.OK, "none: kept in memory" if version is None else f"version {version}")


def _clock(engine: Engine) -> Finding:
    now = engine.clock.now()
    if now < EARLIEST:
        return Finding("clock", Verdict.WRONG, "it is before 2020 here", "set it: delays and schedules follow it")
    newest = engine.storage.find(JobFilter(newest_first=True, limit=1))
    ahead = newest[0].created - now if newest else 0.0
    if ahead <= SKEW:
        return Finding("clock", Verdict.OK, "the newest job is not from the future")
    found = f"the newest job was enqueued {ahead:.0f} s after now"
    return Finding("clock", Verdict.WARNING, found, "a clock was set back, here or where it was enqueued")


def _consumers(engine: Engine) -> Finding:
    alive = sum(owner.alive for owner in engine.storage.owners() if "worker_type" in owner.info)
    if alive:
        return Finding("consumers", Verdict.OK, f"{alive} alive")
    waiting = sum(engine.storage.queues().values())
    verdict = Verdict.WARNING if waiting else Verdict.NOTE
    return Finding("consumers", verdict, f"none is alive; {waiting} jobs are ready", "start one: liteq_consumer APP")


def _dead(engine: Engine) -> Finding:
    dead = engine.storage.dead_owners()
    if not dead:
        return Finding("dead_consumers", Verdict.OK, "none")
    found = f"{len(dead)} died without saying goodbye"
    return Finding("dead_consumers", Verdict.WARNING, found, "the next consumer that starts puts back what they ran")


def _oldest(engine: Engine) -> Finding:
    age = oldest_ready(engine)
    found = "no job is waiting" if age is None else f"the oldest ready job has waited for {age:.0f} s"
    return Finding("oldest_ready", Verdict.OK, found)


def oldest_ready(engine: Engine) -> float | None:
    """See `LiteQ.oldest_ready`."""
    now = engine.clock.now()
    paused = {key.removeprefix(PAUSE_MARK) for key in engine.storage.marks(PAUSE_MARK)}
    ages: list[float] = []
    for queue in set(engine.storage.queues()) - paused:
        jobs = engine.storage.find(JobFilter(frozenset({JobState.READY}), queue, limit=LOOKED_AT))
        ages += [max(0.0, now - max(job.created, job.due or 0.0)) for job in jobs if not job.base]
    return max(ages, default=None)


def _parked(engine: Engine) -> Finding:
    parked = engine.storage.reasons(UNKNOWN_TASK)
    if not parked:
        return Finding("unknown_tasks", Verdict.OK, "none")
    names = ", ".join(sorted(reason.removeprefix(UNKNOWN_TASK) for reason in parked)[:5])
    advice = "register these tasks (or an alias: @app.task(aliases=...)) and restart a consumer, or revoke the jobs"
    return Finding("unknown_tasks", Verdict.WARNING, f"{sum(parked.values())} jobs are parked: {names}", advice)


def _failed(engine: Engine) -> Finding:
    number = engine.storage.counts()[JobState.FAILED]
    if not number:
        return Finding("failed", Verdict.OK, "none")
    return Finding("failed", Verdict.NOTE, f"{number} jobs have failed", "liteq ls APP --state failed shows them")
