"""What is known of a function that becomes a task: its stored name, its place, whether it was seen before."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from liteq.errors import ConfigurationError


def default_name(function: Callable[..., Any]) -> str:
    """The name under which a task's jobs are stored: module and function."""
    module = getattr(function, "__module__", "") or ""
    if module in ("__main__", "__mp_main__"):
        module = _main_name(function)
    if isinstance(function, partial):
        raise ConfigurationError("a functools.partial has no name of its own: give it one with name=...")
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{module}.{name}" if module else name


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it makes a coroutine."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _main_name(function: Callable[..., Any]) -> str:
    """What other processes import the running script as: a job enqueued by ``python shop.py`` is for ``shop.add``.

    Read off the function's own module: in a worker process ``__main__`` is another one.
    """
    from pathlib import Path

    main = getattr(inspect.unwrap(function), "__globals__", vars(sys.modules["__main__"]))
    spec, file = main.get("__spec__"), main.get("__file__")
    if spec is not None:
        return str(spec.name)
    return Path(file).stem if file else "__main__"


def is_same(known: Callable[..., Any], new: Callable[..., Any]) -> bool:
    """Whether ``new`` is ``known`` again: the module was imported twice, or typed anew in an interactive session."""
    if known == new:
        return True
    codes = [getattr(inspect.unwrap(function), "__code__", None) for function in (known, new)]
    if codes[0] is codes[1] or "<lambda>" in (getattr(known, "__name__", ""), getattr(new, "__name__", "")):
        # One `def` that was run twice (a factory, a decorator without functools.wraps) gives two functions; a module
        # that is imported anew has new code. Lambdas on one line are told apart by what they do.
        return codes[0] is not codes[1] and codes[0] == codes[1]
    places = [_code_place(function) for function in (known, new)]
    file = places[0][0]
    return None not in places[0] and (places[0] == places[1] or (file == places[1][0] and str(file).startswith("<")))


def _code_place(function: Callable[..., Any]) -> tuple[str | None, int | None]:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return (None, None) if code is None else (code.co_filename, code.co_firstlineno)


def place_of(function: Callable[..., Any]) -> str:
    """Its name and place in the source, for an error that has to tell two apart."""
    file, line = _code_place(function)
    name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
    return f"{name} ({file}:{line})" if file else name
