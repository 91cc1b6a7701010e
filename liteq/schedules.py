"""Schedules: what ``app.schedules`` offers, and how what is declared in code gets into the file.

The decisions are in `liteq.schedule`, the jobs of a schedule in `liteq.slots`; when a slot is fired is the consumer's
business, in `liteq.consumer.firing`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

from liteq import schedule
from liteq.definition import (
    CRASH_RULES,
    PER_CALL,
    Definition,
    Options,
    call_arguments,
    check_integer,
    check_name,
    override_text,
)
from liteq.engine import Engine
from liteq.errors import ConfigurationError, DuplicateSchedule, ScheduleNotFound, TriggerError, UnknownTask
from liteq.instants import LATEST, in_the_calendar, moment, positive_seconds, timestamp, within_reach
from liteq.job import HEADERS, Job, JobState
from liteq.result import Result
from liteq.schedule import CatchUp, Overlap, Schedule, adopted, aimed, has_identity, require_readable, trigger_of
from liteq.slots import busy, fire
from liteq.storage.base import Fire, Owner
from liteq.task import Task, lasting
from liteq.unique import Unique, with_unique, without_unique
from liteq.workflow import Signature

if TYPE_CHECKING:
    from liteq.triggers import Trigger

T = TypeVar("T")

#: A job's id has at most 255 characters, and that of a slot is the schedule's name and an instant.
LONGEST_NAME = 200


class Unset:
    """The type of `UNSET`."""

    def __repr__(self) -> str:
        return "unchanged"


#: What `Schedules.update` leaves as it is; ``None`` means something there.
UNSET: Final = Unset()

#: The fields of a Schedule that say when it is due; the rest of a declaration says what is run.
_TIMING = ("trigger", "start", "end", "jitter")
_TEMPLATE = (
    *("task", "payload", "summary", "queue", "priority", "options", "expires"),
    *("catch_up", "overlap", "grace", "jitter", "start", "end", "max_runs"),
)


class Schedules:
    """Stored schedules: ``app.schedules``. Every method works from any process; running consumers follow at once.

    Args:
        engine: gives the app's engine of the moment.
        task: gives the task of a name; raises UnknownTask.
    """

    def __init__(self, engine: Callable[[], Engine], task: Callable[[str], Task[Any, Any]]) -> None:
        self._of_the_moment = engine
        self._task = task
        self._declared: tuple[Engine, int] | None = None

    def _engine(self) -> Engine:
        """The engine, with everything that the code declares in its file."""
        engine = self._of_the_moment()
        if engine.declared.changes and self._declared != (engine, engine.declared.changes):
            changes = engine.declared.changes
            write_declared(engine)
            self._declared = engine, changes
        return engine

    # ── questions ────────────────────────────────────────────────────────────────────────────────────

    def list(self) -> list[Schedule]:
        """All schedules in order of their names: those declared in code and those added at run time."""
        engine = self._engine()
        return [_shown(engine, one) for one in engine.storage.schedules()]

    def get(self, name: str) -> Schedule:
        """One schedule.

        Raises:
            ScheduleNotFound: there is none of this name.
        """
        engine = self._engine()
        return _shown(engine, _stored(engine, name))

    def preview(self, name: str, n: int = 10) -> Sequence[datetime]:
        """The next ``n`` instants at which it is due, jitter included, in its time zone. A paused one: as if it were
        resumed now.

        Raises:
            ScheduleNotFound: there is none of this name.
        """
        engine = self._engine()
        standing = _stored(engine, name)
        require_readable(standing)
        found = schedule.upcoming(standing, engine.clock.now(), engine.timezone)
        return [*islice(found, check_integer(n, "n"))]

    # ── changes ──────────────────────────────────────────────────────────────────────────────────────

    def add(
        self,
        name: str,
        task: Task[Any, Any] | Signature[Any] | str,
        trigger: Trigger | str,
        *,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        catch_up: CatchUp = "latest",
        overlap: Overlap = "skip",
        grace: float | timedelta | None = None,
        jitter: float | timedelta = 0,
        start: datetime | None = None,
        end: datetime | None = None,
        max_runs: int | None = None,
        replace: bool = False,
        **options: Any,
    ) -> Schedule:
        """Store a new schedule.

        Args:
            name: unique in the file, at most 200 characters.
            task: a task, a call of one (``task.s(...)``), or a task's name.
            trigger: a trigger, or its text: ``"*/5 * * * *"``, ``"every 30 seconds"``.
            args, kwargs: for the task, where it is not a call of one.
            catch_up, overlap, grace, jitter, start, end, max_runs: see `LiteQ.periodic_task`.
            replace: exchange a schedule that has this name.
            options: of its jobs, as for ``task.using``: ``queue``, ``priority``, ``retries``, ``timeout`` …

        Raises:
            DuplicateSchedule: there is one of this name, and ``replace`` is not given.
            TriggerError: the trigger cannot be read, or will never be due.
            UnknownTask: no task of this name is registered here.
            TypeError, ConfigurationError, SerializationError: another argument is wrong; the message names it.
        """
        engine = self._engine()
        template = self.template(
            name,
            task,
            trigger,
            args=args,
            kwargs=kwargs,
            catch_up=catch_up,
            overlap=overlap,
            grace=grace,
            jitter=jitter,
            start=start,
            end=end,
            max_runs=max_runs,
            options=options,
        )
        new = _begun(template, engine.clock.now())
        _require_due(new, new.slot)
        _put_new(engine, new, replace=replace)
        return self.get(name)

    def update(
        self,
        name: str,
        *,
        trigger: Trigger | str | None = None,
        task: Task[Any, Any] | Signature[Any] | str | None = None,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        catch_up: CatchUp | None = None,
        overlap: Overlap | None = None,
        grace: float | timedelta | Unset | None = UNSET,
        jitter: float | timedelta | None = None,
        start: datetime | Unset | None = UNSET,
        end: datetime | Unset | None = UNSET,
        max_runs: int | Unset | None = UNSET,
        **options: Any,
    ) -> Schedule:
        """Change what is given and leave the rest. One that is declared in code is then *edited*: it no longer follows
        the code until `reset`. With another task it keeps its arguments, and the options that were said for it; what
        it had from its task, such as the queue, comes from the other one.

        Args:
            as for `add`; ``None`` for ``grace``, ``start``, ``end`` or ``max_runs`` takes the limit away.

        Raises:
            ScheduleNotFound: there is none of this name. Otherwise as `add`.
        """
        given: dict[str, Any] = {
            "catch_up": None if catch_up is None else _one_of(catch_up, "catch_up", get_args(CatchUp)),
            "overlap": None if overlap is None else _one_of(overlap, "overlap", get_args(Overlap)),
            "jitter": None if jitter is None else within_reach(positive_seconds(jitter, "jitter"), "jitter"),
        }
        changes = {field: value for field, value in given.items() if value is not None}
        changes |= self._limits({"grace": grace, "start": start, "end": end, "max_runs": max_runs})
        engine = self._engine()

        def rule(standing: Schedule, now: float) -> Schedule:
            wanted = standing._replace(**changes)
            require_readable(wanted)
            wanted = self._with_call(wanted, task, args, kwargs)
            wanted = _with_options(wanted, options)
            if trigger is not None:
                text = str(_trigger(trigger).with_timezone(engine.timezone))
                wanted = _anchored(wanted._replace(trigger=text), now)
            _refuse_limits_at_boot(wanted)
            wanted = wanted._replace(edited=standing.edited or standing.declared is not None)
            changed = _aimed_after_change(standing, wanted, now)
            if _is_moved(standing, changed) and not changed.paused and not changed.orphaned:
                _require_due(changed, changed.slot)
            return changed

        return _shown(engine, _change(engine, name, rule))

    def pause(self, name: str) -> bool:
        """Fire no more until `resume`, whatever the code says; survives restarts. False if it is paused already.

        Raises:
            ScheduleNotFound: there is none of this name.
        """
        return self._set_paused(name, True)

    def resume(self, name: str) -> bool:
        """Undo `pause`; slots that have passed meanwhile are not caught up. False if it is not paused.

        Raises:
            ScheduleNotFound: there is none of this name.
        """
        return self._set_paused(name, False)

    def _set_paused(self, name: str, paused: bool) -> bool:
        engine = self._engine()
        if _stored(engine, name).paused is paused:
            return False
        _change(engine, name, lambda standing, now: _paused(standing, paused, now))
        return True

    def reset(self, name: str) -> Schedule:
        """Undo every `update` of a schedule that is declared in code: it follows the code again.

        Raises:
            ScheduleNotFound: there is none of this name.
            ConfigurationError: the code that runs here does not declare it.
        """
        engine = self._engine()
        told = engine.declared.entries.get(name)
        if told is None:
            _stored(engine, name)
            raise ConfigurationError(f"schedule {name!r} is not declared in the code that runs here")
        return _change(engine, name, lambda standing, now: _as_told(standing, told, now))

    def run_now(self, name: str) -> Result[Any]:
        """Run it once, now, beside its slots; also a paused one. If its last run has not ended, this one follows it
        (unless ``overlap="allow"``). It does not count towards ``max_runs``.

        Returns:
            The Result of the job; ``task.slot`` is now.

        Raises:
            ScheduleNotFound: there is none of this name.
        """
        engine = self._engine()
        while True:
            standing, now = _stored(engine, name), round(engine.clock.now(), 6)
            require_readable(standing)
            follows = standing.overlap != "allow" and busy(engine, standing).unfinished
            job = schedule.job_of(standing, schedule.Planned(now, follows), standing.last_id, now)
            after = standing._replace(last_slot=now, last_run=now, last_outcome=None, last_finished=None)
            stored = fire(engine, [Fire(after, [job._replace(id="")])])[0]
            if stored is not None:
                # Its unique key is held: storing it once more tells by which job.
                [ran] = stored or engine.storage.add([job._replace(id="", state=JobState.READY, reason=None)])
                if engine.immediate:
                    engine.run_ready()
                return Result(engine, ran.id)

    def remove(self, name: str) -> bool:
        """Delete a schedule; its jobs stay. False if there is none of this name.

        Raises:
            ConfigurationError: it is declared in code, which would bring it back: pause it, or take it out of the code.
        """
        engine = self._engine()
        found = engine.storage.schedules(name)
        if found and found[0].declared is not None and is_declared(engine, found[0]):
            raise ConfigurationError(
                f"schedule {name!r} is declared in code, which would bring it back: pause it, or take it out of the "
                "code and restart the consumers"
            )
        return engine.storage.drop_schedule(name)

    # ── twins for coroutines ─────────────────────────────────────────────────────────────────────────

    async def alist(self) -> Sequence[Schedule]:
        """`list` for coroutines."""
        return await _in_thread(lambda: self.list())

    async def aget(self, name: str) -> Schedule:
        """`get` for coroutines."""
        return await _in_thread(lambda: self.get(name))

    async def apreview(self, name: str, n: int = 10) -> Sequence[datetime]:
        """`preview` for coroutines."""
        return await _in_thread(lambda: self.preview(name, n))

    async def aadd(self, *args: Any, **kwargs: Any) -> Schedule:
        """`add` for coroutines."""
        return await _in_thread(lambda: self.add(*args, **kwargs))

    async def aupdate(self, name: str, **changes: Any) -> Schedule:
        """`update` for coroutines."""
        return await _in_thread(lambda: self.update(name, **changes))

    async def apause(self, name: str) -> bool:
        """`pause` for coroutines."""
        return await _in_thread(lambda: self.pause(name))

    async def aresume(self, name: str) -> bool:
        """`resume` for coroutines."""
        return await _in_thread(lambda: self.resume(name))

    async def areset(self, name: str) -> Schedule:
        """`reset` for coroutines."""
        return await _in_thread(lambda: self.reset(name))

    async def arun_now(self, name: str) -> Result[Any]:
        """`run_now` for coroutines."""
        return await _in_thread(lambda: self.run_now(name))

    async def aremove(self, name: str) -> bool:
        """`remove` for coroutines."""
        return await _in_thread(lambda: self.remove(name))

    # ── what is given, checked ───────────────────────────────────────────────────────────────────────

    def template(
        self,
        name: str,
        task: Task[Any, Any] | Signature[Any] | str,
        trigger: Trigger | str,
        *,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        catch_up: CatchUp = "latest",
        overlap: Overlap = "skip",
        grace: float | timedelta | None = None,
        jitter: float | timedelta = 0,
        start: datetime | None = None,
        end: datetime | None = None,
        max_runs: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Schedule:
        """A schedule that is not stored and has no grid yet; touches no file. For `LiteQ.periodic_task`."""
        if len(check_name(name, "name")) > LONGEST_NAME:
            raise ConfigurationError(f"name must have 1 to {LONGEST_NAME} characters, not {len(name)}")
        zone = self._of_the_moment().timezone
        new = Schedule(
            name,
            "",
            str(_trigger(trigger).with_timezone(zone)),
            catch_up=_one_of(catch_up, "catch_up", get_args(CatchUp)),
            overlap=_one_of(overlap, "overlap", get_args(Overlap)),
            jitter=within_reach(positive_seconds(jitter, "jitter"), "jitter"),
            **self._limits({"grace": grace, "start": start, "end": end, "max_runs": max_runs}),
        )
        if new.start is not None and new.end is not None and new.end < new.start:
            raise ConfigurationError(f"end={end} is before start={start}: the schedule would never be due")
        _refuse_limits_at_boot(new)
        called = self._with_call(new, task, () if args is None else args, {} if kwargs is None else kwargs)
        return _with_options(called, dict(options or {}))

    def _limits(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The limits that are given, as a Schedule keeps them."""
        zone = self._of_the_moment().timezone
        checks: dict[str, Callable[[Any], Any]] = {
            "grace": lambda value: positive_seconds(value, "grace"),
            "start": lambda value: in_the_calendar(_limit(value, zone, "start"), "start", value),
            "end": lambda value: min(_limit(value, zone, "end"), LATEST),  # datetime.max is later, as a float
            "max_runs": lambda value: check_integer(value, "max_runs", least=1),
        }
        told = {field: value for field, value in given.items() if value is not UNSET}
        return {field: None if value is None else checks[field](value) for field, value in told.items()}

    def _with_call(
        self,
        wanted: Schedule,
        task: Task[Any, Any] | Signature[Any] | str | None,
        args: Iterable[Any] | None,
        kwargs: Mapping[str, Any] | None,
    ) -> Schedule:
        """The schedule with another task, other arguments, or both."""
        if task is None and args is None and kwargs is None:
            return wanted
        engine = self._of_the_moment()
        if isinstance(task, Signature):
            if args or kwargs:
                raise TypeError("task.s(...) brings its arguments along; leave out args and kwargs")
            if task.handlers or not isinstance(task.task, Task):
                raise TypeError("a schedule makes single jobs; a task that it names may enqueue a workflow")
            args, kwargs, task = task.args, task.kwargs, task.task
        called = self._called(task, wanted)
        job = _job(engine, called, wanted, args, kwargs)
        unique = _without_caller(job.unique)
        named = wanted._replace(task=job.task, payload=job.payload, summary=job.summary)
        if task is None:
            kept, _ = without_unique(wanted.options)
            return named._replace(options=with_unique(_merged(kept, _of_the_call(job.options)), unique))
        followed = _following(named, self._known(wanted.task), called.definition, job._replace(expires=lasting(called)))
        return followed._replace(options=with_unique(followed.options, unique))

    def _known(self, name: str) -> Definition | None:
        """The task of a schedule, if it is known here."""
        try:
            return self._task(name).definition
        except UnknownTask:
            return None

    def _called(self, task: Task[Any, Any] | str | None, wanted: Schedule) -> Task[Any, Any]:
        if isinstance(task, Task):
            return task
        name = wanted.task if task is None else task
        if not isinstance(name, str):
            raise TypeError(f"task takes a task, a call of one (task.s(...)) or a name, not {type(name).__name__}")
        return self._task(name)


