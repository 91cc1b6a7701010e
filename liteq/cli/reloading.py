"""Restarting the consumer's program with the code as it is now: at HUP, and with ``--reload`` whenever it changes.

The consumer is stopped as by TERM, and the process then executes the same command again. It stays the same process, so
pidfiles, supervisors and containers notice nothing; everything it held is let go by the system: descriptors with their
locks, maps, threads. What ran has ended by then or was given back.

At HUP the new code is imported first by a child. If it cannot be, that is logged, and the old code goes on.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
from queue import SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from liteq.cli.stopping import PATIENCE, Stopper, flush

if TYPE_CHECKING:
    from liteq.cli.sources import Sources

#: Set for a program that was started anew; holds the descriptor from which to read the signals that came meanwhile, and
#: the directories of its source files, as far as they were known.
RESTARTED = "LITEQ_RESTARTED"
#: Set for a child that shall only find out whether the app can be imported.
ONLY_IMPORT = "LITEQ_ONLY_IMPORT"

#: Seconds for which such a child may take.
IMPORT_TIMEOUT = 60.0
#: With ``--reload``: seconds between two looks, and until the files are as they were at the last one.
LOOK_EVERY, SETTLED_AFTER = 0.2, 0.1
#: With ``--reload``: seconds that running jobs are given, and after which the process does not wait for anything.
GRACE, LONGEST = 0.3, 4.0

logger = logging.getLogger("liteq")

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class Program:
    """How this program was started. Made before anything of the app runs, which may change what is kept here."""

    def __init__(self) -> None:
        marker = os.environ.pop(RESTARTED, None)
        #: Whether it has started itself.
        self.restarted = marker is not None
        caught, *directories = (marker or "").split(os.pathsep)
        self._missed = _caught(int(caught)) if caught else b""
        #: Where its source files were then.
        self.directories = [one for one in directories if one]
        self.only_imports = bool(os.environ.pop(ONLY_IMPORT, None))
        self._command = [sys.executable or sys.orig_argv[0], *sys.orig_argv[1:]]
        self._environment = dict(os.environ)
        self._directory = os.getcwd()  # noqa: PTH109
        self._terminals = [number for number in (0, 1, 2) if os.isatty(number)]

    def lost_its_terminal(self) -> bool:
        """Whether a terminal that was there at the start is gone."""
        return any(not os.isatty(number) for number in self._terminals)

    def try_import(self) -> str | None:
        """Have a child import the app; what it complained of, or ``None``."""
        import subprocess

        try:
            done = subprocess.run(
                self._command,
                cwd=self._directory,
                env=self._environment | {ONLY_IMPORT: "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                timeout=IMPORT_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"importing it takes longer than {IMPORT_TIMEOUT:g} s"
        except OSError as error:
            return f"cannot start {self._command[0]}: {error}"
        return None if done.returncode == 0 else done.stdout.rstrip() or f"exit code {done.returncode}"

    def start_anew(self, directories: list[str], caught: int | None = None) -> NoReturn:
        """Become this program, from its beginning.

        Args:
            directories: of its source files.
            caught: from `catch_signals`.
        """
        marker = os.pathsep.join(["" if caught is None else str(caught), *directories])
        environment = self._environment | {RESTARTED: marker}
        hold_signals()
        flush()
        with contextlib.suppress(OSError):  # gone: then from where we are
            os.chdir(self._directory)
        if os.name == "nt":  # there a process cannot become another program; its caller would not wait for a new one
            import subprocess

            os._exit(subprocess.call(self._command, env=environment))
        os.execve(self._command[0], self._command, environment)

    def let_signals_come(self) -> None:
        """Hear the signals that came while the program started itself."""
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        for number in {signal.SIGTERM, signal.SIGINT} & set(self._missed):
            signal.raise_signal(number)


def hold_signals() -> None:
    """From here on signals wait, in this thread and in the program that it becomes."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def catch_signals() -> int:
    """As `hold_signals`, and have those that go to another thread written down. That one's are noted by the interpreter
    alone, and would be forgotten with it. Returns the descriptor to read them from.
    """
    hold_signals()
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    os.set_blocking(ours, False)
    os.set_inheritable(ours, True)
    signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    return ours


def _caught(descriptor: int) -> bytes:
    """The numbers of the signals that were written down."""
    try:
        return os.read(descriptor, 4096)
    except BlockingIOError:
        return b""
    finally:
        os.close(descriptor)


