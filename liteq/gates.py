"""Gates: what lets only so many through at once. A lock is one, and so is each task's ``max_running``. Pure.

A gate has a name and a number of slots. A job that needs one is claimed only together with a slot of it; otherwise it
is `blocked`, in the gate's line, until a slot is free, and neither is asked about nor costs an attempt meanwhile. A
caller who takes a lock by ``with`` holds a slot, or stands in the same line.

The line is ordered by priority, then by age: the order of the jobs' enqueue, into which a caller is put behind all that
were enqueued before he came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from liteq.job import Job

LOCK, LIMIT = "lock:", "limit:"
_WAITS = "waits for "
#: The mark that overrides how many jobs of a task run at once: ``limit:<task>``.
LIMIT_MARK = LIMIT

#: What owners say of themselves, as ``kind``, that run no jobs: processes that took a lock.
PROCESS = "process"

#: Seconds for which a slot is kept for a job that was let out of the line and not claimed yet. Without it, consumers of
#: one queue could serve themselves for ever before those of another see a free slot; without an end, a queue that
#: nobody serves would hold the slot for ever.
KEPT_FOR = 2.0
#: Instead of the instant at which a job was let out: it was so long ago that nothing is kept for it any more.
LAPSED = 0.0

#: Longer keys are stored by their hash.
_LONGEST_KEY = 200


class Need(NamedTuple):
    """A slot of a gate, which a job or a caller needs.

    ``task`` is set for ``max_running``: the task under whose name the number of slots may be overridden at run time.
    """

    gate: str
    slots: int
    task: str | None = None


#: What a job needs before it may run.
NeedsOf = Callable[[Job], tuple[Need, ...]]
#: By task name; only tasks that need anything are in it.
Needs = Mapping[str, NeedsOf]


def lock(name: str, slots: int) -> Need:
    """A slot of the lock of this name."""
    return Need(LOCK + name, slots)


def limit(task: str, slots: int, key: str | None) -> Need:
    """A slot among the jobs of a task that may run at once; with a key, among those of the same key."""
    if key is not None and len(key) > _LONGEST_KEY:
        import hashlib  # costs as much as the rest of the house's floor, and few keys are that long

        key = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return Need(f"{LIMIT}{task}" if key is None else f"{LIMIT}{task}[{key}]", slots, task)


def reason(gate: str) -> str:
    """Why a job in the line of this gate is blocked, in words."""
    kind, _, name = gate.partition(":")
    return f"{_WAITS}{kind} {name}"


def gate_of(why: str) -> str | None:
    """The gate in whose line a job is that is blocked for this reason; ``None`` where it waits for something else."""
    kind, _, name = why.removeprefix(_WAITS).partition(" ")
    return f"{kind}:{name}" if why.startswith(_WAITS) and f"{kind}:" in (LOCK, LIMIT) else None


def has_lapsed(woken: float, now: float) -> bool:
    """Whether a slot is not kept any more for who was let out of the line at ``woken``; also after a jump of the
    clock, in either direction.
    """
    return not now - KEPT_FOR < woken <= now + KEPT_FOR