# ── what the code declares ───────────────────────────────────────────────────────────────────────────────


def declaration(template: Schedule) -> Schedule:
    """What the code says about a schedule, in a form that tells whether it has changed.

    Raises:
        TriggerError: it could never have been due.
    """
    before_everything = datetime(1, 1, 4, tzinfo=UTC).timestamp()
    _require_due(template, aimed(template, before_everything, before_everything).slot)
    told = {field: getattr(template, field) for field in (*_TIMING, *_TEMPLATE)} | {"payload": template.payload.hex()}
    return template._replace(declared=json.dumps(told, sort_keys=True, separators=(",", ":")))


def write_declared(engine: Engine) -> None:
    """Bring what the code declares into the file: new schedules, and changes to those that nobody has edited."""
    stored = {one.name: one for one in engine.storage.schedules()}
    for name, told in list(engine.declared.entries.items()):
        standing = stored.get(name)
        while not _write_one(engine, standing, told):
            found = engine.storage.schedules(name)
            standing = found[0] if found else None


def _write_one(engine: Engine, standing: Schedule | None, told: Schedule) -> bool:
    """False if somebody else has changed it meanwhile."""
    now = engine.clock.now()
    if standing is None:
        return engine.storage.put_schedule(_begun(told, now))
    if standing.declared == told.declared and not standing.orphaned:
        return True
    if not has_identity(standing):
        engine.storage.drop_schedule(standing.name)
        return engine.storage.put_schedule(_begun(told, now))
    return engine.storage.put_schedule(_brought_together(standing, told, now))


