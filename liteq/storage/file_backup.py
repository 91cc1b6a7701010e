"""A copy of a FileStorage's queue while everything runs: a directory that appears whole or never.

The copy is a queue of its own: a journal that begins with the state of one instant.
"""

from __future__ import annotations

import os
from pathlib import Path

from liteq.errors import StorageError
from liteq.storage.journal import NAME, Successor, fresh_queue, sync_directory
from liteq.storage.replay import Model
from liteq.storage.replica import Replica, write_state


def backup(replica: Replica, target: Path, *, overwrite: bool) -> None:
    """Write the queue to ``target``; see `liteq.storage.base.Storage.backup`."""
    _check(replica.directory, target, overwrite)
    state = replica.ask(Model.frozen)
    part = target.with_name(f".{target.name}.{os.urandom(6).hex()}.part")
    try:
        part.mkdir(mode=0o700)
        try:
            successor = Successor(part)
            try:
                write_state(state, successor)
                head = fresh_queue()._replace(state=successor.end, next_seq=state.next_seq)
                successor.take_over(head, part / NAME)
            finally:
                successor.close()
            _put_in_place(part, target)
        finally:
            _remove(part)
    except OSError as error:
        if isinstance(error, StorageError):
            raise StorageError(f"{target} cannot be written: {error}; there is no backup") from error
        raise StorageError(f"{target} cannot be written: {error.strerror}; there is no backup") from error


def _check(source: Path, target: Path, overwrite: bool) -> None:
    if not target.parent.is_dir():
        raise StorageError(f"{target} cannot be written: the directory {target.parent} does not exist")
    if not target.exists():
        return
    if target.samefile(source):
        raise StorageError(f"{target} is the queue's own directory; a backup takes the path of another one")
    if not overwrite:
        raise StorageError(f"{target} exists already; nothing was written")
    if not (target / NAME).is_file():
        raise StorageError(f"{target} is not the directory of a queue, and was not overwritten")


def _put_in_place(part: Path, target: Path) -> None:
    """The name appears with the last byte; a journal that is to be replaced is there until then."""
    if target.exists():
        (part / NAME).replace(target / NAME)
        sync_directory(target)
    else:
        part.rename(target)
    sync_directory(target.parent)


def _remove(part: Path) -> None:
    if part.exists():
        for left in part.iterdir():
            left.unlink()
        part.rmdir()
