"""``liteq why``: why a job is not running, in words, and what to do about it."""

from __future__ import annotations

import argparse
import re

from liteq import LiteQ
from liteq.cli.commands import Commands
from liteq.cli.endings import DONE
from liteq.cli.escaping import escaped
from liteq.cli.jobs import find
from liteq.cli.output import Output
from liteq.cli.target import is_file


def declare(commands: Commands) -> None:
    """Declare the command."""
    why = commands.add("why", explain, "say why a job is not running, and what to do about it")
    why.add_argument("ids", metavar="ID", nargs="+", help="a job's id, or the number before its '-'")


def explain(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Explain each of the jobs."""
    for number, name in enumerate(arguments.ids):
        found = app.why(find(app, name).id)
        if number:
            output.line()
        causes = [
            {"code": one.code, "text": one.text, "advice": _for(arguments.target, one.advice) or None}
            for one in found.causes
        ]
        keys = {"id": found.job_id, "task": found.task, "state": str(found.state), "causes": causes}
        state = output.painted(str(found.state))
        output.record(keys, f"job {escaped(found.job_id)} of {escaped(found.task)}: {state}")
        for one in causes:
            output.line(f"  {escaped(one['text'] or '')}")
            if one["advice"]:
                output.line(f"      {escaped(one['advice'])}")
    return DONE


def _for(target: str, advice: str) -> str:
    """The advice with what it is about put into its commands. A consumer runs the app's code, so a file will not do
    for it.
    """
    app = _AN_APP if is_file(target) else target
    return re.sub(
        r"\b(liteq(_consumer| \w+)) APP\b",
        lambda match: f"{match[1]} {app if match[2] == '_consumer' else target}",
        advice,
    )


#: How an app is named where only its file is known.
_AN_APP = "module.app"
