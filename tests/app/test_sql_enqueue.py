"""Jobs that are stored by SQL alone, through the view ``liteq_enqueue``."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liteq import JobState, JSONSerializer, LiteQ, SignedSerializer, TaskFailed

SHELL = shutil.which("sqlite3")


@pytest.fixture
def sql(on_file: LiteQ, directory: Path) -> Iterator[sqlite3.Connection]:
    """A connection of the app's own, that knows nothing of liteq."""
    on_file.counts()  # makes the file
    with closing(sqlite3.connect(directory / "queue.db", isolation_level=None)) as connection:
        yield connection


def enqueue(connection: sqlite3.Connection, into: str = "liteq_enqueue", **columns: Any) -> None:
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    connection.execute(f"INSERT INTO {into} ({names}) VALUES ({marks})", tuple(columns.values()))


# ── what is stored ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_the_same_job_as_one_that_python_enqueues(on_file: LiteQ, sql: sqlite3.Connection) -> None:
    @on_file.task(name="shop.mail")
    def mail(address: str, /, *, copies: int = 1) -> None: ...

    mail("a@b.c", copies=2)
    enqueue(sql, task="shop.mail", args='[ "a@b.c" ]', kwargs='{"copies": 2}')
    one, other = on_file.jobs()
    assert other.payload == one.payload
    assert other._replace(seq=one.seq, id=one.id, created=one.created) == one
    assert abs(other.created - time.time()) < 60


def test_a_consumer_wakes_and_runs_it(on_file: LiteQ, sql: sqlite3.Connection) -> None:
    ran = threading.Event()

    @on_file.task(name="shop.mail")
    def mail(address: str, copies: int) -> str:
        ran.set()
        return f"{copies} for {address}"

    with on_file.run_in_background(workers=1):
        on_file.enqueue(mail.s("first", 1)).get(timeout=10)  # the consumer is up, and sleeps from here on
        ran.clear()
        enqueue(sql, task="shop.mail", args='["a@b.c"]', kwargs='{"copies": 2}', id="order-7")
        assert ran.wait(5)  # it looks every 10 s without being told
        assert on_file.result("order-7").get(timeout=5) == "2 for a@b.c"


@pytest.mark.parametrize(
    ("columns", "after"),
    [
        ({"delay": 60}, 60),
        ({"delay": 0.5}, 0.5),
        ({"run_at": "2100-01-01T02:00:00+02:00"}, 4_102_444_800),
        ({"run_at": 4_102_444_800.25}, 4_102_444_800.25),
    ],
)
def test_a_time_may_be_given(on_file: LiteQ, sql: sqlite3.Connection, columns: dict[str, Any], after: float) -> None:
    enqueue(sql, task="t", **columns)
    [job] = on_file.jobs()
    assert job.state is JobState.SCHEDULED
    assert job.due is not None
    assert math.isclose(job.due, after if after > 1e6 else job.created + after, abs_tol=0.002)


@pytest.mark.parametrize("columns", [{"delay": 0}, {"run_at": "2000-01-01"}, {"run_at": 0}])
def test_what_is_due_already_is_ready(on_file: LiteQ, sql: sqlite3.Connection, columns: dict[str, Any]) -> None:
    enqueue(sql, task="t", **columns)
    assert on_file.jobs()[0].state is JobState.READY


def test_queue_priority_and_expiry_may_be_given(on_file: LiteQ, sql: sqlite3.Connection) -> None:
    enqueue(sql, task="t", queue="mail", priority=-3, expires=5)
    enqueue(sql, task="t", expires="2000-01-01")
    late, gone = on_file.jobs()
    assert (late.queue, late.priority) == ("mail", -3)
    assert late.expires == pytest.approx(late.created + 5)
    assert gone.expires == gone.created  # it has just passed, which is where consumers look


def test_an_id_of_the_callers_own_is_stored_once(on_file: LiteQ, sql: sqlite3.Connection) -> None:
    for args in ("[1]", "[2]"):
        enqueue(sql, task="t", args=args, id="order-7")
    [job] = on_file.jobs()
    assert (job.id, job.payload) == ("order-7", b"[[1],{}]")

    @on_file.task(name="t")
    def t(number: int) -> None: ...

    assert t.using(id="order-7")(3).job() == job


