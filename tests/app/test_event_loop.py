"""From a running event loop: it goes on while another process has the write lock, and while jobs take their time."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from time import perf_counter
from typing import Any

import pytest
from workbench import Program, work

from liteq import LiteQ, StorageError, Task, TaskContext

#: Far more than a turn of the loop takes even on a busy machine, far less than waiting for the other process would.
STANDSTILL = 0.5


@pytest.fixture
def task(on_file: LiteQ) -> Task[..., Any]:
    task = on_file.task(name="t")(lambda x=1: x)
    task()
    work(on_file)
    return task


@contextmanager
def holding(app: LiteQ) -> Iterator[Program]:
    """Another process that is in the middle of writing until it is told to go on."""
    with Program(
        """
        import sqlite3
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        say("holding")
        hear()
        connection.execute("COMMIT")
        connection.close()
        say("done")
        """,
        app.storage.location,
    ) as program:
        assert program.hear() == "holding"
        yield program


@pytest.fixture
def held(on_file: LiteQ, task: Task[..., Any]) -> Iterator[Program]:
    with holding(on_file) as program:
        yield program


@asynccontextmanager
async def heartbeat() -> AsyncIterator[list[float]]:
    """The gaps between turns of the loop, in seconds, while the block runs."""
    gaps: list[float] = []

    async def beat() -> None:
        last = perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = perf_counter()
            gaps.append(now - last)
            last = now

    beating = asyncio.create_task(beat())
    try:
        yield gaps
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)


def test_the_loop_goes_on_while_another_process_writes(on_file: LiteQ, task: Task[..., Any], held: Program) -> None:
    async def main() -> None:
        async with heartbeat() as gaps:
            waiting = [
                asyncio.ensure_future(task.aenqueue(1)),
                asyncio.ensure_future(task.amap([2, 3])),
                asyncio.ensure_future(on_file.aenqueue(task.s(4))),
            ]
            while len(gaps) < 50:
                await asyncio.sleep(0)
            assert not any(one.done() for one in waiting)
            assert len(on_file.jobs(state="ready")) == 0  # questions do not wait either
            held.tell()
            await asyncio.gather(*waiting)
        assert max(gaps) < STANDSTILL

    asyncio.run(main())
    assert held.hear() == "done"
    assert len(on_file.jobs(state="ready")) == 4


def test_the_loop_goes_on_while_somebody_waits_for_a_result(
    on_file: LiteQ, task: Task[..., Any], held: Program
) -> None:
    async def main() -> Any:
        enqueued = asyncio.ensure_future(task.aenqueue(5))
        async with heartbeat() as gaps:
            while len(gaps) < 20:
                await asyncio.sleep(0)
            held.tell()
            waiting = asyncio.ensure_future((await enqueued).aget(20))
            seen = len(gaps)
            while len(gaps) < seen + 20:
                await asyncio.sleep(0)
            assert not waiting.done()
            await asyncio.to_thread(work, on_file)
            value = await waiting
        assert max(gaps) < STANDSTILL
        return value

    assert asyncio.run(main()) == 5


@pytest.mark.parametrize("size", [1, 1_000_000], ids=["small", "large"])
def test_the_loop_goes_on_while_a_step_waits_to_be_recorded(on_file: LiteQ, size: int) -> None:
    @on_file.task(context=True)
    async def stepping(*, task: TaskContext) -> int:
        assert len(await task.astep("soon", lambda: size * "x")) == size
        with holding(on_file) as program:
            async with heartbeat() as gaps:
                asyncio.get_running_loop().call_later(2 * STANDSTILL, program.tell)
                value = await task.astep("late", lambda: size * "y")
            assert max(gaps) < STANDSTILL
            assert len(gaps) > 50
            assert program.hear() == "done"
        return len(value)

    with on_file.run_in_background(workers=1):
        result = stepping()
        assert result.get(60) == size
    assert [step.name for step in result.steps()] == ["soon", "late"]


def test_the_loop_goes_on_while_a_batch_is_stored(on_file: LiteQ, task: Task[..., Any], held: Program) -> None:
    async def shop() -> list[Any]:
        async with heartbeat() as gaps, on_file.batch():
            results = [task(number) for number in (1, 2)]
            asyncio.get_running_loop().call_later(2 * STANDSTILL, held.tell)
        assert max(gaps) < STANDSTILL
        return results

    results = asyncio.run(shop())
    assert [on_file.job(result.id).state for result in results] == ["ready", "ready"]


def test_a_batch_of_a_coroutine_that_raises_or_is_cancelled_inside_stores_nothing(
    on_file: LiteQ, task: Task[..., Any]
) -> None:
    before = len(on_file.jobs())

    async def fail() -> None:
        async with on_file.batch():
            task(1)
            raise KeyError("half way")

    async def hang() -> None:
        async with on_file.batch():
            task(2)
            await asyncio.get_running_loop().create_future()

    async def shop() -> None:
        with pytest.raises(KeyError):
            await fail()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(hang(), 0.01)
        async with on_file.batch(), on_file.batch():
            task(3)
        with on_file.batch():
            async with on_file.batch():
                task(4)
            assert len(on_file.jobs()) == before + 1
        assert task(5).state == "ready"

    asyncio.run(shop())
    assert len(on_file.jobs()) == before + 3


def test_a_batch_of_a_coroutine_runs_at_once_in_immediate_mode(immediate: LiteQ) -> None:
    task = immediate.task(name="t")(lambda x: x + 1)

    async def shop() -> int:
        async with immediate.batch():
            result = task(1)
        return await result

    assert asyncio.run(shop()) == 2


def test_what_is_already_there_is_awaited_though_somebody_writes(
    on_file: LiteQ, task: Task[..., Any], held: Program
) -> None:
    [job] = on_file.jobs(state="succeeded")

    async def main() -> Any:
        return await asyncio.wait_for(on_file.result(job.id).aget(), 10)

    assert asyncio.run(main()) == 1


def test_a_cancelled_enqueue_is_stored_whole_or_not_at_all(on_file: LiteQ, task: Task[..., Any], held: Program) -> None:
    async def main() -> None:
        waiting = asyncio.ensure_future(task.amap(range(100)))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        held.tell()
        await asyncio.to_thread(held.hear)

    asyncio.run(main())  # waits for its threads
    assert len(on_file.jobs(state="ready")) in (0, 100)


def test_enqueuing_from_many_coroutines_at_once(on_file: LiteQ) -> None:
    task = on_file.task(name="t")(lambda x: x)

    async def main() -> list[str]:
        results = await asyncio.gather(*(task.aenqueue(number) for number in range(200)))
        return [result.id for result in results]

    ids = asyncio.run(main())
    assert len(set(ids)) == 200
    assert on_file.counts()["ready"] == 200  # type: ignore[index]


def test_an_error_of_the_storage_reaches_the_coroutine(on_file: LiteQ, task: Task[..., Any]) -> None:
    with closing(sqlite3.connect(on_file.storage.location)) as connection:
        connection.execute("ALTER TABLE liteq_job RENAME TO gone")

    async def main() -> None:
        with pytest.raises(StorageError):
            await task.aenqueue(1)
        with pytest.raises(StorageError):
            await on_file.result("x")

    asyncio.run(main())


def test_results_are_awaited_in_several_loops_at_once(on_file: LiteQ, task: Task[..., Any]) -> None:
    result = task(7)
    values: list[Any] = []
    threads = [threading.Thread(target=lambda: values.append(asyncio.run(result.aget(20)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    work(on_file)
    for thread in threads:
        thread.join()
    assert values == [7] * 4
