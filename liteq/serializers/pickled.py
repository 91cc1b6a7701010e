"""``PickleSerializer``: nearly every value, for a file that only the app can write to.

You stand beside the JSON rooms; nothing here uses them.
"""

from __future__ import annotations

from typing import ClassVar

from liteq.errors import SerializationError, TaskTimeout
from liteq.serializers.contract import Serializer, error_words


class PickleSerializer(Serializer):
    """Takes nearly everything, and trusts the file completely.

    Unpickling runs whatever code the bytes ask for: whoever can write to the queue's file can run code in the workers.
    Use it for a file that only the app can write to, or inside a ``SignedSerializer``. Stored jobs hold the import
    paths of classes, so a class that moves makes waiting jobs unreadable.
    """

    name: ClassVar[str] = "pickle"

    def __init__(self) -> None:
        import pickle

        self._dumps, self._loads = pickle.dumps, pickle.loads

    def dumps(self, value: object) -> bytes:
        try:
            return self._dumps(value, 5)
        except TaskTimeout:
            raise
        except Exception as error:
            raise SerializationError(f"pickle cannot store it: {_pickle_words(error)}") from error

    def loads(self, data: bytes) -> object:
        try:
            return self._loads(data)
        except TaskTimeout:
            raise
        except Exception as error:
            raise SerializationError(f"these bytes cannot be unpickled: {_pickle_words(error)}") from error


def _pickle_words(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else error_words(error)
