"""Greenlet workers, beyond what every kind promises: patched before the app, hundreds at once in one process, and what
they do to each other there.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import crowd
import pytest
import workshop
from kinds import GET, endings, failure_of
from workshop import lines

from liteq import ConfigurationError, JobState, LiteQ, TaskRevoked
from liteq.consumer.log_setup import LogSetup
from liteq.consumer.options import ConsumerOptions
from liteq.consumer.pools import greenlet, pulse
from liteq.consumer.pools.greenlet import GreenletPool
from liteq.job import Ending

pytest.importorskip("gevent")

TESTS = Path(__file__).parent


@pytest.fixture
def kind() -> dict[str, Any]:
    return {"worker_type": "greenlet", "app_path": "crowd:app"}


@pytest.fixture
def app(path: Path) -> Iterator[LiteQ]:
    app = crowd.build(path)
    yield app
    app.close()


@pytest.fixture
def tasks(app: LiteQ) -> Any:
    return workshop.SimpleNamespace(**{name.removeprefix("crowd."): task for name, task in app.tasks.items()})


def said(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


# ── patched, and in time ─────────────────────────────────────────────────────────────────────────────────


def test_the_standard_library_is_patched_before_the_app_is_imported_and_only_there(
    app: LiteQ, tasks: Any, consume: Any
) -> None:
    with consume(app):
        module, pid, thread = tasks.look().get(GET)
    assert module.startswith("gevent")
    assert pid != os.getpid()
    assert thread == "liteq-worker"
    assert crowd.SOCKETS_COME_FROM == "socket"


def test_hundreds_wait_at_a_socket_at_once(app: LiteQ, tasks: Any, consume: Any) -> None:
    server = socket.create_server(("127.0.0.1", 0), backlog=200)
    server.settimeout(GET)

    def answer_when_all_have_called() -> None:
        callers = [server.accept()[0] for _ in range(200)]
        for caller in callers:
            caller.sendall(b"at last")
            caller.close()

    thread = threading.Thread(target=answer_when_all_have_called)
    thread.start()
    results = tasks.call.map([server.getsockname()[1]] * 200)
    with consume(app, workers=200):
        assert set(results.get(20)) == {"at last"}
    thread.join()
    server.close()


def test_coroutines_run_on_a_loop_in_a_real_thread(app: LiteQ, tasks: Any, consume: Any) -> None:
    with consume(app, workers=4):
        places = tasks.alook.map([()] * 10).get(GET)
    assert len({tuple(place) for place in places}) == 1


def test_the_process_is_replaced_after_so_many_jobs(app: LiteQ, tasks: Any, consume: Any) -> None:
    with consume(app, workers=2, max_tasks=3):
        pids = [tasks.look().get(GET)[1] for _ in range(3)]
        tasks.wait.map([(str(TESTS), os.devnull, "x")] * 10).get(GET)
        while (pid := tasks.look().get(GET)[1]) in pids:
            pass
    assert pid not in pids


# ── what they do to each other ───────────────────────────────────────────────────────────────────────────


def test_a_job_that_never_waits_is_reported_by_name_and_terminated(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with consume(app, workers=3):
        other = tasks.wait(str(gate), log + ".other", "other")
        eventually(lambda: lines(log + ".other"))
        hog = tasks.hog(str(gate) + ".never", log)
        words = eventually(lambda: said(caplog, "blocks the hub of the greenlets"))[0]
        assert f"job={hog.id} task=crowd.hog " in words
        assert "crowd.py" in words
        assert "waiting=1" in words
        assert len(app.consumers()) == 1
        hog.revoke(terminate=True)
        with pytest.raises(TaskRevoked):
            hog.get(GET)
        eventually(lambda: said(caplog, "the hub of the greenlets goes on"))
        gate.touch()
        assert other.get(GET) == "other"
    assert other.job().attempt == 1
    assert not said(caplog, "died"), "the process had to be killed"


def test_what_a_greenlet_does_can_be_looked_at(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    with consume(app, workers=3):
        waiting = tasks.wait(str(gate), log, "waits")
        eventually(lambda: lines(log))
        assert "in wait" in (text := app.stack(waiting.id)), text
        hog = tasks.hog(str(gate), log)
        eventually(lambda: len(lines(log)) == 2)
        assert "in hog" in (text := app.stack(hog.id)), text
        gate.touch()
        assert waiting.get(GET) == "waits"


def test_a_job_in_c_code_is_killed_at_its_deadline_and_the_others_lose_nothing(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    with consume(app, workers=3):
        other = tasks.wait(str(gate), log + ".other", "other")
        eventually(lambda: lines(log + ".other"))
        grinding = tasks.grind.using(retries=1)(log)
        assert failure_of(grinding).error_type == "TaskTimeout"
        gate.touch()
        assert other.get(GET) == "other"
    assert endings(grinding.job()) == [Ending.TIMEOUT, Ending.TIMEOUT]
    assert (other.job().attempt, other.job().crashes) == (1, 0)


def test_only_the_job_that_was_running_is_blamed_for_a_death(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    with consume(app, workers=4):
        others = [tasks.wait(str(gate), log, word) for word in "ab"]
        once = tasks.wait_once(str(gate), log, "once")
        eventually(lambda: len(lines(log)) == 3)
        assert failure_of(tasks.die(log + ".deaths")).error_type == "WorkerCrashed"
        assert failure_of(once).error_type == "WorkerCrashed", "it must not be run a second time"
        gate.touch()
        assert [other.get(GET) for other in others] == ["a", "b"]
    assert [(other.job().attempt, other.job().crashes) for other in others] == [(1, 0), (1, 0)]
    assert sorted(lines(log)) == ["a", "a", "b", "b", "once"], "its second death has taken others along"


def test_a_job_that_has_crashed_starts_once_an_attempt_however_long_its_process_takes_to_start(
    app: LiteQ, tasks: Any, consume: Any, log: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is retried alone, in a process that is started for it; meanwhile it is not given back and claimed again."""
    caplog.set_level(logging.INFO, logger="liteq")
    with consume(app, workers=4):
        crashed = tasks.die(log)
        assert failure_of(crashed).error_type == "WorkerCrashed"
    attempts = crashed.job().attempt
    assert attempts > 1
    assert len(said(caplog, f"started job={crashed.id} ")) == attempts


