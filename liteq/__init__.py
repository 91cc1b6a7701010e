"""liteq: a task queue and scheduler that lives inside a small Python app.

    from liteq import LiteQ

    app = LiteQ("app.db")

    @app.task(retries=3)
    def add(a: int, b: int) -> int:
        return a + b

    add(1, 2).get(timeout=5)     # with `liteq_consumer module.app` running in another terminal

This is the front door: every public name can be imported from here, and its room is opened when it is.
"""

from liteq._version import __version__

# Type checkers know this name; importing it from typing would be most of what `import liteq` costs.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from liteq import signals
    from liteq import signals as S
    from liteq.app import LiteQ
    from liteq.context import TaskContext
    from liteq.errors import (
        Cancel,
        ClaimLost,
        ConfigurationError,
        DependencyFailed,
        DuplicateJob,
        DuplicateSchedule,
        DuplicateStep,
        DuplicateTask,
        EventTimeout,
        Fail,
        JobFinished,
        JobNotFound,
        LiteQError,
        LockReentered,
        LockTimeout,
        NoAnswer,
        NotRunning,
        PayloadTooLarge,
        RateLimitExceeded,
        ResultTimeout,
        Retry,
        ScheduleNotFound,
        SerializationError,
        Snooze,
        StorageBusy,
        StorageError,
        StorageTooNew,
        StorageUnusable,
        TaskExpired,
        TaskFailed,
        TaskLocked,
        TaskRevoked,
        TaskTimeout,
        TriggerError,
        UnknownTask,
        WouldDeadlock,
    )
    from liteq.explanation import Cause, Explanation
    from liteq.findings import Finding, Verdict
    from liteq.job import Attempt, Job, JobState, Progress
    from liteq.middleware import MiddlewareCall
    from liteq.result import Result, ResultGroup
    from liteq.schedule import Schedule
    from liteq.serializers import CompressedSerializer, JSONSerializer, PickleSerializer, Serializer, SignedSerializer
    from liteq.step import Step, StepKind, StepState
    from liteq.storage.base import Storage
    from liteq.storage.file import FileStorage
    from liteq.storage.memory import MemoryStorage
    from liteq.storage.sqlite import SqliteStorage
    from liteq.task import Task
    from liteq.triggers import Trigger, at, crontab, every, parse_trigger
    from liteq.workflow import Signature, chord, group

__all__ = [
    "Attempt",
    "Cancel",
    "Cause",
    "ClaimLost",
    "CompressedSerializer",
    "ConfigurationError",
    "DependencyFailed",
    "DuplicateJob",
    "DuplicateSchedule",
    "DuplicateStep",
    "DuplicateTask",
    "EventTimeout",
    "Explanation",
    "Fail",
    "FileStorage",
    "Finding",
    "JSONSerializer",
    "Job",
    "JobFinished",
    "JobNotFound",
    "JobState",
    "LiteQ",
    "LiteQError",
    "LockReentered",
    "LockTimeout",
    "MemoryStorage",
    "MiddlewareCall",
    "NoAnswer",
    "NotRunning",
    "PayloadTooLarge",
    "PickleSerializer",
    "Progress",
    "RateLimitExceeded",
    "Result",
    "ResultGroup",
    "ResultTimeout",
    "Retry",
    "S",
    "Schedule",
    "ScheduleNotFound",
    "SerializationError",
    "Serializer",
    "Signature",
    "SignedSerializer",
    "Snooze",
    "SqliteStorage",
    "Step",
    "StepKind",
    "StepState",
    "Storage",
    "StorageBusy",
    "StorageError",
    "StorageTooNew",
    "StorageUnusable",
    "Task",
    "TaskContext",
    "TaskExpired",
    "TaskFailed",
    "TaskLocked",
    "TaskRevoked",
    "TaskTimeout",
    "Trigger",
    "TriggerError",
    "UnknownTask",
    "Verdict",
    "WouldDeadlock",
    "__version__",
    "at",
    "chord",
    "crontab",
    "every",
    "group",
    "parse_trigger",
    "signals",
]

_ROOMS = {
    "app": ("LiteQ",),
    "context": ("TaskContext",),
    "findings": ("Finding", "Verdict"),
    "explanation": ("Cause", "Explanation"),
    "job": ("Attempt", "Job", "JobState", "Progress"),
    "middleware": ("MiddlewareCall",),
    "result": ("Result", "ResultGroup"),
    "schedule": ("Schedule",),
    "serializers": ("CompressedSerializer", "JSONSerializer", "PickleSerializer", "Serializer", "SignedSerializer"),
    "step": ("Step", "StepKind", "StepState"),
    "storage.base": ("Storage",),
    "storage.file": ("FileStorage",),
    "storage.memory": ("MemoryStorage",),
    "storage.sqlite": ("SqliteStorage",),
    "task": ("Task",),
    "triggers": ("Trigger", "at", "crontab", "every", "parse_trigger"),
    "workflow": ("Signature", "chord", "group"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name in ("S", "signals"):
        value: object = import_module("liteq.signals")
    else:
        value = getattr(import_module(f"liteq.{_ROOM_OF.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
