"""The worker process of greenlets: the child's side of `liteq.consumer.pools.greenlet`.

Jobs run on greenlets of the main thread, whose hub switches between them where they wait. A second, real thread reads
what the consumer sends: it goes on while a job keeps the hub busy, can tell which one it is, and can have an exception
raised in it by a signal. It uses nothing that gevent has patched.

Greenlets are kept from job to job, as threads are, so that what a task keeps by thread stays.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing import process, spawn, util
from types import FrameType
from typing import Any

import gevent
import gevent.event
import gevent.monkey
import gevent.queue
import greenlet

from liteq import logs
from liteq.consumer import stacks
from liteq.consumer.loading import load_app
from liteq.consumer.pools import worker
from liteq.consumer.pools.last_words import SharedWords
from liteq.consumer.pools.messages import Message, Run, Unframer, frame, pack_outcome, unpack_job
from liteq.consumer.pools.place import place_of
from liteq.errors import TaskTimeout
from liteq.execution import Interrupted, Runtime, execute
from liteq.job import Ending, Job, Outcome, Progress
from liteq.storage import begun
from liteq.storage.shelter import Shelter, in_shelter

#: Seconds; what takes longer needs no timer.
LONGEST_TIMER = 1e9
NOBODY: Run = (0, 0)


def main(channel: int, sentinel: int, liveness: int | None) -> None:
    """See `liteq.patched.main`."""
    for descriptor in filter(None, (channel, sentinel, liveness)):
        os.set_inheritable(descriptor, False)  # what a job starts must keep neither us nor the consumer looking alive
        os.register_at_fork(after_in_child=partial(os.close, descriptor))
    os.set_blocking(channel, True)  # a program that is patched makes none that block
    unframer = Unframer()
    messages = _receive(channel, unframer)
    parent = None
    try:
        setup: worker.WorkerSetup
        setup, preparation = pickle.loads(messages.pop(0)[1])  # from the process that started us
        util._close_stdin()  # type: ignore[attr-defined]
        parent = worker._isolate(setup)
        if setup.log is not None:
            setup.log.apply()
        process.current_process()._inheriting = True  # type: ignore[attr-defined]
        spawn.prepare(preparation)  # the path, and what the program's main module defines
        del process.current_process()._inheriting  # type: ignore[attr-defined]
        runtime = load_app(setup.app_path).engine.runtime
        recorder = begun.Recorder(liveness) if liveness is not None and begun.CAN_RECORD else None
        hub = Hub(runtime, channel, setup.number, recorder)
        for hook in runtime.on_startup:
            hook()
    except BaseException as error:  # noqa: BLE001 - told to the consumer, which knows what to do
        _tell_why_not(channel, error)
        raise SystemExit(1) from None
    if parent is not None and os.getppid() != parent:
        os._exit(1)  # it died before the kernel was asked to tell us
    hub.run(messages, unframer)


def _receive(channel: int, unframer: Unframer) -> list[Message]:
    """The next messages, at least one; none if the consumer is gone."""
    with suppress(OSError):
        while data := os.read(channel, 1 << 18):
            messages = list(unframer.feed(data))
            if messages:
                return messages
    return []


def _tell_why_not(channel: int, error: BaseException) -> None:
    import traceback

    text = "".join(traceback.format_exception(error))
    with suppress(OSError):  # then nobody is left to tell
        _send_all(channel, frame(("broken", text)))


def _send_all(channel: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(channel, left) :]


class Hub:
    """The jobs of this process, and its conversation with the consumer."""

    def __init__(self, runtime: Runtime, channel: int, number: int, recorder: begun.Recorder | None) -> None:
        self.runtime = runtime
        self._channel = channel
        self._recorder = recorder
        self._number = number
        self._by_greenlet: dict[Any, HubSlot] = {}
        self._sending = gevent.monkey.get_original("_thread", "allocate_lock")()
        self._loop = gevent.get_hub().loop
        self._alive = self._loop.async_()  # without a watcher, gevent takes a hub that only waits for us for dead
        self._alive.start(lambda: None)
        self._begun: gevent.queue.SimpleQueue = gevent.queue.SimpleQueue()
        self._idle = 0
        self._slots: dict[Run, HubSlot] = {}
        self._to_strike: HubSlot | None = None
        self._main = gevent.monkey.get_original("_thread", "get_ident")()
        self._words = self._last_words()
        self._leaving = gevent.event.Event()

    def run(self, messages: list[Message], unframer: Unframer) -> None:
        """Tell that we are ready, and run jobs until the end."""
        signal.signal(signal.SIGUSR2, self._on_strike)
        if self._recorder is not None:
            greenlet.settrace(self._on_switch)
        gevent.monkey.get_original("_thread", "start_new_thread")(self._read, (messages, unframer))
        self.send(("ready",))
        self._leaving.wait()
        for hook in self.runtime.on_shutdown:
            try:
                hook()
            except Exception as error:  # noqa: BLE001 - the other hooks still run
                logs.logger.error("on_shutdown hook %r failed", hook, exc_info=error)

    def _last_words(self) -> SharedWords | None:
        box = None if self._recorder is None else self._recorder.box(self._number)
        if box is None:
            return None
        lock = gevent.monkey.get_original("_thread", "allocate_lock")()
        return SharedWords(box, self._whose, self.runtime.clock.monotonic, lock)

    def _whose(self) -> int:
        """Whose code calls; 0: no job's."""
        slot = self._by_greenlet.get(gevent.getcurrent())
        return 0 if slot is None else slot.seq

    def send(self, message: Message) -> None:
        """Tell the consumer; from any thread."""
        try:
            with self._sending:
                _send_all(self._channel, frame(message))
        except TaskTimeout:  # an OSError too, as every TimeoutError is
            raise
        except OSError:
            os._exit(1)  # the consumer is gone; what we did is recovered by another one

    # ── the reading thread ───────────────────────────────────────────────────────────────────────────

    def _read(self, messages: list[Message], unframer: Unframer) -> None:
        while True:
            for message in messages:
                self._obey(message)
            messages = _receive(self._channel, unframer)
            if not messages:
                os._exit(1)  # the consumer is gone, whatever the main thread is doing

    def _obey(self, message: Message) -> None:
        match message:
            case ("jobs", packed):
                self._call(self._begin, packed)
            case ("ping", number):
                self._call(self.send, ("pong", number))
            case ("who",):
                self.send(("blocked", *self._culprit()))
            case ("stack", run):
                self.send(("stack", run, self._stack(self._slots.get(run))))
            case ("cancel", run):
                self._tell(run, lambda slot: setattr(slot, "cancelled", True))
            case ("interrupt", run):
                self._tell(run, lambda slot: slot.is_to_end(self._call))
            case ("drop", run):
                self._tell(run, lambda slot: self._call(slot.drop))
            case ("strike", run):
                self._tell(run, self._strike)
            case ("stop",):
                self._call(self._leaving.set)

    def _call(self, what: Callable[..., object], *args: object) -> None:
        """Call something in the hub, soon."""
        self._loop.run_callback_threadsafe(what, *args)

    def _tell(self, run: Run, tell: Callable[[HubSlot], object]) -> None:
        slot = self._slots.get(run)
        if slot is not None:
            tell(slot)
        else:  # it has ended, or the hub has not come round to begin it
            self._call(lambda: run in self._slots and tell(self._slots[run]))

    def _culprit(self) -> tuple[Run, str]:
        """Which job the main thread executes, NOBODY if none, and where it is."""
        innermost = sys._current_frames().get(self._main)
        outer = innermost
        while outer is not None:
            if outer.f_code is HubSlot.run.__code__:
                return outer.f_locals["self"].key, place_of(innermost)
            outer = outer.f_back
        return NOBODY, place_of(innermost)

    def _stack(self, slot: HubSlot | None) -> str | None:
        if slot is None or slot.greenlet is None:
            return None
        if self._culprit()[0] == slot.key:
            return stacks.of_frame(sys._current_frames().get(self._main))
        return stacks.of_frame(slot.greenlet.gr_frame)

    def _strike(self, slot: HubSlot) -> None:
        self._to_strike = slot
        signal.pthread_kill(self._main, signal.SIGUSR2)

    def _on_strike(self, _number: int, frame: FrameType | None) -> None:
        """In the main thread, in the middle of whatever it executes: raised only in the body that is meant."""
        slot, self._to_strike = self._to_strike, None
        if slot is not None and slot.body_runs and slot.greenlet is gevent.getcurrent() and not _is_switching(frame):
            slot.shelter.strike(Interrupted if slot.interrupted else TaskTimeout)

    def _on_switch(self, _event: str, greenlets: tuple[Any, Any]) -> None:
        """Record whose code runs: if the process dies, it is that job which has killed it. (1 µs a switch.)"""
        slot = self._by_greenlet.get(greenlets[1])
        if self._words is not None:
            self._words.switch(slot)
        self._recorder.record(self._number, 0 if slot is None else slot.seq)  # type: ignore[union-attr]

    # ── the greenlets ────────────────────────────────────────────────────────────────────────────────

    def _begin(self, packed: list[Message]) -> None:
        """In the hub: let greenlets run these jobs."""
        for number, values in packed:
            job = unpack_job(values)
            slot = HubSlot(self, job)
            self._slots[slot.key] = slot
            if self._recorder is not None:
                self._recorder.record(number, job.seq)
            if self._words is not None and job.claim > 1:
                self._words.begin_anew(job.seq)
            if self._idle:
                self._idle -= 1
            else:
                gevent.spawn(self._work)
            self._begun.put(slot)

    def _work(self) -> None:
        threading.current_thread().name = "liteq-worker"
        shelter = Shelter(gevent.monkey.get_original("_thread", "allocate_lock")())
        shelter.move_in()
        while True:
            slot: HubSlot = self._begun.get()
            slot.shelter = shelter
            here = gevent.getcurrent()
            self._by_greenlet[here] = slot
            if self._recorder is not None:
                self._on_switch("switch", (None, here))
            outcome = slot.run()
            del self._by_greenlet[here]
            del self._slots[slot.key]
            self._idle += 1
            self.send(("done", pack_outcome(outcome)))


