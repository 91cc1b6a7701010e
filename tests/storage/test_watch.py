"""The wake-ups: real databases, real deaths, and the kernels that are not here."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import sqlite3
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from programs import Program, more_open, open_files

from liteq.clock import ManualClock
from liteq.errors import ConfigurationError, StorageError
from liteq.storage import watch as watch_module
from liteq.storage.locks import Slot, Turnstile, is_dead
from liteq.storage.waker import Waker
from liteq.storage.watch import (
    EVERYTHING,
    FAST,
    IN_CREATE,
    IN_Q_OVERFLOW,
    SLOW,
    Bell,
    BellWatch,
    Change,
    Event,
    InotifyWatch,
    KqueueWatch,
    PollingWatch,
    Watch,
    parse_events,
    watch_database,
)

LONG = 20.0


@pytest.fixture
def database(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home" / "app.db"


@pytest.fixture
def slots(tmp_path: Path) -> Path:
    slots = tmp_path / "slots"
    slots.mkdir()
    return slots


@contextlib.contextmanager
def connected(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection in WAL mode; the last one to close deletes the -wal file."""
    connection = sqlite3.connect(database, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS number (value)")
        yield connection
    finally:
        connection.close()


@pytest.fixture
def connection(database: Path) -> Iterator[sqlite3.Connection]:
    with connected(database) as connection:
        yield connection


@pytest.fixture(params=["inotify", "polling"])
def watch(
    request: pytest.FixtureRequest, connection: sqlite3.Connection, database: Path, slots: Path
) -> Iterator[Watch]:
    """Each kind that works on Linux, on a database that is in use."""
    with watch_database(database, slots, kind=request.param) as watch:
        settle(watch)
        yield watch


@pytest.fixture
def inotify(connection: sqlite3.Connection, database: Path, slots: Path) -> Iterator[InotifyWatch]:
    with InotifyWatch(database, slots) as watch:
        yield watch


def settle(watch: Watch) -> None:
    """Drain, until a poller trusts the files' times."""
    while watch.changed():
        pass


def is_readable(watch: Watch | Waker) -> bool:
    return bool(select.select([watch], [], [], 0)[0])


COMMIT = """
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
while hear():
    connection.execute("INSERT INTO number VALUES (1)")
    say("committed")
"""


# -- what is written ---------------------------------------------------------------------------------------------------


def test_a_commit_of_another_process_is_seen(watch: Watch, database: Path) -> None:
    with Program(COMMIT, database) as program:
        for _ in range(3):
            assert watch.changed() == Change.NOTHING
            program.tell()
            assert watch.wait(LONG) == Change.DATA
            assert program.hear() == "committed"
            settle(watch)


def test_a_commit_of_the_same_process_is_seen(watch: Watch, connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO number VALUES (1)")
    assert watch.wait(LONG) == Change.DATA


def test_nothing_happens_when_somebody_reads(inotify: InotifyWatch, connection: sqlite3.Connection) -> None:
    connection.execute("SELECT * FROM number").fetchall()
    assert not is_readable(inotify)
    assert inotify.changed() == Change.NOTHING


def test_the_descriptor_is_readable_until_the_change_was_asked_for(
    inotify: InotifyWatch, connection: sqlite3.Connection
) -> None:
    assert inotify.poll_interval is None
    assert not is_readable(inotify)
    connection.execute("INSERT INTO number VALUES (1)")
    assert is_readable(inotify)
    assert inotify.changed() == Change.DATA
    assert not is_readable(inotify)
    assert inotify.changed() == Change.NOTHING


def test_the_barrier_lets_a_waiter_see_what_woke_it(inotify: InotifyWatch, database: Path, tmp_path: Path) -> None:
    source = """
    turnstile = Turnstile(Path(sys.argv[2]))
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")
    turnstile.acquire()
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT INTO number VALUES (zeroblob(?))", [(4096,)] * 200)  # spills into the WAL
    say("begun")
    hear()
    connection.execute("COMMIT")
    turnstile.release()
    hear()
    """
    with connected(database) as reader, Program(source, database, tmp_path / "locks") as program:
        assert program.hear() == "begun"
        assert inotify.wait(LONG) == Change.DATA
        assert reader.execute("SELECT count(*) FROM number").fetchone() == (0,)
        program.tell()
        Turnstile(tmp_path / "locks").barrier()
        assert reader.execute("SELECT count(*) FROM number").fetchone() == (200,)


@pytest.mark.parametrize("kind", ["inotify", "polling"])
def test_a_wal_that_the_last_connection_deletes_and_the_next_one_creates_is_seen_each_time(
    database: Path, slots: Path, kind: str
) -> None:
    wal = Path(f"{database}-wal")
    source = """
    while hear():
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("INSERT INTO number VALUES (1)")
        connection.close()
        say("committed")
    """
    with watch_database(database, slots, kind=kind) as watch, Program(source, database) as program:
        settle(watch)
        for _ in range(5):
            with connected(database):
                assert watch.wait(LONG) == Change.DATA
                settle(watch)
                program.tell()
                assert watch.wait(LONG) == Change.DATA
                assert program.hear() == "committed"
                settle(watch)
                assert wal.exists()
            assert not wal.exists()
            assert watch.wait(LONG) == Change.DATA
            settle(watch)
            program.tell()
            assert watch.wait(LONG) == Change.DATA
            assert program.hear() == "committed"
            assert not wal.exists()
            settle(watch)
        assert watch.poll_interval is None or kind == "polling"


@pytest.mark.parametrize("kind", ["inotify", "polling"])
def test_a_wal_that_is_replaced_by_another_file_is_watched(database: Path, slots: Path, kind: str) -> None:
    wal = Path(f"{database}-wal")
    wal.write_bytes(b"one")
    with watch_database(database, slots, kind=kind) as watch, wal.open("ab", buffering=0) as old:
        settle(watch)
        wal.with_suffix(".new").write_bytes(b"three")
        wal.with_suffix(".new").replace(wal)
        assert watch.wait(LONG) == Change.DATA
        settle(watch)
        old.write(b"more")
        assert watch.changed() == Change.NOTHING
        with wal.open("ab") as new:
            new.write(b"more")
        assert watch.wait(LONG) == Change.DATA


def test_a_wal_that_was_deleted_while_somebody_has_it_open_is_given_up(database: Path, slots: Path) -> None:
    wal = Path(f"{database}-wal")
    with wal.open("wb", buffering=0) as old, InotifyWatch(database, slots) as watch:
        wal.unlink()
        assert watch.changed() == Change.DATA
        old.write(b"for nobody")
        assert watch.changed() == Change.NOTHING
        wal.touch()
        assert is_readable(watch)
        assert watch.changed() == Change.DATA
        old.write(b"for nobody")
        assert watch.changed() == Change.NOTHING
        wal.write_bytes(b"for all")
        assert watch.changed() == Change.DATA


def test_a_changed_permission_does_not_end_the_watch(
    inotify: InotifyWatch, database: Path, connection: sqlite3.Connection
) -> None:
    Path(f"{database}-wal").chmod(0o600)
    settle(inotify)
    connection.execute("INSERT INTO number VALUES (1)")
    assert inotify.changed() == Change.DATA


def test_a_database_behind_a_symbolic_link_is_watched_where_it_is(
    database: Path, connection: sqlite3.Connection, slots: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(database)
    for kind in ("inotify", "polling"):
        with watch_database(link, slots, kind=kind) as watch:
            settle(watch)
            connection.execute("INSERT INTO number VALUES (1)")
            assert watch.wait(LONG) == Change.DATA


def test_a_file_that_cannot_be_watched_for_another_reason_is_named(database: Path, slots: Path) -> None:
    slots.rmdir()
    slots.symlink_to(slots)
    with pytest.raises(StorageError, match=r"by inotify: .*levels of symbolic links.*slots"):
        watch_database(database, slots, kind="inotify")
    with pytest.raises(StorageError, match=r"cannot watch .*slots: .*levels of symbolic links"):
        watch_database(database, slots)


def test_other_files_wake_nobody_while_the_wal_is_there(inotify: InotifyWatch, database: Path) -> None:
    database.with_name("other").write_bytes(b"busy")
    database.with_name("other").unlink()
    assert not is_readable(inotify)


def test_other_files_are_no_change_while_the_wal_is_missing_and_wake_nobody_once_it_is_there(
    database: Path, slots: Path
) -> None:
    with InotifyWatch(database, slots) as watch:
        database.with_name("other").touch()
        assert watch.wait(0.001) == Change.NOTHING
        Path(f"{database}-wal").touch()
        assert watch.changed() == Change.DATA
        assert watch.changed() == Change.NOTHING
        database.with_name("another").touch()
        assert not is_readable(watch)


def test_a_wal_that_appears_while_the_watch_is_being_set_up_is_seen(
    database: Path, slots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wal = Path(f"{database}-wal")
    arm = watch_module._Inotify.arm

    def arm_too_late(self: watch_module._Inotify, watched: watch_module._Watched) -> Change:
        if watched.path == os.fsencode(database.parent):
            wal.touch()
        return arm(self, watched)

    monkeypatch.setattr(watch_module._Inotify, "arm", arm_too_late)
    with InotifyWatch(database, slots) as watch:
        wal.write_bytes(b"written")
        assert is_readable(watch)
        assert watch.changed() == Change.DATA


@pytest.mark.parametrize("kind", ["inotify", "polling"])
def test_a_database_in_a_directory_that_comes_later_is_seen(database: Path, slots: Path, kind: str) -> None:
    database.parent.rmdir()
    with watch_database(database, slots, kind=kind) as watch:
        assert watch.poll_interval is not None
        database.parent.mkdir()
        with connected(database) as connection:
            assert watch.wait(LONG) & Change.DATA
            settle(watch)
            connection.execute("INSERT INTO number VALUES (1)")
            assert watch.wait(LONG) == Change.DATA


def test_a_watch_without_its_directory_polls_until_it_returns(inotify: InotifyWatch, database: Path) -> None:
    shutil.rmtree(database.parent)
    assert inotify.changed() == Change.DATA
    assert inotify.poll_interval == SLOW
    assert inotify.changed() == Change.DATA
    database.parent.mkdir()
    assert inotify.changed() == Change.NOTHING
    assert inotify.poll_interval is None
    database.parent.rename(database.parent.with_name("elsewhere"))
    assert inotify.changed() == Change.DATA
    assert inotify.poll_interval == SLOW
    database.parent.mkdir()
    assert inotify.changed() == Change.NOTHING
    Path(f"{database}-wal").touch()
    assert inotify.wait(LONG) == Change.DATA


# -- who died ----------------------------------------------------------------------------------------------------------

HOLD = """
slot = Slot.take(Path(sys.argv[1]))
say("alive")
hear()
slot.release()
say("released")
hear()
"""


def test_a_killed_consumer_is_noticed_and_is_dead(inotify: InotifyWatch, slots: Path) -> None:
    with Program(HOLD, slots / "7") as program:
        assert program.hear() == "alive"
        assert inotify.changed() == Change.NOTHING
        program.process.kill()
        assert inotify.wait(LONG) == Change.SLOTS
        program.kill()
        assert is_dead(slots / "7")


def test_a_consumer_that_leaves_is_noticed(watch: Watch, slots: Path) -> None:
    with Program(HOLD, slots / "7") as program:
        assert program.hear() == "alive"
        settle(watch)
        program.tell()
        assert watch.wait(LONG) == Change.SLOTS


def test_a_consumer_that_lives_on_in_its_worker_is_not_reported(inotify: InotifyWatch, slots: Path) -> None:
    slot = Slot.take(slots / "7")
    worker = slot.lend()
    slot.release(remove=False)
    assert inotify.changed() == Change.NOTHING
    os.close(worker)
    assert inotify.changed() == Change.SLOTS


def test_those_who_look_for_the_dead_do_not_wake_each_other(inotify: InotifyWatch, slots: Path) -> None:
    slot = Slot.take(slots / "7")
    Slot.take(slots / "8").release(remove=False)
    settle(inotify)
    assert [is_dead(slots / name) for name in ("7", "8", "9")] == [False, True, True]
    assert Slot.try_take(slots / "7") is None
    heir = Slot.try_take(slots / "8")
    assert heir is not None
    heir.release(remove=False)
    assert not is_readable(inotify)
    slot.release()
    assert inotify.changed() == Change.SLOTS


@pytest.mark.parametrize("kind", ["inotify", "polling"])
def test_a_directory_of_slots_that_comes_later_is_watched(
    database: Path, connection: sqlite3.Connection, tmp_path: Path, kind: str
) -> None:
    with watch_database(database, tmp_path / "later", kind=kind) as watch:
        settle(watch)
        slot = Slot.take(tmp_path / "later" / "7")
        assert watch.changed() == Change.SLOTS
        settle(watch)
        slot.release()
        assert watch.wait(LONG) == Change.SLOTS


def test_a_directory_of_slots_that_is_made_anew_is_watched(inotify: InotifyWatch, slots: Path) -> None:
    slots.rmdir()
    assert inotify.changed() == Change.SLOTS
    assert inotify.changed() == Change.NOTHING
    slots.mkdir()
    assert inotify.changed() == Change.SLOTS
    slot = Slot.take(slots / "7")
    assert inotify.changed() == Change.NOTHING
    slot.release()
    assert inotify.changed() == Change.SLOTS
    slots.rename(slots.with_name("elsewhere"))
    assert inotify.changed() == Change.SLOTS
    (slots.with_name("elsewhere") / "8").touch()
    assert inotify.changed() == Change.NOTHING


def test_data_and_deaths_are_told_apart_and_together(
    inotify: InotifyWatch, slots: Path, connection: sqlite3.Connection
) -> None:
    slot = Slot.take(slots / "7")
    connection.execute("INSERT INTO number VALUES (1)")
    slot.release()
    assert inotify.changed() == Change.DATA | Change.SLOTS == EVERYTHING
    assert inotify.changed() == Change.NOTHING


# -- limits ------------------------------------------------------------------------------------------------------------


def test_records_of_the_kernel_are_taken_apart() -> None:
    def record(watch: int, mask: int, name: bytes, length: int) -> bytes:
        return struct.pack("iIII", watch, mask, 0, length) + name.ljust(length, b"\0")

    data = record(1, 2, b"", 0) + record(-1, IN_Q_OVERFLOW, b"", 0) + record(3, IN_CREATE, b"app.db-wal", 16)
    assert list(parse_events(data)) == [
        Event(1, 2, b""),
        Event(-1, IN_Q_OVERFLOW, b""),
        Event(3, IN_CREATE, b"app.db-wal"),
    ]
    assert list(parse_events(b"")) == []


def test_more_events_than_one_read_takes_are_all_read(inotify: InotifyWatch, slots: Path) -> None:
    for number in range(700):
        (slots / f"{number:0200d}").touch()  # 224 bytes each: 156,800
    assert inotify.changed() == Change.SLOTS
    assert not is_readable(inotify)


def test_lost_events_mean_that_anything_may_have_happened(
    inotify: InotifyWatch, database: Path, slots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wal = Path(f"{database}-wal")
    read = watch_module._Inotify.read

    def lose(self: watch_module._Inotify) -> list[Event]:
        assert list(read(self))
        return [Event(-1, IN_Q_OVERFLOW, b"")]

    wal.replace(wal.with_suffix(".old"))
    wal.touch()
    slots.rename(slots.with_name("old"))
    slots.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(watch_module._Inotify, "read", lose)
        assert inotify.changed() == EVERYTHING
    settle(inotify)
    wal.write_bytes(b"new")
    assert inotify.changed() == Change.DATA
    Slot.take(slots / "7").release()
    assert inotify.changed() == Change.SLOTS


def test_a_process_without_descriptors_polls(database: Path, connection: sqlite3.Connection, slots: Path) -> None:
    source = """
    import ctypes, resource
    ctypes.CDLL(None)
    used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    full = [os.dup(0) for _ in range(10)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(full) + 1, used + 100))
    watch = watch_database(Path(sys.argv[1]), Path(sys.argv[2]))
    say(type(watch).__name__)
    while watch.changed(): pass
    say("waiting")
    say(watch.wait(20).name)
    """
    with Program(source, database, slots) as program:
        assert [program.hear(), program.hear()] == ["PollingWatch", "waiting"]
        connection.execute("INSERT INTO number VALUES (1)")
        assert program.hear() == "DATA"


def refuse(number: int) -> Any:
    def fail(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSYS])
def test_without_another_inotify_instance_a_watch_polls(
    database: Path, slots: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(watch_module._Inotify, "__init__", refuse(number))
    monkeypatch.setattr(watch_module._Inotify, "__del__", lambda self: None)
    watch = watch_database(database, slots)
    assert isinstance(watch, PollingWatch)
    with pytest.raises(StorageError, match=f"cannot watch .*app.db by inotify: .*{os.strerror(number)}"):
        watch_database(database, slots, kind="inotify")


def test_without_ctypes_a_watch_polls(database: Path, slots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    assert isinstance(watch_database(database, slots), PollingWatch)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_where_files_cannot_be_watched_a_new_watch_polls_and_leaks_nothing(
    database: Path, slots: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = open_files()
    monkeypatch.setattr(watch_module._Inotify, "arm", refuse(number))
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        InotifyWatch(database, slots)
    assert more_open(before) == set(), f"although {caught} still refers to what failed"
    assert isinstance(watch_database(database, slots), PollingWatch)
    assert more_open(before) == set()


def test_with_all_the_users_watches_in_use_an_old_watch_polls_until_one_is_free(
    inotify: InotifyWatch, database: Path, slots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(watch_module._Inotify, "arm", refuse(errno.ENOSPC))
        slots.rmdir()
        assert inotify.changed() & Change.SLOTS
        assert inotify.poll_interval == SLOW
        assert inotify.wait(LONG) == EVERYTHING
    slots.mkdir()
    assert inotify.changed() == Change.SLOTS
    assert inotify.poll_interval is None


@pytest.mark.parametrize("kind", ["inotify", "polling"])
def test_a_watch_leaks_no_descriptors(database: Path, slots: Path, kind: str) -> None:
    before = open_files()
    for _ in range(5):
        watch = watch_database(database, slots, kind=kind)
        watch.changed()
        watch.close()
        watch.close()
        assert watch.fileno() is None
        with pytest.raises(StorageError, match="closed"):
            watch.changed()
        with pytest.raises(StorageError):
            watch.wait(0)
    watch_database(database, slots, kind=kind)  # forgotten
    assert more_open(before) == set()


def test_an_unknown_kind_is_named(database: Path, slots: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"kind='telepathy': .* inotify, kqueue, polling"):
        watch_database(database, slots, kind="telepathy")


def test_the_best_kind_is_chosen(database: Path, slots: Path) -> None:
    with watch_database(database, slots) as watch:
        assert isinstance(watch, InotifyWatch)


def test_a_forked_child_does_not_take_its_parents_events(
    database: Path, connection: sqlite3.Connection, slots: Path
) -> None:
    source = """
    watch = InotifyWatch(Path(sys.argv[1]), Path(sys.argv[2]))
    say("watching")
    hear()
    if os.fork() == 0:
        say(watch.fileno())
        try:
            watch.changed()
        except StorageError as error:
            say(error)
        say(len([n for n in os.listdir("/proc/self/fd") if "inotify" in os.path.realpath(f"/proc/self/fd/{n}")]))
        watch.close()
        with InotifyWatch(Path(sys.argv[1]), Path(sys.argv[2])) as own:
            say(own.changed() == Change.NOTHING)
        os._exit(0)
    os.wait()
    say(watch.changed().name)
    """
    with Program(source, database, slots) as program:
        assert program.hear() == "watching"
        connection.execute("INSERT INTO number VALUES (1)")
        program.tell()
        assert program.hear() == "None"
        assert "inherited through a fork" in program.hear()
        assert [program.hear(), program.hear(), program.hear()] == ["0", "True", "DATA"]


# -- waiting -----------------------------------------------------------------------------------------------------------


def test_a_wait_ends_with_its_timeout(watch: Watch) -> None:
    assert watch.wait(0) == Change.NOTHING
    assert watch.wait(0.001) == Change.NOTHING


def test_a_wait_without_timeout_ends_with_a_change(
    inotify: InotifyWatch, connection: sqlite3.Connection, eventually: Any
) -> None:
    seen: list[Change] = []
    thread = threading.Thread(target=lambda: seen.append(inotify.wait()), daemon=True)
    thread.start()
    connection.execute("INSERT INTO number VALUES (1)")
    thread.join(LONG)
    assert seen == [Change.DATA]


def test_a_wait_is_interrupted_by_the_keyboard(inotify: InotifyWatch, eventually: Any) -> None:
    def press() -> None:
        main = threading.main_thread().ident
        assert main is not None
        eventually(lambda: sys._current_frames()[main].f_code.co_name == "_wait_readable")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        inotify.wait()
    thread.join()
    assert inotify.wait(0) == Change.NOTHING


def test_waiting_works_without_poll(
    inotify: InotifyWatch, connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(select, "poll")
    assert inotify.wait(0.001) == Change.NOTHING
    connection.execute("INSERT INTO number VALUES (1)")
    assert inotify.wait(LONG) == Change.DATA


def test_a_very_long_wait_is_cut_into_pieces_that_the_system_can_count(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    with BellWatch(bell := Bell()) as watch:

        def wait_readable(descriptor: int, longest: float) -> None:
            waited.append(longest)
            if len(waited) == 3:
                bell.ring()

        monkeypatch.setattr(watch_module, "_wait_readable", wait_readable)
        assert watch.wait(1e12) == Change.DATA
    assert waited == [watch_module.LONGEST_DOZE] * 3


# -- polling -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(database: Path) -> ManualClock:
    return ManualClock()


@pytest.fixture
def polling(database: Path, slots: Path, clock: ManualClock) -> PollingWatch:
    database.touch()
    Path(f"{database}-wal").touch()
    return PollingWatch(database, slots, clock=clock)


def test_a_poller_has_no_descriptor(polling: PollingWatch) -> None:
    assert polling.fileno() is None


def test_a_poller_slows_down_while_nothing_happens_and_hurries_after_a_change(
    polling: PollingWatch, clock: ManualClock, database: Path
) -> None:
    intervals = []
    for _ in range(100):
        assert polling.changed() == Change.NOTHING
        assert polling.poll_interval is not None
        intervals.append(polling.poll_interval)
        clock.advance(polling.poll_interval)
    assert intervals[0] == FAST
    assert intervals == sorted(intervals)
    assert intervals[-1] == SLOW
    database.write_bytes(b"changed")
    assert polling.changed() == Change.DATA
    assert polling.poll_interval == FAST


def test_a_poller_that_is_asked_often_does_not_slow_down_sooner(polling: PollingWatch, clock: ManualClock) -> None:
    for _ in range(1000):
        polling.changed()
    assert polling.poll_interval == FAST
    clock.advance(1.0)
    polling.changed()
    assert polling.poll_interval == pytest.approx(0.1)


def test_a_poller_keeps_to_the_intervals_it_was_given(database: Path, slots: Path, clock: ManualClock) -> None:
    watch = PollingWatch(database, slots, 0.5, 3.0, clock=clock)
    assert watch.poll_interval == 0.5
    clock.advance(1000)
    watch.changed()
    assert watch.poll_interval == 3.0


def test_a_poller_sees_each_file_appear_change_and_go(polling: PollingWatch, database: Path, slots: Path) -> None:
    wal = Path(f"{database}-wal")
    for path in (database, wal):
        path.write_bytes(b"more")
        assert polling.changed() == Change.DATA
        os.utime(path, ns=(1, 1))
        assert polling.changed() == Change.DATA
        path.unlink()
        assert polling.changed() == Change.DATA
        path.touch()
        assert polling.changed() == Change.DATA
        assert polling.changed() == Change.NOTHING
    os.utime(slots, ns=(1, 1))
    assert polling.changed() == Change.SLOTS
    slots.rmdir()
    assert polling.changed() == Change.SLOTS
    slots.touch()
    assert polling.changed() == Change.SLOTS


def test_a_poller_does_not_trust_a_time_that_has_just_been_set(
    polling: PollingWatch, database: Path, clock: ManualClock
) -> None:
    wal = Path(f"{database}-wal")
    now = int(clock.now() * 1e9)
    wal.write_bytes(b"one")
    os.utime(wal, ns=(now, now))
    assert polling.changed() == Change.DATA
    wal.write_bytes(b"two")  # within the same tick of the filesystem's clock
    os.utime(wal, ns=(now, now))
    assert polling.changed() == Change.DATA
    clock.advance(1)
    assert polling.changed() == Change.DATA
    assert polling.changed() == Change.NOTHING


def test_a_poller_waits_in_steps(polling: PollingWatch, database: Path, clock: ManualClock) -> None:
    began = clock.monotonic()
    assert polling.wait(1.0) == Change.NOTHING
    assert clock.monotonic() - began == pytest.approx(1.0)


def test_a_poller_tells_of_files_it_may_not_see(polling: PollingWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "stat", refuse(errno.EACCES))
    with pytest.raises(StorageError, match=r"cannot watch .*app.db-wal: Permission denied"):
        polling.changed()


# -- kqueue ------------------------------------------------------------------------------------------------------------

NOTE_DELETE, NOTE_WRITE, NOTE_EXTEND, NOTE_RENAME = 1, 2, 4, 32


class Kqueue:
    """A BSD kernel's event queue, as far as `KqueueWatch` asks of it; tests say what happens."""

    def __init__(self) -> None:
        self._pipe = os.pipe()
        self._watched: dict[int, SimpleNamespace] = {}
        self._happened: list[SimpleNamespace] = []
        self.is_closed = False

    def fileno(self) -> int:
        return self._pipe[0]

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            os.close(self._pipe[0])
            os.close(self._pipe[1])

    def control(self, changes: list[SimpleNamespace] | None, most: int, timeout: float) -> list[SimpleNamespace]:
        assert not self.is_closed
        assert timeout == 0
        for change in changes or ():
            assert (change.filter, change.flags) == ("vnode", 1 | 32)
            self._watched[change.ident] = change
        happened, self._happened = self._happened[:most], self._happened[most:]
        if happened and not self._happened:
            os.read(self._pipe[0], 100)
        return happened

    def happen(self, path: Path, note: int) -> None:
        for descriptor, asked in self._watched.items():
            link = Path(f"/proc/self/fd/{descriptor}")
            if link.exists() and link.readlink() in (path, Path(f"{path} (deleted)")) and asked.fflags & note:
                self._happened.append(SimpleNamespace(ident=descriptor, fflags=note))
                os.write(self._pipe[1], b"!")


class Kernel(SimpleNamespace):
    """The half of ``select`` that only BSDs have."""

    KQ_FILTER_VNODE, KQ_EV_ADD, KQ_EV_CLEAR = "vnode", 1, 32
    KQ_NOTE_DELETE, KQ_NOTE_WRITE, KQ_NOTE_EXTEND, KQ_NOTE_RENAME = NOTE_DELETE, NOTE_WRITE, NOTE_EXTEND, NOTE_RENAME

    def kqueue(self) -> Kqueue:
        self.queue = Kqueue()
        return self.queue

    def kevent(self, ident: int, filter: str, flags: int, fflags: int) -> SimpleNamespace:  # noqa: A002
        return SimpleNamespace(ident=ident, filter=filter, flags=flags, fflags=fflags)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(watch_module, "_kernel", kernel)
    return kernel


@pytest.fixture
def kqueue(kernel: Kernel, database: Path, slots: Path) -> Iterator[KqueueWatch]:
    with KqueueWatch(database, slots) as watch:
        yield watch


def test_kqueue_reports_writes_and_removed_slots(kernel: Kernel, database: Path, slots: Path) -> None:
    wal = Path(f"{database}-wal")
    wal.touch()
    with KqueueWatch(database, slots) as watch:
        assert watch.poll_interval is None
        assert watch.changed() == Change.NOTHING
        kernel.queue.happen(wal, NOTE_WRITE)
        assert is_readable(watch)
        assert watch.wait(LONG) == Change.DATA
        assert not is_readable(watch)
        kernel.queue.happen(wal, NOTE_EXTEND)
        kernel.queue.happen(slots, NOTE_WRITE)
        assert watch.changed() == EVERYTHING
        kernel.queue.happen(database.parent, NOTE_WRITE)
        assert watch.changed() == Change.NOTHING


def test_kqueue_follows_a_wal_that_comes_and_goes(kqueue: KqueueWatch, kernel: Kernel, database: Path) -> None:
    wal = Path(f"{database}-wal")
    for _ in range(3):
        assert kqueue.changed() == Change.NOTHING
        wal.touch()
        kernel.queue.happen(database.parent, NOTE_WRITE)
        assert kqueue.changed() == Change.DATA
        kernel.queue.happen(wal, NOTE_WRITE)
        assert kqueue.changed() == Change.DATA
        assert any(str(wal) in file for file in open_files())
        wal.unlink()
        kernel.queue.happen(wal, NOTE_DELETE)
        assert kqueue.changed() == Change.DATA
        assert not any(str(wal) in file for file in open_files())


def test_kqueue_polls_without_the_directory(kqueue: KqueueWatch, kernel: Kernel, database: Path) -> None:
    database.parent.rmdir()
    kernel.queue.happen(database.parent, NOTE_DELETE)
    assert kqueue.changed() == Change.DATA
    assert kqueue.poll_interval == SLOW
    database.parent.mkdir()
    assert kqueue.changed() == Change.NOTHING
    assert kqueue.poll_interval is None


def test_kqueue_ignores_late_news_of_a_file_that_is_closed(kqueue: KqueueWatch, kernel: Kernel) -> None:
    kernel.queue._happened.append(SimpleNamespace(ident=-5, fflags=NOTE_WRITE))
    os.write(kernel.queue._pipe[1], b"!")
    assert kqueue.changed() == Change.NOTHING


def test_kqueue_leaks_no_descriptors(kernel: Kernel, database: Path, slots: Path) -> None:
    Path(f"{database}-wal").touch()
    before = open_files()
    watch = KqueueWatch(database, slots)
    assert len(open_files() - before) == 5
    watch.close()
    watch.close()
    assert more_open(before) == set()
    assert watch.fileno() is None
    with pytest.raises(StorageError):
        watch.changed()
    slots.chmod(0o700)
    kernel.kevent = refuse(errno.ENOMEM)  # type: ignore[method-assign]
    with pytest.raises(OSError, match="memory"):
        KqueueWatch(database, slots)
    assert more_open(before) == set()


def test_kqueue_in_a_forked_child_closes_the_files_but_not_a_queue_that_is_not_there(
    kernel: Kernel, database: Path, slots: Path
) -> None:
    before = open_files()
    watch = KqueueWatch(database, slots)
    watch._let_go()
    assert watch.fileno() is None
    assert not kernel.queue.is_closed
    kernel.queue.close()
    assert more_open(before) == set()
    watch_module._abandoned.clear()


def test_kqueue_is_the_choice_where_there_is_one(
    kernel: Kernel, database: Path, slots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with watch_database(database, slots) as watch:
        assert isinstance(watch, KqueueWatch)


def test_a_system_with_neither_polls(database: Path, slots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert isinstance(watch_database(database, slots), PollingWatch)
    with pytest.raises(StorageError, match="by kqueue"):
        watch_database(database, slots, kind="kqueue")


# -- inside one process ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["eventfd", "socketpair"])
def channel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "socketpair":
        monkeypatch.delattr(os, "eventfd")


@pytest.fixture
def waker(channel: None) -> Iterator[Waker]:
    waker = Waker()
    yield waker
    waker.close()


def test_a_waker_is_readable_until_it_is_cleared(waker: Waker) -> None:
    assert not is_readable(waker)
    assert not waker.clear()
    waker.wake()
    waker.wake()
    assert is_readable(waker)
    assert waker.clear()
    assert not is_readable(waker)
    assert not waker.clear()


def test_a_waker_that_nobody_clears_never_blocks_and_is_cleared_at_once(waker: Waker) -> None:
    for _ in range(20_000):
        waker.wake()
    assert waker.clear()
    assert not is_readable(waker)


def test_a_counter_that_is_full_never_blocks() -> None:
    waker = Waker()
    os.eventfd_write(waker.fileno(), 2**64 - 2)
    waker.wake()
    assert waker.clear()
    waker.close()


def test_a_waker_wakes_from_another_thread(waker: Waker) -> None:
    thread = threading.Thread(target=waker.wake)
    thread.start()
    assert select.select([waker], [], [], LONG)[0]
    thread.join()


def test_a_waker_wakes_from_a_signal_handler_also_one_that_interrupts_it(waker: Waker) -> None:
    previous = signal.signal(signal.SIGUSR1, lambda number, frame: waker.wake())
    try:
        signal.raise_signal(signal.SIGUSR1)
        assert waker.clear()
        with waker._guard:
            signal.raise_signal(signal.SIGUSR1)
        assert waker.clear()
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_a_closed_waker_is_deaf(waker: Waker) -> None:
    waker.close()
    waker.close()
    before = open_files()
    waker.wake()
    assert not waker.clear()
    assert more_open(before) == set()
    with pytest.raises(ValueError, match="closed"):
        waker.fileno()


@pytest.mark.usefixtures("channel")
def test_wakers_and_bells_leak_no_descriptors() -> None:
    before = open_files()
    for _ in range(3):
        waker = Waker()
        waker.wake()
        waker.close()
        with BellWatch(bell := Bell()):
            bell.ring()
    Waker()  # forgotten
    assert more_open(before) == set()


def test_a_forked_child_has_a_waker_of_its_own() -> None:
    source = """
    waker = Waker()
    if os.fork() == 0:
        waker.wake()
        say(waker.clear())
        say(waker.clear())
        waker.close()
        os._exit(0)
    os.wait()
    say(waker.clear())
    waker.wake()
    if os.fork() == 0:
        say(waker.clear())
        os._exit(0)
    os.wait()
    say(waker.clear())
    """
    with Program(source) as program:
        assert [program.hear() for _ in range(5)] == ["True", "False", "False", "False", "True"]


def test_a_child_forked_while_a_thread_holds_the_guards_does_not_hang() -> None:
    source = """
    bell, waker = Bell(), Waker()
    watch = BellWatch(bell)
    held, free = threading.Event(), threading.Event()
    def hold():
        with bell._guard, watch._guard, watch._waker._guard, waker._guard:
            held.set()
            free.wait()
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    if os.fork() == 0:
        waker.wake()
        bell.ring()
        say(watch.wait(20).name, waker.clear())
        other = BellWatch(bell)
        other.close()
        watch.close()
        os._exit(0)
    os.wait()
    free.set()
    thread.join()
    say(watch.wait(0) == Change.NOTHING)
    """
    with Program(source) as program:
        assert [program.hear(), program.hear()] == ["DATA True", "True"]


def test_a_bell_wakes_all_its_watches() -> None:
    bell = Bell()
    bell.ring()
    with BellWatch(bell) as first, BellWatch(bell) as second, BellWatch(Bell()) as other:
        assert first.changed() == Change.NOTHING
        bell.ring()
        bell.ring(Change.SLOTS)
        assert is_readable(first)
        assert [watch.changed() for watch in (first, second, other)] == [EVERYTHING, EVERYTHING, Change.NOTHING]
        assert not is_readable(first)
        assert first.changed() == Change.NOTHING


def test_a_bell_that_rings_between_two_looks_is_heard_each_time() -> None:
    bell = Bell()
    with BellWatch(bell) as watch:
        for change in (Change.DATA, Change.SLOTS, EVERYTHING) * 3:
            bell.ring(change)
            assert watch.wait(LONG) == change


def test_a_bell_in_another_thread_ends_a_wait() -> None:
    bell = Bell()
    with BellWatch(bell) as watch:
        thread = threading.Thread(target=bell.ring)
        thread.start()
        assert watch.wait() == Change.DATA
        thread.join()


def test_many_who_ring_lose_nothing() -> None:
    bell = Bell()
    rung = 0
    lock = threading.Lock()

    def ring() -> None:
        nonlocal rung
        for _ in range(500):
            with lock:
                rung += 1
            bell.ring()

    with BellWatch(bell) as watch:
        threads = [threading.Thread(target=ring) for _ in range(4)]
        for thread in threads:
            thread.start()
        heard = 0
        while heard < 2000:
            assert watch.wait(LONG), f"heard {heard} of {rung}"
            heard = rung
        for thread in threads:
            thread.join()


def test_a_closed_watch_is_forgotten_by_its_bell() -> None:
    bell = Bell()
    watch = BellWatch(bell)
    watch.close()
    watch.close()
    bell.ring()
    assert bell._watches == ()
    assert watch.fileno() is None
    with pytest.raises(StorageError, match="closed"):
        watch.changed()


def test_a_bell_that_rings_while_its_watch_closes_does_no_harm() -> None:
    bell = Bell()
    watch = BellWatch(bell)
    watches = bell._watches
    watch.close()
    bell._watches = watches
    bell.ring()
    assert watch.fileno() is None
