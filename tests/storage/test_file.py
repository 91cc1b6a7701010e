"""FileStorage keeps the contract; below it, what is its own: its journal, damage, replacement, who loads what."""

from __future__ import annotations

import errno
import gzip
import os
import random
import shutil
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import test_faults
from contract import NOW, StorageContract, add_many, again, claim, decided, new, seqs, succeed
from programs import ROOT, Program

from liteq import JobState, LiteQ
from liteq.errors import ConfigurationError, StorageError, StorageTooNew, StorageUnusable
from liteq.job import Ending, JobFilter
from liteq.storage import begun
from liteq.storage import journal as journals
from liteq.storage import replica as replicas
from liteq.storage.base import ClaimRequest
from liteq.storage.file import FileStorage
from liteq.storage.journal import HEAD, Damaged
from liteq.storage.memory import MemoryStorage
from liteq.storage.replay import TABLES, Model
from liteq.storage.watch import Change, InotifyWatch, PollingWatch

#: Where files cost no disk writes.
SHARED_MEMORY = Path("/dev/shm")
PROCESSES = 32


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """The path of a queue that is not there yet, in memory if possible."""
    memory = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else tmp_path
    with TemporaryDirectory(prefix="liteq-test-", dir=memory) as name:
        yield Path(name) / "queue"


@pytest.fixture
def reopen(directory: Path) -> Iterator[Callable[[], FileStorage]]:
    """Makes another way to the same queue, as another process has."""
    opened: list[FileStorage] = []

    def reopen() -> FileStorage:
        opened.append(FileStorage(directory, durability="normal"))
        return opened[-1]

    yield reopen
    for one in opened:
        one.close()


@pytest.fixture
def storage(reopen: Callable[[], FileStorage]) -> FileStorage:
    return reopen()


CLAIM_AND_WAIT = """
from liteq.storage.base import ClaimRequest
from liteq.storage.file import FileStorage
storage = FileStorage(sys.argv[1], durability="normal")
owner = storage.register({})
storage.turn([], ClaimRequest(owner, int(sys.argv[2])), float(sys.argv[3]))
say(owner)
hear()
"""


class TestFileStorage(StorageContract):
    @pytest.fixture
    def storage(self, storage: FileStorage) -> FileStorage:
        return storage

    @pytest.fixture
    def reopen(self, reopen: Callable[[], FileStorage]) -> Callable[[], FileStorage]:
        return reopen

    @pytest.fixture
    def perish(self, directory: Path) -> Callable[[int], int]:
        def perish(wanted: int) -> int:
            with Program(CLAIM_AND_WAIT, directory, wanted, NOW) as program:
                owner = int(program.hear())
                program.kill()
            return owner

        return perish


# ── words the tests are written in ───────────────────────────────────────────────────────────────────────


def content(storage: FileStorage) -> list[Any]:
    """Everything that there is, in a form that can be compared."""
    return storage._replica.ask(lambda model: list(model.frozen().parts()))


def journal_of(directory: Path) -> Path:
    return directory / "journal"


def shorten(storage: FileStorage) -> None:
    """Replace the journal, however short it is."""
    storage.compact()


