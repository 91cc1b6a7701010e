"""``parse_trigger``: the text of a trigger, as ``str`` writes it or a person types it, to the trigger.

Floor 0. A parser by recursive descent over words::

    either   both ["|" both ...]
    both     one ["&" one ...]
    one      ( "(" either ")" | every | at | expression ) {behind}
    every    "every" duration ["from" moment]
    at       "at" moment ["," moment ...]
    behind   "in" zone  |  "both-days"  |  "between" edge "and" edge  |  "since" edge  |  "until" edge
             |  "except" date ["," date ...]  |  "jitter" duration ["seed" "text"]
    edge     a moment, a date or a time of day, in ISO 8601
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from typing import NoReturn, TypeVar

from liteq.errors import TriggerError
from liteq.triggers.cron import expression_trigger
from liteq.triggers.expression import quoted
from liteq.triggers.moments import MICROSECOND, duration, span_of
from liteq.triggers.plain import at, every
from liteq.triggers.trigger import Trigger

_TOKEN = re.compile(r'[ \t]+|("(?:[^"\\]|\\.)*"|[()|&]|[^ \t()|&"]+)', re.ASCII | re.DOTALL)
_DURATION = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([a-z]*)", re.ASCII)
_UNITS = {
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), timedelta(seconds=1)),
    **dict.fromkeys(("m", "min", "minute", "minutes"), timedelta(minutes=1)),
    **dict.fromkeys(("h", "hour", "hours"), timedelta(hours=1)),
    **dict.fromkeys(("d", "day", "days"), timedelta(days=1)),
}
_BEHIND = frozenset({"between", "since", "until", "except", "jitter"})
_STOPS = _BEHIND | {"(", ")", "|", "&"}

_Parsed = TypeVar("_Parsed")

_MOST_LAYERS = 100
"""Brackets and words behind triggers in one text; a search goes through them all, and Python's stack has an end."""


def parse_trigger(text: str) -> Trigger:
    """The trigger that a text says.

    Args:
        text: what ``str(trigger)`` gave, or typed: ``"*/5 * * * *"``, ``"@daily in Europe/Berlin"``,
            ``"every 90 seconds"``, ``"at 2030-01-01T09:00"``, ``"0 9 * * * | 0 17 * * fri"``.

    Returns:
        A trigger equal to the one that wrote the text.

    Raises:
        TypeError: not a str.
        TriggerError: it cannot be read; the message names the part.
    """
    if not isinstance(text, str):
        raise TypeError(f"parse_trigger takes a str, not {type(text).__name__}")
    reader = _Reader(text)
    trigger = reader.either()
    if reader.peek():
        reader.refuse(f"{reader.here()} is not understood here")
    return trigger


