"""Everything in a queue as lines of JSON, and back again: from any storage to any other.

You stand on floor 2. The first line says what the file is, each further one holds a mark, a schedule, or a job with all
that is kept about it, and the last one says how many there were, so a file that was cut off is known as such::

    {"liteq": "export", "version": 1}
    {"mark": {"key": "pause:mail", "value": "1"}}
    {"job": {"job": {"seq": 1, "id": "1-00c0ffee00", "task": "shop.mail", "state": "ready", "payload": "[[1],{}]", …}}}
    {"end": {"jobs": 1, "schedules": 0, "marks": 1}}

A field that says what it says by default is left out. Bytes are text, or ``{"base64": …}`` where they are not UTF-8.
Nothing is unpickled or run: payloads stay the bytes that they are.
"""

from __future__ import annotations

import json
import os
import types
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO, Union, get_args, get_origin, get_type_hints

from liteq.errors import StorageError
from liteq.gates import LIMIT_MARK, NAMED_RATE, RATE_MARK
from liteq.job import JobState
from liteq.lifecycle import CANCEL_MARK, PAUSE_MARK, REVOKE_MARK, arrive, cancel_mark
from liteq.schedule import Schedule
from liteq.storage.base import Storage
from liteq.storage.cargo import Mark, Parcel, Piece, Taken

#: Raised where an older liteq could not read what this one writes.
VERSION = 1
_KINDS: dict[str, Any] = {"mark": Mark, "schedule": Schedule, "job": Parcel}
_PLURALS = {"job": "jobs", "schedule": "schedules", "mark": "marks"}
#: Marks that mean something in another file; the others are about processes and jobs that run.
_MARKS = (PAUSE_MARK, REVOKE_MARK, LIMIT_MARK, RATE_MARK, NAMED_RATE)


class Exported(NamedTuple):
    """How much of each was written."""

    jobs: int = 0
    schedules: int = 0
    marks: int = 0


# ── out ──────────────────────────────────────────────────────────────────────────────────────────────────


def export(storage: Storage, to: TextIO, now: float) -> Exported:
    """Write everything that a storage holds to an open text file."""
    counts: Counter[str] = Counter()
    cancelled: set[str] = set()

    def put(piece: Piece) -> None:
        if isinstance(piece, Mark) and piece.key.startswith(CANCEL_MARK):
            cancelled.add(piece.key)
        piece = _arrived(piece, now, cancelled)
        if not isinstance(piece, Mark) or piece.key.startswith(_MARKS):
            kind = _kind_of(piece)
            counts[_PLURALS[kind]] += 1
            to.write(f"{_line({kind: piece})}\n")

    to.write(f"{_line({'liteq': 'export', 'version': VERSION})}\n")
    storage.unload(put)
    to.write(f"{_line({'end': {name: counts[name] for name in Exported._fields}})}\n")
    return Exported(**counts)


def export_to_file(storage: Storage, target: Path, now: float, *, overwrite: bool) -> Exported:
    """The same, to a new file that appears whole.

    Raises:
        StorageError: there is no new file; one that was there is as it was.
    """
    if target.is_dir() or (target.exists() and not overwrite):
        raise StorageError(f"{target} exists already; nothing was written")
    part = target.with_name(f".{target.name}.{os.urandom(6).hex()}.part")
    try:
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)  # it holds what the queue holds
        try:
            with os.fdopen(descriptor, "w", encoding="ascii", newline="\n") as file:
                exported = export(storage, file, now)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{target} cannot be written: {error.strerror}; there is no export") from error
    return exported


def _arrived(piece: Piece, now: float, cancelled: set[str]) -> Piece:
    if not isinstance(piece, Parcel):
        return piece
    job = piece.job
    is_cancelled = job.state is JobState.RUNNING and cancel_mark(job) in cancelled
    return piece._replace(job=arrive(job, now, cancelled=is_cancelled))


def _kind_of(piece: Piece) -> str:
    return next(kind for kind, made in _KINDS.items() if isinstance(piece, made))


def _line(values: dict[str, Any]) -> str:
    return json.dumps(_plain(values), separators=(",", ":"), check_circular=False)


