"""A message on its way to the broker, and kombu's virtual envelope (wire-protocol §1 and §11).

Hot: one of each per message sent.
"""

from __future__ import annotations

import os
from binascii import b2a_base64
from collections.abc import Mapping
from typing import Any

from .serialization import to_json

_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def new_id() -> str:
    """A random UUID of version 4, as text. Twice as fast as the uuid module, and without importing it."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"


class Message:
    """One task message: what a `Publisher` gets.

    :ivar queue: the queue to declare and (with the anonymous exchange "") to send to.
    :ivar priority: None when nobody chose one; 0 on the wire.
    :ivar eta: unix time before which it shall not run, or None. The `eta` header says the same.
    :ivar headers: of Celery's protocol 2; `{}` for protocol 1.
    :ivar properties: correlation_id, reply_to, delivery_mode and, with an expiry, expiration (text of milliseconds).
    :ivar declares: the queue (name, exchange, exchange_type, routing_key, queue_arguments) as it is to be made when
        there is none of its name, or None.
    :ivar body: serialized, and compressed if the headers say so.
    """

    __slots__ = (
        "body",
        "content_encoding",
        "content_type",
        "declares",
        "eta",
        "exchange",
        "exchange_type",
        "headers",
        "priority",
        "properties",
        "queue",
        "routing_key",
    )

    def __init__(
        self,
        queue: str,
        body: bytes,
        *,
        headers: Mapping[str, Any],
        properties: Mapping[str, Any],
        exchange: str = "",
        exchange_type: str = "direct",
        routing_key: str = "",
        priority: int | None = None,
        eta: float | None = None,
        content_type: str = "application/json",
        content_encoding: str = "utf-8",
        declares: Any = None,
    ) -> None:
        self.queue = queue
        self.exchange = exchange
        self.exchange_type = exchange_type
        self.routing_key = routing_key or queue
        self.priority = priority
        self.eta = eta
        self.headers = headers
        self.properties = properties
        self.body = body
        self.content_type = content_type
        self.content_encoding = content_encoding
        self.declares = declares

    def envelope(self) -> bytes:
        """The JSON object that virtual transports store. A new delivery tag each time it is called."""
        return to_json(
            {
                "body": b2a_base64(self.body, newline=False).decode("ascii"),
                "content-encoding": self.content_encoding,
                "content-type": self.content_type,
                "headers": self.headers,
                "properties": {
                    **self.properties,
                    "delivery_info": {"exchange": self.exchange, "routing_key": self.routing_key},
                    "priority": self.priority or 0,
                    "body_encoding": "base64",
                    "delivery_tag": new_id(),
                },
            }
        ).encode("ascii")

    def __repr__(self) -> str:
        return f"<Message to {self.queue!r}, {len(self.body)} bytes>"  # headers and body may be secret
