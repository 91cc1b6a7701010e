"""Rate limits as a program uses them: of a task, by key, and under a name; over several processes."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest
from workbench import PATIENCE, Program, claim, run, work

from liteq import ConfigurationError, JobState, LiteQ, RateLimitExceeded, TaskFailed
from liteq.clock import ManualClock, SystemClock
from liteq.execution import close_loop


def nothing(user: str = "", order: Any = None) -> None:
    return None


# ── definitions ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"rate_limit": "0/s"}, ConfigurationError, "lets 1 to"),
        ({"rate_limit": "fast"}, ConfigurationError, "a rate is written '10/s'"),
        ({"rate_limit": 10}, TypeError, "rate_limit takes a string such as '10/s', not int"),
        ({"rate_limit_key": "{user}"}, ConfigurationError, r"rate_limit=\.\.\. is counted by, and needs that option"),
        ({"rate_limit": "1/s", "rate_limit_key": "{nobody}"}, ConfigurationError, "'nobody', which is no argument"),
        ({"rate_limit": "1/s", "rate_limit_key": "all"}, ConfigurationError, "names no argument"),
        ({"rate_limit": "1/s", "rate_limit_key": 7}, TypeError, "rate_limit_key takes a string"),
    ],
)
def test_a_rate_that_makes_no_sense_is_refused_at_the_definition(
    app: LiteQ, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        app.task(**options)(nothing)
    assert app.tasks == {}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"limit": 0, "per": 1}, ConfigurationError, "limit must be an integer from 1"),
        ({"limit": "9", "per": 1}, TypeError, "limit takes an integer"),
        ({"limit": 9, "per": 0}, ConfigurationError, "per"),
        ({"limit": 9, "per": "1 s"}, TypeError, "per"),
        ({"limit": 9, "per": 1, "burst": 0}, ConfigurationError, "burst must be an integer from 1"),
        ({"limit": 9, "per": 1, "wait": 1}, TypeError, "wait takes True or False"),
        ({"limit": 9, "per": 1, "retry": 1}, TypeError, "retry takes True or False"),
        ({"limit": 9, "per": 1, "timeout": 1}, ConfigurationError, "it needs wait=True"),
    ],
)
def test_a_named_rate_that_makes_no_sense_is_refused(
    app: LiteQ, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        app.rate_limit("api", **arguments)


def test_a_call_whose_key_cannot_be_filled_in_is_not_stored(app: LiteQ) -> None:
    task = app.task(rate_limit="1/s", rate_limit_key="{order[id]}", name="mail")(nothing)
    with pytest.raises(ConfigurationError, match=r"mail was not enqueued: its rate_limit_key '\{order\[id\]\}'"):
        task(order=None)
    assert app.counts()[JobState.READY] == 0


# ── tasks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_jobs_beyond_the_rate_wait_and_come_in_their_order(app: LiteQ, clock: ManualClock) -> None:
    task = app.task(rate_limit="1/s burst 2", name="mail")(nothing)
    results = task.map(range(4))
    assert work(app) == 2
    assert (results[2].state, results[2].job().reason, results[2].job().attempt) == (
        JobState.BLOCKED,
        "waits for rate mail",
        0,
    )
    clock.advance(1)
    assert work(app) == 1
    assert [one.state for one in results][2:] == [JobState.SUCCEEDED, JobState.BLOCKED]
    clock.advance(1)
    assert work(app) == 1


def test_a_rate_is_counted_by_key_and_beside_other_limits(app: LiteQ, clock: ManualClock) -> None:
    task = app.task(rate_limit="1/m", rate_limit_key="{user}", max_running=2, max_running_key="{order}", name="mail")(
        nothing
    )
    for order in range(3):
        task("ann", order)
        task("bob", 9)
    assert [job.options for job in claim(app)] == [
        '{"limit_key":"0","rate_key":"ann"}',
        '{"limit_key":"9","rate_key":"bob"}',
    ]
    clock.advance(60)
    assert len(claim(app)) == 2


def test_a_retry_takes_a_token_of_its_own(app: LiteQ, clock: ManualClock) -> None:
    @app.task(rate_limit="1/m", retries=1)
    def fails() -> None:
        raise ValueError

    result = fails()
    assert work(app) == 1
    assert result.state is JobState.BLOCKED
    clock.advance(60)
    assert work(app) == 1
    assert result.state is JobState.FAILED


def test_a_rate_can_be_seen_and_changed_at_run_time(app: LiteQ, clock: ManualClock) -> None:
    task = app.task(rate_limit="1/m", name="mail")(nothing)
    [limit] = app.limits.list()
    assert (limit.task, limit.rate_limit, limit.declared, limit.tokens, limit.waiting) == ("mail", "1/m", "1/m", 1, 0)
    task.map(range(9))
    work(app)
    [limit] = app.limits.list()
    assert (limit.tokens, limit.waiting, limit.max_running, limit.holders) == (0, 8, None, ())
    assert limit.next_at is not None and limit.next_at.timestamp() == clock.now() + 60
    app.limits.set(task, rate_limit="5/s burst 5")
    clock.advance(1)
    assert work(app) == 5
    assert app.limits.list()[0].rate_limit == "5/s burst 5"
    app.limits.reset("mail")
    clock.advance(1.001)
    assert work(app) == 1, "a full bucket of the old rate again"
    with pytest.raises(ConfigurationError, match=r"'mail' is not declared with max_running="):
        app.limits.set(task, 3)
    with pytest.raises(TypeError, match="takes max_running="):
        app.limits.set(task)
    with pytest.raises(ConfigurationError, match="a rate is written"):
        app.limits.set(task, rate_limit="none")


def test_a_change_survives_restarts(on_file: LiteQ) -> None:
    task = on_file.task(rate_limit="1/h", max_running=3, name="mail")(nothing)
    on_file.limits.set(task, 5, rate_limit="2/h")
    on_file.close()
    again = LiteQ(on_file.storage.location)
    again.task(rate_limit="1/h", max_running=3, name="mail")(nothing)
    assert [(one.max_running, one.rate_limit) for one in again.limits.list()] == [(5, None), (None, "2/h")]
    again.limits.reset("mail")
    assert [(one.max_running, one.rate_limit) for one in again.limits.list()] == [(3, None), (None, "1/h")]
    again.close()


def test_a_queue_that_is_paused_starts_again_when_it_is_resumed(app: LiteQ, clock: ManualClock) -> None:
    task = app.task(rate_limit="1/m", name="mail")(nothing)
    task.map(range(2))
    work(app)
    app.pause("default")
    clock.advance(60)
    assert work(app) == 0
    app.resume("default")
    assert work(app) == 1


def test_in_immediate_mode_a_result_is_waited_for_on_the_apps_clock(clock: ManualClock) -> None:
    app = LiteQ(immediate=True, clock=clock)
    task = app.task(rate_limit="1/m", name="mail")(nothing)
    began = clock.now()
    results = [task() for _ in range(3)]
    assert results[2].state is JobState.BLOCKED
    assert [one.get() for one in results] == [None] * 3
    assert clock.now() == began + 120


# ── under a name ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_caller_is_refused_and_told_how_long(app: LiteQ, clock: ManualClock) -> None:
    api = app.rate_limit("api", 2, 60)
    for _ in range(2):
        with api:
            pass
    with pytest.raises(RateLimitExceeded, match="'api' is exceeded; there will be room in 30 s") as caught, api:
        pytest.fail("there was no token")
    assert (caught.value.name, caught.value.delay, caught.value.retry) == ("api", 30.0, True)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    clock.advance(30)
    with app.rate_limit("api", 2, 60):
        pass


def test_a_caller_waits_on_the_apps_clock(app: LiteQ, clock: ManualClock) -> None:
    api = app.rate_limit("api", 1, 10, wait=True)
    began = clock.now()
    for _ in range(3):
        with api:
            pass
    assert clock.now() == pytest.approx(began + 20, abs=0.01)
    assert app.storage.gates.states() == []


def test_a_caller_does_not_wait_for_ever(app: LiteQ, clock: ManualClock) -> None:
    with app.rate_limit("api", 1, 60):
        pass
    began = clock.now()
    with pytest.raises(RateLimitExceeded), app.rate_limit("api", 1, 60, wait=True, timeout=5):
        pass
    assert clock.now() == pytest.approx(began + 5)
    assert app.storage.gates.states() == []


def test_a_task_that_is_refused_comes_back_and_that_costs_no_attempt(app: LiteQ, clock: ManualClock) -> None:
    @app.task
    def call() -> int:
        with app.rate_limit("api", 1, 60):
            return 1

    results = [call(), call()]
    work(app)
    assert (results[1].state, results[1].job().attempt) == (JobState.SCHEDULED, 0)
    clock.advance(60)
    work(app)
    assert results[1].get(0) == 1


def test_a_task_that_is_refused_fails_where_that_is_wanted(app: LiteQ) -> None:
    @app.task
    @app.rate_limit("api", 1, 60, retry=False)
    def call() -> int:
        return 1

    results = [call(), call()]
    work(app)
    with pytest.raises(TaskFailed, match="RateLimitExceeded: the rate limit 'api' is exceeded"):
        results[1].get(0)


def test_jobs_of_several_tasks_wait_for_one_rate_without_a_worker(app: LiteQ, clock: ManualClock) -> None:
    api = app.rate_limit("api", 1, 60, wait=True)
    seen: list[str] = []

    @app.task
    @api
    def one() -> None:
        seen.append("one")

    @app.task
    @api
    async def two() -> None:
        seen.append("two")

    results = [one(), two()]
    assert work(app) == 1
    assert (results[1].state, results[1].job().reason) == (JobState.BLOCKED, "waits for rate_limit api")
    [limit] = app.limits.list()
    assert (limit.name, limit.task, limit.rate_limit, limit.waiting) == ("api", None, "1/m", 1)
    app.limits.set(api, rate_limit="1/s")
    clock.advance(1)
    assert work(app) == 1
    close_loop()
    assert seen == ["one", "two"], "the token of the claim is the function's"
    app.limits.reset(api)
    with pytest.raises(ConfigurationError, match="'api' has no max_running"):
        app.limits.set(api, 3)


def test_a_function_that_calls_itself_takes_a_token_each_time(app: LiteQ) -> None:
    depth = 0

    @app.rate_limit("api", 3, 60)
    def recursive() -> None:
        nonlocal depth
        depth += 1
        recursive()

    with pytest.raises(RateLimitExceeded):
        recursive()
    assert depth == 3


def test_coroutines_wait_while_the_loop_goes_on(on_file: LiteQ) -> None:
    api = on_file.rate_limit("api", 100, 1, wait=True, burst=1)
    passed: list[int] = []

    async def call(number: int) -> None:
        async with api:
            passed.append(number)

    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(call(number) for number in range(8)))
            slow = on_file.rate_limit("slow", 1, 3600, wait=True)
            async with slow:
                waiting = asyncio.create_task(slow.__aenter__())
                while not on_file.storage.gates.states("rate_limit:slow"):
                    await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting

    began = SystemClock.monotonic()
    asyncio.run(main())
    assert sorted(passed) == list(range(8))
    assert SystemClock.monotonic() - began >= 0.069, "seven of them had to wait for a token"
    assert on_file.storage.gates.states() == []


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────────

TAKER = """
    from liteq import LiteQ
    app = LiteQ(sys.argv[1], durability="normal")
    api = app.rate_limit("api", 50, 1, wait=True, burst=5)
    with app.lock_task("warm up", wait=True):
        say("ready")
    hear()
    for _ in range(20):
        with api:
            say(app._clock.now())
