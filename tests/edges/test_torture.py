"""``liteq torture``: it finds nothing where nothing is wrong, and what is wrong where something is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from commandline import Eventually, Shop, shop_in
from conversation import is_gone

from liteq import JobState

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it refuses to work without POSIX signals")

if sys.platform != "win32":
    from liteq.cli.torture import verdict
    from liteq.cli.torture.verdict import Facts, Kill, Run

# ── the verdict ──────────────────────────────────────────────────────────────────────────────────────────


def run(started: float, ended: float | None = None, how: str = "", worker: str = "w1", consumer: str = "c1") -> Run:
    return Run("job", "1/1", worker, consumer, started, ended, how)


def facts(*runs: Run, state: JobState | None = JobState.SUCCEEDED, task: str = "tiny", **alive_until: float) -> Facts:
    """One job, enqueued and run like this; who is not named was last seen at 100."""
    found = Facts(enqueued={"job": task}, runs={"job": list(runs)})
    found.alive_until = {"w1": 100.0, "w2": 100.0, "c1": 100.0, "c2": 100.0} | alive_until
    found.states = {} if state is None else {"job": state}
    return found


def lost(found: Facts) -> int:
    return len(list(verdict.lost(found)))


def run_twice(found: Facts) -> int:
    return len(list(verdict.run_twice(found)))


def test_a_job_that_ran_to_its_end_once_is_neither_lost_nor_doubled() -> None:
    found = facts(run(1, 2, "ok"))
    assert (lost(found), run_twice(found)) == (0, 0)


@pytest.mark.parametrize("state", [None, *(one for one in JobState if one is not JobState.SUCCEEDED)])
def test_a_job_that_was_enqueued_and_has_not_succeeded_is_lost(state: JobState | None) -> None:
    assert lost(facts(run(1, 2, "ok"), state=state)) == 1


@pytest.mark.parametrize("runs", [[], [run(1)], [run(1, 2, "failed")], [run(1, 2, "stopped")]])
def test_a_job_that_succeeded_without_having_been_run_to_its_end_is_lost(runs: list[Run]) -> None:
    assert lost(facts(*runs)) == 1


def test_a_job_that_is_made_to_fail_must_have_failed_and_as_often_as_it_is_tried() -> None:
    failures = [run(1, 2, "failed"), run(3, 4, "failed")]
    assert lost(facts(*failures, state=JobState.FAILED, task="doomed")) == 0
    assert lost(facts(*failures[:1], state=JobState.FAILED, task="doomed")) == 1
    assert lost(facts(*failures, state=JobState.SUCCEEDED, task="doomed")) == 1


def test_a_second_run_while_the_first_goes_on_is_a_doubling_whoever_is_said_to_be_dead() -> None:
    assert run_twice(facts(run(1, 5, "ok"), run(3, 4, "ok", "w2", "c2"), w1=0.0, c1=0.0)) == 1


@pytest.mark.parametrize("first", [run(1), run(1, 2, "ok")], ids=["unfinished", "finished"])
def test_a_second_run_is_a_doubling_only_if_worker_and_consumer_of_the_first_lived_on(first: Run) -> None:
    second = run(3, 4, "ok", "w2", "c2")
    assert run_twice(facts(first, second)) == 1
    assert run_twice(facts(first, second, w1=2.5)) == 0
    assert run_twice(facts(first, second, c1=2.5)) == 0


@pytest.mark.parametrize("how", ["failed", "stopped"])
def test_a_second_run_after_a_failure_or_a_stop_is_no_doubling(how: str) -> None:
    assert run_twice(facts(run(1, 2, how), run(3, 4, "ok"))) == 0


def test_recovery_is_counted_from_the_kill_to_the_next_run_of_what_ran() -> None:
    found = facts(run(1), run(3.5, 4, "ok", "w2", "c2"))
    found.kills = [Kill(3.0, "worker", "w1"), Kill(3.25, "consumer", "c1"), Kill(3.0, "worker", "idle")]
    assert verdict.recoveries(found, "worker") == [0.5]
    assert verdict.recoveries(found, "consumer") == [0.25]
    assert verdict.spread([0.5, 0.1, 0.2]) == {"number": 3, "p50": 0.2, "max": 0.5}
    assert verdict.spread([]) == {"number": 0, "p50": None, "max": None}


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "shop").mkdir()
    with shop_in(tmp_path / "shop") as shop:
        yield shop


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Where the torture takes place: in memory where the system can, as a disk's commits would be most of the test."""
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def torture(place: Shop, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return place.run("-m", "liteq", "torture", *map(str, arguments), **variables)


def report_of(answer: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(answer.stdout)


def test_nothing_is_lost_or_doubled_and_nothing_is_left_behind(place: Shop, disk: Path) -> None:
    answer = torture(place, disk, "--seconds", 5, "--seed", 7, "--json", LITEQ_IMMEDIATE="1", LITEQ_BURST="1")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    told = report_of(answer)
    assert (told["ok"], told["lost"], told["run_twice"], told["locked"]) == (True, 0, 0, 0)
    assert (told["integrity"], told["problems"], told["kept"]) == ("ok", [], None)
    assert told["executed"] >= told["enqueued"] > 0
    assert sum(told["kills"].values()) > 0
    assert list(disk.iterdir()) == []


def test_it_takes_a_file_to_be_and_shows_a_table(place: Shop, disk: Path) -> None:
    (disk / "queue.db").touch()
    options = ["--consumers", 1, "--workers", 3, "--worker-type", "thread"]
    answer = torture(place, disk / "queue.db", "--seconds", 1, *options)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    rows = {line[4:].split("  ")[0]: line.split()[0] for line in answer.stdout.splitlines()}
    assert [rows[name] for name in ("lost", "run twice", "locked", "integrity")] == ["ok"] * 4
    assert "thread workers" in answer.stdout
    assert "\r" not in answer.stderr
    assert [(path.name, path.stat().st_size) for path in disk.iterdir()] == [("queue.db", 0)]


def test_it_keeps_everything_when_asked_to(place: Shop, disk: Path) -> None:
    answer = torture(place, disk, "--seconds", 1, "--keep", "--json")
    assert answer.returncode == 0
    [folder] = disk.iterdir()
    assert report_of(answer)["kept"] == str(folder)
    assert {"queue.db", "diary.jsonl", "consumers.log"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["queue.db", "queue.db-wal", "queue.db-liteq", "queue.db-torture"])
def test_what_is_there_already_is_not_touched(place: Shop, disk: Path, name: str) -> None:
    (disk / name).write_text("somebody's")
    answer = torture(place, disk / "queue.db")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert name in answer.stderr
    assert [(path.name, path.read_text()) for path in disk.iterdir()] == [(name, "somebody's")]


def test_a_place_that_does_not_exist_is_refused(place: Shop, disk: Path) -> None:
    answer = torture(place, disk / "nowhere" / "queue.db")
    assert answer.returncode == 1
    assert "nowhere" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_an_unknown_kind_of_worker_is_refused_before_anything_is_made(place: Shop, disk: Path) -> None:
    answer = torture(place, disk, "-k", "thread,oxen")
    assert answer.returncode == 2
    assert "oxen" in answer.stderr
    assert list(disk.iterdir()) == []


def test_ctrl_c_ends_it_early_with_a_report(place: Shop, disk: Path, eventually: Eventually) -> None:
    program = place.start("-m", "liteq", "torture", str(disk), "--seconds", "600", "--json")
    eventually(lambda: sum(1 for path in disk.glob("*/lives/*")) >= 3, message="somebody is at work")
    family = psutil.Process(program.process.pid).children(recursive=True)
    program.signal(signal.SIGINT)
    assert program.ends() == 0, program.log
    assert json.loads(program.log)["lost"] == 0
    assert list(disk.iterdir()) == []
    eventually(lambda: all(map(is_gone, family)))  # what multiprocessing keeps for a program ends after it


def test_nobody_outlives_a_torturer_that_is_killed(place: Shop, disk: Path, eventually: Eventually) -> None:
    program = place.start("-m", "liteq", "torture", str(disk), "--seconds", "600")
    eventually(lambda: sum(1 for path in disk.glob("*/lives/*")) >= 3, message="somebody is at work")
    family = psutil.Process(program.process.pid).children(recursive=True)
    program.process.kill()
    program.ends()
    for one in family:  # who is stopped at this moment hears of it when he goes on
        if one.is_running():
            os.kill(one.pid, signal.SIGCONT)
    eventually(lambda: all(map(is_gone, family)))


# ── when something is wrong ──────────────────────────────────────────────────────────────────────────────


def sabotaged(disk: Path, source: str) -> dict[str, str]:
    """Variables with which every process of the torture runs ``source`` first."""
    folder = disk.parent / "sabotage"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(source)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[2])])}


