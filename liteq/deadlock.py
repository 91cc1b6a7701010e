"""Jobs that wait for jobs which cannot start: found within a second, and told, instead of hanging for ever.

A worker whose job waits for another job is not free for that one. If every worker that could run it waits like this,
nobody ever will. `Scene` says, from where the jobs stand, which of the waiting ones are to give up; it is pure.
`Parents` keeps watch: one thread in each process in which jobs wait.

What a job waits for is written down as a mark, ``wait:<seq>``, and only where its consumer has no worker left: others
cannot know otherwise that a running job does not get on. The mark is gone before the job goes on, so that nobody takes
one that computes for one that waits.

The rule errs on the side of waiting. A job is given up only if, twice in succession, everything it waits for could be
started by nobody but consumers whose workers all wait in the same way, and if of them all it is the one that would
give up first by itself (by the timeout of its ``get()`` or of its task; among equals the newest). So what it waits for
certainly would not have run in time, while what the others wait for may, as soon as its worker is free. A lock or limit
of which all slots are held by jobs that wait is like such a consumer.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from liteq.clock import Clock, SystemClock
from liteq.errors import StorageError
from liteq.gates import PROCESS, gate_of, is_rate
from liteq.job import Job, JobState
from liteq.lifecycle import EVENT, PAUSE_MARK, UNKNOWN_TASK
from liteq.plan import first_of
from liteq.storage.base import Owner, Standing, Storage
from liteq.unique import followed_by_key

WAIT_MARK = "wait:"

#: Seconds between two looks. Two must agree, so a job is told after two to three of them.
LOOK_EVERY = 0.2
#: Seconds after which one that waits for a job that nobody can start says so in the log.
WARN_AFTER = 1.0
#: Seconds the thread stays after the last job has left.
LINGER = 5.0


class Wait(NamedTuple):
    """A running job that goes on when one of ``children`` has ended, or at ``until`` (``inf``: it has no timeout)."""

    seq: int
    claim: int
    children: tuple[int, ...]
    until: float


# ── the rule ─────────────────────────────────────────────────────────────────────────────────────────────


class Scene:
    """Where everything stands at one moment.

    Args:
        waits: of running jobs, by ``seq``.
        standing: of every running job, and of what is waited for; what has finished is missing.
        owners: the consumers.
        paused: queues.
        now: seconds since the epoch.
        holders: by the reason for which a job is blocked at a full lock or limit, the jobs that hold its slots; by
            that for which it follows another one of its unique key, that one; by that for which it waits for other
            jobs, the first of them.
    """

    def __init__(
        self,
        waits: Mapping[int, Wait],
        standing: Mapping[int, Standing],
        owners: Iterable[Owner],
        paused: frozenset[str],
        now: float,
        holders: Mapping[str, frozenset[int]] | None = None,
    ) -> None:
        self._holders: Mapping[str, frozenset[int]] = holders or {}
        self._standing = standing
        self._paused = paused
        self._now = now
        self._consumers = {one.number: one for one in owners if one.alive and one.info.get("kind") != PROCESS}
        self._running: dict[int, list[int]] = {number: [] for number in self._consumers}
        for one in standing.values():
            if one.state is JobState.RUNNING and one.owner in self._running:
                self._running[one.owner].append(one.seq)
        #: Those that wait for each other's workers: the largest set in which nobody gets on before another one does.
        self._stuck = {seq: wait for seq, wait in waits.items() if self._waits_still(wait)}
        self._let_go_what_gets_on()

    def _waits_still(self, wait: Wait) -> bool:
        own = self._standing.get(wait.seq)
        here = own is not None and own.state is JobState.RUNNING and own.claim == wait.claim
        return here and own is not None and own.owner in self._consumers and wait.until > self._now

    def _let_go_what_gets_on(self) -> None:
        while free := [seq for seq, wait in self._stuck.items() if any(map(self._gets_on, wait.children))]:
            for seq in free:
                del self._stuck[seq]

    def doomed(self) -> dict[int, Wait]:
        """The jobs that wait in vain, by ``seq``: of those that wait for each other's workers the first to give up."""
        return {seq: wait for seq, wait in self._stuck.items() if self._is_first(wait)}

    def _is_first(self, wait: Wait) -> bool:
        """Whether none of those whose workers it needs, directly or not, would give up before it."""
        seen, ahead = {wait.seq}, [wait]
        while ahead:
            for seq in self._in_the_way(ahead.pop()) - seen:
                seen.add(seq)
                other = self._stuck[seq]
                if (other.until, -other.seq) < (wait.until, -wait.seq):
                    return False
                ahead.append(other)
        return True

    def _in_the_way(self, wait: Wait) -> set[int]:
        """The stuck jobs of which one has to end before this one can go on."""
        needed: set[int] = set()
        for child in wait.children:
            job = self._standing[child]
            if job.state is JobState.RUNNING:
                needed.add(child)
                continue
            if job.reason is not None and job.reason in self._holders:
                needed |= self._holders[job.reason]
                continue
            able = self._consumers if job.state is JobState.BLOCKED else self.consumers_of(job.queue)
            for consumer in able:
                needed.update(self._running[consumer])
        return needed

    def _gets_on(self, seq: int) -> bool:
        """Whether this job has finished, is getting on, may start one day, or has reasons of its own not to."""
        job = self._standing.get(seq)
        if job is None:
            return True
        if job.state is JobState.RUNNING:
            return seq not in self._stuck
        if job.reason is not None and job.reason in self._holders:
            return any(holder not in self._stuck for holder in self._holders[job.reason])
        if job.state is JobState.BLOCKED:  # by jobs that may be in any queue
            reason = job.reason or ""
            return reason.startswith((UNKNOWN_TASK, EVENT)) or any(map(self._has_room, self._consumers))
        if job.queue in self._paused or (job.due or 0.0) > self._now:
            return True
        able = self.consumers_of(job.queue)
        return not able or any(map(self._has_room, able))

    def consumers_of(self, queue: str) -> list[int]:
        """The living consumers that take jobs from a queue."""
        return [number for number, one in self._consumers.items() if serves(one, queue)]

    def _has_room(self, consumer: int) -> bool:
        running = self._running[consumer]
        return len(running) < workers_of(self._consumers[consumer]) or any(seq not in self._stuck for seq in running)

    def is_crowded(self, seq: int) -> bool:
        """Whether the consumer that runs this job runs as many as it has workers."""
        job = self._standing.get(seq)
        if job is None or job.owner is None or job.owner not in self._consumers:
            return False
        return len(self._running[job.owner]) >= workers_of(self._consumers[job.owner])

    def is_at_a_full_gate(self, wait: Wait) -> bool:
        """Whether one of those that it waits for needs a slot of a lock or limit that has none."""
        return any(job.reason in self._holders for seq in wait.children if (job := self._standing.get(seq)) is not None)

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


