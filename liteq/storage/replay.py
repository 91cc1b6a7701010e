"""The model: a `MemoryStorage` that does the same whenever, and in whichever process, the same verbs are put to it.

You stand on floor 1, between the journal and its storage. What a MemoryStorage leaves to chance or to the system is
told to this one beforehand, because it is written down with each verb: the random part of new ids, and which owners are
dead. Time is an argument of every verb anyway.

Its whole state can be written down in parts, and put together again from them, so that a journal need not be kept for
ever: `parts`, `restore`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from sys import intern
from typing import Any

from liteq.job import Attempt, Job, JobState
from liteq.plan import Plan
from liteq.schedule import Schedule
from liteq.step import Step
from liteq.storage.base import Added
from liteq.storage.memory import MemoryStorage
from liteq.storage.memory_gates import GateTable
from liteq.storage.memory_plans import Dependent
from liteq.storage.memory_unique import Held, Key
from liteq.storage.record import REST, TAIL, Decode, Verb, decoder, is_plain, trimmed
from liteq.storage.watch import Bell, Change

#: Entries in one part of the state, and bytes in its rows: so many are encoded, or parsed, without a pause.
PART, PART_BYTES = 500, 1 << 20

#: Attributes of `MemoryStorage` that are kept as they are, and what is in them. What is not here is made anew from the
#: rows (`_put`), or is of this process. A test holds this list against the class.
TABLES: Mapping[str, Any] = {
    "_next_seq": int,
    "_next_owner": int,
    "_history": Mapping[int, tuple[Attempt, ...]],
    "_marks": Mapping[str, str],
    "_schedules": Mapping[str, Schedule],
    "_keys": Mapping[int, Key],
    "_held": Mapping[Key, Held],
    "_dependents": Mapping[int, Dependent],
    "_owners": Mapping[int, str],
    "_recorded": Mapping[int, tuple[Step, ...]],
    "_sent": Mapping[int, tuple[tuple[str, bytes | None], ...]],
    "_awaited": Mapping[int, tuple[str, int]],
    "slots": Mapping[int, str],
}

#: What is journaled. A new verb of `MemoryStorage` that changes anything needs a line here, and no more.
VERBS: Mapping[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb("add", always=False),
        Verb("turn", always=False),
        Verb("remove", always=False),
        Verb("discard", always=False),
        Verb("swap", always=False),
        Verb("put_schedule", always=False),
        Verb("drop_schedule", always=False),
        Verb("fire", always=False),
        Verb("record_step", always=False),
        Verb("await_event", always=False),
        Verb("send", always=False),
        Verb("take_in", always=False),
        Verb("enroll"),
        Verb("forget", deaths=True),
        Verb("gates.take", deaths=True),
        Verb("gates.leave", always=False),
        Verb("gates.put_out", always=False),
        Verb("gates.put_out_dead", always=False, deaths=True),
        Verb("gates.clear", always=False),
        Verb("gates.wake", always=False),
    )
}

_OTHER = "{} did something else here than where it was written down"

#: A part of the state: what it is, and its content as JSON takes it.
Part = tuple[str, Any]


class Differs(Exception):
    """A verb did something else than where it was written down.

    Args:
        why: how.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        #: Which of several records it was.
        self.at = 0


class _Flag(Bell):
    """Remembers that it was rung; nobody listens."""

    def __init__(self) -> None:
        super().__init__()
        self.rung = False

    def ring(self, change: Change = Change.DATA) -> None:
        self.rung = True


