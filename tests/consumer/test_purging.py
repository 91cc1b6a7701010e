"""The retention of finished jobs: what goes, when a consumer looks, and how much it does at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from liteq import LiteQ
from liteq.clock import ManualClock
from liteq.consumer import purging
from liteq.consumer.purging import BARREN, EVERY, PAUSE, SELDOM, Purging
from liteq.engine import DELETED_AT_ONCE
from liteq.storage.memory import MemoryStorage

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


class World:
    """An app on a storage in memory, its clock, and the duty."""

    def __init__(self, **kept: float | None) -> None:
        self.clock = ManualClock(1_700_000_000.0)
        self.app = LiteQ(MemoryStorage(), clock=self.clock, immediate=True, **kept)
        self.task = self.app.task(name="task")(lambda fails=False: 1 / 0 if fails else 1)
        self.purging = Purging(self.app.engine)

    def run(self, number: int = 1, *, fails: bool = False) -> None:
        for _ in range(number):
            self.task(fails)

    @property
    def left(self) -> int:
        return len(self.app.jobs(limit=None))

    def whole_pass(self) -> float:
        """Returns when to look again."""
        for _ in range(100):
            wait = self.purging.work()
            if wait >= EVERY:
                return wait
            assert wait <= PAUSE + 5
        raise AssertionError("no end")


@pytest.fixture
def world() -> Iterator[World]:
    world = World(result_ttl=DAY, failed_ttl=3 * DAY)
    yield world
    world.app.close()


def test_each_state_is_kept_for_as_long_as_was_asked(world: World) -> None:
    world.run(3)
    world.run(2, fails=True)
    for later, left in ((DAY - 1, 5), (2, 2), (DAY, 2), (DAY, 0)):
        world.clock.advance(later)
        world.whole_pass()
        assert world.left == left


def test_what_is_kept_for_ever_stays() -> None:
    world = World(result_ttl=None, failed_ttl=None)
    world.run()
    world.clock.advance(1000 * DAY)
    assert world.purging.work() == SELDOM
    assert world.left == 1


def test_nobody_looks_before_there_is_something_to_delete(world: World) -> None:
    world.run()
    assert world.whole_pass() == SELDOM
    world.clock.advance(DAY - 10 * MINUTE)
    assert world.whole_pass() == pytest.approx(10 * MINUTE)
    world.clock.advance(10 * MINUTE - 5)
    assert world.whole_pass() == EVERY
    world.clock.advance(EVERY)
    assert world.whole_pass() == SELDOM
    assert world.left == 0


def test_what_ends_after_a_pass_goes_in_its_time() -> None:
    world = World(result_ttl=2 * MINUTE, failed_ttl=DAY)
    wait = world.whole_pass()
    world.run()
    assert wait == 2 * MINUTE
    world.clock.advance(wait)
    wait = world.whole_pass()
    world.clock.advance(wait)
    world.whole_pass()
    assert (world.left, wait) == (0, EVERY)


def test_a_pass_does_a_little_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liteq.engine.WINDOW", 300)
    world.run(2 * DELETED_AT_ONCE + 130)
    world.clock.advance(DAY + 1)
    lefts = [world.left]
    while world.purging.work() < EVERY:
        lefts.append(world.left)
    lefts.append(world.left)
    assert [before - after for before, after in pairwise(lefts)] == [200, 200, 130]


def test_a_pass_ends_where_nothing_is_old_and_once_an_hour_goes_to_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liteq.engine.WINDOW", 1)
    world.app.engine.failed_ttl = 30 * DAY
    world.run(BARREN, fails=True)
    world.run(3)
    world.whole_pass()
    world.clock.advance(DAY - HOUR / 2)
    world.whole_pass()  # to the end
    world.clock.advance(HOUR / 2 + 1)
    world.whole_pass()
    assert world.left == BARREN + 3
    world.clock.advance(HOUR / 2)
    world.whole_pass()
    assert world.left == BARREN


@pytest.mark.parametrize(("number", "wait"), [(20, EVERY), (21, 4.0)])
def test_the_next_pass_comes_soon_after_one_that_has_deleted_very_many(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int, wait: float
) -> None:
    monkeypatch.setattr(purging, "MANY", 20)
    world.run(number)
    world.clock.advance(5)
    world.run()
    world.clock.advance(DAY - 4)
    assert world.purging.work() == pytest.approx(wait)
    assert world.left == 1


def test_a_pass_leaves_time_for_jobs_however_long_the_storage_takes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liteq.engine.WINDOW", 1)
    world.run(10)
    purge = world.app.engine.purge

    def slowly(after: int) -> object:
        world.clock.advance(took)
        return purge(after)

    monkeypatch.setattr(world.app.engine, "purge", slowly)
    for took in (0.001, 0.002, 0.1):
        assert world.purging.work() == pytest.approx(took + min(PAUSE, 3 * took))
    assert purging.SHARE == 0.25
