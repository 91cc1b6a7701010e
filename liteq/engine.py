"""The engine: storage, serializer, clock and registry, and everything that is done with a job between them.

`LiteQ` is a façade over one Engine; the consumer drives it; a Result holds it. What becomes of a job is decided in
`lifecycle`, what is stored is the storage's business; here the two are brought together, and signals are sent after the
commit.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from datetime import tzinfo
from typing import TYPE_CHECKING, NamedTuple

from liteq import lifecycle
from liteq import signals as S
from liteq.clock import Clock
from liteq.context import callers
from liteq.definition import Declarations, Definition, Options, check_name, policy_without_task
from liteq.errors import (
    ConfigurationError,
    DuplicateJob,
    JobFinished,
    JobNotFound,
    PayloadTooLarge,
    SerializationError,
    StorageBusy,
    WouldDeadlock,
)
from liteq.execution import NoDeadline, Runtime, close_loop, execute
from liteq.gates import gate_of, is_rate
from liteq.job import FINISHED, Death, Ending, Job, JobFilter, JobState, Outcome, Progress
from liteq.lifecycle import CANCEL_MARK, PAUSE_MARK, REVOKE_MARK, UNKNOWN_TASK, Policy, Revocation, Transition
from liteq.locks import Locks
from liteq.news import News
from liteq.plan import Plan, is_waiting, merged
from liteq.serializers import Serializer
from liteq.signals import Signals
from liteq.storage.base import CALLER, ClaimRequest, Outdated, Storage
from liteq.waiting import Waiters

if TYPE_CHECKING:
    from liteq.batches import Batch, Block, Call, Receive
    from liteq.transactions import OwnTransaction

#: The values of a mark ``cancel:<seq>``: the running job is to be stopped, or only told.
STOP, TELL = "stop", "tell"

#: Jobs touched in one transaction by commands over many of them.
AT_ONCE = 500
#: Finished jobs looked at in one question whether they were kept long enough (0.2 ms), and deleted in one transaction:
#: jobs that come meanwhile wait for it.
WINDOW, DELETED_AT_ONCE = 1000, 200
#: Jobs looked at in one question, where few of them may be meant.
LOOKED_AT_ONCE = 5_000

#: The place of this field in an Outcome.
_SETTLED = Outcome._fields.index("settled")
#: The plain string: comparing with it costs a third of looking up the enum's member, once for each job.
_SUCCEEDED = Ending.SUCCEEDED.value


class Ended(NamedTuple):
    """A claimed job and how its attempt ended."""

    job: Job
    outcome: Outcome


class Refused(NamedTuple):
    """A claimed job that may not start, and the transition that ends it."""

    job: Job
    transition: Transition


class Round(NamedTuple):
    """What one round of settling and claiming brought: jobs to run, jobs that may not start (to be ended with the next
    round), when the next one is due, and which jobs were revoked while they run, by ``seq``: True where they are to be
    stopped, False where they are only to be told. ``marks`` and all below are the turn's."""

    jobs: list[Job]
    refused: list[Refused]
    next_due: float | None
    cancelled: Mapping[int, bool]
    marks: Mapping[str, str]
    next_token: float | None = None
    seen: object | None = None
    unchanged: bool = False


