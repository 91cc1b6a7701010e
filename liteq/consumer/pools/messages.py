"""What passes between a consumer and its worker processes: frames of marshalled tuples over a socket.

Both ends are the same program on the same interpreter, and nothing here comes from the file: a payload travels as the
bytes it is stored as. `marshal` makes a tuple of plain values in 0.5 µs; pickle takes three times as long.

To a worker: ``("jobs", [packed job, …])``, ``("cancel", seq)``, ``("interrupt", seq, claim)``, ``("recall",)``,
``("reopen",)``, ``("stack", token)``, ``("stop",)``.
From a worker: ``("ready",)``, ``("done", packed outcome)``, ``("progress", seq, claim, done, total, message)``,
``("back", [seq, …])`` for jobs it has not begun and will not, ``("heavy", bytes)`` once it has more memory than it
should, ``("open",)`` in answer to ``("reopen",)``, ``("broken", text)`` when it cannot start.
"""

from __future__ import annotations

import marshal
import struct
from collections.abc import Iterator
from typing import Any

from liteq.job import Job, JobState, Outcome
from liteq.plan import Inputs

_LENGTH = struct.Struct("<I")

Message = tuple[Any, ...]
#: One run of a job, by its ``seq`` and ``claim``: one that was given up, or given back, may be here beside the next.
Run = tuple[int, int]


def frame(message: Message) -> bytes:
    """A message as bytes, with its length in front."""
    body = marshal.dumps(message)
    return _LENGTH.pack(len(body)) + body


class Unframer:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are complete with ``data``."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            message = marshal.loads(memoryview(buffer)[start + _LENGTH.size : end])
            start = end
            yield message
        del buffer[:start]


def pack_job(job: Job) -> Message:
    """A claimed job as plain values; only what a worker needs."""
    return (
        job.seq,
        job.id,
        job.task,
        job.queue,
        job.priority,
        job.payload,
        job.created,
        job.due,
        job.expires,
        job.options,
        job.claim,
        job.attempt,
        job.base,
        job.crashes,
        job.started,
        None if job.inputs is None else tuple(job.inputs),
    )


def unpack_job(values: Message) -> Job:
    """The job that `pack_job` packed."""
    seq, job_id, task, queue, priority, payload, created, due, expires, options, *counters = values
    claim, attempt, base, crashes, started, inputs = counters
    return Job(
        seq,
        job_id,
        task,
        JobState.RUNNING,
        queue,
        priority,
        payload,
        created,
        due,
        expires,
        options,
        None,
        claim,
        attempt,
        base,
        crashes,
        None,
        started,
        inputs=None if inputs is None else Inputs(*inputs),
    )


def pack_outcome(outcome: Outcome) -> Message:
    """An outcome as plain values: marshal refuses a StrEnum."""
    return (outcome.seq, outcome.claim, str(outcome.ending), *outcome[3:])


def unpack_outcome(values: Message) -> Outcome:
    """The outcome that `pack_outcome` packed; its ``ending`` is a plain string, equal to the Ending."""
    return Outcome._make(values)
