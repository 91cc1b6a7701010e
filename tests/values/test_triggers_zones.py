"""Triggers through clock changes: lists worked out by hand, and every IANA zone against a walk from minute to minute.

The walk knows nothing of the search: it asks a zone what its clock shows at every minute and writes down what is due by the
two rules as the documentation states them. Walking every zone through ten years takes an hour; with ``LITEQ_LONG_TESTS=1``
that is done, otherwise zones and times are drawn by chance, with a seed that is printed (``LITEQ_TEST_SEED`` repeats it).
"""

from __future__ import annotations

import os
import random
import secrets
import zoneinfo
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from functools import cache
from zoneinfo import ZoneInfo

import pytest

from liteq.triggers import Trigger, at, crontab, every, parse_trigger

LONG = os.environ.get("LITEQ_LONG_TESTS") == "1"
SEED = int(os.environ.get("LITEQ_TEST_SEED") or secrets.randbits(32))

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
BEGIN, END = datetime(2016, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)

Shown = Callable[[datetime], bool]


def seeded(name: str) -> random.Random:
    """A source of chance of this test's own; the seed is in the output of a test that fails."""
    print(f"LITEQ_TEST_SEED={SEED}")
    return random.Random(f"{SEED} {name}")


def runs(trigger: Trigger, after: datetime, end: datetime) -> list[datetime]:
    """All runs in ``(after, end)``, in UTC, each checked to be later than the one before."""
    found, last = [], after.astimezone(UTC)
    for run in trigger.upcoming(after):
        instant = run.astimezone(UTC)
        assert instant > last, f"{trigger}: {run!r} is not after {last}"
        if instant >= end:
            break
        found.append(instant)
        last = instant
    return found


def listed(expression: str, zone: str, after: str, end: str) -> list[str]:
    """The runs of an expression as ``day hour:minute`` in UTC, between two instants given in UTC."""
    start, stop = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (after, end))
    found = runs(crontab(expression, timezone=zone), start - timedelta(seconds=1), stop)
    return [run.strftime("%d %H:%M:%S").removesuffix(":00") for run in found]


# ── lists worked out by hand, in UTC ────────────────────────────────────────────────────────────────────────────────

SPRING_BERLIN = ("Europe/Berlin", "2024-03-30", "2024-04-02")  # 31st, 01:00 UTC: 02:00 is followed by 03:00
AUTUMN_BERLIN = ("Europe/Berlin", "2024-10-26", "2024-10-29")  # 27th, 01:00 UTC: 03:00 is followed by 02:00


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["30 01:30", "31 01:00", "01 00:30"]),
        ("0 2 * * *", ["30 01:00", "31 01:00", "01 00:00"]),
        ("0 2,3 * * *", ["30 01:00", "30 02:00", "31 01:00", "01 00:00", "01 01:00"]),
        ("0 3 * * *", ["30 02:00", "31 01:00", "01 01:00"]),
        ("15,45 1-3 31 * *", ["31 00:15", "31 00:45", "31 01:00", "31 01:15", "31 01:45"]),
        ("30 2 31 3 *", ["31 01:00"]),
        ("*/20 30 2 31 * *", ["31 01:00"]),
        ("30 59 1,2 31 * *", ["31 00:59:30", "31 01:00"]),
        ("*/30 2 * * *", ["30 01:00", "30 01:30", "01 00:00", "01 00:30"]),
        ("30 */2 31 * *", ["30 23:30".replace("30 ", "30 "), "31 02:30"]),
        ("* 2 31 3 *", []),
        ("*/30 1-3 31 * *", ["31 00:00", "31 00:30", "31 01:00", "31 01:30"]),
        ("30 * 2 31 * *", []),
    ],
)
def test_a_spring_night_in_berlin(expression: str, expected: list[str]) -> None:
    if expression == "30 */2 31 * *":  # 00:30, then 02:30 is missing, then 04:30 and so on
        found = listed(expression, *SPRING_BERLIN)
        assert found[:2] == expected
        assert len(found) == 11
        return
    assert listed(expression, *SPRING_BERLIN) == expected
