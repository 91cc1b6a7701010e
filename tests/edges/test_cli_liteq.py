"""The program `liteq`: what it shows of a queue, what it does to it, and that no text of a job can harm a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from commandline import Eventually, Shop, has_entered, release, shop_in

from liteq import LiteQ, SqliteStorage, __version__, chord
from liteq.cli import main as program
from liteq.cli.escaping import escaped, escaped_lines, one_line
from liteq.cli.times import age, span

pty = pytest.importorskip("pty", reason="the tests make terminals, and their tasks wait at named pipes")

#: A title for the terminal's window, red, a line end, a right-to-left override, an 8-bit control sequence, a backspace.
NASTY = "a\x1b]0;title\x07\x1b[31m\r\n\u202eb\x9b31m\x08\x7f"


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with shop_in(tmp_path) as shop:
        yield shop


class Answer:
    """What a command wrote, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def record(self) -> dict[str, Any]:
        (only,) = self.records
        return only


Liteq = Callable[..., Answer]


@pytest.fixture
def liteq(shop: Shop, capsys: pytest.CaptureFixture[str]) -> Liteq:
    """Runs a command in this process on the shop's file: ``liteq("ls", "--json")``."""

    def run(command: str, *arguments: str, target: str | None = None) -> Answer:
        capsys.readouterr()
        code = program.main([command, target or str(shop.file), *arguments])
        return Answer(code, *capsys.readouterr())

    return run


def run_all(shop: Shop) -> None:
    """Run what is due, here, with the tasks that the test has defined."""
    shop.app.create_consumer(burst=True).run()


@pytest.fixture
def history(shop: Shop) -> dict[str, str]:
    """The ids of one job in each state that is reached without a running consumer."""

    @shop.app.task(name="shop.fail", retries=1)
    def fail(text: str) -> None:
        raise ValueError(text)

    @shop.app.task(name="shop.add")
    def add(a: int, b: int) -> int:
        return a + b

    ids = {"succeeded": add(2, 3).id, "failed": fail(NASTY).id, "expired": add.using(expires=0)(1, 1).id}
    revoked = add(1, 1)
    revoked.revoke()
    run_all(shop)
    return ids | {
        "revoked": revoked.id,
        "ready": add.using(queue="mail", priority=5)(1, 2).id,
        "scheduled": add.using(delay=3600)(1, 2).id,
    }


# ── ls ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_ls_shows_every_job_in_the_order_of_enqueue(liteq: Liteq, shop: Shop, history: dict[str, str]) -> None:
    lines = liteq("ls").out.splitlines()
    assert lines[0].split() == ["ID", "STATE", "QUEUE", "TASK", "TRY", "WHEN", "ARGUMENTS"]
    shown = [tuple(line.split()[:2]) for line in lines[1:]]
    assert shown == [(job.id, str(job.state)) for job in shop.app.jobs()]
    assert dict(shown) == {id_: state for state, id_ in history.items()}


def test_ls_in_json_is_one_object_a_line_with_keys_that_stay(liteq: Liteq, history: dict[str, str]) -> None:
    records = liteq("ls", "--json").records
    assert {record["id"]: record["state"] for record in records} == {id_: state for state, id_ in history.items()}
    by_state = {record["state"]: record for record in records}
    assert list(by_state["ready"]) == [
        "id", "task", "state", "queue", "priority", "attempt", "crashes", "created_at", "run_at", "expires_at",
        "started_at", "finished_at", "reason", "progress", "arguments",
    ]  # fmt: skip
    ready, succeeded = by_state["ready"], by_state["succeeded"]
    assert (ready["task"], ready["queue"], ready["priority"]) == ("shop.add", "mail", 5)
    assert json.loads(ready["arguments"]) == [[1, 2], {}]
    assert (ready["attempt"], ready["started_at"], ready["finished_at"]) == (0, None, None)
    assert datetime.fromisoformat(succeeded["finished_at"]) >= datetime.fromisoformat(succeeded["created_at"])
    assert by_state["scheduled"]["run_at"] is not None
    assert "expired" in by_state["expired"]["reason"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--state", "failed"], ["failed"]),
        (["--state", "failed,ready"], ["failed", "ready"]),
        (["--queue", "mail"], ["ready"]),
        (["--task", "shop.fail"], ["failed"]),
        (["--task", "nobody"], []),
        (["--newest", "--limit", "1"], ["scheduled"]),
        (["--state", "ready", "--queue", "default"], []),
    ],
)
def test_ls_filters(liteq: Liteq, history: dict[str, str], options: list[str], wanted: list[str]) -> None:
    assert [record["id"] for record in liteq("ls", "--json", *options).records] == [history[state] for state in wanted]


