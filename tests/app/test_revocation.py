"""Revoking and restoring: one job, every call of a task, once, until an instant (huey's meaning)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from workbench import claim, run, work

from liteq import LiteQ, S, Task, TaskContext, TaskRevoked, UnknownTask
from liteq.clock import ManualClock


@pytest.fixture
def task(app: LiteQ) -> Task[..., Any]:
    return app.task(name="task")(lambda x=1: x)


# ── one job ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("delay", [0, 60])
def test_a_waiting_job_that_is_revoked_never_runs(
    app: LiteQ, task: Task[..., Any], clock: ManualClock, delay: float
) -> None:
    result = task.using(delay=delay)()
    assert not app.is_revoked(result)
    assert result.revoke()
    assert app.is_revoked(result)
    assert app.is_revoked(result.id)
    clock.advance(60)
    assert work(app) == 0
    with pytest.raises(TaskRevoked) as error:
        result.get(0)
    assert (error.value.error_type, error.value.message) == ("Revoked", "revoked")
    assert result.job().reason == "revoked"


def test_revoking_may_be_done_through_the_app_by_handle_or_id(app: LiteQ, task: Task[..., Any]) -> None:
    first, second = task(), task()
    assert app.revoke(first)
    assert app.revoke(second.id)
    assert (first.state, second.state) == ("revoked", "revoked")


def test_a_finished_job_cannot_be_revoked(app: LiteQ, task: Task[..., Any]) -> None:
    result = task()
    work(app)
    assert not result.revoke()
    assert not app.revoke(result, terminate=True)
    assert result.get(0) == 1
    waiting = task()
    waiting.revoke()
    assert not waiting.revoke()


def test_a_revoked_job_can_be_restored(app: LiteQ, task: Task[..., Any], clock: ManualClock) -> None:
    now, later = task(), task.using(delay=60)()
    now.revoke()
    later.revoke()
    assert now.restore()
    assert app.restore(later)
    assert not now.restore()
    assert (now.state, later.state) == ("ready", "scheduled")
    clock.advance(60)
    work(app)
    assert (now.get(0), later.get(0)) == (1, 1)
    assert not now.restore()


def test_a_job_that_was_due_while_it_was_revoked_runs_at_once_when_restored(
    app: LiteQ, task: Task[..., Any], clock: ManualClock
) -> None:
    result = task.using(delay=60)()
    result.revoke()
    clock.advance(100)
    assert result.restore()
    assert work(app) == 1


def test_a_running_job_that_is_revoked_is_told_and_not_run_again(app: LiteQ, clock: ManualClock) -> None:
    task = app.task(name="t", retries=5)(lambda: 1 / 0)
    result = task()
    [job] = claim(app)
    assert result.revoke()
    assert result.state == "running"
    assert app.is_revoked(result)
    assert app.engine.round([], None).cancelled == {job.seq: False}
    result.revoke(terminate=True)
    assert app.engine.round([], None).cancelled == {job.seq: True}


def test_a_revocation_of_a_running_job_can_be_taken_back(app: LiteQ, task: Task[..., Any]) -> None:
    result = task()
    [job] = claim(app)
    result.revoke()
    assert result.restore()
    assert not result.restore()
    assert not app.is_revoked(result)
    run(app, job)
    assert result.get(0) == 1


def test_a_job_in_immediate_mode_that_revokes_itself_is_not_retried(immediate: LiteQ) -> None:
    runs: list[bool] = []
    signals: list[str] = []
    immediate.signal(S.REVOKED, S.RETRYING, S.ERROR)(lambda signal, job, error: signals.append(signal))

    @immediate.task(context=True, retries=5)
    def regrets(task: TaskContext) -> None:
        immediate.revoke(task.id)
        runs.append(task.is_cancelled())
        raise ValueError

    result = regrets()  # type: ignore[call-arg]
    assert runs == [True]
    assert result.state == "revoked"
    assert len(result.job().attempts) == 1
    assert signals == ["revoked"]


# ── every call of a task ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_revoked_task_skips_what_waits_and_what_comes(app: LiteQ, task: Task[..., Any], clock: ManualClock) -> None:
    waiting, later = task(), task.using(delay=60)()
    other = app.task(name="other")(lambda: 2)()
    assert not task.is_revoked()
    task.revoke()
    assert task.is_revoked()
    assert app.is_revoked(task)
    assert app.is_revoked(waiting)
    coming = task()
    assert work(app) == 1
    clock.advance(60)
    assert work(app) == 0
    for result in (waiting, later, coming):
        assert result.state == "revoked"
        assert result.job().reason == "task task is revoked"
        assert result.job().attempt == 0
    assert other.get(0) == 2
    assert task.restore()
    assert not task.restore()
    assert not task.is_revoked()
    again = task()
    work(app)
    assert again.get(0) == 1


def test_a_task_may_be_revoked_once(app: LiteQ, task: Task[..., Any]) -> None:
    results = [task() for _ in range(3)]
    task.revoke(once=True)
    assert task.is_revoked()
    work(app)
    assert [str(result.state) for result in results] == ["revoked", "succeeded", "succeeded"]
    assert not task.is_revoked()
    assert not task.restore()


def test_a_task_may_be_revoked_until_an_instant(app: LiteQ, task: Task[..., Any], clock: ManualClock) -> None:
    until = datetime.fromtimestamp(clock.now() + 60, UTC)
    task.revoke(until=until)
    before, after = task(), task.using(delay=60)()
    work(app)
    assert before.state == "revoked"
    clock.advance(59)
    assert task.is_revoked()
    clock.advance(1)
    assert not task.is_revoked()
    work(app)
    assert after.state == "succeeded"


def test_once_and_until_go_together(app: LiteQ, task: Task[..., Any], clock: ManualClock) -> None:
    until = datetime.fromtimestamp(clock.now() + 60, UTC)
    task.revoke(until=until, once=True)
    first, second = task(), task()
    work(app)
    assert (first.state, second.state) == ("revoked", "succeeded")
    task.revoke(until=until, once=True)
    clock.advance(61)
    third = task()
    work(app)
    assert third.state == "succeeded"


def test_a_naive_until_is_read_in_the_zone_of_the_app(clock: ManualClock) -> None:
    app = LiteQ(":memory:", clock=clock, timezone=timezone(timedelta(hours=2)))
    task = app.task(name="t")(lambda: 1)
    here = datetime.fromtimestamp(clock.now() + 60, timezone(timedelta(hours=2))).replace(tzinfo=None)
    for revoke in (task.revoke, lambda until: app.revoke_all(task, until)):
        revoke(until=here)
        assert task.is_revoked()
        clock.advance(60)
        assert not task.is_revoked()
        clock.advance(-60)
        task.restore()


def test_the_last_word_counts(app: LiteQ, task: Task[..., Any]) -> None:
    task.revoke(once=True)
    task.revoke()
    results = [task(), task()]
    work(app)
    assert [str(result.state) for result in results] == ["revoked", "revoked"]


@pytest.mark.parametrize("name", [True, False])
def test_revoke_all_takes_a_task_or_its_name(app: LiteQ, task: Task[..., Any], name: bool) -> None:
    one: Any = "task" if name else task
    app.revoke_all(one, once=True)
    assert app.is_revoked(task)
    assert app.restore_all(one)
    assert not app.restore_all(one)
    with pytest.raises(UnknownTask):
        app.restore_all("nobody")


@pytest.mark.parametrize("until", [5, "tomorrow", timedelta(days=1)])
def test_until_is_an_instant(app: LiteQ, task: Task[..., Any], until: Any) -> None:
    for use in (lambda: task.revoke(until=until), lambda: app.revoke_all(task, until)):
        with pytest.raises(TypeError, match="until"):
            use()
    assert not task.is_revoked()


def test_retries_of_a_revoked_task_do_not_come(app: LiteQ, clock: ManualClock) -> None:
    task = app.task(name="t", retries=1, retry_delay=10)(lambda: 1 / 0)
    result = task()
    work(app)
    task.revoke()
    clock.advance(10)
    assert work(app) == 0
    assert result.state == "revoked"
    assert len(result.job().attempts) == 1


def test_a_job_skipped_because_of_its_task_can_be_restored(app: LiteQ, task: Task[..., Any]) -> None:
    task.revoke()
    result = task()
    work(app)
    task.restore()
    assert result.restore()
    work(app)
    assert result.get(0) == 1


def test_a_revocation_is_stored_with_the_jobs(on_file: LiteQ) -> None:
    on_file.task(name="t")(lambda: 1).revoke()
    on_file.close()
    another = LiteQ(on_file.storage.location)
    task = another.task(name="t")(lambda: 1)
    result = task()
    assert work(another) == 0
    assert result.state == "revoked"
    another.close()
