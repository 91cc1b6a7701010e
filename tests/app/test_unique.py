"""Unique jobs as a program uses them: which calls are the same, what a second one gets, and what is refused."""

from __future__ import annotations

import itertools
import json
import pickle
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workbench import claim, run, work

from liteq import (
    CompressedSerializer,
    ConfigurationError,
    DuplicateJob,
    JobState,
    JSONSerializer,
    LiteQ,
    Task,
    chord,
    every,
)
from liteq import signals as S
from liteq.clock import ManualClock
from liteq.storage.base import Storage
from liteq.storage.memory import MemoryStorage


def send(user: int, text: str = "hello", *, urgent: bool = False) -> str:
    return text


async def aname(arguments: dict[str, Any]) -> str:
    return "x"


def one_key(_arguments: dict[str, Any]) -> str:
    return "the same"


# ── definitions ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"unique": 7}, TypeError, "unique takes True, a string such as 'user:{user_id}', or a function"),
        ({"unique": "{nobody}"}, ConfigurationError, "names 'nobody', which is no argument"),
        ({"unique": "{0}"}, ConfigurationError, "must name arguments"),
        ({"unique": "{user"}, ConfigurationError, "no format string"),
        ({"unique": aname}, TypeError, "a plain function, not an async def one"),
        ({"unique_for": "active"}, ConfigurationError, "unique_for .* needs unique="),
        ({"on_duplicate": "raise"}, ConfigurationError, "on_duplicate .* needs unique="),
        ({"debounce": 5}, ConfigurationError, "debounce .* needs unique="),
        ({"unique": False, "debounce": 5}, ConfigurationError, "debounce .* needs unique="),
        ({"unique": True, "unique_for": "ever"}, ConfigurationError, "unique_for takes 'active' or 'waiting', not 'ev"),
        ({"unique": True, "on_duplicate": "drop"}, ConfigurationError, "'return' or 'raise' or 'replace', not 'drop'"),
        ({"unique": True, "debounce": 0}, ConfigurationError, "debounce must be more than 0 s"),
        ({"unique": True, "debounce": -1}, ConfigurationError, "debounce"),
        ({"unique": True, "debounce": "5"}, TypeError, "debounce takes seconds"),
        ({"unique": True, "debounce": float("nan")}, ConfigurationError, "finite"),
        ({"unique": True, "debounce": 1e18}, ConfigurationError, "more than a hundred years"),
        ({"unique": True, "debounce_max": 5}, ConfigurationError, "needs that option"),
        ({"unique": True, "debounce": 5, "debounce_max": 4}, ConfigurationError, "less than debounce=5"),
        ({"unique": True, "debounce": 5, "on_duplicate": "raise"}, ConfigurationError, "'replace' .* or 'return'"),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_definition_and_at_the_call(
    app: LiteQ, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        app.task(**options)(send)
    assert app.tasks == {}
    plain = app.task(send)
    with pytest.raises(error, match=words):
        plain.using(**options)


@pytest.mark.parametrize("time", [{"delay": 5}, {"eta": datetime(2030, 1, 1, tzinfo=UTC)}])
def test_a_call_that_is_debounced_has_no_other_time(app: LiteQ, time: dict[str, Any]) -> None:
    task = app.task(unique=True, debounce=5)(send)
    with pytest.raises(ConfigurationError, match=r"and debounce of .* both say when the job is due"):
        task.using(**time)
    assert task.using(debounce=None, **time)(1).state is JobState.SCHEDULED


def test_a_call_that_is_not_debounced_is_not_bound_by_the_tasks_debounce_max(app: LiteQ, clock: ManualClock) -> None:
    task = app.task(unique=True, debounce=5, debounce_max=60)(send)
    assert task.using(debounce=None, delay=600)(1).job().due == clock.now() + 600
    with pytest.raises(ConfigurationError, match=r"debounce_max .* needs that option"):
        task.using(debounce=None, debounce_max=60)
    assert task.using(debounce=7)(2).job().due == clock.now() + 7


def boom(_arguments: dict[str, Any]) -> str:
    raise KeyError("user_id")


@pytest.mark.parametrize(
    ("unique", "error", "words"),
    [
        (boom, ConfigurationError, "send was not enqueued: its unique function.* raised KeyError: 'user_id'"),
        (lambda arguments: None, TypeError, "must return a string, not NoneType None"),
        (lambda arguments: arguments["user"], TypeError, "must return a string, not int 1"),
        ("{user.name}", ConfigurationError, "its unique '{user.name}' cannot be filled in: AttributeError"),
        ("{user[0]}", ConfigurationError, "cannot be filled in: TypeError"),
        ("{user:q}", ConfigurationError, "cannot be filled in: ValueError"),
    ],
)
def test_a_key_that_cannot_be_made_is_an_error_of_the_call(
    app: LiteQ, unique: Any, error: type[Exception], words: str
) -> None:
    task = app.task(name="send", unique=unique)(send)
    with pytest.raises(error, match=words):
        task(1)
    assert app.jobs() == []


# ── which calls are the same ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def task(app: LiteQ) -> Task[..., str]:
    return app.task(unique=True)(send)


def test_one_call_however_it_is_spelled(task: Task[..., str]) -> None:
    first = task(1)
    spellings: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((1, "hello"), {}),
        ((), {"user": 1}),
        ((1,), {"urgent": False}),
        ((), {"urgent": False, "text": "hello", "user": 1}),
    ]
    assert {task(*args, **kwargs).id for args, kwargs in spellings} == {first.id}


