"""Every call of the system by which a FileStorage reads or writes fails once, in several ways; and once it dies there.

The verbs are those of ``test_faults``, on a directory instead of a SQLite file. What must hold is the same: nothing is
half done, nothing stays locked, and the same call works a moment later.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import test_faults
from contract import claim, new
from test_faults import SHARED_MEMORY, STRUCK, VERBS, Scene, Verb, fresh, kept

from liteq.errors import StorageError
from liteq.job import JobFilter
from liteq.storage import journal as journals
from liteq.storage.file import FileStorage

#: Verbs that are about SQLite alone.
_OF_SQLITE = {
    "the first use of a file of version 1",
    "upkeep with pages to give back",
    "backup",
    "add on a connection",
    "record_step_at_once",
}
NAMES = [name for name in VERBS if name not in _OF_SQLITE and "transaction" not in name]

_CALLS = ("open", "pread", "pwrite", "ftruncate", "fsync", "fdatasync")


class Plan:
    """Where to strike, and how; each call has two moments, before and after it. See `test_faults.Plan`."""

    def __init__(self, at: int = -1, strike: Callable[[], None] | None = None) -> None:
        self.moments: list[str] = []
        self._at = at
        self._strike = strike

    def reach(self, moment: str) -> None:
        self.moments.append(moment)
        if self._strike is not None and len(self.moments) - 1 == self._at:
            self._strike()


class System:
    """The module ``os``, as the journal sees it: it follows the plan of the moment."""

    def __init__(self) -> None:
        self.plan = Plan()

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in _CALLS:
            return real

        def call(*given: Any, **named: Any) -> Any:
            self.plan.reach(f"before {name}")
            answer = real(*given, **named)
            self.plan.reach(f"after {name}")
            return answer

        return call


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    system = System()
    monkeypatch.setattr(journals, "os", system)
    monkeypatch.setattr(journals, "_sync", system.fdatasync)
    monkeypatch.setattr(test_faults, "SqliteStorage", FileStorage)
    return system


def _io_error() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def _interrupt() -> None:
    raise KeyboardInterrupt


def _die() -> None:
    os._exit(STRUCK)


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A queue that nobody has open, with jobs in every state."""
    memory = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    with TemporaryDirectory(prefix="liteq-test-", dir=memory) as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_faults, "SqliteStorage", FileStorage)
        (Path(name) / "template").mkdir()
        test_faults._build(Path(name) / "template" / "queue")
        yield Path(name) / "template"


@pytest.fixture
def copies(template: Path) -> Iterator[Callable[[], Path]]:
    """Makes copies of the template; gives the queue's path."""
    made: list[Path] = []

    def copy() -> Path:
        made.append(template.with_name(f"copy-{len(made)}"))
        return Path(shutil.copytree(template, made[-1])) / "queue"

    yield copy
    for directory in made:
        shutil.rmtree(directory)


def stage(verb: Verb, path: Path, system: System, plan: Plan) -> Scene:
    """Set the scene; from here on the plan is followed."""
    system.plan = Plan()
    scene = verb.stage(path)
    scene.storage._replica._durability = "full"  # type: ignore[attr-defined]
    journal = scene.storage._replica._journal  # type: ignore[attr-defined]
    if journal is not None:
        journal._sync = True
    system.plan = plan
    return scene


def moments(name: str, path: Path, system: System) -> list[int]:
    """Where a call can be struck: of what comes again and again, the first and the last time."""
    plan = Plan()
    scene = stage(VERBS[name], path, system, plan)
    with closing(scene.storage):
        VERBS[name].call(scene)
        found = list(plan.moments)
        system.plan = Plan()
    return [at for at, one in enumerate(found) if one not in found[:at] or one not in found[at + 1 :]]


def content(path: Path) -> list[Any]:
    """Everything that there is, as somebody sees it who comes anew."""
    if not (path / "journal").exists():
        return []
    with closing(FileStorage(path, create=False)) as storage:
        return storage._replica.ask(lambda model: list(model.frozen().parts()))


def jobs_in(path: Path) -> set[int]:
    if not (path / "journal").exists():
        return set()
    with closing(FileStorage(path, create=False)) as storage:
        return {job.seq for job in storage.find(JobFilter())}


def fails(verb: Verb, scene: Scene) -> str:
    """Call it, and say with what it failed; liteq must say so in its own words."""
    try:
        verb.call(scene)
    except StorageError:
        return "a StorageError"
    except KeyboardInterrupt:
        return "an interrupt"
    return "nothing"


@pytest.mark.parametrize(
    "how", [pytest.param(_io_error, id="I/O error"), pytest.param(_interrupt, id="interrupt", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", NAMES)
def test_whatever_fails_at_any_call_nothing_is_half_done_and_the_same_call_works_next(
    name: str, how: Callable[[], None], copies: Callable[[], Path], system: System
) -> None:
    verb = VERBS[name]
    for at in moments(name, copies(), system):
        plan = Plan(at, how)
        path = copies()
        scene = stage(verb, path, system, Plan())
        with closing(scene.storage):
            before, jobs = content(path), jobs_in(path)
            system.plan = plan
            where = f"{name}: {fails(verb, scene)} at {plan.moments[at]}"
            system.plan = Plan()
            assert not scene.storage._replica.turnstile.is_mine(), where  # type: ignore[attr-defined]
            if verb.whole and "StorageError" in where and verb.stage is not fresh:
                assert content(path) == before, where
            assert kept(name, jobs) <= jobs_in(path), where
            verb.call(scene)
            mine = scene.storage._replica.ask(lambda model: list(model.frozen().parts()))  # type: ignore[attr-defined]
            assert mine == content(path), where


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_process_that_dies_at_any_call_leaves_a_queue_that_works(
    name: str, copies: Callable[[], Path], system: System
) -> None:
    verb = VERBS[name]
    for at in moments(name, copies(), system):
        path = copies()
        jobs = set() if verb.stage is fresh else jobs_in(path)
        child = os.fork()
        if child == 0:
            try:
                verb.call(stage(verb, path, system, Plan(at, _die)))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == STRUCK, name
        assert kept(name, jobs) <= jobs_in(path)
        with closing(FileStorage(path, durability="normal")) as storage:
            test_faults.recover(storage)  # type: ignore[arg-type]
            [job] = storage.add([new(queue="next")])
            owner = storage.register({})
            assert [one.seq for one in claim(storage, owner=owner, queues=("next",))] == [job.seq]
