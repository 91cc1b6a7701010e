"""What is known of a crash, and whom it concerns: the job that crashed, and nobody else."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fleet
import psutil
import pytest
from kinds import GET, endings, failure_of
from workshop import lines

from liteq import JobState, LiteQ
from liteq.consumer import LogSetup
from liteq.job import Attempt, Ending

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="dies by signals"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

MEGABYTE = 2**20
START_METHODS = [
    "forkserver",
    pytest.param("fork", marks=pytest.mark.slow),
    pytest.param("spawn", marks=pytest.mark.slow),
]


@pytest.fixture
def kind() -> dict[str, Any]:
    return {"worker_type": "process"}


@pytest.fixture
def consume_logging(app: LiteQ, tmp_path: Path) -> Any:
    """A consumer whose workers log INFO to a file, as those of `liteq_consumer` do."""

    @contextlib.contextmanager
    def consume(start_method: str, **options: Any) -> Iterator[Any]:
        log = LogSetup(level=logging.INFO, file=str(tmp_path / "consumer.log"))
        options = {"worker_type": "process", "app_path": "workshop:app", "start_method": start_method} | options
        consumer = app.create_consumer(log=log, **options)
        consumer.start()
        try:
            yield consumer
        finally:
            consumer.stop()

    return consume


def crash_of(result: Any) -> Attempt:
    """The first attempt, which was a crash."""
    first = result.job().attempts[0]
    assert isinstance(first, Attempt)
    assert first.ending in (Ending.CRASHED, Ending.TIMEOUT)
    return first


# ── what is known of it ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_crash_tells_what_the_attempt_logged_and_used(
    app: LiteQ, tasks: Any, consume_logging: Any, start_method: str
) -> None:
    with consume_logging(start_method):
        tasks.grow(0).get(GET)
        big = tasks.crash("kill", 100, 0.1)
        small = tasks.crash("exit")
        failure_of(big)
        failure_of(small)
    for result, details in ((big, "killed by SIGKILL"), (small, "exit code 7")):
        assert endings(result.job()) == [Ending.CRASHED] * 2
        for attempt in result.job().attempts:
            assert attempt.details == details
            words = attempt.log.splitlines()
            assert len(words) == 20
            assert words[0].endswith("INFO workshop.crash: line 11")
            assert "WARNING workshop.crash: dies by" in words[-1]
            assert attempt.started is not None
    for attempt in big.job().attempts:
        assert attempt.cpu_time is not None
        assert attempt.peak_rss is not None
        assert attempt.peak_rss > 100 * MEGABYTE
        assert 0.09 < attempt.cpu_time < 5
        assert attempt.finished - (attempt.started or 0) > 0.09
    second = small.job().attempts[1]
    assert second.cpu_time is not None
    assert second.peak_rss is not None
    assert second.peak_rss > MEGABYTE
    assert second.cpu_time < 1


@pytest.mark.parametrize(("how", "details"), [("wild pointer", "killed by SIGSEGV"), ("limit", "killed by SIGKILL")])
def test_however_it_dies(app: LiteQ, tasks: Any, consume_logging: Any, how: str, details: str) -> None:
    with consume_logging("forkserver", workers=2):
        result = tasks.crash.using(on_crash="fail")(how)
        neighbours = tasks.echo.map([(number,) for number in range(50)])
        assert neighbours.get(GET) == list(range(50))
        assert failure_of(result).error_type == "WorkerCrashed"
    attempt = crash_of(result)
    assert attempt.details == details
    assert attempt.log.endswith(f"dies by {how}")


def test_a_job_that_is_killed_at_its_timeout_leaves_the_same_behind(
    app: LiteQ, tasks: Any, consume_logging: Any
) -> None:
    with consume_logging("forkserver"):
        result = tasks.crash.using(timeout=0.2)("hang")
        assert failure_of(result).error_type == "TaskTimeout"
    attempt = crash_of(result)
    assert attempt.log.endswith("dies by hang")
    assert attempt.peak_rss is not None
    assert attempt.cpu_time is not None


def test_an_error_and_a_success_leave_nothing_behind(app: LiteQ, tasks: Any, consume_logging: Any) -> None:
    with consume_logging("forkserver"):
        failed, good = tasks.fail("no"), tasks.say("yes")
        failure_of(failed)
        good.get(GET)
    for result in (failed, good):
        assert result.job().attempts[0][8:] == (None, None, "")


def test_a_log_is_that_of_the_job_and_not_of_the_one_before_it(app: LiteQ, tasks: Any, consume_logging: Any) -> None:
    with consume_logging("forkserver"):
        tasks.say("the words of another job").get(GET)
        result = tasks.die.using(on_crash="fail")("SIGKILL", os.devnull)
        failure_of(result)
    assert crash_of(result).log == ""


def test_a_consumer_that_dies_with_its_workers_leaves_their_logs_behind(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, gate: Path, log: str, eventually: Any
) -> None:
    victim = consumers.launch(worker_type="process")
    result = tasks.log_and_wait(str(gate), log)
    eventually(lambda: lines(log))
    family = victim.family()
    victim.kill()
    eventually(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family))
    assert app.engine.recover() == 1
    attempt = crash_of(result)
    assert attempt.details == "its consumer died while it ran"
    assert attempt.log.endswith("INFO workshop: I am here")
    assert result.revoke()


# ── whom it concerns ─────────────────────────────────────────────────────────────────────────────────────


def test_a_job_that_was_not_begun_when_its_worker_died_has_not_crashed(
    app: LiteQ, tasks: Any, consume: Any, log: str, eventually: Any
) -> None:
    with consume(app):
        pid, _, _ = tasks.where().get(GET)
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        result = tasks.write(log, "ran")
        eventually(lambda: result.job().state is JobState.RUNNING)
        os.kill(pid, signal.SIGKILL)
        result.get(GET)
    assert (result.job().attempt, result.job().crashes) == (1, 0)
    assert lines(log) == ["ran"]


def test_a_job_that_has_crashed_runs_alone(
    app: LiteQ, tasks: Any, consume: Any, log: str, gate: Path, eventually: Any
) -> None:
    """Others that look tiny are never given to the worker that runs it, so its second crash finds nobody there."""
    with consume(app, workers=2):
        tasks.die_then_wait.map([(False, os.devnull, "")] * 300).get(GET)
        app.pause("default")
        poison = tasks.die_then_wait(True, log, str(gate))
        others = tasks.die_then_wait.map([(False, os.devnull, "")] * 100)
        app.resume("default")
        eventually(lambda: len(lines(log)) == 2, message="it crashes, and runs again")
        others.get(GET)
        more = tasks.die_then_wait.map([(False, os.devnull, "")] * 100)
        more.get(GET)
        os.kill(int(lines(log)[1]), signal.SIGKILL)
        gate.touch()
        poison.get(GET)
    assert endings(poison.job()) == [Ending.CRASHED, Ending.CRASHED, Ending.SUCCEEDED]
    assert {(one.job().attempt, one.job().crashes) for one in (*others, *more)} == {(1, 0)}


def test_the_log_counts_crashes_apart_from_retries(
    app: LiteQ, tasks: Any, consume: Any, log: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "liteq")
    with consume(app):
        failure_of(tasks.die("SIGKILL", log))
        tasks.die_once(log + "2").get(GET)
    told = [(event, one) for one in caplog.records if (event := getattr(one, "event", "")) and hasattr(one, "attempt")]
    attempts = [(event, one.attempt) for event, one in told if one.task == "workshop.die"]  # type: ignore[attr-defined]
    assert attempts == [("started", "1/1"), ("will retry", "1/2"), ("started", "2/2"), ("gave up", "2/2")]
    attempts = [(event, one.attempt) for event, one in told if one.task == "workshop.die_once"]  # type: ignore[attr-defined]
    assert attempts == [("started", "1/1"), ("will retry", "1/2"), ("started", "2/2"), ("succeeded", "2/2")]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks the system whether a process is still")
@pytest.mark.parametrize("start_method", START_METHODS)
def test_what_waits_behind_a_loop_in_c_goes_to_others(
    app: LiteQ, tasks: Any, consume: Any, log: str, eventually: Any, start_method: str
) -> None:
    """Its worker hears nothing, and gives nothing back; what is behind it is taken from it."""
    with consume(app, workers=2, start_method=start_method):
        tasks.pass_or_grind.map([(0, os.devnull, 0)] * 500).get(GET)
        app.pause("default")
        results = tasks.pass_or_grind.map([(number == 0, log, number) for number in range(60)])
        app.resume("default")
        eventually(lambda: len(lines(log)) == 60, message="59 end while the first still runs")
        assert "grinds" in lines(log)
        more = tasks.pass_or_grind.map([(0, log, number) for number in range(60, 90)])
        more.get(GET)
        assert results[0].revoke(terminate=True)
        eventually(lambda: results[0].state is JobState.REVOKED)
        results[1:].get(GET)
        tasks.pass_or_grind.map([(0, log, number) for number in range(90, 100)]).get(GET)
    assert sorted(int(line) for line in lines(log) if line != "grinds") == list(range(1, 100))
    assert {(one.job().attempt, one.job().crashes) for one in results[1:]} == {(1, 0)}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks the system whether a process is still")
def test_a_worker_from_which_jobs_were_taken_does_not_run_them_and_works_on(
    app: LiteQ, tasks: Any, consume: Any, log: str
) -> None:
    """The loop in C comes to its end: what was taken meanwhile is still in the worker's hands, and no longer its."""
    with consume(app, workers=2):
        tasks.pass_or_grind.map([(0, os.devnull, 0)] * 500).get(GET)
        for beginning in range(0, 200, 100):
            app.pause("default")
            numbers = range(beginning, beginning + 100)
            results = tasks.pass_or_grind.map([(1.0 if not n % 50 else 0, log, n) for n in numbers])
            app.resume("default")
            results.get(GET)
    written = [line for line in lines(log) if line.isdigit()]
    assert sorted(map(int, written)) == list(range(200))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks the system whether a process is still")
def test_a_worker_that_somebody_has_stopped_stays_so_and_runs_its_job_once(
    app: LiteQ, tasks: Any, consume: Any, log: str, gate: Path, eventually: Any
) -> None:
    with consume(app, workers=2):
        tasks.pass_or_wait.map([(None, os.devnull, "")] * 500).get(GET)
        pid, _, _ = tasks.where().get(GET)
        app.pause("default")
        results = tasks.pass_or_wait.map([(None, log, number) for number in range(60)])
        os.kill(pid, signal.SIGSTOP)
        app.resume("default")
        eventually(lambda: len(lines(log)) >= 59, message="only what it has begun, if anything, waits for it")
        assert psutil.Process(pid).status() == psutil.STATUS_STOPPED
        os.kill(pid, signal.SIGCONT)
        results.get(GET)
        tasks.where.map([()] * 10).get(GET)
    assert sorted(lines(log)) == sorted(f"ended {number}" for number in range(60))
    assert {(one.job().attempt, one.job().crashes) for one in results} == {(1, 0)}