def run_python(source: str, *arguments: object, **variables: str) -> str:
    """What a program prints; it must end well."""
    command = [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(directory: Path, kind: type[StorageError] = StorageUnusable, **options: Any) -> str:
    """What the first use of this path is refused with; it must leave everything as it was."""
    before = sorted(directory.parent.rglob("*"))
    with closing(FileStorage(directory, **options)) as storage:
        for use in (lambda: storage.add([new()]), storage.counts):
            with pytest.raises(kind) as caught:
                use()
    assert sorted(directory.parent.rglob("*")) == before
    return str(caught.value)


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_touched_before_the_first_use(directory: Path) -> None:
    FileStorage(directory).close()
    assert not directory.exists()


def test_what_is_made_is_nobody_elses(directory: Path) -> None:
    before = os.umask(0)
    try:
        with closing(FileStorage(directory)) as storage:
            storage.register({})
            storage.add([new()])
            shorten(storage)
            made = [directory, *directory.rglob("*")]
            modes = {stat.S_IMODE(one.stat().st_mode) for one in made if one.is_file()}
            assert {stat.S_IMODE(one.stat().st_mode) for one in made if one.is_dir()} == {0o700}
            assert modes == {0o600}
    finally:
        os.umask(before)


def test_a_path_that_cannot_be_a_queue_is_refused_and_left_as_it_was(directory: Path) -> None:
    assert "does not exist" in refused(directory / "below")
    directory.write_text("a file")
    assert "is not a directory" in refused(directory)
    directory.unlink()
    directory.mkdir()
    assert "holds no liteq queue" in refused(directory, create=False)
    (directory / "precious").write_text("x")
    assert "is not a queue's directory: it holds 'precious'" in refused(directory)
    (directory / "precious").unlink()
    directory.chmod(0o777)
    assert f"chmod o-w {directory}" in refused(directory)
    directory.rmdir()
    assert "does not exist" in refused(directory, create=False)


def test_a_network_filesystem_is_refused_unless_somebody_knows_better(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "network_filesystem", lambda path: "nfs4")
    directory.mkdir()
    assert "network filesystem (nfs4)" in refused(directory)
    with closing(FileStorage(directory, allow_network_fs=True)) as storage:
        storage.add([new()])


def test_links_are_not_followed(directory: Path, storage: FileStorage, tmp_path: Path) -> None:
    storage.add([new()])
    storage.close()
    journal_of(directory).rename(directory.parent / "elsewhere")
    journal_of(directory).symlink_to(directory.parent / "elsewhere")
    assert "is a symbolic link" in refused(directory)
    journal_of(directory).unlink()
    journal_of(directory).hardlink_to(directory.parent / "elsewhere")
    assert "has 2 names" in refused(directory)


@pytest.mark.parametrize(
    ("head", "kind", "words"),
    [
        (b"liteq journal 2 and more of a kind that is not known here\n", StorageTooNew, "has format 2.*Upgrade liteq"),
        (b"#!/bin/sh\n", StorageUnusable, "is not a journal of liteq"),
        (b"", StorageUnusable, "is not a journal of liteq"),
        (b"liteq journal 1 0123\n", StorageUnusable, "damaged first line"),
    ],
)
def test_what_is_no_journal_of_this_format_is_left_untouched(
    directory: Path, head: bytes, kind: type[StorageError], words: str
) -> None:
    directory.mkdir()
    journal_of(directory).write_bytes(head)
    with closing(FileStorage(directory)) as storage, pytest.raises(kind, match=words):
        storage.counts()
    assert journal_of(directory).read_bytes() == head


def test_a_journal_of_each_format_is_read(directory: Path) -> None:
    """``files/journal-N.gz`` begins with a state that has something of everything in it; some verbs follow. Whoever
    raises FORMAT adds the one that the version before wrote.
    """
    for version in range(1, journals.FORMAT + 1):
        directory.mkdir()
        file = Path(__file__).parent / "files" / f"journal-{version}.gz"
        journal_of(directory).write_bytes(gzip.decompress(file.read_bytes()))
        with closing(FileStorage(directory, create=False, durability="normal")) as storage:
            counts = {state: number for state, number in storage.counts().items() if number}
            assert (counts.pop(JobState.SCHEDULED), counts.pop(JobState.RUNNING), counts.pop(JobState.BLOCKED)) == (
                4,
                12,
                3,
            )
            assert sum(counts.values()) == 6
            assert len(counts) == 5
            assert len(storage.gates.states()) == 3
            assert {one.name for one in storage.schedules()} == {"due", "used"}
            assert storage.marks("after") == {"after": "x"}
            assert again(storage, storage.add([new(id="after")])[0]).payload == "ü".encode()
            assert len(storage.dead_owners()) == 2
        shutil.rmtree(directory)


@pytest.mark.slow
def test_many_processes_may_be_the_first_at_once(directory: Path) -> None:
    source = """
        import sys
        from liteq import FileStorage, Job, JobState, lifecycle
        storage = FileStorage(sys.argv[1], durability="normal")
        storage.add([lifecycle.submit(Job(0, "", "t", JobState.READY), 1.0)])
        assert sum(storage.counts().values()) > 0
        storage.close()
    """
    command = [sys.executable, "-c", textwrap.dedent(source.replace(", lifecycle", "")), str(directory)]
    command[2] = "from liteq import lifecycle\n" + command[2]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(command, env=environment) for _ in range(PROCESSES)]
    assert [one.wait(120) for one in processes] == [0] * PROCESSES
    with closing(FileStorage(directory)) as storage:
        assert seqs(storage.find(JobFilter())) == list(range(1, PROCESSES + 1))


