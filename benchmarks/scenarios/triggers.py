"""What a cron expression costs: to be read, to find its next run, and both, beside cronsim and croniter.

In every round all libraries are timed one after the other, for each of ten ordinary expressions in two zones. What is
recorded is the worst: of each library the expression that takes it longest, and of the ratios to a peer, round by
round, that with the greatest median. The peers are optional (``pip install 'liteq[bench]'``); what one of them cannot
read is left out of its comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, tzinfo
from importlib import import_module
from importlib.util import find_spec
from statistics import median
from timeit import Timer
from zoneinfo import ZoneInfo

from benchmarks.harness import MICROSECONDS, TIMES, Bench, Figure
from liteq.errors import TriggerError
from liteq.triggers import crontab

ORDINARY = (
    "* * * * *",
    "*/5 * * * *",
    "*/5 9-17 * * mon-fri",
    "30 2 * * *",
    "0 0 * * *",
    "0 22 * * 1-5",
    "23 0-20/2 * * *",
    "0 0,12 1 */2 *",
    "0 9 * * MON#2",
    "0 0 LW * *",
)
FAR = "0 0 29 2 */7"
NEVER = "0 0 30 2 *"
ZONES: tuple[tzinfo, ...] = (UTC, ZoneInfo("Europe/Berlin"))
PEERS = ("cronsim", "croniter")
#: Seconds for which one call is repeated in a round.
SPAN = 0.02

Call = Callable[[], object]
Rounds = tuple[float, ...]


def run(bench: Bench) -> Iterator[Figure]:
    """Microseconds, and liteq's time as a multiple of each peer's."""
    moments = [datetime(2024, 5, 15, 12, 34, 56, tzinfo=zone) for zone in ZONES[: bench.size(len(ZONES), 1)]]
    expressions = ORDINARY[: bench.size(len(ORDINARY), 2)]
    for what, calls in (("parse", parsing), ("next", finding), ("parse + next", both)):
        bench.say(f"{what}: {len(expressions)} expressions")
        yield from _worst(what, [_timed(bench, calls(text, now)) for text in expressions for now in moments])
    bench.say(f"far and never: {FAR}, {NEVER}")
    yield from _worst("next, far", [_timed(bench, finding(FAR, now)) for now in moments])
    yield from _worst("parse + next, far", [_timed(bench, both(FAR, now)) for now in moments])
    yield from _worst("refuse", [_timed(bench, {"liteq": refuse})])


# ── what is timed ────────────────────────────────────────────────────────────────────────────────────────


def parsing(text: str, now: datetime) -> dict[str, Call]:
    """Reading an expression, by library; the peers' constructors want the time too."""
    peers = {name: lambda peer=peer: peer(text, now) for name, peer in _peers(text)}
    return {"liteq": lambda: crontab(text), **peers}


def finding(text: str, now: datetime) -> dict[str, Call]:
    """The next run of an expression that was read before; peers are iterators, which move on by it."""
    trigger = crontab(text)
    return {"liteq": lambda: trigger.next(now)}


def both(text: str, now: datetime) -> dict[str, Call]:
    """The next run of an expression that nobody has seen before."""
    calls: dict[str, Call] = {"liteq": lambda: crontab(text).next(now)}
    for name, peer in _peers(text):
        calls[name] = (
            (lambda peer=peer: next(peer(text, now)))
            if name == "cronsim"
            else (lambda peer=peer: peer(text, now).get_next(datetime))
        )
    return calls


def refuse() -> None:
    """Define a trigger whose date never exists.

    Raises:
        AssertionError: it was accepted.
    """
    try:
        crontab(NEVER)
    except TriggerError:
        return
    raise AssertionError("a date that never exists was accepted")


def _peers(text: str) -> Iterator[tuple[str, Callable[..., object]]]:
    """The libraries that are installed and can read this."""
    if find_spec("cronsim"):
        yield "cronsim", import_module("cronsim").CronSim
    if find_spec("croniter") and "W" not in text:
        yield "croniter", import_module("croniter").croniter


# ── timing ───────────────────────────────────────────────────────────────────────────────────────────────


def _timed(bench: Bench, calls: Mapping[str, Call]) -> dict[str, Rounds]:
    """Microseconds a call, by library, round by round."""
    timers = {library: Timer(call) for library, call in calls.items()}
    numbers = {library: _number(timer) if not bench.quick else 3 for library, timer in timers.items()}
    rounds: dict[str, list[float]] = {library: [] for library in timers}
    for _ in range(bench.repeat):
        for library, timer in timers.items():
            rounds[library].append(1e6 * timer.timeit(numbers[library]) / numbers[library])
    return {library: tuple(values) for library, values in rounds.items()}


def _number(timer: Timer) -> int:
    return max(1, int(SPAN * 5 / timer.timeit(5)))


def _worst(what: str, measured: Iterable[Mapping[str, Rounds]]) -> Iterator[Figure]:
    """For each library the expression that takes it longest, and the worst of liteq's ratios to each peer."""
    measured = list(measured)
    for library in ("liteq", *PEERS):
        known = [one[library] for one in measured if library in one]
        if known:
            yield Figure(f"{what}/{library}", MICROSECONDS, max(known, key=median))
    for peer in PEERS:
        ratios = [_ratio(one["liteq"], one[peer]) for one in measured if peer in one]
        if ratios:
            yield Figure(f"{what}/to {peer}", TIMES, max(ratios, key=median))


def _ratio(ours: Rounds, theirs: Rounds) -> Rounds:
    return tuple(one / other for one, other in zip(ours, theirs, strict=True))
