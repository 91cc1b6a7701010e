"""The app as a consumer imports it; the file and its durability come from the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

from benchmarks.harness import Durability
from benchmarks.tasks import open_queue, register_coroutines

app = open_queue(Path(os.environ["BENCHMARK_FILE"]), cast(Durability, os.environ["BENCHMARK_DURABILITY"])).app
register_coroutines(app)