def _is_switching(frame: FrameType | None) -> bool:
    """Whether this is the end of a stretch, which is being recorded: then the job does not keep the hub busy."""
    while frame is not None and frame.f_code is not Hub._on_switch.__code__:
        frame = frame.f_back
    return frame is not None


class HubSlot:
    """One job on a greenlet: its Deadline and Channel."""

    passes_on = ()

    def __init__(self, hub: Hub, job: Job) -> None:
        self._hub = hub
        self.job = job
        self.seq = job.seq
        self.key: Run = job.seq, job.claim
        self.spent = 0.0
        self.greenlet: Any = None
        self.body_runs = False
        self.cancelled = False
        self.interrupted = False
        self.shelter = Shelter()
        self._timer: Any = None

    def run(self) -> Outcome:
        """Run the job in this greenlet."""
        self.greenlet = gevent.getcurrent()
        clock = self._hub.runtime.clock
        started = clock.now()
        try:
            if not self.interrupted:
                return execute(self.job, self._hub.runtime, self, self)
        except (Interrupted, TaskTimeout):  # raised a moment too late to be the task's
            pass
        finally:
            self.body_runs = False
        return Outcome(self.job.seq, self.job.claim, Ending.INTERRUPTED, started, clock.now())

    def drop(self) -> None:
        """It was given up: it may run on, but not keep others from writing to the queue's file."""
        self._hub.runtime.storage.end_transaction(self.job, "the job was given up")

    # ── Deadline, called in this greenlet by `execute` ───────────────────────────────────────────────

    def start(self, timeout: float | None, *, raises: bool) -> None:
        self.body_runs = True
        if self.interrupted:  # while nothing could be raised yet
            raise Interrupted
        if timeout is not None and timeout < LONGEST_TIMER:
            self._timer = gevent.get_hub().loop.timer(timeout)
            self._timer.start(self._throw, TaskTimeout)

    def stop(self) -> None:
        self.body_runs = False
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()
        self.shelter.take_back()

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        return None  # the consumer runs coroutines itself

    # ── Channel, called in this greenlet by the task ─────────────────────────────────────────────────

    def progress(self, job: Job, progress: Progress) -> None:
        in_shelter(self._hub.send, ("progress", job.seq, job.claim, *progress))  # half a message would be the last

    def is_cancelled(self, job: Job) -> bool:
        return self.cancelled

    # ── called by the reading thread ─────────────────────────────────────────────────────────────────

    def is_to_end(self, call: Callable[..., object]) -> None:
        """End the body as interrupted, as soon as it waits for something."""
        self.interrupted = True
        call(self._throw, Interrupted)

    def _throw(self, error: type[BaseException]) -> None:
        """In the hub, while the body waits for something: raised there, unless that is in a call of our storage."""
        if self.body_runs and not self.shelter.delays(error):
            self.greenlet.throw(error)
