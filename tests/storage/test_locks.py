"""The turnstile, the slots and the election, between real threads and real processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from programs import Program, more_open, open_files

from liteq.errors import StorageBusy, StorageError, StorageUnusable
from liteq.storage import locks
from liteq.storage.locks import Election, Slot, Turnstile, is_dead


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "locks"


@pytest.fixture
def turnstile(directory: Path) -> Iterator[Turnstile]:
    turnstile = Turnstile(directory)
    yield turnstile
    turnstile.close()


@pytest.fixture
def other(directory: Path) -> Iterator[Turnstile]:
    """What another process has: it shares the files with ``turnstile``, but no descriptor."""
    other = Turnstile(directory)
    yield other
    other.close()


@contextlib.contextmanager
def locked(path: Path, kind: int = fcntl.LOCK_EX) -> Iterator[int]:
    """Somebody else's lock on a file."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, kind)
        yield file.fileno()


def is_locked(path: Path) -> bool:
    try:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def is_waited_for(path: Path) -> bool:
    """Whether somebody waits for the lock of this file, as the kernel says."""
    number = f":{path.stat().st_ino} "
    return any("->" in line and number in line for line in Path("/proc/locks").read_text().splitlines())


class Background:
    """Runs a function in a thread; `join` re-raises what it raised."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._error: BaseException | None = None
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:  # noqa: BLE001  # handed to join
            self._error = error
        self.done.set()

    def join(self) -> None:
        assert self.done.wait(60), "the thread is still waiting"
        self._thread.join()
        if self._error is not None:
            raise self._error


# -- turns -------------------------------------------------------------------------------------------------------------


def test_nothing_is_touched_before_the_first_turn(tmp_path: Path) -> None:
    turnstile = Turnstile(tmp_path / "locks")
    turnstile.close()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_files_belong_to_their_user_alone(turnstile: Turnstile, directory: Path) -> None:
    before = os.umask(0)
    try:
        with turnstile:
            pass
    finally:
        os.umask(before)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {file.name: file.stat().st_mode & 0o777 for file in directory.iterdir()} == {
        "turn-a": 0o600,
        "turn-b": 0o600,
    }


def test_only_one_is_inside(turnstile: Turnstile, other: Turnstile) -> None:
    with turnstile, pytest.raises(StorageBusy, match="more than 0 s"):
        other.acquire(timeout=0)
    other.acquire(timeout=0)
    other.release()


def test_one_who_leaves_with_an_exception_has_left(turnstile: Turnstile, other: Turnstile) -> None:
    with pytest.raises(ZeroDivisionError), turnstile:
        raise ZeroDivisionError
    with other:
        pass


# Adds one to the number in a file, the slow way, so that two who do it at once lose a count.
COUNT = """
def count(turnstile, path, turns):
    for _ in range(turns):
        with turnstile:
            number = int(path.read_text())
            os.sched_yield()
            path.write_text(str(number + 1))
"""

COUNT_IN_TWO_THREADS = (
    COUNT
    + """
turnstile = Turnstile(Path(sys.argv[1]))
say("ready")
hear()
threads = [threading.Thread(target=count, args=(turnstile, Path(sys.argv[2]), 150)) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
)


def test_threads_and_processes_exclude_each_other(directory: Path, tmp_path: Path) -> None:
    number = tmp_path / "number"
    number.write_text("0")
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(Program(COUNT_IN_TWO_THREADS, directory, number)) for _ in range(3)]
        assert [program.hear() for program in programs] == ["ready"] * 3
        for program in programs:
            program.tell()
        assert [program.finish() for program in programs] == [0, 0, 0]
    assert number.read_text() == "900"


# Writes its small letter before it asks for a turn, and its capital letter once inside. The sleep is the work: a commit
# waits for the disk. (Three that only compute would show how the system shares out two processors.)
HAMMER = """
turnstile, letter = Turnstile(Path(sys.argv[1])), sys.argv[3]
diary = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
turnstile.acquire(); turnstile.release()
say("ready")
hear()
for _ in range(100):
    os.write(diary, letter.lower().encode())
    turnstile.acquire()
    os.write(diary, letter.upper().encode())
    time.sleep(0.0003)  # task body: the commit
    turnstile.release()
"""


def turns_taken_together(diary: str, letter: str) -> int:
    """How often ``letter`` was inside between the first time that all had asked and the first one's last turn."""
    begin = max(diary.index(each) for each in "abc")
    end = min(diary.rindex(each) for each in "ABC")
    return diary[begin:end].count(letter)


