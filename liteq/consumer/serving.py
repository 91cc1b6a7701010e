"""Which jobs of which queues come to the pool: how many of each are claimed, and who comes before what waits there.

What is claimed ahead waits in the pool for a worker. A job that was claimed after it and ranks before it, by the order
of the queues or by its priority, gets the next free worker all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from liteq.consumer.pools.base import Pool
from liteq.job import Job
from liteq.shares import Share, Sharing
from liteq.storage.base import ClaimRequest

#: Among the jobs of one consumer the lower goes first: the place of its queue, and its priority.
Rank = tuple[int, int]


class Serving:
    """The queues of one consumer.

    Args:
        pool: runs the jobs.
        queues: in order of preference; ``None``: all together, by priority.
        shares: how they share the consumer, where that is not their order alone.
    """

    def __init__(self, pool: Pool, queues: tuple[str, ...] | None, shares: Sequence[Share] | None) -> None:
        self._pool = pool
        self._queues = queues
        self._sharing = None if shares is None else Sharing(shares)
        self._places = {name: place for place, name in enumerate(queues or ())}
        #: Whether workers are kept for a queue.
        self.reserves = self._sharing is not None and self._sharing.reserves
        self._in_turn = self._sharing is not None and self._sharing.is_weighted
        # How many jobs of each queue the pool has; only where workers are reserved.
        self._running: Counter[str] = Counter()
        # How many were wanted when there were not so many; with more room there may be.
        self._wanted_in_vain: int | None = None
        self._last: Rank = (0, 0)  # the rank behind which nobody waits in the pool

    def request(self, owner: int, wanted: int, unless: object | None = None) -> ClaimRequest:
        """What to ask of the storage."""
        if self._sharing is None:
            return ClaimRequest(owner, wanted, self._queues, unless=unless)
        division = self._sharing.division(self._pool.ready - self._pool.held, self._running)
        return ClaimRequest(owner, wanted, self._queues, division=division, unless=unless)

    def may_have_more(self, wanted: int) -> bool:
        """Whether jobs may be claimed that were left before, because there are more workers now than were not kept."""
        return self._wanted_in_vain is not None and wanted > self._wanted_in_vain

    def asked(self, wanted: int, got: int) -> None:
        """Note what a claim has brought."""
        self._wanted_in_vain = wanted if self.reserves and got < wanted else None

    def feed(self, jobs: Sequence[Job]) -> None:
        """Hand claimed jobs to the pool."""
        if self._sharing is not None:
            jobs = self._sharing.claimed(jobs)
        if self.reserves:
            self._running.update(job.queue for job in jobs)
        self._pool.feed(jobs if self._in_turn else self._overtaking(jobs))

    def left(self, jobs: Iterable[Job]) -> None:
        """These are not the pool's any more."""
        if self.reserves:
            self._running.subtract(job.queue for job in jobs)

    def _overtaking(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """The jobs to feed: with those that wait in the pool, where one of them is to be overtaken."""
        first = self._rank(jobs[0])
        if not self._pool.backlog:
            self._last = first
        elif first < self._last:
            jobs = sorted([*self._pool.take_back(), *jobs], key=lambda job: (*self._rank(job), job.seq))
        self._last = max(self._last, self._rank(jobs[-1]))
        return jobs

    def _rank(self, job: Job) -> Rank:
        return self._places.get(job.queue, 0), -job.priority
