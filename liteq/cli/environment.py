"""Options that may also come from an environment variable: ``--shutdown-timeout`` is ``LITEQ_SHUTDOWN_TIMEOUT``.

A flag beats the variable, and among options that exclude each other (``--verbose``, ``--quiet``) a flag beats the
variables of all of them. An empty variable counts as not set.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Protocol

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class _Group(Protocol):
    def add_argument(self, *spellings: str, **more: Any) -> argparse.Action: ...


class Settings:
    """The options of a command line that have a variable."""

    def __init__(self) -> None:
        self._settings: list[tuple[argparse.Action, Any]] = []
        self._exclusive: list[tuple[str, ...]] = []

    def add(self, group: _Group, *spellings: str, help: str, default: Any = None, **more: Any) -> None:  # noqa: A002
        """Declare an option; its variable is named in its help.

        Args:
            group: of the parser.
            spellings: ``"-w", "--workers"``.
            help: what it does.
            default: where neither says anything.
            more: as for argparse; without ``type`` and ``choices`` it is a switch unless it has a ``metavar``.
        """
        switch = {} if more else {"action": "store_const", "const": True}
        action = group.add_argument(*spellings, default=None, **more, **switch)
        action.help = f"{help} [{variable_of(action)}]"
        self._settings.append((action, default))

    def exclude(self, *names: str) -> None:
        """Of these switches at most one may be on."""
        self._exclusive.append(names)

    def complete(self, given: argparse.Namespace, environment: Mapping[str, str]) -> None:
        """Fill in what the command line does not say.

        Raises:
            ValueError: a variable has a value that cannot be read; the message names it.
        """
        flagged = {action.dest for action, _ in self._settings if getattr(given, action.dest) is not None}
        for action, default in self._settings:
            if action.dest not in flagged:
                value = None if flagged & self._rivals(action.dest) else _read(action, environment)
                setattr(given, action.dest, default if value is None else value)
        for names in self._exclusive:
            on = [f"LITEQ_{name.upper()}" for name in names if getattr(given, name)]
            if len(on) > 1:  # argparse has seen to it that they are no flags
                raise ValueError(f"the environment variables {' and '.join(on)} exclude each other")

    def _rivals(self, name: str) -> set[str]:
        return {other for names in self._exclusive if name in names for other in names if other != name}


def variable_of(action: argparse.Action) -> str:
    """The environment variable of an option."""
    return f"LITEQ_{action.dest.upper()}"


def _read(action: argparse.Action, environment: Mapping[str, str]) -> Any:
    variable = variable_of(action)
    text = environment.get(variable, "")
    if not text:
        return None
    try:
        return _value(action, text)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"the environment variable {variable} {error}") from None


def _value(action: argparse.Action, text: str) -> Any:
    if action.nargs == 0:
        if text.lower() not in _TRUE + _FALSE:
            raise ValueError(f"takes 1 or 0, not {text!r}")
        return text.lower() in _TRUE or None
    value = action.type(text) if callable(action.type) else text
    if action.choices is not None and value not in action.choices:
        raise ValueError(f"takes {' or '.join(action.choices)}, not {text!r}")
    return value
