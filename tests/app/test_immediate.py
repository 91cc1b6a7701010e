"""Immediate mode: the same serializer, lifecycle and execution in the caller, on memory; no file is touched.

The `immediate` fixture checks after each test that the app's file never came to be.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
from workbench import run_python

from liteq import (
    LiteQ,
    Result,
    ResultTimeout,
    Retry,
    S,
    SerializationError,
    Snooze,
    TaskContext,
    TaskFailed,
    TaskTimeout,
)
from liteq.clock import ManualClock

# ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_call_runs_here_and_now(immediate: LiteQ) -> None:
    ran_in: list[threading.Thread] = []

    @immediate.task
    def add(a: int, b: int) -> int:
        ran_in.append(threading.current_thread())
        return a + b

    result = add(1, 2)
    assert ran_in == [threading.current_thread()]
    assert result.state == "succeeded"
    assert result.get() == 3
    assert immediate.enqueue(add.s(1, 1)).get() == 2
    assert add.map([(1, 2), (3, 4)]).get() == [3, 7]
    assert add.schedule((5, 6)).get() == 11
    assert [job.state for job in immediate.jobs()] == ["succeeded"] * 5


def test_arguments_and_results_go_through_the_serializer(immediate: LiteQ) -> None:
    task = immediate.task(name="t")(lambda x: (x, x))
    mine = [1]
    first, second = task(mine).get()
    mine.append(2)
    assert first == [1]
    assert first is not second or first is not mine
    with pytest.raises(SerializationError, match="'x'"):
        task(object())
    with pytest.raises(TaskFailed, match="SerializationError"):
        immediate.task(name="u")(object)().get()


def test_an_error_stays_in_the_job_until_it_is_asked_for(immediate: LiteQ) -> None:
    @immediate.task
    def fails() -> NoReturn:
        raise ValueError("why")

    result = fails()
    assert result.state == "failed"
    with pytest.raises(TaskFailed) as failure:
        result.get()
    assert (failure.value.error_type, failure.value.message) == ("ValueError", "why")


def test_wrong_arguments_are_a_type_error_at_the_call(immediate: LiteQ) -> None:
    task = immediate.task(name="t")(lambda x: x)
    with pytest.raises(TypeError):
        task()
    assert immediate.jobs() == []


def test_who_interrupts_means_the_program_and_not_the_job(immediate: LiteQ) -> None:
    """Ctrl-C in a test or a development server."""
    presses = [KeyboardInterrupt]

    @immediate.task
    def interrupted() -> str:
        if presses:
            raise presses.pop()
        return "done"

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    [job] = immediate.jobs()
    assert (job.state, job.attempt) == ("ready", 0)  # put back, at no cost


def test_retries_follow_at_once_or_wait_for_their_time(immediate: LiteQ, clock: ManualClock) -> None:
    tries: list[float] = []

    @immediate.task(retries=2)
    def thrice() -> int:
        tries.append(clock.now())
        return 1 // (len(tries) // 3)

    assert thrice().get() == 1
    assert len(tries) == 3
    tries.clear()
    began = clock.now()
    result = thrice.using(retry_delay=[10, 60])()
    assert (result.state, len(tries)) == ("scheduled", 1)
    assert result.get() == 1  # waits on the app's clock, which moves by that
    assert tries == [began, began + 10, began + 70]


def test_what_a_task_says_about_itself_is_heeded(immediate: LiteQ, clock: ManualClock) -> None:
    says: list[Exception] = [Snooze(30), Retry(delay=5), Retry(eta=datetime.fromtimestamp(clock.now() + 100, UTC))]
    began = clock.now()

    @immediate.task(retries=2)
    def task() -> str:
        if says:
            raise says.pop(0)
        return "done"

    result = task()
    assert result.job().due == began + 30
    assert result.job().attempt == 0
    assert result.get() == "done"
    assert clock.now() == began + 100
    assert [attempt.ending for attempt in result.job().attempts] == ["retry", "retry", "succeeded"]


def test_a_delayed_job_stays_scheduled_until_its_time(immediate: LiteQ, clock: ManualClock) -> None:
    ran: list[int] = []
    task = immediate.task(name="t")(lambda x=0: ran.append(x))
    result = task.using(delay=60)(1)
    clock.advance(59)
    task(2)
    assert (result.state, ran) == ("scheduled", [2])
    clock.advance(1)
    task(3)  # whatever is enqueued next also runs what has become due
    assert ran == [2, 1, 3]
    assert result.state == "succeeded"


def test_get_waits_on_the_clock_of_the_app_and_runs_the_job(immediate: LiteQ, clock: ManualClock) -> None:
    task = immediate.task(name="t")(lambda x: x)
    began = clock.now()
    result = task.using(delay=timedelta(days=1))(1)
    with pytest.raises(ResultTimeout):
        result.get(timeout=3600)
    assert clock.now() == began  # nobody slept in vain
    with pytest.raises(ResultTimeout):
        result.get(timeout=0)
    assert result.get(timeout=86_400) == 1
    assert clock.now() == began + 86_400


def test_get_wakes_for_what_is_due_before(immediate: LiteQ, clock: ManualClock) -> None:
    order: list[str] = []
    task = immediate.task(name="t")(order.append)
    last = task.using(delay=60)("last")
    task.using(delay=30)("first")
    last.get()
    assert order == ["first", "last"]


def test_groups_wait_as_results_do(immediate: LiteQ, clock: ManualClock) -> None:
    task = immediate.task(name="t")(lambda x: x)
    group = task.using(delay=60).map([1, 2])
    with pytest.raises(ResultTimeout):
        group.get(timeout=59)
    assert group.get(timeout=61) == [1, 2]
    group = task.using(delay=60).map([3, 4])
    assert asyncio.run(group.aget()) == [3, 4]
    results = [task.using(delay=delay)(delay) for delay in (30, 10, 0, 20)]
    group = type(group)(results)
    with pytest.raises(ResultTimeout):
        list(group.as_completed(timeout=5))
    assert [result.get(0) for result in group.as_completed(timeout=30)] == [0, 10, 20, 30]


def test_a_job_that_nothing_can_start_is_not_waited_for(immediate: LiteQ) -> None:
    immediate.pause("default")
    result = immediate.task(name="t")(lambda: 1)()
    with pytest.raises(ResultTimeout, match="still ready"):
        result.get()
    with pytest.raises(ResultTimeout, match="still ready"):
        asyncio.run(result.aget())
    assert immediate.resume("default")
    assert result.get() == 1


@pytest.mark.parametrize("timeout", [None, 60])
def test_a_job_that_waits_for_one_which_needs_its_slot_is_told_at_once(immediate: LiteQ, timeout: float | None) -> None:
    @immediate.task(max_running=1, name="limited")
    def limited(how: str, *before: object) -> object:
        if how == "end":
            return how
        if how == "plan":
            return immediate.enqueue(limited.s("end").then(limited, "end")).get(timeout)
        return (limited.map(["end", "end"]) if how == "group" else limited("end")).get(timeout)

    @immediate.task(name="locked")
    @immediate.lock_task("shared", wait=True)
    def locked(depth: int) -> object:
        return between().get(timeout) if depth else "end"

    @immediate.task(name="between")
    def between() -> object:
        return locked(0).get(timeout)

    for result, needs in [
        (limited("direct"), "it needs a slot of the limit 'limited'"),
        (limited("group"), "it needs a slot of the limit 'limited'"),
        (limited("plan"), "a job that has to end before it needs a slot of the limit 'limited'"),
        (locked(1), "it needs a slot of the lock 'shared'"),
    ]:
        with pytest.raises(TaskFailed, match=f"WouldDeadlock: .*which cannot start: {needs}"):
            result.get()
    assert immediate.counts()["blocked"] == 0  # what was waited for has run since


def test_a_coroutine_that_waits_for_one_which_needs_its_slot_is_told_at_once(immediate: LiteQ) -> None:
    @immediate.task(max_running=1)
    async def limited(depth: int) -> object:
        return await limited(depth - 1) if depth else "end"

    with pytest.raises(TaskFailed, match=r"WouldDeadlock: .*which cannot start: it needs a slot of the limit"):
        limited(1).get()


def test_a_job_that_waits_for_one_which_is_to_follow_it_is_told_at_once(immediate: LiteQ) -> None:
    @immediate.task
    def child() -> None:
        return None

    @immediate.task(context=True)
    def parent(*, task: Any) -> object:
        return child.using(after=[task.id])().get()

    with pytest.raises(TaskFailed, match=r"WouldDeadlock: .*after the end of this very job"):
        parent().get()


def test_a_job_that_waits_for_one_which_others_keep_from_its_start_is_not_accused(immediate: LiteQ) -> None:
    @immediate.task
    @immediate.lock_task("shared", wait=True)
    def locked() -> str:
        return "end"

    @immediate.task
    def parent() -> object:
        return locked().get(timeout=60)

    with immediate.lock_task("shared"), pytest.raises(TaskFailed, match="ResultTimeout"):
        parent().get()


def test_a_task_may_enqueue_others_and_wait_for_them(immediate: LiteQ) -> None:
    order: list[str] = []

    @immediate.task
    def inner(x: int) -> int:
        order.append(f"inner {x}")
        return x

    @immediate.task
    def outer() -> int:
        order.append("outer begins")
        total = sum(inner.map([1, 2]).get()) + inner(3).get()
        order.append("outer ends")
        return total

    assert outer().get() == 6
    assert order == ["outer begins", "inner 1", "inner 2", "inner 3", "outer ends"]


def test_a_batch_runs_at_its_end(immediate: LiteQ) -> None:
    ran: list[int] = []
    task = immediate.task(name="t")(ran.append)
    with immediate.batch():
        first = task(1)
        task.using(priority=5)(2)
        assert ran == []
    assert ran == [2, 1]
    assert first.get() is None
    with pytest.raises(KeyError), immediate.batch():
        task(3)
        raise KeyError
    assert ran == [2, 1]


def test_commands_run_what_they_make_ready(immediate: LiteQ) -> None:
    runs: list[int] = []
    task = immediate.task(name="t")(lambda: runs.append(1))
    result = task.using(delay=60)()
    result.reschedule()
    assert len(runs) == 1
    result.requeue()
    assert len(runs) == 2
    assert immediate.requeue_all(state="succeeded") == 1
    assert len(runs) == 3
    other = task.using(delay=60)()
    other.revoke()
    other.restore()
    assert len(runs) == 3
    assert other.state == "scheduled"


def test_ids_stay_idempotent(immediate: LiteQ) -> None:
    runs: list[int] = []
    task = immediate.task(name="t")(lambda: runs.append(1))
    for _ in range(3):
        task.using(id="x")()
    assert runs == [1]


def test_signals_hooks_and_logs_are_those_of_a_consumer(immediate: LiteQ, log: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    immediate.signal()(lambda signal, job, error: told.append(signal))
    immediate.pre_execute()(lambda job: told.append("before"))
    immediate.post_execute()(lambda job, value, error: told.append("after"))
    immediate.task(name="t")(lambda: 1)()
    assert told == ["enqueued", "executing", "before", "after", "complete"]
    assert [record.getMessage().split()[0] for record in log.records] == ["started", "succeeded"]
    told.clear()
    immediate.task(name="f", retries=1)(lambda: 1 / 0)()
    assert told == [
        *("enqueued", "executing", "before", "after", "retrying"),
        *("executing", "before", "after", "error"),
    ]
    assert [record.levelno for record in log.records[2:]] == [
        logging.INFO,
        logging.WARNING,
        logging.INFO,
        logging.ERROR,
    ]


def test_a_revoked_task_is_skipped(immediate: LiteQ, clock: ManualClock) -> None:
    runs: list[int] = []
    task = immediate.task(name="t")(lambda: runs.append(1))
    task.revoke(once=True)
    skipped = task()
    assert (skipped.state, runs) == ("revoked", [])
    task()
    assert runs == [1]
    expired = task.using(delay=60, expires=30)()
    clock.advance(60)
    task()
    assert expired.state == "expired"


# ── async tasks ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def _double(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


def test_async_tasks_run_from_ordinary_code(immediate: LiteQ) -> None:
    task = immediate.task(_double)
    assert task(4).get() == 8
    with ThreadPoolExecutor(2) as pool:
        assert [result.get() for result in pool.map(task, range(4))] == [0, 2, 4, 6]


def test_async_tasks_run_from_coroutines(immediate: LiteQ) -> None:
    task = immediate.task(_double)

    @immediate.task
    async def outer(x: int) -> int:
        return await task(x) + task(x).get()

    async def main() -> list[int]:
        return [task(1).get(), await task(2), await (await task.aenqueue(3)), await outer(4)]

    assert asyncio.run(main()) == [2, 4, 6, 16]
    assert outer(1).get() == 4


def test_async_tasks_have_a_timeout(immediate: LiteQ) -> None:
    @immediate.task(timeout=0.01)
    async def forever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TaskFailed) as failure:
        forever().get()
    assert failure.value.error_type == TaskTimeout.__name__
    assert "timeout of 0.01 s" in failure.value.message


def test_async_tasks_leave_no_loop_open(immediate: LiteQ) -> None:
    task = immediate.task(_double)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=task, args=(1,))
        thread.start()
        thread.join()
        task(2)
        asyncio.run(task.aenqueue(3))
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


# ── threads ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_that_another_thread_runs_is_waited_for(immediate: LiteQ) -> None:
    begun, may_end = threading.Event(), threading.Event()

    @immediate.task(context=True, retries=1)
    def slow(task: TaskContext) -> int:
        begun.set()
        may_end.wait(10)
        return 1 // (task.attempt - 1)  # the first attempt fails

    with ThreadPoolExecutor(3) as pool:
        calling = pool.submit(slow.using(id="slow"))
        begun.wait(10)
        handle: Result[int] = immediate.result("slow")
        with pytest.raises(ResultTimeout, match="still running"):
            handle.get(timeout=0.01)
        waiting = [pool.submit(handle.get), pool.submit(lambda: asyncio.run(handle.aget()))]
        may_end.set()
        assert [one.result(10) for one in waiting] == [1, 1]
        assert calling.result(10) == handle


def test_threads_may_call_tasks_at_once(immediate: LiteQ) -> None:
    task = immediate.task(name="t")(lambda x: x)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda number: task(number).get(), range(200))) == list(range(200))
    assert immediate.counts()["succeeded"] == 200  # type: ignore[index]


# ── switching ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_mode_can_be_switched_at_run_time(directory: Path, clock: ManualClock) -> None:
    app = LiteQ(directory / "queue.db", clock=clock)
    task = app.task(name="t")(lambda: 1)
    signals: list[str] = []
    app.signal(S.COMPLETE)(lambda signal, job, error: signals.append(signal))
    app.immediate = True
    assert app.immediate
    in_memory = task()
    assert in_memory.get() == 1
    assert signals == ["complete"]
    assert list(directory.iterdir()) == []
    app.immediate = True  # once more changes nothing
    assert len(app.jobs()) == 1
    app.immediate = False
    assert not app.immediate
    stored = task()
    assert stored.state == "ready"
    assert [job.id for job in app.jobs()] == [stored.id]
    assert in_memory.get() == 1  # a handle keeps what it is a handle of
    app.immediate = True
    assert app.jobs() == []
    app.close()


@pytest.mark.parametrize("value", [1, "yes", None])
def test_the_switch_is_true_or_false(app: LiteQ, value: Any) -> None:
    with pytest.raises(TypeError, match="immediate"):
        app.immediate = value


def test_tasks_and_hooks_made_in_one_mode_hold_in_the_other(immediate: LiteQ) -> None:
    ran: list[str] = []
    before = immediate.task(name="before")(lambda: ran.append("before"))
    immediate.immediate = False
    after = immediate.task(name="after")(lambda: ran.append("after"))
    immediate.pre_execute()(lambda job: ran.append("hook"))
    immediate.immediate = True
    before()
    after()
    assert ran == ["hook", "before", "hook", "after"]


def test_a_whole_program_in_immediate_mode_touches_no_file(directory: Path) -> None:
    said = run_python(
        """
        import os, sys, tempfile
        from liteq import LiteQ
        app = LiteQ("queue.db", durability="full")

        @app.task(retries=2)
        def work(x):
            return x * 2

        result = work(4)
        work.map(range(10)).get()
        work.using(delay=0.01)(1).get()
        app.close()
        print(result.get(), os.listdir("."), os.listdir(tempfile.gettempdir()))
        """,
        cwd=directory,
        LITEQ_IMMEDIATE="1",
        TMPDIR=str(directory),
    )
    assert said == "8 [] []\n"
    assert list(directory.iterdir()) == []


def test_sqlite_is_not_even_opened(immediate: LiteQ, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    monkeypatch.setattr(sqlite3, "connect", None)
    assert immediate.task(name="t")(lambda: 1)().get() == 1
    immediate.counts()
    immediate.close()
