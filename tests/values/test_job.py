"""`liteq.job`: what a Job and its parts say of themselves."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liteq.job import FINISHED, WAITING, Attempt, Ending, Job, JobFilter, JobState, Outcome, Progress, shorten

NOW = 1_700_000_000.25
MOMENT = datetime(2023, 11, 14, 22, 13, 20, 250_000, UTC)


def job(**fields: object) -> Job:
    return Job(1, "1-0123456789", "t", fields.pop("state", JobState.READY), **fields)  # type: ignore[arg-type]


def test_a_job_is_waiting_running_or_finished() -> None:
    assert WAITING | FINISHED | {JobState.RUNNING} == set(JobState)
    assert not WAITING & FINISHED


@pytest.mark.parametrize("state", JobState)
def test_states_are_their_names(state: JobState) -> None:
    assert state == state.value == str(state)
    assert JobState(str(state)) is state
    assert json.dumps(state) == f'"{state.value}"'
    assert str(state) in WAITING | FINISHED | {JobState.RUNNING}


def test_instants_are_shown_as_aware_datetimes() -> None:
    full = job(created=NOW, due=NOW, expires=NOW, started=NOW, finished=NOW)
    shown = [full.created_at, full.run_at, full.expires_at, full.started_at, full.finished_at]
    assert shown == [MOMENT] * 5
    assert all(moment is not None and moment.tzinfo is UTC for moment in shown)


def test_what_has_not_happened_has_no_datetime() -> None:
    empty = job()
    assert [empty.run_at, empty.expires_at, empty.started_at, empty.finished_at] == [None] * 4
    assert job(due=0.0).run_at == datetime(1970, 1, 1, tzinfo=UTC)


def test_an_attempt_shows_its_times() -> None:
    attempt = Attempt(1, Ending.FAILED, NOW, NOW)
    assert (attempt.started_at, attempt.finished_at) == (MOMENT, MOMENT)
    assert attempt._replace(started=None).started_at is None


def test_the_error_is_the_last_attempt_unless_it_succeeded() -> None:
    failed = Attempt(1, Ending.CRASHED, NOW, NOW, "E", "m")
    succeeded = Attempt(2, Ending.SUCCEEDED, NOW, NOW)
    assert job().error is None
    assert job(attempts=(failed,)).error == failed
    assert job(attempts=(failed, succeeded)).error is None
    assert job(attempts=(succeeded, failed)).error == failed


def test_arguments_are_the_summary_where_there_is_one() -> None:
    assert job(summary="(1, 2)", payload=b"[1,2]").arguments == "(1, 2)"
    assert job(summary="", payload=b"[1,2]").arguments == ""
    assert job(payload=b"[1,2]").arguments == "[1,2]"
    assert job().arguments == ""


@given(st.binary(max_size=400))
def test_any_payload_can_be_shown_in_one_short_line(payload: bytes) -> None:
    shown = job(payload=payload).arguments
    assert len(shown) <= 120
    assert shown.splitlines() in ([], [shown])


@given(st.text(max_size=300), st.integers(1, 150))
def test_shortening_keeps_what_fits(text: str, width: int) -> None:
    line = shorten(text, width)
    whole = " ".join(text.split())
    assert len(line) <= width
    assert line == whole if len(whole) <= width else line == whole[: width - 1] + "…"


def test_values_cannot_be_changed() -> None:
    for value in (job(), Progress(1.0), Attempt(1, Ending.FAILED, None, NOW)):
        with pytest.raises(AttributeError):
            value.number = 3  # type: ignore[union-attr]
    with pytest.raises(FrozenInstanceError):
        JobFilter().limit = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "value",
    [
        job(progress=Progress(1.0, None, "ü"), attempts=(Attempt(1, Ending.TIMEOUT, None, NOW),)),
        Outcome(1, 2, Ending.SUCCEEDED, NOW, NOW, b"5"),
        JobFilter(states=frozenset({JobState.FAILED}), limit=3),
    ],
)
def test_values_travel_between_processes(value: object) -> None:
    back = pickle.loads(pickle.dumps(value))
    assert back == value
    assert type(back) is type(value)


def test_an_outcome_is_made_of_plain_values() -> None:
    plain = json.loads(json.dumps(Outcome(1, 2, Ending.FAILED, NOW, NOW, None, "E", "m", "tb")))
    assert Outcome(*plain) == Outcome(1, 2, Ending.FAILED, NOW, NOW, None, "E", "m", "tb")
