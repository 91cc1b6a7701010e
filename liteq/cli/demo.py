"""What ``liteq demo`` does: the main job, end to end, with nothing that a user could not do.

An app (`demo_app`), a consumer in another process, a few hundred jobs, and a check that their results are right.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liteq import Job, JobState, Result, ResultGroup, ResultTimeout, TaskFailed
from liteq.cli.endings import DONE, Refused
from liteq.cli.escaping import escaped_lines
from liteq.cli.output import Output

if TYPE_CHECKING:
    from types import ModuleType

#: Seconds for everything, on a machine that has other things to do.
PATIENCE = 60.0
#: Seconds between two looks whether the consumer is still there.
LOOK_EVERY = 0.25
#: Seconds that the consumer is given to stop.
STOP_WITHIN = 10.0
#: Characters in a piece of text to digest.
PIECE = 2000
UNRELIABLE, IMPOSSIBLE, DELAY = 20, 4, 1.0


def run(workers: int, output: Output, *, keep: bool = False, verbose: bool = False) -> int:
    """Run the demo and show what came of it.

    Args:
        workers: how many worker processes.
        output: where to show it.
        keep: leave the folder behind.
        verbose: show the consumer's log.

    Raises:
        Refused: something was not as it should be.
    """
    _end_on_term()
    with _folder(keep) as folder:
        module = _demo_app(folder / "queue.db")
        with _consumer(folder, workers, verbose) as consumer:
            jobs = _enqueue(module)
            _say(f"queue {folder / 'queue.db'}, {len(jobs)} jobs, {workers} worker processes (pid {consumer.pid})")
            _wait(module, jobs, consumer)
            _stop(consumer)
        problems = [problem for job in jobs for problem in job.problems()] + _left_over(module)
        _show(jobs, workers, output, folder if keep else None, problems)
        module.app.close()
    if problems:
        raise Refused(f"{len(problems)} things are not as they should be; the first: {problems[0]}")
    return DONE


# ── the jobs ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Expected:
    """A job of the demo, and what must come of it.

    Args:
        kind: its task's short name.
        result: the handle.
        holds: whether what it returned, and how the job stands, is right.
    """

    kind: str
    result: Result[Any]
    holds: Callable[[Any, Job], bool]

    def problems(self) -> Iterator[str]:
        """What is wrong, in words; nothing if all is well."""
        job = self.result.job()
        try:
            value = self.result.get(timeout=0)
        except TaskFailed as error:
            value = error
        if not self.holds(value, job):
            yield f"job {job.id} of {job.task} is {job.state} after {len(job.attempts)} attempts, with {value!r:.200}"


def _enqueue(module: ModuleType) -> list[Expected]:
    """Store every job, in one transaction for each task."""
    texts = _texts()
    pieces = [text[start : start + PIECE] for text in texts for start in range(0, len(text), PIECE)]

    def digested(text: str) -> Callable[[Any, Job], bool]:
        return lambda value, _job: bool(value == hashlib.sha256(text.encode()).hexdigest())

    def compressed(text: str) -> Callable[[Any, Job], bool]:
        return lambda value, _job: isinstance(value, bytes) and zlib.decompress(value) == text.encode()

    def counted(text: str) -> Callable[[Any, Job], bool]:
        return lambda value, job: bool(value == len(text.split()) and len(job.attempts) == 3)

    jobs = _expect("later", [module.later.using(delay=DELAY)("done")], [_was_in_time])
    jobs += _expect("unreliable", module.unreliable.map(texts[:UNRELIABLE]), map(counted, texts))
    jobs += _expect("impossible", module.impossible.map(texts[:IMPOSSIBLE]), [_failed_twice] * IMPOSSIBLE)
    jobs += _expect("compress", module.compress.map(texts), map(compressed, texts))
    return jobs + _expect("digest", module.digest.map(pieces), map(digested, pieces))


def _expect(kind: str, results: Any, rules: Any) -> list[Expected]:
    return [Expected(kind, result, rule) for result, rule in zip(results, rules, strict=False)]


def _was_in_time(value: Any, job: Job) -> bool:
    return value == "done" and job.started is not None and job.due is not None and job.started >= job.due


def _failed_twice(value: Any, job: Job) -> bool:
    told = [attempt.error_type == "ValueError" and "int(text)" in attempt.traceback for attempt in job.attempts]
    return isinstance(value, TaskFailed) and job.state is JobState.FAILED and told == [True, True]


def _texts() -> list[str]:
    """Real text that ships with Python: its help topics, or, where they were left out, its own source."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        import inspect

        return [inspect.getsource(module) for module in (contextlib, shutil, subprocess, tempfile)] * 20
    return [text for _, text in sorted(topics.items())]


# ── the consumer ─────────────────────────────────────────────────────────────────────────────────────────


def _demo_app(queue: Path) -> ModuleType:
    """The demo's app on this file, as every process of the demo imports it."""
    for name in [name for name in os.environ if name.startswith("LITEQ_")]:
        del os.environ[name]  # the demo is the same whatever the user has set for his own apps
    os.environ["LITEQ_DEMO_QUEUE"] = str(queue)
    from liteq.cli import demo_app

    return demo_app