def test_it_works_on_a_python_without_sqlite(directory: Path) -> None:
    source = """
        import sys
        sys.modules["sqlite3"] = sys.modules["_sqlite3"] = None
        import liteq
        from liteq import ConfigurationError, FileStorage, LiteQ
        from liteq.cli import main as program
        app = LiteQ(FileStorage(sys.argv[1]))
        add = app.task(name="add")(lambda a, b: a + b)
        with app.run_in_background(workers=1):
            print(add(2, 3).get(timeout=20))
        app.close()
        assert program.main(["ls", sys.argv[1], "--json"]) == 0
        try:
            LiteQ("queue.db")
        except ConfigurationError as error:
            print(error)
    """
    five, listed, refusal = run_python(source, directory).splitlines()
    assert five == "5"
    assert '"state": "succeeded"' in listed
    assert "built without sqlite3" in refusal
    assert "LiteQ(FileStorage('queue/'))" in refusal


# ── who loads what ───────────────────────────────────────────────────────────────────────────────────────


def test_who_only_enqueues_never_loads_the_jobs(storage: FileStorage, reopen: Callable[[], FileStorage]) -> None:
    add_many(storage, 50)
    producer = reopen()
    stored = [*producer.add([new()]), *producer.add([new(), new(due=NOW + 5)])]
    assert seqs(stored) == [51, 52, 53]
    assert producer._replica._model is None
    assert stored == storage.find(JobFilter(after=50))
    assert seqs(producer.add([new(id="mine")])) == [54]  # this depends on what there is
    assert producer._replica._model is not None


def test_looking_and_idle_turns_write_nothing(storage: FileStorage, directory: Path) -> None:
    owner = storage.register({})
    storage.add([new(due=NOW + 100)])
    size = journal_of(directory).stat().st_size
    for _ in range(3):
        storage.turn([], ClaimRequest(owner, 5), NOW)
        storage.gates.wake(NOW)
        storage.gates.put_out_dead(NOW)
        assert storage.remove(JobFilter()) == 0
        assert not storage.swap("key", "value", None)
        storage.counts()
    assert journal_of(directory).stat().st_size == size


def test_a_turn_that_only_blocks_is_heard_of_by_others(storage: FileStorage, reopen: Callable[[], FileStorage]) -> None:
    from liteq import gates

    owner, other = storage.register({}), reopen()
    storage.add([new("t"), new("t"), new("u")])
    needs = {"t": lambda job: (gates.limit("t", 1, None),)}
    storage.turn([], ClaimRequest(owner, 1, needs=needs), NOW)
    storage.turn([], ClaimRequest(owner, 1, needs=needs), NOW)
    assert other.counts() == storage.counts()
    assert content(other) == content(storage)


# ── a state, and a journal that begins with one ──────────────────────────────────────────────────────────


@pytest.fixture
def rich(directory: Path) -> Iterator[FileStorage]:
    """A queue with something of everything in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_faults, "SqliteStorage", FileStorage)
        test_faults._build(directory)
        scene = test_faults.at_gates(directory)
    with closing(scene.storage) as storage:
        for job in scene.running[:2]:
            storage.record_step(job.seq, job.claim, test_faults._step())
            storage.await_event(job.seq, job.claim, test_faults._wait(), NOW)
            storage.send(job.seq, "other", b"\xff", NOW)
        storage.apply([decided(scene.running[0], Ending.SUSPENDED, awaits="paid")], NOW)
        yield storage  # type: ignore[misc]


SHOW = """
    import sys
    from liteq import FileStorage
    storage = FileStorage(sys.argv[1])
    print(storage._replica.ask(lambda model: list(model.frozen().parts())), end="")
