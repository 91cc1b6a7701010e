"""Triggers through clock changes: lists worked out by hand, and every IANA zone against a walk from minute to minute.

The walk knows nothing of the search: it asks a zone what its clock shows at every minute, and writes down what is due
by the two rules as the documentation states them. To walk every zone through ten years takes hours of one core, in
parts: ``LITEQ_LONG_TESTS=1`` does that. Otherwise every zone is looked at around some of its changes, and the rest is
drawn by chance, with a seed that is printed (``LITEQ_TEST_SEED`` repeats it).
"""

from __future__ import annotations

import os
import random
import secrets
import zoneinfo
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from liteq.triggers import Trigger, at, crontab, every

LONG = os.environ.get("LITEQ_LONG_TESTS") == "1"
#: The zones of one year are gone through in so many tests, for several cores and to see how far it is.
PARTS = 8
SEED = int(os.environ.get("LITEQ_TEST_SEED") or secrets.randbits(32))

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
BEGIN, END = datetime(2016, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


def seeded(name: str) -> random.Random:
    """Chance of this test's own; pytest shows the seed with a test that fails."""
    print(f"LITEQ_TEST_SEED={SEED}")
    return random.Random(f"{SEED} {name}")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


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


def shown_in_utc(trigger: Trigger, begin: str, end: str) -> list[str]:
    """The runs in ``[begin, end)`` as ``day hour:minute``, all in UTC."""
    found = runs(trigger, utc(begin) - timedelta(microseconds=1), utc(end))
    return [f"{run:%d %H:%M}" + (f":{run:%S}" if run.second else "") for run in found]


# ── lists worked out by hand, in UTC ────────────────────────────────────────────────────────────────────────────────

EVEN_HOURS = [f"31 {hour:02}:30" for hour in range(2, 21, 2)]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["30 01:30", "31 01:00", "01 00:30"]),
        ("0 2 * * *", ["30 01:00", "31 01:00", "01 00:00"]),
        ("0 3 * * *", ["30 02:00", "31 01:00", "01 01:00"]),
        ("0 2,3 * * *", ["30 01:00", "30 02:00", "31 01:00", "01 00:00", "01 01:00"]),
        ("15,45 1-3 31 * *", ["31 00:15", "31 00:45", "31 01:00", "31 01:15", "31 01:45"]),
        ("*/20 30 2 31 * *", ["31 01:00"]),
        ("30 59 1,2 31 * *", ["31 00:59:30", "31 01:00"]),
        ("*/30 2 * * *", ["30 01:00", "30 01:30", "01 00:00", "01 00:30"]),
        ("30 */2 31 * *", ["30 23:30", *EVEN_HOURS]),
        ("*/30 1-3 31 * *", ["31 00:00", "31 00:30", "31 01:00", "31 01:30"]),
        ("30 * 2 31 * *", []),
        ("* 2 31 3 *", []),
    ],
)
def test_berlin_when_two_is_followed_by_three(expression: str, expected: list[str]) -> None:
    trigger = crontab(expression, timezone="Europe/Berlin")  # the change: 2024-03-31 01:00 UTC
    assert shown_in_utc(trigger, "2024-03-30", "2024-04-02") == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["26 00:30", "27 00:30", "28 01:30"]),
        ("0 2 * * *", ["26 00:00", "27 00:00", "28 01:00"]),
        ("0 3 * * *", ["26 01:00", "27 02:00", "28 02:00"]),
        ("15,45 1-3 27 * *", ["26 23:15", "26 23:45", "27 00:15", "27 00:45", "27 02:15", "27 02:45"]),
        ("*/20 30 2 27 * *", ["27 00:30", "27 00:30:20", "27 00:30:40"]),
        ("*/30 2 27 * *", ["27 00:00", "27 00:30", "27 01:00", "27 01:30"]),
        ("30 */30 2 27 * *", ["27 00:00:30", "27 00:30:30", "27 01:00:30", "27 01:30:30"]),
        ("*/60 0-3 27 * *", ["26 22:00", "26 23:00", "27 00:00", "27 01:00", "27 02:00"]),
    ],
)
def test_berlin_when_three_is_followed_by_two(expression: str, expected: list[str]) -> None:
    trigger = crontab(expression, timezone="Europe/Berlin")  # the change: 2024-10-27 01:00 UTC
    assert shown_in_utc(trigger, "2024-10-26", "2024-10-29") == expected


