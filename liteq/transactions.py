"""What a running job writes in one transaction with its success: on `task.connection()`, and by enqueuing others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from liteq import lifecycle
from liteq.job import Job, Outcome
from liteq.lifecycle import Transition
from liteq.plan import Plan
from liteq.storage.base import Added, Storage

if TYPE_CHECKING:
    from liteq.storage.sqlite_own import JobConnection  # a program on memory never loads it


class OwnTransaction:
    """One job's.

    Args:
        storage: where the job is.
        job: running.
        announce: called with the new jobs that it has enqueued, once that is committed; ``None``: nobody wants to know.
        announce_ended: called then with those that ended at once, because what they were to wait for had failed.

    Raises:
        ConfigurationError: the storage has no such thing.
    """

    def __init__(
        self,
        storage: Storage,
        job: Job,
        announce: Callable[[Iterable[Job]], None] | None,
        announce_ended: Callable[[Sequence[tuple[Job, Transition]]], None],
    ) -> None:
        self._storage = storage
        self._transaction = storage.transaction(job)
        self.job = job
        self._announce = announce
        self._announce_ended = announce_ended
        self._enqueued: list[Job] = []
        self._ended: list[tuple[Job, Transition]] = []
        self.is_open = True

    @property
    def connection(self) -> JobConnection:
        """See `TaskContext.connection`."""
        return self._transaction.connection  # type: ignore[no-any-return]

    @property
    def holds_the_lock(self) -> bool:
        """Whether it keeps everybody else from writing."""
        return self.is_open and self._transaction.has_begun

    def begin(self) -> None:
        """Take the write lock; it may be waited for."""
        self._transaction.begin()

    def add(self, jobs: Sequence[Job], plan: Plan | None = None) -> Added:
        """Store jobs that exist if the job succeeds."""
        added = self._transaction.add(jobs, plan)
        self._ended += added.ended
        if self._announce is not None:
            self._enqueued += [job for position, job in enumerate(added) if position not in added.known]
        return added

    def settle(self, outcome: Outcome, now: float) -> Outcome:
        """Commit what was written, and the success with it, if anything was; else leave that to the consumer.

        Returns:
            The outcome, marked as settled if it is.

        Raises:
            StorageError: it could not be stored; nothing of it is.
        """
        self.is_open = False
        if not self._transaction.has_begun:
            self._transaction.abandon("it has ended")
            return outcome
        if not self._transaction.settle(lifecycle.succeed(self.job, outcome), now):
            return outcome  # the consumer finds out in the same way, and says so
        # It is committed. The job may have rolled some of it back before.
        if self._announce is not None:
            self._announce([job for job in self._enqueued if self._storage.get(job.id) is not None])
        self._announce_ended([(job, how) for job, how in self._ended if self._storage.get(job.id) is not None])
        return outcome._replace(settled=True)

    def abandon(self) -> None:
        """Roll back."""
        self.is_open = False
        self._transaction.abandon("it has ended")
