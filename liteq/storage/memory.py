"""MemoryStorage: the storage contract in its plainest form, and its executable specification.

Where `liteq.storage.base` could be read in two ways, this is how it is meant: every other storage is held against this
one, verb by verb. It also serves immediate mode, tests, and consumers with thread workers, so adding, promoting and
claiming stay O(log n) however many jobs wait.

A job is one row (a `Job` without history) in a dict. A turn first works out what its transitions lead to, changing
nothing, and then puts the new rows in place: that is what makes it atomic.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from heapq import heapify, heappop, heappush, heapreplace
from typing import NamedTuple
from weakref import WeakSet

from liteq import lifecycle
from liteq.errors import StorageError
from liteq.job import FINISHED, WAITING, Attempt, Ending, Job, JobFilter, JobState, Progress
from liteq.lifecycle import CANCEL_MARK, PAUSE_MARK, REVOKE_MARK, STACK_MARK, Meeting, Success, Transition
from liteq.plan import Plan
from liteq.schedule import Schedule, made
from liteq.step import Step
from liteq.storage.base import (
    CALLER,
    Added,
    ClaimRequest,
    Fire,
    Outdated,
    Owner,
    Rival,
    Standing,
    Storage,
    Turn,
    Unregistered,
    refuse_connection,
    sooner,
)
from liteq.storage.cargo import Parcel, Piece, Residents, Taken, moved_schedules, received
from liteq.storage.memory_cargo import Contents
from liteq.storage.memory_gates import House, MemoryGates
from liteq.storage.memory_plans import Dependent, Household, MemoryPlans
from liteq.storage.memory_steps import Awaited, MemorySteps, Recorded, Sent
from liteq.storage.memory_unique import Draft, Held, Key, MemoryUnique
from liteq.storage.plans import NOTHING, Changes, Resolved, changes
from liteq.storage.shelter import sheltered
from liteq.storage.watch import Bell, BellWatch, Change, Watch

#: The states in which a job's ``reason`` is kept.
_WITH_REASON = frozenset({JobState.BLOCKED, JobState.REVOKED, JobState.EXPIRED})


class MemoryStorage(Storage):
    """Jobs in this process's memory; gone when it ends.

    Safe to share between threads. A forked child has a copy of its own: neither sees what the other does afterwards.
    An owner lives until `unregister` (or, in tests, `lose`), because it cannot outlive the jobs.
    """

    location = ":memory:"

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._bell = self._new_bell()
        #: The random part of generated ids. Nothing else here is left to chance: see `liteq.storage.replay`.
        self._draw: Callable[[], int] = partial(random.getrandbits, 40)
        self._next_seq = 1
        self._rows: dict[int, Job] = {}  # in order of seq, because a row is replaced in its place
        self._seqs: dict[str, int] = {}  # by id, chosen or generated
        self._history: dict[int, tuple[Attempt, ...]] = {}
        self._standing: dict[JobState, set[int]] = {state: set() for state in JobState}
        self._ready: defaultdict[str, Line] = defaultdict(Line)  # by queue; ordered by -priority
        self._scheduled = Line()  # ordered by due
        self._marks: dict[str, str] = {}
        self._stops: Mapping[str, str] | None = {}  # what a Turn shows of the marks; None: to be looked up again
        self._schedules: dict[str, Schedule] = {}
        self._next_owner = 1
        self._owners: dict[int, str] = {}  # what each said of itself, as JSON
        self._alive: set[int] = set()
        is_owner, ring = self._owners.__contains__, self._bell.ring
        self._gates = MemoryGates(House(self._lock, self._rows, self._marks, self._put, self._is_dead, is_owner, ring))
        self.gates = self._gates
        self._keys: dict[int, Key] = {}
        self._held: dict[Key, Held] = {}
        self._unique = MemoryUnique(self._rows, self._marks, self._keys, self._held)
        self._recorded: Recorded = {}
        self._sent: Sent = {}
        self._awaited: Awaited = {}
        self._steps = MemorySteps(self._rows, self._recorded, self._sent, self._awaited)
        self._dependents: dict[int, Dependent] = {}
        house = Household(self._lock, self._rows, self._history, self._dependents, self._put, self._move)
        self._plans = MemoryPlans(house)
        self.plans = self._plans
        with _births:
            _storages.add(self)

    def _new_bell(self) -> Bell:
        return Bell()

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────

    @sheltered
    def add(self, jobs: Sequence[Job], connection: object = None, plan: Plan | None = None) -> Added:
        refuse_connection(connection, self.location)
        with self._lock:
            added, draft = self._planned(jobs)
            if plan is not None and added.replaced:
                self._plans.refuse_circles(added, plan)
            for row in draft.rows.values():
                self._put(row)
                if row.seq >= self._next_seq:
                    self._seqs[row.id] = row.seq
                    self._next_seq = row.seq + 1
            for seq, now in draft.changed.items():
                self._set_mark(lifecycle.cancel_mark(self._rows[seq]), None)
                self._gates.left([seq], now)
            for seq in draft.anew:
                self._steps.remove(seq)
            self._plans.forget(draft.anew)
            self._unique.hold(draft)
            if plan is not None and jobs:
                self._note_plan(added, plan, jobs[0].created)
        if added:
            self._bell.ring()
        return added

    def _note_plan(self, added: Added, plan: Plan, now: float) -> None:
        blocked, followed = self._plans.add(added, plan, now)
        followed = self._go_on(followed, now)
        added.ended = followed.ended
        for position, row in enumerate(added):
            new = position not in added.known or position in added.replaced
            if new and row.seq in blocked | followed.moved:
                added[position] = self._rows[row.seq]._replace(payload=row.payload, attempts=row.attempts)

    def _planned(self, jobs: Sequence[Job]) -> tuple[Added, Draft]:
        """What `add` is going to answer, and what it is going to change; changes nothing."""
        draft = Draft()
        seqs: dict[str, int] = {}
        rows, known, replaced, seq = [], set(), set(), self._next_seq
        for position, job in enumerate(jobs):
            row = draft.rows[seqs[job.id]] if job.id in seqs else self._with_history(self._existing(job.id), draft)
            is_known = row is not None
            if row is None:
                row = _new_row(job, seq, self._draw)
                if job.unique is None:
                    draft.rows[seq] = row
                else:
                    row, meeting = self._unique.plan(row, job.unique, draft)
                    is_known = meeting in (Meeting.KNOWN, Meeting.CHANGED)
                    if meeting is Meeting.CHANGED and lifecycle.begins_anew(job.unique):
                        replaced.add(position)
                    row = self._with_history(row, draft) or row
            if is_known:
                known.add(position)
            else:
                seqs[row.id] = seq
                seq += 1
            rows.append(row)
        added = Added(rows)
        added.known, added.replaced = known, replaced
        return added, draft

    def _with_history(self, row: Job | None, draft: Draft) -> Job | None:
        if row is None:
            return None
        row = draft.rows.get(row.seq) or row
        return row._replace(attempts=self._history.get(row.seq, ()) + _success(row))

    def _existing(self, job_id: str) -> Job | None:
        return self._rows.get(self._seqs.get(job_id, 0))

    @sheltered
    def turn(
        self,
        transitions: Sequence[Transition],
        request: ClaimRequest | None,
        now: float,
        progress: Mapping[tuple[int, int], Progress] | None = None,
        successes: Sequence[Success] = (),
    ) -> Turn:
        with self._lock:
            self._require_registered(request)
            outlook = self._outlook([*(success.transition() for success in successes), *transitions])
            self._carry_out(outlook)
            finished = {row.seq for row in outlook.rows.values() if row.state in FINISHED}
            followed = self._plans.follow(changes(outlook.moves), now)
            followed = self._go_on(followed._replace(over=followed.over | finished), now)
            self._gates.left(outlook.rows.keys() | followed.moved, now, outlook.unbegun)
            written = any(outlook.applied) | self._note(progress or {}) | self._promote(now) | self._gates.pour(now)
            claimed = [] if request is None else self._claim(request, now)
            jobs = self._plans.with_inputs(claimed)
            held_back = {job.seq for job in claimed} - {job.seq for job in jobs}
            self._gates.left(held_back, now, held_back)
            due = now if self._gates.settle(now) or held_back else self.next_due()
            lost = {one.seq for one, applied in zip(successes, outlook.applied, strict=False) if not applied}
            token = self._gates.next_due()
            applied = outlook.applied[len(successes) :]
            answer = Turn(applied, jobs, due, self._current_stops(), lost, token, followed.ended)
        if written or jobs:
            self._bell.ring()
        return answer

    def _outlook(self, transitions: Sequence[Transition]) -> Outlook:
        """What the transitions lead to; changes nothing, so that a faulty one among them leaves no trace."""
        draft = Draft()
        outlook = Outlook([], [], draft.rows, [], set(), draft, set())
        for transition in transitions:
            row = outlook.rows.get(transition.seq) or self._rows.get(transition.seq)
            if row is None or not self._holds(transition, row, outlook):
                outlook.applied.append(False)
                continue
            outlook.applied.append(True)
            move = self._steps.standing(transition)
            outlook.moves.append(move)
            outlook.rows[row.seq] = _moved(row, move)
            if row.state in FINISHED and transition.target not in FINISHED:
                self._unique.bring_back(row.seq, draft)
            if transition.unbegun:
                outlook.unbegun.add(row.seq)
            if transition.record is not None:
                outlook.records.append((row.seq, transition.record))
            if transition.consume is not None:
                outlook.consumed.add(transition.consume[0])
            if transition.drop_mark is not None:
                outlook.consumed.add(transition.drop_mark)
        return outlook

    def _holds(self, transition: Transition, row: Job, outlook: Outlook) -> bool:
        if row.state != transition.source or row.claim != transition.claim:
            return False
        if row.state in FINISHED and transition.target not in FINISHED and self._unique.rival(row.seq, outlook.draft):
            return False
        if transition.consume is None:
            return True
        key, value = transition.consume
        return key not in outlook.consumed and self._marks.get(key) == value

    def _carry_out(self, outlook: Outlook) -> None:
        for row in outlook.rows.values():
            self._put(row)
        self._unique.hold(outlook.draft)
        for move in outlook.moves:
            self._steps.applied(move)
        for seq, record in outlook.records:
            self._history[seq] = (*self._history.get(seq, ()), record)
        for key in outlook.consumed:
            self._set_mark(key, None)

    def _move(self, transition: Transition) -> bool:
        """Apply a transition of somebody who waited for another job."""
        outlook = self._outlook([transition])
        self._carry_out(outlook)
        return outlook.applied[0]

    def _go_on(self, followed: Resolved, now: float) -> Resolved:
        """Let those go on who followed a job of their unique key, which has ended; that may have consequences of its
        own."""
        done, over = followed, followed.over
        while over:
            risen: set[int] = set()
            self._unique.ended(over, lambda row, risen=risen: risen.add(self._let_follow(row, now)))  # type: ignore[misc]
            more = self._plans.follow(Changes({}, set(), risen), now) if risen else NOTHING
            done, over = done.joined(more, risen), more.over
        return done

    def _let_follow(self, row: Job, now: float) -> int:
        self._put(_moved(row, lifecycle.unblock(row, now)))
        return row.seq

    def _require_registered(self, request: ClaimRequest | None) -> None:
        if request is not None and request.wanted > 0 and request.owner != CALLER and request.owner not in self._owners:
            raise Unregistered(request.owner)

    def _note(self, progress: Mapping[tuple[int, int], Progress]) -> bool:
        running = self._standing[JobState.RUNNING]
        noted = [(seq, claim) for seq, claim in progress if seq in running and self._rows[seq].claim == claim]
        for seq, claim in noted:
            self._rows[seq] = self._rows[seq]._replace(progress=progress[seq, claim])
        return bool(noted)

    def _promote(self, now: float) -> bool:
        promoted = False
        while self._scheduled and self._scheduled.first()[0] <= now:
            _, seq = self._scheduled.first()
            self._put(self._rows[seq]._replace(state=JobState.READY))
            promoted = True
        return promoted

    def _claim(self, request: ClaimRequest, now: float) -> list[Job]:
        claimed: list[Job] = []
        while chosen := self._chosen(request._replace(wanted=request.wanted - len(claimed)), claimed):
            for seq in chosen:
                row = self._rows[seq]
                if (reason := self._gate_that_is_full(row, request, now)) is not None:
                    self._put(row._replace(state=JobState.BLOCKED, reason=reason))
                    continue
                row = row._replace(
                    state=JobState.RUNNING,
                    owner=request.owner,
                    started=now,
                    claim=row.claim + 1,
                    attempt=row.attempt + 1,
                )
                self._put(row)
                claimed.append(row)
        return claimed

    def _gate_that_is_full(self, row: Job, request: ClaimRequest, now: float) -> str | None:
        """Why this job is to be blocked instead of claimed; ``None``: it has a slot of every gate that it needs."""
        needs_of = request.needs.get(row.task)
        return None if needs_of is None else self._gates.enter(row, needs_of(row), now)

    def _chosen(self, request: ClaimRequest, claimed: Sequence[Job]) -> list[int]:
        """The seqs to claim, in order; they are taken out of their lines. ``claimed`` were claimed before."""
        if request.queues is None:
            return self._heads(list(self._ready), request.wanted)
        wanted = self._divided(request, claimed)
        chosen: list[int] = []
        for queue in request.queues:
            chosen += self._heads([queue], min(wanted[queue], request.wanted - len(chosen)))
        return chosen

    def _divided(self, request: ClaimRequest, claimed: Sequence[Job]) -> Mapping[str, int]:
        """How many to claim of each queue, at most."""
        queues = request.queues or ()
        if request.division is None:
            return dict.fromkeys(queues, request.wanted)
        from liteq.shares import divide  # few consumers divide anything

        ready = {name: len(self._ready.get(name, ())) for name in queues if PAUSE_MARK + name not in self._marks}
        counts = {name: min(number, max(0, request.wanted)) for name, number in ready.items()}
        taken = Counter(row.queue for row in claimed)
        return Counter(divide(request.division, request.wanted, counts, taken))

    def _heads(self, queues: list[str], wanted: int) -> list[int]:
        """Take the best ``wanted`` of these queues together."""
        lines = [
            self._ready[queue] for queue in queues if queue in self._ready and PAUSE_MARK + queue not in self._marks
        ]
        heads = [(*line.first(), number) for number, line in enumerate(lines) if line]
        heapify(heads)
        taken: list[int] = []
        while heads and len(taken) < wanted:
            _, seq, number = heads[0]
            line = lines[number]
            line.drop(seq)
            taken.append(seq)
            if line:
                heapreplace(heads, (*line.first(), number))
            else:
                heappop(heads)
        return taken

    @sheltered
    def remove(self, query: JobFilter) -> int:
        with self._lock:
            finished = [row for row in self._matching(query) if row.state in FINISHED]
            return self._discard([row for row in finished if not self._plans.is_needed(row)][: query.limit])

    def outdated(self, before: Mapping[JobState, float], after: int, window: int, limit: int) -> Outdated:
        seqs: list[int] = []
        margins: list[float] = []
        with self._lock:
            newest = next(reversed(self._rows), 0)
            first = max(after + 1, next(iter(self._rows), 1))
            seq = first - 1
            for seq in range(first, min(first + window, newest + 1)):
                row = self._rows.get(seq)
                if row is None or row.finished is None or row.state not in before:
                    continue
                margin = row.finished - before[row.state]
                if margin >= 0:
                    margins.append(margin)
                elif not self._plans.is_needed(row):
                    seqs.append(seq)
                    if len(seqs) == limit:
                        break
        return Outdated(seqs, seq if seq < newest else None, min(margins, default=None))

    def discard(self, seqs: Sequence[int]) -> int:
        with self._lock:
            rows = [self._rows[seq] for seq in seqs if seq in self._rows]
            return self._discard([row for row in rows if row.state in FINISHED and not self._plans.is_needed(row)])

    def _discard(self, doomed: Sequence[Job]) -> int:
        with self._lock:
            self._keep_outcomes(doomed)
            for row in doomed:
                self._leave(row)
                del self._rows[row.seq], self._seqs[row.id]
                self._history.pop(row.seq, None)
                self._unique.forget(row.seq)
                self._steps.remove(row.seq)
            self._plans.forget([row.seq for row in doomed])
        if doomed:
            self._bell.ring()
        return len(doomed)

    def _keep_outcomes(self, doomed: Sequence[Job]) -> None:
        """How the last run of a schedule ended is known for as long as the schedule."""
        seqs = {row.seq for row in doomed} if self._schedules else ()
        for name, schedule in self._schedules.items():
            if schedule.last_job in seqs:
                self._schedules[name] = self._with_outcome(schedule)

    # ── rows and where they stand ────────────────────────────────────────────────────────────────────

    def _put(self, row: Job) -> None:
        """Store a row, new or in the place of an older one, and file it under its state."""
        before = self._rows.get(row.seq)
        if before is not None:
            self._leave(before)
        self._rows[row.seq] = row
        self._standing[row.state].add(row.seq)
        if row.state == JobState.READY:
            self._ready[row.queue].put(row.seq, -row.priority)
        elif row.state == JobState.SCHEDULED and row.due is not None:
            self._scheduled.put(row.seq, row.due)

    def _leave(self, row: Job) -> None:
        self._standing[row.state].discard(row.seq)
        if row.state == JobState.READY:
            line = self._ready[row.queue]
            line.drop(row.seq)
            if not line:
                del self._ready[row.queue]
        elif row.state == JobState.SCHEDULED:
            self._scheduled.drop(row.seq)

    # ── questions ────────────────────────────────────────────────────────────────────────────────────

    def get(self, job_id: str) -> Job | None:
        with self._lock:
            row = self._existing(job_id)
            if row is None:
                return None
            return self._with_history(row, Draft())

    def find(self, query: JobFilter) -> list[Job]:
        with self._lock:
            return self._matching(query)[: query.limit]

    def _matching(self, query: JobFilter) -> list[Job]:
        return [row for row in self._candidates(query) if _matches(row, query)]

    def _candidates(self, query: JobFilter) -> Iterator[Job]:
        """The rows in the states that are asked for, in the order that is asked for."""
        if not query.states:
            return iter(reversed(self._rows.values()) if query.newest_first else self._rows.values())
        seqs = set().union(*(self._standing[JobState(state)] for state in query.states))
        return (self._rows[seq] for seq in sorted(seqs, reverse=query.newest_first))

    def finished(self, seqs: Iterable[int]) -> set[int]:
        with self._lock:
            rows = ((seq, self._rows.get(seq)) for seq in seqs)
            return {seq for seq, row in rows if row is None or row.state in FINISHED}

    def standing(self, seqs: Iterable[int]) -> dict[int, Standing]:
        with self._lock:
            rows = [self._rows.get(seq) for seq in {*seqs, *self._standing[JobState.RUNNING]}]
            return {row.seq: _where(row) for row in rows if row is not None and row.state not in FINISHED}

    def counts(self) -> dict[JobState, int]:
        with self._lock:
            return {state: len(seqs) for state, seqs in self._standing.items()}

    def queues(self) -> dict[str, int]:
        with self._lock:
            return {queue: len(line) for queue, line in self._ready.items()}

    def next_expiry(self, after: float) -> float | None:
        with self._lock:
            instants = [row.expires for row in self._rows.values() if row.expires is not None and row.expires > after]
        return min(instants, default=None)

    def reasons(self, prefix: str = "") -> dict[str, int]:
        with self._lock:
            numbers: defaultdict[str, int] = defaultdict(int)
            for seq in self._standing[JobState.BLOCKED]:
                numbers[self._rows[seq].reason or ""] += 1
            return {reason: number for reason, number in numbers.items() if reason.startswith(prefix)}

    def ahead(self, seq: int) -> int:
        with self._lock:
            row = self._rows.get(seq)
            return 0 if row is None or row.state != JobState.READY else self._ready[row.queue].before(seq)

    def rival(self, seq: int) -> Rival | None:
        with self._lock:
            return self._unique.rival(seq, Draft())

    def next_due(self) -> float | None:
        with self._lock:
            return sooner(self._scheduled.first()[0] if self._scheduled else None, self._gates.next_due())

    # ── steps and events ─────────────────────────────────────────────────────────────────────────────

    @sheltered
    def record_step(self, seq: int, claim: int, step: Step) -> bool:
        with self._lock:
            recorded = self._steps.record(seq, claim, step)
        if recorded:
            self._bell.ring()
        return recorded

    def record_step_at_once(self, seq: int, claim: int, step: Step) -> bool:
        return self.record_step(seq, claim, step)

    def steps(self, seq: int) -> list[Step]:
        with self._lock:
            return self._steps.steps(seq)

    @sheltered
    def await_event(self, seq: int, claim: int, step: Step, now: float) -> Step | None:
        with self._lock:
            standing, changed = self._steps.await_event(seq, claim, step, now)
        if changed:
            self._bell.ring()
        return standing

    @sheltered
    def send(self, seq: int, event: str, data: bytes | None, now: float) -> bool:
        with self._lock:
            kept, woken = self._steps.send(seq, event, data, now)
            if woken is not None:
                self._put(woken)
        if kept:
            self._bell.ring()
        return kept

    # ── marks ────────────────────────────────────────────────────────────────────────────────────────

    def marks(self, prefix: str = "") -> dict[str, str]:
        with self._lock:
            return {key: value for key, value in self._marks.items() if key.startswith(prefix)}

    @sheltered
    def swap(self, key: str, expected: str | None, new: str | None) -> bool:
        with self._lock:
            if self._marks.get(key) != expected:
                return False
            self._set_mark(key, new)
        self._bell.ring()
        return True

    def _set_mark(self, key: str, value: str | None) -> None:
        if value is None:
            self._marks.pop(key, None)
        else:
            self._marks[key] = value
        self._stops = None

    def _current_stops(self) -> Mapping[str, str]:
        """What a Turn shows of the marks. One dict is given out until a mark changes, and never changed itself."""
        if self._stops is None:
            self._stops = self.marks(REVOKE_MARK) | self.marks(CANCEL_MARK) | self.marks(STACK_MARK)
        return self._stops

    # ── schedules ────────────────────────────────────────────────────────────────────────────────────

    def schedules(self, name: str | None = None) -> list[Schedule]:
        with self._lock:
            names = sorted(self._schedules) if name is None else [name] if name in self._schedules else []
            return [self._with_outcome(self._schedules[one]) for one in names]

    def _with_outcome(self, schedule: Schedule) -> Schedule:
        last = None if schedule.last_job is None else self._rows.get(schedule.last_job)
        if last is None:
            return schedule
        return schedule._replace(last_outcome=str(last.state), last_finished=last.finished)

    @sheltered
    def put_schedule(self, schedule: Schedule) -> bool:
        with self._lock:
            stored = self._put_schedule(schedule)
        if stored:
            self._bell.ring()
        return stored

    def _put_schedule(self, schedule: Schedule) -> bool:
        known = self._schedules.get(schedule.name)
        if schedule.version == 0:
            if known is not None:
                return False
        elif known is None or (known.version, known.created) != (schedule.version, schedule.created):
            return False
        self._schedules[schedule.name] = schedule._replace(version=schedule.version + 1)
        return True

    @sheltered
    def drop_schedule(self, name: str) -> bool:
        with self._lock:
            dropped = self._schedules.pop(name, None) is not None
        if dropped:
            self._bell.ring()
        return dropped

    def due_schedules(
        self, now: float, boot: str | None, limit: int, without: Set[str] = frozenset()
    ) -> list[Schedule]:
        with self._lock:
            candidates = [one for one in self._schedules.values() if one.name not in without]
        due = sorted((one for one in candidates if one.due is not None and one.due <= now), key=_due_then_name)
        if boot is not None:
            due += [one for one in candidates if _waits_for_boot(one, boot) and one not in due]
        return due[:limit]

    def next_schedule(self, without: Set[str] = frozenset()) -> float | None:
        with self._lock:
            candidates = [one for one in self._schedules.values() if one.name not in without]
        return min((one.due for one in candidates if one.due is not None), default=None)

    @sheltered
    def fire(self, fires: Sequence[Fire]) -> list[list[Job] | None]:
        with self._lock:
            answers = [self._fire(one) for one in fires]
        if any(answer is not None for answer in answers):
            self._bell.ring()
        return answers

    def _fire(self, fire: Fire) -> list[Job] | None:
        schedule, jobs, unmade = fire
        if not self._put_schedule(schedule):
            return None
        stored: list[Job] = []
        for job in jobs:
            added = self.add([job._replace(state=JobState.READY)])
            if added.known:
                continue
            row = added[0]
            if job.state is JobState.BLOCKED and row.state is not JobState.BLOCKED:  # it may follow one of its key
                row = row._replace(state=JobState.BLOCKED, reason=job.reason)
                self._put(row)
            stored.append(row)
        if unmade is not None and len(stored) < len(jobs):
            self._put_schedule(made(unmade, stored, jobs[0].created)._replace(version=schedule.version + 1))
        if stored:
            last = stored[-1]
            changed = self._schedules[schedule.name]._replace(last_job=last.seq, last_id=last.id)
            self._schedules[schedule.name] = changed
        return stored

    # ── moving everything ────────────────────────────────────────────────────────────────────────────

    def _contents(self) -> Contents:
        return Contents(
            self._rows,
            self._history,
            self._recorded,
            self._sent,
            self._awaited,
            self._keys,
            self._held,
            self._dependents,
        )

    def unload(self, put: Callable[[Piece], None]) -> None:
        for piece in self.pieces():
            put(piece)

    def pieces(self) -> Iterator[Piece]:
        """What `unload` puts, as it was when this was called."""
        with self._lock:
            return self._contents().copy().pieces(self.marks(), self.schedules())

    @sheltered
    def take_in(
        self, parcels: Sequence[Parcel], schedules: Sequence[Schedule], marks: Mapping[str, str], now: float
    ) -> Taken:
        with self._lock:
            new = received(parcels, self._next_seq, Residents(self._seqs.get, self._holder, self.finished))
            contents = self._contents()
            for parcel in new.parcels:
                row = parcel.job._replace(attempts=())
                self._put(row)
                self._seqs[row.id] = row.seq
                self._next_seq = row.seq + 1
                contents.file(parcel)
            for parcel in new.parcels:
                contents.depend(parcel, new.missing.get(parcel.job.seq, 0))
            followed = self._plans.look(new.touched, now)
            self._go_on(followed._replace(over=followed.over | new.over), now)
            added = list(moved_schedules(schedules, self._schedules, new.seqs))
            self._schedules.update({schedule.name: schedule for schedule in added})
            fresh = {key: value for key, value in marks.items() if key not in self._marks}
            for key, value in fresh.items():
                self._set_mark(key, value)
        self._bell.ring()
        return Taken(len(new.parcels), len(parcels) - len(new.parcels), len(added), len(fresh))

    def _holder(self, task: str, key: str) -> int | None:
        held = self._held.get((task, key))
        return None if held is None else held.job

    # ── owners ───────────────────────────────────────────────────────────────────────────────────────

    @sheltered
    def register(self, info: Mapping[str, object]) -> int:
        with self._lock:
            number = self._next_owner
            self._owners[number] = json.dumps(dict(info))
            self._alive.add(number)
            self._next_owner += 1
            return number

    def lock_fd(self, owner: int) -> int | None:
        return None

    @sheltered
    def unregister(self, owner: int) -> None:
        with self._lock:
            self._alive.discard(owner)
            self.forget(owner)
        self._bell.ring(Change.SLOTS)

    def lose(self, owner: int) -> None:
        """For tests: the owner dies, as by kill -9. It stays among `dead_owners` until it is forgotten.

        Raises:
            KeyError: no such owner lives.
        """
        with self._lock:
            self._alive.remove(owner)
        self._bell.ring(Change.SLOTS)

    def owners(self) -> list[Owner]:
        with self._lock:
            return [Owner(number, json.loads(info), number in self._alive) for number, info in self._owners.items()]

    @sheltered
    def forget(self, owner: int) -> bool:
        with self._lock:
            if owner in self._alive or (owner in self._owners and self._is_busy(owner)):
                return False
            if self._gates.has_places(owner):
                return False
            self._owners.pop(owner, None)
            return True

    def _is_dead(self, owner: int) -> bool:
        return owner in self._owners and owner not in self._alive

    def _is_busy(self, owner: int) -> bool:
        return any(self._rows[seq].owner == owner for seq in self._standing[JobState.RUNNING])

    # ── the rest ─────────────────────────────────────────────────────────────────────────────────────

    def watch(self) -> Watch:
        return BellWatch(self._bell)

    def barrier(self) -> None:
        with self._lock:
            return

    def close(self) -> None:
        """Unregister every owner. The jobs stay: they live as long as this object."""
        with self._lock:
            for owner in list(self._alive):
                self.unregister(owner)


class Outlook(NamedTuple):
    """What a turn's transitions lead to: the answers, the transitions that hold, as they stand, the new rows by seq,
    what joins histories, the marks used up, and which jobs were not begun.

    ``draft`` holds the same rows, and the keys that are taken again.
    """

    applied: list[bool]
    moves: list[Transition]
    rows: dict[int, Job]
    records: list[tuple[int, Attempt]]
    consumed: set[str]
    draft: Draft
    unbegun: set[int]


class Line:
    """Seqs in order of a key, then of seq. Every operation takes O(log n), spread over many.

    A heap with lazy deletion: an entry counts only while ``_keys`` says the same of its seq, and the heap is built anew
    once most of it does not count any more.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._keys: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def put(self, seq: int, key: float) -> None:
        """Let a seq that is not in line stand at ``key``."""
        self._keys[seq] = key
        if len(self._heap) > 2 * len(self._keys) + 64:
            self._heap = [(key, seq) for seq, key in self._keys.items()]
            heapify(self._heap)
        else:
            heappush(self._heap, (key, seq))

    def drop(self, seq: int) -> None:
        """Take a seq out of the line, if it is there."""
        self._keys.pop(seq, None)

    def before(self, seq: int) -> int:
        """How many stand before a seq that is in line; O(n), for people's questions."""
        own = self._keys[seq], seq
        return sum((key, one) < own for one, key in self._keys.items())

    def first(self) -> tuple[float, int]:
        """The key and the seq at the head of a line that is not empty."""
        while self._keys.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0]


