"""A process's copy of a queue in memory, kept up with the queue's journal.

You stand on floor 1, below `file`. A question is answered by the model, as soon as that has heard of everything that
was in the journal when it was asked. A verb takes the turn, hears the rest, is carried out on the model, and written
down as one line; the line is the commit.

The disk is the truth: whenever something strikes between the first step of a verb and its line, the model is thrown
away, and read again when it is needed next.

Who only adds jobs needs no model: the number of the next job stands in the last line.
"""

from __future__ import annotations

import gc
import os
import stat
import threading
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from random import getrandbits
from typing import Any, TypeVar

from liteq.errors import DuplicateJob, StorageError, StorageUnusable
from liteq.job import Job
from liteq.storage.base import Added
from liteq.storage.filesystem import network_filesystem
from liteq.storage.journal import HEAD, NAME, NEXT, Head, Journal, Line, Successor, line_of, make_first, unusable
from liteq.storage.locks import Turnstile
from liteq.storage.planted import refuse_planted
from liteq.storage.record import is_plain, text_of, trimmed, values_of
from liteq.storage.replay import VERBS, Differs, Frozen, Model, evidence, stored_as
from liteq.storage.shelter import in_shelter

T = TypeVar("T")

#: What may be in the directory of a queue that has no journal yet: others are about to make it.
_OURS = frozenset({NAME, "turn-a", "turn-b", "consumers", "keeper"})

#: A journal is replaced when the verbs in it are longer than so many bytes, and than so many times the state.
GROWN, TIMES = 8 << 20, 2
#: Where nobody keeps the queue up, because it has no consumer, whoever writes does it from this many times that.
NEGLECTED = 8


