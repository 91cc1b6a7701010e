"""What `liteq.storage.gates` promises of rate limits, as tests that every storage passes; a part of ``contract.py``'s
suite.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from gates_contract import NOW, Floor, seqs

from liteq import gates, lifecycle, rates
from liteq.gates import KEPT_FOR, RATE_MARK, Needs
from liteq.job import Ending, Job, JobFilter, JobState
from liteq.lifecycle import PAUSE_MARK
from liteq.rates import Level
from liteq.storage.base import ClaimRequest, Storage
from liteq.storage.gates import Taken

SECOND = rates.parse("1/s")
BURST = rates.parse("1/s burst 3")
API = gates.named_rate("api", SECOND)

#: Tasks of which one starts a second: plainly, with a burst, by key, beside a limit by key, and beside a lock; and one
#: with a key beside a limit that all keys share.
NEEDS: Needs = {
    "paced": lambda job: (gates.rate_limit("paced", SECOND, None),),
    "burst": lambda job: (gates.rate_limit("burst", BURST, None),),
    "keyed": lambda job: (gates.rate_limit("keyed", SECOND, job.summary),),
    "account": lambda job: (gates.limit("account", 1, job.summary), gates.rate_limit("account", BURST, None)),
    "few": lambda job: (gates.rate_limit("few", SECOND, job.summary), gates.limit("few", 1, None)),
    "locked": lambda job: (gates.rate_limit("locked", SECOND, None), gates.lock("x", 1)),
    "called": lambda job: (API,),
}


class RatesContract:
    """See the module; the fixtures are those of ``StorageContract``."""

    @pytest.fixture
    def pace(self, storage: Storage) -> Pace:
        return Pace(storage)

    def test_one_is_claimed_and_the_others_wait_at_no_cost(self, pace: Pace) -> None:
        pace.add("paced", 3)
        assert seqs(pace.claimed()) == [1]
        assert seqs(pace.claimed()) == []
        blocked = pace.storage.find(JobFilter(states=frozenset({JobState.BLOCKED})))
        assert [(job.seq, job.attempt, job.claim, job.reason) for job in blocked] == [
            (2, 0, 0, "waits for rate paced"),
            (3, 0, 0, "waits for rate paced"),
        ]

    def test_the_turn_says_when_the_next_may_start_and_brings_it_then(self, pace: Pace) -> None:
        pace.add("paced", 3)
        pace.claimed()
        assert pace.turn.next_due == pace.turn.next_token == pace.storage.next_due() == NOW + 1
        pace.now += 0.5
        assert pace.claimed() == []
        pace.now += 0.5
        assert seqs(pace.claimed()) == [2]
        assert pace.turn.next_due == NOW + 2
        pace.now += 1
        assert seqs(pace.claimed()) == [3]
        assert (pace.turn.next_due, pace.turn.next_token, pace.storage.next_due()) == (None, None, None)

    def test_a_scheduled_job_that_is_due_before_is_told_first(self, pace: Pace) -> None:
        pace.add("paced", 2)
        pace.claimed()
        pace.add("free", 1, due=NOW + 0.5)
        assert pace.storage.next_due() == NOW + 0.5
        assert pace.storage.turn([], None, NOW).next_token == NOW + 1

    def test_whoever_is_idle_leaves_a_burst_and_no_more(self, pace: Pace) -> None:
        pace.add("burst", 20)
        assert seqs(pace.claimed()) == [1, 2, 3]
        pace.now += 2.5
        assert seqs(pace.claimed()) == [4, 5]
        pace.now += 3600
        assert seqs(pace.claimed()) == [6, 7, 8]

    def test_what_ends_makes_no_room(self, pace: Pace) -> None:
        pace.add("paced", 2)
        pace.end(*pace.claimed())
        assert pace.claimed() == []

    def test_each_key_has_its_own_tokens(self, pace: Pace) -> None:
        for key in "aab":
            pace.add("keyed", summary=key)
        assert seqs(pace.claimed()) == [1, 3]
        assert pace.storage.reasons() == {"waits for rate keyed[a]": 1}

    def test_the_line_is_ordered_by_priority_and_age(self, pace: Pace) -> None:
        pace.add("paced", 3)
        pace.claimed()
        [urgent] = pace.add("paced", priority=5)
        order = []
        for _ in range(3):
            pace.claimed()
            pace.now += 1
            order += pace.claimed()
        assert seqs(order) == [urgent.seq, 2, 3]

    def test_who_comes_late_does_not_overtake(self, pace: Pace) -> None:
        pace.add("paced", 2, queue="b")
        pace.claimed()
        pace.add("paced", 1, queue="a")
        pace.now += 1
        assert pace.claimed(queues=("a",)) == [], "the token is kept for the older one"
        assert seqs(pace.claimed(queues=("b",))) == [2]

    def test_a_token_is_not_kept_for_ever(self, pace: Pace) -> None:
        pace.add("paced", 2, queue="b")
        pace.claimed()
        pace.add("paced", 1, queue="a")
        pace.now += 1
        assert pace.claimed(queues=("a",)) == []
        pace.now += KEPT_FOR + 0.1
        assert pace.storage.gates.wake(pace.now)
        assert seqs(pace.claimed(queues=("a",))) == [3]

    def test_nobody_waits_for_a_paused_queue(self, pace: Pace) -> None:
        pace.add("paced", 2, queue="b")
        pace.claimed()
        pace.storage.swap(PAUSE_MARK + "b", None, "1")
        pace.add("paced", 1, queue="a")
        pace.claimed()
        pace.now += 1
        assert seqs(pace.claimed()) == [3]
        assert pace.turn.next_due is None
        pace.storage.swap(PAUSE_MARK + "b", "1", None)
        assert pace.storage.gates.wake(pace.now, everywhere=True)
        assert pace.storage.next_due() == NOW + 2

    # ── tokens that come back ────────────────────────────────────────────────────────────────────────

    def test_a_job_that_was_not_begun_gives_its_token_back(self, pace: Pace) -> None:
        pace.add("paced", 2)
        [job] = pace.claimed()
        assert seqs(pace.claimed(lifecycle.release(job))) == [1]
        assert pace.claimed() == []

    @pytest.mark.parametrize("ending", [Ending.INTERRUPTED, Ending.SNOOZED, Ending.CRASHED, Ending.FAILED])
    def test_one_that_was_begun_has_used_it_up(self, pace: Pace, ending: Ending) -> None:
        pace.add("paced", 2)
        [job] = pace.claimed()
        assert pace.claimed(pace.ended(job, ending)) == []

    def test_one_that_was_revoked_before_it_began_makes_room(self, pace: Pace) -> None:
        pace.add("paced", 2)
        [job] = pace.claimed()
        assert seqs(pace.claimed(lifecycle.revoke_unbegun(job, NOW))) == [2]

    def test_a_stale_release_gives_nothing_back(self, pace: Pace) -> None:
        pace.add("paced", 2)
        [job] = pace.claimed()
        assert pace.claimed(lifecycle.release(job)._replace(claim=7)) == []

    # ── with slots ───────────────────────────────────────────────────────────────────────────────────

    def test_one_that_waits_for_a_slot_takes_no_token_from_others(self, pace: Pace) -> None:
        for key in "aaab":
            pace.add("account", summary=key)
        assert seqs(pace.claimed()) == [1, 4]
        pace.now += 10
        pace.add("account", summary="c")
        assert seqs(pace.claimed()) == [5]

    def test_one_that_waits_for_a_token_takes_no_slot_from_others(self, pace: Pace) -> None:
        for key in "aaab":
            pace.add("few", summary=key)
        [first] = pace.claimed()
        [second] = pace.claimed(pace.ended(first))
        assert second.seq == 4
        pace.end(second)
        assert pace.claimed() == []
        pace.now += 1
        assert seqs(pace.claimed()) == [2]

    def test_one_that_needs_both_comes_in_at_last_though_others_need_one_of_them(self, pace: Pace) -> None:
        """Those who only want the lock, and those who only want a token, are there all the time."""
        pace.add("locked", 1)
        pace.end(*pace.claimed())
        [both] = pace.add("locked", 1)
        for _ in range(30):
            held = pace.take(gates.lock("x", 1), wait=True)
            pace.claimed()
            pace.now += 0.4
            pace.leave(held)
            if pace.state(both) is JobState.RUNNING or both.seq in seqs(pace.claimed()):
                return
        pytest.fail("it was starved")

    # ── the clock ────────────────────────────────────────────────────────────────────────────────────

    def test_a_jump_forward_grants_a_burst_and_no_more(self, pace: Pace) -> None:
        pace.add("burst", 20)
        pace.claimed()
        pace.now += 86_400
        assert len(pace.claimed()) == 3
        assert pace.claimed() == []

    def test_a_jump_back_does_not_stop_the_line(self, pace: Pace) -> None:
        pace.add("burst", 6)
        pace.claimed()
        pace.now -= 86_400
        assert pace.storage.gates.wake(pace.now)
        assert pace.storage.next_due() == pytest.approx(pace.now + 1)
        pace.now += 1
        assert seqs(pace.claimed()) == [4]
        assert not pace.storage.gates.wake(pace.now)

    def test_after_a_jump_back_a_new_job_waits_no_longer_than_for_one_token(self, pace: Pace) -> None:
        pace.add("paced")
        pace.claimed()
        pace.now -= 86_400
        pace.add("paced")
        assert pace.claimed() == []
        pace.now += 1
        assert seqs(pace.claimed()) == [2]

    # ── changes ──────────────────────────────────────────────────────────────────────────────────────

    def test_the_rate_may_be_changed(self, pace: Pace) -> None:
        pace.add("paced", 9)
        pace.claimed()
        assert pace.storage.swap(RATE_MARK + "paced", None, "10/s burst 2")
        assert pace.storage.gates.wake(pace.now, everywhere=True)
        assert pace.storage.next_due() == pytest.approx(NOW + 0.1)
        pace.now += 0.25
        assert seqs(pace.claimed()) == [2, 3]
        assert pace.storage.gates.states()[0].rate == rates.parse("10/s burst 2")

    def test_a_slower_rate_holds_for_what_is_waited_for(self, pace: Pace) -> None:
        pace.add("paced", 2)
        pace.claimed()
        assert pace.storage.swap(RATE_MARK + "paced", None, "1/h")
        assert pace.storage.gates.wake(pace.now, everywhere=True)
        pace.now += 1.01
        assert seqs(pace.claimed()) == [2], "what was taken at the old rate comes back at the old rate"
        pace.add("paced")
        assert pace.claimed() == []
        assert pace.storage.next_due() == pytest.approx(pace.now + 3600)

    def test_a_task_without_a_rate_any_more_drains_its_line(self, pace: Pace) -> None:
        pace.add("paced", 4)
        running = pace.claimed()
        done = list(running)
        while running:
            pace.now += 1
            running = pace.claimed(*map(pace.ended, running), needs={})
            done += running
        assert seqs(done) == [1, 2, 3, 4]
        assert pace.storage.gates.states() == []
        assert pace.storage.next_due() is None

    def test_the_state_tells_the_rate_and_how_many_wait(self, pace: Pace) -> None:
        pace.add("burst", 5)
        pace.claimed()
        [state] = pace.storage.gates.states("rate:")
        assert (state.name, state.task, state.slots, state.waiting, state.rate) == ("rate:burst", "burst", 3, 2, BURST)
        assert state.level is not None and rates.tokens(BURST, state.level, NOW) == 0
        assert [place.job for place in state.holders] == [1, 2, 3]
        assert pace.storage.gates.level(gates.rate_limit("burst", BURST, None)) == state.level
        assert pace.storage.gates.level(gates.rate_limit("none", BURST, None)) == Level()

    def test_revoking_the_last_that_waits_forgets_the_token(self, pace: Pace) -> None:
        pace.add("paced", 2)
        pace.claimed()
        waiting = pace.storage.find(JobFilter(states=frozenset({JobState.BLOCKED})))[0]
        revoke = lifecycle.revoke(waiting, NOW)
        assert revoke is not None
        pace.claimed(revoke)
        assert pace.turn.next_due is None

    def test_buckets_that_are_full_are_forgotten_when_others_come(self, pace: Pace) -> None:
        for number in range(50):
            pace.add("keyed", summary=str(number))
            pace.end(*pace.claimed())
            pace.now += 2
        known = [
            number
            for number in range(50)
            if pace.storage.gates.level(gates.rate_limit("keyed", SECOND, str(number))) != Level()
        ]
        assert len(known) <= 5
        assert 49 in known

    def test_two_consumers_share_a_bucket(self, pace: Pace) -> None:
        other = pace.storage.register({})
        pace.add("burst", 30)
        taken = 0
        for step in range(40):
            pace.now = NOW + step * 0.25
            taken += len(pace.claimed(owner=other if step % 2 else None))
            assert taken <= (pace.now - NOW) * 1.0 + 3
        assert taken == 12

    # ── callers ──────────────────────────────────────────────────────────────────────────────────────

    def test_a_caller_takes_a_token_and_leaves_no_place(self, pace: Pace) -> None:
        assert pace.take(API) == Taken(0, held=True)
        assert pace.storage.gates.states() == []
        refused = pace.take(API)
        assert (refused.number, refused.held, refused.due) == (None, False, NOW + 1)
        assert pace.storage.gates.states() == []
        pace.now += 1
        assert pace.take(API).held

    def test_callers_and_jobs_share_one_line(self, pace: Pace) -> None:
        pace.add("called", 2)
        assert seqs(pace.claimed()) == [1]
        waiting = pace.take(API, wait=True)
        assert (waiting.held, pace.storage.gates.next_token(API.gate)) == (False, NOW + 1)
        assert pace.take(API).due == NOW + 3, "one job and one caller are before"
        pace.now += 1
        assert seqs(pace.claimed()) == [2]
        assert pace.storage.gates.next_token(API.gate) == NOW + 2
        pace.now += 1
        assert pace.storage.gates.wake(pace.now)
        assert pace.storage.gates.holds(waiting.number or 0)
        assert pace.leave(waiting)
        assert pace.storage.gates.next_token(API.gate) is None

    def test_who_comes_when_the_token_of_another_has_just_come_does_not_make_it_forgotten(self, pace: Pace) -> None:
        pace.take(API)
        first = pace.take(API, wait=True)
        pace.now += 1
        second = pace.take(API, wait=True)
        assert not second.held
        assert pace.storage.gates.next_token(API.gate) == pace.now
        assert pace.storage.gates.wake(pace.now)
        assert pace.storage.gates.holds(first.number or 0)
        assert pace.storage.gates.next_token(API.gate) == pace.now + 1

    def test_a_running_job_takes_as_many_tokens_as_it_likes(self, pace: Pace) -> None:
        pace.add("free")
        [job] = pace.claimed()
        assert pace.take(API, job=job).held
        pace.now += 1
        assert pace.take(API, job=job).held
        assert pace.take(API, job=job, wait=True).number

    def test_those_who_died_in_line_are_passed(self, pace: Pace, perish: Callable[[int], int]) -> None:
        pace.take(API)
        pace.take(API, owner=perish(0), wait=True)
        waiting = pace.take(API, wait=True)
        pace.now += 1
        pace.storage.gates.wake(pace.now)
        assert pace.storage.gates.holds(waiting.number or 0)

    def test_another_way_to_the_same_data_sees_the_same_tokens(self, pace: Pace, reopen: Callable[[], Storage]) -> None:
        pace.take(API)
        assert reopen().gates.take(API, NOW, owner=pace.owner).number is None


class Pace(Floor):
    """`Floor` with these tasks, and the last turn."""

    def claimed(
        self,
        *moves: lifecycle.Transition,
        queues: tuple[str, ...] | None = None,
        owner: int | None = None,
        needs: Needs = NEEDS,
    ) -> list[Job]:
        request = ClaimRequest(owner or self.owner, 100, queues)._replace(needs=needs)
        self.turn = self.storage.turn(moves, request, self.now)
        while self.turn.next_due is not None and self.turn.next_due <= self.now:  # as a consumer would
            more = self.storage.turn([], request, self.now)
            self.turn = more._replace(jobs=self.turn.jobs + more.jobs)
        return self.turn.jobs
