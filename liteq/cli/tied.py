"""Programs that end with the one that has started them: no orphans, also where that one is killed.

``python -m liteq.cli.tied …`` is a ``liteq_consumer …`` of this kind.
"""

from __future__ import annotations

import os
import sys
import threading


def tie() -> None:
    """End this process at once when its standard input ends: a pipe from the program that has started it."""
    threading.Thread(target=_end_with_the_input, name="liteq-tie", daemon=True).start()


def _end_with_the_input() -> None:
    while os.read(0, 1):
        continue
    os._exit(1)


if __name__ == "__main__":
    from liteq.cli.consumer import main

    tie()
    sys.exit(main())
