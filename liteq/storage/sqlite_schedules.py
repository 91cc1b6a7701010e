"""Schedules in a SQLite file: `liteq_schedule`, whose columns are the fields of Schedule in their order.

What changes something runs inside the caller's IMMEDIATE transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence, Set
from typing import Any

from liteq.job import WAITING, Job, JobState
from liteq.schedule import Schedule, made
from liteq.storage import sqlite_moves as moves
from liteq.storage.base import Fire

_FIELDS = Schedule._fields
_COLUMNS = ", ".join(f'"{field}"' for field in _FIELDS)
#: A new schedule, if there is none of its name.
INSERT = f"INSERT OR IGNORE INTO liteq_schedule ({_COLUMNS}) VALUES ({', '.join('?' * len(_FIELDS))})"
_UPDATE = (
    f"UPDATE liteq_schedule SET ({_COLUMNS}) = ({', '.join('?' * len(_FIELDS))}) "
    "WHERE name = ? AND version = ? AND created = ?"
)

#: A job that was requeued has an end behind it, which is not that of its present run.
WAITING_OR_RUNNING = WAITING | {JobState.RUNNING}

# ── questions ────────────────────────────────────────────────────────────────────────────────────────────

_OUTCOME = """
CASE
    WHEN s.last_job IS NULL THEN s.last_outcome
    WHEN d.id IS NOT NULL THEN CASE d.state WHEN 0 THEN 'succeeded' WHEN 1 THEN 'failed' WHEN 2 THEN 'revoked'
                               ELSE 'expired' END
    WHEN EXISTS (SELECT 1 FROM liteq_running WHERE id = s.last_job) THEN 'running'
    WHEN EXISTS (SELECT 1 FROM liteq_scheduled WHERE id = s.last_job) THEN 'scheduled'
    WHEN EXISTS (SELECT 1 FROM liteq_blocked WHERE id = s.last_job) THEN 'blocked'
    WHEN EXISTS (SELECT 1 FROM liteq_ready r JOIN liteq_job j USING (queue, priority, id) WHERE j.id = s.last_job)
        THEN 'ready'
    ELSE s.last_outcome
END
"""
_ALL = f"""
SELECT {", ".join(f's."{field}"' for field in _FIELDS[:-2])}, {_OUTCOME}, coalesce(d.finished, s.last_finished)
FROM liteq_schedule s LEFT JOIN liteq_done d ON d.id = s.last_job
"""
_DUE = f"""
SELECT {_COLUMNS} FROM liteq_schedule
WHERE due <= ? AND name NOT IN (SELECT value FROM json_each(?)) ORDER BY due, name LIMIT ?
"""
_NOT_BOOTED = f"""
SELECT {_COLUMNS} FROM liteq_schedule
WHERE boot IS NOT NULL AND boot <> ? AND NOT paused AND NOT orphaned AND coalesce(runs < max_runs, TRUE)
    AND name NOT IN (SELECT value FROM json_each(?)) LIMIT ?
"""
_NEXT = """
SELECT due FROM liteq_schedule
WHERE due IS NOT NULL AND typeof(due) = 'real' AND name NOT IN (SELECT value FROM json_each(?))
ORDER BY due LIMIT 1
"""


def schedules(connection: sqlite3.Connection, name: str | None) -> list[Schedule]:
    """All, or the one of this name."""
    if name is None:
        rows = connection.execute(f"{_ALL} ORDER BY s.name").fetchall()
    else:
        rows = connection.execute(f"{_ALL} WHERE s.name = ?", (name,)).fetchall()
    found = [_schedule(row) for row in rows]
    return [one._replace(last_finished=None) if one.last_outcome in WAITING_OR_RUNNING else one for one in found]


def due(connection: sqlite3.Connection, now: float, boot: str | None, limit: int, without: Set[str]) -> list[Schedule]:
    """Those that are due, and those that have not run at this boot."""
    names = json.dumps(list(without))
    rows = connection.execute(_DUE, (now, names, limit)).fetchall()
    if boot is not None and len(rows) < limit:
        seen = {row[0] for row in rows}
        late = connection.execute(_NOT_BOOTED, (boot, names, limit - len(rows))).fetchall()
        rows += [row for row in late if row[0] not in seen]
    return [_schedule(row) for row in rows]


def next_due(connection: sqlite3.Connection, without: Set[str]) -> float | None:
    """When the first of them is due."""
    row = connection.execute(_NEXT, (json.dumps(list(without)),)).fetchone()
    return None if row is None else row[0]


def _schedule(row: tuple[Any, ...]) -> Schedule:
    schedule = Schedule._make(row)
    return schedule._replace(
        edited=bool(schedule.edited), paused=bool(schedule.paused), orphaned=bool(schedule.orphaned)
    )


# ── changes ──────────────────────────────────────────────────────────────────────────────────────────────


def put(connection: sqlite3.Connection, schedule: Schedule) -> bool:
    """Insert a new one, or change the one that has its version."""
    values = schedule._replace(version=schedule.version + 1)
    if schedule.version == 0:
        return connection.execute(INSERT, values).rowcount == 1
    guard = (schedule.name, schedule.version, schedule.created)
    return connection.execute(_UPDATE, (*values, *guard)).rowcount == 1


def drop(connection: sqlite3.Connection, name: str) -> bool:
    """Delete one."""
    return connection.execute("DELETE FROM liteq_schedule WHERE name = ?", (name,)).rowcount == 1


def fire(
    connection: sqlite3.Connection, fires: Sequence[Fire], add: Callable[[sqlite3.Connection, Sequence[Job]], list[Job]]
) -> list[list[Job] | None]:
    """Put each schedule as it stands afterwards, and add its jobs, if nobody else was first.

    Args:
        add: stores jobs, and answers with those whose id did not exist before.
    """
    return [_fire_one(connection, one, add) for one in fires]


def _fire_one(
    connection: sqlite3.Connection, one: Fire, add: Callable[[sqlite3.Connection, Sequence[Job]], list[Job]]
) -> list[Job] | None:
    if not put(connection, one.schedule):
        return None
    stored = []
    for job in one.jobs:
        for new in add(connection, [job._replace(state=JobState.READY)]):
            blocks = job.state is JobState.BLOCKED and new.state is not JobState.BLOCKED  # it may follow one of its key
            stored.append(moves.block_new(connection, _waiting_for(new, job)) if blocks else new)
    if one.unmade is not None and len(stored) < len(one.jobs):
        put(connection, made(one.unmade, stored, one.jobs[0].created)._replace(version=one.schedule.version + 1))
    if stored:
        last = stored[-1]
        connection.execute(
            "UPDATE liteq_schedule SET last_job = ?, last_id = ? WHERE name = ?", (last.seq, last.id, one.schedule.name)
        )
    return stored


def _waiting_for(job: Job, planned: Job) -> Job:
    return job._replace(state=JobState.BLOCKED, reason=planned.reason)
