"""Gates in a SQLite file: who holds a slot, who stands in line. See `liteq.gates` and `liteq.storage.gates`.

``liteq_gate`` has a row for each gate at which somebody is, ``liteq_place`` one for each who is there. Where no task
needs anything and ``liteq_place`` is empty, all of this costs two questions a turn.

A blocked job stands in line at the gates that it needs (`liteq.gates.lines_for`). It is let out, to ``ready``, once
there is room for it at all of these, and keeps its places, and with them its slots and tokens, until it is claimed or
KEPT_FOR has passed. The claim looks again, because somebody with a higher priority may have come in between. The places
of a job are in the order of its gates.

Every function runs inside the caller's IMMEDIATE transaction, unless it says otherwise.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from liteq import rates
from liteq.gates import LAPSED as LONG_AGO
from liteq.gates import Need, is_rate, lines_for, reason
from liteq.job import Job
from liteq.rates import Level
from liteq.storage import sqlite_gates
from liteq.storage import sqlite_moves as moves
from liteq.storage.base import ClaimRequest
from liteq.storage.gates import Gates, GateState, Place, Taken
from liteq.storage.sqlite_connection import Connections
from liteq.storage.sqlite_gates import LAPSED, Bucket, Gate, count, next_token, window

#: About how many jobs are blocked in one turn, so that 100,000 at a full gate do not hold the lock for long.
BLOCKED_AT_ONCE = 1000
#: To how many buckets a turn looks whose next token has come.
POURED_AT_ONCE = 200

#: Whether an owner is dead, by its number.
IsDead = Callable[[sqlite3.Connection, int], bool]

_SEQS = "(SELECT value FROM json_each(:seqs))"


def in_use(connection: sqlite3.Connection) -> bool:
    """Whether anybody is at any gate."""
    return connection.execute("SELECT max(id) FROM liteq_place").fetchone()[0] is not None


# ── letting in ───────────────────────────────────────────────────────────────────────────────────────────


def left(
    connection: sqlite3.Connection, seqs: Sequence[int], now: float, unbegun: Collection[int] = frozenset()
) -> None:
    """These jobs have moved on, from wherever they were: they are at no gate any more.

    Args:
        seqs: the jobs.
        unbegun: those of them that were claimed and not begun: their tokens are given back.
    """
    statement = f"DELETE FROM liteq_place WHERE job IN {_SEQS} RETURNING gate, job, held, since"
    places = connection.execute(statement, {"seqs": str(list(seqs))}).fetchall()
    if unbegun:
        for gate, job, held, since in places:
            if held and job in unbegun and is_rate(gate):
                _give_back(connection, gate, since, now)
    _let_in(connection, {place[0] for place in places}, now)


def _give_back(connection: sqlite3.Connection, gate: str, since: float, now: float) -> None:
    bucket = sqlite_gates.bucket(connection, gate, now)
    if bucket is not None:
        bucket.give_back(since)
        bucket.settle()


def _rows(connection: sqlite3.Connection, statement: str, **values: object) -> set[str]:
    return {row[0] for row in connection.execute(statement, values).fetchall()}


def _let_in(connection: sqlite3.Connection, gates: Iterable[str], now: float) -> bool:
    """Let in whoever is next at each of these gates; True if somebody was."""
    return sum(_let_in_at(connection, gate, now) for gate in sorted(gates)) > 0


def _let_in_at(connection: sqlite3.Connection, name: str, now: float) -> bool:
    gate = sqlite_gates.known(connection, name, now)
    if gate is None:
        return False
    done, again = False, True
    while again:
        again = False
        for number, job, queue, woken in gate.heads():
            if queue is None:
                gate.enter()
                connection.execute("UPDATE liteq_place SET held = 1, since = ? WHERE id = ?", (now, number))
                done = True
            elif woken is None and job is not None:
                full = _full_elsewhere(connection, name, job, now)
                done = (full is None and _let_out(connection, job, now)) or done
                again = (full is not None and full < number and _step_out(connection, gate, number)) or again
    gate.settle(tried=True)
    return done


def _step_out(connection: sqlite3.Connection, gate: Gate, number: int) -> bool:
    """Take somebody out of the line for a token who waits for what comes before it, because he was overtaken there."""
    if isinstance(gate, Bucket):
        connection.execute("DELETE FROM liteq_place WHERE id = ?", (number,))
    return isinstance(gate, Bucket)


def _full_elsewhere(connection: sqlite3.Connection, gate: str, job: int, now: float) -> int | None:
    """The first of a job's places where there is no room for it, besides this gate."""
    others = connection.execute(
        "SELECT id, gate, priority, ticket FROM liteq_place WHERE job = ? AND gate <> ? AND held = 0 ORDER BY id",
        (job, gate),
    ).fetchall()
    for number, name, priority, ticket in others:
        other = sqlite_gates.known(connection, name, now)
        if other is not None and not other.has_room(priority, ticket):
            return int(number)
    return None


