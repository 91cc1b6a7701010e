"""``liteq backup`` and ``liteq doctor``, on the path of a file as their users type them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from liteq import LiteQ, SqliteStorage
from liteq.cli import main as program
from liteq.clock import ManualClock


@pytest.fixture
def app(tmp_path: Path) -> Iterator[LiteQ]:
    app = LiteQ(tmp_path / "queue.db", durability="normal")

    @app.task(name="add")
    def add(a: int, b: int) -> int:
        return a + b

    add.map([(1, 2), (3, 4)])
    yield app
    app.close()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = program.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    code, out, _ = run(capsys, "doctor", *arguments, "--json")
    return code, {one["name"]: one for one in json.loads(out)["findings"]}


def test_a_backup_is_a_queue_of_its_own(app: LiteQ, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy.db"
    code, out, err = run(capsys, "backup", app.storage.location, str(copy))
    assert (code, err) == (0, "")
    assert out.startswith(f"{app.storage.location} is copied to {copy} (")
    code, out, _ = run(capsys, "info", str(copy), "--json")
    assert json.loads(out)["jobs"]["ready"] == 2


def test_a_backup_that_is_not_made_says_so(app: LiteQ, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy.db"
    copy.touch()
    code, out, err = run(capsys, "backup", app.storage.location, str(copy))
    assert (code, out) == (1, "")
    assert f"{copy} exists already; nothing was written" in err
    code, out, _ = run(capsys, "backup", app.storage.location, str(copy), "--overwrite", "--json")
    assert code == 0
    assert json.loads(out)["size"] == copy.stat().st_size


def test_the_doctor_shows_each_answer_and_what_to_do(app: LiteQ, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor", app.storage.location)
    lines = out.splitlines()
    assert code == 0
    assert any(line.split()[:2] == ["ok", "integrity"] for line in lines)
    assert any(line.split()[:2] == ["warning", "consumers"] for line in lines)
    assert "consumers: start one: liteq_consumer APP" in lines


def test_the_doctor_says_when_something_is_wrong_and_reads_less_if_told(
    app: LiteQ, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = doctor(capsys, app.storage.location, "--quick")
    assert code == 0
    assert "integrity" not in found
    app.close()
    path = Path(app.storage.location)
    path.with_name("second.db").hardlink_to(path)
    code, found = doctor(capsys, app.storage.location)
    assert code == 1
    assert found["file"]["verdict"] == "wrong"


def test_a_file_that_cannot_be_read_is_a_finding_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "garbage.db"
    path.write_bytes(b"this is no database" * 1000)
    code, found = doctor(capsys, str(path))
    assert code == 1
    assert found["storage"]["verdict"] == "wrong"
    assert "not a SQLite database" in found["storage"]["found"]
    code, found = doctor(capsys, str(tmp_path / "none.db"))
    assert code == 1
    assert found["file"]["verdict"] == found["storage"]["verdict"] == "wrong"


def findings(app: LiteQ) -> dict[str, tuple[str, str]]:
    return {one.name: (one.verdict, one.found) for one in app.examine(thorough=False)}


def test_the_clock_and_what_waits_are_looked_at(tmp_path: Path) -> None:
    clock = ManualClock(1_800_000_000.0)
    app = LiteQ(SqliteStorage(tmp_path / "queue.db", durability="normal"), clock=clock)

    @app.task(name="add")
    def add() -> None:
        return None

    add()
    assert findings(app)["clock"][0] == "ok"
    clock.jump(-3600)
    assert findings(app)["clock"] == ("warning", "the newest job was enqueued 3600 s after now")
    clock.jump(1000.0 - clock.now())
    assert findings(app)["clock"][0] == "wrong"
    clock.jump(1_800_000_100.0 - clock.now())
    assert findings(app)["oldest_ready"] == ("ok", "the oldest ready job has waited for 100 s")
    app.close()
