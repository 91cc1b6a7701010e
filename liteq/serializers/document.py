"""What the JSON looks like that is written, and what it says where a value has no place in it.

You stand below everything that writes or reads JSON here. The rules:

- Plain values (``str``, ``int``, ``float``, ``bool``, ``None``, lists, dicts with ``str`` keys) are plain, strict
  JSON, so that any other language can read and write them. A call is ``[[positional], {"keyword": …}]``.
- Everything else is an object with the key ``"$liteq"``: ``{"$liteq": "tuple", "value": [1, 2]}``. An instance of a
  registered class is ``{"$liteq": "class", "name": "Order", "value": …}``. A user's dict that happens to have this key
  is stored as pairs.
- Values nested more than 64 levels deep are cut into parts that refer to each other, so that neither side depends on
  how much of the Python stack is left: ``{"$liteq": "parts", "value": [{"$liteq": "part", "value": [1, …]}, …]}``, the
  deepest part first, the root (part 0) last, and ``{"$liteq": "ref", "value": 1}`` where part 1 belongs.
"""

from __future__ import annotations

import json
import json.encoder
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

TAG = "$liteq"
VALUE = "value"
MARKER = f'"{TAG}"'
PARTS_START = f'{{"{TAG}":"parts"'

PART_DEPTH = 64
"""Levels of nesting per part. A level costs three Python frames while it is written: a fifth of the default stack."""

_SURROGATE = re.compile("([\ud800-\udfff])")


def tagged(tag: str, value: object) -> dict[str, object]:
    return {TAG: tag, VALUE: value}


def expect(kind: type[T], value: object) -> T:
    if type(value) is not kind:
        raise ValueError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value


def is_text(value: str) -> bool:
    return value.isascii() or _SURROGATE.search(value) is None


def write_str(value: str) -> object:
    """Halves of surrogate pairs are no text that UTF-8 can hold (``os.listdir`` makes them of undecodable names)."""
    if is_text(value):
        return value
    pieces = (ord(piece) if _SURROGATE.fullmatch(piece) else piece for piece in _SURROGATE.split(value) if piece)
    return tagged("str", list(pieces))


def read_str(value: object) -> str:
    return "".join(chr(piece) if type(piece) is int else expect(str, piece) for piece in expect(list, value))


def compact_encoder() -> Callable[[object], str]:
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


to_json = compact_encoder()


def _write_float(value: float) -> str:
    if value - value:  # neither is a number then
        raise ValueError("Out of range float values are not JSON compliant")
    return float.__repr__(value)


#: How the values of JSON's own types that hold no others are written, by exact type: what `to_json` writes, in a third
#: of its time. Raises ValueError, as that does, for floats that are no numbers and integers of thousands of digits.
SCALARS: Mapping[type, Callable[[Any], str]] = {
    str: json.encoder.encode_basestring,
    int: int.__repr__,
    float: _write_float,
    bool: {False: "false", True: "true"}.__getitem__,
    type(None): {None: "null"}.__getitem__,
}


# ── Values that have no place in it ──────────────────────────────────────────────────────────────────────────────────


class Unstorable(Exception):
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


class Fields(dict[str, object]):
    """The fields of a registered instance on their way out; an error's path shows them as attributes."""


def _step(container: object, culprit: object) -> str:
    """The words that lead from a container to the culprit in it: ``[3]``, ``['name']``, ``.name``."""
    if isinstance(container, Fields):
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