@pytest.mark.parametrize("direction", [[], ["--newest"]])
def test_ls_goes_on_after_the_last_job_of_a_page(liteq: Liteq, history: dict[str, str], direction: list[str]) -> None:
    seen: list[str] = []
    following: list[str] = []
    while True:
        answer = liteq("ls", "--json", "--limit", "4", *direction, *following)
        seen += [record["id"] for record in answer.records]
        if not answer.err:
            break
        assert f"--after {seen[-1]} goes on" in answer.err
        following = ["--after", seen[-1].partition("-")[0]]
    assert sorted(seen) == sorted(history.values())


def test_ls_without_a_limit_reads_page_by_page(liteq: Liteq, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from liteq.cli.commands import look

    monkeypatch.setattr(look, "PAGE", 3)
    shop.task("add").map([(number, 0) for number in range(10)])
    records = liteq("ls", "--json", "--limit", "0").records
    assert [json.loads(record["arguments"])[0][0] for record in records] == list(range(10))


def test_ls_of_an_empty_queue_is_empty(liteq: Liteq, shop: Shop) -> None:
    shop.app.counts()
    assert (liteq("ls").out, liteq("ls", "--json").out) == ("", "")


# ── show ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_show_tells_every_attempt_with_its_error_and_traceback(liteq: Liteq, history: dict[str, str]) -> None:
    record = liteq("show", history["failed"], "--json").record
    assert (record["state"], record["attempt"], json.loads(record["payload"])[0]) == ("failed", 2, [NASTY])
    assert [one["number"] for one in record["attempts"]] == [1, 2]
    for one in record["attempts"]:
        assert (one["ending"], one["error_type"], one["message"]) == ("failed", "ValueError", NASTY)
        assert "raise ValueError(text)" in one["traceback"]
        assert one["took"] >= 0
    shown = liteq("show", history["failed"]).out
    assert shown.count("raise ValueError(text)") == 2
    assert "attempt 2: failed" in shown


def test_show_tells_what_is_known_of_a_crash(liteq: Liteq, shop: Shop) -> None:
    job = shop.task("die").using(max_crashes=2)().id
    assert shop.consume("-k", "process").returncode == 0
    for attempt in liteq("show", job, "--json").record["attempts"]:
        assert (attempt["ending"], attempt["details"]) == ("crashed", "killed by SIGKILL")
        assert attempt["log"].endswith("WARNING shop: now\x1b it ends")
        assert attempt["cpu_time"] >= 0
        assert attempt["peak_rss"] > 2**20
        assert attempt["took"] >= 0
    shown = liteq("show", job).out
    assert shown.count("its worker process died: killed by SIGKILL\n    killed by SIGKILL\n") == 2
    assert shown.count("    the last lines that it logged:\n") == 2
    assert "WARNING shop: now\\x1b it ends\n" in shown
    assert "s of CPU time, " in shown
    assert " MB of memory at its peak\n" in shown


def test_show_tells_who_waits_for_whom(liteq: Liteq, shop: Shop) -> None:
    @shop.app.task(name="shop.add")
    def add(a: int, b: int) -> int:
        return a + b

    before = [add(number, 1) for number in range(12)]
    late = add.using(after=before)(5, 5)
    assert liteq("show", late.id, "--json").record["waits_for"] == [one.id for one in before]
    shown = liteq("show", late.id).out
    assert f"reason    waits until job {before[0].id} and 11 others have ended\n" in shown
    assert f"waits for {before[0].id} shop.add, ready\n" in shown
    assert f"          {before[9].id} shop.add, ready\n          and 2 more\n" in shown
    record = liteq("show", before[0].id, "--json").record
    assert (record["waits_for"], record["waited_for_by"]) == ([], [late.id])
    assert f"before    {late.id} shop.add, blocked\n" in liteq("show", before[0].id).out
    run_all(shop)
    assert liteq("show", late.id, "--json").record["waits_for"] == []
    assert "waits for" not in liteq("show", late.id).out


def test_show_lists_a_job_that_a_chord_takes_twice_once(liteq: Liteq, shop: Shop) -> None:
    same = shop.app.task(name="shop.same", unique=True)(lambda: None)
    result = shop.app.enqueue(chord([same.s(), same.s()], shop.task("add")))
    [first, last] = {step.id: None for step in result.workflow}
    assert liteq("show", last, "--json").record["waits_for"] == [first]
    assert liteq("show", first, "--json").record["waited_for_by"] == [last]
    assert liteq("show", last).out.count(f"{first} shop.same, ready\n") == 1
    assert f"it waits for the end of job {first} of shop.same, which is ready\n" in liteq("why", last).out


def test_show_tells_the_result(liteq: Liteq, history: dict[str, str]) -> None:
    record = liteq("show", history["succeeded"], "--json").record
    assert (record["result"], record["result_size"]) == ("5", 1)
    assert "\nresult    5\n" in liteq("show", history["succeeded"]).out


def test_a_job_may_be_named_by_its_number(liteq: Liteq, history: dict[str, str]) -> None:
    number = history["failed"].partition("-")[0]
    assert liteq("show", number, "--json").record["id"] == history["failed"]


def test_a_callers_own_id_comes_before_a_number(liteq: Liteq, history: dict[str, str], shop: Shop) -> None:
    number = history["failed"].partition("-")[0]
    own = shop.task("add").using(id=number)(1, 2)
    assert liteq("show", number, "--json").record["id"] == own.id == number
    assert liteq("show", str(own.job().seq)).code == 1  # it has no number: nobody was told one


@pytest.mark.parametrize("name", ["99", "99-0123456789", "order-7", "0", "9" * 5000, "-", "\x1b[31m"])
@pytest.mark.parametrize("command", ["show", "retry", "revoke", "restore"])
def test_an_unknown_job_is_one_line_and_exit_code_1(liteq: Liteq, history: object, command: str, name: str) -> None:
    answer = liteq(command, "--", name) if name.startswith("-") else liteq(command, name)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2 if len(name) > 255 else 1, "", 1)
    assert "\x1b" not in answer.err


