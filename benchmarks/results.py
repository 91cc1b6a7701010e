"""The record: one line of JSON for each run of a scenario, appended to ``benchmarks/results/<scenario>.jsonl``.

A line holds the date, the machine and every value of every figure, so that a later reader can take another view of
it. Quick runs are not recorded unless somebody asks: their figures mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Figure
from benchmarks.machine import Machine

DIRECTORY = Path(__file__).resolve().parent / "results"
#: Of the values kept in the record: more digits than any of them is worth.
DIGITS = 5


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one scenario.

    Args:
        scenario: its name.
        date: of the beginning, in UTC, ISO 8601 to the second.
        repeat: rounds asked for.
        quick: whether the numbers were small ones, and the figures mean nothing.
        machine: what it ran on.
        figures: in the order of measuring.
    """

    scenario: str
    date: str
    repeat: int
    quick: bool
    machine: Machine
    figures: tuple[Figure, ...]

    def line(self) -> str:
        """As one line of JSON."""
        fields = {
            "scenario": self.scenario,
            "date": self.date,
            "repeat": self.repeat,
            "quick": self.quick,
            "machine": asdict(self.machine),
            "figures": [_packed(figure) for figure in self.figures],
        }
        return json.dumps(fields, ensure_ascii=False)

    @property
    def by_name(self) -> Mapping[str, Figure]:
        return {figure.name: figure for figure in self.figures}


def parse(line: str) -> Run:
    """The run that `Run.line` wrote.

    Raises:
        ValueError: it is not such a line; the message says what is wrong.
    """
    try:
        fields = json.loads(line)
        figures = tuple(Figure(one["name"], one["unit"], tuple(one["values"])) for one in fields["figures"])
        machine = Machine(**fields["machine"])
        return Run(fields["scenario"], fields["date"], fields["repeat"], fields["quick"], machine, figures)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a line of results: {error!r}") from error


def append(run: Run, file: Path) -> None:
    """Add a run to a file, which is made if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(run.line() + "\n")


def latest(directory: Path = DIRECTORY) -> dict[str, Run]:
    """The last recorded run of each scenario that was not a quick one."""
    found: dict[str, Run] = {}
    for file in sorted(directory.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            run = parse(line)
            known = found.get(run.scenario)
            if not run.quick and (known is None or known.date <= run.date):
                found[run.scenario] = run
    return found


def _packed(figure: Figure) -> dict[str, Any]:
    median, low, high = (_rounded(one) for one in (figure.median, figure.low, figure.high))
    values = [_rounded(one) for one in figure.values]
    return {"name": figure.name, "unit": figure.unit, "median": median, "min": low, "max": high, "values": values}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
