"""Schedules fired by consumers: on a clock that jumps, by several at once, by some that are killed."""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, Member
from hypothesis import given
from hypothesis import strategies as st
from kinds import GET
from workshop import lines

from liteq import LiteQ, StorageError, every
from liteq.clock import ManualClock
from liteq.consumer import firing
from liteq.consumer.firing import AT_ONCE, LOOK_EVERY
from liteq.consumer.scheduler import RECOVER_EVERY, Scheduler
from liteq.engine import Ended
from liteq.execution import NoDeadline, execute
from liteq.instants import moment
from liteq.job import Ending, Job, JobFilter, JobState, Outcome, Progress
from liteq.schedule import AFTER_JOB, MOST_AT_ONCE, MOST_FOLLOWERS, parsed, slot_id
from liteq.slots import _heads
from liteq.storage.base import ClaimRequest

HOUR = 3600.0
PATIENCE = 30.0


# ── one consumer on a clock of its own ───────────────────────────────────────────────────────────────────


class Keeper:
    """A consumer without threads: its duties on a clock that moves when told to. It runs each job at once.

    Args:
        app: with a ManualClock.
    """

    def __init__(self, app: LiteQ, clock: ManualClock, *, idle: bool = False, **options: Any) -> None:
        self.app, self.clock, self.idle = app, clock, idle
        self.scheduler = Scheduler(app.engine, **options)
        info = {"periodic": True, "started": clock.now(), "schedules": sorted(app.engine.declared.entries)}
        self.owner = app.storage.register(info)
        self.calls = 0

    def step(self) -> float:
        """Do what is due; returns in how many seconds to go on."""
        again = self.scheduler.run(self.clock.monotonic())
        self.calls += 1
        if not self.idle and self.work():
            again = min(again, self.scheduler.run(self.clock.monotonic()))
        return again - self.clock.monotonic()

    def work(self) -> int:
        ran = 0
        while jobs := self.claim():
            ran += len(jobs)
            for job in jobs:
                outcome = execute(job, self.app.engine.runtime, self, NoDeadline())
                self.app.engine.round([Ended(job, outcome)], None)
                self.scheduler.data_changed()
        return ran

    def claim(self) -> list[Job]:
        return self.app.engine.round([], ClaimRequest(self.owner, 100)).jobs

    def live(self, seconds: float) -> None:
        """Let so much time pass, and do everything at its time."""
        end = self.clock.monotonic() + seconds
        while True:
            wait = self.step()
            left = end - self.clock.monotonic()
            if left <= 0:
                return
            self.clock.advance(min(max(wait, 0.001), left))

    def die(self) -> None:
        """As by kill -9."""
        self.app.storage.lose(self.owner)  # type: ignore[attr-defined]

    def progress(self, job: Job, progress: Progress) -> None:
        return None

    def is_cancelled(self, job: Job) -> bool:
        return False


class World:
    """An app in memory on a ManualClock, with a task ``note`` that keeps the slots it ran for."""

    def __init__(self) -> None:
        self.clock = ManualClock(1_700_000_000.0)
        self.start = self.clock.now()
        self.slots: list[float] = []
        self.app = self.program()

    def program(self, *, storage: Any = ":memory:") -> LiteQ:
        app = LiteQ(storage, clock=self.clock, result_ttl=None)

        @app.task(name="note", context=True)
        def note(task: Any) -> None:
            self.slots.append(task.slot.timestamp() - self.start)

        return app

    def add(self, trigger: str = "every 10s", name: str = "s", **options: Any) -> None:
        self.app.schedules.add(name, "note", trigger, **options)

    def keeper(self, **options: Any) -> Keeper:
        return Keeper(self.app, self.clock, **options)

    def shown(self, name: str = "s") -> Any:
        return self.app.schedules.get(name)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    with closing(world.app):
        yield world


def test_each_slot_is_fired_and_its_run_is_kept(world: World) -> None:
    world.add()
    world.keeper().live(45)
    assert world.slots == [10, 20, 30, 40]
    shown = world.shown()
    assert (shown.runs, shown.last_outcome, shown.next_run) == (4, "succeeded", moment(world.start + 50))
    assert shown.last_run_at == shown.last_slot_at == moment(world.start + 40)


