"""`liteq.retry`: the waits between attempts, and the options they are made from."""

from __future__ import annotations

import math
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liteq.errors import ConfigurationError
from liteq.retry import RetryDelay, retry_delay

delays = st.floats(0, 1e9)
backoffs = st.floats(1, 1e6)
failures = st.integers(1, 2000)
draws = st.floats(0, 1, exclude_max=True)


# ── the formula ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_wait_grows_by_the_factor_up_to_the_cap() -> None:
    wait = RetryDelay(delay=3, backoff=2, max_delay=20)
    assert [wait.before_next(number, 0.5) for number in range(1, 6)] == [3, 6, 12, 20, 20]


def test_without_options_there_is_no_wait() -> None:
    assert RetryDelay().before_next(1, 0.5) == 0
    assert retry_delay() == RetryDelay(0.0, 1.0, 3600.0, False, ())


def test_without_a_factor_every_wait_is_the_same() -> None:
    wait = RetryDelay(delay=7)
    assert {wait.before_next(number, 0.5) for number in (1, 2, 10, 10**9)} == {7}


def test_the_cap_holds_from_the_first_wait_on() -> None:
    assert RetryDelay(delay=100, max_delay=5).before_next(1, 0.5) == 5
    assert RetryDelay(delay=100, backoff=3, max_delay=0).before_next(4, 0.5) == 0


@given(delays, backoffs, delays, failures)
def test_no_wait_is_shorter_than_the_one_before_or_longer_than_the_cap(
    delay: float, backoff: float, cap: float, number: int
) -> None:
    wait = RetryDelay(delay, backoff, cap)
    this, following = wait.before_next(number, 0.5), wait.before_next(number + 1, 0.5)
    assert 0 <= this <= following <= cap
    assert this >= min(delay, cap)


@given(delays, st.floats(1, 10), st.integers(1, 20))
def test_the_wait_is_the_formula(delay: float, backoff: float, number: int) -> None:
    expected = min(delay * backoff ** (number - 1), 3600.0)
    assert RetryDelay(delay, backoff).before_next(number, 0.5) == expected


@pytest.mark.parametrize(("delay", "backoff"), [(1.0, 10.0), (1e-300, 1e300), (1, 10), (1.5, 7), (1e308, 1e308)])
def test_a_wait_beyond_every_number_is_the_cap(delay: float, backoff: float) -> None:
    assert RetryDelay(delay, backoff, 60.0).before_next(5000, 0.5) == 60.0


# ── jitter ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(delays, backoffs, delays, failures, draws)
def test_jitter_draws_evenly_from_nothing_to_the_wait(
    delay: float, backoff: float, cap: float, number: int, draw: float
) -> None:
    whole = RetryDelay(delay, backoff, cap).before_next(number, draw)
    assert RetryDelay(delay, backoff, cap, jitter=True).before_next(number, draw) == whole * draw


@given(draws)
def test_without_jitter_the_draw_does_not_matter(draw: float) -> None:
    assert RetryDelay(5).before_next(1, draw) == 5
    assert RetryDelay(delays=(1.0, 2.0)).before_next(2, draw) == 2


def test_jitter_applies_to_a_list_too() -> None:
    assert RetryDelay(jitter=True, delays=(10.0, 20.0)).before_next(2, 0.25) == 5


# ── a list ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(delays, min_size=1, max_size=9), failures)
def test_of_a_list_the_last_wait_repeats(waits: list[float], number: int) -> None:
    assert retry_delay(waits).before_next(number, 0.5) == waits[min(number, len(waits)) - 1]


def test_a_list_is_neither_multiplied_nor_capped() -> None:
    wait = retry_delay([1, timedelta(hours=5)], backoff=10, max_delay=60)
    assert [wait.before_next(number, 0.5) for number in (1, 2, 3)] == [1, 18_000, 18_000]


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_options_become_plain_floats() -> None:
    wait = retry_delay(timedelta(seconds=1.5), 2, timedelta(minutes=1), True)
    assert wait == RetryDelay(1.5, 2.0, 60.0, True)
    assert retry_delay((1, timedelta(seconds=2))).delays == (1.0, 2.0)
    assert all(type(value) is float for value in [wait.delay, wait.backoff, wait.max_delay, *retry_delay([1]).delays])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("delay", -1),
        ("delay", -0.001),
        ("delay", timedelta(seconds=-1)),
        ("delay", math.nan),
        ("delay", math.inf),
        ("delay", 10**400),
        ("delay", []),
        ("delay", ()),
        ("delay", [1, -1]),
        ("delay", [1, math.nan]),
        ("backoff", 0.999),
        ("backoff", 0),
        ("backoff", -2),
        ("backoff", math.nan),
        ("backoff", math.inf),
        ("backoff", 10**400),
        ("max_delay", -1),
        ("max_delay", math.inf),
        ("max_delay", math.nan),
        ("max_delay", timedelta(days=-1)),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^retry_{option}\\b"):
        retry_delay(**{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("delay", "10"),
        ("delay", b"10"),
        ("delay", None),
        ("delay", True),
        ("delay", Decimal(1)),
        ("delay", {1: 2}),
        ("delay", range(3)),
        ("delay", [1, "2"]),
        ("delay", [1, None]),
        ("delay", [[1]]),
        ("delay", 1j),
        ("backoff", "2"),
        ("backoff", None),
        ("backoff", True),
        ("backoff", timedelta(1)),
        ("max_delay", "1h"),
        ("max_delay", None),
        ("max_delay", False),
        ("max_delay", [1]),
        ("jitter", 1),
        ("jitter", None),
        ("jitter", "yes"),
        ("jitter", 0.5),
    ],
)
def test_an_option_of_the_wrong_type_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^retry_{option}\\b"):
        retry_delay(**{option: value})


def test_options_are_checked_even_where_a_list_makes_them_useless() -> None:
    with pytest.raises(ConfigurationError, match="retry_backoff"):
        retry_delay([1], backoff=0)
    with pytest.raises(TypeError, match="retry_jitter"):
        retry_delay([1], jitter=2)  # type: ignore[arg-type]
