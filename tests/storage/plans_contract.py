"""What `liteq.storage.plans` promises, as tests that every storage passes; a part of ``contract.py``'s suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from liteq import gates, lifecycle
from liteq.job import Ending, Job, JobFilter, JobState, Outcome
from liteq.lifecycle import Policy, Transition
from liteq.plan import Edge, Inputs, Plan, Rule, Terms
from liteq.storage.base import ClaimRequest, Storage

NOW = 1_700_000_000.25
PURGE = JobFilter(states=frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.REVOKED, JobState.EXPIRED}))


class Works:
    """A storage, one consumer of it, and the words that these tests are written in."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.owner = storage.register({})
        self.now = NOW

    def add(self, *edges: Edge, number: int = 1, terms: dict[int, Terms] | None = None, **fields: Any) -> list[Job]:
        """So many jobs; whoever has an edge is a dependent."""
        jobs = [lifecycle.submit(Job(0, "", "t", JobState.READY, **fields), self.now) for _ in range(number)]
        found = {edge.job: Terms() for edge in edges} | (terms or {})
        return self.storage.add(jobs, plan=Plan(edges, found))

    def row(self, number: int, rule: Rule = Rule.SUCCESS) -> list[Job]:
        """So many jobs, each waiting for the one before, whose result is passed."""
        edges = [Edge(position, ~(position - 1), rule, True) for position in range(1, number)]
        terms = {position: Terms("[1]") for position in range(1, number)}
        return self.add(*edges, number=number, terms=terms)

    def star(self, number: int, rule: Rule = Rule.SUCCESS) -> tuple[list[Job], Job]:
        """So many jobs, and one that waits for all of them."""
        edges = [Edge(number, ~position, rule, True) for position in range(number)]
        *members, last = self.add(*edges, number=number + 1, terms={number: Terms(f"[[{number}]]")})
        return members, last

    def claim(self, wanted: int = 1000, *moves: Transition, **options: Any) -> list[Job]:
        return self.storage.turn(moves, ClaimRequest(self.owner, wanted, **options), self.now).jobs

    def ended(self, job: Job, ending: Ending = Ending.SUCCEEDED, policy: Policy | None = None) -> Transition:
        bad = () if ending is Ending.SUCCEEDED else ("ValueError", "no", "trace")
        result = b"%d" % job.seq if ending is Ending.SUCCEEDED else None
        outcome = Outcome(job.seq, job.claim, ending, self.now, self.now, result, *bad)
        return lifecycle.decide(job, policy or Policy(), outcome, self.now)

    def end(self, job: Job, ending: Ending = Ending.SUCCEEDED, **options: Any) -> None:
        [running] = [one for one in self.storage.find(JobFilter()) if one.seq == job.seq]
        assert self.storage.apply([self.ended(running, ending, **options)], self.now) == [True]

    def do(self, rule: Any, *jobs: Job) -> list[bool]:
        moves = [rule(self.now_of(job), self.now) for job in jobs]
        assert None not in moves
        return self.storage.apply(moves, self.now)

    def now_of(self, job: Job) -> Job:
        found = self.storage.get(job.id)
        assert found is not None
        return found

    def states(self, jobs: Sequence[Job]) -> list[str]:
        return [str(self.now_of(job).state) for job in jobs]


def seqs(jobs: Sequence[Job]) -> list[int]:
    return [job.seq for job in jobs]


