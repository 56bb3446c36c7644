"""Read kombu's virtual envelope: headers and properties only, the body is left alone.

Untrusted input. `read` never raises, costs a bounded time per byte, and says what is wrong with a message that
is no envelope. Runs on the fetch thread.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

Parts = tuple[dict[str, Any], dict[str, Any], str | None]
"""Headers, properties, and what is wrong (None when nothing is)."""


_QUOTE = ord('"')
_BODY = "the body is no text"


class _Envelope(msgspec.Struct):
    """What the kernel needs. `body` is required, but not decoded."""

    body: msgspec.Raw
    properties: dict[str, Any]
    headers: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Envelope).decode


def read(raw: bytes) -> Parts:
    """Headers and properties of an envelope; for anything else ({}, {}, the reason)."""
    try:
        if not raw.isascii():
            raw.decode()  # msgspec does not look into what it skips
        envelope = _decode(raw)
    except UnicodeDecodeError:
        return {}, {}, "not UTF-8"
    except RecursionError:
        return {}, {}, "nested too deep"
    except (msgspec.DecodeError, ValueError):
        return _read_exotic(raw)
    if memoryview(envelope.body)[0] != _QUOTE:
        return {}, {}, _BODY
    return envelope.headers or {}, envelope.properties, None


def _read_exotic(raw: bytes) -> Parts:
    """What Python's json accepts and msgspec does not: NaN, Infinity, integers beyond 64 bits, lone surrogates.

    kombu reads and writes them, so they are envelopes. Otherwise this finds the words for what is wrong.
    """
    try:
        found = json.loads(raw.decode())
    except RecursionError:
        return {}, {}, "nested too deep"
    except ValueError as error:  # no JSON, or a number with thousands of digits
        return {}, {}, f"not JSON: {str(error)[:100]}"
    if not isinstance(found, dict):
        return {}, {}, f"not a JSON object but {type(found).__name__}"
    headers, properties = found.get("headers"), found.get("properties")
    if "body" not in found:
        return {}, {}, "the envelope has no body"
    if not isinstance(found["body"], str):
        return {}, {}, _BODY
    if not isinstance(properties, dict):
        return {}, {}, "the envelope has no properties" if properties is None else "properties are no JSON object"
    if headers is not None and not isinstance(headers, dict):
        return {}, {}, "headers are no JSON object"
    return headers or {}, properties, None
