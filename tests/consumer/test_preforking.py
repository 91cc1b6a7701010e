"""A server that uses the queue first and forks its workers then, as gunicorn does with ``--preload``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from workshop import lines

from liteq import LiteQ

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.slow,
]

HERE = Path(__file__).resolve().parent
CHILDREN, JOBS = 4, 20

#: What a server does before and after it forks. ``child`` and ``parent`` are functions of the test's own.
SERVER = """
import os, sys, threading, warnings, json
import workshop
warnings.simplefilter("ignore", DeprecationWarning)  # that it is multi-threaded when it forks is the point
path, log, kind = sys.argv[1:]
app = workshop.build(path)
tasks = workshop.tasks_of(app)

def fork(body):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        body()
        code = 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)

def codes(pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

class Busy:
    '''Threads that are in the middle of everything when the process forks.'''

    def __init__(self):
        self.over = threading.Event()
        self.under_way = threading.Event()
        self.enqueued = 0
        self.waiting = tasks.write(log, "waited for")
        self.got = []
        self.threads = [threading.Thread(target=one) for one in (self.enqueue, self.ask, self.wait)]
        for thread in self.threads:
            thread.start()

    def enqueue(self):
        while not self.over.wait(0.002):  # not faster than the children can run them
            tasks.write(log, f"parent {self.enqueued}")
            self.enqueued += 1
            if self.enqueued >= 20:
                self.under_way.set()

    def ask(self):
        while not self.over.is_set():
            app.counts()

    def wait(self):
        self.waiting.get(60)
        self.got.append("waited for")

    def end(self):
        self.over.set()
        for thread in self.threads:
            thread.join()
"""


def serve(path: Path, log: str, kind: str, source: str) -> Any:
    """Run a server to its end; what it says last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", SERVER + textwrap.dedent(source), str(path), log, kind],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])},
        capture_output=True,
        encoding="utf-8",
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_children_enqueue_wait_and_consume_while_threads_of_the_parent_use_the_queue(
    app: LiteQ, path: Path, log: str, kind: str, eventually: Any
) -> None:
    told = serve(
        path,
        log,
        kind,
        f"""
        busy = Busy()

        def child(number):
            with app.run_in_background(workers=2, worker_type=kind, app_path="workshop:app"):
                results = tasks.write.map([(log, f"child {{number}} {{n}}") for n in range({JOBS})])
                assert tasks.add(number, 1).get(60) == number + 1
                results.get(60)
            app.close()

        assert busy.under_way.wait(60)
        pids = [fork(lambda: child(number)) for number in range({CHILDREN})]
        ended = codes(pids)
        busy.over.set()
        with app.run_in_background(workers=2, worker_type=kind, app_path="workshop:app"):
            busy.end()
            last = tasks.write(log, "last")
            last.get(60)
        app.close()
        print(json.dumps([ended, busy.enqueued, busy.got]))
        """,
    )
    ended, enqueued, got = told
    assert ended == [0] * CHILDREN
    assert got == ["waited for"]
    with app.run_in_background():
        eventually(lambda: not app.queues())
    expected = [f"parent {number}" for number in range(enqueued)]
    expected += [f"child {child} {number}" for child in range(CHILDREN) for number in range(JOBS)]
    assert sorted(lines(log)) == sorted([*expected, "waited for", "last"]), "nothing lost, nothing doubled"
    assert app.consumers() == []
    assert threading.active_count() < 50


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_child_neither_stops_nor_robs_the_consumer_that_its_parent_runs(
    app: LiteQ, path: Path, log: str, kind: str
) -> None:
    """Whatever a child does with the app: its parent's consumer is its parent's business."""
    told = serve(
        path,
        log,
        kind,
        """
        app.start(workers=2, worker_type=kind, app_path="workshop:app")
        assert tasks.add(1, 1).get(60) == 2

        heard = threading.Event()
        app.signal("enqueued")(lambda *_: heard.set())
        tasks.add(3, 3).get(60)

        def enqueue_and_leave():
            heard.clear()
            tasks.write(log, "from a child").get(60)
            assert heard.wait(30)

        def close():
            tasks.write(log, "from a child that closes").get(60)
            app.close()

        def stop():
            app.stop()
            tasks.write(log, "from a child that stops").get(60)

        def start():
            app.start(workers=1, worker_type=kind, app_path="workshop:app")
            tasks.write(log, "from a child that starts").get(60)
            app.stop()

        def recover():
            assert app.engine.recover() == 0
            [consumer] = app.consumers()
            assert consumer.alive

        ended = [codes([fork(body)])[0] for body in (enqueue_and_leave, close, stop, start, recover)]
        [consumer] = app.consumers()
        assert consumer.alive and consumer.info["pid"] == os.getpid()
        assert tasks.add(2, 2).get(60) == 4
        app.stop()
        assert app.consumers() == []
        app.close()
        print(json.dumps(ended))
        """,
    )
    assert told == [0] * 5
    words = {"from a child", "from a child that closes", "from a child that stops", "from a child that starts"}
    assert sorted(lines(log)) == sorted(words)
