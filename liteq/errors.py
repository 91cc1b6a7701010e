"""Every exception of liteq.

::

    LiteQError
    ├── ConfigurationError      (ValueError)    an option that makes no sense, named
    │   ├── DuplicateTask                       two functions under one task name
    │   ├── DuplicateSchedule                   two schedules under one name
    │   └── DuplicateStep                       two steps of one job under one name
    ├── DuplicateJob            (Exception)     another unfinished job has the unique key of this one
    ├── SerializationError      (ValueError)    a value that cannot be stored, or stored bytes that cannot be read
    │   └── PayloadTooLarge                     … because it has more bytes than the app's ``max_payload``
    ├── TriggerError            (ValueError)    a schedule expression that cannot be read
    ├── JobNotFound             (LookupError)   no job has this id
    ├── ScheduleNotFound        (LookupError)   no schedule has this name
    ├── UnknownTask             (LookupError)   no task of this name is registered in this process
    ├── NotRunning              (RuntimeError)  something was asked about a running job, and this one is not running
    ├── JobFinished             (RuntimeError)  something was sent to a job that has ended
    ├── ClaimLost               (RuntimeError)  a job that somebody else has taken over wanted to record something
    ├── EventTimeout            (TimeoutError)  the event that a job waited for did not come in time
    ├── NoAnswer                (TimeoutError)  the consumer that runs a job did not answer a question about it
    ├── ResultTimeout           (TimeoutError)  the job did not finish in the time given to get()
    ├── WouldDeadlock           (RuntimeError)  a job waits for another one that cannot start before it ends
    ├── TaskTimeout             (TimeoutError)  raised inside a task that ran longer than its ``timeout``
    ├── TaskLocked              (Exception)     a lock is held by others, and the caller did not want to wait
    │   └── LockTimeout         (TimeoutError)  … or not for so long
    ├── RateLimitExceeded       (Exception)     a rate limit has no token, and the caller did not want to wait (so long)
    ├── LockReentered           (RuntimeError)  a lock was taken again by the one who holds it
    ├── TaskFailed              (Exception)     the job ended for good without success
    │   ├── TaskRevoked                         … because somebody revoked it, or it cancelled itself
    │   ├── TaskExpired                         … because it was not started before ``expires``
    │   └── DependencyFailed                    … because a job that it waits for did not succeed
    └── StorageError            (OSError)       the file cannot be read or written; nothing was stored
        ├── StorageBusy         (TimeoutError)  somebody else kept the write lock for longer than the caller could wait
        ├── StorageUnusable                     not a liteq file, a directory, a network filesystem, not writable
        └── StorageTooNew                       written by a newer liteq

    Directive                   (Exception)     not errors: what a task raises to say something about its own job
    ├── Retry                                   run me again later; costs an attempt
    ├── Snooze                                  run me again later; costs no attempt
    ├── Cancel                                  this job is not needed: state ``revoked``
    └── Fail                                    give up now, whatever retries are left
"""

from __future__ import annotations

from datetime import datetime, timedelta


class LiteQError(Exception):
    """The base of every error that liteq raises."""


class ConfigurationError(LiteQError, ValueError):
    """An option has a value that makes no sense; the message names the option."""


class DuplicateTask(ConfigurationError):
    """Two different functions were registered under one task name."""


class DuplicateSchedule(ConfigurationError):
    """A schedule was added under a name that another one has."""


class DuplicateJob(LiteQError):
    """A job's unique key is held by another one that has not finished.

    Args:
        task: the task's name.
        key: the key, or its hash where it is long.
        job_id: the job that holds it.
        again: the finished job that was to be brought back; ``None``: a new one was to be enqueued.
    """

    def __init__(self, task: str, key: str, job_id: str, again: str | None = None) -> None:
        what = f"{task} was not enqueued" if again is None else f"job {again} of {task} was not brought back"
        super().__init__(
            f"{what}: job {job_id} has the same unique key {key!r} and has not finished. "
            + (
                "Nothing was stored; use that job's result, or on_duplicate='return' or 'replace'"
                if again is None
                else "It stays as it is; let that job end, or revoke it first"
            )
        )
        self.task = task
        self.key = key
        self.job_id = job_id
        self.again = again

    def __reduce__(self) -> tuple[type[DuplicateJob], tuple[object, ...]]:
        return type(self), (self.task, self.key, self.job_id, self.again)


