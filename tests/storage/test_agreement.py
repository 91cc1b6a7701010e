"""Random sequences of verbs, put to every storage at once: each must answer as `MemoryStorage` does.

To hold another storage to it, add a line to ``CONTESTANTS``. The random part of generated ids is the same for all, for
they stand in reasons and errors; everything must be equal to the last bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from liteq import lifecycle
from liteq.errors import ConfigurationError, DuplicateJob, StorageError
from liteq.job import FINISHED, Attempt, Ending, Job, JobFilter, JobState, Outcome, Progress
from liteq.lifecycle import CANCEL_MARK, PAUSE_MARK, REVOKE_MARK, Policy, Revocation, Success, Transition
from liteq.plan import Edge, Plan, Rule, Terms
from liteq.retry import RetryDelay
from liteq.schedule import Schedule
from liteq.shares import Share, Sharing
from liteq.step import Step, StepKind, StepState
from liteq.storage import replica
from liteq.storage.base import Added, ClaimRequest, Fire, Owner, Storage, Turn
from liteq.storage.cargo import Mark, Parcel, Piece, Taken
from liteq.storage.file import FileStorage
from liteq.storage.memory import MemoryStorage
from liteq.storage.replay import Model
from liteq.storage.sqlite import SqliteStorage
from liteq.unique import Unique

#: How to make each storage, empty, in a directory of its own. The first is the specification.
CONTESTANTS: dict[str, Callable[[Path], Storage]] = {
    "memory": lambda directory: MemoryStorage(),
    "sqlite": lambda directory: SqliteStorage(directory / "queue.db", durability="normal"),
    "file": lambda directory: FileStorage(directory / "queue", durability="normal"),
}

NOW = 1_700_000_000.0

QUEUES = ["a", "b", "Ä"]
SCHEDULES = ["s", "Š"]
TASKS = ["t", "u"]
KEYS = [PAUSE_MARK + "a", PAUSE_MARK + "b", REVOKE_MARK + "t", CANCEL_MARK + "1", "other"]
EVENTS = ["paid", "Ä"]
VALUES = [None, Revocation().dumps(), Revocation(once=True).dumps(), ""]
POLICIES = [
    Policy(),
    Policy(retries=2, max_crashes=2),
    Policy(retries=1, retry=RetryDelay(delay=5), on_crash="fail"),
    Policy(retries=3, retry=RetryDelay(delays=(0, 3))),
]

# ── what is drawn ────────────────────────────────────────────────────────────────────────────────────────────────────

moments = st.sampled_from([None, -5.0, 0.0, 0.25, 4.0, 20.0])
uniques = st.one_of(
    st.none(),
    st.builds(
        lambda key, scope, on_duplicate, times: Unique(key, scope, on_duplicate, *times),
        st.sampled_from(["k", "Ł"]),
        st.sampled_from(["active", "waiting"]),
        st.sampled_from(["return", "raise", "replace", "replace"]),
        st.sampled_from([(None, None), (None, None), (4.0, None), (4.0, 9.0)]),
    ),
)
new_jobs = st.builds(
    lambda job_id, task, queue, priority, due, expires, payload, unique: (
        Job(0, job_id, task, JobState.READY, queue, priority, payload, unique=unique),
        due,
        expires,
    ),
    st.sampled_from(["", "", "", "x", "y", "1-0000000000"]),
    st.sampled_from(TASKS),
    st.sampled_from(QUEUES),
    st.integers(-1, 1),
    moments,
    moments,
    st.sampled_from([b"", b"p", b"\0\xff"]),
    uniques,
)
served = st.lists(st.sampled_from([*QUEUES, "none"]), max_size=3, unique=True).map(tuple)
divided = st.lists(
    st.builds(Share, st.sampled_from([*QUEUES, "none"]), st.integers(0, 3), st.integers(0, 2)),
    min_size=1,
    max_size=3,
    unique_by=lambda share: share.queue,
)
requests = st.one_of(
    st.builds(ClaimRequest, st.integers(1, 3), st.integers(0, 4), st.one_of(st.none(), served)),
    st.builds(
        lambda owner, wanted, shares, free: ClaimRequest(
            owner, wanted, tuple(one.queue for one in shares), division=Sharing(shares).division(free, {})
        ),
        st.integers(1, 3),
        st.integers(0, 4),
        divided,
        st.integers(0, 4),
    ),
)
filters = st.builds(
    JobFilter,
    states=st.frozensets(st.sampled_from(JobState), max_size=4),
    queue=st.one_of(st.none(), st.sampled_from(QUEUES)),
    task=st.one_of(st.none(), st.sampled_from(TASKS)),
    owner=st.one_of(st.none(), st.none(), st.integers(1, 3)),
    reason=st.one_of(st.none(), st.none(), st.sampled_from(["unknown task: t", "revoked"])),
    after=st.one_of(st.none(), st.integers(-1, 12)),
    finished_before=st.one_of(st.none(), st.none(), st.sampled_from([NOW, NOW + 5, NOW + 50])),
    expired_at=st.one_of(st.none(), st.none(), st.sampled_from([NOW, NOW + 5, NOW + 50])),
    newest_first=st.booleans(),
    limit=st.one_of(st.none(), st.integers(0, 5)),
)
steps = st.builds(
    Progress, st.sampled_from([0.0, 2.5]), st.sampled_from([None, 10.0]), st.sampled_from(["", "half 🐇"])
)


# ── what is compared ─────────────────────────────────────────────────────────────────────────────────────────────────


def plain(answer: Any) -> Any:
    """An answer in the form that storages must agree on."""
    if isinstance(answer, Turn):
        return *answer[:3], dict(answer.marks), set(answer.lost), list(answer.ended)
    if isinstance(answer, Owner):
        return answer.number, dict(answer.info), answer.alive
    if isinstance(answer, Added):
        return list(answer), answer.known, answer.replaced, list(answer.ended)
    if isinstance(answer, list):
        return [plain(one) for one in answer]
    return answer


REFUSED = "refused"


def answered(question: Callable[[Storage], Any], storage: Storage) -> Any:
    try:
        return question(storage)
    except StorageError:
        return REFUSED
    except DuplicateJob as error:
        return error.task, error.key
    except ConfigurationError:  # one that was to be replaced would wait for itself
        return REFUSED


class Agreement(RuleBasedStateMachine):
    """One set of storages through one sequence of verbs.

    ``seen`` holds jobs as they once stood, so that what is made of them later is often out of date.
    """

    @initialize()
    def open(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.storages = {}
        for name, make in CONTESTANTS.items():
            home = Path(self.directory.name) / name
            home.mkdir()
            self.storages[name] = make(home)
            for _ in range(2):
                self.storages[name].register({})
        self.now = NOW
        self.seen: list[Job] = []
        self.cargo: Cargo | None = None

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.read_the_journal_again()
            for storage in self.storages.values():
                storage.close()
            self.directory.cleanup()

    def read_the_journal_again(self) -> None:
        """Whoever comes later makes the same of it."""
        first = self.storages["file"]
        assert isinstance(first, FileStorage)
        with closing(FileStorage(first.path, create=False)) as other:
            of_first, of_other = (list(one._replica.ask(Model.frozen).parts()) for one in (first, other))
        assert of_first == of_other

    def ask(self, question: Callable[[Storage], Any]) -> Any:
        """Put a question to every storage, and answer with the answer they agree on."""
        answers = {name: answered(question, storage) for name, storage in self.storages.items()}
        expected = plain(answers["memory"])
        for name, answer in answers.items():
            assert plain(answer) == expected, f"{name} disagrees with the specification"
        return answers["memory"]

    def turn(
        self,
        transitions: Sequence[Transition | None],
        request: ClaimRequest | None = None,
        progress: dict[tuple[int, int], Progress] | None = None,
        successes: Sequence[Success] = (),
    ) -> None:
        moves = [transition for transition in transitions if transition is not None]
        if request is not None:
            request = request._replace(owner=self.owner(request.owner))
        turn = self.ask(lambda storage: storage.turn(moves, request, self.now, progress, successes))
        if turn is not REFUSED:
            self.remember(turn.jobs)

    def owner(self, number: int) -> int:
        """One of those that are registered, mostly."""
        known = [owner.number for owner in self.storages["memory"].owners()]
        return known[number % len(known)] if known and number < 3 else number

    def remember(self, jobs: Sequence[Job]) -> None:
        self.seen = [*self.seen, *jobs][-30:]

    def draw_job(self, data: st.DataObject) -> Job:
        """A job as it stands, or as it once stood."""
        if data.draw(st.booleans(), label="as it stands"):
            jobs = self.storages["memory"].find(JobFilter())
            if jobs:
                return data.draw(st.sampled_from(jobs), label="job")
        return data.draw(st.sampled_from(self.seen), label="remembered job")

    # ── verbs ────────────────────────────────────────────────────────────────────────────────────────

    @rule(batch=st.lists(new_jobs, min_size=1, max_size=5))
    def add(self, batch: list[tuple[Job, float | None, float | None]]) -> None:
        jobs = [
            lifecycle.submit(job._replace(due=self.later(due), expires=self.later(expires)), self.now)
            for job, due, expires in batch
        ]
        added = self.ask(lambda storage: storage.add(jobs))
        if isinstance(added, Added):
            self.remember(added)

    @rule(data=st.data(), batch=st.lists(new_jobs, min_size=1, max_size=5))
    def add_plan(self, data: st.DataObject, batch: list[tuple[Job, float | None, float | None]]) -> None:
        """Jobs that wait for each other, and for some that are there already."""
        jobs = [
            lifecycle.submit(job._replace(due=self.later(due), expires=self.later(expires)), self.now)
            for job, due, expires in batch
        ]
        before = [job.seq for job in self.storages["memory"].find(JobFilter())] + [job.seq for job in self.seen]
        edges: list[Edge] = []
        terms: dict[int, Terms] = {}
        for position in data.draw(st.sets(st.integers(0, len(jobs) - 1)), label="dependents"):
            priors = st.sampled_from([*before, *(~earlier for earlier in range(position))] or [0])
            drawn = data.draw(st.lists(st.tuples(priors, st.sampled_from(Rule), st.booleans()), max_size=4))
            own = [Edge(position, prior, rule, passes) for prior, rule, passes in drawn if prior]
            times = data.draw(st.tuples(*[st.sampled_from([None, None, 4.0])] * 2), label="delay, lasts")
            shape = data.draw(st.sampled_from([None, f"[{sum(edge.passes for edge in own)}]"]), label="shape")
            edges += own
            terms[position] = Terms(shape, *times)
        added = self.ask(lambda storage: storage.add(jobs, plan=Plan(edges, terms)))
        if isinstance(added, Added):
            self.remember(added)

    @precondition(lambda self: self.seen)
    @rule()
    def ask_about_plans(self) -> None:
        numbers = range(1, 40)
        self.ask(lambda storage: storage.plans.jobs(numbers))
        for number in numbers:
            self.ask(lambda storage, seq=number: storage.plans.prerequisites(seq))
            self.ask(lambda storage, seq=number: storage.plans.dependents(seq))
            self.ask(lambda storage, seq=number: storage.plans.steps([seq]))
            self.ask(lambda storage, seq=number: storage.plans.awaited([seq], 1000))

    def later(self, seconds: float | None) -> float | None:
        return None if seconds is None else self.now + seconds

    @rule(request=requests)
    def claim(self, request: ClaimRequest) -> None:
        self.turn([], request)

    @precondition(lambda self: self.seen)
    @rule(
        data=st.data(),
        endings=st.lists(st.sampled_from(Ending), min_size=1, max_size=6),
        policy=st.sampled_from(POLICIES),
        request=st.one_of(st.none(), requests),
        cancelled=st.booleans(),
        short=st.booleans(),
    )
    def settle(
        self,
        data: st.DataObject,
        endings: list[Ending],
        policy: Policy,
        request: ClaimRequest | None,
        cancelled: bool,
        short: bool,
    ) -> None:
        transitions, successes = [], []
        for ending in endings:
            job = self.draw_job(data)
            outcome = Outcome(
                job.seq,
                job.claim,
                ending,
                self.now - 0.5,
                self.now,
                b"5" if ending is Ending.SUCCEEDED else None,
                *(("", "", "") if ending is Ending.SUCCEEDED else ("E", "message", "trace\0back")),
                delay=data.draw(st.sampled_from([None, 0.0, 3.0]), label="delay"),
                awaits=data.draw(st.sampled_from([None, *EVENTS]), label="awaits"),
            )
            if short and ending is Ending.SUCCEEDED:
                successes.append(lifecycle.succeed(job, outcome))
            else:
                transitions.append(lifecycle.decide(job, policy, outcome, self.now, cancelled=cancelled))
        self.turn(transitions, request, {(job.seq, job.claim): Progress(1.0) for job in self.seen[-3:]}, successes)

    @precondition(lambda self: self.storages["memory"].counts()[JobState.RUNNING])
    @rule(data=st.data(), ending=st.sampled_from([Ending.SUCCEEDED, Ending.FAILED]), request=requests)
    def settle_everything(self, data: st.DataObject, ending: Ending, request: ClaimRequest) -> None:
        running = self.storages["memory"].find(JobFilter(states=frozenset({JobState.RUNNING})))
        outcomes = [Outcome(job.seq, job.claim, ending, self.now, self.now, result=b"") for job in running]
        policy = data.draw(st.sampled_from(POLICIES), label="policy")
        decisions = [lifecycle.decide(job, policy, end, self.now) for job, end in zip(running, outcomes, strict=True)]
        self.turn(decisions, request)

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), delay=st.sampled_from([-1.0, 0.0, 3.0, 30.0]))
    def move_by_hand(self, data: st.DataObject, delay: float) -> None:
        ways: dict[str, Callable[[Job], Transition | None]] = {
            "revoke": lambda job: lifecycle.revoke(job, self.now),
            "restore": lambda job: lifecycle.restore(job, self.now),
            "requeue": lambda job: lifecycle.requeue(job, self.now),
            "requeue from the start": lambda job: lifecycle.requeue(job, self.now, from_start=True),
            "reschedule": lambda job: lifecycle.reschedule(job, self.now + delay, self.now),
            "expire": lambda job: lifecycle.expire(job, self.now),
            "unblock": lambda job: lifecycle.unblock(job, self.now) if job.state is JobState.BLOCKED else None,
            "release": lifecycle.release,
        }
        chosen = data.draw(st.lists(st.sampled_from(sorted(ways)), min_size=1, max_size=4), label="ways")
        self.turn([ways[way](self.draw_job(data)) for way in chosen])

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def admit(self, data: st.DataObject) -> None:
        """Start what was claimed, as far as revocations and expiry let it."""
        jobs = [self.draw_job(data) for _ in range(3)]
        marks = self.storages["memory"].marks(REVOKE_MARK) | self.storages["memory"].marks(CANCEL_MARK)
        marks = {key: value for key, value in marks.items() if value}
        self.turn([lifecycle.admit(job, self.now, marks) for job in jobs if job.state is JobState.RUNNING])

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), source=st.sampled_from(JobState), difference=st.integers(-1, 1))
    def stray(self, data: st.DataObject, source: JobState, difference: int) -> None:
        """A transition out of nowhere: mostly wrong in state or claim, sometimes right."""
        job = self.draw_job(data)
        target = data.draw(
            st.sampled_from([state for state in JobState if state is not JobState.RUNNING]), label="target"
        )
        record = data.draw(st.sampled_from([None, Attempt(7, Ending.CRASHED, None, self.now)]), label="record")
        key, value = data.draw(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)), label="mark")
        move = Transition(
            job.seq,
            source,
            job.claim + difference,
            target,
            due=self.now + 4 if target is JobState.SCHEDULED else None,
            attempt=3,
            base=1,
            crashes=1,
            finished=self.now if target in FINISHED else None,
            reason="stray" if target in {JobState.BLOCKED, JobState.REVOKED, JobState.EXPIRED} else None,
            record=record,
            consume=None if value is None else (key, value),
            drop_mark=data.draw(st.sampled_from([None, *KEYS]), label="drop mark"),
            forget_expiry=data.draw(st.booleans(), label="forget expiry"),
        )
        self.turn([move, move])

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), step=steps)
    def tell_progress(self, data: st.DataObject, step: Progress) -> None:
        job = self.draw_job(data)
        self.turn([], None, {(job.seq, job.claim): step, (10_000, 1): step})

    @rule(query=filters)
    def remove(self, query: JobFilter) -> None:
        # Which ones a limit leaves is every storage's own affair.
        query = JobFilter(query.states, query.queue, query.task, None, None, query.after, query.finished_before)
        self.ask(lambda storage: storage.remove(query))

    @rule(ages=st.dictionaries(st.sampled_from(sorted(FINISHED)), moments), window=st.integers(1, 5))
    def purge(self, ages: dict[JobState, float | None], window: int) -> None:
        before = {state: self.now - (age or 0) for state, age in ages.items()}

        def through(storage: Storage) -> list[int]:
            seqs: list[int] = []
            last: int | None = 0
            while last is not None:
                found = storage.outdated(before, last, window, 3)
                seqs, last = seqs + found.seqs, found.last
            return seqs

        seqs = self.ask(through)
        self.ask(lambda storage: storage.discard(seqs))

    @rule(key=st.sampled_from(KEYS), expected=st.sampled_from(VALUES), new=st.sampled_from(VALUES))
    def swap(self, key: str, expected: str | None, new: str | None) -> None:
        if not self.ask(lambda storage: storage.swap(key, expected, new)):
            current = self.storages["memory"].marks().get(key)
            assert self.ask(lambda storage: storage.swap(key, current, new))

    @precondition(lambda self: len(self.storages["memory"].owners()) < 3)
    @rule(info=st.dictionaries(st.text(max_size=3), st.sampled_from([1, "ü", None, [True]]), max_size=2))
    def register(self, info: dict[str, object]) -> None:
        self.ask(lambda storage: storage.register(info))

    @rule(owner=st.integers(1, 4))
    def unregister(self, owner: int) -> None:
        self.ask(lambda storage: storage.unregister(owner))

    @rule(owner=st.integers(1, 4))
    def forget(self, owner: int) -> None:
        self.ask(lambda storage: storage.forget(owner))

    @rule()
    def recover_from_the_dead(self) -> None:
        for dead in self.ask(lambda storage: storage.dead_owners()):
            left = self.ask(lambda storage, dead=dead: storage.find(JobFilter(owner=dead)))
            crashes = [(job, lifecycle.crashed(job, self.now, "gone")) for job in left]
            self.turn([lifecycle.decide(job, Policy(), crash, self.now) for job, crash in crashes])
            assert self.ask(lambda storage, dead=dead: storage.forget(dead))

    # ── steps and events ─────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), kind=st.sampled_from(StepKind), number=st.integers(1, 2), due=moments)
    def take_a_step(self, data: st.DataObject, kind: StepKind, number: int, due: float | None) -> None:
        job, name = self.draw_job(data), data.draw(st.sampled_from(EVENTS), label="name")
        state = StepState.WAITING if kind is StepKind.WAIT else StepState.DONE
        step = Step(kind, name, number, state, number, job.attempt, self.now, self.later(due), None)
        if kind is StepKind.WAIT:
            self.ask(lambda storage: storage.await_event(job.seq, job.claim, step, self.now))
        else:
            self.ask(lambda storage: storage.record_step(job.seq, job.claim, step._replace(result=b"r")))

    @precondition(lambda self: self.storages["memory"].counts()[JobState.RUNNING])
    @rule(data=st.data(), delay=st.sampled_from([None, 0.0, 3.0]), event=st.sampled_from(EVENTS), sent=st.booleans())
    def wait_for_an_event(self, data: st.DataObject, delay: float | None, event: str, sent: bool) -> None:
        running = self.storages["memory"].find(JobFilter(states=frozenset({JobState.RUNNING})))
        job = data.draw(st.sampled_from(running), label="job")
        if sent:
            self.ask(lambda storage: storage.send(job.seq, event, b"early", self.now))
        outcome = Outcome(job.seq, job.claim, Ending.SUSPENDED, self.now, self.now, delay=delay, awaits=event)
        self.turn([lifecycle.decide(job, Policy(), outcome, self.now)])
        self.remember([job])

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), event=st.sampled_from(EVENTS), sent=st.sampled_from([None, b"", b"1"]))
    def send(self, data: st.DataObject, event: str, sent: bytes | None) -> None:
        job = self.draw_job(data)
        self.ask(lambda storage: storage.send(job.seq, event, sent, self.now))

    # ── schedules ────────────────────────────────────────────────────────────────────────────────────

    @rule(name=st.sampled_from(SCHEDULES), due=moments, boot=st.sampled_from([None, "", "A"]), stale=st.booleans())
    def put_schedule(self, name: str, due: float | None, boot: str | None, stale: bool) -> None:
        known = self.ask(lambda storage: storage.schedules(name))
        schedule = known[0] if known else Schedule(name, "t", "@daily", created=self.now)
        when = self.later(due)
        changed = schedule._replace(slot=when, due=when, boot=boot, version=schedule.version + stale)
        assert self.ask(lambda storage: storage.put_schedule(changed)) is not stale

    @rule(name=st.sampled_from(SCHEDULES))
    def drop_schedule(self, name: str) -> None:
        self.ask(lambda storage: storage.drop_schedule(name))

    @rule(
        boot=st.sampled_from([None, "A", "B"]), without=st.frozensets(st.sampled_from(SCHEDULES)), waits=st.booleans()
    )
    def fire(self, boot: str | None, without: frozenset[str], waits: bool) -> None:
        due = self.ask(lambda storage: sorted(one.name for one in storage.due_schedules(self.now, boot, 9, without)))
        self.ask(lambda storage: storage.next_schedule(without))
        fires = []
        for name in due:
            (schedule,) = self.storages["memory"].schedules(name)
            slot = 1 if schedule.slot is None else schedule.slot
            job = lifecycle.submit(Job(0, f"{name}@{slot}", "t", JobState.READY, "a"), self.now)
            job = job._replace(state=JobState.BLOCKED, reason="after job x") if waits else job
            after = schedule._replace(slot=None, due=None, boot=boot, last_outcome=None, last_finished=None)
            fires.append(Fire(after, [job]))
        answers = self.ask(lambda storage: storage.fire(fires))
        assert None not in answers
        self.remember([job for jobs in answers for job in jobs])

    @rule()
    def hand_everything_out(self) -> None:
        """And have every kind of storage take it in: what it hands out then is the same, whatever it is."""
        pieces = self.ask(unloaded)
        self.cargo = transferable(pieces, self.now)
        with tempfile.TemporaryDirectory() as directory:
            copies = []
            for name, make in CONTESTANTS.items():
                (Path(directory) / name).mkdir()
                with closing(make(Path(directory) / name)) as storage:
                    taken = take_in(storage, self.cargo, self.now)
                    assert (taken.jobs, taken.known) == (len(self.cargo[0]), 0)
                    copies.append(unloaded(storage))
                    assert take_in(storage, self.cargo, self.now) == Taken(0, taken.jobs, 0, 0)
        assert copies[0] == copies[1] == copies[2]
        assert [one for one in copies[0] if isinstance(one, Parcel)] == self.cargo[0]

    @precondition(lambda self: self.cargo is not None)
    @rule()
    def take_in_what_was_handed_out(self) -> None:
        """Some of it is there, by now in other states."""
        self.ask(lambda storage: take_in(storage, self.cargo, self.now))

    @rule()
    def close(self) -> None:
        self.ask(lambda storage: storage.close())

    @rule()
    def keep_up(self) -> None:
        for storage in self.storages.values():
            storage.upkeep()

    @rule(seconds=st.sampled_from([0.25, 4.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # ── questions ────────────────────────────────────────────────────────────────────────────────────

    @rule(query=filters)
    def find(self, query: JobFilter) -> None:
        self.remember(self.ask(lambda storage: storage.find(query)))

    @rule()
    def compare_histories(self) -> None:
        for job in self.ask(lambda storage: storage.find(JobFilter())):
            self.ask(lambda storage, seq=job.seq: storage.get(id_of(storage, seq)))
            self.ask(lambda storage, seq=job.seq: storage.steps(seq))

    @invariant()
    def everything_is_the_same(self) -> None:
        if not hasattr(self, "storages"):
            return
        numbers = range(-1, 40)
        self.ask(lambda storage: storage.find(JobFilter()))
        self.ask(lambda storage: storage.schedules())
        self.ask(lambda storage: storage.counts())
        self.ask(lambda storage: storage.queues())
        self.ask(lambda storage: storage.reasons())
        self.ask(lambda storage: storage.next_expiry(self.now))
        self.ask(lambda storage: storage.marks())
        self.ask(lambda storage: storage.next_due())
        self.ask(lambda storage: storage.owners())
        self.ask(lambda storage: storage.finished(numbers))
        for number in numbers:
            self.ask(lambda storage, number=number: rival(storage, number))
            self.ask(lambda storage, number=number: storage.ahead(number))


def rival(storage: Storage, number: int) -> tuple[str, Job | None] | None:
    found = storage.rival(number)
    return None if found is None else (found.key, plain(storage.get(found.id)))


#: Parcels, schedules and marks.
Cargo = tuple[list[Parcel], list[Schedule], dict[str, str]]


def unloaded(storage: Storage) -> list[Piece]:
    pieces: list[Piece] = []
    storage.unload(pieces.append)
    return pieces


def transferable(pieces: Sequence[Piece], now: float) -> Cargo:
    parcels = [one._replace(job=lifecycle.arrive(one.job, now)) for one in pieces if isinstance(one, Parcel)]
    schedules = [one for one in pieces if isinstance(one, Schedule)]
    return parcels, schedules, dict(one for one in pieces if isinstance(one, Mark))


def take_in(storage: Storage, cargo: Cargo, now: float) -> Taken:
    parcels, schedules, marks = cargo
    return storage.take_in(parcels, schedules, marks, now)


def id_of(storage: Storage, seq: int) -> str:
    [job] = storage.find(JobFilter(after=seq - 1, limit=1))
    assert job.seq == seq
    return job.id


@pytest.mark.timeout(600)  # it takes seconds; making a disagreement short enough to read takes minutes
def test_all_storages_answer_as_the_specification_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "GROWN", 1000)  # so that journals are replaced on the way
    monkeypatch.setattr(replica, "TIMES", 0)
    for module in ("sqlite", "replica"):
        monkeypatch.setattr(f"liteq.storage.{module}.getrandbits", lambda bits: 7)
    monkeypatch.setattr("liteq.storage.memory.random", SimpleNamespace(getrandbits=lambda bits: 7))
    run_state_machine_as_test(
        Agreement,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
