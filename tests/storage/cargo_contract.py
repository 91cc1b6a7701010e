"""What `Storage.unload` and `Storage.take_in` promise, as tests that every storage passes; a part of ``contract.py``'s
suite. That all that is kept goes along, whatever it is, is shown by ``test_agreement.py``."""

from __future__ import annotations

from typing import Any

import pytest

from liteq import lifecycle
from liteq.errors import StorageError
from liteq.job import Ending, Job, JobState, Outcome
from liteq.lifecycle import PAUSE_MARK, Policy
from liteq.plan import Edge, Plan, Terms
from liteq.schedule import Schedule
from liteq.storage.base import ClaimRequest, Storage
from liteq.storage.cargo import Mark, Parcel, Piece, Taken
from liteq.storage.memory import MemoryStorage
from liteq.unique import Unique

NOW = 1_700_000_000.25


def job(task: str = "t", **fields: Any) -> Job:
    return lifecycle.submit(Job(0, fields.pop("id", ""), task, JobState.READY, **fields), NOW)


def handed_out(storage: Storage) -> list[Piece]:
    pieces: list[Piece] = []
    storage.unload(pieces.append)
    return pieces


def parcels_of(storage: Storage) -> list[Parcel]:
    parcels = [one for one in handed_out(storage) if isinstance(one, Parcel)]
    return [one._replace(job=lifecycle.arrive(one.job, NOW)) for one in parcels]


def claimed(storage: Storage, wanted: int) -> list[Job]:
    return storage.turn([], ClaimRequest(storage.register({}), wanted), NOW).jobs


def end(storage: Storage, running: Job, ending: Ending = Ending.SUCCEEDED) -> None:
    outcome = Outcome(running.seq, running.claim, ending, NOW, NOW, b"5")
    [applied] = storage.apply([lifecycle.decide(running, Policy(), outcome, NOW)], NOW)
    assert applied


def take_in(storage: Storage, parcels: list[Parcel]) -> Taken:
    return storage.take_in(parcels, [], {}, NOW)


class CargoContract:
    def test_everything_is_handed_out_marks_first_and_jobs_in_order(self, storage: Storage) -> None:
        storage.add([job(), job(priority=9), job(id="own")])
        storage.swap(PAUSE_MARK + "a", None, "1")
        storage.put_schedule(Schedule("s", "t", "every 60 s", created=NOW))
        mark, schedule, *parcels = handed_out(storage)
        assert mark == Mark(PAUSE_MARK + "a", "1")
        assert isinstance(schedule, Schedule)
        assert schedule.name == "s"
        assert [one.job.seq for one in parcels if isinstance(one, Parcel)] == [1, 2, 3]

    def test_what_is_taken_in_runs_in_its_old_order_under_its_old_ids(self, storage: Storage) -> None:
        source = MemoryStorage()
        source.add([job(), job(priority=9), job(id="own"), job(due=NOW + 5)])
        assert take_in(storage, parcels_of(source)) == Taken(jobs=4)
        ids = [one.id for one in claimed(source, 9)]
        assert [one.id for one in claimed(storage, 9)] == ids
        assert storage.next_due() == NOW + 5
        assert storage.add([job()])[0].seq == 5

    def test_jobs_that_are_there_stay_and_others_come_behind_them_with_their_ids(self, storage: Storage) -> None:
        source = MemoryStorage()
        source.add([job("theirs", id="own"), job("theirs")])
        storage.add([job("mine"), job("mine"), job("mine", id="own")])
        parcels = parcels_of(source)
        assert take_in(storage, parcels) == Taken(jobs=1, known=1)
        assert take_in(storage, parcels) == Taken(jobs=0, known=2)
        assert [(one.seq, one.task) for one in claimed(storage, 9)] == [
            (1, "mine"),
            (2, "mine"),
            (3, "mine"),
            (4, "theirs"),
        ]
        found = storage.get(parcels[1].job.id)
        assert found is not None
        assert (found.seq, found.task) == (4, "theirs")

    def test_schedules_and_marks_that_are_there_stay(self, storage: Storage) -> None:
        storage.put_schedule(Schedule("s", "mine", "every 60 s", created=NOW))
        storage.swap("key", None, "mine")
        theirs = [Schedule(name, "theirs", "every 5 s", created=NOW, version=3, last_job=77) for name in ("s", "z")]
        assert storage.take_in([], theirs, {"key": "theirs", "other": "theirs"}, NOW) == Taken(schedules=1, marks=1)
        assert [(one.task, one.version, one.last_job) for one in storage.schedules()] == [
            ("mine", 1, None),
            ("theirs", 3, None),
        ]
        assert storage.marks() == {"key": "mine", "other": "theirs"}

    def test_a_waiting_job_whose_key_another_one_has_is_left_out(self, storage: Storage) -> None:
        source = MemoryStorage()
        source.add([job(unique=Unique("k")), job(unique=Unique("free"))])
        [mine] = storage.add([job(unique=Unique("k"))])
        assert take_in(storage, parcels_of(source)) == Taken(jobs=1, known=1)
        assert len(claimed(storage, 9)) == 2
        assert storage.add([job(unique=Unique("free"))]).known == {0}
        end(storage, mine._replace(state=JobState.RUNNING, claim=1, attempt=1))
        assert take_in(storage, parcels_of(source)) == Taken(jobs=1, known=1)

    def test_dependents_wait_here_for_whom_they_waited_there(self, storage: Storage) -> None:
        source = MemoryStorage()
        source.add([job(), job()], plan=Plan([Edge(1, ~0, passes=True)], {1: Terms("[1]")}))
        take_in(storage, parcels_of(source))
        [first] = claimed(storage, 9)
        end(storage, first)
        [second] = claimed(storage, 9)
        assert second.inputs is not None
        assert second.inputs.values == (b"5",)

    @pytest.mark.parametrize("ending", [Ending.SUCCEEDED, Ending.FAILED])
    def test_dependents_go_by_the_job_that_is_there_if_it_has_ended(self, storage: Storage, ending: Ending) -> None:
        source = MemoryStorage()
        source.add([job(id="first"), job(id="second")], plan=Plan([Edge(1, ~0)], {1: Terms()}))
        storage.add([job(id="first")])
        end(storage, claimed(storage, 1)[0], ending)
        assert take_in(storage, parcels_of(source)) == Taken(jobs=1, known=1)
        found = storage.get("second")
        assert found is not None
        assert found.state is (JobState.READY if ending is Ending.SUCCEEDED else JobState.FAILED)

    def test_nothing_is_stored_of_what_cannot_be(self, storage: Storage) -> None:
        good = Parcel(Job(1, "1-0000000001", "t", JobState.READY))
        for wrong, words in (
            (Job(2, "x", "t", JobState.RUNNING), "is running"),
            (Job(1, "x", "t", JobState.READY), "out of order"),
            (Job(2, "x", "t", JobState.SCHEDULED), "without its time"),
            (Job(2, "x", "t", JobState.FAILED), "without its time"),
        ):
            with pytest.raises(StorageError, match=words):
                storage.take_in([good, Parcel(wrong)], [], {"key": "1"}, NOW)
        assert handed_out(storage) == []
