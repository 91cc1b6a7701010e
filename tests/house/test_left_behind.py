"""The watch that tests/conftest.py keeps over every test: it sees what is left running, and only that."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"

pytest_plugins = ["pytester"]

SUITE = """
import multiprocessing
import subprocess
import sys
import threading

from liteq.storage.locks import Election

released = threading.Event()
kept = []


def test_leaves_a_thread():
    threading.Thread(target=released.wait, name="forgotten").start()


def test_lets_the_thread_go():
    released.set()


def test_leaves_a_process():
    kept.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))


def test_leaves_a_slot(tmp_path):
    kept.append(Election(tmp_path / "office"))
    assert kept[-1].win()


def test_leaves_a_slot_to_the_garbage_collector(tmp_path):
    forgotten = [Election(tmp_path / "office")]
    forgotten.append(forgotten)
    assert forgotten[0].win()


def test_leaves_a_process_of_a_process():
    nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    kept.append(subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    assert kept[-1].stdout.readline()


def test_cleans_up():
    thread = threading.Thread(target=print)
    thread.start()
    thread.join()
    subprocess.run([sys.executable, "-c", ""], check=True)


def test_leaves_a_daemon_thread():
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def test_leaves_the_helpers_of_multiprocessing():
    process = multiprocessing.get_context("forkserver").Process(target=print)
    process.start()
    process.join()
    process.close()
"""


def test_what_a_test_leaves_running_fails_that_test(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST.read_text(encoding="utf-8").replace("GRACE = 5.0", "GRACE = 0.2"))
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=9, errors=4)
    result.stdout.fnmatch_lines(
        [
            "*the test left running: thread 'forgotten'",
            "*the test left running: process * -c input()*",
            "*the test left running: slot */office",
            "*the test left running: process * -c import subprocess*; process * -c print(1, flush=True); input()*",
        ]
    )


def test_waiting_for_what_never_comes_fails_with_the_last_answer(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST.read_text(encoding="utf-8"))
    pytester.makepyfile(
        """
        def test_waits_in_vain(eventually):
            eventually(lambda: [], timeout=0.05, message="a job appears")

        def test_gets_the_answer(eventually):
            answers = iter([0, 0, 7])
            assert eventually(lambda: next(answers)) == 7

        def test_asks_once_even_without_time(eventually):
            assert eventually(lambda: 7, timeout=0) == 7

        def test_an_error_is_not_an_answer(eventually):
            eventually(lambda: 1 / 0)
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:randomly", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["*not within 0.05 s: a job appears (last answer: [[]])"])
