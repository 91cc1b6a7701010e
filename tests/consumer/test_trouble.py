"""Storage trouble under a live consumer, stop signals, clocks that jump: nothing is lost, and nothing runs twice."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import fleet
import psutil
import pytest
import workshop
from conversation import is_gone
from kinds import GET, endings, failure_of
from workshop import lines

from liteq import JobState, LiteQ, StorageError
from liteq.clock import SystemClock
from liteq.job import Ending

resource = pytest.importorskip("resource")

needs_prlimit = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="no prlimit here")

#: Less than one page of the write-ahead log, and enough for some lines of the consumer's own log.
TINY_DISK = 4096


def fill_disk(consumer: fleet.Member) -> None:
    """From now on this process can write to no file beyond its first bytes; its workers and the test still can."""
    resource.prlimit(consumer.pid, resource.RLIMIT_FSIZE, (TINY_DISK, resource.RLIM_INFINITY))


def free_disk(consumer: fleet.Member) -> None:
    resource.prlimit(consumer.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Some other program's write transaction."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")


# ── the registration is gone ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("what_happens", "said", "undone"),
    [
        ("DELETE FROM liteq_owner", "registration is gone", "SELECT 1"),
        (
            "UPDATE liteq_meta SET value = value + 1 WHERE key = 'schema'",
            "older than the file's by now",
            "UPDATE liteq_meta SET value = value - 1 WHERE key = 'schema'",
        ),
    ],
    ids=["not registered any more", "of an older liteq"],
)
def test_a_consumer_that_may_claim_no_more_finishes_what_runs_and_ends_with_an_error(
    app: LiteQ,
    tasks: Any,
    path: Path,
    gate: Path,
    log: str,
    caplog: pytest.LogCaptureFixture,
    eventually: Any,
    what_happens: str,
    said: str,
    undone: str,
) -> None:
    consumer = app.create_consumer(workers=2, shutdown_timeout=GET)
    with ThreadPoolExecutor(1) as thread, contextlib.ExitStack() as whatever_happens:
        whatever_happens.callback(consumer.stop, at_once=True)
        run = thread.submit(consumer.run)
        running = tasks.wait(str(gate), log)
        eventually(lambda: running.state is JobState.RUNNING)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(what_happens)
        waiting = tasks.echo(1)
        eventually(lambda: said in caplog.text)
        gate.touch()
        with pytest.raises(StorageError, match=r"not the number of a registered consumer|upgrade liteq here"):
            run.result(GET)
    assert running.state is JobState.SUCCEEDED
    assert waiting.state is JobState.READY
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(undone)
    with app.run_in_background():
        assert waiting.get(GET) == 1


def test_an_idle_consumer_notices_that_its_file_was_replaced(
    app: LiteQ, path: Path, caplog: pytest.LogCaptureFixture, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liteq.storage.sqlite_connection.TRUST_READING", 0.0)
    monkeypatch.setattr("liteq.consumer.scheduler.RECOVER_EVERY", 0.1)
    app.counts()
    app.backup(path.with_name("copy.db"))
    with app.run_in_background():
        path.with_name("copy.db").replace(path)
        eventually(lambda: "deleted or replaced while it was in use" in caplog.text)


@pytest.mark.parametrize("worker_type", ["thread", "asyncio"])
def test_a_consumer_inside_a_program_registers_anew(
    app: LiteQ, tasks: Any, path: Path, gate: Path, log: str, worker_type: str, eventually: Any
) -> None:
    hooks: list[str] = []
    app.on_startup()(lambda: hooks.append("startup"))
    app.on_shutdown()(lambda: hooks.append("shutdown"))
    app.start(workers=2, worker_type=worker_type)
    for number in range(2):
        gate.unlink(missing_ok=True)
        running = tasks.wait(str(gate), log)
        eventually(lambda running=running: running.state is JobState.RUNNING)
        registered = app.consumers()
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DELETE FROM liteq_owner")
        waiting = tasks.echo(number)
        gate.touch()
        assert waiting.get(GET) == number
        running.get(GET)
        assert [one.number for one in app.consumers()] != [one.number for one in registered]
    app.stop()
    assert (app.consumers(), hooks) == ([], ["startup", "shutdown"])


def test_a_consumer_inside_a_program_whose_file_is_gone_for_good_says_that_it_has_ended(
    app: LiteQ, tasks: Any, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any, eventually: Any
) -> None:
    def refuse(info: object) -> int:
        raise StorageError("no room")

    app.start()
    tasks.echo(1).get(GET)
    monkeypatch.setattr(app.engine.storage, "register", refuse)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM liteq_owner")
    tasks.echo(2)
    eventually(lambda: "its jobs wait until the program starts it again" in caplog.text)
    monkeypatch.undo()
    app.stop()
    with app.run_in_background():
        assert tasks.echo(3).get(GET) == 3


# ── a full disk ──────────────────────────────────────────────────────────────────────────────────────────


@needs_prlimit
@pytest.mark.slow
def test_an_outcome_waits_in_memory_until_there_is_space(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, gate: Path, log: str, eventually: Any
) -> None:
    consumer = consumers.launch(worker_type="process", workers=2)
    results = tasks.wait.map([(str(gate), log, number) for number in range(2)])
    eventually(lambda: len(lines(log)) == 2)
    fill_disk(consumer)
    gate.touch()
    eventually(lambda: consumers.logged("the storage fails"))
    waiting = tasks.add(1, 1)
    eventually(lambda: len(lines(log)) == 4)
    assert [result.state for result in results] == [JobState.RUNNING] * 2
    assert waiting.state is JobState.READY
    free_disk(consumer)
    assert results.get(GET) == ["through 0", "through 1"]
    assert waiting.get(GET) == 2
    assert [result.job().claim for result in results] == [1, 1]
    assert len(lines(log)) == 4
    eventually(lambda: consumers.logged("the storage works again"))
    assert consumer.stop() == 0
    assert len(consumers.logged("ERROR")) == 1, "one trouble, one line"


@needs_prlimit
@pytest.mark.slow
def test_an_idle_consumer_survives_a_full_disk(app: LiteQ, tasks: Any, consumers: fleet.Fleet, eventually: Any) -> None:
    consumer = consumers.launch(worker_type="process")
    tasks.add(1, 1).get(GET)
    fill_disk(consumer)
    result = tasks.add(2, 2)
    eventually(lambda: consumers.logged("the storage fails"))
    assert result.state is JobState.READY
    free_disk(consumer)
    assert result.get(GET) == 4
    assert consumer.stop() == 0


@needs_prlimit
@pytest.mark.slow
def test_a_consumer_can_be_stopped_while_the_disk_is_full(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, gate: Path, log: str, eventually: Any
) -> None:
    consumer = consumers.launch(worker_type="process")
    result = tasks.wait(str(gate), log)
    eventually(lambda: lines(log))
    fill_disk(consumer)
    gate.touch()
    eventually(lambda: consumers.logged("the storage fails"))
    consumer.signal(signal.SIGTERM)
    eventually(lambda: consumers.logged("stopping"))
    consumer.signal(signal.SIGTERM)
    assert consumer.wait(10) == 0
    assert result.state is JobState.RUNNING
    consumers.launch()
    assert result.get(GET) == "through", "what could not be written runs again"


# ── somebody else's lock ─────────────────────────────────────────────────────────────────────────────────


def test_a_foreign_lock_delays_and_loses_nothing(
    app: LiteQ, tasks: Any, consume: Any, path: Path, gate: Path, log: str, eventually: Any, caplog: Any
) -> None:
    enqueued: list[Any] = []
    producer = threading.Thread(target=lambda: enqueued.append(tasks.add(1, 1)))
    with consume(app):
        result = tasks.wait(str(gate), log)
        eventually(lambda: lines(log))
        with locked(path):
            gate.touch()
            producer.start()
            eventually(lambda: "the storage fails" in caplog.text)
            assert result.state is JobState.RUNNING
            assert enqueued == []
        assert result.get(GET) == "through"
        producer.join()
        assert enqueued[0].get(GET) == 2
    assert result.job().claim == 1
    assert lines(log) == ["began ", "ended "]


def test_deadlines_hold_while_somebody_else_has_the_lock(
    app: LiteQ, tasks: Any, consume: Any, path: Path, gate: Path, log: str, eventually: Any, caplog: Any
) -> None:
    with consume(app, worker_type="process", workers=2):
        quick = tasks.wait(str(gate), log)
        eventually(lambda: lines(log) == ["began "])
        stuck = tasks.grind.using(timeout=1)("sum", log)
        eventually(lambda: len(lines(log)) == 2)
        worker = psutil.Process(int(lines(log)[1].split()[1]))
        with locked(path):
            gate.touch()
            eventually(lambda: "the storage fails" in caplog.text)
            eventually(lambda: is_gone(worker))
        assert quick.get(GET) == "through"
        assert failure_of(stuck).error_type == "TaskTimeout"


@pytest.mark.slow
def test_a_second_signal_ends_a_consumer_behind_a_foreign_lock(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, path: Path, gate: Path, log: str, eventually: Any
) -> None:
    consumer = consumers.launch(worker_type="process")
    result = tasks.wait(str(gate), log)
    eventually(lambda: lines(log))
    with locked(path):
        gate.touch()
        eventually(lambda: consumers.logged("the storage fails"))
        consumer.signal(signal.SIGTERM)
        eventually(lambda: consumers.logged("stopping"))
        consumer.signal(signal.SIGTERM)
        assert consumer.wait(10) == 0
    consumers.launch()
    assert result.get(GET) == "through"


@pytest.mark.slow
@pytest.mark.parametrize("worker_type", ["thread", "process"])
def test_locks_that_come_and_go_lose_and_double_nothing(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, path: Path, log: str, worker_type: str, eventually: Any
) -> None:
    for _ in range(2):
        consumers.launch(workers=2, worker_type=worker_type)
    results = tasks.write_and_nap.map([(log, number, 0.005) for number in range(200)])
    while (written := len(lines(log))) < 200:
        with contextlib.suppress(sqlite3.OperationalError), locked(path):
            eventually(_idle_for(0.05, log))
        eventually(lambda written=written: len(lines(log)) > written or len(lines(log)) == 200)
    results.get(GET)
    assert sorted(map(int, lines(log))) == list(range(200))


def _idle_for(duration: float, log: str) -> Any:
    """A condition: no job has begun for so long, so whatever was claimed has ended and waits to be settled."""
    seen = [0, time.monotonic()]

    def is_idle() -> bool:
        if len(lines(log)) != seen[0]:
            seen[:] = [len(lines(log)), time.monotonic()]
        return time.monotonic() - seen[1] > duration

    return is_idle


class Failing:
    """Makes single verbs of a storage fail, as a disk does that is full now and then.

    Args:
        storage: whose methods are replaced.
        share: how many of 100 calls fail; before they do anything.
    """

    def __init__(self, storage: Any, share: int) -> None:
        self._dice = random.Random()
        self._share = share
        self.failures = 0
        for verb in ("turn", "swap", "find", "marks", "forget", "finished"):
            setattr(storage, verb, self._wrapped(getattr(storage, verb)))

    def _wrapped(self, verb: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread().name == "liteq-dispatcher" and self._dice.randrange(100) < self._share:
                self.failures += 1
                raise StorageError("out of space, now and then")
            return verb(*args, **kwargs)

        return call


@pytest.mark.parametrize("worker_type", ["thread", "process"])
def test_a_storage_that_fails_at_any_step_loses_and_doubles_nothing(
    app: LiteQ, tasks: Any, consume: Any, log: str, worker_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liteq.consumer.dispatcher.FIRST_RETRY", 0.001)
    monkeypatch.setattr("liteq.consumer.dispatcher.LAST_RETRY", 0.002)
    failing = Failing(app.storage, 30)
    with consume(app, workers=2, worker_type=worker_type):
        written = tasks.write.map([(log, number) for number in range(200)])
        late = tasks.write.using(expires=-1).map([(log, -1)] * 20)
        retried = tasks.fail_until.using(retries=3, retry_delay=0.01).map([(3,)] * 20)
        tasks.direct.revoke(once=True)
        once = tasks.direct.map([("none", None)] * 3)
        assert written.get(GET) == [None] * 200
        assert retried.get(GET) == [3] * 20
        states = [result.state for result in late]
        assert once.get(GET, return_exceptions=True)[1:] == ["attempt 1"] * 2
        for result in late:
            assert failure_of(result).error_type == "Expired"
    assert failing.failures > 0
    assert sorted(map(int, lines(log))) == list(range(200))
    assert {result.job().attempt for result in written} == {1}
    assert JobState.SUCCEEDED not in states


# ── signals ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("worker_type", ["thread", "process"])
def test_the_first_signal_waits_and_the_second_does_not(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, gate: Path, log: str, worker_type: str, eventually: Any
) -> None:
    consumer = consumers.launch(worker_type=worker_type)
    result = tasks.wait(str(gate), log)
    eventually(lambda: lines(log))
    consumer.signal(signal.SIGINT)
    eventually(lambda: consumers.logged("stopping"))
    assert result.state is JobState.RUNNING
    consumer.signal(signal.SIGTERM)
    assert consumer.wait(10) == 0
    job = result.job()
    assert (job.state, job.attempt, job.crashes) == (JobState.READY, 0, 0)


@pytest.mark.slow
def test_a_storm_of_signals_is_survived(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, gate: Path, log: str, eventually: Any
) -> None:
    for _ in range(3):
        consumer = consumers.launch(worker_type="process", workers=2)
        result = tasks.wait(str(gate), log)
        eventually(lambda: lines(log))
        for number in [signal.SIGTERM, signal.SIGINT] * 100:
            with contextlib.suppress(ProcessLookupError):
                os.kill(consumer.pid, number)
        assert consumer.wait(10) == 0
        assert result.state is JobState.READY
        Path(log).unlink()
        assert result.revoke()


@pytest.mark.slow
def test_a_signal_before_the_consumer_is_ready_counts(app: LiteQ, tasks: Any, consumers: fleet.Fleet) -> None:
    """As early as the handlers are in place: before there is a dispatcher, a pool, a worker."""
    consumer = app.create_consumer()
    consumer.on_signal(signal.SIGTERM, None)
    result = tasks.add(1, 1)
    consumer.run()
    assert result.state is JobState.READY


# ── clocks that jump ─────────────────────────────────────────────────────────────────────────────────────

HOUR = 3600.0


class JumpingClock(SystemClock):
    """The machine's clock, set forward and back by hand; the monotonic one goes on undisturbed."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> float:  # type: ignore[override]
        return time.time() + self.ahead


