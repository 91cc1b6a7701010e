"""What is stored about one call of a task: Job, its states, its attempts, and how an attempt ended.

These are plain immutable values. They are named tuples rather than frozen dataclasses because a row becomes a Job, and
an outcome a transition, once per job on the path that runs 100,000 jobs a second: a frozen dataclass of this width
costs 3 µs to build, a named tuple 0.5 µs.

Instants are float seconds since the epoch (`created`, `due`, …); the properties that end in ``_at`` give the same as
aware datetimes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from liteq.instants import moment
from liteq.plan import Inputs
from liteq.unique import Unique


class JobState(StrEnum):
    """Where a job stands. The arrows between the states are in `liteq.lifecycle`."""

    SCHEDULED = "scheduled"
    READY = "ready"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REVOKED = "revoked"
    EXPIRED = "expired"
    BLOCKED = "blocked"


WAITING = frozenset({JobState.SCHEDULED, JobState.READY, JobState.BLOCKED})
FINISHED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.REVOKED, JobState.EXPIRED})


class Ending(StrEnum):
    """How one attempt ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the task raised
    TIMEOUT = "timeout"  # it ran longer than its timeout
    CRASHED = "crashed"  # its worker or its consumer died
    RETRY = "retry"  # it raised Retry
    SNOOZED = "snoozed"  # it raised Snooze; costs no attempt
    CANCELLED = "cancelled"  # it raised Cancel
    GAVE_UP = "gave up"  # it raised Fail
    INTERRUPTED = "interrupted"  # the consumer was told to stop; costs no attempt
    UNKNOWN = "unknown"  # its worker does not know the task; costs no attempt
    SUSPENDED = "suspended"  # it sleeps, or waits for an event, without a worker; costs no attempt
    DEPENDENCY = "dependency"  # it never began: a job that it waits for ended without success


class Attempt(NamedTuple):
    """One finished attempt in a job's history.

    ``error_type`` and ``message`` are empty where it succeeded; ``details`` is what is known of a crash, such as
    ``"killed by SIGKILL"``. Where a worker process died, ``peak_rss`` is the most memory it has had, in bytes,
    ``cpu_time`` the seconds of CPU that the attempt has used, and ``log`` the last lines that it logged; ``None``, or
    empty, where that is not known.
    """

    number: int
    ending: Ending
    started: float | None
    finished: float
    error_type: str = ""
    message: str = ""
    traceback: str = ""
    details: str = ""
    peak_rss: int | None = None
    cpu_time: float | None = None
    log: str = ""

    @property
    def started_at(self) -> datetime | None:
        """When it was started, if that is known."""
        return None if self.started is None else moment(self.started)

    @property
    def finished_at(self) -> datetime:
        """When it ended."""
        return moment(self.finished)


class Death(NamedTuple):
    """What is known of an attempt that ended with the death of its worker process; the fields are those of Attempt."""

    peak_rss: int | None = None
    cpu_time: float | None = None
    log: str = ""


class Progress(NamedTuple):
    """How far a running job says it is."""

    done: float
    total: float | None = None
    message: str = ""


