"""A running job's own transaction: what it writes to the queue's file commits together with its "succeeded".

The job gets a connection of its own, on which nothing is locked until it writes. Its first statement that writes begins
an IMMEDIATE transaction, in turn with all other writers; from there on the job holds SQLite's write lock, and everybody
else waits. At the job's success its outcome is settled in that very transaction, by the code of every other outcome,
under the guard of its claim number; at anything else the transaction is rolled back.

An authorizer watches every statement as it is prepared: it stops what writes outside of the transaction (which then
begins, and the statement is run again) and what would end the transaction.

Another thread may roll back, for a job that has to end and does not. It never enters SQLite on this connection while
the job's thread is in there: the authorizer, and any function the job has defined, wait there for the interpreter and
hold SQLite's mutex, while the other thread may hold the interpreter and wait for that mutex: the process would stand
still. So every call into SQLite holds a lock; who cannot get it interrupts the statement, and if that does not end it,
the job's thread rolls back as it comes out.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar, cast

from liteq.errors import StorageError
from liteq.storage.base import Transaction
from liteq.storage.shelter import sheltered
from liteq.storage.sqlite_connection import Connections
from liteq.storage.sqlite_guest import Guest

T = TypeVar("T")

# Seconds in which an interrupted statement has ended, if it ends at all: SQLite looks after each thousand or so of its
# steps, a function that the job has defined never. It is interrupted again and again, as that is forgotten between two.
_INTERRUPTED = 1.0
_INTERRUPT_EVERY = 0.01

_WRITES = frozenset(
    (
        sqlite3.SQLITE_INSERT,
        sqlite3.SQLITE_UPDATE,
        sqlite3.SQLITE_DELETE,
        sqlite3.SQLITE_ALTER_TABLE,
        sqlite3.SQLITE_REINDEX,
        sqlite3.SQLITE_ANALYZE,
    )
)


class JobCursor(sqlite3.Cursor):
    """A cursor of `JobConnection`: it begins the transaction with the first statement that writes."""

    connection: JobConnection

    def __init__(self, connection: JobConnection) -> None:
        super().__init__(connection)
        connection.transaction.cursors.add(self)

    def execute(self, *arguments: Any) -> JobCursor:
        self.connection.transaction.run(super().execute, *arguments)
        return self

    def executemany(self, statement: str, rows: Iterable[Any], /) -> JobCursor:
        """Like sqlite3's, but it reads all the rows first: nobody else waits for where they come from."""
        self.connection.transaction.run(super().executemany, statement, list(rows))
        return self

    def executescript(self, script: str, /) -> JobCursor:
        raise sqlite3.ProgrammingError(
            "executescript() commits first, and what this connection writes commits with its job; execute the "
            "statements one by one"
        )

    def fetchone(self) -> Any:
        return self.connection.transaction.call(super().fetchone)

    def fetchmany(self, *arguments: Any, **options: Any) -> list[Any]:
        return self.connection.transaction.call(super().fetchmany, *arguments, **options)

    def fetchall(self) -> list[Any]:
        return self.connection.transaction.call(super().fetchall)

    def __next__(self) -> Any:
        return self.connection.transaction.call(super().__next__)


class JobConnection(sqlite3.Connection):
    """What ``task.connection()`` gives: a connection to the queue's file whose writes commit with the job's success.

    ``commit()`` does not commit: it marks what a later ``rollback()`` goes back to, so that code which commits for
    itself can be used; ``with connection:`` does the same. All of it is committed with the job, or rolled back with it.
    """

    transaction: JobTransaction

    def cursor(  # type: ignore[override]
        self, factory: type[JobCursor] = JobCursor, /
    ) -> JobCursor:
        if not (isinstance(factory, type) and issubclass(factory, JobCursor)):
            raise TypeError(
                f"the cursors of a job's own connection are its own; a factory has to be a subclass of {JobCursor}"
            )
        return cast(JobCursor, self.transaction.call(super().cursor, factory))

    def execute(self, *arguments: Any) -> Any:
        return self.cursor().execute(*arguments)

    def executemany(self, *arguments: Any) -> Any:
        return self.cursor().executemany(*arguments)

    def executescript(self, script: str, /) -> Any:
        return self.cursor().executescript(script)

    def commit(self) -> None:
        self.transaction.mark()

    def rollback(self) -> None:
        self.transaction.go_back()

    def close(self) -> None:
        """Forget what was written since the last ``commit()``; the rest still commits with the job."""
        self.transaction.go_back()

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> Literal[False]:
        if kind is None:
            self.commit()
        else:
            self.rollback()
        return False

    def blobopen(self, *arguments: Any, **options: Any) -> sqlite3.Blob:
        if not options.get("readonly", False):
            self.transaction.begin()
        return self.transaction.call(super().blobopen, *arguments, **options)


