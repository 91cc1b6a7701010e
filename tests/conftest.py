"""What every test of the house shares: a bounded wait for other processes, and a watch for what a test leaves behind.

pytest-randomly shuffles the order and prints its seed in the header (``--randomly-seed=…`` repeats a run).
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import hypothesis
import psutil
import pytest

T = TypeVar("T")

# A shared machine makes any per-example deadline flaky. A failing example is printed ready to be pasted into a test.
hypothesis.settings.register_profile("liteq", deadline=None, print_blob=True)
hypothesis.settings.load_profile("liteq")

# How long threads and processes that were told to stop may take to be gone: they are on their way, not left behind.
GRACE = 5.0

# Seconds within which anything happens here; most takes milliseconds, but other programs may use the machine too.
PATIENCE = 60.0

# Beyond that the tests that start many processes take the cores from each other.
MOST_WORKERS = 8


def pytest_configure() -> None:
    """Forgets what changes defaults here and in every child: the developer's own ``LITEQ_…`` variables (those with
    ``TEST`` in their name are for the tests themselves), and signals that whoever started the tests had ignored, as
    ``nohup`` and a shell's ``&`` do.
    """
    for name, default in (
        ("SIGINT", signal.default_int_handler),
        ("SIGHUP", signal.SIG_DFL),
        ("SIGTERM", signal.SIG_DFL),
    ):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, default)
    for name in [name for name in os.environ if name.startswith("LITEQ_") and "TEST" not in name]:
        del os.environ[name]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that is given more time than ``faulthandler_timeout``, which has begun to count, has that time."""
    marker = item.get_closest_marker("timeout")
    if marker is not None and not 0 < marker.args[0] <= float(item.config.getini("faulthandler_timeout")):
        faulthandler.cancel_dump_traceback_later()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker for each core, up to `MOST_WORKERS`; none where single files or tests were asked for, which take less
    time than workers to start, and where one may want to see what is printed.
    """
    if all(".py" in argument for argument in config.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


class Eventually(Protocol):
    """The type of the ``eventually`` fixture."""

    def __call__(
        self, condition: Callable[[], T], timeout: float = PATIENCE, *, message: str = "", interval: float = 0.01
    ) -> T: ...


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """Waits for something another process does, where there is no event to wait for.

    Call it as ``eventually(condition, timeout=60.0, message="", interval=0.01)``: it asks ``condition()`` until the
    answer is true and returns that answer; after ``timeout`` seconds it fails the test with ``message`` and the last
    answer. An exception from ``condition`` is the test's own and is not caught.
    """
    return _eventually


def _eventually(
    condition: Callable[[], T], timeout: float = PATIENCE, *, message: str = "", interval: float = 0.01
) -> T:
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() >= deadline  # read before asking, so that the last question is asked after the deadline
        answer = condition()
        if answer:
            return answer
        if late:
            what = message or getattr(condition, "__qualname__", repr(condition))
            pytest.fail(f"not within {timeout:g} s: {what} (last answer: {answer!r})")
        time.sleep(interval)


@pytest.fixture
def own_fork_server() -> Iterator[None]:
    """What is started by multiprocessing's fork server comes from one of this test's: another has the environment, and
    the app, of who has started it, and only liteq's own tells what a dead worker had used.
    """
    _stop_fork_server()
    yield
    _stop_fork_server()


def _stop_fork_server() -> None:
    server: Any = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    if server is not None:
        server._stop()


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fails a test that leaves a non-daemon thread or a child process running, or a slot locked, and ends those
    processes.
    """
    threads, children, slots = set(threading.enumerate()), set(_children()), _slots()
    yield
    deadline = time.monotonic() + GRACE
    left = _left(threads, children, slots)
    while left and time.monotonic() < deadline:
        time.sleep(0.01)
        gc.collect()  # an app that nobody has closed gives up what it has when it is forgotten
        left = _left(threads, children, slots)
    descriptions = [_describe(leftover) for leftover in left]
    for leftover in left:
        if isinstance(leftover, psutil.Process):
            with contextlib.suppress(psutil.NoSuchProcess):
                leftover.kill()
    if left:
        pytest.fail("the test left running: " + "; ".join(descriptions), pytrace=False)


def _left(
    threads: set[threading.Thread], children: set[psutil.Process], slots: set[Any]
) -> list[threading.Thread | psutil.Process | Any]:
    """What is there now and was not before the test."""
    new_threads = [thread for thread in threading.enumerate() if not thread.daemon and thread not in threads]
    new_children = [child for child in _children() if child not in children and _is_running(child)]
    return [*new_threads, *new_children, *(_slots() - slots)]


def _slots() -> set[Any]:
    """The locks that show others that this process lives; one that is left is never given up before its end."""
    return set(getattr(sys.modules.get("liteq.storage.locks"), "_taken", ()))


def _children() -> list[psutil.Process]:
    """Every process below this one, but the two helpers that multiprocessing keeps until exit."""
    if not _may_have_children():
        return []
    kept = {_pid_of("multiprocessing.forkserver", "_forkserver", "_forkserver_pid")}
    kept.add(_pid_of("multiprocessing.resource_tracker", "_resource_tracker", "_pid"))
    children = [child for child in psutil.Process().children(recursive=True) if child.pid not in kept]
    return sorted(children, key=lambda child: child.pid)


def _may_have_children() -> bool:
    """False where Linux says in 20 µs that there are none; psutil reads every process of the machine (1 to 2 ms)."""
    threads = Path("/proc/self/task")
    try:
        return any((thread / "children").read_bytes() for thread in threads.iterdir())
    except OSError:  # no such files here, or a thread ended between the two steps
        return True


def _pid_of(module: str, helper: str, attribute: str) -> int | None:
    return getattr(getattr(sys.modules.get(module), helper, None), attribute, None)


def _is_running(process: psutil.Process) -> bool:
    """False for one that has ended and only waits for its parent to ask for its exit code."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _describe(leftover: threading.Thread | psutil.Process | Any) -> str:
    if isinstance(leftover, threading.Thread):
        return f"thread {leftover.name!r}"
    if not isinstance(leftover, psutil.Process):
        return f"slot {leftover.path}"
    try:
        return f"process {leftover.pid} ({' '.join(leftover.cmdline())})"
    except psutil.Error:
        return f"process {leftover.pid}"
