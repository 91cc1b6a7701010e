"""The state machine of a job, and the only place that decides what becomes of one. Pure.

::

                        submit                               claim
      enqueue ──┬──────────────────────▶ ready ───────────────────────────▶ running
                │                         ▲  ▲                                 │
                └─▶ scheduled ────────────┘  │  interrupted, snoozed(0)        │ decide
                      ▲      promote (due)   └─────────────────────────────────┤
                      └──────────── retry later, snoozed, sleeps ──────────────┤
                                                                               ├─▶ succeeded
      ready, scheduled ── revoke ─▶ revoked ── restore ─▶ ready / scheduled    ├─▶ failed
      ready, scheduled ── not started before expires ─▶ expired                ├─▶ revoked
      any finished ── requeue ─▶ ready (history kept)                          └─▶ blocked (task unknown, or
      blocked, scheduled ── the event is sent that it waits for ─▶ ready           it waits for an event)
      ready ── claimed, but a lock or limit has no room ─▶ blocked ── there is room ─▶ ready
      enqueue ── one of its unique key runs, and is to be followed ─▶ blocked ── that one has ended ─▶ ready / scheduled
      enqueued, or ready again, but it waits for other jobs ─▶ blocked ── the last one ends ─▶ ready / scheduled
      blocked ── one of them ends without success ─▶ failed / revoked ── that one is requeued ─▶ blocked

Each function takes a Job and what happened and returns a Transition: a guard (which job, in which state, under which
claim number) and the new fields. A storage applies it if the guard still holds and answers False if not; it never
invents one, but promotes what is due, lets in whom a lock or limit has room for (`liteq.gates`), lets go on what
followed a job of its unique key (`liteq.unique`), wakes the job that waits for the event that is sent to it, and asks
here what the end of a job means for those that wait for it (`liteq.plan`). So a stale owner cannot change a job that
somebody else has claimed since.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, NamedTuple

from liteq.errors import DependencyFailed
from liteq.gates import gate_of
from liteq.job import FINISHED, WAITING, Attempt, Death, Ending, Job, JobState, Outcome
from liteq.plan import Rule, is_waiting
from liteq.retry import RetryDelay
from liteq.unique import Unique
from liteq.unique import reason as follows

REVOKE_MARK = "revoke:"
CANCEL_MARK = "cancel:"
PAUSE_MARK = "pause:"
STACK_MARK = "stack:"
#: Reasons of blocked jobs: nobody knows the task of this name; the event of this name has not been sent.
UNKNOWN_TASK = "unknown task: "
EVENT = "event: "


@dataclass(frozen=True, slots=True)
class Policy:
    """What a task (or one call of it) says about failing.

    Args:
        retries: further attempts after the first.
        retry: how long to wait before each.
        on_crash: whether a job whose worker or consumer died is run again.
        max_crashes: after this many of them it is failed.
    """

    retries: int = 0
    retry: RetryDelay = field(default_factory=RetryDelay)
    on_crash: Literal["retry", "fail"] = "retry"
    max_crashes: int = 3


_RUNNING, _SUCCEEDED = JobState.RUNNING, JobState.SUCCEEDED


class Transition(NamedTuple):
    """One guarded change of a job's state.

    The guard is ``seq``, ``source`` and ``claim``: the change happens if that job is in that state under that claim
    number, and otherwise not at all. ``record`` joins the job's history. ``consume`` names a mark that must still have
    that value and is removed with the change; ``drop_mark`` one that is removed whatever its value. ``awaits`` names
    the event that is to wake the job; if it has been sent by then, the job is ready instead. ``forget_steps`` deletes
    what steps it has recorded. ``unbegun`` says that the claim which ends here came to nothing: a token that it took of
    a rate limit is given back.
    """

    seq: int
    source: JobState
    claim: int
    target: JobState
    due: float | None = None
    attempt: int = 0
    base: int = 0
    crashes: int = 0
    started: float | None = None
    finished: float | None = None
    result: bytes | None = None
    reason: str | None = None
    record: Attempt | None = None
    consume: tuple[str, str] | None = None
    drop_mark: str | None = None
    forget_expiry: bool = False
    awaits: str | None = None
    forget_steps: bool = False
    unbegun: bool = False


class Success(NamedTuple):
    """The end that most jobs have, in the short form in which a round of thousands settles them.

    Guarded like a Transition from ``running`` under ``claim``. On the path of every job a Transition, with its sixteen
    fields and what a storage has to ask of them, costs three times as much.
    """

    seq: int
    claim: int
    attempt: int
    base: int
    crashes: int
    started: float
    finished: float
    result: bytes | None

    def transition(self) -> Transition:
        """The same in the long form."""
        seq, claim, attempt, base, crashes, started, finished, result = self
        return Transition(seq, _RUNNING, claim, _SUCCEEDED, None, attempt, base, crashes, started, finished, result)


def submit(job: Job, now: float | None = None) -> Job:
    """A job about to be stored: ready, or scheduled if it is due later; ``now`` is when, if not when it was made."""
    if now is not None:
        job = job._replace(created=now)
    if job.due is not None and job.due > job.created:
        return job._replace(state=JobState.SCHEDULED)
    return job  # made ready; a copy would cost as much as encoding its arguments


class Meeting(Enum):
    """What becomes of a new job whose unique key is held by another one."""

    KNOWN = "it is not stored; the other one is the answer"
    REFUSED = "it is not stored; the call is told so"
    CHANGED = "the other one takes over what it says"
    FOLLOWS = "it waits until the other one has ended"
    STANDS = "it is stored, and holds the key from now on"


def meet(job: Job, unique: Unique, holder: Job, *, cancelled: bool = False) -> Meeting:
    """What becomes of a new job whose unique key is held by another one.

    Args:
        job: new, with ``created`` as the present.
        unique: what it says of itself.
        holder: holds the key, and has not finished.
        cancelled: the holder was revoked while it ran, and will not be run again: it is no answer to anybody.
    """
    if holder.state is _RUNNING:
        if unique.scope == "waiting":
            return Meeting.STANDS
        if cancelled or unique.on_duplicate == "replace" or unique.debounce is not None:
            return Meeting.FOLLOWS
    elif has_expired(holder, job.created):  # it will never run
        return Meeting.STANDS
    elif unique.on_duplicate == "replace" or unique.debounce is not None:
        return Meeting.CHANGED
    return Meeting.REFUSED if unique.on_duplicate == "raise" else Meeting.KNOWN


def follow(job: Job, running: str) -> Job:
    """A new job that waits until another one of its key, whose id is given, has ended."""
    return job._replace(state=JobState.BLOCKED, reason=follows(running))


def change(holder: Job, job: Job, unique: Unique) -> Job:
    """A waiting job after a new one of its key has met it and changed it: it keeps its id, its place in the order of
    enqueue and its history.
    """
    now = job.created
    due = job.due
    if unique.debounce is not None and unique.debounce_max is not None:
        due = min(now + unique.debounce, holder.created + unique.debounce_max)
    changed = holder._replace(due=due, expires=job.expires)
    if unique.on_duplicate == "replace":
        # What was tried was another call: this one has its whole allowance of retries.
        fields = ("queue", "priority", "payload", "options", "summary")
        changed = changed._replace(**{name: getattr(job, name) for name in fields}, base=holder.attempt, crashes=0)
    if stays_blocked(holder, unique):
        return changed
    state = JobState.SCHEDULED if due is not None and due > now else JobState.READY
    return changed._replace(state=state, reason=None)


def begins_anew(unique: Unique) -> bool:
    """Whether a job that is changed by a new one of its key is another call from then on, which has done nothing yet:
    what steps the old one has recorded, what was sent to it, and what it waited for, are forgotten."""
    return unique.on_duplicate == "replace"


def stays_blocked(holder: Job, unique: Unique) -> bool:
    """Whether a job that is changed waits for something that the change does not end: not for a gate, where it stands
    in line again, and not for an event, or for other jobs, that another call has been waiting for."""
    reason = holder.reason or ""
    if holder.state is not JobState.BLOCKED or gate_of(reason) is not None:
        return False
    return not (begins_anew(unique) and (reason.startswith(EVENT) or is_waiting(reason)))


def admit(job: Job, now: float, marks: Mapping[str, str]) -> Transition | None:
    """May this claimed job start? ``None``: yes; else the transition that ends it unstarted.

    Args:
        job: running, just claimed.
        now: seconds since the epoch.
        marks: what is revoked by task name.
    """
    if marks:
        if cancel_mark(job) in marks:  # it was revoked while it ran, and its retry was under way already
            return revoke_unbegun(job, now)
        value = marks.get(REVOKE_MARK + job.task)
        if value is not None:
            mark = Revocation.loads(value)
            if mark.until is None or now < mark.until:
                consumed = (REVOKE_MARK + job.task, value) if mark.once else None
                return _ended_unstarted(job, JobState.REVOKED, now, f"task {job.task} is revoked", consumed)
    if has_expired(job, now):
        return _ended_unstarted(job, JobState.EXPIRED, now, "not started before it expired")
    return None


def cancel_mark(job: Job) -> str:
    """The mark that says that a running job was revoked."""
    return f"{CANCEL_MARK}{job.seq}"


def has_expired(job: Job, now: float) -> bool:
    """Whether ``expires`` passed before the job was started for the first time."""
    started = job.attempt - 1 if job.state is JobState.RUNNING else job.attempt
    return job.expires is not None and job.expires <= now and started <= 0


def expire(job: Job, now: float) -> Transition | None:
    """End a waiting job whose ``expires`` has passed; ``None`` if it has not, or if the job is running or finished."""
    if job.state not in WAITING or not has_expired(job, now):
        return None
    return _ended(job, JobState.EXPIRED, now, "not started before it expired")


def decide(
    job: Job, policy: Policy, outcome: Outcome, now: float, *, draw: float = 0.0, cancelled: bool = False
) -> Transition:
    """What becomes of a running job whose attempt has ended.

    Args:
        job: as it was claimed.
        policy: its retries and how to treat crashes.
        outcome: how the attempt ended.
        now: seconds since the epoch.
        draw: a random number in [0, 1) for jitter.
        cancelled: somebody revoked it while it ran: it is not run again.
    """
    ending = outcome.ending
    if ending == Ending.SUCCEEDED:
        return succeed(job, outcome).transition()
    if ending in (Ending.INTERRUPTED, Ending.SNOOZED, Ending.SUSPENDED, Ending.UNKNOWN):
        return _given_back(job, outcome, now, cancelled)
    return _after_failure(job, policy, outcome, now, draw, cancelled)


def succeed(job: Job, outcome: Outcome) -> Success:
    """The end of a running job that succeeded; no policy has a say in it."""
    # Slices instead of eight fields by name: seq and claim; attempt, base, crashes; started, finished, result.
    return tuple.__new__(Success, outcome[:2] + job[13:16] + outcome[3:6])


def _after_failure(job: Job, policy: Policy, outcome: Outcome, now: float, draw: float, cancelled: bool) -> Transition:
    crashes = job.crashes + (outcome.ending == Ending.CRASHED)
    ended = Transition(
        job.seq,
        JobState.RUNNING,
        outcome.claim,
        JobState.FAILED,
        attempt=job.attempt,
        base=job.base,
        crashes=crashes,
        started=outcome.started,
        finished=outcome.finished,
        record=_record(job, outcome),
    )
    if outcome.ending == Ending.CANCELLED:
        return ended._replace(target=JobState.REVOKED, reason=storable(outcome.message))
    if not _may_run_again(job, policy, outcome, crashes):
        return ended
    if cancelled:
        return ended._replace(target=JobState.REVOKED, reason="revoked while it ran", drop_mark=cancel_mark(job))
    due = now + _wait(job, policy, outcome, crashes, draw)
    return _waiting(ended, due, now)


def _may_run_again(job: Job, policy: Policy, outcome: Outcome, crashes: int) -> bool:
    if outcome.ending == Ending.CRASHED:
        return policy.on_crash == "retry" and crashes < policy.max_crashes
    if outcome.ending == Ending.GAVE_UP or not outcome.retryable:
        return False
    return job.attempt - job.base - crashes <= policy.retries


def _wait(job: Job, policy: Policy, outcome: Outcome, crashes: int, draw: float) -> float:
    if outcome.delay is not None:
        return outcome.delay
    if outcome.ending == Ending.CRASHED:
        return policy.retry.before_next(crashes, draw)
    return policy.retry.before_next(max(1, job.attempt - job.base - crashes), draw)


def _waiting(transition: Transition, due: float, now: float) -> Transition:
    if due > now:
        return transition._replace(target=JobState.SCHEDULED, due=due, started=None, finished=None)
    return transition._replace(target=JobState.READY, started=None, finished=None)


def _given_back(job: Job, outcome: Outcome, now: float, cancelled: bool) -> Transition:
    """The end of an attempt that does not count."""
    back = release(job)._replace(claim=outcome.claim, unbegun=False)
    if cancelled:
        reason = "revoked while it ran"
        return back._replace(target=JobState.REVOKED, finished=now, reason=reason, drop_mark=cancel_mark(job))
    if outcome.ending == Ending.UNKNOWN:
        return back._replace(target=JobState.BLOCKED, reason=UNKNOWN_TASK + job.task)
    if outcome.ending == Ending.SUSPENDED:
        back = back._replace(awaits=outcome.awaits, forget_expiry=job.expires is not None)  # it was started in time
        if outcome.awaits is not None and outcome.delay is None:
            return back._replace(target=JobState.BLOCKED, reason=EVENT + outcome.awaits)
    return _waiting(back, now + (outcome.delay or 0.0), now)


def arrive(job: Job, now: float, *, cancelled: bool = False) -> Job:
    """How a job stands after it was moved to another storage: nobody runs it, and it is in no line of a lock or limit.

    Args:
        job: as it stands where it comes from.
        now: seconds since the epoch.
        cancelled: somebody has revoked it while it ran.
    """
    if job.state is JobState.RUNNING:
        job = job._replace(attempt=job.attempt - 1, owner=None, started=None, progress=None)
        if cancelled:
            return job._replace(state=JobState.REVOKED, finished=now, reason="revoked while it ran")
        return job._replace(state=JobState.READY)
    if job.state is JobState.BLOCKED and gate_of(job.reason or "") is not None:
        return job._replace(state=JobState.READY, reason=None)
    return job


def release(job: Job) -> Transition:
    """Give back a claimed job that no worker has begun; the attempt is not counted."""
    return Transition(
        job.seq,
        JobState.RUNNING,
        job.claim,
        JobState.READY,
        attempt=job.attempt - 1,
        base=job.base,
        crashes=job.crashes,
        unbegun=True,
    )


def revoke_unbegun(job: Job, now: float) -> Transition:
    """End a claimed job that was revoked before a worker began it."""
    return _ended_unstarted(job, JobState.REVOKED, now, "revoked")._replace(drop_mark=cancel_mark(job))


def crashed(job: Job, now: float, details: str, death: Death | None = None) -> Outcome:
    """The outcome of an attempt whose worker or consumer died."""
    outcome = Outcome(job.seq, job.claim, Ending.CRASHED, job.started or now, now, None, "WorkerCrashed", details)
    return outcome._replace(details=details, death=death)


def unblock(job: Job, now: float) -> Transition:
    """Let a blocked job go on, because what it waited for is there."""
    return _waiting(_moved(job, JobState.READY), job.due or now, now)


def revoke(job: Job, now: float, reason: str = "revoked") -> Transition | None:
    """End a waiting job unrun; ``None`` if it is not waiting (running or finished)."""
    if job.state is JobState.RUNNING or job.state in FINISHED:
        return None
    return _ended(job, JobState.REVOKED, now, reason)._replace(drop_mark=cancel_mark(job))


def restore(job: Job, now: float) -> Transition | None:
    """Undo a revocation; ``None`` if the job is not revoked."""
    if job.state is not JobState.REVOKED:
        return None
    return _waiting(_moved(job, JobState.READY), job.due or now, now)._replace(drop_mark=cancel_mark(job))


def requeue(job: Job, now: float, *, from_start: bool = False) -> Transition | None:
    """Run a finished job again at once, with its whole allowance of retries; ``None`` if it has not finished.

    The history stays, and attempts are counted on from it. So do the steps that it has recorded, unless it is to begin
    ``from_start``.
    """
    if job.state not in FINISHED:
        return None
    due = now if job.due is not None and job.due > now else None  # a later one would hold it back once more
    back = _moved(job, JobState.READY)
    back = back._replace(due=due, base=job.attempt, crashes=0, drop_mark=cancel_mark(job))
    return back._replace(forget_expiry=job.expires is not None, forget_steps=from_start)


def reschedule(job: Job, due: float, now: float) -> Transition | None:
    """Give a waiting job another time; ``None`` if it is running, finished or blocked."""
    if job.state not in (JobState.READY, JobState.SCHEDULED):
        return None
    return _waiting(_moved(job, JobState.READY), due, now)._replace(due=due)


# ── jobs that wait for jobs ──────────────────────────────────────────────────────────────────────────────


def unmet(rule: Rule, state: JobState) -> JobState | None:
    """How a dependent ends because a prerequisite ended in ``state``; ``None``: it does not, that end counts as met."""
    if rule is Rule.END:
        return None
    if rule is Rule.FAILURE:
        return None if state in _FAILURES else JobState.REVOKED
    return {JobState.SUCCEEDED: None, JobState.REVOKED: JobState.REVOKED}.get(state, JobState.FAILED)


_FAILURES = frozenset({JobState.FAILED, JobState.EXPIRED})


def depend(job: Job, prior: Job, rule: Rule, now: float) -> Transition | None:
    """What becomes of a waiting job because of the end of a prerequisite; ``None``: that end counts as met.

    Args:
        job: the dependent.
        prior: finished, with its last attempt.
        rule: of the edge between them.
        now: seconds since the epoch.
    """
    target = unmet(rule, prior.state)
    if target is None:
        return None
    if rule is Rule.FAILURE and prior.state is JobState.SUCCEEDED:
        return _ended(job, target, now, f"{_NOT_NEEDED}job {prior.id} ({prior.task}) succeeded")
    why = _why(prior)
    if target is JobState.REVOKED:
        return _ended(job, target, now, why)._replace(drop_mark=cancel_mark(job))
    record = Attempt(job.attempt, Ending.DEPENDENCY, None, now, DependencyFailed.__name__, why)
    return _moved(job, target)._replace(finished=now, record=record)


#: What is kept of the words of the error that stopped a whole plan, in characters.
_LONGEST_WHY = 1_000


def _why(prior: Job) -> str:
    """Why the dependents of a job end that ended without success: because of it, or of what had ended it."""
    if prior.state is JobState.REVOKED:
        inherited = (prior.reason or "").startswith(_NOT_RUN)
        return str(prior.reason) if inherited else f"{_NOT_RUN}job {prior.id} ({prior.task}) was revoked"
    if prior.state is JobState.EXPIRED:
        return f"{_NOT_RUN}job {prior.id} ({prior.task}) was not started before it expired"
    last = prior.error
    if last is not None and last.ending == Ending.DEPENDENCY:
        return last.message
    said = "" if last is None else f": {last.error_type}: {last.message}"
    if len(said) > _LONGEST_WHY:
        said = f"{said[:_LONGEST_WHY]} …"
    return f"{_NOT_RUN}job {prior.id} ({prior.task}) failed{said}"


_NOT_RUN = "not run, because "
_NOT_NEEDED = "not needed: "


def ended_by_another(job: Job) -> bool:
    """Whether a job ended unrun because of one that it waits for: as long as that one stands so, it ends again.

    Args:
        job: finished, with its last attempt.
    """
    if job.state is JobState.REVOKED:
        return (job.reason or "").startswith((_NOT_RUN, _NOT_NEEDED))
    return job.state is JobState.FAILED and job.error is not None and job.error.ending == Ending.DEPENDENCY


def await_others(job: Job, reason: str, *, forget_expiry: bool = False) -> Transition:
    """Block a waiting job until the jobs that it waits for have ended.

    Args:
        reason: see `liteq.plan.reason`.
        forget_expiry: it expires so long after that, and not by itself.
    """
    return _moved(job, JobState.BLOCKED)._replace(reason=reason, forget_expiry=forget_expiry)


def follow_again(job: Job, reason: str) -> Transition:
    """Block a job that had ended because of one that it waits for, and which is about to run again."""
    return _moved(job, JobState.BLOCKED)._replace(reason=reason, drop_mark=cancel_mark(job))


def _moved(job: Job, target: JobState) -> Transition:
    """From where it is to ``target``, with its counters as they are."""
    return Transition(job.seq, job.state, job.claim, target, attempt=job.attempt, base=job.base, crashes=job.crashes)


def _ended(job: Job, target: JobState, now: float, reason: str) -> Transition:
    return _moved(job, target)._replace(finished=now, reason=reason)


def _ended_unstarted(
    job: Job, target: JobState, now: float, reason: str, consume: tuple[str, str] | None = None
) -> Transition:
    return release(job)._replace(target=target, finished=now, reason=reason, consume=consume)


def _record(job: Job, outcome: Outcome) -> Attempt:
    peak_rss, cpu_time, log = outcome.death or Death()
    return Attempt(
        job.attempt,
        Ending(outcome.ending),
        outcome.started,
        outcome.finished,
        storable(outcome.error_type),
        storable(outcome.message),
        storable(outcome.traceback),
        storable(outcome.details),
        peak_rss,
        cpu_time,
        storable(log),
    )


def storable(text: str) -> str:
    """The text with escapes for lone surrogates, which file names bring along and no storage can encode.

    Refusing it would keep the outcome, and all that are settled in the same turn, from ever being stored.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


class Revocation(NamedTuple):
    """What is stored when every call of a task is revoked: until when, and whether for one call only."""

    until: float | None = None
    once: bool = False

    def dumps(self) -> str:
        return json.dumps({"until": self.until, "once": self.once})

    @classmethod
    def loads(cls, text: str) -> Revocation:
        fields = json.loads(text)
        return cls(fields.get("until"), bool(fields.get("once")))
