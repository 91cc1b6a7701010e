"""What is stored about a part of a job that is not to be done twice: Step. Pure.

A job's steps are what its function has got done by ``task.step``, ``task.sleep`` and ``task.wait_for``. They belong to
the job, not to one attempt at it: the next attempt finds them and goes on behind the last one.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from liteq.instants import moment


class StepKind(StrEnum):
    """What made a step."""

    STEP = "step"  # task.step
    SLEEP = "sleep"  # task.sleep
    WAIT = "wait"  # task.wait_for


class StepState(StrEnum):
    """How far a step is. Only one that waits for an event is ever anything but done."""

    DONE = "done"
    WAITING = "waiting"
    TIMED_OUT = "timed out"


class StepKey(NamedTuple):
    """What tells the steps of one job apart; ``number`` counts sleeps, and waits for one event, from 1."""

    kind: StepKind
    name: str
    number: int = 1


class Step(NamedTuple):
    """One recorded step of a job.

    ``position`` is the order in which the function came to them; ``attempt`` the one that recorded it, at ``recorded``
    (seconds since the epoch). ``due`` is until when it sleeps, or waits at most. ``result`` is what the function
    returned, or what was sent with the event, encoded; ``None`` stands for None.
    """

    kind: StepKind
    name: str
    number: int
    state: StepState
    position: int
    attempt: int
    recorded: float
    due: float | None = None
    result: bytes | None = None

    @property
    def key(self) -> StepKey:
        """What tells it from the job's other steps."""
        return StepKey(self.kind, self.name, self.number)

    @property
    def recorded_at(self) -> datetime:
        """When it was recorded (aware, UTC)."""
        return moment(self.recorded)

    @property
    def until(self) -> datetime | None:
        """Until when it sleeps, or waits at most (aware, UTC)."""
        return None if self.due is None else moment(self.due)


def answered(waiting: Step, event: tuple[bytes | None] | None, now: float) -> Step:
    """What becomes of a wait that is asked again: the event has come, its time is over, or it goes on waiting.

    Args:
        waiting: state ``waiting``.
        event: what was sent with the event, in brackets, as that may be None; ``None``: nothing was sent.
        now: seconds since the epoch.
    """
    if event is not None:
        return waiting._replace(state=StepState.DONE, result=event[0], recorded=now)
    if waiting.due is not None and waiting.due <= now:
        return waiting._replace(state=StepState.TIMED_OUT, recorded=now)
    return waiting
