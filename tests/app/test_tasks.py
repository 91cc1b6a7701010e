"""@app.task: what becomes a task, under which name, and with which options."""

from __future__ import annotations

import asyncio
import copy
import functools
import importlib
import inspect
import pickle
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from workbench import run_python, work

from liteq import ConfigurationError, DuplicateTask, LiteQ, Task, TaskContext, UnknownTask
from liteq.clock import ManualClock

# ── the decorator ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_bare_with_parentheses_and_with_options(app: LiteQ) -> None:
    @app.task
    def bare() -> int:
        return 1

    @app.task()
    def with_parentheses() -> int:
        return 2

    @app.task(retries=1)
    def with_options() -> int:
        return 3

    results = [bare(), with_parentheses(), with_options()]
    work(app)
    assert [result.get(0) for result in results] == [1, 2, 3]


def test_a_task_keeps_the_name_the_words_and_the_signature_of_its_function(app: LiteQ) -> None:
    def add(a: int, b: int = 2) -> int:
        """Add."""
        return a + b

    add.marked = True  # type: ignore[attr-defined]
    task = app.task(add)
    assert (task.__name__, task.__doc__, task.__module__) == ("add", "Add.", __name__)  # type: ignore[attr-defined]
    assert inspect.signature(task) == inspect.signature(add)
    assert task.__wrapped__ is add  # type: ignore[attr-defined]
    assert task.marked  # type: ignore[attr-defined]
    assert repr(task) == f"<Task {task.name}>"


def test_the_stored_name_is_module_and_function_unless_given(app: LiteQ) -> None:
    def one() -> None: ...

    assert app.task(one).name == f"{__name__}.{one.__qualname__}"
    assert app.task(name="shop.one")(one).name == "shop.one"
    assert set(app.tasks) == {f"{__name__}.{one.__qualname__}", "shop.one"}


@pytest.mark.parametrize("what", ["name", 5, object(), [print]])
def test_only_functions_become_tasks(app: LiteQ, what: Any) -> None:
    with pytest.raises(TypeError, match=r"@app.task takes a function"):
        app.task(what)
    assert app.tasks == {}


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"retrys": 3}, TypeError, "retrys"),
        ({"delay": 3}, TypeError, "delay"),
        ({"eta": None}, TypeError, "eta"),
        ({"policy": None}, TypeError, "policy"),
        ({"name": 5}, TypeError, "name"),
        ({"name": ""}, ValueError, "name"),
        ({"name": "x" * 256}, ValueError, "name"),
        ({"name": "a\0b"}, ValueError, "name"),
        ({"name": "\ud800"}, ValueError, "name"),
        ({"aliases": "old"}, TypeError, "aliases"),
        ({"aliases": 5}, TypeError, "aliases"),
        ({"aliases": (5,)}, TypeError, "aliases"),
        ({"aliases": ("",)}, ValueError, "aliases"),
        ({"queue": ""}, ValueError, "queue"),
        ({"queue": None}, TypeError, "queue"),
        ({"queue": b"mail"}, TypeError, "queue"),
        ({"priority": 1.5}, TypeError, "priority"),
        ({"priority": True}, TypeError, "priority"),
        ({"priority": 1 << 63}, ValueError, "priority"),
        ({"retries": -1}, ValueError, "retries"),
        ({"retries": "3"}, TypeError, "retries"),
        ({"retries": True}, TypeError, "retries"),
        ({"retries": float("inf")}, TypeError, "retries"),
        ({"retry_delay": -1}, ValueError, "retry_delay"),
        ({"retry_delay": "10"}, TypeError, "retry_delay"),
        ({"retry_delay": []}, ValueError, "retry_delay"),
        ({"retry_delay": [1, "2"]}, TypeError, "retry_delay"),
        ({"retry_delay": float("inf")}, ValueError, "retry_delay"),
        ({"retry_backoff": 0.5}, ValueError, "retry_backoff"),
        ({"retry_backoff": "2"}, TypeError, "retry_backoff"),
        ({"retry_max_delay": -5}, ValueError, "retry_max_delay"),
        ({"retry_jitter": 1}, TypeError, "retry_jitter"),
        ({"retry_on": "ValueError"}, TypeError, "retry_on"),
        ({"retry_on": (ValueError, 5)}, TypeError, "retry_on"),
        ({"give_up_on": int}, TypeError, "give_up_on"),
        ({"give_up_on": ValueError()}, TypeError, "give_up_on"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"timeout": -1}, ValueError, "timeout"),
        ({"timeout": "5"}, TypeError, "timeout"),
        ({"expires": -1}, ValueError, "expires"),
        ({"expires": 8.6e12}, ValueError, "expires must be at most a thousand years"),
        ({"expires": "5"}, TypeError, "expires"),
        ({"context": 1}, TypeError, "context"),
        ({"on_crash": "explode"}, ValueError, "on_crash"),
        ({"on_crash": None}, ValueError, "on_crash"),
        ({"max_crashes": 0}, ValueError, "max_crashes"),
        ({"max_crashes": "3"}, TypeError, "max_crashes"),
        ({"store_result": "no"}, TypeError, "store_result"),
    ],
)
def test_a_wrong_option_is_refused_by_name(
    app: LiteQ, options: dict[str, Any], error: type[Exception], word: str
) -> None:
    def function() -> None: ...

    with pytest.raises(error, match=rf"\b{word}\b"):
        app.task(**options)(function)
    with pytest.raises(error, match=rf"\b{word}\b"):
        app.task(function, **options)
    assert app.tasks == {}


