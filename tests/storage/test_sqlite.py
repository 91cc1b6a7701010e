"""SqliteStorage keeps the contract; below it, what is its own: the file, who may open it, and what a statement costs.

Most of it happens in memory-backed files where the system has such a directory: the contract is a few hundred small
files, and what a disk makes of each commit is not what these tests ask.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn, get_args

import pytest
from contract import NOW, StorageContract, add_many, again, bring, claim, new, request, seqs, settle, succeed

import liteq
from liteq import lifecycle
from liteq.errors import StorageBusy, StorageError, StorageTooNew, StorageUnusable
from liteq.job import Ending, Job, JobFilter, JobState
from liteq.storage import schema, sqlite_connection
from liteq.storage import sqlite as sqlite_module
from liteq.storage.base import Added, ClaimRequest
from liteq.storage.sqlite import SPARE_PAGES, VACUUM_PAGES, SqliteStorage
from liteq.storage.sqlite_connection import RESTART_ABOVE, Durability

ROOT = Path(liteq.__file__).parents[1]

#: Where files cost no disk writes.
SHARED_MEMORY = Path("/dev/shm")

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
quiet_forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """An empty directory, in memory if possible."""
    if not os.access(SHARED_MEMORY, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(prefix="liteq-test-", dir=SHARED_MEMORY) as name:
        yield Path(name)


@pytest.fixture
def path(directory: Path) -> Path:
    return directory / "queue.db"


@contextmanager
def opened(path: Path, durability: Durability = "normal") -> Iterator[SqliteStorage]:
    with closing(SqliteStorage(path, durability=durability)) as storage:
        yield storage


@contextmanager
def foreign(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to the file that knows nothing of liteq's turnstile."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)) as connection:
        yield connection


def in_a_child(work: Callable[[], object]) -> int:
    """Fork; the child does ``work`` and ends at once. Returns its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - the child has nobody else to tell
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(1)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_python(source: str, *arguments: object) -> str:
    """What a program prints; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ── the contract ─────────────────────────────────────────────────────────────────────────────────────────────────────


class TestSqliteStorage(StorageContract):
    @pytest.fixture(params=get_args(Durability))
    def storage(self, path: Path, request: pytest.FixtureRequest) -> Iterator[SqliteStorage]:
        with opened(path, request.param) as storage:
            yield storage

    @pytest.fixture
    def reopen(self, storage: SqliteStorage) -> Iterator[Callable[[], SqliteStorage]]:
        with ExitStack() as handles:
            yield lambda: handles.enter_context(opened(storage.path))

    @pytest.fixture
    def perish(self, storage: SqliteStorage) -> Callable[[int], int]:
        if not hasattr(os, "fork"):
            pytest.skip("no fork here")

        def perish(wanted: int) -> int:
            read, write = os.pipe()

            def live_and_die() -> None:
                owner = storage.register({})
                claim(storage, wanted, owner=owner)
                os.write(write, b"%d" % owner)

            child = in_a_child(live_and_die)
            assert exit_code(child) == 0
            os.close(write)
            with os.fdopen(read) as pipe:
                return int(pipe.read())

        return perish

    test_a_forked_child_may_go_on_using_its_copy = quiet_forks(
        StorageContract.test_a_forked_child_may_go_on_using_its_copy
    )


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_touched_before_the_first_use(directory: Path) -> None:
    storage = SqliteStorage(directory / "queue.db")
    storage.close()
    assert list(directory.iterdir()) == []


def test_a_relative_path_is_read_once_from_the_directory_of_the_moment(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    storage = SqliteStorage("queue.db")
    monkeypatch.chdir(tmp_path)
    with closing(storage):
        add_many(storage, 1)
    assert storage.location == str(directory / "queue.db")
    assert (directory / "queue.db").exists()


@pytest.mark.parametrize("durability", ["", "FULL", "off", None, 1])
def test_an_unknown_durability_is_refused(durability: Durability) -> None:
    with pytest.raises(ValueError, match="durability takes 'full' or 'normal'"):
        SqliteStorage("queue.db", durability=durability)


@pytest.mark.parametrize(("durability", "level"), [("full", 2), ("normal", 1)])
def test_durability_is_what_sqlite_is_told(path: Path, durability: Durability, level: int) -> None:
    with opened(path, durability) as storage:
        assert storage._connections.writer().execute("PRAGMA synchronous").fetchone() == (level,)


def test_the_file_is_for_its_owner_only(path: Path) -> None:
    before = os.umask(0)
    try:
        with opened(path) as storage:
            add_many(storage, 1)
            storage.register({})
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.rglob("*")}
    finally:
        os.umask(before)
    assert {mode for name, mode in modes.items() if name.startswith("queue.db") and not name.endswith("-liteq")} == {
        0o600
    }
    assert modes["queue.db-liteq"] == 0o700
    assert modes["consumers"] & 0o077 == 0 or modes["queue.db-liteq"] == 0o700


def test_a_file_that_was_there_keeps_its_permissions(path: Path) -> None:
    path.touch(0o640)
    path.chmod(0o640)
    with opened(path) as storage:
        add_many(storage, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    "name",
    [
        "with space.db",
        "100%.db",
        "%41.db",
        "what?.db",
        "what?mode=memory",
        "a#b.db",
        "a&b=c;d.db",
        'it\'s "quoted".db',
        "naïve-名前-🐇.db",
        "-dash.db",
        ":memory:x",
        "no_suffix",
        "back\\slash.db",
        "x" * 200,
    ],
)
def test_a_path_may_hold_any_character(directory: Path, name: str) -> None:
    with opened(directory / name) as storage, opened(directory / name) as another:
        [job] = add_many(storage, 1)
        assert another.get(job.id) == job
        with another.watch() as watch:
            watch.changed()
            add_many(storage, 1)
            assert watch.wait(10)
    assert {file.name for file in directory.iterdir()} == {name, f"{name}-liteq"}


@pytest.mark.skipif(sys.platform != "linux", reason="only here are file names just bytes")
def test_a_path_need_not_be_text(directory: Path) -> None:
    path = directory / os.fsdecode(b"\xff\xfe.db")
    with opened(path) as storage:
        [job] = add_many(storage, 1)
        assert storage.get(job.id) == job
    assert path.exists()


def test_a_symbolic_link_leads_to_the_same_queue(directory: Path) -> None:
    (directory / "real").mkdir()
    (directory / "link.db").symlink_to(directory / "real" / "queue.db")
    with opened(directory / "real" / "queue.db") as storage:
        [job] = add_many(storage, 1)
        with opened(directory / "link.db") as another:
            assert another.get(job.id) == job


@needs_fork
@quiet_forks
@pytest.mark.parametrize("attempt", range(3))
def test_32_processes_may_open_a_fresh_path_at_once(path: Path, attempt: int) -> None:
    ready, go = os.pipe()

    def arrive(number: int) -> None:
        os.close(go)
        os.read(ready, 1)  # nothing comes: it ends when the parent lets go
        storage = SqliteStorage(path, durability="full" if number % 2 else "normal")
        assert storage.add([new(id=f"child {number}")])[0].id == f"child {number}"
        assert claim(storage, 1)
        storage.close()

    children = [in_a_child(lambda number=number: arrive(number)) for number in range(32)]  # type: ignore[misc]
    os.close(go)
    codes = [exit_code(child) for child in children]
    os.close(ready)
    assert codes == [0] * 32
    with opened(path) as storage:
        assert storage.counts()[JobState.RUNNING] == 32
    assert_sound(path)


def assert_sound(path: Path) -> None:
    with foreign(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_threads_may_open_a_fresh_storage_at_once(path: Path) -> None:
    start = threading.Barrier(8)
    with opened(path) as storage, ThreadPoolExecutor(8) as pool:

        def arrive(number: int) -> int:
            start.wait()
            return storage.add([new(id=f"thread {number}")])[0].seq

        assert sorted(pool.map(arrive, range(8))) == list(range(1, 9))


# ── what cannot be opened ────────────────────────────────────────────────────────────────────────────────────────────


def refused(path: Path, kind: type[StorageError] = StorageUnusable, **options: bool) -> str:
    """The message with which every first use of this path is refused; what lies there stays as it was."""
    before = listing(path.parent)
    messages = set()
    for use in (
        lambda storage: storage.counts(),
        lambda storage: storage.add([new()]),
        lambda storage: storage.add([new(id="x"), new()]),
        lambda storage: storage.turn([], ClaimRequest(1, 1), NOW),
        lambda storage: storage.register({}),
        lambda storage: storage.watch(),
    ):
        storage = SqliteStorage(path, **options)
        with pytest.raises(StorageError) as refusal:
            use(storage)
        assert type(refusal.value) is kind, refusal.value
        messages.add(str(refusal.value))
        storage.close()
    assert listing(path.parent) == before
    [message] = messages
    assert str(path) in message
    return message


def listing(directory: Path) -> dict[str, bytes | None]:
    if not directory.is_dir():
        return {}
    return {str(file): file.read_bytes() if file.is_file() else None for file in sorted(directory.rglob("*"))}


def test_a_directory_is_refused(path: Path) -> None:
    path.mkdir()
    assert "is a directory" in refused(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_refused_and_nothing_is_put_beside_it(path: Path) -> None:
    os.mkfifo(path)
    assert "is a device or a pipe" in refused(path)


def test_a_missing_parent_directory_is_named(directory: Path) -> None:
    message = refused(directory / "missing" / "queue.db")
    assert f"the directory {directory / 'missing'} does not exist" in message
    assert not (directory / "missing").exists()


def test_a_path_below_a_file_is_refused(directory: Path) -> None:
    (directory / "file").write_text("text")
    refused(directory / "file" / "queue.db")


def test_a_name_too_long_is_refused(directory: Path) -> None:
    assert "too long" in refused(directory / ("x" * 300))


@pytest.mark.parametrize("content", [b"some notes\n", b"\0" * 5000, b"SQLite format 2\0" + b"x" * 5000])
def test_a_file_of_another_kind_is_refused_and_left_as_it_was(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "not a SQLite database" in refused(path)
    assert path.read_bytes() == content


def test_a_missing_file_is_refused_where_it_must_not_be_made(path: Path) -> None:
    assert "does not exist" in refused(path, create=False)


def test_a_schema_of_the_future_is_refused_and_left_as_it_was(path: Path) -> None:
    with opened(path) as storage:
        add_many(storage, 3)
    shutil.rmtree(f"{path}-liteq")
    with foreign(path) as connection:
        connection.execute("UPDATE liteq_meta SET value = ? WHERE key = 'schema'", (schema.CURRENT + 1,))
    message = refused(path, StorageTooNew)
    assert f"schema {schema.CURRENT + 1}, this one knows up to {schema.CURRENT}" in message
    assert "upgrade" in message


def test_a_network_filesystem_is_refused_unless_allowed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_connection, "network_filesystem", lambda path: "nfs4")
    message = refused(path)
    assert "network filesystem (nfs4)" in message
    assert "allow_network_fs=True" in message
    with closing(SqliteStorage(path, allow_network_fs=True)) as storage:
        add_many(storage, 1)


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Without the rights of root, who may write everywhere; files then belong to nobody."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_directory(directory: Path) -> Iterator[Path]:
    """A directory that somebody without rights can get to, and whose own mode is up to the test."""
    home = directory / "home"
    home.mkdir()
    for step in (directory, home):
        step.chmod(0o777)
    if not os.access(SHARED_MEMORY, os.W_OK) and os.geteuid() == 0:
        pytest.skip("pytest's own directories are root's alone")
    yield home
    home.chmod(0o777)


def test_a_directory_without_write_permission_is_refused(open_directory: Path, as_nobody: None) -> None:
    if os.geteuid() == open_directory.stat().st_uid:
        open_directory.chmod(0o555)
    else:
        os.seteuid(0)
        open_directory.chmod(0o555)
        os.seteuid(65534)
    assert "Permission denied" in refused(open_directory / "queue.db")


def test_a_directory_that_may_not_be_entered_is_refused(open_directory: Path, as_nobody: None) -> None:
    (open_directory / "private").mkdir(0o000)
    with pytest.raises(StorageUnusable, match="Permission denied"):
        SqliteStorage(open_directory / "private" / "queue.db").counts()
    (open_directory / "private").chmod(0o700)


def test_a_file_without_write_permission_is_refused(open_directory: Path, as_nobody: None) -> None:
    path = open_directory / "queue.db"
    with opened(path) as storage:
        add_many(storage, 1)
    shutil.rmtree(f"{path}-liteq")
    path.chmod(0o444)
    with opened(path) as storage, pytest.raises(StorageUnusable, match="cannot be used"):
        storage.add([new()])
    assert path.stat().st_mode & 0o777 == 0o444


def test_a_first_use_that_failed_may_be_tried_again(path: Path) -> None:
    path.mkdir()
    with closing(SqliteStorage(path)) as storage:
        with pytest.raises(StorageUnusable):
            add_many(storage, 1)
        path.rmdir()
        [job] = add_many(storage, 1)
        assert storage.get(job.id) == job


# ── the app's own file, and versions ─────────────────────────────────────────────────────────────────────────────────


def schema_of(path: Path) -> list[tuple[str, str, str]]:
    with foreign(path) as connection:
        return connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()


@pytest.mark.parametrize("version", range(schema.CURRENT + 1))
def test_a_file_of_any_version_becomes_the_present_one(path: Path, version: int) -> None:
    with foreign(path) as connection:
        for script in schema.MIGRATIONS[:version]:
            connection.executescript(script)
        if version:
            connection.execute("INSERT INTO liteq_meta VALUES ('schema', ?)", (version,))
    with opened(path) as storage:
        [job] = add_many(storage, 1)
        assert storage.get(job.id) == job
    fresh = path.with_name("fresh.db")
    with opened(fresh) as storage:
        add_many(storage, 1)
    assert schema_of(path) == schema_of(fresh)
    with foreign(path) as connection:
        assert schema.version(connection) == schema.CURRENT


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as storage:
        [job] = add_many(storage, 1)
    before = schema_of(path)
    faulty = "CREATE TABLE liteq_x (a);\nCREATE TABLE liteq_x (a);\n"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, faulty))
    monkeypatch.setattr(schema, "CURRENT", schema.CURRENT + 1)
    with opened(path) as storage, pytest.raises(StorageError, match="liteq_x already exists"):
        add_many(storage, 1)
    assert schema_of(path) == before
    monkeypatch.undo()
    with opened(path) as storage:
        assert storage.get(job.id) == job


def test_the_file_may_be_the_apps_own(path: Path) -> None:
    with foreign(path) as connection:
        connection.executescript(
            "CREATE TABLE guest (name); INSERT INTO guest VALUES ('Ada'); PRAGMA user_version = 7;"
        )
    with opened(path) as storage:
        [job] = add_many(storage, 1)
        with foreign(path) as connection:
            connection.execute("INSERT INTO guest VALUES ('Grace')")
            assert connection.execute("SELECT name FROM guest").fetchall() == [("Ada",), ("Grace",)]
            assert connection.execute("PRAGMA user_version").fetchone() == (7,)
        assert storage.get(job.id) == job
        storage.upkeep()
    names = {name for _, name, _ in schema_of(path)} - {"guest"}
    assert all(name.startswith(("liteq_", "sqlite_")) for name in names)


def test_an_empty_file_is_a_fresh_one(path: Path) -> None:
    path.touch()
    with opened(path) as storage:
        add_many(storage, 1)
        assert storage.counts()[JobState.READY] == 1


def test_the_file_is_in_wal_mode_and_nothing_is_left_beside_it_after_close(path: Path) -> None:
    with opened(path) as storage:
        add_many(storage, 1)
        assert path.with_name("queue.db-wal").exists()
    assert {file.name for file in path.parent.iterdir()} == {"queue.db", "queue.db-liteq"}
    with foreign(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# ── the file changes under us ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def no_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look before every write whether the file is in its place, rather than some milliseconds later."""
    monkeypatch.setattr(sqlite_connection, "TRUST", -1.0)


