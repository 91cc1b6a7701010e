"""Every statement of every verb fails once, in several ways; and once the process dies there.

A statement may fail with an error of SQLite's, which may have rolled back by itself, or with an exception that has
nothing to do with it (no memory, Ctrl-C, one thrown into the thread) before or after it. Whatever it is: no job is lost
or stands in two states, nothing is half done, no transaction stays open, and the same call works a moment later.

The statements are counted by a connection that is told where to strike, so a new one is tested the day it is written;
``-rP`` lists them. A new verb needs a line in VERBS.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from contract import NOW, bring, claim, decided, new, outcome
from unique_contract import keys_hold

from liteq import LiteQ, gates, lifecycle, rates
from liteq import plan as waiting
from liteq.clock import ManualClock
from liteq.errors import StorageError
from liteq.gates import Need
from liteq.job import FINISHED, Attempt, Ending, Job, JobFilter, JobState, Progress
from liteq.lifecycle import PAUSE_MARK, REVOKE_MARK, Policy
from liteq.plan import Edge, Rule, Terms
from liteq.schedule import Schedule
from liteq.step import Step, StepKind, StepState
from liteq.storage import schema
from liteq.storage.base import ClaimRequest, Fire, Storage
from liteq.storage.cargo import Parcel, Piece, Tie
from liteq.storage.gates import Gates
from liteq.storage.plans import Plans
from liteq.storage.sqlite import SqliteStorage
from liteq.storage.sqlite_guest import Guest
from liteq.unique import Unique

SHARED_MEMORY = Path("/dev/shm")
STRUCK = 42  # the exit code of a child that died where it should

MINE = "mine"

# ── a connection that fails where it is told to ──────────────────────────────────────────────────────────────────────

connect = sqlite3.connect


class Plan:
    """Where to strike, and how; and what has been reached.

    Args:
        at: the number of the moment, from 0; each statement has two, before and after it.
        strike: what happens then; ``None``: nothing, they are counted.
    """

    def __init__(self, at: int = -1, strike: Callable[[sqlite3.Connection], None] | None = None) -> None:
        self.moments: list[str] = []
        self._at = at
        self._strike = strike

    def reach(self, moment: str, connection: sqlite3.Connection) -> None:
        self.moments.append(moment)
        if self._strike is not None and len(self.moments) - 1 == self._at:
            self._strike(connection)


plan = Plan()


class Faulty(sqlite3.Connection):
    """A connection that follows the plan of the moment."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        plan.reach(f"before {_outline(sql)}", self)
        cursor = super().execute(sql, *parameters)
        plan.reach(f"after {_outline(sql)}", self)
        return cursor

    def executemany(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        plan.reach(f"before {_outline(sql)}", self)
        cursor = super().executemany(sql, *parameters)
        plan.reach(f"after {_outline(sql)}", self)
        return cursor

    def rollback(self) -> None:
        plan.reach("before rollback", self)
        super().rollback()


def _by_plan(name: str) -> Callable[..., sqlite3.Cursor]:
    """The method of `Guest`, whose connections have statements that do not go through the connection's own methods."""
    method = getattr(Guest, name)

    def follow(self: Guest, sql: str, *parameters: Any) -> sqlite3.Cursor:
        plan.reach(f"before {_outline(sql)}", self.connection)
        cursor: sqlite3.Cursor = method(self, sql, *parameters)
        plan.reach(f"after {_outline(sql)}", self.connection)
        return cursor

    return follow


def _outline(sql: str) -> str:
    return " ".join(sql.split())[:70]


@contextmanager
def planned(chosen: Plan) -> Iterator[Plan]:
    global plan
    before, plan = plan, chosen
    try:
        yield chosen
    finally:
        plan = before


@pytest.fixture(autouse=True)
def _faulty_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, **{"factory": Faulty} | options))
    for name in ("execute", "executemany"):
        monkeypatch.setattr(Guest, name, _by_plan(name))


