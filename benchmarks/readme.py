"""The README's table, made from the record. Nobody types a figure.

It stands between two marks, and is the same however often it is made from the same results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from benchmarks.harness import DURABILITIES, Figure
from benchmarks.report import number
from benchmarks.results import Run

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"


class Row(NamedTuple):
    """One line of the table.

    Args:
        title: what was measured.
        scenario: where it is recorded.
        figure: the name of the figure there, with ``{}`` for the durability; without it the figure has none.
        ratio: the name of the figure that says how it compares with the floor, or ``None``.
    """

    title: str
    scenario: str
    figure: str
    ratio: str | None = None


ROWS = (
    Row("enqueue, one call a job, one process", "enqueue", "{}/liteq", "{}/ratio"),
    Row("`map` of 10,000", "map", "{}/liteq", "{}/ratio"),
    Row("run no-ops, results stored, 1 thread worker", "drain", "{}/thread-1/liteq", "{}/thread-1/ratio"),
    Row("… 4 thread workers", "drain", "{}/thread-4/liteq", "{}/thread-4/ratio"),
    Row("… 2 process workers", "drain", "{}/process-2/liteq", "{}/process-2/ratio"),
    Row("… 4 process workers", "drain", "{}/process-4/liteq", "{}/process-4/ratio"),
    Row("pick-up by an idle consumer, threads, median", "latency", "{}/thread/pick-up/p50"),
    Row("… 99th percentile", "latency", "{}/thread/pick-up/p99"),
    Row("… processes, median", "latency", "{}/process/pick-up/p50"),
    Row("call to result, across processes, median", "latency", "{}/process/round-trip/p50"),
    Row("4 producers and a consumer at once: enqueued", "contention", "{}/liteq/enqueued"),
    Row("… longest of 1,000 calls", "contention", "{}/liteq/call/p99.9"),
    Row("claim and finish with 1,000,000 waiting, cost against 1,000", "depth", "{}/batch-64/ratio"),
    Row("idle consumer, 4 thread workers", "idle", "thread"),
    Row("idle consumer, 4 process workers", "idle", "process"),
    Row("… memory of all its processes", "idle", "process/memory"),
    Row("`import liteq`, cost against `import sqlite3, json, threading, dataclasses`", "import", "ratio"),
    Row("… with an app made and a task registered", "import", "ratio in use"),
)


class NoMarks(Exception):
    """The text has no place for the table."""


def with_table(text: str, runs: Mapping[str, Run]) -> str:
    """``text`` with the table between the marks.

    Raises:
        NoMarks: they are not there, each once and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in after:
        raise NoMarks(f"no {BEGIN} … {END} in it: nothing was changed")
    return f"{before}{BEGIN}\n{''.join(line + chr(10) for line in _lines(runs))}{END}{after}"


def _lines(runs: Mapping[str, Run]) -> Iterator[str]:
    rows = [row for row in ROWS if row.scenario in runs and _cells(row, runs[row.scenario])]
    if not rows:
        return
    yield '| | `durability="full"` | `durability="normal"` |'
    yield "| --- | --- | --- |"
    for row in rows:
        yield f"| {row.title} | {' | '.join(_cells(row, runs[row.scenario]))} |"
    yield ""
    for machine, scenarios in _machines(runs, rows).items():
        which = "" if len(scenarios) == len(runs) else f" ({', '.join(scenarios)})"
        yield f"{machine}{which}"


def _cells(row: Row, run: Run) -> list[str]:
    """Both columns; empty if nothing of it was measured. What has no durability stands in the first."""
    names = [row.figure.format(each) for each in DURABILITIES]
    figures = [run.by_name.get(name) for name in names]
    if figures == [None, None]:
        return []
    if names[0] == names[1]:
        figures[1] = None
    ratios = [run.by_name.get(row.ratio.format(each)) if row.ratio else None for each in DURABILITIES]
    return [_cell(figure, ratio) for figure, ratio in zip(figures, ratios, strict=True)]


def _cell(figure: Figure | None, ratio: Figure | None) -> str:
    if figure is None:
        return ""
    text = _with_unit(number(figure.median), figure.unit)
    if len(figure.values) > 1:
        text += f" ({number(figure.low)} to {number(figure.high)})"
    return text if ratio is None else f"{text}, {number(ratio.median)} of the floor"


def _with_unit(text: str, unit: str) -> str:
    return {"jobs/s": f"{text}/s", "%": f"{text} % of a core"}.get(unit, f"{text} {unit}")


def _machines(runs: Mapping[str, Run], rows: list[Row]) -> dict[str, list[str]]:
    """What the lines below the table say of the conditions, and for which scenarios."""
    said: dict[str, list[str]] = {}
    for name in dict.fromkeys(row.scenario for row in rows):
        run, machine = runs[name], runs[name].machine
        cores = f"{machine.cores} core{'s'[: machine.cores != 1]} ({machine.processor})"
        text = (
            f"{run.date[:10]}, liteq {machine.liteq}, {cores}, {machine.system}, {machine.filesystem}, "
            f"Python {machine.python}, SQLite {machine.sqlite}."
        )
        said.setdefault(text, []).append(name)
    return said
