"""The front door: which names it shows, that each says what it is, and how little `import liteq` costs.

The list of public names is written down here on purpose. Whoever adds a name adds it to this list in the same commit,
and so decides for good: a public name is a promise.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import liteq
from liteq import definition
from liteq.unique import UNIQUE_OPTIONS

ROOT = Path(__file__).resolve().parents[2]

PUBLIC = frozenset(
    {
        "__version__",
        # the app
        "LiteQ",
        "Task",
        "Signature",
        "chord",
        "group",
        "Result",
        "ResultGroup",
        "TaskContext",
        "Job",
        "JobState",
        "Attempt",
        "Progress",
        "S",
        "signals",
        # what a task raises about its own job
        "Retry",
        "Snooze",
        "Cancel",
        "Fail",
        # when something is due
        "Schedule",
        "Trigger",
        "at",
        "crontab",
        "every",
        "parse_trigger",
        # what keeps jobs, and how values are written down
        "Storage",
        "MemoryStorage",
        "SqliteStorage",
        "FileStorage",
        "Serializer",
        "JSONSerializer",
        "PickleSerializer",
        "SignedSerializer",
        "CompressedSerializer",
        # what an examination finds
        "Finding",
        "Verdict",
        "MiddlewareCall",
        # why a job is not running
        "Explanation",
        "Cause",
        # steps
        "Step",
        "StepKind",
        "StepState",
        # errors
        "LiteQError",
        "LockReentered",
        "LockTimeout",
        "ConfigurationError",
        "DuplicateSchedule",
        "DuplicateTask",
        "DuplicateJob",
        "DuplicateStep",
        "ClaimLost",
        "EventTimeout",
        "JobFinished",
        "SerializationError",
        "PayloadTooLarge",
        "TriggerError",
        "JobNotFound",
        "ScheduleNotFound",
        "UnknownTask",
        "NotRunning",
        "NoAnswer",
        "ResultTimeout",
        "WouldDeadlock",
        "TaskTimeout",
        "TaskFailed",
        "TaskLocked",
        "RateLimitExceeded",
        "TaskRevoked",
        "TaskExpired",
        "DependencyFailed",
        "StorageError",
        "StorageBusy",
        "StorageUnusable",
        "StorageTooNew",
    }
)

# Promised in the design and not built yet. When one arrives it moves up.
PROMISED: frozenset[str] = frozenset()

# What `import liteq` may cost: the price of these, and little more. A small room of liteq's own costs 0.1 ms.
BASELINE = "import sqlite3, json, threading, dataclasses"
MODULES_OF_LITEQ = 35
MODULES_BEYOND = 20

# Each of these is imported where it is used, or a program that only enqueues pays for what it never touches.
HEAVY = frozenset(
    {
        "argparse",
        "asyncio",
        "base64",
        "concurrent.futures",
        "ctypes",
        "decimal",
        "email",
        "gevent",
        "hashlib",
        "http",
        "importlib.metadata",
        "logging",
        "multiprocessing",
        "pathlib",
        "pickle",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "ssl",
        "subprocess",
        "tempfile",
        "unittest",
        "urllib",
        "uuid",
        "zoneinfo",
        "zlib",
    }
)

LIST_MODULES = f"import sys; {BASELINE}; before = set(sys.modules); {{then}}; print(*sorted(set(sys.modules) - before))"


DEFINE_AN_APP = """
import json, os, sys, threading

opened = []


def watch(event, args):
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if event == "sqlite3.connect" or (writes and "__pycache__" not in str(args[0])):
        opened.append(str(args[0]))


sys.path.insert(0, sys.argv[1])
sys.addaudithook(watch)
from liteq import LiteQ

app = LiteQ("never.db")


@app.task(retries=3)
def add(a, b):
    return a + b


