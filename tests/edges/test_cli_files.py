"""The commands, a consumer and its scheduler on the directory of a FileStorage, as real programs."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import Eventually, Shop, shop_in

from liteq import FileStorage, JobState, LiteQ, TaskFailed

DEPOT = """
import os, pathlib
from liteq import FileStorage, LiteQ, every

app = LiteQ(FileStorage(pathlib.Path(__file__).with_name("depot-queue"), durability="normal"))

@app.task(retries=1)
def add(a, b):
    return a + b

@app.task(max_crashes=2)
def die():
    os.kill(os.getpid(), 9)

@app.task(max_running=1)
def alone(path):
    with open(path, "a") as file:
        file.write("in ")
        file.flush()
        file.write("out\\n")

@app.periodic_task(every(seconds=1))
def tick():
    return "tick"
"""


@pytest.fixture
def depot(tmp_path: Path) -> Iterator[Shop]:
    with shop_in(tmp_path) as shop:
        shop.module("depot", DEPOT)
        yield shop


@pytest.fixture
def app(depot: Shop) -> Iterator[LiteQ]:
    app = LiteQ(FileStorage(depot.directory / "depot-queue", durability="normal"))
    for name in ("add", "die", "alone"):
        app.task(name=f"depot.{name}")(lambda *_: None)
    yield app
    app.close()


def answer(depot: Shop, *arguments: str) -> Any:
    done = depot.liteq(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return lines[0] if len(lines) == 1 else lines


@pytest.mark.slow
def test_the_commands_take_the_directory_where_they_take_a_file(depot: Shop, app: LiteQ) -> None:
    result = app.tasks["depot.add"](1, 2)
    queue = app.storage.location
    for target in (queue, "depot-queue", "depot-queue/", "depot.app"):
        seen = answer(depot, "info", target)
        assert (seen["jobs"]["ready"], seen["location"], seen["schema"]) == (1, queue, 1)
        assert seen["size"] > 100
    assert answer(depot, "ls", queue)["id"] == result.id
    assert depot.liteq("revoke", queue, result.id).returncode == 0
    assert result.state is JobState.REVOKED
    assert depot.liteq("restore", queue, result.id).returncode == 0
    assert depot.liteq("pause", queue, "default").returncode == 0
    assert app.paused() == ["default"]
    found = answer(depot, "doctor", queue)
    assert found["ok"], found
    copy = depot.directory / "copy"
    assert answer(depot, "backup", queue, str(copy))["size"] > 100
    assert answer(depot, "info", str(copy))["jobs"]["ready"] == 1
    assert "none is alive" in depot.liteq("health", queue).stdout


def test_a_directory_without_a_queue_is_one_line(depot: Shop) -> None:
    (depot.directory / "empty").mkdir()
    done = depot.liteq("info", "empty")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "holds no liteq queue" in done.stderr
    assert list((depot.directory / "empty").iterdir()) == []


@pytest.mark.slow
def test_a_consumer_with_worker_processes_runs_jobs_and_survives_their_deaths(depot: Shop, app: LiteQ) -> None:
    log = depot.directory / "alone.log"
    alone = app.tasks["depot.alone"].map([(str(log),)] * 20)
    die, add = app.tasks["depot.die"](), app.tasks["depot.add"](1, 2)
    consumer = depot.start("-m", "liteq.cli.consumer", "depot.app", "-w", "3", "-k", "process")
    assert add.get(timeout=30) == 3
    alone.get(timeout=30)
    assert log.read_text() == "in out\n" * 20
    with pytest.raises(TaskFailed, match="SIGKILL"):
        die.get(timeout=30)
    assert app.job(die.id).crashes == 2  # type: ignore[union-attr]
    consumer.signal(signal.SIGTERM)
    assert consumer.ends() == 0


@pytest.mark.slow
def test_the_jobs_of_a_killed_consumer_and_its_schedules_go_on_with_the_next(
    depot: Shop, app: LiteQ, eventually: Eventually
) -> None:
    consumers = [depot.start("-m", "liteq.cli.consumer", "depot.app", "-w", "2") for _ in range(2)]

    def slots() -> list[float]:
        jobs = app.jobs(task="depot.tick", limit=None)
        return [job.slot.timestamp() for job in jobs if job.slot is not None and job.state is JobState.SUCCEEDED]

    eventually(lambda: len(slots()) >= 2, 30, message="the schedule is fired")
    consumers[0].process.kill()
    consumers[0].ends()
    had = len(slots())
    eventually(lambda: len(slots()) >= had + 2, 30, message="the other one goes on")
    assert app.tasks["depot.add"](2, 3).get(timeout=20) == 5
    consumers[1].signal(signal.SIGTERM)
    assert consumers[1].ends() == 0
    fired = sorted(slots())
    assert len(fired) == len(set(fired)), "a slot was fired twice"
    assert fired[-1] - fired[0] == len(fired) - 1, "a slot was left out"
