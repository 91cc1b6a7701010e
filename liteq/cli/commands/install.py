"""``liteq install`` and ``liteq uninstall``: have the system's cron, or systemd, run the consumer.

Whatever is written bears a tag with the app and its directory; `uninstall` removes what bears it, and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from liteq.cli.commands import Commands
from liteq.cli.endings import DONE, MISUSED, Refused
from liteq.cli.escaping import escaped, escaped_lines
from liteq.cli.output import Output
from liteq.cli.target import is_file, opened

KINDS = ("cron", "systemd")
_EVERY_MINUTE = "* * * * *"
_NICKNAMES = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly", "@reboot")
#: One item of a field as cron reads it, which knows less than `liteq.crontab`: a step after a star or a range only.
_ITEM = re.compile(
    r"(?:\*|(?P<first>\d+|[a-z]{3})-(?P<last>\d+|[a-z]{3}))(?:/\d+)?|\d+|[a-z]{3}", re.ASCII | re.IGNORECASE
)
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NUMBERS = {name: number for names in (_DAYS, _MONTHS) for number, name in enumerate(names)}
#: Seconds that systemd waits for the end of a consumer, beyond its shutdown timeout; and at least.
_BEYOND, _AT_LEAST = 15, 60

_UNIT = """\
{tag}
[Unit]
Description=liteq consumer of {app}
After=network.target

[Service]
WorkingDirectory={directory}
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=2
TimeoutStopSec={patience}
KillMode=mixed

[Install]
WantedBy={wanted_by}
"""


def declare(commands: Commands) -> None:
    """Declare both commands."""
    install = commands.add_bare("install", "have the system's cron or systemd run the consumer of an app")
    uninstall = commands.add_bare("uninstall", "remove exactly what install wrote for an app in this directory")
    for parser, run in ((install, install_one), (uninstall, uninstall_one)):
        parser.add_argument("kind", metavar="KIND", choices=KINDS, help="cron or systemd")
        parser.add_argument("app", metavar="APP", help="module.app, as for liteq_consumer")
        parser.add_argument("--dry-run", action="store_true", help="print what would be written or removed")
        parser.add_argument(
            "--system", action="store_true", help="systemd: for the whole machine instead of this user (needs root)"
        )
        parser.set_defaults(run=run)
    install.add_argument(
        "--options", metavar="TEXT", default="", help="options of liteq_consumer: '-w 4 -q mail' (with quotes)"
    )
    install.add_argument("--when", metavar="FIELDS", help="cron: when to look (default each minute: '* * * * *')")


def in_one_word(argv: Sequence[str]) -> list[str]:
    """``--options -n`` as ``--options=-n``: argparse would take the second word for an option of its own."""
    words = list(argv)
    if words[:1] == ["install"] and "--options" in words[:-1]:
        place = words.index("--options")
        words[place : place + 2] = [f"--options={words[place + 1]}"]
    return words


def install_one(arguments: argparse.Namespace, output: Output) -> int:
    """Write a line of the crontab, or a unit."""
    _check_kind(arguments)
    patience = _check(arguments)
    if arguments.kind == "cron":
        return _install_cron(arguments, output)
    return _install_unit(arguments, output, max(_AT_LEAST, math.ceil(patience + _BEYOND)))


def uninstall_one(arguments: argparse.Namespace, output: Output) -> int:
    """Remove what was written."""
    _check_kind(arguments)
    return _uninstall_cron(arguments, output) if arguments.kind == "cron" else _uninstall_unit(arguments, output)


def _check_kind(arguments: argparse.Namespace) -> None:
    """What is said for the other kind would be without effect."""
    if arguments.kind == "cron" and arguments.system:
        raise Refused("--system is for systemd; cron runs it for the user whose crontab it is", MISUSED)
    if arguments.kind == "systemd" and getattr(arguments, "when", None) is not None:
        raise Refused("--when is for cron; systemd keeps the consumer running", MISUSED)


def _check(arguments: argparse.Namespace) -> float:
    """Whatever could go wrong later, where nobody looks, goes wrong here; returns the consumer's shutdown timeout."""
    if is_file(arguments.app):
        raise Refused(f"install takes an app (module.app), not a file: {arguments.app}", MISUSED)
    if re.search(r"[\0-\x1f\x7f]", _here() + arguments.options + (arguments.when or "")):
        raise Refused("a directory or an option with a line break or another control character cannot be installed")
    if arguments.when is not None:
        _check_when(arguments.when)
    shutdown_timeout = _check_options(arguments)
    with opened(arguments.app):
        return shutdown_timeout


