"""Schedule: a task and a trigger under a name, and the decisions about it. Pure.

A *slot* is an instant at which the trigger is due. `decide` is told what stands in the file and what time it is, and
answers which slots become jobs and when to look again. It has no memory of its own: what was decided already is kept
with the schedule as spans of time (``ran``), so a slot is never decided twice, also not when the clock is set back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from liteq.errors import ConfigurationError
from liteq.instants import EARLIEST, LATEST, moment
from liteq.job import Job, JobState, origin_text
from liteq.unique import without_unique

if TYPE_CHECKING:
    from liteq.triggers import Trigger  # with the zones it is most of what importing this would cost

CatchUp = Literal["latest", "all", "skip"]
Overlap = Literal["skip", "allow", "queue"]
CATCH_UP: tuple[CatchUp, ...] = ("latest", "all", "skip")
OVERLAP: tuple[Overlap, ...] = ("skip", "allow", "queue")

#: How the reason of a job begins that waits for another one of its schedule to end; the other's id follows.
AFTER_JOB = "after job "

#: Slots of one schedule that become jobs in one transaction. Where more are due, the next one goes on.
MOST_AT_ONCE = 50
#: Jobs of one schedule that may wait for each other; further slots wait as they are, which costs nothing.
MOST_FOLLOWERS = 50
#: Spans of decided slots that are remembered; each stop that was not caught up, and each jump of the clock, makes one.
_MOST_SPANS = 8
_MICROSECOND = 1e-6


class Schedule(NamedTuple):
    """One stored schedule.

    ``trigger`` is text (`parse_trigger` reads it). Instants are seconds since the epoch; the properties give the same
    as aware datetimes.

    Args:
        name: unique in its file.
        task: the stored name of the task.
        trigger: with its zone and the anchor of its grid.
        payload, summary: the encoded arguments, and the arguments for people, as in Job.
        queue, priority, options: of its jobs.
        expires: seconds after which a job that has not been started expires.
        catch_up, overlap, grace, jitter, start, end, max_runs: see `LiteQ.periodic_task`.
        declared: what the code says, as JSON; ``None``: it was added at run time.
        edited: it was updated by hand, and so is not what the code says.
        paused: it fires nothing until it is resumed.
        orphaned: it was declared in code that no consumer has any more; it fires nothing, and keeps its ``slot``.
        created: when it was stored; ``version`` is raised by every change.
        looked: when ``slot`` was computed.
        slot: the next one to be decided; ``due``: when, with jitter. ``None``: there is none.
        boot: the boot of the machine for which it has run, if it is to run at each; ``""``: for none yet.
        ran: the spans of time whose slots are decided, as JSON.
        runs: how many jobs it has made; ``skipped``: how many slots passed because a run had not ended.
        last_slot, last_run: the slot of its last job, and when that was enqueued.
        last_job, last_id: that job's ``seq`` and ``id``.
        last_outcome: where that job stands; kept when the job is purged.
        last_finished: when it ended.
    """

    name: str
    task: str
    trigger: str
    payload: bytes = b""
    summary: str | None = None
    queue: str = "default"
    priority: int = 0
    options: str | None = None
    expires: float | None = None
    catch_up: str = "latest"
    overlap: str = "skip"
    grace: float | None = None
    jitter: float = 0.0
    start: float | None = None
    end: float | None = None
    max_runs: int | None = None
    declared: str | None = None
    edited: bool = False
    paused: bool = False
    orphaned: bool = False
    created: float = 0.0
    version: int = 0
    looked: float = 0.0
    slot: float | None = None
    due: float | None = None
    boot: str | None = None
    ran: str = "[]"
    runs: int = 0
    skipped: int = 0
    last_slot: float | None = None
    last_run: float | None = None
    last_job: int | None = None
    last_id: str | None = None
    last_outcome: str | None = None
    last_finished: float | None = None

    @property
    def state(self) -> str:
        """``"active"``, ``"paused"``, ``"orphaned"``, or ``"finished"``: it will never be due again."""
        if self.orphaned:
            return "orphaned"
        if self.paused:
            return "paused"
        return "finished" if self.slot is None and (self.boot is None or self.is_used_up) else "active"

    @property
    def source(self) -> str:
        """``"code"`` or ``"user"``: who it comes from."""
        return "user" if self.declared is None else "code"

    @property
    def is_used_up(self) -> bool:
        """Whether it has made its ``max_runs`` jobs."""
        return self.max_runs is not None and self.runs >= self.max_runs

    @property
    def next_run(self) -> datetime | None:
        """When it is due next (aware, UTC), jitter included."""
        return None if self.due is None else moment(self.due)

    @property
    def last_run_at(self) -> datetime | None:
        """When its last job was enqueued (aware, UTC)."""
        return None if self.last_run is None else moment(self.last_run)

    @property
    def last_slot_at(self) -> datetime | None:
        """The slot of its last job (aware, UTC)."""
        return None if self.last_slot is None else moment(self.last_slot)

    @property
    def start_at(self) -> datetime | None:
        """The first instant at which it may be due (aware, UTC)."""
        return None if self.start is None else moment(self.start)

    @property
    def end_at(self) -> datetime | None:
        """The last instant at which it may be due (aware, UTC)."""
        return None if self.end is None else moment(self.end)

    @property
    def created_at(self) -> datetime:
        """When it was stored (aware, UTC)."""
        return moment(self.created)

    @property
    def arguments(self) -> str:
        """A short text of the arguments, without decoding them."""
        return Job(0, "", self.task, JobState.READY, payload=self.payload, summary=self.summary).arguments

    def describe(self) -> str:
        """The trigger in one English sentence."""
        return trigger_of(self).describe()


#: What a file may hold in each field, whatever its columns are declared as.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "bytes": bytes,
    "int": int,
    "float": (int, float),
    "bool": int,
}
_ANNOTATIONS = {field: str(getattr(kind, "__forward_arg__", kind)) for field, kind in Schedule.__annotations__.items()}
_FIELDS = [(field, _TYPES[kind.removesuffix(" | None")], " | None" in kind) for field, kind in _ANNOTATIONS.items()]
_INSTANTS = ("created", "looked", "slot", "due", "start", "end", "last_slot", "last_run", "last_finished")


def require_readable(schedule: Schedule) -> None:
    """Do nothing, unless its row holds what no schedule can. (A trigger is not read: it tells itself what is wrong.)

    Raises:
        ConfigurationError: a field has a value of another type, an instant that is in no calendar, or no JSON object.
    """
    field = _unreadable(schedule)
    if field is not None:
        found = str(getattr(schedule, field))[:40]
        raise ConfigurationError(
            f"schedule {schedule.name!r} cannot be read: in the file its {field} is {found!r}; "
            "it fires nothing; replace it (replace=True, --replace) or remove it"
        )


def _unreadable(schedule: Schedule) -> str | None:
    for (field, types, optional), value in zip(_FIELDS, schedule, strict=True):
        if not isinstance(value, types) and not (optional and value is None):
            return field
    for field in _INSTANTS:
        instant = getattr(schedule, field)
        if instant is not None and not _is_instant(instant):
            return field
    return None if schedule.options is None or _is_json_object(schedule.options) else "options"


def has_identity(schedule: Schedule) -> bool:
    """Whether a change of it can say what it is a change of, and keep that; otherwise it can only be dropped."""
    return isinstance(schedule.version, int) and _is_instant(schedule.created)


def _is_instant(value: object) -> bool:
    return isinstance(value, (int, float)) and EARLIEST <= value <= LATEST


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


class Planned(NamedTuple):
    """One slot that becomes a job; ``follows``: not before the schedule's run before it has ended."""

    slot: float
    follows: bool


