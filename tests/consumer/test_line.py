"""The line in which threads wait for jobs: each is got once, in order, and wakes one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from liteq.consumer.pools.line import Line


def locked() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


def test_what_is_there_is_got_in_order_without_waiting() -> None:
    line: Line[int] = Line()
    for number in range(5):
        line.put(number)
    own = locked()
    assert [line.get(own) for _ in range(3)] == [0, 1, 2]
    assert len(line) == 2
    assert line.take_all() == [3, 4]
    assert (len(line), line.take_all()) == (0, [])


def test_one_thing_wakes_one_thread_and_the_one_that_has_waited_shortest(eventually: Callable[..., object]) -> None:
    line: Line[str] = Line()
    got: list[tuple[int, str]] = []

    def work(number: int) -> None:
        own = locked()
        while (thing := line.get(own)) != "end":
            got.append((number, thing))

    threads = []
    for number in range(3):
        threads.append(threading.Thread(target=work, args=(number,)))
        threads[-1].start()
        eventually(lambda: len(line._waiting) == len(threads))
    for thing in "abc":
        line.put(thing)
        eventually(lambda thing=thing: got[-1:] == [(2, thing)] and len(line._waiting) == 3)
    for _ in threads:
        line.put("end")
    for thread in threads:
        thread.join(10)
    assert got == [(2, "a"), (2, "b"), (2, "c")]


@pytest.mark.parametrize("putters", [1, 3])
def test_nothing_is_lost_or_got_twice_however_they_meet(putters: int) -> None:
    line: Line[int | None] = Line()
    number, getters = 6000, 4
    got: list[int] = []

    def put(which: int) -> None:
        for one in range(which, number, putters):
            line.put(one)

    def get() -> None:
        own = locked()
        while (one := line.get(own)) is not None:
            got.append(one)

    threads = [threading.Thread(target=get) for _ in range(getters)]
    threads += [threading.Thread(target=put, args=(which,)) for which in range(putters)]
    for thread in threads:
        thread.start()
    for thread in threads[getters:]:
        thread.join(30)
    for _ in range(getters):
        line.put(None)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert sorted(got) == list(range(number))