def _brought_together(standing: Schedule, told: Schedule, now: float) -> Schedule:
    """What is stored and what the code says, as one: what was said by hand holds, and is shown as such."""
    try:
        require_readable(standing)
        if standing.edited or standing.declared is None:
            return adopted(standing._replace(declared=told.declared, edited=True), now)
        return _as_told(standing, told, now)
    except (ValueError, TypeError):  # what is stored makes no sense, so the code's word is all there is
        return _begun(told, now)._replace(created=standing.created, version=standing.version)


def _as_told(standing: Schedule, told: Schedule, now: float) -> Schedule:
    """The schedule as the code says it; where the code's times are the same as before, its grid and next slot stay."""
    fields = {field: getattr(told, field) for field in _TEMPLATE}
    wanted = standing._replace(declared=told.declared, edited=False, **fields)
    if standing.edited or _timing(standing.declared) != _timing(told.declared):
        wanted = _anchored(wanted._replace(trigger=told.trigger), now)
    return adopted(_aimed_after_change(standing, wanted, now), now)


def _timing(declared: str | None) -> list[Any]:
    told = json.loads(declared or "{}")
    return [told.get(field) for field in _TIMING]


def is_declared(engine: Engine, standing: Schedule) -> bool:
    """Whether the code that runs here, or that of a consumer that lives, declares a schedule."""
    return standing.name in engine.declared.entries or standing.name in declared_elsewhere(engine)