@pytest.mark.parametrize("rest", [(), ("-wal", "-shm"), ("-wal", "-shm", "-liteq")])
def test_a_job_for_a_deleted_file_is_not_taken(path: Path, no_trust: None, rest: tuple[str, ...]) -> None:
    with opened(path) as storage:
        add_many(storage, 1)
        path.unlink()
        for suffix in rest:
            other = path.with_name(path.name + suffix)
            if other.is_dir():
                shutil.rmtree(other)
            else:
                other.unlink()
        with pytest.raises(StorageError, match="deleted"):
            add_many(storage, 1)


def test_after_its_file_was_deleted_a_storage_begins_anew(path: Path, no_trust: None) -> None:
    with opened(path) as storage:
        add_many(storage, 3)
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink()
        with pytest.raises(StorageError, match="deleted or replaced"):
            add_many(storage, 1)
        [job] = add_many(storage, 1)
        with opened(path) as another:
            assert [found.id for found in another.find(JobFilter())] == [job.id]


def test_a_file_that_was_put_in_the_place_of_another_is_noticed(path: Path, no_trust: None) -> None:
    with opened(path.with_name("other.db")) as storage:
        [other] = add_many(storage, 1)
    with opened(path) as storage:
        add_many(storage, 2)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink()
        path.with_name("other.db").rename(path)
        with pytest.raises(StorageError, match="deleted or replaced"):
            add_many(storage, 1)
        assert [job.id for job in storage.find(JobFilter())] == [other.id]


