"""``JSONSerializer``: what is written when nobody chooses anything else.

You stand at the top of the JSON rooms. Two ways lead through here. The quick one serves plain values: one look at the
exact types, then the C encoder. Whatever it does not serve goes through ``writer.py``, which tags. Reading needs tags
only where the marker occurs in the bytes; what it finds behind a tag, ``known.py`` or a registered class reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar, overload

from liteq.errors import ConfigurationError, SerializationError, TaskTimeout
from liteq.serializers.contract import (
    COMPRESSED_HEADER,
    SIGNED_HEADER,
    Serializer,
    error_words,
    short,
    type_name,
)
from liteq.serializers.document import MARKER, PART_DEPTH, PARTS_START, SCALARS, TAG, VALUE, to_json
from liteq.serializers.known import reader_of
from liteq.serializers.registered import Registered, registration
from liteq.serializers.writer import PartsReader, Writer

T = TypeVar("T")

_TEXT = frozenset({str})
_SCALARS = frozenset(SCALARS)
_plain_decoder = json.JSONDecoder()
#: The C scanner alone: ``scan(text, 0) -> value, end``. A third of the time that `decode` takes.
_scan: Callable[[str, int], tuple[Any, int]] = _plain_decoder.scan_once  # type: ignore[attr-defined]


def _is_plain(value: object, levels: int = PART_DEPTH) -> bool:
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


def _read_plain(text: str) -> object:
    """Read one JSON text without tags."""
    try:
        value, end = _scan(text, 0)
        if end == len(text):
            return value
    except StopIteration:  # nothing begins there; white space may, or nothing at all
        pass
    return _plain_decoder.decode(text)


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
        self._by_type: dict[type, Registered] = {}
        self._by_name: dict[str, Registered] = {}
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
        entry = registration(cls, encode, decode, name)
        holder = self._by_name.get(entry.name)
        if holder is not None and holder.cls is not cls:
            raise ConfigurationError(
                f"register({type_name(cls)}): the name {entry.name!r} is taken by {type_name(holder.cls)}; "
                "give one of them another name="
            )
        self._by_name[entry.name] = entry
        self._by_type[cls] = entry
        return cls

    def dumps(self, value: object) -> bytes:
        if value is None:
            return b"null"
        try:
            write = SCALARS.get(type(value))
            if write is not None or _is_plain(value):
                text = to_json(value) if write is None else write(value)
                if MARKER not in text:
                    return text.encode()
        except (ValueError, TypeError, RecursionError):
            pass  # nan, a very long int, half a surrogate pair, …: the careful way stores it or says what is wrong
        return self._write(lambda writer: writer.value("value", value))

    def loads(self, data: bytes) -> object:
        try:
            text = data.decode()
            if MARKER not in text:  # in bytes, looking for it takes six times as long
                return _read_plain(text)
            if text.startswith(PARTS_START):
                return json.JSONDecoder(object_hook=PartsReader(self._revive)).decode(text)
            return self._decoder.decode(text)
        except (ValueError, RecursionError) as error:
            if isinstance(error, SerializationError):
                raise
            raise SerializationError(f"these bytes are not JSON that can be read: {_complaint(data, error)}") from error

    def dumps_call(self, args: tuple[object, ...], kwargs: dict[str, object], names: Sequence[str] = ()) -> bytes:
        try:
            scalars = _SCALARS.issuperset(map(type, args))
            if (scalars or all(map(_is_plain, args))) and (not kwargs or _is_plain(kwargs)):
                if scalars and not kwargs:  # as most calls are
                    text = f"[[{','.join([SCALARS[type(one)](one) for one in args])}],{{}}]"
                else:
                    text = to_json((args, kwargs))
                if MARKER not in text:
                    return text.encode()
        except (ValueError, TypeError, RecursionError):
            pass  # as in dumps
        return self._write(lambda writer: writer.call(args, kwargs, names))

    def _write(self, write: Callable[[Writer], object]) -> bytes:
        """The careful way: tag what needs a tag, then encode.

        Raises:
            SerializationError: the value cannot be stored.
        """
        writer = Writer(self._by_type)
        try:
            return to_json(writer.document(write(writer))).encode()
        except RecursionError as error:
            raise SerializationError(f"cannot store {writer.where}: too little of the Python stack is left") from error
        except RuntimeError as error:
            raise SerializationError(f"cannot store {writer.where}: {error} (by another thread?)") from error

    def _revive(self, document: dict[str, Any]) -> object:
        """Called by the JSON decoder with every object it has read, the innermost first."""
        if TAG not in document:
            return document
        try:
            return self._read_tagged(document)
        except (SerializationError, TaskTimeout):
            raise
        except Exception as error:
            raise SerializationError(f"a stored {_tag_words(document)} cannot be read: {error_words(error)}") from error

    def _read_tagged(self, document: dict[str, Any]) -> object:
        tag = document[TAG]
        if tag == "class":
            return self._read_registered(document)
        read = reader_of(tag) if type(tag) is str else None
        if read is None:
            raise SerializationError(
                f"stored JSON has a {TAG!r} object of a kind this liteq does not know, {short(tag)}: "
                "it was written by a newer version, or by something else"
            )
        if document.keys() != {TAG, VALUE}:
            raise ValueError(f"it has the keys {short(', '.join(sorted(document)))}")
        return read(document[VALUE])

    def _read_registered(self, document: dict[str, Any]) -> object:
        if document.keys() != {TAG, "name", VALUE}:
            raise ValueError(f"it has the keys {short(', '.join(sorted(document)))}")
        name = document["name"]
        entry = self._by_name.get(name) if type(name) is str else None
        if entry is None:
            raise SerializationError(
                f"stored JSON holds an instance of {short(name)}, and no class is registered under this name here: "
                "register it with serializer.register(…) in the module of the app, which both sides import"
            )
        return entry.decode(document[VALUE])


def _complaint(data: bytes, error: Exception) -> str:
    """What is wrong with bytes that are not JSON, with a guess at what they are."""
    if isinstance(error, RecursionError):
        return "they are nested too deeply"
    for header, words in (
        (SIGNED_HEADER, "they are signed: read them with the SignedSerializer that wrote them"),
        (COMPRESSED_HEADER, "they are compressed: read them with a CompressedSerializer"),
        (b"\x80", "they look like pickle: were they written with serializer='pickle'?"),
    ):
        if data.startswith(header):
            return words
    return "there are none" if not data else str(error)


def _tag_words(document: Mapping[str, object]) -> str:
    return short(document.get("name")) if document[TAG] == "class" else short(document[TAG])