@pytest.mark.parametrize(
    ("zone", "begin", "end", "expression", "expected"),
    [
        # 2024-03-10 07:00 UTC: 02:00 is followed by 03:00; 2024-11-03 06:00 UTC: 02:00 by 01:00
        ("America/New_York", "2024-03-09", "2024-03-12", "30 2 * * *", ["09 07:30", "10 07:00", "11 06:30"]),
        ("America/New_York", "2024-11-02", "2024-11-05", "30 1 * * *", ["02 05:30", "03 05:30", "04 06:30"]),
        (
            "America/New_York",
            "2024-11-02",
            "2024-11-05",
            "*/30 1 3 * *",
            ["03 05:00", "03 05:30", "03 06:00", "03 06:30"],
        ),
        # half an hour: 2024-10-05 15:30 UTC: 02:00 is followed by 02:30; 2024-04-06 15:00 UTC: 02:00 by 01:30
        ("Australia/Lord_Howe", "2024-10-04", "2024-10-07", "15 2 * * *", ["04 15:45", "05 15:30", "06 15:15"]),
        ("Australia/Lord_Howe", "2024-10-04", "2024-10-07", "*/15 2 6 * *", ["05 15:30", "05 15:45"]),
        ("Australia/Lord_Howe", "2024-04-05", "2024-04-08", "45 1 * * *", ["05 14:45", "06 14:45", "07 15:15"]),
        (
            "Australia/Lord_Howe",
            "2024-04-05",
            "2024-04-08",
            "*/15 1 7 * *",
            ["06 14:00", "06 14:15", "06 14:30", "06 14:45", "06 15:00", "06 15:15"],
        ),
        # over midnight: 2010-11-07 02:31 UTC: 00:01 is followed by 23:01; 2011-03-13 03:31 UTC: 00:01 by 01:01
        ("America/St_Johns", "2010-11-06", "2010-11-09", "0 0 * * *", ["06 02:30", "07 02:30", "08 03:30"]),
        ("America/St_Johns", "2010-11-06", "2010-11-09", "30 23 * * *", ["06 02:00", "07 02:00", "08 03:00"]),
        (
            "America/St_Johns",
            "2010-11-07",
            "2010-11-08",
            "*/30 0,23 * * *",
            ["07 01:30", "07 02:00", "07 02:30", "07 03:00", "07 03:30", "07 04:00"],
        ),
        ("America/St_Johns", "2011-03-12", "2011-03-15", "30 0 * * *", ["12 04:00", "13 03:31", "14 03:00"]),
        ("America/St_Johns", "2011-03-12", "2011-03-15", "0 0 * * *", ["12 03:30", "13 03:30", "14 02:30"]),
        # 2024-09-28 14:00 UTC: 02:45 is followed by 03:45; 2024-04-06 14:00 UTC: 03:45 by 02:45
        ("Pacific/Chatham", "2024-09-27", "2024-09-30", "0 3 * * *", ["27 14:15", "28 14:00", "29 13:15"]),
        ("Pacific/Chatham", "2024-04-05", "2024-04-08", "0 3 * * *", ["05 13:15", "06 13:15", "07 14:15"]),
        (
            "Pacific/Chatham",
            "2024-04-05",
            "2024-04-08",
            "*/30 3 7 * *",
            ["06 13:15", "06 13:45", "06 14:15", "06 14:45"],
        ),
        ("Asia/Kolkata", "2024-03-30", "2024-04-02", "30 2 * * *", ["30 21:00", "31 21:00", "01 21:00"]),
        # Ramadan: 2024-03-10 02:00 UTC: 03:00 is followed by 02:00; 2024-04-14 02:00 UTC: 02:00 by 03:00
        ("Africa/Casablanca", "2024-03-09", "2024-03-12", "30 2 * * *", ["09 01:30", "10 01:30", "11 02:30"]),
        ("Africa/Casablanca", "2024-04-13", "2024-04-16", "30 2 * * *", ["13 02:30", "14 02:00", "15 01:30"]),
        # the 30th of December 2011 does not exist
        ("Pacific/Apia", "2011-12-29", "2012-01-01", "0 12 * * *", ["29 22:00", "30 22:00", "31 22:00"]),
        ("Pacific/Apia", "2011-12-29", "2012-01-01", "@daily", ["29 10:00", "30 10:00", "31 10:00"]),
        ("Pacific/Apia", "2011-12-01", "2012-02-01", "0 0 30 12 *", []),
        ("Pacific/Apia", "2011-12-29", "2011-12-31", "0 */12 * * *", ["29 10:00", "29 22:00", "30 10:00", "30 22:00"]),
        # 2024-03-31 01:00 UTC: 03:00 is followed by 04:00; 2024-10-27 01:00 UTC: 04:00 by 03:00
        ("Europe/Helsinki", "2024-03-30", "2024-04-02", "30 3 * * *", ["30 01:30", "31 01:00", "01 00:30"]),
        ("Europe/Helsinki", "2024-10-26", "2024-10-29", "30 3 * * *", ["26 00:30", "27 00:30", "28 01:30"]),
        # no midnight: 2024-03-10 05:00 UTC: 00:00 is followed by 01:00; 2024-11-03 05:00 UTC: 01:00 by 00:00
        ("America/Havana", "2024-03-09", "2024-03-12", "@daily", ["09 05:00", "10 05:00", "11 04:00"]),
        ("America/Havana", "2024-11-02", "2024-11-05", "@daily", ["02 04:00", "03 04:00", "04 05:00"]),
        (
            "America/Havana",
            "2024-11-03",
            "2024-11-04",
            "*/30 0 3 * *",
            ["03 04:00", "03 04:30", "03 05:00", "03 05:30"],
        ),
        # three hours exactly are still made up for: 2020-10-03 16:01 UTC: 00:01 is followed by 03:01
        ("Antarctica/Casey", "2020-10-02", "2020-10-05", "30 1 * * *", ["02 17:30", "03 16:01", "04 14:30"]),
        # 44 minutes and 30 seconds: 1972-01-07 00:44:30 UTC
        ("Africa/Monrovia", "1972-01-06", "1972-01-09", "30 0 * * *", ["06 01:14:30", "07 00:44:30", "08 00:30"]),
        ("Africa/Monrovia", "1972-01-07", "1972-01-08", "*/30 0 7 * *", []),
    ],
)
def test_other_zones(zone: str, begin: str, end: str, expression: str, expected: list[str]) -> None:
    assert shown_in_utc(crontab(expression, timezone=zone), begin, end) == expected
    after = utc(begin) - timedelta(microseconds=1)
    assert runs(crontab(expression), after.astimezone(ZoneInfo(zone)), utc(end)) == runs(
        crontab(expression, timezone=zone), after, utc(end)
    )


