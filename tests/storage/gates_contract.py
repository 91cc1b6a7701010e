"""What `liteq.storage.gates` promises, as tests that every storage passes; a part of ``contract.py``'s suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from liteq import gates, lifecycle
from liteq.gates import KEPT_FOR, LIMIT_MARK, LOCK, Need, Needs
from liteq.job import Ending, Job, JobFilter, JobState, Outcome
from liteq.lifecycle import PAUSE_MARK, Policy, Transition
from liteq.storage.base import ClaimRequest, Storage
from liteq.storage.gates import Taken
from liteq.storage.watch import Change

NOW = 1_700_000_000.25
WAKE = 10.0

#: A task of which two may run at once, one that needs a lock, one that needs both, and one by key.
NEEDS: Needs = {
    "two": lambda job: (gates.limit("two", 2, None),),
    "locked": lambda job: (gates.lock("x", 1),),
    "both": lambda job: (gates.limit("both", 2, None), gates.lock("x", 1)),
    "keyed": lambda job: (gates.limit("keyed", 1, job.summary),),
}
X = gates.lock("x", 1)


class Floor:
    """A storage, one consumer of it, and the words that these tests are written in."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.owner = storage.register({})
        self.now = NOW

    def add(self, task: str = "two", number: int = 1, **fields: Any) -> list[Job]:
        job = Job(0, "", task, JobState.READY, **fields)
        return self.storage.add([lifecycle.submit(job, self.now) for _ in range(number)])

    def claim(
        self,
        wanted: int = 100,
        *moves: Transition,
        queues: tuple[str, ...] | None = None,
        owner: int | None = None,
        needs: Needs = NEEDS,
    ) -> list[Job]:
        request = ClaimRequest(owner or self.owner, wanted, queues)._replace(needs=needs)
        return self.storage.turn(moves, request, self.now).jobs

    def end(self, *jobs: Job, ending: Ending = Ending.SUCCEEDED) -> None:
        moves = [self.ended(job, ending) for job in jobs]
        assert self.storage.apply(moves, self.now) == [True] * len(jobs)

    def ended(self, job: Job, ending: Ending = Ending.SUCCEEDED) -> Transition:
        outcome = Outcome(job.seq, job.claim, ending, self.now, self.now)
        return lifecycle.decide(job, Policy(), outcome, self.now)

    def state(self, job: Job) -> JobState:
        found = self.storage.get(job.id)
        assert found is not None
        return found.state

    def take(self, need: Need = X, *, job: Job | None = None, owner: int | None = None, wait: bool = False) -> Taken:
        claim = None if job is None else (job.seq, job.claim)
        return self.storage.gates.take(need, self.now, job=claim, owner=None if job else owner or self.owner, wait=wait)

    def leave(self, taken: Taken) -> bool:
        assert taken.number is not None
        return self.storage.gates.leave(taken.number, self.now)


def seqs(jobs: Sequence[Job]) -> list[int]:
    return [job.seq for job in jobs]


