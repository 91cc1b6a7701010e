"""The app that the consumer tests run: tasks that do one thing each, good or bad, and hooks that leave traces.

Worker processes import ``workshop:app`` (or ``workshop:wiser``, which knows one task more); the tests `build` the same
tasks over a file of their own. A task that tells something tells it by a line in a file: that is seen whoever dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from liteq import Cancel, Fail, FileStorage, LiteQ, Retry, Snooze
from liteq.context import TaskContext
from liteq.job import Job

with contextlib.suppress(ImportError):  # Windows has none
    import resource

F = TypeVar("F", bound=Callable[..., Any])

#: The environment variable that tells worker processes where the queue is.
FILE = "WORKSHOP_FILE"

_tasks: list[tuple[Callable[..., Any], dict[str, Any]]] = []

#: What hooks saw in this process. Where to say that the worker stops, if somebody wants to know.
STARTED_IN: list[int] = []
SEEN: list[str] = []
GOODBYES: list[str] = []


def task(**options: Any) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        _tasks.append((function, options))
        return function

    return decorate


def note(log: str, *words: object) -> None:
    """Append a line; one write of one line, so that those of several processes do not mix."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(descriptor)


def lines(log: str | Path) -> list[str]:
    """What was noted, in order."""
    path = Path(log)
    return path.read_text().splitlines() if path.exists() else []


def wait_at(gate: str) -> None:
    """Return once the file is there. Python code, so that it can be interrupted at any time."""
    while not Path(gate).exists():
        time.sleep(0.002)  # task body


# ── plain ones ───────────────────────────────────────────────────────────────────────────────────────────


@task()
def add(a: int, b: int) -> int:
    return a + b


@task()
def echo(value: Any) -> Any:
    return value


@task()
def describe(first: str, values: Any) -> list[str]:
    """What it is given, as text."""
    return [first, *(f"{type(value).__name__} {value}" for value in values)]


@task(store_result=False)
def forget(value: Any) -> Any:
    return value


@task()
def nothing() -> None:
    return None


@task()
def write(log: str, word: Any) -> None:
    note(log, word)


@task()
def say(words: str) -> None:
    """Through the app's own logger."""
    logging.getLogger("workshop").info("%s", words)


_noted: contextvars.ContextVar[str] = contextvars.ContextVar("noted", default="nobody")


@task()
def remember(name: str) -> list[str]:
    """Who was noted in this context before, and who is now."""
    before = _noted.get()
    _noted.set(name)
    return [before, _noted.get()]


@task()
def where() -> tuple[int, int, str]:
    """Process, group, thread."""
    return os.getpid(), os.getpgrp() if hasattr(os, "getpgrp") else 0, threading.current_thread().name


@task()
def repeat(text: str, times: int) -> str:
    return text * times


@task()
def size(text: str) -> int:
    return len(text)


@task(context=True)
def about(task: TaskContext) -> dict[str, Any]:
    return {
        "id": task.id,
        "name": task.name,
        "queue": task.queue,
        "priority": task.priority,
        "attempt": task.attempt,
        "retries_left": task.retries_left,
        "remaining": task.time_remaining(),
        "cancelled": task.is_cancelled(),
    }


@task(context=True)
def slot(task: TaskContext) -> float | None:
    """For which instant of its schedule it runs."""
    return None if task.slot is None else task.slot.timestamp()


# ── ones that are done step by step ──────────────────────────────────────────────────────────────────────


@task(context=True, retries=1)
def order(log: str, task: TaskContext) -> list[Any]:
    """Charge, sleep, wait for two events, and fail once in between."""
    note(log, "began")
    charged = task.step("charge", charge, log)
    task.sleep(0.05)
    first = task.wait_for("approved", timeout=60)
    if task.attempt == 1:
        raise Unlucky("once")
    return [charged, first, task.wait_for("approved")]


@task(context=True, retries=1)
async def aorder(log: str, task: TaskContext) -> list[Any]:
    """The same as a coroutine."""
    note(log, "began")
    charged = await task.astep("charge", acharge, log)
    await task.asleep(0.05)
    first = await task.await_for("approved", timeout=60)
    if task.attempt == 1:
        raise Unlucky("once")
    return [charged, first, await task.await_for("approved")]