def _due_then_name(schedule: Schedule) -> tuple[float, str]:
    return schedule.due or 0.0, schedule.name


def _waits_for_boot(schedule: Schedule, boot: str) -> bool:
    stands_still = schedule.paused or schedule.orphaned or schedule.is_used_up
    return schedule.boot is not None and schedule.boot != boot and not stands_still


def _new_row(job: Job, seq: int, draw: Callable[[], int]) -> Job:
    """A row for a job that was never claimed, whatever else it says of itself."""
    if job.state not in (JobState.READY, JobState.SCHEDULED) or (job.state == JobState.SCHEDULED and job.due is None):
        raise StorageError(
            f"{job.task}: a new job is ready, or scheduled with a due time, not {job.state}; nothing stored"
        )
    return Job(
        seq,
        job.id or f"{seq}-{draw():010x}",
        job.task,
        job.state,
        job.queue,
        job.priority,
        job.payload,
        job.created,
        job.due,
        job.expires,
        job.options,
        job.summary,
    )


def _moved(row: Job, transition: Transition) -> Job:
    """The row after a transition whose guard holds."""
    target = transition.target
    if target == JobState.RUNNING or (target == JobState.SCHEDULED and transition.due is None):
        raise StorageError(f"job {row.id}: a transition cannot lead to {target} like this; nothing was stored")
    return row._replace(
        state=target,
        due=row.due if transition.due is None else transition.due,
        expires=None if transition.forget_expiry else row.expires,
        attempt=transition.attempt,
        base=transition.base,
        crashes=transition.crashes,
        owner=None,
        started=transition.started if target in FINISHED else None,
        finished=transition.finished if target in FINISHED else None,
        result=transition.result if target == JobState.SUCCEEDED else None,
        reason=transition.reason if target in _WITH_REASON else None,
        progress=None,
    )


