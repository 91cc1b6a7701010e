"""Backups of a SQLite file, and what an examination finds, on real files with real damage."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from contract import NOW, add_many, claim, new

from liteq.errors import StorageError
from liteq.findings import Finding, Verdict
from liteq.job import JobState
from liteq.storage import sqlite_backup, sqlite_checkup, surroundings
from liteq.storage.base import ClaimRequest
from liteq.storage.memory import MemoryStorage
from liteq.storage.sqlite import SqliteStorage


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[SqliteStorage]:
    with closing(SqliteStorage(tmp_path / "queue.db", durability="normal")) as storage:
        yield storage


def counts(path: Path) -> dict[JobState, int]:
    with closing(SqliteStorage(path, create=False)) as copy:
        return {state: number for state, number in copy.counts().items() if number}


# ── backups ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_backup_holds_everything_and_opens_like_any_queue(storage: SqliteStorage, tmp_path: Path) -> None:
    add_many(storage, 30)
    claim(storage, 10)
    storage.backup(tmp_path / "copy.db")
    assert counts(tmp_path / "copy.db") == {JobState.READY: 20, JobState.RUNNING: 10}
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600
    with closing(SqliteStorage(tmp_path / "copy.db")) as copy:  # whoever ran them is not there
        assert len(copy.dead_owners()) == 1
        assert copy.begun(copy.dead_owners()[0]) is None


def test_a_backup_is_of_one_instant_while_somebody_writes(storage: SqliteStorage, tmp_path: Path) -> None:
    add_many(storage, 100)
    done = threading.Event()

    def move() -> None:  # each turn moves a job: at every instant there are a hundred
        owner = storage.register({})
        while not done.is_set():
            storage.turn([], ClaimRequest(owner, 1), NOW)

    writer = threading.Thread(target=move)
    writer.start()
    try:
        for number in range(5):
            storage.backup(tmp_path / f"copy{number}.db")
    finally:
        done.set()
        writer.join()
    for number in range(5):
        assert sum(counts(tmp_path / f"copy{number}.db").values()) == 100


def test_a_backup_overwrites_nothing_unless_told(storage: SqliteStorage, tmp_path: Path) -> None:
    add_many(storage, 3)
    target = tmp_path / "copy.db"
    target.write_text("precious")
    with pytest.raises(StorageError, match=r"copy\.db exists already; nothing was written"):
        storage.backup(target)
    assert target.read_text() == "precious"
    storage.backup(target, overwrite=True)
    assert counts(target) == {JobState.READY: 3}
    with pytest.raises(StorageError, match="the queue's own file"):
        storage.backup(storage.path, overwrite=True)
    assert counts(storage.path) == {JobState.READY: 3}


def test_a_file_that_appears_meanwhile_is_kept(
    storage: SqliteStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, target = sqlite_backup._copy, tmp_path / "copy.db"

    def slow(connection: sqlite3.Connection, part: Path) -> None:
        copy(connection, part)
        target.write_text("somebody else's")

    monkeypatch.setattr(sqlite_backup, "_copy", slow)
    with pytest.raises(StorageError, match="exists by now"):
        storage.backup(target)
    assert target.read_text() == "somebody else's"
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(
    ("target", "message"),
    [("missing/copy.db", r"the directory .*missing does not exist"), (".", "is a directory")],
)
def test_a_place_that_cannot_take_a_backup_is_named(
    storage: SqliteStorage, tmp_path: Path, target: str, message: str
) -> None:
    storage.add([new()])
    with pytest.raises(StorageError, match=message):
        storage.backup(tmp_path / target)


def test_a_full_disk_leaves_no_half_of_a_backup(storage: SqliteStorage, tmp_path: Path) -> None:
    add_many(storage, 2_000)
    storage.close()
    program = f"""
import resource, signal
from pathlib import Path
from liteq import SqliteStorage, StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
storage = SqliteStorage({str(storage.path)!r})
storage.counts()
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    storage.backup(Path({str(tmp_path / "copy.db")!r}))
except StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "cannot take the backup" in done.stdout
    assert not list(tmp_path.glob("*copy.db*"))
    assert counts(storage.path) == {JobState.READY: 2_000}


