"""What a consumer can be told."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from liteq.definition import check_integer, check_name
from liteq.errors import ConfigurationError
from liteq.instants import positive_seconds
from liteq.shares import Share, check, share

#: So many have room in a slot file, with those that replace them.
MOST_WORKERS = 20_000

WorkerType = Literal["thread", "process", "greenlet", "asyncio"]
StartMethod = Literal["fork", "spawn", "forkserver"]


@dataclass(frozen=True, slots=True)
class ConsumerOptions:
    """The options of a consumer, checked.

    Args:
        workers: how many jobs run at a time.
        worker_type: ``"thread"``, ``"process"``, ``"greenlet"`` (needs gevent) or ``"asyncio"``.
        queues: in this order of preference; ``None``: all. ``"high:3,default:1"`` are weights instead: while both have
            jobs, three of four that start are of ``high``. ``"high=1,default"`` keeps a worker for jobs of ``high``. A
            text, or a list of texts or Shares.
        periodic: fire schedules.
        shutdown_timeout: seconds for which running jobs may go on after a stop.
        max_tasks: replace a worker after so many jobs; ``None``: never.
        max_memory: replace a worker process that has more megabytes (of 2**20 bytes) after a job; ``None``: never.
        burst: run until nothing is due, then stop.
        start_method: of worker processes; ``None``: forkserver on Linux, spawn elsewhere.
        app_path: from where worker processes import the app, ``"module:name"``.
    """

    workers: int = 1
    worker_type: WorkerType = "thread"
    queues: tuple[str, ...] | None = None
    periodic: bool = True
    shutdown_timeout: float = 25.0
    max_tasks: int | None = None
    max_memory: int | None = None
    burst: bool = False
    start_method: StartMethod | None = None
    app_path: str | None = None
    #: How the queues share this consumer, where that is not their order alone.
    shares: tuple[Share, ...] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_integer(self.workers, "workers", least=1)
        if self.workers > MOST_WORKERS:
            raise ConfigurationError(f"workers must be at most {MOST_WORKERS}, not {self.workers}")
        _one_of(self.worker_type, "worker_type", get_args(WorkerType))
        if self.worker_type == "greenlet":
            _check_gevent()
        if self.start_method is not None:
            _one_of(self.start_method, "start_method", get_args(StartMethod))
        if self.max_tasks is not None:
            check_integer(self.max_tasks, "max_tasks", least=1)
        if self.max_memory is not None:
            check_integer(self.max_memory, "max_memory", least=1)
            if self.worker_type != "process":
                raise ConfigurationError(
                    f"max_memory is for process workers: those of kind {self.worker_type!r} share one process, which "
                    "cannot be replaced under them; use worker_type='process', or leave it out"
                )
        if self.queues is not None:
            shares = _shares(self.queues)
            check(shares, self.workers)
            _set(self, "queues", tuple(one.queue for one in shares))
            _set(self, "shares", shares if any(one.weight or one.reserved for one in shares) else None)
        _set(self, "shutdown_timeout", positive_seconds(self.shutdown_timeout, "shutdown_timeout"))


def _check_gevent() -> None:
    from importlib.util import find_spec

    if sys.platform == "win32":
        raise ConfigurationError("greenlet workers need a Unix system; asyncio workers run everywhere")
    if find_spec("gevent") is None:
        raise ConfigurationError("greenlet workers need gevent, which is not installed: pip install 'liteq[gevent]'")


def _set(options: ConsumerOptions, name: str, value: Any) -> None:
    object.__setattr__(options, name, value)  # the one way to normalise a frozen dataclass's field


def _shares(given: str | Sequence[str | Share]) -> tuple[Share, ...]:
    entries = [one.strip() for one in given.split(",")] if isinstance(given, str) else list(given)
    checked = tuple(one._replace(queue=check_name(one.queue, "queues")) for one in map(_as_share, entries))
    names = [one.queue for one in checked]
    if not checked:
        raise ConfigurationError("queues takes at least one queue; leave it out for all of them")
    if len(set(names)) < len(names):
        raise ConfigurationError(f"queues names one queue twice: {', '.join(names)}")
    return checked


def _as_share(one: object) -> Share:
    if isinstance(one, Share):
        return one
    return share(check_name(one, "queues"))


def _one_of(value: object, what: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigurationError(f"{what} takes {' or '.join(map(repr, choices))}, not {value!r}")
