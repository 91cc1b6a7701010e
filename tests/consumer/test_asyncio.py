"""Coroutine workers, beyond what every kind promises: many at once on one loop, and what they do to each other."""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crowd
import pytest
import workshop
from kinds import GET, endings, failure_of
from workshop import lines

from liteq import JobState, LiteQ, ResultGroup, TaskRevoked, WouldDeadlock
from liteq.job import Ending


@pytest.fixture
def kind() -> dict[str, Any]:
    return {"worker_type": "asyncio", "app_path": "crowd:app"}


@pytest.fixture
def app(path: Path) -> Iterator[LiteQ]:
    app = crowd.build(path)
    yield app
    app.close()


@pytest.fixture
def tasks(app: LiteQ) -> Any:
    return workshop.SimpleNamespace(**{name.removeprefix("crowd."): task for name, task in app.tasks.items()})


def said(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


# ── many at once ─────────────────────────────────────────────────────────────────────────────────────────


def test_hundreds_wait_at_once(app: LiteQ, tasks: Any, consume: Any) -> None:
    results = tasks.rest.map([1.0] * 500)
    with consume(app, workers=500):
        results.get(60)
    jobs = [result.job() for result in results]
    assert max(job.finished for job in jobs) - min(job.started for job in jobs) < 4


def test_all_coroutines_share_one_loop_which_is_not_the_dispatchers(app: LiteQ, tasks: Any, consume: Any) -> None:
    with consume(app, workers=8):
        places = tasks.alook.map([()] * 50).get(GET)
    assert len({tuple(place) for place in places}) == 1
    assert places[0][1] != threading.get_ident()


def test_no_more_run_than_there_are_workers_of_either_sort(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    results = [task(log, str(gate)) for _ in range(6) for task in (tasks.count_at_once, tasks.count_at_once_too)]
    with consume(app, workers=5):
        eventually(lambda: len(lines(log)) == 5)
        assert len([result for result in results if result.progress is None and result.state is JobState.RUNNING]) >= 5
        assert len(lines(log)) == 5
        gate.touch()
        for result in results:
            result.get(GET)
    assert len(lines(log)) == 12


def test_plain_functions_hold_nobody_up(app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str) -> None:
    waiting = [tasks.count_at_once_too(log, str(gate)) for _ in range(3)]
    with consume(app, workers=4):
        assert tasks.rest(0).get(GET) is None
        gate.touch()
        for result in waiting:
            result.get(GET)


def test_each_job_has_a_context_of_its_own(app: LiteQ, tasks: Any, consume: Any) -> None:
    names = [f"number {number}" for number in range(20)]
    crowd._name.set("whoever started the consumer")
    with consume(app, workers=4):
        for name, seen in zip(names, tasks.introduce.map(names).get(GET), strict=True):
            assert seen == ["nobody", name, name]
        for name, seen in zip(names, tasks.introduce_too.map(names).get(GET), strict=True):
            assert seen == ["nobody", name]


def test_a_loop_is_replaced_after_so_many_jobs_for_each_worker(app: LiteQ, tasks: Any, consume: Any) -> None:
    with consume(app, workers=2, max_tasks=5):
        loops = [tasks.alook().get(GET)[1] for _ in range(21)]
    assert len(set(loops)) >= 2


# ── how they end ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_timeout_is_heard_as_cancelled_and_cleaned_up_after(app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
    with consume(app):
        error = failure_of(tasks.tidy.using(timeout=0.1)(log))
    assert error.error_type == "TaskTimeout"
    assert lines(log) == ["began", "generator closed", "cancelled", "finally"]


def test_a_revoked_coroutine_hears_it_as_cancelled(
    app: LiteQ, tasks: Any, consume: Any, log: str, eventually: Any
) -> None:
    with consume(app):
        result = tasks.tidy(log)
        eventually(lambda: lines(log) == ["began"])
        result.revoke(terminate=True)
        with pytest.raises(TaskRevoked):
            result.get(GET)
    assert lines(log) == ["began", "generator closed", "cancelled", "finally"]


def test_a_coroutine_that_does_not_end_in_time_is_put_back(
    app: LiteQ, tasks: Any, consume: Any, log: str, eventually: Any
) -> None:
    with consume(app, shutdown_timeout=0.1):
        result = tasks.tidy(log)
        eventually(lambda: lines(log) == ["began"])
    assert lines(log) == ["began", "generator closed", "cancelled", "finally"]
    assert (result.state, result.job().attempt) == (JobState.READY, 0)


def test_a_coroutine_that_takes_no_hint_is_given_up_without_a_retry(
    app: LiteQ, tasks: Any, consume: Any, log: str
) -> None:
    with consume(app):
        result = tasks.go_on_regardless.using(retries=3)(log)
        assert "may still be running" in failure_of(result).message
        assert tasks.rest(0).get(GET) is None
        assert lines(log) == [], "it was waited for"
    assert endings(result.job()) == [Ending.TIMEOUT]


@pytest.mark.parametrize("what", ["exits", "stays"])
def test_what_a_job_leaves_on_the_loop_does_not_end_it(
    app: LiteQ, tasks: Any, consume: Any, log: str, what: str
) -> None:
    with consume(app):
        before = tasks.alook().get(GET)
        tasks.leave_behind(what, log).get(GET)
        assert tasks.alook().get(GET) == before
    assert lines(log) == (["left behind, and tidied up"] if what == "stays" else [])


# ── a job that blocks the loop ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["block", "block_in_a_child"])
def test_who_blocks_the_loop_is_reported_by_name_and_the_others_go_on_after_it(
    app: LiteQ,
    tasks: Any,
    consume: Any,
    gate: Path,
    log: str,
    eventually: Any,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    with consume(app, workers=3):
        other = tasks.tidy.using(timeout=60)(str(log) + ".other")
        eventually(lambda: lines(str(log) + ".other") == ["began"])
        blocking = getattr(tasks, name)(str(gate), log)
        eventually(lambda: said(caplog, "blocks the event loop"))
        gate.touch()
        assert blocking.get(GET) is None
        assert other.state is JobState.RUNNING
        eventually(lambda: said(caplog, "the event loop goes on"))
        other.revoke(terminate=True)
        with pytest.raises(TaskRevoked):
            other.get(GET)
    (record,) = [one for one in caplog.records if "blocks the event loop" in one.getMessage()][:1]
    assert record.levelno == logging.WARNING
    words = record.getMessage()
    assert f"job={blocking.id} " in words
    assert f"task=crowd.{name} " in words
    assert "blocked=0." in words
    assert "waiting=1" in words
    assert "crowd.py" in words
    assert blocking.id in said(caplog, "the event loop goes on")[0]


def test_while_the_loop_is_blocked_the_dispatcher_works_and_takes_no_more_jobs(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with consume(app, workers=3):
        blocking = tasks.block(str(gate), log)
        eventually(lambda: said(caplog, "blocks the event loop"))
        later = tasks.rest(0)
        revoked = tasks.rest(0)
        revoked.revoke()
        assert len(app.consumers()) == 1
        assert later.state is JobState.READY
        assert revoked.state is JobState.REVOKED
        gate.touch()
        assert (blocking.get(GET), later.get(GET)) == (None, None)
    assert later.job().claim <= 3, "it was claimed and given back again and again"


def test_a_coroutine_that_blocks_the_loop_with_python_code_is_terminated(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    with consume(app, workers=3):
        before = tasks.alook().get(GET)
        blocking = tasks.block(str(gate), log)
        eventually(lambda: lines(log) == ["blocks"])
        blocking.revoke(terminate=True)
        with pytest.raises(TaskRevoked):
            blocking.get(GET)
        assert tasks.alook().get(GET) == before, "the loop had to be replaced"


def test_those_that_wait_on_a_blocked_loop_are_not_blamed(
    app: LiteQ, tasks: Any, consume: Any, log: str, eventually: Any
) -> None:
    others = str(log) + ".others"
    with consume(app, workers=3):
        other = tasks.tidy.using(timeout=0.4, retries=1)(others)
        eventually(lambda: lines(others) == ["began"])
        stuck = tasks.block_for.using(timeout=0.3)(2.0, log)
        assert "may still be running" in failure_of(stuck).message
        assert tasks.rest(0).get(GET) is None, "there is a new loop"
        assert failure_of(other).error_type == "TaskTimeout"
    assert endings(other.job()) == [Ending.TIMEOUT, Ending.TIMEOUT], "it was not retried"
    assert lines(others)[:4] == ["began", "generator closed", "cancelled", "finally"]


def test_what_a_coroutine_does_can_be_looked_at(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    with consume(app, workers=3):
        waiting = tasks.tidy(log + ".other")
        eventually(lambda: lines(log + ".other"))
        assert "in endless" in (text := app.stack(waiting.id)) or "in tidy" in text, text
        blocking = tasks.block(str(gate), log)
        eventually(lambda: lines(log))
        assert "in block" in (text := app.stack(blocking.id)), text
        gate.touch()
        assert blocking.get(GET) is None
        waiting.revoke(terminate=True)


@pytest.mark.slow
def test_a_blocked_loop_does_not_hold_up_the_end(
    app: LiteQ, tasks: Any, consume: Any, log: str, eventually: Any
) -> None:
    with consume(app, workers=2, shutdown_timeout=0.1) as consumer:
        waiting = tasks.tidy(str(log) + ".other")
        blocking = tasks.block_for(10.0, log)
        eventually(lambda: lines(log) == ["blocks"])
        began = time.monotonic()
        consumer.stop()
        assert time.monotonic() - began < 9.5
    for result in (waiting, blocking):
        assert (result.state, result.job().attempt) == (JobState.READY, 0)
    for thread in threading.enumerate():
        if thread.name == "liteq-worker":
            thread.join(GET)  # what was given up lives on until its call returns


def test_a_coroutine_that_would_stop_its_loop_to_wait_for_a_job_is_told(app: LiteQ, consume: Any) -> None:
    @app.task(name="child")
    async def child() -> str:
        await asyncio.sleep(0.01)
        return "grown up"

    @app.task(name="parent")
    async def parent(how: str) -> list[Any]:
        result = child()
        try:
            if how == "one":
                return [result.get(GET)]
            return [one.get() for one in ResultGroup([result]).as_completed(GET)]
        except WouldDeadlock as error:
            assert error.job_id == result.id and "await" in str(error)
            copy = pickle.loads(pickle.dumps(error))
            assert (str(copy), copy.on_loop) == (str(error), True)
            value = await result
            return [value, result.get(GET), await asyncio.to_thread(child().get, GET)]

    with consume(app, workers=4):
        for how in ("one", "several"):
            assert parent(how).get(GET) == ["grown up"] * 3


def test_a_coroutine_that_would_stop_its_loop_to_wait_for_a_lock_is_told(
    app: LiteQ, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    @app.task(name="holder")
    async def holder() -> None:
        async with app.lock_task("shared", wait=True):
            workshop.note(log, "holds it")
            while not gate.exists():
                await asyncio.sleep(0.002)

    @app.task(name="blocker")
    async def blocker(wait: float | None) -> str:
        with app.lock_task("shared", wait=True, timeout=wait):
            return "got it"

    with consume(app, workers=4):
        held = holder()
        eventually(lambda: lines(log) == ["holds it"])
        for wait in (None, GET):
            error = failure_of(blocker(wait))
            assert error.error_type == "TaskLocked" and "async with" in error.message
        assert app.locks()[0].waiting == 0
        gate.touch()
        held.get(GET)
        assert blocker(None).get(GET) == "got it", "there is nothing to wait for"


def test_an_idle_loop_wakes_nobody(app: LiteQ, tasks: Any, consume: Any) -> None:
    with consume(app, workers=2) as consumer:
        tasks.rest(0).get(GET)
        pool = consumer._dispatcher._pool
        assert pool.supervise(time.monotonic()) is None


def test_it_runs_beside_a_loop_of_the_programs_own(app: LiteQ, tasks: Any) -> None:
    async def program() -> None:
        with app.run_in_background(worker_type="asyncio", workers=4):
            places = await tasks.alook.map([()] * 4).aget(GET)
            assert id(asyncio.get_running_loop()) not in [place[0] for place in places]

    asyncio.run(program())
