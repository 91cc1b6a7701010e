"""What a stack looks like to whoever asks: the task's own frames, innermost last, whatever they were read from."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
import workshop

from liteq import LiteQ
from liteq.consumer import stacks
from liteq.consumer.pools.base import Pool

FAULT = """\
Thread 0x00007f3a9ffff6c0 [liteq-reader] (most recent call first):
  File "/lib/liteq/consumer/pools/worker.py", line 240 in _receive
  File "/lib/python/threading.py", line 975 in run

Current thread 0x00007f3aa7f2c740{name} (most recent call first):
  File "/srv/shop/shop.py", line 7 in crunch
  File "/srv/shop/shop.py", line 4 in report
  File "/lib/liteq/execution.py", line 150 in _run
  File "/lib/liteq/execution.py", line 120 in execute
  File "/lib/liteq/consumer/pools/worker.py", line 190 in run
  File "/lib/python/multiprocessing/process.py", line 108 in run

Extension modules: _x (total: 1)
"""


@pytest.mark.parametrize("name", ["", " [python]"])
def test_what_faulthandler_says_is_turned_around_and_cut_to_the_task(name: str) -> None:
    text = stacks.of_fault(FAULT.format(name=name))
    assert text is not None
    assert [line.strip() for line in text.splitlines()] == [
        'File "/srv/shop/shop.py", line 4, in report',
        'File "/srv/shop/shop.py", line 7, in crunch',
    ]


def test_a_stack_too_deep_for_faulthandler_is_shown_as_far_as_it_goes() -> None:
    deep = "Thread 0x1 (most recent call first):\n" + '  File "/srv/a.py", line 3 in dig\n' * 100 + "  ...\n"
    assert str(stacks.of_fault(deep)).count("in dig") >= 1


@pytest.mark.parametrize("text", ["", "Thread 0x1 (most recent call first):\n", "Fatal: nothing\n"])
def test_where_faulthandler_says_nothing_there_is_nothing(text: str) -> None:
    assert stacks.of_fault(text) is None


def test_a_thread_that_is_gone_has_no_stack() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert stacks.of_thread(thread.ident or 0) is None


def test_a_frame_shows_what_is_around_it() -> None:
    def generator() -> Iterator[FrameType]:
        yield sys._getframe()

    text = stacks.of_frame(next(generator()))
    assert "in generator" in text
    assert stacks.of_frame(None) == ""


def test_an_asyncio_task_shows_the_chain_it_waits_in() -> None:
    async def inner(seen: asyncio.Event) -> None:
        seen.set()
        await asyncio.Event().wait()

    async def outer(seen: asyncio.Event) -> None:
        await inner(seen)

    async def look() -> str:
        seen = asyncio.Event()
        async with asyncio.timeout(10):
            task = asyncio.create_task(outer(seen), name="brooding")
            await seen.wait()
            text = stacks.of_coroutine_task(task)
            task.cancel()
        return text

    text = asyncio.run(look())
    assert text.startswith("  asyncio task brooding:\n")
    assert text.index("in outer") < text.index("in inner") < text.index("in wait")


def test_an_endless_stack_keeps_its_innermost_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "LONGEST", 200)
    text = stacks.of_frame(sys._getframe())
    assert "characters of outer frames left out" in text
    assert "of_frame(sys._getframe())" in text


def test_what_cannot_be_shown_says_so() -> None:
    def look() -> str:
        raise RuntimeError("it moved")

    assert "cannot be shown: RuntimeError('it moved')" in str(stacks.tried(look))


def test_a_kind_that_cannot_look_says_so_and_only_of_what_it_runs() -> None:
    class Blind(Pool):
        def running(self) -> list[Any]:
            return [type("Running", (), {"seq": 7})()]

    Blind.__abstractmethods__ = frozenset()
    pool: Pool = Blind()  # type: ignore[abstract]
    assert pool.stack_of(8) is None
    source = pool.stack_of(7)
    assert source is not None
    assert "cannot show" in str(source())


@pytest.mark.parametrize("worker_type", ["thread", "asyncio"])
def test_every_job_that_runs_here_shows_its_own(
    app: LiteQ, tasks: Any, consume: Any, gate: Any, log: str, eventually: Any, worker_type: str
) -> None:
    with consume(app, worker_type=worker_type, workers=3):
        plain, coroutine = tasks.wait(str(gate), log), tasks.await_at(str(gate), log)
        eventually(lambda: len(workshop.lines(log)) == 2)
        assert "in wait_at" in app.stack(plain)
        assert "in await_at" in app.stack(coroutine)
        assert f"job {coroutine.id}, task workshop.await_at, for " in app.stack(coroutine)
        gate.touch()
        plain.get(10), coroutine.get(10)