def _plain(value: Any) -> Any:
    """What JSON knows."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, tuple):
        if (fields := getattr(value, "_fields", None)) is None:
            return [_plain(one) for one in value]
        defaults = getattr(value, "_field_defaults", {})
        pairs = ((name, one) for name, one in zip(fields, value, strict=True) if one != defaults.get(name, ...))
        return {name: _plain(one) for name, one in pairs}
    if isinstance(value, bytes):
        return _text_of(value)
    return value.value if isinstance(value, Enum) else value


def _text_of(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(value).decode()}


# ── in ───────────────────────────────────────────────────────────────────────────────────────────────────


class _Unfit(ValueError):
    """What a line holds cannot be read as what it says to be."""


def import_into(storage: Storage, source: Iterable[bytes], name: str, now: float) -> Taken:
    """Store what an export holds, as far as it is not there already.

    Args:
        source: its lines.
        name: of the file, for messages.

    Raises:
        StorageError: it is torn, foreign or of a newer liteq, and which line says so; nothing was stored.
    """
    parcels: list[Parcel] = []
    schedules: list[Schedule] = []
    marks: dict[str, str] = {}
    for piece in _pieces(source, name):
        if isinstance(piece, Parcel):
            parcels.append(piece)
        elif isinstance(piece, Schedule):
            schedules.append(piece)
        else:
            marks[piece.key] = piece.value
    return storage.take_in(parcels, schedules, marks, now)


def import_file(storage: Storage, source: Path, now: float) -> Taken:
    """`import_into`, from the file of this path."""
    try:
        with source.open("rb") as file:
            return import_into(storage, file, str(source), now)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{source} cannot be read: {error.strerror}; nothing was imported") from error


def _pieces(source: Iterable[bytes], name: str) -> Iterator[Piece]:
    """What the lines hold; raises before the end unless there is one."""
    counts = dict.fromkeys(Exported._fields, 0)
    number, ended = 0, False
    for number, line in enumerate(source, 1):
        try:
            if ended:
                raise _Unfit("something follows the last line of an export")
            kind, content = _read(line)
            if number == 1:
                _check_head(kind, content)
            elif kind == "end":
                ended = _agrees(content, counts)
            else:
                counts[_PLURALS[kind]] += 1
                yield content
        except _Unfit as error:
            raise StorageError(f"{name}, line {number}: {error}; nothing was imported") from None
    if not ended:
        raise StorageError(f"{name} ends after line {number}, in the middle of an export; nothing was imported")


def _read(line: bytes) -> tuple[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise _Unfit("this is no line of an export (not JSON, or cut off)") from None
    if not isinstance(values, dict) or not values:
        raise _Unfit("this is no line of an export")
    kind = next(iter(values))
    if kind in ("liteq", "end"):
        return kind, values
    if kind not in _KINDS or len(values) > 1:
        raise _Unfit(f"a newer liteq may know what {kind!r} is, this one does not")
    return kind, _reader(_KINDS[kind])(values[kind])


def _check_head(kind: str, values: Any) -> None:
    if kind != "liteq" or values["liteq"] != "export":
        raise _Unfit("this is not an export of liteq")
    version = values.get("version")
    if type(version) is not int or version > VERSION:
        raise _Unfit(f"a newer liteq wrote this (version {version}, this one knows {VERSION}); upgrade liteq here")


def _agrees(values: Any, counts: dict[str, int]) -> bool:
    if values["end"] != counts:
        raise _Unfit(f"here should be the end of {values['end']}, and {counts} came before it: something is missing")
    return True


@cache
def _reader(hint: Any) -> Callable[[Any], Any]:
    """What makes a value of this type of what JSON has made of it, or raises _Unfit."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (one,) = [_reader(other) for other in inner if other is not types.NoneType]
        return lambda value: None if value is None else one(value)
    if origin is tuple:
        return _reader_of_tuple(inner)
    if hint is bytes:
        return _bytes_of
    if hint is float:
        return lambda value: float(_of_type((int, float), value))
    if issubclass(hint, Enum):
        return lambda value: _enum_of(hint, value)
    if hasattr(hint, "_fields"):
        return _reader_of_fields(hint)
    return lambda value: _of_type((hint,), value)


def _of_type(kinds: tuple[type, ...], value: Any) -> Any:
    if type(value) not in kinds:
        raise _Unfit(f"{value!r:.80} is no {kinds[-1].__name__}")
    return value


def _enum_of(hint: type[Enum], value: Any) -> Enum:
    try:
        return hint(value)
    except ValueError:
        raise _Unfit(f"{value!r:.80} is no {hint.__name__}") from None


def _bytes_of(value: Any) -> bytes:
    try:
        return str(value).encode() if isinstance(value, str) else b64decode(value["base64"], validate=True)
    except (ValueError, TypeError, KeyError):
        raise _Unfit(f"{value!r:.80} stands for no bytes") from None


def _reader_of_tuple(inner: tuple[Any, ...]) -> Callable[[Any], Any]:
    if inner[-1] is Ellipsis:
        each = _reader(inner[0])
        return lambda value: tuple([each(one) for one in _of_type((list,), value)])
    steps = [_reader(one) for one in inner]

    def read(value: Any) -> tuple[Any, ...]:
        if len(_of_type((list,), value)) != len(steps):
            raise _Unfit(f"{value!r:.80} should be {len(steps)} values")
        return tuple([step(one) for step, one in zip(steps, value, strict=True)])

    return read


def _reader_of_fields(made: Any) -> Callable[[Any], Any]:
    hints = get_type_hints(made)
    wanted = {name for name in made._fields if name not in made._field_defaults}
    # What only a new job, or a claimed one, says of itself is not kept, and so it is not read.
    hints = {name: hints[name] for name in made._fields if name not in ("unique", "inputs")}

    def read(value: Any) -> Any:
        given = _of_type((dict,), value)
        if unknown := given.keys() - hints.keys():
            raise _Unfit(f"a newer liteq may know what {min(unknown)!r} is, this one does not")
        if lacking := wanted - given.keys():
            raise _Unfit(f"{min(lacking)!r} is missing")
        return made(**{name: _reader(hints[name])(one) for name, one in given.items()})

    return read
