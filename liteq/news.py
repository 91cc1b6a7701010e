"""What is told of jobs once it is committed: lines in the log, and signals.

The engine decides and stores; here is what it then says, and what it need not, as nobody listens. From here nothing may
fail: what is told has happened.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence

from liteq import lifecycle
from liteq import signals as S
from liteq.errors import DependencyFailed, StorageError, TaskFailed
from liteq.job import Ending, Job, JobState, Outcome
from liteq.lifecycle import Success, Transition
from liteq.signals import Signals
from liteq.storage.base import Storage

_SIGNAL_OF_TARGET = {
    JobState.SUCCEEDED: S.COMPLETE,
    JobState.FAILED: S.ERROR,
    JobState.REVOKED: S.REVOKED,
    JobState.EXPIRED: S.EXPIRED,
    JobState.BLOCKED: S.BLOCKED,
}
_SIGNAL_OF_ENDING = {
    Ending.SNOOZED: S.SNOOZED,
    Ending.SUSPENDED: S.SNOOZED,
    Ending.INTERRUPTED: S.INTERRUPTED,
    Ending.CANCELLED: S.CANCELED,
}


class News:
    """See the module.

    Args:
        storage: asked for what a signal says of a job and the one who tells it has not at hand.
        retries: how many retries a job has in all.

    Attributes:
        signals: who listens.
        announce: how signals are sent: here and now, unless a consumer has somebody to do it on a thread of its own.
    """

    def __init__(self, storage: Storage, retries: Callable[[Job], int]) -> None:
        self._storage = storage
        self._retries = retries
        self.signals = Signals(_report)
        self.announce: Callable[[str, Job, TaskFailed | None], None] = self.signals.send

    def share(self, other: News) -> None:
        """Have the same listeners as another engine's."""
        self.signals = other.signals
        self.announce = self.signals.send

    # ── before it runs ───────────────────────────────────────────────────────────────────────────────

    def enqueued(self, jobs: Iterable[Job]) -> None:
        """These are stored."""
        if self.signals.heard(S.ENQUEUED, S.SCHEDULED):
            for job in jobs:
                self.announce(S.SCHEDULED if job.state is JobState.SCHEDULED else S.ENQUEUED, job, None)

    def started(self, jobs: Sequence[Job]) -> None:
        """These were handed to workers."""
        from liteq import logs

        if logs.wanted(logs.INFO):
            for job in jobs:
                logs.started(job, self._retries(job))
        if self.signals.heard(S.EXECUTING):
            for job in jobs:
                self.announce(S.EXECUTING, job, None)

    def unstarted(self, job: Job, transition: Transition) -> None:
        """It has ended, or was parked, instead of being started."""
        from liteq import logs

        logs.unstarted(job, transition)
        name = _SIGNAL_OF_TARGET[transition.target]
        if self.signals.heard(name):
            self.announce(name, after(job, transition), None)

    def not_run(self, ended: Sequence[tuple[Job, Transition]]) -> None:
        """These waited for one that has ended without success, and have ended with it."""
        from liteq import logs

        for job, transition in ended:
            logs.not_run(job, transition)
            name = _SIGNAL_OF_TARGET[transition.target]
            if self.signals.heard(name):
                stored = self._look(job) or job
                record = transition.record
                error = None if record is None else DependencyFailed(job.id, record.error_type, record.message)
                self.announce(name, after(stored, transition), error)

    def changed(self, job: Job, transition: Transition) -> None:
        """Somebody has changed it."""
        if transition.target is JobState.REVOKED and self.signals.heard(S.REVOKED):
            self.announce(S.REVOKED, after(job, transition), None)

    # ── how it ended ─────────────────────────────────────────────────────────────────────────────────

    def succeeded(
        self, ended: Sequence[tuple[Job, Outcome]], successes: Sequence[Success], lost: Container[int] = ()
    ) -> None:
        """These have succeeded; those whose ``seq`` is ``lost`` are somebody else's by now."""
        from liteq import logs

        said, heard = logs.wanted(logs.INFO), self.signals.heard(S.COMPLETE)
        if not (lost or said or heard):
            return
        for (job, outcome), success in zip(ended, successes, strict=True):
            if success.seq in lost:
                self.lost(job, outcome)
                continue
            transition = success.transition()
            if said:
                logs.settled(job, self._retries(job), outcome, transition)
            if heard:
                self.announce(S.COMPLETE, after(job, transition), None)

    def settled(self, ended: Sequence[tuple[Job, Outcome]]) -> None:
        """These have stored their success themselves."""
        self.succeeded(ended, [lifecycle.succeed(job, outcome) for job, outcome in ended])

    def ended(self, job: Job, outcome: Outcome, transition: Transition) -> None:
        """An attempt has ended without success."""
        from liteq import logs

        logs.settled(job, self._retries(job), outcome, transition)
        if not self.signals:
            return
        job = after(job, transition)
        error = (
            TaskFailed(job.id, outcome.error_type, outcome.message, outcome.traceback) if outcome.error_type else None
        )
        if outcome.ending == Ending.CRASHED:
            self.announce(S.CRASHED, job, error)
        name = _SIGNAL_OF_ENDING.get(outcome.ending) or _SIGNAL_OF_TARGET.get(transition.target) or S.RETRYING
        if transition.target is JobState.REVOKED and outcome.ending != Ending.CANCELLED:
            name = S.REVOKED  # while it ran; that it was interrupted or snoozed is then beside the point
        self.announce(name, job, error)

    def lost(self, job: Job, outcome: Outcome) -> None:
        """An outcome does not hold: somebody else has the job, or it had stored its success before its worker died."""
        from liteq import logs

        stored = None if outcome.ending == Ending.SUCCEEDED else self._look(job)
        if stored is None or stored.state is not JobState.SUCCEEDED or stored.claim != job.claim:
            logs.lost_claim(job, outcome)
            return
        started, finished = stored.started or outcome.started, stored.finished or outcome.finished
        success = Outcome(job.seq, job.claim, Ending.SUCCEEDED, started, finished, stored.result)
        self.settled([(job, success)])

    def _look(self, job: Job) -> Job | None:
        try:
            return self._storage.get(job.id)
        except StorageError:  # what is told is committed, and the rest has to be told all the same
            return None


def after(job: Job, transition: Transition) -> Job:
    """The job as it stands after its transition, with the attempt that has just ended as its history."""
    return job._replace(
        state=transition.target,
        due=transition.due if transition.due is not None else job.due,
        attempt=transition.attempt,
        base=transition.base,
        crashes=transition.crashes,
        owner=None,
        started=transition.started,
        finished=transition.finished,
        result=transition.result,
        reason=transition.reason,
        attempts=() if transition.record is None else (transition.record,),
    )


def _report(name: str, signal: str, job: Job, error: BaseException) -> None:
    from liteq import logs

    logs.receiver_failed(name, signal, job, error)