def test_a_search_may_start_inside_a_gap_or_in_either_pass_of_a_fold() -> None:
    half_past_two, quarterly = crontab("30 2 * * *"), crontab("*/15 * * * *")
    in_gap = datetime(2024, 3, 31, 2, 20, tzinfo=BERLIN)  # by the offset before: 01:20 UTC; after: 00:20 UTC
    assert quarterly.next(in_gap) == utc("2024-03-31 01:30")
    assert quarterly.next(in_gap.replace(fold=1)) == utc("2024-03-31 00:30")
    assert half_past_two.next(in_gap) == utc("2024-04-01 00:30")
    assert half_past_two.next(in_gap.replace(fold=1)) == utc("2024-03-31 01:00")
    assert crontab("*/30 1,3 * * *").next(in_gap.replace(fold=1)) == utc("2024-03-31 00:30")
    in_fold = datetime(2024, 10, 27, 2, 20, tzinfo=BERLIN)
    assert _in_utc(quarterly.next(in_fold)) == utc("2024-10-27 00:30")
    assert _in_utc(quarterly.next(in_fold.replace(fold=1))) == utc("2024-10-27 01:30")
    assert _in_utc(half_past_two.next(in_fold)) == utc("2024-10-27 00:30")
    assert _in_utc(half_past_two.next(in_fold.replace(fold=1))) == utc("2024-10-28 01:30")


