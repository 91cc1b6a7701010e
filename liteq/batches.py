"""``app.batch()``: what is enqueued inside one block, collected and stored together when it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar, Token
from typing import Protocol

from liteq.job import Job
from liteq.plan import Plan


class Receive(Protocol):
    """Who is to be handed stored jobs."""

    def __call__(self, jobs: Sequence[Job], /) -> None: ...
    def places(self) -> Iterable[tuple[int, object]]:
        """The handles on them, each with the position of its job."""
        ...


#: New jobs, who is to be handed the stored ones, and what they wait for.
Call = tuple[Sequence[Job], Receive, Plan | None]


class Batch:
    """What was enqueued inside one block. Safe to share between threads.

    Coroutines and threads that were started inside the block keep seeing it after its end; what they enqueue then is
    not collected any more, for nobody would store it.

    Args:
        outer: the batch around it.
    """

    def __init__(self, outer: Batch | None) -> None:
        self._outer = outer
        self._lock = threading.Lock()
        self._calls: list[Call] | None = []

    def collect(self, calls: Sequence[Call]) -> bool:
        """Keep these until the end of the block, or of the one around it; False if both have ended."""
        with self._lock:
            if self._calls is not None:
                self._calls += calls
                return True
        return self._outer is not None and self._outer.collect(calls)

    def end(self) -> list[Call]:
        """Collect no more; returns what is to be stored here: nothing where the batch around it takes it."""
        with self._lock:
            calls, self._calls = self._calls or [], None
        return [] if calls and self._outer is not None and self._outer.collect(calls) else calls

    def drop(self) -> None:
        """Collect no more, and forget what there is."""
        with self._lock:
            self._calls = None


class Block:
    """``with`` or ``async with``, once: stores at its end what its batch holds, or nothing if the block raises.

    Args:
        current: where the batch of the moment stands, for those who enqueue.
        store: stores calls in one transaction.
        alone: whether it stores for itself also inside another block, and in the thread that leaves it: on a connection
            that is the caller's.
    """

    def __init__(
        self, current: ContextVar[Batch | None], store: Callable[[Sequence[Call]], None], *, alone: bool = False
    ) -> None:
        self._current = current
        self._store = store
        self._alone = alone
        self._batch: Batch | None = None
        self._token: Token[Batch | None] | None = None

    def __enter__(self) -> None:
        if self._batch is not None:
            raise RuntimeError("this batch was used already; call app.batch() for each block")
        self._batch = Batch(None if self._alone else self._current.get())
        self._token = self._current.set(self._batch)

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        if calls := self._leave(kind):
            self._store(calls)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        if (calls := self._leave(kind)) and self._alone:
            self._store(calls)
        elif calls:
            import asyncio

            await asyncio.to_thread(self._store, calls)

    def _leave(self, kind: type[BaseException] | None) -> Sequence[Call]:
        """What is to be stored now that the block has ended."""
        batch, token = self._batch, self._token
        if batch is None or token is None:
            raise RuntimeError("this batch was not entered")
        self._current.reset(token)
        if kind is None:
            return batch.end()
        batch.drop()
        return []
