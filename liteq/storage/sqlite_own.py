"""A running job's own transaction: what it writes to the queue's file commits together with its "succeeded".

The job gets a connection of its own, on which nothing is locked until it writes. Its first statement that writes begins
an IMMEDIATE transaction, in turn with all other writers; from there on the job holds SQLite's write lock, and everybody
else waits. At the job's success its outcome is settled in that very transaction, by the code of every other outcome,
under the guard of its claim number; at anything else the transaction is rolled back.

An authorizer watches every statement as it is prepared: it stops what writes outside of the transaction (which then
begins, and the statement is run again) and what would end the transaction.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from liteq.errors import StorageError
from liteq.storage.base import Transaction
from liteq.storage.shelter import sheltered
from liteq.storage.sqlite_connection import Connections
from liteq.storage.sqlite_guest import Guest

T = TypeVar("T")

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

    def execute(self, *arguments: Any) -> JobCursor:
        self.connection.transaction.run(super().execute, *arguments)
        return self

    def executemany(self, *arguments: Any) -> JobCursor:
        self.connection.transaction.run(super().executemany, *arguments)
        return self

    def executescript(self, script: str, /) -> JobCursor:
        raise sqlite3.ProgrammingError(
            "executescript() commits first, and what this connection writes commits with its job; execute the "
            "statements one by one"
        )


class JobConnection(sqlite3.Connection):
    """What ``task.connection()`` gives: a connection to the queue's file whose writes commit with the job's success.

    ``commit()`` does not commit: it marks what a later ``rollback()`` goes back to, so that code which commits for
    itself can be used; ``with connection:`` does the same. All of it is committed with the job, or rolled back with it.
    """

    transaction: JobTransaction

    def cursor(self, factory: Any = JobCursor, /) -> Any:
        return super().cursor(factory)

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
        return super().blobopen(*arguments, **options)


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
        self._lock = threading.RLock()
        self._beginning = self._begun = False
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

    def run(self, execute: Callable[..., object], *arguments: Any) -> None:
        """Execute a statement of the job's; begin first, if it writes."""
        self._refused = ""
        if self._begun:
            self._refuse_if_over()
        try:
            execute(*arguments)
            # A statement that another thread has interrupted may come back as if it had ended.
            self._refuse_if_over()
            return
        except sqlite3.DatabaseError:
            self._refuse_if_over()
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
            execute(*arguments)
            self._refuse_if_over()

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
        """One try of BUSY_SLICE seconds. Nobody else rolls back meanwhile: if somebody wants it to, it is done here."""
        with self._lock:
            self._refuse_if_over()
            self._beginning = True
        try:
            self._begun = self._connections.begin_for_a_job(lambda: self._ours("BEGIN IMMEDIATE"))
            return self._begun
        finally:
            with self._lock:
                self._beginning = False
                if self._over:
                    self._let_go(is_alone=True)

    def _refuse_if_over(self) -> None:
        if self._begun and not self._over and not self._connection.in_transaction:
            self._over = "SQLite did it by itself, because the disk was full or could not be written"
        if self._over:
            raise StorageError(f"the transaction of job {self.job} was rolled back: {self._over}")

    def _ours(self, statement: str) -> None:
        """Execute a statement that the job must not."""
        self._is_ours = True
        try:
            self._guest.execute(statement)
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
            self._ours("ROLLBACK")
            self._begun = False

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
                self._connections.commit_for_a_job(lambda: self._ours("COMMIT"))
            why = "it has ended" if holds else "somebody else has the job now"
        except sqlite3.Error as error:
            self._refuse_if_over()
            raise self._connections.translated(error) from error
        finally:
            self.abandon(why)
        return holds

    def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._is_ours = True
        try:
            return self._guest.do(work)
        except sqlite3.Error as error:
            self._refuse_if_over()
            raise self._connections.translated(error) from error
        finally:
            self._is_ours = False

    @sheltered
    def abandon(self, why: str) -> None:
        with self._lock:
            self._over = self._over or why
            if not self._beginning:
                self._let_go(is_alone=threading.get_ident() == self.thread)
        self._connections.forget_job(self)

    def _let_go(self, *, is_alone: bool) -> None:
        """Roll back, also while the job's own thread is in the middle of a statement.

        Args:
            is_alone: nobody else is in the middle of one: close as well. Otherwise the job's thread does, which would
                crash if it found the connection gone.
        """
        with contextlib.suppress(sqlite3.Error):  # it was rolled back with the statement that failed, or closed before
            if not is_alone:
                self._connection.interrupt()
            if self._connection.in_transaction:
                self._ours("ROLLBACK")
        if is_alone:
            sqlite3.Connection.close(self._connection)