def test_nobody_is_starved_while_three_processes_hammer(directory: Path, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    diary.touch()
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(Program(HAMMER, directory, diary, letter)) for letter in "ABC"]
        assert [program.hear() for program in programs] == ["ready"] * 3
        for program in programs:
            program.tell()
        assert [program.finish() for program in programs] == [0, 0, 0]
    text = diary.read_text()
    assert [text.count(letter) for letter in "ABC"] == [100, 100, 100]
    # A fair share is all but 100. Whoever is woken up loses now and then to one who comes running: seldom below 25.
    assert min(turns_taken_together(text, letter) for letter in "ABC") >= 8


HOLD = """
turnstile = Turnstile(Path(sys.argv[1]))
turnstile.acquire()
say("inside")
hear()
turnstile.release()
say("left")
hear()
"""


def test_a_killed_holder_frees_the_turnstile_at_once(turnstile: Turnstile, directory: Path) -> None:
    with Program(HOLD, directory) as program:
        assert program.hear() == "inside"
        with pytest.raises(StorageBusy):
            turnstile.acquire(timeout=0)
        program.kill()
        turnstile.acquire(timeout=0)
    turnstile.release()


def test_a_killed_waiter_leaves_its_place_in_the_queue(
    turnstile: Turnstile, other: Turnstile, directory: Path, eventually: Any
) -> None:
    with turnstile, Program(HOLD, directory):
        eventually(lambda: is_waited_for(directory / "turn-b"))
        assert is_locked(directory / "turn-a")
    other.acquire(timeout=0)
    other.release()


def test_a_thread_waits_for_another_of_its_process(turnstile: Turnstile) -> None:
    turnstile.acquire()
    entered = threading.Event()

    def enter() -> None:
        with turnstile:
            entered.set()

    thread = Background(enter)
    assert not entered.is_set()
    turnstile.release()
    thread.join()
    assert entered.is_set()


def test_a_thread_that_may_not_wait_is_told_that_another_one_is_inside(turnstile: Turnstile) -> None:
    with turnstile:
        thread = Background(lambda: turnstile.acquire(timeout=0))
        with pytest.raises(StorageBusy):
            thread.join()


def test_a_wait_with_a_timeout_ends_when_the_turn_comes(
    turnstile: Turnstile, other: Turnstile, monkeypatch: pytest.MonkeyPatch
) -> None:
    other.acquire()
    monkeypatch.setattr(locks, "_pause", lambda began: other.release())
    turnstile.acquire(timeout=20)
    turnstile.release()


def test_a_wait_with_a_timeout_ends_with_the_timeout(turnstile: Turnstile, other: Turnstile, directory: Path) -> None:
    with other, pytest.raises(StorageBusy, match=r"somebody else kept the write lock in .* for more than 0\.01 s"):
        turnstile.acquire(timeout=0.01)
    assert not is_locked(directory / "turn-a")
    assert not is_locked(directory / "turn-b")


def test_one_who_polls_waits_longer_the_longer_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(locks, "_sleep", slept.append)
    monkeypatch.setattr(locks, "_now", lambda: 100.0)
    for waited in (0.0, 0.5, 50.0):
        locks._pause(100.0 - waited)
    assert slept == pytest.approx([0.00005, 0.0005, 0.001])


def test_nobody_enters_twice(turnstile: Turnstile, other: Turnstile) -> None:
    with turnstile:
        for timeout in (None, 0.0, 1.0):
            with pytest.raises(RuntimeError, match="already"):
                turnstile.acquire(timeout)
        with pytest.raises(StorageBusy):
            other.acquire(timeout=0)
    other.acquire(timeout=0)
    other.release()


def test_nobody_leaves_who_is_not_inside(turnstile: Turnstile) -> None:
    with pytest.raises(RuntimeError, match="is not held"):
        turnstile.release()
    with turnstile:
        pass
    with pytest.raises(RuntimeError, match="is not held"):
        turnstile.release()


def test_a_thread_knows_whether_it_is_inside(turnstile: Turnstile) -> None:
    answers = [turnstile.is_mine()]
    with turnstile:
        answers.append(turnstile.is_mine())
        Background(lambda: answers.append(turnstile.is_mine())).join()
    answers.append(turnstile.is_mine())
    assert answers == [False, True, False, False]


# -- interruptions -----------------------------------------------------------------------------------------------------


def test_a_wait_is_interrupted_by_the_keyboard_and_leaves_nothing_locked(
    turnstile: Turnstile, other: Turnstile, directory: Path, eventually: Any
) -> None:
    def press() -> None:
        eventually(lambda: is_waited_for(directory / "turn-b"))
        os.kill(os.getpid(), signal.SIGINT)

    with other:
        thread = Background(press)
        with pytest.raises(KeyboardInterrupt):
            turnstile.acquire()
        thread.join()
        assert not is_locked(directory / "turn-a")
    turnstile.acquire(timeout=0)
    turnstile.release()


