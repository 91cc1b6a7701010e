"""Signals, hooks and log lines: each at its moment, with what happened, and none in the way of the others."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from workbench import Silent, claim, run, work

from liteq import (
    Cancel,
    Fail,
    Job,
    LiteQ,
    Retry,
    S,
    Snooze,
    StorageError,
    Task,
    TaskFailed,
    TaskTimeout,
    lifecycle,
    logs,
)
from liteq.clock import ManualClock
from liteq.context import current_job
from liteq.engine import Ended
from liteq.execution import Interrupted, NoDeadline, execute
from liteq.storage.base import ClaimRequest

Event = tuple[str, str, str | None]


@pytest.fixture
def heard(app: LiteQ) -> list[Event]:
    """Every signal: its name, the state of the job, and the type of the error."""
    events: list[Event] = []

    @app.signal()
    def hear(signal: str, job: Job, error: TaskFailed | None) -> None:
        events.append((signal, str(job.state), None if error is None else error.error_type))

    return events


def raising(app: LiteQ, error: Callable[[], BaseException], **options: Any) -> Task[..., Any]:
    @app.task(name="raises", **options)
    def raises() -> NoReturn:
        raise error()

    return raises


# ── each at its moment ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_success(app: LiteQ, heard: list[Event]) -> None:
    app.task(name="t")(lambda: 1)()
    assert heard == [("enqueued", "ready", None)]
    work_with_announcements(app)
    assert heard == [("enqueued", "ready", None), ("executing", "running", None), ("complete", "succeeded", None)]


def work_with_announcements(app: LiteQ) -> None:
    """As `work`, and say what was started, as a dispatcher does."""
    while jobs := claim(app):
        app.engine.news.started(jobs)
        for job in jobs:
            run(app, job)


def test_what_strikes_as_the_body_ends_is_over_before_the_hooks_run(app: LiteQ) -> None:
    class Striking(NoDeadline):
        """An exception that was put into the thread arrives as `stop` is entered, and leaves it undone."""

        struck, stopped = False, False

        def stop(self) -> None:
            if not self.struck:
                self.struck = True
                raise TaskTimeout
            self.stopped = True

    deadline = Striking()
    seen: list[bool] = []
    app.post_execute()(lambda job, value, error: seen.append(deadline.stopped))
    app.task(name="t")(lambda: 1)()
    [job] = claim(app)
    assert execute(job, app.engine.runtime, Silent(), deadline).error_type == "TaskTimeout"
    assert seen == [True]


def test_what_is_told_of_a_dependent_costs_nobody_a_claimed_job(
    app: LiteQ, heard: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a round is committed the storage may fail as it likes."""
    first = raising(app, ValueError)()
    app.task(name="second")(lambda: 2).using(after=[first])()
    [job] = claim(app)
    app.task(name="third")(lambda: 3)()
    outcome = execute(job, app.engine.runtime, Silent(), NoDeadline())
    owner = app.storage.register({})
    heard.clear()

    def failing(job_id: str) -> NoReturn:
        raise StorageError("the disk is gone")

    monkeypatch.setattr(app.storage, "get", failing)
    done = app.engine.round([Ended(job, outcome)], ClaimRequest(owner, 10))
    assert [one.task for one in done.jobs] == ["third"]
    assert heard == [("error", "failed", "ValueError"), ("error", "failed", "DependencyFailed")]


def test_a_delayed_job(app: LiteQ, heard: list[Event]) -> None:
    app.task(name="t")(lambda: 1).using(delay=60)()
    assert heard == [("scheduled", "scheduled", None)]


@pytest.mark.parametrize(
    ("error", "options", "expected"),
    [
        (ValueError, {}, [("error", "failed", "ValueError")]),
        (ValueError, {"retries": 1}, [("retrying", "ready", "ValueError"), ("error", "failed", "ValueError")]),
        (ValueError, {"retries": 1, "retry_delay": 9}, [("retrying", "scheduled", "ValueError")]),
        (lambda: Retry(delay=5), {"retries": 1}, [("retrying", "scheduled", "Retry")]),
        (lambda: Fail("no"), {"retries": 5}, [("error", "failed", "Fail")]),
        (lambda: Cancel("why"), {"retries": 5}, [("canceled", "revoked", "Cancel")]),
        (lambda: Snooze(5), {}, [("snoozed", "scheduled", "Snooze")]),
        (Interrupted, {}, [("interrupted", "ready", None)]),
    ],
    ids=["error", "retry at once", "retry later", "Retry", "Fail", "Cancel", "Snooze", "interrupted"],
)
def test_an_attempt_that_does_not_succeed(
    app: LiteQ,
    heard: list[Event],
    error: Callable[[], BaseException],
    options: dict[str, Any],
    expected: list[Event],
) -> None:
    task = raising(app, error, **options)
    task()
    heard.clear()
    for _ in range(len(expected)):
        for job in claim(app):
            run(app, job)
    assert heard == expected


