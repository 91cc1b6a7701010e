"""Questions to a SQLite file: one job, many jobs, how many.

A question runs on a snapshot and never waits for a writer.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping, Set
from typing import Any

from liteq.job import FINISHED, WAITING, Attempt, Ending, Job, JobFilter, JobState, Progress
from liteq.storage.base import Outdated, Standing
from liteq.storage.sqlite_moves import DONE_CODES, NEEDED

_GENERATED_ID = re.compile(r"([1-9]\d{0,18})-([0-9a-f]{10})", re.ASCII)

_STATE_OF_CODE = {code: state for state, code in DONE_CODES.items()}

_NOTHING_MORE = "NULL AS code, NULL AS owner, NULL AS started, NULL AS finished, NULL AS result, NULL AS reason"
#: What each state table says, under one set of names; NULL where a state has no such thing.
_STATE_COLUMNS = {
    JobState.READY: _NOTHING_MORE,
    JobState.SCHEDULED: _NOTHING_MORE,
    JobState.RUNNING: "NULL AS code, s.owner, s.started, NULL AS finished, NULL AS result, NULL AS reason",
    JobState.BLOCKED: "NULL AS code, NULL AS owner, NULL AS started, NULL AS finished, NULL AS result, s.reason",
    JobState.SUCCEEDED: "s.state AS code, NULL AS owner, s.started, s.finished, s.result, s.reason",
}
_TABLES = {
    JobState.READY: "liteq_ready",
    JobState.SCHEDULED: "liteq_scheduled",
    JobState.RUNNING: "liteq_running",
    JobState.BLOCKED: "liteq_blocked",
    JobState.SUCCEEDED: "liteq_done",
}
_JOB_COLUMNS = (
    "j.id, j.rnd, j.cid, j.task, j.queue, j.priority, j.payload, j.created, j.due, j.expires, j.options, j.summary, "
    "s.claim, s.attempt, s.base, s.crashes"
)


def _select(state: JobState) -> str:
    """The SELECT … FROM … that joins one state table to the jobs."""
    progress = ", p.done, p.total, p.message" if state is JobState.RUNNING else ", NULL, NULL, NULL"
    joined = " LEFT JOIN liteq_progress p ON p.id = s.id" if state is JobState.RUNNING else ""
    return (
        f"SELECT {_JOB_COLUMNS}, {_STATE_COLUMNS[state]}{progress} "
        f"FROM {_TABLES[state]} s CROSS JOIN liteq_job j ON j.id = s.id{joined}"
    )


def _job(state: JobState, row: tuple[Any, ...], attempts: tuple[Attempt, ...] = ()) -> Job:
    seq, rnd, cid, task, queue, priority, payload, created, due, expires, options, summary, *rest = row
    claim, attempt, base, crashes, code, owner, started, finished, result, reason, done, total, message = rest
    return Job(
        seq,
        public_id(seq, cid, rnd),
        task,
        state if code is None else _STATE_OF_CODE[code],
        queue,
        priority,
        payload,
        created,
        due,
        expires,
        options,
        summary,
        claim,
        attempt,
        base,
        crashes,
        owner,
        started,
        finished,
        result,
        reason,
        None if done is None else Progress(done, total, message),
        attempts,
    )


def public_id(seq: int, cid: str | None, rnd: int) -> str:
    """A job's id: its caller's own, or the generated one."""
    return cid or f"{seq}-{rnd:010x}"


# ── one job ──────────────────────────────────────────────────────────────────────────────────────────────


def get(connection: sqlite3.Connection, job_id: str) -> Job | None:
    """The job of this public id, with its history."""
    seq = seq_of(connection, job_id)
    return None if seq is None else by_seq(connection, seq)


def by_seq(connection: sqlite3.Connection, seq: int) -> Job | None:
    """The job of this number, with its history."""
    for state in _TABLES:
        row = connection.execute(f"{_select(state)} WHERE {_by_seq(state)}", {"seq": seq}).fetchone()
        if row is not None:
            return with_history(connection, _job(state, row))
    return None


def with_history(connection: sqlite3.Connection, job: Job) -> Job:
    """The job with its attempts."""
    return job._replace(attempts=_history(connection, job))


def _by_seq(state: JobState) -> str:
    if state is JobState.READY:  # its key begins with queue and priority
        return "(s.queue, s.priority, s.id) = (SELECT queue, priority, id FROM liteq_job WHERE id = :seq)"
    return "s.id = :seq"


def random_part(job_id: str, seq: int) -> int | None:
    """The random part of a generated id that bears this number; ``None``: it is another id."""
    match = _GENERATED_ID.fullmatch(job_id)
    return int(match[2], 16) if match is not None and match[1] == str(seq) else None


def seq_of(connection: sqlite3.Connection, job_id: str) -> int | None:
    """The number of the job of this public id."""
    match = _GENERATED_ID.fullmatch(job_id)
    if match is not None and int(match[1]) < 1 << 63:
        statement = "SELECT id FROM liteq_job WHERE id = ? AND rnd = ? AND cid IS NULL"
        row = connection.execute(statement, (int(match[1]), int(match[2], 16))).fetchone()
        if row is not None:
            return int(row[0])
    row = connection.execute("SELECT id FROM liteq_job WHERE cid = ?", (job_id,)).fetchone()
    return None if row is None else int(row[0])


def _history(connection: sqlite3.Connection, job: Job) -> tuple[Attempt, ...]:
    rows = connection.execute(
        "SELECT number, ending, started, finished, error_type, message, traceback, details, peak_rss, cpu_time, log "
        "FROM liteq_attempt WHERE job = ? ORDER BY id",
        (job.seq,),
    ).fetchall()
    attempts = [Attempt(number, Ending(ending), *rest) for number, ending, *rest in rows]
    if job.state is JobState.SUCCEEDED and job.finished is not None:
        attempts.append(Attempt(job.attempt, Ending.SUCCEEDED, job.started, job.finished))
    return tuple(attempts)


# ── many jobs ────────────────────────────────────────────────────────────────────────────────────────────


def find(connection: sqlite3.Connection, query: JobFilter) -> list[Job]:
    """The jobs that match, without history: first which ones, in narrow tables and indexes, then the whole rows."""
    jobs: list[Job] = []
    everywhere = _seqs_of_any_state(connection, query)
    for state in _tables_of(query):
        seqs = _seqs_of_state(connection, state, query) if everywhere is None else everywhere
        if seqs:
            conditions, values = _conditions(state, query)
            where = " AND ".join([_by_seqs(state), *conditions])
            rows = connection.execute(f"{_select(state)} WHERE {where}", values | {"seqs": str(seqs)}).fetchall()
            jobs += [_job(state, row) for row in rows]
    jobs.sort(key=lambda job: job.seq, reverse=query.newest_first)
    return jobs if query.limit is None else jobs[: query.limit]


def jobs(connection: sqlite3.Connection, seqs: list[int], states: Set[JobState] = frozenset(JobState)) -> list[Job]:
    """Those of these jobs that stand in one of these states, in the order of ``seq``, without payload or history."""
    found: list[Job] = []
    for state in _TABLES:
        if state in states or (state is JobState.SUCCEEDED and states & FINISHED):
            statement = _select(state).replace("j.payload", "x''", 1)
            rows = connection.execute(f"{statement} WHERE {_by_seqs(state)}", {"seqs": str(seqs)}).fetchall()
            found += [_job(state, row) for row in rows]
    return sorted((job for job in found if job.state in states), key=lambda job: job.seq)


def _by_seqs(state: JobState) -> str:
    if state is JobState.READY:  # its key begins with queue and priority
        keys = "SELECT queue, priority, id FROM liteq_job WHERE id IN (SELECT value FROM json_each(:seqs))"
        return f"(s.queue, s.priority, s.id) IN ({keys})"
    return "s.id IN (SELECT value FROM json_each(:seqs))"


def _seqs_of_any_state(connection: sqlite3.Connection, query: JobFilter) -> list[int] | None:
    """The jobs that match as far as their own rows tell; ``None`` where a state table is the better place to begin."""
    if query.expired_at is not None:
        condition = f"expires > :since AND expires <= :now AND ({_WAITS})"
    elif not query.states and query.owner is None and query.reason is None and query.finished_before is None:
        condition = "rnd >= 0"
    else:
        return None
    condition += "".join(
        f" AND {column} = :{column}" for column in ("queue", "task") if getattr(query, column) is not None
    )
    if query.after is not None:
        condition += f" AND id {'<' if query.newest_first else '>'} :after"
    values = {
        "since": query.expired_after,
        "now": query.expired_at,
        "queue": query.queue,
        "task": query.task,
        "after": query.after,
    }
    statement = f"SELECT id FROM liteq_job j WHERE {condition}{_order_and_limit('id', query)}"
    return [row[0] for row in connection.execute(statement, values).fetchall()]


def _seqs_of_state(connection: sqlite3.Connection, state: JobState, query: JobFilter) -> list[int]:
    conditions, values = _conditions(state, query)
    joined = " CROSS JOIN liteq_job j ON j.id = s.id" if any("j." in one for one in conditions) else ""
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    order = _order_and_limit("s.id", query)
    rows = connection.execute(f"SELECT s.id FROM {_TABLES[state]} s{joined}{where}{order}", values).fetchall()
    return [row[0] for row in rows]


#: Whether a job is in one of the tables of waiting jobs.
_WAITS = " OR ".join(
    f"EXISTS (SELECT 1 FROM {table} s WHERE {key})"
    for table, key in (
        ("liteq_ready", "(s.queue, s.priority, s.id) = (j.queue, j.priority, j.id)"),
        ("liteq_scheduled", "s.id = j.id"),
        ("liteq_blocked", "s.id = j.id"),
    )
)


def _order_and_limit(column: str, query: JobFilter) -> str:
    ends = "" if query.limit is None else f" LIMIT {int(query.limit)}"
    return f" ORDER BY {column}{' DESC' if query.newest_first else ''}{ends}"


def _tables_of(query: JobFilter) -> Iterator[JobState]:
    """The states that stand for the tables to look into."""
    states = query.states or frozenset(JobState)
    for state in _TABLES:
        if state in states or (state is JobState.SUCCEEDED and states & FINISHED):
            yield state


def _conditions(state: JobState, query: JobFilter) -> tuple[list[str], dict[str, object]]:
    conditions: list[str] = []
    values: dict[str, object] = {}

    def require(condition: str | None, name: str, value: object) -> None:
        """``None``: no job of this table can match."""
        conditions.append(condition or "FALSE")
        values[name] = value

    if state is JobState.SUCCEEDED and query.states:
        codes = sorted(DONE_CODES[one] for one in query.states & FINISHED)
        if len(codes) < len(DONE_CODES):
            # Spelled out, "state <> 0" lets SQLite see that the partial index serves.
            unsuccessful = "" if DONE_CODES[JobState.SUCCEEDED] in codes else " AND s.state <> 0"
            conditions.append(f"s.state IN ({', '.join(map(str, codes))}){unsuccessful}")
    if query.queue is not None:
        require(
            "s.queue = :queue" if state in (JobState.READY, JobState.SCHEDULED) else "j.queue = :queue",
            "queue",
            query.queue,
        )
    if query.task is not None:
        require("j.task = :task", "task", query.task)
    if query.after is not None:
        require(f"s.id {'<' if query.newest_first else '>'} :after", "after", query.after)
    if query.owner is not None:
        require("s.owner = :owner" if state is JobState.RUNNING else None, "owner", query.owner)
    if query.reason is not None:
        require("s.reason = :reason" if state is JobState.BLOCKED else None, "reason", query.reason)
    if query.finished_before is not None:
        done = state is JobState.SUCCEEDED
        require("s.finished < :before" if done else None, "before", query.finished_before)
    if query.expired_at is not None and state not in WAITING:
        conditions.append("FALSE")
    return conditions, values


def standing(connection: sqlite3.Connection, seqs: list[int]) -> dict[int, Standing]:
    """Where these stand, and every running one; without those that have finished."""
    found: dict[int, Standing] = {}
    for state, columns in _WHERE_COLUMNS.items():
        condition = "" if state is JobState.RUNNING else f" WHERE {_by_seqs(state)}"
        rows = connection.execute(
            f"SELECT s.id, j.queue, j.due, s.claim, {columns}, j.expires "
            f"FROM {_TABLES[state]} s CROSS JOIN liteq_job j ON j.id = s.id{condition}",
            {"seqs": str(seqs)} if condition else {},
        ).fetchall()
        for seq, *fields in rows:
            found[seq] = Standing(seq, state, *fields)
    return found


_WHERE_COLUMNS = {
    JobState.READY: "NULL, NULL",
    JobState.SCHEDULED: "NULL, NULL",
    JobState.RUNNING: "s.owner, NULL",
    JobState.BLOCKED: "NULL, s.reason",
}


def finished(connection: sqlite3.Connection, seqs: list[int]) -> set[int]:
    """Which of these are neither waiting nor running."""
    text = str(seqs)
    done = connection.execute("SELECT id FROM liteq_done WHERE id IN (SELECT value FROM json_each(?))", (text,))
    found = {row[0] for row in done.fetchall()}
    if len(found) < len(seqs):
        known = connection.execute(
            "SELECT id FROM liteq_job WHERE id IN (SELECT value FROM json_each(?)) AND rnd >= 0", (text,)
        )
        found |= set(seqs) - {row[0] for row in known.fetchall()}
    return found


def removable(connection: sqlite3.Connection, query: JobFilter) -> list[int]:
    """The ``seq`` of finished jobs that match, at most ``query.limit``."""
    if query.states and not query.states & FINISHED:
        return []
    conditions, values = _conditions(JobState.SUCCEEDED, query)
    conditions.append(f"NOT {NEEDED}")
    statement = "SELECT s.id FROM liteq_done s"
    if query.queue is not None or query.task is not None:
        statement += " CROSS JOIN liteq_job j ON j.id = s.id"
    if conditions:
        statement += f" WHERE {' AND '.join(conditions)}"
    if query.limit is not None:
        statement += f" LIMIT {int(query.limit)}"
    return [row[0] for row in connection.execute(statement, values).fetchall()]


#: In how many seconds one will have been kept long enough; NULL: never.
_MARGIN = f"CASE s.state {' '.join(f'WHEN {code} THEN s.finished - :b{code}' for code in DONE_CODES.values())} END"
_LOOK = f"""
SELECT max(id), count(*), min(CASE WHEN margin >= 0 THEN margin END) FROM
    (SELECT s.id, {_MARGIN} AS margin FROM liteq_done s WHERE s.id > :after ORDER BY s.id LIMIT :window)
