"""Instants and durations as people write and read them: ``1h``, ``7d``, ``30``; ``3m ago``; local time with its
offset.
"""

from __future__ import annotations

import argparse
import math
import re
from datetime import datetime

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)
_TEXT = re.compile(r"(\d+(?:\.\d+)?[smhdw])+", re.ASCII)


def duration(text: str) -> float:
    """Seconds, from ``30``, ``0.5``, ``90s``, ``1h``, ``7d``, ``1h30m``. A type for argparse.

    Raises:
        argparse.ArgumentTypeError: it is none of these, or negative.
    """
    given = text.strip().lower()
    if _TEXT.fullmatch(given):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(given))
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"takes seconds, or a number with s, m, h, d or w such as 1h, not {text!r}")
    return seconds


def span(seconds: float) -> str:
    """About how long, in few characters: ``0.213s``, ``42s``, ``3m``, ``2h``, ``9d``."""
    if seconds < 10:
        return f"{max(0.0, seconds):.3f}s"
    if seconds < 120:
        return f"{seconds:.0f}s"
    for unit in "mhd":
        if seconds < 2 * {"m": 3600.0, "h": 86_400.0}.get(unit, math.inf):
            return f"{seconds / _UNITS[unit]:.0f}{unit}"
    raise AssertionError("unreachable: days have no end")


def age(seconds: float) -> str:
    """How long ago, or, where negative, in how long: ``3m ago``, ``in 2h``."""
    whole = f"{abs(seconds):.1f}s" if abs(seconds) < 10 else span(abs(seconds))
    return f"{whole} ago" if seconds >= 0 else f"in {whole}"


def local(moment: datetime) -> str:
    """An instant in this machine's zone: ``2026-05-04 12:00:00.250+02:00``."""
    try:
        return moment.astimezone().isoformat(sep=" ", timespec="milliseconds")
    except (OverflowError, ValueError):  # within a day of the calendar's ends there is no local time
        return moment.isoformat(sep=" ", timespec="milliseconds")


def iso(moment: datetime | None) -> str | None:
    """An instant for programs: ISO 8601 in UTC."""
    return None if moment is None else moment.isoformat()
