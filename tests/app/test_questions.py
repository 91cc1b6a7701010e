"""What an app can be asked about its jobs, and the commands over many of them: purge, requeue_all, pause, retention."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from workbench import claim, run, work

from liteq import ConfigurationError, JobNotFound, JobState, LiteQ, Task
from liteq.clock import ManualClock


@pytest.fixture(params=["memory", "file"])
def app(request: pytest.FixtureRequest, clock: ManualClock) -> Iterator[LiteQ]:
    """On both storages, as these questions are answered by each in its own way."""
    where = ":memory:" if request.param == "memory" else request.getfixturevalue("directory") / "queue.db"
    app = LiteQ(where, clock=clock, durability="normal")
    yield app
    app.close()


@pytest.fixture
def task(app: LiteQ) -> Task[..., Any]:
    return app.task(name="task")(lambda x=1: 1 // x)


def one_of_each(app: LiteQ, task: Task[..., Any], clock: ManualClock) -> dict[JobState, str]:
    """The ids of jobs in every state."""
    unknown = app.task(name="unknown")(lambda: 1)
    ids = {JobState.BLOCKED: unknown().id, JobState.SUCCEEDED: task(1).id, JobState.FAILED: task(0).id}
    del app.engine.tasks["unknown"]
    ids[JobState.EXPIRED] = task.using(expires=1)().id
    clock.advance(2)
    work(app)
    ids[JobState.RUNNING] = task().id
    claim(app)
    ids[JobState.SCHEDULED] = task.using(delay=60)().id
    ids[JobState.READY] = task().id
    revoked = task()
    revoked.revoke()
    ids[JobState.REVOKED] = revoked.id
    return ids


# ── jobs, job, counts, queues ────────────────────────────────────────────────────────────────────────────────────────


def test_every_state_can_be_asked_for(app: LiteQ, task: Task[..., Any], clock: ManualClock) -> None:
    ids = one_of_each(app, task, clock)
    assert set(ids) == set(JobState)
    for state, job_id in ids.items():
        assert [job.id for job in app.jobs(state=state)] == [job_id]
        assert [job.id for job in app.jobs(state=str(state))] == [job_id]
        assert app.job(job_id).state is state
    assert [job.state for job in app.jobs(state=("ready", "failed"))] == ["failed", "ready"]
    assert app.counts() == dict.fromkeys(JobState, 1)
    assert app.counts()["ready"] == 1  # type: ignore[index]


def test_a_job_whose_task_nobody_knows_says_so(app: LiteQ, task: Task[..., Any], clock: ManualClock) -> None:
    blocked = app.job(one_of_each(app, task, clock)[JobState.BLOCKED])
    assert blocked.reason == "unknown task: unknown"
    assert blocked.attempt == 0


def test_an_empty_app_answers_everything(app: LiteQ) -> None:
    assert app.jobs() == []
    assert app.counts() == dict.fromkeys(JobState, 0)
    assert app.queues() == {}
    assert app.paused() == []
    assert app.consumers() == []
    assert app.purge() == 0
    assert app.requeue_all() == 0
    assert app.tasks == {}


def test_jobs_come_in_pages(app: LiteQ, task: Task[..., Any]) -> None:
    ids = [result.id for result in task.map([1] * 7)]
    assert [job.id for job in app.jobs(limit=3)] == ids[:3]
    assert [job.id for job in app.jobs(limit=3, after=ids[2])] == ids[3:6]
    assert [job.id for job in app.jobs(limit=3, after=app.job(ids[5]))] == ids[6:]
    assert [job.id for job in app.jobs(limit=3, after=app.result(ids[5]))] == ids[6:]
    assert [job.id for job in app.jobs(limit=2, newest_first=True)] == ids[:-3:-1]
    assert [job.id for job in app.jobs(after=ids[2], newest_first=True)] == ids[1::-1]
    assert [job.id for job in app.jobs(limit=None)] == ids
    assert app.jobs(limit=0) == []
    assert app.jobs(after=ids[-1]) == []


def test_a_page_has_a_hundred_jobs_unless_said_otherwise(app: LiteQ, task: Task[..., Any]) -> None:
    task.map([1] * 101)
    assert len(app.jobs()) == 100
    assert len(app.jobs(limit=None)) == 101


def test_jobs_can_be_asked_for_by_queue_and_task(app: LiteQ, task: Task[..., Any]) -> None:
    other = app.task(name="other", queue="mail")(lambda: 1)
    a, b, c = task().id, other().id, task.using(queue="mail")().id
    assert [job.id for job in app.jobs(queue="mail")] == [b, c]
    assert [job.id for job in app.jobs(task=task)] == [a, c]
    assert [job.id for job in app.jobs(task="task", queue="mail")] == [c]
    assert app.jobs(task="nobody") == []
    assert app.jobs(queue="nobody") == []
    assert app.queues() == {"default": 1, "mail": 2}


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"state": "done"}, ValueError, "state"),
        ({"state": 5}, ValueError, "state"),
        ({"state": []}, ValueError, "state"),
        ({"state": ["ready", 5]}, ValueError, "state"),
        ({"limit": -1}, ValueError, "limit"),
        ({"limit": "5"}, TypeError, "limit"),
        ({"limit": True}, TypeError, "limit"),
        ({"task": 5}, TypeError, "task"),
        ({"after": "nobody"}, JobNotFound, "nobody"),
    ],
)
def test_questions_that_make_no_sense_are_refused(
    app: LiteQ, options: dict[str, Any], error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        app.jobs(**options)


def test_questions_do_not_decode_payloads(app: LiteQ, monkeypatch: pytest.MonkeyPatch) -> None:
    app.task(name="task")(lambda x: x)("hello")
    monkeypatch.setattr(app.engine.runtime.serializer, "loads_call", None)
    [job] = app.jobs()
    assert "hello" in app.job(job.id).arguments
    assert app.counts()[JobState.READY] == 1


def test_arguments_are_readable_with_pickle_too(clock: ManualClock) -> None:
    app = LiteQ(":memory:", serializer="pickle", clock=clock)
    app.task(name="t")(lambda *args, **kwargs: 1)("hello\nworld", [1], key=object)
    [job] = app.jobs()
    assert "hello" in job.arguments
    assert "key=" in job.arguments
    assert "\n" not in job.arguments


# ── purge and retention ──────────────────────────────────────────────────────────────────────────────────────────────


def test_purge_deletes_finished_jobs_only(app: LiteQ, task: Task[..., Any], clock: ManualClock) -> None:
    one_of_each(app, task, clock)
    assert app.purge() == 4
    assert sorted(job.state for job in app.jobs()) == ["blocked", "ready", "running", "scheduled"]


def test_purge_takes_state_queue_and_age(app: LiteQ, task: Task[..., Any], clock: ManualClock) -> None:
    def finish(*values: int, queue: str = "default") -> list[str]:
        ids = [task.using(queue=queue)(value).id for value in values]
        work(app)
        return ids

    old = finish(1, 0)
    clock.advance(100)
    mail = finish(1, 0, queue="mail")
    assert app.purge(older_than=101) == 0
    assert app.purge(state="failed", older_than=timedelta(seconds=50)) == 1
    assert app.purge(queue="nobody") == 0
    assert app.purge(state=["failed", "revoked"], queue="mail") == 1
    assert [job.id for job in app.jobs()] == [old[0], mail[0]]
    with pytest.raises(JobNotFound):
        app.job(old[1])
    assert app.purge(older_than=0) == 1  # what has finished in this very moment is not older than nothing
    clock.advance(1)
    assert app.purge(older_than=0) == 1


def test_purge_deletes_more_than_one_transaction_takes(app: LiteQ, task: Task[..., Any]) -> None:
    task.map([1] * 1201)
    for job in claim(app, 2000):
        run(app, job)
    assert app.purge() == 1201


@pytest.mark.parametrize("state", ["ready", ["failed", "running"], "nonsense", [], 5])
def test_purge_refuses_states_that_are_not_final(app: LiteQ, task: Task[..., Any], state: Any) -> None:
    task()
    with pytest.raises(ConfigurationError):
        app.purge(state=state)
    assert len(app.jobs()) == 1


@pytest.mark.parametrize("age", ["1d", True, float("nan"), [1]])
def test_purge_refuses_ages_that_are_none(app: LiteQ, age: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="older_than"):
        app.purge(older_than=age)


def test_retention_counts_from_the_finish(app: LiteQ, task: Task[..., Any], clock: ManualClock) -> None:
    waits_long, quick = task.using(delay=1000)(), task()
    work(app)
    clock.advance(1000)
    work(app)
    app.engine.result_ttl = 500
    assert len(app.engine.purge(0).seqs) == 1
    with pytest.raises(JobNotFound):
        quick.job()
    assert waits_long.get(0) == 1
    clock.advance(500.5)
    assert len(app.engine.purge(0).seqs) == 1


# ── requeue_all ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_requeue_all_brings_dead_letters_back_to_work(app: LiteQ) -> None:
    broken: list[int] = [1]

    def sometimes() -> int:
        return 1 // (not broken)

    task = app.task(name="t")(sometimes)
    other = app.task(name="other", queue="mail")(sometimes)
    results = [task(), other(), task.using(queue="mail")()]
    work(app)
    assert app.counts()[JobState.FAILED] == 3
    broken.clear()
    assert app.requeue_all(task="other") == 1
    assert app.requeue_all(queue="default", task=task) == 1
    assert app.requeue_all() == 1
    assert app.requeue_all() == 0
    work(app)
    assert [result.get(0) for result in results] == [1, 1, 1]
    assert all(len(result.job().attempts) == 2 for result in results)


def test_requeue_all_takes_any_finished_state_and_any_number(app: LiteQ, task: Task[..., Any]) -> None:
    group = task.map([1] * 1001)
    for result in group[:2]:
        result.revoke()
    for job in claim(app, 2000):
        run(app, job)
    assert app.requeue_all(state="succeeded") == 999
    assert app.requeue_all(state=("succeeded", "revoked")) == 2
    assert app.counts()[JobState.READY] == 1001
    assert [job.id for job in claim(app, 2)] == [group[0].id, group[1].id]  # in the old order


@pytest.mark.parametrize("state", ["ready", "running", [], None, "nonsense"])
def test_requeue_all_refuses_states_that_are_not_final(app: LiteQ, state: Any) -> None:
    with pytest.raises(ConfigurationError):
        app.requeue_all(state=state)


# ── pause ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_paused_queue_takes_jobs_and_starts_none(app: LiteQ, task: Task[..., Any]) -> None:
    app.pause("mail")
    app.pause("mail")
    app.pause("other")
    held, free = task.using(queue="mail")(), task()
    assert work(app) == 1
    assert (held.state, free.state) == ("ready", "succeeded")
    assert app.paused() == ["mail", "other"]
    assert app.resume("mail")
    assert not app.resume("mail")
    assert app.paused() == ["other"]
    assert work(app) == 1


def test_a_pause_survives_restarts(app: LiteQ, task: Task[..., Any]) -> None:
    app.pause("default")
    app.close()
    task()
    again = LiteQ(app.storage, clock=ManualClock())
    again.task(name="task")(lambda x=1: x)
    assert work(again) == 0
    assert again.paused() == ["default"]


@pytest.mark.parametrize("queue", ["", 5, None])
def test_only_queues_can_be_paused(app: LiteQ, queue: Any) -> None:
    for use in (app.pause, app.resume):
        with pytest.raises((TypeError, ValueError), match="queue"):
            use(queue)
