"""What the tests of storages share. And the asserts in ``contract.py``, which is no test file by name, explain
themselves like those in one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

pytest.register_assert_rewrite("contract", "gates_contract", "schedule_contract", "steps_contract")


@pytest.fixture
def path() -> Iterator[Path]:
    """Of a file that does not exist, in memory if possible: what a disk makes of each commit is not what is asked."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with TemporaryDirectory(prefix="liteq-test-", dir=memory) as name:
        yield Path(name) / "queue.db"
