"""Steps and events in a SQLite file.

Every function but `steps` runs inside a writing transaction. A file whose jobs have no steps pays nothing for them, but
for one look into an empty table when jobs are removed.
"""

from __future__ import annotations

import sqlite3

from liteq.job import JobState
from liteq.lifecycle import EVENT, Transition
from liteq.step import Step, StepKind, StepState, answered

#: By the last three only where two threads of a job came to a step at once.
_ORDER = "position, recorded, kind, name, number"
_COLUMNS = "kind, name, number, state, position, attempt, recorded, due, result"

#: For the fields of a Step, a job's number and its claim: one statement, which is a transaction by itself. OR IGNORE:
#: what was recorded stays as it is.
RECORD = (
    f"INSERT OR IGNORE INTO liteq_step (job, {_COLUMNS}) "
    "SELECT id, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM liteq_running WHERE id = ? AND claim = ?"
)
_REPLACE = f"INSERT OR REPLACE INTO liteq_step (job, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def steps(connection: sqlite3.Connection, seq: int) -> list[Step]:
    """What a job has recorded, in order."""
    rows = connection.execute(f"SELECT {_COLUMNS} FROM liteq_step WHERE job = ? ORDER BY {_ORDER}", (seq,))
    return [_step(row) for row in rows.fetchall()]


def _step(row: tuple[object, ...]) -> Step:
    kind, name, number, state, *rest = row
    return Step(StepKind(kind), name, number, StepState(state), *rest)  # type: ignore[arg-type]


# ── waiting for events ───────────────────────────────────────────────────────────────────────────────────


def await_event(connection: sqlite3.Connection, seq: int, claim: int, step: Step, now: float) -> Step | None:
    """Take what was sent to a running job, or note that it waits; ``None``: it does not run under this claim."""
    running = connection.execute("SELECT 1 FROM liteq_running WHERE id = ? AND claim = ?", (seq, claim)).fetchone()
    if running is None:
        return None
    known = connection.execute(
        f"SELECT {_COLUMNS} FROM liteq_step WHERE job = ? AND kind = ? AND name = ? AND number = ?", (seq, *step.key)
    ).fetchone()
    if known is not None:
        step = _step(known)
    if step.state is not StepState.WAITING:
        return step
    event = _first(connection, seq, step.name)
    result = answered(step, None if event is None else (event[1],), now)
    if event is not None:
        connection.execute("DELETE FROM liteq_event WHERE id = ?", (event[0],))
    if known is None or result is not step:
        connection.execute(_REPLACE, (seq, *result))
    return result


def _first(connection: sqlite3.Connection, seq: int, event: str) -> tuple[int, bytes | None] | None:
    """What was sent first of what has not been taken yet."""
    statement = "SELECT id, data FROM liteq_event WHERE job = ? AND name = ? ORDER BY id LIMIT 1"
    return connection.execute(statement, (seq, event)).fetchone()  # type: ignore[no-any-return]


def standing(connection: sqlite3.Connection, transition: Transition) -> Transition:
    """Where a job goes that is about to wait: nowhere, if the event has come already."""
    event = transition.awaits or ""
    if _first(connection, transition.seq, event) is not None:
        return transition._replace(target=JobState.READY, due=None, reason=None)
    statement = "INSERT OR REPLACE INTO liteq_wait (job, event, claim) VALUES (?, ?, ?)"
    connection.execute(statement, (transition.seq, event, transition.claim))
    return transition


# ── sending them ─────────────────────────────────────────────────────────────────────────────────────────


def send(connection: sqlite3.Connection, seq: int, event: str, data: bytes | None, now: float) -> bool:
    """Keep an event for a job that has not ended, and wake the job if it waits for it."""
    if connection.execute(_UNFINISHED, (seq,)).fetchone() is None:
        return False
    values = (seq, event, data, now)
    connection.execute("INSERT INTO liteq_event (job, name, data, sent) VALUES (?, ?, ?, ?)", values)
    waits = connection.execute("SELECT claim FROM liteq_wait WHERE job = ? AND event = ?", (seq, event)).fetchone()
    if waits is not None:
        _wake(connection, seq, waits[0], event, now)
    return True


_UNFINISHED = (
    "SELECT 1 FROM liteq_job j WHERE j.id = ? AND j.rnd >= 0 "
    "AND NOT EXISTS (SELECT 1 FROM liteq_done d WHERE d.id = j.id)"
)
#: Where a job may wait, and how it is known that it does: by its claim number, which the next claim raises.
_WAITING = {"liteq_blocked": " AND reason = :reason", "liteq_scheduled": ""}


def _wake(connection: sqlite3.Connection, seq: int, claim: int, event: str, now: float) -> None:
    values = {"seq": seq, "claim": claim, "reason": EVENT + event, "now": now}
    for table, waits in _WAITING.items():
        condition = f"id = :seq AND claim = :claim{waits}"
        moved = connection.execute(
            "INSERT INTO liteq_ready SELECT j.queue, j.priority, j.id, w.claim, w.attempt, w.base, w.crashes "
            f"FROM (SELECT * FROM {table} WHERE {condition}) w CROSS JOIN liteq_job j ON j.id = w.id",
            values,
        ).rowcount
        if moved:
            connection.execute(f"DELETE FROM {table} WHERE {condition}", values)
            connection.execute("UPDATE liteq_job SET due = :now WHERE id = :seq", values)
    connection.execute("DELETE FROM liteq_wait WHERE job = :seq", values)


# ── forgetting ───────────────────────────────────────────────────────────────────────────────────────────


def forget(connection: sqlite3.Connection, seq: int) -> None:
    """Delete what steps a job has recorded; events that were sent and not taken stay."""
    connection.execute("DELETE FROM liteq_step WHERE job = ?", (seq,))


def remove(connection: sqlite3.Connection, seqs: str) -> None:
    """Delete everything that jobs have here which are being removed.

    Args:
        seqs: their numbers as a JSON array.
    """
    for table in ("liteq_step", "liteq_event", "liteq_wait"):
        if connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None:
            connection.execute(f"DELETE FROM {table} WHERE job IN (SELECT value FROM json_each(?))", (seqs,))
