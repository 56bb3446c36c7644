"""The event `task-sent`, for monitors: published after the task itself, where the application asks for it.

Celery's fields and routing key. Over the publisher of tasks: on Redis a fanout, on AMQP a topic exchange; the embedded
broker has neither, and nothing is told there.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING, Any

from .message import Message
from .serialization import to_json
from .transport import Identity, scheme_of, urls_of

if TYPE_CHECKING:
    from .transport import Connections

ROUTING_KEY = "task.sent"


class Announcer:
    """Tells what one application sent. Any thread."""

    def __init__(self, connections: Connections, settings: Any) -> None:
        self._connections = connections
        self._conf = settings
        self._identity: Identity | None = None
        self._clock = itertools.count(1)

    def sent(self, name: str, message: Message) -> None:
        """One message was published. Raises nothing: monitors miss it when the broker went away meanwhile."""
        headers = message.headers
        task_id = message.properties["correlation_id"]
        self._publish(
            {
                "uuid": task_id,
                "root_id": headers.get("root_id") or task_id,
                "parent_id": headers.get("parent_id"),
                "name": name,
                "args": headers.get("argsrepr"),
                "kwargs": headers.get("kwargsrepr"),
                "retries": headers.get("retries") or 0,
                "eta": headers.get("eta"),
                "expires": headers.get("expires"),
                "queue": message.queue,
                "exchange": message.exchange,
                "routing_key": message.routing_key,
            }
        )

    def _publish(self, fields: dict[str, Any]) -> None:
        identity = self._identity
        if identity is None or identity.pid != os.getpid():
            identity = self._identity = Identity()
        now = time.time()
        event = {
            "hostname": identity.origin,
            "utcoffset": -time.localtime(now).tm_gmtoff / 3600 + 0.0,
            "pid": identity.pid,
            "clock": next(self._clock),
            **fields,
            "timestamp": now,
            "type": "task-sent",
        }
        url = urls_of(self._conf.broker_write_url or self._conf.broker_url)[0]
        self._connections.announce(
            Message(
                "",
                to_json(event).encode("ascii"),
                headers={"hostname": identity.origin},
                properties={"delivery_mode": 1},
                exchange=self._conf.event_exchange,
                exchange_type="topic" if "amqp" in scheme_of(url) else "fanout",
                routing_key=ROUTING_KEY,
            )
        )
