"""The types that liteq knows, each with its writer and its reader.

You stand at the list of everything that JSON here can carry without being told: the tables at the end. An *atom* is
written by itself. A *container* is given the writer of what is in it. A *reader* is found by its tag; what it raises,
the caller turns into a ``SerializationError``. A new type needs a writer, a reader and a line in two tables.
"""

from __future__ import annotations

import dataclasses
import sys
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from enum import Enum
from math import isfinite
from typing import Any, Protocol

from liteq.serializers import stamps
from liteq.serializers.contract import type_name
from liteq.serializers.document import (
    TAG,
    Fields,
    Unstorable,
    expect,
    is_text,
    read_str,
    tagged,
    to_json,
    write_str,
)

_LONG_INT = 1 << 2_100
"""From here on (633 digits) ints are stored in base 16: Python refuses to read more than ``int_max_str_digits`` decimal
digits, 4300 unless somebody lowered it, and 640 is the lowest it can be."""


# ── Atoms ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_int(value: int) -> object:
    return value if -_LONG_INT < value < _LONG_INT else tagged("int", hex(value))


def _read_int(value: object) -> int:
    return int(expect(str, value), 16)


def _write_float(value: float) -> object:
    return value if isfinite(value) else tagged("float", str(value))


def _read_float(value: object) -> float:
    return float(expect(str, value))


def _read_complex(value: object) -> complex:
    real, imaginary = expect(list, value)
    return complex(expect(float, real), expect(float, imaginary))


def _read_range(value: object) -> range:
    return range(*(expect(int, number) for number in expect(list, value)))


def _to_base64(value: bytes | bytearray) -> str:
    return b2a_base64(value, newline=False).decode()


def _read_bytes(value: object) -> bytes:
    return a2b_base64(expect(str, value), strict_mode=True)


def _read_bytearray(value: object) -> bytearray:
    return bytearray(_read_bytes(value))


def _read_decimal(value: object) -> object:
    from decimal import Context, Decimal, InvalidOperation

    # A context of its own: the caller's may take any text for Decimal("NaN").
    return Decimal(expect(str, value), Context(traps=[InvalidOperation]))


def _read_uuid(value: object) -> object:
    from uuid import UUID

    return UUID(expect(str, value))


def _reader_of_paths(name: str) -> Callable[[object], object]:
    def read(value: object) -> object:
        import pathlib

        return getattr(pathlib, name)(read_str(value) if type(value) is list else expect(str, value))

    return read


def _writer_as_text(tag: str) -> Callable[[object], object]:
    return lambda value: tagged(tag, write_str(str(value)))


# ── Containers ───────────────────────────────────────────────────────────────────────────────────────────────────────


class WritesTrees(Protocol):
    """What a container's writer is given to write what is in it. It is ``writer.Writer``."""

    def tree(self, value: object) -> object: ...


def _write_list(writer: WritesTrees, value: list[object]) -> object:
    return [writer.tree(item) for item in value]


def _write_tuple(writer: WritesTrees, value: tuple[object, ...]) -> object:
    return tagged("tuple", [writer.tree(item) for item in value])


def _write_fields(writer: WritesTrees, value: Fields) -> object:
    return {name: writer.tree(item) for name, item in value.items()}


def _write_dict(writer: WritesTrees, value: dict[object, object]) -> object:
    if all(map(is_plain_key, value)):
        return {key: writer.tree(item) for key, item in value.items()}
    return tagged("dict", [[writer.tree(key), writer.tree(item)] for key, item in value.items()])


def is_plain_key(key: object) -> bool:
    return type(key) is str and key != TAG and is_text(key)


def _read_dict(value: object) -> dict[object, object]:
    return dict(expect(list, value))


def _write_set(writer: WritesTrees, value: set[object] | frozenset[object]) -> object:
    """Sorted by their JSON, so that equal sets are equal bytes whatever the hash seed of the process."""
    return tagged(type(value).__name__, sorted((writer.tree(item) for item in value), key=to_json))


# ── The tables ───────────────────────────────────────────────────────────────────────────────────────────────────────

ATOMS: dict[type, Callable[[Any], object]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    str: write_str,
    int: _write_int,
    float: _write_float,
    complex: lambda value: tagged("complex", [_write_float(value.real), _write_float(value.imag)]),
    range: lambda value: tagged("range", [_write_int(number) for number in (value.start, value.stop, value.step)]),
    bytes: lambda value: tagged("bytes", _to_base64(value)),
    bytearray: lambda value: tagged("bytearray", _to_base64(value)),
    datetime: stamps.write_datetime,
    date: lambda value: tagged("date", value.isoformat()),
    time: stamps.write_time,
    timedelta: lambda value: tagged("timedelta", [value.days, value.seconds, value.microseconds]),
    timezone: stamps.write_timezone,
}

