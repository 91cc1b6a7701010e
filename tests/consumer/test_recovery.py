"""Consumers that die, freeze and come back: every job runs, and none is run twice while its consumer lives."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import fleet
import psutil
import pytest
from kinds import GET, endings, failure_of
from workshop import lines

from liteq import JobState, LiteQ, lifecycle
from liteq.job import Ending, Outcome
from liteq.storage.base import ClaimRequest

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills and stops by signals")

#: Seconds within which the kernel's word of a death leads to recovery; without it, consumers look every 5 s.
QUICKLY = 30.0


def has_begun(log: str, times: int) -> bool:
    return sum(line.startswith("began") for line in lines(log)) >= times


# ── many consumers ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("worker_type", ["thread", "process"])
def test_two_consumers_never_run_a_job_twice(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, log: str, worker_type: str
) -> None:
    for _ in range(2):
        consumers.launch(workers=2, worker_type=worker_type)
    results = []
    for start in range(0, 3000, 300):  # some while they start, some while they run
        results += tasks.write.map([(log, number) for number in range(start, start + 300)])
    retried = tasks.fail_until.using(retries=3, retry_delay=0.01).map([(3,)] * 50)
    for result in [*results, *retried]:
        result.get(30)
    assert sorted(map(int, lines(log))) == list(range(3000))
    assert {result.job().attempt for result in retried} == {3}
    assert consumers.logged("outcome dropped") == []


def test_two_consumers_share_slow_jobs(app: LiteQ, tasks: Any, consume: Any) -> None:
    with consume(app, workers=2) as one, consume(app, workers=2) as other:
        tasks.nap.map([(0.0,)] * 100).get(GET)  # at first they look tiny
        began = time.monotonic()
        results = tasks.nap.map([(0.05,)] * 40)
        owners: dict[int, int | None] = {}
        while results.progress() < (40, 40) and time.monotonic() < began + GET:
            for job in app.jobs(state="running"):
                owners[job.seq] = job.owner  # the last one counts: what was claimed too early is given back
        results.get(GET)
    assert one is not other
    shares = Counter(owners.values())
    assert len(shares) == 2
    assert min(shares.values()) >= 10


# ── death ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.usefixtures("no_rounds")
@pytest.mark.parametrize("options", [{"worker_type": "thread"}, {"worker_type": "process"}])
def test_the_running_jobs_of_a_killed_consumer_run_elsewhere(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, gate: Path, log: str, options: dict[str, Any], eventually: Any
) -> None:
    victim = consumers.launch(workers=3, **options)
    results = tasks.wait.map([(str(gate), log, number) for number in range(3)])
    eventually(lambda: has_begun(log, 3))
    consumers.launch(workers=3, **options)
    eventually(lambda: len(app.consumers()) == 2)
    victim.kill()
    eventually(lambda: has_begun(log, 6), QUICKLY)
    gate.touch()
    results.get(GET)
    for result in results:
        crash, success = result.job().attempts
        assert (crash.ending, success.ending) == (Ending.CRASHED, Ending.SUCCEEDED)
        assert "consumer died" in crash.details
    eventually(lambda: len(app.consumers()) == 1, message="the dead one is forgotten")


@pytest.mark.slow
@pytest.mark.usefixtures("no_rounds")
def test_every_death_is_noticed_at_once(
    app: LiteQ, tasks: Any, consume: Any, consumers: fleet.Fleet, gate: Path, log: str, eventually: Any
) -> None:
    with consume(app, queues=("other",)):
        for number in range(5):
            victim = consumers.launch()
            result = tasks.wait(str(gate), log)
            eventually(lambda number=number: has_begun(log, number + 1))
            victim.kill()
            eventually(lambda result=result: result.job().crashes == 1, QUICKLY)
            assert result.revoke()


@pytest.mark.slow
def test_a_restarted_consumer_takes_up_its_own_jobs(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, gate: Path, log: str, eventually: Any
) -> None:
    result = tasks.wait(str(gate), log)
    for death in range(2):
        victim = consumers.launch(worker_type="process")
        eventually(lambda death=death: has_begun(log, death + 1))
        victim.kill()
    gate.touch()
    consumers.launch(worker_type="process")
    assert result.get(GET) == "through"
    assert endings(result.job()) == [Ending.CRASHED, Ending.CRASHED, Ending.SUCCEEDED]


@pytest.mark.slow
def test_a_job_that_takes_its_consumers_along_is_given_up(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, log: str
) -> None:
    poison = tasks.die("SIGKILL", log)  # on a thread: of the consumer itself
    other = tasks.add(1, 1)
    for _ in range(2):
        assert consumers.launch().wait() == -signal.SIGKILL
    consumers.launch()
    assert failure_of(poison).error_type == "WorkerCrashed"
    assert other.get(GET) == 2
    assert endings(poison.job()) == [Ending.CRASHED, Ending.CRASHED]
    assert other.job().crashes == 0


@pytest.mark.slow
@pytest.mark.parametrize("worker_type", ["thread", "process"])
def test_what_a_killed_consumer_had_not_begun_costs_no_attempt(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, gate: Path, log: str, worker_type: str, eventually: Any
) -> None:
    claimed: list[Any] = []
    while len(claimed) < 2:  # they go back after 50 ms, so this may take a second try
        victim = consumers.launch(worker_type=worker_type)
        tasks.pass_or_wait.map([(None, os.devnull, "")] * 1000).get(GET)
        app.pause("default")
        results = tasks.pass_or_wait.map([(str(gate), log, 0), *[(None, log, n) for n in range(1, 200)]])
        app.resume("default")
        eventually(lambda: has_begun(log, 1), interval=0.001)
        victim.kill()
        claimed = app.jobs(state="running")
        eventually(lambda: not any(one.alive for one in app.consumers()), message="its workers have ended too")
        app.engine.recover()
        for job in claimed:
            now = app.job(job.id)
            assert (now.state, now.crashes) == (JobState.READY, int(job.id == results[0].id))
            assert now.attempt == now.crashes
        app.engine.change_all(_waiting(), lifecycle.revoke)
        Path(log).unlink()


def _waiting() -> Any:
    from liteq.job import WAITING, JobFilter

    return JobFilter(states=WAITING)


# ── life ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("worker_type", ["thread", "process"])
def test_a_frozen_consumer_is_not_robbed(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, gate: Path, log: str, worker_type: str, eventually: Any
) -> None:
    frozen = consumers.launch(worker_type=worker_type)
    result = tasks.wait(str(gate), log)
    eventually(lambda: has_begun(log, 1))
    frozen.signal(signal.SIGSTOP)
    eventually(lambda: psutil.Process(frozen.pid).status() == psutil.STATUS_STOPPED)
    consumers.launch(worker_type=worker_type)
    assert tasks.add(1, 1).get(GET) == 2  # the other one has looked for the dead before it claimed this
    assert app.engine.recover() == 0
    assert result.state is JobState.RUNNING
    gate.touch()
    frozen.signal(signal.SIGCONT)
    assert result.get(GET) == "through"
    assert lines(log) == ["began ", "ended "]
    assert result.job().claim == 1


def test_the_outcome_of_a_job_that_was_taken_over_is_dropped(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with consume(app):
        result = tasks.wait(str(gate), log, "stale")
        eventually(lambda: has_begun(log, 1))
        storage, stale = app.storage, result.job()
        usurper = storage.register({})
        assert storage.apply([lifecycle.release(stale)], time.time()) == [True]
        [fresh] = storage.turn([], ClaimRequest(usurper, 1), time.time()).jobs
        assert (fresh.seq, fresh.claim) == (stale.seq, stale.claim + 1)
        gate.touch()
        eventually(lambda: "outcome dropped" in caplog.text)
        assert tasks.add(1, 1).get(GET) == 2
        assert result.job().owner == usurper
        outcome = Outcome(fresh.seq, fresh.claim, Ending.SUCCEEDED, 0.0, 1.0, b'"fresh"')
        assert storage.apply([lifecycle.decide(fresh, lifecycle.Policy(), outcome, 1.0)], 1.0) == [True]
        assert result.get(GET) == "fresh"
    [record] = [one for one in caplog.records if "outcome dropped" in one.getMessage()]
    assert record.levelname == "WARNING"
    assert result.id in record.getMessage()
    storage.unregister(usurper)


def test_a_job_that_was_taken_over_and_has_come_back_runs_beside_its_former_self(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A consumer may hold one job twice, under two claims: only the later one counts."""
    with consume(app, workers=2):
        result = tasks.wait(str(gate), log)
        eventually(lambda: has_begun(log, 1))
        app.storage.apply([lifecycle.release(result.job())], time.time())
        eventually(lambda: has_begun(log, 2))
        gate.touch()
        assert result.get(GET) == "through"
        eventually(lambda: "outcome dropped" in caplog.text)
        assert tasks.add(1, 1).get(GET) == 2
    assert result.job().claim == 2


