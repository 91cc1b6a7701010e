"""Jobs that are enqueued in the app's own transaction: with `sqlite3`, SQLAlchemy and Django."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import sqlalchemy
import sqlalchemy.orm
from workbench import Program, claim, run, run_python, work

from liteq import (
    DuplicateJob,
    JobState,
    LiteQ,
    Result,
    ResultGroup,
    S,
    StorageBusy,
    StorageError,
    StorageUnusable,
    Task,
    TaskContext,
)
from liteq.errors import ConfigurationError


@pytest.fixture
def path(directory: Path) -> Path:
    return directory / "queue.db"


@pytest.fixture
def mail(on_file: LiteQ) -> Task[[str], str]:
    @on_file.task(name="mail")
    def mail(address: str) -> str:
        return f"sent to {address}"

    on_file.counts()  # the file is there
    return mail


@pytest.fixture
def connect(path: Path) -> Iterator[Callable[..., sqlite3.Connection]]:
    """Opens connections of the app's own, with a table of its own."""
    opened: list[sqlite3.Connection] = []

    def connect(database: object = path, **options: Any) -> sqlite3.Connection:
        opened.append(sqlite3.connect(str(database), **{"timeout": 0.2, **options}))
        return opened[-1]

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, email)")
    yield connect
    for one in opened:
        one.close()