def test_memory_says_that_it_has_no_file_to_copy(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not a file"):
        MemoryStorage().backup(tmp_path / "copy.db")


# ── examinations ─────────────────────────────────────────────────────────────────────────────────────────


def examined(storage: SqliteStorage, *, thorough: bool = True) -> dict[str, Finding]:
    return {finding.name: finding for finding in storage.examine(thorough=thorough)}


def test_a_sound_file_has_nothing_wrong(storage: SqliteStorage) -> None:
    add_many(storage, 10)
    found = examined(storage)
    assert {one.verdict for one in found.values()} <= {Verdict.OK, Verdict.NOTE}
    assert {"filesystem", "file", "free_space", "integrity", "jobs", "lock_files"} <= found.keys()
    assert "integrity" not in examined(storage, thorough=False)


def test_a_damaged_page_is_found(storage: SqliteStorage) -> None:
    add_many(storage, 500)
    storage.close()
    with storage.path.open("r+b") as file:  # nobody has it open
        size = file.seek(0, os.SEEK_END)
        for page in range(8, size // 4096, 3):
            file.seek(page * 4096)
            file.write(b"\xa5" * 512)
    findings: list[Finding] = []
    try:
        findings += storage.examine()
    except StorageError as error:
        assert "malformed" in str(error)
    else:
        assert {one.name: one for one in findings}["integrity"].verdict is Verdict.WRONG


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("DELETE FROM liteq_ready WHERE id = 3", "1 jobs stand in no state or in several, 0 entries"),
        ("INSERT INTO liteq_running VALUES (3, 1, 0.0, 1, 1, 0, 0)", "1 jobs stand in no state or in several"),
        ("DELETE FROM liteq_job WHERE id = 3", "0 jobs stand in no state or in several, 1 entries have no job"),
    ],
)
def test_a_job_in_no_state_or_in_two_is_found(storage: SqliteStorage, damage: str, words: str) -> None:
    add_many(storage, 5)
    with closing(sqlite3.connect(storage.path, isolation_level=None)) as foreign:
        foreign.execute(damage)
    jobs = examined(storage)["jobs"]
    assert jobs.verdict is Verdict.WRONG
    assert words in jobs.found


def test_who_may_use_the_file_and_under_which_names_is_told(storage: SqliteStorage, tmp_path: Path) -> None:
    storage.add([new()])
    storage.path.chmod(0o644)
    assert examined(storage)["file"].verdict is Verdict.WARNING
    assert "chmod 600" in examined(storage)["file"].advice
    (tmp_path / "second.db").hardlink_to(storage.path)
    assert examined(storage)["file"].verdict is Verdict.WRONG
    assert "2 names" in examined(storage)["file"].found


def test_a_missing_file_is_a_finding(tmp_path: Path) -> None:
    found = {one.name: one for one in sqlite_checkup.of_path(tmp_path / "none.db", tmp_path / "none.db-liteq")}
    assert found["file"].verdict is Verdict.WRONG


def small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "LITTLE_SPACE", 1 << 62)


def large_wal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_checkup, "LARGE_WAL", 1)


def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "kind_of", lambda _: "nfs4")


@pytest.mark.parametrize(
    ("circumstance", "name", "verdict"),
    [
        (small_disk, "free_space", Verdict.WARNING),
        (large_wal, "wal", Verdict.WARNING),
        (network, "filesystem", Verdict.WRONG),
    ],
)
def test_each_circumstance_has_its_verdict_and_its_advice(
    storage: SqliteStorage,
    monkeypatch: pytest.MonkeyPatch,
    circumstance: Callable[[pytest.MonkeyPatch], None],
    name: str,
    verdict: Verdict,
) -> None:
    storage.add([new()])
    circumstance(monkeypatch)
    found = examined(storage)[name]
    assert found.verdict is verdict
    assert found.advice


def test_lock_files_that_belong_to_nobody_are_named(storage: SqliteStorage) -> None:
    storage.register({})
    side = storage.path.with_name("queue.db-liteq") / "consumers"
    assert examined(storage)["lock_files"].verdict is Verdict.OK
    (side / "stray").touch()
    found = examined(storage)["lock_files"]
    assert found.verdict is Verdict.NOTE
    assert "1 of 2" in found.found
    assert "stray" in found.found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc here")
def test_who_else_has_the_file_open_is_told(storage: SqliteStorage) -> None:
    storage.add([new()])
    program = f"import sys; file = open({str(storage.path)!r}); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        assert str(other.pid) in examined(storage)["open_by"].found
        assert str(os.getpid()) not in examined(storage)["open_by"].found
        assert other.stdin is not None
        other.stdin.close()
