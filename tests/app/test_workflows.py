"""Workflows as callers see them: pipelines, groups, chords, ``after``; and a model that says what must come out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workbench import claim, run, work

from liteq import (
    Cancel,
    ConfigurationError,
    DependencyFailed,
    JobNotFound,
    JobState,
    LiteQ,
    ResultTimeout,
    S,
    SerializationError,
    TaskFailed,
    TaskRevoked,
    chord,
    group,
)
from liteq.clock import ManualClock


class Shop:
    """An app and some tasks; ``calls`` is what ran, in order."""

    def __init__(self, app: LiteQ) -> None:
        self.app = app
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.broken: set[Any] = set()
        self.add = app.task(name="add")(self._add)
        self.mul = app.task(name="mul")(self._mul)
        self.total = app.task(name="total")(self._total)
        self.show = app.task(name="show")(self._show)
        self.check = app.task(name="check")(self._check)
        self.tell = app.task(name="tell")(self._tell)

    def _add(self, a: int, b: int) -> int:
        self.calls.append(("add", (a, b)))
        return a + b

    def _mul(self, a: int, b: int) -> int:
        self.calls.append(("mul", (a, b)))
        return a * b

    def _total(self, values: list[int]) -> int:
        self.calls.append(("total", (values,)))
        return sum(values)

    def _show(self, *args: Any) -> list[Any]:
        self.calls.append(("show", args))
        return [str(one) if isinstance(one, Exception) else one for one in args]

    def _check(self, value: Any, *more: Any) -> Any:
        self.calls.append(("check", (value, *more)))
        if any(value == one for one in self.broken):
            raise ValueError(f"{value} is broken")
        return value

    def _tell(self, what: str, error: TaskFailed) -> str:
        self.calls.append(("tell", (what, error)))
        return f"{what}: {type(error).__name__}: {error.message}"


@pytest.fixture
def shop(app: LiteQ) -> Shop:
    return Shop(app)


@pytest.fixture
def at_once(immediate: LiteQ) -> Shop:
    return Shop(immediate)


# ── what comes out ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_step_is_given_the_result_of_the_one_before_behind_its_own_arguments(at_once: Shop) -> None:
    result = at_once.app.enqueue(at_once.add.s(1, 2).then(at_once.mul, 10).then(at_once.show, "x", "y"))
    assert result.get(0) == ["x", "y", 30]
    assert at_once.calls == [("add", (1, 2)), ("mul", (10, 3)), ("show", ("x", "y", 30))]


@pytest.mark.parametrize("value", [None, (1, 2), {"a": 1}, [], ""])
def test_a_result_is_one_argument_whatever_it_is(at_once: Shop, value: Any) -> None:
    at_once.app.enqueue(at_once.check.s(value).then(at_once.show, "then"))
    assert at_once.calls[1] == ("show", ("then", value))


def test_a_step_need_not_take_the_result(at_once: Shop) -> None:
    result = at_once.app.enqueue(at_once.add.s(1, 2).then(at_once.mul.si(3, 4)).then(at_once.show))
    assert result.get(0) == [12]


def test_members_of_a_group_are_in_their_order_and_so_are_those_of_a_chord(at_once: Shop) -> None:
    members = [at_once.add.s(number, number).then(at_once.mul, 10) for number in range(5)]
    assert at_once.app.enqueue(group(members)).get(0) == [0, 20, 40, 60, 80]
    assert at_once.app.enqueue(chord(members, at_once.total.s())).get(0) == 200
    assert at_once.app.enqueue(group(members).then(at_once.total).then(at_once.add, 1)).get(0) == 201
    assert at_once.app.enqueue(chord(group(members), at_once.total)).get(0) == 200


def test_a_group_after_something_gives_each_member_its_result(at_once: Shop) -> None:
    workflow = at_once.add.s(1, 2).then(group([at_once.mul.s(10), at_once.show.s("x"), at_once.add.si(5, 5)]))  # type: ignore[list-item, arg-type]
    assert at_once.app.enqueue(workflow).get(0) == [30, ["x", 3], 10]
    assert at_once.app.enqueue(workflow.then(at_once.show)).get(0) == [[30, ["x", 3], 10]]


def test_a_group_in_a_group_is_a_list_in_the_list(at_once: Shop) -> None:
    inner = group([at_once.add.s(1, 1), group([at_once.add.s(2, 2)]), group([])])
    assert at_once.app.enqueue(group([inner, at_once.add.s(3, 3)]).then(at_once.show)).get(0) == [[[2, [4], []], 6]]


def test_an_empty_group_is_nothing_and_its_callback_is_given_nothing(at_once: Shop) -> None:
    assert at_once.app.enqueue(group([])).get(0) == []
    assert at_once.app.enqueue(group([])).progress() == (0, 0)
    assert at_once.app.enqueue(chord([], at_once.total)).get(0) == 0


def test_a_plain_signature_is_enqueued_as_ever(at_once: Shop) -> None:
    result = at_once.app.enqueue(at_once.add.s(1, 2))
    assert (result.get(0), len(result.workflow)) == (3, 1)


def test_a_workflow_can_be_enqueued_again_and_goes_on_unchanged(at_once: Shop) -> None:
    begin = at_once.add.s(1, 2)
    one, other = begin.then(at_once.mul, 2), begin.then(at_once.mul, 3)
    assert [at_once.app.enqueue(workflow).get(0) for workflow in (one, other, one, begin)] == [6, 9, 6, 3]


def test_coroutines_enqueue_workflows_too(at_once: Shop) -> None:
    async def work() -> int:
        return await (await at_once.app.aenqueue(at_once.add.s(1, 2).then(at_once.mul, 10)))

    assert asyncio.run(work()) == 30


# ── handles ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_step_has_an_id_at_once_and_can_be_found_from_elsewhere(shop: Shop) -> None:
    result = shop.app.enqueue(chord([shop.add.s(1, 1), shop.add.s(2, 2)], shop.total).then(shop.add, 1))
    assert [step.state for step in result.workflow] == ["ready", "ready", "blocked", "blocked"]
    assert [step.id for step in shop.app.result(result.id).workflow] == [step.id for step in result.workflow]
    assert result.workflow.progress() == (0, 4)
    run(shop.app, claim(shop.app, 1)[0])
    assert result.workflow.progress() == (1, 4)
    with pytest.raises(ResultTimeout):
        result.get(0)
    work(shop.app)
    assert [step.get(0) for step in result.workflow] == [2, 4, 6, 7]
    assert result.id == result.workflow[-1].id
    assert result == shop.app.result(result.id)


def test_revoking_the_result_revokes_all_that_has_not_ended(shop: Shop) -> None:
    result = shop.app.enqueue(shop.add.s(1, 1).then(shop.mul, 2).then(shop.mul, 3))
    run(shop.app, claim(shop.app)[0])
    assert shop.app.revoke(result)
    assert [step.state for step in result.workflow] == ["succeeded", "revoked", "revoked"]
    assert not result.revoke()
    with pytest.raises(TaskRevoked):
        result.get(0)


def test_revoking_one_step_ends_what_follows_it_and_nothing_else(shop: Shop) -> None:
    members = [shop.add.s(number, 0).then(shop.mul, 2) for number in range(3)]
    together = shop.app.enqueue(group(members))
    assert together.workflow[2].revoke()
    assert [step.state for step in together.workflow] == ["ready", "blocked", "revoked", "revoked", "ready", "blocked"]
    work(shop.app)
    assert [type(one) for one in together.get(0, return_exceptions=True)] == [int, TaskRevoked, int]


def test_a_group_is_revoked_with_all_that_leads_to_it_and_map_with_nothing_else(shop: Shop) -> None:
    first = shop.add(1, 1)
    mapped = shop.add.using(after=first).map([(1, 2), (3, 4)])
    assert mapped.revoke() == 2
    assert first.state == "ready"
    together = shop.app.enqueue(shop.add.s(1, 1).then(group([shop.mul.si(2, 2), shop.mul.si(3, 3)])))
    assert together.revoke() == 3
    assert shop.app.counts()[JobState.REVOKED] == 5


def test_a_running_step_is_told_when_the_whole_is_revoked(shop: Shop) -> None:
    result = shop.app.enqueue(shop.add.s(1, 1).then(shop.mul, 2))
    [running] = claim(shop.app)
    assert result.revoke()
    assert shop.app.is_revoked(running.id)
    run(shop.app, running)
    assert [step.state for step in result.workflow] == ["succeeded", "revoked"]


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_whoever_waits_for_the_last_step_is_told_at_once_which_one_failed(shop: Shop) -> None:
    shop.broken = {7}
    result = shop.app.enqueue(shop.check.s(7).then(shop.mul, 2).then(shop.show))
    work(shop.app)
    with pytest.raises(DependencyFailed) as caught:
        result.get(0)
    root = result.workflow[0].id
    assert str(caught.value) == (
        f"job {result.id} failed: DependencyFailed: not run, because job {root} (check) failed: ValueError: 7 is broken"
    )
    assert isinstance(result.error, DependencyFailed)
    assert len(shop.calls) == 1


def test_a_member_that_failed_leaves_its_error_in_its_place(shop: Shop) -> None:
    shop.broken = {1}
    result = shop.app.enqueue(group([shop.check.s(number) for number in range(3)]).then(shop.show))
    work(shop.app)
    [(_, ([zero, error, two],))] = shop.calls[3:]
    assert (zero, two, type(error), error.error_type, error.job_id) == (
        0,
        2,
        TaskFailed,
        "ValueError",
        result.workflow[1].id,
    )
    assert "1 is broken" in error.traceback


def test_a_chord_can_abort(shop: Shop) -> None:
    shop.broken = {0}
    result = shop.app.enqueue(chord([shop.check.s(number) for number in range(3)], shop.show, on_failure="abort"))
    run(shop.app, claim(shop.app, 1)[0])
    assert result.state == "failed"
    assert work(shop.app) == 2, "the other members run all the same"


def test_a_step_can_run_whatever_became_of_the_one_before(shop: Shop) -> None:
    shop.broken = {7}
    result = shop.app.enqueue(shop.check.s(7).then(shop.show.using(on_failure="run")))
    work(shop.app)
    assert result.get(0) == [f"job {result.workflow[0].id} failed: ValueError: 7 is broken"]


def test_an_error_handler_is_given_the_error_and_otherwise_nobody_hears_of_it(shop: Shop) -> None:
    heard: list[str] = []
    shop.app.signal(S.REVOKED)(lambda signal, job, error: heard.append(job.task))
    shop.broken = {7}
    good = shop.app.enqueue(shop.check.s(1).error(shop.tell, "good").then(shop.show))
    bad = shop.app.enqueue(shop.check.s(7).error(shop.tell, "bad"))
    late = shop.app.enqueue(shop.check.s(7).then(shop.show).error(shop.tell, "late").error(shop.show))
    work(shop.app)
    assert good.get(0) == [1]
    assert (bad.state, late.state, len(late.workflow)) == ("failed", "failed", 2)
    told = [str(job) for job in (shop.app.result(one.id).get(0) for one in shop.app.jobs("succeeded", task="tell"))]
    assert told[0] == "bad: TaskFailed: 7 is broken"
    assert told[1].startswith("late: DependencyFailed: not run, because job ")
    assert shop.app.jobs("revoked")[0].reason == f"not needed: job {good.workflow[0].id} (check) succeeded"
    assert heard == []


def test_handlers_of_a_group_belong_to_each_member(shop: Shop) -> None:
    shop.broken = {0, 2}
    shop.app.enqueue(group([shop.check.s(number) for number in range(3)]).error(shop.tell, "x"))
    work(shop.app)
    assert [job.state for job in shop.app.jobs(task="tell")] == ["succeeded", "revoked", "succeeded"]


def test_a_failed_middle_step_that_is_requeued_lets_the_rest_go_on(shop: Shop) -> None:
    shop.broken = {3}
    result = shop.app.enqueue(shop.add.s(1, 2).then(shop.check).then(shop.mul, 10).then(shop.show))
    work(shop.app)
    assert [step.state for step in result.workflow] == ["succeeded", "failed", "failed", "failed"]
    shop.broken = set()
    assert result.workflow[1].requeue()
    assert [step.state for step in result.workflow] == ["succeeded", "ready", "blocked", "blocked"]
    work(shop.app)
    assert result.get(0) == [30]
    assert [call for call, _ in shop.calls] == ["add", "check", "check", "mul", "show"]


def test_all_that_failed_can_be_requeued_by_one_command(shop: Shop) -> None:
    shop.broken = {7}
    result = shop.app.enqueue(shop.check.s(7).then(shop.show).then(shop.show))
    work(shop.app)
    shop.broken = set()
    assert shop.app.requeue_all() == 3
    work(shop.app)
    assert result.get(0) == [[7]]


def test_signals_tell_of_each_job_that_ended_because_of_another(shop: Shop) -> None:
    heard: list[tuple[str, str, str]] = []
    shop.app.signal(S.ERROR, S.REVOKED)(
        lambda signal, job, error: heard.append((signal, job.task, type(error).__name__))
    )
    shop.broken = {7}
    shop.app.enqueue(shop.check.s(7).then(shop.show).then(shop.mul, 2))
    work(shop.app)
    assert heard == [
        (S.ERROR, "check", "TaskFailed"),
        (S.ERROR, "show", "DependencyFailed"),
        (S.ERROR, "mul", "DependencyFailed"),
    ]
    heard.clear()
    shop.app.enqueue(shop.add.s(1, 1).then(shop.show)).workflow[0].revoke()
    assert heard == [(S.REVOKED, "add", "NoneType"), (S.REVOKED, "show", "NoneType")]


def test_the_log_says_once_for_each_job_why_it_was_not_run(shop: Shop, log: pytest.LogCaptureFixture) -> None:
    shop.broken = {7}
    result = shop.app.enqueue(shop.check.s(7).then(shop.show))
    work(shop.app)
    told = [(record.levelname, record.message.split(" ")[0]) for record in log.records if record.levelname != "INFO"]
    assert told == [("ERROR", "gave"), ("WARNING", "not")]
    assert f"not run job={result.id} task=show state=failed reason=not run, because" in log.text


@pytest.mark.parametrize("directive", [Cancel("not today"), ValueError("x")])
def test_what_cancels_itself_is_revoked_downwards(app: LiteQ, directive: Exception) -> None:
    @app.task
    def give_up() -> None:
        raise directive

    result = app.enqueue(give_up.s().then(give_up.si()))
    work(app)
    assert result.state == ("revoked" if isinstance(directive, Cancel) else "failed")


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_delay_and_expiry_of_a_step_count_from_when_its_turn_comes(shop: Shop, clock: ManualClock) -> None:
    result = shop.app.enqueue(shop.add.s(1, 2).then(shop.mul.using(delay=60, expires=90, queue="q", priority=3).s(10)))  # type: ignore[call-overload]
    clock.sleep(1000)
    work(shop.app)
    job = result.job()
    assert (job.state, job.queue, job.priority) == ("scheduled", "q", 3)
    assert job.due == clock.now() + 60
    assert job.expires == clock.now() + 90
    clock.sleep(61)
    work(shop.app)
    assert result.get(0) == 30


def test_immediate_mode_sleeps_for_a_delayed_step(at_once: Shop, clock: ManualClock) -> None:
    begun = clock.now()
    result = at_once.app.enqueue(at_once.add.using(delay=30).s(1, 2).then(at_once.mul.using(delay=60).s(10)))  # type: ignore[call-overload]
    assert result.get() == 30
    assert clock.now() == begun + 90


def test_a_named_workflow_is_stored_once(shop: Shop) -> None:
    workflow = shop.add.using(id="a").s(1, 2).then(shop.mul.using(id="b").s(10))  # type: ignore[call-overload]
    one, other = shop.app.enqueue(workflow), shop.app.enqueue(workflow)
    assert one == other
    assert shop.app.counts()[JobState.BLOCKED] == 1


# ── after ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_waits_for_handles_ids_and_groups(shop: Shop) -> None:
    first, second, more = shop.add(1, 1), shop.add(2, 2), shop.add.map([(3, 3), (4, 4)])
    late = shop.mul.using(after=[first, second.id, more])(5, 6)
    assert late.job().reason == f"waits until job {first.id} and 3 others have ended"
    for job in claim(shop.app):
        assert late.state == "blocked"
        run(shop.app, job)
    work(shop.app)
    assert late.get(0) == 30
    assert shop.mul.using(after=first)(1, 1).state == "ready", "what has ended counts at once"


@pytest.mark.parametrize(("on_failure", "state"), [("fail", "failed"), ("run", "succeeded")])
def test_a_prerequisite_that_fails_ends_the_job_or_does_not(shop: Shop, on_failure: Any, state: str) -> None:
    shop.broken = {7}
    bad = shop.check(7)
    early = shop.add.using(after=[bad], on_failure=on_failure)(1, 1)
    work(shop.app)
    late = shop.add.using(after=[bad], on_failure=on_failure)(1, 1)
    work(shop.app)
    assert (early.state, late.state) == (state, state)


def test_a_batch_may_wait_for_itself(shop: Shop) -> None:
    with shop.app.batch():
        first = shop.add(1, 1)
        with shop.app.batch():
            second = shop.mul.using(after=[first])(2, 2)
            flow = shop.app.enqueue(shop.add.s(1, 2).then(shop.mul, 2))
        last = shop.show.using(after=[first, second, flow])()
    assert [one.state for one in (first, second, flow, last)] == ["ready", "blocked", "blocked", "blocked"]
    assert last.job().reason == f"waits until job {first.id} and 2 others have ended"
    work(shop.app)
    assert last.get(0) == []


def test_a_batch_that_is_dropped_leaves_nobody_to_wait_for(shop: Shop) -> None:
    with pytest.raises(RuntimeError), shop.app.batch():
        lost = shop.add(1, 1)
        raise RuntimeError
    with pytest.raises(ConfigurationError, match="not stored"):
        shop.add.using(after=[lost])(1, 1)
    assert shop.app.jobs() == []


def test_steps_of_a_workflow_may_wait_for_jobs_that_exist(shop: Shop) -> None:
    stock = shop.add(5, 5)
    result = shop.app.enqueue(shop.add.s(1, 2).then(shop.mul.using(after=stock).s(10)))  # type: ignore[call-overload]
    assert result.revoke()
    assert stock.state == "ready", "it is no part of the workflow"


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _wrong_uses(shop: Shop, elsewhere: Shop) -> Iterator[tuple[Callable[[], object], type[Exception], str]]:
    app, add, show = shop.app, shop.add, shop.show
    gone = add(1, 1)
    gone.revoke()
    yield lambda: app.enqueue(add.s(1).then(add, 1)), TypeError, "'b'"  # type: ignore[call-arg]
    yield lambda: add.s(1, 2, 3), TypeError, "too many"  # type: ignore[call-overload]
    yield lambda: add.s(1, c=2), TypeError, "'c'"  # type: ignore[call-overload]
    yield lambda: app.enqueue(add.s(1, 2).then(add, 1, 2)), TypeError, r"too many.*add\.si\(\.\.\.\) takes none"
    yield lambda: add.s(1, 2).then(add.s(1, 2), 3), TypeError, "has its arguments already"
    yield lambda: add.s(1, 2).then(print), TypeError, "not builtin_function_or_method"  # type: ignore[call-overload]
    yield lambda: add.s(1, 2).error("x"), TypeError, "not str 'x'"
    yield lambda: group(add.s(1, 2)), TypeError, "a list of signatures"  # type: ignore[arg-type]
    yield lambda: group([add.s(1, 2), add]), TypeError, "not Task"  # type: ignore[list-item]
    yield lambda: chord([add.s(1, 2)], group([show.s()])), TypeError, "is one call"  # type: ignore[arg-type]
    yield lambda: chord([], show, on_failure="stop"), ConfigurationError, "'collect' or 'abort', not 'stop'"  # type: ignore[arg-type]
    yield lambda: app.enqueue(add), TypeError, "app.enqueue takes a Signature"  # type: ignore[call-overload]
    yield lambda: app.enqueue(add.s(1, 2).then(elsewhere.add, 1)), ConfigurationError, "belongs to another app"
    yield lambda: app.enqueue(add.s(1, 2).then(show, object())), SerializationError, "show was not enqueued"
    yield lambda: add.using(after=[7])(1, 1), TypeError, "not int 7"
    yield lambda: add.using(after=[b"x"])(1, 1), TypeError, "not bytes"
    yield lambda: add.using(after=[], on_failure="x")(1, 1), ConfigurationError, "'fail' or 'run'"  # type: ignore[typeddict-item]
    yield lambda: add.using(after=["99-0123456789"])(1, 1), JobNotFound, "99-0123456789"
    yield lambda: add.using(after=[elsewhere.add(1, 1)])(1, 1), ConfigurationError, "can only wait for others beside it"
    yield lambda: add.using(after=[gone])(1, 1), ConfigurationError, "is revoked and will not run"
    yield lambda: add.using(id="me", after=["me"])(1, 1), JobNotFound, "me"
    yield lambda: app.schedules.add("s", add.s(1, 2).error(show), "@daily"), TypeError, "single jobs"
    yield (
        lambda: app.schedules.add("s", add.using(after=[gone.id]), "@daily", args=(1, 2)),
        TypeError,
        "after is not for",
    )


@pytest.mark.parametrize("number", range(23))
def test_a_mistake_is_told_at_the_call_and_stores_nothing(shop: Shop, number: int) -> None:
    elsewhere = Shop(LiteQ(":memory:"))
    uses = list(_wrong_uses(shop, elsewhere))
    assert len(uses) == 23
    call, kind, words = uses[number]
    before = len(shop.app.jobs())
    with pytest.raises(kind, match=words):
        call()
    assert len(shop.app.jobs()) == before
    elsewhere.app.close()


def test_a_job_cannot_wait_for_itself(shop: Shop) -> None:
    shop.add.using(id="me")(1, 1)
    with pytest.raises(ConfigurationError, match="job me would wait for itself"):
        shop.add.using(id="me", after=["me"])(1, 1)


def test_two_apps_on_one_file_may_wait_for_each_other(directory: Path) -> None:
    one, other = LiteQ(directory / "queue.db"), LiteQ(directory / "queue.db")
    late = Shop(other).add.using(after=[Shop(one).add(1, 1)])(2, 2)
    assert late.state == "blocked"
    one.close()
    other.close()


def test_groups_that_would_wait_for_each_other_a_million_times_are_refused(shop: Shop) -> None:
    many = group([shop.show.si()] * 1001)
    with pytest.raises(ConfigurationError, match="1,000,000 pairs"):
        shop.app.enqueue(many.then(many))
    assert shop.app.jobs() == []


# ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────────
# A workflow is drawn as a tree; the model says what each part returns, or that it fails. Every job of the real one then
# ends as the model says, whatever the order in which they run.

Tree = tuple[Any, ...]
trees = st.recursive(
    st.tuples(st.just("call"), st.booleans(), st.booleans(), st.sampled_from(["", "run", "fail"])),
    lambda inner: st.one_of(
        st.tuples(st.just("pipe"), inner, inner),
        st.tuples(st.just("group"), st.lists(inner, max_size=3).map(tuple)),
        st.tuples(st.just("chord"), st.lists(inner, max_size=3).map(tuple), st.sampled_from(["collect", "abort"])),
    ),
    max_leaves=8,
)
FAILED = "failed"


class Model:
    """Builds the real workflow of a tree, and says what becomes of it."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._names = 0
        self.values: dict[int, Any] = {}  # by the number that each call is given

    def build(self, tree: Tree) -> tuple[Any, Callable[[Any, str | None], Any]]:
        """The workflow, and a function from (what it is given, rule) to what it returns."""
        kind, *rest = tree
        if kind == "call":
            return self._call(*rest)
        if kind == "pipe":
            (first, first_model), (second, second_model) = self.build(rest[0]), self.build(rest[1])
            return first.then(second), lambda given, rule: second_model(first_model(given, rule), None)
        members = [self.build(one) for one in rest[0]]
        workflow = group([one for one, _ in members])

        def together(given: Any, rule: str | None) -> list[Any]:
            return [model(given, rule) for _, model in members]

        if kind == "group":
            return workflow, together
        callback, callback_model = self._call(False, True, "")
        return chord(workflow, callback, rest[1]), lambda given, rule: callback_model(together(given, rule), rest[1])

    def _call(self, broken: bool, takes: bool, on_failure: str) -> tuple[Any, Callable[[Any, str | None], Any]]:
        number, self._names = self._names, self._names + 1
        if broken:
            self._shop.broken.add(number)
        task = self._shop.check.using(on_failure=on_failure) if on_failure else self._shop.check  # type: ignore[typeddict-item]

        def model(given: Any, rule: str | None) -> Any:
            default = "collect" if isinstance(given, list) else "fail"
            goes_on = (rule or on_failure or default) in ("collect", "run") or not _has_failed(given)
            self.values[number] = FAILED if broken or not goes_on else number
            return self.values[number]

        return (task.s(number) if takes else task.si(number)), model


