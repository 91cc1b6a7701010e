"""What a task is, apart from being callable: its name, its function and its checked options.

`Definition` is what the consumer and the workers look up by name; `Task` (in `liteq.task`) is what the user calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from liteq import gates
from liteq.errors import ConfigurationError
from liteq.gates import Need
from liteq.instants import positive_seconds, within_reach
from liteq.job import HEADERS, Job, with_headers
from liteq.lifecycle import Policy
from liteq.retry import RetryDelay, retry_delay
from liteq.unique import UNIQUE_OPTIONS, Rule, rule_of

if TYPE_CHECKING:
    from liteq.rates import Rate
    from liteq.schedule import Schedule

#: Under which a job carries the value of its task's ``max_running_key``, and of its ``rate_limit_key``.
LIMIT_KEY, RATE_KEY = "limit_key", "rate_key"

#: SQLite's integers.
_LARGEST = 1 << 63

#: Options of a task that one call may override and that travel with its job.
PER_CALL = (
    "retries",
    "retry_delay",
    "retry_backoff",
    "retry_max_delay",
    "retry_jitter",
    "timeout",
    "on_crash",
    "max_crashes",
)

#: Those that travel with each job also where its call does not override them: whoever finds it crashed must know.
CRASH_RULES = ("on_crash", "max_crashes")


class CallKeywords(TypedDict, total=False):
    """What one call may override, as type checkers know it; see ``Task.using``."""

    eta: datetime
    delay: float | timedelta
    priority: int
    queue: str
    id: str
    expires: float | timedelta | datetime
    after: object
    on_failure: Literal["fail", "run"]
    retries: int
    retry_delay: float | timedelta | Sequence[float | timedelta]
    retry_backoff: float
    retry_max_delay: float | timedelta
    retry_jitter: bool
    timeout: float | timedelta
    on_crash: Literal["retry", "fail"]
    max_crashes: int
    headers: Mapping[str, str] | None
    unique: bool | str | Callable[[dict[str, Any]], str] | None
    unique_for: Literal["active", "waiting"] | None
    on_duplicate: Literal["return", "raise", "replace"] | None
    debounce: float | timedelta | None
    debounce_max: float | timedelta | None


class TaskOptions(TypedDict, total=False):
    """The options of a task, as type checkers know them; see ``LiteQ.task``. (``context`` changes the signature.)"""

    name: str
    aliases: Iterable[str]
    queue: str
    priority: int
    retries: int
    retry_delay: float | timedelta | Sequence[float | timedelta]
    retry_backoff: float
    retry_max_delay: float | timedelta
    retry_jitter: bool
    retry_on: type[BaseException] | Iterable[type[BaseException]]
    give_up_on: type[BaseException] | Iterable[type[BaseException]]
    timeout: float | timedelta | None
    expires: float | timedelta | None
    on_crash: Literal["retry", "fail"]
    max_crashes: int
    max_running: int
    max_running_key: str
    rate_limit: str
    rate_limit_key: str
    store_result: bool
    unique: bool | str | Callable[[dict[str, Any]], str] | None
    unique_for: Literal["active", "waiting"] | None
    on_duplicate: Literal["return", "raise", "replace"] | None
    debounce: float | timedelta | None
    debounce_max: float | timedelta | None


@dataclass(frozen=True, slots=True)
class Options:
    """The checked options of one task; see ``LiteQ.task`` for what each means."""

    queue: str = "default"
    priority: int = 0
    policy: Policy = field(default_factory=Policy)
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    give_up_on: tuple[type[BaseException], ...] = ()
    timeout: float | None = None
    expires: float | None = None
    context: bool = False
    store_result: bool = True
    max_running: int | None = None
    max_running_key: str | None = None
    unique: Rule | None = None
    rate_limit: Rate | None = None
    rate_limit_key: str | None = None


class Declarations:
    """The schedules that the code of this program declares, by name; ``changes`` counts what was told."""

    def __init__(self) -> None:
        self.entries: dict[str, Schedule] = {}
        self.changes = 0

    def tell(self, schedule: Schedule) -> None:
        """Declare one, or declare it anew."""
        self.entries[schedule.name] = schedule
        self.changes += 1


@dataclass(frozen=True, slots=True)
class Definition:
    """One registered task.

    Args:
        name: the stored name.
        function: what runs.
        options: checked.
        is_async: the function is ``async def``.
        raw: the options as the user gave them, for overriding single ones.
        locks: what a job needs, besides what ``max_running`` and ``rate_limit`` ask for.
    """

    name: str
    function: Callable[..., Any]
    options: Options
    is_async: bool = False
    raw: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)
    locks: tuple[Need, ...] = ()

    def for_job(self, job: Job) -> Options:
        """The options that hold for this job: the task's, with what the call overrode."""
        if job.options is None:
            return self.options
        return _overridden(self, job.options if f'"{HEADERS}":' not in job.options else with_headers(job.options, {}))

    @property
    def is_limited(self) -> bool:
        """Whether its jobs need anything before they may run."""
        return bool(self.locks) or self.options.max_running is not None or self.options.rate_limit is not None

    def needs(self, job: Job) -> tuple[Need, ...]:
        """What a job needs before it may run, in the order in which it is waited for.

        A job that waits for a gate keeps those before it from others. So those come first that fewer others want: a
        limit with a key before one without, what is the task's own before what it shares; and a token, for which one
        waits for so many seconds, after a slot, for which one may wait for hours.
        """
        options = self.options
        is_keyed = options.max_running_key is not None or options.rate_limit_key is not None
        keys = json.loads(job.options) if is_keyed and job.options is not None else {}
        own: tuple[Need, ...] = ()
        if options.max_running is not None:
            key = None if options.max_running_key is None else keys.get(LIMIT_KEY)
            own = (gates.limit(self.name, options.max_running, key),)
        if options.rate_limit is not None:
            key = None if options.rate_limit_key is None else keys.get(RATE_KEY)
            paced = gates.rate_limit(self.name, options.rate_limit, key)
            own = (paced, *own) if options.rate_limit_key and not options.max_running_key else (*own, paced)
        return own + self.locks


