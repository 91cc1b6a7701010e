"""``liteq schedules``, ``liteq install`` and ``liteq uninstall``: what they show, store, write and remove."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from commandline import Shop, shop_in

from liteq import every
from liteq.cli import main as program
from liteq.cli.commands.schedules import FLAGS, either_order

PLANNED = """
from liteq import LiteQ, crontab
app = LiteQ("shop.db", timezone="Europe/Berlin")

@app.task
def note(path, text=""):
    with open(path, "a") as file:
        file.write(text)

@app.periodic_task(crontab("30 2 * * *"))
def report():
    pass
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with shop_in(tmp_path) as shop:
        yield shop


@pytest.fixture
def planned(shop: Shop) -> str:
    """An app with a declared schedule and a task ``note``."""
    shop.module("planned", PLANNED)
    return "planned.app"


Liteq = Callable[..., tuple[int, str, str]]


@pytest.fixture
def liteq(shop: Shop, planned: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Liteq:
    """Runs a command in this process, in the shop's directory: ``liteq("schedules", "list")``."""
    monkeypatch.chdir(shop.directory)
    monkeypatch.syspath_prepend(str(shop.directory))
    monkeypatch.setenv("PATH", "")

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        sys.modules.pop("planned", None)
        try:
            code = program.main(words)
        except SystemExit as left:
            code = int(str(left.code))
        return code, *capsys.readouterr()

    return run


def records(answer: tuple[int, str, str]) -> list[dict[str, Any]]:
    code, out, err = answer
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def add(liteq: Liteq, name: str = "tick", trigger: str = "every 60s", *more: str) -> dict[str, Any]:
    arguments = more if "--args" in more else ("--args", '["log"]', *more)
    (record,) = records(liteq("schedules", "planned.app", "add", name, "planned.note", trigger, "--json", *arguments))
    return record


# ── schedules ────────────────────────────────────────────────────────────────────────────────────────────


def test_without_an_action_it_lists(liteq: Liteq) -> None:
    code, out, _ = liteq("schedules", "planned.app")
    heading, line = out.splitlines()
    assert code == 0
    assert heading.split() == ["NAME", "STATE", "FROM", "NEXT", "LAST", "OUTCOME", "RUNS", "TASK", "TRIGGER"]
    assert line.split()[:3] == ["planned.report", "active", "code"]
    assert line.endswith("30 2 * * * in Europe/Berlin")
    assert liteq("schedules", "shop.db")[1].splitlines()[1].split()[:3] == ["planned.report", "active", "code"]


def test_add_stores_what_is_given(liteq: Liteq) -> None:
    more = [
        "--args",
        '["log"]',
        "--kwargs",
        '{"text": "x"}',
        "--catch-up",
        "all",
        "--overlap",
        "queue",
        "--grace",
        "1m",
    ]
    more += ["--jitter", "5", "--start", "2030-01-01T09:00", "--end", "2031-01-01T09:00+00:00", "--max-runs", "3"]
    more += ["--queue", "slow", "--priority", "-2", "--retries", "4", "--retry-delay", "2s", "--timeout", "1h"]
    record = add(liteq, "tick", "every 60s", *more, "--expires", "1d")
    assert (record["start"], record["end"]) == ("2030-01-01T08:00:00+00:00", "2031-01-01T09:00:00+00:00")
    assert record["options"] == {"retries": 4, "retry_delay": 2.0, "timeout": 3600.0}
    kept = {"catch_up": "all", "overlap": "queue", "grace": 60.0, "jitter": 5.0, "max_runs": 3, "expires": 86_400.0}
    kept |= {"queue": "slow", "priority": -2, "state": "active", "source": "user", "runs": 0, "last_run": None}
    assert {key: record[key] for key in kept} == kept
    assert '"log"' in record["arguments"]
    assert record["description"].startswith("Every minute")


def test_both_orders_are_understood(liteq: Liteq) -> None:
    add(liteq)
    assert liteq("schedules", "list", "shop.db", "tick") == liteq("schedules", "shop.db", "list", "tick")
    assert records(liteq("schedules", "pause", "--json", "shop.db", "tick")) == [{"name": "tick", "paused": True}]
    assert either_order(["ls", "list", "x"]) == ["ls", "list", "x"]
    assert either_order(["schedules", "list"]) == ["schedules", "list"]


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        ("preview --trigger every-5m app.app", "app.app preview --trigger every-5m"),
        ("preview --trig=every-5m app.app", "app.app preview --trig=every-5m"),
        ("preview -n 1 app.app k", "app.app preview -n 1 k"),
        ("preview -n1 app.app k", "app.app preview -n1 k"),
        ("--json list app.app", "--json app.app list"),
        ("-v list --js app.app k", "-v app.app list --js k"),
        ("update --priority -2 app.app k", "app.app update --priority -2 k"),
        ("rm -- app.app k", "app.app rm -- k"),
        ("app.app --json list", "app.app --json list"),
        ("app.app list list", "app.app list list"),
        ("--json list", "--json list"),
    ],
)
def test_options_may_stand_before_the_app_in_either_order(given: str, understood: str) -> None:
    assert either_order(["schedules", *given.split()]) == ["schedules", *understood.split()]