def _error(code: int, message: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error


def _io_error(_connection: sqlite3.Connection) -> None:
    raise _error(sqlite3.SQLITE_IOERR, "disk I/O error")


def _full(connection: sqlite3.Connection) -> None:
    """As SQLite often does: the transaction is rolled back with the statement."""
    if connection.in_transaction:
        sqlite3.Cursor(connection).execute("ROLLBACK")
    raise _error(sqlite3.SQLITE_FULL, "database or disk is full")


def _no_memory(_connection: sqlite3.Connection) -> None:
    raise MemoryError


def _interrupt(_connection: sqlite3.Connection) -> None:
    raise KeyboardInterrupt


def _die(_connection: sqlite3.Connection) -> None:
    os._exit(STRUCK)


# ── what it happens to ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Scene:
    """An open storage with jobs in every state, a live owner that runs some, and a dead one that did.

    Args:
        path: of the file.
        storage: on it.
        owner: the live one.
        dead: the dead one.
        running: the jobs of the live one.
    """

    path: Path
    storage: SqliteStorage
    owner: int = 0
    dead: int = 0
    running: tuple[Job, ...] = ()

    def engine(self) -> Any:
        app = LiteQ(self.storage, clock=ManualClock(NOW + 100), failed_ttl=10, result_ttl=10)
        app.task(name="known")(lambda: None)
        return app.engine


def schedule(name: str, **fields: Any) -> Schedule:
    return Schedule(name, "known", "every 60 s", created=NOW, **fields)


def _build(path: Path) -> None:
    """Jobs in every state and marks of every kind; then the owner of some dies."""
    with closing(SqliteStorage(path, durability="normal")) as storage:
        for state in (JobState.SUCCEEDED, JobState.FAILED, JobState.BLOCKED, JobState.REVOKED, JobState.EXPIRED):
            bring(storage, state)
        bring(storage, JobState.SUCCEEDED)
        for owner in storage.owners():  # `bring` has registered one
            storage.unregister(owner.number)
        storage.add([new("known", queue="dead") for _ in range(3)])
        dead = storage.register({"pid": 1})
        jobs = storage.turn([], ClaimRequest(dead, 3, ("dead",)), NOW).jobs
        storage.turn([], None, NOW, {(jobs[0].seq, jobs[0].claim): Progress(1.0, 2.0, "half")})
        storage.swap(f"{PAUSE_MARK}paused", None, "1")
        storage.swap(f"{REVOKE_MARK}revoked", None, lifecycle.Revocation(None, True).dumps())
        storage.swap(lifecycle.cancel_mark(jobs[1]), None, "stop")
        storage.add([new("known", queue=MINE) for _ in range(6)])
        storage.add([new(queue="other", priority=number % 2) for number in range(4)])
        storage.add([new("late", due=NOW + 3), new(id="late", due=NOW + 4), new(due=NOW + 9999)])
        storage.add([new("known", expires=NOW + 50)])
        storage.put_schedule(schedule("due", due=NOW - 1, slot=NOW - 1))
        storage.put_schedule(schedule("used", due=NOW + 60, slot=NOW + 60))


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A directory with a file that nobody has open."""
    memory = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    with TemporaryDirectory(prefix="liteq-test-", dir=memory) as name:
        (Path(name) / "template").mkdir()
        _build(Path(name) / "template" / "queue.db")
        yield Path(name) / "template"


Stage = Callable[[], "Scene"]


@pytest.fixture
def copies(template: Path) -> Iterator[Callable[[], Path]]:
    """Makes copies of the template; gives the file's path."""
    made: list[Path] = []

    def copy() -> Path:
        made.append(template.with_name(f"copy-{len(made)}"))
        return Path(shutil.copytree(template, made[-1])) / "queue.db"

    yield copy
    for directory in made:
        shutil.rmtree(directory)


def set_up(path: Path) -> Scene:
    """Open the file and have a live owner run some jobs."""
    storage = SqliteStorage(path, durability="normal")
    [dead] = storage.dead_owners()
    owner = storage.register({"pid": os.getpid()})
    jobs = storage.turn([], ClaimRequest(owner, 4, (MINE,)), NOW).jobs
    return Scene(path, storage, owner, dead, tuple(jobs))


API = gates.named_rate("api", rates.parse("1/s"))


def at_gates(path: Path) -> Scene:
    """Jobs and callers hold slots, and stand in line; one holder is dead."""
    scene = set_up(path)
    take = scene.storage.gates.take
    take(gates.lock("of the dead", 1), NOW, owner=scene.dead)
    take(gates.lock("of a caller", 1), NOW, owner=scene.owner)
    take(API, NOW, owner=scene.owner)
    take(API, NOW, owner=scene.owner, wait=True)
    waiting = take(gates.lock("of a caller", 1), NOW, job=_claim_of(scene.running[0]), wait=True)
    jobs = scene.storage.turn([], _request_through_gates(scene), NOW).jobs
    assert jobs and waiting.number and not waiting.held
    scene.running = (*scene.running, *jobs)
    return scene


def with_keys(path: Path) -> Scene:
    """Running jobs of a key with and without a follower, one that waits, and one that has ended and may not return."""
    scene = set_up(path)
    scene.storage.add([keyed(key, queue="keys") for key in ("run", "over", "lead")])
    running, over, _ = scene.storage.turn([], ClaimRequest(scene.owner, 3, ("keys",)), NOW).jobs
    scene.storage.apply([lifecycle.decide(over, Policy(), outcome(over, Ending.FAILED), NOW)], NOW)
    scene.storage.add([keyed("run"), keyed("wait"), keyed("over")])
    scene.running = (*scene.running, running, over)
    return scene


def keyed(key: str, on_duplicate: Any = "replace", **fields: Any) -> Job:
    return new("keyed", unique=Unique(key, on_duplicate=on_duplicate), **fields)


def _end_the_followed(scene: Scene) -> object:
    running = scene.running[-2]
    ended = lifecycle.decide(running, Policy(), outcome(running, Ending.FAILED), NOW + 1)
    return scene.storage.turn([ended], ClaimRequest(scene.owner, 9, ("default",)), NOW + 1)


def _bring_back(scene: Scene) -> object:
    """Several that have ended, one of which may not come back."""
    return scene.engine().change_all(JobFilter(states=FINISHED), lifecycle.requeue)


def _claim_of(job: Job) -> tuple[int, int]:
    return job.seq, job.claim


def _request_through_gates(scene: Scene) -> ClaimRequest:
    """One job of this task at a time, and each needs a lock as well."""
    pace = gates.rate_limit("known", rates.parse("1/s burst 2"), None)
    needs = {"known": lambda job: (gates.limit("known", 1, None), pace, gates.lock("x", 2))}
    return ClaimRequest(scene.owner, 9)._replace(needs=needs)


def with_steps(path: Path) -> Scene:
    """Jobs have recorded steps, and wait: the first that runs is about to, the second has been sent what it wants."""
    scene = set_up(path)
    first, second, third, fourth = scene.running
    for job in scene.running:
        assert scene.storage.record_step(job.seq, job.claim, _step())
    scene.storage.send(second.seq, "paid", b"1", NOW)
    for job, delay in ((third, None), (fourth, 60.0)):
        scene.storage.await_event(job.seq, job.claim, _wait(), NOW)
        scene.storage.apply([decided(job, Ending.SUSPENDED, awaits="paid", delay=delay)], NOW)
    scene.storage.apply([decided(first, Ending.SUCCEEDED)], NOW)
    return scene


def _step(name: str = "charge") -> Step:
    return Step(StepKind.STEP, name, 1, StepState.DONE, 0, 1, NOW, None, b"1")


def _wait(due: float | None = None) -> Step:
    return Step(StepKind.WAIT, "paid", 1, StepState.WAITING, 1, 1, NOW, due)


def _await(due: float | None = None, job: int = 1) -> Callable[[Scene], object]:
    def call(scene: Scene) -> object:
        one = scene.running[job]
        return scene.storage.await_event(one.seq, one.claim, _wait(due), NOW)

    return call


def _begin_to_wait(scene: Scene) -> object:
    """One job whose event has come meanwhile, and one that waits."""
    first, second, *_ = scene.running
    scene.storage.send(first.seq, "paid", None, NOW)
    moves = [decided(job, Ending.SUSPENDED, awaits="paid") for job in (first, second)]
    return scene.storage.apply(moves, NOW)


def _from_start(scene: Scene) -> object:
    [done] = [job for job in scene.storage.find(JobFilter()) if job.seq == scene.running[0].seq]
    move = lifecycle.requeue(done, NOW, from_start=True)
    return None if move is None else scene.storage.apply([move], NOW)


PLANNED = "planned"


def with_plans(path: Path) -> Scene:
    """Two jobs run; one waits for both, another one follows that, a third handles its failure. What a fourth had waited
    for has failed, and a fifth waits for its turn at a lock.
    """
    scene = set_up(path)
    jobs = [new("known", queue=PLANNED) for _ in range(7)]
    edges = [Edge(2, ~0, Rule.END, True), Edge(2, ~1, Rule.END, True), Edge(3, ~2), Edge(4, ~2, Rule.FAILURE)]
    edges += [Edge(6, ~5, passes=True)]
    terms = {2: Terms("[[2]]"), 3: Terms(None, 5.0, 60.0), 4: Terms(), 6: Terms("[1]")}
    scene.storage.add(jobs, plan=waiting.Plan(edges, terms))
    running = scene.storage.turn([], ClaimRequest(scene.owner, 3, (PLANNED,)), NOW).jobs
    scene.storage.apply([decided(running[2], Ending.FAILED, error_type="ValueError", message="no")], NOW)
    scene.running = tuple(running)
    return scene


def _follow(scene: Scene) -> object:
    """The last prerequisite ends, another one failed before; its dependent is claimed by the same turn."""
    ended = [
        decided(scene.running[0], Ending.FAILED, error_type="ValueError", message="no"),
        decided(scene.running[1], Ending.SUCCEEDED, result=b"5"),
    ]
    return scene.storage.turn(ended, ClaimRequest(scene.owner, 9, (PLANNED,)), NOW + 1)


def _break(scene: Scene) -> object:
    """What others wait for is revoked, and what had ended a plan is requeued."""
    by_seq = {job.seq: job for job in scene.storage.find(JobFilter(queue=PLANNED))}
    callback = by_seq[scene.running[0].seq + 2]
    failed = by_seq[scene.running[2].seq]
    moves = [lifecycle.revoke(callback, NOW), lifecycle.requeue(failed, NOW)]
    return scene.storage.apply([move for move in moves if move is not None], NOW)


def _add_plan(scene: Scene) -> object:
    """After some that run, one that has failed, and each other."""
    jobs = [new("known", queue=PLANNED, expires=NOW + 50) for _ in range(4)]
    edges = [Edge(0, scene.running[0].seq), Edge(1, ~0, passes=True), Edge(2, scene.running[2].seq), Edge(3, ~2)]
    terms = {0: Terms(None, None, 50.0), 1: Terms("[1]"), 2: Terms(), 3: Terms()}
    return scene.storage.add(jobs, plan=waiting.Plan(edges, terms))


def untouched(path: Path) -> Scene:
    """Nothing is open yet."""
    return Scene(path, SqliteStorage(path, durability="normal"))


def fresh(path: Path) -> Scene:
    """There is no file yet."""
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    return untouched(path)


def of_version_1(path: Path) -> Scene:
    """The file was made by the first version, and holds a job."""
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    with closing(connect(path)) as connection:
        connection.executescript(schema.MIGRATIONS[0])
        connection.execute("INSERT INTO liteq_meta VALUES ('schema', 1)")
        connection.execute(
            "INSERT INTO liteq_job (rnd, queue, task, priority, created) VALUES (1, 'default', 'task', 0, ?)", (NOW,)
        )
        connection.commit()
    return untouched(path)


# ── the verbs ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Verb:
    """A call, and on what.

    Args:
        call: it.
        stage: sets up the scene.
        whole: it is one transaction: where it fails, nothing has changed.
    """

    call: Callable[[Scene], object]
    stage: Callable[[Path], Scene] = set_up
    whole: bool = True


def _turn(scene: Scene) -> object:
    """Everything at once: successes, a retry, an end, one given back, progress, promotion, claims from two queues."""
    done, failed, ended, back = scene.running
    retry = Policy(retries=1)
    decisions = [
        decided(done, Ending.SUCCEEDED, result=b"5"),
        decided(failed, Ending.FAILED, policy=retry, error_type="ValueError", message="no"),
        decided(ended, Ending.FAILED, error_type="ValueError", message="no"),
        decided(back, Ending.INTERRUPTED),
    ]
    steps = {(back.seq, back.claim): Progress(1.0, None, "")}
    request = ClaimRequest(scene.owner, 8, ("other", "default", MINE))
    return scene.storage.turn(decisions, request, NOW + 5, steps)


def _tell_progress(scene: Scene) -> object:
    job = scene.running[0]
    return scene.storage.turn([], None, NOW, {(job.seq, job.claim): Progress(1.0, 2.0, "half")})


def _turn_of_successes(scene: Scene) -> object:
    """As the engine settles them."""
    engine = scene.engine()
    ended = [_ended(job) for job in scene.running]
    return engine.round(ended, ClaimRequest(scene.owner, 10))


def _turn_with_a_stale_one(scene: Scene) -> object:
    stale = scene.running[0]._replace(claim=77)
    return scene.engine().round([_ended(job) for job in (*scene.running[1:], stale)], ClaimRequest(scene.owner, 1))


def _ended(job: Job) -> Any:
    from liteq.engine import Ended
    from liteq.job import Outcome

    return Ended(job, Outcome(job.seq, job.claim, Ending.SUCCEEDED, NOW, NOW + 1, b"5"))


def _apply(scene: Scene) -> object:
    """Revoke, requeue, reschedule, unblock; one of them uses up a mark."""
    one_of_each = {job.state: job for job in scene.storage.find(JobFilter())}
    rules = {
        JobState.READY: lambda job: lifecycle.revoke(job, NOW),
        JobState.SCHEDULED: lambda job: lifecycle.reschedule(job, NOW + 20, NOW),
        JobState.BLOCKED: lambda job: lifecycle.unblock(job, NOW),
        JobState.FAILED: lambda job: lifecycle.requeue(job, NOW),
        JobState.EXPIRED: lambda job: lifecycle.requeue(job, NOW),
        JobState.REVOKED: lambda job: lifecycle.restore(job, NOW),
    }
    transitions = [rules[state](job) for state, job in one_of_each.items() if state in rules]
    mark = (f"{REVOKE_MARK}revoked", lifecycle.Revocation(None, True).dumps())
    consuming = lifecycle.release(scene.running[0])._replace(target=JobState.REVOKED, finished=NOW, consume=mark)
    return scene.storage.apply([consuming, *transitions], NOW)


def _remove(scene: Scene) -> object:
    return scene.storage.remove(JobFilter(states=frozenset({JobState.SUCCEEDED, JobState.FAILED})))


def _remove_the_newest(scene: Scene) -> object:
    newest = scene.storage.find(JobFilter(newest_first=True, limit=1))[0]
    scene.storage.apply([move] if (move := lifecycle.revoke(newest, NOW)) else [], NOW)
    return scene.storage.remove(JobFilter(states=frozenset({JobState.REVOKED})))


def _change_schedule(scene: Scene) -> object:
    [stored] = scene.storage.schedules("used")
    return scene.storage.put_schedule(stored._replace(paused=True))


def _fire(scene: Scene) -> object:
    """A slot that becomes two jobs, of which one has to wait; a schedule that has changed meanwhile; one that makes
    none."""
    [due], [used] = scene.storage.schedules("due"), scene.storage.schedules("used")
    jobs = [new(id="slot 1"), new(id="slot 2")._replace(state=JobState.BLOCKED, reason="after job slot 1")]
    later = due._replace(due=NOW + 59, slot=NOW + 59, looked=NOW, runs=2)
    stale = used._replace(version=77)
    return scene.storage.fire([Fire(later, jobs), Fire(stale, [new(id="never")]), Fire(used, [])])


def _leave_gates(scene: Scene) -> object:
    """A job that held slots ends, and others are let in."""
    return scene.engine().round([_ended(scene.running[-1])], _request_through_gates(scene))


def _give_back(scene: Scene) -> object:
    """A job that took a token was not begun, and the next token has come."""
    request = _request_through_gates(scene)
    return scene.storage.turn([lifecycle.release(scene.running[-1])], request, NOW + 1)


def _take(need: Need, *, wait: bool = False) -> Callable[[Scene], object]:
    return lambda scene: scene.storage.gates.take(need, NOW, owner=scene.owner, wait=wait)


def _leave_gate(scene: Scene) -> object:
    """The first place that somebody holds."""
    return scene.storage.gates.leave(1, NOW)


def _watch(scene: Scene) -> object:
    with scene.storage.watch() as watch:
        return watch.changed()


def _add_on_a_connection(scene: Scene) -> object:
    """In a transaction of the app's own, which writes as well and goes on if the call fails."""
    with closing(sqlite3.connect(scene.path, isolation_level=None)) as connection:
        try:
            sqlite3.Cursor(connection).execute("BEGIN")
            scene.storage.add([new(), new(id="late"), new(id="c")], connection)
            sqlite3.Cursor(connection).execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                sqlite3.Cursor(connection).execute("COMMIT")
            raise
    return None


def _settle_in_its_own_transaction(scene: Scene) -> object:
    """A job that holds slots writes, enqueues and succeeds, as its worker does it."""
    job = scene.running[-1]
    own = scene.storage.transaction(job)
    try:
        own.begin()
        own.mark()
        own.add([new(), new(id="late"), new(id="own")])
        own.mark()
        success = lifecycle.succeed(job, _ended(job).outcome)
        return own.settle(success, NOW + 1) or scene.storage.get(job.id)
    except sqlite3.Error as error:  # of the job's own statements
        raise StorageError(str(error)) from error
    finally:
        own.abandon("its worker is done with it")


def _abandon_its_own_transaction(scene: Scene) -> object:
    job = scene.running[0]
    own = scene.storage.transaction(job)
    try:
        own.add([new(id="own")])
        scene.storage.end_transaction(job, "it failed")
    finally:
        own.abandon("its worker is done with it")
    return None


def _batch(scene: Scene) -> object:
    app = LiteQ(scene.storage)
    task = app.task(name="known")(lambda: None)
    with app.batch():
        task()
        task.using(delay=5)()
        task.using(id=f"batch {len(app.jobs(limit=None))}")()
    return None


def _unload(scene: Scene) -> object:
    pieces: list[Piece] = []
    scene.storage.unload(pieces.append)
    return pieces


def _take_in(scene: Scene) -> object:
    """Jobs of every kind; what one waits for is there, and has failed."""
    failed = Job(1, scene.running[2].id, "known", JobState.FAILED, finished=NOW)
    step = Step(StepKind.STEP, "s", 1, StepState.DONE, 1, 1, NOW)
    attempt = Attempt(1, Ending.FAILED, NOW, NOW)
    done = Job(3, "taken", "known", JobState.SUCCEEDED, finished=NOW, result=b"5", attempts=(attempt,))
    parcels = [
        Parcel(failed),
        Parcel(Job(2, "2-00000000aa", "known", JobState.READY), "taken", True, None, (step,), (("paid", b"1"),)),
        Parcel(done, awaits=("paid", 1)),
        Parcel(failed._replace(seq=4, id="its end"), terms=Terms(), ties=(Tie(1, Rule.SUCCESS, False),), cause=1),
    ]
    follower = Job(5, "follower", "known", JobState.BLOCKED, reason="waits until job x has ended")
    parcels.append(Parcel(follower, terms=Terms(), ties=(Tie(1, Rule.SUCCESS, False),)))
    return scene.storage.take_in(parcels, [schedule("taken")], {f"{PAUSE_MARK}taken": "1"}, NOW)


def _reopen(scene: Scene) -> object:
    scene.storage.close()
    return scene.storage.counts()


def _upkeep_with_room_to_give_back(scene: Scene) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("liteq.storage.sqlite.SPARE_PAGES", -1)
        patch.setattr("liteq.storage.sqlite.VACUUM_PAGES", 2)
        patch.setattr("liteq.storage.sqlite_connection.RESTART_ABOVE", 0)
        scene.storage.upkeep()


VERBS: dict[str, Verb] = {
    "the first use of a path": Verb(lambda scene: scene.storage.add([new()]), fresh),
    "the first use of a file": Verb(lambda scene: scene.storage.counts(), untouched),
    "the first use of a file of version 1": Verb(lambda scene: scene.storage.add([new()]), of_version_1, whole=False),
    "add one": Verb(lambda scene: scene.storage.add([new()])),
    "add many": Verb(lambda scene: scene.storage.add([new() for _ in range(93)])),
    "add with ids": Verb(lambda scene: scene.storage.add([new(id="a"), new(id="late"), new(id="b")])),
    "add a batch": Verb(_batch),
    "add on a connection": Verb(_add_on_a_connection),
    "add one of a free key": Verb(lambda scene: scene.storage.add([keyed("free")]), with_keys),
    "add: known, changed, following": Verb(
        lambda scene: scene.storage.add([keyed("wait", "return"), keyed("wait", due=NOW + 9), keyed("run"), new()]),
        with_keys,
    ),
    "add: follow": Verb(lambda scene: scene.storage.add([keyed("lead")]), with_keys),
    "remove: jobs with keys": Verb(lambda scene: scene.storage.remove(JobFilter()), with_keys),
    "turn: let follow": Verb(_end_the_followed, with_keys),
    "bring back": Verb(_bring_back, with_keys, whole=False),
    "ahead": Verb(lambda scene: scene.storage.ahead(scene.running[-1].seq + 3)),
    "rival": Verb(lambda scene: scene.storage.rival(scene.running[-1].seq), with_keys),
    "transaction": Verb(_settle_in_its_own_transaction, at_gates),
    "end_transaction": Verb(_abandon_its_own_transaction),
    "turn: claim": Verb(lambda scene: scene.storage.turn([], ClaimRequest(scene.owner, 9), NOW)),
    "turn: promote": Verb(lambda scene: scene.storage.turn([], None, NOW + 5)),
    "turn: progress": Verb(_tell_progress),
    "turn: everything": Verb(_turn),
    "turn: successes": Verb(_turn_of_successes),
    "turn: one was taken over": Verb(_turn_with_a_stale_one),
    "apply": Verb(_apply),
    "get": Verb(lambda scene: scene.storage.get("late")),
    "find": Verb(lambda scene: scene.storage.find(JobFilter())),
    "find the running jobs of an owner": Verb(lambda scene: scene.storage.find(JobFilter(owner=scene.dead))),
    "finished": Verb(lambda scene: scene.storage.finished([1, 2, 999])),
    "standing": Verb(lambda scene: scene.storage.standing([1, scene.running[0].seq, 999])),
    "counts": Verb(lambda scene: scene.storage.counts()),
    "queues": Verb(lambda scene: scene.storage.queues()),
    "reasons": Verb(lambda scene: scene.storage.reasons()),
    "next_due": Verb(lambda scene: scene.storage.next_due()),
    "remove": Verb(_remove),
    "outdated": Verb(lambda scene: scene.storage.outdated({JobState.SUCCEEDED: NOW + 9}, 0, 10, 10)),
    "discard": Verb(lambda scene: scene.storage.discard(range(1, 50))),
    "remove the newest": Verb(_remove_the_newest, whole=False),
    "marks": Verb(lambda scene: scene.storage.marks()),
    "swap: set": Verb(lambda scene: scene.storage.swap("key", None, "value")),
    "swap: change": Verb(lambda scene: scene.storage.swap(f"{PAUSE_MARK}paused", "1", "2")),
    "swap: remove": Verb(lambda scene: scene.storage.swap(f"{PAUSE_MARK}paused", "1", None)),
    "schedules": Verb(lambda scene: scene.storage.schedules()),
    "put_schedule: new": Verb(lambda scene: scene.storage.put_schedule(schedule("new", due=NOW + 60))),
    "put_schedule: change": Verb(_change_schedule),
    "drop_schedule": Verb(lambda scene: scene.storage.drop_schedule("used")),
    "due_schedules": Verb(lambda scene: scene.storage.due_schedules(NOW, "boot", 10)),
    "next_expiry": Verb(lambda scene: scene.storage.next_expiry(0.0)),
    "next_schedule": Verb(lambda scene: scene.storage.next_schedule()),
    "fire": Verb(_fire),
    "record_step": Verb(
        lambda scene: scene.storage.record_step(scene.running[1].seq, scene.running[1].claim, _step("new")), with_steps
    ),
    "record_step_at_once": Verb(
        lambda scene: scene.storage.record_step_at_once(scene.running[1].seq, scene.running[1].claim, _step("new")),
        with_steps,
    ),
    "steps": Verb(lambda scene: scene.storage.steps(scene.running[1].seq), with_steps),
    "await_event: it has come": Verb(_await(), with_steps),
    "await_event: it has not": Verb(_await()),
    "await_event: too late": Verb(_await(NOW)),
    "send": Verb(lambda scene: scene.storage.send(scene.running[1].seq, "other", None, NOW), with_steps),
    "send: wake a blocked job": Verb(
        lambda scene: scene.storage.send(scene.running[2].seq, "paid", b"1", NOW), with_steps
    ),
    "send: wake a scheduled job": Verb(
        lambda scene: scene.storage.send(scene.running[3].seq, "paid", b"1", NOW), with_steps
    ),
    "apply: begin to wait": Verb(_begin_to_wait, whole=False),
    "apply: from the start": Verb(_from_start, with_steps),
    "remove: with steps": Verb(_remove, with_steps),
    "schema_version": Verb(lambda scene: scene.storage.schema_version()),
    "turn: claim through gates": Verb(lambda scene: scene.storage.turn([], _request_through_gates(scene), NOW)),
    "turn: leave gates": Verb(_leave_gates, at_gates),
    "turn: give a token back": Verb(_give_back, at_gates),
    "turn: a token comes": Verb(lambda scene: scene.storage.turn([], None, NOW + 1), at_gates),
    "gates.take: a token": Verb(_take(gates.named_rate("free", rates.parse("1/s"))), at_gates),
    "gates.take: wait for a token": Verb(_take(API, wait=True), at_gates),
    "gates.take: no token": Verb(_take(API), at_gates),
    "gates.level": Verb(lambda scene: scene.storage.gates.level(API), at_gates),
    "gates.next_token": Verb(lambda scene: scene.storage.gates.next_token(API.gate), at_gates),
    "gates.take": Verb(_take(gates.lock("free", 1)), at_gates),
    "gates.take: wait": Verb(_take(gates.lock("of a caller", 1), wait=True), at_gates),
    "gates.take: put the dead out": Verb(_take(gates.lock("of the dead", 1)), at_gates),
    "gates.take: for a job": Verb(
        lambda scene: scene.storage.gates.take(gates.lock("y", 1), NOW, job=_claim_of(scene.running[1])), at_gates
    ),
    "gates.leave": Verb(_leave_gate, at_gates),
    "gates.settled": Verb(lambda scene: scene.storage.gates.settled([1, 2, 3, 99]), at_gates),
    "gates.holds": Verb(lambda scene: scene.storage.gates.holds(1), at_gates),
    "gates.held_by": Verb(lambda scene: scene.storage.gates.held_by("lock:x", scene.running[-1].seq), at_gates),
    "gates.put_out": Verb(lambda scene: scene.storage.gates.put_out(scene.dead, NOW), at_gates),
    "gates.put_out_dead": Verb(lambda scene: scene.storage.gates.put_out_dead(NOW), at_gates, whole=False),
    "gates.clear": Verb(lambda scene: scene.storage.gates.clear(["lock:x", "lock:of a caller"], NOW), at_gates),
    "gates.wake": Verb(lambda scene: scene.storage.gates.wake(NOW + 100, everywhere=True), at_gates),
    "gates.states": Verb(lambda scene: scene.storage.gates.states(), at_gates),
    "add a plan": Verb(_add_plan, with_plans),
    "turn: plans go on": Verb(_follow, with_plans),
    "apply: plans end and begin again": Verb(_break, with_plans),
    "remove what plans need": Verb(_remove, with_plans),
    "plans.jobs": Verb(lambda scene: scene.storage.plans.jobs([1, 2, 999]), with_plans),
    "plans.steps": Verb(lambda scene: scene.storage.plans.steps([scene.running[0].seq + 3]), with_plans),
    "plans.awaited": Verb(lambda scene: scene.storage.plans.awaited([scene.running[0].seq + 3], 9), with_plans),
    "plans.prerequisites": Verb(lambda scene: scene.storage.plans.prerequisites(scene.running[0].seq + 2), with_plans),
    "plans.dependents": Verb(lambda scene: scene.storage.plans.dependents(scene.running[0].seq), with_plans),
    "unload": Verb(_unload, with_plans),
    "take_in": Verb(_take_in, with_plans),
    "register": Verb(lambda scene: scene.storage.register({"pid": 1})),
    "unregister: busy": Verb(lambda scene: scene.storage.unregister(scene.owner)),
    "unregister: idle": Verb(lambda scene: scene.storage.unregister(scene.storage.register({})), whole=False),
    "owners": Verb(lambda scene: scene.storage.owners()),
    "begun": Verb(lambda scene: scene.storage.begun(scene.dead)),
    "forget": Verb(lambda scene: scene.storage.forget(scene.dead)),
    "watch": Verb(_watch),
    "barrier": Verb(lambda scene: scene.storage.barrier()),
    "upkeep": Verb(lambda scene: scene.storage.upkeep()),
    "upkeep with pages to give back": Verb(_upkeep_with_room_to_give_back, whole=False),
    "close and reopen": Verb(_reopen),
    "recover": Verb(lambda scene: scene.engine().recover(), whole=False),
    "expire": Verb(lambda scene: scene.engine().expire(NOW + 100, float("-inf")), whole=False),
    "unpark": Verb(lambda scene: scene.engine().unpark(), whole=False),
    "drop stale marks": Verb(lambda scene: scene.engine().drop_stale_marks(), whole=False),
    "revoke all": Verb(lambda scene: scene.engine().change_all(JobFilter(), lifecycle.revoke), whole=False),
    "revoke one": Verb(lambda scene: scene.engine().revoke("late"), whole=False),
    "revoke a running one": Verb(lambda scene: scene.engine().revoke(scene.running[0].id), whole=False),
    "revoke a task": Verb(lambda scene: scene.engine().revoke_task("known", None, False), whole=False),
}


def test_no_verb_is_left_out() -> None:
    """Each verb of the contract is called by one of these, as its name says."""
    named = " ".join(VERBS)
    verbs = [name for name, verb in vars(Storage).items() if callable(verb) and not name.startswith("_")]
    for part, kind in (("gates", Gates), ("plans", Plans)):
        verbs += [f"{part}.{name}" for name, verb in vars(kind).items() if callable(verb) and not name.startswith("_")]
    assert [name for name in verbs if name not in named and name not in _WITHOUT_STATEMENTS] == []


#: Verbs that ask the database nothing, are made of those above, or only read (for a backup: test_upkeep.py).
_WITHOUT_STATEMENTS = {"lock_fd", "dead_owners", "backup", "examine"}

# ── the tests ────────────────────────────────────────────────────────────────────────────────────────────────────────


def moments(name: str, path: Path, which: tuple[str, ...] = ("before", "after")) -> Iterator[tuple[int, str]]:
    """What a call reaches where nothing goes wrong: number and description. Of one that comes again and again, the
    first and the last time."""
    scene = VERBS[name].stage(path)
    with closing(scene.storage), planned(Plan()) as counting:
        VERBS[name].call(scene)
    found = counting.moments
    for at, moment in enumerate(found):
        if moment.startswith(which) and (moment not in found[:at] or moment not in found[at + 1 :]):
            print(f"{name}: {moment}")
            yield at, f"{name}: {moment}"


def strike(verb: Verb, scene: Scene, at: int, how: Callable[[sqlite3.Connection], None]) -> None:
    """Call it, and fail there; liteq must say so in its own words."""
    expected = {_io_error: StorageError, _full: StorageError, _no_memory: MemoryError, _interrupt: KeyboardInterrupt}
    with planned(Plan(at, how)), suppress(expected[how]):
        verb.call(scene)


def assert_idle(scene: Scene, where: str) -> None:
    """Nobody holds anything any more."""
    connections = scene.storage._connections
    assert not any(one.in_transaction for one in connections._all), f"a transaction is open: {where}"
    assert not connections._readers_lent, where
    assert not connections.turnstile.is_mine(), where
    if scene.path.exists():
        with closing(connect(scene.path, isolation_level=None, timeout=0)) as foreign:
            foreign.execute("BEGIN IMMEDIATE")  # raises if any process of us still has it
            foreign.execute("ROLLBACK")


def content(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    if not path.exists():
        return {}
    with closing(connect(path)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'liteq%' AND type = 'table'")
        return {
            name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr)
            for (name,) in names.fetchall()
        }


def assert_conserved(path: Path, where: str, before: set[int]) -> None:
    """Each job stands in exactly one state, and none of ``before`` is gone."""
    tables = content(path)
    if not tables:
        return  # it had not been opened yet
    jobs = {row[0] for row in tables["liteq_job"] if row[1] >= 0}
    with closing(connect(path)) as connection:
        places = " UNION ALL ".join(
            f"SELECT id FROM liteq_{table}" for table in ("ready", "scheduled", "running", "blocked", "done")
        )
        assert Counter(row[0] for row in connection.execute(places)) == Counter(jobs), where
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], where
        if "liteq_dependent" in tables:  # it comes with the first use of a file of an earlier version
            assert connection.execute(_MISCOUNTED).fetchall() == [], where
    assert before <= jobs, where
    if "liteq_unique" in tables:
        keys_hold(path)
    running = {row[0] for row in tables["liteq_running"]}
    assert {row[0] for row in tables["liteq_progress"]} <= running, where


#: Dependents that do not stand where what they miss says, or for which it was counted wrongly.
_MISCOUNTED = """
SELECT * FROM (
    SELECT id, missing, (
        SELECT count(*) FROM liteq_edge e JOIN liteq_job j ON j.id = e.prior
        WHERE e.job = d.id AND j.rnd >= 0 AND e.prior NOT IN (SELECT id FROM liteq_done)
    ) AS counted, EXISTS (
        SELECT 1 FROM liteq_ready WHERE id = d.id UNION SELECT 1 FROM liteq_scheduled WHERE id = d.id
    ) AS risen, EXISTS (
        SELECT 1 FROM liteq_blocked WHERE id = d.id AND reason LIKE 'waits until job %'
    ) AS blocked
    FROM liteq_dependent d
) WHERE missing <> counted OR (risen AND missing > 0) OR (blocked AND missing = 0)
"""


def seqs(path: Path) -> set[int]:
    return {row[0] for row in content(path).get("liteq_job", ())}


def kept(name: str, before: set[int]) -> set[int]:
    """Which jobs must still be there: a purge is meant to take some."""
    return set() if name.startswith(("remove", "discard")) else before


@pytest.mark.parametrize("how", [_io_error, _full], ids=["I/O error", "full"])
@pytest.mark.parametrize("name", VERBS)
def test_an_error_of_sqlite_at_any_statement_changes_nothing_and_the_same_call_works_next(
    name: str, how: Callable[[sqlite3.Connection], None], copies: Callable[[], Path]
) -> None:
    verb = VERBS[name]
    for at, where in moments(name, copies(), ("before",)):
        scene = verb.stage(copies())
        with closing(scene.storage):
            before = content(scene.path)
            strike(verb, scene, at, how)
            assert_idle(scene, where)
            if verb.whole and verb.stage in (set_up, at_gates, with_keys, with_steps, with_plans):
                assert content(scene.path) == before, where
            assert_conserved(scene.path, where, kept(name, {row[0] for row in before.get("liteq_job", ())}))
            verb.call(scene)
            assert_conserved(scene.path, where, set())


@pytest.mark.parametrize(
    "how", [pytest.param(_no_memory, id="no memory", marks=pytest.mark.slow), pytest.param(_interrupt, id="interrupt")]
)
@pytest.mark.parametrize("name", VERBS)
def test_an_exception_between_two_statements_leaves_no_transaction_open(
    name: str, how: Callable[[sqlite3.Connection], None], copies: Callable[[], Path]
) -> None:
    verb = VERBS[name]
    for at, where in moments(name, copies()):
        scene = verb.stage(copies())
        with closing(scene.storage):
            before = seqs(scene.path)
            strike(verb, scene, at, how)
            assert_idle(scene, where)
            assert_conserved(scene.path, where, kept(name, before))
            verb.call(scene)
            assert_conserved(scene.path, where, set())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("name", VERBS)
def test_a_process_that_dies_at_any_statement_leaves_a_file_that_works(name: str, copies: Callable[[], Path]) -> None:
    verb = VERBS[name]
    for at, where in moments(name, copies(), ("before", "after COMMIT", "after INSERT")):
        path = copies()
        before = set() if verb.stage in (fresh, of_version_1) else seqs(path)
        assert die_in_a_child(verb, path, at) == STRUCK, where
        assert_conserved(path, where, kept(name, before))
        with closing(SqliteStorage(path, durability="normal")) as storage:
            recover(storage)
            [job] = storage.add([new(queue="next")])
            next_owner = storage.register({})
            assert [one.seq for one in claim(storage, owner=next_owner, queues=("next",))] == [job.seq]
        assert_conserved(path, where, kept(name, before))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_plan_goes_on_wherever_its_consumer_dies_and_nothing_in_it_runs_twice(copies: Callable[[], Path]) -> None:
    name = "turn: plans go on"
    for at, where in moments(name, copies(), ("before", "after")):
        path = copies()
        assert die_in_a_child(VERBS[name], path, at) == STRUCK, where
        with closing(SqliteStorage(path, durability="normal")) as storage:
            recover(storage)
            jobs = storage.find(JobFilter(queue=PLANNED))
            owner = storage.register({})
            ran: list[int] = []
            late = NOW + 1000
            while claimed := storage.turn([], ClaimRequest(owner, 9, (PLANNED,)), late).jobs:
                ran += [job.seq for job in claimed]
                assert all(len(job.inputs.values) == 2 for job in claimed if job.inputs is not None), where
                storage.apply([decided(job, Ending.SUCCEEDED, late, result=b"1") for job in claimed], late)
                late += 10
            assert len(ran) == len(set(ran)), where
            assert jobs[2].seq in ran, where
            assert [storage.get(job.id).state for job in jobs[2:5]] == ["succeeded", "succeeded", "revoked"], where  # type: ignore[union-attr]
        assert_conserved(path, where, {job.seq for job in jobs})


def die_in_a_child(verb: Verb, path: Path, at: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            scene = verb.stage(path)
            with planned(Plan(at, _die)):
                verb.call(scene)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def recover(storage: SqliteStorage) -> None:
    """What the next consumer does."""
    engine = LiteQ(storage).engine
    engine.recover()
    assert storage.counts()[JobState.RUNNING] == 0
    assert storage.owners() == []


def test_a_rollback_that_fails_too_is_made_up_for_before_the_next_statement(copies: Callable[[], Path]) -> None:
    """Otherwise the next job would be stored into a transaction that nobody ever commits."""
    scene = set_up(copies())
    storage = scene.storage

    class Twice(Plan):
        def reach(self, moment: str, connection: sqlite3.Connection) -> None:
            if moment.lower().startswith(("before commit", "before rollback")):
                raise KeyboardInterrupt

    with closing(storage):
        with planned(Twice()), pytest.raises(KeyboardInterrupt):
            storage.swap("key", None, "value")
        [job] = storage.add([new()])
        assert_idle(scene, "after the next call")
        assert job.seq in seqs(scene.path)
        assert storage.marks("key") == {}
