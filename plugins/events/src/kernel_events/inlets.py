"""Where events come from, by the scheme of the broker's URL: the receiving side, for `kw events`.

An inlet belongs to one thread and hears what is sent from `connect` on. Every method but `close` raises the builtin
`ConnectionError` when the broker is away or refuses. Imports nothing of the kernel.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from .envelope import events_of, unpack

if TYPE_CHECKING:
    from kernel_broker_amqp.link import Link
    from kernel_broker_sqlite.broadcast import Listener
    from kernel_result_redis.connection import Connection

Received = list[dict[str, Any]]

CHANNEL = 1
QUEUE_TTL_MS = 5_000
QUEUE_EXPIRES_MS = 60_000
"""Of a receiver's queue on AMQP: Celery's `event_queue_ttl` and `event_queue_expires`."""
CHECK_S = 5.0
"""A quiet connection is asked for a sign of life this often."""


class Inlet(Protocol):
    """Hears all events of a broker."""

    def connect(self) -> None: ...
    def receive(self, timeout: float) -> Received:
        """Events in the order they came, waiting at most `timeout` seconds for the first."""

    def close(self) -> None: ...


def open_inlet(url: str, options: Mapping[str, Any], exchange: str) -> Inlet | None:
    """The inlet for a broker, not connected yet; None when it carries no events.

    :param options: `broker_transport_options`.
    :raises ValueError: the URL or an option makes no sense.
    """
    kind = _INLETS.get(url.partition("://")[0].lower())
    return None if kind is None else kind(url, options, exchange)


class RedisInlet:
    """Subscribes to all channels of the fanout exchange."""

    def __init__(self, url: str, options: Mapping[str, Any], exchange: str) -> None:
        from kernel_broker_redis.layout import Layout
        from kernel_result_redis.server import parse

        self._server = parse(url, options)
        channel = Layout(options, self._server.db).channel(exchange, "")
        self._pattern = _literal(channel) + "/*"
        self._connection: Connection | None = None
        self._checked_at = 0.0

    def connect(self) -> None:
        """See `Inlet`."""
        from kernel_result_redis.connection import Connection, pack
        from kernel_result_redis.errors import RedisUnavailable, ReplyError

        self.close()
        connection = self._connection = Connection.open(self._server, "kw:events")
        connection.send(pack(("PSUBSCRIBE", self._pattern)))
        answer = connection.read_push(self._server.timeout)
        if isinstance(answer, ReplyError):
            raise answer.explain(self._server)
        if answer is None:
            raise RedisUnavailable(f"{self._server}: no answer to a subscription")
        self._checked_at = time.monotonic()

    def receive(self, timeout: float) -> Received:
        """See `Inlet`."""
        connection = self._connection
        assert connection is not None
        if time.monotonic() - self._checked_at > CHECK_S:
            connection.call("PING")  # a subscriber would never notice the end of a silent connection
            self._checked_at = time.monotonic()
        found: Received = []
        push = connection.read_push(timeout)
        while push is not None:
            if push[0] == b"pmessage":
                found += unpack(push[3])
            push = connection.read_push(0.0)
        return found

    def close(self) -> None:
        """Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class AmqpInlet:
    """Binds a queue of its own to the topic exchange; the server deletes it with the connection."""

    def __init__(self, url: str, options: Mapping[str, Any], exchange: str) -> None:
        from kernel_broker_amqp.server import parse

        self._server = parse(url, options)
        self._exchange = exchange
        self._link: Link | None = None
        self._early: list[Any] = []

    def connect(self) -> None:
        """See `Inlet`."""
        from kernel_broker_amqp import wire
        from kernel_broker_amqp.link import Link
        from kernel_broker_amqp.tables import write_table

        self.close()
        link = self._link = Link.open(self._server, "kw:events")
        link.open_channel(CHANNEL)
        link.call(CHANNEL, wire.declare_exchange(CHANNEL, self._exchange, "topic"), wire.EXCHANGE_DECLARE_OK)
        queue = f"{self._exchange}.{uuid.uuid4()}"
        table = write_table({"x-expires": QUEUE_EXPIRES_MS, "x-message-ttl": QUEUE_TTL_MS})
        declare = b"\0\0" + wire.short(queue) + b"\x0c" + table  # exclusive, deleted with its consumer
        link.call(CHANNEL, wire.frame(CHANNEL, wire.QUEUE_DECLARE, declare), wire.QUEUE_DECLARE_OK)
        link.call(CHANNEL, wire.bind(CHANNEL, queue, self._exchange, "#"), wire.QUEUE_BIND_OK)
        consume = b"\0\0" + wire.short(queue) + wire.short("kw") + b"\x02" + b"\0\0\0\0"  # no acks
        with link.reading:
            link.send(wire.frame(CHANNEL, wire.BASIC_CONSUME, consume))
            link.wait_for(CHANNEL, wire.BASIC_CONSUME_OK, self._early.append)

    def receive(self, timeout: float) -> Received:
        """See `Inlet`."""
        from kernel_broker_amqp import wire

        link = self._link
        assert link is not None
        link.beat()
        received, self._early = self._early, []
        if not received:
            with link.reading:
                received = link.receive(timeout)
        found: Received = []
        for each in received:
            if each.method == wire.CHANNEL_CLOSE:
                raise link.channel_closed(each)
            if each.method == wire.BASIC_CANCEL:
                raise link.fail("the queue of this receiver was deleted")
            if each.method == wire.BASIC_DELIVER:
                try:
                    found += events_of(each.body)
                except (ValueError, RecursionError):  # a stranger's message
                    continue
        return found

    def close(self) -> None:
        """Idempotent."""
        link, self._link = self._link, None
        if link is not None:
            link.close()
        self._early = []


class SqliteInlet:
    """Listens to the broadcasts of the embedded broker."""

    def __init__(self, url: str, options: Mapping[str, Any], exchange: str) -> None:
        self._url = url
        self._exchange = exchange
        self._listener: Listener | None = None

    def connect(self) -> None:
        """See `Inlet`."""
        from kernel_broker_sqlite.broadcast import Listener
        from kernel_broker_sqlite.schema import SCHEMA
        from kernel_result_sqlite.database import Database
        from kernel_result_sqlite.location import parse_url

        self.close()
        self._listener = Listener(Database(parse_url(self._url), SCHEMA), self._exchange)

    def receive(self, timeout: float) -> Received:
        """See `Inlet`."""
        assert self._listener is not None
        return [event for body in self._listener.receive(timeout) for event in unpack(body)]

    def close(self) -> None:
        """Idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def _literal(text: str) -> str:
    """Text in which nothing is special in a Redis pattern."""
    return "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in text)


_INLETS: Mapping[str, Any] = {
    **dict.fromkeys(("redis", "rediss", "unix", "redis+socket"), RedisInlet),
    **dict.fromkeys(("amqp", "amqps", "pyamqp"), AmqpInlet),
    "sqlite": SqliteInlet,
}