def test_which_options_take_no_value_is_known() -> None:
    def parsers(one: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
        yield one
        for action in one._actions:
            if isinstance(action, argparse._SubParsersAction):
                for below in action.choices.values():
                    yield from parsers(below)

    ours = [one for one in parsers(program.parser()) if one.prog.startswith("liteq schedules")]
    options = [action for one in ours for action in one._actions if action.option_strings]
    assert {name for one in options if one.nargs == 0 for name in one.option_strings} == set(FLAGS)


def test_a_paused_schedule_whose_code_is_gone_does_not_go_on(liteq: Liteq, shop: Shop) -> None:
    liteq("schedules", "planned.app")
    liteq("schedules", "planned.app", "pause", "planned.report")
    shop.module("planned", PLANNED.replace("def report", "def another"))
    _, out, _ = liteq("schedules", "planned.app", "resume", "planned.report")
    assert out.startswith("planned.report is not paused any more, but fires nothing: it is declared in no code")


def test_update_pause_resume_reset(liteq: Liteq) -> None:
    liteq("schedules", "planned.app")
    name = "planned.report"
    (record,) = records(liteq("schedules", "shop.db", "update", name, "--trigger", "0 4 * * *", "--json"))
    assert (record["edited"], record["trigger"]) == (True, "0 4 * * * in Europe/Berlin")
    assert "code, edited" in liteq("schedules", "planned.app")[1]
    assert records(liteq("schedules", "shop.db", "pause", name, "--json")) == [{"name": name, "paused": True}]
    assert "paused" in liteq("schedules", "shop.db")[1]
    assert liteq("schedules", "shop.db", "resume", name)[1] == f"{name} goes on\n"
    assert liteq("schedules", "shop.db", "resume", name)[1] == f"{name} was not paused\n"
    assert liteq("schedules", "planned.app", "reset", name)[0] == 0
    (record,) = records(liteq("schedules", "planned.app", "list", name, "--json"))
    assert (record["edited"], record["trigger"]) == (False, "30 2 * * * in Europe/Berlin")


def test_run_and_rm(liteq: Liteq, shop: Shop) -> None:
    add(liteq, "tick", "every 1h", "--args", json.dumps([str(shop.directory / "out"), "ran"]))
    (record,) = records(liteq("schedules", "shop.db", "run", "tick", "--json"))
    assert shop.run("-m", "liteq.cli.consumer", "planned.app", "--burst").returncode == 0
    assert (shop.directory / "out").read_text() == "ran"
    assert "schedule  tick, for 20" in liteq("show", "shop.db", record["job"])[1]
    (job,) = records(liteq("show", "shop.db", record["job"], "--json"))
    assert (job["schedule"], job["slot"] is None) == ("tick", False)
    (shown,) = records(liteq("schedules", "shop.db", "list", "tick", "--json"))
    assert (shown["last_job"], shown["last_outcome"], shown["runs"]) == (record["job"], "succeeded", 0)
    assert liteq("schedules", "shop.db", "rm", "tick")[1] == "tick is deleted\n"
    code, _, err = liteq("schedules", "shop.db", "rm", "tick")
    assert code == 1
    assert "no schedule 'tick'" in err


def test_preview_shows_local_time_and_utc(liteq: Liteq) -> None:
    found = records(liteq("schedules", "preview", "planned.app", "--trigger", "0 12 1 1,7 *", "-n", "2", "--json"))
    assert [sorted(one) for one in found] == [["local", "utc"]] * 2
    offsets = {one["local"][-6:]: one["utc"][11:16] for one in found}
    assert offsets == {"+01:00": "11:00", "+02:00": "10:00"}
    lines = liteq("schedules", "planned.app", "preview", "planned.report", "-n", "3")[1].splitlines()
    assert lines[0].split() == ["LOCAL", "ZONE", "UTC"]
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["shop.db", "add", "x", "planned.note", "@daily"], 2, "takes an app rather than a file"),
        (["shop.db", "update", "x", "--args", "[1]"], 2, "takes an app rather than a file"),
        (["shop.db", "reset", "x"], 2, "takes an app rather than a file"),
        (["planned.app", "add", "x", "planned.note", "nope"], 2, "nope"),
        (["planned.app", "add", "x", "nobody", "@daily"], 2, "no task named 'nobody'"),
        (["planned.app", "add", "x", "planned.note", "@daily"], 2, "missing a required argument: 'path'"),
        (["planned.app", "add", "x", "planned.note", "@daily", "--args", "{}"], 2, "takes a JSON array"),
        (["planned.app", "add", "x", "planned.note", "@daily", "--kwargs", "no"], 2, "takes a JSON object"),
        (["planned.app", "add", "x", "planned.note", "@daily", "--start", "soon"], 2, "takes a moment"),
        (["planned.app", "add", "x", "planned.note", "@daily", "--args", '["p"]', "--catch-up", "no"], 2, "catch_up"),
        (["planned.app", "update", "planned.report"], 2, "something to change"),
        (["planned.app", "rm", "planned.report"], 2, "take it out of the code"),
        (["planned.app", "preview"], 2, "the name of a schedule, or --trigger"),
        (["planned.app", "preview", "--trigger", "every fortnight"], 2, "fortnight"),
        (["planned.app", "preview", "nobody"], 1, "no schedule 'nobody'"),
        (["planned.app", "list", "nobody"], 1, "no schedule 'nobody'"),
        (["planned.app", "pause", "nobody"], 1, "no schedule 'nobody'"),
        (["planned.app", "dance"], 2, "dance"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(
    liteq: Liteq, words: list[str], code: int, message: str
) -> None:
    liteq("schedules", "planned.app")  # the file is there
    found, out, err = liteq("schedules", *words)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


def test_names_cannot_harm_a_terminal(liteq: Liteq, shop: Shop) -> None:
    shop.app.schedules.add("a\x1b[31m\nb", shop.app.task(name="t")(lambda: None), every(60))
    for words in (["list"], ["pause", "a\x1b[31m\nb"], ["run", "a\x1b[31m\nb"]):
        out = liteq("schedules", "shop.db", *words)[1]
        assert "\x1b" not in out
        assert "\\x1b[31m\\n" in out


@pytest.mark.parametrize(
    ("column", "value", "shown"),
    [
        ("options", "{", ("options", "{")),
        ("payload", "text", ("arguments", "text")),
        ("due", "abc", ("next_run", "abc")),
        ("due", 1e300, ("next_run", "1e+300")),
        ("created", "abc", ("created_at", "abc")),
        ("start", "abc", ("start", "abc")),
        ("end", 1e300, ("end", "1e+300")),
        ("slot", 1e300, ("name", "tick")),
        ("last_run", 1e300, ("last_run", "1e+300")),
        ("last_slot", "abc", ("last_slot", "abc")),
        ("runs", "x", ("runs", "x")),
        ("version", "a", ("name", "tick")),
        ("priority", b"x", ("priority", "b'x'")),
        ("trigger", b"x", ("description", None)),
    ],
    ids=str,
)
def test_a_row_that_cannot_be_read_is_shown_as_it_stands_and_said_to_be_so(
    liteq: Liteq, shop: Shop, column: str, value: object, shown: tuple[str, object]
) -> None:
    add(liteq, "tick", "every 60s", "--max-runs", "9")
    with closing(sqlite3.connect(shop.directory / "shop.db")) as connection, connection:
        connection.execute(f"UPDATE liteq_schedule SET {column} = ? WHERE name = 'tick'", (value,))
    listed = {one["name"]: one for one in records(liteq("schedules", "planned.app", "--json"))}
    assert listed["tick"][shown[0]] == shown[1]
    assert listed["planned.report"]["state"] == "active"
    code, out, _ = liteq("schedules", "planned.app")
    assert (code, len(out.splitlines())) == (0, 3)
    for words in (["run"], ["update", "--jitter", "5"], ["pause"], ["preview"]):
        code, _, err = liteq("schedules", "planned.app", words[0], "tick", *words[1:])
        assert code == 2
        assert "schedule 'tick' cannot be read: in the file its" in err
        assert len(err.splitlines()) == 1
    assert add(liteq, "tick", "every 60s", "--replace")["state"] == "active"
    assert liteq("schedules", "planned.app", "rm", "tick")[0] == 0


def test_an_update_that_says_what_cannot_be_read_repairs_it(liteq: Liteq, shop: Shop) -> None:
    add(liteq)
    with closing(sqlite3.connect(shop.directory / "shop.db")) as connection, connection:
        connection.execute("UPDATE liteq_schedule SET jitter = 'abc' WHERE name = 'tick'")
    (record,) = records(liteq("schedules", "planned.app", "update", "tick", "--jitter", "0", "--json"))
    assert record["jitter"] == 0.0


def test_a_burst_from_cron_fires_what_is_due(liteq: Liteq, shop: Shop) -> None:
    out = shop.directory / "out"
    add(liteq, "tick", "every 60s", "--args", json.dumps([str(out), "x"]), "--start", "2020-01-01T00:00:00+00:00")
    stored = shop.app.storage.schedules("tick")[0]
    assert stored.slot is not None
    earlier = stored.slot - timedelta(minutes=5).total_seconds()
    assert shop.app.storage.put_schedule(stored._replace(slot=earlier, due=earlier))
    for _ in range(2):
        assert shop.run("-m", "liteq.cli.consumer", "planned.app", "--burst").returncode == 0
    assert out.read_text() in ("x", "xx")  # once, unless a minute began in between
    assert shop.app.schedules.get("tick").last_outcome == "succeeded"


def test_no_periodic_fires_nothing(liteq: Liteq, shop: Shop) -> None:
    add(liteq, "tick", "every 60s", "--args", '["never"]', "--start", "2020-01-01T00:00:00+00:00")
    stored = shop.app.storage.schedules("tick")[0]
    assert shop.app.storage.put_schedule(stored._replace(slot=0.0, due=0.0))
    assert shop.run("-m", "liteq.cli.consumer", "planned.app", "--burst", "-n").returncode == 0
    assert shop.app.schedules.get("tick").runs == 0


# ── install ──────────────────────────────────────────────────────────────────────────────────────────────

CRONTAB = """#!{python}
import pathlib, sys
kept = pathlib.Path({file!r})
if sys.argv[1:] == ["-l"]:
    if not kept.exists():
        sys.exit("no crontab for you")
    sys.stdout.write(kept.read_text())
elif sys.argv[1:] == ["-"]:
    kept.write_text(sys.stdin.read())
else:
    sys.exit("crontab: broken")
"""


@pytest.fixture
def crontab(shop: Shop, liteq: Liteq, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a crontab command of our own keeps."""
    programs, kept = shop.directory / "bin", shop.directory / "kept"
    programs.mkdir()
    command = programs / "crontab"
    command.write_text(CRONTAB.format(python=sys.executable, file=str(kept)))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    return kept


def test_a_dry_run_prints_the_line_and_writes_nothing(liteq: Liteq, crontab: Path, shop: Shop) -> None:
    code, out, _ = liteq("install", "cron", "planned.app", "--dry-run", "--options", "-w 2 -q 'a b'")
    assert code == 0
    assert out.startswith(
        f"* * * * * cd {shop.directory} && {sys.executable} -m liteq.cli.consumer planned.app --burst"
    )
    assert "--burst -w 2 -q 'a b' # liteq: planned.app in" in out
    assert not crontab.exists()


def test_install_and_uninstall_touch_their_own_line_only(liteq: Liteq, crontab: Path) -> None:
    others = "# mine\n5 * * * * echo liteq planned.app # liteq: other.app in /elsewhere\n\n"
    crontab.write_text(others)
    for _ in range(2):
        assert liteq("install", "cron", "planned.app", "--when", "*/5 * * * *")[0] == 0
    added = crontab.read_text().removeprefix(others)
    assert added.startswith("*/5 * * * * cd ")
    assert added.count("\n") == 1
    assert liteq("uninstall", "cron", "planned.app", "--dry-run")[1].startswith("would be removed: ")
    assert crontab.read_text() == others + added
    assert liteq("uninstall", "cron", "planned.app")[1].startswith("removed: ")
    assert crontab.read_text() == others
    assert "nothing was installed" in liteq("uninstall", "cron", "planned.app")[1]


def test_the_installed_line_is_a_command_that_works(liteq: Liteq, crontab: Path, shop: Shop) -> None:
    shop.app.task(name="planned.note")(lambda *args: None)(str(shop.directory / "out"), "by cron")
    assert liteq("install", "cron", "planned.app")[0] == 0
    command = crontab.read_text().removeprefix("* * * * * ").replace("\\%", "%")
    done: CompletedProcess[str] = shop.run(
        "-c", f"import os, sys; sys.exit(os.system({command!r}) != 0)", PATH=os.defpath
    )
    assert done.returncode == 0, done.stderr
    assert (shop.directory / "out").read_text() == "by cron"


def test_a_directory_with_strange_characters_is_quoted(
    liteq: Liteq, crontab: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = shop.directory / "100% 'mine'"
    strange.mkdir()
    monkeypatch.chdir(strange)
    assert liteq("install", "cron", "planned.app")[0] == 0
    assert "100\\% " in crontab.read_text()
    assert liteq("uninstall", "cron", "planned.app")[0] == 0
    assert crontab.read_text() == ""
    broken = shop.directory / "a\nb"
    broken.mkdir()
    monkeypatch.chdir(broken)
    assert liteq("install", "cron", "planned.app")[0] == 1


def test_a_crontab_that_cannot_be_read_is_not_overwritten(liteq: Liteq, crontab: Path, shop: Shop) -> None:
    command = shop.directory / "bin" / "crontab"
    command.write_text(f"#!{sys.executable}\nimport sys; sys.exit('crontab: you may not')\n")
    code, _, err = liteq("install", "cron", "planned.app")
    assert code == 1
    assert "nothing was changed: crontab: you may not" in err


def test_where_there_is_no_cron_that_is_said(liteq: Liteq) -> None:
    code, _, err = liteq("install", "cron", "planned.app")
    assert code == 1
    assert "no crontab command" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cron", "shop.db"], "not a file"),
        (["cron", "nowhere.app"], "nowhere"),
        (["anacron", "planned.app"], "anacron"),
        (["cron", "planned.app", "--when", "often and more"], "five fields"),
        (["cron", "planned.app", "--options", "'"], "cannot be read"),
        (["cron", "planned.app", "--when", "99 * * * *"], "crontab minute: '99' is out of range"),
        (["cron", "planned.app", "--when", "0 0 30 2 *"], "no date ever matches"),
        (["cron", "planned.app", "--options", "--nonsense"], "does not run with --options='--nonsense': unrecognized"),
        (["cron", "planned.app", "--when", "5"], "five fields of a crontab, or one of @yearly"),
        (["cron", "planned.app", "--when", "@DAILY"], "five fields of a crontab, or one of @yearly"),
        (["cron", "planned.app", "--when", "0 0 L * *"], "cron does not take 'L'"),
        (["cron", "planned.app", "--when", "0 0 15W * *"], "cron does not take '15W'"),
        (["cron", "planned.app", "--when", "0 0 * * 1,fri#2"], "cron does not take 'fri#2'"),
        (["cron", "planned.app", "--when", "22-2 * * * *"], "cron does not take '22-2'"),
        (["cron", "planned.app", "--when", "0 0 * * sat-sun"], "cron does not take 'sat-sun'"),
        (["cron", "planned.app", "--when", "0 0 * nov-feb *"], "cron does not take 'nov-feb'"),
        (["cron", "planned.app", "--when", "5/20 * * * *"], "cron does not take '5/20'"),
        (["cron", "planned.app", "--options", "--reload"], "--reload does not go with cron"),
        (["cron", "planned.app", "--system"], "--system is for systemd"),
        (["systemd", "planned.app", "--when", "* * * * *"], "--when is for cron"),
        (["systemd", "planned.app", "--options", "--burst"], "--burst does not go with systemd"),
        (["systemd", "planned.app", "--options", "-w 0"], "'0'"),
        (["systemd", "planned.app", "--options", "-w 2 other.app"], "other.app"),
    ],
)
def test_a_wrong_installation_is_refused(liteq: Liteq, words: list[str], message: str) -> None:
    code, _, err = liteq("install", *words)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    "when",
    ["@daily", "0 0 * * MON-Fri", "*/5,7 8-18/2 1 jan-mar,dec 5-7", "0 0 * * sun-tue", "00 04 1-31 * 7", "* *  * * *"],
)
def test_times_that_cron_takes_are_installed_as_they_are(liteq: Liteq, when: str) -> None:
    code, line, err = liteq("install", "cron", "planned.app", "--dry-run", "--when", when)
    assert (code, err) == (0, "")
    assert line.startswith(f"{when} cd ")


def test_a_unit_is_written_and_removed(liteq: Liteq, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(shop.directory / "config"))
    units = shop.directory / "config" / "systemd" / "user"
    code, text, _ = liteq("install", "systemd", "planned.app", "--dry-run", "--options", "-w 2")
    assert (code, units.exists()) == (0, False)
    assert f"WorkingDirectory={shop.directory}" in text.splitlines()
    assert f"ExecStart={sys.executable} -m liteq.cli.consumer planned.app -w 2" in text.splitlines()
    assert "ExecReload=/bin/kill -HUP $MAINPID" in text.splitlines()
    code, said, _ = liteq("install", "systemd", "planned.app", "--options", "-w 2")
    (unit,) = units.iterdir()
    assert unit.read_text() == text
    assert f"systemctl --user daemon-reload && systemctl --user enable --now {unit.name}" in said
    assert liteq("install", "systemd", "planned.app")[0] == 0  # again, to change it
    assert liteq("uninstall", "systemd", "planned.app")[0] == 0
    assert list(units.iterdir()) == []


def test_a_unit_waits_longer_for_the_consumer_than_the_consumer_for_its_jobs(liteq: Liteq) -> None:
    for options, patience in (("-n", 60), ("--shutdown-timeout 2m", 135)):  # -n looks like an option of install itself
        code, text, _ = liteq("install", "systemd", "planned.app", "--dry-run", "--options", options)
        assert code == 0
        assert f"planned.app {options}" in text
        assert f"TimeoutStopSec={patience}" in text.splitlines()


SYSTEMD = shutil.which("systemd-analyze")


@pytest.mark.skipif(SYSTEMD is None, reason="systemd is not installed here")
def test_systemd_understands_the_unit(liteq: Liteq, shop: Shop) -> None:
    code, text, _ = liteq("install", "systemd", "planned.app", "--system", "--dry-run", "--options", "-w 2 -q 'a b%c'")
    assert code == 0
    unit = shop.directory / "liteq-planned.service"
    unit.write_text(text)
    checked = subprocess.run([str(SYSTEMD), "verify", str(unit)], capture_output=True, text=True, check=False)
    ours = [line for line in checked.stderr.splitlines() if unit.name in line]
    assert (checked.returncode, ours) == (0, [])


def test_a_unit_that_is_somebody_elses_is_left_alone(liteq: Liteq, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(shop.directory))
    (record,) = records(liteq("install", "systemd", "planned.app", "--json"))
    Path(record["path"]).write_text("[Service]\n")
    for command in ("install", "uninstall"):
        code, _, err = liteq(command, "systemd", "planned.app")
        assert code == 1
        assert "nothing was changed" in err
    assert Path(record["path"]).read_text() == "[Service]\n"
