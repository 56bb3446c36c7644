"""AMQP's field tables and message properties, both ways. Pure. Types as RabbitMQ writes them (its errata, not the
letters of the specification), which is what py-amqp and kombu peers read.

Reading is of untrusted input: every offset is checked by `struct` or by slicing, and nesting is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from math import isfinite
from typing import Any

_DEPTH = 32
_SIZE = struct.Struct(">I")
_FLAGS = struct.Struct(">H")
_FIXED: dict[int, struct.Struct] = {
    ord(letter): struct.Struct(form)
    for letter, form in {
        "b": ">b",
        "B": ">B",
        "s": ">h",
        "U": ">h",
        "u": ">H",
        "I": ">i",
        "i": ">I",
        "l": ">q",
        "L": ">q",
        "f": ">f",
        "d": ">d",
        "t": ">?",
        "T": ">Q",
    }.items()
}
_STRING, _TABLE, _LIST, _NONE, _BYTES, _DECIMAL, _TIME = b"SFAVxDT"

_TEXTS_BEFORE = ("content_type", "content_encoding")
_TEXTS_AFTER = ("correlation_id", "reply_to", "expiration", "message_id")
_TEXTS_LAST = ("type", "user_id", "app_id", "cluster_id")


class BadTable(ValueError):
    """What claims to be a table or properties is none."""


# ---------------------------------------------------------------------- writing


def write_table(table: Mapping[str, Any]) -> bytes:
    """A field table with its size.

    :raises ValueError: a value that AMQP cannot hold: a name longer than 255 bytes, an integer beyond 64 bits.
    """
    parts: list[bytes] = []
    for name, value in table.items():
        key = name.encode("utf-8", "surrogatepass")
        if len(key) > 255:
            raise ValueError(f"header {name[:40]!r}… has {len(key)} bytes in its name, AMQP allows 255")
        parts.append(bytes((len(key),)) + key)
        _write(value, parts)
    data = b"".join(parts)
    return _SIZE.pack(len(data)) + data


def _write(value: Any, parts: list[bytes]) -> None:
    kind = type(value)
    if value is None:
        parts.append(b"V")
    elif kind is str:
        data = value.encode("utf-8", "surrogatepass")
        parts += (b"S", _SIZE.pack(len(data)), data)
    elif kind is bool:
        parts.append(b"t\x01" if value else b"t\x00")
    elif kind is int:
        if -0x80000000 <= value <= 0x7FFFFFFF:
            parts.append(b"I" + value.to_bytes(4, "big", signed=True))
        elif -(1 << 63) <= value < 1 << 63:
            parts.append(b"l" + value.to_bytes(8, "big", signed=True))
        else:
            raise ValueError("a header holds an integer beyond 64 bits, which AMQP cannot carry")
    elif kind is float:
        if not isfinite(value):  # RabbitMQ's reader has no such number: it ends the connection
            raise ValueError(f"a header holds {value}, which AMQP cannot carry")
        parts.append(struct.pack(">cd", b"d", value))
    elif isinstance(value, Mapping):
        parts += (b"F", write_table(value))
    elif isinstance(value, (list, tuple)):
        inner: list[bytes] = []
        for each in value:
            _write(each, inner)
        data = b"".join(inner)
        parts += (b"A", _SIZE.pack(len(data)), data)
    elif isinstance(value, (bytes, bytearray)):
        parts += (b"x", _SIZE.pack(len(value)), bytes(value))
    elif isinstance(value, (str, int, float)):  # subclasses, e.g. enumerations
        _write(
            str(value) if isinstance(value, str) else float(value) if isinstance(value, float) else int(value), parts
        )
    else:
        raise ValueError(f"a header holds a {type(value).__name__}, which AMQP cannot carry")


def write_properties(properties: Mapping[str, Any], headers: Mapping[str, Any] | None) -> bytes:
    """Property flags and values of a message, as they stand in its content header.

    :param properties: AMQP's names (content_type, delivery_mode, …); None means not there.
    :raises ValueError: as `write_table`; a text longer than 255 bytes.
    """
    flags, parts = 0, [b""]
    bit = 0x8000
    for name in _TEXTS_BEFORE:
        flags |= _write_text(properties.get(name), bit, parts)
        bit >>= 1
    if headers is not None:
        flags |= 0x2000
        parts.append(write_table(headers))
    for name, bit in (("delivery_mode", 0x1000), ("priority", 0x0800)):
        value = properties.get(name)
        if value is not None:
            flags |= bit
            parts.append(bytes((min(max(int(value), 0), 255),)))
    bit = 0x0400
    for name in _TEXTS_AFTER:
        flags |= _write_text(properties.get(name), bit, parts)
        bit >>= 1
    if properties.get("timestamp") is not None:
        flags |= 0x0040
        parts.append(struct.pack(">Q", int(properties["timestamp"])))
    bit = 0x0020
    for name in _TEXTS_LAST:
        flags |= _write_text(properties.get(name), bit, parts)
        bit >>= 1
    parts[0] = _FLAGS.pack(flags)
    return b"".join(parts)


def _write_text(value: Any, bit: int, parts: list[bytes]) -> int:
    if value is None:
        return 0
    data = str(value).encode("utf-8", "surrogatepass")
    if len(data) > 255:
        raise ValueError(f"a message property has {len(data)} bytes, AMQP allows 255: {str(value)[:40]!r}…")
    parts.append(bytes((len(data),)) + data)
    return bit


# ---------------------------------------------------------------------- reading


def read_table(data: bytes, at: int = 0) -> tuple[dict[str, Any], int]:
    """The table at an offset, and the offset behind it.

    :raises BadTable: it is none.
    """
    try:
        return _read_table(data, at, _DEPTH)
    except (struct.error, IndexError, OverflowError) as error:
        raise BadTable(f"no AMQP table: {error}") from None


def _read_table(data: bytes, at: int, depth: int) -> tuple[dict[str, Any], int]:
    if not depth:
        raise BadTable("nested too deep")
    end = at + 4 + _SIZE.unpack_from(data, at)[0]
    if end > len(data):
        raise BadTable("a table is longer than the message")
    at += 4
    found: dict[str, Any] = {}
    while at < end:
        name_end = at + 1 + data[at]
        name = data[at + 1 : name_end].decode("utf-8", "backslashreplace")
        found[name], at = _read(data, name_end, depth)
    return found, end


def _read(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    kind = data[at]
    at += 1
    if kind == _STRING:
        end = at + 4 + _SIZE.unpack_from(data, at)[0]
        # What is no UTF-8 stays readable; JSON, which is where this goes, has no bytes.
        return data[at + 4 : end].decode("utf-8", "backslashreplace"), end
    if kind == _NONE:
        return None, at
    fixed = _FIXED.get(kind)
    if fixed is not None:
        (value,) = fixed.unpack_from(data, at)
        if kind == _TIME:
            value = _moment(value)
        return value, at + fixed.size
    if kind == _TABLE:
        return _read_table(data, at, depth - 1)
    if kind == _LIST:
        end = at + 4 + _SIZE.unpack_from(data, at)[0]
        if end > len(data) or depth < 2:
            raise BadTable("a list is longer than the message or nested too deep")
        at += 4
        items = []
        while at < end:
            item, at = _read(data, at, depth - 1)
            items.append(item)
        return items, end
    if kind == _BYTES:
        end = at + 4 + _SIZE.unpack_from(data, at)[0]
        return data[at + 4 : end].decode("utf-8", "backslashreplace"), end
    if kind == _DECIMAL:
        places, number = struct.unpack_from(">Bi", data, at)
        return str(Decimal(number).scaleb(-places)), at + 5
    raise BadTable(f"no AMQP table: unknown type {kind}")


def _moment(seconds: int) -> str | int:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return seconds


def read_properties(header: bytes) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Properties by AMQP's names, and the headers (None: the message has none).

    :raises BadTable: they are none.
    """
    properties: dict[str, Any] = {}
    headers: dict[str, Any] | None = None
    try:
        (flags,) = _FLAGS.unpack_from(header)
        at, bit = 2, 0x8000
        for name in _TEXTS_BEFORE:
            if flags & bit:
                properties[name], at = _read_text(header, at)
            bit >>= 1
        if flags & 0x2000:
            headers, at = _read_table(header, at, _DEPTH)
        for name, bit in (("delivery_mode", 0x1000), ("priority", 0x0800)):
            if flags & bit:
                properties[name] = header[at]
                at += 1
        bit = 0x0400
        for name in _TEXTS_AFTER:
            if flags & bit:
                properties[name], at = _read_text(header, at)
            bit >>= 1
        if flags & 0x0040:
            (properties["timestamp"],) = struct.unpack_from(">Q", header, at)
            at += 8
        bit = 0x0020
        for name in _TEXTS_LAST:
            if flags & bit:
                properties[name], at = _read_text(header, at)
            bit >>= 1
    except (struct.error, IndexError, OverflowError) as error:
        raise BadTable(f"the message's properties cannot be read: {error}") from None
    return properties, headers


def _read_text(data: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + data[at]
    return data[at + 1 : end].decode("utf-8", "backslashreplace"), end
