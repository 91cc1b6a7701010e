"""Durable steps in every kind of worker, and what is left of them when workers and consumers die, or are too slow."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import fleet
import pytest
import workshop
from kinds import GET, endings
from workshop import lines

from liteq import JobState, LiteQ, lifecycle
from liteq.consumer.dispatcher import Dispatcher
from liteq.job import Ending
from liteq.storage.base import ClaimRequest


@pytest.fixture(autouse=True)
def _file_for_workers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(workshop.FILE, str(path))


def has_written(log: str, line: str) -> bool:
    return line in lines(log)


@pytest.mark.parametrize("name", ["order", "aorder"])
@pytest.mark.parametrize(
    "options",
    [
        {"worker_type": "thread"},
        {"worker_type": "asyncio"},
        pytest.param({"worker_type": "greenlet"}, marks=pytest.mark.slow),
        {"worker_type": "process", "start_method": "forkserver"},
        pytest.param({"worker_type": "process", "start_method": "fork"}, marks=pytest.mark.slow),
        pytest.param({"worker_type": "process", "start_method": "spawn"}, marks=pytest.mark.slow),
    ],
    ids=lambda options: options.get("start_method", options["worker_type"]),
)
def test_every_kind_of_worker_goes_on_where_the_job_was(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, log: str, options: dict[str, Any], name: str, eventually: Any
) -> None:
    if options["worker_type"] == "greenlet":
        pytest.importorskip("gevent")
    if options.get("start_method", "spawn") not in multiprocessing.get_all_start_methods():
        pytest.skip("not here")
    consumers.launch(**options)
    result = getattr(tasks, name)(log)
    eventually(lambda: [step.name for step in result.steps()][2:] == ["approved"])
    app.send(result, "approved", {"by": (1, b"\xff")})
    eventually(lambda: result.state is JobState.BLOCKED)
    app.send(result, "approved", None)
    assert result.get(GET) == [("paid", 7), {"by": (1, b"\xff")}, None]
    assert lines(log).count("charged") == 1
    assert lines(log).count("began") == 5
    assert endings(result.job()) == [Ending.FAILED, Ending.SUCCEEDED]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills by signals")
@pytest.mark.parametrize("worker_type", ["thread", "process"])
def test_a_job_of_a_killed_consumer_goes_on_behind_its_last_step(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, gate: Path, log: str, worker_type: str, eventually: Any
) -> None:
    victim = consumers.launch(worker_type=worker_type)
    result = tasks.in_steps(str(gate), log, 1, 3)
    eventually(lambda: has_written(log, "at the gate"))
    consumers.launch(worker_type=worker_type)
    victim.kill()
    eventually(lambda: lines(log).count("at the gate") == 2)
    gate.touch()
    assert result.get(GET) == 3
    assert lines(log) == ["1 0", "1 1", "at the gate", "at the gate", "1 2", "1 after"]
    assert [step.attempt for step in result.steps()] == [1, 1, 2, 2]


def test_a_job_that_was_taken_over_can_record_nothing_and_stops(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with consume(app):
        result = tasks.in_steps(str(gate), log, 1, 2)
        eventually(lambda: has_written(log, "at the gate"))
        storage, stale = app.storage, result.job()
        usurper = storage.register({})
        assert storage.apply([lifecycle.release(stale)], time.time()) == [True]
        [fresh] = storage.turn([], ClaimRequest(usurper, 1), time.time()).jobs
        gate.touch()
        eventually(lambda: "outcome dropped" in caplog.text)
    assert "1 after" not in lines(log), "its body went on"
    assert [step.name for step in result.steps()] == ["0"]
    assert storage.apply([lifecycle.release(fresh)], time.time()) == [True]
    storage.unregister(usurper)
    with consume(app):
        assert result.get(GET) == 2
    assert lines(log) == ["1 0", "at the gate", "1 1", "at the gate", "1 1", "1 after"]


@pytest.mark.parametrize("worker_type", ["thread", "process"])
def test_a_step_that_takes_too_long_is_done_again_and_those_before_it_are_not(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, worker_type: str, eventually: Any
) -> None:
    # Not a fork server: that of these tests has been told of another file.
    with consume(app, worker_type=worker_type, start_method="spawn"):
        result = tasks.in_steps.using(timeout=0.3)(str(gate), log, 1, 2)
        eventually(lambda: lines(log).count("at the gate") == 2)
        gate.touch()
        assert result.get(GET) == 2
    assert lines(log) == ["1 0", "at the gate", "at the gate", "1 1", "1 after"]
    assert endings(result.job()) == [Ending.TIMEOUT, Ending.SUCCEEDED]


def test_a_job_with_many_steps_does_not_wake_its_consumer_for_each(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wakes = []
    step = Dispatcher._step
    monkeypatch.setattr(Dispatcher, "_step", lambda self: (wakes.append(1), step(self))[1])
    gate.touch()
    with consume(app, workers=2):
        assert tasks.in_steps(str(gate), log, 1, 3000).get(30) == 3000
        recorded = len(wakes)
        assert tasks.add(1, 1).get(GET) == 2, "it hears of what concerns it"
    assert recorded < 2000


def test_a_job_that_is_stopped_in_a_step_keeps_those_before_it(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    with consume(app):
        result = tasks.in_steps(str(gate), log, 1, 2)
        eventually(lambda: has_written(log, "at the gate"))
        assert result.revoke(terminate=True)
        eventually(lambda: result.state is JobState.REVOKED)
        assert [step.name for step in result.steps()] == ["0"]
        gate.touch()
        assert result.requeue()
        assert result.get(GET) == 2
    assert lines(log).count("1 0") == 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills by signals")
def test_whoever_is_killed_no_recorded_step_is_done_again(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, gate: Path, log: str, eventually: Any
) -> None:
    """kill -9 of consumers at random. A step may be done twice, if the kill came between it and its record, but not
    once a later one has begun."""
    gate.touch()
    dice = random.Random()
    jobs, steps = 60, 6
    results = tasks.in_steps.using(max_crashes=100).map([(str(gate), log, job, steps) for job in range(jobs)])
    alive = [consumers.launch(workers=2) for _ in range(2)]
    for _ in range(8):
        so_far = len(lines(log))
        eventually(lambda so_far=so_far: len(lines(log)) >= min(so_far + 20, jobs * steps), 20.0)
        number = dice.randrange(2)
        alive[number].kill()
        alive[number] = consumers.launch(workers=2)
    for result in results:
        assert result.get(60) == steps
    done: dict[str, list[int]] = defaultdict(list)
    for line in lines(log):
        if line != "at the gate":
            job, number = line.split()
            done[job].append(steps if number == "after" else int(number))
    assert len(done) == jobs
    for numbers in done.values():
        assert numbers == sorted(numbers)
        assert set(numbers) == set(range(steps + 1))
