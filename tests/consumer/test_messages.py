"""What passes between a consumer and its worker processes comes out as it went in, however the stream is cut."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from liteq.consumer.pools.messages import Unframer, frame, pack_job, pack_outcome, unpack_job, unpack_outcome
from liteq.job import Ending, Job, JobState, Outcome
from liteq.plan import Inputs

VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=8,
)
MESSAGES = st.lists(st.tuples(st.sampled_from(["jobs", "done", "stop"]), VALUES), max_size=6)


@given(MESSAGES, st.lists(st.integers(1, 40), min_size=1))
def test_messages_survive_any_cutting(messages: list[tuple[Any, ...]], cuts: list[int]) -> None:
    stream = b"".join(map(frame, messages))
    unframer, received, start = Unframer(), [], 0
    while start < len(stream):
        size = cuts[start % len(cuts)]
        received += unframer.feed(stream[start : start + size])
        start += size
    assert received == messages


def test_a_message_comes_when_its_last_byte_has_come() -> None:
    unframer, data = Unframer(), frame(("done", b"x" * 100_000))
    assert list(unframer.feed(data[:-1])) == []
    assert list(unframer.feed(data[-1:] + data)) == [("done", b"x" * 100_000)] * 2


def test_a_job_keeps_what_a_worker_needs() -> None:
    counters = {"claim": 4, "attempt": 3, "base": 2, "crashes": 1}
    times = {"created": 1.5, "due": 2.5, "expires": 3.5, "started": 5.5}
    job = Job(7, "seven", "shop.mail", JobState.RUNNING, "mail", -3, b"\0\xff", **times, **counters, options="{}")
    inputs = Inputs("[[2]]", (b"\xff", None, ("1-x", "failed", "", "E", "message", "trace")))
    job = job._replace(summary="for people", owner=99, inputs=inputs)
    [(_, packed)] = Unframer().feed(frame(("jobs", pack_job(job))))
    assert unpack_job(packed) == job._replace(summary=None, owner=None)
    assert unpack_job(pack_job(job._replace(inputs=None))).inputs is None


def test_an_outcome_keeps_everything() -> None:
    for ending in Ending:
        outcome = Outcome(7, 4, ending, 1.0, 2.0, b"\xff", "E", "ünïcødé", "trace", 0.5, False, "details")
        message = frame(("done", pack_outcome(outcome)))
        [(_, values)] = Unframer().feed(message)
        assert unpack_outcome(values) == outcome
        assert unpack_outcome(values).ending == ending
