"""Result: the caller's handle on a job, and ResultGroup: on several.

Reading never deletes and may be repeated. A handle is an id and an engine; it can be made anew from the id in any
process (``app.result(id)``).
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from liteq import lifecycle
from liteq.context import current_job, this_thread
from liteq.engine import Engine
from liteq.errors import LiteQError, ResultTimeout, TaskFailed, WouldDeadlock
from liteq.instants import due_at, positive_seconds
from liteq.job import FINISHED, Job, JobState, Progress
from liteq.plan import unsuccessful

if TYPE_CHECKING:
    import asyncio

    from liteq.deadlock import Parent
    from liteq.explanation import Explanation
    from liteq.step import Step

R = TypeVar("R")


class Result(Generic[R]):
    """A handle on one job."""

    __slots__ = ("_engine", "_id", "_seq")

    def __init__(self, engine: Engine, job_id: str | None = None, seq: int | None = None) -> None:
        self._engine = engine
        self._id = job_id
        self._seq = seq

    @property
    def id(self) -> str:
        """The job's id: a string that finds it again, in this file, from any process.

        Raises:
            LiteQError: inside ``app.batch()``, whose jobs are stored, and given their ids, at its end.
        """
        if self._id is None:
            raise LiteQError("this job has no id yet: jobs of app.batch() are stored when the block ends")
        return self._id

    def get(self, timeout: float | timedelta | None = None) -> R:
        """What the task returned; waits for it.

        Args:
            timeout: seconds or a timedelta; ``0``: ask once; ``None``: wait as long as it takes.

        Raises:
            ResultTimeout: not finished in time; the job goes on.
            TaskFailed: it failed for good; ``TaskRevoked``, ``TaskExpired``: it never will run (again).
            WouldDeadlock: called in a job, and this one cannot start before that one ends; see `liteq.deadlock`. Or in
                an ``async def`` task of an asyncio worker, where ``await result`` waits without stopping all others.
            JobNotFound: there is no such job (any more).
            SerializationError: the stored result cannot be read.
        """
        limit = None if timeout is None else positive_seconds(timeout, "timeout")
        job = self._finished_job()
        if job is None and limit != 0:
            job = self._wait(limit)
        if job is None:
            raise self._timed_out(limit)
        return self._value(job)

    async def aget(self, timeout: float | timedelta | None = None) -> R:
        """`get` for coroutines: the event loop goes on meanwhile."""
        import asyncio

        limit = None if timeout is None else positive_seconds(timeout, "timeout")
        job = await asyncio.to_thread(self._finished_job)
        if job is None and limit != 0:
            self._engine.refuse_to_wait()
            job = await self._await(limit)
        if job is None:
            raise await asyncio.to_thread(self._timed_out, limit)
        return self._value(job)

    def __await__(self) -> Generator[Any, None, R]:
        return self.aget().__await__()

    # ── waiting ──────────────────────────────────────────────────────────────────────────────────────

    def _finished_job(self) -> Job | None:
        job = self._engine.job(self.id)
        self._seq = job.seq
        return job if job.state in FINISHED else None

    def _wait(self, limit: float | None) -> Job | None:
        """The finished job, or ``None`` after ``limit`` seconds."""
        if self._engine.immediate:
            return self._run(limit)
        self._refuse_itself()
        clock = self._engine.clock
        deadline = None if limit is None else clock.monotonic() + limit
        finished = threading.Event()
        with _as_parent(self._engine, {cast(int, self._seq): self}, limit, finished.set) as parent:
            while (left := _left(deadline, clock.monotonic())) is None or left > 0:
                finished.clear()
                if parent is not None and parent.doomed:
                    raise WouldDeadlock(self.id, parent.job.id, obstacle=parent.obstacle)
                self._engine.waiters.add(cast(int, self._seq), finished.set)
                try:
                    in_time = finished.wait(left)
                finally:
                    self._engine.waiters.discard(cast(int, self._seq), finished.set)
                job = self._finished_job()
                if job is not None or not in_time:
                    return job
        return None

    async def _await(self, limit: float | None) -> Job | None:
        import asyncio

        if self._engine.immediate:
            return await asyncio.to_thread(self._run, limit)
        self._refuse_itself()
        try:
            async with asyncio.timeout(limit):
                while True:
                    doomed = await self._finish_seen(asyncio.get_running_loop(), limit)
                    job = await asyncio.to_thread(self._finished_job)
                    if job is not None:
                        return job
                    if doomed is not None:
                        raise WouldDeadlock(self.id, doomed.job.id, obstacle=doomed.obstacle)
        except TimeoutError:
            return await asyncio.to_thread(self._finished_job)

    def _refuse_itself(self) -> None:
        """A call of a unique task, made by the job that has its key, gives that very job."""
        job = current_job.get()
        if job is not None and job.id == self._id:
            raise WouldDeadlock(job.id, job.id)

    async def _finish_seen(self, loop: asyncio.AbstractEventLoop, limit: float | None) -> Parent | None:
        """Wait for the finish; returns the job that waits here if it does so in vain."""
        seen: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not seen.done():
                seen.set_result(None)

        def callback() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
                loop.call_soon_threadsafe(finish)

        seq, engine = cast(int, self._seq), self._engine
        parent = _parent(engine, [seq], limit, callback)
        engine.waiters.add(seq, callback)
        try:
            await seen
        finally:
            engine.waiters.discard(seq, callback)
            if parent is not None:
                await _leave(engine, parent)
        return parent if parent is not None and parent.doomed else None

    def _run(self, limit: float | None) -> Job | None:
        """In immediate mode the one who waits is the consumer."""
        engine = self._engine
        clock = engine.clock
        ends_at = None if limit is None else clock.now() + limit
        deadline = None if limit is None else clock.monotonic() + limit
        with engine.storage.watch() as watch:
            while True:
                engine.run_until(engine.job(self.id), ends_at)
                job = engine.job(self.id)
                if job.state in FINISHED:
                    return job
                if engine.is_startable(job):  # another thread has put it back just now
                    engine.run_ready()
                elif job.state is not JobState.RUNNING or not watch.wait(_left(deadline, clock.monotonic())):
                    engine.refuse_to_wait_in_vain(job)
                    return None  # it cannot start, or another thread runs it for too long

    def _timed_out(self, limit: float | None) -> ResultTimeout:
        return ResultTimeout(self.id, self.state, limit or 0.0)

    def _value(self, job: Job) -> R:
        if job.state is not JobState.SUCCEEDED:
            raise failure(job)
        return cast(R, None if job.result is None else self._engine.runtime.serializer.loads(job.result))

    # ── questions ────────────────────────────────────────────────────────────────────────────────────

    def job(self) -> Job:
        """The stored job, with every attempt's error and times.

        Raises:
            JobNotFound: there is no such job (any more).
        """
        return self._engine.job(self.id)

    def is_ready(self) -> bool:
        """Whether the job has finished, well or not."""
        return self.job().state in FINISHED

    @property
    def state(self) -> JobState:
        """Where the job stands."""
        return self.job().state

    @property
    def progress(self) -> Progress | None:
        """What the running job last said with ``task.progress(...)``."""
        return self.job().progress

    @property
    def error(self) -> TaskFailed | None:
        """How the last attempt failed; ``None`` if it did not, or there was none yet."""
        last = self.job().error
        if last is None:
            return None
        return unsuccessful(self.id, "failed", "", last.error_type, last.message, last.traceback)

    def steps(self) -> list[Step]:
        """What the job has recorded with ``task.step``, ``task.sleep`` and ``task.wait_for``, in order.

        Raises:
            JobNotFound: there is no such job (any more).
        """
        return self._engine.storage.steps(self.job().seq)

    def why(self) -> Explanation:
        """Why the job is not running, in words; see `LiteQ.why`."""
        from liteq.why import why

        return why(self._engine, self.id)

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────

    def revoke(self, terminate: bool = False) -> bool:
        """Do not run this job. One that waits ends at once as ``revoked``; one that runs is asked to stop
        (``task.is_cancelled()``) and is not run again.

        Args:
            terminate: also stop it if it is running.

        Returns:
            False if it had finished already.
        """
        return self._engine.revoke(self.id, terminate=terminate)

    @property
    def workflow(self) -> ResultGroup[Any]:
        """This job and all that it waits for, or has waited for, directly or not, in the order of enqueue: the steps of
        the workflow that leads to it."""
        seq = self.job().seq if self._seq is None else self._seq
        found = self._engine.storage.plans.steps([seq])
        return ResultGroup(Result(self._engine, job_id, one) for one, job_id in found)

    def restore(self) -> bool:
        """Undo `revoke`; False if the job is not revoked."""
        return self._engine.restore(self.id)

    def reschedule(self, eta: datetime | None = None, delay: float | timedelta | None = None) -> bool:
        """Give a waiting job another time: ``eta``, or ``delay`` seconds from now; neither: at once.

        Returns:
            False if it is running or has finished.
        """
        engine = self._engine
        now = engine.clock.now()
        due = due_at(now, engine.timezone, eta=eta, delay=delay)
        return engine.change(self.id, lambda job, now: lifecycle.reschedule(job, now if due is None else due, now))

    def requeue(self, *, from_start: bool = False) -> bool:
        """Run a finished job again, with its whole allowance of retries; its history stays.

        Args:
            from_start: forget the steps that it has recorded; without it, it goes on behind the last one.

        Returns:
            False if it has not finished.
        """
        return self._engine.change(self.id, partial(lifecycle.requeue, from_start=from_start))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Result) and self._id is not None and self._id == other._id)

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"<Result {self._id or 'of a job not stored yet'}>"


def failure(job: Job) -> TaskFailed:
    """The exception that tells a caller how a finished job ended without success."""
    last = job.error
    said = ("", "", "") if last is None else (last.error_type, last.message, last.traceback)
    return unsuccessful(job.id, str(job.state), job.reason or "", *said)


def _left(deadline: float | None, now: float) -> float | None:
    return None if deadline is None else min(deadline - now, threading.TIMEOUT_MAX)


def _as_parent(
    engine: Engine, pending: Mapping[int, Result[Any]], limit: float | None, wake: Callable[[], object]
) -> AbstractContextManager[Parent | None]:
    """Have the job that runs here, if one does, watched while it waits for these; see `liteq.deadlock`."""
    job = current_job.get()
    if job is None:
        return nullcontext()
    engine.refuse_to_wait()
    if this_thread.is_shared:
        raise WouldDeadlock(next(iter(pending.values())).id, job.id, on_loop=True)
    return engine.waiters.parents(engine.clock).waiting(job, pending, _gives_up_at(engine, job, limit), wake)


def _parent(engine: Engine, seqs: Iterable[int], limit: float | None, wake: Callable[[], object]) -> Parent | None:
    """`_as_parent` for coroutines, up to `_leave`."""
    job = current_job.get()
    if job is None:
        return None
    return engine.waiters.parents(engine.clock).enter(job, seqs, _gives_up_at(engine, job, limit), wake)


async def _leave(engine: Engine, parent: Parent) -> None:
    parents = engine.waiters.parents(engine.clock)
    if not parents.is_published(parent):
        parents.leave(parent)
        return
    import asyncio

    await asyncio.to_thread(parents.leave, parent)  # which has to write


def _gives_up_at(engine: Engine, job: Job, limit: float | None) -> float:
    """When a job that waits here for ``limit`` seconds ends its waiting, or is ended: seconds since the epoch."""
    options = engine.options(job)
    timeout = None if options is None else options.timeout
    ends = [] if timeout is None else [(job.started or engine.clock.now()) + timeout]
    return min([*ends, math.inf if limit is None else engine.clock.now() + limit])


class ResultGroup(Generic[R]):
    """Handles on several jobs, in the order in which they were enqueued."""

    __slots__ = ("_results",)

    def __init__(self, results: Iterable[Result[R]] = ()) -> None:
        self._results: list[Result[R]] = list(results)

    def get(self, timeout: float | timedelta | None = None, *, return_exceptions: bool = False) -> list[R]:
        """What all the tasks returned, in order; waits for all.

        Args:
            timeout: for all together, seconds or a timedelta.
            return_exceptions: put a failed job's TaskFailed in its place instead of raising the first.

        Raises:
            ResultTimeout: one had not finished in time. TaskFailed: one failed.
        """
        limit = None if timeout is None else positive_seconds(timeout, "timeout")
        return list(self._values(limit, return_exceptions))

    def _values(self, limit: float | None, return_exceptions: bool) -> Iterator[R]:
        if not self._results:
            return
        clock = self._results[0]._engine.clock
        deadline = None if limit is None else clock.monotonic() + limit
        for result in self._results:
            left = None if deadline is None else max(0.0, deadline - clock.monotonic())
            try:
                yield result.get(left)
            except TaskFailed as error:
                if not return_exceptions:
                    raise
                yield cast(R, error)

    async def aget(self, timeout: float | timedelta | None = None, *, return_exceptions: bool = False) -> list[R]:
        """`get` for coroutines."""
        import asyncio

        limit = None if timeout is None else positive_seconds(timeout, "timeout")
        waits = [result.aget(limit) for result in self._results]
        values = await asyncio.gather(*waits, return_exceptions=True)
        for value in values:
            if isinstance(value, BaseException) and not (return_exceptions and isinstance(value, TaskFailed)):
                raise value
        return cast("list[R]", values)

    def __await__(self) -> Generator[Any, None, list[R]]:
        return self.aget().__await__()

    def as_completed(self, timeout: float | timedelta | None = None) -> Iterator[Result[R]]:
        """The results in the order in which their jobs finish.

        Raises:
            ResultTimeout: not all had finished in time.
        """
        if not self._results:
            return
        engine = self._results[0]._engine
        limit = None if timeout is None else positive_seconds(timeout, "timeout")
        deadline = None if limit is None else engine.clock.monotonic() + limit
        pending = {result._seq or result.job().seq: result for result in self._results}
        while pending:
            done = engine.storage.finished(pending) or self._next_finished(engine, pending, deadline, limit)
            for seq in sorted(done):
                yield pending.pop(seq)

    def _next_finished(
        self, engine: Engine, pending: dict[int, Result[R]], deadline: float | None, limit: float | None
    ) -> set[int]:
        left = _left(deadline, engine.clock.monotonic())
        in_time = self._run_next(pending, left) if engine.immediate else self._wait_for_any(engine, pending, left)
        if not in_time:
            raise next(iter(pending.values()))._timed_out(limit)
        return engine.storage.finished(pending)

    def _wait_for_any(self, engine: Engine, pending: dict[int, Result[R]], left: float | None) -> bool:
        finished = threading.Event()
        for seq in pending:
            engine.waiters.add(seq, finished.set)
        try:
            with _as_parent(engine, pending, left, finished.set) as parent:
                in_time = finished.wait(left)
        finally:
            for seq in pending:
                engine.waiters.discard(seq, finished.set)
        if parent is not None and parent.doomed and not engine.storage.finished(pending):
            raise WouldDeadlock(next(iter(pending.values())).id, parent.job.id, obstacle=parent.obstacle)
        return in_time

    def _run_next(self, pending: dict[int, Result[R]], left: float | None) -> bool:
        """In immediate mode: run the one that is due next, and whatever is due with it."""
        job = min((result.job() for result in pending.values()), key=lambda job: (job.due or 0.0, job.seq))
        return pending[job.seq]._run(left) is not None

    def progress(self) -> tuple[int, int]:
        """How many of them have finished, and how many there are."""
        if not self._results:
            return 0, 0
        seqs = self._seqs()
        done = self._results[0]._engine.storage.finished(seqs)
        return sum(seq in done for seq in seqs), len(seqs)

    def _seqs(self) -> list[int]:
        return [result.job().seq if result._seq is None else result._seq for result in self._results]

    @property
    def workflow(self) -> ResultGroup[Any]:
        """These jobs and all that they wait for, directly or not, in the order of enqueue."""
        if not self._results:
            return ResultGroup()
        engine = self._results[0]._engine
        found = engine.storage.plans.steps(self._seqs())
        return ResultGroup(Result(engine, job_id, seq) for seq, job_id in found)

    def revoke(self, terminate: bool = False) -> int:
        """Revoke each of them that has not finished, and with them what waits for them; see `Result.revoke`.

        Returns:
            How many had not finished.
        """
        if not self._results:
            return 0
        return self._results[0]._engine.revoke_these(self._seqs(), terminate=terminate)

    def __iter__(self) -> Iterator[Result[R]]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, index: int) -> Result[R]: ...
    @overload
    def __getitem__(self, index: slice) -> ResultGroup[R]: ...
    def __getitem__(self, index: int | slice) -> Result[R] | ResultGroup[R]:
        found = self._results[index]
        return ResultGroup(found) if isinstance(found, list) else found

    def __repr__(self) -> str:
        return f"<ResultGroup of {len(self._results)}>"


class WorkflowResult(Result[R]):
    """The handle on the last job of a workflow, and so on all of it.

    Args:
        engine: as of `Result`.
        steps: handles on every job of it that has a part in the result.
    """

    __slots__ = ("_steps",)

    def __init__(self, engine: Engine, steps: Sequence[Result[Any]]) -> None:
        super().__init__(engine)
        self._steps = steps

    @property
    def workflow(self) -> ResultGroup[Any]:
        """Every job of the workflow, in the order of enqueue; without error handlers."""
        return ResultGroup(self._steps)

    def revoke(self, terminate: bool = False) -> bool:
        """Revoke the whole workflow: each job of it that has not finished; see `Result.revoke`.

        Returns:
            False if all had finished already.
        """
        return self.workflow.revoke(terminate=terminate) > 0


class WorkflowGroup(ResultGroup[R]):
    """The handles on the members of a group, and so on all of the workflow that it stands at the end of.

    Args:
        results: of the members.
        steps: as of `WorkflowResult`.
    """

    __slots__ = ("_steps",)

    def __init__(self, results: Iterable[Result[R]], steps: Sequence[Result[Any]]) -> None:
        super().__init__(results)
        self._steps = steps

    @property
    def workflow(self) -> ResultGroup[Any]:
        """Every job of the workflow, in the order of enqueue; without error handlers."""
        return ResultGroup(self._steps)

    def revoke(self, terminate: bool = False) -> int:
        """Revoke the whole workflow: each job of it that has not finished; returns how many had not."""
        return self.workflow.revoke(terminate=terminate)


class Receiver:
    """What gives these handles their ids once their jobs are stored.

    Args:
        results: the handles, in the order of the jobs.
        whole: another handle on one of them, and its position.
    """

    __slots__ = ("_results", "_whole")

    def __init__(self, results: Sequence[Result[Any]], whole: tuple[int, Result[Any]] | None = None) -> None:
        self._results = results
        self._whole = whole

    def __call__(self, jobs: Sequence[Job]) -> None:
        for result, job in zip(self._results, jobs, strict=True):
            result._id, result._seq = job.id, job.seq
        if self._whole is not None:
            position, result = self._whole
            result._id, result._seq = jobs[position].id, jobs[position].seq

    def places(self) -> list[tuple[int, Result[Any]]]:
        """The handles, each with the position of its job."""
        return [*enumerate(self._results), *([] if self._whole is None else [self._whole])]
