"""``liteq import-huey``: files that huey itself has written, and files that want to do harm."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import pickle
import sqlite3
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

import huey
import pytest

from liteq import JobState
from liteq.cli import huey_file
from liteq.cli import main as program

NEW = """
from liteq import LiteQ

app = LiteQ("new.db", timezone="Europe/Berlin")

@app.task(name="shop.mail")
def mail(address, subject="none"):
    return f"{subject} to {address}"

@app.task(name="shop.take")
def take(value):
    return [value]
"""

VALUES = [
    None,
    2**70,
    "snow ☃",
    b"\x00\xff",
    1.5,
    (1, [2, {"three": (4,)}]),
    {1, 2},
    frozenset({"a"}),
    datetime.datetime(2026, 1, 2, 3, 4, 5, 6),
    datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    datetime.timedelta(days=1, microseconds=3),
    datetime.date(2026, 1, 2),
    datetime.time(3, 4),
    decimal.Decimal("1.50"),
    uuid.UUID(int=5),
    PurePosixPath("/srv/shop"),
]


class Old:
    """A huey, and what its file becomes in an app of liteq's.

    Args:
        directory: where both are.
        capsys: reads what the command says.
    """

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = directory / "huey.db"
        self.huey = huey.SqliteHuey("old", filename=str(self.path))
        self.mail = self.huey.task(name="mail", retries=2, retry_delay=30)(lambda address, subject="none": None)
        self.take = self.huey.task(name="take")(lambda value: None)
        self._capsys = capsys

    def moves(self, *options: str) -> tuple[int, dict[str, Any]]:
        renamed = [word for name in ("mail", "take") for word in ("--rename", f"old_shop.{name}=shop.{name}")]
        code = program.main(["import-huey", "new_shop.app", str(self.path), *renamed, *options, "--json"])
        return code, json.loads(self._capsys.readouterr().out)

    @property
    def app(self) -> Any:
        return sys.modules["new_shop"].app  # type: ignore[attr-defined]

    def write(self, data: bytes) -> None:
        """Put a message into the file that huey has not made."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("INSERT INTO task (queue, data) VALUES ('old', ?)", (data,))


@pytest.fixture
def old(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Old]:
    (tmp_path / "new_shop.py").write_text(NEW)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "new_shop", raising=False)
    made = Old(tmp_path, capsys)
    yield made
    made.huey.storage.close()
    if "new_shop" in sys.modules:
        made.app.close()
        del sys.modules["new_shop"]


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """huey names a task by the module in which it is made."""
    monkeypatch.setattr(sys.modules[__name__], "__name__", "old_shop", raising=False)


def test_what_waits_is_taken_over_with_what_its_calls_said(old: Old) -> None:
    old.mail("ann@example.org", subject="hi", priority=7)
    old.mail.schedule(("bob@example.org",), eta=datetime.datetime(2030, 1, 1, 12, 0))
    code, said = old.moves()
    assert (code, said["taken"], said["left"]) == (0, 2, [])
    now, later = old.app.jobs()
    assert now.id.startswith("huey-")
    assert (now.task, now.state, now.priority) == ("shop.mail", JobState.READY, 7)
    assert json.loads(now.options) == {"retries": 2, "retry_delay": 30.0}
    assert later.state is JobState.SCHEDULED
    assert later.run_at is not None


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_values_arrive_as_they_were(old: Old, value: object, protocol: int) -> None:
    message = old.huey.serialize_task(old.take.s(value))
    old.write(pickle.dumps(pickle.loads(message), protocol))
    code, said = old.moves()
    assert (code, said["taken"]) == (0, 1), said
    [job] = old.app.jobs()
    args, _ = old.app.engine.runtime.serializer.loads_call(job.payload)
    assert args[0] == value
    assert type(args[0]) is type(value)


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_paths_arrive_whichever_version_of_python_wrote_them(old: Old, module: str) -> None:
    message = pickle.dumps(pickle.loads(old.huey.serialize_task(old.take.s("the path"))), 2)
    text = b"X\x08\0\0\0the path"
    assert text in message
    old.write(message.replace(text, f"c{module}\nPurePosixPath\n(V/srv/shop\ntR".encode()))
    code, said = old.moves()
    assert (code, said["taken"]) == (0, 1), said
    [job] = old.app.jobs()
    args, _ = old.app.engine.runtime.serializer.loads_call(job.payload)
    assert list(args) == [PurePosixPath("/srv/shop")]


def test_nothing_is_taken_over_twice(old: Old) -> None:
    old.mail("ann@example.org")
    assert old.moves()[1]["taken"] == 1
    old.mail("bob@example.org")
    _, said = old.moves()
    assert (said["taken"], said["known"]) == (1, 1)
    assert old.app.counts()[JobState.READY] == 2