def test_options_are_checked_at_the_line_of_the_decorator(app: LiteQ) -> None:
    with pytest.raises(TypeError, match=r"unknown .*'retrys'"):
        app.task(retrys=3)


def test_the_message_for_an_unknown_option_lists_the_known_ones(app: LiteQ) -> None:
    with pytest.raises(TypeError, match=r"give_up_on.*retry_delay.*timeout"):
        app.task(retrys=3)


def test_options_may_be_given_in_every_documented_form(app: LiteQ) -> None:
    def function() -> None: ...

    task = app.task(
        name="all",
        aliases=["old"],
        queue="mail",
        priority=-3,
        retries=2,
        retry_delay=[1, timedelta(seconds=10), 60.5],
        retry_backoff=2,
        retry_max_delay=timedelta(hours=1),
        retry_jitter=True,
        retry_on=OSError,
        give_up_on=[ValueError, KeyError],
        timeout=timedelta(minutes=1),
        expires=60,
        context=False,
        on_crash="fail",
        max_crashes=1,
        store_result=False,
    )(function)
    options = task.definition.options
    assert (options.queue, options.priority, options.timeout, options.expires) == ("mail", -3, 60.0, 60.0)
    assert options.retry_on == (OSError,)
    assert options.give_up_on == (ValueError, KeyError)
    assert options.policy.retry.delays == (1.0, 10.0, 60.5)
    assert (options.policy.retries, options.policy.on_crash, options.policy.max_crashes) == (2, "fail", 1)


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def make(word: str) -> Callable[[], str]:
    def made() -> str:
        return word

    return made


