"""Triggers in plain English, for people who would rather not read cron.

Floor 0. ``describe`` asks here for the parts of its sentence: a cron expression is said as *when in the day*, *on which
days*, *in which months*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta, tzinfo
from itertools import product

from liteq.triggers.expression import DAY, MONTH
from liteq.triggers.fields import EVERY_WEEKDAY, LAST_DAY, LAST_WEEK, LAST_WORKDAY, NEAREST_WORKDAY, CronFields
from liteq.triggers.zones import zone_text

_WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_ORDINALS = ("", "first", "second", "third", "fourth", "fifth", "last")
_ENDINGS = {2: "nd", 3: "rd"}
_MOST_CLOCKS = 6
"""A day's runs up to this number are given as clock times."""
_SHORTEST_RUN = 3
"""Consecutive numbers are given as ``a to b`` from this many on."""


def capital(phrase: str) -> str:
    """The phrase with its first letter as a capital."""
    return phrase[:1].upper() + phrase[1:]


def listed(items: Sequence[str], word: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {word} {items[-1]}"


def spoken_duration(span: timedelta) -> str:
    """A positive duration, such as ``1 hour and 30 minutes``."""
    minutes, seconds = divmod(span.seconds, 60)
    fraction = f"{seconds}.{span.microseconds:06}".rstrip("0") if span.microseconds else str(seconds)
    parts = (
        (str(span.days), "day"),
        (str(minutes // 60), "hour"),
        (str(minutes % 60), "minute"),
        (fraction, "second"),
    )
    return listed([f"{number} {unit}{'' if number == '1' else 's'}" for number, unit in parts if number != "0"])


def spoken_period(span: timedelta) -> str:
    """A period, such as ``every 90 seconds``; a single unit needs no number: ``every hour``."""
    words = spoken_duration(span)
    alone = words.startswith("1 ") and words.count(" ") == 1
    return f"every {words.removeprefix('1 ') if alone else words}"


def spoken_edge(edge: datetime | date | time) -> str:
    """A moment, a date or a time of day without what is zero in it."""
    if isinstance(edge, datetime):
        clock = spoken_edge(edge.timetz().replace(tzinfo=None))
        offset = edge.strftime("%z")
        zone = "" if not offset else " UTC" if not edge.utcoffset() else f" {offset[:3]}:{offset[3:]}"
        return f"{edge.date().isoformat()} {clock}{zone}"
    if isinstance(edge, time):
        return edge.isoformat() if edge.second or edge.microsecond else edge.isoformat("minutes")
    return edge.isoformat()


def spoken_zone(zone: tzinfo) -> str:
    """A zone's name, such as ``Europe/Berlin time``."""
    name = zone_text(zone)
    return name if name == "UTC" else f"UTC{name}" if name[0] in "+-" else f"{name} time"


def spoken_fields(fields: CronFields) -> str:
    """A cron expression as a phrase."""
    clock, days, months = _spoken_clock(fields), _spoken_days(fields), _spoken_months(fields.month)
    if not days and "every" not in clock:
        days = "every day"
    return " ".join(part for part in (clock, days, months) if part)


def _spoken_clock(fields: CronFields) -> str:
    """When in a day: as clock times where they are few, else as seconds, minutes and hours."""
    seconds, minutes, hours = _numbers(fields.second), _numbers(fields.minute), _numbers(fields.hour)
    if len(seconds) * len(minutes) * len(hours) <= _MOST_CLOCKS:
        return f"at {listed([spoken_edge(time(*clock)) for clock in product(hours, minutes, seconds)])}"
    phrase = "" if seconds == [0] else _spoken_unit(seconds, "second", 60)
    if not phrase:
        phrase = _spoken_unit(minutes, "minute", 60)
    elif len(minutes) < 60:
        phrase += f" during {_counted('minute', minutes)}"
    elif not phrase.startswith("every"):
        phrase += " of every minute"
    return phrase + _spoken_hours(hours, steady="every" in phrase and "during" not in phrase)


def _spoken_unit(numbers: list[int], unit: str, size: int) -> str:
    """``every minute``, ``every 5 minutes``, or ``at minutes 3 and 7``: even steps must also fit into what is
    around."""
    if len(numbers) == size:
        return f"every {unit}"
    step = size // len(numbers)
    if len(numbers) > 1 and numbers == list(range(0, size, step)) and size % step == 0:
        return f"every {step} {unit}s"
    return f"at {_counted(unit, numbers)}"


def _spoken_hours(hours: list[int], steady: bool) -> str:
    """The hours behind the minutes: nothing to add where the minutes already go on around the clock."""
    if len(hours) == 24:
        return "" if steady else " of every hour"
    step = 24 // len(hours)
    if len(hours) > 1 and hours == list(range(0, 24, step)):
        return f" of every {step}{_ENDINGS.get(step, 'th')} hour"
    if len(_runs(hours)) == 1:
        return f" from {hours[0]:02}:00 to {hours[-1]:02}:59"
    return f" during {_counted('hour', hours)}"


def _spoken_days(fields: CronFields) -> str:
    """On which days; empty for every day."""
    by_day = "" if fields.day == DAY.sets["*"] else listed(_spoken_month_days(fields.day))
    by_weekday = "" if fields.weekday == EVERY_WEEKDAY else listed(_spoken_weekdays(fields.weekday), "or")
    if by_day and by_weekday:
        return f"on {by_day}, if that is {by_weekday}" if fields.both_days else f"on {by_day}, and on {by_weekday}"
    if not fields.both_days:
        return ""
    by_weekday = listed(_spoken_weekdays(fields.weekday)) if by_weekday else ""
    return f"on {by_day or by_weekday}" if by_day or by_weekday else ""


def _spoken_month_days(mask: int) -> list[str]:
    """The days of the month, special ones last."""
    numbers = [number for number in _numbers(mask) if number < LAST_DAY]
    parts = [f"{_counted('day', numbers)} of the month"] if numbers else []
    if mask >> LAST_DAY & 1:
        parts.append("the last day of the month")
    if mask >> LAST_WORKDAY & 1:
        parts.append("the last working day of the month")
    nearest = [number - NEAREST_WORKDAY for number in _numbers(mask) if number > NEAREST_WORKDAY]
    return parts + [f"the working day nearest to day {day} of the month" for day in nearest]


def _spoken_weekdays(mask: int) -> list[str]:
    """The days of the week, from Monday on, then those that are counted within the month."""
    numbers = sorted((number - 1) % 7 for number in _numbers(mask & EVERY_WEEKDAY))
    parts = _spans(numbers, lambda number: _WEEKDAYS[(number + 1) % 7])
    for week in range(1, LAST_WEEK + 1):
        days = _numbers(mask >> 7 * week & EVERY_WEEKDAY)
        parts += [f"the {_ORDINALS[week]} {_WEEKDAYS[day]} of the month" for day in days]
    return parts


def _spoken_months(mask: int) -> str:
    """In which months; empty for all."""
    if mask == MONTH.sets["*"]:
        return ""
    return f"in {listed(_spans(_numbers(mask), lambda number: _MONTHS[number - 1]))}"


def _counted(unit: str, numbers: list[int]) -> str:
    """``minute 5``, ``minutes 0 and 30``, ``minutes 0 to 10 and 30``."""
    return f"{unit}{'' if len(numbers) == 1 else 's'} {listed(_spans(numbers, str))}"


def _spans(numbers: list[int], name: Callable[[int], str]) -> list[str]:
    """Sorted numbers by name, longer runs as ``a to b``."""
    parts: list[str] = []
    for run in _runs(numbers):
        parts += [f"{name(run[0])} to {name(run[-1])}"] if len(run) >= _SHORTEST_RUN else map(name, run)
    return parts


def _runs(numbers: list[int]) -> list[list[int]]:
    """Sorted numbers, those that follow one another together."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _numbers(mask: int) -> list[int]:
    """The bits of a mask, lowest first."""
    return [number for number in range(mask.bit_length()) if mask >> number & 1]
