"""Gates against a small model: never more than the slots or the rate, in order of rank, nobody forgotten; all storages
alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from liteq import gates, lifecycle, rates
from liteq.gates import KEPT_FOR, Need, Needs
from liteq.job import Ending, Job, JobFilter, JobState, Outcome
from liteq.lifecycle import PAUSE_MARK, Policy, Transition
from liteq.storage.base import ClaimRequest, Storage
from liteq.storage.memory import MemoryStorage
from liteq.storage.sqlite import SqliteStorage

NOW = 1_700_000_000.0

LOCK = gates.lock("x", 2)
CALLED = gates.named_rate("api", rates.parse("3/s burst 2"))
#: The slots of each gate, and what jobs of each task need.
NEEDS_OF: dict[str, tuple[Need, ...]] = {
    "one": (gates.limit("one", 1, None),),
    "three": (gates.limit("three", 3, None),),
    "locked": (LOCK,),
    "both": (gates.limit("both", 2, None), LOCK),
    "paced": (gates.rate_limit("paced", rates.parse("1/s burst 2"), None),),
    "called": (CALLED,),
    "all": (gates.limit("all", 1, None), gates.rate_limit("all", rates.parse("2/s"), None), LOCK, CALLED),
    "rate first": (gates.rate_limit("rate first", rates.parse("2/s"), None), gates.limit("rate first", 1, None)),
    "free": (),
}
NEEDS: Needs = {task: (lambda job, needs=needs: needs) for task, needs in NEEDS_OF.items() if needs}
SLOTS = {need.gate: need.slots for needs in NEEDS_OF.values() for need in needs if need.rate is None}
RATES = {need.gate: need.rate for needs in NEEDS_OF.values() for need in needs if need.rate is not None}
#: Tasks that need one gate which nobody else needs: there, order can be told without knowing all.
ALONE = ("one", "three", "paced")

RUNNING = frozenset({JobState.RUNNING})
WAITING = frozenset({JobState.READY, JobState.BLOCKED})

tasks = st.sampled_from(sorted(NEEDS_OF))
queues = st.sampled_from(["a", "b"])


class GatesMachine(RuleBasedStateMachine):
    """Storages through one sequence of moves; the model is what the jobs' own states say."""

    @initialize()
    def open(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        path = Path(self.directory.name) / "queue.db"
        self.storages: list[Storage] = [MemoryStorage(), SqliteStorage(path, durability="normal")]
        self.owners = [self.ask(lambda storage: storage.register({})) for _ in range(2)]
        self.now = NOW
        self.callers: list[list[int]] = []  # numbers of places, one for each storage
        self.cleared = False
        self.strict = True  # no queue was paused, and no slot has been offered to others
        self.starts: dict[str, list[float]] = {gate: [] for gate in RATES}  # since the clock was last set back

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            for storage in self.storages:
                storage.close()
            self.directory.cleanup()

    def ask(self, question: Callable[[Storage], Any]) -> Any:
        first, *others = [plain(question(storage)) for storage in self.storages]
        assert all(other == first for other in others), "the storages disagree"
        return first

    def find(self, states: frozenset[JobState], task: str | None = None) -> list[Job]:
        found: list[Job] = self.ask(lambda storage: storage.find(JobFilter(states=states, task=task)))
        return found

    def turn(self, moves: list[Transition], request: ClaimRequest | None) -> list[Job]:
        jobs: list[Job] = self.ask(lambda storage: storage.turn(moves, request, self.now).jobs)
        return jobs

    # ── moves ────────────────────────────────────────────────────────────────────────────────────────

    @rule(new=st.lists(st.tuples(tasks, st.integers(0, 1), queues), min_size=1, max_size=8))
    def add(self, new: list[tuple[str, int, str]]) -> None:
        jobs = [Job(0, "", task, JobState.READY, queue, priority, created=self.now) for task, priority, queue in new]
        self.ask(lambda storage: len(storage.add(jobs)))

    @rule(wanted=st.integers(1, 6), served=st.sampled_from([None, None, ("a",), ("b", "a")]), owner=st.integers(0, 1))
    def claim(self, wanted: int, served: tuple[str, ...] | None, owner: int) -> None:
        self.check_order(self.claimed([], wanted, served, owner), served)

    @rule(
        data=st.data(),
        ending=st.sampled_from([Ending.SUCCEEDED, Ending.FAILED, Ending.CRASHED, Ending.INTERRUPTED]),
        wanted=st.integers(0, 4),
    )
    def settle(self, data: st.DataObject, ending: Ending, wanted: int) -> None:
        running = self.find(RUNNING)
        if running:
            ended = data.draw(st.lists(st.sampled_from(running), min_size=1, max_size=3, unique_by=lambda job: job.seq))
            moves = [self.ended(job, ending) for job in ended]
            self.check_order(self.claimed(moves, wanted, None, 0), None)

    def claimed(self, moves: list[Transition], wanted: int, served: tuple[str, ...] | None, owner: int) -> list[Job]:
        request = ClaimRequest(self.owners[owner], wanted, served)._replace(needs=NEEDS)
        jobs = self.turn(moves, request if wanted else None)
        for job in jobs:
            self.started(need.gate for need in NEEDS_OF[job.task] if need.rate is not None)
        return jobs

    def started(self, gates: Iterable[str]) -> None:
        for gate in gates:
            self.starts[gate].append(self.now)

    @rule(data=st.data(), wanted=st.integers(0, 4))
    def give_back(self, data: st.DataObject, wanted: int) -> None:
        """Some of what was claimed in this very moment was not begun."""
        fresh = [job for job in self.find(RUNNING) if job.started == self.now]
        if not fresh:
            return
        back = data.draw(st.lists(st.sampled_from(fresh), max_size=3, unique_by=lambda job: job.seq))
        for job in back:
            for need in NEEDS_OF[job.task]:
                if need.rate is not None:
                    self.starts[need.gate].remove(self.now)
        self.claimed([lifecycle.release(job) for job in back], wanted, None, 0)

    def ended(self, job: Job, ending: Ending) -> Transition:
        outcome = Outcome(job.seq, job.claim, ending, self.now, self.now)
        return lifecycle.decide(job, Policy(max_crashes=2), outcome, self.now)

    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        waiting = self.find(WAITING)
        if waiting:
            move = lifecycle.revoke(data.draw(st.sampled_from(waiting)), self.now)
            assert move is not None
            self.turn([move], None)

    @rule(need=st.sampled_from([LOCK, CALLED]), wait=st.booleans(), owner=st.integers(0, 1))
    def take(self, need: Need, wait: bool, owner: int) -> None:
        takens = [storage.gates.take(need, self.now, owner=self.owners[owner], wait=wait) for storage in self.storages]
        if takens[0].number == 0:
            self.started([CALLED.gate])
            assert takens == [takens[0]] * len(takens), "the storages disagree"
            return
        assert len({taken._replace(number=None) for taken in takens}) == 1, "the storages disagree"
        if takens[0].number is not None:  # each storage counts for itself
            self.callers.append([taken.number or 0 for taken in takens])

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.callers:
            numbers = self.callers.pop(data.draw(st.integers(0, len(self.callers) - 1)))
            left = [
                storage.gates.leave(number, self.now) for storage, number in zip(self.storages, numbers, strict=True)
            ]
            assert len(set(left)) == 1, "the storages disagree"

    @rule()
    def clear(self) -> None:
        self.cleared = True
        self.ask(lambda storage: storage.gates.clear([LOCK.gate], self.now))

    @rule(seconds=st.sampled_from([0.1, 0.5, KEPT_FOR + 0.1, -3600.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if seconds < 0:
            self.starts = {gate: [] for gate in RATES}
        self.strict = self.strict and 0 < seconds < 1
        self.ask(lambda storage: storage.gates.wake(self.now))

    @rule(queue=queues)
    def pause_or_resume(self, queue: str) -> None:
        self.strict = False
        if not self.ask(lambda storage: storage.swap(PAUSE_MARK + queue, None, "1")):
            self.ask(lambda storage: storage.swap(PAUSE_MARK + queue, "1", None))
            self.ask(lambda storage: storage.gates.wake(self.now, everywhere=True))

    # ── what must hold ───────────────────────────────────────────────────────────────────────────────

    def check_order(self, claimed: list[Job], served: tuple[str, ...] | None) -> None:
        """Whoever serves every queue takes of each task those that rank first."""
        if served is not None or not self.strict:
            return
        for task in ALONE:
            ranks = [rank(job) for job in claimed if job.task == task]
            others = [rank(job) for job in self.find(WAITING, task)]
            assert ranks == sorted(ranks)
            assert not ranks or not others or max(ranks) < min(others)

    @invariant()
    def never_more_than_the_slots(self) -> None:
        if not hasattr(self, "storages"):
            return
        states = self.ask(lambda storage: storage.gates.states())
        for state in states:
            if state.name in SLOTS:
                assert len(state.holders) <= state.slots == SLOTS[state.name]
        running = self.find(RUNNING)
        for gate, slots in SLOTS.items():
            if gate == LOCK.gate and self.cleared:
                continue  # it was taken from jobs that run on
            assert sum(gate in {need.gate for need in NEEDS_OF[job.task]} for job in running) <= slots

    @invariant()
    def never_more_than_the_rate(self) -> None:
        """Of those whom the storage has let in after a wait, only jobs are counted: callers can but lower the bound."""
        for gate, starts in getattr(self, "starts", {}).items():
            rate = RATES[gate]
            for first, began in enumerate(starts):
                number = len(starts) - first
                assert number <= (self.now - began) / rate.interval + rate.burst + 1e-3, gate

    @invariant()
    def all_storages_are_alike(self) -> None:
        if hasattr(self, "storages"):
            self.ask(lambda storage: storage.find(JobFilter()))
            self.ask(lambda storage: storage.reasons())
            self.ask(lambda storage: storage.next_due())

    @rule()
    def nobody_is_forgotten(self) -> None:
        """Everything that waits comes to run, when all queues are served and nobody keeps a lock."""
        for queue in ("a", "b"):
            self.ask(lambda storage, queue=queue: storage.swap(PAUSE_MARK + queue, "1", None))
        self.ask(lambda storage: storage.gates.wake(self.now, everywhere=True))
        self.cleared = True
        while self.ask(lambda storage: bool(storage.gates.clear([LOCK.gate], self.now))):
            continue
        jobs = self.find(RUNNING)
        cleared = True
        # Behind a job in the line there may be somebody who takes the lock and keeps it, or a token.
        while jobs or cleared or self.storages[0].next_due() is not None:
            jobs = self.claimed([self.ended(job, Ending.SUCCEEDED) for job in jobs], 50, None, 0)
            cleared = self.ask(lambda storage: bool(storage.gates.clear([LOCK.gate, CALLED.gate], self.now)))
            due = self.storages[0].next_due()
            self.now = self.now if due is None else max(self.now, due)
        assert self.find(WAITING) == []
        assert self.ask(lambda storage: storage.gates.states()) == []


def rank(job: Job) -> tuple[int, int]:
    return -job.priority, job.seq


def plain(answer: Any) -> Any:
    """An answer in the form that storages must agree on: each has its own ids."""
    if isinstance(answer, Job):
        return answer._replace(id="")
    return [plain(one) for one in answer] if isinstance(answer, list) else answer


def test_gates_let_in_so_many_in_their_order_and_forget_nobody() -> None:
    run_state_machine_as_test(
        GatesMachine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


# ── what it costs ────────────────────────────────────────────────────────────────────────────────────────────────────


def steps_of(storage: SqliteStorage, work: Callable[[], object]) -> int:
    """How many steps SQLite's machine takes; the same on any machine."""
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 10
        return 0

    writer = storage._connections.writer()
    writer.set_progress_handler(count, 10)
    work()
    writer.set_progress_handler(None, 10)
    return taken


def crowd(directory: Path, waiting: int) -> tuple[SqliteStorage, ClaimRequest, list[Job]]:
    """A storage in which jobs run at each of three full gates, and so many are blocked there."""
    storage = SqliteStorage(directory / f"{waiting}.db", durability="normal")
    request = ClaimRequest(storage.register({}), 10)._replace(needs=NEEDS)
    tasks = ["one", "locked", "paced"] * (waiting // 3)
    storage.add([Job(0, "", task, JobState.READY, created=NOW) for task in tasks])
    running: list[Job] = []
    while storage.queues():
        running += storage.turn([], request, NOW).jobs
    return storage, request, running


def succeeded(job: Job) -> Transition:
    return lifecycle.succeed(job, Outcome(job.seq, job.claim, Ending.SUCCEEDED, NOW, NOW)).transition()


def test_those_that_wait_do_not_slow_the_others(tmp_path: Path) -> None:
    costs = []
    for waiting in (20, 2000):
        storage, request, _ = crowd(tmp_path, waiting)
        storage.add([Job(0, "", "free", JobState.READY, created=NOW) for _ in range(50)])

        def work(storage: SqliteStorage = storage, request: ClaimRequest = request) -> None:
            jobs: list[Job] = []
            for _ in range(5):
                jobs = storage.turn([succeeded(job) for job in jobs], request, NOW).jobs
                assert len(jobs) == 10

        costs.append(steps_of(storage, work))
        storage.close()
    assert costs[1] < 1.2 * costs[0] + 100, costs


def test_a_slot_goes_from_hand_to_hand_at_the_same_cost_however_many_wait(tmp_path: Path) -> None:
    costs = []
    for waiting in (100, 4000):
        storage, request, running = crowd(tmp_path, waiting)

        def work(
            storage: SqliteStorage = storage, request: ClaimRequest = request, running: list[Job] = running
        ) -> None:
            jobs = running
            for _ in range(10):
                jobs = storage.turn([succeeded(job) for job in jobs], request, NOW).jobs
                assert sorted(job.task for job in jobs) == ["locked", "locked", "one"]

        costs.append(steps_of(storage, work))
        storage.close()
    assert costs[1] < 1.2 * costs[0] + 200, costs


def test_a_caller_is_refused_at_the_same_cost_however_many_wait(tmp_path: Path) -> None:
    costs = []
    for waiting in (100, 4000):
        storage, request, _ = crowd(tmp_path, waiting)

        def work(storage: SqliteStorage = storage, owner: int = request.owner) -> None:
            for _ in range(10):
                assert storage.gates.take(LOCK, NOW, owner=owner).number is None

        costs.append(steps_of(storage, work))
        storage.close()
    assert costs[1] < 1.2 * costs[0] + 100, costs


def test_a_token_goes_to_the_next_at_the_same_cost_however_many_wait(tmp_path: Path) -> None:
    costs = []
    for waiting in (100, 4000):
        storage, request, _ = crowd(tmp_path, waiting)

        def work(storage: SqliteStorage = storage, request: ClaimRequest = request) -> None:
            for second in range(1, 11):
                assert [job.task for job in storage.turn([], request, NOW + second).jobs] == ["paced"]

        costs.append(steps_of(storage, work))
        storage.close()
    assert costs[1] < 1.2 * costs[0] + 200, costs


def test_where_nothing_is_limited_a_turn_asks_one_question(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "queue.db", durability="normal")
    request = ClaimRequest(storage.register({}), 10)
    storage.add([Job(0, "", "free", JobState.READY, created=NOW) for _ in range(10)])
    jobs = storage.turn([], request, NOW).jobs
    statements: list[str] = []
    storage._connections.writer().set_trace_callback(statements.append)
    storage.turn([succeeded(job) for job in jobs], request, NOW)
    about = [one for one in statements if any(f"liteq_{table}" in one for table in ("place", "gate", "bucket"))]
    storage._connections.writer().set_trace_callback(None)
    storage.close()
    assert len(about) == 1, about
    [question] = about
    assert question.strip().startswith("SELECT (SELECT value FROM liteq_meta")
