"""The Python stacks of running jobs: for the log (USR1), and for whoever asks (``app.stack``, ``liteq stack``).

Whoever runs a job knows how to look at it: `Pool.stack_of`. What it looks like is written here, for threads,
coroutines, greenlets (any frame), and for what `faulthandler` says of a process that does not answer itself.
"""

from __future__ import annotations

import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from liteq import asking, logs
from liteq.asking import Question
from liteq.engine import Engine
from liteq.errors import StorageError
from liteq.job import Job

if TYPE_CHECKING:
    import asyncio

    from liteq.consumer.pools.base import Pool, StackSource

F = TypeVar("F")

#: Characters of a stack that are kept: the innermost ones.
LONGEST = 60_000
#: Seconds that a consumer which stops waits for its last answers.
PATIENCE = 3.0

#: Where the way from a worker to its task begins, and what else lies on it.
_EXECUTION = "liteq.execution"
_ON_THE_WAY = re.compile(r"liteq\.(execution|consumer\..*)|threading|concurrent\.futures\.thread|asyncio\..*|selectors")


# ── what a stack looks like ──────────────────────────────────────────────────────────────────────────────


def of_thread(ident: int) -> str | None:
    """The stack of a thread of this process from the task's first frame on, and of the coroutines that its event loop
    runs; ``None``: there is no such thread (any more).
    """
    frame = sys._current_frames().get(ident)
    if frame is None:
        return None
    frames = [one for one, _ in traceback.walk_stack(frame)]
    frames.reverse()
    loop = _loop_among(frames)
    own = _from_the_task_on(frames, _modules(frames))
    parts = [] if loop is not None and not own else [_formatted(own or frames)]
    if loop is not None:
        parts += [of_coroutine_task(task) for task in _tasks_of(loop)]
    return _shortened("".join(parts))


def tried(look: Callable[[], str | None]) -> str | None:
    """What ``look`` sees, or why it cannot: a frame that changes while it is looked at must not harm who looks."""
    try:
        return look()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told instead
        return f"  its stack cannot be shown: {error!r}\n"


def of_frame(frame: FrameType | None) -> str:
    """The stack whose innermost frame this is: of a greenlet that is switched away from, ``greenlet.gr_frame``."""
    frames = [one for one, _ in traceback.walk_stack(frame)] if frame is not None else []
    frames.reverse()
    return _shortened(_formatted(_from_the_task_on(frames, _modules(frames)) or frames))


def of_coroutine_task(task: asyncio.Task[Any]) -> str:
    """An asyncio task with the chain of coroutines that it waits in, outermost first."""
    frames = list(_chain(task.get_coro()))
    while len(frames) > 1 and _ON_THE_WAY.fullmatch(str(frames[0].f_globals.get("__name__"))):
        del frames[0]
    return _shortened(f"  asyncio task {task.get_name()}:\n{_formatted(frames)}")


def of_fault(text: str) -> str | None:
    """The main thread's part of what `faulthandler` writes, as other stacks look; ``None``: there is nothing."""
    main: list[tuple[str, int, str]] = []
    for line in text.splitlines():
        if line.startswith(("Thread ", "Current thread ")):
            main = []  # the threads come in the order of their age, the oldest last
        elif (match := _FAULT_LINE.match(line)) is not None:
            main.append((match["file"], int(match["line"]), match["name"]))
    if not main:
        return None
    frames = [traceback.FrameSummary(file, line, name) for file, line, name in reversed(main)]
    own = _from_the_task_on(frames, [_module_of_file(one.filename) for one in frames])
    return _shortened("".join(traceback.format_list(own or frames)))


_FAULT_LINE = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)$')


def _module_of_file(path: str) -> str:
    """The module's name, as far as it matters here."""
    parts = path.replace("\\", "/").removesuffix(".py").split("/")
    for package in ("liteq", "asyncio"):
        if package in parts:
            return ".".join(parts[len(parts) - 1 - parts[::-1].index(package) :])
    return parts[-1]


