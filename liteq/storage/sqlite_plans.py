"""Plans in a SQLite file: who waits for which jobs. See `liteq.plan` and `liteq.storage.plans`.

``liteq_dependent`` has a row for each job that waits, or has waited, for others, ``liteq_edge`` one for each of these.
A turn asks one question, for the newest job of any plan: what is newer neither waits nor is waited for, and
where there is none at all, that is all that plans cost. An end costs a look into an index for each job, and one
statement for all of them counts down what their dependents miss; the edges stay as they are.

What changes something runs inside the caller's IMMEDIATE transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from liteq import plan
from liteq.job import FINISHED, WAITING, Job, JobState
from liteq.lifecycle import Transition
from liteq.plan import LONGEST_TRACEBACK, WAITS_UNTIL, Edge, Input, Inputs, Link, Plan, Rule, Terms
from liteq.storage import sqlite_moves as moves
from liteq.storage import sqlite_questions as questions
from liteq.storage.base import Added
from liteq.storage.plans import NOTHING, Changes, Ledger, Plans, Resolved, look_at_new, resolve, waits_for_itself
from liteq.storage.sqlite_connection import Connections

#: How a transition is applied.
Apply = Callable[[sqlite3.Connection, Transition], bool]

_SEQS = "(SELECT value FROM json_each(:seqs))"


def _either(statement: str) -> tuple[str, str]:
    """A statement about some jobs, once for those that are a run (see `moves.as_run`), and once for a list of them."""
    return statement.replace("{among}", "BETWEEN :first AND :last"), statement.replace("{among}", f"IN {_SEQS}")


def _which(seqs: Collection[int]) -> tuple[int, dict[str, Any]]:
    """Which of the two, and its values."""
    run = moves.as_run(seqs)
    return (1, {"seqs": str(list(seqs))}) if run is None else (0, {"first": run[0], "last": run[1]})


#: Of a row ``b`` of liteq_blocked: it is blocked because of its edges.
_FOLLOWS = f"substr(b.reason, 1, {len(WAITS_UNTIL)}) = '{WAITS_UNTIL}'"


def newest(connection: sqlite3.Connection) -> int:
    """The newest job that is part of a plan; 0 where there is none."""
    return int(connection.execute("SELECT " + NEWEST).fetchone()[0])


#: Mostly a dependent; but a job that was replaced may wait for newer ones.
NEWEST = "max(coalesce((SELECT max(id) FROM liteq_dependent), 0), coalesce((SELECT max(prior) FROM liteq_edge), 0))"


# ── adding ───────────────────────────────────────────────────────────────────────────────────────────────


def add(connection: sqlite3.Connection, added: Added, given: Plan, now: float, apply: Apply) -> Resolved:
    """Note what the jobs that were just stored wait for, and block them. Whoever was blocked has moved, too."""
    own = added.own
    fresh = {position: terms for position, terms in given.terms.items() if position in own}
    edges = [edge for edge in given.edges if edge.job in own]
    priors = [added[~edge.prior].seq if edge.prior < 0 else edge.prior for edge in edges]
    finished = _finished(connection, added, priors)
    missing = _missing(edges, priors, finished)
    connection.executemany(
        "INSERT INTO liteq_dependent (id, missing, shape, delay, lasts) VALUES (?, ?, ?, ?, ?)",
        [(added[position].seq, len(missing.get(position, ())), *terms) for position, terms in fresh.items()],
    )
    _insert_edges(connection, added, edges, priors)
    for position in added.replaced & own:
        _refuse_circle(connection, added[position])
    ids = {job.seq: job.id for job in added}
    reasons = {}
    for position, missed in missing.items():
        first = min(missed)
        reasons[position] = plan.reason(ids.get(first) or _id(connection, first), len(set(missed)) - 1)
    blocked = _block(connection, added, fresh, reasons)
    if not finished:
        return NOTHING.joined(NOTHING, blocked)
    seqs = [added[edge.job].seq for edge, prior in zip(edges, priors, strict=True) if prior in finished]
    return look_at_new(SqliteLedger(connection, apply), set(seqs), now).joined(NOTHING, blocked)


def _finished(connection: sqlite3.Connection, added: Added, priors: list[int]) -> set[int]:
    """Which of the prerequisites have finished: none of those that are as new as their dependents."""
    new = {job.seq for position, job in enumerate(added) if position not in added.known}
    outside = sorted(set(priors) - new)
    return questions.finished(connection, outside) if outside else set()


def _missing(edges: list[Edge], priors: list[int], finished: set[int]) -> dict[int, list[int]]:
    """What each dependent misses, by position, a job once for each edge to it; only of those that miss something."""
    missing: dict[int, list[int]] = {}
    for edge, prior in zip(edges, priors, strict=True):
        if prior not in finished:
            missing.setdefault(edge.job, []).append(prior)
    return missing


def _insert_edges(connection: sqlite3.Connection, added: Added, edges: list[Edge], priors: list[int]) -> None:
    next_position: dict[int, int] = {}
    rows = []
    for edge, prior in zip(edges, priors, strict=True):
        position = next_position[edge.job] = next_position.get(edge.job, -1) + 1
        rows.append((prior, added[edge.job].seq, position, edge.rule, edge.passes))
    connection.executemany("INSERT INTO liteq_edge (prior, job, position, rule, passes) VALUES (?, ?, ?, ?, ?)", rows)


def _refuse_circle(connection: sqlite3.Connection, job: Job) -> None:
    """Raises ConfigurationError if a job that was replaced waits for itself, perhaps by way of others."""
    if connection.execute(_CIRCLE, {"seq": job.seq}).fetchone() is not None:
        raise waits_for_itself(job)


_CIRCLE = """
WITH RECURSIVE step (id) AS (
    SELECT prior FROM liteq_edge WHERE job = :seq
    UNION
    SELECT e.prior FROM step CROSS JOIN liteq_edge e ON e.job = step.id
) SELECT 1 FROM step WHERE id = :seq
"""


def _block(
    connection: sqlite3.Connection, added: Added, terms: Mapping[int, Terms], reasons: Mapping[int, str]
) -> set[int]:
    """Take jobs out of where their insert has put them; who follows one of his unique key is blocked already."""
    reasons = {position: why for position, why in reasons.items() if added[position].state is not JobState.BLOCKED}
    blocked = {added[position].seq for position in reasons}
    for position in added.replaced & reasons.keys():  # tried before, perhaps, or put off since by one more of its key
        job = questions.by_seq(connection, added[position].seq)
        assert job is not None
        moves.take(connection, job.state, job.seq, job.claim)
        moves.put(connection, job._replace(state=JobState.BLOCKED, reason=reasons[position]))
    new = reasons.keys() - added.replaced
    seqs = str([added[position].seq for position in new])
    connection.execute(
        "DELETE FROM liteq_ready WHERE (queue, priority, id) IN "
        f"(SELECT queue, priority, id FROM liteq_job WHERE id IN {_SEQS})",
        {"seqs": seqs},
    )
    connection.execute(f"DELETE FROM liteq_scheduled WHERE id IN {_SEQS}", {"seqs": seqs})
    connection.executemany(
        "INSERT INTO liteq_blocked (id, reason, claim, attempt, base, crashes) VALUES (?, ?, 0, 0, 0, 0)",
        [(added[position].seq, reasons[position]) for position in new],
    )
    later = [added[position].seq for position in reasons if terms[position].lasts is not None]
    if later:
        connection.execute(f"UPDATE liteq_job SET expires = NULL WHERE id IN {_SEQS}", {"seqs": str(later)})
    return blocked


def reread(connection: sqlite3.Connection, added: Added, moved: Collection[int]) -> None:
    """Change the jobs that were just stored, and have moved since, to what they are now."""
    jobs = {job.seq: job for job in questions.jobs(connection, sorted(moved))} if moved else {}
    for position, job in enumerate(added):
        if job.seq in jobs and (position not in added.known or position in added.replaced):
            added[position] = jobs[job.seq]._replace(payload=job.payload, attempts=job.attempts)


def _id(connection: sqlite3.Connection, seq: int) -> str:
    row = connection.execute("SELECT cid, rnd FROM liteq_job WHERE id = ?", (seq,)).fetchone()
    return questions.public_id(seq, *row)


# ── the turn ─────────────────────────────────────────────────────────────────────────────────────────────


def follow(connection: sqlite3.Connection, done: Changes, bound: int, now: float, apply: Apply) -> Resolved:
    """Do what follows for dependents from what this transaction has done; ``bound`` is `newest`."""
    ended = {seq: state for seq, state in done.ended.items() if seq <= bound}
    reopened = {seq for seq in done.reopened if seq <= bound}
    risen = {seq for seq in done.risen if seq <= bound}
    if not (ended or reopened or risen):
        return NOTHING
    return resolve(SqliteLedger(connection, apply), Changes(ended, reopened, risen), now)


def with_inputs(connection: sqlite3.Connection, jobs: list[Job], bound: int) -> list[Job]:
    """Claimed jobs with what is passed to them; without those that have to wait again, because a prerequisite runs
    again since an event woke them: these are blocked, as if they had not been claimed.
    """
    seqs = [job.seq for job in jobs if job.seq <= bound]
    if not seqs:
        return jobs
    which, values = _which(seqs)
    rows = connection.execute(_SHAPES[which], values).fetchall()
    shapes = {seq: shape for seq, shape, missing in rows if shape is not None and not missing}
    held_back = {seq for seq, _, missing in rows if missing}
    if held_back:
        _hold_back(connection, held_back)
        jobs = [job for job in jobs if job.seq not in held_back]
    if not shapes:
        return jobs
    return [
        job._replace(inputs=Inputs(shapes[job.seq], _values(connection, job.seq))) if job.seq in shapes else job
        for job in jobs
    ]


_SHAPES = _either("SELECT id, shape, missing FROM liteq_dependent WHERE id {among}")


def _hold_back(connection: sqlite3.Connection, seqs: Collection[int]) -> None:
    for seq in seqs:
        first, number = connection.execute(_UNFINISHED, (seq,)).fetchone()
        connection.execute(_UNCLAIM, (plan.reason(_id(connection, first), number - 1), seq))
        connection.execute("DELETE FROM liteq_running WHERE id = ?", (seq,))


_UNCLAIM = (
    "INSERT INTO liteq_blocked (id, reason, claim, attempt, base, crashes) "
    "SELECT id, ?, claim - 1, attempt - 1, base, crashes FROM liteq_running WHERE id = ?"
)


def _values(connection: sqlite3.Connection, seq: int) -> tuple[Input, ...]:
    rows = connection.execute(_PASSED, (seq,)).fetchall()
    succeeded = moves.DONE_CODES[JobState.SUCCEEDED]
    return tuple([result if code == succeeded else _words(connection, prior) for prior, code, result in rows])


_PASSED = (
    "SELECT e.prior, d.state, d.result FROM liteq_edge e LEFT JOIN liteq_done d ON d.id = e.prior "
    "WHERE e.job = ? AND e.passes ORDER BY e.position"
)


def _words(connection: sqlite3.Connection, seq: int) -> tuple[str, ...]:
    """What is passed of a job that ended without success."""
    found = questions.jobs(connection, [seq])
    if not found or found[0].state not in FINISHED:
        return ()
    statement = f"SELECT error_type, message, substr(traceback, -{LONGEST_TRACEBACK}) {_LAST_ATTEMPT}"
    said = connection.execute(statement, (seq,)).fetchone() or ("", "", "")
    return (found[0].id, str(found[0].state), found[0].reason or "", *said)


_LAST_ATTEMPT = "FROM liteq_attempt WHERE job = ? ORDER BY id DESC LIMIT 1"


class SqliteLedger(Ledger):
    """The ledger of one transaction.

    Args:
        apply: applies a transition, if it holds.
    """

    def __init__(self, connection: sqlite3.Connection, apply: Apply) -> None:
        self._connection = connection
        self._apply = apply

    def count(self, priors: Collection[int], by: int) -> dict[int, int]:
        if not priors:
            return {}
        if len(priors) == 1:
            found = self._connection.execute(_OF_ONE, (*priors, FEW + 1)).fetchall()
            if len(found) <= FEW:  # as a step of a pipeline has: simpler statements take half of the time
                missing = {job: missed for job, missed, _ in found}
                for job, _, _ in found:
                    missing[job] += by
                self._connection.executemany(_SET_MISSING, [(missed, job) for job, missed in missing.items()])
                return missing
        which, values = _which(priors)
        return dict(self._connection.execute(_COUNT[which], values | {"by": by}).fetchall())

    def broken(self, priors: Mapping[int, JobState]) -> list[tuple[int, int, Rule]]:
        found: list[tuple[int, int, Rule]] = []
        for states, rules in _BREAKS.items():
            seqs = [seq for seq, state in priors.items() if state in states]
            if seqs and (rules != _HANDLERS or self._has_handlers()):
                statement = f"SELECT job, prior, rule FROM liteq_edge WHERE prior IN {_SEQS} AND rule IN {rules}"
                rows = self._connection.execute(statement, {"seqs": str(seqs)}).fetchall()
                found += [(job, prior, Rule(rule)) for job, prior, rule in rows]
        return sorted(found)

    def _has_handlers(self) -> bool:
        """Whether there is any error handler in the file: most plans have none, and every job that succeeds asks."""
        statement = f"SELECT 1 FROM liteq_edge WHERE rule = {Rule.FAILURE:d} LIMIT 1"
        return self._connection.execute(statement).fetchone() is not None

    def first_broken(self, seq: int) -> tuple[int, Rule] | None:
        row = self._connection.execute(_FIRST_BROKEN, (seq,)).fetchone()
        return None if row is None else (row[0], Rule(row[1]))

    def missing(self, seqs: Collection[int]) -> dict[int, int]:
        if not seqs:
            return {}
        statement = f"SELECT id, missing FROM liteq_dependent WHERE id IN {_SEQS}"
        return dict(self._connection.execute(statement, {"seqs": str(list(seqs))}).fetchall())

    def caused_by(self, roots: Collection[int]) -> list[int]:
        statement = f"SELECT id FROM liteq_dependent WHERE cause IN {_SEQS} ORDER BY id"
        return [row[0] for row in self._connection.execute(statement, {"seqs": str(list(roots))}).fetchall()]

    def cause(self, seq: int) -> int | None:
        row = self._connection.execute("SELECT cause FROM liteq_dependent WHERE id = ?", (seq,)).fetchone()
        return None if row is None else row[0]

    def set_cause(self, seqs: Collection[int], root: int | None) -> None:
        statement = f"UPDATE liteq_dependent SET cause = :root WHERE id IN {_SEQS}"
        self._connection.execute(statement, {"root": root, "seqs": str(list(seqs))})

    def standing(self, seqs: Collection[int], *, waiting: bool = False) -> list[Job]:
        return questions.jobs(self._connection, sorted(seqs), WAITING if waiting else frozenset(JobState))

    def finished_job(self, seq: int) -> Job | None:
        found = questions.jobs(self._connection, [seq], FINISHED)
        return questions.with_history(self._connection, found[0]) if found else None

    def reason(self, seq: int) -> str | None:
        first, number = self._connection.execute(_UNFINISHED, (seq,)).fetchone()
        return None if first is None else plan.reason(_id(self._connection, first), number - 1)

    def expires_later(self, seq: int) -> bool:
        row = self._connection.execute("SELECT lasts FROM liteq_dependent WHERE id = ?", (seq,)).fetchone()
        return row is not None and row[0] is not None

    def move(self, transition: Transition) -> bool:
        return self._apply(self._connection, transition)

    def release(self, seqs: Collection[int], now: float) -> None:
        if not seqs:
            return
        which, values = _which(seqs)
        values["now"] = now
        timed = self._connection.execute(_TIMED[which], values).fetchall()
        if timed:
            rows = [{"now": now, "id": seq, "delay": delay, "lasts": lasts} for seq, delay, lasts in timed]
            self._connection.executemany(_SET_TIMES, rows)
        if self._connection.execute(_TO_READY[which], values).rowcount < len(seqs):
            self._connection.execute(_TO_SCHEDULED[which], values)
        self._connection.execute(_UNBLOCK[which], values)


#: So many dependents of one job are counted down one by one.
FEW = 8
_OF_ONE = (
    "SELECT d.id, d.missing, e.position FROM liteq_edge e CROSS JOIN liteq_dependent d ON d.id = e.job "
    "WHERE e.prior = ? LIMIT ?"
)
_SET_MISSING = "UPDATE liteq_dependent SET missing = ? WHERE id = ?"
_COUNT = _either(
    "UPDATE liteq_dependent SET missing = missing + :by * e.number "
    "FROM (SELECT job, count(*) AS number FROM liteq_edge WHERE prior {among} GROUP BY job) e "
    "WHERE liteq_dependent.id = e.job RETURNING id, missing"
)

_HANDLERS = f"({Rule.FAILURE:d})"
#: Ends of a prerequisite, and the rules that they break; as `liteq.lifecycle.unmet` has it.
_BREAKS = {
    frozenset({JobState.SUCCEEDED}): _HANDLERS,
    frozenset({JobState.FAILED, JobState.EXPIRED}): f"({Rule.SUCCESS:d})",
    frozenset({JobState.REVOKED}): f"({Rule.SUCCESS:d}, {Rule.FAILURE:d})",
}
_IS_BROKEN = " OR ".join(
    f"d.state IN ({', '.join(str(moves.DONE_CODES[state]) for state in sorted(states))}) AND e.rule IN {rules}"
    for states, rules in _BREAKS.items()
)
_FIRST_BROKEN = (
    "SELECT e.prior, e.rule FROM liteq_edge e CROSS JOIN liteq_done d ON d.id = e.prior "
    f"WHERE e.job = ? AND ({_IS_BROKEN}) ORDER BY e.position LIMIT 1"
)
_IS_UNFINISHED = (
    "EXISTS (SELECT 1 FROM liteq_job WHERE id = e.prior AND rnd >= 0) "
    "AND NOT EXISTS (SELECT 1 FROM liteq_done WHERE id = e.prior)"
)
_UNFINISHED = f"SELECT min(e.prior), count(DISTINCT e.prior) FROM liteq_edge e WHERE e.job = ? AND {_IS_UNFINISHED}"

_TIMED = _either(
    "SELECT d.id, d.delay, d.lasts FROM liteq_dependent d CROSS JOIN liteq_blocked b ON b.id = d.id "
    f"WHERE d.id {{among}} AND (d.delay IS NOT NULL OR d.lasts IS NOT NULL) AND {_FOLLOWS}"
)
_SET_TIMES = (
    "UPDATE liteq_job SET due = coalesce(max(coalesce(due, 0), :now + :delay), due), "
    "expires = coalesce(:now + :lasts, expires) WHERE id = :id"
)
_BLOCKED_JOBS = (
    "b.claim, b.attempt, b.base, b.crashes FROM liteq_blocked b CROSS JOIN liteq_job j ON j.id = b.id "
    f"WHERE b.id {{among}} AND {_FOLLOWS}"
)
_TO_READY = _either(
    f"INSERT INTO liteq_ready SELECT j.queue, j.priority, b.id, {_BLOCKED_JOBS} AND (j.due IS NULL OR j.due <= :now)"
)
_TO_SCHEDULED = _either(
    f"INSERT INTO liteq_scheduled SELECT j.due, b.id, j.queue, j.priority, {_BLOCKED_JOBS} AND j.due > :now"
)
_UNBLOCK = _either(f"DELETE FROM liteq_blocked AS b WHERE b.id {{among}} AND {_FOLLOWS}")


# ── questions ────────────────────────────────────────────────────────────────────────────────────────────


class SqlitePlans(Plans):
    """The plans of one file.

    Args:
        connections: to the file.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def jobs(self, seqs: Iterable[int]) -> list[Job]:
        wanted = sorted(set(seqs))
        return self._connections.read(lambda connection: questions.jobs(connection, wanted))

    def steps(self, seqs: Iterable[int]) -> list[tuple[int, str]]:
        values = {"seqs": str(sorted(seqs))}
        rows = self._connections.read(lambda connection: connection.execute(_STEPS, values).fetchall())
        return [(seq, questions.public_id(seq, cid, rnd)) for seq, cid, rnd in rows]

    def awaited(self, seqs: Iterable[int], limit: int) -> frozenset[tuple[int, int, Rule]]:
        values = {"seqs": str(list(seqs)), "limit": limit}
        rows = self._connections.read(lambda connection: connection.execute(_AWAITED, values).fetchall())
        return frozenset((seq, prior, Rule(rule)) for seq, prior, rule in rows)

    def prerequisites(self, seq: int) -> list[Link]:
        statement = "SELECT prior, rule FROM liteq_edge WHERE job = ? ORDER BY position"
        return self._connections.read(lambda connection: _links(connection, statement, seq))

    def dependents(self, seq: int) -> list[Link]:
        statement = "SELECT job, rule FROM liteq_edge WHERE prior = ? ORDER BY job, position"
        return self._connections.read(lambda connection: _links(connection, statement, seq))