def test_a_crash(app: LiteQ, heard: list[Event], clock: ManualClock) -> None:
    task = app.task(name="t", max_crashes=2)(lambda: 1)
    task()
    for expected in ([("crashed", "ready"), ("retrying", "ready")], [("crashed", "failed"), ("error", "failed")]):
        heard.clear()
        [job] = claim(app)
        app.engine.round([Ended(job, lifecycle.crashed(job, clock.now(), "killed by SIGKILL"))], None)
        assert heard == [(*event, "WorkerCrashed") for event in expected]


def test_a_revocation(app: LiteQ, heard: list[Event]) -> None:
    task = app.task(name="t")(lambda: 1)
    first, second = task(), task()
    heard.clear()
    first.revoke()
    assert heard == [("revoked", "revoked", None)]
    task.revoke()
    work(app)
    assert heard == [("revoked", "revoked", None)] * 2
    assert second.state == "revoked"


@pytest.mark.parametrize("error", [ValueError, Interrupted, lambda: Snooze(5)], ids=["fails", "interrupted", "snoozes"])
def test_a_revocation_while_it_runs(app: LiteQ, heard: list[Event], error: Callable[[], BaseException]) -> None:
    result = raising(app, error, retries=3)()
    [job] = claim(app)
    result.revoke(terminate=True)
    heard.clear()
    outcome = execute(job, app.engine.runtime, Silent(), NoDeadline())
    app.engine.round([Ended(job, outcome)], None, cancelled={job.seq})
    assert [event[:2] for event in heard] == [("revoked", "revoked")]
    assert not app.engine.is_told(job)


def test_an_expiry(app: LiteQ, heard: list[Event], clock: ManualClock) -> None:
    task = app.task(name="t", expires=5)(lambda: 1)
    task()
    task()
    heard.clear()
    clock.advance(5)
    assert app.engine.expire(clock.now(), clock.now() - 60) == 2
    task()
    clock.advance(5)
    work(app)
    assert heard == [*[("expired", "expired", None)] * 2, ("enqueued", "ready", None), ("expired", "expired", None)]


def test_a_task_that_nobody_knows(app: LiteQ, heard: list[Event]) -> None:
    task = app.task(name="t")(lambda: 1)
    task()
    definition = app.engine.tasks.pop("t")
    heard.clear()
    work(app)
    assert heard == [("blocked", "blocked", None)]
    app.engine.tasks["t"] = definition
    assert app.engine.unpark() == 1
    work(app)
    assert heard[-1] == ("complete", "succeeded", None)


def test_every_signal_is_tested_here() -> None:
    tested = {
        S.ENQUEUED,
        S.SCHEDULED,
        S.EXECUTING,
        S.COMPLETE,
        S.ERROR,
        S.RETRYING,
        S.CRASHED,
        S.CANCELED,
        S.REVOKED,
        S.EXPIRED,
        S.INTERRUPTED,
        S.SNOOZED,
        S.BLOCKED,
    }
    assert tested == set(S.ALL)


def test_an_id_that_exists_is_not_announced_again(app: LiteQ, heard: list[Event], clock: ManualClock) -> None:
    task = app.task(name="t")(lambda: 1).using(id="x")
    task()
    clock.advance(0.001)
    task()
    assert len(heard) == 1


def test_signals_come_after_the_commit(app: LiteQ) -> None:
    seen: list[tuple[str, str]] = []

    @app.signal(S.ENQUEUED, S.COMPLETE, S.REVOKED)
    def look(signal: str, job: Job, error: TaskFailed | None) -> None:
        seen.append((signal, str(app.job(job.id).state)))

    task = app.task(name="t")(lambda: 1)
    with app.batch():
        task()
        task()
        assert seen == []
    work(app)
    task().revoke()
    assert seen == [
        *[("enqueued", "ready")] * 2,
        *[("complete", "succeeded")] * 2,
        ("enqueued", "ready"),
        ("revoked", "revoked"),
    ]


def test_the_error_of_a_signal_tells_everything(app: LiteQ) -> None:
    caught: list[TaskFailed] = []
    app.signal(S.ERROR)(lambda signal, job, error: caught.append(error))
    result = raising(app, lambda: ValueError("why"))()
    work(app)
    [error] = caught
    assert (error.job_id, error.error_type, error.message) == (result.id, "ValueError", "why")
    assert "raise error()" in error.traceback


