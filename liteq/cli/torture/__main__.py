"""A victim's process: ``python -m liteq.cli.torture consumer …`` or ``producer SEED``. Started by `crew` alone."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence


def main(role: str, arguments: Sequence[str]) -> int:
    """Be a consumer, as a user starts it, or a producer."""
    threading.Thread(target=_end_with_the_torturer, daemon=True).start()
    if role == "consumer":
        from liteq.cli.consumer import main

        return main(arguments)
    from liteq.cli.torture.victims import produce

    return produce(int(arguments[0]))


def _end_with_the_torturer() -> None:
    """Standard input is a pipe from the process that started this one, and ends with it: no orphans."""
    while os.read(0, 1):
        continue
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
