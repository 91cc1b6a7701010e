"""``liteq demo``: the main job, end to end. It succeeds, tells when something breaks, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commandline import PATIENCE, Eventually, Program, Shop, shop_in

from liteq import LiteQ, SqliteStorage

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the shop has named pipes, and signals are sent")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "temporary").mkdir()
    (tmp_path / "shop").mkdir()
    with shop_in(tmp_path / "shop") as shop:
        yield shop


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where the demo makes its folder."""
    return tmp_path / "temporary"


def demo(place: Shop, temporary: Path, *options: str, **variables: str) -> Program:
    return place.start("-m", "liteq", "demo", *options, TMPDIR=str(temporary), **variables)


def consumer_of(program: Program) -> psutil.Process | None:
    """The consumer that a demo has started, once it has."""
    return next(iter(psutil.Process(program.process.pid).children()), None)


def test_it_shows_a_table_and_leaves_nothing_behind(place: Shop, temporary: Path) -> None:
    program = demo(place, temporary)
    assert program.ends() == 0, program.log
    lines = program.log.splitlines()
    heading = next(number for number, line in enumerate(lines) if line.startswith("TASK"))
    rows = {cells[0]: cells[1:5] for cells in (line.split() for line in lines[heading + 1 : heading + 6])}
    assert rows["later"] == ["1", "1", "0", "0"]
    assert rows["unreliable"] == ["20", "20", "20", "0"]
    assert rows["impossible"] == ["4", "0", "4", "4"]
    assert rows["digest"][0] == rows["digest"][1] and int(rows["digest"][0]) > 100
    assert rows["compress"][0] == rows["compress"][1]
    assert "every result was checked" in program.log
    assert "\r" not in program.log
    assert list(temporary.iterdir()) == []


def test_it_is_the_same_whatever_is_set_for_other_apps_and_wherever_it_is_started(place: Shop, temporary: Path) -> None:
    place.module("json", "raise AssertionError('a module of the current directory')\n")
    answer = place.run(
        "-c",
        "import sys; sys.path.remove(''); from liteq.cli.main import main; sys.exit(main(sys.argv[1:]))",
        *("demo", "--json", "--workers", "3"),
        TMPDIR=str(temporary),
        LITEQ_IMMEDIATE="1",
        LITEQ_BURST="1",
        LITEQ_QUEUES="nothing",
    )
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert (told["ok"], told["workers"], told["problems"], told["folder"]) == (True, 3, [], None)
    assert sum(task["jobs"] for task in told["tasks"]) == told["jobs"] >= 300
    assert list(temporary.iterdir()) == []


def test_it_keeps_the_folder_when_asked_to(place: Shop, temporary: Path) -> None:
    answer = place.run("-m", "liteq", "demo", "--keep", "--json", TMPDIR=str(temporary))
    (folder,) = temporary.iterdir()
    told = json.loads(answer.stdout)
    assert told["folder"] == str(folder)
    assert "consumer stopped" in (folder / "consumer.log").read_text()
    app = LiteQ(SqliteStorage(folder / "queue.db", create=False))
    assert (app.counts()["failed"], sum(app.counts().values())) == (4, told["jobs"])
    app.close()


def test_verbose_shows_the_log_of_the_consumer(place: Shop, temporary: Path) -> None:
    program = demo(place, temporary, "--verbose")
    assert program.ends() == 0
    assert "consumer started" in program.log
    assert "gave up" in program.log


def test_a_consumer_that_dies_is_told_in_one_clear_line_and_exit_code_1(
    place: Shop, temporary: Path, eventually: Eventually
) -> None:
    program = demo(place, temporary)
    eventually(lambda: consumer_of(program)).kill()
    assert program.ends() == 1
    assert program.log.splitlines()[-1] == "liteq: the consumer ended by itself, with exit code -9"
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_its_consumer_and_its_folder(
    place: Shop, temporary: Path, eventually: Eventually, number: int, code: int
) -> None:
    program = demo(place, temporary)
    consumer = eventually(lambda: consumer_of(program))
    program.signal(number)
    assert program.ends() == code
    consumer.wait(PATIENCE)
    assert list(temporary.iterdir()) == []


def test_killed_it_takes_its_consumer_and_the_workers_with_it(
    place: Shop, temporary: Path, eventually: Eventually
) -> None:
    program = demo(place, temporary)
    eventually(lambda: (one := consumer_of(program)) is not None and one.children(recursive=True))
    family = psutil.Process(program.process.pid).children(recursive=True)
    program.process.kill()
    eventually(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family))


def test_a_wrong_result_is_not_passed_over(place: Shop, temporary: Path) -> None:
    code = (
        "import sys, zlib\n"
        "from liteq.cli import demo\n"
        "from liteq.cli.main import main\n"
        "demo.zlib = type('zlib', (), {'decompress': staticmethod(lambda data: zlib.decompress(data) + b'!')})\n"
        "sys.exit(main(['demo', '--json']))\n"
    )
    answer = place.run("-c", code, TMPDIR=str(temporary))
    told = json.loads(answer.stdout)
    assert (answer.returncode, told["ok"], len(told["problems"])) == (1, False, 79)
    assert answer.stderr.splitlines()[-1].startswith("liteq: 79 things are not as they should be; the first: job ")
