"""Fires schedules: what is due becomes jobs, exactly once over all consumers of a file.

Every consumer does this. Which slots are due is decided in `liteq.schedule`, from what stands in the file and the time;
the storage takes a schedule's next state and its jobs in one transaction, and only from the first who brings them.

Nothing is polled: the next due instant is known, and the storage's watch tells when something was written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from liteq import logs
from liteq.consumer.boot import boot_id
from liteq.engine import Engine
from liteq.instants import moment
from liteq.schedule import FREE, Busy, Decision, Schedule, aimed, decide, job_of, require_readable, trigger_of
from liteq.schedules import declared_elsewhere, names_declared_by, orphan, write_declared
from liteq.slots import busy, fire
from liteq.storage.base import Fire

#: Schedules fired in one transaction: about 5 ms, so that jobs that have just come are not held up.
AT_ONCE = 50
#: Seconds from one firing to the next, unless it was a full one: where hundreds are due in each second, several go into
#: one transaction, and the disk has time for the jobs.
SPACED = 0.01
#: Seconds between two looks at a storage in which much is written. (A new schedule is live within a second.)
LOOK_EVERY = 0.5
#: Seconds by which the wall clock may run ahead of the other one before it counts as set forward, or back.
AHEAD, BEHIND = 2.0, 1.0
#: Longer than a consumer ever sleeps: after such a gap it was stopped, and nobody was watching.
LONGEST_GAP = 30.0
#: How far back the watch of another consumer counts, in seconds: one that was stopped says nothing of it.
TRUSTED_FOR = 30.0
#: Seconds after which to look again at a schedule of which many jobs wait for each other; a burst does at each step.
PUT_OFF = 1.0
#: What the system's cron starts each minute finds due, with catch_up="skip", what was due within this time.
BURST_COVERS = 60.0

#: Consumers: when they started, and the names that their code declares.
_Watchers = list[tuple[float, set[str]]]

_NONSENSE = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError)


class Firing:
    """One consumer's part in it.

    Args:
        engine: the app's.
        burst: the consumer ends when nothing is due.
    """

    def __init__(self, engine: Engine, *, burst: bool = False) -> None:
        self._engine = engine
        self._burst = burst
        self._boot = boot_id()
        self._told = 0
        #: Since when somebody has been watching, on the wall clock as it is now.
        self._since = engine.clock.now()
        self._since_jump = False
        #: Whether the clock may show an earlier time than when the schedules were looked at last; so at a start.
        self._set_back = True
        self._wall = self._since
        self._monotonic = engine.clock.monotonic()
        #: When to look, whatever is due: on the monotonic clock; ``None``: when something was written.
        self._look_at: float | None = float("-inf")
        self._looked = self._fire_again_at = float("-inf")
        self._begun = False
        self._next: float | None = None
        #: Schedules that are left alone, by name, as they stood: of others, or garbage.
        self._aside: dict[str, tuple[int, float]] = {}
        #: When to look again at schedules whose slots wait as they are, by name; on the monotonic clock.
        self._put_off: dict[str, float] = {}
        #: Whether the last `run` stored jobs, or has left something due.
        self.made_ready = False
        #: Whether there may be jobs that wait for another one of their schedule.
        self.made_followers = False

    def data_changed(self) -> None:
        """Something was written: look soon whether there are other schedules."""
        if self._look_at is None:
            self._look_at = self._looked + LOOK_EVERY

    def run(self, now: float) -> float | None:
        """Fire what is due.

        Args:
            now: on the monotonic clock.

        Returns:
            When to be called again, on the same clock; ``None``: when something was written.
        """
        self.made_ready = self.made_followers = False
        wall = self._engine.clock.now()
        self._notice_jump(wall, now)
        if self._told != self._engine.declared.changes or not self._begun:
            self._begin(wall)
        if self._set_back:
            self._aim_anew(wall)
        self._take_back_put_off(wall, now)
        told = self._look_at is not None and self._look_at <= now
        if told or (self._next is not None and self._next <= wall and self._fire_again_at <= now):
            self._look(wall, now)
        times = [] if self._next is None else [max(now + self._next - wall, self._fire_again_at, now)]
        times += [] if self._look_at is None else [self._look_at]
        times += self._put_off.values()
        return min(times, default=None)

    # ── the clock ────────────────────────────────────────────────────────────────────────────────────

    def _notice_jump(self, wall: float, now: float) -> None:
        """Set forward, or woken from a sleep: nobody was watching until now. Set back: look what is due next."""
        passed, shown = now - self._monotonic, wall - self._wall
        self._monotonic, self._wall = now, wall
        if shown - passed > AHEAD or passed > LONGEST_GAP:
            self._since, self._since_jump, self._next = wall, True, wall
        elif passed - shown > BEHIND:
            logs.say(logs.WARNING, "the clock was set back", seconds=f"{passed - shown:.0f}")
            self._since, self._set_back = min(self._since, wall), True

    def _aim_anew(self, wall: float) -> None:
        """Slots between the clock's present time and the one it showed before are due again, if they never ran."""
        for schedule in self._engine.storage.schedules():
            if schedule.paused or schedule.orphaned or self._aside.get(schedule.name) == _identity(schedule):
                continue
            try:
                require_readable(schedule)
                if schedule.looked > wall + BEHIND:
                    self._engine.storage.put_schedule(aimed(schedule, wall, wall))
            except _NONSENSE as error:
                self._report(schedule, error)
        self._set_back, self._next = False, wall

    # ── what the code says ───────────────────────────────────────────────────────────────────────────

    def _begin(self, wall: float) -> None:
        """Bring the code's schedules into the file, and, at the start, let those rest whose code is gone."""
        told = self._engine.declared.changes
        write_declared(self._engine)
        if not self._begun and not self._burst:  # the programs that cron starts do not see each other
            self._let_orphans_rest()
        self._aside = {name: one for name, one in self._aside.items() if name not in self._engine.declared.entries}
        self._told, self._begun, self._next = told, True, wall

    def _is_strange(self, schedule: Schedule) -> bool:
        return schedule.declared is not None and schedule.name not in self._engine.declared.entries

    def _let_orphans_rest(self) -> None:
        """One that other code declares is fired by that code's consumers; if there is none, it is an orphan."""
        strangers = [one for one in self._engine.storage.schedules() if self._is_strange(one) and not one.orphaned]
        others = declared_elsewhere(self._engine) if strangers else set()
        for schedule in strangers:
            if schedule.name not in others and orphan(self._engine, schedule):
                logs.say(logs.WARNING, "a schedule is declared in no code any more and rests", schedule=schedule.name)

    # ── firing ───────────────────────────────────────────────────────────────────────────────────────

    def _look(self, wall: float, now: float) -> None:
        storage, told = self._engine.storage, self._look_at is not None
        if told:
            storage.barrier()  # an event comes when a writer begins; what he wrote is visible after this
        self._take_back_from_aside()
        due = storage.due_schedules(wall, self._boot, AT_ONCE, self._left_out())
        if due:
            self._fire(due, wall, now)
        full = len(due) >= AT_ONCE
        self._fire_again_at = now + SPACED if due and not full and not self._burst else now
        self._next = wall if full else storage.next_schedule(self._left_out())
        if told and self._next is not None and self._next > wall:
            self._read_ahead(self._next)
        self._look_at, self._looked = None, now  # last: what fails is done again
        self.made_ready = self.made_ready or (self._next is not None and self._next <= wall)

    def _read_ahead(self, wall: float) -> None:
        """Read what is due next while there is time: the first trigger that a consumer reads costs the import of all of
        them and of the zones, and made the first run 50 ms late.
        """
        for schedule in self._engine.storage.due_schedules(wall, self._boot, AT_ONCE, self._left_out()):
            try:
                trigger_of(schedule).next(moment(wall))
            except _NONSENSE:
                continue  # it is reported when it is due, if it still stands there

    def _left_out(self) -> set[str]:
        return self._aside.keys() | self._put_off.keys()

    def _take_back_put_off(self, wall: float, now: float) -> None:
        """Look again at what was put off. A burst does whenever nothing else is due: it must not end before these."""
        at_once = self._burst and (self._next is None or self._next > wall)
        left = {} if at_once else {name: at for name, at in self._put_off.items() if at > now}
        if len(left) < len(self._put_off):
            self._put_off, self._next = left, wall

    def _take_back_from_aside(self) -> None:
        """Look again at what was left alone and has changed since."""
        for name, identity in list(self._aside.items()):
            if [_identity(one) for one in self._engine.storage.schedules(name)] != [identity]:
                del self._aside[name]

    def _fire(self, due: Sequence[Schedule], wall: float, now: float) -> None:
        watchers = cache(self._watchers)
        decided = [found for one in due if (found := self._decided(one, wall, watchers)) is not None]
        self._put_off |= {one.schedule.name: now + PUT_OFF for one, _ in decided if one.put_off}
        decided = [(decision, planned) for decision, planned in decided if not decision.put_off]
        answers = fire(self._engine, [planned for _, planned in decided])
        for (decision, _), jobs in zip(decided, answers, strict=True):
            if jobs is not None:
                self._tell(decision)
            self.made_ready = self.made_ready or bool(jobs)
            self.made_followers = self.made_followers or any(one.follows for one in decision.planned)

    def _decided(
        self, schedule: Schedule, wall: float, watchers: Callable[[], _Watchers]
    ) -> tuple[Decision, Fire] | None:
        if self._is_strange(schedule):  # its own consumers fire it, now or when there is one again
            self._aside[schedule.name] = _identity(schedule)
            return None
        try:
            require_readable(schedule)
            since = self._watched_since(schedule, wall, watchers)
            if self._burst and schedule.catch_up == "skip":
                since = min(since, wall - BURST_COVERS)
            decision = decide(schedule, wall, since, busy=self._busy(schedule), boot=self._boot)
            return decision, self._as_fire(decision, wall)
        except _NONSENSE as error:
            self._report(schedule, error)
            return None

    def _busy(self, schedule: Schedule) -> Busy:
        if schedule.overlap == "allow" or schedule.last_id is None:
            return FREE
        return busy(self._engine, schedule)

    def _as_fire(self, decision: Decision, wall: float) -> Fire:
        schedule = decision.schedule
        before, jobs = schedule.last_id, []
        for planned in decision.planned:
            job = job_of(schedule, planned, before, wall)
            jobs.append(job)
            before = job.id
        return Fire(schedule, jobs, decision.unmade)

    def _watched_since(self, schedule: Schedule, wall: float, watchers: Callable[[], _Watchers]) -> float:
        """Since when slots are nobody's fault: another consumer that fires them may have been there before this one."""
        if self._since_jump or schedule.slot is None or schedule.slot >= self._since:
            return self._since
        starts = [start for start, names in watchers() if schedule.declared is None or schedule.name in names]
        return min(self._since, max(min(starts, default=self._since), wall - TRUSTED_FOR))

    def _watchers(self) -> _Watchers:
        """Since when each live consumer is there, and what it declares."""
        return [
            (started, names_declared_by(owner))
            for owner in self._engine.storage.owners()
            if owner.alive and owner.info.get("periodic") and isinstance(started := owner.info.get("started"), float)
        ]

    # ── telling ──────────────────────────────────────────────────────────────────────────────────────

    def _tell(self, decision: Decision) -> None:
        name = decision.schedule.name
        if decision.missed:
            told = {"catch_up": decision.schedule.catch_up, "fired": len(decision.planned)}
            logs.say(logs.WARNING, "a schedule has missed slots", schedule=name, **told)
        for slot in decision.skipped:
            logs.say(logs.INFO, "a slot was skipped: the run before has not ended", schedule=name, slot=moment(slot))

    def _report(self, schedule: Schedule, error: Exception) -> None:
        self._aside[schedule.name] = _identity(schedule)
        message = "a schedule cannot be read and is left alone; update it, replace it or remove it"
        logs.say(logs.ERROR, message, schedule=schedule.name, error=error)


def _identity(schedule: Schedule) -> tuple[int, float]:
    """Another one after every change; one that is stored anew begins with the first version again."""
    return schedule.version, schedule.created
