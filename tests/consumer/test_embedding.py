"""A consumer inside a program of one's own: its beginning and end, what it announces, and what it must not touch."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fleet
import pytest
import workshop
from kinds import GET, failure_of
from workshop import lines

from liteq import ConfigurationError, JobState, LiteQ, TaskFailed
from liteq import signals as S
from liteq.job import Job

# ── beginning and end ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("worker_type", ["thread", "process"])
def test_it_touches_no_signal_handler(app: LiteQ, tasks: Any, consume: Any, worker_type: str) -> None:
    numbers = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
    before = {number: signal.getsignal(number) for number in numbers}
    with consume(app, worker_type=worker_type):
        tasks.add(1, 1).get(GET)
        assert {number: signal.getsignal(number) for number in numbers} == before
    assert {number: signal.getsignal(number) for number in numbers} == before


def test_it_is_started_once(app: LiteQ) -> None:
    consumer = app.create_consumer()
    consumer.start()
    with pytest.raises(ConfigurationError, match="started already"):
        consumer.start()
    consumer.stop()
    consumer.stop()


def test_the_apps_own_consumer_starts_and_stops_again_and_again(app: LiteQ, tasks: Any) -> None:
    for number in range(3):
        app.start(workers=2)
        with pytest.raises(ConfigurationError, match="running already"):
            app.start()
        assert tasks.add(number, 1).get(GET) == number + 1
        app.stop()
        app.stop()
    assert app.consumers() == []


def test_closing_the_app_stops_its_consumer(app: LiteQ, tasks: Any) -> None:
    app.start()
    tasks.add(1, 1).get(GET)
    app.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "liteq-dispatcher"]
    assert tasks.add(1, 1).state is JobState.READY


def test_an_app_in_immediate_mode_has_nothing_to_consume(app: LiteQ) -> None:
    app.immediate = True
    with pytest.raises(ConfigurationError, match="immediate"):
        app.create_consumer()


def test_a_storage_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path) -> None:
    app = workshop.build(tmp_path / "missing" / "queue.db")
    with pytest.raises(OSError, match="does not exist"):
        app.create_consumer().run()
    with pytest.raises(OSError, match="does not exist"):
        app.start()


@pytest.mark.parametrize("worker_type", ["thread", "process"])
def test_jobs_in_memory_are_consumed_too(consume: Any, worker_type: str) -> None:
    app = workshop.build(":memory:")
    tasks = workshop.tasks_of(app)
    with consume(app, workers=2, worker_type=worker_type):
        assert tasks.echo.map(range(100)).get(GET) == list(range(100))
        assert tasks.fail_until.using(retries=2, retry_delay=0.02)(3).get(GET) == 3
        tasks.add.using(delay=0.05)(1, 1).get(GET)
    app.close()


def test_a_task_waits_for_another_ones_result(app: LiteQ, consume: Any) -> None:
    add = app.tasks["workshop.add"]

    @app.task
    def outer(number: int) -> Any:
        return add(number, 1).get(GET)

    with consume(app, workers=2):
        assert outer(1).get(GET) == 2


def test_hooks_of_threads_run_in_the_program_once(app: LiteQ, tasks: Any, consume: Any, caplog: Any) -> None:
    ran: list[str] = []
    app.on_startup()(lambda: ran.append("startup"))
    app.on_shutdown()(lambda: ran.append("shutdown"))

    @app.on_startup()
    def broken() -> None:
        raise ValueError("a hook with a bug")

    with consume(app, workers=3):
        assert tasks.add(1, 1).get(GET) == 2
        assert ran == ["startup"]
    assert ran == ["startup", "shutdown"]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_shutdown_hooks_run_in_workers_that_are_replaced(app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
    with consume(app, worker_type="process", max_tasks=1):
        first = tasks.say_goodbye_in(log).get(GET)
        second = tasks.say_goodbye_in(log).get(GET)
    assert first != second
    assert sorted(lines(log)) == sorted([str(first), str(second)])


# ── announcements ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def heard(app: LiteQ) -> list[tuple[str, Job, Any]]:
    heard: list[tuple[str, Job, Any]] = []
    app.signal()(lambda *said: heard.append(said))
    return heard


def names(heard: list[tuple[str, Job, Any]], result: Any) -> list[str]:
    """What the consumer announced of a job; if it was claimed, given back unbegun and claimed again, that is one start.

    ENQUEUED is the caller's word, and a consumer may be quicker with its own.
    """
    said = [name for name, job, _ in heard if job.id == result.id and name != S.ENQUEUED]
    return [name for number, name in enumerate(said) if name != S.EXECUTING or said[number - 1 : number] != [name]]


def test_what_happens_to_a_job_is_announced_in_order(
    app: LiteQ,
    tasks: Any,
    consume: Any,
    heard: list[tuple[str, Job, Any]],
    path: Path,
    log: str,
    gate: Path,
    eventually: Any,
) -> None:
    gate.touch()
    wiser = workshop.build(path, wise=True)
    with consume(app, worker_type="process"):
        good = tasks.add(1, 1)
        retried = tasks.fail_until.using(retries=1)(2)
        failed = tasks.fail("no")
        cancelled = tasks.direct("cancel", None)
        snoozed = tasks.snooze_until(str(gate) + " that opens later", 0.01)
        expired = tasks.add.using(expires=-1)(1, 1)
        crashed = tasks.die_once(log)
        unknown = workshop.tasks_of(wiser).news()
        good.get(GET), retried.get(GET), failure_of(failed), failure_of(cancelled), failure_of(expired)
        assert crashed.get(GET) == "alive"
        eventually(lambda: unknown.state is JobState.BLOCKED)
        eventually(lambda: S.SNOOZED in names(heard, snoozed))
        Path(str(gate) + " that opens later").touch()
        snoozed.get(GET)
    wiser.close()
    assert names(heard, good) == [S.EXECUTING, S.COMPLETE]
    assert names(heard, retried) == [S.EXECUTING, S.RETRYING, S.EXECUTING, S.COMPLETE]
    assert names(heard, failed) == [S.EXECUTING, S.ERROR]
    assert names(heard, cancelled) == [S.EXECUTING, S.CANCELED]
    assert names(heard, expired) == [S.EXPIRED]
    assert names(heard, crashed) == [S.EXECUTING, S.CRASHED, S.RETRYING, S.EXECUTING, S.COMPLETE]
    assert names(heard, unknown) == [S.EXECUTING, S.BLOCKED]
    assert names(heard, snoozed)[-2:] == [S.EXECUTING, S.COMPLETE]
    assert [name for name, *_ in heard].count(S.ENQUEUED) == 7, "each but the one from another app"
    [(_, job, error)] = [said for said in heard if said[0] == S.ERROR]
    assert (job.state, error.error_type, error.message) == (JobState.FAILED, "ValueError", "no")
    [(_, job, error)] = [said for said in heard if said[0] == S.CRASHED]
    assert "SIGKILL" in error.message


def test_one_that_is_stopped_has_run_whatever_else_is_settled_in_that_moment(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    with consume(app, workers=4):
        for number in range(30):
            result = tasks.await_at(str(gate), log)
            eventually(lambda number=number: len(lines(log)) == number + 1)
            others = [tasks.add(number, 1) for _ in range(3)]
            result.revoke(terminate=True)
            failure_of(result)
            assert result.job().reason == "revoked while it ran"
            assert [other.get(GET) for other in others] == [number + 1] * 3


def test_revoking_and_interrupting_are_announced(
    app: LiteQ, tasks: Any, consume: Any, heard: list[tuple[str, Job, Any]], gate: Path, log: str, eventually: Any
) -> None:
    with consume(app, workers=2) as consumer:
        revoked, interrupted = tasks.wait(str(gate), log, 1), tasks.wait(str(gate), log, 2)
        eventually(lambda: len(lines(log)) == 2)
        revoked.revoke(terminate=True)
        failure_of(revoked)
        consumer.stop(at_once=True)
    assert names(heard, revoked) == [S.EXECUTING, S.REVOKED]
    assert names(heard, interrupted) == [S.EXECUTING, S.INTERRUPTED]


def test_a_slow_receiver_delays_no_job_and_is_waited_for_at_the_end(app: LiteQ, tasks: Any, consume: Any) -> None:
    go_on = threading.Event()
    heard: list[str] = []

    @app.signal(S.COMPLETE)
    def slow(name: str, job: Job, error: Any) -> None:
        assert go_on.wait(GET)
        heard.append(job.id)

    with consume(app):
        results = tasks.add.map([(number, 1) for number in range(20)])
        assert results.get(GET) == list(range(1, 21))
        assert heard == []
        go_on.set()
    assert heard == [result.id for result in results]


@pytest.mark.parametrize("error", [ValueError("a bug"), SystemExit(1), KeyboardInterrupt()])
def test_a_failing_receiver_silences_nobody(app: LiteQ, tasks: Any, consume: Any, caplog: Any, error: Any) -> None:
    heard: list[str] = []

    @app.signal(S.COMPLETE)
    def fail(name: str, job: Job, _: Any) -> None:
        raise error

    app.signal(S.COMPLETE)(lambda name, job, _: heard.append(job.id))
    with consume(app):
        results = tasks.add.map([(1, 1), (2, 2)])
        results.get(GET)
    assert heard == [result.id for result in results]
    assert "receiver" in caplog.text


# ── logs ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "liteq"):
        yield caplog


def levels_of(logged: pytest.LogCaptureFixture, result: Any) -> list[tuple[str, str]]:
    return [(one.levelname, one.event) for one in logged.records if result.id in one.getMessage()]  # type: ignore[attr-defined]


def test_each_change_is_one_line(app: LiteQ, tasks: Any, consume: Any, logged: pytest.LogCaptureFixture) -> None:
    with consume(app):
        good, bad = tasks.add(1, 1), tasks.fail.using(retries=1)("no luck")
        good.get(GET)
        failure_of(bad)
    assert levels_of(logged, good) == [("INFO", "started"), ("INFO", "succeeded")]
    assert levels_of(logged, bad) == [
        ("INFO", "started"),
        ("WARNING", "will retry"),
        ("INFO", "started"),
        ("ERROR", "gave up"),
    ]
    [final] = [one for one in logged.records if one.levelname == "ERROR"]
    assert "raise ValueError(message)" in final.getMessage()
    assert "attempt=2/2" in final.getMessage()


def test_arguments_are_not_logged(app: LiteQ, tasks: Any, consume: Any, logged: pytest.LogCaptureFixture) -> None:
    with consume(app):
        tasks.echo("a secret").get(GET)
    assert "a secret" not in logged.text


@pytest.mark.slow
def test_worker_processes_log_where_the_consumer_does(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, eventually: Any
) -> None:
    consumer = consumers.launch(worker_type="process")
    tasks.say("from a worker").get(GET)
    eventually(lambda: consumers.logged("from a worker"))
    assert "INFO:workshop" in consumers.logged("from a worker")[0]
    assert consumer.stop() == 0


# ── the interpreter's thread switching ───────────────────────────────────────────────────────────────────


def test_jobs_are_settled_beside_a_thread_that_never_rests(app: LiteQ, tasks: Any, consume: Any) -> None:
    before = sys.getswitchinterval()
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            pass

    spinner = threading.Thread(target=spin)
    with consume(app):
        assert sys.getswitchinterval() <= 0.001
        spinner.start()
        began = time.monotonic()
        for number in range(10):
            tasks.add(number, 1).get(GET)
        took = time.monotonic() - began
        stop.set()
    spinner.join()
    sys.setswitchinterval(before)
    assert took < 30


def test_the_environment_is_as_it_was(app: LiteQ, tasks: Any, consume: Any) -> None:
    before = dict(os.environ)
    for _ in range(5):
        with consume(app, worker_type="process"), consume(app, worker_type="process", max_tasks=1):
            tasks.add.map([(1, 1)] * 10).get(GET)
    assert dict(os.environ) == before


def test_a_file_is_not_closed_under_a_consumer(app: LiteQ, eventually: Any) -> None:
    """Its lock there says that it lives: without it others would run its jobs a second time."""

    @app.task
    def closes() -> None:
        app.close()

    with app.run_in_background() as consumer:
        result = closes()
        with pytest.raises(TaskFailed, match="a consumer of this app runs in this process: stop it before close"):
            result.get(30)
        with pytest.raises(ConfigurationError, match="stop it before close"):
            app.close()
        assert [one.alive for one in app.consumers()] == [True]
        assert consumer is not None
    app.close()
    app.start()
    app.close()  # stops what start() started
    assert app.consumers() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("worker_type", ["thread", "process"])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_that_returns_from_a_task_ends_quietly(app: LiteQ, worker_type: str, tmp_path: Path) -> None:
    said = tmp_path / "said"

    @app.task(name="forks")
    def forks(path: str) -> int:
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), 2)
            return -1
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    with app.run_in_background(worker_type=worker_type, start_method="fork" if worker_type == "process" else None):
        code = forks(str(said)).get(30)
    assert code == (0 if worker_type == "thread" else 1)
    assert said.read_text() == ""
    assert app.counts()["succeeded"] == 1


@pytest.mark.parametrize("worker_type", ["thread", "process", "asyncio"])
def test_more_workers_than_have_room_are_refused(app: LiteQ, worker_type: str) -> None:
    with pytest.raises(ConfigurationError, match="workers must be at most 20000, not 20001"):
        app.create_consumer(workers=20_001, worker_type=worker_type)
