"""What a running job can ask about itself, and tell: the ``task`` argument of a task with ``context=True``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from datetime import datetime, timedelta
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload
from weakref import WeakKeyDictionary

from liteq.clock import Clock
from liteq.errors import ConfigurationError
from liteq.instants import moment
from liteq.job import Job, Outcome, Progress
from liteq.lifecycle import storable

if TYPE_CHECKING:
    from liteq.steps import Steps, Suspended
    from liteq.storage.sqlite_own import JobConnection
    from liteq.transactions import OwnTransaction

P = ParamSpec("P")
R = TypeVar("R")


class Channel(Protocol):
    """The way from a running job to its consumer. Each pool has its own."""

    def progress(self, job: Job, progress: Progress) -> None:
        """Pass on how far the job is; never blocks, the latest wins."""
        ...

    def is_cancelled(self, job: Job) -> bool:
        """Whether somebody revoked this job since it was started."""
        ...


class TaskContext:
    """A running job's view of itself.

    Args:
        job: as it was claimed.
        retries_left: attempts that remain should this one fail.
        deadline: on the monotonic clock; ``None``: no timeout.
        channel: to its consumer.
        clock: the app's.
        make_steps: gives a job's steps; called at the first of them.
        transact: opens the job's own transaction.
    """

    __slots__ = (
        "_channel",
        "_clock",
        "_deadline",
        "_has_ended",
        "_job",
        "_make_steps",
        "_steps",
        "_transact",
        "_transaction",
        "retries_left",
    )

    def __init__(
        self,
        job: Job,
        retries_left: int,
        deadline: float | None,
        channel: Channel,
        clock: Clock,
        make_steps: Callable[[Job], Steps],
        transact: Callable[[Job], OwnTransaction],
    ) -> None:
        self._job = job
        self.retries_left = retries_left
        self._deadline = deadline
        self._channel = channel
        self._clock = clock
        self._make_steps = make_steps
        self._steps: Steps | None = None
        self._transact = transact
        self._transaction: OwnTransaction | None = None
        self._has_ended = False

    @property
    def id(self) -> str:
        """The job's id."""
        return self._job.id

    @property
    def name(self) -> str:
        """The task's name."""
        return self._job.task

    @property
    def queue(self) -> str:
        """The queue it waited in."""
        return self._job.queue

    @property
    def priority(self) -> int:
        """Higher first."""
        return self._job.priority

    @property
    def attempt(self) -> int:
        """1 the first time."""
        return self._job.attempt

    @property
    def enqueued_at(self) -> datetime:
        """When it was enqueued (aware, UTC)."""
        return moment(self._job.created)

    @property
    def slot(self) -> datetime | None:
        """The instant for which its schedule made it (aware, UTC), however late it runs; ``None`` where no schedule
        did."""
        return self._job.slot

    @property
    def headers(self) -> dict[str, str]:
        """What travels beside the arguments: ``using(headers={...})``, and what middleware adds."""
        return self._job.headers

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Say how far the job is; visible as ``result.progress`` from every process.

        Args:
            done: so much, in any unit.
            total: of so much, if known.
            message: a few words.

        Raises:
            TypeError, ValueError: one of the numbers is none, or not finite.
        """
        of = None if total is None else _finite(total, "total")
        self._channel.progress(self._job, Progress(_finite(done, "done"), of, storable(str(message))))

    def is_cancelled(self) -> bool:
        """Whether somebody has revoked this job since it was started. A long task asks now and then, and returns."""
        return self._channel.is_cancelled(self._job)

    def time_remaining(self) -> float | None:
        """Seconds until the task's ``timeout``; ``None`` where it has none."""
        return None if self._deadline is None else max(0.0, self._deadline - self._clock.monotonic())

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────

    def _all_steps(self) -> Steps:
        if self._steps is None:
            self._steps = self._make_steps(self._job)
        return self._steps

    def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function, once in the life of this job: what it returns is recorded in the storage under ``name``, and
        the next attempt, after an error, a crash or a sleep, is given that instead of calling it again.

        If the process dies after the call and before its result is on the disk, the function is called again. What must
        not happen twice even then needs the other side's help: `step_key` is a key to send along.

        Args:
            name: tells the job's steps apart; it stays the same from one attempt to the next.
            function: called with the other arguments. What it returns must be storable, as a task's result must.

        Raises:
            DuplicateStep: this run has come to a step of this name already.
            SerializationError: what it returned cannot be stored. PayloadTooLarge: it has more bytes than the app's
                ``max_payload``. Nothing was recorded.
            ClaimLost: the job runs elsewhere by now; nothing was recorded.
            TypeError: it is an async function, which takes `astep`.
        """
        return self._all_steps().step(name, function, args, kwargs)  # type: ignore[no-any-return]

    @overload
    async def astep(
        self, name: str, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload
    async def astep(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def astep(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """`step` for coroutines: awaits what an async function returns, and the event loop goes on while it is being
        recorded. (A plain function keeps the loop waiting while it runs.)"""
        return await self._all_steps().astep(name, function, args, kwargs)

    def step_key(self, name: str) -> str:
        """A text that is the same each time this job comes to this step, and of no other step of any job in this file:
        an idempotency key for the other side."""
        return f"{self._job.id}:{name}"

    def sleep(self, delay: float | timedelta, *, name: str | None = None) -> None:
        """Let the job sleep: it gives its worker back and is ``scheduled`` until then. After that the function is run
        again from its beginning, with its recorded steps, and this returns at once, as it does from then on.

        It ends the run by an exception that is no Exception: ``finally`` and ``with`` blocks are left by it.

        Args:
            delay: seconds (or timedelta), from when the job first came here.
            name: what tells it from the job's other sleeps; without, it is their order.

        Raises:
            TypeError, ConfigurationError: an argument is wrong. ClaimLost: as in `step`.
        """
        self._all_steps().sleep(delay, name)

    async def asleep(self, delay: float | timedelta, *, name: str | None = None) -> None:
        """`sleep` for coroutines."""
        await self._all_steps().asleep(delay, name)

    def wait_for(self, event: str, timeout: float | timedelta | None = None) -> Any:
        """What somebody sends to this job by ``app.send(job, event, data)``; waits for it without a worker, as `sleep`
        does: ``blocked``, or, with a timeout, ``scheduled``.

        What was sent before is there at once. Each call takes one, the first first.

        Args:
            event: its name.
            timeout: seconds (or timedelta) from when the job first came here, after which it waits no longer.

        Raises:
            EventTimeout: nobody has sent it in time.
            TypeError, ConfigurationError: an argument is wrong. ClaimLost: as in `step`.
        """
        return self._all_steps().wait_for(event, timeout)

    async def await_for(self, event: str, timeout: float | timedelta | None = None) -> Any:
        """`wait_for` for coroutines."""
        return await self._all_steps().await_for(event, timeout)

    # ── writing together with the success ────────────────────────────────────────────────────────────

    def connection(self) -> JobConnection:
        """A `sqlite3.Connection` to the queue's file: what is written on it, and what the job enqueues from here on, is
        committed together with the job's success, and rolled back with its failure, timeout, crash or lost claim.

        Nothing is locked before the first statement that writes. From there to its end the job keeps everybody else
        from writing, so write last and quickly. Each call gives the same connection; it ends with the job.

        Raises:
            ConfigurationError: the queue is not in an SQLite file, or this is the event loop of an asyncio worker,
                where it is `aconnection`.
        """
        if this_thread.is_shared:
            raise ConfigurationError(
                f"job {self.id}: task.connection() waits for the write lock with its first statement that writes, and "
                "would stop the event loop on which it runs with all others; write: await task.aconnection()"
            )
        return self._opened().connection

    async def aconnection(self) -> JobConnection:
        """`connection` for coroutines, which takes the write lock; meanwhile the event loop goes on.

        Raises:
            ConfigurationError: the queue is not in an SQLite file.
            StorageBusy: others hold the write lock for too long.
        """
        import asyncio

        own = self._opened()
        async with _turn_to_begin(asyncio.get_running_loop()):  # one waits in a thread; there are not many of those
            await asyncio.to_thread(own.begin)
        return own.connection

    def _opened(self) -> OwnTransaction:
        if self._transaction is None:
            if self._has_ended:  # nobody would ever close it
                raise ConfigurationError(f"job {self.id} has ended, and has no connection any more")
            self._transaction = self._transact(self._job)
        return self._transaction

    def settle(self, outcome: Outcome) -> Outcome:
        """The job has succeeded: commit what it has written, with its success. Called by: the worker.

        Raises:
            StorageError: nothing was committed.
        """
        self._has_ended = True
        return outcome if self._transaction is None else self._transaction.settle(outcome, self._clock.now())

    def abandon(self) -> None:
        """The job has not succeeded: roll back what it has written. Called by: the worker."""
        self._has_ended = True
        if self._transaction is not None:
            self._transaction.abandon()

    def __repr__(self) -> str:
        return f"<TaskContext {self.name} job={self.id} attempt={self.attempt}>"


def suspension_of(context: TaskContext) -> Suspended | None:
    """Why the run that has this context is to end, though its function may not want to hear of it."""
    return None if context._steps is None else context._steps.suspended


_turns: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def _turn_to_begin(loop: Any) -> Any:
    """The lock of an event loop under which its jobs begin to write, one at a time."""
    from asyncio import Lock

    return _turns.setdefault(loop, Lock())


class _Thread(threading.local):
    #: Whether this is the thread of an event loop on which many jobs run: a job that blocks it holds up all of them.
    is_shared = False


this_thread = _Thread()

#: The job that runs in this thread or coroutine, if any.
current_job: ContextVar[Job | None] = ContextVar("liteq_current_job", default=None)

#: In immediate mode: the jobs whose calls are within each other here, the newest last, each with its engine.
callers: ContextVar[tuple[tuple[object, Job], ...]] = ContextVar("liteq_callers", default=())

Report = Callable[[str, Job, BaseException], None]


def _finite(value: float, what: str) -> float:
    """A number that can be stored: SQLite takes NaN for nothing at all."""
    try:
        number = float(value)
    except OverflowError:
        number = inf
    if not isfinite(number):
        raise ValueError(f"progress({what}=...) takes a finite number, not {value!r:.50}")
    return number
