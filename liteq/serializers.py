"""How the values a user passes become the bytes a storage keeps, and the same values again.

You stand on floor 0: everything here is a pure function of its arguments. Above, ``Task`` encodes the arguments of a
call once (``dumps_call``), a worker decodes them once (``loads_call``), and the return value goes the same way
(``dumps``, ``loads``). What cannot make the round trip *exactly* is refused at the call, with the name of the argument.

The JSON that is written:

- Plain values (``str``, ``int``, ``float``, ``bool``, ``None``, lists, dicts with ``str`` keys) are plain, strict
  JSON, so that any other language can read and write them. A call is ``[[positional], {"keyword": …}]``.
- Everything else is an object with the key ``"$liteq"``: ``{"$liteq": "tuple", "value": [1, 2]}``. An instance of a
  registered class is ``{"$liteq": "class", "name": "Order", "value": …}``. A user's dict that happens to have this key
  is stored as pairs.
- Values nested more than 64 levels deep are cut into parts that refer to each other, so that neither side depends on
  how much of the Python stack is left: ``{"$liteq": "parts", "value": [{"$liteq": "part", "value": [1, …]}, …]}``, the
  deepest part first, the root (part 0) last, and ``{"$liteq": "ref", "value": 1}`` where part 1 belongs.

Two ways lead through the JSON serializer. The quick one serves plain values: one look at the exact types, then the C
encoder. Whatever it does not serve goes through ``_Writer``, which tags. Reading needs tags only where the marker
occurs in the bytes.
"""

from __future__ import annotations

import dataclasses
import json
import json.encoder
import re
import sys
from abc import ABC, abstractmethod
from binascii import a2b_base64, b2a_base64
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from enum import Enum, Flag
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar, overload

from liteq.errors import ConfigurationError, SerializationError, TaskTimeout

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

__all__ = [
    "CompressedSerializer",
    "JSONSerializer",
    "PickleSerializer",
    "Serializer",
    "SignedSerializer",
    "serializer_for",
]

T = TypeVar("T")
Call = tuple[list[object] | tuple[object, ...], dict[str, object]]

_SIGNED_HEADER = b"LQS1"
_COMPRESSED_HEADER = b"\x00LQZ1"


# ── The contract ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Serializer(ABC):
    """Turns values into bytes and back. Subclass it to bring your own: ``dumps`` and ``loads`` are enough.

    Attributes:
        name: what the serializer is called in options and messages.
        readable: whether ``dumps`` yields text that a person can read, so that tools may show stored bytes as they are.
    """

    name: ClassVar[str]
    readable: bool = False

    @abstractmethod
    def dumps(self, value: object) -> bytes:
        """Encode one value, such as a task's return value.

        Raises:
            SerializationError: the value cannot be stored; nothing else may come out.
        """

    @abstractmethod
    def loads(self, data: bytes) -> object:
        """Decode what ``dumps`` wrote.

        Raises:
            SerializationError: the bytes are damaged or were written by something else; nothing else may come out.
        """

    def dumps_call(self, args: tuple[object, ...], kwargs: dict[str, object], names: Sequence[str] = ()) -> bytes:
        """Encode the arguments of one call: the payload of a job.

        Args:
            args: the positional arguments.
            kwargs: the keyword arguments.
            names: the names of the positional parameters, in order, so that an error can name the argument.

        Raises:
            SerializationError: an argument cannot be stored; the message names it.
        """
        try:
            return self.dumps([list(args), kwargs])
        except SerializationError:
            self._blame_argument(args, kwargs, names)
            raise

    def loads_call(self, data: bytes) -> Call:
        """Decode what ``dumps_call`` wrote.

        Returns:
            The positional arguments and the keyword arguments.

        Raises:
            SerializationError: the bytes are damaged, or they are not the payload of a job.
        """
        return _as_call(self.loads(data))

    def _blame_argument(self, args: tuple[object, ...], kwargs: dict[str, object], names: Sequence[str]) -> None:
        """Raise an error that names the first argument that cannot be stored by itself, if there is one."""
        for where, value in _named_arguments(args, kwargs, names):
            try:
                self.dumps(value)
            except SerializationError as error:
                raise SerializationError(f"cannot store {where} ({_type_name(type(value))}): {error}") from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def serializer_for(spec: str | Serializer) -> Serializer:
    """The serializer that an option names.

    Args:
        spec: ``"json"``, ``"pickle"``, or a ``Serializer``, which is returned as it is.

    Raises:
        ConfigurationError: no serializer has this name.
        TypeError: neither a name nor a serializer.
    """
    if isinstance(spec, Serializer):
        return spec
    if isinstance(spec, type) and issubclass(spec, Serializer):
        raise TypeError(f"serializer={spec.__name__} is a class: pass an instance, {spec.__name__}(…)")
    if not isinstance(spec, str):
        raise TypeError(f'serializer must be "json", "pickle" or a liteq Serializer, not {_type_name(type(spec))}')
    if spec == "json":
        return JSONSerializer()
    if spec == "pickle":
        return PickleSerializer()
    raise ConfigurationError(f'serializer={spec!r}: there is "json" and "pickle", or pass a Serializer object')


def _named_arguments(
    args: Sequence[object], kwargs: Mapping[str, object], names: Sequence[str]
) -> Iterable[tuple[str, object]]:
    """Each argument of a call with the words an error uses for it: ``argument 'user'``, or ``args[3]``."""
    for index, value in enumerate(args):
        yield f"argument {names[index]!r}" if index < len(names) else f"args[{index}]", value
    for name, value in kwargs.items():
        yield f"argument {name!r}", value


def _as_call(value: object) -> Call:
    """Check that a decoded payload has the shape of a call.

    Raises:
        SerializationError: it has not.
    """
    if isinstance(value, (list, tuple)) and len(value) == 2:
        args, kwargs = value
        if isinstance(args, (list, tuple)) and type(kwargs) is dict and _TEXT.issuperset(map(type, kwargs)):
            return args, kwargs
    raise SerializationError(
        f"these bytes hold a {_type_name(type(value))} and not the arguments of a call, [[positional], {{keyword}}]: "
        "they are not the payload of a job"
    )


