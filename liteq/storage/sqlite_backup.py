"""A copy of a queue's file while everything runs: SQLite's backup API, into a new file that appears whole or never.

The copy is made in one step from one snapshot, so it neither starts over when somebody writes, nor holds a writer up;
meanwhile the WAL cannot be reset and grows. A file that is copied by other means (`cp`, a snapshot of the disk without
its ``-wal``) may lack what was committed last.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from liteq.errors import StorageError
from liteq.storage.sqlite_connection import Connections


def backup(connections: Connections, target: Path, *, overwrite: bool) -> None:
    """Copy the file to ``target``; see `liteq.storage.base.Storage.backup`."""
    _check(connections.path, target, overwrite)
    part = target.with_name(f".{target.name}.{os.urandom(6).hex()}.part")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))  # it holds what the queue holds
        try:
            connections.read(lambda connection: _copy(connection, part))
            _put_in_place(part, target, overwrite)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{target} cannot be written: {error.strerror}; there is no backup") from error


def _check(source: Path, target: Path, overwrite: bool) -> None:
    if not target.parent.is_dir():
        raise StorageError(f"{target} cannot be written: the directory {target.parent} does not exist")
    if target.is_dir():
        raise StorageError(f"{target} is a directory; a backup takes the path of a new file")
    if not target.exists():
        return
    if target.samefile(source):
        raise StorageError(f"{target} is the queue's own file; a backup takes the path of another one")
    if not overwrite:
        raise StorageError(f"{target} exists already; nothing was written")


def _copy(connection: sqlite3.Connection, part: Path) -> None:
    copy = sqlite3.connect(part, isolation_level=None)
    try:
        connection.backup(copy)
    except sqlite3.Error as error:
        raise StorageError(f"{part.parent} cannot take the backup: {error}; there is none") from error
    finally:
        copy.close()


def _put_in_place(part: Path, target: Path, overwrite: bool) -> None:
    """The name appears with the last byte; what was under it, if it is to be replaced, is there until then."""
    if overwrite:
        part.replace(target)
    else:
        try:
            target.hardlink_to(part)  # unlike a rename it never replaces what somebody has put there meanwhile
        except FileExistsError:
            raise StorageError(f"{target} exists by now; nothing was written") from None
        except OSError:  # a filesystem without hard links
            part.rename(target)
    _sync_directory(target.parent)


def _sync_directory(directory: Path) -> None:
    """Make the new name survive power loss too, where directories can be opened."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
