"""Unique jobs: by which key a call is known again, and what a second one of a key means. Pure.

A key belongs to one task. It is held by at most one unfinished job, and besides that, while a job runs, by one that
follows it. What becomes of a job whose key is held is decided in `liteq.lifecycle.meet`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple, get_args

from liteq.errors import ConfigurationError
from liteq.instants import positive_seconds

Scope = Literal["active", "waiting"]
OnDuplicate = Literal["return", "raise", "replace"]

#: The options of a task, or of a call, that say how its jobs are kept unique.
UNIQUE_OPTIONS = ("unique", "unique_for", "on_duplicate", "debounce", "debounce_max")

#: Under which a schedule carries the `Unique` of its jobs.
UNIQUE_FIELD = "unique"

#: Longer keys are stored by their hash.
LONGEST_KEY = 200

_CENTURY = 36_525 * 86_400.0
_FOLLOWS = "follows job "
_OF_KEY = " of its unique key"


class Unique(NamedTuple):
    """What a new job says of its uniqueness.

    ``scope`` is the option ``unique_for``; ``debounce`` and ``debounce_max`` are seconds. Of a stored job only its key
    is kept, beside it.
    """

    key: str
    scope: Scope = "active"
    on_duplicate: OnDuplicate = "return"
    debounce: float | None = None
    debounce_max: float | None = None

    def dumps(self) -> list[Any]:
        """Plain values, for JSON."""
        return list(self)

    @classmethod
    def loads(cls, values: list[Any]) -> Unique:
        """The reverse of `dumps`."""
        return cls._make(values)


@dataclass(frozen=True, slots=True)
class Rule:
    """The checked options: ``by`` says how a call's key is found, the rest is as in `Unique`."""

    by: Literal[True] | str | Callable[[dict[str, Any]], str]
    scope: Scope = "active"
    on_duplicate: OnDuplicate = "return"
    debounce: float | None = None
    debounce_max: float | None = None

    def of(self, key: str) -> Unique:
        """What a job of this key says of itself."""
        return Unique(key, self.scope, self.on_duplicate, self.debounce, self.debounce_max)


def rule_of(given: Mapping[str, Any]) -> Rule | None:
    """The rule that these options make; ``None`` where there is no ``unique``.

    Raises:
        TypeError: an option has the wrong type; the message names it.
        ConfigurationError: one makes no sense, or needs another one.
    """
    by = given.get("unique")
    if by is None or by is False:
        needing = next((name for name in UNIQUE_OPTIONS[1:] if given.get(name) is not None), None)
        if needing is not None:
            raise ConfigurationError(f"{needing} says what becomes of a second job of a key, and needs unique=...")
        return None
    debounce = _debounce(given)
    return Rule(
        _by(by),
        _one_of(given, "unique_for", "active", get_args(Scope)),
        _on_duplicate(given, debounce),
        debounce,
        _debounce_max(given, debounce),
    )


def overridden(own: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """A task's own options with those that a call gives in their place; what an option needs that the call undoes is
    undone with it.
    """
    if "unique" in given and not given["unique"]:
        return given
    undone = "debounce_max" if "debounce" in given and given["debounce"] is None else None
    return {**{name: value for name, value in own.items() if name != undone}, **given}


def _by(value: object) -> Any:
    if value is True or isinstance(value, str):
        return value
    if not callable(value):
        raise TypeError(
            "unique takes True, a string such as 'user:{user_id}', or a function of the call's arguments, "
            f"not {type(value).__name__} {value!r}"
        )
    return value


def _on_duplicate(given: Mapping[str, Any], debounce: float | None) -> Any:
    default = "return" if debounce is None else "replace"  # the newest arguments are those that are meant
    chosen = _one_of(given, "on_duplicate", default, get_args(OnDuplicate))
    if debounce is not None and chosen == "raise":
        raise ConfigurationError(
            "debounce puts a waiting job off at each further call, so on_duplicate takes 'replace' (the newest "
            "arguments) or 'return' (the first ones) with it, not 'raise'"
        )
    return chosen


def _debounce(given: Mapping[str, Any]) -> float | None:
    value: float | timedelta | None = given.get("debounce")
    if value is None:
        return None
    duration = positive_seconds(value, "debounce", allow_zero=False)
    if duration > _CENTURY:
        raise ConfigurationError(f"debounce={value!r} is more than a hundred years")
    return duration


def _debounce_max(given: Mapping[str, Any], debounce: float | None) -> float | None:
    value: float | timedelta | None = given.get("debounce_max")
    if value is None:
        return None
    if debounce is None:
        raise ConfigurationError("debounce_max says how long debounce=... may put a job off, and needs that option")
    most = positive_seconds(value, "debounce_max", allow_zero=False)
    if most < debounce:
        raise ConfigurationError(f"debounce_max={most:g} is less than debounce={debounce:g}: no job could wait so long")
    return most


def _one_of(given: Mapping[str, Any], name: str, default: str, allowed: tuple[str, ...]) -> Any:
    value = given.get(name)
    if value is None:
        return default
    if value not in allowed:
        raise ConfigurationError(f"{name} takes {' or '.join(map(repr, allowed))}, not {value!r}")
    return value


def stored_key(key: str) -> str:
    """The key as storages keep it: by its hash where it is long, or no text that they could store."""
    if len(key) <= LONGEST_KEY and (key.isascii() or _is_text(key)):
        return key
    import hashlib  # costs as much as the rest of the house's floor, and few keys need it

    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _is_text(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def canonical(text: str) -> str:
    """The same JSON with the members of each object in one order, so that equal dicts make equal keys."""
    return json.dumps(_ordered(json.loads(text)), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _ordered(value: Any) -> Any:
    if isinstance(value, list):
        return [_ordered(one) for one in value]
    if not isinstance(value, dict):
        return value
    members = {name: _ordered(one) for name, one in value.items()}
    if members.get("$liteq") == "dict":  # a dict whose keys are no plain strings is stored as its pairs
        members["value"] = sorted(members["value"], key=json.dumps)
    return members


def reason(job_id: str) -> str:
    """Why a job is blocked that follows the running one of its key, in words."""
    return f"{_FOLLOWS}{job_id}{_OF_KEY}"


def followed_by_key(why: str) -> str | None:
    """The id of the job that one follows which is blocked for this reason; ``None`` where it waits for something
    else.
    """
    if why.startswith(_FOLLOWS) and why.endswith(_OF_KEY):
        return why.removeprefix(_FOLLOWS).removesuffix(_OF_KEY)
    return None


def without_unique(options: str | None) -> tuple[str | None, Unique | None]:
    """What a schedule's jobs carry, and how they are kept unique."""
    if options is None or f'"{UNIQUE_FIELD}":' not in options:
        return options, None
    carried = json.loads(options)
    values = carried.pop(UNIQUE_FIELD, None)
    text = json.dumps(carried, separators=(",", ":")) if carried else None
    return text, None if values is None else Unique.loads(values)


def with_unique(options: str | None, unique: Unique | None) -> str | None:
    """The reverse of `without_unique`."""
    carried = {name: value for name, value in json.loads(options or "{}").items() if name != UNIQUE_FIELD}
    if unique is not None:
        carried[UNIQUE_FIELD] = unique.dumps()
    return json.dumps(carried, separators=(",", ":")) if carried else None
