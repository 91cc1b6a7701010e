"""Connections to the SQLite file: opening it, reading, and writing in turns.

One connection per process writes, behind the turnstile; questions are asked on a few others, which in WAL mode never
wait for a writer. Nothing touches the disk before the first use.

No connection is open while the process forks: SQLite keeps a table of the locks that its process holds, a child
inherits it, believes that it holds them too, and takes none. Then the parent's last close deletes a WAL that the child
writes to. So a fork waits until nobody uses a connection, closes them all, and parent and child each open their own
again.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar

from liteq.clock import SystemClock
from liteq.errors import StorageBusy, StorageError, StorageUnusable
from liteq.storage import schema
from liteq.storage.filesystem import network_filesystem
from liteq.storage.locks import Turnstile
from liteq.storage.planted import refuse_planted, refuse_planted_directory
from liteq.storage.shelter import here, sheltered
from liteq.storage.sqlite_holder import holder, waits_for_itself

T = TypeVar("T")
C = TypeVar("C", bound=sqlite3.Connection)
Durability = Literal["full", "normal"]

#: Frames after which a writer without a consumer checkpoints by itself (32 MiB); consumers do it sooner (`checkpoint`).
AUTOCHECKPOINT = 8000
#: Above so many frames a checkpoint also resets the WAL, so that it stays near 16 MiB. PASSIVE alone let it grow to
#: 379 MB.
RESTART_ABOVE = 2000
#: What one call of SQLite's busy handler waits, in seconds; whole transactions are retried around it.
BUSY_SLICE = 0.5
#: Seconds between two tries where SQLite refuses at once instead of waiting.
BUSY_PAUSE = 0.005
MAX_IDLE_READERS = 4
#: Of so many changes that must not wait one is refused, so that it is made by who can.
CAREFUL_EVERY = 200
#: Seconds for which a fork waits for jobs of other threads that have a connection of their own.
JOBS_PATIENCE = 10.0
#: Seconds for which the file is taken to be in place without looking.
TRUST = 0.05
#: The same for who only reads. An idle consumer asks something every few seconds, and so notices within half a minute.
TRUST_READING = 20.0

_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_UNUSABLE: Final = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)

#: Connections that belong to a file that is gone. They are not closed while other threads may be using them.
_abandoned: list[sqlite3.Connection] = []


class _Closed(Exception):
    """There was no connection: a fork had closed it."""


class OfAJob(Protocol):
    """A running job's own transaction; see `liteq.storage.sqlite_own`."""

    job: str
    key: tuple[int, int]
    thread: int

    @property
    def holds_the_lock(self) -> bool: ...

    def abandon(self, why: str) -> None: ...


