"""Locks and limits as a program uses them: what is refused at once, who gets in, and who is told why not."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from workbench import PATIENCE, Program, claim, run, work

from liteq import (
    ConfigurationError,
    JobState,
    LiteQ,
    LockReentered,
    LockTimeout,
    ResultTimeout,
    TaskFailed,
    TaskLocked,
)
from liteq.clock import ManualClock
from liteq.execution import close_loop
from liteq.locks import Lock


def nothing(user: str = "", order: Any = None) -> None:
    return None


# ── definitions ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_running": 0}, ConfigurationError, "max_running must be an integer from 1"),
        ({"max_running": -1}, ConfigurationError, "max_running"),
        ({"max_running": True}, TypeError, "max_running takes an integer, not bool"),
        ({"max_running": "2"}, TypeError, "max_running takes an integer, not str"),
        ({"max_running_key": "{user}"}, ConfigurationError, "needs that option"),
        ({"max_running": 1, "max_running_key": "{nobody}"}, ConfigurationError, "'nobody', which is no argument"),
        ({"max_running": 1, "max_running_key": "all"}, ConfigurationError, "names no argument"),
        ({"max_running": 1, "max_running_key": "{}"}, ConfigurationError, "must name arguments"),
        ({"max_running": 1, "max_running_key": "{0}"}, ConfigurationError, "must name arguments"),
        ({"max_running": 1, "max_running_key": "{user"}, ConfigurationError, "no format string"),
        ({"max_running": 1, "max_running_key": 7}, TypeError, "max_running_key takes a string"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_at_the_definition(
    app: LiteQ, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        app.task(**options)(nothing)
    assert app.tasks == {}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"name": ""}, ConfigurationError, "name of a lock"),
        ({"name": 7}, TypeError, "name of a lock"),
        ({"name": "x", "slots": 0}, ConfigurationError, "slots must be an integer from 1"),
        ({"name": "x", "slots": "2"}, TypeError, "slots takes an integer"),
        ({"name": "x", "wait": 1}, TypeError, "wait takes True or False"),
        ({"name": "x", "timeout": 5}, ConfigurationError, "needs wait=True"),
        ({"name": "x", "wait": True, "timeout": -1}, ConfigurationError, "timeout"),
        ({"name": "x", "wait": True, "timeout": "5"}, TypeError, "timeout"),
    ],
)
def test_a_lock_that_makes_no_sense_is_refused_where_it_is_written(
    app: LiteQ, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        app.lock_task(**arguments)


def test_a_lock_goes_below_the_task(app: LiteQ) -> None:
    task = app.task(nothing)
    with pytest.raises(TypeError, match=r"goes below @app\.task"):
        app.lock_task("x")(task)
    with pytest.raises(TypeError, match="takes a function, not type"):
        app.lock_task("x")(Lock)


def test_a_locked_function_keeps_its_name_and_signature(app: LiteQ) -> None:
    task = app.task(app.lock_task("x", wait=True)(nothing))
    assert task.name.endswith("test_limits.nothing")
    with pytest.raises(TypeError, match="unexpected keyword argument 'nobody'"):
        task(nobody=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "error",
    [TaskLocked("x", "held"), LockTimeout("x", 2.0), LockReentered("x")],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_locks_travel_between_processes(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.name) == (type(error), str(error), "x")


# ── max_running ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_so_many_run_at_once_and_the_rest_in_their_order(app: LiteQ) -> None:
    task = app.task(max_running=2)(nothing)
    results = task.map([()] * 5)
    order = []
    while jobs := claim(app):
        assert len(jobs) <= 2
        order += [job.seq for job in jobs]
        for job in jobs:
            run(app, job)
    assert order == sorted(order) and len(order) == 5
    assert results.progress() == (5, 5)
    assert {job.attempt for job in app.jobs()} == {1}


def test_a_job_that_waits_says_for_what(app: LiteQ) -> None:
    task = app.task(max_running=1, name="mail")(nothing)
    task()
    waiting = task()
    claim(app)
    assert waiting.state is JobState.BLOCKED
    assert waiting.job().reason == "waits for limit mail"


def test_each_key_has_its_own_limit(app: LiteQ) -> None:
    task = app.task(max_running=1, max_running_key="{user}", name="mail")(nothing)
    for user in ("a", "b", "a", "c"):
        task(user)
    assert [job.seq for job in claim(app)] == [1, 2, 4]
    assert app.jobs(state="blocked")[0].reason == "waits for limit mail[a]"
    assert [(one.key, len(one.holders), one.waiting) for one in app.limits.list()] == [
        ("a", 1, 1),
        ("b", 1, 0),
        ("c", 1, 0),
    ]


def test_a_key_may_come_from_a_default_a_keyword_or_inside_of_an_argument(app: LiteQ) -> None:
    by_default = app.task(max_running=1, max_running_key="{user}", name="one")(nothing)
    inside = app.task(max_running=1, max_running_key="{order[id]}", name="two")(nothing)

    @app.task(max_running=1, max_running_key="{tenant}", name="three")
    def anything(**kwargs: Any) -> None:
        return None

    by_default()
    inside(order={"id": 7})
    anything(tenant="t" * 500)
    claim(app)
    keys = {one.task: one.key for one in app.limits.list()}
    assert keys["two"] == "7"
    assert keys["three"] is not None and len(keys["three"]) == 64, "long keys are stored by their hash"


def test_a_key_that_cannot_be_filled_in_is_an_error_at_the_call(app: LiteQ) -> None:
    task = app.task(max_running=1, max_running_key="{order[id]}", name="mail")(nothing)
    with pytest.raises(ConfigurationError, match=r"mail was not enqueued: its max_running_key '\{order\[id\]\}'"):
        task(order={})
    assert app.counts()[JobState.READY] == 0


def test_a_key_does_not_get_lost_beside_what_a_call_overrides(app: LiteQ) -> None:
    task = app.task(max_running=1, max_running_key="{user}", retries=1, name="mail")(nothing)
    task.using(timeout=5)("{braces}")
    [job] = claim(app)
    assert json.loads(job.options or "") == {"timeout": 5, "limit_key": "{braces}"}
    assert app.engine.options(job).timeout == 5  # type: ignore[union-attr]
    assert app.limits.list()[0].key == "{braces}"


def test_jobs_under_an_earlier_name_count_too(app: LiteQ) -> None:
    task = app.task(max_running=1, name="new", aliases=("old",))(nothing)
    engine = app.engine
    engine.storage.add([task.job(engine, (), {})._replace(task="old"), task.job(engine, (), {})])
    assert [job.task for job in claim(app)] == ["old"]


def test_a_failed_attempt_frees_the_slot_until_its_retry(app: LiteQ, clock: ManualClock) -> None:
    @app.task(max_running=1, retries=1, retry_delay=60)
    def fail() -> None:
        raise ValueError

    first, second = fail(), fail()
    run(app, claim(app)[0])
    assert [job.seq for job in claim(app)] == [2]
    clock.sleep(60)
    assert claim(app) == [] and first.state is JobState.BLOCKED
    assert second.state is JobState.RUNNING


# ── limits at run time ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_limit_is_seen_and_changed_at_run_time(app: LiteQ) -> None:
    task = app.task(max_running=1, name="mail")(nothing)
    [limit] = app.limits.list()
    assert (limit.task, limit.key, limit.max_running, limit.declared) == ("mail", None, 1, 1)
    task.map([()] * 5)
    assert len(claim(app)) == 1
    app.limits.set(task, 3)
    assert len(claim(app)) == 2
    [limit] = app.limits.list()
    assert (limit.max_running, limit.declared, len(limit.holders), limit.waiting) == (3, 1, 3, 2)
    assert {holder.task for holder in limit.holders} == {"mail"}
    app.limits.reset("mail")
    assert app.limits.list()[0].max_running == 1
    assert claim(app) == []


def test_a_changed_limit_is_seen_where_nothing_runs(app: LiteQ) -> None:
    app.task(max_running=1, name="mail")(nothing)
    app.limits.set("mail", 9)
    assert app.limits.list()[0].max_running == 9


@pytest.mark.parametrize("most", [0, -1, True, "3"])
def test_a_limit_is_not_set_to_nonsense(app: LiteQ, most: Any) -> None:
    app.task(max_running=1, name="mail")(nothing)
    with pytest.raises((ConfigurationError, TypeError), match="max_running"):
        app.limits.set("mail", most)


def test_only_a_declared_limit_can_be_set(app: LiteQ) -> None:
    task = app.task(nothing)
    for unlimited in (task, "unknown"):
        with pytest.raises(ConfigurationError, match="not declared with max_running"):
            app.limits.set(unlimited, 3)


# ── locks of callers ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["app", "on_file"])
def anywhere(request: pytest.FixtureRequest) -> LiteQ:
    found: LiteQ = request.getfixturevalue(request.param)
    return found


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def error_of(work: Callable[[], Any]) -> Exception | None:
    """What another thread is told that does this."""
    caught: list[Exception | None] = []

    def attempt() -> None:
        try:
            work()
            caught.append(None)
        except Exception as error:  # noqa: BLE001 - handed to the test
            caught.append(error)

    in_thread(attempt).join(PATIENCE)
    return caught[0]


def test_a_lock_is_held_by_one_and_given_back(anywhere: LiteQ) -> None:
    lock = anywhere.lock_task("x")
    with lock:
        assert anywhere.is_locked("x")
        error = error_of(lock.__enter__)
        assert isinstance(error, TaskLocked) and "'x' is held by others" in str(error)
    assert not anywhere.is_locked("x")
    with lock:
        pass


def test_a_lock_is_given_back_when_the_block_raises(anywhere: LiteQ) -> None:
    with pytest.raises(ZeroDivisionError), anywhere.lock_task("x"):
        raise ZeroDivisionError
    assert not anywhere.is_locked("x")


def test_a_caller_waits_for_a_lock(anywhere: LiteQ, eventually: Any) -> None:
    lock = anywhere.lock_task("x", wait=True)
    got = threading.Event()

    def take() -> None:
        with lock:
            got.set()

    with lock:
        thread = in_thread(take)
        eventually(lambda: anywhere.locks()[0].waiting == 1)
        assert not got.is_set()
    assert got.wait(PATIENCE)
    thread.join(PATIENCE)
    assert anywhere.locks() == []


def test_a_caller_does_not_wait_for_ever(anywhere: LiteQ) -> None:
    with anywhere.lock_task("x"):
        error = error_of(anywhere.lock_task("x", wait=True, timeout=0.05).__enter__)
        assert isinstance(error, LockTimeout) and isinstance(error, TimeoutError)
        assert "'x' was still held by others after 0.05 s" in str(error)
        assert anywhere.locks()[0].waiting == 0


def test_slots_let_so_many_in(anywhere: LiteQ) -> None:
    lock = anywhere.lock_task("x", slots=2)
    with lock:
        assert not anywhere.is_locked("x")
        assert error_of(lambda: lock.__enter__() and lock.__exit__()) is None
        assert anywhere.locks()[0].slots == 2


def test_whoever_holds_a_lock_cannot_take_it_again(anywhere: LiteQ) -> None:
    with anywhere.lock_task("x"):
        for again in (anywhere.lock_task("x"), anywhere.lock_task("x", wait=True), anywhere.lock_task("x", slots=5)):
            with pytest.raises(LockReentered, match="'x' is held already by this very"), again:
                pass
        with anywhere.lock_task("y"):
            pass


def test_only_the_holder_leaves_a_lock(anywhere: LiteQ) -> None:
    lock = anywhere.lock_task("x")
    with lock:
        assert isinstance(error_of(lock.__exit__), LookupError)
        assert anywhere.is_locked("x")


def test_a_lock_decorates_any_function(anywhere: LiteQ) -> None:
    @anywhere.lock_task("x")
    def inside(value: int) -> tuple[int, bool]:
        return value, anywhere.is_locked("x")

    assert inside(3) == (3, True)
    assert not anywhere.is_locked("x")


def test_the_state_of_a_lock_tells_who_holds_it(on_file: LiteQ) -> None:
    with on_file.lock_task("x"):
        [state] = on_file.locks()
        [holder] = state.holders
        assert (state.name, state.slots, state.waiting) == ("x", 1, 0)
        assert holder.process is not None and {"host", "pid", "name"} <= set(holder.process)
        assert holder.since.tzinfo is not None
    assert on_file.consumers() == [], "a process that takes locks is no consumer"


def test_a_lock_can_be_taken_away(anywhere: LiteQ) -> None:
    with anywhere.lock_task("x"), anywhere.lock_task("y"):
        assert anywhere.flush_locks("x", "none") == {"x"}
        assert not anywhere.is_locked("x") and anywhere.is_locked("y")
        assert error_of(lambda: anywhere.lock_task("x").__enter__().__exit__()) is None
        assert anywhere.flush_locks() == {"y"}
    assert anywhere.flush_locks() == set()


def test_closing_the_app_gives_everything_back(on_file: LiteQ) -> None:
    lock = on_file.lock_task("x")
    lock.__enter__()
    on_file.close()
    assert not on_file.is_locked("x")
    with on_file.lock_task("x"):
        assert on_file.is_locked("x"), "the next use opens everything anew"
    assert on_file.storage.owners() != []


def test_equal_names_are_one_lock_in_every_thread(on_file: LiteQ) -> None:
    inside, most, guard = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with on_file.lock_task("x", wait=True, slots=2):
                with guard:
                    inside += 1
                    most = max(most, inside)
                with guard:
                    inside -= 1

    threads = [in_thread(work) for _ in range(6)]
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    assert most <= 2
    assert on_file.locks() == []


# ── coroutines ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_coroutines_wait_for_a_lock_while_the_loop_goes_on(on_file: LiteQ) -> None:
    lock = on_file.lock_task("x", wait=True)
    inside: list[int] = []

    async def take(number: int) -> None:
        async with lock:
            inside.append(number)
            assert len(inside) == 1
            await asyncio.sleep(0.001)
            inside.remove(number)

    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(take(number) for number in range(10)))
            async with lock:
                with pytest.raises(LockReentered):
                    async with lock:
                        pass

    asyncio.run(main())
    assert on_file.locks() == []


def test_a_cancelled_coroutine_leaves_the_line(on_file: LiteQ) -> None:
    lock = on_file.lock_task("x", wait=True)

    async def take() -> None:
        async with lock:
            pytest.fail("it is held by another")

    async def main() -> None:
        async with lock:
            waiting = asyncio.create_task(take())
            while not on_file.locks()[0].waiting:
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert on_file.locks()[0].waiting == 0

    asyncio.run(main())
    assert not on_file.is_locked("x")


def test_a_lock_decorates_a_coroutine_function(on_file: LiteQ) -> None:
    @on_file.lock_task("x")
    async def inside() -> bool:
        return on_file.is_locked("x")

    assert asyncio.run(inside())
    assert not on_file.is_locked("x")


# ── locks of jobs ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_that_waits_for_its_lock_is_blocked_and_not_begun(app: LiteQ) -> None:
    task = app.task(app.lock_task("x", wait=True)(nothing))
    with app.lock_task("x"):
        result = task()
        assert work(app) == 0
        assert (result.state, result.job().reason) == (JobState.BLOCKED, "waits for lock x")
        assert app.locks()[0].waiting == 1
    assert work(app) == 1
    assert (result.state, result.job().attempt) == (JobState.SUCCEEDED, 1)


def test_jobs_come_to_their_lock_one_after_another(app: LiteQ) -> None:
    order: list[int] = []

    @app.task
    @app.lock_task("x", wait=True)
    def note(number: int) -> bool:
        order.append(number)
        return app.is_locked("x")

    results = note.map(range(5))
    while jobs := claim(app):
        assert len(jobs) == 1
        assert app.locks()[0].holders[0].job_id == jobs[0].id
        run(app, jobs[0])
    assert order == list(range(5))
    assert results.get(0) == [True] * 5
    assert app.locks() == []


def test_a_job_that_does_not_wait_fails_and_is_retried_as_its_task_says(app: LiteQ) -> None:
    @app.task(retries=1)
    @app.lock_task("x")
    def note() -> None:
        return None

    result = note()
    with app.lock_task("x"):
        assert work(app) == 2
    with pytest.raises(TaskFailed, match="TaskLocked: the lock 'x' is held by others"):
        result.get(0)
    assert note().revoke()


def test_a_job_may_need_several_locks(app: LiteQ) -> None:
    task = app.task(app.lock_task("x", wait=True)(app.lock_task("y", wait=True)(nothing)))
    for name in ("x", "y"):
        with app.lock_task(name):
            result = task()
            assert work(app) == 0
            assert result.job().reason == f"waits for lock {name}"
        assert work(app) == 1
    assert app.locks() == []


def test_a_lock_that_a_job_takes_by_with_is_the_jobs(app: LiteQ) -> None:
    @app.task
    def inside() -> list[str | None]:
        with app.lock_task("x"):
            return [holder.job_id for holder in app.locks()[0].holders]

    result = inside()
    work(app)
    assert result.get(0) == [result.id]
    assert app.locks() == []


@pytest.mark.parametrize("decorated", [True, False])
def test_a_job_cannot_take_its_lock_again(app: LiteQ, decorated: bool) -> None:
    lock = app.lock_task("x", wait=True)

    def again() -> None:
        with app.lock_task("x", wait=True):
            pytest.fail("it would have waited for itself")

    def with_it() -> None:
        with lock:
            again()

    task = app.task(name="again")(lock(again) if decorated else with_it)
    result = task()
    work(app)
    with pytest.raises(TaskFailed, match="LockReentered: the lock 'x' is held already by this very job"):
        result.get(0)
    assert app.locks() == []


def test_a_locked_function_that_calls_itself_is_told(app: LiteQ) -> None:
    @app.lock_task("x", wait=True)
    def recursive(depth: int) -> None:
        recursive(depth + 1)

    task = app.task(name="recursive")(recursive)
    result = task(0)
    work(app)
    with pytest.raises(TaskFailed, match="LockReentered"):
        result.get(0)
    with pytest.raises(LockReentered):
        task.call_local(0)


def test_an_async_task_has_its_lock_by_its_claim(app: LiteQ) -> None:
    @app.task
    @app.lock_task("x", wait=True)
    async def locked() -> bool:
        return app.is_locked("x")

    result = locked()
    work(app)
    close_loop()
    assert result.get(0) is True
    assert app.locks() == []


def test_a_task_called_locally_takes_its_lock_as_any_caller(app: LiteQ) -> None:
    @app.task
    @app.lock_task("x")
    def locked() -> bool:
        return app.is_locked("x")

    assert locked.call_local() is True
    assert not app.is_locked("x")


# ── immediate mode ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_in_immediate_mode_a_job_runs_when_the_caller_gives_its_lock_back(immediate: LiteQ) -> None:
    task = immediate.task(immediate.lock_task("x", wait=True)(nothing))
    with immediate.lock_task("x"):
        result = task()
        assert result.state is JobState.BLOCKED
        with pytest.raises(ResultTimeout):
            result.get(0)
    assert result.state is JobState.SUCCEEDED


def test_in_immediate_mode_a_limit_holds_for_jobs_inside_of_jobs(immediate: LiteQ) -> None:
    seen: list[str] = []

    @immediate.task(max_running=1)
    def outer(again: bool) -> None:
        if again:
            seen.append(str(outer(False).state))

    outer(True)
    assert seen == ["blocked"]
    assert immediate.counts()[JobState.SUCCEEDED] == 2


# ── other processes ──────────────────────────────────────────────────────────────────────────────────────────────────

HOLDER = """
    from liteq import LiteQ
    app = LiteQ(sys.argv[1], durability="normal")
    with app.lock_task("x", wait=True):
        say("got it")
        hear()
    say("gave it back")