print(json.dumps({"threads": threading.active_count(), "opened": opened}))
"""


def modules_loaded_by(statement: str) -> set[str]:
    """What a fresh interpreter loads for a statement, beyond the baseline; without site-packages, which may preload."""
    program = LIST_MODULES.format(then=statement)
    command = [sys.executable, "-S", "-E", "-c", program]
    return set(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split())


@pytest.fixture(scope="module", params=["import liteq", "from liteq import LiteQ"])
def loaded(request: pytest.FixtureRequest) -> set[str]:
    modules = modules_loaded_by(request.param)
    assert "liteq" in modules
    return modules


def is_liteq(module: str) -> bool:
    return module.partition(".")[0] == "liteq"


def test_the_front_door_says_which_names_it_shows() -> None:
    assert isinstance(liteq.__all__, list | tuple)


def test_the_public_names_are_those_written_down() -> None:
    shown = set(liteq.__all__)
    assert shown - PUBLIC == set(), "new public names: write them into PUBLIC, and into docs/"
    assert PUBLIC - shown == set(), "public names that went away: that breaks programs"


def test_a_promised_name_is_kept_apart_until_it_arrives() -> None:
    assert not PROMISED & PUBLIC
    assert not [name for name in PROMISED if hasattr(liteq, name)], "arrived: move it to PUBLIC"


def test_no_public_name_is_listed_twice() -> None:
    assert len(liteq.__all__) == len(set(liteq.__all__))


def test_a_listing_of_the_package_shows_every_public_name_from_the_start() -> None:
    program = "import liteq; print(*sorted(set(liteq.__all__) - set(dir(liteq))))"
    command = [sys.executable, "-c", program]
    hidden = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert not hidden, f"a __dir__ is missing, or lacks: {', '.join(hidden)}"


def test_a_star_import_gives_every_public_name() -> None:
    names: dict[str, object] = {}
    exec("from liteq import *", names)
    assert set(liteq.__all__) <= set(names)


def test_a_name_that_does_not_exist_is_an_ordinary_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        liteq.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_says_what_it_is(name: str) -> None:
    thing = getattr(liteq, name)
    if isinstance(thing, str):
        return
    own = vars(thing).get("__doc__") if isinstance(thing, type) else inspect.getdoc(thing)
    assert own and len(own.split()) >= 3, f"liteq.{name} has no docstring of its own"


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_method_says_what_it_does(name: str) -> None:
    members = vars(getattr(liteq, name)) if isinstance(getattr(liteq, name), type) else {}
    silent = [
        f"{name}.{attribute}"
        for attribute, member in members.items()
        if not attribute.startswith("_") and _is_written_here(member) and not inspect.getdoc(member)
    ]
    assert not silent, f"without a docstring: {', '.join(silent)}"


def _is_written_here(member: object) -> bool:
    """A method or a property, and not a field or a method that a named tuple brings along."""
    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    return inspect.isfunction(function) and function.__module__.partition(".")[0] == "liteq"


def test_types_and_program_agree_on_the_options_of_a_task_and_of_a_call() -> None:
    of_a_task = {*definition.OPTION_NAMES, "name", "aliases"}
    assert {*definition.TaskOptions.__annotations__, "context"} == of_a_task
    of_a_call = {"eta", "delay", "priority", "queue", "id", "expires", "headers", "after", "on_failure"}
    of_a_call |= {*definition.PER_CALL, *UNIQUE_OPTIONS}
    assert set(definition.CallKeywords.__annotations__) == of_a_call


def test_importing_liteq_loads_nothing_heavy(loaded: set[str]) -> None:
    heavy = {module for module in loaded if module in HEAVY or module.partition(".")[0] in HEAVY}
    assert not heavy, f"import these where they are used: {', '.join(sorted(heavy))}"


def test_importing_liteq_stays_light(loaded: set[str]) -> None:
    own, others = {name for name in loaded if is_liteq(name)}, {name for name in loaded if not is_liteq(name)}
    assert len(own) <= MODULES_OF_LITEQ, f"{len(own)}: {' '.join(sorted(own))}"
    assert len(others) <= MODULES_BEYOND, f"{len(others)}: {' '.join(sorted(others))}"


def test_importing_liteq_loads_no_edge_and_no_consumer(loaded: set[str]) -> None:
    later = {"cli", "consumer", "dashboard", "testing", "pytest_plugin", "contrib"}
    assert {name for name in loaded if is_liteq(name) and later & set(name.split(".")[1:2])} == set()


def test_defining_an_app_starts_nothing_and_touches_no_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DEFINE_AN_APP, str(ROOT)]
    output = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert json.loads(output) == {"threads": 1, "opened": []}
    assert list(tmp_path.iterdir()) == []