def test_who_only_reads_notices_too_that_the_file_is_gone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as storage:
        add_many(storage, 2)
        storage.counts()
        path.unlink()
        assert storage.counts()[JobState.READY] == 2  # for a while it trusts
        monkeypatch.setattr(sqlite_connection, "TRUST_READING", -1.0)
        with pytest.raises(StorageError, match="deleted or replaced"):
            storage.counts()


def test_a_file_that_became_garbage_is_refused_and_left_as_it_is(path: Path) -> None:
    with opened(path) as storage:
        add_many(storage, 1)
        storage.close()
        garbage = os.urandom(20_000)
        path.write_bytes(garbage)
        with pytest.raises(StorageUnusable, match="not a SQLite database"):
            add_many(storage, 1)
        with pytest.raises(StorageUnusable):
            storage.counts()
    assert path.read_bytes() == garbage


def test_a_torn_page_is_an_error_and_no_crash(path: Path) -> None:
    with opened(path) as storage:
        add_many(storage, 500, payload=b"x" * 100)
    content = bytearray(path.read_bytes())
    content[8192:] = os.urandom(len(content) - 8192)
    path.write_bytes(content)
    with opened(path) as storage, pytest.raises(StorageError):
        storage.find(JobFilter())
        claim(storage)


# ── several at once ──────────────────────────────────────────────────────────────────────────────────────────────────


