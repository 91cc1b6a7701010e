"""Large arguments in a SQLite file: a claim reads few of them at once, so that others need not wait for the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from contract import NOW, add_many, new

from liteq.gates import Need
from liteq.job import Job, JobState
from liteq.storage.base import ClaimRequest
from liteq.storage.sqlite import SqliteStorage

MIB = 1 << 20


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[SqliteStorage]:
    with closing(SqliteStorage(tmp_path / "queue.db", durability="normal")) as storage:
        yield storage


def claims_until_nothing_is_left(storage: SqliteStorage, **options: Any) -> Iterator[list[Job]]:
    """Turns as a dispatcher has them: it goes on at once while that is said to be due."""
    owner = storage.register({})
    due: float | None = NOW
    while due is not None and due <= NOW:
        turn = storage.turn([], ClaimRequest(owner, 64, **options), NOW)
        yield turn.jobs
        due = turn.next_due


@pytest.mark.parametrize("needs", [{}, {"task": lambda job: (Need("limit:task", 99),)}], ids=["free", "at a gate"])
def test_large_arguments_are_claimed_a_few_at_a_time_and_in_order(storage: SqliteStorage, needs: Any) -> None:
    jobs = [storage.add([new(payload=bytes([number]) * MIB)])[0] for number in range(10)]
    jobs += add_many(storage, 3)
    turns = list(claims_until_nothing_is_left(storage, needs=needs))
    assert [len(turn) for turn in turns] == [4, 4, 5]
    assert [(job.id, job.payload) for turn in turns for job in turn] == [(job.id, job.payload) for job in jobs]
    assert storage.counts()[JobState.RUNNING] == 13


def test_one_job_is_claimed_however_large_its_arguments(storage: SqliteStorage) -> None:
    storage.add([new(payload=b"x" * 9 * MIB, id=name, options="{}") for name in "ab"])
    assert [[job.id for job in turn] for turn in claims_until_nothing_is_left(storage)] == [["a"], ["b"]]


@pytest.mark.parametrize("queues", [None, ("a", "b")], ids=["by priority", "in order"])
def test_what_is_cut_short_in_one_queue_is_not_overtaken_by_the_next(
    storage: SqliteStorage, queues: tuple[str, ...] | None
) -> None:
    storage.add([new(queue="a", payload=b"x" * MIB) for _ in range(6)])
    add_many(storage, 2, queue="b")
    found = list(claims_until_nothing_is_left(storage, queues=queues))
    assert [[job.queue for job in turn] for turn in found] == [["a"] * 4, ["a", "a", "b", "b"]]


def test_arguments_that_are_not_large_are_claimed_all_at_once(storage: SqliteStorage) -> None:
    storage.add([new(payload=b"x" * (256 << 10)) for _ in range(20)])
    assert [len(turn) for turn in claims_until_nothing_is_left(storage)] == [20]