class _Reader:
    """The words of a text and the place where reading stands."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._words = self._split()
        self._place = 0
        self._layers = 0

    def refuse(self, why: str) -> NoReturn:
        """Raise the error about this text."""
        raise TriggerError(f"the trigger {quoted(self._text)} cannot be read: {why}")

    def peek(self) -> str:
        """The next word in lower case, empty at the end."""
        return self._words[self._place].lower() if self._place < len(self._words) else ""

    def here(self) -> str:
        """The next word as it is shown in a message."""
        return quoted(self._words[self._place])

    def either(self) -> Trigger:
        """Triggers with ``|`` between them."""
        trigger = self._both()
        while self._skip("|"):
            trigger = trigger | self._both()
        return trigger

    def _both(self) -> Trigger:
        """Triggers with ``&`` between them."""
        trigger = self._one()
        while self._skip("&"):
            trigger = trigger & self._one()
        return trigger

    def _one(self) -> Trigger:
        """One trigger with everything that is said behind it."""
        trigger = self._core()
        while self.peek() in _BEHIND:
            trigger = self._behind(trigger, self._take("a word"))
        return trigger

    def _core(self) -> Trigger:
        """A trigger in brackets or one of the plain kinds, with its zone."""
        if self._skip("("):
            self._count_layer()
            trigger = self.either()
            self._expect(")")
            return self._zoned(trigger)
        if self._skip("every"):
            return self._zoned(self._every())
        if self._skip("at"):
            return self._zoned(at(*(self._moment(text) for text in self._take("a moment").split(","))))
        words = self._until_stop()
        if not words:
            self.refuse(f"a trigger is missing before {self.here()}" if self.peek() else "it is empty")
        return expression_trigger(" ".join(words))

    def _every(self) -> Trigger:
        """What stands behind ``every``."""
        trigger = every(self._duration({"from", "in"}))
        return trigger.anchored(self._aware_moment(self._take("a moment"))) if self._skip("from") else trigger

    def _zoned(self, trigger: Trigger) -> Trigger:
        """The trigger in the zone that is named next, if one is."""
        return trigger.with_timezone(self._take("a time zone")) if self._skip("in") else trigger

    def _behind(self, trigger: Trigger, word: str) -> Trigger:
        """The trigger narrowed or moved by what one word and its arguments say."""
        self._count_layer()
        match word.lower():
            case "between":
                return trigger.between(*self._edges())
            case "since":
                return trigger.between(self._edge(self._take("a start")), None)
            case "until":
                return trigger.between(None, self._edge(self._take("an end")))
            case "except":
                return trigger.except_dates(self._date(text) for text in self._take("a date").split(","))
            case _:
                width = self._duration({"seed"})
                return trigger.jitter(width, self._seed() if self._skip("seed") else "")

    def _seed(self) -> str:
        """A text in double quotes."""
        word = self._take("a seed in double quotes")
        try:
            seed = json.loads(word)
        except ValueError:
            seed = None
        if not isinstance(seed, str):
            self.refuse(f"the seed {quoted(word)} is not a text in double quotes")
        return seed

    def _duration(self, stops: AbstractSet[str]) -> timedelta:
        """The words up to a stop as a duration: ``90``, ``1h30m``, ``5 minutes``."""
        text = "".join(self._until_stop(stops)).lower()
        microseconds, place = 0, 0
        while place < len(text) or not text:
            found = _DURATION.match(text, place)
            unit = _UNITS.get(found[2]) if found else None
            if found is None or unit is None:
                self.refuse(f"{quoted(text)} is not a duration such as 90, 30s, 1h30m or 5 minutes")
            microseconds += _microseconds(found[1], unit)
            place = found.end()
        name = f"the duration {quoted(text)}"
        return duration(span_of(microseconds, name, MICROSECOND), name)

    def _aware_moment(self, text: str) -> datetime:
        """A moment that has an offset."""
        moment = self._moment(text)
        if moment.tzinfo is None:
            self.refuse(f"the anchor {quoted(text)} needs an offset, such as 2030-01-01T09:00+01:00")
        return moment

    def _moment(self, text: str) -> datetime:
        """A date with a time of day in ISO 8601, with or without an offset."""
        return self._parsed(datetime.fromisoformat, text, "a moment such as 2030-01-01T09:00 or 2030-01-01T09:00+01:00")

    def _date(self, text: str) -> date:
        """A date in ISO 8601."""
        return self._parsed(date.fromisoformat, text, "a date such as 2030-12-24")

    def _edges(self) -> tuple[datetime | date | time, datetime | date | time]:
        """Both ends of a window, which are two of a kind."""
        start = self._edge(self._take("a start"))
        self._expect("and")
        end = self._edge(self._take("an end"))
        if type(start) is not type(end):
            self.refuse(f"{start} and {end} must be two moments, two dates or two times of day")
        return start, end

    def _edge(self, text: str) -> datetime | date | time:
        """An end of a window: a time of day, a date or a moment."""
        if ":" in text[:3]:
            return self._parsed(time.fromisoformat, text, "a time of day such as 09:00")
        if len(text) <= len("2030-12-24"):
            return self._date(text)
        return self._moment(text)

    def _parsed(self, parse: Callable[[str], _Parsed], text: str, what: str) -> _Parsed:
        """What one of Python's ISO parsers makes of a text."""
        try:
            return parse(text if text.isascii() else "")
        except ValueError:
            self.refuse(f"{quoted(text)} is not {what}")

    def _until_stop(self, stops: AbstractSet[str] = frozenset()) -> list[str]:
        """The words before the next one that begins something else."""
        words = []
        while self.peek() and self.peek() not in _STOPS and self.peek() not in stops:
            words.append(self._take("a word"))
        return words

    def _take(self, what: str) -> str:
        """The next word, which must be there."""
        if self._place == len(self._words):
            self.refuse(f"{what} is missing at the end")
        self._place += 1
        return self._words[self._place - 1]

    def _skip(self, word: str) -> bool:
        """Whether the next word is this one, which is then read."""
        if self.peek() != word:
            return False
        self._place += 1
        return True

    def _expect(self, word: str) -> None:
        """Read a word that must come next."""
        if not self._skip(word):
            self.refuse(f"{word!r} is missing before {self.here()}" if self.peek() else f"{word!r} is missing")

    def _count_layer(self) -> None:
        self._layers += 1
        if self._layers > _MOST_LAYERS:
            self.refuse(f"it has more than {_MOST_LAYERS} brackets and conditions")

    def _split(self) -> list[str]:
        """The words of the text, apart by spaces and tabs; brackets, ``|`` and ``&`` are words too."""
        words, place = [], 0
        while place < len(self._text):
            token = _TOKEN.match(self._text, place)
            if token is None:
                self.refuse("a double quote is not closed")
            if token[1]:
                words.append(token[1])
            place = token.end()
        return words


def _microseconds(number: str, unit: timedelta) -> int:
    """A decimal number of units, without the rounding of floats."""
    whole, _, fraction = number.partition(".")
    scale: int = 10 ** len(fraction)
    return int(whole + fraction) * (unit // MICROSECOND) // scale
