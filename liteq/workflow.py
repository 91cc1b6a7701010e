"""Workflows: calls that are not enqueued yet, and how they follow each other.

``add.s(1, 2)`` is one call, ``.then(...)`` makes a pipeline of it, `group` has several beside each other, `chord` one
after all of several; each may stand in each. Enqueued, a workflow is drawn up as a plan (`liteq.plan`): every job in it
is stored at once, in one transaction, those that come later as `blocked` ones. So each has its id from the beginning,
and nothing but the storage takes part in going on from one to the next.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, Unpack, overload

from liteq.errors import ConfigurationError
from liteq.job import Job, shorten
from liteq.plan import Edge, Ends, Plan, Rule, Terms, leaves, shape_of
from liteq.result import Receiver, Result, ResultGroup, WorkflowGroup, WorkflowResult

if TYPE_CHECKING:
    from liteq.definition import CallKeywords
    from liteq.engine import Engine

R = TypeVar("R")
S = TypeVar("S")

#: So many pairs of jobs, of which one waits for the other, are a mistake: two large groups after one another.
MOST_EDGES = 1_000_000

_RULES = {"collect": Rule.END, "run": Rule.END, "abort": Rule.SUCCESS, "fail": Rule.SUCCESS}


class Callee(Protocol[R]):
    """What this module asks of a Task."""

    @property
    def name(self) -> str: ...
    def using(self, **options: Unpack[CallKeywords]) -> Callee[R]: ...
    def _follow_up(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Signature[R]: ...
    def _belongs_to(self, engine: Engine) -> bool: ...
    def job(self, engine: Engine, args: tuple[Any, ...], kwargs: dict[str, Any], more: int = 0) -> Job: ...
    def _plan(self, engine: Engine, number: int) -> Plan | None: ...
    def _terms(self, shape: str | None) -> Terms: ...
    @property
    def _rule(self) -> Rule | None: ...


class Draft:
    """A plan that is being drawn up.

    Args:
        engine: of the app that enqueues it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pending: list[tuple[int, object, Rule]] = []
        self.jobs: list[Job] = []
        self.edges: list[Edge] = []
        self.terms: dict[int, Terms] = {}
        #: Positions of error handlers, and of what follows them: no steps of the way.
        self.aside: set[int] = set()

    def add(self, call: Signature[Any], given: Ends | None, rule: Rule) -> int:
        """One call as a job; answers with its position.

        Args:
            given: what it follows; ``None``: nothing.
            rule: which ends of that count.
        """
        task = call.task
        if not task._belongs_to(self._engine):
            raise ConfigurationError(f"{task.name} belongs to another app, or is not registered with this one")
        takes = call.takes and given is not None
        position = len(self.jobs)
        self.jobs.append(task.job(self._engine, call.args, call.kwargs, int(takes)))
        if given is not None:
            self.edges += [Edge(position, ~prior, rule, takes) for prior in leaves(given)]
            self.terms[position] = task._terms(shape_of(given) if takes else None)
            if len(self.edges) > MOST_EDGES:
                raise ConfigurationError(
                    f"this workflow has more than {MOST_EDGES:,} pairs of jobs of which one waits for the other; where "
                    "each of a large group follows all of another one, put a single step between them"
                )
        self._add_after(task._plan(self._engine, 1), position)
        return position

    def _add_after(self, own: Plan | None, position: int) -> None:
        """What the call says itself that it waits for."""
        if own is not None:
            own = own.moved(position)
            self.edges += own.edges
            self._pending += own.pending
            self.terms = dict(own.terms) | self.terms

    def enqueue(self, receiver: Receiver) -> None:
        """Store all of it."""
        if self.jobs:
            plan = Plan(self.edges, self.terms, self._pending) if self.terms else None
            self._engine.enqueue(self.jobs, receiver, plan)


