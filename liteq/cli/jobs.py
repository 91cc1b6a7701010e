"""A job as a command shows it: the keys of its JSON, which stay as they are, and the lines for people."""

from __future__ import annotations

import json
from typing import Any

from liteq import Attempt, Job, JobNotFound, JobState, LiteQ, Step
from liteq.cli.times import iso


def find(app: LiteQ, name: str) -> Job:
    """The job of this id, or of the number before the ``-`` of a generated id.

    Raises:
        JobNotFound: there is none.
    """
    try:
        return app.job(name)
    except JobNotFound:
        job = _of_number(app, name)
        if job is None:
            raise
        return app.job(job.id)


def _of_number(app: LiteQ, name: str) -> Job | None:
    if not (name.isascii() and name.isdigit() and len(name) < 19 and int(name) > 0):
        return None
    before = Job(int(name) - 1, "", "", JobState.READY)
    for job in app.jobs(after=before, limit=1):
        if job.id.startswith(f"{name}-"):  # not a caller's own id, which has no number
            return job
    return None


def as_keys(job: Job) -> dict[str, Any]:
    """What ``ls --json`` says of a job."""
    return {
        "id": job.id,
        "task": job.task,
        "state": str(job.state),
        "queue": job.queue,
        "priority": job.priority,
        "attempt": job.attempt,
        "crashes": job.crashes,
        "created_at": iso(job.created_at),
        "run_at": iso(job.run_at),
        "expires_at": iso(job.expires_at),
        "started_at": iso(job.started_at),
        "finished_at": iso(job.finished_at),
        "reason": job.reason,
        "progress": None if job.progress is None else job.progress._asdict(),
        "arguments": job.arguments,
    }


def as_all_keys(job: Job, steps: list[Step]) -> dict[str, Any]:
    """What ``show --json`` says of a job: the same, what is stored, and its history."""
    return as_keys(job) | {
        "consumer": job.owner,
        "claim": job.claim,
        "schedule": job.schedule,
        "slot": iso(job.slot),
        "options": None if job.options is None else json.loads(job.options),
        "payload": text_of(job.payload),
        "payload_size": len(job.payload),
        "result": text_of(job.result),
        "result_size": None if job.result is None else len(job.result),
        "attempts": [_attempt(one) for one in job.attempts],
        "steps": [_step(one) for one in steps],
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "kind": str(step.kind),
        "name": step.name,
        "number": step.number,
        "state": str(step.state),
        "attempt": step.attempt,
        "recorded_at": iso(step.recorded_at),
        "until": iso(step.until),
        "result": text_of(step.result),
        "result_size": None if step.result is None else len(step.result),
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "ending": str(attempt.ending),
        "started_at": iso(attempt.started_at),
        "finished_at": iso(attempt.finished_at),
        "took": took(attempt),
        "error_type": attempt.error_type or None,
        "message": attempt.message or None,
        "traceback": attempt.traceback or None,
        "details": attempt.details or None,
        "peak_rss": attempt.peak_rss,
        "cpu_time": attempt.cpu_time,
        "log": attempt.log or None,
    }


def took(attempt: Attempt) -> float | None:
    """How long it ran, in seconds."""
    return None if attempt.started is None else max(0.0, attempt.finished - attempt.started)


def text_of(stored: bytes | None) -> str | None:
    """Stored bytes as text, where they are text: what the JSON serializer writes is."""
    if stored is None:
        return None
    try:
        return stored.decode("utf-8")
    except UnicodeDecodeError:
        return None
