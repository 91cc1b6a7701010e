"""Run one claimed job to its Outcome: decode, call under a deadline, encode. The same in every kind of worker.

Nothing raised by a task or a hook gets past `execute`; only what stops the worker itself does (see `Stopped`).
`execute_async` is its twin for a loop on which many jobs run at once.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import TYPE_CHECKING, Any, Protocol

from liteq import plan
from liteq.clock import Clock
from liteq.context import Channel, Report, TaskContext, current_job, suspension_of
from liteq.definition import Definition, Options
from liteq.errors import (
    Cancel,
    Directive,
    EventTimeout,
    Fail,
    PayloadTooLarge,
    RateLimitExceeded,
    Retry,
    SerializationError,
    Snooze,
    TaskTimeout,
)
from liteq.gates import NeedsOf
from liteq.instants import seconds, timestamp, within_reach
from liteq.job import Ending, Job, Outcome
from liteq.lifecycle import storable
from liteq.serializers import Serializer
from liteq.storage.base import Storage

if TYPE_CHECKING:
    import asyncio

    from liteq.middleware import Layer
    from liteq.steps import Steps, Suspended
    from liteq.transactions import OwnTransaction

#: What is kept of a message and of a traceback, in characters.
LONGEST_MESSAGE = 4_000
LONGEST_TRACEBACK = 50_000


_SUCCEEDED = Ending.SUCCEEDED
#: The fields of an Outcome after `result` where nothing went wrong.
_NO_ERROR = Outcome(0, 0, _SUCCEEDED, 0.0, 0.0)[6:]


class Interrupted(BaseException):
    """Put into a worker thread whose consumer stops; not an Exception, so that tasks do not catch it by mistake."""


class Deadline(Protocol):
    """How a kind of worker stops a body that runs too long, or is not wanted any more."""

    @property
    def passes_on(self) -> tuple[type[BaseException], ...]:
        """What is not the task's to raise, but its caller's to hear."""
        ...

    @property
    def interrupted(self) -> bool:
        """Whether the body was told to stop because its consumer stops or the job was revoked."""
        ...

    def start(self, timeout: float | None, *, raises: bool) -> None:
        """The body begins. With ``raises``, TaskTimeout is to be raised in this thread after ``timeout`` seconds."""
        ...

    def stop(self) -> None:
        """The body is over: nothing may be raised in this thread after this returns."""
        ...

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        """How to end a coroutine, from any thread."""
        ...


class NoDeadline:
    """For callers that cannot be interrupted: immediate mode."""

    interrupted = False
    passes_on = (KeyboardInterrupt,)

    def start(self, timeout: float | None, *, raises: bool) -> None:
        return None

    def stop(self) -> None:
        return None

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        return None


#: The default of LiteQ(max_payload=...), in bytes. SQLite takes a thousand times as much, and so may a worker's memory;
#: what is larger than this is nearly always a mistake, such as a whole file instead of its path.
MAX_PAYLOAD = 64 << 20


@dataclass(slots=True)
class Runtime:
    """What a worker needs of an app.

    Args:
        tasks: every registered task by stored name, aliases included.
        serializer: of payloads and results.
        storage: for what a running job records.
        clock: the app's.
        timezone: in which naive datetimes are read.
        before, after: the pre_execute and post_execute hooks.
        report: called with (what failed, job, error) when a hook raises.
        transact: opens a running job's own transaction.
        limited: what jobs of a task need before they may run, by stored name; tasks that need nothing are not in it.
        around_enqueue, around_execute: the middleware, the outermost first.
        on_startup, on_shutdown: called once in each process that runs jobs.
        max_payload: how many bytes a call's arguments, a result, and what is sent with an event may have.
    """

    tasks: dict[str, Definition]
    serializer: Serializer
    storage: Storage
    clock: Clock
    timezone: tzinfo
    report: Report
    transact: Callable[[Job], OwnTransaction]
    before: list[Callable[[Job], Any]] = field(default_factory=list)
    after: list[Callable[[Job, Any, BaseException | None], Any]] = field(default_factory=list)
    limited: dict[str, NeedsOf] = field(default_factory=dict)
    around_enqueue: list[Layer] = field(default_factory=list)
    around_execute: list[Layer] = field(default_factory=list)
    on_startup: list[Callable[[], Any]] = field(default_factory=list)
    on_shutdown: list[Callable[[], Any]] = field(default_factory=list)
    max_payload: int = MAX_PAYLOAD

    def steps(self, job: Job) -> Steps:
        """The steps of a job that runs here."""
        from liteq.steps import Steps  # few tasks have any

        return Steps(job, self.storage, self.serializer, self.clock, self.max_payload)


def execute(job: Job, runtime: Runtime, channel: Channel, deadline: Deadline) -> Outcome:
    """Run one claimed job in this thread.

    Args:
        job: running; its payload is decoded here and nowhere else.
        runtime: the app's tasks, serializer, clock and hooks.
        channel: to the consumer.
        deadline: how this kind of worker enforces a timeout.

    Returns:
        How it ended. ``Outcome.result`` is encoded.
    """
    started = runtime.clock.now()
    definition = runtime.tasks.get(job.task)
    if definition is None:
        return Outcome(job.seq, job.claim, Ending.UNKNOWN, started, started)
    options = definition.for_job(job)
    own = _context(job, options, runtime, channel) if options.context else None
    try:
        value = _run(job, definition, options, runtime, own, deadline)
        result = None if value is None or not options.store_result else runtime.serializer.dumps(value)
        if result is not None and len(result) > runtime.max_payload:
            raise PayloadTooLarge(
                f"what {job.task} returned is too large to be stored", len(result), runtime.max_payload
            )
        # Not through the constructor, which costs three times as much.
        ended = (job.seq, job.claim, _SUCCEEDED, started, runtime.clock.now(), result) + _NO_ERROR  # noqa: RUF005 - faster
        outcome: Outcome = tuple.__new__(Outcome, ended)
        return outcome if own is None else own.settle(outcome)
    except BaseException as error:
        if not isinstance(error, deadline.passes_on):
            deadline.stop()  # again: a deadline that came while it was being stopped has left it half done
        if own is not None:
            own.abandon()
        if isinstance(error, deadline.passes_on):
            raise
        return _failed(job, options, runtime, started, error, deadline.interrupted)


def _run(
    job: Job, definition: Definition, options: Options, runtime: Runtime, own: TaskContext | None, deadline: Deadline
) -> Any:
    """The body between its hooks."""
    args, kwargs = _arguments(job, runtime.serializer)
    function = definition.function
    context = contextvars.copy_context()
    if runtime.around_execute:
        function = _wrapped(job, definition, args, kwargs, runtime, context)
    if own is not None:
        kwargs["task"] = own
    context.run(current_job.set, job)
    if runtime.before:
        _before(job, runtime)
    error: BaseException | None = None
    value: Any = None
    try:
        try:
            deadline.start(options.timeout, raises=not definition.is_async)
            if definition.is_async:
                body = _timed(function(*args, **kwargs), options.timeout, deadline)
                value = _run_coroutine(body, context)
            elif runtime.around_execute:
                value = function(*args, **kwargs)
            else:
                value = context.run(function, *args, **kwargs)
        finally:
            try:
                deadline.stop()
            except BaseException:
                deadline.stop()  # what struck as it began has left it undone, and the hooks are not the body
                raise
        if own is not None:
            _hold_suspended(own)
    except BaseException as raised:
        error = raised
        raise
    finally:
        if runtime.after:
            _after(job, runtime, value, error)
    return value


async def execute_async(job: Job, runtime: Runtime, channel: Channel, deadline: Deadline) -> Outcome:
    """Run one claimed job of an async task on the running loop, in an asyncio task and a context of its own.

    Args, Returns:
        as `execute`.
    """
    started = runtime.clock.now()
    definition = runtime.tasks.get(job.task)
    if definition is None:
        return Outcome(job.seq, job.claim, Ending.UNKNOWN, started, started)
    options = definition.for_job(job)
    own = _context(job, options, runtime, channel) if options.context else None
    try:
        value = await _run_async(job, definition, options, runtime, own, deadline)
        result = None if value is None or not options.store_result else runtime.serializer.dumps(value)
        if result is not None and len(result) > runtime.max_payload:
            raise PayloadTooLarge(
                f"what {job.task} returned is too large to be stored", len(result), runtime.max_payload
            )
        outcome = Outcome(job.seq, job.claim, _SUCCEEDED, started, runtime.clock.now(), result)
        return outcome if own is None else own.settle(outcome)
    except BaseException as error:  # noqa: BLE001 - as in `execute`
        deadline.stop()
        if own is not None:
            own.abandon()
        return _failed(job, options, runtime, started, error, deadline.interrupted)


async def _run_async(
    job: Job, definition: Definition, options: Options, runtime: Runtime, own: TaskContext | None, deadline: Deadline
) -> Any:
    """The body between its hooks. The context is this asyncio task's own already."""
    args, kwargs = _arguments(job, runtime.serializer)
    function = definition.function
    if runtime.around_execute:
        function = _wrapped(job, definition, args, kwargs, runtime)
    if own is not None:
        kwargs["task"] = own
    current_job.set(job)
    if runtime.before:
        _before(job, runtime)
    error: BaseException | None = None
    value: Any = None
    try:
        try:
            deadline.start(options.timeout, raises=False)
            value = await _timed(function(*args, **kwargs), options.timeout, deadline)
        finally:
            deadline.stop()
        if own is not None:
            _hold_suspended(own)
    except BaseException as raised:
        error = raised
        raise
    finally:
        if runtime.after:
            _after(job, runtime, value, error)
    return value


