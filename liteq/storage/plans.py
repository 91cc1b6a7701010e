"""The part of the storage contract that is about plans: which jobs wait for which others. See `liteq.plan`.

Edges are stored with their jobs, by `Storage.add`. What follows from an end (or from a requeue) is worked out here, by
one algorithm for every storage, inside the transaction that brought it about: `resolve`. After each transaction

- ``missing`` of a dependent is the number of its edges whose prerequisite has not finished (one that is gone has);
- a dependent that is ready or scheduled misses nothing;
- one that is blocked because of its edges misses something, and none of its prerequisites has ended so that its rule
  forbids it to run;
- one that ended because of a prerequisite has a *cause*: the job at the root of it, which alone can bring it back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from liteq import gates, lifecycle
from liteq.errors import ConfigurationError
from liteq.job import FINISHED, Job, JobState
from liteq.lifecycle import Transition
from liteq.plan import Link, Rule, is_waiting

_RISEN = frozenset({JobState.READY, JobState.SCHEDULED})


def waits_for_itself(job: Job) -> ConfigurationError:
    """The refusal of a call that would replace what its own prerequisites wait for."""
    return ConfigurationError(
        f"nothing was enqueued: this call of {job.task} replaces job {job.id}, which has its unique key, and is to "
        "wait for jobs that wait for that one: it would wait for itself"
    )


class Plans(ABC):
    """Questions about the plans in one storage; none blocks writers."""

    @abstractmethod
    def jobs(self, seqs: Iterable[int]) -> list[Job]:
        """These jobs, in the order of ``seq``, without payload or history; those that are gone are left out."""

    @abstractmethod
    def steps(self, seqs: Iterable[int]) -> list[tuple[int, str]]:
        """These jobs and all that they wait for, directly or not, by ``seq`` and id, in the order of ``seq``."""

    @abstractmethod
    def awaited(self, seqs: Iterable[int], limit: int) -> frozenset[tuple[int, int, Rule]]:
        """What these jobs still wait for, and what that waits for, and so on: the edges whose prerequisite has not
        finished, as dependent, prerequisite, rule.

        Args:
            limit: how many are enough; which ones a storage leaves out is its own affair.
        """

    @abstractmethod
    def prerequisites(self, seq: int) -> list[Link]:
        """What a job waits for, or waited for, in the order in which results are passed."""

    @abstractmethod
    def dependents(self, seq: int) -> list[Link]:
        """The jobs that wait, or waited, for this one, in the order of ``seq``."""


class Ledger(ABC):
    """What `resolve` asks of a storage, and has it do, inside one transaction."""

    @abstractmethod
    def count(self, priors: Collection[int], by: int) -> dict[int, int]:
        """Change by so much, for each edge to one of ``priors``, what its dependent misses.

        Returns:
            What each of those dependents misses now.
        """

    @abstractmethod
    def broken(self, priors: Mapping[int, JobState]) -> list[tuple[int, int, Rule]]:
        """The edges to these finished jobs whose rule is not met: dependent, prerequisite, rule; by dependent."""

    @abstractmethod
    def first_broken(self, seq: int) -> tuple[int, Rule] | None:
        """The first of a dependent's own edges whose prerequisite has finished against its rule."""

    @abstractmethod
    def missing(self, seqs: Collection[int]) -> dict[int, int]:
        """Those of these jobs that are dependents, and what each misses."""

    @abstractmethod
    def caused_by(self, roots: Collection[int]) -> list[int]:
        """The jobs whose cause is one of these, in the order of ``seq``."""

    @abstractmethod
    def cause(self, seq: int) -> int | None:
        """Because of which job a dependent ended."""

    @abstractmethod
    def set_cause(self, seqs: Collection[int], root: int | None) -> None:
        """Note it."""

    @abstractmethod
    def standing(self, seqs: Collection[int], *, waiting: bool = False) -> list[Job]:
        """These jobs as they stand, in the order of ``seq``, without payload or history.

        Args:
            waiting: only those that have neither begun nor ended.
        """

    @abstractmethod
    def finished_job(self, seq: int) -> Job | None:
        """A finished job with at least its last attempt."""

    @abstractmethod
    def reason(self, seq: int) -> str | None:
        """Why this dependent is to be blocked; see `liteq.plan.reason`. ``None``: it misses nothing."""

    @abstractmethod
    def expires_later(self, seq: int) -> bool:
        """Whether a dependent's expiry counts from the end of its last prerequisite."""

    @abstractmethod
    def move(self, transition: Transition) -> bool:
        """Apply a transition, which holds; False if it would bring a job back whose unique key somebody has by now."""

    @abstractmethod
    def release(self, seqs: Collection[int], now: float) -> None:
        """Make those of these ready, or scheduled, that are blocked because of their edges; delays count from now."""


class Changes(NamedTuple):
    """What a transaction has done so far: by ``seq``, the jobs that ended and how, those that had finished and will run
    again, and those that have come to be ready or scheduled."""

    ended: dict[int, JobState]
    reopened: set[int]
    risen: set[int]


class Resolved(NamedTuple):
    """What followed: the jobs that moved; those of them that are over; and of these, with the transition that did it,
    whose end is to be told: not that of error handlers that were not needed."""

    moved: set[int]
    over: set[int]
    ended: list[tuple[Job, Transition]]

    def joined(self, other: Resolved, moved: Collection[int] = ()) -> Resolved:
        """All of both, and others that moved."""
        return Resolved(self.moved | other.moved | set(moved), self.over | other.over, self.ended + other.ended)


