"""Moves between the state tables of a SQLite file: what `turn` and `remove` are made of.

Every function runs inside the caller's IMMEDIATE transaction, so what one statement saw still holds at the next.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any

from liteq.job import Job, JobState, Progress
from liteq.lifecycle import Success, Transition
from liteq.storage import schema
from liteq.storage import sqlite_steps as steps
from liteq.storage.base import ClaimRequest
from liteq.storage.sqlite_rows import Rows, blob

#: What is promoted in one turn, so that a backlog that became due during a stop does not hold the lock for long.
PROMOTED_AT_ONCE = 2000

DONE_CODES = {
    JobState.SUCCEEDED: schema.SUCCEEDED,
    JobState.FAILED: schema.FAILED,
    JobState.REVOKED: schema.REVOKED,
    JobState.EXPIRED: schema.EXPIRED,
}

_COUNTERS = "claim, attempt, base, crashes"


def as_run(seqs: Collection[int]) -> tuple[int, int] | None:
    """The first and the last of different numbers that leave none out in between, as one alone does, and jobs that were
    enqueued together: "BETWEEN" takes a third of the time of a list, of which SQLite makes a table; ``None``: they do.
    """
    first, last = min(seqs), max(seqs)
    return (first, last) if last - first + 1 == len(seqs) else None


class StaleBatch(Exception):
    """One of several successes that were settled together no longer holds; nothing may be committed."""


# ── settling, applying transitions ──────────────────────────────────────────────────────────────────────


def settle_together(connection: sqlite3.Connection, successes: Sequence[Success]) -> Set[int]:
    """Settle running jobs that succeeded with a few statements for all of them.

    Raises:
        StaleBatch: one of them no longer holds; the caller rolls back and comes again with `settle_singly`.
    """
    seqs = [success[0] for success in successes]
    claims = {success[1] for success in successes}
    for claim in claims:
        held = seqs if len(claims) == 1 else [success[0] for success in successes if success[1] == claim]
        run = as_run(held)
        if run is None:
            gone = connection.execute(_DELETE_RUNNING_MANY, (str(held), claim)).rowcount
        else:
            gone = connection.execute(_DELETE_RUNNING_RUN, (*run, claim)).rowcount
        if gone != len(held):
            raise StaleBatch
    bare = [success[:-1] for success in successes if success[-1] is None]
    _WITHOUT_RESULT.insert(connection, bare)
    if len(bare) < len(successes):
        told = [(*success[:-1], blob(success[-1])) for success in successes if success[-1] is not None]
        _WITH_RESULT.insert(connection, told)
    if _has_progress(connection):
        connection.execute(_DELETE_PROGRESS_MANY, (str(seqs),))
    return frozenset()


_DELETE_RUNNING_RUN = "DELETE FROM liteq_running WHERE id BETWEEN ? AND ? AND claim = ?"
_DELETE_RUNNING_MANY = "DELETE FROM liteq_running WHERE id IN (SELECT value FROM json_each(?)) AND claim = ?"
_DELETE_PROGRESS_MANY = "DELETE FROM liteq_progress WHERE id IN (SELECT value FROM json_each(?))"

_WITH_RESULT, _WITHOUT_RESULT = (
    Rows("liteq_done", ("id", *columns), {"state": str(schema.SUCCEEDED)})
    for columns in (Success._fields[1:], Success._fields[1:-1])
)


def settle_singly(connection: sqlite3.Connection, successes: Sequence[Success]) -> Set[int]:
    """Settle them one by one; returns the ``seq`` of each that no longer holds."""
    return {success.seq for success in successes if not apply(connection, success.transition())}


_TAKE_FROM = {
    JobState.READY: (
        "DELETE FROM liteq_ready WHERE (queue, priority, id) = "
        "(SELECT queue, priority, id FROM liteq_job WHERE id = :seq) AND claim = :claim"
    ),
    JobState.SCHEDULED: "DELETE FROM liteq_scheduled WHERE id = :seq AND claim = :claim",
    JobState.RUNNING: "DELETE FROM liteq_running WHERE id = :seq AND claim = :claim",
    JobState.BLOCKED: "DELETE FROM liteq_blocked WHERE id = :seq AND claim = :claim",
} | {
    state: f"DELETE FROM liteq_done WHERE id = :seq AND claim = :claim AND state = {code}"
    for state, code in DONE_CODES.items()
}

_PUT_INTO = {
    JobState.READY: (
        "INSERT INTO liteq_ready SELECT queue, priority, id, :claim, :attempt, :base, :crashes "
        "FROM liteq_job WHERE id = :seq"
    ),
    JobState.SCHEDULED: (
        "INSERT INTO liteq_scheduled SELECT :due, id, queue, priority, :claim, :attempt, :base, :crashes "
        "FROM liteq_job WHERE id = :seq"
    ),
    JobState.BLOCKED: "INSERT INTO liteq_blocked VALUES (:seq, :reason, :claim, :attempt, :base, :crashes)",
}

_INSERT_DONE = (
    f"INSERT INTO liteq_done (id, {_COUNTERS}, started, finished, result, state, reason) "
    "VALUES (:seq, :claim, :attempt, :base, :crashes, :started, :finished, :result, :code, :reason)"
)


def apply(connection: sqlite3.Connection, transition: Transition) -> bool:
    """Apply one transition, if its guard holds."""
    if transition.consume is not None and not _has_value(connection, *transition.consume):
        return False
    seq = transition.seq
    if not take(connection, transition.source, seq, transition.claim):
        return False
    if transition.awaits is not None:
        transition = steps.standing(connection, transition)
    if transition.target in DONE_CODES:
        code = DONE_CODES[transition.target]
        connection.execute(_INSERT_DONE, {**transition._asdict(), "code": code})
    else:
        connection.execute(_PUT_INTO[transition.target], transition._asdict())
    if transition.due is not None:
        connection.execute("UPDATE liteq_job SET due = ? WHERE id = ?", (transition.due, seq))
    if transition.forget_expiry:
        connection.execute("UPDATE liteq_job SET expires = NULL WHERE id = ?", (seq,))
    if transition.forget_steps:
        steps.forget(connection, seq)
    if transition.record is not None:
        connection.execute(INSERT_ATTEMPT, (seq, *transition.record))
    if transition.source is JobState.RUNNING:
        connection.execute("DELETE FROM liteq_progress WHERE id = ?", (seq,))
    for key in (transition.drop_mark, transition.consume and transition.consume[0]):
        if key is not None:
            connection.execute("DELETE FROM liteq_mark WHERE key = ?", (key,))
    return True


def take(connection: sqlite3.Connection, state: JobState, seq: int, claim: int) -> bool:
    """Take a job out of where it stands, if it stands there under this claim number."""
    return connection.execute(_TAKE_FROM[state], {"seq": seq, "claim": claim}).rowcount == 1


def put(connection: sqlite3.Connection, job: Job) -> None:
    """Put a job that was taken out of where it stood where it stands now; it is not running."""
    values = {name: getattr(job, name) for name in _STANDS}
    if job.state in DONE_CODES:
        connection.execute(_INSERT_DONE, values | {"code": DONE_CODES[job.state]})
    else:
        connection.execute(_PUT_INTO[job.state], values)


_STANDS = ("seq", "due", "reason", "claim", "attempt", "base", "crashes", "started", "finished", "result")


def block_new(connection: sqlite3.Connection, job: Job) -> Job:
    """Take a job that was just stored, and is to be blocked, out of where it was put."""
    stood = JobState.SCHEDULED if job.due is not None and job.due > job.created else JobState.READY
    take(connection, stood, job.seq, 0)
    put(connection, job)
    return job


#: One of a job's history: its number, and the fields of Attempt.
INSERT_ATTEMPT = (
    "INSERT INTO liteq_attempt (job, number, ending, started, finished, error_type, message, traceback, details, "
    "peak_rss, cpu_time, log) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


# ── promoting, claiming ──────────────────────────────────────────────────────────────────────────────────


def next_due(connection: sqlite3.Connection) -> float | None:
    """When the earliest scheduled job becomes due."""
    row = connection.execute("SELECT due FROM liteq_scheduled ORDER BY due LIMIT 1").fetchone()
    return None if row is None else row[0]


def promote(connection: sqlite3.Connection, now: float) -> None:
    """Make due jobs ready, the longest due first, at most PROMOTED_AT_ONCE."""
    last = connection.execute(
        "SELECT due, id FROM (SELECT due, id FROM liteq_scheduled WHERE due <= ? ORDER BY due, id LIMIT ?) "
        "ORDER BY due DESC, id DESC LIMIT 1",
        (now, PROMOTED_AT_ONCE),
    ).fetchone()
    connection.execute(
        f"INSERT INTO liteq_ready SELECT queue, priority, id, {_COUNTERS} FROM liteq_scheduled "
        "WHERE (due, id) <= (?, ?)",
        last,
    )
    connection.execute("DELETE FROM liteq_scheduled WHERE (due, id) <= (?, ?)", last)


class Claimed(list[Job]):
    """Jobs that were claimed. ``is_cut_short``: they are fewer than could be, as their arguments are large."""

    is_cut_short = False


def claim(
    connection: sqlite3.Connection,
    request: ClaimRequest,
    now: float,
    paused: set[str],
    taken: Mapping[str, int] = MappingProxyType({}),
) -> Claimed:
    """Move the heads of the queues from ready to running, up to ``request.wanted``; ``taken`` is how many of each queue
    this turn has claimed before."""
    if request.division is not None:
        return _claim_divided(connection, request, now, paused, taken)
    if request.queues is None:
        first, last = connection.execute(_OUTER_NAMES).fetchone()
        names = [first] if first == last else [row[0] for row in connection.execute(_QUEUE_NAMES).fetchall()]
        names = [name for name in names if name is not None and name not in paused]
        if len(names) > 1:
            return _claim_by_priority(connection, names, request, now)
    else:
        names = [name for name in request.queues if name not in paused]
    return _claim_each(connection, [(name, request.wanted) for name in names], request, now)


def _claim_each(
    connection: sqlite3.Connection, wanted: Iterable[tuple[str, int]], request: ClaimRequest, now: float
) -> Claimed:
    """Claim of each queue at most so many, and of all together as many as are wanted, until one is cut short."""
    claimed = Claimed()
    for name, most in wanted:
        claimed.is_cut_short = _claim_queue(
            connection, name, min(most, request.wanted - len(claimed)), request, now, claimed
        )
        if claimed.is_cut_short or len(claimed) == request.wanted:
            break
    return claimed


def _claim_divided(
    connection: sqlite3.Connection, request: ClaimRequest, now: float, paused: set[str], taken: Mapping[str, int]
) -> Claimed:
    from liteq.shares import divide  # few consumers divide anything

    names = [name for name in request.queues or () if name not in paused]
    ready = {name: connection.execute(_HOW_MANY, (name, request.wanted)).fetchone()[0] for name in names}
    assert request.division is not None
    wanted = divide(request.division, request.wanted, ready, taken)
    return _claim_each(connection, [(name, wanted[name]) for name in names if wanted.get(name)], request, now)


_HOW_MANY = "SELECT count(*) FROM (SELECT 1 FROM liteq_ready WHERE queue = ? LIMIT ?)"


#: Mostly they are one, or none.
_OUTER_NAMES = "SELECT (SELECT min(queue) FROM liteq_ready), (SELECT max(queue) FROM liteq_ready)"
#: The distinct queues by jumping through the index from one to the next: the cost is that of the number of queues.
_QUEUE_NAMES = """
WITH RECURSIVE name (queue) AS (
    SELECT min(queue) FROM liteq_ready
    UNION ALL
    SELECT (SELECT min(queue) FROM liteq_ready WHERE queue > name.queue) FROM name WHERE name.queue IS NOT NULL
) SELECT queue FROM name WHERE queue IS NOT NULL
"""


def _claim_by_priority(connection: sqlite3.Connection, names: list[str], request: ClaimRequest, now: float) -> Claimed:
    """Claim over several queues as if they were one: look at each head first, then take so many from each."""
    heads: list[tuple[int, int, str]] = []
    for name in names:
        rows = connection.execute(_HEAD, (name, request.wanted)).fetchall()
        heads += [(-priority, seq, name) for priority, seq in rows]
    heads.sort()
    wanted: dict[str, int] = {}
    for _, _, name in heads[: request.wanted]:
        wanted[name] = wanted.get(name, 0) + 1
    jobs = _claim_each(connection, wanted.items(), request, now)
    jobs.sort(key=lambda job: (-job.priority, job.seq))
    return jobs


_HEAD = "SELECT priority, id FROM liteq_ready WHERE queue = ? ORDER BY priority DESC, id LIMIT ?"

#: Arguments of more bytes are read one by one, until one turn has so many bytes of them. Read all at once, 64 jobs of
#: 1 MiB hold the write lock for 61 ms, these for 5; asking for the length costs 0.05 µs a job, and reads nothing.
LARGE, MOST_BYTES = 256 << 10, 4 << 20
_IS_LARGE = f"length(j.payload) > {LARGE}"
_SMALL = f"CASE WHEN NOT {_IS_LARGE} THEN j.payload END"

# Columns cost: reading all sixteen of `_HEAD_JOBS` takes 0.94 µs a job, these seven 0.57. The last one says whether a
# job has anything that they leave out; most have not. CROSS JOIN keeps SQLite from turning the two tables around.
_HEAD_PLAIN = f"""
SELECT r.priority, r.id, j.rnd, j.task, {_SMALL}, j.created,
       coalesce(j.cid, j.due, j.expires, j.options, j.summary, nullif(r.claim, 0), nullif({_IS_LARGE}, 0))
