"""Many rows into a table of a SQLite file with few statements, and what a value costs on its way there."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain

#: What bytes are given to SQLite as, where there are many. Python 3.11's sqlite3 takes 0.4 µs to find that it knows no
#: adapter for ``bytes``, and as long for None; about these it does not ask. So columns without a value are left out.
blob = bytearray

#: SQLite's oldest limit of variables in a statement.
_MOST_VARIABLES = 999


class Rows:
    """The statements that insert rows of one shape.

    Args:
        table: into which.
        columns: that each row has a value for, in its order.
        constants: what else is said of each row, as SQL: ``{"state": "2"}``.
    """

    def __init__(self, table: str, columns: Sequence[str], constants: dict[str, str] | None = None) -> None:
        more = constants or {}
        insert = f"INSERT INTO {table} ({', '.join((*columns, *more))}) VALUES"
        row = f"({', '.join((*'?' * len(columns), *more.values()))})"
        self.one = f"{insert} {row}"
        self._many = {size: f"{insert} {', '.join([row] * size)}" for size in (_MOST_VARIABLES // len(columns), 8, 1)}

    def insert(self, connection: sqlite3.Connection, rows: Sequence[tuple[object, ...]]) -> None:
        """Insert them in their order."""
        start = 0
        for size, statement in self._many.items():
            while len(rows) - start >= size:
                connection.execute(statement, [*chain.from_iterable(rows[start : start + size])])
                start += size
