"""Where a torture takes place: what may be used, what is made, and how it is removed again."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from liteq.cli.endings import MISUSED, Refused

#: Bytes that a torture of an hour may need: the queue's file, its write-ahead log, the diary and the logs.
ROOM = 200 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """The files of one torture.

    Args:
        queue: the queue's file.
        folder: everything else.
        made: what to remove at the end.
        was_there: the queue's file was, empty, and is left so.
    """

    queue: Path
    folder: Path
    made: tuple[Path, ...]
    was_there: bool = False

    def remove(self) -> None:
        """Remove everything that was made."""
        for path in self.made:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if self.was_there:
            self.queue.touch(0o600)


def prepare(path: Path) -> Place:
    """Make a place.

    Args:
        path: a directory, in which a new one is made; or the queue's file, which does not exist or is empty.

    Raises:
        Refused: it cannot be used, or holds something already.
    """
    try:
        place = _in_directory(path) if path.is_dir() else _on_file(path)
        free = shutil.disk_usage(place.folder).free
    except OSError as error:
        raise Refused(f"{path} cannot be used: {error.strerror}") from error
    if free < ROOM:
        place.remove()
        raise Refused(f"a torture may need {ROOM >> 20} MB, and there are {free >> 20} MB left at {path}")
    return place


def _in_directory(path: Path) -> Place:
    folder = Path(tempfile.mkdtemp(prefix="liteq-torture-", dir=path.absolute()))
    return Place(folder / "queue.db", folder, (folder,))


def _on_file(path: Path) -> Place:
    queue = path.absolute()
    folder = _beside(queue, "-torture")
    sides = [_beside(queue, ending) for ending in ("-wal", "-shm", "-journal", "-liteq")]
    was_there = os.path.lexists(queue)
    if was_there and not (queue.is_file() and queue.stat().st_size == 0):
        raise Refused(f"{path} holds something already; name a directory, or a file to be", MISUSED)
    for taken in [folder, *sides]:
        if os.path.lexists(taken):
            raise Refused(f"{taken} is there already; name a directory, or a file to be", MISUSED)
    folder.mkdir(0o700)
    return Place(queue, folder, (folder, queue, *sides), was_there)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
