"""Other processes for the tests of what happens between processes."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import conversation
from conversation import ROOT as ROOT

PRELUDE = (
    conversation.PRELUDE
    + """
import fcntl, os, signal, sqlite3, threading, time
from pathlib import Path
from liteq.errors import *
from liteq.storage.locks import *
from liteq.storage.waker import *
from liteq.storage.watch import *
"""
)


class Program(conversation.Program):
    """One that knows the locks, the watch and the errors, and imports what the tests need."""

    prelude = PRELUDE


def more_open(before: set[str]) -> set[str]:
    """What this process has open that it had not, and keeps open: threads of earlier tests open some for a moment."""
    deadline = time.monotonic() + 5.0
    while (more := open_files() - before) and time.monotonic() < deadline:
        continue
    return more


def open_files() -> set[str]:
    """What this process has open: number and target of each descriptor. What nobody refers to any more is closed first,
    also what an earlier test left to the garbage collector. Threads of earlier tests may still open and close some.
    """
    while gc.collect():
        continue
    links = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:  # the listing's own
            continue
    return links
