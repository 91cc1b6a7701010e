"""What every trigger is, and the triggers that are made of others: ``&``, ``|``, windows, excepted dates, jitter.

Floor 0. A trigger is a value: frozen, hashable, compared by what it says. It has no state and reads no clock; ``next``
is told a datetime and answers from it alone. Inside, an *instant* is an aware datetime in UTC, because Python compares
two datetimes of one zone by their wall clock, which goes back once a year; only the public methods speak in a zone.

The plain kinds are in ``cron.py`` and ``plain.py``; ``text.py`` turns ``str(trigger)`` back into a trigger.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from itertools import cycle

from liteq.errors import TriggerError
from liteq.triggers.english import capital, listed, spoken_duration, spoken_edge
from liteq.triggers.moments import (
    MICROSECOND,
    ONE_DAY,
    Edge,
    as_instant,
    aware,
    check_order,
    duration,
    duration_text,
    earlier,
    edge_kind,
    first_instant,
    jitter_of,
    last_instant,
    later,
    leap,
    midnight,
    stored_moment,
    zone_of,
)
from liteq.triggers.zones import clock_zone, named_zone, zone_text

_SEARCH = timedelta(days=40 * 366)
_END = datetime.max.replace(tzinfo=UTC)
_MOST_LOOKS = 50_000
"""Looks of one question to a trigger made of others: about a quarter of a second. A search that looks once or twice a
day gets through 40 years with them; grids that meet at all and stay within it meet far sooner."""


class Reach:
    """How far one question may still go: triggers made of others share it, so that no nesting makes it endless.

    Args:
        until: an answer after this instant is of no use.
    """

    __slots__ = ("looks", "until")

    def __init__(self, until: datetime = _END) -> None:
        self.until = until
        self.looks = _MOST_LOOKS

    def goes_on(self) -> bool:
        """Count one look; False if there were too many."""
        self.looks -= 1
        return self.looks >= 0


class Trigger(ABC):
    """When something is due: ``crontab(...)``, ``every(...)``, ``at(...)``, or several combined.

    ``a & b`` is due when both are, ``a | b`` when either is.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def timezone(self) -> tzinfo | None:
        """The zone in which the trigger reads the wall clock; None: that of the datetime ``next`` is given.

        A trigger made of several has the zone that all of them have.
        """

    @property
    def reboot(self) -> bool:
        """Whether it is due once per boot of the machine, which only the scheduler can see: ``next`` says nothing
        of it."""
        return False

    def next(self, after: datetime) -> datetime | None:
        """The first instant strictly after this one at which the trigger is due.

        Args:
            after: an aware datetime.

        Returns:
            An aware datetime in the trigger's ``timezone``, or in the zone of ``after`` where it has none; None when it
            will never be due again. Compare answers by ``timestamp()`` or in UTC: Python compares datetimes of one zone
            by their wall clock, which shows an hour twice when summer time ends.

        Raises:
            TypeError: ``after`` is not a datetime.
            TriggerError: ``after`` is naive.
        """
        aware(after, "after")
        zone = self.timezone or clock_zone(zone_of(after))
        return _shown(self.next_instant(as_instant(after), zone), zone)

    def upcoming(self, after: datetime) -> Iterator[datetime]:
        """The instants after this one at which the trigger is due, one by one, for as long as there are any.

        Args:
            after: an aware datetime.
        """
        found = self.next(after)
        while found is not None:
            yield found
            found = self.next(found)

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """The last instant in ``(after, until]`` at which the trigger is due, found without walking through them all.

        Args:
            after, until: aware datetimes.

        Returns:
            An aware datetime in the trigger's zone, or in that of ``until``; None when it is not due in that time. Of
            triggers that hardly ever meet (``&``) it may be an earlier one, found within the steps of one search.
        """
        zone = self.timezone or clock_zone(zone_of(aware(until, "until")))
        low, high = as_instant(aware(after, "after")), as_instant(until)
        reach = Reach(high)
        answer = self._due_within(low, zone, reach)
        if answer is None:
            return None
        due, too_late = (answer - low) // MICROSECOND, (high - low) // MICROSECOND
        while too_late - due > 1:
            middle = (due + too_late) // 2
            found = self._due_within(low + middle * MICROSECOND, zone, reach)
            if found is None:
                too_late = middle
                reach.until = low + middle * MICROSECOND
            else:
                due, answer = (found - low) // MICROSECOND, found
        return _shown(answer, zone)

    def with_timezone(self, timezone: str | tzinfo) -> Trigger:
        """The same trigger with this zone wherever it has none; a zone that it was given stays.

        Args:
            timezone: an IANA name or a tzinfo.

        Raises:
            TypeError, TriggerError: not a zone, or one without a name that could be stored.
        """
        return self._in_zone(named_zone(timezone))

    def anchored(self, at: datetime) -> Trigger:
        """The same trigger with the grid of every ``every(...)`` in it beginning here; an anchor that is set stays.

        Args:
            at: an aware datetime: when the schedule was created.
        """
        return self._from_anchor(aware(at, "at").astimezone(UTC))

    def between(self, start: Edge | None, end: Edge | None) -> Trigger:
        """The same trigger, due only in this window; both its ends belong to it.

        Args:
            start, end: two datetimes (a naive one is read in the trigger's zone), two dates (whole days), or two times
                of day (every day; ``time(22), time(2)`` is a night). One datetime or date may be None: open on that
                side.

        Raises:
            TypeError: the ends are not two of a kind.
            TriggerError: no end at all, the end before the start, or a time of day with a zone.
        """
        self._refuse_reboot("between")
        kinds = {edge_kind(edge, name) for edge, name in ((start, "start"), (end, "end")) if edge is not None}
        if not kinds:
            raise TriggerError("between needs a start or an end")
        if len(kinds) > 1:
            raise TypeError(f"start={start!r} and end={end!r} must be two datetimes, two dates or two times of day")
        if isinstance(start, time) or isinstance(end, time):
            return _daily_window(self, start, end)
        check_order(start, end)
        return Between(self, _stored_edge(start), _stored_edge(end))

    def except_dates(self, *dates: date | Iterable[date]) -> Trigger:
        """The same trigger, not due on these dates of its zone.

        Args:
            dates: dates, or collections of dates.

        Raises:
            TypeError: something else.
            TriggerError: no date at all.
        """
        self._refuse_reboot("except_dates")
        return ExceptDates(self, frozenset(_each_date(dates)))

    def jitter(self, width: float | timedelta, seed: str = "") -> Trigger:
        """The same trigger, each slot delayed by a part of ``width`` that is always the same for this slot.

        Args:
            width: the longest delay, in seconds.
            seed: triggers with different seeds are delayed differently: give each schedule its name.

        Raises:
            TypeError, TriggerError: a wrong argument, named.
        """
        self._refuse_reboot("jitter")
        if not isinstance(seed, str):
            raise TypeError(f"seed must be a str, not {type(seed).__name__}")
        return Jittered(self, duration(width, "width"), seed)

    def describe(self) -> str:
        """The trigger in one English sentence."""
        return f"{capital(self._phrase())}."

    def next_instant(self, instant: datetime, zone: tzinfo, reach: Reach | None = None) -> datetime | None:
        """``next`` from and to UTC, for triggers made of others.

        Args:
            instant: an aware datetime in UTC.
            zone: for triggers that have none of their own.
            reach: of the question that this is a part of; ``None``: it is one of its own.
        """
        try:
            return self._search(instant, zone, reach or Reach())
        except OverflowError:  # the calendar of datetime ends with the year 9999
            return None

    @abstractmethod
    def _search(self, instant: datetime, zone: tzinfo, reach: Reach) -> datetime | None:
        """The first instant after this one, both in UTC; may run into the end of the calendar. Beyond the reach it may
        also answer None."""

    @abstractmethod
    def _in_zone(self, zone: tzinfo) -> Trigger:
        """``with_timezone`` with a zone that was checked."""

    @abstractmethod
    def _phrase(self) -> str:
        """The sentence of ``describe`` without its capital and its full stop."""

    @abstractmethod
    def _identity(self) -> tuple[object, ...]:
        """What the trigger says: triggers of one class with equal identities are equal."""

    @abstractmethod
    def __str__(self) -> str:
        """Text that ``parse_trigger`` turns back into an equal trigger."""

    def _from_anchor(self, instant: datetime) -> Trigger:
        """``anchored`` with an instant in UTC."""
        return self

    def _refuse_reboot(self, what: str) -> None:
        """Only ``|`` leaves ``@reboot`` its meaning."""
        if self.reboot:
            raise TriggerError(f"@reboot has no instant that could be computed: {what} cannot apply to it, only | can")

    def _due_within(self, after: datetime, zone: tzinfo, reach: Reach) -> datetime | None:
        """The first instant after this one and within reach."""
        found = self.next_instant(after, zone, reach)
        return found if found is not None and found <= reach.until else None

    def __repr__(self) -> str:
        return f"parse_trigger({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trigger):
            return NotImplemented
        return type(self) is type(other) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash((type(self), self._identity()))

    def __and__(self, other: object) -> Trigger:
        if not isinstance(other, Trigger):
            return NotImplemented
        self._refuse_reboot("&")
        other._refuse_reboot("&")
        return _joined(Both, self, other)

    def __or__(self, other: object) -> Trigger:
        if not isinstance(other, Trigger):
            return NotImplemented
        return _joined(Either, self, other)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Several(Trigger):
    """A trigger made of two or more that are asked alike."""

    members: tuple[Trigger, ...]

    @property
    def timezone(self) -> tzinfo | None:
        zones = {None if member.timezone is None else zone_text(member.timezone) for member in self.members}
        return self.members[0].timezone if len(zones) == 1 else None

    def _in_zone(self, zone: tzinfo) -> Trigger:
        return replace(self, members=tuple(member._in_zone(zone) for member in self.members))

    def _from_anchor(self, instant: datetime) -> Trigger:
        return replace(self, members=tuple(member._from_anchor(instant) for member in self.members))

    def _identity(self) -> tuple[object, ...]:
        return (frozenset(self.members),)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Both(_Several):
    """Due when all its members are due at the same instant.

    The search answers None after 40 years or 50,000 looks: such members never meet.
    """

    def _search(self, instant: datetime, zone: tzinfo, reach: Reach) -> datetime | None:
        limit = min(later(instant, _SEARCH), reach.until)
        meeting, agreed = instant + MICROSECOND, 0
        for member in cycle(self.members):
            if not reach.goes_on():
                return None
            found = member.next_instant(meeting - MICROSECOND, zone, reach)
            if found is None or found > limit:
                return None
            agreed = agreed + 1 if found == meeting else 1
            if agreed == len(self.members):
                return found
            meeting = found
        raise AssertionError("a cycle of members ended")

    def _phrase(self) -> str:
        return f"whenever these coincide: {'; '.join(member._phrase() for member in self.members)}"

    def __str__(self) -> str:
        return " & ".join(f"({member})" if isinstance(member, Either) else str(member) for member in self.members)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Either(_Several):
    """Due when any of its members is; members that are due at the same instant make one."""

    @property
    def reboot(self) -> bool:
        return any(member.reboot for member in self.members)

    def _search(self, instant: datetime, zone: tzinfo, reach: Reach) -> datetime | None:
        answers = (member.next_instant(instant, zone, reach) for member in self.members)
        return min((found for found in answers if found is not None), default=None)

    def _phrase(self) -> str:
        return "; and ".join(member._phrase() for member in self.members)

    def __str__(self) -> str:
        return " | ".join(str(member) for member in self.members)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Around(Trigger):
    """A trigger that narrows or moves the slots of one other."""

    trigger: Trigger

    @property
    def timezone(self) -> tzinfo | None:
        return self.trigger.timezone

    def _in_zone(self, zone: tzinfo) -> Trigger:
        return replace(self, trigger=self.trigger._in_zone(zone))

    def _from_anchor(self, instant: datetime) -> Trigger:
        return replace(self, trigger=self.trigger._from_anchor(instant))

    def _inner_text(self) -> str:
        """The inner trigger's text, in brackets where it is made of several."""
        return f"({self.trigger})" if isinstance(self.trigger, _Several) else str(self.trigger)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Between(_Around):
    """Due only from ``start`` to ``end``, both included; a date stands for its whole day."""

    start: date | None
    end: date | None

    def _search(self, instant: datetime, zone: tzinfo, reach: Reach) -> datetime | None:
        clock = self.timezone or zone
        if self.start is not None:
            instant = max(instant, first_instant(self.start, clock) - MICROSECOND)
        found = self.trigger.next_instant(instant, zone, reach)
        if found is None or (self.end is not None and found > last_instant(self.end, clock)):
            return None
        return found

    def _phrase(self) -> str:
        start = "" if self.start is None else f" from {spoken_edge(self.start)}"
        end = "" if self.end is None else f" until {spoken_edge(self.end)}"
        return f"{self.trigger._phrase()},{start}{end}"

    def _identity(self) -> tuple[object, ...]:
        return self.trigger, self.start, self.end

    def __str__(self) -> str:
        if self.start is None or self.end is None:
            edge, word = (self.end, "until") if self.start is None else (self.start, "since")
            return f"{self._inner_text()} {word} {'' if edge is None else edge.isoformat()}"
        return f"{self._inner_text()} between {self.start.isoformat()} and {self.end.isoformat()}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BetweenTimes(_Around):
    """Due only while the wall clock shows a time from ``start`` to ``end``, both included; it may span midnight."""

    start: time
    end: time

    def _search(self, instant: datetime, zone: tzinfo, reach: Reach) -> datetime | None:
        clock = self.timezone or zone
        limit = min(later(instant, _SEARCH), reach.until)
        while reach.goes_on():
            found = self.trigger.next_instant(instant, zone, reach)
            if found is None or found > limit:
                return None
            reading = found.astimezone(clock).replace(tzinfo=None)
            if self._open_at(reading.time()):
                return found
            instant = leap(found, self._opening_after(reading), clock)
        return None

    def _open_at(self, shown: time) -> bool:
        """Whether a time of day is in the window."""
        if self.start <= self.end:
            return self.start <= shown <= self.end
        return shown >= self.start or shown <= self.end

    def _opening_after(self, reading: datetime) -> datetime:
        """The first reading after this one at which the window opens."""
        opening = datetime.combine(reading.date(), self.start)
        return opening if opening > reading else opening + ONE_DAY

    def _phrase(self) -> str:
        return f"{self.trigger._phrase()}, between {spoken_edge(self.start)} and {spoken_edge(self.end)}"

    def _identity(self) -> tuple[object, ...]:
        return self.trigger, self.start, self.end

    def __str__(self) -> str:
        return f"{self._inner_text()} between {self.start.isoformat()} and {self.end.isoformat()}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ExceptDates(_Around):
    """Not due while the calendar of its zone shows one of these dates."""

    dates: frozenset[date]

    def _search(self, instant: datetime, zone: tzinfo, reach: Reach) -> datetime | None:
        clock = self.timezone or zone
        while True:
            found = self.trigger.next_instant(instant, zone, reach)
            if found is None:
                return None
            today = found.astimezone(clock).date()
            if today not in self.dates:
                return found
            instant = leap(found, midnight(today + ONE_DAY), clock)

    def _phrase(self) -> str:
        return f"{self.trigger._phrase()}, except on {listed([spoken_edge(day) for day in sorted(self.dates)])}"

    def _identity(self) -> tuple[object, ...]:
        return self.trigger, self.dates

    def __str__(self) -> str:
        return f"{self._inner_text()} except {','.join(day.isoformat() for day in sorted(self.dates))}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Jittered(_Around):
    """Every slot of the inner trigger, delayed by ``jitter_of(slot, width, seed)``.

    Where ``width`` is longer than the time between two slots their order may change, so each search looks at all the
    slots of one width.
    """

    width: timedelta
    seed: str

    def _search(self, instant: datetime, zone: tzinfo, reach: Reach) -> datetime | None:
        best: datetime | None = None
        slot = self.trigger.next_instant(earlier(instant, self.width), zone, reach)
        while slot is not None and (best is None or slot < best):
            delayed = slot + jitter_of(slot, self.width, self.seed)
            if delayed > instant and (best is None or delayed < best):
                best = delayed
            slot = self.trigger.next_instant(slot, zone, reach)
        return best

    def _phrase(self) -> str:
        return f"{self.trigger._phrase()}, each time up to {spoken_duration(self.width)} later"

    def _identity(self) -> tuple[object, ...]:
        return self.trigger, self.width, self.seed

    def __str__(self) -> str:
        seed = f" seed {json.dumps(self.seed)}" if self.seed else ""
        return f"{self._inner_text()} jitter {duration_text(self.width)}{seed}"