def policy_without_task(job: Job) -> Policy:
    """What holds for a job whose task is not known here: what it carries itself, the defaults otherwise.

    Whether a crashed job may run again is too important to depend on who finds it: a task's ``on_crash`` and
    ``max_crashes`` travel with its jobs where they are not the defaults.
    """
    return Policy() if job.options is None else check_options(overrides(job.options)).policy


def overrides(text: str) -> dict[str, Any]:
    """The task options among what a job carries; the schedule that it comes from is none."""
    return {name: value for name, value in json.loads(text).items() if name in PER_CALL}


@lru_cache(maxsize=1024)  # without headers, which differ from job to job
def _overridden(definition: Definition, text: str | None) -> Options:
    if text is None:
        return definition.options
    given = overrides(text)
    merged = {name: value for name, value in definition.raw.items() if name in PER_CALL} | given
    checked = check_options(merged)
    return replace(definition.options, policy=checked.policy, timeout=checked.timeout)


def check_options(given: Mapping[str, Any]) -> Options:
    """Check the options of a task.

    Raises:
        TypeError: an option does not exist or has the wrong type; the message names it.
        ConfigurationError: an option has a value that makes no sense; likewise.
    """
    unknown = sorted(set(given) - OPTION_NAMES)
    if unknown:
        raise TypeError(f"unknown task option {unknown[0]!r}; the options are {', '.join(sorted(OPTION_NAMES))}")
    timeout, expires = given.get("timeout"), given.get("expires")
    return Options(
        queue=check_name(given.get("queue", "default"), "queue"),
        priority=check_integer(given.get("priority", 0), "priority", least=-_LARGEST),
        policy=_policy(given),
        retry_on=_exceptions(given.get("retry_on", (Exception,)), "retry_on"),
        give_up_on=_exceptions(given.get("give_up_on", ()), "give_up_on"),
        timeout=None if timeout is None else positive_seconds(timeout, "timeout", allow_zero=False),
        expires=None if expires is None else within_reach(positive_seconds(expires, "expires"), "expires"),
        context=_flag(given.get("context", False), "context"),
        store_result=_flag(given.get("store_result", True), "store_result"),
        max_running=_max_running(given),
        max_running_key=_key(given, "max_running_key", "max_running"),
        rate_limit=None if given.get("rate_limit") is None else check_rate(given["rate_limit"]),
        rate_limit_key=_key(given, "rate_limit_key", "rate_limit"),
        unique=rule_of(given),
    )


OPTION_NAMES = frozenset(
    {one.name for one in fields(Options)} - {"policy"}
    | {"retries", "retry_delay", "retry_backoff", "retry_max_delay", "retry_jitter", "on_crash", "max_crashes"}
    | set(UNIQUE_OPTIONS)
)


def _policy(given: Mapping[str, Any]) -> Policy:
    return Policy(
        retries=check_integer(given.get("retries", 0), "retries"),
        retry=_retry(given),
        on_crash=_on_crash(given.get("on_crash", "retry")),
        max_crashes=check_integer(given.get("max_crashes", 3), "max_crashes", least=1),
    )


def _retry(given: Mapping[str, Any]) -> RetryDelay:
    return retry_delay(
        given.get("retry_delay", 0),
        given.get("retry_backoff", 1),
        given.get("retry_max_delay", 3600),
        given.get("retry_jitter", False),
    )


def _max_running(given: Mapping[str, Any]) -> int | None:
    value = given.get("max_running")
    return None if value is None else check_integer(value, "max_running", least=1)