class Job(NamedTuple):
    """One stored call of a task.

    ``seq`` is the order of enqueue, ``id`` the public name. ``attempt`` counts the attempts that were started and not
    given back; ``base`` is that count when the job was last requeued by hand, so ``attempt - base`` is spent of the
    present allowance; ``crashes`` of those ended by the death of a worker. ``claim`` is raised by every claim and never
    lowered: the fencing token. ``unique`` is what a new job says for its enqueue; a stored one says ``None``.
    ``inputs`` is set where it is claimed: the results of the jobs that it has waited for.
    """

    seq: int
    id: str
    task: str
    state: JobState
    queue: str = "default"
    priority: int = 0
    payload: bytes = b""
    created: float = 0.0
    due: float | None = None
    expires: float | None = None
    options: str | None = None
    summary: str | None = None
    claim: int = 0
    attempt: int = 0
    base: int = 0
    crashes: int = 0
    owner: int | None = None
    started: float | None = None
    finished: float | None = None
    result: bytes | None = None
    reason: str | None = None
    progress: Progress | None = None
    attempts: tuple[Attempt, ...] = ()
    unique: Unique | None = None
    inputs: Inputs | None = None

    @property
    def created_at(self) -> datetime:
        """When it was enqueued (aware, UTC)."""
        return moment(self.created)

    @property
    def run_at(self) -> datetime | None:
        """When it is or was due, if it was delayed."""
        return None if self.due is None else moment(self.due)

    @property
    def expires_at(self) -> datetime | None:
        """By when it must have been started, if at all."""
        return None if self.expires is None else moment(self.expires)

    @property
    def started_at(self) -> datetime | None:
        """When its last attempt was started, if it was."""
        return None if self.started is None else moment(self.started)

    @property
    def finished_at(self) -> datetime | None:
        """When it ended, if it has."""
        return None if self.finished is None else moment(self.finished)

    @property
    def error(self) -> Attempt | None:
        """The last attempt, if it did not succeed."""
        last = self.attempts[-1] if self.attempts else None
        return last if last is not None and last.ending is not Ending.SUCCEEDED else None

    @property
    def slot(self) -> datetime | None:
        """The instant of its schedule that it stands for (aware, UTC), if a schedule made it."""
        slot = _origin(self.options).get("slot")
        return None if slot is None else moment(slot)

    @property
    def schedule(self) -> str | None:
        """The name of the schedule that made it, if one did."""
        return _origin(self.options).get("schedule")

    @property
    def headers(self) -> dict[str, str]:
        """What travels beside its arguments: ``using(headers={...})``, and what middleware adds."""
        if self.options is None or _HEADERS_IN_TEXT not in self.options:
            return {}
        return dict(json.loads(self.options).get(HEADERS, {}))

    @property
    def arguments(self) -> str:
        """A short text of the arguments, without decoding them."""
        if self.summary is not None:
            return self.summary
        return shorten(self.payload[:200].decode("utf-8", "replace"))


#: Under which a job's options hold its headers.
HEADERS = "headers"
_HEADERS_IN_TEXT = f'"{HEADERS}":'


def with_headers(options: str | None, headers: Mapping[str, str]) -> str | None:
    """The options of a job with these headers instead of those that it has; ``None`` where there is nothing to say."""
    given = {} if options is None else json.loads(options)
    given.pop(HEADERS, None)
    if headers:
        given[HEADERS] = dict(headers)
    return json.dumps(given, separators=(",", ":")) if given else None


def origin_text(options: str | None, schedule: str, slot: float, follows: str | None = None) -> str:
    """The options of a job with the schedule and the slot that it comes from, and the run that it waits for, if any."""
    given = {} if options is None else json.loads(options)
    origin = {"schedule": schedule, "slot": slot} | ({} if follows is None else {"follows": follows})
    return json.dumps(given | origin, separators=(",", ":"))


def followed(job: Job) -> str | None:
    """The id of the run of its schedule that the job was made to wait for."""
    return _origin(job.options).get("follows")


def _origin(options: str | None) -> dict[str, Any]:
    return json.loads(options) if options is not None and '"slot":' in options else {}


def shorten(text: str, width: int = 120) -> str:
    """One line of at most ``width`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


class Outcome(NamedTuple):
    """What a worker reports about one attempt; made of plain values, so that it travels between processes.

    ``delay`` is what the task asked for with Retry or Snooze, in seconds; ``retryable`` is False when ``retry_on`` or
    ``give_up_on`` forbid another attempt; ``death`` is only known to whoever found the worker dead. One that was
    suspended goes on after ``delay``, or when the event comes that it ``awaits``, if it awaits one. ``settled``
    marks a success that the worker has stored itself, with what the job has written (`TaskContext.connection`).
    """

    seq: int
    claim: int
    ending: Ending
    started: float
    finished: float
    result: bytes | None = None
    error_type: str = ""
    message: str = ""
    traceback: str = ""
    delay: float | None = None
    retryable: bool = True
    details: str = ""
    death: Death | None = None
    awaits: str | None = None
    settled: bool = False


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a question is about; everything given must match.

    Args:
        states: any of these; empty: all.
        queue: exactly this queue.
        task: exactly this task name.
        owner: running for this owner.
        reason: exactly this reason (of blocked jobs).
        after: only jobs beyond this ``seq`` in the direction of reading.
        finished_before: finished before this instant.
        expired_at: waiting, and its ``expires`` is not after this instant …
        expired_after: … but after this one.
        newest_first: descending ``seq``.
        limit: at most so many; ``None``: all.
    """

    states: frozenset[JobState] = frozenset()
    queue: str | None = None
    task: str | None = None
    owner: int | None = None
    reason: str | None = None
    after: int | None = None
    finished_before: float | None = None
    expired_at: float | None = None
    expired_after: float = float("-inf")
    newest_first: bool = False
    limit: int | None = None
