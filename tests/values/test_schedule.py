"""Which slots of a schedule become jobs: a virtual clock, no storage."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liteq import TriggerError, crontab, every
from liteq.errors import ConfigurationError
from liteq.instants import moment
from liteq.job import JobState
from liteq.schedule import (
    CATCH_UP,
    FREE,
    MOST_AT_ONCE,
    OVERLAP,
    Busy,
    Decision,
    Planned,
    Schedule,
    aimed,
    decide,
    job_of,
    parsed,
    slot_id,
    upcoming,
)
from liteq.triggers import Trigger

START = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
BUSY, INTERRUPTED = Busy(True), Busy(True, True)


def new(trigger: Trigger | str = "every 10s", at: float = START, **fields: Any) -> Schedule:
    """A schedule as it stands when it was just stored."""
    anchored = parsed(str(trigger)).with_timezone("UTC").anchored(moment(fields.get("start") or at))
    return aimed(Schedule("s", "task", str(anchored), created=at, **fields), at, at)


@dataclass
class Watcher:
    """Consumers as one: looks when told to, and keeps what was fired.

    Args:
        watching: since when, on the clock of the moment; ``None``: nobody does.
    """

    schedule: Schedule
    watching: float | None = START
    slots: list[float] = field(default_factory=list)
    last: Decision | None = None

    def look(self, now: float, busy: Busy = FREE) -> list[Planned]:
        """Fire until nothing is due; returns what was fired."""
        fired: list[Planned] = []
        while self.schedule.due is not None and self.schedule.due <= now:
            self.last = decide(self.schedule, now, START if self.watching is None else self.watching, busy=busy)
            fired += self.last.planned
            self.schedule = self.last.schedule
        self.slots += [one.slot for one in fired]
        return fired

    def run(self, begin: float, end: float) -> None:
        """Be there from ``begin`` to ``end``, and look whenever something is due."""
        self.watching = begin
        self.look(begin)
        while self.schedule.due is not None and self.schedule.due <= end:
            self.look(self.schedule.due)


def after(*seconds: float) -> list[float]:
    return [START + one for one in seconds]


def slots_of(planned: Iterable[Planned]) -> list[float]:
    return [one.slot for one in planned]


# ── on time ──────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_due_before_the_first_slot() -> None:
    decision = decide(new(), START + 9.9, START)
    assert decision.planned == ()
    assert decision.schedule.due == START + 10


def test_each_slot_is_fired_once_and_the_next_one_is_known() -> None:
    watcher = Watcher(new())
    watcher.run(START, START + 35)
    assert watcher.slots == after(10, 20, 30)
    assert (watcher.schedule.slot, watcher.schedule.due, watcher.schedule.runs) == (START + 40, START + 40, 3)
    assert (watcher.schedule.last_slot, watcher.schedule.last_run) == (START + 30, START + 30)


def test_slots_that_were_watched_are_all_fired_however_late() -> None:
    """A consumer that was there, but held up, leaves nothing out."""
    fired = Watcher(new(overlap="allow")).look(START + 35)
    assert slots_of(fired) == after(10, 20, 30)


def test_slots_fired_together_follow_each_other_unless_they_may_overlap() -> None:
    assert [one.follows for one in Watcher(new()).look(START + 35)] == [False, True, True]
    assert [one.follows for one in Watcher(new(overlap="queue")).look(START + 35)] == [False, True, True]
    assert [one.follows for one in Watcher(new(overlap="allow")).look(START + 35)] == [False, False, False]


def test_what_was_decided_is_kept_as_one_span() -> None:
    watcher = Watcher(new())
    watcher.run(START, START + 1000)
    assert json.loads(watcher.schedule.ran) == [[START + 10, START + 1000]]


# ── missed ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("catch_up", "expected"), [("latest", [50]), ("all", [10, 20, 30, 40, 50]), ("skip", [])], ids=lambda one: str(one)
)
def test_slots_missed_while_nothing_ran(catch_up: str, expected: list[float]) -> None:
    watcher = Watcher(new(catch_up=catch_up), watching=START + 55)
    assert slots_of(watcher.look(START + 55)) == after(*expected)
    assert watcher.schedule.slot == START + 60
    assert watcher.last is not None and watcher.last.missed is (catch_up != "all")


@pytest.mark.parametrize("catch_up", CATCH_UP)
def test_after_a_stop_the_slots_go_on_as_ever(catch_up: str) -> None:
    watcher = Watcher(new(catch_up=catch_up), watching=START + 55)
    watcher.run(START + 55, START + 85)
    assert watcher.slots[-3:] == after(60, 70, 80)
    assert len(watcher.slots) == len(set(watcher.slots))


def test_the_latest_run_is_not_made_where_a_watched_slot_is_due_as_well() -> None:
    watcher = Watcher(new(), watching=START + 45)
    assert slots_of(watcher.look(START + 51)) == after(50)


def test_a_backlog_is_caught_up_in_parts() -> None:
    watcher = Watcher(new("every 1s", catch_up="all"), watching=START + 1000)
    first = decide(watcher.schedule, START + 1000, START + 1000)
    assert len(first.planned) == MOST_AT_ONCE
    assert first.schedule.due == START + MOST_AT_ONCE + 1
    watcher.look(START + 1000)
    assert watcher.slots == after(*range(1, 1001))


def test_the_latest_of_a_year_of_seconds_is_found_without_walking_through_them() -> None:
    year = 365 * 86_400
    fired = decide(new("every 1s"), START + year + 0.5, START + year + 0.5)
    assert slots_of(fired.planned) == [START + year]


def test_grace_leaves_out_what_is_too_late() -> None:
    watcher = Watcher(new(catch_up="all", grace=25.0), watching=START + 61)
    assert slots_of(watcher.look(START + 61)) == after(40, 50, 60)
    watcher = Watcher(new(grace=0.5), watching=START + 55)
    assert watcher.look(START + 55) == []
    watcher = Watcher(new(grace=0.5))
    assert watcher.look(START + 15) == []  # watched, yet late
    assert slots_of(watcher.look(START + 20.4)) == after(20)


def test_a_schedule_that_is_paused_or_orphaned_fires_nothing() -> None:
    for standing in (new()._replace(paused=True), new()._replace(orphaned=True)):
        decision = decide(standing, START + 100, START)
        assert decision.planned == ()
        assert decision.schedule.due is None


def test_what_passed_during_a_pause_is_not_caught_up() -> None:
    paused = aimed(new(catch_up="all")._replace(paused=True), START, START)
    assert (paused.slot, paused.due, paused.state) == (None, None, "paused")
    resumed = aimed(paused._replace(paused=False), START + 55, START + 55)
    assert slots_of(Watcher(resumed).look(START + 65)) == after(60)


# ── overlap ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("overlap", "planned"), [("skip", []), ("queue", [True]), ("allow", [False])])
def test_a_slot_at_which_the_run_before_has_not_ended(overlap: str, planned: list[bool]) -> None:
    watcher = Watcher(new(overlap=overlap))
    assert [one.follows for one in watcher.look(START + 10, BUSY)] == planned
    assert watcher.schedule.slot == START + 20
    assert watcher.schedule.skipped == (0 if planned else 1)


def test_slots_wait_as_they_are_where_many_jobs_wait_already() -> None:
    full = Busy(True, full=True)
    standing = new(overlap="queue")
    decision = decide(standing, START + 35, START, busy=full)
    assert decision == Decision(standing, standing, (), put_off=True)
    assert not decide(standing, START + 35, START, busy=BUSY).put_off
    later = decide(standing, START + 36, START)
    assert slots_of(later.planned) == after(10, 20, 30)
    assert decide(new(overlap="skip"), START + 10, START, busy=full).skipped == (START + 10,)


def test_a_run_that_was_interrupted_holds_up_its_slot_but_does_not_cost_the_next_one() -> None:
    assert Watcher(new()).look(START + 10, INTERRUPTED) == [Planned(START + 10, follows=True)]


def test_what_is_caught_up_one_by_one_waits_for_the_run_before_instead_of_being_skipped() -> None:
    watcher = Watcher(new(catch_up="all"), watching=START + 25)
    assert watcher.look(START + 25, BUSY) == [Planned(START + 10, True), Planned(START + 20, True)]


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────


def test_no_more_than_max_runs() -> None:
    watcher = Watcher(new(max_runs=2))
    watcher.run(START, START + 100)
    assert watcher.slots == after(10, 20)
    assert (watcher.schedule.due, watcher.schedule.state) == (None, "finished")


def test_skipped_slots_do_not_count_as_runs() -> None:
    watcher = Watcher(new(max_runs=1))
    watcher.look(START + 10, BUSY)
    assert slots_of(watcher.look(START + 20)) == after(20)


def test_max_runs_holds_when_many_are_due_at_once() -> None:
    watcher = Watcher(new(max_runs=3, catch_up="all"), watching=START + 100)
    assert slots_of(watcher.look(START + 100)) == after(10, 20, 30)
    assert watcher.schedule.state == "finished"


def test_start_and_end_belong_to_the_schedule() -> None:
    watcher = Watcher(new(start=START + 100, end=START + 120))
    assert watcher.schedule.due == START + 100
    watcher.run(START, START + 200)
    assert watcher.slots == after(100, 110, 120)
    assert watcher.schedule.state == "finished"


def test_the_latest_missed_slot_is_not_after_the_end() -> None:
    watcher = Watcher(new(end=START + 25), watching=START + 100)
    assert slots_of(watcher.look(START + 100)) == after(20)


# ── jitter ───────────────────────────────────────────────────────────────────────────────────────────────


def test_jitter_delays_each_slot_by_the_same_every_time() -> None:
    schedule = new("every 60s", jitter=30.0)
    delays = []
    for number in range(1, 40):
        assert schedule.slot == START + 60 * number
        assert schedule.due is not None and schedule.slot is not None
        delays.append(schedule.due - schedule.slot)
        assert decide(schedule, schedule.due - 0.001, START).planned == ()
        decision = decide(schedule, schedule.due, START)
        assert slots_of(decision.planned) == [START + 60 * number]
        schedule = decision.schedule
    assert all(0 <= delay < 30 for delay in delays)
    assert len(set(delays)) > 30
    assert new("every 60s", jitter=30.0).due == START + 60 + delays[0]


@settings(max_examples=60, deadline=None)
@given(
    jitter=st.sampled_from([0.5, 5.0, 30.0]),
    stop=st.floats(1, 200),
    catch_up=st.sampled_from(CATCH_UP),
)
def test_jitter_neither_doubles_nor_reorders(jitter: float, stop: float, catch_up: str) -> None:
    watcher = Watcher(new(jitter=jitter, catch_up=catch_up))
    watcher.run(START, START + 50)
    watcher.run(START + 50 + stop, START + 400)
    assert watcher.slots == sorted(set(watcher.slots))


# ── the clock jumps ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("catch_up", "number"), [("latest", 1), ("all", 9 * 6 - 1), ("skip", 0)])
def test_nine_hours_forward(catch_up: str, number: int) -> None:
    watcher = Watcher(new("*/10 * * * *", catch_up=catch_up))
    landed = START + 9 * 3600 - 1
    watcher.watching = landed
    assert len(watcher.look(landed)) == number
    watcher.run(landed, landed + 1200)
    assert len(watcher.slots) == len(set(watcher.slots))
    assert watcher.slots[-2:] == [START + 9 * 3600, START + 9 * 3600 + 600]


def test_one_hour_back_doubles_nothing() -> None:
    watcher = Watcher(new("*/10 * * * *"))
    watcher.run(START, START + 7200)
    before = list(watcher.slots)
    watcher.schedule = aimed(watcher.schedule, START + 3600, START + 3600)
    assert watcher.schedule.slot == START + 7800
    watcher.run(START + 3600, START + 7800)
    assert watcher.slots == [*before, START + 7800]


def test_back_to_a_time_before_the_schedule_was_made_fires_what_never_ran() -> None:
    watcher = Watcher(new("*/10 * * * *"))
    watcher.run(START, START + 1200)
    watcher.schedule = aimed(watcher.schedule, START - 3600, START - 3600)
    watcher.run(START - 3600, START + 1800)
    assert sorted(watcher.slots) == [START + 600 * number for number in range(-5, 4)]
    assert len(watcher.slots) == len(set(watcher.slots))


def test_slots_left_out_by_a_wrong_jump_forward_run_when_the_clock_is_right_again() -> None:
    watcher = Watcher(new("*/10 * * * *"))
    watcher.run(START, START + 1200)
    watcher.run(START + 36_000, START + 36_000)  # ten hours ahead by mistake: one run
    assert watcher.slots[2:] == [START + 36_000]
    watcher.schedule = aimed(watcher.schedule, START + 1300, START + 1300)
    watcher.run(START + 1300, START + 37_200)
    assert sorted(watcher.slots) == [START + 600 * number for number in range(1, 63)]
    assert len(watcher.slots) == len(set(watcher.slots))


# ── whatever happens ─────────────────────────────────────────────────────────────────────────────────────

triggers = st.sampled_from(["every 7s", "every 0.5s", "* * * * * *", "*/10 * * * * *", "* * * * *", "0 * * * * 1-5"])
waits = st.lists(st.tuples(st.floats(0.01, 90), st.booleans(), st.booleans()), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(trigger=triggers, steps=waits, overlap=st.sampled_from(OVERLAP))
def test_each_slot_at_most_once_and_none_missed_where_all_are_caught_up(
    trigger: str, steps: Sequence[tuple[float, bool, bool]], overlap: str
) -> None:
    """Consumers come and go, look late, and are killed: ``lost`` decisions reach no storage and are made again."""
    schedule = new(trigger, catch_up="all", overlap=overlap)
    watcher, now, lost = Watcher(schedule), START, 0
    for wait, restarted, dies in steps:
        now += wait
        watcher.watching = now if restarted else watcher.watching
        if dies and watcher.schedule.due is not None and watcher.schedule.due <= now:
            lost += len(decide(watcher.schedule, now, watcher.watching or now).planned)
        watcher.look(now)
    expected = [one.timestamp() for one in _until(parsed(schedule.trigger), now)]
    assert watcher.slots == expected
    assert watcher.schedule.runs == len(expected)


@settings(max_examples=150, deadline=None)
@given(
    trigger=triggers,
    steps=st.lists(
        st.one_of(st.tuples(st.just("run"), st.floats(0.1, 60)), st.tuples(st.just("jump"), st.floats(-300, 300))),
        max_size=14,
    ),
    catch_up=st.sampled_from(CATCH_UP),
)
def test_no_slot_twice_wherever_the_clock_jumps(
    trigger: str, steps: Sequence[tuple[str, float]], catch_up: str
) -> None:
    watcher, now = Watcher(new(trigger, catch_up=catch_up)), START
    for step, seconds in steps:
        if step == "run":
            watcher.run(now, now + seconds)
            now += seconds
            continue
        now += seconds
        if seconds < 0:
            watcher.schedule = aimed(watcher.schedule, now, now)
        watcher.watching = now
        watcher.look(now)
    assert len(watcher.slots) == len(set(watcher.slots))


def _until(trigger: Trigger, end: float) -> Iterable[datetime]:
    found = trigger.next(moment(START))
    while found is not None and found.timestamp() <= end:
        yield found
        found = trigger.next(found)


# ── boots ────────────────────────────────────────────────────────────────────────────────────────────────


def test_at_each_boot_once() -> None:
    schedule = new("@reboot")
    assert (schedule.boot, schedule.due, schedule.state) == ("", None, "active")
    first = decide(schedule, START + 5, START, boot="A")
    assert slots_of(first.planned) == [START + 5]
    assert decide(first.schedule, START + 6, START, boot="A").planned == ()
    assert slots_of(decide(first.schedule, START + 7, START, boot="B").planned) == [START + 7]


def test_at_each_boot_and_at_times() -> None:
    schedule = new("@reboot | every 10s")
    first = decide(schedule, START + 5, START, boot="A")
    assert first.schedule.due == START + 10
    assert slots_of(decide(first.schedule, START + 10, START, boot="A").planned) == [START + 10]


# ── jobs, previews, garbage ──────────────────────────────────────────────────────────────────────────────


def test_the_job_of_a_slot_carries_it() -> None:
    schedule = new(queue="q", priority=3, options='{"retries":2}', expires=60.0, payload=b"p")
    job = job_of(schedule, Planned(START + 10, False), None, START + 12)
    assert (job.id, job.state, job.queue, job.priority) == ("s@2026-03-01T12:00:10Z", JobState.READY, "q", 3)
    assert (job.slot, job.schedule) == (moment(START + 10), "s")
    assert (job.created, job.expires, job.due) == (START + 12, START + 72, None)
    follower = job_of(schedule, Planned(START + 20, True), job.id, START + 20)
    assert (follower.state, follower.reason) == (JobState.BLOCKED, f"after job {job.id}")


def test_slots_of_a_fraction_of_a_second_have_ids_of_their_own() -> None:
    assert slot_id("s", START + 0.5) == "s@2026-03-01T12:00:00.500000Z"


def test_a_preview_shows_the_local_time() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    trigger = crontab("30 2 * * *", timezone="Europe/Berlin")
    at = datetime(2026, 3, 28, 12, tzinfo=berlin).timestamp()
    found = list(islice(upcoming(new(trigger, at), at, UTC), 2))
    assert [one.isoformat() for one in found] == ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]


@pytest.mark.parametrize("jitter", [0.0, 5.0, 60.0])
def test_a_preview_shows_when_each_slot_will_be_fired_however_wide_the_jitter(jitter: float) -> None:
    watcher = Watcher(new(jitter=jitter, overlap="allow"))
    watcher.run(START, START + 100)  # on the way, as a schedule mostly is
    shown = list(islice(upcoming(watcher.schedule, START + 100, UTC), 30))
    fired: list[datetime] = []
    while len(fired) < len(shown):
        now = watcher.schedule.due
        assert now is not None
        fired += [moment(now)] * len(watcher.look(now))
    assert shown == fired[: len(shown)]
    assert shown == sorted(shown)
    assert shown[0] > moment(START + 100)


def test_a_preview_ends_with_the_schedule() -> None:
    schedule = new(max_runs=2)
    assert len(list(islice(upcoming(schedule, START, UTC), 10))) == 2
    assert list(upcoming(new(end=START + 15), START, UTC)) == [moment(START + 10)]


@pytest.mark.parametrize(
    ("field", "value"), [("trigger", "every nonsense"), ("ran", "{"), ("catch_up", "never"), ("overlap", "")]
)
def test_what_cannot_be_read_is_an_error_and_nothing_else(field: str, value: str) -> None:
    with pytest.raises((TriggerError, ConfigurationError, ValueError)):
        decide(new()._replace(**{field: value}), START + 10, START)


def test_a_grid_is_counted_from_when_the_schedule_was_made() -> None:
    assert new(every(timedelta(minutes=1)), START + 12.5).slot == START + 72.5
