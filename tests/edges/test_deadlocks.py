"""Jobs that wait for jobs: told within a second where that cannot come to a good end, and never where it can."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import PATIENCE, Eventually, Program, Shop, has_entered, release, shop_in

from liteq import ResultGroup, TaskFailed

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the tests' tasks wait at named pipes")

#: Seconds; a second is promised, and the machine may be busy.
SOON = 30.0

FAMILY = """
import asyncio, contextlib, pathlib
from liteq import LiteQ, WouldDeadlock, chord

app = LiteQ("shop.db", durability="normal")

@app.task
def child(value=5):
    return value

@app.task(queue="other")
def distant(value=5):
    return value

@app.task
def hold(gate):
    pathlib.Path(f"{gate}.entered").touch()
    with open(gate):
        return "released"

@app.task
def parent(timeout=None):
    return child().get(timeout)

@app.task
def holding_parent(gate):
    return hold(gate).get()

@app.task
def distant_parent():
    return distant().get()

@app.task
def grandparent():
    return parent().get()

@app.task
def parent_of_many(how):
    children = child.map([1, 2, 3])
    if how == "get":
        return children.get()
    return [result.get() for result in children.as_completed()]

@app.task
async def async_parent(many=False):
    return await child.map([1, 2]) if many else await child()

@app.task
def stubborn_parent(gate):
    with contextlib.suppress(WouldDeadlock):
        child().get()
    pathlib.Path(f"{gate}.entered").touch()
    with open(gate):
        return "went on"

@app.task
def collect(*values):
    return 5

@app.task(max_running=1)
def limited(how):
    if how == "end":
        return 5
    if how == "pipeline":
        return app.enqueue(limited.s("end").then(collect)).get()
    first, second = (limited, child) if how == "chord, first" else (child, limited)
    return app.enqueue(chord([first.s("end"), second.s("end")], collect.s())).get()

@app.task
@app.lock_task("shared", wait=True)
def locked(how, *before):
    return app.enqueue(child.s().then(locked, "end")).get() if how == "pipeline" else 5

@app.task(context=True)
def awaits_what_follows_it(*, task):
    first = child.using(after=[task.id])()
    return child.using(after=[first])().get()

@app.task
@app.lock_task("shared", wait=True)
def outer():
    return middle().get()

@app.task
def middle():
    return locked("end").get()

@app.task(max_running=2)
def twice(gate):
    if gate == "end":
        return 5
    if gate:
        return hold(gate).get()
    return app.enqueue(twice.s("end").then(collect)).get()
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with shop_in(tmp_path) as shop:
        shop.module("shop", FAMILY)
        yield shop


def consume(shop: Shop, eventually: Eventually, kind: str, workers: int, *more: str) -> Program:
    consumer = shop.consumer("-k", kind, "-w", str(workers), *more)
    eventually(consumer.says("consumer started"))
    shop.task("child")().get(PATIENCE)  # its workers are up: what follows is not about how long that takes
    return consumer


def let_a_real_one_be_told(directory: Path, eventually: Eventually, times: int = 2) -> None:
    """Return when somebody has been told so often, one after another, in a shop of its own: who is wrongly suspected
    would have been told meanwhile, too."""
    directory.mkdir()
    with shop_in(directory) as shop:
        shop.module("shop", FAMILY)
        consume(shop, eventually, "thread", 1)
        for _ in range(times):
            assert ends([shop.task("parent")()]) == ["WouldDeadlock"]


def ends(results: list[Any]) -> list[str]:
    """How they have ended: with a value, or with the name of an error."""
    found = []
    for result in results:
        try:
            found.append(str(result.get(PATIENCE)))
        except TaskFailed as error:
            found.append(error.error_type)
    return found


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_parent_in_the_only_worker_is_told_within_a_second(shop: Shop, eventually: Eventually, kind: str) -> None:
    consume(shop, eventually, kind, 1)
    result = shop.task("parent")()
    with pytest.raises(TaskFailed) as caught:
        result.get(PATIENCE)
    assert caught.value.error_type == "WouldDeadlock"
    assert f"job {result.id} waits for job " in caught.value.message
    job = result.job()
    assert job.finished - job.started < SOON
    [child] = [one for one in shop.app.jobs() if one.id in caught.value.message and one.id != job.id]
    assert shop.app.result(child.id).get(PATIENCE) == 5  # it was kept, and ran as soon as there was room
    assert shop.app.storage.marks("wait:") == {}


