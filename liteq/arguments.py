"""Which jobs a filter of arguments means: payloads are decoded and bound to the parameters of their task, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from liteq import logs
from liteq.errors import ConfigurationError, SerializationError, UnknownTask
from liteq.execution import Runtime
from liteq.job import Job
from liteq.task import caller_signature

#: Values by name that arguments must have, or a function that is given all arguments of a call by name.
Where = Mapping[str, Any] | Callable[[dict[str, Any]], object]


class ArgumentFilter:
    """Whether a job was called like this: ``ArgumentFilter({"user_id": 7}, runtime)(job)``.

    A job whose task is not known here, or whose payload cannot be read, is not meant; the log tells.

    Args:
        where: values that the arguments of these names must equal, defaults included; nothing matches every job,
            undecoded. Or a function that is given all arguments by name and answers whether the job is meant.
        runtime: the app's tasks and serializer.
        task: the stored name of the only task that is asked about, if there is one.

    Raises:
        TypeError: ``where`` is something else, or names what the task does not take.
        ConfigurationError: a value in it cannot be stored, so no job can have it.
        UnknownTask: nobody here knows the names of this task's arguments.
    """

    def __init__(self, where: Where, runtime: Runtime, task: str | None = None) -> None:
        self._runtime = runtime
        self._signatures: dict[str, inspect.Signature | None] = {}
        if isinstance(where, Mapping):
            self._wanted = {_checked_name(name): self._as_stored(name, value) for name, value in where.items()}
            self._accepts: Callable[[dict[str, Any]], object] = self._has_wanted
        elif callable(where):
            self._wanted = {}
            self._accepts = where
        else:
            raise TypeError(f"where takes a mapping of arguments or a function, not {type(where).__name__} {where!r}")
        self._is_open = isinstance(where, Mapping) and not where
        if task is not None and not self._is_open:
            self._check_task(task)

    def __call__(self, job: Job) -> bool:
        if self._is_open:
            return True
        arguments = self._arguments(job)
        return arguments is not None and bool(self._accepts(arguments))

    def _has_wanted(self, arguments: dict[str, Any]) -> bool:
        return all(name in arguments and arguments[name] in values for name, values in self._wanted.items())

    def _arguments(self, job: Job) -> dict[str, Any] | None:
        """The arguments of a job's call by name; ``None`` where they cannot be told."""
        signature = self._signature(job.task)
        if signature is None:
            return None
        try:
            args, kwargs = self._runtime.serializer.loads_call(job.payload)
            bound = signature.bind(*args, **kwargs)
        except (SerializationError, TypeError) as error:  # damaged, or the function takes other arguments by now
            logs.say(logs.WARNING, "arguments cannot be read; job left alone", job=job.id, task=job.task, error=error)
            return None
        bound.apply_defaults()
        return _by_name(signature, bound.arguments)

    def _signature(self, task: str) -> inspect.Signature | None:
        """What the task takes; ``None``, and a line in the log for all its jobs, where it is not known here."""
        if task not in self._signatures:
            definition = self._runtime.tasks.get(task)
            self._signatures[task] = None if definition is None else caller_signature(definition)
            if definition is None:
                logs.say(logs.WARNING, "unknown task, so what its arguments are called; jobs left alone", task=task)
        return self._signatures[task]

    def _check_task(self, task: str) -> None:
        if task not in self._runtime.tasks:
            raise UnknownTask(task)
        signature = caller_signature(self._runtime.tasks[task])
        takes_any = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
        stranger = next((name for name in self._wanted if name not in signature.parameters), None)
        if stranger is not None and not takes_any:
            raise TypeError(f"where: {task}{signature} has no argument {stranger!r}")

    def _as_stored(self, name: str, value: object) -> tuple[object, object]:
        """The value, and what becomes of it in storage: JSON makes a list of a tuple."""
        serializer = self._runtime.serializer
        try:
            return value, serializer.loads(serializer.dumps(value))
        except SerializationError as error:
            raise ConfigurationError(f"where: no job can have this argument {name!r}: {error}") from error


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"where takes the names of arguments as strings, not {type(name).__name__} {name!r}")
    return name


def _by_name(signature: inspect.Signature, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What stands under ``**more`` is an argument like any other."""
    named = dict(arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            named = named.pop(parameter.name) | named
    return named
