"""The documentation against the code: every name, option and command is in it, its examples compile, its links hold.

A name counts as documented where it stands as code: in backticks or in a fenced block. As a plain word in a sentence it
does not, or ``at`` and ``name`` would always be found.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack, get_args, get_origin, get_overloads, get_type_hints, overload

import pytest

import liteq
from liteq import consumer, definition

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+|~~~+) *(?P<language>[\w+-]*)[^\n]*\n(?P<body>.*?)^(?P=indent)(?P=fence)",
    re.M | re.S,
)
INLINE_CODE = re.compile(r"(?P<ticks>`+)(?!`)(?P<code>.+?)(?<!`)(?P=ticks)(?!`)", re.S)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)")

# Options of Python's own, which no page needs to explain.
UNDERSTOOD = frozenset({"-h", "--help"})

# Directories of one machine: none belongs in a file that others read (nor in this one, hence the separate slash).
SLASH = "/"
MACHINE_PATH = re.compile(rf"(?<![\w./$}}~-]){SLASH}(work|root|tmp/venv|opt/pypi)(?![\w.-])")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Args:
        page: where it stands, relative to the checkout.
        line: of its first line.
        language: what the fence says.
        body: its text, without the indentation of the fence.
    """

    page: str
    line: int
    language: str
    body: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README and everything under docs/."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks() -> Iterator[Block]:
    """Every fenced block of every page."""
    for page in pages():
        yield from blocks_of(page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix())


def blocks_of(text: str, page: str) -> Iterator[Block]:
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("body")) + 1
        yield Block(page, line, match["language"].lower(), textwrap.dedent(match["body"]))


def code_of(text: str) -> str:
    """What stands as code in a page."""
    fenced = [block.body for block in blocks_of(text, "")]
    inline = [match["code"] for match in INLINE_CODE.finditer(FENCE.sub("", text))]
    return "\n".join([*fenced, *inline])


def mentions(code: str, name: str) -> bool:
    """Whether ``name`` stands in ``code`` as a word of its own (``--queue`` is not found in ``--queues``)."""
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", code) is not None


@pytest.fixture(scope="module")
def code() -> str:
    """What stands as code in the pages for users: what only docs/design/ mentions is not documented."""
    return "\n".join(code_of(page.read_text(encoding="utf-8")) for page in pages() if page.parent in {ROOT, DOCS})


def assert_documented(names: set[str], code: str) -> None:
    assert names
    missing = sorted(name for name in names if not mentions(code, name))
    assert not missing, "nowhere in README.md or docs/*.md, as code: " + ", ".join(missing)


# ── names and options ───────────────────────────────────────────────────────────────────────────────────────────────


def test_every_public_name_is_documented(code: str) -> None:
    assert_documented(set(liteq.__all__) - {"__version__"}, code)


def test_every_public_method_of_the_app_and_its_handles_is_documented(code: str) -> None:
    methods = {
        name
        for thing in (liteq.LiteQ, liteq.Task, liteq.Result, liteq.ResultGroup)
        for name, member in inspect.getmembers(thing)
        if not name.startswith("_") and (callable(member) or isinstance(member, property))
    }
    assert len(methods) > 20
    assert_documented(methods, code)


def test_every_option_of_the_app_is_documented(code: str) -> None:
    assert_documented(options_of(liteq.LiteQ.__init__), code)


def test_every_option_of_a_task_is_documented(code: str) -> None:
    assert_documented(options_of(liteq.LiteQ.task) | definition.OPTION_NAMES, code)


def test_every_option_of_a_single_call_is_documented(code: str) -> None:
    assert_documented(options_of(liteq.Task.schedule) | set(definition.PER_CALL), code)


def test_every_option_of_an_embedded_consumer_is_documented(code: str) -> None:
    assert_documented(options_of(consumer.ConsumerOptions) - {"app_path"}, code)


def options_of(function: Any) -> set[str]:
    """What can be passed by name, over all overloads, and through ``**options: Unpack[SomeTypedDict]``."""
    names: set[str] = set()
    for variant in [*get_overloads(function), function]:
        for parameter in inspect.signature(variant).parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                names |= _keywords(get_type_hints(variant, vars(sys.modules[variant.__module__]))[parameter.name])
            elif parameter.kind not in {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY}:
                names.add(parameter.name)
    return names - {"self"}


def _keywords(hint: Any) -> set[str]:
    """The keys of ``Unpack[SomeTypedDict]``; of anything else nothing is known."""
    return set(get_type_hints(get_args(hint)[0])) if get_origin(hint) is Unpack else set()


@pytest.mark.parametrize("module", ["liteq.cli.consumer", "liteq.cli.main"])
def test_every_command_and_its_options_are_documented(module: str, code: str) -> None:
    parser: argparse.ArgumentParser = importlib.import_module(module).parser()
    found = spellings(parser)
    assert len(found - UNDERSTOOD) > 3, f"{module}.parser() has no options"
    assert_documented(found - UNDERSTOOD, code)


@pytest.mark.parametrize("module", ["liteq.cli.consumer", "liteq.cli.main"])
def test_every_option_explains_itself(module: str) -> None:
    parser: argparse.ArgumentParser = importlib.import_module(module).parser()
    silent = [name for name, action in actions(parser) if not action.help or action.help == argparse.SUPPRESS]
    assert silent == [], "options without a line of help"


