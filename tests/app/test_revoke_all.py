"""Revoking many jobs at once: by task, by queue, by their arguments, while others work on them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from workbench import PATIENCE, Program, claim, run, work

from liteq import ConfigurationError, JobState, LiteQ, Result, S, Task, TaskContext, UnknownTask
from liteq.clock import ManualClock
from liteq.engine import AT_ONCE, LOOKED_AT_ONCE
from liteq.serializers import Serializer


@pytest.fixture
def mail(app: LiteQ) -> Task[..., Any]:
    @app.task(name="mail")
    def mail(user: Any, text: str = "hello", *more: Any, copy: bool = False, **headers: Any) -> None:
        return None

    return mail


def states(results: list[Result[Any]]) -> list[str]:
    return [str(result.state) for result in results]


# ── which ones ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_queue_is_emptied_and_others_are_not(app: LiteQ, mail: Task[..., Any], clock: ManualClock) -> None:
    other = app.task(name="other", queue="slow")(lambda: None)
    kept = mail(1)
    gone = [mail.using(queue="slow")(2), mail.using(queue="slow", delay=60)(3), other()]
    assert app.revoke_all(queue="slow") == 3
    assert states(gone) == ["revoked"] * 3
    clock.advance(60)
    assert work(app) == 1
    assert kept.state is JobState.SUCCEEDED
    assert app.revoke_all(queue="slow") == 0
    assert app.revoke_all(queue="nobody's") == 0


@pytest.mark.parametrize(
    ("where", "meant"),
    [
        ({"user": 7}, [0, 1, 2, 5]),
        ({"text": "hello"}, [0, 3, 5, 6]),
        ({"user": 7, "text": "hello"}, [0, 5]),
        ({"copy": False}, [0, 1, 2, 3, 4, 6]),
        ({"more": ("x", "y")}, [4]),
        ({"more": ["x", "y"]}, []),
        ({"reply_to": "me"}, [6]),
        ({"user": "7"}, []),
        ({"user": None}, []),
        ({"nothing": 1}, []),
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        (lambda arguments: arguments["user"] in (7, 9) and not arguments["copy"], [0, 1, 2, 4]),
        (lambda arguments: "reply_to" in arguments, [6]),
        (lambda arguments: arguments["more"], [4]),
        (lambda arguments: False, []),
    ],
)
def test_arguments_are_compared_by_name_however_they_were_passed(
    app: LiteQ, mail: Task[..., Any], where: Any, meant: list[int]
) -> None:
    results = [
        mail(7),
        mail(7, "a"),
        mail(text="b", user=7),
        mail(8),
        mail(9, "c", "x", "y"),
        mail(7, copy=True),
        mail(8, reply_to="me"),
    ]
    assert app.revoke_all(mail, where=where) == len(meant)
    assert [number for number, result in enumerate(results) if result.state is JobState.REVOKED] == meant


class Forgetful(Serializer):
    """JSON as it comes: a tuple comes back as a list."""

    name = "forgetful"

    def dumps(self, value: object) -> bytes:
        return json.dumps(value).encode()

    def loads(self, data: bytes) -> object:
        return json.loads(data)


def test_a_value_is_found_whatever_the_serializer_made_of_it() -> None:
    app = LiteQ(":memory:", serializer=Forgetful())
    task = app.task(name="t")(lambda user=(1, 2), text="": None)
    jobs = [task((1, 2)), task(), task((2, 1))]
    assert app.revoke_all(where={"user": (1, 2)}) == 2
    assert states(jobs) == ["revoked", "revoked", "ready"]


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_every_serializer_is_understood(serializer: str) -> None:
    app = LiteQ(":memory:", serializer=serializer)
    task = app.task(name="t")(lambda user, n=1: None)
    task(7)
    task(user=7, n=2)
    task(8)
    assert app.revoke_all(task, where={"user": 7}) == 2
    assert app.revoke_all(where={"n": 1}) == 1


def test_the_context_is_no_argument(app: LiteQ) -> None:
    @app.task(name="t", context=True)
    def t(user: int, *, task: TaskContext) -> None:
        return None

    t(7)
    with pytest.raises(TypeError, match=r"t\(user: .*\) .*has no argument 'task'"):
        app.revoke_all(t, where={"task": 1})
    seen: list[dict[str, Any]] = []
    assert app.revoke_all(where=lambda arguments: seen.append(arguments) or True) == 1
    assert seen == [{"user": 7}]


def test_task_queue_and_arguments_must_all_hold(app: LiteQ, mail: Task[..., Any]) -> None:
    other = app.task(name="other")(lambda user: None)
    results = [mail(7), mail.using(queue="q")(7), mail.using(queue="q")(8), other.using(queue="q")(7), other(7)]
    assert app.revoke_all(mail, queue="q", where={"user": 7}) == 1
    assert states(results) == ["ready", "revoked", "ready", "ready", "ready"]
    assert app.revoke_all("other", queue="q") == 1
    assert app.revoke_all(where={"user": 7}) == 2
    assert states(results) == ["revoked", "revoked", "ready", "revoked", "revoked"]


def test_a_renamed_task_is_meant_with_the_jobs_of_its_old_name(app: LiteQ) -> None:
    old = app.task(name="old")(lambda user: None)
    jobs = [old(7), old(8)]
    del app.engine.tasks["old"]
    new = app.task(name="new", aliases=("old",))(lambda user: None)
    jobs.append(new(7))
    assert app.revoke_all(new, where={"user": 7}) == 2
    assert states(jobs) == ["revoked", "ready", "revoked"]
    assert app.revoke_all(where={"user": 8}) == 1


# ── what cannot be read ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_payload_that_cannot_be_read_is_left_alone_and_named(
    app: LiteQ, mail: Task[..., Any], log: pytest.LogCaptureFixture
) -> None:
    torn, misfit, sound = [app.engine.job(mail(7).id) for _ in range(3)]
    rows = app.storage._rows  # type: ignore[attr-defined]
    rows[torn.seq] = torn._replace(payload=b"\xff{")
    rows[misfit.seq] = misfit._replace(payload=b"[[],{}]")  # from before the function had arguments
    assert app.revoke_all(mail, where={"user": 7}) == 1
    assert app.job(sound.id).state is JobState.REVOKED
    assert {app.job(job.id).state for job in (torn, misfit)} == {JobState.READY}
    told = [record for record in log.records if record.levelno == logging.WARNING]
    assert [record.job for record in told] == [torn.id, misfit.id]  # type: ignore[attr-defined]
    assert all("left alone" in record.getMessage() for record in told)
    assert app.revoke_all(mail, where={}) == 2, "nothing need be read to mean all"


def test_jobs_of_a_task_that_is_not_known_here_are_left_alone_with_one_line_for_all(
    app: LiteQ, mail: Task[..., Any], log: pytest.LogCaptureFixture
) -> None:
    mail.map([7, 7, 7])
    app.engine.tasks.clear()
    assert app.revoke_all(where={"user": 7}) == 0
    [line] = [record for record in log.records if record.levelno == logging.WARNING]
    assert "unknown task" in line.getMessage()
    assert "mail" in line.getMessage()
    assert app.revoke_all("mail", queue="default") == 3, "its queue is known all the same"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, TypeError, "takes a task, a queue or where"),
        ({"terminate": True}, TypeError, "takes a task, a queue or where"),
        ({"where": 7}, TypeError, "where takes a mapping of arguments or a function, not int 7"),
        ({"where": {7: 7}}, TypeError, "names of arguments as strings, not int 7"),
        ({"where": {"user": object()}}, ConfigurationError, "no job can have this argument 'user'"),
        ({"where": {"user": 7}, "until": ManualClock().now()}, TypeError, "until and once are for calls to come"),
        ({"queue": "q", "once": True}, TypeError, "until and once are for calls to come"),
        ({"queue": ""}, ConfigurationError, "queue"),
        ({"queue": 7}, TypeError, "queue"),
        ({"queue": "q", "terminate": 1}, TypeError, "terminate takes True or False"),
        ({"task": "unheard", "where": {"user": 7}}, UnknownTask, "unheard"),
        ({"task": "unheard"}, UnknownTask, "unheard"),
        ({"task": "plain", "where": {"usr": 7}}, TypeError, r"plain\(user\) has no argument 'usr'"),
        ({"task": "plain", "once": True, "terminate": True}, TypeError, "once revokes the next call only"),
    ],
)
def test_what_makes_no_sense_is_refused_and_revokes_nothing(
    app: LiteQ, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    result = app.task(name="plain")(lambda user: None)(7)
    with pytest.raises(error, match=words):
        app.revoke_all(**arguments)
    assert not app.is_revoked(result)


def test_what_a_filter_raises_is_the_callers_to_hear(app: LiteQ, mail: Task[..., Any]) -> None:
    mail(7)
    with pytest.raises(ZeroDivisionError):
        app.revoke_all(where=lambda arguments: 1 / 0)
    assert app.counts()[JobState.READY] == 1


# ── what runs, what moves, what comes ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("terminate", "mark"), [(False, "tell"), (True, "stop")])
def test_running_jobs_are_told_or_stopped_and_not_run_again(
    app: LiteQ, mail: Task[..., Any], terminate: bool, mark: str
) -> None:
    mail.map([7, 8, 7])
    running = claim(app, 2)
    assert app.revoke_all(where={"user": 7}, terminate=terminate) == 2
    assert app.storage.marks() == {f"cancel:{running[0].seq}": mark}
    assert [app.is_revoked(job.id) for job in app.jobs()] == [True, False, True]


def test_every_call_of_a_task_is_revoked_as_before_and_with_terminate_what_runs_is_stopped(
    app: LiteQ, mail: Task[..., Any]
) -> None:
    mail.map([1, 2])
    [running] = claim(app, 1)
    assert app.revoke_all(mail) == 0
    assert app.is_revoked(mail)
    assert not app.is_revoked(running.id)
    assert app.revoke_all(mail, terminate=True) == 1
    assert app.storage.marks("cancel:") == {f"cancel:{running.seq}": "stop"}
    mail(3)
    work(app)
    assert app.counts()[JobState.REVOKED] == 2
    assert app.restore_all(mail)


def test_a_job_that_starts_meanwhile_is_told_and_one_that_ends_meanwhile_is_not_counted(
    app: LiteQ, mail: Task[..., Any]
) -> None:
    starting, ending, waiting = mail.map([1, 2, 3])

    def meanwhile(arguments: dict[str, Any]) -> bool:
        if arguments["user"] == 1:
            claim(app, 1)
        elif arguments["user"] == 2:
            run(app, *claim(app, 1))
        return True

    assert app.revoke_all(where=meanwhile) == 2
    assert (ending.state, waiting.state) == (JobState.SUCCEEDED, JobState.REVOKED)
    assert app.storage.marks() == {f"cancel:{starting.job().seq}": "tell"}


def test_a_job_that_is_deleted_meanwhile_is_not_counted(app: LiteQ, mail: Task[..., Any]) -> None:
    mail(1)

    def meanwhile(arguments: dict[str, Any]) -> bool:
        work(app)
        return app.purge() == 1

    assert app.revoke_all(where=meanwhile) == 0


def test_jobs_that_are_enqueued_meanwhile_are_left_alone(app: LiteQ, mail: Task[..., Any]) -> None:
    mail.map(range(3))
    assert app.revoke_all(where=lambda arguments: mail(99)) == 3
    assert app.counts()[JobState.READY] == 3


def test_each_revoked_job_is_announced(app: LiteQ, mail: Task[..., Any]) -> None:
    heard: list[str] = []
    app.signal(S.REVOKED)(lambda signal, job, error: heard.append(job.id))
    results = mail.map([7, 8, 7])
    app.revoke_all(where={"user": 7})
    assert heard == [results[0].id, results[2].id]


def test_immediate_mode_revokes_what_is_due_later(immediate: LiteQ) -> None:
    task = immediate.task(name="t")(lambda user: None)
    later = [task.using(delay=60)(user) for user in (7, 8)]
    assert immediate.revoke_all(task, where={"user": 7}) == 1
    assert states(later) == ["revoked", "scheduled"]


# ── many ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def transactions(on_file: LiteQ, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many transitions each transaction had."""
    sizes: list[int] = []
    apply: Callable[..., list[bool]] = on_file.storage.apply
    monkeypatch.setattr(on_file.storage, "apply", lambda moves, now: sizes.append(len(moves)) or apply(moves, now))
    yield sizes


