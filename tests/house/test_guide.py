"""The examples of the guide work as they are printed, and its tables hold every state, signal and option there is.

A fenced block of Python with ``<!-- run -->`` on the line before it is run. The first such block of a page is the file
that the others go on from; each of them runs after it, in a directory and with a consumer of its own, so that their
order does not matter. What a block prints must be what the comments behind its ``print(...)`` say.

That names and options are documented at all, and that unmarked examples compile, is held by `test_docs`.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from liteq import JobState, LiteQ, lifecycle, signals
from liteq.consumer import ConsumerOptions

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    *(f"docs/{name}.md" for name in ("guide", "index", "coming-from", "schedules", "locks", "unique", "steps")),
    *(f"docs/{name}.md" for name in ("middleware", "workflows")),
)

RUN = re.compile(r"^<!-- run -->\n```python\n(?P<body>.*?)^```$", re.M | re.S)
MARK = re.compile(r"^ *<!-- *run\b.*$", re.M)
PRINTED = re.compile(r"^ *print\(.*\) +# (?P<output>.+)$", re.M)


@dataclass(frozen=True)
class Example:
    """One block that is run.

    Args:
        page: where it stands, relative to the checkout.
        line: of its first line.
        body: its text.
        before: the block that it goes on from; ``None`` where it is that block.
    """

    page: str
    line: int
    body: str
    before: Example | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def code(self) -> types.CodeType:
        source = "\n" * (self.line - 1) + self.body
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        return compile(source, str(ROOT / self.page), "exec", flags=flags, dont_inherit=True)

    def expected(self) -> list[str]:
        """What its comments say that it prints."""
        return [match["output"] for match in PRINTED.finditer(self.body)]


def examples_of(text: str, page: str) -> Iterator[Example]:
    first: Example | None = None
    for match in RUN.finditer(text):
        example = Example(page, text.count("\n", 0, match.start("body")) + 1, match["body"], first)
        first = first or example
        yield example


EXAMPLES = [
    example
    for page in PAGES
    if (ROOT / page).exists()
    for example in examples_of((ROOT / page).read_text(encoding="utf-8"), page)
]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The names of a module ``shop`` that stands in an empty directory; its app is closed at the end."""
    module = types.ModuleType("shop")
    module.__file__ = str(tmp_path / "shop.py")
    monkeypatch.setitem(sys.modules, "shop", module)
    monkeypatch.chdir(tmp_path)
    names = vars(module)
    yield names
    for app in [value for value in names.values() if isinstance(value, LiteQ)]:
        app.close()


def run(example: Example, names: dict[str, Any]) -> list[str]:
    """Run one block in a module's names; returns the lines it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        unfinished = eval(example.code(), names)
        if inspect.iscoroutine(unfinished):  # it awaits something

            async def finish() -> None:
                await unfinished

            asyncio.run(finish())
    return printed.getvalue().splitlines()


@pytest.mark.parametrize("example", [one for one in EXAMPLES if one.before is not None], ids=str)
def test_an_example_does_what_it_says(example: Example, shop: dict[str, Any]) -> None:
    assert example.before is not None
    run(example.before, shop)
    with shop["app"].run_in_background(workers=2):
        assert run(example, shop) == example.expected()


@pytest.mark.parametrize("example", [one for one in EXAMPLES if one.before is None], ids=str)
def test_the_file_that_the_examples_go_on_from_touches_nothing(
    example: Example, shop: dict[str, Any], tmp_path: Path
) -> None:
    assert run(example, shop) == example.expected()
    assert list(tmp_path.iterdir()) == []


def test_the_guide_has_examples_that_are_run() -> None:
    assert len([example for example in EXAMPLES if example.page == "docs/guide.md"]) > 8


@pytest.mark.parametrize("page", PAGES)
def test_every_mark_is_understood(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(MARK.findall(text)) == len(list(examples_of(text, page)))


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_link_to_a_heading_leads_to_one(page: Path) -> None:
    for file, anchor in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", page.read_text(encoding="utf-8")):
        target = page.parent / file if file else page
        headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
        assert anchor in {_anchor(heading) for heading in headings}, f"{page.name}: {file}#{anchor}"


def _anchor(heading: str) -> str:
    """As GitHub and MkDocs make it."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


