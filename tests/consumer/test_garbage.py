"""How often the programs that run jobs look for garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from liteq.consumer.garbage import NEW_OBJECTS, collect_less_often


@pytest.fixture(autouse=True)
def kept_settings() -> Iterator[None]:
    enabled, thresholds = gc.isenabled(), gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    (gc.enable if enabled else gc.disable)()


def test_young_objects_are_looked_at_less_often_and_those_of_the_imports_never_again() -> None:
    gc.set_threshold(700, 7, 9)
    collect_less_often()
    assert gc.get_threshold() == (NEW_OBJECTS, 7, 9)
    assert gc.get_freeze_count() > 0


@pytest.mark.parametrize("own", [(50_000, 5, 5), (0, 10, 10)])
def test_an_app_that_has_set_thresholds_keeps_them(own: tuple[int, int, int]) -> None:
    gc.set_threshold(*own)
    collect_less_often()
    assert gc.get_threshold() == own


def test_an_app_that_has_switched_collecting_off_finds_it_off() -> None:
    gc.set_threshold(700, 10, 10)
    gc.disable()
    collect_less_often()
    assert not gc.isenabled()
    assert gc.get_threshold() == (700, 10, 10)
