"""``liteq export`` and ``liteq import``: a queue as lines of JSON, between any storages, and what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from liteq import FileStorage, LiteQ, SqliteStorage, StorageError
from liteq.cli import main as program
from liteq.storage.memory import MemoryStorage

MAKERS: dict[str, Callable[[Path], Any]] = {
    "sqlite": lambda path: SqliteStorage(path / "from.db", durability="normal"),
    "file": lambda path: FileStorage(path / "from", durability="normal"),
    "memory": lambda path: MemoryStorage(),
}


def tasks_of(app: LiteQ) -> Any:
    @app.task(name="add", retries=1, retry_delay=0)
    def add(a: int, b: int) -> int:
        if a == 13:
            raise ValueError("13")
        return a + b

    return add


@pytest.fixture(params=MAKERS)
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LiteQ]:
    """A queue with something of everything."""
    app = LiteQ(MAKERS[request.param](tmp_path))
    add = tasks_of(app)
    add.using(id="done")(1, 2)
    add.using(id="failed")(13, 0)
    app.create_consumer(burst=True).run()
    add.using(id="later", delay=1000)(3, 4)
    add.using(id="urgent", priority=5)(5, 6)
    app.enqueue(add.s(1, 2).then(add, 3))
    app.schedules.add("nightly", add, "0 3 * * *", args=(1, 1))
    app.pause("mail")
    yield app
    app.close()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = program.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("target", ["to.db", "to/"])
def test_a_queue_moves_with_everything_to_any_storage(
    app: LiteQ, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "export.jsonl"
    exported = app.export(file)
    assert (exported.jobs, exported.schedules, exported.marks) == (6, 1, 1)
    assert file.stat().st_mode & 0o777 == 0o600
    code, out, err = run(capsys, "import", f"{tmp_path}/{target}", str(file))
    assert (code, err) == (0, "")
    assert out.startswith("6 jobs, 1 schedule, 1 mark imported into ")
    storage = SqliteStorage(tmp_path / "to.db") if target == "to.db" else FileStorage(tmp_path / "to")
    with closing(storage):
        there = LiteQ(storage)
        tasks_of(there)
        assert there.result("done").get() == 3
        assert [(one.number, one.message) for one in there.job("failed").attempts] == [(1, "13"), (2, "13")]
        assert there.schedules.get("nightly") == app.schedules.get("nightly")
        assert [job.id for job in there.jobs(limit=None)] == [job.id for job in app.jobs(limit=None)]
        there.create_consumer(burst=True).run()
        assert there.result("urgent").get() == 11
        assert sorted(job.id for job in there.jobs("scheduled")) == ["later"]


def test_a_pipe_moves_a_queue_and_a_second_time_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(LiteQ(FileStorage(tmp_path / "queue"))) as app:
        tasks_of(app).map([(1, 2), (3, 4)])
    code, lines, err = run(capsys, "export", f"{tmp_path}/queue/")
    assert (code, err) == (0, "2 jobs, 0 schedules, 0 marks written\n")
    for taken, known in ((2, 0), (0, 2)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        code, out, _ = run(capsys, "import", str(tmp_path / "new.db"), "--json")
        assert code == 0
        assert json.loads(out) == {
            "location": str(tmp_path / "new.db"),
            "jobs": taken,
            "known": known,
            "schedules": 0,
            "marks": 0,
        }
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    _, out, _ = run(capsys, "import", str(tmp_path / "new.db"))
    assert out.splitlines()[1] == "2 left out: there is a job with the id, or with the unique key, already"


def test_an_export_overwrites_nothing_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queue, file = str(tmp_path / "queue.db"), tmp_path / "export.jsonl"
    with closing(LiteQ(queue)) as app:
        tasks_of(app)(1, 2)
    file.write_text("precious")
    code, _, err = run(capsys, "export", queue, str(file))
    assert (code, file.read_text()) == (1, "precious")
    assert f"{file} exists already; nothing was written" in err
    code, out, _ = run(capsys, "export", queue, str(file), "--overwrite")
    assert (code, out) == (0, f"1 job, 0 schedules, 0 marks written to {file}\n")
    code, _, err = run(capsys, "export", queue, str(tmp_path / "nowhere" / "file"))
    assert code == 1
    assert "cannot be written" in err
    assert {one.name for one in tmp_path.iterdir()} == {"queue.db", "queue.db-liteq", "export.jsonl"}


def lines_of(app: LiteQ) -> list[str]:
    file = io.StringIO()
    app.export(file)
    return file.getvalue().splitlines(keepends=True)


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    """An export of two jobs: four lines."""
    with closing(LiteQ(tmp_path / "source.db")) as app:
        tasks_of(app).map([(1, 2), (3, 4)])
        return lines_of(app)


BROKEN: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "empty": (lambda lines: [], "ends after line 0, in the middle of an export"),
    "cut off between lines": (lambda lines: lines[:-1], "ends after line 3, in the middle of an export"),
    "cut off in a line": (lambda lines: [*lines[:-2], lines[2][:40]], "line 3: this is no line of an export"),
    "a line is missing": (lambda lines: [*lines[:2], lines[3]], "line 3: .*something is missing"),
    "goes on": (lambda lines: [*lines, lines[1]], "line 5: something follows the last line"),
    "foreign": (lambda lines: ['{"id": 1}\n'], "line 1: "),
    "foreign: no object": (lambda lines: ["[]\n"], "line 1: this is no line of an export"),
    "without its head": (lambda lines: lines[1:], "line 1: this is not an export of liteq"),
    "deep": (lambda lines: [lines[0], "[" * 100_000], "line 2: this is no line of an export"),
    "newer": (lambda lines: ['{"liteq":"export","version":2}\n', *lines[1:]], "line 1: a newer liteq wrote this"),
    "newer kind": (lambda lines: [lines[0], '{"dream":{}}\n'], "line 2: a newer liteq may know what 'dream' is"),
    "newer field": (
        lambda lines: [lines[0], lines[1].replace('"task"', '"tusk"')],
        "line 2: a newer liteq may know what 'tusk' is",
    ),
    "lacks a field": (lambda lines: [lines[0], '{"job":{"job":{"seq":1}}}\n'], "line 2: '[a-z]+' is missing"),
    "wrong type": (lambda lines: [lines[0], lines[1].replace('"seq":1', '"seq":"1"')], "line 2: '1' is no int"),
    "wrong state": (lambda lines: [lines[0], lines[1].replace('"ready"', '"lost"')], "'lost' is no JobState"),
    "wrong bytes": (
        lambda lines: [lines[0], lines[1].replace('"payload":', '"payload":{"base64":"?"},"result":')],
        "stands for no bytes",
    ),
    "running": (lambda lines: [line.replace('"ready"', '"running"') for line in lines], "is running elsewhere"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_whole_export_is_refused_and_nothing_is_stored(name: str, lines: list[str], tmp_path: Path) -> None:
    spoil, words = BROKEN[name]
    file = tmp_path / "export.jsonl"
    file.write_text("".join(spoil(lines)))
    with closing(LiteQ(tmp_path / "target.db")) as app:
        with pytest.raises(StorageError, match=words) as caught:
            app.import_(file)
        assert str(caught.value).endswith(("nothing was imported", "nothing was stored"))
        assert app.jobs() == []


def test_a_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "import", str(tmp_path / "new.db"), str(tmp_path / "none.jsonl"))
    assert code == 1
    assert "none.jsonl cannot be read: No such file or directory; nothing was imported" in err


def test_bytes_that_are_no_text_and_half_characters_come_back_as_they_were(tmp_path: Path) -> None:
    with closing(LiteQ(tmp_path / "source.db", serializer="pickle", immediate=False)) as app:
        app.task(name="echo")(lambda thing: thing)
        app.tasks["echo"].using(id="odd")(b"\xff\0" * 50)
        app.create_consumer(burst=True).run()
        with closing(LiteQ(MemoryStorage(), serializer="pickle")) as there:
            there.import_(line.encode() for line in lines_of(app))
            assert there.result("odd").get() == b"\xff\0" * 50


def test_jobs_that_run_arrive_as_ready_and_the_revoked_as_revoked(tmp_path: Path) -> None:
    with closing(LiteQ(tmp_path / "source.db")) as app:
        add = tasks_of(app)
        add.using(id="goes on")(1, 2)
        add.using(id="ends")(1, 2)
        app.engine.storage.register({})
        from liteq.storage.base import ClaimRequest

        app.storage.turn([], ClaimRequest(1, 2), 1.0)
        app.revoke("ends")
        with closing(LiteQ(MemoryStorage())) as there:
            there.import_(line.encode() for line in lines_of(app))
            assert (there.job("goes on").state, there.job("goes on").attempt) == ("ready", 0)
            assert there.job("ends").state == "revoked"
