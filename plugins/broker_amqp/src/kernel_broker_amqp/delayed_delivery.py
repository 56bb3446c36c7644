"""Delayed delivery as Celery's clients ask for it where quorum queues are used (kombu 5.7, native_delayed_delivery).

    celery_delayed_27 … 0        topic exchanges, a queue of the same name for each: level n waits 2**n seconds
    celery_delayed_delivery      where what has waited comes out; exchanges of task queues are bound to it

A message is published to the highest level; its key begins with 28 binary digits, the seconds to wait: a 1 leads through
the level's queue, a 0 past it. Exchanges of type direct cannot take part: their keys match as a whole only.
"""

from __future__ import annotations

from typing import Any

from .relay import Relay

_LEVELS = 28
_OUT = "celery_delayed_delivery"
ENTRY = f"celery_delayed_{_LEVELS - 1}"
LONGEST_S = (1 << _LEVELS) - 1


def routing_key(seconds: int, key: str) -> str:
    """The key with which a message comes to `key` after so many seconds (1 to `LONGEST_S`)."""
    return ".".join(f"{seconds:0{_LEVELS}b}") + "." + key


def can_delay(exchange_type: str, arguments: Any) -> bool:
    """Whether Celery's clients send delayed messages of such a queue this way."""
    return exchange_type != "direct" and (arguments or {}).get("x-queue-type") == "quorum"


def declare(relay: Relay, queue_type: str) -> None:
    """Make the levels exist; those that are there are used as they are.

    :param queue_type: quorum or classic.
    :raises AmqpUnavailable, AmqpRefused: as the relay does.
    """
    names = [f"celery_delayed_{level}" for level in range(_LEVELS)]
    if all(size is not None for size in relay.sizes(names)):
        return
    relay.declare_exchange(_OUT, "topic")
    for level, name in enumerate(names):
        relay.declare_exchange(name, "topic")
        below = names[level - 1] if level else _OUT
        arguments: dict[str, Any] = {
            "x-queue-type": queue_type,
            "x-overflow": "reject-publish",
            "x-message-ttl": 1000 << level,
            "x-dead-letter-exchange": below,
        }
        if queue_type == "quorum":
            arguments["x-dead-letter-strategy"] = "at-least-once"
        if not relay.exists(name):
            relay.declare_queue(name, arguments)
        before = "*." * (_LEVELS - 1 - level)
        relay.bind_queue(name, name, f"{before}1.#")
        relay.bind_exchange(below, name, f"{before}0.#")


def bind(relay: Relay, queue: str, exchange: str, key: str) -> None:
    """Have what has waited come to a queue, through its exchange."""
    pattern = key if key.startswith("#") else f"#.{key}"
    relay.bind_exchange(exchange, _OUT, pattern)
    relay.bind_queue(queue, exchange, pattern)