def _arguments(job: Job, serializer: Serializer) -> tuple[Any, dict[str, Any]]:
    try:
        args, kwargs = serializer.loads_call(job.payload)
        if job.inputs is not None:
            args = (*args, *plan.arguments(job.inputs, serializer.loads))
        return args, kwargs
    except (SerializationError, plan.ResultGone) as error:
        raise _Undecodable(f"the arguments of job {job.id} cannot be read, so it can never run: {error}") from error


class _Undecodable(SerializationError):
    """The payload itself is bad: another attempt would read the same bytes."""


def _context(job: Job, options: Options, runtime: Runtime, channel: Channel) -> TaskContext:
    failures = job.attempt - job.base - job.crashes - 1
    ends = None if options.timeout is None else runtime.clock.monotonic() + options.timeout
    left = max(0, options.policy.retries - failures)
    return TaskContext(job, left, ends, channel, runtime.clock, runtime.steps, runtime.transact)


def _hold_suspended(context: TaskContext) -> None:
    """A function that was told to end because its job sleeps, and has swallowed that, has not succeeded."""
    suspended = suspension_of(context)
    if suspended is not None:
        raise suspended


def _wrapped(
    job: Job,
    definition: Definition,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    runtime: Runtime,
    context: contextvars.Context | None = None,
) -> Callable[..., Any]:
    """The task's function inside of the app's middleware; one that is not async enters ``context`` by itself."""
    from liteq.middleware import MiddlewareCall, athrough, through

    function, layers = definition.function, runtime.around_execute
    seen = tuple(args), dict(kwargs)  # without the context that is added to them later
    call = MiddlewareCall(job, job.headers, lambda: seen)

    def run(*args: Any, **kwargs: Any) -> Any:
        if definition.is_async or context is None:
            return athrough(layers, call, lambda: function(*args, **kwargs))
        return through(layers, call, lambda: context.run(function, *args, **kwargs), context, _run_coroutine)

    return run


