"""Which of the jobs that wait for other jobs are to give up, from where all of them stand. Pure.

The rule errs on the side of waiting. A job is given up only if everything it waits for could be started by nobody but
consumers whose workers all wait in the same way, and if of them all it is the one that would give up first by itself
(by the timeout of its ``get()`` or of its task, or because what it waits for expires; among equals the newest). So what
it waits for certainly would not have run in time, while what the others wait for may, as soon as its worker is free.

A lock or limit of which all slots are held by jobs that wait is like such a consumer. What is to start after other jobs
cannot, if for one of these there is no way to the end that it takes: the step of a pipeline none to a success, a member
of a chord none to any end.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import NamedTuple

from liteq.gates import PROCESS, gate_of
from liteq.job import JobState
from liteq.lifecycle import EVENT, UNKNOWN_TASK
from liteq.plan import Rule
from liteq.storage.base import Owner, Standing


class Wait(NamedTuple):
    """A running job that goes on when one of ``children`` has ended, or at ``until`` (``inf``: it has no timeout)."""

    seq: int
    claim: int
    children: tuple[int, ...]
    until: float


class Doom(NamedTuple):
    """A job waits in vain, because of an ``obstacle``, in words; "" where it is the lack of workers."""

    wait: Wait
    obstacle: str


class Obstacle(NamedTuple):
    """Why the job ``seq`` cannot begin before one of ``jobs`` ends: they have all slots of the lock or limit at which
    it is blocked for the reason ``why``, or all workers (``None``); or it is itself one of them (`ENDS`)."""

    seq: int
    jobs: frozenset[int]
    why: str | None


ENDS = "ends"


def _in_words(obstacle: Obstacle, child: int, waiting: int) -> str:
    """What keeps a job that is waited for from its start."""
    if obstacle.why is None or obstacle.why == ENDS:
        ends = "this very job" if obstacle.seq == waiting else "another one that waits in the same way"
        return f"it is to start after the end of {ends}"
    kind, _, name = (gate_of(obstacle.why) or obstacle.why).partition(":")
    who = "it" if obstacle.seq == child else "a job that has to end before it"
    held = "this very job" if obstacle.jobs == {waiting} else "jobs that wait in the same way"
    return f"{who} needs a slot of the {kind} {name!r}, and all of them are held by {held}"


class Scene:
    """Where everything stands at one moment.

    Args:
        waits: of running jobs, by ``seq``.
        standing: of every running job, of what is waited for, and of what that waits for; what has finished is missing.
        owners: the consumers.
        paused: queues.
        now: seconds since the epoch.
        holders: by the reason for which a job is blocked at a full lock or limit, the jobs that hold its slots.
        after: by the ``seq`` of a blocked job, those that have to end before it can begin, each with which end of it
            counts (`Rule`).
    """

    def __init__(
        self,
        waits: Mapping[int, Wait],
        standing: Mapping[int, Standing],
        owners: Iterable[Owner],
        paused: frozenset[str],
        now: float,
        holders: Mapping[str, frozenset[int]] | None = None,
        after: Mapping[int, Sequence[tuple[int, Rule]]] | None = None,
    ) -> None:
        self._holders: Mapping[str, frozenset[int]] = holders or {}
        self._after: Mapping[int, Sequence[tuple[int, Rule]]] = after or {}
        self._standing = standing
        self._paused = paused
        self._now = now
        self._consumers = {one.number: one for one in owners if one.alive and one.info.get("kind") != PROCESS}
        self._running: dict[int, list[int]] = {number: [] for number in self._consumers}
        for one in standing.values():
            if one.state is JobState.RUNNING and one.owner in self._running:
                self._running[one.owner].append(one.seq)
        limited = {seq: wait._replace(until=self._ends_by_itself(wait)) for seq, wait in waits.items()}
        self._waits = {seq: wait for seq, wait in limited.items() if self._waits_still(wait)}
        #: Those that wait for each other: the largest set in which nobody gets on before another one does. With them
        #: the blocked jobs that cannot begin before, and those that cannot even end.
        self._stuck = dict(self._waits)
        self._unbegun, self._unended = set(self._after), set(self._after)
        while self._let_plans_go_on() or self._let_go_what_gets_on():
            continue
        self._last_hopes = frozenset(self._found_to_be_last_hopes())

    def _ends_by_itself(self, wait: Wait) -> float:
        """When a waiting is over at the latest: also when something expires that it waits for."""
        jobs = [self._standing[child] for child in wait.children if child in self._standing]
        expiries = [job.expires for job in jobs if job.state is not JobState.RUNNING and job.expires is not None]
        return min([wait.until, *expiries])

    def _waits_still(self, wait: Wait) -> bool:
        own = self._standing.get(wait.seq)
        here = own is not None and own.state is JobState.RUNNING and own.claim == wait.claim
        return here and own is not None and own.owner in self._consumers and wait.until > self._now

    def _let_go_what_gets_on(self) -> bool:
        free = [seq for seq, wait in self._stuck.items() if any(map(self._gets_on, wait.children))]
        for seq in free:
            del self._stuck[seq]
        return bool(free)

    def _let_plans_go_on(self) -> bool:
        before = len(self._unbegun) + len(self._unended)
        for seq in sorted(self._unended | self._unbegun):  # mostly, a plan's later steps have the higher numbers
            if not any(self._is_missed(prior, rule) for prior, rule in self._after[seq]):
                self._unbegun.discard(seq)
            if seq not in self._unbegun or any(self._may_end_it(prior, rule) for prior, rule in self._after[seq]):
                self._unended.discard(seq)
        return len(self._unbegun) + len(self._unended) < before

    def _found_to_be_last_hopes(self) -> Iterator[int]:
        """The waiting jobs that are not stuck, and without which more would be."""
        for group in (*self._holders.values(), *(self._running[one] for one in self._consumers if self._is_full(one))):
            going = [seq for seq in group if seq not in self._stuck]
            if len(going) == 1:
                yield from going
        for edges in self._after.values():
            yield from (prior for prior, _ in edges if prior in self._waits)

    # ── the answers ──────────────────────────────────────────────────────────────────────────────────

    def doomed(self) -> dict[int, Doom]:
        """The jobs that wait in vain, by ``seq``: of those that wait for each other the first to give up."""
        return {
            seq: Doom(wait, scene.obstacle(wait))
            for seq, wait in self._waits.items()
            if (scene := self._seen_by(wait)) is not None and scene._is_first(wait)
        }

    def waits_in_vain(self, seq: int) -> Doom | None:
        """Whether this one does, be it the first to give up or not."""
        wait = self._waits.get(seq)
        scene = None if wait is None else self._seen_by(wait)
        return None if wait is None or scene is None else Doom(wait, scene.obstacle(wait))

    def _seen_by(self, wait: Wait) -> Scene | None:
        """The scene in which nothing that it waits for can begin; ``None``: something can.

        What waits for several others may end, by the failure of one, though it can never begin, because it needs
        another one. Who waits for that may get on, so that nobody can rely on him; but he himself waits in vain.
        """
        if wait.seq in self._stuck or wait.seq not in self._last_hopes:
            return None if any(map(self._may_begin, wait.children)) else self
        scene = copy(self)
        scene._stuck = self._stuck | {wait.seq: wait}
        scene._unbegun, scene._unended = set(self._after), set(self._after)
        while scene._let_plans_go_on():
            continue
        return None if any(map(scene._may_begin, wait.children)) else scene

    def _is_first(self, wait: Wait) -> bool:
        """Whether none of those that have to end before it can go on, directly or not, would give up before it."""
        seen, ahead = {wait.seq}, [wait]
        while ahead:
            for seq in self._in_the_way(ahead.pop()) - seen:
                seen.add(seq)
                other = self._stuck[seq]
                if (other.until, -other.seq) < (wait.until, -wait.seq):
                    return False
                ahead.append(other)
        return True

    def _in_the_way(self, wait: Wait) -> frozenset[int]:
        """The stuck jobs of which one has to end before this one can go on."""
        return frozenset().union(*(one.jobs for child in wait.children for one in self._obstacles(child)))

    def _obstacles(self, child: int) -> Iterator[Obstacle]:
        """Why one that is waited for cannot begin."""
        seen, ahead = {child}, [child]
        while ahead:
            seq = ahead.pop()
            job = self._standing[seq]
            if job.state is JobState.RUNNING:
                yield Obstacle(seq, frozenset((seq,)), ENDS)
            elif job.reason is not None and job.reason in self._holders:
                yield Obstacle(seq, self._holders[job.reason], job.reason)
            elif self._follows(seq):
                missed = {prior for prior, rule in self._after[seq] if self._is_missed(prior, rule)} - seen
                seen |= missed
                ahead += missed
            else:
                able = self._consumers if job.state is JobState.BLOCKED else self.consumers_of(job.queue)
                yield Obstacle(seq, frozenset(one for number in able for one in self._running[number]), None)

    def obstacle(self, wait: Wait) -> str:
        """What keeps the job that it waits for, in words; "" where it is the lack of workers."""
        words, children = [], list(wait.children)
        for child in children:
            if self._standing[child].state is JobState.RUNNING:  # it waits itself: what keeps that one?
                children += [one for one in self._stuck[child].children if one not in children]
                continue
            named = [one for one in self._obstacles(child) if one.why is not None]
            if not named:
                return ""
            words.append(_in_words(min(named, key=lambda one: one.seq), child, wait.seq))
        return words[0] if words else ""

    # ── what can happen before one of the stuck ones gives up ────────────────────────────────────────

    def _gets_on(self, seq: int) -> bool:
        """Whether this job has finished, is getting on, may start or end one day, or has reasons of its own not to."""
        return seq not in self._unended if self._follows(seq) else self._may_begin(seq)

    def _follows(self, seq: int) -> bool:
        """Whether it waits for jobs, and these are known."""
        job = self._standing.get(seq)
        return job is not None and job.state is JobState.BLOCKED and seq in self._after

    def _may_begin(self, seq: int) -> bool:
        job = self._standing.get(seq)
        if job is None:
            return True
        if job.state is JobState.RUNNING:
            return seq not in self._stuck
        if job.reason is not None and job.reason in self._holders:
            return any(holder not in self._stuck for holder in self._holders[job.reason])
        if self._follows(seq):
            return seq not in self._unbegun
        if job.state is JobState.BLOCKED:  # by jobs that may be in any queue
            reason = job.reason or ""
            return reason.startswith((UNKNOWN_TASK, EVENT)) or any(map(self._has_room, self._consumers))
        if job.queue in self._paused or (job.due or 0.0) > self._now:
            return True
        able = self.consumers_of(job.queue)
        return not able or any(map(self._has_room, able))

    def _may_end(self, seq: int) -> bool:
        """Whether one that another job waits for may end, in whatever way: what expires does so without a worker."""
        job = self._standing.get(seq)
        expires = job is not None and job.state is not JobState.RUNNING and job.expires is not None
        return expires or self._gets_on(seq)

    def _is_missed(self, prior: int, rule: Rule) -> bool:
        """Whether a prerequisite cannot end in the way that counts."""
        return not (self._may_begin(prior) if rule is Rule.SUCCESS else self._may_end(prior))

    def _may_end_it(self, prior: int, rule: Rule) -> bool:
        """Whether the end of a prerequisite may be the end of what waits for it."""
        return rule is not Rule.END and self._may_end(prior)

    # ── workers ──────────────────────────────────────────────────────────────────────────────────────

    def consumers_of(self, queue: str) -> list[int]:
        """The living consumers that take jobs from a queue."""
        return [number for number, one in self._consumers.items() if serves(one, queue)]

    def _has_room(self, consumer: int) -> bool:
        return not self._is_full(consumer) or any(seq not in self._stuck for seq in self._running[consumer])

    def _is_full(self, consumer: int) -> bool:
        return len(self._running[consumer]) >= workers_of(self._consumers[consumer])

    def is_crowded(self, seq: int) -> bool:
        """Whether the consumer that runs this job runs as many as it has workers."""
        job = self._standing.get(seq)
        if job is None or job.owner is None or job.owner not in self._consumers:
            return False
        return self._is_full(job.owner)

    def is_entangled(self, wait: Wait, known: Collection[int]) -> bool:
        """Whether others have to know that it waits, though its consumer has workers left: what it waits for needs,
        directly or not, a slot of a lock or limit that has none, the end of a running job, or one of those that are
        ``known`` to wait.
        """
        seen, ahead = set(wait.children), list(wait.children)
        while ahead:
            seq = ahead.pop()
            job = self._standing.get(seq)
            if job is None:
                continue
            if job.reason in self._holders or self._needs_one_of(job, known):
                return True
            priors = {prior for prior, _ in self._after[seq]} if self._follows(seq) else set()
            if any(prior in self._standing and self._standing[prior].state is JobState.RUNNING for prior in priors):
                return True
            ahead += priors - seen
            seen |= priors
        return False

    def _needs_one_of(self, job: Standing, known: Collection[int]) -> bool:
        """Whether one of these is this job, or has one of the workers that could run it, all of which are taken."""
        if job.state is JobState.RUNNING:
            return job.seq in known
        able = [] if job.state is JobState.BLOCKED else self.consumers_of(job.queue)
        return all(map(self._is_full, able)) and any(seq in known for one in able for seq in self._running[one])

    def nobody_starts(self, seq: int) -> str | None:
        """Why a job cannot be started by anybody, though it is due; ``None``: it can, or is not due."""
        job = self._standing.get(seq)
        if job is None or job.state not in (JobState.READY, JobState.SCHEDULED) or (job.due or 0.0) > self._now:
            return None
        if job.queue in self._paused:
            return f"its queue {job.queue!r} is paused"
        return None if self.consumers_of(job.queue) else f"no living consumer takes jobs from its queue {job.queue!r}"


def serves(consumer: Owner, queue: str) -> bool:
    """Whether a consumer takes jobs from a queue, as it said at its start."""
    queues = consumer.info.get("queues")
    return not isinstance(queues, Sequence) or queue in queues


def workers_of(consumer: Owner) -> float:
    """How many jobs it runs at a time; any number where it did not say."""
    workers = consumer.info.get("workers")
    return workers if isinstance(workers, int) else math.inf
