"""Figures as people read them."""

from __future__ import annotations

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


def line(figure: Figure) -> str:
    """Name, median, unit, lowest and highest round."""
    return f"  {figure.name:<42} {number(figure.median):>9} {figure.unit:<7} {spread(figure)}".rstrip()
