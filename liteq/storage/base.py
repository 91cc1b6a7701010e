"""The storage contract: the verbs every storage has, and what each promises.

Bytes and floats in, Jobs out. A storage reads no clock, decodes no payload, logs nothing and decides nothing: what
becomes of a job is decided in `liteq.lifecycle` and arrives here as Transitions. The promises are tested by one suite,
`tests/storage/contract.py`, that every storage passes; `MemoryStorage` is the executable specification.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, NamedTuple

from liteq.errors import ConfigurationError, StorageBusy, StorageError
from liteq.gates import Needs
from liteq.job import Death, Job, JobFilter, JobState, Progress
from liteq.lifecycle import Success, Transition
from liteq.plan import Plan

if TYPE_CHECKING:
    from pathlib import Path

    from liteq.findings import Finding
    from liteq.schedule import Schedule
    from liteq.shares import Division
    from liteq.step import Step
    from liteq.storage.cargo import Parcel, Piece, Taken
    from liteq.storage.gates import Gates
    from liteq.storage.plans import Plans
    from liteq.storage.watch import Watch


class Added(list[Job]):
    """What `Storage.add` answers with: for each job in order the stored one, or the one that had its id already.

    ``known`` are the positions of those that existed before; the same id twice in one call is one job, and its second
    mention a known one. ``replaced`` are those of them that are the new call from now on; see `lifecycle.begins_anew`.
    ``ended`` is that of a `Turn`: who could not even begin, because a job that he was to wait for had ended badly.
    """

    known: Set[int] = frozenset()
    replaced: Set[int] = frozenset()
    ended: Sequence[tuple[Job, Transition]] = ()

    @property
    def own(self) -> Set[int]:
        """The positions at which a job is the one that was given there: new, or replaced, and not once more after."""
        new = set(range(len(self))) - self.known
        if not self.replaced:
            return new
        return set({self[position].seq: position for position in sorted(new | self.replaced)}.values())


class Applied(list[bool]):
    """What `Storage.apply` answers with: for each transition whether it was applied; ``ended`` is that of a `Turn`."""

    __slots__ = ("ended",)

    def __init__(self, turn: Turn) -> None:
        super().__init__(turn.applied)
        self.ended = turn.ended


class Unregistered(StorageError):
    """Nothing was claimed for an owner that is not registered (any more), because nobody would recover its jobs.

    Args:
        owner: its number.
    """

    def __init__(self, owner: int) -> None:
        super().__init__(f"{owner} is not the number of a registered consumer (any more): nothing was claimed for it")
        self.owner = owner


class ClaimRequest(NamedTuple):
    """How much a consumer wants, and from where.

    ``owner`` is a registered one, or `CALLER`.

    ``queues`` in order of preference: everything in the first comes before anything in the second. ``None``: all
    queues together, by priority. ``needs`` says, by task name, of which gates a job needs a slot: where
    there is none it is not claimed but blocked, and ready again when one is free; see `liteq.storage.gates`.
    ``division`` says how many of each of ``queues``, where that is not the order of preference alone: see
    `liteq.shares`. ``unless`` is what `Turn.seen` was when there was nothing more to claim; where nothing was written
    since, and the turn has nothing to write, it looks no further and is ``unchanged``.
    """

    owner: int
    wanted: int
    queues: tuple[str, ...] | None = None
    needs: Needs = {}  # noqa: RUF012 - a named tuple's default, which nobody changes
    division: Division | None = None
    unless: object | None = None


#: The owner of what immediate mode runs: the caller himself. Only a storage whose jobs end with the process takes it.
CALLER = 0


class Turn(NamedTuple):
    """What one turn did.

    ``applied`` answers each transition in order; ``lost`` is the ``seq`` of each success that no longer held, and was
    dropped. ``next_due`` is when the earliest scheduled job becomes due, or the next token comes for which one waits;
    ``None`` if neither is so. ``next_token`` is the latter alone. ``marks`` holds the marks under ``revoke:``,
    ``cancel:`` and ``stack:``. ``ended`` are jobs, without payload, that ended because one that they waited for had
    ended without success, and how.

    ``seen`` changes with all that is written after this turn, by whomever; ``None``: the storage does not tell.
    ``unchanged``: nothing was written since what the request has named, and all but ``seen`` is empty here.
    """

    applied: list[bool]
    jobs: list[Job]
    next_due: float | None
    marks: Mapping[str, str]
    lost: Set[int] = frozenset()
    next_token: float | None = None
    ended: Sequence[tuple[Job, Transition]] = ()
    seen: object | None = None
    unchanged: bool = False


def sooner(one: float | None, other: float | None) -> float | None:
    """The earlier of two instants, of which either may not be."""
    return other if one is None else one if other is None else min(one, other)


class Outdated(NamedTuple):
    """Of the finished jobs that were looked at: the ``seq`` of each that was kept long enough; the last one looked at,
    behind which to go on, or ``None`` if there are no more; and in how many seconds the next of them will have been
    kept long enough, ``None`` if none ever will.
    """

    seqs: list[int]
    last: int | None
    margin: float | None


class Standing(NamedTuple):
    """Where an unfinished job stands, without what is in it."""

    seq: int
    state: JobState
    queue: str
    due: float | None
    claim: int
    owner: int | None
    reason: str | None
    expires: float | None = None


class Rival(NamedTuple):
    """Another unfinished job that has a job's unique key: the key, and that one's id."""

    key: str
    id: str


class Fire(NamedTuple):
    """Jobs of one schedule that are due.

    ``schedule`` is as it stands afterwards, but with the ``version`` that it must still have. ``jobs`` are in the order
    of their slots, state ``ready``, or ``blocked`` with a reason; each with an id that is its slot's alone, or ``""``.
    ``unmade`` is the schedule if none of them is stored, because their unique keys are held; see `schedule.made`.
    """

    schedule: Schedule
    jobs: Sequence[Job]
    unmade: Schedule | None = None


class Owner(NamedTuple):
    """A consumer that is or was registered: its number, what it said of itself, and whether it lives."""

    number: int
    info: Mapping[str, object]
    alive: bool


class Transaction(ABC):
    """What one running job writes together with its success; see `Storage.transaction`."""

    @property
    @abstractmethod
    def connection(self) -> Any:
        """The job's own connection, for the job to write on."""

    @property
    @abstractmethod
    def has_begun(self) -> bool:
        """Whether anything was written, be it that it was rolled back since by somebody else."""

    @abstractmethod
    def begin(self) -> None:
        """Take the write lock, which is kept until the end, unless the job holds it already. May wait; from any thread.

        Raises:
            StorageBusy: others hold it for too long. StorageError: it was ended by somebody else.
        """

    @abstractmethod
    def add(self, jobs: Sequence[Job], plan: Plan | None = None) -> Added:
        """`Storage.add`, in this transaction."""

    @abstractmethod
    def settle(self, success: Success, now: float) -> bool:
        """Settle the job as `Storage.turn` does, and commit both.

        Returns:
            False if the job was not running by this claim any more: then all is rolled back.

        Raises:
            StorageError: all is rolled back.
        """

    @abstractmethod
    def abandon(self, why: str) -> None:
        """Roll back and end, unless it has ended. Idempotent; from any thread.

        Args:
            why: for whoever uses it afterwards.
        """


