"""The classes that users made storable: what a registration must hold, and the functions it need not give.

You stand behind ``JSONSerializer.register``. Dataclasses, Enums and named tuples get their functions here; how a
registered instance is tagged and found again is ``writer.py``'s and ``json_serializer.py``'s part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from enum import Enum, Flag
from typing import Any, NamedTuple

from liteq.errors import ConfigurationError
from liteq.serializers.contract import short, type_name
from liteq.serializers.document import Fields, expect, is_text
from liteq.serializers.known import NATIVE_BASES, is_known, is_named_tuple

_Codec = tuple[Callable[[Any], object], Callable[[Any], object]]

_UNSET = object()


class Registered(NamedTuple):
    """A class that a user made storable. (A named tuple: a dataclass adds 0.5 ms to ``import liteq``.)"""

    cls: type
    name: str
    encode: Callable[[Any], object]
    decode: Callable[[Any], object]


def registration(
    cls: type[Any],
    encode: Callable[[Any], object] | None,
    decode: Callable[[Any], object] | None,
    name: str | None,
) -> Registered:
    """Check a registration and find the functions that it does not give.

    Raises:
        ConfigurationError, TypeError: as ``JSONSerializer.register``.
    """
    if not isinstance(cls, type):
        raise TypeError(f"register takes a class, not {type_name(type(cls))}")
    if is_known(cls):
        raise ConfigurationError(f"register({type_name(cls)}): liteq stores this type exactly already")
    if name is not None and (not isinstance(name, str) or not name or not is_text(name)):
        raise ConfigurationError(f"register({type_name(cls)}): name must be text, not {short(name)}")
    if (encode is None) != (decode is None):
        raise ConfigurationError(f"register({type_name(cls)}): encode and decode go together, give both or neither")
    if encode is None or decode is None:
        encode, decode = _own_codec(cls)
    return Registered(cls, name or cls.__qualname__, encode, decode)


def _own_codec(cls: type[Any]) -> _Codec:
    """The functions for a class that needs none from its user."""
    if issubclass(cls, Enum):
        return _enum_codec(cls)
    if is_named_tuple(cls):
        return _named_tuple_codec(cls)
    if dataclasses.is_dataclass(cls) and not issubclass(cls, NATIVE_BASES):
        return _dataclass_codec(cls)
    raise ConfigurationError(
        f"register({type_name(cls)}): only dataclasses, Enums and named tuples need no functions; give "
        "encode= (instance to storable value) and decode= (that value to instance)"
    )


def _enum_codec(cls: type[Enum]) -> _Codec:
    """By name, so that a member's value may change; flags by value, because a combination has no name."""
    if issubclass(cls, Flag):
        return lambda member: member.value, cls

    def decode(name: object) -> Enum:
        member = cls.__members__.get(expect(str, name))
        if member is None:
            raise ValueError(f"{type_name(cls)} has no member {short(name)}")
        return member

    return lambda member: member.name, decode


def _named_tuple_codec(cls: Any) -> _Codec:
    names: tuple[str, ...] = cls._fields

    def encode(value: tuple[object, ...]) -> object:
        return Fields(zip(names, value, strict=True))

    def decode(fields: object) -> object:
        stored = _known_fields(cls, names, fields)
        return cls._make(stored[name] if name in stored else cls._field_defaults[name] for name in names)

    return encode, decode


def _dataclass_codec(cls: Any) -> _Codec:
    """By its fields. The constructor runs, so that fields that are newer than the stored job get their defaults."""
    names = tuple(field.name for field in dataclasses.fields(cls))
    accepted = _constructor_arguments(cls, names)

    def encode(instance: object) -> object:
        pairs = ((name, getattr(instance, name, _UNSET)) for name in names)
        return Fields((name, value) for name, value in pairs if value is not _UNSET)

    def decode(fields: object) -> object:
        stored = _known_fields(cls, names, fields)
        instance = cls(**{name: value for name, value in stored.items() if name in accepted})
        for name, value in stored.items():  # what the constructor does not take, and what __post_init__ changed
            object.__setattr__(instance, name, value)
        return instance

    return encode, decode


def _known_fields(cls: type, names: Sequence[str], fields: object) -> dict[str, object]:
    stored = expect(dict, fields)
    for name in stored:
        if name not in names:
            raise ValueError(f"{type_name(cls)} has no field {short(name)} (any more)")
    return stored


def _constructor_arguments(cls: type, names: Sequence[str]) -> frozenset[str]:
    """The fields that the constructor takes by name.

    Raises:
        ConfigurationError: the constructor needs something that is not a field (an InitVar, for example).
    """
    from inspect import Parameter, signature

    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    taken = {
        name: it for name, it in signature(cls).parameters.items() if it.kind in (*by_name, Parameter.POSITIONAL_ONLY)
    }
    for name, parameter in taken.items():
        if parameter.default is Parameter.empty and (name not in names or parameter.kind not in by_name):
            raise ConfigurationError(
                f"register({type_name(cls)}): its constructor needs {name!r}, which is not stored as a field; "
                "give encode= and decode="
            )
    return frozenset(name for name in taken if name in names and taken[name].kind in by_name)
