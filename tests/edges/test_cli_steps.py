"""``liteq send``, ``liteq retry --from-start`` and the steps in ``liteq show``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from liteq import LiteQ, Result, TaskContext
from liteq.cli import main as program
from liteq.engine import Ended
from liteq.execution import NoDeadline, execute
from liteq.job import Job
from liteq.storage.base import ClaimRequest


class Silent:
    def progress(self, job: Job, progress: object) -> None:
        return None

    def is_cancelled(self, job: Job) -> bool:
        return False


@pytest.fixture
def app(tmp_path: Path) -> Iterator[LiteQ]:
    app = LiteQ(tmp_path / "queue.db", durability="normal")
    yield app
    app.close()


@pytest.fixture
def order(app: LiteQ) -> Result[object]:
    """A job that has charged, slept for no time, and waits."""

    @app.task(context=True, name="order")
    def order(*, task: TaskContext) -> object:
        task.step("charge\x1b", lambda: {"paid": 7})
        task.sleep(0)
        return task.wait_for("approved")

    result = order()
    work(app)
    return result


def work(app: LiteQ) -> None:
    owner = app.storage.register({})
    while jobs := app.engine.round([], ClaimRequest(owner, 1)).jobs:
        outcome = execute(jobs[0], app.engine.runtime, Silent(), NoDeadline())
        app.engine.round([Ended(jobs[0], outcome)], None)


def run(app: LiteQ, capsys: pytest.CaptureFixture[str], command: str, *arguments: str) -> tuple[int, str, str]:
    code = program.main([command, app.storage.location, *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_an_event_is_sent_from_a_terminal(
    app: LiteQ, order: Result[object], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(app, capsys, "send", order.id.partition("-")[0], "approved", "--data", '{"by": [1, "ü"]}')
    assert (code, out, err) == (0, f"approved was sent to {order.id}\n", "")
    work(app)
    assert order.get(0) == {"by": [1, "ü"]}


def test_an_event_needs_no_data_and_json_says_where_the_job_stands(
    app: LiteQ, order: Result[object], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(app, capsys, "send", order.id, "approved", "--json")
    assert (code, json.loads(out)) == (0, {"id": order.id, "event": "approved", "state": "ready"})
    work(app)
    assert order.get(0) is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["4711", "approved"], 1, "no job '4711'"),
        (["1", ""], 2, "the name of an event must have 1 to 255 characters"),
    ],
)
def test_what_cannot_be_sent_is_said_in_one_line(
    app: LiteQ,
    order: Result[object],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    ended, out, err = run(app, capsys, "send", *arguments)
    assert (ended, out, err.count("\n")) == (code, "", 1)
    assert words in err


def test_data_must_be_json(app: LiteQ, order: Result[object], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(app, capsys, "send", order.id, "approved", "--data", "{by: 7}")
    assert ended.value.code == 2
    assert "takes JSON" in capsys.readouterr().err


def test_nothing_is_sent_to_a_finished_job(
    app: LiteQ, order: Result[object], capsys: pytest.CaptureFixture[str]
) -> None:
    order.revoke()
    code, _, err = run(app, capsys, "send", order.id, "approved")
    assert (code, f"job {order.id} has ended as revoked" in err) == (1, True)


def test_json_is_not_sent_to_an_app_that_writes_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = LiteQ(tmp_path / "pickled.db", serializer="pickle")
    result = app.task(name="t")(lambda: None)()
    code, _, err = run(app, capsys, "send", result.id, "approved", "--data", "1")
    assert (code, "are not JSON" in err) == (2, True)
    code, _, _ = run(app, capsys, "send", result.id, "approved")
    assert code == 0, "nothing needs no serializer"
    app.close()


def test_why_tells_for_what_it_waits_and_until_when_it_sleeps(
    app: LiteQ, order: Result[object], capsys: pytest.CaptureFixture[str]
) -> None:
    @app.task(context=True, name="nap")
    def nap(minutes: int, *, task: TaskContext) -> None:
        if minutes:
            task.sleep(60 * minutes)
        task.wait_for("alarm", timeout=3600)

    sleeping, waiting, delayed = nap(9), nap(0), nap.using(delay=600)(0)
    work(app)
    said = [run(app, capsys, "why", one.id)[1] for one in (order, sleeping, waiting, delayed)]
    assert "it waits for the event 'approved'" in said[0]
    assert "it sleeps (task.sleep), and goes on in 9" in said[1]
    assert "it waits for the event 'alarm', and gives up in 60 min" in said[2]
    assert f"liteq send {app.storage.location} {waiting.id} alarm --data JSON" in said[2]
    assert "it is due in 10 min" in said[3]


def test_show_tells_the_steps(app: LiteQ, order: Result[object], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(app, capsys, "show", order.id)
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert "\x1b" not in out
    assert ["reason", "event:", "approved"] in lines
    start = lines.index(["STEP", "NAME", "STATE", "TRY", "RECORDED", "RESULT"])
    assert [line[:3] for line in lines[start + 1 : start + 4]] == [
        ["step", "charge\\x1b", "done"],
        ["sleep", "sleep", "done,"],
        ["wait", "approved", "waiting"],
    ]
    _, out, _ = run(app, capsys, "show", order.id, "--json")
    steps = json.loads(out)["steps"]
    assert [(one["kind"], one["state"], one["result"]) for one in steps] == [
        ("step", "done", '{"paid":7}'),
        ("sleep", "done", None),
        ("wait", "waiting", None),
    ]


def test_retry_goes_on_or_begins_from_the_start(
    app: LiteQ, order: Result[object], capsys: pytest.CaptureFixture[str]
) -> None:
    order.revoke()
    assert run(app, capsys, "retry", order.id)[0] == 0
    assert len(order.steps()) == 3
    order.revoke()
    code, out, _ = run(app, capsys, "retry", order.id, "--from-start")
    assert (code, out) == (0, f"{order.id} will run again, from its start\n")
    assert order.steps() == []
    work(app)
    order.revoke()
    assert run(app, capsys, "retry", "--all", "--state", "revoked", "--from-start")[0] == 0
    assert order.steps() == []
