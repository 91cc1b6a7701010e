"""Restarts of `liteq_consumer`: by HUP, and with ``--reload`` when a source file changes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import psutil
import pytest
from commandline import PATIENCE, Eventually, Program, Shop, has_entered, release, shop_in

from liteq import LiteQError
from liteq.cli.reloading import _settled_change
from liteq.cli.sources import Sources

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is neither HUP nor exec")

SOURCE = """
import pathlib, time
from liteq import LiteQ

app = LiteQ("shop.db", durability="normal")
VERSION = {version}

@app.task
def version():
    return VERSION

@app.task
def hold(gate):
    pathlib.Path(f"{{gate}}.entered").touch()
    with open(gate):
        return VERSION

@app.task
def wait(gate):
    pathlib.Path(f"{{gate}}.entered").touch()
    while True:
        time.sleep(0.002)  # task body

@app.task
def lazy():
    from parts import words
    return words.WORD
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with shop_in(tmp_path) as shop:
        write(shop, 1)
        yield shop


def write(shop: Shop, version: int) -> None:
    shop.module("shop", SOURCE.format(version=version))


def runs(shop: Shop, version: int) -> Callable[[], bool]:
    """A condition: jobs are run by this version."""

    def condition() -> bool:
        try:
            return bool(shop.task("version")().get(2.0) == version)
        except LiteQError:  # it is between two versions
            return False

    return condition


def starts(program: Program) -> int:
    return program.log.count("consumer started")


# ── HUP ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["thread", pytest.param("process", marks=pytest.mark.slow)])
def test_a_hangup_runs_fresh_code_in_the_same_process(shop: Shop, eventually: Eventually, kind: str) -> None:
    consumer = shop.consumer("-k", kind, "-w", "2", "--pidfile", "consumer.pid", "-l", "consumer.log")
    eventually(runs(shop, 1))
    descriptors = psutil.Process(consumer.process.pid).num_fds()
    for version in (2, 3):
        write(shop, version)
        consumer.signal(signal.SIGHUP)
        eventually(runs(shop, version))
    assert (shop.directory / "consumer.pid").read_text() == f"{consumer.process.pid}\n"
    assert (shop.directory / "consumer.log").read_text().count("consumer started") == 3
    family = psutil.Process(consumer.process.pid)
    assert [one for one in family.children(recursive=True) if one.status() == psutil.STATUS_ZOMBIE] == []
    assert family.num_fds() <= descriptors + 3
    assert [one.alive for one in shop.app.consumers()] == [True]
    consumer.signal(signal.SIGTERM)
    assert consumer.ends() == 0
    assert not (shop.directory / "consumer.pid").exists()


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_hangup_lets_the_running_job_finish_and_loses_nothing(shop: Shop, eventually: Eventually, kind: str) -> None:
    consumer = shop.consumer("-k", kind)
    gate = shop.gate()
    running = shop.task("hold")(str(gate))
    eventually(has_entered(gate))
    waiting = [shop.task("version")() for _ in range(3)]
    write(shop, 2)
    consumer.signal(signal.SIGHUP)
    eventually(consumer.says("stopping"))
    consumer.signal(signal.SIGHUP)  # one is enough
    release(gate)
    assert running.get(PATIENCE) == 1
    assert [result.get(PATIENCE) for result in waiting] == [2, 2, 2]
    assert {result.job().attempt for result in [running, *waiting]} == {1}


def test_what_does_not_finish_in_time_goes_back_and_runs_in_the_new_code(shop: Shop, eventually: Eventually) -> None:
    consumer = shop.consumer("-k", "process", "--shutdown-timeout", "0.2")
    gate = shop.gate()
    job = shop.task("hold")(str(gate))
    eventually(has_entered(gate))
    write(shop, 2)
    Path(f"{gate}.entered").unlink()
    consumer.signal(signal.SIGHUP)
    eventually(has_entered(gate))
    release(gate)
    assert job.get(PATIENCE) == 2
    assert job.job().attempt == 1


def test_code_that_cannot_be_imported_is_told_and_the_old_one_goes_on(shop: Shop, eventually: Eventually) -> None:
    consumer = shop.consumer()
    eventually(runs(shop, 1))
    broken = {
        "import not_installed\n": "No module named",
        "def (:\n": "SyntaxError",
        "app = 5\n": "is a int, not a LiteQ",
    }
    for number, (source, complaint) in enumerate(broken.items(), 1):
        shop.module("shop", source)
        consumer.signal(signal.SIGHUP)
        eventually(lambda: consumer.log.count("the old code goes on") == number)  # noqa: B023 - asked at once
        eventually(consumer.says(complaint))
    assert runs(shop, 1)()
    assert starts(consumer) == 1
    write(shop, 2)
    consumer.signal(signal.SIGHUP)
    eventually(runs(shop, 2))


