"""What running jobs are doing: `liteq stack`, `app.stack` and the log at USR1."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commandline import PATIENCE, Eventually, Program, Shop, has_entered, release, shop_in

from liteq import JobNotFound, LiteQ, MemoryStorage, NoAnswer, NotRunning

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the tests' tasks wait at named pipes")

SOURCE = """
import asyncio, pathlib, time
from liteq import LiteQ

app = LiteQ("shop.db", durability="normal")

def enter(gate):
    pathlib.Path(f"{gate}.entered").touch()

@app.task
def hold(gate):
    enter(gate)
    with open(gate):
        return "released"

@app.task
def grind(gate):
    enter(gate)
    crunch()

def crunch():
    sum(range(10**10))

@app.task
async def brood(gate):
    enter(gate)
    await sit(gate)

async def sit(gate):
    while True:
        await asyncio.sleep(0.05)
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with shop_in(tmp_path) as shop:
        shop.module("shop", SOURCE)
        yield shop


def running(shop: Shop, eventually: Eventually, task: str) -> str:
    """The id of a job of this task that has come to its gate."""
    gate = shop.gate(task)
    job = shop.task(task)(str(gate))
    eventually(has_entered(gate))
    return str(job.id)


def ended(program: Program) -> None:
    program.signal(signal.SIGKILL)
    program.process.wait(PATIENCE)


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_running_job_shows_its_stack_in_another_terminal(shop: Shop, eventually: Eventually, kind: str) -> None:
    consumer = shop.consumer("-k", kind, "-w", "2")
    job, other = running(shop, eventually, "hold"), running(shop, eventually, "brood")
    shown = shop.liteq("stack", "shop.db", job)
    assert (shown.returncode, shown.stderr) == (0, "")
    head, *frames = shown.stdout.splitlines()
    assert head.startswith(f"job {job}, task shop.hold, for ")
    assert f"worker {kind}" in head
    assert frames[-1].strip() == "with open(gate):"
    assert "in hold" in frames[-2]
    assert "liteq" not in "".join(frames)
    both = shop.liteq("stack", "shop.app", job.partition("-")[0], other, "--json")
    first, second = map(json.loads, both.stdout.splitlines())
    assert (first["id"], first["task"], first["attempt"]) == (job, "shop.hold", 1)
    assert "in hold" in first["stack"]
    chain = second["stack"]
    assert chain.index("in brood") < chain.index("in sit") < chain.index("in sleep")
    assert "select" not in chain
    assert shop.app.storage.marks() == {}
    ended(consumer)


def test_a_worker_process_in_c_code_shows_it_too(shop: Shop, eventually: Eventually) -> None:
    consumer = shop.consumer("-k", "process", "-w", "2")
    job = running(shop, eventually, "grind")
    began = time.monotonic()
    text = shop.app.stack(job, timeout=PATIENCE)
    assert time.monotonic() - began < 30  # a second is promised, and the machine may be busy
    assert "in grind" in text
    assert text.splitlines()[-1].strip() == "sum(range(10**10))"
    assert shop.app.stack(job, timeout=PATIENCE).count("in crunch") == 1  # and once more
    ended(consumer)


def test_a_stopped_worker_process_is_said_not_to_answer(shop: Shop, eventually: Eventually) -> None:
    consumer = shop.consumer("-k", "process")
    job = running(shop, eventually, "hold")
    pid = int(shop.app.stack(job).partition("worker process ")[2].partition(":")[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        assert "does not answer, not even to a signal" in shop.app.stack(job, timeout=PATIENCE)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "in hold" in shop.app.stack(job, timeout=PATIENCE)
    ended(consumer)


def test_jobs_that_do_not_run_are_told_apart(shop: Shop, eventually: Eventually) -> None:
    with pytest.raises(JobNotFound):
        shop.app.stack("7-0123456789")
    waiting = shop.task("hold")("nowhere")
    with pytest.raises(NotRunning, match="is ready") as caught:
        shop.app.stack(waiting)
    assert (caught.value.job_id, caught.value.state) == (waiting.id, "ready")
    refused = shop.liteq("stack", "shop.db", waiting.id)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert shop.liteq("stack", "shop.db", "7-0123456789").returncode == 1


def test_a_consumer_that_does_not_answer_or_is_dead_is_told(shop: Shop, eventually: Eventually) -> None:
    consumer = shop.consumer("-k", "process")
    job = running(shop, eventually, "hold")
    consumer.signal(signal.SIGSTOP)
    with pytest.raises(NoAnswer, match=f"process {consumer.process.pid} on .* did not answer within 0.3 s"):
        shop.app.stack(job, timeout=0.3)
    assert shop.app.storage.marks() == {}
    refused = shop.liteq("stack", "shop.db", job, "--timeout", "0.2")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    ended(consumer)
    eventually(lambda: [one.alive for one in shop.app.consumers()] == [False])
    with pytest.raises(NoAnswer, match="its consumer is dead"):
        shop.app.stack(job)


def test_many_may_ask_at_once(shop: Shop, eventually: Eventually) -> None:
    consumer = shop.consumer("-k", "process")
    job = running(shop, eventually, "hold")
    programs = [shop.start("-m", "liteq", "stack", "shop.db", job, job) for _ in range(3)]
    assert [program.ends() for program in programs] == [0, 0, 0]
    assert [program.log.count("in hold") for program in programs] == [2, 2, 2]
    release(shop.directory / "hold")
    assert shop.app.result(job).get(PATIENCE) == "released"
    with pytest.raises(NotRunning, match="is succeeded"):
        shop.app.stack(job)
    ended(consumer)


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_usr1_writes_the_stacks_of_running_jobs_to_the_log(shop: Shop, eventually: Eventually, kind: str) -> None:
    consumer = shop.consumer("-k", kind, "-w", "2", "--quiet")
    jobs = [running(shop, eventually, task) for task in ("hold", "brood")]
    consumer.signal(signal.SIGUSR1)
    for job in jobs:
        eventually(consumer.says(f"job {job}, task shop."))
    eventually(consumer.says("in sit"))
    assert "in hold" in consumer.log
    assert consumer.process.poll() is None
    ended(consumer)


def test_usr1_is_answered_when_nothing_runs_and_before_anything_can(shop: Shop, eventually: Eventually) -> None:
    gate = shop.gate("import")
    shop.module("shop", f"open('entered', 'w').close()\nopen({str(gate)!r})\n{SOURCE}")
    consumer = shop.consumer()
    eventually((shop.directory / "entered").exists)
    consumer.signal(signal.SIGUSR1)
    release(gate)
    eventually(consumer.says("consumer started"))
    consumer.signal(signal.SIGUSR1)
    eventually(consumer.says("no job is running"))
    ended(consumer)


def test_what_somebody_left_behind_is_dropped_after_a_while(tmp_path: Path) -> None:
    from liteq.asking import FORGOTTEN_AFTER, drop_forgotten

    app = LiteQ(MemoryStorage())
    now = app.engine.clock.now()
    marks = {
        "stack:1:1:a": f"?{now - FORGOTTEN_AFTER - 1:.3f}",
        "stack:1:1:b": f"!{now - FORGOTTEN_AFTER - 1:.3f}\ntext",
        "stack:1:1:c": f"?{now:.3f}",
        "stack:1:1:d": "nonsense",
        "stack:1:1:e": f"!{now + 3600:.3f}",  # the clock was turned back
        "other": "1",
    }
    for key, value in marks.items():
        app.storage.swap(key, None, value)
    drop_forgotten(app.engine)
    assert sorted(app.storage.marks()) == ["other", "stack:1:1:c"]