def _holders(storage: Storage, reasons: Iterable[str | None]) -> dict[str, frozenset[int]]:
    """By reason, which jobs hold all slots of the lock or limit that it names, where only jobs do; or which job is
    followed, or must end first."""
    found: dict[str, frozenset[int]] = {}
    for why in reasons:
        before = followed_by_key(why or "") or first_of(why or "")
        followed = None if before is None else storage.get(before)
        if why is not None and followed is not None:
            found[why] = frozenset((followed.seq,))
        gate = gate_of(why or "")
        for state in storage.gates.states(gate) if gate is not None and not is_rate(gate) else ():
            jobs = frozenset(place.job for place in state.holders if place.job is not None)
            if why is not None and state.name == gate and len(jobs) == len(state.holders) >= state.slots:
                found[why] = jobs
    return found


def workers_of(consumer: Owner) -> float:
    """How many jobs it runs at a time; any number where it did not say."""
    workers = consumer.info.get("workers")
    return workers if isinstance(workers, int) else math.inf


# ── the watch ────────────────────────────────────────────────────────────────────────────────────────────


class Parent:
    """One job's waiting, while it lasts.

    Args:
        job: the one that waits.
        children: the ``seq`` of those it waits for; one of them is enough for it to go on.
        until: when it gives up by itself, in seconds since the epoch.
        wake: called, on another thread, when `doomed` has become true.
    """

    __slots__ = ("began", "children", "doomed", "is_ours", "job", "until", "wake", "warned")

    def __init__(self, job: Job, children: tuple[int, ...], until: float, wake: Callable[[], object]) -> None:
        self.job = job
        self.children = children
        self.until = until
        self.wake = wake
        self.began = SystemClock.monotonic()
        #: Whether the job is one of this storage's; ``None``: not asked yet.
        self.is_ours: bool | None = None
        #: It waits in vain: what it waits for cannot start before it ends.
        self.doomed = False
        self.warned = False


