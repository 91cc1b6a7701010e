"""Durations and moments as triggers keep them: checked when they come in, written as text, read back.

Floor 0. What a user gives (seconds, timedeltas, datetimes with or without a zone, dates, times of day) is brought here
into one form in which equal means equal: a naive datetime stays naive and is read in a zone later, an aware one keeps
its plain offset. Python never holds an ambiguous datetime of an IANA zone equal to a datetime of another zone; with
plain offsets it does.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo

from liteq.errors import TriggerError
from liteq.triggers.zones import change_between, first_passage, offset_at

MICROSECOND = timedelta(microseconds=1)
ONE_SECOND = timedelta(seconds=1)
ONE_DAY = timedelta(days=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

EARLIEST = datetime(1, 1, 3, tzinfo=UTC)
"""No search begins earlier, so that every zone can show it: offsets reach 24 hours."""
_LATEST = datetime.max.replace(tzinfo=UTC)
_64_BITS = (1 << 64) - 1

Edge = datetime | date | time


def is_naive(moment: datetime) -> bool:
    """Whether a datetime has no offset."""
    return moment.tzinfo is None or moment.utcoffset() is None


def aware(moment: object, argument: str) -> datetime:
    """A datetime, checked to have a zone.

    Raises:
        TypeError: not a datetime.
        TriggerError: naive.
    """
    if not isinstance(moment, datetime):
        raise TypeError(f"{argument} must be an aware datetime, not {type(moment).__name__}")
    if is_naive(moment):
        raise TriggerError(f"{argument}={moment!r} is naive: give an aware datetime, with a tzinfo")
    return moment


def zone_of(moment: datetime) -> tzinfo:
    """The tzinfo of an aware datetime."""
    return moment.tzinfo or UTC


def as_instant(moment: datetime) -> datetime:
    """An aware datetime in UTC, moved to the nearest instant that can be searched from."""
    try:
        return max(moment.astimezone(UTC), EARLIEST)
    except OverflowError:
        return EARLIEST if moment.year < 5000 else _LATEST


def later(instant: datetime, span: timedelta) -> datetime:
    """An instant moved forward, to the end of the calendar at most."""
    return instant + span if _LATEST - instant > span else _LATEST


def earlier(instant: datetime, span: timedelta) -> datetime:
    """An instant moved back, to the beginning of the calendar at most."""
    return instant - span if instant - EARLIEST > span else EARLIEST


def span_of(value: object, argument: str, unit: timedelta = ONE_SECOND) -> timedelta:
    """A number of units, or a timedelta, as a timedelta of any sign.

    Raises:
        TypeError: neither a number nor a timedelta.
        TriggerError: not finite, or longer than a timedelta can be.
    """
    if isinstance(value, timedelta):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{argument} must be a number or a timedelta, not {type(value).__name__}")
    try:
        return unit * value
    except (OverflowError, ValueError) as error:
        raise TriggerError(f"{argument} is not a duration: it must be finite and below 2.7 million years") from error


def duration(value: object, argument: str) -> timedelta:
    """Seconds or a timedelta as a timedelta that is longer than nothing.

    Raises:
        TypeError: neither a number nor a timedelta.
        TriggerError: less than a microsecond, not finite, or longer than a timedelta can be.
    """
    span = span_of(value, argument)
    if span < MICROSECOND:
        shown = f"={value!r}" if isinstance(value, int | float) else ""
        raise TriggerError(f"{argument}{shown} must be longer than 0, by a microsecond at least")
    return span


def duration_text(span: timedelta) -> str:
    """A positive duration as ``1d2h3m4.5s``."""
    minutes, seconds = divmod(span.seconds, 60)
    parts = ((span.days, "d"), (minutes // 60, "h"), (minutes % 60, "m"))
    text = "".join(f"{number}{unit}" for number, unit in parts if number)
    fraction = f".{span.microseconds:06}".rstrip("0") if span.microseconds else ""
    return text + (f"{seconds}{fraction}s" if seconds or fraction else "")


def stored_moment(moment: datetime) -> datetime:
    """A datetime as triggers keep it: naive, or with its plain offset."""
    if is_naive(moment):
        return moment.replace(tzinfo=None, fold=0)
    return moment.replace(tzinfo=timezone(moment.utcoffset() or timedelta(0)), fold=0)


def moment_instant(moment: datetime, zone: tzinfo) -> datetime:
    """The instant of a stored moment; a naive one is read in ``zone``: the first pass in a fold, the end of a gap."""
    return first_passage(moment, zone) if is_naive(moment) else moment.astimezone(UTC)


def midnight(day: date) -> datetime:
    """The reading at which a date begins."""
    return datetime(day.year, day.month, day.day)


def first_instant(edge: date, zone: tzinfo) -> datetime:
    """The first instant of a window that starts with this datetime, or with this whole date."""
    return moment_instant(edge, zone) if isinstance(edge, datetime) else first_passage(midnight(edge), zone)


def last_instant(edge: date, zone: tzinfo) -> datetime:
    """The last instant of a window that ends with this datetime, or with this whole date."""
    if isinstance(edge, datetime):
        return moment_instant(edge, zone)
    if edge == date.max:
        return _LATEST
    return first_passage(midnight(edge + ONE_DAY), zone) - MICROSECOND


def leap(instant: datetime, reading: datetime, zone: tzinfo) -> datetime:
    """The instant from which a search goes on when nothing can be due before the clock shows a reading.

    Where the clock falls back on the way, it may show an earlier reading once more, so the search goes on from there.

    Args:
        instant: where the search stands.
        reading: one that the clock will show.
    """
    target = first_passage(reading, zone)
    if offset_at(target, zone) < offset_at(instant, zone):
        target = min(target, change_between(instant, target, zone))
    return max(instant, target - MICROSECOND)


def edge_kind(edge: object, argument: str) -> type[Edge]:
    """Which kind of window an end makes: one of datetimes, of dates, of times of day.

    Raises:
        TypeError: of none.
    """
    for kind in (datetime, date, time):
        if isinstance(edge, kind):
            return kind
    raise TypeError(f"{argument} must be a datetime, a date, a time of day or None, not {type(edge).__name__}")


def check_order(start: date | None, end: date | None) -> None:
    """Refuse a window that ends before it starts, as far as that can be told without a zone.

    Raises:
        TriggerError: it does.
    """
    if start is None or end is None:
        return
    if isinstance(start, datetime) and isinstance(end, datetime) and is_naive(start) != is_naive(end):
        return
    if end < start:
        raise TriggerError(f"between: the end {end} is before the start {start}: this trigger would never be due")


def jitter_of(slot: datetime, width: float | timedelta, seed: str = "") -> timedelta:
    """The delay of one slot: spread evenly over ``[0, width)``, always the same for the same slot, width and seed.

    The slot's microseconds are mixed with the seed by splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom
    number generators, 2014), so the answer is the same in every process, on every platform, under every Python.

    Args:
        slot: an aware datetime.
        width: the longest delay, in seconds.
        seed: for example the schedule's name.

    Raises:
        TypeError, TriggerError: a wrong argument, named.
    """
    span = duration(width, "width")
    mixed = _mixed((aware(slot, "slot").astimezone(UTC) - EPOCH) // MICROSECOND)
    for byte in seed.encode("utf-8", "surrogatepass"):
        mixed = _mixed(mixed ^ byte + 1)
    return (mixed * (span // MICROSECOND) >> 64) * MICROSECOND


def _mixed(state: int) -> int:
    """One step of splitmix64."""
    state = state + 0x9E3779B97F4A7C15 & _64_BITS
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _64_BITS
    state = (state ^ state >> 27) * 0x94D049BB133111EB & _64_BITS
    return state ^ state >> 31
