"""The storage contract: the verbs every storage has, and what each promises.

Bytes and floats in, Jobs out. A storage reads no clock, decodes no payload, logs nothing and decides nothing: what
becomes of a job is decided in `liteq.lifecycle` and arrives here as Transitions. The promises are tested by one suite,
`tests/storage/contract.py`, that every storage passes; `MemoryStorage` is the executable specification.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from liteq.job import Job, JobFilter, JobState, Progress
from liteq.lifecycle import Transition

if TYPE_CHECKING:
    from liteq.storage.watch import Watch


class ClaimRequest(NamedTuple):
    """How much a consumer wants, and from where.

    ``queues`` in order of preference: everything in the first comes before anything in the second. ``None``: all
    queues together, by priority.
    """

    owner: int
    wanted: int
    queues: tuple[str, ...] | None = None


class Turn(NamedTuple):
    """What one turn did.

    ``applied`` answers each transition in order. ``next_due`` is when the earliest scheduled job becomes due, ``None``
    if none is scheduled. ``marks`` holds the marks under ``revoke:`` and ``cancel:``.
    """

    applied: list[bool]
    jobs: list[Job]
    next_due: float | None
    marks: Mapping[str, str]


class Owner(NamedTuple):
    """A consumer that is or was registered: its number, what it said of itself, and whether it lives."""

    number: int
    info: Mapping[str, object]
    alive: bool


class Storage(ABC):
    """Keeps jobs. Safe to share between threads; after a fork the child may go on using its copy."""

    #: Where it is, for people: an absolute path, or ``":memory:"``.
    location: str

    @abstractmethod
    def add(self, jobs: Sequence[Job]) -> list[Job]:
        """Store new jobs.

        Args:
            jobs: state ``ready`` or ``scheduled`` (`lifecycle.submit`); ``seq`` is ignored; an empty ``id`` asks for
                a generated one.

        Returns:
            For each, in order, the stored job: with its ``seq`` and ``id``, or, where its caller-chosen id exists
            already, the existing job as it stands with its history (compare ``created`` or ``seq`` to tell). Jobs of
            one call may share the random part of their generated ids.

        Raises:
            StorageError: nothing was stored.

        Atomic: all or none, one transaction. Jobs of equal priority keep this order for ever.
        """

    @abstractmethod
    def turn(
        self,
        transitions: Sequence[Transition],
        request: ClaimRequest | None,
        now: float,
        progress: Mapping[int, Progress] | None = None,
    ) -> Turn:
        """Apply transitions, promote what is due, claim.

        Args:
            transitions: applied in order; each guarded by (seq, source, claim).
            request: what to claim; ``None``: nothing.
            now: scheduled jobs due at or before it become ready, the longest due first; where very many are, a part of
                them (the next turn goes on: ``next_due`` is then still in the past). Also the ``started`` of claimed
                jobs.
            progress: by ``seq``; kept while the job is running, dropped silently if it is not.

        Returns:
            The answers and the claimed jobs (state ``running``, ``claim`` and ``attempt`` one higher, without history),
            highest priority first, oldest first within a priority. Queues that bear a mark ``pause:<queue>`` are not
            claimed from.

        Raises:
            StorageError: nothing happened; the same turn may be tried again.

        Atomic: one transaction. A claimed job belongs to exactly one owner.
        Called by: the dispatcher.
        """

    def apply(self, transitions: Sequence[Transition], now: float) -> list[bool]:
        """The first half of `turn` (it promotes too): for revoke, requeue, release and the like."""
        return self.turn(transitions, None, now).applied

    @abstractmethod
    def get(self, job_id: str) -> Job | None:
        """One job by its public id, with its whole history; ``None`` if there is none. Never blocks writers."""

    @abstractmethod
    def find(self, query: JobFilter) -> list[Job]:
        """The jobs that match, in order of ``seq``, without history. Never blocks writers."""

    @abstractmethod
    def finished(self, seqs: Iterable[int]) -> set[int]:
        """Which of these are not waiting or running any more (finished, or gone). Called by: whoever waits for a
        result."""

    @abstractmethod
    def counts(self) -> dict[JobState, int]:
        """How many jobs stand in each state (every state has a key)."""

    @abstractmethod
    def queues(self) -> dict[str, int]:
        """How many jobs are ready in each queue that has any."""

    @abstractmethod
    def reasons(self) -> dict[str, int]:
        """How many jobs are blocked, by reason."""

    @abstractmethod
    def next_due(self) -> float | None:
        """When the earliest scheduled job becomes due; ``None`` if none is scheduled."""

    @abstractmethod
    def remove(self, query: JobFilter) -> int:
        """Delete finished jobs that match, with their history, at most ``query.limit`` in one transaction.

        Returns:
            How many were deleted. Jobs that have not finished are never deleted. A ``seq`` is never given again.
        """

    @abstractmethod
    def marks(self, prefix: str = "") -> dict[str, str]:
        """All marks whose key begins with ``prefix``."""

    @abstractmethod
    def swap(self, key: str, expected: str | None, new: str | None) -> bool:
        """Compare and set a mark: if ``key`` has value ``expected`` (``None``: is absent) make it ``new`` (``None``:
        remove it).

        Returns:
            Whether it happened. Atomic over all processes.
        """

    @abstractmethod
    def register(self, info: Mapping[str, object]) -> int:
        """Become an owner, alive until `unregister` or the death of the process, whichever comes first.

        Args:
            info: plain JSON values about the consumer (host, pid, queues …), for people.

        Returns:
            The owner's number, never given again.
        """

    @abstractmethod
    def lock_fd(self, owner: int) -> int | None:
        """A descriptor that keeps ``owner`` alive in whichever process holds a copy; ``None`` if there is no such
        thing.

        Called by: the process pool, so that a job that still runs in an orphaned worker is not given away.
        """

    def begun(self, owner: int) -> frozenset[int] | None:
        """The ``seq`` that each worker of a dead owner had begun last, as `liteq.storage.begun` recorded it; ``None``
        where nothing was recorded, so that any of its jobs may have been begun.

        Called by: recovery, which counts an attempt as crashed only where there was one.
        """
        return None

    @abstractmethod
    def unregister(self, owner: int) -> None:
        """Stop being an owner. It is forgotten at once if it runs nothing; else its jobs are recovered by others
        first.
        """

    @abstractmethod
    def owners(self) -> list[Owner]:
        """Every registered consumer, alive or not yet forgotten."""

    def dead_owners(self) -> list[int]:
        """The owners that are dead for certain. A live one, however slow, is never among them."""
        return [owner.number for owner in self.owners() if not owner.alive]

    @abstractmethod
    def forget(self, owner: int) -> bool:
        """Drop a dead owner's registration. Returns False, and does nothing, while it has running jobs or lives."""

    @abstractmethod
    def watch(self) -> Watch:
        """A new wake-up source: tells when something may have been written, or an owner may have died."""

    @abstractmethod
    def barrier(self) -> None:
        """Return once every write that was under way when it was called is visible to the next question."""

    def upkeep(self) -> None:
        """Do a little of what keeps the storage small and quick. Called by: consumers, after writes, off the hot
        path.
        """
        return

    @abstractmethod
    def close(self) -> None:
        """Let go of everything, the owners registered through this object included. Idempotent; a question or a write
        afterwards opens it anew."""