def declared_elsewhere(engine: Engine) -> set[str]:
    """The names that live consumers declare."""
    return {name for owner in engine.storage.owners() if owner.alive for name in names_declared_by(owner)}


def names_declared_by(owner: Owner) -> set[str]:
    """The names that one consumer declares."""
    names = owner.info.get("schedules")
    return {str(name) for name in names} if isinstance(names, list) else set()


def orphan(engine: Engine, standing: Schedule) -> bool:
    """Let a schedule rest whose code is gone; False if it has changed meanwhile, or cannot be changed."""
    if not has_identity(standing):
        return False
    return engine.storage.put_schedule(schedule.orphaned(standing, engine.clock.now()))


def _shown(engine: Engine, standing: Schedule) -> Schedule:
    """The schedule as it is shown: also as orphaned where no consumer has been there yet to find it so."""
    knows_code = bool(engine.tasks)  # without tasks, only the file is known: `liteq schedules app.db`
    if standing.declared is None or standing.orphaned or not knows_code or is_declared(engine, standing):
        return standing
    return standing._replace(orphaned=True, slot=None, due=None)


# ── one schedule ─────────────────────────────────────────────────────────────────────────────────────────


def _stored(engine: Engine, name: str) -> Schedule:
    found = engine.storage.schedules(check_name(name, "name"))
    if not found:
        raise ScheduleNotFound(name)
    return found[0]