class Decision(NamedTuple):
    """What becomes of a schedule that is due.

    ``schedule`` is as it stands afterwards, but for its last job, and ``unmade`` if no job comes of it, because unique
    keys are held. ``skipped`` are slots that pass because the run before has not ended; ``missed`` tells that
    ``catch_up`` or ``grace`` left slots out. ``put_off``: nothing is decided and nothing to be stored as long as so
    many of its jobs wait for each other.
    """

    schedule: Schedule
    unmade: Schedule
    planned: tuple[Planned, ...]
    skipped: tuple[float, ...] = ()
    missed: bool = False
    put_off: bool = False


class Busy(NamedTuple):
    """Whether a schedule's last job has not ended; ``interrupted``: because its worker or consumer died; ``full``: as
    many already wait for each other as may be stored."""

    unfinished: bool = False
    interrupted: bool = False
    full: bool = False


FREE = Busy()


@lru_cache(maxsize=16_384)
def parsed(text: str) -> Trigger:
    """`parse_trigger`, remembered: a schedule's text is read at each of its slots."""
    from liteq.triggers import parse_trigger

    return parse_trigger(text)


def trigger_of(schedule: Schedule) -> Trigger:
    """The trigger that a schedule's text says.

    Raises:
        TriggerError: it says none.
    """
    return parsed(schedule.trigger)


def aimed(schedule: Schedule, after: float, now: float) -> Schedule:
    """The schedule with its next slot computed anew, strictly after ``after``; none while it is paused, and one that is
    not due while it is orphaned.
    """
    calendar = _Calendar(schedule)
    boot = (schedule.boot or "") if calendar.trigger.reboot else None
    return _aimed_at(schedule._replace(boot=boot), calendar, calendar.following(after), now)


