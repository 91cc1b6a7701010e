"""Worker processes are replaced by fresh ones: nothing is lost, at most one slot is empty, and nothing piles up."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fleet
import psutil
import pytest
from kinds import GET
from workshop import lines

from liteq import ConfigurationError, LiteQ
from liteq.consumer import ConsumerOptions
from liteq.consumer.pools.process import ProcessPool

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks at /proc"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture
def kind() -> dict[str, Any]:
    return {"worker_type": "process"}


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file is there, workers of the app ``held_app:app`` do not come up."""
    path = tmp_path / "held"
    source = f"""
        import workshop
        app = workshop.build("unused.db")
        @app.on_startup()
        def hold():
            while workshop.Path({str(path)!r}).exists():
                workshop.time.sleep(0.002)  # task body
        """
    (tmp_path / "held_app.py").write_text("\n".join(line[8:] for line in source.splitlines()))
    monkeypatch.syspath_prepend(tmp_path)
    return path


def pids_of(results: Any) -> list[int]:
    return [pid for pid, _, _ in results.get(GET)]


# ── slots ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_only_worker_does_no_more_than_its_share(app: LiteQ, tasks: Any, consume: Any) -> None:
    with consume(app):
        tasks.where.map([()] * 200).get(GET)
    with consume(app, max_tasks=3):
        shares = Counter(pids_of(tasks.where.map([()] * 30)))
    assert max(shares.values()) == 3  # some did less: what a slow machine has not begun in time is taken back


def test_each_job_in_a_process_of_its_own(app: LiteQ, tasks: Any, consume: Any) -> None:
    with consume(app, workers=3, max_tasks=1):
        assert len(set(pids_of(tasks.where.map([()] * 30)))) == 30


def test_only_one_worker_waits_for_its_successor_at_a_time(
    app: LiteQ, tasks: Any, consume: Any, held: Path, gate: Path, log: str, eventually: Any
) -> None:
    first = gate.with_name("first")
    with consume(app, workers=3, max_tasks=6, app_path="held_app:app"):
        eventually(lambda: len(_workers()) == 3)
        tasks.wait.map([(str(first), log + "0", "")] * 3)
        eventually(lambda: len(lines(log + "0")) == 3, message="all are up")
        held.touch()
        first.touch()
        old = set(pids_of(tasks.where.map([()] * 60)))
        waiting = tasks.wait.map([(str(gate), log, number) for number in range(2)])
        eventually(lambda: len(lines(log)) == 2, message="all have done their share, and two still work at a time")
        held.unlink()
        gate.touch()
        waiting.get(GET)
        eventually(lambda: not set(pids_of(tasks.where.map([()] * 6))) & old, message="all are replaced in the end")


def test_who_is_furthest_beyond_its_share_is_replaced_first() -> None:
    """Else those at the front, soon spent again, would keep the others from ever being replaced."""
    workers = [SimpleNamespace(is_spent=excess >= 0, resting=False, excess=excess) for excess in (0, -1, 7, 3)]
    asked: list[Any] = []

    def rests(one: Any) -> bool:
        asked.append(one)
        return len(asked) < 2

    ProcessPool._rest_spent(SimpleNamespace(_workers=workers, _rests=rests))  # type: ignore[arg-type]
    assert asked == [workers[2], workers[3]]


def test_a_worker_that_rests_with_a_long_last_job_does_not_hold_up_the_others(
    app: LiteQ, tasks: Any, consume: Any, held: Path, gate: Path, log: str, eventually: Any
) -> None:
    with consume(app, workers=3, max_tasks=1, app_path="held_app:app") as consumer:
        eventually(lambda: consumer._dispatcher is not None and consumer._dispatcher._pool.ready == 3)
        held.touch()
        long = tasks.wait(str(gate), log)
        eventually(lambda: lines(log))
        assert len(set(pids_of(tasks.where.map([()] * 2)))) == 2
        held.unlink()
        assert len(set(pids_of(tasks.where.map([()] * 10)))) == 10
        gate.touch()
        long.get(GET)


def test_no_more_jobs_run_at_a_time_than_there_are_workers(
    app: LiteQ, tasks: Any, consume: Any, gate: Path, log: str, eventually: Any
) -> None:
    """A worker's last job is a long one: its successor is up, and waits for its end."""
    with consume(app, max_tasks=1):
        tasks.where().get(GET)
        long = tasks.wait(str(gate), log)
        eventually(lambda: lines(log))
        eventually(lambda: len(_workers()) == 2, message="the successor is started early")
        next_one = tasks.write(log, "next")
        gate.touch()
        long.get(GET)
        next_one.get(GET)
    assert lines(log) == ["began ", "ended ", "next"]


def _workers() -> list[psutil.Process]:
    """The worker processes below this one, which are leaders of their own groups."""
    found = []
    for one in psutil.Process().children(recursive=True):
        try:
            if os.getpgid(one.pid) == one.pid:
                found.append(one)
        except ProcessLookupError:
            continue
    return found


def test_nothing_is_lost_or_doubled(app: LiteQ, tasks: Any, consume: Any, log: str) -> None:
    with consume(app, workers=3, max_tasks=7):
        results = tasks.write.map([(log, number) for number in range(500)])
        results.get(GET)
    assert sorted(map(int, lines(log))) == list(range(500))
    assert {result.job().attempt for result in results} == {1}