def test_a_payload_that_is_no_text_is_described(liteq: Liteq, shop: Shop) -> None:
    binary = LiteQ(shop.file, serializer="pickle")
    job = binary.task(name="shop.add")(lambda a, b: None)(b"\xff\x00", 2)
    record = liteq("show", job.id, "--json").record
    assert (record["payload"], record["payload_size"] > 0, record["arguments"]) == (None, True, r"b'\xff\x00', 2")
    assert r"arguments b'\xff\x00', 2" in liteq("show", job.id).out
    binary.close()


def test_a_long_payload_is_cut_for_people_and_whole_in_json(liteq: Liteq, shop: Shop) -> None:
    job = shop.task("add")("x" * 100_000, 2)
    assert len(liteq("show", job.id).out) < 5000
    assert len(liteq("show", job.id, "--json").record["payload"]) > 100_000


def test_the_progress_of_a_running_job_is_shown(liteq: Liteq, shop: Shop, eventually: Eventually) -> None:
    gate = shop.gate()

    @shop.app.task(name="shop.report", context=True)
    def report(*, task: Any) -> None:
        task.progress(3, 10, NASTY)
        gate.read_text()

    job = report()
    with shop.app.run_in_background():
        eventually(lambda: job.progress)
        assert liteq("show", job.id, "--json").record["progress"] == {"done": 3, "total": 10, "message": NASTY}
        assert f"progress  3 of 10 {escaped(NASTY)[:20]}" in liteq("show", job.id).out
        release(gate)


# ── retry, revoke, restore, purge ────────────────────────────────────────────────────────────────────────


def test_retry_runs_a_finished_job_again_with_its_history(liteq: Liteq, shop: Shop, history: dict[str, str]) -> None:
    answer = liteq("retry", history["failed"], history["succeeded"], "--json")
    assert (answer.code, [(one["id"], one["state"]) for one in answer.records]) == (
        0,
        [(history["failed"], "ready"), (history["succeeded"], "ready")],
    )
    run_all(shop)
    assert len(shop.app.job(history["failed"]).attempts) == 4


def test_retry_of_a_job_that_has_not_finished_is_refused(liteq: Liteq, history: dict[str, str]) -> None:
    answer = liteq("retry", history["ready"])
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == f"liteq: job {history['ready']} is ready: only one that has finished can be run again\n"


@pytest.fixture
def plan(shop: Shop, history: object) -> list[str]:
    """The ids of a step that has failed, and of the two after it."""
    result = shop.app.enqueue(shop.task("fail").s("no").then(shop.task("add"), 1).then(shop.task("add"), 2))
    run_all(shop)
    return [step.id for step in result.workflow]


@pytest.mark.usefixtures("history")
def test_retry_of_what_followed_a_failed_step_names_that_step_instead_of_promising_a_run(
    liteq: Liteq, plan: list[str]
) -> None:
    first, _, third = plan
    answer = liteq("retry", third)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == (
        f"liteq: job {third} has ended again at once, not run, because job {first} (shop.fail) failed: "
        "ValueError: no; it is that job that has to run again, and this one comes back with it\n"
    )
    assert liteq("retry", first).out == f"{first} will run again\n"
    assert [liteq("show", one, "--json").record["state"] for one in plan] == ["ready", "blocked", "blocked"]


def test_restore_of_what_followed_a_revoked_step_names_that_step(liteq: Liteq, shop: Shop) -> None:
    add = shop.task("add")
    result = shop.app.enqueue(add.s(1, 2).then(add, 1))
    first, second = (step.id for step in result.workflow)
    shop.app.revoke(first)
    answer = liteq("restore", second)
    assert (answer.code, answer.out) == (1, "")
    assert f"because job {first} (shop.add) was revoked; it is that job that has to be restored" in answer.err
    assert liteq("restore", first).code == 0
    assert [step.state for step in result.workflow] == ["ready", "blocked"]


