"""Middleware around enqueues and executions, and headers. What docs/middleware.md shows is run by ``test_guide.py``."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from workbench import work

from liteq import Cancel, LiteQ, MiddlewareCall, Retry, StorageError, TaskContext, TaskRevoked, every
from liteq.clock import ManualClock
from liteq.errors import ConfigurationError
from liteq.execution import close_loop
from liteq.job import Job

where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="outside")


@pytest.fixture(params=["memory", "file"])
def app(request: pytest.FixtureRequest, clock: ManualClock, directory: Any) -> Any:
    app = LiteQ(":memory:" if request.param == "memory" else directory / "queue.db", clock=clock)

    @app.task(name="add")
    def add(a: int, b: int = 2) -> int:
        return a + b

    @app.task(name="aadd")
    async def aadd(a: int, b: int = 2) -> int:
        await asyncio.sleep(0)
        return a + b

    yield app
    close_loop()
    app.close()


def recorded(app: LiteQ, name: str, seen: list[Any]) -> None:
    """A middleware around both that notes what it sees."""

    class Recorder:
        def enqueue(self, call: MiddlewareCall) -> Iterator[None]:
            yield from self._around(call, "enqueue")

        def execute(self, call: MiddlewareCall) -> Iterator[None]:
            yield from self._around(call, "execute")

        def _around(self, call: MiddlewareCall, what: str) -> Iterator[None]:
            seen.append((name, what, "before", call.args, call.kwargs))
            try:
                result = yield
            except BaseException as error:
                seen.append((name, what, "raised", type(error).__name__))
                raise
            seen.append((name, what, "after", result.id if isinstance(result, Job) else result))

    app.middleware(Recorder)


# ── both sides ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["add", "aadd"])
def test_the_first_that_was_registered_is_the_outermost_on_both_sides(app: LiteQ, name: str) -> None:
    seen: list[Any] = []
    recorded(app, "outer", seen)
    recorded(app, "inner", seen)
    result = app.tasks[name](1, b=3)
    call = ((1,), {"b": 3})
    assert seen == [
        ("outer", "enqueue", "before", *call),
        ("inner", "enqueue", "before", *call),
        ("inner", "enqueue", "after", result.id),
        ("outer", "enqueue", "after", result.id),
    ]
    seen.clear()
    work(app)
    assert seen == [
        ("outer", "execute", "before", *call),
        ("inner", "execute", "before", *call),
        ("inner", "execute", "after", 4),
        ("outer", "execute", "after", 4),
    ]
    assert result.get(0) == 4


def test_every_way_to_enqueue_passes_through(app: LiteQ) -> None:
    seen: list[str] = []

    @app.middleware("enqueue")
    def note(call: MiddlewareCall) -> Iterator[None]:
        seen.append(f"{call.job.task}{call.args}")
        stored = yield
        seen.append(stored.id)

    add = app.tasks["add"]
    ids = [add(1).id, *[one.id for one in add.map([1, 2])], app.enqueue(add.s(3)).id, add.schedule((4,), delay=9).id]
    ids.append(asyncio.run(add.aenqueue(5)).id)
    with app.batch():
        inside = [add(6), add(7)]
        assert len(seen) == 2 * len(ids) + 2, "what is behind the yield waits for the end of the block"
    ids += [one.id for one in inside]
    assert [one for one in seen if one.startswith("add")] == [f"add({number},)" for number in (1, 1, 2, 3, 4, 5, 6, 7)]
    assert [one for one in seen if not one.startswith("add")] == ids


def test_each_job_of_a_workflow_passes_through(app: LiteQ) -> None:
    seen: list[Any] = []
    recorded(app, "outer", seen)
    add = app.tasks["add"]
    result = app.enqueue(add.s(1).then(add, 10))
    assert [one[3] for one in seen if one[2] == "before"] == [(1,), (10,)]
    seen.clear()
    work(app)
    assert [one[3] for one in seen if one[2] == "before"] == [(1,), (10, 3)], "with what the job before has returned"
    assert result.get(0) == 13


def test_an_id_that_exists_is_answered_with_the_job_that_has_it(app: LiteQ) -> None:
    seen = []

    @app.middleware("enqueue")
    def note(call: MiddlewareCall) -> Iterator[None]:
        stored = yield
        seen.append((call.job.id, stored.seq))

    task = app.tasks["add"].using(id="order-7")
    assert task(1) == task(2)
    assert seen == [("order-7", 1), ("order-7", 1)]


def test_what_it_sets_is_seen_by_the_task_and_nowhere_else(app: LiteQ) -> None:
    @app.middleware("execute")
    def set_it(call: MiddlewareCall) -> Iterator[None]:
        token = where.set(f"around {call.job.task}")
        yield
        assert where.get() == f"around {call.job.task}"
        where.reset(token)

    @app.task(name="ask")
    def ask() -> str:
        return where.get()

    @app.task(name="aask")
    async def aask() -> str:
        return where.get()

    one, other = ask(), aask()
    work(app)
    assert (one.get(0), other.get(0)) == ("around ask", "around aask")
    assert where.get() == "outside"


@pytest.mark.parametrize("name", ["add", "aadd"])
def test_one_that_awaits_is_around_plain_functions_too(app: LiteQ, name: str) -> None:
    seen = []

    @app.middleware("execute")
    async def awaiting(call: MiddlewareCall) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        token = where.set("inside")
        result = yield
        await asyncio.sleep(0)
        where.reset(token)
        seen.append((call.args, result))

    @app.middleware("execute")
    def inner(call: MiddlewareCall) -> Iterator[None]:
        seen.append(where.get())
        yield

    results = [app.tasks[name](number) for number in (1, 2)]
    work(app)
    assert [one.get(0) for one in results] == [3, 4]
    assert seen == ["inside", ((1,), 3), "inside", ((2,), 4)]


def test_the_context_is_the_tasks_alone(app: LiteQ) -> None:
    seen = []

    @app.middleware("execute")
    def look(call: MiddlewareCall) -> Iterator[None]:
        seen.append(call.kwargs)
        call.kwargs["x"] = 2
        yield

    result = app.task(context=True, name="t")(lambda x, *, task: x)(x=1)
    work(app)
    assert (seen, result.get(0)) == ([{"x": 2}], 1), "it is to be looked at"


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_async", [False, True])
def test_an_error_of_the_task_is_seen_and_cannot_be_hidden(app: LiteQ, is_async: bool) -> None:
    seen = []

    @app.middleware("execute")
    def hide(call: MiddlewareCall) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            seen.append(str(error))

    recorded(app, "inner", seen)

    def fail() -> None:
        raise ValueError("bad luck")

    async def afail() -> None:
        fail()

    result = app.task(name="t", retries=1)(afail if is_async else fail)()
    seen.clear()
    work(app)
    assert [one[2:] for one in seen if isinstance(one, tuple)] == [("before", (), {}), ("raised", "ValueError")] * 2
    assert [one for one in seen if isinstance(one, str)] == ["bad luck"] * 2
    error = result.error
    assert error is not None
    assert (error.error_type, error.message) == ("ValueError", "bad luck")
    assert error.traceback.splitlines()[1].strip().startswith(f'File "{__file__}"')
    assert "liteq/middleware.py" not in error.traceback


@pytest.mark.parametrize("error", [StopIteration("x"), StopAsyncIteration("x"), KeyError("x"), SystemExit(3)])
@pytest.mark.parametrize("is_async", [False, True])
def test_any_exception_comes_out_as_it_went_in(app: LiteQ, error: BaseException, is_async: bool) -> None:
    @app.middleware("execute")
    def plain(call: MiddlewareCall) -> Iterator[None]:
        yield

    if is_async:

        @app.middleware("execute")
        async def awaiting(call: MiddlewareCall) -> AsyncIterator[None]:
            yield

    def fail() -> None:
        raise error

    result = app.task(name="t")(fail)()
    work(app)
    assert result.error is not None
    assert result.error.error_type == type(error).__name__


@pytest.mark.parametrize("when", ["before", "after", "instead"])
def test_an_error_around_an_execution_is_the_tasks_own(app: LiteQ, when: str, log: pytest.LogCaptureFixture) -> None:
    @app.middleware("execute")
    def faulty(call: MiddlewareCall) -> Iterator[None]:
        if when == "before":
            raise ValueError(when)
        try:
            yield
        except ZeroDivisionError:
            raise ValueError(when) from None
        if when == "after":
            raise ValueError(when)

    ran = []

    def body() -> None:
        ran.append(1)
        if when == "instead":
            raise ZeroDivisionError

    result = app.task(name="t", retries=1)(body)()
    work(app)
    assert len(ran) == (0 if when == "before" else 2)
    assert result.error is not None
    assert (result.error.error_type, result.error.message) == ("ValueError", when)
    assert [record.levelname for record in log.records if "ValueError" in record.getMessage()] == ["WARNING", "ERROR"]


def test_directives_mean_what_they_mean_in_the_task(app: LiteQ) -> None:
    @app.middleware("execute")
    def guard(call: MiddlewareCall) -> Iterator[None]:
        if call.args == (13,):
            raise Cancel("unlucky")
        yield
        if call.job.attempt == 1:
            raise Retry(reason="once more")

    unlucky, again = app.tasks["add"](13), app.tasks["add"].using(retries=1)(1)
    work(app)
    with pytest.raises(TaskRevoked, match="unlucky"):
        unlucky.get(0)
    assert (again.get(0), again.job().attempt) == (3, 2)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(("times", "words"), [(0, "ended without a yield"), (2, "yielded twice; it must yield once")])
def test_it_must_yield_once(app: LiteQ, times: int, words: str, is_async: bool) -> None:
    if is_async:

        async def broken(call: MiddlewareCall) -> Any:
            for _ in range(times):
                yield
    else:

        def broken(call: MiddlewareCall) -> Any:  # type: ignore[misc]
            for _ in range(times):
                yield

    app.middleware("execute")(broken)
    result = app.tasks["aadd" if is_async else "add"](1)
    work(app)
    assert result.error is not None
    assert result.error.error_type == "RuntimeError"
    assert f"broken {words}" in result.error.message


def test_an_error_before_the_enqueue_reaches_the_caller_and_those_around_it(app: LiteQ) -> None:
    seen: list[Any] = []
    recorded(app, "outer", seen)

    @app.middleware("enqueue")
    def refuse(call: MiddlewareCall) -> Iterator[None]:
        if call.args == (13,):
            raise PermissionError("not that one")
        yield

    with pytest.raises(PermissionError, match="not that one"):
        app.tasks["add"].map([12, 13, 14])
    assert app.jobs() == []
    assert [one[2:4] for one in seen] == [
        ("before", (12,)),
        ("before", (13,)),
        ("raised", "PermissionError"),
        ("raised", "PermissionError"),
    ]


def test_an_error_after_the_enqueue_is_logged_for_the_job_is_stored(app: LiteQ, log: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []
    recorded(app, "outer", seen)

    @app.middleware("enqueue")
    def faulty(call: MiddlewareCall) -> Iterator[None]:
        yield
        raise ValueError("too late")

    result = app.tasks["add"](1)
    assert result.state == "ready"
    assert seen[-1] == ("outer", "enqueue", "after", result.id)
    [record] = [record for record in log.records if record.levelname == "ERROR"]
    assert "faulty after the enqueue failed for job" in record.getMessage()


def test_what_the_storage_raises_is_raised_at_the_yield(app: LiteQ, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_given: Any, **_named: Any) -> None:
        raise StorageError("the disk is full")

    seen: list[Any] = []
    recorded(app, "outer", seen)
    monkeypatch.setattr(app.storage, "add", full)
    with pytest.raises(StorageError):
        app.tasks["add"](1)
    assert seen[-1] == ("outer", "enqueue", "raised", "StorageError")


def test_a_block_that_raises_closes_what_was_under_way(app: LiteQ) -> None:
    seen: list[Any] = []
    recorded(app, "outer", seen)
    with pytest.raises(ZeroDivisionError), app.batch():
        app.tasks["add"](1)
        raise ZeroDivisionError
    assert app.jobs() == []
    assert [one[2] for one in seen] == ["before", "raised"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("run", "wraps 'enqueue' or 'execute', not 'run'"),
        (object(), "methods of these names, not object"),
        (7, "not int 7"),
        (type("Plain", (), {"execute": lambda self, call: None}), "must be a generator function"),
    ],
)
def test_what_is_no_middleware_is_refused_when_it_is_registered(app: LiteQ, target: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        app.middleware(target)


def test_functions_that_cannot_wrap_anything_are_refused(app: LiteQ) -> None:
    async def awaiting(call: MiddlewareCall) -> AsyncIterator[None]:
        yield

    with pytest.raises(TypeError, match="cannot await around an enqueue"):
        app.middleware("enqueue")(awaiting)
    with pytest.raises(TypeError, match="must be a generator function"):
        app.middleware("execute")(print)


# ── headers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_headers_travel_with_the_job_and_its_retries(app: LiteQ) -> None:
    @app.task(context=True, name="t", retries=1, timeout=9)
    def look(*, task: TaskContext) -> dict[str, str]:
        if task.attempt == 1:
            raise ValueError
        return task.headers

    headers = {"trace": "00-ab", "ü": '"quoted" \\ 🐇'}
    result = look.using(headers=headers, retries=2, delay=5)()
    assert result.job().headers == headers
    assert look().job().headers == {}
    assert look.using(headers=headers).using(headers={"other": "1"})().job().headers == {"other": "1"}
    assert look.using(headers=headers).using(headers=None)().job().headers == {}
    app._clock.advance(5)  # type: ignore[attr-defined]
    work(app)
    assert result.get(0) == headers
    assert app.engine.options(result.job()).policy.retries == 2  # type: ignore[union-attr]
    assert app.engine.options(look.using(headers=headers)().job()) is app.engine.tasks["t"].options


def test_headers_of_schedules_come_with_each_of_their_jobs(app: LiteQ) -> None:
    app.schedules.add("s", app.tasks["add"].using(headers={"a": "b"}).s(1), every(60))
    job = app.schedules.run_now("s").job()
    assert (job.headers, job.schedule) == ({"a": "b"}, "s")


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ("a=b", "headers takes a dict of texts by name, not str"),
        ({"a": 1}, "headers takes texts by name, not 'a': int 1"),
        ({1: "a"}, "headers takes texts by name"),
        ({"": "a"}, "the name of a header must have 1 to 255 characters"),
        ({"a": "\ud800"}, "the header 'a' cannot be stored: it holds a lone surrogate"),
        ({"a": "x" * 20_000}, "at most 16,384 are kept"),
    ],
)
def test_wrong_headers_are_refused_at_the_call(app: LiteQ, headers: Any, words: str) -> None:
    with pytest.raises((TypeError, ConfigurationError), match=words):
        app.tasks["add"].using(headers=headers)

    @app.middleware("enqueue")
    def spoil(call: MiddlewareCall) -> Iterator[None]:
        call.headers = headers
        yield

    with pytest.raises((TypeError, ConfigurationError), match=words):
        app.tasks["add"](1)
    assert app.jobs() == []


def test_middleware_changes_headers_at_the_enqueue_and_knows_the_parent(app: LiteQ) -> None:
    @app.middleware("enqueue")
    def inherit(call: MiddlewareCall) -> Iterator[None]:
        call.headers["from"] = "nobody" if call.parent is None else call.parent.headers["from"]
        call.headers.setdefault("own", "default")
        yield

    @app.task(name="parent")
    def parent() -> str:
        return app.tasks["add"].using(headers={"own": "mine"})(1).id

    result = parent()
    assert result.job().headers == {"from": "nobody", "own": "default"}
    work(app)
    assert app.job(result.get(0)).headers == {"from": "nobody", "own": "mine"}


def test_nothing_is_stored_of_headers_where_there_are_none(app: LiteQ) -> None:
    app.middleware(type("Quiet", (), {"enqueue": _quiet, "execute": _quiet}))
    assert app.tasks["add"].using(headers={})(1).job().options is None


def _quiet(self: object, call: MiddlewareCall) -> Iterator[None]:
    call.headers["x"] = "y"
    del call.headers["x"]
    yield


# ── immediate mode, steps ────────────────────────────────────────────────────────────────────────────────────────────


def test_immediate_mode_passes_through_the_same(immediate: LiteQ) -> None:
    seen: list[Any] = []
    recorded(immediate, "outer", seen)
    result = immediate.task(name="t")(lambda x: x + 1)(1)
    assert result.get(0) == 2
    assert [one[1:3] for one in seen] == [
        ("enqueue", "before"),
        ("enqueue", "after"),
        ("execute", "before"),
        ("execute", "after"),
    ]


def test_one_that_awaits_says_that_it_cannot_be_around_a_plain_task_inside_a_loop(immediate: LiteQ) -> None:
    @immediate.middleware("execute")
    async def awaiting(call: MiddlewareCall) -> AsyncIterator[None]:
        yield

    task = immediate.task(name="t")(lambda: 1)

    async def main() -> tuple[Any, int]:
        return task().error, await (await task.aenqueue())

    error, value = asyncio.run(main())
    assert "enqueue it there with aenqueue()" in error.message
    assert value == 1


def test_a_job_that_goes_to_sleep_is_no_error_to_those_who_catch_errors(app: LiteQ) -> None:
    seen = []

    @app.middleware("execute")
    def report(call: MiddlewareCall) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            seen.append(error)
            raise

    result = app.task(context=True, name="t")(lambda *, task: task.wait_for("go"))()
    work(app)
    app.send(result, "go", 1)
    work(app)
    assert (result.get(0), seen) == (1, [])
