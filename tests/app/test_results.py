"""Result and ResultGroup: asking for what a task returned, and waiting for it."""

from __future__ import annotations

import asyncio
import gc
import math
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import pytest
from workbench import Program, claim, run, work

from liteq import (
    Cancel,
    Fail,
    JobNotFound,
    LiteQ,
    Progress,
    Result,
    ResultGroup,
    ResultTimeout,
    SerializationError,
    StorageError,
    Task,
    TaskContext,
    TaskExpired,
    TaskFailed,
    TaskRevoked,
)
from liteq.clock import ManualClock


@pytest.fixture
def echo(app: LiteQ) -> Task[..., Any]:
    return app.task(name="echo")(lambda x: x)


@pytest.fixture
def broken(app: LiteQ) -> Task[..., Any]:
    @app.task(name="broken")
    def broken(message: str = "the reason") -> NoReturn:
        raise ValueError(message)

    return broken


@pytest.fixture(params=["app", "on_file"])
def any_app(request: pytest.FixtureRequest) -> Iterator[LiteQ]:
    yield request.getfixturevalue(request.param)


# ── get ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("returned", [5, 0, None, "", [], False, {"k": (1, 2)}, b"x" * 100_000])
def test_get_gives_what_the_task_returned_as_often_as_asked(app: LiteQ, echo: Task[..., Any], returned: Any) -> None:
    result = echo(returned)
    work(app)
    for _ in range(3):
        assert result.get(timeout=0) == returned
        assert app.result(result.id).get() == returned
        assert asyncio.run(result.aget()) == returned
    assert result.is_ready()


def test_a_task_that_returned_none_gives_none_at_once(app: LiteQ) -> None:
    result = app.task(name="t")(lambda: None)()
    work(app)
    assert result.get() is None


def test_a_result_that_is_not_to_be_kept_is_none(app: LiteQ) -> None:
    result = app.task(name="t", store_result=False)(lambda: 5)()
    work(app)
    assert result.get(0) is None
    assert result.state == "succeeded"


def test_timeout_zero_asks_once(app: LiteQ, echo: Task[..., Any]) -> None:
    result = echo(1)
    for _ in range(2):
        with pytest.raises(ResultTimeout) as error:
            result.get(timeout=0)
        assert (error.value.job_id, error.value.state, error.value.timeout) == (result.id, "ready", 0)
        assert isinstance(error.value, TimeoutError)
    [job] = claim(app)
    with pytest.raises(ResultTimeout, match="still running"):
        result.get(timedelta(0))
    run(app, job)
    assert result.get(timeout=0) == 1


def test_a_wait_that_ends_too_early_says_where_the_job_stands(on_file: LiteQ) -> None:
    result = on_file.task(name="t")(lambda: 1).using(delay=60)()
    with pytest.raises(ResultTimeout, match=rf"job {result.id} is still scheduled after 0.02 s"):
        result.get(timeout=0.02)
    with pytest.raises(ResultTimeout, match=r"still scheduled after 0.02 s"):
        asyncio.run(result.aget(timeout=timedelta(seconds=0.02)))


def test_a_wait_ends_though_the_clock_of_the_app_stands_still(app: LiteQ, echo: Task[..., Any]) -> None:
    with pytest.raises(ResultTimeout):
        echo(1).get(timeout=0.01)


@pytest.mark.parametrize(
    ("timeout", "error"),
    [(-1, ValueError), ("5", TypeError), (float("nan"), ValueError), (True, TypeError), (float("inf"), ValueError)],
)
def test_a_timeout_that_makes_no_sense_is_refused(
    app: LiteQ, echo: Task[..., Any], timeout: Any, error: type[Exception]
) -> None:
    result = echo(1)
    group = ResultGroup([result])
    for use in (
        lambda: result.get(timeout),
        lambda: asyncio.run(result.aget(timeout)),
        lambda: group.get(timeout),
        lambda: asyncio.run(group.aget(timeout)),
        lambda: list(group.as_completed(timeout)),
    ):
        with pytest.raises(error, match="timeout"):
            use()


def test_a_very_long_timeout_is_a_wait(any_app: LiteQ) -> None:
    result = any_app.task(name="t")(lambda: 1)()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(result.get, 1e12), pool.submit(lambda: asyncio.run(result.aget(1e12)))]
        work(any_app)
        assert [one.result(10) for one in waiting] == [1, 1]


