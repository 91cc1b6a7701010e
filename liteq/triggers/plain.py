"""The triggers without a wall clock: ``every(...)`` on a grid of elapsed time, ``at(...)`` given moments, and
``@reboot``.

Floor 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo

from liteq.errors import TriggerError
from liteq.triggers.english import listed, spoken_edge, spoken_period, spoken_zone
from liteq.triggers.expression import REBOOT
from liteq.triggers.moments import (
    EPOCH,
    MICROSECOND,
    duration,
    duration_text,
    moment_instant,
    span_of,
    stored_moment,
)
from liteq.triggers.trigger import Reach, Trigger
from liteq.triggers.zones import zone_text

_UNITS = {"seconds": timedelta(seconds=1), "minutes": timedelta(minutes=1), "hours": timedelta(hours=1)}
_UNITS["days"] = timedelta(days=1)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Every(Trigger):
    """Due each time a period of elapsed time is over, counted from an anchor.

    Args:
        period: longer than 0.
        anchor: in UTC; the first slot, the others are whole periods later. None: the grid of the Unix epoch, which has
            no beginning.
        timezone: for the answers; elapsed time has no zone.
    """

    period: timedelta
    anchor: datetime | None = None
    timezone: tzinfo | None = None

    def _search(self, instant: datetime, zone: tzinfo, reach: Reach) -> datetime | None:
        if self.anchor is None:
            return EPOCH + ((instant - EPOCH) // self.period + 1) * self.period
        if instant < self.anchor:
            return self.anchor
        return self.anchor + ((instant - self.anchor) // self.period + 1) * self.period

    def _in_zone(self, zone: tzinfo) -> Trigger:
        return self if self.timezone is not None else replace(self, timezone=zone)

    def _from_anchor(self, instant: datetime) -> Trigger:
        return self if self.anchor is not None else replace(self, anchor=instant)

    def _phrase(self) -> str:
        start = "" if self.anchor is None else f", counted from {spoken_edge(self.anchor)}"
        return f"{spoken_period(self.period)}{start}"

    def _identity(self) -> tuple[object, ...]:
        return self.period, self.anchor, _zone_identity(self.timezone)

    def __str__(self) -> str:
        start = "" if self.anchor is None else f" from {self.anchor.isoformat()}"
        return f"every {duration_text(self.period)}{start}{_zone_suffix(self.timezone)}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class At(Trigger):
    """Due once at each of its moments.

    Args:
        moments: in order; a naive one is read in the trigger's zone: the first pass where the clock shows it twice,
            the first instant after the gap where it never does.
        timezone: for naive moments and for the answers.
    """

    moments: tuple[datetime, ...]
    timezone: tzinfo | None = None

    def _search(self, instant: datetime, zone: tzinfo, reach: Reach) -> datetime | None:
        clock = self.timezone or zone
        instants = (moment_instant(moment, clock) for moment in self.moments)
        return min((found for found in instants if found > instant), default=None)

    def _in_zone(self, zone: tzinfo) -> Trigger:
        return self if self.timezone is not None else replace(self, timezone=zone)

    def _phrase(self) -> str:
        zone = f" ({spoken_zone(self.timezone)})" if self.timezone is not None else ""
        once = "once at" if len(self.moments) == 1 else "at"
        return f"{once} {listed([spoken_edge(moment) for moment in self.moments])}{zone}"

    def _identity(self) -> tuple[object, ...]:
        return frozenset(self.moments), _zone_identity(self.timezone)

    def __str__(self) -> str:
        moments = ",".join(moment.isoformat() for moment in self.moments)
        return f"at {moments}{_zone_suffix(self.timezone)}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Reboot(Trigger):
    """Due once per boot of the machine.

    When that was is nothing a trigger could compute: ``next`` is always None, and ``reboot`` tells the scheduler to
    see to it.
    """

    @property
    def timezone(self) -> tzinfo | None:
        return None

    @property
    def reboot(self) -> bool:
        return True

    def _search(self, instant: datetime, zone: tzinfo, reach: Reach) -> datetime | None:
        return None

    def _in_zone(self, zone: tzinfo) -> Trigger:
        return self

    def _phrase(self) -> str:
        return "once each time the machine has booted"

    def _identity(self) -> tuple[object, ...]:
        return ()

    def __str__(self) -> str:
        return REBOOT


def every(
    seconds: float | timedelta = 0,
    *,
    minutes: float | timedelta = 0,
    hours: float | timedelta = 0,
    days: float | timedelta = 0,
) -> Every:
    """Due each time this much time has passed, on a fixed grid: ``every(30)``, ``every(hours=2, minutes=30)``.

    Elapsed time, not the wall clock: ``days=1`` is 24 hours, also on the day summer time begins. The grid begins at the
    anchor (``.anchored(at)``; a schedule anchors it when it is created), without one at the Unix epoch.

    Args:
        seconds, minutes, hours, days: added up; numbers, or timedeltas.

    Raises:
        TypeError: not a number or timedelta.
        TriggerError: zero or less in all, not finite, or too long.
    """
    given = {"seconds": seconds, "minutes": minutes, "hours": hours, "days": days}
    spans = [span_of(value, f"every {name}", _UNITS[name]) for name, value in given.items()]
    for (name, value), span in zip(given.items(), spans, strict=True):
        if span < timedelta(0):
            raise TriggerError(f"every {name}={value!r} is negative")
    try:
        period = sum(spans, timedelta(0))
    except OverflowError as error:
        raise TriggerError("every: the period is longer than 2.7 million years") from error
    if period < MICROSECOND:
        raise TriggerError("every needs a period longer than 0: every(30), every(minutes=5)")
    return Every(duration(period, "every period"))


def at(*moments: datetime) -> At:
    """Due once at this moment, or once at each of several.

    Args:
        moments: datetimes; a naive one is read in the trigger's zone (``.with_timezone``), else in the app's.

    Raises:
        TypeError: something else.
        TriggerError: none at all.
    """
    if not moments:
        raise TriggerError("at needs a moment: at(datetime(2030, 1, 1, 9))")
    for moment in moments:
        if not isinstance(moment, datetime):
            raise TypeError(f"at takes datetimes, not {type(moment).__name__}")
    return At(tuple(sorted({stored_moment(moment) for moment in moments}, key=datetime.isoformat)))


def _zone_identity(zone: tzinfo | None) -> str | None:
    """What makes two zones the same: their text."""
    return None if zone is None else zone_text(zone)


def _zone_suffix(zone: tzinfo | None) -> str:
    """How a trigger's text ends."""
    return "" if zone is None else f" in {zone_text(zone)}"
