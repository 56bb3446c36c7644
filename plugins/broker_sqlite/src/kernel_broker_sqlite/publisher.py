"""The client's side: puts messages into the file. Imports nothing of the kernel, and needs no worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kernel_result_sqlite.location import parse_url

if TYPE_CHECKING:
    import sqlite3

    from kernel_result_sqlite.database import Database

BOUND_QUEUES = "SELECT queue FROM kw_binding WHERE exchange = ? AND routing_key = ? ORDER BY queue"


class SqlitePublisher:
    """Sends messages to the embedded broker.

    Any thread; after a fork the child opens a connection of its own.

    :param url: `sqlite:///kw.db`, see `kernel_result_sqlite.location`.
    :param options: `broker_transport_options`; none matters here.
    :raises ValueError: the URL is wrong.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._location = parse_url(url)
        self._opened: Database | None = None

    def publish(self, message: Any) -> None:
        """Append one message; it is durable when this returns.

        :raises ConnectionError: the file cannot be used.
        :raises LookupError: no queue is bound to the message's exchange with its routing key.
        """
        self.publish_many((message,))

    def publish_many(self, messages: Sequence[Any]) -> None:
        """Append all in one transaction: all of them or none. Raises as `publish` does."""
        from .schema import append

        envelopes = [(message, message.envelope(), int(message.priority or 0)) for message in messages]

        def operation(connection: sqlite3.Connection) -> None:
            for message, raw, priority in envelopes:
                for queue in _queues(connection, message):
                    append(connection, queue, raw, priority)

        if envelopes:
            self._database().write(operation)

    def close(self) -> None:
        """Close the connection. Idempotent; the next call opens it again."""
        if self._opened is not None:
            self._opened.close()

    def _database(self) -> Database:
        database = self._opened
        if database is None:
            from kernel_result_sqlite.database import Database

            from .schema import SCHEMA

            # Two threads may both come here first: one of the two is dropped, unopened.
            database = self._opened = Database(self._location, SCHEMA)
        return database


def _queues(connection: sqlite3.Connection, message: Any) -> list[str]:
    """Where a message goes: through the anonymous exchange to its queue, or the one its routing key names;
    through another to the queues that workers bound to it, and to its own, as if that was bound too."""
    queue, exchange, key = message.queue, message.exchange, message.routing_key
    if not exchange:
        if not (queue or key):
            raise LookupError("the message has neither a queue nor a routing key")
        return [queue or key]
    queues = [bound for (bound,) in connection.execute(BOUND_QUEUES, (exchange, key))]
    if queue and queue not in queues:
        queues.append(queue)
    if not queues:
        raise LookupError(
            f"no queue is bound to exchange {exchange!r} with routing key {key!r}: name the queue when sending, "
            "or start a worker that consumes from it (the embedded broker has direct exchanges only)"
        )
    return queues