# ── JSON: the quick way for plain values ─────────────────────────────────────────────────────────────────────────────

_TAG = "$liteq"
_VALUE = "value"
_MARKER = f'"{_TAG}"'
_MARKER_BYTES = _MARKER.encode()
_TEXT = frozenset({str})
_SCALARS = frozenset({str, int, float, bool, type(None)})
_PART_DEPTH = 64
"""Levels of nesting per part. A level costs three Python frames while it is written: a fifth of the default stack."""
_MAX_DEPTH = 20_000
"""Levels of nesting in all. Nobody's data is that deep; an ``encode`` function that never comes to an end is."""


def _compact_encoder() -> Callable[[object], str]:
    """A function that writes compact strict JSON, as much of it in C as there is.

    ``JSONEncoder.encode`` builds its C encoder anew for every call, which takes longer than encoding a small payload
    (1.0 µs against 0.4 for ``[[1, 2, "x" * 40], {}]``). That C encoder has no public constructor, so it is tried once
    here, and an interpreter that has none, or another kind, gets the public way.
    """
    public = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"))
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return public.encode
    try:
        encode = make(None, public.default, json.encoder.encode_basestring, None, ":", ",", False, False, False)
        usable = "".join(encode([{"é": 1.5}], 0)) == '[{"é":1.5}]'
    except TypeError:
        usable = False
    return (lambda value: "".join(encode(value, 0))) if usable else public.encode


_to_json = _compact_encoder()
_plain_decoder = json.JSONDecoder()


def _is_plain(value: object, levels: int = _PART_DEPTH) -> bool:
    """Whether the C encoder writes this value so that it comes back exactly the same, looking at types only.

    Exact types, because the C encoder takes subclasses (an IntEnum, a namedtuple) and tuples without a word and turns
    them into something else. ``levels`` bounds the depth, so a list that contains itself is no danger here.
    """
    items: Iterable[object]
    if type(value) is dict:
        if not _TEXT.issuperset(map(type, value)):
            return False
        items = value.values()
    elif type(value) is list:
        items = value
    else:
        return type(value) in _SCALARS
    if _SCALARS.issuperset(map(type, items)):
        return True
    if levels == 0:
        return False
    for item in items:  # noqa: SIM110 - all() with a generator costs twice as much on small lists
        if type(item) not in _SCALARS and not _is_plain(item, levels - 1):
            return False
    return True


def _parse(text: str, decoder: json.JSONDecoder) -> object:
    """Read one JSON text. ``raw_decode`` takes half the time of ``decode``, but minds white space at the ends."""
    try:
        value, end = decoder.raw_decode(text)
    except json.JSONDecodeError:
        return decoder.decode(text)
    return value if end == len(text) else decoder.decode(text)


class JSONSerializer(Serializer):
    """JSON that brings back exactly what was passed, or refuses to take it.

    Beyond JSON's own types it knows tuple, set, frozenset, bytes, bytearray, complex, range, non-finite floats, dicts
    with any storable keys, datetime, date, time, timedelta, timezone, ZoneInfo, Decimal, UUID and paths. Classes of
    your own are known once they are registered, in the process that sends and in the process that reads::

        serializer = JSONSerializer()

        @serializer.register
        @dataclass
        class Order: ...

        app = LiteQ("shop.db", serializer=serializer)

    Reading never imports, calls or constructs anything that is not listed above or registered.
    """

    name: ClassVar[str] = "json"
    readable: bool = True

    def __init__(self) -> None:
        self._by_type: dict[type, _Registered] = {}
        self._by_name: dict[str, _Registered] = {}
        self._decoder = json.JSONDecoder(object_hook=self._revive)

    @overload
    def register(
        self,
        cls: type[T],
        encode: Callable[[T], object] | None = None,
        decode: Callable[[Any], T] | None = None,
        name: str | None = None,
    ) -> type[T]: ...

    @overload
    def register(
        self,
        cls: None = None,
        encode: Callable[[Any], object] | None = None,
        decode: Callable[[Any], object] | None = None,
        name: str | None = None,
    ) -> Callable[[type[T]], type[T]]: ...

    def register(
        self,
        cls: type[Any] | None = None,
        encode: Callable[[Any], object] | None = None,
        decode: Callable[[Any], Any] | None = None,
        name: str | None = None,
    ) -> Any:
        """Make instances of a class storable. Also a decorator, with or without arguments.

        Exactly this class is meant: a subclass is registered by itself. Registering a class again under another name
        stores it under the new name from then on and still reads the old one, which is how a class is renamed.

        Args:
            cls: the class.
            encode: makes a storable value of an instance: ``encode(instance) -> value``. Dataclasses, Enums and named
                tuples need neither ``encode`` nor ``decode``.
            decode: makes an instance of that value again: ``decode(value) -> instance``.
            name: the name it is stored under; the qualified name of the class without its module by default, so that
                it may move to another module.

        Returns:
            The class, so that it can be used as a decorator.

        Raises:
            ConfigurationError: the name is taken by another class, or liteq needs ``encode`` and ``decode``.
            TypeError: ``cls`` is not a class.
        """
        if cls is None:
            return lambda decorated: self.register(decorated, encode, decode, name)
        entry = _registered(cls, encode, decode, name)
        holder = self._by_name.get(entry.name)
        if holder is not None and holder.cls is not cls:
            raise ConfigurationError(
                f"register({_type_name(cls)}): the name {entry.name!r} is taken by {_type_name(holder.cls)}; "
                "give one of them another name="
            )
        self._by_name[entry.name] = entry
        self._by_type[cls] = entry
        return cls

    def dumps(self, value: object) -> bytes:
        if value is None:
            return b"null"
        try:
            if _is_plain(value):
                text = _to_json(value)
                if _MARKER not in text:
                    return text.encode()
        except (ValueError, TypeError, RecursionError):
            pass  # nan, a very long int, half a surrogate pair, …: the careful way stores it or says what is wrong
        return self._write(lambda writer: writer.value("value", value))

    def loads(self, data: bytes) -> object:
        try:
            text = data.decode()
            if _MARKER_BYTES not in data:
                return _parse(text, _plain_decoder)
            if text.startswith(_PARTS_START):
                return _parse(text, json.JSONDecoder(object_hook=_PartsReader(self._revive)))
            return _parse(text, self._decoder)
        except (ValueError, RecursionError) as error:
            if isinstance(error, SerializationError):
                raise
            raise SerializationError(f"these bytes are not JSON that can be read: {_complaint(data, error)}") from error

    def dumps_call(self, args: tuple[object, ...], kwargs: dict[str, object], names: Sequence[str] = ()) -> bytes:
        try:
            if (_SCALARS.issuperset(map(type, args)) or all(map(_is_plain, args))) and (
                not kwargs or _is_plain(kwargs)
            ):
                text = _to_json((args, kwargs))
                if _MARKER not in text:
                    return text.encode()
        except (ValueError, TypeError, RecursionError):
            pass  # as in dumps
        return self._write(lambda writer: writer.call(args, kwargs, names))

    def _write(self, write: Callable[[_Writer], object]) -> bytes:
        """The careful way: tag what needs a tag, then encode.

        Raises:
            SerializationError: the value cannot be stored.
        """
        writer = _Writer(self._by_type)
        try:
            return _to_json(writer.document(write(writer))).encode()
        except RecursionError as error:
            raise SerializationError(f"cannot store {writer.where}: too little of the Python stack is left") from error
        except RuntimeError as error:
            raise SerializationError(f"cannot store {writer.where}: {error} (by another thread?)") from error

    def _revive(self, document: dict[str, Any]) -> object:
        """Called by the JSON decoder with every object it has read, the innermost first."""
        if _TAG not in document:
            return document
        try:
            return self._read_tagged(document)
        except (SerializationError, TaskTimeout):
            raise
        except Exception as error:
            raise SerializationError(f"a stored {_tag_words(document)} cannot be read: {_words(error)}") from error

    def _read_tagged(self, document: dict[str, Any]) -> object:
        tag = document[_TAG]
        if tag == "class":
            return self._read_registered(document)
        read = _READERS.get(tag) if type(tag) is str else None
        if read is None:
            raise SerializationError(
                f"stored JSON has a {_TAG!r} object of a kind this liteq does not know, {_short(tag)}: "
                "it was written by a newer version, or by something else"
            )
        if document.keys() != {_TAG, _VALUE}:
            raise ValueError(f"it has the keys {_short(', '.join(sorted(document)))}")
        return read(document[_VALUE])

    def _read_registered(self, document: dict[str, Any]) -> object:
        if document.keys() != {_TAG, "name", _VALUE}:
            raise ValueError(f"it has the keys {_short(', '.join(sorted(document)))}")
        name = document["name"]
        entry = self._by_name.get(name) if type(name) is str else None
        if entry is None:
            raise SerializationError(
                f"stored JSON holds an instance of {_short(name)}, and no class is registered under this name here: "
                "register it with serializer.register(…) in the module of the app, which both sides import"
            )
        return entry.decode(document[_VALUE])


