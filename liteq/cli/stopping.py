"""How the consumer's program is stopped from outside, and how it leaves: nothing may keep it from ending."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from liteq.consumer import Consumer

#: Seconds that threads of the app are given to end after the consumer has stopped.
PATIENCE = 5.0


class StopAsked(BaseException):
    """Raised by a signal while there is no consumer yet; not an Exception, so that the app's module does not catch
    it.
    """


class Stopper:
    """What TERM and INT do, and on Windows Ctrl-Break: the first stops the consumer, the second stops it at once. USR1
    has the stacks of running jobs logged.

    Handlers are installed even where the default would do, because it would not for process 1 of a container: the
    kernel drops signals to it that it has no handler for.
    """

    def __init__(self) -> None:
        #: Whether the program is to end.
        self.asked = False
        #: Whether it is to end in order to begin anew.
        self.restarting = False
        self._consumer: Consumer | None = None
        self._leaving: int | None = None

    def install(self) -> None:
        """From here on the signals come here."""
        for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self)
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, self._on_stack_signal)

    def guard(self, consumer: Consumer) -> None:
        """There is a consumer now."""
        self._consumer = consumer
        if self.asked or self.restarting:  # and something in the app's module has swallowed StopAsked
            raise StopAsked

    def goes_on(self) -> bool:
        """Whether the process stays, as a program that begins anew."""
        return self.restarting and not self.asked

    def stop(self) -> None:
        """As the first signal; from any thread but the main one."""
        self.asked = True
        if self._consumer is not None:
            self._consumer.stop(wait=False)

    def restart(self, grace: float | None = None) -> None:
        """Stop in order to begin anew; from any thread but the main one.

        Args:
            grace: seconds after which running jobs are interrupted; ``None``: those that a stop gives them.
        """
        self.restarting = True
        consumer = self._consumer
        if consumer is None:
            return
        consumer.stop(wait=False)
        if grace is not None:
            threading.Event().wait(grace)
            consumer.stop(at_once=True, wait=False)

    def leave(self, code: int) -> None:
        """The consumer has stopped: another signal ends the program with ``code``."""
        self._leaving = code

    def __call__(self, number: int, frame: FrameType | None) -> None:
        is_first, self.asked = not self.asked, True
        if self._leaving is not None:
            end_now(self._leaving)
        if self._consumer is None:
            raise StopAsked
        if not (is_first and self.restarting):  # else it is stopping already, and now for good
            self._consumer.on_signal(number, frame)

    def _on_stack_signal(self, number: int, frame: FrameType | None) -> None:
        if self._consumer is not None:
            self._consumer.on_stack_signal(number, frame)


def leave(code: int) -> None:
    """See to it that the program ends, although something in it may not.

    Returning is the normal way out: the interpreter waits for the app's threads and calls its atexit handlers. It waits
    for ever where a thread of the app hangs, so that is cut short after PATIENCE. And where a worker thread was given
    up because nothing could stop its task, that thread still runs: an interpreter that is being taken down around it
    may abort (a thread that holds the lock of standard error is enough), so then the handlers are called here and the
    process ends at once.
    """
    # The second is for a thread that hangs while it holds the lock of a stream or a logger, which the first must take.
    for wait, end in ((PATIENCE, _leave_behind), (PATIENCE + 1, os._exit)):
        timer = threading.Timer(wait, end, (code,))
        timer.daemon = True
        timer.start()
    if any(thread.name == "liteq-worker" for thread in threading.enumerate()):
        atexit._run_exitfuncs()
        end_now(code)


def _leave_behind(code: int) -> None:
    names = [one.name for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
    logging.getLogger("liteq").warning("threads of the app have not ended, leaving without them: %s", names)
    end_now(code)


def end_now(code: int) -> None:
    """End the process without waiting for anything; what was written goes out."""
    flush()
    os._exit(code)


def flush() -> None:
    """Let what was written go out."""
    for stream in (sys.stdout, sys.stderr, *(getattr(one, "stream", None) for one in logging.getLogger().handlers)):
        with suppress(OSError, ValueError, RuntimeError):  # gone, closed, or being flushed where the signal came
            if stream is not None:
                stream.flush()