CONTAINERS: dict[type, Callable[[WritesTrees, Any], object]] = {
    list: _write_list,
    tuple: _write_tuple,
    dict: _write_dict,
    set: _write_set,
    frozenset: _write_set,
    Fields: _write_fields,
}

_PATHS = {
    "posix_path": "PosixPath",
    "windows_path": "WindowsPath",
    "pure_posix_path": "PurePosixPath",
    "pure_windows_path": "PureWindowsPath",
}

# Types whose modules take milliseconds to import. A value of such a type can only turn up where its module is loaded.
_LATE_ATOMS: tuple[tuple[str, str, Callable[[Any], object]], ...] = (
    ("decimal", "Decimal", _writer_as_text("decimal")),
    ("uuid", "UUID", _writer_as_text("uuid")),
    ("zoneinfo", "ZoneInfo", stamps.write_zoneinfo),
    *(("pathlib", name, _writer_as_text(tag)) for tag, name in _PATHS.items()),
)

READERS: dict[str, Callable[[Any], object]] = {
    "str": read_str,
    "int": _read_int,
    "float": _read_float,
    "complex": _read_complex,
    "range": _read_range,
    "bytes": _read_bytes,
    "bytearray": _read_bytearray,
    "datetime": stamps.read_datetime,
    "date": stamps.read_date,
    "time": stamps.read_time,
    "timedelta": stamps.read_timedelta,
    "timezone": stamps.read_timezone,
    "zoneinfo": stamps.read_zoneinfo,
    "decimal": _read_decimal,
    "uuid": _read_uuid,
    **{tag: _reader_of_paths(name) for tag, name in _PATHS.items()},
    "tuple": lambda value: tuple(expect(list, value)),
    "set": lambda value: set(expect(list, value)),
    "frozenset": lambda value: frozenset(expect(list, value)),
    "dict": _read_dict,
}

# Bound here, because CPython compiles a method call on an imported name into a slower one than on its own: together a
# tenth of the time that tagging takes.
atom_writer_of = ATOMS.get
container_writer_of = CONTAINERS.get
reader_of = READERS.get

NATIVE_BASES = (*(kind for kind in CONTAINERS if kind is not Fields), datetime, *ATOMS)


def is_known(kind: type) -> bool:
    """Whether values of exactly this type are stored without anybody registering it."""
    return kind in ATOMS or kind in CONTAINERS or any(_is_late(kind, module, name) for module, name, _ in _LATE_ATOMS)


def _is_late(cls: type, module: str, name: str) -> bool:
    return getattr(sys.modules.get(module), name, None) is cls


def late_atom(value: object) -> object:
    """Write a value whose type was not known so far, and know the type from then on.

    Raises:
        Unstorable: liteq does not know the type at all.
    """
    kind = type(value)
    for module, name, write in _LATE_ATOMS:
        if _is_late(kind, module, name):
            ATOMS[kind] = write
            return write(value)
    raise Unstorable(value, _why_not(kind))


def _why_not(kind: type) -> str:
    """Why a type is refused, and what to do about it."""
    known = type_name(kind)
    both_sides = "in the module of the app, so that the process that reads it knows it too"
    if dataclasses.is_dataclass(kind) or issubclass(kind, Enum) or is_named_tuple(kind):
        words = (
            "an Enum" if issubclass(kind, Enum) else "a dataclass" if dataclasses.is_dataclass(kind) else "a namedtuple"
        )
        return f"{known} is {words} that is not registered: call serializer.register({kind.__name__}) {both_sides}"
    for base in NATIVE_BASES:
        if issubclass(kind, base):
            return (
                f"{known} is a subclass of {base.__name__} and would come back as plain {base.__name__}: pass a plain "
                f"{base.__name__}, or serializer.register({kind.__name__}, encode=…, decode=…) {both_sides}"
            )
    if kind is memoryview:
        return f"{known} is a view of somebody else's bytes: pass bytes(…)"
    return (
        f"{known} is not a type that JSON can carry: pass what it can be found by (such as an id) and look it up in "
        f"the task, or serializer.register({kind.__name__}, encode=…, decode=…), or use serializer='pickle'"
    )


def is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and hasattr(cls, "_fields") and hasattr(cls, "_make")
