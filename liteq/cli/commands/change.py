"""``liteq retry``, ``revoke``, ``restore``, ``send`` and ``purge``: what a person may do to jobs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from liteq import Job, JobNotFound, JobState, LiteQ, SerializationError, UnknownTask
from liteq.cli.arguments import argument, duration, json_value, states
from liteq.cli.commands import Commands
from liteq.cli.endings import DONE, FAILED, MISUSED, Refused, complain
from liteq.cli.escaping import escaped
from liteq.cli.jobs import find
from liteq.cli.output import Output


def declare(commands: Commands) -> None:
    """Declare the five commands."""
    retry = commands.add(
        "retry", retry_jobs, "run finished jobs again, with their whole allowance of retries and their history"
    )
    retry.add_argument("ids", metavar="ID", nargs="*", help="jobs, by id or by the number before its '-'")
    retry.add_argument("--all", action="store_true", help="all failed jobs, or all that the options below name")
    retry.add_argument(
        "--state", metavar="STATE", type=states, help="with --all: these finished states instead of failed"
    )
    retry.add_argument("--task", metavar="TASK", help="with --all: only this task, by its stored name")
    retry.add_argument("--queue", metavar="QUEUE", help="with --all: only this queue")
    retry.add_argument(
        "--from-start",
        action="store_true",
        help="forget what steps they have recorded; without it, they go on behind the last one",
    )

    revoke = commands.add(
        "revoke", revoke_jobs, "do not run jobs that wait; tell those that run, and do not run them again"
    )
    revoke.add_argument("ids", metavar="ID", nargs="*", help="jobs, by id or by the number before its '-'")
    revoke.add_argument("--terminate", action="store_true", help="stop those that are running")
    revoke.add_argument(
        "--all", action="store_true", help="all jobs that have not finished, or all that the options below name"
    )
    revoke.add_argument("--task", metavar="TASK", help="with --all: only this task, by its stored name")
    revoke.add_argument("--queue", metavar="QUEUE", help="with --all: only this queue")
    revoke.add_argument(
        "--where",
        metavar="NAME=VALUE",
        type=argument,
        action="append",
        help="with --all: only calls with this argument; the value is JSON, or text. Several: all must hold. Takes an "
        "app, not a file: its code knows what arguments are called",
    )

    restore = commands.add("restore", restore_jobs, "undo revoke")
    restore.add_argument("ids", metavar="ID", nargs="+", help="jobs, by id or by the number before its '-'")

    send = commands.add("send", send_event, "send an event to a job that waits for it, or will (task.wait_for)")
    send.add_argument("id", metavar="ID", help="the job's id, or the number before its '-'")
    send.add_argument("event", metavar="EVENT", help="the name that the job waits for")
    send.add_argument("--data", metavar="JSON", type=json_value, help="what its wait_for returns (default: null)")

    purge = commands.add("purge", purge_jobs, "delete finished jobs with their history; asks nothing, prints how many")
    purge.add_argument("--state", metavar="STATE", type=states, help="only these finished states (several with commas)")
    purge.add_argument("--queue", metavar="QUEUE", help="only this queue")
    purge.add_argument(
        "--older-than", metavar="TIME", type=duration, help="only jobs that finished so long ago: 30 (seconds), 1h, 7d"
    )


def retry_jobs(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Requeue some, or all that match."""
    filters = (arguments.state, arguments.task, arguments.queue)
    if bool(arguments.ids) == arguments.all:
        raise Refused("retry takes the ids of jobs, or --all", MISUSED)
    if arguments.all:
        number = app.requeue_all(
            arguments.state or "failed", arguments.task, arguments.queue, from_start=arguments.from_start
        )
        output.record({"requeued": number}, f"{_jobs(number)} requeued")
        return DONE
    if any(one is not None for one in filters):
        raise Refused("--state, --task and --queue go with --all", MISUSED)

    def retry(app: LiteQ, job: Job) -> str:
        if not app.requeue(job.id, from_start=arguments.from_start):
            raise Refused(f"job {job.id} is {job.state}: only one that has finished can be run again")
        _require_waiting(app, job, "run again")
        return "will run again, from its start" if arguments.from_start else "will run again"

    return _each(app, arguments.ids, output, retry)


