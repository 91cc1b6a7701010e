"""What `liteq.storage.base` promises, as tests that every storage passes.

A storage's own test file is a subclass named ``Test…`` with three fixtures, and whatever is particular to it::

    class TestMemoryStorage(StorageContract):
        @pytest.fixture
        def storage(self): ...  # yields it, empty
        @pytest.fixture
        def reopen(self, storage): ...  # () -> Storage: another way to the same data, as another process has
        @pytest.fixture
        def perish(self, storage): ...  # (wanted) -> int: an owner that claims so many jobs and dies
"""

from __future__ import annotations

import os
import random
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any, TypeVar

import pytest
from cargo_contract import CargoContract
from gates_contract import GatesContract
from plans_contract import PlansContract
from rates_contract import RatesContract
from schedule_contract import ScheduleContract
from shares_contract import SharesContract
from steps_contract import StepsContract
from unique_contract import UniqueContract

from liteq import lifecycle
from liteq.errors import ConfigurationError, StorageError
from liteq.job import FINISHED, WAITING, Attempt, Death, Ending, Job, JobFilter, JobState, Outcome, Progress
from liteq.lifecycle import CANCEL_MARK, PAUSE_MARK, REVOKE_MARK, STACK_MARK, Policy, Transition
from liteq.retry import RetryDelay
from liteq.storage.base import ClaimRequest, Storage
from liteq.storage.watch import Change

T = TypeVar("T")

NOW = 1_700_000_000.25
THREADS = 8
WAKE = 10.0  # seconds within which a watch must wake; it takes microseconds

UGLY_TEXTS = ["", " ", "a\0b", "ünïcødé 名前 🐇", "'; DROP TABLE liteq_job; --", "%_*?[", "x" * 10_000]
UGLY_BYTES = [b"", b"\0", b"\xff\xfe\x00\x80", b"null", bytes(range(256)) * 4096]


# ── words the tests are written in ───────────────────────────────────────────────────────────────────────────────────


def new(task: str = "task", now: float = NOW, **fields: Any) -> Job:
    """A job about to be stored."""
    return lifecycle.submit(Job(0, fields.pop("id", ""), task, JobState.READY, **fields), now)


def add(storage: Storage, *jobs: Job) -> list[Job]:
    return storage.add(jobs)


def add_many(storage: Storage, number: int, **fields: Any) -> list[Job]:
    return storage.add([new(**fields) for _ in range(number)])


def claim(
    storage: Storage, wanted: int = 1000, *, owner: int = 1, queues: tuple[str, ...] | None = None, now: float = NOW
) -> list[Job]:
    return storage.turn([], request(storage, owner, wanted, queues), now).jobs


def request(storage: Storage, owner: int = 1, wanted: int = 1, queues: tuple[str, ...] | None = None) -> ClaimRequest:
    """What a consumer of this number asks for. Where none was registered yet, as many are as it takes."""
    while max((one.number for one in storage.owners()), default=0) < owner:
        storage.register({})
    return ClaimRequest(owner, wanted, queues)


def claim_one(storage: Storage, **options: Any) -> Job:
    [job] = claim(storage, 1, **options)
    return job


def outcome(job: Job, ending: Ending, now: float = NOW + 2, **fields: Any) -> Outcome:
    return Outcome(job.seq, job.claim, ending, now - 1, now, **fields)


def decided(job: Job, ending: Ending, now: float = NOW + 2, policy: Policy | None = None, **fields: Any) -> Transition:
    return lifecycle.decide(job, policy or Policy(), outcome(job, ending, now, **fields), now)


def settle(storage: Storage, job: Job, ending: Ending, now: float = NOW + 2, **fields: Any) -> Job:
    """End the attempt of a running job, and answer with what became of it."""
    assert storage.apply([decided(job, ending, now, **fields)], now) == [True]
    return again(storage, job)


def succeed(storage: Storage, jobs: Sequence[Job], now: float = NOW + 2, result: bytes | None = b"5") -> None:
    transitions = [decided(job, Ending.SUCCEEDED, now, result=result) for job in jobs]
    assert storage.apply(transitions, now) == [True] * len(jobs)


def again(storage: Storage, job: Job) -> Job:
    found = storage.get(job.id)
    assert found is not None
    return found


def apply_one(storage: Storage, transition: Transition | None, now: float = NOW + 3) -> bool:
    assert transition is not None
    [applied] = storage.apply([transition], now)
    return applied


def bring(storage: Storage, state: JobState, **fields: Any) -> Job:
    """A job that stands in ``state``, with history as `get` shows it. Nothing else may be ready."""
    if state is JobState.SCHEDULED:
        return storage.add([new(due=NOW + 1000, **fields)])[0]
    [job] = storage.add([new(**fields)])
    if state is JobState.READY:
        return job
    if state is JobState.REVOKED:
        assert apply_one(storage, lifecycle.revoke(job, NOW))
    elif state is JobState.EXPIRED:
        assert apply_one(storage, lifecycle.revoke(job, NOW, "not started")._replace(target=JobState.EXPIRED))  # type: ignore[union-attr]
    else:
        running = claim_one(storage)
        assert running.seq == job.seq
        if state in _ENDINGS:
            settle(storage, running, _ENDINGS[state])
    found = again(storage, job)
    assert found.state is state
    return found


_ENDINGS = {
    JobState.SUCCEEDED: Ending.SUCCEEDED,
    JobState.FAILED: Ending.FAILED,
    JobState.BLOCKED: Ending.UNKNOWN,
}


def seqs(jobs: Sequence[Job]) -> list[int]:
    return [job.seq for job in jobs]


def everything(
    storage: Storage,
) -> tuple[list[Job], dict[JobState, int], dict[str, int], dict[str, int], dict[str, str]]:
    """All that a storage holds, to compare before and after."""
    jobs = [again(storage, job) for job in storage.find(JobFilter())]
    return jobs, storage.counts(), storage.queues(), storage.reasons(), storage.marks()


def in_short(case: object) -> str | None:
    """The name of a case: what its filter says, and nothing for the other half."""
    if not isinstance(case, JobFilter):
        return ""
    said = {name: value for name, value in asdict(case).items() if value != getattr(JobFilter(), name)}
    return ",".join(
        f"{name}={value if not isinstance(value, frozenset) else '|'.join(sorted(value))}"
        for name, value in said.items()
    )


def at_once(function: Callable[[int], T], threads: int = THREADS) -> list[T]:
    """Call ``function(0)``, ``function(1)`` … in as many threads, which set off together."""
    start = threading.Barrier(threads)

    def run(number: int) -> T:
        start.wait()
        return function(number)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # a thread is interrupted wherever it could be
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(run, range(threads)))
    finally:
        sys.setswitchinterval(interval)


