"""Bytes from values and values from bytes, exactly as Celery's clients and workers do it.

JSON with the type extension of wire-protocol §8 is our own and the hot path. Other serializers (pickle, yaml,
msgpack, any that is registered) are kombu's, imported when first used.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from datetime import date, datetime, time
from json import encoder as _json_encoder
from typing import Any

from .exceptions import ConfigError, ContentDisallowed, DecodeError, EncodeError

JSON = "application/json"
MAX_DEPTH = 100
"""Containers in containers that a body may have."""

_CONTENT_TYPES = {
    "json": JSON,
    "pickle": "application/x-python-serialize",
    "yaml": "application/x-yaml",
    "msgpack": "application/x-msgpack",
}


# --------------------------------------------------------------------------- JSON, writing


def extend(value: Any) -> Any:
    """What stands in JSON for a value JSON does not have; the `default` of our encoder.

    :raises EncodeError: there is nothing for this type.
    """
    reducer = getattr(value, "__json__", None)
    if reducer is not None:
        return reducer()
    if isinstance(value, datetime):
        return {"__type__": "datetime", "__value__": value.isoformat()}
    if isinstance(value, date):
        return {"__type__": "date", "__value__": value.isoformat()}
    if isinstance(value, time):
        return {"__type__": "time", "__value__": value.isoformat()}
    if isinstance(value, bytes):
        return _extend_bytes(value)
    # A value of these types cannot exist before its module is imported, so none is imported here.
    if (module := sys.modules.get("decimal")) and isinstance(value, module.Decimal):
        return {"__type__": "decimal", "__value__": str(value)}
    if (module := sys.modules.get("uuid")) and isinstance(value, module.UUID):
        return {"__type__": "uuid", "__value__": {"hex": value.hex}}
    if (module := sys.modules.get("django.utils.functional")) and isinstance(value, module.Promise):
        return str(value)
    kind = type(value)
    raise EncodeError(f"a value of type {kind.__module__}.{kind.__qualname__} cannot be written as JSON")


def _extend_bytes(value: bytes) -> dict[str, str]:
    try:
        return {"__type__": "bytes", "__value__": value.decode("utf-8")}
    except UnicodeDecodeError:
        from binascii import b2a_base64

        return {"__type__": "base64", "__value__": b2a_base64(value, newline=False).decode("ascii")}


quote: Callable[[str], str] = _json_encoder.encode_basestring_ascii
"""A text as a JSON string, in ASCII."""


def _make_encoder() -> Callable[[Any], str]:
    make = getattr(_json_encoder, "c_make_encoder", None)
    if make is None:  # an interpreter without the C accelerator
        return json.JSONEncoder(default=extend, check_circular=False).encode
    # The encoder that JSONEncoder.encode builds anew for each call, built once: 1.5 µs less per message.
    # Without markers: circular containers end in RecursionError, and the encoder is free of state.
    chunks = make(None, extend, quote, None, ": ", ", ", False, False, True)
    return lambda value: "".join(chunks(value, 0))


_encode: Callable[[Any], str] = _make_encoder()


def to_json(value: Any) -> str:
    """JSON text of a value, ASCII only.

    :raises EncodeError: naming the type that cannot be written, or that the value contains itself.
    """
    try:
        return _encode(value)
    except EncodeError:
        raise
    except RecursionError:
        raise EncodeError("the value contains itself, or is nested too deeply for JSON") from None
    except MemoryError:
        raise
    except Exception as error:  # an odd key, or a value's own __json__ raised
        raise EncodeError(f"cannot be written as JSON: {type(error).__name__}: {str(error)[:200]}") from error


# --------------------------------------------------------------------------- JSON, reading


def _restore_uuid(value: Any) -> Any:
    import uuid

    return uuid.UUID(hex=value["hex"])


def _restore_decimal(value: Any) -> Any:
    import decimal

    return decimal.Decimal(value)


def _restore_base64(value: Any) -> bytes:
    from binascii import a2b_base64

    return a2b_base64(value)


_RESTORERS: dict[str, Callable[[Any], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": lambda value: datetime.fromisoformat(value).date(),
    "time": time.fromisoformat,
    "decimal": _restore_decimal,
    "uuid": _restore_uuid,
    "bytes": lambda value: value.encode("utf-8"),
    "base64": _restore_base64,
}
_EXTENDED = {"__type__", "__value__"}


def restore(value: dict[str, Any]) -> Any:
    """The `object_hook`: the value an extended object stands for; other objects come back as they are."""
    if value.keys() != _EXTENDED:
        return value
    kind = value["__type__"]
    restorer = _RESTORERS.get(kind) if isinstance(kind, str) else None
    if restorer is None:
        raise DecodeError("an extended value of unknown __type__")
    return restorer(value["__value__"])


_decoder = json.JSONDecoder(object_hook=restore)


def from_json(data: bytes | str) -> Any:
    """The value of JSON text, with the type extension.

    :raises DecodeError: not JSON, nested too deeply, too long a number, or a broken extended value.
    """
    try:
        text = data if isinstance(data, str) else data.decode(json.detect_encoding(data))
        return _decoder.decode(text)
    except DecodeError:
        raise
    except RecursionError:
        raise DecodeError("nested too deeply") from None
    except MemoryError:
        raise
    except json.JSONDecodeError as error:
        raise DecodeError(f"not JSON: {error.msg} at character {error.pos}") from None
    except Exception as error:  # what a restorer raises for a value that is not of its type
        raise DecodeError(f"not readable as JSON: {type(error).__name__}") from error


# An unclosed string runs to the end, so that the pattern always matches where it starts: linear time on any input.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+\\?(?:"|\Z)', re.DOTALL)
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_ONE_KIND = bytes.maketrans(b"{}", b"[]")


def nests_too_deeply(data: bytes, limit: int = MAX_DEPTH) -> bool:
    """Whether JSON text has containers nested deeper than `limit`, without decoding it.

    A body with few brackets is passed by counting them. Else what is left of it without strings is brackets only,
    and taking away the innermost pairs `limit` times must leave nothing. Broken text may be called too deep.
    """
    if data.count(b"[") + data.count(b"{") <= limit:
        return False
    brackets = _STRINGS.sub(b"", data).translate(_ONE_KIND, _NO_BRACKETS)
    for _ in range(limit):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


# --------------------------------------------------------------------------- any serializer


def _kombu_registry() -> Any:
    from kombu.serialization import registry

    return registry


def content_type_of(serializer: str) -> str:
    """The content type of a serializer's name; a content type comes back as it is.

    :raises ConfigError: an unknown name.
    """
    known = _CONTENT_TYPES.get(serializer)
    if known is not None:
        return known
    if "/" in serializer:
        return serializer
    registry = _kombu_registry()
    try:
        return str(registry.name_to_type[serializer])
    except KeyError:
        raise ConfigError(f"there is no serializer {serializer!r} (known: {', '.join(_CONTENT_TYPES)})") from None


def content_types(names: Iterable[str]) -> frozenset[str]:
    """The content types of `accept_content`.

    :raises ConfigError: an unknown name.
    """
    return frozenset(content_type_of(name) for name in names)


def dumps(value: Any, serializer: str) -> tuple[str, str, bytes]:
    """Content type, content encoding and bytes of a value.

    :raises EncodeError: it cannot be written.
    :raises ConfigError: an unknown serializer.
    """
    if serializer in ("json", JSON):
        return JSON, "utf-8", to_json(value).encode("ascii")
    from kombu.exceptions import SerializerNotInstalled

    registry = _kombu_registry()
    name = registry.type_to_name.get(serializer, serializer)
    try:
        content_type, encoding, body = registry.dumps(value, name)
    except SerializerNotInstalled:
        raise ConfigError(f"there is no serializer {serializer!r}, or its package is not installed") from None
    except MemoryError:
        raise
    except Exception as error:  # each library has error classes of its own
        text = f"cannot be written as {name}: {type(error).__name__}: {str(error)[:200]}"
        raise EncodeError(text) from error
    return content_type, encoding, body.encode(encoding) if isinstance(body, str) else body


def loads(body: bytes, content_type: str, encoding: str, accept: frozenset[str]) -> Any:
    """The value of a body. Nothing is decoded unless the content type is accepted.

    :raises ContentDisallowed: it is not accepted.
    :raises DecodeError: it cannot be read.
    """
    if content_type not in accept:
        raise ContentDisallowed(f"content type {content_type!r} is not accepted (accept_content)")
    if content_type == JSON:
        if nests_too_deeply(body):
            raise DecodeError(f"nested deeper than {MAX_DEPTH} levels")
        if encoding.lower() in ("utf-8", "utf8", "us-ascii", "binary"):
            return from_json(body)
        try:
            return from_json(body.decode(encoding))
        except (LookupError, UnicodeDecodeError):
            raise DecodeError("the content encoding does not fit the body") from None
    try:
        return _kombu_registry().loads(body, content_type, encoding, accept=accept)
    except (MemoryError, DecodeError):
        raise
    except Exception as error:  # each library has error classes of its own
        raise DecodeError(f"not readable as {content_type}: {type(error).__name__}") from error