"""


def test_a_state_is_complete(rich: FileStorage, reopen: Callable[[], FileStorage]) -> None:
    replayed = reopen()
    assert content(replayed) == content(rich)
    for seed in "12":  # sets of text are in another order there
        assert run_python(SHOW, rich.path, PYTHONHASHSEED=seed) == repr(content(rich))
    shorten(rich)
    restored = reopen()
    assert b'["state","rows",' in journal_of(rich.path).read_bytes()
    assert content(restored) == content(rich)
    of_one, of_other = (one._replica.ask(_insides) for one in (restored, rich))
    assert of_one == of_other


#: Of this process, or made anew from the rows: see `liteq.storage.replay.TABLES`.
_MADE_ANEW = {"_unique", "_steps", "_lock", "_bell", "_flag", "_draw", "_alive", "_stops", "gates", "_gates"}
_MADE_ANEW |= {"plans", "_plans"}
_FROM_ROWS = {"_rows", "_seqs", "_standing", "_ready", "_scheduled"}


def _insides(model: Model) -> dict[str, Any]:
    """Every attribute of a model that is not of its process."""
    lines = {queue: sorted(line._keys.items()) for queue, line in model._ready.items()}
    gates = {
        name: (gate.slots, gate.task, gate.held, gate.line, gate.woken) for name, gate in model._gates._gates.items()
    }
    plain = {name: getattr(model, name) for name in (*TABLES, "_rows", "_seqs", "_standing")}
    return plain | {
        "ready": lines,
        "scheduled": sorted(model._scheduled._keys.items()),
        "gates": gates,
        "of_job": model._gates._of_job,
        "buckets": model._gates._buckets,
        "next token": model._gates.next_due(),
    }


#: ``_dues`` is made of the buckets, and ``_abandoned`` is empty between two verbs.
_OF_GATES = {"_house", "_gates", "_places", "_of_job", "_next", "_buckets", "_dues", "_abandoned"}


def test_no_attribute_of_the_model_is_left_out_of_its_state() -> None:
    unknown = set(vars(Model())) - set(TABLES) - _MADE_ANEW - _FROM_ROWS
    assert unknown == set(), "kept in memory, and neither in TABLES nor made anew from the rows"
    assert set(vars(Model()._gates)) == _OF_GATES, "see GateTable"


def test_others_go_on_with_a_journal_that_was_replaced(storage: FileStorage, reopen: Callable[[], FileStorage]) -> None:
    late, near, blind = reopen(), reopen(), reopen()
    add_many(storage, 20)
    for one in (late, near):
        assert one.counts()[JobState.READY] == 20
    blind.add([new()])
    model = near._replica._model
    add_many(storage, 3)
    shorten(storage)
    assert seqs(blind.add([new()])) == [25]
    assert near.counts()[JobState.READY] == 25
    assert near._replica._model is model  # what it had heard of already it was not told again
    shorten(storage)
    add_many(near, 1)
    shorten(storage)
    assert late.counts()[JobState.READY] == 26  # two generations late, it reads the state
    assert content(late) == content(near) == content(storage) == content(reopen())


def test_nothing_is_lost_while_a_journal_is_replaced(storage: FileStorage, reopen: Callable[[], FileStorage]) -> None:
    done = threading.Event()
    added: list[int] = []

    def write(other: FileStorage) -> None:
        owner = other.register({})
        while not done.is_set():
            added.extend(seqs(other.add([new(), new()])))
            succeed(other, claim(other, 1, owner=owner))

    writers = [threading.Thread(target=write, args=(reopen(),)) for _ in range(3)]
    for one in writers:
        one.start()
    try:
        for _ in range(15):
            shorten(storage)
    finally:
        done.set()
        for one in writers:
            one.join()
    assert sorted(added) == seqs(storage.find(JobFilter()))
    assert content(reopen()) == content(storage)


def test_a_replacement_that_fails_leaves_the_journal_and_no_rest(
    storage: FileStorage, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_many(storage, 5)
    before = journal_of(directory).read_bytes()

    def fail(self: Path, target: object) -> None:
        raise OSError(errno.EIO, "no such luck")

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="no such luck"):
        patch.setattr(Path, "replace", fail)
        shorten(storage)
    assert journal_of(directory).read_bytes() == before
    assert list(directory.glob("journal.*")) == []
    (directory / "journal.new-of-one-who-died").touch()
    shorten(storage)
    assert list(directory.glob("journal.*")) == []


def test_upkeep_keeps_the_journal_near_what_is_in_it(storage: FileStorage, directory: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(replicas, "GROWN", 20_000)
    owner = storage.register({})
    longest = 0
    for _ in range(60):
        add_many(storage, 20)
        succeed(storage, claim(storage, owner=owner))
        storage.remove(JobFilter())
        storage.upkeep()
        longest = max(longest, journal_of(directory).stat().st_size)
    assert longest < 40_000


def test_a_journal_that_nobody_keeps_up_is_replaced_by_a_writer(
    storage: FileStorage, directory: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(replicas, "GROWN", 1000)
    for number in range(1000):
        storage.swap("key", str(number - 1) if number else None, str(number))
    assert journal_of(directory).stat().st_size < 20_000
    assert storage.marks() == {"key": "999"}


# ── the end of a journal, and its middle ─────────────────────────────────────────────────────────────────


def test_what_a_dead_writer_has_left_at_the_end_is_cut_off(directory: Path, reopen: Callable[[], FileStorage]) -> None:
    add_many(reopen(), 3)
    whole = journal_of(directory).read_bytes()
    reopen().add([new(payload=b"a\nb" * 50)])
    line = journal_of(directory).read_bytes()[len(whole) :]
    rests = [line[:length] for length in (1, 8, 9, 30, len(line) - 1)] + [
        bytes(len(line)),
        line[:40] + bytes(8) + b"x\n",
    ]
    for number, rest in enumerate(rests):
        journal_of(directory).write_bytes(whole + rest)
        if number % 2:
            assert sum(reopen().counts().values()) == 3
        assert seqs(reopen().add([new()])) == [4], rest
        assert seqs(reopen().find(JobFilter())) == [1, 2, 3, 4]
        journal_of(directory).write_bytes(whole)


def damage(directory: Path, at: int) -> bytes:
    """Change one byte of the journal; returns all of it."""
    data = bytearray(journal_of(directory).read_bytes())
    data[at] ^= 1
    journal_of(directory).write_bytes(data)
    return bytes(data)


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_damage_is_told_and_nothing_is_changed(directory: Path, where: str) -> None:
    with closing(FileStorage(directory)) as storage:
        for _ in range(9):
            storage.add([new()])
    size = journal_of(directory).stat().st_size
    at = {"first": HEAD + 20, "middle": (HEAD + size) // 2, "last": size - 10}[where]
    data = damage(directory, at)
    with closing(FileStorage(directory)) as storage:
        for use in (storage.counts, lambda: storage.add([new(id="x")])):
            with pytest.raises(Damaged) as caught:
                use()
    words = str(caught.value)
    assert journal_of(directory).read_bytes() == data
    assert f"is damaged at byte {caught.value.at}" in words
    assert f"FileStorage({str(directory)!r}).salvage()" in words
    assert HEAD <= caught.value.at <= at
    assert caught.value.intact == {"first": 8, "middle": 4, "last": 0}[where]


def test_salvage_keeps_what_is_certain_and_jobs_that_were_added_later(
    directory: Path, storage: FileStorage, reopen: Callable[[], FileStorage]
) -> None:
    add_many(storage, 3)
    owner = storage.register({})
    succeed(storage, claim(storage, 2, owner=owner))
    size = journal_of(directory).stat().st_size
    storage.swap("lost", None, "x")
    later = add_many(storage, 2)
    assert len(claim(storage, 1, owner=owner)) == 1
    with pytest.raises(StorageError, match="is not damaged; nothing was changed"):
        reopen().salvage()
    data = damage(directory, size + 30)
    storage._replica.close()
    salvaged = reopen().salvage()
    assert (salvaged.jobs, salvaged.again) == (5, 2)
    assert salvaged.aside.read_bytes() == data
    after = reopen()
    assert seqs(after.find(JobFilter(states=frozenset({JobState.SUCCEEDED})))) == [1, 2]
    assert seqs(after.find(JobFilter(states=frozenset({JobState.READY})))) == [3, *seqs(later)]
    assert [after.get(job.id) for job in later] == later
    assert seqs(after.add([new()])) == [6]


def test_a_program_that_still_runs_notices_a_salvage(directory: Path, storage: FileStorage) -> None:
    add_many(storage, 3)
    size = journal_of(directory).stat().st_size
    damage(directory, size - 20)
    FileStorage(directory).salvage()
    with pytest.raises(StorageError, match="was deleted or replaced while it was in use"):
        storage.add([new()])


def test_a_record_that_comes_out_differently_is_refused(directory: Path, storage: FileStorage) -> None:
    owner = storage.register({})
    add_many(storage, 3)
    claim(storage, 2, owner=owner)
    whole = journal_of(directory).read_bytes()
    line = whole.splitlines(keepends=True)[-1]
    changed = line[9:].partition(b" ")[2][:-1].replace(b",2,null,{}", b",3,null,{}")
    assert changed != line[9:].partition(b" ")[2][:-1]
    text = whole[: -len(line)] + journals.line_of(changed, 4)
    journal_of(directory).write_bytes(text)
    with closing(FileStorage(directory)) as other, pytest.raises(StorageUnusable, match="turn did something else here"):
        other.counts()
    unknown = journals.line_of(b'["dance",1,null,[]]', 4)
    journal_of(directory).write_bytes(text[: -len(line)] + unknown)
    with (
        closing(FileStorage(directory)) as other,
        pytest.raises(StorageUnusable, match=r"Another version of liteq.*compact\(\)"),
    ):
        other.counts()
    journal_of(directory).write_bytes(whole)


# ── disks ────────────────────────────────────────────────────────────────────────────────────────────────


class Disk:
    """The calls that write, which may be told to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 1 << 40
        self.is_broken = False
        self.syncs = 0
        self._write = os.pwrite
        monkeypatch.setattr(journals.os, "pwrite", self.pwrite)
        monkeypatch.setattr(journals, "_sync", self.sync)

    def pwrite(self, descriptor: int, data: Any, at: int) -> int:
        if at + len(data) <= self.room:
            return self._write(descriptor, data, at)
        if at < self.room:
            return self._write(descriptor, bytes(data[: self.room - at]), at)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self, descriptor: int) -> None:
        self.syncs += 1
        if self.is_broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_a_full_disk_stores_nothing_and_loses_nothing(
    directory: Path, storage: FileStorage, reopen: Callable[[], FileStorage], disk: Disk
) -> None:
    owner, blind = storage.register({}), reopen()
    add_many(storage, 5)
    jobs = claim(storage, 2, owner=owner)
    before, size = content(storage), journal_of(directory).stat().st_size
    disk.room = size + 10
    verbs: Sequence[Callable[[], object]] = [
        lambda: blind.add([new()]),
        lambda: storage.add([new(id="x")]),
        lambda: succeed(storage, jobs),
        lambda: storage.swap("key", None, "value"),
        lambda: storage.register({}),
    ]
    for verb in verbs:
        with pytest.raises(StorageError, match="the disk is full; nothing was stored"):
            verb()
        assert journal_of(directory).stat().st_size == size
        assert content(storage) == before
    assert len(list((directory / "consumers").iterdir())) == 1
    model = storage._replica._model
    for _ in range(3):  # tried again and again, it costs no reading
        with pytest.raises(StorageError, match="disk is full"):
            succeed(storage, jobs)
    assert storage._replica._model is model
    disk.room = 1 << 40
    succeed(storage, jobs)
    blind.add([new()])
    assert storage.counts()[JobState.SUCCEEDED] == 2
    assert content(reopen()) == content(storage)


