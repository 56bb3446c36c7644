"""What lies in the queues: publish, count, purge, bind. Any thread, on a connection of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kernel_result_redis.connection import Connection
from kernel_result_redis.errors import ReplyError
from kernel_worker.errors import BrokerRefused
from kernel_worker.types import QueueInfo, QueueSpec

from . import scripts
from .layout import Layout, entry_endings

_PAGE = 200  # entries of `unacked` counted per call; envelopes are copied inside the server


def declare(link: Connection, layout: Layout, queues: Sequence[QueueSpec]) -> None:
    """Add the bindings that kombu publishers look up. A queue itself needs no declaration.

    Raises `BrokerRefused` for a queue on a fanout exchange: its messages never lie in a list.
    """
    commands = []
    for spec in queues:
        if spec.exchange_type == "fanout":
            raise BrokerRefused(
                f"queue {spec.name!r} is bound to fanout exchange {spec.exchange!r}: "
                "this broker keeps no broadcasts in queues",
                hint="consume it with Celery, or bind the queue to a direct or topic exchange",
            )
        member = layout.binding(spec.name, spec.exchange_type, spec.routing_key or spec.name)
        commands += [("SADD", key, member) for key in layout.binding_sets(spec.exchange or spec.name)]
    if commands:
        answers(link, commands)


def publish(link: Connection, layout: Layout, queue: str, raw: bytes, priority: int) -> None:
    """Append one envelope."""
    answers(link, [("LPUSH", layout.list_key(queue, layout.step(priority)), raw)])


def purge(link: Connection, layout: Layout, queue: str) -> int:
    """Delete what waits and what is parked."""
    keys = (layout.parked(queue), layout.parked_messages(queue), *layout.list_keys(queue))
    return int(scripts.PURGE.run(link, keys, ()))


def size(link: Connection, layout: Layout, queue: str) -> QueueInfo:
    """Count; `in_flight` holds what kombu peers have reserved as well."""
    commands: list[tuple[Any, ...]] = [("LLEN", key) for key in layout.list_keys(queue)]
    commands += [("ZCARD", layout.parked(queue)), ("ZCARD", layout.dead(queue))]
    *waiting, parked, dead = answers(link, commands)
    return QueueInfo(queue, sum(waiting), _in_flight(link, layout, queue), parked, dead)


def _in_flight(link: Connection, layout: Layout, queue: str) -> int:
    cursor, total = b"0", 0
    found: int
    endings = entry_endings(queue)
    while True:
        cursor, found = scripts.IN_FLIGHT.run(link, (layout.unacked,), (cursor, _PAGE, *endings))
        total += found
        if cursor == b"0":
            return total


def answers(link: Connection, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The replies to commands sent in one write; none is an error."""
    replies = link.pipeline(commands)
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise reply.explain(link.server)
    return replies