class Workflow(ABC, Generic[R]):
    """Calls that are not enqueued yet; see the module. Immutable: each method gives a new one."""

    __slots__ = ()

    @overload
    def then(self, task: Group[S]) -> Group[S]: ...
    @overload
    def then(self, task: Single[S]) -> Pipeline[S]: ...
    @overload
    def then(self, task: Callee[S], *args: Any, **kwargs: Any) -> Pipeline[S]: ...
    def then(self, task: Any, *args: Any, **kwargs: Any) -> Any:
        """Have something follow this.

        What this returns is appended to the arguments of what follows: ``add.s(1, 2).then(mul, 10)`` calls
        ``mul(10, 3)``. After a group that is one list, in the order of its members.

        Args:
            task: a Task with ``args`` and ``kwargs``; or a signature, pipeline, chord or group. Each member of a
                group is given the result.

        Raises:
            TypeError: it is something else, or does not take these arguments.
        """
        step = _as_workflow(task, args, kwargs)
        if isinstance(step, Group):
            return step.after(self)
        return Pipeline((*self._as_steps(), *step._as_steps()))

    def _as_steps(self) -> tuple[tuple[Workflow[Any], Rule | None], ...]:
        """The steps that it is as a part of a pipeline, each with the rule that it was given, if any."""
        return ((self, None),)

    @abstractmethod
    def _draw(self, draft: Draft, given: Ends | None, rule: Rule | None) -> Ends:
        """Add its jobs to a plan; answers with those whose results are its own."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {shorten(self._text(), 200)}>"

    @abstractmethod
    def _text(self) -> str: ...


class Single(Workflow[R]):
    """A workflow that ends with one job, whose result is its own: a signature or a pipeline."""

    __slots__ = ()

    @abstractmethod
    def error(self, task: Any, *args: Any, **kwargs: Any) -> Single[R]:
        """Have something follow only if this fails for good or expires: it is given the TaskFailed, appended to its
        arguments. Otherwise it is never run, and ends as ``revoked`` without a word.

        Args:
            task: a Task with ``args`` and ``kwargs``, or a workflow.
        """


class Signature(Single[R]):
    """One call of a task that is not enqueued yet. Made by ``task.s(...)``; stored by ``app.enqueue(signature)``."""

    __slots__ = ("args", "handlers", "kwargs", "takes", "task")

    def __init__(
        self,
        task: Callee[R],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        takes: bool = True,
        handlers: tuple[Workflow[Any], ...] = (),
    ) -> None:
        self.task = task
        self.args = args
        self.kwargs = kwargs
        self.takes = takes
        self.handlers = handlers

    def using(self, **options: Unpack[CallKeywords]) -> Signature[R]:
        """The same call with other options; see `Task.using`. In a pipeline ``delay`` and ``expires`` count from when
        its turn comes."""
        return self._with(task=self.task.using(**options))

    def error(self, task: Any, *args: Any, **kwargs: Any) -> Signature[R]:
        """See `Single.error`."""
        return self._with(handlers=(*self.handlers, _as_workflow(task, args, kwargs)))

    def _with(
        self, *, task: Callee[R] | None = None, handlers: tuple[Workflow[Any], ...] | None = None
    ) -> Signature[R]:
        given = self.handlers if handlers is None else handlers
        return Signature(task or self.task, self.args, self.kwargs, takes=self.takes, handlers=given)

    def _draw(self, draft: Draft, given: Ends | None, rule: Rule | None) -> int:
        if rule is None:
            rule = self.task._rule
        if rule is None:
            rule = Rule.END if isinstance(given, list) else Rule.SUCCESS
        position = draft.add(self, given, rule)
        _draw_handlers(self.handlers, draft, position)
        return position

    def _text(self) -> str:
        words = [shorten(repr(one), 60) for one in self.args]
        words += [f"{name}={shorten(repr(value), 60)}" for name, value in self.kwargs.items()]
        return f"{self.task.name}({', '.join(words)})"


class Pipeline(Single[R]):
    """Steps one after another, each given the result of the one before. Made by `Workflow.then`."""

    __slots__ = ("_handlers", "_steps")

    def __init__(
        self, steps: Sequence[tuple[Workflow[Any], Rule | None]], handlers: tuple[Workflow[Any], ...] = ()
    ) -> None:
        self._steps = tuple(steps)
        self._handlers = handlers

    def error(self, task: Any, *args: Any, **kwargs: Any) -> Pipeline[R]:
        """See `Single.error`: whichever step fails. It is given the TaskFailed of the last step, whose message names
        the one that failed."""
        return Pipeline(self._steps, (*self._handlers, _as_workflow(task, args, kwargs)))

    def _as_steps(self) -> tuple[tuple[Workflow[Any], Rule | None], ...]:
        return ((self, None),) if self._handlers else self._steps

    def _draw(self, draft: Draft, given: Ends | None, rule: Rule | None) -> int:
        ends = given
        for step, own in self._steps:
            ends = step._draw(draft, ends, rule if own is None else own)
            rule = None  # it was about what comes before the first step
        if not isinstance(ends, int):
            raise TypeError("a pipeline ends with one job")
        _draw_handlers(self._handlers, draft, ends)
        return ends

    def _text(self) -> str:
        return " → ".join(step._text() for step, _ in self._steps)


class Group(Workflow[R]):
    """Calls beside each other. Made by `group`, and enqueued as one ResultGroup."""

    __slots__ = ("_head", "_members")

    def __init__(self, members: tuple[Workflow[R], ...], head: Workflow[Any] | None = None) -> None:
        self._members = members
        self._head = head

    def after(self, head: Workflow[Any]) -> Group[R]:
        """The same group, after something else."""
        return Group(self._members, head if self._head is None else _chain(head, self._head))

    def error(self, task: Any, *args: Any, **kwargs: Any) -> Group[R]:
        """Have something follow each member that fails; see `Single.error`."""
        return Group(tuple(_with_handler(one, task, args, kwargs) for one in self._members), self._head)

    def _draw(self, draft: Draft, given: Ends | None, rule: Rule | None) -> list[Any]:
        if self._head is not None:
            given, rule = self._head._draw(draft, given, rule), None
        return [member._draw(draft, given, rule) for member in self._members]

    def _text(self) -> str:
        head = "" if self._head is None else f"{self._head._text()} → "
        shown = [member._text() for member in self._members[:10]]
        more = ["…"] if len(self._members) > 10 else []
        return f"{head}[{', '.join(shown + more)}]"


def _chain(first: Workflow[Any], second: Workflow[Any]) -> Workflow[Any]:
    if isinstance(second, Group):
        return second.after(first)
    return Pipeline((*first._as_steps(), *second._as_steps()))


def _with_handler(member: Workflow[R], task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Workflow[R]:
    if isinstance(member, (Single, Group)):
        return member.error(task, *args, **kwargs)
    raise TypeError(f"{member!r} cannot have an error handler")


def _draw_handlers(handlers: Iterable[Workflow[Any]], draft: Draft, position: int) -> None:
    begun = len(draft.jobs)
    for handler in handlers:
        handler._draw(draft, position, Rule.FAILURE)
    draft.aside.update(range(begun, len(draft.jobs)))


def group(members: Iterable[Workflow[R]]) -> Group[R]:
    """Calls that run beside each other, in any order.

    Args:
        members: signatures, pipelines, chords or groups.

    Raises:
        TypeError: one is something else.
    """
    if isinstance(members, (Workflow, str, bytes)) or not isinstance(members, Iterable):
        raise TypeError(f"group takes a list of signatures (task.s(...)), not {type(members).__name__} {members!r}")
    found = tuple(members)
    for member in found:
        if not isinstance(member, Workflow):
            raise TypeError(f"group takes signatures (task.s(...)), not {type(member).__name__} {member!r}")
    return Group(found)


def chord(
    members: Iterable[Workflow[Any]],
    callback: Single[S] | Callee[S],
    on_failure: Literal["collect", "abort"] = "collect",
) -> Pipeline[S]:
    """One call after all of several: ``callback`` is given the list of what the members returned, in their order.

    Args:
        members: as for `group`; or a group.
        callback: a task, a signature or a pipeline.
        on_failure: a member that ended without success leaves its TaskFailed in its place (``"collect"``); or the
            callback fails at once, and is not run (``"abort"``). Other members run in both cases.

    Raises:
        TypeError, ConfigurationError: an argument is wrong.
    """
    if on_failure not in ("collect", "abort"):
        raise ConfigurationError(f"on_failure of a chord takes 'collect' or 'abort', not {on_failure!r}")
    before = members if isinstance(members, Group) else group(members)
    after = _as_workflow(callback, (), {})
    if not isinstance(after, Single):
        raise TypeError(f"the callback of a chord is one call, not {after!r}; group(...).then(group(...)) has several")
    (first, _), *others = after._as_steps()
    return Pipeline((*before._as_steps(), (first, _RULES[on_failure]), *others))


def _as_workflow(task: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Workflow[Any]:
    """A task with arguments as a signature; a workflow as it is."""
    if isinstance(task, Workflow):
        if args or kwargs:
            raise TypeError(f"{task!r} has its arguments already")
        return task
    follow_up = getattr(task, "_follow_up", None)
    if not callable(follow_up):
        raise TypeError(f"a workflow is made of tasks and signatures (task.s(...)), not {type(task).__name__} {task!r}")
    found = follow_up(args, kwargs)
    assert isinstance(found, Workflow)
    return found


def enqueue(workflow: Workflow[R], engine: Engine) -> Result[R] | ResultGroup[R]:
    """Store every job of a workflow, or, in ``app.batch()``, at its end.

    Returns:
        A handle on its last job, or, of a group, on each member's.

    Raises:
        TypeError, ConfigurationError, SerializationError, StorageError: nothing was stored.
    """
    draft = Draft(engine)
    ends = workflow._draw(draft, None, None)
    results: list[Result[Any]] = [Result(engine) for _ in draft.jobs]
    steps = [result for position, result in enumerate(results) if position not in draft.aside]
    if not isinstance(ends, int):
        draft.enqueue(Receiver(results))
        return WorkflowGroup([results[position] for position in leaves(ends)], steps)
    if len(results) == 1:
        draft.enqueue(Receiver(results))
        return results[0]
    whole: WorkflowResult[R] = WorkflowResult(engine, steps)
    draft.enqueue(Receiver(results, (ends, whole)))
    return whole
