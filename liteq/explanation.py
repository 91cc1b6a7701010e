"""Why a job is not running, in words: from plain facts to what is to be said, and what to do about it. Pure.

The facts are gathered in `liteq.why`. What holds a job back by itself comes first (its time, what it waits for), then
what holds back whatever stands in its queue, then its place in line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from liteq.gates import LOCK, gate_of, is_rate
from liteq.instants import moment
from liteq.job import FINISHED, Job, JobState
from liteq.lifecycle import EVENT, UNKNOWN_TASK, Revocation, has_expired
from liteq.plan import Link, is_waiting
from liteq.schedule import AFTER_JOB
from liteq.step import Step, StepKind, StepState
from liteq.unique import followed_by_key

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86_400.0
#: A job is put to sleep a moment after it has recorded until when; in seconds.
_ALMOST = 5.0
#: How many holders, queues and the like are named.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that keeps a job from running, or, of one that runs or has ended, what is to be said instead.

    Args:
        code: a word for programs, such as ``"paused"``; it stays what it is.
        text: for people.
        advice: what to do about it; ``""`` where there is nothing to do.
    """

    code: str
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job is not running; see `LiteQ.why`.

    Args:
        job_id: the job.
        task: the name of its task.
        state: where it stands.
        causes: everything that keeps it, the nearest first; there is always one.
    """

    job_id: str
    task: str
    state: JobState
    causes: tuple[Cause, ...]

    def __str__(self) -> str:
        return "\n".join(
            [f"job {self.job_id} of {self.task}: {self.state}", *(f"  {cause.text}" for cause in self.causes)]
        )


@dataclass(frozen=True, slots=True)
class ConsumerFacts:
    """What is known of a consumer: ``workers`` are those that could run the job, without what is reserved for other
    queues and idle; ``queues`` is ``None`` where it serves all; ``running`` counts its jobs."""

    number: int
    alive: bool
    pid: object = None
    host: object = None
    workers: int = 1
    queues: tuple[str, ...] | None = None
    running: int = 0

    def serves(self, queue: str) -> bool:
        """Whether it lives, and takes jobs of this queue."""
        return self.alive and (self.queues is None or queue in self.queues)

    def __str__(self) -> str:
        return f"consumer {self.number} (process {self.pid} on {self.host})"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a job's circumstances.

    Args:
        job: with its history.
        now: seconds since the epoch.
        paused: its queue is.
        revoked: what is said of every call of its task.
        told: it was revoked while it ran.
        consumers: those that live, and those that have died and were not cleared away yet.
        ahead: how many ready jobs of its queue come before it.
        holders: who holds the lock or limit that it waits for, in words.
        slots: how many may hold it.
        rate: how often jobs may start, where that is what it waits for, such as ``"10/s"``.
        waiting: how many jobs and callers wait for the same.
        prior: the job that it waits for, if that is one.
        suspended: the step at which it sleeps, or waits for an event until it gives up.
        missing: of the jobs that it waits for as a part of a workflow, those that have not ended.
        root: the job at the root of its end, where it ended because of one that it waits for.
    """

    job: Job
    now: float
    paused: bool = False
    revoked: Revocation | None = None
    told: bool = False
    consumers: tuple[ConsumerFacts, ...] = ()
    ahead: int = 0
    holders: tuple[str, ...] = ()
    slots: int = 1
    rate: str | None = None
    waiting: int = 0
    prior: Job | None = None
    suspended: Step | None = None
    missing: tuple[Link, ...] = ()
    root: Job | None = None


def explain(facts: Facts) -> Explanation:
    """Everything that keeps this job from running, the nearest first."""
    job = facts.job
    if job.state in FINISHED:
        causes: Iterator[Cause] = _ended(facts)
    elif job.state is JobState.RUNNING:
        causes = _running(facts)
    else:
        causes = _waiting(facts)
    return Explanation(job.id, job.task, job.state, tuple(causes))