def test_a_crash_tells_what_the_job_itself_has_logged_and_used(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    with consume(app, workers=4, log=LogSetup(level=logging.WARNING, file=log + ".lines")):
        neighbour = tasks.chatter(str(gate), log + ".other", 0.6)
        eventually(lambda: lines(log + ".other"))
        died = tasks.log_and_die(log, 4, 0.05)
        assert failure_of(died).error_type == "WorkerCrashed"
        gate.touch()
        neighbour.get(GET)
    first, second = died.job().attempts
    for attempt, number in ((first, 0), (second, 1)):
        words = [f"WARNING crowd: stretch {stretch} of {number}" for stretch in range(4)]
        assert [line[line.index("WARNING") :] for line in attempt.log.splitlines()] == words
        assert attempt.details == "killed by SIGKILL"
        assert attempt.peak_rss is not None
        assert attempt.cpu_time is not None
        assert attempt.cpu_time > 0.15  # of four times 0.05
    assert first.cpu_time < 0.6, "what the neighbour has used before is not its own"


def test_a_job_that_is_killed_at_its_timeout_tells_the_same(app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
    with consume(app, workers=2):
        grinding = tasks.grind(log)
        assert failure_of(grinding).error_type == "TaskTimeout"
    (attempt,) = grinding.job().attempts
    assert attempt.cpu_time is not None
    assert 0 < attempt.cpu_time < 60


def test_deadlines_that_strike_within_storage_calls_lose_nothing_and_hold_nobody_up(
    app: LiteQ, tasks: Any, consume: Any, path: Path, gate: Path, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in (greenlet, pulse):
        monkeypatch.setattr(room, "ASK_EVERY", 0.01)
    with consume(app, workers=4, queues=("default",)):
        for turn in range(8):
            calls = [
                tasks.hammer.using(timeout=0.03 + turn / 1000)(str(path), str(gate), log, kind) for kind in range(4)
            ]
            assert {failure_of(call).error_type for call in calls} == {"TaskTimeout"}
            assert [call.job().attempts[-1].details for call in calls] == [""] * 4, "none had to be killed"
        assert tasks.look().get(GET)
        assert app.locks() == []
    with consume(app, workers=4, queues=("later",)):
        for stored in lines(log):
            app.result(stored).get(GET)


def test_a_deadline_that_strikes_as_a_job_tells_its_progress_ends_that_job_alone(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    with consume(app, workers=3):
        other = tasks.wait(str(gate), log, "other")
        eventually(lambda: lines(log))
        struck = tasks.be_struck_as_it_tells()
        assert failure_of(struck).error_type == "TaskTimeout"
        gate.touch()
        assert other.get(GET) == "other"
    assert endings(struck.job()) == [Ending.TIMEOUT]
    assert (other.job().attempt, other.job().crashes) == (1, 0)


@pytest.mark.parametrize("how", ["ends", "is told"])
def test_a_job_that_runs_again_is_not_ended_by_its_run_that_was_given_up(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any, how: str
) -> None:
    first = gate.with_name("first gate")
    with consume(app, workers=3):
        job = tasks.cling(str(first), str(gate), log)
        eventually(lambda: lines(log) == ["clings"])
        job.revoke(terminate=True)
        with pytest.raises(TaskRevoked):
            job.get(GET)
        assert job.requeue()
        eventually(lambda: lines(log) == ["clings", "waits"])
        first.touch()
        eventually(lambda: lines(log) == ["clings", "waits", "lets go"])
        if how == "ends":
            gate.touch()
            assert app.result(job.id).get(GET) == "waits"
        else:
            job.revoke(terminate=True)
            eventually(lambda: lines(log)[3:] == ["is told"])
            with pytest.raises(TaskRevoked):
                app.result(job.id).get(GET)


def test_a_job_that_is_ended_before_its_function_begins_never_begins_it(app: LiteQ) -> None:
    """It may be told while a hook waits, in which nothing is raised."""
    from liteq.consumer.pools.hub import HubSlot

    began: list[str] = []
    task = app.task(name="begin")(lambda: began.append("body"))
    hub: Any = SimpleNamespace(runtime=app.engine.runtime)
    slot = HubSlot(hub, task().job())

    @app.pre_execute()
    def tell(_job: Any) -> None:
        slot.is_to_end(lambda act, *arguments: act(*arguments))

    assert slot.run().ending is Ending.INTERRUPTED
    assert began == []


def test_a_job_whose_process_is_up_as_the_consumer_stops_is_not_begun(
    app: LiteQ, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has crashed waits for a process in which it is alone."""
    given: list[Any] = []
    cell: Any = SimpleNamespace(
        is_cell=True, takes_jobs=True, asked_to_leave=False, tickets={}, give=given.append, receive=list, at_end=False
    )
    monkeypatch.setattr(GreenletPool, "_start_one", lambda pool, *, is_cell: None)
    options = ConsumerOptions(worker_type="greenlet", workers=2, app_path="crowd:app")
    pool = GreenletPool(app.engine.runtime, options, liveness=None, log=None)
    job = tasks.look().job()._replace(crashes=1)
    pool.feed([job])
    pool.recall()
    pool.interrupt()
    pool._hubs.append(cell)
    pool.collect()
    assert given == []
    assert pool.take_back() == [job]


def test_nothing_holds_up_the_end(app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any) -> None:
    with consume(app, workers=2, shutdown_timeout=0.1):
        hog = tasks.hog(str(gate), log)
        other = tasks.wait(str(gate), log + ".other", "other")
        eventually(lambda: lines(log) == ["hogs"])
    assert [(one.state, one.job().attempt) for one in (hog, other)] == [(JobState.READY, 0)] * 2


def test_the_process_ends_with_its_consumer(
    app: LiteQ, tasks: Any, path: Path, log: str, gate: Path, eventually: Any
) -> None:
    tasks.hog(str(gate), log)
    pid_of_worker = tasks.look()
    program = (
        f"import crowd; app = crowd.build({str(path)!r}); "
        "app.create_consumer(worker_type='greenlet', app_path='crowd:app').run()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    consumer = subprocess.Popen([sys.executable, "-c", program], env=environment)
    try:
        eventually(lambda: lines(log) == ["hogs"])
        workers = [
            int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit() and _parent(one) == consumer.pid
        ]
    finally:
        consumer.send_signal(signal.SIGKILL)
        consumer.wait()
    assert workers
    eventually(lambda: not any(_lives(one) for one in workers))
    assert pid_of_worker.state is JobState.READY


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def _lives(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# ── where it is not possible, and where it is ────────────────────────────────────────────────────────────


def test_without_gevent_it_says_what_to_install(app: LiteQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'liteq\[gevent\]'"):
        app.create_consumer(worker_type="greenlet")


def test_without_gevent_the_command_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from liteq.cli import consumer

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert consumer.main(["no.such_app", "-k", "greenlet"]) == 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    (line,) = capsys.readouterr().err.splitlines()
    assert "liteq[gevent]" in line


def test_it_needs_an_app_that_can_be_imported(app: LiteQ) -> None:
    consumer = app.create_consumer(worker_type="greenlet", app_path=None)
    with pytest.raises(ConfigurationError, match="must import the app"):
        consumer.run()
    assert app.consumers() == []


def test_an_app_that_cannot_be_imported_patched_is_reported(
    app: LiteQ, tasks: Any, consume: Any, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    result = tasks.look()
    with consume(app, app_path="crowd:no_such_app"):
        words = eventually(lambda: said(caplog, "could not start"))[0]
        assert "no_such_app" in words
    assert result.state is JobState.READY


SHOP = """
from gevent import monkey
monkey.patch_all()
assert monkey.is_module_patched("socket")

import os, socket, sys, threading, time
from liteq import LiteQ

app = LiteQ({path!r})

@app.task()
def nap(seconds):
    time.sleep(seconds)  # task body
    return [os.getpid(), socket.socket.__module__]

@app.task()
async def anap(seconds):
    import asyncio
    await asyncio.sleep(seconds)
    return os.getpid()

if __name__ == "__main__":
    with app.run_in_background(worker_type=sys.argv[1], workers=20):
        seen = nap.map([0.2] * 20).get(20)
        assert len(set(anap.map([0.2] * 20).get(20))) == 1
    assert len({{pid for pid, _ in seen}}) == 1
    print(*seen[0], os.getpid())
"""


@pytest.fixture
def shop(path: Path, tmp_path: Path) -> Path:
    """A program that patches itself, as those do that are written for greenlets."""
    program = tmp_path / "shop.py"
    program.write_text(SHOP.format(path=str(path)))
    return program


def run(shop: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, *command], cwd=shop.parent, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_app_that_patches_itself_runs_from_the_command_line(shop: Path, path: Path) -> None:
    app = LiteQ(path)
    results = app.task(lambda seconds: None, name="shop.nap").map([0.2] * 20)
    run(shop, "-m", "liteq.cli.consumer", "shop.app", "-k", "greenlet", "-w", "20", "--burst", "--quiet")
    assert {module for _, module in results.get(0)} == {"gevent._socket3"}
    assert len({pid for pid, _ in results.get(0)}) == 1
    app.close()


@pytest.mark.parametrize("worker_type", ["greenlet", "asyncio"])
def test_a_program_that_is_patched_runs_a_consumer_in_the_background(shop: Path, worker_type: str) -> None:
    pid, module, own_pid = run(shop, str(shop), worker_type).split()
    assert (pid == own_pid) == (worker_type == "asyncio")
    assert module == "gevent._socket3"
