"""What `liteq.storage.base` promises about schedules; part of the contract in ``contract.py``, with its fixtures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from liteq import lifecycle
from liteq.errors import StorageError
from liteq.job import FINISHED, Ending, Job, JobFilter, JobState, Outcome
from liteq.lifecycle import Policy
from liteq.schedule import Schedule
from liteq.storage.base import ClaimRequest, Fire, Storage
from liteq.storage.watch import Change

NOW = 1_700_000_000.25
CONSUMERS = 6


def schedule(name: str = "s", **fields: Any) -> Schedule:
    """A schedule that is due now."""
    return Schedule(name, "task", "every 10s", created=NOW, **({"slot": NOW, "due": NOW} | fields))


def put(storage: Storage, *schedules: Schedule) -> list[Schedule]:
    """Store new ones; returns them as they stand."""
    for one in schedules:
        assert storage.put_schedule(one)
    return [storage.schedules(one.name)[0] for one in schedules]


def job(name: str = "s@1", **fields: Any) -> Job:
    return lifecycle.submit(Job(0, name, "task", JobState.READY, **fields), NOW)


def fired(standing: Schedule, *jobs: Job) -> Fire:
    """The next state of a schedule, ten seconds on, with the jobs of its slot."""
    return Fire(standing._replace(slot=NOW + 10, due=NOW + 10, runs=standing.runs + len(jobs)), jobs)


def run_to_an_end(storage: Storage, ending: Ending) -> Job:
    """Claim the one job that is ready, and settle it."""
    owner = storage.register({})
    (claimed,) = storage.turn([], ClaimRequest(owner, 1), NOW + 1).jobs
    outcome = Outcome(claimed.seq, claimed.claim, ending, NOW + 1, NOW + 2, b"", "E" if ending != "succeeded" else "")
    assert storage.apply([lifecycle.decide(claimed, Policy(), outcome, NOW + 2)], NOW + 2) == [True]
    return claimed


class ScheduleContract:
    # ── keeping ──────────────────────────────────────────────────────────────────────────────────────

    def test_a_schedule_is_kept_to_the_last_field(self, storage: Storage, reopen: Callable[[], Storage]) -> None:
        told = Schedule(
            "ü 🐇",
            "task",
            "0 3 * * * in Europe/Berlin",
            b"\0\xff",
            "words",
            "queue",
            -3,
            '{"retries":2}',
            60.5,
            "all",
            "queue",
            5.25,
            1.5,
            NOW - 1,
            NOW + 1e6,
            7,
            '{"trigger":"x"}',
            True,
            True,
            True,
            NOW,
            0,
            NOW + 1,
            NOW + 2,
            NOW + 3.125,
            "boot",
            "[[1,2]]",
            4,
            2,
            NOW - 9,
            NOW - 8,
            None,
            None,
            "failed",
            NOW - 7,
        )
        (stored,) = put(storage, told)
        assert stored == told._replace(version=1)
        assert reopen().schedules() == [stored]

    def test_they_are_listed_by_name(self, storage: Storage) -> None:
        put(storage, *(schedule(name) for name in "bca"))
        assert [one.name for one in storage.schedules()] == ["a", "b", "c"]
        assert storage.schedules("nobody") == []

    def test_there_is_one_of_a_name(self, storage: Storage) -> None:
        (first,) = put(storage, schedule())
        assert not storage.put_schedule(schedule(priority=9))
        assert storage.schedules() == [first]

    def test_a_change_needs_the_version_that_stands(self, storage: Storage) -> None:
        (first,) = put(storage, schedule())
        assert storage.put_schedule(first._replace(priority=1))
        assert not storage.put_schedule(first._replace(priority=2))
        (second,) = storage.schedules()
        assert (second.priority, second.version) == (1, 2)
        assert not storage.put_schedule(second._replace(name="other"))

    def test_one_that_was_dropped_and_made_anew_is_another_one(self, storage: Storage) -> None:
        (first,) = put(storage, schedule())
        assert storage.drop_schedule("s")
        assert not storage.drop_schedule("s")
        assert not storage.put_schedule(first)
        put(storage, schedule()._replace(created=NOW + 1))
        assert not storage.put_schedule(first._replace(priority=1))
        assert storage.fire([fired(first, job())]) == [None]

    def test_of_many_who_store_it_at_once_one_does(self, reopen: Callable[[], Storage]) -> None:
        storages = [reopen() for _ in range(CONSUMERS)]
        with ThreadPoolExecutor(CONSUMERS) as threads:
            answers = list(threads.map(lambda one: one.put_schedule(schedule()), storages))
        assert Counter(answers) == {True: 1, False: CONSUMERS - 1}

    def test_a_watch_tells_of_a_new_schedule(self, storage: Storage, reopen: Callable[[], Storage]) -> None:
        other = reopen()
        with storage.watch() as watch:
            watch.changed()
            put(other, schedule())
            assert watch.wait(10.0) & Change.DATA

    # ── what is due ──────────────────────────────────────────────────────────────────────────────────

    def test_those_that_are_due_come_in_the_order_of_their_instants(self, storage: Storage) -> None:
        put(storage, *(schedule(name, due=NOW + due) for name, due in (("a", 3), ("b", 1), ("c", 2), ("d", 4))))
        put(storage, schedule("never", slot=None, due=None))
        assert [one.name for one in storage.due_schedules(NOW + 3, None, 10)] == ["b", "c", "a"]
        assert [one.name for one in storage.due_schedules(NOW + 3, None, 2)] == ["b", "c"]
        assert [one.name for one in storage.due_schedules(NOW + 3, None, 10, {"c"})] == ["b", "a"]
        assert (storage.next_schedule(), storage.next_schedule({"b", "c"})) == (NOW + 1, NOW + 3)
        assert storage.next_schedule({"a", "b", "c", "d"}) is None

    def test_those_that_wait_for_a_boot_are_due_at_another_one(self, storage: Storage) -> None:
        stands_still = {"paused": True}, {"orphaned": True}, {"max_runs": 1, "runs": 1}
        put(storage, *(schedule(f"x{n}", due=None, boot="", **still) for n, still in enumerate(stands_still)))
        put(storage, schedule("new", due=None, boot=""), schedule("old", due=None, boot="B", max_runs=2, runs=1))
        put(storage, schedule("plain", due=None), schedule("both", boot=""))
        assert [one.name for one in storage.due_schedules(NOW, None, 10)] == ["both"]
        assert sorted(one.name for one in storage.due_schedules(NOW, "B", 10)) == ["both", "new"]
        assert sorted(one.name for one in storage.due_schedules(NOW, "C", 10)) == ["both", "new", "old"]
        assert len(storage.due_schedules(NOW, "C", 2)) == 2
        assert [one.name for one in storage.due_schedules(NOW, "C", 10, {"new", "both"})] == ["old"]

    # ── firing ───────────────────────────────────────────────────────────────────────────────────────

    def test_a_slot_and_its_job_are_stored_together(self, storage: Storage, reopen: Callable[[], Storage]) -> None:
        (standing,) = put(storage, schedule())
        ((stored,),) = storage.fire([fired(standing, job(queue="q", priority=2, payload=b"p"))])  # type: ignore[misc]
        (after,) = reopen().schedules()
        assert (after.due, after.runs, after.version) == (NOW + 10, 1, 2)
        assert (after.last_job, after.last_id, after.last_outcome) == (stored.seq, "s@1", "ready")
        assert reopen().get("s@1") == stored

    def test_of_many_who_fire_a_slot_one_does(self, storage: Storage, reopen: Callable[[], Storage]) -> None:
        (standing,) = put(storage, schedule())
        storages = [reopen() for _ in range(CONSUMERS)]
        with ThreadPoolExecutor(CONSUMERS) as threads:
            answers = list(threads.map(lambda one: one.fire([fired(standing, job(""))])[0], storages))
        assert sum(answer is not None for answer in answers) == 1
        assert len(storage.find(JobFilter())) == 1

    def test_each_of_several_stands_for_itself(self, storage: Storage) -> None:
        first, second = put(storage, schedule("a"), schedule("b"))
        assert storage.put_schedule(first._replace(paused=True))
        answers = storage.fire([fired(first, job("a@1")), fired(second, job("b@1"))])
        assert [answer is None for answer in answers] == [True, False]
        assert [one.id for one in storage.find(JobFilter())] == ["b@1"]

    def test_a_slot_that_has_a_job_gets_no_other_one(self, storage: Storage) -> None:
        (standing,) = put(storage, schedule())
        storage.fire([fired(standing, job("s@1"))])
        (standing,) = storage.schedules()
        (stored,) = storage.fire([fired(standing, job("s@1"), job("s@2"))])
        assert [one.id for one in stored or ()] == ["s@2"]
        assert len(storage.find(JobFilter())) == 2

    def test_a_slot_may_pass_without_a_job(self, storage: Storage) -> None:
        (standing,) = put(storage, schedule())
        assert storage.fire([fired(standing)]) == [[]]
        (after,) = storage.schedules()
        assert (after.due, after.last_job, after.last_outcome) == (NOW + 10, None, None)

    def test_a_job_may_wait_for_the_one_before(self, storage: Storage) -> None:
        (standing,) = put(storage, schedule())
        waiting = job("s@2", priority=5)._replace(state=JobState.BLOCKED, reason="after job s@1")
        (stored,) = storage.fire([fired(standing, job("s@1"), waiting)])
        assert [one.state for one in stored or ()] == [JobState.READY, JobState.BLOCKED]
        found = storage.get("s@2")
        assert found is not None
        assert (found.state, found.reason, found.claim, found.attempt) == (JobState.BLOCKED, "after job s@1", 0, 0)
        owner = storage.register({})
        assert [one.id for one in storage.turn([], ClaimRequest(owner, 9), NOW).jobs] == ["s@1"]
        assert storage.apply([lifecycle.unblock(found, NOW)], NOW) == [True]
        assert [one.id for one in storage.turn([], ClaimRequest(owner, 9), NOW).jobs] == ["s@2"]

    def test_nothing_of_a_firing_that_fails_is_stored(self, storage: Storage) -> None:
        first, second = put(storage, schedule("a"), schedule("b"))
        bad = job("b@1")._replace(queue=None)  # type: ignore[arg-type]
        try:
            storage.fire([fired(first, job("a@1")), fired(second, bad)])
        except (StorageError, TypeError):
            assert storage.find(JobFilter()) == []
            assert storage.schedules() == [first, second]

    # ── how the last run ended ───────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize(("ending", "outcome"), [(Ending.SUCCEEDED, "succeeded"), (Ending.FAILED, "failed")])
    def test_how_the_last_run_ended_is_told_also_when_its_job_is_purged(
        self, storage: Storage, ending: Ending, outcome: str
    ) -> None:
        (standing,) = put(storage, schedule())
        storage.fire([fired(standing, job())])
        run_to_an_end(storage, ending)
        (after,) = storage.schedules("s")
        assert (after.last_outcome, after.last_finished) == (outcome, NOW + 2)
        storage.add([job("other")])  # so that the last job is not the newest of all
        assert storage.remove(JobFilter(states=FINISHED)) == 1
        (after,) = storage.schedules()
        assert (after.last_outcome, after.last_finished, after.last_id) == (outcome, NOW + 2, "s@1")

    def test_where_the_last_run_stands_is_told_while_it_has_not_ended(self, storage: Storage) -> None:
        (standing,) = put(storage, schedule())
        ((stored,),) = storage.fire([fired(standing, job())])  # type: ignore[misc]

        def outcome() -> str | None:
            return storage.schedules()[0].last_outcome

        assert outcome() == "ready"
        storage.apply([lifecycle.reschedule(stored, NOW + 60, NOW)], NOW)  # type: ignore[list-item]
        assert outcome() == "scheduled"
        owner = storage.register({})
        storage.turn([], ClaimRequest(owner, 1), NOW + 61)
        assert outcome() == "running"