def _let_out(connection: sqlite3.Connection, job: int, now: float) -> bool:
    """Make a blocked job ready."""
    ready = connection.execute(_READY, (job,)).rowcount
    connection.execute("DELETE FROM liteq_blocked WHERE id = ?", (job,))
    connection.execute("UPDATE liteq_place SET woken = ? WHERE job = ?", (now, job))
    return ready == 1


_READY = (
    "INSERT INTO liteq_ready SELECT j.queue, j.priority, b.id, b.claim, b.attempt, b.base, b.crashes "
    "FROM liteq_blocked b CROSS JOIN liteq_job j ON j.id = b.id WHERE b.id = ?"
)


def pour(connection: sqlite3.Connection, now: float) -> bool:
    """Let in whoever is next wherever a token has come, at most at POURED_AT_ONCE; True if one has."""
    statement = "SELECT gate FROM liteq_bucket WHERE due <= ? ORDER BY due LIMIT ?"
    gates = {row[0] for row in connection.execute(statement, (now, POURED_AT_ONCE)).fetchall()}
    _let_in(connection, gates, now)
    return bool(gates)


def wake(connection: sqlite3.Connection, now: float, *, everywhere: bool) -> bool:
    """See `Gates.wake`."""
    gates = _rows(connection, f"SELECT DISTINCT gate FROM liteq_place WHERE {_FRESHLY_LAPSED}", **window(now))
    connection.execute(f"UPDATE liteq_place SET woken = {LONG_AGO} WHERE {_FRESHLY_LAPSED}", window(now))
    gates |= _rows(connection, f"SELECT gate FROM liteq_bucket WHERE {_TURNED_BACK}", now=now)
    if everywhere:
        waited_for = _rows(connection, "SELECT DISTINCT gate FROM liteq_place WHERE held = 0")
        gates |= waited_for
        _adjust(connection, waited_for, now)
    poured = pour(connection, now)
    return _let_in(connection, gates, now) or poured or bool(gates)


def _adjust(connection: sqlite3.Connection, gates: Iterable[str], now: float) -> None:
    for name in gates:
        gate = sqlite_gates.known(connection, name, now)
        if isinstance(gate, Bucket):
            gate.adjust()
            gate.settle()


_FRESHLY_LAPSED = f"woken <> {LONG_AGO} AND {LAPSED}"
# The clock has been set back since somebody looked at the bucket.
_TURNED_BACK = f"due IS NOT NULL AND looked > :now + {rates.STALE}"


def has_to_wake(connection: sqlite3.Connection, now: float) -> bool:
    """Whether `wake` has anything to do; a question."""
    statement = (
        f"SELECT EXISTS (SELECT 1 FROM liteq_place WHERE {_FRESHLY_LAPSED}) "
        f"OR EXISTS (SELECT 1 FROM liteq_bucket WHERE {_TURNED_BACK}) "
        "OR EXISTS (SELECT 1 FROM liteq_bucket WHERE due <= :now)"
    )
    return bool(connection.execute(statement, {"now": now, **window(now)}).fetchone()[0])