def test_waiting_ends_when_the_job_does(any_app: LiteQ) -> None:
    task = any_app.task(name="t")(lambda x: x)
    with ThreadPoolExecutor(8) as pool:
        results = [task(number) for number in range(4)]
        waiting: list[Future[Any]] = [pool.submit(result.get) for result in results]
        waiting += [pool.submit(lambda one=result: asyncio.run(one.aget())) for result in results]  # type: ignore[misc]
        work(any_app)
        assert [one.result(10) for one in waiting] == [0, 1, 2, 3] * 2


def test_one_who_waits_sees_failure_revocation_expiry_and_the_end_of_the_job_itself(any_app: LiteQ) -> None:
    task = any_app.task(name="t")(lambda: 1 / 0)
    with ThreadPoolExecutor(4) as pool:
        result = task()
        waiting = pool.submit(result.get, 10)
        work(any_app)
        with pytest.raises(TaskFailed, match="ZeroDivisionError"):
            waiting.result(10)
        result = task()
        waiting = pool.submit(result.get, 10)
        result.revoke()
        with pytest.raises(TaskRevoked):
            waiting.result(10)
        result = task.using(delay=60)()
        waiting = pool.submit(result.get, 10)
        result.revoke()
        any_app.purge()
        with pytest.raises((JobNotFound, TaskRevoked)):
            waiting.result(10)


def test_a_thousand_waiters_share_one_thread(on_file: LiteQ) -> None:
    task = on_file.task(name="t")(lambda x: x)
    group = task.map(range(1000))
    before = threading.active_count()

    async def main() -> list[Any]:
        waiting = asyncio.gather(*(result.aget(30) for result in group))
        await asyncio.sleep(0)
        await asyncio.to_thread(work, on_file)
        return await waiting

    assert asyncio.run(main()) == list(range(1000))
    assert threading.active_count() <= before + 1


