"""What storages promise about unique keys, as tests that every storage passes; a part of ``contract.py``'s suite."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from liteq import gates, lifecycle
from liteq.errors import ConfigurationError, DuplicateJob
from liteq.job import Ending, Job, JobFilter, JobState, Outcome, origin_text
from liteq.lifecycle import Policy, Transition
from liteq.plan import Edge, Inputs, Plan, Rule, Terms
from liteq.schedule import Schedule
from liteq.storage.base import Added, ClaimRequest, Fire, Rival, Storage
from liteq.unique import Unique

NOW = 1_700_000_000.25

KEY = Unique("k")
REPLACE = Unique("k", on_duplicate="replace")
RAISE = Unique("k", on_duplicate="raise")
WAITING = Unique("k", "waiting")
DEBOUNCE = Unique("k", "active", "replace", 10.0, 25.0)


def keys_hold(path: Path) -> None:
    """What must hold of the keys in a SQLite file in which no job expires, whatever happened to its writers."""
    with closing(sqlite3.connect(path)) as connection:
        [unfinished] = connection.execute(_HELD_WRONGLY)
        assert unfinished == (0, 0, 0), "unfinished jobs of a key: beside each other, unknown to it, or with no end"


_HELD_WRONGLY = """
WITH waiting AS (
    SELECT j.id, j.ukey AS key, j.task, b.reason LIKE '% of its unique key' AS follows
    FROM liteq_job j LEFT JOIN liteq_blocked b ON b.id = j.id
    WHERE j.ukey IS NOT NULL AND j.id NOT IN (SELECT id FROM liteq_done)
), held AS (SELECT key, task, job FROM liteq_unique UNION SELECT key, task, after FROM liteq_unique)
SELECT
    (SELECT count(*) FROM (SELECT 1 FROM waiting WHERE follows IS NOT 1 GROUP BY key, task HAVING count(*) > 1)),
    (SELECT count(*) FROM waiting w WHERE NOT EXISTS
        (SELECT 1 FROM held h WHERE h.key = w.key AND h.task = w.task AND h.job = w.id)),
    (SELECT count(*) FROM waiting w WHERE follows = 1 AND NOT EXISTS
        (SELECT 1 FROM liteq_unique u WHERE u.job = w.id AND u.after IS NOT NULL))
"""


class Desk:
    """A storage, one consumer of it, a clock, and the words that these tests are written in."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.owner = storage.register({})
        self.now = NOW

    def new(self, unique: Unique | None = KEY, task: str = "t", **fields: Any) -> Job:
        if unique is not None and unique.debounce is not None:
            fields["due"] = self.now + unique.debounce
        return lifecycle.submit(Job(0, fields.pop("id", ""), task, JobState.READY, unique=unique, **fields), self.now)

    def put(self, *jobs: Job, plan: Plan | None = None) -> Added:
        return self.storage.add(jobs, plan=plan)

    def behind(self, *priors: Job, **fields: Any) -> Job:
        """A job that replaces, or is new, and waits for these, whose results it is passed."""
        edges = tuple(Edge(0, prior.seq, Rule.SUCCESS, True) for prior in priors)
        return self.put(self.new(REPLACE, **fields), plan=Plan(edges, {0: Terms(f"[{len(priors)}]")}))[0]

    def add(self, unique: Unique | None = KEY, task: str = "t", **fields: Any) -> Job:
        """A job that is expected to be new."""
        added = self.put(self.new(unique, task, **fields))
        assert added.known == set()
        assert self.look(added[0]) == added[0]
        return added[0]

    def meet(self, unique: Unique | None = KEY, task: str = "t", **fields: Any) -> Job:
        """A job that is expected to meet another one, which is the answer."""
        added = self.put(self.new(unique, task, **fields))
        assert added.known == {0}
        assert self.look(added[0]) == added[0]
        return added[0]

    def look(self, job: Job) -> Job:
        found = self.storage.get(job.id)
        assert found is not None
        return found

    def state(self, job: Job) -> JobState:
        return self.look(job).state

    def claim(self, *moves: Transition, wanted: int = 100) -> list[Job]:
        return self.storage.turn(moves, ClaimRequest(self.owner, wanted), self.now).jobs

    def run(self, **fields: Any) -> Job:
        """A job of the key that runs."""
        job = self.add(**fields)
        assert [one.seq for one in self.claim()] == [job.seq]
        return self.look(job)

    def ended(
        self, job: Job, ending: Ending = Ending.SUCCEEDED, policy: Policy | None = None, **told: Any
    ) -> Transition:
        outcome = Outcome(job.seq, job.claim, ending, self.now, self.now, **told)
        return lifecycle.decide(job, policy or Policy(), outcome, self.now)

    def end(self, job: Job, ending: Ending = Ending.SUCCEEDED, policy: Policy | None = None, **told: Any) -> None:
        assert self.storage.apply([self.ended(job, ending, policy, **told)], self.now) == [True]

    def change(self, job: Job, rule: Callable[[Job, float], Transition | None]) -> bool:
        transition = rule(self.look(job), self.now)
        assert transition is not None
        return self.storage.apply([transition], self.now) == [True]

    def states(self) -> dict[int, JobState]:
        return {job.seq: job.state for job in self.storage.find(JobFilter())}


