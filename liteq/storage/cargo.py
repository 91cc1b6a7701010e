"""What goes along when everything is moved from one storage to another, and what becomes of it there. Pure.

A parcel is a job with everything that is kept about it. Numbers in parcels (``seq``) are those of the storage that they
come from; `received` gives each job the number that it has in the new one: its own, as long as that is free.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from liteq.errors import StorageError
from liteq.job import FINISHED, Job, JobState
from liteq.plan import Rule, Terms
from liteq.schedule import Schedule
from liteq.step import Step


class Tie(NamedTuple):
    """That a job waits, or has waited, for another one; see `liteq.plan.Edge`."""

    prior: int
    rule: Rule
    passes: bool


class Parcel(NamedTuple):
    """One job and what is kept about it.

    Args:
        job: as it stands; its attempts are those that are stored, without one that succeeded.
        key: its unique key; ``holds``: it was the last to take it; ``after``: the running job of it that it follows.
        steps: what it has recorded.
        events: what was sent to it and not taken yet: names and data.
        awaits: the event that wakes it, and under which claim number.
        terms: as a dependent, if it is one; ``ties``: to whom, as far as they are still there; ``cause``: the job
            because of which it ended.
    """

    job: Job
    key: str | None = None
    holds: bool = False
    after: int | None = None
    steps: tuple[Step, ...] = ()
    events: tuple[tuple[str, bytes | None], ...] = ()
    awaits: tuple[str, int] | None = None
    terms: Terms | None = None
    ties: tuple[Tie, ...] = ()
    cause: int | None = None


def tidy(parcel: Parcel) -> Parcel:
    """The parcel in the one form that says the same: steps in order, and no wait that is over."""
    job, awaits = parcel.job, parcel.awaits
    if awaits is not None and (job.state not in (JobState.BLOCKED, JobState.SCHEDULED) or awaits[1] != job.claim):
        awaits = None
    steps = sorted(parcel.steps, key=lambda step: (step.position, step.recorded, step.key))
    return parcel._replace(steps=tuple(steps), awaits=awaits)


class Mark(NamedTuple):
    """One of the storage's marks."""

    key: str
    value: str


#: What `Storage.unload` hands out.
Piece = Mark | Schedule | Parcel


class Taken(NamedTuple):
    """What `Storage.take_in` has done: how many of each were stored, and how many there were already."""

    jobs: int = 0
    known: int = 0
    schedules: int = 0
    marks: int = 0


class Residents(NamedTuple):
    """What is asked of the storage that takes parcels in.

    Args:
        known: the ``seq`` of the job of this id.
        holder: the ``seq`` of the last to take this key of a task.
        finished: which of these jobs have ended, or are not there.
    """

    known: Callable[[str], int | None]
    holder: Callable[[str, str], int | None]
    finished: Callable[[Collection[int]], Set[int]]


class Received(NamedTuple):
    """What is to be stored.

    Args:
        parcels: with their new numbers.
        seqs: the new number of each old one, also of jobs that are there already.
        missing: how many edges of each dependent lead to a job that has not finished.
        touched: dependents that have an edge to a job that is there already.
        over: jobs that are there already, have ended, and are still waited for by one of their key.
    """

    parcels: list[Parcel]
    seqs: dict[int, int]
    missing: dict[int, int]
    touched: set[int]
    over: set[int]


def received(parcels: Sequence[Parcel], next_seq: int, residents: Residents) -> Received:
    """Give the jobs their numbers, leave out those that are there already, or whose key somebody has there.

    Args:
        parcels: in order of ``seq``.
        next_seq: the lowest number that is free, and all above it are.
        residents: who is there.

    Raises:
        StorageError: a job is running, or the order is not kept; nothing may be stored.
    """
    seqs: dict[int, int] = {}
    ids: dict[str, int] = {}
    new: list[tuple[int, Parcel]] = []
    last = 0
    for parcel in parcels:
        _check(parcel.job, last)
        last = parcel.job.seq
        there = ids.get(parcel.job.id) or _there(parcel, residents)
        if there is None:
            there = max(parcel.job.seq, next_seq)
            next_seq = there + 1
            ids[parcel.job.id] = there
            new.append((there, parcel))
        seqs[last] = there
    made = [_renumbered(parcel, seq, seqs, residents) for seq, parcel in new]
    return _counted(made, seqs, residents)


def _check(job: Job, last: int) -> None:
    if job.state is JobState.RUNNING:
        raise StorageError(f"job {job.id} is running elsewhere and cannot be taken in; nothing was stored")
    if (job.state is JobState.SCHEDULED and job.due is None) or (job.state in FINISHED and job.finished is None):
        raise StorageError(f"job {job.id} cannot be {job.state} without its time; nothing was stored")
    if job.seq <= last:
        raise StorageError(f"job {job.id} is out of order; nothing was stored")


def _there(parcel: Parcel, residents: Residents) -> int | None:
    """The job that is there instead of this one, if any."""
    known = residents.known(parcel.job.id)
    if known is not None or parcel.key is None or parcel.job.state in FINISHED:
        return known
    holder = residents.holder(parcel.job.task, parcel.key)
    return None if holder is None or residents.finished([holder]) else holder


def _renumbered(parcel: Parcel, seq: int, seqs: Mapping[int, int], residents: Residents) -> Parcel:
    job = parcel.job
    holds = parcel.holds
    if holds and parcel.key is not None and job.state in FINISHED:  # it holds it against requeues only
        holds = residents.holder(job.task, parcel.key) is None
    return parcel._replace(
        job=job._replace(seq=seq),
        holds=holds,
        after=seqs.get(parcel.after) if parcel.after is not None else None,
        cause=seqs.get(parcel.cause) if parcel.cause is not None else None,
        # A job that is not there any more has finished: that is all that its edge could say.
        ties=tuple(tie._replace(prior=seqs[tie.prior]) for tie in parcel.ties if tie.prior in seqs),
    )


def _counted(made: list[Parcel], seqs: dict[int, int], residents: Residents) -> Received:
    new = {parcel.job.seq: parcel.job.state for parcel in made}
    outside = {tie.prior for parcel in made for tie in parcel.ties} - new.keys()
    over = set(residents.finished(outside)) if outside else set()
    over |= {seq for seq, state in new.items() if state in FINISHED}
    dependents = [parcel for parcel in made if parcel.terms is not None]
    missing = {one.job.seq: sum(tie.prior not in over for tie in one.ties) for one in dependents}
    touched = {one.job.seq for one in dependents if any(tie.prior in outside for tie in one.ties)}
    followed = {parcel.after for parcel in made if parcel.after is not None} - new.keys()
    return Received(made, seqs, missing, touched, set(residents.finished(followed)) if followed else set())


def moved_schedules(
    schedules: Sequence[Schedule], names: Collection[str], seqs: Mapping[int, int]
) -> Iterator[Schedule]:
    """The schedules that are new, with the number that their last job has now.

    Args:
        names: of those that are there.
    """
    for schedule in schedules:
        if schedule.name not in names:
            last = schedule.last_job
            yield schedule._replace(last_job=None if last is None else seqs.get(last))
