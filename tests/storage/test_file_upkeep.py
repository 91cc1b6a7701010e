"""Backups of a FileStorage, and what an examination finds, on real directories with real damage."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from contract import NOW, add_many, claim, new

from liteq.errors import StorageError
from liteq.findings import Finding, Verdict
from liteq.job import JobState
from liteq.storage import replica, surroundings
from liteq.storage.base import ClaimRequest
from liteq.storage.file import FileStorage
from liteq.storage.journal import HEAD


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[FileStorage]:
    with closing(FileStorage(tmp_path / "queue", durability="normal")) as storage:
        yield storage


def counts(path: Path) -> dict[JobState, int]:
    with closing(FileStorage(path, create=False)) as copy:
        return {state: number for state, number in copy.counts().items() if number}


# ── backups ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_backup_holds_everything_and_opens_like_any_queue(storage: FileStorage, tmp_path: Path) -> None:
    add_many(storage, 30)
    claim(storage, 10)
    storage.backup(tmp_path / "copy")
    assert counts(tmp_path / "copy") == {JobState.READY: 20, JobState.RUNNING: 10}
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o700
    with closing(FileStorage(tmp_path / "copy")) as copy:  # whoever ran them is not there
        assert len(copy.dead_owners()) == 1
        assert copy.begun(copy.dead_owners()[0]) is None
        copy.add([new()])
    assert sum(counts(storage.path).values()) == 30


def test_a_backup_is_of_one_instant_while_somebody_writes(storage: FileStorage, tmp_path: Path) -> None:
    add_many(storage, 100)
    done = threading.Event()

    def move() -> None:  # each turn moves a job: at every instant there are a hundred
        owner = storage.register({})
        while not done.is_set():
            storage.turn([], ClaimRequest(owner, 1), NOW)

    writer = threading.Thread(target=move)
    writer.start()
    try:
        for number in range(3):
            storage.backup(tmp_path / f"copy{number}")
    finally:
        done.set()
        writer.join()
    assert [sum(counts(tmp_path / f"copy{number}").values()) for number in range(3)] == [100] * 3


def test_a_backup_overwrites_only_an_older_one_and_only_when_told(storage: FileStorage, tmp_path: Path) -> None:
    add_many(storage, 3)
    storage.backup(tmp_path / "copy")
    add_many(storage, 1)
    with pytest.raises(StorageError, match="copy exists already; nothing was written"):
        storage.backup(tmp_path / "copy")
    storage.backup(tmp_path / "copy", overwrite=True)
    assert counts(tmp_path / "copy") == {JobState.READY: 4}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").touch()
    for target, words in [
        ("other", "is not the directory of a queue"),
        ("queue", "the queue's own directory"),
        ("missing/copy", "does not exist"),
    ]:
        with pytest.raises(StorageError, match=words):
            storage.backup(tmp_path / target, overwrite=True)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["copy", "other", "queue"]


def test_a_full_disk_leaves_no_half_of_a_backup(
    storage: FileStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_many(storage, 3)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=r"the disk is full.*there is no backup"):
        storage.backup(tmp_path / "copy")
    assert [one.name for one in tmp_path.iterdir()] == ["queue"]


# ── examinations ─────────────────────────────────────────────────────────────────────────────────────────


def examined(storage: FileStorage, *, thorough: bool = True) -> dict[str, Finding]:
    return {finding.name: finding for finding in storage.examine(thorough=thorough)}


def test_a_sound_queue_has_nothing_wrong(storage: FileStorage) -> None:
    add_many(storage, 10)
    storage.register({})
    found = examined(storage)
    assert {one.verdict for one in found.values()} <= {Verdict.OK, Verdict.NOTE}
    assert {"filesystem", "file", "directory", "free_space", "integrity", "lock_files", "size"} <= found.keys()
    assert found["integrity"].found == "each of 2 records is what was written"
    assert "integrity" not in examined(storage, thorough=False)


def test_damage_and_a_torn_end_are_told_apart(storage: FileStorage) -> None:
    for _ in range(5):
        storage.add([new()])
    journal = storage.path / "journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b"0123")
    assert examined(storage)["integrity"].found.startswith("5 sound records, and the beginning of one")
    data = bytearray(whole)
    data[HEAD + len(data) // 2] ^= 1
    journal.write_bytes(data)
    findings: list[Finding] = []
    with closing(FileStorage(storage.path)) as other, pytest.raises(StorageError, match="is damaged at byte"):
        for one in other.examine():
            findings.append(one)
    assert (findings[-1].name, findings[-1].verdict) == ("integrity", Verdict.WRONG)
    assert "salvage()" in findings[-1].advice


def test_what_is_odd_about_the_place_is_told(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.add([new()])
    storage.path.chmod(0o755)
    (storage.path / "journal.damaged-1").touch()
    (storage.path / "consumers").mkdir()
    (storage.path / "consumers" / "stranger").touch()
    monkeypatch.setattr(surroundings, "kind_of", lambda _: "nfs4")
    monkeypatch.setattr(surroundings, "LITTLE_SPACE", 1 << 62)
    monkeypatch.setattr(replica, "GROWN", -1)
    monkeypatch.setattr(replica, "TIMES", -1)
    found = examined(storage)
    assert found["filesystem"].verdict is Verdict.WRONG
    assert "chmod go-rwx" in found["file"].advice
    assert found["leftovers"].found == "journal.damaged-1"
    assert found["free_space"].verdict is Verdict.WARNING
    assert found["size"].verdict is Verdict.WARNING
    assert "stranger" in found["lock_files"].found
