"""What consumers do besides running jobs: fire schedules, bring back the jobs of dead consumers, end what has expired,
delete what is old.

Each duty has a rhythm and runs in the dispatcher's thread between two rounds, in small transactions. All of it may be
done by any number of consumers at once: the storage's guards decide who was first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from liteq import asking, deadlock, logs
from liteq.consumer import purging
from liteq.consumer.firing import Firing
from liteq.engine import AT_ONCE, Engine
from liteq.gates import KEPT_FOR
from liteq.slots import let_follow

#: Seconds between two looks. A death is also announced by the storage's watch, so this is for platforms without events.
RECOVER_EVERY = 5.0
#: While something is written, or is about to expire; otherwise as seldom as what has to be done anyway.
EXPIRE_EVERY = 1.0
EXPIRE_ALL_EVERY = 60.0
UNPARK_EVERY = 5.0
#: While something is written, and for as long after it as a slot may be kept; otherwise with the others.
LET_IN_EVERY = 1.0
#: While jobs are known to wait for another one of their schedule: how soon after a write to look, and at the latest.
FOLLOW_SOON, FOLLOW_EVERY = 0.02, 1.0


@dataclass(slots=True)
class _Duty:
    """Something done every so often; ``work`` may return after how many seconds it wants to go on."""

    work: Callable[[], float | None]
    every: float
    due: float = 0.0
    done: float = float("-inf")


class Scheduler:
    """The duties of one consumer.

    Args:
        engine: the app's.
        periodic: fire schedules (``-n`` turns it off).
        burst: the consumer ends when nothing is due.
    """

    def __init__(self, engine: Engine, *, periodic: bool = True, burst: bool = False) -> None:
        self._engine = engine
        self._firing = Firing(engine, burst=burst) if periodic else None
        self._burst = burst
        self._followed = float("-inf")
        self._followers = False
        self._now = float("-inf")
        self._stirred = True
        self._stirred_until = float("-inf")
        self._expired_until = float("-inf")
        self._expire_all_at = float("-inf")
        #: Whether the last `run` made jobs ready.
        self.made_ready = False
        self._recover = _Duty(self._recover_dead, RECOVER_EVERY)
        self._follow = _Duty(self._let_follow, UNPARK_EVERY)
        self._duties = [
            self._recover,
            self._follow,
            _Duty(self._unpark, UNPARK_EVERY),
            _Duty(purging.Purging(engine).work, purging.EVERY),
        ]
        #: What nobody has to look at while nothing is written.
        self._stirring = [_Duty(self._let_in, LET_IN_EVERY), _Duty(self._expire, EXPIRE_EVERY)]
        self._duties += self._stirring

    def somebody_died(self) -> None:
        """Look for dead consumers at the next opportunity."""
        self._recover.due = 0.0

    def data_changed(self) -> None:
        """Something was written: another schedule, or the end of a job that others wait for."""
        self._stirred = True
        if self._firing is not None:
            self._firing.data_changed()
        if self._followers:
            self._follow.due = min(self._follow.due, self._followed + FOLLOW_SOON)

    def run(self, now: float) -> float:
        """Do what is due.

        Args:
            now: on the monotonic clock.

        Returns:
            When something is due next, on the same clock.
        """
        self.made_ready, self._now = False, now
        again_at = self._fire(now)
        if self._stirred:
            self._stir(now)
        if self._burst and self._followers:
            self._follow.due = now
        for duty in self._duties:
            if duty.due <= now:
                again = duty.work()
                duty.due, duty.done = now + (duty.every if again is None else again), now
        return min(again_at, *(duty.due for duty in self._duties))

    def _stir(self, now: float) -> None:
        """Something was written: a job that expires soon, or a slot that is kept for somebody."""
        self._stirred, self._stirred_until = False, now + KEPT_FOR + LET_IN_EVERY
        for duty in self._stirring:
            duty.due = min(duty.due, duty.done + duty.every)

    def _fire(self, now: float) -> float:
        """Fire schedules; returns when to go on."""
        if self._firing is None:
            return float("inf")
        again_at = self._firing.run(now)
        self.made_ready = self._firing.made_ready
        if self._firing.made_followers:
            self._followers, self._follow.due = True, min(self._follow.due, now + FOLLOW_SOON)
        return float("inf") if again_at is None else again_at

    def _let_follow(self) -> float | None:
        begun = self._engine.clock.monotonic()
        freed, waiting = let_follow(self._engine)
        ended = self._engine.clock.monotonic()
        self._followed = ended + 10 * (ended - begun)  # at most a tenth of the time, however many wait
        self._followers = waiting > 0
        self.made_ready = self.made_ready or freed > 0
        return FOLLOW_EVERY if waiting else None

    def _recover_dead(self) -> None:
        recovered = self._engine.recover()
        if recovered:
            self.made_ready = True
            logs.say(logs.WARNING, "recovered the jobs of a dead consumer", jobs=recovered)

    def _let_in(self) -> float | None:
        if self._engine.let_in():
            self.made_ready = True
            return None
        return None if self._now < self._stirred_until else self._with_the_others()

    def _with_the_others(self) -> float:
        """How long to wait where nothing is known to be due: to the next look that is taken anyway."""
        return max(LET_IN_EVERY, self._recover.due - self._now)

    def _unpark(self) -> float | None:
        self._engine.drop_stale_marks()
        asking.drop_forgotten(self._engine)
        deadlock.drop_stale(self._engine.storage)
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
        upcoming = self._engine.storage.next_expiry(now)
        quiet = self._with_the_others()
        return quiet if upcoming is None else max(EXPIRE_EVERY, min(upcoming - now, quiet))