def _has_failed(given: Any) -> bool:
    return any(map(_has_failed, given)) if isinstance(given, list) else given == FAILED


@settings(max_examples=150)
@given(tree=trees, draw=st.randoms(use_true_random=False))
def test_every_workflow_ends_as_the_model_says_in_whatever_order_it_runs(tree: Tree, draw: Any) -> None:
    shop = Shop(LiteQ(":memory:", clock=ManualClock()))
    model = Model(shop)
    workflow, outcome = model.build(tree)
    result = shop.app.enqueue(workflow)
    expected = outcome(None, None)
    running: list[Any] = []
    while True:
        running += claim(shop.app, draw.randrange(1, 4))
        if not running:
            break
        run(shop.app, running.pop(draw.randrange(len(running))))
    ran = {number: FAILED if number in shop.broken else number for _, (number, *_) in shop.calls}
    assert {number: value for number, value in model.values.items() if value != FAILED} == {
        number: value for number, value in ran.items() if value != FAILED
    }
    flat = list(_flat(expected))
    got = result.get(0, return_exceptions=True) if isinstance(expected, list) else [_outcome(result)]
    assert [FAILED if isinstance(one, TaskFailed) else one for one in got] == flat
    counts = shop.app.counts()
    assert counts[JobState.SUCCEEDED] + counts[JobState.FAILED] == len(model.values)
    shop.app.close()


