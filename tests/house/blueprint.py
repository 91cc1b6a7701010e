"""The rules of the house as functions over a package's source: each reads modules and returns what breaks the rule.

``test_architecture.py`` holds them against liteq itself and, so that no rule goes blind, against small houses that
break exactly one of them. What is allowed as an exception stands in the tables here, with its reason, and an exception
that nothing needs any more is itself a finding.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path

PACKAGE = "liteq"

# ── the floors, as docs/design/architecture.md draws them ───────────────────────────────────────────────────────────

VALUES, STORAGE, APP, CONSUMER, EDGE, FRONT_DOOR = range(6)

# A package stands for everything in it. A new module needs a line here, and in the drawing.
FLOORS: Mapping[int, frozenset[str]] = {
    VALUES: frozenset(
        {"_version", "errors", "clock", "instants", "serializers", "triggers", "retry", "job", "lifecycle", "gates"}
        | {"plan", "schedule", "findings", "unique", "explanation", "step", "rates", "shares"}
    ),
    STORAGE: frozenset({"storage"}),
    APP: frozenset(
        {
            "arguments",
            "batches",
            "signals",
            "logs",
            "context",
            "steps",
            "middleware",
            "definition",
            "functions",
            "keys",
            "execution",
            "engine",
            "news",
            "result",
            "task",
            "workflow",
            "limits",
            "locks",
            "transactions",
            "rate_limits",
            "schedules",
            "slots",
            "waiting",
            "waits",
            "deadlock",
            "standstill",
            "asking",
            "checkup",
            "transfer",
            "whereabouts",
            "why",
            "app",
        }
    ),
    CONSUMER: frozenset({"consumer", "patched"}),
    EDGE: frozenset({"__main__", "cli", "dashboard", "testing", "pytest_plugin", "contrib"}),
    FRONT_DOOR: frozenset({""}),
}

# The way `python -m liteq` is spelled makes it a module of its own; it is part of the command line.
SAME_EDGE: Mapping[str, str] = {"__main__": "cli"}

# What an edge may import, besides itself.
PUBLIC_MODULES: Mapping[str, str] = {
    "liteq": "the front door",
    "liteq.errors": "every exception",
    "liteq.consumer": "the program that runs jobs; not at the front door, because most programs never start one",
}

# (importer, imported): why this one arrow may point up. Never a licence for a cycle.
UPWARD_ALLOWED: Mapping[tuple[str, str], str] = {
    ("liteq.app", "liteq.consumer"): "app.create_consumer() makes one; nothing in there knows LiteQ",
}

# ── who may import what from the standard library ───────────────────────────────────────────────────────────────────

SQLITE3_ROOMS = ("liteq.storage.sqlite*", "liteq.storage.schema")
LOGGING_ROOMS = ("liteq.logs", "liteq.cli", "liteq.cli.*", "liteq.consumer", "liteq.consumer.*")
CLOCK_ROOM = "liteq.clock"

# (module, what it uses): why it may import sqlite3 or logging, or read time, although it is not the room for it.
STDLIB_ALLOWED: Mapping[tuple[str, str], str] = {
    ("liteq.cli.huey_file", "sqlite3"): "reads a file of another program, which no storage of liteq's knows",
    ("liteq.cli.torture.run", "sqlite3"): "the verdict on the file is SQLite's own, asked without liteq",
}

# module: why it may drop every exception in one place.
DROPPING_ALLOWED: Mapping[str, str] = {
    "liteq.consumer.pools.preload": "the fork server lives on without the app; each worker imports it again and reports"
}

READS_TIME = frozenset(
    f"time.{name}{unit}"
    for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time", "clock_gettime")
    for unit in ("", "_ns")
) | {"datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today", "datetime.date.today"}
SLEEPS = frozenset({"time.sleep", "asyncio.sleep", "gevent.sleep"})

NO_ROOM_IS_CALLED = frozenset({"utils", "util", "common", "helpers", "helper", "misc", "shared", "tools"})

# ── how long functions are ──────────────────────────────────────────────────────────────────────────────────────────

MEDIAN_LINES = 10
NINETIETH_PERCENTILE_LINES = 35


@dataclass(frozen=True)
class Module:
    """One source file.

    Args:
        name: dotted, such as ``"liteq.storage.base"``; a package's is the package's own.
        source: its text.
        is_package: it is an ``__init__.py``.
    """

    name: str
    source: str
    is_package: bool

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def room(self) -> str:
        """The name below ``liteq``; empty for the front door."""
        return self.name.removeprefix(PACKAGE).removeprefix(".")

    @cached_property
    def comment_lines(self) -> frozenset[int]:
        return frozenset(token.start[0] for token in self._tokens if token.type == tokenize.COMMENT)

    @cached_property
    def code_lines(self) -> frozenset[int]:
        """Lines that hold more than blanks and comments."""
        layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
        lines: set[int] = set()
        for token in self._tokens:
            if token.type not in layout:
                lines.update(range(token.start[0], token.end[0] + 1))
        return frozenset(lines)

    @cached_property
    def _tokens(self) -> Sequence[tokenize.TokenInfo]:
        return tuple(tokenize.generate_tokens(io.StringIO(self.source).readline))

    @cached_property
    def imports(self) -> Sequence[Import]:
        """Every import, wherever it stands: at the top, in a function, under TYPE_CHECKING, or by ``import_module``."""
        return tuple(_imports(self))


@dataclass(frozen=True)
class Import:
    """``from base import name``, or ``import base`` where ``name`` is empty.

    Args:
        base: absolute dotted name.
        name: what is taken from it.
        alias: what it is called in the importing module.
        line: where.
    """

    base: str
    name: str
    alias: str
    line: int


def read(package: Path) -> list[Module]:
    """Every module under a package's directory, sorted by name."""
    return sorted(
        (
            Module(_module_name(package, path), path.read_text(encoding="utf-8"), path.name == "__init__.py")
            for path in package.rglob("*.py")
        ),
        key=lambda module: module.name,
    )