class Noticing:
    """A lock that tells when a thread has to wait for it."""

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock = lock
        self.waited_for = threading.Event()

    def acquire(self, blocking: bool = True) -> bool:
        if self._lock.acquire(blocking=False):  # type: ignore[attr-defined]
            return True
        self.waited_for.set()
        return bool(self._lock.acquire(blocking))  # type: ignore[attr-defined]

    def release(self) -> None:
        self._lock.release()  # type: ignore[attr-defined]

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_exception: object) -> None:
        self.release()


def test_who_comes_while_another_thread_opens_the_file_waits_for_it(
    path: Path, no_trust: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = sqlite_connection._identity
    with opened(path) as storage, ThreadPoolExecutor(1) as pool:
        connections = storage._connections
        connections._opening = noticing = Noticing(connections._opening)  # type: ignore[assignment]
        others: list[Future[Added]] = []

        def meanwhile(where: Path) -> tuple[int, int] | None:
            if not others:  # the file has been opened, and is about to be looked at
                others.append(pool.submit(storage.add, [new("other")]))
                others[0].add_done_callback(lambda _: noticing.waited_for.set())
                assert noticing.waited_for.wait(10)
            return look(where)

        monkeypatch.setattr(sqlite_connection, "_identity", meanwhile)
        storage.add([new("first")])
        assert [job.task for job in others[0].result(10)] == ["other"]
        assert storage.counts()[JobState.READY] == 2


def test_who_comes_while_another_thread_closes_the_file_opens_it_anew(path: Path, no_trust: None) -> None:
    with opened(path) as storage, ThreadPoolExecutor(1) as pool:
        storage.add([new()])
        connections = storage._connections
        connections._opening = noticing = Noticing(connections._opening)  # type: ignore[assignment]
        connections._close_all()  # as a fork or `close` does, up to the middle
        other = pool.submit(storage.add, [new()])
        assert noticing.waited_for.wait(10)
        connections._let_use()
        assert len(other.result(10)) == 1
        assert storage.counts()[JobState.READY] == 2


def test_its_schema_is_of_the_present_version(path: Path) -> None:
    with opened(path) as storage:
        assert storage.schema_version() == schema.CURRENT


def test_two_storages_on_one_file_in_one_process_take_turns(path: Path) -> None:
    with opened(path) as first, opened(path) as second:

        def work(number: int) -> list[int]:
            storage = (first, second)[number % 2]
            taken: list[int] = []
            for _ in range(20):
                add_many(storage, 5)
                taken += seqs(claim(storage, 5))
            return taken

        with ThreadPoolExecutor(8) as pool:
            taken = [seq for some in pool.map(work, range(8)) for seq in some]
        taken += seqs(claim(first))
    assert sorted(taken) == list(range(1, 801))


def test_closing_one_of_two_storages_harms_neither_the_other_nor_its_log(path: Path) -> None:
    with opened(path) as first:
        add_many(first, 1)
        with opened(path) as second:
            add_many(second, 1)
        assert path.with_name("queue.db-wal").exists()
        [job] = add_many(first, 1)
        # Another process must not be able to think that nobody has the file open.
        seen = run_python(
            """
            import sys
            from liteq.storage.sqlite import SqliteStorage
            storage = SqliteStorage(sys.argv[1])
            print(storage.get(sys.argv[2]) is not None)
            storage.close()
            """,
            path,
            job.id,
        )
        assert seen == "True\n"
        assert path.with_name("queue.db-wal").exists()
        [later] = add_many(first, 1)
        with opened(path) as third:
            assert third.get(later.id) is not None


def test_a_foreign_write_lock_is_waited_for(path: Path) -> None:
    with opened(path) as storage, foreign(path) as other, ThreadPoolExecutor(4) as pool:
        add_many(storage, 1)
        other.execute("BEGIN IMMEDIATE")
        waiting = [
            pool.submit(storage.add, [new(id="a")]),
            pool.submit(storage.add, [new(), new()]),
            pool.submit(storage.add, [new()]),
            pool.submit(storage.swap, "k", None, "v"),
        ]
        assert storage.counts()[JobState.READY] == 1  # questions do not wait
        assert not any(one.done() for one in waiting)
        other.execute("COMMIT")
        for one in waiting:
            one.result(10)
        assert storage.counts()[JobState.READY] == 5


def test_a_foreign_write_lock_is_waited_for_no_longer_than_patience_allows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_connection, "BUSY_SLICE", 0.02)
    with opened(path) as storage, foreign(path) as other:
        add_many(storage, 1)
        wish = request(storage)
        storage._connections._attempts = 2
        other.execute("BEGIN IMMEDIATE")
        for use in (
            lambda: storage.add([new()]),
            lambda: storage.add([new(id="a")]),
            lambda: storage.turn([], wish, NOW),
            lambda: storage.swap("k", None, "v"),
        ):
            with pytest.raises(
                StorageBusy, match=r"(write lock for|has not committed).* nothing was stored"
            ) as refusal:
                use()
            assert isinstance(refusal.value, TimeoutError)
        other.execute("ROLLBACK")
        assert storage.counts()[JobState.READY] == 1
        assert seqs(claim(storage)) == [1]


