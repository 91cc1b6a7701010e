"""Unique keys between processes: sixteen that enqueue at once, and one that enqueues while another one finishes."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

import pytest
from workbench import Program, work

from liteq import LiteQ, TaskFailed

ENQUEUE = """
    from liteq import LiteQ
    app = LiteQ(sys.argv[1], durability="normal")
    task = app.task(name="task", unique=True)(lambda x: x)
    say("ready")
    hear()
    ids = set()
    for number in range(1000):
        ids.add(task(7).id)
        if number % 100 == 0:
            say("on")  # on a busy machine all of it may take minutes
    app.close()
    say(*ids)
"""


@pytest.mark.slow
def test_sixteen_processes_that_enqueue_one_key_leave_one_job(on_file: LiteQ) -> None:
    with ExitStack() as stack:
        programs = [stack.enter_context(Program(ENQUEUE, on_file.storage.location)) for _ in range(16)]
        assert {program.hear() for program in programs} == {"ready"}
        for program in programs:
            program.tell()
        ids = {next(heard for heard in iter(program.hear, "") if heard != "on") for program in programs}
        assert [program.finish() for program in programs] == [0] * 16
    assert [job.id for job in on_file.jobs(limit=None)] == list(ids)


RACE = """
    import json
    from liteq import LiteQ
    app = LiteQ(sys.argv[1], durability="normal")
    task = app.task(name="task", unique="one key", **json.loads(sys.argv[2]))(lambda x: x)
    for number in range(int(sys.argv[3])):
        task(number)
        while (seen := int(hear())) != number:  # the body's word, so that the next call meets its end
            assert seen < number
        if number % 100 == 0:
            say("on")  # on a busy machine all of it may take minutes
    say("all")
    app.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "times"), [('{"on_duplicate": "replace"}', 10_000), ('{"unique_for": "waiting"}', 2_000)]
)
def test_a_call_that_meets_the_end_of_a_run_has_a_run_of_its_own(on_file: LiteQ, options: str, times: int) -> None:
    with Program(RACE, on_file.storage.location, options, times) as program:

        @on_file.task(name="task")
        def task(number: int) -> None:
            program.tell(str(number))

        with on_file.run_in_background(workers=2):
            while (heard := program.hear()) != "all":  # one that was lost, it would wait for in vain
                assert heard == "on"
        assert program.finish() == 0
    work(on_file)
    assert {job.state for job in on_file.jobs(limit=None)} == {"succeeded"}


@pytest.mark.slow
def test_a_call_that_gets_a_known_job_never_gets_one_that_had_ended(on_file: LiteQ) -> None:
    """Four threads enqueue one key while its jobs end; each job that one of them has seen end may not come again."""
    errors: list[str] = []

    @on_file.task(unique="one key")
    def task() -> None:
        return None

    def enqueue() -> None:
        ended: set[str] = set()
        for _ in range(500):
            result: Any = task()
            if result.id in ended:
                errors.append(f"{result.id} had ended before it was given out")
            result.get(timeout=30)
            ended.add(result.id)

    with on_file.run_in_background(workers=2):
        threads = [threading.Thread(target=enqueue) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


@pytest.mark.parametrize(
    ("options", "words"), [({}, "waits for itself"), ({"on_duplicate": "replace"}, "which cannot start")]
)
def test_a_job_that_waits_for_itself_or_for_one_that_follows_it_is_told(
    on_file: LiteQ, options: dict[str, Any], words: str
) -> None:
    @on_file.task(unique=True, **options)
    def task() -> object:
        return task().get()

    with on_file.run_in_background(workers=3), pytest.raises(TaskFailed, match=f"WouldDeadlock: .*{words}"):
        task().get(timeout=30)
    for result in on_file.jobs(state="blocked"):
        on_file.revoke(result.id)
