"""Instants and durations as people write and read them: ``1h``, ``7d``, ``30``; ``3m ago``; local time with its
offset.
"""

from __future__ import annotations

from datetime import datetime

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86_400.0


def span(seconds: float) -> str:
    """About how long, in few characters: ``0.213s``, ``42s``, ``3m``, ``2h``, ``9d``."""
    if seconds < 10:
        return f"{max(0.0, seconds):.3f}s"
    for limit, unit, letter in ((2 * _MINUTE, 1.0, "s"), (2 * _HOUR, _MINUTE, "m"), (2 * _DAY, _HOUR, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f}{letter}"
    return f"{seconds / _DAY:.0f}d"


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