def _change(engine: Engine, name: str, rule: Callable[[Schedule, float], Schedule]) -> Schedule:
    """Apply a rule to a schedule as it stands, again if somebody else changes it meanwhile."""
    while True:
        changed = rule(_stored(engine, name), engine.clock.now())
        if engine.storage.put_schedule(changed):
            return _stored(engine, name)


def _paused(standing: Schedule, paused: bool, now: float) -> Schedule:
    require_readable(standing)
    return aimed(standing._replace(paused=paused), now, now)


def _begun(template: Schedule, now: float) -> Schedule:
    """A schedule that is about to be stored: its grid begins here, or at its ``start``."""
    return aimed(_anchored(template._replace(created=now), now), now, now)


def _anchored(wanted: Schedule, now: float) -> Schedule:
    anchor = moment(now if wanted.start is None else wanted.start)
    return wanted._replace(trigger=str(trigger_of(wanted).anchored(anchor)))


def _aimed_after_change(standing: Schedule, wanted: Schedule, now: float) -> Schedule:
    """What was due by the old times goes by the new ones from now on; otherwise the next slot stays."""
    if all(getattr(standing, field) == getattr(wanted, field) for field in (*_TIMING, "max_runs")):
        return wanted
    if standing.slot is None or _is_moved(standing, wanted):
        return aimed(wanted, now, now)
    return aimed(wanted, standing.slot - 1e-6, now)


