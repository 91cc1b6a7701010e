"""Which waiting jobs are to give up: the rule alone, on scenes that are drawn up here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from liteq import JobState, LiteQ, MemoryStorage
from liteq.deadlock import WAIT_MARK, drop_stale
from liteq.job import FINISHED
from liteq.lifecycle import unmet
from liteq.plan import Rule
from liteq.standstill import Scene, Wait
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


# ── what is to start after other jobs ────────────────────────────────────────────────────────────────────

AFTER_OTHERS = {"state": JobState.BLOCKED, "reason": "waits until job 1-x has ended"}
LIMIT = {"waits for limit t": frozenset({1})}
ROOMY = (consumer(1, 9),)

Plans = Mapping[int, Sequence[tuple[int, Rule]]]


def with_plans(
    waits: Mapping[int, Sequence[int]],
    jobs: Iterable[Standing],
    after: Plans,
    *,
    owners: Iterable[Owner] = ROOMY,
    holders: Mapping[str, frozenset[int]] | None = None,
    until: Mapping[int, float] | None = None,
) -> Scene:
    limits = until or {}
    given = {seq: Wait(seq, 1, tuple(children), limits.get(seq, math.inf)) for seq, children in waits.items()}
    return Scene(given, {job.seq: job for job in jobs}, owners, frozenset(), NOW, holders or LIMIT, after)


@pytest.mark.parametrize("rule", Rule)
def test_one_that_waits_for_a_plan_of_which_a_step_needs_its_own_slot_is_doomed(rule: Rule) -> None:
    jobs = [running(1), waiting(2, **AT_A_GATE), waiting(3, **AFTER_OTHERS), waiting(4, **AFTER_OTHERS)]
    after = {3: [(2, rule)], 4: [(3, rule)]}
    assert set(with_plans({1: [4]}, jobs, after).doomed()) == {1}


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("other", [waiting(3), running(3), waiting(3, state=JobState.SCHEDULED, due=NOW + 9)])
def test_one_prerequisite_that_can_never_begin_is_enough(rule: Rule, other: Standing) -> None:
    jobs = [running(1), waiting(2, **AT_A_GATE), other, waiting(4, **AFTER_OTHERS)]
    for edges in ([(3, rule), (2, rule)], [(2, rule), (3, rule)]):
        assert set(with_plans({1: [4]}, jobs, {4: edges}).doomed()) == {1}
        assert set(with_plans({1: [4]}, jobs, {4: [(3, rule)]}).doomed()) == set()


def test_of_several_slots_all_holders_count_behind_a_plan_too() -> None:
    jobs = [running(1), running(9), waiting(2, **AT_A_GATE), waiting(3, **AFTER_OTHERS)]
    held = {"waits for limit t": frozenset({1, 9})}
    after = {3: [(2, Rule.SUCCESS)]}
    assert set(with_plans({1: [3]}, jobs, after, holders=held).doomed()) == set()
    assert set(with_plans({1: [3], 9: [3]}, jobs, after, holders=held).doomed()) == {9}


def test_one_that_waits_for_what_comes_after_itself_is_doomed() -> None:
    jobs = [running(1), waiting(2, **AFTER_OTHERS), waiting(3, **AFTER_OTHERS)]
    after = {2: [(1, Rule.SUCCESS)], 3: [(2, Rule.SUCCESS)]}
    assert set(with_plans({1: [3]}, jobs, after).doomed()) == {1}
    assert with_plans({1: [3]}, jobs, after).doomed()[1].obstacle == "it is to start after the end of this very job"


def test_a_prerequisite_that_expires_lets_who_takes_any_end_begin() -> None:
    jobs = [running(1), waiting(2, expires=NOW + 5, **AT_A_GATE), waiting(3, **AFTER_OTHERS)]
    assert set(with_plans({1: [3]}, jobs, {3: [(2, Rule.END)]}).doomed()) == set()
    assert set(with_plans({1: [3]}, jobs, {3: [(2, Rule.FAILURE)]}).doomed()) == set()
    assert set(with_plans({1: [3]}, jobs, {3: [(2, Rule.SUCCESS)]}).doomed()) == {1}


def test_what_may_end_by_the_failure_of_another_prerequisite_frees_who_waits_for_any_end_of_it() -> None:
    jobs = [running(1), running(5), waiting(2, **AT_A_GATE), waiting(3, **AFTER_OTHERS), waiting(4, **AFTER_OTHERS)]
    after = {3: [(2, Rule.SUCCESS), (5, Rule.SUCCESS)], 4: [(3, Rule.END)]}
    assert set(with_plans({1: [4]}, jobs, after).doomed()) == set()  # 5 may fail, then 3 never begins, and 4 does


def test_nobody_relies_on_one_that_waits_for_what_may_end_without_having_begun() -> None:
    jobs = [running(1), running(5), running(6), waiting(2, **AT_A_GATE), waiting(3, **AFTER_OTHERS), waiting(4)]
    after = {3: [(2, Rule.SUCCESS), (5, Rule.SUCCESS)]}
    scene = with_plans({1: [3], 6: [4]}, jobs, after, owners=[consumer(1, 3)])
    assert set(scene.doomed()) == {1}  # if 5 fails, 1 goes on, and has a worker for 4


def test_plans_of_which_not_all_is_known_are_judged_by_what_is() -> None:
    jobs = [running(1), waiting(2, **AT_A_GATE), waiting(3, **AFTER_OTHERS), waiting(4, **AFTER_OTHERS)]
    unknown = (-1, Rule.FAILURE)
    after = {3: [(2, Rule.SUCCESS), unknown], 4: [(3, Rule.END), unknown]}
    assert set(with_plans({1: [3]}, jobs, after).doomed()) == {1}
    assert set(with_plans({1: [4]}, jobs, after).doomed()) == set()


def test_the_one_that_would_give_up_first_does_behind_a_plan_too() -> None:
    jobs = [running(1), running(6), waiting(2, **AT_A_GATE), waiting(3, **AFTER_OTHERS), waiting(4, **AFTER_OTHERS)]
    after = {3: [(2, Rule.SUCCESS)], 4: [(6, Rule.SUCCESS)]}  # 1 waits for 6, which waits for 1
    for until, told in (({1: NOW + 5, 6: NOW + 9}, 1), ({1: NOW + 9, 6: NOW + 5}, 6)):
        assert set(with_plans({1: [4], 6: [3]}, jobs, after, until=until).doomed()) == {told}


@pytest.mark.parametrize(
    ("jobs", "after", "words"),
    [
        ([waiting(2)], {}, ""),
        ([waiting(2, **AT_A_GATE)], {}, "it needs a slot of the limit 't', and all of them are held by this very job"),
        (
            [waiting(2, **AFTER_OTHERS), waiting(3, **AT_A_GATE)],
            {2: [(3, Rule.END)]},
            "a job that has to end before it needs a slot of the limit 't', and all of them are held by this very job",
        ),
        ([waiting(2, **AFTER_OTHERS), waiting(3)], {2: [(3, Rule.END)]}, ""),
    ],
)
def test_what_is_in_the_way_is_said_and_only_a_lack_of_workers_called_so(
    jobs: list[Standing], after: Plans, words: str
) -> None:
    scene = with_plans({1: [2]}, [running(1), *jobs], after, owners=[consumer(1)])
    assert scene.doomed()[1].obstacle == words


def test_what_is_in_the_way_of_one_that_runs_and_waits_is_said() -> None:
    jobs = [running(1), running(2), waiting(3, **AT_A_GATE)]
    [doom] = with_plans({1: [2], 2: [3]}, jobs, {}, until={1: NOW + 5}).doomed().values()
    assert doom.wait.seq == 1
    assert "limit 't'" in doom.obstacle


def test_others_have_to_know_of_one_only_if_what_it_waits_for_is_held_up() -> None:
    jobs = [running(1), running(5), waiting(2, **AT_A_GATE), waiting(3, **AFTER_OTHERS), waiting(4, "b")]
    owners = [consumer(1, 9, queues=["default"]), consumer(2, queues=["b"])]
    for children, after, known, expected in [
        ([2], {}, (), True),
        ([3], {3: [(2, Rule.END)]}, (), True),
        ([3], {3: [(4, Rule.END)]}, (), False),
        ([3], {3: [(5, Rule.END)]}, (), True),
        ([5], {}, (), False),
        ([5], {}, (5,), True),  # it waits itself
        ([4], {}, (6,), False),
        ([99], {}, (99,), False),  # it has ended
    ]:
        scene = with_plans({1: children}, jobs, after, owners=owners)
        assert scene.is_entangled(Wait(1, 1, tuple(children), math.inf), known) is expected
    taken = with_plans({1: [4]}, [*jobs, running(6, 2)], {}, owners=owners)
    assert taken.is_entangled(Wait(1, 1, (4,), math.inf), (6,))
    assert not taken.is_entangled(Wait(1, 1, (4,), math.inf), ())


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


def test_one_that_waits_for_what_expires_gives_up_by_then() -> None:
    jobs = [running(1), running(2), waiting(3, expires=NOW + 5), waiting(4)]
    assert doomed({1: [3], 2: [4]}, jobs, [consumer(1, 2)]) == {1}
    assert doomed({1: [3], 2: [4]}, jobs, [consumer(1, 2)], until={2: NOW + 4}) == {2}
    jobs[2] = waiting(3, expires=NOW)
    assert doomed({1: [3], 2: [4]}, jobs, [consumer(1, 2)]) == set()  # it is about to


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


# ── against a model that tries everything ────────────────────────────────────────────────────────────────


class World(NamedTuple):
    """A few jobs, of which the first ones run, and all that decides what may become of them."""

    waits: dict[int, list[int]]
    jobs: dict[int, Standing]
    owners: list[Owner]
    until: dict[int, float]
    after: dict[int, list[tuple[int, Rule]]]
    held: dict[str, frozenset[int]]

    def scene(self) -> Scene:
        return with_plans(
            self.waits, self.jobs.values(), self.after, owners=self.owners, holders=self.held, until=self.until
        )


Where = dict[int, JobState | int]  # by job: its state, or the consumer that runs it


def start_of(world: World) -> Where:
    return {seq: job.owner or JobState.READY for seq, job in world.jobs.items()}


def next_of(world: World, where: Where, frozen: int | None = None) -> Iterator[Where]:
    """All that may happen next. A job that was started ends at once or later, well or badly; one of those that waited
    at the beginning does so when what it waits for has ended, or when it gives up before ``frozen``, which never ends.
    """
    for seq, state in where.items():
        job = world.jobs[seq]
        if isinstance(state, int):
            if seq != frozen and may_end(world, where, seq, frozen):
                yield where | {seq: JobState.SUCCEEDED}
                yield where | {seq: JobState.FAILED}
        elif state not in FINISHED:
            if job.expires is not None and (frozen is None or job.expires < limit_of(world, frozen)):
                yield where | {seq: JobState.EXPIRED}
            ends = [(where[prior], rule) for prior, rule in world.after.get(seq, ())]
            over = [unmet(rule, end) for end, rule in ends if isinstance(end, JobState) and end in FINISHED]
            broken = next((end for end in over if end is not None), None)
            if broken is not None:
                yield where | {seq: broken}
            elif len(over) == len(ends) and has_slot(world, where, job):
                for one in world.owners:
                    load = sum(running_on == one.number for running_on in where.values())
                    if job.queue in queues_of(one) and load < one.info["workers"]:  # type: ignore[operator]
                        yield where | {seq: one.number}


def may_end(world: World, where: Where, seq: int, frozen: int | None) -> bool:
    if seq not in world.waits or any(where[child] in FINISHED for child in world.waits[seq]):
        return True
    return frozen is not None and (limit_of(world, seq), -seq) < (limit_of(world, frozen), -frozen)


def limit_of(world: World, seq: int) -> float:
    """When a job that waits would give up, or have nothing to wait for."""
    expiries = [world.jobs[child].expires for child in world.waits[seq]]
    return min([world.until[seq], *(one for one in expiries if one is not None)])


def has_slot(world: World, where: Where, job: Standing) -> bool:
    """Slots go back to where jobs end; those started since take one for less than a step."""
    holders = world.held.get(job.reason or "")
    return holders is None or any(where[holder] in FINISHED for holder in holders)


def queues_of(one: Owner) -> Sequence[str]:
    return one.info["queues"] or ["a", "b"]  # type: ignore[return-value]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    queues = st.sampled_from(["a", "b"])
    owners = [
        consumer(number, draw(st.integers(1, 2)), queues=draw(st.sampled_from([None, ["a"], ["b"]])))
        for number in range(1, draw(st.integers(1, 2)) + 1)
    ]
    runs = [running(10 * one.number + at, one.number) for one in owners for at in range(int(str(one.info["workers"])))]
    del runs[draw(st.integers(1, 4)) :]
    held = {
        f"waits for lock {name}": frozenset(draw(st.sets(st.sampled_from([job.seq for job in runs]), min_size=1)))
        for name in "xy"
    }
    jobs, after = {job.seq: job for job in runs}, {}
    for seq in range(100, 100 + draw(st.integers(1, 4))):
        fields: dict[str, object] = {"expires": draw(st.sampled_from([None, None, None, NOW + 5]))}
        how = draw(st.sampled_from(["ready", "gate", "after", "after"]))
        if how == "gate":
            fields |= {"state": JobState.BLOCKED, "reason": draw(st.sampled_from(sorted(held)))}
        elif how == "after":
            edges = st.tuples(st.sampled_from(sorted(jobs)), st.sampled_from(Rule))
            after[seq] = draw(st.lists(edges, min_size=1, max_size=2))
            fields |= AFTER_OTHERS
        jobs[seq] = waiting(seq, draw(queues), **fields)
    waits = {
        job.seq: draw(st.lists(st.sampled_from(sorted(jobs)), min_size=1, max_size=2))
        for job in runs
        if draw(st.integers(0, 3))
    }
    until = {seq: draw(st.sampled_from([NOW + 1, NOW + 2, math.inf])) for seq in waits}
    return World(waits, jobs, owners, until, after, held)


@settings(max_examples=300)
@given(worlds())
def test_whoever_is_told_waits_for_what_could_not_have_begun_whatever_had_happened(world: World) -> None:
    for victim in world.scene().doomed():
        ahead, seen = [start_of(world)], set()
        while ahead:
            where = ahead.pop()
            for child in world.waits[victim]:
                runs_already = world.jobs[child].state is JobState.RUNNING
                assert not isinstance(where[child], int) or runs_already, "it would have begun"
                assert where[child] not in FINISHED or not runs_already, "it would have ended"
            for after in next_of(world, where, victim):
                if (key := tuple(after.items())) not in seen:
                    seen.add(key)
                    ahead.append(after)


@settings(max_examples=300)
@given(worlds())
def test_where_nothing_can_happen_any_more_somebody_is_told(world: World) -> None:
    served = {queue for one in world.owners for queue in queues_of(one)}
    assume(world.waits and all(job.queue in served for job in world.jobs.values() if job.seq >= 100))
    if next(next_of(world, start_of(world)), None) is None:
        assert world.scene().doomed()


def test_marks_of_jobs_that_do_not_wait_any_more_are_dropped() -> None:
    app = LiteQ(MemoryStorage())
    for key in ("7", "no number"):
        app.storage.swap(f"{WAIT_MARK}{key}", None, '{"claim": 1, "children": [8], "until": null}')
    app.storage.swap("other", None, "1")
    drop_stale(app.storage)
    assert app.storage.marks() == {"other": "1"}
