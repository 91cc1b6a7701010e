"""What arguments may look like: types for argparse, which say what they take when they are given something else."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable

from liteq import JobState

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)
_PARTS = re.compile(r"(\d+(?:\.\d+)?[smhdw])+", re.ASCII)
_INTEGER = re.compile(r"\d{1,18}", re.ASCII)


def duration(text: str) -> float:
    """Seconds, from ``30``, ``0.5``, ``90s``, ``1h``, ``7d``, ``1h30m``.

    Raises:
        argparse.ArgumentTypeError: it is none of these, or negative.
    """
    given = text.strip().lower()
    if _PARTS.fullmatch(given):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(given))
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"takes seconds, or a number with s, m, h, d or w such as 1h, not {text!r}")
    return seconds


def whole_number(least: int) -> Callable[[str], int]:
    """A type for whole numbers from ``least``."""

    def read(text: str) -> int:
        number = int(text) if _INTEGER.fullmatch(text.strip()) else -1
        if number < least:
            raise argparse.ArgumentTypeError(f"takes a whole number from {least}, not {text!r}")
        return number

    return read


def argument(text: str) -> tuple[str, object]:
    """The name and the value of a call's argument: ``user_id=7``; what is not JSON is text.

    Raises:
        argparse.ArgumentTypeError: there is no name, or no ``=``.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"takes NAME=VALUE, such as user_id=7, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def renaming(text: str) -> tuple[str, str]:
    """An old name and a new one: ``old.mail=shop.mail``.

    Raises:
        argparse.ArgumentTypeError: one of them, or the ``=``, is missing.
    """
    old, equals, new = (part.strip() for part in text.partition("="))
    if not (old and equals and new):
        raise argparse.ArgumentTypeError(f"takes OLD=NEW, such as old.mail=shop.mail, not {text!r}")
    return old, new


def json_value(text: str) -> object:
    """What a JSON text stands for.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"takes JSON, such as '\"yes\"' or '{{\"by\": 7}}': {error}") from None


def names(text: str) -> tuple[str, ...]:
    """Different names with commas between."""
    given = tuple(name.strip() for name in text.split(","))
    if not all(given) or len(set(given)) < len(given):
        raise argparse.ArgumentTypeError(f"takes different names with commas between, not {text!r}")
    return given


def states(text: str) -> tuple[str, ...]:
    """One state of a job, or several with commas between."""
    given = names(text)
    for name in given:
        if name not in set(JobState):
            raise argparse.ArgumentTypeError(f"takes {', '.join(JobState)} (several with commas), not {name!r}")
    return given
