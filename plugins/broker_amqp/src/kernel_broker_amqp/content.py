"""Messages of AMQP and kombu's virtual envelope, one made of the other. Pure, knows no connection.

What the broker's wire keeps apart (properties, headers, body) stays apart: an envelope made here has no body, the
bytes go beside it. Headers of ours begin with `x-kw-` and are taken off before anybody sees the message.
"""

from __future__ import annotations

import json
from binascii import Error as BadBase64
from binascii import a2b_base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from .tables import BadTable, read_properties, write_properties

ATTEMPTS = "x-kw-attempts"  # deliveries that ended in a lost executor
DUE = "x-kw-due"  # unix time; a message that comes earlier is parked again
REASON, DIED_AT, LETTER = "x-kw-reason", "x-kw-died-at", "x-kw-letter"  # of dead letters; the last is an id
RETURNED = "x-kw-returned"  # a worker gave it back
RECOVERED = "x-kw-recovered"  # an earlier holder died with it, and it was not counted since
RETURNS = "x-kw-returns"  # times it was delayed because nobody knew its task
_OWN = (ATTEMPTS, DUE, REASON, DIED_AT, LETTER, RETURNED, RECOVERED, RETURNS)
# Written by the server when a message expires or is returned; they grow with every pass.
_OF_SERVER = (
    *("x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason"),
    *("x-last-death-exchange", "x-last-death-queue", "x-last-death-reason"),
    *("x-delivery-count", "x-acquired-count", "x-opt-rabbitmq-delivery-time"),
)
_KEPT = ("correlation_id", "reply_to", "delivery_mode", "priority", "expiration", "message_id", "type", "app_id")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode


@dataclass(slots=True)
class Content:
    """A message as it came.

    :ivar headers: without those of ours; {} when it has none.
    :ivar own: those of ours.
    :ivar error: why it is no task message; None when it may be one.
    """

    properties: dict[str, Any]
    headers: dict[str, Any]
    own: dict[str, Any]
    body: bytes
    error: str | None = None

    def envelope(self, exchange: str, routing_key: str) -> tuple[bytes, dict[str, Any]]:
        """kombu's envelope without a body, and its properties."""
        properties = {name: self.properties[name] for name in _KEPT if name in self.properties}
        properties["delivery_info"] = {"exchange": exchange, "routing_key": routing_key}
        properties.setdefault("priority", 0)
        raw = _encode(
            {
                "content-encoding": self.properties.get("content_encoding") or "utf-8",
                "content-type": self.properties.get("content_type"),
                "headers": self.headers,
                "properties": properties,
            }
        )
        return raw, properties

    def with_own(self, expiration: str | None = None, **own: Any) -> bytes:
        """Property flags and values to publish it again with these headers of ours beside those it has.

        Without its own time to live: in a queue of ours it must not vanish, and the worker looks at the `expires`
        header anyway.

        :param expiration: a time to live instead, text of milliseconds.
        :param own: attempts, due, reason, died_at, letter, returned, recovered, returns; None takes one off.
        """
        changed = {**self.own, **{_NAMES[name]: value for name, value in own.items()}}
        headers = {**self.headers, **{name: value for name, value in changed.items() if value is not None}}
        # The server takes a user id only from that user.
        properties = {**self.properties, "expiration": expiration, "delivery_mode": 2, "user_id": None}
        return write_properties(properties, headers or None)

    def as_sent(self) -> bytes:
        """Property flags and values to publish it again as if nothing had happened to it."""
        return self.with_own(**dict.fromkeys(_NAMES))


_NAMES = {
    "attempts": ATTEMPTS,
    "due": DUE,
    "reason": REASON,
    "died_at": DIED_AT,
    "letter": LETTER,
    "returned": RETURNED,
    "recovered": RECOVERED,
    "returns": RETURNS,
}


def read(header: bytes, body: bytes) -> Content:
    """Take a message of the wire apart. Never raises: what is wrong is in `error`."""
    try:
        properties, headers = read_properties(header)
    except BadTable as error:
        return Content({}, {}, {}, body, str(error))
    found = headers or {}
    own = {name: found.pop(name) for name in _OWN if name in found}
    for name in _OF_SERVER:
        found.pop(name, None)
    if properties.get("content_type") is None and "task" not in found:
        return Content(
            properties, found, own, body, "no task message: it has neither a content type nor a 'task' header"
        )
    return Content(properties, found, own, body)


def attempts_of(content: Content) -> int:
    """Earlier deliveries that ended in a lost executor. Strangers may write the header too."""
    return _count(content.own.get(ATTEMPTS))


def returns_of(content: Content) -> int:
    """How often it was delayed because nobody knew its task."""
    return _count(content.own.get(RETURNS))


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 31 else 0


def is_recovered(content: Content) -> bool:
    """Whether it says of itself that an earlier holder died with it."""
    return content.own.get(RECOVERED) is True


def was_returned(content: Content) -> bool:
    """Whether a worker gave it back."""
    return content.own.get(RETURNED) is True


def due_of(content: Content) -> float:
    """Unix time before which it must not be delivered; 0.0 when there is none."""
    value = content.own.get(DUE)
    return float(value) if isinstance(value, (int, float)) else 0.0


def from_envelope(raw: bytes, payload: bytes | None, priority: int) -> tuple[bytes, bytes]:
    """Properties and body of an envelope, for publishing. What is no envelope becomes the body of a bare message.

    :raises ValueError: a header that AMQP cannot carry.
    """
    found = _read_json(raw)
    parts = None if found is None else _parts(found, payload)
    if found is None or parts is None:
        return write_properties({"delivery_mode": 2, "priority": priority}, None), raw
    headers, given, body = parts
    properties = {name: given.get(name) for name in _KEPT}
    properties |= {
        "content_type": found.get("content-type"),
        "content_encoding": found.get("content-encoding"),
        "delivery_mode": given.get("delivery_mode") or 2,
        "priority": priority or given.get("priority") or 0,
    }
    return write_properties(properties, headers), body


def _parts(found: Mapping[str, Any], payload: bytes | None) -> tuple[dict[str, Any], dict[str, Any], bytes] | None:
    headers, properties = found.get("headers") or {}, found.get("properties")
    if not isinstance(found.get("headers", {}), (dict, type(None))) or not isinstance(properties, dict):
        return None
    if payload is not None:
        return headers, properties, payload
    body = found.get("body")
    if not isinstance(body, str):
        return None
    if properties.get("body_encoding") != "base64":
        return headers, properties, body.encode("utf-8", "surrogatepass")
    try:
        return headers, properties, a2b_base64(body)
    except BadBase64:
        return None


def _read_json(raw: bytes) -> dict[str, Any] | None:
    """A JSON object; None when it is none. Python's json knows what msgspec refuses: NaN, large integers."""
    try:
        raw.decode()
        found = _decode(raw)
    except UnicodeDecodeError:
        return None
    except RecursionError:
        return None
    except (msgspec.DecodeError, ValueError):
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError):
            return None
    return found if isinstance(found, dict) else None
