"""Find an app by the path a user types: ``shop.app``, ``shop:app``, ``package.module.app``."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from liteq.errors import ConfigurationError


class AppNotFound(ConfigurationError):
    """There is no app under this path; the message is one line and says why."""


def load_app(path: str) -> Any:
    """Import the app that ``path`` names. The current directory is importable.

    Args:
        path: ``"module.name"`` or ``"module:name"``.

    Raises:
        AppNotFound: the module cannot be found, has no such name, or the name is not a LiteQ.
        Exception: whatever importing the module raises.
    """
    module_name, name = split_path(path)
    directory = os.getcwd()  # noqa: PTH109 - sys.path holds strings
    if directory not in sys.path:
        sys.path.insert(0, directory)
    module = _import(module_name, path)
    app: Any = module
    for part in name.split("."):
        app = getattr(app, part, None)
        if app is None:
            raise AppNotFound(f"{path}: module {module_name!r} has no {name!r}")
    if not hasattr(app, "engine"):
        raise AppNotFound(f"{path} is a {type(app).__name__}, not a LiteQ app")
    return app


def split_path(path: str) -> tuple[str, str]:
    """Module and name of an app path.

    Raises:
        AppNotFound: it is not of that form.
    """
    module, separator, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not (module and separator and name):
        raise AppNotFound(f"{path!r} is not the path of an app: write module.name or module:name, such as shop.app")
    return module, name


def _import(module: str, path: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            raise AppNotFound(
                f"{path}: there is no module {error.name!r} in {os.getcwd()} or on the Python path"  # noqa: PTH109
            ) from None
        raise
    except (TypeError, ValueError):  # a name with blanks, a relative name
        if module in sys.modules or module.replace(".", "").isidentifier():
            raise
        message = f"{path!r} is not the path of an app: {module!r} is not the name of a module"
        raise AppNotFound(message) from None