def test_a_foreign_write_lock_at_the_first_opening_is_waited_for(path: Path) -> None:
    with foreign(path) as other, opened(path) as storage, ThreadPoolExecutor(1) as pool:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE mine (a)")
        other.execute("BEGIN IMMEDIATE")
        adding = pool.submit(storage.add, [new()])
        with pytest.raises(TimeoutError):
            adding.result(0.05)
        other.execute("COMMIT")
        assert len(adding.result(10)) == 1


@pytest.mark.parametrize("use", [lambda storage: storage.add([new()]), lambda storage: storage.counts()])
def test_who_has_an_ordinary_file_for_himself_alone_is_waited_for(
    path: Path, use: Callable[[SqliteStorage], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even its version can be read then; and that lasts longer than one busy handler waits."""
    monkeypatch.setattr(sqlite_connection, "BUSY_SLICE", 0.02)
    with foreign(path) as other, opened(path) as storage, ThreadPoolExecutor(1) as pool:
        other.execute("CREATE TABLE mine (a)")
        other.execute("BEGIN EXCLUSIVE")
        storage._connections._attempts = 1000
        using = pool.submit(use, storage)
        with pytest.raises(TimeoutError):
            using.result(0.3)
        other.execute("COMMIT")
        using.result(10)


def test_a_question_waits_for_who_has_the_file_for_himself_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As whoever recovers the log after a crash, or closes the file as the last one."""
    monkeypatch.setattr(sqlite_connection, "BUSY_SLICE", 0.02)
    with opened(path) as storage, ThreadPoolExecutor(1) as pool:
        add_many(storage, 1)
        refusals = [sqlite3.OperationalError("database is locked") for _ in range(3)]
        for refusal in refusals:
            refusal.sqlite_errorcode = sqlite3.SQLITE_BUSY_RECOVERY

        def count(connection: sqlite3.Connection) -> int:
            if refusals:
                raise refusals.pop()
            return int(connection.execute("SELECT count(*) FROM liteq_job").fetchone()[0])

        assert pool.submit(storage._connections.read, count).result(10) == 1


def test_a_foreign_reader_holds_up_nobody(path: Path) -> None:
    """Neither those who write nor the upkeep, which would like to empty the log."""
    with opened(path) as storage, foreign(path) as reader:
        add_many(storage, 1)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM liteq_job").fetchall()
        grow_log(storage, RESTART_ABOVE + 100)
        waits = steps_of_busy_handler(storage)
        storage.upkeep()
        add_many(storage, 1)
        assert waits() == 0
        reader.execute("COMMIT")


def grow_log(storage: SqliteStorage, frames: int) -> None:
    for _ in range(frames // 100 + 1):
        add_many(storage, 100, payload=b"x" * 4000)


def steps_of_busy_handler(storage: SqliteStorage) -> Callable[[], int]:
    """How many busy handlers ran out since the call, told by the time that a busy handler takes."""
    from time import perf_counter

    began = perf_counter()
    return lambda: int((perf_counter() - began) / sqlite_connection.BUSY_SLICE)


# ── forks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@needs_fork
@quiet_forks
def test_a_child_that_ends_in_the_ordinary_way_harms_its_parent_in_nothing(path: Path) -> None:
    """It runs Python's whole shutdown, where everything that is still referenced is let go of."""
    said = run_python(
        """
        import os, sys
        from pathlib import Path
        from liteq.job import Job, JobFilter, JobState
        from liteq.storage.sqlite import SqliteStorage

        def add(name):
            return storage.add([Job(0, name, "task", JobState.READY)])

        path = Path(sys.argv[1])
        storage = SqliteStorage(path)
        add("before")
        owner = storage.register({})
        for what in ("does nothing", "reads", "writes", "closes"):
            child = os.fork()
            if child == 0:
                if what == "reads":
                    assert storage.get("before") is not None
                if what == "writes":
                    add("child")
                    assert [owner.alive for owner in storage.owners()] == [True]
                if what == "closes":
                    storage.close()
                sys.exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            add(f"after one that {what}")
            assert [owner.alive for owner in storage.owners()] == [True], what
        another = SqliteStorage(path)
        print(*[job.id for job in another.find(JobFilter())], sep="\\n")
        another.close()
        storage.close()
        """,
        path,
    )
    assert said.splitlines() == [
        "before",
        "after one that does nothing",
        "after one that reads",
        "child",
        "after one that writes",
        "after one that closes",
    ]
    assert_sound(path)


@needs_fork
@quiet_forks
def test_a_child_keeps_the_log_from_being_deleted_when_its_parent_closes(path: Path) -> None:
    with opened(path) as storage:
        storage.add([new(id="parent")])
        told, tell = os.pipe()
        heard, answer = os.pipe()

        def live_on() -> None:
            storage.add([new(id="child")])
            os.write(answer, b"x")
            os.read(told, 1)
            storage.add([new(id="child, alone")])

        child = in_a_child(live_on)
        os.read(heard, 1)
        storage.close()
        os.write(tell, b"x")
        assert exit_code(child) == 0
        for descriptor in (told, tell, heard, answer):
            os.close(descriptor)
        assert [job.id for job in storage.find(JobFilter())] == ["parent", "child", "child, alone"]


@needs_fork
@quiet_forks
def test_children_forked_in_the_middle_of_writing_write_on_by_themselves(path: Path) -> None:
    stop = threading.Event()
    with opened(path) as storage, ThreadPoolExecutor(2) as pool:

        def write() -> int:
            number = 0
            while not stop.is_set():
                storage.add([new()])
                storage.counts()
                number += 1
            return number

        writers = [pool.submit(write) for _ in range(2)]
        children = [
            in_a_child(lambda number=number: storage.add([new(id=f"child {number}")]))  # type: ignore[misc]
            for number in range(10)
        ]
        codes = [exit_code(child) for child in children]
        stop.set()
        written = sum(writer.result() for writer in writers)
        assert codes == [0] * 10
        assert storage.counts()[JobState.READY] == written + 10
    assert_sound(path)


# ── failing half-way ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def full(path: Path) -> Iterator[tuple[SqliteStorage, Callable[[], None]]]:
    """A storage without a free page, and what gives it room again."""
    with opened(path) as storage:
        add_many(storage, 1)
        writer = storage._connections.writer()

        def limit(pages: int) -> None:
            writer.execute(f"PRAGMA max_page_count = {pages}")

        limit(writer.execute("PRAGMA page_count").fetchone()[0])
        yield storage, lambda: limit(1 << 30)


LARGE = b"x" * 100_000


@pytest.mark.parametrize(
    "add",
    [
        lambda storage: storage.add([new(payload=LARGE)]),
        lambda storage: storage.add([new(id="a", payload=LARGE)]),
        lambda storage: storage.add([new(), new(), new(payload=LARGE)]),
    ],
    ids=["one", "one with an id", "many"],
)
def test_a_full_disk_stores_nothing_and_harms_nothing(
    full: tuple[SqliteStorage, Callable[[], None]], add: Callable[[SqliteStorage], list[Job]]
) -> None:
    storage, give_room = full
    for _ in range(2):
        with pytest.raises(StorageError, match="the disk is full; nothing was stored"):
            add(storage)
    assert storage.counts()[JobState.READY] == 1
    give_room()
    stored = add(storage)
    assert storage.counts()[JobState.READY] == 1 + len(stored)


def test_an_outcome_that_found_no_room_can_be_settled_later(full: tuple[SqliteStorage, Callable[[], None]]) -> None:
    storage, give_room = full
    [job] = claim(storage)
    transition = lifecycle.decide(
        job,
        lifecycle.Policy(),
        lifecycle.Outcome(job.seq, job.claim, Ending.SUCCEEDED, NOW, NOW, LARGE),
        NOW,
    )
    with pytest.raises(StorageError, match="full"):
        storage.turn([transition], ClaimRequest(1, 1), NOW)
    assert again(storage, job).state is JobState.RUNNING
    give_room()
    assert storage.turn([transition], None, NOW).applied == [True]
    assert again(storage, job).result == LARGE


def test_an_interrupt_in_the_middle_of_a_transaction_rolls_it_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    with opened(path) as storage:
        add_many(storage, 2)
        wish = request(storage)
        with monkeypatch.context() as patch:
            patch.setattr(sqlite_module.moves, "claim", interrupt)
            with pytest.raises(KeyboardInterrupt):
                storage.turn([], wish, NOW + 5)
        assert len(claim(storage)) == 2


# ── size ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_log_stays_small_while_somebody_keeps_it_up(path: Path) -> None:
    largest = 0
    with opened(path) as storage:
        for _ in range(100):
            add_many(storage, 200, payload=b"x" * 500)
            succeed(storage, claim(storage, 200))
            storage.upkeep()
            largest = max(largest, path.with_name("queue.db-wal").stat().st_size)
        assert storage.counts()[JobState.SUCCEEDED] == 20_000
    assert largest < 24 << 20, f"{largest >> 20} MiB"


def test_the_log_stays_bounded_with_nobody_to_keep_it_up(path: Path) -> None:
    with opened(path) as storage:
        grow_log(storage, 3 * sqlite_connection.AUTOCHECKPOINT)
        assert path.with_name("queue.db-wal").stat().st_size < 2 * sqlite_connection.AUTOCHECKPOINT * 4096


def fill_and_empty(storage: SqliteStorage, jobs: int) -> None:
    add_many(storage, jobs, payload=b"x" * 3000)
    succeed(storage, claim(storage, jobs))
    while storage.remove(JobFilter(limit=500)):
        continue


def test_freed_space_is_used_again(path: Path) -> None:
    with opened(path) as storage:
        fill_and_empty(storage, 500)
        storage._connections.checkpoint()
        size = path.stat().st_size
        for _ in range(5):
            fill_and_empty(storage, 500)
        storage._connections.checkpoint()
        assert path.stat().st_size < size * 1.2


def test_freed_space_is_given_back_step_by_step_up_to_a_reserve(path: Path) -> None:
    with opened(path) as storage:
        fill_and_empty(storage, 3000)

        def free() -> int:
            return int(storage._connections.read(lambda c: c.execute("PRAGMA freelist_count").fetchone()[0]))

        before = free()
        assert before > SPARE_PAGES + 2 * VACUUM_PAGES
        storage.upkeep()
        assert before - VACUUM_PAGES - 5 <= free() <= before - VACUUM_PAGES + 5  # bookkeeping pages come and go
        for _ in range(20):
            storage.upkeep()
        left = free()
        assert SPARE_PAGES <= left <= SPARE_PAGES + VACUUM_PAGES + 5
        storage.upkeep()
        assert free() == left
    assert path.stat().st_size < (left + 200) * 4096
    assert_sound(path)


def test_only_one_of_several_storages_keeps_a_file_up(path: Path) -> None:
    with opened(path) as first, opened(path) as second:
        fill_and_empty(first, 3000)
        first.upkeep()  # elected
        pages = first._connections.read(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
        second.upkeep()
        assert second._connections.read(lambda c: c.execute("PRAGMA page_count").fetchone()[0]) == pages
        first.close()
        second.upkeep()
        assert second._connections.read(lambda c: c.execute("PRAGMA page_count").fetchone()[0]) < pages


def test_a_number_does_not_come_back_after_everything_was_removed(path: Path) -> None:
    given: list[int] = []
    for _ in range(3):
        with opened(path) as storage:
            for _ in range(2):
                jobs = add_many(storage, 3)
                given += seqs(jobs)
                succeed(storage, claim(storage, owner=storage.register({})))
                assert storage.remove(JobFilter()) == 3
                assert storage.find(JobFilter()) == []
                assert sum(storage.counts().values()) == 0
    assert given == sorted(set(given))
    with foreign(path) as connection:
        assert connection.execute("SELECT count(*) FROM liteq_job").fetchone()[0] <= 1, "removed jobs are kept"


def test_a_removed_payload_is_gone_even_where_its_number_is_kept(path: Path) -> None:
    with opened(path) as storage:
        bring(storage, JobState.SUCCEEDED, payload=b"a secret", id="name")
        storage.remove(JobFilter())
        with foreign(path) as connection:
            [row] = connection.execute("SELECT payload, cid, task FROM liteq_job").fetchall()
        assert row == (None, None, "")
        assert storage.get("name") is None


# ── cost ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Observed:
    """What the statements of a storage are, and how many steps SQLite's machine takes for them."""

    def __init__(self, storage: SqliteStorage) -> None:
        self.statements: list[str] = []
        self.steps = 0
        storage.counts()  # so that there is a reader
        connections = storage._connections
        for connection in [connections.writer(), *connections._readers]:
            connection.set_trace_callback(self._note)
            connection.set_progress_handler(self._count, 10)

    def _note(self, statement: str) -> None:
        if not statement.startswith("--"):  # a trigger's
            self.statements.append(statement)

    def _count(self) -> int:
        self.steps += 10
        return 0


def furnish(storage: SqliteStorage, number: int) -> None:
    """So many jobs of every kind."""
    storage.add([new(queue=f"q{job % 3}", priority=job % 2) for job in range(number)])
    storage.add([new(due=NOW + 100 + job / number) for job in range(number)])
    storage.add([new(queue="spent") for _ in range(number)])
    ended = claim(storage, number, queues=("spent",))
    for job in ended[:20]:
        settle(storage, job, Ending.FAILED)
    succeed(storage, ended[20:-20])  # the rest runs


HOT = {
    "claim from all": lambda storage: storage.turn([], ClaimRequest(1, 10), NOW),
    "claim from some": lambda storage: storage.turn([], ClaimRequest(1, 10, ("q1", "q0")), NOW),
    "promote": lambda storage: storage.turn([], None, NOW + 100),
    "idle turn": lambda storage: storage.turn([], None, NOW),
    "settle": lambda storage: succeed(storage, storage.find(JobFilter(owner=1, limit=5))),
    "next due": lambda storage: storage.next_due(),
    "get nothing": lambda storage: storage.get("nobody"),
    "enqueue": lambda storage: storage.add([new()]),
    "enqueue by id": lambda storage: storage.add([new(id="a")]),
    "waiting for a result": lambda storage: storage.finished([1, 2, 3, 10**9]),
    "a page": lambda storage: storage.find(JobFilter(limit=10, after=50)),
    "the newest": lambda storage: storage.find(JobFilter(limit=10, newest_first=True)),
    "the failed": lambda storage: storage.find(JobFilter(states=frozenset({JobState.FAILED}), limit=10)),
    "the expired": lambda storage: storage.find(JobFilter(expired_at=NOW, limit=10)),
    "a dead owner's": lambda storage: storage.find(JobFilter(owner=1, limit=10)),
    "remove": lambda storage: storage.remove(JobFilter(limit=10)),
    "reasons": lambda storage: storage.reasons(),
}


@pytest.mark.parametrize("use", HOT.values(), ids=HOT.keys())
def test_no_statement_costs_more_because_more_jobs_are_there(
    directory: Path, use: Callable[[SqliteStorage], object]
) -> None:
    """Counted in steps of SQLite's machine, which a busy computer cannot change."""

    def cost(number: int) -> int:
        with opened(directory / f"{number}.db") as storage:
            furnish(storage, number)
            observed = Observed(storage)
            use(storage)
            return observed.steps

    assert_as_cheap(few=cost(100), many=cost(2000))


@pytest.mark.parametrize("state", [JobState.READY, JobState.SCHEDULED, JobState.RUNNING, JobState.SUCCEEDED])
def test_one_job_is_found_at_the_same_cost_among_many(directory: Path, state: JobState) -> None:
    def cost(number: int) -> int:
        with opened(directory / f"{number}.db") as storage:
            furnish(storage, number)
            [job] = storage.find(JobFilter(states=frozenset({state}), limit=1))
            observed = Observed(storage)
            assert storage.get(job.id) is not None
            return observed.steps

    assert_as_cheap(few=cost(100), many=cost(2000))


def assert_as_cheap(few: int, many: int) -> None:
    assert many < few * 1.5 + 200, f"{few} steps among 100 jobs of each kind, {many} among 2,000"


#: What may be read from its beginning: what the statement itself makes, and tables of a handful of rows.
MAY_BE_SCANNED = r"SCAN ((\d+ )?CONSTANT|\(subquery|json_each|name$|liteq_(mark|progress|meta|owner)\b)"

#: Read from its beginning too, but no further than one row.
STOPS_AT_ONCE = "SELECT due FROM liteq_scheduled ORDER BY due LIMIT 1"


def test_claim_promote_get_and_next_due_scan_no_table(path: Path) -> None:
    with opened(path) as storage:
        furnish(storage, 300)
        states = (JobState.READY, JobState.SCHEDULED, JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED)
        jobs = [storage.find(JobFilter(states=frozenset({state}), limit=1))[0] for state in states]
        running = storage.find(JobFilter(owner=1, limit=5))
        observed = Observed(storage)
        for name in ("claim from all", "claim from some", "promote", "next due", "enqueue", "enqueue by id"):
            HOT[name](storage)
        succeed(storage, running)
        assert [again(storage, job).seq for job in jobs] == seqs(jobs)
        statements = {statement for statement in observed.statements if statement != STOPS_AT_ONCE}
    with foreign(path) as connection:
        scans = {(step, statement) for statement in statements for step in scanning_steps(connection, statement)}
    assert len(statements) > 20
    assert scans == set()


def scanning_steps(connection: sqlite3.Connection, statement: str) -> list[str]:
    if statement.split(maxsplit=1)[0] in ("BEGIN", "COMMIT", "ROLLBACK", "PRAGMA"):
        return []
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()]
    return [step for step in plan if step.startswith("SCAN") and not re.match(MAY_BE_SCANNED, step)]