def test_a_successor_that_does_not_come_up_leaves_the_old_worker_at_work(
    app: LiteQ, tasks: Any, consume: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, eventually: Any
) -> None:
    broken = tmp_path / "broken"
    source = f"import os, workshop\nif os.path.exists({str(broken)!r}): raise ValueError\napp = workshop.app\n"
    (tmp_path / "soon_broken_app.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with consume(app, max_tasks=2, app_path="soon_broken_app:app", start_method="spawn"):
        first, _, _ = tasks.where().get(GET)
        broken.touch()
        eventually(lambda: tasks.where().get(GET) and "could not start" in caplog.text)
        assert tasks.where().get(GET)[0] == first
        broken.unlink()
        eventually(lambda: tasks.where().get(GET)[0] != first)


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────


def memory_of_a_worker(tasks: Any) -> int:
    pid, _, _ = tasks.where().get(GET)
    return psutil.Process(pid).memory_info().rss >> 20


@pytest.mark.parametrize("start_method", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_worker_with_too_much_memory_is_replaced(
    app: LiteQ, tasks: Any, consume: Any, caplog: pytest.LogCaptureFixture, start_method: str, eventually: Any
) -> None:
    caplog.set_level(logging.INFO, "liteq")
    with consume(app, start_method=start_method):
        usual = memory_of_a_worker(tasks)
    with consume(app, start_method=start_method, max_memory=usual + 50):
        fat = tasks.grow(100).get(GET)
        eventually(lambda: tasks.where().get(GET)[0] != fat)
        thin, _, _ = tasks.where().get(GET)
        assert {tasks.where().get(GET)[0] for _ in range(10)} == {thin}
    [line] = [one for one in caplog.records if "replaced for its memory" in one.getMessage()]
    assert line.getMessage().startswith(f"worker process is replaced for its memory pid={fat} memory=")
    assert int(re.findall(r"memory=(\d+)MB", line.getMessage())[0]) > usual + 50
    assert "died" not in caplog.text


def test_a_job_that_takes_far_too_much_is_reported_once_and_not_killed(
    app: LiteQ,
    tasks: Any,
    consume: Any,
    gate: Path,
    log: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    eventually: Any,
) -> None:
    monkeypatch.setattr("liteq.consumer.pools.process.WEIGH_EVERY", 0.01)
    with consume(app, max_memory=1):  # less than any worker has
        result = tasks.wait(str(gate), log)
        eventually(lambda: "far more memory than max_memory" in caplog.text)
        gate.touch()
        assert result.get(GET) == "through"
    [line] = [one.getMessage() for one in caplog.records if "far more memory" in one.getMessage()]
    assert f"job={result.id} task=workshop.wait" in line


def test_threads_have_no_memory_of_their_own() -> None:
    with pytest.raises(ConfigurationError, match="max_memory is for process workers: those of kind 'thread' share one"):
        ConsumerOptions(worker_type="thread", max_memory=100)
    with pytest.raises(ConfigurationError, match="max_memory"):
        ConsumerOptions(worker_type="process", max_memory=0)


# ── nothing piles up ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_hundred_recycles_leave_nothing_open(
    app: LiteQ, tasks: Any, consume: Any, path: Path, eventually: Any
) -> None:
    with consume(app, workers=2):
        tasks.where.map([()] * 300).get(GET)  # everything that is made once is made now
    outside = open_without(app), directories()
    with consume(app, workers=2, max_tasks=30):
        tasks.where.map([()] * 300).get(GET)
        eventually(lambda: len(_workers()) <= 2)
        before = open_here()
        pids = set(pids_of(tasks.where.map([()] * 2000)))
        for _ in range(5):
            pids |= set(pids_of(tasks.where.map([()] * 300)))
        # Not more: a worker that was on its way out, or its successor, may have been there at first.
        eventually(lambda: Counter(open_here()) <= Counter(before), message=f"{open_here()}, at first {before}")
    with consume(app, workers=2, max_tasks=1):
        pids |= set(pids_of(tasks.where.map([()] * 100)))
    assert len(pids) > 100
    assert (open_without(app), directories()) == outside
    assert list((path.parent / (path.name + "-liteq") / "consumers").iterdir()) == []


def directories() -> int:
    """What multiprocessing has made for this process."""
    from multiprocessing import process

    made = process.current_process()._config.get("tempdir")  # type: ignore[attr-defined]
    return len(list(Path(made).iterdir())) if made else 0


def open_without(app: LiteQ) -> dict[str, int]:
    """The same without what callers of the app waited with, which stays for a moment, and what earlier tests forgot."""
    app.engine.waiters.close()
    gc.collect()
    return open_here()


def open_here() -> dict[str, int]:
    """What this process has open, by kind, and its threads; without the queue's files, which each thread opens when it
    needs them.
    """
    kinds = Counter(threads=threading.active_count())
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            target = str(descriptor.readlink())
            kinds[target.partition(":")[0] if not target.startswith("/") else "slot" * ("/consumers/" in target)] += 1
    del kinds[""]
    return dict(kinds)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_consumer_leaves_no_directory_behind(
    path: Path,
    tasks: Any,
    consumers: fleet.Fleet,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    eventually: Any,
) -> None:
    temporary = path.with_name("temporary")  # not the test's own directory: its path leaves no room for a socket's
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    member = consumers.launch(worker_type="process", start_method="forkserver")
    tasks.where().get(GET)
    assert [one.name.partition("-")[0] for one in temporary.iterdir()] == ["pymp"]
    getattr(member, how)()
    eventually(lambda: list(temporary.iterdir()) == [])


def test_workers_start_though_the_temporary_directory_leaves_no_room_for_a_fork_server(
    path: Path, tasks: Any, consumers: fleet.Fleet, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    temporary = path.with_name("t" * 100)
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    member = consumers.launch(worker_type="process", start_method="forkserver")
    assert tasks.where().get(GET)[0] in [one.pid for one in member.family()]
    (warning,) = consumers.logged("are started by spawn")
    assert f"directory={temporary}" in warning
    assert member.stop() == 0
    eventually(lambda: list(temporary.iterdir()) == [])