class Engine:
    """See the module.

    Args:
        storage: where the jobs are.
        serializer: of payloads and results.
        clock: tells the time.
        timezone: in which naive datetimes are read.
        name: the app's, for logs.
    """

    def __init__(self, storage: Storage, serializer: Serializer, clock: Clock, timezone: tzinfo, name: str) -> None:
        self.storage = storage
        self.waiters = Waiters(storage)
        self.locks = Locks(storage, clock, name, self._run_freed)
        self.clock = clock
        self.timezone = timezone
        self.name = name
        self.immediate = False
        self.result_ttl: float | None = None
        self.failed_ttl: float | None = None
        self.runtime = Runtime({}, serializer, storage, clock, timezone, _report_hook, self.transact)
        self.news = News(storage, self.retries)
        self.declared = Declarations()
        #: The processes in which a consumer of this engine runs, as often as one does: a fork inherits the list only.
        self.serving: list[int] = []
        self._batch: ContextVar[Batch | None] = ContextVar("liteq_batch", default=None)
        self._own: ContextVar[OwnTransaction | None] = ContextVar("liteq_own", default=None)

    # ── the registry ─────────────────────────────────────────────────────────────────────────────────

    @property
    def signals(self) -> Signals:
        """Who listens to what happens to its jobs."""
        return self.news.signals

    @property
    def tasks(self) -> dict[str, Definition]:
        return self.runtime.tasks

    def options(self, job: Job) -> Options | None:
        """The options that hold for a job; ``None`` where its task is not known here."""
        definition = self.runtime.tasks.get(job.task)
        return None if definition is None else definition.for_job(job)

    def retries(self, job: Job) -> int:
        """How many retries a job has in all; 0 where its task is not known here."""
        options = self.options(job)
        return 0 if options is None else options.policy.retries

    # ── enqueue ──────────────────────────────────────────────────────────────────────────────────────

    def enqueue(self, jobs: Sequence[Job], receive: Receive, plan: Plan | None = None) -> None:
        """Store new jobs and hand the stored ones to ``receive``; inside `batch`, at its end.

        Args:
            jobs: not stored yet.
            receive: knows the handles on them, for which other jobs of the batch may wait.
            plan: what they wait for.

        Raises:
            StorageError: none was stored.
            ConfigurationError: neither; the plan has pending edges, and there is no batch.
        """
        if not self.runtime.around_enqueue:
            batch = self._batch.get()
            if batch is None:  # as `_enqueue`, with one call less on the way of every job
                receive(self._store(jobs, plan and plan.found({})))
            else:
                self._enqueue(jobs, receive, plan)
        else:
            from liteq.middleware import Enqueuing

            runtime = self.runtime
            enqueuing = Enqueuing(runtime.around_enqueue, jobs, runtime.serializer, runtime.report)
            enqueuing.around(lambda: self._enqueue(enqueuing.jobs, enqueuing.receiving(receive), plan))
        if self.immediate:
            self.run_ready()

    def _enqueue(self, jobs: Sequence[Job], receive: Receive, plan: Plan | None) -> None:
        batch = self._batch.get()
        if batch is None or not batch.collect([(jobs, receive, plan)]):
            receive(self._store(jobs, plan and plan.found({})))

    def _store(self, jobs: Sequence[Job], plan: Plan | None = None, connection: object = None) -> list[Job]:
        submitted = tuple(map(lifecycle.submit, jobs))
        if connection is not None and not self.immediate:
            # Whether it is ever committed only the caller knows.
            return self.storage.add(submitted, connection, plan)
        own = self._own.get()
        if own is not None and own.is_open:
            return own.add(submitted, plan)
        stored = self.storage.add(submitted) if plan is None else self.storage.add(submitted, plan=plan)
        if self.news.signals.heard(S.ENQUEUED, S.SCHEDULED):
            self.news.enqueued(job for position, job in enumerate(stored) if position not in stored.known)
        if stored.ended:
            self.news.not_run(stored.ended)
        return stored

    def transact(self, job: Job) -> OwnTransaction:
        """Open a running job's own transaction; what is enqueued in this context from here on is stored in it.

        Raises:
            ConfigurationError: the storage has no such thing.
        """
        from liteq.transactions import OwnTransaction

        tell = self.news.enqueued if self.signals.heard(S.ENQUEUED, S.SCHEDULED) else None
        own = OwnTransaction(self.storage, job, tell, self.news.not_run)
        self._own.set(own)
        return own

    def refuse_to_wait(self) -> None:
        """For who is about to wait for another job.

        Raises:
            StorageBusy: he is a job that keeps everybody from writing, and with them every other job from ending.
        """
        own = self._own.get()
        if own is not None and own.holds_the_lock:
            raise StorageBusy(
                f"job {own.job.id} has written through task.connection(): until it ends nobody else can write, so no "
                "other job can end, and it would wait for ever. Let it wait before it writes"
            )

    def batch(self, connection: object = None) -> Block:
        """Everything enqueued inside is stored in one transaction at the end, or not at all if the block raises.

        A block inside another one hands what it has to that one, unless it has a ``connection``, whose transaction its
        jobs then belong to.
        """
        from liteq.batches import Block

        return Block(self._batch, lambda calls: self._store_calls(calls, connection), alone=connection is not None)

    def _store_calls(self, calls: Sequence[Call], connection: object) -> None:
        stored = iter(self._store([job for jobs, _, _ in calls for job in jobs], _merged(calls), connection))
        for jobs, receive, _ in calls:
            receive([next(stored) for _ in jobs])
        if self.immediate:
            self.run_ready()

    # ── claim and settle ─────────────────────────────────────────────────────────────────────────────

    def round(
        self,
        ended: Sequence[Ended],
        request: ClaimRequest | None,
        *,
        released: Sequence[Job] = (),
        refused: Sequence[Refused] = (),
        progress: Mapping[tuple[int, int], Progress] | None = None,
        cancelled: Container[int] = (),
    ) -> Round:
        """Settle what has ended, give back what was not started, and claim, all in one transaction.

        Args:
            ended: claimed jobs with their outcomes.
            request: what to claim; ``None``: nothing.
            released: claimed jobs that are given back unstarted.
            refused: what the last round refused.
            progress: of running jobs, by ``seq`` and ``claim``.
            cancelled: the ``seq`` of jobs that were revoked while they ran.

        Raises:
            StorageError: nothing happened; call again with the same and more.
        """
        now = self.clock.now()
        succeeded = [one for one in ended if one[1][2] == _SUCCEEDED and not one[1][_SETTLED]]
        others = [] if len(succeeded) == len(ended) else [one for one in ended if one[1][2] != _SUCCEEDED]
        successes = [lifecycle.succeed(job, outcome) for job, outcome in succeeded]
        transitions = [self._decided(one, now, one.job.seq in cancelled) for one in others]
        for job, outcome in others:  # it may still run, though it was given up, and keep others from writing
            self.storage.end_transaction(job, f"it has ended: {outcome.ending}")
        decided = len(transitions)
        transitions += [transition for _, transition in refused]
        transitions += [
            lifecycle.revoke_unbegun(job, now) if job.seq in cancelled else lifecycle.release(job) for job in released
        ]
        turn = self.storage.turn(transitions, self._completed(request, ended), now, progress, successes)
        if turn.unchanged:
            return Round([], [], None, {}, {}, None, turn.seen, True)
        # It is committed: from here on nothing may fail, or the claimed jobs would be lost on the way.
        self.news.succeeded(succeeded, successes, turn.lost)
        if len(succeeded) + len(others) < len(ended):
            self.news.settled([one for one in ended if one[1][2] == _SUCCEEDED and one[1][_SETTLED]])
        for (job, outcome), transition, applied in zip(others, transitions, turn.applied, strict=False):
            if applied:
                self.news.ended(job, outcome, transition)
            else:
                self.news.lost(job, outcome)
        again = self._refused(refused, turn.applied[decided:])
        self.news.not_run(turn.ended)
        jobs, held_back = self._admitted(turn.jobs, turn.marks, now)
        cancels = _cancelled(turn.marks)
        return Round(again + jobs, held_back, turn.next_due, cancels, turn.marks, turn.next_token, turn.seen)

    def _completed(self, request: ClaimRequest | None, ended: Sequence[Ended]) -> ClaimRequest | None:
        if request is None:
            return None
        if self.runtime.limited:
            request = request._replace(needs=self.runtime.limited)
        if ended:  # one that has stored its success itself leaves nothing to write, but to tell
            request = request._replace(unless=None)
        return request

    def _decided(self, ended: Ended, now: float, cancelled: bool) -> Transition:
        policy = self._policy(ended.job)
        draw = _random() if policy.retry.jitter else 0.0
        return lifecycle.decide(ended.job, policy, ended.outcome, now, draw=draw, cancelled=cancelled)

    def _policy(self, job: Job) -> Policy:
        options = self.options(job)
        return options.policy if options is not None else policy_without_task(job)

    def _admitted(self, jobs: list[Job], marks: Mapping[str, str], now: float) -> tuple[list[Job], list[Refused]]:
        """Part the claimed jobs into those that may start and those that may not."""
        if not marks and not any(job.expires for job in jobs):
            return jobs, []
        left = dict(marks)
        admitted: list[Job] = []
        refused: list[Refused] = []
        for job in jobs:
            transition = lifecycle.admit(self._by_present_name(job), now, left)
            if transition is None:
                admitted.append(job)
                continue
            refused.append(Refused(job, transition))
            if transition.consume is not None:
                del left[transition.consume[0]]  # "once": it is used up by this one
        return admitted, refused

    def _by_present_name(self, job: Job) -> Job:
        """The job under its task's name of today: what is revoked is revoked under that."""
        definition = self.tasks.get(job.task)
        return job if definition is None or definition.name == job.task else job._replace(task=definition.name)

    def _refused(self, refused: Sequence[Refused], applied: Sequence[bool]) -> list[Job]:
        """Announce the ends of refused jobs; returns those that may start after all."""
        again: list[Job] = []
        for (job, transition), done in zip(refused, applied, strict=False):
            if done:
                self.news.unstarted(job, transition)
            elif transition.consume is not None:  # another job used up the revocation first
                again.append(job)
        return again

    # ── recovery and tidying: what consumers do for each other ───────────────────────────────────────

    def recover(self) -> int:
        """Put the running jobs of dead consumers back to work; return how many."""
        recovered = 0
        for owner in self.storage.dead_owners():
            recovered += self._recover_owner(owner)
            self.storage.gates.put_out(owner, self.clock.now())
            self.storage.forget(owner)
        return recovered

    def _recover_owner(self, owner: int) -> int:
        query = JobFilter(states=frozenset({JobState.RUNNING}), owner=owner, limit=AT_ONCE)
        begun = self.storage.begun(owner)
        recovered = 0
        while jobs := self.storage.find(query):
            now = self.clock.now()
            cancelled = _cancelled(self.storage.marks(CANCEL_MARK))
            ended = [Ended(job, _death(job, begun, now)) for job in jobs]
            transitions = [self._decided(one, now, one.job.seq in cancelled) for one in ended]
            applied = self.storage.apply(transitions, now)
            for one, transition, answer in zip(ended, transitions, applied, strict=True):
                if answer:
                    recovered += 1
                    self.news.ended(*one, transition)
            self.news.not_run(applied.ended)
            if not any(applied):  # somebody else recovers the same ones
                break
        return recovered

    def let_in(self) -> bool:
        """Offer to others the slots that were kept for jobs which nobody has claimed; see `liteq.gates`."""
        return self.storage.gates.wake(self.clock.now())

    def unpark(self) -> int:
        """Let go the jobs that were parked because nobody knew their task, where it is known here."""
        freed = 0
        for reason in self.storage.reasons(UNKNOWN_TASK):
            if reason.removeprefix(UNKNOWN_TASK) in self.tasks:
                jobs = self.storage.find(JobFilter(states=frozenset({JobState.BLOCKED}), reason=reason, limit=AT_ONCE))
                now = self.clock.now()
                freed += sum(self.storage.apply([lifecycle.unblock(job, now) for job in jobs], now))
        return freed

    def expire(self, until: float, since: float) -> int:
        """End up to AT_ONCE waiting jobs whose ``expires`` passed in between, though no worker came to them."""
        now = self.clock.now()
        jobs = self.storage.find(JobFilter(expired_at=until, expired_after=since, limit=AT_ONCE))
        pairs = [(job, transition) for job in jobs if (transition := lifecycle.expire(job, now)) is not None]
        if not pairs:
            return 0
        answers = self.storage.apply([transition for _, transition in pairs], now)
        for (job, transition), applied in zip(pairs, answers, strict=True):
            if applied:
                self.news.unstarted(job, transition)
        self.news.not_run(answers.ended)
        return sum(answers)

    def drop_stale_marks(self) -> None:
        """Forget requests to cancel jobs that have finished in the same moment."""
        marks = self.storage.marks(CANCEL_MARK)
        stale = self.storage.finished([int(key.removeprefix(CANCEL_MARK)) for key in marks]) if marks else set()
        for seq in stale:
            self.storage.swap(f"{CANCEL_MARK}{seq}", marks[f"{CANCEL_MARK}{seq}"], None)

    @property
    def kept(self) -> dict[JobState, float]:
        """For how many seconds finished jobs are kept, by final state; the others for ever."""
        short = dict.fromkeys((JobState.SUCCEEDED, JobState.REVOKED, JobState.EXPIRED), self.result_ttl)
        return {state: ttl for state, ttl in (short | {JobState.FAILED: self.failed_ttl}).items() if ttl is not None}

    def purge(self, after: int) -> Outdated:
        """Look at WINDOW finished jobs behind a ``seq``; delete, up to DELETED_AT_ONCE, what was kept long enough."""
        now = self.clock.now()
        before = {state: now - ttl for state, ttl in self.kept.items()}
        found = self.storage.outdated(before, after, WINDOW, DELETED_AT_ONCE)
        self.storage.discard(found.seqs)
        return found

    # ── changing single jobs ─────────────────────────────────────────────────────────────────────────

    def job(self, job_id: str) -> Job:
        """The job with its history.

        Raises:
            JobNotFound: there is none.
        """
        job = self.storage.get(job_id)
        if job is None:
            raise JobNotFound(job_id)
        return job

    def change(self, job_id: str, rule: Callable[[Job, float], Transition | None]) -> bool:
        """Apply a rule of `lifecycle` to one job; False where the rule says that its state does not allow it.

        Raises:
            JobNotFound: there is no such job.
            DuplicateJob: it has finished, and another one that has not has its unique key by now.
        """
        while True:
            job = self.job(job_id)
            now = self.clock.now()
            transition = rule(job, now)
            if transition is None:
                return False
            answers = self.storage.apply([transition], now)
            if answers[0]:
                self.news.changed(job, transition)
                self.news.not_run(answers.ended)
                if self.immediate:
                    self.run_ready()
                return True
            rival = self.storage.rival(job.seq) if job.state in FINISHED else None
            if rival is not None:
                raise DuplicateJob(job.task, rival.key, rival.id, job.id)
            # It moved between the look and the change: look again.

    def change_all(self, query: JobFilter, rule: Callable[[Job, float], Transition | None]) -> int:
        """Apply a rule of `lifecycle` to every job that matches, in transactions of AT_ONCE; return how many
        changed.
        """
        changed, after_seq = 0, None
        while jobs := self.storage.find(replace(query, limit=AT_ONCE, after=after_seq)):
            now = self.clock.now()
            pairs = [(job, transition) for job in jobs if (transition := rule(job, now)) is not None]
            changed += sum(self._apply_changes(pairs, now))
            after_seq = jobs[-1].seq
        if self.immediate:
            self.run_ready()
        return changed

    def remove_all(self, query: JobFilter) -> int:
        """Delete every finished job that matches, in transactions of AT_ONCE; return how many."""
        removed = 0
        while number := self.storage.remove(replace(query, limit=AT_ONCE)):
            removed += number
        return removed

    def revoke_matching(self, query: JobFilter, matches: Callable[[Job], bool], *, terminate: bool = False) -> int:
        """Revoke every job that there is now, has not finished and matches; see `revoke`.

        In transactions of AT_ONCE, each job guarded by what it was when it was looked at: one that moves meanwhile is
        looked at again. Jobs that are enqueued meanwhile are left alone, so this ends whatever producers do.
        """
        newest = self.storage.find(JobFilter(newest_first=True, limit=1))
        revoked, after_seq = 0, 0
        while newest and after_seq < newest[0].seq:
            jobs = self.storage.find(replace(query, limit=LOOKED_AT_ONCE, after=after_seq))
            matching = [job for job in jobs if job.seq <= newest[0].seq and matches(job)]
            for start in range(0, len(matching), AT_ONCE):
                revoked += self._revoke_together(matching[start : start + AT_ONCE], terminate)
            after_seq = jobs[-1].seq if jobs else newest[0].seq
        return revoked

    def _revoke_together(self, jobs: Sequence[Job], terminate: bool) -> int:
        now = self.clock.now()
        pairs = [(job, transition) for job in jobs if (transition := lifecycle.revoke(job, now)) is not None]
        answers = self._apply_changes(pairs, now)
        ended = {job.seq for (job, _), applied in zip(pairs, answers, strict=True) if applied}
        others = [job for job in jobs if job.seq not in ended]  # they run, or have moved since
        return len(ended) + sum(self._revoke_if_there(job, terminate) for job in others)

    def _revoke_if_there(self, job: Job, terminate: bool) -> bool:
        try:
            return self.revoke(job.id, terminate=terminate)
        except JobNotFound:  # finished and deleted since it was looked at
            return False

    def is_told(self, job: Job) -> bool:
        """Whether a running job was revoked since it was started."""
        key = f"{CANCEL_MARK}{job.seq}"
        return key in self.storage.marks(key)

    def _apply_changes(self, pairs: Sequence[tuple[Job, Transition]], now: float) -> list[bool]:
        """Apply these together, and announce what came of it."""
        if not pairs:
            return []
        answers = self.storage.apply([transition for _, transition in pairs], now)
        for (job, transition), applied in zip(pairs, answers, strict=True):
            if applied:
                self.news.changed(job, transition)
        self.news.not_run(answers.ended)
        return answers

    def revoke_these(self, seqs: Sequence[int], *, terminate: bool = False) -> int:
        """Revoke these jobs, in transactions of AT_ONCE; returns how many had not finished."""
        revoked = 0
        for start in range(0, len(seqs), AT_ONCE):
            jobs = self.storage.plans.jobs(seqs[start : start + AT_ONCE])
            revoked += self._revoke_together([job for job in jobs if job.state not in FINISHED], terminate)
        if self.immediate:
            self.run_ready()
        return revoked

    def revoke(self, job_id: str, *, terminate: bool = False) -> bool:
        """Revoke a job: one that waits ends at once; one that runs is told, and is not run again.

        Args:
            terminate: one that runs is stopped.

        Returns:
            False if it had finished already.
        """
        while not self.change(job_id, lifecycle.revoke):
            job = self.job(job_id)
            if job.state in FINISHED:
                return False
            if job.state is JobState.RUNNING and self._ask_to_stop(job, STOP if terminate else TELL):
                return True
        return True

    def _ask_to_stop(self, job: Job, how: str) -> bool:
        """Mark a running job as revoked; False if it was not running any more by then (so that nobody may have seen
        it).
        """
        self._set_mark(lifecycle.cancel_mark(job), how)
        standing = self.job(job.id)
        return standing.state is JobState.RUNNING and standing.claim == job.claim

    def restore(self, job_id: str) -> bool:
        """Undo `revoke`; False if the job is not revoked."""
        if self.change(job_id, lifecycle.restore):
            return True
        key = f"{CANCEL_MARK}{self.job(job_id).seq}"
        asked = self.storage.marks(key).get(key)
        return asked is not None and self.storage.swap(key, asked, None)

    def revoke_task(self, task: str, until: float | None, once: bool) -> None:
        """Revoke every call of a task: those that wait and those to come."""
        self._set_mark(REVOKE_MARK + task, Revocation(until, once).dumps())

    def restore_task(self, task: str) -> bool:
        """Undo `revoke_task`; False if the task was not revoked."""
        key = REVOKE_MARK + task
        value = self.storage.marks(key).get(key)
        return value is not None and self.storage.swap(key, value, None)

    def is_task_revoked(self, task: str) -> bool:
        key = REVOKE_MARK + task
        value = self.storage.marks(key).get(key)
        if value is None:
            return False
        until = Revocation.loads(value).until
        return until is None or self.clock.now() < until

    def _set_mark(self, key: str, value: str) -> None:
        while not self.storage.swap(key, self.storage.marks(key).get(key), value):
            continue

    def _run_freed(self) -> None:
        """A lock was given back: in immediate mode nobody else runs the jobs that waited for it."""
        if self.immediate:
            self.run_ready()

    # ── events ───────────────────────────────────────────────────────────────────────────────────────

    def send(self, job_id: str, event: str, data: object) -> None:
        """Send an event to a job; see `LiteQ.send`."""
        check_name(event, "the name of an event")
        try:
            payload = None if data is None else self.runtime.serializer.dumps(data)
        except SerializationError as error:
            raise SerializationError(f"the event {event!r} was not sent to job {job_id}: {error}") from error
        if payload is not None and len(payload) > self.runtime.max_payload:
            what = f"the event {event!r} was not sent to job {job_id}, its data is too large"
            raise PayloadTooLarge(what, len(payload), self.runtime.max_payload)
        job = self.job(job_id)
        if not self.storage.send(job.seq, event, payload, self.clock.now()):
            raise JobFinished(job.id, self.job(job_id).state)
        if self.immediate:
            self.run_ready()

    # ── immediate mode ───────────────────────────────────────────────────────────────────────────────

    def run_ready(self) -> None:
        """Run everything that is ready, here and now, one after another."""
        while self._run_one():
            continue
        close_loop()

    def run_until(self, job: Job, deadline: float | None) -> None:
        """Be the consumer for a job that is due later, or waits for a rate limit: sleep until then and run it, and on
        the way there whatever is due before, if ``deadline`` allows.

        Args:
            deadline: on the app's clock, seconds since the epoch.
        """
        while (due := self._due_of(job)) is not None and (deadline is None or due <= deadline):
            self.clock.sleep(max(0.0, (self.storage.next_due() or due) - self.clock.now()))
            self.run_ready()

    def is_startable(self, job: Job) -> bool:
        """Whether a job is ready in a queue that is not paused."""
        mark = PAUSE_MARK + job.queue
        return job.state is JobState.READY and mark not in self.storage.marks(mark)

    def refuse_to_wait_in_vain(self, job: Job) -> None:
        """Tell a job that waits here for one which cannot start before it has ended.

        Raises:
            WouldDeadlock: it does.
        """
        within = [caller for engine, caller in callers.get() if engine is self]
        if not within or job.state is not JobState.BLOCKED:
            return
        from liteq.deadlock import held_by_callers

        doom = held_by_callers(self.storage, within, job.seq, self.clock.now())
        if doom is not None:
            raise WouldDeadlock(job.id, within[-1].id, obstacle=doom.obstacle)

    def _due_of(self, job: Job) -> float | None:
        standing = self.storage.get(job.id)
        if standing is None:
            return None
        if standing.state is JobState.BLOCKED:
            waits = is_waiting(standing.reason) or is_rate(gate_of(standing.reason or "") or "")
            return self.storage.next_due() if waits else None  # perhaps of a job that this one waits for
        return standing.due if standing.state is JobState.SCHEDULED else None

    def _execute_here(self, job: Job) -> Outcome:
        within = callers.set((*callers.get(), (self, job)))
        try:
            return execute(job, self.runtime, _DirectChannel(self), NoDeadline())
        except KeyboardInterrupt:  # the caller's, who happens to be in a task
            now = self.clock.now()
            self.round([Ended(job, Outcome(job.seq, job.claim, Ending.INTERRUPTED, now, now))], None)
            raise
        finally:
            callers.reset(within)

    def _run_one(self) -> bool:
        claimed = self.round([], ClaimRequest(owner=CALLER, wanted=1))
        for job in claimed.jobs:
            self.news.started([job])
            outcome = self._execute_here(job)
            told = [job.seq] if self.is_told(job) else []
            self.round([Ended(job, outcome)], None, cancelled=told)
        if claimed.refused:
            self.round([], None, refused=claimed.refused)
        return bool(claimed.jobs or claimed.refused)


