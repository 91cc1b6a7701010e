"""Unique keys in memory: the plainest form of what `Storage.add` promises about them, and its specification."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from liteq import lifecycle
from liteq.errors import DuplicateJob
from liteq.job import FINISHED, Job, JobState
from liteq.lifecycle import Meeting
from liteq.storage.base import Rival
from liteq.unique import Unique

#: A task and a key.
Key = tuple[str, str]


class Held(NamedTuple):
    """Who was the last to take a key, and the running job of it that he follows, until that one has ended."""

    job: int
    after: int | None = None


@dataclass(slots=True)
class Draft:
    """What is going to be changed: rows by seq, who takes which key, the keys of new jobs, when which jobs are changed
    by new ones, and which of them are to forget what they have done."""

    rows: dict[int, Job] = field(default_factory=dict)
    held: dict[Key, Held] = field(default_factory=dict)
    keys: dict[int, Key] = field(default_factory=dict)
    changed: dict[int, float] = field(default_factory=dict)
    anew: set[int] = field(default_factory=set)


class MemoryUnique:
    """Who holds which key. Called by the storage, under its lock.

    Args:
        rows: the storage's own jobs by seq, without history.
        marks: the storage's own.
        keys: task and key of each job that came with one, by seq.
        held: who was the last to take each key, by task and key.
    """

    def __init__(
        self, rows: Mapping[int, Job], marks: Mapping[str, str], keys: dict[int, Key], held: dict[Key, Held]
    ) -> None:
        self._rows = rows
        self._marks = marks
        self._keys = keys
        self._held = held

    # ── adding ───────────────────────────────────────────────────────────────────────────────────────

    def plan(self, row: Job, unique: Unique, draft: Draft) -> tuple[Job, Meeting]:
        """What becomes of a new row of this key, on top of what is planned already; changes nothing but the draft.

        Returns:
            The row, or the one that holds the key, and what became of the row: it is ``KNOWN``, or has ``CHANGED`` the
            holder, or is stored.

        Raises:
            DuplicateJob: the key is held, and the job says that this is an error.
        """
        holder = self._holder(row, unique, draft)
        meeting = Meeting.STANDS if holder is None else self._meet(row, unique, holder)
        if holder is not None and meeting is Meeting.KNOWN:
            return holder, meeting
        if holder is not None and meeting is Meeting.CHANGED:
            draft.rows[holder.seq] = lifecycle.change(holder, row, unique)
            draft.changed[holder.seq] = row.created
            if lifecycle.begins_anew(unique):
                draft.anew.add(holder.seq)
            return draft.rows[holder.seq], meeting
        after = None
        if holder is not None and meeting is Meeting.FOLLOWS:
            row, after = lifecycle.follow(row, holder.id), holder.seq
        draft.rows[row.seq] = row
        draft.keys[row.seq] = row.task, unique.key
        draft.held[row.task, unique.key] = Held(row.seq, after)
        return row, meeting

    def _holder(self, row: Job, unique: Unique, draft: Draft) -> Job | None:
        """The unfinished job to reckon with: the last to take the key, or, if that will never run, whom it follows."""
        held = self._last((row.task, unique.key), draft)
        holder = None if held is None else draft.rows.get(held.job) or self._rows[held.job]
        if held is None or holder is None or holder.state in FINISHED:
            return None
        never = held.after is not None and lifecycle.has_expired(holder, row.created)
        return self._rows[held.after] if never and held.after is not None else holder

    def _last(self, name: Key, draft: Draft) -> Held | None:
        return draft.held.get(name) or self._held.get(name)

    def _meet(self, row: Job, unique: Unique, holder: Job) -> Meeting:
        cancelled = lifecycle.cancel_mark(holder) in self._marks
        meeting = lifecycle.meet(row, unique, holder, cancelled=cancelled)
        if meeting is Meeting.REFUSED:
            raise DuplicateJob(row.task, unique.key, holder.id)
        return meeting

    def hold(self, draft: Draft) -> None:
        """What was planned has been stored."""
        self._keys.update(draft.keys)
        self._held.update(draft.held)

    # ── the turn ─────────────────────────────────────────────────────────────────────────────────────

    def ended(self, seqs: Collection[int], let_go: Callable[[Job], None]) -> None:
        """These have ended: let those go on that followed them, and give keys back to whom they followed themselves."""
        names = [(seq, self._keys[seq]) for seq in seqs if seq in self._keys]
        for seq, name in names:
            held = self._held.get(name)
            if held is not None and held.after == seq:
                self._held[name] = Held(held.job)
                if self._rows[held.job].state is JobState.BLOCKED:
                    let_go(self._rows[held.job])
        for seq, name in names:
            held = self._held.get(name)
            if held is not None and held.job == seq and held.after is not None:
                self._held[name] = Held(held.after)

    def rival(self, seq: int, draft: Draft) -> Rival | None:
        """See `Storage.rival`; on top of what is planned already."""
        name = self._keys.get(seq)
        held = None if name is None else self._last(name, draft)
        if name is None or held is None or held.job == seq:
            return None
        row = draft.rows.get(held.job) or self._rows[held.job]
        return None if row.state in FINISHED else Rival(name[1], row.id)

    def bring_back(self, seq: int, draft: Draft) -> None:
        """A finished job is going to come back: its key is its own again."""
        if (name := self._keys.get(seq)) is not None:
            draft.held[name] = Held(seq)

    def forget(self, seq: int) -> None:
        """A finished job is deleted."""
        name = self._keys.pop(seq, None)
        held = None if name is None else self._held.get(name)
        if name is not None and held is not None and held.job == seq:
            del self._held[name]
