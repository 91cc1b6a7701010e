"""What a type checker knows about liteq. Checked by mypy, never run.

Each ``type: ignore`` stands on a mistake that must stay a mistake: mypy's strict mode reports an ignore that nothing
needs, so this file fails both when a promised type changes and when a wrong call becomes legal.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from liteq import (
    Explanation,
    FileStorage,
    Job,
    JobState,
    LiteQ,
    MiddlewareCall,
    Progress,
    Result,
    ResultGroup,
    Schedule,
    Signature,
    Step,
    TaskContext,
    TaskFailed,
    chord,
    every,
    group,
)

app = LiteQ("app.db", timezone=UTC, durability="normal", result_ttl=timedelta(days=1), failed_ttl=None)


@app.task
def add(a: int, b: int = 2) -> int:
    return a + b


@app.task(retries=3, retry_delay=timedelta(seconds=10), retry_on=(OSError,), timeout=30, queue="mail")
def greet(name: str, *, polite: bool = False) -> str:
    return f"Dear {name}" if polite else name


@app.task(retry_delay=[1, 10, 60.5], priority=5, expires=60)
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task
def forget() -> None: ...


def calls_are_checked() -> None:
    assert_type(add(1, 2), Result[int])
    assert_type(add(1), Result[int])
    assert_type(add.enqueue(1, b=2), Result[int])
    assert_type(greet("Ann", polite=True), Result[str])
    assert_type(forget(), Result[None])
    add("1", 2)  # type: ignore[arg-type]
    add()  # type: ignore[call-arg]
    add(1, 2, 3)  # type: ignore[call-arg]
    add(1, c=2)  # type: ignore[call-arg]
    add.enqueue("1")  # type: ignore[arg-type]
    greet("Ann", True)  # type: ignore[call-arg]


def an_async_task_has_the_awaited_type() -> None:
    assert_type(fetch("http://example.org"), Result[bytes])
    assert_type(fetch("http://example.org").get(), bytes)


def results_have_the_type_of_the_function(result: Result[int]) -> None:
    assert_type(add(1, 2).get(), int)
    assert_type(result.get(timeout=5), int)
    assert_type(result.id, str)
    assert_type(result.is_ready(), bool)
    assert_type(result.error, TaskFailed | None)
    assert_type(result.state, JobState)
    assert_type(result.progress, Progress | None)
    assert_type(result.why(), Explanation)
    assert_type([cause.advice for cause in app.why("x").causes], list[str])
    assert_type(app.export("queue.jsonl", overwrite=True).jobs, int)
    assert_type(app.import_("queue.jsonl").known, int)
    assert_type(result.job(), Job)
    result.get(timeout="5")  # type: ignore[arg-type]


async def awaiting_gives_the_same_types(result: Result[int]) -> None:
    assert_type(await result, int)
    assert_type(await result.aget(timeout=1), int)
    assert_type(await add.aenqueue(1, 2), Result[int])
    assert_type(await (await fetch.aenqueue("http://example.org")), bytes)
    await add.aenqueue("1")  # type: ignore[arg-type]


def many_calls_give_a_group() -> None:
    group = add.map([(1, 2), (3, 4)])
    assert_type(group, ResultGroup[int])
    assert_type(group.get(timeout=5), list[int])
    assert_type(group[0], Result[int])
    assert_type(iter(group), Iterator[Result[int]])
    assert_type([result.get() for result in group.as_completed()], list[int])


async def many_calls_can_be_awaited() -> None:
    assert_type(await add.amap([1, 2]), ResultGroup[int])
    assert_type(await add.map([1, 2]), list[int])


def one_call_may_differ() -> None:
    assert_type(add.using(delay=10, priority=5, queue="mail", id="order-7")(1, 2), Result[int])
    assert_type(add.using(eta=datetime.now(UTC)).map([1]), ResultGroup[int])
    assert_type(add.schedule((1, 2), delay=timedelta(minutes=1)), Result[int])
    add.using(delay=10)("1")  # type: ignore[arg-type]
    add.using(dealy=10)  # type: ignore[call-arg]
    add.using(delay="soon")  # type: ignore[arg-type]
    add.schedule((1, 2), eta="tomorrow")  # type: ignore[arg-type]


@app.task(context=True)
async def in_steps(order: str, *, task: TaskContext) -> None:
    assert_type(task.step("greet", greet.call_local, order, polite=True), str)
    assert_type(await task.astep("fetch", fetch_now, order), bytes)
    assert_type(await task.astep("plain", greet.call_local, order), str)
    task.step("greet", greet.call_local, 7)  # type: ignore[arg-type]
    await task.astep("fetch", fetch_now)  # type: ignore[call-overload]
    task.step(7, greet.call_local, order)  # type: ignore[arg-type]
    task.sleep(timedelta(days=1), name="a day")
    task.sleep("soon")  # type: ignore[arg-type]
    assert_type(task.wait_for("paid", timeout=60), Any)
    assert_type(await task.await_for("paid"), Any)
    assert_type(task.step_key("charge"), str)


async def fetch_now(url: str) -> bytes:
    return url.encode()


async def steps_are_seen_and_events_sent(result: Result[int]) -> None:
    assert_type(result.steps(), list[Step])
    assert_type(app.steps(result), list[Step])
    app.send(result, "paid", {"by": 7})
    await app.asend(result.id, "paid")
    assert_type(result.requeue(from_start=True), bool)
    app.send(result)  # type: ignore[call-arg]


@app.middleware
class Both:
    def enqueue(self, call: MiddlewareCall) -> Iterator[None]:
        assert_type(call.headers, dict[str, str])
        assert_type(call.parent, Job | None)
        yield

    def execute(self, call: MiddlewareCall) -> Iterator[None]:
        assert_type(call.args, tuple[Any, ...])
        yield


@app.middleware("execute")
def around_each(call: MiddlewareCall) -> Iterator[None]:
    assert_type(call.job.headers, dict[str, str])
    yield


def middleware_stays_what_it_is(call: MiddlewareCall) -> None:
    assert_type(Both(), Both)
    assert_type(around_each(call), Iterator[None])
    add.using(headers={"trace": "1"})
    add.using(headers={"trace": 1})  # type: ignore[dict-item]


def a_local_call_is_the_function() -> None:
    assert_type(add.call_local(1, 2), int)
    add.call_local("1")  # type: ignore[arg-type]


def options_are_checked() -> None:
    LiteQ(storage=7)  # type: ignore[arg-type]
    LiteQ(FileStorage("queue", durability="normal"))
    FileStorage("queue", durability="some")  # type: ignore[arg-type]
    LiteQ(durability="some")  # type: ignore[arg-type]
    LiteQ(serialiser="json")  # type: ignore[call-arg]
    app.task(retries="3")  # type: ignore[call-overload]
    app.task(unique="{a}", unique_for="waiting", on_duplicate="replace", debounce=5, debounce_max=timedelta(minutes=1))
    app.task(unique=lambda arguments: str(arguments["a"]))
    app.task(unique=7)  # type: ignore[call-overload]
    app.task(unique=True, on_duplicate="drop")  # type: ignore[call-overload]
    add.using(unique=None)
    add.using(debounce="5")  # type: ignore[arg-type]
    app.task(retrys=3)  # type: ignore[call-overload]
    app.task(add, retries=3)  # type: ignore[call-overload]


@app.periodic_task("0 3 * * *", catch_up="all", args=(1,), queue="night")
def nightly(day: int) -> str:
    return str(day)


@app.periodic_task(every(30), context=True)
def tick(task: TaskContext) -> None:
    assert_type(task.slot, datetime | None)


def schedules_are_typed() -> None:
    assert_type(nightly(1), Result[str])
    assert_type(tick(), Result[None])
    assert_type(app.schedules.list(), list[Schedule])
    assert_type(app.schedules.get("x").next_run, datetime | None)
    assert_type(app.schedules.pause("x"), bool)
    nightly("1")  # type: ignore[arg-type]
    app.periodic_task(30)  # type: ignore[call-overload]
    app.periodic_task("@daily", catch_up="some")  # type: ignore[call-overload]
    app.periodic_task("@daily", overlaps="skip")  # type: ignore[call-overload]


@app.task(rate_limit="10/s", rate_limit_key="{account}")
@app.rate_limit("api", 100, timedelta(minutes=1), wait=True)
def paced(account: str) -> int:
    return 1


async def rates_keep_signatures() -> None:
    assert_type(paced("a"), Result[int])
    async with app.rate_limit("api", 100, 60, retry=False, burst=5):
        pass
    app.limits.set(paced, rate_limit="5/s")
    app.limits.set(app.rate_limit("api", 100, 60), rate_limit="5/s")
    app.task(rate_limit=10)  # type: ignore[call-overload]
    app.rate_limit("api", "100", 60)  # type: ignore[arg-type]


@app.task(max_running=2, max_running_key="{account}")
@app.lock_task("ledger", wait=True)
def book(account: str) -> int:
    return len(account)


def locks_keep_the_types() -> None:
    assert_type(book("a"), Result[int])
    book(1)  # type: ignore[arg-type]
    app.limits.set(book, 3)
    app.limits.set(book, "3")  # type: ignore[arg-type]
    assert_type(app.is_locked("ledger"), bool)
    assert_type(app.flush_locks("ledger"), set[str])
    app.lock_task("ledger", slots="3")  # type: ignore[arg-type]
    app.task(max_running="3")  # type: ignore[call-overload]


def a_call_can_be_kept_for_later() -> None:
    assert_type(add.s(1, 2), Signature[int])
    assert_type(app.enqueue(add.s(1, 2)), Result[int])
    assert_type(app.enqueue(add.s(1, 2), connection=object()), Result[int])
    add.s("1")  # type: ignore[call-overload]


@app.task
def total(numbers: list[int]) -> float:
    return float(sum(numbers))


def workflows_are_typed() -> None:
    pipeline = add.s(1, 2).then(greet)
    assert_type(app.enqueue(pipeline), Result[str])
    assert_type(app.enqueue(pipeline.then(add.s(1)).error(greet, "x")), Result[int])
    assert_type(app.enqueue(group([add.s(1, 2), add.s(3)])), ResultGroup[int])
    assert_type(app.enqueue(chord([add.s(1, 2)], total.s())), Result[float])
    assert_type(app.enqueue(group([add.s(1, 2)]).then(total).then(greet)), Result[str])
    assert_type(app.enqueue(add.s(1).then(group([greet.si("Ann")]))), ResultGroup[str])
    assert_type(app.enqueue(total.si([1])).workflow, ResultGroup[Any])
    chord([add.s(1)], total, on_failure="stop")  # type: ignore[arg-type]
    add.using(after=[add(1)], on_failure="run")(1)
    add.using(on_failure="collect")  # type: ignore[arg-type]


async def a_kept_call_can_be_enqueued_from_a_coroutine() -> None:
    assert_type(await app.aenqueue(fetch.s("http://example.org")), Result[bytes])


@app.task(context=True)
def report(path: str, task: TaskContext) -> int:
    task.progress(1, 10, path)
    assert_type(task.attempt, int)
    assert_type(task.is_cancelled(), bool)
    assert_type(task.time_remaining(), float | None)
    connection: sqlite3.Connection = task.connection()
    connection.execute("INSERT INTO report VALUES (?)", (path,))
    return task.retries_left


@app.task(context=True, retries=3)
async def summarise(task: TaskContext, path: str) -> str:
    connection: sqlite3.Connection = await task.aconnection()
    connection.execute("DELETE FROM report")
    return f"{task.id}: {path}"


def the_context_is_not_an_argument_of_the_call() -> None:
    assert_type(report("report.csv"), Result[int])
    assert_type(summarise("report.csv"), Result[str])
    summarise(7)  # type: ignore[arg-type]


def questions_have_types(job: Job) -> None:
    assert_type(app.job("id"), Job)
    assert_type(app.result("id"), Result[Any])
    assert_type(app.jobs(state="failed", limit=10), list[Job])
    assert_type(app.counts(), dict[JobState, int])
    assert_type(job.attempt, int)