class Model(MemoryStorage):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        #: The name of each owner's slot file.
        self.slots: dict[int, str] = {}

    def _new_bell(self) -> Bell:
        self._flag = _Flag()
        return self._flag

    def prepare(self, draw: int, dead: Collection[int] | None) -> None:
        """Say beforehand what the next verb would leave to chance or to the system.

        Args:
            draw: the random part of new ids.
            dead: which owners are dead; ``None``: the verb does not ask.
        """
        self._draw = lambda: draw
        self._flag.rung = False
        if dead is not None:
            self._alive = {owner for owner in self._owners if owner not in dead}

    @property
    def has_changed(self) -> bool:
        """Whether anything has since `prepare`."""
        return self._flag.rung

    @property
    def next_seq(self) -> int:
        """That of the next new job."""
        return self._next_seq

    def _put(self, row: Job) -> None:
        self._flag.rung = True  # also where a turn blocks a job, and claims none
        super()._put(row)

    def add(self, jobs: Sequence[Job], connection: object = None, plan: Plan | None = None) -> Added:
        is_plainest = plan is None and all(map(is_plain, jobs))
        if not is_plainest or any(job.state is not JobState.READY for job in jobs):
            return super().add(jobs, connection, plan)
        draw, seq = self._draw(), self._next_seq
        stored = [stored_as(job, number, draw) for number, job in enumerate(jobs, seq)]
        self._take_in(stored)
        self._next_seq = seq + len(stored)
        return Added(stored)

    def _take_in(self, ready: Sequence[Job]) -> None:
        """`_put` for new jobs that are ready, several times as quick."""
        rows, seqs, standing, lines = self._rows, self._seqs, self._standing[JobState.READY], self._ready
        for row in ready:
            seq = row[0]
            rows[seq] = row
            seqs[row[1]] = seq
            standing.add(seq)
            lines[row[4]].put(seq, -row[5])
        self._flag.rung = True

    def enroll(self, info: Mapping[str, object], slot: str) -> int:
        """`register`, with the name of the slot file."""
        number = self.register(json.loads(json.dumps(dict(info))))
        self.slots[number] = slot
        return number

    def forget(self, owner: int) -> bool:
        forgotten = super().forget(owner)
        if forgotten:
            self.slots.pop(owner, None)
        return forgotten

    def repeat(self, record: Sequence[Any], next_seq: int) -> None:
        """Carry out what was written down.

        Args:
            record: what one line holds.
            next_seq: of the next new job, afterwards.

        Raises:
            Differs: it is not what came out then. The model is of no use any more.
        """
        if record[0] == "state":
            self.restore(record[1], record[2])
            return
        name, draw, dead, written, *expected = record
        if name not in VERBS:
            raise Differs(f"the verb {name!r} is not known here")
        self.prepare(draw, dead)
        answer = VERBS[name].call(self, VERBS[name].read(self, written))
        if self._next_seq != next_seq or list(evidence(name, answer)) != expected:
            raise Differs(_OTHER.format(name))

    def repeat_all(self, records: Sequence[Sequence[Any]], next_seqs: Sequence[int]) -> None:
        """`repeat` for many. Enqueues of one plain job, of which a long journal consists, are taken in together."""
        new: list[Job] = []
        seq = self._next_seq
        for at, (record, next_seq) in enumerate(zip(records, next_seqs, strict=True)):
            row = _plain_row(record, seq) if record[0] == "add" and next_seq == seq + 1 else None
            if row is not None:
                new.append(row)
            else:
                self._take_in(new)
                new.clear()
                self._next_seq = seq
                self._repeat_at(at, record, next_seq)
            seq = next_seq
        self._take_in(new)
        self._next_seq = seq

    def _repeat_at(self, at: int, record: Sequence[Any], next_seq: int) -> None:
        try:
            self.repeat(record, next_seq)
        except Differs as error:
            error.at = at
            raise

    # ── the state ────────────────────────────────────────────────────────────────────────────────────

    def frozen(self) -> Frozen:
        """The state as it is now; what is done afterwards does not change it. Copies no row: 5 ms for 100,000 jobs."""
        tables = {name: _copy(getattr(self, name)) for name in TABLES}
        return Frozen(list(self._rows.values()), tables, self._gates.table())

    def restore(self, name: str, content: Any) -> None:
        """Take a part of a state in. All of them, in their order, make a model like the one they are from."""
        if name == "rows":
            self._restore_rows([_row(values) for values in content])
        elif name == "gates":
            self._gates.restore(_gates(content))
        else:
            self._restore_table(name, content)

    def _restore_table(self, name: str, content: Any) -> None:
        step = decoder(TABLES[name])
        value = content if step is None else step(content)
        table = getattr(self, name)
        if isinstance(table, dict):
            table.update(value)  # the gates hold on to these dicts; and a long one comes in several parts
        else:
            setattr(self, name, value)
        self._stops = None

    def _restore_rows(self, rows: Sequence[Job]) -> None:
        ready: list[Job] = []
        for row in rows:
            if row.state is JobState.READY:
                ready.append(row)
                continue
            self._take_in(ready)  # what came before it, as the rows stand in the order of their seq
            ready.clear()
            self._put(row)
            self._seqs[row.id] = row.seq
        self._take_in(ready)


class Frozen:
    """A state, and how it is written down.

    Args:
        rows: in order.
        tables: by name.
        gates: who is at which gate.
    """

    def __init__(self, rows: Sequence[Job], tables: Mapping[str, Any], gates: GateTable) -> None:
        self._rows = rows
        self._tables = tables
        self._gates = gates
        self.next_seq: int = tables["_next_seq"]

    def parts(self) -> Iterator[Part]:
        """One after the other, each small enough to be encoded without keeping anybody waiting."""
        for name, table in self._tables.items():
            if isinstance(table, dict):
                yield from ((name, part) for part in _batches(table.items()))
            else:
                yield name, table
        yield from (("rows", [trimmed(row) for row in part]) for part in _rows_in_parts(self._rows))
        yield "gates", self._gates


def stored_as(job: Job, seq: int, draw: int) -> Job:
    """The row of a plain new job."""
    return tuple.__new__(Job, (seq, f"{seq}-{draw:010x}", *job[2:]))


def _plain_row(record: Sequence[Any], seq: int) -> Job | None:
    """The row that came of this enqueue, if it was of one job of the plainest kind."""
    draw, arguments = record[1], record[3]
    if len(arguments) != 1 or len(arguments[0]) != 1:
        return None
    values = arguments[0][0]
    if len(values) != TAIL or values[1] or values[3] != "ready":
        return None
    values[:5] = seq, f"{seq}-{draw:010x}", intern(values[2]), JobState.READY, intern(values[4])
    values[6] = values[6].encode("latin-1")
    return tuple.__new__(Job, values + _REST)


def evidence(name: str, answer: Any) -> tuple[Any, ...]:
    """What must come out when the verb is repeated, and is written down; the seq of the next job is compared anyway."""
    return ([len(answer.jobs), sum(job.seq for job in answer.jobs)],) if name == "turn" else ()


def _needed(hint: Any) -> Decode:
    step = decoder(hint)
    assert step is not None
    return step


_REST = list(REST)
_row = _needed(Job)
_gates = _needed(GateTable)


def _copy(table: Any) -> Any:
    return dict(table) if isinstance(table, dict) else table


def _batches(items: Any) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, PART)):
        yield batch


def _rows_in_parts(rows: Sequence[Job]) -> Iterator[list[Job]]:
    part: list[Job] = []
    size = 0
    for row in rows:
        part.append(row)
        size += len(row.payload) + len(row.result or b"")
        if len(part) == PART or size > PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part