def test_a_consumer_that_stops_leaves_no_trace_of_itself(app: LiteQ, tasks: Any, consume: Any, path: Path) -> None:
    with consume(app, worker_type="process"):
        tasks.add(1, 1).get(GET)
        [consumer] = app.consumers()
        assert consumer.alive
        assert consumer.info["pid"] == os.getpid()
    assert app.consumers() == []
    assert list((path.parent / (path.name + "-liteq") / "consumers").iterdir()) == []


# ── the whole ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_nothing_is_lost_in_thirty_kills(
    app: LiteQ, tasks: Any, consumers: fleet.Fleet, log: str, eventually: Any
) -> None:
    """kill -9 of any process of two consumers at random: workers, fork servers, the consumers themselves."""
    dice = random.Random()
    results = tasks.write_and_nap.map([(log, number, 0.1) for number in range(500)])
    alive = [consumers.launch(workers=2, worker_type="process") for _ in range(2)]
    eventually(lambda: len(lines(log)) > 4)
    for kill in range(30):
        number = dice.randrange(2)
        if kill % 3 == 0:
            alive[number].kill()
            alive[number] = consumers.launch(workers=2, worker_type="process")
        else:
            kill_one_of(alive[number].family(), dice)
        so_far = len(lines(log))
        eventually(lambda so_far=so_far: len(lines(log)) >= min(so_far + 10, 500))
    eventually(lambda: not app.jobs(state=["ready", "scheduled", "running"], limit=1), 60.0)
    assert set(map(int, lines(log))) == set(range(500))
    assert app.counts()[JobState.RUNNING] == 0
    for result in results:
        job = result.job()
        assert job.state is JobState.SUCCEEDED or (job.state, job.crashes) == (JobState.FAILED, 3)
    assert [member.stop() for member in alive] == [0, 0]


def kill_one_of(family: list[psutil.Process], dice: random.Random) -> None:
    if family:
        try:
            dice.choice(family).kill()
        except psutil.NoSuchProcess:
            return  # it was faster