def undisguised(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def disguised(function: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(function)(undisguised(function))


def test_two_functions_under_one_name_are_both_named(app: LiteQ) -> None:
    def first() -> None: ...

    def second() -> None: ...

    app.task(name="same")(first)
    with pytest.raises(DuplicateTask) as error:
        app.task(name="same")(second)
    message = str(error.value)
    assert "'same'" in message
    assert first.__qualname__ in message
    assert second.__qualname__ in message
    assert message.count(f"{__file__}:") == 2
    assert app.tasks["same"].definition.function is first


def test_an_alias_may_not_be_the_name_of_another_task(app: LiteQ) -> None:
    app.task(name="old")(make("a"))
    with pytest.raises(DuplicateTask, match="'old'"):
        app.task(name="new", aliases=("old",))(make("b"))
    assert set(app.tasks) == {"old"}


def test_functions_made_by_one_factory_are_different_ones(app: LiteQ) -> None:
    app.task(make("a"))
    with pytest.raises(DuplicateTask):
        app.task(make("b"))
    assert app.task(name="b")(make("b")).call_local() == "b"


def test_functions_behind_one_decorator_are_different_ones(app: LiteQ) -> None:
    @app.task
    @undisguised
    def one() -> int:
        return 1

    with pytest.raises(DuplicateTask):

        @app.task
        @undisguised
        def two() -> int:
            return 2

    @app.task
    @disguised
    def three() -> int:
        return 3

    @app.task
    @disguised
    def four() -> int:
        return 4

    results = [one(), three(), four()]
    work(app)
    assert [result.get(0) for result in results] == [1, 3, 4]


def test_two_lambdas_on_one_line_are_different_ones(app: LiteQ) -> None:
    with pytest.raises(DuplicateTask):
        app.task(lambda: 1), app.task(lambda: 2)


def test_one_function_may_be_registered_twice(app: LiteQ) -> None:
    function = make("a")
    app.task(function)
    again = app.task(retries=5)(function)
    result = again()
    work(app)
    assert result.get(0) == "a"
    assert len(app.tasks) == 1


def test_a_module_may_be_imported_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "the_app.py").write_text("from liteq import LiteQ\napp = LiteQ(':memory:')\n")
    source = (
        "from the_app import app\n"
        "@app.task\ndef greet(): return {!r}\n"
        "@app.task(aliases=('old',))\ndef wave(): return 1\n"
        "async_one = app.task(name='a')(lambda: 1)\n"
    )
    module = directory / "reloaded.py"
    module.write_text(source.format("before"))
    monkeypatch.syspath_prepend(directory)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    reloaded = importlib.import_module("reloaded")
    module.write_text(source.format("after, longer"))
    importlib.invalidate_caches()
    importlib.reload(reloaded)
    app = reloaded.app
    result = reloaded.greet()
    work(app)
    assert result.get(0) == "after, longer"
    for name in ("the_app", "reloaded"):
        monkeypatch.delitem(sys.modules, name)


def test_a_function_typed_again_in_a_session_replaces_the_older_one(app: LiteQ) -> None:
    namespace = {"app": app, "__name__": "session"}
    for word in ("first", "second"):
        exec(compile(f"@app.task\ndef greet(): return {word!r}\n", "<stdin>", "exec"), namespace)
    result = namespace["greet"]()  # type: ignore[operator]
    work(app)
    assert result.get(0) == "second"


def test_an_alias_runs_jobs_that_were_enqueued_under_the_old_name(clock: ManualClock) -> None:
    before = LiteQ(":memory:", clock=clock)
    result = before.task(name="old")(make("a"))()
    app = LiteQ(before.storage, clock=clock)
    task = app.task(name="new", aliases=("old", "older"))(make("b"))
    work(app)
    assert result.get(0) == "b"
    assert result.job().task == "old"
    assert task().job().task == "new"
    assert list(app.tasks) == ["new"]


def renamed(clock: ManualClock) -> tuple[LiteQ, Task[..., Any], list[str]]:
    """A task that was renamed, with two jobs from before and one from after, and their ids."""
    before = LiteQ(":memory:", clock=clock)
    older = before.task(name="old")(make("a"))
    ids = [older().id, older().id]
    app = LiteQ(before.storage, clock=clock)
    task = app.task(name="new", aliases=("old",))(make("b"))
    return app, task, [*ids, task().id]


def test_revoking_a_renamed_task_reaches_the_jobs_from_before(clock: ManualClock) -> None:
    app, task, ids = renamed(clock)
    assert not app.is_revoked(ids[0])
    task.revoke()
    assert all(app.is_revoked(one) for one in ids)
    work(app)
    assert app.counts()["revoked"] == 3


def test_questions_about_a_renamed_task_find_the_jobs_from_before(clock: ManualClock) -> None:
    app, task, ids = renamed(clock)
    assert [job.id for job in app.jobs(task=task)] == ids
    assert [job.id for job in app.jobs(task=task, limit=2)] == ids[:2]
    task.revoke()
    work(app)
    assert app.requeue_all(state="revoked", task=task) == 3


def test_functions_of_main_are_named_by_the_file_that_is_run(directory: Path) -> None:
    source = """
        from liteq import LiteQ
        app = LiteQ(":memory:")
        @app.task
        def f(): ...
        class C:
            @staticmethod
            @app.task
            def g(): ...
        print(f.name, C.g.name)
    """
    assert run_python(source) == "__main__.f __main__.C.g\n"
    script = directory / "my_shop.py"
    script.write_text(inspect.cleandoc(source))
    assert run_python(f"import runpy; runpy.run_path({str(script)!r}, run_name='my_shop')") == "my_shop.f my_shop.C.g\n"


def test_an_unknown_task_by_name_is_refused(app: LiteQ) -> None:
    with pytest.raises(UnknownTask, match="'nobody'") as error:
        app.revoke_all("nobody")
    assert error.value.task == "nobody"


# ── all kinds of callables ───────────────────────────────────────────────────────────────────────────────────────────


class Mailer:
    """An object that can be called, with attributes that bear dangerous names."""

    def __init__(self) -> None:
        self._call = self._engine = self.definition = self.name = "mine"

    def __call__(self, to: str) -> str:
        return f"{self.name} to {to}"

    def method(self, to: str) -> str:
        return f"method to {to}"

    @staticmethod
    def static(to: str) -> str:
        return f"static to {to}"

    @classmethod
    def of_class(cls, to: str) -> str:
        return f"{cls.__name__} to {to}"


class AsyncMailer:
    async def __call__(self, to: str) -> str:
        return f"async to {to}"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Mailer(), "mine to me"),
        (Mailer().method, "method to me"),
        (Mailer.static, "static to me"),
        (Mailer.of_class, "Mailer to me"),
        (AsyncMailer(), "async to me"),
        (functools.partial(Mailer().method), "method to me"),
        (functools.partial(AsyncMailer()), "async to me"),
        (str.upper, "ME"),
        (functools.lru_cache(Mailer.static), "static to me"),
        (staticmethod(Mailer.static), "static to me"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_whatever_can_be_called_can_be_a_task(immediate: LiteQ, function: Callable[..., str], expected: str) -> None:
    task = immediate.task(name="task")(function)
    assert task("me").get(0) == expected
    with pytest.raises(TypeError):
        task()


def test_a_partial_needs_a_name(app: LiteQ) -> None:
    with pytest.raises(ConfigurationError, match=r"partial .*name="):
        app.task(functools.partial(make, "a"))


def test_a_task_cannot_be_made_a_task_again(app: LiteQ) -> None:
    task = app.task(make("a"))
    with pytest.raises(TypeError, match="is a task already"):
        app.task(task)
    with pytest.raises(TypeError, match="is a task already"):
        LiteQ(":memory:").task(name="other")(task)


def test_what_has_no_signature_leaves_nothing_registered(app: LiteQ) -> None:
    with pytest.raises(ValueError, match="signature"):
        app.task(max)
    assert app.tasks == {}


def test_a_task_in_a_class_body_asks_for_self_at_the_call(app: LiteQ) -> None:
    class Shop:
        @app.task
        def sell(self, thing: str) -> str:
            return thing

    with pytest.raises(TypeError, match="thing"):
        Shop().sell("apple")  # type: ignore[call-arg, arg-type]


# ── context ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_context_comes_as_keyword_task(immediate: LiteQ) -> None:
    @immediate.task(context=True)
    def last(a: int, b: int = 2, task: Any = None) -> list[Any]:
        return [a, b, task.id, task.attempt, task.retries_left]

    @immediate.task(context=True, retries=2, timeout=30)
    def by_keyword(*values: int, task: TaskContext, **more: int) -> list[Any]:
        return [*values, more["x"], task.attempt, task.retries_left, task.time_remaining(), task.is_cancelled()]

    @immediate.task(context=True)
    def among_others(**everything: Any) -> str:
        return type(everything["task"]).__name__

    first = last(1)  # type: ignore[call-arg]
    assert first.get(0) == [1, 2, first.id, 1, 0]
    assert by_keyword(1, 2, x=3).get(0) == [1, 2, 3, 1, 2, 30.0, False]  # type: ignore[call-arg]
    assert among_others().get(0) == "TaskContext"


def test_the_context_is_not_for_the_caller_to_pass(app: LiteQ) -> None:
    @app.task(context=True)
    def f(a: int, task: Any) -> None: ...

    with pytest.raises(TypeError, match="task"):
        f(1, task=2)
    with pytest.raises(TypeError, match="too many"):
        f(1, 2)


def test_a_function_that_could_not_take_the_context_is_refused(app: LiteQ) -> None:
    def without(a: int) -> None: ...

    def first(task: Any, a: int) -> None: ...

    def in_the_middle(a: int, task: Any = None, b: int = 2) -> None: ...

    def before_others(task: Any, *values: int) -> None: ...

    def positional_only(a: int, task: Any, /) -> None: ...

    for function in (without, first, in_the_middle, before_others, positional_only):
        with pytest.raises(TypeError, match=r"context=True .*'task'"):
            app.task(context=True)(function)
    assert app.tasks == {}


def test_without_the_option_task_is_an_ordinary_argument(immediate: LiteQ) -> None:
    @immediate.task
    def f(task: str) -> str:
        return task

    assert f(task="x").get(0) == "x"


# ── calling it here ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_call_local_runs_the_function_here_and_stores_nothing(app: LiteQ) -> None:
    @app.task(retries=5, queue="mail")
    def add(a: int, b: int = 1) -> int:
        return a + b

    unstorable = object()
    assert add.call_local(1) == 2
    assert app.task(name="same")(lambda x: x).call_local(unstorable) is unstorable
    with pytest.raises(ZeroDivisionError):
        app.task(name="fails")(lambda: 1 / 0).call_local()
    assert app.jobs() == []


_module_app = LiteQ(":memory:")


@_module_app.task
def of_this_module() -> int:
    return 1


def test_a_task_is_pickled_by_reference_as_a_function_is() -> None:
    """So that it can be handed to a process of multiprocessing, or stored in what is copied deeply."""
    assert pickle.loads(pickle.dumps(of_this_module)) is of_this_module
    assert copy.deepcopy([of_this_module])[0] is of_this_module
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(of_this_module.using(delay=5))


async def _double(x: int) -> int:
    return 2 * x


def test_call_local_of_an_async_task_gives_its_coroutine(app: LiteQ) -> None:
    import asyncio

    task: Task[..., Any] = app.task(_double)
    assert asyncio.run(task.call_local(4)) == 8


def test_arguments_may_have_any_name(app: LiteQ) -> None:
    @app.task
    def odd(self: int, args: int, kwargs: int, /, *rest: int, **more: int) -> tuple[object, ...]:
        return self, args, kwargs, rest, more

    @app.task
    def named(self: int, args: int, engine: int) -> list[int]:
        return [self, args, engine]

    expected = [1, 2, 3]
    assert odd.call_local(1, 2, 3, 4, self=5, args=6) == (1, 2, 3, (4,), {"self": 5, "args": 6})
    assert named.call_local(self=1, args=2, engine=3) == expected
    jobs = [
        named(self=1, args=2, engine=3),
        asyncio.run(named.aenqueue(self=1, args=2, engine=3)),
        named.using(priority=1)(self=1, args=2, engine=3),
        app.enqueue(named.s(self=1, args=2, engine=3)),
        app.enqueue(named.si(self=1, args=2, engine=3)),
    ]
    work(app)
    assert [one.get(0) for one in jobs] == [expected] * 5
