"""Workers and consumers that stand still for a long time, a consumer that is taken over meanwhile, a lock that is kept.

``LITEQ_LONG_TESTS=1`` makes the pauses those of real life.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import fleet
import psutil
import pytest
from kinds import GET, endings
from workshop import lines

from liteq import JobState, LiteQ
from liteq.job import Ending

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops by signals"),
    pytest.mark.slow,
    pytest.mark.timeout(180),
]

LONG = bool(os.environ.get("LITEQ_LONG_TESTS"))
#: Seconds for which a worker stands still.
STANDSTILL = 60.0 if LONG else 1.5
#: Seconds for which another program keeps the file's write lock.
LOCKED = 10.0 if LONG else 2.0


def workers_of(consumer: fleet.Member) -> list[psutil.Process]:
    """The worker processes of a consumer: those below it that have nobody below them but the resource tracker."""
    return [
        one for one in consumer.family() if not one.children() and "resource_tracker" not in " ".join(one.cmdline())
    ]


@contextmanager
def frozen(*processes: psutil.Process) -> Iterator[None]:
    """Stopped for the length of the block."""
    for one in processes:
        one.suspend()
    try:
        yield
    finally:
        for one in processes:
            one.resume()


def began(log: str) -> int:
    return sum(line.startswith("began") for line in lines(log))


def test_the_job_of_a_stopped_worker_is_given_to_nobody_and_runs_once(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, gate: Path, log: str, eventually: Any
) -> None:
    owner = consumers.launch(worker_type="process", workers=1)
    result = tasks.wait(str(gate), log)
    eventually(lambda: began(log) == 1)
    [worker] = workers_of(owner)
    with frozen(worker):
        consumers.launch(worker_type="process", workers=1)
        until = time.monotonic() + STANDSTILL
        while time.monotonic() < until:  # the others go on
            assert tasks.add(1, 1).get(GET) == 2
            assert app.engine.recover() == 0
        gate.touch()
        assert result.state is JobState.RUNNING
    assert result.get(GET) == "through"
    assert lines(log) == ["began ", "ended "]
    assert worker.is_running(), "it was not replaced either"
    job = result.job()
    assert (job.claim, job.crashes, endings(job)) == (1, 0, [Ending.SUCCEEDED])


@pytest.fixture
def slots(path: Path) -> Callable[[], list[Path]]:
    """The files that consumers keep locked for as long as they live."""
    return lambda: list((path.parent / f"{path.name}-liteq" / "consumers").iterdir())


@pytest.mark.parametrize("worker_type", ["thread", "process"])
def test_a_consumer_that_was_taken_over_while_it_was_frozen_changes_nothing_when_it_thaws(
    app: LiteQ,
    tasks: Any,
    consumers: fleet.Fleet,
    gate: Path,
    log: str,
    worker_type: str,
    eventually: Any,
    slots: Callable[[], list[Path]],
) -> None:
    """As if its machine had been suspended, and the file taken up after a reboot, where no lock is left."""
    old = consumers.launch(worker_type=worker_type)
    result = tasks.wait(str(gate), log, "twice")
    eventually(lambda: began(log) == 1)
    [slot] = slots()
    with frozen(psutil.Process(old.pid), *old.family()):
        slot.unlink()
        new = consumers.launch(worker_type=worker_type)
        eventually(lambda: began(log) == 2)
        gate.touch()
        assert result.get(GET) == "through twice"
        taken_over = result.job()
    eventually(lambda: consumers.logged("outcome dropped"))
    eventually(lambda: len(lines(log)) == 4)
    assert result.job() == taken_over
    assert (taken_over.claim, endings(taken_over)) == (2, [Ending.CRASHED, Ending.SUCCEEDED])
    assert result.id in consumers.logged("outcome dropped")[0]
    assert tasks.add.map([(n, n) for n in range(20)]).get(GET) == [2 * n for n in range(20)]
    assert old.wait() != 0, "it ends, so that whoever looks after it starts it anew"
    assert new.stop() == 0
    assert app.consumers() == []


def test_who_uses_the_queue_while_another_program_keeps_its_lock_sees_no_error(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, path: Path, log: str, eventually: Any
) -> None:
    """It takes as long as it takes; nothing is lost, nothing runs twice."""
    for _ in range(2):
        consumers.launch(workers=2)
    tasks.write(log, "before").get(GET)
    late = tasks.write.using(delay=LOCKED / 2)(log, "due meanwhile")

    def use(number: int) -> None:
        result = tasks.write(log, number)
        assert app.counts()[JobState.FAILED] == 0
        result.get(LOCKED + GET)

    with ThreadPoolExecutor(6) as threads:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            using = [threads.submit(use, number) for number in range(12)]
            until = time.monotonic() + LOCKED
            eventually(lambda: time.monotonic() > until, LOCKED + 1.0)
            assert not any(one.done() for one in using)
            connection.execute("ROLLBACK")
        for one in using:
            one.result(LOCKED + GET)
    late.get(GET)
    assert sorted(lines(log)) == sorted(["before", "due meanwhile", *map(str, range(12))])
