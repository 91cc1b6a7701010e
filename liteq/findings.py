"""What an examination of a queue finds: one question each, its answer, and what to do about it. Values only."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    """What an answer means: all is well, something to know, something to look after, something is wrong."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    WRONG = "wrong"


class Finding(NamedTuple):
    """One question and its answer.

    ``name`` is stable, for programs; ``found`` and ``advice`` (empty where there is nothing to do) are sentences for
    people.
    """

    name: str
    verdict: Verdict
    found: str
    advice: str = ""
