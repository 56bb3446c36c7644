"""The client's side of SQS. Imports nothing of the kernel, and boto3 at the first message."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

from .queues import Outgoing, Queues
from .settings import FIFO, SqsSettings

INSTALL = "pip install 'kernel-broker-kombu[sqs]'"


class SqsPublisher:
    """Sends messages to SQS queues, which are made if need be.

    Any thread; after a fork the child opens connections of its own.

    :param url: see `settings`.
    :param options: `broker_transport_options`.
    :raises ValueError: the URL or an option is wrong, or boto3 is not installed.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        if importlib.util.find_spec("boto3") is None:
            raise ValueError(f"sqs:// needs boto3, which is not installed: {INSTALL}")
        self._settings = SqsSettings.of(url, options)
        self._pid = os.getpid()
        self._queues = Queues(self._settings)

    def publish(self, message: Any) -> None:
        """Send one message; SQS has it when this returns.

        :raises ConnectionError: SQS cannot be reached, or refuses it.
        :raises LookupError: its exchange is not a direct one.
        """
        self.publish_many((message,))

    def publish_many(self, messages: Sequence[Any]) -> None:
        """Send all, ten in a call. Raises as `publish` does; what was sent then stays sent."""
        by_queue: dict[str, list[Outgoing]] = {}
        for message in messages:
            if message.exchange and message.exchange_type not in ("", "direct"):
                raise LookupError(
                    f"exchange {message.exchange!r} is of type {message.exchange_type}, and sqs:// has direct ones only"
                )
            queue = message.queue or message.routing_key
            if not queue:
                raise LookupError("the message has neither a queue nor a routing key")
            group = message.properties.get("MessageGroupId") if queue.endswith(FIFO) else None
            outgoing = Outgoing(self._connected().encode(message.envelope()), group=group or "default")
            by_queue.setdefault(queue, []).append(outgoing)
        for queue, outgoing_messages in by_queue.items():
            self._connected().send(queue, outgoing_messages)

    def close(self) -> None:
        """Forget the connections. Idempotent; the next message opens new ones."""
        self._queues = Queues(self._settings)

    def _connected(self) -> Queues:
        if os.getpid() != self._pid:
            self._pid, self._queues = os.getpid(), Queues(self._settings)
        return self._queues
