"""Rates: how many may start in a time, as text (``"10/s"``, ``"100/m burst 20"``) and as a bucket of tokens. Pure.

A bucket of ``burst`` tokens gets one every ``per / limit`` seconds, until it is full; whoever starts takes one. So in
any stretch of ``t`` seconds at most ``limit * t / per + burst`` start. Of a bucket only one instant is kept, that at
which it will be full (the generic cell rate algorithm, ITU-T I.371): nothing has to be written while nobody takes.

A wall clock may jump. After a jump forward a bucket is full and no more; after a jump back it counts as empty, so that
nobody waits for longer than it takes to fill it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from liteq.errors import ConfigurationError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_TEXT = re.compile(r"(\d+)\s*/\s*(\d+(?:\.\d+)?(?:e[+-]?\d+)?)?\s*([smhd])(?:\s+burst\s+(\d+))?", re.ASCII)
_FORMS = "'10/s', '100/m', '1000/h', '50/d', '5/30s' or '100/m burst 20'"
#: The most tokens, and the most at once.
_MOST = 1_000_000_000
#: In seconds. Sums of instants are rounded to a quarter of it; and no rate has more than one token in it.
_SLACK = 1e-6

#: Where nothing is said about the burst, as many tokens as come in this time: a consumer wakes up a few milliseconds
#: late, and would lose a part of every token that comes sooner than that.
_SMOOTH = 0.1

#: In seconds. Who asked for the time may have waited since for his turn to write, while others were quicker who asked
#: later: only beyond this the clock was set back.
STALE = 5.0


class Rate(NamedTuple):
    """``limit`` tokens in ``per`` seconds, and at most ``burst`` at once."""

    limit: int
    per: float
    burst: int

    @property
    def interval(self) -> float:
        """Seconds from one token to the next."""
        return self.per / self.limit

    @property
    def text(self) -> str:
        """What `parse` makes this of."""
        unit = next((unit for unit, seconds in _UNITS.items() if seconds == self.per), f"{self.per!r}s")
        burst = "" if self.burst == _smooth(self.limit, self.per) else f" burst {self.burst}"
        return f"{self.limit}/{unit}{burst}"


class Level(NamedTuple):
    """What is kept of a bucket.

    ``full_at`` is when it will be full. ``brimmed`` is when a token was last taken though there was no room for one
    more: a token that was taken before that, and is given back, would have run over since.
    """

    full_at: float = 0.0
    brimmed: float = 0.0


@lru_cache(maxsize=1024)
def parse(text: str) -> Rate:
    """Read a rate.

    Args:
        text: ``LIMIT/UNIT`` or ``LIMIT/NUMBER UNIT`` with ``s``, ``m``, ``h`` or ``d``, and ``burst N`` behind it.

    Raises:
        ConfigurationError: it is none; the message shows the forms.
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"a rate is written {_FORMS}, not {text!r}")
    limit, number, unit, burst = match.groups()
    return rate(int(limit), float(number or 1) * _UNITS[unit], None if burst is None else int(burst))


def rate(limit: int, per: float, burst: int | None = None) -> Rate:
    """A rate of ``limit`` in ``per`` seconds; without a burst, spread evenly.

    Raises:
        ConfigurationError: a number makes no sense.
    """
    if not 1 <= limit <= _MOST:
        raise ConfigurationError(f"a rate lets 1 to {_MOST} start, not {limit}; to let none start, pause the queue")
    if not 1e-3 <= per <= 1e8:
        raise ConfigurationError(f"a rate is counted over 0.001 to 100000000 seconds, not {per:g}")
    if per / limit < _SLACK:
        raise ConfigurationError(f"a rate lets at most {1 / _SLACK:.0f} start in a second, not {limit / per:.0f}")
    burst = _smooth(limit, per) if burst is None else burst
    if not 1 <= burst <= _MOST:
        raise ConfigurationError(f"the burst of a rate is 1 to {_MOST}, not {burst}: so many may start at once")
    return Rate(limit, per, burst)


def _smooth(limit: int, per: float) -> int:
    return max(1, int(limit * _SMOOTH / per))


# ── the bucket ───────────────────────────────────────────────────────────────────────────────────────────


def seen(rate: Rate, level: Level, now: float, *, stale: float = STALE) -> Level:
    """The level as it is to be taken at ``now``: no emptier than empty, whatever the clock has done.

    Args:
        stale: for so many seconds ``now`` may lie back.
    """
    latest = now + rate.burst * rate.interval
    return level if level.full_at <= latest + stale else level._replace(full_at=latest)


def due(rate: Rate, level: Level, number: int) -> float:
    """From which instant on there are ``number`` tokens, if nobody takes any."""
    return level.full_at + (number - rate.burst) * rate.interval


def tokens(rate: Rate, level: Level, now: float) -> int:
    """How many tokens there are: as many as are `due`."""
    latest = now + _SLACK
    number = max(0, min(rate.burst, rate.burst - int((level.full_at - latest) / rate.interval)))
    while number < rate.burst and due(rate, level, number + 1) <= latest:
        number += 1
    while number > 0 and due(rate, level, number) > latest:
        number -= 1
    return number


def take(rate: Rate, level: Level, now: float, number: int) -> Level:
    """The level after so many of its `tokens` were taken."""
    brims = level.full_at - rate.interval <= now
    full_at = max(level.full_at, now)
    for _ in range(number):  # rounded as if they were taken one by one: all storages shall agree
        full_at += rate.interval
    return Level(full_at, now if brims else level.brimmed)


def give_back(rate: Rate, level: Level, since: float) -> Level:
    """The level after a token that was taken at ``since`` is given back; it is lost if it would have run over."""
    return level if since < level.brimmed else level._replace(full_at=level.full_at - rate.interval)
