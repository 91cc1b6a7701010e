"""How a verb and its arguments are written down as one line of JSON, and read again.

You stand on floor 1, in the journal's writing room. What a line holds follows from the type hints of the verb, as
`MemoryStorage` declares them: a field or an argument that is added there needs nothing here. JSON knows tuples as
lists, so only what it does not know is translated:

- bytes are text in which each character is one byte (latin-1): payloads stay legible,
- enums are their values, sets are lists, named tuples and dataclasses are lists of their fields,
- mappings are lists of pairs, unless their keys are text,
- what a job needs (`liteq.gates`) is a function, so the answers that it gave are written: see `Asked`.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from inspect import Signature, signature
from operator import attrgetter
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from liteq.gates import Need, NeedsOf
from liteq.job import Job, JobState
from liteq.rates import Rate
from liteq.schedule import Schedule
from liteq.shares import Division
from liteq.storage.memory import MemoryStorage

Decode = Callable[[Any], Any]

#: What `liteq.storage.base` and `liteq.gates` import for type checkers only.
_NAMES = {"Schedule": Schedule, "Rate": Rate, "Division": Division}

#: The fields of a job from this one on say the same for most, and are then left out.
TAIL = 12
#: What they say of a new one.
REST = Job(0, "", "", JobState.READY)[TAIL:]


class Asked(Mapping[str, NeedsOf]):
    """The needs of a claim, which remembers every answer, so that the claim can be written down and repeated.

    Args:
        needs: those of the claim.
    """

    def __init__(self, needs: Mapping[str, NeedsOf]) -> None:
        self._needs = needs
        self.answers: dict[str, list[tuple[int, Sequence[Need]]]] = {}

    def __getitem__(self, task: str) -> NeedsOf:
        needs_of = self._needs[task]
        answers = self.answers.setdefault(task, [])

        def ask(job: Job) -> tuple[Need, ...]:
            answer = needs_of(job)
            answers.append((job.seq, answer))
            return answer

        return ask

    def __iter__(self) -> Any:
        return iter(self._needs)

    def __len__(self) -> int:
        return len(self._needs)


def _answered(written: Mapping[str, list[Any]]) -> Mapping[str, NeedsOf]:
    """The needs of a claim that is repeated: they answer what they answered then."""
    need = decoder(Need)
    answers = {task: {seq: tuple(map(need, needs)) for seq, needs in pairs} for task, pairs in written.items()}  # type: ignore[arg-type]
    return {task: lambda job, known=known: known[job.seq] for task, known in answers.items()}  # type: ignore[misc]


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────


def _plain(value: Any) -> Any:
    """What JSON does not know."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, Set):
        return list(value)
    if isinstance(value, Asked):
        return value.answers
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value)]
    raise TypeError(f"a journal cannot hold {type(value).__name__}")


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_plain, check_circular=False).encode


def text_of(value: Any) -> bytes:
    """One line of JSON, without its end. Raises TypeError for what cannot be written."""
    return _encode(value).encode("utf-8", "surrogatepass")


def trimmed(job: Job) -> Sequence[Any]:
    """A job without the last fields, if they say nothing."""
    return job[:TAIL] if job[TAIL:] == REST else job


def is_plain(job: Job) -> bool:
    """Whether nothing but the number of a new job depends on what is stored already."""
    return not job.id and job[TAIL:] == REST


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────


def values_of(lines: Sequence[bytes]) -> list[Any]:
    """What these lines of JSON hold; parsed all at once, which takes half as long as one by one."""
    return list(json.loads((b"[" + b",".join(lines) + b"]").decode("utf-8", "surrogatepass")))


def _bytes_of(text: str) -> bytes:
    return text.encode("latin-1")


