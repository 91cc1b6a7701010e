"""Keys of calls: what ``unique`` and ``max_running_key`` make of the arguments.

Each function here takes what a task's signature is once, and gives a function that is quick for each call. The calls
that it is given fit the signature: that was checked before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from liteq.definition import template_fields
from liteq.errors import ConfigurationError, SerializationError
from liteq.serializers import JSONSerializer, Serializer
from liteq.unique import Rule, Unique, canonical, stored_key

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
#: All arguments of a call by name, defaults included.
Binder = Callable[[Args, Kwargs], dict[str, Any]]
#: The key of a call.
KeyOf = Callable[[Args, Kwargs], str]
#: What a call's job says of its uniqueness; the serializer is the app's, the bytes are the job's payload.
UniqueOf = Callable[[Args, Kwargs, Serializer, bytes], Unique]

_SCALARS = frozenset({str, int, float, bool, type(None)})
#: For apps whose serializer is not JSON: pickled bytes of equal values may differ.
_plain = JSONSerializer()


def binder(signature: inspect.Signature) -> Binder:
    """How the arguments of a call that fits the signature are named; what stands under ``**more`` is one like any
    other.
    """
    parameters = signature.parameters.values()
    if any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters):
        others = next((one.name for one in parameters if one.kind is one.VAR_KEYWORD), None)
        return lambda args, kwargs: _bound(signature, others, args, kwargs)
    names = tuple(signature.parameters)
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    # `Signature.bind` takes 5 µs, an eighth of a whole enqueue.
    return lambda args, kwargs: {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


def _bound(signature: inspect.Signature, others: str | None, args: Args, kwargs: Kwargs) -> dict[str, Any]:
    bound = signature.bind_partial(*args, **kwargs)  # the result of a workflow's step before is not there yet
    bound.apply_defaults()
    named = dict(bound.arguments)
    return named if others is None else named.pop(others) | named


def template_key(name: str, signature: inspect.Signature, template: str, what: str) -> KeyOf:
    """How a format string over the arguments, such as ``"{user_id}"``, is filled in.

    Args:
        name: the task's.
        what: the option that the string is, for errors.

    Raises:
        ConfigurationError: it names an argument that the function does not have. The key's function raises it where
            the string cannot be filled in.
    """
    parameters = signature.parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    for field in template_fields(template, what):
        if field not in parameters and not takes_any:
            raise ConfigurationError(f"{what} {template!r} of {name}{signature} names {field!r}, which is no argument")
    arguments = binder(signature)

    def key(args: Args, kwargs: Kwargs) -> str:
        try:
            return template.format_map(arguments(args, kwargs))
        except (LookupError, AttributeError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{name} was not enqueued: its {what} {template!r} cannot be filled in: {type(error).__name__}: {error}"
            ) from error

    return key


def unique_of(name: str, signature: inspect.Signature, rule: Rule) -> UniqueOf:
    """What the jobs of a task's calls say of their uniqueness.

    Raises:
        TypeError, ConfigurationError: the rule does not fit the function. What is returned raises them where a key
            cannot be made; nothing is enqueued then.
    """
    if rule.by is True:
        return _by_arguments(name, signature, rule)
    if isinstance(rule.by, str):
        key = template_key(name, signature, rule.by, "unique")
        return lambda args, kwargs, serializer, payload: rule.of(stored_key(key(args, kwargs)))
    return _by_function(name, signature, rule, rule.by)


def _by_arguments(name: str, signature: inspect.Signature, rule: Rule) -> UniqueOf:
    arguments, order = binder(signature), tuple(signature.parameters)
    number = len(order)
    kinds = {one.kind for one in signature.parameters.values()}
    is_plain = kinds <= {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}

    def unique(args: Args, kwargs: Kwargs, serializer: Serializer, payload: bytes) -> Unique:
        is_whole = is_plain and len(args) == number and type(serializer) is JSONSerializer
        if is_whole and _SCALARS.issuperset(map(type, args)):
            # `[[1,2],{}]`: all arguments in their order are there already; writing them again takes 4 µs.
            return rule.of(stored_key(payload[1:-4].decode()))
        named = arguments(args, kwargs)
        # In the order of the parameters; what came in by **more behind, where it is put into order.
        values = [named.pop(one) for one in order if one in named]
        return rule.of(stored_key(_text(name, values, named, serializer)))

    return unique


def _text(name: str, values: list[Any], others: Mapping[str, Any], serializer: Serializer) -> str:
    writer = _json_within(serializer)
    try:
        text = writer.dumps([values, others] if others else values).decode()
    except SerializationError as error:
        raise ConfigurationError(
            f"{name} was not enqueued: unique=True takes all its arguments for the key, and they cannot be written as "
            f"JSON ({error}); use a string such as '{{user_id}}' or a function"
        ) from error
    return text if not others and _SCALARS.issuperset(map(type, values)) else canonical(text)


def _json_within(serializer: Serializer) -> JSONSerializer:
    """The app's own JSON, which knows its classes, also where it is signed or compressed."""
    while not isinstance(serializer, JSONSerializer):
        inner = getattr(serializer, "inner", None)
        if inner is None:
            return _plain
        serializer = inner
    return serializer


def _by_function(
    name: str, signature: inspect.Signature, rule: Rule, function: Callable[[dict[str, Any]], str]
) -> UniqueOf:
    arguments = binder(signature)
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"unique of {name} takes a plain function, not an async def one")

    def unique(args: Args, kwargs: Kwargs, serializer: Serializer, payload: bytes) -> Unique:
        try:
            key = function(arguments(args, kwargs))
        except Exception as error:
            raise ConfigurationError(
                f"{name} was not enqueued: its unique function, which is given the call's arguments as a dict, raised "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(key, str):
            raise TypeError(
                f"{name} was not enqueued: its unique function must return a string, not {type(key).__name__} {key!r}"
            )
        return rule.of(stored_key(key))

    return unique
