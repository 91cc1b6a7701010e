"""What a user sees of a file that cannot be used: one clear error at the first use, and nothing half created."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from workbench import run_python, work

from liteq import LiteQ, SqliteStorage, StorageBusy, StorageError, StorageTooNew, StorageUnusable
from liteq.storage import schema, sqlite_connection

FIRST_USES: dict[str, Callable[[LiteQ, Any], object]] = {
    "call": lambda app, task: task(),
    "map": lambda app, task: task.map([(), ()]),
    "aenqueue": lambda app, task: asyncio.run(task.aenqueue()),
    "get": lambda app, task: app.result("x").get(timeout=1),
    "aget": lambda app, task: asyncio.run(app.result("x").aget(timeout=1)),
    "jobs": lambda app, task: app.jobs(),
    "counts": lambda app, task: app.counts(),
    "purge": lambda app, task: app.purge(),
    "pause": lambda app, task: app.pause("q"),
    "revoke": lambda app, task: task.revoke(),
    "consumer": lambda app, task: app.create_consumer(workers=1, worker_type="thread", burst=True).run(),
}


@pytest.mark.parametrize("use", FIRST_USES.values(), ids=FIRST_USES.keys())
def test_the_first_use_of_any_kind_says_what_is_wrong(directory: Path, use: Callable[[LiteQ, Any], object]) -> None:
    notes = directory / "notes.txt"
    notes.write_bytes(b"not a database\n" * 100)
    app = LiteQ(notes)
    task = app.task(name="t")(lambda: 1)
    for _ in range(2):
        with pytest.raises(StorageUnusable, match=r"notes\.txt is not a SQLite database"):
            use(app, task)
    app.close()
    assert notes.read_bytes() == b"not a database\n" * 100
    assert list(directory.iterdir()) == [notes]


def a_directory(path: Path) -> None:
    path.mkdir()


def below_nothing(path: Path) -> None:
    path.parent.rmdir()


def of_the_future(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE liteq_meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID")
        connection.execute("INSERT INTO liteq_meta VALUES ('schema', ?)", (schema.CURRENT + 7,))
        connection.commit()


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (a_directory, StorageUnusable, "is a directory"),
        (below_nothing, StorageUnusable, "does not exist"),
        (of_the_future, StorageTooNew, "newer liteq .*upgrade"),
    ],
)
def test_nothing_is_created_where_nothing_can_work(
    tmp_path: Path, spoil: Callable[[Path], None], kind: type[StorageError], words: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = home / "queue.db"
    spoil(path)
    before = {file: file.read_bytes() if file.is_file() else None for file in tmp_path.rglob("*")}
    app = LiteQ(path)
    task = app.task(name="t")(lambda: 1)
    with pytest.raises(kind, match=words) as error:
        task()
    assert str(path) in str(error.value)
    assert isinstance(error.value, OSError)
    app.close()
    assert {file: file.read_bytes() if file.is_file() else None for file in tmp_path.rglob("*")} == before


def test_a_network_filesystem_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_connection, "network_filesystem", lambda path: "cifs")
    app = LiteQ(directory / "queue.db")
    with pytest.raises(StorageUnusable, match=r"network filesystem \(cifs\)"):
        app.task(name="t")(lambda: 1)()
    assert list(directory.iterdir()) == []
    allowed = LiteQ(SqliteStorage(directory / "queue.db", allow_network_fs=True))
    result = allowed.task(name="t")(lambda: 1)()
    work(allowed)
    assert result.get(0) == 1
    allowed.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of resources here")
def test_a_full_disk_is_an_error_at_the_call_and_success_later(directory: Path) -> None:
    """The limit of a file's size stands for the end of the disk; in a process of its own, as it holds for all files."""
    said = run_python(
        """
        import resource, sys
        from liteq import LiteQ, StorageError
        app = LiteQ(sys.argv[1], durability="normal")
        task = app.task(name="t")(lambda x: len(x))
        kept = [task("x").id]
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        failures = 0
        for number in range(100):
            try:
                if number % 2:
                    kept.append(task("x" * 20_000).id)
                else:
                    with app.batch():
                        both = [task("x" * 10_000), task("x" * 10_000)]
                    kept += [one.id for one in both]
            except StorageError as error:
                failures += 1
                assert "nothing was stored" in str(error), error
        assert failures > 10, failures
        assert [job.id for job in app.jobs(limit=None)] == kept, "what was refused is there, or what was taken is not"
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        kept.append(task("x" * 20_000).id)
        kept += [one.id for one in task.map(["x" * 20_000] * 20)]
        app.close()
        app = LiteQ(sys.argv[1], durability="normal")
        assert [job.id for job in app.jobs(limit=None)] == kept
        app.close()
        print("well")
        """,
        directory / "queue.db",
    )
    assert said == "well\n"
    with closing(sqlite3.connect(directory / "queue.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_lock_held_too_long_by_others_is_a_timeout(on_file: LiteQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_connection, "BUSY_SLICE", 0.02)
    task = on_file.task(name="t")(lambda: 1)
    task()
    storage: Any = on_file.storage
    storage._connections._attempts = 1
    with closing(sqlite3.connect(on_file.storage.location, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageBusy, match="has held the write lock for"):
            task()
        assert len(on_file.jobs()) == 1  # questions are answered all the same
        other.execute("COMMIT")
    assert task().state == "ready"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions mean something else here")
def test_a_directory_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    said = run_python(
        """
        import os, sys, tempfile
        from pathlib import Path
        from liteq import LiteQ, StorageUnusable
        import liteq.storage.sqlite, liteq.storage.schema
        home = Path(tempfile.mkdtemp())
        home.chmod(0o555)
        try:
            if os.geteuid() == 0:
                os.seteuid(65534)
            app = LiteQ(home / "queue.db")
            task = app.task(name="t")(lambda: 1)
            try:
                task()
            except StorageUnusable as error:
                print(str(home) in str(error), "ermission" in str(error), list(home.iterdir()))
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
            home.chmod(0o755)
            home.rmdir()
        """,
    )
    assert said == "True True []\n"


def test_threads_that_meet_a_bad_file_together_are_all_told(directory: Path) -> None:
    path = directory / "queue.db"
    path.write_bytes(b"x" * 5000)
    app = LiteQ(path)
    task = app.task(name="t")(lambda: 1)
    start = threading.Barrier(8)

    def use(_: int) -> str:
        start.wait()
        with pytest.raises(StorageUnusable) as error:
            task()
        return str(error.value)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(use, range(8)))) == 1
    path.unlink()
    assert task().state == "ready"  # and now it is not bad any more
    app.close()
