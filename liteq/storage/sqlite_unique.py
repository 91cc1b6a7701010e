"""Unique keys in a SQLite file: which job holds which, and what becomes of a new one of a key that is held.

A job's key is in its own row, ``liteq_job.ukey``. ``liteq_unique`` has one row for each key: the job that was the last
to take it, which a trigger of ``liteq_job`` writes; whether that one still counts is asked when the next one comes, so
that ending a job costs nothing here. ``after`` is the job that it follows: the one of its key that ran when it came.
Only the end of that one is looked for, by one question a turn.

Every function runs inside the caller's IMMEDIATE transaction, unless it says otherwise.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from liteq import lifecycle
from liteq.errors import DuplicateJob, StorageError
from liteq.job import FINISHED, Job, JobState
from liteq.lifecycle import Meeting, Transition
from liteq.storage import sqlite_limits as limits
from liteq.storage import sqlite_moves as moves
from liteq.storage import sqlite_questions as questions
from liteq.storage import sqlite_steps as steps
from liteq.storage.base import Rival
from liteq.unique import Unique

#: What may follow an INSERT … SELECT of a job, so that it stores nothing if its key is held: by the values of key and
#: task. (Without numbers, at which Python 3.12.0 to 3.12.3 warn.) Most keys are not, so most jobs are one statement, as
#: jobs without a key are.
IF_FREE = """
WHERE NOT EXISTS (
    SELECT 1 FROM liteq_unique u WHERE u.key = ? AND u.task = ?
    AND NOT EXISTS (SELECT 1 FROM liteq_done WHERE id = u.job)
)
"""

# ── adding ───────────────────────────────────────────────────────────────────────────────────────────────


class Held:
    """An unfinished job that holds the key of a new one, and what becomes of the new one; see `lifecycle.meet`.

    Args:
        job: new; it was not stored, because its key is held.
        unique: what it says of itself.

    Raises:
        DuplicateJob: the job says that this is an error.
    """

    def __init__(self, connection: sqlite3.Connection, job: Job, unique: Unique) -> None:
        self._connection = connection
        self._job = job
        self._unique = unique
        self._holder = holder = _holder(connection, job, unique)
        cancelled = holder.state is JobState.RUNNING and moves.has_mark(connection, lifecycle.cancel_mark(holder))
        self._meeting = lifecycle.meet(job, unique, holder, cancelled=cancelled)
        if self._meeting is Meeting.REFUSED:
            raise DuplicateJob(job.task, unique.key, holder.id)

    @property
    def is_answer(self) -> bool:
        """Whether the holder is what the call gets; otherwise the new job is to be stored, and told to `place`."""
        return self._meeting in (Meeting.KNOWN, Meeting.CHANGED)

    @property
    def is_replaced(self) -> bool:
        """Whether the holder is the new call from now on."""
        return self._meeting is Meeting.CHANGED and lifecycle.begins_anew(self._unique)

    def answer(self) -> Job:
        """The holder, changed where that is what the call wants."""
        return self._holder if self._meeting is Meeting.KNOWN else self._changed()

    def _changed(self) -> Job:
        connection, holder, job = self._connection, self._holder, self._job
        changed = lifecycle.change(holder, job, self._unique)
        if self.is_replaced:
            steps.remove(connection, str([holder.seq]))
            connection.execute("DELETE FROM liteq_edge WHERE job = ?", (holder.seq,))
            connection.execute("DELETE FROM liteq_dependent WHERE id = ?", (holder.seq,))
        moves.take(connection, holder.state, holder.seq, holder.claim)
        connection.execute(_REWRITE, (*changed[4:7], *changed[8:12], changed.seq))
        moves.put(connection, changed)
        connection.execute("DELETE FROM liteq_mark WHERE key = ?", (lifecycle.cancel_mark(holder),))
        if limits.in_use(connection):
            limits.left(connection, [holder.seq], job.created)
        return changed

    def place(self, stored: Job) -> Job:
        """The new job, stored in spite of the holder, where it belongs."""
        if self._meeting is Meeting.STANDS:
            return stored
        values = (self._holder.seq, self._unique.key, stored.task)
        self._connection.execute("UPDATE liteq_unique SET after = ? WHERE key = ? AND task = ?", values)
        return moves.block_new(self._connection, lifecycle.follow(stored, self._holder.id))


def _holder(connection: sqlite3.Connection, job: Job, unique: Unique) -> Job:
    """The unfinished job to reckon with: the last to take the key, or, if that will never run, whom it follows."""
    seq, after = connection.execute(
        "SELECT job, after FROM liteq_unique WHERE key = ? AND task = ?", (unique.key, job.task)
    ).fetchone()
    holder = _unfinished(connection, seq)
    return holder if after is None or not lifecycle.has_expired(holder, job.created) else _unfinished(connection, after)


def _unfinished(connection: sqlite3.Connection, seq: int) -> Job:
    job = questions.by_seq(connection, seq)
    if job is None:
        raise StorageError(f"job {seq} holds a unique key and stands nowhere: the file is damaged; nothing was stored")
    return job


# The fields of Job from `queue` to `summary`, without `created`.
_REWRITE = (
    "UPDATE liteq_job SET queue = ?, priority = ?, payload = ?, due = ?, expires = ?, options = ?, summary = ? "
    "WHERE id = ?"
)

# ── the turn ─────────────────────────────────────────────────────────────────────────────────────────────


def is_followed(connection: sqlite3.Connection) -> bool:
    """Whether any job is waited for by another one of its key; one look into an index that is mostly empty."""
    return connection.execute("SELECT 1 FROM liteq_unique WHERE after IS NOT NULL LIMIT 1").fetchone() is not None


def let_follow(connection: sqlite3.Connection, ended: Sequence[int], now: float) -> list[int]:
    """These have ended: let those go on that followed them, and give keys back to whom they followed themselves.

    Returns:
        Who goes on.
    """
    seqs = {"seqs": str(list(ended))}
    gone_on = []
    for (seq,) in connection.execute(_FOLLOWERS, seqs).fetchall():
        job = questions.by_seq(connection, seq)
        if job is not None and job.state is JobState.BLOCKED:
            moves.apply(connection, lifecycle.unblock(job, now))
            gone_on.append(seq)
    connection.execute(_ENDED_BEFORE, seqs)
    return gone_on


_SEQS = "(SELECT value FROM json_each(:seqs))"
_FOLLOWERS = f"UPDATE liteq_unique SET after = NULL WHERE after IN {_SEQS} RETURNING job"
_ENDED_BEFORE = f"UPDATE liteq_unique SET job = after, after = NULL WHERE job IN {_SEQS} AND after IS NOT NULL"


def returns(transition: Transition) -> bool:
    """Whether a transition brings a finished job back."""
    return transition.source in FINISHED and transition.target not in FINISHED


def bring_back(connection: sqlite3.Connection, transition: Transition) -> bool:
    """Apply a transition that brings a finished job back, if no other unfinished one has its key by now."""
    if rival(connection, transition.seq) is not None or not moves.apply(connection, transition):
        return False
    connection.execute(
        "INSERT OR REPLACE INTO liteq_unique (key, task, job) "
        "SELECT ukey, task, id FROM liteq_job WHERE id = ? AND ukey IS NOT NULL",
        (transition.seq,),
    )
    return True


# ── questions ────────────────────────────────────────────────────────────────────────────────────────────


def rival(connection: sqlite3.Connection, seq: int) -> Rival | None:
    """Another unfinished job with this one's key; a question."""
    row = connection.execute(
        "SELECT u.key, u.job FROM liteq_job j CROSS JOIN liteq_unique u ON u.key = j.ukey AND u.task = j.task "
        "WHERE j.id = ? AND u.job <> j.id",
        (seq,),
    ).fetchone()
    job = None if row is None else questions.by_seq(connection, row[1])
    return None if job is None or job.state in FINISHED else Rival(row[0], job.id)