# ── claiming ─────────────────────────────────────────────────────────────────────────────────────────────


def claim(
    connection: sqlite3.Connection, request: ClaimRequest, now: float, paused: set[str]
) -> tuple[list[Job], bool]:
    """As `moves.claim`, with a slot of every gate that a job needs; jobs for which there is none are blocked instead.

    Returns:
        The jobs, and whether there may be more to claim though they are fewer than wanted.
    """
    claimer = _Claimer(connection, request, now)
    is_cut_short = claimer.fill(paused)
    return claimer.jobs, claimer.settle() or is_cut_short


class _Claimer:
    """One claim: which of the jobs that it took from the queues may run."""

    def __init__(self, connection: sqlite3.Connection, request: ClaimRequest, now: float) -> None:
        self._connection = connection
        self._request = request
        self._now = now
        self._gates: dict[str, Gate] = {}
        # Where somebody stood in line who does not need it any more: his task's options have changed.
        self._abandoned: set[str] = set()
        self.jobs: list[Job] = []
        self.blocked = 0

    def fill(self, paused: set[str]) -> bool:
        """Claim as much as is wanted; True if it ended before it came to the end of what is ready."""
        if self._request.division is not None:
            return self._fill_divided(paused)
        wanted = size = self._request.wanted
        while True:
            batch = moves.claim(self._connection, self._request._replace(wanted=size), self._now, paused)
            self.take(batch)
            missing = wanted - len(self.jobs)
            if missing <= 0 or len(batch) < size:
                return batch.is_cut_short
            if self.blocked >= BLOCKED_AT_ONCE:
                return True
            # The more was blocked, the further ahead it looks: what it looks at in vain, it has to put back.
            size = missing + min(self.blocked, BLOCKED_AT_ONCE)

    def _fill_divided(self, paused: set[str]) -> bool:
        """`fill`, where the rest of a claim depends on which jobs were blocked: it looks no further than it wants."""
        while (missing := self._request.wanted - len(self.jobs)) > 0:
            request = self._request._replace(wanted=missing)
            taken = Counter(job.queue for job in self.jobs)
            batch = moves.claim(self._connection, request, self._now, paused, taken)
            if not batch:
                return False
            self.take(batch)
            if self.blocked >= BLOCKED_AT_ONCE or batch.is_cut_short:
                return True
        return False

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

    def _in_line(self, needs: dict[int, tuple[Need, ...]]) -> set[int]:
        """Which of these stand in a line: they were let out, or have been requeued by hand."""
        if not needs:
            return set()
        rows = self._connection.execute(f"SELECT job FROM liteq_place WHERE job IN {_SEQS}", {"seqs": str(list(needs))})
        return {row[0] for row in rows.fetchall()}

    def _gate(self, need: Need) -> Gate:
        gate = self._gates.get(need.gate)
        if gate is None:
            gate = self._gates[need.gate] = sqlite_gates.opened(self._connection, need, self._now)
        return gate

    def _enter(self, job: Job, needed: Sequence[Need], in_line: set[int]) -> str | None:
        """Take a slot or a token of each gate, or stand in line; returns the gate for which it waits, if it does."""
        rank = job.priority, _ticket(job)
        full = next((need.gate for need in needed if not self._gate(need).has_room(*rank)), None)
        left = self._leave_line(job.seq) if job.seq in in_line else set()
        lines = needed if full is None else lines_for(needed, full)
        for gate in map(self._gate, lines):
            if full is None:
                gate.enter()
                self._connection.execute(_HOLD, (gate.name, 0, 0, job.seq, None, self._now))
            else:
                self._connection.execute(_STAND, (gate.name, *rank, job.seq, None, job.queue, self._now))
        if full is None:
            self.jobs.append(job)
        self._abandoned |= left - {need.gate for need in lines}
        return full

    def _leave_line(self, seq: int) -> set[str]:
        return _rows(self._connection, "DELETE FROM liteq_place WHERE job = :job RETURNING gate", job=seq)

    def settle(self) -> bool:
        """Write down what has become of the gates; True if jobs were let out by that, which may be claimed at once."""
        for gate in self._gates.values():
            gate.settle()
        buckets = {gate.name for gate in self._gates.values() if isinstance(gate, Bucket)}
        return _let_in(self._connection, self._abandoned | buckets, self._now)

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
        ticket = 2 * count(connection, "SELECT ifnull(max(id), 0) FROM liteq_job") + 1
        # Behind whoever came before: two callers may have the same ticket.
        gate = sqlite_gates.opened(connection, need, now)
        has_room = gate.has_room(0, ticket + 1)
        if not has_room and self._put_out_dead(connection, now):
            gate = sqlite_gates.opened(connection, need, now)
            has_room = gate.has_room(0, ticket + 1)
        taken = self._came(connection, gate, has_room, (need.gate, 0, ticket, job, owner), wait, now)
        gate.settle()
        if taken.number in (None, 0):
            sqlite_gates.known(connection, need.gate, now)  # it may have been opened for nobody
        return taken

    def _came(
        self,
        connection: sqlite3.Connection,
        gate: Gate,
        has_room: bool,
        who: tuple[object, ...],
        wait: bool,
        now: float,
    ) -> Taken:
        """What becomes of somebody who has come to a gate."""
        if has_room:
            gate.enter()
            if isinstance(gate, Bucket):
                return Taken(0, held=True)
            return Taken(connection.execute(_HOLD, (*who, now)).lastrowid, held=True)
        if wait:
            return Taken(connection.execute(_STAND, (*who, None, now)).lastrowid)
        if isinstance(gate, Bucket):
            line = "SELECT count(*) FROM liteq_place WHERE gate = ? AND held = 0"
            return Taken(None, due=rates.due(gate.rate, gate.level, 1 + count(connection, line, gate.name)))
        return Taken(None)

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
        if not everywhere and not self._connections.read(lambda connection: has_to_wake(connection, now)):
            return False
        return self._connections.write(lambda connection: wake(connection, now, everywhere=everywhere))

    def states(self, prefix: str = "") -> list[GateState]:
        return self._connections.read(lambda connection: _states(connection, prefix))

    def level(self, need: Need) -> Level:
        found = self._connections.read(lambda connection: sqlite_gates.read_bucket(connection, need))
        return Level() if found is None else found[1]

    def next_token(self, gate: str) -> float | None:
        return self._connections.read(lambda connection: next_token(connection, gate))


def _refused(connection: sqlite3.Connection, gate: str, job: tuple[int, int] | None, owner: int | None) -> Taken | None:
    """Why nobody like this may come to the gate at all."""
    if owner is not None:
        known = connection.execute("SELECT 1 FROM liteq_owner WHERE id = ?", (owner,)).fetchone()
        return None if known else Taken(None, gone=True)
    if job is None or not connection.execute("SELECT 1 FROM liteq_running WHERE id = ? AND claim = ?", job).fetchone():
        return Taken(None, gone=True)
    if is_rate(gate):  # tokens are not given back: whoever has had one may take another
        return None
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
    waiting = count(connection, "SELECT count(*) FROM liteq_place WHERE gate = ? AND held = 0", need.gate)
    places = tuple(Place(*holder) for holder in holders)
    slots = sqlite_gates.slots(connection, need)
    bucket = sqlite_gates.read_bucket(connection, need) if is_rate(need.gate) else None
    return GateState(need.gate, slots, need.task, places, waiting, *(bucket or (None, None)))
