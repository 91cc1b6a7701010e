"""Files of every released schema open, keep what is in them, and become what a new file is.

``files/schema-N.db.gz`` was written by the last liteq of that schema: jobs in each state, with history, options, a
caller's own id, marks, consumers that are gone, and (from 2 on) a schedule. Whoever raises the schema adds the file
that the version before wrote.
"""

from __future__ import annotations

import gzip
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from contract import NOW, new, succeed

from liteq.errors import StorageTooNew
from liteq.job import Ending, Job, JobFilter, JobState
from liteq.storage import schema
from liteq.storage.base import ClaimRequest
from liteq.storage.sqlite import SqliteStorage

FILES = Path(__file__).parent / "files"
VERSIONS = range(1, schema.CURRENT + 1)
LAST = 2  # the newest schema that a release, or main, had when this test was written


@pytest.fixture(params=[version for version in VERSIONS if (FILES / f"schema-{version}.db.gz").exists()])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqliteStorage]:
    path = tmp_path / "queue.db"
    path.write_bytes(gzip.decompress((FILES / f"schema-{request.param}.db.gz").read_bytes()))
    with closing(SqliteStorage(path, durability="normal")) as storage:
        yield storage


def shape(path: Path) -> set[tuple[str, str, str]]:
    """The tables, indexes, views and triggers of a file, with their text."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {(kind, name, " ".join(text.split())) for kind, name, text in rows}


def test_each_schema_that_was_released_has_its_file() -> None:
    assert all((FILES / f"schema-{version}.db.gz").exists() for version in range(1, LAST + 1))


def test_an_old_file_gets_the_shape_of_a_new_one(old: SqliteStorage, tmp_path: Path) -> None:
    assert old.schema_version() == schema.CURRENT
    with closing(SqliteStorage(tmp_path / "new.db")) as fresh:
        fresh.counts()
        assert shape(old.path) == shape(fresh.path)


def test_what_is_in_an_old_file_is_all_there(old: SqliteStorage) -> None:
    counts = {state: number for state, number in old.counts().items() if number}
    assert counts == {
        JobState.SCHEDULED: 2,
        JobState.READY: 1,
        JobState.RUNNING: 1,
        JobState.SUCCEEDED: 4,
        JobState.FAILED: 2,
        JobState.REVOKED: 2,
        JobState.EXPIRED: 1,
        JobState.BLOCKED: 1,
    }
    order = job(old, "order-7")
    assert (order.task, order.state, order.result) == ("shop.add", JobState.SUCCEEDED, b"3")
    [failed] = [old.get(one.id) for one in old.find(JobFilter(task="shop.fail"))]
    assert failed is not None
    assert failed.error is not None
    assert (failed.error.ending, failed.error.error_type) == (Ending.FAILED, "ValueError")
    assert "☃" in failed.error.message
    assert failed.error.peak_rss is None
    [flaky] = old.find(JobFilter(task="shop.flaky"))
    assert (flaky.state, flaky.attempt) == (JobState.SCHEDULED, 1)
    assert list(old.marks("pause:")) == ["pause:mail"]


def job(storage: SqliteStorage, job_id: str) -> Job:
    found = storage.get(job_id)
    assert found is not None
    return found


def test_an_old_file_goes_on(old: SqliteStorage) -> None:
    owner = old.register({})
    assert len(old.dead_owners()) == 2  # whoever ran jobs then
    added = old.add([new()])
    turn = old.turn([], ClaimRequest(owner, 10), NOW * 2)
    assert added[0].seq in {one.seq for one in turn.jobs}
    assert added[0].seq > max(one.seq for one in turn.jobs[:-1])  # ids go on from where they were


def test_a_consumer_of_an_older_liteq_claims_nothing_and_settles_what_it_runs(tmp_path: Path) -> None:
    with closing(SqliteStorage(tmp_path / "queue.db", durability="normal")) as storage:
        storage.add([new(), new()])
        owner = storage.register({})
        [running] = storage.turn([], ClaimRequest(owner, 1), NOW).jobs
        with closing(sqlite3.connect(storage.path, isolation_level=None)) as newer:
            newer.execute("UPDATE liteq_meta SET value = ? WHERE key = 'schema'", (schema.CURRENT + 1,))
        with pytest.raises(StorageTooNew, match="upgrade liteq here"):
            storage.turn([], ClaimRequest(owner, 1), NOW)
        succeed(storage, [running])
        assert storage.counts()[JobState.READY] == 1
