"""A victim's process: ``python -m liteq.cli.torture consumer …`` or ``producer SEED``. Started by `crew` alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from liteq.cli.tied import tie


def main(role: str, arguments: Sequence[str]) -> int:
    """Be a consumer, as a user starts it, or a producer."""
    tie()
    if role == "consumer":
        from liteq.cli.consumer import main

        return main(arguments)
    from liteq.cli.torture.victims import produce

    return produce(int(arguments[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
