"""Gates in memory: the plainest form of `liteq.storage.gates`, and its specification. See `liteq.gates`."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import islice
from threading import RLock
from typing import NamedTuple

from liteq import rates
from liteq.gates import LAPSED, LIMIT_MARK, Need, has_lapsed, is_rate, lines_for, rate_mark, reason
from liteq.job import Job, JobState
from liteq.lifecycle import PAUSE_MARK
from liteq.rates import Level, Rate
from liteq.storage.gates import Gates, GateState, Place, Taken

#: At how many buckets is looked when a new one comes, whether they are full.
_TIDIED = 3


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


@dataclass(slots=True)
class _Bucket:
    """What is known of a gate's tokens, also while nobody is there; ``due`` and ``looked`` as in ``liteq_bucket``."""

    rate: Rate
    level: Level = field(default_factory=Level)
    due: float | None = None
    looked: float = 0.0


class BucketTable(NamedTuple):
    """A bucket, to be written down."""

    gate: str
    rate: Rate
    level: Level
    due: float | None
    looked: float


class GateTable(NamedTuple):
    """Everything that is known of the gates, to be written down: who is where, the gates by name with their slots and
    task, the number of the next place, and the buckets."""

    places: tuple[Standing, ...]
    gates: tuple[tuple[str, int, str | None], ...]
    next: int
    buckets: tuple[BucketTable, ...] = ()


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
        self._buckets: dict[str, _Bucket] = {}
        self._dues: list[tuple[float, str]] = []  # a heap; an entry counts while its bucket says the same
        # Where to look again when the claim is over: somebody has left, or taken a token.
        self._abandoned: set[str] = set()

    # ── called by the storage, under its lock ────────────────────────────────────────────────────────

    def table(self) -> GateTable:
        """Everything, to be written down."""
        gates = tuple((name, gate.slots, gate.task) for name, gate in self._gates.items())
        buckets = (BucketTable(name, one.rate, one.level, one.due, one.looked) for name, one in self._buckets.items())
        return GateTable(tuple(self._places.values()), gates, self._next, tuple(buckets))

    def restore(self, table: GateTable) -> None:
        """Become as a table says; nobody is at any gate yet."""
        self._gates = {name: _Gate(slots, task) for name, slots, task in table.gates}
        self._next = table.next
        for place in table.places:
            self._stand(place)
        for bucket in table.buckets:
            self._buckets[bucket.gate] = _Bucket(*bucket[1:])
            if bucket.due is not None:
                heappush(self._dues, (bucket.due, bucket.gate))

    def left(self, seqs: Iterable[int], now: float, unbegun: Collection[int] = frozenset()) -> None:
        """These jobs have moved on, from wherever they were: they are at no gate any more. Those of them that were
        claimed and not begun give their tokens back.
        """
        if self._places:
            numbers = [number for seq in seqs for number in self._of_job.get(seq, ())]
            for place in [self._places[number] for number in numbers]:
                if place.held and place.job in unbegun and place.gate in self._buckets:
                    bucket = self._buckets[place.gate]
                    bucket.level = rates.give_back(self._rate(place.gate), self._level(place.gate, now), place.since)
            self._let_in(self._drop(numbers), now)

    def enter(self, job: Job, needed: Sequence[Need], now: float) -> str | None:
        """Take every slot and token that a job needs before it is claimed, or let it stand in line.

        Returns:
            Why it is blocked; ``None``: it may run.
        """
        for need in needed:
            self._open(need, now)
        rank = (-job.priority, 2 * job.seq, 0)
        full = next((need.gate for need in needed if not self._has_room(need.gate, rank, now)), None)
        left = self._drop(self._of_job.get(job.seq, ()))
        for need in needed:
            self._open(need, now)  # dropping the last place may have closed it
        lines = [need.gate for need in (needed if full is None else lines_for(needed, full))]
        for gate in lines:
            if full is None:
                self._come_in(gate, now)
                self._place(gate, True, (0, 0, 0), now, job=job.seq)
            else:
                self._place(gate, False, rank, now, job=job.seq, queue=job.queue)
        self._abandoned |= left - set(lines)
        self._abandoned |= {need.gate for need in needed if need.rate is not None}
        self._close(need.gate for need in needed)
        return None if full is None else reason(full)

    def settle(self, now: float) -> bool:
        """The claim is over: let in who is next where somebody does not stand any more; True if somebody was."""
        abandoned, self._abandoned = self._abandoned, set()
        return self._let_in(abandoned, now)

    def pour(self, now: float) -> bool:
        """Let in whoever is next wherever a token has come; True if one has."""
        if (self.next_due() or now + 1) > now:
            return False
        due = [name for name, bucket in self._buckets.items() if bucket.due is not None and bucket.due <= now]
        self._let_in(due, now)
        return bool(due)

    def next_due(self) -> float | None:
        """When the next token comes for which somebody waits."""
        while self._dues:
            due, name = self._dues[0]
            if name in self._buckets and self._buckets[name].due == due:
                return due
            heappop(self._dues)
        return None

    # ── one gate ─────────────────────────────────────────────────────────────────────────────────────

    def _open(self, need: Need, now: float) -> None:
        gate = self._gates.setdefault(need.gate, _Gate(need.slots, need.task))
        gate.slots, gate.task = need.slots, need.task
        if need.rate is not None:
            if need.gate not in self._buckets:
                self._tidy(now)
            self._buckets.setdefault(need.gate, _Bucket(need.rate)).rate = need.rate

    def _tidy(self, now: float) -> None:
        """Drop a few buckets that are full, and say nothing any more; of those that are not, look at others next."""
        for name in list(islice(self._buckets, _TIDIED)):
            bucket = self._buckets.pop(name)
            if name in self._gates or bucket.level.full_at > now:
                self._buckets[name] = bucket

    def _close(self, names: Iterable[str]) -> None:
        """Forget the gates at which nobody is, and of their tokens what says nothing."""
        for name in names:
            gate = self._gates.get(name)
            if gate is not None and not gate.held and not gate.line:
                del self._gates[name]
                if name in self._buckets:
                    self._buckets[name].due = None

    def _slots(self, name: str) -> int:
        if is_rate(name):
            return self._rate(name).burst
        gate = self._gates[name]
        override = None if gate.task is None else self._house.marks.get(LIMIT_MARK + gate.task)
        return gate.slots if override is None else int(override)

    def _rate(self, name: str) -> Rate:
        gate = self._gates.get(name)
        override = self._house.marks.get(rate_mark(name, None if gate is None else gate.task))
        return self._buckets[name].rate if override is None else rates.parse(override)

    def _level(self, name: str, now: float) -> Level:
        return rates.seen(self._rate(name), self._buckets[name].level, now)

    def _free(self, name: str, now: float) -> int:
        if is_rate(name):
            return rates.tokens(self._rate(name), self._level(name, now), now)
        return self._slots(name) - len(self._gates[name].held)

    def _come_in(self, name: str, now: float) -> None:
        """A token is used up; a slot is held by whoever is placed there."""
        if is_rate(name):
            self._buckets[name].level = rates.take(self._rate(name), self._level(name, now), now, 1)

    def _has_room(self, name: str, rank: tuple[int, int, int], now: float) -> bool:
        """Whether there is a slot for one of this rank, when all before him in line have got theirs."""
        free = self._free(name, now)
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
            self._close([place.gate])
            gates.add(place.gate)
        return gates

    # ── letting in ───────────────────────────────────────────────────────────────────────────────────

    def _let_in(self, gates: Iterable[str], now: float) -> bool:
        """Let in whoever is next at each of these gates; True if somebody was."""
        return sum(self._let_in_at(gate, now) for gate in sorted(gates) if gate in self._gates) > 0

    def _let_in_at(self, name: str, now: float) -> bool:
        done, again = False, True
        while again and name in self._gates:
            again = False
            for place in list(islice(self._line(name, now), max(0, self._free(name, now)))):
                if place.queue is None:
                    self._come_in(name, now)
                    self._gates[name].remove(place)
                    self._gates[name].held.add(place.number)
                    self._places[place.number] = replace(place, held=True, since=now)
                    done = True
                elif place.woken is None:
                    full = self._full_elsewhere(place, now)
                    done = (full is None and self._let_out(place, now)) or done
                    again = (full is not None and full < place.number and self._step_out(place)) or again
        if name in self._buckets:
            self._reckon(name, now, tried=True)
        return done

    def _step_out(self, place: Standing) -> bool:
        """Take somebody out of the line for a token who waits for what comes before it, because he was overtaken."""
        if is_rate(place.gate):
            self._drop([place.number])
        return is_rate(place.gate)

    def _reckon(self, name: str, now: float, *, tried: bool = False) -> None:
        """Find out when the next token comes for which somebody waits.

        Args:
            tried: to let in whoever may come in: who is still in line waits for something else.
        """
        rate, bucket = self._rate(name), self._buckets[name]
        bucket.level, bucket.looked, bucket.due = self._level(name, now), now, None
        free = self._free(name, now)
        if name not in self._gates:
            return
        line = list(islice(self._line(name, now), free + 1))
        if not tried and any(place.woken is None for place in line[:free]):
            bucket.due = now
        elif free < rate.burst and len(line) > free:
            bucket.due = rates.due(rate, bucket.level, free + 1)
        if bucket.due is not None:
            heappush(self._dues, (bucket.due, name))

    def _full_elsewhere(self, place: Standing, now: float) -> int | None:
        """The first of a job's places where there is no room for it, besides this one."""
        others = [self._places[number] for number in sorted(self._of_job[place.job or 0]) if number != place.number]
        return next((one.number for one in others if not self._has_room(one.gate, one.rank, now)), None)

    def _let_out(self, place: Standing, now: float) -> bool:
        """Make a blocked job ready."""
        for one in [self._places[number] for number in self._of_job[place.job or 0]]:
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
            self._open(need, now)
            newest = next(reversed(self._house.rows), 0)
            rank = (0, 2 * newest + 1, self._next)
            has_room = self._has_room(need.gate, rank, now)
            if not has_room and self._put_out_dead(now):
                self._open(need, now)
                has_room = self._has_room(need.gate, rank, now)
            taken = self._came(need, rank, now, has_room, None if job is None else job[0], owner, wait)
            self._close([need.gate])
        if taken.number is not None or need.rate is not None:
            self._house.ring()
        return taken

    def _came(
        self,
        need: Need,
        rank: tuple[int, int, int],
        now: float,
        has_room: bool,
        job: int | None,
        owner: int | None,
        wait: bool,
    ) -> Taken:
        """What becomes of somebody who has come to a gate."""
        line = len(self._gates[need.gate].line)
        number: int | None = None
        if has_room:
            self._come_in(need.gate, now)
            number = 0 if is_rate(need.gate) else self._place(need.gate, True, rank, now, job=job, owner=owner)
        elif wait:
            number = self._place(need.gate, False, rank, now, job=job, owner=owner)
        if need.rate is None:
            return Taken(number, has_room)
        self._reckon(need.gate, now)
        due = rates.due(self._rate(need.gate), self._buckets[need.gate].level, line + 1) if number is None else None
        return Taken(number, has_room, due=due)

    def _refused(self, gate: str, job: tuple[int, int] | None, owner: int | None) -> Taken | None:
        """Why nobody like this may come to the gate at all."""
        if owner is not None:
            return None if self._house.is_owner(owner) else Taken(None, gone=True)
        row = None if job is None else self._house.rows.get(job[0])
        if row is None or job is None or row.state is not JobState.RUNNING or row.claim != job[1]:
            return Taken(None, gone=True)
        if is_rate(gate):  # tokens are not given back: whoever has had one may take another
            return None
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
            latest = now + rates.STALE
            gates |= {name for name, one in self._buckets.items() if one.due is not None and one.looked > latest}
            if everywhere:
                waited_for = {name for name, gate in self._gates.items() if gate.line}
                gates |= waited_for
                for name in waited_for & self._buckets.keys():
                    bucket = self._buckets[name]
                    bucket.level = rates.seen(self._rate(name), bucket.level, now, stale=0.0)
            poured = self.pour(now)
            done = self._let_in(gates, now) or poured or bool(gates)
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
        bucket = (self._rate(name), self._buckets[name].level) if is_rate(name) else (None, None)
        return GateState(name, self._slots(name), gate.task, places, len(gate.line), *bucket)

    def level(self, need: Need) -> Level:
        with self._house.lock:
            return self._buckets[need.gate].level if need.gate in self._buckets else Level()

    def next_token(self, gate: str) -> float | None:
        with self._house.lock:
            return self._buckets[gate].due if gate in self._buckets else None
