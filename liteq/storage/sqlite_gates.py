"""One gate in a SQLite file: how much room it has, and its line. See `liteq.storage.sqlite_limits`, which moves jobs.

A `Gate` has slots, which are counted. A `Bucket` has tokens: its row in ``liteq_bucket`` says when it will be full,
and, while somebody waits who could have the next one, when that comes (``due``). Every function runs inside the
caller's IMMEDIATE transaction.
"""

from __future__ import annotations

import json
import sqlite3
from functools import cached_property

from liteq import rates
from liteq.gates import KEPT_FOR, LIMIT_MARK, Need, is_rate, rate_mark
from liteq.lifecycle import PAUSE_MARK
from liteq.rates import Level, Rate

LAPSED = "woken IS NOT NULL AND (woken <= :since OR woken > :until)"
_NOT_SKIPPED = "(queue IS NULL OR queue NOT IN (SELECT value FROM json_each(:skipped)))"
#: How many buckets that are full, and say nothing any more, are dropped when a new one comes.
_TIDIED = 3


def window(now: float) -> dict[str, float]:
    """Between these instants somebody must have been let out for his place to be kept; see `liteq.gates.has_lapsed`."""
    return {"since": now - KEPT_FOR, "until": now + KEPT_FOR}


def count(connection: sqlite3.Connection, question: str, *values: object) -> int:
    """The number that a question asks for."""
    return int(connection.execute(question, values).fetchone()[0])


class Gate:
    """What a transaction knows of one gate.

    Args:
        need: its name, and what it has.
        free: how many may come in now.
    """

    def __init__(self, connection: sqlite3.Connection, need: Need, free: int, now: float) -> None:
        self._connection = connection
        self._now = now
        self.name = need.gate
        self.free = free

    @cached_property
    def skipped(self) -> str:
        """The queues of which nobody is waited for, as JSON: they are paused, or a place was kept for one of their jobs
        and nobody claimed it in time.
        """
        rows = self._connection.execute(
            f"SELECT queue FROM liteq_place WHERE gate = :gate AND {LAPSED} "
            "UNION SELECT substr(key, length(:mark) + 1) FROM liteq_mark WHERE substr(key, 1, length(:mark)) = :mark",
            {"gate": self.name, "mark": PAUSE_MARK, **window(self._now)},
        )
        return json.dumps([row[0] for row in rows.fetchall()])

    def has_room(self, priority: int, ticket: int) -> bool:
        """Whether there is a slot for one of this rank, when all before it in line have got theirs."""
        if self.free <= 0:
            return False
        values = {"gate": self.name, "priority": priority, "ticket": ticket, "skipped": self.skipped, "free": self.free}
        before = sum(int(self._connection.execute(one, values).fetchone()[0]) for one in _BEFORE)
        return before < self.free

    def heads(self) -> list[tuple[int, int | None, str | None, float | None]]:
        """The first in line, as many as may come in: id, job, queue, when it was let out."""
        if self.free <= 0:
            return []
        values = {"gate": self.name, "skipped": self.skipped, "free": self.free}
        return self._connection.execute(_HEADS, values).fetchall()

    def enter(self) -> None:
        """Somebody comes in."""
        self.free -= 1

    def settle(self, *, tried: bool = False) -> None:
        """Write down what has become of it.

        Args:
            tried: to let in whoever may come in: who is still in line waits for something else.
        """


class Bucket(Gate):
    """A gate with tokens.

    Args:
        rate: the one that holds.
        level: what was written about it.
    """

    def __init__(self, connection: sqlite3.Connection, need: Need, rate: Rate, level: Level, now: float) -> None:
        self.rate = rate
        self.level = rates.seen(rate, level, now)
        super().__init__(connection, need, rates.tokens(rate, self.level, now), now)
        self._entered = 0

    def enter(self) -> None:
        super().enter()
        self._entered += 1

    def adjust(self) -> None:
        """The rate has changed: what was taken at a slower one is not waited for."""
        self.level = rates.seen(self.rate, self.level, self._now, stale=0.0)
        self.free = rates.tokens(self.rate, self.level, self._now)

    def give_back(self, since: float) -> None:
        """Somebody did not use the token that he took at ``since``."""
        self.level = rates.give_back(self.rate, self.level, since)

    def settle(self, *, tried: bool = False) -> None:
        if self._entered:
            self.level = rates.take(self.rate, self.level, self._now, self._entered)
            self._entered = 0
        if not tried and any(woken is None for *_, woken in self.heads()):
            due: float | None = self._now
        else:
            due = rates.due(self.rate, self.level, self.free + 1) if self._somebody_waits() else None
        self._connection.execute(_WRITE, (self.name, self.rate.text, *self.level, due, self._now))

    def _somebody_waits(self) -> bool:
        """Whether there is anybody in line beyond those who may come in now."""
        if self.free >= self.rate.burst:
            return False
        values = {"gate": self.name, "skipped": self.skipped, "free": self.free}
        return self._connection.execute(_BEYOND, values).fetchone() is not None


