"""The consumer's own process and gevent: apps that are written for greenlets patch the standard library as they are
imported. The worker process of the greenlets is patched before; the consumer imports the app too, but runs no greenlet,
and its threads must stay threads.
"""

from __future__ import annotations

from typing import Any

from liteq.cli.endings import refusal
from liteq.errors import ConfigurationError


def prepare_for(worker_type: str) -> None:
    """Make this process ready to import the app for this kind of workers.

    Raises:
        Refused: they are not possible here.
    """
    if worker_type != "greenlet":
        return
    from liteq.consumer import ConsumerOptions

    try:
        ConsumerOptions(worker_type="greenlet")
    except ConfigurationError as error:
        raise refusal(error) from None
    _put_off_patching()


def _put_off_patching() -> None:
    """From now on gevent patches nothing in this process, and says that it did: modules may refuse to go on without."""
    from gevent import monkey

    for name in [name for name in vars(monkey) if name.startswith("patch_")]:
        setattr(monkey, name, _nothing)
    for name in ("is_module_patched", "is_object_patched", "is_anything_patched"):
        if hasattr(monkey, name):
            setattr(monkey, name, _yes)


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    return None


def _yes(*_args: Any, **_kwargs: Any) -> bool:
    return True