def test_the_answer_tells_the_passes_of_a_fold_apart() -> None:
    first, second = _some(crontab("*/60 2 27 10 *", timezone=BERLIN), utc("2024-10-26"), 2)
    assert (first.hour, first.fold) == (2, 0)
    assert (second.hour, second.fold) == (2, 1)


# ── the other triggers through a change ─────────────────────────────────────────────────────────────────────────────


def test_a_naive_moment_follows_the_rule_for_fixed_times() -> None:
    for moment, instant in (
        (datetime(2024, 3, 31, 2, 30), "2024-03-31 01:00"),
        (datetime(2024, 10, 27, 2, 30), "2024-10-27 00:30"),
        (datetime(2024, 10, 27, 2, 30, fold=1), "2024-10-27 00:30"),
        (datetime(2024, 7, 1, 2, 30), "2024-07-01 00:30"),
    ):
        assert at(moment).with_timezone(BERLIN).next(utc("2024-01-01")) == utc(instant).astimezone(BERLIN)


def test_a_grid_takes_no_notice_of_a_change() -> None:
    anchor = datetime(2024, 10, 26, 12, 10, tzinfo=BERLIN)
    found = runs(every(hours=1).anchored(anchor), anchor, utc("2024-10-28"))
    assert {later - earlier for earlier, later in pairwise(found)} == {HOUR}
    assert found[0] == utc("2024-10-26 11:10")


def test_a_daily_window_opens_again_in_a_second_pass() -> None:
    trigger = crontab("*/15 * * * *", timezone=BERLIN).between(time(2), time(2, 20))
    assert shown_in_utc(trigger, "2024-10-26", "2024-10-29") == [
        *("26 00:00", "26 00:15"),
        *("27 00:00", "27 00:15", "27 01:00", "27 01:15"),
        *("28 01:00", "28 01:15"),
    ]
    assert shown_in_utc(trigger, "2024-03-30", "2024-04-02") == ["30 01:00", "30 01:15", "01 00:00", "01 00:15"]


def test_an_excepted_date_is_left_out_in_both_passes_of_its_evening() -> None:
    hourly = crontab("30 * * * *", timezone="America/St_Johns")
    without_6th = hourly.except_dates(date(2010, 11, 6))
    without_7th = hourly.except_dates(date(2010, 11, 7))
    assert shown_in_utc(without_6th, "2010-11-07", "2010-11-07 06:00") == ["07 04:00", "07 05:00"]
    assert shown_in_utc(without_7th, "2010-11-07", "2010-11-07 06:00") == [
        "07 00:00",
        "07 01:00",
        "07 02:00",
        "07 03:00",
    ]


def test_a_window_of_dates_ends_with_the_first_midnight() -> None:
    trigger = crontab("*/30 * * * *", timezone="America/St_Johns").between(date(2010, 11, 6), date(2010, 11, 6))
    found = shown_in_utc(trigger, "2010-11-05", "2010-11-09")
    assert (found[0], found[-1], len(found)) == ("06 02:30", "07 02:00", 48)
    havana = crontab("*/30 * * * *", timezone="America/Havana").between(date(2024, 3, 10), date(2024, 3, 10))
    found = shown_in_utc(havana, "2024-03-09", "2024-03-12")
    assert (found[0], found[-1], len(found)) == ("10 05:00", "11 03:30", 46)


def test_fixed_times_that_come_to_one_instant_meet() -> None:
    both = crontab("30 2 * * *", timezone=BERLIN) & crontab("0 3 * * *", timezone=BERLIN)
    assert shown_in_utc(both, "2024-01-01", "2025-01-01") == ["31 01:00"]


