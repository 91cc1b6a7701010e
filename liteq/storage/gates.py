"""The part of the storage contract that is about gates: who holds a slot, and who stands in line. See `liteq.gates`.

Jobs come to gates by `Storage.turn`: a claimed job that needs slots gets all of them, or none and is `blocked` in the
line of each; whatever a transition does to a job ends its stay at every gate, and whoever is next is let in by the same
transaction. So the slots of a job that crashed, or whose consumer died, are free as soon as that is settled. What
callers do, who take a lock by ``with``, is here.

Where the gate has a rate, a job gets a token instead of a slot. Tokens come with time: `Storage.turn` lets in whoever
is next once one is there, and its ``next_due`` says when that is. A token is used up when the job begins; of a job that
was claimed and not begun (`Transition.unbegun`) it is given back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

from liteq.gates import Need
from liteq.rates import Level, Rate


class Taken(NamedTuple):
    """The answer to `Gates.take`.

    ``number`` is that of the place, held or in line; ``None``: it was refused. Then ``own`` says that this very job
    holds a slot of the gate already, ``gone`` that the job does not run (any more) or the owner is not registered.
    A token that was to be had leaves no place: its number is 0. Where there was none, ``due`` is when one will be.
    """

    number: int | None
    held: bool = False
    own: bool = False
    gone: bool = False
    due: float | None = None


class Place(NamedTuple):
    """Somebody at a gate: a job by its ``seq``, or a process by its owner number. ``since`` when it holds its slot."""

    job: int | None
    owner: int | None
    since: float


class GateState(NamedTuple):
    """A gate at which somebody is. ``slots`` is the number that holds, ``task`` as in `Need`; ``rate`` and ``level``
    are those of a gate with tokens, where ``holders`` are the jobs that have had one and run.
    """

    name: str
    slots: int
    task: str | None
    holders: tuple[Place, ...]
    waiting: int
    rate: Rate | None = None
    level: Level | None = None


class Gates(ABC):
    """What callers do at the gates of one storage."""

    @abstractmethod
    def take(
        self,
        need: Need,
        now: float,
        *,
        job: tuple[int, int] | None = None,
        owner: int | None = None,
        wait: bool = False,
    ) -> Taken:
        """Take a slot, or stand in line for one.

        Args:
            need: the gate; it has ``need.slots`` slots from now on.
            job: the running job that takes it, by seq and claim number; the place ends with its claim.
            owner: or the registered process; the place ends with it.
            wait: stand in line if no slot is free; otherwise that is a refusal.

        Returns:
            See `Taken`. Nobody in the line is overtaken.

        Atomic. Holders that are dead are put out before anybody is refused or made to wait.
        """

    @abstractmethod
    def leave(self, number: int, now: float) -> bool:
        """Give a place up, held or in line, and let in who is next; False if it was gone already."""

    @abstractmethod
    def settled(self, numbers: Iterable[int]) -> set[int]:
        """Which of these places are not in line any more: they hold a slot, or are gone. Called by: waiting callers."""

    @abstractmethod
    def holds(self, number: int) -> bool:
        """Whether this place holds a slot."""

    @abstractmethod
    def held_by(self, gate: str, job: int) -> bool:
        """Whether a job, by its seq, holds a slot of this gate."""

    @abstractmethod
    def put_out(self, owner: int, now: float) -> bool:
        """End every place of a dead owner, and those that its running jobs hold, and let in who is next.

        Returns:
            Whether there was any.
        """

    @abstractmethod
    def put_out_dead(self, now: float) -> bool:
        """`put_out` for every dead owner that has a place. Called by: waiting callers, as there may be no consumer."""

    @abstractmethod
    def clear(self, names: Iterable[str], now: float) -> set[str]:
        """Put out whoever holds these gates, dead or not; return the names of those that were held."""

    @abstractmethod
    def wake(self, now: float, *, everywhere: bool = False) -> bool:
        """Let in who is next wherever a kept slot has lapsed, or a token has come, or the clock was set back.

        Args:
            everywhere: at every gate with a line: because a limit was changed, or a queue resumed.

        Returns:
            Whether anything was done.
        """

    @abstractmethod
    def states(self, prefix: str = "") -> list[GateState]:
        """The gates at which somebody is, by name; never blocks writers."""

    @abstractmethod
    def level(self, need: Need) -> Level:
        """What is known of a gate with tokens; a full one is forgotten. Never blocks writers."""

    @abstractmethod
    def next_token(self, gate: str) -> float | None:
        """When the next token comes at this gate, if somebody waits for it; ``None``: nobody does. Called by: waiting
        callers, who let themselves in by `wake`, as there may be no consumer."""