class PlansContract:
    """See the module; the fixtures are those of ``StorageContract``."""

    @pytest.fixture
    def works(self, storage: Storage) -> Works:
        return Works(storage)

    # ── waiting ──────────────────────────────────────────────────────────────────────────────────────

    def test_a_dependent_is_blocked_and_says_for_whom_it_waits(self, works: Works) -> None:
        members, last = works.star(3)
        assert (last.state, last.reason) == (
            JobState.BLOCKED,
            f"waits until job {members[0].id} and 2 others have ended",
        )
        assert works.now_of(last) == last
        assert works.storage.reasons("waits until") == {last.reason: 1}
        assert seqs(works.claim()) == seqs(members)

    def test_a_prerequisite_that_passes_its_result_twice_is_named_as_one(self, works: Works) -> None:
        [first, last] = works.add(Edge(1, ~0, passes=True), Edge(1, ~0, passes=True), number=2, terms={1: Terms("[2]")})
        assert last.reason == f"waits until job {first.id} has ended"
        works.claim()
        works.end(first, Ending.FAILED)
        works.do(lifecycle.requeue, first)
        assert works.now_of(last).reason == f"waits until job {first.id} has ended"
        [first] = works.claim()
        works.end(first)
        [last] = works.claim()
        assert last.inputs == Inputs("[2]", (b"1", b"1"))

    def test_a_dependent_is_claimed_by_the_turn_that_settles_its_last_prerequisite(self, works: Works) -> None:
        members, last = works.star(3)
        works.claim()
        works.end(members[1])
        works.end(members[0])
        assert works.states([last]) == ["blocked"]
        [claimed] = works.claim(10, works.ended(works.now_of(members[2])))
        assert (claimed.seq, claimed.claim, claimed.attempt) == (last.seq, 1, 1)
        assert claimed.inputs == Inputs("[[3]]", (b"1", b"2", b"3"))

    def test_settled_successes_free_dependents_too(self, works: Works) -> None:
        _, last = works.star(300)
        members = works.claim()
        outcomes = [Outcome(job.seq, job.claim, Ending.SUCCEEDED, NOW, NOW, b"x") for job in members]
        successes = [lifecycle.succeed(job, outcome) for job, outcome in zip(members, outcomes, strict=True)]
        turn = works.storage.turn([], ClaimRequest(works.owner, 5), NOW, None, successes)
        assert seqs(turn.jobs) == [last.seq]
        assert turn.jobs[0].inputs == Inputs("[[300]]", (b"x",) * 300)

    def test_a_stale_success_frees_nobody(self, works: Works) -> None:
        first, second = works.row(2)
        [running] = works.claim()
        stale = running._replace(claim=7)
        outcome = Outcome(first.seq, 7, Ending.SUCCEEDED, NOW, NOW)
        turn = works.storage.turn([], None, NOW, None, [lifecycle.succeed(stale, outcome)])
        assert turn.lost == {first.seq}
        assert works.states([second]) == ["blocked"]

    @pytest.mark.parametrize(
        "ending", [Ending.INTERRUPTED, Ending.SNOOZED, Ending.UNKNOWN, Ending.CRASHED, Ending.RETRY]
    )
    def test_an_attempt_that_is_not_the_end_frees_nobody(self, works: Works, ending: Ending) -> None:
        first, second = works.row(2)
        works.claim()
        works.end(first, ending, policy=Policy(retries=3))
        assert works.states([second]) == ["blocked"]

    def test_prerequisites_that_have_finished_or_are_gone_count_at_once(self, works: Works) -> None:
        old = works.add(number=2)
        works.claim()
        works.end(old[0])
        works.end(old[1])
        works.storage.remove(JobFilter(states=frozenset({JobState.SUCCEEDED}), after=old[0].seq))
        [late] = works.add(Edge(0, old[0].seq), Edge(0, old[1].seq))
        assert late.state is JobState.READY
        assert seqs(works.claim()) == [late.seq]

    def test_a_job_that_existed_before_waits_for_nothing_new(self, works: Works) -> None:
        [named] = works.storage.add([lifecycle.submit(Job(0, "x", "t", JobState.READY), NOW)])
        jobs = [lifecycle.submit(Job(0, job_id, "t", JobState.READY), NOW) for job_id in ("", "x", "")]
        plan = Plan([Edge(1, ~0), Edge(2, ~1)], {1: Terms(), 2: Terms()})
        added = works.storage.add(jobs, plan=plan)
        assert (added[1].seq, added.known) == (named.seq, {1})
        assert works.states(added) == ["ready", "ready", "blocked"]
        assert added[2].reason == "waits until job x has ended"

    def test_delay_and_expiry_count_from_the_end_of_the_last_prerequisite(self, works: Works) -> None:
        jobs = works.add(Edge(1, ~0), number=2, terms={1: Terms(None, 5.0, 60.0)}, expires=NOW + 60)
        works.claim()
        assert works.now_of(jobs[1]).expires is None
        works.now += 1000
        works.end(jobs[0])
        after = works.now_of(jobs[1])
        assert (after.state, after.due, after.expires) == (JobState.SCHEDULED, works.now + 5, works.now + 60)
        assert works.storage.next_due() == works.now + 5

    def test_an_eta_that_is_still_to_come_is_kept(self, works: Works) -> None:
        first, second = works.add(Edge(1, ~0), number=2, due=NOW + 50)
        assert works.storage.next_due() == NOW + 50, "the first one's"
        works.now = NOW + 60
        works.claim()
        works.end(first)
        assert works.states([second]) == ["ready"]

    def test_a_dependent_takes_its_gates_when_its_turn_comes(self, works: Works) -> None:
        first, second, third = works.add(Edge(1, ~0), Edge(2, ~0), number=3)
        needs = {"t": lambda job: (gates.lock("x", 1),)}
        assert seqs(works.claim(needs=needs)) == [first.seq]
        assert works.storage.gates.states()[0].waiting == 0
        assert seqs(works.claim(10, works.ended(works.now_of(first)), needs=needs)) == [second.seq]
        assert works.now_of(third).reason == "waits for lock x"

    # ── ends without success ─────────────────────────────────────────────────────────────────────────

    def test_what_needs_success_ends_with_a_failure_all_the_way_down(self, works: Works) -> None:
        jobs = works.row(4)
        works.claim()
        answer = works.storage.apply([works.ended(works.now_of(jobs[0]), Ending.FAILED)], NOW)
        assert works.states(jobs) == ["failed"] * 4
        told = f"not run, because job {jobs[0].id} (t) failed: ValueError: no"
        for job in jobs[1:]:
            [record] = works.now_of(job).attempts
            assert (record.ending, record.error_type, record.message) == ("dependency", "DependencyFailed", told)
        assert [(job.seq, move.target) for job, move in answer.ended] == [(job.seq, "failed") for job in jobs[1:]]

    @pytest.mark.parametrize(
        ("way", "state", "why"), [("revoke", "revoked", "was revoked"), ("expire", "failed", "was not started")]
    )
    def test_revoked_and_expired_prerequisites(self, works: Works, way: str, state: str, why: str) -> None:
        jobs = works.row(3)
        [first] = works.storage.plans.jobs([jobs[0].seq])
        late = lifecycle.expire(first._replace(expires=NOW), NOW)
        move = lifecycle.revoke(first, NOW) if way == "revoke" else late
        assert move is not None
        works.storage.apply([move], NOW)
        assert works.states(jobs[1:]) == [state, state]
        for job in jobs[1:]:
            after = works.now_of(job)
            assert why in (after.reason or after.attempts[-1].message)
            assert jobs[0].id in (after.reason or after.attempts[-1].message)

    def test_any_end_will_do_for_who_collects(self, works: Works) -> None:
        members, _ = works.star(2, Rule.END)
        works.claim()
        works.end(members[0], Ending.FAILED)
        [claimed] = works.claim(5, works.ended(works.now_of(members[1])))
        assert claimed.inputs == Inputs("[[2]]", ((members[0].id, "failed", "", "ValueError", "no", "trace"), b"2"))

    def test_an_error_handler_runs_after_a_failure_only(self, works: Works) -> None:
        for ending, state in ((Ending.FAILED, "ready"), (Ending.SUCCEEDED, "revoked"), (Ending.CANCELLED, "revoked")):
            first, handler, after = works.add(Edge(1, ~0, Rule.FAILURE), Edge(2, ~1), number=3)
            works.claim(1)
            running = works.now_of(first)
            answer = works.storage.apply([works.ended(running, ending)], NOW)
            assert works.states([handler, after]) == [state, "blocked" if state == "ready" else "revoked"]
            assert answer.ended == [], "handlers vanish without a word"
            works.do(lifecycle.revoke, *([handler] if state == "ready" else []))

    def test_a_dependent_of_one_that_has_failed_ends_as_it_is_stored(self, works: Works) -> None:
        [first] = works.add()
        works.claim()
        works.end(first, Ending.FAILED)
        jobs = [lifecycle.submit(Job(0, "", "t", JobState.READY), NOW) for _ in range(2)]
        added = works.storage.add(jobs, plan=Plan([Edge(0, first.seq), Edge(1, ~0)], {0: Terms(), 1: Terms()}))
        assert [job.state for job in added] == ["failed", "failed"] == works.states(added)
        assert seqs([job for job, _ in added.ended]) == seqs(added)

    def test_who_ends_a_running_one_by_its_stale_claim_ends_nobody_else(self, works: Works) -> None:
        first, second = works.row(2)
        works.claim()
        move = works.ended(works.now_of(first), Ending.FAILED)._replace(claim=9)
        assert works.storage.apply([move], NOW) == [False]
        assert works.states([second]) == ["blocked"]

    # ── again ────────────────────────────────────────────────────────────────────────────────────────

    def test_a_requeued_middle_step_brings_back_what_follows_and_the_rest_goes_on(self, works: Works) -> None:
        jobs = works.row(4)
        works.claim(10)
        works.claim(10, works.ended(works.now_of(jobs[0])))
        works.end(jobs[1], Ending.FAILED)
        assert works.states(jobs) == ["succeeded", "failed", "failed", "failed"]
        assert works.do(lifecycle.requeue, jobs[1]) == [True]
        assert works.states(jobs) == ["succeeded", "ready", "blocked", "blocked"]
        for job in jobs[1:]:
            [claimed] = works.claim()
            assert (claimed.seq, claimed.inputs) == (job.seq, Inputs("[1]", (b"%d" % (job.seq - 1),)))
            works.end(job)
        assert works.states(jobs) == ["succeeded"] * 4
        assert [record.ending for record in works.now_of(jobs[3]).attempts] == ["dependency", "succeeded"]

    def test_all_of_a_failed_row_can_be_requeued_at_once(self, works: Works) -> None:
        jobs = works.row(4)
        works.claim()
        works.end(jobs[0], Ending.FAILED)
        assert works.do(lifecycle.requeue, *jobs) == [True] * 4
        assert works.states(jobs) == ["ready", "blocked", "blocked", "blocked"]

    def test_requeuing_what_follows_alone_tells_again_what_is_missing(self, works: Works) -> None:
        jobs = works.row(3)
        works.claim()
        works.end(jobs[0], Ending.FAILED)
        assert works.do(lifecycle.requeue, jobs[1]) == [True]
        assert works.states(jobs) == ["failed"] * 3
        works.do(lifecycle.requeue, jobs[0])
        assert works.states(jobs) == ["ready", "blocked", "blocked"]

    def test_a_restored_one_brings_back_those_that_were_revoked_with_it_and_no_others(self, works: Works) -> None:
        members, last = works.star(3)
        works.do(lifecycle.revoke, last)
        works.do(lifecycle.revoke, members[0])
        works.do(lifecycle.restore, members[0])
        assert works.states([*members, last]) == ["ready", "ready", "ready", "revoked"]
        works.do(lifecycle.restore, last)
        works.do(lifecycle.revoke, members[1])
        assert works.states([last]) == ["revoked"]
        works.do(lifecycle.restore, members[1])
        assert works.states([last]) == ["blocked"]

    def test_of_two_that_failed_both_must_run_again(self, works: Works) -> None:
        members, last = works.star(2)
        works.claim()
        works.end(members[0], Ending.FAILED)
        works.end(members[1], Ending.FAILED)
        works.do(lifecycle.requeue, members[0])
        assert works.states([last]) == ["failed"]
        works.do(lifecycle.requeue, members[1])
        assert works.states([last]) == ["blocked"]
        works.claim()
        works.end(members[0])
        [claimed] = works.claim(5, works.ended(works.now_of(members[1])))
        assert claimed.seq == last.seq

    def test_who_has_not_begun_waits_for_a_prerequisite_that_runs_again(self, works: Works) -> None:
        first, second = works.row(2)
        works.claim()
        works.end(first)
        assert works.states([second]) == ["ready"]
        works.do(lifecycle.requeue, first)
        assert works.states([second]) == ["blocked"]
        works.claim()
        works.end(first)
        assert seqs(works.claim()) == [second.seq]

    def test_who_runs_while_a_prerequisite_runs_again_waits_before_its_retry(self, works: Works) -> None:
        first, second = works.row(2)
        works.claim()
        works.claim(5, works.ended(works.now_of(first)))
        works.do(lifecycle.requeue, first)
        works.end(second, Ending.FAILED, policy=Policy(retries=1))
        assert works.states([second]) == ["blocked"]
        works.claim()
        works.end(first)
        [again] = works.claim()
        assert (again.seq, again.attempt) == (second.seq, 2)

    # ── purging ──────────────────────────────────────────────────────────────────────────────────────

    def test_what_somebody_waits_for_is_not_purged(self, works: Works) -> None:
        members, last = works.star(2)
        works.claim()
        works.end(members[0])
        assert works.storage.remove(PURGE) == 0
        works.claim(5, works.ended(works.now_of(members[1])))
        assert works.storage.remove(PURGE) == 0
        works.end(last, Ending.FAILED)
        assert works.storage.remove(JobFilter(states=frozenset({JobState.SUCCEEDED}))) == 0
        assert works.storage.outdated({JobState.SUCCEEDED: 1e12}, 0, 100, 100).seqs == []
        assert works.storage.discard([member.seq for member in members]) == 0
        works.do(lifecycle.requeue, last)
        assert works.claim()[0].inputs == Inputs("[[2]]", (b"1", b"2"))
        works.end(last)
        assert len(works.storage.outdated({JobState.SUCCEEDED: 1e12}, 0, 100, 100).seqs) == 3
        assert works.storage.remove(PURGE) == 3
        assert works.storage.plans.prerequisites(last.seq) == works.storage.plans.dependents(members[0].seq) == []

    def test_a_result_that_is_gone_is_passed_as_gone(self, works: Works) -> None:
        first, second = works.row(2)
        works.claim()
        works.claim(5, works.ended(works.now_of(first)))
        works.end(second)
        assert works.storage.remove(JobFilter(states=frozenset({JobState.SUCCEEDED}), limit=1)) == 1
        left = works.storage.find(JobFilter())
        if seqs(left) != [second.seq]:  # which ones a limit leaves is every storage's own affair
            return
        works.do(lifecycle.requeue, second)
        assert works.claim()[0].inputs == Inputs("[1]", ((),))

    # ── questions ────────────────────────────────────────────────────────────────────────────────────

    def test_a_plan_can_be_asked_about(self, works: Works) -> None:
        plans = works.storage.plans
        members, last = works.star(2, Rule.END)
        after, *_ = works.add(Edge(0, last.seq))
        assert plans.steps([after.seq]) == [(job.seq, job.id) for job in (*members, last, after)]
        assert plans.steps([members[0].seq]) == [(members[0].seq, members[0].id)]
        assert plans.steps([999]) == []
        assert [(link.id, link.state, link.rule) for link in plans.prerequisites(last.seq)] == [
            (members[0].id, "ready", Rule.END),
            (members[1].id, "ready", Rule.END),
        ]
        assert [(link.id, link.task, link.state) for link in plans.dependents(last.seq)] == [(after.id, "t", "blocked")]
        assert seqs(plans.jobs([after.seq, 999, members[0].seq])) == [members[0].seq, after.seq]

    def test_what_is_still_awaited_is_told_through_all_plans(self, works: Works) -> None:
        plans = works.storage.plans
        members, last = works.star(3, Rule.END)
        after, *_ = works.add(Edge(0, last.seq))
        end, success = Rule.END, Rule.SUCCESS
        everything = {(last.seq, one.seq, end) for one in members} | {(after.seq, last.seq, success)}
        assert plans.awaited([after.seq, 999], 100) == everything
        assert plans.awaited([last.seq], 100) == everything - {(after.seq, last.seq, success)}
        assert plans.awaited([members[0].seq], 100) == plans.awaited([], 100) == frozenset()
        assert len(plans.awaited([after.seq], 2)) == 2
        assert plans.awaited([after.seq], 2) < everything
        works.claim(1)
        works.end(members[0])
        assert plans.awaited([after.seq], 100) == everything - {(last.seq, members[0].seq, end)}
