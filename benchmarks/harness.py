"""What a scenario is made of: figures, contestants that take turns, and a scratch directory for each of them.

A scenario is a function from a `Bench` to `Figure`s. Contestants that are compared run in one process run in
alternation (A B A B …), so that a ratio is taken from rounds that had the same machine under them, and each round
works on a fresh file. The figure that counts is the median; the fastest and the slowest round are kept beside it.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeVar

T = TypeVar("T")
Durability = Literal["full", "normal"]
DURABILITIES: Final[tuple[Durability, ...]] = ("full", "normal")

#: Units of figures. Seconds would have too many zeros to be read.
JOBS, MILLISECONDS, MICROSECONDS, TIMES, PERCENT, MEBIBYTES = "jobs/s", "ms", "us", "x", "%", "MiB"


class Skipped(Exception):
    """A scenario, or a part of one, cannot run here; the message says why in one line."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity.

    Args:
        name: unique within its scenario, from the general to the particular: ``"full/thread-2/rate"``.
        unit: one of the units above.
        values: one for each round.
    """

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass(frozen=True, slots=True)
class Bench:
    """How a run is to be done.

    Args:
        repeat: rounds of each contestant.
        quick: only see that everything works: small numbers that mean nothing.
        durabilities: what to measure with.
        directory: where the files are made; ``None``: the system's directory for temporary files.
        say: called with a line of progress.
    """

    repeat: int = 7
    quick: bool = False
    durabilities: Sequence[Durability] = DURABILITIES
    directory: Path | None = None
    say: Callable[[str], None] = field(default=lambda _line: None)

    def size(self, usual: int, quick: int) -> int:
        """``usual``, or ``quick`` in a quick run."""
        return quick if self.quick else usual

    def rounds(self, most: int) -> int:
        """How many rounds, where one takes so long that ``most`` must do."""
        return min(self.repeat, most)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty directory that is gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="liteq-benchmark-", dir=self.directory) as name:
            yield Path(name)

    def take_turns(
        self, contestants: Mapping[str, Callable[[Path], T]], *, rounds: int | None = None, warm_up: bool = True
    ) -> dict[str, list[T]]:
        """Call every contestant in turn, round after round, each time with an empty directory.

        Args:
            contestants: by name.
            rounds: how many; ``None``: ``repeat``.
            warm_up: have one round before, which does not count (never in a quick run).

        Returns:
            What each returned, in order of the rounds.
        """
        answers: dict[str, list[T]] = {name: [] for name in contestants}
        warming = int(warm_up and not self.quick)
        for number in range(-warming, self.repeat if rounds is None else rounds):
            for name, contestant in contestants.items():
                gc.collect()  # nobody pays for what another left behind
                with self.scratch() as directory:
                    answer = contestant(directory)
                if number >= 0:
                    answers[name].append(answer)
        return answers


def against_floor(prefix: str, unit: str, liteq: Iterable[float], floor: Iterable[float]) -> list[Figure]:
    """The figures of a contestant and its floor: both rates, and how much of the floor's is reached, round by round."""
    ours, theirs = tuple(liteq), tuple(floor)
    ratios = tuple(one / other for one, other in zip(ours, theirs, strict=True))
    return [
        Figure(f"{prefix}/liteq", unit, ours),
        Figure(f"{prefix}/floor", unit, theirs),
        Figure(f"{prefix}/ratio", TIMES, ratios),
    ]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` (0 … 1) of ``values`` do not exceed: one that was measured, not interpolated."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def distribution(prefix: str, rounds: Sequence[Sequence[float]], shares: Mapping[str, float]) -> list[Figure]:
    """Percentiles of times, each taken round by round.

    Args:
        prefix: of the names.
        rounds: the samples of each round, in seconds.
        shares: the percentiles by name, such as ``{"p50": 0.5, "max": 1.0}``.
    """
    return [
        Figure(f"{prefix}/{name}", MILLISECONDS, tuple(1e3 * percentile(samples, share) for samples in rounds))
        for name, share in shares.items()
    ]
