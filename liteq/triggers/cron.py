"""``crontab(...)``: a cron expression in a zone, with every change of the clock decided.

Floor 0. ``fields.py`` knows which readings of the wall clock match; this module knows at which instants a run is due
for them, by one of two rules:

* **fixed time** (neither minute nor hour begins with ``*``): every matching reading has one run, at the first instant
  at which the clock shows it or a later one. So a run in a gap comes at its end, a run in a fold in the first pass, and
  runs that come to the same instant are one. A reading swallowed by a gap of more than three hours has none.
* **real time** (minute or hour begins with ``*``): a run at every instant at which the clock shows a matching reading.
  So none in a gap, and in a fold one in each pass.

Away from changes both rules say the same, and a look at two or three offsets proves that a change is away; only near
one does a search step through it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import MAXYEAR, UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from liteq.errors import TriggerError
from liteq.triggers.english import spoken_fields, spoken_zone
from liteq.triggers.expression import (
    BOTH_DAYS,
    REBOOT,
    keyword_text,
    quoted,
    read_expression,
    read_keywords,
    split_blanks,
)
from liteq.triggers.fields import CronFields
from liteq.triggers.moments import ONE_DAY, ONE_SECOND, aware, midnight
from liteq.triggers.plain import Reboot
from liteq.triggers.trigger import Reach, Trigger
from liteq.triggers.zones import (
    change_between,
    fold_end,
    gap_end,
    instant_at,
    is_fixed,
    named_zone,
    offset_at,
    offsets,
    reading_at,
    zone_text,
)

LONGEST_GAP = timedelta(hours=3)
"""A fixed-time run swallowed by a longer gap than this is left out, as Debian's cron does: the day itself was
skipped."""

_Value = str | int | Iterable[str | int]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Crontab(Trigger):
    """Due when the wall clock of its zone shows what a cron expression says. Made by ``crontab``.

    Args:
        text: the expression as it was written, blanks made single.
        fields: what it says.
        timezone: as ``named_zone`` gives it; None: the caller's.
    """

    text: str
    fields: CronFields
    timezone: tzinfo | None = None

    def next(self, after: datetime) -> datetime | None:
        # The way past UTC and back costs more than the search; an ordinary answer needs neither.
        zone = self.timezone or getattr(after, "tzinfo", None)
        if type(after) is datetime and (type(zone) is ZoneInfo or is_fixed(zone)):
            try:
                slot = self._ordinary(after if after.tzinfo is zone else aware(after, "after").astimezone(zone), zone)
            except OverflowError:
                slot = None
            if slot is not None and slot.year < MAXYEAR:
                return slot
        return Trigger.next(self, after)

    def _search(self, instant: datetime, zone: tzinfo, reach: Reach) -> datetime | None:
        clock = self.timezone or zone
        slot = self._ordinary(instant.astimezone(clock), clock)
        if slot is not None:
            return slot.astimezone(UTC)
        return self._in_real_time(instant, clock) if self.fields.real_time else self._by_the_clock(instant, clock)

    def _ordinary(self, shown: datetime, clock: tzinfo) -> datetime | None:
        """The next run where no change of the clock is near, which is nearly always; None where one may be.

        Near means: between ``shown`` and a run on the same day, or the midnight after ``shown``, or at the run itself.
        Second passes, and readings in a gap, count as near too.

        Args:
            shown: an aware datetime of this zone.
        """
        slot = self.fields.after(shown, clock)
        if slot is None or is_fixed(clock):
            return slot
        if shown.fold:
            return None
        offset, first = shown.utcoffset(), slot.utcoffset()
        if first != slot.replace(fold=1).utcoffset():
            return None
        if slot.day == shown.day and slot.month == shown.month and slot.year == shown.year:
            return slot if first == offset else None
        evening = datetime(shown.year, shown.month, shown.day, tzinfo=clock) + ONE_DAY
        return slot if evening.replace(fold=1).utcoffset() == offset else None

    def _by_the_clock(self, instant: datetime, clock: tzinfo) -> datetime | None:
        """The next run by the rule for fixed times, whatever the clock does."""
        reading = _furthest_reading(instant, clock)
        while True:
            slot = self.fields.after(reading)
            if slot is None:
                return None
            first, second = offsets(slot, clock)
            if first >= second:
                return instant_at(slot, first)
            gap = gap_end(slot, first, second, clock)
            if second - first <= LONGEST_GAP:
                return gap
            reading = max(reading_at(gap, second) - ONE_SECOND, slot)

    def _in_real_time(self, instant: datetime, clock: tzinfo) -> datetime | None:
        """The next run by the rule for real time, whatever the clock does.

        Every round looks at the rest of one day under one offset, and a change of the clock begins a new round.
        """
        offset = offset_at(instant, clock)
        reading, since = reading_at(instant, offset), instant
        while True:
            slot = self.fields.after(reading)
            if slot is None:
                return None
            today = slot.date() == reading.date()
            change = _change_before_midnight(reading, offset, since, clock)
            if change is None and today:
                return instant_at(slot, offset)
            if change is not None and instant_at(slot, offset) < change:
                return instant_at(slot, offset)
            if change is None:
                first, second = offsets(slot, clock)
                if first >= second:
                    once = instant_at(slot, first)
                    return once if once > instant else instant_at(slot, second)
                change = gap_end(slot, first, second, clock)
            change = max(change, since + ONE_SECOND)  # a tzinfo that contradicts itself must not stop the search
            offset = offset_at(change, clock)
            reading, since = reading_at(change, offset) - ONE_SECOND, change

    def _in_zone(self, zone: tzinfo) -> Trigger:
        return self if self.timezone is not None else replace(self, timezone=zone)

    def _phrase(self) -> str:
        zone = "" if self.timezone is None else f" ({spoken_zone(self.timezone)})"
        return f"{spoken_fields(self.fields)}{zone}"

    def _identity(self) -> tuple[object, ...]:
        return self.fields, None if self.timezone is None else zone_text(self.timezone)

    def __str__(self) -> str:
        return self.text if self.timezone is None else f"{self.text} in {zone_text(self.timezone)}"


def crontab(
    minute: _Value = "*",
    hour: _Value = "*",
    day: _Value = "*",
    month: _Value = "*",
    day_of_week: _Value = "*",
    *,
    second: _Value | None = None,
    timezone: str | tzinfo | None = None,
) -> Trigger:
    """A trigger from a cron expression or, as in huey, from its fields.

    ``crontab("*/5 9-17 * * mon-fri")`` is an expression of five fields; six have the second first; ``@hourly`` and its
    kin are expressions too. Where both day fields are restricted, one of them is enough, unless either begins with
    ``*``.

    ``crontab(minute="0", hour="9", day_of_week=[1, 5])`` names the fields. Both day fields must match. A field left
    out is ``*``, also the minute, and the second is 0.

    Args:
        minute, hour, day, month, day_of_week, second: a number, a text such as ``"*/5"`` or ``"9-17"``, or a list of
            them.
        timezone: an IANA name or a tzinfo; None: the app's.

    Raises:
        TypeError: a field or the zone has a wrong type, or an expression is given together with fields.
        TriggerError: a field cannot be read, or no date ever matches. The message names the field and the text.
    """
    zone = None if timezone is None else named_zone(timezone)
    values = (minute, hour, day, month, day_of_week)
    if isinstance(minute, str) and (" " in minute or "\t" in minute or minute.startswith("@")):
        if values[1:] != ("*",) * 4 or second is not None:
            raise TypeError(f"crontab takes an expression or fields, not both; {quoted(minute)} is an expression")
        return expression_trigger(minute, zone)
    return _keyword_trigger(values, second, zone)


def expression_trigger(text: str, zone: tzinfo | None = None) -> Trigger:
    """The trigger of an expression, also of one that ends with ``both-days`` or ``in`` and a zone as ``str`` writes it.

    Raises:
        TriggerError: it cannot be read, or it names a zone beside ``zone``.
    """
    words = split_blanks(text)
    both_days = False
    if len(words) != 5:
        words, zone = _without_zone(words, zone)
        both_days = len(words) > 1 and words[-1].lower() == BOTH_DAYS
        words = words[:-1] if both_days else words
        if len(words) == 1 and words[0].lower() == REBOOT:
            return Reboot()
    fields = read_expression(words, both_days=both_days)
    return Crontab(" ".join([*words, BOTH_DAYS] if both_days else words), fields, zone)


def _without_zone(words: list[str], zone: tzinfo | None) -> tuple[list[str], tzinfo | None]:
    """The words before ``in`` and a zone, and that zone."""
    if len(words) < 3 or words[-2].lower() != "in":
        return words, zone
    if zone is not None:
        raise TriggerError(f"crontab {quoted(' '.join(words))} names a zone, and timezone= another: give one")
    return words[:-2], named_zone(words[-1])


def _keyword_trigger(values: tuple[object, ...], second: object, zone: tzinfo | None) -> Crontab:
    """The trigger of the keyword form, with the text of an expression that says the same."""
    names = ("minute", "hour", "day", "month", "day_of_week")
    texts = [keyword_text(value, name) for value, name in zip(values, names, strict=True)]
    seconds = "0" if second is None else keyword_text(second, "second")
    fields = read_keywords([seconds, *texts])
    words = texts if second is None else [seconds, *texts]
    alone = texts[2].startswith("*") or texts[4].startswith("*")
    return Crontab(" ".join(words if alone else [*words, BOTH_DAYS]), fields, zone)


def _furthest_reading(instant: datetime, clock: tzinfo) -> datetime:
    """The last reading that the clock has already shown, a second pass of a fold not counted."""
    offset = offset_at(instant, clock)
    reading = reading_at(instant, offset)
    first, second = offsets(reading, clock)
    if first > second and offset == second:
        return fold_end(reading, first, second, clock) - ONE_SECOND
    return reading


def _change_before_midnight(reading: datetime, offset: timedelta, since: datetime, clock: tzinfo) -> datetime | None:
    """The first instant after ``since`` at which the clock changes before its day is over.

    Args:
        reading, offset: what the clock shows at ``since``, and its offset there.
    """
    evening = midnight(reading) + ONE_DAY
    behind = offsets(evening, clock)[1]
    if behind == offset:
        return None
    return change_between(since, instant_at(evening, min(offset, behind)), clock)
