"""How the values a user passes become the bytes a storage keeps, and the same values again.

You stand on floor 0: everything in this package is a pure function of its arguments. Above, ``Task`` encodes the
arguments of a call once (``dumps_call``), a worker decodes them once (``loads_call``), and the return value goes the
same way (``dumps``, ``loads``). What cannot make the round trip *exactly* is refused at the call, with the name of the
argument. The rooms, from the ground up; each imports only from those above it in this list:

======================  ===========================================================================================
``contract.py``         ``Serializer``: what each of them promises, and the words their errors share
``document.py``         what the JSON looks like that is written, and the path to a value that has no place in it
``stamps.py``           moments and time zones in that JSON
``known.py``            the types liteq knows, each with its writer and its reader
``registered.py``       the classes that users made storable
``writer.py``           JSON, the careful way: values become trees, and what is too deep becomes parts
``json_serializer.py``  ``JSONSerializer``: the quick way for plain values, and reading
``pickled.py``          ``PickleSerializer``
``chosen.py``           ``serializer_for``: the serializer that an option names
``wrapped.py``          ``SignedSerializer`` and ``CompressedSerializer``, around another one
======================  ===========================================================================================

What only some programs choose (pickle, signing, compression) is imported when it is asked for.
"""

from typing import TYPE_CHECKING

from liteq.serializers.chosen import serializer_for
from liteq.serializers.contract import Serializer
from liteq.serializers.json_serializer import JSONSerializer

if TYPE_CHECKING:
    from liteq.serializers.pickled import PickleSerializer
    from liteq.serializers.wrapped import CompressedSerializer, SignedSerializer

__all__ = [
    "CompressedSerializer",
    "JSONSerializer",
    "PickleSerializer",
    "Serializer",
    "SignedSerializer",
    "serializer_for",
]

_LATE_ROOMS = {"CompressedSerializer": "wrapped", "PickleSerializer": "pickled", "SignedSerializer": "wrapped"}


def __getattr__(name: str) -> object:
    if name not in _LATE_ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_LATE_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