def _is_moved(standing: Schedule, wanted: Schedule) -> bool:
    return any(getattr(standing, field) != getattr(wanted, field) for field in _TIMING)


def _put_new(engine: Engine, new: Schedule, *, replace: bool) -> None:
    """Store a schedule; one that the code declares under its name is edited by it.

    Raises:
        DuplicateSchedule: there is one of its name, and it is not to be replaced.
    """
    while not engine.storage.put_schedule(new):
        known = engine.storage.schedules(new.name)
        if known and not replace:
            raise DuplicateSchedule(
                f"there is a schedule {new.name!r} already; update it, or replace it (replace=True, --replace)"
            )
        if known and known[0].declared is not None and has_identity(known[0]):
            edited = new._replace(declared=known[0].declared, edited=True)
            new = edited._replace(created=known[0].created, version=known[0].version)
        elif known:
            engine.storage.drop_schedule(new.name)
            new = new._replace(declared=known[0].declared, edited=known[0].declared is not None)


def _refuse_limits_at_boot(wanted: Schedule) -> None:
    limit = next((one for one in ("start", "end", "jitter") if getattr(wanted, one)), None)
    if limit is not None and trigger_of(wanted).reboot:
        raise TriggerError(
            f"schedule {wanted.name!r}: @reboot has no instant that could be computed: {limit} cannot apply to it. "
            "Give it a schedule of its own; nothing was stored"
        )


def _require_due(wanted: Schedule, slot: float | None) -> None:
    if slot is None and not trigger_of(wanted).reboot:
        limits = "" if wanted.start is None and wanted.end is None else " within its start and end"
        raise TriggerError(f"schedule {wanted.name!r}: {wanted.trigger} is never due{limits}; nothing was stored")


def _with_options(wanted: Schedule, options: Mapping[str, Any]) -> Schedule:
    """The schedule with other options for its jobs."""
    if not options:
        return wanted
    direct: dict[str, Callable[[Any], Any]] = {
        "queue": lambda value: check_name(value, "queue"),
        "priority": lambda value: check_integer(value, "priority", least=-(1 << 63)),
        "expires": lambda value: None if value is None else within_reach(positive_seconds(value, "expires"), "expires"),
    }
    for refused in ("eta", "delay", "id"):
        if refused in options:
            raise TypeError(f"{refused} is not for schedules: the trigger says when, and each slot has its own id")
    now_and_then = {name: value for name, value in options.items() if name not in direct}
    text = override_text(_checked_per_call(now_and_then))
    found = {name: check(options[name]) for name, check in direct.items() if name in options}
    return wanted._replace(options=_merged(wanted.options, text), **found)


def _job(
    engine: Engine,
    called: Task[Any, Any],
    wanted: Schedule,
    args: Iterable[Any] | None,
    kwargs: Mapping[str, Any] | None,
) -> Job:
    """The job of a call; arguments that are not given are those that the schedule has."""
    if args is not None and kwargs is not None:
        return called.job(engine, *call_arguments(args, kwargs))
    kept_args, kept_kwargs = engine.runtime.serializer.loads_call(wanted.payload)
    given = call_arguments(kept_args if args is None else args, kept_kwargs if kwargs is None else kwargs)
    try:
        return called.job(engine, *given)
    except TypeError as error:
        raise TypeError(
            f"{error}. Schedule {wanted.name!r} keeps the arguments that are not given; give args and kwargs to change "
            "them (args=(), kwargs={} for none). Nothing was changed"
        ) from None