class Replica:
    """See the module. Safe between threads; in a forked child it goes on with its copy.

    Args:
        directory: absolute.
        durability: ``"full"``: what was stored survives power loss.
        create: make the queue if there is none.
        allow_network_fs: do not refuse a file system on which locks fail silently.
        dead: which of these owners, by the names of their slot files, are dead.
    """

    def __init__(
        self,
        directory: Path,
        durability: str,
        *,
        create: bool,
        allow_network_fs: bool,
        dead: Callable[[Mapping[int, str]], Collection[int]],
    ) -> None:
        self.directory = directory
        self.turnstile = Turnstile(directory)
        self._durability = durability
        self._create = create
        self._allow_network_fs = allow_network_fs
        self._dead = dead
        self._lock = threading.RLock()
        self._forget()
        with _births:
            _replicas.add(self)

    def _forget(self) -> None:
        self._journal: Journal | None = None
        self._model: Model | None = None
        #: How much of the journal the model has heard of.
        self._heard = HEAD
        #: Where the last line that was seen ends, and the seq of the next job after it.
        self._tail: tuple[int, int] = 0, 0
        #: Up to where a neglected journal is left as it is.
        self._not_before = 0

    # ── what storages do ─────────────────────────────────────────────────────────────────────────────

    def ask(self, question: Callable[[Model], T]) -> T:
        """What the model answers, up to date.

        Raises:
            StorageError: the journal cannot be read.
        """
        return in_shelter(self._ask, question)

    def _ask(self, question: Callable[[Model], T]) -> T:
        with self._alone():
            return question(self._caught_up())

    def write(self, name: str, *given: Any, **named: Any) -> Any:
        """Carry out a verb of the model, and write it down.

        Raises:
            StorageError: nothing has happened.
        """
        return in_shelter(self._write, name, given, named)

    def _write(self, name: str, given: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        with self._alone():
            self._caught_up()  # what is long is read while others may write
            self._end_what_was_cut_short()
            with self.turnstile:
                journal = self._enter()
                model = self._up_to(journal, journal.size())
                answer = self._carry_out(journal, model, name, given, named)
                self._replace_if_neglected(journal, model)
                return answer

    def add(self, jobs: Sequence[Job], **more: Any) -> Added:
        """The verb of this name; without the model, where nothing depends on it.

        Args:
            jobs: and what else the verb takes.
        """
        return in_shelter(self._add, jobs, {name: value for name, value in more.items() if value is not None})

    def _add(self, jobs: Sequence[Job], more: Mapping[str, Any]) -> Added:
        if not jobs:
            return Added()
        with self._alone():
            if not more and all(map(is_plain, jobs)) and all(_is_new(job) for job in jobs):
                self._open()
                self._end_what_was_cut_short()
                with self.turnstile:
                    added = self._add_blindly(self._enter(), jobs)
                if added is not None:
                    return added
        return self._write("add", (jobs,), more)  # type: ignore[no-any-return]

    def _add_blindly(self, journal: Journal, jobs: Sequence[Job]) -> Added | None:
        """Write down new jobs without looking at the others; ``None``: the model is to do it."""
        end = journal.size()
        self._require_whole(journal, end)
        model = self._model if self._heard == end else None
        seq = self._tail[1] if self._tail[0] == end else journal.next_seq(end)
        if seq is None:
            return None  # the rest of a line of one who died; the model finds out where it begins
        draw = getrandbits(40)
        stored = [stored_as(job, number, draw) for number, job in enumerate(jobs, seq)]
        line = line_of(text_of(["add", draw, None, [[trimmed(job) for job in jobs]]]), seq + len(jobs))
        journal.prove_room(end)
        try:
            journal.append(line, end)
            self._tail = end + len(line), seq + len(jobs)
            if model is not None:
                model.prepare(draw, None)
                model.add(jobs)
                self._heard = end + len(line)
        except BaseException as error:
            if not isinstance(error, StorageError):
                self._model = None  # it may have gone half way
            raise
        return Added(stored)

    def barrier(self) -> None:
        """Return once every write that was under way has ended."""
        self.turnstile.barrier()

    def prepare(self) -> None:
        """Make sure that there is a queue."""
        with self._alone():
            self._open()
            self._end_what_was_cut_short()
            with self.turnstile:
                self._enter()

    def close(self) -> None:
        """Let go of everything; the next use opens it again."""
        with self._alone():
            if self._journal is not None:
                self._journal.close()
            self._forget()
            self.turnstile.close()

    def _alone(self) -> threading.RLock:
        """The lock, for one who does not hold it yet: he might find things half done.

        Raises:
            StorageError: this thread does: it is a signal's handler, or a finalizer, in the middle of another call.
        """
        if self._lock._is_owned():  # type: ignore[attr-defined]  # what threading.Condition asks as well
            raise StorageError(
                f"{self.directory}: the queue was used by a signal handler (or a finalizer) in the middle of another "
                "call of this thread; nothing was done. Have the handler set a flag, or start a thread"
            )
        return self._lock

    # ── one verb ─────────────────────────────────────────────────────────────────────────────────────

    def _carry_out(
        self, journal: Journal, model: Model, name: str, given: tuple[Any, ...], named: Mapping[str, Any]
    ) -> Any:
        journal.prove_room(self._heard)
        verb = VERBS[name]
        arguments = verb.arguments(model, given, named)
        draw, dead = getrandbits(40), list(self._dead(model.slots)) if verb.deaths else None
        model.prepare(draw, dead)
        try:
            answer = verb.call(model, arguments)
            if not (verb.always or model.has_changed):
                return answer
            record = [name, draw, dead, verb.written(arguments), *evidence(name, answer)]
            line = line_of(text_of(record), model.next_seq)
            journal.append(line, self._heard)
            self._heard += len(line)
            self._tail = self._heard, model.next_seq
        except BaseException as error:
            if verb.always or model.has_changed or not isinstance(error, (StorageError, DuplicateJob)):
                self._model = None  # it may hold what the journal does not
            raise
        return answer

    # ── hearing of what others did ───────────────────────────────────────────────────────────────────

    def _caught_up(self) -> Model:
        """The model, with everything that had been committed when this was called."""
        journal, model = self._journal, self._model
        if journal is not None and model is not None and journal.is_in_place() and journal.size() == self._heard:
            return model
        self._open()
        self._end_what_was_cut_short()
        with self.turnstile:
            journal = self._enter()
            end = journal.size()
            if end - self._heard < _READ_IN_THE_TURN and self._model is not None:
                return self._up_to(journal, end)
        self._hear(journal, end)
        if self._model is None or self._heard < end:
            with self.turnstile:
                journal = self._enter()
                return self._up_to(journal, journal.size())
        return self._model

    def _up_to(self, journal: Journal, end: int) -> Model:
        """The model with all that there is, in the turn; what a dead writer has left at the end is cut off."""
        self._require_whole(journal, end)
        if self._model is None or self._heard < end:
            self._hear(journal, end)
            if self._heard < end:
                journal.cut_or_refuse(self._heard)
        assert self._model is not None
        return self._model

    def _require_whole(self, journal: Journal, end: int) -> None:
        if end < max(self._heard, self._tail[0]):
            self._forget()
            raise StorageError(
                f"{journal.path} has become shorter while it was in use: somebody has written to it who is not liteq. "
                "Nothing was stored. The next call reads what is there now"
            )

    def _hear(self, journal: Journal, end: int) -> None:
        """Put to the model what stands in the journal, until there is a line that is not good."""
        if self._model is None:
            self._model, self._heard = Model(), HEAD
        model = self._model
        with _no_collections():
            try:
                for lines in journal.lines(self._heard, end):
                    _repeat(model, lines, journal.path)
                    self._heard = lines[-1].end
                    self._tail = self._heard, lines[-1].next_seq
            except BaseException:
                self._model = None
                raise

    def _enter(self) -> Journal:
        """The journal, in the turn: opened, made if there is none, or the one that has taken its place."""
        journal = self._journal
        try:
            if journal is None:
                self._forget()
                journal = self._journal = self._opened()
            elif not journal.is_in_place():
                journal = self._journal = self._followed(journal)
        except BaseException:
            self._forget()
            raise
        return journal

    def _opened(self) -> Journal:
        try:
            return Journal(self.directory, self._durability)
        except FileNotFoundError:
            if not self._create:
                raise StorageUnusable(f"{self.directory} holds no liteq queue; it was left untouched") from None
        make_first(self.directory)
        return Journal(self.directory, self._durability)

    def _followed(self, old: Journal) -> Journal:
        """The journal that has taken the place of ours."""
        try:
            new = Journal(self.directory, self._durability)
        except FileNotFoundError:
            new = None
        if new is None or new.head.queue != old.head.queue or new.head.generation <= old.head.generation:
            raise StorageError(
                f"{old.path} was deleted or replaced while it was in use; nothing was stored, and what was in the old "
                "one is gone from here. The next call opens what is there now"
            )
        if self._model is not None and new.head.generation == old.head.generation + 1:
            self._up_to(old, old.size())  # complete, as nobody writes to it any more
            self._heard = new.head.state + self._heard - new.head.replaced
        else:
            self._model, self._heard = None, HEAD
        self._tail = 0, 0
        return new

    # ── opening ──────────────────────────────────────────────────────────────────────────────────────

    def _open(self) -> None:
        """Look at the directory before anything is made in it, the turnstile's files included."""
        if self._journal is not None:
            return
        try:
            self._check_directory()
        except StorageError:
            raise
        except OSError as error:
            raise unusable(self.directory, error) from error

    def _check_directory(self) -> None:
        path = self.directory
        refuse_planted(path)
        if not path.exists():
            self._make_directory()
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise StorageUnusable(f"{path} is not a directory; a FileStorage takes the path of a directory of its own")
        if not hasattr(os, "pwrite"):
            raise StorageUnusable(
                "this platform cannot write at a place in a file, so liteq cannot keep a journal here"
            )
        kind = None if self._allow_network_fs else network_filesystem(path)
        if kind is not None:
            raise StorageUnusable(
                f"{path} lies on a network filesystem ({kind}), where file locks fail silently and jobs would be lost "
                "or run twice; use a local disk, or pass FileStorage(path, allow_network_fs=True) if you know better"
            )
        if status.st_mode & stat.S_IWOTH:
            raise StorageUnusable(
                f"everybody may write to the directory {path}, and so exchange the files in it; take that right away "
                f"(chmod o-w {path})"
            )
        if not (path / NAME).exists():
            self._check_empty()

    def _check_empty(self) -> None:
        names = [one.name for one in self.directory.iterdir()]
        foreign = sorted(name for name in names if name not in _OURS and not name.startswith(NEXT))
        if foreign:
            raise StorageUnusable(
                f"{self.directory} is not a queue's directory: it holds {foreign[0]!r} and no journal; it was left "
                "untouched. A FileStorage takes a directory of its own, or makes it"
            )
        if not self._create:
            raise StorageUnusable(f"{self.directory} holds no liteq queue; it was left untouched")

    def _make_directory(self) -> None:
        path = self.directory
        if not self._create:
            raise StorageUnusable(f"{path} does not exist")
        if not path.parent.is_dir():
            raise StorageUnusable(f"{path} cannot be created: the directory {path.parent} does not exist")
        # 0700 from the start: job arguments are nobody else's business.
        path.mkdir(mode=0o700, exist_ok=True)

    def _end_what_was_cut_short(self) -> None:
        """A Ctrl-C may have struck this thread on its way out of the turn."""
        if self.turnstile.is_taken and self.turnstile.is_mine():
            self.turnstile.release()

    # ── a shorter journal ────────────────────────────────────────────────────────────────────────────

    def shorten(self, *, at_once: bool = False) -> bool:
        """Replace a journal that has grown (or any, ``at_once``) by one that begins with the state; False: it was not
        done.

        The state is encoded and written while everybody goes on; only for what they have written meanwhile, which is
        copied, they wait.
        """
        with self._alone():
            model = self._caught_up()
            journal, heard = self._journal, self._heard
            if journal is None or not (at_once or _has_grown(journal, heard)):
                return False
            state = model.frozen()
        successor = Successor(self.directory)
        try:
            write_state(state, successor)
            successor.settle()
            with self._alone():
                self._end_what_was_cut_short()
                with self.turnstile:
                    if self._enter() is not journal:
                        return False  # somebody else did it, or it was opened anew
                    self._up_to(journal, journal.size())
                    self._take_over(journal, successor, heard, state.next_seq)
        finally:
            successor.close()
        return True

    def _take_over(self, journal: Journal, successor: Successor, heard: int, next_seq: int) -> None:
        state = successor.end
        successor.write(journal.read(heard, journal.size()))
        head = journal.head
        successor.take_over(Head(head.queue, head.generation + 1, state, heard, next_seq), journal.path)
        self._enter()

    def _replace_if_neglected(self, journal: Journal, model: Model) -> None:
        if not is_neglected(journal, self._heard) or self._heard < self._not_before:
            return
        self._not_before = self._heard + GROWN
        try:
            successor = Successor(self.directory)
            try:
                state = model.frozen()
                write_state(state, successor)
                self._take_over(journal, successor, self._heard, state.next_seq)
            finally:
                successor.close()
        except StorageError:
            # The verb itself is stored, and the journal as good as before; a disk that is nearly full has no room for
            # both. Whoever writes later tries again.
            return


#: A question reads so many bytes in the turn; more of them outside, in which case it takes the turn twice.
_READ_IN_THE_TURN = 1 << 20


def is_neglected(journal: Journal, end: int) -> bool:
    """Whether the verbs in a journal are so long that somebody should have replaced it long ago."""
    return _has_grown(journal, end, NEGLECTED)


def _has_grown(journal: Journal, end: int, times: int = 1) -> bool:
    state = journal.head.state
    return end - state > times * max(GROWN, TIMES * state)


def write_state(state: Frozen, successor: Successor) -> None:
    """Write a state as the beginning of a journal."""
    for name, content in state.parts():
        successor.write(line_of(text_of(["state", name, content]), state.next_seq))


def _is_new(job: Job) -> bool:
    return job.state == "ready" or (job.state == "scheduled" and job.due is not None)


def _repeat(model: Model, lines: Sequence[Line], path: Path) -> None:
    """Put to the model what stands in these lines."""
    records = values_of([line.text for line in lines])
    try:
        model.repeat_all(records, [line.next_seq for line in lines])
    except Differs as error:
        raise StorageUnusable(
            f"{path}, before byte {lines[error.at].end}: {error}. Another version of liteq wrote it, and does some "
            f"things otherwise; it was left untouched. With that version, FileStorage({str(path.parent)!r}).compact() "
            "makes a journal that this one reads"
        ) from error


class _no_collections:  # noqa: N801 - reads like a function
    """Reading a long journal makes many objects that stay; the collector would look at all of them time and again."""

    def __enter__(self) -> None:
        self._was_on = gc.isenabled()
        gc.disable()

    def __exit__(self, *_exception: object) -> None:
        if self._was_on:
            gc.enable()


# ── fork ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
# A child goes on with a copy of the model, and shares the descriptor: nothing depends on its position. So a fork waits
# until no thread is at work on any of them, as a lock that another thread holds would stay locked in the child.

_births = threading.Lock()
_replicas: weakref.WeakSet[Replica] = weakref.WeakSet()
_held: list[Replica] = []


def _before_fork() -> None:
    _births.acquire()
    _held.extend(_replicas)
    for replica in _held:
        replica._lock.acquire()


def _after_fork() -> None:
    for replica in _held:
        replica._lock.release()
    _held.clear()
    _births.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
