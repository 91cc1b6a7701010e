"""What a worker process leaves behind in its black box: the last lines that its job has logged, and what it had used.

Log records are noted where they are made, by a record factory. A handler would not do: on the root logger it would keep
`logging.basicConfig` and the last resort from working, and a later `dictConfig` would remove it.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from liteq.consumer.pools import usage
from liteq.storage.begun import BlackBox

#: How much time may pass, in seconds, until what the worker has used is asked anew at the beginning of a job: asking
#: costs a microsecond, and in so little time no job before it can have used more.
SAMPLE_AFTER = 0.005


class LastWords:
    """Fills a worker's black box.

    Args:
        box: not used by anybody else.
    """

    def __init__(self, box: BlackBox) -> None:
        self._box = box
        self._lock = threading.Lock()
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
            text = self._text(record).encode("utf-8", "backslashreplace")
            with self._lock:
                self._box.write(text)
        return record

    def _text(self, record: logging.LogRecord) -> str:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit, which logging itself complains about
            message = f"{record.msg!r} {record.args!r}"
        line = f"{self._formatter.formatTime(record)} {record.levelname} {record.name}: {message}\n"
        if record.exc_info and record.exc_info[0] is not None:
            line += self._formatter.formatException(record.exc_info) + "\n"
        return line
