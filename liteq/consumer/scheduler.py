"""What consumers do besides running jobs: bring back the jobs of dead ones, end what has expired, delete what is old.

Each duty has a rhythm and runs in the dispatcher's thread between two rounds, in small transactions. All of it may be
done by any number of consumers at once: the storage's guards decide who was first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from liteq import logs
from liteq.engine import AT_ONCE, Engine
from liteq.job import JobState

#: Seconds between two looks. A death is also announced by the storage's watch, so this is for platforms without events.
RECOVER_EVERY = 5.0
EXPIRE_EVERY = 1.0
EXPIRE_ALL_EVERY = 60.0
UNPARK_EVERY = 5.0
PURGE_EVERY = 60.0
#: While there is more to delete, how long to wait between two batches: at most one part in ten of the time is spent.
PURGE_AGAIN = 0.05

_KEPT_SHORT = frozenset({JobState.SUCCEEDED, JobState.REVOKED, JobState.EXPIRED})
_KEPT_LONG = frozenset({JobState.FAILED})


@dataclass(slots=True)
class _Duty:
    """Something done every so often; ``work`` may return after how many seconds it wants to go on."""

    work: Callable[[], float | None]
    every: float
    due: float = 0.0


class Scheduler:
    """The duties of one consumer.

    Args:
        engine: the app's.
        shared: also do what one consumer does for all: expiry and retention (``-n`` turns it off).
    """

    def __init__(self, engine: Engine, *, shared: bool = True) -> None:
        self._engine = engine
        self._expired_until = float("-inf")
        self._expire_all_at = float("-inf")
        #: Whether the last `run` made jobs ready.
        self.made_ready = False
        self._recover = _Duty(self._recover_dead, RECOVER_EVERY)
        self._duties = [self._recover, _Duty(self._unpark, UNPARK_EVERY)]
        if shared:
            self._duties += [_Duty(self._expire, EXPIRE_EVERY), _Duty(self._purge, PURGE_EVERY)]

    def somebody_died(self) -> None:
        """Look for dead consumers at the next opportunity."""
        self._recover.due = 0.0

    def run(self, now: float) -> float:
        """Do what is due.

        Args:
            now: on the monotonic clock.

        Returns:
            When something is due next, on the same clock.
        """
        self.made_ready = False
        for duty in self._duties:
            if duty.due <= now:
                again = duty.work()
                duty.due = now + (duty.every if again is None else again)
        return min(duty.due for duty in self._duties)

    def _recover_dead(self) -> None:
        recovered = self._engine.recover()
        if recovered:
            self.made_ready = True
            logs.say(logs.WARNING, "recovered the jobs of a dead consumer", jobs=recovered)

    def _unpark(self) -> float | None:
        self._engine.drop_stale_marks()
        unparked = self._engine.unpark()
        self.made_ready = self.made_ready or unparked > 0
        return 0.0 if unparked >= AT_ONCE else None

    def _expire(self) -> float | None:
        now = self._engine.clock.now()
        # What expired before the last look was ended then, or was running. Only a job that was given back since needs
        # the look at everything, and a jump of the clock back.
        everything = now >= self._expire_all_at or now < self._expired_until
        if self._engine.expire(now, float("-inf") if everything else self._expired_until) >= AT_ONCE:
            return 0.0
        self._expired_until = now
        if everything:
            self._expire_all_at = now + EXPIRE_ALL_EVERY
        return None

    def _purge(self) -> float | None:
        now = self._engine.clock.now()
        purged = 0
        for states, ttl in ((_KEPT_SHORT, self._engine.result_ttl), (_KEPT_LONG, self._engine.failed_ttl)):
            if ttl is not None:
                purged = max(purged, self._engine.purge(states, now - ttl))
        return PURGE_AGAIN if purged >= AT_ONCE else None
