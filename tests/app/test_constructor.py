"""LiteQ(...): each option, what is refused, which file a path means, and that nothing happens before it must."""

from __future__ import annotations

import re
import sys
import textwrap
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from workbench import run_command, run_python, work

from liteq import ConfigurationError, LiteQ, MemoryStorage, PickleSerializer, SqliteStorage
from liteq.clock import ManualClock

# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"storage": 5}, TypeError, "storage"),
        ({"storage": b"queue.db"}, TypeError, "storage"),
        ({"storage": None}, TypeError, "storage"),
        ({"storage": ""}, ValueError, "storage"),
        ({"storage": "a\0b"}, ValueError, "storage"),
        ({"name": 5}, TypeError, "name"),
        ({"name": ""}, ValueError, "name"),
        ({"immediate": "yes"}, TypeError, "immediate"),
        ({"immediate": 1}, TypeError, "immediate"),
        ({"serializer": "yaml"}, ValueError, "serializer"),
        ({"serializer": 5}, TypeError, "serializer"),
        ({"serializer": PickleSerializer}, TypeError, "serializer"),
        ({"timezone": "Mars/Olympus"}, ValueError, "timezone"),
        ({"timezone": 2}, TypeError, "timezone"),
        ({"durability": "off"}, ValueError, "durability"),
        ({"durability": "normal", "storage": MemoryStorage()}, ValueError, "durability"),
        ({"durability": "full", "storage": SqliteStorage("q.db")}, ValueError, "has no effect beside a Storage"),
        ({"durability": "off", "storage": ":memory:"}, ValueError, "durability"),
        ({"result_ttl": -1}, ValueError, "result_ttl"),
        ({"result_ttl": "1d"}, TypeError, "result_ttl"),
        ({"result_ttl": float("nan")}, ValueError, "result_ttl"),
        ({"result_ttl": True}, TypeError, "result_ttl"),
        ({"failed_ttl": -1}, ValueError, "failed_ttl"),
        ({"failed_ttl": timedelta(days=-1)}, ValueError, "failed_ttl"),
        ({"failed_ttl": [1]}, TypeError, "failed_ttl"),
        ({"max_payload": 0}, ValueError, "max_payload"),
        ({"max_payload": 1.5}, TypeError, "max_payload"),
        ({"max_payload": None}, TypeError, "max_payload"),
        ({"clock": 5}, TypeError, "clock"),
        ({"clock": datetime.now}, TypeError, "clock"),
        ({"color": "red"}, TypeError, "color"),
        ({"Immediate": True}, TypeError, "Immediate"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=rf"\b{word}\b"):
        LiteQ(**options)


def test_only_the_storage_may_be_given_without_its_name() -> None:
    with pytest.raises(TypeError):
        LiteQ("queue.db", "shop")  # type: ignore[misc]


def test_the_defaults_are_those_of_the_documentation() -> None:
    app = LiteQ()
    assert Path(app.storage.location) == Path(__file__).with_name("liteq.db")
    assert (app.name, app.immediate) == ("liteq", False)
    assert (app.result_ttl, app.failed_ttl) == (86_400, 14 * 86_400)
    assert app.engine.timezone is UTC


def test_durations_may_be_timedeltas_or_none() -> None:
    app = LiteQ(":memory:", result_ttl=timedelta(hours=1), failed_ttl=None)
    assert (app.result_ttl, app.failed_ttl) == (3600, None)
    assert LiteQ(":memory:", result_ttl=0).result_ttl == 0


@pytest.mark.parametrize("zone", ["Europe/Berlin", ZoneInfo("Europe/Berlin"), timezone(timedelta(hours=1))])
def test_a_time_zone_is_a_name_or_a_tzinfo(zone: Any) -> None:
    app = LiteQ(":memory:", timezone=zone)
    task = app.task(_nothing)
    eta = datetime(2030, 1, 1, 12)  # naive
    assert task.schedule(eta=eta).job().run_at == datetime(2030, 1, 1, 11, tzinfo=UTC)


def _nothing() -> None: ...


def test_a_storage_object_is_taken_as_it_is() -> None:
    storage = MemoryStorage()
    assert LiteQ(storage).storage is storage


def test_memory_by_name_is_a_memory_of_ones_own() -> None:
    first, second = LiteQ(":memory:"), LiteQ(":memory:")
    assert isinstance(first.storage, MemoryStorage)
    assert first.storage is not second.storage


