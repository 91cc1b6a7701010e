"""Processes that write all the time are killed at random moments; then a survivor opens the file and looks.

Run as a program this file is such a process: it puts random verbs to the storage and, as soon as each has returned,
says what was acknowledged in one line of JSON. A verb whose line is missing may have happened or not; one whose line
is there must have.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from unique_contract import keys_hold

import liteq.storage
import liteq.storage.replica
from liteq import lifecycle
from liteq.job import Ending, Job, JobFilter, JobState, Outcome, Progress
from liteq.lifecycle import Policy
from liteq.step import Step, StepKind, StepState
from liteq.storage.base import ClaimRequest, Storage
from liteq.storage.file import FileStorage
from liteq.storage.sqlite import SqliteStorage
from liteq.unique import Unique

NOW = 1_700_000_000.0
POLICY = Policy(retries=1, max_crashes=1000)

KEEP = "keep"  # jobs that nobody ever removes, revokes or requeues: what was acknowledged of them can be looked up
SCRAP = "scrap"  # jobs with which anything may be done

# ── the process that is killed ───────────────────────────────────────────────────────────────────────────────────────


class Victim:
    """Puts random verbs to a storage, and says so when they have returned."""

    def __init__(self, storage: Storage, seed: int) -> None:
        self._storage = storage
        self._random = random.Random(seed)
        self._name = f"{seed:x}"
        self._batches = 0
        self._steps = 0
        self._running: list[Job] = []
        self._owner = storage.register({"pid": os.getpid()})
        self.acknowledge("owner", self._owner)

    def acknowledge(self, what: str, *details: object) -> None:
        os.write(1, json.dumps([what, *details]).encode() + b"\n")

    def live(self) -> None:
        verbs = [
            self.add,
            self.add_one,
            self.add_keyed,
            self.turn,
            self.turn,
            self.turn,
            self.handle_scrap,
            self.look,
            self.swap,
            self.record,
            self.send,
        ]
        while True:
            self._random.choice(verbs)()

    def add(self) -> None:
        self._add(self._random.choice([2, 10, 120]))

    def add_one(self) -> None:
        self._add(1)

    def _add(self, size: int) -> None:
        self._batches += 1
        batch = f"{self._name}/{self._batches}"
        named = self._random.random() < 0.3
        jobs = [
            Job(
                0,
                f"{batch}/{number}" if named else "",
                self._random.choice([KEEP, SCRAP]) if size == 1 else KEEP,
                JobState.READY,
                priority=self._random.randrange(2),
                payload=f"{batch} {size}".encode(),
                due=NOW + self._random.randrange(10) if self._random.random() < 0.2 else None,
            )
            for number in range(size)
        ]
        stored = self._storage.add([lifecycle.submit(job, NOW) for job in jobs])
        self.acknowledge("added", batch, [[job.seq, job.id] for job in stored if job.task == KEEP])

    def add_keyed(self) -> None:
        unique = Unique(self._random.choice("abc"), on_duplicate=self._random.choice(["return", "replace"]))
        self._storage.add([lifecycle.submit(Job(0, "", SCRAP, JobState.READY, unique=unique), NOW) for _ in range(2)])

    def turn(self) -> None:
        ending = self._random.choice([Ending.SUCCEEDED, Ending.SUCCEEDED, Ending.FAILED, Ending.INTERRUPTED])
        ended, self._running = self._running[:20], self._running[20:]
        decisions = [
            lifecycle.decide(job, POLICY, Outcome(job.seq, job.claim, ending, NOW, NOW, b"%d" % job.seq), NOW)
            for job in ended
        ]
        steps = {(job.seq, job.claim): Progress(1.0, 2.0, "half") for job in self._running[:3]}
        request = ClaimRequest(self._owner, self._random.randrange(40))
        turn = self._storage.turn(decisions, request, NOW + self._random.randrange(10), steps)
        assert all(turn.applied), "only this owner may end its jobs"
        done = [job.seq for job in ended if ending is Ending.SUCCEEDED and job.task == KEEP]
        self.acknowledge("turned", [[job.seq, job.claim] for job in turn.jobs], done)
        self._running += turn.jobs

    def handle_scrap(self) -> None:
        jobs = self._storage.find(JobFilter(task=SCRAP))
        moves = [lifecycle.revoke(job, NOW) or lifecycle.requeue(job, NOW) for job in jobs]
        self._storage.apply([move for move in moves if move is not None], NOW)
        self._storage.remove(JobFilter(task=SCRAP, limit=5))
        self._storage.upkeep()

    def record(self) -> None:
        for job in self._running[:2]:
            self._steps += 1
            step = Step(StepKind.STEP, f"{self._name}/{self._steps}", 1, StepState.DONE, 0, job.attempt, NOW, None, b"")
            assert self._storage.record_step(job.seq, job.claim, step), "this job is ours"
            if job.task == KEEP:
                self.acknowledge("stepped", job.seq, step.name)

    def send(self) -> None:
        for job in self._running[:2]:
            self._steps += 1
            assert self._storage.send(job.seq, f"{self._name}/{self._steps}", b"", NOW), "it has not ended"
            self.acknowledge("sent", job.seq, f"{self._name}/{self._steps}")

    def look(self) -> None:
        assert sum(self._storage.counts().values()) > 0 or not self._storage.find(JobFilter(limit=1))
        self._storage.next_due()

    def swap(self) -> None:
        counted = self._storage.marks("n").get("n")
        if self._storage.swap("n", counted, str(int(counted or 0) + 1)):
            self.acknowledge("swapped")


def opened(path: str | Path, durability: str = "full") -> Storage:
    """A SQLite file, or, where the path has no suffix, a directory."""
    kind = SqliteStorage if Path(path).suffix else FileStorage
    return kind(path, durability="full" if durability == "full" else "normal")


def main(path: str, durability: str, seed: str) -> None:
    liteq.storage.replica.GROWN = 50_000  # so that a journal is replaced while its writers are killed
    Victim(opened(path, durability), int(seed)).live()


# ── the test ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Ledger:
    """Everything that victims were told had happened, in no order between two of them."""

    def __init__(self) -> None:
        self.added: dict[str, list[tuple[int, str]]] = {}
        self.claims: set[tuple[int, int]] = set()
        self.done: set[int] = set()
        self.swaps = 0
        self.steps: set[tuple[int, str]] = set()
        self.sent: set[tuple[int, str]] = set()
        self.owners: dict[int, int] = {}

    def enter(self, pid: int, line: bytes) -> None:
        what, *details = json.loads(line)
        if what == "owner":
            self.owners[pid] = details[0]
        elif what == "added":
            self.added[details[0]] = [(seq, job_id) for seq, job_id in details[1]]
        elif what == "turned":
            for seq, claim in details[0]:
                assert (seq, claim) not in self.claims, f"job {seq} was claimed twice under number {claim}"
                self.claims.add((seq, claim))
            self.done.update(details[1])
        elif what in ("stepped", "sent"):
            (self.steps if what == "stepped" else self.sent).add((details[0], details[1]))
        else:
            self.swaps += 1


@contextmanager
def victims(path: Path, durability: str, seeds: list[int]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes at work on one file; none is left afterwards."""
    root = str(Path(liteq.storage.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for seed in seeds:
            command = [sys.executable, __file__, str(path), durability, str(seed)]
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def kill_after(process: subprocess.Popen[bytes], lines: int, spin: float, ledger: Ledger) -> None:
    """Kill it once it has acknowledged so much and ``spin`` seconds more have passed; enter what it said until then."""
    assert process.stdout is not None
    for _ in range(lines):
        line = process.stdout.readline()
        assert line.endswith(b"\n"), f"the victim died by itself: exit code {process.wait()}"
        ledger.enter(process.pid, line)
    until = time.perf_counter() + spin
    while time.perf_counter() < until:
        pass
    process.kill()
    for line in process.stdout:
        if line.endswith(b"\n"):  # a line cut short was not said
            ledger.enter(process.pid, line)
    assert process.wait() == -signal.SIGKILL


def check(path: Path, ledger: Ledger) -> None:
    """What must hold of the file whoever was killed whenever."""
    with closing(opened(path, "normal")) as storage:
        jobs = storage.find(JobFilter())
        by_seq = {job.seq: job for job in jobs}
        assert len(by_seq) == len(jobs), "a job stands in two states"
        assert storage.counts() == {state: sum(job.state is state for job in jobs) for state in JobState}
        for seq, job_id in [pair for pairs in ledger.added.values() for pair in pairs]:
            assert by_seq[seq].id == job_id, "an acknowledged job is lost"
        some = random.Random(len(jobs)).sample(jobs, min(50, len(jobs)))
        assert all(storage.get(job.id) is not None for job in some)
        assert_batches_are_whole(jobs)
        lower = {seq for seq, claim in ledger.claims if seq in by_seq and by_seq[seq].claim < claim}
        assert lower == set(), "a claim number went down"
        undone = {seq for seq in ledger.done if by_seq[seq].state is not JobState.SUCCEEDED}
        assert undone == set(), "an acknowledged success is lost"
        assert all(by_seq[seq].result == b"%d" % seq for seq in ledger.done)
        assert int(storage.marks("n").get("n", 0)) >= ledger.swaps
        check_steps(storage, ledger, jobs)
    if path.suffix:
        check_tables(path, {job.seq for job in jobs})
        keys_hold(path)
        check_events(path, ledger, {job.seq for job in jobs})


def check_steps(storage: Storage, ledger: Ledger, jobs: list[Job]) -> None:
    recorded = {(job.seq, step.name) for job in jobs for step in storage.steps(job.seq)}
    assert ledger.steps <= recorded, "an acknowledged step is lost"


def check_events(path: Path, ledger: Ledger, seqs: set[int]) -> None:
    with closing(sqlite3.connect(path)) as connection:
        sent = set(connection.execute("SELECT job, name FROM liteq_event").fetchall())
        recorded = {row[0] for row in connection.execute("SELECT job FROM liteq_step")}
    assert {pair for pair in ledger.sent if pair[0] in seqs} <= sent, "an acknowledged event is lost"
    assert {seq for seq, _ in sent} | recorded <= seqs, "a job is gone, and not all that it had"


def assert_batches_are_whole(jobs: list[Job]) -> None:
    found = Counter(job.payload for job in jobs if job.task == KEEP)
    torn = {payload: number for payload, number in found.items() if number != int(payload.split()[1])}
    assert torn == {}, "a batch was stored in part"


def check_tables(path: Path, seqs: set[int]) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        stored = {row[0] for row in connection.execute("SELECT id FROM liteq_job WHERE rnd >= 0")}
        assert stored == seqs, "a job stands in no state"
        tables = ["ready", "scheduled", "running", "blocked", "done"]
        places = " UNION ALL ".join(f"SELECT id FROM liteq_{table}" for table in tables)
        assert Counter(row[0] for row in connection.execute(places)) == Counter(seqs)
        orphans = "SELECT count(*) FROM liteq_progress WHERE id NOT IN (SELECT id FROM liteq_running)"
        assert connection.execute(orphans).fetchone() == (0,)


def recover(path: Path) -> None:
    """What a living consumer does for the dead."""
    with closing(opened(path, "normal")) as storage:
        for dead in storage.dead_owners():
            left = storage.find(JobFilter(owner=dead))
            moves = [lifecycle.decide(job, POLICY, lifecycle.crashed(job, NOW, "killed"), NOW) for job in left]
            assert storage.apply(moves, NOW) == [True] * len(left)
            assert storage.forget(dead)
        assert storage.counts()[JobState.RUNNING] == 0
        assert storage.owners() == []


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize(
    ("name", "durability", "rounds"),
    [("queue.db", "normal", 12), ("queue.db", "full", 6), ("queue", "normal", 4), ("queue", "full", 2)],
)
def test_whatever_was_acknowledged_survives_kill_9(tmp_path: Path, name: str, durability: str, rounds: int) -> None:
    path = tmp_path / name
    ledger = Ledger()
    for _ in range(rounds):
        seeds = [random.getrandbits(32) for _ in range(2)]
        with victims(path, durability, seeds) as (first, second):
            kill_after(first, 1 + random.randrange(100), random.random() * 0.003, ledger)
            with closing(opened(path)) as storage:
                assert ledger.owners[first.pid] in storage.dead_owners()
                if second.pid in ledger.owners:
                    assert ledger.owners[second.pid] not in storage.dead_owners()
            kill_after(second, 1 + random.randrange(200), random.random() * 0.003, ledger)
        check(path, ledger)
        recover(path)
        check(path, ledger)
    assert ledger.added
    assert ledger.claims
    assert ledger.done
    assert ledger.steps


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize(("suffix", "rounds"), [(".db", 6), ("", 2)])
def test_a_victim_killed_while_it_opens_a_fresh_file_spoils_nothing(tmp_path: Path, suffix: str, rounds: int) -> None:
    for number in range(rounds):
        path = tmp_path / f"queue-{number}{suffix}"
        with victims(path, "full", [number]) as (victim,):
            while not path.exists():
                assert victim.poll() is None
            kill_after(victim, 0, random.random() * 0.004, Ledger())
        with closing(opened(path)) as storage:
            [job] = storage.add([lifecycle.submit(Job(0, "survivor", KEEP, JobState.READY), NOW)])
            assert storage.get("survivor") == job
            for dead in storage.dead_owners():
                moves = [lifecycle.release(left) for left in storage.find(JobFilter(owner=dead))]
                assert all(storage.apply(moves, NOW))
                assert storage.forget(dead)
            assert storage.owners() == []


if __name__ == "__main__":
    main(*sys.argv[1:])
