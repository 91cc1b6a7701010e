"""The program `liteq_consumer`: what it runs, how it is stopped, what it logs, and what bad input gets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commandline import PATIENCE, ROOT, Eventually, Shop, has_entered, release, shop_in

from liteq import JobState

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the tests' tasks wait at named pipes")


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with shop_in(tmp_path) as shop:
        yield shop


def states(shop: Shop) -> list[str]:
    return [str(job.state) for job in shop.app.jobs()]


# ── the main job ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_jobs_enqueued_before_and_after_the_start_run_and_a_third_process_reads_them(
    shop: Shop, tmp_path_factory: pytest.TempPathFactory, eventually: Eventually, kind: str
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(shop.directory)])}
    enqueue = "import shop, sys; print(shop.add(2, int(sys.argv[1])).id)"
    before = shop.run("-c", enqueue, "3", cwd=elsewhere, **path).stdout.strip()
    consumer = shop.consumer("-w", "2", "-k", kind)
    eventually(consumer.says("consumer started"))
    after = shop.run("-c", enqueue, "4", cwd=elsewhere, **path).stdout.strip()
    read = "import shop, sys; print(*(shop.app.result(one).get(timeout=20) for one in sys.argv[1:]))"
    answer = shop.run("-c", read, before, after, cwd=elsewhere, **path)
    assert answer.stdout.split() == ["5", "6"], answer.stderr
    consumer.signal(signal.SIGTERM)
    assert consumer.ends() == 0
    assert f"storage={shop.file}" in consumer.log
    assert list(elsewhere.iterdir()) == []


def test_tasks_may_be_added_by_another_module_than_the_one_that_makes_the_app(shop: Shop) -> None:
    shop.module("core", "from liteq import LiteQ\napp = LiteQ('shop.db')\n")
    shop.module("orders", "from core import app\n@app.task(name='shop.add')\ndef add(a, b): return a + b\n")
    result = shop.task("add")(2, 3)
    done = shop.run("-m", "liteq.cli.consumer", "orders.app", "--burst", "-k", "process")
    assert done.returncode == 0, done.stderr
    assert result.get(timeout=0) == 5


def test_another_program_may_call_main_and_goes_on_after_it(shop: Shop) -> None:
    result = shop.task("add")(2, 3)
    code = "from liteq.cli.consumer import main\nprint('code', main(['shop.app', '--burst', '--quiet']))"
    assert shop.run("-c", code).stdout == "code 0\n"
    assert result.get(timeout=0) == 5


def test_worker_processes_do_not_import_the_program_that_runs_the_consumer(shop: Shop) -> None:
    shop.module(
        "own",
        "import sys\nprint('imported as', __name__)\nfrom liteq.cli.consumer import main\n"
        "if __name__ == '__main__': sys.exit(main())\n",
    )
    result = shop.task("pid")()
    done = shop.run("own.py", "shop.app", "--burst", "-k", "process", "--start-method", "spawn")
    assert (done.returncode, done.stdout) == (0, "imported as __main__\n"), done.stderr
    assert result.is_ready()


# ── what is run, and how ─────────────────────────────────────────────────────────────────────────────────


def test_as_many_jobs_run_at_a_time_as_there_are_workers(shop: Shop, eventually: Eventually) -> None:
    gates = [shop.gate(f"gate{number}") for number in range(4)]
    results = [shop.task("hold")(str(gate)) for gate in gates]
    consumer = shop.consumer("-w", "3")
    for gate in gates[:3]:
        eventually(has_entered(gate))
    assert not has_entered(gates[3])()
    for gate in gates:
        release(gate)
    assert [result.get(timeout=PATIENCE) for result in results] == ["released"] * 4
    consumer.signal(signal.SIGINT)
    assert consumer.ends() == 0


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_jobs_run_in_the_kind_of_worker_asked_for(shop: Shop, kind: str) -> None:
    results = [shop.task("pid")() for _ in range(3)]
    done = shop.consume("-k", kind, "--json-logs")
    consumer = json.loads(done.stderr.splitlines()[0])["pid"]
    assert {result.get(timeout=0) == consumer for result in results} == {kind == "thread"}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_every_start_method_works(shop: Shop, method: str) -> None:
    result = shop.task("add")(2, 3)
    assert shop.consume("-k", "process", "--start-method", method).returncode == 0
    assert result.get(timeout=0) == 5


def test_a_worker_is_replaced_after_so_many_jobs(shop: Shop) -> None:
    # More than a worker is given at a time: what it was given before it was told to leave, it still runs.
    results = shop.task("pid").map([()] * 70)
    assert shop.consume("-k", "process", "-M", "2").returncode == 0
    assert len(set(results.get(timeout=0))) >= 2


def test_a_worker_is_replaced_for_its_memory(shop: Shop) -> None:
    pids = [shop.task("pid")() for _ in range(2)]
    done = shop.consume("-k", "process", "--max-memory", "1")  # less than any worker has
    assert done.returncode == 0
    assert len({one.get(timeout=0) for one in pids}) >= 1
    assert "replaced for its memory" in done.stderr


def test_threads_cannot_be_replaced_for_their_memory(shop: Shop) -> None:
    for done in (shop.consume("--max-memory", "100"), shop.consume(LITEQ_MAX_MEMORY="100")):
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "max_memory is for process workers" in done.stderr


def test_queues_are_emptied_in_the_order_of_preference_and_others_left_alone(shop: Shop) -> None:
    notes = shop.directory / "notes"
    for queue in ("third", "second", "first"):
        shop.task("note").using(queue=queue)(str(notes), f"{queue} ")
    assert shop.consume("-q", "first,second").returncode == 0
    assert notes.read_text() == "first second "
    assert shop.app.queues() == {"third": 1}


def test_queues_are_emptied_by_weight(shop: Shop) -> None:
    notes = shop.directory / "notes"
    for queue in ("low", "high"):
        for _ in range(4):
            shop.task("note").using(queue=queue)(str(notes), f"{queue} ")
    assert shop.consume(LITEQ_QUEUES="high:3,low:1").returncode == 0
    assert notes.read_text() == "high low high high high low low low "


@pytest.mark.parametrize(
    ("queues", "words"),
    [
        ("high:x", "NAME:WEIGHT or NAME=WORKERS with whole numbers, not 'high:x'"),
        ("high=1,default", "jobs of default would never run"),
        ("high:1,high:2", "names one queue twice"),
    ],
)
def test_shares_that_make_no_sense_end_it_with_one_line(shop: Shop, queues: str, words: str) -> None:
    done = shop.consume("-q", queues)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert words in done.stderr


@pytest.mark.parametrize("option", [[], ["-n"]])
def test_expired_jobs_of_other_queues_are_ended_also_where_no_schedule_is_fired(shop: Shop, option: list[str]) -> None:
    job = shop.task("add").using(queue="other", expires=0)(1, 2)
    shop.task("add")(1, 2)
    assert shop.consume("-q", "default", *option).returncode == 0
    assert job.state == "expired"


def test_a_burst_ends_when_nothing_is_due(shop: Shop) -> None:
    done, failed, later = shop.task("add")(1, 2), shop.task("fail")("no"), shop.task("add").using(delay=3600)(1, 2)
    assert shop.consume().returncode == 0
    assert (done.state, failed.state, later.state) == ("succeeded", "failed", "scheduled")


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["thread", "process"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_job_finish_and_gives_back_the_rest(
    shop: Shop, eventually: Eventually, kind: str, number: int
) -> None:
    gate = shop.gate()
    running, waiting = shop.task("hold")(str(gate)), [shop.task("add")(1, 2) for _ in range(3)]
    consumer = shop.consumer("-k", kind)
    eventually(has_entered(gate))
    consumer.signal(number)
    eventually(consumer.says("stopping"))
    release(gate)
    assert consumer.ends() == 0
    assert running.get(timeout=0) == "released"
    assert [(job.state, job.attempt) for job in (one.job() for one in waiting)] == [("ready", 0)] * 3
    assert shop.app.consumers() == []


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_job_that_does_not_finish_in_time_goes_back_and_costs_no_attempt(
    shop: Shop, eventually: Eventually, kind: str
) -> None:
    gate = shop.gate()
    job = shop.task("hold")(str(gate))
    consumer = shop.consumer("-k", kind, "--shutdown-timeout", "0.2")
    eventually(has_entered(gate))
    consumer.signal(signal.SIGTERM)
    assert consumer.ends() == 0
    assert (job.state, job.job().attempt, job.job().attempts) == ("ready", 0, ())


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_second_signal_stops_at_once(shop: Shop, eventually: Eventually, kind: str) -> None:
    gate = shop.gate()
    job = shop.task("hold")(str(gate))
    consumer = shop.consumer("-k", kind, "--shutdown-timeout", "3600")
    eventually(has_entered(gate))
    consumer.signal(signal.SIGTERM)
    eventually(consumer.says("stopping"))
    consumer.signal(signal.SIGTERM)
    assert consumer.ends() == 0
    assert (job.state, job.job().attempt) == ("ready", 0)


def test_many_signals_at_once_are_one_stop(shop: Shop, eventually: Eventually) -> None:
    consumer = shop.consumer()
    eventually(consumer.says("consumer started"))
    for _ in range(50):
        consumer.signal(signal.SIGTERM)
        consumer.signal(signal.SIGINT)
    assert consumer.ends() == 0


def test_a_signal_while_the_app_is_imported_ends_the_program(shop: Shop, eventually: Eventually) -> None:
    gate = shop.gate()
    shop.module("shop", f"open('entered', 'w').close()\ntry: open({str(gate)!r})\nexcept Exception: pass\n")
    consumer = shop.consumer()
    eventually((shop.directory / "entered").exists)
    consumer.signal(signal.SIGTERM)
    assert (consumer.ends(), consumer.log) == (0, "")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_killing_the_consumer_leaves_no_process_behind(shop: Shop, eventually: Eventually, method: str) -> None:
    gate = shop.gate()
    job = shop.task("hold")(str(gate))
    consumer = shop.consumer("-w", "2", "-k", "process", "--start-method", method)
    eventually(has_entered(gate))
    family = psutil.Process(consumer.process.pid).children(recursive=True)
    assert len(family) >= 2
    consumer.signal(signal.SIGKILL)
    consumer.ends()
    _, alive = psutil.wait_procs(family, timeout=PATIENCE)
    assert alive == []
    assert job.state == "running"
    assert [one.alive for one in shop.app.consumers()] == [False]


def test_atexit_handlers_run_after_a_normal_stop(shop: Shop, tmp_path: Path) -> None:
    assert shop.consume(SHOP_ATEXIT=str(tmp_path / "left")).returncode == 0
    assert (tmp_path / "left").exists()


@pytest.mark.slow
def test_a_worker_thread_that_nothing_stops_does_not_keep_the_program(
    shop: Shop, eventually: Eventually, tmp_path: Path
) -> None:
    job = shop.task("hang")(str(tmp_path / "entered"))
    consumer = shop.consumer("--shutdown-timeout", "0.1", SHOP_ATEXIT=str(tmp_path / "left"))
    eventually((tmp_path / "entered").exists)
    consumer.signal(signal.SIGTERM)
    assert consumer.ends() == 0
    assert (job.state, job.job().attempt) == ("ready", 0)
    assert (tmp_path / "left").exists()


@pytest.mark.slow
def test_a_thread_of_the_app_that_never_ends_does_not_keep_the_program(shop: Shop) -> None:
    with (shop.directory / "shop.py").open("a") as file:
        file.write("\nthreading.Thread(target=threading.Event().wait, name='endless').start()\n")
    done = shop.consume()
    assert done.returncode == 0
    assert "leaving without them: ['endless']" in done.stderr


# ── logs ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("option", "heard"),
    [([], ["INFO", "WARNING"]), (["-v"], ["DEBUG", "INFO", "WARNING"]), (["--quiet"], ["WARNING"])],
)
@pytest.mark.parametrize("kind", ["thread", "process"])
def test_as_much_is_logged_as_asked_for(shop: Shop, option: list[str], heard: list[str], kind: str) -> None:
    shop.task("talk")()
    log = shop.consume("-k", kind, *option).stderr
    assert [level for level in ("DEBUG", "INFO", "WARNING") if f"said at {level}" in log] == heard
    assert ("consumer started" in log) == ("INFO" in heard)


def test_simple_lines_are_a_time_and_a_message(shop: Shop) -> None:
    shop.task("add")(1, 2)
    lines = shop.consume("-S").stderr.splitlines()
    words = [line.split()[2] for line in lines]
    assert words == ["consumer", "started", "succeeded", "consumer"]


def test_json_lines_hold_the_same_keys_for_programs(shop: Shop) -> None:
    job = shop.task("add")(1, 2)
    lines = [json.loads(line) for line in shop.consume("--json-logs").stderr.splitlines()]
    assert [(line["level"], line["job"], line["task"]) for line in lines if line.get("event") == "succeeded"] == [
        ("INFO", job.id, "shop.add")
    ]


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_log_file_takes_everything_and_is_appended_to(shop: Shop, kind: str) -> None:
    for _ in range(2):
        shop.task("talk")()
        done = shop.consume("-l", "consumer.log", "-k", kind)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    log = (shop.directory / "consumer.log").read_text()
    assert (log.count("consumer started"), log.count("said at WARNING")) == (2, 2)


# ── the pidfile ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_pidfile_holds_the_process_id_while_it_runs(shop: Shop, eventually: Eventually) -> None:
    file = shop.directory / "consumer.pid"
    consumer = shop.consumer("--pidfile", "consumer.pid")
    eventually(consumer.says("consumer started"))
    assert file.read_text() == f"{consumer.process.pid}\n"
    consumer.signal(signal.SIGTERM)
    assert consumer.ends() == 0
    assert not file.exists()
    assert list(shop.directory.glob(".consumer.pid*")) == []


def test_a_pidfile_of_a_living_process_is_refused_and_left_alone(shop: Shop) -> None:
    file = shop.directory / "consumer.pid"
    file.write_text(f"{os.getpid()}\n")
    done = shop.consume("--pidfile", str(file))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"names process {os.getpid()}, which is running" in done.stderr
    assert file.read_text() == f"{os.getpid()}\n"


def test_a_pidfile_of_a_dead_process_is_taken_over(shop: Shop) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (shop.directory / "consumer.pid").write_text(f"{gone.pid}\n")
    assert shop.consume("--pidfile", "consumer.pid").returncode == 0
    assert not (shop.directory / "consumer.pid").exists()


def test_a_file_that_is_no_pidfile_is_never_overwritten(shop: Shop) -> None:
    done = shop.consume("--pidfile", "shop.py")
    assert done.returncode == 1
    assert "holds something else than a process id" in done.stderr
    assert "app = LiteQ" in (shop.directory / "shop.py").read_text()


def test_a_pidfile_that_is_another_ones_by_now_is_not_removed(shop: Shop, eventually: Eventually) -> None:
    file = shop.directory / "consumer.pid"
    consumer = shop.consumer("--pidfile", str(file))
    eventually(consumer.says("consumer started"))
    file.write_text("1\n")
    consumer.signal(signal.SIGTERM)
    assert consumer.ends() == 0
    assert file.read_text() == "1\n"


def test_a_pidfile_that_cannot_be_written_is_one_line(shop: Shop) -> None:
    done = shop.consume("--pidfile", "nowhere/consumer.pid")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot write the pidfile" in done.stderr


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────

BROKEN = "def build():\n    return 1 / 0\n\n\nbuild()\n"


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("shop", "not the path of an app"),
        ("shop.", "not the path of an app"),
        ("..shop", "'.' is not the name of a module"),
        ("nowhere.app", "there is no module 'nowhere'"),
        ("shop.nothing", "module 'shop' has no 'nothing'"),
        ("shop.os", "not a LiteQ app"),
        ("broken.app", "ZeroDivisionError: division by zero ({directory}/broken.py:2)"),
        ("syntax.app", "SyntaxError: '(' was never closed (syntax.py, line 2) ({directory}/syntax.py:2)"),
        ("needs.app", "ModuleNotFoundError: No module named 'not_installed' ({directory}/needs.py:1)"),
        ("leaves.app", "SystemExit: not today ({directory}/leaves.py:2)"),
        ("twice.app", "ConfigurationError: storage takes the path of a file, not an empty string"),
    ],
)
def test_a_bad_app_path_is_one_line_and_exit_code_2(shop: Shop, path: str, complaint: str) -> None:
    shop.module("broken", BROKEN)
    shop.module("syntax", "\nadd(1\n")
    shop.module("needs", "import not_installed\n")
    shop.module("leaves", "import sys\nsys.exit('not today')\n")
    shop.module("twice", "from liteq import LiteQ\napp = LiteQ('')\n")
    done = shop.run("-m", "liteq.cli.consumer", path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("liteq_consumer: ")
    assert complaint.format(directory=shop.directory) in done.stderr


def test_verbose_shows_the_traceback_of_an_app_that_cannot_be_imported(shop: Shop) -> None:
    shop.module("broken", BROKEN)
    done = shop.run("-m", "liteq.cli.consumer", "broken.app", "-v")
    assert done.returncode == 2
    assert "return 1 / 0" in done.stderr


def test_a_storage_that_cannot_be_used_is_one_line_and_exit_code_1(shop: Shop) -> None:
    shop.module("shop", "from liteq import LiteQ\napp = LiteQ('.')\n")
    done = shop.consume()
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "is a directory" in done.stderr


def test_an_app_in_immediate_mode_has_nothing_to_consume(shop: Shop) -> None:
    done = shop.consume(LITEQ_IMMEDIATE="1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "immediate mode" in done.stderr


def test_a_log_file_that_cannot_be_written_is_one_line(shop: Shop) -> None:
    done = shop.consume("-l", "nowhere/consumer.log")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot write the log file" in done.stderr


def test_a_failing_job_does_not_change_the_exit_code(shop: Shop) -> None:
    job = shop.task("fail")("no")
    assert shop.consume("-k", "process").returncode == 0
    assert job.state is JobState.FAILED


def test_an_error_nobody_foresaw_is_logged_and_exit_code_1(shop: Shop) -> None:
    shop.module("odd", "class Odd:\n    engine = None\n    def close(self): pass\napp = Odd()\n")
    done = shop.run("-m", "liteq.cli.consumer", "odd.app", "-l", "odd.log")
    assert (done.returncode, done.stderr) == (1, "")
    assert "AttributeError" in (shop.directory / "odd.log").read_text()
