"""The one loop: how much it claims, when it gives back, and when a burst is over."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import fleet
import pytest
import workshop
from hypothesis import given
from hypothesis import strategies as st
from kinds import GET, failure_of
from workshop import lines

from liteq import JobState, LiteQ
from liteq.consumer.prefetch import AHEAD, MOST_AHEAD, Prefetch

DURATIONS = st.lists(st.floats(0, 1e6), min_size=1, max_size=20)
# As they come out where the wall clock jumped in between.
CRAZY_DURATIONS = st.lists(st.floats(-1e9, 1e9, allow_nan=False), min_size=1, max_size=20)
WORKERS = st.integers(0, 64)
HELD = st.integers(0, 2000)


def trained(rounds: int = 20, duration: float = 0.00001) -> Prefetch:
    prefetch = Prefetch()
    for _ in range(rounds):
        prefetch.observe([duration] * 10)
    return prefetch


# ── how much to claim ────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(CRAZY_DURATIONS), WORKERS, HELD)
def test_never_too_few_for_the_idle_nor_too_many_for_anybody(
    rounds: list[list[float]], workers: int, held: int
) -> None:
    prefetch = Prefetch()
    for durations in rounds:
        prefetch.observe(durations)
    wanted = prefetch.wanted(workers, held)
    assert max(0, workers - held) <= wanted
    assert wanted == 0 or wanted + held <= workers + MOST_AHEAD


@given(st.lists(DURATIONS), HELD)
def test_nothing_is_claimed_while_no_worker_is_ready(rounds: list[list[float]], held: int) -> None:
    prefetch = Prefetch()
    for durations in rounds:
        prefetch.observe(durations)
    assert prefetch.wanted(0, held) == 0


@given(st.lists(DURATIONS), WORKERS, HELD)
def test_asking_changes_nothing(rounds: list[list[float]], workers: int, held: int) -> None:
    prefetch = Prefetch()
    for durations in rounds:
        prefetch.observe(durations)
    first = prefetch.wanted(workers, held)
    assert [prefetch.wanted(workers, held) for _ in range(10)] == [first] * 10


@given(WORKERS, HELD)
def test_before_anything_is_known_each_worker_gets_one(workers: int, held: int) -> None:
    assert Prefetch().wanted(workers, held) == max(0, workers - held)


@given(st.integers(1, 64), st.floats(1.001, 1000))
def test_slow_jobs_are_not_claimed_ahead(workers: int, times: float) -> None:
    assert trained(duration=workers * AHEAD * times).wanted(workers, 0) == workers


@given(st.integers(1, 64), st.floats(0.0001, 0.01))
def test_about_so_much_is_claimed_ahead_as_runs_in_a_moment(workers: int, duration: float) -> None:
    ahead = trained(rounds=100, duration=duration).wanted(workers, 0) - workers
    assert ahead <= workers * AHEAD / duration + 1
    assert ahead >= min(workers * AHEAD / duration * 0.99, MOST_AHEAD) - 1


def test_the_first_fast_batches_prove_little() -> None:
    prefetch = Prefetch()
    ahead = []
    for _ in range(12):
        prefetch.observe([0.000001])
        ahead.append(prefetch.wanted(1, 0) - 1)
    assert ahead[0] <= 2
    assert all(later <= 2 * earlier for earlier, later in pairwise(ahead))
    assert ahead[-1] == MOST_AHEAD


def test_one_slow_job_is_believed_sooner_than_one_fast_one() -> None:
    prefetch = trained()
    before = prefetch.wanted(4, 0)
    prefetch.observe([0.5])
    assert prefetch.wanted(4, 0) == 4, "at once"
    prefetch.observe([0.000001] * 100)
    assert prefetch.wanted(4, 0) < before, "not at once"


def test_having_given_back_is_a_lesson() -> None:
    prefetch = trained()
    prefetch.gave_back()
    assert prefetch.wanted(4, 0) == 4
    prefetch.observe([0.000001])
    assert prefetch.wanted(4, 0) <= 4 + 2


# ── giving back ──────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_claimed_too_early_goes_to_another_consumer(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    with consume(app):
        tasks.pass_or_wait.map([(None, os.devnull, "")] * 500).get(GET)
        app.pause("default")
        results = tasks.pass_or_wait.map([(str(gate) if number == 0 else None, log, number) for number in range(100)])
        app.resume("default")
        eventually(lambda: lines(log) == ["began 0"])
        with consume(app):
            eventually(lambda: len(lines(log)) == 100)
            gate.touch()
            results.get(GET)
    assert [result.job().attempt for result in results] == [1] * 100


def test_what_was_given_back_keeps_its_place(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    with consume(app):
        tasks.pass_or_wait.map([(None, os.devnull, "")] * 500).get(GET)
        app.pause("default")
        results = tasks.pass_or_wait.map([(str(gate) if number == 0 else None, log, number) for number in range(50)])
        app.resume("default")
        eventually(lambda: len(app.jobs(state="ready")) >= 49, message="all but one are back")
        gate.touch()
        results.get(GET)
    assert lines(log) == ["began 0", *[f"ended {number}" for number in range(50)]]


# ── bursts ───────────────────────────────────────────────────────────────────────────────────────────────


def burst(app: LiteQ, **options: Any) -> None:
    app.create_consumer(**{"app_path": "workshop:app", "burst": True} | options).run()


@pytest.mark.parametrize("worker_type", ["thread", "process"])
def test_a_burst_of_nothing_ends(app: LiteQ, worker_type: str) -> None:
    burst(app, worker_type=worker_type, workers=4)


@pytest.mark.parametrize("worker_type", ["thread", "process"])
def test_a_burst_goes_on_with_what_its_jobs_enqueue(app: LiteQ, tasks: Any, path: Path, worker_type: str) -> None:
    results = tasks.enqueue_another.map([(str(path),)] * 5)
    burst(app, worker_type=worker_type, workers=2)
    assert [app.result(other).get(0) for other in results.get(0)] == ["from inside"] * 5


def test_a_burst_waits_for_its_running_jobs(app: LiteQ, tasks: Any) -> None:
    results = tasks.nap.map([(0.3,), (0.01,), (0.1,)])
    burst(app, workers=3)
    assert all(result.is_ready() for result in results)


def test_a_burst_does_not_wait_for_what_is_due_later(app: LiteQ, tasks: Any) -> None:
    later = tasks.add.using(delay=3600)(1, 1)
    retried = tasks.fail_until.using(retries=1, retry_delay=3600)(2)
    burst(app)
    assert later.state is retried.state is JobState.SCHEDULED


def test_a_burst_runs_what_became_due_while_nobody_was_there(path: Path, app: LiteQ, tasks: Any) -> None:
    results = tasks.add.using(delay=0.01).map([(number, 0) for number in range(20)])
    until = time.monotonic() + 0.02
    while time.monotonic() < until:
        pass
    burst(app)
    assert results.get(0) == list(range(20))


def test_a_burst_does_not_wait_for_paused_queues_nor_other_ones(app: LiteQ, tasks: Any) -> None:
    app.pause("paused")
    paused, other = tasks.add.using(queue="paused")(1, 1), tasks.add.using(queue="other")(1, 1)
    mine = tasks.add.using(queue="mine")(1, 1)
    burst(app, queues=("mine", "paused"))
    assert (mine.state, paused.state, other.state) == (JobState.SUCCEEDED, JobState.READY, JobState.READY)


def test_a_burst_does_not_wait_for_what_nobody_knows(app: LiteQ, path: Path) -> None:
    wiser = workshop.build(path, wise=True)
    result = workshop.tasks_of(wiser).news()
    burst(app)
    assert result.state is JobState.BLOCKED
    burst(wiser)
    assert result.get(0) == "known by now"
    wiser.close()


def test_a_burst_ends_what_is_revoked_or_expired(app: LiteQ, tasks: Any) -> None:
    revoked, expired = tasks.add(1, 1), tasks.echo.using(expires=-1)("late")
    tasks.add.revoke()
    burst(app)
    assert (revoked.state, expired.state) == (JobState.REVOKED, JobState.EXPIRED)


def test_a_burst_runs_what_a_dead_consumer_has_left(app: LiteQ, tasks: Any, path: Path) -> None:
    results = tasks.add.map([(number, 1) for number in range(5)])
    script = """if True:
        import sys, time
        from liteq.storage.base import ClaimRequest
        from liteq.storage.sqlite import SqliteStorage
        storage = SqliteStorage(sys.argv[1])
        assert len(storage.turn([], ClaimRequest(storage.register({}), 5), time.time()).jobs) == 5
    """
    environment = {**os.environ, "PYTHONPATH": str(fleet.HERE.parents[1])}
    subprocess.run([sys.executable, "-c", script, str(path)], env=environment, check=True)
    assert [result.state for result in results] == [JobState.RUNNING] * 5
    burst(app)
    assert results.get(0) == list(range(1, 6))


@pytest.mark.parametrize("worker_type", ["thread", "process"])
def test_two_bursts_share_the_work(app: LiteQ, tasks: Any, consume: Any, log: str, worker_type: str) -> None:
    results = tasks.write.map([(log, number) for number in range(500)])
    with consume(app, burst=True, worker_type=worker_type):
        burst(app, worker_type=worker_type)
        results.get(GET)  # the other one may still be at it
    assert sorted(map(int, lines(log))) == list(range(500))


# ── duties ───────────────────────────────────────────────────────────────────────────────────────────────


def test_waiting_jobs_expire_though_no_worker_comes_to_them(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    app.pause("paused")
    with consume(app):
        tasks.wait(str(gate), log)
        eventually(lambda: lines(log))
        soon = tasks.add.using(expires=0.1)(1, 1)
        paused = tasks.add.using(expires=0.1, queue="paused")(1, 1)
        long_ago = tasks.add.using(expires=-60, queue="paused")(1, 1)
        scheduled = tasks.add.using(expires=0.1, delay=60)(1, 1)
        for result in (soon, paused, long_ago, scheduled):
            assert failure_of(result).error_type == "Expired"
        gate.touch()


def test_where_no_schedule_is_fired_the_dead_are_still_looked_after(
    app: LiteQ, tasks: Any, consume: Any, consumers: Any, gate: Path, log: str, eventually: Any
) -> None:
    result = tasks.wait(str(gate), log)
    victim = consumers.launch()
    eventually(lambda: lines(log))
    victim.kill()
    gate.touch()
    with consume(app, periodic=False):
        assert result.get(GET) == "through"


def test_an_idle_consumer_does_nothing(app: LiteQ, tasks: Any, consume: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    turn = app.storage.turn
    monkeypatch.setattr(app.storage, "turn", lambda *args, **kwargs: (calls.append("turn"), turn(*args, **kwargs))[1])
    with consume(app, workers=2):
        tasks.add(1, 1).get(GET)
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            before = len(calls)
        assert before <= 6, "it turns and turns"
