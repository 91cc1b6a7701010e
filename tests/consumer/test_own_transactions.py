"""What a job writes to the queue's own file commits together with its success, on every kind of worker."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import sqlite3
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import workshop
from kinds import GET, endings, failure_of
from workshop import lines

from liteq import JobNotFound, JobState, LiteQ, S
from liteq.job import Ending

needs_kill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills by signals")
quiet_forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(
    params=[
        "thread",
        "asyncio",
        pytest.param("greenlet", marks=pytest.mark.slow),
        "forkserver",
        pytest.param("fork", marks=[pytest.mark.slow, quiet_forks]),
        pytest.param("spawn", marks=pytest.mark.slow),
    ]
)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "greenlet":
        pytest.importorskip("gevent")
    if request.param not in ("fork", "forkserver", "spawn"):
        return {"worker_type": request.param}
    if request.param not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {request.param} here")
    return {"worker_type": "process", "start_method": request.param}


@pytest.fixture(autouse=True)
def _shared_file(app: LiteQ, path: Path, monkeypatch: pytest.MonkeyPatch, own_fork_server: None) -> None:
    """Worker processes have their app on the test's own file, which has a table of the app's own."""
    monkeypatch.setenv(workshop.FILE, str(path))
    app.counts()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE kept (word)")


def kept(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT word FROM kept ORDER BY rowid")]


# ── every kind ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_and_further_jobs_exist_if_the_job_has_succeeded(
    app: LiteQ, tasks: Any, consume: Any, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "liteq")
    heard: list[str] = []
    app.signal(S.COMPLETE)(lambda signal, job, error: heard.append(job.id))
    with consume(app):
        result = tasks.keep("a", False)
        other = app.result(result.get(GET))
        assert other.get(GET) == "a"
    assert kept(path) == ["a 1"]
    job = result.job()
    assert (endings(job), job.attempt, job.started is not None) == ([Ending.SUCCEEDED], 1, True)
    assert heard == [result.id, other.id]
    assert [record.job for record in caplog.records if record.event == "succeeded"] == heard


def test_a_failure_takes_them_along_and_a_retry_writes_them_once(
    app: LiteQ, tasks: Any, consume: Any, path: Path
) -> None:
    with consume(app):
        result = tasks.keep("a", True)
        other = app.result(result.get(GET))
        assert other.get(GET) == "a"
    job = result.job()
    assert endings(job) == [Ending.FAILED, Ending.SUCCEEDED]
    assert kept(path) == ["a 2"]
    with pytest.raises(JobNotFound):
        app.job(job.attempts[0].message)
    assert len(app.jobs()) == 2


def test_a_timeout_takes_them_along_and_the_queue_goes_on(
    app: LiteQ, tasks: Any, consume: Any, path: Path, log: str
) -> None:
    with consume(app):
        assert failure_of(tasks.keep_on("a", log)).error_type == "TaskTimeout"
        assert tasks.add(1, 1).get(GET) == 2
    assert (kept(path), lines(log)) == ([], ["wrote"])


def test_a_consumer_that_stops_takes_them_along_and_puts_the_job_back(
    app: LiteQ, tasks: Any, consume: Any, path: Path, log: str, eventually: Any
) -> None:
    with consume(app, shutdown_timeout=0.1):
        result = tasks.keep_on.using(timeout=60)("a", log)
        eventually(lambda: lines(log))
    assert (kept(path), result.state, result.job().attempt) == ([], JobState.READY, 0)


def test_coroutines_wait_for_each_other_without_stopping_their_loop(
    app: LiteQ, tasks: Any, consume: Any, path: Path
) -> None:
    words = [str(number) for number in range(6)]
    with consume(app, workers=4):
        results = tasks.akeep.map(words)
        assert tasks.aadd(1, 1).get(GET) == 2
        assert results.get(GET) == words
        assert failure_of(tasks.akeep_on(str(path) + ".log")).error_type == "TaskTimeout"
        assert tasks.akeep("last").get(GET) == "last"
    rows = kept(path)
    assert sorted(rows[::2]) == sorted(f"{word} 1" for word in [*words, "last"])
    assert [first.split()[0] for first in rows[::2]] == [second.split()[0] for second in rows[1::2]]


# ── what some kinds cannot have ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [{"worker_type": "asyncio"}])
def test_a_coroutine_on_a_shared_loop_is_told_to_await(app: LiteQ, tasks: Any, consume: Any) -> None:
    with consume(app):
        error = failure_of(tasks.aconnect_carelessly())
    assert error.error_type == "ConfigurationError" or error.error_type.endswith(".ConfigurationError")
    assert "await task.aconnection()" in error.message


@pytest.mark.parametrize("kind", [{"worker_type": "thread"}, {"worker_type": "greenlet"}], ids=["thread", "greenlet"])
def test_who_cannot_be_stopped_does_not_keep_the_write_lock(
    app: LiteQ, tasks: Any, consume: Any, path: Path, log: str, gate: Path, eventually: Any, kind: Any
) -> None:
    if kind["worker_type"] == "greenlet":
        pytest.importorskip("gevent")
    with consume(app, workers=2):
        result = tasks.keep_stubbornly(str(gate), log)
        assert failure_of(result).error_type == "TaskTimeout"
        assert tasks.add(1, 1).get(GET) == 2
        gate.touch()
        [_, told] = eventually(lambda: lines(log) if len(lines(log)) == 2 else None)
    assert "was rolled back" in told
    assert kept(path) == []


def test_immediate_mode_has_no_file(path: Path) -> None:
    app = LiteQ(path, immediate=True)

    @app.task(context=True)
    def keep(task: Any) -> None:
        task.connection()

    assert "is for a queue in an SQLite file" in failure_of(keep()).message


# ── deaths ───────────────────────────────────────────────────────────────────────────────────────────────────────────

PROCESSES = [
    {"worker_type": "process", "start_method": "forkserver"},
    pytest.param({"worker_type": "greenlet"}, marks=pytest.mark.slow),
]


@needs_kill
@pytest.mark.parametrize("kind", PROCESSES, ids=["process", "greenlet"])
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_worker_that_is_killed_at_the_commit_has_written_once_or_not_at_all(
    app: LiteQ,
    tasks: Any,
    consume: Any,
    path: Path,
    log: str,
    where: str,
    kind: Any,
    caplog: pytest.LogCaptureFixture,
    eventually: Any,
) -> None:
    if kind["worker_type"] == "greenlet":
        pytest.importorskip("gevent")
    caplog.set_level(logging.INFO, "liteq")
    with consume(app):
        result = tasks.keep_and_die(where, log)
        assert result.get(GET) == "kept"
        eventually(lambda: [one for one in caplog.records if one.event == "succeeded"])
        assert tasks.add(1, 1).get(GET) == 2
    job = result.job()
    runs = 2 if where == "before" else 1
    assert (kept(path), lines(log)) == ([f"attempt {runs}"], ["wrote"] * runs)
    assert endings(job) == [Ending.CRASHED] * (runs - 1) + [Ending.SUCCEEDED]
    events = [one.event for one in caplog.records if getattr(one, "job", "") == result.id]
    # A job that has crashed is given back, and started again, while the process for it alone comes up.
    assert [event for event, _ in groupby(events)] == ["started", "will retry"] * (runs - 1) + ["started", "succeeded"]


@needs_kill
@pytest.mark.slow
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_whole_consumer_that_is_killed_at_the_commit_has_written_once_or_not_at_all(
    app: LiteQ, tasks: Any, path: Path, log: str, where: str, consumers: Any
) -> None:
    """On threads: the worker's death is the consumer's."""
    result = tasks.keep_and_die(where, log)
    first = consumers.launch(worker_type="thread", workers=1)
    assert first.wait() == -signal.SIGKILL
    runs = 2 if where == "before" else 1
    consumers.launch(worker_type="thread", workers=1)
    assert result.get(GET) == "kept"
    assert (kept(path), lines(log)) == ([f"attempt {runs}"], ["wrote"] * runs)


@needs_kill
@pytest.mark.slow
def test_a_stopped_consumer_that_comes_back_commits_nothing_for_a_job_that_others_have(
    app: LiteQ, tasks: Any, path: Path, log: str, consumers: Any, eventually: Any
) -> None:
    """The claim of a running job is taken away, as recovery would; its success then finds another claim number."""
    result = tasks.keep_on.using(timeout=60)("a", log)
    member = consumers.launch(worker_type="thread", workers=1)
    eventually(lambda: lines(log))
    member.kill()
    consumers.launch(worker_type="thread", workers=1)
    eventually(lambda: len(lines(log)) == 2)
    assert kept(path) == []
    assert result.job().claim == 2