def charge(log: str) -> tuple[str, int]:
    note(log, "charged")
    return "paid", 7


async def acharge(log: str) -> tuple[str, int]:
    await asyncio.sleep(0)
    return charge(log)


@task(context=True, retries=1)
def in_steps(gate: str, log: str, job: int, steps: int, task: TaskContext) -> int:
    """Note the number of each step as it is done; the last one waits at the gate."""
    for number in range(steps - 1):
        task.step(f"{number}", note, log, job, number)
    task.step("last", wait_and_note, gate, log, job, steps - 1)
    task.step("after", note, log, job, "after")
    return steps


def wait_and_note(gate: str, log: str, *words: object) -> None:
    note(log, "at the gate")
    wait_at(gate)
    note(log, *words)


# ── ones that fail ───────────────────────────────────────────────────────────────────────────────────────


class Unlucky(Exception):
    """An error of the app's own."""


class Hopeless(Unlucky):
    """One that no retry helps."""


class Mute(Exception):
    """An error that cannot say what it is, and takes its whole worker along if it is asked carelessly."""

    def __str__(self) -> str:
        raise SystemExit("no words")


@task()
def fail(message: str) -> None:
    raise ValueError(message)


@task()
def fail_oddly(message: bytes) -> None:
    """With a message that could not be an argument."""
    raise ValueError(message.decode("utf-8", "surrogatepass"))


@task()
def fail_because(message: str, cause: str) -> None:
    try:
        raise KeyError(cause)
    except KeyError as error:
        raise Unlucky(message) from error


@task(context=True)
def fail_until(attempt: int, task: TaskContext) -> int:
    """Fail until the attempt of this number."""
    if task.attempt < attempt:
        raise Unlucky(f"attempt {task.attempt} of {task.attempt + task.retries_left}")
    return task.attempt


@task(retries=3, retry_on=(Unlucky,), give_up_on=(Hopeless,))
def choose(kind: str) -> None:
    raise {"unlucky": Unlucky, "hopeless": Hopeless, "other": ZeroDivisionError}[kind](kind)


@task(context=True)
def direct(what: str, delay: float | None, task: TaskContext) -> str:
    """Raise a directive at the first attempt, and once more for Snooze, which costs none."""
    if what == "cancel":
        raise Cancel("nobody needs it")
    if what == "fail":
        raise Fail("it is no use")
    if task.attempt == 1 and what == "retry":
        raise Retry(delay, reason="not yet")
    return f"attempt {task.attempt}"


@task(context=True)
def snooze_until(gate: str, delay: float, task: TaskContext) -> int:
    if not Path(gate).exists():
        raise Snooze(delay)
    return task.attempt


@task()
def leave(how: str) -> None:
    """Try to end the program from inside."""
    if how == "exit":
        sys.exit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "mute":
        raise Mute
    if how == "base":
        raise BaseException("of all exceptions")
    raise GeneratorExit


@task()
def dig() -> None:
    """Recurse for ever."""
    dig()


@task()
def return_unstorable() -> object:
    return object()


# ── ones that take their time ────────────────────────────────────────────────────────────────────────────


@task()
def wait(gate: str, log: str, word: Any = "") -> str:
    note(log, "began", word)
    wait_at(gate)
    note(log, "ended", word)
    return f"through {word}".strip()


@task(max_running=2)
def one_of_two(log: str, word: Any) -> None:
    note(log, "began", word)
    time.sleep(0.002)  # task body
    note(log, "ended", word)


@task(max_running=1)
def alone(gate: str, log: str, word: Any) -> None:
    """Says which process it is in."""
    note(log, "began", word, os.getpid())
    wait_at(gate)
    note(log, "ended", word)


