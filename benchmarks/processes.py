"""Starting, hearing and stopping the processes that take part in a scenario; none outlives its block."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness import Durability

ROOT = Path(__file__).resolve().parents[1]
#: Seconds after which a process that should have ended is taken for stuck.
PATIENCE = 300.0


class ProcessFailed(Exception):
    """A process that takes part in a scenario ended badly; nothing that was measured with it is worth anything."""


def environment(path: Path | None = None, durability: Durability = "full") -> dict[str, str]:
    """For children: whatever this process has, but no ``LITEQ_…`` settings of the user's; and the file they work on."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LITEQ_")}
    kept["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if path is not None:
        kept |= {"BENCHMARK_FILE": str(path), "BENCHMARK_DURABILITY": durability}
    return kept


#: What consumers run unless told otherwise.
APP = "benchmarks.programs.app:app"


def consumer_command(kind: str, workers: int, app: str = APP) -> list[str]:
    """A ``liteq_consumer`` of one of the benchmarks' apps, as a user starts one."""
    module = [sys.executable, "-m", "liteq.cli.consumer", app]
    return [*module, "--worker-type", kind, "--workers", str(workers), "--quiet"]


def run_burst(path: Path, durability: Durability, kind: str, workers: int) -> None:
    """Run a consumer until nothing is due.

    Raises:
        ProcessFailed: it ended with an error, or did not end.
    """
    command = [*consumer_command(kind, workers), "--burst"]
    try:
        subprocess.run(command, cwd=ROOT, env=environment(path, durability), check=True, timeout=PATIENCE)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise ProcessFailed(f"the consumer with {workers} {kind} workers: {error}") from error


@contextmanager
def consumer(
    path: Path, durability: Durability, kind: str, workers: int, *options: str, app: str = APP
) -> Iterator[subprocess.Popen[str]]:
    """A consumer for the length of the block; it may not have come up yet when the block begins."""
    command = [*consumer_command(kind, workers, app), *options]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(path, durability), text=True)
    try:
        yield process
    finally:
        end(process)


@contextmanager
def program(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """One of `benchmarks.programs`, waiting for its first line of input."""
    command = [sys.executable, "-m", f"benchmarks.programs.{name}", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        if hear(process) != "ready":
            raise ProcessFailed(f"the program {name} did not come up")
        yield process
    finally:
        end(process)


def tell(process: subprocess.Popen[str], line: str = "go") -> None:
    """Send a line."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    """Wait for a line; empty if there will be none."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def end(process: subprocess.Popen[str]) -> None:
    """Have a process end, in its own way if it does so within 30 s."""
    if process.stdin is not None:
        process.stdin.close()  # a program ends with its input
    else:
        process.terminate()
    try:
        process.wait(30.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