def prior_id(job: Job) -> str | None:
    """The id of the job that a blocked one waits for; ``None`` where it waits for something else."""
    why = job.reason or ""
    if job.state is not JobState.BLOCKED:
        return None
    return why.removeprefix(AFTER_JOB) if why.startswith(AFTER_JOB) else followed_by_key(why)


# ── it waits ─────────────────────────────────────────────────────────────────────────────────────────────


def _waiting(facts: Facts) -> Iterator[Cause]:
    job = facts.job
    if has_expired(job, facts.now):
        text = f"it was to be started {_ago(facts, job.expires)} at the latest, and will end as expired"
        yield Cause("expired", text, "" if facts.consumers else "a consumer that starts ends it")
    if job.state is JobState.SCHEDULED:
        yield _scheduled(facts)
    elif job.state is JobState.BLOCKED:
        yield _blocked(facts)
    held_up = list(_held_up(facts))
    yield from held_up
    if job.state is JobState.READY and not held_up:
        yield _in_line(facts)


def _scheduled(facts: Facts) -> Cause:
    job = facts.job
    if job.due is None or job.due <= facts.now:
        return Cause("due", f"it is due since {_ago(facts, job.due)}; the next round of a consumer makes it ready")
    when = f"{_in(job.due - facts.now)}, at {_clock(job.due)}"
    if facts.suspended is not None:
        return _suspended(facts.suspended, job, when)
    sooner = f"app.result({job.id!r}).reschedule() has it run at once"
    if job.error is not None and job.attempt > job.base:
        error = job.error
        text = f"its attempt {error.number} did not succeed ({_what(error.error_type, error.message)}); the next one is"
        return Cause("retry", f"{text} due {when}", sooner)
    return Cause("scheduled", f"it is due {when}", sooner)


def _suspended(step: Step, job: Job, when: str) -> Cause:
    if step.kind is StepKind.SLEEP:
        return Cause("sleep", f"it sleeps (task.sleep), and goes on {when}")
    return Cause("event", f"it waits for the event {step.name!r}, and gives up {when}", _send(job, step.name))


def _send(job: Job, event: str) -> str:
    return f"liteq send APP {job.id} {event} --data JSON"


def suspended_at(job: Job, steps: Sequence[Step]) -> Step | None:
    """The step for which a scheduled job has given its worker back; ``None``: it is scheduled for another reason."""
    last = steps[-1] if steps and job.state is JobState.SCHEDULED else None
    if last is None or last.due is None or job.due is None or abs(last.due - job.due) > _ALMOST:
        return None
    return last if last.kind is StepKind.SLEEP or last.state is StepState.WAITING else None


def _blocked(facts: Facts) -> Cause:
    job = facts.job
    why = job.reason or ""
    gate = gate_of(why)
    if gate is not None:
        return _at_gate(facts, gate)
    if why.startswith(UNKNOWN_TASK):
        return Cause(
            "unknown_task",
            f"no consumer that has come upon it knows a task named {why.removeprefix(UNKNOWN_TASK)!r}",
            "import the module that defines it where the app is made, or give a renamed task aliases=(the old name,); "
            "then restart the consumers",
        )
    if why.startswith(EVENT):
        event = why.removeprefix(EVENT)
        return Cause("event", f"it waits for the event {event!r}", _send(job, event))
    if is_waiting(why):
        return _after_others(facts)
    if facts.prior is not None or prior_id(job) is not None:
        return _after_another(facts)
    return Cause("blocked", f"it {why}" if why.startswith("waits ") else why or "nobody says why")


