"""The course of a torture: start the crew, torment it, let it finish in peace, and reckon."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liteq import JobState, LiteQError
from liteq.cli.endings import DONE, FAILED, complain
from liteq.cli.escaping import one_line
from liteq.cli.output import Output
from liteq.cli.torture import verdict
from liteq.cli.torture.crew import Crew
from liteq.cli.torture.place import Place, prepare
from liteq.cli.torture.torments import Torments

if TYPE_CHECKING:
    from types import FrameType, ModuleType

#: Seconds between two looks at who lives.
LOOK_EVERY = 0.02
#: Seconds without any job ending after which the rest is taken for lost.
PATIENCE = 30.0
#: Seconds after which consumers are woken, so that they notice that the clock was set.
NUDGE_EVERY = 1.0
PRODUCERS = 2
#: Problems that are told one by one.
TOLD = 20
#: How many of them a report keeps; the figures count all.
MOST_PROBLEMS = 100

_UNFINISHED = (JobState.READY, JobState.SCHEDULED, JobState.RUNNING, JobState.BLOCKED)


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for.

    Args:
        seconds: of torment; letting it finish comes on top.
        path: a directory, or the queue's file.
        workers: of each consumer.
        consumers: how many.
        kinds: worker types; the consumers take turns in them.
        seed: of the dice.
        keep: remove nothing.
    """

    seconds: float
    path: Path
    workers: int
    consumers: int
    kinds: tuple[str, ...]
    seed: int
    keep: bool


def torture(settings: Settings, output: Output) -> int:
    """Do it, and show what came of it; returns the exit code.

    Raises:
        Refused: the place cannot be used.
    """
    place = prepare(settings.path)
    good = False
    try:
        report = _Course(settings, place).run()
        good = bool(report["ok"])
        kept = settings.keep or not good
        report["kept"] = str(place.folder) if kept else None
        _show(report, output)
    finally:
        if settings.keep or not good:
            complain("liteq", f"kept: {place.queue} and {place.folder}")
        else:
            place.remove()
    return DONE if good else FAILED


class _Course:
    """One torture from its beginning to its end."""

    def __init__(self, settings: Settings, place: Place) -> None:
        self._settings = settings
        self._place = place
        self._app = _app_on(place).app
        clock: Any = self._app.engine.clock
        self._monotonic, self._sleep = clock.monotonic, clock.sleep
        dice = random.Random(settings.seed)
        self._crew = Crew(
            place.folder, place.queue, settings.kinds, settings.workers, self._monotonic, random.Random(dice.random())
        )
        self._torments = Torments(self._crew, clock, dice)
        self._interrupted = False
        self._progress = _Progress()

    def run(self) -> dict[str, Any]:
        began = self._monotonic()
        try:
            with self._ctrl_c():
                self._torment(began)
                self._let_finish()
                self._crew.dismiss()
        finally:
            self._torments.undo_all()
            self._crew.end()
            self._progress.end()
        try:
            return self._report()
        finally:
            self._app.close()

    @contextmanager
    def _ctrl_c(self) -> Iterator[None]:
        """The first Ctrl-C, or TERM, ends the torment; what is left is done and reckoned. A second one ends it all."""

        def handle(number: int, _frame: FrameType | None) -> None:
            if self._interrupted:
                raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
            self._interrupted = True

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _torment(self, began: float) -> None:
        for place in range(self._settings.consumers):
            self._crew.launch("consumer", place)
        for place in range(PRODUCERS):
            self._crew.launch("producer", place)
        while not self._interrupted and (now := self._monotonic()) < began + self._settings.seconds:
            self._crew.look()
            self._torments.step(now)
            self._tell(f"{now - began:3.0f} s of {self._settings.seconds:g}")
            self._sleep(LOOK_EVERY)

    def _let_finish(self) -> None:
        for producer in self._crew.of("producer"):
            self._crew.kill(producer)
        self._torments.undo_all()
        left, since, nudged = -1, self._monotonic(), 0.0
        while (now := self._monotonic()) < since + PATIENCE:
            self._crew.look()
            with contextlib.suppress(LiteQError):  # it is asked again at once; what stays wrong is seen at the end
                counts = self._app.counts()
                unfinished = sum(counts[state] for state in _UNFINISHED)
                if not unfinished:
                    return
                if unfinished != left:
                    left, since = unfinished, now
                if now > nudged + NUDGE_EVERY:
                    nudged = now
                    self._app.tasks["liteq.cli.torture.victims.tiny"]("nudge")
            self._tell(f"finishing: {left} left")
            self._sleep(LOOK_EVERY)

    def _tell(self, what: str) -> None:
        facts = self._crew.facts
        self._progress.show(
            f"{what} · {len(facts.enqueued)} enqueued · {len(facts.runs)} run · {len(facts.kills)} kills"
        )

    def _report(self) -> dict[str, Any]:
        facts, settings, done = self._crew.facts, self._settings, self._torments.done
        facts.states = {job.id: job.state for job in self._app.jobs(limit=None)}
        lost, twice = list(verdict.lost(facts)), list(verdict.run_twice(facts))
        locked = [error for error in facts.refused if verdict.is_locked(error)]
        problems = self._crew.problems + lost + twice + [f"{kind}: {message}" for kind, message in locked]
        integrity = _integrity(self._place.queue)
        kills = {role: sum(kill.role == role for kill in facts.kills) for role in ("worker", "consumer", "producer")}
        return {
            "ok": not (lost or twice or locked or self._crew.problems) and integrity == "ok",
            "seed": settings.seed,
            "kinds": list(settings.kinds),
            "enqueued": len(facts.enqueued),
            "executed": len(facts.runs),
            "runs": sum(map(len, facts.runs.values())),
            "lost": len(lost),
            "run_twice": len(twice),
            "locked": len(locked),
            "refused": len(facts.refused) - len(locked),
            "integrity": integrity,
            "kills": kills,
            "stops": sum(number for name, number in done.items() if name.startswith("freeze")),
            "clock_jumps": done["jump"],
            "full_disks": done["fill_disk"],
            "recovery": {role: verdict.spread(verdict.recoveries(facts, role)) for role in ("worker", "consumer")},
            "problems": problems[:MOST_PROBLEMS],
        }


