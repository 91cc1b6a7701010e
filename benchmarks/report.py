"""Figures as people read them."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.harness import Figure


def number(value: float) -> str:
    """Three digits that count, thousands set apart: ``31,400``, ``0.0121``, ``1.00``."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        digits = max(0, len(str(int(abs(value)))) - 3)
        return f"{round(value / 10**digits) * 10**digits:,}"
    text = f"{value:#.3g}"
    return f"{value:.6f}".rstrip("0") if "e" in text else text


def spread(figure: Figure) -> str:
    """From the lowest to the highest round; empty where there was only one."""
    return "" if len(figure.values) == 1 else f"{number(figure.low)} to {number(figure.high)}"


def table(figures: Iterable[Figure]) -> str:
    """One line a figure: name, median, unit, lowest and highest round."""
    rows = [(figure.name, number(figure.median), figure.unit, spread(figure)) for figure in figures]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = [
        f"  {name:<{widths[0]}}  {median:>{widths[1]}} {unit:<{widths[2]}}  {rest}" for name, median, unit, rest in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
