"""Callers that wait for jobs: one watcher for all of them, and nobody is forgotten, whatever happens to the storage."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from kinds import GET

from liteq import JobNotFound, LiteQ, ResultTimeout, StorageError, lifecycle, waiting
from liteq.job import Ending, Job, Outcome
from liteq.storage.base import ClaimRequest
from liteq.waiting import LONGEST_PAUSE, PATIENCE, SAFETY_POLL, Waiters, pause_after

WATCHER = "liteq-waiters"


@pytest.fixture(params=["file", "memory"])
def app(request: pytest.FixtureRequest, path: Any) -> Any:
    import workshop

    app = workshop.build(path if request.param == "file" else ":memory:")
    yield app
    app.close()


def claim(app: LiteQ, wanted: int) -> list[Job]:
    return app.storage.turn([], ClaimRequest(app.storage.register({}), wanted), time.time()).jobs


def succeed(app: LiteQ, jobs: Sequence[Job]) -> None:
    """End these running jobs, as a consumer would."""
    now = time.time()
    outcomes = [Outcome(job.seq, job.claim, Ending.SUCCEEDED, now, now, b"%d" % job.seq) for job in jobs]
    ends = [lifecycle.decide(job, lifecycle.Policy(), one, now) for job, one in zip(jobs, outcomes, strict=True)]
    assert app.storage.apply(ends, now) == [True] * len(jobs)


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == WATCHER]


def has_waiters(app: LiteQ, number: int) -> bool:
    return sum(map(len, app.engine.waiters._waiting.values())) == number


def test_many_wait_for_many(app: LiteQ, tasks: Any, eventually: Any) -> None:
    results = tasks.echo.map(range(40))
    jobs = claim(app, 40)
    with ThreadPoolExecutor(80) as threads:
        answers = [threads.submit(result.get, GET) for result in [*results, *results]]
        eventually(lambda: has_waiters(app, 80))
        assert len(watchers()) == 1
        for job in reversed(jobs):
            succeed(app, [job])
        assert [one.result() for one in answers] == [job.seq for job in jobs] * 2
    assert has_waiters(app, 0)


def test_waiting_ends_long_before_the_safety_poll(app: LiteQ, tasks: Any, eventually: Any) -> None:
    took = []
    for number in range(5):
        result = tasks.echo(number)
        [job] = claim(app, 1)
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(result.get, GET)
            eventually(lambda: has_waiters(app, 1))
            began = time.monotonic()
            succeed(app, [job])
            answer.result()
            took.append(time.monotonic() - began)
    assert sorted(took)[2] < SAFETY_POLL / 4


def test_other_writes_neither_end_nor_starve_the_waiting(app: LiteQ, tasks: Any, eventually: Any) -> None:
    result = tasks.echo("mine")
    [mine] = claim(app, 1)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(result.get, GET)
        eventually(lambda: has_waiters(app, 1))
        for number in range(300):
            tasks.echo(number)
        assert not answer.done()
        succeed(app, [mine])
        assert answer.result() == mine.seq


def test_a_job_that_is_gone_is_not_waited_for(app: LiteQ, tasks: Any, eventually: Any) -> None:
    result = tasks.echo("short-lived")
    jobs = claim(app, 1)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(result.get, GET)
        eventually(lambda: has_waiters(app, 1))
        called = threading.Event()
        app.engine.waiters.add(999, called.set)
        assert called.wait(GET), "there never was such a job"
        succeed(app, jobs)
        answer.result()
    app.purge()
    with pytest.raises(JobNotFound):
        result.get(GET)


def test_who_has_left_is_not_called(app: LiteQ, tasks: Any) -> None:
    result = tasks.echo("x")
    jobs = claim(app, 1)
    with pytest.raises(ResultTimeout, match="running"):
        result.get(0.02)
    called: list[str] = []
    seen = threading.Event()
    app.engine.waiters.add(jobs[0].seq, lambda: called.append("left"))
    app.engine.waiters.add(jobs[0].seq, seen.set)
    [left, _] = app.engine.waiters._waiting[jobs[0].seq]
    app.engine.waiters.discard(jobs[0].seq, left)
    app.engine.waiters.discard(jobs[0].seq, left)
    succeed(app, jobs)
    assert seen.wait(GET)
    assert called == []


def test_closing_lets_everybody_go_and_a_later_caller_may_wait_again(app: LiteQ, tasks: Any, eventually: Any) -> None:
    result = tasks.echo("x")
    [job] = claim(app, 1)
    events = [threading.Event() for _ in range(5)]
    for event in events:
        app.engine.waiters.add(job.seq, event.set)
    app.engine.waiters.close()
    assert all(event.is_set() for event in events)
    assert watchers() == []
    app.engine.waiters.close()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(result.get, GET)
        eventually(lambda: has_waiters(app, 1))
        succeed(app, [job])
        assert answer.result() == job.seq


def test_the_watcher_leaves_when_nobody_waits(
    app: LiteQ, tasks: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liteq.waiting.LINGER", 0.05)
    monkeypatch.setattr("liteq.waiting.SAFETY_POLL", 0.1)
    result = tasks.echo("x")
    [job] = claim(app, 1)
    with pytest.raises(ResultTimeout):
        result.get(0.01)
    eventually(lambda: watchers() == [])
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(result.get, GET)
        eventually(lambda: has_waiters(app, 1))
        succeed(app, [job])
        assert answer.result() == job.seq


@pytest.mark.parametrize("verb", ["watch", "barrier", "finished"])
def test_a_storage_that_fails_is_everybodys_to_see_and_not_the_end(
    app: LiteQ, tasks: Any, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tasks.echo("x")
    [job] = claim(app, 1)
    sound, failures = getattr(app.storage, verb), []

    def fail_first(*args: Any) -> Any:
        if len(failures) < 3:
            failures.append(verb)
            raise StorageError("now and then")
        return sound(*args)

    monkeypatch.setattr(app.storage, verb, fail_first)
    called = threading.Event()
    app.engine.waiters.add(job.seq, called.set)
    assert called.wait(GET), "he is to ask the storage himself"
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(result.get, GET)
        succeed(app, [job])
        assert answer.result() == job.seq
    assert failures


@pytest.mark.parametrize("verb", ["watch", "barrier"])
def test_a_storage_that_cannot_be_watched_is_asked_now_and_then(
    app: LiteQ,
    tasks: Any,
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    eventually: Any,
) -> None:
    result = tasks.echo("x")
    [job] = claim(app, 1)
    sound, tries = getattr(app.storage, verb), []

    def fail(*_: Any) -> Any:
        tries.append(time.monotonic())
        raise StorageError("no more inotify instances")

    monkeypatch.setattr(app.storage, verb, fail)
    with caplog.at_level("WARNING", "liteq"), ThreadPoolExecutor(1) as threads:
        answer = threads.submit(result.get, GET)
        eventually(lambda: len(tries) >= 7)
        succeed(app, [job])
        assert answer.result() == job.seq
    assert tries[-1] - tries[0] >= 0.01 * (1 + 2 + 4 + 8 + 16)
    [line] = caplog.records
    assert "no more inotify instances" in line.getMessage()
    monkeypatch.setattr(app.storage, verb, sound)
    again = tasks.echo("y")
    [job] = claim(app, 1)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(again.get, GET)
        eventually(lambda: has_waiters(app, 1))
        succeed(app, [job])
        assert answer.result() == job.seq
    assert app.engine.waiters._failures == 0


def test_closing_does_not_wait_for_a_watcher_that_takes_breath(
    app: LiteQ, tasks: Any, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    def fail(*_: Any) -> Any:
        raise StorageError("cannot be watched")

    monkeypatch.setattr(app.storage, "watch", fail)
    monkeypatch.setattr(waiting, "FIRST_BREATH", 600.0)
    monkeypatch.setattr(waiting, "LAST_BREATH", 600.0)
    tasks.echo("x")
    [job] = claim(app, 1)
    first, second = threading.Event(), threading.Event()
    app.engine.waiters.add(job.seq, first.set)
    assert first.wait(GET)
    app.engine.waiters.add(job.seq, second.set)
    eventually(lambda: app.engine.waiters._failures == 2)
    assert not second.is_set()
    app.engine.waiters.close()
    assert second.is_set()
    assert watchers() == []


def test_a_loop_that_was_closed_harms_nobody_else(app: LiteQ, tasks: Any, eventually: Any) -> None:
    lost, kept = tasks.echo("lost"), tasks.echo("kept")
    jobs = claim(app, 2)
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(lost.aget())
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(kept.get, GET)
        loop.run_until_complete(asyncio.sleep(0.05))
        eventually(lambda: has_waiters(app, 2))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        succeed(app, jobs)
        assert answer.result() == jobs[1].seq
    assert not waiting.done()
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]  # left pending on purpose
    waiting.get_coro().close()


def test_coroutines_wait_beside_each_other(app: LiteQ, tasks: Any) -> None:
    async def main() -> list[Any]:
        results = await tasks.echo.amap(range(20))
        jobs = claim(app, 20)
        answers = asyncio.gather(*[result.aget(GET) for result in results])
        await asyncio.sleep(0)
        await asyncio.to_thread(succeed, app, jobs)
        assert await answers == [job.seq for job in jobs]
        with pytest.raises(ResultTimeout):
            await (await tasks.echo.aenqueue("never")).aget(0.01)
        return jobs

    assert len(asyncio.run(main())) == 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("app", ["file"], indirect=True)
def test_a_forked_child_waits_for_itself_and_leaves_the_parents_waiters_alone(
    app: LiteQ, tasks: Any, eventually: Any
) -> None:
    result = tasks.echo("x")
    [job] = claim(app, 1)
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(result.get, GET) for _ in range(2)]
        eventually(lambda: has_waiters(app, 2))
        child = os.fork()
        if child == 0:
            os._exit(0 if _waits_in_the_child(result, job) else 1)
        succeed(app, [job])
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert [answer.result() for answer in answers] == [job.seq] * 2


def _waits_in_the_child(result: Any, job: Job) -> bool:
    try:
        return bool(result.get(GET) == job.seq)
    except BaseException:  # noqa: BLE001 - nothing may get out of a forked child
        return False


def test_waiters_start_no_thread_before_somebody_waits(app: LiteQ) -> None:
    Waiters(app.storage).close()
    assert watchers() == []


def test_the_pause_between_questions_in_vain_grows_to_its_bound_and_stays_there() -> None:
    pauses = [pause_after(PATIENCE + more) for more in range(1, 20)]
    assert pauses == sorted(pauses)
    assert pauses[0] < LONGEST_PAUSE == pauses[-1] == pause_after(10**9)