class DuplicateStep(ConfigurationError):
    """One run of a job came to two steps under one name, of which the second would be given the first one's result.

    Args:
        name: of the step.
        job_id: the job.
    """

    def __init__(self, name: str, job_id: str) -> None:
        super().__init__(
            f"job {job_id} came to a second step {name!r} in one run: it would be given what the first one returned. "
            "Give each its own name, in a loop for example f'charge {order.id}'"
        )
        self.name = name
        self.job_id = job_id

    def __reduce__(self) -> tuple[type[DuplicateStep], tuple[str, str]]:
        return type(self), (self.name, self.job_id)


class SerializationError(LiteQError, ValueError):
    """A value cannot be stored, or stored bytes cannot be turned back into a value."""


class PayloadTooLarge(SerializationError):
    """The arguments of a call, or what a task returned, have more bytes than the app's ``max_payload``.

    Args:
        what: a sentence's beginning, such as ``"shop.mail was not enqueued, its arguments are too large"``.
        size: their bytes when they are encoded.
        limit: how many they may have.
    """

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(
            f"{what}: {size:,} bytes, more than the {limit:,} of LiteQ(max_payload=...); pass a path, a key or an "
            "id of what is large, or raise the limit"
        )
        self.what = what
        self.size = size
        self.limit = limit

    def __reduce__(self) -> tuple[type[PayloadTooLarge], tuple[str, int, int]]:
        return PayloadTooLarge, (self.what, self.size, self.limit)


class TriggerError(LiteQError, ValueError):
    """A trigger expression cannot be read; the message names the field and the offending text."""


class JobNotFound(LiteQError, LookupError):
    """No job has this id: it never existed in this file, or it was purged.

    Args:
        job_id: the id that was asked for.
    """

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"no job {job_id!r}: it was never stored in this file, or it was purged after its result_ttl or failed_ttl"
        )
        self.job_id = job_id

    def __reduce__(self) -> tuple[type[JobNotFound], tuple[str]]:
        return type(self), (self.job_id,)


