"""The client's side: puts messages into the folder. Imports nothing of the kernel, and needs no worker."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .exchanges import bound
from .folders import Folders, append


class FilesystemPublisher:
    """Sends messages as files into `data_folder_out`, which is made if need be.

    Any thread and any process: nothing is kept open.

    :param url: `filesystem://` or `filesystem:///absolute/folder`.
    :param options: `broker_transport_options`: data_folder_out, control_folder.
    :raises ValueError: the URL is wrong.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._folders = Folders.of(url, options)

    def publish(self, message: Any) -> None:
        """Write one message; workers see it when this returns.

        :raises ConnectionError: the folder cannot be used.
        :raises LookupError: no queue is bound to the message's exchange with its routing key.
        """
        self.publish_many((message,))

    def publish_many(self, messages: Sequence[Any]) -> None:
        """Write all, one after the other. Raises as `publish` does; what was written then stays."""
        try:
            for message in messages:
                raw = message.envelope()
                for queue in self._queues(message):
                    append(self._folders.outgoing, queue, raw)
        except OSError as error:
            raise ConnectionError(f"{self._folders.outgoing}: {os.strerror(error.errno or 0)}") from error

    def close(self) -> None:
        """Nothing is open."""

    def _queues(self, message: Any) -> list[str]:
        """The anonymous exchange leads to the queue itself; any other to what is bound to it, and to its own queue."""
        queue, exchange, key = message.queue, message.exchange, message.routing_key
        if not exchange:
            if not (queue or key):
                raise LookupError("the message has neither a queue nor a routing key")
            return [queue or key]
        queues = bound(self._folders.control, exchange, message.exchange_type, key)
        if not queues and queue:
            queues = [queue]
        if not queues:
            raise LookupError(f"no queue is bound to exchange {exchange!r} with routing key {key!r}")
        return queues
