"""Clock arithmetic: what a zone's clock shows, when it shows it, and where it changes.

Floor 0. Everything is asked through ``tzinfo`` alone (``utcoffset`` with ``fold``, PEP 495), so fixed offsets, IANA
zones and foreign implementations are one. Two words: a *reading* is what the wall clock shows (a naive datetime), an
*instant* is a moment (an aware datetime in UTC).

Where the clock changes, a reading may happen twice (a *fold*) or not at all (a *gap*). ``utcoffset`` tells which: its
answers for fold 0 and fold 1 differ, and the first is larger in a fold, smaller in a gap.

Changes closer together than a day would defeat the looks that ``cron.py`` takes at the ends of a day. The closest pair
in the IANA database is 95 hours apart (Freetown, 1939).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import cache
from typing import TypeGuard
from zoneinfo import ZoneInfo, available_timezones

from liteq.errors import TriggerError

SECOND = timedelta(seconds=1)

_NAME = re.compile(r"[A-Za-z0-9_+\-]+(?:/[A-Za-z0-9_+\-]+)*", re.ASCII)
_OFFSET = re.compile(r"([+-])([0-9]{2}):([0-9]{2})(?::([0-9]{2}))?", re.ASCII)
_LONGEST_NAME = 100
#: Names that look as nearly all do: ``Europe/Berlin``, ``America/Port_of_Spain``, ``Etc/GMT+5``, ``CET``.
_USUAL = re.compile(
    r"[A-Z]{3}|[A-Z][A-Za-z]*(?:/(?:[A-Z][a-z]+(?:_[A-Za-z][a-z]+)*|GMT[+-]?[0-9]*))+",
    re.ASCII,
)


def named_zone(value: object, argument: str = "timezone") -> tzinfo:
    """The zone of a name or a tzinfo, in the one form in which triggers keep it.

    Args:
        value: an IANA name (``"Europe/Berlin"``, in any case), an offset (``"+02:00"``), a ``ZoneInfo``, a
            ``datetime.timezone``, or a tzinfo of another library that has a ``zone`` attribute with an IANA name.
        argument: for messages.

    Raises:
        TypeError: neither a text nor a tzinfo.
        TriggerError: no zone of this name, or a tzinfo without a name that could be stored.
    """
    if isinstance(value, str):
        return _zone_of_text(value, argument)
    if not isinstance(value, tzinfo):
        raise TypeError(f"{argument} must be an IANA name or a tzinfo, not {type(value).__name__}")
    name = _name_of(value)
    if name is None:
        raise TriggerError(
            f"{argument}={value!r} has no name that could be stored; give the IANA name instead, "
            f"such as {argument}='Europe/Berlin'"
        )
    return _zone_of_text(name, argument)


def zone_text(zone: tzinfo) -> str:
    """The text of a zone that came out of ``named_zone``: its IANA name, ``UTC``, or an offset such as ``+02:00``."""
    return _name_of(zone) or repr(zone)


def clock_zone(zone: tzinfo) -> tzinfo:
    """A zone that can be asked about any reading.

    A tzinfo of pytz stands for one offset of its zone only, and would keep it through every clock change; its ``zone``
    attribute names the zone.
    """
    name = getattr(zone, "zone", None)
    return _zone_of_text(name, "tzinfo") if isinstance(name, str) else zone


def is_fixed(zone: tzinfo | None) -> TypeGuard[timezone]:
    """Whether the clock of this zone can never change."""
    return type(zone) is timezone


def offsets(reading: datetime, zone: tzinfo) -> tuple[timedelta, timedelta]:
    """The offsets of a reading's two passes: equal on an ordinary day, falling in a fold, rising in a gap."""
    first = reading.replace(tzinfo=zone, fold=0)
    return _known(first.utcoffset()), _known(first.replace(fold=1).utcoffset())


def offset_at(instant: datetime, zone: tzinfo) -> timedelta:
    """The offset of a zone at an instant."""
    return _known(instant.astimezone(zone).utcoffset())


def instant_at(reading: datetime, offset: timedelta) -> datetime:
    """The instant at which a clock with this offset shows the reading."""
    return (reading - offset).replace(tzinfo=UTC)


def reading_at(instant: datetime, offset: timedelta) -> datetime:
    """What a clock with this offset shows at an instant."""
    return (instant + offset).replace(tzinfo=None)


def first_passage(reading: datetime, zone: tzinfo) -> datetime:
    """The instant at which the clock first shows this reading or one after it.

    In a fold that is the first pass; in a gap, the first instant after it.
    """
    first, second = offsets(reading, zone)
    if first >= second:
        return instant_at(reading, first)
    return gap_end(reading, first, second, zone)


