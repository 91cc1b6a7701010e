"""Which source files a program is made of, and whether one has changed: for ``--reload``.

Looked at are the modules that are loaded from outside of Python's own directories, and every ``.py`` beside them or in
their packages, because a worker process, or a task, may import one of those later. Only names, times and sizes are
compared, some times a second, so that nothing else that is written there (``.pyc``, a queue's file) counts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import site
import sys
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_NEVER = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})

#: Time and size of a file.
Look = tuple[int, int]


class Sources:
    """The source files, as they were when this was made or they were first seen.

    Args:
        app: ``"module.name"`` or ``"module:name"``: where to begin, before anything is imported.
        known: directories that an earlier run has found.
    """

    def __init__(self, app: str, known: list[str]) -> None:
        self._directories = {os.path.realpath(one): False for one in [os.getcwd(), *known]}  # noqa: PTH109
        self._add_module_of(app)
        self._files = self.looks()
        self._is_imported = False
        self._contents = {file: _checksum(file) for file in self._files}

    @property
    def directories(self) -> list[str]:
        """The directories that are looked at."""
        return [one for one in self._directories if Path(one).is_dir()]

    def imported(self) -> None:
        """The program has been imported: what it writes from here on counts, whatever is in it."""
        self._is_imported = True

    def looks(self) -> dict[str, Look]:
        """Every file, as it is."""
        found: dict[str, Look] = {}
        for directory, whole in self._directories.items():
            for file in _python_files(directory, whole=whole):
                look = _look(file)
                if look is not None:
                    found[file] = look
        return found

    def forget_stale_bytecode(self) -> None:
        """See `forget_stale_bytecode`; of every file."""
        forget_stale_bytecode(self._files)

    def changed(self) -> str | None:
        """A file that was changed, removed or added since; ``None``: there is none."""
        self._take_in_loaded_modules()
        is_imported = (
            self._is_imported
        )  # asked first: what is written while the files are looked at still belongs to it
        now = self.looks()
        for file in sorted(now.keys() | self._files.keys()):
            if now.get(file) == self._files.get(file):
                continue
            if self._contents.get(file) is None or _checksum(file) != self._contents[file]:
                return file
            self._files[file] = now[file]  # written by the app while it was imported, with what was in it before
        if is_imported:
            self._contents = {}
        return None

    def _take_in_loaded_modules(self) -> None:
        """Where modules were loaded from since the last look, files are as they were then."""
        known = dict(self._directories)
        self._add_loaded_modules()
        new = {directory for directory, whole in self._directories.items() if known.get(directory) is not whole}
        if new:
            for file, look in self.looks().items():
                if _is_in(file, new):
                    self._files.setdefault(file, look)

    # ── where they are ───────────────────────────────────────────────────────────────────────────────

    def _add_module_of(self, app: str) -> None:
        name = app.partition(":")[0] if ":" in app else app.rpartition(".")[0]
        try:
            spec = importlib.util.find_spec(name.partition(".")[0])
        except (ImportError, ValueError):
            return  # there is none, which importing it will tell
        if spec is not None and spec.origin is not None:
            self._add(spec.origin, is_package=spec.submodule_search_locations is not None)

    def _add_loaded_modules(self) -> None:
        for name, module in list(sys.modules.items()):
            file = _file_of(module)
            if isinstance(file, str) and file.endswith(".py"):
                self._add(file, is_package="__path__" in vars(module) or "." in name)

    def _add(self, file: str, *, is_package: bool) -> None:
        """Watch the directory of a module; of a package the whole of it."""
        directory = os.path.realpath(os.path.dirname(file))  # noqa: PTH120
        if not _is_foreign(directory):
            self._directories[directory] = self._directories.get(directory, False) or is_package


def loaded_files() -> list[str]:
    """The sources of the modules that are loaded from outside of Python's own directories."""
    files = {_file_of(module) for module in list(sys.modules.values())}
    own = (os.path.realpath(file) for file in files if isinstance(file, str) and file.endswith(".py"))
    return [file for file in own if not _is_foreign(os.path.dirname(file))]  # noqa: PTH120


def forget_stale_bytecode(files: Iterable[str]) -> None:
    """Remove the ``.pyc`` of sources that were written after it.

    Python takes a ``.pyc`` for good if it names the source's size and time, and the time in whole seconds: of two edits
    in one second that leave the size as it was, the second would never be run.
    """
    for file in files:
        cached = importlib.util.cache_from_source(file)
        source, bytecode = _look(file), _look(cached)
        if source is not None and bytecode is not None and source[0] >= bytecode[0]:
            with contextlib.suppress(OSError):  # not ours to remove; then it stays as Python would have it
                os.unlink(cached)  # noqa: PTH108


def _file_of(module: object) -> object:
    """Where a module comes from; some import themselves when they are asked for what they have not got."""
    return getattr(module, "__dict__", {}).get("__file__")


def _python_files(directory: str, *, whole: bool) -> Iterator[str]:
    """Those in a directory and in the packages in it; in those everything."""
    try:
        with os.scandir(directory) as entries:
            found = list(entries)
    except OSError:
        return  # it is gone, and with it its files, which is seen
    for entry in found:
        if entry.name.endswith(".py"):
            yield entry.path
        elif _may_hold_modules(entry) and (whole or Path(entry.path, "__init__.py").exists()):
            yield from _python_files(entry.path, whole=True)


def _may_hold_modules(entry: os.DirEntry[str]) -> bool:
    return entry.name not in _NEVER and not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)


def _look(file: str) -> Look | None:
    try:
        status = os.stat(file)  # noqa: PTH116
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _checksum(file: str) -> int | None:
    try:
        return zlib.crc32(Path(file).read_bytes())
    except OSError:
        return None


def _is_in(file: str, directories: set[str]) -> bool:
    return any(file.startswith(one + os.sep) for one in directories)


def _is_foreign(directory: str) -> bool:
    """Whether this belongs to Python or was installed with it."""
    return bool(_NEVER & set(Path(directory).parts)) or _is_in(directory + os.sep, _FOREIGN)


_FOREIGN = {
    os.path.realpath(one)
    for one in (
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        site.getusersitepackages(),
    )
}
