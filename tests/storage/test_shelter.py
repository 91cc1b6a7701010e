"""What is thrown into a thread at any line of the storage does no harm, and is raised a moment later.

A thread with a `Shelter` calls a verb and has an exception thrown into it at one line after the other, from the moment
when it shuts the door until it opens it again. Each time the exception must arrive, and everybody else must find the
storage as if nothing had happened. Moments before and after are struck by another thread, at random.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any

import pytest
from contract import NOW, new, outcome

import liteq
from liteq import gates, lifecycle
from liteq.job import Ending, JobFilter
from liteq.storage.base import Storage
from liteq.storage.memory import MemoryStorage
from liteq.storage.shelter import Shelter, _set_exception, here, in_shelter, sheltered
from liteq.storage.sqlite import SqliteStorage
from liteq.waiting import Waiters

PACKAGE = str(Path(liteq.__file__).parent)
DEADLINE = 20.0  # seconds within which anything ends that does not hang
#: How often one line is struck within one call: a loop over 93 rows is the same each time.
TIMES = 2


class Struck(BaseException):
    """Thrown into a thread."""


class Victim:
    """Runs functions, one at a time, in a thread of its own that has a shelter."""

    def __init__(self) -> None:
        self.shelter = Shelter()

    def run(self, function: Callable[[], object]) -> BaseException | None:
        """Run it to its end; returns what it raised."""
        raised: list[BaseException] = []

        def body() -> None:
            try:
                self.shelter.move_in()
                function()
            except BaseException as error:  # noqa: BLE001 - handed to the test
                raised.append(error)
            finally:
                sys.settrace(None)

        finish(body)
        return raised[0] if raised else None

    def strike(self, function: Callable[[], object], at: int) -> tuple[bool, BaseException | None]:
        """Run it with an exception thrown at the ``at``-th of its lines; whether there was one, and what came of it."""
        lines: Counter[tuple[str, int]] = Counter()
        reached = False

        def trace(frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal reached
            if not frame.f_code.co_filename.startswith(PACKAGE):
                return None
            place = frame.f_code.co_filename, frame.f_lineno
            if event != "line" or lines[place] >= TIMES or not self.shelter._door.locked():
                return trace
            lines[place] += 1
            if lines.total() == at:
                reached = True
                self.shelter.throw(Struck)
            return trace

        def body() -> None:
            sys.settrace(trace)
            function()

        raised = self.run(body)
        return reached, raised


def finish(function: Callable[[], object]) -> None:
    """Call it in another thread than this; it must come back."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive(), "it hangs"


