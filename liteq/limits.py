"""Who holds locks and limits, and how many wait; and ``app.limits``, which changes limits at run time.

Locks are taken in `liteq.locks`, limits by the claim of a job. Both are gates (`liteq.gates`), which the storage keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from liteq.definition import Definition, check_integer, check_name
from liteq.errors import ConfigurationError
from liteq.gates import LIMIT, LIMIT_MARK, LOCK
from liteq.instants import moment
from liteq.job import Job, JobFilter, JobState
from liteq.storage.base import Owner, Storage

if TYPE_CHECKING:
    from liteq.storage.gates import GateState, Place


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a slot of a lock or a limit.

    Args:
        since: from when on.
        job_id, task: the job, if it is one.
        process: what is known of the process, if it is held outside of any job: ``host``, ``pid``, ``name``.
    """

    since: datetime
    job_id: str | None = None
    task: str | None = None
    process: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class LockState:
    """A lock that somebody holds or waits for.

    Args:
        name: the lock's.
        slots: how many may hold it at once.
        holders: who does.
        waiting: how many jobs and callers wait for it.
    """

    name: str
    slots: int
    holders: tuple[Holder, ...]
    waiting: int


@dataclass(frozen=True, slots=True)
class LimitState:
    """How many jobs of a task run and wait at its ``max_running``.

    Args:
        task: its stored name.
        key: the value of ``max_running_key``; ``None`` where the task has none.
        max_running: how many may run at once now.
        declared: what the task itself says; ``None`` where it is not known here.
        holders: the jobs that run (or are about to).
        waiting: how many are blocked.
    """

    task: str
    key: str | None
    max_running: int
    declared: int | None
    holders: tuple[Holder, ...]
    waiting: int


def is_locked(storage: Storage, name: str) -> bool:
    """Whether every slot of a lock is held by somebody who lives."""
    states = [state for state in storage.gates.states(LOCK + name) if state.name == LOCK + name]
    return any(len(_living(storage, state.holders, _owners(storage))) >= state.slots for state in states)


def locks(storage: Storage) -> list[LockState]:
    """The locks that somebody holds or waits for, by name."""
    states = storage.gates.states(LOCK)
    owners = _owners(storage) if states else {}
    return [
        LockState(state.name.removeprefix(LOCK), state.slots, _living(storage, state.holders, owners), state.waiting)
        for state in states
    ]


def holders_of(storage: Storage, state: GateState) -> tuple[Holder, ...]:
    """Who holds slots of a gate, and lives."""
    return _living(storage, state.holders, _owners(storage))


class Limits:
    """``app.limits``: the ``max_running`` of tasks, seen and changed while consumers run.

    Args:
        storage: gives the app's storage of the moment.
        tasks: by stored name.
        now: the app's clock.
    """

    def __init__(
        self, storage: Callable[[], Storage], tasks: Mapping[str, Definition], now: Callable[[], float]
    ) -> None:
        self._storage = storage
        self._tasks = tasks
        self._now = now

    def list(self) -> list[LimitState]:
        """Every limit that is declared here, or at which jobs run or wait, by task and key."""
        storage = self._storage()
        states = storage.gates.states(LIMIT)
        owners = _owners(storage) if states else {}
        found = [self._state(state, storage, owners) for state in states]
        present = {one.task for one in found}
        for name, definition in self._tasks.items():
            most = definition.options.max_running
            if most is not None and name == definition.name and name not in present:
                found.append(LimitState(name, None, _override(storage, name) or most, most, (), 0))
        return sorted(found, key=lambda one: (one.task, one.key or ""))

    def set(self, task: str | Callable[..., Any], max_running: int) -> None:
        """Let so many jobs of a task run at once, in all consumers, from now on; survives restarts. Those that run
        already run on.

        Args:
            task: a Task, or its stored name; it must be declared with ``max_running``.
            max_running: at least 1 (to let none run, pause its queue).

        Raises:
            ConfigurationError: the task has no ``max_running``, or this one makes no sense. TypeError: likewise.
        """
        name = self._name(task)
        self._change(name, str(check_integer(max_running, "max_running", least=1)))

    def reset(self, task: str | Callable[..., Any]) -> None:
        """Undo `set`: what the task itself says holds again."""
        self._change(self._name(task), None)

    def _state(self, state: GateState, storage: Storage, owners: Mapping[int, Owner]) -> LimitState:
        task = state.task or ""
        in_brackets = state.name.removeprefix(LIMIT + task)
        key = in_brackets[1:-1] if in_brackets else None
        declared = self._tasks[task].options.max_running if task in self._tasks else None
        return LimitState(task, key, state.slots, declared, _living(storage, state.holders, owners), state.waiting)

    def _name(self, task: object) -> str:
        name = check_name(getattr(task, "name", task), "task")
        definition = self._tasks.get(name)
        if definition is None or definition.options.max_running is None:
            raise ConfigurationError(f"task {name!r} is not declared with max_running=..., so there is no limit to set")
        return definition.name

    def _change(self, name: str, new: str | None) -> None:
        storage, key = self._storage(), LIMIT_MARK + name
        while not storage.swap(key, storage.marks(key).get(key), new):
            continue
        storage.gates.wake(self._now(), everywhere=True)


def _override(storage: Storage, task: str) -> int | None:
    key = LIMIT_MARK + task
    value = storage.marks(key).get(key)
    return None if value is None else int(value)


def _owners(storage: Storage) -> dict[int, Owner]:
    return {owner.number: owner for owner in storage.owners()}


def _living(storage: Storage, places: tuple[Place, ...], owners: Mapping[int, Owner]) -> tuple[Holder, ...]:
    """Who is at these places and lives; the others are as good as gone."""
    found = []
    for place in places:
        job = None if place.job is None else _running(storage, place.job)
        number = place.owner if job is None else job.owner
        owner = owners.get(number or 0)
        if (place.job is None or job is not None) and (owner is None or owner.alive):
            since = moment(place.since)
            if job is not None:
                found.append(Holder(since, job.id, job.task))
            else:
                found.append(Holder(since, process=None if owner is None else owner.info))
    return tuple(found)


def _running(storage: Storage, seq: int) -> Job | None:
    found = storage.find(JobFilter(frozenset({JobState.RUNNING}), after=seq - 1, limit=1))
    return found[0] if found and found[0].seq == seq else None
