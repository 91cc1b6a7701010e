"""Asking the consumer that runs a job for the job's Python stack, from any process.

A question is a mark, ``stack:<owner>:<seq>:<token>``, with the value ``?<when>``. Every turn shows the marks to the
dispatchers; the one of that owner puts its answer in the question's place: ``!<when>`` and the text, or only that if
the job does not run there any more. Whoever asked takes the mark away; what nobody took is dropped after a while.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import NamedTuple

from liteq.engine import Engine
from liteq.errors import NoAnswer, NotRunning
from liteq.job import Job, JobState
from liteq.lifecycle import STACK_MARK
from liteq.storage.base import Owner

#: Seconds between two looks for the answer where no wake-up came.
LOOK_EVERY = 0.2
#: Seconds after which questions and answers that nobody has taken away are dropped.
FORGOTTEN_AFTER = 60.0


class Question(NamedTuple):
    """Somebody wants to see the stack of running job ``seq``; the answer takes the place of ``value``."""

    key: str
    value: str
    seq: int


# ── whoever asks ─────────────────────────────────────────────────────────────────────────────────────────


def ask(engine: Engine, job_id: str, timeout: float) -> str:
    """The Python stack of a running job, as text.

    Args:
        timeout: seconds for which to wait for its consumer.

    Raises:
        JobNotFound: there is no such job. NotRunning: it does not run, or has just ended.
        NoAnswer: its consumer is dead, or did not answer in time.
    """
    job = engine.job(job_id)
    if job.state is not JobState.RUNNING:
        raise NotRunning(job.id, job.state)
    consumer = next((one for one in engine.storage.owners() if one.number == job.owner and one.alive), None)
    if consumer is None:
        raise NoAnswer(job.id, _why_nobody_answers(engine, job))
    key, question = f"{STACK_MARK}{job.owner}:{job.seq}:{os.urandom(8).hex()}", f"?{engine.clock.now():.3f}"
    engine.storage.swap(key, None, question)
    try:
        answer = _answer(engine, key, question, timeout)
    finally:
        _take_away(engine, key)
    if answer is None:
        _raise_unless_running(engine, job)
        raise NoAnswer(
            job.id,
            f"its consumer ({_name(consumer)}) did not answer within {timeout:g} s; it is stopped, or its process is "
            "held up by C code that keeps the interpreter",
        )
    if not answer:
        _raise_unless_running(engine, job)
        raise NotRunning(job.id, "claimed by its consumer, which has not begun it or has just ended it")
    return answer


def _answer(engine: Engine, key: str, question: str, timeout: float) -> str | None:
    """The text of the answer; ``None``: there is none."""
    storage, clock = engine.storage, engine.clock
    deadline = clock.monotonic() + timeout
    with storage.watch() as watch:
        while True:
            watch.changed()
            storage.barrier()
            value = storage.marks(key).get(key)
            if value != question:
                return None if value is None else value.partition("\n")[2]
            left = deadline - clock.monotonic()
            if left <= 0:
                return None
            watch.wait(min(left, LOOK_EVERY))


def _take_away(engine: Engine, key: str) -> None:
    while (value := engine.storage.marks(key).get(key)) is not None:
        engine.storage.swap(key, value, None)


def _raise_unless_running(engine: Engine, job: Job) -> None:
    now = engine.job(job.id)
    if now.state is not JobState.RUNNING:
        raise NotRunning(job.id, f"{now.state} by now")
    if now.claim != job.claim:
        raise NotRunning(job.id, "running again, in another attempt: ask again")


def _why_nobody_answers(engine: Engine, job: Job) -> str:
    _raise_unless_running(engine, job)
    if not job.owner:
        return "it runs in the program that enqueued it (immediate mode), which answers no questions"
    return "its consumer is dead; the next one that runs puts the job back to work"


def _name(consumer: Owner) -> str:
    return f"number {consumer.number}, process {consumer.info.get('pid')} on {consumer.info.get('host')}"


# ── whoever answers ──────────────────────────────────────────────────────────────────────────────────────


def questions(marks: Mapping[str, str], owner: int) -> list[Question]:
    """What is asked of this consumer."""
    found = []
    prefix = f"{STACK_MARK}{owner}:"
    for key, value in marks.items():
        if key.startswith(prefix) and value.startswith("?"):
            with contextlib.suppress(ValueError):  # not a question of ours
                found.append(Question(key, value, int(key.split(":")[2])))
    return found


def answer(engine: Engine, question: Question, text: str | None) -> bool:
    """Answer a question; ``None``: the job does not run here. False if nobody waits for the answer any more."""
    said = f"!{engine.clock.now():.3f}" + ("" if text is None else f"\n{text}")
    return engine.storage.swap(question.key, question.value, said)


def drop_forgotten(engine: Engine) -> None:
    """Drop questions, and answers, that whoever asked has left behind."""
    now = engine.clock.now()
    for key, value in engine.storage.marks(STACK_MARK).items():
        when = value[1:].partition("\n")[0]
        try:
            age = now - float(when)
        except ValueError:
            age = FORGOTTEN_AFTER
        if abs(age) >= FORGOTTEN_AFTER:
            engine.storage.swap(key, value, None)