def test_a_consumer_that_robs_living_ones_is_found_out(place: Shop, disk: Path) -> None:
    rob = (
        "from liteq.engine import Engine\n"
        "def recover(self):\n"
        "    return sum(self._recover_owner(owner.number) for owner in self.storage.owners())\n"
        "Engine.recover = recover\n"
    )
    sabotage = sabotaged(disk, rob)
    for seconds in (3, 10, 30):  # on a busy machine nobody may come to rob anybody for a while
        answer = torture(place, disk, "--seconds", seconds, "--seed", 3, "--json", **sabotage)
        told = report_of(answer)
        if not told["ok"]:
            break
    assert (answer.returncode, told["ok"]) == (1, False)
    assert told["run_twice"] > 0
    assert "attempt/claim" in " ".join(told["problems"])
    assert Path(told["kept"]).is_dir(), "what is wrong is kept, to be looked at"


def test_a_job_that_is_gone_is_found_out(place: Shop, disk: Path) -> None:
    purge = (
        "from liteq.cli.torture import crew\n"
        "dismiss = crew.Crew.dismiss\n"
        "def purge(self):\n"
        "    from liteq.cli.torture.victims import app\n"
        "    dismiss(self)\n"
        "    app.purge('failed')\n"
        "crew.Crew.dismiss = purge\n"
    )
    sabotage = sabotaged(disk, purge)
    for seconds in (2, 10, 30):
        answer = torture(place, disk, "--seconds", seconds, "--seed", 3, "--json", **sabotage)
        told = report_of(answer)
        if not told["ok"]:
            break
    assert (answer.returncode, told["ok"]) == (1, False)
    assert told["lost"] > 0
    assert "was enqueued and is not there" in told["problems"][0]


# ── the long mode ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not os.environ.get("LITEQ_LONG_TESTS"), reason="takes minutes: LITEQ_LONG_TESTS=1 runs it")
@pytest.mark.parametrize("kinds", ["process", "thread", "asyncio", "greenlet", "process,thread"])
def test_a_thousand_kills_of_eight_processes_on_one_file(place: Shop, kinds: str) -> None:
    if kinds == "greenlet":
        pytest.importorskip("gevent")
    often = (
        "import sys\n"
        "from liteq.cli.torture import torments\n"
        "from liteq.cli.main import main\n"
        "torments.EVERY = 0.1\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    # Not below pytest's own directory, of which other runs of it remove all but the last ones.
    command = [sys.executable, "-c", often, "torture", tempfile.gettempdir(), "--json", "--seconds", "100"]
    kills = 0
    while kills < 1000:
        answer = subprocess.run(
            [*command, "--consumers", "6", "-k", kinds],
            env=place.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        told = json.loads(answer.stdout)
        assert (told["lost"], told["run_twice"], told["locked"], told["problems"]) == (0, 0, 0, [])
        kills += sum(told["kills"].values())