def test_a_dry_run_tells_the_same_and_stores_nothing(old: Old) -> None:
    old.mail("ann@example.org")
    old.take(object)  # a class: huey pickles it by name
    code, dry = old.moves("--dry-run")
    assert (code, dry["taken"], len(dry["left"])) == (1, 1, 1)
    assert sum(old.app.counts().values()) == 0
    assert old.moves()[1]["left"] == dry["left"]


def revoked(old: Old) -> str:
    old.mail("gone@example.org").revoke()
    return "it was revoked"


def pipeline(old: Old) -> str:
    old.huey.enqueue(old.take.s(1).then(old.take))
    return "on_complete"


def unknown(old: Old) -> str:
    old.huey.task(name="other")(lambda: None)()
    return "no task old_shop.other; --rename old_shop.other=NEW"


def other_arguments(old: Old) -> str:
    message = pickle.loads(old.huey.serialize_task(old.mail.s("ann@example.org")))
    old.write(pickle.dumps(message._replace(args=(1, 2, 3, 4))))
    return "too many positional arguments"


def not_storable(old: Old) -> str:
    old.take({(1, 2): range(3)})
    return "builtins.range"


def damaged(old: Old) -> str:
    old.write(b"\x80\x04 garbage")
    return "pickle is damaged"


def compressed(old: Old) -> str:
    old.write(b"\x1f\x8b whatever")
    return "serializer of its own"


def no_message(old: Old) -> str:
    old.write(pickle.dumps({"id": 1}))
    return "no message of huey's"


@pytest.mark.parametrize(
    "case", [revoked, pipeline, unknown, other_arguments, not_storable, damaged, compressed, no_message]
)
def test_what_cannot_be_taken_over_is_left_with_its_reason(old: Old, case: Callable[[Old], str]) -> None:
    old.mail("ann@example.org")
    words = case(old)
    code, said = old.moves()
    assert (code, said["taken"]) == (1, 1)
    [left] = said["left"]
    assert words in left["reason"]


class Harm:
    """Unpickled by `pickle.loads`, it would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Harm()),
        pickle.dumps(Harm(), 0).replace(b"cposix", b"cbuiltins").replace(b"system", b"eval"),
        b"\x80\x04cbuiltins\n__import__\n(S'os'\ntR.",
        b"\x80\x04cdatetime\nsys.exit\n(tR.",
        b"\x80\x04chuey.registry\nMessage.__init__.__globals__\n.",
    ],
    ids=["system", "eval", "import", "through a module", "through attributes"],
)
def test_nothing_in_the_file_is_ever_run(
    old: Old, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old.write(data)
    code, said = old.moves()
    assert (code, said["taken"]) == (1, 0)
    assert "not loaded" in said["left"][0]["reason"] or "not pickled" in said["left"][0]["reason"]
    assert not (tmp_path / "harmed").exists()


def test_only_known_names_can_be_loaded() -> None:
    for module, name in [("os", "system"), ("builtins", "getattr"), ("datetime", "datetime.now"), ("liteq", "LiteQ")]:
        with pytest.raises(huey_file.Unreadable, match="not loaded"):
            huey_file._Unpickler.find_class(None, module, name)  # type: ignore[arg-type]


def test_one_huey_of_several_in_a_file(old: Old) -> None:
    old.mail("ann@example.org")
    second = huey.SqliteHuey("second", filename=str(old.path))
    second.task(name="mail")(lambda address: None)("bob@example.org")
    _, said = old.moves("--queue", "second")
    second.storage.close()
    assert said["taken"] == 1
    [job] = old.app.jobs()
    assert b"bob" in job.payload


def test_naive_times_are_utc_unless_huey_was_told_otherwise(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    old.mail.schedule(("bob@example.org",), eta=datetime.datetime(2030, 7, 1, 12, 0))
    [entry] = huey_file.entries(old.path, local=False)
    assert entry.call is not None
    assert entry.call.eta == datetime.datetime(2030, 7, 1, 12, 0, tzinfo=datetime.UTC)
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    [entry] = huey_file.entries(old.path, local=True)
    monkeypatch.undo()
    time.tzset()
    assert entry.call is not None
    assert entry.call.eta == datetime.datetime(2030, 7, 1, 10, 0, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("target", "file", "words"),
    [
        ("new_shop.app", "none.db", "does not exist"),
        ("new_shop.app", "new_shop.py", "no SQLite file of huey's"),
        ("queue.db", "huey.db", "an app rather than a file"),
    ],
)
def test_wrong_files_are_refused_in_one_line(
    old: Old, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, file: str, words: str
) -> None:
    from liteq import SqliteStorage

    with closing(SqliteStorage(tmp_path / "queue.db")) as storage:
        storage.counts()
    target = str(tmp_path / target) if target.endswith(".db") else target
    assert program.main(["import-huey", target, str(tmp_path / file)]) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert captured.err.count("\n") == 1