def check_rate(value: object) -> Rate:
    """A rate that is given as text."""
    if not isinstance(value, str):
        raise TypeError(f"rate_limit takes a string such as '10/s', not {type(value).__name__} {value!r}")
    from liteq.rates import parse  # few tasks have one

    return parse(value)


def _key(given: Mapping[str, Any], what: str, of: str) -> str | None:
    """The format string by which a limit counts."""
    value = given.get(what)
    if value is None:
        return None
    if given.get(of) is None:
        raise ConfigurationError(f"{what} says what {of}=... is counted by, and needs that option")
    if not isinstance(value, str):
        raise TypeError(f"{what} takes a string such as '{{user_id}}', not {type(value).__name__} {value!r}")
    if not template_fields(value, what):
        raise ConfigurationError(f"{what} {value!r} names no argument, so all jobs would have the same key")
    return value


def template_fields(template: str, what: str) -> list[str]:
    """The arguments that a format string such as ``"{user_id}"`` names.

    Raises:
        ConfigurationError: it is no such string, or counts arguments instead of naming them.
    """
    from string import Formatter

    try:
        names = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ConfigurationError(f"{what} {template!r} is no format string: {error}") from None
    found = [re.split(r"[.\[]", name, maxsplit=1)[0] for name in names]
    if not all(name.isidentifier() for name in found):
        raise ConfigurationError(f"{what} {template!r} must name arguments, as in '{{user_id}}'")
    return found


def _on_crash(value: object) -> Literal["retry", "fail"]:
    if value == "retry":
        return "retry"
    if value == "fail":
        return "fail"
    raise ConfigurationError(f"on_crash takes 'retry' or 'fail', not {value!r}")


def check_name(value: object, what: str) -> str:
    """A name that can be stored: a non-empty string of at most 255 characters without surrogates or NUL."""
    if not isinstance(value, str):
        raise TypeError(f"{what} takes a string, not {type(value).__name__} {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{what} {value!r} cannot be stored: it holds a lone surrogate") from None
    if not 0 < len(value) <= 255 or "\0" in value:
        raise ConfigurationError(f"{what} must have 1 to 255 characters and no NUL, not {value[:40]!r}")
    return value


#: The most that a job's headers may take, in characters: they are part of each claim, as its options are.
LARGEST_HEADERS = 16 << 10


def check_headers(value: object) -> dict[str, str]:
    """Headers that can be stored: texts by name, without lone surrogates, at most LARGEST_HEADERS together.

    Raises:
        TypeError: they are no mapping of texts to texts. ConfigurationError: they are too long, or cannot be encoded.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"headers takes a dict of texts by name, not {type(value).__name__} {value!r}")
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(f"headers takes texts by name, not {name!r}: {type(text).__name__} {text!r}")
        check_name(name, "the name of a header")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigurationError(f"the header {name!r} cannot be stored: it holds a lone surrogate") from None
    size = sum(len(name) + len(text) for name, text in value.items())
    if size > LARGEST_HEADERS:
        raise ConfigurationError(
            f"the headers have {size:,} characters, and at most {LARGEST_HEADERS:,} are kept: they are for ids and "
            "flags; pass data as arguments"
        )
    return dict(value)


def call_arguments(args: object, kwargs: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What is given as ``args`` and ``kwargs`` of a call; ``None`` is none.

    Raises:
        TypeError: not a list, tuple or other iterable, or not a mapping. A text is none: ``args="eur"`` would be three.
    """
    if args is not None and (isinstance(args, str | bytes | Mapping) or not isinstance(args, Iterable)):
        raise TypeError(f"args takes a tuple or list of arguments, not {type(args).__name__} {args!r}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs takes a dict of arguments by name, not {type(kwargs).__name__} {kwargs!r}")
    return tuple(args or ()), dict(kwargs or {})


def check_integer(value: object, what: str, *, least: int = 0) -> int:
    """An integer that SQLite can store, at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} takes an integer, not {type(value).__name__} {value!r}")
    if not least <= value < _LARGEST:
        raise ConfigurationError(f"{what} must be an integer from {least} to {_LARGEST - 1}, not {value}")
    return value


def _flag(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{what} takes True or False, not {type(value).__name__} {value!r}")
    return value


def _exceptions(value: object, what: str) -> tuple[type[BaseException], ...]:
    classes = value if isinstance(value, (tuple, list)) else (value,)
    for one in classes:
        if not (isinstance(one, type) and issubclass(one, BaseException)):
            raise TypeError(f"{what} takes exception classes, not {type(one).__name__} {one!r}")
    return tuple(classes)


def override_text(given: Mapping[str, Any]) -> str | None:
    """The JSON that a job carries of what its call overrides; ``None`` where that is nothing.

    Raises:
        TypeError, ConfigurationError: as `check_options`.
    """
    kept = {name: _plain(value) for name, value in given.items() if name in PER_CALL}
    if not kept:
        return None
    check_options(kept)
    return json.dumps(kept, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value
