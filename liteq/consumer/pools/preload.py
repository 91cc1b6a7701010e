"""Imported once by the fork server, so that worker processes are forks that already know the app (7 ms instead of 200).

The fork server ignores TERM, as worker processes do: a supervisor that signals the whole group must not take the server
away from under jobs that may still finish. It ends with its consumer, whose pipe it watches.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal

#: Names the module to import; set while the fork server is being started.
VARIABLE = "LITEQ_PRELOAD"

_module = os.environ.pop(VARIABLE, None)
if _module is not None:  # the consumer imports this too, for its name, and must go on hearing TERM
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if _module:
    # The server itself must live: each worker imports the module again, and says what is wrong.
    with contextlib.suppress(Exception, SystemExit):
        importlib.import_module(_module)