def test_the_consumer_asks_for_the_very_instant(world: World) -> None:
    world.add("every 7.25s")
    keeper = world.keeper()
    keeper.step()
    assert keeper.scheduler._firing is not None
    assert keeper.scheduler._firing.run(0.0) == 7.25


@pytest.mark.parametrize(("trigger", "duration"), [("every 10s", 200), ("30 2 * * *", 24 * HOUR)])
def test_a_trigger_is_read_before_its_slot_and_not_at_it(world: World, trigger: str, duration: float) -> None:
    world.add(trigger)
    parsed.cache_clear()  # as in a consumer that was there before the schedule
    keeper = world.keeper()
    keeper.live(1)
    read = parsed.cache_info().misses
    assert read == 1
    keeper.live(duration)
    assert world.slots
    assert parsed.cache_info().misses == read


def test_nothing_is_looked_up_while_nothing_is_due(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add("every 60s")
    keeper = world.keeper()
    keeper.live(0.5)
    monkeypatch.setattr(world.app.storage, "due_schedules", None)
    monkeypatch.setattr(world.app.storage, "next_schedule", None)
    keeper.live(55)


def test_a_consumer_with_nothing_to_do_sleeps_and_is_there_when_a_job_expires(world: World) -> None:
    keeper = world.keeper(idle=True)
    keeper.live(20)
    keeper.calls = 0
    keeper.live(60)
    assert keeper.calls <= 60 / RECOVER_EVERY + 2, "it woke up more often than its other duties ask for"
    expiring = world.app.tasks["note"].using(expires=12.5)()
    keeper.scheduler.data_changed()
    keeper.live(12.4)
    assert expiring.job().state is JobState.READY
    keeper.live(0.2)
    assert expiring.job().state is JobState.EXPIRED


def test_a_job_that_expires_soon_is_ended_in_time_however_quiet_it_was_before(world: World) -> None:
    keeper = world.keeper(idle=True)
    keeper.live(33)
    expiring = world.app.tasks["note"].using(expires=1.5)()
    keeper.scheduler.data_changed()
    keeper.live(1.6)
    assert expiring.job().state is JobState.EXPIRED


def test_a_schedule_added_elsewhere_is_seen_when_the_storage_tells(world: World) -> None:
    keeper = world.keeper()
    keeper.live(5)
    world.add("every 1s")
    keeper.scheduler.data_changed()
    keeper.live(2.5)
    assert world.slots == [6, 7]


def test_a_busy_storage_is_asked_a_few_times_a_second(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, asked = world.keeper(idle=True), []
    keeper.live(1)
    ask = world.app.storage.due_schedules
    monkeypatch.setattr(world.app.storage, "due_schedules", lambda *given: asked.append(1) or ask(*given))
    for _ in range(1000):
        keeper.scheduler.data_changed()
        keeper.step()
        world.clock.advance(0.001)
    assert 1 <= len(asked) <= 1 / LOOK_EVERY + 1


def test_without_periodic_nothing_fires_and_everything_else_is_done(world: World) -> None:
    world.app.result_ttl = world.app.engine.result_ttl = 30.0
    world.add("every 1s")
    world.app.tasks["note"].using(expires=1).schedule(delay=100)
    keeper = world.keeper(periodic=False)
    keeper.live(3)
    assert world.slots == []
    assert world.app.counts()[JobState.EXPIRED] == 1
    keeper.live(120)
    assert world.app.counts()[JobState.EXPIRED] == 0, "retention stood still"


# ── stops and jumps ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("catch_up", "expected"), [("latest", [120]), ("all", list(range(30, 130, 10))), ("skip", [])], ids=str
)
def test_slots_missed_while_no_consumer_ran(world: World, catch_up: str, expected: list[float]) -> None:
    world.add(catch_up=catch_up)
    keeper = world.keeper()
    keeper.live(25)
    keeper.die()
    world.clock.advance(100)
    world.keeper().live(20)
    assert world.slots == [10, 20, *expected, 130, 140]


@pytest.mark.parametrize(("catch_up", "number"), [("latest", 1), ("all", 54), ("skip", 0)])
def test_the_clock_jumps_nine_hours_forward(world: World, catch_up: str, number: int) -> None:
    world.add("*/10 * * * *", catch_up=catch_up)
    keeper = world.keeper()
    keeper.live(HOUR)
    before = list(world.slots)
    world.clock.jump(9 * HOUR)
    keeper.live(3)
    assert len(world.slots) - len(before) == number
    keeper.live(HOUR)
    assert len(world.slots) == len(set(world.slots)) == len(before) + number + 6


def test_the_clock_jumps_an_hour_back(world: World) -> None:
    world.add("*/10 * * * *")
    keeper = world.keeper()
    keeper.live(2 * HOUR)
    before = list(world.slots)
    world.clock.jump(-HOUR)
    keeper.live(HOUR)
    assert world.slots[:12] == before
    assert len(world.slots) == len(set(world.slots)) <= 13
    keeper.live(HOUR)
    assert len(world.slots) == len(set(world.slots))
    assert len(world.slots) >= 18


def test_back_and_forth_doubles_nothing(world: World) -> None:
    world.add("* * * * *", catch_up="all")
    keeper, chance = world.keeper(), random.Random(7)
    for _ in range(30):
        keeper.live(chance.uniform(1, 400))
        world.clock.jump(chance.uniform(-2000, 2000))
    assert world.slots
    assert [slot for slot, times in Counter(world.slots).items() if times > 1] == []


def test_a_suspend_is_a_stop(world: World) -> None:
    """The other clock stands still, or goes on: the consumer did not look for too long either way."""
    world.add("every 10s")
    keeper = world.keeper()
    keeper.live(15)
    world.clock.advance(1000)
    keeper.step()
    assert world.slots == [10, 1010]


def test_a_short_delay_leaves_nothing_out(world: World) -> None:
    world.add("every 1s", overlap="allow")
    keeper = world.keeper()
    keeper.live(2.5)
    world.clock.advance(6)
    keeper.step()
    assert world.slots == [1, 2, 3, 4, 5, 6, 7, 8]


def test_what_another_consumer_watched_was_not_missed(world: World) -> None:
    world.add("every 1s", catch_up="skip", overlap="allow")
    first = world.keeper()
    first.live(2.5)
    world.clock.advance(3)
    world.keeper().live(0.1)  # the first one lives, and is only slow
    assert world.slots == [1, 2, 3, 4, 5]


# ── overlap ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_that_takes_long_costs_slots(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "liteq")
    world.add()
    keeper = world.keeper(idle=True)
    keeper.live(11)
    (running,) = keeper.claim()
    keeper.live(20)
    assert world.app.counts()[JobState.READY] == 0
    assert world.shown().skipped == 2
    assert "the run before has not ended" in caplog.text
    keeper.app.engine.round([Ended(running, Outcome(running.seq, running.claim, Ending.SUCCEEDED, 0, 1))], None)
    keeper.live(10)
    assert [job.slot for job in keeper.claim()] == [moment(world.start + 40)]


def test_queued_runs_follow_each_other(world: World) -> None:
    world.add(overlap="queue")
    keeper = world.keeper(idle=True)
    keeper.live(31)
    assert (world.app.counts()[JobState.READY], world.app.counts()[JobState.BLOCKED]) == (1, 2)
    for expected in (10, 20, 30):
        (running,) = keeper.claim()
        assert running.slot == moment(world.start + expected)
        assert keeper.claim() == []
        keeper.app.engine.round([Ended(running, Outcome(running.seq, running.claim, Ending.FAILED, 0, 1))], None)
        keeper.scheduler.data_changed()
        keeper.live(0.1)


def end(keeper: Keeper, job: Job) -> None:
    keeper.app.engine.round([Ended(job, Outcome(job.seq, job.claim, Ending.SUCCEEDED, 0, 1))], None)
    keeper.scheduler.data_changed()
    keeper.live(0.1)


def waiting(world: World) -> list[Job]:
    return sorted(world.app.jobs(state="blocked"), key=lambda job: job.id)


@pytest.mark.parametrize("middle", [[0], [1], [0, 1], [0, 1, 2]], ids=str)
def test_a_run_that_is_revoked_in_its_row_does_not_let_the_next_begin_beside_the_first(
    world: World, middle: list[int]
) -> None:
    world.add(overlap="queue")
    keeper = world.keeper(idle=True)
    keeper.live(10)
    (first,) = keeper.claim()
    keeper.live(30)
    row = waiting(world)
    for number in middle:
        assert world.app.revoke(row[number].id)
    keeper.live(11)  # one more slot comes, and the row is looked at many times
    left = [job.id for number, job in enumerate(row) if number not in middle] + [slot_id("s", world.start + 50)]
    assert [job.id for job in waiting(world)] == left
    assert keeper.claim() == []
    for expected in left:
        end(keeper, first)
        (first,) = keeper.claim()
        assert first.id == expected


@pytest.mark.parametrize("overlap", ["queue", "skip"])
def test_a_run_by_hand_that_is_revoked_leaves_the_schedule_as_busy_as_it_was(world: World, overlap: str) -> None:
    world.add(overlap=overlap)
    keeper = world.keeper(idle=True)
    keeper.live(10)
    (first,) = keeper.claim()
    by_hand = world.app.schedules.run_now("s")
    assert by_hand.revoke()
    keeper.live(11)
    assert keeper.claim() == []
    end(keeper, first)
    assert len(keeper.claim()) == (overlap == "queue")


def test_a_long_queue_of_slots_is_kept_in_few_jobs(world: World) -> None:
    world.add("every 1s", overlap="queue")
    keeper = world.keeper(idle=True)
    keeper.live(300)
    assert world.app.counts()[JobState.BLOCKED] <= MOST_FOLLOWERS + MOST_AT_ONCE
    keeper.idle = False
    keeper.live(60)
    assert world.slots == list(range(1, len(world.slots) + 1))
    assert len(world.slots) >= 355


def test_slots_that_wait_as_they_are_stay_due(world: World) -> None:
    world.add("every 1s", overlap="queue")
    world.keeper(idle=True).live(300)
    assert world.shown().runs < 200
    assert world.shown().next_run < moment(world.clock.now() - 100)


def test_a_long_queue_of_slots_holds_up_no_other_schedule(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firing, "AT_ONCE", 2)
    for number in range(3):
        world.add("every 1s", name=f"s{number}", overlap="queue")
    world.add("every 50s", name="other")
    world.keeper(idle=True).live(301)
    assert world.shown("other").runs + world.shown("other").skipped == 6
    world.clock.advance(50)
    burst = world.keeper(idle=True, burst=True)
    burst.live(0.5)
    assert world.shown("other").runs + world.shown("other").skipped == 7
    assert False in {burst.step() and burst.scheduler.made_ready for _ in range(3)}, "it would never end"


@given(st.permutations(range(12)))
def test_of_jobs_in_a_row_the_one_behind_the_oldest_slot_is_looked_at(order: list[int]) -> None:
    rows = [AFTER_JOB + slot_id(name, 1_700_000_000 + number / 4) for name in "ab" for number in order]
    heads = {AFTER_JOB + slot_id(name, 1_700_000_000) for name in "ab"}
    assert _heads([*rows, "after job 17-0123456789"]) == heads | {"after job 17-0123456789"}


def test_a_run_whose_consumer_died_does_not_cost_the_next_slot(world: World) -> None:
    world.add()
    keeper = world.keeper(idle=True)
    keeper.live(10)
    assert len(keeper.claim()) == 1
    keeper.die()
    world.clock.advance(10)
    other = world.keeper()
    other.live(1)
    assert sorted(world.slots) == [10, 20]
    assert world.shown().skipped == 0


# ── code that comes and goes ─────────────────────────────────────────────────────────────────────────────


def test_one_whose_code_is_gone_rests_and_goes_on_when_it_is_back(world: World) -> None:
    world.app.periodic_task("every 10s", name="job")(lambda: None)
    keeper = world.keeper()
    keeper.live(15)
    keeper.die()
    bare = world.program(storage=world.app.storage)
    other = Keeper(bare, world.clock)
    other.live(30)
    assert bare.schedules.get("job").state == "orphaned"
    assert bare.schedules.get("job").runs == 1
    other.die()
    world.keeper().live(20)
    assert world.shown("job").state == "active"
    assert world.shown("job").runs == 4  # of those that passed meanwhile the last one, as after a stop


def test_other_code_on_the_same_file_leaves_it_to_its_own_consumers(world: World) -> None:
    world.app.periodic_task("every 10s", name="job")(lambda: None)
    keeper = world.keeper()
    keeper.live(1)
    other = Keeper(world.program(storage=world.app.storage), world.clock)
    other.live(45)
    assert world.shown("job").runs == 0
    assert world.shown("job").state == "active"
    keeper.live(0.1)
    assert world.shown("job").runs == 1


def test_what_was_left_to_a_consumer_that_dies_waits_for_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.app.periodic_task("every 10s", name="job", catch_up="all")(lambda: None)
    keeper = world.keeper()
    keeper.live(1)
    other = Keeper(world.program(storage=world.app.storage), world.clock)
    other.live(15)
    keeper.die()
    other.scheduler.somebody_died()
    other.live(10)
    assert other.app.schedules.get("job").state == "orphaned", "nobody who lives declares it"
    world.keeper().live(0.1)
    assert world.shown("job").runs == 2
    assert "rests" not in caplog.text


def declaring(world: World, name: str, **options: Any) -> LiteQ:
    """A program of its own on the same file, with one schedule."""
    program = world.program(storage=world.app.storage)
    program.periodic_task("every 3s", name=name, **options)(lambda: None)
    return program


def visit(program: LiteQ, world: World) -> None:
    """A consumer that does what is due and ends, as one that cron starts."""
    keeper = Keeper(program, world.clock, burst=True)
    keeper.live(0.1)
    keeper.die()


def test_two_programs_that_take_turns_on_one_file_fire_what_each_declares(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = declaring(world, "a"), declaring(world, "b")
    for _ in range(5):
        visit(first, world)
        visit(second, world)
        world.clock.advance(3.7)
    assert (first.schedules.get("a").runs, second.schedules.get("b").runs) == (4, 4)
    assert "rests" not in caplog.text


def test_a_consumer_that_runs_on_leaves_what_visitors_declare_to_them(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = declaring(world, "a"), declaring(world, "b", catch_up="all", overlap="allow")
    visit(second, world)
    resident = Keeper(first, world.clock)
    for _ in range(5):
        resident.live(4)
        visit(second, world)
        assert second.schedules.get("b").state == "active"
    resting = "a schedule is declared in no code any more and rests"
    assert caplog.text.count(resting) == 1, "at the start, when none of the other program's consumers lived"
    assert second.schedules.get("b").runs == 6
    assert first.schedules.get("a").runs == 6


@pytest.mark.parametrize(("catch_up", "runs"), [("latest", 1), ("all", 6), ("skip", 0)])
def test_what_a_consumer_of_other_code_saw_pass_was_missed(world: World, catch_up: str, runs: int) -> None:
    first, second = declaring(world, "a"), declaring(world, "b", catch_up=catch_up, overlap="allow")
    visit(second, world)
    resident = Keeper(first, world.clock)
    resident.live(19)
    Keeper(second, world.clock).live(0.1)
    assert second.schedules.get("b").runs == runs


def test_one_that_is_declared_late_is_taken_back_from_the_others(world: World) -> None:
    visit(declaring(world, "late"), world)
    keeper = world.keeper()
    keeper.live(4)
    world.app.periodic_task("every 3s", name="late")(lambda: None)
    keeper.live(6)
    assert world.shown("late").runs >= 2


def test_what_fails_is_done_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add()
    keeper = world.keeper()
    for verb in ("fire", "due_schedules", "next_schedule", "put_schedule", "schedules", "barrier"):
        keeper.live(5)
        with monkeypatch.context() as patched:
            patched.setattr(world.app.storage, verb, broken)
            world.clock.jump(-2)
            keeper.scheduler.data_changed()
            for _ in range(3):
                with contextlib.suppress(StorageError):
                    keeper.live(5)
        keeper.live(10)
    ran = sorted(world.slots)
    assert ran == list(range(10, int(ran[-1]) + 1, 10))
    assert ran[-1] > 50


def broken(*_given: object) -> None:
    raise StorageError("the disk is full")


def test_what_is_declared_while_the_consumer_runs_is_fired(world: World) -> None:
    keeper = world.keeper()
    keeper.live(5)
    world.app.periodic_task("every 10s", name="late")(lambda: None)
    keeper.live(25)
    assert world.shown("late").runs == 2


# ── garbage, boots, many ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("field", "value"), [("trigger", "rubbish"), ("ran", "{["), ("catch_up", "?"), ("grace", "x")])
def test_garbage_is_reported_once_and_the_others_fire(
    world: World, caplog: pytest.LogCaptureFixture, field: str, value: str
) -> None:
    world.add(name="bad")
    world.add(name="good")
    stored = world.app.storage.schedules("bad")[0]
    assert world.app.storage.put_schedule(stored._replace(**{field: value}))
    keeper = world.keeper()
    keeper.live(35)
    assert world.slots == [10, 20, 30]
    assert caplog.text.count("is left alone") == 1
    assert "schedule=bad" in caplog.text
    world.app.schedules.add("bad", "note", "every 1s", replace=True)
    keeper.scheduler.data_changed()
    keeper.live(3.5)
    assert len(world.slots) > 4


GARBAGE = [
    ("options", "{"),
    ("options", "[1]"),
    ("options", "5"),
    ("expires", "abc"),
    ("payload", "text"),
    ("slot", "abc"),
    ("slot", 1e300),
    ("due", "abc"),
    ("due", -1e300),
    ("looked", "abc"),
    ("created", "abc"),
    ("created", 1e300),
    ("version", "a"),
    ("priority", "x"),
    ("runs", "x"),
    ("queue", b"q"),
    ("last_id", b"x"),
    ("jitter", "abc"),
    ("max_runs", "many"),
    ("last_run", 1e300),
]


def spoil(path: Path, column: str, value: object, *, name: str = "bad") -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f'UPDATE liteq_schedule SET "{column}" = ? WHERE name = ?', (value, name))


@pytest.mark.parametrize(("column", "value"), GARBAGE, ids=str)
@pytest.mark.parametrize("at_start", [True, False], ids=["there at the start", "written later"])
def test_garbage_in_a_row_ends_no_consumer_and_holds_up_no_other_schedule(
    tmp_path: Path, world: World, caplog: pytest.LogCaptureFixture, column: str, value: object, at_start: bool
) -> None:
    path = tmp_path / "queue.db"
    with closing(world.program(storage=path)) as app:
        for name in ("bad", "good"):
            app.schedules.add(name, "note", "every 10s")
        if at_start:
            spoil(path, column, value)
        keeper = Keeper(app, world.clock)
        keeper.live(1)
        if not at_start:
            spoil(path, column, value)
            keeper.scheduler.data_changed()
        keeper.live(34)
        assert app.schedules.get("good").runs == 3
        assert caplog.text.count("is left alone") <= 1
        if column != "due":  # text is due at no time, and what is overdue for ever is due now
            assert app.schedules.get("bad").last_slot in (None, value)
            assert caplog.text.count("is left alone") == 1
        again = Keeper(app, world.clock)
        again.live(11)
        assert app.schedules.get("good").runs == 4
        assert caplog.text.count("is left alone") >= 1
        assert "schedule=bad" in caplog.text
        app.schedules.add("bad", "note", "every 10s", replace=True)
        again.scheduler.data_changed()
        again.live(20)
        assert app.schedules.get("bad").runs >= 1


@pytest.mark.parametrize(("column", "value"), GARBAGE, ids=str)
def test_garbage_in_the_row_of_a_declared_schedule_gives_way_to_code_that_changes(
    tmp_path: Path, world: World, caplog: pytest.LogCaptureFixture, column: str, value: object
) -> None:
    path = tmp_path / "queue.db"
    for period in (10, 10, 5):
        with closing(world.program(storage=path)) as app:
            app.periodic_task(every(period), name="bad")(lambda: None)
            keeper = Keeper(app, world.clock)
            keeper.live(1)
            runs = app.schedules.get("bad").runs
            keeper.live(11)
            app.storage.unregister(keeper.owner)
            if period == 5:
                assert app.schedules.get("bad").runs > int(runs)
        if period == 10:
            spoil(path, column, value)
    with closing(world.program(storage=path)) as other:  # to which it is an orphan
        Keeper(other, world.clock).live(1)


def test_a_task_that_nobody_knows_is_parked(world: World) -> None:
    world.add()
    bare = LiteQ(world.app.storage, clock=world.clock)
    keeper = Keeper(bare, world.clock)
    keeper.live(15)
    (parked,) = world.app.jobs(state="blocked")
    assert parked.reason == "unknown task: note"


def test_at_each_boot_once_over_all_consumers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add("@reboot")
    for boot, runs in (("A", 1), ("A", 1), ("B", 2)):
        monkeypatch.setattr(firing, "boot_id", lambda boot=boot: boot)
        world.keeper().live(1)
        world.keeper().live(1)
        assert len(world.slots) == runs


def test_this_machine_has_a_boot() -> None:
    from liteq.consumer.boot import boot_id

    assert boot_id()
    if Path("/proc/sys/kernel/random/boot_id").exists():
        assert boot_id() == boot_id()


@pytest.mark.parametrize("platform", ["darwin", "plan9"])
def test_where_the_system_does_not_tell_each_consumer_has_its_own_boot(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from liteq.consumer import boot

    monkeypatch.setattr(boot, "_LINUX", Path("/nowhere"))
    monkeypatch.setattr(boot.sys, "platform", platform)
    assert boot.boot_id() != boot.boot_id()


def test_very_many_are_fired_in_parts(world: World) -> None:
    for number in range(3 * AT_ONCE + 1):
        world.add("every 60s", name=f"s{number}")
    keeper = world.keeper(idle=True)
    keeper.live(59.9)
    world.clock.advance(0.1)
    parts = []
    for _ in range(4):
        keeper.step()
        assert keeper.scheduler.made_ready
        parts.append(len(keeper.claim()))
        parts.append(len(keeper.claim()))
    assert sum(parts) == 3 * AT_ONCE + 1
    assert max(parts) <= 100


# ── real consumers ───────────────────────────────────────────────────────────────────────────────────────


def test_an_idle_consumer_is_on_time(app: LiteQ, consume: Any) -> None:
    late: list[float] = []
    enough = threading.Event()

    @app.periodic_task(every(0.25), name="tick", context=True, overlap="allow")
    def tick(task: Any) -> None:
        late.append(time.time() - task.slot.timestamp())
        if len(late) == 8:
            enough.set()

    with consume(app):
        assert enough.wait(PATIENCE)
    assert min(late) >= 0
    assert sorted(late)[1] < 0.1  # a busy machine may delay some of them


@pytest.mark.parametrize("worker_type", ["thread", "process"])
def test_the_worker_knows_the_slot(app: LiteQ, consume: Any, worker_type: str) -> None:
    app.schedules.add("s", "workshop.slot", every(3600))
    with consume(app, worker_type=worker_type):
        result = app.schedules.run_now("s")
        assert result.get(GET) == app.schedules.get("s").last_slot


def test_one_added_in_another_process_is_live_within_a_second(
    app: LiteQ, consumers: Fleet, log: str, eventually: Callable[..., Any]
) -> None:
    consumers.launch()
    eventually(lambda: consumers.logged("consumer started"), PATIENCE)
    added = time.time()
    app.schedules.add("s", "workshop.write", "every 0.1s", args=(log, "x"), overlap="allow")
    eventually(lambda: lines(log), PATIENCE)
    (first, *_) = app.jobs(task="workshop.write", limit=1)
    assert first.slot is not None
    assert first.created - added < 5.0  # without being told, a consumer would not look at all
    app.schedules.pause("s")
    assert app.schedules.get("s").state == "paused"


def slots_of(app: LiteQ, name: str) -> list[float]:
    jobs = app.storage.find(JobFilter())
    return sorted(job.slot.timestamp() for job in jobs if job.schedule == name and job.slot is not None)


def assert_gapless(slots: list[float], period: float) -> None:
    """Each slot has exactly one job, from the first to the last."""
    gaps = [round((later - earlier) / period, 3) for earlier, later in itertools.pairwise(slots)]
    assert set(gaps) == {1.0}, f"doubled or missed: {[gap for gap in gaps if gap != 1.0]}"


def test_two_consumers_fire_each_slot_once(
    app: LiteQ, consumers: Fleet, log: str, eventually: Callable[..., Any]
) -> None:
    for _ in range(2):
        consumers.launch()
    eventually(lambda: len(consumers.logged("consumer started")) == 2, PATIENCE)
    app.schedules.add("s", "workshop.write", "every 0.1s", args=(log, "x"), overlap="allow")
    eventually(lambda: len(lines(log)) >= 20, PATIENCE)
    app.schedules.pause("s")
    assert_gapless(slots_of(app, "s"), 0.1)


@pytest.mark.slow
def test_consumers_killed_while_firing_neither_double_nor_miss_a_slot(
    app: LiteQ, consumers: Fleet, log: str, eventually: Callable[..., Any]
) -> None:
    """With the default options; one consumer is there all the time, the others are killed at random."""
    consumers.launch()
    victims: list[Member] = [consumers.launch() for _ in range(2)]
    eventually(lambda: len(consumers.logged("consumer started")) == 3, PATIENCE)
    app.schedules.add("s", "workshop.write", "every 0.1s", args=(log, "x"), overlap="allow")
    chance = random.Random(11)
    for killed in range(8):
        ran = len(lines(log))
        eventually(lambda ran=ran: len(lines(log)) >= ran + chance.randint(2, 5), PATIENCE)
        victims.pop(chance.randrange(2)).kill()
        victims.append(consumers.launch())
        eventually(lambda killed=killed: len(consumers.logged("consumer started")) == 4 + killed, PATIENCE)
    app.schedules.pause("s")
    slots = slots_of(app, "s")
    assert_gapless(slots, 0.1)
    eventually(lambda: len(lines(log)) >= len(slots), PATIENCE)


def test_a_burst_fires_what_is_due_and_ends(app: LiteQ, consumers: Fleet, log: str) -> None:
    start = moment(time.time() - 1000)
    app.schedules.add("s", "workshop.write", "every 60s", args=(log, "x"), start=start, catch_up="all", overlap="queue")
    stored = app.storage.schedules("s")[0]
    assert stored.slot is not None
    assert app.storage.put_schedule(stored._replace(slot=stored.slot - 300, due=stored.slot - 300))
    assert consumers.launch(burst=True).wait() == 0
    assert lines(log) == ["x"] * 5
    assert app.schedules.get("s").last_outcome == "succeeded"
    assert app.counts()[JobState.BLOCKED] == 0


def test_a_burst_leaves_no_due_slot_behind_however_many_there_are(app: LiteQ, consumers: Fleet, log: str) -> None:
    due = 3 * (MOST_AT_ONCE + MOST_FOLLOWERS) + 1
    start = moment(time.time() - 60 * due)
    app.schedules.add("s", "workshop.write", "every 60s", args=(log, "x"), start=start, catch_up="all")
    stored = app.storage.schedules("s")[0]
    assert app.storage.put_schedule(stored._replace(slot=start.timestamp(), due=start.timestamp()))
    assert consumers.launch(burst=True).wait() == 0
    assert len(lines(log)) >= due
    assert app.schedules.get("s").due > time.time() - 60  # type: ignore[operator]


def test_without_periodic_a_consumer_runs_jobs_only(app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
    app.schedules.add("s", "workshop.write", "every 0.05s", args=(log, "x"))
    with consume(app, periodic=False):
        assert tasks.echo(1).get(GET) == 1
        assert app.schedules.get("s").runs == 0
    assert lines(log) == []