class ScheduleNotFound(LiteQError, LookupError):
    """No schedule has this name in this file.

    Args:
        name: the name that was asked for.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"no schedule {name!r}: it was never added to this file, or it was removed")
        self.name = name

    def __reduce__(self) -> tuple[type[ScheduleNotFound], tuple[str]]:
        return type(self), (self.name,)


class UnknownTask(LiteQError, LookupError):
    """No task of this name is registered in this process.

    Args:
        task: the name that was asked for.
    """

    def __init__(self, task: str) -> None:
        super().__init__(
            f"no task named {task!r} is registered here: import the module that defines it, "
            "or give a renamed task aliases=(old name,)"
        )
        self.task = task

    def __reduce__(self) -> tuple[type[UnknownTask], tuple[str]]:
        return type(self), (self.task,)


class NotRunning(LiteQError, RuntimeError):
    """Something was asked about a running job, and this one is not running, or not any more.

    Args:
        job_id: the job.
        state: where it stands instead.
    """

    def __init__(self, job_id: str, state: str) -> None:
        super().__init__(f"job {job_id} is not running: it is {state}")
        self.job_id = job_id
        self.state = state

    def __reduce__(self) -> tuple[type[NotRunning], tuple[str, str]]:
        return type(self), (self.job_id, self.state)


class JobFinished(LiteQError, RuntimeError):
    """Something was sent to a job that has ended, and will not look at it any more.

    Args:
        job_id: the job.
        state: how it has ended.
    """

    def __init__(self, job_id: str, state: str) -> None:
        super().__init__(
            f"job {job_id} has ended as {state}: nothing was sent to it. If it is to run again, requeue it first"
        )
        self.job_id = job_id
        self.state = state

    def __reduce__(self) -> tuple[type[JobFinished], tuple[str, str]]:
        return type(self), (self.job_id, self.state)


class ClaimLost(LiteQError, RuntimeError):
    """Raised in a job that is not this worker's any more: its consumer was taken for dead, and somebody else has taken
    the job over. Nothing that it does from here on is recorded; it should end.

    Args:
        job_id: the job.
        step: what it wanted to record.
    """

    def __init__(self, job_id: str, step: str) -> None:
        super().__init__(
            f"job {job_id} does not belong to this worker any more, and its step {step!r} was not recorded: its "
            "consumer was taken for dead, or gave the job up, and it runs elsewhere or has ended. What it returns here "
            "is dropped"
        )
        self.job_id = job_id
        self.step = step

    def __reduce__(self) -> tuple[type[ClaimLost], tuple[str, str]]:
        return type(self), (self.job_id, self.step)


class EventTimeout(LiteQError, TimeoutError):
    """Raised in a job by ``task.wait_for``: the event did not come in time. That is recorded like a result: another
    attempt would be told the same, so liteq makes none for this error.

    Args:
        event: what was waited for.
        job_id: the job.
    """

    def __init__(self, event: str, job_id: str) -> None:
        super().__init__(f"nobody has sent the event {event!r} to job {job_id} in time")
        self.event = event
        self.job_id = job_id

    def __reduce__(self) -> tuple[type[EventTimeout], tuple[str, str]]:
        return type(self), (self.event, self.job_id)


class NoAnswer(LiteQError, TimeoutError):
    """The consumer that runs a job did not answer a question about it.

    Args:
        job_id: the job.
        reason: what is known of why.
    """

    def __init__(self, job_id: str, reason: str) -> None:
        super().__init__(f"no answer about job {job_id}: {reason}")
        self.job_id = job_id
        self.reason = reason

    def __reduce__(self) -> tuple[type[NoAnswer], tuple[str, str]]:
        return type(self), (self.job_id, self.reason)


class ResultTimeout(LiteQError, TimeoutError):
    """The job did not finish in the time the caller was willing to wait; it goes on undisturbed.

    Args:
        job_id: the job that was waited for.
        state: its state when the waiting ended.
        timeout: how long was waited, in seconds.
    """

    def __init__(self, job_id: str, state: str, timeout: float) -> None:
        super().__init__(f"job {job_id} is still {state} after {timeout:g} s; it goes on, ask again later")
        self.job_id = job_id
        self.state = state
        self.timeout = timeout

    def __reduce__(self) -> tuple[type[ResultTimeout], tuple[str, str, float]]:
        return type(self), (self.job_id, self.state, self.timeout)


class WouldDeadlock(LiteQError, RuntimeError):
    """Raised in a job that waits for another one which cannot start: every worker that could run it is taken by a job
    that waits in the same way, or by one that would stop the event loop of all others while it waits; or it needs a
    slot of a lock or limit, or the end of a job, that none but jobs that wait like this can give. The other job stays
    where it is, and may run once this one has ended.

    Args:
        job_id: the job that was waited for.
        waiting: the job that waited.
        on_loop: it did so on the event loop of an asyncio worker, without ``await``.
        obstacle: what keeps the other one from its start, in words; "" where it is the lack of workers.
    """

    def __init__(self, job_id: str, waiting: str, on_loop: bool = False, obstacle: str = "") -> None:
        super().__init__(_in_vain(job_id, waiting, on_loop, obstacle))
        self.job_id = job_id
        self.waiting = waiting
        self.on_loop = on_loop
        self.obstacle = obstacle

    def __reduce__(self) -> tuple[type[WouldDeadlock], tuple[str, str, bool, str]]:
        return type(self), (self.job_id, self.waiting, self.on_loop, self.obstacle)


def _in_vain(job_id: str, waiting: str, on_loop: bool, obstacle: str) -> str:
    """Why one job waits for another one in vain, in words."""
    if job_id == waiting:
        return (
            f"job {waiting} waits for itself: it has called a unique task whose key it has, or asked for its own "
            "result. Let it go on without waiting"
        )
    if on_loop:
        return (
            f"job {waiting} would wait for job {job_id} with get(), and stop the event loop on which it runs, with all "
            "other jobs on it, perhaps the very one that it waits for. That one stays in its queue. In an async def "
            "task write `await result`, or `await asyncio.to_thread(result.get)`"
        )
    if obstacle:
        return (
            f"job {waiting} waits for job {job_id}, which cannot start: {obstacle}. More workers would not help. Wait "
            "for nothing that needs the same slot, or the end of a job that waits; or let a job go on without waiting: "
            "enqueue the next step from the one before"
        )
    return (
        f"job {waiting} waits for job {job_id}, which cannot start: every worker that could run it is taken by a job "
        "that waits like this one. It stays in its queue. Have more workers, put the jobs that are waited for into a "
        "queue with a consumer of its own, or let a job go on without waiting: enqueue the next step from the one "
        "before"
    )


class TaskTimeout(LiteQError, TimeoutError):
    """Raised inside a task that has run longer than its ``timeout``."""


class TaskLocked(LiteQError):
    """A lock could not be had, because others hold it. A task that raises this is retried as for any other error.

    Args:
        name: the lock's.
        message: what happened.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message

    def __reduce__(self) -> tuple[type[TaskLocked], tuple[object, ...]]:
        return type(self), (self.name, self.message)


class LockTimeout(TaskLocked, TimeoutError):
    """Others held a lock for longer than the caller was willing to wait.

    Args:
        name: the lock's.
        timeout: how long was waited, in seconds.
    """

    def __init__(self, name: str, timeout: float) -> None:
        super().__init__(name, f"the lock {name!r} was still held by others after {timeout:g} s")
        self.timeout = timeout

    def __reduce__(self) -> tuple[type[LockTimeout], tuple[object, ...]]:
        return type(self), (self.name, self.timeout)