def _app_on(place: Place) -> ModuleType:
    """The app as the victims know it, on the same file."""
    for name in [name for name in os.environ if name.startswith("LITEQ_")]:
        del os.environ[name]  # a torture is the same whatever the user has set for his own apps
    os.environ |= {"LITEQ_TORTURE_QUEUE": str(place.queue), "LITEQ_TORTURE_FOLDER": str(place.folder)}
    from liteq.cli.torture import victims

    if victims.app.storage.location != str(place.queue):
        raise RuntimeError("liteq.cli.torture.victims was imported before it could know where its queue is")
    return victims


def _integrity(path: Path) -> str:
    """What SQLite, asked without liteq, says of the file: ``"ok"``, or what is wrong."""
    connection = sqlite3.connect(path)
    try:
        return "; ".join(row[0] for row in connection.execute("PRAGMA integrity_check"))
    except sqlite3.Error as error:
        return str(error)
    finally:
        connection.close()


# ── showing ──────────────────────────────────────────────────────────────────────────────────────────────


class _Progress:
    """A line that changes, on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._shows = sys.stderr.isatty()
        self._width = 0

    def show(self, text: str) -> None:
        if self._shows:
            print(f"\r{text:<{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(text)

    def end(self) -> None:
        if self._width:
            print(file=sys.stderr)


def _show(report: dict[str, Any], output: Output) -> None:
    output.record(report)
    kills, recovery = report["kills"], report["recovery"]
    rows = [
        ("", "enqueued", report["enqueued"], "jobs whose enqueue returned"),
        ("", "executed", report["executed"], f"jobs, in {report['runs']} runs"),
        (_mark(report["lost"]), "lost", report["lost"], "of those enqueued"),
        (_mark(report["run_twice"]), "run twice", report["run_twice"], "while the first owner lived"),
        (_mark(report["locked"]), "locked", report["locked"], "callers who saw that the database is locked"),
        (_mark(report["integrity"] != "ok"), "integrity", "", report["integrity"]),
        ("", "killed", sum(kills.values()), ", ".join(f"{number} {role}s" for role, number in kills.items())),
        ("", "stopped", report["stops"], "for up to 2 s"),
        ("", "clock jumps", report["clock_jumps"], "of up to 2 hours"),
        ("", "full disks", report["full_disks"], f"{report['refused']} enqueues were refused and told so"),
        *(("", f"{role} recovery", found["number"], _spread(found)) for role, found in recovery.items()),
    ]
    output.table(("", "FIGURE", "NUMBER", ""), rows, right=[2])
    output.line(f"seed {report['seed']}, {' and '.join(report['kinds'])} workers")
    for problem in report["problems"][:TOLD]:
        output.line(f"  {one_line(problem)}")
    if len(report["problems"]) > TOLD:
        output.line(f"  and {len(report['problems']) - TOLD} more")


def _mark(wrong: object) -> str:
    return "FAIL" if wrong else "ok"


def _spread(found: dict[str, Any]) -> str:
    if not found["number"]:
        return "no job was running when one was killed"
    return f"from the kill to its job running again: p50 {found['p50'] * 1000:.0f} ms, max {found['max'] * 1000:.0f} ms"
