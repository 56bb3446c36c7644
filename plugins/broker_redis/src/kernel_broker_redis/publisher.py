"""Send messages for clients: one LPUSH each, no worker needed. Imports nothing of the kernel.

Any thread, any greenlet; after a fork the child opens connections of its own. Nothing is repeated here: when a
connection breaks in the middle, whether the message arrived is unknown, and the caller decides (kernel_app
follows `task_publish_retry_policy`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from kernel_result_redis.connection import Connection, pack
from kernel_result_redis.errors import ReplyError
from kernel_result_redis.pool import Pool
from kernel_result_redis.server import parse

from .layout import Layout

_BINDINGS_S = 1.0  # for so long a binding set is not read again; kombu reads it for every message
_NAMES = 10_000  # queue names remembered: those made up per message must not fill the memory
_CHUNK_BYTES = 1024 * 1024  # of commands written before their replies are read


class RedisPublisher:
    """Puts envelopes into kombu's lists; see `kernel_worker.Publisher`.

    :param url: redis://, rediss://, redis+socket:// or unix://.
    :param options: `broker_transport_options`, Celery's names.
    :raises ValueError: the URL or an option makes no sense.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        server = parse(url, options)
        self._layout = Layout(options, server.db)
        self._pool = Pool(server, int(options.get("max_connections") or 10), "kw:publish")
        self._opened = 0
        self._keys: dict[tuple[str, int], str] = {}
        self._bound: set[str] = set()
        self._bindings: dict[str, tuple[float, Sequence[bytes]]] = {}

    def publish(self, message: Any) -> None:
        """Append one message; Redis has it when this returns.

        :raises ConnectionError: the server is away or refuses; the message may have been stored all the same.
        :raises LookupError: no queue is bound to the exchange for this routing key. Kombu drops such a message.
        :raises ValueError: the queue has a name that no queue can have.
        """
        connection = self._take()
        try:
            commands = self._commands(message)
        except BaseException:  # no such queue, an envelope that cannot be made: nothing was sent
            self._pool.give(connection)
            raise
        self._send(connection, commands)

    def publish_many(self, messages: Sequence[Any]) -> None:
        """Append all, in their order, with few round trips. Raises as `publish` does; those sent before an
        error stay sent."""
        chunk: list[bytes] = []
        size = 0
        for message in messages:
            commands = self._commands(message)
            chunk += commands
            size += sum(map(len, commands))
            if size > _CHUNK_BYTES:
                self._send(self._take(), chunk)
                chunk, size = [], 0
        if chunk:
            self._send(self._take(), chunk)

    def close(self) -> None:
        """Close idle connections. Idempotent; the publisher can be used again."""
        self._pool.close()

    # ------------------------------------------------------------------ where to

    def _commands(self, message: Any) -> list[bytes]:
        """The packed commands that deliver one message."""
        envelope = message.envelope()
        if message.exchange:
            return self._through_exchange(message, envelope)
        target = message.queue or message.routing_key
        push = pack(("LPUSH", self._key(target, message.priority), envelope))
        if target in self._bound:
            return [push]
        if len(self._bound) > _NAMES:
            self._bound.clear()
        self._bound.add(target)
        return [*self._bind(target, target, target), push]

    def _through_exchange(self, message: Any, envelope: bytes) -> list[bytes]:
        exchange, kind, routing_key, queue = message.exchange, message.exchange_type, message.routing_key, message.queue
        if kind == "fanout":
            return [pack(("PUBLISH", self._layout.channel(exchange, routing_key), envelope))]
        commands: list[bytes] = []
        queues = self._resolve(exchange, kind, routing_key)
        if not queues and not queue:
            queues = self._resolve(exchange, kind, routing_key, fresh=True)
            if not queues:
                raise LookupError(f"no queue is bound to exchange {exchange!r} for routing key {routing_key!r}")
        if queue and queue not in queues and kind == "direct":
            commands = self._bind(exchange, routing_key, queue)
            queues = [*queues, queue]
        return commands + [pack(("LPUSH", self._key(each, message.priority), envelope)) for each in queues or [queue]]

    def _key(self, queue: str, priority: int | None) -> str:
        try:
            return self._keys[queue, priority or 0]
        except KeyError:
            refusal = self._layout.refusal(queue)
            if refusal:
                raise ValueError(refusal) from None
            if len(self._keys) > _NAMES:
                self._keys.clear()
            key = self._keys[queue, priority or 0] = self._layout.list_key(queue, self._layout.step(priority or 0))
            return key

    def _bind(self, exchange: str, routing_key: str, queue: str) -> list[bytes]:
        """What a kombu client does before its first publish: make the queue known to exchange lookups."""
        member = self._layout.binding(queue, "direct", routing_key)
        return [pack(("SADD", key, member)) for key in self._layout.binding_sets(exchange)]

    def _resolve(self, exchange: str, kind: str, routing_key: str, fresh: bool = False) -> list[str]:
        now = time.monotonic()
        read_at, members = self._bindings.get(exchange, (0.0, ()))
        if fresh or now - read_at > _BINDINGS_S or not read_at:
            members = self._pool.call("SMEMBERS", self._layout.binding_sets(exchange)[0])
            self._bindings[exchange] = now, members
        return self._layout.bound_queues(members, kind, routing_key)

    def _take(self) -> Connection:
        connection = self._pool.take()
        if self._opened != self._pool.opened:  # a server that was restarted may have been emptied
            self._opened = self._pool.opened
            self._bound.clear()
        return connection

    def _send(self, connection: Connection, commands: list[bytes]) -> None:
        """Write all, then read all replies."""
        with self._pool.lend(connection):
            connection.send(b"".join(commands))
            replies = [connection.read() for _ in commands]
            for reply in replies:
                if isinstance(reply, ReplyError):
                    raise reply.explain(self._pool.server)
