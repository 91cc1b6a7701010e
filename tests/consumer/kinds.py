"""What every kind of worker promises, as tests that each kind passes unchanged.

A kind's test class is a subclass named ``Test…`` with one fixture, ``kind``: the consumer's options that make it. The
consumer runs in this process, beside the test; what may differ between kinds is only how a worker starts, is stopped,
and dies, and that is tested elsewhere.
"""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import workshop
from workshop import lines

from liteq import JobState, LiteQ, TaskExpired, TaskFailed, TaskRevoked, chord
from liteq.job import Ending, Job, Progress
from liteq.lifecycle import UNKNOWN_TASK

GET = 50.0  # seconds within which anything ends here; most take milliseconds, but the machine may be busy

# What a worker is given, in these tests, between being asked to stop and being given up.
GRACE = 0.4

HOUR = timedelta(hours=1)


def endings(job: Job) -> list[Ending]:
    return [attempt.ending for attempt in job.attempts]


def failure_of(result: Any) -> TaskFailed:
    with pytest.raises(TaskFailed) as caught:
        result.get(GET)
    return caught.value


class KindsContract:
    """See the module."""

    # ── results ──────────────────────────────────────────────────────────────────────────────────────

    def test_a_result_comes_back(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            assert tasks.add(2, 3).get(GET) == 5
            assert tasks.echo({"nested": [1, (2, "ünïcødé 🐇", None), b"\xff"]}).get(GET) == {
                "nested": [1, (2, "ünïcødé 🐇", None), b"\xff"]
            }

    def test_none_is_a_result(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            result = tasks.nothing()
            assert result.get(GET) is None
            assert result.state is JobState.SUCCEEDED

    def test_an_unwanted_result_is_not_stored(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            result = tasks.forget("secret")
            assert result.get(GET) is None
            assert result.job().result is None

    def test_results_may_be_huge(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            assert tasks.repeat("x", 5_000_000).get(GET) == "x" * 5_000_000

    def test_arguments_may_be_huge(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            assert tasks.size("ü" * 5_000_000).get(GET) == 5_000_000

    def test_many_small_jobs_keep_their_own_results(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app, workers=2):
            assert tasks.echo.map(range(1000)).get(GET) == list(range(1000))

    def test_a_result_that_cannot_be_stored_is_a_failure(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            error = failure_of(tasks.return_unstorable())
            assert error.error_type == "SerializationError"
            assert "object" in error.message

    def test_a_finished_job_tells_when_it_ran(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        before = time.time()
        with consume(app):
            result = tasks.add(1, 1)
            result.get(GET)
        job = result.job()
        assert before <= job.created <= job.started <= job.finished <= time.time()
        assert endings(job) == [Ending.SUCCEEDED]
        assert (job.attempt, job.claim, job.crashes) == (1, 1, 0)

    def test_a_task_enqueues_others(self, app: LiteQ, tasks: Any, consume: Any, path: Path) -> None:
        with consume(app):
            other = tasks.enqueue_another(str(path)).get(GET)
            assert app.result(other).get(GET) == "from inside"

    def test_a_delayed_job_runs_when_it_is_due(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            result = tasks.add.using(delay=0.2)(1, 1)
            assert result.state is JobState.SCHEDULED
            result.get(GET)
            job = result.job()
            assert job.due is not None
            assert job.due <= job.started < job.due + 30

    def test_results_and_errors_are_passed_on_in_a_workflow(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        members = [
            tasks.echo.s(b"\xff"),
            tasks.nothing.s(),
            tasks.fail.s("no luck"),
            tasks.add.s(1, 2).then(tasks.add, 3),
        ]
        with consume(app, workers=2):
            result = app.enqueue(chord(members, tasks.describe.s("first")).then(tasks.echo))
            first, *values = result.get(GET)
        failed = result.workflow[2]
        error = f"TaskFailed job {failed.id} failed: ValueError: no luck"
        assert (first, values) == ("first", ["bytes b'\\xff'", "NoneType None", error, "int 6"])

    # ── failures ─────────────────────────────────────────────────────────────────────────────────────

    def test_an_error_comes_back_with_the_tasks_own_traceback(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            error = failure_of(tasks.fail("no such luck"))
        assert (error.error_type, error.message) == ("ValueError", "no such luck")
        assert "raise ValueError(message)" in error.traceback
        assert "workshop.py" in error.traceback
        assert "execution.py" not in error.traceback

    def test_the_cause_of_an_error_is_kept(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            error = failure_of(tasks.fail_because("effect", "first cause"))
        assert error.error_type == "workshop.Unlucky"
        assert "first cause" in error.traceback
        assert "direct cause" in error.traceback

    @pytest.mark.parametrize("text", ["ünïcødé 名前 🐇", "lone \ud800 surrogate", "nul \0 in it", "", "x" * 100_000])
    def test_an_ugly_message_spoils_nothing(self, app: LiteQ, tasks: Any, consume: Any, text: str) -> None:
        with consume(app):
            error = failure_of(tasks.fail_oddly(text.encode("utf-8", "surrogatepass")))
            assert error.error_type == "ValueError"
            assert error.message == text.encode("utf-8", "backslashreplace").decode()[:4000]
            assert tasks.add(1, 1).get(GET) == 2

    def test_a_failed_job_is_retried_as_often_as_it_may(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            lucky = tasks.fail_until.using(retries=2)(3)
            unlucky = tasks.fail_until.using(retries=1)(3)
            assert lucky.get(GET) == 3
            assert failure_of(unlucky).message == "attempt 2 of 2"
        assert endings(lucky.job()) == [Ending.FAILED, Ending.FAILED, Ending.SUCCEEDED]
        assert endings(unlucky.job()) == [Ending.FAILED, Ending.FAILED]
        assert [attempt.number for attempt in lucky.job().attempts] == [1, 2, 3]
        assert unlucky.state is JobState.FAILED

    def test_retries_wait_for_their_delay(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            result = tasks.fail_until.using(retries=2, retry_delay=0.1, retry_backoff=3)(3)
            result.get(GET)
        first, second, third = result.job().attempts
        assert 0.1 <= second.started - first.finished < 5
        assert 0.3 <= third.started - second.finished < 5

    @pytest.mark.parametrize(("kind_of_error", "attempts"), [("unlucky", 4), ("hopeless", 1), ("other", 1)])
    def test_only_some_errors_are_worth_a_retry(
        self, app: LiteQ, tasks: Any, consume: Any, kind_of_error: str, attempts: int
    ) -> None:
        with consume(app):
            result = tasks.choose(kind_of_error)
            failure_of(result)
        assert endings(result.job()) == [Ending.FAILED] * attempts

    @pytest.mark.parametrize(
        ("how", "error_type"),
        [
            ("exit", "SystemExit"),
            ("interrupt", "KeyboardInterrupt"),
            ("mute", "workshop.Mute"),
            ("base", "BaseException"),
            ("close", "GeneratorExit"),
        ],
    )
    def test_a_task_cannot_end_its_worker_by_raising(
        self, app: LiteQ, tasks: Any, consume: Any, how: str, error_type: str
    ) -> None:
        with consume(app):
            before = tasks.where().get(GET)
            result = tasks.leave.using(retries=1)(how)
            assert failure_of(result).error_type == error_type
            assert tasks.where().get(GET) == before
        assert endings(result.job()) == [Ending.FAILED, Ending.FAILED]

    def test_endless_recursion_is_only_a_failure(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            assert failure_of(tasks.dig()).error_type == "RecursionError"
            assert tasks.add(1, 1).get(GET) == 2

    def test_a_payload_that_cannot_be_read_fails_alone_and_at_once(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        good = tasks.add(1, 1)
        template = good.job()._replace(id="corrupt", payload=b"\xff{not json", options='{"retries":5}')
        app.storage.add([template])
        last = tasks.add(2, 2)
        with consume(app):
            error = failure_of(app.result("corrupt"))
            assert (good.get(GET), last.get(GET)) == (2, 4)
        assert error.error_type == "SerializationError"
        assert "corrupt" in error.message
        assert len(app.job("corrupt").attempts) == 1

    def test_arguments_that_do_not_fit_any_more_are_a_failure(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        app.storage.add([tasks.add(1, 1).job()._replace(id="old", payload=tasks.echo("one argument").job().payload)])
        with consume(app):
            assert failure_of(app.result("old")).error_type == "TypeError"

    # ── directives ───────────────────────────────────────────────────────────────────────────────────

    def test_a_task_asks_for_another_attempt(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            result = tasks.direct.using(retries=1)("retry", 0.1)
            assert result.get(GET) == "attempt 2"
        first, second = result.job().attempts
        assert (first.ending, first.message) == (Ending.RETRY, "not yet")
        assert second.started - first.finished >= 0.1

    def test_asking_for_another_attempt_costs_one(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            assert failure_of(tasks.direct("retry", None)).error_type == "Retry"

    def test_retry_without_a_delay_takes_the_tasks_own(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            result = tasks.direct.using(retries=1, retry_delay=0.2)("retry", None)
            assert result.get(GET) == "attempt 2"
        first, second = result.job().attempts
        assert second.started - first.finished >= 0.2

    def test_snoozing_costs_no_attempt(self, app: LiteQ, tasks: Any, consume: Any, gate: Path, eventually: Any) -> None:
        with consume(app):
            result = tasks.snooze_until(str(gate), 0.02)
            eventually(lambda: result.job().claim >= 3)
            gate.touch()
            assert result.get(GET) == 1
        assert endings(result.job()) == [Ending.SUCCEEDED]

    def test_a_task_cancels_itself(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            result = tasks.direct.using(retries=5)("cancel", None)
            with pytest.raises(TaskRevoked, match="nobody needs it"):
                result.get(GET)
        assert result.state is JobState.REVOKED
        assert len(result.job().attempts) == 1

    def test_a_task_gives_up(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            result = tasks.direct.using(retries=5)("fail", None)
            assert failure_of(result).message == "it is no use"
        assert endings(result.job()) == [Ending.GAVE_UP]

    def test_a_directive_that_makes_no_sense_is_a_failure(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            error = failure_of(tasks.direct("retry", "soon"))
            assert error.error_type in ("TypeError", "ConfigurationError")

    # ── what a job knows of itself ───────────────────────────────────────────────────────────────────

    def test_a_task_knows_its_job(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            result = tasks.about.using(retries=3, priority=7, queue="letters", timeout=30)()
            known = result.get(GET)
        assert 0 < known.pop("remaining") <= 30
        assert known == {
            "id": result.id,
            "name": "workshop.about",
            "queue": "letters",
            "priority": 7,
            "attempt": 1,
            "retries_left": 3,
            "cancelled": False,
        }

    def test_without_a_timeout_there_is_no_time_remaining(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            assert tasks.about().get(GET)["remaining"] is None

    def test_progress_is_seen_from_outside_while_the_job_runs(
        self, app: LiteQ, tasks: Any, consume: Any, gate: Path, eventually: Any
    ) -> None:
        with consume(app):
            result = tasks.wait_for_revoke(str(gate))
            eventually(lambda: result.progress == Progress(1, 4, "a quarter"))
            assert result.state is JobState.RUNNING
            gate.touch()
            assert result.get(GET) == "the gate opened"
        assert result.progress is None

    # ── deadlines ────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("name", ["spin", "asleep"])
    def test_a_body_that_runs_too_long_is_stopped(self, app: LiteQ, tasks: Any, consume: Any, name: str) -> None:
        with consume(app):
            before = tasks.where().get(GET)
            result = getattr(tasks, name).using(retries=1)(30)
            error = failure_of(result)
            assert tasks.where().get(GET) == before
        assert error.error_type == "TaskTimeout"
        assert "0.2 s" in error.message
        assert endings(result.job()) == [Ending.TIMEOUT, Ending.TIMEOUT]
        for attempt in result.job().attempts:
            assert 0.2 <= attempt.finished - attempt.started < 10

    @pytest.mark.parametrize("name", ["sleep", "ablock", "insist"])
    def test_what_cannot_be_stopped_loses_its_worker_and_the_next_job_runs(
        self, app: LiteQ, tasks: Any, consume: Any, name: str
    ) -> None:
        with consume(app):
            began = time.monotonic()
            result = getattr(tasks, name)(20)
            error = failure_of(result)
            assert tasks.add(1, 1).get(GET) == 2
            assert time.monotonic() - began < 15, "it was waited for"
        assert error.error_type == "TaskTimeout"
        assert endings(result.job()) == [Ending.TIMEOUT]

    @pytest.mark.parametrize("timeout", [1e10, 1e300])
    def test_a_timeout_beyond_all_measure_is_no_timeout(
        self, app: LiteQ, tasks: Any, consume: Any, timeout: float
    ) -> None:
        with consume(app):
            assert tasks.add.using(timeout=timeout)(1, 1).get(GET) == 2
            assert tasks.aadd.using(timeout=timeout)(1, 1).get(GET) == 2

    def test_a_task_may_tidy_up_at_its_deadline(self, app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
        with consume(app):
            assert failure_of(tasks.clean_up(log)).error_type == "TaskTimeout"
        assert lines(log) == ["tidied up"]

    def test_a_deadline_does_not_strike_the_next_job(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            quick = [tasks.spin.using(timeout=0.05)(0.045) for _ in range(10)]
            others = [tasks.spin.using(timeout=60)(0.02) for _ in range(10)]
            for result in others:
                assert result.get(GET) is None
            for result in quick:
                job = result.job()
                assert job.state is JobState.SUCCEEDED or job.error.ending is Ending.TIMEOUT

    # ── coroutines ───────────────────────────────────────────────────────────────────────────────────

    def test_a_coroutine_may_tidy_up_at_its_deadline(self, app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
        with consume(app):
            assert failure_of(tasks.aclean_up(log)).error_type == "TaskTimeout"
            assert tasks.aadd(1, 1).get(GET) == 2
        assert lines(log) == ["cancelled", "tidied up"]

    def test_a_coroutine_knows_its_job_and_tells_how_far_it_is(
        self, app: LiteQ, tasks: Any, consume: Any, gate: Path, eventually: Any
    ) -> None:
        with consume(app):
            result = tasks.await_revoke(str(gate))
            eventually(lambda: result.progress == Progress(1, 4, "a quarter"))
            gate.touch()
            assert result.get(GET) == f"the gate opened for {result.id}"

    def test_a_running_coroutine_is_told_that_it_was_revoked(
        self, app: LiteQ, tasks: Any, consume: Any, gate: Path, eventually: Any
    ) -> None:
        with consume(app):
            result = tasks.await_revoke(str(gate))
            eventually(lambda: result.progress is not None)
            assert result.revoke()
            assert result.get(GET) == "revoked"

    @pytest.mark.parametrize("name", ["remember", "aremember"])
    def test_what_a_job_sets_in_its_context_is_gone_with_it(
        self, app: LiteQ, tasks: Any, consume: Any, name: str
    ) -> None:
        with consume(app):
            for who in ("first", "second"):
                assert getattr(tasks, name)(who).get(GET) == ["nobody", who]

    def test_a_coroutine_that_does_not_finish_is_put_back_without_an_attempt(
        self, app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
    ) -> None:
        result = tasks.await_at(str(gate), log)
        with consume(app, shutdown_timeout=0.1):
            eventually(lambda: lines(log) == ["began"])
        assert (result.state, result.job().attempt, result.job().attempts) == (JobState.READY, 0, ())
        gate.touch()
        with consume(app):
            assert result.get(GET) is None

    def test_coroutines_are_retried(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            result = tasks.afail.using(retries=2)("plain")
            failure_of(result)
        assert endings(result.job()) == [Ending.FAILED] * 3

    def test_coroutines_run(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            assert tasks.aadd(2, 3).get(GET) == 5

    def test_a_worker_keeps_its_loop(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            first, second = tasks.loop_id.map([(), ()]).get(GET)
            assert first == second

    @pytest.mark.parametrize(
        ("how", "error_type"), [("plain", "ValueError"), ("exit", "SystemExit"), ("timeout", "TimeoutError")]
    )
    def test_coroutines_fail(self, app: LiteQ, tasks: Any, consume: Any, how: str, error_type: str) -> None:
        with consume(app):
            error = failure_of(tasks.afail(how))
            assert error.error_type == error_type
            assert "workshop.py" in error.traceback
            assert tasks.aadd(1, 1).get(GET) == 2

    def test_a_coroutine_is_terminated(
        self, app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
    ) -> None:
        with consume(app):
            result = tasks.await_at(str(gate), log)
            eventually(lambda: lines(log) == ["began"])
            assert result.revoke(terminate=True)
            with pytest.raises(TaskRevoked):
                result.get(GET)
            assert tasks.aadd(1, 1).get(GET) == 2

    # ── hooks ────────────────────────────────────────────────────────────────────────────────────────

    def test_a_hook_before_can_keep_a_job_from_running(self, app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
        with consume(app), pytest.raises(TaskRevoked, match="the guard said no"):
            tasks.guarded(log).get(GET)
        assert lines(log) == []

    def test_a_hook_after_sees_value_or_error(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            tasks.echo("x").get(GET)
            failure_of(tasks.fail("y"))
            assert tasks.seen().get(GET) == ["workshop.echo 'x' NoneType", "workshop.fail None ValueError"]

    def test_a_hook_with_a_bug_costs_no_job(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            assert tasks.forget("before fails").get(GET) is None
            assert tasks.nothing().get(GET) is None

    def test_startup_hooks_run_once_where_the_jobs_run(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            tasks.nothing().get(GET)
            started_in, pid = tasks.started_in().get(GET)
        assert started_in.count(pid) == 1

    def test_shutdown_hooks_run_where_the_jobs_ran(self, app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
        with consume(app):
            pid = tasks.say_goodbye_in(log).get(GET)
        assert lines(log) == [str(pid)]

    # ── what nobody knows ────────────────────────────────────────────────────────────────────────────

    def test_an_unknown_task_waits_for_a_consumer_that_knows_it(
        self, app: LiteQ, tasks: Any, consume: Any, path: Path, eventually: Any
    ) -> None:
        wiser = workshop.build(path, wise=True)
        result = workshop.tasks_of(wiser).news()
        with consume(app):
            eventually(lambda: result.state is JobState.BLOCKED)
            assert tasks.add(1, 1).get(GET) == 2
        job = result.job()
        assert job.reason == UNKNOWN_TASK + "workshop.news"
        assert (job.attempt, job.attempts) == (0, ())
        with consume(wiser, app_path="workshop:wiser"):
            assert result.get(GET) == "known by now"
        assert result.job().attempt == 1
        wiser.close()

    # ── revoking ─────────────────────────────────────────────────────────────────────────────────────

    def test_a_revoked_job_does_not_run(self, app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
        result = tasks.write(log, "never")
        assert result.revoke()
        with consume(app):
            tasks.add(1, 1).get(GET)
            with pytest.raises(TaskRevoked):
                result.get(GET)
        assert lines(log) == []

    def test_a_restored_job_runs(self, app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
        result = tasks.write(log, "after all")
        result.revoke()
        assert result.restore()
        with consume(app):
            result.get(GET)
        assert lines(log) == ["after all"]

    def test_a_running_job_is_told_that_it_was_revoked(
        self, app: LiteQ, tasks: Any, consume: Any, gate: Path, eventually: Any
    ) -> None:
        with consume(app):
            result = tasks.wait_for_revoke(str(gate))
            eventually(lambda: result.progress is not None)
            assert result.revoke()
            assert result.get(GET) == "revoked"

    def test_a_job_that_was_revoked_while_it_ran_is_not_retried(
        self, app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
    ) -> None:
        with consume(app):
            result = tasks.wait_then_fail.using(retries=5)(str(gate), log)
            eventually(lambda: lines(log) == ["began"])
            assert result.revoke()
            gate.touch()  # at once: the consumer may not even have looked
            with pytest.raises(TaskRevoked):
                result.get(GET)
        assert lines(log) == ["began"]
        assert result.state is JobState.REVOKED

    def test_a_revocation_of_a_running_job_can_be_undone(
        self, app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
    ) -> None:
        with consume(app):
            result = tasks.wait_then_fail.using(retries=1)(str(gate), log)
            eventually(lambda: lines(log) == ["began"])
            assert result.revoke()
            assert result.restore()
            gate.touch()
            assert failure_of(result).error_type == "workshop.Unlucky"
        assert lines(log) == ["began", "began"]

    def test_a_running_job_is_terminated(
        self, app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
    ) -> None:
        with consume(app):
            result = tasks.wait.using(retries=5)(str(gate), log)
            eventually(lambda: lines(log) == ["began "])
            assert result.revoke(terminate=True)
            with pytest.raises(TaskRevoked):
                result.get(GET)
            assert tasks.add(1, 1).get(GET) == 2
        assert lines(log) == ["began "]
        assert result.state is JobState.REVOKED

    def test_terminating_one_job_does_not_touch_another(
        self, app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
    ) -> None:
        with consume(app, workers=2):
            keep, end = tasks.wait(str(gate), log, "keep"), tasks.wait(str(gate), log, "end")
            eventually(lambda: len(lines(log)) == 2)
            end.revoke(terminate=True)
            with pytest.raises(TaskRevoked):
                end.get(GET)
            gate.touch()
            assert keep.get(GET) == "through keep"
        assert keep.job().attempt == 1

    def test_every_call_of_a_task_is_revoked(self, app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
        waiting = tasks.write(log, "waiting")
        tasks.write.revoke()
        with consume(app):
            coming = tasks.write(log, "coming")
            for result in (waiting, coming):
                with pytest.raises(TaskRevoked):
                    result.get(GET)
            assert tasks.write.restore()
            tasks.write(log, "later").get(GET)
        assert lines(log) == ["later"]
        assert waiting.job().attempt == 0

    def test_a_task_is_revoked_once(self, app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
        tasks.write.revoke(once=True)
        results = tasks.write.map([(log, "first"), (log, "second"), (log, "third")])
        with consume(app):
            with pytest.raises(TaskRevoked):
                results[0].get(GET)
            results[1:].get(GET)
        assert lines(log) == ["second", "third"]
        assert not tasks.write.is_revoked()

    def test_a_task_is_revoked_until(self, app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
        with consume(app):
            app.revoke_all(tasks.write, until=datetime.now(UTC) + HOUR)
            with pytest.raises(TaskRevoked):
                tasks.write(log, "too early").get(GET)
            app.revoke_all(tasks.write, until=datetime.now(UTC) - HOUR)
            tasks.write(log, "in time").get(GET)
        assert lines(log) == ["in time"]

    def test_an_expired_job_does_not_run(self, app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
        late = tasks.write.using(expires=datetime.now(UTC) - HOUR)(log, "late")
        in_time = tasks.write.using(expires=3600)(log, "in time")
        with consume(app):
            with pytest.raises(TaskExpired):
                late.get(GET)
            in_time.get(GET)
        assert lines(log) == ["in time"]
        assert late.job().attempt == 0

    # ── order ────────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.usefixtures("nothing_given_back")
    def test_one_worker_keeps_priority_then_order(self, app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
        words = [(priority, number) for number in range(40) for priority in (0, 5, -5)]
        results = [tasks.write.using(priority=priority)(log, f"{priority}/{number}") for priority, number in words]
        with consume(app):
            for result in results:
                result.get(GET)
        assert lines(log) == [f"{priority}/{number}" for priority, number in sorted(words, key=lambda w: (-w[0], w[1]))]

    @pytest.mark.usefixtures("nothing_given_back")
    def test_queues_come_in_the_order_of_preference(self, app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
        tasks.write.using(queue="c")(log, "c")
        results = []
        for number in range(20):
            results.append(tasks.write.using(queue="b", priority=9)(log, f"b{number}"))
            results.append(tasks.write.using(queue="a")(log, f"a{number}"))
        with consume(app, queues=("a", "b")):
            for result in results:
                result.get(GET)
        assert lines(log) == [f"a{number}" for number in range(20)] + [f"b{number}" for number in range(20)]

    def test_other_queues_are_left_alone(self, app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
        other = tasks.write.using(queue="c", priority=9)(log, "c")
        with consume(app, queues=("a",)):
            tasks.write.using(queue="a")(log, "a").get(GET)
        assert lines(log) == ["a"]
        assert other.state is JobState.READY

    def test_a_paused_queue_waits_until_it_is_resumed(self, app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
        app.pause("slow")
        waiting = tasks.write.using(queue="slow")(log, "slow")
        with consume(app):
            tasks.write(log, "fast").get(GET)
            assert waiting.state is JobState.READY
            assert app.resume("slow")
            waiting.get(GET)
        assert lines(log) == ["fast", "slow"]

    # ── the end of a consumer ────────────────────────────────────────────────────────────────────────

    def test_a_running_job_may_finish_when_the_consumer_stops(
        self, app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
    ) -> None:
        running = tasks.wait(str(gate), log, 1)
        with consume(app) as consumer:
            eventually(lambda: lines(log) == ["began 1"])
            waiting = tasks.wait(str(gate), log, 2)
            consumer.stop(wait=False)
            gate.touch()
        assert running.get(0) == "through 1"
        assert waiting.state is JobState.READY
        assert waiting.job().attempt == 0
        assert lines(log) == ["began 1", "ended 1"]

    @pytest.mark.parametrize("at_once", [True, False])
    def test_what_does_not_finish_is_put_back_without_an_attempt(
        self, app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any, at_once: bool
    ) -> None:
        results = [tasks.wait(str(gate), log, word) for word in "abc"]
        with consume(app, workers=2, shutdown_timeout=60 if at_once else 0.1) as consumer:
            eventually(lambda: len(lines(log)) == 2)
            began = time.monotonic()
            consumer.stop(at_once=at_once)
            assert time.monotonic() - began < 40
        for result in results:
            job = result.job()
            assert (job.state, job.attempt, job.crashes, job.attempts) == (JobState.READY, 0, 0, ())
        assert app.counts()[JobState.RUNNING] == 0
        assert app.consumers() == []
        gate.touch()
        with consume(app):
            assert [result.get(GET) for result in results] == [f"through {word}" for word in "abc"]
        assert [result.job().attempt for result in results] == [1, 1, 1]

    def test_a_sleeping_job_does_not_hold_up_a_stop_at_once(
        self, app: LiteQ, tasks: Any, consume: Any, eventually: Any
    ) -> None:
        result = tasks.sleep.using(timeout=60)(20)
        with consume(app) as consumer:
            eventually(lambda: result.state is JobState.RUNNING)
            began = time.monotonic()
            consumer.stop(at_once=True)
            assert time.monotonic() - began < 15
        assert result.state is JobState.READY
        assert result.job().attempt == 0

    def test_a_second_stop_hurries_the_first(
        self, app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
    ) -> None:
        result = tasks.wait(str(gate), log)
        with consume(app, shutdown_timeout=60) as consumer:
            eventually(lambda: lines(log))
            consumer.on_signal(15, None)
            assert result.state is JobState.RUNNING
            consumer.on_signal(15, None)
        assert result.state is JobState.READY

    def test_an_idle_consumer_stops_at_once(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app) as consumer:
            tasks.add(1, 1).get(GET)
            began = time.monotonic()
            consumer.stop()
            assert time.monotonic() - began < 40
        assert app.consumers() == []

    def test_nothing_starts_after_a_stop(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        with consume(app):
            pass
        result = tasks.add(1, 1)
        with consume(app, burst=True):
            assert result.get(GET) == 2
        assert result.job().claim == 1

    def test_a_burst_runs_what_is_due_and_ends(self, app: LiteQ, tasks: Any, consume: Any, kind: Any) -> None:
        results = tasks.add.map([(number, 1) for number in range(50)])
        retried = tasks.fail_until.using(retries=3)(3)
        later = tasks.add.using(delay=3600)(1, 1)
        consumer = app.create_consumer(workers=2, app_path="workshop:app", burst=True, **kind)
        consumer.run()
        assert results.get(0) == [number + 1 for number in range(50)]
        assert retried.get(0) == 3
        assert later.state is JobState.SCHEDULED

    # ── workers come and go ──────────────────────────────────────────────────────────────────────────

    def test_replacing_workers_loses_and_doubles_nothing(self, app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
        with consume(app, workers=2, max_tasks=7):
            tasks.write.map([(log, number) for number in range(100)]).get(GET)
        assert sorted(map(int, lines(log))) == list(range(100))

    def test_as_many_jobs_run_at_once_as_there_are_workers(
        self, app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
    ) -> None:
        with consume(app, workers=3):
            results = tasks.wait.map([(str(gate), log, number) for number in range(5)])
            eventually(lambda: len(lines(log)) == 3)
            assert [result.state for result in results].count(JobState.RUNNING) >= 3
            gate.touch()
            results.get(GET)
        assert len(lines(log)) == 10

    def test_callers_wait_on_many_threads(self, app: LiteQ, tasks: Any, consume: Any) -> None:
        answers: list[int] = []
        callers = [threading.Thread(target=lambda n=n: answers.append(tasks.add(n, 0).get(GET))) for n in range(8)]
        with consume(app, workers=2):
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
        assert sorted(answers) == list(range(8))

    def test_jobs_run_where_this_kind_runs_them(self, app: LiteQ, tasks: Any, consume: Any, kind: Any) -> None:
        with consume(app):
            pid, group, _ = tasks.where().get(GET)
        if kind["worker_type"] in ("thread", "asyncio"):
            assert pid == os.getpid()
        else:
            assert pid != os.getpid()
            assert group == pid, "a worker process leads a group of its own"


class CrashContract:
    """What kinds promise whose workers may die without their consumer."""

    def test_a_job_whose_worker_dies_runs_again(self, app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
        with consume(app):
            result = tasks.die_once(log)
            assert result.get(GET) == "alive"
        assert endings(result.job()) == [Ending.CRASHED, Ending.SUCCEEDED]
        assert (result.job().crashes, lines(log)) == (1, ["here", "here"])

    @pytest.mark.parametrize("how", ["exit", "SIGKILL", "SIGSEGV"])
    def test_a_job_that_kills_its_worker_again_and_again_fails_with_its_history(
        self, app: LiteQ, tasks: Any, consume: Any, log: str, how: str
    ) -> None:
        with consume(app):
            result = tasks.die(how, log)
            error = failure_of(result)
            assert tasks.add(1, 1).get(GET) == 2
        assert error.error_type == "WorkerCrashed"
        assert ("exit code 7" if how == "exit" else how) in error.message
        assert endings(result.job()) == [Ending.CRASHED, Ending.CRASHED]

    def test_a_death_costs_the_neighbours_no_attempt(
        self, app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
    ) -> None:
        with consume(app, workers=2):
            neighbour = tasks.wait(str(gate), log)
            eventually(lambda: lines(log))
            assert tasks.die_once(log + ".deaths").get(GET) == "alive"
            gate.touch()
            assert neighbour.get(GET) == "through"
        assert (neighbour.job().attempt, neighbour.job().crashes) == (1, 0)