def test_what_cannot_be_synced_is_not_stored(directory: Path, disk: Disk) -> None:
    with closing(FileStorage(directory, durability="full")) as storage:
        add_many(storage, 2)
        before, size = content(storage), journal_of(directory).stat().st_size
        disk.is_broken = True
        with pytest.raises(StorageError, match="nothing was stored"):
            add_many(storage, 1)
        with pytest.raises(StorageError, match="nothing was stored"):
            storage.swap("key", None, "value")
        assert journal_of(directory).stat().st_size == size
        disk.is_broken = False
        assert content(storage) == before
        assert seqs(add_many(storage, 1)) == [3]


def test_each_record_is_on_the_disk_before_anybody_is_told_where_that_was_asked_for(
    directory: Path, disk: Disk
) -> None:
    with closing(FileStorage(directory, durability="normal")) as storage:
        add_many(storage, 2)
        assert disk.syncs == 0
    with closing(FileStorage(directory, durability="full")) as storage:
        add_many(storage, 2)
        storage.swap("key", None, "value")
        storage.counts()
        assert disk.syncs == 2


def test_a_limit_of_the_system_is_a_full_disk(directory: Path) -> None:
    source = """
        import resource, signal, sys
        from liteq import FileStorage, LiteQ
        from liteq.errors import StorageError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        app = LiteQ(FileStorage(sys.argv[1], durability="normal"))
        add = app.task(name="add")(lambda a, b: a + b)
        try:
            for number in range(1000):
                add(number, 2)
        except StorageError as error:
            print(number, "disk is full" in str(error))
    """
    pytest.importorskip("resource")
    stored, told = run_python(source, directory).split()
    assert told == "True"
    assert journal_of(directory).stat().st_size <= 4000
    with closing(FileStorage(directory)) as storage:
        assert storage.counts()[JobState.READY] == int(stored)


