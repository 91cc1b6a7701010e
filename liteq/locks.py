"""Locks over all processes of a queue, for callers: whoever takes one by ``with``, in whatever process he is.

Below is `liteq.gates`: a lock is a gate, and the storage knows who holds a slot of it. A job that needs a lock for its
whole run gets it by its claim, and waits for it as a blocked job, without a worker. Here is the other half. What a
caller holds ends with his job, if he is in one, and else with his process, which the storage knows as a registered
owner: when that dies, the kernel tells. Who holds what is told by `liteq.limits`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from liteq import gates
from liteq.clock import Clock, SystemClock
from liteq.context import current_job, this_thread
from liteq.definition import check_integer, check_name
from liteq.errors import ConfigurationError, LockReentered, LockTimeout, TaskLocked
from liteq.gates import LOCK, PROCESS, Need
from liteq.instants import positive_seconds
from liteq.job import Job
from liteq.storage.base import Storage
from liteq.waiting import Waiters

if TYPE_CHECKING:
    from liteq.storage.gates import Taken

F = TypeVar("F", bound=Callable[..., Any])

#: Where a decorated function says which locks its job needs; see `locks_of`.
_LOCKS = "__liteq_locks__"

#: Seconds after which one who waits lets an exception come through that was put into his thread (a timeout of his
#: task). Nothing is asked then.
_BREATH = 0.25

_STOPS_THE_LOOP = (
    "Waiting for it in a plain `with` would stop the event loop on which this job runs, with all other jobs on it, "
    "perhaps the very one that holds it: write `async with`"
)


# ── the locks of one storage, from one process ───────────────────────────────────────────────────────────


class Caller(NamedTuple):
    """Who takes a lock: a running job, or else a thread or coroutine of this process. ``key`` tells two of them
    apart.
    """

    key: Hashable
    job: Job | None


def caller() -> Caller:
    """Whoever calls this."""
    job = current_job.get()
    if job is not None:
        return Caller(("job", job.seq, job.claim), job)
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        return Caller(("coroutine", id(asyncio.current_task())), None)
    return Caller(("thread", threading.get_ident()), None)


class Locks:
    """Takes locks for the callers in this process. Safe to share between threads; a forked child holds nothing.

    Args:
        storage: where the locks are.
        clock: the app's.
        name: the app's, for people.
        freed: called when something was given up.
    """

    def __init__(self, storage: Storage, clock: Clock, name: str, freed: Callable[[], None]) -> None:
        self.storage = storage
        self.clock = clock
        self._name = name
        self._freed = freed
        self._waiters = Waiters(storage, self._settled)
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._registering = threading.Lock()
        self._owner: int | None = None
        self._held: dict[tuple[str, Hashable], int] = {}

    def acquire(self, need: Need, who: Caller, *, wait: bool, timeout: float | None) -> None:
        """Take a slot of a lock.

        Args:
            need: the lock.
            who: holds it.
            wait: until there is a slot; otherwise TaskLocked.
            timeout: seconds to wait; then LockTimeout.

        Raises:
            TaskLocked, LockTimeout, LockReentered, StorageError: it is not held.
        """
        taken = self._stand(need, who, wait)
        if taken.held:
            return
        try:
            if this_thread.is_shared:
                name = need.gate.removeprefix(LOCK)
                raise TaskLocked(name, f"the lock {name!r} is held by others. {_STOPS_THE_LOOP}")
            self._wait(_number(taken), timeout)
            self._come_in(need, who, taken, timeout)
        except BaseException:
            self._give_up(need, who, taken)
            raise

    async def aacquire(self, need: Need, who: Caller, *, wait: bool, timeout: float | None) -> None:
        """`acquire` for coroutines. No thread waits: those that could may all be needed to give locks back."""
        import asyncio

        standing = asyncio.ensure_future(asyncio.to_thread(self._stand, need, who, wait))
        try:
            taken = await asyncio.shield(standing)
            if not taken.held:
                await self._await(_number(taken), timeout)
                await asyncio.to_thread(self._come_in, need, who, taken, timeout)
        except BaseException:
            await asyncio.wait([standing])  # cancelled or not, it may have been had
            if standing.exception() is None:
                await asyncio.to_thread(self._give_up, need, who, standing.result())
            raise

    def _stand(self, need: Need, who: Caller, wait: bool) -> Taken:
        """Take a slot, or stand in line."""
        if self._pid != os.getpid():
            self._reset()
        name = need.gate.removeprefix(LOCK)
        if (need.gate, who.key) in self._held:
            raise LockReentered(name)
        taken = self.take(need, who, wait)
        if taken.own:
            raise LockReentered(name)
        if taken.number is None:
            raise self._refusal(name, who, gone=taken.gone)
        if taken.held:
            self._held[need.gate, who.key] = taken.number
        return taken

    def _come_in(self, need: Need, who: Caller, taken: Taken, timeout: float | None) -> None:
        """The waiting is over: hold what was waited for, if it came."""
        number, name = _number(taken), need.gate.removeprefix(LOCK)
        if self.storage.gates.holds(number):
            self._held[need.gate, who.key] = number
        elif self.storage.gates.settled([number]):
            raise TaskLocked(name, f"the job or process that waited for the lock {name!r} counts as ended")
        else:
            raise LockTimeout(name, timeout or 0.0)

    def _give_up(self, need: Need, who: Caller, taken: Taken) -> None:
        self._held.pop((need.gate, who.key), None)
        self.leave(_number(taken))

    def take(self, need: Need, who: Caller, wait: bool) -> Taken:
        """What the storage says to somebody who comes to a gate."""
        if self._pid != os.getpid():
            self._reset()
        now = self.clock.now()
        if who.job is not None:
            return self.storage.gates.take(need, now, job=(who.job.seq, who.job.claim), wait=wait)
        taken = self.storage.gates.take(need, now, owner=self._own_number(), wait=wait)
        if taken.gone:  # the storage was closed, and forgot us
            self._owner = None
            taken = self.storage.gates.take(need, now, owner=self._own_number(), wait=wait)
        return taken

    def _own_number(self) -> int:
        """This process as an owner; registered when the first lock is taken outside of a job."""
        with self._registering:
            if self._owner is None:
                import socket

                self._forget_dead_processes()
                about = {"kind": PROCESS, "host": socket.gethostname(), "pid": os.getpid(), "name": self._name}
                self._owner = self.storage.register(about)
            return self._owner

    def _forget_dead_processes(self) -> None:
        """Consumers do it too; but there may be none, and thousands of short programs that take a lock."""
        for owner in self.storage.owners():
            if not owner.alive and owner.info.get("kind") == PROCESS:
                self.storage.gates.put_out(owner.number, self.clock.now())
                self.storage.forget(owner.number)

    def _refusal(self, name: str, who: Caller, *, gone: bool) -> TaskLocked:
        if gone:
            job = "" if who.job is None else f" {who.job.id}"
            return TaskLocked(name, f"job{job} cannot take the lock {name!r}: it does not run any more")
        return TaskLocked(name, f"the lock {name!r} is held by others; wait=True would wait for it")

    def _wait(self, number: int, timeout: float | None) -> None:
        """Return when a place is not in line any more, or after the timeout."""
        deadline = None if timeout is None else SystemClock.monotonic() + timeout
        settled = threading.Event()
        self._waiters.add(number, settled.set)
        try:
            left: float | None = None
            while left is None or left > 0:
                left = None if deadline is None else deadline - SystemClock.monotonic()
                if settled.wait(_BREATH if left is None else max(0.0, min(_BREATH, left))):
                    return
        finally:
            self._waiters.discard(number, settled.set)

    async def _await(self, number: int, timeout: float | None) -> None:
        """`_wait` for coroutines."""
        import asyncio

        loop = asyncio.get_running_loop()
        settled = asyncio.Event()

        def callback() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
                loop.call_soon_threadsafe(settled.set)

        self._waiters.add(number, callback)
        try:
            async with asyncio.timeout(timeout) as limit:
                await settled.wait()
        except TimeoutError:
            if not limit.expired():
                raise
        finally:
            self._waiters.discard(number, callback)

    def _settled(self, numbers: list[int]) -> set[int]:
        # There may be no consumer who looks after the dead.
        self.storage.gates.put_out_dead(self.clock.now())
        return self.storage.gates.settled(numbers)

    def release(self, need: Need, who: Caller) -> None:
        """Give back what `acquire` took; nothing happens if it was flushed meanwhile."""
        number = self._held.pop((need.gate, who.key), None)
        if number is not None and self._pid == os.getpid():
            self.leave(number)

    def leave(self, number: int) -> None:
        """Give up a place, held or in line."""
        self.storage.gates.leave(number, self.clock.now())
        self._freed()

    def has_by_claim(self, need: Need, job: Job) -> bool:
        """Whether a running job has got this lock together with its claim."""
        return self.storage.gates.held_by(need.gate, job.seq)

    def close(self) -> None:
        """Give back everything that callers of this process hold."""
        if self._pid != os.getpid():
            return
        self._waiters.close()
        held, self._held = self._held, {}
        for number in held.values():
            self.leave(number)
        self._owner = None

    def flush(self, names: tuple[str, ...]) -> set[str]:
        """Take these locks (none named: all) from whoever holds them; return the names of those that were held."""
        wanted = [LOCK + name for name in names] or [state.name for state in self.storage.gates.states(LOCK)]
        cleared = self.storage.gates.clear(wanted, self.clock.now()) if wanted else set()
        self._freed()
        return {gate.removeprefix(LOCK) for gate in cleared}


def _number(taken: Taken) -> int:
    return cast(int, taken.number)  # of whoever was not refused


# ── one lock ─────────────────────────────────────────────────────────────────────────────────────────────

#: The gates under which a decorated function runs in this job, though no `with` of this process has come through them.
_by_claim: ContextVar[frozenset[str]] = ContextVar("liteq_locks_by_claim", default=frozenset())


class Passage:
    """What locks and rate limits have in common: they decorate functions, and a job may get through by its claim.

    Args:
        locks: those of the app of the moment.
        need: the gate.
        name: for people.
        wait: wait, instead of raising an error.
    """

    #: How it is written, for messages.
    spelling = "passage"

    def __init__(self, locks: Callable[[], Locks], need: Need, name: str, wait: bool) -> None:
        if not isinstance(wait, bool):
            raise TypeError(f"wait takes True or False, not {type(wait).__name__} {wait!r}")
        self.name = name
        self.need = need
        self.wait = wait
        self._locks = locks

    def __enter__(self) -> Any:
        raise NotImplementedError

    def __exit__(self, *_exception: object) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Any:
        raise NotImplementedError

    async def __aexit__(self, *_exception: object) -> None:
        raise NotImplementedError

    def __call__(self, function: F) -> F:
        """Run the function under this lock, or at this rate.

        Below ``@app.task`` and with ``wait=True``, the job waits as a blocked job, before a worker begins it;
        ``timeout`` does not hold for it. Without ``wait`` the job raises TaskLocked, and is retried as the task says;
        or RateLimitExceeded, and comes back.

        Raises:
            TypeError: this is no plain function; on a task it goes between ``@app.task`` and the function.
        """
        if not callable(function) or isinstance(function, type) or hasattr(function, "call_local"):
            raise TypeError(
                f"@app.{self.spelling}({self.name!r}) takes a function, not {type(function).__name__}; on a task it "
                "goes below @app.task, next to the function"
            )
        from inspect import iscoroutinefunction

        locked = self._around_coroutine(function) if iscoroutinefunction(function) else self._around(function)
        needs = (*locks_of(function), *((self.need,) if self.wait else ()))
        setattr(locked, _LOCKS, needs)
        return cast(F, locked)

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def locked(*args: Any, **kwargs: Any) -> Any:
            job = current_job.get()
            if self._may_have_it_by_claim(job) and self._locks().has_by_claim(self.need, cast(Job, job)):
                with self._under_claim():
                    return function(*args, **kwargs)
            with self:
                return function(*args, **kwargs)

        return locked

    def _around_coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        async def locked(*args: Any, **kwargs: Any) -> Any:
            import asyncio

            job = current_job.get()
            if self._may_have_it_by_claim(job) and await asyncio.to_thread(
                self._locks().has_by_claim, self.need, cast(Job, job)
            ):
                with self._under_claim():
                    return await function(*args, **kwargs)
            async with self:
                return await function(*args, **kwargs)

        return locked

    def _may_have_it_by_claim(self, job: Job | None) -> bool:
        """Once in each job; a second time it is a lock's re-entry, which is to be refused, or another token."""
        return job is not None and self.wait and self.need.gate not in _by_claim.get()

    @contextlib.contextmanager
    def _under_claim(self) -> Iterator[None]:
        token = _by_claim.set(_by_claim.get() | {self.need.gate})
        try:
            yield
        finally:
            _by_claim.reset(token)