@pytest.fixture
def clock() -> JumpingClock:
    return JumpingClock()


@pytest.fixture
def jumpy(path: Path, clock: JumpingClock) -> Iterator[LiteQ]:
    app = workshop.build(path, clock=clock)
    yield app
    app.close()


def test_a_jump_ahead_makes_scheduled_jobs_due_soon(jumpy: LiteQ, clock: JumpingClock, consume: Any) -> None:
    tasks = workshop.tasks_of(jumpy)
    with consume(jumpy):
        result = tasks.add.using(delay=HOUR)(1, 1)
        tasks.add(1, 1).get(GET)
        clock.ahead = HOUR + 1
        assert result.get(15) == 2


def test_a_running_job_survives_jumps(
    jumpy: LiteQ, clock: JumpingClock, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    tasks = workshop.tasks_of(jumpy)
    with consume(jumpy, workers=2):
        for number, jump in enumerate([HOUR, -HOUR, -100 * HOUR, 100 * HOUR]):
            waiting = tasks.wait.using(timeout=60)(str(gate), log, number)
            eventually(lambda: lines(log))
            clock.ahead += jump
            assert tasks.write.map([(log + str(number), n) for n in range(200)]).get(GET) == [None] * 200
            gate.touch()
            assert waiting.get(GET) == f"through {number}"
            assert endings(waiting.job()) == [Ending.SUCCEEDED]
            assert sorted(map(int, lines(log + str(number)))) == list(range(200))
            gate.unlink()
            Path(log).unlink()


def test_timeouts_do_not_follow_the_wall_clock(
    jumpy: LiteQ, clock: JumpingClock, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    tasks = workshop.tasks_of(jumpy)
    with consume(jumpy):
        result = tasks.wait.using(timeout=60)(str(gate), log)
        eventually(lambda: lines(log))
        clock.ahead = HOUR
        tasks.add(1, 1)  # wakes the consumer
        eventually(lambda: jumpy.counts()[JobState.READY] == 1)
        gate.touch()
        assert result.get(GET) == "through"
        clock.ahead = -HOUR
        assert failure_of(tasks.spin(30)).error_type == "TaskTimeout"


def test_a_jump_back_delays_no_job_that_is_ready(jumpy: LiteQ, clock: JumpingClock, consume: Any) -> None:
    tasks = workshop.tasks_of(jumpy)
    with consume(jumpy):
        tasks.add(1, 1).get(GET)
        clock.ahead = -HOUR
        assert tasks.add(2, 2).get(GET) == 4
        assert tasks.fail_until.using(retries=3, retry_delay=0.01)(3).get(GET) == 3
        assert tasks.add.using(delay=0.05)(3, 3).get(GET) == 6


def test_retention_is_counted_from_the_finish_whatever_the_clock_did(
    path: Path, clock: JumpingClock, consume: Any, eventually: Any
) -> None:
    app = workshop.build(path, clock=clock, result_ttl=HOUR)
    tasks = workshop.tasks_of(app)
    with consume(app):
        old = tasks.add(1, 1)
        old.get(GET)
        assert len(app.jobs()) == 1
    clock.ahead = HOUR + 60
    with consume(app):
        eventually(lambda: app.jobs() == [])
    app.close()
