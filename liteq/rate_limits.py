"""Rate limits with a name, for callers: ``app.rate_limit("api", 100, 60)``, shared by all processes of a queue.

Below is `liteq.gates`: a caller takes a token, or stands in the line in which blocked jobs stand too. Tokens come with
time, and there may be no consumer who looks after that: whoever waits lets in who is next, himself at last.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from datetime import timedelta

from liteq import gates, rates
from liteq.context import this_thread
from liteq.definition import check_integer, check_name
from liteq.errors import RateLimitExceeded
from liteq.instants import positive_seconds
from liteq.locks import Caller, Locks, Passage, caller, waiting_time

#: While somebody waits, the longest time between two looks: the limit may have been changed.
_LOOK_EVERY = 1.0
#: And where the next token is not known to be his: somebody with a higher priority may have come.
_BREATH = 0.25


class RateLimit(Passage):
    """A rate limit over all processes; made by ``app.rate_limit``. For ``with``, ``async with``, and as a decorator.

    One object may be used again and again, and by several threads at once.

    Args:
        locks: those of the app of the moment.
        name: the limit's; equal names are one limit.
        limit: how many may start in ``per`` seconds (or timedelta).
        retry: a task that raises RateLimitExceeded comes back when there is a token, and that costs no attempt.
        wait: wait for a token instead of raising RateLimitExceeded.
        burst: how many may start at once; ``None``: ``limit``.
        timeout: seconds (or timedelta) for which a caller waits; ``None``: as long as it takes.

    Raises:
        TypeError, ConfigurationError: an argument is wrong; the message names it.
    """

    spelling = "rate_limit"

    def __init__(
        self,
        locks: Callable[[], Locks],
        name: str,
        limit: int,
        per: float | timedelta,
        retry: bool = True,
        wait: bool = False,
        burst: int | None = None,
        timeout: float | timedelta | None = None,
    ) -> None:
        check_name(name, "the name of a rate limit")
        check_integer(limit, "limit", least=1)
        burst = limit if burst is None else check_integer(burst, "burst", least=1)
        rate = rates.rate(limit, positive_seconds(per, "per", allow_zero=False), burst)
        super().__init__(locks, gates.named_rate(name, rate), name, wait)
        if not isinstance(retry, bool):
            raise TypeError(f"retry takes True or False, not {type(retry).__name__} {retry!r}")
        self.retry = retry
        self.timeout = waiting_time(timeout, wait, self.spelling)

    def __enter__(self) -> RateLimit:
        locks = self._locks()
        for pause in self._pauses(locks, caller(), may_wait=not this_thread.is_shared):
            locks.clock.sleep(pause)
        return self

    def __exit__(self, *_exception: object) -> None:
        """A token is not given back."""

    async def __aenter__(self) -> RateLimit:
        import asyncio

        pauses = self._pauses(self._locks(), caller(), may_wait=True)
        looking = asyncio.ensure_future(asyncio.to_thread(next, pauses, None))
        try:
            while (pause := await asyncio.shield(looking)) is not None:
                await _nap(pause)
                looking = asyncio.ensure_future(asyncio.to_thread(next, pauses, None))
        finally:
            await asyncio.wait([looking])  # cancelled or not, it is at work on the file
            await asyncio.shield(asyncio.to_thread(pauses.close))
        return self

    async def __aexit__(self, *_exception: object) -> None:
        return None

    def _pauses(self, locks: Locks, who: Caller, *, may_wait: bool) -> Generator[float]:
        """Take a token; yields for how long to look away, while there is none.

        Raises:
            RateLimitExceeded: there is none, and none is waited for, or not for longer.
        """
        wait = self.wait and may_wait
        taken = locks.take(self.need, who, wait)
        if taken.held:
            return
        if taken.number is None:
            raise self._refusal(locks, taken.due)
        try:
            yield from self._in_line(locks, taken.number)
        finally:
            locks.leave(taken.number)

    def _in_line(self, locks: Locks, number: int) -> Iterator[float]:
        clock, places = locks.clock, locks.storage.gates
        deadline = None if self.timeout is None else clock.monotonic() + self.timeout
        while True:
            now = clock.now()
            places.wake(now)
            is_over = bool(places.settled([number]))  # before the next question: others let him in too
            if places.holds(number):
                return
            due = places.next_token(self.need.gate)
            left = _LOOK_EVERY if deadline is None else deadline - clock.monotonic()
            if left <= 0 or is_over:
                raise self._refusal(locks, due)
            pause = _BREATH if due is None else max(due - now, 0.0)
            yield min(pause, left, _LOOK_EVERY)

    def _refusal(self, locks: Locks, due: float | None) -> RateLimitExceeded:
        delay = 0.0 if due is None else max(0.0, due - locks.clock.now())
        return RateLimitExceeded(self.name, delay, self.retry)

    def __repr__(self) -> str:
        return f"<RateLimit {self.name!r} {self.need.rate.text if self.need.rate else ''}>"


async def _nap(duration: float) -> None:
    """Let the loop go on for so many seconds."""
    import asyncio

    try:
        async with asyncio.timeout(duration):
            await asyncio.Event().wait()
    except TimeoutError:
        return
