"""The command line of `liteq_consumer` and its environment variables: what each says, and which of them is believed."""

from __future__ import annotations

import argparse

import pytest

from liteq.cli import consumer
from liteq.cli.arguments import duration

#: Every option: flags, variable, a value for it, another one, and what the value means.
OPTIONS = [
    ("workers", "--workers", "3", "5", 3),
    ("worker_type", "--worker-type", "process", "thread", "process"),
    ("queues", "--queues", "a, b", "c", ("a", "b")),
    ("logfile", "--logfile", "a.log", "b.log", "a.log"),
    ("max_tasks", "--max-tasks", "100", "7", 100),
    ("max_memory", "--max-memory", "500", "7", 500),
    ("shutdown_timeout", "--shutdown-timeout", "1m", "3", 60.0),
    ("start_method", "--start-method", "spawn", "fork", "spawn"),
    ("pidfile", "--pidfile", "a.pid", "b.pid", "a.pid"),
]
SWITCHES = ["no_periodic", "verbose", "quiet", "simple", "json_logs", "burst", "reload"]


def variable(name: str) -> str:
    return f"LITEQ_{name.upper()}"


@pytest.mark.parametrize(("name", "flag", "text", "other", "value"), OPTIONS)
def test_a_variable_sets_what_no_flag_sets(
    monkeypatch: pytest.MonkeyPatch, name: str, flag: str, text: str, other: str, value: object
) -> None:
    monkeypatch.setenv(variable(name), text)
    assert getattr(consumer.understood(["shop.app"]), name) == value
    assert getattr(consumer.understood(["shop.app", flag, other]), name) != value
    monkeypatch.setenv(variable(name), other)
    assert getattr(consumer.understood(["shop.app", flag, text]), name) == value


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_on_by_its_flag_or_its_variable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert not getattr(consumer.understood(["shop.app"]), name)
    assert getattr(consumer.understood(["shop.app", f"--{name.replace('_', '-')}"]), name)
    for text, on in (("1", True), ("yes", True), ("0", False), ("off", False), ("", False)):
        monkeypatch.setenv(variable(name), text)
        assert bool(getattr(consumer.understood(["shop.app"]), name)) is on


def test_every_option_is_tried_here() -> None:
    tried = {name for name, *_ in OPTIONS} | set(SWITCHES)
    assert {action.dest for action in consumer.parser()._actions} == tried | {"help", "version", "app"}


def test_help_names_every_variable() -> None:
    text = consumer.parser().format_help()
    assert [name for name in [name for name, *_ in OPTIONS] + SWITCHES if f"[{variable(name)}]" not in text] == []


@pytest.mark.parametrize("name", [*(name for name, *_ in OPTIONS if name not in ("logfile", "pidfile")), *SWITCHES])
def test_a_bad_variable_is_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv(variable(name), "a,,\x1b")
    with pytest.raises(SystemExit) as ended:
        consumer.understood(["shop.app"])
    complaint = capsys.readouterr().err
    assert (ended.value.code, complaint.count("\n"), "\x1b" in complaint) == (2, 1, False)
    assert f"variable {variable(name)} takes " in complaint


def test_a_bad_variable_does_not_matter_where_a_flag_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITEQ_WORKERS", "many")
    assert consumer.understood(["shop.app", "-w", "2"]).workers == 2


@pytest.mark.parametrize(("flag", "name", "rival"), [("-v", "verbose", "quiet"), ("-S", "simple", "json_logs")])
def test_a_flag_beats_the_variable_of_its_rival(
    monkeypatch: pytest.MonkeyPatch, flag: str, name: str, rival: str
) -> None:
    monkeypatch.setenv(variable(rival), "1")
    arguments = consumer.understood(["shop.app", flag])
    assert (bool(getattr(arguments, name)), bool(getattr(arguments, rival))) == (True, False)


@pytest.mark.parametrize(("name", "rival"), [("verbose", "quiet"), ("simple", "json_logs")])
def test_variables_that_exclude_each_other_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, rival: str
) -> None:
    monkeypatch.setenv(variable(name), "1")
    monkeypatch.setenv(variable(rival), "1")
    with pytest.raises(SystemExit) as ended:
        consumer.understood(["shop.app"])
    assert ended.value.code == 2
    assert f"{variable(name)} and {variable(rival)} exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["-w", "0"],
        ["-w", "-1"],
        ["-w", "two"],
        ["-w", "9" * 5000],
        ["-k", "fiber"],
        ["-q", "a,a"],
        ["-q", ""],
        ["-M", "0"],
        ["--shutdown-timeout", "-1"],
        ["--shutdown-timeout", "nan"],
        ["--start-method", "clone"],
        ["-v", "--quiet"],
        ["-S", "--json-logs"],
        ["--unknown"],
        ["another.app"],
    ],
)
def test_a_wrong_flag_is_exit_code_2(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        consumer.understood(["shop.app", *options])
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("0.5", 0.5),
        ("0", 0),
        ("90s", 90),
        ("5m", 300),
        ("1h", 3600),
        ("7d", 604_800),
        ("2w", 1_209_600),
        ("1h30m", 5400),
        (" 1H ", 3600),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1x", "-1", "-1h", "inf", "nan", "1h30", "1 h", "१h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="takes seconds"):
        duration(text)