def test_the_name_is_in_its_repr() -> None:
    assert repr(LiteQ(":memory:", name="shop")) == "<LiteQ 'shop' on :memory:>"


@pytest.mark.parametrize("serializer", ["json", "pickle", PickleSerializer()])
def test_arguments_go_through_the_chosen_serializer(serializer: Any) -> None:
    app = LiteQ(":memory:", serializer=serializer, clock=ManualClock())
    task = app.task(name="double")(lambda x: [x, x])
    result = task((1, "ü"))
    work(app)
    assert result.get(0) == [(1, "ü"), (1, "ü")]
    assert app.jobs()[0].payload.startswith(b"\x80") is (serializer != "json")  # pickle's first byte


def test_durability_reaches_the_file(directory: Path) -> None:
    for durability, level in (("full", 2), ("normal", 1)):
        app = LiteQ(directory / f"{durability}.db", durability=durability)  # type: ignore[arg-type]
        assert isinstance(app.storage, SqliteStorage)
        assert app.storage._connections.writer().execute("PRAGMA synchronous").fetchone() == (level,)
        app.close()


# ── the environment ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *[(value, True) for value in ("1", "true", "TRUE", "yes", "on", " 1 ")],
        *[(value, False) for value in ("0", "false", "no", "off", "", " ")],
    ],
)
def test_immediate_mode_can_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: bool
) -> None:
    monkeypatch.setenv("LITEQ_IMMEDIATE", value)
    assert LiteQ("never.db").immediate is expected
    assert LiteQ("never.db", immediate=True).immediate


def test_nonsense_in_the_environment_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITEQ_IMMEDIATE", "maybe")
    with pytest.raises(ConfigurationError, match=r"LITEQ_IMMEDIATE .*'maybe'"):
        LiteQ("never.db")


# ── paths ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_making_an_app_and_tasks_touches_no_disk(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    app = LiteQ(directory / "queue.db")
    task = app.task(retries=3)(_nothing)
    task.using(delay=5)
    task.s()
    repr(app)
    app.signal()(lambda *_: None)
    app.close()
    assert list(directory.iterdir()) == []


def test_making_an_app_does_not_ask_whether_its_path_makes_sense() -> None:
    app = LiteQ("/no/such/directory/queue.db")
    assert app.storage.location == "/no/such/directory/queue.db"


SHOP = """
    from pathlib import Path
    from liteq import LiteQ
    app = LiteQ({argument})

    @app.task
    def sell(thing):
        return thing
"""


@pytest.fixture
def shop(directory: Path) -> Path:
    """A package with an app on a relative path."""
    package = directory / "company" / "shop"
    package.mkdir(parents=True)
    (directory / "elsewhere").mkdir()
    (package / "__init__.py").touch()
    return package


@pytest.mark.parametrize("argument", ["'data.db'", "Path('data.db')", "'./data.db'", "Path('sub', '..', 'data.db')"])
def test_a_relative_path_is_beside_the_module_from_wherever_it_is_imported(shop: Path, argument: str) -> None:
    (shop / "tasks.py").write_text(textwrap.dedent(SHOP.format(argument=argument)))
    if "sub" in argument:
        (shop / "sub").mkdir()
    program = "import sys; sys.path.insert(0, sys.argv[1]); from shop.tasks import app, sell; sell(1); app.close()"
    for cwd in (shop, shop.parent, shop.parent.parent / "elsewhere", Path("/")):
        run_python(program, shop.parent, cwd=cwd)
    left = {file.name for file in shop.rglob("data.db*")}
    assert left == {"data.db", "data.db-liteq"}
    app = LiteQ(shop / "data.db")
    assert len(app.jobs()) == 4
    app.close()


def test_a_script_and_a_module_mean_the_same_file_and_the_same_task(shop: Path) -> None:
    (shop / "tasks.py").write_text(
        textwrap.dedent(SHOP.format(argument="'data.db'"))
        + "if __name__ == '__main__':\n    print(sell(1).job().task)\n    app.close()\n"
    )
    elsewhere = shop.parent.parent / "elsewhere"
    assert run_command([sys.executable, str(shop / "tasks.py")], elsewhere) == "tasks.sell\n"
    assert run_command([sys.executable, "tasks.py"], shop) == "tasks.sell\n"
    assert run_command([sys.executable, "-m", "shop.tasks"], shop.parent) == "shop.tasks.sell\n"
    program = "from tasks import app; print(len(app.jobs())); app.close()"
    assert run_python(f"import sys; sys.path.insert(0, {str(shop)!r}); {program}", cwd=elsewhere) == "3\n"