def revoke_jobs(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Revoke some, or all that match."""
    if bool(arguments.ids) == arguments.all:
        raise Refused("revoke takes the ids of jobs, or --all", MISUSED)
    if arguments.all:
        return _revoke_all(app, arguments, output)
    if any(one is not None for one in (arguments.task, arguments.queue, arguments.where)):
        raise Refused("--task, --queue and --where go with --all", MISUSED)

    def revoke(app: LiteQ, job: Job) -> str:
        if not app.revoke(job.id, terminate=arguments.terminate):
            raise Refused(f"job {job.id} is {app.job(job.id).state}: one that has finished cannot be revoked")
        if app.job(job.id).state is not JobState.RUNNING:
            return "is revoked"
        return "is being stopped" if arguments.terminate else "is running: it is told, and will not run again"

    return _each(app, arguments.ids, output, revoke)


def _revoke_all(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    if arguments.where and not app.tasks:
        raise Refused(
            "--where takes an app rather than a file: what arguments are called is known to its code alone", MISUSED
        )
    try:
        number = app.revoke_all(
            arguments.task, queue=arguments.queue, where=dict(arguments.where or ()), terminate=arguments.terminate
        )
    except (TypeError, UnknownTask) as error:
        raise Refused(str(error), MISUSED) from None
    output.record({"revoked": number}, f"{_jobs(number)} revoked")
    return DONE


def restore_jobs(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Restore each of the jobs."""
    return _each(app, arguments.ids, output, _restore)


def _restore(app: LiteQ, job: Job) -> str:
    if not app.restore(job.id):
        raise Refused(f"job {job.id} is {job.state}: only one that was revoked can be restored")
    _require_waiting(app, job, "be restored")
    return "is not revoked any more"


def _require_waiting(app: LiteQ, before: Job, what: str) -> None:
    """Promise nothing of a job that has ended again at once, because of one that it waits for.

    Args:
        before: the job as it was.
        what: what that other one has to do, or be.
    """
    job = app.job(before.id)
    if job.state not in _UNRUN or job.claim != before.claim:
        return
    why = job.reason or (job.error.message if job.error is not None else "nobody says why")
    raise Refused(
        f"job {job.id} has ended again at once, {why}; it is that job that has to {what}, and this one comes back with "
        "it"
    )


#: How a job ends because of one that it waits for.
_UNRUN = (JobState.FAILED, JobState.REVOKED)


def send_event(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Send an event to one job."""
    job = find(app, arguments.id)
    if not app.tasks and arguments.data is not None:
        _require_json(app, job)
    app.send(job.id, arguments.event, arguments.data)
    output.record(
        {"id": job.id, "event": arguments.event, "state": str(app.job(job.id).state)},
        f"{escaped(arguments.event)} was sent to {escaped(job.id)}",
    )
    return DONE


def _require_json(app: LiteQ, job: Job) -> None:
    """What is sent through a file, without its app, is written as JSON: its app must be able to read that."""
    try:
        app.engine.runtime.serializer.loads_call(job.payload)
    except SerializationError:
        raise Refused(
            f"the arguments of job {job.id} are not JSON, so its app would not understand JSON data either: "
            "name the app (module.app) instead of the file",
            MISUSED,
        ) from None


def _each(app: LiteQ, names: list[str], output: Output, do: Callable[[LiteQ, Job], str]) -> int:
    """Do something to each job; complain about one to which it cannot be done, and go on."""
    code = DONE
    for name in names:
        try:
            job = find(app, name)
            said = do(app, job)
        except (JobNotFound, Refused) as error:
            complain("liteq", str(error))
            code = FAILED
        else:
            output.record({"id": job.id, "state": str(app.job(job.id).state)}, f"{escaped(job.id)} {said}")
    return code


def purge_jobs(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Delete what matches."""
    number = app.purge(arguments.state, arguments.queue, arguments.older_than)
    output.record({"purged": number}, f"{_jobs(number)} deleted")
    return DONE


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"