def test_ids_are_drawn_anew_for_each_row(on_file: LiteQ, sql: sqlite3.Connection) -> None:
    sql.execute(
        "INSERT INTO liteq_enqueue (task) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 500) "
        "SELECT 't' FROM n"
    )
    jobs = on_file.jobs(limit=None)
    assert len({job.id for job in jobs}) == len({job.id.partition("-")[2] for job in jobs}) == 500
    assert on_file.job(jobs[7].id) == jobs[7]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
_memory = sqlite3.connect(":memory:", isolation_level=None)


@given(args=st.lists(JSON, max_size=3), kwargs=st.dictionaries(st.text(), JSON, max_size=3))
def test_the_serializer_reads_what_any_json_writer_writes(args: list[Any], kwargs: dict[str, Any]) -> None:
    from liteq.storage import schema

    if not schema.version(_memory):
        schema.migrate(_memory, ":memory:")
    enqueue(_memory, task="t", args=json.dumps(args), kwargs=json.dumps(kwargs, ensure_ascii=False))
    payload = _memory.execute("SELECT payload FROM liteq_job ORDER BY id DESC").fetchone()[0]
    assert JSONSerializer().loads_call(payload) == (args, kwargs)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────

TASK = "task must be the name of a task"
ARGS, KWARGS = "args must be a text that holds a JSON array", "kwargs must be a text that holds a JSON object"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"args": "[]"}, TASK),
        ({"task": ""}, TASK),
        ({"task": "a\0b"}, TASK),
        ({"task": b"t"}, TASK),
        ({"task": "x" * 256}, TASK),
        ({"task": "t", "args": "{}"}, ARGS),
        ({"task": "t", "args": "[1"}, ARGS),
        ({"task": "t", "args": "['a']"}, ARGS),
        ({"task": "t", "args": b"[]"}, ARGS),
        ({"task": "t", "args": 5}, ARGS),
        ({"task": "t", "kwargs": "[]"}, KWARGS),
        ({"task": "t", "kwargs": "null"}, KWARGS),
        ({"task": "t", "queue": ""}, "queue must be a text"),
        ({"task": "t", "priority": 1.5}, "priority must be an integer"),
        ({"task": "t", "priority": "high"}, "priority must be an integer"),
        ({"task": "t", "delay": -1}, "delay must be a number of seconds"),
        ({"task": "t", "delay": "10"}, "delay must be a number of seconds"),
        ({"task": "t", "delay": float("inf")}, "delay must be a number of seconds"),
        ({"task": "t", "run_at": "tomorrow"}, "run_at must be"),
        ({"task": "t", "run_at": b"\0"}, "run_at must be"),
        ({"task": "t", "run_at": 1e300}, "run_at must be"),
        ({"task": "t", "delay": 1, "run_at": 1}, "delay or run_at, not both"),
        ({"task": "t", "expires": "soon"}, "expires must be"),
        ({"task": "t", "expires": -1}, "expires must be"),
        ({"task": "t", "expires": b""}, "expires must be"),
        ({"task": "t", "id": ""}, "id must be a text"),
        ({"task": "t", "id": 7}, "id must be a text"),
        ({"task": "t", "id": "12-0123456789"}, "id looks like one that liteq has generated"),
    ],
)
def test_what_could_not_run_is_refused(
    on_file: LiteQ, sql: sqlite3.Connection, columns: dict[str, Any], words: str
) -> None:
    with pytest.raises(sqlite3.IntegrityError, match=f"^liteq_enqueue: {words}"):
        enqueue(sql, **columns)
    assert on_file.jobs() == []


