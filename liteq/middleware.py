"""Middleware: an app's own code around each enqueue and each execution of a job.

One is a generator function with one ``yield``: what it does before runs before, what it does after, after. ``yield``
gives what came out (the stored Job, or what the task returned) or raises what was raised. So one function wraps plain
functions and coroutines alike; one that has to await something itself is an async generator function.

The first that was registered is the outermost.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from contextvars import Context
from typing import Any, Literal, NamedTuple, cast

from liteq.batches import Receive
from liteq.context import Report, current_job
from liteq.definition import check_headers
from liteq.job import Job, with_headers
from liteq.serializers import Serializer

#: Runs a coroutine to its end, in a context.
RunCoroutine = Callable[[Coroutine[Any, Any, Any], Context], Any]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class MiddlewareCall:
    """What a middleware is told of the call that it wraps.

    Args:
        job: about to be stored (it has no id yet, unless the caller has chosen one), or running.
        headers: the job's. Around an enqueue they may be changed, and are stored as they are at the ``yield``.
        decode: gives the arguments.
        parent: the job in which this one is enqueued; ``None``: it is enqueued outside of any, or runs.
    """

    __slots__ = ("_decode", "_decoded", "headers", "job", "parent")

    def __init__(
        self, job: Job, headers: dict[str, str], decode: Callable[[], Arguments], parent: Job | None = None
    ) -> None:
        self.job = job
        self.headers = headers
        self.parent = parent
        self._decode = decode
        self._decoded: Arguments | None = None

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments, decoded. To be looked at: the task gets its own."""
        return self._arguments()[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments that were passed by name, decoded; without the context ``task``."""
        return self._arguments()[1]

    def _arguments(self) -> Arguments:
        if self._decoded is None:
            self._decoded = self._decode()
        return self._decoded

    def __repr__(self) -> str:
        return f"<MiddlewareCall {self.job.task} job={self.job.id or 'new'}>"


# ── what is registered ───────────────────────────────────────────────────────────────────────────────────


class Layer(NamedTuple):
    """One middleware around one thing."""

    name: str
    function: Callable[[MiddlewareCall], Any]
    is_async: bool


Around = Literal["enqueue", "execute"]
_AROUND: tuple[Around, ...] = ("enqueue", "execute")


def layers_of(target: object) -> dict[Around, Layer]:
    """What an object, or a class of one, wraps with its methods ``enqueue`` and ``execute``.

    Raises:
        TypeError: it has neither, or one is no generator function.
    """
    given = target() if isinstance(target, type) else target
    found: dict[Around, Layer] = {
        around: layer(getattr(given, around), around) for around in _AROUND if hasattr(given, around)
    }
    if not found:
        raise TypeError(
            "app.middleware takes 'enqueue' or 'execute' (as a decorator of a function), or a class or object that has "
            f"methods of these names, not {type(target).__name__} {target!r}"
        )
    return found


def layer(function: object, around: Around) -> Layer:
    """One function as a middleware.

    Raises:
        TypeError: it is no generator function.
    """
    name = getattr(function, "__qualname__", repr(function))
    if around == "execute" and inspect.isasyncgenfunction(function):
        return Layer(name, function, is_async=True)
    if inspect.isgeneratorfunction(function):
        return Layer(name, function, is_async=False)
    if inspect.isasyncgenfunction(function):
        raise TypeError(f"the middleware {name} cannot await around an enqueue, which need not happen in a coroutine")
    raise TypeError(f"the middleware {name} must be a generator function: do something, yield once, do something")


def around_of(name: str) -> Around:
    """What a middleware is to be around, by name.

    Raises:
        TypeError: there is nothing of this name.
    """
    for around in _AROUND:
        if name == around:
            return around
    raise TypeError(f"app.middleware wraps 'enqueue' or 'execute', not {name!r}")


# ── one generator under way ──────────────────────────────────────────────────────────────────────────────


class _Passage:
    """One middleware around one call. `enter`, then `leave` or `fail`; `step` runs each step of the generator."""

    def __init__(self, one: Layer, call: MiddlewareCall) -> None:
        self.name = one.name
        self._generator: Generator[None, Any, Any] = one.function(call)

    def enter(self) -> None:
        try:
            next(self._generator)
        except StopIteration:
            raise self._no_yield() from None

    def leave(self, value: object) -> None:
        try:
            self._generator.send(value)
        except StopIteration:
            return
        self._generator.close()
        raise self._two_yields()

    def fail(self, error: BaseException) -> BaseException:
        """What is to be raised, now that this was: the same, or what the middleware raises instead. It cannot hide
        it."""
        trace = error.__traceback__
        try:
            self._generator.throw(error)
        except StopIteration:
            return error.with_traceback(trace)
        except BaseException as raised:  # noqa: BLE001 - whatever it is, it goes on
            return error.with_traceback(trace) if _is_same(raised, error) else raised
        self._generator.close()
        return self._two_yields()

    def _no_yield(self) -> RuntimeError:
        return RuntimeError(f"the middleware {self.name} ended without a yield, so what it is around did not happen")

    def _two_yields(self) -> RuntimeError:
        return RuntimeError(f"the middleware {self.name} yielded twice; it must yield once")


class _AsyncPassage:
    """The same for an async generator."""

    def __init__(self, one: Layer, call: MiddlewareCall) -> None:
        self._plain = _Passage(one, call)
        self._generator: AsyncGenerator[None, Any] = cast(Any, self._plain._generator)

    async def enter(self) -> None:
        try:
            await self._generator.__anext__()
        except StopAsyncIteration:
            raise self._plain._no_yield() from None

    async def leave(self, value: object) -> None:
        try:
            await self._generator.asend(value)
        except StopAsyncIteration:
            return
        await self._generator.aclose()
        raise self._plain._two_yields()

    async def fail(self, error: BaseException) -> BaseException:
        trace = error.__traceback__
        try:
            await self._generator.athrow(error)
        except StopAsyncIteration:
            return error.with_traceback(trace)
        except BaseException as raised:  # noqa: BLE001 - likewise
            return error.with_traceback(trace) if _is_same(raised, error) else raised
        await self._generator.aclose()
        return self._plain._two_yields()


def _is_same(raised: BaseException, error: BaseException) -> bool:
    """Whether this is what was thrown in; a generator wraps a StopIteration on its way out."""
    wrapped = isinstance(raised, RuntimeError) and isinstance(error, StopIteration | StopAsyncIteration)
    return raised is error or (wrapped and raised.__cause__ is error)


# ── around an execution ──────────────────────────────────────────────────────────────────────────────────


def through(
    layers: Sequence[Layer], call: MiddlewareCall, body: Callable[[], Any], context: Context, run: RunCoroutine
) -> Any:
    """Run a plain function inside these.

    Args:
        body: called in ``context`` by itself.
        context: in which every step of a middleware is taken, so that the function sees what they set.
        run: for those that are async.
    """
    if not layers:
        return body()
    first = layers[0]
    one: Any = _AsyncPassage(first, call) if first.is_async else _Passage(first, call)
    if first.is_async:
        _refuse_inside_a_loop(first, call)

    def step(method: Callable[..., Any], *given: object) -> Any:
        return run(method(*given), context) if first.is_async else context.run(method, *given)

    step(one.enter)
    try:
        value = through(layers[1:], call, body, context, run)
    except BaseException as error:
        raised = step(one.fail, error)
        if raised is not error:
            raise raised  # noqa: B904 - the middleware says itself what it comes from
        raise
    step(one.leave, value)
    return value


def _refuse_inside_a_loop(one: Layer, call: MiddlewareCall) -> None:
    """In immediate mode a plain task runs in its caller, who may be a coroutine: each step of an async generator would
    have a loop of its own."""
    import asyncio

    if asyncio._get_running_loop() is not None:
        raise RuntimeError(
            f"the middleware {one.name} is async, and cannot be around the plain task {call.job.task} in immediate "
            "mode inside of a running event loop: enqueue it there with aenqueue()"
        )


async def athrough(layers: Sequence[Layer], call: MiddlewareCall, body: Callable[[], Awaitable[Any]]) -> Any:
    """`through` for coroutines: all in the context of the running task."""
    if not layers:
        return await body()
    first = layers[0]
    one: Any = _AsyncPassage(first, call) if first.is_async else _Passage(first, call)
    await _done(one.enter())
    try:
        value = await athrough(layers[1:], call, body)
    except BaseException as error:
        raised = await _done(one.fail(error))
        if raised is not error:
            raise raised  # noqa: B904 - the middleware says itself what it comes from
        raise
    await _done(one.leave(value))
    return value


async def _done(answer: Any) -> Any:
    return await answer if isinstance(answer, Coroutine) else answer


# ── around an enqueue ────────────────────────────────────────────────────────────────────────────────────


class _Receiving:
    """Hands stored jobs to one receiver, then to another function."""

    def __init__(self, receive: Receive, then: Callable[[Sequence[Job]], None]) -> None:
        self._receive = receive
        self._then = then

    def __call__(self, jobs: Sequence[Job]) -> None:
        self._receive(jobs)
        self._then(jobs)

    def places(self) -> Iterable[tuple[int, object]]:
        return self._receive.places()


class Enqueuing:
    """New jobs on their way into the storage, each inside of every middleware. They are stored together, perhaps later.

    Args:
        layers: the outermost first.
        jobs: as they were called for.
        serializer: of their arguments.
        report: called with (what failed, job, error) when a middleware raises although its job is stored already.

    Raises:
        whatever a middleware raises before its ``yield``; then nothing is stored.
    """

    def __init__(self, layers: Sequence[Layer], jobs: Sequence[Job], serializer: Serializer, report: Report) -> None:
        self._report = report
        self._passages: list[list[_Passage]] = []
        #: The jobs with the headers that they have now.
        self.jobs: list[Job] = []
        self._failing(lambda: self.jobs.extend(self._enter(layers, job, serializer) for job in jobs))

    def _enter(self, layers: Sequence[Layer], job: Job, serializer: Serializer) -> Job:
        def decode() -> Arguments:
            args, kwargs = serializer.loads_call(job.payload)
            return tuple(args), kwargs

        before = job.headers
        call = MiddlewareCall(job, dict(before), decode, current_job.get())
        passages: list[_Passage] = []
        self._passages.append(passages)
        for one in layers:
            passage = _Passage(one, call)
            passage.enter()
            passages.append(passage)
        if call.headers == before:
            return job
        return job._replace(options=with_headers(job.options, check_headers(call.headers)))

    def around(self, store: Callable[[], None]) -> None:
        """Call ``store``. What it raises goes through the middleware; if it stores, it tells `receiving`."""
        self._failing(store)

    def _failing(self, do: Callable[[], None]) -> None:
        try:
            do()
        except BaseException as error:
            raised = self._fail(error)
            if raised is not error:
                raise raised  # noqa: B904 - the middleware says itself what it comes from
            raise

    def _fail(self, error: BaseException) -> BaseException:
        passages, self._passages = self._passages, []
        for row in passages:
            for one in reversed(row):
                error = one.fail(error)
        return error

    def receiving(self, receive: Receive) -> Receive:
        """``receive``, and the end of each middleware behind it."""
        return _Receiving(receive, self._end)

    def _end(self, stored: Sequence[Job]) -> None:
        passages, self._passages = self._passages, []
        for job, row in zip(stored, passages, strict=True):
            for one in reversed(row):
                self._leave(one, job)

    def _leave(self, one: _Passage, job: Job) -> None:
        """The job is stored: an error now must not look as if it were not, or it would be enqueued again."""
        try:
            one.leave(job)
        except Exception as error:  # noqa: BLE001 - reported, like a hook's
            self._report(f"middleware {one.name} after the enqueue", job, error)
