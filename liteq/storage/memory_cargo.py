"""Moving everything into memory, and out of it: the plainest form of `Storage.unload` and `Storage.take_in`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from liteq.job import Attempt, Job
from liteq.schedule import Schedule
from liteq.storage.cargo import Mark, Parcel, Piece, Tie, tidy
from liteq.storage.memory_plans import Dependent, Wait
from liteq.storage.memory_steps import Awaited, Recorded, Sent
from liteq.storage.memory_unique import Held, Key


@dataclass(frozen=True, slots=True)
class Contents:
    """What a MemoryStorage holds; the fields are its own tables."""

    rows: dict[int, Job]
    history: dict[int, tuple[Attempt, ...]]
    recorded: Recorded
    sent: Sent
    awaited: Awaited
    keys: dict[int, Key]
    held: dict[Key, Held]
    dependents: dict[int, Dependent]

    def copy(self) -> Contents:
        """As it is now; rows are not copied, and not changed either."""
        return Contents(*(dict(getattr(self, name)) for name in self.__slots__))

    def pieces(self, marks: Mapping[str, str], schedules: list[Schedule]) -> Iterator[Piece]:
        """Everything, in the order in which it can be taken in."""
        yield from (Mark(*mark) for mark in sorted(marks.items()))
        yield from schedules
        yield from (tidy(self._parcel(row)) for row in self.rows.values())

    def _parcel(self, row: Job) -> Parcel:
        seq = row.seq
        name = self.keys.get(seq)
        held = None if name is None else self.held.get(name)
        holds = held is not None and held.job == seq
        dependent = self.dependents.get(seq)
        return Parcel(
            row._replace(attempts=self.history.get(seq, ())),
            None if name is None else name[1],
            holds,
            held.after if held is not None and holds else None,
            self.recorded.get(seq, ()),
            self.sent.get(seq, ()),
            self.awaited.get(seq),
            None if dependent is None else dependent.terms,
            () if dependent is None else tuple(Tie(*edge) for edge in dependent.edges if edge.prior in self.rows),
            dependent.cause if dependent is not None and dependent.cause in self.rows else None,
        )

    def file(self, parcel: Parcel) -> None:
        """Take in what is kept beside a job's row and not as a dependent."""
        seq = parcel.job.seq
        if parcel.job.attempts:
            self.history[seq] = tuple(parcel.job.attempts)
        if parcel.steps:
            self.recorded[seq] = tuple(parcel.steps)
        if parcel.events:
            self.sent[seq] = tuple(parcel.events)
        if parcel.awaits is not None:
            self.awaited[seq] = parcel.awaits
        if parcel.key is not None:
            self.keys[seq] = name = parcel.job.task, parcel.key
            if parcel.holds:
                self.held[name] = Held(seq, parcel.after)

    def depend(self, parcel: Parcel, missing: int) -> None:
        """Take in that a job is a dependent."""
        if parcel.terms is not None:
            edges = tuple(Wait(*tie) for tie in parcel.ties)
            self.dependents[parcel.job.seq] = Dependent(parcel.terms, edges, missing, parcel.cause)
