"""Which readings of a wall clock match a cron expression: sets as integers, no zones, no instants.

Floor 0. The reader stands between the grammar (``expression.py`` builds a ``CronFields``) and the zones (``cron.py``
turns a reading into an instant). A *reading* is what a clock on the wall shows: a naive datetime.

Every field is one integer whose bit *n* is set when *n* matches, so "the next minute that matches" is a shift and a
lowest bit, and the days of a whole month are one multiplication. The special days live in the upper bits:

========== =============================================================================================
field      bits
========== =============================================================================================
day        1-31 the days; 32 ``L``; 33 ``LW``; 33 + n ``nW`` (n 1-31)
weekday    w: every weekday w (0 Sunday); 7 * n + w: ``w#n`` (n 1-5); 42 + w: ``wL``
========== =============================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import MAXYEAR, date, datetime, tzinfo

EVERY_WEEKDAY = 0b111_1111
LAST_DAY = 32
LAST_WORKDAY = 33
NEAREST_WORKDAY = 33
"""Bit 33 + n stands for ``nW``."""
LAST_WEEK = 6
"""The row of the weekday field that stands for ``wL``, after the rows 1 to 5 of ``w#n``."""

_FIVE_WEEKS = 0b1 | 1 << 7 | 1 << 14 | 1 << 21 | 1 << 28
_LENGTHS = (0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_MONTHS_OF_31 = sum(1 << month for month in (1, 3, 5, 7, 8, 10, 12))
_MONTHS_OF_30 = sum(1 << month for month in (4, 6, 9, 11))
_FEBRUARY = 1 << 2
_DAYS_OF_EVERY_MONTH = (1 << 29) - 2
_SATURDAY, _SUNDAY = 6, 0


def lowest(mask: int) -> int:
    """The number of the lowest bit of a mask that is not 0."""
    return (mask & -mask).bit_length() - 1


@dataclass(frozen=True, slots=True)
class CronFields:
    """What a cron expression says, one bit set per field.

    Args:
        second, minute, hour, day, month, weekday: see the module's table.
        both_days: the day of month **and** the day of week must match; False: one of them is enough.
        real_time: minute or hour begins with ``*``: the trigger follows elapsed time through clock changes.
        daily: neither day field restricts anything.
    """

    second: int
    minute: int
    hour: int
    day: int
    month: int
    weekday: int
    both_days: bool
    real_time: bool
    daily: bool

    def after(self, reading: datetime, zone: tzinfo | None = None) -> datetime | None:
        """The first matching reading strictly after this one.

        Args:
            reading: a fraction of a second counts as the second it is in; its zone, if it has one, is not looked at.
            zone: the tzinfo to put on the answer.

        Returns:
            A datetime of whole seconds, naive or with ``zone``; None where no year up to 9999 has one.
        """
        year, month, day = reading.year, reading.month, reading.day
        if self.month >> month & 1:
            days = 1 if self.daily else self.days(year, month) >> day
            if days & 1:
                clock = self._later_today(reading.hour, reading.minute, reading.second)
                if clock is not None:
                    return datetime(year, month, day, *clock, 0, zone)
            days = self.days(year, month) >> day + 1 if self.daily else days >> 1
            if days:
                return datetime(year, month, day + 1 + lowest(days), *self._first_clock(), 0, zone)
        return self._in_later_months(year, month, zone)

    def days(self, year: int, month: int) -> int:
        """The matching days of one month, bit *n* for day *n*, whether or not the month itself matches."""
        length = 29 if month == 2 and year % 4 == 0 and (year % 100 or year % 400 == 0) else _LENGTHS[month]
        return self._days_of(length, date(year, month, 1).isoweekday() % 7)

    def exists(self) -> bool:
        """Whether any date at all matches: every length and first weekday of the matching months is tried.

        In 400 years each month begins on every weekday, and so does a February of 28 and one of 29 days, so a date that
        is found here exists in the calendar, and one that is not never will. Most expressions are known at a glance.
        """
        if (
            self.day & _DAYS_OF_EVERY_MONTH
            if self.weekday == EVERY_WEEKDAY
            else not self.both_days and self.weekday & EVERY_WEEKDAY
        ):
            return True
        lengths = [31] * bool(self.month & _MONTHS_OF_31) + [30] * bool(self.month & _MONTHS_OF_30)
        lengths += [29, 28] * bool(self.month & _FEBRUARY)
        return any(self._days_of(length, first) for length in lengths for first in range(7))

    def _in_later_months(self, year: int, month: int, zone: tzinfo | None) -> datetime | None:
        """The first matching reading in a month after this one."""
        while year <= MAXYEAR:
            months = self.month >> (month + 1)
            while months:
                month += 1 + lowest(months)
                days = self.days(year, month)
                if days:
                    return datetime(year, month, lowest(days), *self._first_clock(), 0, zone)
                months = self.month >> (month + 1)
            year, month = year + 1, 0
        return None

    def _first_clock(self) -> tuple[int, int, int]:
        """The first matching hour, minute and second of a day."""
        return lowest(self.hour), lowest(self.minute), lowest(self.second)

    def _later_today(self, hour: int, minute: int, second: int) -> tuple[int, int, int] | None:
        """The first matching hour, minute and second strictly after the given ones on the same day."""
        if self.hour >> hour & 1:
            if self.minute >> minute & 1:
                seconds = self.second >> (second + 1)
                if seconds:
                    return hour, minute, second + 1 + lowest(seconds)
            minutes = self.minute >> (minute + 1)
            if minutes:
                return hour, minute + 1 + lowest(minutes), lowest(self.second)
        hours = self.hour >> (hour + 1)
        if hours:
            return hour + 1 + lowest(hours), lowest(self.minute), lowest(self.second)
        return None

    def _days_of(self, length: int, first: int) -> int:
        """The matching days of any month of this length whose first day is this weekday (0 Sunday)."""
        month = (2 << length) - 2
        by_day = self.day & month
        if self.day >> LAST_DAY:
            by_day |= _special_days(self.day, length, first)
        by_weekday = month if self.weekday == EVERY_WEEKDAY else month & _weekdays(self.weekday, length, first)
        return by_day & by_weekday if self.both_days else by_day | by_weekday


def _weekdays(mask: int, length: int, first: int) -> int:
    """The days that a weekday field selects; may hold bits past the end of the month."""
    days = (_from(mask & EVERY_WEEKDAY, first) * _FIVE_WEEKS) << 1
    if mask > EVERY_WEEKDAY:
        for week in range(1, LAST_WEEK):
            days |= _from(mask >> 7 * week & EVERY_WEEKDAY, first) << (7 * week - 6)
        last_days = EVERY_WEEKDAY << (length - 6)
        days |= (_from(mask >> 7 * LAST_WEEK & EVERY_WEEKDAY, first) * _FIVE_WEEKS) << 1 & last_days
    return days


def _from(weekdays: int, first: int) -> int:
    """The same weekdays counted from ``first`` instead of from Sunday."""
    return (weekdays | weekdays << 7) >> first & EVERY_WEEKDAY


def _special_days(mask: int, length: int, first: int) -> int:
    """The days that ``L``, ``LW`` and ``nW`` select; ``nW`` selects nothing in a month without a day n."""
    days = 0
    if mask >> LAST_DAY & 1:
        days |= 1 << length
    if mask >> LAST_WORKDAY & 1:
        days |= 1 << _nearest_workday(length, length, first)
    wanted = mask >> (NEAREST_WORKDAY + 1)
    while wanted:
        day = lowest(wanted) + 1
        wanted &= wanted - 1
        if day <= length:
            days |= 1 << _nearest_workday(day, length, first)
    return days


def _nearest_workday(day: int, length: int, first: int) -> int:
    """The day from Monday to Friday nearest to this one within the month."""
    weekday = (first + day - 1) % 7
    if weekday == _SATURDAY:
        return day - 1 if day > 1 else day + 2
    if weekday == _SUNDAY:
        return day + 1 if day < length else day - 2
    return day