class UniqueContract:
    """See the module; the fixtures are those of ``StorageContract``."""

    @pytest.fixture
    def desk(self, storage: Storage) -> Desk:
        return Desk(storage)

    # ── the key is held ──────────────────────────────────────────────────────────────────────────────

    def test_a_second_job_of_a_key_is_the_first_one(self, desk: Desk) -> None:
        first = desk.add(payload=b"1")
        assert desk.meet(payload=b"2", priority=5) == first
        assert desk.storage.counts()[JobState.READY] == 1

    def test_other_keys_other_tasks_and_jobs_without_a_key_are_not_concerned(self, desk: Desk) -> None:
        desk.add()
        desk.add(Unique("K"))
        desk.add(task="u")
        desk.add(None)
        desk.add(None)

    def test_a_running_job_holds_its_key(self, desk: Desk) -> None:
        running = desk.run()
        assert desk.meet() == running

    @pytest.mark.parametrize("ending", Ending)
    def test_a_key_is_free_once_its_job_has_ended_and_not_before(self, desk: Desk, ending: Ending) -> None:
        running = desk.run()
        desk.end(running, ending)
        job = desk.look(running)
        if job.state in (JobState.SUCCEEDED, JobState.FAILED, JobState.REVOKED):
            assert desk.add().seq == 2
        else:
            assert desk.meet() == job

    def test_a_retry_keeps_the_key(self, desk: Desk) -> None:
        running = desk.run()
        desk.end(running, Ending.FAILED, Policy(retries=1), delay=60.0)
        assert desk.meet().state is JobState.SCHEDULED

    @pytest.mark.parametrize("rule", [lifecycle.revoke, lifecycle.expire])
    def test_a_job_that_ends_unrun_frees_its_key(self, desk: Desk, rule: Callable[..., Transition | None]) -> None:
        first = desk.add(expires=NOW + 1)
        desk.now += 5
        assert desk.change(first, rule)
        assert desk.add().seq == 2

    def test_a_deleted_job_frees_its_key(self, desk: Desk) -> None:
        for _ in range(3):  # the newest row of all is a matter of its own
            job = desk.run()
            desk.end(job)
            assert desk.storage.remove(JobFilter()) == 1
            assert desk.storage.get(job.id) is None

    def test_a_job_that_nobody_will_run_any_more_does_not_hold_its_key(self, desk: Desk) -> None:
        desk.add(expires=NOW + 1)
        desk.now += 1
        assert desk.add().seq == 2
        assert desk.meet().seq == 2

    def test_nothing_of_a_call_is_stored_if_one_job_may_not_be(self, desk: Desk) -> None:
        first = desk.add()
        with pytest.raises(DuplicateJob) as caught:
            desk.put(desk.new(Unique("other")), desk.new(None), desk.new(RAISE))
        error = caught.value
        assert (error.task, error.key, error.job_id, error.again) == ("t", "k", first.id, None)
        assert desk.states() == {1: JobState.READY}
        desk.add(Unique("other"))

    def test_jobs_of_one_call_meet_each_other(self, desk: Desk) -> None:
        added = desk.put(desk.new(payload=b"1"), desk.new(None), desk.new(payload=b"2"), desk.new(Unique("l")))
        assert [job.seq for job in added] == [1, 2, 1, 3]
        assert (added.known, added[2].payload) == ({2}, b"1")
        added = desk.put(desk.new(REPLACE, payload=b"3"), desk.new(RAISE._replace(key="m")), desk.new(REPLACE))
        assert ([job.seq for job in added], added.known) == ([1, 4, 1], {0, 2})
        with pytest.raises(DuplicateJob):
            desk.put(desk.new(Unique("n", on_duplicate="raise")), desk.new(Unique("n", on_duplicate="raise")))
        assert len(desk.states()) == 4

    def test_an_id_comes_before_the_key(self, desk: Desk) -> None:
        first = desk.add(id="x")
        assert desk.meet(Unique("other"), id="x") == first
        assert desk.meet(id="y") == first
        assert desk.storage.get("y") is None
        assert desk.add(Unique("other"), id="y").id == "y"

    @pytest.mark.parametrize("key", ["", "a\0b", "ünïcødé 🐇", "'; DROP TABLE liteq_unique; --", "x" * 200])
    def test_any_text_is_a_key(self, desk: Desk, key: str) -> None:
        assert desk.add(Unique(key)) == desk.meet(Unique(key))

    # ── waiting jobs only ────────────────────────────────────────────────────────────────────────────

    def test_of_waiting_jobs_only_one_that_runs_is_no_obstacle(self, desk: Desk) -> None:
        desk.add(WAITING)
        desk.meet(WAITING)
        desk.claim()
        following = desk.add(WAITING)
        assert following.state is JobState.READY
        assert desk.meet(WAITING) == following
        assert len(desk.claim()) == 1

    def test_a_job_that_is_given_back_holds_its_key_again_if_nobody_else_does(self, desk: Desk) -> None:
        running = desk.run(unique=WAITING)
        desk.end(running, Ending.INTERRUPTED)
        assert desk.meet(WAITING).seq == running.seq

    # ── replacing ────────────────────────────────────────────────────────────────────────────────────

    def test_a_waiting_job_takes_over_what_the_new_one_says(self, desk: Desk) -> None:
        first = desk.add(payload=b"1", priority=1, queue="a", options='{"retries":1}', summary="one", expires=NOW + 9)
        desk.now += 1
        changed = desk.meet(REPLACE, payload=b"2", priority=-1, queue="b", summary="two", due=NOW + 60)
        assert (changed.seq, changed.id, changed.created) == (first.seq, first.id, first.created)
        assert (changed.payload, changed.priority, changed.queue, changed.options) == (b"2", -1, "b", None)
        assert (changed.summary, changed.expires, changed.due) == ("two", None, NOW + 60)
        assert changed.state is JobState.SCHEDULED
        assert desk.storage.next_due() == NOW + 60
        assert (desk.storage.queues(), desk.storage.next_expiry(0.0)) == ({}, None)

    def test_a_replaced_job_keeps_its_place_in_line(self, desk: Desk) -> None:
        desk.add(payload=b"1")
        desk.add(None)
        desk.meet(REPLACE, payload=b"2")
        assert [(job.seq, job.payload) for job in desk.claim()] == [(1, b"2"), (2, b"")]

    def test_a_scheduled_job_becomes_ready_where_the_new_one_is(self, desk: Desk) -> None:
        desk.add(due=NOW + 60)
        assert desk.meet(REPLACE).state is JobState.READY
        assert (desk.storage.next_due(), len(desk.claim())) == (None, 1)

    def test_what_was_tried_before_is_history_and_the_allowance_is_new(self, desk: Desk) -> None:
        running = desk.run()
        desk.end(running, Ending.CRASHED, Policy(retries=3), delay=60.0)
        assert desk.look(running).crashes == 1
        changed = desk.meet(REPLACE, payload=b"2")
        assert (changed.attempt, changed.base, changed.crashes, len(changed.attempts)) == (1, 1, 0, 1)

    def test_a_job_at_a_full_gate_leaves_the_line(self, desk: Desk) -> None:
        needs = {"t": lambda job: (gates.limit("t", 1, job.summary),)}
        request = ClaimRequest(desk.owner, 100)._replace(needs=needs)
        desk.put(desk.new(None, summary="x"), desk.new(KEY, summary="x"), desk.new(Unique("l"), summary="x"))
        assert len(desk.storage.turn([], request, desk.now).jobs) == 1
        assert desk.meet(REPLACE, summary="y").state is JobState.READY
        assert [job.seq for job in desk.storage.turn([], request, desk.now).jobs] == [2]
        assert [(gate.name, gate.waiting) for gate in desk.storage.gates.states()] == [
            ("limit:t[x]", 1),
            ("limit:t[y]", 0),
        ]

    def test_a_job_whose_task_nobody_knows_stays_blocked(self, desk: Desk) -> None:
        desk.end(desk.run(), Ending.UNKNOWN)
        changed = desk.meet(REPLACE, payload=b"2")
        assert (changed.state, changed.payload, changed.reason) == (JobState.BLOCKED, b"2", "unknown task: t")

    def test_a_revocation_that_came_too_late_for_the_old_call_does_not_strike_the_new_one(self, desk: Desk) -> None:
        first = desk.add()
        assert desk.storage.swap(lifecycle.cancel_mark(first), None, "stop")
        desk.meet(REPLACE)
        assert desk.storage.marks() == {}

    def test_nor_does_one_of_a_job_that_was_new_in_the_same_call(self, desk: Desk) -> None:
        assert desk.storage.swap(f"{lifecycle.CANCEL_MARK}1", None, "stop")
        desk.put(desk.new(), desk.new(REPLACE))
        assert desk.storage.marks() == {}

    # ── replaced, and waiting for others ─────────────────────────────────────────────────────────────

    def test_a_replaced_job_waits_for_what_the_new_call_waits_for(self, desk: Desk) -> None:
        job = desk.add(payload=b"old")
        other, prior = desk.add(None), desk.add(None)
        replaced = desk.behind(prior, payload=b"new")
        assert replaced.seq == job.seq
        assert replaced.reason == f"waits until job {prior.id} has ended"
        assert desk.look(job) == replaced
        assert {one.seq for one in desk.claim()} == {other.seq, prior.seq}
        desk.end(desk.look(other))
        assert desk.state(job) is JobState.BLOCKED
        desk.end(desk.look(prior), result=b"1")
        [claimed] = desk.claim()
        assert (claimed.seq, claimed.payload, claimed.inputs) == (job.seq, b"new", Inputs("[1]", (b"1",)))

    def test_a_job_that_waited_for_others_waits_for_them_no_more_and_is_passed_nothing_of_theirs(
        self, desk: Desk
    ) -> None:
        first, second = desk.add(None), desk.add(None)
        job = desk.behind(first, payload=b"old")
        assert job.state is JobState.BLOCKED
        assert desk.meet(REPLACE, payload=b"direct").state is JobState.READY
        claimed = {one.seq: one for one in desk.claim()}
        assert (claimed[job.seq].payload, claimed[job.seq].inputs) == (b"direct", None)
        assert desk.storage.plans.prerequisites(job.seq) == []
        desk.end(claimed[job.seq])
        desk.end(claimed[first.seq])
        last = desk.behind(first, second, payload=b"last")
        assert desk.behind(second, payload=b"very last").seq == last.seq
        desk.end(claimed[second.seq], result=b"2")
        [claimed_last] = desk.claim()
        assert (claimed_last.payload, claimed_last.inputs) == (b"very last", Inputs("[1]", (b"2",)))

    def test_what_was_waited_for_before_strikes_a_replaced_job_no_more(self, desk: Desk) -> None:
        prior = desk.add(None)
        job = desk.behind(prior)
        desk.meet(REPLACE)
        assert desk.change(prior, lifecycle.revoke)
        assert desk.state(job) is JobState.READY
        desk.change(prior, lifecycle.restore)
        assert desk.state(job) is JobState.READY

    def test_what_has_ended_badly_ends_the_job_that_is_replaced_to_wait_for_it(self, desk: Desk) -> None:
        job, prior = desk.add(), desk.add(None)
        assert desk.change(prior, lifecycle.revoke)
        assert desk.behind(prior).state is JobState.REVOKED
        assert desk.state(job) is JobState.REVOKED

    def test_a_job_that_was_tried_before_waits_with_its_history(self, desk: Desk) -> None:
        job = desk.run()
        desk.end(desk.look(job), Ending.FAILED, Policy(retries=3), error_type="ValueError")
        [running] = desk.claim()
        desk.end(running, Ending.FAILED, Policy(retries=3), error_type="ValueError")
        prior = desk.add(None)
        standing = desk.look(job)
        replaced = desk.behind(prior)
        assert (replaced.state, replaced.claim, replaced.attempt) == (JobState.BLOCKED, 2, 2)
        assert replaced.attempts == standing.attempts
        desk.claim()
        desk.end(desk.look(prior))
        [claimed] = desk.claim()
        assert (claimed.seq, claimed.claim, claimed.attempt) == (job.seq, 3, 3)

    def test_who_waits_for_a_replaced_job_goes_on_waiting(self, desk: Desk) -> None:
        job = desk.add()
        [after] = desk.put(desk.new(None), plan=Plan((Edge(0, job.seq, Rule.SUCCESS, True),), {0: Terms("[1]")}))
        prior = desk.add(None)
        desk.behind(prior)
        desk.claim()
        desk.end(desk.look(prior), result=b"1")
        [claimed] = desk.claim()
        desk.end(claimed, result=b"2")
        [last] = desk.claim()
        assert (last.seq, last.inputs) == (after.seq, Inputs("[1]", (b"2",)))

    def test_one_that_would_wait_for_itself_is_refused_and_nothing_is_stored(self, desk: Desk) -> None:
        job = desk.add(payload=b"old")
        [after] = desk.put(desk.new(None), plan=Plan((Edge(0, job.seq),), {0: Terms()}))
        before = desk.storage.find(JobFilter())
        plan = Plan((Edge(1, ~0), Edge(0, after.seq)), {0: Terms(), 1: Terms()})
        with pytest.raises(ConfigurationError, match=f"replaces job {job.id}, .* would wait for itself"):
            desk.put(desk.new(None), desk.new(REPLACE, payload=b"new"), plan=plan)
        assert desk.storage.find(JobFilter()) == before
        assert desk.look(job).payload == b"old"
        assert [link.seq for link in desk.storage.plans.prerequisites(after.seq)] == [job.seq]
        with pytest.raises(ConfigurationError, match="would wait for itself"):
            desk.behind(job)

    def test_of_calls_that_are_stored_together_the_last_one_says_what_is_waited_for(self, desk: Desk) -> None:
        one, two = desk.add(None), desk.add(None)
        plan = Plan((Edge(0, one.seq), Edge(2, two.seq, Rule.SUCCESS, True)), {0: Terms(), 2: Terms("[1]")})
        added = desk.put(desk.new(REPLACE, payload=b"1"), desk.new(None), desk.new(REPLACE, payload=b"3"), plan=plan)
        assert (added.known, added.replaced, added.own) == ({2}, {2}, {1, 2})
        job = desk.look(added[2])
        assert (job.seq, job.reason) == (added[0].seq, f"waits until job {two.id} has ended")
        assert [link.seq for link in desk.storage.plans.prerequisites(job.seq)] == [two.seq]
        free = desk.put(desk.new(REPLACE), desk.new(None), plan=Plan((Edge(1, one.seq),), {1: Terms()}))
        assert (free[0].seq, desk.state(job)) == (job.seq, JobState.READY)

    def test_one_that_is_replaced_and_then_put_off_in_one_call_stands_in_one_place(self, desk: Desk) -> None:
        prior = desk.add(None)
        put_off = Unique("k", "active", "return", 10.0)
        plan = Plan((Edge(1, prior.seq),), {1: Terms()})
        added = desk.put(desk.new(REPLACE), desk.new(REPLACE), desk.new(put_off), plan=plan)
        assert desk.look(added[0]).state is JobState.BLOCKED
        assert desk.storage.counts()[JobState.SCHEDULED] == 0
        desk.claim()
        desk.end(desk.look(prior))
        assert desk.look(added[0]).state is JobState.SCHEDULED
        assert desk.storage.counts()[JobState.BLOCKED] == 0

    def test_a_follower_that_is_replaced_waits_for_both(self, desk: Desk) -> None:
        running = desk.run(unique=REPLACE)
        follower = desk.put(desk.new(REPLACE))[0]
        prior = desk.add(None)
        assert desk.behind(prior).seq == follower.seq
        desk.end(running)
        assert desk.look(follower).reason == f"waits until job {prior.id} has ended"
        desk.claim()
        desk.end(desk.look(prior), result=b"1")
        assert [one.inputs for one in desk.claim()] == [Inputs("[1]", (b"1",))]

    def test_an_answer_waits_for_nothing_new(self, desk: Desk) -> None:
        job, prior = desk.add(), desk.add(None)
        added = desk.put(desk.new(KEY), plan=Plan((Edge(0, prior.seq, Rule.SUCCESS, True),), {0: Terms("[1]")}))
        assert (added[0].seq, added.known, added.replaced) == (job.seq, {0}, set())
        assert desk.state(job) is JobState.READY
        assert desk.storage.plans.prerequisites(job.seq) == []

    # ── following ────────────────────────────────────────────────────────────────────────────────────

    def test_a_running_job_is_followed_by_one_that_waits_for_its_end(self, desk: Desk) -> None:
        running = desk.run()
        follower = desk.add(REPLACE, payload=b"2")
        assert follower.state is JobState.BLOCKED
        assert follower.reason == f"follows job {running.id} of its unique key"
        assert desk.claim() == []
        assert [job.seq for job in desk.claim(desk.ended(running))] == [follower.seq]

    def test_further_ones_replace_the_one_that_follows(self, desk: Desk) -> None:
        desk.run()
        follower = desk.add(REPLACE, payload=b"2")
        changed = desk.meet(REPLACE, payload=b"3")
        assert (changed.seq, changed.state, changed.payload) == (follower.seq, JobState.BLOCKED, b"3")
        assert desk.meet(KEY, payload=b"4") == changed

    @pytest.mark.parametrize("ending", [Ending.FAILED, Ending.GAVE_UP, Ending.CANCELLED])
    def test_however_the_running_one_ends_its_follower_goes_on(self, desk: Desk, ending: Ending) -> None:
        running = desk.run()
        follower = desk.add(REPLACE)
        desk.end(running, ending)
        assert desk.state(follower) is JobState.READY

    def test_a_success_in_the_short_form_lets_the_follower_go_on(self, desk: Desk) -> None:
        running = desk.run()
        follower = desk.add(REPLACE)
        outcome = Outcome(running.seq, running.claim, Ending.SUCCEEDED, NOW, NOW, b"5")
        turn = desk.storage.turn(
            [], ClaimRequest(desk.owner, 9), desk.now, successes=[lifecycle.succeed(running, outcome)]
        )
        assert [job.seq for job in turn.jobs] == [follower.seq]

    def test_a_follower_waits_for_retries_too(self, desk: Desk) -> None:
        running = desk.run()
        follower = desk.add(REPLACE)
        desk.end(running, Ending.FAILED, Policy(retries=1))
        assert desk.state(follower) is JobState.BLOCKED
        [again] = desk.claim()
        assert again.seq == running.seq
        desk.end(again)
        assert desk.state(follower) is JobState.READY

    def test_a_follower_that_is_not_due_yet_becomes_scheduled(self, desk: Desk) -> None:
        running = desk.run()
        follower = desk.add(REPLACE, due=NOW + 60)
        assert (follower.state, desk.storage.next_due()) == (JobState.BLOCKED, None)
        desk.end(running)
        assert (desk.state(follower), desk.storage.next_due()) == (JobState.SCHEDULED, NOW + 60)

    @pytest.mark.parametrize("rule", [lifecycle.revoke, lifecycle.expire])
    def test_where_the_follower_ends_first_the_running_one_has_its_key_back(
        self, desk: Desk, rule: Callable[..., Transition | None]
    ) -> None:
        running = desk.run()
        follower = desk.add(REPLACE, expires=NOW + 1)
        desk.now += 5
        assert desk.change(follower, rule)
        assert desk.storage.remove(JobFilter()) == 1
        assert desk.meet().seq == running.seq
        another = desk.add(REPLACE)
        assert another.state is JobState.BLOCKED
        desk.end(running)
        assert desk.state(another) is JobState.READY

    def test_instead_of_a_follower_that_will_never_run_another_one_follows(self, desk: Desk) -> None:
        running = desk.run()
        expired = desk.add(REPLACE, expires=NOW + 1)
        desk.now += 5
        follower = desk.add(REPLACE)
        assert follower.state is JobState.BLOCKED
        assert desk.change(expired, lifecycle.expire)
        desk.end(running)
        assert desk.state(follower) is JobState.READY

    def test_a_running_job_that_was_revoked_is_followed_whatever_the_new_one_says(self, desk: Desk) -> None:
        running = desk.run()
        assert desk.storage.swap(lifecycle.cancel_mark(running), None, "tell")
        assert desk.add(RAISE).state is JobState.BLOCKED

    # ── debouncing ───────────────────────────────────────────────────────────────────────────────────

    def test_each_call_puts_the_waiting_job_off_and_the_newest_arguments_win(self, desk: Desk) -> None:
        first = desk.add(DEBOUNCE, payload=b"1")
        assert (first.state, first.due) == (JobState.SCHEDULED, NOW + 10)
        desk.now += 8
        changed = desk.meet(DEBOUNCE, payload=b"2")
        assert (changed.seq, changed.due, changed.payload) == (first.seq, NOW + 18, b"2")

    def test_a_job_is_not_put_off_for_ever(self, desk: Desk) -> None:
        desk.add(DEBOUNCE)
        desk.now += 9
        desk.meet(DEBOUNCE)
        desk.now += 9
        assert desk.meet(DEBOUNCE).due == NOW + 25
        desk.now += 12
        assert desk.meet(DEBOUNCE).state is JobState.READY

    def test_the_first_arguments_may_win_instead(self, desk: Desk) -> None:
        desk.add(DEBOUNCE, payload=b"1")
        desk.now += 8
        changed = desk.meet(DEBOUNCE._replace(on_duplicate="return"), payload=b"2")
        assert (changed.due, changed.payload) == (NOW + 18, b"1")

    def test_a_job_that_is_due_and_not_begun_is_put_off_too(self, desk: Desk) -> None:
        desk.add(DEBOUNCE)
        desk.now += 11
        desk.claim(wanted=0)
        assert desk.storage.counts()[JobState.READY] == 1
        assert desk.meet(DEBOUNCE).state is JobState.SCHEDULED
        assert desk.claim() == []

    @pytest.mark.parametrize("on_duplicate", ["return", "replace"])
    def test_what_comes_while_it_runs_is_put_off_behind_it(self, desk: Desk, on_duplicate: Any) -> None:
        debounce = DEBOUNCE._replace(on_duplicate=on_duplicate)
        desk.add(debounce)
        desk.now += 11
        [running] = desk.claim()
        follower = desk.add(debounce)
        desk.now += 1
        assert desk.meet(debounce).due == NOW + 22
        desk.end(running)
        assert desk.state(follower) is JobState.SCHEDULED
        desk.now += 10
        assert [job.seq for job in desk.claim()] == [follower.seq]

    # ── coming back ──────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("ending", [Ending.SUCCEEDED, Ending.FAILED])
    def test_a_finished_job_stays_finished_while_another_one_has_its_key(self, desk: Desk, ending: Ending) -> None:
        first = desk.run()
        desk.end(first, ending)
        second = desk.add()
        finished = desk.look(first)
        assert not desk.change(first, lifecycle.requeue)
        assert desk.look(first) == finished
        assert desk.storage.rival(first.seq) == Rival("k", second.id)
        assert desk.change(second, lifecycle.revoke)
        assert desk.storage.rival(first.seq) is None
        assert desk.change(first, lifecycle.requeue)
        assert desk.meet().seq == first.seq
        assert not desk.change(second, lifecycle.restore)

    def test_a_job_that_comes_back_holds_its_key_again(self, desk: Desk) -> None:
        first = desk.add()
        assert desk.change(first, lifecycle.revoke)
        assert desk.change(first, lifecycle.restore)
        assert desk.meet().seq == first.seq
        assert desk.storage.rival(first.seq) is None

    def test_of_two_that_come_back_at_once_one_does(self, desk: Desk) -> None:
        for _ in range(2):
            desk.end(desk.run(), Ending.FAILED)
        jobs = desk.storage.find(JobFilter())
        moves = [move for job in jobs if (move := lifecycle.requeue(job, desk.now)) is not None]
        assert desk.storage.apply(moves, desk.now) == [True, False]
        assert desk.storage.rival(2) == Rival("k", jobs[0].id)

    def test_a_revoked_follower_is_not_restored_beside_the_running_one(self, desk: Desk) -> None:
        running = desk.run()
        follower = desk.add(REPLACE)
        assert desk.change(follower, lifecycle.revoke)
        assert not desk.change(follower, lifecycle.restore)
        desk.end(running)
        assert desk.change(follower, lifecycle.restore)

    def test_a_finished_job_without_a_key_and_one_that_is_unknown_have_no_rival(self, desk: Desk) -> None:
        assert desk.storage.rival(desk.add(None).seq) is None
        assert desk.storage.rival(99) is None

    # ── schedules, garbage, other ways to the same data ──────────────────────────────────────────────

    def test_a_slot_whose_key_is_held_has_no_job_of_its_own(self, desk: Desk) -> None:
        held = desk.add()
        schedule = Schedule("s", "t", "@daily", created=NOW)
        assert desk.storage.put_schedule(schedule)
        fires = [Fire(schedule._replace(version=1), [desk.new(id="s@1"), desk.new(Unique("l"), id="s@2")])]
        [[stored]] = desk.storage.fire(fires)  # type: ignore[misc]
        assert (stored.id, desk.storage.get("s@1")) == ("s@2", None)
        assert desk.meet() == held

    @pytest.mark.parametrize(
        ("keys", "runs", "last"), [("kl", 3, 20.0), ("lk", 3, 10.0), ("kk", 2, 5.0), ("lm", 4, 20.0)]
    )
    def test_a_slot_that_is_left_out_is_no_run(self, desk: Desk, keys: str, runs: int, last: float) -> None:
        desk.add()
        before = Schedule("s", "t", "@daily", created=NOW, runs=2, max_runs=4, last_slot=5.0, last_run=6.0)
        assert desk.storage.put_schedule(before)
        unmade = before._replace(version=1, slot=30.0, due=30.0)
        jobs = [
            desk.new(Unique(key), id=f"s@{slot}", options=origin_text(None, "s", slot, None))
            for key, slot in zip(keys, (10.0, 20.0), strict=True)
        ]
        used_up = unmade._replace(runs=4, slot=None, due=None, last_slot=20.0, last_run=desk.now)
        [stored] = desk.storage.fire([Fire(used_up, jobs, unmade)])
        assert stored is not None
        [after] = desk.storage.schedules("s")
        assert (after.runs, after.last_slot) == (runs, last)
        assert after.last_run == (desk.now if stored else 6.0)
        assert after.last_id == (stored[-1].id if stored else None)
        assert after.slot == (None if runs == 4 else 30.0)
        assert desk.storage.put_schedule(after._replace(paused=True))

    def test_a_slot_follows_a_running_job_of_its_key(self, desk: Desk) -> None:
        running = desk.run()
        schedule = Schedule("s", "t", "@daily", created=NOW)
        assert desk.storage.put_schedule(schedule)
        waits = desk.new(REPLACE, id="s@1")._replace(state=JobState.BLOCKED, reason="after job s@0")
        [[stored]] = desk.storage.fire([Fire(schedule._replace(version=1), [waits])])  # type: ignore[misc]
        assert stored.reason == f"follows job {running.id} of its unique key"
        desk.end(running)
        assert desk.state(stored) is JobState.READY

    def test_another_way_to_the_same_data_sees_the_same_keys(self, desk: Desk, reopen: Callable[[], Storage]) -> None:
        first = desk.add()
        other = Desk(reopen())
        assert other.meet() == first
        [running] = other.claim()
        follower = other.add(REPLACE)
        desk.end(running)
        assert desk.meet(KEY).seq == follower.seq