class Foreign(tzinfo):
    """A zone as another library would have it: right by PEP 495, and unknown to liteq."""

    def __init__(self, name: str) -> None:
        self._zone = ZoneInfo(name)

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return self._zone.utcoffset(moment)

    def dst(self, moment: datetime | None) -> timedelta | None:
        return self._zone.dst(moment)

    def tzname(self, moment: datetime | None) -> str | None:
        return self._zone.tzname(moment)

    def fromutc(self, moment: datetime) -> datetime:
        return self._zone.fromutc(moment.replace(tzinfo=self._zone)).replace(tzinfo=self)


@pytest.mark.parametrize("name", ["Europe/Berlin", "Australia/Lord_Howe", "America/Havana", "Africa/Casablanca"])
@pytest.mark.parametrize("expression", ["*/45 * * * *", "30 2 * * *", "@daily", "45 0 * * *"])
def test_a_foreign_zone_is_as_good(name: str, expression: str) -> None:
    begin, end = utc("2024-01-01"), utc("2025-01-01")
    assert runs(crontab(expression), begin.astimezone(Foreign(name)), end) == runs(
        crontab(expression, timezone=name), begin, end
    )


class Contradictory(tzinfo):
    """A zone that holds every reading to be in a gap, and never changes."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=1 if moment is not None and moment.fold else 0)

    def dst(self, moment: datetime | None) -> timedelta:
        return timedelta(0)

    def fromutc(self, moment: datetime) -> datetime:
        return moment


@pytest.mark.parametrize("expression", ["*/20 * * * *", "30 2 * * *", "0 0 * * 1"])
def test_a_zone_that_contradicts_itself_does_not_stop_the_search(expression: str) -> None:
    after = utc("2024-03-31").replace(tzinfo=Contradictory())
    found = crontab(expression).next(after)
    assert found is not None
    assert found.replace(tzinfo=None) > after.replace(tzinfo=None)


# ── every zone against a walk from minute to minute ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Rule:
    """An expression, and what it means to somebody who reads the clock."""

    expression: str
    due: Callable[[datetime], bool]
    fixed: bool


RULES = (
    Rule("* * * * *", lambda reading: True, fixed=False),
    Rule("*/30 * * * *", lambda reading: reading.minute in (0, 30), fixed=False),
    Rule("0 * * * *", lambda reading: reading.minute == 0, fixed=False),
    Rule("30 2 * * *", lambda reading: (reading.hour, reading.minute) == (2, 30), fixed=True),
    Rule("0 0 * * *", lambda reading: reading.hour == reading.minute == 0, fixed=True),
    Rule("0 0 * * 0", lambda reading: reading.hour == reading.minute == 0 and reading.isoweekday() == 7, fixed=True),
    Rule("0 0 1 * *", lambda reading: reading.hour == reading.minute == 0 and reading.day == 1, fixed=True),
    Rule("15,45 0-3,23 * * *", lambda r: r.minute in (15, 45) and r.hour in (0, 1, 2, 3, 23), fixed=True),
    Rule("*/20 0-3,23 * * *", lambda r: r.minute in (0, 20, 40) and r.hour in (0, 1, 2, 3, 23), fixed=False),
)


def walk(zone: tzinfo, begin: datetime, end: datetime) -> Iterator[tuple[datetime, datetime, list[datetime]]]:
    """Every minute of a time: the instant, what the clock shows, and the readings that a fixed time counts as reached.

    Those are the ones that the clock never showed before; those that it jumped over are among them unless they are
    more than three hours. The walk starts three days early to know what was shown before.
    """
    instant = begin - 3 * DAY
    furthest = instant.astimezone(zone).replace(tzinfo=None) - MINUTE
    while instant < end:
        reading = instant.astimezone(zone).replace(tzinfo=None)
        jumped = reading - furthest - MINUTE
        if not jumped:
            reached = [reading]
        elif reading <= furthest:
            reached = []
        else:
            jumped_over = jumped // MINUTE if jumped <= 3 * HOUR else 0
            reached = [reading - n * MINUTE for n in range(jumped_over, -1, -1)]
        if reached:
            furthest = reading
        if instant >= begin:
            yield instant, reading, reached
        instant += MINUTE


def walked(zone: tzinfo, begin: datetime, end: datetime, rules: Iterable[Rule]) -> dict[str, list[datetime]]:
    """The runs of each rule in ``[begin, end)`` according to the walk."""
    found: dict[str, list[datetime]] = {rule.expression: [] for rule in rules}
    plan = [(rule.due, rule.fixed, found[rule.expression]) for rule in rules]
    for instant, reading, reached in walk(zone, begin, end):
        ordinary = len(reached) == 1
        for due, fixed, list_of_rule in plan:
            if due(reading) if ordinary or not fixed else any(map(due, reached)):
                list_of_rule.append(instant)
    return found


def check(zone: tzinfo, begin: datetime, end: datetime, rules: Iterable[Rule] = RULES) -> None:
    """Hold the triggers against the walk in ``[begin, end)``."""
    expected = walked(zone, begin, end, rules)
    for rule in rules:
        found = runs(crontab(rule.expression), (begin - MINUTE / 2).astimezone(zone), end)
        assert found == expected[rule.expression], f"{rule.expression} in {zone} from {begin}"


def offset(instant: datetime, zone: tzinfo) -> timedelta:
    found = instant.astimezone(zone).utcoffset()
    assert found is not None
    return found


def changes(zone: tzinfo, begin: datetime, end: datetime) -> list[datetime]:
    """The minutes at which a zone's offset changes; changes within half a day of each other count as one or none."""
    found = []
    before, instant = offset(begin, zone), begin
    while instant < end:
        following = instant + DAY / 2
        behind = offset(following, zone)
        if behind != before:
            low, high = 0, 720
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(instant + middle * MINUTE, zone) == before else (low, middle)
            found.append(instant + high * MINUTE)
        before, instant = behind, following
    return found


