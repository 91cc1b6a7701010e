"""Which waiting jobs are to give up: the rule alone, on scenes that are drawn up here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liteq import JobState, LiteQ, MemoryStorage
from liteq.deadlock import WAIT_MARK, Scene, Wait, drop_stale
from liteq.storage.base import Owner, Standing

NOW = 1000.0


def consumer(number: int, workers: int = 1, *, queues: list[str] | None = None, alive: bool = True) -> Owner:
    return Owner(number, {"workers": workers, "queues": queues}, alive)


def running(seq: int, owner: int = 1, claim: int = 1) -> Standing:
    return Standing(seq, JobState.RUNNING, "default", None, claim, owner, None)


def waiting(seq: int, queue: str = "default", state: JobState = JobState.READY, **fields: object) -> Standing:
    values = {"seq": seq, "state": state, "queue": queue, "due": None, "claim": 0, "owner": None, "reason": None}
    return Standing(**(values | fields))  # type: ignore[arg-type]


def doomed(
    waits: Mapping[int, Iterable[int]],
    jobs: Iterable[Standing],
    owners: Iterable[Owner] = (consumer(1),),
    *,
    until: Mapping[int, float] | None = None,
    paused: Iterable[str] = (),
) -> set[int]:
    limits = until or {}
    given = {seq: Wait(seq, 1, tuple(children), limits.get(seq, math.inf)) for seq, children in waits.items()}
    return set(Scene(given, {job.seq: job for job in jobs}, owners, frozenset(paused), NOW).doomed())


def test_one_that_waits_for_a_job_behind_it_is_doomed() -> None:
    assert doomed({1: [2]}, [running(1), waiting(2)]) == {1}


@pytest.mark.parametrize(
    ("jobs", "owners"),
    [
        ([running(1), waiting(2)], [consumer(1, 2)]),  # a worker is free
        ([running(1), running(3), waiting(2)], [consumer(1, 2)]),  # one will be
        ([running(1), waiting(2)], [consumer(1), consumer(2)]),  # another consumer is free
        ([running(1), running(3, 2), waiting(2)], [consumer(1), consumer(2)]),  # or will be
        ([running(1), running(2)], [consumer(1, 2)]),  # what it waits for runs
        ([running(1)], [consumer(1)]),  # … or has ended
        ([running(1), waiting(2, state=JobState.SCHEDULED, due=NOW + 1)], [consumer(1)]),  # … or is not due
        ([running(1), waiting(2, "other")], [consumer(1, queues=["default"])]),  # a consumer may come
        ([running(1, claim=2), waiting(2)], [consumer(1)]),  # it was written of an earlier attempt
        ([waiting(1), waiting(2)], [consumer(1)]),  # it does not run any more
        ([running(1), waiting(2)], [consumer(1, alive=False)]),  # its consumer is dead, and it will run again
        ([running(1), waiting(2)], [Owner(1, {}, True)]),  # who knows how many workers that one has
        ([running(1), waiting(2, state=JobState.BLOCKED, reason="unknown task: x")], [consumer(1)]),
        ([running(1), waiting(2, state=JobState.BLOCKED, reason="event: paid")], [consumer(1)]),
    ],
)
def test_one_that_may_get_on_is_left_alone(jobs: list[Standing], owners: list[Owner]) -> None:
    assert doomed({1: [2]}, jobs, owners) == set()


AT_A_GATE = {"state": JobState.BLOCKED, "reason": "waits for limit t"}


@pytest.mark.parametrize(
    ("waits", "holders", "expected"),
    [
        ({1: [2]}, {1}, {1}),  # it holds the slot itself
        ({1: [2]}, {1, 3}, set()),  # another one will be free
        ({1: [2], 3: [2]}, {1, 3}, {3}),  # no, it waits too
        ({1: [2], 3: [4]}, {3}, set()),  # the one that holds it waits for a job that runs
        ({1: [2]}, {9}, set()),  # somebody that does not wait
    ],
)
def test_one_that_waits_at_a_gate_which_only_waiting_jobs_hold_is_doomed(
    waits: dict[int, list[int]], holders: set[int], expected: set[int]
) -> None:
    jobs = [running(1), running(3), running(4), running(9), waiting(2, **AT_A_GATE)]
    given = {seq: Wait(seq, 1, tuple(children), math.inf) for seq, children in waits.items()}
    standing = {job.seq: job for job in jobs}
    held = {"waits for limit t": frozenset(holders)}
    assert set(Scene(given, standing, (consumer(1, 9),), frozenset(), NOW, held).doomed()) == expected


def test_a_process_that_only_took_a_lock_is_no_consumer() -> None:
    locker = Owner(2, {"kind": "process"}, True)
    assert doomed({1: [2]}, [running(1), waiting(2)], [consumer(1), locker]) == {1}


def test_a_paused_queue_is_somebodys_decision() -> None:
    assert doomed({1: [2]}, [running(1), waiting(2)], paused=["default"]) == set()
    assert doomed({1: [2]}, [running(1), waiting(2)], paused=["other"]) == {1}


@pytest.mark.parametrize("state", [JobState.READY, JobState.SCHEDULED])
def test_a_job_that_has_become_due_counts_as_ready(state: JobState) -> None:
    assert doomed({1: [2]}, [running(1), waiting(2, state=state, due=NOW)]) == {1}


def test_a_job_blocked_by_others_is_hopeless_only_if_nobody_at_all_has_a_worker_left() -> None:
    jobs = [running(1), waiting(2, state=JobState.BLOCKED, reason="waits for others")]
    assert doomed({1: [2]}, jobs) == {1}
    assert doomed({1: [2]}, jobs, [consumer(1), consumer(2, queues=["other"])]) == set()


def test_consumers_of_other_queues_do_not_help() -> None:
    owners = [consumer(1, queues=["default"]), consumer(2, queues=["other"])]
    assert doomed({1: [2]}, [running(1), waiting(2)], owners) == {1}


def test_among_equals_the_newest_gives_up() -> None:
    jobs = [running(1), running(2), waiting(3), waiting(4)]
    assert doomed({1: [3], 2: [4]}, jobs, [consumer(1, 2)]) == {2}


def test_the_one_that_would_give_up_first_does() -> None:
    jobs = [running(1), running(2), waiting(3), waiting(4)]
    assert doomed({1: [3], 2: [4]}, jobs, [consumer(1, 2)], until={1: NOW + 5, 2: NOW + 9}) == {1}
    assert doomed({1: [3], 2: [4]}, jobs, [consumer(1, 2)], until={1: NOW - 1, 2: NOW + 9}) == set()  # it is about to


def test_of_nested_ones_the_innermost_gives_up() -> None:
    assert doomed({1: [2], 2: [3]}, [running(1), running(2), waiting(3)], [consumer(1, 2)]) == {2}


def test_those_that_do_not_need_each_others_workers_are_judged_apart() -> None:
    jobs = [running(1, 1), running(2, 2), waiting(3, "a"), waiting(4, "b")]
    owners = [consumer(1, queues=["a"]), consumer(2, queues=["b"])]
    assert doomed({1: [3], 2: [4]}, jobs, owners) == {1, 2}


def test_two_consumers_whose_jobs_wait_across_are_one_case() -> None:
    jobs = [running(1, 1), running(2, 2), waiting(3, "b"), waiting(4, "a")]
    owners = [consumer(1, queues=["a"]), consumer(2, queues=["b"])]
    assert doomed({1: [3], 2: [4]}, jobs, owners) == {2}


def test_one_of_several_children_that_gets_on_is_enough() -> None:
    jobs = [running(1), running(9, 2), waiting(2), waiting(3, "b")]
    owners = [consumer(1, queues=["default"]), consumer(2, queues=["b"])]
    assert doomed({1: [2, 3]}, jobs, owners) == set()
    assert doomed({1: [2]}, jobs, owners) == {1}


@st.composite
def scenes(draw: st.DrawFn) -> tuple[dict[int, list[int]], list[Standing], list[Owner], dict[int, float]]:
    workers = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    owners = [
        consumer(number, size, queues=draw(st.sampled_from([None, ["a"], ["b"]])))
        for number, size in enumerate(workers, 1)
    ]
    runs = [running(100 * one.number + at, one.number) for one in owners for at in range(draw(st.integers(0, 3)))]
    waits_in_line = [waiting(seq, draw(st.sampled_from(["a", "b"]))) for seq in range(1, 5)]
    children = st.lists(st.sampled_from([job.seq for job in [*runs, *waits_in_line]]), min_size=1, max_size=2)
    waits = {job.seq: draw(children) for job in runs if draw(st.booleans())}
    until = {seq: draw(st.sampled_from([NOW + 1, NOW + 2, math.inf])) for seq in waits}
    return waits, [*runs, *waits_in_line], owners, until


@given(scenes())
def test_whoever_is_told_would_not_have_got_what_it_waits_for_in_time(
    scene: tuple[dict[int, list[int]], list[Standing], list[Owner], dict[int, float]],
) -> None:
    """Play on, as kindly as can be: everything that can end does, and every free worker takes any job at once."""
    waits, jobs, owners, until = scene
    told = doomed(waits, jobs, owners, until=until)
    for victim in told:
        standing = {job.seq: job for job in jobs}
        while True:
            over = {
                seq
                for seq, job in standing.items()
                if job.state is JobState.RUNNING
                and (
                    seq not in waits
                    or any(child not in standing for child in waits[seq])
                    or (until[seq] < until[victim] and seq != victim)
                )
            }
            for seq in over:
                del standing[seq]
            started = _started(standing, owners)
            if not (over or started):
                break
            assert victim in standing, "it would have got on"


def _started(standing: dict[int, Standing], owners: list[Owner]) -> bool:
    """Have every free worker begin a job; these end in the next round."""
    started = False
    for one in owners:
        queues = one.info["queues"]
        load = sum(job.owner == one.number for job in standing.values())
        for seq, job in list(standing.items()):
            fits = queues is None or job.queue in queues  # type: ignore[operator]
            if job.state is JobState.READY and fits and load < one.info["workers"]:  # type: ignore[operator]
                standing[seq] = job._replace(state=JobState.RUNNING, owner=one.number)
                load, started = load + 1, True
    return started


def test_marks_of_jobs_that_do_not_wait_any_more_are_dropped() -> None:
    app = LiteQ(MemoryStorage())
    for key in ("7", "no number"):
        app.storage.swap(f"{WAIT_MARK}{key}", None, '{"claim": 1, "children": [8], "until": null}')
    app.storage.swap("other", None, "1")
    drop_stale(app.storage)
    assert app.storage.marks() == {"other": "1"}
