"""``@app.periodic_task`` and ``app.schedules``: what is declared, what is stored, who wins. Nothing is fired here."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from workbench import Program, run_python, work

from liteq import (
    ConfigurationError,
    DuplicateSchedule,
    DuplicateTask,
    JobState,
    LiteQ,
    Schedule,
    ScheduleNotFound,
    SerializationError,
    TaskContext,
    TriggerError,
    UnknownTask,
    at,
    crontab,
    every,
)
from liteq.clock import ManualClock
from liteq.instants import moment
from liteq.schedules import orphan


@pytest.fixture
def ran(app: LiteQ) -> list[Any]:
    """With a task ``note``, and what it was called with."""
    seen: list[Any] = []

    @app.task(name="note", context=True, queue="notes", retries=2)
    def note(*words: Any, task: TaskContext, **more: Any) -> None:
        seen.append((words, more, task.slot))

    return seen


@pytest.fixture
def note(app: LiteQ, ran: list[Any]) -> Any:
    return app.tasks["note"]


def declare(app: LiteQ, trigger: Any = "every 60s", **options: Any) -> Schedule:
    """Declare a task ``job`` with this trigger; returns the schedule as it is stored."""

    @app.periodic_task(trigger, name="job", **options)
    def job(*args: Any, **kwargs: Any) -> None:
        return None

    return app.schedules.get("job")


def another_program(app: LiteQ) -> LiteQ:
    """A program with other code on the same storage."""
    return LiteQ(app.storage, clock=app._clock)


# ── declared in code ─────────────────────────────────────────────────────────────────────────────────────


def test_a_declared_schedule_bears_its_tasks_name(app: LiteQ, clock: ManualClock) -> None:
    schedule = declare(app, crontab("0 3 * * *", timezone="Europe/Berlin"), args=(1,), kwargs={"b": 2}, queue="q")
    assert (schedule.name, schedule.task, schedule.queue, schedule.state) == ("job", "job", "q", "active")
    assert (schedule.source, schedule.trigger) == ("code", "0 3 * * * in Europe/Berlin")
    assert schedule.next_run == crontab("0 3 * * *", timezone="Europe/Berlin").next(moment(clock.now()))
    assert '"b"' in schedule.arguments


def test_declaring_touches_no_file(directory: Path) -> None:
    app = LiteQ(directory / "queue.db")
    app.periodic_task("@hourly", name="job")(lambda: None)
    assert list(directory.iterdir()) == []
    assert [one.name for one in app.schedules.list()] == ["job"]
    app.close()


def test_the_decorated_function_is_an_ordinary_task(app: LiteQ) -> None:
    @app.periodic_task("@hourly", name="add", retries=1)
    def add(a: int = 1, b: int = 2) -> int:
        return a + b

    result = add(3, 4)
    work(app)
    assert result.get() == 7
    assert add.call_local() == 3


def test_a_trigger_without_a_zone_is_read_in_the_apps(clock: ManualClock) -> None:
    app = LiteQ(":memory:", timezone="Asia/Kolkata", clock=clock)
    schedule = declare(app, "0 9 * * *")
    assert schedule.trigger == "0 9 * * * in Asia/Kolkata"
    assert schedule.next_run is not None
    assert schedule.next_run.astimezone(ZoneInfo("Asia/Kolkata")).hour == 9


def test_a_task_may_have_several_schedules(app: LiteQ) -> None:
    @app.periodic_task("0 17 * * fri", name="friday", args=("week",))
    @app.periodic_task("0 9 * * *", name="report", args=("day",))
    def report(what: str) -> str:
        return what

    assert {one.name: one.task for one in app.schedules.list()} == {"friday": "report", "report": "report"}
    with pytest.raises(DuplicateSchedule, match="name of its own"):
        app.periodic_task("@daily", args=("x",))(report)
    with pytest.raises(TypeError, match="queue belongs to the decorator"):
        app.periodic_task("@daily", name="x", queue="y")(report)


def test_two_functions_cannot_share_a_name(app: LiteQ) -> None:
    declare(app)
    with pytest.raises(DuplicateTask):
        app.periodic_task("@daily", name="job")(lambda: 1)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"trigger": "every fortnight"}, TriggerError, "fortnight"),
        ({"trigger": "0 0 30 2 *"}, TriggerError, "never|no date"),
        ({"trigger": 60}, TypeError, "int"),
        ({"catch_up": "both"}, ConfigurationError, "catch_up takes 'latest', 'all', 'skip'"),
        ({"overlap": "maybe"}, ConfigurationError, "overlap"),
        ({"grace": -1}, ConfigurationError, "grace"),
        ({"jitter": "much"}, TypeError, "jitter"),
        ({"max_runs": 0}, ConfigurationError, "max_runs"),
        ({"start": datetime(2030, 1, 2), "end": datetime(2030, 1, 1)}, ConfigurationError, "before start"),
        ({"start": "tomorrow"}, TypeError, "start takes a datetime"),
        ({"trigger": "every 90 days", "end": datetime(1, 1, 1)}, TriggerError, "never due within"),
        ({"args": (object(),)}, SerializationError, "job was not enqueued"),
        ({"colour": "red"}, TypeError, "colour"),
        ({"expires": datetime(2030, 1, 1)}, TypeError, "expires"),
    ],
)
def test_a_wrong_option_is_named_at_the_decorator(
    app: LiteQ, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        declare(app, **({"trigger": "every 60s"} | options))


def test_arguments_that_the_function_does_not_take_are_refused_at_once(app: LiteQ) -> None:
    with pytest.raises(TypeError, match="too many positional"):
        app.periodic_task("@daily", name="f", args=(1, 2))(lambda a: a)


def test_the_decorator_without_a_trigger_says_what_is_missing(app: LiteQ) -> None:
    with pytest.raises(TypeError, match="takes a trigger"):
        app.periodic_task(lambda: None)  # type: ignore[call-overload]


def test_a_declared_moment_that_has_passed_does_not_keep_the_program_from_starting(app: LiteQ) -> None:
    schedule = declare(app, at(datetime(2001, 1, 1, tzinfo=UTC)))
    assert (schedule.state, schedule.next_run) == ("finished", None)


# ── the code changes ─────────────────────────────────────────────────────────────────────────────────────


def test_the_same_code_again_changes_nothing(app: LiteQ, clock: ManualClock) -> None:
    first = declare(app)
    clock.advance(90)
    again = another_program(app)
    assert declare(again) == first


def test_a_change_in_the_code_updates_the_schedule(app: LiteQ, clock: ManualClock) -> None:
    declare(app)
    clock.advance(10)
    changed = declare(another_program(app), "every 30s", args=(5,), overlap="allow", priority=4)
    assert changed.trigger.startswith("every 30s from ")
    assert changed.due == clock.now() + 30
    assert (changed.overlap, changed.priority, changed.edited) == ("allow", 4, False)


def test_a_change_of_arguments_does_not_move_the_grid(app: LiteQ, clock: ManualClock) -> None:
    first = declare(app)
    clock.advance(10)
    changed = declare(another_program(app), args=("new",))
    assert (changed.trigger, changed.due) == (first.trigger, first.due)
    assert "new" in changed.arguments


def test_what_somebody_edited_is_kept_and_shown_until_it_is_reset(app: LiteQ) -> None:
    declare(app)
    edited = app.schedules.update("job", trigger="every 5 minutes", priority=9)
    assert (edited.edited, edited.priority) == (True, 9)
    program = another_program(app)
    kept = declare(program, "every 10s")
    assert kept.trigger.startswith("every 5m")
    assert kept.edited
    assert "every 10s" in (kept.declared or "")
    back = program.schedules.reset("job")
    assert back.trigger.startswith("every 10s")
    assert (back.edited, back.priority) == (False, 0)


@pytest.mark.parametrize(
    ("trigger", "end"), [(at(datetime(2001, 1, 1)), None), (every(60), datetime(2001, 1, 1))], ids=["moment", "end"]
)
def test_reset_goes_back_to_code_whose_time_has_passed(app: LiteQ, trigger: Any, end: datetime | None) -> None:
    told = declare(app, trigger, end=end)
    app.schedules.update("job", trigger="every 5m", end=None, priority=9)
    back = app.schedules.reset("job")
    assert (back.state, back.edited, back.priority, back.end) == ("finished", False, 0, told.end)


def test_code_whose_end_has_passed_finishes_the_schedule_and_keeps_what_it_has_run(app: LiteQ) -> None:
    declare(app)
    result = app.schedules.run_now("job")
    (stored,) = app.storage.schedules("job")
    app.storage.put_schedule(stored._replace(runs=4, ran="[[1.0,2.0]]"))
    ended = declare(another_program(app), end=datetime(2001, 1, 1))
    assert (ended.state, ended.runs, ended.ran, ended.last_id) == ("finished", 4, "[[1.0,2.0]]", result.id)


def test_a_pause_outlives_a_change_in_the_code_and_is_no_edit(app: LiteQ) -> None:
    declare(app)
    assert app.schedules.pause("job")
    changed = declare(another_program(app), "every 30s")
    assert (changed.state, changed.edited) == ("paused", False)
    assert changed.trigger.startswith("every 30s")
    assert changed.next_run is None


def test_one_that_disappeared_from_the_code_is_shown_as_orphaned(app: LiteQ) -> None:
    declare(app)
    program = another_program(app)
    program.task(name="something else")(lambda: None)
    assert program.schedules.get("job").state == "orphaned"
    assert app.schedules.get("job").state == "active"


def test_an_orphan_that_no_consumer_has_seen_yet_is_not_shown_as_due(app: LiteQ) -> None:
    declare(app)
    program = another_program(app)
    program.task(lambda: None)
    (shown,) = program.schedules.list()
    assert (shown.state, shown.next_run) == ("orphaned", None)


def test_whoever_only_knows_the_file_calls_nothing_orphaned(app: LiteQ) -> None:
    declare(app)
    assert another_program(app).schedules.get("job").state == "active"


@pytest.mark.parametrize("update", [{}, {"grace": 5}, {"max_runs": 9}], ids=str)
def test_an_orphan_whose_code_is_back_goes_on_from_the_slot_at_which_it_came_to_rest(
    app: LiteQ, clock: ManualClock, update: dict[str, Any]
) -> None:
    stored = declare(app, "every 60s", catch_up="all")
    assert orphan(app.engine, stored)
    clock.advance(600.5)
    if update:
        assert app.engine.declared.entries.pop("job")
        app.schedules.update("job", **update)
    resting = app.storage.schedules("job")[0]
    assert (resting.state, resting.due, resting.slot) == ("orphaned", None, stored.slot)
    assert app.schedules.preview("job", 1) > [moment(clock.now())]
    back = declare(another_program(app), "every 60s", catch_up="all")
    assert (back.state, back.due) == ("active", stored.due)


def test_an_orphan_whose_code_comes_back_with_other_times_goes_on_from_now(app: LiteQ, clock: ManualClock) -> None:
    assert orphan(app.engine, declare(app, "every 60s", catch_up="all"))
    clock.advance(600.5)
    assert declare(another_program(app), "every 90s", catch_up="all").due == clock.now() + 90


def test_an_orphan_that_was_paused_catches_nothing_up(app: LiteQ, clock: ManualClock) -> None:
    declare(app, "every 60s", catch_up="all")
    app.schedules.pause("job")
    assert orphan(app.engine, app.storage.schedules("job")[0])
    clock.advance(600.5)
    program = another_program(app)
    assert declare(program, "every 60s", catch_up="all").state == "paused"
    program.schedules.resume("job")
    assert program.schedules.get("job").due == clock.now() + 59.5


@pytest.mark.parametrize(("field", "value"), [("declared", "{"), ("trigger", "rubbish"), ("ran", "nonsense")])
def test_garbage_in_the_file_gives_way_to_the_code(app: LiteQ, field: str, value: str) -> None:
    stored = declare(app)
    broken = stored._replace(orphaned=True, edited=field != "declared", **{field: value})  # type: ignore[arg-type]
    assert app.storage.put_schedule(broken)
    again = declare(another_program(app), "every 30s")
    assert (again.state, again.edited) == ("active", False)
    assert again.trigger.startswith("every 30s")


def test_a_declaration_takes_over_one_that_was_added_by_hand_as_edited(app: LiteQ, note: Any) -> None:
    app.schedules.add("job", note, "@hourly")
    taken = declare(app, "@daily")
    assert (taken.source, taken.edited, taken.task) == ("code", True, "note")
    assert app.schedules.reset("job").task == "job"


EIGHT = """
    from liteq import LiteQ, every
    app = LiteQ(sys.argv[1], durability="normal")
    @app.periodic_task(every(30), name="job")
    def job(): pass
    say("ready")
    hear()
    found = app.schedules.list()
    say(len(found), found[0].trigger)