class _DirectChannel:
    """Immediate mode's way from a job to the storage."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def progress(self, job: Job, progress: Progress) -> None:
        self._engine.storage.turn([], None, self._engine.clock.now(), {(job.seq, job.claim): progress})

    def is_cancelled(self, job: Job) -> bool:
        return self._engine.is_told(job)


def _merged(calls: Sequence[Call]) -> Plan | None:
    """What the jobs of a whole batch wait for."""
    starts, places, position = [], {}, 0
    for jobs, receive, _ in calls:
        starts.append(position)
        for offset, handle in receive.places():
            places[id(handle)] = position + offset
        position += len(jobs)
    plan = merged((plan, start) for (_, _, plan), start in zip(calls, starts, strict=True))
    return None if plan is None else plan.found(places)


def _random() -> float:
    from random import random  # few policies have jitter

    return random()


def _death(job: Job, begun: Mapping[int, Death] | None, now: float) -> Outcome:
    """What became of a dead consumer's job: crashed if it was begun, else put back as if nothing had been."""
    death = None if begun is None else begun.get(job.seq)
    outcome = lifecycle.crashed(job, now, "its consumer died while it ran", death)
    if begun is None or job.seq in begun:
        return outcome
    return Outcome(job.seq, job.claim, Ending.INTERRUPTED, outcome.started, now)


def _cancelled(marks: Mapping[str, str]) -> dict[int, bool]:
    """Which jobs were revoked while they run, and whether they are to be stopped."""
    return {
        int(key.removeprefix(CANCEL_MARK)): value == STOP for key, value in marks.items() if key.startswith(CANCEL_MARK)
    }


def require_states(names: object) -> frozenset[JobState]:
    """One state or several, by name, as a set of JobState; empty for ``None``.

    Raises:
        ConfigurationError: there is no such state.
    """
    if names is None:
        return frozenset()
    given = [names] if isinstance(names, str) else names
    try:
        states = frozenset(JobState(one) for one in given)  # type: ignore[attr-defined]
        if not states:  # would mean "all" further down, which nobody means who passes an empty list
            raise ValueError
        return states
    except (ValueError, TypeError):
        raise ConfigurationError(f"state takes one or several of {', '.join(JobState)}, not {names!r}") from None


def _report_hook(what: str, job: Job, error: BaseException) -> None:
    from liteq import logs

    logs.hook_failed(what, job, error)
