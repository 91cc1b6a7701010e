"""``using(after=[...])``: which jobs a call waits for, as handles and ids, and what is stored of that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from liteq.definition import check_name
from liteq.engine import Engine
from liteq.errors import ConfigurationError, JobNotFound
from liteq.job import Job, JobState
from liteq.plan import Edge, Plan, Rule, Terms
from liteq.result import Result, ResultGroup

#: Handles, and ids.
After = tuple[Result[Any] | str, ...]

_RULES = {"fail": Rule.SUCCESS, "run": Rule.END}


def check_after(value: object) -> After:
    """What ``after`` takes: a Result, an id, a ResultGroup, or several of these.

    Raises:
        TypeError: it is something else.
    """
    return tuple(_handles(value, inside=False))


def _handles(value: object, *, inside: bool) -> Iterator[Result[Any] | str]:
    if isinstance(value, Result):
        yield value
    elif isinstance(value, str):
        yield check_name(value, "after")
    elif isinstance(value, ResultGroup):
        yield from value
    elif isinstance(value, Iterable) and not inside and not isinstance(value, bytes):
        for one in value:
            yield from _handles(one, inside=True)
    else:
        raise TypeError(f"after takes Results, ids and ResultGroups, not {type(value).__name__} {value!r}")


def check_on_failure(value: object) -> Rule:
    """What ``on_failure`` of a call means.

    Raises:
        ConfigurationError: nothing.
    """
    if not isinstance(value, str) or value not in _RULES:
        raise ConfigurationError(f"on_failure takes 'fail' or 'run', not {value!r}")
    return _RULES[value]


class Waits:
    """What calls wait for.

    Args:
        after: checked.
        on_failure: ``"fail"``, which is the default, or ``"run"``.
    """

    def __init__(self, after: After, on_failure: str | None) -> None:
        self._after = after
        self._rule = check_on_failure(on_failure or "fail")

    def plan(self, engine: Engine, task: str, number: int, terms: Terms, own_id: str) -> Plan:
        """What so many calls of a task wait for.

        Raises:
            JobNotFound: there is no such job. ConfigurationError: one cannot be waited for.
        """
        stored = [one for one in self._after if isinstance(one, str) or one._id is not None]
        pending = [one for one in self._after if not isinstance(one, str) and one._id is None]
        priors = _found(engine, task, stored)
        for job in priors:
            self._check(job, task, own_id)
        edges = [Edge(position, job.seq, self._rule) for position in range(number) for job in priors]
        others = [(position, handle, self._rule) for position in range(number) for handle in pending]
        return Plan(edges, dict.fromkeys(range(number), terms) if self._after else {}, others)

    def _check(self, job: Job, task: str, own_id: str) -> None:
        if job.id == own_id:
            raise ConfigurationError(f"{task} was not enqueued: job {job.id} would wait for itself")
        if job.state is JobState.REVOKED and self._rule is Rule.SUCCESS:
            raise ConfigurationError(
                f"{task} was not enqueued: job {job.id}, which it would wait for, is revoked and will not run; restore "
                'it first, or let this one run all the same with on_failure="run"'
            )


def _found(engine: Engine, task: str, handles: Iterable[Result[Any] | str]) -> list[Job]:
    """The jobs of these handles, each once, without what is in them."""
    ids: dict[int, str] = {}
    for handle in handles:
        if isinstance(handle, str):
            ids.setdefault(engine.job(handle).seq, handle)
        else:
            _check_place(engine, task, handle)
            ids.setdefault(handle.job().seq if handle._seq is None else handle._seq, handle.id)
    jobs = engine.storage.plans.jobs(ids) if ids else []
    gone = ids.keys() - {job.seq for job in jobs}
    if gone:
        raise JobNotFound(ids[min(gone)])
    return jobs


def _check_place(engine: Engine, task: str, handle: Result[Any]) -> None:
    there, here = handle._engine.storage, engine.storage
    if there is not here and (there.location != here.location or not _is_path(here.location)):
        raise ConfigurationError(
            f"{task} was not enqueued: job {handle.id} is in {there.location}, and this app's jobs are in "
            f"{here.location}; a job can only wait for others beside it"
        )


def _is_path(location: str) -> bool:
    return location != ":memory:"
