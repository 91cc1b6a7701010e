"""Where a thread is, for people."""

from __future__ import annotations

import os
from pathlib import Path
from types import FrameType

_STANDARD_LIBRARY = str(Path(os.__file__).parent) + os.sep


def place_of(frame: FrameType | None) -> str:
    """File, line and function that a frame executes; where it is the standard library's, of whoever called that."""
    if frame is None:
        return "unknown"
    shown: FrameType | None = frame
    while shown is not None and _is_foreign(shown.f_code.co_filename):
        shown = shown.f_back
    shown = shown or frame
    return f"{Path(shown.f_code.co_filename).name}:{shown.f_lineno}:{shown.f_code.co_name}"


def _is_foreign(file: str) -> bool:
    return file.startswith("<frozen") or (file.startswith(_STANDARD_LIBRARY) and "site-packages" not in file)
