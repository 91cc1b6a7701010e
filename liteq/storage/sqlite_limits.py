"""Gates in a SQLite file: who holds a slot, who stands in line. See `liteq.gates` and `liteq.storage.gates`.

``liteq_gate`` has a row for each gate at which somebody is, ``liteq_place`` one for each who is there. Where no task
needs anything and ``liteq_place`` is empty, all of this costs one question a turn.

A blocked job stands in the line of every gate that it needs. It is let out, to ``ready``, once there is room for it at
all of them, and keeps its places, and with them its slots, until it is claimed or KEPT_FOR has passed. The claim looks
again, because somebody with a higher priority may have come in between.

Every function runs inside the caller's IMMEDIATE transaction, unless it says otherwise.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence

from liteq.gates import KEPT_FOR, LAPSED, LIMIT_MARK, Need, reason
from liteq.job import Job
from liteq.lifecycle import PAUSE_MARK
from liteq.storage import sqlite_moves as moves
from liteq.storage.base import ClaimRequest
from liteq.storage.gates import Gates, GateState, Place, Taken
from liteq.storage.sqlite_connection import Connections

#: About how many jobs are blocked in one turn, so that 100,000 at a full gate do not hold the lock for long.
BLOCKED_AT_ONCE = 1000

#: Whether an owner is dead, by its number.
IsDead = Callable[[sqlite3.Connection, int], bool]

_SEQS = "(SELECT value FROM json_each(:seqs))"
_NOT_SKIPPED = "(queue IS NULL OR queue NOT IN (SELECT value FROM json_each(:skipped)))"
_LAPSED = "woken IS NOT NULL AND (woken <= :since OR woken > :until)"


def in_use(connection: sqlite3.Connection) -> bool:
    """Whether anybody is at any gate."""
    return connection.execute("SELECT max(id) FROM liteq_place").fetchone()[0] is not None


# ── one gate ─────────────────────────────────────────────────────────────────────────────────────────────


class _Gate:
    """What a transaction knows of one gate: ``free`` slots, and the queues of which nobody is waited for.

    Those are paused, or a slot was kept for one of their jobs and nobody claimed it in time.
    """

    def __init__(self, connection: sqlite3.Connection, name: str, slots: int, now: float) -> None:
        self._connection = connection
        self.name = name
        self.free = slots - _one(connection, "SELECT count(*) FROM liteq_place WHERE gate = ? AND held = 1", name)
        self.skipped = "[]" if self.free <= 0 else json.dumps(_skipped(connection, name, now))

    def has_room(self, priority: int, ticket: int) -> bool:
        """Whether there is a slot for one of this rank, when all before it in line have got theirs."""
        if self.free <= 0:
            return False
        values = {
            "gate": self.name,
            "priority": priority,
            "ticket": ticket,
            "skipped": self.skipped,
            "free": self.free,
        }
        before = sum(int(self._connection.execute(one, values).fetchone()[0]) for one in _BEFORE)
        return before < self.free

    def heads(self) -> list[tuple[int, int | None, str | None, float | None]]:
        """The first in line, as many as there are free slots: id, job, queue, when it was let out."""
        values = {"gate": self.name, "skipped": self.skipped, "free": self.free}
        return self._connection.execute(_HEADS, values).fetchall()


# Two ranges of the index instead of one condition with OR, which would look through the whole line.
_BEFORE = tuple(
    f"SELECT count(*) FROM (SELECT 1 FROM liteq_place WHERE gate = :gate AND held = 0 AND {rank} "
    f"AND {_NOT_SKIPPED} LIMIT :free)"
    for rank in ("priority > :priority", "priority = :priority AND ticket < :ticket")
)
_HEADS = (
    f"SELECT id, job, queue, woken FROM liteq_place WHERE gate = :gate AND held = 0 AND {_NOT_SKIPPED} "
    "ORDER BY priority DESC, ticket, id LIMIT :free"
)


def _skipped(connection: sqlite3.Connection, gate: str, now: float) -> list[str]:
    rows = connection.execute(
        f"SELECT queue FROM liteq_place WHERE gate = :gate AND {_LAPSED} "
        "UNION SELECT substr(key, length(:mark) + 1) FROM liteq_mark WHERE substr(key, 1, length(:mark)) = :mark",
        {"gate": gate, "mark": PAUSE_MARK, **_window(now)},
    )
    return [row[0] for row in rows.fetchall()]


def _window(now: float) -> dict[str, float]:
    """Between these instants somebody must have been let out for the slot to be kept; see `liteq.gates.has_lapsed`."""
    return {"since": now - KEPT_FOR, "until": now + KEPT_FOR}


def _open(connection: sqlite3.Connection, need: Need, now: float) -> _Gate:
    """The gate that is needed, with so many slots from now on."""
    connection.execute(
        "INSERT INTO liteq_gate VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE "
        "SET slots = excluded.slots, task = excluded.task WHERE slots <> excluded.slots OR task IS NOT excluded.task",
        need,
    )
    return _Gate(connection, need.gate, _slots(connection, need), now)


def _slots(connection: sqlite3.Connection, need: Need) -> int:
    if need.task is None:
        return need.slots
    row = connection.execute("SELECT value FROM liteq_mark WHERE key = ?", (LIMIT_MARK + need.task,)).fetchone()
    return need.slots if row is None else int(row[0])


def _one(connection: sqlite3.Connection, question: str, *values: object) -> int:
    return int(connection.execute(question, values).fetchone()[0])


# ── letting in ───────────────────────────────────────────────────────────────────────────────────────────


def left(connection: sqlite3.Connection, seqs: Sequence[int], now: float) -> None:
    """These jobs have moved on, from wherever they were: they are at no gate any more."""
    gates = _rows(connection, f"DELETE FROM liteq_place WHERE job IN {_SEQS} RETURNING gate", seqs=str(list(seqs)))
    _let_in(connection, gates, now)


def _rows(connection: sqlite3.Connection, statement: str, **values: object) -> set[str]:
    return {row[0] for row in connection.execute(statement, values).fetchall()}


def _let_in(connection: sqlite3.Connection, gates: Iterable[str], now: float) -> bool:
    """Let in whoever is next at each of these gates; True if somebody was."""
    return sum(_let_in_at(connection, gate, now) for gate in sorted(gates)) > 0


def _let_in_at(connection: sqlite3.Connection, name: str, now: float) -> bool:
    gate = _known(connection, name, now)
    if gate is None:
        return False
    done = False
    for number, job, queue, woken in gate.heads() if gate.free > 0 else ():
        if queue is None:
            connection.execute("UPDATE liteq_place SET held = 1, since = ? WHERE id = ?", (now, number))
            done = True
        elif woken is None and job is not None:
            done = _let_out(connection, name, job, now) or done
    return done


def _known(connection: sqlite3.Connection, name: str, now: float) -> _Gate | None:
    """A gate as it is; forgotten, and ``None``, where nobody is any more."""
    if connection.execute("SELECT 1 FROM liteq_place WHERE gate = ? LIMIT 1", (name,)).fetchone() is None:
        connection.execute("DELETE FROM liteq_gate WHERE name = ?", (name,))
        return None
    row = connection.execute("SELECT name, slots, task FROM liteq_gate WHERE name = ?", (name,)).fetchone()
    return None if row is None else _Gate(connection, name, _slots(connection, Need(*row)), now)


def _let_out(connection: sqlite3.Connection, gate: str, job: int, now: float) -> bool:
    """Make a blocked job ready, if there is room for it at the other gates too."""
    others = connection.execute(
        "SELECT gate, priority, ticket FROM liteq_place WHERE job = ? AND gate <> ? AND held = 0", (job, gate)
    ).fetchall()
    for name, priority, ticket in others:
        other = _known(connection, name, now)
        if other is not None and not other.has_room(priority, ticket):
            return False
    ready = connection.execute(_READY, (job,)).rowcount
    connection.execute("DELETE FROM liteq_blocked WHERE id = ?", (job,))
    connection.execute("UPDATE liteq_place SET woken = ? WHERE job = ?", (now, job))
    return ready == 1


_READY = (
    "INSERT INTO liteq_ready SELECT j.queue, j.priority, b.id, b.claim, b.attempt, b.base, b.crashes "
    "FROM liteq_blocked b CROSS JOIN liteq_job j ON j.id = b.id WHERE b.id = ?"
)


def wake(connection: sqlite3.Connection, now: float, *, everywhere: bool) -> bool:
    """See `Gates.wake`."""
    gates = _rows(connection, f"SELECT DISTINCT gate FROM liteq_place WHERE {_FRESHLY_LAPSED}", **_window(now))
    connection.execute(f"UPDATE liteq_place SET woken = {LAPSED} WHERE {_FRESHLY_LAPSED}", _window(now))
    if everywhere:
        gates |= _rows(connection, "SELECT DISTINCT gate FROM liteq_place WHERE held = 0")
    return _let_in(connection, gates, now) or bool(gates)


_FRESHLY_LAPSED = f"woken <> {LAPSED} AND {_LAPSED}"


def has_lapsed(connection: sqlite3.Connection, now: float) -> bool:
    """Whether `wake` has anything to do; a question."""
    statement = f"SELECT 1 FROM liteq_place WHERE {_FRESHLY_LAPSED} LIMIT 1"
    return connection.execute(statement, _window(now)).fetchone() is not None


# ── claiming ─────────────────────────────────────────────────────────────────────────────────────────────


def claim(
    connection: sqlite3.Connection, request: ClaimRequest, now: float, paused: set[str]
) -> tuple[list[Job], bool]:
    """As `moves.claim`, with a slot of every gate that a job needs; jobs for which there is none are blocked instead.

    Returns:
        The jobs, and whether there may be more to claim though they are fewer than wanted.
    """
    claimer = _Claimer(connection, request, now)
    size = request.wanted
    while True:
        batch = moves.claim(connection, request._replace(wanted=size), now, paused)
        claimer.take(batch)
        missing = request.wanted - len(claimer.jobs)
        if missing <= 0 or len(batch) < size:
            return claimer.jobs, False
        if claimer.blocked >= BLOCKED_AT_ONCE:
            return claimer.jobs, True
        # The more was blocked, the further ahead it looks: what it looks at in vain, it has to put back.
        size = missing + min(claimer.blocked, BLOCKED_AT_ONCE)


class _Claimer:
    """One claim: which of the jobs that it took from the queues may run."""

    def __init__(self, connection: sqlite3.Connection, request: ClaimRequest, now: float) -> None:
        self._connection = connection
        self._request = request
        self._now = now
        self._gates: dict[str, _Gate] = {}
        # Where somebody stood in line who does not need it any more: his task's options have changed.
        self._abandoned: set[str] = set()
        self.jobs: list[Job] = []
        self.blocked = 0

    def take(self, batch: Sequence[Job]) -> None:
        """Keep of these, in their order, as many as are wanted and may run; block those before them that may not, and
        put the rest back.
        """
        needs = {job.seq: needs_of(job) for job in batch if (needs_of := self._request.needs.get(job.task))}
        if not needs and len(self.jobs) + len(batch) <= self._request.wanted:
            self.jobs += batch
            return
        in_line = self._in_line(needs)
        blocked: list[tuple[str, int]] = []
        for position, job in enumerate(batch):
            if len(self.jobs) == self._request.wanted:
                self._put_back([one.seq for one in batch[position:]])
                break
            if job.seq not in needs:
                self.jobs.append(job)
                continue
            full = self._enter(job, needs[job.seq], in_line)
            if full is not None:
                blocked.append((reason(full), job.seq))
        self._block(blocked)
        _let_in(self._connection, self._abandoned, self._now)

    def _in_line(self, needs: dict[int, tuple[Need, ...]]) -> set[int]:
        """Which of these stand in a line: they were let out, or have been requeued by hand."""
        if not needs:
            return set()
        rows = self._connection.execute(f"SELECT job FROM liteq_place WHERE job IN {_SEQS}", {"seqs": str(list(needs))})
        return {row[0] for row in rows.fetchall()}

    def _gate(self, need: Need) -> _Gate:
        gate = self._gates.get(need.gate)
        if gate is None:
            gate = self._gates[need.gate] = _open(self._connection, need, self._now)
        return gate

    def _enter(self, job: Job, needed: Sequence[Need], in_line: set[int]) -> str | None:
        """Take a slot of each gate, or stand in line at each; returns the first gate without room, if there is one."""
        gates = [self._gate(need) for need in needed]
        full = next((gate.name for gate in gates if not gate.has_room(job.priority, _ticket(job))), None)
        if job.seq in in_line:
            left = _rows(self._connection, "DELETE FROM liteq_place WHERE job = :job RETURNING gate", job=job.seq)
            self._abandoned |= left - {gate.name for gate in gates}
        for gate in gates:
            if full is None:
                gate.free -= 1
                self._connection.execute(_HOLD, (gate.name, 0, 0, job.seq, None, self._now))
            else:
                rank = job.priority, _ticket(job)
                self._connection.execute(_STAND, (gate.name, *rank, job.seq, None, job.queue, self._now))
        if full is None:
            self.jobs.append(job)
        return full

    def _block(self, blocked: list[tuple[str, int]]) -> None:
        self.blocked += len(blocked)
        if blocked:
            self._connection.executemany(_BLOCK, blocked)
            self._stop(str([seq for _, seq in blocked]))

    def _put_back(self, seqs: list[int]) -> None:
        if seqs:
            self._connection.execute(_PUT_BACK, {"seqs": str(seqs)})
            self._stop(str(seqs))

    def _stop(self, seqs: str) -> None:
        self._connection.execute(f"DELETE FROM liteq_running WHERE id IN {_SEQS}", {"seqs": seqs})


def _ticket(job: Job) -> int:
    return 2 * job.seq  # callers have the odd ones


_PLACE = "INSERT INTO liteq_place (gate, held, priority, ticket, job, owner, queue, since) VALUES"
_HOLD = f"{_PLACE} (?, 1, ?, ?, ?, ?, NULL, ?)"
_STAND = f"{_PLACE} (?, 0, ?, ?, ?, ?, ?, ?)"

# Nobody has seen this claim yet: it did not happen.
_BLOCK = (
    "INSERT INTO liteq_blocked (id, reason, claim, attempt, base, crashes) "
    "SELECT id, ?, claim - 1, attempt - 1, base, crashes FROM liteq_running WHERE id = ?"
)
_PUT_BACK = (
    "INSERT INTO liteq_ready SELECT j.queue, j.priority, r.id, r.claim - 1, r.attempt - 1, r.base, r.crashes "
    f"FROM liteq_running r CROSS JOIN liteq_job j ON j.id = r.id WHERE r.id IN {_SEQS}"
)


# ── callers ──────────────────────────────────────────────────────────────────────────────────────────────


class SqliteGates(Gates):
    """The gates of one file.

    Args:
        connections: to the file.
        is_dead: asks the storage about an owner.
    """

    def __init__(self, connections: Connections, is_dead: IsDead) -> None:
        self._connections = connections
        self._is_dead = is_dead

    def take(
        self,
        need: Need,
        now: float,
        *,
        job: tuple[int, int] | None = None,
        owner: int | None = None,
        wait: bool = False,
    ) -> Taken:
        def take(connection: sqlite3.Connection) -> Taken:
            refused = _refused(connection, need.gate, job, owner)
            return refused or self._take(connection, need, now, None if job is None else job[0], owner, wait)

        return self._connections.write(take)

    def _take(
        self, connection: sqlite3.Connection, need: Need, now: float, job: int | None, owner: int | None, wait: bool
    ) -> Taken:
        ticket = 2 * _one(connection, "SELECT ifnull(max(id), 0) FROM liteq_job") + 1
        # Behind whoever came before: two callers may have the same ticket.
        has_room = _open(connection, need, now).has_room(0, ticket + 1)
        if not has_room and self._put_out_dead(connection, now):
            has_room = _open(connection, need, now).has_room(0, ticket + 1)
        if not has_room and not wait:
            return Taken(None)
        statement, queue = (_HOLD, ()) if has_room else (_STAND, (None,))
        cursor = connection.execute(statement, (need.gate, 0, ticket, job, owner, *queue, now))
        return Taken(cursor.lastrowid, has_room)

    def leave(self, number: int, now: float) -> bool:
        def leave(connection: sqlite3.Connection) -> bool:
            gates = _rows(connection, "DELETE FROM liteq_place WHERE id = :id RETURNING gate", id=number)
            _let_in(connection, gates, now)
            return bool(gates)

        return self._connections.write(leave)

    def settled(self, numbers: Iterable[int]) -> set[int]:
        asked = set(numbers)
        statement = "SELECT id FROM liteq_place WHERE held = 0 AND id IN (SELECT value FROM json_each(?))"
        waiting = self._connections.read(
            lambda connection: connection.execute(statement, (str(list(asked)),)).fetchall()
        )
        return asked - {row[0] for row in waiting}

    def holds(self, number: int) -> bool:
        return self._is_so("SELECT 1 FROM liteq_place WHERE id = ? AND held = 1", number)

    def held_by(self, gate: str, job: int) -> bool:
        return self._is_so("SELECT 1 FROM liteq_place WHERE gate = ? AND job = ? AND held = 1", gate, job)

    def _is_so(self, question: str, *values: object) -> bool:
        return self._connections.read(lambda connection: connection.execute(question, values).fetchone()) is not None

    def put_out(self, owner: int, now: float) -> bool:
        if not self._connections.read(lambda connection: has_places(connection, owner)):
            return False
        return self._connections.write(lambda connection: _put_out(connection, owner, now))

    def put_out_dead(self, now: float) -> bool:
        if not self._connections.read(lambda connection: self._dead(connection)):
            return False
        return self._connections.write(lambda connection: self._put_out_dead(connection, now))

    def _dead(self, connection: sqlite3.Connection) -> list[int]:
        owners = [row[0] for row in connection.execute(_OWNERS).fetchall()]
        return [owner for owner in owners if self._is_dead(connection, owner)]

    def _put_out_dead(self, connection: sqlite3.Connection, now: float) -> bool:
        return sum(_put_out(connection, owner, now) for owner in self._dead(connection)) > 0

    def clear(self, names: Iterable[str], now: float) -> set[str]:
        def clear(connection: sqlite3.Connection) -> set[str]:
            statement = (
                "DELETE FROM liteq_place WHERE held = 1 AND gate IN (SELECT value FROM json_each(:names)) "
                "RETURNING gate"
            )
            gates = _rows(connection, statement, names=json.dumps(list(names)))
            _let_in(connection, gates, now)
            return gates

        return self._connections.write(clear)

    def wake(self, now: float, *, everywhere: bool = False) -> bool:
        if not everywhere and not self._connections.read(lambda connection: has_lapsed(connection, now)):
            return False
        return self._connections.write(lambda connection: wake(connection, now, everywhere=everywhere))

    def states(self, prefix: str = "") -> list[GateState]:
        return self._connections.read(lambda connection: _states(connection, prefix))


def _refused(connection: sqlite3.Connection, gate: str, job: tuple[int, int] | None, owner: int | None) -> Taken | None:
    """Why nobody like this may come to the gate at all."""
    if owner is not None:
        known = connection.execute("SELECT 1 FROM liteq_owner WHERE id = ?", (owner,)).fetchone()
        return None if known else Taken(None, gone=True)
    if job is None or not connection.execute("SELECT 1 FROM liteq_running WHERE id = ? AND claim = ?", job).fetchone():
        return Taken(None, gone=True)
    own = connection.execute("SELECT 1 FROM liteq_place WHERE gate = ? AND job = ?", (gate, job[0])).fetchone()
    return Taken(None, own=True) if own else None


_OWNERS = """
SELECT owner FROM liteq_place WHERE owner IS NOT NULL
UNION
SELECT r.owner FROM liteq_place p CROSS JOIN liteq_running r ON r.id = p.job WHERE p.held = 1 AND p.job IS NOT NULL
"""


def has_places(connection: sqlite3.Connection, owner: int) -> bool:
    """Whether anybody is at a gate for as long as this owner lives."""
    statement = f"SELECT 1 FROM liteq_place WHERE {_OF_OWNER} LIMIT 1"
    return connection.execute(statement, {"owner": owner}).fetchone() is not None


_OF_OWNER = "(owner = :owner OR job IN (SELECT id FROM liteq_running WHERE owner = :owner))"


def _put_out(connection: sqlite3.Connection, owner: int, now: float) -> bool:
    gates = _rows(connection, f"DELETE FROM liteq_place WHERE {_OF_OWNER} RETURNING gate", owner=owner)
    _let_in(connection, gates, now)
    return bool(gates)


def _states(connection: sqlite3.Connection, prefix: str) -> list[GateState]:
    gates = connection.execute(
        "SELECT name, slots, task FROM liteq_gate WHERE substr(name, 1, length(:prefix)) = :prefix ORDER BY name",
        {"prefix": prefix},
    ).fetchall()
    return [_state(connection, Need(*gate)) for gate in gates]


def _state(connection: sqlite3.Connection, need: Need) -> GateState:
    holders = connection.execute(
        "SELECT job, owner, since FROM liteq_place WHERE gate = ? AND held = 1 ORDER BY id", (need.gate,)
    ).fetchall()
    waiting = _one(connection, "SELECT count(*) FROM liteq_place WHERE gate = ? AND held = 0", need.gate)
    return GateState(
        need.gate, _slots(connection, need), need.task, tuple(Place(*holder) for holder in holders), waiting
    )