class Parents:
    """The jobs of this process that wait for jobs of one storage, and the thread that watches them.

    Args:
        storage: of both.
        clock: the app's.
    """

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._storage = storage
        self._clock = clock
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._waiting: dict[int, list[Parent]] = {}
        self._published: dict[int, str] = {}
        self._publishing = threading.Lock()
        self._suspected: dict[int, Wait] = {}
        self._thread: threading.Thread | None = None

    @contextmanager
    def waiting(self, job: Job, children: Iterable[int], until: float, wake: Callable[[], object]) -> Iterator[Parent]:
        """``job`` waits for one of ``children`` for the length of the block; see `Parent`."""
        parent = self.enter(job, children, until, wake)
        try:
            yield parent
        finally:
            self.leave(parent)

    def enter(self, job: Job, children: Iterable[int], until: float, wake: Callable[[], object]) -> Parent:
        """As `waiting`, up to `leave`."""
        if self._pid != os.getpid():
            self._reset()
        parent = Parent(job, tuple(children), until, wake)
        with self._changed:
            self._waiting.setdefault(job.seq, []).append(parent)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="liteq-deadlocks", daemon=True)
                self._thread.start()
            elif len(self._waiting) == 1:
                self._changed.notify()
        return parent

    def leave(self, parent: Parent) -> None:
        """The waiting is over. Returns once nobody takes the job for one that waits."""
        seq = parent.job.seq
        with self._changed:
            parents = self._waiting.get(seq, [])
            if parent in parents:
                parents.remove(parent)
            if parents:
                return
            self._waiting.pop(seq, None)
        if seq in self._published:
            self._withdraw(seq)

    def is_published(self, parent: Parent) -> bool:
        """Whether `leave` will have to write."""
        return parent.job.seq in self._published

    def close(self) -> None:
        """Stop the thread; whoever waits goes on waiting unwatched."""
        if self._pid != os.getpid():
            return
        with self._changed:
            thread, self._thread = self._thread, None
            self._waiting.clear()
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _work(self) -> None:
        while self._goes_on():
            try:
                self._look()
            except StorageError as error:
                from liteq import logs

                logs.say(logs.DEBUG, "looking for deadlocks failed and will be tried again", error=error)
                self._suspected = {}

    def _goes_on(self) -> bool:
        """Sleep until it is time for another look; False, and no thread any more, if nobody needs one."""
        with self._changed:
            if not self._waiting:
                self._suspected = {}
                self._changed.wait(LINGER)
                if not self._waiting and self._thread is threading.current_thread():
                    self._thread = None
            if self._thread is threading.current_thread():
                self._changed.wait(LOOK_EVERY)
            return self._thread is threading.current_thread()

    # ── one look ─────────────────────────────────────────────────────────────────────────────────────

    def _look(self) -> None:
        mine = self._those_of_ours()
        if not mine:
            self._suspected = {}
            return
        waits = {seq: _merged(parents) for seq, parents in mine.items()}
        scene = self._scene(waits)
        self._warn(scene, mine)
        crowded = [wait for seq, wait in waits.items() if scene.is_crowded(seq) or scene.is_at_a_full_gate(wait)]
        if not crowded:
            self._suspected = {}
            return
        for wait in crowded:
            self._publish(wait)
        doomed = self._scene(_read(self._storage.marks(WAIT_MARK))).doomed()
        for seq in mine.keys() & doomed.keys():
            if self._suspected.get(seq) == doomed[seq]:
                for parent in mine[seq]:
                    parent.doomed = True
                    parent.wake()
        self._suspected = doomed

    def _those_of_ours(self) -> dict[int, list[Parent]]:
        """By ``seq`` the jobs that have waited since the last look at least, and run for this storage's consumers."""
        ripe = SystemClock.monotonic() - LOOK_EVERY / 2
        with self._changed:
            mine = {
                seq: list(parents)
                for seq, parents in self._waiting.items()
                if all(one.began <= ripe for one in parents)
            }
        for parents in mine.values():
            for parent in parents:
                if parent.is_ours is None:
                    parent.is_ours = self._knows(parent.job)
        return {seq: parents for seq, parents in mine.items() if all(one.is_ours for one in parents)}

    def _knows(self, job: Job) -> bool:
        """Whether this is a job of this storage, and not one of another file that happens to have the same number."""
        found = self._storage.get(job.id)
        return found is not None and (found.seq, found.created, found.claim) == (job.seq, job.created, job.claim)

    def _scene(self, waits: Mapping[int, Wait]) -> Scene:
        storage = self._storage
        standing = storage.standing({child for wait in waits.values() for child in wait.children})
        paused = frozenset(key.removeprefix(PAUSE_MARK) for key in storage.marks(PAUSE_MARK))
        holders = _holders(storage, {one.reason for one in standing.values() if one.state is JobState.BLOCKED})
        return Scene(waits, standing, storage.owners(), paused, self._clock.now(), holders)

    def _warn(self, scene: Scene, mine: Mapping[int, list[Parent]]) -> None:
        ripe = SystemClock.monotonic() - WARN_AFTER
        for parent in (one for parents in mine.values() for one in parents):
            if parent.warned or parent.began > ripe:
                continue
            reasons = {reason for child in parent.children if (reason := scene.nobody_starts(child)) is not None}
            if reasons:
                from liteq import logs

                parent.warned = True
                reason = "; ".join(sorted(reasons))
                logs.say(logs.WARNING, "a job waits for one that nobody starts", job=parent.job.id, reason=reason)

    # ── what others can see ──────────────────────────────────────────────────────────────────────────

    def _publish(self, wait: Wait) -> None:
        seq, value = wait.seq, _written(wait)
        with self._publishing:
            with self._changed:
                if seq not in self._waiting:
                    return  # it has gone on meanwhile
                if self._published.get(seq) == value:
                    return
                self._published[seq] = value
            self._set(f"{WAIT_MARK}{seq}", value)

    def _withdraw(self, seq: int) -> None:
        with self._publishing:
            with self._changed:
                if seq in self._waiting or self._published.pop(seq, None) is None:
                    return
            self._set(f"{WAIT_MARK}{seq}", None)

    def _set(self, key: str, value: str | None) -> None:
        while not self._storage.swap(key, self._storage.marks(key).get(key), value):
            continue


