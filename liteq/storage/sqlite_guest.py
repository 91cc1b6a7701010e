"""Work on a connection, and in a transaction, of somebody else's: of the app, or of a running job.

You stand beside `sqlite_connection`, which is about liteq's own connections. Nothing of a foreign one is changed: not
how it makes rows, not when it begins and commits, and what is stored here is stored if and when its owner commits. No
turnstile is passed, as the write lock is his already, or he waits for it as he would anyway.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

from liteq.errors import ConfigurationError, StorageBusy, StorageError, StorageUnusable

T = TypeVar("T")

#: What leads from what people hold in hand to what is underneath: Django's wrapper and a cursor of `sqlite3`
#: (``connection``), SQLAlchemy's session, connection and pooled connection (``connection()``, ``connection``,
#: ``driver_connection``), Peewee's database (``connection()``).
_WAYS = ("driver_connection", "dbapi_connection", "connection")
_LONGEST_WAY = 8

_BY_SQL = "From anywhere else a job is enqueued by SQL: INSERT INTO liteq_enqueue (task, args) VALUES (…)"


def unwrapped(given: object) -> sqlite3.Connection:
    """The `sqlite3.Connection` underneath, found by looking, without importing anybody.

    Raises:
        TypeError: there is none.
    """
    seen: Any = given
    for _ in range(_LONGEST_WAY):
        if isinstance(seen, sqlite3.Connection):
            return seen
        if hasattr(seen, "sync_session") or hasattr(seen, "sync_connection"):
            break  # SQLAlchemy's asyncio: the connection underneath lives in a thread of its own
        if hasattr(seen, "ensure_connection"):
            seen.ensure_connection()  # Django connects at the first query
        if hasattr(seen, "exec_driver_sql") and not (seen.closed or seen.in_transaction()):
            seen.exec_driver_sql("SELECT 1")  # or SQLAlchemy knows of no transaction, and its commit() would do nothing
        step = next((found for way in _WAYS if (found := getattr(seen, way, None)) is not None), None)
        if step is None:
            break
        seen = step() if callable(step) and not isinstance(step, sqlite3.Connection) else step
    raise TypeError(
        "connection takes an open sqlite3.Connection, or what has one underneath (a cursor, a SQLAlchemy session, a "
        f"Django connection), not {type(given).__module__}.{type(given).__qualname__}. {_BY_SQL}"
    )


class Guest:
    """A connection as the storage's functions use one, on somebody else's; see the module.

    Args:
        connection: his.
        schema: under which name it has the queue's file.
    """

    def __init__(self, connection: sqlite3.Connection, schema: str = "main") -> None:
        self.connection = connection
        # Names without a schema would mean the first file that has them, and his own may be a queue as well.
        self._tables = None if schema == "main" else '"{}".liteq_'.format(schema.replace('"', '""'))

    def execute(self, statement: str, parameters: Any = ()) -> sqlite3.Cursor:
        return self._cursor().execute(self._qualified(statement), parameters)

    def executemany(self, statement: str, parameters: Iterable[Any]) -> sqlite3.Cursor:
        return self._cursor().executemany(self._qualified(statement), parameters)

    def _cursor(self) -> sqlite3.Cursor:
        return sqlite3.Cursor(self.connection)  # not his own, which may make anything of a row

    def _qualified(self, statement: str) -> str:
        return statement if self._tables is None else _with_schema(statement, self._tables)

    def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call what takes a connection of liteq's own."""
        with _plain_texts(self.connection):
            return work(cast(sqlite3.Connection, self))


@lru_cache(maxsize=512)
def _with_schema(statement: str, tables: str) -> str:
    return re.sub(r"\bliteq_", lambda _: tables, statement)


@contextmanager
def _plain_texts(connection: sqlite3.Connection) -> Iterator[None]:
    """While liteq reads: a cursor has no way of its own to make texts."""
    factory = connection.text_factory
    if factory is str:
        yield
        return
    connection.text_factory = str
    try:
        yield
    finally:
        connection.text_factory = factory


# ── the app's own transaction ────────────────────────────────────────────────────────────────────────────────────────


