"""Rates: what is read, and a bucket of tokens against its promise: never more than ``rate * t + burst``."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liteq import rates
from liteq.errors import ConfigurationError
from liteq.rates import Level, Rate

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("text", "limit", "per", "burst"),
    [
        ("10/s", 10, 1.0, 1),
        ("100/m", 100, 60.0, 1),
        ("1000/h", 1000, 3600.0, 1),
        ("50/d", 50, 86_400.0, 1),
        ("1000/s", 1000, 1.0, 100),
        ("5/30s", 5, 30.0, 1),
        ("3 / 1.5 m burst 7", 3, 90.0, 7),
        (" 100/m  burst 20 ", 100, 60.0, 20),
    ],
)
def test_a_rate_is_read(text: str, limit: int, per: float, burst: int) -> None:
    assert rates.parse(text) == Rate(limit, per, burst)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0/s", "lets 1 to .* pause the queue"),
        ("10", "is written '10/s'"),
        ("", "is written"),
        ("ten/s", "is written"),
        ("10/w", "is written"),
        ("-1/s", "is written"),
        ("10/s burst", "is written"),
        ("10/s burst 0", "the burst of a rate is 1 to"),
        ("10/0s", "counted over 0.001 to"),
        ("2000000/s", "at most 1000000 start in a second"),
        ("\u0661/s", "is written"),
    ],
)
def test_what_is_no_rate_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        rates.parse(text)


some_rates = st.builds(
    lambda limit, per, burst: rates.rate(limit, per, burst),
    st.integers(1, 5000),
    st.sampled_from([1.0, 0.25, 30.0, 60.0, 3600.0, 86_400.0, 7.3]),
    st.one_of(st.none(), st.integers(1, 50)),
)


@given(some_rates)
def test_the_text_of_a_rate_says_it_all(rate: Rate) -> None:
    assert rates.parse(rate.text) == rate


class Bucket:
    """Starts as many as the bucket lets, and keeps when."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.level = Level()
        self.now = NOW
        self.unbegun: list[float] = []
        self.starts: list[float] = []

    def take(self, wanted: int, *, begins: bool = True) -> None:
        self.level = rates.seen(self.rate, self.level, self.now)
        number = min(wanted, rates.tokens(self.rate, self.level, self.now))
        if number:
            self.level = rates.take(self.rate, self.level, self.now, number)
        (self.starts if begins else self.unbegun).extend([self.now] * number)

    def give_back(self) -> None:
        if self.unbegun:
            self.level = rates.give_back(self.rate, self.level, self.unbegun.pop())


moves = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.floats(0, 3)),
        st.tuples(st.just("until due"), st.integers(1, 5)),
        st.tuples(st.just("take"), st.integers(1, 60)),
        st.tuples(st.just("claim"), st.integers(1, 4)),
        st.tuples(st.just("give back"), st.just(0)),
    ),
    max_size=60,
)


@given(some_rates, moves)
def test_never_more_start_than_the_rate_allows_in_any_stretch_of_time(
    rate: Rate, moves: list[tuple[str, float]]
) -> None:
    """Also where tokens are given back that were taken by jobs which did not begin."""
    bucket = Bucket(rate)
    for what, amount in moves:
        if what == "wait":
            bucket.now += amount * rate.interval
        elif what == "until due":
            bucket.now = max(bucket.now, rates.due(rate, bucket.level, min(int(amount), rate.burst)))
        elif what == "give back":
            bucket.give_back()
        else:
            bucket.take(int(amount), begins=what == "take")
    for first, began in enumerate(bucket.starts):
        for last in range(first, len(bucket.starts)):
            stretch = bucket.starts[last] - began
            assert last - first + 1 <= stretch / rate.interval + rate.burst + 1e-3 + 1e-4 / rate.interval


@given(some_rates, st.floats(0, 100))
def test_there_is_a_token_when_it_is_due_and_not_before(rate: Rate, waited: float) -> None:
    level = rates.take(rate, Level(), NOW, rate.burst)
    # Each of them is rounded to what an instant of today can hold.
    assert rates.tokens(rate, level, NOW) <= rate.burst * math.ulp(NOW) / rate.interval
    due = rates.due(rate, level, 1)
    assert rates.tokens(rate, level, due) >= 1
    assert rates.tokens(rate, level, due - 0.5 * rate.interval - 1e-5) == 0 or rate.interval < 1e-4
    assert rates.tokens(rate, level, NOW + waited) <= rate.burst


def test_a_full_bucket_gives_its_burst_and_then_one_at_a_time() -> None:
    bucket = Bucket(rates.parse("10/s burst 5"))
    for _ in range(60):
        bucket.take(100)
        bucket.now += 0.05
    assert len(bucket.starts) == 5 + 29
    assert bucket.starts.count(NOW) == 5


@pytest.mark.parametrize("text", ["10/s", "10/s burst 30", "1/h burst 3"])
@pytest.mark.parametrize("jump", [-1e6, -10.0, 5.0, 1e6])
def test_a_jump_of_the_clock_grants_a_burst_at_most_and_stops_nobody(text: str, jump: float) -> None:
    bucket = Bucket(rates.parse(text))
    bucket.take(1000)
    bucket.now += jump
    before = len(bucket.starts)
    bucket.take(1000)
    assert len(bucket.starts) - before <= bucket.rate.burst
    assert rates.due(bucket.rate, bucket.level, 1) <= bucket.now + bucket.rate.interval + 1e-3


def test_a_token_that_is_given_back_can_be_had_again() -> None:
    bucket = Bucket(rates.parse("1/m burst 2"))
    bucket.take(2, begins=False)
    bucket.give_back()
    bucket.take(5)
    assert bucket.starts == [NOW]


def test_a_token_that_would_have_run_over_is_not_given_back() -> None:
    bucket = Bucket(rates.parse("1/m"))
    bucket.take(1, begins=False)
    bucket.now += 60
    bucket.take(1)
    bucket.now += 1
    bucket.give_back()
    bucket.take(1)
    assert len(bucket.starts) == 1
