"""Two kinds of workers as one pool: ``async def`` tasks go to the one, plain functions to the other.

Here is the backlog of both, in order, and the bound on how many run at once; what a part is fed begins at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from selectors import BaseSelector

from liteq import logs
from liteq.consumer.log_setup import LogSetup
from liteq.consumer.options import ConsumerOptions
from liteq.consumer.pools.base import Pool, StackSource
from liteq.consumer.pools.coroutine import CoroutinePool
from liteq.consumer.pools.thread import ThreadPool
from liteq.engine import Ended
from liteq.execution import Runtime
from liteq.job import Job, Progress


class MixedPool(Pool):
    """Up to N jobs at once, of either sort.

    Args:
        runtime: the app's.
        size: how many jobs at once.
        coroutines: runs ``async def`` tasks.
        functions: runs the others.
    """

    def __init__(self, runtime: Runtime, size: int, *, coroutines: Pool, functions: Pool) -> None:
        self.size = size
        self._tasks = runtime.tasks
        self._coroutines = coroutines
        self._functions = functions
        self._parts = (coroutines, functions)
        self._backlog: deque[Job] = deque()
        self._closed = False

    def start(self) -> None:
        self._functions.start()  # the loop starts with the first job for it

    def watch(self, selector: BaseSelector) -> None:
        for part in self._parts:
            part.watch(selector)

    def about_to_wait(self) -> bool:
        may_wait = [part.about_to_wait() for part in self._parts]  # each must hear of it
        return all(may_wait)

    def feed(self, jobs: Iterable[Job]) -> None:
        self._backlog.extend(jobs)
        self._distribute()

    def _distribute(self) -> None:
        """Give out the backlog, in order, to as many workers as are free."""
        room = 0 if self._closed else self.size - self._given
        given: dict[Pool, list[Job]] = {}
        while room > 0 and self._backlog:
            part = self._part(self._backlog[0])
            if not part.ready:
                break
            given.setdefault(part, []).append(self._backlog.popleft())
            room -= 1
        for part, jobs in given.items():
            part.feed(jobs)

    def _part(self, job: Job) -> Pool:
        definition = self._tasks.get(job.task)
        return self._coroutines if definition is not None and definition.is_async else self._functions

    def collect(self) -> list[Ended]:
        ended = [one for part in self._parts for one in part.collect()]
        self._distribute()
        return ended

    def progress(self) -> dict[tuple[int, int], Progress]:
        return self._coroutines.progress() | self._functions.progress()

    @property
    def _given(self) -> int:
        return sum(part.held for part in self._parts)

    @property
    def ready(self) -> int:
        # While a part takes nothing, nothing is claimed: it may be for that one.
        return self.size if all(part.ready for part in self._parts) else self._given

    @property
    def held(self) -> int:
        return len(self._backlog) + self._given

    @property
    def backlog(self) -> int:
        return len(self._backlog) + sum(part.backlog for part in self._parts)

    def take_back(self) -> list[Job]:
        taken = [job for part in self._parts for job in part.take_back()]
        taken += self._backlog
        self._backlog.clear()
        return taken

    def recall(self) -> None:
        self._closed = True
        for part in self._parts:
            part.recall()

    def running(self) -> list[Job]:
        return [job for part in self._parts for job in part.running()]

    def stack_of(self, seq: int) -> StackSource | None:
        return next((found for part in self._parts if (found := part.stack_of(seq)) is not None), None)

    def cancel(self, seq: int, *, stop: bool) -> None:
        for part in self._parts:
            part.cancel(seq, stop=stop)

    def supervise(self, now: float) -> float | None:
        dates = [date for part in self._parts if (date := part.supervise(now)) is not None]
        return min(dates, default=None)

    def interrupt(self) -> None:
        for part in self._parts:
            part.interrupt()

    def stop(self) -> None:
        for part in self._parts:
            part.stop()

    def stuck(self) -> int:
        return sum(part.stuck() for part in self._parts)


def mixed_pool(
    runtime: Runtime, options: ConsumerOptions, wake: Callable[[], None], *, liveness: int | None, log: LogSetup | None
) -> MixedPool:
    """The pool of the worker types ``"asyncio"`` and ``"greenlet"``.

    Raises:
        ConfigurationError: this worker type cannot be used here.
    """
    size = first_coroutine = options.workers
    functions: Pool
    if options.worker_type == "asyncio":
        functions = GrowingThreads(runtime, 0, wake, liveness=liveness, max_tasks=options.max_tasks)
    else:
        from liteq.consumer.pools.greenlet import MOST_PROCESSES, GreenletPool

        first_coroutine += MOST_PROCESSES
        functions = GreenletPool(runtime, options, liveness=liveness, log=log)
    coroutines = CoroutinePool(
        runtime, size, wake, liveness=liveness, first_number=first_coroutine, max_tasks=options.max_tasks
    )
    return MixedPool(runtime, size, coroutines=coroutines, functions=functions)


class GrowingThreads(ThreadPool):
    """Threads that are started when they are needed first: as many as jobs have been held at once."""

    def start(self) -> None:
        self.size = max(self.size, self.held)
        try:
            super().start()
        except RuntimeError as error:  # the system has no more
            if not self._slots:
                raise
            self.size = len(self._slots)
            logs.say(
                logs.WARNING, "no more threads can be started; jobs wait for these", threads=self.size, error=error
            )

    def feed(self, jobs: Iterable[Job]) -> None:
        super().feed(jobs)
        self.start()

    @property
    def ready(self) -> int:
        return 1  # there is always room for one more: the feeder keeps to a bound
