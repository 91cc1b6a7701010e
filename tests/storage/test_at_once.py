"""What must not wait, as it is done on an event loop: it is done at once, or refused with nothing done."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from steps_contract import Bench, step

from liteq import Job, StorageBusy
from liteq.storage.sqlite import SqliteStorage
from liteq.storage.sqlite_connection import CAREFUL_EVERY


@pytest.fixture
def bench(path: Path) -> Iterator[Bench]:
    storage = SqliteStorage(path, durability="normal")
    yield Bench(storage)
    storage.close()


def recorded(bench: Bench, job: Job, name: str = "charge") -> bool:
    return bench.storage.record_step_at_once(job.seq, job.claim, step(name))


def names(bench: Bench, job: Job) -> list[str]:
    return [one.name for one in bench.storage.steps(job.seq)]


def test_it_is_done_where_nobody_is_in_the_way(bench: Bench) -> None:
    job = bench.running()
    assert recorded(bench, job)
    assert not recorded(bench, job), "there is such a step"
    assert names(bench, job) == ["charge"]


def test_another_writer_of_liteq_is_not_waited_for(bench: Bench, path: Path) -> None:
    job, other = bench.running(), SqliteStorage(path, durability="normal")
    with closing(other), other._connections.turnstile, pytest.raises(StorageBusy):
        recorded(bench, job)
    assert names(bench, job) == []
    assert recorded(bench, job), "nothing is left of the refusal"


def test_a_thread_of_this_process_is_not_waited_for(bench: Bench) -> None:
    job = bench.running()
    connections = bench.storage._connections  # type: ignore[attr-defined]
    with connections._writing, pytest.raises(StorageBusy):
        recorded(bench, job)
    assert recorded(bench, job)


def test_a_foreign_writer_is_not_waited_for(bench: Bench, path: Path) -> None:
    job = bench.running()
    with closing(sqlite3.connect(path, isolation_level=None)) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageBusy):
            recorded(bench, job)
        foreign.execute("ROLLBACK")
    connections = bench.storage._connections  # type: ignore[attr-defined]
    assert connections._hurrier.execute("PRAGMA busy_timeout").fetchone() == (0,)
    assert recorded(bench, job)


def test_where_each_commit_waits_for_the_disk_nothing_is_done_at_once(path: Path) -> None:
    storage = SqliteStorage(path, durability="full")
    with closing(storage):
        bench = Bench(storage)
        job = bench.running()
        with pytest.raises(StorageBusy):
            recorded(bench, job)
        assert names(bench, job) == []


def test_now_and_then_it_is_refused_so_that_somebody_writes_the_log_back(bench: Bench) -> None:
    job, refused = bench.running(), []
    for number in range(2 * CAREFUL_EVERY):
        try:
            assert recorded(bench, job, f"{number}")
        except StorageBusy:
            refused.append(number)
    assert len(refused) == 2
    assert len(names(bench, job)) == 2 * CAREFUL_EVERY - 2


def test_after_a_close_it_is_refused_until_something_else_has_opened_the_file(bench: Bench) -> None:
    job = bench.running()
    assert recorded(bench, job)
    bench.storage.close()
    with pytest.raises(StorageBusy):
        recorded(bench, job, "while nothing is open")
    assert names(bench, job) == ["charge"]
    assert recorded(bench, job, "open again")
