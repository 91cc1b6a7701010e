"""The picture in docs/design/architecture.md held against the code, and each rule against a house that breaks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import blueprint
import pytest
from blueprint import Module

LITEQ = Path(__file__).resolve().parents[2] / "liteq"

Rule = Callable[[Sequence[Module]], list[str]]


def imports_of_sqlite3(modules: Sequence[Module]) -> list[str]:
    return blueprint.strangers_who_import("sqlite3", blueprint.SQLITE3_ROOMS, modules)


def imports_of_logging(modules: Sequence[Module]) -> list[str]:
    return blueprint.strangers_who_import("logging", blueprint.LOGGING_ROOMS, modules)


@pytest.fixture(scope="module")
def house() -> list[Module]:
    modules = blueprint.read(LITEQ)
    assert len(modules) > 5, f"no package to look at in {LITEQ}"
    return modules


def assert_nothing(findings: list[str]) -> None:
    assert not findings, "\n  ".join(["", *findings])


# ── the house itself ────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_module_stands_on_a_floor(house: list[Module]) -> None:
    assert_nothing(blueprint.rooms_without_a_floor(house))


def test_imports_point_down(house: list[Module]) -> None:
    assert_nothing(blueprint.imports_that_point_up(house))


def test_edges_ask_only_the_front_door_and_never_each_other(house: list[Module]) -> None:
    assert_nothing(blueprint.edges_that_reach_inside(house))


def test_the_front_door_leads_to_no_edge(house: list[Module]) -> None:
    assert_nothing(blueprint.front_door_imports_edges(house))


def test_no_modules_import_each_other_not_even_late_or_for_types(house: list[Module]) -> None:
    assert_nothing(blueprint.import_cycles(house))


def test_only_the_sqlite_storage_knows_sqlite3(house: list[Module]) -> None:
    assert_nothing(imports_of_sqlite3(house))


def test_only_logs_and_the_programs_know_logging(house: list[Module]) -> None:
    assert_nothing(imports_of_logging(house))


def test_only_the_clock_reads_time_or_sleeps(house: list[Module]) -> None:
    assert_nothing(blueprint.readers_of_time(house))


def test_no_exception_to_a_rule_outlives_its_reason(house: list[Module]) -> None:
    assert_nothing(blueprint.exceptions_nobody_needs(house))


def test_no_module_is_called_utils(house: list[Module]) -> None:
    assert_nothing(blueprint.rooms_named_for_nothing(house))


def test_every_public_module_says_where_the_reader_stands(house: list[Module]) -> None:
    assert_nothing(blueprint.rooms_without_a_docstring(house))


def test_no_error_vanishes_without_a_word(house: list[Module]) -> None:
    assert_nothing(blueprint.errors_that_vanish(house))


def test_functions_are_short(house: list[Module]) -> None:
    assert_nothing(blueprint.functions_too_long(house))


# ── houses that break one rule ──────────────────────────────────────────────────────────────────────────────────────

SOUND = {
    "__init__.py": '"""The front door of a small house."""\nfrom liteq.app import LiteQ\n',
    "errors.py": '"""Every error of the house."""\n',
    "clock.py": '"""Reads the clock for everybody."""\nimport time\nnow = time.time\npause = time.sleep\n',
    "job.py": '"""One call of a task."""\nimport liteq.errors\nfrom datetime import datetime\nfrom_float = datetime\n',
    "logs.py": '"""Writes all the log lines."""\nimport logging\n',
    "app.py": '"""What a user holds in hand."""\nfrom liteq import job\nfrom .storage.base import Storage\n',
    "storage/__init__.py": '"""Where bytes are kept."""\n',
    "storage/base.py": '"""What every storage promises."""\nfrom ..errors import *\nclass Storage: ...\n',
    "storage/sqlite.py": '"""Keeps jobs in one file."""\nimport sqlite3\nfrom . import base\n',
    "consumer/__init__.py": '"""The program that runs jobs."""\nimport logging\n',
    "consumer/loading.py": '"""Finds the app by its path."""\nimport liteq.app\n',
    "cli/__init__.py": '"""The two commands of the house."""\n',
    "cli/main.py": '"""Reads what one typed."""\nfrom liteq import LiteQ\nfrom . import show\nimport liteq.consumer\n',
    "cli/show.py": '"""Prints what the app answers."""\nimport liteq.errors\n',
}

EVERY_RULE: Sequence[Rule] = (
    blueprint.rooms_without_a_floor,
    blueprint.imports_that_point_up,
    blueprint.edges_that_reach_inside,
    blueprint.front_door_imports_edges,
    blueprint.import_cycles,
    imports_of_sqlite3,
    imports_of_logging,
    blueprint.readers_of_time,
    blueprint.rooms_named_for_nothing,
    blueprint.rooms_without_a_docstring,
    blueprint.errors_that_vanish,
    blueprint.functions_too_long,
)

VIOLATIONS: Sequence[tuple[Rule, str, str]] = (
    (blueprint.rooms_without_a_floor, "attic.py", "import json"),
    (blueprint.imports_that_point_up, "errors.py", "from liteq.storage import base"),
    (blueprint.imports_that_point_up, "errors.py", "from liteq.storage.base import Storage"),
    (blueprint.imports_that_point_up, "errors.py", "from .storage.base import Storage"),
    (blueprint.imports_that_point_up, "storage/base.py", "import liteq.app"),
    (blueprint.imports_that_point_up, "storage/base.py", "from .. import app"),
    (blueprint.imports_that_point_up, "app.py", "def late():\n    from liteq.consumer import loading"),
    (blueprint.imports_that_point_up, "app.py", "import importlib\nimportlib.import_module('liteq.consumer.loading')"),
    (blueprint.imports_that_point_up, "app.py", "from liteq import LiteQ"),
    (blueprint.imports_that_point_up, "consumer/__init__.py", "from liteq.cli import main"),
    (blueprint.edges_that_reach_inside, "cli/main.py", "from liteq.app import LiteQ"),
    (blueprint.edges_that_reach_inside, "cli/main.py", "from liteq import app"),
    (blueprint.edges_that_reach_inside, "cli/main.py", "from liteq.consumer.loading import load_app"),
    (blueprint.edges_that_reach_inside, "cli/main.py", "from liteq.consumer import loading"),
    (blueprint.edges_that_reach_inside, "testing.py", "from liteq.cli import main"),
    (blueprint.edges_that_reach_inside, "contrib/django.py", "import liteq.contrib.asgi"),
    (blueprint.front_door_imports_edges, "__init__.py", "def late():\n    import liteq.cli.main"),
    (blueprint.import_cycles, "errors.py", "from liteq.job import Job\nfrom liteq.clock import now"),
    (blueprint.import_cycles, "errors.py", "def late():\n    from liteq.job import Job"),
    (blueprint.import_cycles, "errors.py", "import typing\nif typing.TYPE_CHECKING:\n    import liteq.job"),
    (imports_of_sqlite3, "app.py", "import sqlite3"),
    (imports_of_sqlite3, "storage/base.py", "def late():\n    from sqlite3 import Connection"),
    (imports_of_logging, "app.py", "import logging.handlers as handlers"),
    (imports_of_logging, "storage/sqlite.py", "from logging import getLogger"),
    (blueprint.readers_of_time, "job.py", "import time\ntime.monotonic()"),
    (blueprint.readers_of_time, "job.py", "import time as watch\nwatch.time_ns()"),
    (blueprint.readers_of_time, "job.py", "from time import sleep as rest"),
    (blueprint.readers_of_time, "job.py", "now = datetime.now"),
    (blueprint.readers_of_time, "job.py", "import datetime as dates\ndates.datetime.now()"),
    (blueprint.readers_of_time, "job.py", "import datetime\ndatetime.date.today()"),
    (blueprint.readers_of_time, "consumer/__init__.py", "import asyncio\nasync def nap(): await asyncio.sleep(1)"),
    (blueprint.rooms_named_for_nothing, "storage/utils.py", "import json"),
    (blueprint.rooms_named_for_nothing, "consumer/_helpers.py", "import json"),
    (blueprint.errors_that_vanish, "job.py", "try: later()\nexcept Exception: pass  # whatever it was"),
    (blueprint.errors_that_vanish, "job.py", "try: later()\nexcept (OSError, BaseException): ..."),
    (blueprint.errors_that_vanish, "job.py", "try: later()\nexcept:\n    pass"),
    (blueprint.errors_that_vanish, "job.py", "for x in y:\n    try: later()\n    except Exception: continue"),
    (blueprint.errors_that_vanish, "job.py", "try: later()\nexcept OSError:\n    pass"),
    (blueprint.errors_that_vanish, "job.py", "import contextlib\nwith contextlib.suppress(Exception): later()"),
    (blueprint.functions_too_long, "job.py", "def f():\n" + "    later()\n" * 36),
)


def build(directory: Path, rooms: Mapping[str, str]) -> list[Module]:
    """Writes a small house and reads it back."""
    for room, source in rooms.items():
        path = directory / "liteq" / room
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return blueprint.read(directory / "liteq")


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.__name__)
def test_a_sound_house_breaks_no_rule(rule: Rule, tmp_path: Path) -> None:
    assert rule(build(tmp_path, SOUND)) == []


@pytest.mark.parametrize(("rule", "room", "addition"), VIOLATIONS)
def test_a_broken_rule_is_noticed(rule: Rule, room: str, addition: str, tmp_path: Path) -> None:
    sound = SOUND.get(room, '"""A room that was added later."""\n')
    modules = build(tmp_path, {**SOUND, "job.py": SOUND["job.py"], room: f"{sound}{addition}\n"})
    findings = rule(modules)
    assert findings, f"{rule.__name__} does not see: {addition}"
    dotted = "liteq." + room.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    assert dotted.removesuffix(".__init__") in " ".join(findings)


@pytest.mark.parametrize("docstring", ["", '"""Jobs"""\n', '"""what it is about"""\n', "# A comment is not enough.\n"])
def test_a_room_without_a_sentence_is_noticed(docstring: str, tmp_path: Path) -> None:
    modules = build(tmp_path, {**SOUND, "job.py": f"{docstring}import json\n"})
    assert [finding.split()[0] for finding in blueprint.rooms_without_a_docstring(modules)] == ["liteq.job"]


def test_a_private_room_may_be_silent(tmp_path: Path) -> None:
    modules = build(tmp_path, {**SOUND, "storage/_pages.py": "import json\n"})
    assert blueprint.rooms_without_a_docstring(modules) == []


@pytest.mark.parametrize(
    "handler",
    [
        "except OSError:\n    pass  # it is gone already, which is what we wanted",
        "except OSError:\n    # it is gone already\n    pass",
        "# it may be gone already\nexcept OSError:\n    pass",
        "except OSError:\n    raise",
        "except OSError:\n    continue",
        "except Exception as error:\n    report(error)",
    ],
)
def test_an_error_that_is_dropped_for_a_stated_reason_is_fine(handler: str, tmp_path: Path) -> None:
    modules = build(tmp_path, {**SOUND, "job.py": f"{SOUND['job.py']}try:\n    later()\n{handler}\n"})
    assert blueprint.errors_that_vanish(modules) == []


def test_giving_way_in_a_coroutine_is_not_a_sleep(tmp_path: Path) -> None:
    source = SOUND["app.py"] + "import asyncio\nasync def give_way(): await asyncio.sleep(0)\n"
    assert blueprint.readers_of_time(build(tmp_path, {**SOUND, "app.py": source})) == []


def test_an_allowance_that_nothing_needs_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = {("liteq.app", "sqlite3"): "for a type", ("liteq.app", "time.perf_counter"): "for a run time"}
    monkeypatch.setattr(blueprint, "STDLIB_ALLOWED", allowed)
    monkeypatch.setattr(blueprint, "UPWARD_ALLOWED", {("liteq.app", "liteq.consumer"): "starts one"})
    monkeypatch.setattr(blueprint, "DROPPING_ALLOWED", {"liteq.job": "it cannot matter"})
    assert len(blueprint.exceptions_nobody_needs(build(tmp_path, SOUND))) == 4


def test_a_listed_allowance_silences_its_finding_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blueprint, "STDLIB_ALLOWED", {("liteq.app", "sqlite3"): "for a type"})
    monkeypatch.setattr(blueprint, "UPWARD_ALLOWED", {})
    monkeypatch.setattr(blueprint, "DROPPING_ALLOWED", {})
    both = {**SOUND, "app.py": SOUND["app.py"] + "import sqlite3\n", "job.py": SOUND["job.py"] + "import sqlite3\n"}
    modules = build(tmp_path, both)
    assert [finding.partition(":")[0] for finding in imports_of_sqlite3(modules)] == ["liteq.job"]
    assert blueprint.exceptions_nobody_needs(modules) == []


def test_the_length_of_a_function_leaves_out_what_explains_it(tmp_path: Path) -> None:
    source = 'def f(\n    a,\n):\n    """Says\n\n    much."""\n    # why\n\n    return a\n'
    promise = 'def promised(a):\n    """Subclasses do it."""\n    raise NotImplementedError\n'
    modules = build(tmp_path, {"job.py": source + promise})
    assert blueprint.function_lengths(modules) == [(4, "liteq.job:1 f")]


def test_a_median_above_the_measure_is_noticed(tmp_path: Path) -> None:
    functions = "".join(f"def f{number}():\n" + "    later()\n" * 10 for number in range(10))
    assert blueprint.functions_too_long(build(tmp_path, {"job.py": functions}))[0].startswith("median 11")
