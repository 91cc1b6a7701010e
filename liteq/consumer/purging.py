"""The retention of finished jobs: deleting what was kept long enough, a little at a time, from the oldest on.

A *pass* goes through the finished jobs in order of their numbers, in windows of a thousand, between which jobs go
on. It also tells when the next of them will have been kept long enough; before that there is nothing to do, so a
consumer with a million finished jobs stays idle. Jobs mostly end in the order of their numbers, so a pass ends where
some windows in a row had nothing to delete; once an hour it goes to the end all the same, for those that did not.

Where jobs come as fast as they can, as many have to go: what one window takes, including its wait for other writers, is
a part of the time, but no more than PAUSE passes between two, and where a pass has deleted very many the next one
begins soon.
"""

from __future__ import annotations

from liteq.engine import Engine

#: Seconds between two passes, at least. Also how much later than asked for a job may go.
EVERY = 60.0
#: The same after a pass that has deleted more than MANY.
SOON, MANY = 1.0, 20_000
#: The same, at most; and between two passes that go to the end.
SELDOM = 3600.0
#: A pass ends after so many windows without anything to delete.
BARREN = 20
#: Which part of the time a pass takes, and how many seconds it pauses at most between two windows.
SHARE, PAUSE = 0.25, 0.005


class Purging:
    """See the module."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._at = 0
        self._goes_to_the_end = True
        self._next_to_the_end = 0.0
        self._barren = self._deleted = 0
        self._margin = SELDOM

    def work(self) -> float:
        """Look at the next window; returns in how many seconds to go on."""
        clock = self._engine.clock
        began = clock.monotonic()
        kept = self._engine.kept
        if not kept:
            return SELDOM
        if self._at == 0:
            self._begin(began, min(kept.values()))
        found = self._engine.purge(self._at)
        self._deleted += len(found.seqs)
        self._barren = 0 if found.seqs else self._barren + 1
        if found.margin is not None:
            self._margin = min(self._margin, found.margin)
        if found.last is None or (self._barren == BARREN and not self._goes_to_the_end):
            self._at = 0
            return max(SOON if self._deleted > MANY else EVERY, self._margin)
        self._at = found.last
        took = clock.monotonic() - began
        return took + min(PAUSE, took / SHARE - took)

    def _begin(self, now: float, shortest: float) -> None:
        self._margin = min(SELDOM, shortest)  # what finishes from now on has that long
        self._barren = self._deleted = 0
        self._goes_to_the_end = now >= self._next_to_the_end
        if self._goes_to_the_end:
            self._next_to_the_end = now + SELDOM