"""


def test_the_same_code_in_eight_processes_gives_one_row(directory: Path) -> None:
    with ExitStack() as stack:
        programs = [stack.enter_context(Program(EIGHT, directory / "queue.db")) for _ in range(8)]
        assert {program.hear() for program in programs} == {"ready"}
        for program in programs:
            program.tell()
        said = {program.hear() for program in programs}
    assert len(said) == 1
    assert said.pop().startswith("1 every 30s from ")


def test_another_process_sees_and_changes_it(directory: Path, on_file: LiteQ) -> None:
    on_file.schedules.add("job", on_file.task(name="t")(lambda: None), "@hourly")
    told = "from liteq import LiteQ; import sys; print(LiteQ(sys.argv[1]).schedules.pause('job'))"
    assert run_python(told, directory / "queue.db").strip() == "True"
    assert on_file.schedules.get("job").state == "paused"


# ── added at run time ────────────────────────────────────────────────────────────────────────────────────


def test_add_takes_a_call_of_a_task(app: LiteQ, note: Any, ran: list[Any]) -> None:
    schedule = app.schedules.add("s", note.using(priority=7, retries=5, expires=60).s("a", b="c"), every(30))
    assert (schedule.source, schedule.task, schedule.queue, schedule.priority) == ("user", "note", "notes", 7)
    assert (json.loads(schedule.options or ""), schedule.expires) == ({"retries": 5}, 60.0)
    result = app.schedules.run_now("s")
    work(app)
    ((words, more, slot),) = ran
    assert (words, more, slot) == (("a",), {"b": "c"}, moment(app._clock.now()))
    assert result.job().queue == "notes"


def test_add_takes_the_name_of_a_task(app: LiteQ, note: Any) -> None:
    assert "x" in app.schedules.add("s", "note", "@hourly", args=["x"], queue="q").arguments
    with pytest.raises(UnknownTask):
        app.schedules.add("t", "nobody", "@hourly")
    assert [one.name for one in app.schedules.list()] == ["s"]


@pytest.mark.parametrize(
    "wrong", [{"args": "eur"}, {"args": {"a": 1}}, {"args": 5}, {"kwargs": "ab"}, {"kwargs": [("a", 1)]}], ids=str
)
def test_arguments_of_a_wrong_kind_are_named_wherever_they_are_given(
    app: LiteQ, note: Any, wrong: dict[str, Any]
) -> None:
    (name,) = wrong
    with pytest.raises(TypeError, match=f"{name} takes a"):
        app.schedules.add("s", note, "@hourly", **wrong)
    with pytest.raises(TypeError, match=f"{name} takes a"):
        note.schedule(**wrong)
    with pytest.raises(TypeError, match=f"{name} takes a"):
        app.periodic_task("@hourly", name="declared", **wrong)(lambda *args: None)
    app.schedules.add("s", note, "@hourly", args=["x"])
    with pytest.raises(TypeError, match=f"{name} takes a"):
        app.schedules.update("s", **wrong)


def test_a_name_is_taken_once(app: LiteQ, note: Any) -> None:
    app.schedules.add("s", note, "@hourly")
    with pytest.raises(DuplicateSchedule, match="replace=True"):
        app.schedules.add("s", note, "@daily")
    replaced = app.schedules.add("s", note, "@daily", replace=True)
    assert replaced.trigger == "@daily in UTC"


def test_one_that_is_declared_can_be_replaced_by_hand(app: LiteQ, note: Any) -> None:
    declare(app)
    replaced = app.schedules.add("job", note, "@daily", replace=True)
    assert (replaced.edited, replaced.source, replaced.task) == (True, "code", "note")


@pytest.mark.parametrize(
    ("trigger", "limits"),
    [
        (at(datetime(2001, 1, 1)), {}),
        ("0 0 1 1 *", {"end": datetime(2023, 11, 20)}),
        (every(60).between(datetime(2001, 1, 1), datetime(2001, 1, 2)), {}),
    ],
)
def test_what_will_never_be_due_is_refused(app: LiteQ, note: Any, trigger: Any, limits: dict[str, Any]) -> None:
    with pytest.raises(TriggerError, match="never due"):
        app.schedules.add("s", note, trigger, **limits)
    assert app.schedules.list() == []


def test_limits_that_the_clock_never_shows_are_read_as_the_slots_are(clock: ManualClock) -> None:
    app = LiteQ(":memory:", timezone="Europe/Berlin", clock=clock)
    task = app.task(name="task")(lambda: None)
    gap = datetime(2027, 3, 28, 2, 30)
    once = app.schedules.add("s", task, "30 2 * * *", start=gap, end=gap)
    assert once.next_run == once.start_at == once.end_at == datetime(2027, 3, 28, 1, tzinfo=UTC)
    assert app.schedules.add("t", task, at(gap)).next_run == once.next_run
    fold = app.schedules.update("s", end=datetime(2027, 10, 31, 2, 30, fold=1))
    assert fold.end_at == datetime(2027, 10, 31, 1, 30, tzinfo=UTC)


@pytest.mark.parametrize("option", ["jitter", "expires"])
def test_a_delay_beyond_the_calendar_is_refused_and_nothing_is_stored(app: LiteQ, note: Any, option: str) -> None:
    too_long: dict[str, Any] = {option: timedelta(days=20_000_000)}
    with pytest.raises(ConfigurationError, match=f"{option} must be at most a thousand years"):
        app.schedules.add("s", note, "@daily", **too_long)
    first = app.schedules.add("s", note, "@daily")
    with pytest.raises(ConfigurationError, match=f"{option} must be at most a thousand years"):
        app.schedules.update("s", **too_long)
    assert app.schedules.get("s") == first


def test_limits_at_the_ends_of_the_calendar_can_be_shown(app: LiteQ, note: Any) -> None:
    last = app.schedules.add("s", note, at(datetime(9999, 12, 31, tzinfo=UTC)), jitter=30 * 86_400, end=datetime.max)
    assert (last.next_run, last.end_at) == (moment(last.due or 0), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
    assert len(app.schedules.preview("s")) == 1
    with pytest.raises(ConfigurationError, match=r"start=.* leads beyond the years 1 to 9999"):
        app.schedules.update("s", start=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=2))))


@pytest.mark.parametrize("option", ["eta", "delay", "id"])
def test_what_only_one_job_can_have_is_refused(app: LiteQ, note: Any, option: str) -> None:
    value = {"eta": datetime(2030, 1, 1), "delay": 5, "id": "x"}[option]
    for call in (
        lambda: app.schedules.add("s", note.using(**{option: value}), "@hourly"),
        lambda: app.schedules.add("s", note, "@hourly", **{option: value}),
    ):
        with pytest.raises(TypeError, match=f"{option} is not for schedules"):
            call()


@pytest.mark.parametrize("name", ["", "x" * 201, "a\0b", 5])
def test_a_bad_name_is_refused(app: LiteQ, note: Any, name: Any) -> None:
    with pytest.raises((ConfigurationError, TypeError), match="name"):
        app.schedules.add(name, note, "@hourly")


def test_many_add_the_same_name_and_one_does(on_file: LiteQ) -> None:
    task = on_file.task(name="t")(lambda: None)

    def add(number: int) -> bool:
        try:
            on_file.schedules.add("s", task, "@hourly", priority=number)
        except DuplicateSchedule:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(add, range(8))) == 1


# ── changed at run time ──────────────────────────────────────────────────────────────────────────────────


def test_update_changes_what_is_given_and_leaves_the_rest(app: LiteQ, note: Any, clock: ManualClock) -> None:
    first = app.schedules.add("s", note, "every 60s", args=("a",), kwargs={"k": 1}, grace=5, max_runs=9, retries=1)
    clock.advance(10)
    changed = app.schedules.update("s", overlap="queue", grace=None, priority=3, timeout=4)
    assert changed._replace(overlap="skip", grace=5.0, priority=0, options=first.options, version=1) == first
    assert json.loads(changed.options or "") == {"retries": 1, "timeout": 4}
    assert not changed.edited
    again = app.schedules.update("s", kwargs={"k": 2})
    assert ('"a"' in again.arguments, '"k":2' in again.arguments.replace(" ", "")) == (True, True)


def test_another_task_keeps_what_was_said_for_the_schedule(app: LiteQ, note: Any) -> None:
    app.task(name="two", on_crash="fail")(lambda *words, **more: None)
    options: dict[str, Any] = {"queue": "q2", "priority": 7, "expires": 99, "retries": 4, "max_crashes": 2}
    first = app.schedules.add(
        "s", note.using(headers={"trace": "t"}), "every 60s", args=("a",), kwargs={"k": 1}, **options
    )
    changed = app.schedules.update("s", task="two")
    assert changed._replace(task="note", options=first.options, version=first.version) == first
    assert json.loads(changed.options or "") == json.loads(first.options or "") | {"on_crash": "fail"}
    back = app.schedules.update("s", task=note, kwargs={"k": 2})
    assert ('"a"' in back.arguments, '"k":2' in back.arguments.replace(" ", "")) == (True, True)
    assert back.options == first.options


def test_another_task_brings_what_the_schedule_had_from_its_task(app: LiteQ, note: Any) -> None:
    one = app.task(name="one", queue="mail", priority=3, on_crash="fail")(lambda *words: None)
    two = app.task(name="two", queue="slow", expires=5)(lambda *words: None)
    app.schedules.add("s", one, "every 60s", retries=1)
    changed = app.schedules.update("s", task=two)
    assert (changed.queue, changed.priority, changed.expires, changed.options) == ("slow", 0, 5.0, '{"retries":1}')
    called = app.schedules.update("s", task=one.using(queue="urgent", retries=3).s("x"))
    assert (called.queue, called.priority, called.expires, "x" in called.arguments) == ("urgent", 3, None, True)
    assert json.loads(called.options or "") == {"retries": 3, "on_crash": "fail"}


def test_a_task_that_does_not_take_the_arguments_kept_is_refused_and_told(app: LiteQ, note: Any) -> None:
    app.task(name="none")(lambda: None)
    first = app.schedules.add("s", note, "every 60s", args=("a",))
    with pytest.raises(TypeError, match=r"too many positional arguments. Schedule 's' keeps .*args=\(\)"):
        app.schedules.update("s", task="none")
    assert app.schedules.get("s") == first
    assert app.schedules.update("s", task="none", args=()).task == "none"


def test_another_task_than_one_that_is_unknown_here_keeps_what_is_not_a_default(app: LiteQ, note: Any) -> None:
    app.schedules.add("s", note, "every 60s", args=("a",), retries=1)
    program = another_program(app)
    program.task(name="two", priority=4)(lambda *words: None)
    changed = program.schedules.update("s", task="two")
    assert (changed.queue, changed.priority, changed.options) == ("notes", 4, '{"retries":1}')


def test_what_a_limit_is_counted_by_follows_the_task(app: LiteQ, note: Any) -> None:
    task = app.task(name="keyed", max_running=1, max_running_key="{user}", unique=True)(lambda user: None)
    app.schedules.add("s", task.s(1), "every 60s", retries=2)
    assert json.loads(app.schedules.update("s", task=note).options or "") == {"retries": 2}
    assert json.loads(app.schedules.update("s", task=task).options or "")["limit_key"] == "1"


def test_what_a_limit_is_counted_by_follows_the_arguments(app: LiteQ) -> None:
    task = app.task(name="keyed", max_running=1, max_running_key="{user}")(lambda user: None)
    stored = app.schedules.add("s", task.s(1), "every 60s", retries=2)
    assert json.loads(stored.options or "") == {"limit_key": "1", "retries": 2}
    assert json.loads(app.schedules.update("s", args=(7,)).options or "") == {"limit_key": "7", "retries": 2}
    assert json.loads(app.schedules.update("s", retries=3).options or "") == {"limit_key": "7", "retries": 3}


def test_a_new_trigger_counts_from_the_change(app: LiteQ, note: Any, clock: ManualClock) -> None:
    app.schedules.add("s", note, "every 60s")
    clock.advance(10)
    assert app.schedules.update("s", trigger=every(20)).due == clock.now() + 20
    assert app.schedules.update("s", start=moment(clock.now() + 100)).due == clock.now() + 100
    with pytest.raises(TriggerError, match="never due"):
        app.schedules.update("s", trigger=at(datetime(2001, 1, 1)))
    assert app.schedules.get("s").due == clock.now() + 100


def test_a_finished_one_goes_on_with_more_runs(app: LiteQ, note: Any) -> None:
    app.schedules.add("s", note, "every 60s", max_runs=1)
    (stored,) = app.storage.schedules("s")
    app.storage.put_schedule(stored._replace(runs=1, slot=None, due=None))
    assert app.schedules.get("s").state == "finished"
    assert app.schedules.update("s", max_runs=2).state == "active"


def test_pause_and_resume(app: LiteQ, note: Any, clock: ManualClock) -> None:
    app.schedules.add("s", note, "every 60s")
    assert (app.schedules.pause("s"), app.schedules.pause("s")) == (True, False)
    assert app.schedules.get("s").next_run is None
    clock.advance(150)
    assert (app.schedules.resume("s"), app.schedules.resume("s")) == (True, False)
    assert app.schedules.get("s").due == clock.now() + 30


def test_run_now_is_beside_the_slots(app: LiteQ, note: Any, ran: list[Any]) -> None:
    before = app.schedules.add("s", note, "every 60s", args=("now",), max_runs=1)
    result = app.schedules.run_now("s")
    work(app)
    after = app.schedules.get("s")
    assert result.state is JobState.SUCCEEDED
    assert (after.due, after.runs, after.last_id, after.last_outcome) == (before.due, 0, result.id, "succeeded")
    assert after.last_run_at == moment(app._clock.now())


def test_run_now_waits_for_the_run_before_unless_they_may_overlap(app: LiteQ, note: Any) -> None:
    app.schedules.add("s", note, "every 60s")
    first, second = app.schedules.run_now("s"), app.schedules.run_now("s")
    assert (first.state, second.state) == (JobState.READY, JobState.BLOCKED)
    assert second.job().reason == f"after job {first.id}"
    app.schedules.update("s", overlap="allow")
    assert app.schedules.run_now("s").state is JobState.READY


def test_run_now_of_a_paused_one_runs_it(app: LiteQ, note: Any, ran: list[Any]) -> None:
    app.schedules.add("s", note, "every 60s")
    app.schedules.pause("s")
    app.schedules.run_now("s")
    work(app)
    assert len(ran) == 1


def test_remove(app: LiteQ, note: Any) -> None:
    app.schedules.add("s", note, "@hourly")
    result = app.schedules.run_now("s")
    assert (app.schedules.remove("s"), app.schedules.remove("s")) == (True, False)
    assert result.state is JobState.READY
    declare(app)
    with pytest.raises(ConfigurationError, match="pause it, or take it out of the code"):
        app.schedules.remove("job")
    program = another_program(app)
    program.task(name="other")(lambda: None)
    assert program.schedules.remove("job")


def test_preview_shows_the_instants_in_the_schedules_zone(app: LiteQ, note: Any) -> None:
    app.schedules.add("s", note, crontab("30 2 * * *", timezone="America/New_York"), start=datetime(2024, 3, 9))
    found = app.schedules.preview("s", 3)
    assert [one.isoformat() for one in found] == [
        "2024-03-09T02:30:00-05:00",
        "2024-03-10T03:00:00-04:00",
        "2024-03-11T02:30:00-04:00",
    ]
    app.schedules.pause("s")
    assert len(app.schedules.preview("s")) == 10


def test_nobody_of_this_name(app: LiteQ) -> None:
    schedules = app.schedules
    for ask in (schedules.get, schedules.update, schedules.pause, schedules.resume, schedules.run_now, schedules.reset):
        with pytest.raises(ScheduleNotFound, match="no schedule 'nobody'") as caught:
            ask("nobody")
        assert caught.value.name == "nobody"
    with pytest.raises(ScheduleNotFound):
        schedules.preview("nobody")
    assert not schedules.remove("nobody")


def test_each_method_has_a_twin_for_coroutines(on_file: LiteQ) -> None:
    task = on_file.task(name="t")(lambda: None)
    schedules = on_file.schedules

    async def use() -> None:
        await schedules.aadd("s", task, "@hourly")
        assert await schedules.apause("s")
        assert (await schedules.aget("s")).state == "paused"
        assert await schedules.aresume("s")
        assert (await schedules.aupdate("s", priority=2)).priority == 2
        assert len(await schedules.apreview("s", 2)) == 2
        assert (await schedules.arun_now("s")).state is JobState.READY
        assert [one.name for one in await schedules.alist()] == ["s"]
        with pytest.raises(ConfigurationError):
            await schedules.areset("s")
        assert await schedules.aremove("s")

    asyncio.run(use())


# ── immediate mode ───────────────────────────────────────────────────────────────────────────────────────


def test_in_immediate_mode_schedules_are_declared_and_run_by_hand(immediate: LiteQ) -> None:
    calls: list[datetime | None] = []

    @immediate.periodic_task(every(timedelta(seconds=1)), name="tick", context=True)
    def tick(task: TaskContext) -> None:
        calls.append(task.slot)

    assert immediate.schedules.get("tick").state == "active"
    assert immediate.schedules.run_now("tick").get() is None
    assert calls == [moment(immediate._clock.now())]


def test_a_call_that_no_schedule_made_has_no_slot(app: LiteQ, note: Any, ran: list[Any]) -> None:
    note("by hand")
    work(app)
    assert ran == [(("by hand",), {}, None)]


@pytest.mark.parametrize("trigger", ["@reboot", "@reboot | @hourly"])
@pytest.mark.parametrize(
    "limit", [{"start": datetime(2040, 1, 1)}, {"end": datetime(2040, 1, 1)}, {"jitter": 5}], ids=lambda one: str(*one)
)
def test_what_limits_instants_is_refused_beside_reboot(app: LiteQ, trigger: str, limit: dict[str, Any]) -> None:
    task = app.task(name="t")(lambda: None)
    words = f"@reboot has no instant that could be computed: {next(iter(limit))} cannot apply to it"
    with pytest.raises(TriggerError, match=words):
        app.periodic_task(trigger, name="p", **limit)(lambda: None)
    with pytest.raises(TriggerError, match=words):
        app.schedules.add("s", task, trigger, **limit)
    app.schedules.add("s", task, trigger)
    with pytest.raises(TriggerError, match=words):
        app.schedules.update("s", **limit)
    app.schedules.add("later", task, "@hourly", **limit)
    with pytest.raises(TriggerError, match=words):
        app.schedules.update("later", trigger=trigger)
    assert [one.name for one in app.schedules.list()] == ["later", "s"]
