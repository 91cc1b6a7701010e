"""Gates in memory: the plainest form of `liteq.storage.gates`, and its specification. See `liteq.gates`."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from threading import RLock
from typing import NamedTuple

from liteq.gates import LAPSED, LIMIT_MARK, Need, has_lapsed, reason
from liteq.job import Job, JobState
from liteq.lifecycle import PAUSE_MARK
from liteq.storage.gates import Gates, GateState, Place, Taken


@dataclass(frozen=True, slots=True)
class Standing:
    """One who holds a slot or stands in line. ``queue`` is that of a blocked job, ``None`` for a caller."""

    number: int
    gate: str
    held: bool
    priority: int
    ticket: int
    job: int | None
    owner: int | None
    queue: str | None
    since: float
    woken: float | None = None

    @property
    def rank(self) -> tuple[int, int, int]:
        return -self.priority, self.ticket, self.number


@dataclass(slots=True)
class _Gate:
    """``held`` and ``woken`` hold numbers of places, ``line`` ranks, in order."""

    slots: int
    task: str | None
    held: set[int] = field(default_factory=set)
    line: list[tuple[int, int, int]] = field(default_factory=list)
    woken: set[int] = field(default_factory=set)

    def remove(self, place: Standing) -> None:
        """Take somebody out, wherever he is."""
        self.held.discard(place.number)
        self.woken.discard(place.number)
        index = bisect_left(self.line, place.rank)
        if self.line[index : index + 1] == [place.rank]:
            del self.line[index]


class GateTable(NamedTuple):
    """Everything that is known of the gates, to be written down: who is where, the gates by name with their slots and
    task, and the number of the next place."""

    places: tuple[Standing, ...]
    gates: tuple[tuple[str, int, str | None], ...]
    next: int


@dataclass(frozen=True, slots=True)
class House:
    """What the gates need of their storage.

    Args:
        lock: held whenever anything is changed.
        rows, marks: the storage's own.
        put: stores a row in the place of an older one.
        is_dead: asks about an owner.
        is_owner: whether this is the number of a registered owner.
        ring: tells everybody that something was written.
    """

    lock: RLock
    rows: dict[int, Job]
    marks: Mapping[str, str]
    put: Callable[[Job], None]
    is_dead: Callable[[int], bool]
    is_owner: Callable[[int], bool]
    ring: Callable[[], None]


class MemoryGates(Gates):
    """The gates of one MemoryStorage.

    Args:
        house: the storage.
    """

    def __init__(self, house: House) -> None:
        self._house = house
        self._gates: dict[str, _Gate] = {}
        self._places: dict[int, Standing] = {}
        self._of_job: dict[int, set[int]] = {}
        self._next = 1

    # ── called by the storage, under its lock ────────────────────────────────────────────────────────

    def table(self) -> GateTable:
        """Everything, to be written down."""
        gates = tuple((name, gate.slots, gate.task) for name, gate in self._gates.items())
        return GateTable(tuple(self._places.values()), gates, self._next)

    def restore(self, table: GateTable) -> None:
        """Become as a table says; nobody is at any gate yet."""
        self._gates = {name: _Gate(slots, task) for name, slots, task in table.gates}
        self._next = table.next
        for place in table.places:
            self._stand(place)

    def left(self, seqs: Iterable[int], now: float) -> None:
        """These jobs have moved on, from wherever they were: they are at no gate any more."""
        if self._places:
            numbers = [number for seq in seqs for number in self._of_job.get(seq, ())]
            self._let_in(self._drop(numbers), now)

    def enter(self, job: Job, needed: Sequence[Need], now: float) -> str | None:
        """Take every slot that a job needs before it is claimed, or let it stand in every line.

        Returns:
            Why it is blocked; ``None``: it may run.
        """
        for need in needed:
            self._open(need)
        rank = (-job.priority, 2 * job.seq, 0)
        full = [need.gate for need in needed if not self._has_room(need.gate, rank, now)]
        left = self._drop(self._of_job.get(job.seq, ()))
        for need in needed:
            self._open(need)  # dropping the last place may have closed it
            if full:
                self._place(need.gate, False, rank, now, job=job.seq, queue=job.queue)
            else:
                self._place(need.gate, True, (0, 0, 0), now, job=job.seq)
        # Where it stood and needs nothing any more: its task's options have changed.
        self._let_in(left - {need.gate for need in needed}, now)
        return reason(full[0]) if full else None

    # ── one gate ─────────────────────────────────────────────────────────────────────────────────────

    def _open(self, need: Need) -> None:
        gate = self._gates.setdefault(need.gate, _Gate(need.slots, need.task))
        gate.slots, gate.task = need.slots, need.task

    def _slots(self, gate: _Gate) -> int:
        override = None if gate.task is None else self._house.marks.get(LIMIT_MARK + gate.task)
        return gate.slots if override is None else int(override)

    def _free(self, name: str) -> int:
        gate = self._gates[name]
        return self._slots(gate) - len(gate.held)

    def _has_room(self, name: str, rank: tuple[int, int, int], now: float) -> bool:
        """Whether there is a slot for one of this rank, when all before him in line have got theirs."""
        free = self._free(name)
        if free <= 0:
            return False
        before = sum(one.rank < rank for one in islice(self._line(name, now), free))
        return before < free

    def _line(self, name: str, now: float) -> Iterator[Standing]:
        """Those in line for whom a slot is kept, in order."""
        skipped = self._skipped(name, now)
        for *_, number in self._gates[name].line:
            place = self._places[number]
            if place.queue is None or place.queue not in skipped:
                yield place

    def _skipped(self, name: str, now: float) -> set[str | None]:
        paused = {key.removeprefix(PAUSE_MARK) for key in self._house.marks if key.startswith(PAUSE_MARK)}
        woken = (self._places[number] for number in self._gates[name].woken)
        return paused | {place.queue for place in woken if place.woken is not None and has_lapsed(place.woken, now)}

    def _place(
        self,
        gate: str,
        held: bool,
        rank: tuple[int, int, int],
        now: float,
        *,
        job: int | None = None,
        owner: int | None = None,
        queue: str | None = None,
    ) -> int:
        number, self._next = self._next, self._next + 1
        self._stand(Standing(number, gate, held, -rank[0], rank[1], job, owner, queue, now))
        return number

    def _stand(self, place: Standing) -> None:
        self._places[place.number] = place
        gate = self._gates[place.gate]
        if place.job is not None:
            self._of_job.setdefault(place.job, set()).add(place.number)
        if place.held:
            gate.held.add(place.number)
            return
        insort(gate.line, place.rank)
        if place.woken is not None:
            gate.woken.add(place.number)

    def _drop(self, numbers: Iterable[int]) -> set[str]:
        """Forget these places; returns the gates at which they were."""
        gates = set()
        for number in list(numbers):
            place = self._places.pop(number)
            gate = self._gates[place.gate]
            gate.remove(place)
            if place.job is not None:
                self._of_job[place.job].discard(number)
                if not self._of_job[place.job]:
                    del self._of_job[place.job]
            if not gate.held and not gate.line:
                del self._gates[place.gate]
            gates.add(place.gate)
        return gates

    # ── letting in ───────────────────────────────────────────────────────────────────────────────────

    def _let_in(self, gates: Iterable[str], now: float) -> bool:
        """Let in whoever is next at each of these gates; True if somebody was."""
        return sum(self._let_in_at(gate, now) for gate in sorted(gates) if gate in self._gates) > 0

    def _let_in_at(self, name: str, now: float) -> bool:
        done = False
        for place in list(islice(self._line(name, now), max(0, self._free(name)))):
            if place.queue is None:
                self._gates[name].remove(place)
                self._gates[name].held.add(place.number)
                self._places[place.number] = replace(place, held=True, since=now)
                done = True
            elif place.woken is None:
                done = self._let_out(place, now) or done
        return done

    def _let_out(self, place: Standing, now: float) -> bool:
        """Make a blocked job ready, if there is room for it at the other gates too."""
        places = [self._places[number] for number in self._of_job[place.job or 0]]
        others = [other for other in places if other.gate != place.gate]
        if not all(self._has_room(other.gate, other.rank, now) for other in others):
            return False
        for one in places:
            self._places[one.number] = replace(one, woken=now)
            self._gates[one.gate].woken.add(one.number)
        row = self._house.rows[place.job or 0]
        self._house.put(row._replace(state=JobState.READY, reason=None))
        return True

    # ── callers ──────────────────────────────────────────────────────────────────────────────────────

    def take(
        self,
        need: Need,
        now: float,
        *,
        job: tuple[int, int] | None = None,
        owner: int | None = None,
        wait: bool = False,
    ) -> Taken:
        with self._house.lock:
            refused = self._refused(need.gate, job, owner)
            if refused is not None:
                return refused
            self._open(need)
            newest = next(reversed(self._house.rows), 0)
            rank = (0, 2 * newest + 1, self._next)
            held = self._has_room(need.gate, rank, now)
            if not held and self._put_out_dead(now):
                self._open(need)
                held = self._has_room(need.gate, rank, now)
            if not held and not wait:
                return Taken(None)
            number = self._place(need.gate, held, rank, now, job=None if job is None else job[0], owner=owner)
        self._house.ring()
        return Taken(number, held)

    def _refused(self, gate: str, job: tuple[int, int] | None, owner: int | None) -> Taken | None:
        """Why nobody like this may come to the gate at all."""
        if owner is not None:
            return None if self._house.is_owner(owner) else Taken(None, gone=True)
        row = None if job is None else self._house.rows.get(job[0])
        if row is None or job is None or row.state is not JobState.RUNNING or row.claim != job[1]:
            return Taken(None, gone=True)
        own = any(self._places[number].gate == gate for number in self._of_job.get(row.seq, ()))
        return Taken(None, own=True) if own else None

    def leave(self, number: int, now: float) -> bool:
        with self._house.lock:
            found = number in self._places
            if found:
                self._let_in(self._drop([number]), now)
        if found:
            self._house.ring()
        return found

    def settled(self, numbers: Iterable[int]) -> set[int]:
        with self._house.lock:
            return {one for one in numbers if one not in self._places or self._places[one].held}

    def holds(self, number: int) -> bool:
        with self._house.lock:
            return number in self._places and self._places[number].held

    def held_by(self, gate: str, job: int) -> bool:
        with self._house.lock:
            places = [self._places[number] for number in self._of_job.get(job, ())]
            return any(place.held and place.gate == gate for place in places)

    def has_places(self, owner: int) -> bool:
        """Whether anybody is at a gate for as long as this owner lives. Called by the storage."""
        return any(self._owner_of(place) == owner for place in self._places.values())

    def put_out(self, owner: int, now: float) -> bool:
        with self._house.lock:
            done = self._put_out(owner, now)
        if done:
            self._house.ring()
        return done

    def _put_out(self, owner: int, now: float) -> bool:
        numbers = [number for number, place in self._places.items() if self._owner_of(place) == owner]
        self._let_in(self._drop(numbers), now)
        return bool(numbers)

    def _owner_of(self, place: Standing) -> int | None:
        """On whose life a place depends; a job that only waits to be claimed depends on nobody's."""
        if place.job is None:
            return place.owner
        row = self._house.rows[place.job]
        return row.owner if row.state is JobState.RUNNING else None

    def put_out_dead(self, now: float) -> bool:
        with self._house.lock:
            done = self._put_out_dead(now)
        if done:
            self._house.ring()
        return done

    def _put_out_dead(self, now: float) -> bool:
        owners = {owner for place in self._places.values() if (owner := self._owner_of(place)) is not None}
        return sum(self._put_out(owner, now) for owner in sorted(owners) if self._house.is_dead(owner)) > 0

    def clear(self, names: Iterable[str], now: float) -> set[str]:
        with self._house.lock:
            held = [number for name in names if name in self._gates for number in self._gates[name].held]
            cleared = {self._places[number].gate for number in held}
            self._let_in(self._drop(held), now)
        if cleared:
            self._house.ring()
        return cleared

    def wake(self, now: float, *, everywhere: bool = False) -> bool:
        with self._house.lock:
            woken = [self._places[number] for gate in self._gates.values() for number in gate.woken]
            lapsed = [one for one in woken if one.woken and has_lapsed(one.woken, now)]
            for place in lapsed:
                self._places[place.number] = replace(place, woken=LAPSED)
            gates = {place.gate for place in lapsed}
            if everywhere:
                gates |= {name for name, gate in self._gates.items() if gate.line}
            done = self._let_in(gates, now) or bool(gates)
        if done:
            self._house.ring()
        return done

    def states(self, prefix: str = "") -> list[GateState]:
        with self._house.lock:
            return [self._state(name) for name in sorted(self._gates) if name.startswith(prefix)]

    def _state(self, name: str) -> GateState:
        gate = self._gates[name]
        holders = (self._places[number] for number in sorted(gate.held))
        places = tuple(Place(holder.job, holder.owner, holder.since) for holder in holders)
        return GateState(name, self._slots(gate), gate.task, places, len(gate.line))