# ── the place ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_directory_that_was_deleted_is_noticed_and_made_anew(directory: Path, reopen: Any) -> None:
    storage, blind = reopen(), reopen()
    add_many(storage, 2)
    blind.add([new()])
    shutil.rmtree(directory)
    for one in (storage, blind):
        with pytest.raises(StorageError, match=r"was deleted or replaced|were deleted"):
            for _ in range(2):  # the lock files are looked for only now and then
                one.add([new(), new()])
    assert sum(storage.counts().values()) == 0


@pytest.mark.parametrize("is_blind", [True, False])
def test_an_older_journal_that_is_written_over_it_is_noticed(
    directory: Path, storage: FileStorage, reopen: Callable[[], FileStorage], is_blind: bool
) -> None:
    add_many(storage, 2)
    older = journal_of(directory).read_bytes()
    if not is_blind:
        storage.counts()
    add_many(storage, 2)
    journal_of(directory).write_bytes(older)  # the same file, with another content
    with pytest.raises(StorageError, match="has become shorter"):
        storage.add([new()])
    assert seqs(storage.add([new()])) == [3]
    assert sum(reopen().counts().values()) == 3


def test_a_backup_that_is_put_in_its_place_is_noticed(directory: Path, storage: FileStorage) -> None:
    add_many(storage, 2)
    shutil.copytree(directory, directory.with_name("backup"))
    add_many(storage, 2)
    directory.rename(directory.with_name("old"))
    directory.with_name("backup").rename(directory)
    with pytest.raises(StorageError):
        storage.counts()
    assert sum(storage.counts().values()) == 2
    assert seqs(add_many(storage, 1)) == [3]


