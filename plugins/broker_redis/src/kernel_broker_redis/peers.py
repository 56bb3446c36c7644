"""Restore messages that Celery or kombu peers reserved and never finished, as kombu itself does.

Their entries are in kombu's keeping: touched only when older than the visibility timeout, which any kombu worker
in the database would do as well. The envelope is marked as redelivered and written anew, kombu's way.
"""

from __future__ import annotations

import json
from typing import Any

from kernel_result_redis.connection import Connection
from kernel_result_redis.errors import ReplyError

from . import scripts
from .layout import Layout


def restore_entry(link: Connection, layout: Layout, tag: bytes, dead_queue: str) -> None:
    """Put one entry of `unacked` back to the front of its queues.

    Where kombu drops a message, because no queue is bound or the entry cannot be read, it goes to the dead
    letters of `dead_queue`. Nothing happens if the peer or another worker was faster.
    """
    try:
        entry = link.call("HGET", layout.unacked, tag)
        if entry is None:
            link.call("ZREM", layout.unacked_index, tag)
            return
        envelope, lists = _destination(link, layout, entry)
    except ReplyError as error:
        raise error.explain(link.server) from None
    if lists:
        keys = (layout.unacked, layout.unacked_index, layout.attempts, *lists)
        scripts.PUT_BACK.run(link, keys, (tag, entry, envelope))
    else:
        _bury(link, layout, tag, entry, dead_queue)


def _destination(link: Connection, layout: Layout, entry: bytes) -> tuple[bytes, list[str]]:
    """The envelope to push and the lists to push it to; none if that cannot be told."""
    try:
        envelope, exchange, routing_key = json.loads(entry)
        priority = envelope.get("properties", {}).get("priority")
        step = layout.step(priority if isinstance(priority, int) else 0)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return b"", []
    _mark_redelivered(envelope)
    if not exchange:
        queues = [routing_key] if routing_key else []
    else:
        members = link.call("SMEMBERS", layout.binding_sets(exchange)[0])
        queues = layout.bound_queues(members, "", routing_key)
    lists = [layout.list_key(queue, step) for queue in queues if not layout.refusal(queue)]
    return json.dumps(envelope).encode(), lists


def _mark_redelivered(envelope: dict[str, Any]) -> None:
    for parent in (envelope.get("headers"), (envelope.get("properties") or {}).get("delivery_info")):
        if isinstance(parent, dict):
            parent["redelivered"] = True


def _bury(link: Connection, layout: Layout, tag: bytes, entry: bytes, queue: str) -> None:
    info = {"reason": "a Celery peer lost it, and no queue is bound for it", "attempts": 0}
    replies = link.pipeline(
        [
            ("HSET", layout.dead_messages(queue), tag, entry),
            ("HSET", layout.dead_infos(queue), tag, json.dumps(info)),
            ("ZADD", layout.dead(queue), link.call("TIME")[0], tag),
            ("HDEL", layout.unacked, tag),
            ("ZREM", layout.unacked_index, tag),
        ]
    )
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise reply.explain(link.server)
