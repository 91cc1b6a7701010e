"""The floors: bare sqlite3 loops that write the same rows as liteq does, and do nothing else.

Same file format, same tables and triggers (`liteq.storage.schema`), same pragmas, the same rows with the same columns
filled. Payloads and results are bytes made beforehand. What a floor leaves out is all that makes it a queue:
encoding, results, the turnstile, guards, wake-ups, workers, retries, hooks, logging. A ratio of 0.7 against it reads:
of the time a call takes, 70 % is SQLite's and the disk's.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from random import getrandbits
from typing import Any

from benchmarks.harness import Durability
from benchmarks.tasks import ADD
from liteq.storage import schema
from liteq.storage.sqlite_connection import AUTOCHECKPOINT

#: Jobs a transaction of the claiming loop: about what a saturated dispatcher settles and claims at a time.
BATCH = 128
#: Rows a statement: 90 of 11 values stay under SQLite's oldest limit of 999 variables, as liteq must.
ROWS = 90
DONE_ROWS = 64

_COLUMNS = "rnd, cid, queue, task, priority, due, expires, created, options, summary, payload"
_INSERT_ONE = f"INSERT INTO liteq_job ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_ROWS = f"INSERT INTO liteq_job ({_COLUMNS}) VALUES {', '.join(['(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)'] * ROWS)}"

#: A row of what a claim has to read: the id, and whatever makes it a Job.
Claimed = tuple[Any, ...]


def connect(path: Path, durability: Durability) -> sqlite3.Connection:
    """A connection as liteq's writer has it; foreign writers are met with SQLite's own busy handler."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=60.0, cached_statements=256)
    connection.execute(f"PRAGMA synchronous = {durability.upper()}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT}")
    connection.execute(f"PRAGMA journal_size_limit = {16 << 20}")
    return connection


def create(path: Path, durability: Durability) -> sqlite3.Connection:
    """A fresh file with liteq's tables."""
    connection = connect(path, durability)
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute("BEGIN IMMEDIATE")
    schema.migrate(connection, str(path))
    connection.execute("COMMIT")
    return connection


# ── enqueue ──────────────────────────────────────────────────────────────────────────────────────────────


def insert_each(connection: sqlite3.Connection, payloads: Sequence[bytes]) -> None:
    """One row a transaction (the trigger's row in it): what a call of a task cannot do without."""
    execute, now = connection.execute, time.time
    for payload in payloads:
        row = (getrandbits(40), None, "default", ADD, 0, None, None, now(), None, None, payload)
        execute(_INSERT_ONE, row)


def insert_all(connection: sqlite3.Connection, payloads: Sequence[bytes], *, delay: float | None = None) -> None:
    """All rows in one transaction.

    Args:
        delay: seconds until they are due; ``None``: now.
    """
    now = time.time()
    due = None if delay is None else now + delay
    rows = [(getrandbits(40), None, "default", ADD, 0, due, None, now, None, None, payload) for payload in payloads]
    whole = len(rows) - len(rows) % ROWS
    connection.execute("BEGIN IMMEDIATE")
    for start in range(0, whole, ROWS):
        values: list[object] = []
        for row in rows[start : start + ROWS]:
            values += row
        connection.execute(_INSERT_ROWS, values)
    for row in rows[whole:]:
        connection.execute(_INSERT_ONE, row)
    connection.execute("COMMIT")


# ── claim and finish ─────────────────────────────────────────────────────────────────────────────────────

_HEAD = """
SELECT r.id, j.rnd, j.cid, j.task, j.payload, j.created, j.due, j.expires, j.options, j.summary,
       r.priority, r.claim, r.attempt, r.base, r.crashes
FROM liteq_ready r CROSS JOIN liteq_job j ON j.id = r.id
WHERE r.queue = 'default' ORDER BY r.priority DESC, r.id LIMIT ?
"""
_RANGE = "WHERE queue = 'default' AND priority = 0 AND id BETWEEN ? AND ?"
_START = f"""
INSERT INTO liteq_running (id, owner, started, claim, attempt, base, crashes)
SELECT id, 1, ?, claim + 1, attempt + 1, base, crashes FROM liteq_ready {_RANGE}
"""
_UNREADY = f"DELETE FROM liteq_ready {_RANGE}"
_UNRUN = "DELETE FROM liteq_running WHERE id IN (SELECT value FROM json_each(?)) AND claim = 1"
_DONE_COLUMNS = "id, state, claim, attempt, base, crashes, started, finished, result, reason"
_DONE = {
    rows: f"INSERT INTO liteq_done ({_DONE_COLUMNS}) VALUES {', '.join(['(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)'] * rows)}"
    for rows in (DONE_ROWS, 8, 1)
}


def turn(connection: sqlite3.Connection, finished: Sequence[Claimed], wanted: int) -> list[Claimed]:
    """Finish some jobs and claim others in one transaction, as one turn of a dispatcher does.

    Args:
        finished: what an earlier turn has claimed.
        wanted: how many to claim.

    Returns:
        The row of each claimed job, the id first; the oldest first.
    """
    now = time.time()
    connection.execute("BEGIN IMMEDIATE")
    if finished:
        _finish(connection, finished, now)
    claimed: list[Claimed] = connection.execute(_HEAD, (wanted,)).fetchall()
    if claimed:
        first, last = claimed[0][0], claimed[-1][0]
        connection.execute(_START, (now, first, last))
        connection.execute(_UNREADY, (first, last))
    connection.execute("COMMIT")
    return claimed


def _finish(connection: sqlite3.Connection, finished: Sequence[Claimed], now: float) -> None:
    connection.execute(_UNRUN, (str([job[0] for job in finished]),))
    rows = [(job[0], schema.SUCCEEDED, 1, 1, 0, 0, now, now, b"3", None) for job in finished]
    start = 0
    for size, statement in _DONE.items():
        while len(rows) - start >= size:
            values: list[object] = []
            for row in rows[start : start + size]:
                values += row
            connection.execute(statement, values)
            start += size


def drain(connection: sqlite3.Connection, batch: int = BATCH) -> int:
    """Claim and finish, batch by batch, until nothing is left; return how many."""
    number, claimed = 0, turn(connection, [], batch)
    while claimed:
        number += len(claimed)
        claimed = turn(connection, claimed, batch)
    return number
