"""What every serializer promises, and the words that their errors share.

You stand at the ground of ``serializers/``: nothing here knows JSON, pickle or any other format. A serializer of your
own needs this room alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from liteq.errors import SerializationError

Call = tuple[list[object] | tuple[object, ...], dict[str, object]]

# What the bytes begin with that ``wrapped.py`` writes. Here, so that JSON can say what it was given instead.
SIGNED_HEADER = b"LQS1"
COMPRESSED_HEADER = b"\x00LQZ1"

_TEXT = frozenset({str})


class Serializer(ABC):
    """Turns values into bytes and back. Subclass it to bring your own: ``dumps`` and ``loads`` are enough.

    Attributes:
        name: what the serializer is called in options and messages.
        readable: whether ``dumps`` yields text that a person can read, so that tools may show stored bytes as they are.
    """

    name: ClassVar[str]
    readable: bool = False

    @abstractmethod
    def dumps(self, value: object) -> bytes:
        """Encode one value, such as a task's return value.

        Raises:
            SerializationError: the value cannot be stored; nothing else may come out.
        """

    @abstractmethod
    def loads(self, data: bytes) -> object:
        """Decode what ``dumps`` wrote.

        Raises:
            SerializationError: the bytes are damaged or were written by something else; nothing else may come out.
        """

    def dumps_call(self, args: tuple[object, ...], kwargs: dict[str, object], names: Sequence[str] = ()) -> bytes:
        """Encode the arguments of one call: the payload of a job.

        Args:
            args: the positional arguments.
            kwargs: the keyword arguments.
            names: the names of the positional parameters, in order, so that an error can name the argument.

        Raises:
            SerializationError: an argument cannot be stored; the message names it.
        """
        try:
            return self.dumps([list(args), kwargs])
        except SerializationError:
            self._blame_argument(args, kwargs, names)
            raise

    def loads_call(self, data: bytes) -> Call:
        """Decode what ``dumps_call`` wrote.

        Returns:
            The positional arguments and the keyword arguments.

        Raises:
            SerializationError: the bytes are damaged, or they are not the payload of a job.
        """
        return as_call(self.loads(data))

    def _blame_argument(self, args: tuple[object, ...], kwargs: dict[str, object], names: Sequence[str]) -> None:
        """Raise an error that names the first argument that cannot be stored by itself, if there is one."""
        for where, value in named_arguments(args, kwargs, names):
            try:
                self.dumps(value)
            except SerializationError as error:
                raise SerializationError(f"cannot store {where} ({type_name(type(value))}): {error}") from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def named_arguments(
    args: Sequence[object], kwargs: Mapping[str, object], names: Sequence[str]
) -> Iterable[tuple[str, object]]:
    """Each argument of a call with the words an error uses for it: ``argument 'user'``, or ``args[3]``."""
    for index, value in enumerate(args):
        yield f"argument {names[index]!r}" if index < len(names) else f"args[{index}]", value
    for name, value in kwargs.items():
        yield f"argument {name!r}", value


def as_call(value: object) -> Call:
    """Check that a decoded payload has the shape of a call.

    Raises:
        SerializationError: it has not.
    """
    if isinstance(value, (list, tuple)) and len(value) == 2:
        args, kwargs = value
        if (
            isinstance(args, (list, tuple))
            and type(kwargs) is dict
            and (not kwargs or _TEXT.issuperset(map(type, kwargs)))
        ):
            return args, kwargs
    raise SerializationError(
        f"these bytes hold a {type_name(type(value))} and not the arguments of a call, [[positional], {{keyword}}]: "
        "they are not the payload of a job"
    )


# ── The words of errors ──────────────────────────────────────────────────────────────────────────────────────────────


def type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def short(value: object) -> str:
    """A representation that fits into a message, whatever stored bytes hold."""
    text = repr(value) if type(value) is str else f"a {type_name(type(value))}"
    return text if len(text) <= 80 else text[:79] + "…"


def error_words(error: Exception) -> str:
    """An exception's type and text, cut where somebody put a whole document into it."""
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= 200 else text[:199] + "…"