@pytest.fixture(params=["file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    shm = Path("/dev/shm")
    path = (shm if os.access(shm, os.W_OK) else tmp_path) / f"liteq-test-shelter-{os.getpid()}.db"
    made = MemoryStorage() if request.param == "memory" else SqliteStorage(path, durability="normal")
    yield made
    made.close()
    for left in path.parent.glob(f"{path.name}*"):
        for lock in sorted(left.rglob("*"), reverse=True) if left.is_dir() else ():
            lock.rmdir() if lock.is_dir() else lock.unlink()
        left.rmdir() if left.is_dir() else left.unlink()


def assert_unharmed(storage: Storage, where: str) -> None:
    """Others read and write, and nothing is held."""

    def use() -> None:
        before = sum(storage.counts().values())
        storage.add([new()])
        answers.append(sum(storage.counts().values()) - before)

    answers: list[int] = []
    finish(use)
    assert answers == [1], where
    if isinstance(storage, SqliteStorage):
        connections = storage._connections
        assert connections._readers_lent == [], where
        assert connections._of_jobs == [], where
        assert not connections._writing.locked(), where
        assert not connections.turnstile.is_taken, where
        assert not any(one.in_transaction for one in connections._all), where


def reopen(storage: Storage) -> None:
    storage.close()
    storage.counts()


def write_for_a_job(storage: Storage) -> None:
    """As a worker does whose job has lost its claim."""
    job = new()._replace(seq=1, claim=7)
    own = storage.transaction(job)
    try:
        own.connection.execute("CREATE TABLE IF NOT EXISTS note (text)")
        own.add([new(id="known"), new()])
        assert not own.settle(lifecycle.succeed(job, outcome(job, Ending.SUCCEEDED)), NOW)
    finally:
        own.abandon("its worker is done with it")


CALLS: dict[str, Callable[[Storage], object]] = {
    "add one": lambda storage: storage.add([new()]),
    "add many": lambda storage: storage.add([new() for _ in range(93)]),
    "add with an id": lambda storage: storage.add([new(id="known"), new()]),
    "turn": lambda storage: storage.turn([], None, NOW),
    "apply": lambda storage: storage.apply([], NOW),
    "get": lambda storage: storage.get("known"),
    "find": lambda storage: storage.find(JobFilter(limit=3)),
    "finished": lambda storage: storage.finished([1, 2, 999]),
    "counts": lambda storage: storage.counts(),
    "owners": lambda storage: storage.owners(),
    "barrier": lambda storage: storage.barrier(),
    "swap": lambda storage: storage.swap("mark", None, None),
    "transaction": write_for_a_job,
    "a lock": lambda storage: storage.gates.take(gates.lock("x", 1), NOW, owner=1, wait=True),
    "close and reopen": reopen,
}

#: What can be torn in memory.
CHANGES = {"add one", "add many", "add with an id", "turn", "apply", "swap"}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_thrown_at_any_line_is_raised_and_harms_nobody(storage: Storage, name: str) -> None:
    if isinstance(storage, MemoryStorage) and name not in CHANGES:
        pytest.skip("nothing but a lock of the interpreter's own is held, which no exception tears")
    storage.register({})
    storage.add([new(), new(id="known")])
    victim, at, call = Victim(), 0, CALLS[name]
    while True:
        at += 1
        reached, error = victim.strike(lambda: call(storage), at)
        if not reached:
            break
        assert isinstance(error, Struck), f"line {at}: {error!r}"
        assert_unharmed(storage, f"{name}, line {at}")
        victim.shelter.take_back()
    assert error is None
    assert at > 5, "nothing was struck"
    fork_and_close(storage)


def fork_and_close(storage: Storage) -> None:
    """Both wait for everybody who uses the file."""
    finish(lambda: fork(storage))
    finish(storage.close)


def fork(storage: Storage) -> None:
    """A child that uses the storage, and ends."""
    if not hasattr(os, "fork"):
        return
    child = os.fork()
    if child == 0:
        signal.alarm(int(DEADLINE))
        storage.counts()
        storage.add([new()])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_who_waits_beside_one_that_is_struck_at_any_line_is_told(storage: Storage) -> None:
    with closing(Waiters(storage)) as first:
        first.add(storage.add([new()])[0].seq, lambda: None)  # loads what it takes
    seq, victim, at, reached = storage.add([new()])[0].seq, Victim(), 0, True
    while reached:
        at += 1
        with closing(Waiters(storage)) as waiters:

            def wait(waiters: Waiters = waiters) -> None:
                waiters.add(seq, print)
                waiters.discard(seq, print)

            reached, error = victim.strike(wait, at)
            assert isinstance(error, Struck) == reached
            told = threading.Event()
            waiters.add(999, told.set)  # there is no such job, so it counts as finished
            assert told.wait(DEADLINE), f"line {at}"
            victim.shelter.take_back()
    assert at > 20
    fork_and_close(storage)


# ── the shelter itself ───────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_thrown_just_before_the_door_shuts_strikes_before_anything_is_done() -> None:
    done: list[str] = []
    victim, waits = Victim(), threading.Event()

    def body() -> None:
        waits.set()
        in_shelter(work)

    def work() -> None:
        done.append("done")

    def throw() -> None:
        """Hold the door until the thread stands before it."""
        waits.wait()
        while not stands_at_the_door(victim):
            continue
        _set_exception(victim.shelter._thread, Struck)
        victim.shelter._door.release()

    victim.shelter._door.acquire()
    thrower = threading.Thread(target=throw, daemon=True)
    thrower.start()
    assert isinstance(victim.run(body), Struck)
    assert done == []
    assert not victim.shelter._door.locked()


def stands_at_the_door(victim: Victim) -> bool:
    frame = sys._current_frames().get(victim.shelter._thread)
    return frame is not None and frame.f_code is Shelter.call.__code__


def test_it_is_raised_although_the_call_failed() -> None:
    victim = Victim()

    def fail() -> None:
        victim.shelter.throw(Struck)
        raise ValueError

    error = victim.run(lambda: in_shelter(fail))
    assert isinstance(error, Struck)
    assert isinstance(error.__context__, ValueError)


def test_it_waits_for_the_outermost_call() -> None:
    victim = Victim()
    done: list[str] = []

    def inner() -> None:
        victim.shelter.throw(Struck)

    def outer() -> None:
        in_shelter(inner)
        done.append("went on")

    assert isinstance(victim.run(lambda: in_shelter(outer)), Struck)
    assert done == ["went on"]


def test_what_was_taken_back_is_never_raised() -> None:
    victim = Victim()

    def body() -> None:
        victim.shelter.throw(Struck)
        victim.shelter.take_back()

    assert victim.run(lambda: in_shelter(body)) is None


def test_without_a_shelter_a_call_is_just_a_call() -> None:
    assert here.shelter is None
    assert sheltered(lambda left, *, right: left - right)(5, right=3) == 2


def test_each_that_another_thread_throws_is_raised_once_and_never_within(storage: Storage) -> None:
    victim, stop, ready, answers = Victim(), threading.Event(), SimpleQueue[int](), SimpleQueue[int]()
    begun: list[int] = []
    ended: list[int] = []

    def work() -> None:
        begun.append(1)
        storage.add([new()])
        ended.append(1)

    def work_on() -> None:  # a function: what strikes a loop's own test CPython 3.13 does not count to a try around it
        while not stop.is_set():
            in_shelter(work)

    def body() -> None:
        while not stop.is_set():
            try:
                ready.put(1)  # from here on what is thrown is caught below
                work_on()
            except Struck:
                answers.put(1)

    thread = threading.Thread(target=lambda: victim.run(body), daemon=True)
    thread.start()
    while not begun:
        continue
    for _ in range(300):
        ready.get(timeout=DEADLINE)
        victim.shelter.throw(Struck)
        answers.get(timeout=DEADLINE)
    stop.set()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert answers.empty()
    assert len(begun) == len(ended) == sum(storage.counts().values())
    assert_unharmed(storage, "after all")
    fork_and_close(storage)


def test_what_a_signal_handler_raises_waits_behind_the_door_and_strikes_at_once_outside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelter = Shelter()
    monkeypatch.setattr(here, "shelter", shelter)
    done: list[str] = []

    def bookkeeping() -> None:
        shelter.strike(Struck)
        done.append("to its end")

    with pytest.raises(Struck):
        in_shelter(bookkeeping)
    assert done == ["to its end"]
    with pytest.raises(Struck):
        shelter.strike(Struck)
    in_shelter(done.append, "nothing is left over")


def test_a_close_is_not_held_up_by_threads_that_read_again_and_again(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "queue.db", durability="normal")
    storage.add([new()])
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            storage.counts()

    readers = [threading.Thread(target=ask) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(20):  # each reader alone comes back before a closing thread, once woken, has its turn
            finish(storage.close)
    finally:
        over.set()
        for reader in readers:
            reader.join()
        storage.close()