def _from_the_task_on(frames: list[F], modules: list[str]) -> list[F]:
    """Without the outer frames, which are a worker's way to its task; empty where it has not come that far.

    Args:
        frames: outermost first.
        modules: the name of each one's module.
    """
    if _EXECUTION not in modules:
        return []
    first = modules.index(_EXECUTION)
    while first < len(frames) and _ON_THE_WAY.fullmatch(modules[first]):
        first += 1
    return frames[first:]


def _modules(frames: list[FrameType]) -> list[str]:
    return [str(frame.f_globals.get("__name__", "")) for frame in frames]


def _formatted(frames: Iterable[FrameType]) -> str:
    summary = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)
    return "".join(summary.format())


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"  … {len(text) - LONGEST} characters of outer frames left out …\n{text[-LONGEST:]}"


def _chain(awaited: Any) -> Iterator[FrameType]:
    """The frames of a coroutine (or generator) and of what it awaits, and so on."""
    while awaited is not None:
        for frame, inner in (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await")):
            if isinstance(getattr(awaited, frame, None), FrameType):
                yield getattr(awaited, frame)
                awaited = getattr(awaited, inner)
                break
        else:
            return


def _loop_among(frames: list[FrameType]) -> Any:
    """The event loop that runs in these frames, if one does."""
    for frame in reversed(frames):
        if _is_run_forever(frame.f_code):
            return frame.f_locals.get("self")
    return None


def _is_run_forever(code: CodeType) -> bool:
    return code.co_name == "run_forever" and code.co_filename.endswith("base_events.py")


def _tasks_of(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    import asyncio

    try:
        return sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
    except RuntimeError:  # they change faster than another thread can look
        return []


# ── who asks, and who is answered ────────────────────────────────────────────────────────────────────────


class Stacks:
    """Answers for one consumer. Its methods are called by the dispatcher; looking and writing is done on a thread of
    its own, because a worker may take a second to answer, and the storage longer.

    Args:
        engine: the app's.
        pool: of the consumer.
        owner: its number.
    """

    def __init__(self, engine: Engine, pool: Pool, owner: int) -> None:
        self._engine = engine
        self._pool = pool
        self._owner = owner
        self._threads: list[threading.Thread] = []
        self._under_way: set[str] = set()

    def answer(self, marks: Mapping[str, str]) -> None:
        """Answer what is asked of this consumer."""
        new = [one for one in asking.questions(marks, self._owner) if one.key not in self._under_way]
        if not new:
            return
        self._under_way.update(one.key for one in new)
        running = {job.seq: job for job in self._pool.running()}
        looks = [(one, running.get(one.seq), self._pool.stack_of(one.seq)) for one in new]
        self._start(self._answer_all, looks)

    def log_all(self) -> None:
        """Write the stacks of all running jobs to the log."""
        looks = [(job, source) for job in self._pool.running() if (source := self._pool.stack_of(job.seq)) is not None]
        self._start(self._log_all, looks)

    def close(self) -> None:
        """Wait a little for what is under way."""
        for thread in self._threads:
            thread.join(PATIENCE)

    def _start(self, work: Any, looks: list[Any]) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=work, args=(looks,), name="liteq-stacks", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _answer_all(self, looks: list[tuple[Question, Job | None, StackSource | None]]) -> None:
        for question, job, source in looks:
            text = tried(source) if source is not None else None
            described = None if text is None or job is None else self._described(job, text)
            try:
                asking.answer(self._engine, question, described)
            except StorageError as error:  # whoever asked waits in vain, and is told
                logs.say(logs.WARNING, "could not answer a question about a job", seq=question.seq, error=error)
            self._under_way.discard(question.key)

    def _log_all(self, looks: list[tuple[Job, StackSource]]) -> None:
        shown = [(job, text) for job, source in looks if (text := tried(source)) is not None]
        for job, text in shown:
            logs.say(logs.WARNING, f"stack of a running job: {self._described(job, text)}", job=job.id, task=job.task)
        if not shown:
            logs.say(logs.WARNING, "no job is running, so there is no stack to show")

    def _described(self, job: Job, text: str) -> str:
        ran = max(0.0, self._engine.clock.now() - (job.started or self._engine.clock.now()))
        return f"job {job.id}, task {job.task}, for {ran:.1f} s in {text.rstrip()}"
