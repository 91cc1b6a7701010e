"""Jobs that wait for jobs which cannot start: found within a second, and told, instead of hanging for ever.

A worker whose job waits for another job is not free for that one. If every worker that could run it waits like that,
nobody ever will. `liteq.standstill` says which of the waiting ones are to give up. `Parents` keeps watch: one thread in
each process in which jobs wait. Two looks in succession have to agree.

What a job waits for is written down as a mark, ``wait:<seq>``, and only where its consumer has no worker left, or
where what it waits for is held up otherwise: others cannot know that a running job does not get on. The mark is gone
before the job goes on, so that nobody takes one that computes for one that waits.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from liteq.clock import Clock, SystemClock
from liteq.errors import StorageError
from liteq.gates import gate_of, is_rate
from liteq.job import Job, JobState
from liteq.lifecycle import PAUSE_MARK
from liteq.plan import Rule, is_waiting
from liteq.standstill import Doom, Scene, Wait
from liteq.storage.base import CALLER, Owner, Standing, Storage
from liteq.unique import followed_by_key

WAIT_MARK = "wait:"

#: Seconds between two looks. Two must agree, so a job is told after two to three of them.
LOOK_EVERY = 0.2
#: Seconds after which one that waits for a job that nobody can start says so in the log.
WARN_AFTER = 1.0
#: So many edges of plans are looked at; what waits for more counts as if it might end by what was not seen.
MANY = 1_000
#: That what was not seen may have ended, and be the end of whatever waits for it; no job has this number.
_UNKNOWN = (-1, Rule.FAILURE)
#: Seconds the thread stays after the last job has left.
LINGER = 5.0


# ── where everything stands ──────────────────────────────────────────────────────────────────────────────


def _holders(storage: Storage, reasons: Iterable[str | None]) -> dict[str, frozenset[int]]:
    """By reason, which jobs hold all slots of the lock or limit that it names, where only jobs do."""
    found: dict[str, frozenset[int]] = {}
    for why in reasons:
        gate = gate_of(why or "")
        for state in storage.gates.states(gate) if gate is not None and not is_rate(gate) else ():
            jobs = frozenset(place.job for place in state.holders if place.job is not None)
            if why is not None and state.name == gate and len(jobs) == len(state.holders) >= state.slots:
                found[why] = jobs
    return found


def _after(
    storage: Storage, edges: Collection[tuple[int, int, Rule]], standing: Mapping[int, Standing]
) -> dict[int, list[tuple[int, Rule]]]:
    """By blocked job, which ones have to end before it: those of its edges, and the one that has its unique key."""
    found: dict[int, list[tuple[int, Rule]]] = {}
    for seq, prior, rule in edges:
        if seq in standing and _awaits_jobs(standing[seq]):
            found.setdefault(seq, []).append((prior, rule))
    for seq, job in standing.items():
        running = None if job.reason is None else followed_by_key(job.reason)
        followed = None if running is None else storage.get(running)
        if followed is not None:
            found.setdefault(seq, []).append((followed.seq, Rule.END))
    if len(edges) >= MANY:
        for known in found.values():
            known.append(_UNKNOWN)
    return found


def _awaits_jobs(job: Standing) -> bool:
    return job.reason is not None and (is_waiting(job.reason) or followed_by_key(job.reason) is not None)


def scene_of(storage: Storage, waits: Mapping[int, Wait], owners: Iterable[Owner], now: float) -> Scene:
    """Where everything stands in a storage that has to do with these waits."""
    children = {child for wait in waits.values() for child in wait.children}
    edges = storage.plans.awaited(children, MANY)
    standing = storage.standing(children | {prior for _, prior, _ in edges})
    paused = frozenset(key.removeprefix(PAUSE_MARK) for key in storage.marks(PAUSE_MARK))
    holders = _holders(storage, {one.reason for one in standing.values() if one.state is JobState.BLOCKED})
    return Scene(waits, standing, owners, paused, now, holders, _after(storage, edges, standing))


def held_by_callers(storage: Storage, callers: Sequence[Job], child: int, now: float) -> Doom | None:
    """In immediate mode: whether the newest of the running jobs, whose calls are within each other, waits in vain."""
    waits = {job.seq: Wait(job.seq, job.claim, (child,), math.inf) for job in callers}
    return scene_of(storage, waits, [Owner(CALLER, {}, True)], now).waits_in_vain(callers[-1].seq)


# ── the watch ────────────────────────────────────────────────────────────────────────────────────────────


class Parent:
    """One job's waiting, while it lasts.

    Args:
        job: the one that waits.
        children: the ``seq`` of those it waits for; one of them is enough for it to go on.
        until: when it gives up by itself, in seconds since the epoch.
        wake: called, on another thread, when `doomed` has become true.
    """

    __slots__ = ("began", "children", "doomed", "is_ours", "job", "obstacle", "until", "wake", "warned")

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
        #: Why, in words; "" where it is the lack of workers.
        self.obstacle = ""
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
        told = self._to_be_told(scene, waits)
        if not told:
            self._suspected = {}
            return
        for wait in told:
            self._publish(wait)
        doomed = self._scene(_read(self._storage.marks(WAIT_MARK))).doomed()
        for seq in mine.keys() & doomed.keys():
            if self._suspected.get(seq) == doomed[seq].wait:
                for parent in mine[seq]:
                    parent.obstacle = doomed[seq].obstacle
                    parent.doomed = True
                    parent.wake()
        self._suspected = {seq: doom.wait for seq, doom in doomed.items()}

    def _to_be_told(self, scene: Scene, waits: Mapping[int, Wait]) -> list[Wait]:
        """Of which of these others have to know."""
        known = set(_read(self._storage.marks(WAIT_MARK)))
        found = {seq: wait for seq, wait in waits.items() if scene.is_crowded(seq)}
        while more := {
            seq: wait
            for seq, wait in waits.items()
            if seq not in found and scene.is_entangled(wait, known | found.keys())
        }:
            found |= more
        return list(found.values())

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
        return scene_of(self._storage, waits, self._storage.owners(), self._clock.now())

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
