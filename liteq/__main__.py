"""``python -m liteq``: the same as the command `liteq`."""

import sys

from liteq.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
