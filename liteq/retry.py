"""How long to wait before another attempt. Pure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from liteq.errors import ConfigurationError
from liteq.instants import positive_seconds, within_reach


@dataclass(frozen=True, slots=True)
class RetryDelay:
    """The wait before attempt n + 1: ``min(delay * backoff ** (n - 1), max_delay)``, or the n-th of ``delays``.

    The formula is exponential backoff with a cap; with ``jitter`` the wait is drawn evenly from 0 to that value ("full
    jitter", Brooker, *Exponential Backoff And Jitter*, AWS Architecture Blog, 2015).

    Args:
        delay: seconds before the second attempt.
        backoff: the factor from one wait to the next, at least 1.
        max_delay: the cap, in seconds.
        jitter: draw the wait at random.
        delays: explicit waits in seconds; the last one repeats. They are not capped.
    """

    delay: float = 0.0
    backoff: float = 1.0
    max_delay: float = 3600.0
    jitter: bool = False
    delays: tuple[float, ...] = ()

    def before_next(self, failures: int, draw: float) -> float:
        """The wait after the ``failures``-th failed attempt.

        Args:
            failures: how many attempts have failed, at least 1.
            draw: a random number in [0, 1), used when ``jitter`` is set.

        Returns:
            Seconds.
        """
        wait = self.delays[min(failures, len(self.delays)) - 1] if self.delays else self._exponential(failures)
        return wait * draw if self.jitter else wait

    def _exponential(self, failures: int) -> float:
        if self.delay == 0 or self.backoff == 1:
            return min(self.delay, self.max_delay)
        try:
            return min(self.delay * self.backoff ** (failures - 1), self.max_delay)
        except OverflowError:  # 10.0 ** 400: far beyond any cap
            return self.max_delay


def retry_delay(
    delay: float | timedelta | Sequence[float | timedelta] = 0,
    backoff: float = 1,
    max_delay: float | timedelta = 3600,
    jitter: bool = False,
) -> RetryDelay:
    """Check the four ``retry_…`` options of a task and make a RetryDelay of them.

    Raises:
        TypeError: one is of the wrong type; the message names it.
        ConfigurationError: one is out of range.
    """
    if isinstance(backoff, bool) or not isinstance(backoff, (int, float)):
        raise TypeError(f"retry_backoff takes a number, not {type(backoff).__name__} {backoff!r}")
    if not 1 <= backoff <= sys.float_info.max:
        raise ConfigurationError(f"retry_backoff must be a finite number of at least 1, not {backoff!r}")
    if not isinstance(jitter, bool):
        raise TypeError(f"retry_jitter takes True or False, not {type(jitter).__name__} {jitter!r}")
    cap = within_reach(positive_seconds(max_delay, "retry_max_delay"), "retry_max_delay")
    if isinstance(delay, (list, tuple)):
        if not delay:
            raise ConfigurationError("retry_delay as a list needs at least one wait")
        waits = tuple(within_reach(positive_seconds(wait, "retry_delay"), "retry_delay") for wait in delay)
        return RetryDelay(max_delay=cap, jitter=jitter, delays=waits)
    if isinstance(delay, (str, bytes, Sequence)):
        raise TypeError(f"retry_delay takes seconds, a timedelta or a list of them, not {type(delay).__name__}")
    wait = within_reach(positive_seconds(delay, "retry_delay"), "retry_delay")
    return RetryDelay(wait, float(backoff), cap, jitter)
