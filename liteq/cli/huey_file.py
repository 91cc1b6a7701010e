"""Reads what waits in a SQLite file of huey's, without huey and without running anything that is in it.

huey pickles each call, and a pickle can name any function to be called. Here only the classes of plain values are known
(`_KNOWN`); whatever else a message names refuses that one message. The file is opened for reading only.
"""

from __future__ import annotations

import io
import pickle
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

#: Messages larger than this are refused: huey would not have been quick with them either.
LARGEST = 64 << 20


class NotHuey(Exception):
    """The file is none of huey's; the message says why."""


class Unreadable(Exception):
    """This message cannot be taken over; the message says why."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call that waits in huey.

    Args:
        id: huey's.
        queue: the name of the Huey object.
        task: the stored name of its task, ``module.function``.
        args, kwargs: of the call.
        eta: when it is due; ``None``: now.
        priority, retries, retry_delay, retry_backoff, timeout: huey's, where it has them; ``retries`` are those left.
        expires: by when it must have been started.
        is_revoked: somebody has revoked this call.
        more: what of it has no counterpart in one call: a pipeline's next step, an error handler, a chord.
    """

    id: str
    queue: str
    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    eta: datetime | None
    priority: int | None
    retries: int | None
    retry_delay: float | None
    retry_backoff: float | None
    timeout: float | None
    expires: datetime | None
    is_revoked: bool
    more: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the file: a call, or why it cannot be read."""

    row: str
    call: Call | None
    problem: str = ""


def entries(path: Path, *, local: bool) -> list[Entry]:
    """What waits in the file: in the order in which huey would run it, then what is scheduled, by time.

    Args:
        local: huey's naive times are local ones (it was made with ``utc=False``) rather than UTC.

    Raises:
        NotHuey: there is no such file, or it is none of huey's.
    """
    if not path.is_file():
        raise NotHuey(f"{path} does not exist, or is no file")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            rows = [(f"task {number}", queue, data) for number, queue, data in connection.execute(_TASKS)]
            rows += [(f"schedule {number}", queue, data) for number, queue, data in connection.execute(_SCHEDULE)]
            revoked = {(queue, key) for queue, key in connection.execute("SELECT queue, key FROM kv")}
    except sqlite3.Error as error:
        raise NotHuey(f"{path} is no SQLite file of huey's: {error}") from error
    return [_entry(row, queue, data, local, revoked) for row, queue, data in rows]


_TASKS = "SELECT id, queue, data FROM task ORDER BY priority DESC, id"
_SCHEDULE = "SELECT id, queue, data FROM schedule ORDER BY timestamp, id"


def _entry(row: str, queue: str, data: bytes, local: bool, revoked: set[tuple[str, str]]) -> Entry:
    try:
        message = _message(data)
        return Entry(row, _call(message, queue, local, revoked))
    except Unreadable as error:
        return Entry(row, None, str(error))


def _message(data: bytes) -> dict[str, Any]:
    """The fields of a pickled message by name."""
    if len(data) > LARGEST:
        raise Unreadable(f"it has {len(data)} bytes, more than {LARGEST}")
    if data[:1] != pickle.PROTO:
        raise Unreadable("it is not pickled: huey was given a serializer of its own, compressing or signing")
    try:
        found = _Unpickler(io.BytesIO(data)).load()
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"its pickle is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(found, _Message) or len(found) < len(_FIELDS):
        raise Unreadable("it is no message of huey's")
    return dict(zip(_FIELDS + _LATER_FIELDS, tuple(found) + (None,) * len(_LATER_FIELDS), strict=False))


def _call(message: dict[str, Any], queue: str, local: bool, revoked: set[tuple[str, str]]) -> Call:
    args, kwargs = message["args"], message["kwargs"]
    try:
        return Call(
            id=str(message["id"]),
            queue=queue,
            task=str(message["name"]),
            args=tuple(args or ()),
            kwargs=dict(kwargs or {}),
            eta=_instant(message["eta"], local),
            priority=None if message["priority"] is None else int(message["priority"]),
            retries=None if message["retries"] is None else int(message["retries"]),
            retry_delay=_number(message["retry_delay"]),
            retry_backoff=_number(message["retry_backoff"]),
            timeout=_number(message["timeout"]),
            expires=_instant(message["expires_resolved"], local),
            is_revoked=(queue, f"r:{message['id']}") in revoked,
            more=tuple(name for name in ("on_complete", "on_error", "chord_config") if message[name]),
        )
    except (TypeError, ValueError) as error:
        raise Unreadable(f"it is no message of huey's: {error}") from error


def _instant(value: object, local: bool) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise TypeError(f"{value!r} is no time")
    if value.tzinfo is not None:
        return value
    return value.astimezone() if local else value.replace(tzinfo=UTC)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


# ── unpickling without running anything ──────────────────────────────────────────────────────────────────

_FIELDS = ("id", "name", "eta", "retries", "retry_delay", "priority", "args", "kwargs", "on_complete", "on_error")
#: What newer versions of huey have put behind them.
_LATER_FIELDS = ("expires", "expires_resolved", "timeout", "chord_config", "retry_backoff")


class _Message(tuple[Any, ...]):
    """Stands in for huey's named tuple, of whatever length."""

    def __new__(cls, *fields: Any) -> _Message:
        return super().__new__(cls, fields)


def _zone(key: str, _from_cache: object = None) -> ZoneInfo:
    return ZoneInfo(str(key))


def _latin_1(text: str, _encoding: object = None) -> bytes:
    """How pickle's protocols up to 2 write bytes."""
    return str(text).encode("latin-1")


#: The only names that a message may use. None of them does anything but make a plain value of its arguments.
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("huey.registry", "Message"): _Message,
    ("datetime", "date"): date,
    ("datetime", "datetime"): datetime,
    ("datetime", "time"): time,
    ("datetime", "timedelta"): timedelta,
    ("datetime", "timezone"): timezone,
    ("zoneinfo", "ZoneInfo._unpickle"): _zone,
    ("decimal", "Decimal"): Decimal,
    ("uuid", "UUID"): UUID,
    ("uuid", "SafeUUID"): SafeUUID,
    **{
        (module, known.__name__): known
        for known in (PosixPath, PurePosixPath, PureWindowsPath, PurePath)
        for module in ("pathlib", "pathlib._local")  # as Python 3.13 calls it
    },
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,  # as Python 2, and pickle's protocols up to 2, call it
    ("__builtin__", "frozenset"): frozenset,
    ("_codecs", "encode"): _latin_1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is None:
            raise Unreadable(f"it names {module}.{name}, which may be anything, so it is not loaded")
        return known