def _at_gate(facts: Facts, gate: str) -> Cause:
    kind, _, name = gate.partition(":")
    if is_rate(gate):
        wait = f"; {facts.waiting} wait{'s'[: facts.waiting == 1]} for it" if facts.waiting else ""
        text = f"the rate limit of {name}{'' if facts.rate is None else f', {facts.rate},'} is used up{wait}"
        return Cause("rate_limit", text, "its turn comes by itself; liteq locks APP shows when the next one starts")
    what = f"the lock {name!r}" if gate.startswith(LOCK) else f"the {kind} of {name}"
    if not facts.holders:
        return Cause(kind, f"it waits for {what}, in line with others", "liteq locks APP shows how many wait")
    held = f"held by {_some(facts.holders)}"
    room = "" if facts.slots == 1 else f" ({len(facts.holders)} of {facts.slots} slots are taken)"
    return Cause(kind, f"it waits for {what}, {held}{room}", "its turn comes when they end; liteq locks APP shows all")


def _after_others(facts: Facts) -> Cause:
    if not facts.missing:
        return Cause("jobs", f"it {facts.job.reason}")
    first = facts.missing[0]
    waits = _some([f"{one.id} of {one.task}, which is {one.state}" for one in facts.missing])
    which = "job" if len(facts.missing) == 1 else f"{len(facts.missing)} jobs:"
    return Cause("jobs", f"it waits for the end of {which} {waits}", f"liteq why APP {first.id}")


def _after_another(facts: Facts) -> Cause:
    job, prior = facts.job, facts.prior
    name = prior_id(job) or (prior.id if prior is not None else "")
    by_key = followed_by_key(job.reason or "") is not None
    code, role = ("unique", "which has its unique key") if by_key else ("schedule", "its schedule's run before")
    stands = "" if prior is None else f" and is {prior.state}"
    return Cause(code, f"it waits for the end of job {name}, {role}{stands}", f"liteq why APP {name}")


def _held_up(facts: Facts) -> Iterator[Cause]:
    """What holds up whatever stands in its queue, or is a call of its task."""
    job, queue = facts.job, facts.job.queue
    if facts.paused:
        yield Cause("paused", f"its queue {queue!r} is paused", f"liteq resume APP {queue}")
    if facts.revoked is not None:
        until = "" if facts.revoked.until is None else f" until {_clock(facts.revoked.until)}"
        which = "the next call" if facts.revoked.once else "every call"
        text = f"{which} of its task is revoked{until}, so in its turn it ends as revoked"
        yield Cause("task_revoked", text, f"app.restore_all({job.task!r})")
    alive = [one for one in facts.consumers if one.alive]
    if not alive:
        dead = f"; {len(facts.consumers)} died" if facts.consumers else ""
        yield Cause("no_consumer", f"no consumer is alive{dead}", "start one: liteq_consumer APP")
    elif not any(one.serves(queue) for one in alive):
        served = sorted({name for one in alive for name in one.queues or ()})
        text = f"no live consumer serves its queue {queue!r}; there {_number(len(alive))} for {_some(served)}"
        yield Cause("queue_unserved", text, f"start one with -q {queue}, or one without -q, which serves all")


def _in_line(facts: Facts) -> Cause:
    serving = [one for one in facts.consumers if one.serves(facts.job.queue)]
    workers, running = sum(one.workers for one in serving), sum(one.running for one in serving)
    taken = _taken(min(workers, running), workers)
    more = "more workers (-w) or consumers; priority= lets some jobs come before others"
    if facts.ahead:
        jobs = f"{facts.ahead} job{'s are' if facts.ahead > 1 else ' is'} before it in its queue"
        return Cause("behind", f"{jobs} {facts.job.queue!r}; {taken}", more)
    if running >= workers:
        return Cause("busy", f"it is the next of its queue {facts.job.queue!r}; {taken}", more)
    text = f"it is the next of its queue {facts.job.queue!r}, and a consumer takes it in a moment"
    return Cause("next", text, "ask again; if it stays so, liteq health APP and the consumer's log tell more")


def _taken(number: int, workers: int) -> str:
    if workers == 1:
        return f"the one worker that serves it is {'taken' if number else 'free'}"
    return f"{'all' if number == workers else f'{number} of the'} {workers} workers that serve it are taken"


# ── it runs ──────────────────────────────────────────────────────────────────────────────────────────────


