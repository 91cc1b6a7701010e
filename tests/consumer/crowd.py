"""An app for workers that run many jobs at once: tasks that meet each other, hold each other up, or take all along.

What is asked of the standard library at import is kept, to tell whether gevent came first.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from workshop import lines, note

from liteq import LiteQ, TaskLocked
from liteq.context import TaskContext

F = TypeVar("F", bound=Callable[..., Any])

SOCKETS_COME_FROM = socket.socket.__module__

_tasks: list[tuple[Callable[..., Any], dict[str, Any]]] = []
_name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")
_left: list[asyncio.Task[None]] = []


def task(**options: Any) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        _tasks.append((function, options))
        return function

    return decorate


# ── coroutines ───────────────────────────────────────────────────────────────────────────────────────────


@task()
async def rest(seconds: float) -> None:
    await asyncio.sleep(seconds)


@task()
async def alook() -> list[int]:
    """Which loop, and which thread."""
    return [id(asyncio.get_running_loop()), threading.get_ident()]


@task()
async def count_at_once(log: str, gate: str) -> None:
    note(log, "in")
    while not Path(gate).exists():
        await asyncio.sleep(0.005)


@task()
def count_at_once_too(log: str, gate: str) -> None:
    note(log, "in")
    while not Path(gate).exists():
        time.sleep(0.005)  # task body


@task()
async def introduce(name: str) -> list[str]:
    """Who was here before, who is here after a wait, and who a thread sees."""
    before = _name.get()
    _name.set(name)
    await asyncio.sleep(0.01)
    return [before, _name.get(), await asyncio.to_thread(_name.get)]


@task()
def introduce_too(name: str) -> list[str]:
    before = _name.get()
    _name.set(name)
    return [before, _name.get()]


@task()
async def tidy(log: str) -> None:
    """Wait for ever, in an async generator, and leave it properly."""

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.01)
        finally:
            await asyncio.sleep(0)
            note(log, "generator closed")

    note(log, "began")
    try:
        async with contextlib.aclosing(endless()) as numbers:
            async for _ in numbers:
                pass
    except asyncio.CancelledError:
        note(log, "cancelled")
        raise
    finally:
        note(log, "finally")


@task(timeout=0.2)
async def go_on_regardless(log: str) -> None:
    """Take no hint."""
    until = time.monotonic() + 4
    while time.monotonic() < until:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.01)
    note(log, "came to its end")


@task()
async def block(gate: str, log: str) -> None:
    """Keep the loop busy with Python code until the gate opens."""
    note(log, "blocks")
    while not Path(gate).exists():
        time.sleep(0.001)  # task body


@task()
async def block_in_a_child(gate: str, log: str) -> None:
    """The same in an asyncio task of its own."""
    await asyncio.create_task(_block(gate, log))


async def _block(gate: str, log: str) -> None:
    await asyncio.sleep(0)
    note(log, "blocks")
    while not Path(gate).exists():
        time.sleep(0.001)  # task body


@task()
async def block_for(seconds: float, log: str) -> None:
    """Keep the loop busy in one call, that nothing ends."""
    note(log, "blocks")
    time.sleep(seconds)  # task body


@task()
async def leave_behind(what: str, log: str) -> None:
    """End, and leave something on the loop."""

    async def exits() -> None:
        raise SystemExit(3)

    async def stays() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            note(log, "left behind, and tidied up")

    _left.append(asyncio.create_task({"exits": exits, "stays": stays}[what]()))
    await asyncio.sleep(0.01)


# ── for greenlets ────────────────────────────────────────────────────────────────────────────────────────


@task()
def look() -> list[Any]:
    return [SOCKETS_COME_FROM, os.getpid(), threading.current_thread().name]


@task()
def call(port: int) -> str:
    """Wait until the other end has something to say."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        return connection.recv(10).decode()


@task()
def hog(gate: str, log: str) -> None:
    """Compute until the gate opens, without ever waiting."""
    note(log, "hogs")
    while not os.path.exists(gate):  # noqa: PTH110 - as plain as can be
        pass


@task(timeout=0.3)
def grind(log: str) -> None:
    """Hold the interpreter."""
    note(log, "grinds")
    sum(range(10**10))


@task(max_crashes=2)
def die(log: str) -> None:
    note(log, "dies")
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # task body


@task()
def chatter(gate: str, log: str, seconds: float) -> None:
    """Use so much, and go on saying so."""
    _burn(seconds)
    note(log, "chatters")
    while not Path(gate).exists():
        logging.getLogger("crowd").warning("a neighbour\nsays something")
        time.sleep(0.005)  # task body


@task(max_crashes=2)
def log_and_die(log: str, stretches: int, seconds: float) -> None:
    """Log a line and use so much, several times, while others run in between; then die, in its second attempt alone."""
    for number in range(stretches):
        logging.getLogger("crowd").warning("stretch %d of %d", number, len(lines(log)))
        _burn(seconds)
        time.sleep(0.02)  # task body
    note(log, "dies")
    os.kill(os.getpid(), signal.SIGKILL)


@task()
def nothing() -> None:
    return None


@task()
def hammer(path: str, gate: str, log: str, kind: int) -> None:
    """Call the storage again and again, without ever waiting, and note each job that was stored."""
    app = _opened(path)
    small = app.tasks["crowd.nothing"]
    while not os.path.exists(gate):  # noqa: PTH110
        note(log, small.using(queue="later")().id)
        if kind == 1:
            app.jobs(limit=5)
        elif kind == 2:
            with app.batch():
                small.using(queue="later").map([(), ()])
        elif kind == 3:
            with contextlib.suppress(TaskLocked), app.lock_task("one"):
                app.counts()


@functools.cache
def _opened(path: str) -> LiteQ:
    return build(path)


def _burn(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


@task()
def wait(gate: str, log: str, word: str) -> str:
    note(log, word)
    while not Path(gate).exists():
        time.sleep(0.005)  # task body
    return word


@task()
def cling(first: str, second: str, log: str) -> str:
    """Take no hint until the one gate opens; the next time wait for the other one, and take it."""
    if not lines(log):
        note(log, "clings")
        while not Path(first).exists():
            with contextlib.suppress(BaseException):
                time.sleep(0.005)  # task body
        note(log, "lets go")
        return "much too late"
    try:
        return wait(second, log, "waits")
    except BaseException:
        note(log, "is told")
        raise


@task(context=True, timeout=600)
def be_struck_as_it_tells(*, task: TaskContext) -> None:
    """Be struck in the middle of a message to the consumer, as by the deadline."""
    import gevent

    from liteq.consumer.pools import hub

    slot: Any = task._channel
    send_all = hub._send_all

    def send(channel: int, data: bytes) -> None:
        if gevent.getcurrent() is not slot.greenlet:  # the thread that reads sends too
            send_all(channel, data)
            return
        hub._send_all = send_all
        send_all(channel, data[:5])
        slot._hub._to_strike = slot
        signal.raise_signal(signal.SIGUSR2)
        send_all(channel, data[5:])

    hub._send_all = send
    task.progress(1, 2)


@task(on_crash="fail")
def wait_once(gate: str, log: str, word: str) -> str:
    return wait(gate, log, word)


def build(path: str | Path) -> LiteQ:
    """An app over a file of its own, with every task of this module."""
    app = LiteQ(path, durability="normal")
    for function, chosen in _tasks:
        app.task(**chosen)(function)
    return app


# Only worker processes use this.
app = build("unused.db")