class Restarter:
    """Sees to it that the program restarts when it should.

    Args:
        program: this one.
        stopper: stops its consumer.
        sources: with ``--reload`` its files.
    """

    def __init__(self, program: Program, stopper: Stopper, sources: Sources | None) -> None:
        self._program = program
        self._stopper = stopper
        self._sources = sources
        self._hangups: SimpleQueue[int] = SimpleQueue()
        self._changed = threading.Event()

    def begin(self, *, hears_hangups: bool) -> None:
        """From here on the program restarts when it should; signals that came while it did so last are heard."""
        if hears_hangups:
            self.hear_hangups()
        if self._program.restarted:
            self._program.let_signals_come()
        if self._sources is not None:
            self.watch_sources()

    # ── HUP ──────────────────────────────────────────────────────────────────────────────────────────

    def hear_hangups(self) -> None:
        """HUP restarts, from here on. Where it is ignored (``nohup``) it stays so."""
        if not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            return
        threading.Thread(target=self._obey_hangups, name="liteq-restart", daemon=True).start()
        signal.signal(signal.SIGHUP, self._on_hangup)

    def _on_hangup(self, number: int, _frame: FrameType | None) -> None:
        self._hangups.put(number)  # unlike an Event's, safe wherever the main thread is

    def _obey_hangups(self) -> None:
        while True:
            self._hangups.get()
            if self._program.lost_its_terminal():
                logger.info("the terminal is gone, stopping (nohup, or a service manager, keeps a consumer)")
                self._stopper.stop()
                return
            if self._stopper.restarting or self._stopper.asked:
                continue
            _forget_stale_bytecode()
            complaint = self._program.try_import()
            if complaint is None:
                logger.info("restarting with fresh code")
                self._stopper.restart()
            else:
                logger.error("the new code cannot be imported; the old code goes on:\n%s", complaint)

    # ── --reload ─────────────────────────────────────────────────────────────────────────────────────

    def watch_sources(self) -> None:
        """Restart when a source file changes, from here on."""
        threading.Thread(target=self._watch, name="liteq-reload", daemon=True).start()

    def _watch(self) -> None:
        assert self._sources is not None
        pause = threading.Event()
        while (file := _settled_change(self._sources, pause)) is None:
            pause.wait(LOOK_EVERY)
        logger.info("restarting: %s has changed", file)
        self._sources.forget_stale_bytecode()
        self._changed.set()
        self._stopper.restart(GRACE)
        pause.wait(LONGEST)  # something does not end: an import, a thread in C code
        self._program.start_anew(self._sources.directories)

    def imported(self) -> None:
        """The app has been imported."""
        if self._sources is not None:
            self._sources.imported()

    def outlives(self, *, is_broken: bool) -> bool:
        """Whether a program that cannot go on waits for a change of its files; not where it was started wrongly.

        Args:
            is_broken: it is the app's code that fails.
        """
        return self._sources is not None and (is_broken or self._program.restarted)

    def wait_for_change(self) -> None:
        """Wait until a source file has changed. A signal handler that raises ends it."""
        logger.info("waiting for a change of a source file")
        self._changed.wait()

    # ── the restart itself ───────────────────────────────────────────────────────────────────────────

    def restart(self) -> None:
        """Start anew, unless somebody has asked for a stop meanwhile."""
        caught = catch_signals()
        if self._stopper.asked:
            self._program.let_signals_come()
            return
        directories = [] if self._sources is None else self._sources.directories
        # For a thread, a handler or a helper that hangs.
        timer = threading.Timer(PATIENCE, self._program.start_anew, (directories,))
        timer.daemon = True
        timer.start()
        if self._sources is None:
            _wait_for_threads()
        _end_helpers()  # first, because an exit handler removes what they use
        atexit._run_exitfuncs()
        if not self._stopper.asked:
            self._program.start_anew(directories, caught)
        timer.cancel()


def _settled_change(sources: Sources, pause: threading.Event) -> str | None:
    """A file that has changed, once nobody writes any more. Asked again then, because the first look may have come upon
    a file that the app itself was just writing, half empty still.
    """
    if sources.changed() is None:
        return None
    looks = sources.looks()
    while not pause.wait(SETTLED_AFTER) and looks != (looks := sources.looks()):
        continue
    return sources.changed()


def _forget_stale_bytecode() -> None:
    from liteq.cli.sources import forget_stale_bytecode, loaded_files

    forget_stale_bytecode(loaded_files())


def _wait_for_threads() -> None:
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            thread.join(PATIENCE / 2)


def _end_helpers() -> None:
    """End, and reap, what multiprocessing has started; it would stay our child, and not know the next program."""
    for module, helper in (("forkserver", "_forkserver"), ("resource_tracker", "_resource_tracker")):
        found = getattr(sys.modules.get(f"multiprocessing.{module}"), helper, None)
        stop, server = getattr(found, "_stop", None), getattr(found, "_forkserver_pid", None)
        if stop is None:
            continue
        with contextlib.suppress(OSError):  # it has ended, or was reaped, already
            if server is not None:
                os.kill(server, signal.SIGKILL)  # its workers are gone; by itself it takes a second to leave
            stop()