@cache
def different_zones() -> dict[str, list[datetime]]:
    """One name of each set of zones that are the same from BEGIN to END, with its changes: links and twins left out."""
    seen: dict[tuple[object, ...], tuple[str, list[datetime]]] = {}
    for name in sorted(zoneinfo.available_timezones() - {"localtime"}):
        zone = ZoneInfo(name)
        moves = changes(zone, BEGIN - 4 * DAY, END + 4 * DAY)
        seen.setdefault((offset(BEGIN, zone), *((move, offset(move, zone)) for move in moves)), (name, moves))
    return dict(seen.values())


@pytest.mark.slow
def test_daily_weekly_and_monthly_jobs_run_once_per_existing_date_in_every_zone_for_ten_years() -> None:
    wanted: dict[str, Callable[[date], bool]] = {
        "30 2 * * *": lambda day: True,
        "0 0 * * *": lambda day: True,
        "0 0 * * 0": lambda day: day.isoweekday() == 7,
        "0 0 1 * *": lambda day: day.day == 1,
    }
    for name in different_zones():
        zone = ZoneInfo(name)
        hours = range(12, int((END - BEGIN) / HOUR), 6)
        existing = sorted({(BEGIN + hour * HOUR).astimezone(zone).date() for hour in hours})[2:-2]
        for expression, on in wanted.items():
            trigger = crontab(expression, timezone=zone)
            dates = [run.astimezone(zone).date() for run in runs(trigger, BEGIN - 2 * DAY, END + 2 * DAY)]
            inside = [day for day in dates if existing[0] <= day <= existing[-1]]
            assert inside == [day for day in existing if on(day)], f"{expression} in {name}"


@pytest.mark.slow
def test_every_zone_agrees_with_the_walk_around_its_changes() -> None:
    chance = seeded("changes")
    for name, moves in different_zones().items():
        begin = BEGIN + chance.randrange(3600) * DAY
        for move in chance.sample(moves, min(len(moves), 2)) or [begin]:
            check(ZoneInfo(name), move - 5 * HOUR, move + 5 * HOUR)
            check(ZoneInfo(name), move - 25 * HOUR, move + 25 * HOUR, RULES[3:8])


def test_some_zones_agree_with_the_walk_for_a_season() -> None:
    chance = seeded("season")
    for name in chance.sample(sorted(different_zones()), 3):
        begin = BEGIN + chance.randrange(3500) * DAY
        check(ZoneInfo(name), begin, begin + 30 * DAY)


