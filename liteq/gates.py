"""Gates: what lets only so many through. Locks, each task's ``max_running``, and rate limits. Pure.

A gate has a name and a number of slots. A job that needs one is claimed only together with a slot of it; otherwise it
is `blocked`, in the gate's line, until a slot is free, and neither is asked about nor costs an attempt meanwhile. A
caller who takes a lock by ``with`` holds a slot, or stands in the same line.

A rate limit (`liteq.rates`) is a gate too: instead of a slot, which comes back, a job takes a token, which is used up.

The line is ordered by priority, then by age: the order of the jobs' enqueue, into which a caller is put behind all that
were enqueued before he came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from liteq.job import Job

if TYPE_CHECKING:
    from liteq.rates import Rate

LOCK, LIMIT = "lock:", "limit:"
#: The rate of a task, and one that has a name of its own.
RATE, NAMED_RATE = "rate:", "rate_limit:"
_KINDS = (LOCK, LIMIT, RATE, NAMED_RATE)
_WAITS = "waits for "
#: The mark that overrides how many jobs of a task run at once: ``limit:<task>``.
LIMIT_MARK = LIMIT
#: And the one that overrides its rate; that of a named rate is the name of its gate.
RATE_MARK = RATE

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
    """A slot of a gate, or a token where it has a ``rate``, which a job or a caller needs.

    ``task`` is set for ``max_running`` and ``rate_limit``: the task under whose name the limit may be overridden at run
    time.
    """

    gate: str
    slots: int
    task: str | None = None
    rate: Rate | None = None


#: What a job needs before it may run.
NeedsOf = Callable[[Job], tuple[Need, ...]]
#: By task name; only tasks that need anything are in it.
Needs = Mapping[str, NeedsOf]


def lock(name: str, slots: int) -> Need:
    """A slot of the lock of this name."""
    return Need(LOCK + name, slots)


def limit(task: str, slots: int, key: str | None) -> Need:
    """A slot among the jobs of a task that may run at once; with a key, among those of the same key."""
    return Need(_name(LIMIT, task, key), slots, task)


def rate_limit(task: str, rate: Rate, key: str | None) -> Need:
    """A token of the rate at which jobs of a task may start; with a key, those of the same key."""
    return Need(_name(RATE, task, key), rate.burst, task, rate)


def named_rate(name: str, rate: Rate) -> Need:
    """A token of the rate of this name."""
    return Need(NAMED_RATE + name, rate.burst, None, rate)


def _name(kind: str, task: str, key: str | None) -> str:
    if key is not None and len(key) > _LONGEST_KEY:
        import hashlib  # costs as much as the rest of the house's floor, and few keys are that long

        key = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{kind}{task}" if key is None else f"{kind}{task}[{key}]"


def is_rate(gate: str) -> bool:
    """Whether one gets a token at this gate, and not a slot."""
    return gate.startswith((RATE, NAMED_RATE))


def rate_mark(gate: str, task: str | None) -> str:
    """The mark that overrides the rate of this gate."""
    return gate if task is None else RATE_MARK + task


def reason(gate: str) -> str:
    """Why a job in the line of this gate is blocked, in words."""
    kind, _, name = gate.partition(":")
    return f"{_WAITS}{kind} {name}"


def gate_of(why: str) -> str | None:
    """The gate in whose line a job is that is blocked for this reason; ``None`` where it waits for something else."""
    kind, _, name = why.removeprefix(_WAITS).partition(" ")
    return f"{kind}:{name}" if why.startswith(_WAITS) and f"{kind}:" in _KINDS else None


def lines_for(needed: Sequence[Need], full: str) -> Sequence[Need]:
    """In which lines a job is to stand that has found one of its gates full.

    In line, it keeps a slot or a token from others wherever it is the first. With a rate among its gates it stands at
    those up to the full one only: they come in the order in which the fewest others are kept waiting; see
    `liteq.definition.Definition.needs`.

    Args:
        needed: the gates that it needs, in their order.
        full: the first of them that has no room for it.
    """
    if all(need.rate is None for need in needed):
        return needed
    return needed[: [need.gate for need in needed].index(full) + 1]


def has_lapsed(woken: float, now: float) -> bool:
    """Whether a slot is not kept any more for who was let out of the line at ``woken``; also after a jump of the
    clock, in either direction.
    """
    return not now - KEPT_FOR < woken <= now + KEPT_FOR