def _complaint(data: bytes, error: Exception) -> str:
    """What is wrong with bytes that are not JSON, with a guess at what they are."""
    if isinstance(error, RecursionError):
        return "they are nested too deeply"
    for header, words in (
        (_SIGNED_HEADER, "they are signed: read them with the SignedSerializer that wrote them"),
        (_COMPRESSED_HEADER, "they are compressed: read them with a CompressedSerializer"),
        (b"\x80", "they look like pickle: were they written with serializer='pickle'?"),
    ):
        if data.startswith(header):
            return words
    return "there are none" if not data else str(error)


def _tag_words(document: Mapping[str, object]) -> str:
    return _short(document.get("name")) if document[_TAG] == "class" else _short(document[_TAG])


def _short(value: object) -> str:
    """A representation that fits into a message, whatever stored bytes hold."""
    text = repr(value) if type(value) is str else f"a {_type_name(type(value))}"
    return text if len(text) <= 80 else text[:79] + "…"


def _words(error: Exception) -> str:
    """An exception's type and text, cut where somebody put a whole document into it."""
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= 200 else text[:199] + "…"


# ── JSON: the careful way, writing ───────────────────────────────────────────────────────────────────────────────────

_PARTS_START = f'{{"{_TAG}":"parts"'


class _Unstorable(Exception):
    """Raised where a value is refused; on its way up, every container adds the step that leads to it."""

    def __init__(self, culprit: object, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self._culprit = culprit
        self._steps: list[str] = []

    def climb(self, container: object) -> None:
        """Note where in ``container`` the culprit is; from here on the container is the culprit."""
        self._steps.append(_step(container, self._culprit))
        self._culprit = container

    @property
    def path(self) -> str:
        """From the root to the value, such as ``.items[3]['name']``."""
        return "".join(reversed(self._steps))


class _Fields(dict[str, object]):
    """The fields of a registered instance on their way out; an error's path shows them as attributes."""


class _Part(NamedTuple):
    """A value so deep inside another that it is written as a part of its own."""

    where: str
    value: object
    above: tuple[dict[int, object], ...]


class _Writer:
    """Builds the JSON of one document out of values that are not plain.

    Attributes:
        where: the words for the argument that is being written.
    """

    def __init__(self, registered: Mapping[type, _Registered]) -> None:
        self.where = "value"
        self._registered = registered
        # The containers on the way from the part's root to here: by id to notice a cycle, and held, so that an id
        # cannot be given to another object meanwhile.
        self._open: dict[int, object] = {}
        self._above: tuple[dict[int, object], ...] = ()
        self._pending: deque[_Part] = deque()
        self._parts = 0

    def value(self, where: str, value: object) -> object:
        """Write a value that an error is to call ``where``.

        Raises:
            SerializationError: it cannot be stored.
        """
        self.where = where
        try:
            return self.tree(value)
        except _Unstorable as problem:
            raise SerializationError(f"cannot store {where}{problem.path}: {problem.reason}") from problem.__cause__

    def call(self, args: tuple[object, ...], kwargs: dict[str, object], names: Sequence[str]) -> object:
        """Write the arguments of a call; its own two containers stay plain.

        Raises:
            SerializationError: an argument cannot be stored; the message names it.
        """
        for name in kwargs:
            if type(name) is not str:
                raise SerializationError(
                    f"cannot store the keyword arguments: a keyword is a plain str, not {_type_name(type(name))}"
                )
        trees = [self.value(where, value) for where, value in _named_arguments(args, kwargs, names)]
        positional, named = trees[: len(args)], trees[len(args) :]
        if all(map(_is_plain_key, kwargs)):
            return [positional, dict(zip(kwargs, named, strict=True))]
        return [positional, _tagged("dict", [[_write_str(key), tree] for key, tree in zip(kwargs, named, strict=True)])]

    def document(self, root: object) -> object:
        """Write the parts that were put off, and put them before the root."""
        if not self._pending:
            return root
        trees = [root]
        while self._pending:
            part = self._pending.popleft()
            self._open, self._above = {}, part.above
            trees.append(self.value(part.where if part.where.endswith("…") else f"{part.where}…", part.value))
        return _tagged("parts", [_tagged("part", [number, trees[number]]) for number in reversed(range(len(trees)))])

    def tree(self, value: object) -> object:
        """The JSON of one value; raises ``_Unstorable``."""
        kind = type(value)
        atom = _ATOMS.get(kind)
        if atom is not None:
            return atom(value)
        write = _CONTAINERS.get(kind)
        if write is None and kind not in self._registered:
            return _late_atom(value)
        if id(value) in self._open:
            raise _Unstorable(value, _contains_itself(value))
        if len(self._open) == _PART_DEPTH:
            return self._put_off(value)
        self._open[id(value)] = value
        try:
            tree = self._write_registered(value) if write is None else write(self, value)
        except _Unstorable as problem:
            problem.climb(value)
            raise
        self._open.popitem()
        return tree

    def _put_off(self, value: object) -> object:
        """Leave a reference here and write the value as a part later.

        A cycle that is longer than a part is noticed here, at the first part that holds an object of a part above.
        """
        for known in self._above:
            if not known.keys().isdisjoint(self._open):
                raise _Unstorable(value, _contains_itself(value))
        if (len(self._above) + 1) * _PART_DEPTH > _MAX_DEPTH:
            raise _Unstorable(value, f"it is nested more than {_MAX_DEPTH:,} levels deep")
        self._parts += 1
        self._pending.append(_Part(self.where, value, (*self._above, dict(self._open))))
        return _tagged("ref", self._parts)

    def _write_registered(self, value: object) -> object:
        entry = self._registered[type(value)]
        try:
            state = entry.encode(value)
        except (_Unstorable, TaskTimeout):
            raise
        except Exception as error:
            reason = f"encoding a {_type_name(entry.cls)} raised {_words(error)}"
            raise _Unstorable(value, reason) from error
        return {_TAG: "class", "name": entry.name, _VALUE: self.tree(state)}


def _contains_itself(value: object) -> str:
    return f"this {_type_name(type(value))} contains itself, and what is stored is a tree"


def _step(container: object, culprit: object) -> str:
    """The words that lead from a container to the culprit in it: ``[3]``, ``['name']``, ``.name``."""
    if isinstance(container, _Fields):
        return next((f".{name}" for name, item in container.items() if item is culprit), "")
    if isinstance(container, dict):
        return _step_in_dict(container, culprit)
    if isinstance(container, (list, tuple)):
        return next((f"[{index}]" for index, item in enumerate(container) if item is culprit), "")
    return "{…}" if isinstance(container, (set, frozenset)) else ""


def _step_in_dict(container: dict[object, object], culprit: object) -> str:
    for key, item in container.items():
        if key is culprit:
            return f" (a key of type {type(key).__name__})"
        if item is culprit:
            return f"[{key!r}]" if type(key) is str and len(key) <= 60 else f"[{type(key).__name__} key]"
    return ""


def _why_not(kind: type) -> str:
    """Why a type is refused, and what to do about it."""
    known = _type_name(kind)
    both_sides = "in the module of the app, so that the process that reads it knows it too"
    if dataclasses.is_dataclass(kind) or issubclass(kind, Enum) or _is_named_tuple(kind):
        words = (
            "an Enum" if issubclass(kind, Enum) else "a dataclass" if dataclasses.is_dataclass(kind) else "a namedtuple"
        )
        return f"{known} is {words} that is not registered: call serializer.register({kind.__name__}) {both_sides}"
    for base in _NATIVE_BASES:
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


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# ── JSON: the types liteq knows, each with its writer and its reader ─────────────────────────────────────────────────

_SURROGATE = re.compile("([\ud800-\udfff])")
_LONG_INT = 1 << 2_100
"""From here on (633 digits) ints are stored in base 16: Python refuses to read more than ``int_max_str_digits`` decimal
digits, 4300 unless somebody lowered it, and 640 is the lowest it can be."""


def _tagged(tag: str, value: object) -> dict[str, object]:
    return {_TAG: tag, _VALUE: value}


def _expect(kind: type[T], value: object) -> T:
    if type(value) is not kind:
        raise ValueError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value


def _write_str(value: str) -> object:
    """Halves of surrogate pairs are no text that UTF-8 can hold (``os.listdir`` makes them of undecodable names)."""
    if _is_text(value):
        return value
    pieces = (ord(piece) if _SURROGATE.fullmatch(piece) else piece for piece in _SURROGATE.split(value) if piece)
    return _tagged("str", list(pieces))


def _is_text(value: str) -> bool:
    return value.isascii() or _SURROGATE.search(value) is None


def _read_str(value: object) -> str:
    return "".join(chr(piece) if type(piece) is int else _expect(str, piece) for piece in _expect(list, value))


def _write_int(value: int) -> object:
    return value if -_LONG_INT < value < _LONG_INT else _tagged("int", hex(value))


def _read_int(value: object) -> int:
    return int(_expect(str, value), 16)


def _write_float(value: float) -> object:
    return value if isfinite(value) else _tagged("float", str(value))


def _read_float(value: object) -> float:
    return float(_expect(str, value))


def _read_complex(value: object) -> complex:
    real, imaginary = _expect(list, value)
    return complex(_expect(float, real), _expect(float, imaginary))


def _read_range(value: object) -> range:
    return range(*(_expect(int, number) for number in _expect(list, value)))


def _to_base64(value: bytes | bytearray) -> str:
    return b2a_base64(value, newline=False).decode()


def _read_bytes(value: object) -> bytes:
    return a2b_base64(_expect(str, value), strict_mode=True)


def _read_bytearray(value: object) -> bytearray:
    return bytearray(_read_bytes(value))


def _read_timedelta(value: object) -> timedelta:
    days, seconds, microseconds = (_expect(int, number) for number in _expect(list, value))
    return timedelta(days, seconds, microseconds)


def _read_date(value: object) -> date:
    return date.fromisoformat(_expect(str, value))


# Instants are written as RFC 9557 has it, RFC 3339 with the zone after it:
# 2024-10-27T02:30:00+01:00[Europe/Berlin][_fold=1]. The offset fixes the instant even if the zone's rules change while
# a job waits. A timezone that was given a name of its own makes it a pair: ["2024-10-27T02:30:00+01:00", "CET"].

_ZONE_KEY = re.compile(r"\w+(?:[/+\-]\w+)*", re.ASCII)
_STAMP = re.compile(rf"([^\[\]]+)(?:\[({_ZONE_KEY.pattern})\])?(\[_fold=1\])?", re.ASCII)
_TINY_OFFSET = re.compile(r"([+\-])00:00:00\.(\d{6})$", re.ASCII)


def _write_datetime(value: datetime) -> object:
    return _tagged("datetime", _stamp(value))


def _write_time(value: time) -> object:
    return _tagged("time", _stamp(value))


def _stamp(value: datetime | time) -> object:
    zone = value.tzinfo
    key = _zone_key(zone)
    try:
        text = value.isoformat()
        placed = zone is None or key is not None or value.utcoffset() is not None
    except Exception as error:
        reason = f"its tzinfo, {_type_name(type(zone))}, raised {_words(error)}"
        raise _Unstorable(value, reason) from error
    if not placed:
        raise _Unstorable(
            value, f"its tzinfo, {_type_name(type(zone))}, has no offset for it: use a ZoneInfo or timezone"
        )
    text += (f"[{key}]" if key else "") + ("[_fold=1]" if value.fold else "")
    name = _given_name(zone)
    return text if name is None else [text, _write_str(name)]


def _zone_key(zone: tzinfo | None) -> str | None:
    """The key under which this machine finds the zone again, if it is a ZoneInfo that has one."""
    module = sys.modules.get("zoneinfo")
    if module is None or not isinstance(zone, module.ZoneInfo):
        return None
    try:
        return _find_zone(zone.key).key
    except (ValueError, TypeError):
        return None  # from ZoneInfo.from_file: no key, or one of its own


def _find_zone(key: str) -> ZoneInfo:
    """The zone of this name.

    Raises:
        ValueError: there is none. (ZoneInfo itself raises KeyError, ValueError or, for a directory, OSError.)
    """
    from zoneinfo import ZoneInfo

    if not _ZONE_KEY.fullmatch(key):
        raise ValueError(f"no time zone can be called {_short(key)}")
    try:
        return ZoneInfo(key)
    except (KeyError, OSError) as error:
        raise ValueError(
            f"this machine has no time zone {key!r}: install the system's tzdata, or tzdata from PyPI"
        ) from error


def _given_name(zone: tzinfo | None) -> str | None:
    """The name that a ``timezone`` was given by its maker, as in ``timezone(timedelta(hours=1), "CET")``."""
    if type(zone) is not timezone:
        return None
    name = zone.tzname(None)
    return None if name == timezone(zone.utcoffset(None)).tzname(None) else name


def _split_stamp(value: object) -> tuple[str, ZoneInfo | None, int, str | None]:
    """The parts of a stamp: ISO text, zone, fold, the timezone's own name."""
    text, name = _expect(list, value) if type(value) is list else (value, None)
    match = _STAMP.fullmatch(_expect(str, text))
    if match is None:
        raise ValueError(f"{_short(text)} is not a time stamp")
    zone = _find_zone(match[2]) if match[2] else None
    return match[1], zone, 1 if match[3] else 0, name if name is None else _expect(str, name)


def _read_datetime(value: object) -> datetime:
    text, zone, fold, name = _split_stamp(value)
    moment = datetime.fromisoformat(text).replace(fold=fold)
    if zone is None:
        return moment.replace(tzinfo=_offset_zone(text, moment.tzinfo, name))
    if moment.tzinfo is None:
        raise ValueError(f"{_short(text)} has a zone and no offset")
    local = moment.replace(tzinfo=zone)
    return local if local.utcoffset() == moment.utcoffset() else moment.astimezone(zone)


def _read_time(value: object) -> time:
    text, zone, fold, name = _split_stamp(value)
    moment = time.fromisoformat(text)
    return moment.replace(tzinfo=_offset_zone(text, moment.tzinfo, name) if zone is None else zone, fold=fold)


def _offset_zone(text: str, zone: tzinfo | None, name: str | None) -> tzinfo | None:
    """The zone of an offset, under its own name, exact where ``fromisoformat`` takes less than a second for none."""
    tiny = _TINY_OFFSET.search(text)
    offset = timedelta(microseconds=int(tiny[1] + tiny[2])) if tiny else zone.utcoffset(None) if zone else None
    if offset is None:
        if name is not None:
            raise ValueError("it has a zone's name and no offset")
        return None
    return timezone(offset) if name is None else timezone(offset, name)


def _write_timezone(value: timezone) -> object:
    offset, name = value.utcoffset(None), _given_name(value)
    numbers = [offset.days, offset.seconds, offset.microseconds]
    return _tagged("timezone", [numbers] if name is None else [numbers, _write_str(name)])


def _read_timezone(value: object) -> timezone:
    offset, *name = _expect(list, value)
    return timezone(_read_timedelta(offset), *name)


def _write_zoneinfo(value: ZoneInfo) -> object:
    key = _zone_key(value)
    if key is None:
        raise _Unstorable(value, "zoneinfo.ZoneInfo has no key under which it can be found again: use ZoneInfo(name)")
    return _tagged("zoneinfo", key)


def _read_zoneinfo(value: object) -> ZoneInfo:
    return _find_zone(_expect(str, value))


def _read_decimal(value: object) -> object:
    from decimal import Context, Decimal, InvalidOperation

    # A context of its own: the caller's may take any text for Decimal("NaN").
    return Decimal(_expect(str, value), Context(traps=[InvalidOperation]))


def _read_uuid(value: object) -> object:
    from uuid import UUID

    return UUID(_expect(str, value))


def _reader_of_paths(name: str) -> Callable[[object], object]:
    def read(value: object) -> object:
        import pathlib

        return getattr(pathlib, name)(_read_str(value) if type(value) is list else _expect(str, value))

    return read


def _writer_as_text(tag: str) -> Callable[[object], object]:
    return lambda value: _tagged(tag, _write_str(str(value)))


def _write_list(writer: _Writer, value: list[object]) -> object:
    return [writer.tree(item) for item in value]


def _write_tuple(writer: _Writer, value: tuple[object, ...]) -> object:
    return _tagged("tuple", [writer.tree(item) for item in value])


def _write_fields(writer: _Writer, value: _Fields) -> object:
    return {name: writer.tree(item) for name, item in value.items()}


def _write_dict(writer: _Writer, value: dict[object, object]) -> object:
    if all(map(_is_plain_key, value)):
        return {key: writer.tree(item) for key, item in value.items()}
    return _tagged("dict", [[writer.tree(key), writer.tree(item)] for key, item in value.items()])


def _is_plain_key(key: object) -> bool:
    return type(key) is str and key != _TAG and _is_text(key)


def _read_dict(value: object) -> dict[object, object]:
    return dict(_expect(list, value))


def _write_set(writer: _Writer, value: set[object] | frozenset[object]) -> object:
    """Sorted by their JSON, so that equal sets are equal bytes whatever the hash seed of the process."""
    return _tagged(type(value).__name__, sorted((writer.tree(item) for item in value), key=_to_json))


_ATOMS: dict[type, Callable[[Any], object]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    str: _write_str,
    int: _write_int,
    float: _write_float,
    complex: lambda value: _tagged("complex", [_write_float(value.real), _write_float(value.imag)]),
    range: lambda value: _tagged("range", [_write_int(number) for number in (value.start, value.stop, value.step)]),
    bytes: lambda value: _tagged("bytes", _to_base64(value)),
    bytearray: lambda value: _tagged("bytearray", _to_base64(value)),
    datetime: _write_datetime,
    date: lambda value: _tagged("date", value.isoformat()),
    time: _write_time,
    timedelta: lambda value: _tagged("timedelta", [value.days, value.seconds, value.microseconds]),
    timezone: _write_timezone,
}

_CONTAINERS: dict[type, Callable[[_Writer, Any], object]] = {
    list: _write_list,
    tuple: _write_tuple,
    dict: _write_dict,
    set: _write_set,
    frozenset: _write_set,
    _Fields: _write_fields,
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
    ("zoneinfo", "ZoneInfo", _write_zoneinfo),
    *(("pathlib", name, _writer_as_text(tag)) for tag, name in _PATHS.items()),
)

_READERS: dict[str, Callable[[Any], object]] = {
    "str": _read_str,
    "int": _read_int,
    "float": _read_float,
    "complex": _read_complex,
    "range": _read_range,
    "bytes": _read_bytes,
    "bytearray": _read_bytearray,
    "datetime": _read_datetime,
    "date": _read_date,
    "time": _read_time,
    "timedelta": _read_timedelta,
    "timezone": _read_timezone,
    "zoneinfo": _read_zoneinfo,
    "decimal": _read_decimal,
    "uuid": _read_uuid,
    **{tag: _reader_of_paths(name) for tag, name in _PATHS.items()},
    "tuple": lambda value: tuple(_expect(list, value)),
    "set": lambda value: set(_expect(list, value)),
    "frozenset": lambda value: frozenset(_expect(list, value)),
    "dict": _read_dict,
}

_NATIVE_BASES = (*(kind for kind in _CONTAINERS if kind is not _Fields), datetime, *_ATOMS)


def _late_atom(value: object) -> object:
    """Write a value whose type was not known so far, and know the type from then on.

    Raises:
        _Unstorable: liteq does not know the type at all.
    """
    kind = type(value)
    for module, name, write in _LATE_ATOMS:
        if getattr(sys.modules.get(module), name, None) is kind:
            _ATOMS[kind] = write
            return write(value)
    raise _Unstorable(value, _why_not(kind))


class _PartsReader:
    """The decoder's hook for a document in parts: the deepest comes first, so every reference finds its part."""

    def __init__(self, revive: Callable[[dict[str, Any]], object]) -> None:
        self._revive = revive
        self._built: dict[int, object] = {}

    def __call__(self, document: dict[str, Any]) -> object:
        tag = document.get(_TAG)
        if tag not in ("ref", "part", "parts"):
            return self._revive(document)
        try:
            return self._assemble(tag, document[_VALUE])
        except (LookupError, TypeError, ValueError) as error:
            raise SerializationError("stored JSON in parts is damaged: its parts do not fit together") from error

    def _assemble(self, tag: object, value: Any) -> object:
        if tag == "ref":
            # Taken out: a part belongs into one place, and forged ones that multiply each other come to nothing.
            return self._built.pop(value)
        if tag == "part":
            number, self._built[number] = value
            return None
        return self._built.pop(0)


# ── JSON: registered classes ─────────────────────────────────────────────────────────────────────────────────────────


class _Registered(NamedTuple):
    """A class that a user made storable. (A named tuple: a dataclass adds 0.5 ms to ``import liteq``.)"""

    cls: type
    name: str
    encode: Callable[[Any], object]
    decode: Callable[[Any], object]


_UNSET = object()


def _registered(
    cls: type[Any],
    encode: Callable[[Any], object] | None,
    decode: Callable[[Any], object] | None,
    name: str | None,
) -> _Registered:
    """Check a registration and find the functions that it does not give.

    Raises:
        ConfigurationError, TypeError: as ``JSONSerializer.register``.
    """
    if not isinstance(cls, type):
        raise TypeError(f"register takes a class, not {_type_name(type(cls))}")
    if cls in _ATOMS or cls in _CONTAINERS or any(_is_late(cls, module, known) for module, known, _ in _LATE_ATOMS):
        raise ConfigurationError(f"register({_type_name(cls)}): liteq stores this type exactly already")
    if name is not None and (not isinstance(name, str) or not name or not _is_text(name)):
        raise ConfigurationError(f"register({_type_name(cls)}): name must be text, not {_short(name)}")
    if (encode is None) != (decode is None):
        raise ConfigurationError(f"register({_type_name(cls)}): encode and decode go together, give both or neither")
    if encode is None or decode is None:
        encode, decode = _own_codec(cls)
    return _Registered(cls, name or cls.__qualname__, encode, decode)


def _is_late(cls: type, module: str, name: str) -> bool:
    return getattr(sys.modules.get(module), name, None) is cls


def _own_codec(cls: type[Any]) -> tuple[Callable[[Any], object], Callable[[Any], object]]:
    """The functions for a class that needs none from its user."""
    if issubclass(cls, Enum):
        return _enum_codec(cls)
    if _is_named_tuple(cls):
        return _named_tuple_codec(cls)
    if dataclasses.is_dataclass(cls) and not issubclass(cls, _NATIVE_BASES):
        return _dataclass_codec(cls)
    raise ConfigurationError(
        f"register({_type_name(cls)}): only dataclasses, Enums and named tuples need no functions; give "
        "encode= (instance to storable value) and decode= (that value to instance)"
    )


def _enum_codec(cls: type[Enum]) -> tuple[Callable[[Any], object], Callable[[Any], object]]:
    """By name, so that a member's value may change; flags by value, because a combination has no name."""
    if issubclass(cls, Flag):
        return lambda member: member.value, cls

    def decode(name: object) -> Enum:
        member = cls.__members__.get(_expect(str, name))
        if member is None:
            raise ValueError(f"{_type_name(cls)} has no member {_short(name)}")
        return member

    return lambda member: member.name, decode


def _is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and hasattr(cls, "_fields") and hasattr(cls, "_make")


def _named_tuple_codec(cls: Any) -> tuple[Callable[[Any], object], Callable[[Any], object]]:
    names: tuple[str, ...] = cls._fields

    def encode(value: tuple[object, ...]) -> object:
        return _Fields(zip(names, value, strict=True))

    def decode(fields: object) -> object:
        stored = _known_fields(cls, names, fields)
        return cls._make(stored[name] if name in stored else cls._field_defaults[name] for name in names)

    return encode, decode


def _dataclass_codec(cls: Any) -> tuple[Callable[[Any], object], Callable[[Any], object]]:
    """By its fields. The constructor runs, so that fields that are newer than the stored job get their defaults."""
    names = tuple(field.name for field in dataclasses.fields(cls))
    accepted = _constructor_arguments(cls, names)

    def encode(instance: object) -> object:
        pairs = ((name, getattr(instance, name, _UNSET)) for name in names)
        return _Fields((name, value) for name, value in pairs if value is not _UNSET)

    def decode(fields: object) -> object:
        stored = _known_fields(cls, names, fields)
        instance = cls(**{name: value for name, value in stored.items() if name in accepted})
        for name, value in stored.items():  # what the constructor does not take, and what __post_init__ changed
            object.__setattr__(instance, name, value)
        return instance

    return encode, decode


def _known_fields(cls: type, names: Sequence[str], fields: object) -> dict[str, object]:
    stored = _expect(dict, fields)
    for name in stored:
        if name not in names:
            raise ValueError(f"{_type_name(cls)} has no field {_short(name)} (any more)")
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
                f"register({_type_name(cls)}): its constructor needs {name!r}, which is not stored as a field; "
                "give encode= and decode="
            )
    return frozenset(name for name in taken if name in names and taken[name].kind in by_name)


