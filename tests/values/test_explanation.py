"""What is said of a job that does not run, from plain facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liteq import gates, unique
from liteq.explanation import ConsumerFacts, Explanation, Facts, explain, prior_id
from liteq.job import Attempt, Ending, Job, JobState
from liteq.lifecycle import EVENT, UNKNOWN_TASK, Revocation
from liteq.schedule import AFTER_JOB

NOW = 1_700_000_000.0
IDLE = ConsumerFacts(1, True, 4711, "here", 2)
JOB = Job(7, "7-ab", "shop.mail", JobState.READY, "mail", created=NOW - 60)
FAILURE = Attempt(2, Ending.FAILED, NOW - 9, NOW - 8, "ValueError", "no\nmore")


def said(job: Job = JOB, **facts: Any) -> dict[str, str]:
    """The texts by their codes."""
    facts.setdefault("consumers", (IDLE,))
    return {cause.code: cause.text for cause in explain(Facts(job, NOW, **facts)).causes}


def moved(state: JobState, **fields: Any) -> Job:
    return JOB._replace(state=state, **fields)


BLOCKED = JobState.BLOCKED

CASES: list[tuple[Job, dict[str, Any], dict[str, str]]] = [
    (JOB, {}, {"next": "it is the next of its queue 'mail', and a consumer takes it in a moment"}),
    (
        JOB,
        {"ahead": 3, "consumers": (replace(IDLE, running=2),)},
        {"behind": "3 jobs are before it in its queue 'mail'; all 2 workers that serve it are taken"},
    ),
    (
        JOB,
        {"consumers": (replace(IDLE, running=9),)},
        {"busy": "it is the next of its queue 'mail'; all 2 workers that serve it are taken"},
    ),
    (JOB, {"paused": True}, {"paused": "its queue 'mail' is paused"}),
    (JOB, {"consumers": ()}, {"no_consumer": "no consumer is alive"}),
    (JOB, {"consumers": (replace(IDLE, alive=False),)}, {"no_consumer": "no consumer is alive; 1 died"}),
    (
        JOB,
        {"consumers": (replace(IDLE, queues=("a", "b")),)},
        {"queue_unserved": "no live consumer serves its queue 'mail'; there is one for a, b"},
    ),
    (
        JOB,
        {"revoked": Revocation(), "paused": True},
        {
            "paused": "its queue 'mail' is paused",
            "task_revoked": "every call of its task is revoked, so in its turn it ends as revoked",
        },
    ),
    (
        JOB._replace(expires=NOW - 5),
        {},
        {
            "expired": "it was to be started 5.0 s ago (2023-11-14 22:13:15 UTC) at the latest, and will end as "
            "expired",
            "next": "it is the next of its queue 'mail', and a consumer takes it in a moment",
        },
    ),
    (
        moved(JobState.SCHEDULED, due=NOW + 180),
        {},
        {"scheduled": "it is due in 3 min, at 2023-11-14 22:16:20 UTC"},
    ),
    (
        moved(JobState.SCHEDULED, due=NOW + 5, attempt=2, attempts=(FAILURE,)),
        {},
        {
            "retry": "its attempt 2 did not succeed (ValueError: no); the next one is due in 5.0 s, at 2023-11-14 "
            "22:13:25 UTC"
        },
    ),
    (
        moved(JobState.SCHEDULED, due=NOW - 1),
        {"consumers": ()},
        {
            "due": "it is due since 1.0 s ago (2023-11-14 22:13:19 UTC); the next round of a consumer makes it ready",
            "no_consumer": "no consumer is alive",
        },
    ),
    (
        moved(BLOCKED, reason=gates.reason("lock:x")),
        {"holders": ("job 1-a of t", "process 5 on here")},
        {"lock": "it waits for the lock 'x', held by job 1-a of t, process 5 on here"},
    ),
    (
        moved(BLOCKED, reason=gates.reason("limit:shop.mail[ann]")),
        {"holders": ("a", "b", "c", "d"), "slots": 4},
        {
            "limit": "it waits for the limit of shop.mail[ann], held by a, b, c and 1 more (4 of 4 slots are taken)",
        },
    ),
    (
        moved(BLOCKED, reason=gates.reason("lock:x")),
        {},
        {"lock": "it waits for the lock 'x', in line with others"},
    ),
    (
        moved(BLOCKED, reason=gates.reason("rate:shop.mail[ann]")),
        {"rate": "10/s", "waiting": 3},
        {"rate_limit": "the rate limit of shop.mail[ann], 10/s, is used up; 3 wait for it"},
    ),
    (
        moved(BLOCKED, reason=gates.reason("rate_limit:api")),
        {"waiting": 1},
        {"rate_limit": "the rate limit of api is used up; 1 waits for it"},
    ),
    (
        moved(BLOCKED, reason=unique.reason("3-c")),
        {"prior": Job(3, "3-c", "t", JobState.RUNNING)},
        {"unique": "it waits for the end of job 3-c, which has its unique key and is running"},
    ),
    (
        moved(BLOCKED, reason=AFTER_JOB + "s@1"),
        {},
        {"schedule": "it waits for the end of job s@1, its schedule's run before"},
    ),
    (
        moved(BLOCKED, reason=UNKNOWN_TASK + "shop.mail"),
        {},
        {"unknown_task": "no consumer that has come upon it knows a task named 'shop.mail'"},
    ),
    (moved(BLOCKED, reason=EVENT + "approved"), {}, {"event": "it waits for the event 'approved'"}),
    (moved(BLOCKED, reason="waits for rain"), {}, {"blocked": "it waits for rain"}),
    (
        moved(JobState.RUNNING, owner=1, started=NOW - 90, attempt=2),
        {"told": True},
        {
            "running": "it has run for 90 s, in attempt 2, on consumer 1 (process 4711 on here)",
            "told_to_stop": "it was revoked while it ran: it is told to stop, and will not be run again",
        },
    ),
    (
        moved(JobState.RUNNING, owner=2, started=NOW - 90, attempt=1),
        {"consumers": (IDLE, ConsumerFacts(2, False, 9, "there"))},
        {"consumer_died": "it ran on consumer 2 (process 9 on there), which has died"},
    ),
    (
        moved(JobState.RUNNING, owner=2, started=NOW - 90, attempt=1),
        {},
        {"consumer_died": "it ran on consumer 2, which has died"},
    ),
    (
        moved(JobState.RUNNING, owner=0, started=NOW - 0.25, attempt=1),
        {},
        {"running": "it has run for 250 ms, in attempt 1, in the program that enqueued it (immediate mode)"},
    ),
    (
        moved(JobState.SUCCEEDED, started=NOW - 9, finished=NOW - 7),
        {},
        {"succeeded": "it succeeded 7.0 s ago (2023-11-14 22:13:13 UTC), after 2.0 s"},
    ),
    (
        moved(JobState.FAILED, finished=NOW - 86_400 * 9, attempt=2, attempts=(FAILURE,)),
        {},
        {"failed": "it failed 9 days ago (2023-11-05 22:13:20 UTC), after 2 attempts: ValueError: no"},
    ),
    (
        moved(JobState.REVOKED, finished=NOW, reason="revoked"),
        {},
        {"revoked": "it ended 0 ms ago (2023-11-14 22:13:20 UTC): revoked"},
    ),
    (
        moved(JobState.EXPIRED, finished=NOW, reason="not started before it expired"),
        {},
        {"expired": "it ended 0 ms ago (2023-11-14 22:13:20 UTC): not started before it expired"},
    ),
]


@pytest.mark.parametrize(("job", "facts", "words"), CASES, ids=[" ".join(words) for _, _, words in CASES])
def test_what_keeps_a_job_is_said_in_words(job: Job, facts: dict[str, Any], words: dict[str, str]) -> None:
    assert said(job, **facts) == words


def test_what_keeps_the_job_itself_comes_before_what_keeps_its_queue() -> None:
    job = moved(BLOCKED, reason=gates.reason("lock:x"))
    assert list(said(job, paused=True, consumers=())) == ["lock", "paused", "no_consumer"]


def test_each_has_advice_where_something_can_be_done() -> None:
    quiet = {"running", "expired"}
    for job, facts, _ in CASES:
        for cause in explain(Facts(job, NOW, **facts)).causes:
            assert cause.advice or cause.code in quiet | {"blocked", "due", "told_to_stop"}, cause


def test_an_explanation_is_readable_text() -> None:
    assert str(explain(Facts(JOB, NOW))) == "job 7-ab of shop.mail: ready\n  no consumer is alive"


@given(
    state=st.sampled_from(JobState),
    reason=st.sampled_from(["", "after job ", "follows job ", "waits for lock ", "event: ", "unknown task: ", "x"]),
    due=st.none() | st.floats(-1e10, 1e11),
    started=st.none() | st.floats(-1e10, 1e11),
    owner=st.none() | st.integers(0, 3),
    paused=st.booleans(),
    ahead=st.integers(0, 10**9),
    consumers=st.lists(st.builds(ConsumerFacts, st.integers(1, 3), st.booleans()), max_size=3).map(tuple),
)
def test_there_is_always_something_to_say(
    state: JobState, reason: str, due: Any, started: Any, owner: Any, paused: bool, ahead: int, consumers: Any
) -> None:
    job = moved(state, reason=reason, due=due, started=started, finished=started, owner=owner)
    explanation = explain(Facts(job, NOW, paused=paused, ahead=ahead, consumers=consumers))
    assert isinstance(explanation, Explanation)
    assert explanation.causes
    assert all(cause.code and cause.text and "\n" not in cause.text for cause in explanation.causes)
    assert len({cause.code for cause in explanation.causes}) == len(explanation.causes)


def test_only_blocked_jobs_wait_for_another_one() -> None:
    assert prior_id(moved(BLOCKED, reason=AFTER_JOB + "a@1")) == "a@1"
    assert prior_id(moved(BLOCKED, reason=unique.reason("3-c"))) == "3-c"
    assert prior_id(moved(JobState.REVOKED, reason=AFTER_JOB + "a@1")) is None
    assert prior_id(moved(BLOCKED, reason=None)) is None
