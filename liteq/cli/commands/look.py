"""``liteq ls`` and ``liteq show``: which jobs there are, and everything about one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import partial

from liteq import Attempt, Job, JobState, LiteQ, Step, StepKind, StepState
from liteq.cli.arguments import states, whole_number
from liteq.cli.commands import Commands
from liteq.cli.endings import DONE, complain
from liteq.cli.escaping import escaped, escaped_lines
from liteq.cli.jobs import as_all_keys, as_keys, find, text_of, took
from liteq.cli.output import Output, shortened
from liteq.cli.times import age, local, span

#: Jobs that are read, and shown, at a time.
PAGE = 1000
#: What people are shown of a payload or a result, in characters; JSON has all of it.
LONGEST = 2000
#: Jobs that people are shown which one waits for; JSON has all of them.
MOST_LINKS = 10

_UNFINISHED = (JobState.SCHEDULED, JobState.READY, JobState.RUNNING, JobState.BLOCKED)


def declare(commands: Commands) -> None:
    """Declare both commands."""
    ls = commands.add("ls", list_jobs, "list jobs in the order of their enqueue")
    ls.add_argument("--state", metavar="STATE", type=states, help="only these states (several with commas)")
    ls.add_argument("--queue", metavar="QUEUE", help="only this queue")
    ls.add_argument("--task", metavar="TASK", help="only this task, by its stored name")
    ls.add_argument(
        "--limit", metavar="N", type=whole_number(0), default=100, help="at most so many (default 100; 0: all)"
    )
    ls.add_argument("--after", metavar="ID", help="only jobs after this one: the last of the page before")
    ls.add_argument("--newest", action="store_true", help="the newest first")
    show = commands.add(
        "show", show_jobs, "show everything about a job: times, arguments, result, steps, every attempt's error"
    )
    show.add_argument("ids", metavar="ID", nargs="+", help="a job's id, or the number before its '-'")


# ── ls ───────────────────────────────────────────────────────────────────────────────────────────────────


def list_jobs(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """List jobs, page by page."""
    now = app.engine.clock.now()
    last = None
    for page in _pages(app, arguments):
        last = page[-1]
        for job in page:
            if output.as_json:
                output.record(as_keys(job))
        output.table(("ID", "STATE", "QUEUE", "TASK", "TRY", "WHEN", "ARGUMENTS"), [_row(job, now) for job in page])
    if last is not None and arguments.limit and _asked(app, arguments)(limit=1, after=last):
        complain("liteq ls", f"there are more: --after {last.id} goes on, --limit 0 shows all")
    return DONE


def _asked(app: LiteQ, arguments: argparse.Namespace) -> partial[list[Job]]:
    """The question that the options make, but for how many and after which."""
    return partial(app.jobs, arguments.state, arguments.queue, arguments.task, newest_first=arguments.newest)


def _pages(app: LiteQ, arguments: argparse.Namespace) -> Iterator[list[Job]]:
    after = None if arguments.after is None else find(app, arguments.after)
    left = arguments.limit or sys.maxsize
    while left > 0:
        page = _asked(app, arguments)(limit=min(PAGE, left), after=after)
        if page:
            yield page
        if len(page) < min(PAGE, left):
            return
        after = page[-1]
        left -= len(page)


def _row(job: Job, now: float) -> tuple[object, ...]:
    when = age(now - _latest(job))
    return job.id, job.state, job.queue, job.task, job.attempt, when, job.arguments


def _latest(job: Job) -> float:
    """When it came to where it stands, or, of a scheduled one, will leave it; in seconds since the epoch."""
    match job.state:
        case JobState.SCHEDULED:
            return job.due or job.created
        case JobState.RUNNING:
            return job.started or job.created
    return job.created if job.finished is None else job.finished


# ── show ─────────────────────────────────────────────────────────────────────────────────────────────────


def show_jobs(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Show each of the jobs."""
    now = app.engine.clock.now()
    for number, name in enumerate(arguments.ids):
        job = find(app, name)
        if number:
            output.line()
        steps = app.steps(job.id)
        if output.as_json:
            output.record(as_all_keys(job, steps) | _links(app, job))
        else:
            _show(app, job, steps, now, output)
    return DONE


def _links(app: LiteQ, job: Job) -> dict[str, list[str]]:
    """The ids of the jobs that it waits for and has not seen the end of, and of those that wait for it."""
    plans = app.storage.plans
    missing = dict.fromkeys(link.id for link in plans.prerequisites(job.seq) if link.state in _UNFINISHED)
    return {"waits_for": [*missing], "waited_for_by": [*dict.fromkeys(link.id for link in plans.dependents(job.seq))]}


