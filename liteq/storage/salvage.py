"""What can be kept of a queue whose journal is damaged in the middle.

You stand on floor 1, beside `replica`, which refuses such a journal. Called by a person, who has stopped everything
that uses the queue.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from liteq.errors import StorageError
from liteq.storage.journal import HEAD, NAME, Head, Journal, Line, Successor, checked, line_of
from liteq.storage.locks import Turnstile
from liteq.storage.record import text_of, values_of
from liteq.storage.replay import VERBS, Model


class Salvaged(NamedTuple):
    """``jobs`` there are now, of which ``again`` were added after the damage; ``aside`` is the damaged journal."""

    jobs: int
    again: int
    aside: Path


def salvage(directory: Path) -> Salvaged:
    """See `FileStorage.salvage`."""
    with Turnstile(directory):
        try:
            journal = Journal(directory, "full")
        except FileNotFoundError:
            raise StorageError(f"{directory} holds no liteq queue; nothing was changed") from None
        try:
            return _salvage(directory, journal)
        finally:
            journal.close()


def _salvage(directory: Path, journal: Journal) -> Salvaged:
    model, again, is_damaged = Model(), 0, False
    for line in _every_line(journal):
        if line is None:
            is_damaged = True
            continue
        [values] = values_of([line.text])
        if not is_damaged:
            model.repeat(values, line.next_seq)
        elif values[0] == "state" and values[1] != "gates":
            model.restore(values[1], values[2])
        elif values[0] == "add":
            again += _add_again(model, values, line)
    if not is_damaged:
        raise StorageError(f"{journal.path} is not damaged; nothing was changed")
    aside = directory / f"{NAME}.damaged-{os.urandom(4).hex()}"
    os.link(journal.path, aside)
    _replace(directory, journal, model)
    return Salvaged(sum(model.counts().values()), again, aside)


def _every_line(journal: Journal) -> Iterator[Line | None]:
    """Each line; ``None`` for one that is not good."""
    data = journal.read(HEAD, journal.size())
    end = HEAD
    for piece in data.split(b"\n")[:-1]:
        end += len(piece) + 1
        found = checked(piece + b"\n")
        yield None if found is None else Line(found[1], found[0], end)


def _add_again(model: Model, values: list[Any], line: Line) -> int:
    """Add jobs under the numbers and ids that they had."""
    _, draw, dead, written, *_ = values
    arguments = VERBS["add"].read(model, written)
    before = len(model._rows)
    model._next_seq = max(model._next_seq, line.next_seq - len(arguments[0]))
    model.prepare(draw, dead)
    VERBS["add"].call(model, arguments)
    return len(model._rows) - before


def _replace(directory: Path, journal: Journal, model: Model) -> None:
    """Put a journal of another queue in its place, so that a program that still runs notices."""
    successor = Successor(directory)
    try:
        state = model.frozen()
        for name, content in state.parts():
            successor.write(line_of(text_of(["state", name, content]), state.next_seq))
        head = Head(os.urandom(16).hex(), journal.head.generation + 1, successor.end, 0, state.next_seq)
        successor.take_over(head, journal.path)
    finally:
        successor.close()
