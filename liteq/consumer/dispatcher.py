"""The one loop of a consumer. It alone talks to the storage; workers only run what it feeds them.

::

    outcomes = pool.collect()                     whatever has finished
    round    = engine.round(outcomes, wanted)     ONE transaction: settle all of them, promote what is due, claim
    pool.feed(round.jobs)
    wait for: an outcome, a wake-up from the storage, the next due time, a deadline, a signal

Nothing is delayed to fill a batch: what gathers while one commit runs goes into the next. If the storage fails (a full
disk, a foreign lock), outcomes are kept here and written when it is back; nothing is claimed meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from selectors import EVENT_READ, BaseSelector, DefaultSelector

from liteq import logs
from liteq.consumer.pools.base import Pool
from liteq.consumer.prefetch import GIVE_BACK_AFTER, Prefetch
from liteq.consumer.scheduler import Scheduler
from liteq.consumer.serving import Serving
from liteq.consumer.stacks import Stacks
from liteq.engine import Ended, Engine, Refused
from liteq.errors import StorageBusy, StorageError, StorageTooNew
from liteq.job import Ending, Job, Outcome, Progress
from liteq.shares import Share
from liteq.storage.base import Unregistered
from liteq.storage.waker import Waker
from liteq.storage.watch import Change, Watch

#: The longest sleep in seconds: a jump of the wall clock, or a missed wake-up, is noticed after this at the latest.
LONGEST_WAIT = 10.0
#: While every worker is busy, how often to look whether a running job was revoked.
LOOK_EVERY = 0.25
#: Writes that concern this consumer in no way (a job that records step after step, the producers of other queues) wake
#: it all the same. After so many in a row, none more than CALM seconds after the one before, it does not listen to them
#: for BUSY_PAUSE seconds at a time. Being woken by each made the steps of a job on a thread half as slow again.
IN_VAIN, CALM, BUSY_PAUSE = 4, 0.005, 0.001
#: Plain numbers, which are ten times as fast as members of an IntFlag.
_DATA, _SLOTS = int(Change.DATA), int(Change.SLOTS)
#: Of very many jobs that ended together, the run times of about so many are looked at.
SAMPLE = 64
#: For how many seconds a burst waits for a rate limit to let the next job start.
BURST_WAITS = 60.0
#: Seconds between two tries while the storage fails: doubled from the first to the last.
FIRST_RETRY, LAST_RETRY = 0.05, 2.0


class Dispatcher:
    """See the module.

    Args:
        engine: the app's.
        pool: not yet started.
        scheduler: the duties besides running jobs.
        owner: this consumer's number in the storage.
        queues: in order of preference; ``None``: all.
        shares: how they share this consumer, where that is not their order alone.
        shutdown_timeout: seconds for which running jobs may go on after `stop`.
        burst: end when nothing is due and nothing runs.
    """

    def __init__(
        self,
        engine: Engine,
        pool: Pool,
        scheduler: Scheduler,
        waker: Waker,
        *,
        owner: int,
        queues: tuple[str, ...] | None,
        shutdown_timeout: float,
        burst: bool = False,
        shares: Sequence[Share] | None = None,
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._scheduler = scheduler
        self._waker = waker
        self._owner = owner
        self._queues = queues
        self._serving = Serving(pool, queues, shares)
        self._shutdown_timeout = shutdown_timeout
        self._burst = burst
        self._clock = engine.clock
        self._prefetch = Prefetch()
        # Plain flags, because a signal handler may interrupt another one that sets them.
        self._stop_asked = False
        self._stop_at_once = False
        self._stop_deadline: float | None = None
        self._interrupted = False
        # What the next round has to write; kept while the storage fails.
        self._ended: list[Ended] = []
        self._released: list[Job] = []
        self._refused: list[Refused] = []
        self._progress: dict[tuple[int, int], Progress] = {}
        self._cancelled: dict[int, bool] = {}
        # Whether there may be something to claim, and when there will be.
        self._look = True
        self._seen: object | None = None  # as of the last round, if it left nothing that we could claim
        self._next_due: float | None = None
        self._next_token: float | None = None
        self._last_end = 0.0
        self._last_look = 0.0
        self._in_vain = 0
        self._retry_at: float | None = None
        self._retry_wait = FIRST_RETRY
        # When the pool, and the scheduler, want to be called again.
        self._supervised: float | None = None
        self._duty_at = 0.0
        self._dismissal: Unregistered | StorageTooNew | None = None
        self._wrote = threading.Event()
        self._stacks = Stacks(engine, pool, owner)
        self._stacks_asked = False

    @property
    def wrote(self) -> threading.Event:
        """Set whenever something was written: what the upkeep thread waits for."""
        return self._wrote

    def stop(self, *, at_once: bool = False) -> None:
        """Claim no more and end; from any thread or a signal handler.

        Args:
            at_once: do not wait for running jobs.
        """
        self._stop_at_once = self._stop_at_once or at_once
        self._stop_asked = True
        self._waker.wake()

    def log_stacks(self) -> None:
        """Write the stacks of all running jobs to the log; from any thread or a signal handler."""
        self._stacks_asked = True
        self._waker.wake()

    def run(self) -> None:
        """Run until told to stop, or, in a burst, until nothing is left to do. Running jobs have then ended or were
        given back, and the pool is stopped.

        Raises:
            Unregistered, StorageTooNew: it had to end because it may not claim any more.
        """
        with DefaultSelector() as selector, self._engine.storage.watch() as watch:
            selector.register(self._waker, EVENT_READ)
            if watch.fileno() is not None:
                selector.register(watch.fileno(), EVENT_READ)  # type: ignore[arg-type]
            self._pool.watch(selector)
            try:
                self._pool.start()
                self._loop(watch, selector)
            finally:
                self._pool.stop()
                self._stacks.close()
        if self._dismissal is not None:
            raise self._dismissal

    def _loop(self, watch: Watch, selector: BaseSelector) -> None:
        only_others = False
        while True:
            self._waker.clear()
            self._note(Change.NOTHING if only_others else watch.changed())
            self._step()
            if self._is_over():
                return
            wait = self._wait()
            if watch.poll_interval is not None:
                wait = min(wait, watch.poll_interval)
            only_others = False
            if wait > 0 and self._pool.about_to_wait():
                only_others = self._sleep(watch, selector, wait)

    def _sleep(self, watch: Watch, selector: BaseSelector, wait: float) -> bool:
        """Returns whether others have woken us, and the watch has nothing to say."""
        descriptor = watch.fileno()
        if self._in_vain >= IN_VAIN and descriptor is not None:
            selector.unregister(descriptor)
            try:
                selector.select(min(wait, BUSY_PAUSE))
            finally:
                selector.register(descriptor, EVENT_READ)
            return False
        began = self._clock.monotonic()
        ready = selector.select(wait)
        if self._clock.monotonic() - began > CALM:
            self._in_vain = 0
        return bool(ready) and watch.poll_interval is None and all(key.fileobj != descriptor for key, _ in ready)

    def _note(self, change: Change) -> None:
        what = int(change)
        self._in_vain = self._in_vain + 1 if what & _DATA else 0
        if what & _DATA:
            self._look = True
            self._scheduler.data_changed()
        if what & _SLOTS:
            self._scheduler.somebody_died()

    # ── one step ─────────────────────────────────────────────────────────────────────────────────────

    def _step(self) -> None:
        now = self._clock.monotonic()
        ended = self._pool.collect()
        if ended:
            self._in_vain = 0
            self._last_end = now
            self._serving.left(job for job, _ in ended)
            few = ended[:: 1 + len(ended) // SAMPLE]
            self._prefetch.observe([outcome.finished - outcome.started for _, outcome in few])
            self._ended += ended
        self._progress |= self._pool.progress()
        self._take_back(now)
        if self._stop_asked:
            self._hurry(now)
        if self._stacks_asked:
            self._stacks_asked = False
            self._stacks.log_all()
        if self._retry_at is None or now >= self._retry_at:
            self._with_storage(now)
        # Last, because whatever was started or interrupted above has a deadline now.
        self._supervised = self._pool.supervise(self._clock.monotonic())

    def _with_storage(self, now: float) -> None:
        try:
            self._round(now)
            self._duty_at = now + LONGEST_WAIT if self._stop_asked else self._scheduler.run(now)
            self._look = self._look or self._scheduler.made_ready
        except (Unregistered, StorageTooNew) as error:
            self._dismissed(error)
        except StorageError as error:
            self._failed(error, now)
        else:
            if self._retry_at is not None:
                logs.say(logs.WARNING, "the storage works again")
            self._retry_at, self._retry_wait = None, FIRST_RETRY

    def _dismissed(self, error: Unregistered | StorageTooNew) -> None:
        """The file was replaced, a newer liteq has changed it, or somebody took us for dead: settle what runs and end,
        so that whoever runs us starts us anew."""
        if self._dismissal is None:
            gone = isinstance(error, Unregistered)
            what = "registration is gone" if gone else "version of liteq is older than the file's by now"
            message = f"this consumer's {what}; it stops, and has to be started again"
            logs.say(logs.ERROR, message, error=error)
            self._dismissal = error
        self.stop()

    def _failed(self, error: StorageError, now: float) -> None:
        if self._retry_at is None:
            message = "the storage fails; outcomes are kept in memory and no job is started until it works again"
            level = logs.WARNING if isinstance(error, StorageBusy) else logs.ERROR
            logs.say(level, message, error=error, kept=len(self._ended))
        self._retry_at = now + self._retry_wait
        self._retry_wait = min(2 * self._retry_wait, LAST_RETRY)

    def _round(self, now: float) -> None:
        """Settle and claim, if there is anything to settle or a reason to look."""
        wanted = 0 if self._stop_asked else self._wanted()
        due = self._next_due is not None and self._next_due <= self._clock.now()
        anyway = due or self._serving.may_have_more(wanted)
        claims = wanted > 0 and (self._look or anyway)
        revocations = self._look and wanted == 0 and now - self._last_look >= LOOK_EVERY
        if not (self._has_to_write() or claims or revocations):
            return
        unless = None if anyway else self._seen
        request = self._serving.request(self._owner, wanted, unless) if wanted > 0 else None
        done = self._engine.round(
            self._ended,
            request,
            released=self._released,
            refused=self._refused,
            progress=self._progress,
            cancelled=self._cancelled,
        )
        self._last_look = now
        if done.unchanged:  # what has woken us was our own last round
            self._look, self._seen = False, done.seen
            return
        self._ended, self._released, self._refused, self._progress = [], [], done.refused, {}
        self._next_due, self._next_token = done.next_due, done.next_token
        self._tell(done.cancelled)
        if done.marks:
            self._stacks.answer(done.marks)
        self._serving.asked(wanted, len(done.jobs))
        if wanted == 0:
            self._look = True  # what was settled or given back may be ready now, and this round did not ask
        else:
            self._look = len(done.jobs) >= wanted or bool(done.next_due and done.next_due <= self._clock.now())
        self._seen = None if wanted == 0 or self._look else done.seen
        if done.jobs:
            self._in_vain = 0
            self._last_end = max(self._last_end, now) if self._pool.held else now
            self._serving.feed(done.jobs)
            self._engine.news.started(done.jobs)
        self._wrote.set()

    def _tell(self, cancelled: Mapping[int, bool]) -> None:
        """Pass on which jobs were revoked since they were claimed; each is told once, and stopped once."""
        if not (cancelled or self._cancelled):
            return
        now = self._clock.now()
        for seq, stop in cancelled.items():
            if self._cancelled.get(seq) is stop:
                continue
            unbegun = self._pool.withdraw(seq)
            if unbegun is not None:
                self._serving.left((unbegun,))
                outcome = Outcome(seq, unbegun.claim, Ending.INTERRUPTED, now, now)
                self._ended.append(Ended(unbegun, outcome))
            else:  # perhaps another consumer's; or a worker has taken it in this moment, and only it knows
                self._pool.cancel(seq, stop=stop)
        self._cancelled = dict(cancelled)  # what was told stays told: it may have ended, and not be collected yet

    def _has_to_write(self) -> bool:
        return bool(self._ended or self._released or self._refused or self._progress)

    def _take_back(self, now: float) -> None:
        """Give back what was claimed too early: jobs are slower than was thought, or the consumer stops."""
        if not self._pool.backlog:
            return
        nothing_ends = now - self._last_end >= GIVE_BACK_AFTER
        if nothing_ends and not self._stop_asked:
            self._prefetch.gave_back()
        if nothing_ends or self._stop_asked or self._prefetch.too_much(self._pool.ready, self._pool.backlog):
            back = self._pool.take_back()
            self._serving.left(back)
            self._released += back

    # ── stopping ─────────────────────────────────────────────────────────────────────────────────────

    def _hurry(self, now: float) -> None:
        if self._stop_deadline is None:
            self._pool.recall()
            self._stop_deadline = now + self._shutdown_timeout
            left = len(self._pool.running())
            logs.say(logs.INFO, "stopping", running=left, timeout=f"{self._shutdown_timeout:g}s")
        if not self._interrupted and (self._stop_at_once or now >= self._stop_deadline):
            self._interrupted = True
            self._pool.interrupt()

    def _is_over(self) -> bool:
        if self._gives_up():
            return True
        if self._pool.held or self._has_to_write():
            return False
        if self._stop_asked:
            return True
        return self._burst and not self._look and not self._is_due() and not self._waits_for_token()

    def _gives_up(self) -> bool:
        """The consumer stops and the storage still fails: what it cannot write, others will find as a dead
        consumer's.
        """
        if self._stop_deadline is None or self._retry_at is None or self._pool.held:
            return False
        if not self._stop_at_once and self._clock.monotonic() < self._stop_deadline:
            return False
        for job, outcome in self._ended:
            message = "outcome lost with the storage; the job will run again"
            logs.say(logs.ERROR, message, job=job.id, task=job.task, ending=outcome.ending)
        return True

    def _waits_for_token(self) -> bool:
        """In a burst: whether a job waits for nothing but a rate limit, and not for long."""
        return self._next_token is not None and self._next_token - self._clock.now() <= BURST_WAITS

    def _is_due(self) -> bool:
        return self._next_due is not None and self._next_due <= self._clock.now()

    # ── waiting ──────────────────────────────────────────────────────────────────────────────────────

    def _wait(self) -> float:
        """How long there is nothing to do, in seconds, unless something wakes us."""
        now = self._clock.monotonic()
        if self._retry_at is not None:
            return max(0.0, self._retry_at - now)
        if self._has_to_write():
            return 0.0
        waits = [LONGEST_WAIT, self._duty_at - now]
        if self._supervised is not None:
            waits.append(self._supervised - now)
        if self._pool.backlog:
            waits.append(self._last_end + GIVE_BACK_AFTER - now)
        if self._stop_deadline is not None and not self._interrupted:
            waits.append(self._stop_deadline - now)
        if not self._stop_asked:
            waits += self._claiming_waits(now)
        return max(0.0, min(waits))

    def _wanted(self) -> int:
        """How many jobs to claim now. Where workers are reserved nothing is claimed ahead, or it would take them."""
        if self._serving.reserves:
            return max(0, self._pool.ready - self._pool.held)
        return self._prefetch.wanted(self._pool.ready, self._pool.held)

    def _claiming_waits(self, now: float) -> list[float]:
        wanted = self._wanted()
        if wanted > 0 and self._serving.may_have_more(wanted):
            return [0.0]
        if wanted == 0:
            return [self._last_look + LOOK_EVERY - now] if self._look else []
        if self._look:
            return [0.0]
        return [] if self._next_due is None else [self._next_due - self._clock.now()]
