"""FileStorage: the contract on a directory with a journal, for places where SQLite cannot be used.

Read in this order: `journal` (the file and its lines), `record` (what is in a line), `replay` (the model that does the
same everywhere), `replica` (when a process hears of what others did, and how it writes), this module (the verbs).

Nothing here decides anything, and nothing is said twice: the verbs are those of `MemoryStorage`, carried out on a copy
in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar

from liteq.errors import ConfigurationError, StorageUnusable
from liteq.job import Death, Job, Progress
from liteq.lifecycle import Success, Transition
from liteq.plan import Plan
from liteq.storage import begun
from liteq.storage.base import Added, ClaimRequest, Owner, Storage, Transaction, Turn, refuse_connection
from liteq.storage.cargo import Piece
from liteq.storage.gates import Gates
from liteq.storage.journal import FORMAT, NAME
from liteq.storage.locks import Election, Slot, is_dead
from liteq.storage.memory import MemoryStorage
from liteq.storage.memory_gates import MemoryGates
from liteq.storage.memory_plans import MemoryPlans
from liteq.storage.plans import Plans
from liteq.storage.record import Asked
from liteq.storage.replica import Replica

if TYPE_CHECKING:
    from liteq.findings import Finding
    from liteq.storage.salvage import Salvaged
    from liteq.storage.watch import Watch

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def _described(method: F, contract: type, name: str) -> F:
    """The method under its name, and with what the contract says of it."""
    method.__name__ = name
    method.__qualname__ = f"File{contract.__name__}.{name}"
    method.__doc__ = getattr(contract, name).__doc__
    return method


def _asked(question: Callable[Concatenate[MemoryStorage, P], T]) -> Callable[Concatenate[FileStorage, P], T]:
    """A question of MemoryStorage, put to the copy."""

    def ask(self: FileStorage, /, *given: P.args, **named: P.kwargs) -> T:
        return self._replica.ask(lambda model: question(model, *given, **named))

    return _described(ask, Storage, question.__name__)


def _written(verb: Callable[Concatenate[MemoryStorage, P], T]) -> Callable[Concatenate[FileStorage, P], T]:
    """A verb of MemoryStorage, journaled; it stands in `liteq.storage.replay.VERBS`."""
    name = verb.__name__

    def write(self: FileStorage, /, *given: P.args, **named: P.kwargs) -> T:
        return self._replica.write(name, *given, **named)  # type: ignore[no-any-return]

    return _described(write, Storage, name)


def _asked_at_gates(question: Callable[Concatenate[MemoryGates, P], T]) -> Callable[Concatenate[FileGates, P], T]:
    """The same for a question about gates."""

    def ask(self: FileGates, /, *given: P.args, **named: P.kwargs) -> T:
        return self._replica.ask(lambda model: question(model._gates, *given, **named))

    return _described(ask, Gates, question.__name__)


def _written_at_gates(verb: Callable[Concatenate[MemoryGates, P], T]) -> Callable[Concatenate[FileGates, P], T]:
    """The same for a verb at gates."""
    name = f"gates.{verb.__name__}"

    def write(self: FileGates, /, *given: P.args, **named: P.kwargs) -> T:
        return self._replica.write(name, *given, **named)  # type: ignore[no-any-return]

    return _described(write, Gates, verb.__name__)


def _asked_of_plans(question: Callable[Concatenate[MemoryPlans, P], T]) -> Callable[Concatenate[FilePlans, P], T]:
    """The same for a question about plans."""

    def ask(self: FilePlans, /, *given: P.args, **named: P.kwargs) -> T:
        return self._replica.ask(lambda model: question(model._plans, *given, **named))

    return _described(ask, Plans, question.__name__)


class FileStorage(Storage):
    """Jobs in a directory of plain files, for places where SQLite cannot be used; nothing is touched before first use.

    Each process that asks about jobs, or runs them, keeps all of them in its memory; one that only enqueues does not.

    Args:
        path: the directory; it is made if it does not exist (its parent is not). A relative path is read from the
            current directory, once, here.
        durability: ``"full"``: what was stored survives power loss; ``"normal"``: it survives any crash of the program.
        create: make the queue if there is none; otherwise its absence is a StorageUnusable.
        allow_network_fs: do not refuse a file system on which locks are known to fail silently.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        durability: Literal["full", "normal"] = "full",
        create: bool = True,
        allow_network_fs: bool = False,
    ) -> None:
        if durability not in ("full", "normal"):
            raise ValueError(f"durability takes 'full' or 'normal', not {durability!r}")
        self.path = Path(path).absolute()
        self.location = str(self.path)
        self._slots_directory = self.path / "consumers"
        self._slots: dict[int, Slot] = {}
        self._keeper = Election(self.path / "keeper")
        self._replica = Replica(
            self.path, durability, create=create, allow_network_fs=allow_network_fs, dead=self._dead_among
        )
        self.gates = FileGates(self._replica)
        self.plans = FilePlans(self._replica)

    # ── jobs ─────────────────────────────────────────────────────────────────────────────────────────

    def add(self, jobs: Sequence[Job], connection: object = None, plan: Plan | None = None) -> Added:
        refuse_connection(connection, self.location)
        if plan is None:
            return self._replica.add(jobs)
        added: Added = self._replica.write("add", jobs, None, plan)
        return added

    def turn(
        self,
        transitions: Sequence[Transition],
        request: ClaimRequest | None,
        now: float,
        progress: Mapping[tuple[int, int], Progress] | None = None,
        successes: Sequence[Success] = (),
    ) -> Turn:
        if request is not None and request.needs:
            request = request._replace(needs=Asked(request.needs))
        turn: Turn = self._replica.write("turn", transitions, request, now, progress, successes)
        return turn

    get = _asked(MemoryStorage.get)
    find = _asked(MemoryStorage.find)
    finished = _asked(MemoryStorage.finished)
    standing = _asked(MemoryStorage.standing)
    counts = _asked(MemoryStorage.counts)
    queues = _asked(MemoryStorage.queues)
    next_expiry = _asked(MemoryStorage.next_expiry)
    reasons = _asked(MemoryStorage.reasons)
    next_due = _asked(MemoryStorage.next_due)
    ahead = _asked(MemoryStorage.ahead)
    rival = _asked(MemoryStorage.rival)
    outdated = _asked(MemoryStorage.outdated)
    remove = _written(MemoryStorage.remove)
    discard = _written(MemoryStorage.discard)

    # ── steps and events ─────────────────────────────────────────────────────────────────────────────

    steps = _asked(MemoryStorage.steps)
    record_step = _written(MemoryStorage.record_step)
    await_event = _written(MemoryStorage.await_event)
    send = _written(MemoryStorage.send)

    # ── marks, schedules ─────────────────────────────────────────────────────────────────────────────

    marks = _asked(MemoryStorage.marks)
    swap = _written(MemoryStorage.swap)

    schedules = _asked(MemoryStorage.schedules)
    due_schedules = _asked(MemoryStorage.due_schedules)
    next_schedule = _asked(MemoryStorage.next_schedule)
    put_schedule = _written(MemoryStorage.put_schedule)
    drop_schedule = _written(MemoryStorage.drop_schedule)
    fire = _written(MemoryStorage.fire)

    # ── moving everything ────────────────────────────────────────────────────────────────────────────

    def unload(self, put: Callable[[Piece], None]) -> None:
        for piece in self._replica.ask(MemoryStorage.pieces):
            put(piece)

    take_in = _written(MemoryStorage.take_in)

    # ── owners ───────────────────────────────────────────────────────────────────────────────────────

    def register(self, info: Mapping[str, object]) -> int:
        self._replica.ask(lambda model: None)  # what takes long is done before there is a file to be left behind
        name = os.urandom(8).hex()
        self._make_slots_directory()
        slot = Slot.take(self._slots_directory / name)
        try:
            owner: int = self._replica.write("enroll", json.loads(json.dumps(dict(info))), name)
        except BaseException:
            slot.release()
            raise
        self._slots[owner] = slot
        return owner

    def transaction(self, job: Job) -> Transaction:
        raise ConfigurationError(
            f"task.connection() is for a queue in an SQLite file, LiteQ('app.db'), and this one is in {self.location}"
        )

    def lock_fd(self, owner: int) -> int | None:
        slot = self._slots.get(owner)
        return None if slot is None else slot.fileno()

    def begun(self, owner: int) -> Mapping[int, Death] | None:
        name = self._replica.ask(lambda model: model.slots.get(owner))
        return None if name is None else begun.read(self._slots_directory / name)

    def unregister(self, owner: int) -> None:
        slot = self._slots.pop(owner, None)
        if slot is not None:
            slot.release()
        self.forget(owner)

    def owners(self) -> list[Owner]:
        known, slots = self._replica.ask(lambda model: (model.owners(), dict(model.slots)))
        dead = self._dead_among(slots)
        return [one._replace(alive=one.number not in dead) for one in known]

    def forget(self, owner: int) -> bool:
        name = self._replica.ask(lambda model: model.slots.get(owner))
        if name is None:
            return True
        forgotten: bool = self._replica.write("forget", owner)
        if forgotten:
            (self._slots_directory / name).unlink(missing_ok=True)
        return forgotten

    def _dead_among(self, slots: Mapping[int, str]) -> Collection[int]:
        return [owner for owner, name in slots.items() if is_dead(self._slots_directory / name)]

    # ── waiting, upkeep ──────────────────────────────────────────────────────────────────────────────

    def watch(self) -> Watch:
        from liteq.storage.watch import watch_file

        self._replica.prepare()
        self._make_slots_directory()
        return watch_file(self.path / NAME, self._slots_directory)

    def _make_slots_directory(self) -> None:
        try:
            self._slots_directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StorageUnusable(f"{self._slots_directory} cannot be created: {error.strerror}") from error

    def barrier(self) -> None:
        self._replica.barrier()

    def upkeep(self) -> None:
        if self._keeper.win():  # otherwise another consumer of this queue does it
            self._replica.shorten()

    def backup(self, target: Path, *, overwrite: bool = False) -> None:
        from liteq.storage.file_backup import backup

        backup(self._replica, target, overwrite=overwrite)

    def examine(self, *, thorough: bool = True) -> Iterator[Finding]:
        from liteq.storage.file_checkup import examine
        from liteq.storage.surroundings import slot_files

        yield from examine(self.path, thorough=thorough)
        known = self._replica.ask(lambda model: list(model.slots.values()))
        yield slot_files(known, self._slots_directory)

    def schema_version(self) -> int | None:
        self._replica.prepare()
        return FORMAT

    def compact(self) -> None:
        """Replace the journal at once by one that begins with all that there is, while others go on.

        Consumers do so now and then. By hand it is of use before an upgrade: the new version need not repeat what the
        old one did.

        Raises:
            StorageError: the journal is as it was.
        """
        self._replica.shorten(at_once=True)

    def salvage(self) -> Salvaged:
        """Make a queue with a damaged journal usable again, after every program that uses it has ended.

        What is before the damage is kept, and so are jobs that were added after it; what else happened after it is not
        known for certain any more, so jobs that ran since then may run again. The damaged journal is kept beside the
        new one.

        Returns:
            How many jobs there are now, how many of these were added after the damage, and where the old journal is.

        Raises:
            StorageError: the journal is not damaged, or not even its first line can be read; nothing was changed.
        """
        from liteq.storage.salvage import salvage

        self.close()
        return salvage(self.path)

    def close(self) -> None:
        for owner in list(self._slots):
            self.unregister(owner)
        self._keeper.resign()
        self._replica.close()


class FilePlans(Plans):
    """The plans of one FileStorage.

    Args:
        replica: the storage's.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    jobs = _asked_of_plans(MemoryPlans.jobs)
    steps = _asked_of_plans(MemoryPlans.steps)
    awaited = _asked_of_plans(MemoryPlans.awaited)
    prerequisites = _asked_of_plans(MemoryPlans.prerequisites)
    dependents = _asked_of_plans(MemoryPlans.dependents)


class FileGates(Gates):
    """The gates of one FileStorage.

    Args:
        replica: the storage's.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    take = _written_at_gates(MemoryGates.take)
    leave = _written_at_gates(MemoryGates.leave)
    put_out = _written_at_gates(MemoryGates.put_out)
    put_out_dead = _written_at_gates(MemoryGates.put_out_dead)
    clear = _written_at_gates(MemoryGates.clear)
    wake = _written_at_gates(MemoryGates.wake)

    settled = _asked_at_gates(MemoryGates.settled)
    holds = _asked_at_gates(MemoryGates.holds)
    held_by = _asked_at_gates(MemoryGates.held_by)
    states = _asked_at_gates(MemoryGates.states)
    level = _asked_at_gates(MemoryGates.level)
    next_token = _asked_at_gates(MemoryGates.next_token)
