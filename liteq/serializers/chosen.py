"""Which serializer an option names.

You stand between the options of a user (``LiteQ(serializer=…)``, ``inner=…``) and the serializers that have a name.
"""

from __future__ import annotations

from liteq.errors import ConfigurationError
from liteq.serializers.contract import Serializer, type_name
from liteq.serializers.json_serializer import JSONSerializer


def serializer_for(spec: str | Serializer) -> Serializer:
    """The serializer that an option names.

    Args:
        spec: ``"json"``, ``"pickle"``, or a ``Serializer``, which is returned as it is.

    Raises:
        ConfigurationError: no serializer has this name.
        TypeError: neither a name nor a serializer.
    """
    if isinstance(spec, Serializer):
        return spec
    if isinstance(spec, type) and issubclass(spec, Serializer):
        raise TypeError(f"serializer={spec.__name__} is a class: pass an instance, {spec.__name__}(…)")
    if not isinstance(spec, str):
        raise TypeError(f'serializer must be "json", "pickle" or a liteq Serializer, not {type_name(type(spec))}')
    if spec == "json":
        return JSONSerializer()
    if spec == "pickle":
        from liteq.serializers.pickled import PickleSerializer

        return PickleSerializer()
    raise ConfigurationError(f'serializer={spec!r}: there is "json" and "pickle", or pass a Serializer object')