def order(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO orders (email) VALUES ('a@b.c')")


def orders(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM orders").fetchone()[0])


def ids(app: LiteQ) -> list[str]:
    return [job.id for job in app.jobs()]


# ── the caller's transaction ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_job_exists_if_and_when_the_transaction_commits(
    on_file: LiteQ, mail: Task[[str], str], connect: Any, path: Path
) -> None:
    connection = connect()
    order(connection)
    lost = on_file.enqueue(mail.s("lost"), connection=connection)
    connection.rollback()
    order(connection)
    kept = on_file.enqueue(mail.s("kept"), connection=connection)
    assert kept.id != lost.id
    assert ids(on_file) == []
    connection.commit()
    assert (ids(on_file), orders(path)) == ([kept.id], 1)
    assert work(on_file) == 1
    assert kept.get() == "sent to kept"


def test_an_enqueue_alone_begins_the_transaction_that_the_caller_commits(
    on_file: LiteQ, mail: Task[[str], str], connect: Any
) -> None:
    for level in ("", "DEFERRED", "IMMEDIATE", "EXCLUSIVE"):
        connection = connect(isolation_level=level)
        result = on_file.enqueue(mail.s("a"), connection=connection)
        assert connection.in_transaction, level
        assert result.id not in ids(on_file), level
        connection.commit()
        assert result.id in ids(on_file), level
        connection.close()


def test_in_autocommit_it_is_stored_at_once(on_file: LiteQ, mail: Task[[str], str], connect: Any) -> None:
    connection = connect(isolation_level=None)
    result = on_file.enqueue(mail.s("a"), connection=connection)
    assert not connection.in_transaction
    assert ids(on_file) == [result.id]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3.connect has no autocommit before Python 3.12")
def test_the_newer_ways_of_python_to_commit_are_known(on_file: LiteQ, mail: Task[[str], str], connect: Any) -> None:
    connection = connect(autocommit=False)
    result = on_file.enqueue(mail.s("a"), connection=connection)
    assert ids(on_file) == []
    connection.commit()
    assert ids(on_file) == [result.id]
    result = on_file.enqueue(mail.s("b"), connection=connect(autocommit=True))
    assert result.id in ids(on_file)


def test_savepoints_hold(on_file: LiteQ, mail: Task[[str], str], connect: Any) -> None:
    connection = connect(isolation_level=None)
    connection.execute("BEGIN")
    before = on_file.enqueue(mail.s("before"), connection=connection)
    connection.execute("SAVEPOINT here")
    on_file.enqueue(mail.s("inside"), connection=connection)
    connection.execute("ROLLBACK TO here")
    after = on_file.enqueue(mail.s("after"), connection=connection)
    connection.execute("RELEASE here")
    connection.execute("COMMIT")
    assert ids(on_file) == [before.id, after.id]


def test_what_fails_leaves_the_transaction_as_it_was(
    on_file: LiteQ, mail: Task[[str], str], connect: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = connect()
    order(connection)

    def fail(*_: object) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patched, pytest.raises(StorageError, match=r"disk I/O error; nothing was enqueued"):
        patched.setattr("liteq.storage.sqlite._stored", fail)
        on_file.enqueue(mail.using(id="x").s("a"), connection=connection)
    assert connection.in_transaction
    connection.commit()
    assert (ids(on_file), orders(path)) == ([], 1)


def test_a_batch_on_a_connection_takes_whatever_is_enqueued_inside(
    on_file: LiteQ, mail: Task[[str], str], connect: Any
) -> None:
    connection = connect()
    with on_file.batch():
        outer = mail("outer")
        with on_file.batch(connection=connection):
            group = mail.map(["a", "b"])
            with on_file.batch():  # hands it to the one around it
                single = mail.using(id="order-7", delay=60)("c")
            with pytest.raises(RuntimeError), on_file.batch(connection=connection):
                mail("never")
                raise RuntimeError
        assert [single.id, *(one.id.partition("-")[0] for one in group)] == ["order-7", "1", "2"]
        assert ids(on_file) == []
        connection.commit()
        assert ids(on_file) == [group[0].id, group[1].id, "order-7"]
    assert ids(on_file)[3:] == [outer.id]


def test_an_id_that_exists_is_known_committed_or_not(on_file: LiteQ, mail: Task[[str], str], connect: Any) -> None:
    with on_file.batch():
        mail.using(id="stored")("a")
    connection = connect()
    named = mail.using(id="order-7")
    for name in ("stored", "order-7", "order-7"):
        assert on_file.enqueue(named.using(id=name).s("b"), connection=connection).id == name
    connection.commit()
    assert ids(on_file) == ["stored", "order-7"]
    assert on_file.job("stored").payload == b'[["a"],{}]'


def test_unique_jobs_are_unique_in_a_transaction_too(on_file: LiteQ, connect: Any, path: Path) -> None:
    @on_file.task(name="sync", unique=True)
    def sync(user: int) -> None: ...

    on_file.counts()
    connection = connect(":memory:", isolation_level=None)
    connection.execute("ATTACH ? AS queue", (str(path),))
    connection.execute("BEGIN")
    first = [on_file.enqueue(sync.s(user), connection=connection).id for user in (1, 1, 2)]
    assert first[0] == first[1] != first[2]
    connection.execute("ROLLBACK")
    kept = sync(1)
    connection.execute("BEGIN")
    assert on_file.enqueue(sync.s(1), connection=connection).id == kept.id
    with pytest.raises(DuplicateJob):
        on_file.enqueue(sync.using(on_duplicate="raise").s(1), connection=connection)
    with on_file.batch(connection=connection):
        group = sync.map([1, 2, 2, 3])
    connection.execute("COMMIT")
    assert ids(on_file) == [kept.id, group[1].id, group[3].id]


def test_a_coroutine_enqueues_on_its_own_thread(on_file: LiteQ, mail: Task[[str], str], connect: Any) -> None:
    async def enqueue() -> list[str]:
        connection = connect()
        first = await on_file.aenqueue(mail.s("a"), connection=connection)
        async with on_file.batch(connection=connection):
            second = mail("b")
        connection.commit()
        return [first.id, second.id]

    assert asyncio.run(enqueue()) == ids(on_file)


def test_no_signal_is_sent_for_what_may_never_be(on_file: LiteQ, mail: Task[[str], str], connect: Any) -> None:
    heard: list[str] = []
    on_file.signal(S.ENQUEUED)(lambda signal, job, error: heard.append(job.id))
    connection = connect()
    on_file.enqueue(mail.s("a"), connection=connection)
    connection.commit()
    ours = mail("b")
    assert heard == [ours.id]


def test_a_sleeping_consumer_wakes_at_the_commit(on_file: LiteQ, mail: Task[[str], str], connect: Any) -> None:
    connection = connect()
    with on_file.run_in_background(workers=1):
        mail("first").get(timeout=10)
        result = on_file.enqueue(mail.s("a"), connection=connection)
        connection.commit()
        began = time.monotonic()
        assert result.get(timeout=10) == "sent to a"
        assert time.monotonic() - began < 5  # it looks every 10 s without being told


# ── whatever the connection is like ──────────────────────────────────────────────────────────────────────────────────


class Odd(sqlite3.Connection):
    """A connection that makes everything its own way."""

    def cursor(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a cursor of the app's own is not liteq's business")

    def execute(self, *_: Any) -> Any:
        raise AssertionError("nor is this")


def test_the_connections_own_ways_neither_matter_nor_change(
    on_file: LiteQ, mail: Task[[str], str], connect: Any
) -> None:
    def surprise(*_: object) -> Any:
        raise AssertionError("nobody asked")

    connection = connect(factory=Odd)
    connection.row_factory, connection.text_factory = surprise, surprise
    trace: list[str] = []
    connection.set_trace_callback(trace.append)
    for _ in range(2):
        on_file.enqueue(mail.using(id="x", delay=5).s("ünïcødé"), connection=connection)
    assert (connection.row_factory, connection.text_factory, connection.isolation_level) == (surprise, surprise, "")
    assert not any(one.startswith(("COMMIT", "PRAGMA")) for one in trace)
    connection.commit()
    assert ids(on_file) == ["x"]


def test_a_cursor_will_do(on_file: LiteQ, mail: Task[[str], str], connect: Any) -> None:
    cursor = connect().cursor()
    on_file.enqueue(mail.s("a"), connection=cursor)
    cursor.connection.commit()
    assert len(ids(on_file)) == 1


@pytest.mark.parametrize("name", ["queue", 'a "b" c'])
def test_the_queue_may_be_attached_even_to_another_queue(
    on_file: LiteQ, mail: Task[[str], str], connect: Any, path: Path, directory: Path, name: str
) -> None:
    other = LiteQ(directory / "other.db")
    other.counts()
    connection = connect(directory / "other.db", isolation_level=None)
    connection.execute('ATTACH ? AS "{}"'.format(name.replace('"', '""')), (str(path),))
    connection.execute("BEGIN")
    results = [on_file.enqueue(mail.using(id=one).s("a"), connection=connection) for one in (None, "x", "x")]
    with on_file.batch(connection=connection):
        mail.map(["b"] * 100)
    connection.execute("COMMIT")
    assert ids(on_file)[:2] == [results[0].id, "x"]
    assert on_file.counts()[JobState.READY] == 102
    assert other.jobs() == []
    other.close()


def test_the_app_s_own_file_in_another_journal_mode_is_set_up_before(directory: Path) -> None:
    with closing(sqlite3.connect(directory / "own.db")) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, email)")
        app = LiteQ(directory / "own.db")

        @app.task
        def t() -> None: ...

        result = app.enqueue(t.s(), connection=connection)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.rollback()
        assert ids(app) == []  # but the tables are there
        result = app.enqueue(t.s(), connection=connection)
        connection.commit()
        assert ids(app) == [result.id]
        app.close()


# ── what cannot be ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_no_connection_is_refused(on_file: LiteQ, mail: Task[[str], str]) -> None:
    for wrong in ("queue.db", 5, object(), sqlite3, sqlalchemy.create_engine("sqlite://")):
        with pytest.raises(TypeError, match=r"connection takes an open sqlite3.Connection.*INSERT INTO liteq_enqueue"):
            on_file.enqueue(mail.s("a"), connection=wrong)


def test_a_connection_that_cannot_be_used_is_refused(
    on_file: LiteQ, mail: Task[[str], str], connect: Any, path: Path, directory: Path
) -> None:
    closed = connect()
    closed.close()
    with pytest.raises(ConfigurationError, match=r"cannot be used here: Cannot operate on a closed database"):
        on_file.enqueue(mail.s("a"), connection=closed)
    with (
        _another_threads_connection(path) as other,
        pytest.raises(ConfigurationError, match="can only be used in that"),
    ):
        on_file.enqueue(mail.s("a"), connection=other)
    for database, words in ((":memory:", "no file at all"), (directory / "elsewhere.db", "elsewhere.db")):
        with pytest.raises(ConfigurationError, match=f"has .*{words}.* open, and the queue is in .*queue.db.*ATTACH"):
            on_file.enqueue(mail.s("a"), connection=connect(database))
    assert ids(on_file) == []


@contextmanager
def _another_threads_connection(path: Path) -> Iterator[sqlite3.Connection]:
    opened: SimpleQueue[sqlite3.Connection] = SimpleQueue()
    enough = threading.Event()

    def live() -> None:
        with closing(sqlite3.connect(path)) as connection:
            opened.put(connection)
            enough.wait(10)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield opened.get(timeout=10)
    finally:
        enough.set()
        thread.join()


def test_a_read_only_connection_says_so(on_file: LiteQ, mail: Task[[str], str], connect: Any, path: Path) -> None:
    connection = connect(f"file:{path}?mode=ro", uri=True)
    with pytest.raises(StorageUnusable, match="the connection that you passed may only read; nothing was enqueued"):
        on_file.enqueue(mail.s("a"), connection=connection)
    assert not connection.in_transaction


def test_a_transaction_that_has_read_and_come_too_late_says_so(
    on_file: LiteQ, mail: Task[[str], str], connect: Any
) -> None:
    connection = connect(isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("SELECT * FROM orders").fetchall()
    mail("in between")
    with pytest.raises(StorageBusy, match="began by reading, and somebody has written since"):
        on_file.enqueue(mail.s("a"), connection=connection)
    connection.execute("ROLLBACK")
    on_file.enqueue(mail.s("a"), connection=connection)
    assert len(ids(on_file)) == 2


def test_a_connection_waits_for_others_as_long_as_it_would(
    on_file: LiteQ, mail: Task[[str], str], connect: Any
) -> None:
    busy = connect(isolation_level=None)
    busy.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageBusy, match=r"waits no longer for it \(sqlite3.connect\(timeout=…\)\)"):
        on_file.enqueue(mail.s("a"), connection=connect())
    busy.execute("ROLLBACK")


def test_memory_has_no_connections(app: LiteQ) -> None:
    @app.task
    def t() -> None: ...

    with closing(sqlite3.connect(":memory:")) as connection:
        with pytest.raises(ConfigurationError, match="is for a queue in an SQLite file, and this one is in :memory:"):
            app.enqueue(t.s(), connection=connection)
        app.immediate = True
        assert app.enqueue(t.s(), connection=connection).is_ready()  # it ran here: there is no transaction to be in


def test_tables_that_are_yet_to_be_made_are_not_made_inside_a_transaction(directory: Path) -> None:
    path = directory / "own.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript("PRAGMA journal_mode = WAL; CREATE TABLE orders (id INTEGER PRIMARY KEY, email);")
        app = LiteQ(path)

        @app.task
        def t() -> None: ...

        connection.execute("BEGIN")
        order(connection)
        with pytest.raises(StorageBusy, match=r"liteq has yet to make its tables.*app.counts\(\)"):
            app.enqueue(t.s(), connection=connection)
        connection.execute("COMMIT")
        connection.execute("BEGIN")
        connection.execute("SELECT * FROM orders").fetchall()
        with pytest.raises(StorageError, match="began before liteq had made its tables"):
            app.enqueue(t.s(), connection=connection)
        connection.execute("COMMIT")
        assert app.enqueue(t.s(), connection=connection).state is JobState.READY
        app.close()


# ── who forgets to pass it ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who holds a lock")
def test_who_has_written_and_forgets_the_connection_is_told_instead_of_waiting_for_himself(
    on_file: LiteQ, mail: Task[[str], str], connect: Any, path: Path
) -> None:
    with on_file.run_in_background(workers=1):  # other threads are there, and wait as well
        connection = connect()
        order(connection)
        began = time.monotonic()
        with pytest.raises(StorageBusy, match=r"this thread has written .* has not committed.*connection=…"):
            mail("a")
        assert time.monotonic() - began < 30  # it waits a minute for others
        connection.commit()
        assert mail("a").get(timeout=10) == "sent to a"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who holds a lock")
def test_a_connection_that_any_thread_may_use_is_recognized_in_a_program_of_one_thread(path: Path) -> None:
    out = run_python(
        """
        import sqlite3, sys
        from liteq import LiteQ
        app = LiteQ(sys.argv[1])
        task = app.task(name="t")(lambda: None)
        task()
        with sqlite3.connect(sys.argv[1], check_same_thread=False) as connection:
            connection.execute("CREATE TABLE orders (id)")
            connection.execute("INSERT INTO orders VALUES (1)")
            try:
                task()
            except OSError as error:
                print(type(error).__name__, error)
        app.close()
        """,
        path,
    )
    assert out.startswith("StorageBusy")
    assert "this thread has written" in out


def test_a_reader_is_not_blamed_for_what_another_thread_writes(
    on_file: LiteQ, mail: Task[[str], str], connect: Any, path: Path
) -> None:
    reader = connect(isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM orders").fetchall()
    written, enough = threading.Event(), threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(path)) as writer:
            order(writer)
            written.set()
            enough.wait(2)  # longer than the first wait of an enqueue, after which it looks who is to blame
            writer.commit()

    thread = threading.Thread(target=write)
    thread.start()
    assert written.wait(10)
    assert mail("a").state is JobState.READY
    thread.join()
    reader.execute("COMMIT")


def test_another_program_that_holds_the_lock_is_named(
    on_file: LiteQ, mail: Task[[str], str], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = """
        import sqlite3
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        say("held")
        hear()
    """
    monkeypatch.setattr(on_file.storage._connections, "_attempts", 2)  # type: ignore[attr-defined]
    with Program(program, path) as other:
        assert other.hear() == "held"
        with pytest.raises(StorageBusy, match=f"process {other.process.pid}" if sys.platform == "linux" else "another"):
            mail("a")
        other.tell("go")


# ── in a job ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_job_enqueues_exists_if_it_succeeds_and_is_told_then(
    on_file: LiteQ, mail: Task[[str], str], connect: Any, path: Path
) -> None:
    heard: list[str] = []
    on_file.signal(S.ENQUEUED)(lambda signal, job, error: heard.append(job.arguments) if job.task == "mail" else None)

    @on_file.task(context=True)
    def place(fails: bool, task: TaskContext) -> None:
        with on_file.batch():
            mail("collected before")
            connection = task.connection()
        mail.map(["a", "b"])
        with on_file.batch():
            mail("c")
        on_file.enqueue(mail.s("d"), connection=connection)
        on_file.enqueue(mail.s("e"), connection=connection.cursor())
        order(connection)
        connection.commit()
        with pytest.raises(RuntimeError), connection:
            mail("forgotten by the job itself")
            raise RuntimeError
        assert (on_file.jobs(task="mail"), heard) == ([], [])
        if fails:
            raise ValueError

    assert place(True).state is JobState.READY
    assert work(on_file) == 1
    assert (on_file.jobs(task="mail"), heard, orders(path)) == ([], [], 0)
    place(False)
    assert work(on_file) == 1 + 6
    stored = ['[["collected before"],{}]', *(f'[["{one}"],{{}}]' for one in "abcde")]
    assert [job.arguments for job in on_file.jobs(task="mail")] == stored
    assert heard == stored[:4]  # given a connection, liteq does not know whose it is
    assert orders(path) == 1


def test_a_workflow_belongs_to_the_transaction_of_the_app_or_of_a_job(
    on_file: LiteQ, connect: Any, path: Path, log: pytest.LogCaptureFixture
) -> None:
    @on_file.task(name="add")
    def add(a: int, b: int) -> int:
        return a + b

    @on_file.task(name="break")
    def fail() -> int:
        raise ValueError

    @on_file.task(name="place", context=True)
    def place(task: TaskContext) -> list[str]:
        order(task.connection())
        late = add.using(after=[broken])(1, 1)
        return [on_file.enqueue(add.s(1, 2).then(add, 10)).id, late.id]

    on_file.counts()
    broken = fail()
    connection = connect(":memory:", isolation_level=None)
    connection.execute("ATTACH ? AS queue", (str(path),))
    connection.execute("BEGIN")
    result = on_file.enqueue(add.s(1, 2).then(add, 10), connection=connection)
    assert len(on_file.jobs()) == 1
    connection.execute("COMMIT")
    work(on_file)
    assert result.get() == 13
    placed = place()
    work(on_file)
    last, late = map(on_file.result, placed.get())
    assert (last.get(), orders(path), late.state) == (13, 1, JobState.FAILED)
    assert [record for record in log.records if getattr(record, "job", "") == late.id]


def test_a_job_that_has_written_does_not_wait_for_others(
    on_file: LiteQ, mail: Task[[str], str], connect: Any, path: Path
) -> None:
    done, waits = mail("done"), mail.using(delay=60)("later")
    work(on_file)

    @on_file.task(context=True)
    def place(how: str, task: TaskContext) -> None:
        order(task.connection())
        assert done.get() == "sent to done"
        if how == "get":
            waits.get()
        elif how == "group":
            ResultGroup([waits]).get()
        else:
            asyncio.run(_awaited(waits))

    results = [place(how) for how in ("get", "group", "await")]
    work(on_file)
    for result in results:
        assert result.error is not None
        assert "until it ends nobody else can write" in result.error.message
    assert orders(path) == 0


async def _awaited(result: Result[str]) -> str:
    return await result


def test_a_job_that_has_ended_gets_no_connection_any_more(on_file: LiteQ, connect: Any) -> None:
    contexts: list[TaskContext] = []
    on_file.task(context=True, name="t")(lambda task: contexts.append(task))
    on_file.tasks["t"]()
    work(on_file)
    with pytest.raises(ConfigurationError, match="has ended, and has no connection any more"):
        contexts[0].connection()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_job_that_has_written_and_forks_fails_instead_of_succeeding_without_what_it_wrote(
    on_file: LiteQ, connect: Any, path: Path
) -> None:
    @on_file.task(context=True)
    def place(task: TaskContext) -> None:
        order(task.connection())
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

    result = place()
    work(on_file)
    assert result.state is JobState.FAILED
    assert result.error is not None
    assert "was rolled back: the process was forked" in result.error.message
    assert orders(path) == 0


def test_a_session_of_sqlalchemy_writes_together_with_a_jobs_success(
    on_file: LiteQ, mail: Task[[str], str], connect: Any, path: Path
) -> None:
    @on_file.task(context=True)
    def place(fails: bool, task: TaskContext) -> int:
        engine = sqlalchemy.create_engine("sqlite://", creator=task.connection, poolclass=sqlalchemy.StaticPool)
        with sqlalchemy.orm.Session(engine) as session:
            session.add(Order(email="a@b.c"))
            session.commit()
            session.add(Order(email="never committed"))
            session.flush()
        with sqlalchemy.orm.Session(engine) as session:
            count = len(session.scalars(sqlalchemy.select(Order)).all())
        if fails:
            raise ValueError(count)
        return count

    failed, result = place(True), place(False)
    work(on_file)
    assert failed.error.message == "1"
    assert (result.get(), orders(path)) == (1, 1)


# ── SQLAlchemy and Django ────────────────────────────────────────────────────────────────────────────────────────────


class Base(sqlalchemy.orm.DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: sqlalchemy.orm.Mapped[int] = sqlalchemy.orm.mapped_column(primary_key=True)
    email: sqlalchemy.orm.Mapped[str]


@pytest.fixture
def sessions(mail: Task[[str], str], path: Path) -> Iterator[sqlalchemy.orm.sessionmaker[Any]]:
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    yield sqlalchemy.orm.sessionmaker(engine)
    engine.dispose()


def test_a_job_belongs_to_a_session_of_sqlalchemy(
    on_file: LiteQ, mail: Task[[str], str], sessions: Any, path: Path
) -> None:
    with pytest.raises(RuntimeError), sessions.begin() as session:
        session.add(Order(email="a@b.c"))
        on_file.enqueue(mail.s("never"), connection=session)
        raise RuntimeError
    with sessions.begin() as session:
        session.add(Order(email="a@b.c"))
        session.flush()
        result = on_file.enqueue(mail.s("a@b.c"), connection=session)
        with pytest.raises(RuntimeError), session.begin_nested():
            on_file.enqueue(mail.s("never"), connection=session)
            raise RuntimeError
        with on_file.batch(connection=session.connection()):
            other = mail("d@e.f")
        assert ids(on_file) == []
    assert (ids(on_file), orders(path)) == ([result.id, other.id], 1)


def test_a_session_that_only_enqueues_commits_it(on_file: LiteQ, mail: Task[[str], str], sessions: Any) -> None:
    with sessions() as session:
        result = on_file.enqueue(mail.s("a"), connection=session)
        session.commit()
    with sessions() as session:
        on_file.enqueue(mail.s("b"), connection=sqlalchemy.orm.scoped_session(lambda: session))
    with sessions.kw["bind"].connect() as connection:
        on_file.enqueue(mail.s("c"), connection=connection.connection)
    assert ids(on_file) == [result.id]


def test_a_connection_of_sqlalchemy_commits_what_is_enqueued_first(
    on_file: LiteQ, mail: Task[[str], str], sessions: Any
) -> None:
    """Nothing was executed on it before: SQLAlchemy begins a transaction with the first statement that it knows of."""
    engine = sessions.kw["bind"]
    with engine.connect() as connection:
        first = on_file.enqueue(mail.s("a"), connection=connection)
        connection.commit()
        with on_file.batch(connection=connection):
            second = mail("b")
        connection.commit()
        on_file.enqueue(mail.s("never"), connection=connection)
        connection.rollback()
        on_file.enqueue(mail.s("never"), connection=connection)
    with engine.begin() as connection:
        third = on_file.enqueue(mail.s("c"), connection=connection)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        fourth = on_file.enqueue(mail.s("d"), connection=connection)
    assert ids(on_file) == [first.id, second.id, third.id, fourth.id]
    with pytest.raises(sqlalchemy.exc.ResourceClosedError):
        on_file.enqueue(mail.s("e"), connection=connection)


DJANGO = """
import sys
import django
from django.conf import settings
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]}},
    USE_TZ=True, DEFAULT_AUTO_FIELD="django.db.models.AutoField",
)
django.setup()
from django.db import connection, models, transaction
from liteq import LiteQ, StorageBusy

class Order(models.Model):
    email = models.TextField()
    class Meta:
        app_label = "shop"

app = LiteQ(sys.argv[1])

@app.task(name="mail")
def mail(address): ...

result = app.enqueue(mail.s("at once"), connection=connection)
assert [job.id for job in app.jobs()] == [result.id], "in autocommit it is stored at once"
with connection.schema_editor() as editor:
    editor.create_model(Order)
try:
    with transaction.atomic():
        Order.objects.create(email="never")
        app.enqueue(mail.s("never"), connection=connection)
        raise RuntimeError
except RuntimeError:
    pass
with transaction.atomic():
    Order.objects.create(email="a@b.c")
    app.enqueue(mail.s("a@b.c"), connection=connection)
    try:
        with transaction.atomic():
            app.enqueue(mail.s("never"), connection=connection)
            raise RuntimeError
    except RuntimeError:
        pass
    with app.batch(connection=connection):
        mail.map(["x", "y"])
    assert len(app.jobs()) == 1
assert Order.objects.count() == 1
print([bytes(job.payload).decode() for job in app.jobs()])
with transaction.atomic():
    Order.objects.create(email="a@b.c")
    try:
        mail("forgotten")
    except StorageBusy as error:
        print(error)
app.close()
"""


def test_a_job_belongs_to_djangos_transaction(path: Path) -> None:
    stored, told = run_python(DJANGO, path).splitlines()
    assert stored == str([f'[["{one}"],{{}}]' for one in ("at once", "a@b.c", "x", "y")])
    assert "this thread has written" in told or sys.platform != "linux"


# ── unique keys ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("attached", [False, True])
def test_a_unique_key_is_held_from_the_commit_on(
    on_file: LiteQ, connect: Any, path: Path, directory: Path, attached: bool
) -> None:
    note = on_file.task(name="note", unique="{key}", on_duplicate="replace")(lambda key, text: text)
    on_file.counts()
    connection = connect(directory / "other.db" if attached else path, isolation_level=None)
    if attached:
        connection.execute("ATTACH ? AS queue", (str(path),))
    connection.execute("BEGIN IMMEDIATE")
    on_file.enqueue(note.s("k", "lost"), connection=connection)
    connection.rollback()
    before = note("k", "before")
    connection.execute("BEGIN IMMEDIATE")
    first = on_file.enqueue(note.s("l", "1"), connection=connection)
    assert on_file.enqueue(note.s("l", "2"), connection=connection) == first
    assert on_file.enqueue(note.s("k", "after"), connection=connection) == before
    with pytest.raises(DuplicateJob):
        on_file.enqueue(note.using(on_duplicate="raise").s("l", "3"), connection=connection)
    connection.commit()
    assert note.using(on_duplicate="return")("l", "4") == first
    assert work(on_file) == 2
    assert (before.get(), first.get()) == ("after", "2")


def test_a_running_job_is_followed_by_one_of_the_callers_transaction(on_file: LiteQ, connect: Any) -> None:
    note = on_file.task(name="note", unique=True, on_duplicate="replace")(lambda: 5)
    note()
    [running] = claim(on_file)
    connection = connect()
    follower = on_file.enqueue(note.s(), connection=connection)
    connection.commit()
    assert follower.state is JobState.BLOCKED
    run(on_file, running)
    assert work(on_file) == 1
    assert follower.get() == 5