_STEPS = """
WITH RECURSIVE step (id) AS (
    SELECT value FROM json_each(:seqs)
    UNION
    SELECT e.prior FROM step CROSS JOIN liteq_edge e ON e.job = step.id
) SELECT j.id, j.cid, j.rnd FROM step CROSS JOIN liteq_job j ON j.id = step.id WHERE j.rnd >= 0 ORDER BY j.id
"""

#: Steps are found as they are asked for, so the second limit stops the search.
_AWAITED = f"""
WITH RECURSIVE step (id) AS (
    SELECT value FROM json_each(:seqs)
    UNION
    SELECT e.prior FROM step CROSS JOIN liteq_edge e ON e.job = step.id WHERE {_IS_UNFINISHED}
) SELECT DISTINCT e.job, e.prior, e.rule FROM step CROSS JOIN liteq_edge e ON e.job = step.id
WHERE {_IS_UNFINISHED} LIMIT :limit
"""


def _links(connection: sqlite3.Connection, statement: str, seq: int) -> list[Link]:
    edges = connection.execute(statement, (seq,)).fetchall()
    jobs = {job.seq: job for job in questions.jobs(connection, sorted({one for one, _ in edges}))}
    return [_link(jobs.get(other), other, Rule(rule)) for other, rule in edges]


def _link(job: Job | None, seq: int, rule: Rule) -> Link:
    return Link(seq, "", "", None, rule) if job is None else Link(seq, job.id, job.task, str(job.state), rule)