FROM liteq_ready r CROSS JOIN liteq_job j ON j.id = r.id
WHERE r.queue = ? ORDER BY r.priority DESC, r.id LIMIT ?
"""
# Priority and id for the moves; then what makes the id and the task; then the fields of Job from `priority` to
# `crashes` in their order, as they are once it runs.
_HEAD_JOBS = f"""
SELECT r.priority, r.id, j.rnd, j.cid, j.task, r.priority, {_SMALL}, j.created, j.due, j.expires, j.options, j.summary,
       r.claim + 1, r.attempt + 1, r.base, r.crashes
FROM liteq_ready r CROSS JOIN liteq_job j ON j.id = r.id
WHERE r.queue = ? ORDER BY r.priority DESC, r.id LIMIT ?
"""
_RUN_OF_PRIORITY = "WHERE queue = ? AND priority = ? AND id BETWEEN ? AND ?"
_START_RUN = f"""
INSERT INTO liteq_running (id, owner, started, {_COUNTERS})
SELECT id, ?, ?, claim + 1, attempt + 1, base, crashes FROM liteq_ready {_RUN_OF_PRIORITY}
"""
_UNREADY_RUN = f"DELETE FROM liteq_ready {_RUN_OF_PRIORITY}"


def _claim_queue(
    connection: sqlite3.Connection, queue: str, wanted: int, request: ClaimRequest, now: float, claimed: list[Job]
) -> bool:
    """Claim of one queue, to the end of ``claimed``; True if large arguments have cut it short."""
    is_cut_short = False
    rows = connection.execute(_HEAD_PLAIN, (queue, wanted)).fetchall()
    plain = not any([row[6] is not None for row in rows])  # noqa: C419 - a list costs half of a generator
    if not plain:
        rows = connection.execute(_HEAD_JOBS, (queue, wanted)).fetchall()
        rows, is_cut_short = _with_large_payloads(connection, rows, is_first=not claimed)
    for priority, first, last in _runs(rows):
        run = (queue, priority, first, last)
        connection.execute(_START_RUN, (request.owner, now, *run))
        connection.execute(_UNREADY_RUN, run)
    # Each row becomes a Job without going through its constructor, which costs three times as much.
    make, running = tuple.__new__, JobState.RUNNING
    rest: tuple[object, ...] = (request.owner, now, None, None, None, None, (), None, None)
    if plain:
        rest = (None, None, None, None, 1, 1, 0, 0, *rest)
        claimed += [
            make(Job, (seq, f"{seq}-{rnd:010x}", task, running, queue, priority, payload, created, *rest))
            for priority, seq, rnd, task, payload, created, _ in rows
        ]
        return False
    claimed += [
        make(Job, (row[1], row[3] or f"{row[1]}-{row[2]:010x}", row[4], running, queue, *row[5:], *rest))
        for row in rows
    ]
    return is_cut_short


def _with_large_payloads(
    connection: sqlite3.Connection, rows: list[tuple[Any, ...]], *, is_first: bool
) -> tuple[list[tuple[Any, ...]], bool]:
    """Rows of `_HEAD_JOBS` with the arguments that were left out, up to those that are too much for one turn; whether
    there are such. The first of all is never too much."""
    if all([row[_PAYLOAD] is not None for row in rows]):  # noqa: C419 - as above
        return rows, False
    kept: list[tuple[Any, ...]] = []
    room = MOST_BYTES
    for row in rows:
        if row[_PAYLOAD] is None:
            if room <= 0 and (kept or not is_first):
                return kept, True
            [payload] = connection.execute("SELECT payload FROM liteq_job WHERE id = ?", (row[1],)).fetchone()
            room -= len(payload)
            row = (*row[:_PAYLOAD], payload, *row[_PAYLOAD + 1 :])
        kept.append(row)
    return kept, False


_PAYLOAD = 6  # of a row of `_HEAD_JOBS`


def _runs(rows: list[tuple[int, int]]) -> Iterable[tuple[int, int, int]]:
    """The (priority, first id, last id) of each run of equal priority; ``rows`` begin with priority and id."""
    if not rows:
        return []
    if rows[0][0] == rows[-1][0]:  # sorted by priority: one run
        return [(rows[0][0], rows[0][1], rows[-1][1])]
    found: dict[int, tuple[int, int, int]] = {}
    for row in rows:
        priority, seq = row[0], row[1]
        first = found[priority][1] if priority in found else seq
        found[priority] = (priority, first, seq)
    return found.values()


# ── progress, marks, removing ────────────────────────────────────────────────────────────────────────────


def record_progress(connection: sqlite3.Connection, progress: Mapping[tuple[int, int], Progress]) -> None:
    """Keep how far each job is, if it is running by this claim."""
    connection.executemany(
        "INSERT OR REPLACE INTO liteq_progress SELECT id, :done, :total, :message FROM liteq_running "
        "WHERE id = :seq AND claim = :claim",
        [{"seq": seq, "claim": claim, **step._asdict()} for (seq, claim), step in progress.items()],
    )


def _has_progress(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM liteq_progress LIMIT 1").fetchone() is not None


def _has_value(connection: sqlite3.Connection, key: str, value: str) -> bool:
    row = connection.execute("SELECT value FROM liteq_mark WHERE key = ?", (key,)).fetchone()
    return row is not None and row[0] == value


def has_mark(connection: sqlite3.Connection, key: str) -> bool:
    """Whether there is a mark of this key, whatever its value."""
    return connection.execute("SELECT 1 FROM liteq_mark WHERE key = ?", (key,)).fetchone() is not None


def swap_mark(connection: sqlite3.Connection, key: str, expected: str | None, new: str | None) -> bool:
    """Compare and set one mark."""
    row = connection.execute("SELECT value FROM liteq_mark WHERE key = ?", (key,)).fetchone()
    if (None if row is None else row[0]) != expected:
        return False
    if new is None:
        connection.execute("DELETE FROM liteq_mark WHERE key = ?", (key,))
    else:
        connection.execute("INSERT OR REPLACE INTO liteq_mark VALUES (?, ?)", (key, new))
    return True


def remove(connection: sqlite3.Connection, seqs: list[int]) -> int:
    """Delete these jobs, as far as they are still finished; return how many.

    The newest row of all is emptied instead of deleted, and goes when it is not the newest any more: SQLite gives out
    "highest id + 1", and an id must never come back. (AUTOINCREMENT would promise the same for 4 µs an insert.)
    """
    text = str(seqs)
    done = [row[0] for row in connection.execute(_STILL_DONE, (text,)).fetchall()]
    text = str(done)
    connection.execute("DELETE FROM liteq_done WHERE id IN (SELECT value FROM json_each(?))", (text,))
    connection.execute("DELETE FROM liteq_attempt WHERE job IN (SELECT value FROM json_each(?))", (text,))
    if connection.execute("SELECT 1 FROM liteq_unique LIMIT 1").fetchone() is not None:
        connection.execute(_FORGET_KEYS, {"seqs": text})
    steps.remove(connection, text)
    connection.execute("DELETE FROM liteq_edge WHERE job IN (SELECT value FROM json_each(?))", (text,))
    connection.execute("DELETE FROM liteq_dependent WHERE id IN (SELECT value FROM json_each(?))", (text,))
    newest = connection.execute("SELECT max(id) FROM liteq_job").fetchone()[0]
    blank = connection.execute("SELECT value FROM liteq_meta WHERE key = 'blank'").fetchone()
    gone = [seq for seq in [*done, *(blank or ())] if seq != newest]
    connection.execute("DELETE FROM liteq_job WHERE id IN (SELECT value FROM json_each(?))", (str(gone),))
    if newest in done:
        connection.execute(
            "UPDATE liteq_job SET rnd = -1, cid = NULL, queue = '', task = '', due = NULL, expires = NULL, "
            "options = NULL, summary = NULL, payload = NULL, ukey = NULL WHERE id = ?",
            (newest,),
        )
        connection.execute("INSERT OR REPLACE INTO liteq_meta VALUES ('blank', ?)", (newest,))
    return len(done)


_FORGET_KEYS = """
DELETE FROM liteq_unique WHERE job IN (SELECT value FROM json_each(:seqs)) AND (key, task) IN
    (SELECT ukey, task FROM liteq_job WHERE id IN (SELECT value FROM json_each(:seqs)) AND ukey IS NOT NULL)
"""
#: Of a row ``s`` of liteq_done: somebody waits for the job, or failed and would take its result again if requeued.
NEEDED = f"""EXISTS (
    SELECT 1 FROM liteq_edge e LEFT JOIN liteq_done d ON d.id = e.job WHERE e.prior = s.id
    AND (d.id IS NULL OR (e.passes AND d.state = {schema.FAILED} AND s.state = {schema.SUCCEEDED}))
)"""
_STILL_DONE = f"SELECT s.id FROM liteq_done s WHERE s.id IN (SELECT value FROM json_each(?)) AND NOT {NEEDED}"
