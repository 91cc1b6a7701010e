"""``LiteQ(max_payload=...)``: what is too large is refused where it arises, and says so."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from workbench import work

from liteq import JobState, LiteQ, MemoryStorage, PayloadTooLarge, SerializationError, TaskFailed

LIMIT = 1000


@pytest.fixture
def app() -> LiteQ:
    return LiteQ(MemoryStorage(), max_payload=LIMIT)


@pytest.fixture
def echo(app: LiteQ) -> Any:
    @app.task(name="shop.echo")
    def echo(text: str, times: int = 1) -> str:
        return text * times

    return echo


def text_of(size: int) -> str:
    """A text that makes a call of ``size`` bytes."""
    return "x" * (size - len('[[""],{}]'))


def test_a_call_up_to_the_limit_is_stored_and_one_beyond_it_is_not(app: LiteQ, echo: Any) -> None:
    result = echo(text_of(LIMIT))
    with pytest.raises(PayloadTooLarge, match=r"shop\.echo was not enqueued.*too large: 1,001 bytes, more") as error:
        echo(text_of(LIMIT + 1))
    assert isinstance(error.value, SerializationError)
    assert (error.value.size, error.value.limit) == (LIMIT + 1, LIMIT)
    assert "pass a path, a key or an id" in str(error.value)
    assert sum(app.counts().values()) == 1
    work(app)
    assert len(result.get(0)) == len(text_of(LIMIT))


def test_one_call_that_is_too_large_keeps_the_others_of_its_map_and_batch_out(app: LiteQ, echo: Any) -> None:
    with pytest.raises(PayloadTooLarge):
        echo.map(["small", "x" * LIMIT])
    with pytest.raises(PayloadTooLarge), app.batch():
        echo("small")
        echo("x" * LIMIT)
    assert sum(app.counts().values()) == 0


def test_a_result_that_is_too_large_is_the_failure_of_its_job(app: LiteQ, echo: Any) -> None:
    result = echo("ten chars.", 200)
    work(app)
    with pytest.raises(TaskFailed, match=r"what shop\.echo returned is too large to be stored"):
        result.get(0)
    assert result.state is JobState.FAILED
    assert result.error is not None
    assert result.error.error_type == "PayloadTooLarge"
    assert "2,002 bytes" in result.error.message


def test_a_result_that_nobody_stores_may_be_of_any_size(app: LiteQ) -> None:
    @app.task(store_result=False)
    def large() -> str:
        return "x" * LIMIT * 10

    result = large()
    work(app)
    assert result.get(0) is None


def test_the_same_holds_for_coroutines_and_in_immediate_mode(app: LiteQ) -> None:
    @app.task
    async def large(size: int) -> str:
        return "x" * size

    app.immediate = True
    assert asyncio.run(large(3).aget(0)) == "xxx"
    with pytest.raises(TaskFailed, match="PayloadTooLarge"):
        large(LIMIT).get(0)


def test_the_error_passes_between_processes() -> None:
    error = PayloadTooLarge("shop.echo was not enqueued", 5, 4)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.size, copy.limit) == (str(error), 5, 4)
