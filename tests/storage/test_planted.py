"""What somebody else may have put under a queue's name is refused, and left as it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from contract import new

from liteq.errors import StorageUnusable
from liteq.storage.planted import refuse_planted, refuse_planted_directory
from liteq.storage.sqlite import SqliteStorage

SOMEBODY = 65534

as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be two users")


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory like ``/tmp``: anybody may create files, and delete his own."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o1777)
        yield Path(name)


def use(path: Path) -> None:
    with closing(SqliteStorage(path, durability="normal")) as storage:
        storage.add([new()])


def plant_file(path: Path) -> None:
    use(path)
    os.chown(path, SOMEBODY, SOMEBODY)


def plant_link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere.db"))
    os.lchown(path, SOMEBODY, SOMEBODY)


def plant_directory(path: Path) -> None:
    side = path.with_name(f"{path.name}-liteq")
    side.mkdir()
    os.chown(side, SOMEBODY, SOMEBODY)


def plant_directory_link(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    elsewhere.mkdir()
    path.with_name(f"{path.name}-liteq").symlink_to(elsewhere)


@as_root
@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (plant_file, "is a file of user 65534"),
        (plant_link, "is a symbolic link of user 65534"),
        (plant_directory, "not a directory of this user's"),
        (plant_directory_link, "not a directory of this user's"),
    ],
)
def test_what_another_user_put_where_anybody_may_is_refused(
    public: Path, plant: Callable[[Path], None], words: str
) -> None:
    path = public / "queue.db"
    plant(path)
    before = sorted(entry.name for entry in public.rglob("*"))
    with pytest.raises(StorageUnusable, match=words):
        use(path)
    assert sorted(entry.name for entry in public.rglob("*")) == before


@as_root
def test_in_a_directory_of_ones_own_another_owner_is_no_game(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    plant_file(path)  # as it is after `chown`: root reads the queue of a service
    use(path)


def test_a_link_of_ones_own_is_followed_and_all_see_the_same_locks(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "queue.db").symlink_to(tmp_path / "real" / "queue.db")
    use(tmp_path / "queue.db")
    with (
        closing(SqliteStorage(tmp_path / "real" / "queue.db")) as straight,
        closing(SqliteStorage(tmp_path / "queue.db")) as by_link,
    ):
        owners = [straight.register({}), by_link.register({})]
        assert [one.number for one in straight.owners() if one.alive] == owners
        assert [one.number for one in by_link.owners() if one.alive] == owners
    assert not (tmp_path / "queue.db-liteq").exists()


def test_a_file_with_two_names_is_refused_under_both(tmp_path: Path) -> None:
    use(tmp_path / "queue.db")
    (tmp_path / "second.db").hardlink_to(tmp_path / "queue.db")
    for name in ("queue.db", "second.db"):
        with pytest.raises(StorageUnusable, match=r"2 names \(hard links\).*liteq backup"):
            use(tmp_path / name)
    (tmp_path / "second.db").unlink()
    use(tmp_path / "queue.db")


def test_what_is_not_there_is_nobodys(tmp_path: Path) -> None:
    refuse_planted(tmp_path / "none.db")
    refuse_planted_directory(tmp_path / "none.db-liteq")
