"""Durable steps: what is done once and recorded, sleeps and events that need no worker, and what must go wrong."""

from __future__ import annotations

import asyncio
import json
import pickle
from datetime import timedelta
from typing import Any

import pytest
from workbench import Silent, claim, run, work

from liteq import (
    ClaimLost,
    DuplicateStep,
    EventTimeout,
    JobFinished,
    JobNotFound,
    JobState,
    LiteQ,
    PayloadTooLarge,
    Retry,
    StepKind,
    StepState,
    TaskContext,
    TaskFailed,
    lifecycle,
)
from liteq.clock import ManualClock
from liteq.errors import ConfigurationError, SerializationError
from liteq.execution import NoDeadline, close_loop, execute


class Shop:
    """What the outside world has seen."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing: set[str] = set()

    def charge(self, what: str, value: Any = "paid") -> Any:
        self.calls.append(what)
        if what in self.failing:
            raise ConnectionError(what)
        return value

    async def acharge(self, what: str, value: Any = "paid") -> Any:
        await asyncio.sleep(0)
        return self.charge(what, value)


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture(params=["memory", "file"])
def app(request: pytest.FixtureRequest, clock: ManualClock, directory: Any) -> Any:
    app = LiteQ(":memory:" if request.param == "memory" else directory / "queue.db", clock=clock, max_payload=2000)
    yield app
    close_loop()
    app.close()


def error_of(app: LiteQ, body: Any) -> TaskFailed:
    """How a job with this body fails for good."""
    result = app.task(context=True, name=f"t{len(app.tasks)}")(body)()
    work(app)
    assert result.state == "failed", result.job()
    error = result.error
    assert error is not None
    return error


# ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_retry_goes_on_behind_the_last_recorded_step(app: LiteQ, shop: Shop) -> None:
    @app.task(context=True, retries=5)
    def buy(*, task: TaskContext) -> list[Any]:
        first = task.step("first", shop.charge, "first", value=(1, b"\xff", {"a": None}))
        second = task.step("second", shop.charge, "second", None)
        third = task.step("third", shop.charge, "third")
        return [first, second, third]

    result = buy()
    shop.failing = {"second"}
    assert work(app) == 6
    shop.failing = {"third"}
    assert result.requeue()
    work(app)
    shop.failing = set()
    assert result.requeue()
    work(app)
    assert result.get(0) == [(1, b"\xff", {"a": None}), None, "paid"]
    assert shop.calls == ["first", *["second"] * 7, *["third"] * 7]
    steps = result.steps()
    assert [(one.kind, one.name, one.attempt) for one in steps] == [
        ("step", "first", 1),
        ("step", "second", 7),
        ("step", "third", 13),
    ]
    assert app.steps(result.id) == steps
    assert steps[0].recorded_at is not None
    assert result.requeue(from_start=True)
    assert result.steps() == []
    work(app)
    assert shop.calls[-3:] == ["first", "second", "third"]


def test_an_async_step_is_done_once_too(app: LiteQ, shop: Shop) -> None:
    @app.task(context=True, retries=1)
    async def buy(*, task: TaskContext) -> list[Any]:
        both = await asyncio.gather(
            task.astep("a", shop.acharge, "a", value=1), task.astep("b", shop.acharge, "b", value=2)
        )
        plain = await task.astep("plain", shop.charge, "plain")
        if task.attempt == 1:
            raise ValueError
        return [*both, plain]

    result = buy()
    work(app)
    assert result.get(0) == [1, 2, "paid"]
    assert sorted(shop.calls) == ["a", "b", "plain"]


def test_what_a_step_returned_in_a_step_is_not_lost_with_it(app: LiteQ, shop: Shop) -> None:
    @app.task(context=True, retries=1)
    def buy(*, task: TaskContext) -> Any:
        def outer() -> Any:
            inner = task.step("inner", shop.charge, "inner")
            if task.attempt == 1:
                raise ValueError
            return [inner, "outer"]

        return task.step("outer", outer)

    result = buy()
    work(app)
    assert result.get(0) == ["paid", "outer"]
    assert shop.calls == ["inner"]


def test_a_name_used_twice_in_one_run_is_an_error(app: LiteQ, shop: Shop) -> None:
    def body(*, task: TaskContext) -> None:
        for _ in range(2):
            task.step("charge", shop.charge, "x")

    error = error_of(app, body)
    assert error.error_type == "DuplicateStep"
    assert "second step 'charge'" in error.message
    assert shop.calls == ["x"]
    copy = pickle.loads(pickle.dumps(DuplicateStep("charge", "7")))
    assert (copy.name, copy.job_id) == ("charge", "7")


@pytest.mark.parametrize(
    ("value", "words"),
    [(object(), "object"), (b"x" * 2000, "bytes, more than the 2,000 of LiteQ(max_payload=...)")],
    ids=["not storable", "too large"],
)
def test_a_result_that_cannot_be_kept_is_an_error_that_names_the_step(
    app: LiteQ, shop: Shop, value: Any, words: str
) -> None:
    error = error_of(app, lambda *, task: task.step("charge", shop.charge, "x", value))
    assert error.error_type in ("SerializationError", "PayloadTooLarge")
    assert "step 'charge' of job" in error.message
    assert "recorded" in error.message
    assert words in error.message
    assert app.steps(error.job_id) == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda task: task.step(7, print), "the name of a step takes a string, not int 7"),
        (lambda task: task.step("", print), "the name of a step must have 1 to 255 characters"),
        (lambda task: task.step("x", asyncio.sleep, 0), "write `await task.astep('x', …)`"),
        (lambda task: task.sleep("soon"), "sleep takes"),
        (lambda task: task.sleep(-1), "sleep must"),
        (lambda task: task.sleep(1, name=7), "the name of a sleep takes a string"),
        (lambda task: task.wait_for(None), "the name of an event takes a string"),
        (lambda task: task.wait_for("x", timeout="soon"), "timeout takes"),
    ],
)
def test_a_wrong_argument_is_named(app: LiteQ, call: Any, words: str) -> None:
    error = error_of(app, lambda *, task: call(task))
    assert words in error.message
    assert app.steps(error.job_id) == []


def test_who_has_lost_his_job_records_nothing_and_does_no_further_step(app: LiteQ, shop: Shop) -> None:
    def effect(job: Any) -> str:
        app.storage.apply([lifecycle.release(job)], 0.0)  # somebody has taken it for dead
        return shop.charge("effect")

    seen: list[BaseException] = []

    @app.task(context=True)
    def buy(*, task: TaskContext) -> None:
        for name in ("one", "two"):
            try:
                task.step(name, effect, task._job)
            except ClaimLost as error:
                seen.append(error)
        raise seen[-1]

    result = buy()
    [job] = claim(app)
    run(app, job)
    assert shop.calls == ["effect"], "the second step was not even begun"
    assert (result.state, result.steps()) == ("ready", [])
    assert [str(error) for error in seen] == [str(seen[0])] * 2
    assert "does not belong to this worker any more" in str(seen[0])
    assert isinstance(pickle.loads(pickle.dumps(seen[0])), ClaimLost)


def test_steps_go_with_the_job(app: LiteQ, shop: Shop) -> None:
    result = app.task(context=True, name="t")(lambda *, task: task.step("x", shop.charge, "x"))()
    work(app)
    assert len(result.steps()) == 1
    assert app.purge() == 1
    with pytest.raises(JobNotFound):
        result.steps()


def test_the_key_of_a_step_is_the_jobs_and_its_own(app: LiteQ) -> None:
    task = app.task(context=True, name="t")(lambda *, task: [task.step_key("a"), task.step_key("b")])
    one, other = task(), task()
    work(app)
    assert one.get(0) == [f"{one.id}:a", f"{one.id}:b"]
    assert not set(one.get(0)) & set(other.get(0))


# ── sleeping ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sleeping_job_needs_no_worker_and_sleeps_once(app: LiteQ, clock: ManualClock, shop: Shop) -> None:
    @app.task(context=True, retries=1, expires=60, timeout=5)
    def remind(*, task: TaskContext) -> str:
        shop.charge("begin")
        task.step("first", shop.charge, "first")
        task.sleep(timedelta(hours=1))
        task.sleep(30, name="a little")
        if task.attempt == 1:
            raise ValueError
        return "done"

    result = remind()
    start = clock.now()
    assert work(app) == 1
    job = result.job()
    assert (job.state, job.due, job.attempt, job.attempts) == ("scheduled", start + 3600, 0, ())
    clock.advance(3599)
    assert work(app) == 0
    clock.advance(1)
    assert work(app) == 1
    assert result.job().due == start + 3630
    clock.advance(30)
    assert work(app) == 2, "it fails, and its retry sleeps no more"
    assert result.get(0) == "done"
    assert shop.calls == ["begin", "first", "begin", "begin", "begin"]
    assert [(one.kind, one.name, one.due) for one in result.steps()[1:]] == [
        (StepKind.SLEEP, "sleep", start + 3600),
        (StepKind.SLEEP, "a little", start + 3630),
    ]
    assert [attempt.ending for attempt in result.job().attempts] == ["failed", "succeeded"]


def test_a_crash_while_the_job_goes_to_sleep_does_not_begin_the_sleep_anew(app: LiteQ, clock: ManualClock) -> None:
    result = app.task(context=True, name="t")(lambda *, task: task.sleep(100))()
    start = clock.now()
    [job] = claim(app)
    execute(job, app.engine.runtime, Silent(), NoDeadline())
    clock.advance(40)  # the sleep is recorded, and the consumer dies before it has told anybody
    crash = lifecycle.crashed(job, clock.now(), "killed")
    app.storage.apply([lifecycle.decide(job, lifecycle.Policy(), crash, clock.now())], clock.now())
    work(app)
    assert (result.state, result.job().due) == ("scheduled", start + 100)
    clock.advance(60)
    work(app)
    assert result.state == "succeeded"


def test_a_job_that_is_woken_early_sleeps_on(app: LiteQ, clock: ManualClock) -> None:
    result = app.task(context=True, name="t")(lambda *, task: task.sleep(100))()
    start = clock.now()
    work(app)
    assert result.reschedule(delay=0)
    work(app)
    assert result.job().due == start + 100


def test_who_swallows_the_end_of_his_run_sleeps_all_the_same(app: LiteQ, clock: ManualClock, shop: Shop) -> None:
    @app.task(context=True)
    def stubborn(*, task: TaskContext) -> str:
        try:
            task.sleep(10)
        except BaseException:  # noqa: BLE001 - it is that stubborn
            shop.charge("swallowed")
        try:
            task.step("never before", shop.charge, "step")
        except BaseException:  # noqa: BLE001 - it is that stubborn
            shop.charge("swallowed")
        return "done"

    result = stubborn()
    work(app)
    assert (result.state, shop.calls) == ("scheduled", ["swallowed", "swallowed"])
    clock.advance(10)
    work(app)
    assert result.get(0) == "done"


def test_an_error_while_a_run_ends_for_a_sleep_is_the_tasks_own(app: LiteQ) -> None:
    @app.task(context=True, retries=1, retry_delay=5)
    def clumsy(*, task: TaskContext) -> None:
        try:
            task.sleep(100)
        finally:
            raise ValueError("in finally")

    result = clumsy()
    work(app)
    assert result.state == "scheduled"
    assert result.error is not None
    assert result.error.message == "in finally"


def test_a_coroutine_sleeps_and_leaves_its_groups(app: LiteQ, clock: ManualClock) -> None:
    @app.task(context=True)
    async def nap(*, task: TaskContext) -> str:
        async with asyncio.TaskGroup():
            await task.asleep(10)
        return "rested"

    result = nap()
    work(app)
    assert result.state == "scheduled"
    clock.advance(10)
    work(app)
    assert result.get(0) == "rested"


# ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_waits_for_an_event_as_blocked_and_goes_on_with_its_data(app: LiteQ, shop: Shop) -> None:
    @app.task(context=True, retries=1)
    def order(*, task: TaskContext) -> list[Any]:
        shop.charge("begin")
        first, second = task.wait_for("approved"), task.wait_for("approved")
        if task.attempt == 1:
            raise ValueError
        return [first, second]

    result = order()
    work(app)
    job = result.job()
    assert (job.state, job.reason, job.attempt) == ("blocked", "event: approved", 0)
    app.send(result, "unheard", 0)
    assert work(app) == 0
    app.send(result.id, "approved", {"by": ("ann", 1)})
    work(app)
    assert result.state == "blocked"
    asyncio.run(app.asend(result, "approved"))
    work(app)
    assert result.get(0) == [{"by": ("ann", 1)}, None]
    assert len(shop.calls) == 4, "three runs, and a retry that waits for nothing"
    assert [(one.name, one.number, one.state) for one in result.steps()] == [
        ("approved", 1, StepState.DONE),
        ("approved", 2, StepState.DONE),
    ]


def test_what_was_sent_before_is_kept_and_taken_in_order(app: LiteQ, shop: Shop) -> None:
    result = app.task(context=True, name="t")(lambda *, task: [task.wait_for("n") for _ in range(3)])()
    for number in range(3):
        app.send(result, "n", number)
    assert work(app) == 1
    assert result.get(0) == [0, 1, 2]


def test_a_wait_that_was_in_vain_is_told_so_again_each_time(app: LiteQ, clock: ManualClock) -> None:
    @app.task(context=True, retries=1)
    def order(*, task: TaskContext) -> str:
        try:
            task.wait_for("approved", timeout=60)
        except EventTimeout as error:
            assert (error.event, error.job_id) == ("approved", task.id)
            if task.attempt == 1:
                raise Retry from None
            return "nobody"
        return "somebody"

    result = order()
    start = clock.now()
    work(app)
    assert (result.state, result.job().due) == ("scheduled", start + 60)
    clock.advance(60)
    work(app)
    assert result.get(0) == "nobody"
    assert result.steps()[0].state is StepState.TIMED_OUT


def test_an_event_in_time_ends_a_wait_that_had_an_end(app: LiteQ, clock: ManualClock) -> None:
    result = app.task(context=True, name="t")(lambda *, task: task.wait_for("go", timeout=60))()
    work(app)
    clock.advance(59)
    app.send(result, "go", 1)
    assert work(app) == 1
    assert result.get(0) == 1


def test_nobody_makes_another_attempt_because_an_event_did_not_come(app: LiteQ) -> None:
    result = app.task(context=True, retries=3, name="t")(lambda *, task: task.wait_for("go", timeout=0))()
    assert work(app) == 1
    assert result.error is not None
    assert result.error.error_type == "EventTimeout"
    assert "nobody has sent the event 'go'" in result.error.message
    assert str(pickle.loads(pickle.dumps(EventTimeout("go", "7")))) == str(EventTimeout("go", "7"))


def test_a_coroutine_waits_without_a_loop(app: LiteQ) -> None:
    @app.task(context=True)
    async def order(*, task: TaskContext) -> Any:
        return await task.await_for("go")

    result = order()
    work(app)
    assert result.state == "blocked"
    app.send(result, "go", [1])
    work(app)
    assert result.get(0) == [1]


def test_nothing_is_sent_to_a_job_that_has_ended_or_does_not_exist(app: LiteQ) -> None:
    result = app.task(name="t")(lambda: None)()
    with pytest.raises(JobNotFound):
        app.send("nobody", "go")
    with pytest.raises(SerializationError, match="the event 'go' was not sent to job"):
        app.send(result, "go", object())
    with pytest.raises(PayloadTooLarge, match=r"the event 'go' was not sent to job .*, its data is too large: 2,001"):
        app.send(result, "go", "x" * 1999)
    for event in (7, "", "a\0"):
        with pytest.raises((TypeError, ConfigurationError), match="the name of an event"):
            app.send(result, event)  # type: ignore[arg-type]
    work(app)
    with pytest.raises(JobFinished, match="has ended as succeeded: nothing was sent") as caught:
        app.send(result, "go")
    assert (caught.value.job_id, caught.value.state) == (result.id, JobState.SUCCEEDED)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), JobFinished)
    app.purge()
    with pytest.raises(JobNotFound):
        app.send(result, "go")


def test_a_waiting_job_can_be_revoked(app: LiteQ) -> None:
    result = app.task(context=True, name="t")(lambda *, task: task.wait_for("go"))()
    work(app)
    assert result.revoke()
    with pytest.raises(JobFinished):
        app.send(result, "go")
    assert result.restore()
    app.send(result, "go", 1)
    work(app)
    assert result.get(0) == 1


@pytest.mark.parametrize("from_start", [1, None, "yes"])
def test_from_start_is_yes_or_no(app: LiteQ, from_start: Any) -> None:
    with pytest.raises(TypeError, match="from_start"):
        app.requeue("x", from_start=from_start)
    with pytest.raises(TypeError, match="from_start"):
        app.requeue_all(from_start=from_start)


def test_requeue_all_may_begin_from_the_start(app: LiteQ, shop: Shop) -> None:
    shop.failing = {"b"}

    @app.task(context=True)
    def buy(*, task: TaskContext) -> None:
        task.step("a", shop.charge, "a")
        task.step("b", shop.charge, "b")

    buy.map([()] * 2)
    work(app)
    assert app.requeue_all() == 2
    work(app)
    assert shop.calls.count("a") == 2
    assert app.requeue_all(from_start=True) == 2
    work(app)
    assert shop.calls.count("a") == 4


# ── in workflows ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_workflow_waits_for_a_step_of_it_that_sleeps_and_waits(app: LiteQ, clock: ManualClock) -> None:
    @app.task(context=True, name="slow")
    def slow(x: int, *, task: TaskContext) -> int:
        task.sleep(60)
        return x + int(task.wait_for("more"))

    double = app.task(name="double")(lambda x: 2 * x)
    result = app.enqueue(slow.s(1).then(double))
    work(app)
    clock.advance(60)
    work(app)
    waiting, following = app.jobs()
    assert (waiting.reason, following.state) == ("event: more", "blocked")
    app.send(waiting.id, "more", 4)
    work(app)
    assert result.get(0) == 10


# ── immediate mode ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_in_immediate_mode_a_sleep_is_over_for_who_waits_and_an_event_lets_the_job_go_on(
    immediate: LiteQ, clock: ManualClock, shop: Shop
) -> None:
    @immediate.task(context=True)
    def order(*, task: TaskContext) -> Any:
        task.step("charge", shop.charge, "charge")
        task.sleep(100)
        return task.wait_for("go")

    start = clock.now()
    result = order()
    assert result.state == "scheduled"
    with pytest.raises(TimeoutError, match="still blocked"):
        result.get()
    assert clock.now() == start + 100
    assert result.state == "blocked"
    immediate.send(result, "go", 5)
    assert result.get(0) == 5
    assert shop.calls == ["charge"]


# ── logs and signals ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_sleeping_and_waiting_are_told_without_an_alarm(app: LiteQ, log: pytest.LogCaptureFixture) -> None:
    seen = []
    app.signal()(lambda signal, job, error: seen.append(signal))
    task = app.task(context=True, name="t")(lambda *, task: (task.wait_for("go"), task.sleep(9)))
    result = task()
    work(app)
    app.send(result, "go")
    work(app)
    assert [record.levelname for record in log.records] == ["INFO"] * len(log.records)
    said = [record.getMessage() for record in log.records]
    assert any(line.startswith("waits job=") and "event=go" in line for line in said)
    assert any(line.startswith("sleeps job=") and "delay=9.000s" in line for line in said)
    assert seen == ["enqueued", "snoozed", "snoozed"]


def test_a_step_says_what_it_is_in_json(app: LiteQ) -> None:
    result = app.task(context=True, name="t")(lambda *, task: task.step("x", lambda: {"a": 1}))()
    work(app)
    [step] = result.steps()
    assert json.loads(step.result or b"") == {"a": 1}
    assert step.until is None
