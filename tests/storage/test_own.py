"""A running job's own transaction in an SQLite file: what begins it, what ends it, and who is kept waiting."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from contract import NOW, again, claim_one, new

from liteq import lifecycle
from liteq.errors import ConfigurationError, StorageBusy, StorageError
from liteq.gates import lock
from liteq.job import Ending, Job, JobFilter, JobState, Outcome
from liteq.lifecycle import Success
from liteq.storage import sqlite_connection, sqlite_own
from liteq.storage.base import ClaimRequest
from liteq.storage.memory import MemoryStorage
from liteq.storage.sqlite import SqliteStorage
from liteq.storage.sqlite_own import JobCursor, JobTransaction


@pytest.fixture
def storage(path: Path) -> Iterator[SqliteStorage]:
    storage = SqliteStorage(path, durability="normal")
    storage.counts()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE note (text, picture BLOB)")
    yield storage
    storage.close()


@pytest.fixture
def job(storage: SqliteStorage) -> Job:
    """A running one."""
    storage.add([new()])
    return claim_one(storage)


@pytest.fixture
def own(storage: SqliteStorage, job: Job) -> Iterator[JobTransaction]:
    transaction = storage.transaction(job)
    yield transaction
    transaction.abandon("the test is over")


def success(job: Job) -> Success:
    return lifecycle.succeed(job, Outcome(job.seq, job.claim, Ending.SUCCEEDED, NOW, NOW + 1, b"5"))


def notes(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT text FROM note ORDER BY rowid")]


def is_locked(path: Path) -> bool:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        return False


# ── together or not at all ───────────────────────────────────────────────────────────────────────────────────────────


def test_what_the_job_wrote_and_its_success_commit_together(
    storage: SqliteStorage, job: Job, own: JobTransaction, path: Path
) -> None:
    own.connection.execute("INSERT INTO note (text) VALUES ('a')")
    [added] = own.add([new("next")])
    assert (notes(path), storage.get(added.id)) == ([], None)
    assert own.settle(success(job), NOW + 1)
    assert notes(path) == ["a"]
    settled = again(storage, job)
    assert (settled.state, settled.result, settled.finished) == (JobState.SUCCEEDED, b"5", NOW + 1)
    assert again(storage, added).state is JobState.READY
    assert not is_locked(path)


def test_what_is_abandoned_never_was(storage: SqliteStorage, job: Job, own: JobTransaction, path: Path) -> None:
    own.connection.execute("INSERT INTO note (text) VALUES ('a')")
    own.connection.commit()
    [added] = own.add([new("next")])
    own.abandon("it failed")
    own.abandon("twice")
    assert (notes(path), storage.get(added.id), is_locked(path)) == ([], None, False)
    assert again(storage, job).state is JobState.RUNNING


def test_a_job_that_somebody_else_has_by_now_commits_nothing(
    storage: SqliteStorage, job: Job, own: JobTransaction, path: Path
) -> None:
    assert storage.apply([lifecycle.release(job)], NOW) == [True]
    other = claim_one(storage, owner=2)
    assert other.claim == job.claim + 1
    own.connection.execute("INSERT INTO note (text) VALUES ('a')")
    own.add([new("next")])
    assert not own.settle(success(job), NOW + 1)
    assert (notes(path), is_locked(path)) == ([], False)
    assert [one.seq for one in storage.find(JobFilter())] == [job.seq]
    assert again(storage, job).state is JobState.RUNNING


def test_the_success_lets_in_who_waits_for_its_lock(storage: SqliteStorage, path: Path) -> None:
    """As any other success: it is the same code."""
    storage.add([new(), new()])
    owner = storage.register({})
    request = ClaimRequest(owner, 9, needs={"task": lambda job: (lock("x", 1),)})
    [first] = storage.turn([], request, NOW).jobs
    own = storage.transaction(first)
    own.connection.execute("INSERT INTO note (text) VALUES ('a')")
    assert storage.reasons() == {"waits for lock x": 1}
    assert own.settle(success(first), NOW + 1)
    assert storage.reasons() == {}
    assert len(storage.turn([], request, NOW + 1).jobs) == 1


def test_a_success_that_cannot_be_stored_takes_everything_with_it(
    storage: SqliteStorage, job: Job, own: JobTransaction, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.connection.execute("INSERT INTO note (text) VALUES ('a')")

    def fail(*_: object) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patched, pytest.raises(StorageError, match="disk I/O error; nothing was stored"):
        patched.setattr(own, "_settle", fail)
        own.settle(success(job), NOW + 1)
    assert (notes(path), is_locked(path)) == ([], False)


def test_only_a_file_has_such_a_thing() -> None:
    with pytest.raises(ConfigurationError, match=r"task.connection\(\) is for a queue in an SQLite file"):
        MemoryStorage().transaction(new())


# ── what begins it ───────────────────────────────────────────────────────────────────────────────────────────────────

BEGINNINGS = [
    "INSERT INTO note (text) VALUES ('a')",
    "  -- with a comment\n insert into note (text) values ('a')",
    "WITH a (b) AS (SELECT 'a') INSERT INTO note (text) SELECT b FROM a",
    "REPLACE INTO note (rowid, text) VALUES (1, 'a')",
    "UPDATE note SET text = 'a'",
    "DELETE FROM note",
    "INSERT INTO note (text) VALUES ('a') RETURNING text",
    "CREATE TABLE other (a)",
    "CREATE INDEX by_text ON note (text)",
    "ALTER TABLE note ADD COLUMN more",
    "DROP TABLE note",
    "BEGIN",
    "BEGIN IMMEDIATE",
    "SAVEPOINT mine",
    "INSERT INTO liteq_enqueue (task) VALUES ('t')",
]


@pytest.mark.parametrize("statement", BEGINNINGS)
def test_the_first_statement_that_writes_begins_it(
    own: JobTransaction, storage: SqliteStorage, path: Path, statement: str
) -> None:
    before = schema_and_rows(path)
    for _ in range(2):
        own.connection.execute(statement).fetchall()
        assert own.has_begun and is_locked(path)
        own.connection.rollback()
        assert not own.has_begun and not is_locked(path)
    assert schema_and_rows(path) == before


def schema_and_rows(path: Path) -> object:
    with closing(sqlite3.connect(path)) as connection:
        jobs = connection.execute("SELECT count(*) FROM liteq_job").fetchall()
        return connection.execute("SELECT sql FROM sqlite_master").fetchall(), notes(path), jobs


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM note",
        "PRAGMA table_info(note)",
        "CREATE TEMP TABLE mine (a)",
        "EXPLAIN SELECT 1",
        "ATTACH ':memory:' AS m",
    ],
)
def test_what_only_reads_locks_nothing(own: JobTransaction, path: Path, statement: str) -> None:
    own.connection.execute(statement).fetchall()
    assert not own.has_begun


def test_everything_that_executes_begins_it(own: JobTransaction, path: Path) -> None:
    connection = own.connection
    uses: list[Callable[[], object]] = [
        lambda: connection.executemany("INSERT INTO note (text) VALUES (?)", iter([("a",), ("b",)])),
        lambda: connection.cursor().execute("INSERT INTO note (text) VALUES ('a')"),
        lambda: connection.cursor().executemany("INSERT INTO note (text) VALUES (?)", [("a",)]),
    ]
    for use in uses:
        use()
        assert own.has_begun
        connection.rollback()
    connection.execute("INSERT INTO note (text, picture) VALUES ('a', zeroblob(3))")
    connection.commit()
    with connection.blobopen("note", "picture", 1) as blob:
        blob.write(b"abc")
    assert connection.execute("SELECT picture FROM note").fetchone() == (b"abc",)
    assert notes(path) == []


def test_a_statement_that_fails_by_itself_says_what_it_would(own: JobTransaction) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such table: nowhere"):
        own.connection.execute("INSERT INTO nowhere VALUES (1)")
    with pytest.raises(sqlite3.OperationalError, match="syntax error"):
        own.connection.execute("INSERT OUT OF note")
    with pytest.raises(sqlite3.ProgrammingError, match="binding"):
        own.connection.execute("INSERT INTO note (text) VALUES (?)", ())


def test_what_its_own_cursors_cannot_see_is_stopped_rather_than_committed(own: JobTransaction, path: Path) -> None:
    with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
        sqlite3.Cursor(own.connection).execute("INSERT INTO note (text) VALUES ('a')")
    assert notes(path) == []


# ── what ends it ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("statement", ["COMMIT", "END", "ROLLBACK", "BEGIN"])
def test_the_job_cannot_end_it(own: JobTransaction, path: Path, statement: str) -> None:
    own.connection.execute("INSERT INTO note (text) VALUES ('a')")
    with pytest.raises(sqlite3.ProgrammingError, match=r"what this connection writes is committed with its job"):
        own.connection.execute(statement)
    with pytest.raises(sqlite3.ProgrammingError, match=r"executescript\(\) commits first"):
        own.connection.executescript("SELECT 1;")
    assert own.has_begun
    assert notes(path) == []


def test_commit_marks_what_rollback_goes_back_to(
    storage: SqliteStorage, job: Job, own: JobTransaction, path: Path
) -> None:
    connection = own.connection
    connection.commit()  # nothing was written yet
    with connection:
        connection.execute("INSERT INTO note (text) VALUES ('a')")
    with pytest.raises(RuntimeError), connection:
        connection.execute("INSERT INTO note (text) VALUES ('never')")
        raise RuntimeError
    connection.execute("INSERT INTO note (text) VALUES ('b')")
    connection.commit()
    connection.execute("INSERT INTO note (text) VALUES ('never')")
    connection.close()
    connection.execute("INSERT INTO note (text) VALUES ('c')")
    assert notes(path) == []
    own.settle(success(job), NOW + 1)
    assert notes(path) == ["a", "b", "c"]


def test_savepoints_of_the_jobs_own_hold(storage: SqliteStorage, job: Job, own: JobTransaction, path: Path) -> None:
    connection = own.connection
    connection.execute("SAVEPOINT mine")
    connection.execute("INSERT INTO note (text) VALUES ('never')")
    connection.execute("ROLLBACK TO mine")
    connection.execute("INSERT INTO note (text) VALUES ('a')")
    connection.execute("RELEASE mine")
    assert own.settle(success(job), NOW + 1)
    assert notes(path) == ["a"]


def test_factories_of_the_jobs_own_do_not_matter(
    storage: SqliteStorage, job: Job, own: JobTransaction, path: Path
) -> None:
    own.connection.row_factory = sqlite3.Row
    own.connection.text_factory = bytes
    own.connection.execute("INSERT INTO note (text) VALUES ('a')")
    assert own.connection.execute("SELECT text FROM note").fetchone()["text"] == b"a"
    own.add([new(id="x"), new(id="x")])
    assert own.settle(success(job), NOW + 1)
    assert notes(path) == ["a"]


def test_who_goes_on_after_the_end_is_told(own: JobTransaction) -> None:
    own.connection.execute("INSERT INTO note (text) VALUES ('a')")
    connection = own.connection
    own.abandon("its worker was given up")
    for use in (lambda: connection.execute("DELETE FROM note"), connection.commit, own.begin):
        with pytest.raises(
            (StorageError, sqlite3.ProgrammingError), match=r"was rolled back: its worker was given up|closed"
        ):
            use()


@contextmanager
def suppress_and_note(errors: list[str]) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        errors.append(str(error))


def test_another_thread_can_end_it_while_the_job_sleeps_or_computes(
    storage: SqliteStorage, job: Job, path: Path
) -> None:
    written, seen, errors = threading.Event(), threading.Event(), []

    def work() -> None:
        own = storage.transaction(job)
        try:
            own.connection.execute("INSERT INTO note (text) VALUES ('a')")
            written.set()
            seen.wait(10)
            for use in (
                lambda: own.connection.execute("INSERT INTO note (text) VALUES ('b')"),
                lambda: own.has_begun and own.settle(success(job), NOW + 1),
            ):
                with suppress_and_note(errors):
                    use()
        finally:
            own.abandon("it failed")

    thread = threading.Thread(target=work)
    thread.start()
    assert written.wait(10)
    storage.end_transaction(job._replace(claim=77), "not this one")
    assert is_locked(path)
    storage.end_transaction(job, "it ran too long")
    assert not is_locked(path)
    seen.set()
    thread.join(10)
    assert errors == [f"the transaction of job {job.id} was rolled back: it ran too long"] * 2
    assert notes(path) == []


def test_a_long_statement_is_interrupted(storage: SqliteStorage, job: Job, path: Path) -> None:
    computing, errors = threading.Event(), []

    def work() -> None:
        own = storage.transaction(job)
        try:
            own.connection.execute("INSERT INTO note (text) VALUES ('a')")
            own.connection.create_function("tell", 0, computing.set)
            endless = "WITH RECURSIVE n (i) AS (SELECT tell() UNION ALL SELECT 1 FROM n) SELECT count(*) FROM n"
            own.connection.execute(endless).fetchone()
        except (StorageError, sqlite3.Error) as error:
            errors.append(error)
        finally:
            own.abandon("it failed")

    thread = threading.Thread(target=work)
    thread.start()
    assert computing.wait(10)
    storage.end_transaction(job, "it ran too long")
    thread.join(10)
    assert len(errors) == 1
    assert (notes(path), is_locked(path)) == ([], False)


def test_a_process_never_stands_still_because_others_end_what_is_in_the_middle_of_statements(
    storage: SqliteStorage, path: Path
) -> None:
    """SQLite's mutex and the interpreter's lock, each held by who waits for the other."""
    for round_ in range(300):
        storage.add([new()])
        job = claim_one(storage)
        written, errors = threading.Event(), []

        def work(job: Job = job, written: threading.Event = written, errors: list[str] = errors) -> None:
            own = storage.transaction(job)
            with suppress_and_note(errors):
                for number in range(1_000_000):
                    own.connection.execute("INSERT INTO note (text) VALUES (?)", (str(number),))
                    for _ in own.connection.execute("SELECT text FROM note LIMIT 5"):
                        pass
                    written.set()
            own.abandon("it failed")

        thread = threading.Thread(target=work)
        thread.start()
        assert written.wait(10)
        for _ in range(round_ % 50):  # some microseconds later in each round
            threading.get_ident()
        storage.end_transaction(job, "it ran too long")
        thread.join(10)
        assert not is_locked(path)
        assert errors == [f"the transaction of job {job.id} was rolled back: it ran too long"]
    assert notes(path) == []


def test_who_is_not_interrupted_rolls_back_as_he_comes_out(
    storage: SqliteStorage, job: Job, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function of the job's own, in the middle of a statement, which SQLite does not interrupt."""
    monkeypatch.setattr(sqlite_own, "_INTERRUPTED", 0.05)
    waiting, go_on, errors = threading.Event(), threading.Event(), []

    def wait() -> int:
        waiting.set()
        go_on.wait(10)
        return 1

    def work() -> None:
        own = storage.transaction(job)
        own.connection.execute("INSERT INTO note (text) VALUES ('a')")
        own.connection.create_function("wait", 0, wait)
        with suppress_and_note(errors):
            own.connection.execute("INSERT INTO note (text) SELECT wait()")
        errors.append(str(is_locked(path)))
        own.abandon("it failed")

    thread = threading.Thread(target=work)
    thread.start()
    assert waiting.wait(10)
    storage.end_transaction(job, "it ran too long")
    assert is_locked(path)
    go_on.set()
    thread.join(10)
    assert errors == [f"the transaction of job {job.id} was rolled back: it ran too long", "False"]
    assert notes(path) == []


