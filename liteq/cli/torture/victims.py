"""The app that is tortured: tasks that say when they begin and end, and a producer that enqueues them.

Every process of a torture imports it; `crew` tells by the environment where the queue and the diary are.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

from liteq import Job, LiteQ, Result, ResultTimeout, StorageError, TaskContext, TaskFailed
from liteq.cli.torture.clock import JumpingClock, machine
from liteq.cli.torture.diary import Pen

#: Seconds of work of the longest job.
LONGEST = 1.0
#: A producer waits while more jobs than this are waiting.
BACKLOG = 100
#: Seconds between two enqueues of one producer, in the mean.
PACE = 0.02


def _nowhere() -> NoReturn:
    raise RuntimeError("this module is the app of `liteq torture`, which says where its queue is")


_folder = Path(os.environ["LITEQ_TORTURE_FOLDER"]) if "LITEQ_TORTURE_FOLDER" in os.environ else None
#: Who this process is, or whose worker.
_member = os.environ.get("LITEQ_TORTURE_NAME", "")
_pen = None if _folder is None else Pen(_folder, machine.monotonic)

app = LiteQ(
    os.environ.get("LITEQ_TORTURE_QUEUE", ":memory:"),
    name="torture",
    result_ttl=None,
    failed_ttl=None,
    clock=None if _folder is None else JumpingClock(_folder / "clock"),
)


def _write(what: str, *details: object) -> None:
    (_pen or _nowhere()).write(what, *details)


def _refused(error: Exception) -> None:
    """Tell of an error that liteq's user has seen, cut to what a line of the diary holds."""
    _write("refused", type(error).__name__, ascii(str(error))[:200])


def _stored(results: Sequence[Result[Any]], task: str) -> None:
    """Tell of jobs whose enqueue has returned: from here on none may be lost."""
    for result in results:
        _write("enqueued", result.id, task)


# ── the tasks ────────────────────────────────────────────────────────────────────────────────────────────

_claim: ContextVar[int] = ContextVar("claim", default=0)


@app.on_startup()
def _introduce() -> None:
    _write("working", _member)


@app.pre_execute()
def _note_claim(job: Job) -> None:
    _claim.set(job.claim)


@contextmanager
def _run(task: TaskContext) -> Iterator[None]:
    """One execution: a line at its start, a line at its end."""
    number = f"{task.attempt}/{_claim.get()}"
    how = "stopped"
    _write("started", task.id, number, _member)
    try:
        yield
        how = "ok"
    except Exception:
        how = "failed"
        raise
    finally:
        _write("ended", task.id, number, how)


def _task(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    # Any number of crashes: how often a job is hit by chance says nothing about it.
    return app.task(context=True, max_crashes=1_000_000, **options)


@_task()
def tiny(word: str, *, task: TaskContext) -> str:
    with _run(task):
        return word


@_task()
def nap(word: str, seconds: float, *, task: TaskContext) -> str:
    with _run(task):
        machine.sleep(seconds)
        return word


@_task()
async def anap(word: str, seconds: float, *, task: TaskContext) -> str:
    import asyncio

    with _run(task):
        # Not `asyncio.sleep`, which is a clock of its own: wait for something that does not come.
        try:
            await asyncio.wait_for(asyncio.Event().wait(), seconds)
        except TimeoutError:
            return word
        raise AssertionError("nobody sets this event")


@_task(retries=3, retry_delay=0.05)
def unsteady(word: str, *, task: TaskContext) -> str:
    """Fails at its first attempt."""
    with _run(task):
        if task.attempt == 1:
            raise ConnectionError("the first attempt fails")
        return word


@_task(retries=1)
def doomed(word: str, *, task: TaskContext) -> str:
    """Fails twice, and then for good."""
    with _run(task):
        raise ValueError(f"{word} fails whatever is tried")


@_task(retries=1_000_000, retry_delay=0.1)
def parent(word: str, *, task: TaskContext) -> str:
    """Enqueues a job from inside a job, under an id of its own: an attempt that comes again enqueues nothing new."""
    with _run(task):
        try:
            child = tiny.using(id=f"{task.id}.child")("child")
        except StorageError as error:
            _refused(error)
            raise
        _stored([child], "tiny")
        return word


# ── the producer ─────────────────────────────────────────────────────────────────────────────────────────


def produce(seed: int) -> int:
    """Enqueue jobs of all kinds and ways until killed."""
    producer = _Producer(seed)
    _introduce()
    while True:
        try:
            producer.step()
        except StorageError as error:
            _refused(error)
            machine.sleep(PACE)


class _Producer:
    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._enqueued = 0
        self._ways = [self.one, self.one, self.many, self.in_a_batch, self.under_an_id, self.later, self.and_wait]

    def step(self) -> None:
        """Enqueue something, and wait a little."""
        if self._enqueued % 10 == 0:
            self._wait_for_room()
        self._enqueued += 1
        self._dice.choice(self._ways)()
        machine.sleep(self._dice.expovariate(1 / PACE))

    def _wait_for_room(self) -> None:
        while sum(app.queues().values()) > BACKLOG:
            machine.sleep(PACE)

    def _call(self) -> tuple[Any, tuple[Any, ...]]:
        task = self._dice.choice([tiny, tiny, nap, nap, anap, unsteady, doomed, parent])
        more = (self._dice.random() ** 3 * LONGEST,) if task in (nap, anap) else ()
        return task, ("word", *more)

    def _enqueue(self, task: Any, arguments: tuple[Any, ...], **options: Any) -> Result[Any]:
        options |= {"queue": self._dice.choice(["default", "default", "other"]), "priority": self._dice.randrange(2)}
        result: Result[Any] = task.using(**options)(*arguments)
        _stored([result], _short(task))
        return result

    def one(self) -> None:
        self._enqueue(*self._call())

    def later(self) -> None:
        self._enqueue(*self._call(), delay=self._dice.random() * 2)

    def many(self) -> None:
        _stored(list(tiny.map(["word"] * self._dice.randrange(2, 20))), "tiny")

    def in_a_batch(self) -> None:
        task, arguments = self._call()
        with app.batch():
            results = [task(*arguments), tiny("word"), tiny.using(delay=0.1)("word")]
        _stored(results[:1], _short(task))
        _stored(results[1:], "tiny")

    def under_an_id(self) -> None:
        """As a program does that must not enqueue twice: the same id again and again until it is accepted."""
        name = f"{_pen.name if _pen else ''}:{self._enqueued}"
        while True:
            try:
                self._enqueue(tiny, ("word",), id=name)
                return
            except StorageError as error:
                _refused(error)
                machine.sleep(PACE)

    def and_wait(self) -> None:
        result = self._enqueue(*self._call())
        try:
            result.get(timeout=0.2)
        except (ResultTimeout, TaskFailed):
            return  # it waits behind others, or was made to fail


def _short(task: Any) -> str:
    return str(task.name).rpartition(".")[2]
