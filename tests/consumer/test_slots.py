"""Limits and locks over real consumers: so many at once, in order, and free the moment that their holder dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import fleet
import pytest
import workshop
from kinds import GET
from workshop import lines

from liteq import JobState, LiteQ, TaskFailed, WouldDeadlock

needs_kill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills by signals")

#: Seconds within which a death leads to the next one's start. It takes milliseconds; without the kernel's word, 5 s.
QUICKLY = 30.0

#: Worker processes that have nothing from earlier tests.
FRESH = {"worker_type": "process", "start_method": "spawn"}

KINDS = [{"worker_type": "thread"}, FRESH]


@pytest.fixture(autouse=True)
def _shared_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes have their app on the test's own file, as in real life."""
    monkeypatch.setenv(workshop.FILE, str(path))


def begun(log: str) -> list[str]:
    """The words of the jobs that have begun, in order."""
    return [line.split()[1] for line in lines(log) if line.startswith("began")]


def pid_of(log: str, word: str) -> int:
    """The process in which this job runs."""
    [pid] = [line.split()[2] for line in lines(log) if line.startswith(f"began {word} ")]
    return int(pid)


def most_at_once(log: str) -> int:
    running, most = 0, 0
    for line in lines(log):
        running += 1 if line.startswith("began") else -1
        most = max(most, running)
    return most


# ── so many at once ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS, ids=["thread", "process"])
def test_no_more_than_so_many_run_at_once_over_all_consumers(
    app: LiteQ, tasks: Any, consume: Any, kind: dict[str, Any], log: str
) -> None:
    with consume(app, workers=3), consume(app, workers=3):
        results = tasks.one_of_two.map([(log, number) for number in range(60)])
        results.get(GET)
    assert most_at_once(log) <= 2
    assert sorted(map(int, begun(log))) == list(range(60))
    assert {result.job().attempt for result in results} == {1}


def test_jobs_of_a_limit_begin_in_their_order(app: LiteQ, tasks: Any, consume: Any, log: str, gate: Path) -> None:
    gate.touch()
    tasks.alone.map([(str(gate), log, number) for number in range(20)])
    urgent = tasks.alone.using(priority=1)(str(gate), log, "urgent")
    with consume(app, workers=4):
        results = tasks.alone.map([(str(gate), log, number) for number in range(20, 40)])
        results.get(GET)
    assert urgent.state is JobState.SUCCEEDED
    assert begun(log) == ["urgent", *map(str, range(40))]


def test_those_that_wait_take_no_worker(app: LiteQ, tasks: Any, consume: Any, log: str, gate: Path) -> None:
    with consume(app, workers=2):
        results = tasks.alone.map([(str(gate), log, number) for number in range(50)])
        assert tasks.add.map([(number, 1) for number in range(50)]).get(GET) == list(range(1, 51))
        assert begun(log) == ["0"]
        gate.touch()
        results.get(GET)
    assert begun(log) == [str(number) for number in range(50)]


def test_a_burst_runs_those_that_wait_too(app: LiteQ, tasks: Any, log: str, gate: Path) -> None:
    gate.touch()
    results = tasks.alone.map([(str(gate), log, number) for number in range(10)])
    app.create_consumer(workers=4, burst=True).run()
    assert results.progress() == (10, 10)


def test_a_stopped_consumer_leaves_the_line_in_order(
    app: LiteQ, tasks: Any, consume: Any, log: str, gate: Path, eventually: Any
) -> None:
    results = tasks.alone.map([(str(gate), log, number) for number in range(5)])
    with consume(app, workers=2) as consumer:
        eventually(lambda: begun(log))
        consumer.stop(at_once=True)
    gate.touch()
    with consume(app, workers=2):
        results.get(GET)
    assert begun(log) == ["0", *map(str, range(5))]
    assert {result.job().attempt for result in results} == {1}


def test_a_limit_that_is_raised_holds_at_once(
    app: LiteQ, tasks: Any, consume: Any, log: str, gate: Path, eventually: Any
) -> None:
    with consume(app, workers=4):
        results = tasks.alone.map([(str(gate), log, number) for number in range(5)])
        eventually(lambda: len(begun(log)) == 1)
        app.limits.set(tasks.alone, 3)
        eventually(lambda: len(begun(log)) == 3)
        gate.touch()
        results.get(GET)


# ── death ────────────────────────────────────────────────────────────────────────────────────────────────


@needs_kill
@pytest.mark.usefixtures("no_rounds")
@pytest.mark.parametrize("name", ["alone", "under_lock"])
def test_the_death_of_a_worker_lets_the_next_one_in(
    app: LiteQ, tasks: Any, consume: Any, log: str, gate: Path, eventually: Any, name: str
) -> None:
    task = getattr(tasks, name)
    with consume(app, workers=2, **FRESH):
        victim = task.using(on_crash="fail")(str(gate), log, "victim")
        eventually(lambda: begun(log))
        following = task(str(gate), log, "next")
        eventually(lambda: following.state is JobState.BLOCKED)
        os.kill(pid_of(log, "victim"), signal.SIGKILL)
        eventually(lambda: begun(log) == ["victim", "next"], QUICKLY)
        gate.touch()
        following.get(GET)
        with pytest.raises(TaskFailed):
            victim.get(GET)