def _following(wanted: Schedule, before: Definition | None, after: Definition, call: Job) -> Schedule:
    """The schedule with another task: what was said for the schedule stays, and what it had from its task comes from
    the other one, or from how that is called.

    Args:
        wanted: bears the names and values of the task before still.
        before: that task, if it is known here.
        call: of the other one; ``expires`` is in seconds.
    """
    had, has = _own(before), _own(after)
    said = {name: value for name, value in _carried(wanted).items() if value != had.get(name, UNSET)}
    kept = {name: value for name, value in said.items() if name in (*_DIRECT, *PER_CALL, HEADERS)}
    anew = {name: value for name, value in _carried(call).items() if value != has.get(name, UNSET)}
    values = has | kept | anew
    direct = {name: values.pop(name) for name in _DIRECT}
    return wanted._replace(options=json.dumps(values, separators=(",", ":")) if values else None, **direct)


#: What a schedule's jobs have besides the options that they carry.
_DIRECT = ("queue", "priority", "expires")


def _own(task: Definition | None) -> dict[str, Any]:
    """What a task itself gives to its jobs."""
    options = Options() if task is None else task.options
    crash_rules = {} if task is None else {name: task.raw[name] for name in CRASH_RULES if name in task.raw}
    return {name: getattr(options, name) for name in _DIRECT} | crash_rules


def _carried(jobs: Schedule | Job) -> dict[str, Any]:
    """What the jobs of a schedule, or of a call, have."""
    options: dict[str, Any] = json.loads(jobs.options or "{}")
    return {name: getattr(jobs, name) for name in _DIRECT} | options


def _merged(text: str | None, more: str | None) -> str | None:
    """What jobs carry, with what is said anew."""
    if text is None or more is None:
        return text or more
    return json.dumps(json.loads(text) | json.loads(more), separators=(",", ":"))


def _of_the_call(text: str | None) -> str | None:
    """What a job carries because of its arguments, rather than as an option."""
    carried = {} if text is None else json.loads(text)
    kept = {name: value for name, value in carried.items() if name not in PER_CALL}
    return json.dumps(kept, separators=(",", ":")) if kept else None


def _without_caller(unique: Unique | None) -> Unique | None:
    """A slot whose key is held is left out: there is nobody to raise anything at."""
    raises = unique is not None and unique.on_duplicate == "raise"
    return unique._replace(on_duplicate="return") if unique is not None and raises else unique


def _checked_per_call(options: Mapping[str, Any]) -> Mapping[str, Any]:
    unknown = sorted(set(options) - set(PER_CALL))
    if unknown:
        known = ", ".join(("queue", "priority", "expires", *PER_CALL))
        raise TypeError(f"unknown option {unknown[0]!r}; a schedule's jobs take {known}")
    return options


def _trigger(given: Trigger | str) -> Trigger:
    from liteq.triggers import Trigger, parse_trigger

    if isinstance(given, str):
        return parse_trigger(given)
    if not isinstance(given, Trigger):
        raise TypeError(
            f"trigger takes a trigger such as crontab(...) or every(...), or its text, not {type(given).__name__}"
        )
    return given


def _one_of(value: str, what: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ConfigurationError(f"{what} takes {', '.join(map(repr, choices))}, not {value!r}")
    return value


def _limit(value: datetime, zone: tzinfo, what: str) -> float:
    """An instant that limits a schedule. A naive one that the clock skips when it is set forward is the end of that
    gap, as in ``at(...)`` and for the slots themselves.
    """
    if isinstance(value, datetime) and value.tzinfo is None:
        from liteq.triggers.zones import clock_zone, first_passage, offsets

        clock = clock_zone(zone)
        first, second = offsets(value, clock)
        if first < second:
            value = first_passage(value, clock)
    return timestamp(value, zone, what)


async def _in_thread(function: Callable[[], T]) -> T:
    import asyncio

    return await asyncio.to_thread(function)
