"""Task: the decorated function. Calling it stores a job."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta, tzinfo
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar, Unpack, overload

from liteq import plan
from liteq.definition import (
    CRASH_RULES,
    LIMIT_KEY,
    PER_CALL,
    RATE_KEY,
    CallKeywords,
    Definition,
    call_arguments,
    check_headers,
    check_integer,
    check_name,
    override_text,
)
from liteq.engine import Engine
from liteq.errors import ConfigurationError, PayloadTooLarge, SerializationError
from liteq.instants import due_at, in_the_calendar, seconds, timestamp, within_reach
from liteq.job import Job, JobState, shorten, with_headers
from liteq.result import Receiver, Result, ResultGroup
from liteq.unique import UNIQUE_OPTIONS, Rule, overridden, rule_of

if TYPE_CHECKING:  # a program that has no keys and no workflows never loads what they take
    from liteq.keys import KeyOf, UniqueOf
    from liteq.waits import After, Waits
    from liteq.workflow import Signature

_READY = JobState.READY  # a look-up of an enum's member costs 50 ns, and there is one for each job
#: The fields of a Job after `summary`, before anybody has claimed it.
_NOT_CLAIMED = Job(0, "", "", _READY)[12:]
_UNIQUE = Job._fields.index("unique")
_BEFORE_UNIQUE, _AFTER_UNIQUE = Job(0, "", "", _READY)[12:_UNIQUE], Job(0, "", "", _READY)[_UNIQUE + 1 :]

P = ParamSpec("P")
R = TypeVar("R")


class CallOptions(NamedTuple):
    """What one call overrides of its task's options; checked and made storable once, however many jobs follow."""

    eta: datetime | None = None
    delay: float | timedelta | None = None
    priority: int | None = None
    queue: str | None = None
    id: str | None = None
    expires: float | timedelta | datetime | None = None
    headers: Mapping[str, str] | None = None
    after: After | None = None
    on_failure: str | None = None
    again: Mapping[str, Any] = {}  # what it says of `unique` and the like; nobody changes it
    text: str | None = None


