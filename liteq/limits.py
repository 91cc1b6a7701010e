"""Who holds locks and limits, and how many wait; and ``app.limits``, which changes limits at run time.

Locks are taken in `liteq.locks`, named rates in `liteq.rate_limits`, and a task's limits by the claim of its jobs. All
are gates (`liteq.gates`), which the storage keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from liteq import gates, rates
from liteq.definition import Definition, check_integer, check_name, check_rate
from liteq.errors import ConfigurationError
from liteq.gates import LIMIT, LIMIT_MARK, LOCK, NAMED_RATE, RATE, RATE_MARK, Need
from liteq.instants import moment
from liteq.job import Job, JobFilter, JobState
from liteq.storage.base import Owner, Storage
from liteq.storage.gates import GateState

if TYPE_CHECKING:
    from liteq.rate_limits import RateLimit
    from liteq.storage.gates import Place


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
    """A limit: how many jobs of a task run and wait at its ``max_running``, or how many may start and wait at its
    ``rate_limit``.

    Args:
        task: its stored name; ``None`` for an ``app.rate_limit``, which has a ``name`` instead.
        key: the value of ``max_running_key`` or ``rate_limit_key``; ``None`` where the task has none.
        max_running: how many may run at once now; ``None`` for a rate.
        declared: what the task itself says; ``None`` where it is not known here.
        holders: the jobs that run (or are about to); nobody holds a rate.
        waiting: how many jobs (and callers) wait.
        rate_limit: the rate that holds now, as text; ``None`` for ``max_running``.
        tokens: how many may start at once now.
        next_at: when the next one may start of those that wait.
        name: of an ``app.rate_limit``.
    """

    task: str | None
    key: str | None
    max_running: int | None
    declared: int | str | None
    holders: tuple[Holder, ...]
    waiting: int
    rate_limit: str | None = None
    tokens: int | None = None
    next_at: datetime | None = None
    name: str | None = None


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
    """``app.limits``: the ``max_running`` and ``rate_limit`` of tasks, seen and changed while consumers run.

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
        """Every limit that is declared here, or at which jobs run or wait, by name and key."""
        storage = self._storage()
        states = [state for kind in (LIMIT, RATE, NAMED_RATE) for state in storage.gates.states(kind)]
        owners = _owners(storage) if states else {}
        present = {(gates.is_rate(state.name), state.task) for state in states}
        for name, definition in self._tasks.items():
            if name == definition.name:
                states += [one for one in self._declared(definition) if (one.rate is not None, name) not in present]
        found = [self._state(state, storage, owners) for state in states]
        return sorted(found, key=lambda one: (one.task or one.name or "", one.rate_limit is not None, one.key or ""))

    def set(
        self,
        limited: str | Callable[..., Any] | RateLimit,
        max_running: int | None = None,
        *,
        rate_limit: str | None = None,
    ) -> None:
        """Let so many jobs of a task run at once, or start, in all consumers, from now on; survives restarts. Those
        that run already run on.

        Args:
            limited: a Task, or its stored name; or what ``app.rate_limit`` has made.
            max_running: at least 1 (to let none run, pause its queue); the task must be declared with it.
            rate_limit: ``"10/s"`` or the like; likewise.

        Raises:
            ConfigurationError: the task has no such limit, or this one makes no sense. TypeError: likewise.
        """
        if max_running is None and rate_limit is None:
            raise TypeError("limits.set takes max_running=..., rate_limit=... or both; limits.reset undoes it")
        changes = {}
        if max_running is not None:
            most = check_integer(max_running, "max_running", least=1)
            changes[self._mark(limited, "max_running")] = str(most)
        if rate_limit is not None:
            changes[self._mark(limited, "rate_limit")] = check_rate(rate_limit).text
        self._change(changes)

    def reset(self, limited: str | Callable[..., Any] | RateLimit) -> None:
        """Undo `set`: what the task itself says holds again."""
        found = {what: self._mark_of(limited, what) for what in ("max_running", "rate_limit")}
        marks = [mark for mark in found.values() if mark is not None]
        if not marks:
            self._mark(limited, "max_running")
        self._change(dict.fromkeys(marks))

    def _declared(self, definition: Definition) -> Iterator[GateState]:
        """The limits of a task, as gates at which nobody is."""
        options, gates_of = definition.options, self._storage().gates
        if options.max_running is not None:
            need = gates.limit(definition.name, options.max_running, None)
            override = self._override(LIMIT_MARK + definition.name)
            yield GateState(need.gate, int(override or options.max_running), definition.name, (), 0)
        if options.rate_limit is not None:
            need = gates.rate_limit(definition.name, options.rate_limit, None)
            override = self._override(RATE_MARK + definition.name)
            rate = options.rate_limit if override is None else rates.parse(override)
            yield GateState(need.gate, rate.burst, definition.name, (), 0, rate, gates_of.level(need))

    def _override(self, key: str) -> str | None:
        return self._storage().marks(key).get(key)

    def _state(self, state: GateState, storage: Storage, owners: Mapping[int, Owner]) -> LimitState:
        kind = next(kind for kind in (LIMIT, RATE, NAMED_RATE) if state.name.startswith(kind))
        name = state.name.removeprefix(kind)
        in_brackets = "" if state.task is None else name.removeprefix(state.task)
        key = in_brackets[1:-1] if in_brackets else None
        definition = self._tasks.get(state.task or "")
        options = None if definition is None else definition.options
        if state.rate is None or state.level is None:
            declared = None if options is None else options.max_running
            holders = _living(storage, state.holders, owners)
            return LimitState(state.task, key, state.slots, declared, holders, state.waiting)
        text = None if options is None or options.rate_limit is None else options.rate_limit.text
        left = rates.tokens(state.rate, rates.seen(state.rate, state.level, self._now()), self._now())
        due = storage.gates.next_token(state.name) if state.waiting else None
        at = None if due is None else moment(due)
        own = name if state.task is None else None
        return LimitState(state.task, key, None, text, (), state.waiting, state.rate.text, left, at, own)

    def _mark(self, limited: object, what: str) -> str:
        """The mark that overrides this limit.

        Raises:
            ConfigurationError: there is no such limit.
        """
        mark = self._mark_of(limited, what)
        if mark is None:
            name = getattr(limited, "name", limited)
            said = "is not declared with" if isinstance(limited, str) or hasattr(limited, "call_local") else "has no"
            raise ConfigurationError(f"{name!r} {said} {what}=..., so there is no limit to set")
        return mark

    def _mark_of(self, limited: object, what: str) -> str | None:
        need = getattr(limited, "need", None)
        if isinstance(need, Need) and need.rate is not None:
            return need.gate if what == "rate_limit" else None
        definition = self._tasks.get(check_name(getattr(limited, "name", limited), "task"))
        if definition is None or getattr(definition.options, what) is None:
            return None
        return (LIMIT_MARK if what == "max_running" else RATE_MARK) + definition.name

    def _change(self, changes: Mapping[str, str | None]) -> None:
        storage = self._storage()
        for key, new in changes.items():
            while not storage.swap(key, storage.marks(key).get(key), new):
                continue
        storage.gates.wake(self._now(), everywhere=True)


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