def refuse_connection(connection: object, location: str) -> None:
    """For storages that are no SQLite file.

    Raises:
        ConfigurationError: a connection was passed.
    """
    if connection is not None:
        raise ConfigurationError(
            f"nothing was enqueued: connection=... is for a queue in an SQLite file, and this one is in {location}"
        )


class Storage(ABC):
    """Keeps jobs. Safe to share between threads; after a fork the child may go on using its copy."""

    #: Where it is, for people: an absolute path, or ``":memory:"``.
    location: str
    #: Who holds a slot of a lock or a limit, and who stands in line.
    gates: Gates
    #: Questions about who waits for which jobs; what is done about it is in `add`, `turn` and `remove`.
    plans: Plans

    @abstractmethod
    def add(self, jobs: Sequence[Job], connection: object = None, plan: Plan | None = None) -> Added:
        """Store new jobs.

        Args:
            jobs: state ``ready`` or ``scheduled`` (`lifecycle.submit`); ``seq`` is ignored; an empty ``id`` asks for
                a generated one.
            connection: an open connection of the caller's to the same file, or what has one underneath: the jobs are
                stored in its transaction, and exist if and when that is committed. Nobody is told of it before.
            plan: what they wait for. Those that wait for a job that has not finished are stored as ``blocked``. Of a
                job that existed before, what it waits for is not changed.

        Returns:
            For each, in order, the stored job: with its ``seq`` and ``id``, or, where its caller-chosen id exists
            already, the existing job as it stands with its history; `Added.known` tells which these are. Jobs of one
            call may share the random part of their generated ids. Where a job has a `unique` key that an unfinished
            one of its task holds, what becomes of it is what `lifecycle.meet` says: it is that one (which is then
            known, and may have been changed), or it is stored, perhaps `blocked` until that one has ended.

        Raises:
            StorageError: nothing was stored.
            ConfigurationError: the storage has no such connections, or this one cannot be used. TypeError: it is none.
            DuplicateJob: nothing was stored: a key is held, and the job's ``on_duplicate`` is ``"raise"``.

        Atomic: all or none, one transaction. Jobs of equal priority keep this order for ever.
        """

    @abstractmethod
    def turn(
        self,
        transitions: Sequence[Transition],
        request: ClaimRequest | None,
        now: float,
        progress: Mapping[tuple[int, int], Progress] | None = None,
        successes: Sequence[Success] = (),
    ) -> Turn:
        """Settle successes, apply transitions, promote what is due, claim.

        A job that has ended lets go those that have waited for it alone, which may be claimed at once, or ends them,
        where they need its success; one that runs again after it had ended brings those back. See `liteq.plan`.

        Args:
            transitions: applied in order; each guarded by (seq, source, claim). One that brings a finished job back
                is not applied while another unfinished one has its unique key. Where one ends a job, or a success
                does, whatever followed it for its key's sake goes on.
                One that ``awaits`` an event that was sent already, and not taken, leads to ``ready``.
            request: what to claim; ``None``: nothing.
            now: scheduled jobs due at or before it become ready, the longest due first; where very many are, a part of
                them (the next turn goes on: ``next_due`` is then still in the past). Also the ``started`` of claimed
                jobs.
            progress: by (``seq``, ``claim``); kept while the job is running by this claim (what was taken over and goes
                on all the same still says something, which belongs to nobody), dropped silently if it is not.
            successes: running jobs that succeeded; each guarded by (seq, claim).

        Returns:
            The answers and the claimed jobs (state ``running``, ``claim`` and ``attempt`` one higher, without history),
            highest priority first, oldest first within a priority, with their ``inputs``. Queues that bear a mark
            ``pause:<queue>`` are not claimed from. Where arguments are very large, it may be a part of what could be
            claimed, but one job at least; then the next turn goes on: ``next_due`` is ``now``.

        Raises:
            StorageError: nothing happened; the same turn may be tried again.
            Unregistered: nothing happened; ``request`` wants jobs for an owner that is not registered (any more).
            StorageTooNew: nothing happened; ``request`` wants jobs from a storage that a newer liteq has changed since
                it was opened. What was claimed before can still be settled.

        Atomic: one transaction. A claimed job belongs to exactly one owner.
        Called by: the dispatcher.
        """

    def apply(self, transitions: Sequence[Transition], now: float) -> Applied:
        """The first half of `turn` (it promotes too): for revoke, requeue, release and the like."""
        return Applied(self.turn(transitions, None, now))

    def transaction(self, job: Job) -> Transaction:
        """A transaction for what a running job writes to the storage's own file, to be committed with its success.

        Raises:
            ConfigurationError: this storage has no such thing.
        """
        raise ConfigurationError(
            f"task.connection() is for a queue in an SQLite file, and this one is in {self.location} (so it is in "
            "immediate mode); test such a task with a consumer, for example `with app.run_in_background():`"
        )

    def end_transaction(self, job: Job, why: str) -> None:
        """End the `transaction` of a job, if it has one in this process: its outcome is known, and is no success.

        Called by: the dispatcher, which does not know whether what it has given up still runs.
        """
        return

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
    def standing(self, seqs: Iterable[int]) -> dict[int, Standing]:
        """Where these jobs stand, and every running one, by ``seq``; those that have finished or are gone are left
        out. One snapshot; reads no payload. Called by: whoever looks for jobs that wait for each other."""

    @abstractmethod
    def counts(self) -> dict[JobState, int]:
        """How many jobs stand in each state (every state has a key)."""

    @abstractmethod
    def queues(self) -> dict[str, int]:
        """How many jobs are ready in each queue that has any."""

    @abstractmethod
    def next_expiry(self, after: float) -> float | None:
        """The first instant after this one at which a job expires that has not been started; ``None`` if none does. It
        may also be that of one which has ended since. Called by: an idle consumer, to sleep until then."""

    @abstractmethod
    def reasons(self, prefix: str = "") -> dict[str, int]:
        """How many jobs are blocked, by reason; only reasons that begin with ``prefix``."""

    @abstractmethod
    def next_due(self) -> float | None:
        """When the earliest scheduled job becomes due, or the next token comes for which somebody waits; ``None`` if
        neither is so."""

    @abstractmethod
    def ahead(self, seq: int) -> int:
        """How many ready jobs of its queue come before this one; 0 if it is not ready itself. Called by: whoever asks
        why a job does not run."""

    @abstractmethod
    def rival(self, seq: int) -> Rival | None:
        """Another unfinished job that has the unique key of this one; ``None`` if there is none, or no key. Called by:
        whoever brings a finished job back, to tell why not."""

    @abstractmethod
    def remove(self, query: JobFilter) -> int:
        """Delete finished jobs that match, with their history, their steps and what was sent to them, at most
        ``query.limit`` in one transaction.

        Returns:
            How many were deleted. Jobs that have not finished are never deleted, nor those for which another one waits,
            nor those whose result was passed to a job that failed. A ``seq`` is never given again.
        """

    @abstractmethod
    def outdated(self, before: Mapping[JobState, float], after: int, window: int, limit: int) -> Outdated:
        """Look for finished jobs that were kept long enough, not too many at a time: there may be millions.

        Args:
            before: when they have to have finished, by final state; jobs in other states are kept for ever.
            after: only jobs behind this ``seq``, in order.
            window: how many jobs to look at, at most.
            limit: how many to find, at most.

        Returns:
            None that `remove` would not delete. It may end before ``window`` jobs, but looks at one at least.
        """

    @abstractmethod
    def discard(self, seqs: Sequence[int]) -> int:
        """What `remove` does, to these jobs; returns how many were deleted."""

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

    # ── steps and events ─────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def record_step(self, seq: int, claim: int, step: Step) -> bool:
        """Record a step of a running job, so that it is not done again.

        Args:
            seq, claim: the job, which must be running by this claim.
            step: by its key, the first one of the job.

        Returns:
            Whether it was recorded. False: the job is not running by this claim (any more), or has such a step.

        Atomic: one transaction. Called by: workers, from inside the job.
        """

    def record_step_at_once(self, seq: int, claim: int, step: Step) -> bool:
        """`record_step` for who must not wait, as he is on an event loop.

        Raises:
            StorageBusy: it would have to wait, for another writer or for the disk; nothing was done.
        """
        raise StorageBusy(f"{self.location}: this storage waits for the disk")

    @abstractmethod
    def steps(self, seq: int) -> list[Step]:
        """What a job has recorded, in order of ``position``; empty where there is no such job."""

    @abstractmethod
    def await_event(self, seq: int, claim: int, step: Step, now: float) -> Step | None:
        """Take what was sent to a running job, or note that it waits for it.

        Args:
            seq, claim: the job, which must be running by this claim.
            step: kind ``wait``, state ``waiting``; its name is the event's. One of its key that was recorded before
                takes its place.
            now: seconds since the epoch.

        Returns:
            The step as it stands now, which is what is recorded: ``done``, with what was sent first of what nobody has
            taken; ``timed out``, if nothing was and its ``due`` is over; or ``waiting``. ``None``: the job is not
            running by this claim (any more); nothing was recorded or taken.

        Atomic: one transaction; each event is taken once. Called by: workers, from inside the job.
        """

    @abstractmethod
    def send(self, seq: int, event: str, data: bytes | None, now: float) -> bool:
        """Keep an event for a job until the job takes it; and if the job is blocked, or scheduled, by a transition that
        ``awaits`` it, make the job ready.

        Returns:
            False, and nothing is kept, if there is no such job, or it has finished.

        Atomic: one transaction. No event is lost between a job's last look and the transition by which it begins to
        wait, because that one looks again.
        """

    # ── schedules ────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def schedules(self, name: str | None = None) -> list[Schedule]:
        """All schedules, or the one of this name, in order of their names. ``last_outcome`` tells where the last job
        stands, or, where that was purged, how it ended."""

    @abstractmethod
    def put_schedule(self, schedule: Schedule) -> bool:
        """Compare and set a schedule: store a new one (``version`` 0) if there is none of its name, or change the one
        that has this ``version`` and ``created``. What is stored has a version that is one higher.

        Returns:
            Whether it happened. Atomic over all processes. A storage's watch tells the consumers.
        """

    @abstractmethod
    def drop_schedule(self, name: str) -> bool:
        """Delete a schedule; its jobs stay. Returns False if there was none."""

    @abstractmethod
    def due_schedules(
        self, now: float, boot: str | None, limit: int, without: Set[str] = frozenset()
    ) -> list[Schedule]:
        """Schedules that are due, the longest due first, without ``last_outcome``.

        Args:
            now: due at or before it; the cost is that of the answer, however many schedules there are.
            boot: also those that are to run at each boot and have not at this one.
            limit: at most so many.
            without: not these.
        """

    @abstractmethod
    def next_schedule(self, without: Set[str] = frozenset()) -> float | None:
        """When the next of all schedules but these is due; ``None`` if none is."""

    @abstractmethod
    def fire(self, fires: Sequence[Fire]) -> list[list[Job] | None]:
        """Store what has become of due schedules and the jobs that came of it.

        Returns:
            For each its stored jobs, without those whose id existed before; ``None`` where the schedule has changed
            meanwhile, or is gone: then nothing of this one was stored.

        Atomic: one transaction, and each of ``fires`` is guarded as in `put_schedule`. The schedule's ``last_job`` and
        ``last_id`` become those of its last new job.
        Called by: consumers; of any number of them that fire the same slot, one does.
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

    def begun(self, owner: int) -> Mapping[int, Death] | None:
        """The ``seq`` that each worker of a dead owner had begun last, as `liteq.storage.begun` recorded it, with what
        the worker has left behind; ``None`` where nothing was recorded, so that any of its jobs may have been begun.

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
        """Drop a dead owner's registration. Returns False, and does nothing, while it lives, has running jobs, or is at
        a gate.
        """

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
    def unload(self, put: Callable[[Piece], None]) -> None:
        """Hand out everything that is kept, but who runs and waits at which gate: marks, schedules, then jobs in order
        of ``seq``.

        Args:
            put: called with each piece.

        Atomic: what is handed out is of one instant, while others write.
        """

    @abstractmethod
    def take_in(
        self, parcels: Sequence[Parcel], schedules: Sequence[Schedule], marks: Mapping[str, str], now: float
    ) -> Taken:
        """Store what another storage has handed out, as it stands.

        Args:
            parcels: in order of ``seq``; none is running. A job keeps its ``id``, and its number where that is higher
                than all that are there, otherwise it gets the next one. One whose id is there already is left out, and
                so is one that has not finished and whose unique key an unfinished one has.
            schedules, marks: those whose name or key is there already are left out.
            now: seconds since the epoch.

        Returns:
            How many were stored, and how many jobs left out.

        Raises:
            StorageError: nothing was stored.

        Atomic: one transaction. Dependents of jobs that were left out go by those that are there.
        """

    def backup(self, target: Path, *, overwrite: bool = False) -> None:
        """Write a copy of everything to a new file, while it is in use.

        Args:
            target: where; absolute.
            overwrite: replace a file that is there already.

        Raises:
            StorageError: this storage cannot be copied, or the file cannot be written; there is no new file then, and
                an old one is as it was.

        Atomic: the copy is of one instant, and it appears whole.
        """
        raise StorageError(f"{self.location} cannot be backed up: it is not a file")

    def examine(self, *, thorough: bool = True) -> Iterator[Finding]:
        """Look for what may be wrong with where and how the jobs are kept; changes nothing.

        Args:
            thorough: also read everything, which takes about a second for each 100 MB.

        Raises:
            StorageError: on the way, where the answers come to what cannot be read.
        """
        return iter(())

    def schema_version(self) -> int | None:
        """Which version of its tables the storage has; ``None`` where there is no such thing."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Let go of everything, the owners registered through this object included. Idempotent; a question or a write
        afterwards opens it anew."""