def test_rows_are_read_before_anybody_has_to_wait_for_them(own: JobTransaction, path: Path) -> None:
    def rows() -> Iterator[tuple[str]]:
        for text in "ab":
            assert not is_locked(path)
            yield (text,)

    own.connection.executemany("INSERT INTO note (text) VALUES (?)", rows())
    assert own.connection.execute("SELECT text FROM note").fetchall() == [("a",), ("b",)]


def test_only_cursors_that_watch_are_made(own: JobTransaction) -> None:
    class Named(JobCursor):
        pass

    assert isinstance(own.connection.cursor(Named), Named)
    for factory in (sqlite3.Cursor, lambda connection: sqlite3.Cursor(connection), None):
        with pytest.raises(TypeError, match="a factory has to be a subclass of"):
            own.connection.cursor(factory)  # type: ignore[arg-type]


def test_what_sqlite_has_rolled_back_by_itself_is_no_success_without_it(
    storage: SqliteStorage, job: Job, own: JobTransaction, path: Path
) -> None:
    own.connection.execute("INSERT INTO note (text) VALUES ('a')")
    own.connection.commit()
    sqlite3.Cursor(own.connection).connection.set_authorizer(None)
    sqlite3.Cursor(own.connection).execute("ROLLBACK")  # as it does when the disk is full
    for use in (
        lambda: own.connection.execute("INSERT INTO note (text) VALUES ('b')"),
        lambda: own.add([new()]),
        lambda: own.settle(success(job), NOW + 1),
    ):
        with pytest.raises(StorageError, match="SQLite did it by itself"):
            use()
    assert notes(path) == []
    assert again(storage, job).state is JobState.RUNNING


