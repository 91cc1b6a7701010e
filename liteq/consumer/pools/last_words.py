"""What a worker process leaves behind in its black box: the last lines that its job has logged, and what it had used.
Where many jobs share a process, as greenlets do, each line says whose it is, and what each has used is added up.

Log records are noted where they are made, by a record factory. A handler would not do: on the root logger it would keep
`logging.basicConfig` and the last resort from working, and a later `dictConfig` would remove it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from liteq.consumer.pools import usage
from liteq.storage.begun import BlackBox, anew, tagged

#: How much time may pass, in seconds, until what the worker has used is asked anew at the beginning of a job: asking
#: costs a microsecond, and in so little time no job before it can have used more.
SAMPLE_AFTER = 0.005
#: Of a stretch between two switches that is shorter, in seconds, all is taken for CPU time: asking for that costs more
#: than a microsecond.
SHORT = 0.001


class LastWords:
    """Fills a worker's black box.

    Args:
        box: not used by anybody else.
        lock: where that of `threading` is not one of threads.
    """

    def __init__(self, box: BlackBox, lock: AbstractContextManager[Any] | None = None) -> None:
        self._box = box
        self._lock = threading.Lock() if lock is None else lock
        self._sampled = 0.0
        self._formatter = logging.Formatter()
        self._make = logging.getLogRecordFactory()
        logging.setLogRecordFactory(self._noted)

    def begin(self, now: float) -> None:
        """A job begins."""
        before = None
        if abs(now - self._sampled) > SAMPLE_AFTER:
            self._sampled = now
            used = usage.own()
            before = None if used is None else used.cpu
        self._box.begin(before)

    def end(self) -> None:
        """The worker ends at once, perhaps in the middle of a job."""
        used = usage.own()
        if used is not None:
            self._box.end(used.cpu, used.peak)

    def _noted(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._make(*args, **kwargs)
        if record.name is not None and not self._box.closed:  # made by makeLogRecord(); in a process that a job forked
            self._write(self._text(record))
        return record

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            self._box.write(data)

    def _text(self, record: logging.LogRecord) -> str:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit, which logging itself complains about
            message = f"{record.msg!r} {record.args!r}"
        line = f"{self._formatter.formatTime(record)} {record.levelname} {record.name}: {message}\n"
        if record.exc_info and record.exc_info[0] is not None:
            line += self._formatter.formatException(record.exc_info) + "\n"
        return line


class Spender(Protocol):
    """A job among those that share a worker."""

    #: CPU seconds, of its stretches that have ended.
    spent: float

    @property
    def seq(self) -> int:
        """The job's."""


class SharedWords(LastWords):
    """Fills the black box of a worker that runs many jobs by turns.

    Args:
        box: not used by anybody else.
        whose: the ``seq`` of the job whose code calls; 0: nobody's.
        clock: seconds that never go back.
        lock: one of real threads.
    """

    def __init__(
        self, box: BlackBox, whose: Callable[[], int], clock: Callable[[], float], lock: AbstractContextManager[Any]
    ) -> None:
        self._whose = whose
        self._clock = clock
        self._runs: Spender | None = None
        self._since = self._used = 0.0
        box.share()
        super().__init__(box, lock)

    def begin_anew(self, seq: int) -> None:
        """A job begins that may have run here before: what it logged then is not this attempt's."""
        self._write(anew(seq))

    def switch(self, job: Spender | None) -> None:
        """From here on this job's code runs, or nobody's. (0.4 µs.)"""
        now = self._clock()
        stretch = now - self._since
        if stretch > SHORT or now - self._sampled > SAMPLE_AFTER:
            used, self._sampled = self._used, now
            own = usage.own()
            self._used = 0.0 if own is None else own.cpu
            if stretch > SHORT:  # others may have had the processor meanwhile
                stretch = min(stretch, self._used - used)
        if self._runs is not None:
            self._runs.spent += stretch
        self._runs, self._since = job, now
        if job is not None:
            self._box.resume(self._used - job.spent)

    def _text(self, record: logging.LogRecord) -> str:
        return tagged(self._whose(), super()._text(record))
