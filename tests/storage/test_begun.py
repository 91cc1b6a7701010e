"""What workers record in their consumer's slot file, and that it can be read whenever they are killed."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liteq.job import Death
from liteq.storage import begun

pytestmark = pytest.mark.skipif(not begun.CAN_RECORD, reason="nothing is recorded here")

WORKERS = 3


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = tmp_path / "slot"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    yield path, descriptor
    os.close(descriptor)


def box_of(recorder: begun.Recorder, worker: int) -> begun.BlackBox:
    box = recorder.box(worker)
    assert box is not None
    return box


def test_nothing_is_known_of_a_file_that_was_not_prepared(slot: tuple[Path, int]) -> None:
    path, descriptor = slot
    assert begun.read(path) is None
    assert begun.read(path.with_name("missing")) is None
    assert begun.read_worker(descriptor, 0) is None


@pytest.mark.parametrize("boxes", [0, WORKERS])
def test_each_worker_records_what_it_begins(slot: tuple[Path, int], boxes: int) -> None:
    path, descriptor = slot
    begun.prepare(descriptor, WORKERS, boxes=boxes)
    assert begun.read(path) == {}
    recorder = begun.Recorder(descriptor)
    recorder.record(0, 7)
    recorder.record(2, 1 << 40)
    recorder.record(0, 8)
    recorder.close()
    assert begun.read(path) == {8: Death(), 1 << 40: Death()}


def test_where_files_cannot_be_mapped_what_is_begun_is_written(
    slot: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENODEV, "no such device")

    path, descriptor = slot
    begun.prepare(descriptor, WORKERS, boxes=WORKERS)
    monkeypatch.setattr(begun.mmap, "mmap", refuse)
    recorder = begun.Recorder(descriptor)
    recorder.record(0, 7)
    recorder.of(2)(1 << 40)
    assert recorder.box(0) is None
    assert begun.read(path) == {7: Death(), 1 << 40: Death()}
    remains = begun.read_worker(descriptor, 2)
    assert remains is not None
    assert remains.seq == 1 << 40
    recorder.close()
    recorder.close()


def test_a_file_without_boxes_has_none(slot: tuple[Path, int]) -> None:
    begun.prepare(slot[1], WORKERS)
    recorder = begun.Recorder(slot[1])
    assert recorder.box(0) is None
    recorder.close()


def test_a_box_tells_what_the_present_job_has_logged_and_used(slot: tuple[Path, int]) -> None:
    path, descriptor = slot
    begun.prepare(descriptor, WORKERS, boxes=WORKERS)
    recorder = begun.Recorder(descriptor)
    box, other = box_of(recorder, 1), box_of(recorder, 2)
    other.write(b"of another worker\n")
    box.write(b"before any job\n")
    for seq in (5, 6):
        box.begin(before=float(seq))
        recorder.record(1, seq)
        box.write(b"of job %d\n" % seq)
    assert begun.read_worker(descriptor, 1) == (6, 6.0, Death(log="of job 6"))
    box.end(6.5, 1 << 33)
    recorder.close()
    assert begun.read(path) == {6: Death(1 << 33, 0.5, "of job 6")}


def test_a_job_that_has_logged_nothing_does_not_inherit_a_log(slot: tuple[Path, int]) -> None:
    begun.prepare(slot[1], WORKERS, boxes=WORKERS)
    recorder = begun.Recorder(slot[1])
    box = box_of(recorder, 0)
    box.begin(None)
    box.write(b"of the first\n")
    box.begin(None)
    recorder.record(0, 2)
    recorder.close()
    assert begun.read(slot[0]) == {2: Death()}


def test_a_worker_that_takes_over_a_number_begins_with_an_empty_box(slot: tuple[Path, int]) -> None:
    begun.prepare(slot[1], WORKERS, boxes=WORKERS)
    for _ in range(2):
        recorder = begun.Recorder(slot[1])
        box_of(recorder, 0).begin(3.0)
        assert begun.read_worker(slot[1], 0) == (0, 3.0, Death())
        box_of(recorder, 0).write(b"words\n")
        recorder.close()


def test_jobs_that_share_a_box_have_each_its_own_lines(slot: tuple[Path, int]) -> None:
    path, descriptor = slot
    begun.prepare(descriptor, WORKERS, boxes=1)
    recorder = begun.Recorder(descriptor)
    assert recorder.box(1) is None
    box = box_of(recorder, 0)
    box.share()
    for text in (
        begun.tagged(5, "of an earlier attempt"),
        begun.tagged(6, "first\nand second"),
        begun.tagged(0, "of nobody"),
        begun.anew(5),
        begun.tagged(5, "5\twith a tab"),
        begun.tagged(66, "of another one"),
    ):
        box.write(text.encode())
    box.resume(2.0)
    recorder.record(0, 6)
    for worker, seq in ((1, 5), (2, 6)):
        recorder.record(worker, seq)
    assert begun.read_worker(descriptor, 0) == (6, 2.0, Death(log="first\nand second"))
    assert begun.log_of(descriptor, 0, 5) == "5\twith a tab"
    assert begun.log_of(descriptor, 0, 7) == begun.log_of(descriptor, 1, 5) == ""
    recorder.close()
    assert begun.read(path) == {5: Death(log="5\twith a tab"), 6: Death(log="first\nand second")}


@given(st.lists(st.integers(0, 2 * begun.LOG_BYTES), max_size=12), st.integers(0, 12))
def test_the_last_lines_are_kept_however_much_was_logged(lengths: list[int], begin: int) -> None:
    descriptor = os.memfd_create("slot") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)
    begun.prepare(descriptor, 1, boxes=1)
    recorder = begun.Recorder(descriptor)
    box = box_of(recorder, 0)
    lines = [f"{number}:".ljust(length, "x") for number, length in enumerate(lengths)]
    for number, line in enumerate(lines):
        if number == begin:
            box.begin(None)
        box.write(line.encode() + b"\n")
    remains = begun.read_worker(descriptor, 0)
    recorder.close()
    os.close(descriptor)
    assert remains is not None
    whole = "".join(line + "\n" for line in lines[begin if begin < len(lines) else 0 :])
    kept = remains.death.log
    assert len(kept.encode()) <= begun.LOG_BYTES
    assert len(kept.splitlines()) <= begun.LOG_LINES
    assert whole.rstrip("\n").endswith(kept)
    if lines and len(lines[-1]) < begun.LOG_BYTES - 1:
        assert kept.endswith(lines[-1])


def test_a_line_that_is_cut_off_at_the_front_is_left_out(slot: tuple[Path, int]) -> None:
    begun.prepare(slot[1], 1, boxes=1)
    recorder = begun.Recorder(slot[1])
    box = box_of(recorder, 0)
    for number in range(10):
        box.write(f"{number} ".encode().ljust(999, b"x") + b"\n")
    remains = begun.read_worker(slot[1], 0)
    recorder.close()
    assert remains is not None
    assert [line[0] for line in remains.death.log.splitlines()] == ["6", "7", "8", "9"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_what_a_killed_process_has_written_is_read_by_others(slot: tuple[Path, int]) -> None:
    path, descriptor = slot
    begun.prepare(descriptor, WORKERS, boxes=WORKERS)
    pid = os.fork()
    if pid == 0:
        recorder = begun.Recorder(descriptor)
        box = box_of(recorder, 1)
        box.begin(1.0)
        recorder.record(1, 9)
        while True:
            box.write(b"x" * 99 + b"\n")
            box.write(b"y" * 50 + b"\n")
            if box._written > 10 * begun.LOG_BYTES:
                os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    recorded = begun.read(path)
    assert recorded is not None
    assert set(recorded) == {9}
    assert set(recorded[9].log.splitlines()) == {"x" * 99, "y" * 50}
    assert len(recorded[9].log.splitlines()) == begun.LOG_LINES


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_has_let_go_of_the_box(slot: tuple[Path, int]) -> None:
    begun.prepare(slot[1], WORKERS, boxes=WORKERS)
    recorder = begun.Recorder(slot[1])
    box = box_of(recorder, 1)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if box.closed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not box.closed
    recorder.close()