@pytest.mark.parametrize("kind", ["thread", pytest.param("process", marks=pytest.mark.slow)])
def test_neither_a_timeout_nor_many_children_nor_coroutines_hide_it(
    shop: Shop, eventually: Eventually, kind: str
) -> None:
    consume(shop, eventually, kind, 1)
    calls = [("parent", 3600), ("parent_of_many", "get"), ("parent_of_many", "as_completed")]
    results = [
        shop.task(task)(argument) for task, argument in [*calls, ("async_parent", False), ("async_parent", True)]
    ]
    for result in results:
        assert ends([result]) == ["WouldDeadlock"]
        job = result.job()
        assert job.finished - job.started < SOON


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_of_parents_that_hold_each_other_up_only_so_many_are_told_as_must_be(
    shop: Shop, eventually: Eventually, kind: str
) -> None:
    consume(shop, eventually, kind, 2)
    began = time.monotonic()
    assert ends([*shop.task("parent").map([None, None])]) == ["5", "WouldDeadlock"]
    # The one that would give up first is told.
    assert ends([*shop.task("parent").map([3600, 7200])]) == ["WouldDeadlock", "5"]
    assert time.monotonic() - began < 2 * SOON


def test_the_innermost_of_nested_ones_is_told(shop: Shop, eventually: Eventually) -> None:
    consume(shop, eventually, "thread", 2)
    result = shop.task("grandparent")()
    assert ends([result]) == ["TaskFailed"]
    assert "WouldDeadlock" in str(result.error)


@pytest.mark.parametrize("kind", ["thread", "process"])
@pytest.mark.parametrize(
    ("call", "held"),
    [
        (("limited", "pipeline"), "limit 'shop.limited'"),
        (("limited", "chord, first"), "limit 'shop.limited'"),
        (("limited", "chord, second"), "limit 'shop.limited'"),
        (("locked", "pipeline"), "lock 'shared'"),
        (("awaits_what_follows_it",), "after the end of this very job"),
    ],
)
def test_one_that_waits_for_a_plan_that_cannot_go_on_without_it_is_told_however_many_workers_there_are(
    shop: Shop, eventually: Eventually, kind: str, call: tuple[str, ...], held: str
) -> None:
    consume(shop, eventually, kind, 4)
    task, *args = call
    result = shop.task(task)(*args)
    assert ends([result]) == ["WouldDeadlock"]
    job = result.job()
    assert held in job.error.message
    assert "More workers would not help" in job.error.message
    assert job.finished - job.started < SOON
    assert shop.app.storage.marks("wait:") == {}


def test_one_that_waits_for_another_one_which_needs_its_lock_further_down_is_seen_through(
    shop: Shop, eventually: Eventually
) -> None:
    consume(shop, eventually, "process", 2, "-q", "default")
    consume(shop, eventually, "process", 2, "-q", "default")
    result = shop.task("outer")()
    assert ends([result]) == ["TaskFailed"]  # the one in the middle was told
    assert "WouldDeadlock" in str(result.error)
    assert "lock 'shared'" in str(result.error)


def test_a_slot_that_will_be_free_is_waited_for_behind_a_plan_too(
    shop: Shop, eventually: Eventually, tmp_path: Path
) -> None:
    consume(shop, eventually, "thread", 6)
    gate = shop.gate()
    other = shop.task("twice")(str(gate))
    eventually(has_entered(gate))  # it waits itself, but for one that runs
    result = shop.task("twice")("")
    eventually(lambda: result.state == "running")
    let_a_real_one_be_told(tmp_path / "real", eventually)
    assert result.state == "running"
    release(gate)
    assert ends([other, result]) == ["released", "5"]


def test_a_pool_with_room_is_never_accused(shop: Shop, eventually: Eventually, tmp_path: Path) -> None:
    consume(shop, eventually, "process", 2)
    gate = shop.gate()
    parent = shop.task("holding_parent")(str(gate))
    eventually(has_entered(gate))  # the child runs, and both workers are taken: one by the parent
    late = shop.task("child")()
    let_a_real_one_be_told(tmp_path / "real", eventually)
    release(gate)
    assert ends([parent, late]) == ["released", "5"]


