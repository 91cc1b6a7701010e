"""MemoryStorage keeps the contract; below it, what is its own: copies on fork, `lose`, and staying quick when full."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from time import perf_counter

import pytest
from contract import NOW, StorageContract, add_many, claim, new, outcome, seqs

from liteq import lifecycle
from liteq.errors import StorageError
from liteq.job import Ending, Job, JobFilter, JobState
from liteq.lifecycle import Policy, Transition
from liteq.storage.base import CALLER, ClaimRequest
from liteq.storage.memory import Line, MemoryStorage


class TestMemoryStorage(StorageContract):
    @pytest.fixture
    def storage(self) -> MemoryStorage:
        return MemoryStorage()

    @pytest.fixture
    def reopen(self, storage: MemoryStorage) -> Callable[[], MemoryStorage]:
        return lambda: storage  # what is in memory has no other way to it

    @pytest.fixture
    def perish(self, storage: MemoryStorage) -> Callable[[int], int]:
        def perish(wanted: int) -> int:
            owner = storage.register({})
            claim(storage, wanted, owner=owner)
            storage.lose(owner)
            return owner

        return perish


def test_two_storages_share_nothing() -> None:
    first, second = MemoryStorage(), MemoryStorage()
    add_many(first, 2)
    assert second.find(JobFilter()) == []
    assert add_many(second, 1)[0].seq == 1


def test_it_says_that_it_is_in_memory() -> None:
    assert MemoryStorage().location == ":memory:"


def test_there_is_no_lock_to_hand_on() -> None:
    storage = MemoryStorage()
    assert storage.lock_fd(storage.register({})) is None


def test_only_a_living_owner_can_be_lost() -> None:
    storage = MemoryStorage()
    owner = storage.register({})
    storage.lose(owner)
    with pytest.raises(KeyError):
        storage.lose(owner)


def test_what_an_owner_says_of_itself_is_kept_as_it_was_said() -> None:
    storage = MemoryStorage()
    info: dict[str, object] = {"queues": ["a"]}
    storage.register(info)
    info["queues"] = "changed"
    assert dict(storage.owners()[0].info) == {"queues": ["a"]}


@pytest.mark.parametrize(
    "job",
    [
        Job(0, "", "t", JobState.RUNNING),
        Job(0, "", "t", JobState.SUCCEEDED),
        Job(0, "", "t", JobState.SCHEDULED, due=None),
    ],
)
def test_a_job_that_cannot_be_new_is_refused(job: Job) -> None:
    storage = MemoryStorage()
    with pytest.raises(StorageError, match="t: a new job"):
        storage.add([new(), job])
    assert storage.find(JobFilter()) == []


def test_a_new_job_starts_from_nothing_whatever_it_says() -> None:
    storage = MemoryStorage()
    [job] = storage.add([new()._replace(seq=99, claim=5, attempt=4, base=3, crashes=2, owner=1, result=b"x")])
    assert job == Job(1, job.id, "task", JobState.READY, created=NOW)


def test_nothing_but_a_claim_makes_a_job_run() -> None:
    storage = MemoryStorage()
    [job] = add_many(storage, 1)
    with pytest.raises(StorageError, match=rf"job {job.id}.* cannot lead to running"):
        storage.apply([Transition(job.seq, JobState.READY, 0, JobState.RUNNING)], NOW)
    assert storage.counts()[JobState.READY] == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_in_the_middle_of_writing_leaves_the_child_a_whole_copy() -> None:
    storage = MemoryStorage()
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            succeed = [lifecycle.decide(job, Policy(), outcome(job, Ending.SUCCEEDED), NOW) for job in claim(storage)]
            storage.apply(succeed, NOW)
            storage.add([new() for _ in range(20)])
            storage.remove(JobFilter())

    writer = threading.Thread(target=write)
    writer.start()
    codes = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            try:
                counted = storage.counts()
                jobs = storage.find(JobFilter())
                assert sum(counted.values()) == len(jobs)
                assert len(claim(storage)) == counted[JobState.READY]
                os._exit(0)
            finally:
                os._exit(1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stop.set()
    writer.join()
    assert codes == [0] * 20


def test_a_line_is_in_order_whoever_comes_and_goes() -> None:
    line = Line()
    for seq, key in [(1, 5.0), (2, 3.0), (3, 5.0), (4, 1.0)]:
        line.put(seq, key)
    line.drop(4)
    line.drop(4)
    line.drop(2)
    line.put(2, 5.0)
    line.put(4, 9.0)
    order = []
    while line:
        order.append(line.first())
        line.drop(order[-1][1])
    assert order == [(5.0, 1), (5.0, 2), (5.0, 3), (9.0, 4)]


def test_a_line_does_not_grow_with_what_has_left_it() -> None:
    line = Line()
    line.put(0, -1.0)
    for _ in range(10_000):
        line.put(1, 5.0)
        line.drop(1)
    assert len(line) == 1
    assert len(line._heap) < 200


def test_it_has_no_schema() -> None:
    assert MemoryStorage().schema_version() is None


def test_the_caller_himself_need_not_be_registered() -> None:
    storage = MemoryStorage()
    storage.add([new()])
    assert len(storage.turn([], ClaimRequest(CALLER, 5), NOW).jobs) == 1


def test_claiming_and_adding_cost_the_same_whether_few_wait_or_many() -> None:
    def cost(waiting: int) -> float:
        """Seconds to claim 10, give 10 back and add 10; the best of several, as the machine may be busy."""
        storage = MemoryStorage()
        storage.add([new(queue=f"q{number % 5}", priority=number % 3) for number in range(waiting)])
        storage.add([new(due=NOW + 1000 + number) for number in range(waiting)])
        owner = storage.register({})
        best = float("inf")
        for step in range(30):
            began = perf_counter()
            jobs = storage.turn([], ClaimRequest(owner, 10), NOW + 1000 + step).jobs
            storage.apply([lifecycle.release(job) for job in jobs], NOW)
            storage.add([new() for _ in range(10)])
            best = min(best, perf_counter() - began)
        return best

    few, many = cost(200), cost(20_000)
    assert many < 5 * few, f"{few * 1e6:.0f} µs among 200, {many * 1e6:.0f} µs among 20,000"


def test_a_full_storage_hands_out_everything_in_order() -> None:
    storage = MemoryStorage()
    jobs = storage.add([new(priority=number % 2) for number in range(20_000)])
    expected = [*seqs(jobs[1::2]), *seqs(jobs[0::2])]
    taken: list[int] = []
    while some := claim(storage, 999):
        taken += seqs(some)
    assert taken == expected