def test_a_stop_during_a_restart_is_a_stop(shop: Shop, eventually: Eventually) -> None:
    consumer = shop.consumer("--pidfile", "consumer.pid")
    gate = shop.gate()
    running = shop.task("hold")(str(gate))
    eventually(has_entered(gate))
    consumer.signal(signal.SIGHUP)
    eventually(consumer.says("stopping"))
    consumer.signal(signal.SIGTERM)
    release(gate)
    assert consumer.ends() == 0
    assert (running.get(0), starts(consumer)) == (1, 1)
    assert not (shop.directory / "consumer.pid").exists()


def test_hangups_and_stops_in_any_order_never_kill_it_rudely(shop: Shop, eventually: Eventually) -> None:
    consumer = shop.consumer()
    eventually(runs(shop, 1))
    for _ in range(20):
        consumer.signal(signal.SIGHUP)
        consumer.signal(signal.SIGUSR1)
    eventually(lambda: starts(consumer) >= 2)
    consumer.signal(signal.SIGHUP)
    consumer.signal(signal.SIGTERM)
    assert consumer.ends() == 0
    assert shop.app.consumers() == []


def test_the_new_code_sees_the_directory_and_the_environment_of_the_start(shop: Shop, eventually: Eventually) -> None:
    shop.module("shop", SOURCE.format(version=1) + "\nimport os\nos.environ['SPOILT'] = '1'\nos.chdir('/')\n")
    consumer = shop.consumer()
    eventually(runs(shop, 1))
    shop.module(
        "shop", SOURCE.format(version="['SPOILT' in os.environ, os.getcwd()]").replace("import", "import os,", 1)
    )
    consumer.signal(signal.SIGHUP)
    eventually(lambda: starts(consumer) == 2)
    assert shop.task("version")().get(PATIENCE) == [False, str(shop.directory)]


def test_where_hangups_are_ignored_they_stay_so(shop: Shop, eventually: Eventually) -> None:
    code = (
        "import os, signal, sys\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nos.execv(sys.executable, sys.argv[1:])"
    )
    consumer = shop.start("-c", code, sys.executable, "-m", "liteq.cli.consumer", "shop.app")
    eventually(runs(shop, 1))
    write(shop, 2)
    consumer.signal(signal.SIGHUP)
    consumer.signal(signal.SIGUSR1)
    eventually(consumer.says("no job is running"))
    assert runs(shop, 1)()


def test_a_terminal_that_closes_stops_it(shop: Shop, eventually: Eventually) -> None:
    ours, theirs = os.openpty()
    log = shop.directory / "consumer.log"
    process = subprocess.Popen(
        [sys.executable, "-m", "liteq.cli.consumer", "shop.app", "-l", str(log)],
        cwd=shop.directory,
        env=shop.environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        eventually(runs(shop, 1))
        os.close(ours)
        process.send_signal(signal.SIGHUP)  # which the system sends to those whose controlling terminal it was
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
    assert "the terminal is gone" in log.read_text()


# ── --reload ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["thread", pytest.param("process", marks=pytest.mark.slow)])
def test_a_change_is_run_soon_and_a_mistake_survived(shop: Shop, eventually: Eventually, kind: str) -> None:
    consumer = shop.consumer("--reload", "-k", kind, "-w", "2", "--pidfile", "consumer.pid")
    eventually(runs(shop, 1))
    write(shop, 2)
    eventually(runs(shop, 2))
    shop.module("shop", "def (:\n")
    eventually(consumer.says("waiting for a change"))
    assert "SyntaxError" in consumer.log
    write(shop, 3)
    eventually(runs(shop, 3))
    assert (shop.directory / "consumer.pid").read_text() == f"{consumer.process.pid}\n"
    family = psutil.Process(consumer.process.pid).children(recursive=True)
    consumer.signal(signal.SIGINT)
    assert consumer.ends() == 0
    assert psutil.wait_procs(family, timeout=PATIENCE)[1] == []
    assert not (shop.directory / "consumer.pid").exists()


def test_a_job_that_runs_at_a_change_is_interrupted_and_goes_back(shop: Shop, eventually: Eventually) -> None:
    shop.consumer("--reload", "-w", "2")
    gate = shop.directory / "gate"
    job = shop.task("wait")(str(gate))
    eventually(has_entered(gate))
    Path(f"{gate}.entered").unlink()
    write(shop, 2)
    eventually(has_entered(gate))
    assert runs(shop, 2)()
    assert (job.state, job.job().attempt) == ("running", 1)


def test_a_package_that_only_a_job_imports_counts(shop: Shop, eventually: Eventually) -> None:
    package = shop.directory / "parts"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "words.py").write_text("WORD = 'old'\n")
    consumer = shop.consumer("--reload", "-k", "process")
    assert shop.task("lazy")().get(PATIENCE) == "old"
    (package / "words.py").write_text("WORD = 'brand-new'\n")
    eventually(lambda: starts(consumer) == 2)
    assert shop.task("lazy")().get(PATIENCE) == "brand-new"


