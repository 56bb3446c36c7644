"""Remote control over AMQP, as kombu's pidbox has it on the wire. Imports nothing of the kernel.

    exchange <name>.pidbox, fanout            broadcasts; each node has the queue <node>.<name>.pidbox on it
    exchange reply.<name>.pidbox, direct      replies; each box has the queue <box>.reply.<name>.pidbox, key = box

Both queues are exclusive, delete themselves and expire, so nothing outlives its reader. A connection of its own.

Facts: kombu 5.7, pidbox.py: exchanges are transient and not durable; replies are not confirmed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import wire
from .errors import AmqpUnavailable
from .interrupt import Interrupt
from .link import Link
from .server import parse
from .tables import BadTable, read_properties, write_properties, write_table

CHANNEL = 1
QUEUE_EXPIRES_MS = 10_000
MESSAGE_TTL_MS = 300_000
BEAT_S = 1.0
_EXCLUSIVE_AUTO_DELETE = b"\x0c"
_NO_ACK = b"\x02"
_DELIVERED = (wire.BASIC_DELIVER,)


class AmqpMailbox:
    """See `kernel_worker.Mailbox`.

    :param url: amqp://, pyamqp:// or amqps://.
    :param options: `broker_transport_options`.
    :param name: `control_exchange`.
    :raises ValueError: the URL or an option makes no sense.
    """

    def __init__(self, url: str, options: Mapping[str, Any], name: str = "celery") -> None:
        self._server = parse(url, options)
        self._broadcasts = f"{name}.pidbox"
        self._replies = f"reply.{name}.pidbox"
        self._link: Link | None = None
        self._early: list[wire.Received] = []
        self._interrupt = Interrupt()

    def listen(self, node: str) -> None:
        """Bind a queue of the node to the broadcasts and consume it."""
        link = self._connect("kw:control")
        self._declare_exchange(link, self._replies, "direct")
        self._consume(link, f"{node}.{self._broadcasts}", self._broadcasts, "fanout", "")

    def expect(self, box: str) -> None:
        """Bind a queue of the box to the replies and consume it."""
        link = self._connect("kw:control-client")
        self._declare_exchange(link, self._broadcasts, "fanout")
        self._consume(link, f"{box}.{self._replies}", self._replies, "direct", box)

    def receive(self, timeout: float) -> list[tuple[Mapping[str, Any], str, bytes]]:
        """See the contract."""
        link = self._linked()
        link.beat()
        received, self._early = self._early, []
        if not received:
            with link.reading:
                wait_s = 0.0 if self._interrupt.take() else min(timeout, BEAT_S)
                received = link.receive(wait_s, self._interrupt.descriptor)
            self._interrupt.take()
        letters = []
        for each in received:
            if each.method == wire.CHANNEL_CLOSE:
                raise link.channel_closed(each)
            if each.method == wire.BASIC_CANCEL:
                raise link.fail("the queue of this mailbox was deleted")
            if each.method in _DELIVERED:
                letters.append(_read(each))
        return letters

    def broadcast(self, headers: Mapping[str, Any], body: bytes) -> int | None:
        """Publish to all workers that are bound now; the server does not say how many."""
        if self._link is None:
            self._declare_exchange(self._connect("kw:control-client"), self._broadcasts, "fanout")
        self._publish(self._broadcasts, "", headers, body)
        return None

    def roster(self) -> list[str]:
        """The server knows connections, not workers."""
        return []

    def reply(self, letters: Sequence[tuple[str, Mapping[str, Any], bytes]]) -> None:
        """Send replies; what no queue takes is dropped by the server."""
        for box, headers, body in letters:
            self._publish(self._replies, box, headers, body)

    def interrupt(self) -> None:
        """Wake `receive`. Any thread."""
        self._interrupt.set()

    def close(self) -> None:
        """Close; the server deletes the queue. Idempotent."""
        link, self._link = self._link, None
        if link is not None:
            link.close()
        self._early = []
        self._interrupt.close()

    def _connect(self, name: str) -> Link:
        if self._link is not None:
            self._link.abandon()
            self._link = None
        self._interrupt.open()
        link = Link.open(self._server, name)
        link.open_channel(CHANNEL)
        self._link = link
        return link

    def _linked(self) -> Link:
        if self._link is None:
            raise AmqpUnavailable(f"{self._server}: not connected")
        return self._link

    @staticmethod
    def _declare_exchange(link: Link, exchange: str, kind: str) -> None:
        arguments = b"\0\0" + wire.short(exchange) + wire.short(kind) + b"\0\0\0\0\0"
        link.call(CHANNEL, wire.frame(CHANNEL, wire.EXCHANGE_DECLARE, arguments), wire.EXCHANGE_DECLARE_OK)

    def _consume(self, link: Link, queue: str, exchange: str, kind: str, key: str) -> None:
        self._declare_exchange(link, exchange, kind)
        table = write_table({"x-expires": QUEUE_EXPIRES_MS, "x-message-ttl": MESSAGE_TTL_MS})
        declare = b"\0\0" + wire.short(queue) + _EXCLUSIVE_AUTO_DELETE + table
        link.call(CHANNEL, wire.frame(CHANNEL, wire.QUEUE_DECLARE, declare), wire.QUEUE_DECLARE_OK)
        link.call(CHANNEL, wire.bind(CHANNEL, queue, exchange, key), wire.QUEUE_BIND_OK)
        consume = b"\0\0" + wire.short(queue) + wire.short("kw") + _NO_ACK + b"\0\0\0\0"
        with link.reading:
            link.send(wire.frame(CHANNEL, wire.BASIC_CONSUME, consume))
            link.wait_for(CHANNEL, wire.BASIC_CONSUME_OK, self._early.append)

    def _publish(self, exchange: str, key: str, headers: Mapping[str, Any], body: bytes) -> None:
        link = self._linked()
        header = write_properties(
            {"content_type": "application/json", "content_encoding": "utf-8", "delivery_mode": 1, "priority": 0},
            headers,
        )
        link.send(wire.publish_frames(CHANNEL, exchange, key, header, body, link.frame_max, mandatory=False))


def _read(received: wire.Received) -> tuple[Mapping[str, Any], str, bytes]:
    """A message from anybody; what cannot be read has no content type."""
    try:
        properties, headers = read_properties(received.header)
    except BadTable:
        return {}, "", b""
    return headers or {}, str(properties.get("content_type") or ""), received.body