def test_thousands_are_revoked_in_batches(on_file: LiteQ, transactions: list[int]) -> None:
    task = on_file.task(name="t")(lambda user, flag=True: None)
    number = 2 * LOOKED_AT_ONCE + 700
    task.map((user,) for user in range(number))
    running = claim(on_file, 50)
    assert on_file.revoke_all(task, where=lambda arguments: arguments["user"] % 2 == 0) == number // 2
    assert on_file.counts()[JobState.REVOKED] == number // 2 - 25
    assert len(on_file.storage.marks("cancel:")) == 25
    assert max(transactions) == AT_ONCE
    assert len(transactions) < number // AT_ONCE + 5
    for job in running:
        run(on_file, job)
    assert on_file.revoke_all(where={}) == number - number // 2 - 25
    assert on_file.counts()[JobState.READY] == 0


SHOP = """
    from liteq import LiteQ

    app = LiteQ(sys.argv[1], durability="normal")

    @app.task(name="t")
    def t(user): pass
"""


def test_every_job_is_either_run_or_revoked_while_other_processes_work(directory: Path) -> None:
    file, number = directory / "queue.db", 4_000
    app = LiteQ(file, durability="normal")
    task = app.task(name="t")(lambda user: None)
    results = task.map(range(number))
    consumer = SHOP + (
        """
    with app.run_in_background(workers=2):
        say("runs")
        hear()
    say(app.storage.location)
    """
    )
    revoker = SHOP + (
        """
    say("ready")
    hear()
    say(app.revoke_all(t, where=lambda arguments: arguments["user"] % 2))
    """
    )
    with Program(consumer, file) as first, Program(consumer, file) as second, Program(revoker, file) as other:
        assert {first.hear(), second.hear(), other.hear()} == {"runs", "ready"}
        results[0].get(PATIENCE)  # they are at work
        other.tell()
        mine, theirs = app.revoke_all(where=lambda arguments: arguments["user"] % 2 == 0), int(other.hear())
        first.tell()
        second.tell()
        assert (first.finish(), second.finish(), other.finish()) == (0, 0, 0)
    counts = app.counts()
    assert counts[JobState.REVOKED] + counts[JobState.SUCCEEDED] == number
    assert counts[JobState.REVOKED] <= mine + theirs < number
    app.close()