# ── the README's main job ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_main_job_of_the_readme_works_as_printed(shop: dict[str, Any]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = [Example("README.md", 1, body, None) for body in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)]
    define, call = (block for block in blocks if "app = LiteQ(" in block.body or "from shop import" in block.body)
    run(define, shop)
    with shop["app"].run_in_background(workers=2):
        printed = run(call, shop)
    assert printed == [shop["result"].id, "sent 'Hello' to ann@example.org"]
    assert Path("shop.db").exists(), "it is beside shop.py"


# ── the tables ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def guide() -> str:
    return (ROOT / "docs/guide.md").read_text(encoding="utf-8")


def section(guide: str, title: str) -> str:
    """The text under a heading, up to the next one of its rank."""
    found = re.search(rf"^(?P<rank>#+) {re.escape(title)}\n(?P<text>.*?)(?=^(?P=rank) |\Z)", guide, re.M | re.S)
    assert found, f"no section {title!r}"
    return found["text"]


def rows(text: str) -> str:
    return "\n".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))


def test_the_table_of_states_holds_every_state(guide: str) -> None:
    listed = re.findall(r"`(\w+)`", rows(section(guide, "Job states")).replace("`JobState`", ""))
    assert sorted(listed) == sorted(JobState)


def test_the_diagram_of_states_is_that_of_the_code(guide: str) -> None:
    diagram = re.search(r"::\n\n(.*?\n)\n(?! {6})", lifecycle.__doc__ or "", re.S)
    assert diagram
    assert diagram[1] in section(guide, "Job states")


def test_the_table_of_signals_holds_every_signal(guide: str) -> None:
    listed = re.findall(r"`S\.(\w+)`", rows(section(guide, "Signals and hooks")))
    assert sorted(getattr(signals, name) for name in listed) == sorted(signals.ALL)


def test_the_table_of_the_embedded_consumer_holds_every_option_with_its_default(guide: str) -> None:
    table = section(guide, "Inside your program")
    for name, option in inspect.signature(ConsumerOptions).parameters.items():
        row = re.search(rf"^\| `{name}` \| (?P<default>[^|]+) \|", table, re.M)
        assert row, f"no row for {name}"
        if name != "app_path":
            assert row["default"].strip() == f"`{_written(option.default)}`"


def test_the_table_of_the_app_gives_the_defaults_of_the_code(guide: str) -> None:
    table = section(guide, "The app")
    for name, option in inspect.signature(LiteQ).parameters.items():
        row = re.search(rf"^\| `{name}` \| (?P<default>[^|]*) \|", table, re.M)
        assert row, f"no row for {name}"
        written = row["default"].strip()
        in_words = {"a day": 86_400, "14 days": 14 * 86_400, "64 MiB": 64 << 20}
        assert written == f"`{_written(option.default)}`" or in_words.get(written) == option.default


def _written(default: object) -> str:
    text = f'"{default}"' if isinstance(default, str) else repr(default)
    return text.removesuffix(".0")


# ── what these checks see ───────────────────────────────────────────────────────────────────────────────────────────


def test_what_an_example_prints_is_compared() -> None:
    body = "print(1)      # 1\nprint(f(2))  # 2 3\nx = 1  # no output\n"
    [example] = examples_of(f"text\n\n<!-- run -->\n```python\n{body}```\n", "page.md")
    assert (example.line, example.expected()) == (5, ["1", "2 3"])


def test_a_wrong_example_is_noticed(tmp_path: Path) -> None:
    example = Example("page.md", 1, "print(1 + 1)  # 3\n", None)
    assert run(example, {}) != example.expected()
    with pytest.raises(ZeroDivisionError):
        run(Example("page.md", 1, "async def f():\n    1 / 0\nawait f()\n", None), {})
