"""What `liteq.storage.base` promises about steps and events, as tests that every storage passes; a part of
``contract.py``'s suite."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from liteq import StorageBusy, lifecycle
from liteq.job import Ending, Job, JobFilter, JobState, Outcome
from liteq.lifecycle import Policy, Transition
from liteq.step import Step, StepKind, StepState
from liteq.storage.base import ClaimRequest, Storage
from liteq.unique import Unique

NOW = 1_700_000_000.25


def step(name: str = "charge", position: int = 0, **fields: Any) -> Step:
    given = {"kind": StepKind.STEP, "number": 1, "state": StepState.DONE, "attempt": 1, "recorded": NOW} | fields
    return Step(name=name, position=position, **given)


def wait(event: str = "paid", **fields: Any) -> Step:
    return step(event, kind=StepKind.WAIT, state=StepState.WAITING, **fields)


class Bench:
    """A storage, and jobs that run."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.owner = storage.register({})

    def running(self) -> Job:
        self.storage.add([lifecycle.submit(Job(0, "", "t", JobState.READY), NOW)])
        return self.claimed()

    def claimed(self, now: float = NOW) -> Job:
        [job] = self.storage.turn([], ClaimRequest(self.owner, 1), now).jobs
        return job

    def settled(self, job: Job, ending: Ending, **fields: Any) -> Transition:
        outcome = Outcome(job.seq, job.claim, ending, NOW, NOW, **fields)
        return lifecycle.decide(job, Policy(), outcome, NOW)

    def settle(self, job: Job, ending: Ending, **fields: Any) -> JobState:
        assert self.storage.apply([self.settled(job, ending, **fields)], NOW) == [True]
        return self.state(job)

    def state(self, job: Job) -> JobState:
        found = self.storage.get(job.id)
        assert found is not None
        return found.state

    def asked(self, job: Job, step: Step, now: float = NOW) -> Step | None:
        return self.storage.await_event(job.seq, job.claim, step, now)

    def send(self, job: Job, event: str = "paid", data: bytes | None = b"1") -> bool:
        return self.storage.send(job.seq, event, data, NOW + 1)