def _shown(instant: datetime | None, zone: tzinfo) -> datetime | None:
    """An instant as the zone's clock shows it; None past the end of its calendar."""
    try:
        return None if instant is None else instant.astimezone(zone)
    except OverflowError:
        return None


def _joined(kind: type[_Several], *triggers: Trigger) -> Trigger:
    """The triggers under one of this kind, those of the same kind as their members; equal ones are one."""
    members = (
        member for trigger in triggers for member in (trigger.members if isinstance(trigger, kind) else (trigger,))
    )
    different = tuple(dict.fromkeys(members))
    return kind(different) if len(different) > 1 else different[0]


def _stored_edge(edge: date | None) -> date | None:
    """An end of a window as it is kept."""
    return stored_moment(edge) if isinstance(edge, datetime) else edge


def _daily_window(trigger: Trigger, start: object, end: object) -> BetweenTimes:
    """The window of two times of day."""
    if not isinstance(start, time) or not isinstance(end, time):
        raise TriggerError("between: a window of times of day needs both its start and its end")
    if start.tzinfo is not None or end.tzinfo is not None:
        raise TriggerError("between: times of day are read in the trigger's zone; give them without a tzinfo")
    return BetweenTimes(trigger, start.replace(fold=0), end.replace(fold=0))


def _each_date(dates: Iterable[object]) -> Iterator[date]:
    """The dates of ``except_dates``, which may come in collections."""
    empty = True
    for given in dates:
        for day in [given] if isinstance(given, date) or not isinstance(given, Iterable) else given:
            if not isinstance(day, date) or isinstance(day, datetime):
                raise TypeError(f"except_dates takes dates, not {type(day).__name__}")
            empty = False
            yield day
    if empty:
        raise TriggerError("except_dates needs at least one date")
