"""Where a consumer's log lines go. Set up in the consumer and in each of its worker processes alike."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import Literal

from liteq.logs import JSONFormatter

LogFormat = Literal["full", "simple", "json"]

_FORMATS = {
    "full": "[%(asctime)s] %(levelname)s:%(name)s:%(processName)s:%(threadName)s: %(message)s",
    "simple": "%(asctime)s %(message)s",
}


@dataclass(frozen=True, slots=True)
class LogSetup:
    """What is logged, how and where.

    Args:
        level: a level of the logging module.
        format: ``"full"``, ``"simple"`` (time and message) or ``"json"`` (one object a line).
        file: a path; ``None``: standard error.
    """

    level: int = logging.INFO
    format: LogFormat = "full"
    file: str | None = None

    def apply(self) -> None:
        """Give the root logger one handler, in place of those it has, so that the tasks' own loggers are heard too."""
        handler: logging.Handler
        # Appending writes of one line do not mix, so that several processes can share the file.
        handler = logging.FileHandler(self.file, encoding="utf-8") if self.file else logging.StreamHandler(sys.stderr)
        handler.setFormatter(JSONFormatter() if self.format == "json" else _Formatter(_FORMATS[self.format]))
        logging.basicConfig(level=self.level, handlers=[handler], force=True)


class _Formatter(logging.Formatter):
    """ISO time with milliseconds, local."""

    default_time_format = "%Y-%m-%d %H:%M:%S"
    default_msec_format = "%s.%03d"
