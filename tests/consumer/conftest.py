"""What the consumer tests share: an app on a file of its own, gates and logs through which its tasks are seen."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("kinds")

import fleet  # noqa: E402 - after the line above, as all that may import kinds
import workshop  # noqa: E402
from kinds import GRACE  # noqa: E402

from liteq import LiteQ  # noqa: E402
from liteq.consumer import Consumer  # noqa: E402

Consume = Callable[..., AbstractContextManager[Consumer]]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where the queue is: in memory where the system can, as making a file on a disk takes longer than most tests."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as directory:
        yield Path(directory) / "queue.db"


@pytest.fixture
def app(path: Path) -> Iterator[LiteQ]:
    """The workshop's app, with hooks that have seen nothing yet."""
    for traces in (workshop.STARTED_IN, workshop.SEEN, workshop.GOODBYES):
        traces.clear()
    app = workshop.build(path)
    yield app
    app.close()


@pytest.fixture
def tasks(app: LiteQ) -> Any:
    """The app's tasks as attributes."""
    return workshop.tasks_of(app)


@pytest.fixture
def log(tmp_path: Path) -> str:
    """A file in which tasks leave words."""
    return str(tmp_path / "words.log")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file for which tasks wait."""
    return tmp_path / "gate"


@pytest.fixture(autouse=True)
def _little_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not stop by itself loses its worker sooner than in real life; consumers elsewhere keep the real one."""
    for module in ("base", "thread", "process", "coroutine", "greenlet"):
        monkeypatch.setattr(f"liteq.consumer.pools.{module}.GRACE", GRACE)


@pytest.fixture
def nothing_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was claimed stays, however slow this machine is: what comes back is put in line again behind what has not
    come back yet.
    """
    monkeypatch.setattr("liteq.consumer.dispatcher.GIVE_BACK_AFTER", 600.0)
    monkeypatch.setattr("liteq.consumer.pools.child.RECALL_AFTER", 600.0)


@pytest.fixture
def no_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """No consumer, here or in the fleet, looks for the dead from time to time: it has to be told."""
    fleet.make_no_rounds(monkeypatch.setattr)
    monkeypatch.setenv(fleet.NO_ROUNDS, "1")


@pytest.fixture
def kind() -> dict[str, Any]:
    """The consumer's options that make the kind of worker; overridden by each contract's class."""
    return {"worker_type": "thread"}


@pytest.fixture
def consume(kind: dict[str, Any]) -> Consume:
    """``with consume(app, workers=2, ...):`` a consumer in this process; stopped at once if the test fails."""

    @contextmanager
    def consume(app: LiteQ, **options: Any) -> Iterator[Consumer]:
        consumer = app.create_consumer(**{"workers": 1, "app_path": "workshop:app"} | kind | options)
        consumer.start()
        try:
            yield consumer
        except BaseException:
            consumer.stop(at_once=True)
            raise
        consumer.stop()

    return consume


@pytest.fixture
def consumers(path: Path) -> Iterator[fleet.Fleet]:
    """Consumers in processes of their own, on the app's file."""
    with fleet.fleet_of(path) as members:
        yield members