def _show(app: LiteQ, job: Job, steps: list[Step], now: float, output: Output) -> None:
    for key, value in (*_facts(job, now), *_waits(app, job)):
        first, *more = escaped_lines(value)
        output.line(f"{key:<10}{output.painted(first)}")
        for line in more:
            output.line(f"{'':<10}{line}")
    if steps:
        output.line()
        output.table(("STEP", "NAME", "STATE", "TRY", "RECORDED", "RESULT"), [_step_row(step, now) for step in steps])
    for attempt in job.attempts:
        _show_attempt(attempt, output)


def _step_row(step: Step, now: float) -> tuple[object, ...]:
    name = step.name if step.number == 1 else f"{step.name} ({step.number})"
    state = str(step.state)
    if step.until is not None and (step.kind is StepKind.SLEEP or step.state is StepState.WAITING):
        state += f", until {local(step.until)}"
    result = "" if step.result is None else _stored(step.result)
    return step.kind, name, state, step.attempt, age(now - step.recorded), result


def _facts(job: Job, now: float) -> Iterator[tuple[str, str]]:
    yield "job", job.id
    yield "task", job.task
    yield "state", str(job.state)
    if job.reason is not None:
        yield "reason", job.reason
    yield "queue", f"{job.queue}, priority {job.priority}"
    if job.slot is not None:
        yield "schedule", f"{job.schedule}, for {local(job.slot)}"
    yield "arguments", _stored(job.payload) if job.summary is None else job.summary
    if job.options is not None:
        yield "options", job.options
    yield from _times(job, now)
    yield "attempts", f"{job.attempt}{f', {job.crashes} ended with the death of a worker' if job.crashes else ''}"
    if job.progress is not None:
        done, total, message = job.progress
        yield "progress", f"{done:g}{'' if total is None else f' of {total:g}'} {message}".rstrip()
    if job.result is not None:
        yield "result", _stored(job.result)


def _waits(app: LiteQ, job: Job) -> Iterator[tuple[str, str]]:
    plans = app.storage.plans
    before, after = plans.prerequisites(job.seq), plans.dependents(job.seq)
    missing = [link for link in before if link.state in _UNFINISHED]
    if missing:
        yield "waits for", _listed(f"{link.id} {link.task}, {link.state}" for link in missing)
    if after:
        yield "before", _listed(f"{link.id} {link.task}, {link.state}" for link in after)


def _listed(given: Iterable[str]) -> str:
    lines = [*dict.fromkeys(given)]  # a job whose result is passed twice is one job
    more = [f"and {len(lines) - MOST_LINKS} more"] if len(lines) > MOST_LINKS else []
    return "\n".join(lines[:MOST_LINKS] + more)


def _times(job: Job, now: float) -> Iterator[tuple[str, str]]:
    named: list[tuple[str, datetime | None]] = [
        ("created", job.created_at),
        ("due", job.run_at),
        ("expires", job.expires_at),
        ("started", job.started_at),
        ("finished", job.finished_at),
    ]
    for key, moment in named:
        if moment is not None:
            yield key, f"{local(moment)} ({age(now - moment.timestamp())})"
    if job.started is not None and job.finished is not None:
        yield "took", span(job.finished - job.started)


def _stored(data: bytes) -> str:
    """Stored bytes for people: as text where they are, and not endlessly."""
    text = text_of(data)
    if text is None:
        return f"{len(data)} bytes that are not text"
    return shortened(text, LONGEST) + (f" ({len(data)} bytes)" if len(text) > LONGEST else "")


def _show_attempt(attempt: Attempt, output: Output) -> None:
    ran = took(attempt)
    how_long = "" if ran is None else f" after {span(ran)}"
    output.line()
    output.line(
        f"attempt {attempt.number}: {output.painted(str(attempt.ending))}{how_long}, {local(attempt.finished_at)}"
    )
    if attempt.error_type:
        output.line(f"    {escaped(attempt.error_type)}: {escaped(attempt.message)}")
    if attempt.details and attempt.details != attempt.message:
        output.line(f"    {escaped(attempt.details)}")
    used = ", ".join(_used(attempt))
    if used:
        output.line(f"    {used}")
    for line in escaped_lines(attempt.traceback) if attempt.traceback else ():
        output.line(f"    {line}")
    _show_log(attempt, output)


def _show_log(attempt: Attempt, output: Output) -> None:
    if attempt.log:
        output.line("    the last lines that it logged:")
        for line in escaped_lines(attempt.log):
            output.line(f"      {line}")


def _used(attempt: Attempt) -> Iterator[str]:
    if attempt.cpu_time is not None:
        yield f"{span(attempt.cpu_time)} of CPU time"
    if attempt.peak_rss is not None:
        yield f"{attempt.peak_rss / 2**20:,.1f} MB of memory at its peak"
