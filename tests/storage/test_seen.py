"""A turn in a SQLite file that looks for nothing new knows when there is none: whoever writes, and however."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from contract import NOW, claim_one, decided, new, request
from hypothesis import given
from hypothesis import strategies as st

from liteq import LiteQ, S, lifecycle
from liteq.engine import Ended
from liteq.job import Ending, JobFilter, JobState, Outcome, Progress
from liteq.storage import sqlite as sqlite_module
from liteq.storage.base import Turn
from liteq.storage.sqlite import SqliteStorage

Write = Callable[[SqliteStorage, Path], object]


@pytest.fixture
def storage(path: Path) -> Iterator[SqliteStorage]:
    with closing(SqliteStorage(path, durability="normal")) as storage:
        yield storage


def turn(storage: SqliteStorage, unless: object | None = None, wanted: int = 5) -> Turn:
    return storage.turn([], request(storage, 1, wanted)._replace(unless=unless), NOW)


def by_others(work: Callable[[SqliteStorage], object]) -> Write:
    def write(_: SqliteStorage, path: Path) -> None:
        with closing(SqliteStorage(path, durability="normal")) as other:
            work(other)

    return write


def by_sql(*statements: str) -> Write:
    def write(_: SqliteStorage, path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    return write


def within_the_apps_transaction(storage: SqliteStorage, path: Path) -> None:
    app = LiteQ(storage)
    with closing(sqlite3.connect(path)) as connection:
        app.enqueue(app.task(name="task")(print).s(), connection=connection)
        connection.commit()


def by_a_job_for_itself(storage: SqliteStorage, _: Path) -> None:
    job = next(job for job in storage.find(JobFilter()) if job.state is JobState.RUNNING)
    own = storage.transaction(job)
    own.add([new()])
    assert own.settle(lifecycle.succeed(job, Outcome(job.seq, job.claim, Ending.SUCCEEDED, NOW, NOW, b"5")), NOW)


#: What somebody writes while a job runs, and whether a job is ready by then.
WRITES: dict[str, tuple[Write, bool]] = {
    "a job": (lambda storage, _: storage.add([new()]), True),
    "several jobs": (lambda storage, _: storage.add([new()] * 3), True),
    "another process's job": (by_others(lambda other: other.add([new()])), True),
    "a job by SQL": (by_sql("INSERT INTO liteq_enqueue (task) VALUES ('task')"), True),
    "a job in the app's transaction": (within_the_apps_transaction, True),
    "a job of a job": (by_a_job_for_itself, True),
    "a scheduled job": (lambda storage, _: storage.add([new(due=NOW + 100)]), False),
    "a mark": (lambda storage, _: storage.swap("pause:other", None, "1"), False),
    "another process's mark": (by_others(lambda other: other.swap("pause:other", None, "1")), False),
    "a consumer": (by_others(lambda other: other.register({})), False),
    "an outcome": (
        lambda storage, _: storage.apply([decided(storage.find(JobFilter())[0], Ending.SUCCEEDED)], NOW),
        False,
    ),
    "progress": (lambda storage, _: storage.turn([], None, NOW, {(1, 1): Progress(1, 2, "half")}), False),
}


@pytest.mark.parametrize("what", WRITES)
def test_whatever_is_written_is_looked_at(storage: SqliteStorage, path: Path, what: str) -> None:
    write, is_ready = WRITES[what]
    storage.add([new()])
    claim_one(storage)
    before = turn(storage)
    assert (before.jobs, before.unchanged) == ([], False)
    again = turn(storage, before.seen)
    assert again.unchanged
    assert turn(storage, again.seen).unchanged
    seen = turn(storage).seen
    write(storage, path)
    after = turn(storage, seen)
    assert not after.unchanged
    assert bool(after.jobs) is is_ready
    assert not turn(storage, seen).unchanged


def test_who_only_reads_changes_nothing(storage: SqliteStorage, path: Path) -> None:
    storage.add([new(due=NOW + 100)])
    seen = turn(storage).seen
    storage.find(JobFilter())
    with closing(SqliteStorage(path, durability="normal")) as other:
        other.counts()
    assert turn(storage, seen).unchanged


def test_a_turn_that_has_something_to_write_looks_all_the_same(storage: SqliteStorage) -> None:
    storage.add([new()])
    job = claim_one(storage)
    seen = turn(storage).seen
    back = storage.turn([lifecycle.release(job)], request(storage)._replace(unless=seen), NOW)
    assert not back.unchanged
    assert [one.seq for one in back.jobs] == [job.seq]


@given(steps=st.lists(st.tuples(st.booleans(), st.sampled_from(["add", "ask", "read", "nothing"])), max_size=20))
def test_nothing_that_is_ready_is_ever_overlooked(steps: list[tuple[bool, str]]) -> None:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with TemporaryDirectory(prefix="liteq-test-", dir=memory) as name:
        path = Path(name) / "queue.db"
        with closing(SqliteStorage(path, durability="normal")) as ours, closing(SqliteStorage(path)) as theirs:
            seen, waiting = turn(ours).seen, 0
            for by_us, what in steps:
                one = ours if by_us else theirs
                if what == "add":
                    one.add([new()])
                    waiting += 1
                elif what == "ask":
                    done = turn(ours, seen)
                    assert len(done.jobs) == min(5, waiting)
                    waiting -= len(done.jobs)
                    seen = done.seen if len(done.jobs) < 5 else None
                elif what == "read":
                    one.counts()


def test_a_success_that_a_job_has_stored_itself_is_told_although_there_is_nothing_to_write(
    storage: SqliteStorage,
) -> None:
    """A turn may have come between the job's own commit and the news of it."""
    app = LiteQ(storage)
    told: list[object] = []
    app.signal(S.COMPLETE)(lambda signal, job, *_: told.append(job.seq))
    storage.add([new()])
    job = claim_one(storage)
    outcome = Outcome(job.seq, job.claim, Ending.SUCCEEDED, NOW, NOW, b"5", settled=True)
    own = storage.transaction(job)
    own.begin()
    assert own.settle(lifecycle.succeed(job, outcome), NOW)
    seen = turn(storage).seen
    done = app.engine.round([Ended(job, outcome)], request(storage)._replace(unless=seen))
    assert (done.unchanged, told) == (False, [job.seq])


def test_a_consumer_does_not_look_again_because_of_what_it_has_written_itself(
    storage: SqliteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own commits wake it, as all others do."""
    looks = []
    whole = sqlite_module._turn
    monkeypatch.setattr(sqlite_module, "_turn", lambda *arguments: looks.append(1) or whole(*arguments))
    app = LiteQ(storage)
    add = app.task(name="add")(lambda a, b: a + b)
    pipeline = add.s(1, 1)
    for _ in range(99):
        pipeline = pipeline.then(add, 1)
    with app.run_in_background(workers=2):
        assert app.enqueue(pipeline).get(timeout=60) == 101
    assert len(looks) < 130
