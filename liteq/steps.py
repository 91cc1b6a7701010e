"""The steps of a running job: what ``task.step``, ``task.sleep`` and ``task.wait_for`` do.

A step is done once: its result is recorded in the storage under the job and the step's name, and from then on it is
read instead. So a job's function may be run again from its beginning at any time, after an error, a crash, or a sleep,
and gets back to where it was. What it does outside of steps is done again each time.

A job that sleeps or waits for an event has no worker meanwhile: `Suspended` ends its run, and is no error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from itertools import count
from types import CoroutineType
from typing import Any

from liteq.clock import Clock
from liteq.definition import check_name
from liteq.errors import ClaimLost, DuplicateStep, EventTimeout, PayloadTooLarge, SerializationError, StorageBusy
from liteq.instants import positive_seconds
from liteq.job import Job
from liteq.serializers import Serializer
from liteq.step import Step, StepKey, StepKind, StepState
from liteq.storage.base import Storage

#: Results of more bytes are written in a thread, as a coroutine's event loop is to go on meanwhile.
SMALL = 64 << 10


class Suspended(BaseException):
    """Ends a run that sleeps, or waits for an event; not an Exception, so that tasks do not catch it by mistake.

    Args:
        until: when to run it again, in seconds since the epoch; ``None``: when the event comes.
        event: what it waits for, if it does.
    """

    def __init__(self, until: float | None, event: str | None = None) -> None:
        super().__init__("the job sleeps" if event is None else f"the job waits for the event {event!r}")
        self.until = until
        self.event = event


class Steps:
    """The steps of one run of a job. Used by whatever threads and coroutines the job has.

    Args:
        job: running.
        storage: where it is.
        serializer, clock: the app's.
        most: how many bytes a result may have.
    """

    def __init__(self, job: Job, storage: Storage, serializer: Serializer, clock: Clock, most: int) -> None:
        self._job = job
        self._storage = storage
        self._serializer = serializer
        self._clock = clock
        self._most = most
        # Under its first claim nobody can have recorded anything; the question would cost as much as half a step.
        self._recorded: dict[StepKey, Step] | None = {} if job.claim == 1 else None
        self._met: dict[StepKey, int] = {}
        self._positions = count()
        self._lost: ClaimLost | None = None
        #: Set once the run is to end, whatever it does with the exception.
        self.suspended: Suspended | None = None

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────

    def step(self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `TaskContext.step`."""
        key, position = self._meet(StepKind.STEP, check_name(name, "the name of a step"))
        recorded = self._known(key)
        if recorded is not None:
            return self._value(recorded)
        value = function(*args, **kwargs)
        if isinstance(value, CoroutineType):
            value.close()
            raise TypeError(
                f"step {name!r} of job {self._job.id} was given an async function, of which nothing was run: write "
                f"`await task.astep({name!r}, …)`"
            )
        self._record(key, position, result=self._encoded(name, value))
        return value

    async def astep(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """See `TaskContext.astep`. The event loop goes on while others, or the disk, are waited for."""
        key, position = self._meet(StepKind.STEP, check_name(name, "the name of a step"))
        recorded = await self._aknown(key)
        if recorded is not None:
            return self._value(recorded)
        value = function(*args, **kwargs)
        if isinstance(value, Awaitable):
            value = await value
        await self._arecord(key, position, result=self._encoded(name, value))
        return value

    # ── sleeping ─────────────────────────────────────────────────────────────────────────────────────

    def sleep(self, delay: float | timedelta, name: str | None) -> None:
        """See `TaskContext.sleep`."""
        wait, (key, position) = positive_seconds(delay, "sleep"), self._meet_sleep(name)
        recorded = self._known(key) or self._record(key, position, due=self._clock.now() + wait)
        self._sleep_until(recorded)

    async def asleep(self, delay: float | timedelta, name: str | None) -> None:
        """See `TaskContext.asleep`."""
        wait, (key, position) = positive_seconds(delay, "sleep"), self._meet_sleep(name)
        recorded = await self._aknown(key)
        if recorded is None:
            recorded = await self._arecord(key, position, due=self._clock.now() + wait)
        self._sleep_until(recorded)

    def _meet_sleep(self, name: str | None) -> tuple[StepKey, int]:
        if name is None:
            return self._meet(StepKind.SLEEP, "sleep", numbered=True)
        return self._meet(StepKind.SLEEP, check_name(name, "the name of a sleep"))

    def _sleep_until(self, recorded: Step) -> None:
        if recorded.due is not None and recorded.due > self._clock.now():
            raise self._suspend(Suspended(recorded.due))

    # ── events ───────────────────────────────────────────────────────────────────────────────────────

    def wait_for(self, event: str, timeout: float | timedelta | None) -> Any:
        """See `TaskContext.wait_for`."""
        asked = self._begin_to_wait(event, timeout)
        known = self._known(asked.key)
        if known is None or known.state is StepState.WAITING:
            known = self._ask(asked)
        return self._came(known)

    async def await_for(self, event: str, timeout: float | timedelta | None) -> Any:
        """See `TaskContext.await_for`."""
        import asyncio

        asked = self._begin_to_wait(event, timeout)
        known = await self._aknown(asked.key)
        if known is None or known.state is StepState.WAITING:
            known = await asyncio.to_thread(self._ask, asked)
        return self._came(known)

    def _begin_to_wait(self, event: str, timeout: float | timedelta | None) -> Step:
        limit = None if timeout is None else positive_seconds(timeout, "timeout")
        key, position = self._meet(StepKind.WAIT, check_name(event, "the name of an event"), numbered=True)
        now = self._clock.now()
        due = None if limit is None else now + limit
        return Step(*key, StepState.WAITING, position, self._job.attempt, now, due)

    def _ask(self, asked: Step) -> Step:
        job = self._job
        standing = self._storage.await_event(job.seq, job.claim, asked, self._clock.now())
        if standing is None:
            raise self._lose(f"wait for {asked.name}")
        return standing

    def _came(self, standing: Step) -> Any:
        if standing.state is StepState.WAITING:
            raise self._suspend(Suspended(standing.due, standing.name))
        if standing.state is StepState.TIMED_OUT:
            raise EventTimeout(standing.name, self._job.id)
        return self._value(standing)

    # ── what all of them do ──────────────────────────────────────────────────────────────────────────

    def _meet(self, kind: StepKind, name: str, *, numbered: bool = False) -> tuple[StepKey, int]:
        """The function has come to a step: its key, and how many it came to before.

        Raises:
            DuplicateStep: it has come to this one already.
            Suspended, ClaimLost: it was told before that it is to end, and goes on.
        """
        if self.suspended is not None:
            raise self.suspended
        if self._lost is not None:
            raise self._lost
        key, position = StepKey(kind, name), next(self._positions)
        while self._met.setdefault(key, position) != position:  # one look and note, for several threads at once
            if not numbered:
                raise DuplicateStep(name, self._job.id)
            key = key._replace(number=key.number + 1)
        return key, position

    def _known(self, key: StepKey) -> Step | None:
        """The step as it was recorded, in this run or an earlier one."""
        if self._recorded is None:
            self._recorded = {step.key: step for step in self._storage.steps(self._job.seq)}
        return self._recorded.get(key)

    async def _aknown(self, key: StepKey) -> Step | None:
        if self._recorded is not None:
            return self._recorded.get(key)
        import asyncio

        return await asyncio.to_thread(self._known, key)

    def _record(self, key: StepKey, position: int, *, due: float | None = None, result: bytes | None = None) -> Step:
        step = self._done(key, position, due, result)
        return self._kept(step, self._storage.record_step(self._job.seq, self._job.claim, step))

    async def _arecord(
        self, key: StepKey, position: int, *, due: float | None = None, result: bytes | None = None
    ) -> Step:
        step, job = self._done(key, position, due, result), self._job
        if result is None or len(result) <= SMALL:  # a thread, and the way back, take several times as long as this
            with contextlib.suppress(StorageBusy):
                return self._kept(step, self._storage.record_step_at_once(job.seq, job.claim, step))
        import asyncio

        return self._kept(step, await asyncio.to_thread(self._storage.record_step, job.seq, job.claim, step))

    def _done(self, key: StepKey, position: int, due: float | None, result: bytes | None) -> Step:
        return Step(*key, StepState.DONE, position, self._job.attempt, self._clock.now(), due, result)

    def _kept(self, step: Step, recorded: bool) -> Step:
        if not recorded:
            raise self._lose(step.name)
        return step

    def _encoded(self, name: str, value: object) -> bytes | None:
        if value is None:
            return None
        try:
            data = self._serializer.dumps(value)
        except SerializationError as error:
            raise SerializationError(
                f"step {name!r} of job {self._job.id} has run, but what it returned was not recorded, and the next "
                f"attempt runs it again: {error}"
            ) from error
        if len(data) > self._most:
            what = f"step {name!r} of job {self._job.id} has run, but what it returned is too large to be recorded"
            raise PayloadTooLarge(what, len(data), self._most)
        return data

    def _value(self, recorded: Step) -> Any:
        return None if recorded.result is None else self._serializer.loads(recorded.result)

    def _suspend(self, suspended: Suspended) -> Suspended:
        self.suspended = suspended
        return suspended

    def _lose(self, what: str) -> ClaimLost:
        self._lost = ClaimLost(self._job.id, what)
        return self._lost