def spellings(parser: argparse.ArgumentParser) -> set[str]:
    """Every option in every spelling, the variables its help names, and every command as ``program command``."""
    found: set[str] = set()
    for action in parser._actions:
        found.update(action.option_strings, re.findall(r"\bLITEQ_[A-Z_]+", action.help or ""))
        if isinstance(action, argparse._SubParsersAction):
            for command, sub in action.choices.items():
                found.add(f"{parser.prog.split()[-1]} {command}")
                found |= spellings(sub)
    return found


def actions(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Every option and positional argument with where it stands, but the sub-commands themselves."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from actions(sub)
        else:
            yield f"{parser.prog} {'/'.join(action.option_strings) or action.dest}", action


# ── examples, commands, links ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("block", [block for block in blocks() if block.language in {"python", "py"}], ids=str)
def test_every_example_compiles(block: Block) -> None:
    source = "\n" * (block.line - 1) + block.body
    compile(source, block.page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


@pytest.mark.parametrize(
    "command",
    ["python -m pip install . && liteq demo", "python -m pip install -e '.[test]' && python -m pytest"],
)
def test_the_readme_gives_both_first_commands_word_for_word(command: str) -> None:
    assert command in code_of((ROOT / "README.md").read_text(encoding="utf-8"))


def test_every_link_between_pages_leads_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages()
        for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
        if "://" not in target and not target.startswith(("#", "mailto:"))
        if not (page.parent / target.partition("#")[0]).exists()
    ]
    assert not broken, "\n".join(broken)


def test_the_readme_leads_to_every_page_for_users() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    pages = {page.relative_to(ROOT).as_posix() for page in DOCS.glob("*.md") if page.name != "index.md"}
    assert not pages - linked


def test_the_readme_names_every_kind_of_worker(code: str) -> None:
    readme = code_of((ROOT / "README.md").read_text(encoding="utf-8"))
    assert all(mentions(readme, kind) for kind in get_args(consumer.options.WorkerType))


def test_the_table_of_contents_lists_every_page_once() -> None:
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ *- .*?([\w./-]+\.md)\s*$", contents.partition("\nnav:")[2], re.M)
    written = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    assert len(listed) == len(set(listed))
    assert not set(written) - set(listed), "add to nav in mkdocs.yml"
    assert not set(listed) - set(written), "in nav in mkdocs.yml, but not written"


# ── the tree ────────────────────────────────────────────────────────────────────────────────────────────────────────


def tree() -> list[Path]:
    """Every file that is, or is about to be, under version control; where git knows nothing, every file."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.split(b"\0")
    except (OSError, subprocess.CalledProcessError):
        return [path for path in ROOT.rglob("*") if path.is_file() and not _is_made(path.relative_to(ROOT))]
    return [path for path in (ROOT / os.fsdecode(name) for name in listed if name) if path.is_file()]


def _is_made(path: Path) -> bool:
    """Made by a tool, not written by somebody."""
    made = {".git", ".venv", ".hypothesis", "build", "dist", "site"}
    return any(part in made or part.endswith((".egg-info", "_cache", "__pycache__")) for part in path.parts)


def machine_paths(text: str) -> list[str]:
    return [match.group() for match in MACHINE_PATH.finditer(text)]


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    files = tree()
    assert len(files) > 10
    found = [
        f"{file.relative_to(ROOT)}: {path}"
        for file in files
        for path in machine_paths(file.read_bytes().decode("utf-8", errors="replace"))
    ]
    assert not found, "\n".join(found)


# ── what these checks see, and what they let pass ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["|work|main", "'|root|x'", "(|opt|pypi)", "cd |tmp|venv|bin", "=|root"])
def test_a_path_of_a_machine_is_seen(path: str) -> None:
    assert machine_paths(path.replace("|", SLASH))


@pytest.mark.parametrize("path", ["~|work", "net|work", "|workers", "http:||example.org|work", ".|root", "$X|work"])
def test_a_path_that_is_nobodys_is_let_pass(path: str) -> None:
    assert not machine_paths(path.replace("|", SLASH))


def test_a_name_counts_only_as_code_and_only_as_a_whole() -> None:
    code = code_of("Say at once. Use `--queues a,b` or ``every(30)``.\n\n```console\n$ liteq ls --json\n```\n")
    assert [mentions(code, name) for name in ("--queues", "every", "liteq ls", "--json")] == [True] * 4
    assert [mentions(code, name) for name in ("at", "--queue", "queues", "liteq l", "json")] == [False] * 5


def test_an_example_in_a_list_is_found_with_its_line() -> None:
    text = "1. first\n\n    ```python\n    if x:\n        y\n    ```\n"
    assert list(blocks_of(text, "p.md")) == [Block("p.md", 4, "python", "if x:\n    y\n")]


def test_commands_of_commands_are_found() -> None:
    parser = argparse.ArgumentParser(prog="liteq")
    parser.add_argument("--version", action="version", version="1", help="the version [LITEQ_VERSION]")
    commands = parser.add_subparsers().add_parser("schedules").add_subparsers()
    commands.add_parser("preview").add_argument("-n", "--number")
    expected = {"--version", "LITEQ_VERSION", "liteq schedules", "schedules preview", "-n", "--number"}
    assert spellings(parser) - UNDERSTOOD == expected
    assert [name for name, action in actions(parser) if not action.help] == ["liteq schedules preview -n/--number"]


class Further(TypedDict, total=False):
    """Options that a function takes through ``**options``."""

    delay: float
    queue: str


@overload
def using(name: str, /, *, retries: int) -> None: ...
@overload
def using(name: str, /, **options: Unpack[Further]) -> None: ...
def using(name: str, /, **options: Any) -> None:
    """Takes three options."""


def test_options_behind_keyword_arguments_are_found() -> None:
    assert options_of(using) == {"retries", "delay", "queue"}