# ── async tasks ──────────────────────────────────────────────────────────────────────────────────────────

_local = threading.local()


def _loop_runner() -> asyncio.Runner:
    """This thread's event loop, kept from job to job so that clients and pools made on it stay usable."""
    runner: asyncio.Runner | None = getattr(_local, "runner", None)
    if runner is None:
        import asyncio

        runner = _local.runner = asyncio.Runner()
    return runner


def close_loop() -> None:
    """Close this thread's event loop, if it has one and none is running here. Called by a worker thread at its end."""
    runner: asyncio.Runner | None = getattr(_local, "runner", None)
    if runner is None:
        return
    import asyncio

    if asyncio._get_running_loop() is None:
        _local.runner = None
        runner.close()


def _run_coroutine(body: Coroutine[Any, Any, Any], context: contextvars.Context) -> Any:
    import asyncio

    if asyncio._get_running_loop() is None:
        return _loop_runner().run(body, context=context)
    # Immediate mode, called from a coroutine: the loop of this thread is the caller's and stands still meanwhile.
    from concurrent.futures import ThreadPoolExecutor

    def run() -> Any:
        with asyncio.Runner() as runner:
            return runner.run(body, context=context)

    with ThreadPoolExecutor(1, "liteq-immediate") as thread:
        return thread.submit(run).result()


async def _timed(body: Coroutine[Any, Any, Any], timeout: float | None, deadline: Deadline) -> Any:
    import asyncio

    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is not None:
        deadline.on_cancel(lambda: loop.call_soon_threadsafe(task.cancel))
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            return await body
    except TimeoutError:
        if limit.expired():
            raise TaskTimeout(f"the task ran longer than its timeout of {timeout:g} s") from None
        raise


# ── hooks ────────────────────────────────────────────────────────────────────────────────────────────────


def _before(job: Job, runtime: Runtime) -> None:
    """Call the pre_execute hooks. One that raises Cancel (or another directive) decides; other errors are reported."""
    for hook in runtime.before:
        try:
            hook(job)
        except Directive:
            raise
        except Exception as error:  # noqa: BLE001 - a hook's error must not cost the job an attempt
            runtime.report(f"pre_execute hook {_name(hook)}", job, error)


def _after(job: Job, runtime: Runtime, value: Any, error: BaseException | None) -> None:
    for hook in runtime.after:
        try:
            hook(job, value, error)
        except Exception as problem:  # noqa: BLE001 - likewise
            runtime.report(f"post_execute hook {_name(hook)}", job, problem)


def _name(hook: Callable[..., Any]) -> str:
    return getattr(hook, "__qualname__", repr(hook))