def _module_name(package: Path, path: Path) -> str:
    parts = [PACKAGE, *path.relative_to(package).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# ── imports ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _imports(module: Module) -> Iterator[Import]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                yield Import(alias.name, "", bound, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, "." * node.level + (node.module or ""))
            for alias in node.names:
                yield Import(base, alias.name, alias.asname or alias.name, node.lineno)
        elif isinstance(node, ast.Call) and (target := _imported_by_call(node)):
            yield Import(_absolute(module, target), "", "", node.lineno)


def _imported_by_call(call: ast.Call) -> str:
    """The module that ``import_module("…")`` or ``__import__("…")`` names, ``""`` for any other call."""
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if called not in {"import_module", "__import__"} or not call.args:
        return ""
    target = call.args[0]
    return target.value if isinstance(target, ast.Constant) and isinstance(target.value, str) else ""


def _absolute(module: Module, target: str) -> str:
    level = len(target) - len(target.lstrip("."))
    if level == 0:
        return target
    parts = module.name.split(".")
    if not module.is_package:
        parts.pop()
    parts = parts[: len(parts) - (level - 1)]
    return ".".join([*parts, target[level:]]).rstrip(".")


def arrows(modules: Sequence[Module]) -> dict[str, dict[str, int]]:
    """Who imports whom inside the package: importer → imported → line of the first such import."""
    names = {module.name for module in modules}
    found: dict[str, dict[str, int]] = {}
    for module in modules:
        targets = found.setdefault(module.name, {})
        for imported in module.imports:
            whole = f"{imported.base}.{imported.name}"
            target = whole if whole in names else imported.base
            if target.partition(".")[0] == PACKAGE:
                targets.setdefault(target, imported.line)
    return found


def _top_room(name: str) -> str:
    return name.removeprefix(PACKAGE).removeprefix(".").partition(".")[0]


def floor_of(name: str) -> int | None:
    """The floor on which a module stands, ``None`` if nobody gave it one."""
    room = _top_room(name)
    return next((floor for floor, rooms in FLOORS.items() if room in rooms), None)


def _edge_of(name: str) -> str:
    """The edge a module belongs to; each integration under ``contrib`` is one of its own."""
    room = _top_room(name)
    parts = name.split(".")
    return ".".join(parts[1:3]) if room == "contrib" else SAME_EDGE.get(room, room)


def rooms_without_a_floor(modules: Sequence[Module]) -> list[str]:
    """Modules that FLOORS does not place."""
    return [
        f"{module.name} stands on no floor: give it one in docs/design/architecture.md and in FLOORS"
        for module in modules
        if floor_of(module.name) is None
    ]


def imports_that_point_up(modules: Sequence[Module]) -> list[str]:
    """Imports from a floor to a higher one, from the house to an edge or its own front door."""
    found = []
    for importer, targets in arrows(modules).items():
        floor = floor_of(importer)
        for target, line in targets.items():
            above = floor_of(target)
            if floor is None or above is None or floor in {EDGE, FRONT_DOOR} or above <= floor:
                continue
            if (importer, target) not in UPWARD_ALLOWED:
                found.append(f"{importer}:{line} (floor {floor}) imports {target}, which is above it")
    return found


def edges_that_reach_inside(modules: Sequence[Module]) -> list[str]:
    """Imports by an edge of anything but itself and the public modules; another edge is never one."""
    found = []
    for importer, targets in arrows(modules).items():
        if floor_of(importer) != EDGE:
            continue
        for target, line in targets.items():
            if floor_of(target) == EDGE and _edge_of(target) == _edge_of(importer):
                continue
            if target not in PUBLIC_MODULES:
                found.append(f"{importer}:{line} imports {target}: an edge asks only the front door")
    return found


def front_door_imports_edges(modules: Sequence[Module]) -> list[str]:
    """Imports of an edge by ``liteq/__init__.py``: nobody who imports liteq pays for an edge."""
    targets = arrows(modules).get(PACKAGE, {})
    return [f"{PACKAGE}:{line} imports the edge {name}" for name, line in targets.items() if floor_of(name) == EDGE]


def import_cycles(modules: Sequence[Module]) -> list[str]:
    """One line for each group of modules that import each other, however late or for types only."""
    graph = arrows(modules)
    found: list[str] = []
    finished: set[str] = set()
    for start in graph:
        _walk(start, graph, [], finished, found)
    return found


def _walk(name: str, graph: dict[str, dict[str, int]], path: list[str], finished: set[str], found: list[str]) -> None:
    if name in path:
        found.append(" → ".join([*path[path.index(name) :], name]))
    elif name not in finished:
        for target in graph.get(name, {}):
            _walk(target, graph, [*path, name], finished, found)
        finished.add(name)


# ── the standard library ────────────────────────────────────────────────────────────────────────────────────────────


def strangers_who_import(library: str, rooms: Sequence[str], modules: Sequence[Module]) -> list[str]:
    """Imports of ``library`` outside ``rooms`` (names of modules; a last ``*`` stands for any ending)."""
    return [
        f"{module.name}:{imported.line} imports {library}; only {', '.join(rooms)} may"
        for module in modules
        if not _is_one_of(module.name, rooms) and (module.name, library) not in STDLIB_ALLOWED
        for imported in module.imports
        if imported.base.partition(".")[0] == library
    ]


def _is_one_of(name: str, rooms: Sequence[str]) -> bool:
    return any(name.startswith(room[:-1]) if room.endswith("*") else name == room for room in rooms)


def readers_of_time(modules: Sequence[Module]) -> list[str]:
    """Uses of the machine's time, and sleeps, outside ``clock.py``."""
    return [
        f"{module.name}:{line} uses {what}; time is read, and slept, in {CLOCK_ROOM} alone"
        for module in modules
        if module.name != CLOCK_ROOM
        for what, line in uses_of_time(module)
        if (module.name, what) not in STDLIB_ALLOWED
    ]


def uses_of_time(module: Module) -> list[tuple[str, int]]:
    """Each clock reader or sleep that a module imports or names, by its full name, with the line."""
    meaning = {imported.alias: _meaning(imported) for imported in module.imports if imported.alias}
    giving_way = {node.func for node in ast.walk(module.tree) if isinstance(node, ast.Call) and _gives_way(node)}
    uses = {(_meaning(imported), imported.line) for imported in module.imports}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node not in giving_way:
            head, *rest = _dotted(node)
            uses.add((".".join([meaning.get(head, ""), *rest]), node.lineno))
    return sorted(use for use in uses if use[0] in READS_TIME | SLEEPS)


def _meaning(imported: Import) -> str:
    """The full name of what an import binds: ``import a.b`` binds ``a``, with ``as c`` it binds ``a.b``."""
    if imported.name:
        return f"{imported.base}.{imported.name}"
    return imported.base if imported.alias != imported.base.partition(".")[0] else imported.alias


def _gives_way(call: ast.Call) -> bool:
    """``asyncio.sleep(0)`` waits for nothing: it is how a coroutine gives way."""
    return len(call.args) == 1 and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0


def _dotted(node: ast.expr) -> list[str]:
    """``a.b.c`` as its parts; an expression that is more than names begins with ``""``."""
    if isinstance(node, ast.Attribute):
        return [*_dotted(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else [""]


def exceptions_nobody_needs(modules: Sequence[Module]) -> list[str]:
    """Entries of the allowance tables that no longer apply."""
    graph = arrows(modules)
    stale = [f"UPWARD_ALLOWED {pair}" for pair in UPWARD_ALLOWED if pair[1] not in graph.get(pair[0], {})]
    used = {(module.name, imported.base.partition(".")[0]) for module in modules for imported in module.imports}
    used |= {(module.name, what) for module in modules for what, _ in uses_of_time(module)}
    stale += [f"STDLIB_ALLOWED {pair}" for pair in STDLIB_ALLOWED if pair not in used]
    dropping = {module.name for module in modules for node in ast.walk(module.tree) if any(_vanishing(module, node))}
    return stale + [f"DROPPING_ALLOWED {name}" for name in DROPPING_ALLOWED if name not in dropping]


# ── the look of a room ──────────────────────────────────────────────────────────────────────────────────────────────


def rooms_named_for_nothing(modules: Sequence[Module]) -> list[str]:
    """Modules and packages with a name that says only that somebody did not know where to put things."""
    return [
        f"{module.name}: name the idea that lives there"
        for module in modules
        if NO_ROOM_IS_CALLED & {part.strip("_") for part in module.name.split(".")}
    ]


def rooms_without_a_docstring(modules: Sequence[Module]) -> list[str]:
    """Public modules that do not begin with a sentence saying where the reader stands."""
    return [
        f"{module.name} begins without a sentence that says what lives there"
        for module in modules
        if _is_public(module) and not _is_sentence(ast.get_docstring(module.tree) or "")
    ]


def _is_public(module: Module) -> bool:
    return not any(part.startswith("_") and not part.endswith("__") for part in module.name.split("."))


def _is_sentence(docstring: str) -> bool:
    first, *_ = docstring.split("\n\n")
    return len(first.split()) >= 3 and first.rstrip("`").endswith((".", ":", "!", "?"))


def errors_that_vanish(modules: Sequence[Module]) -> list[str]:
    """Handlers that drop any error at all, and narrower ones that drop it without saying why."""
    return [
        finding
        for module in modules
        if module.name not in DROPPING_ALLOWED
        for node in ast.walk(module.tree)
        for finding in _vanishing(module, node)
    ]


def _vanishing(module: Module, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ExceptHandler) and all(map(_does_nothing, node.body)):
        if _is_broad(node.type):
            yield f"{module.name}:{node.lineno} drops every exception"
        elif not _is_explained(module, node) and not isinstance(node.body[-1], ast.Continue):
            yield f"{module.name}:{node.lineno} drops an exception without a comment that says why"
    if isinstance(node, ast.Call) and _dotted(node.func)[-1] == "suppress" and any(map(_is_broad, node.args)):
        yield f"{module.name}:{node.lineno} suppresses every exception"


def _does_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass | ast.Continue) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def _is_explained(module: Module, handler: ast.ExceptHandler) -> bool:
    """A comment stands in the handler or on the line before it."""
    return bool(module.comment_lines & set(range(handler.lineno - 1, (handler.end_lineno or handler.lineno) + 1)))


def _is_broad(caught: ast.expr | None) -> bool:
    if isinstance(caught, ast.Tuple):
        return any(map(_is_broad, caught.elts))
    return caught is None or _dotted(caught)[-1] in {"Exception", "BaseException"}


# ── the size of functions ───────────────────────────────────────────────────────────────────────────────────────────


def function_lengths(modules: Sequence[Module]) -> list[tuple[int, str]]:
    """Lines of code of every function that does something, with its place; shortest first.

    Blank lines, comments and docstrings do not count: explaining is free. Declarations without a body (overloads,
    protocols, abstract methods) do not count as functions.
    """
    return sorted(
        (_length(module, node), f"{module.name}:{node.lineno} {node.name}")
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not all(map(_declares, node.body))
    )


def _length(module: Module, function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = set(range(function.lineno, (function.end_lineno or function.lineno) + 1)) & module.code_lines
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        lines -= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return len(lines)


def _declares(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Raise) and statement.exc is not None:
        raised = statement.exc.func if isinstance(statement.exc, ast.Call) else statement.exc
        return _dotted(raised)[-1] == "NotImplementedError"
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def functions_too_long(modules: Sequence[Module]) -> list[str]:
    """What to split when the median or the 90th percentile of the package is above the house's measure."""
    lengths = function_lengths(modules)
    if not lengths:
        return []
    median, ninetieth = (lengths[ceil(len(lengths) * part) - 1][0] for part in (0.5, 0.9))
    if median <= MEDIAN_LINES and ninetieth <= NINETIETH_PERCENTILE_LINES:
        return []
    longest = [f"{lines} lines: {place}" for lines, place in reversed(lengths[-20:])]
    return [f"median {median} (at most {MEDIAN_LINES}), 90th percentile {ninetieth}", *longest]