def _merged(parents: list[Parent]) -> Wait:
    """What one job waits for, which may do so in several places at once."""
    job = parents[0].job
    children = sorted({child for parent in parents for child in parent.children})
    return Wait(job.seq, job.claim, tuple(children), min(parent.until for parent in parents))


def _written(wait: Wait) -> str:
    until = None if wait.until == math.inf else wait.until
    return json.dumps({"claim": wait.claim, "children": wait.children, "until": until})


def _read(marks: Mapping[str, str]) -> dict[int, Wait]:
    waits = {}
    for key, value in marks.items():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a newer liteq's, or nobody's
            seq, said = int(key.removeprefix(WAIT_MARK)), json.loads(value)
            until = math.inf if said["until"] is None else float(said["until"])
            waits[seq] = Wait(seq, int(said["claim"]), tuple(said["children"]), until)
    return waits


def drop_stale(storage: Storage) -> None:
    """Drop the marks of jobs that have ended without taking theirs back: their process was killed."""
    marks = storage.marks(WAIT_MARK)
    if not marks:
        return
    standing = storage.standing(())
    waits = _read(marks)
    kept = {f"{WAIT_MARK}{seq}" for seq, wait in waits.items() if seq in standing and standing[seq].claim == wait.claim}
    for key in marks.keys() - kept:
        storage.swap(key, marks[key], None)