def test_a_worker_that_is_busy_with_something_else_will_be_free(
    shop: Shop, eventually: Eventually, tmp_path: Path
) -> None:
    consume(shop, eventually, "thread", 2)
    gate = shop.gate()
    busy = shop.task("hold")(str(gate))
    eventually(has_entered(gate))
    parent = shop.task("parent")()
    eventually(lambda: parent.state == "running")
    let_a_real_one_be_told(tmp_path / "real", eventually)
    assert parent.state == "running"
    release(gate)
    assert ends([busy, parent]) == ["released", "5"]


def test_another_consumer_with_room_runs_the_child(shop: Shop, eventually: Eventually) -> None:
    consume(shop, eventually, "process", 1)
    consume(shop, eventually, "thread", 1)
    assert ends([shop.task("parent")()]) == ["5"]


def test_consumers_of_other_queues_do_not_count_and_those_of_the_childs_do(shop: Shop, eventually: Eventually) -> None:
    consume(shop, eventually, "process", 1, "-q", "default")
    waits = shop.task("distant_parent")()
    eventually(lambda: waits.state == "running")
    other = shop.consumer("-q", "other")
    assert ends([waits]) == ["5"]
    eventually(other.says("consumer started"))
    assert ends([shop.task("parent")()]) == ["WouldDeadlock"]


def test_a_child_that_nobody_can_start_is_waited_for_and_not_in_silence(shop: Shop, eventually: Eventually) -> None:
    consumer = consume(shop, eventually, "thread", 1, "-q", "default")
    waits = shop.task("distant_parent")()
    eventually(consumer.says("no living consumer takes jobs from its queue 'other'"))
    assert waits.state == "running"
    assert shop.run("-m", "liteq.cli.consumer", "shop.app", "--burst", "-q", "other").returncode == 0
    assert ends([waits]) == ["5"]


def test_two_pools_that_wait_for_each_other_are_seen_through(shop: Shop, eventually: Eventually) -> None:
    shop.module("shop", FAMILY + "\n@app.task(queue='other')\ndef back():\n    return child().get()\n")
    first = consume(shop, eventually, "process", 1, "-q", "default")
    second = shop.consumer("-q", "other")
    eventually(second.says("consumer started"))
    with shop.app.batch():
        pair = [shop.task("distant_parent")(), shop.task("back").using(queue="other")()]
    assert "WouldDeadlock" in ends(pair)
    assert first.process.poll() is None


def test_one_that_goes_on_after_being_told_is_not_taken_for_one_that_waits(
    shop: Shop, eventually: Eventually, tmp_path: Path
) -> None:
    consume(shop, eventually, "thread", 2)
    gate = shop.gate()
    with shop.app.batch():
        parent, stubborn = shop.task("parent")(), shop.task("stubborn_parent")(str(gate))
    eventually(has_entered(gate))  # it was told, and does something else now
    let_a_real_one_be_told(tmp_path / "real", eventually)
    assert parent.state == "running"
    release(gate)
    assert ends([stubborn, parent]) == ["went on", "5"]


def test_a_finished_child_is_never_in_anybodys_way(shop: Shop, eventually: Eventually) -> None:
    shop.module("shop", FAMILY + "\n@app.task\ndef reads(id):\n    return app.result(id).get()\n")
    consume(shop, eventually, "thread", 1)
    done = shop.task("child")(7)
    done.get(PATIENCE)
    assert ends([shop.task("reads")(done.id)]) == ["7"]


def test_who_waits_outside_of_any_job_is_never_told(shop: Shop, eventually: Eventually) -> None:
    consume(shop, eventually, "thread", 1)
    gate = shop.gate()
    held = shop.task("hold")(str(gate))
    eventually(has_entered(gate))
    group = ResultGroup([shop.task("child")() for _ in range(2)])
    assert not any(result.is_ready() for result in group)
    release(gate)
    assert group.get(PATIENCE) == [5, 5]
    assert held.get(PATIENCE) == "released"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["thread", "process"])
def test_more_parents_than_workers_all_come_to_an_end(shop: Shop, eventually: Eventually, kind: str) -> None:
    consume(shop, eventually, kind, 2)
    outcomes = ends([shop.task("parent")() for _ in range(8)])
    assert set(outcomes) <= {"5", "WouldDeadlock"}
    assert "5" in outcomes
    eventually(lambda: shop.app.storage.marks("wait:") == {})