@cache
def decoder(hint: Any) -> Decode | None:
    """What makes a value of this type of what JSON has made of it; ``None``: nothing need be done. ``None`` is left
    alone by whoever calls it.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (hint,) = [one for one in inner if one is not types.NoneType]
        return decoder(hint)
    if hint is bytes:
        return _bytes_of
    if origin is None:
        return _decoder_of_class(hint)
    if origin is tuple:
        return _decoder_of_tuple(inner)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _decoder_of_mapping(*inner)
    if isinstance(origin, type) and issubclass(origin, Iterable):
        made = frozenset if issubclass(origin, Set) else list
        return _decoder_of_many(inner[0], made)
    if origin is Literal:
        return None
    raise TypeError(f"a journal cannot hold {hint}")


def _decoder_of_class(hint: Any) -> Decode | None:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
        return _decoder_of_fields(hint, hint._fields)
    if is_dataclass(hint):
        return _decoder_of_fields(hint, [field.name for field in fields(hint)])
    return None


def _decoder_of_fields(made: Any, names: Sequence[str]) -> Decode:
    hints = get_type_hints(made, None, _NAMES)
    steps = [(at, step) for at, name in enumerate(names) if (step := decoder(hints[name])) is not None]
    width, is_tuple = len(names), issubclass(made, tuple)

    def decode(values: list[Any]) -> Any:
        given = len(values)
        for at, step in steps:
            if at < given and values[at] is not None:
                values[at] = step(values[at])
        return tuple.__new__(made, values) if is_tuple and given == width else made(*values)

    return decode


def _decoder_of_tuple(inner: Sequence[Any]) -> Decode:
    if inner[-1] is Ellipsis:
        return _decoder_of_many(inner[0], tuple) or tuple
    steps = [decoder(one) for one in inner]

    def decode(values: list[Any]) -> tuple[Any, ...]:
        pairs = zip(values, steps, strict=True)
        return tuple(value if step is None or value is None else step(value) for value, step in pairs)

    return decode


def _decoder_of_many(inner: Any, made: Callable[[Iterable[Any]], Any]) -> Decode | None:
    step = decoder(inner)
    if step is None:
        return None if made is list else made
    return lambda values: made(map(step, values))


def _decoder_of_mapping(key: Any, value: Any) -> Decode | None:
    if get_origin(value) is not None and get_origin(value) is get_origin(NeedsOf):
        return _answered
    step_of_key = int if key is int else decoder(key)  # the keys of a JSON object are text
    step = decoder(value)

    def decode(pairs: Any) -> dict[Any, Any]:
        if isinstance(pairs, dict):
            pairs = pairs.items()
        return {
            one if step_of_key is None else step_of_key(one): other if step is None or other is None else step(other)
            for one, other in pairs
        }

    return decode


# ── verbs ────────────────────────────────────────────────────────────────────────────────────────────────


class _Parameter(NamedTuple):
    name: str
    hint: Any
    is_mapping: bool
    is_many: bool


class Verb:
    """One verb of `MemoryStorage` (or, as ``gates.…``, of its gates) that is journaled.

    Args:
        name: its name there.
        always: it is written down even where the model says that nothing has changed.
        deaths: what it does depends on who is dead.
    """

    def __init__(self, name: str, *, always: bool = True, deaths: bool = False) -> None:
        self.name = name
        self.always = always
        self.deaths = deaths
        self._find = attrgetter(name)
        self._parameters: list[_Parameter] = []
        self._signature: Signature | None = None
        self._steps: list[Decode | None] = []

    def on(self, model: MemoryStorage) -> Callable[..., Any]:
        """The verb itself, of this model."""
        return self._find(model)  # type: ignore[no-any-return]

    def arguments(self, model: MemoryStorage, given: tuple[Any, ...], named: Mapping[str, Any]) -> list[Any]:
        """The arguments of a call, in the order of the signature and each in a form that can be read twice."""
        self._study(model)
        if named or len(given) < len(self._parameters):
            assert self._signature is not None
            bound = self._signature.bind(*given, **named)
            bound.apply_defaults()
            given = tuple(bound.arguments.values())
        return [
            list(value) if one.is_many and not isinstance(value, list | tuple | Set) and value is not None else value
            for one, value in zip(self._parameters, given, strict=True)
        ]

    def written(self, arguments: Sequence[Any]) -> list[Any]:
        """The arguments as JSON takes them."""
        pairs = zip(self._parameters, arguments, strict=True)
        return [list(value.items()) if one.is_mapping and value else value for one, value in pairs]

    def read(self, model: MemoryStorage, written: Sequence[Any]) -> list[Any]:
        """The arguments again."""
        self._study(model)
        pairs = zip(written, self._steps, strict=False)
        return [value if step is None or value is None else step(value) for value, step in pairs]

    def call(self, model: MemoryStorage, arguments: Sequence[Any]) -> Any:
        """Carry it out; what its signature wants by name is given by name."""
        self._study(model)
        assert self._signature is not None
        kinds = self._signature.parameters.values()
        pairs = list(zip(kinds, arguments, strict=False))
        given = [value for one, value in pairs if one.kind is not one.KEYWORD_ONLY]
        return self.on(model)(*given, **{one.name: value for one, value in pairs if one.kind is one.KEYWORD_ONLY})

    def _study(self, model: MemoryStorage) -> None:
        """Learn its signature, once, when it is needed first."""
        if self._signature is not None:
            return
        method = self.on(model)
        hints = get_type_hints(method, None, _NAMES)
        shape = signature(method)
        for name in shape.parameters:
            origin = get_origin(_without_none(hints[name]))
            is_class = isinstance(origin, type)
            is_mapping = is_class and issubclass(origin, Mapping)
            is_many = is_class and issubclass(origin, Iterable) and not is_mapping and origin is not tuple
            self._parameters.append(_Parameter(name, hints[name], is_mapping, is_many))
            self._steps.append(decoder(hints[name]))
        self._signature = shape


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = [one for one in get_args(hint) if one is not types.NoneType]
    return hint
