"""kombu's messages and our envelopes, in both directions. Imports nothing of the kernel, and no kombu.

What we have to remember of a message stands in headers of its own, which are taken out again when it is read.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

ATTEMPTS, RETURNED = "x-kw-attempts", "x-kw-returned"
REASON, DIED_AT, LETTER = "x-kw-reason", "x-kw-died-at", "x-kw-letter"
"""Of dead letters."""
OURS = frozenset({ATTEMPTS, RETURNED})


def split_envelope(raw: bytes) -> tuple[bytes, dict[str, Any]]:
    """Body and the rest of an envelope, as kombu's `prepare_message` takes them.

    :raises ValueError: it is no envelope.
    """
    try:
        found = json.loads(raw.decode())
        properties = found["properties"]
        body = found["body"]
        is_base64 = (properties.get("body_encoding") or "").lower() == "base64"
        return base64.b64decode(body) if is_base64 else body.encode(), {
            "content_type": found.get("content-type"),
            "content_encoding": found.get("content-encoding"),
            "headers": dict(found.get("headers") or {}),
            "properties": dict(properties),
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise ValueError(f"not an envelope: {type(error).__name__}") from error


def join_envelope(message: Any) -> tuple[bytes, Mapping[str, Any]]:
    """The envelope of a kombu message without our headers, and these.

    :raises ValueError: what kombu read is no message of a task queue.
    """
    try:
        headers = dict(message.headers or {})
        ours = {name: headers.pop(name) for name in OURS & headers.keys()}
        info = message.delivery_info or {}
        # Transports put objects of their libraries beside these two.
        place = {name: info.get(name) for name in ("exchange", "routing_key")}
        body = message.body
        text = base64.b64encode(body.encode() if isinstance(body, str) else bytes(body or b"")).decode()
        properties = {**(message.properties or {}), "delivery_info": place, "body_encoding": "base64"}
        envelope = {
            "body": text,
            "content-encoding": message.content_encoding,
            "content-type": message.content_type,
            "headers": headers,
            "properties": properties,
        }
        return json.dumps(envelope, default=str).encode(), ours
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no message of a task queue: {type(error).__name__}") from error


def number(ours: Mapping[str, Any], name: str) -> int:
    """A count among our headers; anybody may have written it."""
    value = ours.get(name, 0)
    return value if isinstance(value, int) and 0 <= value < 1_000_000 else 0
