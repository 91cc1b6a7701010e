"""The program `liteq_consumer`: runs the jobs of an app until it is told to stop.

Only argparse and what is as light is imported before the command line is understood.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liteq import ConfigurationError, StorageError, __version__
from liteq.cli.arguments import duration, names, whole_number
from liteq.cli.endings import DONE, FAILED, MISUSED, Refused, complain, refusal
from liteq.cli.environment import Settings
from liteq.cli.loading import Broken, import_app
from liteq.cli.output import prepare_streams
from liteq.cli.patching import prepare_for
from liteq.cli.pidfile import pidfile
from liteq.cli.reloading import Program, Restarter
from liteq.cli.stopping import StopAsked, Stopper, leave

if TYPE_CHECKING:
    from liteq.cli.sources import Sources
    from liteq.consumer import LogFormat

_PROGRAM = "liteq_consumer"

_EPILOG = """\
Each option may also be set by the environment variable in brackets; a flag beats the variable. Switches take 1 or 0.

signals:
  TERM, INT   stop: no further job is started, running ones may finish within --shutdown-timeout, the rest goes back
              to the queue and costs no attempt; a second signal stops at once
  HUP         restart with fresh code, under the same process id, once running jobs have ended as above; if the new code
              cannot be imported the old one goes on
  USR1        write the Python stacks of running jobs to the log

exit codes:
  0           stopped by a signal, or --burst has nothing left to do
  1           the queue's file, the log file or the pidfile cannot be used
  2           a wrong option, or no app at this path

examples:
  liteq_consumer shop.app -w 4 -k process           four jobs at a time, each in a process of its own
  liteq_consumer shop.app -w 16 -q urgent,default   sixteen threads, the queue urgent first
  liteq_consumer shop.app -w 16 -q urgent:3,default:1   … three of four jobs from urgent while both have any
  liteq_consumer shop.app -w 16 -q urgent=2,default     … two of the sixteen are kept for urgent
  liteq_consumer shop.app -w 500 -k asyncio         five hundred at a time, for async def tasks
  liteq_consumer shop.app --burst                   run what is due, then exit: for cron
  LITEQ_JSON_LOGS=1 liteq_consumer shop.app         logs for machines
"""


def parser() -> argparse.ArgumentParser:
    """The command line of `liteq_consumer`."""
    return _declared()[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a consumer in the foreground; returns the exit code.

    Args:
        argv: the arguments; ``None``: the program's own, and then this is the program, which ends for certain
            (`stopping.leave`). Called with arguments by another program, it leaves that one's end to it.
    """
    program = Program()
    prepare_streams()
    arguments = understood(argv)
    if program.only_imports:
        code = _only_import(arguments)
        leave(code)
        return code
    stopper = Stopper()
    restarter = Restarter(program, stopper, _sources(arguments, program))
    code = _outcome(arguments, stopper, restarter, is_the_program=argv is None)
    if code == DONE and stopper.restarting:
        restarter.restart()
    if argv is None:
        stopper.leave(code)
        leave(code)
    return code


def _outcome(arguments: argparse.Namespace, stopper: Stopper, restarter: Restarter, *, is_the_program: bool) -> int:
    """Run the consumer; the exit code."""
    try:
        stopper.install()
        restarter.begin(hears_hangups=is_the_program)
        try:
            _consume(arguments, stopper, restarter)
        except Refused as refused:
            complain(_PROGRAM, str(refused))
            if not restarter.outlives(is_broken=isinstance(refused, Broken)):
                return refused.code
            _wait_for_change(arguments, stopper, restarter)
        except Exception:
            logging.getLogger("liteq").exception("the consumer failed")
            if not restarter.outlives(is_broken=True):
                return FAILED
            _wait_for_change(arguments, stopper, restarter)
    except StopAsked:
        return DONE
    return DONE


def _sources(arguments: argparse.Namespace, program: Program) -> Sources | None:
    if not arguments.reload:
        return None
    from liteq.cli.sources import Sources

    return Sources(arguments.app, program.directories)


def _wait_for_change(arguments: argparse.Namespace, stopper: Stopper, restarter: Restarter) -> None:
    with pidfile(arguments.pidfile, stays=stopper.goes_on):
        restarter.wait_for_change()


def _only_import(arguments: argparse.Namespace) -> int:
    """Find out whether the app can be imported, for the program that is to be replaced."""
    try:
        prepare_for(arguments.worker_type)
        import_app(arguments.app, verbose=True)
    except Refused as refused:
        complain(_PROGRAM, str(refused))
        return refused.code
    return DONE


# ── the command line ─────────────────────────────────────────────────────────────────────────────────────