def test_a_package_run_as_a_program_names_its_tasks_as_an_import_would(shop: Path) -> None:
    """So that ``liteq_consumer company.__main__.app`` knows them."""
    (shop / "__main__.py").write_text(
        textwrap.dedent(SHOP.format(argument="'data.db'"))
        + "if __name__ == '__main__':\n    print(sell(1).job().task)\n    app.close()\n"
    )
    ran = run_command([sys.executable, "-m", "shop"], shop.parent)
    imported = run_python("from shop.__main__ import app, sell; print(sell.name); app.close()", cwd=shop.parent)
    assert ran == imported


def test_without_a_module_a_relative_path_is_in_the_current_directory(directory: Path) -> None:
    printed = run_python("from liteq import LiteQ; print(LiteQ('queue.db').storage.location)", cwd=directory)
    assert printed.strip() == str(directory / "queue.db")


def test_a_path_made_in_a_function_belongs_to_the_module_of_the_function(shop: Path) -> None:
    (shop / "factory.py").write_text("from liteq import LiteQ\ndef make(): return LiteQ('data.db')\n")
    program = "from shop.factory import make; print(make().storage.location)"
    assert run_python(program, cwd=shop.parent).strip() == str(shop / "data.db")


def test_a_subclass_may_have_its_own_constructor(shop: Path) -> None:
    (shop / "base.py").write_text(
        "from liteq import LiteQ\n"
        "class Queue(LiteQ):\n    def __init__(self, *args):\n        super().__init__(*args, name='mine')\n"
    )
    (shop / "data").mkdir()
    (shop / "data" / "__init__.py").write_text("from shop.base import Queue\napp = Queue('data.db')\n")
    program = "from shop.data import app; print(app.name, app.storage.location)"
    assert run_python(program, cwd=shop.parent).strip() == f"mine {shop / 'data' / 'data.db'}"


def test_the_current_directory_at_a_later_time_plays_no_part(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = LiteQ("queue.db")
    monkeypatch.chdir(directory)
    assert app.storage.location == str(Path(__file__).with_name("queue.db"))


def test_a_tilde_is_the_home_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(directory))
    assert LiteQ("~/queue.db").storage.location == str(directory / "queue.db")


# ── close ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_closed_app_opens_again_at_the_next_use(on_file: LiteQ) -> None:
    task = on_file.task(name="task")(lambda: 1)
    on_file.close()
    result = task()
    on_file.close()
    on_file.close()
    assert result.state == "ready"
    on_file.close()
    work(on_file)
    assert result.get(0) == 1


def test_close_lets_go_of_files_and_threads(directory: Path) -> None:
    said = run_python(
        """
        import sys, os, threading
        from pathlib import Path
        from liteq import LiteQ, ResultTimeout
        before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
        app = LiteQ(sys.argv[1])
        task = app.task(name="t")(lambda: 1)
        result = task()
        try:
            result.get(timeout=0.01)
        except ResultTimeout:
            pass
        app.close()
        after = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
        print(after - before, threading.active_count())
        """,
        directory / "queue.db",
    )
    assert said == "0 1\n"
    assert {file.name for file in directory.iterdir()} == {"queue.db", "queue.db-liteq"}


def test_close_wakes_whoever_waits(on_file: LiteQ) -> None:
    """He then opens the file anew and waits on, rather than hanging on something that is gone."""
    from concurrent.futures import ThreadPoolExecutor

    task = on_file.task(name="task")(lambda: 1)
    result = task()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(result.get, 20)
        with pytest.raises(TimeoutError):
            waiting.result(0.05)
        on_file.close()
        work(on_file)
        assert waiting.result(10) == 1


def test_the_message_of_an_unusable_file_comes_with_the_first_use(directory: Path) -> None:
    app = LiteQ(directory / "missing" / "queue.db")
    task = app.task(name="task")(lambda: 1)
    with pytest.raises(OSError, match=re.escape(str(directory / "missing"))):
        task()
    app.close()