class Caller:
    """An app's connection on which something is to be stored.

    Args:
        given: what the app has passed.
        path: the queue's file.

    Raises:
        TypeError: no connection is in it.
        ConfigurationError: it is closed, belongs to another thread, or has not the queue's file open.
    """

    def __init__(self, given: object, path: Path) -> None:
        self.connection = unwrapped(given)
        self._path = path
        try:
            self._guest = Guest(self.connection, self._schema())
        except sqlite3.ProgrammingError as error:  # closed, or of another thread
            raise ConfigurationError(f"nothing was enqueued: the connection cannot be used here: {error}") from error
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _schema(self) -> str:
        # As bytes, because a text would be what his text_factory makes of it.
        statement = "SELECT CAST(name AS BLOB), CAST(file AS BLOB) FROM pragma_database_list WHERE file <> ''"
        files = {bytes(name).decode(): bytes(file).decode() for name, file in Guest(self.connection).execute(statement)}
        for name, file in files.items():
            with suppress(OSError):  # deleted since
                if self._path.samefile(file):
                    return name
        opened = ", ".join(files.values()) or "no file at all (:memory:)"
        raise ConfigurationError(
            f"nothing was enqueued: the connection has {opened} open, and the queue is in {self._path}. Either let the "
            "app's tables live in the queue's file (LiteQ(path) takes the app's own database), or attach it: "
            f"ATTACH '{self._path}' AS queue"
        )

    def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """All or nothing of ``work``, in the caller's transaction. Where none is open, one begins as it would with any
        statement that writes: in autocommit it is committed at once, otherwise it stays open.

        Raises:
            StorageError: nothing of it was stored; what the caller had written before stands as before.
        """
        begin, commit, undo = self._ways()
        try:
            return self._guest.do(lambda connection: _enclosed(connection, work, begin, commit, undo))
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _ways(self) -> tuple[str, str | None, tuple[str, ...]]:
        """The statements that begin, commit and undo."""
        connection = self.connection
        if connection.in_transaction:
            return "SAVEPOINT by_liteq", "RELEASE by_liteq", ("ROLLBACK TO by_liteq", "RELEASE by_liteq")
        legacy = getattr(connection, "autocommit", -1) == -1  # since Python 3.12 there is True and False as well
        if legacy and connection.isolation_level is not None:
            return f"BEGIN {connection.isolation_level}", None, ("ROLLBACK",)
        return "BEGIN IMMEDIATE", "COMMIT", ("ROLLBACK",)

    def _translated(self, error: sqlite3.Error) -> StorageError:
        code = getattr(error, "sqlite_errorcode", 0)
        if code == sqlite3.SQLITE_BUSY_SNAPSHOT:
            return StorageBusy(
                f"{self._path}: your transaction began by reading, and somebody has written since, so it cannot write "
                "any more; nothing was enqueued. Roll it back and begin it with BEGIN IMMEDIATE, or by writing"
            )
        if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StorageBusy(
                f"{self._path}: somebody else holds the write lock, and the connection that you passed waits no longer "
                "for it (sqlite3.connect(timeout=…)); nothing was enqueued"
            )
        if code & 0xFF == sqlite3.SQLITE_READONLY:
            return StorageUnusable(f"{self._path}: the connection that you passed may only read; nothing was enqueued")
        if "no such table: " in str(error) and "liteq_" in str(error):
            return StorageError(
                f"{self._path}: your transaction began before liteq had made its tables, and does not see them; "
                "nothing was enqueued. Roll it back and begin again"
            )
        return StorageError(f"{self._path}: {error}; nothing was enqueued")


def _enclosed(
    connection: sqlite3.Connection,
    work: Callable[[sqlite3.Connection], T],
    begin: str,
    commit: str | None,
    undo: tuple[str, ...],
) -> T:
    connection.execute(begin)
    try:
        # Takes the write lock, and waits for it if need be; a transaction that has read first would not even wait.
        connection.execute("UPDATE liteq_meta SET value = value WHERE 0")
        result = work(connection)
        if commit is not None:
            connection.execute(commit)
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite has rolled everything back by itself: the disk is full
            for statement in undo:
                connection.execute(statement)
        raise
    return result