def _declared() -> tuple[argparse.ArgumentParser, Settings]:
    program = argparse.ArgumentParser(
        _PROGRAM,
        description="Run the jobs of an app: as many at a time as there are workers, until told to stop.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    program.add_argument("app", metavar="APP", help="the app in Python: module.app, or module:app")
    version = f"liteq_consumer {__version__}"
    program.add_argument("--version", action="version", version=version, help="show the version and exit")
    settings = Settings()
    _declare_work(program.add_argument_group("what is run, and how"), settings)
    _declare_life(program.add_argument_group("from start to stop"), settings)
    _declare_logs(program.add_argument_group("what is logged, and where"), settings)
    return program, settings


def _declare_work(group: argparse._ArgumentGroup, settings: Settings) -> None:
    add = partial(settings.add, group)
    add("-w", "--workers", metavar="N", type=whole_number(1), default=1, help="how many jobs run at a time (default 1)")
    add(
        "-k",
        "--worker-type",
        choices=("thread", "process", "greenlet", "asyncio"),
        default="thread",
        help="run each in a thread (default; for jobs that wait) or in a process (for jobs that compute, or crash); "
        "hundreds at once on greenlets (needs gevent), or, for async def tasks, on one asyncio loop",
    )
    add(
        "-q",
        "--queues",
        metavar="A,B",
        type=names,
        help="only these queues, in this order of preference (default all); A:3,B:1 serves them three to one instead, "
        "and A=1,B keeps a worker for jobs of A",
    )
    add(
        "-n",
        "--no-periodic",
        help="fire no schedules; everything else is done as ever",
    )
    add(
        "-M",
        "--max-tasks",
        metavar="N",
        type=whole_number(1),
        help="replace a worker by a fresh one after so many jobs",
    )
    add(
        "--max-memory",
        metavar="MB",
        type=whole_number(1),
        help="replace a worker process by a fresh one if it has more megabytes of memory after a job",
    )
    add(
        "--start-method",
        choices=("fork", "spawn", "forkserver"),
        help="how worker processes are started (default forkserver on Linux, spawn elsewhere)",
    )


def _declare_life(group: argparse._ArgumentGroup, settings: Settings) -> None:
    add = partial(settings.add, group)
    add("--burst", help="run what is due, until nothing is left, then exit")
    add("--reload", help="for development: restart whenever a source file of the app changes")
    add(
        "--shutdown-timeout",
        metavar="TIME",
        type=duration,
        default=25.0,
        help="how long running jobs may go on after a stop: seconds, or 1m (default 25)",
    )
    add(
        "--pidfile", metavar="FILE", help="keep the process id in this file; refuse to start if it names a live process"
    )


def _declare_logs(group: argparse._ArgumentGroup, settings: Settings) -> None:
    add = partial(settings.add, group)
    add("-l", "--logfile", metavar="FILE", help="append the log to this file instead of standard error")
    how_much = partial(settings.add, group.add_mutually_exclusive_group())
    how_much(
        "-v", "--verbose", help="log what happens in between too, and tracebacks of an app that cannot be imported"
    )
    how_much("--quiet", help="log warnings and errors only")
    settings.exclude("verbose", "quiet")
    form = partial(settings.add, group.add_mutually_exclusive_group())
    form("-S", "--simple", help="log lines of time and message only")
    form("--json-logs", help="log one JSON object a line")
    settings.exclude("simple", "json_logs")


def understood(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, completed from the environment. Ends the program where they cannot be understood."""
    program, settings = _declared()
    arguments = program.parse_args(argv)
    try:
        settings.complete(arguments, os.environ)
    except ValueError as error:
        complain(_PROGRAM, str(error))
        sys.exit(MISUSED)
    return arguments


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────


def _consume(arguments: argparse.Namespace, stopper: Stopper, restarter: Restarter) -> None:
    """Import the app and run its consumer until it is stopped.

    Raises:
        Refused: something about it cannot be used; no job was touched. StopAsked: a signal came before the consumer.
    """
    from liteq.consumer import LogSetup, collect_less_often

    prepare_for(arguments.worker_type)
    where = None if arguments.logfile is None else str(Path(arguments.logfile).absolute())
    log = LogSetup(_level(arguments), _format(arguments), where)
    try:
        log.apply()
    except OSError as error:
        raise Refused(f"cannot write the log file {where}: {error.strerror or error}") from None
    app = import_app(arguments.app, verbose=bool(arguments.verbose or arguments.reload))
    restarter.imported()
    try:
        collect_less_often()
        with pidfile(arguments.pidfile, stays=stopper.goes_on), _main_kept_from_workers():
            consumer = app.create_consumer(log=log, **_options(arguments))
            stopper.guard(consumer)
            consumer.run()
    except (StorageError, ConfigurationError) as error:
        raise refusal(error) from None
    finally:
        app.close()


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `liteq.consumer.ConsumerOptions` takes."""
    return {
        "workers": arguments.workers,
        "worker_type": arguments.worker_type,
        "queues": arguments.queues,
        "periodic": not arguments.no_periodic,
        "shutdown_timeout": arguments.shutdown_timeout,
        "max_tasks": arguments.max_tasks,
        "max_memory": arguments.max_memory,
        "burst": bool(arguments.burst),
        "start_method": arguments.start_method,
        "app_path": arguments.app,  # not where the app was made: this module may be the one that adds the tasks to it
    }


def _level(arguments: argparse.Namespace) -> int:
    return logging.DEBUG if arguments.verbose else logging.WARNING if arguments.quiet else logging.INFO


def _format(arguments: argparse.Namespace) -> LogFormat:
    return "simple" if arguments.simple else "json" if arguments.json_logs else "full"


@contextmanager
def _main_kept_from_workers() -> Iterator[None]:
    """Hide what ``__main__`` is for the length of the block.

    multiprocessing has each new process import its parent's main module, by its ``__spec__`` or its ``__file__``. That
    is this program, of which a worker needs nothing: it took each 30 ms, and workers are started again and again.
    """
    main_module = sys.modules["__main__"]
    kept = main_module.__spec__, getattr(main_module, "__file__", None)
    main_module.__spec__ = main_module.__file__ = None
    try:
        yield
    finally:
        main_module.__spec__, main_module.__file__ = kept


if __name__ == "__main__":
    sys.exit(main())