def test_one_bad_row_of_several_stores_none(on_file: LiteQ, sql: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        sql.execute("INSERT INTO liteq_enqueue (task) VALUES ('t'), ('t'), (NULL)")
    assert on_file.jobs() == []


def test_a_database_in_another_encoding_is_refused(directory: Path) -> None:
    with closing(sqlite3.connect(directory / "utf16.db", isolation_level=None)) as connection:
        connection.executescript("PRAGMA encoding = 'UTF-16'; CREATE TABLE guest (name);")
        app = LiteQ(directory / "utf16.db")
        app.counts()
        app.close()
        with pytest.raises(sqlite3.IntegrityError, match="liteq_enqueue: the database must be encoded as UTF-8"):
            enqueue(connection, task="t")


@pytest.mark.parametrize(
    ("serializer", "words"), [("pickle", "cannot be unpickled"), (SignedSerializer("k" * 16), "not signed")]
)
def test_an_app_that_does_not_write_json_fails_the_job_and_says_why(
    directory: Path, serializer: Any, words: str
) -> None:
    app = LiteQ(directory / "queue.db", serializer=serializer, durability="normal")

    @app.task(name="t", retries=3)
    def t(text: str) -> str:
        return text

    app.counts()
    with closing(sqlite3.connect(directory / "queue.db", isolation_level=None)) as connection:
        enqueue(connection, task="t", args='["cos\\nsystem\\n"]', id="from-sql")
    with app.run_in_background(workers=1), pytest.raises(TaskFailed, match=words) as caught:
        app.result("from-sql").get(timeout=10)
    assert caught.value.error_type == "SerializationError"
    assert len(app.job("from-sql").attempts) == 1  # it would read the same bytes again
    app.close()


# ── from where ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_trigger_of_the_apps_own_enqueues(on_file: LiteQ, sql: sqlite3.Connection) -> None:
    sql.executescript(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, email);"
        "CREATE TRIGGER tell AFTER INSERT ON orders BEGIN"
        "  INSERT INTO liteq_enqueue (task, args, id)"
        "  VALUES ('shop.mail', json_array(new.email, new.id), 'order-' || new.id);"
        "END;"
    )
    sql.execute("INSERT INTO orders (email) VALUES ('a@b.c'), ('d@e.f')")
    sql.execute("BEGIN")
    sql.execute("INSERT INTO orders (email) VALUES ('never')")
    sql.execute("ROLLBACK")
    assert [(job.id, job.payload) for job in on_file.jobs()] == [
        ("order-1", b'[["a@b.c",1],{}]'),
        ("order-2", b'[["d@e.f",2],{}]'),
    ]


def test_the_file_may_be_attached(on_file: LiteQ, sql: sqlite3.Connection, directory: Path) -> None:
    with closing(sqlite3.connect(directory / "own.db", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        connection.execute("ATTACH ? AS q", (str(directory / "queue.db"),))
        connection.execute("BEGIN")
        connection.execute("INSERT INTO orders DEFAULT VALUES")
        enqueue(connection, "q.liteq_enqueue", task="t", args="[1]")
        assert on_file.jobs() == []
        connection.execute("COMMIT")
    assert [job.payload for job in on_file.jobs()] == [b"[[1],{}]"]


@pytest.mark.skipif(SHELL is None, reason="there is no sqlite3 shell here (Debian: apt-get install sqlite3)")
def test_the_shell_enqueues(on_file: LiteQ, sql: sqlite3.Connection, directory: Path) -> None:
    statement = """INSERT INTO liteq_enqueue(task, args) VALUES ('shop.mail', '["a@b.c"]');"""
    command = [str(SHELL), str(directory / "queue.db")]
    subprocess.run([*command, statement], check=True, timeout=30)
    assert [job.payload for job in on_file.jobs()] == [b'[["a@b.c"],{}]']
    wrong = subprocess.run(
        [*command, "INSERT INTO liteq_enqueue(task) VALUES ('')"], capture_output=True, text=True, timeout=30
    )
    assert wrong.returncode != 0
    assert "liteq_enqueue: task must be" in wrong.stderr
    dumped = subprocess.run([*command, ".dump"], capture_output=True, text=True, check=True, timeout=30).stdout
    restored = directory / "restored.db"
    subprocess.run([str(SHELL), str(restored)], input=dumped, text=True, check=True, timeout=60)
    with closing(sqlite3.connect(restored, isolation_level=None)) as connection:
        enqueue(connection, task="t")
        assert connection.execute("SELECT count(*) FROM liteq_job").fetchone() == (2,)