class Connections:
    """The connections of one file.

    Args:
        path: absolute.
        side: the directory for lock files.
        durability: ``"full"``: a commit survives power loss; ``"normal"``: it survives any crash of the program.
        patience: how long a transaction waits for a foreign writer, in seconds, before StorageBusy.
        create: make the file if it is missing; otherwise that is StorageUnusable.
        allow_network_fs: do not refuse file systems known to break locks.
    """

    def __init__(
        self,
        path: Path,
        side: Path,
        durability: Durability,
        *,
        patience: float = 60.0,
        create: bool = True,
        allow_network_fs: bool = False,
    ) -> None:
        self.path = path
        self._side = side
        self.turnstile = Turnstile(side)
        self._synchronous = durability.upper()
        self._attempts = max(1, round(patience / BUSY_SLICE))
        self._opening_attempts = self._attempts
        self._create = create
        self._allow_network_fs = allow_network_fs
        # In this order, if several are needed. A fork takes all three.
        self._opening = threading.RLock()
        self._writing = threading.Lock()
        # Taken by itself, never through the condition, whose way in has steps between which an exception may strike.
        self._reading = threading.RLock()
        self._given_back = threading.Condition(self._reading)
        #: Whether somebody is about to close them all: nobody begins to read meanwhile.
        self._closing = False
        #: Who reads, by thread.
        self._readers_lent: list[int] = []
        #: Transactions of running jobs, each on a connection of its own.
        self._of_jobs: list[OfAJob] = []
        self._writes = 0
        self._hurried = 0
        self._forget_all()
        _all_files.add(self)

    def _forget_all(self) -> None:
        self._writer: sqlite3.Connection | None = None
        self._hurrier: sqlite3.Connection | None = None  # of `change_at_once`: it waits for nobody
        self._readers: list[sqlite3.Connection] = []
        self._all: list[sqlite3.Connection] = []
        self._opened_file: tuple[int, int] | None = None
        self._seen_in_place = 0.0
        self._writes += 1  # other connections count in their own way what others have committed

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────

    def write(self, work: Callable[[sqlite3.Connection], T], *, patient: bool = True) -> T:
        """Run ``work`` in one IMMEDIATE transaction, in turn with all other writers.

        The whole of it is tried again while a foreign connection holds the write lock; between two tries other writers
        have their turn to wait.

        Args:
            patient: for as long as this file's ``patience``; otherwise one try of BUSY_SLICE seconds.

        Raises:
            StorageError: it was rolled back.
        """

        def transaction(connection: sqlite3.Connection) -> T:
            try:  # around BEGIN too: an exception that is thrown into the thread strikes between any two steps
                connection.execute("BEGIN IMMEDIATE")
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise
            return result

        return self._in_turn(transaction, self._attempts if patient else 1)

    def insert(self, statement: str, values: tuple[object, ...]) -> int:
        """Run one INSERT as a transaction of its own and return its rowid; the shortest way to store something."""
        return self._in_turn(lambda connection: connection.execute(statement, values).lastrowid or 0, self._attempts)

    def insert_if(self, statement: str, values: tuple[object, ...]) -> int:
        """The same for one with a condition, which may keep it from storing anything: then 0."""

        def insert(connection: sqlite3.Connection) -> int:
            cursor = connection.execute(statement, values)
            return (cursor.lastrowid or 0) if cursor.rowcount == 1 else 0

        return self._in_turn(insert, self._attempts)

    def change(self, statement: str, values: tuple[object, ...]) -> int:
        """Run one statement as a transaction of its own and return how many rows it has changed."""
        return self._in_turn(lambda connection: connection.execute(statement, values).rowcount, self._attempts)

    @sheltered
    def change_at_once(self, statement: str, values: tuple[object, ...]) -> int:
        """`change` for who must not wait, neither for another writer nor for the disk.

        Raises:
            StorageBusy: he would have to; nothing was done. StorageError: as `change`.
        """
        self._hurried += 1
        # Now and then the careful way, which writes the WAL back where nobody else does.
        if self._synchronous == "FULL" or self._writer is None or self._hurried % CAREFUL_EVERY == 0:
            raise StorageBusy(f"{self.path}: this has to wait for the disk; nothing was stored")
        self._trust(TRUST)
        in_the_way = StorageBusy(f"{self.path}: somebody else writes at this moment; nothing was stored")
        if not self._writing.acquire(blocking=False):
            raise in_the_way
        try:
            if self._writer is None or self.turnstile.is_taken:
                raise in_the_way
            self.turnstile.acquire(timeout=0)
            try:
                if self._hurrier is None:
                    self._hurrier = self._connect(patience=0.0, autocheckpoint=0)
                return self._hurrier.execute(statement, values).rowcount
            finally:
                self.turnstile.release()
        except sqlite3.Error as error:
            raise (in_the_way if _code(error) in _BUSY else self.translated(error)) from error
        finally:
            self._writing.release()

    def _in_turn(self, transaction: Callable[[sqlite3.Connection], T], attempts: int) -> T:
        if SystemClock.monotonic() - self._seen_in_place > TRUST:
            self._trust(TRUST)
        tries = 0
        while True:
            tries += 1
            if self._of_jobs:
                self._refuse_to_wait_for_own_job()
            if self._writer is None:
                self._open_writer()
            try:
                shelter = here.shelter
                if shelter is None:
                    return self._try(transaction)
                # One try, no more: between two of them, which may take long, what was thrown may strike.
                return shelter.call(self._try, transaction)
            except _Closed:
                continue
            except sqlite3.Error as error:
                if _code(error) not in _BUSY or tries >= attempts:
                    raise self.translated(error, tries) from error
                if tries == 1:
                    self._refuse_to_wait_for_itself()
                self.wait_for_other_jobs(None)

    def _refuse_to_wait_for_itself(self) -> None:
        """Looked for after the first wait in vain, as it takes some milliseconds.

        Raises:
            StorageBusy: this thread has written on a connection of its own, and not committed.
        """
        if waits_for_itself(self.path, self._all):
            raise StorageBusy(
                f"{self.path}: this thread has written to the file on a connection of its own and has not committed, "
                "so liteq would wait for it for ever; nothing was stored. To enqueue in that transaction, pass the "
                "connection: app.enqueue(task.s(…), connection=…), or app.batch(connection=…)"
            )

    # ── running jobs' own transactions ───────────────────────────────────────────────────────────────

    @property
    def attempts(self) -> int:
        """How often BUSY_SLICE seconds are waited for the write lock."""
        return self._attempts

    def connect_for_a_job(self, factory: type[C]) -> C:
        """A connection that is not one of ours: a job makes of it what it likes. Nothing is cached, so that each of its
        statements is prepared, and seen, anew."""
        self.writer()
        try:
            connection = sqlite3.connect(
                self.path.as_uri() + "?mode=rw",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=BUSY_SLICE,
                cached_statements=0,
                factory=factory,
            )
            sqlite3.Cursor(connection).execute(f"PRAGMA synchronous = {self._synchronous}")
            sqlite3.Cursor(connection).execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT}")
        except sqlite3.Error as error:
            raise self.translated(error) from error
        return connection

    def remember_job(self, one: OfAJob) -> None:
        self._of_jobs.append(one)

    def forget_job(self, one: OfAJob) -> None:
        with contextlib.suppress(ValueError):  # that was done already
            self._of_jobs.remove(one)

    def abandon_job(self, key: tuple[int, int], why: str) -> None:
        """Roll back what a job has written, from any thread: its outcome is known, and is no success."""
        for one in self._of_jobs[:]:
            if one.key == key:
                one.abandon(why)

    def begin_for_a_job(self, begin: Callable[[], None]) -> bool:
        """One try to have a job begin to write, in turn; False if others hold the write lock."""
        self.writer()
        try:
            with self._writing:
                self._leave_turnstile()
                with self.turnstile:
                    begin()
        except sqlite3.Error as error:
            if _code(error) not in _BUSY:
                raise self.translated(error) from error
            return False
        return True

    def commit_for_a_job(self, commit: Callable[[], None]) -> None:
        """Commit what a job has written, so that whoever waits for its result sees it.

        A waiting caller looks after he has passed the turnstile, in which writers are until their commit is visible.
        The job is not in it, as it may have written long ago; if another one is, who waits for the job's lock, there
        has to be another write afterwards, to wake those who have looked too early.
        """
        self._leave_turnstile()
        try:
            self.turnstile.acquire(timeout=0)
        except StorageBusy:
            commit()
            with contextlib.suppress(StorageError):  # then they look a second later
                self.write(_ring, patient=False)
            return
        try:
            commit()
        finally:
            self.turnstile.release()

    def wait_for_other_jobs(self, but: OfAJob | None) -> None:
        """Give the jobs of this process that hold the write lock time to end, unless there is none: on greenlets they
        get none while we are inside SQLite."""
        if any(one is not but and one.holds_the_lock for one in self._of_jobs[:]):
            SystemClock.sleep(BUSY_PAUSE)

    def _refuse_to_wait_for_own_job(self) -> None:
        here = threading.get_ident()
        for one in self._of_jobs[:]:
            if one.thread == here and one.holds_the_lock:
                raise StorageBusy(
                    f"job {one.job} has written through task.connection() and holds the write lock until it ends, and "
                    "this thread would wait for it for ever; nothing was stored. Do this before the job writes there. "
                    "(On an event loop, where it may be another job's, await what liteq has for coroutines)"
                )

    def _abandon_jobs(self) -> None:
        """Before a fork, or when all is closed. Other threads' jobs get some time to end."""
        until = SystemClock.monotonic() + JOBS_PATIENCE
        here = threading.get_ident()
        while self._of_jobs and SystemClock.monotonic() < until:
            for one in self._of_jobs[:]:
                if one.thread == here:
                    one.abandon("the process was forked, or the storage closed, while it was open")
            if self._of_jobs:
                SystemClock.sleep(BUSY_PAUSE)
        for one in self._of_jobs[:]:
            one.abandon("the process was forked, or the storage closed, while it was open")

    def _leave_turnstile(self) -> None:
        if self.turnstile.is_mine():  # a Ctrl-C has struck this thread on its way out
            self.turnstile.release()

    # ── one turn ─────────────────────────────────────────────────────────────────────────────────────

    def _try(self, transaction: Callable[[sqlite3.Connection], T]) -> T:
        """What a transaction returned.

        Raises:
            _Closed: a fork has closed the connection meanwhile.
        """
        with self._writing:
            if self.turnstile.is_taken:
                self._leave_turnstile()
            with self.turnstile:
                writer = self._writer
                if writer is None:
                    raise _Closed
                if writer.in_transaction:  # what could not be rolled back in its own time
                    writer.execute("ROLLBACK")
                result = transaction(writer)
                self._writes += 1
                return result

    def seen(self, connection: sqlite3.Connection) -> tuple[tuple[int, int], tuple[int, int]]:
        """Within a write transaction: what has changed with everything that was written before it, by whomever; and
        what that is after it, until something else is written."""
        # What SQLite counts are commits of other connections than this one.
        others = connection.execute("PRAGMA data_version").fetchone()[0]
        return (others, self._writes), (others, self._writes + 1)

    def _trust(self, duration: float) -> None:
        """Look whether the file is in place, if that was not seen for so many seconds."""
        if self._writer is not None and SystemClock.monotonic() - self._seen_in_place > duration:
            self._check_in_place()

    @sheltered
    def _check_in_place(self) -> None:
        """Notice that somebody has deleted or replaced the file: what is written to the old one is lost."""
        with self._opening:  # while another thread opens or closes the file there is nothing to compare with
            if self._opened_file is None:
                return
            if _identity(self.path) != self._opened_file:
                self._abandon()
                raise StorageError(
                    f"{self.path} was deleted or replaced while it was in use; nothing was stored, and what was in the "
                    "old file is gone from here. The next call opens what is there now"
                )
            self._seen_in_place = SystemClock.monotonic()

    def writer(self) -> sqlite3.Connection:
        """The writing connection, opened at first use."""
        return self._writer or self._open_writer()

    def open_beside_a_transaction(self) -> None:
        """Open the file, if that is still to be done, without waiting long for whoever has it locked: it may be the
        very caller, in a transaction on a connection of his own.

        Raises:
            StorageBusy: somebody has it locked, and it has to be changed first.
        """
        with self._opening:
            self._opening_attempts = 1
            try:
                self.writer()
            except StorageBusy as error:
                raise StorageBusy(
                    f"{self.path}: liteq has yet to make its tables, and cannot while a transaction is open; nothing "
                    "was stored. Let it use the file once before, outside of transactions: app.counts()"
                ) from error
            finally:
                self._opening_attempts = self._attempts

    @sheltered
    def _open_writer(self) -> sqlite3.Connection:
        with self._opening:
            if self._writer is None:
                try:
                    self._check_path()
                except StorageError:
                    raise
                except OSError as error:  # a directory above it may not be searched, the name is too long …
                    raise StorageUnusable(f"{self.path} cannot be used: {error.strerror}") from error
                writer = self._patiently(self._prepared, self._opening_attempts)
                self._opened_file = _identity(self.path)
                self._seen_in_place = SystemClock.monotonic()
                self._writer = writer  # last: who sees it may already look whether its file is in place
            return self._writer

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` on a snapshot; it never waits for a writer and never holds one up.

        Raises:
            StorageError: the file cannot be read, or is not the one that was opened.
        """
        self._trust(TRUST_READING)
        self.writer()
        return self._patiently(lambda: self._read(work), self._attempts)

    @sheltered
    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._borrow()
        try:
            connection.execute("BEGIN")
            try:
                return work(connection)
            finally:
                connection.execute("COMMIT")
        finally:
            self._give_back(connection)

    def _patiently(self, work: Callable[[], T], attempts: int) -> T:
        """Do what only somebody who has the whole file for himself can hold up: who recovers it after a crash, who
        closes it last, who converts it. On a slow disk that takes longer than one busy handler waits.

        Raises:
            StorageError: it failed, or that one did not end.
        """
        until = SystemClock.monotonic() + attempts * BUSY_SLICE
        while True:
            try:
                return work()
            except sqlite3.Error as error:
                if _code(error) not in _BUSY or SystemClock.monotonic() >= until:
                    raise self.translated(error) from error
            SystemClock.sleep(BUSY_PAUSE)

    def _borrow(self) -> sqlite3.Connection:
        with self._reading:
            me = threading.get_ident()
            # Who reads again and again would otherwise keep a fork waiting for ever; who reads already may go on.
            while self._closing and me not in self._readers_lent:
                self._given_back.wait()
            self._readers_lent.append(me)
            if self._readers:
                return self._readers.pop()
        try:
            return self._connect()
        except BaseException:
            self._one_less_lent()
            raise

    def _give_back(self, connection: sqlite3.Connection) -> None:
        try:
            is_fit = connection in self._all and not connection.in_transaction  # its COMMIT was cut short
            if is_fit and len(self._readers) < MAX_IDLE_READERS:
                self._readers.append(connection)
            else:
                self._forget(connection)
        finally:
            self._one_less_lent()

    def _one_less_lent(self) -> None:
        with self._reading:
            if (me := threading.get_ident()) in self._readers_lent:  # a signal's handler may have closed the file
                self._readers_lent.remove(me)
            self._given_back.notify_all()

    # ── upkeep ───────────────────────────────────────────────────────────────────────────────────────

    @sheltered
    def checkpoint(self) -> None:
        """Move what the WAL holds into the file; only where it has grown large, under the write lock, reset it."""
        try:
            connection = self._borrow()
            try:
                frames = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
                if frames > RESTART_ABOVE:
                    with self.turnstile:
                        _restart_wal(connection)
            finally:
                self._give_back(connection)
        except sqlite3.Error as error:
            if _code(error) not in _BUSY:  # busy: somebody reads or checkpoints; the next one will do it
                raise self.translated(error) from error

    # ── opening and closing ──────────────────────────────────────────────────────────────────────────

    def _check_path(self) -> None:
        """Refuse what cannot be a liteq file, before anything is created."""
        path = self.path
        if path.is_dir():
            raise StorageUnusable(f"{path} is a directory; a SQLite storage takes the path of a file")
        if path.exists() and not path.is_file():
            raise StorageUnusable(f"{path} is a device or a pipe; a SQLite storage takes the path of a file")
        if not path.parent.is_dir():
            raise StorageUnusable(f"{path} cannot be created: the directory {path.parent} does not exist")
        refuse_planted(path)
        refuse_planted_directory(self._side)
        kind = None if self._allow_network_fs else network_filesystem(path)
        if kind is not None:
            raise StorageUnusable(
                f"{path} lies on a network filesystem ({kind}), where file locks fail silently and jobs would be lost "
                "or run twice; use a local disk, or pass SqliteStorage(path, allow_network_fs=True) if you know better"
            )
        if not path.exists():
            if not self._create:
                raise StorageUnusable(f"{path} does not exist")
            self._create_file()

    def _create_file(self) -> None:
        try:  # 0600 from the start: job arguments are nobody else's business. O_EXCL follows no link, so we do
            os.close(os.open(os.path.realpath(self.path), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            return  # another process was first
        except OSError as error:
            raise StorageUnusable(f"{self.path} cannot be created: {error.strerror}") from error

    def _prepared(self) -> sqlite3.Connection:
        """Open the file and make sure that it has our tables."""
        connection = self._connect()
        try:
            found = schema.version(connection)
            schema.refuse_newer(found, str(self.path))
            if found == 0 and not self._create:
                raise StorageUnusable(f"{self.path} holds no liteq queue; it was left untouched")
            if found < schema.CURRENT:
                self._set_up(connection)
            self._use_wal(connection)
        except BaseException:
            self._forget(connection)
            raise
        return connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        with self.turnstile:
            if connection.execute("PRAGMA page_count").fetchone()[0] == 0:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only possible before the first table
            self._use_wal(connection)
            try:
                self._begin(connection)
                schema.migrate(connection, str(self.path))
                connection.execute("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise

    def _begin(self, connection: sqlite3.Connection) -> None:
        for _ in range(self._opening_attempts - 1):
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if _code(error) not in _BUSY:
                    raise
        connection.execute("BEGIN IMMEDIATE")

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Convert only if needed: the PRAGMA bypasses the busy handler, and another process may be doing the same."""
        for attempt in range(100):
            if _journal_mode(connection) == "wal":
                return
            try:
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                if _code(error) not in _BUSY or attempt == 99:
                    raise
                # A short wait on the file itself: take and drop the write lock, which does use the busy handler.
                self._begin(connection)
                connection.execute("ROLLBACK")
        raise StorageUnusable(f"{self.path} cannot be put into WAL mode; its filesystem may lack shared memory")

    def _connect(self, *, patience: float = BUSY_SLICE, autocheckpoint: int = AUTOCHECKPOINT) -> sqlite3.Connection:
        uri = self.path.as_uri() + "?mode=rw"
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, timeout=patience, cached_statements=256
        )
        self._all.append(connection)
        try:
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {autocheckpoint}")
            connection.execute(f"PRAGMA journal_size_limit = {16 << 20}")
        except BaseException:
            self._forget(connection)
            raise
        return connection

    def _forget(self, connection: sqlite3.Connection) -> None:
        if connection in self._all:
            self._all.remove(connection)
        connection.close()

    def _abandon(self) -> None:
        _abandoned.extend(self._all)
        self._forget_all()

    @sheltered
    def close(self) -> None:
        """Close every connection of this process; the next use opens the file anew."""
        self._close_all()
        self._let_use()
        self.turnstile.close()

    def _close_all(self) -> None:
        """Wait until nobody uses a connection, close them all, and let nobody open one until `_let_use`."""
        if self._of_jobs:
            self._abandon_jobs()
        self._opening.acquire()
        self._writing.acquire()
        self._reading.acquire()
        self._closing = True
        me = threading.get_ident()
        while any(thread != me for thread in self._readers_lent):  # who closes does not read; a Ctrl-C may have struck
            self._given_back.wait()
        self._readers_lent.clear()
        connections = self._all
        self._forget_all()
        for connection in connections:
            connection.close()

    def _let_use(self) -> None:
        self._closing = False
        self._given_back.notify_all()
        self._reading.release()
        self._writing.release()
        self._opening.release()

    def _culprit(self) -> str:
        pid = holder(self.path)
        if pid == os.getpid():
            return "this program itself, on a connection of its own (app.enqueue(…, connection=…) takes it),"
        return f"another program (process {pid})" if pid else "another program"

    def busy(self, tries: int) -> StorageBusy:
        """What to raise after so many waits in vain."""
        waited = tries * BUSY_SLICE
        return StorageBusy(
            f"{self.path}: {self._culprit()} has held the write lock for {waited:g} s; nothing was stored"
        )

    def translated(self, error: sqlite3.Error, tries: int | None = None) -> StorageError:
        """The StorageError that says to a user what ``error`` says to a programmer.

        Args:
            error: SQLite's.
            tries: of BUSY_SLICE seconds each; ``None``: as many as there are.
        """
        code = _code(error)
        if code in _BUSY:
            return self.busy(tries or self._attempts)
        if code == sqlite3.SQLITE_FULL:
            return StorageError(f"{self.path}: the disk is full; nothing was stored")
        if code == sqlite3.SQLITE_NOTADB:
            return StorageUnusable(f"{self.path} is not a SQLite database; it was left untouched")
        if code in _UNUSABLE:
            return StorageUnusable(f"{self.path} cannot be used: {error}")
        return StorageError(f"{self.path}: {error}; nothing was stored")


def _ring(connection: sqlite3.Connection) -> None:
    """Write something that says nothing, for those who wait for a write."""
    connection.execute("INSERT OR REPLACE INTO liteq_meta VALUES ('bell', random())")


def _roll_back(connection: sqlite3.Connection) -> None:
    """End a transaction, whatever strikes meanwhile: an open one would hold up every other process."""
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    finally:
        if connection.in_transaction:
            connection.rollback()


def _restart_wal(connection: sqlite3.Connection) -> None:
    """Checkpoint, and have the next writer begin at the start of the WAL, unless somebody reads an older state.

    RESTART would wait for such readers with the write lock in its hand: with a forgotten transaction in a database
    shell, every writer stood still for 2 s at each checkpoint.
    """
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SLICE * 1000)}")


#: Every file that this process may have open.
_all_files: weakref.WeakSet[Connections] = weakref.WeakSet()
_closed_for_fork: list[Connections] = []


def _before_fork() -> None:
    for one in list(_all_files):
        one._close_all()
        _closed_for_fork.append(one)


def _after_fork() -> None:
    while _closed_for_fork:
        _closed_for_fork.pop()._let_use()


if hasattr(os, "register_at_fork"):
    # Registered after the turnstile's own hook, so it runs before that: a writer that is waited for can still finish.
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def _code(error: sqlite3.Error) -> int:
    """The primary result code (the low byte of the extended one)."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file is at this path; ``None``: there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _journal_mode(connection: sqlite3.Connection) -> str:
    return str(connection.execute("PRAGMA journal_mode").fetchone()[0])