# ── receivers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_receiver_hears_only_what_it_asked_for(app: LiteQ) -> None:
    heard: list[str] = []

    @app.signal(S.COMPLETE, S.ERROR)
    def receiver(signal: str, job: Job, error: object) -> None:
        heard.append(signal)

    failing = raising(app, ValueError)
    app.task(name="a")(lambda: 1)()
    failing()
    work(app)
    assert heard == ["complete", "error"]
    app.disconnect_signal(receiver, S.COMPLETE)
    app.task(name="a2")(lambda: 1)()
    work(app)
    assert heard == ["complete", "error"]
    app.disconnect_signal(receiver)
    app.disconnect_signal(receiver)
    failing()
    work(app)
    assert heard == ["complete", "error"]


@pytest.mark.parametrize("names", [("finished",), (S.ERROR, "oops"), ("",)])
def test_a_signal_that_does_not_exist_is_refused_at_the_decorator(app: LiteQ, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"no signal .* the signals are enqueued"):
        app.signal(*names)


@pytest.mark.parametrize("hook", ["signal", "pre_execute", "post_execute", "on_startup", "on_shutdown"])
def test_a_decorator_used_without_parentheses_says_so(app: LiteQ, hook: str) -> None:
    with pytest.raises(TypeError):
        getattr(app, hook)(lambda *_: None)


@pytest.mark.parametrize("hook", ["pre_execute", "post_execute", "on_startup", "on_shutdown"])
def test_a_hook_must_be_callable(app: LiteQ, hook: str) -> None:
    with pytest.raises(TypeError, match="callable"):
        getattr(app, hook)()(5)


def test_an_id_that_is_known_is_not_announced_though_the_clock_stands_still(app: LiteQ) -> None:
    heard: list[str] = []
    app.signal(S.ENQUEUED, S.SCHEDULED)(lambda signal, job, error: heard.append(f"{signal} {job.id}"))
    task = app.task(name="t")(lambda x=1: x)
    for _ in range(3):
        task.using(id="a")()
        task.using(id="later", delay=60)()
    with app.batch():
        for name in ("b", "a", "b"):
            task.using(id=name)()
    assert heard == ["enqueued a", "scheduled later", "enqueued b"]


def test_a_failing_receiver_is_reported_and_the_others_run(app: LiteQ, log: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    @app.signal(S.ENQUEUED)
    def breaks(signal: str, job: Job, error: object) -> NoReturn:
        raise RuntimeError("receiver trouble")

    app.signal(S.ENQUEUED)(lambda signal, job, error: heard.append(signal))
    result = app.task(name="t")(lambda: 1)()
    assert heard == ["enqueued"]
    assert result.state == "ready"
    [record] = log.records
    assert (record.levelname, record.name) == ("ERROR", "liteq")
    assert "breaks" in record.getMessage()
    assert "'enqueued'" in record.getMessage()
    assert result.id in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "receiver trouble"


def test_the_decorators_give_the_function_back(app: LiteQ) -> None:
    def function(*_: Any) -> None: ...

    for decorator in (app.signal(), app.pre_execute(), app.post_execute(), app.on_startup(), app.on_shutdown()):
        assert decorator(function) is function


# ── hooks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_hooks_surround_the_task(app: LiteQ) -> None:
    steps: list[Any] = []
    app.pre_execute()(lambda job: steps.append(("before", job.task)))
    app.post_execute()(lambda job, value, error: steps.append(("after", value, error)))

    @app.task(name="t")
    def task() -> int:
        steps.append("body")
        return 5

    task()
    work(app)
    assert steps == [("before", "t"), "body", ("after", 5, None)]


def test_the_hook_after_a_failure_gets_the_error_itself(app: LiteQ) -> None:
    errors: list[Any] = []
    app.post_execute()(lambda job, value, error: errors.append((value, error)))
    error = ValueError("x")
    raising(app, lambda: error)()
    work(app)
    assert errors == [(None, error)]


def test_a_hook_before_may_cancel_the_job(app: LiteQ) -> None:
    @app.pre_execute()
    def not_today(job: Job) -> NoReturn:
        raise Cancel("closed today")

    after: list[object] = []
    app.post_execute()(lambda *arguments: after.append(arguments))
    ran: list[int] = []
    result = app.task(name="t")(lambda: ran.append(1))()
    work(app)
    assert ran == []
    assert (result.state, result.job().reason) == ("revoked", "closed today")


def test_a_failing_hook_is_reported_and_costs_nothing(app: LiteQ, log: pytest.LogCaptureFixture) -> None:
    def breaks(*_: Any) -> NoReturn:
        raise RuntimeError("hook trouble")

    order: list[str] = []
    app.pre_execute()(breaks)
    app.pre_execute()(lambda job: order.append("before"))
    app.post_execute()(breaks)
    app.post_execute()(lambda job, value, error: order.append("after"))
    result = app.task(name="t")(lambda: 1)()
    work(app)
    assert result.get(0) == 1
    assert order == ["before", "after"]
    errors = [record.getMessage() for record in log.records if record.levelname == "ERROR"]
    assert len(errors) == 2
    assert "pre_execute hook" in errors[0]
    assert "post_execute hook" in errors[1]
    assert all("breaks" in message and result.id in message for message in errors)


def test_the_running_job_is_known_to_what_runs_inside(app: LiteQ) -> None:
    seen: list[str | None] = []

    def note() -> None:
        job = current_job.get()
        seen.append(None if job is None else job.id)

    @app.task(name="async")
    async def in_a_coroutine() -> None:
        await asyncio.sleep(0)
        note()

    results = [app.task(name="t")(note)(), in_a_coroutine()]
    work(app)
    note()
    assert seen == [results[0].id, results[1].id, None]


# ── log lines ────────────────────────────────────────────────────────────────────────────────────────────────────────


def lines(log: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage().split()[0]) for record in log.records if record.name == "liteq"]


