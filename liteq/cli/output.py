"""What a command shows. Data goes to standard output, as tables for people or as JSON for programs; messages go
elsewhere.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from liteq.cli.escaping import escaped

#: The numbers of standard input, output and error are those up to it.
LAST_STANDARD = 2

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "dim": "2", "bold": "1"}
#: What a state, or an answer, is painted; the others are left as they are.
PAINT = {
    "failed": "red",
    "dead": "red",
    "FAIL": "red",
    "wrong": "red",
    "warning": "yellow",
    "paused": "yellow",
    "orphaned": "yellow",
    "blocked": "yellow",
    "expired": "yellow",
    "revoked": "yellow",
    "running": "cyan",
    "succeeded": "green",
    "alive": "green",
    "ok": "green",
}


class Output:
    """Standard output.

    Args:
        as_json: show JSON: what `record` and `records` are given, and nothing else.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._colours = not as_json and wants_colours(sys.stdout)

    def record(self, values: Mapping[str, Any], *lines: str) -> None:
        """Show one thing: ``values`` as a JSON line, or ``lines`` for people."""
        if self.as_json:
            print(as_json_line(values))
        else:
            for line in lines:
                self.line(line)

    def line(self, text: str = "") -> None:
        """A line for people; left out of JSON."""
        if not self.as_json:
            print(text)

    def painted(self, text: str, colour: str | None = None) -> str:
        """The text in a colour, or in the one that its word has; as it is where there are no colours."""
        code = _COLOURS.get(colour or PAINT.get(text.strip(), ""))
        return f"\x1b[{code}m{text}\x1b[0m" if code and self._colours else text

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()) -> None:
        """Show columns of text, each cell escaped; on a terminal the last one is cut at its edge.

        Args:
            headings: of the columns.
            rows: their cells.
            right: the columns that are aligned to the right: numbers.
        """
        if self.as_json:
            return
        cells = [[escaped(str(cell)) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
        self._row(headings, widths, right, "dim")
        for row in cells:
            self._row(row, widths, right)

    def _row(
        self, cells: Sequence[str], widths: Sequence[int], right: Sequence[int], colour: str | None = None
    ) -> None:
        room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        parts = []
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            is_last = number == len(cells) - 1
            if is_last and room is not None:
                cell = shortened(cell, max(10, room - sum(widths[:-1]) - 2 * number))
            text = cell.rjust(width) if number in right else cell if is_last else cell.ljust(width)
            parts.append(self.painted(text, colour))
        print("  ".join(parts).rstrip())


def prepare_streams() -> None:
    """Have characters that a stream's encoding lacks shown as escapes, rather than end the program over one name.
    Streams that were closed at the start (``>&-``) lead nowhere.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= LAST_STANDARD:
        os.set_inheritable(number, True)  # else a file of ours would get the number that everybody writes to
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def wants_colours(stream: Any) -> bool:
    """Whether to paint: only on a terminal that can, and not where NO_COLOR says otherwise."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def as_json_line(values: Mapping[str, Any]) -> str:
    """One JSON object in one line of ASCII: nothing in it can move a terminal's cursor."""
    return json.dumps(values, ensure_ascii=True, default=str).replace("\x7f", "\\u007f")


def shortened(text: str, width: int) -> str:
    """At most ``width`` characters."""
    return text if len(text) <= width else text[: width - 1] + "…"


def in_bytes(size: int) -> str:
    """A size for people: ``"3.2 MB"``."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if size >= 10**power:
            return f"{size / 10**power:.1f} {unit}"
    return f"{size} B"
