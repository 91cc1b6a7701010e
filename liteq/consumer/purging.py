"""The retention of finished jobs: deleting what was kept long enough, a little at a time, from the oldest on.

A *pass* goes once through all finished jobs in order of their numbers, in windows of some thousands, between which jobs
go on. It also tells when the next of them will have been kept long enough; before that there is nothing to do, so a
consumer with a million finished jobs and nothing to do stays idle. Where jobs come as fast as they can, as many have to
go: what one window takes, including its wait for other writers, is a part of the time, but no more than PAUSE passes.
"""

from __future__ import annotations

from liteq.engine import Engine

#: Seconds between two passes, at least. Also how much later than asked for a job may go.
EVERY = 60.0
#: The same, at most: a job that others needed, or that finished while the clock was wrong, may go earlier than told.
SELDOM = 3600.0
#: Which part of the time a pass takes, and how many seconds it pauses at most between two windows.
SHARE, PAUSE = 0.25, 0.01


class Purging:
    """See the module."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._at = 0
        self._margin = SELDOM

    def work(self) -> float:
        """Look at the next window; returns in how many seconds to go on."""
        clock = self._engine.clock
        began = clock.monotonic()
        kept = self._engine.kept
        if not kept:
            return SELDOM
        if self._at == 0:
            self._margin = min(SELDOM, *kept.values())  # what finishes from now on has that long
        found = self._engine.purge(self._at)
        if found.margin is not None:
            self._margin = min(self._margin, found.margin)
        if found.last is None:
            self._at = 0
            return max(EVERY, self._margin)
        self._at = found.last
        took = clock.monotonic() - began
        return took + min(PAUSE, took / SHARE - took)