def _check_when(when: str) -> None:
    from liteq import TriggerError, crontab  # a third of what `liteq --help` would take with them

    if when in _NICKNAMES:
        return
    fields = when.split()
    if len(fields) != 5:
        nicknames = ", ".join(_NICKNAMES)
        raise Refused(f"--when takes the five fields of a crontab, or one of {nicknames}, not {when!r}", MISUSED)
    try:
        crontab(when)
    except TriggerError as error:
        raise Refused(f"--when={when!r}: {error}", MISUSED) from None
    strange = [item for field in fields for item in field.split(",") if not _is_crons(item)]
    if strange:
        raise Refused(
            f"--when={when!r}: cron does not take {strange[0]!r}; it takes numbers, names, and ranges upwards "
            "(Sunday is 7 at their end), steps after * or a range, and no L, W or #",
            MISUSED,
        )


def _is_crons(item: str) -> bool:
    """Whether cron, too, takes an item that a trigger may have."""
    found = _ITEM.fullmatch(item)
    return found is not None and (found["first"] is None or _number(found["first"]) <= _number(found["last"]))


def _number(value: str) -> int:
    return int(value) if value.isdecimal() else _NUMBERS.get(value.lower(), 0)


def _check_options(arguments: argparse.Namespace) -> float:
    """The consumer itself says what is wrong with its options, and how long its jobs may go on after a stop."""
    from liteq.cli.consumer import understood

    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            told = understood([arguments.app, *_options(arguments)])
    except SystemExit:
        why = said.getvalue().strip().rpartition("\n")[2].rpartition("error: ")[2]
        raise Refused(f"liteq_consumer does not run with --options={arguments.options!r}: {why}", MISUSED) from None
    if arguments.kind == "cron" and told.reload:
        raise Refused("--reload does not go with cron: each of its consumers ends when nothing is due", MISUSED)
    if arguments.kind == "systemd" and told.burst:
        raise Refused(
            "--burst does not go with systemd, which would start the consumer again each time it ends; use cron",
            MISUSED,
        )
    return float(told.shutdown_timeout)


def _here() -> str:
    return str(Path.cwd())


def _tag(app: str) -> str:
    return f"# liteq: {app} in {_here()}"


def _words(arguments: argparse.Namespace, *more: str) -> list[str]:
    return [sys.executable, "-m", "liteq.cli.consumer", arguments.app, *more, *_options(arguments)]


def _options(arguments: argparse.Namespace) -> list[str]:
    try:
        return shlex.split(arguments.options)
    except ValueError as error:
        raise Refused(f"--options={arguments.options!r} cannot be read: {error}", MISUSED) from None


# ── cron ─────────────────────────────────────────────────────────────────────────────────────────────────


def _install_cron(arguments: argparse.Namespace, output: Output) -> int:
    tag = _tag(arguments.app)
    command = f"cd {shlex.quote(_here())} && {shlex.join(_words(arguments, '--burst'))}"
    when = arguments.when or _EVERY_MINUTE
    line = f"{when} {command} {tag}".replace("%", r"\%")  # cron reads % as the end of the line
    if arguments.dry_run:
        output.record({"kind": "cron", "line": line, "written": False}, escaped(line))
        return DONE
    kept = [one for one in _crontab() if not _bears(one, tag)]
    _write_crontab([*kept, line])
    output.record({"kind": "cron", "line": line, "written": True}, f"added to the crontab: {escaped(line)}")
    return DONE