class RateLimitExceeded(LiteQError):
    """A rate limit had no token for a caller who did not want to wait, or not for longer.

    A task that raises this comes back when there is one, and that costs no attempt, unless ``retry`` is False.

    Args:
        name: the rate limit's.
        delay: seconds until there will be a token.
        retry: whether a task that raises this comes back.
    """

    def __init__(self, name: str, delay: float, retry: bool = True) -> None:
        super().__init__(f"the rate limit {name!r} is exceeded; there will be room in {delay:.3g} s")
        self.name = name
        self.delay = delay
        self.retry = retry

    def __reduce__(self) -> tuple[type[RateLimitExceeded], tuple[object, ...]]:
        return type(self), (self.name, self.delay, self.retry)


class LockReentered(LiteQError, RuntimeError):
    """A lock was taken again by the job, thread or coroutine that holds it: it would wait for itself for ever.

    Args:
        name: the lock's.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the lock {name!r} is held already by this very job, thread or coroutine, which would wait for itself; "
            "give the inner lock another name, or take it once"
        )
        self.name = name

    def __reduce__(self) -> tuple[type[LockReentered], tuple[str]]:
        return type(self), (self.name,)


class TaskFailed(LiteQError):
    """The job ended for good without success.

    Args:
        job_id: the job.
        error_type: the qualified class name of the last error, such as ``"ValueError"``.
        message: its text.
        traceback: its formatted traceback, ``""`` where there is none (a crash has none).
    """

    def __init__(self, job_id: str, error_type: str, message: str, traceback: str = "") -> None:
        super().__init__(f"job {job_id} failed: {error_type}: {message}" if message else f"job {job_id}: {error_type}")
        self.job_id = job_id
        self.error_type = error_type
        self.message = message
        self.traceback = traceback

    def __reduce__(self) -> tuple[type[TaskFailed], tuple[str, str, str, str]]:
        return type(self), (self.job_id, self.error_type, self.message, self.traceback)


class TaskRevoked(TaskFailed):
    """The job was revoked, or cancelled itself, and will not run (again)."""


class TaskExpired(TaskFailed):
    """The job was not started before its ``expires`` and will not run."""


class DependencyFailed(TaskFailed):
    """The job never ran, because one that it waits for ended without success; the message names that one."""


class StorageError(LiteQError, OSError):
    """The file could not be read or written. What the failing call was to store is not stored."""


class StorageBusy(StorageError, TimeoutError):
    """Somebody kept the write lock for longer than the caller could wait; nothing was stored."""


class StorageUnusable(StorageError):
    """This path cannot be a liteq file: a directory, another kind of file, not writable, a network filesystem."""


class StorageTooNew(StorageError):
    """The file was written by a newer liteq than this one; it was left untouched."""


class Directive(Exception):
    """Base of what a task raises to say something about its own job. Not an error."""


class Retry(Directive):
    """Raised by a task: run this job again later, at the cost of an attempt.

    Args:
        delay: seconds (``float``) or ``timedelta`` from now; ``None``: the task's own retry delay.
        eta: or an instant; a naive one is read in the app's ``timezone``.
        reason: kept in the attempt's record.
    """

    def __init__(
        self, delay: float | timedelta | None = None, eta: datetime | None = None, reason: str = "asked to retry"
    ) -> None:
        if delay is not None and eta is not None:
            raise TypeError("Retry takes delay or eta, not both")
        super().__init__(reason)
        self.delay = delay
        self.eta = eta
        self.reason = reason


class Snooze(Directive):
    """Raised by a task: not now; run this job again after ``delay``, at no cost.

    Args:
        delay: seconds (``float``) or ``timedelta`` from now.
        reason: for the log.
    """

    def __init__(self, delay: float | timedelta, reason: str = "snoozed") -> None:
        super().__init__(reason)
        self.delay = delay
        self.reason = reason


class Cancel(Directive):
    """Raised by a task: this job is not needed. Its state becomes ``revoked``.

    Args:
        reason: kept with the job.
    """

    def __init__(self, reason: str = "cancelled by the task") -> None:
        super().__init__(reason)
        self.reason = reason


class Fail(Directive):
    """Raised by a task: give up now, whatever retries are left.

    Args:
        reason: becomes the failure's message.
    """

    def __init__(self, reason: str = "the task gave up") -> None:
        super().__init__(reason)
        self.reason = reason