def test_retry_all_brings_back_whole_plans(liteq: Liteq, plan: list[str]) -> None:
    assert liteq("retry", "--all", "--task", "shop.add").out == "2 jobs requeued\n"  # which end again
    assert liteq("retry", "--all").code == 0
    assert [liteq("show", one, "--json").record["state"] for one in plan] == ["ready", "blocked", "blocked"]


def test_retry_of_many_does_what_it_can(liteq: Liteq, history: dict[str, str]) -> None:
    answer = liteq("retry", "99", history["failed"])
    assert (answer.code, answer.out) == (1, f"{history['failed']} will run again\n")
    assert "99" in answer.err


@pytest.mark.parametrize(
    ("options", "number"),
    [([], 1), (["--state", "failed,revoked"], 2), (["--task", "shop.add"], 0), (["--queue", "default"], 1)],
)
def test_retry_all_takes_what_the_options_name(
    liteq: Liteq, history: dict[str, str], options: list[str], number: int
) -> None:
    assert liteq("retry", "--all", "--json", *options).record == {"requeued": number}


@pytest.mark.parametrize("arguments", [[], ["1", "--all"], ["1", "--queue", "default"], ["--all", "--state", "ready"]])
def test_retry_of_what_makes_no_sense_is_exit_code_2(
    liteq: Liteq, history: dict[str, str], arguments: list[str]
) -> None:
    answer = liteq("retry", *arguments)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)


def test_revoke_and_restore_a_waiting_job(liteq: Liteq, shop: Shop, history: dict[str, str]) -> None:
    assert liteq("revoke", history["ready"]).out == f"{history['ready']} is revoked\n"
    assert shop.app.job(history["ready"]).state == "revoked"
    assert liteq("restore", history["ready"], "--json").record == {"id": history["ready"], "state": "ready"}


@pytest.mark.parametrize(
    ("target", "options", "number"),
    [
        ("shop.db", [], 5),
        ("shop.db", ["--task", "shop.add"], 4),
        ("shop.db", ["--queue", "slow"], 1),
        ("shop.db", ["--queue", "nobody's"], 0),
        ("shop.app", ["--where", "a=7"], 3),
        ("shop.app", ["--where", "a=7", "--where", "b=text"], 1),
        ("shop.app", ["--where", 'a="7"'], 0),
        ("shop.app", ["--task", "shop.add", "--queue", "slow", "--where", "a=7"], 1),
        ("shop.app", ["--where", 'b={"x": [1]}'], 1),
    ],
)
def test_revoke_all_takes_what_the_options_name(shop: Shop, target: str, options: list[str], number: int) -> None:
    add = shop.app.task(name="shop.add")(lambda a, b: None)
    for arguments in ((7, 1), (7, "text"), (8, {"x": [1]})):
        add(*arguments)
    add.using(queue="slow", delay=60)(b=2, a=7)
    shop.task("note")("path", "text")
    done = shop.liteq("revoke", target, "--all", "--json", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"revoked": number}
    assert shop.app.counts()["revoked"] == number


def test_revoke_all_stops_those_that_run_in_any_process(shop: Shop, eventually: Eventually) -> None:
    gates = [shop.gate("first"), shop.gate("second")]
    jobs = [shop.task("hold")(str(gate)) for gate in gates]
    for _ in gates:
        shop.consumer("-k", "process")
    for gate in gates:
        eventually(has_entered(gate))
    done = shop.liteq("revoke", "shop.app", "--all", "--terminate", "--where", f"gate={gates[0]}", "--json")
    assert json.loads(done.stdout) == {"revoked": 1}
    done = shop.liteq("revoke", "shop.db", "--all", "--terminate", "--json")
    assert json.loads(done.stdout) in ({"revoked": 1}, {"revoked": 2})
    eventually(lambda: all(job.is_ready() for job in jobs))
    assert [job.state for job in jobs] == ["revoked"] * 2