@needs_kill
@pytest.mark.slow
@pytest.mark.usefixtures("no_rounds")
@pytest.mark.parametrize("name", ["alone", "under_lock"])
@pytest.mark.parametrize("kind", KINDS, ids=["thread", "process"])
def test_the_death_of_a_consumer_lets_the_next_one_in(
    app: LiteQ,
    tasks: Any,
    consume: Any,
    consumers: fleet.Fleet,
    kind: dict[str, Any],
    log: str,
    gate: Path,
    eventually: Any,
    name: str,
) -> None:
    task = getattr(tasks, name)
    victim = consumers.launch(workers=1, **kind)
    task.using(on_crash="fail")(str(gate), log, "victim")
    eventually(lambda: begun(log))
    with consume(app, workers=1):
        following = task(str(gate), log, "next")
        eventually(lambda: following.state is JobState.BLOCKED)
        victim.kill()
        eventually(lambda: begun(log) == ["victim", "next"], QUICKLY)
        gate.touch()
        following.get(GET)


@needs_kill
def test_a_lock_that_a_job_took_itself_is_free_when_its_worker_dies(
    app: LiteQ, tasks: Any, consume: Any, path: Path, log: str, gate: Path, eventually: Any
) -> None:
    with consume(app, workers=1, **FRESH):
        tasks.lock_inside.using(on_crash="fail")(str(path), str(gate), log, "victim")
        eventually(lambda: begun(log))
        assert app.is_locked("inside")
        got = threading.Event()

        def take() -> None:
            with app.lock_task("inside", wait=True):
                got.set()

        threading.Thread(target=take, daemon=True).start()
        eventually(lambda: app.locks()[0].waiting == 1)
        os.kill(pid_of(log, "victim"), signal.SIGKILL)
        assert got.wait(QUICKLY)


@needs_kill
@pytest.mark.slow
def test_without_any_consumer_the_lock_of_a_dead_one_is_free(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, log: str, gate: Path, eventually: Any
) -> None:
    victim = consumers.launch(workers=1)
    tasks.under_lock(str(gate), log, "victim")
    eventually(lambda: begun(log))
    assert app.is_locked("workshop")
    victim.kill()
    eventually(lambda: not app.is_locked("workshop"), QUICKLY)
    with app.lock_task("workshop"):
        pass


@needs_kill
def test_a_job_begins_when_the_process_that_holds_its_lock_dies(
    app: LiteQ, tasks: Any, consume: Any, path: Path, log: str, gate: Path, eventually: Any
) -> None:
    source = """
        import sys
        from liteq import LiteQ
        with LiteQ(sys.argv[1]).lock_task("workshop"):
            print("got it", flush=True)
            sys.stdin.read()
    """
    gate.touch()
    with (
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(source), str(path)],
            env={**os.environ, "PYTHONPATH": str(fleet.HERE.parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder,
        consume(app, workers=1),
    ):
        assert holder.stdout is not None and holder.stdout.readline() == b"got it\n"
        result = tasks.under_lock(str(gate), log, "job")
        eventually(lambda: result.state is JobState.BLOCKED)
        holder.kill()
        result.get(GET)
    assert result.job().attempt == 1


@needs_kill
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=["thread", "process"])
def test_never_more_than_so_many_though_consumers_are_killed(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, kind: dict[str, Any], log: str, gate: Path, eventually: Any
) -> None:
    results = tasks.on_one_of_two_chairs.map([(str(gate), log, number) for number in range(300)])
    for number in range(5):
        members = [one for one in consumers.members if one.process.poll() is None]
        while len(members) < 2:
            members.append(consumers.launch(workers=3, **kind))
        enough = 40 * (number + 1)
        eventually(lambda enough=enough: len(lines(log)) >= enough)
        members[0].kill()
    consumers.launch(workers=3, **kind)
    results.get(GET)
    assert [line for line in lines(log) if line.startswith("stood")] == []
    assert {int(line.split()[1]) for line in lines(log)} == set(range(300))
    assert app.limits.list()[-1].waiting == 0


# ── waiting for each other ───────────────────────────────────────────────────────────────────────────────


def test_a_job_that_waits_for_one_that_needs_its_own_slot_is_told(app: LiteQ, consume: Any) -> None:
    @app.task(max_running=1, name="nested")
    def nested(depth: int) -> str:
        if depth == 0:
            return "got through"
        child = nested(depth - 1)
        try:
            return child.get(GET)  # type: ignore[no-any-return]
        except WouldDeadlock:
            return child.id

    with consume(app, workers=4):
        child = nested(1).get(GET)
        assert app.result(child).get(GET) == "got through"


def test_a_job_that_waits_for_one_that_needs_its_lock_is_told(app: LiteQ, consume: Any) -> None:
    @app.task(name="inner")
    @app.lock_task("shared", wait=True)
    def inner() -> str:
        return "got through"

    @app.task(name="outer")
    def outer() -> str:
        with app.lock_task("shared"):
            child = inner()
            try:
                child.get(GET)
            except WouldDeadlock:
                return child.id
        return "nobody said anything"

    with consume(app, workers=4):
        child = outer().get(GET)
        assert app.result(child).get(GET) == "got through"
