"""``liteq why`` and ``app.why``: what they say of jobs that a queue really holds, without the app and with it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from liteq import Cause, Explanation, JobNotFound, LiteQ, MemoryStorage, Result
from liteq.cli import main as program
from liteq.storage.base import ClaimRequest


@pytest.fixture
def app(tmp_path: Path) -> Iterator[LiteQ]:
    app = LiteQ(tmp_path / "queue.db", durability="normal")
    app.task(name="mail", queue="mail")(lambda user="ann": None)
    app.task(name="slow", max_running=1)(lambda: None)
    app.task(name="note", unique="k", on_duplicate="replace")(lambda: None)
    yield app
    app.close()


def why(app: LiteQ, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = program.main(["why", app.storage.location, *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def consumer(app: LiteQ, *queues: str, workers: int = 1) -> int:
    """The number of a consumer that lives, and does nothing by itself."""
    told = {"worker_type": "thread", "workers": workers, "pid": 1, "host": "h", "queues": list(queues) or None}
    return app.storage.register(told)


def claim(app: LiteQ, owner: int) -> None:
    app.engine.round([], ClaimRequest(owner, 10))


def codes(result: Result[Any]) -> list[str]:
    return [cause.code for cause in result.why().causes]


def test_people_are_told_the_cause_and_what_to_do(app: LiteQ, capsys: pytest.CaptureFixture[str]) -> None:
    result = app.tasks["mail"]()
    app.pause("mail")
    path = app.storage.location
    expected = (
        f"job {result.id} of mail: ready\n"
        "  its queue 'mail' is paused\n"
        f"      liteq resume {path} mail\n"
        "  no consumer is alive\n"
        "      start one: liteq_consumer module.app\n"
    )
    assert why(app, capsys, "1") == (0, expected, "")
    assert why(app, capsys, result.id, "1") == (0, f"{expected}\n{expected}", "")


def test_programs_are_told_the_same_as_json(app: LiteQ, capsys: pytest.CaptureFixture[str]) -> None:
    result = app.tasks["mail"]()
    code, out, _ = why(app, capsys, "1", "--json")
    assert (code, json.loads(out)) == (
        0,
        {
            "id": result.id,
            "task": "mail",
            "state": "ready",
            "causes": [
                {
                    "code": "no_consumer",
                    "text": "no consumer is alive",
                    "advice": "start one: liteq_consumer module.app",
                }
            ],
        },
    )


def test_who_names_the_app_is_told_to_start_a_consumer_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "why_shop.py").write_text("from liteq import LiteQ\napp = LiteQ('queue.db')\nping = app.task(print)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("why_shop").ping()
    assert program.main(["why", "why_shop.app", "1"]) == 0
    assert "start one: liteq_consumer why_shop.app\n" in capsys.readouterr().out


def test_an_unknown_job_is_an_error(app: LiteQ, capsys: pytest.CaptureFixture[str]) -> None:
    app.counts()
    code, out, err = why(app, capsys, "4711")
    assert (code, out) == (1, "")
    assert "no job '4711'" in err
    with pytest.raises(JobNotFound):
        app.why("4711")


def test_names_from_the_queue_do_not_reach_the_terminal_as_they_are(
    app: LiteQ, capsys: pytest.CaptureFixture[str]
) -> None:
    app.tasks["mail"].using(queue="\x1b[31mred\nAPP")()
    app.pause("\x1b[31mred\nAPP")
    code, out, _ = why(app, capsys, "1")
    assert code == 0
    assert "\x1b" not in out
    assert f"liteq resume {app.storage.location} \\x1b[31mred\\nAPP" in out


def test_each_place_where_a_job_can_stand_has_its_cause(app: LiteQ) -> None:
    mail, slow, note = (app.tasks[name] for name in ("mail", "slow", "note"))
    owner = consumer(app, "default", workers=3)
    assert codes(mail()) == ["queue_unserved"]
    assert codes(mail.using(delay=60)()) == ["scheduled", "queue_unserved"]
    first, second, noted = slow(), slow(), note()
    assert codes(first) == ["next"]
    assert codes(noted) == ["behind"]
    claim(app, owner)
    assert [codes(one) for one in (first, second, noted)] == [["running"], ["limit"], ["running"]]
    assert second.why().causes[0].text == f"it waits for the limit of slow, held by job {first.id} of slow"
    follower = note()
    assert codes(follower) == ["unique"]
    noted.revoke()
    assert codes(noted) == ["running", "told_to_stop"]
    app.tasks["slow"].revoke(until=datetime(2100, 1, 1, tzinfo=UTC))
    assert codes(second) == ["limit", "task_revoked"]
    follower.revoke()
    assert codes(follower) == ["revoked"]
    app.storage.unregister(owner)
    assert codes(first) == ["consumer_died"]


def test_a_lock_that_a_process_holds_is_named(app: LiteQ) -> None:
    held = app.task(name="held")(app.lock_task("ledger", wait=True)(lambda: None))
    owner = consumer(app)
    result = held()
    with app.lock_task("ledger"):
        claim(app, owner)
        [cause] = result.why().causes
    assert cause.code == "lock"
    assert cause.text.startswith("it waits for the lock 'ledger', held by process ")


def test_a_rate_that_is_used_up_is_named(app: LiteQ) -> None:
    rated = app.task(name="rated", rate_limit="1/h")(lambda: None)
    owner = consumer(app)
    results = [rated() for _ in range(3)]
    claim(app, owner)
    [cause] = results[1].why().causes
    assert (cause.code, cause.text) == ("rate_limit", "the rate limit of rated, 1/h, is used up; 2 wait for it")


def test_jobs_before_it_are_counted_by_priority_and_age() -> None:
    app = LiteQ(MemoryStorage())
    task = app.task(name="t")(lambda: None)
    consumer(app)
    results = [task.using(priority=priority)() for priority in (0, 1, 0)]
    texts = [result.why().causes[0].text.split(";")[0] for result in results]
    assert texts == [
        "1 job is before it in its queue 'default'",
        "it is the next of its queue 'default', and a consumer takes it in a moment",
        "2 jobs are before it in its queue 'default'",
    ]


def test_a_worker_that_is_reserved_for_another_queue_is_not_counted() -> None:
    app = LiteQ(MemoryStorage())
    told = {"worker_type": "thread", "workers": 2, "queues": ["high", "default"], "reserved": {"high": 1}}
    owner = app.storage.register(told)
    task = app.task(name="t")(lambda: None)
    task()
    claim(app, owner)
    words = "it is the next of its queue 'default'; the one worker that serves it is taken"
    assert task().why().causes[0].text == words
    assert codes(task.using(queue="high")()) == ["next"]


def advice(result: Result[Any]) -> str:
    return result.why().causes[0].advice


def test_what_ended_because_of_a_step_names_the_step_that_brings_it_back() -> None:
    app = LiteQ(MemoryStorage())
    app.immediate = True

    @app.task(name="t")
    def t(*numbers: int) -> None:
        raise ValueError(numbers)

    result = app.enqueue(t.s(1).then(t, 2).then(t, 3))
    first, second, third = result.workflow
    assert [one.state for one in result.workflow] == ["failed"] * 3
    assert advice(first) == f"liteq show APP {first.id} tells all; liteq retry APP {first.id} runs it again"
    for one in (second, third):
        back = f"liteq retry APP {first.id} brings it back: it ended because of that job"
        assert advice(one) == f"liteq show APP {one.id} tells all; {back}"


def test_what_ended_because_of_a_revoked_step_names_it(app: LiteQ) -> None:
    mail = app.tasks["mail"]
    result = app.enqueue(mail.si().then(mail.si()).then(mail.si()))
    first, second, third = result.workflow
    first.revoke()
    assert advice(first) == f"liteq restore APP {first.id}"
    for one in (second, third):
        assert advice(one) == f"liteq restore APP {first.id} brings it back: it ended because of that job"


def test_an_error_handler_that_was_not_needed_has_nothing_to_be_done_about(app: LiteQ) -> None:
    app.immediate = True
    result = app.enqueue(app.tasks["mail"].si().error(app.tasks["mail"]))
    [handler] = app.jobs("revoked")
    assert result.state == "succeeded"
    assert app.why(handler.id).causes[0].advice == ""


def test_an_explanation_is_a_value() -> None:
    app = LiteQ(MemoryStorage())
    result = app.task(name="t")(lambda: None)()
    found = app.why(result)
    assert found == result.why() == app.why(result.id)
    assert found == Explanation(
        result.id, "t", result.state, (Cause("no_consumer", "no consumer is alive", "start one: liteq_consumer APP"),)
    )
