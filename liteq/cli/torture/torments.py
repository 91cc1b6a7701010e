"""The torments: what is done to the crew, at random but in an order that the seed gives."""

from __future__ import annotations

import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial

from liteq.cli.torture.clock import JumpingClock
from liteq.cli.torture.crew import Crew, Victim

#: Seconds between two torments, in the mean.
EVERY = 0.25
#: Seconds for which somebody is stopped or has no disk, at most.
LONGEST_PAUSE = 2.0
#: Seconds by which the clock jumps, at most: forward or back.
LONGEST_JUMP = 7200.0

#: How often each is chosen, in relation to the others.
_WEIGHTS = {
    "kill_worker": 30,
    "kill_consumer": 12,
    "kill_producer": 5,
    "freeze_worker": 12,
    "freeze_consumer": 8,
    "freeze_family": 4,
    "freeze_producer": 4,
    "jump": 8,
    "fill_disk": 8,
}


class Torments:
    """Chooses and does them.

    Args:
        crew: to whom.
        clock: the app's.
        dice: decide what, to whom, when.
    """

    def __init__(self, crew: Crew, clock: JumpingClock, dice: random.Random) -> None:
        self._crew = crew
        self._clock = clock
        self._dice = dice
        self._next = 0.0
        self._to_undo: list[tuple[float, Callable[[], object]]] = []
        self.done: Counter[str] = Counter()
        self.latest = 0.0
        self._names = [name for name in _WEIGHTS if name != "fill_disk" or sys.platform == "linux"]  # prlimit

    def step(self, now: float) -> None:
        """Do what is due, and undo what has lasted long enough."""
        self._undo(now)
        if now < self._next:
            return
        self._next = now + self._dice.expovariate(1 / EVERY)
        [name] = self._dice.choices(self._names, [_WEIGHTS[name] for name in self._names])
        pause = now + self._dice.random() ** 2 * LONGEST_PAUSE
        if getattr(self, f"_{name}")(pause):
            self.done[name] += 1

    def undo_all(self) -> None:
        """Let everybody go on, and set the clock ahead of whatever it has been, so that all that waits is due."""
        self._undo(float("inf"))
        self._clock.ahead = self.latest + LONGEST_JUMP

    def _undo(self, now: float) -> None:
        due = [undo for at, undo in self._to_undo if at <= now]
        self._to_undo = [pair for pair in self._to_undo if pair[0] > now]
        for undo in due:
            undo()

    def _victim(self, role: str) -> Victim | None:
        at_work = [member for member in self._crew.of(role) if self._crew.is_at_work(member)]
        return self._dice.choice(at_work) if at_work else None

    # ── each of them: the answer is whether it was done ──────────────────────────────────────────────

    def _kill_worker(self, _pause: float) -> bool:
        workers = self._crew.workers()
        return bool(workers) and self._crew.kill_worker(self._dice.choice(workers))

    def _kill_consumer(self, _pause: float) -> bool:
        return self._kill("consumer")

    def _kill_producer(self, _pause: float) -> bool:
        return self._kill("producer")

    def _kill(self, role: str) -> bool:
        member = self._victim(role)
        if member is None:
            return False
        self._crew.kill(member)
        self._crew.launch(role, member.place)
        return True

    def _freeze_worker(self, pause: float) -> bool:
        workers = self._crew.workers()
        return bool(workers) and self._freeze_workers([self._dice.choice(workers)], pause)

    def _freeze_workers(self, names: list[str], pause: float) -> bool:
        frozen = [name for name in names if self._crew.signal_worker(name, signal.SIGSTOP)]
        for name in frozen:
            self._to_undo.append((pause, partial(self._crew.signal_worker, name, signal.SIGCONT)))
        return bool(frozen)

    def _freeze_consumer(self, pause: float) -> bool:
        return self._freeze("consumer", pause) is not None

    def _freeze_family(self, pause: float) -> bool:
        member = self._freeze("consumer", pause)
        return member is not None and (self._freeze_workers(self._crew.workers(member), pause) or True)

    def _freeze_producer(self, pause: float) -> bool:
        return self._freeze("producer", pause) is not None

    def _freeze(self, role: str, pause: float) -> Victim | None:
        member = self._victim(role)
        if member is not None:
            member.process.send_signal(signal.SIGSTOP)  # knows whether it has ended, so it hits nobody else
            self._to_undo.append((pause, partial(member.process.send_signal, signal.SIGCONT)))
        return member

    def _jump(self, _pause: float) -> bool:
        self._clock.ahead = (2 * self._dice.random() - 1) ** 3 * LONGEST_JUMP
        self.latest = max(self.latest, self._clock.ahead)
        return True

    def _fill_disk(self, pause: float) -> bool:
        member = self._victim(self._dice.choice(["consumer", "producer"]))
        if member is None:
            return False
        self._crew.limit(member, True)
        self._to_undo.append((pause, partial(self._crew.limit, member, False)))
        return True
