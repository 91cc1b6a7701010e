"""Consumer: a dispatcher, its pool, and their beginning and end. Runs in the foreground (`run`) or on threads
(`start`).
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from liteq import logs
from liteq.consumer.announcer import Announcer
from liteq.consumer.dispatcher import Dispatcher
from liteq.consumer.log_setup import LogSetup
from liteq.consumer.options import ConsumerOptions
from liteq.consumer.pools.base import Pool
from liteq.consumer.scheduler import Scheduler
from liteq.engine import Engine
from liteq.errors import ConfigurationError, StorageError
from liteq.storage import begun
from liteq.storage.base import Unregistered
from liteq.storage.waker import Waker

if TYPE_CHECKING:
    from types import FrameType

#: Otherwise a CPU-bound thread keeps the interpreter, and with it the storage's write lock, for up to 100 ms (16 with
#: it).
SWITCH_INTERVAL = 0.001
#: In bytes; of ``max_memory``.
MEGABYTE = 2**20
#: Seconds between two looks of the upkeep thread while there is something to keep up.
UPKEEP_EVERY = 0.05


class Consumer:
    """Runs the jobs of one app.

    Args:
        engine: the app's.
        options: see `ConsumerOptions`.
        log: where worker processes log to; ``None``: where this process does.
    """

    def __init__(self, engine: Engine, options: ConsumerOptions | None = None, log: LogSetup | None = None) -> None:
        if engine.immediate:
            raise ConfigurationError(
                "this app is in immediate mode: its tasks run in the caller, there is nothing to consume"
            )
        self.engine = engine
        self.options = options or ConsumerOptions()
        self._log = log
        self._waker = Waker()
        self._announcer = Announcer(engine.signals)
        self._dispatcher: Dispatcher | None = None
        self._thread: threading.Thread | None = None
        self._owner: int | None = None
        self._stop_asked = False
        self._stop_at_once = False

    # ── in the foreground ────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Run until `stop`, or, with ``burst``, until nothing is due.

        Raises:
            StorageError: the storage cannot be used at all. ConfigurationError: an option does not fit the app.
        """
        self._begin()
        try:
            self._hooks("on_startup")
            self._run_dispatcher()
            self._hooks("on_shutdown")
        finally:
            self._end()

    def _begin(self) -> None:
        """Everything that can go wrong at a start goes wrong here, before a job is touched."""
        sys.setswitchinterval(min(SWITCH_INTERVAL, sys.getswitchinterval()))
        options, engine = self.options, self.engine
        self._owner = engine.storage.register(self._introduce())
        try:
            pool = self._pool(self._slot())
        except BaseException:
            engine.storage.unregister(self._owner)
            raise
        engine.serving.append(os.getpid())
        engine.news.announce = self._announcer.announce
        self._dispatcher = Dispatcher(
            engine,
            pool,
            Scheduler(engine, periodic=options.periodic, burst=options.burst),
            self._waker,
            owner=self._owner,
            queues=options.queues,
            shutdown_timeout=options.shutdown_timeout,
            burst=options.burst,
            shares=options.shares,
        )
        self._keep_up = threading.Thread(
            target=self._upkeep, args=(self._dispatcher,), name="liteq-upkeep", daemon=True
        )
        self._over = threading.Event()

    def _introduce(self) -> dict[str, object]:
        options = self.options
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "app": options.app_path,
            "name": self.engine.name,
            "workers": options.workers,
            "worker_type": options.worker_type,
            "queues": None if options.queues is None else list(options.queues),
            "reserved": {one.queue: one.reserved for one in options.shares or () if one.reserved},
            "started": self.engine.clock.now(),
            "periodic": options.periodic,
            "schedules": sorted(self.engine.declared.entries) if options.periodic else [],
        }

    def _slot(self) -> int | None:
        """The consumer's slot file, with room to record what each worker begins (and those that replace them)."""
        slot = self.engine.storage.lock_fd(self._owner or 0)
        if slot is not None and self.options.worker_type == "process":
            from liteq.consumer.pools.process import numbers

            workers = numbers(self.options.workers)
            begun.prepare(slot, workers, boxes=workers)
        elif slot is not None and self.options.worker_type == "greenlet":
            from liteq.consumer.pools import greenlet

            begun.prepare(slot, greenlet.numbers(self.options.workers), boxes=greenlet.MOST_PROCESSES)
        elif slot is not None:
            begun.prepare(slot, 2 * self.options.workers + 1)
        return slot

    def _pool(self, slot: int | None) -> Pool:
        options, runtime = self.options, self.engine.runtime
        if options.worker_type == "thread":
            from liteq.consumer.pools.thread import ThreadPool

            return ThreadPool(runtime, options.workers, self._waker.wake, liveness=slot, max_tasks=options.max_tasks)
        if options.worker_type in ("asyncio", "greenlet"):
            from liteq.consumer.pools.mixed import mixed_pool

            return mixed_pool(runtime, options, self._waker.wake, liveness=slot, log=self._log)
        from liteq.consumer.pools.process import ProcessPool

        return ProcessPool(
            runtime,
            options.workers,
            app_path=options.app_path,
            start_method=options.start_method,
            liveness=slot,
            log=self._log,
            max_tasks=options.max_tasks,
            max_memory=options.max_memory and options.max_memory * MEGABYTE,
        )

    def _run_dispatcher(self) -> None:
        assert self._dispatcher is not None
        options, engine = self.options, self.engine
        logs.say(
            logs.INFO,
            "consumer started",
            storage=engine.storage.location,
            workers=f"{options.workers} {options.worker_type}",
            queues=",".join(options.queues) if options.queues else "all",
            tasks=len(set(engine.tasks.values())),
            pid=os.getpid(),
        )
        self._keep_up.start()
        if self._stop_asked:  # before there was anything to stop
            self._dispatcher.stop(at_once=self._stop_at_once)
        self._dispatcher.run()

    def _hooks(self, kind: str) -> None:
        """Threads and coroutines share this process, so its hooks run here; worker processes run their own."""
        if not self._runs_jobs_here:
            return
        for hook in getattr(self.engine.runtime, kind):
            try:
                hook()
            except Exception as error:  # noqa: BLE001 - the other hooks, and the jobs, still run
                logs.logger.error("%s hook %r failed", kind, hook, exc_info=error)

    @property
    def _runs_jobs_here(self) -> bool:
        if self.options.worker_type == "greenlet":  # the greenlets are in a process of their own, coroutines are not
            return any(definition.is_async for definition in self.engine.runtime.tasks.values())
        return self.options.worker_type in ("thread", "asyncio")

    def _end(self) -> None:
        self._over.set()
        if self._dispatcher is not None:
            self._dispatcher.wrote.set()
        if self._keep_up.is_alive():
            self._keep_up.join()
        self.engine.news.announce = self.engine.signals.send
        self._announcer.stop(self.options.shutdown_timeout)
        with suppress(ValueError):  # it never got so far
            self.engine.serving.remove(os.getpid())
        try:
            if self._owner is not None:
                self.engine.storage.unregister(self._owner)
        except StorageError as error:  # the lock is gone with the process: others see that we are dead
            logs.say(logs.WARNING, "could not sign off", error=error)
        self._owner = None
        self._waker.close()
        logs.say(logs.INFO, "consumer stopped")

    def _upkeep(self, dispatcher: Dispatcher) -> None:
        """Keep the storage small and quick, soon after something was written; asleep while nothing is."""
        while not self._over.is_set():
            dispatcher.wrote.wait()
            if self._over.wait(UPKEEP_EVERY):
                return
            dispatcher.wrote.clear()
            try:
                self.engine.storage.upkeep()
            except StorageError as error:
                logs.say(logs.DEBUG, "upkeep failed and will be tried again", error=error)

    # ── on threads ───────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Run on a thread of this process. Touches no signal handler.

        Raises:
            as `run`, and ConfigurationError if it runs already.
        """
        if self._thread is not None:
            raise ConfigurationError("this consumer was started already")
        self._begin()
        self._thread = threading.Thread(target=self._run_to_end, name="liteq-dispatcher", daemon=True)
        self._thread.start()

    def _run_to_end(self) -> None:
        try:
            self._hooks("on_startup")
            while self._is_dismissed():
                self._end()
                logs.say(logs.WARNING, "the consumer in this program starts anew", pid=os.getpid())
                self._waker = Waker()
                self._announcer = Announcer(self.engine.signals)
                self._begin()
            self._hooks("on_shutdown")
        except StorageError as error:
            message = "the consumer in this program has ended: its jobs wait until the program starts it again"
            logs.say(logs.ERROR, message, error=error, storage=self.engine.storage.location)
        finally:
            self._end()

    def _is_dismissed(self) -> bool:
        """Run; whether to run anew, because the registration is gone: the program that we are in goes on, and nobody
        supervises us."""
        try:
            self._run_dispatcher()
        except Unregistered:
            return not self._stop_asked
        return False

    def stop(self, *, at_once: bool = False, wait: bool = True) -> None:
        """Stop: running jobs may finish within ``shutdown_timeout``, the rest goes back and costs no attempt.

        Args:
            at_once: do not wait for running jobs.
            wait: return when it has stopped (only after `start`).
        """
        self._stop_asked = True
        self._stop_at_once = self._stop_at_once or at_once
        if self._dispatcher is not None:
            self._dispatcher.stop(at_once=at_once)
        thread = self._thread
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """A handler for TERM and INT: the first stops, the second stops at once."""
        self.stop(at_once=self._stop_asked, wait=False)

    def on_stack_signal(self, _number: int, _frame: FrameType | None) -> None:
        """A handler for USR1: the stacks of all running jobs are written to the log."""
        if self._dispatcher is not None:
            self._dispatcher.log_stacks()