# ── Pickle ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class PickleSerializer(Serializer):
    """Takes nearly everything, and trusts the file completely.

    Unpickling runs whatever code the bytes ask for: whoever can write to the queue's file can run code in the workers.
    Use it for a file that only the app can write to, or inside a ``SignedSerializer``. Stored jobs hold the import
    paths of classes, so a class that moves makes waiting jobs unreadable.
    """

    name: ClassVar[str] = "pickle"

    def __init__(self) -> None:
        import pickle

        self._dumps, self._loads = pickle.dumps, pickle.loads

    def dumps(self, value: object) -> bytes:
        try:
            return self._dumps(value, 5)
        except TaskTimeout:
            raise
        except Exception as error:
            raise SerializationError(f"pickle cannot store it: {_pickle_words(error)}") from error

    def loads(self, data: bytes) -> object:
        try:
            return self._loads(data)
        except TaskTimeout:
            raise
        except Exception as error:
            raise SerializationError(f"these bytes cannot be unpickled: {_pickle_words(error)}") from error


def _pickle_words(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else _words(error)


# ── Around another serializer: signed, compressed ────────────────────────────────────────────────────────────────────


class _Wrapper(Serializer):
    """A serializer that wraps the bytes of another one."""

    def __init__(self, inner: str | Serializer) -> None:
        self.inner = serializer_for(inner)

    def dumps(self, value: object) -> bytes:
        return self._wrap(self.inner.dumps(value), b"value")

    def loads(self, data: bytes) -> object:
        return self.inner.loads(self._unwrap(data, b"value"))

    def dumps_call(self, args: tuple[object, ...], kwargs: dict[str, object], names: Sequence[str] = ()) -> bytes:
        return self._wrap(self.inner.dumps_call(args, kwargs, names), b"call")

    def loads_call(self, data: bytes) -> Call:
        return self.inner.loads_call(self._unwrap(data, b"call"))

    @abstractmethod
    def _wrap(self, data: bytes, purpose: bytes) -> bytes: ...

    @abstractmethod
    def _unwrap(self, data: bytes, purpose: bytes) -> bytes: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}(inner={self.inner!r})"


