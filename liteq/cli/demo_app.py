"""The app of ``liteq demo``: what a user's own module looks like. Worker processes import it.

It works on texts that ship with Python (its help topics), because real text compresses like real text.
"""

import hashlib
import os
import zlib

from liteq import LiteQ, TaskContext

# The demo names a file in a temporary folder, for itself and for the consumer that it starts.
app = LiteQ(os.environ.get("LITEQ_DEMO_QUEUE", ":memory:"))


@app.task
def digest(text: str) -> str:
    """The SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


@app.task
def compress(text: str) -> bytes:
    """A text, as small as zlib makes it."""
    return zlib.compress(text.encode(), 9)


@app.task(retries=3, retry_delay=0.1, retry_backoff=2, context=True)
def unreliable(text: str, *, task: TaskContext) -> int:
    """Counts the words of a text, at the third attempt."""
    if task.attempt < 3:
        raise ConnectionError(f"the line is down (attempt {task.attempt})")
    return len(text.split())


@app.task(retries=1)
def impossible(text: str) -> int:
    """Fails whatever is tried: this ends among the failed jobs, with every attempt's traceback."""
    return int(text)


@app.task
def later(word: str) -> str:
    """Is enqueued with a delay of a second."""
    return word
