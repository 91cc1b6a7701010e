"""A file that holds this program's process id while it runs, for supervisors and scripts: ``kill $(cat
consumer.pid)``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from liteq.cli.endings import Refused


@contextmanager
def pidfile(path: str | None, stays: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Keep our process id in a file for the length of the block; ``None``: in none. The file ``stays`` where the
    process goes on after the block.

    It guards against starting the same thing twice by mistake, no more: two consumers of one queue do each other no
    harm. So it need not be proof against two that start in the same microsecond over a dead one's file.

    Raises:
        Refused: it names a process that lives, is something else than such a file, or cannot be written.
    """
    if path is None:
        yield
        return
    file, pid = Path(path).absolute(), os.getpid()
    try:
        _write(file, pid)
    except OSError as error:
        raise Refused(f"cannot write the pidfile {file}: {error.strerror or error}") from None
    try:
        yield
    finally:
        is_ours = os.getpid() == pid and _content(file) == str(pid)  # we are no fork, and it is not another's by now
        if is_ours and not stays():
            file.unlink(missing_ok=True)


def _write(file: Path, pid: int) -> None:
    """Make the file, whole from its first moment."""
    _refuse_living(file)
    with NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}.", delete=False) as temporary:
        temporary.write(f"{pid}\n")
    try:
        Path(temporary.name).chmod(0o644)
        _put(Path(temporary.name), file)
    finally:
        Path(temporary.name).unlink(missing_ok=True)


def _put(temporary: Path, file: Path) -> None:
    try:
        os.link(temporary, file)  # unlike a rename, refuses to take another's place
    except FileExistsError:
        _refuse_living(file)
        temporary.replace(file)
    except (OSError, AttributeError):  # a file system, or a platform, without links
        temporary.replace(file)


def _refuse_living(file: Path) -> None:
    content = _content(file)
    if not content:
        return
    if not (content.isascii() and content.isdigit() and len(content) < 20):
        raise Refused(f"the pidfile {file} exists and holds something else than a process id; it was left as it is")
    if int(content) != os.getpid() and is_alive(
        int(content)
    ):  # ours: a container's programs have the same id each time
        raise Refused(f"the pidfile {file} names process {content}, which is running; stop it, or use another pidfile")


def _content(file: Path) -> str:
    """What the file holds; empty where there is none."""
    with suppress(FileNotFoundError):
        return file.read_text("ascii", errors="replace")[:100].strip()
    return ""


def is_alive(pid: int) -> bool:
    """Whether a process of this id runs."""
    if sys.platform == "win32":
        return _is_alive_on_windows(pid)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's, but alive
        return True
    return pid > 0


def _is_alive_on_windows(pid: int) -> bool:
    """As `is_alive`, where ``os.kill`` would end the process instead of asking."""
    import ctypes

    synchronize, timed_out = 0x100000, 0x102
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    handle = kernel.OpenProcess(synchronize, False, pid)
    if not handle:
        return False
    try:
        return bool(kernel.WaitForSingleObject(handle, 0) == timed_out)
    finally:
        kernel.CloseHandle(handle)
