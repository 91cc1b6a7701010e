"""``python -m benchmarks``: run scenarios, record them, compare them, copy them into the README."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import plot, readme, results, targets
from benchmarks.harness import DURABILITIES, Bench, Figure, Skipped
from benchmarks.machine import Machine, examine
from benchmarks.processes import ROOT
from benchmarks.report import line
from benchmarks.results import Run
from benchmarks.scenarios import SCENARIOS

COMMANDS = ("check", "readme", "plot")
#: Rounds of a quick run at most.
QUICK_REPEAT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    options = parser().parse_args(arguments)
    _check_names(options.what)
    if "check" in options.what:
        print("\n".join(targets.compare(results.latest(options.results))))
        return 0
    if "readme" in options.what:
        return _write_readme(options.readme, options.results)
    if "plot" in options.what:
        return _write_plot(options.plot, options.results)
    return _run(options)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    scenarios = "\n".join(f"  {name:<12}{scenario.title}" for name, scenario in SCENARIOS.items())
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure liteq next to bare sqlite3 loops that write the same rows, in the same run.",
        epilog=f"scenarios (default: all):\n{scenarios}\n\ncommands, alone:\n"
        "  check       compare the last recorded figures with those to reach; for information, always exit code 0\n"
        "  readme      write the table in README.md anew from the last recorded figures\n"
        "  plot        draw the last recorded soak",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("what", nargs="*", metavar="SCENARIO", help="scenarios to run, or one of the commands below")
    made.add_argument("--repeat", type=_positive, default=7, metavar="N", help="rounds of each contestant (default 7)")
    made.add_argument("--quick", action="store_true", help="only see that it works; the figures mean nothing")
    made.add_argument("--durability", choices=("full", "normal", "both"), default="both", help="default: both")
    made.add_argument("--json", type=Path, metavar="FILE", help="append the lines to FILE instead of recording them")
    made.add_argument("--results", type=Path, default=results.DIRECTORY, metavar="DIR", help="where the record is")
    made.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE", help="for the command readme")
    made.add_argument("--plot", type=Path, default=ROOT / "docs/soak.svg", metavar="FILE", help="for the command plot")
    made.add_argument(
        "--directory", type=Path, metavar="DIR", help="on which disk to measure (default: temporary files)"
    )
    return made


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"at least 1, not {value}")
    return value


def _check_names(names: Sequence[str]) -> None:
    """Refuse what does not exist, and a command beside anything else."""
    unknown = [name for name in names if name not in (*SCENARIOS, *COMMANDS)]
    if unknown:
        parser().error(f"there is no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    if len(names) > 1 and set(names) & set(COMMANDS):
        parser().error(f"{' and '.join(COMMANDS)} are given alone")


# ── running ──────────────────────────────────────────────────────────────────────────────────────────────


def _run(options: argparse.Namespace) -> int:
    machine = examine(options.directory)
    durabilities = DURABILITIES if options.durability == "both" else (options.durability,)
    synchronous = " and ".join(f"synchronous={each.upper()}" for each in durabilities)
    print(f"{machine}; {synchronous}", flush=True)
    if machine.is_busy:
        _say(f"this machine is busy (load {machine.load:.1f}): times are upper bounds, rates lower ones")
    repeat = min(options.repeat, QUICK_REPEAT) if options.quick else options.repeat
    bench = Bench(repeat, options.quick, durabilities, options.directory, _say)
    usual = [name for name, scenario in SCENARIOS.items() if not scenario.on_request]
    for name in options.what or usual:
        _run_one(name, bench, machine, options)
    return 0


def _run_one(name: str, bench: Bench, machine: Machine, options: argparse.Namespace) -> None:
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    print(f"\n{name}: {SCENARIOS[name].title}", flush=True)
    figures: list[Figure] = []
    try:
        for figure in SCENARIOS[name].run(bench):
            figures.append(figure)
            print(line(figure), flush=True)
    except Skipped as reason:
        print(f"  skipped: {reason}")
    if figures:
        run = Run(name, date, bench.repeat, bench.quick, machine, tuple(figures))
        _record(run, options.json, options.results)


def _record(run: Run, file: Path | None, directory: Path) -> None:
    if file is not None:
        results.append(run, file)
    elif not run.quick:
        results.append(run, directory / f"{run.scenario}.jsonl")


def _say(line: str) -> None:
    """Progress goes to standard error, and only to people."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


# ── README ───────────────────────────────────────────────────────────────────────────────────────────────


def _write_readme(file: Path, directory: Path) -> int:
    text = file.read_text(encoding="utf-8")
    try:
        new = readme.with_table(text, results.latest(directory))
    except readme.NoMarks as problem:
        print(f"{file.name}: {problem}")
        return 0
    if new == text:
        print(f"{file.name}: nothing new")
        return 0
    file.write_text(new, encoding="utf-8")
    print(f"{file.name}: written")
    return 0


def _write_plot(file: Path, directory: Path) -> int:
    run = results.latest(directory).get("soak")
    if run is None:
        print("no soak is recorded")
        return 0
    try:
        plot.draw(run, file)
    except ImportError:
        print("needs matplotlib: pip install 'liteq[bench]'")
        return 1
    print(f"{file.name}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
