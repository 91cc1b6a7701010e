"""How many jobs a consumer claims ahead of its idle workers. Pure.

Claiming one by one costs a transaction a job; claiming many makes jobs wait behind a long one and starves other
consumers (two of them took 2.0 s for 40 jobs of 100 ms with a fixed prefetch of 128, ideal: 1.0). So as many are
claimed as will start within a few tens of milliseconds, judged by recent run times.
"""

from __future__ import annotations

#: How much work may be claimed ahead, in seconds for each worker.
AHEAD = 0.01
#: And how many jobs. Enough that workers do not run dry while the disk syncs: durability full, 2 threads, no-op jobs
#: ran at 64,000 a second with 512, 90,000 with 2,000.
MOST_AHEAD = 2000
#: How fast the average follows run times that are longer, and shorter, than it.
RISE, FALL = 0.5, 0.1
#: Unstarted jobs are given back after so many seconds in which no job has ended.
GIVE_BACK_AFTER = 0.05


class Prefetch:
    """Keeps the average of run times and says how much to claim."""

    def __init__(self) -> None:
        self._average: float | None = None
        self._ahead = 1

    def observe(self, durations: list[float]) -> None:
        """Learn from the run times, in seconds, of jobs that have just ended."""
        if not durations:
            return
        mean = sum(durations) / len(durations)
        if self._average is None:
            self._average = mean
        self._average += (RISE if mean > self._average else FALL) * (mean - self._average)
        self._ahead = min(2 * self._ahead, MOST_AHEAD)  # at most doubled each time: one fast batch proves little

    def gave_back(self) -> None:
        """Learn from jobs that were claimed too early: they run longer than was thought."""
        self._average = max(self._average or 0.0, AHEAD * MOST_AHEAD)
        self._ahead = 1

    def wanted(self, workers: int, held: int) -> int:
        """How many jobs to claim now.

        Args:
            workers: that are ready to run jobs.
            held: jobs that were claimed and have not ended.
        """
        return max(0, workers + self._affordable(workers) - held)

    def too_much(self, workers: int, backlog: int) -> bool:
        """Whether far more waits here than would be claimed now: jobs have become slower since.

        Args:
            workers: that are ready to run jobs.
            backlog: jobs that were claimed and no worker has been given.
        """
        return backlog > workers + 2 * self._affordable(workers)

    def _affordable(self, workers: int) -> int:
        if workers == 0 or self._average is None:
            return 0
        return min(self._ahead, int(workers * AHEAD / max(self._average, 1e-9)))
