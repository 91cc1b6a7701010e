"""Shares of queues: in which proportion a consumer serves them, and how many of its workers it keeps for one. Pure.

``"high:3,default:1"`` are weights: of the jobs that start while both have any, three in four are of ``high``. It is
start-time fair queueing (Goyal, Vin, Cheng 1996) with jobs of equal size: each queue has a tag, the queue with the
lowest is served next, and its tag goes up by one part of its weight. Who had nothing to do begins at the tag of the
day, so nobody saves up a share, and nobody starves.

``"high=1,default"`` reserves workers: of them, so many run jobs of ``high`` only. Everything else is as ever.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import lcm
from typing import NamedTuple

from liteq.errors import ConfigurationError
from liteq.job import Job

_SPELLING = re.compile(r"([^=:]+)(?:=(\d{1,9}))?(?::(\d{1,9}))?", re.ASCII)
_HEAVIEST = 1000


class Share(NamedTuple):
    """A queue that a consumer serves; ``weight`` is 0 where none is given."""

    queue: str
    weight: int = 0
    reserved: int = 0


class Division(NamedTuple):
    """How one claim is to be divided.

    ``tags`` and ``running`` (jobs that the consumer has) are in the order of ``shares``; ``free`` is how many of its
    workers have nothing to do, ``None`` where none is reserved.
    """

    shares: tuple[Share, ...]
    tags: tuple[int, ...]
    running: tuple[int, ...] = ()
    free: int | None = None


def share(text: str) -> Share:
    """Read ``NAME``, ``NAME:WEIGHT``, ``NAME=RESERVED`` or ``NAME=RESERVED:WEIGHT``.

    Raises:
        ConfigurationError: it is none of these.
    """
    match = _SPELLING.fullmatch(text)
    if match is None:
        raise ConfigurationError(
            f"queues takes NAME, NAME:WEIGHT or NAME=WORKERS with whole numbers, not {text!r}; a queue with : or = in "
            "its own name is given in Python, as liteq.consumer.Share(name)"
        )
    name, reserved, weight = match.groups()
    if weight is not None and not 1 <= int(weight) <= _HEAVIEST:
        raise ConfigurationError(f"the weight of queue {name!r} is 1 to {_HEAVIEST}, not {weight}")
    if reserved is not None and int(reserved) < 1:
        raise ConfigurationError(f"at least one worker is reserved for queue {name!r}, or leave out the ={reserved}")
    return Share(name.strip(), int(weight or 0), int(reserved or 0))


def check(shares: Sequence[Share], workers: int) -> None:
    """See that the reserved workers exist, and leave some for the queues that have none.

    Raises:
        ConfigurationError: they do not, or a number makes no sense.
    """
    for one in shares:
        if not 0 <= one.weight <= _HEAVIEST or one.reserved < 0:
            raise ConfigurationError(f"{one} makes no sense: the weight is 1 to {_HEAVIEST}, or 0 for none")
    reserved = sum(one.reserved for one in shares)
    if reserved > workers:
        raise ConfigurationError(f"queues reserves {reserved} workers, but there are {workers}")
    others = [one.queue for one in shares if not one.reserved]
    if reserved == workers and others:
        raise ConfigurationError(
            f"queues reserves all {workers} workers, so jobs of {', '.join(others)} would never run; have more "
            "workers, or leave out these queues"
        )


def divide(division: Division, wanted: int, ready: Mapping[str, int], taken: Mapping[str, int]) -> dict[str, int]:
    """How many jobs of each queue to claim.

    Args:
        division: how.
        wanted: so many in all, if there are any.
        ready: how many there are of each queue, at least as far as ``wanted``.
        taken: what was claimed already in the same way.
    """
    plan = _Plan(division, ready, taken)
    while wanted > 0 and (able := plan.able()):
        wanted -= plan.give(able, wanted)
    return dict(plan.given)


class _Plan:
    """A division that is under way."""

    def __init__(self, division: Division, ready: Mapping[str, int], taken: Mapping[str, int]) -> None:
        self._shares = division.shares
        self._strides = strides(division.shares)
        self._tags = list(division.tags)
        self._running = list(division.running)
        self._free = division.free
        self._left = [ready.get(one.queue, 0) for one in division.shares]
        self.given: Counter[str] = Counter()
        for at, one in enumerate(division.shares):
            self._take(at, taken.get(one.queue, 0))

    def _take(self, at: int, number: int) -> None:
        self._tags[at] += number * self._strides[at]
        if self._free is not None:
            self._running[at] += number
            self._free -= number

    def able(self) -> list[int]:
        """The queues that have jobs, and workers that may run them."""
        return [at for at, left in enumerate(self._left) if left > 0 and self._room(at) > 0]

    def _room(self, at: int) -> int:
        """How many workers may run jobs of this queue: those that are free and not kept for another."""
        if self._free is None:
            return self._left[at]
        pairs = zip(self._shares, self._running, strict=True)
        kept = sum(max(0, one.reserved - running) for other, (one, running) in enumerate(pairs) if other != at)
        return self._free - kept

    def give(self, able: list[int], wanted: int) -> int:
        """Give the next in turn as many as it may have until it is another's; returns how many were given."""
        if not is_weighted(self._shares):
            return self._give(able[0], min(wanted, self._left[able[0]], self._room(able[0])))
        rounds = 0 if self._free is not None else self._whole_rounds(able, wanted)
        if rounds == 0:
            return self._give(min(able, key=lambda at: (self._tags[at], at)), 1)
        return sum(self._give(at, rounds * self._weight(at)) for at in able)

    def _whole_rounds(self, able: list[int], wanted: int) -> int:
        """How often each can be given its weight: after that, all stand to each other as before."""
        rounds = wanted // sum(map(self._weight, able))
        return min(rounds, *(self._left[at] // self._weight(at) for at in able))

    def _weight(self, at: int) -> int:
        return self._shares[at].weight or 1

    def _give(self, at: int, number: int) -> int:
        self._take(at, number)
        self._left[at] -= number
        self.given[self._shares[at].queue] += number
        return number


def is_weighted(shares: Iterable[Share]) -> bool:
    """Whether they are served in proportion; otherwise in their order."""
    return any(one.weight for one in shares)


def strides(shares: Sequence[Share]) -> list[int]:
    """By how much each queue's tag goes up with a job: the less the heavier."""
    common = lcm(*(one.weight or 1 for one in shares))
    return [common // (one.weight or 1) for one in shares]


class Sharing:
    """What a consumer keeps of its queues' shares from claim to claim.

    Args:
        shares: in order of preference.
    """

    def __init__(self, shares: Sequence[Share]) -> None:
        self._shares = tuple(shares)
        self._strides = strides(self._shares)
        self._tags = [0] * len(self._shares)
        #: Whether any workers are kept for a queue.
        self.reserves = any(one.reserved for one in shares)
        #: Whether queues are served in proportion.
        self.is_weighted = is_weighted(shares)

    def division(self, free: int, running: Mapping[str, int]) -> Division:
        """How the next claim is to be divided.

        Args:
            free: workers that have nothing to do.
            running: how many jobs of each queue the consumer has.
        """
        if not self.reserves:
            return Division(self._shares, tuple(self._tags))
        return Division(self._shares, tuple(self._tags), tuple(running.get(one.queue, 0) for one in self._shares), free)

    def claimed(self, jobs: Sequence[Job]) -> list[Job]:
        """Note what was claimed; returns the jobs in the order in which it is their turn."""
        at = {one.queue: at for at, one in enumerate(self._shares)}
        keyed: list[tuple[int, int, Job]] = []
        latest = 0
        for job in jobs:
            place = at[job.queue]
            latest = max(latest, self._tags[place])
            keyed.append((self._tags[place], place, job))
            self._tags[place] += self._strides[place]
        # Tags count from the last one that was served: whoever is behind it has had nothing to do.
        self._tags = [max(0, tag - latest) for tag in self._tags]
        return [job for *_, job in sorted(keyed, key=lambda one: one[:2])] if self.is_weighted else list(jobs)
