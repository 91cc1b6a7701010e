"""Rows that are written with few statements: all of them arrive, in their order, whatever they have values for."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liteq import Job, JobState, lifecycle
from liteq.storage.base import ClaimRequest
from liteq.storage.sqlite import SqliteStorage
from liteq.storage.sqlite_rows import Rows, blob

NOW = 1_700_000_000.25


@pytest.fixture
def table() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, data BLOB, mark TEXT)")
        yield connection


@pytest.mark.parametrize("number", [0, 1, 7, 8, 9, 332, 333, 334, 341, 342, 1000])
def test_however_many_they_are_they_arrive_in_their_order(table: sqlite3.Connection, number: int) -> None:
    rows = [(7 * n, f"n{n}", blob(b"\0%d" % n)) for n in range(number)]
    Rows("t", ("id", "name", "data"), {"mark": "'new'"}).insert(table, rows)
    found = table.execute("SELECT * FROM t ORDER BY rowid").fetchall()
    assert found == [(key, name, bytes(data), "new") for key, name, data in rows]


def test_no_statement_has_more_variables_than_the_oldest_sqlite_takes(table: sqlite3.Connection) -> None:
    table.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)
    Rows("t", ("id", "name")).insert(table, [(n, None) for n in range(2000)])
    assert table.execute("SELECT count(*) FROM t").fetchone() == (2000,)


JOBS = st.lists(
    st.builds(
        lambda later, options, summary, expires: Job(
            0, "", "t", JobState.READY, payload=b"[[],{}]", created=NOW,
            due=NOW + 5 if later else None, options=options, summary=summary, expires=expires,
        ),
        st.booleans(), st.none() | st.just('{"retries":2}'), st.none() | st.just("1, 2"), st.none() | st.just(NOW + 60),
    ),
    min_size=1,
    max_size=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def storage() -> Iterator[SqliteStorage]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with TemporaryDirectory(dir=memory) as name:
        storage = SqliteStorage(Path(name) / "queue.db", durability="normal")
        yield storage
        storage.close()


@given(JOBS)
def test_jobs_that_say_more_than_others_lose_nothing_and_lend_nothing(storage: SqliteStorage, jobs: list[Job]) -> None:
    for batch in ([], jobs, *[[job] for job in jobs]):
        submitted = [lifecycle.submit(job) for job in batch]
        stored = storage.add(submitted)
        assert [storage.get(job.id) for job in stored] == list(stored)
        assert [job[3:12] for job in stored] == [job[3:12] for job in submitted]


def test_results_of_some_and_none_of_others_are_settled_together(path: Path) -> None:
    storage, number = SqliteStorage(path, durability="normal"), 300
    try:
        storage.add([Job(0, "", "t", JobState.READY, payload=b"[[],{}]", created=NOW) for _ in range(number)])
        owner = storage.register({})
        running = storage.turn([], ClaimRequest(owner, number), NOW).jobs
        results = {job.seq: b"%d" % job.seq if job.seq % 3 else None for job in running}
        successes = [
            lifecycle.Success(job.seq, job.claim, job.attempt, job.base, job.crashes, NOW, NOW + 1, results[job.seq])
            for job in running
        ]
        assert not storage.turn([], None, NOW, None, successes).lost
        ended = [storage.get(job.id) for job in running]
        assert [(job.state, job.result) for job in ended if job] == [
            (JobState.SUCCEEDED, result) for result in results.values()
        ]
    finally:
        storage.close()