# ── forks and processes ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forks_in_the_middle_of_writing_spoil_nothing(storage: FileStorage, reopen: Callable[[], FileStorage]) -> None:
    done = threading.Event()

    def write() -> None:
        owner = storage.register({})
        while not done.is_set():
            add_many(storage, 3)
            claim(storage, 2, owner=owner)

    writer = threading.Thread(target=write)
    writer.start()
    codes = []
    for number in range(10):
        child = os.fork()
        if child == 0:
            try:
                storage.add([new(id=f"child {number}")])
                assert storage.get(f"child {number}") is not None
                os._exit(0)
            finally:
                os._exit(1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    done.set()
    writer.join()
    assert codes == [0] * 10
    assert all(storage.get(f"child {number}") for number in range(10))
    assert content(reopen()) == content(storage)


TAKE_ALL = """
from liteq.storage.base import ClaimRequest
from liteq.storage.file import FileStorage
storage = FileStorage(sys.argv[1], durability="normal")
owner = storage.register({})
say("ready")
hear()
while jobs := storage.turn([], ClaimRequest(owner, 7), 2e9).jobs:
    say(*(job.seq for job in jobs))
say("over")
"""


@pytest.mark.slow
def test_processes_that_claim_at_once_never_get_the_same_job(directory: Path, storage: FileStorage) -> None:
    add_many(storage, 1000)
    programs = [Program(TAKE_ALL, directory) for _ in range(4)]
    taken: list[int] = []
    try:
        for one in programs:
            assert one.hear() == "ready"
        for one in programs:
            one.tell()
        for one in programs:
            while (line := one.hear()) != "over":
                taken += map(int, line.split())
    finally:
        for one in programs:
            one.__exit__()
    assert sorted(taken) == list(range(1, 1001))
    assert storage.counts()[JobState.RUNNING] == 1000


@pytest.mark.slow
def test_a_random_life_is_the_same_wherever_it_is_replayed(
    storage: FileStorage, reopen: Callable[[], FileStorage]
) -> None:
    """Several ways to one queue take turns at everything; each of them, and who reads it all later, see the same."""
    dice = random.Random(7)
    ways = [storage, reopen(), reopen()]
    owners = [one.register({}) for one in ways]
    running: list[tuple[int, Any]] = []
    for step in range(400):
        number = dice.randrange(3)
        way = ways[number]
        what = dice.randrange(6)
        if what < 2:
            way.add(
                [new(dice.choice("tu"), priority=dice.randrange(3), due=dice.choice([None, NOW + step])) for _ in "abc"]
            )
        elif what < 4:
            jobs = way.turn([], ClaimRequest(owners[number], 3), NOW + step).jobs
            running += [(number, job) for job in jobs]
        elif running:
            _, job = running.pop(dice.randrange(len(running)))
            succeed(way, [job], NOW + step)
        if step % 60 == 59:
            way.remove(JobFilter(limit=20))
            shorten(way)
    assert content(ways[0]) == content(ways[1]) == content(ways[2]) == content(reopen())


def test_workers_do_without_mapped_files(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENODEV, "no such device")

    monkeypatch.setattr(begun.mmap, "mmap", refuse)
    app = LiteQ(FileStorage(directory, durability="normal"))
    double = app.task(name="double")(lambda number: 2 * number)
    with app.run_in_background(workers=2):
        assert double.map(range(50)).get(20) == [2 * number for number in range(50)]
        [consumer] = app.consumers()
        assert set(app.storage.begun(consumer.number) or ()) & set(range(1, 51))
    app.close()


def test_what_needs_an_sqlite_file_is_refused(storage: FileStorage) -> None:
    with pytest.raises(ConfigurationError, match="is for a queue in an SQLite file"):
        storage.add([new()], connection=object())
    with pytest.raises(ConfigurationError, match=r"task\.connection\(\) is for a queue in an SQLite file.*LiteQ"):
        storage.transaction(storage.add([new()])[0])


def test_a_signal_handler_in_the_middle_of_a_call_is_refused_and_spoils_nothing(
    storage: FileStorage, reopen: Callable[[], FileStorage], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, refusals = os.pwrite, []

    def interrupted(*given: Any) -> int:
        for use in (storage.counts, lambda: storage.add([new()]), storage.close):
            with pytest.raises(StorageError, match="in the middle of another call") as caught:
                use()
            refusals.append(caught.value)
        return write(*given)

    storage.counts()
    monkeypatch.setattr(journals.os, "pwrite", interrupted)
    add_many(storage, 2)
    assert storage.swap("key", None, "value")
    assert len(refusals) == 6
    assert content(reopen()) == content(storage)


def test_the_best_means_to_watch_a_journal_may_be_missing(
    storage: FileStorage, reopen: Callable[[], FileStorage], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "used up")

    monkeypatch.setattr(InotifyWatch, "__init__", refuse)
    monkeypatch.setattr(InotifyWatch, "__del__", lambda self: None, raising=False)
    with storage.watch() as watch:
        assert isinstance(watch, PollingWatch)
        watch.changed()
        reopen().add([new()])
        assert watch.wait(10) & Change.DATA


def test_memory_and_files_forget_the_same_way(directory: Path) -> None:
    """An app on files is used like any other one."""
    app = LiteQ(FileStorage(directory, durability="normal"))
    double = app.task(name="double")(lambda number: 2 * number)
    with app.run_in_background(workers=2):
        assert double.map(range(50)).get(20) == [2 * number for number in range(50)]
    assert app.purge() == 50
    assert MemoryStorage().counts() == app.storage.counts()
    app.close()