@task(max_running=2, max_crashes=100)
def on_one_of_two_chairs(chairs: str, log: str, word: Any) -> None:
    """Notes it if there is no chair: files with a lock each, which the system takes from the dead."""
    import fcntl

    for number in range(2):
        with Path(f"{chairs}-{number}").open("w") as chair:
            try:
                fcntl.flock(chair, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            time.sleep(0.003)  # task body
            note(log, "sat", word)
            return
    note(log, "stood", word)


def under_lock(gate: str, log: str, word: Any) -> None:
    """The same, under a lock that its job has for its whole run; see `build`."""
    alone(gate, log, word)


@task()
def lock_inside(path: str, gate: str, log: str, word: Any) -> None:
    """The same, under a lock that it takes by itself."""
    app = build(path)
    try:
        with app.lock_task("inside", wait=True):
            alone(gate, log, word)
    finally:
        app.close()


@task()
def pass_or_wait(gate: str | None, log: str, word: Any) -> None:
    """Nothing at all without a gate: a task that is usually tiny."""
    if gate is not None:
        note(log, "began", word)
        wait_at(gate)
    note(log, "ended", word)


@task()
def nap(seconds: float) -> int:
    time.sleep(seconds)  # task body
    return os.getpid()


@task()
def write_and_nap(log: str, word: Any, seconds: float) -> None:
    note(log, word)
    time.sleep(seconds)  # task body


@task(context=True)
def wait_for_revoke(gate: str, task: TaskContext) -> str:
    """Say how far it is, and go on until revoked."""
    task.progress(1, 4, "a quarter")
    while not task.is_cancelled():
        if Path(gate).exists():
            return "the gate opened"
        time.sleep(0.002)  # task body
    return "revoked"


@task()
def wait_then_fail(gate: str, log: str) -> None:
    note(log, "began")
    wait_at(gate)
    raise Unlucky("after the gate")


@task(timeout=0.2)
def spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@task(timeout=0.2)
def sleep(seconds: float) -> None:
    time.sleep(seconds)  # task body


@task(timeout=0.2)
def insist(seconds: float) -> None:
    """Catch whatever is raised into it, for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            while time.monotonic() < until:
                time.sleep(0.001)  # task body
        except BaseException:  # noqa: BLE001 - a badly behaved task
            continue


@task(timeout=0.3)
def clean_up(log: str) -> None:
    """Use a timeout as it is meant: stop, and tidy up."""
    try:
        while True:
            time.sleep(0.002)  # task body
    except TimeoutError:
        note(log, "tidied up")
        raise


# ── coroutines ───────────────────────────────────────────────────────────────────────────────────────────


@task()
async def aadd(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


@task(timeout=0.2)
async def asleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


@task(timeout=0.2)
async def ablock(seconds: float) -> None:
    """Block the loop, so that nothing but the worker's own deadline can end it."""
    time.sleep(seconds)  # task body


@task()
async def afail(how: str) -> None:
    await asyncio.sleep(0)
    if how == "exit":
        sys.exit(3)
    if how == "timeout":  # the task's own, not its deadline
        raise TimeoutError("of its own")
    raise ValueError(how)


@task()
async def await_at(gate: str, log: str) -> None:
    note(log, "began")
    while not Path(gate).exists():
        await asyncio.sleep(0.002)


@task(timeout=0.3)
async def aclean_up(log: str) -> None:
    """Use a timeout as it is meant, in a coroutine."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        note(log, "cancelled")
        raise
    finally:
        note(log, "tidied up")


@task(context=True)
async def await_revoke(gate: str, task: TaskContext) -> str:
    """`wait_for_revoke` as a coroutine."""
    task.progress(1, 4, "a quarter")
    while not task.is_cancelled():
        if Path(gate).exists():
            return f"the gate opened for {task.id}"
        await asyncio.sleep(0.002)
    return "revoked"


@task()
async def aremember(name: str) -> list[str]:
    """Who was noted here before, and who is after a wait."""
    before = _noted.get()
    _noted.set(name)
    await asyncio.sleep(0.001)
    return [before, _noted.get()]


@task()
async def loop_id() -> int:
    """Which loop this is: one worker keeps its own."""
    return id(asyncio.get_running_loop())


# ── ones that hurt their worker ──────────────────────────────────────────────────────────────────────────


@task(max_crashes=2)
def die(how: str, log: str) -> None:
    note(log, "died")
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(60)  # task body


@task()
def die_once(log: str) -> str:
    note(log, "here")
    if len(lines(log)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # task body
    return "alive"


@task()
def die_if(fatal: bool, log: str, word: Any) -> None:
    """Usually tiny; the worker's death if fatal, but only the first time."""
    if fatal and "died" not in lines(log):
        note(log, "died")
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # task body
    note(log, word)


@task(max_crashes=2)
def crash(how: str, megabytes: int = 0, seconds: float = 0.0) -> None:
    """Log, use so much, die."""
    logger = logging.getLogger("workshop.crash")
    for number in range(30):
        logger.info("line %d", number)
    used = bytearray(megabytes << 20)
    used[::4096] = bytes([1]) * len(used[::4096])
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
    logger.warning("dies by %s", how)
    if how == "exit":
        os._exit(7)
    if how == "wild pointer":
        ctypes.string_at(0)
    if how == "hang":
        sum(range(10**10))
    if how == "limit":  # the kernel kills it, as it does for memory
        resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
        sum(range(10**10))
    os.kill(os.getpid(), signal.SIGKILL)


@task()
def pass_or_grind(grinds: float, log: str, word: Any) -> None:
    """Nothing at all, usually; or stay in C, for ever or for about so many seconds, and hold the interpreter."""
    if grinds is True:
        note(log, "grinds")
        sum(range(10**11))
    if grinds:
        sum(range(int(grinds * 5 * 10**7)))
    note(log, word)


@task()
def log_and_wait(gate: str, log: str) -> None:
    logging.getLogger("workshop").info("I am here")
    note(log, "began", os.getpid())
    wait_at(gate)


_kept: list[bytearray] = []


@task()
def grow(megabytes: int) -> int:
    """Leave memory behind."""
    kept = bytearray(megabytes << 20)
    kept[::4096] = bytes([1]) * len(kept[::4096])
    _kept.append(kept)
    return os.getpid()


@task(max_crashes=3)
def die_then_wait(fatal: bool, log: str, gate: str) -> None:
    """Nothing at all, usually; the worker's death at first if fatal, and then a wait."""
    if fatal:
        note(log, os.getpid())
        if len(lines(log)) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        wait_at(gate)


@task()
def hang_up(log: str) -> str:
    """Close everything that is open, as programs do that become daemons; but only once."""
    note(log, "hung up")
    if len(lines(log)) == 1:
        os.closerange(3, 1024)
    return "hung up only once"


@task(timeout=0.2)
def grind(kind: str, log: str, child: bool = False) -> None:
    """Stay in C for minutes, where no Python signal handler runs; with a child that would outlive its worker."""
    if child:
        note(log, fork_a_sleeper())
    note(log, "grinding", os.getpid())
    if kind == "sum":
        sum(range(10**10))
    else:
        re.match(r"(a+)+$", "a" * 40 + "b")


@task()
def grind_on(log: str) -> None:
    """The same without a timeout."""
    note(log, "grinding", os.getpid())
    sum(range(10**10))


@task()
def leave_a_child(log: str, how: str) -> None:
    """Die, and leave a child behind that holds everything the worker had open."""
    note(log, fork_a_sleeper())
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(5)


def fork_a_sleeper() -> int:
    pid = os.fork()
    if pid == 0:
        time.sleep(60)  # task body
        os._exit(0)
    return pid


@task(timeout=0.3, context=True)
def babble(task: TaskContext) -> None:
    """Say more than a socket holds, until stopped in the middle of a word."""
    while True:
        task.progress(1, 2, "x" * 2_000_000)


# ── what hooks saw ───────────────────────────────────────────────────────────────────────────────────────


@task()
def started_in() -> tuple[list[int], int]:
    return STARTED_IN, os.getpid()


@task()
def seen() -> list[str]:
    return SEEN


@task()
def say_goodbye_in(log: str) -> int:
    GOODBYES.append(log)
    return os.getpid()


@task()
def guarded(log: str) -> None:
    """`before` does not let it run."""
    note(log, "ran")


def before(job: Job) -> None:
    if job.task.endswith(".guarded"):
        raise Cancel("the guard said no")
    if job.task.endswith(".forget"):
        raise ValueError("a hook with a bug")


def after(job: Job, value: Any, error: BaseException | None) -> None:
    if job.task.endswith((".echo", ".fail")):
        SEEN.append(f"{job.task} {value!r} {type(error).__name__}")
    if job.task.endswith(".nothing"):
        raise ValueError("a hook with a bug")


def on_startup() -> None:
    STARTED_IN.append(os.getpid())


def on_shutdown() -> None:
    for log in GOODBYES:
        note(log, os.getpid())


# ── the app ──────────────────────────────────────────────────────────────────────────────────────────────


def news() -> str:
    """The task that only the wiser app knows."""
    return "known by now"


# ── ones that write to the queue's own file, together with their success ────────────────────────────────


def _keep(connection: Any, word: str) -> None:
    connection.execute("INSERT INTO kept (word) VALUES (?)", (word,))


@task(context=True, timeout=0.3)
def keep_on(word: str, log: str, task: TaskContext) -> None:
    """Write, and go on for ever."""
    _keep(task.connection(), word)
    note(log, "wrote")
    while True:
        time.sleep(0.002)  # task body


@task(context=True, timeout=0.3)
def keep_stubbornly(gate: str, log: str, task: TaskContext) -> None:
    """Write, and do not let any exception end the wait."""
    _keep(task.connection(), "stubborn")
    note(log, "wrote")
    while not Path(gate).exists():
        with contextlib.suppress(BaseException):
            time.sleep(0.002)  # task body
    try:
        _keep(task.connection(), "too late")
    except OSError as error:
        note(log, "told", error)


@task(context=True)
def keep_and_die(where: str, log: str, task: TaskContext) -> str:
    """Write; the first time, die right before or right after the commit."""
    from liteq.storage.sqlite_connection import Connections

    _keep(task.connection(), f"attempt {task.attempt}")
    note(log, "wrote")
    if task.attempt == 1:
        commit = Connections.commit_for_a_job

        def die(self: Connections, do: Callable[[], None]) -> None:
            if where == "after":
                commit(self, do)
            os.kill(os.getpid(), signal.SIGKILL)

        Connections.commit_for_a_job = die  # type: ignore[method-assign]
    return "kept"


@task(context=True)
async def akeep(word: str, task: TaskContext) -> str:
    connection = await task.aconnection()
    _keep(connection, f"{word} 1")
    await asyncio.sleep(0.005)
    _keep(connection, f"{word} 2")
    return word


@task(context=True, timeout=0.3)
async def akeep_on(log: str, task: TaskContext) -> None:
    _keep(await task.aconnection(), "never")
    note(log, "wrote")
    await asyncio.sleep(60)


@task(context=True)
async def aconnect_carelessly(task: TaskContext) -> None:
    task.connection()


def keep(app: LiteQ) -> Callable[..., Any]:
    """A task that writes, enqueues another job, and fails the first time if it is told to."""

    def keep(word: str, fails: bool, task: TaskContext) -> str:
        connection = task.connection()
        _keep(connection, f"{word} {task.attempt}")
        other = app.tasks["workshop.echo"](word)
        if fails and task.attempt == 1:
            raise Unlucky(other.id)
        return other.id

    keep.__qualname__ = "keep"
    return keep


def build(path: str | Path, *, wise: bool = False, **options: Any) -> LiteQ:
    """An app over a file of its own, with every task of this module.

    Args:
        path: of a SQLite file, or, without a suffix, of the directory of a FileStorage; or ``":memory:"``.
        wise: with `news`.
    """
    if Path(path).suffix or path == ":memory:":
        app = LiteQ(path, **({"durability": "normal"} | options))
    else:
        app = LiteQ(FileStorage(path, durability="normal"), **options)
    for function, chosen in _tasks:
        app.task(**chosen)(function)
    app.task(enqueue_another(app))
    app.task(app.lock_task("workshop", wait=True)(under_lock))
    app.task(context=True, retries=1)(keep(app))
    if wise:
        app.task(news)
    app.pre_execute()(before)
    app.post_execute()(after)
    app.on_startup()(on_startup)
    app.on_shutdown()(on_shutdown)
    return app


def enqueue_another(app: LiteQ) -> Callable[..., Any]:
    """A task that uses the queue itself, wherever it runs."""

    def enqueue_another(path: str) -> str:
        with_file = app if str(app.storage.location) == path else build(path)
        return with_file.tasks["workshop.echo"]("from inside").id

    enqueue_another.__qualname__ = "enqueue_another"
    return enqueue_another


def tasks_of(app: LiteQ) -> Any:
    """The app's tasks as attributes."""
    return SimpleNamespace(**{name.removeprefix("workshop."): task for name, task in app.tasks.items()})


# Only worker processes use these, for the tasks; nobody enqueues here. A task that asks its app needs the real file.
app = build(os.environ.get(FILE, "unused.db"))
wiser = build("unused.db", wise=True)