class StepsContract:
    """The promises."""

    @pytest.fixture
    def bench(self, storage: Storage) -> Bench:
        return Bench(storage)

    # ── recording ────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("result", [None, b"", b"\0\xff", b"x" * 100_000], ids=["none", "empty", "bytes", "large"])
    def test_a_recorded_step_comes_back_to_the_last_bit(
        self, bench: Bench, reopen: Callable[[], Storage], result: bytes | None
    ) -> None:
        job = bench.running()
        recorded = [
            step("z 'ü🐇'; --", 0, result=result),
            step("a", 1, attempt=7, recorded=NOW + 0.1),
            step("a", 2, kind=StepKind.SLEEP, number=3, due=NOW + 0.3),
        ]
        for one in recorded:
            assert bench.storage.record_step(job.seq, job.claim, one)
        assert bench.storage.steps(job.seq) == recorded
        assert reopen().steps(job.seq) == recorded

    def test_a_stale_claim_cannot_record_a_step(self, bench: Bench) -> None:
        job = bench.running()
        bench.settle(job, Ending.INTERRUPTED)
        assert not bench.storage.record_step(job.seq, job.claim, step("while ready"))
        again = bench.claimed()
        assert not bench.storage.record_step(job.seq, job.claim, step("by the old owner"))
        assert bench.asked(job, wait()) is None
        assert bench.storage.record_step(again.seq, again.claim, step("by the new one"))
        bench.settle(again, Ending.SUCCEEDED)
        assert not bench.storage.record_step(again.seq, again.claim, step("too late"))
        assert not bench.storage.record_step(999, 1, step("of nobody"))
        assert [one.name for one in bench.storage.steps(job.seq)] == ["by the new one"]

    def test_at_once_a_step_is_recorded_as_it_is_otherwise_or_not_at_all(self, bench: Bench) -> None:
        job, recorded = bench.running(), []
        for name in ("a", "b", "a"):
            with contextlib.suppress(StorageBusy):
                if bench.storage.record_step_at_once(job.seq, job.claim, step(name)):
                    recorded.append(name)
        assert recorded in ([], ["a", "b"])
        with contextlib.suppress(StorageBusy):
            assert not bench.storage.record_step_at_once(job.seq, job.claim + 1, step("of nobody"))
        assert [one.name for one in bench.storage.steps(job.seq)] == recorded

    def test_what_is_recorded_stays_as_it_is(self, bench: Bench) -> None:
        job = bench.running()
        assert bench.storage.record_step(job.seq, job.claim, step(result=b"first"))
        assert not bench.storage.record_step(job.seq, job.claim, step(result=b"second"))
        assert [one.result for one in bench.storage.steps(job.seq)] == [b"first"]

    @pytest.mark.parametrize("ending", [Ending.FAILED, Ending.CRASHED, Ending.INTERRUPTED, Ending.SUCCEEDED])
    def test_steps_outlive_the_attempt_and_go_with_the_job(self, bench: Bench, ending: Ending) -> None:
        job, other = bench.running(), bench.running()
        for one in (job, other):
            bench.storage.record_step(one.seq, one.claim, step())
            bench.send(one, "unasked")
        bench.settle(job, ending)
        assert len(bench.storage.steps(job.seq)) == 1
        standing = bench.storage.get(job.id)
        if standing is not None and (move := lifecycle.revoke(standing, NOW)) is not None:
            bench.storage.apply([move], NOW)
        assert bench.storage.remove(JobFilter()) == 1
        assert bench.storage.steps(job.seq) == []
        assert len(bench.storage.steps(other.seq)) == 1

    def test_requeue_keeps_the_steps_unless_it_is_from_the_start(self, bench: Bench) -> None:
        job = bench.running()
        bench.storage.record_step(job.seq, job.claim, step())
        bench.send(job, "kept")
        for from_start, number in ((False, 1), (True, 0)):
            bench.settle(job, Ending.FAILED)
            [failed] = bench.storage.find(JobFilter())
            move = lifecycle.requeue(failed, NOW, from_start=from_start)
            assert move is not None
            assert bench.storage.apply([move], NOW) == [True]
            assert len(bench.storage.steps(job.seq)) == number
            job = bench.claimed()
        answer = bench.asked(job, wait("kept"))
        assert answer is not None
        assert answer.state is StepState.DONE, "what was sent and not taken is not a step"

    # ── waiting and sending ──────────────────────────────────────────────────────────────────────────

    def test_what_was_sent_before_is_there_and_each_is_taken_once_in_order(self, bench: Bench) -> None:
        job = bench.running()
        assert [bench.send(job, data=data) for data in (b"1", None)] == [True, True]
        bench.send(job, "other", b"3")
        answers = [bench.asked(job, wait(number=number, position=number)) for number in (1, 2, 3)]
        assert [(one.state, one.result) for one in answers if one] == [
            (StepState.DONE, b"1"),
            (StepState.DONE, None),
            (StepState.WAITING, None),
        ]
        assert bench.storage.steps(job.seq) == answers
        assert bench.asked(job, wait(number=1)) == answers[0], "it was taken, and stays what it was"

    @pytest.mark.parametrize("due", [None, NOW + 60])
    def test_a_waiting_job_is_made_ready_by_its_event_and_no_other(self, bench: Bench, due: float | None) -> None:
        job = bench.running()
        assert bench.asked(job, wait(due=due)) == wait(due=due)
        delay = None if due is None else 60.0
        state = bench.settle(job, Ending.SUSPENDED, awaits="paid", delay=delay)
        assert state is (JobState.BLOCKED if due is None else JobState.SCHEDULED)
        assert bench.storage.reasons() == ({"event: paid": 1} if due is None else {})
        bench.send(job, "other")
        assert bench.state(job) is state
        bench.send(job, "paid", b"yes")
        assert bench.state(job) is JobState.READY
        assert bench.storage.next_due() is None
        again = bench.claimed()
        assert (again.attempt, again.claim, again.reason) == (1, 2, None)
        answer = bench.asked(again, wait(due=NOW + 999))
        assert answer is not None
        assert (answer.state, answer.result, answer.due) == (StepState.DONE, b"yes", due)

    @pytest.mark.parametrize("delay", [None, 60.0])
    def test_an_event_that_comes_before_the_job_has_begun_to_wait_is_not_lost(
        self, bench: Bench, delay: float | None
    ) -> None:
        job = bench.running()
        bench.asked(job, wait())
        bench.send(job)
        assert bench.settle(job, Ending.SUSPENDED, awaits="paid", delay=delay) is JobState.READY
        assert bench.storage.next_due() is None

    def test_a_wait_times_out_once_and_for_all(self, bench: Bench) -> None:
        job = bench.running()
        late = wait(due=NOW + 60)
        assert bench.asked(job, late, NOW + 59) == late
        answer = bench.asked(job, late, NOW + 60)
        assert answer == late._replace(state=StepState.TIMED_OUT, recorded=NOW + 60)
        bench.send(job)
        assert bench.asked(job, late, NOW + 61) == answer

    @pytest.mark.parametrize("ending", [Ending.SUCCEEDED, Ending.FAILED, Ending.CANCELLED])
    def test_nothing_is_sent_to_a_job_that_has_ended_or_never_was(self, bench: Bench, ending: Ending) -> None:
        job = bench.running()
        bench.settle(job, ending)
        assert not bench.send(job)
        assert bench.storage.remove(JobFilter()) == 1
        assert not bench.send(job)
        assert not bench.storage.send(999, "paid", None, NOW)

    def test_an_event_wakes_only_who_waits_for_it_now(self, bench: Bench) -> None:
        job = bench.running()
        bench.asked(job, wait())
        bench.settle(job, Ending.SUSPENDED, awaits="paid")
        bench.send(job)
        job = bench.claimed()
        bench.settle(job, Ending.SNOOZED, delay=60.0)
        bench.send(job)
        assert bench.state(job) is JobState.SCHEDULED, "it sleeps for a reason of its own"
        job = bench.claimed(NOW + 60)
        move = bench.settled(job, Ending.UNKNOWN)
        assert bench.storage.apply([move], NOW) == [True]
        bench.send(job)
        assert bench.state(job) is JobState.BLOCKED

    def test_a_revoked_job_that_is_restored_waits_on(self, bench: Bench) -> None:
        job = bench.running()
        bench.asked(job, wait(due=NOW + 60))
        bench.settle(job, Ending.SUSPENDED, awaits="paid", delay=60.0)
        for rule in (lifecycle.revoke, lifecycle.restore):
            [standing] = bench.storage.find(JobFilter())
            move = rule(standing, NOW)
            assert move is not None
            assert bench.storage.apply([move], NOW) == [True]
        bench.send(job)
        assert bench.state(job) is JobState.READY

    @pytest.mark.parametrize("delay", [None, 60.0])
    def test_a_call_that_replaces_a_waiting_one_of_its_key_begins_anew(self, bench: Bench, delay: float | None) -> None:
        unique = Unique("k", on_duplicate="replace")
        new = lifecycle.submit(Job(0, "", "t", JobState.READY, payload=b"old", unique=unique), NOW)
        bench.storage.add([new])
        job = bench.claimed()
        bench.storage.record_step(job.seq, job.claim, step())
        bench.asked(job, wait())
        bench.send(job, "unasked")
        bench.settle(job, Ending.SUSPENDED, awaits="paid", delay=delay)
        [changed] = bench.storage.add([new._replace(payload=b"new")])
        assert (changed.seq, changed.state, changed.reason) == (job.seq, JobState.READY, None)
        assert bench.storage.steps(job.seq) == []
        again = bench.claimed()
        assert again.payload == b"new"
        answer = bench.asked(again, wait("unasked"))
        assert answer is not None
        assert answer.state is StepState.WAITING, "it was meant for the call before"

    def test_of_events_sent_while_a_job_begins_to_wait_none_is_lost(
        self, bench: Bench, reopen: Callable[[], Storage]
    ) -> None:
        """Again and again one thread sends while another lets the job wait: whoever is first, the job goes on."""
        other = reopen()
        job = bench.running()
        start = threading.Barrier(2)

        def send(_number: int) -> None:
            start.wait()
            assert other.send(job.seq, "paid", b"", NOW)

        with ThreadPoolExecutor(1) as pool:
            for number in range(1, 61):
                sent = pool.submit(send, number)
                start.wait()
                answer = bench.asked(job, wait(number=number))
                assert answer is not None
                if answer.state is StepState.WAITING:
                    bench.settle(job, Ending.SUSPENDED, awaits="paid")
                    sent.result()
                    assert bench.state(job) is JobState.READY
                    job = bench.claimed()
                    answer = bench.asked(job, wait(number=number))
                    assert answer is not None
                sent.result()
                assert answer.state is StepState.DONE
