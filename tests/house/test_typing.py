"""What a type checker knows about liteq is part of its promise: ``typing_api.py`` passes mypy, and could fail."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TYPING_API = Path(__file__).with_name("typing_api.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed: pip install -e '.[dev]'"),
]


def mypy(file: Path) -> subprocess.CompletedProcess[str]:
    """Runs mypy over one file with the project's settings, from the checkout, so that it finds this liteq."""
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(file)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_public_types_are_those_written_down() -> None:
    checked = mypy(TYPING_API)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_type_that_changed_and_a_mistake_that_became_legal_are_both_noticed(tmp_path: Path) -> None:
    source = TYPING_API.read_text(encoding="utf-8")
    changed = source.replace("assert_type(add(1, 2), Result[int])", "assert_type(add(1, 2), Result[str])")
    legal = changed.replace('add("1", 2)  # type: ignore', "add(1, 2)  # type: ignore")
    assert source != changed != legal, "typing_api.py no longer holds the lines this test turns wrong"
    copy = tmp_path / "typing_api_gone_wrong.py"
    copy.write_text(legal, encoding="utf-8")
    checked = mypy(copy)
    errors = [line.split()[-1] for line in checked.stdout.splitlines() if copy.name in line and " error: " in line]
    assert sorted(errors) == ["[assert-type]", "[unused-ignore]"], checked.stdout + checked.stderr
