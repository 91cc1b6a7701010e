"""One file, many processes: ids that stay unique, forks, and callers in other programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from workbench import Program, work

from liteq import LiteQ, Task

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
quiet_forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def task(on_file: LiteQ) -> Task[..., int]:
    @on_file.task(name="task")
    def task(x: int = 1) -> int:
        return x

    return task


def in_a_child(body: Callable[[], object]) -> int:
    """Fork; the child does ``body`` and ends at once. Returns its process id."""
    child = os.fork()
    if child == 0:
        try:
            body()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - the child has nobody else to tell
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(1)
    return child


def ended_well(child: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


ENQUEUE_BY_ID = """
    from liteq import LiteQ
    app = LiteQ(sys.argv[1], durability="normal")
    task = app.task(name="task")(lambda x: x)
    say("ready")
    hear()
    ids = [task.using(id=f"job {number}")(number).id for number in range(50)]
    own = [task(number).id for number in range(50)]
    assert ids == [f"job {number}" for number in range(50)]
    app.close()
    say(*own)
"""


def test_processes_that_enqueue_one_id_at_once_get_one_job(on_file: LiteQ, task: Task[..., int]) -> None:
    with ExitStack() as stack:
        programs = [stack.enter_context(Program(ENQUEUE_BY_ID, on_file.storage.location)) for _ in range(4)]
        assert [program.hear() for program in programs] == ["ready"] * 4
        for program in programs:
            program.tell()
        own = [one for program in programs for one in program.hear().split()]
        assert [program.finish() for program in programs] == [0] * 4
    assert len(set(own)) == 200
    jobs = on_file.jobs(limit=None)
    assert len(jobs) == 250
    assert {job.id for job in jobs} == {*own, *(f"job {number}" for number in range(50))}
    work(on_file)
    assert [on_file.result(f"job {number}").get(0) for number in range(50)] == list(range(50))


def test_a_job_goes_from_one_program_through_another_to_a_third(on_file: LiteQ, directory: Path) -> None:
    module = directory / "three_programs.py"
    module.write_text(
        "from liteq import LiteQ\napp = LiteQ('queue.db')\n@app.task\ndef double(x): return 2 * x\n", encoding="utf-8"
    )
    prelude = f"sys.path.insert(0, {str(directory)!r}); from three_programs import app, double\n"
    with Program(prelude + "say(double(21).id); app.close()") as caller:
        job_id = caller.hear()
        assert caller.finish() == 0
    reader = Program(prelude + "say('asking'); say(app.result(sys.argv[1]).get(timeout=20)); app.close()", job_id)
    worker = Program(
        prelude + "with app.run_in_background(workers=1):\n    app.result(sys.argv[1]).get(timeout=20)\napp.close()\n",
        job_id,
    )
    with reader, worker:
        assert reader.hear() == "asking"
        assert reader.hear() == "42"
        assert (reader.finish(), worker.finish()) == (0, 0)


# ── forks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@needs_fork
@quiet_forks
@pytest.mark.parametrize("used_before", [True, False])
def test_a_forked_child_enqueues_and_reads_results(on_file: LiteQ, task: Task[..., int], used_before: bool) -> None:
    done = None
    if used_before:
        done = task(5)
        work(on_file)

    def child() -> None:
        if done is not None:
            assert done.get(0) == 5
        mine = task.using(id="child")(6)
        assert [result.id for result in task.map([7])]
        assert on_file.jobs(state="ready")[0].id == "child"
        work(on_file)
        assert mine.get(0) == 6

    assert ended_well(in_a_child(child))
    result = task(8)
    work(on_file)
    assert result.get(0) == 8
    assert on_file.result("child").get(0) == 6
    assert on_file.counts()["succeeded"] == 3 + used_before  # type: ignore[index]


@needs_fork
@quiet_forks
def test_parent_and_child_wait_for_each_other(
    on_file: LiteQ, task: Task[..., int], eventually: Callable[..., object]
) -> None:
    """Also where the parent's thread of waiters is running at the moment of the fork; the child has none."""
    for_parent, for_child = task.using(id="parent")(1), task.using(id="child", queue="later")(2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(for_parent.get, 20)
        eventually(lambda: on_file.engine.waiters._waiting, message="somebody waits")

        def child() -> None:
            on_file.pause("later")
            work(on_file)
            on_file.resume("later")
            assert for_child.get(20) == 2

        pid = in_a_child(child)
        assert waiting.result(20) == 1
        eventually(lambda: not on_file.paused(), message="the child has done its part")
        work(on_file)
        assert ended_well(pid)


@needs_fork
@quiet_forks
def test_many_children_enqueue_at_once(on_file: LiteQ, task: Task[..., int]) -> None:
    task(0)

    def child(number: int) -> None:
        with on_file.batch():
            task.map([number] * 5)
        for _ in range(5):
            task(number)
        on_file.close()

    children = [in_a_child(lambda number=number: child(number)) for number in range(8)]  # type: ignore[misc]
    task.map(range(5))
    assert all([ended_well(one) for one in children])  # noqa: C419 - all of them are to be waited for
    assert on_file.counts()["ready"] == 1 + 5 + 8 * 10  # type: ignore[index]


@needs_fork
@quiet_forks
def test_a_child_of_a_memory_app_has_a_copy_of_its_own(app: LiteQ) -> None:
    task = app.task(name="t")(lambda: 1)
    result = task()

    def child() -> None:
        task()
        assert work(app) == 2
        assert result.get(0) == 1

    assert ended_well(in_a_child(child))
    assert result.state == "ready"
    assert len(app.jobs()) == 1


@needs_fork
@quiet_forks
def test_a_child_that_closes_the_app_closes_its_own(on_file: LiteQ, task: Task[..., int]) -> None:
    result = task(1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(result.get, 20)
        assert ended_well(in_a_child(on_file.close))
        work(on_file)
        assert waiting.result(20) == 1


@needs_fork
@quiet_forks
@pytest.mark.skipif(sys.platform == "darwin", reason="fork without exec is not safe there")
def test_multiprocessing_workers_may_use_the_app_of_their_parent(on_file: LiteQ, task: Task[..., int]) -> None:
    import multiprocessing

    task(0)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=task, args=(number,)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
        process.close()
    assert on_file.counts()["ready"] == 4  # type: ignore[index]
