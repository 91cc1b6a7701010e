"""What a running job can ask about itself, and tell: the ``task`` argument of a task with ``context=True``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from typing import Protocol

from liteq.clock import Clock
from liteq.instants import moment
from liteq.job import Job, Progress


class Channel(Protocol):
    """The way from a running job to its consumer. Each pool has its own."""

    def progress(self, job: Job, progress: Progress) -> None:
        """Pass on how far the job is; never blocks, the latest wins."""
        ...

    def is_cancelled(self, job: Job) -> bool:
        """Whether somebody revoked this job since it was started."""
        ...


class TaskContext:
    """A running job's view of itself.

    Args:
        job: as it was claimed.
        retries_left: attempts that remain should this one fail.
        deadline: on the monotonic clock; ``None``: no timeout.
    """

    __slots__ = ("_channel", "_clock", "_deadline", "_job", "retries_left")

    def __init__(self, job: Job, retries_left: int, deadline: float | None, channel: Channel, clock: Clock) -> None:
        self._job = job
        self.retries_left = retries_left
        self._deadline = deadline
        self._channel = channel
        self._clock = clock

    @property
    def id(self) -> str:
        """The job's id."""
        return self._job.id

    @property
    def name(self) -> str:
        """The task's name."""
        return self._job.task

    @property
    def queue(self) -> str:
        """The queue it waited in."""
        return self._job.queue

    @property
    def priority(self) -> int:
        """Higher first."""
        return self._job.priority

    @property
    def attempt(self) -> int:
        """1 the first time."""
        return self._job.attempt

    @property
    def enqueued_at(self) -> datetime:
        """When it was enqueued (aware, UTC)."""
        return moment(self._job.created)

    @property
    def slot(self) -> datetime | None:
        """The instant for which its schedule made it (aware, UTC), however late it runs; ``None`` where no schedule
        did."""
        return self._job.slot

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Say how far the job is; visible as ``result.progress`` from every process.

        Args:
            done: so much, in any unit.
            total: of so much, if known.
            message: a few words.
        """
        self._channel.progress(self._job, Progress(float(done), None if total is None else float(total), str(message)))

    def is_cancelled(self) -> bool:
        """Whether somebody has revoked this job since it was started. A long task asks now and then, and returns."""
        return self._channel.is_cancelled(self._job)

    def time_remaining(self) -> float | None:
        """Seconds until the task's ``timeout``; ``None`` where it has none."""
        return None if self._deadline is None else max(0.0, self._deadline - self._clock.monotonic())

    def __repr__(self) -> str:
        return f"<TaskContext {self.name} job={self.id} attempt={self.attempt}>"


class _Thread(threading.local):
    #: Whether this is the thread of an event loop on which many jobs run: a job that blocks it holds up all of them.
    is_shared = False


this_thread = _Thread()

#: The job that runs in this thread or coroutine, if any.
current_job: ContextVar[Job | None] = ContextVar("liteq_current_job", default=None)

Report = Callable[[str, Job, BaseException], None]