def test_a_mistake_at_the_very_start_is_waited_out_and_a_wrong_path_is_not(shop: Shop, eventually: Eventually) -> None:
    shop.module("shop", "1 / 0\n")
    consumer = shop.consumer("--reload")
    eventually(consumer.says("ZeroDivisionError"))
    eventually(consumer.says("waiting for a change"))
    write(shop, 2)
    eventually(runs(shop, 2))
    done = shop.run("-m", "liteq.cli.consumer", "nowhere.app", "--reload")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_it_can_be_stopped_while_it_waits_for_a_change(shop: Shop, eventually: Eventually) -> None:
    shop.module("shop", "1 / 0\n")
    consumer = shop.consumer("--reload", "--pidfile", "consumer.pid")
    eventually(consumer.says("waiting for a change"))
    consumer.signal(signal.SIGINT)
    assert consumer.ends() == 0
    assert not (shop.directory / "consumer.pid").exists()


def test_what_it_writes_itself_does_not_restart_it(shop: Shop, eventually: Eventually) -> None:
    generated = "\npathlib.Path(__file__).with_name('generated.py').write_text('X = 1\\n')\nimport generated\n"
    shop.module("shop", SOURCE.format(version=1) + generated)
    consumer = shop.consumer("--reload")
    eventually(lambda: starts(consumer) == 2, PATIENCE)  # the first start brought the file into the world
    eventually(runs(shop, 1), PATIENCE)
    shop.module("shop", SOURCE.format(version=2) + generated)
    eventually(runs(shop, 2), PATIENCE)
    # Had one look taken the file for changed, it would be named here: it comes before shop.py.
    assert re.findall(r"restarting: \S+/(\S+) has changed", consumer.log) == ["generated.py", "shop.py"]
    consumer.signal(signal.SIGTERM)
    assert consumer.ends() == 0


# ── which files ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sources]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("app = 1\n")

    def make(*known: str) -> Sources:
        found = Sources("own.app", list(known))
        found.changed()  # takes in what is loaded here
        found.imported()
        found.changed()
        return found

    return make


def test_nothing_has_changed_at_first(sources: Callable[..., Sources]) -> None:
    assert sources().changed() is None


@pytest.mark.parametrize("when", ["before the look", "during the look"])
def test_what_is_written_again_while_the_app_is_imported_is_no_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, when: str
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own.py"
    own.write_text("app = 1\n")
    watched = Sources("own.app", [])
    look = watched.looks

    def looks() -> dict[str, tuple[int, int]]:
        found = {} if when == "before the look" else look()
        os.utime(own, ns=(1, 1))
        watched.imported()
        return found or look()

    with monkeypatch.context() as patch:
        patch.setattr(watched, "looks", looks)
        assert watched.changed() is None
    assert watched.changed() is None
    os.utime(own, ns=(2, 2))
    assert watched.changed() == str(own)


@pytest.mark.parametrize("text", ["app = 1\n", "app = 2\n"])
def test_a_file_that_was_just_being_written_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own.py"
    own.write_text("app = 1\n")
    watched, pause, rest = Sources("own.app", []), Event(), [text]
    own.write_text("")
    monkeypatch.setattr(pause, "wait", lambda timeout: bool(rest and own.write_text(rest.pop())) and False)
    assert _settled_change(watched, pause) == (None if text == "app = 1\n" else str(own))
    assert rest == []


@pytest.mark.parametrize("what", ["changed", "touched", "added", "removed", "replaced"])
def test_every_way_to_change_a_file_is_seen(sources: Callable[..., Sources], tmp_path: Path, what: str) -> None:
    own, watched = tmp_path / "own.py", sources()
    match what:
        case "changed":
            own.write_text("app = 22\n")
        case "touched":
            os.utime(own, (1, 1))
        case "added":
            (tmp_path / "another.py").touch()
        case "removed":
            own.unlink()
        case "replaced":
            (tmp_path / "new").write_text("app = 333\n")
            (tmp_path / "new").replace(own)
    seen = watched.changed()
    assert seen is not None
    assert Path(seen).parent == tmp_path


@pytest.mark.parametrize(
    "name", ["own.pyc", "queue.db", "queue.db-wal", "__pycache__/own.py", ".hidden/x.py", "d/x.py"]
)
def test_other_files_do_not_matter(sources: Callable[..., Sources], tmp_path: Path, name: str) -> None:
    watched = sources()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert watched.changed() is None


def test_packages_are_looked_through_and_earlier_directories_too(
    sources: Callable[..., Sources], tmp_path: Path
) -> None:
    elsewhere, package = tmp_path / "elsewhere", tmp_path / "package" / "deep"
    for directory in (elsewhere, package):
        directory.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    watched = sources(str(elsewhere))
    (package / "late.py").touch()
    assert str(watched.changed()).endswith("late.py")
    watched = sources(str(elsewhere))
    (elsewhere / "known.py").touch()
    assert str(watched.changed()).endswith("known.py")


def test_installed_packages_are_left_alone(sources: Callable[..., Sources]) -> None:
    assert [one for one in sources().directories if "site-packages" in one] == []
    assert os.path.dirname(os.__file__) not in sources().directories  # noqa: PTH120