class Task(Generic[P, R]):
    """A function that runs as a job. Made by ``@app.task``; calling it enqueues and returns a Result.

    Args:
        engine: gives the app's engine of the moment (``app.immediate`` exchanges it).
        definition: the task.
        call: what calls of this object override.
    """

    def __init__(self, engine: Callable[[], Engine], definition: Definition, call: CallOptions | None = None) -> None:
        update_wrapper(self, definition.function)  # first: a callable object's own attributes must not replace these
        self._engine = engine
        self.definition = definition
        self._call = call or CallOptions()
        self._signature = caller_signature(definition)
        self._names = _positional_names(self._signature)
        self._least, self._most = _positional_range(self._signature)
        # What all jobs of this object have in common, looked up once.
        call, options = self._call, definition.options
        self._name = definition.name
        self._id = call.id or ""
        self._queue = call.queue or options.queue
        self._priority = options.priority if call.priority is None else call.priority
        crash_rules = {name: definition.raw[name] for name in CRASH_RULES if name in definition.raw}
        self._text = override_text(crash_rules | _overrides(call)) if crash_rules else call.text
        if call.headers:
            self._text = with_headers(self._text, call.headers)
        self._keys = _limit_keys(definition, self._signature)
        self._after = None if call.after is None else _waits(call.after, call.on_failure)
        rule = _unique_rule(definition, call)
        self._unique_of = None if rule is None else _unique_of(self._name, self._signature, rule)
        self._debounce = None if rule is None else rule.debounce
        self._unique_by_all = rule is not None and rule.by is True
        times = (call.eta, call.delay, call.expires, options.expires, self._debounce)
        self._timed = any(one is not None for one in times)

    @property
    def name(self) -> str:
        """The stored name."""
        return self.definition.name

    # ── enqueue ──────────────────────────────────────────────────────────────────────────────────────

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Result[R]:
        """Enqueue a call of the task.

        Raises:
            TypeError: the function does not take these arguments.
            SerializationError: an argument cannot be stored; the message names it. PayloadTooLarge: all of them have
                more bytes than the app's ``max_payload``.
            StorageError: nothing was stored.
        """
        engine = self._engine()
        result: Result[R] = Result(engine)
        job = self.job(engine, args, kwargs)
        engine.enqueue((job,), Receiver((result,)), None if self._after is None else self._plan(engine, 1))
        return result

    enqueue = __call__

    async def aenqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> Result[R]:
        """`enqueue` for coroutines: the event loop goes on while the job is being stored."""
        import asyncio

        return await asyncio.to_thread(self.__call__, *args, **kwargs)

    def map(self, calls: Iterable[Any]) -> ResultGroup[R]:
        """Enqueue many calls in one transaction.

        Args:
            calls: a tuple is the arguments of one call, anything else its one argument.
        """
        engine = self._engine()
        job = self.job
        jobs = [job(engine, one, {}) if type(one) is tuple else job(engine, *_as_call(one)) for one in calls]
        if self._call.id is not None and len(jobs) > 1:
            raise TypeError("map() over a task with id=... would store one job only; leave the id out")
        results: list[Result[R]] = [Result(engine) for _ in jobs]
        engine.enqueue(jobs, Receiver(results), self._plan(engine, len(jobs)))
        return ResultGroup(results)

    async def amap(self, calls: Iterable[Any]) -> ResultGroup[R]:
        """`map` for coroutines."""
        import asyncio

        return await asyncio.to_thread(self.map, calls)

    def schedule(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        eta: datetime | None = None,
        delay: float | timedelta | None = None,
        priority: int | None = None,
        retries: int | None = None,
        retry_delay: Any = None,
        expires: float | timedelta | datetime | None = None,
        timeout: float | timedelta | None = None,
        queue: str | None = None,
        id: str | None = None,  # noqa: A002 - huey's spelling, and the word users look for
    ) -> Result[R]:
        """Enqueue a call with its own time and options (huey's form); `using` is the same in two steps.

        Args:
            args, kwargs: the call's arguments.
            eta: when; a naive datetime is read in the app's ``timezone``.
            delay: or in how many seconds (or timedelta).
            expires: not started by then (seconds from now, timedelta or datetime): not at all.
            id: the caller's own id: enqueuing one that exists stores nothing and returns its Result.
            priority, retries, retry_delay, timeout, queue: instead of the task's own.
        """
        options = {
            "eta": eta,
            "delay": delay,
            "priority": priority,
            "retries": retries,
            "retry_delay": retry_delay,
            "expires": expires,
            "timeout": timeout,
            "queue": queue,
            "id": id,
        }
        given = {name: value for name, value in options.items() if value is not None}
        positional, named = call_arguments(args, kwargs)
        return self.using(**given)(*positional, **named)

    def using(self, **options: Unpack[CallKeywords]) -> Task[P, R]:
        """The same task with other defaults: ``add.using(delay=10, priority=5)(1, 2)``.

        Args:
            options: ``eta``, ``delay``, ``priority``, ``queue``, ``id``, ``expires``, ``retries``, ``retry_delay``,
                ``retry_backoff``, ``retry_max_delay``, ``retry_jitter``, ``timeout``, ``on_crash``, ``max_crashes``,
                ``headers`` (texts by name, which travel beside the arguments), ``unique``, ``unique_for``,
                ``on_duplicate``, ``debounce``, ``debounce_max`` (``None`` undoes the task's own); ``after``: Results,
                ResultGroups or ids of the jobs that must end first, and ``on_failure``: if one does not succeed,
                ``"fail"`` (the default), or ``"run"`` all the same.

        Raises:
            TypeError: an option does not exist or has the wrong type. ConfigurationError: it makes no sense.
        """
        return Task(self._engine, self.definition, _checked_call(self._call, dict(options)))

    @overload
    def s(self) -> Signature[R]: ...
    @overload
    def s(self, /, *args: P.args, **kwargs: P.kwargs) -> Signature[R]: ...
    def s(self, /, *args: Any, **kwargs: Any) -> Signature[R]:  # type: ignore[misc]  # the slash, says mypy
        """This call, not enqueued yet: for ``app.enqueue``, workflows and schedules.

        In a workflow, the result of the step before is appended to these arguments; whether they are all is seen when
        it is enqueued.
        """
        return self._follow_up(args, kwargs)

    def si(self, /, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """As `s`, but in a workflow the result of the step before is not appended."""
        from liteq.workflow import Signature

        self._bind(args, kwargs)
        return Signature(self, args, kwargs, takes=False)

    def _follow_up(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Signature[R]:
        """A call that lacks an argument, perhaps: the result of the step before."""
        from liteq.workflow import Signature

        try:
            self._signature.bind_partial(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}{self._signature}: {error}") from None
        return Signature(self, args, kwargs)

    def _belongs_to(self, engine: Engine) -> bool:
        """Whether this is a task of the app whose engine this is."""
        return self._engine() is engine

    def job(self, engine: Engine, args: tuple[Any, ...], kwargs: dict[str, Any], more: int = 0) -> Job:
        """The Job that stands for this call; not stored.

        Args:
            more: how many arguments will be appended to these when it runs.
        """
        if more and self._unique_by_all:
            raise ConfigurationError(
                f"{self.name} was not enqueued: it is unique by its arguments, and in this workflow the last one is a "
                f"result that is not known yet. Give it a key (unique='...'), or let it take no result: "
                f"{self.name}.si(...)"
            )
        if more or kwargs or not self._least <= len(args) <= self._most:
            self._bind(args, kwargs, more)  # takes 5 µs; most calls are too plain to go wrong
        serializer = engine.runtime.serializer
        try:
            payload = serializer.dumps_call(args, kwargs, self._names)
        except SerializationError as error:
            raise SerializationError(f"{self.name} was not enqueued: {error}") from error
        if len(payload) > engine.runtime.max_payload:
            what = f"{self.name} was not enqueued, its arguments are too large"
            raise PayloadTooLarge(what, len(payload), engine.runtime.max_payload)
        now = engine.clock.now()
        due, expires = self._times(now, engine.timezone) if self._timed else (None, None)
        text = _with_keys(self._text, self._keys, args, kwargs) if self._keys else self._text
        summary = None if serializer.readable else _summary(args, kwargs)
        call = (0, self._id, self._name, _READY, self._queue, self._priority, payload, now, due, expires, text, summary)
        if self._unique_of is None:
            return tuple.__new__(Job, call + _NOT_CLAIMED)  # the constructor costs three times as much
        unique = self._unique_of(args, kwargs, serializer, payload)
        return tuple.__new__(Job, (*call, *_BEFORE_UNIQUE, unique, *_AFTER_UNIQUE))

    def _plan(self, engine: Engine, number: int) -> plan.Plan | None:
        """What so many calls made now wait for, if anything."""
        return None if self._after is None else self._after.plan(engine, self.name, number, self._terms(None), self._id)

    def _terms(self, shape: str | None) -> plan.Terms:
        """What holds for a call that waits for other jobs."""
        call = self._call
        expires = self.definition.options.expires if call.expires is None else call.expires
        lasts = None if expires is None or isinstance(expires, datetime) else seconds(expires, "expires")
        return plan.Terms(shape, None if call.delay is None else seconds(call.delay, "delay"), lasts)

    @property
    def _rule(self) -> plan.Rule | None:
        """Which ends of the jobs that it waits for let it run, if the call says so."""
        if self._call.on_failure is None:
            return None
        from liteq.waits import check_on_failure

        return check_on_failure(self._call.on_failure)

    def _times(self, now: float, zone: tzinfo) -> tuple[float | None, float | None]:
        """When a call made now is due, and when it expires."""
        call = self._call
        expires = self.definition.options.expires if call.expires is None else call.expires
        due = due_at(now, zone, eta=call.eta, delay=call.delay if self._debounce is None else self._debounce)
        # One that lies in the past already has just passed: that is where consumers look for it.
        return due, None if expires is None else max(now, _expiry(expires, now, zone))

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any], more: int = 0) -> None:
        try:
            self._signature.bind(*args, *[None] * more, **kwargs)
        except TypeError as error:
            hint = (
                ". In this workflow the result of the step before is its last positional argument; "
                f"{self.name}.si(...) takes none"
            )
            raise TypeError(f"{self.name}{self._signature}: {error}{hint if more else ''}") from None

    # ── run here ─────────────────────────────────────────────────────────────────────────────────────

    def call_local(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now, as if it were not a task. An ``async def`` one gives its coroutine."""
        return self.definition.function(*args, **kwargs)  # type: ignore[no-any-return]

    # ── every call of this task ──────────────────────────────────────────────────────────────────────

    def revoke(self, until: datetime | None = None, once: bool = False) -> None:
        """Revoke every call of this task, waiting or to come: each is skipped when its turn comes.

        Args:
            until: only calls whose turn comes before this instant.
            once: only the next one.
        """
        engine = self._engine()
        engine.revoke_task(self.name, None if until is None else timestamp(until, engine.timezone, "until"), once)

    def restore(self) -> bool:
        """Undo `revoke`; False if the task was not revoked."""
        return self._engine().restore_task(self.name)

    def is_revoked(self) -> bool:
        """Whether calls of this task are skipped now."""
        return self._engine().is_task_revoked(self.name)

    def __reduce__(self) -> str:
        return str(getattr(self, "__qualname__", self.name))  # by reference, as a function is pickled

    def __repr__(self) -> str:
        return f"<Task {self.name}>"


def lasting(task: Task[Any, Any]) -> float | None:
    """The seconds after which each job of a schedule of this task expires, ``None``: never.

    Raises:
        TypeError: the call has options that only a single job can have.
    """
    call = task._call
    named = {"eta": call.eta, "delay": call.delay, "id": call.id, "after": call.after, "on_failure": call.on_failure}
    for what, value in {**named, "debounce": task._debounce}.items():
        if value is not None:
            raise TypeError(f"{what} is not for schedules: the trigger says when, and each slot has its own id")
    expires = task.definition.options.expires if call.expires is None else call.expires
    if isinstance(expires, datetime):
        raise TypeError("expires takes seconds in a schedule: each of its jobs expires so long after its slot")
    return None if expires is None else seconds(expires, "expires")


def caller_signature(definition: Definition) -> inspect.Signature:
    """The function's signature as a caller sees it: the context is passed by the worker."""
    signature = inspect.signature(definition.function)
    if not definition.options.context:
        return signature
    _check_takes_context(definition.name, signature)
    kept = [one for name, one in signature.parameters.items() if name != "task"]
    return signature.replace(parameters=kept)


def _limit_keys(definition: Definition, signature: inspect.Signature) -> dict[str, KeyOf]:
    """How a call's ``max_running_key`` and ``rate_limit_key`` are found, by the name under which its job carries them.

    Raises:
        ConfigurationError: it names an argument that the function does not have.
    """
    options = definition.options
    if options.max_running_key is None and options.rate_limit_key is None:
        return {}
    from liteq.keys import template_key  # few tasks have any keys

    templates = (
        (LIMIT_KEY, "max_running_key", options.max_running_key),
        (RATE_KEY, "rate_limit_key", options.rate_limit_key),
    )
    return {
        stored: template_key(definition.name, signature, template, what)
        for stored, what, template in templates
        if template is not None
    }


def _unique_of(name: str, signature: inspect.Signature, rule: Rule) -> UniqueOf:
    from liteq.keys import unique_of

    return unique_of(name, signature, rule)


def _unique_rule(definition: Definition, call: CallOptions) -> Rule | None:
    """How this object's jobs are kept unique: as the task says, or as its calls override it.

    Raises:
        TypeError, ConfigurationError: what they say together makes no sense.
    """
    if not call.again:
        rule = definition.options.unique
    else:
        own = {name: definition.raw[name] for name in UNIQUE_OPTIONS if name in definition.raw}
        rule = rule_of(overridden(own, call.again))
    for what, value in (("eta", call.eta), ("delay", call.delay)):
        if value is not None and rule is not None and rule.debounce is not None:
            raise ConfigurationError(
                f"{what} and debounce of {definition.name} both say when the job is due; give one of them, or "
                f"using(debounce=None, {what}=...)"
            )
    return rule


def _with_keys(text: str | None, keys: dict[str, KeyOf], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What a job carries, with the values by which its limits count."""
    values = {name: key(args, kwargs) for name, key in keys.items()}
    return json.dumps({**({} if text is None else json.loads(text)), **values}, separators=(",", ":"))


def _check_takes_context(name: str, signature: inspect.Signature) -> None:
    """Refuse a function that could not be called with the context as keyword ``task`` after a caller's arguments."""
    parameters = signature.parameters.values()
    own = signature.parameters.get("task")
    positional = [one for one in parameters if one.kind not in (one.KEYWORD_ONLY, one.VAR_KEYWORD)]
    if own is None:
        takes_it = any(one.kind is one.VAR_KEYWORD for one in parameters)
    else:
        takes_it = own.kind is own.KEYWORD_ONLY or (own.kind is own.POSITIONAL_OR_KEYWORD and positional[-1] is own)
    if not takes_it:
        raise TypeError(
            f"{name}{signature}: context=True passes the job's context as keyword 'task', which this function cannot "
            "take; let it be the last parameter, or by keyword only: def f(a, b, *, task)"
        )


def _positional_names(signature: inspect.Signature) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(name for name, one in signature.parameters.items() if one.kind in kinds)


def _positional_range(signature: inspect.Signature) -> tuple[int, float]:
    """How many arguments a call may have if all are positional; an empty range if it must name some."""
    least, most = 0, 0.0
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            most = float("inf")
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            most += 1
            least += parameter.default is parameter.empty
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            return 1, 0.0
    return least, most


def _as_call(one: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (one if isinstance(one, tuple) else (one,)), {}


def _checked_call(call: CallOptions, options: dict[str, Any]) -> CallOptions:
    unknown = sorted(set(options) - {*_DIRECT, *PER_CALL, *UNIQUE_OPTIONS})
    if unknown:
        raise TypeError(
            f"unknown option {unknown[0]!r}; a call takes {', '.join((*_DIRECT, *PER_CALL, *UNIQUE_OPTIONS))}"
        )
    direct = {name: value for name, value in options.items() if name in _DIRECT}
    if direct.get("queue") is not None:
        check_name(direct["queue"], "queue")
    if direct.get("id") is not None:
        check_name(direct["id"], "id")
    if direct.get("priority") is not None:
        check_integer(direct["priority"], "priority", least=-(1 << 63))
    if direct.get("headers") is not None:
        direct["headers"] = check_headers(direct["headers"])
    if direct.get("after") is not None or direct.get("on_failure") is not None:
        direct |= _checked_waits(direct)
    due_at(0.0, _utc(), eta=direct.get("eta"), delay=direct.get("delay"))
    if direct.get("expires") is not None:
        _expiry(direct["expires"], 0.0, _utc())
    if direct.get("delay") is not None:
        direct["eta"] = None
    elif direct.get("eta") is not None:
        direct["delay"] = None
    later = {name: value for name, value in options.items() if name in PER_CALL}
    again = {name: value for name, value in options.items() if name in UNIQUE_OPTIONS}
    return call._replace(**direct, again={**call.again, **again}, text=override_text(_overrides(call) | later))


#: The options of a call that are kept as they are given.
_DIRECT = tuple(name for name in CallOptions._fields if name not in ("again", "text"))


def _waits(after: After, on_failure: str | None) -> Waits:
    from liteq.waits import Waits

    return Waits(after, on_failure)


def _checked_waits(direct: dict[str, Any]) -> dict[str, Any]:
    """``after`` as it is kept, and ``on_failure``, if they are given."""
    from liteq.waits import check_after, check_on_failure

    if direct.get("on_failure") is not None:
        check_on_failure(direct["on_failure"])
    return {"after": check_after(direct["after"])} if direct.get("after") is not None else {}


def _overrides(call: CallOptions) -> dict[str, Any]:
    return {} if call.text is None else dict(json.loads(call.text))


def _utc() -> tzinfo:
    from datetime import UTC

    return UTC


def _expiry(expires: float | timedelta | datetime, now: float, zone: tzinfo) -> float:
    if isinstance(expires, datetime):
        return in_the_calendar(timestamp(expires, zone, "expires"), "expires", expires)
    return now + within_reach(seconds(expires, "expires"), "expires")


def _summary(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    words = [shorten(repr(one), 60) for one in args]
    words += [f"{name}={shorten(repr(value), 60)}" for name, value in kwargs.items()]
    return shorten(", ".join(words)).encode("utf-8", "backslashreplace").decode()