@pytest.mark.slow
def test_changes_of_the_past_agree_with_the_walk() -> None:
    chance = seeded("past")
    known = [
        ("Pacific/Apia", utc("2011-12-30 10:00")),
        ("Pacific/Kwajalein", utc("1993-08-21 12:00")),
        ("America/St_Johns", utc("2010-11-07 02:31")),
        ("Antarctica/Casey", utc("2020-10-03 16:01")),
    ]
    for name in chance.sample(sorted(zoneinfo.available_timezones() - {"localtime"}), 60):
        moves = changes(ZoneInfo(name), utc("1973-01-01"), utc("2037-12-01"))
        known += [(name, move) for move in chance.sample(moves, min(len(moves), 1))]
    for name, move in known:
        check(ZoneInfo(name), move - 4 * HOUR, move + 4 * HOUR)
        check(ZoneInfo(name), move - 28 * HOUR, move + 28 * HOUR, RULES[3:8])


def random_rule(chance: random.Random) -> Rule:
    """Some minutes and hours, as a fixed time or in real time; a star in front of the list makes the difference."""
    minutes = set(chance.sample(range(60), chance.randint(1, 4)))
    hours = set(chance.sample(range(24), chance.randint(1, 12)))
    fixed = chance.random() < 0.5
    if not fixed:
        minutes |= {0, 30}
    written = ("" if fixed else "*/30,") + ",".join(map(str, sorted(minutes)))
    expression = f"{written} {','.join(map(str, sorted(hours)))} * * *"
    return Rule(expression, lambda reading: reading.minute in minutes and reading.hour in hours, fixed)


def test_next_from_any_moment_around_a_change_is_the_first_run_of_the_walk() -> None:
    chance = seeded("moments")
    moving = [(name, moves) for name, moves in different_zones().items() if moves]
    for name, moves in chance.sample(moving, 25):
        zone, move = ZoneInfo(name), chance.choice(moves)
        rules = [random_rule(chance) for _ in range(4)]
        expected = walked(zone, move - 12 * HOUR, move + 40 * HOUR, rules)
        for rule in rules:
            for _ in range(25):
                after = move + timedelta(seconds=chance.uniform(-6, 6) * 3600)
                first = next((run for run in expected[rule.expression] if run > after), None)
                assert first is not None
                for asked in (after, after.astimezone(zone)):
                    found = _in_utc(crontab(rule.expression, timezone=zone).next(asked))
                    assert found == first, f"{rule.expression} in {name} after {after}"


def test_seconds_agree_with_a_walk_from_second_to_second() -> None:
    chance = seeded("seconds")
    moving = [(name, moves) for name, moves in different_zones().items() if moves]
    for name, moves in chance.sample(moving, 3):
        zone, move = ZoneInfo(name), chance.choice(moves)
        begin, end = move - 65 * MINUTE, move + 65 * MINUTE
        trigger = crontab("*/7 */3 * * * *")
        expected = []
        for second in range(int((end - begin).total_seconds())):
            reading = (begin + timedelta(seconds=second)).astimezone(zone)
            if reading.second % 7 == 0 and reading.minute % 3 == 0:
                expected.append(begin + timedelta(seconds=second))
        assert runs(trigger, (begin - timedelta(microseconds=1)).astimezone(zone), end) == expected, name


@pytest.mark.skipif(not LONG, reason="takes hours; LITEQ_LONG_TESTS=1 runs it")
@pytest.mark.timeout(0)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("year", range(BEGIN.year, END.year))
def test_every_zone_agrees_with_the_walk_for_ten_years(year: int, part: int) -> None:
    for name in list(different_zones())[part::PARTS]:
        check(ZoneInfo(name), BEGIN.replace(year=year), BEGIN.replace(year=year + 1))


def _in_utc(moment: datetime | None) -> datetime:
    assert moment is not None
    return moment.astimezone(UTC)


def _some(trigger: Trigger, after: datetime, count: int) -> list[datetime]:
    found = trigger.upcoming(after)
    return [next(found) for _ in range(count)]
