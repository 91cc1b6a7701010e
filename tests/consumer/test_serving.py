"""How the queues of a consumer share it: weights, reserved workers, and who comes before what was claimed ahead."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from kinds import GET

from liteq import ConfigurationError, JobState, LiteQ
from liteq.consumer import ConsumerOptions, Share
from liteq.consumer.pools.base import Pool
from liteq.consumer.serving import Serving
from liteq.job import Job

# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("queues", "names", "shares"),
    [
        ("high, default", ("high", "default"), None),
        ("high:3,default:1", ("high", "default"), (Share("high", 3), Share("default", 1))),
        (["high=1", "default"], ("high", "default"), (Share("high", 0, 1), Share("default"))),
        ([Share("tenant:42", 2), "b"], ("tenant:42", "b"), (Share("tenant:42", 2), Share("b"))),
    ],
)
def test_queues_may_have_shares(queues: Any, names: tuple[str, ...], shares: Any) -> None:
    options = ConsumerOptions(workers=2, queues=queues)
    assert (options.queues, options.shares) == (names, shares)


@pytest.mark.parametrize(
    ("queues", "words"),
    [
        ("high:x,default", "with whole numbers, not 'high:x'"),
        ("high:0", "the weight of queue 'high' is 1 to 1000"),
        ("high:1,high:2", "names one queue twice"),
        ("high=3,default", "reserves 3 workers, but there are 2"),
        ("high=1,mid=1,default", "jobs of default would never run"),
        ([Share("high", -1)], "makes no sense"),
        ("high,,default", "queues must have 1 to 255 characters"),
        ([], "at least one queue"),
    ],
)
def test_shares_that_make_no_sense_are_refused(queues: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ConsumerOptions(workers=2, queues=queues)


# ── what waits in the pool ───────────────────────────────────────────────────────────────────────────────────────────


class Bench:
    """A pool of no workers: what is fed waits."""

    def __init__(self) -> None:
        self.waiting: list[Job] = []
        self.ready = 2

    @property
    def backlog(self) -> int:
        return len(self.waiting)

    held = backlog

    def take_back(self) -> list[Job]:
        taken, self.waiting = self.waiting, []
        return taken

    def feed(self, jobs: Iterable[Job]) -> None:
        self.waiting += jobs


def jobs(*ranks: tuple[str, int], first: int = 1) -> list[Job]:
    return [Job(seq, "", "t", JobState.RUNNING, queue, priority) for seq, (queue, priority) in enumerate(ranks, first)]


def fed(queues: tuple[str, ...] | None, *rounds: list[Job], shares: tuple[Share, ...] | None = None) -> list[int]:
    bench = Bench()
    serving = Serving(cast(Pool, bench), queues, shares)
    for each in rounds:
        serving.feed(each)
    return [job.seq for job in bench.waiting]


def test_a_higher_priority_gets_the_next_free_worker_before_what_was_claimed_ahead() -> None:
    low = jobs(*[("a", 0)] * 3)
    assert fed(None, low, jobs(("b", 5), ("b", 0), first=10)) == [10, 1, 2, 3, 11]


def test_a_queue_that_is_preferred_does_too_whatever_the_priorities() -> None:
    low = jobs(*[("low", 9)] * 3)
    assert fed(("high", "low"), low, jobs(("high", 0), ("low", 1), first=10)) == [10, 1, 2, 3, 11]


def test_equals_keep_their_order_and_are_not_touched() -> None:
    assert fed(None, jobs(("a", 1), ("a", 0)), jobs(("a", 0), first=7), jobs(("a", 1), first=8)) == [1, 8, 2, 7]


def test_by_weight_nobody_is_preferred() -> None:
    shares = (Share("high", 2), Share("low", 1))
    low = jobs(*[("low", 0)] * 2)
    assert fed(("high", "low"), low, jobs(("high", 9), first=9), shares=shares) == [1, 2, 9]


# ── real consumers ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def plain(path: Path) -> Iterator[LiteQ]:
    app = LiteQ(path, durability="normal")
    yield app
    app.close()


def test_a_reserved_worker_is_there_for_its_queue_while_others_have_a_backlog(plain: LiteQ, eventually: Any) -> None:
    gate = threading.Event()

    @plain.task(queue="low")
    def block() -> bool:
        return gate.wait(GET)

    @plain.task(queue="high")
    def urgent() -> int:
        return 1

    blocked = block.map([()] * 5)
    with plain.run_in_background(workers=3, queues="high=1,low"):
        eventually(lambda: plain.counts()[JobState.RUNNING] == 2)
        for _ in range(3):
            assert urgent().get(GET) == 1
            assert plain.counts()[JobState.RUNNING] == 2, "the third worker runs nothing else"
        gate.set()
        assert blocked.get(GET) == [True] * 5


def test_a_reserved_worker_is_kept_beside_tiny_jobs_that_would_be_claimed_ahead(plain: LiteQ, eventually: Any) -> None:
    gate = threading.Event()

    @plain.task(queue="low")
    def low(blocks: bool) -> bool:
        return gate.wait(GET) if blocks else True

    @plain.task(queue="high")
    def urgent() -> int:
        return 1

    results = low.map([*[False] * 300, *[True] * 4])
    with plain.run_in_background(workers=2, queues="high=1,low"):
        eventually(lambda: plain.counts()[JobState.SUCCEEDED] == 300)
        assert urgent().get(GET) == 1
        gate.set()
        results.get(GET)


def test_weights_are_kept_by_a_consumer_that_claims_ahead(plain: LiteQ) -> None:
    order: list[str] = []

    @plain.task
    def note(queue: str) -> None:
        order.append(queue)

    low = note.using(queue="low").map(["low"] * 400)
    note.using(queue="high").map(["high"] * 400)
    with plain.run_in_background(workers=1, queues="high:3,low:1"):
        low.get(GET)
    for upto in (8, 40, 200, 500):
        counted = Counter(order[:upto])
        assert abs(counted["low"] - upto / 4) <= 1, counted


@pytest.mark.slow
@pytest.mark.parametrize("way", ["priority", "queue"])
def test_an_urgent_job_behind_a_backlog_of_100_000_starts_with_the_next_free_worker(plain: LiteQ, way: str) -> None:
    done = 0

    @plain.task(queue="low")
    def low() -> None:
        nonlocal done
        done += 1

    @plain.task(queue="high" if way == "queue" else "low", priority=0 if way == "queue" else 9)
    def urgent() -> int:
        return done

    low.map([()] * 100_000)
    with plain.run_in_background(workers=2, queues=("high", "low")):
        while done < 2_000:
            urgent_result = urgent()
            before = done
            started_after = urgent_result.get(GET)
            # What was begun or settled while it was stored and claimed; far from the backlog.
            assert started_after - before < 20_000
        assert plain.queues()["low"] > 10_000