def test_revoke_all_says_how_many(liteq: Liteq, history: dict[str, str]) -> None:
    assert liteq("revoke", "--all").out == "2 jobs revoked\n"
    assert liteq("revoke", "--all").out == "0 jobs revoked\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["1", "--all"],
        ["1", "--queue", "default"],
        ["1", "--task", "t"],
        ["1", "--where", "a=1"],
        ["--all", "--where", "a=1"],
    ],
)
def test_revoke_of_what_makes_no_sense_is_exit_code_2(
    liteq: Liteq, history: dict[str, str], arguments: list[str]
) -> None:
    answer = liteq("revoke", *arguments)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--where", "a"], "takes NAME=VALUE"),
        (["--where", "=1"], "takes NAME=VALUE"),
        (["--task", "shop.add", "--where", "c=1"], "has no argument 'c'"),
        (["--task", "shop.ad", "--where", "a=1"], "no task named 'shop.ad'"),
    ],
)
def test_an_argument_that_cannot_be_is_exit_code_2(shop: Shop, options: list[str], said: str) -> None:
    done = shop.liteq("revoke", "shop.app", "--all", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


@pytest.mark.parametrize(("command", "state"), [("revoke", "succeeded"), ("restore", "ready")])
def test_what_cannot_be_done_to_a_job_is_a_sentence_and_exit_code_1(
    liteq: Liteq, history: dict[str, str], command: str, state: str
) -> None:
    answer = liteq(command, history[state])
    assert (answer.code, answer.out, answer.err.count("\n")) == (1, "", 1)
    assert f"job {history[state]} is {state}: " in answer.err


@pytest.mark.parametrize("terminate", [False, True])
def test_a_running_job_is_told_or_stopped(liteq: Liteq, shop: Shop, eventually: Eventually, terminate: bool) -> None:
    gate = shop.gate()
    job = shop.task("hold")(str(gate))
    consumer = shop.consumer("-k", "process")
    eventually(has_entered(gate))
    answer = liteq("revoke", job.id, *(["--terminate"] if terminate else []))
    said = "being stopped" if terminate else "running: it is told, and will not run again"
    assert answer.out == f"{job.id} is {said}\n"
    if not terminate:
        release(gate)
    eventually(job.is_ready)
    assert job.state == ("revoked" if terminate else "succeeded")
    consumer.signal(signal.SIGTERM)
    assert consumer.ends() == 0


def test_purge_deletes_finished_jobs_and_prints_how_many(liteq: Liteq, shop: Shop, history: dict[str, str]) -> None:
    assert liteq("purge", "--older-than", "1h").out == "0 jobs deleted\n"
    assert liteq("purge", "--queue", "mail").out == "0 jobs deleted\n"
    assert liteq("purge", "--state", "failed", "--older-than", "0").out == "1 job deleted\n"
    assert liteq("purge", "--json").record == {"purged": 3}
    assert sorted(job.id for job in shop.app.jobs()) == sorted([history["ready"], history["scheduled"]])


def test_purge_of_jobs_that_have_not_finished_is_refused(liteq: Liteq, history: object) -> None:
    answer = liteq("purge", "--state", "ready")
    assert (answer.code, answer.err.count("\n")) == (2, 1)


# ── pause, resume, info ──────────────────────────────────────────────────────────────────────────────────


def test_pause_and_resume_a_queue(liteq: Liteq, shop: Shop) -> None:
    shop.app.counts()
    assert liteq("pause", "mail", "--json").record == {"queue": "mail", "paused": True, "changed": True}
    assert liteq("pause", "mail").out == "mail is paused, as it was before\n"
    assert shop.app.paused() == ["mail"]
    assert liteq("resume", "mail", "other", "--json").records == [
        {"queue": "mail", "paused": False, "changed": True},
        {"queue": "other", "paused": False, "changed": False},
    ]
    assert shop.app.paused() == []


def test_info_counts_jobs_by_state_and_queue(liteq: Liteq, shop: Shop, history: dict[str, str]) -> None:
    shop.app.pause("slow")
    seen = liteq("info", "--json").record
    assert seen["jobs"] == dict.fromkeys(seen["jobs"], 0) | dict.fromkeys(history, 1)
    assert seen["queues"] == {"mail": {"ready": 1, "paused": False}, "slow": {"ready": 0, "paused": True}}
    assert (seen["location"], seen["size"] > 0, seen["version"]) == (str(shop.file), True, __version__)
    assert seen["schema"] == shop.app.storage.schema_version()
    assert datetime.fromisoformat(seen["next_due_at"]) == shop.app.job(history["scheduled"]).run_at
    assert seen["consumers"] == []
    shown = liteq("info").out
    assert str(shop.file) in shown
    assert f"schema    {seen['schema']}\n" in shown
    assert "no consumer" in shown


def test_info_tells_living_consumers_from_dead_ones(liteq: Liteq, shop: Shop, eventually: Eventually) -> None:
    first = shop.consumer("-w", "3", "-k", "process", "-q", "mail,default")
    eventually(first.says("consumer started"))
    (seen,) = liteq("info", "--json").record["consumers"]
    assert (seen["alive"], seen["pid"], seen["workers"], seen["worker_type"], seen["queues"], seen["app"]) == (
        True, first.process.pid, 3, "process", ["mail", "default"], "shop.app",
    )  # fmt: skip
    assert datetime.fromisoformat(seen["started_at"])
    assert "alive" in liteq("info").out
    first.signal(signal.SIGKILL)
    first.ends()
    eventually(lambda: not liteq("info", "--json").record["consumers"][0]["alive"])
    assert "dead" in liteq("info").out


# ── health ───────────────────────────────────────────────────────────────────────────────────────────────


def failing(answer: Answer) -> list[str]:
    assert answer.record["ok"] is (answer.code == 0)
    return [check["name"] for check in answer.record["checks"] if not check["ok"]]


def test_a_queue_that_is_worked_on_is_healthy(liteq: Liteq, shop: Shop) -> None:
    with shop.app.run_in_background():
        answer = liteq("health", "--json")
        assert (answer.code, failing(answer)) == (0, [])
        assert [check["name"] for check in answer.record["checks"]] == [
            "storage", "consumers", "dead_consumers", "oldest_ready", "failed",
        ]  # fmt: skip
        shown = liteq("health")
        assert (shown.code, "FAIL" in shown.out) == (0, False)


def test_a_queue_without_a_consumer_is_not_healthy(liteq: Liteq, shop: Shop) -> None:
    shop.app.counts()
    answer = liteq("health", "--json")
    assert (answer.code, failing(answer)) == (1, ["consumers"])
    assert "FAIL" in liteq("health").out


def test_a_dead_consumer_is_not_healthy(liteq: Liteq, shop: Shop, eventually: Eventually) -> None:
    consumer = shop.consumer()
    eventually(consumer.says("consumer started"))
    consumer.signal(signal.SIGKILL)
    consumer.ends()
    eventually(lambda: "dead_consumers" in failing(liteq("health", "--json")))


def test_a_job_that_waits_too_long_is_not_healthy_unless_its_queue_is_paused(liteq: Liteq, shop: Shop) -> None:
    shop.task("add")(1, 2)
    shop.task("add").using(delay=3600)(1, 2)
    with shop.app.run_in_background(queues=("other",)):
        assert failing(liteq("health", "--json", "--max-age", "0")) == ["oldest_ready"]
        assert failing(liteq("health", "--json", "--max-age", "1h")) == []
        assert failing(liteq("health", "--json")) == []
        shop.app.pause("default")
        assert failing(liteq("health", "--json", "--max-age", "0")) == []


def test_a_job_that_was_just_retried_by_hand_is_no_old_one(liteq: Liteq, shop: Shop, history: dict[str, str]) -> None:
    shop.app.revoke(history["ready"])
    shop.app.requeue(history["failed"])
    with shop.app.run_in_background(queues=("other",)):
        assert failing(liteq("health", "--json", "--max-age", "0")) == []


def test_failed_jobs_fail_the_check_only_above_the_limit(liteq: Liteq, shop: Shop, history: object) -> None:
    with shop.app.run_in_background(queues=("other",)):
        assert failing(liteq("health", "--json")) == []
        assert failing(liteq("health", "--json", "--max-failed", "1")) == []
        assert failing(liteq("health", "--json", "--max-failed", "0")) == ["failed"]


def test_a_file_that_is_not_there_is_not_healthy(liteq: Liteq, shop: Shop) -> None:
    answer = liteq("health", "--json", target=str(shop.directory / "missing.db"))
    assert (answer.code, failing(answer), answer.err) == (1, ["storage"], "")


# ── what a command is about ──────────────────────────────────────────────────────────────────────────────


def test_a_path_is_opened_without_importing_anybodys_code(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> None:
    shop.module("shop", "raise AssertionError('imported')\n")
    job = shop.task("add")(1, 2)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for cwd, path in ((elsewhere, str(shop.file)), (shop.directory, "shop.db"), (shop.directory, "./shop.db")):
        answer = shop.liteq("ls", path, "--json", cwd=cwd, LITEQ_IMMEDIATE="1")
        assert json.loads(answer.stdout)["id"] == job.id, answer.stderr


def test_an_app_is_imported_and_what_it_prints_is_not_data(shop: Shop) -> None:
    with (shop.directory / "shop.py").open("a") as file:
        file.write("\nprint('hello from the shop')\n")
    job = shop.task("add")(1, 2)
    answer = shop.liteq("ls", "shop.app", "--json")
    assert json.loads(answer.stdout)["id"] == job.id
    assert answer.stderr == "hello from the shop\n"


@pytest.mark.parametrize(
    ("target", "code", "complaint"),
    [
        ("missing.db", 1, "missing.db does not exist"),
        ("no/such/place", 1, "does not exist"),
        (".", 1, "is not a queue's directory"),
        ("text.db", 1, "is not a SQLite database"),
        ("shop", 2, "not the path of an app"),
        ("nowhere.app", 2, "there is no module 'nowhere'"),
        ("broken.app", 2, "broken.py:1"),
        ("memory.app", 2, "in the memory of the process"),
    ],
)
def test_a_target_that_cannot_be_used_is_one_line(
    shop: Shop, liteq: Liteq, monkeypatch: pytest.MonkeyPatch, target: str, code: int, complaint: str
) -> None:
    monkeypatch.chdir(shop.directory)
    monkeypatch.syspath_prepend(shop.directory)
    for name in ("broken", "memory"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    shop.module("broken", "1 / 0\n")
    shop.module("memory", "from liteq import LiteQ\napp = LiteQ(':memory:')\n")
    (shop.directory / "text.db").write_text("this is a long enough text to be no database at all\n" * 10)
    files = sorted(shop.directory.iterdir())
    answer = liteq("info", target=target)
    assert (answer.code, answer.out, answer.err.count("\n")) == (code, "", 1)
    assert complaint in answer.err
    made = {path.name for path in set(shop.directory.iterdir()) - set(files)}
    assert made <= {"__pycache__"}


def test_an_app_in_immediate_mode_has_nothing_to_look_at(shop: Shop) -> None:
    shop.task("add")(1, 2)
    answer = shop.liteq("ls", "shop.app", LITEQ_IMMEDIATE="1")
    assert (answer.returncode, answer.stdout, answer.stderr.count("\n")) == (2, "", 1)


# ── on a terminal, in a pipe ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def nasty(shop: Shop) -> str:
    """The id of a failed job in which everything that its maker could choose is nasty."""

    @shop.app.task(name=f"task{NASTY}", queue=f"queue{NASTY}")
    def fail(text: str, task: object = None) -> None:
        raise ValueError(text)

    job = fail.using(id=f"id{NASTY}")(NASTY)
    run_all(shop)
    shop.app.pause(f"queue{NASTY}")
    return job.id


@pytest.mark.parametrize("json_too", [[], ["--json"]])
@pytest.mark.parametrize("command", [["ls"], ["show", "ID"], ["retry", "ID"], ["revoke", "ID"], ["info"], ["health"]])
def test_nothing_in_a_job_reaches_the_terminal_as_a_command(
    liteq: Liteq, nasty: str, command: list[str], json_too: list[str]
) -> None:
    answer = liteq(*[nasty if word == "ID" else word for word in command], *json_too)
    written = answer.out + answer.err
    assert written.replace("\n", "").isprintable()
    assert command[0] == "health" or "title" in written
    if json_too and command[0] == "show":
        assert (answer.record["id"], answer.record["attempts"][0]["message"]) == (nasty, NASTY)


def on_terminal(shop: Shop, *arguments: str, **variables: str) -> str:
    """What a command writes to a terminal of 60 columns."""
    ours, theirs = pty.openpty()
    try:
        environment = shop.environment(**{"TERM": "xterm", "COLUMNS": "60"} | variables)
        command = [sys.executable, "-m", "liteq", *arguments]
        subprocess.run(command, stdout=theirs, stderr=theirs, env=environment, timeout=30, check=False)
        os.set_blocking(ours, False)
        return os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_colours_are_for_terminals_that_want_them(shop: Shop, history: dict[str, str]) -> None:
    arguments = ("ls", str(shop.file), "--state", "failed")
    assert "\x1b[31mfailed" in on_terminal(shop, *arguments)
    assert "\x1b" not in on_terminal(shop, *arguments, NO_COLOR="1")
    assert "\x1b" not in on_terminal(shop, *arguments, TERM="dumb")
    assert "\x1b" not in on_terminal(shop, *arguments, "--json")
    assert "\x1b" not in shop.liteq(*arguments).stdout


def test_a_table_is_cut_at_the_edge_of_a_terminal_and_whole_in_a_pipe(shop: Shop) -> None:
    shop.task("add")("x" * 100, 1)
    arguments = ("ls", str(shop.file))
    assert max(map(len, on_terminal(shop, *arguments, NO_COLOR="1").splitlines())) <= 90
    assert "x" * 100 in shop.liteq(*arguments).stdout


def test_text_that_the_terminal_has_no_letters_for_is_escaped(shop: Shop) -> None:
    shop.task("add").using(queue="köln")("日本", 1)
    answer = shop.liteq("ls", str(shop.file), PYTHONIOENCODING="ascii")
    assert answer.returncode == 0
    assert r"k\xf6ln" in answer.stdout
    assert r"\u65e5" in answer.stdout


def test_a_reader_that_leaves_is_no_error(shop: Shop) -> None:
    shop.task("add").map([(number, "x" * 100) for number in range(3000)])
    command = [sys.executable, "-m", "liteq", "ls", str(shop.file), "--limit", "0"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, env=shop.environment(), timeout=30, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_is_one_line(shop: Shop) -> None:
    shop.task("add")(1, 2)
    command = [sys.executable, "-m", "liteq", "ls", str(shop.file)]
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, env=shop.environment(), timeout=30, check=False
        )
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)


SPILLING = """
import os
from liteq import LiteQ

app = LiteQ("shop.db")

@app.task(name="shop.spill")
def spill():
    for number in (1, 2):
        os.write(number, b"spilled out")
"""


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("command", "closed", "code"),
    [
        ("liteq show {file} {job}", ">&-", 0),
        ("liteq show {file} 777777", "2>&-", 1),
        ("liteq info {file}", "<&- >&- 2>&-", 0),
        ("liteq.cli.consumer nowhere:app", "2>&-", 2),
        ("liteq.cli.consumer spilling:app --burst", "<&- >&- 2>&-", 0),
        ("liteq.cli.consumer spilling:app --burst -k process", "<&- >&- 2>&-", 0),
    ],
)
def test_what_is_written_to_a_closed_stream_goes_nowhere(shop: Shop, command: str, closed: str, code: int) -> None:
    shop.module("spilling", SPILLING)
    job = shop.task("spill")()
    line = f"{sys.executable} -m {command.format(file=shop.file, job=job.id)} {closed}"
    here, environment = shop.directory, shop.environment()
    done = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, cwd=here, env=environment, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
    assert "--burst" not in command or job.state == "succeeded"
    for file in shop.directory.rglob("*"):
        source = file.suffix in (".py", ".pyc")
        assert source or not file.is_file() or b"spilled out" not in file.read_bytes(), file


def test_control_c_is_exit_code_130(shop: Shop, eventually: Eventually) -> None:
    gate = shop.gate()
    shop.module("slow", f"open('entered', 'w').close()\nopen({str(gate)!r})\n")
    command = shop.start("-m", "liteq", "ls", "slow.app")
    eventually((shop.directory / "entered").exists)
    command.signal(signal.SIGINT)
    assert (command.ends(), command.log) == (130, "")


# ── the program ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", [["-m", "liteq"], ["-m", "liteq.cli.consumer"]])
def test_help_is_worth_reading_and_quick(shop: Shop, command: list[str]) -> None:
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run([sys.executable, *sys.argv[1:]], capture_output=True, text=True)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime, done.returncode, done.stdout.count('\\n'))"
    )
    shop.run(*command, "--help")  # compiles
    answers = [shop.run("-c", code, *command, "--help").stdout.split() for _ in range(3)]
    plain = [shop.run("-c", code, "-c", "import argparse, json, sqlite3, threading").stdout.split() for _ in range(3)]
    # What it computes, in seconds; on a machine that has other things to do, beside a program that does nothing.
    assert min(float(used) for used, *_ in answers) < max(0.150, 7 * min(float(used) for used, *_ in plain))
    assert all(code == "0" and int(lines) > 30 for _, code, lines in answers)