# ── who else writes ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_waits_for_other_writers_and_others_wait_for_it(
    storage: SqliteStorage, job: Job, own: JobTransaction, path: Path
) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.7, foreign.execute, ("COMMIT",))  # longer than one wait of SQLite's
        timer.start()
        own.connection.execute("INSERT INTO note (text) VALUES ('a')")
        timer.join()
    done: list[Job] = []
    thread = threading.Thread(target=lambda: done.extend(storage.add([new()])))
    thread.start()
    thread.join(0.7)
    assert not done
    assert own.settle(success(job), NOW + 1)
    thread.join(10)
    assert len(done) == 1


def test_it_gives_up_where_others_never_end(
    storage: SqliteStorage, job: Job, own: JobTransaction, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage._connections, "_attempts", 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageBusy, match=r"has held the write lock for 0\.5 s"):
            own.connection.execute("INSERT INTO note (text) VALUES ('a')")
        foreign.execute("COMMIT")
    own.connection.execute("INSERT INTO note (text) VALUES ('a')")


def test_who_would_wait_for_his_own_job_is_told_at_once(storage: SqliteStorage, job: Job, own: JobTransaction) -> None:
    own.connection.execute("INSERT INTO note (text) VALUES ('a')")
    began = time.monotonic()
    with pytest.raises(StorageBusy, match=rf"job {job.id} has written through task.connection\(\)"):
        storage.add([new()])
    with pytest.raises(StorageBusy, match=rf"job {job.id} has written through task.connection\(\)"):
        storage.swap("key", None, "value")
    assert time.monotonic() - began < 0.4  # not even one wait


