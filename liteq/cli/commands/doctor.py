"""``liteq doctor``: what is wrong with a queue and the place where it is kept, each with a line of advice."""

from __future__ import annotations

import argparse

from liteq import LiteQ, Verdict
from liteq.cli.commands import Commands
from liteq.cli.endings import DONE, FAILED
from liteq.cli.escaping import escaped
from liteq.cli.output import Output


def declare(commands: Commands) -> None:
    """Declare the command."""
    doctor = commands.add(
        "doctor", examine, "examine the file, its place and its jobs: exit code 0, or 1 and what to do about it"
    )
    doctor.add_argument(
        "--quick", action="store_true", help="do not read the whole file (that takes a second for each 100 MB)"
    )


def examine(app: LiteQ, arguments: argparse.Namespace, output: Output) -> int:
    """Ask everything and show the answers."""
    findings = app.examine(thorough=not arguments.quick)
    wrong = any(finding.verdict is Verdict.WRONG for finding in findings)
    output.record(
        {
            "ok": not wrong,
            "location": app.storage.location,
            "findings": [{**one._asdict(), "verdict": str(one.verdict)} for one in findings],
        }
    )
    output.table(("", "QUESTION", "FOUND"), [(str(one.verdict), one.name, one.found) for one in findings])
    for one in findings:
        if one.advice:
            output.line(f"{one.name}: {escaped(one.advice)}")
    return FAILED if wrong else DONE