def test_other_arguments_are_another_call(task: Task[..., str]) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((1,), {}),
        ((2,), {}),
        (("1",), {}),
        ((True,), {}),
        ((1.0,), {}),
        ((None,), {}),
        ((1, ""), {}),
        ((1,), {"urgent": True}),
        (([1],), {}),
        (((1,),), {}),
    ]
    assert len({task(*args, **kwargs).id for args, kwargs in calls}) == len(calls)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def shuffled(value: Any) -> Any:
    """The same value, its dicts in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(one) for one in value] if isinstance(value, list) else value


@given(a=values, b=values)
def test_calls_are_the_same_exactly_if_what_is_stored_of_them_is(a: Any, b: Any) -> None:
    app = LiteQ(":memory:", clock=ManualClock())
    task = app.task(name="pair", unique=True)(lambda x, y=None: None)
    plain = JSONSerializer()
    first = task(a, b)
    assert task(y=shuffled(b), x=shuffled(a)).id == first.id
    canonical = [json.dumps(json.loads(plain.dumps(one)), sort_keys=True) for one in (a, b)]
    if canonical[0] != canonical[1] and "$liteq" not in "".join(canonical):
        assert task(b, a).id != first.id


@pytest.mark.parametrize("value", [{"b", "a", "c"}, frozenset({1, 2}), {(1, 2): 3, 4: 5}, uuid.UUID(int=7), b"\xff"])
def test_values_that_json_has_no_word_for_make_keys_too(task: Task[..., str], value: Any) -> None:
    again = pickle.loads(pickle.dumps(value))
    assert task(value).id == task(user=again).id


@dataclass
class Order:
    number: int


def test_the_apps_own_classes_make_keys_also_within_another_serializer(clock: ManualClock) -> None:
    serializer = JSONSerializer()
    serializer.register(Order)
    app = LiteQ(":memory:", clock=clock, serializer=CompressedSerializer(serializer))
    task = app.task(unique=True)(send)
    assert task(Order(1)).id == task(Order(1)).id != task(Order(2)).id


def test_pickled_arguments_make_keys_if_json_can_hold_them(clock: ManualClock) -> None:
    app = LiteQ(":memory:", clock=clock, serializer="pickle")
    task = app.task(name="send", unique=True)(send)
    assert task(1, "a" * 3).id == task(user=1, text="aaa").id
    with pytest.raises(ConfigurationError, match=r"send was not enqueued: unique=True .* use a string such as"):
        task(Order(1))
    by_number = task.using(unique="{user.number}")
    assert by_number(Order(1)).id == by_number(Order(1), "later").id


def test_a_string_and_a_function_name_what_counts(app: LiteQ) -> None:
    by_string = app.task(name="a", unique="user:{user}")(send)
    assert by_string(1).id == by_string(user=1, text="other").id != by_string(2).id
    by_function = app.task(name="b", unique=lambda arguments: f"{arguments['text']}")(send)
    assert by_function(1).id == by_function(2, "hello").id != by_function(1, "other").id


def test_a_string_without_arguments_is_one_key_for_all_calls(app: LiteQ) -> None:
    task = app.task(unique="rebuild")(send)
    assert task(1).id == task(2).id


def test_what_is_passed_as_more_arguments_counts(app: LiteQ) -> None:
    task = app.task(name="more", unique=True)(lambda *args, **more: None)
    first = task(1, 2, a=1, b=2)
    assert task(1, 2, b=2, a=1).id == first.id
    assert len({first.id, task(1, a=1, b=2).id, task(1, 2, a=1).id, task((1, 2), a=1, b=2).id}) == 4
    assert app.task(name="named", unique="{a}")(lambda **more: None)(a=1).job().id


@pytest.mark.parametrize("text", ["x" * 5000, "\ud800", "a\0b"])
def test_long_and_strange_keys_are_kept(on_file: LiteQ, text: str) -> None:
    task = on_file.task(unique="{text}")(send)
    assert task(1, text).id == task(2, text).id != task(1, text + "!").id


def test_two_tasks_share_no_key(app: LiteQ) -> None:
    a, b = (app.task(name=name, unique=one_key)(send) for name in "ab")
    assert a(1).id != b(1).id


# ── what a second call gets ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_ones_result_until_it_has_ended(app: LiteQ, task: Task[..., str]) -> None:
    first = task(1)
    assert task(1) == first
    [running] = claim(app)
    assert task(1) == first
    run(app, running)
    assert first.get(0) == "hello"
    assert task(1) != first


def test_an_error_that_names_the_first_one(app: LiteQ) -> None:
    task = app.task(name="send", unique="user:{user}", on_duplicate="raise")(send)
    first = task(1)
    with pytest.raises(DuplicateJob) as caught:
        task(1, "other")
    error = caught.value
    assert str(error) == (
        f"send was not enqueued: job {first.id} has the same unique key 'user:1' and has not finished. Nothing was "
        "stored; use that job's result, or on_duplicate='return' or 'replace'"
    )
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.job_id, copy.task, copy.key, copy.again, str(copy)) == (first.id, "send", "user:1", None, str(error))
    assert task.using(on_duplicate="return")(1) == first
    assert task.using(unique=None)(1) != first
    assert len(app.jobs()) == 2


def test_the_newest_arguments_run_once(app: LiteQ) -> None:
    task = app.task(unique="{user}", on_duplicate="replace")(send)
    results = [task(1, text) for text in "abc"]
    assert len(set(results)) == 1
    assert work(app) == 1
    assert results[0].get(0) == "c"


def test_a_running_one_is_followed(app: LiteQ) -> None:
    task = app.task(unique="{user}", on_duplicate="replace")(send)
    first = task(1, "a")
    [running] = claim(app)
    results = [task(1, text) for text in "bc"]
    assert {result.state for result in results} == {JobState.BLOCKED}
    assert claim(app) == []
    run(app, running)
    work(app)
    assert [first.get(0), *(result.get(0) for result in results)] == ["a", "c", "c"]


def test_calls_in_quick_succession_run_once_when_they_are_over(app: LiteQ, clock: ManualClock) -> None:
    task = app.task(unique="{user}", debounce=timedelta(seconds=5), debounce_max=14)(send)
    for text in "abcd":
        assert work(app) == 0
        task(1, text)
        clock.advance(4)
    [job] = app.jobs()
    assert job.due == job.created + 14
    assert work(app) == 1
    assert app.result(job.id).get(0) == "d"


def test_map_and_batch_meet_within_themselves(app: LiteQ, task: Task[..., str]) -> None:
    group = task.map([1, 2, 1, (2, "hello")])
    assert [result.id for result in group] == [group[0].id, group[1].id] * 2
    with app.batch():
        one, two = task(3), task(user=3)
        three = task.using(id="own")(3)
    assert one.id == two.id == three.id
    with pytest.raises(DuplicateJob), app.batch():
        task(4)
        task.using(on_duplicate="raise")(4)
    assert len(app.jobs()) == 3


def test_known_jobs_are_not_announced_again(app: LiteQ, task: Task[..., str]) -> None:
    heard: list[str] = []
    app.signal(S.ENQUEUED)(lambda signal, job, error: heard.append(job.id))
    first = task(1)
    task(1)
    task.using(on_duplicate="replace")(1)
    assert heard == [first.id]


def test_a_job_that_was_revoked_while_it_runs_is_no_answer(app: LiteQ, task: Task[..., str]) -> None:
    first = task(1)
    [running] = claim(app)
    first.revoke()
    second = task(1)
    assert second != first
    run(app, running)
    work(app)
    assert second.get(0) == "hello"


# ── coming back ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["requeue", "restore"])
def test_a_job_whose_key_another_one_has_is_not_brought_back(app: LiteQ, task: Task[..., str], how: str) -> None:
    first = task(1)
    first.revoke()
    second = task(1)
    with pytest.raises(DuplicateJob) as caught:
        getattr(first, how)()
    words = f"job {first.id} of {task.name} was not brought back: job {second.id} has the same unique key"
    assert str(caught.value).startswith(words)
    with pytest.raises(DuplicateJob):
        getattr(app, how)(first)
    assert first.state is JobState.REVOKED
    second.revoke()
    assert getattr(first, how)()
    assert task(1) == first


def test_of_many_failed_ones_each_key_comes_back_once(app: LiteQ) -> None:
    @app.task(unique="{user}")
    def fail(user: int) -> None:
        raise ValueError

    for user in (1, 2, 1):
        fail(user)
        work(app)
    assert app.counts()[JobState.FAILED] == 3
    assert app.requeue_all() == 2
    assert app.counts()[JobState.READY] == 2


# ── immediate mode, schedules ────────────────────────────────────────────────────────────────────────────────────────


def test_immediate_mode_keeps_jobs_unique_too(immediate: LiteQ) -> None:
    texts: list[str] = []

    @immediate.task(unique="{user}", on_duplicate="replace")
    def note(user: int, text: str) -> str:
        texts.append(text)
        if text == "a":
            note(user, "b")
            note(user, "c")
        return text

    assert note(1, "a").get() == "a"
    assert texts == ["a", "c"]
    later = note.using(delay=60)(1, "d")
    assert note.using(delay=60)(1, "e") == later


def test_a_schedules_slot_is_left_out_while_its_key_is_held(app: LiteQ, task: Task[..., str]) -> None:
    held = task(1)
    app.schedules.add("s", task.s(1), every(60), overlap="allow")
    assert app.schedules.run_now("s") == held
    work(app)
    ran = app.schedules.run_now("s")
    assert ran != held
    assert task(1) == ran
    assert ran.job().schedule == "s"
    app.schedules.update("s", args=(2,))
    assert app.schedules.run_now("s") != ran


def test_a_schedule_has_nobody_to_raise_at_and_no_time_but_its_own(app: LiteQ, task: Task[..., str]) -> None:
    held = task(1)
    app.schedules.add("raises", task.using(on_duplicate="raise").s(1), every(60))
    assert app.schedules.run_now("raises") == held
    with pytest.raises(TypeError, match="debounce is not for schedules"):
        app.schedules.add("debounced", task.using(debounce=5).s(1), every(60))


# ── against a model ──────────────────────────────────────────────────────────────────────────────────────────────────

ACTIONS = ["return", "waiting", "replace", "claim", "succeed", "fail", "give back", "revoke", "requeue"]


@given(actions=st.lists(st.sampled_from(ACTIONS), max_size=25), data=st.data())
def test_whatever_happens_no_call_is_lost_and_no_two_of_a_key_run_at_once(
    actions: list[str], data: st.DataObject
) -> None:
    """A model of one number: which calls have been made since a run of the key began."""
    storage: Storage = MemoryStorage()
    app = LiteQ(storage, clock=ManualClock())
    ran: list[int] = []

    @app.task(name="note", unique="k", on_duplicate="replace", retries=99)
    def note(number: int) -> None:
        ran.append(number)

    numbers = itertools.count()
    running: list[Any] = []
    last = None
    exclusive = "waiting" not in actions
    for action in actions:
        if action in ("return", "waiting", "replace"):
            last = next(numbers)
            options: dict[str, Any] = {"return": {"on_duplicate": "return"}, "waiting": {"unique_for": "waiting"}}.get(
                action, {}
            )
            result = note.using(**options)(last)
            assert result.state not in (JobState.SUCCEEDED, JobState.FAILED, JobState.REVOKED)
        elif action == "claim":
            running += claim(app, 1)
        elif action in ("revoke", "requeue"):
            jobs = app.jobs(state=["ready", "blocked"] if action == "revoke" else ["succeeded", "revoked"])
            if jobs:
                job = data.draw(st.sampled_from(jobs), label="job")
                try:
                    getattr(app, action)(job.id)
                except DuplicateJob:
                    assert any(one.state in ("ready", "running", "blocked") for one in app.jobs())
        elif running:
            job = running.pop(data.draw(st.integers(0, len(running) - 1), label="which"))
            END[action](app, job)
        unfinished = app.jobs(state=["ready", "running", "blocked", "scheduled"])
        if exclusive:
            assert len(running) <= 1
            assert len(unfinished) <= 2
            assert len([job for job in unfinished if job.state is not JobState.BLOCKED]) <= 1
    made_last = last is not None and actions[-1] == "replace"
    for job in running:
        run(app, job)
    work(app)
    assert app.jobs(state=["ready", "running", "blocked", "scheduled"]) == []
    if made_last:
        assert ran[-1] == last  # a run that began after the call, with its arguments


def _fail(app: LiteQ, job: Any) -> None:
    from liteq.engine import Ended
    from liteq.job import Ending, Outcome

    app.engine.round([Ended(job, Outcome(job.seq, job.claim, Ending.FAILED, 0.0, 0.0, None, "E", "m"))], None)


END: dict[str, Callable[[LiteQ, Any], object]] = {
    "succeed": run,
    "fail": _fail,
    "give back": lambda app, job: app.engine.round([], None, released=[job]),
}


def test_a_job_that_follows_and_depends_waits_for_both(app: LiteQ) -> None:
    note = app.task(name="note", unique="k", on_duplicate="replace")(lambda *found: found)
    other = app.task(name="other")(lambda: 7)
    note()
    prior = other()
    jobs = {job.task: job for job in claim(app)}
    for first, second in (("note", "other"), ("other", "note")):
        dependent = note.using(after=[prior])()
        assert dependent.state is JobState.BLOCKED
        run(app, jobs[first])
        assert dependent.state is JobState.BLOCKED
        assert dependent.why().causes[0].code in ("unique", "jobs")
        run(app, jobs[second])
        assert work(app) == 1
        assert dependent.get(0) == ()
        note(), other()
        prior = app.result(app.jobs(newest_first=True, limit=1)[0].id)
        jobs = {job.task: job for job in claim(app)}


def test_a_step_of_a_workflow_whose_key_is_held_is_that_job(app: LiteQ, task: Task[..., str]) -> None:
    shown = app.task(name="shown")(lambda text: f"<{text}>")
    held = task(1)
    last = app.enqueue(task.s(1).then(shown))
    assert last.why().causes[0].text.startswith(f"it waits for the end of job {held.id}")
    assert work(app) == 2
    assert last.get(0) == "<hello>"


def test_calls_of_one_key_in_several_workflows_never_get_each_others_results(app: LiteQ) -> None:
    publish = app.task(name="publish", unique="{key}", on_duplicate="replace")(lambda key, status: status)
    add = app.task(name="add")(lambda a, b: a + b)
    first = app.enqueue(add.s(1, 2).then(publish, "a"))
    assert app.enqueue(add.s(50, 60).then(publish, "a")).id == first.id
    direct = publish("b", "waits for nothing")
    app.enqueue(add.s(1, 2).then(publish, "b"))
    app.enqueue(add.s(1, 2).then(publish, "c"))
    assert publish("c", "direct").state is JobState.READY
    late = publish("d", "too early")
    app.enqueue(chord([add.s(1, 1), add.s(2, 2)], publish.si("d", "after both")))
    assert [late.state, direct.state] == [JobState.BLOCKED] * 2
    work(app)
    results = [app.result(job.id).get(0) for job in app.jobs(task="publish")]
    assert sorted(results, key=str) == [110, 3, "after both", "direct"]


def test_a_step_that_would_replace_what_it_waits_for_is_refused_at_the_call(app: LiteQ) -> None:
    publish = app.task(name="publish", unique="{key}", on_duplicate="replace")(lambda key, status: status)
    with pytest.raises(ConfigurationError, match="it would wait for itself"):
        app.enqueue(publish.s("a", "x").then(publish, "a"))
    assert app.jobs() == []