class SignedSerializer(_Wrapper):
    """Signs with HMAC-SHA256, and reads only what was signed with one of its keys.

    A signature says that a holder of the key wrote these bytes, as arguments or as a result; not when, and not for
    which job. The bytes are not encrypted. Layout: ``b"LQS1"``, the 32 bytes of the signature, the inner serializer's
    bytes; signed are the header, ``call:`` or ``value:``, and the inner bytes.

    Args:
        key: a secret of at least 16 bytes (``secrets.token_bytes(32)``), the same in every process; text is taken as
            UTF-8.
        inner: what writes the signed bytes: ``"json"``, ``"pickle"`` or a serializer.
        old_keys: keys that are still accepted and no longer used. To change the key without losing jobs: give every
            process the new key here first, then make it ``key`` with the old one here, then drop the old one.

    Raises:
        ConfigurationError: a key is too short.
        TypeError: a key is neither text nor bytes.
    """

    name: ClassVar[str] = "signed"

    def __init__(
        self, key: str | bytes, inner: str | Serializer = "json", *, old_keys: Sequence[str | bytes] = ()
    ) -> None:
        import hmac

        super().__init__(inner)
        if isinstance(old_keys, (str, bytes)):
            raise TypeError("old_keys is a sequence of keys, not one key: old_keys=[key]")
        self._key = _key_bytes("key", key)
        self._keys = (self._key, *(_key_bytes(f"old_keys[{index}]", old) for index, old in enumerate(old_keys)))
        self._digest, self._same = hmac.digest, hmac.compare_digest

    def _wrap(self, data: bytes, purpose: bytes) -> bytes:
        return _SIGNED_HEADER + self._signature(self._key, data, purpose) + data

    def _unwrap(self, data: bytes, purpose: bytes) -> bytes:
        if not data.startswith(_SIGNED_HEADER):
            raise SerializationError("these bytes are not signed: were they written before signing was switched on?")
        start = len(_SIGNED_HEADER)
        signature, signed = data[start : start + 32], data[start + 32 :]
        if not any(self._same(self._signature(key, signed, purpose), signature) for key in self._keys):
            raise SerializationError(
                "the signature does not fit: these bytes were changed, or signed with a key that is not known here "
                "(a key that was replaced belongs into old_keys)"
            )
        return signed

    def _signature(self, key: bytes, data: bytes, purpose: bytes) -> bytes:
        return self._digest(key, b"%b%b:%b" % (_SIGNED_HEADER, purpose, data), "sha256")


