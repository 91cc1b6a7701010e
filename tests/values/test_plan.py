"""Plans: what is read off the reason of a job that waits for others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liteq import plan


@given(st.text(min_size=1), st.integers(0, 10_000))
def test_the_reason_names_the_first_job_whatever_it_is_called(job_id: str, others: int) -> None:
    reason = plan.reason(job_id, others)
    assert plan.is_waiting(reason)
    assert job_id in reason


@pytest.mark.parametrize("reason", [None, "", "unknown task: shop.mail", "waits for lock ledger"])
def test_other_reasons_are_told_from_it(reason: str | None) -> None:
    assert not plan.is_waiting(reason)
