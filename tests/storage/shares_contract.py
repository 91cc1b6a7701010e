"""What a claim promises that is divided (`liteq.shares`); a part of the suite of ``contract.py``."""

from __future__ import annotations

from collections import Counter

import pytest
from gates_contract import NEEDS, Floor

from liteq.gates import Needs
from liteq.job import Job
from liteq.lifecycle import PAUSE_MARK
from liteq.shares import Share, Sharing
from liteq.storage.base import ClaimRequest, Storage


class Divided(Floor):
    """`Floor` with a consumer that has shares."""

    def serve(self, *shares: Share) -> None:
        self.sharing = Sharing(shares)
        self.queues = tuple(one.queue for one in shares)
        self.running: list[Job] = []

    def divided(self, wanted: int, *, needs: Needs = NEEDS, free: int = 0) -> list[str]:
        """The queues of which jobs are claimed, in the order in which it is their turn."""
        division = self.sharing.division(free, Counter(job.queue for job in self.running))
        request = ClaimRequest(self.owner, wanted, self.queues, needs, division)
        jobs = self.storage.turn([], request, self.now).jobs
        self.running += jobs
        return [job.queue for job in self.sharing.claimed(jobs)]


class SharesContract:
    """See the module; the fixtures are those of ``StorageContract``."""

    @pytest.fixture
    def divided(self, storage: Storage) -> Divided:
        return Divided(storage)

    def test_queues_are_served_by_weight(self, divided: Divided) -> None:
        divided.serve(Share("a", 3), Share("b", 1))
        divided.add("free", 20, queue="b")
        divided.add("free", 20, queue="a")
        assert divided.divided(4) == ["a", "b", "a", "a"]
        assert Counter(divided.divided(16)) == {"a": 12, "b": 4}
        assert Counter(divided.divided(16)) == {"a": 5, "b": 11}, "what one cannot use the other gets"

    def test_within_a_queue_jobs_keep_their_order(self, divided: Divided) -> None:
        divided.serve(Share("a", 1), Share("b", 1))
        divided.add("free", 3, queue="a")
        divided.add("free", 1, queue="a", priority=5)
        divided.divided(3)
        assert [job.seq for job in divided.running] == [4, 1, 2]

    def test_a_paused_queue_gets_nothing(self, divided: Divided) -> None:
        divided.serve(Share("a", 3), Share("b", 1))
        divided.add("free", 5, queue="a")
        divided.add("free", 5, queue="b")
        divided.storage.swap(PAUSE_MARK + "a", None, "1")
        assert divided.divided(3) == ["b"] * 3

    def test_reserved_workers_are_kept(self, divided: Divided) -> None:
        divided.serve(Share("high", 0, 1), Share("low"))
        divided.add("free", 9, queue="low")
        assert divided.divided(3, free=3) == ["low", "low"]
        assert divided.divided(1, free=1) == []
        divided.add("free", 2, queue="high")
        assert divided.divided(1, free=1) == ["high"]

    def test_jobs_that_are_blocked_leave_their_share_to_others(self, divided: Divided) -> None:
        divided.serve(Share("high", 0, 1), Share("low"))
        divided.add("two", 50, queue="low")
        divided.add("free", 3, queue="low")
        assert divided.divided(4, free=4) == ["low"] * 3
        assert [job.task for job in divided.running] == ["two", "two", "free"]
        assert divided.storage.reasons() == {"waits for limit two": 48}

    def test_jobs_that_are_blocked_leave_their_turn_to_others(self, divided: Divided) -> None:
        divided.serve(Share("a", 1), Share("b", 1))
        divided.add("two", 9, queue="a")
        divided.add("free", 9, queue="b")
        assert Counter(divided.divided(8)) == {"a": 2, "b": 6}