class JobTransaction(Transaction):
    """See the module. Used in the job's thread; `abandon` from any.

    Args:
        connections: to the file.
        job: its id, for messages.
        key: its seq and claim number.
        add: stores jobs on a connection.
        settle: settles the job on a connection; answers whether it still held its claim.
    """

    def __init__(
        self,
        connections: Connections,
        job: str,
        key: tuple[int, int],
        add: Callable[[sqlite3.Connection, Any, Any], Any],
        settle: Callable[[sqlite3.Connection, Any, float], bool],
    ) -> None:
        self.path = connections.path
        self.job = job
        self.key = key
        self.thread = threading.get_ident()
        self._connections = connections
        self._add = add
        self._settle = settle
        self.cursors: weakref.WeakSet[JobCursor] = weakref.WeakSet()
        self._calls = threading.RLock()  # held by who is in SQLite; see the module
        self._depth = 0  # of calls within each other: functions that the job has defined may execute something
        self._begun = False
        self._over = ""
        self._marked = False
        self._refused: str | None = ""
        self._connection: JobConnection = connections.connect_for_a_job(JobConnection)
        self._connection.transaction = self
        self._guest = Guest(self._connection)
        self._is_ours = False
        self._connection.set_authorizer(self._authorize)
        connections.remember_job(self)

    @property
    def connection(self) -> JobConnection:
        return self._connection

    @property
    def has_begun(self) -> bool:
        return self._begun

    @property
    def holds_the_lock(self) -> bool:
        return self._begun and not self._over

    # ── statements of the job's ──────────────────────────────────────────────────────────────────────

    def call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call into SQLite, from the job's thread: while no other thread does, unless it is over, and no further than
        to its end.
        """
        try:
            with self._calls:
                self._refuse_if_over()
                self._depth += 1
                try:
                    answer = function(*arguments, **options)
                finally:
                    self._depth -= 1
        except sqlite3.Error:
            self._come_out()
            self._refuse_if_over()
            raise
        except BaseException:
            self._come_out()
            raise
        self._come_out()
        if self._over:  # an interrupted statement may come back as if it had ended
            self._refuse_if_over()
        return answer

    def _come_out(self) -> None:
        """Do what whoever wanted to end it could not while the job was in SQLite."""
        if self._over and not self._depth:
            with self._calls:
                self._end(close=False)

    def run(self, execute: Callable[..., object], *arguments: Any) -> None:
        """Execute a statement of the job's; begin first, if it writes."""
        self._refused = ""
        try:
            self.call(execute, *arguments)
            return
        except sqlite3.DatabaseError:
            if not self._refused:
                raise
        if self._refused not in ("write", "BEGIN"):
            raise sqlite3.ProgrammingError(
                f"{self._refused}: what this connection writes is committed with its job {self.job}, or rolled back "
                "with it; connection.rollback() forgets what was written so far"
            )
        refused, self._refused = self._refused, ""
        self.begin()
        if refused != "BEGIN":
            self.call(execute, *arguments)

    def _authorize(self, action: int, first: str | None, _second: str | None, schema: str | None, _: str | None) -> int:
        """Whether a statement may be prepared: not one that writes before the transaction, nor one that ends it."""
        has_begun = self._connection.in_transaction
        if self._is_ours:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_TRANSACTION:
            self._refused = first if first != "BEGIN" or not has_begun else "BEGIN inside of a transaction"
        elif not has_begun and ((action in _WRITES and schema != "temp") or action == sqlite3.SQLITE_SAVEPOINT):
            self._refused = "write"
        return sqlite3.SQLITE_DENY if self._refused else sqlite3.SQLITE_OK

    # ── beginning ────────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        tries = 0
        while not self.holds_the_lock and not self._try_to_begin():
            tries += 1
            if tries >= self._connections.attempts:
                raise self._connections.busy(tries)
            self._connections.wait_for_other_jobs(self)

    @sheltered
    def _try_to_begin(self) -> bool:
        """One try of BUSY_SLICE seconds."""
        self._refuse_if_over()
        self._begun = self._connections.begin_for_a_job(lambda: self._ours("BEGIN IMMEDIATE"))
        return self._begun

    def _refuse_if_over(self) -> None:
        if self._begun and not self._over and not self._connection.in_transaction:
            self._over = "SQLite did it by itself, because the disk was full or could not be written"
        if self._over:
            raise StorageError(f"the transaction of job {self.job} was rolled back: {self._over}")

    def _ours(self, statement: str) -> None:
        """Execute a statement that the job must not."""
        self.call(self._as_ours, self._guest.execute, statement)

    def _as_ours(self, function: Callable[..., T], *arguments: Any) -> T:
        self._is_ours = True
        try:
            return function(*arguments)
        finally:
            self._is_ours = False

    # ── what the job calls commit and rollback ───────────────────────────────────────────────────────

    def mark(self) -> None:
        """What is written so far stays through a `go_back`."""
        self._refuse_if_over()
        if self.has_begun:
            if self._marked:
                self._ours("RELEASE by_liteq")
            self._ours("SAVEPOINT by_liteq")
            self._marked = True

    def go_back(self) -> None:
        """Forget what was written since the last `mark`; where there is none, let others write."""
        self._refuse_if_over()
        if self._marked:
            self._ours("ROLLBACK TO by_liteq")
        elif self.has_begun:
            self._begun = False
            self._ours("ROLLBACK")

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────

    def add(self, jobs: Any, plan: Any = None) -> Any:
        self.begin()
        self._refuse_if_over()
        return self._work(lambda connection: self._add(connection, jobs, plan))

    @sheltered
    def settle(self, success: Any, now: float) -> bool:
        why = "its outcome could not be stored"
        try:
            self._refuse_if_over()
            holds = self._work(lambda connection: self._settle(connection, success, now))
            if holds:
                self._connections.commit_for_a_job(self._commit)
            why = "it has ended" if holds else "somebody else has the job now"
        except sqlite3.Error as error:
            self._refuse_if_over()
            raise self._connections.translated(error) from error
        finally:
            self.abandon(why)
        return holds

    def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            answer: T = self.call(self._as_ours, self._guest.do, work)
        except sqlite3.Error as error:
            raise self._connections.translated(error) from error
        return answer

    def _commit(self) -> None:
        with self._calls:  # who wants to end it now is too late, which no error tells
            self._refuse_if_over()
            self._as_ours(self._guest.execute, "COMMIT")

    @sheltered
    def abandon(self, why: str) -> None:
        self._over = self._over or why
        if self._enter():
            try:
                self._end(close=threading.get_ident() == self.thread)
            finally:
                self._calls.release()
        self._connections.forget_job(self)

    def _enter(self) -> bool:
        """Whether the job's thread is out of SQLite, now or because it was interrupted; then it stays out."""
        for _ in range(round(_INTERRUPTED / _INTERRUPT_EVERY)):
            if self._calls.acquire(timeout=_INTERRUPT_EVERY):
                return True
            with contextlib.suppress(sqlite3.Error):  # closed meanwhile
                self._connection.interrupt()
        return False

    def _end(self, *, close: bool) -> None:
        """Roll back.

        Args:
            close: the connection as well. Not for another thread: the job's own might be in what does not hold the lock
                (a blob), and would crash.
        """
        with contextlib.suppress(sqlite3.Error):  # it was rolled back with the statement that failed, or closed before
            self._connection.set_authorizer(None)
            for cursor in self.cursors:
                sqlite3.Cursor.close(cursor)  # who was interrupted and not read to his end would interrupt the next
            if close:
                sqlite3.Connection.close(self._connection)
            else:
                if self._connection.in_transaction:
                    self._guest.execute("ROLLBACK")
                self._guest.execute("PRAGMA query_only = ON")  # nobody asks the authorizer any more