def test_a_success_is_two_lines(app: LiteQ, log: pytest.LogCaptureFixture, clock: ManualClock) -> None:
    result = app.task(name="shop.mail")(lambda: clock.advance(0.25))()
    clock.advance(1.5)
    work_with_announcements(app)
    assert [record.getMessage() for record in log.records] == [
        f"started job={result.id} task=shop.mail attempt=1/1 waited=1.500s",
        f"succeeded job={result.id} task=shop.mail attempt=1/1 took=0.250s waited=1.500s",
    ]
    assert {record.levelname for record in log.records} == {"INFO"}
    assert vars(log.records[1]) | {"event": "succeeded", "job": result.id, "attempt": "1/1"} == vars(log.records[1])


def test_a_final_failure_is_one_error_with_the_traceback(app: LiteQ, log: pytest.LogCaptureFixture) -> None:
    result = raising(app, lambda: ValueError("line one\nline two"), retries=2)()
    work(app)
    assert lines(log) == [("WARNING", "will"), ("WARNING", "will"), ("ERROR", "gave")]
    message = log.records[-1].getMessage()
    assert message.startswith(f"gave up job={result.id} task=raises attempt=3/3 ")
    assert "error=ValueError: line one …" in message
    assert "Traceback (most recent call last)" in message
    assert "Traceback" not in log.records[0].getMessage()
    assert "delay=0.000s" in log.records[0].getMessage()


def test_arguments_are_never_logged(app: LiteQ, log: pytest.LogCaptureFixture) -> None:
    log.set_level(logging.DEBUG, "liteq")
    task = app.task(name="t", retries=1)(lambda secret: 1 if secret else 0)
    task("hunter2")
    task("hunter2").revoke()
    work_with_announcements(app)
    assert log.records
    assert "hunter2" not in log.text
    assert not any("hunter2" in str(vars(record)) for record in log.records)


def test_a_program_that_does_not_ask_for_logs_sees_only_trouble(app: LiteQ, log: pytest.LogCaptureFixture) -> None:
    log.set_level(logging.WARNING, "liteq")
    app.task(name="t")(lambda: 1)()
    work_with_announcements(app)
    assert log.records == []


def test_an_outcome_that_came_too_late_is_one_warning(app: LiteQ, log: pytest.LogCaptureFixture) -> None:
    result = app.task(name="t")(lambda: 1)()
    [stale] = claim(app)
    app.engine.round([], None, released=[stale])
    [fresh] = claim(app)
    run(app, stale)
    assert lines(log) == [("WARNING", "outcome")]
    assert result.state == "running"
    run(app, fresh)
    assert result.get(0) == 1


def test_a_line_may_be_json(app: LiteQ) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JSONFormatter())
    logger = logging.getLogger("liteq")
    logger.addHandler(handler)
    try:
        result = raising(app, lambda: ValueError('quote " and ünïcødé'))()
        app.signal()(lambda *_: 1 / 0)
        work(app)
    finally:
        logger.removeHandler(handler)
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (told[0]["level"], told[0]["job"], told[0]["task"]) == ("ERROR", result.id, "raises")
    assert "ünïcødé" in told[0]["error"]
    assert "ZeroDivisionError" in told[1]["exception"]