"""


def test_a_lock_holds_over_processes(on_file: LiteQ) -> None:
    with Program(HOLDER, on_file.storage.location) as other:
        assert other.hear() == "got it"
        assert on_file.is_locked("x")
        with pytest.raises(TaskLocked), on_file.lock_task("x"):
            pass
        other.tell()
        assert other.hear() == "gave it back"
        with on_file.lock_task("x"):
            pass


def test_the_lock_of_a_killed_process_is_free_at_once(on_file: LiteQ) -> None:
    with Program(HOLDER, on_file.storage.location) as other:
        assert other.hear() == "got it"
        other.process.kill()
        other.finish()
    assert not on_file.is_locked("x")
    with on_file.lock_task("x"):
        assert len(on_file.locks()[0].holders) == 1


def test_a_caller_who_waits_for_a_killed_process_gets_the_lock(on_file: LiteQ, eventually: Any) -> None:
    got = threading.Event()

    def take() -> None:
        with on_file.lock_task("x", wait=True):
            got.set()

    with Program(HOLDER, on_file.storage.location) as other:
        assert other.hear() == "got it"
        thread = in_thread(take)
        eventually(lambda: on_file.locks()[0].waiting == 1)
        other.process.kill()
        assert got.wait(3)
        thread.join(PATIENCE)


def test_a_process_that_waits_gets_the_lock_when_it_is_given_back(on_file: LiteQ, eventually: Any) -> None:
    with on_file.lock_task("x"):
        other = Program(HOLDER, on_file.storage.location)
        eventually(lambda: on_file.locks()[0].waiting == 1)
    with other:
        assert other.hear() == "got it"
        other.tell()
        assert other.hear() == "gave it back"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_give_its_parents_lock_back(on_file: LiteQ) -> None:
    lock = on_file.lock_task("x")
    with lock:
        child = os.fork()
        if child == 0:
            try:
                lock.__exit__()  # it leaves the block too
                with pytest.raises(TaskLocked), lock:
                    pass
                with on_file.lock_task("y"):
                    os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert on_file.is_locked("x")
        assert not on_file.is_locked("y"), "the child has died with it"
    assert not on_file.is_locked("x")


def test_short_programs_that_take_a_lock_leave_nothing_behind(on_file: LiteQ, directory: Path) -> None:
    for _ in range(3):
        with Program(HOLDER, on_file.storage.location) as other:
            other.tell()
            assert [other.hear(), other.hear()] == ["got it", "gave it back"]
            assert other.finish() == 0
    with on_file.lock_task("x"):
        assert len(on_file.storage.owners()) == 1
