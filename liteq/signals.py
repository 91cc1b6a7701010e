"""What happens to jobs, announced: signal names, and who listens.

Receivers are called as ``receiver(signal, job, error)`` after the change has been committed: ``job`` is the Job as it
now stands, ``error`` a TaskFailed or ``None``. One failing receiver is reported and never stops the others. In a
consumer they run in its own process, one after another, on a thread of their own, so that a slow one delays no job.

    from liteq import signals as S

    @app.signal(S.ERROR, S.CRASHED)
    def alert(signal, job, error): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from liteq.errors import TaskFailed
from liteq.job import Job

ENQUEUED = "enqueued"  # stored, in the process that called the task
SCHEDULED = "scheduled"  # stored with a time that is still to come
EXECUTING = "executing"  # handed to a worker
COMPLETE = "complete"  # succeeded
ERROR = "error"  # failed for good
RETRYING = "retrying"  # failed, will run again
CRASHED = "crashed"  # its worker died; sent before RETRYING or ERROR
CANCELED = "canceled"  # the task raised Cancel
REVOKED = "revoked"  # somebody revoked it
EXPIRED = "expired"  # not started in time
INTERRUPTED = "interrupted"  # put back because the consumer stops
SNOOZED = "snoozed"  # the task raised Snooze, sleeps, or waits for an event
BLOCKED = "blocked"  # parked: no consumer here knows its task

ALL = (
    ENQUEUED,
    SCHEDULED,
    EXECUTING,
    COMPLETE,
    ERROR,
    RETRYING,
    CRASHED,
    CANCELED,
    REVOKED,
    EXPIRED,
    INTERRUPTED,
    SNOOZED,
    BLOCKED,
)

Receiver = Callable[[str, Job, "TaskFailed | None"], Any]


def check_names(names: Iterable[object]) -> None:
    """Refuse what is not the name of a signal.

    Raises:
        TypeError: it is not even a string. ValueError: there is no such signal.
    """
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"@app.signal(...) takes names of signals, not {type(name).__name__} {name!r}")
        if name not in ALL:
            raise ValueError(f"there is no signal {name!r}; the signals are {', '.join(ALL)}")


class Signals:
    """Who listens to what.

    Args:
        report: called with (receiver's name, signal, job, error) when a receiver raises.
    """

    def __init__(self, report: Callable[[str, str, Job, BaseException], None]) -> None:
        self._receivers: dict[str, list[Receiver]] = {}
        self._report = report

    def connect(self, receiver: Receiver, *names: str) -> None:
        """Call ``receiver`` at these signals; none named: at all.

        Raises:
            TypeError, ValueError: see `check_names`.
        """
        check_names(names)
        for name in names or ALL:
            self._receivers.setdefault(name, []).append(receiver)

    def disconnect(self, receiver: Receiver, *names: str) -> None:
        """Stop calling ``receiver`` at these signals; none named: at all."""
        for name in names or ALL:
            receivers = self._receivers.get(name, [])
            if receiver in receivers:
                receivers.remove(receiver)

    def heard(self, *names: str) -> bool:
        """Whether anybody listens to one of these."""
        return any(map(self._receivers.get, names))

    def __bool__(self) -> bool:
        return any(self._receivers.values())

    def send(
        self, name: str, job: Job, error: TaskFailed | None = None, *, absorbed: type[BaseException] = Exception
    ) -> None:
        """Call the receivers of ``name``, each whatever the others do.

        Args:
            absorbed: what a receiver may raise without stopping the caller; it is reported.
        """
        for receiver in tuple(self._receivers.get(name, ())):
            try:
                receiver(name, job, error)
            except absorbed as problem:
                self._report(getattr(receiver, "__qualname__", repr(receiver)), name, job, problem)
