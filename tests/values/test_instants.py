"""`liteq.instants`: datetimes and timedeltas become float seconds, and whatever is neither is refused by name."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liteq.errors import ConfigurationError
from liteq.instants import due_at, moment, positive_seconds, seconds, timestamp, within_reach, zone

BERLIN = ZoneInfo("Europe/Berlin")
NOW = 1_700_000_000.0

zones = st.sampled_from([UTC, BERLIN, timezone(timedelta(hours=-11, minutes=-30)), ZoneInfo("Australia/Lord_Howe")])
calendar = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1))


# ── zones ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["UTC", "utc", "Utc"])
def test_utc_needs_no_database(name: str) -> None:
    assert zone(name) is UTC


def test_a_zone_is_found_by_its_name() -> None:
    assert zone("Europe/Berlin") == BERLIN


def test_a_zone_is_found_however_its_name_is_spelled() -> None:
    assert zone("europe/BERLIN") is ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize("tz", [UTC, BERLIN, timezone(timedelta(hours=3))])
def test_a_zone_stays_what_it_is(tz: tzinfo) -> None:
    assert zone(tz) is tz


@pytest.mark.parametrize(
    "name",
    ["", " ", "Europe/Atlantis", "Europe", "../Europe/Berlin", "/etc/passwd", "a\0b", "x" * 5000, "\udce9", "+02:00"],
)
def test_a_zone_that_nobody_knows_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"timezone .* is not known here"):
        zone(name)


@pytest.mark.parametrize("spec", [None, 2, b"UTC", timedelta(hours=2), datetime.now])
def test_what_is_no_zone_is_refused(spec: Any) -> None:
    with pytest.raises(TypeError, match="timezone must be an IANA name or a tzinfo"):
        zone(spec)


# ── durations ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0.0),
        (-3, -3.0),
        (1.5, 1.5),
        (10**20, 1e20),
        (timedelta(minutes=2), 120.0),
        (timedelta(days=-1, microseconds=1), -86_399.999999),
        (timedelta.max, timedelta.max.total_seconds()),
    ],
)
def test_a_duration_is_float_seconds(value: float | timedelta, expected: float) -> None:
    duration = seconds(value, "x")
    assert duration == expected
    assert type(duration) is float


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_of_seconds_stays_that_number(value: float) -> None:
    assert seconds(value, "x") == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, -(10**400)])
def test_a_duration_without_an_end_is_refused_by_name(value: float) -> None:
    with pytest.raises(ConfigurationError, match=r"^timeout must be a finite number of seconds"):
        seconds(value, "timeout")


@pytest.mark.parametrize(
    "value", [None, "5", b"5", True, False, Decimal(5), 1j, [5], time(5), date(2024, 1, 1), NOW.hex]
)
def test_what_is_no_duration_is_refused_by_name(value: Any) -> None:
    for function in (seconds, positive_seconds):
        with pytest.raises(TypeError, match=r"^timeout takes seconds"):
            function(value, "timeout")


@pytest.mark.parametrize("value", [-1, -1e-9, timedelta(microseconds=-1)])
def test_a_negative_duration_is_refused_where_it_makes_no_sense(value: float | timedelta) -> None:
    with pytest.raises(ConfigurationError, match=r"^timeout must be at least 0 s"):
        positive_seconds(value, "timeout")
    with pytest.raises(ConfigurationError, match=r"^timeout must be more than 0 s"):
        positive_seconds(value, "timeout", allow_zero=False)


@pytest.mark.parametrize("value", [0, 0.0, -0.0, timedelta(0)])
def test_zero_is_allowed_or_not(value: float | timedelta) -> None:
    assert positive_seconds(value, "timeout") == 0
    with pytest.raises(ConfigurationError, match=r"^timeout must be more than 0 s"):
        positive_seconds(value, "timeout", allow_zero=False)


# ── instants ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(calendar, zones, zones)
def test_a_naive_datetime_is_read_in_the_default_zone(naive: datetime, default: tzinfo, other: tzinfo) -> None:
    expected = naive.replace(tzinfo=default).timestamp()
    assert timestamp(naive, default, "eta") == expected
    assert timestamp(naive.replace(tzinfo=default), other, "eta") == expected


def test_the_same_wall_clock_is_another_instant_in_another_zone() -> None:
    noon = datetime(2024, 7, 1, 12)
    assert timestamp(noon, UTC, "eta") - timestamp(noon, BERLIN, "eta") == 7200


def test_the_hour_that_comes_twice_is_told_apart_by_fold() -> None:
    first = datetime(2024, 10, 27, 2, 30)
    assert timestamp(first.replace(fold=1), BERLIN, "eta") - timestamp(first, BERLIN, "eta") == 3600


@pytest.mark.parametrize("value", [None, 5, 5.0, "2024-01-01", date(2024, 1, 1), time(12), timedelta(1)])
def test_what_is_no_datetime_is_refused_by_name(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^eta takes a datetime"):
        timestamp(value, UTC, "eta")


@given(st.datetimes(timezones=zones, min_value=datetime(1950, 1, 1), max_value=datetime(2200, 1, 1)))
def test_an_instant_and_its_moment_are_the_same(instant: datetime) -> None:
    back = moment(timestamp(instant, UTC, "eta"))
    assert back.tzinfo is UTC
    assert abs(back - instant.astimezone(UTC)) < timedelta(microseconds=2)


# ── eta or delay ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_eta_and_delay_there_is_no_due_time() -> None:
    assert due_at(NOW, UTC, eta=None, delay=None) is None


@pytest.mark.parametrize(("delay", "due"), [(0, NOW), (5, NOW + 5), (-5, NOW - 5), (timedelta(minutes=1), NOW + 60)])
def test_a_delay_counts_from_now(delay: float | timedelta, due: float) -> None:
    assert due_at(NOW, BERLIN, eta=None, delay=delay) == due


def test_an_eta_is_an_instant() -> None:
    eta = datetime(2024, 7, 1, 12)
    assert due_at(NOW, BERLIN, eta=eta, delay=None) == datetime(2024, 7, 1, 10, tzinfo=UTC).timestamp()
    assert due_at(NOW, BERLIN, eta=eta.replace(tzinfo=UTC), delay=None) == eta.replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize("delay", [0, 5])
def test_eta_and_delay_together_are_refused(delay: float) -> None:
    with pytest.raises(TypeError, match="eta or delay, not both"):
        due_at(NOW, UTC, eta=datetime(2024, 1, 1), delay=delay)


@pytest.mark.parametrize(
    ("eta", "delay", "named"), [("now", None, "eta"), (date(2024, 1, 1), None, "eta"), (None, "5", "delay")]
)
def test_an_eta_or_delay_of_the_wrong_type_is_refused_by_name(eta: Any, delay: Any, named: str) -> None:
    with pytest.raises(TypeError, match=f"^{named} takes"):
        due_at(NOW, UTC, eta=eta, delay=delay)


@pytest.mark.parametrize("delay", [math.inf, math.nan, 1e18, -1e18, timedelta.max, timedelta.min, 10**400])
def test_a_delay_that_no_calendar_could_show_is_refused(delay: float | timedelta) -> None:
    with pytest.raises(ConfigurationError, match=r"^delay"):
        due_at(NOW, UTC, eta=None, delay=delay)


def test_an_eta_at_the_edge_of_the_calendar_is_shown_or_refused() -> None:
    last = datetime(9999, 12, 31, 23, 59, 59)
    assert due_at(NOW, UTC, eta=last, delay=None) == last.replace(tzinfo=UTC).timestamp()
    with pytest.raises(ConfigurationError, match=r"^eta=.* leads beyond the years 1 to 9999"):
        due_at(NOW, timezone(timedelta(hours=-1)), eta=last, delay=None)


def test_a_duration_to_be_added_later_has_at_most_a_thousand_years() -> None:
    years = 365_250 * 86_400.0
    assert within_reach(years, "jitter") == years
    with pytest.raises(ConfigurationError, match="jitter must be at most a thousand years"):
        within_reach(years + 1, "jitter")


@given(st.floats(-1e12, 1e12))
def test_every_due_time_that_is_accepted_can_be_shown(delay: float) -> None:
    try:
        due = due_at(NOW, UTC, eta=None, delay=delay)
    except ConfigurationError:
        assert abs(delay) > 1e10
    else:
        assert due is not None
        assert moment(due).tzinfo is UTC
