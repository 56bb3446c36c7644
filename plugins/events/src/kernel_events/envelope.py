"""One event message on the wire: kombu's virtual envelope around a JSON object, or a list of them.

Facts of the protocol: Celery 5.7's event dispatcher, captured on Redis. Any thread; imports nothing of the kernel.
"""

from __future__ import annotations

import functools
import json
import uuid
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

MULTI = "task.multi"
"""Routing key of a list of task events."""

Event = Mapping[str, Any]


class EventMessage(NamedTuple):
    """Events to be published in one message.

    :param routing_key: type of the event with dots for dashes, or `MULTI`.
    :param events: one, or several that are sent as a list.
    """

    routing_key: str
    events: Sequence[Event]

    def body(self) -> bytes:
        """The JSON text: an object for a routing key of its own, a list for `MULTI`."""
        content: Any = list(self.events) if self.routing_key == MULTI else self.events[0]
        try:
            return _encoder()(content)
        except (ValueError, TypeError):  # halves of surrogate pairs, integers beyond 64 bits
            return json.dumps(content).encode("ascii")


@functools.cache
def _encoder() -> Callable[[Any], bytes]:
    import msgspec  # late: the thread that sends needs it, the start of a worker does not

    return msgspec.json.Encoder().encode


def routing_key(event_type: str) -> str:
    """The routing key of one event: `worker-online` gives `worker.online`."""
    return event_type.replace("-", ".")


def pack(body: bytes, hostname: str, exchange: str, key: str) -> bytes:
    """The envelope that kombu's virtual transports read."""
    rest = json.dumps(
        {
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"hostname": hostname},
            "properties": {
                "delivery_mode": 1,
                "delivery_info": {"exchange": exchange, "routing_key": key},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    )
    return b'{"body": "' + b2a_base64(body, newline=False) + b'", ' + rest[1:].encode("ascii")


def unpack(raw: bytes) -> list[dict[str, Any]]:
    """The events in an envelope; [] for anything that is no event message. Untrusted input."""
    try:
        found = json.loads(raw)
        return events_of(a2b_base64(found["body"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def events_of(body: bytes) -> list[dict[str, Any]]:
    """The events in a message's body; what has no type is left out. Untrusted input.

    :raises ValueError: it is no JSON.
    """
    content = json.loads(body)
    candidates = content if isinstance(content, list) else [content]
    return [event for event in candidates if isinstance(event, dict) and isinstance(event.get("type"), str)]
