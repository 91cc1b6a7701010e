"""The crew: the consumers and producers of a torture, each a process of its own, and what is known of them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from liteq.cli.endings import Refused
from liteq.cli.torture.diary import Diary, Line, pid_of
from liteq.cli.torture.verdict import Facts, Kill, Run

#: Less than one page of the write-ahead log.
TINY_DISK = 4096
#: Seconds that a consumer is given to stop.
STOP_WITHIN = 30.0

_SOURCE = str(Path(__file__).parents[3])  # found in another working directory too, installed or not
_APP = "liteq.cli.torture.victims:app"


@dataclass(slots=True, eq=False)
class Victim:
    """One process of the crew.

    Args:
        role: ``"consumer"`` or ``"producer"``.
        place: which of them it is; whoever follows it has the same.
        name: its own.
        process: itself.
    """

    role: str
    place: int
    name: str
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid


class Crew:
    """Starts, kills, stops and replaces the processes, and keeps the facts.

    Args:
        folder: of the torture.
        queue: the file.
        kinds: worker types; the consumers take turns in them.
        workers: of each consumer.
        monotonic: seconds, on a clock that all processes share.
        dice: for the producers' seeds.
    """

    def __init__(
        self,
        folder: Path,
        queue: Path,
        kinds: Sequence[str],
        workers: int,
        monotonic: Callable[[], float],
        dice: random.Random,
    ) -> None:
        self.facts = Facts()
        self.members: list[Victim] = []
        self.problems: list[str] = []
        self._folder = folder
        self._kinds = kinds
        self._workers = workers
        self._monotonic = monotonic
        self._dice = dice
        self._launched = 0
        self._member_of: dict[str, str] = {}
        self._dead: set[str] = set()
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("LITEQ_")} | {
            "LITEQ_TORTURE_FOLDER": str(folder),
            "LITEQ_TORTURE_QUEUE": str(queue),
            "PYTHONPATH": os.pathsep.join([_SOURCE, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        self._diary = Diary(folder, self._note)

    # ── starting ─────────────────────────────────────────────────────────────────────────────────────

    def launch(self, role: str, place: int) -> None:
        """Start a consumer or producer; returns at once."""
        self._launched += 1
        name = f"{role}-{self._launched}"
        kind = self._kinds[place % len(self._kinds)]
        options = [_APP, "-w", str(self._workers), "-k", kind] if role == "consumer" else [str(self._seed())]
        with (self._folder / f"{role}s.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "liteq.cli.torture", role, *options],
                cwd=self._folder,
                env=self._environment | {"LITEQ_TORTURE_NAME": name},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that Ctrl-C reaches only us
            )
        self.members.append(Victim(role, place, name, process))

    def _seed(self) -> int:
        return self._dice.getrandbits(32)

    def of(self, role: str) -> list[Victim]:
        """The members of a role that live, stopped or not."""
        return [member for member in self.members if member.role == role]

    # ── what the diary says ──────────────────────────────────────────────────────────────────────────

    def _note(self, line: Line) -> None:
        what, at, writer, *details = line
        facts = self.facts
        facts.seen(writer, at)
        if what == "enqueued":
            facts.enqueued[details[0]] = details[1]
        elif what == "started":
            job, number, consumer = details
            facts.runs.setdefault(job, []).append(Run(job, number, writer, consumer, at))
        elif what == "ended":
            self._end_run(details, writer, at)
        elif what == "refused":
            facts.refused.append((details[0], details[1]))
        elif what == "working":
            self._member_of[writer] = details[0]

    def _end_run(self, details: Line, writer: str, at: float) -> None:
        job, number, how = details
        for run in self.facts.runs[job]:
            if (run.number, run.worker, run.ended) == (number, writer, None):
                run.ended, run.how = at, how
                return

    # ── who lives ────────────────────────────────────────────────────────────────────────────────────

    def look(self) -> None:
        """See who lives; replace whoever has ended."""
        for name in [name for name in self._member_of if name not in self._dead]:
            now = self._monotonic()
            if self._diary.lives(name):
                self.facts.seen(name, now)
            else:
                self._dead.add(name)
        for member in list(self.members):
            now = self._monotonic()
            if member.process.poll() is None:
                self.facts.seen(member.name, now)
            else:
                self._replace(member)

    def _replace(self, member: Victim) -> None:
        """Somebody has ended by himself."""
        told = f"{member.name} ended by itself, with exit code {member.process.returncode}"
        if self.is_at_work(member):
            self.problems.append(told)
        else:
            self._bury(member)
            raise Refused(f"{told}, before it did anything: {self._last_words(member)}")
        self._bury(member)
        self.launch(member.role, member.place)

    def _last_words(self, member: Victim) -> str:
        lines = (self._folder / f"{member.role}s.log").read_text("utf-8", errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"

    def workers(self, consumer: Victim | None = None) -> list[str]:
        """The worker processes that live, of one consumer or of all: those that are not a consumer's own process."""
        pids = {member.pid for member in self.members}
        names = {member.name for member in self.of("consumer")} if consumer is None else {consumer.name}
        return [
            name
            for name, member in self._member_of.items()
            if member in names and name not in self._dead and pid_of(name) not in pids
        ]

    def is_at_work(self, member: Victim) -> bool:
        """Whether it has come so far as to have workers, or to enqueue."""
        return member.name in self._member_of.values()

    # ── what is done to them ─────────────────────────────────────────────────────────────────────────

    def kill(self, member: Victim) -> None:
        """kill -9, and bury it."""
        self._killed(member.role, member.name)
        member.process.kill()
        member.process.wait()
        self._bury(member)

    def kill_worker(self, name: str) -> bool:
        """kill -9; False if it had died before."""
        if not self._diary.lives(name):
            return False
        self._killed("worker", name)
        self.signal(pid_of(name), signal.SIGKILL)
        return True

    def _killed(self, role: str, name: str) -> None:
        now = self._monotonic()
        self.facts.seen(name, now)
        self.facts.kills.append(Kill(now, role, name))

    def _bury(self, member: Victim) -> None:
        self.members.remove(member)
        if member.process.stdin is not None:
            member.process.stdin.close()

    def signal_worker(self, name: str, number: int) -> bool:
        """Send a signal to a worker; False if it is dead."""
        return self._diary.lives(name) and self.signal(pid_of(name), number)

    def signal(self, pid: int, number: int) -> bool:
        """Send a signal; False if there is no such process."""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def limit(self, member: Victim, on: bool) -> None:
        """Let no file that the process writes grow beyond its first bytes: to SQLite a disk that is full."""
        import resource

        soft = TINY_DISK if on else resource.RLIM_INFINITY
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(member.pid, resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────

    def dismiss(self) -> None:
        """Stop the consumers as a user does, and see that they do."""
        consumers = self.of("consumer")
        for member in consumers:
            member.process.terminate()
        for member in consumers:
            try:
                code = member.process.wait(STOP_WITHIN)
            except subprocess.TimeoutExpired:
                self.problems.append(f"{member.name} did not stop within {STOP_WITHIN:g} s")
            else:
                self._bury(member)
                if code:
                    self.problems.append(f"{member.name} stopped with exit code {code}")

    def end(self) -> None:
        """Leave nobody alive, and read what they have written."""
        for member in list(self.members):
            member.process.kill()
            member.process.wait()
            self._bury(member)
        self._diary.close()