def _success(row: Job) -> tuple[Attempt, ...]:
    """The attempt that succeeded, which is told from the row and not stored."""
    if row.state != JobState.SUCCEEDED or row.finished is None:
        return ()
    return (Attempt(row.attempt, Ending.SUCCEEDED, row.started, row.finished),)


def _where(row: Job) -> Standing:
    reason = row.reason if row.state == JobState.BLOCKED else None
    return Standing(row.seq, JobState(row.state), row.queue, row.due, row.claim, row.owner, reason, row.expires)


def _matches(row: Job, query: JobFilter) -> bool:
    return (
        (query.queue is None or row.queue == query.queue)
        and (query.task is None or row.task == query.task)
        and (query.owner is None or row.owner == query.owner)
        and (query.reason is None or (row.reason == query.reason and row.state == JobState.BLOCKED))
        and (query.after is None or (row.seq < query.after if query.newest_first else row.seq > query.after))
        and (query.finished_before is None or (row.finished is not None and row.finished < query.finished_before))
        and (
            query.expired_at is None or (row.state in WAITING and _expired(row, query.expired_after, query.expired_at))
        )
    )


def _expired(row: Job, since: float, until: float) -> bool:
    return row.expires is not None and since < row.expires <= until


# ── fork ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
# A lock that another thread holds at the moment of a fork stays locked in the child for ever, over a half-changed dict.
# So a fork waits until it holds every storage's lock itself, and parent and child then each let go of theirs.

_births = threading.Lock()
_storages: WeakSet[MemoryStorage] = WeakSet()
_held: list[MemoryStorage] = []


def _before_fork() -> None:
    _births.acquire()
    _held.extend(_storages)
    for storage in _held:
        storage._lock.acquire()


def _after_fork() -> None:
    for storage in _held:
        storage._lock.release()
    _held.clear()
    _births.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