class GatesContract:
    """See the module; the fixtures are those of ``StorageContract``."""

    @pytest.fixture
    def floor(self, storage: Storage) -> Floor:
        return Floor(storage)

    # ── jobs that need a slot ────────────────────────────────────────────────────────────────────────

    def test_only_so_many_are_claimed_at_once(self, floor: Floor) -> None:
        floor.add(number=5)
        assert seqs(floor.claim()) == [1, 2]
        assert seqs(floor.claim()) == []

    def test_those_beyond_are_blocked_and_cost_nothing(self, floor: Floor) -> None:
        floor.add(number=4)
        floor.claim()
        blocked = floor.storage.find(JobFilter(states=frozenset({JobState.BLOCKED})))
        assert [(job.seq, job.attempt, job.claim, job.reason) for job in blocked] == [
            (3, 0, 0, "waits for limit two"),
            (4, 0, 0, "waits for limit two"),
        ]
        assert floor.storage.reasons("waits for") == {"waits for limit two": 2}
        assert floor.storage.reasons("other") == {}

    def test_the_next_is_claimed_by_the_turn_that_settles_one(self, floor: Floor) -> None:
        floor.add(number=4)
        first, _ = floor.claim()
        [third] = floor.claim(100, floor.ended(first))
        assert (third.seq, third.attempt, third.claim) == (3, 1, 1)

    @pytest.mark.parametrize("ending", [ending for ending in Ending if ending is not Ending.SUCCEEDED])
    def test_however_a_job_ends_its_slot_is_free(self, floor: Floor, ending: Ending) -> None:
        floor.add(number=4)
        first, _ = floor.claim()
        floor.end(first, ending=ending)
        [following] = floor.claim()
        again = (Ending.INTERRUPTED, Ending.SNOOZED, Ending.SUSPENDED, Ending.CRASHED)
        assert following.seq == (1 if ending in again else 3)

    def test_a_job_that_is_given_back_frees_its_slot(self, floor: Floor) -> None:
        floor.add(number=3)
        first, second = floor.claim()
        assert floor.storage.apply([lifecycle.release(second), lifecycle.release(first)], NOW) == [True, True]
        assert seqs(floor.claim()) == [1, 2]

    def test_a_stale_outcome_frees_nothing(self, floor: Floor) -> None:
        floor.add(number=3)
        first, _ = floor.claim()
        stale = floor.ended(first)._replace(claim=first.claim + 1)
        assert floor.storage.apply([stale], NOW) == [False]
        assert floor.claim() == []

    def test_others_pass_those_that_wait(self, floor: Floor) -> None:
        floor.add(number=50)
        others = floor.add("free", 3)
        assert seqs(floor.claim(5)) == [1, 2, *seqs(others)]

    def test_priority_goes_first_among_those_that_wait(self, floor: Floor) -> None:
        floor.add(number=4)
        first, second = floor.claim()
        [urgent] = floor.add(priority=5)
        floor.claim()
        [late] = floor.add(priority=9)
        assert seqs(floor.claim(100, floor.ended(first), floor.ended(second))) == [late.seq, urgent.seq]

    def test_who_comes_late_does_not_overtake(self, floor: Floor) -> None:
        floor.add(number=3, queue="b")
        first, second = floor.claim()
        floor.add(number=2, queue="a")
        floor.end(first, second)  # the third is let out, and a consumer of the other queue is quicker
        assert seqs(floor.claim(1, queues=("a",))) == [4]
        assert floor.claim(queues=("a",)) == []
        assert seqs(floor.claim(queues=("a", "b"))) == [3]

    def test_a_slot_is_not_kept_for_ever(self, floor: Floor) -> None:
        floor.add(number=4, queue="b")
        first, second = floor.claim()
        floor.add(number=2, queue="a")
        floor.end(first, second)
        assert floor.claim(queues=("a",)) == []
        floor.now += KEPT_FOR + 0.1
        assert floor.storage.gates.wake(floor.now)
        assert seqs(floor.claim(queues=("a",))) == [5, 6]
        assert not floor.storage.gates.wake(floor.now)
        floor.end(*floor.storage.find(JobFilter(states=frozenset({JobState.RUNNING}))))
        assert seqs(floor.claim()) == [3, 4], "and they come in at last"

    def test_nobody_waits_for_a_paused_queue(self, floor: Floor) -> None:
        floor.add(number=4, queue="b")
        first, second = floor.claim()
        floor.storage.swap(PAUSE_MARK + "b", None, "1")
        floor.add(number=2, queue="a")
        floor.end(first, second)
        ended = floor.claim()
        assert seqs(ended) == [5, 6]
        floor.storage.swap(PAUSE_MARK + "b", "1", None)
        floor.end(*ended)
        assert seqs(floor.claim()) == [3, 4]

    def test_the_line_goes_on_when_the_queue_is_resumed(self, floor: Floor) -> None:
        floor.add(number=3)
        running = floor.claim()
        floor.storage.swap(PAUSE_MARK + "default", None, "1")
        floor.end(*running)
        floor.storage.swap(PAUSE_MARK + "default", "1", None)
        assert floor.storage.gates.wake(floor.now, everywhere=True)
        assert seqs(floor.claim()) == [3]

    def test_each_key_has_its_own_slots(self, floor: Floor) -> None:
        for key in "aabbc":
            floor.add("keyed", summary=key)
        running = floor.claim()
        assert seqs(running) == [1, 3, 5]
        assert floor.storage.reasons() == {"waits for limit keyed[a]": 1, "waits for limit keyed[b]": 1}
        assert seqs(floor.claim(100, floor.ended(running[1]))) == [4]

    def test_a_job_that_needs_two_gates_gets_both_or_none(self, floor: Floor) -> None:
        floor.add("locked")
        floor.add("both", 2)
        [locked] = floor.claim()
        assert [state.holders for state in floor.storage.gates.states("limit:")] == [()]
        [both] = floor.claim(100, floor.ended(locked))
        assert (both.seq, len(floor.storage.gates.states()[0].holders)) == (2, 1)
        assert seqs(floor.claim(100, floor.ended(both))) == [3]

    def test_one_that_needs_two_gates_is_not_starved(self, floor: Floor) -> None:
        floor.add("locked")
        floor.add("both")
        floor.add("locked", 20)
        [running] = floor.claim()
        order = []
        for _ in range(3):
            [running] = floor.claim(100, floor.ended(running))
            order.append(running.seq)
        assert order == [2, 3, 4]

    @pytest.mark.parametrize("way", ["revoke", "expire"])
    def test_a_blocked_job_can_end_unrun(self, floor: Floor, way: str) -> None:
        floor.add(number=4, expires=NOW)
        first, _ = floor.claim()
        third = floor.storage.find(JobFilter(states=frozenset({JobState.BLOCKED})))[0]
        move = lifecycle.revoke(third, NOW) if way == "revoke" else lifecycle.expire(third, NOW)
        assert move is not None
        assert floor.storage.apply([move], NOW) == [True]
        assert seqs(floor.claim(100, floor.ended(first))) == [4]
        assert floor.storage.gates.states()[0].waiting == 0

    def test_one_that_was_let_out_and_revoked_makes_room_for_the_next(self, floor: Floor) -> None:
        floor.add(number=4)
        first, _ = floor.claim()
        floor.end(first)
        third = floor.storage.find(JobFilter(states=frozenset({JobState.READY})))[0]
        revoke = lifecycle.revoke(third, NOW)
        assert revoke is not None
        assert floor.storage.apply([revoke], NOW) == [True]
        assert seqs(floor.claim()) == [4]

    def test_a_requeued_job_stands_where_its_age_puts_it(self, floor: Floor) -> None:
        floor.add(number=4)
        first, second = floor.claim()
        floor.end(first)
        ended = floor.storage.get(first.id)
        assert ended is not None
        requeue = lifecycle.requeue(ended, NOW)
        assert requeue is not None
        assert floor.storage.apply([requeue], NOW) == [True]
        assert seqs(floor.claim()) == [1]
        assert floor.claim() == []
        assert seqs(floor.claim(100, floor.ended(second))) == [3]

    def test_nothing_is_left_of_a_gate_where_nobody_is(self, floor: Floor) -> None:
        floor.add(number=3)
        running = floor.claim()
        running += floor.claim(100, floor.ended(running.pop()))
        floor.end(*running)
        assert floor.storage.gates.states() == []

    def test_a_task_that_is_not_limited_any_more_drains_its_line(self, floor: Floor) -> None:
        floor.add(number=4)
        running = floor.claim()
        done = list(running)
        while running:
            running = floor.claim(100, *(floor.ended(job) for job in running), needs={})
            done += running
        assert seqs(done) == [1, 2, 3, 4]
        assert floor.storage.gates.states() == []

    def test_what_a_job_needs_may_change_while_it_waits(self, floor: Floor) -> None:
        floor.add(number=4)
        first, second = floor.claim()
        other: Needs = {"two": lambda job: (gates.limit("two", 1, "new"),)}
        assert seqs(floor.claim(100, floor.ended(first), needs=other)) == [3]
        assert seqs(floor.claim(100, floor.ended(second), needs=other)) == []
        assert floor.storage.reasons() == {"waits for limit two[new]": 1}

    def test_the_number_of_slots_may_be_changed(self, floor: Floor) -> None:
        floor.add(number=6)
        running = floor.claim()
        assert floor.storage.swap(LIMIT_MARK + "two", None, "4")
        assert floor.storage.gates.wake(NOW, everywhere=True)
        running += floor.claim()
        assert seqs(running) == [1, 2, 3, 4]
        assert floor.storage.gates.states()[0].slots == 4
        assert floor.storage.swap(LIMIT_MARK + "two", "4", "1")
        assert floor.claim(100, *(floor.ended(job) for job in running[:3])) == []
        assert seqs(floor.claim(100, floor.ended(running[3]))) == [5]

    def test_the_slots_of_a_dead_consumers_jobs_are_free(self, floor: Floor, perish: Callable[[int], int]) -> None:
        floor.add(number=3)
        dead = perish(2)  # it knows nothing of limits: they are taken for the jobs that it left
        jobs = floor.storage.find(JobFilter(owner=dead))
        crashes = [(job, lifecycle.crashed(job, NOW, "gone")) for job in jobs]
        floor.storage.apply([lifecycle.decide(job, Policy(), crash, NOW) for job, crash in crashes], NOW)
        assert seqs(floor.claim()) == [1, 2]

    def test_a_thousand_that_wait_are_looked_at_once(self, floor: Floor) -> None:
        floor.add(number=3000)
        others = floor.add("free", 2)
        claimed: list[Job] = []
        for _ in range(5):
            claimed += floor.claim(4)
        assert seqs(claimed) == [1, 2, *seqs(others)]
        assert floor.storage.queues() == {}

    # ── callers ──────────────────────────────────────────────────────────────────────────────────────

    def test_a_lock_is_had_by_one(self, floor: Floor) -> None:
        taken = floor.take()
        assert taken.held
        assert floor.take() == Taken(None)
        assert floor.leave(taken)
        assert not floor.leave(taken)
        assert floor.take().held

    def test_a_lock_may_have_slots(self, floor: Floor) -> None:
        need = gates.lock("x", 3)
        assert [floor.take(need).held for _ in range(5)] == [True, True, True, False, False]

    def test_callers_stand_in_line_in_their_order(self, floor: Floor) -> None:
        held = floor.take()
        waiting = [floor.take(wait=True) for _ in range(3)]
        numbers = [one.number or 0 for one in waiting]
        assert not any(one.held for one in waiting)
        assert floor.storage.gates.settled(numbers) == set()
        for one, number in zip(waiting, numbers, strict=True):
            floor.leave(held)
            assert floor.storage.gates.settled(numbers) & {number}
            assert floor.storage.gates.holds(number)
            held = one
        assert floor.storage.gates.settled([*numbers, 999]) == {*numbers, 999}

    def test_who_does_not_wait_overtakes_nobody(self, floor: Floor) -> None:
        two = gates.lock("x", 2)
        floor.take(two)
        second = floor.take(two)
        floor.take(two, wait=True)
        floor.leave(second)
        assert not floor.take(two).held

    def test_leaving_the_line_lets_others_pass(self, floor: Floor) -> None:
        held = floor.take()
        impatient, patient = floor.take(wait=True), floor.take(wait=True)
        assert floor.leave(impatient)
        floor.leave(held)
        assert floor.storage.gates.holds(patient.number or 0)

    def test_jobs_and_callers_share_one_line(self, floor: Floor) -> None:
        held = floor.take()
        floor.add("locked", 2)
        assert floor.claim() == []
        caller = floor.take(wait=True)
        floor.add("locked", 1)
        assert floor.claim() == []
        floor.leave(held)
        [first] = floor.claim()
        [second] = floor.claim(100, floor.ended(first))
        assert floor.claim(100, floor.ended(second)) == []
        assert floor.storage.gates.holds(caller.number or 0)
        floor.leave(caller)
        assert seqs([first, second, *floor.claim()]) == [1, 2, 3]

    def test_a_running_job_takes_a_lock_and_loses_it_with_its_claim(self, floor: Floor) -> None:
        floor.add("free")
        [job] = floor.claim()
        assert floor.take(job=job).held
        assert floor.storage.gates.held_by(X.gate, job.seq)
        assert floor.take(job=job) == Taken(None, own=True)
        assert floor.take() == Taken(None)
        floor.end(job, ending=Ending.CRASHED)
        assert floor.take().held
        assert floor.take(job=job) == Taken(None, gone=True)

    def test_a_running_job_leaves_the_line_with_its_claim(self, floor: Floor) -> None:
        held = floor.take()
        floor.add("free")
        [job] = floor.claim()
        waiting = floor.take(job=job, wait=True)
        floor.end(job)
        assert floor.storage.gates.settled([waiting.number or 0]) == {waiting.number}
        floor.leave(held)
        assert floor.storage.gates.states() == []

    def test_the_lock_of_a_jobs_claim_is_its_own(self, floor: Floor) -> None:
        floor.add("locked")
        [job] = floor.claim()
        assert floor.storage.gates.held_by(X.gate, job.seq)
        assert floor.take(job=job).own

    def test_who_is_not_registered_takes_nothing(self, floor: Floor) -> None:
        assert floor.take(owner=999) == Taken(None, gone=True)
        assert floor.storage.gates.states() == []

    def test_the_locks_of_the_dead_are_free(self, floor: Floor, perish: Callable[[int], int]) -> None:
        floor.add("free", 1)
        dead = perish(1)
        [job] = floor.storage.find(JobFilter(owner=dead))
        assert floor.take(job=job).held
        assert floor.take().held, "whoever wants it looks whether its holder lives"
        again = floor.take(wait=True)
        assert not floor.storage.gates.put_out_dead(NOW)
        assert not floor.storage.gates.holds(again.number or 0)

    def test_the_places_of_an_owner_end_with_it(self, floor: Floor, perish: Callable[[int], int]) -> None:
        dead = perish(0)
        assert floor.take(owner=dead).held
        assert not floor.storage.forget(dead), "it is at a gate"
        waiting = floor.take(wait=True)
        assert waiting.held, "the dead are put out before anybody is made to wait"
        floor.take(owner=dead, wait=True)
        assert floor.storage.gates.put_out(dead, NOW)
        assert not floor.storage.gates.put_out(dead, NOW)
        assert floor.storage.forget(dead)

    def test_the_dead_leave_the_line(self, floor: Floor, perish: Callable[[int], int]) -> None:
        held = floor.take()
        floor.take(owner=perish(0), wait=True)
        waiting = floor.take(wait=True)
        assert floor.storage.gates.states()[0].waiting == 1
        floor.leave(held)
        assert floor.storage.gates.holds(waiting.number or 0)

    def test_a_gate_can_be_cleared(self, floor: Floor) -> None:
        floor.take()
        floor.take(gates.lock("y", 1))
        waiting = floor.take(wait=True)
        assert floor.storage.gates.clear([X.gate, "lock:none"], NOW) == {X.gate}
        assert floor.storage.gates.holds(waiting.number or 0)
        assert floor.take(gates.lock("y", 1)) == Taken(None)

    def test_the_state_of_a_gate_says_who_is_there(self, floor: Floor) -> None:
        floor.take(gates.lock("x", 2))
        floor.add("locked")
        floor.claim(needs={"locked": lambda job: (gates.lock("x", 2),)})
        floor.take(gates.lock("x", 2), wait=True)
        [state] = floor.storage.gates.states(LOCK)
        assert (state.name, state.slots, state.task, state.waiting) == ("lock:x", 2, None, 1)
        assert [(place.job, place.owner, place.since) for place in state.holders] == [
            (None, floor.owner, NOW),
            (1, None, NOW),
        ]
        assert floor.storage.gates.states("limit:") == []

    def test_another_way_to_the_same_data_sees_the_same_locks(
        self, floor: Floor, reopen: Callable[[], Storage]
    ) -> None:
        taken = floor.take()
        other = reopen()
        assert other.gates.take(X, NOW, owner=floor.owner) == Taken(None)
        assert other.gates.leave(taken.number or 0, NOW)
        assert floor.take().held

    def test_a_watch_tells_of_a_lock_that_is_given_back(self, floor: Floor) -> None:
        taken = floor.take()
        with floor.storage.watch() as watch:
            watch.changed()
            floor.leave(taken)
            assert watch.wait(WAKE) & Change.DATA