@pytest.mark.parametrize(("module", "name"), [("liteq", "liteq"), ("liteq.cli.consumer", "liteq_consumer")])
def test_the_version(shop: Shop, module: str, name: str) -> None:
    assert shop.run("-m", module, "--version").stdout == f"{name} {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["ls"], ["ls", "x.db", "--state", "happy"], ["show", "x.db"]])
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


# ── escaping, times ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Zürich 日本 🎉", "Zürich 日本 🎉"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\x9b", r"\x9b"),
        ("\u202e\u2028\u200b\ufeff", r"\u202e\u2028\u200b\ufeff"),
        ("\udc80", r"\udc80"),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_lines_stay_lines_and_messages_become_one() -> None:
    assert escaped_lines("a\n\tb\x1b\n") == ["a", r"    b\x1b"]
    assert one_line("first\x07\nsecond") == r"first\x07 …"
    assert one_line(" only ") == "only"


def test_spans_are_short() -> None:
    seconds = [0, 0.2134, 9.999, 42, 119, 180, 7199, 7200, 172_000, 999_999]
    assert [span(one) for one in seconds] == [
        "0.000s", "0.213s", "9.999s", "42s", "119s", "3m", "120m", "2h", "48h", "12d",
    ]  # fmt: skip
    assert (age(3.21), age(-7200)) == ("3.2s ago", "in 2h")


def test_a_file_is_told_from_an_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from liteq.cli.target import is_file

    monkeypatch.chdir(tmp_path)
    (tmp_path / "queue").touch()
    files = ["a/b", "./x", "x.db", "x.sqlite", "x.sqlite3", "queue"]
    apps = ["shop.app", "shop:app", "a.b.c", "shop"]
    assert ([is_file(one) for one in files], [is_file(one) for one in apps]) == ([True] * 6, [False] * 4)


def test_looking_at_a_file_creates_none(tmp_path: Path) -> None:
    app = LiteQ(SqliteStorage(tmp_path / "missing.db", create=False))
    assert program.main(["ls", str(tmp_path / "missing.db")]) == 1
    app.close()
    assert list(tmp_path.iterdir()) == []
