"""Enqueuing: the arguments of a call, its time, its options, its id; `map`, `batch`, signatures."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, NoReturn

import pytest
from workbench import claim, work

from liteq import (
    ConfigurationError,
    JobState,
    LiteQ,
    LiteQError,
    Result,
    ResultGroup,
    Retry,
    S,
    SerializationError,
    Signature,
    Snooze,
    StorageError,
    Task,
    TaskExpired,
    TaskFailed,
)
from liteq.clock import ManualClock


@pytest.fixture
def add(app: LiteQ) -> Task[..., int]:
    @app.task
    def add(a: int, b: int = 10, *more: int, c: int = 0) -> int:
        return sum((a, b, c, *more))

    return add


def value(app: LiteQ, result: Result[Any]) -> Any:
    work(app)
    return result.get(0)


# ── arguments ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((1,), {}, 11),
        ((1, 2), {}, 3),
        ((1, 2, 3, 4), {}, 10),
        ((), {"a": 1}, 11),
        ((1,), {"b": 2, "c": 3}, 6),
    ],
)
def test_a_call_arrives_as_it_was_made(
    app: LiteQ, add: Task[..., int], args: tuple[int, ...], kwargs: dict[str, int], expected: int
) -> None:
    assert value(app, add(*args, **kwargs)) == expected
    assert value(app, add.enqueue(*args, **kwargs)) == expected
    assert value(app, add.schedule(args, kwargs)) == expected
    assert value(app, app.enqueue(add.s(*args, **kwargs))) == expected
    assert value(app, asyncio.run(add.aenqueue(*args, **kwargs))) == expected
    assert value(app, asyncio.run(app.aenqueue(add.s(*args, **kwargs)))) == expected


@pytest.mark.parametrize(
    ("args", "kwargs", "word"),
    [((), {}, "'a'"), ((1,), {"a": 1}, "'a'"), ((1,), {"d": 1}, "'d'"), ((), {"b": 1}, "'a'"), ((1,), {"": 1}, "''")],
)
def test_wrong_arguments_are_a_type_error_at_the_call(
    app: LiteQ, add: Task[..., int], args: tuple[int, ...], kwargs: dict[str, int], word: str
) -> None:
    uses = [
        lambda: add(*args, **kwargs),
        lambda: add.enqueue(*args, **kwargs),
        lambda: add.using(delay=5)(*args, **kwargs),
        lambda: add.schedule(args, kwargs),
        lambda: app.enqueue(add.s(*args, **kwargs)),
        lambda: asyncio.run(add.aenqueue(*args, **kwargs)),
    ]
    if not kwargs:
        uses += [lambda: add.map([(1, 2), args]), lambda: asyncio.run(add.amap([args]))]
    for use in uses:
        with pytest.raises(TypeError, match=word) as error:
            use()
        assert "add(a" in str(error.value)  # the task and what it takes
    assert app.jobs() == []


def test_too_many_arguments_are_refused(app: LiteQ) -> None:
    task = app.task(name="one")(lambda x: x)
    with pytest.raises(TypeError, match="too many"):
        task(1, 2)
    none = app.task(name="none")(lambda: 1)
    with pytest.raises(TypeError, match="too many"):
        none(1)


def test_positional_and_keyword_only_parameters_are_minded(app: LiteQ) -> None:
    def strict(a: int, /, *, b: int) -> int:
        return a + b

    task = app.task(strict)
    assert value(app, task(1, b=2)) == 3
    for args, kwargs in [((1, 2), {}), ((), {"a": 1, "b": 2}), ((1,), {})]:
        with pytest.raises(TypeError):
            task(*args, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("args", "kwargs", "word"),
    [
        ((object(),), {}, "'a': object "),
        ((1, object()), {}, "'b': object "),
        ((1, 2, 3, object()), {}, r"args\[3\]: object "),
        ((1,), {"c": lambda: 1}, "'c': function "),
        ((1, [1, {"k": threading.Lock()}]), {}, r"'b'\[1\]\['k'\]: _thread.lock "),
        ((1, (x for x in "ab")), {}, "'b': generator "),
    ],
)
def test_what_cannot_be_stored_is_an_error_naming_the_argument_and_the_task(
    app: LiteQ, add: Task[..., int], args: tuple[Any, ...], kwargs: dict[str, Any], word: str
) -> None:
    for use in (
        lambda: add(*args, **kwargs),
        lambda: add.schedule(args, kwargs),
        lambda: asyncio.run(add.aenqueue(*args, **kwargs)),
        lambda: app.enqueue(add.s(*args, **kwargs)),
        lambda: add.map([(1, 2), args]) if not kwargs else add(*args, **kwargs),
    ):
        with pytest.raises(SerializationError, match=word) as error:
            use()
        assert add.name in str(error.value)
        assert "was not enqueued" in str(error.value)
    assert app.jobs() == []


def test_arguments_are_taken_as_they_are_at_the_call(app: LiteQ) -> None:
    task = app.task(name="list")(lambda x: x)
    mine = [1]
    result = task(mine)
    mine.append(2)
    assert value(app, result) == [1]


@pytest.mark.parametrize(
    "argument",
    [
        None,
        True,
        "ünïcødé\0",
        b"\xff",
        (1, (2,)),
        {1, 2},
        {"k": [1]},
        Decimal("1.10"),
        datetime(2024, 1, 1, tzinfo=UTC),
    ],
)
def test_values_come_back_as_they_went(app: LiteQ, argument: Any) -> None:
    task = app.task(name="same")(lambda x: x)
    back = value(app, task(argument))
    assert back == argument
    assert type(back) is type(argument)


# ── options of a call ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"retry_on": ValueError}, TypeError, "retry_on"),
        ({"context": True}, TypeError, "context"),
        ({"text": "{}"}, TypeError, "text"),
        ({"delays": 1}, TypeError, "delays"),
        ({"delay": "soon"}, TypeError, "delay"),
        ({"delay": float("inf")}, ValueError, "delay"),
        ({"delay": 1e30}, ValueError, "delay"),
        ({"delay": timedelta(days=9_999_999)}, ValueError, "delay"),
        ({"eta": 5}, TypeError, "eta"),
        ({"eta": "2024-01-01"}, TypeError, "eta"),
        ({"eta": datetime(2024, 1, 1), "delay": 5}, TypeError, "eta or delay"),
        ({"priority": "high"}, TypeError, "priority"),
        ({"priority": 2.0}, TypeError, "priority"),
        ({"queue": ""}, ValueError, "queue"),
        ({"queue": 5}, TypeError, "queue"),
        ({"id": ""}, ValueError, "id"),
        ({"id": 7}, TypeError, "id"),
        ({"id": "x" * 256}, ValueError, "id"),
        ({"id": "a\0b"}, ValueError, "id"),
        ({"expires": "5"}, TypeError, "expires"),
        ({"expires": 8.6e12}, ConfigurationError, "expires must be at most a thousand years"),
        ({"expires": datetime.max}, ConfigurationError, "expires=.* leads beyond the years 1 to 9999"),
        ({"retries": -1}, ValueError, "retries"),
        ({"retries": "5"}, TypeError, "retries"),
        ({"retry_delay": "5"}, TypeError, "retry_delay"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"on_crash": "?"}, ValueError, "on_crash"),
    ],
)
def test_a_wrong_option_of_a_call_is_refused_by_name(
    app: LiteQ, add: Task[..., int], options: dict[str, Any], error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        add.using(**options)
    with pytest.raises(error, match=word):
        add.s(1).using(**options)
    if set(options) <= set(inspect.signature(Task.schedule).parameters):
        with pytest.raises(error, match=word):
            add.schedule((1,), **options)
    assert app.jobs() == []


def test_using_gives_the_task_other_defaults_and_leaves_the_first_alone(app: LiteQ) -> None:
    @app.task(queue="slow", priority=1, retries=1, timeout=5)
    def task(x: int = 0) -> int:
        return x

    other = task.using(queue="mail", priority=7, delay=60, retries=4, timeout=9)
    job = other(1).job()
    assert (job.queue, job.priority, job.state) == ("mail", 7, "scheduled")
    options = app.engine.options(job)
    assert options is not None
    assert (options.policy.retries, options.timeout) == (4, 9)
    job = task(1).job()
    assert (job.queue, job.priority, job.state) == ("slow", 1, "ready")
    assert other.name == task.name
    assert [one.queue for one in (result.job() for result in other.map([1, 2]))] == ["mail", "mail"]


def test_using_may_be_put_on_using(app: LiteQ, add: Task[..., int], clock: ManualClock) -> None:
    twice = add.using(delay=5, queue="a", retries=2).using(queue="b", retry_delay=3)
    job = twice(1).job()
    assert (job.queue, job.due) == ("b", clock.now() + 5)
    options = app.engine.options(job)
    assert options is not None
    assert (options.policy.retries, options.policy.retry.delay) == (2, 3)
    eta = datetime(2030, 1, 1, tzinfo=UTC)
    assert add.using(delay=5).using(eta=eta)(1).job().run_at == eta
    assert add.using(eta=eta).using(delay=5)(1).job().due == clock.now() + 5


def test_a_call_overrides_the_retries_of_its_task(app: LiteQ) -> None:
    runs: list[int] = []

    @app.task(retries=5, retry_backoff=3)
    def fails() -> NoReturn:
        runs.append(1)
        raise ValueError

    fails.using(retries=1)()
    work(app)
    assert len(runs) == 2
    fails.schedule(retries=0)
    work(app)
    assert len(runs) == 3


def test_a_call_cannot_turn_off_what_schedule_leaves_out(app: LiteQ) -> None:
    task = app.task(name="t", queue="mail", priority=3, expires=60)(lambda: 1)
    job = task.schedule().job()
    assert (job.queue, job.priority, job.expires is None) == ("mail", 3, False)


def test_signatures_are_calls_not_enqueued_yet(app: LiteQ, add: Task[..., int]) -> None:
    signature = add.s(1, b=2)
    assert isinstance(signature, Signature)
    assert app.jobs() == []
    assert "add" in repr(signature)
    later = signature.using(delay=60)
    assert app.enqueue(later).state == "scheduled"
    assert app.enqueue(signature).state == "ready"
    assert value(app, app.enqueue(signature)) == 3


@pytest.mark.parametrize("wrong", ["task", 5, None, print])
def test_only_signatures_are_enqueued_by_the_app(app: LiteQ, wrong: Any) -> None:
    with pytest.raises(TypeError, match="Signature"):
        app.enqueue(wrong)


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("delay", [60, 60.0, timedelta(minutes=1)])
def test_a_delayed_job_waits_for_its_time(app: LiteQ, add: Task[..., int], clock: ManualClock, delay: Any) -> None:
    result = add.using(delay=delay)(1)
    assert result.state == "scheduled"
    assert result.job().due == clock.now() + 60
    assert work(app) == 0
    clock.advance(59.9)
    assert work(app) == 0
    clock.advance(0.1)
    assert work(app) == 1
    assert result.get(0) == 11


@pytest.mark.parametrize("delay", [0, -5, timedelta(0)])
def test_a_delay_of_nothing_is_now(app: LiteQ, add: Task[..., int], delay: Any) -> None:
    assert add.using(delay=delay)(1).state == "ready"


def test_an_eta_in_the_past_is_now(app: LiteQ, add: Task[..., int]) -> None:
    assert add.schedule((1,), eta=datetime(1999, 1, 1)).state == "ready"


@pytest.mark.parametrize(
    ("zone", "eta", "expected"),
    [
        ("UTC", datetime(2030, 7, 1, 12), datetime(2030, 7, 1, 12, tzinfo=UTC)),
        ("Europe/Berlin", datetime(2030, 7, 1, 12), datetime(2030, 7, 1, 10, tzinfo=UTC)),
        ("Europe/Berlin", datetime(2030, 1, 1, 12), datetime(2030, 1, 1, 11, tzinfo=UTC)),
        ("Asia/Kathmandu", datetime(2030, 1, 1), datetime(2029, 12, 31, 18, 15, tzinfo=UTC)),
        ("Europe/Berlin", datetime(2030, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)),
        ("UTC", datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=-5))), datetime(2030, 1, 1, 5, tzinfo=UTC)),
    ],
)
def test_a_naive_eta_is_read_in_the_zone_of_the_app(
    clock: ManualClock, zone: str, eta: datetime, expected: datetime
) -> None:
    app = LiteQ(":memory:", timezone=zone, clock=clock)
    task = app.task(name="t")(lambda: 1)
    for result in (task.schedule(eta=eta), task.using(eta=eta)()):
        assert result.job().run_at == expected
    result = task()
    assert result.reschedule(eta=eta)
    assert result.job().run_at == expected


def test_an_eta_is_an_instant_and_a_delay_counts_from_the_call(
    app: LiteQ, add: Task[..., int], clock: ManualClock
) -> None:
    later = add.using(delay=10)
    first = later(1).job()
    clock.advance(5)
    second = later(1).job()
    assert first.due is not None
    assert second.due == first.due + 5


# ── priority and order ───────────────────────────────────────────────────────────────────────────────────────────────


def test_higher_priority_runs_first_and_equal_priority_in_the_order_of_enqueue(app: LiteQ) -> None:
    order: list[str] = []
    task = app.task(name="t")(order.append)
    for word, priority in [("a", 0), ("b", 5), ("c", -1), ("d", 5), ("e", 0)]:
        task.using(priority=priority)(word)
    task.map([("f",), ("g",)])
    work(app)
    assert order == ["b", "d", "a", "e", "f", "g", "c"]


def test_queues_are_worked_on_in_order_of_preference(app: LiteQ) -> None:
    task = app.task(name="t")(lambda: 1)
    for queue in ("b", "a", "c", "a"):
        task.using(queue=queue)()
    assert [job.queue for job in claim(app, queues=("a", "b"))] == ["a", "a", "b"]
    assert app.queues() == {"c": 1}


# ── expires ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("expires", [30, timedelta(seconds=30), datetime.fromtimestamp(1_700_000_030)])
def test_a_job_not_started_in_time_expires(clock: ManualClock, expires: Any) -> None:
    local = datetime.now().astimezone().tzinfo
    app = LiteQ(":memory:", clock=clock, timezone=local or UTC)
    runs: list[int] = []
    task = app.task(name="t")(lambda: runs.append(1))
    in_time, late = task.using(expires=expires)(), task.schedule(expires=expires)
    [first] = claim(app, 1)
    clock.advance(30)
    work(app)
    assert runs == []
    assert late.state == "expired"
    assert in_time.state == "running"
    assert first.id == in_time.id
    with pytest.raises(TaskExpired, match="not started"):
        late.get(0)


def test_the_task_may_say_when_its_calls_expire(app: LiteQ, clock: ManualClock) -> None:
    task = app.task(name="t", expires=10)(lambda: 1)
    short, long = task(), task.using(expires=20)()
    clock.advance(15)
    work(app)
    assert (short.state, long.state) == ("expired", "succeeded")


def test_what_was_started_once_does_not_expire_between_its_attempts(app: LiteQ, clock: ManualClock) -> None:
    tries: list[int] = []

    @app.task(expires=10, retries=1, retry_delay=60)
    def second_time_lucky() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError
        return "done"

    result = second_time_lucky()
    work(app)
    clock.advance(60)
    assert value(app, result) == "done"


def test_an_expired_job_that_is_requeued_runs(app: LiteQ, clock: ManualClock) -> None:
    task = app.task(name="t", expires=10)(lambda: 1)
    result = task()
    clock.advance(11)
    work(app)
    assert result.requeue()
    assert value(app, result) == 1


# ── ids ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_id_that_exists_stores_nothing_and_returns_its_result(app: LiteQ, add: Task[..., int]) -> None:
    first = add.using(id="order-7")(1)
    again = add.schedule((2,), id="order-7")
    other = app.task(name="other")(lambda: "x").using(id="order-7")()
    assert first.id == "order-7"
    assert first == again == other
    assert len(app.jobs()) == 1
    assert value(app, again) == 11
    assert add.using(id="order-7")(3).get(0) == 11  # long after
    assert len(app.jobs()) == 1


def test_an_id_may_be_used_again_once_its_job_was_purged(app: LiteQ, add: Task[..., int]) -> None:
    add.using(id="x")(1)
    work(app)
    assert app.purge() == 1
    assert value(app, add.using(id="x")(2)) == 12


def test_generated_ids_are_short_and_distinct(app: LiteQ, add: Task[..., int]) -> None:
    ids = [add(1).id for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(len(one) < 20 and one.isascii() for one in ids)


def test_an_id_for_many_calls_makes_no_sense(app: LiteQ, add: Task[..., int]) -> None:
    with pytest.raises(TypeError, match="id"):
        add.using(id="x").map([1, 2])
    assert len(add.using(id="x").map([1])) == 1
    assert len(add.using(id="y").map([])) == 0


@pytest.mark.parametrize("where", ["app", "on_file"])
def test_threads_that_enqueue_one_id_at_once_get_one_job(where: str, request: pytest.FixtureRequest) -> None:
    app: LiteQ = request.getfixturevalue(where)
    task = app.task(name="t")(lambda x: x)
    start = threading.Barrier(8)

    def enqueue(thread: int) -> list[str]:
        start.wait()
        return [task.using(id=f"job {number}")(thread).id for number in range(20)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(enqueue, range(8)))
    assert answers == [[f"job {number}" for number in range(20)]] * 8
    assert len(app.jobs()) == 20


def test_threads_may_enqueue_as_much_as_they_like(on_file: LiteQ) -> None:
    task = on_file.task(name="t")(lambda x: x)

    def enqueue(thread: int) -> list[str]:
        ids = [task(number).id for number in range(25)]
        ids += [result.id for result in task.map(range(25))]
        with on_file.batch():
            results = [task(number) for number in range(25)]
        return ids + [result.id for result in results]

    with ThreadPoolExecutor(8) as pool:
        ids = [one for some in pool.map(enqueue, range(8)) for one in some]
    assert len(set(ids)) == 8 * 75
    assert {job.id for job in on_file.jobs(limit=None)} == set(ids)


# ── map ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_tuple_is_the_arguments_and_anything_else_the_one_argument(app: LiteQ) -> None:
    task = app.task(name="t")(lambda *args: args)
    calls: list[Any] = [(1, 2), (), ((1, 2),), [1, 2], {"a": 1}, "ab", None, 5]
    group = task.map(calls)
    work(app)
    expected = [(1, 2), (), ((1, 2),), ([1, 2],), ({"a": 1},), ("ab",), (None,), (5,)]
    assert group.get(0) == expected
    again = asyncio.run(task.amap(calls[:2]))
    work(app)
    assert again.get(0) == expected[:2]
    assert [app.jobs()[number].id for number in range(8)] == [result.id for result in group]


def test_map_takes_any_iterable(app: LiteQ) -> None:
    task = app.task(name="t")(lambda x: x)
    group = task.map(number for number in range(3))
    assert isinstance(group, ResultGroup)
    assert len(task.map([])) == 0
    work(app)
    assert group.get(0) == [0, 1, 2]
    with pytest.raises(TypeError):
        task.map(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [(), (1, 2), (object(),)])
def test_map_stores_all_or_nothing(app: LiteQ, bad: tuple[Any, ...]) -> None:
    task = app.task(name="t")(lambda x: x)
    with pytest.raises((TypeError, SerializationError)):
        task.map([1, 2, bad])
    assert app.jobs() == []


def test_map_is_one_transaction(on_file: LiteQ) -> None:
    task = on_file.task(name="t")(lambda x: x)
    task(0)
    storage: Any = on_file.storage
    commits: list[str] = []
    storage._connections.writer().set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
    task.map(range(1000))
    assert commits == ["COMMIT"]


# ── batch ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_is_stored_at_its_end_in_order(app: LiteQ, add: Task[..., int]) -> None:
    with app.batch():
        results = [add(1), add.using(delay=60)(2), *add.map([3, 4])]
        results.append(app.enqueue(add.s(5)))
        assert app.jobs() == []
    assert [result.id for result in results] == [job.id for job in app.jobs()]
    work(app)
    assert [result.get(0) for result in [results[0], *results[2:]]] == [11, 13, 14, 15]


def test_a_batch_that_raises_stores_nothing(app: LiteQ, add: Task[..., int]) -> None:
    with pytest.raises(KeyError), app.batch():
        result = add(1)
        raise KeyError
    assert app.jobs() == []
    with pytest.raises(LiteQError, match="no id"):
        result.get(0)
    assert add(1).state == "ready"  # it is over


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_whatever_ends_a_batch_early_stores_nothing(
    app: LiteQ, add: Task[..., int], error: type[BaseException]
) -> None:
    with pytest.raises(error), app.batch():
        add(1)
        raise error
    assert app.jobs() == []


def test_a_bad_call_in_a_batch_spoils_it_unless_it_is_caught(app: LiteQ, add: Task[..., int]) -> None:
    with pytest.raises(TypeError), app.batch():
        add(1)
        add()
    assert app.jobs() == []
    with app.batch():
        add(1)
        with pytest.raises(TypeError):
            add()
    assert len(app.jobs()) == 1


def test_a_return_out_of_a_batch_stores_it(app: LiteQ, add: Task[..., int]) -> None:
    def enqueue() -> Result[int]:
        with app.batch():
            return add(1)

    assert enqueue().state == "ready"


def test_the_results_of_a_batch_have_no_id_before_its_end(app: LiteQ, add: Task[..., int]) -> None:
    with app.batch():
        result = add(1)
        for use in (lambda: result.id, lambda: result.get(0), lambda: result.state, lambda: app.revoke(result)):
            with pytest.raises(LiteQError, match="no id yet"):
                use()
        assert result == result
        assert "not stored yet" in repr(result)
        with pytest.raises(LiteQError, match="no id yet"):
            asyncio.run(result.aget(0))
    assert result.id


def test_an_empty_batch_is_fine(app: LiteQ) -> None:
    with app.batch():
        pass
    with app.batch(), app.batch():
        pass
    assert app.jobs() == []


def test_batches_may_be_nested(app: LiteQ, add: Task[..., int]) -> None:
    with app.batch():
        first = add(1)
        with app.batch():
            second = add(2)
        assert app.jobs() == []
        third = add(3)
    assert [job.id for job in app.jobs()] == [first.id, second.id, third.id]


def test_a_nested_batch_that_raises_is_dropped_by_itself(app: LiteQ, add: Task[..., int]) -> None:
    with app.batch():
        first = add(1)
        with contextlib.suppress(KeyError), app.batch():
            add(2)
            raise KeyError
        third = add(3)
    assert [job.id for job in app.jobs()] == [first.id, third.id]
    with pytest.raises(KeyError), app.batch():
        with app.batch():
            add(4)
        raise KeyError
    assert len(app.jobs()) == 2


def test_a_batch_is_for_one_block(app: LiteQ, add: Task[..., int]) -> None:
    batch = app.batch()
    with batch:
        add(1)
    with pytest.raises(RuntimeError, match=r"call app\.batch"), batch:
        add(2)
    assert len(app.jobs()) == 1


def test_batches_of_two_apps_do_not_mix(app: LiteQ, add: Task[..., int]) -> None:
    other = LiteQ(":memory:")
    task = other.task(name="t")(lambda: 1)
    with app.batch():
        add(1)
        task()
        assert len(other.jobs()) == 1
    with other.batch(), contextlib.suppress(KeyError), app.batch():
        task()
        add(1)
        raise KeyError
    assert (len(app.jobs()), len(other.jobs())) == (1, 2)


def test_a_batch_belongs_to_its_thread(app: LiteQ, add: Task[..., int]) -> None:
    with app.batch(), ThreadPoolExecutor(1) as pool:
        add(1)
        assert pool.submit(add, 2).result().state == "ready"
    assert len(app.jobs()) == 2


def test_a_batch_collects_what_coroutines_inside_enqueue(app: LiteQ, add: Task[..., int]) -> None:
    async def main() -> None:
        with app.batch():
            results = await asyncio.gather(*(add.aenqueue(number) for number in range(5)))
            group = await add.amap([1, 2])
            assert app.jobs() == []
        assert len({result.id for result in [*results, *group]}) == 7

    asyncio.run(main())
    assert len(app.jobs()) == 7


def test_what_outlives_a_batch_enqueues_for_itself(app: LiteQ, add: Task[..., int]) -> None:
    """A coroutine, or a thread with a copy of the context, started inside still sees the batch after its end."""

    async def main() -> Result[int]:
        over = asyncio.Event()

        async def later() -> Result[int]:
            await over.wait()
            return add(2)

        with app.batch():
            add(1)
            task = asyncio.create_task(later())
        over.set()
        return await task

    assert asyncio.run(main()).state == "ready"
    assert len(app.jobs()) == 2
    with app.batch():
        context = copy_context()
        with app.batch():
            inner = copy_context()
        assert inner.run(add, 3)  # the outer one is still open
        assert len(app.jobs()) == 2
    assert context.run(add, 4).state == "ready"
    assert inner.run(add, 5).state == "ready"
    assert len(app.jobs()) == 5


def test_a_batch_that_cannot_be_stored_leaves_its_results_without_ids(app: LiteQ, add: Task[..., int]) -> None:
    def refuse(jobs: object) -> NoReturn:
        raise StorageError("the disk is full")

    app.storage.add = refuse  # type: ignore[method-assign]
    with pytest.raises(StorageError), app.batch():
        result = add(1)
    with pytest.raises(LiteQError, match="no id"):
        result.id  # noqa: B018
    del app.storage.add  # type: ignore[method-assign]
    assert add(1).state == "ready"


def test_the_same_id_twice_in_a_batch_is_one_job(app: LiteQ, add: Task[..., int]) -> None:
    sent: list[str] = []
    app.signal(S.ENQUEUED)(lambda signal, job, error: sent.append(job.id))
    with app.batch():
        first, second = add.using(id="x")(1), add.using(id="x")(2)
    assert first == second
    assert len(app.jobs()) == 1
    assert sent == ["x"]


def test_a_batch_counts_delays_from_the_call(app: LiteQ, add: Task[..., int], clock: ManualClock) -> None:
    began = clock.now()
    with app.batch():
        result = add.using(delay=10)(1)
        clock.advance(3)
    assert result.job().due == began + 10


# ── storage errors ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_result_of_a_call_that_failed_does_not_exist(app: LiteQ, add: Task[..., int]) -> None:
    def refuse(jobs: object) -> NoReturn:
        raise StorageError("the disk is full")

    app.storage.add = refuse  # type: ignore[method-assign]
    for use in (lambda: add(1), lambda: add.map([1]), lambda: app.enqueue(add.s(1)), lambda: add.schedule((1,))):
        with pytest.raises(StorageError, match="disk is full"):
            use()
    with pytest.raises(StorageError):
        asyncio.run(add.aenqueue(1))


def test_errors_are_all_of_one_family() -> None:
    for kind in (ConfigurationError, SerializationError, StorageError, TaskFailed):
        assert issubclass(kind, LiteQError)
    assert JobState("ready") is JobState.READY


@pytest.mark.parametrize(
    "options",
    [{"retry_delay": 10**30}, {"retry_delay": [1, 10**30]}, {"retry_max_delay": timedelta.max}],
)
def test_waits_that_no_calendar_could_show_are_refused_at_definition(app: LiteQ, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))} must be at most a thousand years"):
        app.task(retries=1, **options)(lambda: None)


@pytest.mark.parametrize("directive", [lambda: Snooze(10**30), lambda: Retry(delay=timedelta.max)])
def test_a_task_that_puts_itself_off_beyond_any_calendar_fails(app: LiteQ, directive: Callable[[], Exception]) -> None:
    @app.task(retries=3)
    def puts_off() -> None:
        raise directive()

    result = puts_off()
    work(app)
    assert "must be at most a thousand years" in result.job().attempts[0].message
    assert result.job().run_at is None or result.job().run_at.year < 3100