def _running(facts: Facts) -> Iterator[Cause]:
    job = facts.job
    consumer = next((one for one in facts.consumers if one.number == job.owner), None)
    since = f"for {_span(facts.now - (job.started or facts.now))}, in attempt {job.attempt}"
    if not job.owner:
        yield Cause("running", f"it has run {since}, in the program that enqueued it (immediate mode)")
    elif consumer is not None and consumer.alive:
        yield Cause("running", f"it has run {since}, on {consumer}", f"liteq stack APP {job.id} shows what it does")
    else:
        yield _orphaned(facts, consumer)
    if facts.told:
        text = "it was revoked while it ran: it is told to stop, and will not be run again"
        yield Cause("told_to_stop", text, f"liteq revoke APP {job.id} --terminate stops it")


def _orphaned(facts: Facts, consumer: ConsumerFacts | None) -> Cause:
    who = f"consumer {facts.job.owner}" if consumer is None else str(consumer)
    if any(one.alive for one in facts.consumers):
        advice = "another consumer puts it back to work within seconds"
    else:
        advice = "the next consumer that starts puts it back to work: liteq_consumer APP"
    return Cause("consumer_died", f"it ran on {who}, which has died", advice)


# ── it has ended ─────────────────────────────────────────────────────────────────────────────────────────


def _ended(facts: Facts) -> Iterator[Cause]:
    job, when = facts.job, _ago(facts, facts.job.finished)
    again = f"liteq retry APP {job.id} runs it again" if facts.root is None else _back(facts.root)
    if job.state is JobState.SUCCEEDED:
        took = "" if job.started is None or job.finished is None else f", after {_span(job.finished - job.started)}"
        yield Cause("succeeded", f"it succeeded {when}{took}", again)
    elif job.state is JobState.FAILED:
        last = job.error
        what = "" if last is None else f": {_what(last.error_type, last.message)}"
        tries = f"{job.attempt} attempt{'s'[: job.attempt != 1]}"
        yield Cause("failed", f"it failed {when}, after {tries}{what}", f"liteq show APP {job.id} tells all; {again}")
    elif job.state is JobState.REVOKED:
        undone = f"liteq restore APP {job.id}" if facts.root is None else _back(facts.root)
        yield Cause("revoked", f"it ended {when}: {job.reason or 'revoked'}", undone)
    else:
        yield Cause("expired", f"it ended {when}: {job.reason or 'not started before it expired'}", again)


def _back(root: Job) -> str:
    """How a job comes back that ended because of another one: by itself it would end again, with the same words."""
    if root.state is JobState.SUCCEEDED:
        return ""  # it was to be called if that one failed
    verb = "restore" if root.state is JobState.REVOKED else "retry"
    return f"liteq {verb} APP {root.id} brings it back: it ended because of that job"


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────


def _what(error_type: str, message: str) -> str:
    first = message.split("\n", 1)[0]
    return f"{error_type}: {first[:200]}" if first else error_type


def _some(names: Sequence[str]) -> str:
    """The first few of them."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "") or "none"


def _number(consumers: int) -> str:
    return "is one" if consumers == 1 else f"are {consumers}"


def _in(seconds: float) -> str:
    return f"in {_span(seconds)}"


def _ago(facts: Facts, instant: float | None) -> str:
    """How long ago, and when."""
    if instant is None:
        return "an unknown time"
    return f"{_span(facts.now - instant)} ago ({_clock(instant)})"


def _span(seconds: float) -> str:
    """About how long."""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for limit, unit, word in ((2 * _MINUTE, 1.0, "s"), (2 * _HOUR, _MINUTE, "min"), (2 * _DAY, _HOUR, "h")):
        if seconds < limit:
            return f"{seconds / unit:.1f} {word}" if seconds < 10 else f"{seconds / unit:.0f} {word}"
    return f"{seconds / _DAY:.0f} days"


def _clock(instant: float) -> str:
    return moment(instant).isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC")