class InterruptedAfter:
    """A function whose n-th call succeeds, and is interrupted before its caller hears of it."""

    def __init__(self, function: Callable[..., object], call: int) -> None:
        self._function = function
        self._left = call

    def __call__(self, *arguments: object, **options: object) -> object:
        answer = self._function(*arguments, **options)
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt
        return answer


@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_interruption_after_any_step_leaves_nothing_locked(
    turnstile: Turnstile, other: Turnstile, directory: Path, call: int
) -> None:
    turnstile._flock = InterruptedAfter(fcntl.flock, call)
    with pytest.raises(KeyboardInterrupt):
        turnstile.acquire()
    other.acquire(timeout=0)
    other.release()
    turnstile.acquire(timeout=0)
    turnstile.release()


def test_an_interruption_between_the_thread_lock_and_the_file_locks_leaves_nothing_locked(
    turnstile: Turnstile,
) -> None:
    class Interrupted:
        def __init__(self) -> None:
            self._lock = threading.RLock()
            self.acquire = InterruptedAfter(self._lock.acquire, 1)
            self.release = self._lock.release

    turnstile._threads = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        turnstile.acquire()
    Background(lambda: (turnstile.acquire(timeout=0), turnstile.release())).join()


def test_an_interruption_of_a_thread_that_waits_for_another_leaves_that_one_inside(
    turnstile: Turnstile, other: Turnstile, eventually: Any
) -> None:
    leave, entered = threading.Event(), threading.Event()

    def stay() -> None:
        with turnstile:
            entered.set()
            assert leave.wait(20)

    def press() -> None:
        main = threading.main_thread().ident
        assert main is not None
        eventually(lambda: sys._current_frames()[main].f_code.co_name == "acquire")
        os.kill(os.getpid(), signal.SIGINT)

    thread = Background(stay)
    assert entered.wait(20)
    presser = Background(press)
    with pytest.raises(KeyboardInterrupt):
        turnstile.acquire()
    presser.join()
    with pytest.raises(StorageBusy):
        other.acquire(timeout=0)
    leave.set()
    thread.join()
    other.acquire(timeout=0)
    other.release()


# -- files that cannot be used -----------------------------------------------------------------------------------------