"""


def test_two_processes_share_a_rate(on_file: LiteQ) -> None:
    with Program(TAKER, on_file.storage.location) as one, Program(TAKER, on_file.storage.location) as other:
        assert one.hear() == other.hear() == "ready"
        one.tell()
        other.tell()
        passed = sorted(float(program.hear()) for _ in range(20) for program in (one, other))
        assert one.finish() == other.finish() == 0
    # What is told is when they had passed; a slow one may have taken its token long before.
    assert passed[-1] - passed[0] >= (40 - 5) / 50 - 0.25


CONSUMER = """
    from pathlib import Path
    from liteq import LiteQ
    app = LiteQ(sys.argv[1], durability="normal")

    @app.task(rate_limit="40/s burst 4", name="tick")
    def tick(number):
        return None

    with app.run_in_background(workers=4):
        say("ready")
        hear()
"""


@pytest.mark.slow
def test_two_consumers_share_a_bucket_and_wake_when_the_next_token_comes(on_file: LiteQ, directory: Path) -> None:
    tick = on_file.task(rate_limit="40/s burst 4", name="tick")(nothing)
    with Program(CONSUMER, on_file.storage.location) as one, Program(CONSUMER, on_file.storage.location) as other:
        assert one.hear() == other.hear() == "ready"
        results = tick.map(range(60))
        results.get(PATIENCE)
        jobs = [result.job() for result in results]
        one.tell()
        other.tell()
    starts = sorted(job.attempts[0].started or 0.0 for job in jobs)
    claims = {job.attempt for job in jobs}
    assert claims == {1}
    assert starts[-1] - starts[0] >= (60 - 4) / 40 - 0.25


def test_a_burst_waits_for_what_may_start_within_a_minute_and_leaves_the_rest(on_file: LiteQ) -> None:
    soon = on_file.task(rate_limit="50/s burst 1", name="soon")(nothing)
    late = on_file.task(rate_limit="1/h", name="late")(nothing)
    soon.map(range(5))
    late.map(range(2))
    on_file.create_consumer(workers=2, burst=True).run()
    counts = on_file.counts()
    assert (counts[JobState.SUCCEEDED], counts[JobState.BLOCKED]) == (6, 1)


def test_a_job_that_was_claimed_and_given_back_is_not_counted(app: LiteQ) -> None:
    task = app.task(rate_limit="1/h", name="mail")(nothing)
    first, second = task(), task()
    [job] = claim(app)
    app.engine.round([], None, released=[job])
    [again] = claim(app)
    assert again.id == first.id
    run(app, again)
    assert second.state is JobState.BLOCKED
