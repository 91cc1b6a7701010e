"""Moments and time zones as stored JSON has them.

You stand beside ``known.py``, which lists these writers and readers among all others. Instants are written as RFC 9557
has it, RFC 3339 with the zone after it: ``2024-10-27T02:30:00+01:00[Europe/Berlin][_fold=1]``. The offset fixes the
instant even if the zone's rules change while a job waits. A timezone that was given a name of its own makes it a pair:
``["2024-10-27T02:30:00+01:00", "CET"]``.
"""

from __future__ import annotations

import re
import sys
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING

from liteq.serializers.contract import error_words, short, type_name
from liteq.serializers.document import Unstorable, expect, tagged, write_str

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

_ZONE_KEY = re.compile(r"\w+(?:[/+\-]\w+)*", re.ASCII)
_STAMP = re.compile(rf"([^\[\]]+)(?:\[({_ZONE_KEY.pattern})\])?(\[_fold=1\])?", re.ASCII)
_TINY_OFFSET = re.compile(r"([+\-])00:00:00\.(\d{6})$", re.ASCII)


def write_datetime(value: datetime) -> object:
    return tagged("datetime", _stamp(value))


def read_datetime(value: object) -> datetime:
    text, zone, fold, name = _split_stamp(value)
    moment = datetime.fromisoformat(text).replace(fold=fold)
    if zone is None:
        return moment.replace(tzinfo=_offset_zone(text, moment.tzinfo, name))
    if moment.tzinfo is None:
        raise ValueError(f"{short(text)} has a zone and no offset")
    local = moment.replace(tzinfo=zone)
    return local if local.utcoffset() == moment.utcoffset() else moment.astimezone(zone)


def write_time(value: time) -> object:
    return tagged("time", _stamp(value))


def read_time(value: object) -> time:
    text, zone, fold, name = _split_stamp(value)
    moment = time.fromisoformat(text)
    return moment.replace(tzinfo=_offset_zone(text, moment.tzinfo, name) if zone is None else zone, fold=fold)


def _stamp(value: datetime | time) -> object:
    zone = value.tzinfo
    key = _zone_key(zone)
    try:
        text = value.isoformat()
        placed = zone is None or key is not None or value.utcoffset() is not None
    except Exception as error:
        reason = f"its tzinfo, {type_name(type(zone))}, raised {error_words(error)}"
        raise Unstorable(value, reason) from error
    if not placed:
        raise Unstorable(
            value, f"its tzinfo, {type_name(type(zone))}, has no offset for it: use a ZoneInfo or timezone"
        )
    text += (f"[{key}]" if key else "") + ("[_fold=1]" if value.fold else "")
    name = _given_name(zone)
    return text if name is None else [text, write_str(name)]


def _split_stamp(value: object) -> tuple[str, ZoneInfo | None, int, str | None]:
    """The parts of a stamp: ISO text, zone, fold, the timezone's own name."""
    text, name = expect(list, value) if type(value) is list else (value, None)
    match = _STAMP.fullmatch(expect(str, text))
    if match is None:
        raise ValueError(f"{short(text)} is not a time stamp")
    zone = _find_zone(match[2]) if match[2] else None
    return match[1], zone, 1 if match[3] else 0, name if name is None else expect(str, name)


def _offset_zone(text: str, zone: tzinfo | None, name: str | None) -> tzinfo | None:
    """The zone of an offset, under its own name, exact where ``fromisoformat`` takes less than a second for none."""
    tiny = _TINY_OFFSET.search(text)
    offset = timedelta(microseconds=int(tiny[1] + tiny[2])) if tiny else zone.utcoffset(None) if zone else None
    if offset is None:
        if name is not None:
            raise ValueError("it has a zone's name and no offset")
        return None
    return timezone(offset) if name is None else timezone(offset, name)


def read_date(value: object) -> date:
    return date.fromisoformat(expect(str, value))


def read_timedelta(value: object) -> timedelta:
    days, seconds, microseconds = (expect(int, number) for number in expect(list, value))
    return timedelta(days, seconds, microseconds)


def write_timezone(value: timezone) -> object:
    offset, name = value.utcoffset(None), _given_name(value)
    numbers = [offset.days, offset.seconds, offset.microseconds]
    return tagged("timezone", [numbers] if name is None else [numbers, write_str(name)])


def read_timezone(value: object) -> timezone:
    offset, *name = expect(list, value)
    return timezone(read_timedelta(offset), *name)


def _given_name(zone: tzinfo | None) -> str | None:
    """The name that a ``timezone`` was given by its maker, as in ``timezone(timedelta(hours=1), "CET")``."""
    if type(zone) is not timezone:
        return None
    name = zone.tzname(None)
    return None if name == timezone(zone.utcoffset(None)).tzname(None) else name


def write_zoneinfo(value: ZoneInfo) -> object:
    key = _zone_key(value)
    if key is None:
        raise Unstorable(value, "zoneinfo.ZoneInfo has no key under which it can be found again: use ZoneInfo(name)")
    return tagged("zoneinfo", key)


def read_zoneinfo(value: object) -> ZoneInfo:
    return _find_zone(expect(str, value))


def _zone_key(zone: tzinfo | None) -> str | None:
    """The key under which this machine finds the zone again, if it is a ZoneInfo that has one."""
    module = sys.modules.get("zoneinfo")
    if module is None or not isinstance(zone, module.ZoneInfo):
        return None
    try:
        return _find_zone(zone.key).key
    except (ValueError, TypeError):
        return None  # from ZoneInfo.from_file: no key, or one of its own


def _find_zone(key: str) -> ZoneInfo:
    """The zone of this name.

    Raises:
        ValueError: there is none. (ZoneInfo itself raises KeyError, ValueError or, for a directory, OSError.)
    """
    from zoneinfo import ZoneInfo

    if not _ZONE_KEY.fullmatch(key):
        raise ValueError(f"no time zone can be called {short(key)}")
    try:
        return ZoneInfo(key)
    except (KeyError, OSError) as error:
        raise ValueError(
            f"this machine has no time zone {key!r}: install the system's tzdata, or tzdata from PyPI"
        ) from error
