"""What is refused at start, since a transport cannot do it, rather than ignored for ever."""

from __future__ import annotations

from collections.abc import Sequence

from kernel_worker.errors import ConfigError
from kernel_worker.types import BrokerCapability, QueueSpec


def refuse_what_cannot_be(
    scheme: str, queues: Sequence[QueueSpec], can: frozenset[BrokerCapability], exchange_types: Sequence[str]
) -> None:
    """Check the queues of a worker against its broker.

    :raises ConfigError: names the queue, what it asks for, and the way out.
    """
    for queue in queues:
        if queue.exchange_type not in exchange_types:
            raise ConfigError(
                f"queue {queue.name!r} is bound to a {queue.exchange_type} exchange, and {scheme}:// has none "
                f"(but: {', '.join(exchange_types)})",
                hint="bind it to a direct exchange, or use redis:// or amqp://",
            )
        if "x-max-priority" in queue.arguments and BrokerCapability.PRIORITY not in can:
            raise ConfigError(
                f"queue {queue.name!r} asks for priorities (x-max-priority), and {scheme}:// has none",
                hint="take them out of task_queues and task_queue_max_priority, or use redis:// or amqp://",
            )
