"""Shares of queues: what is read, that nobody gets more or less than his share, and that workers are kept."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liteq import shares
from liteq.errors import ConfigurationError
from liteq.job import Job, JobState
from liteq.shares import Share, Sharing, divide


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("high", Share("high")),
        ("high:3", Share("high", 3)),
        ("high=1", Share("high", 0, 1)),
        ("high=2:3", Share("high", 3, 2)),
        ("high : 3".replace(" ", ""), Share("high", 3)),
    ],
)
def test_a_share_is_read(text: str, expected: Share) -> None:
    assert shares.share(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("high:", "NAME:WEIGHT"),
        ("high:x", "with whole numbers, not 'high:x'"),
        ("high:0", "the weight of queue 'high' is 1 to 1000, not 0"),
        ("high:1001", "1 to 1000"),
        ("high:-1", "whole numbers"),
        ("high:1.5", "whole numbers"),
        ("high=0", "at least one worker"),
        ("high=x", "whole numbers"),
        (":3", "NAME"),
        ("a:1=2", "whole numbers"),
        ("a:b:3", "in its own name is given in Python"),
    ],
)
def test_what_is_no_share_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        shares.share(text)


def test_reserved_workers_must_exist_and_leave_some_for_the_others() -> None:
    shares.check([Share("a", 0, 1), Share("b")], 2)
    shares.check([Share("a", 0, 1), Share("b", 0, 1)], 2)
    with pytest.raises(ConfigurationError, match="reserves 3 workers, but there are 2"):
        shares.check([Share("a", 0, 3), Share("b")], 2)
    with pytest.raises(ConfigurationError, match="jobs of b would never run"):
        shares.check([Share("a", 0, 2), Share("b")], 2)


class Shop:
    """A consumer and its queues, as numbers."""

    def __init__(self, *given: Share) -> None:
        self.sharing = Sharing(given)
        self.ready: Counter[str] = Counter()
        self.running: Counter[str] = Counter()

    def claim(self, wanted: int, free: int = 0) -> list[str]:
        plan = divide(self.sharing.division(free, self.running), wanted, self.ready, {})
        jobs = [Job(0, "", "t", JobState.RUNNING, queue) for queue, number in plan.items() for _ in range(number)]
        self.ready -= Counter(plan)
        self.running += Counter(plan)
        return [job.queue for job in self.sharing.claimed(jobs)]


def test_weights_are_proportions_and_the_order_is_smooth() -> None:
    shop = Shop(Share("high", 3), Share("low", 1))
    shop.ready.update(high=100, low=100)
    order = [queue for _ in range(8) for queue in shop.claim(1)]
    assert order == ["high", "low", "high", "high"] * 2
    assert shop.claim(8) == ["high", "low", "high", "high"] * 2


def test_a_queue_that_was_empty_has_saved_up_nothing() -> None:
    shop = Shop(Share("high", 1), Share("low", 1))
    shop.ready.update(high=100)
    shop.claim(50)
    shop.ready.update(low=100)
    assert Counter(shop.claim(20)) == {"high": 10, "low": 10}


def test_what_one_cannot_use_the_others_get() -> None:
    shop = Shop(Share("high", 3), Share("low", 1), Share("none", 7))
    shop.ready.update(high=2, low=100)
    assert Counter(shop.claim(10)) == {"high": 2, "low": 8}


weights = st.lists(st.integers(1, 9), min_size=2, max_size=5)


@given(weights, st.lists(st.integers(1, 300), min_size=1, max_size=20))
def test_whoever_always_has_work_gets_its_share_to_the_job(weights: list[int], claims: list[int]) -> None:
    """Goyal, Vin, Cheng: two that are busy differ, in jobs by weight, by no more than one job of each."""
    names = [str(number) for number in range(len(weights))]
    shop = Shop(*(Share(name, weight) for name, weight in zip(names, weights, strict=True)))
    got: Counter[str] = Counter(dict.fromkeys(names, 0))
    for wanted in claims:
        shop.ready.update(dict.fromkeys(names, 1000))
        for queue in shop.claim(wanted):
            got[queue] += 1
            served = [got[name] / weight for name, weight in zip(names, weights, strict=True)]
            for one, first in zip(served, weights, strict=True):
                for other, second in zip(served, weights, strict=True):
                    assert one - other <= 1 / first + 1 / second + 1e-9


@given(
    weights,
    st.lists(st.tuples(st.lists(st.integers(0, 12), min_size=5, max_size=5), st.integers(1, 40)), max_size=30),
)
def test_nothing_is_left_while_somebody_wants_it_and_nobody_starves(
    weights: list[int], rounds: list[tuple[list[int], int]]
) -> None:
    names = [str(number) for number in range(len(weights))]
    shop = Shop(*(Share(name, weight) for name, weight in zip(names, weights, strict=True)))
    waited: Counter[str] = Counter()
    for arrivals, wanted in rounds:
        shop.ready.update(dict(zip(names, arrivals, strict=False)))
        there = +Counter(shop.ready)
        got = shop.claim(wanted)
        assert len(got) == min(wanted, there.total())
        for name, weight in zip(names, weights, strict=True):
            waited[name] = 0 if name in got or not there[name] else waited[name] + len(got)
            bound = sum(other for other in weights) / weight + len(weights) + 40
            assert waited[name] <= bound


@given(
    st.lists(st.integers(0, 2), min_size=2, max_size=4),
    st.booleans(),
    st.lists(st.tuples(st.lists(st.integers(0, 4), min_size=4, max_size=4), st.integers(0, 6)), max_size=30),
)
def test_reserved_workers_run_nothing_else(
    reserved: list[int], weighted: bool, rounds: list[tuple[list[int], int]]
) -> None:
    workers = sum(reserved) + 1
    names = [str(number) for number in range(len(reserved))]
    pairs = enumerate(zip(names, reserved, strict=True))
    given = [Share(name, at + 1 if weighted else 0, kept) for at, (name, kept) in pairs]
    shop = Shop(*given)
    for arrivals, ended in rounds:
        shop.ready.update(dict(zip(names, arrivals, strict=False)))
        for name in list(shop.running.elements())[:ended]:
            shop.running[name] -= 1
        free = workers - shop.running.total()
        shop.claim(free, free)
        assert shop.running.total() <= workers
        for name in names:
            others = sum(max(0, one.reserved - shop.running[one.queue]) for one in given if one.queue != name)
            idle = workers - shop.running.total()
            # Whoever has work left is stopped by what is kept for others, and by nothing else.
            assert not shop.ready[name] or idle <= others
            # Nobody has what is kept for another.
            assert idle >= min(others, idle)
            own = next(one.reserved for one in given if one.queue == name)
            assert shop.running[name] <= workers - sum(reserved) + own


def test_the_order_of_preference_stays_where_workers_are_reserved() -> None:
    shop = Shop(Share("high", 0, 1), Share("default"), Share("low"))
    shop.ready.update(default=1, low=9)
    assert shop.claim(4, 4) == ["default", "low", "low"], "one worker is kept for high"
    shop.ready.update(high=5)
    assert shop.claim(1, 1) == ["high"]


def test_a_claim_that_goes_on_knows_what_it_has_taken() -> None:
    sharing = Sharing([Share("high", 0, 1), Share("low")])
    division = sharing.division(3, {})
    assert divide(division, 3, {"low": 9}, {}) == {"low": 2}
    assert divide(division, 2, {"low": 9}, {"low": 1}) == {"low": 1}
    assert divide(division, 1, {"low": 9}, {"low": 2}) == {}
