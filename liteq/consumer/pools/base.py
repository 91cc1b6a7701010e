"""What every pool of workers does, whatever its kind.

A pool is driven by one thread, the dispatcher's. Only `wake`, which it is given, may be called from others. A kind may
differ in how a worker starts and is seen alive, how it is told to stop, and its deadline; the rest is here or in
`liteq.execution`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from selectors import BaseSelector

from liteq.engine import Ended
from liteq.job import Job, Progress

#: Seconds between asking a body to stop (an exception in it) and taking its worker away.
GRACE = 1.0


#: Gets at the stack of a running job, on any thread, and may take a second: where it runs and, from a new line on, what
#: it is doing; ``None``: it has ended meanwhile.
StackSource = Callable[[], str | None]


class Pool(ABC):
    """N workers of one kind."""

    @abstractmethod
    def start(self) -> None:
        """Start the workers. Returns before they are ready."""

    @abstractmethod
    def watch(self, selector: BaseSelector) -> None:
        """Register with ``selector`` whatever shows that there is something to collect (data: ``None``)."""

    @abstractmethod
    def about_to_wait(self) -> bool:
        """The dispatcher is going to sleep; False if it should not, because something has come in."""

    @abstractmethod
    def feed(self, jobs: Iterable[Job]) -> None:
        """Take over claimed jobs, to be started in this order."""

    @abstractmethod
    def collect(self) -> list[Ended]:
        """What has ended since the last call."""

    @abstractmethod
    def progress(self) -> dict[tuple[int, int], Progress]:
        """What running jobs have said since the last call, by ``seq`` and ``claim``."""

    @property
    @abstractmethod
    def ready(self) -> int:
        """How many workers can run jobs; fewer than were asked for while some are starting."""

    @property
    @abstractmethod
    def held(self) -> int:
        """How many jobs were fed and not yet collected."""

    @property
    @abstractmethod
    def backlog(self) -> int:
        """How many of them can still be taken back."""

    @abstractmethod
    def take_back(self) -> list[Job]:
        """The jobs that no worker has been given; they are not the pool's any more."""

    def withdraw(self, seq: int) -> Job | None:
        """Take back this one job, if no worker has been given it; ``None`` otherwise."""
        taken = self.take_back()
        self.feed(job for job in taken if job.seq != seq)
        return next((job for job in taken if job.seq == seq), None)

    @abstractmethod
    def recall(self) -> None:
        """The consumer stops: give out nothing more, and get back from the workers what they have been given and not
        begun; it joins the backlog, at once or soon."""

    @abstractmethod
    def running(self) -> list[Job]:
        """The jobs that workers have been given."""

    def stack_of(self, seq: int) -> StackSource | None:
        """How to get at the Python stack of the running job ``seq``; ``None``: no worker has begun it. See
        `liteq.consumer.stacks`."""
        if all(job.seq != seq for job in self.running()):
            return None
        return lambda: "a worker of a kind that cannot show what it runs\n"

    @abstractmethod
    def cancel(self, seq: int, *, stop: bool) -> None:
        """Tell the running job ``seq``, if it is here, that it was revoked; with ``stop``, end it. It may have been
        taken by a worker in this moment, and be seen nowhere yet: it is told as well."""

    @abstractmethod
    def supervise(self, now: float) -> float | None:
        """Enforce deadlines and replace workers.

        Args:
            now: on the monotonic clock.

        Returns:
            When to be called next at the latest, on the monotonic clock; ``None``: any time.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """The consumer cannot wait any longer: end every running job as *interrupted*."""

    @abstractmethod
    def stop(self) -> None:
        """End the workers. Jobs that are still held are abandoned."""

    @abstractmethod
    def stuck(self) -> int:
        """How many workers were given up because nothing could stop what they run."""