@pytest.fixture
def suspicious(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turnstiles that look at their files each time."""
    monkeypatch.setattr(locks, "TRUST", 0.0)


def remove(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()


@pytest.mark.usefixtures("suspicious")
def test_a_deleted_directory_is_an_error_once_and_then_made_anew(turnstile: Turnstile, directory: Path) -> None:
    with turnstile:
        pass
    assert len([file for file in open_files() if str(directory) in file]) == 2
    remove(directory)
    with pytest.raises(StorageError, match="were deleted while this process used them"):
        turnstile.acquire()
    assert not any(str(directory) in file for file in open_files())
    with turnstile:
        assert is_locked(directory / "turn-b")


@pytest.mark.usefixtures("suspicious")
def test_lock_files_that_others_made_anew_are_an_error_too(turnstile: Turnstile, directory: Path) -> None:
    with turnstile:
        pass
    (directory / "turn-b").rename(directory / "old")
    (directory / "turn-b").touch()
    with pytest.raises(StorageError, match="were deleted"):
        turnstile.acquire(timeout=1)
    assert not is_locked(directory / "old")
    with turnstile:
        assert is_locked(directory / "turn-b")


def test_a_deleted_directory_is_noticed_after_a_moment(
    turnstile: Turnstile, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(locks, "_now", lambda: now)
    with turnstile:
        pass
    remove(directory)
    with turnstile:
        pass
    now = locks.TRUST
    with pytest.raises(StorageError):
        turnstile.acquire()


@pytest.mark.usefixtures("suspicious")
def test_descriptors_that_somebody_closed_are_replaced(turnstile: Turnstile, directory: Path) -> None:
    with turnstile:
        pass
    assert turnstile._gates is not None
    for gate in turnstile._gates:
        os.close(gate)
    with pytest.raises(StorageError):
        turnstile.acquire()
    with turnstile:
        assert is_locked(directory / "turn-b")


@pytest.mark.usefixtures("suspicious")
def test_a_file_that_got_the_number_of_a_closed_descriptor_is_not_closed(turnstile: Turnstile, tmp_path: Path) -> None:
    with turnstile:
        pass
    assert turnstile._gates is not None
    for number in turnstile._gates:
        with (tmp_path / f"stranger-{number}").open("w") as stranger:
            os.dup2(stranger.fileno(), number)
    numbers = turnstile._gates
    with pytest.raises(StorageError):
        turnstile.acquire()
    for number in numbers:
        assert os.path.samestat(os.fstat(number), (tmp_path / f"stranger-{number}").stat())
        assert not is_locked(tmp_path / f"stranger-{number}")
        os.close(number)
    with turnstile:
        pass


def test_a_directory_whose_parent_is_missing_is_not_created(tmp_path: Path) -> None:
    turnstile = Turnstile(tmp_path / "missing" / "locks")
    with pytest.raises(StorageUnusable, match=r"cannot use the lock file .*missing.*No such file"):
        turnstile.acquire()
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "locks").touch()
    turnstile = Turnstile(tmp_path / "locks")
    for timeout in (None, 0.0):
        with pytest.raises(StorageUnusable, match="must be able to write there"):
            turnstile.acquire(timeout)
    with pytest.raises(StorageUnusable):
        turnstile.barrier()


@pytest.mark.parametrize("failing", ["turn-a", "turn-b"])
def test_a_directory_that_is_not_writable_is_an_error_and_leaks_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    opened = os.open

    def refuse(path: Path, *arguments: int) -> int:
        if Path(path).name == failing:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *arguments)

    turnstile = Turnstile(directory)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(StorageUnusable, match="Permission denied"):
            turnstile.acquire()
    assert not any(str(directory) in file for file in open_files())
    with turnstile:
        pass
    turnstile.close()


# -- the barrier -------------------------------------------------------------------------------------------------------


def test_the_barrier_waits_for_the_writer_that_is_inside(
    turnstile: Turnstile, directory: Path, eventually: Any
) -> None:
    with Program(HOLD, directory) as program:
        assert program.hear() == "inside"
        thread = Background(turnstile.barrier)
        eventually(lambda: is_waited_for(directory / "turn-b"))
        assert not thread.done.is_set()
        program.tell()
        thread.join()
        assert program.hear() == "left"


def test_the_barrier_waits_for_a_thread_of_its_own_process(
    turnstile: Turnstile, other: Turnstile, directory: Path, eventually: Any
) -> None:
    with turnstile:
        thread = Background(turnstile.barrier)
        eventually(lambda: is_waited_for(directory / "turn-b"))
        with pytest.raises(StorageBusy):
            other.acquire(timeout=0)
    thread.join()


def test_the_barrier_does_not_queue_with_those_who_want_to_write(turnstile: Turnstile, directory: Path) -> None:
    with turnstile:
        pass
    with locked(directory / "turn-a"):
        turnstile.barrier()


def test_the_barrier_leaves_nothing_locked(turnstile: Turnstile, other: Turnstile) -> None:
    with turnstile:
        pass
    before = open_files()
    other.barrier()
    assert more_open(before) == set()
    turnstile.acquire(timeout=0)
    turnstile.release()


def test_the_barrier_creates_nothing_where_nobody_has_written(turnstile: Turnstile, directory: Path) -> None:
    turnstile.barrier()
    assert not directory.exists()


def test_nobody_waits_at_the_barrier_for_himself(turnstile: Turnstile) -> None:
    with turnstile, pytest.raises(RuntimeError, match="wait for itself"):
        turnstile.barrier()


# -- closing -----------------------------------------------------------------------------------------------------------


def test_a_turnstile_gives_its_descriptors_back_and_can_be_used_again(directory: Path) -> None:
    before = open_files()
    turnstile = Turnstile(directory)
    for _ in range(3):
        with turnstile:
            assert len(open_files() - before) == 2
        turnstile.close()
        turnstile.close()
        assert more_open(before) == set()


def test_closing_does_not_throw_out_whoever_is_inside(directory: Path, turnstile: Turnstile, other: Turnstile) -> None:
    before = open_files()
    with turnstile:
        turnstile.close()
        Background(turnstile.close).join()
        with pytest.raises(StorageBusy):
            other.acquire(timeout=0)
    other.close()
    assert more_open(before) == set()


def test_closing_waits_for_nobody_who_waits_and_happens_when_he_gives_up(
    directory: Path, turnstile: Turnstile, other: Turnstile, monkeypatch: pytest.MonkeyPatch
) -> None:
    other.acquire()
    before = open_files()
    monkeypatch.setattr(locks, "_pause", lambda began: Background(turnstile.close).join())
    with pytest.raises(StorageBusy):
        turnstile.acquire(timeout=0.01)
    assert more_open(before) == set()


def test_a_forgotten_turnstile_leaks_nothing(directory: Path) -> None:
    before = open_files()
    turnstile = Turnstile(directory)
    turnstile.acquire()
    del turnstile
    assert more_open(before) == set()


# -- forks (in programs of their own, where nothing else has threads) --------------------------------------------------

FORK = """
def fork(function):
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException as error:
            say(repr(error))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

def lock_files():
    targets = [entry.resolve() for entry in Path("/proc/self/fd").iterdir()]
    return sorted(target.name for target in targets if "locks" in target.parts)

turnstile = Turnstile(Path(sys.argv[1]))

def is_free():
    try:
        turnstile.acquire(timeout=0)
    except StorageBusy:
        return False
    turnstile.release()
    return True

"""


def test_a_child_forked_while_another_thread_is_inside_neither_hangs_nor_frees_the_lock(
    other: Turnstile, directory: Path
) -> None:
    source = (
        FORK
        + """
entered, leave = threading.Event(), threading.Event()
def stay():
    with turnstile:
        entered.set()
        leave.wait()
thread = threading.Thread(target=stay)
thread.start()
entered.wait()

def child():
    say("files", *lock_files())
    say("free", is_free())
    try:
        turnstile.release()
    except RuntimeError:
        say("not held")
    turnstile.acquire()
    say("inside")
    turnstile.release()

def let_the_thread_leave():
    hear()
    leave.set()
threading.Thread(target=let_the_thread_leave).start()
fork(child)
"""
    )
    with Program(source, directory) as program:
        assert [program.hear() for _ in range(3)] == ["files", "free False", "not held"]
        with pytest.raises(StorageBusy):
            other.acquire(timeout=0)
        program.tell()
        assert program.hear() == "inside"
        assert program.finish() == 0


def test_a_child_forked_inside_leaves_without_freeing_the_lock(other: Turnstile, directory: Path) -> None:
    source = (
        FORK
        + """
def child():
    say("free", is_free())
    turnstile.release()
    try:
        turnstile.release()
    except RuntimeError:
        say("not held twice")
with turnstile:
    fork(child)
    hear()
say("free", is_free())
"""
    )
    with Program(source, directory) as program:
        assert [program.hear(), program.hear()] == ["free False", "not held twice"]
        with pytest.raises(StorageBusy):
            other.acquire(timeout=0)
        program.tell()
        assert program.hear() == "free True"


def test_a_child_forked_while_another_thread_waits_at_the_barrier_has_no_lock_files(
    other: Turnstile, directory: Path, eventually: Any
) -> None:
    source = (
        FORK
        + """
thread = threading.Thread(target=turnstile.barrier)
thread.start()
hear()
fork(lambda: say("files", *lock_files()))
thread.join()
"""
    )
    with other, Program(source, directory) as program:
        eventually(lambda: is_waited_for(directory / "turn-b"))
        program.tell()
        assert program.hear() == "files"
        other.release()
        assert program.finish() == 0
        other.acquire()


def test_parent_and_child_exclude_each_other(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    source = (
        FORK
        + COUNT
        + """
number = Path(sys.argv[2])
count(turnstile, number, 1)
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        count(turnstile, number, 200)
        os._exit(0)
    children.append(child)
count(turnstile, number, 200)
for child in children: os.waitpid(child, 0)
"""
    )
    with Program(source, directory, tmp_path / "number") as program:
        assert program.finish() == 0
    assert (tmp_path / "number").read_text() == "601"


# -- slots -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slots" / "7"


TAKE = """
slot = Slot.take(Path(sys.argv[1]))
"""


def test_a_slot_is_alive_until_it_is_released(path: Path) -> None:
    slot = Slot.take(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not is_dead(path)
    assert Slot.try_take(path) is None
    with pytest.raises(StorageError, match="somebody else holds"):
        Slot.take(path)
    slot.release()
    slot.release()
    assert is_dead(path)
    assert not path.exists()


def test_a_slot_can_leave_its_file(path: Path) -> None:
    Slot.take(path).release(remove=False)
    assert path.exists()
    assert is_dead(path)
    heir = Slot.try_take(path)
    assert heir is not None
    assert not is_dead(path)
    heir.release()
    assert not path.exists()


def test_a_missing_slot_is_dead_and_is_not_created_by_asking(path: Path) -> None:
    assert is_dead(path)
    assert Slot.try_take(path) is None
    assert not path.parent.exists()


def test_a_slot_that_cannot_be_examined_is_not_taken_for_dead(path: Path) -> None:
    path.parent.touch()
    for ask in (is_dead, Slot.take, Slot.try_take):
        with pytest.raises(StorageUnusable, match="cannot use the lock file"):
            ask(path)


def test_a_slot_without_a_directory_for_its_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageUnusable):
        Slot.take(tmp_path / "missing" / "slots" / "7")


def test_a_forgotten_slot_is_still_held(path: Path) -> None:
    slot = Slot.take(path)
    descriptor = slot.fileno()
    del slot
    gc.collect()
    assert not is_dead(path)
    next(slot for slot in locks._taken if slot.fileno() == descriptor).release()


def test_a_killed_owner_is_dead_at_once(path: Path) -> None:
    with Program(TAKE + "say('taken'); hear()", path) as program:
        assert program.hear() == "taken"
        assert not is_dead(path)
        program.kill()
        assert is_dead(path)
        heir = Slot.try_take(path)
    assert heir is not None
    heir.release()


def test_a_stopped_owner_is_alive(path: Path) -> None:
    with Program(TAKE + "say('taken'); hear()", path) as program:
        assert program.hear() == "taken"
        program.process.send_signal(signal.SIGSTOP)
        assert not is_dead(path)


def test_a_slot_lives_on_in_a_program_that_was_handed_it(path: Path, eventually: Any) -> None:
    source = (
        TAKE
        + """
import subprocess
worker = "import sys; print('working', flush=True); sys.stdin.readline()"
subprocess.Popen([sys.executable, "-c", worker], pass_fds=[slot.fileno()])
hear()
"""
    )
    with Program(source, path) as program:
        assert program.hear() == "working"
        program.kill()
        assert not is_dead(path)
        program.tell()  # the worker inherited the pipe, and ends
        eventually(lambda: is_dead(path))


def test_a_slot_lives_on_in_a_forked_child_that_was_lent_it(path: Path, eventually: Any) -> None:
    source = (
        TAKE
        + """
lent = slot.lend()
if os.fork() == 0:
    say("working")
    hear()
    os._exit(0)
os.close(lent)
signal.pause()
"""
    )
    with Program(source, path) as program:
        assert program.hear() == "working"
        program.kill()
        assert not is_dead(path)
        program.tell()
        eventually(lambda: is_dead(path))


def test_a_plain_forked_child_neither_keeps_nor_ends_its_parents_slot(path: Path) -> None:
    source = (
        TAKE
        + """
if os.fork() == 0:
    try:
        slot.fileno()
    except StorageError as error:
        say(error)
    slot.release()
    say(os.path.exists(sys.argv[1]), is_dead(Path(sys.argv[1])))
    hear()
    os._exit(0)
signal.pause()
"""
    )
    with Program(source, path) as program:
        assert program.hear() == f"the slot {path} is not held by this process"
        assert program.hear() == "True False"
        assert not is_dead(path)
        program.kill()
        assert is_dead(path)  # although the child lives
        program.tell()


class Lent:
    """A descriptor that arrives as a copy in the worker it is sent to."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return receive, (DupFd(self.descriptor),)


def receive(sent: Any) -> Lent:
    return Lent(sent.detach())


def keep(lent: Lent, connection: Connection) -> None:
    """What a worker does with its consumer's slot: it has it."""
    connection.send(os.fstat(lent.descriptor).st_ino)
    connection.recv()


@pytest.mark.usefixtures("own_fork_server")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_slot_is_shared_with_a_worker_of_multiprocessing(path: Path, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    slot = Slot.take(path)
    ours, theirs = context.Pipe()
    with ours, theirs:
        worker = context.Process(target=keep, args=(Lent(slot.fileno()), theirs))
        worker.start()
        assert ours.poll(60)
        assert ours.recv() == path.stat().st_ino
        slot.release(remove=False)
        assert not is_dead(path)
        ours.send("enough")
        worker.join(60)
    assert worker.exitcode == 0
    worker.close()
    assert is_dead(path)


def test_two_who_ask_at_once_do_not_take_each_other_for_the_owner(path: Path) -> None:
    Slot.take(path).release(remove=False)
    with locked(path, fcntl.LOCK_SH):
        assert is_dead(path)


def test_one_who_only_asks_is_waited_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Slot.take(path).release(remove=False)
    with locked(path, fcntl.LOCK_SH) as asking:
        monkeypatch.setattr(locks, "_sleep", lambda duration: fcntl.flock(asking, fcntl.LOCK_UN))
        heir = Slot.try_take(path)
    assert heir is not None
    heir.release()


def test_one_who_asks_for_ever_is_not_waited_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Slot.take(path).release(remove=False)
    slept: list[float] = []
    monkeypatch.setattr(locks, "_sleep", slept.append)
    before = open_files()
    with locked(path, fcntl.LOCK_SH):
        assert Slot.try_take(path) is None
    assert len(slept) == locks.PROBES_WAITED_OUT
    assert more_open(before) == set()


def test_a_file_that_its_last_holder_deleted_meanwhile_is_not_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_alone = locks._lock_alone

    def lock_too_late(descriptor: int) -> bool:
        monkeypatch.setattr(locks, "_lock_alone", lock_alone)
        path.unlink()
        return lock_alone(descriptor)

    monkeypatch.setattr(locks, "_lock_alone", lock_too_late)
    slot = Slot.take(path)
    assert slot.is_intact()
    monkeypatch.setattr(locks, "_lock_alone", lock_too_late)
    slot.release(remove=False)
    assert Slot.try_take(path) is None


def test_an_owner_can_see_that_its_file_is_gone_and_does_not_delete_its_successors(path: Path) -> None:
    slot = Slot.take(path)
    assert slot.is_intact()
    path.unlink()
    assert not slot.is_intact()
    successor = Slot.take(path)
    assert not slot.is_intact()
    slot.release()
    assert successor.is_intact()
    assert not is_dead(path)
    successor.release()
    assert not successor.is_intact()


def test_a_file_that_cannot_be_deleted_is_an_error_but_the_lock_is_dropped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    slot = Slot.take(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(StorageError, match="Permission denied"):
            slot.release()
    assert is_dead(path)


def test_slots_and_questions_leak_no_descriptors(path: Path) -> None:
    before, taken = open_files(), set(locks._taken)
    for _ in range(10):
        slot = Slot.take(path)
        assert not is_dead(path)
        assert Slot.try_take(path) is None
        with pytest.raises(StorageError):
            Slot.take(path)
        os.close(slot.lend())
        slot.release()
        assert is_dead(path)
    assert more_open(before) == set()
    assert locks._taken == taken


def test_an_interruption_while_taking_leaves_nothing_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_files()
    monkeypatch.setattr(locks, "_lock_alone", InterruptedAfter(locks._lock_alone, 1))
    with pytest.raises(KeyboardInterrupt):
        Slot.take(path)
    assert more_open(before) == set()
    assert is_dead(path)


# -- one housekeeper ---------------------------------------------------------------------------------------------------


@pytest.fixture
def office(tmp_path: Path) -> Path:
    return tmp_path / "locks" / "keeper"


def test_one_of_two_wins_until_it_resigns(office: Path) -> None:
    first, second = Election(office), Election(office)
    assert not office.exists()
    assert first.win()
    assert not second.win()
    assert first.win()
    first.resign()
    first.resign()
    assert second.win()
    assert not first.win()
    second.resign()
    assert office.exists()


def test_threads_that_are_elected_at_once_do_not_lose_the_office(office: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    election, others = Election(office), []
    lock_alone = locks._lock_alone

    def lock_too_late(descriptor: int) -> bool:
        monkeypatch.setattr(locks, "_lock_alone", lock_alone)
        others.append(Background(election.win))
        others[0].done.wait(0.1)  # without its being kept waiting, it would have won
        return lock_alone(descriptor)

    monkeypatch.setattr(locks, "_lock_alone", lock_too_late)
    assert election.win()
    others[0].join()
    election.resign()
    assert Election(office).win()


def test_a_fork_while_a_thread_is_being_elected_does_not_keep_the_child_waiting(office: Path) -> None:
    source = """
    from liteq.storage import locks
    election, inside, go_on = Election(Path(sys.argv[1])), threading.Event(), threading.Event()
    lock_alone = locks._lock_alone
    locks._lock_alone = lambda descriptor: inside.set() or go_on.wait() and lock_alone(descriptor)
    thread = threading.Thread(target=lambda: say(election.win()))
    thread.start()
    inside.wait()
    if os.fork() == 0:
        locks._lock_alone = lock_alone
        say(election.win())
        os._exit(0)
    os.wait()
    go_on.set()
    thread.join()
    hear()
    """
    with Program(source, office) as program:
        assert [program.hear() for _ in range(2)] == ["True", "True"]


def test_a_killed_housekeeper_is_replaced(office: Path) -> None:
    election = Election(office)
    with Program("election = Election(Path(sys.argv[1])); say(election.win()); hear()", office) as program:
        assert program.hear() == "True"
        assert not election.win()
        program.kill()
        assert election.win()
    election.resign()


def test_a_forked_child_is_not_elected_with_its_parent(office: Path) -> None:
    source = """
    election = Election(Path(sys.argv[1]))
    say(election.win())
    if os.fork() == 0:
        say(election.win())
        election.resign()
        os._exit(0)
    os.wait()
    say(election.win())
    hear()
    """
    election = Election(office)
    with Program(source, office) as program:
        assert [program.hear() for _ in range(3)] == ["True", "False", "True"]
        assert not election.win()


def test_a_housekeeper_whose_file_was_deleted_has_to_win_again(office: Path) -> None:
    first, second = Election(office), Election(office)
    assert first.win()
    office.unlink()
    assert second.win()
    assert not first.win()
    second.resign()


def test_a_forgotten_housekeeper_resigns(office: Path) -> None:
    before = open_files()
    first, second = Election(office), Election(office)
    assert first.win()
    del first
    gc.collect()
    assert second.win()
    del second
    assert more_open(before) == set()


def test_an_office_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageUnusable):
        Election(tmp_path / "missing" / "locks" / "keeper").win()


# -- systems without fcntl ---------------------------------------------------------------------------------------------


class Msvcrt(ModuleType):
    """Windows' byte-range locks, made of flock: per open file, but neither shared nor taken twice nor freed twice."""

    LK_UNLCK, LK_NBLCK = 0, 2

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.locked: set[int] = set()

    def locking(self, descriptor: int, mode: int, size: int) -> None:
        assert size == 1
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
        if (descriptor in self.locked) == (mode == self.LK_NBLCK):
            raise PermissionError(errno.EACCES, "Permission denied")
        if mode == self.LK_UNLCK:
            self.locked.discard(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(errno.EACCES, "Permission denied") from error
        self.locked.add(descriptor)


def load_locks(monkeypatch: pytest.MonkeyPatch, msvcrt: ModuleType | None) -> Any:
    """Another copy of the module, as it is on a system without fcntl."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    spec = importlib.util.spec_from_file_location("locks_elsewhere", locks.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def msvcrt(monkeypatch: pytest.MonkeyPatch) -> Msvcrt:
    msvcrt = Msvcrt()
    close = os.close

    def forget_and_close(descriptor: int) -> None:
        msvcrt.locked.discard(descriptor)
        close(descriptor)

    monkeypatch.setattr(os, "close", forget_and_close)
    return msvcrt


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch, msvcrt: Msvcrt) -> Any:
    """The module as it is on Windows, where besides no open file can be deleted."""
    module = load_locks(monkeypatch, msvcrt)
    monkeypatch.setattr(module, "_OPEN_FILES_CAN_BE_DELETED", False)
    unlink = Path.unlink

    def unlink_what_is_closed(self: Path, missing_ok: bool = False) -> None:
        if any(link.endswith(f" {self}") for link in open_files()):
            raise PermissionError(errno.EACCES, "used by another process")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_what_is_closed)
    return module


def test_windows_lets_one_inside(windows: Any, directory: Path, msvcrt: Msvcrt) -> None:
    first, second = windows.Turnstile(directory), windows.Turnstile(directory)
    with first, pytest.raises(StorageBusy):
        second.acquire(timeout=0)
    second.acquire(timeout=0)
    with pytest.raises(StorageBusy):
        first.acquire(timeout=0.001)
    second.release()
    first.barrier()
    assert not msvcrt.locked
    first.close()
    second.close()


def test_windows_waits_for_the_turn(windows: Any, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = windows.Turnstile(directory), windows.Turnstile(directory)
    first.acquire()
    monkeypatch.setattr(windows, "_sleep", lambda duration: first.release())
    with second:
        pass
    first.close()
    second.close()


def test_windows_threads_exclude_each_other(windows: Any, directory: Path) -> None:
    turnstiles = [windows.Turnstile(directory) for _ in range(2)]
    inside: list[int] = []
    most: list[int] = []

    def work(turnstile: Any) -> None:
        for _ in range(50):
            with turnstile:
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    for thread in [Background(lambda turnstile=turnstile: work(turnstile)) for turnstile in turnstiles * 2]:
        thread.join()
    assert most == [1] * 200
    for turnstile in turnstiles:
        turnstile.close()


def test_windows_knows_the_dead(windows: Any, path: Path) -> None:
    slot = windows.Slot.take(path)
    assert not windows.is_dead(path)
    assert windows.Slot.try_take(path) is None
    slot.release(remove=False)
    assert windows.is_dead(path)
    heir = windows.Slot.try_take(path)
    heir.release()
    assert not path.exists()


def test_windows_leaves_a_file_that_somebody_looks_at(windows: Any, path: Path) -> None:
    slot = windows.Slot.take(path)
    with path.open():
        slot.release()
    assert windows.is_dead(path)
    assert path.exists()


def test_windows_elects_one(windows: Any, office: Path) -> None:
    first, second = windows.Election(office), windows.Election(office)
    assert first.win()
    assert not second.win()
    first.resign()
    assert second.win()
    second.resign()


def test_windows_does_not_take_a_broken_disk_for_a_lock(
    windows: Any, directory: Path, msvcrt: Msvcrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, mode: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    turnstile = windows.Turnstile(directory)
    monkeypatch.setattr(msvcrt, "locking", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        turnstile.acquire()


def test_a_system_without_file_locks_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = load_locks(monkeypatch, None)
    with pytest.raises(StorageUnusable, match="neither fcntl nor msvcrt"):
        elsewhere.Turnstile(directory).acquire()