# It may have been tidied away meanwhile, to make room for another gate of the same job.
_WRITE = (
    "INSERT INTO liteq_bucket VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (gate) DO UPDATE "
    "SET full_at = excluded.full_at, brimmed = excluded.brimmed, due = excluded.due, looked = excluded.looked"
)

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
_BEYOND = f"SELECT 1 FROM liteq_place WHERE gate = :gate AND held = 0 AND {_NOT_SKIPPED} LIMIT 1 OFFSET :free"


# ── finding them ─────────────────────────────────────────────────────────────────────────────────────────


def opened(connection: sqlite3.Connection, need: Need, now: float) -> Gate:
    """The gate that is needed, with so many slots, or this rate, from now on."""
    connection.execute(
        "INSERT INTO liteq_gate VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE "
        "SET slots = excluded.slots, task = excluded.task WHERE slots <> excluded.slots OR task IS NOT excluded.task",
        need[:3],
    )
    if need.rate is not None:
        _declare(connection, need.gate, need.rate, now)
    return _gate(connection, need, now)


def known(connection: sqlite3.Connection, name: str, now: float) -> Gate | None:
    """A gate as it is; forgotten, and ``None``, where nobody is any more."""
    if connection.execute("SELECT 1 FROM liteq_place WHERE gate = ? LIMIT 1", (name,)).fetchone() is None:
        connection.execute("DELETE FROM liteq_gate WHERE name = ?", (name,))
        if is_rate(name):
            connection.execute("UPDATE liteq_bucket SET due = NULL WHERE gate = ? AND due IS NOT NULL", (name,))
        return None
    row = connection.execute("SELECT name, slots, task FROM liteq_gate WHERE name = ?", (name,)).fetchone()
    return None if row is None else _gate(connection, Need(*row), now)


def bucket(connection: sqlite3.Connection, name: str, now: float) -> Bucket | None:
    """A gate with tokens, whether anybody is there or not; ``None`` if it is full and forgotten."""
    row = connection.execute("SELECT task FROM liteq_gate WHERE name = ?", (name,)).fetchone()
    found = read_bucket(connection, Need(name, 0, None if row is None else row[0]))
    return None if found is None else Bucket(connection, Need(name, 0), *found, now)


def _gate(connection: sqlite3.Connection, need: Need, now: float) -> Gate:
    found = read_bucket(connection, need) if is_rate(need.gate) else None
    if found is not None:
        return Bucket(connection, need, *found, now)
    held = count(connection, "SELECT count(*) FROM liteq_place WHERE gate = ? AND held = 1", need.gate)
    return Gate(connection, need, slots(connection, need) - held, now)


def slots(connection: sqlite3.Connection, need: Need) -> int:
    """How many slots a gate has, or how many tokens at most; what was set at run time comes before what is declared."""
    if is_rate(need.gate):
        found = read_bucket(connection, need)
        return need.slots if found is None else found[0].burst
    override = None if need.task is None else _mark(connection, LIMIT_MARK + need.task)
    return need.slots if override is None else int(override)


def read_bucket(connection: sqlite3.Connection, need: Need) -> tuple[Rate, Level] | None:
    """The rate that holds, and the level that was written down."""
    row = connection.execute("SELECT rate, full_at, brimmed FROM liteq_bucket WHERE gate = ?", (need.gate,)).fetchone()
    if row is None:
        return None
    override = _mark(connection, rate_mark(need.gate, need.task))
    return rates.parse(row[0] if override is None else override), Level(row[1], row[2])


def _mark(connection: sqlite3.Connection, key: str) -> str | None:
    row = connection.execute("SELECT value FROM liteq_mark WHERE key = ?", (key,)).fetchone()
    return None if row is None else row[0]


def _declare(connection: sqlite3.Connection, gate: str, rate: Rate, now: float) -> None:
    row = connection.execute("SELECT rate FROM liteq_bucket WHERE gate = ?", (gate,)).fetchone()
    if row is None:
        connection.execute(_TIDY, (now, _TIDIED))
        connection.execute("INSERT INTO liteq_bucket VALUES (?, ?, ?, ?, NULL, ?)", (gate, rate.text, *Level(), now))
    elif row[0] != rate.text:
        connection.execute("UPDATE liteq_bucket SET rate = ? WHERE gate = ?", (rate.text, gate))


# With a key there may be a bucket for each customer. So many go with each that comes, and there are never more than are
# not full.
_TIDY = (
    "DELETE FROM liteq_bucket WHERE gate IN (SELECT gate FROM "
    "(SELECT gate FROM liteq_bucket WHERE full_at <= ? ORDER BY full_at LIMIT 50) b "
    "WHERE NOT EXISTS (SELECT 1 FROM liteq_place p WHERE p.gate = b.gate) LIMIT ?)"
)


def next_token(connection: sqlite3.Connection, gate: str | None = None) -> float | None:
    """When the next token comes for which somebody waits."""
    if gate is None:
        row = connection.execute("SELECT min(due) FROM liteq_bucket WHERE due IS NOT NULL").fetchone()
    else:
        row = connection.execute("SELECT due FROM liteq_bucket WHERE gate = ?", (gate,)).fetchone()
    return None if row is None else row[0]