def _key_bytes(option: str, key: str | bytes) -> bytes:
    """Check one key; the message never shows it."""
    if not isinstance(key, (str, bytes)):
        raise TypeError(f"{option} must be str or bytes, not {_type_name(type(key))}")
    secret = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    if len(secret) < 16:
        raise ConfigurationError(
            f"{option} has {len(secret)} bytes and needs at least 16, such as secrets.token_bytes(32)"
        )
    return secret


class CompressedSerializer(_Wrapper):
    """Compresses what is large, with zlib.

    What is small, or does not shrink, stays as the inner serializer wrote it; so bytes from before compression was
    switched on are read as well. Compressed ones are ``b"\\x00LQZ1"`` and a zlib stream. To sign as well, sign the
    compressed bytes, so that nothing unsigned is unpacked: ``SignedSerializer(key, CompressedSerializer())``.

    Args:
        inner: what writes the bytes: ``"json"``, ``"pickle"`` or a serializer.
        level: 1 (fast) to 9 (small).
        threshold: bytes from which on compression is tried.
        max_size: bytes that one value may have before compression, in either direction; stored bytes that would
            unpack to more are refused without unpacking them.

    Raises:
        ConfigurationError: an option out of its range.
    """

    name: ClassVar[str] = "compressed"

    def __init__(
        self,
        inner: str | Serializer = "json",
        *,
        level: int = 6,
        threshold: int = 512,
        max_size: int = 256 * 1024 * 1024,
    ) -> None:
        import zlib

        super().__init__(inner)
        _check_range("level", level, 1, 9)
        _check_range("threshold", threshold, 0)
        _check_range("max_size", max_size, 1)
        self._level, self._threshold, self._max_size = level, threshold, max_size
        self._zlib = zlib

    def _wrap(self, data: bytes, purpose: bytes) -> bytes:
        looks_compressed = data.startswith(_COMPRESSED_HEADER)
        if len(data) < self._threshold and not looks_compressed:
            return data
        if len(data) > self._max_size:
            raise SerializationError(f"cannot store {len(data):,} bytes: max_size is {self._max_size:,}")
        packed = _COMPRESSED_HEADER + self._zlib.compress(data, self._level)
        return packed if len(packed) < len(data) or looks_compressed else data

    def _unwrap(self, data: bytes, purpose: bytes) -> bytes:
        if not data.startswith(_COMPRESSED_HEADER):
            return data
        unpacker = self._zlib.decompressobj()
        try:
            unpacked = unpacker.decompress(data[len(_COMPRESSED_HEADER) :], self._max_size + 1)
        except self._zlib.error as error:
            raise SerializationError(f"compressed bytes are damaged: {error}") from error
        if len(unpacked) > self._max_size:
            raise SerializationError(f"compressed bytes hold more than max_size, {self._max_size:,} bytes")
        if not unpacker.eof or unpacker.unused_data:
            raise SerializationError("compressed bytes are damaged: they end too early or too late")
        return unpacked


def _check_range(option: str, value: int, lowest: int, highest: int | None = None) -> None:
    if type(value) is not int:
        raise TypeError(f"{option} must be an int, not {_type_name(type(value))}")
    if value < lowest or (highest is not None and value > highest):
        limits = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise ConfigurationError(f"{option}={value} must be {limits}")