@contextmanager
def _consumer(folder: Path, workers: int, verbose: bool) -> Iterator[subprocess.Popen[bytes]]:
    """A real ``liteq_consumer`` for the length of the block, and not longer than this process lives."""
    command = [sys.executable, "-m", "liteq.cli.tied", "liteq.cli.demo_app:app"]
    options = ["--worker-type", "process", "--workers", str(workers), "--shutdown-timeout", "5"]
    source = str(Path(__file__).parents[2])  # found in another working directory too, installed or not
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    with (folder / "consumer.log").open("wb") as log:
        process = subprocess.Popen(
            command + options,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=None if verbose else log,
            stderr=None if verbose else log,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
    try:
        yield process
    except Refused:
        _show_log(folder / "consumer.log")
        raise
    finally:
        if process.poll() is None:
            _ask_to_stop(process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_WITHIN)
            process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _ask_to_stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))


def _stop(consumer: subprocess.Popen[bytes]) -> None:
    _ask_to_stop(consumer)
    try:
        code = consumer.wait(STOP_WITHIN)
    except subprocess.TimeoutExpired:
        raise Refused(f"the consumer did not stop within {STOP_WITHIN:g} s") from None
    if code:
        raise Refused(f"the consumer ended with exit code {code}")


def _show_log(log: Path) -> None:
    """The end of it, for whoever has to find out."""
    for line in escaped_lines(log.read_text("utf-8", errors="replace"))[-20:]:
        print(f"    {line}", file=sys.stderr)


def _end_on_term() -> None:
    """Have TERM end us as an exception does, so that the consumer is stopped and the folder removed."""

    def end(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


@contextmanager
def _folder(keep: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="liteq-demo-"))
    try:
        yield folder
    finally:
        if keep:
            _say(f"kept: {folder}")
        else:
            shutil.rmtree(folder)


# ── waiting and showing ──────────────────────────────────────────────────────────────────────────────────


def _wait(module: ModuleType, jobs: Sequence[Expected], consumer: subprocess.Popen[bytes]) -> None:
    """Wait for every job, and show how many have finished."""
    clock = module.app.engine.clock
    give_up_at = clock.monotonic() + PATIENCE
    pending = {job.result.id: job.result for job in jobs}
    progress = _Progress(len(pending))
    while pending:
        try:
            for result in ResultGroup(pending.values()).as_completed(timeout=LOOK_EVERY):
                del pending[result.id]
                progress.show(len(jobs) - len(pending))
        except ResultTimeout:
            if consumer.poll() is not None:
                raise Refused(f"the consumer ended by itself, with exit code {consumer.returncode}") from None
            if clock.monotonic() > give_up_at:
                raise Refused(f"{len(pending)} jobs have not finished within {PATIENCE:g} s") from None


class _Progress:
    """How far it is: a line that changes on a terminal, a few lines elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._changes = sys.stderr.isatty()

    def show(self, done: int) -> None:
        text = f"{done} of {self._total} jobs have finished"
        if self._changes:
            print(f"\r{text}", end="\n" if done == self._total else "", file=sys.stderr, flush=True)
        elif done == self._total or done % 100 == 0:
            _say(text)


@dataclass(frozen=True, slots=True)
class Line:
    """What came of the jobs of one task; times in seconds."""

    task: str
    jobs: int
    succeeded: int
    retried: int
    failed: int
    median_time: float
    whole_time: float


def _line(kind: str, jobs: Sequence[Job]) -> Line:
    times = [attempt.finished - (attempt.started or attempt.finished) for job in jobs for attempt in job.attempts]
    return Line(
        kind,
        len(jobs),
        sum(job.state is JobState.SUCCEEDED for job in jobs),
        sum(len(job.attempts) > 1 for job in jobs),
        sum(job.state is JobState.FAILED for job in jobs),
        statistics.median(times),
        sum(times),
    )


def _show(expected: Sequence[Expected], workers: int, output: Output, kept: Path | None, problems: list[str]) -> None:
    by_kind: dict[str, list[Job]] = {}
    for one in expected:
        by_kind.setdefault(one.kind, []).append(one.result.job())
    lines = [_line(kind, jobs) for kind, jobs in by_kind.items()]
    span = _span([job for kind in ("compress", "digest") for job in by_kind[kind]])
    quick = len(by_kind["compress"]) + len(by_kind["digest"])
    summary: Mapping[str, Any] = {
        "ok": not problems,
        "workers": workers,
        "jobs": len(expected),
        "per_second": round(quick / span),
        "tasks": [asdict(line) for line in lines],
        "problems": problems,
        "folder": None if kept is None else str(kept),
    }
    output.record(summary)
    headings = ("TASK", "JOBS", "SUCCEEDED", "RETRIED", "FAILED", "MEDIAN TIME", "TIME")
    rows = [
        (*tuple(asdict(line).values())[:5], f"{line.median_time * 1000:.2f} ms", f"{line.whole_time * 1000:.0f} ms")
        for line in lines
    ]
    output.table(headings, rows, right=range(1, 7))
    output.line(
        f"compress and digest: {quick} jobs in {span:.2f} s, {quick / span:.0f} a second; every result was checked, "
        f"{IMPOSSIBLE} jobs failed as they should"
    )


def _span(jobs: Sequence[Job]) -> float:
    """From the first start to the last end, in seconds."""
    ends = [job.finished for job in jobs if job.finished is not None]
    starts = [job.started for job in jobs if job.started is not None]
    return max(0.001, max(ends, default=0.0) - min(starts, default=0.0))


def _left_over(module: ModuleType) -> list[str]:
    """What must not be there any more once the consumer has stopped."""
    return [f"a consumer is still registered: {dict(one.info)}" for one in module.app.consumers()]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
