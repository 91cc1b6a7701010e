"""JSON, the careful way: values that are not plain become a tree of JSON, and what is nested too deep becomes parts.

You stand where ``JSONSerializer`` goes with whatever its quick way does not serve. ``Writer`` tags, notices cycles and
refuses with the path to the culprit; ``PartsReader`` puts the parts of a document together again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from liteq.errors import SerializationError, TaskTimeout
from liteq.serializers.contract import error_words, named_arguments, type_name
from liteq.serializers.document import PART_DEPTH, TAG, VALUE, Unstorable, tagged, write_str
from liteq.serializers.known import atom_writer_of, container_writer_of, is_plain_key, late_atom
from liteq.serializers.registered import Registered

_MAX_DEPTH = 20_000
"""Levels of nesting in all. Nobody's data is that deep; an ``encode`` function that never comes to an end is."""


class _Part(NamedTuple):
    """A value so deep inside another that it is written as a part of its own."""

    where: str
    value: object
    above: tuple[dict[int, object], ...]


class Writer:
    """Builds the JSON of one document out of values that are not plain.

    Attributes:
        where: the words for the argument that is being written.
    """

    def __init__(self, registered: Mapping[type, Registered]) -> None:
        self.where = "value"
        self._registered = registered
        # The containers on the way from the part's root to here: by id to notice a cycle, and held, so that an id
        # cannot be given to another object meanwhile.
        self._open: dict[int, object] = {}
        self._above: tuple[dict[int, object], ...] = ()
        self._pending: deque[_Part] = deque()
        self._parts = 0

    def value(self, where: str, value: object) -> object:
        """Write a value that an error is to call ``where``.

        Raises:
            SerializationError: it cannot be stored.
        """
        self.where = where
        try:
            return self.tree(value)
        except Unstorable as problem:
            raise SerializationError(f"cannot store {where}{problem.path}: {problem.reason}") from problem.__cause__

    def call(self, args: tuple[object, ...], kwargs: dict[str, object], names: Sequence[str]) -> object:
        """Write the arguments of a call; its own two containers stay plain.

        Raises:
            SerializationError: an argument cannot be stored; the message names it.
        """
        for name in kwargs:
            if type(name) is not str:
                raise SerializationError(
                    f"cannot store the keyword arguments: a keyword is a plain str, not {type_name(type(name))}"
                )
        trees = [self.value(where, value) for where, value in named_arguments(args, kwargs, names)]
        positional, named = trees[: len(args)], trees[len(args) :]
        if all(map(is_plain_key, kwargs)):
            return [positional, dict(zip(kwargs, named, strict=True))]
        return [positional, tagged("dict", [[write_str(key), tree] for key, tree in zip(kwargs, named, strict=True)])]

    def document(self, root: object) -> object:
        """Write the parts that were put off, and put them before the root."""
        if not self._pending:
            return root
        trees = [root]
        while self._pending:
            part = self._pending.popleft()
            self._open, self._above = {}, part.above
            trees.append(self.value(part.where if part.where.endswith("…") else f"{part.where}…", part.value))
        return tagged("parts", [tagged("part", [number, trees[number]]) for number in reversed(range(len(trees)))])

    def tree(self, value: object) -> object:
        """The JSON of one value; raises ``Unstorable``."""
        kind = type(value)
        atom = atom_writer_of(kind)
        if atom is not None:
            return atom(value)
        write = container_writer_of(kind)
        if write is None and kind not in self._registered:
            return late_atom(value)
        if id(value) in self._open:
            raise Unstorable(value, _contains_itself(value))
        if len(self._open) == PART_DEPTH:
            return self._put_off(value)
        self._open[id(value)] = value
        try:
            tree = self._write_registered(value) if write is None else write(self, value)
        except Unstorable as problem:
            problem.climb(value)
            raise
        self._open.popitem()
        return tree

    def _put_off(self, value: object) -> object:
        """Leave a reference here and write the value as a part later.

        A cycle that is longer than a part is noticed here, at the first part that holds an object of a part above.
        """
        for known in self._above:
            if not known.keys().isdisjoint(self._open):
                raise Unstorable(value, _contains_itself(value))
        if (len(self._above) + 1) * PART_DEPTH > _MAX_DEPTH:
            raise Unstorable(value, f"it is nested more than {_MAX_DEPTH:,} levels deep")
        self._parts += 1
        self._pending.append(_Part(self.where, value, (*self._above, dict(self._open))))
        return tagged("ref", self._parts)

    def _write_registered(self, value: object) -> object:
        entry = self._registered[type(value)]
        try:
            state = entry.encode(value)
        except (Unstorable, TaskTimeout):
            raise
        except Exception as error:
            reason = f"encoding a {type_name(entry.cls)} raised {error_words(error)}"
            raise Unstorable(value, reason) from error
        return {TAG: "class", "name": entry.name, VALUE: self.tree(state)}


def _contains_itself(value: object) -> str:
    return f"this {type_name(type(value))} contains itself, and what is stored is a tree"


class PartsReader:
    """The decoder's hook for a document in parts: the deepest comes first, so every reference finds its part."""

    def __init__(self, revive: Callable[[dict[str, Any]], object]) -> None:
        self._revive = revive
        self._built: dict[int, object] = {}

    def __call__(self, document: dict[str, Any]) -> object:
        tag = document.get(TAG)
        if tag not in ("ref", "part", "parts"):
            return self._revive(document)
        try:
            return self._assemble(tag, document[VALUE])
        except (LookupError, TypeError, ValueError) as error:
            raise SerializationError("stored JSON in parts is damaged: its parts do not fit together") from error

    def _assemble(self, tag: object, value: Any) -> object:
        if tag == "ref":
            # Taken out: a part belongs into one place, and forged ones that multiply each other come to nothing.
            return self._built.pop(value)
        if tag == "part":
            number, self._built[number] = value
            return None
        return self._built.pop(0)