def _outcome(result: Any) -> Any:
    try:
        return result.get(0)
    except TaskFailed as error:
        return error


def _flat(values: Any) -> Iterator[Any]:
    if isinstance(values, list):
        for one in values:
            yield from _flat(one)
    else:
        yield values


# ── why ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_why_names_the_jobs_that_are_missing(shop: Shop) -> None:
    first, second = shop.add(1, 1), shop.mul(2, 2)
    late = shop.add.using(after=[first, second])(3, 3)
    [cause, *_] = shop.app.why(late.id).causes
    assert cause.code == "jobs"
    assert cause.text == (
        f"it waits for the end of 2 jobs: {first.id} of add, which is ready, {second.id} of mul, which is ready"
    )
    run(shop.app, claim(shop.app, 1)[0])
    assert shop.app.why(late.id).causes[0].text == f"it waits for the end of job {second.id} of mul, which is ready"


def test_a_job_that_waits_for_one_that_depends_on_it_is_told(on_file: LiteQ) -> None:
    @on_file.task
    def child() -> None:
        return None

    @on_file.task(context=True)
    def parent(*, task: Any) -> object:
        return child.using(after=[task.id, child()])().get()

    with on_file.run_in_background(workers=3), pytest.raises(TaskFailed, match=r"WouldDeadlock: .*which cannot start"):
        parent().get(timeout=30)
    assert on_file.jobs(state="blocked") == []  # its end was the child's end, too


def test_a_plan_that_was_revoked_as_a_whole_comes_back_step_by_step(shop: Shop) -> None:
    result = shop.app.enqueue(shop.add.s(1, 2).then(shop.add, 1).then(shop.add, 2))
    assert result.revoke()
    assert [step.state for step in result.workflow] == ["revoked"] * 3
    for step in result.workflow:
        assert step.restore()
    assert [step.state for step in result.workflow] == ["ready", "blocked", "blocked"]
    work(shop.app)
    assert result.get(0) == 6
