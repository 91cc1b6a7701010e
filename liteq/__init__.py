"""liteq: a task queue and scheduler that lives inside a small Python app.

from liteq import LiteQ

app = LiteQ("app.db")

@app.task(retries=3)
def add(a: int, b: int) -> int:
    return a + b

add(1, 2).get(timeout=5)     # with `liteq_consumer module.app` running in another terminal
"""

from typing import TYPE_CHECKING, Any

from liteq import signals
from liteq._version import __version__
from liteq.app import LiteQ
from liteq.context import TaskContext
from liteq.errors import (
    Cancel,
    ConfigurationError,
    DuplicateJob,
    DuplicateTask,
    Fail,
    JobNotFound,
    LiteQError,
    ResultTimeout,
    Retry,
    SerializationError,
    Snooze,
    StorageBusy,
    StorageError,
    StorageTooNew,
    StorageUnusable,
    TaskExpired,
    TaskFailed,
    TaskRevoked,
    TaskTimeout,
    TriggerError,
    UnknownTask,
)
from liteq.job import Attempt, Job, JobState, Progress
from liteq.result import Result, ResultGroup
from liteq.task import Signature, Task

if TYPE_CHECKING:
    from liteq.serializers import CompressedSerializer, JSONSerializer, PickleSerializer, Serializer, SignedSerializer
    from liteq.storage.memory import MemoryStorage
    from liteq.storage.sqlite import SqliteStorage

S = signals

__all__ = [
    "Attempt",
    "Cancel",
    "CompressedSerializer",
    "ConfigurationError",
    "DuplicateJob",
    "DuplicateTask",
    "Fail",
    "JSONSerializer",
    "Job",
    "JobNotFound",
    "JobState",
    "LiteQ",
    "LiteQError",
    "MemoryStorage",
    "PickleSerializer",
    "Progress",
    "Result",
    "ResultGroup",
    "ResultTimeout",
    "Retry",
    "S",
    "SerializationError",
    "Serializer",
    "Signature",
    "SignedSerializer",
    "Snooze",
    "SqliteStorage",
    "StorageBusy",
    "StorageError",
    "StorageTooNew",
    "StorageUnusable",
    "Task",
    "TaskContext",
    "TaskExpired",
    "TaskFailed",
    "TaskRevoked",
    "TaskTimeout",
    "TriggerError",
    "UnknownTask",
    "__version__",
    "signals",
]

#: Names that most programs do not need, and where they are.
_LAZY = {
    "CompressedSerializer": "liteq.serializers",
    "JSONSerializer": "liteq.serializers",
    "MemoryStorage": "liteq.storage.memory",
    "PickleSerializer": "liteq.serializers",
    "Serializer": "liteq.serializers",
    "SignedSerializer": "liteq.serializers",
    "SqliteStorage": "liteq.storage.sqlite",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value