def test_a_wait_goes_on_after_the_storage_could_not_be_watched_for_once(
    on_file: LiteQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = on_file.task(name="t")(lambda: 1)
    result = task()
    failed = threading.Event()

    def refuse() -> NoReturn:
        failed.set()
        raise StorageError("no more watches")

    with ThreadPoolExecutor(1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(on_file.storage, "watch", refuse)
            waiting = pool.submit(result.get, 20)
            assert failed.wait(10)
        work(on_file)
        assert waiting.result(10) == 1


def test_results_are_waited_for_across_processes(on_file: LiteQ) -> None:
    waiter = """
        from liteq import LiteQ
        app = LiteQ(sys.argv[1])
        result = app.result(sys.argv[2])
        say(result.is_ready())
        say(result.get(timeout=20))
        app.close()
    """
    result = on_file.task(name="t")(lambda: "done")()
    with Program(waiter, on_file.storage.location, result.id) as program:
        assert program.hear() == "False"
        work(on_file)
        assert program.hear() == "done"
        assert program.finish() == 0


# ── await ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_result_can_be_awaited_again_and_again(app: LiteQ, echo: Task[..., Any], broken: Task[..., Any]) -> None:
    async def main() -> None:
        result, failing = await echo.aenqueue(5), broken()
        await asyncio.to_thread(work, app)
        assert await result == await result == 5
        with pytest.raises(TaskFailed):
            await failing
        with pytest.raises(JobNotFound):
            await app.result("nobody")

    asyncio.run(main())


def test_awaiting_leaves_the_loop_to_others(on_file: LiteQ) -> None:
    result = on_file.task(name="t")(lambda: "x")()

    async def main() -> Any:
        waiting = asyncio.ensure_future(result.aget(20))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waiting.done()
        await asyncio.to_thread(work, on_file)
        return await waiting

    assert asyncio.run(main()) == "x"


def test_a_wait_can_be_cancelled(on_file: LiteQ) -> None:
    result = on_file.task(name="t")(lambda: 1)()

    async def main() -> None:
        waiting = asyncio.ensure_future(result.aget())
        for _ in range(10):
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await result

    asyncio.run(main())
    work(on_file)
    assert result.get(0) == 1


def test_a_loop_that_is_gone_before_the_job_ends_harms_nobody(on_file: LiteQ) -> None:
    task = on_file.task(name="t")(lambda: 1)
    forgotten, wanted = task(), task()
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(forgotten.aget())
    loop.run_until_complete(asyncio.sleep(0.01))
    waiting.cancel()
    loop.run_until_complete(asyncio.gather(waiting, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    with ThreadPoolExecutor(1) as pool:
        still = pool.submit(wanted.get, 10)
        work(on_file)
        assert still.result(10) == 1
    gc.collect()


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_failed_job_raises_with_everything_that_is_known(app: LiteQ, broken: Task[..., Any]) -> None:
    result = broken()
    work(app)
    with pytest.raises(TaskFailed) as failure:
        result.get(0)
    error = failure.value
    assert (error.job_id, error.error_type, error.message) == (result.id, "ValueError", "the reason")
    assert error.traceback.startswith("Traceback (most recent call last):\n")
    assert "raise ValueError(message)" in error.traceback
    assert error.traceback.endswith("ValueError: the reason\n")
    assert "execution.py" not in error.traceback
    assert str(error) == f"job {result.id} failed: ValueError: the reason"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), vars(copy)) == (TaskFailed, vars(error))


class ShopError(Exception):
    """An error of the user's own."""


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "error_type", "message"),
    [
        (ShopError("sold out"), f"{__name__}.ShopError", "sold out"),
        (ShopError(), f"{__name__}.ShopError", ""),
        (KeyError("k"), "KeyError", "'k'"),
        (Unspeakable(), f"{__name__}.Unspeakable", "<str() of the error raised RuntimeError>"),
        (ValueError("\ud800"), "ValueError", "\\ud800"),
        (ValueError("x" * 10_000), "ValueError", "x" * 4000),
        (SystemExit(3), "SystemExit", "3"),
        (Fail("hopeless"), "Fail", "hopeless"),
        (ExceptionGroup("several", [ValueError("a")]), "ExceptionGroup", "several (1 sub-exception)"),
        (StopIteration(5), "StopIteration", "5"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_of_any_kind_are_told(app: LiteQ, error: BaseException, error_type: str, message: str) -> None:
    @app.task(name="t")
    def fails() -> NoReturn:
        raise error

    result = fails()
    work(app)
    with pytest.raises(TaskFailed) as failure:
        result.get(0)
    assert (failure.value.error_type, failure.value.message) == (error_type, message)


def test_an_error_that_came_from_another_shows_both(app: LiteQ) -> None:
    @app.task(name="t")
    def fails() -> None:
        try:
            {}["missing"]
        except KeyError as error:
            raise ShopError("no such thing") from error

    result = fails()
    work(app)
    assert result.error is not None
    assert "KeyError: 'missing'" in result.error.traceback
    assert "direct cause" in result.error.traceback


def test_a_return_value_that_cannot_be_stored_is_a_failure_that_says_so(app: LiteQ) -> None:
    result = app.task(name="t")(object)()
    work(app)
    with pytest.raises(TaskFailed, match="object") as failure:
        result.get(0)
    assert failure.value.error_type == "SerializationError"


def test_a_payload_that_cannot_be_read_fails_that_job_only(app: LiteQ, echo: Task[..., Any]) -> None:
    bad, good = echo(1), echo(2)
    storage: Any = app.storage
    row = storage._rows[1]
    storage._rows[1] = row._replace(payload=b"\xff not json")
    work(app)
    assert good.get(0) == 2
    with pytest.raises(TaskFailed, match=rf"arguments of job {bad.id} cannot be read"):
        bad.get(0)
    assert len(bad.job().attempts) == 1


def test_a_stored_result_that_cannot_be_read_says_so(app: LiteQ, echo: Task[..., Any]) -> None:
    result = echo(1)
    work(app)
    storage: Any = app.storage
    storage._rows[1] = storage._rows[1]._replace(result=b"\xff")
    with pytest.raises(SerializationError):
        result.get(0)
    assert result.state == "succeeded"


def test_revoked_expired_and_cancelled_jobs_raise_their_own_kind(app: LiteQ, clock: ManualClock) -> None:
    @app.task(name="t")
    def cancels() -> NoReturn:
        raise Cancel("nothing to do")

    revoked, expired, cancelled = cancels(), cancels.using(expires=5)(), cancels.using(delay=10)()
    revoked.revoke()
    clock.advance(10)
    work(app)
    for result, kind, message in [
        (revoked, TaskRevoked, "revoked"),
        (expired, TaskExpired, "not started before it expired"),
        (cancelled, TaskRevoked, "nothing to do"),
    ]:
        with pytest.raises(kind, match=message) as failure:
            result.get(0)
        assert isinstance(failure.value, TaskFailed)
        assert result.is_ready()


# ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_unknown_id_is_not_found_by_any_question(app: LiteQ) -> None:
    result: Result[Any] = app.result("nobody")
    for use in (
        lambda: result.get(0),
        lambda: result.get(5),
        lambda: result.is_ready(),
        lambda: result.state,
        lambda: result.progress,
        lambda: result.error,
        lambda: result.job(),
        lambda: result.revoke(),
        lambda: result.restore(),
        lambda: result.reschedule(delay=5),
        lambda: result.requeue(),
        lambda: app.job("nobody"),
        lambda: app.revoke("nobody"),
        lambda: app.is_revoked("nobody"),
        lambda: asyncio.run(result.aget(5)),
        lambda: ResultGroup([result]).get(5),
        lambda: list(ResultGroup([result]).as_completed(5)),
        lambda: ResultGroup([result]).progress(),
    ):
        with pytest.raises(JobNotFound, match="'nobody'") as error:
            use()
        assert error.value.job_id == "nobody"
        assert isinstance(error.value, LookupError)


@pytest.mark.parametrize("wrong", [5, None, b"1", ""])
def test_an_id_is_a_string(app: LiteQ, wrong: Any) -> None:
    for use in (app.result, app.job, app.revoke, app.restore, app.requeue):
        with pytest.raises((TypeError, ValueError), match="id"):
            use(wrong)


def test_state_follows_the_job(app: LiteQ, echo: Task[..., Any], clock: ManualClock) -> None:
    result = echo.using(delay=5)(1)
    seen = [(str(result.state), result.is_ready())]
    clock.advance(5)
    [job] = claim(app)
    seen.append((str(result.state), result.is_ready()))
    run(app, job)
    seen.append((str(result.state), result.is_ready()))
    assert seen == [("scheduled", False), ("running", False), ("succeeded", True)]


def test_progress_is_what_the_task_said_last(immediate: LiteQ) -> None:
    seen: list[Progress | None] = []

    @immediate.task(name="t", context=True)
    def steps(task: TaskContext) -> None:
        mine = immediate.result(task.id)
        seen.append(mine.progress)
        task.progress(1)
        seen.append(mine.progress)
        task.progress(2, 10, "halfway")
        seen.append(mine.progress)

    result = steps()  # type: ignore[call-arg]
    assert seen == [None, Progress(1.0), Progress(2.0, 10.0, "halfway")]
    assert result.progress is None  # it does not run any more


def test_the_job_tells_every_attempt_with_its_times(app: LiteQ, clock: ManualClock) -> None:
    tries: list[int] = []

    @app.task(name="t", retries=2, retry_delay=10)
    def third_time_lucky() -> str:
        clock.advance(1)
        tries.append(1)
        if len(tries) < 3:
            raise ShopError(f"try {len(tries)}")
        return "done"

    began = clock.now()
    result = third_time_lucky()
    for _ in range(3):
        work(app)
        clock.advance(10)
    job = result.job()
    assert [(one.number, one.ending, one.message) for one in job.attempts] == [
        (1, "failed", "try 1"),
        (2, "failed", "try 2"),
        (3, "succeeded", ""),
    ]
    assert [(one.started, one.finished) for one in job.attempts] == [
        (began, began + 1),
        (began + 11, began + 12),
        (began + 22, began + 23),
    ]
    assert job.attempts[0].started_at == datetime.fromtimestamp(began, UTC)
    assert (job.created_at, job.finished_at) == (
        datetime.fromtimestamp(began, UTC),
        datetime.fromtimestamp(began + 23, UTC),
    )
    assert job.error is None
    assert result.error is None
    assert job.attempt == 3


def test_error_is_the_last_failure_while_more_attempts_follow(app: LiteQ, clock: ManualClock) -> None:
    result = app.task(name="t", retries=1, retry_delay=10)(lambda: 1 / 0)()
    assert result.error is None
    work(app)
    assert result.state == "scheduled"
    assert result.error is not None
    assert (result.error.job_id, result.error.error_type) == (result.id, "ZeroDivisionError")


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_reschedule_gives_a_waiting_job_another_time(app: LiteQ, echo: Task[..., Any], clock: ManualClock) -> None:
    result = echo(1)
    assert result.reschedule(delay=60)
    assert (result.state, result.job().due) == ("scheduled", clock.now() + 60)
    assert result.reschedule(eta=datetime(2040, 1, 1, tzinfo=UTC))
    assert result.job().run_at == datetime(2040, 1, 1, tzinfo=UTC)
    assert result.reschedule(delay=timedelta(seconds=5))
    clock.advance(5)
    assert work(app) == 1
    assert not result.reschedule(delay=5)
    assert result.get(0) == 1


def test_reschedule_without_a_time_means_now(app: LiteQ, echo: Task[..., Any]) -> None:
    result = echo.using(delay=60)(1)
    assert result.reschedule()
    assert work(app) == 1


def test_reschedule_keeps_a_running_job_as_it_is(app: LiteQ, echo: Task[..., Any]) -> None:
    result = echo(1)
    [job] = claim(app)
    assert not result.reschedule(delay=5)
    run(app, job)
    assert result.state == "succeeded"


@pytest.mark.parametrize("options", [{"eta": 5}, {"delay": "x"}, {"eta": datetime(2030, 1, 1), "delay": 5}])
def test_reschedule_refuses_nonsense(app: LiteQ, echo: Task[..., Any], options: dict[str, Any]) -> None:
    result = echo(1)
    with pytest.raises(TypeError):
        result.reschedule(**options)
    assert result.state == "ready"


def test_requeue_runs_a_finished_job_again_and_keeps_its_history(app: LiteQ) -> None:
    works: list[int] = []

    @app.task(name="t", retries=1)
    def sometimes() -> int:
        if not works:
            raise ShopError
        return works[0]

    result = sometimes()
    assert not result.requeue()
    assert work(app) == 2
    assert result.state == "failed"
    assert result.requeue()
    assert result.state == "ready"
    assert not result.requeue()
    assert work(app) == 2  # the whole allowance once more
    works.append(5)
    assert app.requeue(result)
    work(app)
    assert result.get(0) == 5
    assert [one.number for one in result.job().attempts] == [1, 2, 3, 4, 5]
    assert app.requeue(result.id)  # a success may be run again, too
    work(app)
    assert result.job().attempt == 6


# ── handles ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_handles_of_the_same_job_are_equal(app: LiteQ, echo: Task[..., Any]) -> None:
    first, second = echo(1), echo(1)
    assert first == app.result(first.id)
    assert first != second
    assert first != first.id
    assert len({first, second, app.result(first.id)}) == 2
    assert repr(first) == f"<Result {first.id}>"


def test_handles_are_cheap_and_ask_nothing_when_made(app: LiteQ) -> None:
    assert app.result("nobody").id == "nobody"


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_group_gives_all_in_order(app: LiteQ, echo: Task[..., Any]) -> None:
    group = echo.map([3, 1, 2])
    assert group.progress() == (0, 3)
    with pytest.raises(ResultTimeout):
        group.get(timeout=0)
    for job in claim(app, 2):
        run(app, job)
    assert group.progress() == (2, 3)
    work(app)
    assert group.progress() == (3, 3)
    assert group.get() == group.get(timeout=0) == [3, 1, 2]
    assert asyncio.run(group.aget(5)) == [3, 1, 2]


def test_a_group_can_be_awaited(app: LiteQ, echo: Task[..., Any]) -> None:
    async def main() -> list[Any]:
        group = await echo.amap([1, 2])
        await asyncio.to_thread(work, app)
        return await group

    assert asyncio.run(main()) == [1, 2]


def test_a_group_is_a_sequence_of_results(app: LiteQ, echo: Task[..., Any]) -> None:
    group = echo.map(range(5))
    results = list(group)
    assert len(group) == 5
    assert (group[0], group[-1]) == (results[0], results[4])
    assert isinstance(group[1:3], ResultGroup)
    assert list(group[1:3]) == results[1:3]
    assert list(group[::-1]) == results[::-1]
    with pytest.raises(IndexError):
        group[5]
    assert repr(group) == "<ResultGroup of 5>"
    assert bool(ResultGroup()) is False


def test_an_empty_group_is_done(app: LiteQ, echo: Task[..., Any]) -> None:
    for group in (echo.map([]), ResultGroup()):
        assert group.get() == []
        assert asyncio.run(group.aget()) == []
        assert list(group.as_completed()) == []
        assert group.progress() == (0, 0)


def test_a_failure_in_a_group_is_raised_or_put_in_its_place(app: LiteQ) -> None:
    task = app.task(name="t")(lambda x: 1 // x)
    group = task.map([1, 0, -1])
    work(app)
    with pytest.raises(TaskFailed, match="ZeroDivisionError"):
        group.get()
    with pytest.raises(TaskFailed, match="ZeroDivisionError"):
        asyncio.run(group.aget())
    for values in (group.get(return_exceptions=True), asyncio.run(group.aget(return_exceptions=True))):
        assert (values[0], values[2]) == (1, -1)
        assert isinstance(values[1], TaskFailed)
        assert values[1].job_id == group[1].id


def test_a_timeout_is_raised_by_a_group_whatever_becomes_of_exceptions(app: LiteQ, echo: Task[..., Any]) -> None:
    group = echo.map([1])
    for use in (
        lambda: group.get(0, return_exceptions=True),
        lambda: asyncio.run(group.aget(0, return_exceptions=True)),
        lambda: list(group.as_completed(0)),
        lambda: list(group.as_completed(0.01)),
    ):
        with pytest.raises(ResultTimeout):
            use()


def test_the_timeout_of_a_group_is_for_all_of_it(on_file: LiteQ) -> None:
    from time import monotonic

    task = on_file.task(name="t")(lambda: 1)
    group = ResultGroup([task() for _ in range(50)])
    began = monotonic()
    with pytest.raises(ResultTimeout):
        group.get(timeout=0.1)
    with pytest.raises(ResultTimeout):
        asyncio.run(group.aget(timeout=0.1))
    assert monotonic() - began < 5  # not 50 times as long


def test_as_completed_gives_them_as_they_end(any_app: LiteQ) -> None:
    task = any_app.task(name="t")(lambda x: 1 // x)
    group = ResultGroup([task.using(priority=priority)(value) for value, priority in [(1, 0), (0, 1), (2, 2)]])
    completed = group.as_completed(timeout=20)
    for expected in (group[2], group[1], group[0]):
        [job] = claim(any_app, 1)
        run(any_app, job)
        assert next(completed) == expected
    assert list(completed) == []


def test_as_completed_wakes_up_for_each(any_app: LiteQ) -> None:
    task = any_app.task(name="t")(lambda x: x)
    group = task.map(range(20))
    with ThreadPoolExecutor(1) as pool:
        collected = pool.submit(lambda: [result.get(0) for result in group.as_completed(20)])
        for job in claim(any_app):
            run(any_app, job)
        assert sorted(collected.result(10)) == list(range(20))


def test_as_completed_gives_results_of_any_ending_once(app: LiteQ, echo: Task[..., Any]) -> None:
    group = echo.map([1, 2, 3])
    group[1].revoke()
    work(app)
    assert sorted(result.id for result in group.as_completed()) == sorted(result.id for result in group)
    assert [str(result.state) for result in group] == ["succeeded", "revoked", "succeeded"]


@pytest.mark.parametrize(
    ("numbers", "error"),
    [
        ((math.nan,), ValueError),
        ((1, math.nan), ValueError),
        ((math.inf,), ValueError),
        ((10**400,), ValueError),
        (("half",), ValueError),
        ((None,), TypeError),
        ((1, object()), TypeError),
    ],
)
def test_progress_that_cannot_be_stored_is_an_error_of_its_job_alone(
    app: LiteQ, numbers: tuple[Any, ...], error: type[Exception]
) -> None:
    seen: list[type[Exception]] = []

    @app.task(context=True)
    def says(task: TaskContext) -> str:
        with pytest.raises(error) as caught:
            task.progress(*numbers)
        seen.append(caught.type)
        task.progress(1, 2, "half \ud800")
        return "went on"

    result = says()
    with app.run_in_background():
        assert result.get(30) == "went on"
        assert says().get(30) == "went on"
    assert seen == [error, error]
