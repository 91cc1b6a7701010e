"""What is particular to worker processes: how they die, and that nothing is lost, doubled or left behind then."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import fleet
import psutil
import pytest
from kinds import GET, GRACE, endings, failure_of
from workshop import lines

from liteq import ConfigurationError, JobState, LiteQ, TaskRevoked
from liteq.consumer import scheduler
from liteq.job import Ending

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="dies by signals"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

#: Seconds within which a death is noticed; it takes milliseconds, and what is not noticed goes on for a minute.
NOTICED = 30.0

START_METHODS = [
    "forkserver",
    pytest.param("fork", marks=pytest.mark.slow),
    pytest.param("spawn", marks=pytest.mark.slow),
]


@pytest.fixture
def kind() -> dict[str, Any]:
    return {"worker_type": "process"}


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def train(result: Any) -> None:
    """Let the consumer learn that a task is tiny, so that it sends many of its jobs in one message."""
    result.get(GET)


# ── deaths ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_dead_workers_job_runs_again(app: LiteQ, tasks: Any, consume: Any, log: str, start_method: str) -> None:
    with consume(app, start_method=start_method):
        began = time.monotonic()
        result = tasks.die_once(log)
        assert result.get(GET) == "alive"
        assert time.monotonic() - began < NOTICED
    crash, success = result.job().attempts
    assert (crash.ending, crash.details) == (Ending.CRASHED, "killed by SIGKILL")
    assert success.ending is Ending.SUCCEEDED
    assert lines(log) == ["here", "here"]


@pytest.mark.parametrize(
    ("how", "details"), [("SIGKILL", "killed by SIGKILL"), ("SIGSEGV", "killed by SIGSEGV"), ("exit", "exit code 7")]
)
def test_a_job_that_kills_its_workers_fails_with_its_history(
    app: LiteQ, tasks: Any, consume: Any, log: str, how: str, details: str
) -> None:
    with consume(app):
        result = tasks.die(how, log)
        error = failure_of(result)
        assert tasks.add(1, 1).get(GET) == 2
    assert error.error_type == "WorkerCrashed"
    assert details in error.message
    assert [(one.ending, one.details) for one in result.job().attempts] == [(Ending.CRASHED, details)] * 2
    assert lines(log) == ["died", "died"]


def test_a_crash_may_be_final(app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
    with consume(app):
        result = tasks.die.using(on_crash="fail", max_crashes=9)("SIGKILL", log)
        failure_of(result)
    assert lines(log) == ["died"]
    assert result.job().crashes == 1


def test_a_crash_spends_no_retry(app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
    with consume(app):
        result = tasks.die_once.using(retries=0)(log)
        assert result.get(GET) == "alive"
    assert result.job().crashes == 1


def test_a_crash_concerns_no_other_job(app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
    with consume(app, workers=2):
        train(tasks.die_if.map([(False, os.devnull, "") for _ in range(300)]))
        app.pause("default")
        results = tasks.die_if.map([(number == 7, log, number) for number in range(100)])
        app.resume("default")
        results.get(GET)
    words = lines(log)
    assert words.count("died") == 1
    assert sorted(int(word) for word in words if word != "died") == list(range(100))
    for number, result in enumerate(results):
        job = result.job()
        assert (job.attempt, job.crashes) == ((2, 1) if number == 7 else (1, 0))


def test_an_idle_worker_that_is_killed_is_replaced(app: LiteQ, tasks: Any, consume: Any, eventually: Any) -> None:
    with consume(app):
        pid, _, _ = tasks.where().get(GET)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: is_gone(pid))
        other, _, _ = tasks.where().get(GET)
    assert other != pid


@pytest.mark.parametrize("start_method", START_METHODS)
@pytest.mark.parametrize("how", ["kill", "exit"])
def test_a_child_that_holds_the_workers_sockets_does_not_hide_its_death(
    app: LiteQ, tasks: Any, consume: Any, log: str, start_method: str, how: str, eventually: Any
) -> None:
    with consume(app, start_method=start_method):
        result = tasks.leave_a_child.using(on_crash="fail")(log, how)
        began = time.monotonic()
        error = failure_of(result)
        assert time.monotonic() - began < NOTICED
        assert tasks.add(1, 1).get(GET) == 2
    assert error.error_type == "WorkerCrashed"
    [child] = map(int, lines(log))
    eventually(lambda: is_gone(child), message="the child goes with its worker")


def test_a_worker_that_closes_its_sockets_is_replaced(app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
    with consume(app):
        result = tasks.hang_up(log)
        assert result.get(GET) == "hung up only once"
    assert endings(result.job()) == [Ending.CRASHED, Ending.SUCCEEDED]


def test_a_task_that_is_stopped_in_the_middle_of_a_word_garbles_nothing(app: LiteQ, tasks: Any, consume: Any) -> None:
    with consume(app):
        assert failure_of(tasks.babble()).error_type == "TaskTimeout"
        assert tasks.add(1, 1).get(GET) == 2


# ── what ignores signals ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_loop_in_c_is_killed_at_its_timeout_with_its_children(
    app: LiteQ, tasks: Any, consume: Any, log: str, start_method: str, eventually: Any
) -> None:
    with consume(app, start_method=start_method):
        result = tasks.grind("sum", log, child=True)
        began = time.monotonic()
        error = failure_of(result)
        assert time.monotonic() - began < NOTICED
        assert tasks.add(1, 1).get(GET) == 2
        assert error.error_type == "TaskTimeout"
        [attempt] = result.job().attempts
        assert (attempt.ending, attempt.details) == (Ending.TIMEOUT, "killed by SIGKILL")
        child, worker = lines(log)
        eventually(lambda: is_gone(int(child)) and is_gone(int(worker.split()[1])))


def test_a_catastrophic_pattern_is_stopped(app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
    with consume(app):
        assert failure_of(tasks.grind("regex", log)).error_type == "TaskTimeout"
        assert tasks.add(1, 1).get(GET) == 2


def test_a_killed_job_is_retried_as_after_any_timeout(app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
    with consume(app):
        result = tasks.grind.using(retries=1, timeout=0.05)("sum", log)
        failure_of(result)
    assert endings(result.job()) == [Ending.TIMEOUT, Ending.TIMEOUT]
    assert result.job().crashes == 0


def test_a_stopped_worker_is_killed_at_its_timeout(app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
    with consume(app):
        result = tasks.die.using(timeout=0.1)("SIGSTOP", log)
        assert failure_of(result).error_type == "TaskTimeout"
        assert tasks.add(1, 1).get(GET) == 2


def test_the_kill_waits_for_no_other_event(
    app: LiteQ, tasks: Any, consume: Any, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for often in ("EXPIRE_EVERY", "LET_IN_EVERY"):
        monkeypatch.setattr(scheduler, often, 60.0)
    with consume(app):
        began = time.monotonic()
        failure_of(tasks.grind("sum", log))
        assert time.monotonic() - began < NOTICED


def test_a_loop_in_c_is_terminated(app: LiteQ, tasks: Any, consume: Any, log: str, eventually: Any) -> None:
    with consume(app):
        result = tasks.grind_on(log)
        eventually(lambda: lines(log))
        assert result.revoke(terminate=True)
        with pytest.raises(TaskRevoked):
            result.get(GET)
        assert tasks.add(1, 1).get(GET) == 2


def test_a_loop_in_c_does_not_hold_up_a_stop_at_once(
    app: LiteQ, tasks: Any, consume: Any, log: str, eventually: Any
) -> None:
    with consume(app) as consumer:
        result = tasks.grind_on(log)
        eventually(lambda: lines(log))
        began = time.monotonic()
        consumer.stop(at_once=True)
        assert time.monotonic() - began < NOTICED
    job = result.job()
    assert (job.state, job.attempt, job.crashes) == (JobState.READY, 0, 0)


# ── several jobs in one message ──────────────────────────────────────────────────────────────────────────


def test_what_waits_behind_a_long_job_goes_to_others(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    with consume(app, workers=2):
        train(tasks.pass_or_wait.map([(None, os.devnull, "") for _ in range(500)]))
        app.pause("default")
        results = tasks.pass_or_wait.map([(str(gate) if number == 0 else None, log, number) for number in range(60)])
        app.resume("default")
        eventually(lambda: len(lines(log)) == 60, message="59 end while the first still runs")
        gate.touch()
        results.get(GET)
    assert [result.job().attempt for result in results] == [1] * 60


def test_what_waits_behind_a_long_job_goes_to_another_consumer(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    with consume(app, workers=1):
        train(tasks.pass_or_wait.map([(None, os.devnull, "") for _ in range(500)]))
        app.pause("default")
        results = tasks.pass_or_wait.map([(str(gate) if number == 0 else None, log, number) for number in range(60)])
        app.resume("default")
        eventually(lambda: lines(log) == ["began 0"])
        with consume(app, workers=1):
            eventually(lambda: len(lines(log)) == 60)
            gate.touch()
            results.get(GET)
    assert [result.job().attempt for result in results] == [1] * 60


def test_a_stop_at_once_waits_for_nothing_behind_a_long_job(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    with consume(app) as consumer:
        train(tasks.pass_or_wait.map([(None, os.devnull, "") for _ in range(500)]))
        app.pause("default")
        results = tasks.pass_or_wait.map([(str(gate), log, number) for number in range(20)])
        app.resume("default")
        eventually(lambda: lines(log))
        began = time.monotonic()
        consumer.stop(at_once=True)
        assert time.monotonic() - began < NOTICED
    assert lines(log) == ["began 0"]
    assert [(result.state, result.job().attempt) for result in results] == [(JobState.READY, 0)] * 20


def test_terminating_a_job_that_has_not_begun_leaves_the_one_before_it_alone(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    with consume(app):
        train(tasks.pass_or_wait.map([(None, os.devnull, "") for _ in range(500)]))
        app.pause("default")
        results = tasks.pass_or_wait.map([(str(gate), log, number) for number in range(3)])
        app.resume("default")
        eventually(lambda: lines(log) == ["began 0"])
        results[1].revoke(terminate=True)
        with pytest.raises(TaskRevoked):
            results[1].get(GET)
        time_to_be_killed = time.monotonic() + 2 * GRACE
        eventually(lambda: time.monotonic() > time_to_be_killed)
        gate.touch()
        results[0].get(GET)
        results[2].get(GET)
    assert lines(log) == ["began 0", "ended 0", "began 2", "ended 2"]
    assert results[0].job().attempt == 1


# ── workers that do not come up ──────────────────────────────────────────────────────────────────────────

BROKEN = {
    "raises": "raise ValueError('this app is broken')",
    "lacks a module": "import no_such_module_anywhere",
    "exits": "raise SystemExit(0)",
    "lacks the app": "app = None",
    "has a failing hook": """
        import workshop
        app = workshop.build("unused.db")
        @app.on_startup()
        def fail():
            raise ValueError('this hook is broken')
        """,
}


@pytest.mark.parametrize("defect", ["raises", *[pytest.param(one, marks=pytest.mark.slow) for one in list(BROKEN)[1:]]])
def test_an_app_that_workers_cannot_import_is_reported_and_tried_again_with_pauses(
    app: LiteQ,
    tasks: Any,
    consume: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    eventually: Any,
    defect: str,
) -> None:
    name = "broken_because_it_" + defect.replace(" ", "_")
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(BROKEN[defect]))
    monkeypatch.syspath_prepend(tmp_path)
    result = tasks.add(1, 1)
    with consume(app, app_path=f"{name}:app"):
        eventually(lambda: len(_complaints(caplog)) == 1)
        began = time.monotonic()
        eventually(lambda: len(_complaints(caplog)) >= 4)
        assert time.monotonic() - began > 0.1 + 0.2, "it starts them as fast as it can"
    assert {one.levelname for one in _complaints(caplog)} == {"ERROR"}
    job = result.job()
    assert (job.state, job.attempt, job.claim) == (JobState.READY, 0, 0), "nothing is claimed while nobody can run it"


def _complaints(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [one for one in caplog.records if "could not start" in one.getMessage()]


def test_a_system_that_has_no_process_left_is_tried_again(
    app: LiteQ, tasks: Any, consume: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    start, failures = BaseProcess.start, []

    def start_at_last(process: BaseProcess) -> None:
        if len(failures) < 3:
            failures.append(process)
            raise BlockingIOError("Resource temporarily unavailable")
        start(process)

    monkeypatch.setattr(BaseProcess, "start", start_at_last)
    with consume(app):
        assert tasks.add(1, 1).get(GET) == 2
    assert caplog.text.count("could not be started") == 3


def test_workers_come_up_once_the_app_is_mended(
    app: LiteQ,
    tasks: Any,
    consume: Any,
    gate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
    eventually: Any,
) -> None:
    source = f"import os, workshop\nif not os.path.exists({str(gate)!r}): raise ValueError\napp = workshop.app\n"
    (tmp_path / "mended_app.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    result = tasks.add(1, 1)
    with consume(app, app_path="mended_app:app"):
        eventually(lambda: "could not start" in caplog.text)
        gate.touch()
        assert result.get(GET) == 2


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_an_app_without_an_import_path_is_refused_and_leaves_nothing(app: LiteQ, start_method: str) -> None:
    consumer = app.create_consumer(worker_type="process", start_method=start_method, app_path=None)
    with pytest.raises(ConfigurationError, match="app_path"):
        consumer.start()
    assert app.consumers() == []


def test_a_fork_needs_no_import_path(app: LiteQ, tasks: Any, consume: Any) -> None:
    with consume(app, start_method="fork", app_path=None):
        assert tasks.add(1, 1).get(GET) == 2


# ── the consumer's own end ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["forkserver", "fork", "spawn"])
@pytest.mark.parametrize("busy_in", ["nothing", "Python", "C"])
def test_no_worker_outlives_a_killed_consumer(
    app: LiteQ, tasks: Any, consumers: Any, gate: Path, log: str, start_method: str, busy_in: str, eventually: Any
) -> None:
    consumer = consumers.launch(workers=2, worker_type="process", start_method=start_method)
    tasks.add(1, 1).get(GET)
    if busy_in == "Python":
        tasks.wait(str(gate), log)
    elif busy_in == "C":
        tasks.grind_on(log)
    eventually(lambda: busy_in == "nothing" or lines(log))
    family = consumer.family()
    assert len(family) >= 2
    consumer.kill()
    eventually(lambda: all(is_gone(one.pid) for one in family), NOTICED)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_ends_only_the_consumer(
    app: LiteQ, tasks: Any, consumers: Any, gate: Path, log: str, number: signal.Signals, eventually: Any
) -> None:
    consumer = consumers.launch(workers=2, worker_type="process")
    result = tasks.wait(str(gate), log)
    eventually(lambda: lines(log))
    for one in [*consumer.family(), psutil.Process(consumer.pid)]:
        one.send_signal(number)
    eventually(lambda: consumers.logged("stopping"))
    gate.touch()
    assert consumer.wait() == 0
    assert result.get(0) == "through"
    assert lines(log) == ["began ", "ended "]


@pytest.mark.slow
def test_the_fork_server_may_die(app: LiteQ, tasks: Any, consumers: Any, eventually: Any) -> None:
    consumer = consumers.launch(workers=2, worker_type="process", start_method="forkserver")
    pid, _, _ = tasks.where().get(GET)
    server = psutil.Process(pid).parent()
    assert server is not None
    assert server.pid != consumer.pid
    server.kill()
    assert tasks.add.map([(number, 1) for number in range(20)]).get(GET) == list(range(1, 21))
    assert consumer.stop() == 0


@pytest.mark.slow
def test_ctrl_c_without_handlers_leaves_no_worker(
    tmp_path: Path, app: LiteQ, tasks: Any, gate: Path, log: str, eventually: Any
) -> None:
    """`consumer.run()` in a program of one's own: KeyboardInterrupt strikes anywhere in the loop."""
    script = f"""if True:
        import workshop
        app = workshop.build({app.storage.location!r})
        app.create_consumer(app_path="workshop:app", worker_type="process").run()
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(fleet.HERE), str(fleet.HERE.parents[1])])}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL) as program:
        result = tasks.wait(str(gate), log)
        eventually(lambda: lines(log))
        family = psutil.Process(program.pid).children(recursive=True)
        program.send_signal(signal.SIGINT)
        program.wait(fleet.PATIENCE)
        eventually(lambda: all(is_gone(one.pid) for one in family), NOTICED)
    gate.touch()
    app.create_consumer(burst=True).run()
    assert result.get(GET) == "through"


# ── embedded ─────────────────────────────────────────────────────────────────────────────────────────────

SCRIPT = '''
"""A program that runs its own jobs in worker processes."""
import os, sys
from liteq import LiteQ

app = LiteQ("embedded.db", durability="normal")

@app.task
def square(number):
    return number * number, os.getpid()

def main():
    with app.run_in_background(workers=2, worker_type="process", start_method=sys.argv[1]):
        answers = square.map(range(20)).get(20)
    assert [square for square, _ in answers] == [number * number for number in range(20)], answers
    assert os.getpid() not in {pid for _, pid in answers}
    app.close()
    print("squared", app.storage.location)

if __name__ == "__main__":
    main()
'''


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["forkserver", "fork", "spawn"])
@pytest.mark.parametrize("way", ["python script.py", "python -m script"])
def test_a_script_runs_its_own_jobs_in_processes(tmp_path: Path, start_method: str, way: str) -> None:
    program = tmp_path / "program"
    program.mkdir()
    (program / "script.py").write_text(SCRIPT)
    elsewhere = tmp_path if way == "python script.py" else program
    what = ["program/script.py"] if way == "python script.py" else ["-m", "script"]
    environment = {**os.environ, "PYTHONPATH": str(fleet.HERE.parents[1])}
    done = subprocess.run(
        [sys.executable, *what, start_method],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, f"squared {program / 'embedded.db'}\n"), done.stderr
    assert "Traceback" not in done.stderr
