"""Plans in memory: who waits for whom, in plain dicts. See `liteq.plan` and `liteq.storage.plans`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from threading import RLock
from typing import NamedTuple

from liteq import lifecycle, plan
from liteq.job import FINISHED, WAITING, Attempt, Job, JobState
from liteq.lifecycle import Transition
from liteq.plan import LONGEST_TRACEBACK, Input, Inputs, Link, Plan, Rule, Terms
from liteq.storage.base import Added
from liteq.storage.plans import NOTHING, Changes, Ledger, Plans, Resolved, look_at_new, resolve, waits_for_itself


class Wait(NamedTuple):
    """An edge, seen from its dependent."""

    prior: int
    rule: Rule
    passes: bool


class Dependent(NamedTuple):
    """A job that waits, or has waited, for others."""

    terms: Terms
    edges: tuple[Wait, ...] = ()
    missing: int = 0
    cause: int | None = None


@dataclass(frozen=True, slots=True)
class Household:
    """What the plans need of their storage.

    Args:
        lock: held whenever anything is read or changed.
        rows, history, dependents: the storage's own, by ``seq``.
        put: stores a row in the place of an older one.
        move: applies a transition, if it holds.
    """

    lock: RLock
    rows: Mapping[int, Job]
    history: Mapping[int, tuple[Attempt, ...]]
    dependents: dict[int, Dependent]
    put: Callable[[Job], None]
    move: Callable[[Transition], bool]


class MemoryPlans(Plans, Ledger):
    """The plans of one MemoryStorage; what is of `Ledger` is called under the storage's lock.

    Args:
        house: the storage.
    """

    def __init__(self, house: Household) -> None:
        self._house = house
        self._of = house.dependents
        #: The same edges by prerequisite, then by dependent, and of how many dependents: a storage may be restored.
        self._after: dict[int, dict[int, list[Wait]]] = {}
        self._known = 0

    # ── called by the storage, under its lock ────────────────────────────────────────────────────────

    def refuse_circles(self, added: Added, given: Plan) -> None:
        """Nothing is stored yet.

        Raises:
            ConfigurationError: one that is to be replaced would wait for itself, perhaps by way of others.
        """
        own = added.own
        edges = _edges(added, given, own)
        for job in [added[position] for position in added.replaced & own]:
            seen: set[int] = set()
            waiting = [edge.prior for edge in edges[job.seq]]
            while waiting:
                seq = waiting.pop()
                if seq == job.seq:
                    raise waits_for_itself(job)
                if seq not in seen:
                    seen.add(seq)
                    standing = self._of[seq].edges if seq in self._of else ()
                    waiting += [edge.prior for edge in edges.get(seq, standing)]

    def add(self, added: Added, given: Plan, now: float) -> tuple[set[int], Resolved]:
        """Note what the jobs that were just stored wait for, and block them.

        Returns:
            Which were blocked, and what followed.
        """
        own = added.own
        fresh = {added[position].seq: terms for position, terms in given.terms.items() if position in own}
        edges = _edges(added, given, own)
        self._index()
        for seq, terms in fresh.items():
            missing = sum(not self._has_finished(edge.prior) for edge in edges[seq])
            self._of[seq] = Dependent(terms, tuple(edges[seq]), missing)
            self._file(seq, edges[seq])
        blocked = {
            seq for seq in fresh if self._of[seq].missing and self._house.rows[seq].state is not JobState.BLOCKED
        }
        for seq in blocked:
            reason, later = self.reason(seq), self.expires_later(seq)
            self._house.move(lifecycle.await_others(self._house.rows[seq], reason or "", forget_expiry=later))
        return blocked, look_at_new(self, fresh, now) if fresh else NOTHING

    def _file(self, seq: int, edges: Iterable[Wait]) -> None:
        for edge in edges:
            self._after.setdefault(edge.prior, {}).setdefault(seq, []).append(edge)
        self._known += 1

    def _index(self) -> None:
        if self._known != len(self._of):
            self._after, self._known = {}, 0
            for seq, dependent in self._of.items():
                self._file(seq, dependent.edges)

    def _edges_to(self, prior: int) -> Iterator[tuple[int, Wait]]:
        self._index()
        for seq, edges in self._after.get(prior, {}).items():
            for edge in edges:
                yield seq, edge

    def look(self, dependents: Collection[int], now: float) -> Resolved:
        """Do what follows for dependents that were just taken in, for whom others that were there have ended."""
        return look_at_new(self, dependents, now) if dependents else NOTHING

    def follow(self, done: Changes, now: float) -> Resolved:
        """Do what follows for dependents."""
        return resolve(self, done, now) if self._of else NOTHING

    def with_inputs(self, jobs: list[Job]) -> list[Job]:
        """Claimed jobs with what is passed to them; without those that have to wait again, because a prerequisite runs
        again since an event woke them: these are blocked, as if they had not been claimed.
        """
        if not self._of:
            return jobs
        held_back = {job.seq for job in jobs if job.seq in self._of and self._of[job.seq].missing}
        for seq in held_back:
            row = self._house.rows[seq]
            row = row._replace(state=JobState.BLOCKED, reason=self.reason(seq), owner=None, started=None)
            self._house.put(row._replace(claim=row.claim - 1, attempt=row.attempt - 1))
        return [self._with_inputs(job) if job.seq in self._of else job for job in jobs if job.seq not in held_back]

    def _with_inputs(self, job: Job) -> Job:
        dependent = self._of[job.seq]
        if dependent.terms.shape is None:
            return job
        values = tuple(self._passed(edge.prior) for edge in dependent.edges if edge.passes)
        return job._replace(inputs=Inputs(dependent.terms.shape, values))

    def _passed(self, seq: int) -> Input:
        job = self.finished_job(seq)
        if job is None:
            return ()
        if job.state is JobState.SUCCEEDED:
            return job.result
        last = job.error
        said = ("", "", "") if last is None else (last.error_type, last.message, last.traceback[-LONGEST_TRACEBACK:])
        return (job.id, str(job.state), job.reason or "", *said)

    def is_needed(self, job: Job) -> bool:
        """Whether a finished job may not be removed yet: somebody waits for it, or failed and would take its result
        again if he were requeued.
        """
        for dependent, edge in self._edges_to(job.seq):
            row = self._house.rows[dependent]
            if row.state not in FINISHED:
                return True
            if row.state is JobState.FAILED and edge.passes and job.state is JobState.SUCCEEDED:
                return True
        return False

    def forget(self, seqs: Iterable[int]) -> None:
        """These jobs are gone."""
        self._index()
        for seq in seqs:
            dependent = self._of.pop(seq, None)
            self._known -= dependent is not None
            for edge in dependent.edges if dependent is not None else ():
                after = self._after.get(edge.prior, {})
                after.pop(seq, None)
                if not after:
                    self._after.pop(edge.prior, None)

    # ── the ledger ───────────────────────────────────────────────────────────────────────────────────

    def count(self, priors: Collection[int], by: int) -> dict[int, int]:
        touched = {}
        for prior in priors:
            for seq, _ in self._edges_to(prior):
                touched[seq] = self._of[seq].missing + by
                self._of[seq] = self._of[seq]._replace(missing=touched[seq])
        return touched

    def broken(self, priors: Mapping[int, JobState]) -> list[tuple[int, int, Rule]]:
        found = [
            (seq, prior, edge.rule)
            for prior, state in priors.items()
            for seq, edge in self._edges_to(prior)
            if lifecycle.unmet(edge.rule, state) is not None
        ]
        return sorted(found)

    def first_broken(self, seq: int) -> tuple[int, Rule] | None:
        for edge in self._of[seq].edges:
            prior = self.finished_job(edge.prior)
            if prior is not None and lifecycle.unmet(edge.rule, prior.state) is not None:
                return edge.prior, edge.rule
        return None

    def missing(self, seqs: Collection[int]) -> dict[int, int]:
        return {seq: self._of[seq].missing for seq in seqs if seq in self._of}

    def caused_by(self, roots: Collection[int]) -> list[int]:
        return sorted(seq for seq, one in self._of.items() if one.cause in roots)

    def cause(self, seq: int) -> int | None:
        return self._of[seq].cause if seq in self._of else None

    def set_cause(self, seqs: Collection[int], root: int | None) -> None:
        for seq in seqs:
            if seq in self._of:
                self._of[seq] = self._of[seq]._replace(cause=root)

    def standing(self, seqs: Collection[int], *, waiting: bool = False) -> list[Job]:
        rows = [self._house.rows[seq]._replace(payload=b"") for seq in sorted(seqs)]
        return [row for row in rows if not waiting or row.state in WAITING]

    def finished_job(self, seq: int) -> Job | None:
        row = self._house.rows.get(seq)
        if row is None or row.state not in FINISHED:
            return None
        attempts = self._house.history.get(seq, ())
        return row._replace(attempts=() if row.state is JobState.SUCCEEDED else attempts[-1:])

    def reason(self, seq: int) -> str | None:
        priors = sorted({edge.prior for edge in self._of[seq].edges if not self._has_finished(edge.prior)})
        return None if not priors else plan.reason(self._house.rows[priors[0]].id, len(priors) - 1)

    def _has_finished(self, seq: int) -> bool:
        row = self._house.rows.get(seq)
        return row is None or row.state in FINISHED

    def expires_later(self, seq: int) -> bool:
        return self._of[seq].terms.lasts is not None

    def move(self, transition: Transition) -> bool:
        return self._house.move(transition)

    def release(self, seqs: Collection[int], now: float) -> None:
        for seq in seqs:
            row = self._house.rows[seq]
            if row.state is JobState.BLOCKED and plan.is_waiting(row.reason):
                terms = self._of[seq].terms
                due = row.due if terms.delay is None else max(row.due or 0.0, now + terms.delay)
                expires = row.expires if terms.lasts is None else now + terms.lasts
                state = JobState.READY if due is None or due <= now else JobState.SCHEDULED
                self._house.put(row._replace(state=state, due=due, expires=expires, reason=None))

    # ── questions ────────────────────────────────────────────────────────────────────────────────────

    def jobs(self, seqs: Iterable[int]) -> list[Job]:
        with self._house.lock:
            return self.standing({seq for seq in seqs if seq in self._house.rows})

    def steps(self, seqs: Iterable[int]) -> list[tuple[int, str]]:
        with self._house.lock:
            found: set[int] = set()
            waiting = list(seqs)
            while waiting:
                seq = waiting.pop()
                if seq not in found:
                    found.add(seq)
                    waiting += [edge.prior for edge in self._of[seq].edges] if seq in self._of else ()
            return [(seq, self._house.rows[seq].id) for seq in sorted(found) if seq in self._house.rows]

    def awaited(self, seqs: Iterable[int], limit: int) -> frozenset[tuple[int, int, Rule]]:
        with self._house.lock:
            ahead = deque(seqs)
            seen, found = set(ahead), set()
            while ahead:
                seq = ahead.popleft()
                for edge in self._of[seq].edges if seq in self._of else ():
                    if self._has_finished(edge.prior):
                        continue
                    found.add((seq, edge.prior, edge.rule))
                    if len(found) >= limit:
                        return frozenset(found)
                    if edge.prior not in seen:
                        seen.add(edge.prior)
                        ahead.append(edge.prior)
            return frozenset(found)

    def prerequisites(self, seq: int) -> list[Link]:
        with self._house.lock:
            edges = self._of[seq].edges if seq in self._of else ()
            return [self._link(edge.prior, edge.rule) for edge in edges]

    def dependents(self, seq: int) -> list[Link]:
        with self._house.lock:
            edges = sorted(self._edges_to(seq), key=lambda one: one[0])
            return [self._link(dependent, edge.rule) for dependent, edge in edges]

    def _link(self, seq: int, rule: Rule) -> Link:
        row = self._house.rows.get(seq)
        return Link(seq, "", "", None, rule) if row is None else Link(seq, row.id, row.task, str(row.state), rule)


def _edges(added: Added, given: Plan, own: Collection[int]) -> dict[int, list[Wait]]:
    """What each job that was given, or is replaced, waits for from now on, by ``seq``."""
    edges: dict[int, list[Wait]] = {added[position].seq: [] for position in own}
    for edge in given.edges:
        if edge.job in own:
            prior = added[~edge.prior].seq if edge.prior < 0 else edge.prior
            edges[added[edge.job].seq].append(Wait(prior, edge.rule, edge.passes))
    return edges
