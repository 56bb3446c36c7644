"""Send messages for clients, confirmed by the server; no worker needed. Imports nothing of the kernel.

Any thread; after a fork the child opens connections of its own. What fails is not repeated here: the caller decides
(kernel_app follows `task_publish_retry_policy`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from . import delayed_delivery
from .errors import AmqpRefused, AmqpUnavailable, NotRouted
from .relay import NOT_FOUND, Outgoing, Relay
from .server import parse_all
from .tables import write_properties

_IDLE = 10


class AmqpPublisher:
    """Publishes to RabbitMQ; see `kernel_worker.Publisher`.

    :param url: amqp://, pyamqp:// or amqps://.
    :param options: `broker_transport_options`. `confirm_publish: False` returns as soon as a message is written: faster,
        and what a lost connection had not delivered yet is lost with it. `max_connections`: idle ones kept, 10.
    :raises ValueError: the URL or an option makes no sense.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._addresses = parse_all(url, options)
        self._confirm = bool(options.get("confirm_publish", True))
        self._most = int(options.get("max_connections") or _IDLE)
        self._idle: list[Relay] = []
        self._pid = os.getpid()
        self._known: set[tuple[str, str]] = set()  # without confirms: queues and exchanges that are there

    def publish(self, message: Any) -> None:
        """Send one message; the server has it when this returns (with confirms).

        A queue or exchange that does not exist is declared, as a Celery client does it.

        :raises ConnectionError: the server is away, refuses, or blocks publishers for too long; the message may have
            been stored all the same. Also when no queue is bound to the exchange for this key; both are named.
        :raises ValueError: a header that AMQP cannot carry.
        """
        self.publish_many((message,))

    def publish_many(self, messages: Sequence[Any]) -> None:
        """Send all, in their order, waiting for the confirms together. Raises as `publish` does; those sent before
        an error stay sent."""
        outgoing = [_outgoing(message) for message in messages]
        if not outgoing:
            return
        relay = self._take()
        try:
            if not self._confirm:
                self._declare_unknown(relay, messages)
            self._publish(relay, messages, outgoing)
        except (AmqpUnavailable, AmqpRefused):
            relay.close()
            raise
        except BaseException:  # a time limit of the calling task: answers are outstanding
            relay.abandon()
            raise
        self._give(relay)

    def close(self) -> None:
        """Close idle connections. Idempotent; the publisher can be used again."""
        self._forget_if_forked()
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:  # another thread took the last one
                return

    # ------------------------------------------------------------------ publishing

    def _publish(self, relay: Relay, messages: Sequence[Any], outgoing: Sequence[Outgoing]) -> None:
        if len(messages) == 1:
            self._publish_one(relay, messages[0], outgoing[0])
            return
        missing = [message for message in messages if _target(message) not in self._known]
        if missing and self._confirm:  # of many, some may come back and some not: look first
            self._declare_unknown(relay, missing)
        relay.publish(outgoing)

    def _publish_one(self, relay: Relay, message: Any, outgoing: Outgoing) -> None:
        """One message can be sent without looking: it comes back unstored when there is no queue."""
        try:
            relay.publish((outgoing,))
        except NotRouted:
            if not (message.queue or not message.exchange):
                raise
            _declare(relay, message)
            relay.publish((outgoing,))
        except AmqpRefused as error:
            if error.code != NOT_FOUND:
                raise
            _declare(relay, message)  # there is no such exchange
            relay.publish((outgoing,))

    def _declare_unknown(self, relay: Relay, messages: Sequence[Any]) -> None:
        for message in messages:
            target = _target(message)
            if target in self._known:
                continue
            _declare(relay, message)
            if len(self._known) > 10_000:  # names made up per message must not fill the memory
                self._known.clear()
            self._known.add(target)

    # ------------------------------------------------------------------ connections

    def _take(self) -> Relay:
        self._forget_if_forked()
        while self._idle:
            try:
                relay = self._idle.pop()
            except IndexError:  # another thread took it
                break
            if relay.is_idle_and_alive:
                return relay
            relay.abandon()
            self._known.clear()  # a server that was restarted may have been emptied
        return Relay(self._addresses, f"kw:publish:{os.getpid()}", confirm=self._confirm)

    def _give(self, relay: Relay) -> None:
        if len(self._idle) < self._most and self._pid == os.getpid():
            self._idle.append(relay)
        else:
            relay.close()

    def _forget_if_forked(self) -> None:
        """In a child the connections are the parent's: close the descriptors, say nothing."""
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        inherited, self._idle = self._idle, []
        for relay in inherited:
            relay.abandon()


def _target(message: Any) -> tuple[str, str]:
    return message.exchange, message.queue or message.routing_key


def _outgoing(message: Any) -> Outgoing:
    given = message.properties
    properties = {
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "delivery_mode": given.get("delivery_mode") or 2,
        "priority": message.priority or 0,
        "correlation_id": given.get("correlation_id"),
        "reply_to": given.get("reply_to"),
        "expiration": given.get("expiration"),
    }
    routing_key = message.routing_key if message.exchange else message.queue or message.routing_key
    header = write_properties(properties, message.headers)
    seconds = _delay_of(message)
    if seconds:
        return Outgoing(
            delayed_delivery.ENTRY, delayed_delivery.routing_key(seconds, routing_key), header, message.body
        )
    return Outgoing(message.exchange, routing_key, header, message.body)


def _delay_of(message: Any) -> int:
    """Seconds to wait in the server before it is delivered; 0 when the worker is to see to it."""
    spec = getattr(message, "declares", None)
    if message.eta is None or spec is None or not message.exchange:
        return 0
    if not delayed_delivery.can_delay(message.exchange_type, spec.queue_arguments):
        return 0
    return max(0, min(int(message.eta - time.time()), delayed_delivery.LONGEST_S))


def _declare(relay: Relay, message: Any) -> None:
    """What a message needs: its queue if there is none of that name, its exchange, and the binding."""
    spec = getattr(message, "declares", None)
    queue = message.queue or ("" if message.exchange else message.routing_key)
    if queue and not relay.exists(queue):
        relay.declare_queue(queue, spec.queue_arguments if spec is not None else {})
    if spec is not None:
        exchange, key = spec.exchange or queue, spec.routing_key or queue
        relay.bind(queue, exchange, spec.exchange_type, key)
        if delayed_delivery.can_delay(spec.exchange_type, spec.queue_arguments):
            delayed_delivery.declare(relay, relay.addresses.delayed_queue_type)
            delayed_delivery.bind(relay, queue, exchange, key)
    elif queue:
        # Bound to an exchange of its name, or the one that was asked for: what Celery declares.
        relay.bind(queue, message.exchange or queue, message.exchange_type, message.routing_key or queue)