def gap_end(reading: datetime, before: timedelta, behind: timedelta, zone: tzinfo) -> datetime:
    """The first instant after the gap that swallows a reading.

    Args:
        reading: one that the clock never shows.
        before, behind: the offsets before and after the gap.
    """
    return change_between(instant_at(reading, behind), instant_at(reading, before), zone)


def fold_end(reading: datetime, first: timedelta, second: timedelta, zone: tzinfo) -> datetime:
    """The reading at which the fold around a reading ends: the first one that the clock shows only once again.

    Args:
        reading: one that the clock shows twice.
        first, second: the offsets of its passes.
    """
    change = change_between(instant_at(reading, first), instant_at(reading, second), zone)
    return reading_at(change, first)


def change_between(low: datetime, high: datetime, zone: tzinfo) -> datetime:
    """The first whole second in ``(low, high]`` at which the zone has another offset than at ``low``.

    Args:
        low, high: instants between which the clock changes once; without a change the answer is ``high``.
    """
    low = low.replace(microsecond=0)
    before = offset_at(low, zone)
    seconds = (high - low) // SECOND
    unchanged, changed = 0, seconds
    while changed - unchanged > 1:
        middle = (unchanged + changed) // 2
        if offset_at(low + middle * SECOND, zone) == before:
            unchanged = middle
        else:
            changed = middle
    return low + changed * SECOND


def _known(offset: timedelta | None) -> timedelta:
    """An offset, which a zone that is worth its name has for every datetime."""
    if offset is None:
        raise TriggerError("the tzinfo has no offset for this datetime: give an aware datetime, or a timezone")
    return offset


def _zone_of_text(text: str, argument: str) -> tzinfo:
    """The zone of an IANA name or an offset."""
    if text.upper() == "UTC":
        return UTC
    offset = _OFFSET.fullmatch(text)
    if offset is not None:
        return _fixed_zone(offset, text, argument)
    if len(text) > _LONGEST_NAME or _NAME.fullmatch(text) is None:
        raise TriggerError(f"{argument}={text[:_LONGEST_NAME]!r} is not the name of a time zone")
    return _zone_of_name(text, argument)


def _zone_of_name(name: str, argument: str) -> tzinfo:
    """The zone of an IANA name, however it is spelled.

    A name that looks usual is tried as it is, which saves reading the directory of all names. Others are looked up
    first: a file system that ignores case would find them, and the file of the queue may move to one that does not.
    """
    spellings = [name] if _USUAL.fullmatch(name) else []
    for spelling in (*spellings, spelled(name)):
        try:
            return ZoneInfo(spelling)
        except (KeyError, ValueError, OSError) as error:
            unknown = error
    raise TriggerError(
        f"{argument}={name!r} is not a time zone known here; {_suggestion(name)} "
        "(a system without zone data needs the package tzdata)"
    ) from unknown


def spelled(name: str) -> str:
    """A zone's name in its own spelling: ``Europe/Berlin`` for ``europe/BERLIN``; what is unknown stays as it is."""
    return _known_spellings().get(name.lower(), name)


@cache
def _known_spellings() -> dict[str, str]:
    """The names of all zones by themselves in small letters; reads a directory of the system."""
    return {name.lower(): name for name in sorted(available_timezones())}


def _suggestion(text: str) -> str:
    """How a message helps with a name that is not known."""
    from difflib import get_close_matches

    near = get_close_matches(text.lower(), _known_spellings(), n=1, cutoff=0.8)
    return f"did you mean {_known_spellings()[near[0]]!r}?" if near else "names look like 'Europe/Berlin'"


def _fixed_zone(offset: re.Match[str], text: str, argument: str) -> timezone:
    """The zone of an offset such as ``+02:00``."""
    sign, hours, minutes, seconds = offset.groups()
    if int(hours) > 23 or int(minutes) > 59 or int(seconds or 0) > 59:
        raise TriggerError(f"{argument}={text!r} is not an offset: at most 23:59:59")
    size = timedelta(hours=int(hours), minutes=int(minutes), seconds=int(seconds or 0))
    return timezone(-size if sign == "-" else size) if size else UTC


def _name_of(zone: tzinfo) -> str | None:
    """The text under which a zone can be found again, None where it has none."""
    if isinstance(zone, ZoneInfo):
        return zone.key
    if isinstance(zone, timezone):
        return _offset_text(_known(zone.utcoffset(None)))
    name = getattr(zone, "zone", None)
    return name if isinstance(name, str) else None


def _offset_text(offset: timedelta) -> str | None:
    """``UTC`` or ``+02:00``; None for a fraction of a second, which no text of an offset can carry."""
    if offset.microseconds:
        return None
    if not offset:
        return "UTC"
    minutes, seconds = divmod(abs(offset) // SECOND, 60)
    tail = f":{seconds:02}" if seconds else ""
    return f"{'-' if offset < timedelta(0) else '+'}{minutes // 60:02}:{minutes % 60:02}{tail}"