def test_those_who_wait_for_its_result_hear_of_it_while_others_queue_to_write(
    storage: SqliteStorage, job: Job, own: JobTransaction, path: Path
) -> None:
    """Who waits for the lock is in the turnstile, so the job cannot be, and waiters may look too early."""
    own.connection.execute("INSERT INTO note (text) VALUES ('a')")
    assert not storage._connections.turnstile.is_taken
    with storage._connections.turnstile, storage.watch() as watch:
        committed = threading.Event()

        def settle() -> None:
            own.settle(success(job), NOW + 1)
            committed.set()

        thread = threading.Thread(target=settle)
        thread.start()
        assert watch.wait(10)
        while again(storage, job).state is JobState.RUNNING:
            watch.wait(0.01)  # looked too early: the word that comes after that needs the turn, which this test has
        watch.changed()
        assert not committed.is_set()  # it is about to write once more, in its turn
    thread.join(10)
    assert committed.is_set()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT 1 FROM liteq_meta WHERE key = 'bell'").fetchone() == (1,)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_ends_it_and_both_processes_write_on(storage: SqliteStorage, job: Job, path: Path) -> None:
    own = storage.transaction(job)
    own.connection.execute("INSERT INTO note (text) VALUES ('a')")
    child = os.fork()
    if child == 0:
        storage.add([new("from the child")])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises((StorageError, sqlite3.ProgrammingError), match=r"forked|closed"):
        own.connection.execute("INSERT INTO note (text) VALUES ('b')")
    own.abandon("it failed")
    storage.add([new()])
    assert notes(path) == []
    assert len(storage.find(JobFilter())) == 3


def test_a_fork_waits_for_the_jobs_of_other_threads(
    storage: SqliteStorage, job: Job, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, closing_now = threading.Event(), threading.Event()

    def work() -> None:
        own = storage.transaction(job)
        own.connection.execute("INSERT INTO note (text) VALUES ('a')")
        written.set()
        closing_now.wait(10)
        own.settle(success(job), NOW + 1)

    thread = threading.Thread(target=work)
    thread.start()
    assert written.wait(10)
    monkeypatch.setattr(sqlite_connection.SystemClock, "sleep", lambda _: closing_now.set() or thread.join(0.01))
    storage.close()
    thread.join(10)
    assert notes(path) == ["a"]