def _uninstall_cron(arguments: argparse.Namespace, output: Output) -> int:
    tag, lines = _tag(arguments.app), _crontab()
    removed = [one for one in lines if _bears(one, tag)]
    if removed and not arguments.dry_run:
        _write_crontab([one for one in lines if not _bears(one, tag)])
    return _tell_removed(arguments, output, removed)


def _bears(line: str, tag: str) -> bool:
    return line.endswith(" " + tag.replace("%", r"\%"))


def _crontab() -> list[str]:
    """The lines of this user's crontab."""
    done = _cron("-l")
    if done.returncode == 0:
        return done.stdout.splitlines()
    if "no crontab" in done.stderr.lower():
        return []
    raise Refused(f"crontab -l failed, nothing was changed: {done.stderr.strip()}")


def _write_crontab(lines: list[str]) -> None:
    done = _cron("-", given="".join(f"{line}\n" for line in lines))
    if done.returncode != 0:
        raise Refused(f"crontab refused the change: {done.stderr.strip()}")


def _cron(argument: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LC_ALL": "C"}
    try:
        return subprocess.run(
            ["crontab", argument], input=given, capture_output=True, text=True, check=False, env=environment
        )
    except FileNotFoundError:
        raise Refused("this machine has no crontab command; install cron, or use systemd") from None


# ── systemd ──────────────────────────────────────────────────────────────────────────────────────────────


def _install_unit(arguments: argparse.Namespace, output: Output, patience: int) -> int:
    path, tag = _unit_path(arguments), _tag(arguments.app)
    text = _UNIT.format(
        tag=tag,
        app=arguments.app,
        directory=_here().replace("%", "%%"),
        command=" ".join(map(_quoted, _words(arguments))),
        patience=patience,
        wanted_by="multi-user.target" if arguments.system else "default.target",
    )
    if arguments.dry_run:
        output.record({"kind": "systemd", "path": str(path), "text": text, "written": False}, *escaped_lines(text))
        return DONE
    if path.exists() and not _is_ours(path, tag):
        raise Refused(f"{path} exists and was not written by liteq install; nothing was changed")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}") from None
    user = "" if arguments.system else " --user"
    output.record(
        {"kind": "systemd", "path": str(path), "text": text, "written": True},
        f"written: {escaped(str(path))}",
        f"start it with: systemctl{user} daemon-reload && systemctl{user} enable --now {path.name}",
    )
    return DONE


def _uninstall_unit(arguments: argparse.Namespace, output: Output) -> int:
    path = _unit_path(arguments)
    found = path.exists()
    if found and not _is_ours(path, _tag(arguments.app)):
        raise Refused(f"{path} was not written by liteq install for this app; nothing was changed")
    if found and not arguments.dry_run:
        try:
            path.unlink()
        except OSError as error:
            raise Refused(f"{path} cannot be removed: {error.strerror}") from None
    return _tell_removed(arguments, output, [str(path)] if found else [])


def _unit_path(arguments: argparse.Namespace) -> Path:
    """Where the unit of an app in this directory is: two directories may have an app of one name."""
    place = hashlib.sha256(_here().encode(errors="surrogateescape")).hexdigest()[:6]
    name = f"liteq-{re.sub(r'[^A-Za-z0-9_.-]', '-', arguments.app)}-{place}.service"
    if arguments.system:
        return Path("/etc/systemd/system") / name
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return home / "systemd" / "user" / name


def _is_ours(path: Path, tag: str) -> bool:
    return path.read_text(errors="replace").splitlines()[:1] == [tag]


def _quoted(word: str) -> str:
    """A word of a command as a unit needs it."""
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return plain if re.fullmatch(r"[A-Za-z0-9_./:=,@%+-]+", plain) else f'"{plain}"'


def _tell_removed(arguments: argparse.Namespace, output: Output, removed: list[str]) -> int:
    values = {"kind": arguments.kind, "removed": removed, "dry_run": arguments.dry_run}
    if not removed:
        output.record(values, f"nothing was installed for {escaped(arguments.app)} in this directory")
        return DONE
    words = "would be removed" if arguments.dry_run else "removed"
    output.record(values, *(f"{words}: {escaped(one)}" for one in removed))
    return DONE