NOTHING = Resolved(set(), set(), [])


def changes(moves: Iterable[Transition]) -> Changes:
    """What transitions that were applied have changed, as far as it matters here."""
    found = Changes({}, set(), set())
    for move in moves:
        if move.target in FINISHED:
            if move.source not in FINISHED:
                found.ended[move.seq] = move.target
            continue
        if move.source in FINISHED and found.ended.pop(move.seq, None) is None:
            found.reopened.add(move.seq)
        if move.target in _RISEN or move.awaits is not None:  # which may have come already
            found.risen.add(move.seq)
    return found


def resolve(ledger: Ledger, done: Changes, now: float) -> Resolved:
    """Do for dependents what follows from what a transaction has done."""
    work = _Resolution(ledger, now)
    work.reopen(done.reopened)
    work.look(work.ledger.missing(done.risen), fully=True)
    work.end(done.ended)
    return work.resolved


def look_at_new(ledger: Ledger, dependents: Collection[int], now: float) -> Resolved:
    """Do what follows for dependents that were just stored, where a prerequisite had finished before."""
    work = _Resolution(ledger, now)
    work.look(ledger.missing(dependents), fully=True)
    work.end({})
    return work.resolved


class _Resolution:
    """One run of `resolve`."""

    def __init__(self, ledger: Ledger, now: float) -> None:
        self.ledger = ledger
        self._now = now
        self._ended: dict[int, JobState] = {}
        self._quiet: set[int] = set()
        self.resolved = Resolved(set(), set(), [])

    # ── jobs that will run again ─────────────────────────────────────────────────────────────────────

    def reopen(self, reopened: set[int]) -> None:
        """Bring back who ended because of these, and have everybody wait for them who has not begun."""
        if not reopened:
            return
        back = {job.seq for job in self.ledger.standing(self.ledger.caused_by(reopened)) if self._comes_back(job)}
        self.ledger.set_cause(reopened | back, None)
        touched = self.ledger.count(reopened | back, 1)
        self.look(touched, fully=False)
        self.look(self.ledger.missing(back), fully=True)

    def _comes_back(self, job: Job) -> bool:
        """Have a job wait again that had ended because of one that will run again; not if somebody has its unique key
        by now, nor if what it waits for has not come back itself."""
        reason = self.ledger.reason(job.seq) if job.state in (JobState.FAILED, JobState.REVOKED) else None
        return reason is not None and self._move(lifecycle.follow_again(job, reason))

    def look(self, missing: Mapping[int, int], *, fully: bool) -> None:
        """See to it that waiting dependents stand where they should.

        Args:
            missing: by dependent.
            fully: a prerequisite may have ended against its rule.
        """
        for job in self.ledger.standing(missing, waiting=True) if missing else ():
            follows = is_waiting(job.reason)
            if job.state is JobState.BLOCKED and not follows and gates.gate_of(job.reason or "") is None:
                continue  # nobody knows its task, or the like: it is looked at when that has changed
            broken = self.ledger.first_broken(job.seq) if fully else None
            if broken is not None and self._end_one(job, *broken):
                continue
            if missing[job.seq] == 0:
                if follows:
                    self._release([job.seq])
            elif not follows:
                reason, later = self.ledger.reason(job.seq), self.ledger.expires_later(job.seq)
                self._move(lifecycle.await_others(job, reason or "", forget_expiry=later))

    # ── jobs that have ended ─────────────────────────────────────────────────────────────────────────

    def end(self, ended: Mapping[int, JobState]) -> None:
        """Go on with who waited for these, and with who waited for those that end because of it, and so on."""
        wave = {**ended, **self._ended}
        while wave:
            self._ended = {}
            missing = self.ledger.count(wave, -1)
            if missing:
                self._end_broken(wave)
                self._release([seq for seq, left in missing.items() if left == 0])
            wave = self._ended

    def _end_broken(self, wave: Mapping[int, JobState]) -> None:
        edges: dict[int, tuple[int, Rule]] = {}
        for dependent, prior, rule in self.ledger.broken(wave):
            edges.setdefault(dependent, (prior, rule))
        for job in self.ledger.standing(edges, waiting=True) if edges else ():
            if is_waiting(job.reason):
                self._end_one(job, *edges[job.seq])

    def _end_one(self, job: Job, prior_seq: int, rule: Rule) -> bool:
        prior = self.ledger.finished_job(prior_seq)
        transition = None if prior is None else lifecycle.depend(job, prior, rule, self._now)
        if prior is None or transition is None:
            return False
        self._move(transition)
        self.ledger.set_cause([job.seq], self.ledger.cause(prior_seq) or prior_seq)
        self._ended[job.seq] = transition.target
        self.resolved.over.add(job.seq)
        if rule is Rule.FAILURE or prior_seq in self._quiet:
            self._quiet.add(job.seq)
        else:
            self.resolved.ended.append((job, transition))
        return True

    def _release(self, seqs: Sequence[int]) -> None:
        if seqs:
            self.ledger.release(seqs, self._now)
            self.resolved.moved.update(seqs)

    def _move(self, transition: Transition) -> bool:
        moved = self.ledger.move(transition)
        if moved:
            self.resolved.moved.add(transition.seq)
        return moved
