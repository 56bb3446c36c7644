"""Where events go, by the scheme of the broker's URL. Imports nothing of the kernel: clients use it, too.

An outlet belongs to one thread. It opens its connection at first use and again after it was lost; every method
but `close` raises the builtin `ConnectionError` when the broker is away or refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from .envelope import EventMessage, pack

if TYPE_CHECKING:
    from kernel_broker_amqp.relay import Relay
    from kernel_result_redis.connection import Connection


class Outlet(Protocol):
    """Publishes events over one connection.

    :cvar heartbeat_s: shortest sensible time between two heartbeats.
    """

    heartbeat_s: ClassVar[float]

    def publish(self, messages: Sequence[EventMessage]) -> None: ...
    def keep_alive(self) -> None: ...
    def close(self) -> None: ...


def open_outlet(url: str, options: Mapping[str, Any], exchange: str, hostname: str) -> Outlet | None:
    """The outlet for a broker; None when events cannot be sent through it.

    :param options: `broker_transport_options`.
    :param hostname: of the sender, for the messages' headers.
    :raises ValueError: the URL or an option makes no sense.
    """
    scheme = url.partition("://")[0].lower()
    kind = _OUTLETS.get(scheme)
    return None if kind is None else kind(url, options, exchange, hostname)


class RedisOutlet:
    """Pub/sub on the channel that kombu uses for a fanout exchange: who is away hears nothing."""

    heartbeat_s: ClassVar[float] = 0.0

    def __init__(self, url: str, options: Mapping[str, Any], exchange: str, hostname: str) -> None:
        from kernel_broker_redis.layout import Layout
        from kernel_result_redis.server import parse

        self._server = parse(url, options)
        self._layout = Layout(options, self._server.db)
        self._exchange = exchange
        self._hostname = hostname
        self._connection: Connection | None = None

    def publish(self, messages: Sequence[EventMessage]) -> None:
        """One round trip for all."""
        from kernel_result_redis.connection import Connection
        from kernel_result_redis.errors import ReplyError

        connection = self._connection
        if connection is None or not connection.is_idle():
            self.close()
            connection = self._connection = Connection.open(self._server, f"kw:events:{self._hostname}")
        replies = connection.pipeline(
            [
                (
                    "PUBLISH",
                    self._layout.channel(self._exchange, message.routing_key),
                    pack(message.body(), self._hostname, self._exchange, message.routing_key),
                )
                for message in messages
            ]
        )
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise reply.explain(self._server)

    def keep_alive(self) -> None:
        """Nothing to do: TCP's keep-alive watches an idle connection."""

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class AmqpOutlet:
    """A topic exchange. Without confirms: what no queue is bound for is dropped by the server."""

    heartbeat_s: ClassVar[float] = 0.0

    def __init__(self, url: str, options: Mapping[str, Any], exchange: str, hostname: str) -> None:
        from kernel_broker_amqp.relay import Relay
        from kernel_broker_amqp.server import parse_all
        from kernel_broker_amqp.tables import write_properties

        self._relay: Relay = Relay(parse_all(url, options), f"kw:events:{hostname}", confirm=False)
        self._exchange = exchange
        self._declared = 0
        self._header = write_properties(
            {"content_type": "application/json", "content_encoding": "utf-8", "delivery_mode": 1},
            {"hostname": hostname},
        )

    def publish(self, messages: Sequence[EventMessage]) -> None:
        """Written to the connection; a lost one is noticed by the next call at the latest."""
        from kernel_broker_amqp import wire
        from kernel_broker_amqp.relay import Outgoing

        if not self._relay.is_idle_and_alive or self._declared != self._relay.generation:
            self._relay.call(wire.declare_exchange(1, self._exchange, "topic"), wire.EXCHANGE_DECLARE_OK)
            self._declared = self._relay.generation
        self._relay.publish(
            [Outgoing(self._exchange, message.routing_key, self._header, message.body()) for message in messages]
        )

    def keep_alive(self) -> None:
        """Send AMQP's heartbeat when nothing else is sent."""
        self._relay.beat()

    def close(self) -> None:
        """Say good-bye, so that what was written arrives. Idempotent."""
        self._relay.close()


class SqliteOutlet:
    """The broadcast table of the embedded broker."""

    heartbeat_s: ClassVar[float] = 10.0  # each one is written to the disk, and wakes every worker on the file

    def __init__(self, url: str, options: Mapping[str, Any], exchange: str, hostname: str) -> None:
        from kernel_broker_sqlite.schema import SCHEMA
        from kernel_result_sqlite.database import Database
        from kernel_result_sqlite.location import parse_url

        self._database = Database(parse_url(url), SCHEMA)
        self._exchange = exchange
        self._hostname = hostname

    def publish(self, messages: Sequence[EventMessage]) -> None:
        """One transaction for all."""
        from kernel_broker_sqlite.broadcast import say

        bodies = [pack(message.body(), self._hostname, self._exchange, message.routing_key) for message in messages]

        def operation(connection: Any) -> None:
            for body in bodies:
                say(connection, self._exchange, body)

        self._database.write(operation)

    def keep_alive(self) -> None:
        """Nothing to do for a file."""

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._database.close()


_OUTLETS: Mapping[str, Any] = {
    **dict.fromkeys(("redis", "rediss", "unix", "redis+socket"), RedisOutlet),
    **dict.fromkeys(("amqp", "amqps", "pyamqp"), AmqpOutlet),
    "sqlite": SqliteOutlet,
}
