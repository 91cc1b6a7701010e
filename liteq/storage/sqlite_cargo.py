"""Moving everything into a SQLite file, and out of it: `Storage.unload` and `Storage.take_in`.

Both go through the jobs in batches, so that no statement is longer than others; what is read is one snapshot, what is
written one transaction, which the caller has begun.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from liteq.job import Attempt, Ending, Job, JobFilter, JobState
from liteq.plan import Rule, Terms
from liteq.schedule import Schedule
from liteq.step import Step, StepKind, StepState
from liteq.storage import sqlite_moves as moves
from liteq.storage import sqlite_plans as plans
from liteq.storage import sqlite_questions as questions
from liteq.storage import sqlite_schedules as schedule_rows
from liteq.storage.cargo import (
    Mark,
    Parcel,
    Piece,
    Received,
    Residents,
    Taken,
    Tie,
    moved_schedules,
    received,
    tidy,
)
from liteq.storage.plans import NOTHING, Resolved, look_at_new

#: Jobs that are read or written by one statement of each kind.
BATCH = 500

_SEQS = "(SELECT value FROM json_each(:seqs))"

# ── out ──────────────────────────────────────────────────────────────────────────────────────────────────


def unload(connection: sqlite3.Connection, put: Callable[[Piece], None]) -> None:
    """Hand out everything that this snapshot holds."""
    for mark in connection.execute("SELECT key, value FROM liteq_mark ORDER BY key").fetchall():
        put(Mark(*mark))
    for schedule in schedule_rows.schedules(connection, None):
        put(schedule)
    last = 0
    while jobs := questions.find(connection, JobFilter(after=last, limit=BATCH)):
        for parcel in _parcels(connection, jobs):
            put(parcel)
        last = jobs[-1].seq


def _parcels(connection: sqlite3.Connection, jobs: list[Job]) -> Iterator[Parcel]:
    values = {"seqs": str([job.seq for job in jobs])}
    attempts, steps, events, ties = (_by_job(connection, one, values) for one in (_ATTEMPTS, _STEPS, _EVENTS, _TIES))
    keys, waits, terms = (_one_by_job(connection, one, values) for one in (_KEYS, _WAITS, _DEPENDENTS))
    for job in jobs:
        seq = job.seq
        key, holds, after = keys.get(seq, (None, False, None))
        dependent = terms.get(seq)
        yield tidy(
            Parcel(
                job._replace(attempts=tuple(Attempt(one, Ending(two), *rest) for one, two, *rest in attempts(seq))),
                key,
                bool(holds),
                after,
                tuple(
                    Step(StepKind(kind), name, at, StepState(state), *rest)
                    for kind, name, at, state, *rest in steps(seq)
                ),
                tuple((name, data) for name, data in events(seq)),
                waits.get(seq),
                None if dependent is None else Terms(*dependent[1:]),
                tuple(Tie(prior, Rule(rule), bool(passes)) for prior, rule, passes in ties(seq)),
                None if dependent is None else dependent[0],
            )
        )


def _step(kind: str, name: str, number: int, state: str, *rest: Any) -> Step:
    return Step(StepKind(kind), name, number, StepState(state), *rest)


def _by_job(
    connection: sqlite3.Connection, statement: str, values: dict[str, str]
) -> Callable[[int], list[tuple[Any, ...]]]:
    rows = connection.execute(statement, values).fetchall()
    found = {seq: [row[1:] for row in group] for seq, group in groupby(rows, itemgetter(0))}
    return lambda seq: found.get(seq, [])


def _one_by_job(connection: sqlite3.Connection, statement: str, values: dict[str, str]) -> dict[int, tuple[Any, ...]]:
    return {row[0]: row[1:] for row in connection.execute(statement, values).fetchall()}


_ATTEMPTS = (
    "SELECT job, number, ending, started, finished, error_type, message, traceback, details, peak_rss, cpu_time, log "
    f"FROM liteq_attempt WHERE job IN {_SEQS} ORDER BY job, id"
)
_STEPS = f"SELECT job, {', '.join(Step._fields)} FROM liteq_step WHERE job IN {_SEQS} ORDER BY job"
_EVENTS = f"SELECT job, name, data FROM liteq_event WHERE job IN {_SEQS} ORDER BY job, id"
_WAITS = f"SELECT job, event, claim FROM liteq_wait WHERE job IN {_SEQS}"
_TIES = (
    "SELECT e.job, e.prior, e.rule, e.passes FROM liteq_edge e CROSS JOIN liteq_job j ON j.id = e.prior AND j.rnd >= 0 "
    f"WHERE e.job IN {_SEQS} ORDER BY e.job, e.position"
)
_DEPENDENTS = (
    "SELECT d.id, j.id, d.shape, d.delay, d.lasts FROM liteq_dependent d "
    f"LEFT JOIN liteq_job j ON j.id = d.cause AND j.rnd >= 0 WHERE d.id IN {_SEQS}"
)
_KEYS = (
    "SELECT j.id, j.ukey, u.job IS NOT NULL, u.after FROM liteq_job j LEFT JOIN liteq_unique u "
    f"ON u.key = j.ukey AND u.task = j.task AND u.job = j.id WHERE j.id IN {_SEQS} AND j.ukey IS NOT NULL"
)

# ── in ───────────────────────────────────────────────────────────────────────────────────────────────────

#: What goes on where jobs have ended: those who waited for them.
GoOn = Callable[[sqlite3.Connection, Resolved, int, float], Resolved]


def take_in(
    connection: sqlite3.Connection,
    parcels: Sequence[Parcel],
    schedules: Sequence[Schedule],
    marks: Mapping[str, str],
    now: float,
    apply: plans.Apply,
    go_on: GoOn,
) -> Taken:
    """Store what another storage has handed out."""
    next_seq = connection.execute("SELECT coalesce(max(id), 0) + 1 FROM liteq_job").fetchone()[0]
    new = received(parcels, next_seq, _residents(connection))
    for start in range(0, len(new.parcels), BATCH):
        _store(connection, new.parcels[start : start + BATCH], new, now)
    ledger = plans.SqliteLedger(connection, apply)
    followed = look_at_new(ledger, new.touched, now) if new.touched else NOTHING
    go_on(connection, followed._replace(over=followed.over | new.over), plans.newest(connection), now)
    added = _add_schedules(connection, schedules, new.seqs)
    fresh = sum(connection.execute(_INSERT_MARK, mark).rowcount for mark in marks.items())
    return Taken(len(new.parcels), len(parcels) - len(new.parcels), added, fresh)


_INSERT_MARK = "INSERT OR IGNORE INTO liteq_mark (key, value) VALUES (?, ?)"


def _residents(connection: sqlite3.Connection) -> Residents:
    def holder(task: str, key: str) -> int | None:
        row = connection.execute("SELECT job FROM liteq_unique WHERE key = ? AND task = ?", (key, task)).fetchone()
        return None if row is None else int(row[0])

    def finished(seqs: Collection[int]) -> set[int]:
        return questions.finished(connection, sorted(seqs))

    return Residents(lambda job_id: questions.seq_of(connection, job_id), holder, finished)


def _add_schedules(connection: sqlite3.Connection, schedules: Sequence[Schedule], seqs: Mapping[int, int]) -> int:
    names = {row[0] for row in connection.execute("SELECT name FROM liteq_schedule").fetchall()}
    added = list(moved_schedules(schedules, names, seqs))
    connection.executemany(schedule_rows.INSERT, added)
    return len(added)


def _store(connection: sqlite3.Connection, parcels: Sequence[Parcel], new: Received, now: float) -> None:
    jobs = [parcel.job for parcel in parcels]
    connection.executemany(_INSERT_JOB, [_row(job) for job in jobs])
    _place(connection, [job for job in jobs if not _stands_as_new(job)])
    rows: Sequence[tuple[str, Callable[[Parcel], list[tuple[Any, ...]]]]] = (
        (moves.INSERT_ATTEMPT, lambda one: [(one.job.seq, *attempt) for attempt in one.job.attempts]),
        (_INSERT_STEP, lambda one: [(one.job.seq, *step) for step in one.steps]),
        (_INSERT_EVENT, lambda one: [(one.job.seq, *event, now) for event in one.events]),
        (_INSERT_WAIT, lambda one: [(one.job.seq, *one.awaits)] if one.awaits is not None else []),
        (_SET_KEY, lambda one: [(one.key, one.job.seq)] if one.key is not None else []),
        (_HOLD_KEY, lambda one: [(one.key, one.job.task, one.job.seq, one.after)] if one.holds else []),
        (_INSERT_DEPENDENT, lambda one: _dependent(one, new.missing)),
        (_INSERT_EDGE, _edges),
    )
    for statement, rows_of in rows:
        connection.executemany(statement, [row for parcel in parcels for row in rows_of(parcel)])


def _dependent(parcel: Parcel, missing: Mapping[int, int]) -> list[tuple[Any, ...]]:
    seq = parcel.job.seq
    return [(seq, missing[seq], parcel.cause, *parcel.terms)] if parcel.terms is not None else []


def _edges(parcel: Parcel) -> list[tuple[Any, ...]]:
    return [(parcel.job.seq, position, *tie) for position, tie in enumerate(parcel.ties)]


_INSERT_JOB = (
    "INSERT INTO liteq_job (id, rnd, cid, task, queue, priority, payload, created, due, expires, options, summary) "
    f"VALUES ({', '.join('?' * 12)})"
)
_INSERT_STEP = (
    f"INSERT INTO liteq_step (job, {', '.join(Step._fields)}) VALUES (?, {', '.join('?' * len(Step._fields))})"
)
_INSERT_EVENT = "INSERT INTO liteq_event (job, name, data, sent) VALUES (?, ?, ?, ?)"
_INSERT_WAIT = "INSERT INTO liteq_wait (job, event, claim) VALUES (?, ?, ?)"
_SET_KEY = "UPDATE liteq_job SET ukey = ? WHERE id = ?"
_HOLD_KEY = "INSERT OR REPLACE INTO liteq_unique (key, task, job, after) VALUES (?, ?, ?, ?)"
_INSERT_DEPENDENT = "INSERT INTO liteq_dependent (id, missing, cause, shape, delay, lasts) VALUES (?, ?, ?, ?, ?, ?)"
_INSERT_EDGE = "INSERT INTO liteq_edge (job, position, prior, rule, passes) VALUES (?, ?, ?, ?, ?)"


def _row(job: Job) -> tuple[Any, ...]:
    """A generated id needs no column of its own where the job keeps its number."""
    rnd = questions.random_part(job.id, job.seq)
    own = (0, job.id) if rnd is None else (rnd, None)
    return (job.seq, *own, job.task, *job[4:12])


def _stood(job: Job) -> JobState:
    """Where the insert has put it, by the triggers of liteq_job."""
    return JobState.SCHEDULED if job.due is not None and job.due > job.created else JobState.READY


def _stands_as_new(job: Job) -> bool:
    return job.state is _stood(job) and not (job.claim or job.attempt or job.base or job.crashes)


def _place(connection: sqlite3.Connection, jobs: Sequence[Job]) -> None:
    """Take jobs from where their insert has put them to where they stand."""
    for job in jobs:
        moves.take(connection, _stood(job), job.seq, 0)
        moves.put(connection, job)