class StorageContract(
    CargoContract,
    GatesContract,
    RatesContract,
    ScheduleContract,
    SharesContract,
    StepsContract,
    UniqueContract,
    PlansContract,
):
    """The promises. Not collected by itself: subclasses give the fixtures."""

    #: Whether a watch is told of a death at once; where the system cannot, the dead are found by looking for them.
    hears_the_dying = True

    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        raise NotImplementedError("a subclass yields its empty storage")

    @pytest.fixture
    def reopen(self, storage: Storage) -> Callable[[], Storage]:
        raise NotImplementedError("a subclass opens the same data once more")

    @pytest.fixture
    def perish(self, storage: Storage) -> Callable[[int], int]:
        raise NotImplementedError("a subclass lets an owner die")

    # ── adding ───────────────────────────────────────────────────────────────────────────────────────

    def test_added_jobs_come_back_in_order_with_ascending_numbers(self, storage: Storage) -> None:
        jobs = add(storage, new("a"), new("b"), new("c"))
        assert [job.task for job in jobs] == ["a", "b", "c"]
        assert seqs(jobs) == sorted(set(seqs(jobs)))
        assert min(seqs(jobs)) > 0
        assert jobs == storage.find(JobFilter())

    def test_a_new_job_has_no_past(self, storage: Storage) -> None:
        [job] = add(storage, new("a"))
        assert job == Job(job.seq, job.id, "a", JobState.READY, created=NOW)
        assert again(storage, job) == job

    def test_adding_nothing_stores_nothing(self, storage: Storage) -> None:
        assert storage.add([]) == []
        assert storage.find(JobFilter()) == []

    @pytest.mark.parametrize("text", UGLY_TEXTS, ids=lambda text: repr(text[:12]))
    def test_every_text_comes_back_as_it_was(self, storage: Storage, text: str) -> None:
        [job] = add(storage, new(text, queue=text, options=text, summary=text, id=text))
        assert (job.task, job.queue, job.options, job.summary) == (text,) * 4
        assert job.id == text or not text
        assert again(storage, job) == job
        assert storage.find(JobFilter(queue=text, task=text)) == [job]
        assert storage.queues() == {text: 1}
        assert claim(storage, queues=(text,))[0].task == text

    @pytest.mark.parametrize("payload", UGLY_BYTES, ids=lambda payload: repr(payload[:8]))
    def test_payload_and_result_are_any_bytes(self, storage: Storage, payload: bytes) -> None:
        [job] = add(storage, new(payload=payload))
        assert again(storage, job).payload == payload
        running = claim_one(storage)
        assert running.payload == payload
        done = settle(storage, running, Ending.SUCCEEDED, result=payload)
        assert (done.payload, done.result) == (payload, payload)
        assert isinstance(done.result, bytes)

    def test_no_options_and_empty_options_are_two_things(self, storage: Storage) -> None:
        none, empty = add(storage, new(), new(options="", summary=""))
        assert (again(storage, none).options, again(storage, none).summary) == (None, None)
        assert (again(storage, empty).options, again(storage, empty).summary) == ("", "")

    @pytest.mark.parametrize("instant", [0.1 + 0.2, 1e-9, -1.5, 253_402_300_799.999, 0.0])
    def test_instants_keep_every_bit(self, storage: Storage, instant: float) -> None:
        [job] = storage.add([lifecycle.submit(Job(0, "", "t", JobState.READY, due=instant, expires=instant), instant)])
        found = again(storage, job)
        assert (found.created, found.due, found.expires) == (instant, instant, instant)
        assert found.state is JobState.READY

    def test_a_job_due_later_is_scheduled(self, storage: Storage) -> None:
        [job] = add(storage, new(due=NOW + 10))
        assert (job.state, job.due) == (JobState.SCHEDULED, NOW + 10)
        assert again(storage, job) == job
        assert claim(storage) == []

    def test_a_job_due_in_the_past_is_ready_and_says_when_it_was_due(self, storage: Storage) -> None:
        [job] = add(storage, new(due=NOW - 10))
        assert (job.state, job.due) == (JobState.READY, NOW - 10)
        assert claim_one(storage).due == NOW - 10

    @pytest.mark.parametrize("number", [2, 50, 51, 1000])
    def test_a_batch_of_any_size_keeps_its_order(self, storage: Storage, number: int) -> None:
        jobs = storage.add([new(f"t{place}") for place in range(number)])
        assert [job.task for job in jobs] == [f"t{place}" for place in range(number)]
        assert seqs(jobs) == sorted(set(seqs(jobs)))
        assert [job.task for job in claim(storage, number)] == [job.task for job in jobs]

    def test_a_batch_may_mix_every_kind_of_job(self, storage: Storage) -> None:
        [old] = add(storage, new("old", id="old"))
        jobs = add(storage, new("a"), new("b", id="b"), new("old", id="old"), new("c", due=NOW + 5), new("b", id="b"))
        assert [job.task for job in jobs] == ["a", "b", "old", "c", "b"]
        assert jobs[2] == old
        assert jobs[4] == jobs[1]
        assert storage.find(JobFilter()) == [old, jobs[0], jobs[1], jobs[3]]
        assert seqs(jobs[:2]) == sorted(seqs(jobs[:2]))
        assert jobs[3].seq > jobs[1].seq

    @pytest.mark.parametrize("good", [1, 60])
    def test_all_of_a_batch_is_stored_or_none(self, storage: Storage, good: int) -> None:
        add(storage, new())
        before = everything(storage)
        with pytest.raises((StorageError, TypeError, AttributeError)):
            storage.add([*[new(id=f"n{number}") for number in range(good)], None])  # type: ignore[list-item]
        with pytest.raises((StorageError, TypeError, AttributeError)):
            storage.add([*[new() for _ in range(good)], None])  # type: ignore[list-item]
        assert everything(storage) == before
        assert claim(storage, 10)[0].seq == before[0][0].seq

    def test_what_is_no_connection_to_the_same_file_is_refused_and_nothing_is_stored(self, storage: Storage) -> None:
        with pytest.raises((TypeError, ConfigurationError)):
            storage.add([new()], object())
        with closing(sqlite3.connect(":memory:")) as elsewhere, pytest.raises(ConfigurationError):
            storage.add([new()], elsewhere)
        assert storage.find(JobFilter()) == []

    def test_another_handle_sees_what_was_added(self, storage: Storage, reopen: Callable[[], Storage]) -> None:
        jobs = add(storage, new("a"), new("b", id="b"), new("c", due=NOW + 1))
        assert reopen().find(JobFilter()) == jobs

    def test_threads_that_add_at_once_get_numbers_of_their_own(self, storage: Storage) -> None:
        def some(thread: int) -> list[Job]:
            return [storage.add([new(f"t{thread}")])[0] for _ in range(25)] + add_many(storage, 25, task=f"t{thread}")

        added = at_once(some)
        numbers = [job.seq for jobs in added for job in jobs]
        assert len(set(numbers)) == THREADS * 50
        assert all(seqs(jobs) == sorted(seqs(jobs)) for jobs in added)
        assert sorted(numbers) == seqs(storage.find(JobFilter()))
        for thread, jobs in enumerate(added):
            assert seqs(jobs) == seqs(storage.find(JobFilter(task=f"t{thread}")))

    # ── ids ──────────────────────────────────────────────────────────────────────────────────────────

    def test_a_generated_id_is_the_number_and_ten_hex_digits(self, storage: Storage) -> None:
        for job in [*add(storage, new()), *add_many(storage, 60)]:
            number, _, digits = job.id.partition("-")
            assert number == str(job.seq)
            assert len(digits) == 10
            assert digits == f"{int(digits, 16):010x}"

    def test_ids_generated_by_separate_calls_cannot_be_guessed_from_one_another(self, storage: Storage) -> None:
        jobs = [*[add(storage, new())[0] for _ in range(20)], *[add_many(storage, 2)[0] for _ in range(20)]]
        assert len({job.id.partition("-")[2] for job in jobs}) == 40

    def test_an_id_that_is_nearly_right_names_no_job(self, storage: Storage) -> None:
        [job] = add(storage, new())
        number, _, digits = job.id.partition("-")
        wrong = [
            f"0{job.id}",
            f" {job.id}",
            f"{job.id}\n",
            f"+{job.id}",
            f"{number}-",
            number,
            f"{number}-{digits[:-1]}",
            f"{number}-0{digits}",
            f"{number}-{(int(digits, 16) + 1) % (1 << 40):010x}",
            f"{int(number) + 1}-{digits}",
            f"{chr(0xFF10 + int(number))}-{digits}" if len(number) == 1 else f"x{job.id}",
            f"{1 << 80}-{digits}",
            f"-{job.id}",
            f"{number}--000000001",
            "",
            "nobody",
            "a\0b",
        ]
        if digits.upper() != digits:
            wrong.append(job.id.upper())
        assert [text for text in wrong if storage.get(text) is not None] == []
        assert storage.get(job.id) == job

    @pytest.mark.parametrize("state", JobState)
    def test_an_id_that_exists_answers_with_that_job_as_it_stands(self, storage: Storage, state: JobState) -> None:
        job = bring(storage, state, id="order-7", payload=b"first")
        before = everything(storage)
        assert add(storage, new("other", id="order-7", payload=b"second", now=NOW + 50)) == [job]
        assert everything(storage) == before

    def test_the_same_id_twice_in_one_batch_is_one_job(self, storage: Storage) -> None:
        first, second, third = add(storage, new("a", id="x"), new("b", id="x"), new("c", id="y"))
        assert first == second
        assert (first.task, third.task) == ("a", "c")
        assert storage.find(JobFilter()) == [first, third]

    def test_the_id_that_was_generated_for_a_job_is_taken(self, storage: Storage) -> None:
        [job] = add(storage, new("a"))
        assert add(storage, new("b", id=job.id)) == [job]
        assert storage.find(JobFilter()) == [job]

    @pytest.mark.parametrize(
        "job_id", ["a", "A", "a ", "ä", "a\u0308", "1", "1-0000000000", "01-0000000000", "a\0", "-"]
    )
    def test_a_chosen_id_is_taken_letter_by_letter(self, storage: Storage, job_id: str) -> None:
        others = ["a", "A", "a ", "ä", "a\u0308", "1", "a\0", "-"]
        stored = {job.id: job for job in storage.add([new(id=other) for other in {*others, job_id}])}
        assert len(stored) == len({*others, job_id})
        assert storage.get(job_id) == stored[job_id]

    def test_adding_tells_which_jobs_were_there_already(self, storage: Storage) -> None:
        assert storage.add([]).known == set()
        assert storage.add([new()]).known == set()
        assert storage.add([new(), new()]).known == set()
        assert storage.add([new(id="a")]).known == set()
        assert storage.add([new(id="a")]).known == {0}  # at the very same moment, with the very same fields
        mixed = storage.add([new(), new(id="b"), new(id="a"), new(id="b"), new(), new(id="c")])
        assert mixed.known == {2, 3}
        assert mixed[1] == mixed[3]

    def test_of_threads_that_choose_the_same_id_at_once_one_is_told_that_it_is_new(
        self, storage: Storage, reopen: Callable[[], Storage]
    ) -> None:
        handles = [storage, reopen()]
        added = at_once(lambda thread: [handles[thread % 2].add([new(id=f"x{n}")]).known for n in range(10)])
        assert all(sum(not known[number] for known in added) == 1 for number in range(10))

    def test_threads_that_choose_the_same_id_at_once_get_the_same_job(self, storage: Storage) -> None:
        answers = at_once(lambda thread: [storage.add([new(f"t{thread}", id=f"x{n}")])[0] for n in range(10)])
        assert all(answer == answers[0] for answer in answers)
        assert storage.counts()[JobState.READY] == 10

    def test_a_chosen_id_is_free_again_once_its_job_is_removed(self, storage: Storage) -> None:
        done = bring(storage, JobState.SUCCEEDED, id="order-7")
        assert storage.remove(JobFilter()) == 1
        assert storage.get("order-7") is None
        [job] = add(storage, new("other", id="order-7"))
        assert (job.task, job.state) == ("other", JobState.READY)
        assert job.seq > done.seq

    # ── claiming ─────────────────────────────────────────────────────────────────────────────────────

    def test_a_claimed_job_runs_for_its_owner(self, storage: Storage) -> None:
        [job] = add(storage, new(queue="q", priority=3, payload=b"p", options="{}", summary="s", expires=NOW + 9))
        running = claim_one(storage, owner=7, now=NOW + 1)
        assert running == job._replace(state=JobState.RUNNING, owner=7, started=NOW + 1, claim=1, attempt=1)
        assert again(storage, job) == running
        assert storage.find(JobFilter(owner=7)) == [running]

    def test_equal_priority_keeps_the_order_of_enqueue(self, storage: Storage) -> None:
        jobs = [*add(storage, new()), *add_many(storage, 30), *add(storage, new(id="x")), *add_many(storage, 3)]
        assert seqs(claim(storage, 20) + claim(storage, 20)) == seqs(jobs)

    def test_higher_priority_comes_first(self, storage: Storage) -> None:
        priorities = [0, 5, -1, 5, 2**62, 0, -(2**62), 1]
        jobs = storage.add([new(priority=priority) for priority in priorities])
        expected = sorted(jobs, key=lambda job: (-job.priority, job.seq))
        assert seqs(claim(storage, 3)) == seqs(expected[:3])
        assert seqs(claim(storage)) == seqs(expected[3:])

    @pytest.mark.parametrize("wanted", [0, -1])
    def test_who_wants_nothing_gets_nothing(self, storage: Storage, wanted: int) -> None:
        add(storage, new())
        assert claim(storage, wanted) == []
        assert claim(storage, wanted, queues=("default",)) == []
        assert storage.counts()[JobState.READY] == 1

    def test_no_more_is_claimed_than_wanted_or_there(self, storage: Storage) -> None:
        jobs = [*add_many(storage, 3, queue="a"), *add_many(storage, 3, queue="b")]
        assert seqs(claim(storage, 2, queues=("b",))) == seqs(jobs[3:5])
        assert seqs(claim(storage, 2)) == seqs(jobs[:2])
        assert seqs(claim(storage, 100)) == [jobs[2].seq, jobs[5].seq]
        assert claim(storage, 100) == []

    def test_queues_are_served_in_order_of_preference(self, storage: Storage) -> None:
        low, high, middle = (
            add_many(storage, 2, queue="low", priority=9),
            add_many(storage, 2, queue="high"),
            add_many(storage, 2, queue="middle", priority=5),
        )
        assert seqs(claim(storage, 3, queues=("high", "middle", "low"))) == seqs([*high, middle[0]])
        assert seqs(claim(storage, 9, queues=("high", "low"))) == seqs(low)
        assert seqs(claim(storage, 9, queues=("middle",))) == seqs(middle[1:])

    def test_without_preference_all_queues_are_one(self, storage: Storage) -> None:
        places = [("a", 0), ("b", 1), ("c", 0), ("a", 1), ("b", 0), ("", -1), ("a", 0)]
        jobs = storage.add([new(queue=queue, priority=priority) for queue, priority in places])
        expected = sorted(jobs, key=lambda job: (-job.priority, job.seq))
        assert seqs(claim(storage, 4)) == seqs(expected[:4])
        assert seqs(claim(storage)) == seqs(expected[4:])

    def test_no_queues_and_unknown_queues_give_nothing(self, storage: Storage) -> None:
        [job] = add(storage, new(queue="a"))
        assert claim(storage, queues=()) == []
        assert claim(storage, queues=("A", "a ", "b", "", "*", "%")) == []
        assert seqs(claim(storage, queues=("b", "a"))) == [job.seq]

    def test_a_queue_named_twice_is_claimed_from_once(self, storage: Storage) -> None:
        jobs = add_many(storage, 3, queue="a")
        assert seqs(claim(storage, 5, queues=("a", "a"))) == seqs(jobs)

    def test_a_paused_queue_is_passed_over_until_it_is_resumed(self, storage: Storage) -> None:
        [first], [second] = add(storage, new(queue="a")), add(storage, new(queue="b"))
        assert storage.swap(PAUSE_MARK + "a", None, "")
        assert claim(storage, queues=("a",)) == []
        assert seqs(claim(storage)) == [second.seq]
        assert storage.queues() == {"a": 1}
        assert storage.swap(PAUSE_MARK + "a", "", None)
        assert seqs(claim(storage, queues=("b", "a"))) == [first.seq]

    @pytest.mark.parametrize("queue", ["", "ünï 🐇", "a:b", "%", "a\0b"])
    def test_a_pause_means_exactly_one_queue(self, storage: Storage, queue: str) -> None:
        others = storage.add([new(queue=other) for other in ["a", "a:", "A", "ab", "default"]])
        add(storage, new(queue=queue))
        assert storage.swap(PAUSE_MARK + queue, None, "paused")
        assert seqs(claim(storage)) == seqs(others)
        assert claim(storage, queues=(queue,)) == []

    def test_a_pause_of_all_queues_leaves_everything_ready(self, storage: Storage) -> None:
        storage.add([new(queue=queue) for queue in "ab"])
        for queue in "ab":
            assert storage.swap(PAUSE_MARK + queue, None, "1")
        assert claim(storage) == []
        assert storage.counts()[JobState.READY] == 2

    def test_retried_and_requeued_jobs_keep_their_place(self, storage: Storage) -> None:
        jobs = add_many(storage, 4)
        first, second = claim(storage, 2)
        again_at_once = decided(first, Ending.FAILED, policy=Policy(retries=1))
        given_up = decided(second, Ending.FAILED)
        assert storage.apply([given_up, again_at_once], NOW) == [True, True]
        assert apply_one(storage, lifecycle.requeue(again(storage, second), NOW))
        assert seqs(claim(storage)) == seqs(jobs)

    def test_order_survives_the_removal_of_the_newest(self, storage: Storage) -> None:
        [first] = add(storage, new())
        [newest] = add(storage, new(priority=1))
        succeed(storage, claim(storage, 1))
        assert storage.remove(JobFilter()) == 1
        later = [*add(storage, new()), *add_many(storage, 2)]
        assert min(seqs(later)) > newest.seq
        assert seqs(claim(storage)) == seqs([first, *later])

    def test_each_job_goes_to_exactly_one_of_many_claimers(
        self, storage: Storage, reopen: Callable[[], Storage]
    ) -> None:
        handles = [storage, reopen()]
        jobs = storage.add([new(queue="abc"[number % 3]) for number in range(400)])
        request(storage, owner=THREADS)  # registers them

        def work(thread: int) -> list[Job]:
            own: list[Job] = []
            while taken := claim(
                handles[thread % 2], 1 + thread, owner=thread + 1, queues=None if thread % 3 else ("a", "b", "c")
            ):
                own += taken
            return own

        shares = at_once(work)
        assert sorted(job.seq for share in shares for job in share) == seqs(jobs)
        for thread, share in enumerate(shares):
            assert {job.owner for job in share} <= {thread + 1}
            assert {(job.claim, job.attempt) for job in share} <= {(1, 1)}
        assert sorted(seqs(storage.find(JobFilter(states=frozenset({JobState.RUNNING}))))) == seqs(jobs)

    def test_claiming_and_finishing_at_once_runs_each_job_once(self, storage: Storage) -> None:
        jobs = storage.add([new(priority=number % 3) for number in range(300)])
        owners = [storage.register({}) for _ in range(THREADS)]

        def work(thread: int) -> tuple[list[int], list[bool]]:
            ran: list[int] = []
            answers: list[bool] = []
            transitions: list[Transition] = []
            while True:
                turn = storage.turn(transitions, ClaimRequest(owners[thread], 5), NOW)
                answers += turn.applied
                if not turn.jobs:
                    return ran, answers
                ran += seqs(turn.jobs)
                transitions = [decided(job, Ending.SUCCEEDED, result=b"") for job in turn.jobs]

        shares = at_once(work)
        assert sorted(seq for ran, _ in shares for seq in ran) == seqs(jobs)
        assert [answer for _, answers in shares for answer in answers] == [True] * 300
        assert storage.counts() == dict.fromkeys(JobState, 0) | {JobState.SUCCEEDED: 300}

    def test_many_queues_are_claimed_as_one(self, storage: Storage) -> None:
        jobs = storage.add([new(queue=f"q{number * 7 % 50}") for number in range(150)])
        assert seqs(claim(storage, 60)) == seqs(jobs[:60])
        assert seqs(claim(storage, 60)) == seqs(jobs[60:120])

    # ── promotion ────────────────────────────────────────────────────────────────────────────────────

    def test_a_scheduled_job_is_claimed_from_the_moment_it_is_due(self, storage: Storage) -> None:
        [job] = add(storage, new(due=NOW + 10))
        assert claim(storage, now=NOW + 9.999) == []
        assert again(storage, job).state is JobState.SCHEDULED
        running = claim_one(storage, now=NOW + 10)
        assert running == job._replace(state=JobState.RUNNING, owner=1, started=NOW + 10, claim=1, attempt=1)

    def test_a_turn_that_claims_nothing_promotes_too(self, storage: Storage) -> None:
        soon, later = add(storage, new(due=NOW + 10, queue="q"), new(due=NOW + 20))
        assert storage.turn([], None, NOW + 10).next_due == NOW + 20
        assert again(storage, soon) == soon._replace(state=JobState.READY)
        assert storage.queues() == {"q": 1}
        assert storage.apply([], NOW + 20) == []
        assert again(storage, later).state is JobState.READY

    def test_promoted_jobs_stand_where_their_priority_and_number_put_them(self, storage: Storage) -> None:
        first, second, urgent = add(storage, new(due=NOW + 2), new(due=NOW + 1), new(due=NOW + 3, priority=1))
        [ready] = add(storage, new())
        assert seqs(claim(storage, now=NOW + 5)) == seqs([urgent, first, second, ready])

    def test_next_due_is_that_of_the_earliest_scheduled_job(self, storage: Storage) -> None:
        assert storage.next_due() is None
        assert storage.turn([], None, NOW).next_due is None
        jobs = add(storage, new(due=NOW + 20), new(due=NOW + 10), new(due=NOW + 30), new())
        assert storage.next_due() == NOW + 10
        assert storage.turn([], request(storage, 1, 5), NOW + 10).next_due == NOW + 20
        assert apply_one(storage, lifecycle.revoke(jobs[0], NOW))
        assert storage.next_due() == NOW + 30
        assert storage.turn([], None, NOW + 30).next_due is None
        assert storage.next_due() is None

    def test_a_paused_queue_is_promoted_all_the_same(self, storage: Storage) -> None:
        add(storage, new(due=NOW + 1, queue="q"))
        storage.swap(PAUSE_MARK + "q", None, "")
        assert claim(storage, now=NOW + 1) == []
        assert storage.queues() == {"q": 1}

    def test_a_transition_to_a_due_time_that_has_come_is_promoted_in_the_same_turn(self, storage: Storage) -> None:
        add(storage, new())
        running = claim_one(storage)
        back = lifecycle.release(running)._replace(target=JobState.SCHEDULED, due=NOW + 1)
        turn = storage.turn([back], request(storage, 2), NOW + 1)
        assert (turn.applied, seqs(turn.jobs), turn.next_due) == ([True], [running.seq], None)
        assert turn.jobs[0].due == NOW + 1

    def test_a_large_backlog_becomes_ready_turn_by_turn(self, storage: Storage) -> None:
        storage.add([new(due=NOW + 1 + number % 7) for number in range(5000)])
        turns = 0
        while storage.turn([], None, NOW + 10).next_due is not None:
            turns += 1
            assert turns < 100
        assert storage.counts()[JobState.READY] == 5000
        assert seqs(claim(storage, 5000, now=NOW + 10)) == seqs(storage.find(JobFilter()))

    # ── guards ───────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("state", JobState)
    def test_a_transition_from_another_state_changes_nothing(self, storage: Storage, state: JobState) -> None:
        job = bring(storage, state)
        before = everything(storage)
        for source in set(JobState) - {state}:
            for target in set(JobState) - {JobState.RUNNING}:
                stray = Transition(job.seq, source, job.claim, target, due=NOW + 99, finished=NOW, reason="stray")
                stray = stray._replace(record=Attempt(9, Ending.FAILED, NOW, NOW), forget_expiry=True)
                assert storage.apply([stray], NOW) == [False]
        assert everything(storage) == before

    @pytest.mark.parametrize("state", JobState)
    @pytest.mark.parametrize("difference", [-1, 1, 1000])
    def test_a_transition_under_another_claim_changes_nothing(
        self, storage: Storage, state: JobState, difference: int
    ) -> None:
        job = bring(storage, state)
        before = everything(storage)
        targets = set(JobState) - {JobState.RUNNING}
        strays = [
            Transition(job.seq, state, job.claim + difference, target, due=NOW + 99, finished=NOW, reason="stray")
            for target in targets
        ]
        assert storage.apply(strays, NOW) == [False] * len(strays)
        assert [apply_one(storage, stray, NOW) for stray in strays] == [False] * len(strays)
        assert everything(storage) == before

    @pytest.mark.parametrize("source", JobState)
    @pytest.mark.parametrize("target", sorted(set(JobState) - {JobState.RUNNING}))
    def test_a_transition_whose_guard_holds_leads_to_its_target(
        self, storage: Storage, source: JobState, target: JobState
    ) -> None:
        job = bring(storage, source, queue="q", expires=NOW + 5000)
        change = Transition(
            job.seq,
            source,
            job.claim,
            target,
            due=NOW + 99 if target is JobState.SCHEDULED else None,
            attempt=5,
            base=2,
            crashes=1,
            finished=NOW + 8 if target in FINISHED else None,
            reason="why" if target in {JobState.BLOCKED, JobState.REVOKED, JobState.EXPIRED} else None,
        )
        assert apply_one(storage, change, NOW)
        assert again(storage, job)._replace(attempts=()) == Job(
            job.seq,
            job.id,
            job.task,
            target,
            queue="q",
            created=NOW,
            due=change.due if target is JobState.SCHEDULED else job.due,
            expires=NOW + 5000,
            claim=job.claim,
            attempt=5,
            base=2,
            crashes=1,
            finished=change.finished,
            reason=change.reason,
        )
        assert storage.counts() == dict.fromkeys(JobState, 0) | {target: 1}
        assert storage.queues() == ({"q": 1} if target is JobState.READY else {})

    @pytest.mark.parametrize("seq", [0, -1, 1, 2**62])
    def test_a_transition_of_no_job_changes_nothing(self, storage: Storage, seq: int) -> None:
        for source in JobState:
            stray = Transition(seq, source, 0, JobState.READY, record=Attempt(1, Ending.FAILED, NOW, NOW))
            assert storage.apply([stray, stray], NOW) == [False, False]
        assert everything(storage) == everything(storage)
        assert storage.find(JobFilter()) == []

    def test_a_stale_claim_cannot_finish_a_job(self, storage: Storage) -> None:
        add(storage, new())
        stale = claim_one(storage, owner=1)
        assert apply_one(storage, lifecycle.release(stale))
        fresh = claim_one(storage, owner=2)
        assert (fresh.claim, fresh.attempt) == (2, 1)
        assert storage.apply([decided(stale, Ending.SUCCEEDED, result=b"stale")], NOW) == [False]
        assert again(storage, fresh) == fresh
        assert settle(storage, fresh, Ending.SUCCEEDED, result=b"fresh").result == b"fresh"
        assert storage.apply([decided(stale, Ending.SUCCEEDED), decided(fresh, Ending.SUCCEEDED)], NOW) == [
            False,
            False,
        ]

    @pytest.mark.parametrize("ending", Ending)
    def test_a_stale_outcome_of_any_kind_is_refused(self, storage: Storage, ending: Ending) -> None:
        add(storage, new())
        stale = claim_one(storage)
        assert apply_one(storage, lifecycle.release(stale))
        fresh = claim_one(storage)
        assert storage.apply([decided(stale, ending, policy=Policy(retries=9))], NOW) == [False]
        assert again(storage, fresh) == fresh

    def test_one_stale_transition_does_not_spoil_its_neighbours(self, storage: Storage) -> None:
        jobs = add_many(storage, 100)
        claimed = claim(storage)
        stale = claimed[3::10]
        assert storage.apply([lifecycle.release(job) for job in stale], NOW) == [True] * 10
        answers = storage.apply([decided(job, Ending.SUCCEEDED) for job in claimed], NOW)
        assert answers == [number % 10 != 3 for number in range(100)]
        assert seqs(storage.find(JobFilter(states=frozenset({JobState.READY})))) == seqs(stale)
        assert storage.counts()[JobState.SUCCEEDED] == len(jobs) - 10

    def test_transitions_of_one_job_are_applied_in_order(self, storage: Storage) -> None:
        add(storage, new())
        running = claim_one(storage)
        failed = decided(running, Ending.FAILED)
        back = Transition(running.seq, JobState.FAILED, running.claim, JobState.READY, attempt=1, base=1)
        revoked = Transition(running.seq, JobState.READY, running.claim, JobState.REVOKED, attempt=1, finished=NOW)
        assert storage.apply([failed, failed, back, revoked, back], NOW) == [True, False, True, True, False]
        found = again(storage, running)
        assert (found.state, found.base) == (JobState.REVOKED, 0)
        assert [attempt.ending for attempt in found.attempts] == [Ending.FAILED]
        assert storage.counts() == dict.fromkeys(JobState, 0) | {JobState.REVOKED: 1}

    def test_the_same_success_twice_in_one_turn_counts_once(self, storage: Storage) -> None:
        add_many(storage, 3)
        done = [decided(job, Ending.SUCCEEDED) for job in claim(storage)]
        assert storage.apply([*done, done[1]], NOW) == [True, True, True, False]
        assert storage.counts()[JobState.SUCCEEDED] == 3

    def test_a_success_in_its_short_form_ends_a_job_like_the_long_form(self, storage: Storage) -> None:
        add(storage, new(), new(priority=3))
        short, long = claim(storage)
        result = {"result": b"5"}
        success = lifecycle.succeed(short, outcome(short, Ending.SUCCEEDED, **result))
        turn = storage.turn([decided(long, Ending.SUCCEEDED, **result)], None, NOW + 2, successes=[success])
        assert (turn.applied, set(turn.lost)) == ([True], set())
        same = {"seq": 0, "id": "", "priority": 0}
        assert again(storage, short)._replace(**same) == again(storage, long)._replace(**same)
        assert again(storage, short).state is JobState.SUCCEEDED

    def test_hundreds_of_successes_settle_in_one_turn_whatever_their_claim_numbers(self, storage: Storage) -> None:
        add_many(storage, 333)
        for job in claim(storage)[::3]:
            assert apply_one(storage, lifecycle.release(job))
        claim(storage)
        running = storage.find(JobFilter(states=frozenset({JobState.RUNNING})))
        assert {job.claim for job in running} == {1, 2}
        successes = [lifecycle.succeed(job, outcome(job, Ending.SUCCEEDED)) for job in running]
        assert not storage.turn([], None, NOW, {(running[0].seq, running[0].claim): Progress(1.0)}, successes).lost
        assert storage.counts() == dict.fromkeys(JobState, 0) | {JobState.SUCCEEDED: 333}
        assert {job.claim for job in storage.find(JobFilter())} == {1, 2}
        assert again(storage, running[0]).progress is None

    def test_a_stale_success_is_dropped_and_its_neighbours_hold(self, storage: Storage) -> None:
        add_many(storage, 100)
        claimed = claim(storage)
        stale = claimed[3::10]
        assert storage.apply([lifecycle.release(job) for job in stale], NOW) == [True] * 10
        successes = [lifecycle.succeed(job, outcome(job, Ending.SUCCEEDED)) for job in claimed]
        turn = storage.turn([], request(storage, 1, 1000), NOW, successes=[*successes, successes[0]])
        assert set(turn.lost) == {*seqs(stale), claimed[0].seq}
        assert seqs(turn.jobs) == seqs(stale)
        assert storage.counts() == dict.fromkeys(JobState, 0) | {JobState.SUCCEEDED: 90, JobState.RUNNING: 10}

    def test_a_job_given_back_can_be_claimed_in_the_same_turn(self, storage: Storage) -> None:
        add(storage, new())
        running = claim_one(storage, owner=1)
        turn = storage.turn([lifecycle.release(running)], request(storage, 2), NOW + 1)
        assert turn.applied == [True]
        assert turn.jobs == [running._replace(owner=2, claim=2, attempt=1, started=NOW + 1)]

    def test_no_transition_at_all_is_a_turn(self, storage: Storage) -> None:
        turn = storage.turn([], None, NOW)
        assert (turn.applied, turn.jobs, turn.next_due, dict(turn.marks)) == ([], [], None, {})

    # ── one turn, one transaction ────────────────────────────────────────────────────────────────────

    def test_a_turn_that_fails_has_done_nothing_and_can_be_tried_again(self, storage: Storage) -> None:
        add_many(storage, 6)
        add(storage, new(due=NOW + 1))
        storage.swap("revoke:x", None, "v")
        running = claim(storage, 4)
        before = everything(storage)
        good = [
            decided(running[0], Ending.SUCCEEDED, result=b"5"),
            decided(running[1], Ending.FAILED),
            lifecycle.release(running[2])._replace(consume=("revoke:x", "v")),
        ]
        nowhere = lifecycle.release(running[3])._replace(target=JobState.SCHEDULED, due=None)
        with pytest.raises(StorageError):
            said = {(running[3].seq, running[3].claim): Progress(1.0)}
            storage.turn([*good, nowhere], ClaimRequest(1, 9), NOW + 5, said)
        with pytest.raises((TypeError, AttributeError)):
            storage.turn([*good, None], ClaimRequest(1, 9), NOW + 5)  # type: ignore[list-item]
        assert everything(storage) == before
        turn = storage.turn(good, ClaimRequest(1, 9), NOW + 5)
        assert (turn.applied, len(turn.jobs)) == ([True] * 3, 4)

    def test_what_a_turn_did_is_seen_by_others_at_once(self, storage: Storage, reopen: Callable[[], Storage]) -> None:
        add_many(storage, 2)
        first, second = claim(storage)
        storage.turn([decided(first, Ending.SUCCEEDED)], None, NOW, {(second.seq, second.claim): Progress(0.5)})
        assert everything(reopen()) == everything(storage)

    # ── how attempts end, and what is kept of them ───────────────────────────────────────────────────

    @pytest.mark.parametrize("result", [None, b"", b"5"])
    def test_a_success_keeps_its_result_and_its_times(self, storage: Storage, result: bytes | None) -> None:
        add(storage, new())
        running = claim_one(storage)
        done = settle(storage, running, Ending.SUCCEEDED, NOW + 2, result=result)
        success = Attempt(1, Ending.SUCCEEDED, NOW + 1, NOW + 2)
        assert done == running._replace(
            state=JobState.SUCCEEDED, owner=None, started=NOW + 1, finished=NOW + 2, result=result, attempts=(success,)
        )

    def test_a_success_after_failures_is_the_last_of_the_history(self, storage: Storage) -> None:
        add(storage, new())
        settle(storage, claim_one(storage), Ending.FAILED, policy=Policy(retries=1), message="once")
        done = settle(storage, claim_one(storage), Ending.SUCCEEDED, NOW + 9)
        assert [(attempt.number, attempt.ending) for attempt in done.attempts] == [
            (1, Ending.FAILED),
            (2, Ending.SUCCEEDED),
        ]
        assert done.error is None

    @pytest.mark.parametrize("ending", [Ending.FAILED, Ending.TIMEOUT, Ending.CRASHED, Ending.RETRY, Ending.GAVE_UP])
    def test_a_failure_is_kept_with_everything_known_of_it(self, storage: Storage, ending: Ending) -> None:
        add(storage, new(payload=b"kept"))
        running = claim_one(storage)
        known = {"error_type": "ValueError", "message": "no", "traceback": "line 1\nline 2", "details": "SIGKILL"}
        failed = settle(storage, running, ending, NOW + 2, policy=Policy(max_crashes=1), **known)
        record = Attempt(1, ending, NOW + 1, NOW + 2, **known)
        assert failed == running._replace(
            state=JobState.FAILED,
            owner=None,
            started=NOW + 1,
            finished=NOW + 2,
            crashes=1 if ending is Ending.CRASHED else 0,
            attempts=(record,),
        )
        assert isinstance(failed.attempts[0].ending, Ending)

    @pytest.mark.parametrize("text", [*UGLY_TEXTS, "é\0" * 500_000], ids=lambda text: repr(text[:12]))
    def test_history_keeps_any_text(self, storage: Storage, text: str) -> None:
        add(storage, new())
        failed = settle(
            storage, claim_one(storage), Ending.FAILED, error_type=text, message=text, traceback=text, details=text
        )
        assert failed.attempts[0][4:8] == (text,) * 4

    @pytest.mark.parametrize("death", [None, Death(), Death(1 << 40, 0.25, "line 1\nline 2"), Death(log="é\0")])
    def test_what_is_known_of_a_workers_death_is_kept(self, storage: Storage, death: Death | None) -> None:
        add(storage, new())
        failed = settle(storage, claim_one(storage), Ending.CRASHED, policy=Policy(max_crashes=1), death=death)
        assert failed.attempts[0][8:] == (death or Death())

    def test_history_without_a_start_is_kept(self, storage: Storage) -> None:
        add(storage, new())
        running = claim_one(storage)
        record = Attempt(1, Ending.CRASHED, None, NOW)
        transition = Transition(running.seq, JobState.RUNNING, 1, JobState.FAILED, finished=NOW, record=record)
        assert apply_one(storage, transition)
        assert again(storage, running).attempts == (record,)
        assert again(storage, running).started is None

    def test_a_retry_later_is_scheduled_and_due_then(self, storage: Storage) -> None:
        add(storage, new())
        policy = Policy(retries=1, retry=RetryDelay(delay=60))
        waiting = settle(storage, claim_one(storage), Ending.FAILED, NOW + 2, policy=policy)
        assert (waiting.state, waiting.due, waiting.attempt) == (JobState.SCHEDULED, NOW + 62, 1)
        assert (waiting.owner, waiting.started, waiting.finished) == (None, None, None)
        assert storage.next_due() == NOW + 62
        assert claim_one(storage, now=NOW + 62).attempt == 2

    def test_a_given_back_attempt_is_not_counted_and_leaves_no_trace(self, storage: Storage) -> None:
        [job] = add(storage, new())
        for expected in range(1, 4):
            running = claim_one(storage)
            assert (running.claim, running.attempt) == (expected, 1)
            settle(storage, running, Ending.INTERRUPTED)
        assert again(storage, job) == job._replace(claim=3)

    def test_due_stays_what_it_was_unless_a_transition_gives_another(self, storage: Storage) -> None:
        [job] = add(storage, new(due=NOW + 1))
        running = claim_one(storage, now=NOW + 1)
        assert settle(storage, running, Ending.INTERRUPTED, NOW + 1).due == NOW + 1
        running = claim_one(storage, now=NOW + 1)
        assert settle(storage, running, Ending.SNOOZED, NOW + 1, delay=50).due == NOW + 51
        assert apply_one(storage, lifecycle.revoke(again(storage, job), NOW))
        assert again(storage, job).due == NOW + 51

    def test_a_ready_job_can_be_given_another_due_time_too(self, storage: Storage) -> None:
        [job] = add(storage, new())
        assert apply_one(storage, Transition(job.seq, JobState.READY, 0, JobState.READY, due=NOW - 5))
        assert again(storage, job) == job._replace(due=NOW - 5)
        assert seqs(claim(storage)) == [job.seq]

    def test_a_scheduled_job_can_be_moved_to_another_time(self, storage: Storage) -> None:
        first, second = add(storage, new(due=NOW + 10), new(due=NOW + 20))
        for due in (30, 5, 30, 40):
            assert apply_one(storage, lifecycle.reschedule(again(storage, first), NOW + due, NOW), NOW)
        assert storage.next_due() == NOW + 20
        assert again(storage, first).due == NOW + 40
        assert seqs(claim(storage, now=NOW + 39)) == [second.seq]
        assert seqs(claim(storage, now=NOW + 40)) == [first.seq]

    def test_reasons_are_kept_while_they_hold(self, storage: Storage) -> None:
        [job] = add(storage, new("a"))
        blocked = settle(storage, claim_one(storage), Ending.UNKNOWN)
        assert (blocked.state, blocked.reason) == (JobState.BLOCKED, "unknown task: a")
        assert apply_one(storage, lifecycle.unblock(blocked, NOW))
        assert again(storage, job).reason is None
        assert apply_one(storage, lifecycle.revoke(again(storage, job), NOW, "wrong übung"))
        assert (again(storage, job).reason, again(storage, job).finished) == ("wrong übung", NOW)
        assert apply_one(storage, lifecycle.restore(again(storage, job), NOW))
        assert again(storage, job) == job._replace(claim=1)

    def test_a_task_that_cancels_itself_leaves_reason_and_record(self, storage: Storage) -> None:
        add(storage, new())
        revoked = settle(storage, claim_one(storage), Ending.CANCELLED, message="not needed")
        assert (revoked.state, revoked.reason) == (JobState.REVOKED, "not needed")
        assert [attempt.message for attempt in revoked.attempts] == ["not needed"]

    def test_requeue_keeps_the_history_and_drops_result_and_expiry(self, storage: Storage) -> None:
        [job] = add(storage, new(expires=NOW + 5))
        done = settle(storage, claim_one(storage), Ending.SUCCEEDED, result=b"5")
        assert apply_one(storage, lifecycle.requeue(done, NOW))
        back = again(storage, job)
        assert back == job._replace(claim=1, attempt=1, base=1, expires=None)
        failed = settle(storage, claim_one(storage), Ending.FAILED)
        assert [(attempt.number, attempt.ending) for attempt in failed.attempts] == [(2, Ending.FAILED)]
        assert apply_one(storage, lifecycle.requeue(failed, NOW))
        settle(storage, claim_one(storage), Ending.CRASHED)
        assert [attempt.number for attempt in again(storage, job).attempts] == [2, 3]

    def test_a_long_history_stays_in_order(self, storage: Storage) -> None:
        [job] = add(storage, new())
        for number in range(1, 26):
            settle(storage, claim_one(storage), Ending.FAILED, policy=Policy(retries=99), message=f"m{number}")
        history = again(storage, job).attempts
        assert [(attempt.number, attempt.message) for attempt in history] == [(n, f"m{n}") for n in range(1, 26)]

    def test_histories_of_jobs_do_not_mix(self, storage: Storage) -> None:
        add_many(storage, 5)
        claimed = claim(storage)
        storage.apply([decided(job, Ending.FAILED, message=job.id) for job in claimed], NOW)
        assert all(again(storage, job).attempts[0].message == job.id for job in claimed)

    # ── progress ─────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("step", [Progress(0.0), Progress(1.5, 10.0, "half 🐇"), Progress(-1e300, 0.0, "a\0b")])
    def test_progress_of_a_running_job_is_shown(self, storage: Storage, step: Progress) -> None:
        add(storage, new())
        running = claim_one(storage)
        storage.turn([], None, NOW, {(running.seq, running.claim): Progress(99.0, 99.0, "old")})
        storage.turn([], None, NOW, {(running.seq, running.claim): step})
        assert again(storage, running) == running._replace(progress=step)
        assert storage.find(JobFilter(owner=1)) == [running._replace(progress=step)]

    def test_progress_of_a_job_that_does_not_run_is_dropped(self, storage: Storage) -> None:
        [job] = add(storage, new())
        turn = storage.turn([], request(storage), NOW, {(job.seq, job.claim): Progress(1.0), (999, 1): Progress(2.0)})
        assert turn.jobs[0].progress is None
        assert again(storage, job).progress is None
        [running] = turn.jobs
        storage.turn([decided(running, Ending.SUCCEEDED)], None, NOW, {(job.seq, running.claim): Progress(3.0)})
        assert again(storage, job).progress is None

    @pytest.mark.parametrize("ending", Ending)
    def test_progress_ends_with_the_attempt(self, storage: Storage, ending: Ending) -> None:
        add(storage, new())
        running = claim_one(storage)
        storage.turn([], None, NOW, {(running.seq, running.claim): Progress(1.0)})
        after = settle(storage, running, ending, policy=Policy(retries=5), delay=10)
        assert after.progress is None
        if after.state is JobState.SCHEDULED:
            assert claim_one(storage, now=NOW + 99).progress is None
            assert again(storage, running).progress is None

    @pytest.mark.parametrize("owner", [1, 2])
    def test_progress_of_an_attempt_that_was_taken_over_is_dropped(self, storage: Storage, owner: int) -> None:
        add(storage, new())
        stale = claim_one(storage, owner=1)
        storage.turn([], None, NOW, {(stale.seq, stale.claim): Progress(1.0)})
        assert again(storage, stale).progress == Progress(1.0)
        storage.apply([lifecycle.release(stale)], NOW)  # taken away from a consumer that was thought dead, or given up
        running = claim_one(storage, owner=owner)
        said = {(running.seq, running.claim): Progress(3.0), (stale.seq, stale.claim): Progress(2.0)}
        storage.turn([], None, NOW, said)
        storage.turn([], request(storage, 1, 5), NOW, {(stale.seq, stale.claim): Progress(2.0)})
        assert again(storage, running).progress == Progress(3.0)

    def test_refused_transitions_leave_progress_alone(self, storage: Storage) -> None:
        add(storage, new())
        running = claim_one(storage)
        stale = decided(running, Ending.SUCCEEDED)._replace(claim=9)
        storage.turn([stale], None, NOW, {(running.seq, running.claim): Progress(1.0)})
        assert again(storage, running).progress == Progress(1.0)

    # ── questions ────────────────────────────────────────────────────────────────────────────────────

    def test_an_empty_storage_answers_everything(self, storage: Storage) -> None:
        assert storage.get("1-0000000000") is None
        assert storage.find(JobFilter()) == []
        assert storage.finished([]) == set()
        assert storage.counts() == dict.fromkeys(JobState, 0)
        assert (storage.queues(), storage.reasons(), storage.next_due()) == ({}, {}, None)
        assert (storage.marks(), storage.owners(), storage.dead_owners()) == ({}, [], [])
        assert storage.remove(JobFilter()) == 0

    def test_find_shows_no_history(self, storage: Storage) -> None:
        failed = bring(storage, JobState.FAILED)
        assert len(failed.attempts) == 1
        assert storage.find(JobFilter()) == [failed._replace(attempts=())]

    def test_find_by_state(self, storage: Storage) -> None:
        jobs = self.one_of_each(storage)
        for state, job in jobs.items():
            assert storage.find(JobFilter(states=frozenset({state}))) == [job]
        for states in [WAITING, FINISHED, frozenset({JobState.RUNNING, JobState.EXPIRED})]:
            expected = sorted((jobs[state] for state in states), key=lambda job: job.seq)
            assert storage.find(JobFilter(states=states)) == expected
        assert storage.find(JobFilter()) == sorted(jobs.values(), key=lambda job: job.seq)

    def one_of_each(self, storage: Storage) -> dict[JobState, Job]:
        """A job in each state, by state, without history; number and age do not follow the order of the states."""
        last = [JobState.SCHEDULED, JobState.RUNNING, JobState.READY]  # what a later claim must not find
        order = [JobState.EXPIRED, JobState.SUCCEEDED, JobState.BLOCKED, JobState.FAILED, JobState.REVOKED, *last]
        return {state: bring(storage, state)._replace(attempts=()) for state in order}

    FILTERS = (
        (JobFilter(queue="q"), [1, 2, 4]),
        (JobFilter(queue=""), []),
        (JobFilter(task="b"), [1, 3]),
        (JobFilter(task="B"), []),
        (JobFilter(queue="q", task="b"), [1]),
        (JobFilter(owner=4), [3]),
        (JobFilter(owner=5), []),
        (JobFilter(owner=0), []),
        (JobFilter(owner=4, queue="q"), []),
        (JobFilter(reason="unknown task: c"), [2]),
        (JobFilter(reason="revoked"), []),
        (JobFilter(reason=""), []),
        (JobFilter(finished_before=NOW + 2), []),
        (JobFilter(finished_before=NOW + 2.001), [4]),
        (JobFilter(finished_before=0.0), []),
        (JobFilter(finished_before=NOW + 99), [4, 5]),
        (JobFilter(finished_before=NOW + 99, states=frozenset({JobState.REVOKED, JobState.READY})), [5]),
        (JobFilter(expired_at=NOW + 50), [0]),
        (JobFilter(expired_at=NOW + 49), []),
        (JobFilter(expired_at=NOW + 60), [0, 1]),
        (JobFilter(expired_at=NOW + 70), [0, 1, 2]),
        (JobFilter(expired_at=0.0), []),
        (JobFilter(expired_at=NOW + 99, states=frozenset({JobState.SCHEDULED})), [1]),
        (JobFilter(limit=2), [0, 1]),
        (JobFilter(limit=0), []),
        (JobFilter(limit=2, newest_first=True), [5, 4]),
        (JobFilter(limit=1, queue="q", newest_first=True), [4]),
        (JobFilter(limit=99), [0, 1, 2, 3, 4, 5]),
        (JobFilter(newest_first=True), [5, 4, 3, 2, 1, 0]),
    )

    @pytest.mark.parametrize(("query", "expected"), FILTERS, ids=in_short)
    def test_find_gives_what_matches_everything_asked(
        self, storage: Storage, query: JobFilter, expected: list[int]
    ) -> None:
        jobs = self.a_mixture(storage)
        assert [jobs.index(job.seq) for job in storage.find(query)] == expected

    def a_mixture(self, storage: Storage) -> list[int]:
        """Six jobs that differ in everything a filter can ask for; their numbers."""
        jobs = add(
            storage,
            new("a", expires=NOW + 50),
            new("b", queue="q", due=NOW + 1000, expires=NOW + 60),
            new("c", queue="q", priority=9, expires=NOW + 70),
            new("b", priority=8, expires=NOW + 50),
            new("d", queue="q", priority=7, expires=NOW + 50),
            new("e", expires=NOW + 50),
        )
        settle(storage, claim_one(storage), Ending.UNKNOWN)
        claim_one(storage, owner=4)
        settle(storage, claim_one(storage), Ending.SUCCEEDED, NOW + 2)
        assert apply_one(storage, lifecycle.revoke(jobs[5], NOW + 3))
        return seqs(jobs)

    @pytest.mark.parametrize("newest_first", [False, True])
    @pytest.mark.parametrize("size", [1, 3, 50])
    def test_paging_shows_each_job_once(self, storage: Storage, newest_first: bool, size: int) -> None:
        self.one_of_each(storage)
        add_many(storage, 7)
        whole = storage.find(JobFilter(newest_first=newest_first))
        paged: list[Job] = []
        after = None
        while page := storage.find(JobFilter(after=after, newest_first=newest_first, limit=size)):
            assert len(page) <= size
            paged += page
            after = page[-1].seq
        assert paged == whole
        assert seqs(whole) == sorted(seqs(whole), reverse=newest_first)

    def test_counts_follow_every_kind_of_move(self, storage: Storage) -> None:
        self.one_of_each(storage)
        assert storage.counts() == dict.fromkeys(JobState, 1)
        generator = random.Random(1)
        for step in range(60):
            jobs = storage.find(JobFilter())
            job = generator.choice(jobs)
            target = generator.choice([state for state in JobState if state is not JobState.RUNNING])
            move = Transition(job.seq, job.state, job.claim, target, due=NOW + 99, finished=NOW, reason="r")
            assert apply_one(storage, move, NOW)
            if step % 5 == 0:
                add(storage, new())
                claim(storage, 1)
            shown = Counter(job.state for job in storage.find(JobFilter()))
            assert storage.counts() == {state: shown[state] for state in JobState}
            queued = [job.queue for job in storage.find(JobFilter(states=frozenset({JobState.READY})))]
            assert storage.queues() == dict(Counter(queued))
            assert storage.reasons() == ({"r": shown[JobState.BLOCKED]} if shown[JobState.BLOCKED] else {})

    def test_queues_counts_what_is_ready_by_queue(self, storage: Storage) -> None:
        storage.add([new(queue=queue) for queue in ["a", "b", "a", ""]])
        add(storage, new(queue="later", due=NOW + 1))
        assert storage.queues() == {"a": 2, "b": 1, "": 1}
        claim(storage, 2)
        assert storage.queues() == {"a": 1, "": 1}

    def test_the_next_expiry_is_the_first_after_an_instant(self, storage: Storage) -> None:
        assert storage.next_expiry(0.0) is None
        add(storage, new(), new(expires=NOW + 50), new(due=NOW + 9, expires=NOW + 60), new(expires=NOW + 70))
        found = [storage.next_expiry(after) for after in (0.0, NOW + 49.9, NOW + 50, NOW + 60, NOW + 70)]
        assert found == [NOW + 50, NOW + 50, NOW + 60, NOW + 70, None]

    def test_reasons_counts_what_is_blocked_by_reason(self, storage: Storage) -> None:
        storage.add([new(task) for task in "aab"])
        storage.apply([decided(job, Ending.UNKNOWN) for job in claim(storage)], NOW)
        assert storage.reasons() == {"unknown task: a": 2, "unknown task: b": 1}
        [blocked] = storage.find(JobFilter(reason="unknown task: b"))
        assert apply_one(storage, lifecycle.unblock(blocked, NOW))
        assert storage.reasons() == {"unknown task: a": 2}

    def test_finished_means_ended_or_gone(self, storage: Storage) -> None:
        jobs = self.one_of_each(storage)
        ended = {job.seq for state, job in jobs.items() if state in FINISHED}
        asked = [*seqs(list(jobs.values())), *seqs(list(jobs.values()))]
        assert storage.finished(asked) == ended
        assert storage.finished(iter(asked)) == ended
        assert storage.finished([jobs[JobState.READY].seq]) == set()
        assert storage.finished([0, -5, 2**62]) == {0, -5, 2**62}
        storage.remove(JobFilter())
        assert storage.finished(asked) == ended

    def test_finished_takes_as_many_as_there_are(self, storage: Storage) -> None:
        jobs = add_many(storage, 3000)
        succeed(storage, claim(storage, 1500))
        assert storage.finished(seqs(jobs)) == set(seqs(jobs[:1500]))

    # ── removing ─────────────────────────────────────────────────────────────────────────────────────

    def test_only_finished_jobs_are_removed(self, storage: Storage) -> None:
        jobs = self.one_of_each(storage)
        assert storage.remove(JobFilter(states=WAITING | {JobState.RUNNING})) == 0
        assert storage.remove(JobFilter()) == len(FINISHED)
        assert {job.state for job in storage.find(JobFilter())} == set(JobState) - FINISHED
        assert all((storage.get(job.id) is None) == (state in FINISHED) for state, job in jobs.items())

    @pytest.mark.parametrize("state", sorted(FINISHED))
    def test_removal_by_state_takes_no_other(self, storage: Storage, state: JobState) -> None:
        self.one_of_each(storage)
        assert storage.remove(JobFilter(states=frozenset({state, JobState.READY, JobState.RUNNING}))) == 1
        assert storage.counts() == dict.fromkeys(JobState, 1) | {state: 0}

    @pytest.mark.parametrize(("query", "expected"), [case for case in FILTERS if case[0].limit is None], ids=in_short)
    def test_removal_takes_the_finished_ones_that_match(
        self, storage: Storage, query: JobFilter, expected: list[int]
    ) -> None:
        jobs = self.a_mixture(storage)
        doomed = {number for number in expected if number in (4, 5)}
        assert storage.remove(replace(query, limit=None)) == len(doomed)
        assert [jobs.index(job.seq) for job in storage.find(JobFilter())] == sorted(set(range(6)) - doomed)

    def test_removal_goes_no_further_than_its_limit(self, storage: Storage) -> None:
        add_many(storage, 10)
        succeed(storage, claim(storage))
        assert [storage.remove(JobFilter(limit=4)) for _ in range(4)] == [4, 4, 2, 0]
        assert storage.find(JobFilter()) == []

    def test_what_was_kept_long_enough_is_found_by_state(self, storage: Storage) -> None:
        failed = bring(storage, JobState.FAILED)
        assert failed.finished is not None
        add_many(storage, 4)
        done = claim(storage)
        for number, job in enumerate(done):
            storage.apply([decided(job, Ending.SUCCEEDED, NOW + number)], NOW)
        bring(storage, JobState.RUNNING)
        assert storage.outdated({JobState.SUCCEEDED: NOW + 1.5}, 0, 100, 100) == (seqs(done[:2]), None, 0.5)
        both = {JobState.SUCCEEDED: NOW + 2, JobState.FAILED: failed.finished + 1}
        assert storage.outdated(both, 0, 100, 100) == (seqs([failed, *done[:2]]), None, 0.0)
        assert storage.outdated(both, failed.seq, 100, 100).seqs == seqs(done[:2])
        assert storage.outdated({JobState.SUCCEEDED: NOW - 5}, done[0].seq, 100, 100) == ([], None, 6.0)
        assert storage.outdated({JobState.REVOKED: NOW + 100}, 0, 100, 100) == ([], None, None)
        assert storage.outdated({}, 0, 100, 100) == ([], None, None)
        assert storage.outdated(both, 10**6, 100, 100) == ([], None, None)

    @pytest.mark.parametrize(("window", "limit"), [(1, 1), (3, 100), (100, 4), (4, 4), (5, 2), (100, 100)])
    def test_a_look_goes_no_further_than_it_is_told_and_on_from_there(
        self, storage: Storage, window: int, limit: int
    ) -> None:
        jobs = add_many(storage, 12)
        succeed(storage, claim(storage, 10), NOW)
        storage.discard(seqs(jobs[2:4]))
        found: list[int] = []
        last: int | None = 0
        for _ in range(40):
            one = storage.outdated({JobState.SUCCEEDED: NOW + 1}, last or 0, window, limit)
            assert len(one.seqs) <= min(window, limit)
            found += one.seqs
            last = one.last
            if last is None:
                break
        assert last is None
        assert found == seqs([*jobs[:2], *jobs[4:10]])

    def test_only_finished_jobs_are_discarded(self, storage: Storage) -> None:
        jobs = self.one_of_each(storage)
        assert storage.discard([*seqs(list(jobs.values())), 10**6]) == len(FINISHED)
        assert {job.state for job in storage.find(JobFilter())} == set(JobState) - FINISHED
        assert storage.discard(seqs(list(jobs.values()))) == 0
        assert storage.discard([]) == 0

    def test_removal_takes_the_history_along(self, storage: Storage) -> None:
        failed = bring(storage, JobState.FAILED, id="x")
        assert storage.remove(JobFilter()) == 1
        assert storage.get("x") is None
        [job] = add(storage, new(id="x"))
        assert again(storage, job).attempts == ()
        assert job.seq != failed.seq

    def test_a_removed_job_is_past_every_transition(self, storage: Storage) -> None:
        failed = bring(storage, JobState.FAILED)
        requeue = lifecycle.requeue(failed, NOW)
        storage.remove(JobFilter())
        assert not apply_one(storage, requeue)
        assert storage.find(JobFilter()) == []

    def test_a_number_never_comes_back(self, storage: Storage, reopen: Callable[[], Storage]) -> None:
        used: list[int] = []
        for round_ in range(4):
            used += seqs([*add(storage, new()), *add_many(storage, round_), *add(storage, new(id="x"))])
            succeed(storage, claim(storage, owner=storage.register({})))
            assert storage.remove(JobFilter()) == 2 + round_
            assert storage.find(JobFilter()) == []
            storage.close()
            storage = reopen()
        assert used == sorted(set(used))

    def test_what_was_removed_is_in_no_answer(self, storage: Storage) -> None:
        done = bring(storage, JobState.SUCCEEDED, queue="q")
        storage.remove(JobFilter())
        assert storage.counts() == dict.fromkeys(JobState, 0)
        assert (storage.queues(), storage.find(JobFilter(queue=""))) == ({}, [])
        assert storage.finished([done.seq]) == {done.seq}
        assert claim(storage) == []

    # ── where jobs stand ─────────────────────────────────────────────────────────────────────────────

    def test_ahead_counts_the_ready_jobs_of_the_queue_that_come_first(self, storage: Storage) -> None:
        jobs = [storage.add([new(queue="q", priority=priority)])[0] for priority in (0, 1, 0, -1, 1)]
        add(storage, new(queue="other", priority=9), new(queue="q", priority=9, due=NOW + 60))
        assert [storage.ahead(job.seq) for job in jobs] == [2, 0, 3, 4, 1]
        assert [storage.ahead(seq) for seq in (0, 7, 99)] == [0, 0, 0]
        claim(storage, 1, queues=("q",))
        assert [storage.ahead(job.seq) for job in jobs] == [1, 0, 2, 3, 0]

    def test_standing_tells_where_unfinished_jobs_are_and_leaves_out_the_others(self, storage: Storage) -> None:
        states = [state for state in JobState if state is not JobState.READY]
        jobs = {state: bring(storage, state) for state in [*states, JobState.READY]}
        standing = storage.standing([*(job.seq for job in jobs.values()), 999_999])
        assert {seq: (one.seq, one.state) for seq, one in standing.items()} == {
            job.seq: (job.seq, state) for state, job in jobs.items() if state not in FINISHED
        }
        for seq, one in standing.items():
            job = next(job for job in jobs.values() if job.seq == seq)
            assert (one.queue, one.due, one.claim, one.owner) == (job.queue, job.due, job.claim, job.owner)
            assert one.reason == (job.reason if one.state is JobState.BLOCKED else None)

    def test_standing_tells_of_every_running_job_unasked(self, storage: Storage) -> None:
        running = [bring(storage, JobState.RUNNING) for _ in range(3)]
        bring(storage, JobState.READY)
        assert storage.standing(()).keys() == {job.seq for job in running}

    # ── marks ────────────────────────────────────────────────────────────────────────────────────────

    def test_swap_changes_a_mark_only_from_what_was_expected(self, storage: Storage) -> None:
        assert not storage.swap("k", "a", "b")
        assert storage.swap("k", None, "a")
        assert not storage.swap("k", None, "b")
        assert not storage.swap("k", "b", None)
        assert storage.marks() == {"k": "a"}
        assert storage.swap("k", "a", "b")
        assert storage.swap("k", "b", "b")
        assert storage.marks() == {"k": "b"}
        assert storage.swap("k", "b", None)
        assert storage.swap("k", None, None)
        assert storage.marks() == {}

    def test_an_empty_mark_is_not_an_absent_one(self, storage: Storage) -> None:
        assert storage.swap("k", None, "")
        assert not storage.swap("k", None, "x")
        assert storage.marks("k") == {"k": ""}
        assert storage.swap("k", "", None)
        assert storage.marks("k") == {}

    @pytest.mark.parametrize("text", UGLY_TEXTS, ids=lambda text: repr(text[:12]))
    def test_marks_are_any_text(self, storage: Storage, text: str) -> None:
        assert storage.swap(text, None, text)
        assert storage.marks() == {text: text}
        assert not storage.swap(text, text + " ", None)
        assert storage.swap(text, text, None)

    def test_marks_by_prefix_are_letter_by_letter(self, storage: Storage) -> None:
        keys = ["a", "A", "a%b", "a_b", "axb", "a\U0010ffff", "ab", "b", "", "a\0"]
        for key in keys:
            storage.swap(key, None, "v")
        for prefix in ["", "a", "A", "a%", "a_", "a\0", "b", "B", "c", "a\U0010ffff", "ab", "*"]:
            assert set(storage.marks(prefix)) == {key for key in keys if key.startswith(prefix)}

    def test_a_turn_shows_what_is_revoked_and_cancelled(self, storage: Storage) -> None:
        shown = {REVOKE_MARK + "t": "1", CANCEL_MARK + "7": "", REVOKE_MARK: "2", STACK_MARK + "1:7:x": "?"}
        for key, value in {**shown, PAUSE_MARK + "q": "", "revoke": "", "Revoke:x": "", "x:revoke:": ""}.items():
            storage.swap(key, None, value)
        assert dict(storage.turn([], None, NOW).marks) == shown
        storage.swap(CANCEL_MARK + "7", "", None)
        del shown[CANCEL_MARK + "7"]
        assert dict(storage.turn([], request(storage), NOW).marks) == shown

    def test_the_marks_of_a_turn_do_not_change_afterwards(self, storage: Storage) -> None:
        storage.swap(REVOKE_MARK + "t", None, "1")
        turn = storage.turn([], None, NOW)
        storage.swap(REVOKE_MARK + "t", "1", "2")
        storage.swap(REVOKE_MARK + "u", None, "1")
        assert dict(turn.marks) == {REVOKE_MARK + "t": "1"}

    @pytest.mark.parametrize(("value", "applied"), [("once", True), ("twice", False), ("", False), (None, False)])
    def test_a_transition_that_uses_up_a_mark_needs_it(
        self, storage: Storage, value: str | None, applied: bool
    ) -> None:
        storage.swap("other", None, "once")
        storage.swap(REVOKE_MARK + "t", None, value)
        add(storage, new("t"))
        running = claim_one(storage)
        before = everything(storage)
        ended = lifecycle.release(running)._replace(
            target=JobState.REVOKED, finished=NOW, consume=(REVOKE_MARK + "t", "once")
        )
        turn = storage.turn([ended], None, NOW)
        assert turn.applied == [applied]
        if applied:
            assert dict(turn.marks) == {}
            assert storage.marks() == {"other": "once"}
            assert again(storage, running).state is JobState.REVOKED
        else:
            assert everything(storage) == before

    def test_a_mark_is_used_up_by_one_transition_of_a_turn(self, storage: Storage) -> None:
        storage.swap("m", None, "once")
        add_many(storage, 3)
        transitions = [
            lifecycle.release(job)._replace(target=JobState.REVOKED, finished=NOW, consume=("m", "once"))
            for job in claim(storage)
        ]
        assert storage.apply(transitions, NOW) == [True, False, False]
        assert storage.marks() == {}
        assert storage.counts()[JobState.RUNNING] == 2

    def test_a_refused_transition_uses_up_no_mark(self, storage: Storage) -> None:
        storage.swap("m", None, "once")
        [job] = add(storage, new())
        stray = Transition(job.seq, JobState.RUNNING, 0, JobState.REVOKED, finished=NOW, consume=("m", "once"))
        assert storage.apply([stray], NOW) == [False]
        assert storage.marks() == {"m": "once"}

    @pytest.mark.parametrize("value", ["v", "", None])
    def test_a_transition_may_drop_a_mark_whatever_its_value(self, storage: Storage, value: str | None) -> None:
        storage.swap("other", None, "v")
        storage.swap("cancel:1", None, value)
        add(storage, new())
        running = claim_one(storage)
        turn = storage.turn([decided(running, Ending.SUCCEEDED)._replace(drop_mark="cancel:1")], None, NOW)
        assert (turn.applied, dict(turn.marks)) == ([True], {})
        assert storage.marks() == {"other": "v"}

    def test_a_refused_transition_drops_no_mark(self, storage: Storage) -> None:
        storage.swap("cancel:1", None, "v")
        add(storage, new())
        running = claim_one(storage)
        stale = decided(running, Ending.SUCCEEDED)._replace(claim=9, drop_mark="cancel:1")
        no_mark = decided(running, Ending.SUCCEEDED)._replace(consume=("m", "v"), drop_mark="cancel:1")
        assert storage.apply([stale, no_mark], NOW) == [False, False]
        assert storage.marks() == {"cancel:1": "v"}

    def test_a_dropped_mark_is_gone_for_the_rest_of_the_turn(self, storage: Storage) -> None:
        storage.swap("m", None, "once")
        add_many(storage, 3)
        first, second, third = [lifecycle.release(job) for job in claim(storage)]
        moves = [first._replace(drop_mark="m"), second._replace(consume=("m", "once")), third._replace(drop_mark="m")]
        assert storage.apply(moves, NOW) == [True, False, True]
        assert storage.marks() == {}

    def test_one_of_many_swaps_at_once_wins(self, storage: Storage, reopen: Callable[[], Storage]) -> None:
        handles = [storage, reopen()]
        wins = at_once(lambda thread: [handles[thread % 2].swap(f"k{n}", None, str(thread)) for n in range(10)])
        for number in range(10):
            [winner] = [thread for thread in range(THREADS) if wins[thread][number]]
            assert storage.marks(f"k{number}") == {f"k{number}": str(winner)}

    def test_counting_by_swaps_loses_no_step(self, storage: Storage) -> None:
        storage.swap("n", None, "0")

        def count(_: int) -> None:
            for _ in range(10):
                while not storage.swap("n", value := storage.marks("n")["n"], str(int(value) + 1)):
                    pass

        at_once(count, 4)
        assert storage.marks() == {"n": "40"}

    # ── owners ───────────────────────────────────────────────────────────────────────────────────────

    def test_an_owner_lives_and_says_who_it_is(self, storage: Storage, reopen: Callable[[], Storage]) -> None:
        info = {"host": "h", "pid": 7, "queues": ["a", "ü"], "nested": {"x": None, "y": 1.5, "z": True}}
        number = storage.register(info)
        for handle in (storage, reopen()):
            [owner] = handle.owners()
            assert (owner.number, dict(owner.info), owner.alive) == (number, info, True)
            assert handle.dead_owners() == []

    def test_nothing_is_claimed_for_one_who_is_not_registered(self, storage: Storage) -> None:
        add_many(storage, 3)
        [job] = claim(storage, 1)
        gone = storage.register({})
        storage.unregister(gone)
        before = everything(storage)
        end = decided(job, Ending.SUCCEEDED)
        for stranger in (gone, gone + 7, -1):
            with pytest.raises(StorageError, match=f"{stranger} is not the number of a registered consumer"):
                storage.turn([end], ClaimRequest(stranger, 1), NOW)
        assert everything(storage) == before
        assert storage.turn([end], ClaimRequest(gone, 0), NOW).applied == [True]

    def test_a_dead_consumer_that_has_jobs_is_registered_until_it_is_forgotten(
        self, storage: Storage, perish: Callable[[int], int]
    ) -> None:
        add_many(storage, 2)
        dead = perish(1)
        [job] = storage.find(JobFilter(owner=dead))
        storage.apply([lifecycle.release(job)], NOW)
        assert storage.forget(dead)
        with pytest.raises(StorageError, match="registered"):
            storage.turn([], ClaimRequest(dead, 1), NOW)

    def test_owner_numbers_are_never_given_again(self, storage: Storage) -> None:
        numbers = []
        for _ in range(4):
            numbers.append(storage.register({}))
            storage.unregister(numbers[-1])
            storage.forget(numbers[-1])
        numbers += [storage.register({}), storage.register({})]
        assert numbers == sorted(set(numbers))
        assert min(numbers) > 0

    def test_threads_that_register_at_once_are_owners_of_their_own(self, storage: Storage) -> None:
        numbers = at_once(lambda thread: storage.register({"thread": thread}))
        assert {owner.number: owner.info["thread"] for owner in storage.owners()} == {
            number: thread for thread, number in enumerate(numbers)
        }

    def test_who_unregisters_is_no_owner_any_more(self, storage: Storage) -> None:
        first, second = storage.register({}), storage.register({})
        storage.unregister(first)
        storage.unregister(first)
        assert [owner.number for owner in storage.owners()] == [second]
        assert storage.dead_owners() == []

    def test_who_unregisters_with_jobs_still_running_is_dead_to_others(self, storage: Storage) -> None:
        add(storage, new())
        number = storage.register({})
        running = claim_one(storage, owner=number)
        storage.unregister(number)
        assert storage.dead_owners() == [number]
        assert storage.find(JobFilter(owner=number)) == [running]
        assert not storage.forget(number)
        assert apply_one(storage, lifecycle.release(running))
        assert storage.forget(number)
        assert storage.owners() == []

    def test_a_living_owner_is_not_forgotten(self, storage: Storage, reopen: Callable[[], Storage]) -> None:
        number = storage.register({})
        assert not storage.forget(number)
        assert not reopen().forget(number)
        assert [owner.alive for owner in storage.owners()] == [True]

    def test_the_dead_are_known_until_their_jobs_are_settled(
        self, storage: Storage, reopen: Callable[[], Storage], perish: Callable[[int], int]
    ) -> None:
        add_many(storage, 3)
        living = storage.register({"living": True})
        dead = perish(2)
        other = reopen()
        for handle in (storage, other):
            assert handle.dead_owners() == [dead]
            assert {owner.number: owner.alive for owner in handle.owners()} == {living: True, dead: False}
        left = other.find(JobFilter(owner=dead))
        assert len(left) == 2
        assert not other.forget(dead)
        crashes = [lifecycle.crashed(job, NOW, "gone") for job in left]
        transitions = [lifecycle.decide(job, Policy(), crash, NOW) for job, crash in zip(left, crashes, strict=True)]
        assert other.apply(transitions, NOW) == [True, True]
        assert other.forget(dead)
        assert [owner.number for owner in storage.owners()] == [living]
        assert storage.counts()[JobState.READY] == 3

    def test_a_dead_owner_without_jobs_can_be_forgotten_at_once(
        self, storage: Storage, perish: Callable[[int], int]
    ) -> None:
        dead = perish(0)
        assert storage.dead_owners() == [dead]
        assert storage.forget(dead)
        assert storage.forget(dead)
        assert storage.owners() == []
        assert storage.register({}) > dead

    def test_whoever_recovers_first_wins(self, storage: Storage, perish: Callable[[int], int]) -> None:
        add_many(storage, 5)
        perish(5)

        def recover(thread: int) -> list[bool]:
            [dead] = storage.dead_owners() or [0]
            return storage.apply([lifecycle.release(job) for job in storage.find(JobFilter(owner=dead))], NOW)

        answers = at_once(recover)
        assert sum(sum(answer) for answer in answers) == 5
        assert [(job.claim, job.attempt) for job in claim(storage)] == [(2, 1)] * 5

    # ── watching ─────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize(
        "write",
        [
            lambda storage: storage.add([new()]),
            lambda storage: storage.add([new(id="x")]),
            lambda storage: storage.turn([], request(storage), NOW),
            lambda storage: storage.turn([], None, NOW + 1000),
            lambda storage: storage.swap("k", None, "v"),
            lambda storage: storage.remove(JobFilter()),
        ],
        ids=["add", "add with an id", "claim", "promote", "swap", "remove"],
    )
    def test_a_watch_wakes_when_another_handle_writes(
        self, storage: Storage, reopen: Callable[[], Storage], write: Callable[[Storage], object]
    ) -> None:
        bring(storage, JobState.SUCCEEDED)
        add(storage, new(), new(due=NOW + 1000))
        other = reopen()
        with storage.watch() as watch, ThreadPoolExecutor(1) as pool:
            before = everything(storage)
            other.find(JobFilter())  # opened, so that the write is the only thing that happens
            watch.changed()
            written = pool.submit(write, other)
            assert watch.wait(WAKE) & Change.DATA
            written.result()
            storage.barrier()
            assert everything(storage) != before

    def test_a_watch_tells_of_transitions(self, storage: Storage, reopen: Callable[[], Storage]) -> None:
        add(storage, new())
        running = claim_one(storage)
        other = reopen()
        with storage.watch() as watch:
            watch.changed()
            succeed(other, [running])
            assert watch.wait(WAKE) & Change.DATA

    def test_every_watch_is_told(self, storage: Storage, reopen: Callable[[], Storage]) -> None:
        other = reopen()
        with storage.watch() as first, storage.watch() as second, other.watch() as third:
            for watch in (first, second, third):
                watch.changed()
            add(storage, new())
            assert all(watch.wait(WAKE) & Change.DATA for watch in (first, second, third))

    def test_whoever_looks_whenever_woken_is_not_woken_by_that_for_ever(self, storage: Storage) -> None:
        with storage.watch() as watch:
            add(storage, new())
            assert watch.wait(WAKE)
            looks = 0
            while claim(storage) or watch.wait(0.05):  # the claim may be heard; looking in vain must not be
                looks += 1
                assert looks < 20

    def test_a_watch_wakes_when_an_owner_dies(self, storage: Storage, perish: Callable[[int], int]) -> None:
        if not self.hears_the_dying:
            pytest.skip("this storage cannot tell of a death here")
        add_many(storage, 2)
        with storage.watch() as watch:
            dead = perish(1)
            woken = watch.wait(WAKE)
            while not woken & Change.SLOTS:
                step = watch.wait(WAKE)
                assert step, "not told within time"
                woken |= step
            assert storage.dead_owners() == [dead]

    # ── the rest of life ─────────────────────────────────────────────────────────────────────────────

    def test_close_is_idempotent_and_use_opens_again(self, storage: Storage) -> None:
        jobs = add(storage, new("a"), new("b", due=NOW + 5))
        storage.swap("k", None, "v")
        before = everything(storage)
        storage.close()
        storage.close()
        assert everything(storage) == before
        storage.close()
        assert seqs(claim(storage)) == [jobs[0].seq]
        storage.close()
        [third] = add(storage, new("c"))
        assert third.seq > jobs[1].seq
        assert again(storage, third) == third

    def test_close_ends_the_owners_registered_here(self, storage: Storage) -> None:
        add(storage, new())
        busy, idle = storage.register({}), storage.register({})
        claim_one(storage, owner=busy)
        storage.close()
        assert {owner.number: owner.alive for owner in storage.owners()} == {busy: False}
        assert storage.register({}) > idle

    def test_close_of_what_was_never_used_is_fine(self, reopen: Callable[[], Storage]) -> None:
        handle = reopen()
        handle.close()
        handle.close()

    def test_after_a_barrier_earlier_writes_are_seen(self, storage: Storage, reopen: Callable[[], Storage]) -> None:
        storage.barrier()
        other = reopen()
        done = threading.Event()
        missing: list[int] = []

        def write() -> None:
            for number in range(50):
                storage.add([new(id=f"n{number}")])
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        while not done.is_set():
            known = len(storage.find(JobFilter()))
            other.barrier()
            missing += [number for number in range(known) if other.get(f"n{number}") is None]
        writer.join()
        assert missing == []

    def test_upkeep_loses_nothing(self, storage: Storage) -> None:
        self.one_of_each(storage)
        before = everything(storage)
        storage.upkeep()
        storage.remove(JobFilter(states=frozenset({JobState.EXPIRED})))
        storage.upkeep()
        kept = [job for job in before[0] if job.state is not JobState.EXPIRED]
        assert everything(storage)[0] == kept

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_forked_child_may_go_on_using_its_copy(self, storage: Storage) -> None:
        [job] = add(storage, new("a", id="a"))
        child = os.fork()
        if child == 0:
            try:
                assert storage.get("a") == job
                storage.add([new("b", id="b")])
                assert [job.task for job in claim(storage)] == ["a", "b"]
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        add(storage, new("c"))
        tasks = [job.task for job in storage.find(JobFilter())]
        assert tasks in (["a", "c"], ["a", "b", "c"])
