"""LiteQ: what a program imports. Decorators and questions; a façade over the engine, nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Protocol, TextIO, TypeVar, Unpack, overload

from liteq import lifecycle
from liteq.clock import Clock, SystemClock
from liteq.context import TaskContext
from liteq.definition import Definition, TaskOptions, check_integer, check_name, check_options
from liteq.engine import Engine, require_states
from liteq.errors import ConfigurationError, DuplicateSchedule, DuplicateTask, UnknownTask
from liteq.execution import MAX_PAYLOAD
from liteq.functions import default_name, is_async, is_same, place_of
from liteq.gates import PROCESS
from liteq.instants import positive_seconds, seconds, timestamp, zone
from liteq.job import FINISHED, WAITING, Job, JobFilter, JobState
from liteq.lifecycle import PAUSE_MARK
from liteq.locks import Lock, locks_of
from liteq.result import Result, ResultGroup
from liteq.serializers import Serializer, serializer_for
from liteq.signals import Receiver, check_names
from liteq.storage.base import Owner, Storage
from liteq.task import Task
from liteq.whereabouts import directory_of, namespace_of_caller, storage_for

if TYPE_CHECKING:
    from pathlib import Path  # pathlib is a sixth of what importing this module costs; it comes with the storage

    from liteq.arguments import Where
    from liteq.batches import Block
    from liteq.consumer import Consumer, LogSetup
    from liteq.explanation import Explanation
    from liteq.findings import Finding
    from liteq.limits import Limits, LockState
    from liteq.middleware import Around, Layer
    from liteq.rate_limits import RateLimit
    from liteq.schedule import CatchUp, Overlap
    from liteq.schedules import Schedules
    from liteq.step import Step
    from liteq.storage.cargo import Taken
    from liteq.transfer import Exported
    from liteq.triggers import Trigger
    from liteq.workflow import Group, Single, Workflow

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=Callable[..., Any])
M = TypeVar("M", bound=object)
T = TypeVar("T")

#: What has not ended yet.
_REVOCABLE = WAITING | {JobState.RUNNING}

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("", "0", "false", "no", "off")


class _TaskDecorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class _ContextTaskDecorator(Protocol):
    """A caller does not pass the context; where it is not the first parameter, the arguments go unchecked."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # the first that fits is meant
        self, function: Callable[Concatenate[TaskContext, P], Coroutine[Any, Any, R]], /
    ) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[TaskContext, P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[..., Coroutine[Any, Any, R]], /) -> Task[..., R]: ...
    @overload
    def __call__(self, function: Callable[..., R], /) -> Task[..., R]: ...


