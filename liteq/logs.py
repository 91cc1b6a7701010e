"""What happens, as log lines: one per change of a job, written here and nowhere else.

The logger is ``liteq``. Started and succeeded are INFO, what will be tried again WARNING, a final failure ERROR with
its traceback (exactly one ERROR for each), waiting and polling DEBUG. The same keys are in ``extra=``, so a JSON
formatter or a filter need not parse. Arguments are never logged.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from liteq.job import Ending, Job, JobState, Outcome
from liteq.lifecycle import Transition

logger = logging.getLogger("liteq")

INFO = logging.INFO
WARNING = logging.WARNING
ERROR = logging.ERROR
DEBUG = logging.DEBUG


def wanted(level: int) -> bool:
    """Whether anybody would see a line of this level; asked first on the hot path."""
    return logger.isEnabledFor(level)


def _write(level: int, event: str, keys: dict[str, Any], tail: str = "") -> None:
    if logger.isEnabledFor(level):
        words = " ".join(f"{key}={_harmless(value)}" for key, value in keys.items())
        text = f"{event} {words}{_harmless(tail, keep=_BREAKS)}" if words else event
        logger.log(level, "%s", text, extra={"event": event, **keys})


_BREAKS = frozenset("\n\t")


def _harmless(value: object, keep: frozenset[str] = frozenset()) -> str:
    """The text of a value with control characters spelled out: what a job says of itself must not forge lines, nor
    command the terminal of whoever reads the log."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else ascii(one)[1:-1] for one in text)


def started(job: Job, retries: int) -> None:
    """A job was handed to a worker."""
    _write(INFO, "started", _keys(job, retries) | {"waited": _duration(_waited(job))})


def settled(job: Job, retries: int, outcome: Outcome, transition: Transition) -> None:
    """An attempt ended and what follows from it is stored."""
    crash = 0 if transition.target is JobState.FAILED else transition.crashes - job.crashes
    keys = _keys(job, retries + crash)
    took = {"took": _duration(outcome.finished - outcome.started)}
    error = {"error": f"{outcome.error_type}: {_one_line(outcome.message)}"} if outcome.error_type else {}
    match transition.target:
        case JobState.SUCCEEDED:
            _write(INFO, "succeeded", keys | took | {"waited": _duration(outcome.started - (job.due or job.created))})
        case JobState.FAILED:
            tail = f"\n{outcome.traceback.rstrip()}" if outcome.traceback else ""
            _write(ERROR, "gave up", keys | took | error, tail)
        case JobState.REVOKED:
            _write(INFO, "revoked", keys | took | {"reason": transition.reason})
        case _ if outcome.ending == Ending.SUSPENDED:
            event = {} if outcome.awaits is None else {"event": outcome.awaits}
            delay = {} if outcome.delay is None else {"delay": _duration(outcome.delay)}
            _write(INFO, "sleeps" if outcome.awaits is None else "waits", keys | took | event | delay)
        case JobState.BLOCKED:
            _write(WARNING, "parked", keys | {"reason": transition.reason})
        case _ if outcome.ending == Ending.INTERRUPTED:
            _write(INFO, "put back", keys)
        case _ if outcome.ending == Ending.SNOOZED:
            _write(INFO, "snoozed", keys | {"delay": _duration(outcome.delay or 0.0)})
        case _:
            wait = max(0.0, (transition.due or outcome.finished) - outcome.finished)
            _write(WARNING, "will retry", keys | took | {"delay": _duration(wait)} | error)


def unstarted(job: Job, transition: Transition) -> None:
    """A job ended without having been started: revoked or expired."""
    _write(INFO, str(transition.target), {"job": job.id, "task": job.task, "reason": transition.reason})


def not_run(job: Job, transition: Transition) -> None:
    """A job ended because one that it waits for did not succeed; of that one, an ERROR or the like has been told."""
    record = transition.record
    why = transition.reason if record is None else record.message
    _write(WARNING, "not run", {"job": job.id, "task": job.task, "state": str(transition.target), "reason": why})


def lost_claim(job: Job, outcome: Outcome) -> None:
    """An outcome came too late: the job had been given to somebody else."""
    _write(WARNING, "outcome dropped", {"job": job.id, "task": job.task, "claim": job.claim, "ending": outcome.ending})


def hook_failed(what: str, job: Job, error: BaseException) -> None:
    """A hook or a signal receiver raised; the job is not affected."""
    logger.error("%s failed for job=%s task=%s; the job goes on", what, job.id, job.task, exc_info=error)


def receiver_failed(name: str, signal: str, job: Job, error: BaseException) -> None:
    hook_failed(f"receiver {name} of signal {signal!r}", job, error)


def say(level: int, message: str, **keys: Any) -> None:
    """A line about the consumer rather than one job."""
    _write(level, message, keys)


def _keys(job: Job, retries: int) -> dict[str, Any]:
    allowed = retries + 1 + job.crashes  # a crash spends no retry
    return {"job": job.id, "task": job.task, "attempt": f"{job.attempt - job.base}/{allowed}"}


def _waited(job: Job) -> float:
    """From when it could have started to when it was claimed, in seconds."""
    return max(0.0, (job.started or job.created) - max(job.due or 0.0, job.created))


def _duration(seconds: float) -> str:
    return f"{max(0.0, seconds):.3f}s"


def _one_line(text: str) -> str:
    return text if "\n" not in text else text.split("\n", 1)[0] + " …"


class JSONFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, ISO 8601), level, logger, message, and the keys of the event."""

    _KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        from liteq.instants import moment

        line = {
            "time": moment(record.created).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in self._KNOWN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)
