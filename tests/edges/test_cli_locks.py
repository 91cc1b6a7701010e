"""``liteq locks``: what it shows of locks and limits, and that it can take a lock away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from liteq import LiteQ
from liteq.cli import main as program
from liteq.storage.base import ClaimRequest


@pytest.fixture
def app(tmp_path: Path) -> Iterator[LiteQ]:
    app = LiteQ(tmp_path / "queue.db", durability="normal")

    @app.task(max_running=1, max_running_key="{user}", name="mail")
    def mail(user: str) -> None:
        return None

    mail.map(["ann", "ann", "\x1b[31mbob"])
    yield app
    app.close()


def run(app: LiteQ, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = program.main(["locks", app.storage.location, *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def claim(app: LiteQ) -> None:
    app.engine.round([], ClaimRequest(app.storage.register({}), 10))


def records(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_where_nobody_holds_anything_there_is_only_the_heading(app: LiteQ, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, capsys) == (0, "KIND  NAME  HELD  WAITING  HOLDERS\n", "")
    assert run(app, capsys, "--json") == (0, "", "")


def test_people_see_who_holds_what_and_how_many_wait(app: LiteQ, capsys: pytest.CaptureFixture[str]) -> None:
    claim(app)
    with app.lock_task("ledger", slots=2):
        code, out, _ = run(app, capsys)
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert lines[1][:4] == ["lock", "ledger", "1/2", "0"]
    assert lines[1][4] == "process"
    [ann] = [line for line in lines if "mail[ann]" in line]
    assert ann[:5] == ["limit", "mail[ann]", "1/1", "1", "job"]
    assert "\x1b" not in out


def test_programs_see_the_same_as_json(app: LiteQ, capsys: pytest.CaptureFixture[str]) -> None:
    claim(app)
    with app.lock_task("ledger"):
        _, out, _ = run(app, capsys, "--json")
    lock, ann, bob = sorted(records(out), key=lambda record: (record["kind"] != "lock", -record["waiting"]))
    assert {key: lock[key] for key in ("kind", "name", "slots", "held", "waiting")} == {
        "kind": "lock",
        "name": "ledger",
        "slots": 1,
        "held": 1,
        "waiting": 0,
    }
    [holder] = lock["holders"]
    assert (holder["job"], holder["task"]) == (None, None)
    assert {"host", "pid", "name"} <= set(holder["process"])
    [job] = ann["holders"]
    assert (ann["name"], ann["waiting"], job["task"]) == ("mail[ann]", 1, "mail")
    assert job["job"] == app.jobs(state="running")[0].id
    assert bob["name"] == "mail[\x1b[31mbob]"


def test_rates_have_their_own_keys_in_json(app: LiteQ, capsys: pytest.CaptureFixture[str]) -> None:
    call = app.task(rate_limit="2/h", name="call")(lambda: None)
    expected = {"kind": "rate", "name": "call", "rate": "2/h", "tokens": 0}
    call()
    claim(app)
    [rate] = [one for one in records(run(app, capsys, "--json")[1]) if one["kind"] == "rate"]
    assert rate == {**expected, "waiting": 0, "next_at": None}
    call()
    claim(app)
    [rate] = [one for one in records(run(app, capsys, "--json")[1]) if one["kind"] == "rate"]
    assert datetime.fromisoformat(rate.pop("next_at")) > datetime.now(UTC)
    assert rate == {**expected, "waiting": 1}


def test_a_lock_is_flushed(app: LiteQ, capsys: pytest.CaptureFixture[str]) -> None:
    with app.lock_task("ledger"), app.lock_task("other"):
        assert run(app, capsys, "--flush", "ledger", "--flush", "none") == (
            0,
            "ledger is free\nnobody held none\n",
            "",
        )
        assert not app.is_locked("ledger") and app.is_locked("other")
        code, out, _ = run(app, capsys, "--json", "--flush", "ledger")
        assert (code, records(out)) == (1, [{"name": "ledger", "flushed": False}])


def test_a_lock_of_no_name_is_refused(app: LiteQ, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(app, capsys, "--flush", "")
    assert (code, out) == (2, "")
    assert "name must have 1 to 255 characters" in err
