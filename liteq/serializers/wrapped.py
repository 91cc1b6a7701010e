"""Serializers around another serializer: signed, compressed.

You stand outermost: the inner serializer makes bytes of values, and what is here sees nothing but those bytes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from liteq.errors import ConfigurationError, SerializationError
from liteq.serializers.chosen import serializer_for
from liteq.serializers.contract import COMPRESSED_HEADER, SIGNED_HEADER, Call, Serializer, type_name


class _Wrapper(Serializer):
    """A serializer that wraps the bytes of another one."""

    def __init__(self, inner: str | Serializer) -> None:
        self.inner = serializer_for(inner)

    def dumps(self, value: object) -> bytes:
        return self._wrap(self.inner.dumps(value), b"value")

    def loads(self, data: bytes) -> object:
        return self.inner.loads(self._unwrap(data, b"value"))

    def dumps_call(self, args: tuple[object, ...], kwargs: dict[str, object], names: Sequence[str] = ()) -> bytes:
        return self._wrap(self.inner.dumps_call(args, kwargs, names), b"call")

    def loads_call(self, data: bytes) -> Call:
        return self.inner.loads_call(self._unwrap(data, b"call"))

    @abstractmethod
    def _wrap(self, data: bytes, purpose: bytes) -> bytes: ...

    @abstractmethod
    def _unwrap(self, data: bytes, purpose: bytes) -> bytes: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}(inner={self.inner!r})"


class SignedSerializer(_Wrapper):
    """Signs with HMAC-SHA256, and reads only what was signed with one of its keys.

    A signature says that a holder of the key wrote these bytes, as arguments or as a result; not when, and not for
    which job. The bytes are not encrypted. Layout: ``b"LQS1"``, the 32 bytes of the signature, the inner serializer's
    bytes; signed are the header, ``call:`` or ``value:``, and the inner bytes.

    Args:
        key: a secret of at least 16 bytes (``secrets.token_bytes(32)``), the same in every process; text is taken as
            UTF-8.
        inner: what writes the signed bytes: ``"json"``, ``"pickle"`` or a serializer.
        old_keys: keys that are still accepted and no longer used. To change the key without losing jobs: give every
            process the new key here first, then make it ``key`` with the old one here, then drop the old one.

    Raises:
        ConfigurationError: a key is too short.
        TypeError: a key is neither text nor bytes.
    """

    name: ClassVar[str] = "signed"

    def __init__(
        self, key: str | bytes, inner: str | Serializer = "json", *, old_keys: Sequence[str | bytes] = ()
    ) -> None:
        import hmac

        super().__init__(inner)
        if isinstance(old_keys, (str, bytes)):
            raise TypeError("old_keys is a sequence of keys, not one key: old_keys=[key]")
        self._key = _key_bytes("key", key)
        self._keys = (self._key, *(_key_bytes(f"old_keys[{index}]", old) for index, old in enumerate(old_keys)))
        self._digest, self._same = hmac.digest, hmac.compare_digest

    def _wrap(self, data: bytes, purpose: bytes) -> bytes:
        return SIGNED_HEADER + self._signature(self._key, data, purpose) + data

    def _unwrap(self, data: bytes, purpose: bytes) -> bytes:
        if not data.startswith(SIGNED_HEADER):
            raise SerializationError("these bytes are not signed: were they written before signing was switched on?")
        start = len(SIGNED_HEADER)
        signature, signed = data[start : start + 32], data[start + 32 :]
        if not any(self._same(self._signature(key, signed, purpose), signature) for key in self._keys):
            raise SerializationError(
                "the signature does not fit: these bytes were changed, or signed with a key that is not known here "
                "(a key that was replaced belongs into old_keys)"
            )
        return signed

    def _signature(self, key: bytes, data: bytes, purpose: bytes) -> bytes:
        return self._digest(key, b"%b%b:%b" % (SIGNED_HEADER, purpose, data), "sha256")


def _key_bytes(option: str, key: str | bytes) -> bytes:
    """Check one key; the message never shows it."""
    if not isinstance(key, (str, bytes)):
        raise TypeError(f"{option} must be str or bytes, not {type_name(type(key))}")
    secret = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    if len(secret) < 16:
        raise ConfigurationError(
            f"{option} has {len(secret)} bytes and needs at least 16, such as secrets.token_bytes(32)"
        )
    return secret


class CompressedSerializer(_Wrapper):
    """Compresses what is large, with zlib.

    What is small, or does not shrink, stays as the inner serializer wrote it; so bytes from before compression was
    switched on are read as well. Compressed ones are ``b"\\x00LQZ1"`` and a zlib stream. To sign as well, sign the
    compressed bytes, so that nothing unsigned is unpacked: ``SignedSerializer(key, CompressedSerializer())``.

    Args:
        inner: what writes the bytes: ``"json"``, ``"pickle"`` or a serializer.
        level: 1 (fast) to 9 (small).
        threshold: bytes from which on compression is tried.
        max_size: bytes that one value may have before compression, in either direction; stored bytes that would
            unpack to more are refused without unpacking them.

    Raises:
        ConfigurationError: an option out of its range.
    """

    name: ClassVar[str] = "compressed"

    def __init__(
        self,
        inner: str | Serializer = "json",
        *,
        level: int = 6,
        threshold: int = 512,
        max_size: int = 256 * 1024 * 1024,
    ) -> None:
        import zlib

        super().__init__(inner)
        _check_range("level", level, 1, 9)
        _check_range("threshold", threshold, 0)
        _check_range("max_size", max_size, 1)
        self._level, self._threshold, self._max_size = level, threshold, max_size
        self._zlib = zlib

    def _wrap(self, data: bytes, purpose: bytes) -> bytes:
        looks_compressed = data.startswith(COMPRESSED_HEADER)
        if len(data) < self._threshold and not looks_compressed:
            return data
        if len(data) > self._max_size:
            raise SerializationError(f"cannot store {len(data):,} bytes: max_size is {self._max_size:,}")
        packed = COMPRESSED_HEADER + self._zlib.compress(data, self._level)
        return packed if len(packed) < len(data) or looks_compressed else data

    def _unwrap(self, data: bytes, purpose: bytes) -> bytes:
        if not data.startswith(COMPRESSED_HEADER):
            return data
        unpacker = self._zlib.decompressobj()
        try:
            unpacked = unpacker.decompress(data[len(COMPRESSED_HEADER) :], self._max_size + 1)
        except self._zlib.error as error:
            raise SerializationError(f"compressed bytes are damaged: {error}") from error
        if len(unpacked) > self._max_size:
            raise SerializationError(f"compressed bytes hold more than max_size, {self._max_size:,} bytes")
        if not unpacker.eof or unpacker.unused_data:
            raise SerializationError("compressed bytes are damaged: they end too early or too late")
        return unpacked


def _check_range(option: str, value: int, lowest: int, highest: int | None = None) -> None:
    if type(value) is not int:
        raise TypeError(f"{option} must be an int, not {type_name(type(value))}")
    if value < lowest or (highest is not None and value > highest):
        limits = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise ConfigurationError(f"{option}={value} must be {limits}")