"""
_OUTDATED = f"""
SELECT s.id FROM liteq_done s
WHERE s.id > :after AND s.id <= :last AND {_MARGIN} < 0 AND NOT {NEEDED} ORDER BY s.id LIMIT :limit
"""


def outdated(
    connection: sqlite3.Connection, before: Mapping[JobState, float], after: int, window: int, limit: int
) -> Outdated:
    """See the contract. In order of the ids: an index of the times would cost each job some microseconds."""
    bounds = {f"b{code}": before.get(state) for state, code in DONE_CODES.items()}
    values = bounds | {"after": after, "window": window, "limit": limit}
    last, number, margin = connection.execute(_LOOK, values).fetchone()
    if not number:
        return Outdated([], None, None)
    seqs = [row[0] for row in connection.execute(_OUTDATED, values | {"last": last}).fetchall()]
    if len(seqs) == limit:
        return Outdated(seqs, seqs[-1], margin)
    return Outdated(seqs, last if number == window else None, margin)


# ── how many ─────────────────────────────────────────────────────────────────────────────────────────────


def counts(connection: sqlite3.Connection) -> dict[JobState, int]:
    """How many jobs stand in each state."""
    numbers = dict.fromkeys(JobState, 0)
    for state, table in _TABLES.items():
        numbers[state] = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    rows = connection.execute("SELECT state, count(*) FROM liteq_done WHERE state <> 0 GROUP BY state").fetchall()
    for code, number in rows:
        numbers[_STATE_OF_CODE[code]] = number
        numbers[JobState.SUCCEEDED] -= number
    return numbers


def queues(connection: sqlite3.Connection) -> dict[str, int]:
    """How many jobs are ready in each queue."""
    return dict(connection.execute("SELECT queue, count(*) FROM liteq_ready GROUP BY queue ORDER BY queue").fetchall())


def ahead(connection: sqlite3.Connection, seq: int) -> int:
    """How many ready jobs of its queue come before a ready one; two ranges of the index."""
    values = {"seq": seq}
    if connection.execute(f"SELECT 1 FROM liteq_ready s WHERE {_by_seq(JobState.READY)}", values).fetchone() is None:
        return 0
    return sum(int(connection.execute(one, values).fetchone()[0]) for one in _AHEAD)


_AHEAD = tuple(
    f"SELECT count(*) FROM liteq_job j CROSS JOIN liteq_ready r ON r.queue = j.queue AND {rank} WHERE j.id = :seq"
    for rank in ("r.priority > j.priority", "r.priority = j.priority AND r.id < j.id")
)


def next_expiry(connection: sqlite3.Connection, after: float) -> float | None:
    """The first instant after this one at which a job expires; one look into an index."""
    row = connection.execute("SELECT min(expires) FROM liteq_job WHERE expires > ?", (after,)).fetchone()
    return None if row is None else row[0]


def reasons(connection: sqlite3.Connection, prefix: str) -> dict[str, int]:
    """How many jobs are blocked for each reason that begins with ``prefix``; the others are not looked at."""
    statement = "SELECT reason, count(*) FROM liteq_blocked WHERE reason >= ? AND reason < ? GROUP BY reason"
    return dict(connection.execute(statement, (prefix, prefix + chr(0x10FFFF))).fetchall())
