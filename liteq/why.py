"""Gathering what is to be known of a job that does not run; what is said of it is decided in `liteq.explanation`."""

from __future__ import annotations

from collections import Counter, defaultdict

from liteq.engine import Engine
from liteq.explanation import ConsumerFacts, Explanation, Facts, explain, prior_id, suspended_at
from liteq.gates import gate_of
from liteq.job import FINISHED, Job, JobState
from liteq.lifecycle import PAUSE_MARK, REVOKE_MARK, Revocation, ended_by_another, unmet
from liteq.limits import Holder, holders_of
from liteq.plan import Link, is_waiting
from liteq.storage.base import Owner
from liteq.storage.gates import GateState


def why(engine: Engine, job_id: str) -> Explanation:
    """See `LiteQ.why`."""
    job = engine.job(job_id)
    while True:
        facts = _gathered(engine, job)
        again = engine.job(job_id)
        if (again.state, again.claim, again.reason) == (job.state, job.claim, job.reason):
            return explain(facts)
        job = again  # it has moved meanwhile: what was gathered may be about two states


def _gathered(engine: Engine, job: Job) -> Facts:
    now = engine.clock.now()
    if job.state in FINISHED:
        return Facts(job, now, root=_root(engine, job))
    gate = _gate(engine, job)
    prior = prior_id(job)
    mark = f"{PAUSE_MARK}{job.queue}"
    return Facts(
        job,
        now,
        paused=mark in engine.storage.marks(mark),
        revoked=_revoked(engine, job, now),
        told=job.state is JobState.RUNNING and engine.is_told(job),
        consumers=_consumers(engine, job.queue),
        ahead=engine.storage.ahead(job.seq) if job.state is JobState.READY else 0,
        holders=() if gate is None else tuple(_in_words(one) for one in holders_of(engine.storage, gate)),
        slots=1 if gate is None else gate.slots,
        rate=None if gate is None or gate.rate is None else gate.rate.text,
        waiting=0 if gate is None else gate.waiting,
        prior=None if prior is None else engine.storage.get(prior),
        suspended=suspended_at(job, engine.storage.steps(job.seq)) if job.state is JobState.SCHEDULED else None,
        missing=_missing(engine, job),
    )


def _root(engine: Engine, job: Job) -> Job | None:
    """The job because of which a finished one ended unrun; ``None``: it ended by itself."""
    root: Job | None = None
    while ended_by_another(root or job):
        prior = _broken(engine, root or job)
        if prior is None:
            break
        root = prior
    return root


def _broken(engine: Engine, job: Job) -> Job | None:
    """The first job that this one waits for and that has ended against the rule; ``None``: there is none any more."""
    links = engine.storage.plans.prerequisites(job.seq)
    ended = ((link, JobState(link.state)) for link in links if link.state is not None and link.state in FINISHED)
    link = next((link for link, state in ended if unmet(link.rule, state) is not None), None)
    return None if link is None else engine.storage.get(link.id)


def _missing(engine: Engine, job: Job) -> tuple[Link, ...]:
    """The jobs that a blocked one waits for and that have not ended."""
    if job.state is not JobState.BLOCKED or not is_waiting(job.reason):
        return ()
    links = engine.storage.plans.prerequisites(job.seq)
    missing = {link.seq: link for link in links if link.state is not None and link.state not in FINISHED}
    return tuple(missing.values())  # one whose result is passed twice is one job


def _revoked(engine: Engine, job: Job, now: float) -> Revocation | None:
    definition = engine.tasks.get(job.task)
    key = REVOKE_MARK + (job.task if definition is None else definition.name)
    value = engine.storage.marks(key).get(key)
    found = None if value is None else Revocation.loads(value)
    return None if found is None or (found.until is not None and found.until <= now) else found


def _consumers(engine: Engine, queue: str) -> tuple[ConsumerFacts, ...]:
    running: dict[int | None, Counter[str]] = defaultdict(Counter)
    for one in engine.storage.standing(()).values():
        if one.state is JobState.RUNNING:
            running[one.owner][one.queue] += 1
    owners = [owner for owner in engine.storage.owners() if "worker_type" in owner.info]
    return tuple(_consumer(owner, running[owner.number], queue) for owner in owners)


def _consumer(owner: Owner, running: Counter[str], queue: str) -> ConsumerFacts:
    told, queues, reserved = owner.info, owner.info.get("queues"), owner.info.get("reserved")
    workers = told.get("workers")
    kept = reserved.items() if isinstance(reserved, dict) else ()
    idle = sum(max(0, number - running[name]) for name, number in kept if name != queue)
    return ConsumerFacts(
        owner.number,
        owner.alive,
        told.get("pid"),
        told.get("host"),
        workers - idle if isinstance(workers, int) else 1,
        tuple(map(str, queues)) if isinstance(queues, (list, tuple)) else None,
        running.total(),
    )


def _gate(engine: Engine, job: Job) -> GateState | None:
    """The gate in whose line a blocked job stands."""
    gate = gate_of(job.reason or "") if job.state is JobState.BLOCKED else None
    states = [] if gate is None else engine.storage.gates.states(gate)
    return next((one for one in states if one.name == gate), None)


def _in_words(holder: Holder) -> str:
    if holder.job_id is not None:
        return f"job {holder.job_id} of {holder.task}"
    process = holder.process or {}
    return f"process {process.get('pid')} on {process.get('host')}"
