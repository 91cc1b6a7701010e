"""Whether something on which many jobs run at once is alive: it is asked again and again, and must answer.

What does not answer is kept busy by one of its jobs, which says so neither to it nor to us. It is found by looking at
what the thread executes, and reported by name: as it has blocked for half a second, after four times that, and so on.
"""

from __future__ import annotations

from liteq import logs
from liteq.job import Job

#: How often to ask while jobs run, in seconds; what owes an answer for as long gets no more jobs.
ASK_EVERY = 0.1
#: Seconds until a job that blocks all others is reported, and by how much they grow from one report to the next.
REPORT_AFTER, AND_AGAIN = 0.5, 4


class Pulse:
    """Of one thread or process.

    Args:
        what: does not answer, for people: ``"event loop"``.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._asked_at = 0.0
        self._answered = True
        self._late = False
        self._report_after = REPORT_AFTER
        self._blame = ""

    def answer(self) -> None:
        """It is alive. From any thread."""
        self._answered = True

    @property
    def blocked(self) -> bool:
        """Whether it owes an answer for too long."""
        return self._late and not self._answered

    @property
    def is_to_report(self) -> bool:
        """Whether it is blocked for so long that it should be known by whom."""
        return self.blocked and self.silence >= self._report_after

    silence = 0.0

    def ask(self, now: float) -> bool:
        """Whether to ask now; False while an answer is owed. ``silence`` says for how long, in seconds."""
        if not self._answered:
            self.silence = now - self._asked_at
            self._late = self.silence >= ASK_EVERY / 2
            return False
        if self._report_after > REPORT_AFTER:
            logs.say(logs.WARNING, f"the {self._what} goes on", blocked=f"{now - self._asked_at:.1f}s", by=self._blame)
        self._report_after = REPORT_AFTER
        self._asked_at, self.silence = now, 0.0
        self._answered = self._late = False
        return True

    def report(self, job: Job | None, place: str, waiting: int) -> None:
        """Say who blocks it.

        Args:
            job: ``None``: it cannot be told.
            place: where its code is.
            waiting: how many others are held up.
        """
        self._report_after *= AND_AGAIN
        self._blame = "something that is no job" if job is None else job.id
        keys = {} if job is None else {"job": job.id, "task": job.task}
        keys |= {"blocked": f"{self.silence:.1f}s", "at": place, "waiting": str(waiting)}
        culprit = "something" if job is None else "a job"
        logs.say(logs.WARNING, f"{culprit} blocks the {self._what}, and with it all other jobs on it", **keys)