class Lock(Passage):
    """A lock over all processes; made by ``app.lock_task``. For ``with``, ``async with``, and as a decorator.

    One object may be used again and again, and by several threads at once.

    Args:
        locks: those of the app of the moment.
        name: the lock's; equal names are one lock.
        wait: wait for it instead of raising TaskLocked.
        slots: how many may hold it at once.
        timeout: seconds (or timedelta) for which a caller waits; ``None``: as long as it takes.

    Raises:
        TypeError, ConfigurationError: an argument is wrong; the message names it.
    """

    spelling = "lock_task"

    def __init__(
        self,
        locks: Callable[[], Locks],
        name: str,
        wait: bool = False,
        slots: int = 1,
        timeout: float | timedelta | None = None,
    ) -> None:
        need = gates.lock(check_name(name, "the name of a lock"), check_integer(slots, "slots", least=1))
        super().__init__(locks, need, name, wait)
        self.timeout = waiting_time(timeout, wait, self.spelling)
        self._taken: dict[Hashable, Locks] = {}

    def __enter__(self) -> Lock:
        locks, who = self._locks(), caller()
        locks.acquire(self.need, who, wait=self.wait, timeout=self.timeout)
        self._taken[who.key] = locks
        return self

    def __exit__(self, *_exception: object) -> None:
        who = caller()
        self._taken_by(who).release(self.need, who)

    async def __aenter__(self) -> Lock:
        locks, who = self._locks(), caller()
        await locks.aacquire(self.need, who, wait=self.wait, timeout=self.timeout)
        self._taken[who.key] = locks
        return self

    async def __aexit__(self, *_exception: object) -> None:
        import asyncio

        who = caller()
        # Shielded: a coroutine that is cancelled while it leaves has left.
        await asyncio.shield(asyncio.to_thread(self._taken_by(who).release, self.need, who))

    def _taken_by(self, who: Caller) -> Locks:
        locks = self._taken.pop(who.key, None)
        if locks is None:
            raise LookupError(f"the lock {self.name!r} was not taken by this thread or coroutine, and cannot be left")
        return locks

    def __repr__(self) -> str:
        return f"<Lock {self.name!r}>"


def waiting_time(timeout: float | timedelta | None, wait: bool, spelling: str) -> float | None:
    """For how long to wait, in seconds; ``None``: as long as it takes.

    Raises:
        ConfigurationError: there is a timeout, and no waiting.
    """
    if timeout is not None and not wait:
        raise ConfigurationError(f"{spelling}(timeout=...) is how long to wait, so it needs wait=True")
    return None if timeout is None else positive_seconds(timeout, "timeout")


def locks_of(function: Callable[..., Any]) -> tuple[Need, ...]:
    """The locks and rates that a job of this function needs before it may run."""
    return tuple(getattr(function, _LOCKS, ()))