# ── what was raised ──────────────────────────────────────────────────────────────────────────────────────


def _failed(
    job: Job, options: Options, runtime: Runtime, started: float, error: BaseException, interrupted: bool
) -> Outcome:
    finished = runtime.clock.now()
    outcome = Outcome(job.seq, job.claim, Ending.FAILED, started, finished)
    if (suspended := _suspended(error)) is not None:
        delay = None if suspended.until is None else max(0.0, suspended.until - finished)
        return outcome._replace(ending=Ending.SUSPENDED, delay=delay, awaits=suspended.event)
    if isinstance(error, Interrupted) or (interrupted and not isinstance(error, Exception)):
        return outcome._replace(ending=Ending.INTERRUPTED)
    if isinstance(error, Directive):
        try:
            return _directed(outcome, error, runtime, finished)
        except (TypeError, ValueError) as problem:  # Retry("soon"): the directive itself is wrong
            error = problem
    if isinstance(error, RateLimitExceeded) and error.retry:
        back = outcome._replace(ending=Ending.SNOOZED, delay=max(0.0, error.delay))
        return back._replace(error_type=type(error).__name__, message=storable(str(error))[:LONGEST_MESSAGE])
    return outcome._replace(
        ending=Ending.TIMEOUT if isinstance(error, TaskTimeout) else Ending.FAILED,
        retryable=is_retryable(error, options),
        **_described(error, options.timeout),
    )


def _suspended(error: BaseException) -> Suspended | None:
    """What ends this run because the job sleeps or waits; also out of a TaskGroup, which wraps what leaves it."""
    if isinstance(error, Exception):
        return None
    from liteq.steps import Suspended

    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, Suspended) else None


def _directed(outcome: Outcome, directive: Directive, runtime: Runtime, now: float) -> Outcome:
    message = storable(str(directive))[:LONGEST_MESSAGE]
    outcome = outcome._replace(error_type=type(directive).__name__, message=message)
    match directive:
        case Retry(delay=delay, eta=eta):
            if eta is not None:
                wait: float | None = _wait(timestamp(eta, runtime.timezone, "Retry(eta=...)") - now, "Retry(eta=...)")
            else:
                wait = None if delay is None else _wait(seconds(delay, "Retry(delay=...)"), "Retry(delay=...)")
            return outcome._replace(ending=Ending.RETRY, delay=wait)
        case Snooze(delay=delay):
            return outcome._replace(
                ending=Ending.SNOOZED, delay=_wait(seconds(delay, "Snooze(delay)"), "Snooze(delay)")
            )
        case Cancel():
            return outcome._replace(ending=Ending.CANCELLED)
        case Fail():
            return outcome._replace(ending=Ending.GAVE_UP)
    raise TypeError(f"{type(directive).__name__} is not a directive that liteq knows")


def _wait(delay: float, what: str) -> float:
    return within_reach(max(0.0, delay), what)


def is_retryable(error: BaseException, options: Options) -> bool:
    """Whether ``retry_on`` and ``give_up_on`` allow another attempt after this error."""
    if isinstance(error, _Undecodable | EventTimeout):  # which another attempt would be told again
        return False
    # SystemExit and its like are not Exceptions, yet no reason to give up: they count as any other error.
    matches = isinstance(error, options.retry_on) or not isinstance(error, Exception)
    return matches and not isinstance(error, options.give_up_on)


def _described(error: BaseException, timeout: float | None) -> dict[str, Any]:
    import traceback

    kind = type(error)
    if isinstance(error, _Undecodable):
        kind = SerializationError
    plain = kind.__module__ == "builtins" or kind.__module__.startswith("liteq.")
    name = kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"
    try:
        message = str(error)
    except BaseException as problem:  # noqa: BLE001 - an error that cannot say what it is still has to be recorded
        message = f"<str() of the error raised {type(problem).__name__}>"
    if isinstance(error, TaskTimeout) and not message:  # put into the thread as a class, without words
        message = f"the task ran longer than its timeout of {timeout or 0.0:g} s"
    trace = "".join(traceback.format_exception(error.with_traceback(_own_frames_dropped(error))))
    return {
        "error_type": storable(name),
        "message": storable(message)[:LONGEST_MESSAGE],
        "traceback": storable(trace)[-LONGEST_TRACEBACK:],
    }


#: Modules through which every error of a task comes, and that say nothing about it.
_OWN_FRAMES = (__name__, "liteq.middleware", "asyncio.")


def _own_frames_dropped(error: BaseException) -> Any:
    """The traceback from the task's own first frame on; all of it where there is none (a bad payload)."""
    trace = error.__traceback__
    while trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith(_OWN_FRAMES):
        trace = trace.tb_next
    return trace or error.__traceback__
