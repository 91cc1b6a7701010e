"""The rules of `liteq.lifecycle`, over whatever lives a job can have.

`Life` is the smallest possible storage: one job, to which transitions are applied as `Storage.turn` would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from liteq import lifecycle
from liteq.job import FINISHED, WAITING, Attempt, Death, Ending, Job, JobState, Outcome
from liteq.lifecycle import CANCEL_MARK, PAUSE_MARK, REVOKE_MARK, Policy, Revocation, Transition
from liteq.retry import RetryDelay

NOW = 1_700_000_000.0

COUNTED = [Ending.FAILED, Ending.TIMEOUT, Ending.RETRY]  # each uses up one of the retries
GIVEN_BACK = [Ending.INTERRUPTED, Ending.SNOOZED, Ending.SUSPENDED, Ending.UNKNOWN]  # cost no attempt
FINAL = {Ending.SUCCEEDED: JobState.SUCCEEDED, Ending.CANCELLED: JobState.REVOKED, Ending.GAVE_UP: JobState.FAILED}

instants = st.floats(NOW - 1000, NOW + 1000)
policies = st.builds(
    Policy,
    retries=st.integers(0, 4),
    retry=st.builds(RetryDelay, delay=st.sampled_from([0.0, 7.0]), backoff=st.sampled_from([1.0, 2.0])),
    on_crash=st.sampled_from(["retry", "fail"]),
    max_crashes=st.integers(0, 4),
)
jobs = st.builds(
    lambda **fields: Job(**fields),  # not `Job` itself: what is not given here is to have its default
    seq=st.integers(1, 9),
    id=st.just("id"),
    task=st.sampled_from(["t", "ü", ""]),
    state=st.sampled_from(JobState),
    due=st.none() | instants,
    expires=st.none() | instants,
    claim=st.integers(0, 20),
    attempt=st.integers(1, 20),
    base=st.integers(0, 3),
    crashes=st.integers(0, 3),
    started=st.none() | instants,
    reason=st.none() | st.just("because"),
)


def running(attempt: int = 1, **fields: object) -> Job:
    return Job(1, "id", "t", JobState.RUNNING, claim=4, attempt=attempt, started=NOW - 1, **fields)  # type: ignore[arg-type]


def outcome(job: Job, ending: Ending, now: float = NOW, **fields: object) -> Outcome:
    return Outcome(job.seq, job.claim, ending, now - 1, now, **fields)  # type: ignore[arg-type]


class Life:
    """One job and what becomes of it."""

    def __init__(self, policy: Policy, now: float = NOW, **fields: object) -> None:
        self.policy = policy
        self.now = now
        self.job = lifecycle.submit(Job(1, "id", "t", JobState.READY, **fields), now)  # type: ignore[arg-type]
        self.history: list[Attempt] = []

    def apply(self, transition: Transition | None) -> Job:
        assert transition is not None
        assert (transition.seq, transition.source, transition.claim) == (self.job.seq, self.job.state, self.job.claim)
        target = transition.target
        assert target is not JobState.RUNNING
        assert (target is JobState.SCHEDULED) <= (transition.due is not None)
        assert (target in FINISHED) == (transition.finished is not None)
        assert transition.result is None or target is JobState.SUCCEEDED
        assert (transition.reason is not None) == (target in (JobState.REVOKED, JobState.EXPIRED, JobState.BLOCKED))
        self.job = self.job._replace(
            state=target,
            due=self.job.due if transition.due is None else transition.due,
            expires=None if transition.forget_expiry else self.job.expires,
            attempt=transition.attempt,
            base=transition.base,
            crashes=transition.crashes,
            started=transition.started,
            finished=transition.finished,
            result=transition.result,
            reason=transition.reason,
        )
        if transition.record is not None:
            self.history.append(transition.record)
        return self.job

    def claim(self) -> Job:
        """Let it become due, and start it."""
        if self.job.state is JobState.SCHEDULED:
            assert self.job.due is not None
            self.now = max(self.now, self.job.due)
            self.job = self.job._replace(state=JobState.READY)
        if self.job.state is JobState.BLOCKED:
            self.apply(lifecycle.unblock(self.job, self.now))
            return self.claim()
        assert self.job.state is JobState.READY
        self.job = self.job._replace(
            state=JobState.RUNNING, claim=self.job.claim + 1, attempt=self.job.attempt + 1, started=self.now
        )
        return self.job

    def run(self, ending: Ending, *, cancelled: bool = False, **fields: object) -> Job:
        """Claim it and end the attempt."""
        ended = outcome(self.claim(), ending, self.now + 1, **fields)
        self.now += 1
        return self.apply(lifecycle.decide(self.job, self.policy, ended, self.now, cancelled=cancelled))


# ── enqueue ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(due=st.none() | instants)
def test_a_job_is_scheduled_exactly_if_it_is_due_later(due: float | None) -> None:
    job = lifecycle.submit(Job(0, "", "t", JobState.READY, due=due), NOW)
    assert job.state is (JobState.SCHEDULED if due is not None and due > NOW else JobState.READY)
    assert (job.created, job.due) == (NOW, due)


def test_a_job_due_this_instant_is_ready() -> None:
    assert lifecycle.submit(Job(0, "", "t", JobState.READY, due=NOW), NOW).state is JobState.READY


# ── what a finished job can still become ─────────────────────────────────────────────────────────────────────────────


@given(jobs.filter(lambda job: job.state in FINISHED), instants)
def test_only_requeue_and_restore_lead_out_of_a_finished_state(job: Job, now: float) -> None:
    assert lifecycle.revoke(job, now) is None
    assert lifecycle.expire(job, now) is None
    assert lifecycle.reschedule(job, now + 5, now) is None
    assert (lifecycle.restore(job, now) is None) == (job.state is not JobState.REVOKED)
    assert lifecycle.requeue(job, now) is not None


@given(jobs, instants, policies, st.sampled_from(Ending), st.booleans())
def test_an_outcome_is_guarded_so_that_only_the_running_claim_can_use_it(
    job: Job, now: float, policy: Policy, ending: Ending, cancelled: bool
) -> None:
    job = job._replace(base=min(job.base, job.attempt - 1))
    ended = Outcome(job.seq, job.claim - 1, ending, now - 1, now)  # of an earlier claim than the job's
    transition = lifecycle.decide(job, policy, ended, now, cancelled=cancelled)
    assert (transition.seq, transition.source, transition.claim) == (job.seq, JobState.RUNNING, job.claim - 1)


@given(jobs, instants)
def test_moves_by_hand_are_guarded_by_the_job_as_it_stands(job: Job, now: float) -> None:
    moves = [
        lifecycle.revoke(job, now),
        lifecycle.expire(job, now),
        lifecycle.restore(job, now),
        lifecycle.requeue(job, now),
        lifecycle.reschedule(job, now + 5, now),
        lifecycle.unblock(job, now),
    ]
    for move in moves:
        if move is not None:
            assert (move.seq, move.source, move.claim) == (job.seq, job.state, job.claim)
            assert move.target is not JobState.RUNNING
            assert (move.attempt, move.record) == (job.attempt, None)


@given(jobs, instants)
def test_a_running_job_is_neither_revoked_expired_nor_rescheduled(job: Job, now: float) -> None:
    job = job._replace(state=JobState.RUNNING)
    assert lifecycle.revoke(job, now) is None
    assert lifecycle.expire(job, now) is None
    assert lifecycle.reschedule(job, now, now) is None
    assert lifecycle.restore(job, now) is None
    assert lifecycle.requeue(job, now) is None


# ── how an attempt ends ──────────────────────────────────────────────────────────────────────────────────────────────


@given(policies, st.booleans(), st.none() | st.binary())
def test_success_is_success_whatever_else_was_wished(policy: Policy, cancelled: bool, result: bytes | None) -> None:
    job = running(attempt=3, base=1, crashes=1)
    transition = lifecycle.decide(job, policy, outcome(job, Ending.SUCCEEDED, result=result), NOW, cancelled=cancelled)
    assert transition == Transition(
        1,
        JobState.RUNNING,
        4,
        JobState.SUCCEEDED,
        attempt=3,
        base=1,
        crashes=1,
        started=NOW - 1,
        finished=NOW,
        result=result,
    )


@pytest.mark.parametrize("ending", GIVEN_BACK)
def test_an_attempt_that_does_not_count_is_given_back_without_a_trace(ending: Ending) -> None:
    life = Life(Policy())
    for claims in range(1, 6):
        job = life.run(ending)
        assert (job.attempt, job.crashes, job.base, job.claim) == (0, 0, 0, claims)
    assert life.history == []


@pytest.mark.parametrize(
    ("ending", "delay", "state", "due"),
    [
        (Ending.INTERRUPTED, None, JobState.READY, None),
        (Ending.SNOOZED, 0.0, JobState.READY, None),
        (Ending.SNOOZED, -5.0, JobState.READY, None),
        (Ending.SNOOZED, 30.0, JobState.SCHEDULED, NOW + 30),
        (Ending.SUSPENDED, 30.0, JobState.SCHEDULED, NOW + 30),
        (Ending.UNKNOWN, None, JobState.BLOCKED, None),
    ],
)
def test_where_a_given_back_job_waits(ending: Ending, delay: float | None, state: JobState, due: float | None) -> None:
    job = running()
    transition = lifecycle.decide(job, Policy(), outcome(job, ending, delay=delay), NOW)
    assert (transition.target, transition.due) == (state, due)
    assert transition.reason == ("unknown task: t" if ending is Ending.UNKNOWN else None)


@pytest.mark.parametrize(
    ("delay", "state", "reason"),
    [(None, JobState.BLOCKED, "event: paid"), (0.0, JobState.READY, None), (30.0, JobState.SCHEDULED, None)],
)
def test_a_job_waits_for_its_event_for_ever_or_until_it_gives_up(
    delay: float | None, state: JobState, reason: str | None
) -> None:
    job = running()
    transition = lifecycle.decide(job, Policy(), outcome(job, Ending.SUSPENDED, delay=delay, awaits="paid"), NOW)
    assert (transition.target, transition.reason, transition.awaits) == (state, reason, "paid")


@given(st.sampled_from(Ending), policies)
def test_every_failure_is_recorded_in_full(ending: Ending, policy: Policy) -> None:
    job = running(attempt=2)
    known = {"error_type": "E", "message": "m", "traceback": "tb\n", "details": "d"}
    record = lifecycle.decide(job, policy, outcome(job, ending, **known), NOW).record
    if ending is Ending.SUCCEEDED or ending in GIVEN_BACK:
        assert record is None
    else:
        assert record == Attempt(2, ending, NOW - 1, NOW, "E", "m", "tb\n", "d")


def test_an_ending_that_travelled_as_plain_text_is_an_ending_again() -> None:
    job = running()
    plain = outcome(job, Ending.FAILED)._replace(ending="timeout")  # type: ignore[arg-type]
    record = lifecycle.decide(job, Policy(), plain, NOW).record
    assert record is not None
    assert record.ending is Ending.TIMEOUT


@pytest.mark.parametrize("ending", [Ending.FAILED, Ending.CANCELLED])
def test_text_that_cannot_be_encoded_is_kept_with_escapes(ending: Ending) -> None:
    job = running()
    bad = "no such file: caf\udce9 ü\0"
    ended = outcome(job, ending, error_type=bad, message=bad, traceback=bad, details=bad)
    transition = lifecycle.decide(job, Policy(), ended, NOW)
    kept = "no such file: caf\\udce9 ü\0"
    assert transition.record is not None
    assert transition.record[4:8] == (kept,) * 4
    assert transition.reason == (kept if ending is Ending.CANCELLED else None)


@given(st.integers(0, 5), st.lists(st.sampled_from([Ending.CRASHED, *GIVEN_BACK]), max_size=12), st.randoms())
def test_retries_are_used_up_by_failures_alone(retries: int, others: list[Ending], random: object) -> None:
    life = Life(Policy(retries=retries, max_crashes=1000))
    endings = [*others, *[COUNTED[number % 3] for number in range(retries)]]
    random.shuffle(endings)  # type: ignore[attr-defined]
    for ending in endings:
        assert life.run(ending).state not in FINISHED
    assert life.run(Ending.FAILED).state is JobState.FAILED
    assert sum(attempt.ending in COUNTED for attempt in life.history) == retries + 1
    assert [attempt.number for attempt in life.history] == list(range(1, len(life.history) + 1))


@given(
    st.integers(1, 5), st.integers(0, 5), st.lists(st.sampled_from([*COUNTED, *GIVEN_BACK]), max_size=10), st.randoms()
)
def test_so_many_crashes_fail_a_job_whatever_lies_between(
    max_crashes: int, more: int, others: list[Ending], random: object
) -> None:
    life = Life(Policy(retries=len(others) + more, max_crashes=max_crashes))
    endings = [*others, *[Ending.CRASHED] * (max_crashes - 1)]
    random.shuffle(endings)  # type: ignore[attr-defined]
    for ending in endings:
        assert life.run(ending).state not in FINISHED
    last = life.run(Ending.CRASHED)
    assert (last.state, last.crashes) == (JobState.FAILED, max_crashes)


def test_a_job_that_must_not_run_twice_fails_at_the_first_crash() -> None:
    life = Life(Policy(retries=5, on_crash="fail", max_crashes=99))
    assert life.run(Ending.FAILED).state is JobState.READY
    assert life.run(Ending.CRASHED).state is JobState.FAILED


@pytest.mark.parametrize("max_crashes", [0, 1])
def test_one_crash_is_enough_if_none_is_allowed(max_crashes: int) -> None:
    assert Life(Policy(retries=5, max_crashes=max_crashes)).run(Ending.CRASHED).state is JobState.FAILED


@given(st.integers(0, 5), st.sampled_from(COUNTED))
def test_an_error_that_may_not_be_retried_is_final(retries: int, ending: Ending) -> None:
    assert Life(Policy(retries=retries)).run(ending, retryable=False).state is JobState.FAILED


@given(policies, st.sampled_from(sorted(FINAL)))
def test_some_endings_are_final_whatever_retries_are_left(policy: Policy, ending: Ending) -> None:
    job = Life(policy).run(ending, message="why")
    assert job.state is FINAL[ending]
    assert job.reason == ("why" if ending is Ending.CANCELLED else None)


@given(policies, st.sampled_from(Ending))
def test_a_job_revoked_while_it_ran_is_not_run_again(policy: Policy, ending: Ending) -> None:
    free, cancelled = Life(policy).run(ending), Life(policy).run(ending, cancelled=True)
    if free.state in FINISHED:
        assert cancelled == free
    else:
        assert cancelled.state is JobState.REVOKED
        assert cancelled.reason == "revoked while it ran"


def test_the_wait_follows_the_failures_and_not_the_crashes() -> None:
    policy = Policy(retries=9, retry=RetryDelay(delay=10, backoff=2), max_crashes=9)
    life = Life(policy)
    waits = []
    for ending in [Ending.FAILED, Ending.CRASHED, Ending.CRASHED, Ending.INTERRUPTED, Ending.TIMEOUT, Ending.RETRY]:
        job = life.run(ending)
        waits.append(job.due - life.now if job.state is JobState.SCHEDULED and job.due is not None else 0.0)
    assert waits == [10, 10, 20, 0, 20, 40]


@given(st.floats(0, 0.999), st.integers(1, 5))
def test_jitter_shortens_the_wait_by_the_draw(draw: float, failures: int) -> None:
    job = running(attempt=failures)
    policy = Policy(retries=9, retry=RetryDelay(delay=10, backoff=2, jitter=True))
    transition = lifecycle.decide(job, policy, outcome(job, Ending.FAILED), NOW, draw=draw)
    expected = NOW + 10 * 2 ** (failures - 1) * draw
    assert (transition.due or NOW) == expected
    assert transition.target is (JobState.SCHEDULED if expected > NOW else JobState.READY)


@given(st.sampled_from(COUNTED), st.floats(-10, 1e6))
def test_what_the_task_asks_for_goes_before_its_retry_delay(ending: Ending, delay: float) -> None:
    job = running()
    policy = Policy(retries=1, retry=RetryDelay(delay=77))
    transition = lifecycle.decide(job, policy, outcome(job, ending, delay=delay), NOW)
    assert transition.due == (NOW + delay if NOW + delay > NOW else None)


@given(st.lists(st.sampled_from([*COUNTED, *GIVEN_BACK, Ending.CRASHED]), max_size=20), policies)
def test_counters_stay_true_through_any_life(endings: list[Ending], policy: Policy) -> None:
    life = Life(policy)
    for claims, ending in enumerate(endings, 1):
        job = life.run(ending)
        failures = sum(attempt.ending in COUNTED for attempt in life.history)
        assert job.claim == claims
        assert job.attempt == len(life.history) == failures + job.crashes
        assert job.base == 0
        if job.state in FINISHED:
            return


# ── crash, release, unblock ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_crash_says_what_is_known_of_it() -> None:
    job = running()
    crash = lifecycle.crashed(job, NOW, "killed by SIGKILL")
    assert crash == Outcome(
        1, 4, Ending.CRASHED, NOW - 1, NOW, None, "WorkerCrashed", "killed by SIGKILL", details="killed by SIGKILL"
    )


def test_what_a_dead_worker_has_left_behind_joins_the_history() -> None:
    job = running()
    crash = lifecycle.crashed(job, NOW, "killed by SIGKILL", Death(1 << 20, 0.5, "a \udc80 name"))
    record = lifecycle.decide(job, Policy(), crash, NOW).record
    assert record is not None
    assert (record.peak_rss, record.cpu_time, record.log) == (1 << 20, 0.5, "a \\udc80 name")


@given(jobs)
def test_a_claimed_job_that_never_started_can_be_given_back(job: Job) -> None:
    back = lifecycle.release(job)
    assert (back.source, back.claim, back.target) == (JobState.RUNNING, job.claim, JobState.READY)
    assert (back.attempt, back.base, back.crashes) == (job.attempt - 1, job.base, job.crashes)
    assert back.record is None


@pytest.mark.parametrize(
    ("due", "state"), [(None, JobState.READY), (NOW - 1, JobState.READY), (NOW + 9, JobState.SCHEDULED)]
)
def test_what_was_blocked_or_revoked_goes_back_to_where_it_waited(due: float | None, state: JobState) -> None:
    job = Job(1, "id", "t", JobState.REVOKED, due=due)
    for back in (lifecycle.restore(job, NOW), lifecycle.unblock(job._replace(state=JobState.BLOCKED), NOW)):
        assert back is not None
        assert back.target is state
        assert back.due == (due if state is JobState.SCHEDULED else None)


# ── revoke, reschedule, requeue ──────────────────────────────────────────────────────────────────────────────────────


@given(jobs.filter(lambda job: job.state in WAITING))
def test_a_waiting_job_is_revoked_and_restored_as_it_was(job: Job) -> None:
    life = Life(Policy())
    life.job = job._replace(reason=None, started=None)
    revoked = life.apply(lifecycle.revoke(life.job, NOW, "no need"))
    assert (revoked.state, revoked.reason, revoked.finished) == (JobState.REVOKED, "no need", NOW)
    restored = life.apply(lifecycle.restore(revoked, NOW))
    expected = JobState.SCHEDULED if job.due is not None and job.due > NOW else JobState.READY
    assert restored == job._replace(state=expected, reason=None, started=None)
    assert life.history == []


@given(st.sampled_from([JobState.READY, JobState.SCHEDULED]), instants, st.none() | instants)
def test_a_waiting_job_takes_another_time_and_keeps_it(state: JobState, due: float, before: float | None) -> None:
    life = Life(Policy())
    life.job = life.job._replace(state=state, due=before)
    moved = life.apply(lifecycle.reschedule(life.job, due, NOW))
    assert moved.state is (JobState.SCHEDULED if due > NOW else JobState.READY)
    assert moved.due == due
    life.apply(lifecycle.revoke(moved, NOW))
    assert life.apply(lifecycle.restore(life.job, NOW)) == moved


def test_a_blocked_job_cannot_be_rescheduled() -> None:
    assert lifecycle.reschedule(Job(1, "id", "t", JobState.BLOCKED), NOW + 5, NOW) is None


@given(
    policies,
    st.lists(st.sampled_from([*COUNTED, Ending.CRASHED, Ending.INTERRUPTED]), max_size=8),
    st.integers(1, 3),
)
def test_requeue_gives_the_whole_allowance_and_counts_on(policy: Policy, before: list[Ending], rounds: int) -> None:
    life = Life(policy, expires=NOW + 1e6)
    for ending in before:
        if life.job.state not in FINISHED:
            life.run(ending)
    for _ in range(rounds):
        if life.job.state not in FINISHED:
            life.apply(lifecycle.revoke(life.job, life.now))
        kept = list(life.history)
        back = life.apply(lifecycle.requeue(life.job, life.now))
        assert (back.state, back.crashes, back.base, back.expires) == (JobState.READY, 0, back.attempt, None)
        for _ in range(policy.retries):
            assert life.run(Ending.FAILED).state not in FINISHED
        assert life.run(Ending.FAILED).state is JobState.FAILED
        assert life.history[: len(kept)] == kept
        assert len(life.history) == len(kept) + policy.retries + 1
    numbers = [attempt.number for attempt in life.history]
    assert numbers == list(range(1, len(numbers) + 1))


@given(st.integers(1, 4))
def test_requeue_forgives_the_crashes(max_crashes: int) -> None:
    life = Life(Policy(max_crashes=max_crashes))
    for _ in range(2):
        for number in range(1, max_crashes + 1):
            assert life.run(Ending.CRASHED).crashes == number
        assert life.job.state is JobState.FAILED
        life.apply(lifecycle.requeue(life.job, life.now))


@given(policies)
def test_an_interrupted_attempt_after_requeue_is_given_back_too(policy: Policy) -> None:
    life = Life(policy)
    life.run(Ending.GAVE_UP)
    life.apply(lifecycle.requeue(life.job, life.now))
    for _ in range(3):
        job = life.run(Ending.INTERRUPTED)
        assert (job.attempt, job.base) == (1, 1)


def test_a_job_requeued_before_it_was_due_is_not_held_back_again() -> None:
    life = Life(Policy(), due=NOW + 1000)
    life.apply(lifecycle.revoke(life.job, NOW))
    requeued = life.apply(lifecycle.requeue(life.job, NOW))
    assert (requeued.state, requeued.due) == (JobState.READY, NOW)
    blocked = life.run(Ending.UNKNOWN)
    assert life.apply(lifecycle.unblock(blocked, life.now)).state is JobState.READY


# ── expiry ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(instants, instants, st.sampled_from(sorted(WAITING)))
def test_a_waiting_job_expires_from_that_instant_on(expires: float, now: float, state: JobState) -> None:
    job = Job(1, "id", "t", state, expires=expires)
    transition = lifecycle.expire(job, now)
    assert (transition is not None) == (expires <= now)
    if transition is not None:
        assert (transition.target, transition.finished, transition.attempt) == (JobState.EXPIRED, now, 0)
        assert transition.reason


@given(jobs)
def test_a_job_without_expiry_never_expires(job: Job) -> None:
    assert lifecycle.expire(job._replace(expires=None), math.inf) is None
    assert not lifecycle.has_expired(job._replace(expires=None), math.inf)


@given(st.sampled_from([*COUNTED, Ending.CRASHED]))
def test_a_job_that_was_started_once_does_not_expire(ending: Ending) -> None:
    life = Life(Policy(retries=3), expires=NOW + 0.5)
    waiting = life.run(ending)
    assert lifecycle.expire(waiting, NOW + 1e6) is None
    assert lifecycle.admit(life.claim(), NOW + 1e6, {}) is None


@pytest.mark.parametrize("awaits", [None, "paid"])
@pytest.mark.parametrize("delay", [None, 0.0, 30.0])
def test_a_job_that_was_suspended_was_started_in_time(awaits: str | None, delay: float | None) -> None:
    life = Life(Policy(), expires=NOW + 0.5)
    waiting = life.run(Ending.SUSPENDED, awaits=awaits, delay=delay)
    assert lifecycle.expire(waiting, NOW + 1e6) is None
    assert waiting.attempt == 0


@pytest.mark.parametrize("ending", [one for one in GIVEN_BACK if one is not Ending.SUSPENDED])
def test_an_attempt_given_back_was_no_start(ending: Ending) -> None:
    life = Life(Policy(), expires=NOW + 0.5)
    waiting = life.run(ending)
    assert lifecycle.expire(waiting, NOW + 1) is not None


def test_a_requeued_job_does_not_expire_again() -> None:
    life = Life(Policy(), expires=NOW)
    life.apply(lifecycle.expire(life.job, NOW))
    life.apply(lifecycle.requeue(life.job, NOW))
    assert lifecycle.admit(life.claim(), NOW + 1e6, {}) is None


# ── may it start? ────────────────────────────────────────────────────────────────────────────────────────────────────


def admitted(job: Job, now: float, marks: dict[str, str]) -> tuple[JobState, tuple[str, str] | None] | None:
    transition = lifecycle.admit(job, now, marks)
    if transition is None:
        return None
    assert (transition.source, transition.claim, transition.attempt) == (JobState.RUNNING, job.claim, job.attempt - 1)
    assert transition.finished == now
    assert transition.record is None
    assert transition.reason
    return transition.target, transition.consume


def test_a_job_starts_if_nothing_is_against_it() -> None:
    others = {REVOKE_MARK + "T": Revocation().dumps(), REVOKE_MARK: Revocation().dumps(), CANCEL_MARK + "2": "x"}
    others |= {PAUSE_MARK + "t": "x", "t": Revocation().dumps()}
    assert admitted(running(), NOW, {}) is None
    assert admitted(running(), NOW, others) is None
    assert admitted(running(expires=NOW + 1), NOW, others) is None


@given(st.none() | instants, st.booleans(), instants)
@example(until=NOW, once=False, now=NOW)
def test_a_revoked_task_does_not_start_until_the_revocation_ends(until: float | None, once: bool, now: float) -> None:
    value = Revocation(until, once).dumps()
    answer = admitted(running(), now, {REVOKE_MARK + "t": value})
    if until is not None and now >= until:
        assert answer is None
    else:
        assert answer == (JobState.REVOKED, (REVOKE_MARK + "t", value) if once else None)


@given(instants, instants)
def test_an_expired_job_does_not_start(expires: float, now: float) -> None:
    answer = admitted(running(expires=expires), now, {})
    assert answer == ((JobState.EXPIRED, None) if expires <= now else None)


def test_a_job_revoked_while_its_retry_was_under_way_does_not_start() -> None:
    job = running(expires=NOW - 1)
    marks = {CANCEL_MARK + "1": "", CANCEL_MARK + "11": "x", REVOKE_MARK + "t": Revocation(once=True).dumps()}
    assert admitted(job, NOW, marks) == (JobState.REVOKED, None)
    transition = lifecycle.admit(job, NOW, marks)
    assert transition is not None
    assert transition.drop_mark == CANCEL_MARK + "1"


@given(jobs, policies, st.sampled_from(Ending))
def test_what_settles_a_cancelled_job_takes_its_mark_along(job: Job, policy: Policy, ending: Ending) -> None:
    job = job._replace(base=0, crashes=0)
    transition = lifecycle.decide(job, policy, outcome(job, ending), NOW, cancelled=True)
    assert transition.target in FINISHED
    if transition.reason == "revoked while it ran":
        assert transition.drop_mark == lifecycle.cancel_mark(job) == f"{CANCEL_MARK}{job.seq}"


@given(jobs)
def test_a_job_brought_back_is_not_cancelled_any_more(job: Job) -> None:
    for back in (lifecycle.restore(job, NOW), lifecycle.requeue(job, NOW)):
        assert back is None or back.drop_mark == lifecycle.cancel_mark(job)


@given(st.none() | st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_a_revocation_survives_storing(until: float | None, once: bool) -> None:
    revocation = Revocation(until, once)
    assert Revocation.loads(revocation.dumps()) == revocation


# ── a whole life at random ───────────────────────────────────────────────────────────────────────────────────────────


@given(st.data(), policies, st.none() | instants, st.none() | instants)
def test_every_way_through_the_states_is_one_that_is_drawn(
    data: st.DataObject, policy: Policy, due: float | None, expires: float | None
) -> None:
    life = Life(policy, due=due, expires=expires)
    steps: Sequence[Callable[[], object]] = [
        lambda: life.run(data.draw(st.sampled_from(Ending)), cancelled=data.draw(st.booleans())),
        lambda: life.apply(lifecycle.revoke(life.job, life.now)),
        lambda: life.apply(lifecycle.reschedule(life.job, data.draw(instants), life.now)),
        lambda: life.apply(lifecycle.requeue(life.job, life.now)),
        lambda: life.apply(lifecycle.restore(life.job, life.now)),
        lambda: life.apply(lifecycle.expire(life.job, life.now)),
    ]
    possible = {
        JobState.READY: [0, 1, 2],
        JobState.SCHEDULED: [0, 1, 2],
        JobState.BLOCKED: [0, 1],
        JobState.REVOKED: [3, 4],
    }
    allowed = {
        JobState.READY: set(JobState) - {JobState.RUNNING},
        JobState.SCHEDULED: set(JobState) - {JobState.RUNNING},
        JobState.BLOCKED: set(JobState) - {JobState.RUNNING},
        JobState.REVOKED: {JobState.READY, JobState.SCHEDULED},
    }
    for _ in range(data.draw(st.integers(1, 15))):
        before = life.job
        ways = possible.get(before.state, [3])
        if lifecycle.expire(before, life.now) is not None:
            ways = [*ways, 5]
        steps[data.draw(st.sampled_from(ways))]()
        assert life.job.state in allowed.get(before.state, {JobState.READY})
        assert life.job.claim >= before.claim
        assert 0 <= life.job.base <= life.job.attempt
        assert [attempt.number for attempt in life.history] == sorted({attempt.number for attempt in life.history})


@given(jobs.map(lambda job: job._replace(state=JobState.RUNNING, owner=1)))
def test_a_job_that_runs_arrives_elsewhere_as_if_it_had_been_given_back(job: Job) -> None:
    back = lifecycle.release(job)
    arrived = lifecycle.arrive(job, 9.0)
    assert (arrived.state, arrived.attempt, arrived.claim) == (JobState.READY, back.attempt, job.claim)
    assert (arrived.owner, arrived.started) == (None, None)
    assert lifecycle.arrive(job, 9.0, cancelled=True).state is JobState.REVOKED
    assert lifecycle.arrive(arrived, 9.0, cancelled=True) == arrived


def test_a_job_in_line_arrives_elsewhere_as_ready_and_one_that_waits_for_something_else_as_it_is() -> None:
    for reason, state in (("waits for lock x", JobState.READY), ("event: paid", JobState.BLOCKED)):
        job = Job(1, "a", "t", JobState.BLOCKED, reason=reason)
        assert lifecycle.arrive(job, 9.0).state is state
