"""Plans: which jobs wait for which others, and how the results of those reach them. Pure.

A job that waits for others is a *dependent*, each of the others a *prerequisite* of it, and what joins the two is an
*edge*. The dependent is `blocked` until every prerequisite has ended. What an end means for it, its edge's rule says;
the decision is `liteq.lifecycle.depend`. An edge that passes a result appends it to the dependent's positional
arguments, as the bytes that were stored: nothing is encoded anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from liteq.errors import ConfigurationError, DependencyFailed, TaskExpired, TaskFailed, TaskRevoked

#: How the reason of a blocked job begins that waits for other jobs; the id of the first one follows.
WAITS_UNTIL = "waits until job "
#: What is kept of the traceback of a prerequisite that failed, in characters; its job has all of it.
LONGEST_TRACEBACK = 2_000


class Rule(IntEnum):
    """Which end of a prerequisite lets the dependent go on."""

    SUCCESS = 0  # only success; any other end is the dependent's end, too
    END = 1  # any
    FAILURE = 2  # only a failure: it is an error handler


class Edge(NamedTuple):
    """One new job waits for another one.

    Args:
        job: the position of the dependent among the jobs that are stored together.
        prior: the ``seq`` of a stored prerequisite; of one that is stored together with it, ``~position``.
        rule: which end of it counts.
        passes: whether its result is appended to the dependent's arguments.
    """

    job: int
    prior: int
    rule: Rule = Rule.SUCCESS
    passes: bool = False


class Terms(NamedTuple):
    """What holds for one dependent.

    Args:
        shape: how the results that are passed become arguments; see `shape_of`. ``None``: there are none.
        delay: seconds from the end of the last prerequisite to when it is due.
        lasts: seconds from then after which it expires.
    """

    shape: str | None = None
    delay: float | None = None
    lasts: float | None = None


class Plan(NamedTuple):
    """What the jobs wait for that are stored together.

    Args:
        edges: those of one dependent in the order in which results are passed.
        terms: by the position of the dependent; one without edges waits for nothing.
        pending: edges to jobs that are not stored yet, and were enqueued in the same batch: the position of the
            dependent, the handle on the other, the rule. None of them is left when the plan comes to a storage.
    """

    edges: Sequence[Edge]
    terms: Mapping[int, Terms]
    pending: Sequence[tuple[int, object, Rule]] = ()

    def moved(self, by: int) -> Plan:
        """The same plan for jobs that stand ``by`` positions further back."""
        edges = [edge._replace(job=edge.job + by, prior=_moved(edge.prior, by)) for edge in self.edges]
        pending = [(position + by, handle, rule) for position, handle, rule in self.pending]
        return Plan(edges, {position + by: terms for position, terms in self.terms.items()}, pending)

    def found(self, places: Mapping[int, int]) -> Plan:
        """The plan with its pending edges made good.

        Args:
            places: positions by the ``id()`` of the handle.

        Raises:
            ConfigurationError: a handle is not among them.
        """
        if not all(id(handle) in places for _, handle, _ in self.pending):
            raise ConfigurationError(
                "a job is to wait for one that is not stored: its batch has not ended yet, or was dropped; nothing was "
                "stored"
            )
        pending = [Edge(position, ~places[id(handle)], rule) for position, handle, rule in self.pending]
        return Plan([*self.edges, *pending], self.terms)


def _moved(prior: int, by: int) -> int:
    return prior if prior >= 0 else prior - by


#: One passed result: its bytes (``None``: the task returned ``None``), or the words of `unsuccessful` about a job that
#: ended without success; no words: it is gone.
Input = bytes | None | tuple[str, ...]


class Inputs(NamedTuple):
    """What the prerequisites of a claimed job pass to it, each an `Input`, and how that becomes arguments; see
    `shape_of`."""

    shape: str
    values: tuple[Any, ...]


class Link(NamedTuple):
    """One end of an edge, seen from the other: the job there and where it stands; ``None``: it was purged."""

    seq: int
    id: str
    task: str
    state: str | None
    rule: Rule


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────────────

#: Where results come from: one job, by its position, or a list of such.
Ends = int | list[Any]


def shape_of(ends: Ends) -> str:
    """How passed results become arguments, as JSON: a number is so many results as they come, a list is one argument.

    One job gives ``[1]``, a group of 10,000 ``[[10000]]``, a group of one job and a group of two ``[[1, [2]]]``.
    """
    return json.dumps([1] if isinstance(ends, int) else [_compressed(ends)], separators=(",", ":"))


def _compressed(ends: list[Any]) -> list[Any]:
    found: list[Any] = []
    for one in ends:
        if isinstance(one, list):
            found.append(_compressed(one))
        elif found and isinstance(found[-1], int):
            found[-1] += 1
        else:
            found.append(1)
    return found


def leaves(ends: Ends) -> Iterator[int]:
    """The positions in their order."""
    if isinstance(ends, int):
        yield ends
        return
    for one in ends:
        yield from leaves(one)


def arguments(inputs: Inputs, loads: Callable[[bytes], Any]) -> list[Any]:
    """The arguments that are appended.

    Args:
        inputs: of the claimed job.
        loads: decodes a stored result.

    Raises:
        ResultGone: a result is not in the file any more.
    """
    values = (value_of(one, loads) for one in inputs.values)
    return _shaped(json.loads(inputs.shape), values)


def _shaped(shape: list[Any], values: Iterator[Any]) -> list[Any]:
    found: list[Any] = []
    for one in shape:
        if isinstance(one, list):
            found.append(_shaped(one, values))
        else:
            found += [next(values) for _ in range(one)]
    return found


class ResultGone(LookupError):
    """A result that a job takes was purged before it could run (again)."""


def value_of(given: Input, loads: Callable[[bytes], Any]) -> Any:
    """What one prerequisite passes."""
    if given is None:
        return None
    if isinstance(given, tuple):
        if not given:
            raise ResultGone("a job whose result it takes is not in the file any more")
        return unsuccessful(*given)
    return loads(given)


# ── in words ─────────────────────────────────────────────────────────────────────────────────────────────


def reason(first: str, others: int) -> str:
    """Why a dependent is blocked, in words.

    Args:
        first: the id of the oldest prerequisite that has not ended.
        others: how many more there are; each counts once, however often its result is passed.
    """
    more = f" and {others} other{'s'[: others > 1]} have" if others else " has"
    return f"{WAITS_UNTIL}{first}{more} ended"


def is_waiting(why: str | None) -> bool:
    """Whether a job that is blocked for this reason waits for other jobs."""
    return why is not None and why.startswith(WAITS_UNTIL)


def unsuccessful(
    job_id: str, state: str, why: str = "", error_type: str = "", message: str = "", traceback: str = ""
) -> TaskFailed:
    """The exception that tells how a job ended without success.

    Args:
        state: ``"failed"``, ``"revoked"`` or ``"expired"``.
        why: the reason kept with the job.
        error_type, message, traceback: of its last attempt.
    """
    if state == "revoked":
        return TaskRevoked(job_id, "Revoked", why or "revoked")
    if state == "expired":
        return TaskExpired(job_id, "Expired", why or "not started before it expired")
    if error_type == DependencyFailed.__name__:
        return DependencyFailed(job_id, error_type, message)
    if not error_type:
        return TaskFailed(job_id, "Unknown", "its history was lost")
    return TaskFailed(job_id, error_type, message, traceback)


def merged(plans: Iterable[tuple[Plan | None, int]]) -> Plan | None:
    """One plan of several for jobs that are stored together.

    Args:
        plans: each with the position of its first job.
    """
    found = [plan.moved(start) for plan, start in plans if plan is not None]
    if not found:
        return None
    terms = {position: terms for plan in found for position, terms in plan.terms.items()}
    pending = [edge for plan in found for edge in plan.pending]
    return Plan([edge for plan in found for edge in plan.edges], terms, pending)
