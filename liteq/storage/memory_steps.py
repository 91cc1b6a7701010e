"""Steps and events in memory: the plainest form of both, and their specification. See `liteq.step`."""

from __future__ import annotations

from collections.abc import Mapping

from liteq.job import FINISHED, Job, JobState
from liteq.lifecycle import EVENT, Transition
from liteq.step import Step, StepKey, StepState, answered

#: By job: what it has recorded.
Recorded = dict[int, tuple[Step, ...]]
#: By job: the names of events that were sent and not taken, in order, and what was sent with them.
Sent = dict[int, tuple[tuple[str, bytes | None], ...]]
#: By job: the event for which it began to wait, and the claim number under which it did.
Awaited = dict[int, tuple[str, int]]


class MemorySteps:
    """What the jobs of one MemoryStorage have recorded, and what was sent to them. Called under the storage's lock.

    Args:
        rows, recorded, sent, awaited: the storage's own.
    """

    def __init__(self, rows: Mapping[int, Job], recorded: Recorded, sent: Sent, awaited: Awaited) -> None:
        self._rows = rows
        self._recorded = recorded
        self._sent = sent
        self._awaited = awaited
        #: By job: its steps, and their keys; a job may have thousands, and each new one is looked for among them.
        self._keys: dict[int, tuple[tuple[Step, ...], set[StepKey]]] = {}

    def steps(self, seq: int) -> list[Step]:
        """What a job has recorded, in order."""
        return sorted(self._recorded.get(seq, ()), key=lambda step: (step.position, step.recorded, step.key))

    def record(self, seq: int, claim: int, step: Step) -> bool:
        """Record a step of a running job, once."""
        keys = self._keys_of(seq)
        if not self._runs(seq, claim) or step.key in keys:
            return False
        keys.add(step.key)
        self._recorded[seq] = (*self._recorded.get(seq, ()), step)
        self._keys[seq] = self._recorded[seq], keys
        return True

    def _keys_of(self, seq: int) -> set[StepKey]:
        recorded = self._recorded.get(seq, ())
        of, keys = self._keys.get(seq, (None, set()))
        return keys if of is recorded else {step.key for step in recorded}

    def await_event(self, seq: int, claim: int, step: Step, now: float) -> tuple[Step | None, bool]:
        """Take what was sent to a running job, or note that it waits.

        Returns:
            The step, ``None`` if the job does not run under this claim; and whether anything was changed.
        """
        if not self._runs(seq, claim):
            return None, False
        known = self._known(seq, step.key)
        standing = known or step
        if standing.state is StepState.WAITING:
            standing = answered(standing, self._take(seq, step.name), now)
        if standing == known:
            return standing, False
        self._keep(seq, standing)
        return standing, True

    def _runs(self, seq: int, claim: int) -> bool:
        row = self._rows.get(seq)
        return row is not None and row.state is JobState.RUNNING and row.claim == claim

    def _known(self, seq: int, key: StepKey) -> Step | None:
        return next((step for step in self._recorded.get(seq, ()) if step.key == key), None)

    def _keep(self, seq: int, step: Step) -> None:
        others = tuple(one for one in self._recorded.get(seq, ()) if one.key != step.key)
        self._recorded[seq] = (*others, step)

    def _take(self, seq: int, event: str) -> tuple[bytes | None] | None:
        """What was sent first of what has not been taken yet, in brackets."""
        position = self._position(seq, event)
        if position is None:
            return None
        sent = self._sent[seq]
        self._sent[seq] = sent[:position] + sent[position + 1 :]
        return (sent[position][1],)

    def _position(self, seq: int, event: str) -> int | None:
        names = [name for name, _ in self._sent.get(seq, ())]
        return names.index(event) if event in names else None

    # ── called as transitions are applied ────────────────────────────────────────────────────────────

    def standing(self, transition: Transition) -> Transition:
        """Where a job goes that is about to wait: nowhere, if the event has come already. Changes nothing."""
        if transition.awaits is None or self._position(transition.seq, transition.awaits) is None:
            return transition
        return transition._replace(target=JobState.READY, due=None, reason=None, awaits=None)

    def applied(self, transition: Transition) -> None:
        """A transition that `standing` gave was carried out."""
        if transition.awaits is not None:
            self._awaited[transition.seq] = (transition.awaits, transition.claim)
        if transition.forget_steps:
            self._recorded.pop(transition.seq, None)

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────

    def send(self, seq: int, event: str, data: bytes | None, now: float) -> tuple[bool, Job | None]:
        """Keep an event for a job that has not ended; returns whether it is kept, and the row of the job that it
        wakes."""
        row = self._rows.get(seq)
        if row is None or row.state in FINISHED:
            return False, None
        self._sent[seq] = (*self._sent.get(seq, ()), (event, data))
        if self._awaited.get(seq, ("", 0))[0] != event:
            return True, None
        _, claim = self._awaited.pop(seq)
        waits = row.state is JobState.SCHEDULED or (row.state is JobState.BLOCKED and row.reason == EVENT + event)
        woken = row._replace(state=JobState.READY, reason=None, due=now) if waits and row.claim == claim else None
        return True, woken

    def remove(self, seq: int) -> None:
        """Forget everything about a job that is being removed."""
        for one in (self._recorded, self._sent, self._awaited, self._keys):
            one.pop(seq, None)