def _aimed_at(schedule: Schedule, calendar: _Calendar, slot: float | None, now: float) -> Schedule:
    if slot is None or schedule.paused or schedule.is_used_up:
        return schedule._replace(slot=None, due=None, looked=now)
    return schedule._replace(slot=slot, due=None if schedule.orphaned else calendar.due(slot), looked=now)


def orphaned(schedule: Schedule, now: float) -> Schedule:
    """The schedule when nobody declares it any more: it is not due, and its next slot is kept for `adopted`."""
    return schedule._replace(orphaned=True, due=None, looked=now)


def adopted(schedule: Schedule, now: float) -> Schedule:
    """An orphan whose code is back: it goes on as after a stop, from the slot at which it came to rest."""
    if not schedule.orphaned:
        return schedule
    after = now if schedule.slot is None else min(now, schedule.slot - _MICROSECOND)
    return aimed(schedule._replace(orphaned=False), after, now)


def decide(
    schedule: Schedule, now: float, watched_since: float, *, busy: Busy = FREE, boot: str | None = None
) -> Decision:
    """What becomes of a schedule at this instant.

    Args:
        schedule: as it is stored.
        now: seconds since the epoch.
        watched_since: from then on until now somebody was there to fire it: slots before it were *missed*, and
            ``catch_up`` decides about them; those after it are fired each, however late they are looked at.
        busy: whether its last job has not ended.
        boot: which boot of the machine this is.

    Raises:
        ValueError, TypeError: what is stored makes no sense.
    """
    if schedule.paused or schedule.orphaned:
        rests = schedule._replace(due=None)
        return Decision(rests, rests, ())
    _check_choices(schedule)
    if busy.full and (schedule.overlap == "queue" or schedule.catch_up == "all"):
        return Decision(schedule, schedule, (), put_off=True)
    calendar = _Calendar(schedule)
    slots, upcoming, missed = _due_slots(schedule, calendar, now, watched_since)
    rebooted = calendar.trigger.reboot and boot is not None and schedule.boot != boot
    planned, skipped = _planned(schedule, [round(now, 6), *slots] if rebooted else slots, watched_since, busy)
    unmade = schedule._replace(
        boot=boot if rebooted else schedule.boot if calendar.trigger.reboot else None,
        ran=calendar.with_decided(slots),
        skipped=schedule.skipped + len(skipped),
    )
    after = _made(unmade, [one.slot for one in planned], now)
    stands, without = (_aimed_at(one, calendar, upcoming, now) for one in (after, unmade))
    return Decision(stands, without, tuple(planned), tuple(skipped), missed)


def made(unmade: Schedule, jobs: Sequence[Job], now: float) -> Schedule:
    """The schedule with fewer jobs than were planned: the slots of the others were left out.

    Args:
        unmade: as in the Decision.
        jobs: that were stored.
        now: when they were planned.
    """
    return _made(unmade, [job.slot.timestamp() for job in jobs if job.slot is not None], now)


def _made(schedule: Schedule, slots: Sequence[float], now: float) -> Schedule:
    if not slots:
        return schedule
    runs = schedule.runs + len(slots)
    return schedule._replace(runs=runs, last_slot=slots[-1], last_run=now, last_outcome=None, last_finished=None)


def job_of(schedule: Schedule, planned: Planned, before: str | None, now: float) -> Job:
    """The job of one slot, not stored yet.

    Args:
        before: the id of the job that it follows, where it does.
    """
    follows = before if planned.follows else None
    options, unique = without_unique(schedule.options)
    return Job(
        0,
        slot_id(schedule.name, planned.slot),
        schedule.task,
        JobState.READY if follows is None else JobState.BLOCKED,
        schedule.queue,
        schedule.priority,
        schedule.payload,
        now,
        None,
        None if schedule.expires is None else now + schedule.expires,
        origin_text(options, schedule.name, planned.slot, follows),
        schedule.summary,
        unique=unique,
        reason=None if follows is None else f"{AFTER_JOB}{follows}",
    )


def slot_id(name: str, slot: float) -> str:
    """The id of the job of one slot: ids are unique, so this is what keeps a slot from having two."""
    return f"{name}@{moment(slot).isoformat().replace('+00:00', 'Z')}"


def upcoming(schedule: Schedule, now: float, zone: tzinfo) -> Iterator[datetime]:
    """The instants at which the schedule is due from now on, jitter included. Slots are fired in their order: where the
    jitter is wider than the time between two, the second one is not due before the first.

    Args:
        schedule: also a paused one: as if it were resumed now.
        zone: for the answers of a trigger that has none, or several.
    """
    calendar = _Calendar(schedule)
    zone = calendar.trigger.timezone or zone
    slot = calendar.following(now) if schedule.slot is None or schedule.due is None else schedule.slot
    left = None if schedule.max_runs is None else schedule.max_runs - schedule.runs
    due = float("-inf")
    while slot is not None and (left is None or left > 0):
        due = max(due, calendar.due(slot))
        yield moment(due).astimezone(zone)
        slot = calendar.following(slot)
        left = None if left is None else left - 1