class LiteQ:
    """An app's task queue.

    Args:
        storage: the path of a SQLite file (``str`` or ``Path``), made at first use; ``":memory:"``; or a Storage. A
            relative path is read from the directory of the module that creates the app (in an interactive session:
            from the current directory), so that every program that imports it means the same file.
        name: for logs and people.
        immediate: run tasks in the caller, on memory, through the same code; also ``LITEQ_IMMEDIATE=1``.
        serializer: ``"json"``, ``"pickle"`` or a Serializer.
        timezone: in which naive datetimes are read: an IANA name or a tzinfo.
        durability: ``"full"``, which is the default: what was enqueued survives power loss; ``"normal"``: it survives
            any crash of the program. For a file given by its path: a Storage has been told already.
        result_ttl: seconds (or timedelta) after their end for which succeeded, revoked and expired jobs are kept;
            ``None``: for ever.
        failed_ttl: the same for failed ones.
        max_payload: how many bytes the arguments of one call, the result of a job or a step, and what is sent with an
            event may have when encoded.
        clock: a Clock, for tests.

    Raises:
        TypeError, ConfigurationError: an argument is wrong; the message names it. Nothing touches the disk here.
    """

    def __init__(
        self,
        storage: str | Path | Storage = "liteq.db",
        *,
        name: str = "liteq",
        immediate: bool = False,
        serializer: str | Serializer = "json",
        timezone: str | tzinfo = "UTC",
        durability: Literal["full", "normal"] | None = None,
        result_ttl: float | timedelta | None = 86_400,
        failed_ttl: float | timedelta | None = 14 * 86_400,
        max_payload: int = MAX_PAYLOAD,
        clock: Clock | None = None,
    ) -> None:
        self.name = check_name(name, "name")
        self.result_ttl = None if result_ttl is None else positive_seconds(result_ttl, "result_ttl")
        self.failed_ttl = None if failed_ttl is None else positive_seconds(failed_ttl, "failed_ttl")
        self.max_payload = check_integer(max_payload, "max_payload", least=1)
        self._clock = _checked_clock(clock)
        self._serializer = serializer_for(serializer)
        self._timezone = zone(timezone)
        caller = namespace_of_caller(self)
        self._module = str(caller.get("__name__", "__main__"))
        self._stored = self._engine_on(storage_for(storage, durability, directory_of(caller)))
        self._in_memory: Engine | None = None
        self._schedules: Schedules | None = None
        self._background: Consumer | None = None
        self._background_pid = 0
        self.immediate = immediate or _environment_flag("LITEQ_IMMEDIATE")

    def _engine_on(self, storage: Storage) -> Engine:
        engine = Engine(storage, self._serializer, self._clock, self._timezone, self.name)
        engine.result_ttl, engine.failed_ttl = self.result_ttl, self.failed_ttl
        engine.runtime.max_payload = self.max_payload
        return engine

    # ── modes ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def engine(self) -> Engine:
        """The engine of the moment; for liteq's own consumer and tools."""
        return self._present_engine()

    def _present_engine(self) -> Engine:
        return self._stored if self._in_memory is None else self._in_memory

    @property
    def immediate(self) -> bool:
        """Whether tasks run in the caller, on memory. May be switched at run time; switched off, what was kept in
        memory is forgotten."""
        return self._in_memory is not None

    @immediate.setter
    def immediate(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"immediate takes True or False, not {type(value).__name__} {value!r}")
        if not value:
            self._in_memory = None
        elif self._in_memory is None:
            from liteq.storage.memory import MemoryStorage

            engine = self._engine_on(MemoryStorage())
            engine.runtime = replace(  # the same tasks and hooks
                self._stored.runtime, storage=engine.storage, transact=engine.transact
            )
            engine.declared = self._stored.declared
            engine.news.share(self._stored.news)
            engine.immediate = True
            self._in_memory = engine

    @property
    def storage(self) -> Storage:
        """The storage of the moment."""
        return self.engine.storage

    # ── tasks ────────────────────────────────────────────────────────────────────────────────────────

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(self, *, context: Literal[True], **options: Unpack[TaskOptions]) -> _ContextTaskDecorator: ...
    @overload
    def task(self, *, context: Literal[False] = False, **options: Unpack[TaskOptions]) -> _TaskDecorator: ...
    def task(  # type: ignore[misc]  # mypy does not see that **options takes an unpacked TypedDict
        self, function: Callable[..., Any] | None = None, /, **options: Any
    ) -> Any:
        """Make a function a task: ``@app.task`` or ``@app.task(retries=3, ...)``.

        Args:
            name: the stored name; default: module and function name.
            aliases: earlier stored names, for jobs enqueued before a task was renamed.
            queue: the queue its jobs wait in (``"default"``).
            priority: higher first (0); equal priority keeps the order of enqueue.
            retries: further attempts after the first (0).
            retry_delay: seconds before the second attempt (0), or a list of waits.
            retry_backoff: the factor from one wait to the next (1).
            retry_max_delay: the longest wait in seconds (3600).
            retry_jitter: draw each wait at random between 0 and its value (False).
            retry_on: exception classes that are retried (``(Exception,)``).
            give_up_on: exception classes that are not (none).
            timeout: seconds of run time, after which TaskTimeout is raised in the task (none).
            expires: seconds after the enqueue by which it must have been started (none).
            context: pass the running job's TaskContext as keyword ``task`` (False).
            on_crash: ``"retry"`` or ``"fail"`` when its worker or consumer dies (``"retry"``).
            max_crashes: failed after so many of them (3).
            store_result: keep what it returns (True).
            max_running: at most so many of its jobs run at once, over all consumers; the others are ``blocked`` and
                start, in their order, as soon as one ends, whatever ends it (none).
            max_running_key: count them by this, a format string over the arguments such as ``"{user_id}"``: at most
                ``max_running`` for each value (none).
            unique: at most one unfinished job of each key: ``True``: the same arguments; a format string over them,
                such as ``"user:{user_id}"``; or a function that is given them as a dict and returns the key (none).
            unique_for: which job counts: ``"active"``: one that waits or runs; ``"waiting"``: one that waits
                (``"active"``).
            on_duplicate: of a call whose key is held: ``"return"`` the Result of that job, ``"raise"`` DuplicateJob, or
                ``"replace"`` the arguments and options of a waiting one, and follow a running one (``"return"``).
            debounce: seconds (or timedelta) by which each call puts the waiting job of its key off (none).
            debounce_max: seconds (or timedelta) after the first call beyond which it is not put off any more (none).
            rate_limit: how many of its jobs may start in a time, over all consumers: ``"10/s"``, ``"100/m"``,
                ``"5/30s"``, ``"1000/h burst 50"``; the others are ``blocked``, and start when they may (none).
            rate_limit_key: count them by this, a format string like ``max_running_key`` (none).

        Raises:
            TypeError, ConfigurationError: an option is unknown or wrong; the message names it.
            DuplicateTask: another function has this name.
        """
        name, aliases = options.pop("name", None), options.pop("aliases", ())
        if function is not None:
            return self._register(function, name, aliases, options)
        check_options(options)  # at the decorator's line rather than the function's
        return lambda function: self._register(function, name, aliases, options)

    def _register(
        self, function: Callable[..., Any], name: str | None, aliases: Iterable[str], options: dict[str, Any]
    ) -> Task[Any, Any]:
        if not callable(function):
            raise TypeError(f"@app.task takes a function, not {type(function).__name__} {function!r}")
        if isinstance(function, Task):
            raise TypeError(f"{function.name} is a task already, and belongs to its app; decorate its function instead")
        if isinstance(aliases, str) or not isinstance(aliases, Iterable):
            raise TypeError(f"aliases takes a tuple of names, not {type(aliases).__name__} {aliases!r}")
        checked = check_options(options)
        stored = check_name(default_name(function) if name is None else name, "name")
        definition = Definition(stored, function, checked, is_async(function), options, locks_of(function))
        task: Task[Any, Any] = Task(self._present_engine, definition)
        names = [stored, *(check_name(alias, "aliases") for alias in aliases)]
        for one in names:
            known = self._stored.tasks.get(one)
            if known is not None and not is_same(known.function, function):
                raise DuplicateTask(
                    f"two tasks are named {one!r}: {place_of(known.function)} and {place_of(function)}; "
                    "give one of them name=..."
                )
        for one in names:
            self._stored.tasks[one] = definition
            if definition.is_limited:
                self._stored.runtime.limited[one] = definition.needs
            else:
                self._stored.runtime.limited.pop(one, None)
        return task

    @property
    def tasks(self) -> dict[str, Task[Any, Any]]:
        """Every task by stored name."""
        return {
            name: Task(self._present_engine, definition)
            for name, definition in self._stored.tasks.items()
            if name == definition.name
        }

    # ── schedules ────────────────────────────────────────────────────────────────────────────────────

    @property
    def schedules(self) -> Schedules:
        """Stored schedules: ``add``, ``get``, ``list``, ``update``, ``pause``, ``resume``, ``run_now``, ``remove``,
        ``preview``."""
        if self._schedules is None:
            from liteq.schedules import Schedules

            self._schedules = Schedules(self._present_engine, self._task_named)
        return self._schedules

    def _task_named(self, name: str) -> Task[Any, Any]:
        if name not in self._stored.tasks:
            raise UnknownTask(name)
        return Task(self._present_engine, self._stored.tasks[name])

    @overload
    def periodic_task(
        self,
        trigger: Trigger | str,
        *,
        catch_up: CatchUp = ...,
        overlap: Overlap = ...,
        grace: float | timedelta | None = ...,
        jitter: float | timedelta = ...,
        start: datetime | None = ...,
        end: datetime | None = ...,
        max_runs: int | None = ...,
        args: Iterable[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        context: Literal[True],
        **options: Unpack[TaskOptions],
    ) -> _ContextTaskDecorator: ...
    @overload
    def periodic_task(
        self,
        trigger: Trigger | str,
        *,
        catch_up: CatchUp = ...,
        overlap: Overlap = ...,
        grace: float | timedelta | None = ...,
        jitter: float | timedelta = ...,
        start: datetime | None = ...,
        end: datetime | None = ...,
        max_runs: int | None = ...,
        args: Iterable[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        context: Literal[False] = False,
        **options: Unpack[TaskOptions],
    ) -> _TaskDecorator: ...
    def periodic_task(
        self,
        trigger: Trigger | str,
        *,
        catch_up: CatchUp = "latest",
        overlap: Overlap = "skip",
        grace: float | timedelta | None = None,
        jitter: float | timedelta = 0,
        start: datetime | None = None,
        end: datetime | None = None,
        max_runs: int | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Make a function a task that runs by itself: ``@app.periodic_task(crontab("0 3 * * *"))``.

        The schedule bears the task's name, and lives in the file: running consumers fire each slot exactly once. A
        function that is a task already (a second ``@app.periodic_task`` above the first) gets another schedule, whose
        name is ``name=...``. In immediate mode nothing is fired.

        Args:
            trigger: ``crontab(...)``, ``every(...)``, ``at(...)``, or the text of one.
            catch_up: of the slots that were missed while no consumer ran, ``"latest"`` runs the last one, ``"all"``
                each, one after another, ``"skip"`` none.
            overlap: at a slot at which the run before has not ended, ``"skip"`` leaves the slot out, ``"queue"`` runs
                it after that one, ``"allow"`` beside it.
            grace: seconds (or timedelta) after which a slot is too late and is left out (never).
            jitter: seconds (or timedelta) by which each slot is delayed at most; always the same for the same slot.
            start, end: the first and the last instant at which it may be due; naive ones in the app's ``timezone``.
            max_runs: no more than so many jobs in all.
            args, kwargs: for the function.
            options: of the task, as for `task`.

        Raises:
            TriggerError: the trigger cannot be read, or could never be due.
            TypeError, ConfigurationError, SerializationError: another argument is wrong; the message names it.
            DuplicateTask, DuplicateSchedule: another function, or another declaration, has this name.
        """
        if callable(trigger):
            raise TypeError("@app.periodic_task takes a trigger: @app.periodic_task(crontab(...))")
        timing: dict[str, Any] = {"catch_up": catch_up, "overlap": overlap, "grace": grace, "jitter": jitter}
        timing |= {"start": start, "end": end, "max_runs": max_runs, "args": args, "kwargs": kwargs}

        def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
            if isinstance(function, Task):
                self._declare_another(function, trigger, timing, options)
                return function
            task: Task[Any, Any] = self.task(**options)(function)
            self._declare(task.name, task, trigger, timing)
            return task

        return decorate

    def _declare_another(
        self, task: Task[Any, Any], trigger: Trigger | str, timing: dict[str, Any], options: dict[str, Any]
    ) -> None:
        """Another schedule for a function that is a task already."""
        unfit = sorted(set(options) - {"name"})
        if unfit:
            raise TypeError(f"{task.name} is a task already: {unfit[0]} belongs to the decorator that makes it one")
        name = options.get("name", task.name)
        if name in self._stored.declared.entries:
            raise DuplicateSchedule(f"two schedules are named {name!r}; give this one a name of its own with name=...")
        self._declare(name, task, trigger, timing)

    def _declare(self, name: str, task: Task[Any, Any], trigger: Trigger | str, timing: dict[str, Any]) -> None:
        from liteq.schedules import declaration

        self._stored.declared.tell(declaration(self.schedules.template(name, task, trigger, **timing)))

    # ── enqueue ──────────────────────────────────────────────────────────────────────────────────────

    @overload
    def enqueue(self, workflow: Single[R], *, connection: object = ...) -> Result[R]: ...
    @overload
    def enqueue(self, workflow: Group[R], *, connection: object = ...) -> ResultGroup[R]: ...
    def enqueue(self, workflow: Workflow[R], *, connection: object = None) -> Result[R] | ResultGroup[R]:
        """Enqueue what ``task.s(...)`` made, or a pipeline, chord or group: all of its jobs, in one transaction.

        Args:
            connection: an open `sqlite3.Connection` to the queue's file, or what has one underneath (a cursor, a
                SQLAlchemy session, Django's ``connection``): the jobs belong to its transaction, and exist if and
                when that is committed. No signal is sent for them. In immediate mode it is not looked at.

        Returns:
            A handle on the job, or on the last one of a pipeline or chord; of a group, one on each member.

        Raises:
            TypeError, ConfigurationError: an argument is wrong; or it is no such connection, is closed, another
                thread's, or has other files open.
            SerializationError, StorageError: nothing was stored; for one, the connection may only read, or is kept from
                writing by others.
        """
        from liteq.workflow import Workflow, enqueue

        if not isinstance(workflow, Workflow):
            what = "a Signature (task.s(...)), or a pipeline, chord or group of such"
            raise TypeError(f"app.enqueue takes {what}, not {type(workflow).__name__}")
        if connection is None:
            return enqueue(workflow, self.engine)
        with self.batch(connection=connection):
            return enqueue(workflow, self.engine)

    @overload
    async def aenqueue(self, workflow: Single[R], *, connection: object = ...) -> Result[R]: ...
    @overload
    async def aenqueue(self, workflow: Group[R], *, connection: object = ...) -> ResultGroup[R]: ...
    async def aenqueue(self, workflow: Any, *, connection: object = None) -> Any:
        """`enqueue` for coroutines. With a ``connection`` it is done on this thread, as that is the connection's."""
        import asyncio

        if connection is not None:
            return self.enqueue(workflow, connection=connection)
        return await asyncio.to_thread(self.enqueue, workflow)

    def batch(self, *, connection: object = None) -> Block:
        """``with app.batch():`` stores everything enqueued inside in one transaction at the end, or nothing if the
        block raises. The Results have their ids after the block.

        In a coroutine, ``async with app.batch():`` does the same while the event loop goes on.

        Args:
            connection: store it in the transaction of this connection of your own; see `enqueue`.
        """
        return self.engine.batch(connection)

    # ── questions ────────────────────────────────────────────────────────────────────────────────────

    def result(self, id: str) -> Result[Any]:  # noqa: A002 - the word users know
        """A handle on the job of this id; whether there is one shows when it is asked."""
        return Result(self.engine, check_name(id, "id"))

    def job(self, id: str) -> Job:  # noqa: A002
        """The job of this id with every attempt's error and times; its payload is not decoded.

        Raises:
            JobNotFound: there is none.
        """
        return self.engine.job(check_name(id, "id"))

    def steps(self, result_or_id: Result[Any] | str) -> list[Step]:
        """What a job has recorded with ``task.step``, ``task.sleep`` and ``task.wait_for``, in order.

        Raises:
            JobNotFound: there is no such job.
        """
        return self.storage.steps(self.engine.job(_id(result_or_id)).seq)

    def jobs(
        self,
        state: str | Iterable[str] | None = None,
        queue: str | None = None,
        task: str | Task[Any, Any] | None = None,
        limit: int | None = 100,
        after: str | Job | Result[Any] | None = None,
        *,
        newest_first: bool = False,
    ) -> list[Job]:
        """Jobs in the order of their enqueue, without their history.

        Args:
            state: one state or several; default all.
            queue, task: only these; a Task under any of its names, a string as it is stored.
            limit: at most so many; ``None``: all.
            after: the last job of the page before, or its id or Result.
            newest_first: the other way round.
        """
        cursor = None if after is None else after.seq if isinstance(after, Job) else self.job(_id(after, "after")).seq
        states, most = require_states(state), None if limit is None else check_integer(limit, "limit")
        found = [
            job
            for name in self._stored_names(task)
            for job in self.storage.find(
                JobFilter(states, queue, name, after=cursor, newest_first=newest_first, limit=most)
            )
        ]
        found.sort(key=lambda job: job.seq, reverse=newest_first)
        return found[:most]

    def counts(self) -> dict[JobState, int]:
        """How many jobs stand in each state."""
        return self.storage.counts()

    def queues(self) -> dict[str, int]:
        """How many jobs are ready in each queue that has any."""
        return self.storage.queues()

    def stack(self, result_or_id: Result[Any] | str, timeout: float | timedelta = 5.0) -> str:
        """What a running job is doing right now: its Python stack as text, innermost frame last.

        Args:
            result_or_id: the job; it may run in any consumer of this file, on this machine or (in a container) beside
                it.
            timeout: seconds or a timedelta for its consumer to answer, which takes a few milliseconds, and half a
                second where C code keeps the interpreter of a worker process.

        Raises:
            JobNotFound: there is no such job.
            NotRunning: it is not running, or has just ended.
            NoAnswer: its consumer is dead, stopped, or held up.
        """
        from liteq.asking import ask

        return ask(self.engine, _id(result_or_id), positive_seconds(timeout, "timeout"))

    def why(self, result_or_id: Result[Any] | str) -> Explanation:
        """Why a job is not running, in words: its time has not come, its queue is paused, who holds the lock that it
        waits for, no consumer serves its queue … Everything that keeps it, the nearest first, and what to do about it.
        Of a job that runs, or has ended, it tells that.

        Raises:
            JobNotFound: there is no such job.
        """
        from liteq.why import why

        return why(self.engine, _id(result_or_id))

    def consumers(self) -> list[Owner]:
        """The consumers of this storage: alive, or dead and not yet cleared away."""
        return [owner for owner in self.storage.owners() if owner.info.get("kind") != PROCESS]

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────

    def revoke(self, result_or_id: Result[Any] | str, *, terminate: bool = False) -> bool:
        """Do not run this job (of a workflow's result: all of it); see `Result.revoke`."""
        if isinstance(result_or_id, Result):
            return result_or_id.revoke(terminate)
        return self.engine.revoke(_id(result_or_id), terminate=terminate)

    def restore(self, result_or_id: Result[Any] | str) -> bool:
        """Undo `revoke`; False if the job is not revoked."""
        return self.engine.restore(_id(result_or_id))

    def is_revoked(self, result_or_id_or_task: Result[Any] | Task[Any, Any] | str) -> bool:
        """Whether a job, or every call of a task, is revoked."""
        if isinstance(result_or_id_or_task, Task):
            return result_or_id_or_task.is_revoked()
        job = self.job(_id(result_or_id_or_task))
        definition = self._stored.tasks.get(job.task)
        if job.state in WAITING and self.engine.is_task_revoked(definition.name if definition else job.task):
            return True
        return job.state is JobState.REVOKED or self.engine.is_told(job)

    def revoke_all(
        self,
        task: Task[Any, Any] | str | None = None,
        until: datetime | None = None,
        once: bool = False,
        *,
        queue: str | None = None,
        where: Where | None = None,
        terminate: bool = False,
    ) -> int:
        """Revoke every call of a task, waiting or to come (see `Task.revoke`); or, with ``queue`` or ``where``, the
        jobs that there are now and that match, as `revoke` does with each.

        Args:
            task: a Task under any of its names, or a stored name; with ``queue`` or ``where``, ``None``: of any task.
            until: only calls whose turn comes before this instant.
            once: only the next call.
            queue: only jobs of this queue.
            where: only jobs with these arguments: ``{"user_id": 7}`` compares them by name, defaults included; a
                function is given all of a call's arguments as a dict and answers whether the job is meant; ``{}``
                means all. Jobs whose arguments cannot be read here are left alone, and named in the log.
            terminate: also stop those that are running; without it they are told (``task.is_cancelled()``) and not
                run again.

        Returns:
            How many jobs were revoked or told now. Calls that are skipped later, because their task is revoked, do
            not count.

        Raises:
            TypeError: nothing says which jobs, arguments exclude each other, or the task has no such argument.
            UnknownTask: every call, or the names of its arguments, are asked of a task that is not registered here.
        """
        _check_flag(terminate, "terminate")
        if queue is None and where is None:
            return self._revoke_calls(task, until, once, terminate)
        if until is not None or once:
            raise TypeError("until and once are for calls to come; queue and where revoke jobs that there are now")
        from liteq.arguments import ArgumentFilter

        names = self._stored_names(task)
        matches = ArgumentFilter({} if where is None else where, self.engine.runtime, names[0])
        named = None if queue is None else check_name(queue, "queue")
        queries = [JobFilter(_REVOCABLE, named, name) for name in names]
        return sum(self.engine.revoke_matching(query, matches, terminate=terminate) for query in queries)

    def _revoke_calls(self, task: Task[Any, Any] | str | None, until: datetime | None, once: bool, stop: bool) -> int:
        if task is None:
            raise TypeError("revoke_all takes a task, a queue or where=...; where={} means every job there is now")
        if once and stop:
            raise TypeError("once revokes the next call only; terminate stops those that run already")
        name = self._known(task)
        self.engine.revoke_task(name, None if until is None else timestamp(until, self._timezone, "until"), once)
        running = [JobFilter(frozenset({JobState.RUNNING}), task=one) for one in self._stored_names(self.tasks[name])]
        return sum(self.engine.revoke_matching(one, lambda _: True, terminate=True) for one in running) if stop else 0

    def restore_all(self, task: Task[Any, Any] | str) -> bool:
        """Undo `revoke_all`; False if the task was not revoked."""
        return self.engine.restore_task(self._known(task))

    def send(self, result_or_id: Result[Any] | str, event: str, data: Any = None) -> None:
        """Send an event to a job that has not finished, for its ``task.wait_for(event)``. If the job waits for it, it
        goes on at once; if not, the event is kept until it does. Several are taken one by one, the first first.

        Args:
            result_or_id: the job.
            event: the name that the job waits for.
            data: what its ``wait_for`` returns; it must be storable, as an argument must.

        Raises:
            JobNotFound: there is no such job. JobFinished: it has ended, so nobody would look at it.
            SerializationError: ``data`` cannot be stored. PayloadTooLarge: it has more bytes than ``max_payload``.
            TypeError, ConfigurationError: ``event`` is no name.
        """
        self.engine.send(_id(result_or_id), event, data)

    async def asend(self, result_or_id: Result[Any] | str, event: str, data: Any = None) -> None:
        """`send` for coroutines."""
        import asyncio

        await asyncio.to_thread(self.send, result_or_id, event, data)

    def requeue(self, result_or_id: Result[Any] | str, *, from_start: bool = False) -> bool:
        """Run a finished job again, history kept; False if it has not finished.

        Args:
            from_start: forget the steps that it has recorded, so that they are done again; without it, it goes on
                behind the last one.
        """
        _check_flag(from_start, "from_start")
        return self.engine.change(_id(result_or_id), partial(lifecycle.requeue, from_start=from_start))

    def requeue_all(
        self,
        state: str | Iterable[str] = "failed",
        task: str | Task[Any, Any] | None = None,
        queue: str | None = None,
        *,
        from_start: bool = False,
    ) -> int:
        """Run all finished jobs of these states again, as `requeue` does; return how many."""
        _check_flag(from_start, "from_start")
        states = require_states(state)
        if not states or not states <= FINISHED:
            raise ConfigurationError(
                f"requeue_all takes finished states ({', '.join(sorted(FINISHED))}), not {state!r}"
            )
        return sum(
            self.engine.change_all(JobFilter(states, queue, name), partial(lifecycle.requeue, from_start=from_start))
            for name in self._stored_names(task)
        )

    def pause(self, queue: str) -> None:
        """Start no more jobs of this queue, in any consumer, until `resume`; survives restarts."""
        self.storage.swap(PAUSE_MARK + check_name(queue, "queue"), None, "1")

    def resume(self, queue: str) -> bool:
        """Undo `pause`; False if the queue was not paused."""
        resumed = self.storage.swap(PAUSE_MARK + check_name(queue, "queue"), "1", None)
        if resumed:
            self.storage.gates.wake(self._clock.now(), everywhere=True)  # slots were offered to other queues meanwhile
        if resumed and self.immediate:
            self.engine.run_ready()
        return resumed

    def paused(self) -> list[str]:
        """The paused queues."""
        return sorted(key.removeprefix(PAUSE_MARK) for key in self.storage.marks(PAUSE_MARK))

    def purge(
        self,
        state: str | Iterable[str] | None = None,
        queue: str | None = None,
        older_than: float | timedelta | None = None,
    ) -> int:
        """Delete finished jobs with their history; return how many.

        Args:
            state: only these (finished) states.
            queue: only this queue.
            older_than: only jobs that finished longer ago than this (seconds or timedelta).
        """
        states = require_states(state)
        if not states <= FINISHED:
            raise ConfigurationError(
                f"purge deletes finished jobs ({', '.join(sorted(FINISHED))}), not {state!r}; revoke others first"
            )
        before = None if older_than is None else self._clock.now() - seconds(older_than, "older_than")
        return self.engine.remove_all(JobFilter(states or FINISHED, queue, finished_before=before))

    def backup(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Copy the queue to a new file of its own, while producers and consumers go on; return where it is.

        The copy is of one instant and appears whole, or not at all. It is opened like any other queue; jobs that were
        running then are run again by the first consumer of the copy.

        Args:
            path: of the new file; a relative one is read from the current directory.
            overwrite: replace a file that is there already.

        Raises:
            StorageError: there is no copy: the path cannot be written, or exists; or the queue is in memory.
        """
        from pathlib import Path

        _check_flag(overwrite, "overwrite")
        target = Path(path).absolute()
        self.storage.backup(target, overwrite=overwrite)
        return target

    def export(self, to: str | Path | TextIO, *, overwrite: bool = False) -> Exported:
        """Write everything in the queue as lines of JSON, for `import_` into any other storage.

        Jobs in every state go along with their ids, arguments, history, results, unique keys, steps and what they wait
        for; schedules, paused queues, revocations and limits too. It is of one instant. A job that runs is written
        as one that is ready: let consumers stop first, or it may run in both queues.

        Args:
            to: the path of a new file, or a text file that is open for writing.
            overwrite: replace a file that is there already.

        Returns:
            How many ``jobs``, ``schedules`` and ``marks`` were written.

        Raises:
            StorageError: there is no new file: the path cannot be written, or exists.
        """
        from pathlib import Path

        from liteq import transfer

        _check_flag(overwrite, "overwrite")
        now = self._clock.now()
        if isinstance(to, str | os.PathLike):
            return transfer.export_to_file(self.storage, Path(to).absolute(), now, overwrite=overwrite)
        return transfer.export(self.storage, to, now)

    def import_(self, source: str | Path | Iterable[bytes]) -> Taken:
        """Store what `export` has written, as far as it is not there already; all of it, or nothing.

        Jobs keep their ids, so Results of theirs are good here too, and their order. One whose id is there is left
        out, so an import can be repeated, and so is a waiting one whose unique key another has. Schedules, and
        what is paused, revoked or limited, stay as they are where both have them.

        Args:
            source: the path of the file, or a binary file that is open for reading.

        Returns:
            How many ``jobs`` were stored, how many were ``known``, and how many ``schedules`` and ``marks`` are new.

        Raises:
            StorageError: it cannot be read, is cut off, or something else, or of a newer liteq; the line is named.
                Nothing was stored.
        """
        from pathlib import Path

        from liteq import transfer

        now = self._clock.now()
        if not isinstance(source, str | os.PathLike):
            return transfer.import_into(self.storage, source, str(getattr(source, "name", "the export")), now)
        return transfer.import_file(self.storage, Path(source).absolute(), now)

    def examine(self, *, thorough: bool = True) -> list[Finding]:
        """What is wrong, or worth knowing, about the queue and the place where it is kept; changes nothing.

        Args:
            thorough: also read the whole file, which takes about a second for each 100 MB.

        Returns:
            One Finding for each question. What cannot be read is one too, so this raises no StorageError.
        """
        from liteq.checkup import examine

        _check_flag(thorough, "thorough")
        return examine(self.engine, thorough=thorough)

    def oldest_ready(self) -> float | None:
        """For how many seconds the oldest ready job has been waiting; ``None`` where none is ready.

        Looked for among the first thousand of each queue that is not paused. Jobs that were put back by hand do not
        count: when that was is not stored, and they would look as old as their first enqueue.
        """
        from liteq.checkup import oldest_ready

        return oldest_ready(self.engine)

    # ── locks and limits ─────────────────────────────────────────────────────────────────────────────

    def lock_task(
        self, name: str, wait: bool = False, slots: int = 1, timeout: float | timedelta | None = None
    ) -> Lock:
        """A lock over all processes of this queue, for ``with``, ``async with``, and as a decorator of a task's
        function (below ``@app.task``). Whoever dies with it loses it at once.

        Args:
            name: equal names are one lock.
            wait: wait for it, instead of raising TaskLocked. A decorated task's job then waits as a ``blocked`` job:
                it takes no worker, costs no attempt, and comes in the order of enqueue and priority.
            slots: how many may hold it at once.
            timeout: seconds (or timedelta) for which ``with`` waits before it raises LockTimeout; ``None``: as long as
                it takes.

        Raises:
            TypeError, ConfigurationError: an argument is wrong. Taking the lock raises TaskLocked, LockTimeout, or
                LockReentered, if it is taken by whoever holds it.
        """
        return Lock(lambda: self.engine.locks, name, wait, slots, timeout)

    def rate_limit(
        self,
        name: str,
        limit: int,
        per: float | timedelta,
        retry: bool = True,
        wait: bool = False,
        burst: int | None = None,
        timeout: float | timedelta | None = None,
    ) -> RateLimit:
        """A rate limit over all processes of this queue, for ``with``, ``async with``, and as a decorator of a task's
        function (below ``@app.task``). ``@app.task(rate_limit="10/s")`` is the plainer form for one task.

        Args:
            name: equal names are one limit.
            limit: how many may pass in ``per`` seconds (or timedelta), in the long run.
            retry: a task that raises RateLimitExceeded comes back when it may pass, and that costs no attempt.
            wait: wait, instead of raising RateLimitExceeded. A decorated task's job then waits as a ``blocked`` job.
            burst: how many may pass at once after a pause; ``None``: ``limit``.
            timeout: seconds (or timedelta) for which ``with`` waits before it raises RateLimitExceeded; ``None``: as
                long as it takes.

        Raises:
            TypeError, ConfigurationError: an argument is wrong. Passing raises RateLimitExceeded.
        """
        from liteq.rate_limits import RateLimit

        return RateLimit(lambda: self.engine.locks, name, limit, per, retry, wait, burst, timeout)

    def is_locked(self, name: str) -> bool:
        """Whether nobody could take this lock now: all its slots are held by somebody who lives."""
        from liteq.limits import is_locked

        return is_locked(self.storage, check_name(name, "name"))

    def locks(self) -> list[LockState]:
        """The locks that somebody holds or waits for: name, slots, holders, how many wait."""
        from liteq.limits import locks

        return locks(self.storage)

    def flush_locks(self, *names: str) -> set[str]:
        """Take these locks (none named: all) away from whoever holds them; what they do goes on.

        For when something holds a lock that should not; the locks of the dead are free without it.

        Returns:
            The names of those that were held.
        """
        return self.engine.locks.flush(tuple(check_name(name, "name") for name in names))

    @property
    def limits(self) -> Limits:
        """The ``max_running`` and ``rate_limit`` of tasks, to be seen and changed at run time."""
        from liteq.limits import Limits

        return Limits(lambda: self.storage, self._stored.tasks, self._clock.now)

    # ── hooks ────────────────────────────────────────────────────────────────────────────────────────

    def signal(self, *names: str) -> Callable[[Receiver], Receiver]:
        """``@app.signal(S.ERROR, ...)``: call ``receiver(signal, job, error)`` when it happens; no names: at
        everything.
        """

        check_names(names)  # now: `@app.signal` without parentheses would never get as far as `decorate`

        def decorate(receiver: Receiver) -> Receiver:
            self._stored.signals.connect(receiver, *names)
            return receiver

        return decorate

    def disconnect_signal(self, receiver: Receiver, *names: str) -> None:
        """Undo `signal`."""
        self._stored.signals.disconnect(receiver, *names)

    def pre_execute(self) -> Callable[[C], C]:
        """``@app.pre_execute()``: call ``hook(job)`` in the worker before each task; raising Cancel there revokes the
        job.
        """
        return _collect(self._stored.runtime.before)

    def post_execute(self) -> Callable[[C], C]:
        """``@app.post_execute()``: call ``hook(job, value, error)`` in the worker after each task."""
        return _collect(self._stored.runtime.after)

    @overload
    def middleware(self, target: Literal["enqueue", "execute"], /) -> Callable[[C], C]: ...
    @overload
    def middleware(self, target: M, /) -> M: ...
    def middleware(self, target: Any, /) -> Any:
        """Code around each enqueue, in the caller, and each execution, in the worker: generator functions that are
        given a MiddlewareCall and yield once. What was registered first is the outermost.

        ``@app.middleware("execute")`` (or ``"enqueue"``) decorates one function; ``@app.middleware`` a class, of which
        one object is made, with methods ``enqueue`` and ``execute``, of which it may have one or both. ``yield`` gives
        the stored Job, or what the task returned, or raises what was raised. An error around an execution is the task's
        own.

        Raises:
            TypeError: it is none of these.
        """
        from liteq.middleware import around_of, layer, layers_of

        if isinstance(target, str):
            around = around_of(target)
            return lambda function: self._wrap({around: layer(function, around)}, function)
        return self._wrap(layers_of(target), target)

    def _wrap(self, layers: Mapping[Around, Layer], given: T) -> T:
        runtime = self._stored.runtime
        for around, one in layers.items():
            (runtime.around_enqueue if around == "enqueue" else runtime.around_execute).append(one)
        return given

    def on_startup(self) -> Callable[[C], C]:
        """``@app.on_startup()``: call ``hook()`` in each worker (process, or the process of the threads) as it
        starts.
        """
        return _collect(self._stored.runtime.on_startup)

    def on_shutdown(self) -> Callable[[C], C]:
        """``@app.on_shutdown()``: call ``hook()`` in each worker as it stops."""
        return _collect(self._stored.runtime.on_shutdown)

    # ── consumers ────────────────────────────────────────────────────────────────────────────────────

    def create_consumer(self, *, log: LogSetup | None = None, **options: Any) -> Consumer:
        """A consumer of this app, for embedding: ``.run()`` here, or ``.start()`` and ``.stop()`` on threads.

        Args:
            log: where worker processes write their log lines; ``None``: to their standard error, as it comes.
            options: see `liteq.consumer.ConsumerOptions`: ``workers``, ``worker_type``, ``queues`` …
        """
        from liteq.consumer import Consumer, ConsumerOptions

        options.setdefault("app_path", self._import_path())
        return Consumer(self.engine, ConsumerOptions(**options), log)

    def _import_path(self) -> str | None:
        """``module:name`` under which another process finds this app; ``None`` where it has no such name."""
        for name, value in vars(sys.modules.get(self._module, object)).items():
            if value is self:
                return f"{self._module}:{name}"
        return None

    def start(self, **options: Any) -> None:
        """Run a consumer in this process, on threads of its own; it never touches signal handlers. See `stop`."""
        if self._background is not None and self._background_pid == os.getpid():  # a fork has none of its parent's
            raise ConfigurationError("this app's background consumer is running already; stop() it first")
        self._background = self.create_consumer(**options)
        self._background_pid = os.getpid()
        self._background.start()

    def stop(self) -> None:
        """Stop what `start` started: running jobs may finish within its ``shutdown_timeout``, the rest goes back."""
        consumer, self._background = self._background, None
        if consumer is not None:
            consumer.stop()

    @contextmanager
    def run_in_background(self, **options: Any) -> Iterator[Consumer]:
        """``with app.run_in_background(workers=4):`` a consumer in this process for the length of the block."""
        consumer = self.create_consumer(**options)
        consumer.start()
        try:
            yield consumer
        finally:
            consumer.stop()

    def close(self) -> None:
        """Let go of the file and of background threads, and `stop` the consumer that `start` started; idempotent, and
        the next use opens the file anew.

        Raises:
            ConfigurationError: another consumer of this app runs in this process. It would lose the file's lock that
                says that it lives, and others would run its jobs a second time.
        """
        self.stop()
        if os.getpid() in self._stored.serving:
            raise ConfigurationError("a consumer of this app runs in this process: stop it before close()")
        for engine in (self._stored, self._in_memory):
            if engine is not None:
                engine.locks.close()
                engine.waiters.close()
                engine.storage.close()

    def _stored_names(self, task: Task[Any, Any] | str | None) -> list[str | None]:
        """Under which names jobs of a task may be stored; ``[None]`` for any task."""
        if not isinstance(task, Task):
            return [None if task is None else check_name(task, "task")]
        aliases = [name for name, definition in self._stored.tasks.items() if definition.name == task.name]
        return [task.name, *(name for name in aliases if name != task.name)]

    def _known(self, task: Task[Any, Any] | str) -> str:
        name = _task_name(task)
        if name not in self._stored.tasks:
            raise UnknownTask(name)
        return self._stored.tasks[name].name

    def __repr__(self) -> str:
        return f"<LiteQ {self.name!r} on {self.storage.location}>"


def _checked_clock(clock: Clock | None) -> Clock:
    if clock is None:
        return SystemClock()
    if not all(callable(getattr(clock, method, None)) for method in ("now", "monotonic", "sleep")):
        raise TypeError(f"clock takes an object with now(), monotonic() and sleep(), not {type(clock).__name__}")
    return clock


def _environment_flag(name: str) -> bool:
    value = os.environ.get(name, "").strip().lower()
    if value not in _TRUE + _FALSE:
        raise ConfigurationError(f"the environment variable {name} takes 1 or 0, not {value!r}")
    return value in _TRUE


def _task_name(task: Task[Any, Any] | str) -> str:
    return task.name if isinstance(task, Task) else check_name(task, "task")


def _id(result_or_id: Result[Any] | str, what: str = "id") -> str:
    return result_or_id.id if isinstance(result_or_id, Result) else check_name(result_or_id, what)


def _check_flag(value: object, what: str) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{what} takes True or False, not {type(value).__name__} {value!r}")


def _collect(hooks: list[Any]) -> Callable[[C], C]:
    def decorate(hook: C) -> C:
        if not callable(hook):
            raise TypeError(
                f"a hook must be callable, not {type(hook).__name__}; the decorator is used with parentheses"
            )
        hooks.append(hook)
        return hook

    return decorate