# ── which slots are due ──────────────────────────────────────────────────────────────────────────────────


def _check_choices(schedule: Schedule) -> None:
    if schedule.catch_up not in CATCH_UP or schedule.overlap not in OVERLAP:
        raise ConfigurationError(
            f"schedule {schedule.name}: catch_up={schedule.catch_up!r}, overlap={schedule.overlap!r} mean nothing here"
        )


def _due_slots(
    schedule: Schedule, calendar: _Calendar, now: float, watched_since: float
) -> tuple[list[float], float | None, bool]:
    """The due slots that are not left out, in order; the slot to look at next; whether some were left out."""
    first = schedule.slot
    if first is None or calendar.due(first) > now:
        return [], first, False
    oldest = float("-inf") if schedule.grace is None else now - schedule.grace
    since = oldest if schedule.catch_up == "all" else max(oldest, watched_since)
    start = first if calendar.due(first) >= since else calendar.first_due_from(since, first)
    slots: list[float] = []
    slot = start
    while slot is not None and calendar.due(slot) <= now and len(slots) < MOST_AT_ONCE:
        slots.append(slot)
        slot = calendar.following(slot)
    if start != first and not slots and schedule.catch_up == "latest":
        latest = calendar.latest(first, now if start is None else min(now, start - _MICROSECOND))
        slots = [latest] if calendar.due(latest) >= oldest else []
    return slots, slot, slots[:1] != [first]


def _planned(
    schedule: Schedule, slots: Sequence[float], watched_since: float, busy: Busy
) -> tuple[list[Planned], list[float]]:
    """Which of the due slots become jobs, and which pass because the run before has not ended."""
    planned: list[Planned] = []
    skipped: list[float] = []
    room = len(slots) if schedule.max_runs is None else schedule.max_runs - schedule.runs
    for slot in slots:
        missed = schedule.catch_up == "all" and slot < watched_since
        if schedule.overlap == "skip" and busy.unfinished and not busy.interrupted and not missed:
            skipped.append(slot)
        elif len(planned) < room:
            waits = schedule.overlap != "allow" and (busy.unfinished or bool(planned))
            planned.append(Planned(slot, waits))
    return planned, skipped


def _spans(schedule: Schedule) -> list[list[float]]:
    try:
        return [[float(first), float(last)] for first, last in json.loads(schedule.ran)]
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"schedule {schedule.name}: what it has run cannot be read ({schedule.ran[:40]!r}); replace it"
        ) from error


class _Calendar:
    """The slots of one schedule, without those that are decided already."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.trigger = trigger_of(schedule)
        self.spans = _spans(schedule)

    def due(self, slot: float) -> float:
        """When a slot is to be fired: the slot and its jitter, which is always the same."""
        if not self.schedule.jitter:
            return slot
        from liteq.triggers import jitter_of

        delay = jitter_of(moment(slot), self.schedule.jitter, self.schedule.name)
        return min(slot + delay.total_seconds(), LATEST)

    def following(self, after: float) -> float | None:
        """The first slot after this instant that is not decided yet."""
        start, end = self.schedule.start, self.schedule.end
        if start is not None:
            after = max(after, start - _MICROSECOND)
        while True:
            found = self.trigger.next(moment(after))
            slot = None if found is None else found.timestamp()
            if slot is None or (end is not None and slot > end):
                return None
            behind = self._decided_until(slot)
            if behind is None:
                return slot
            after = max(behind, slot)

    def _decided_until(self, slot: float) -> float | None:
        return next((last for first, last in self.spans if first <= slot <= last), None)

    def first_due_from(self, since: float, after: float) -> float | None:
        """The first slot after ``after`` that is due at ``since`` or later."""
        slot = self.following(max(after, since - self.schedule.jitter - _MICROSECOND))
        while slot is not None and self.due(slot) < since:
            slot = self.following(slot)
        return slot

    def latest(self, first: float, until: float) -> float:
        """The last slot from ``first`` (which is one) to ``until`` that is not decided."""
        end = until if self.schedule.end is None else min(until, self.schedule.end)
        found = self.trigger.latest(moment(first), moment(end)) if end > first else None
        if found is None or self._decided_until(found.timestamp()) is not None:
            return first
        return found.timestamp()

    def with_decided(self, slots: Sequence[float]) -> str:
        """The spans with these slots, which follow each other, as JSON."""
        if not slots:
            return self.schedule.ran
        spans = [list(span) for span in self.spans]
        if spans and self.following(spans[-1][1]) == slots[0]:
            spans[-1][1] = slots[-1]
        else:
            spans.append([slots[0], slots[-1]])
        return json.dumps(spans[-_MOST_SPANS:], separators=(",", ":"))
