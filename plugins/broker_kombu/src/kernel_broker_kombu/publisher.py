"""The client's side of any kombu transport. Imports nothing of the kernel, and kombu at the first message."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from .schemes import SCHEMES, missing_library, scheme_of


class KombuPublisher:
    """Sends messages through kombu.

    Any thread; after a fork the child opens a connection of its own.

    :param url: of any transport in `schemes`.
    :param options: `broker_transport_options`.
    :raises ValueError: there is no such transport, or its library is not installed.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        scheme = SCHEMES.get(scheme_of(url))
        if scheme is None:
            raise ValueError(f"{scheme_of(url)}:// is none of kombu's transports that are supported")
        if missing_library(scheme):
            raise ValueError(f"the library {scheme.module} is not installed: pip install '{scheme.install}'")
        self._url = url
        self._options = dict(options)
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._connection: Any = None
        self._channel: Any = None
        self._declared: set[tuple[str, str, str, str]] = set()
        self._errors: tuple[type[BaseException], ...] = (OSError,)

    def publish(self, message: Any) -> None:
        """Send one message; the transport has it when this returns.

        :raises ConnectionError: the server cannot be reached.
        """
        self.publish_many((message,))

    def publish_many(self, messages: Sequence[Any]) -> None:
        """Send all, one after the other. Raises as `publish` does; what was sent then stays sent."""
        if os.getpid() != self._pid:
            self._forget()  # the connection, and perhaps a held lock, are the parent's
        with self._lock:
            try:
                self._open()
                for message in messages:
                    self._send(message)
            except self._errors as error:
                self._drop()
                raise ConnectionError(f"{scheme_of(self._url)}:// failed ({type(error).__name__})") from error

    def close(self) -> None:
        """Close the connection. Idempotent; the next message opens it again."""
        if os.getpid() == self._pid:
            with self._lock:
                self._drop()

    def _open(self) -> None:
        if self._channel is not None:
            return
        from kombu.connection import Connection  # not from kombu: that is no module for long, and threads notice

        self._connection = Connection(self._url, transport_options=self._options)
        self._errors = (OSError, *self._connection.connection_errors, *self._connection.channel_errors)
        self._connection.connect()
        self._channel = self._connection.channel()

    def _send(self, message: Any) -> None:
        place = (message.exchange, message.exchange_type, message.routing_key, message.queue)
        if place not in self._declared:
            self._declare(*place)
            self._declared.add(place)
        prepared = self._channel.prepare_message(
            message.body,
            priority=message.priority,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers=dict(message.headers),
            properties=dict(message.properties),
        )
        key = message.routing_key if message.exchange else message.queue or message.routing_key
        self._channel.basic_publish(prepared, exchange=message.exchange, routing_key=key)

    def _declare(self, exchange: str, exchange_type: str, routing_key: str, queue: str) -> None:
        """A virtual transport keeps bindings in the process, so whoever sends has to say them too."""
        from kombu.entity import Exchange, Queue

        if exchange:
            where = Exchange(exchange, type=exchange_type or "direct")
            if queue:
                Queue(queue, where, routing_key=routing_key)(self._channel).declare()
            else:
                where(self._channel).declare()
        else:
            self._channel.queue_declare(queue or routing_key)

    def _drop(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        self._declared.clear()
        if connection is not None:
            try:
                connection.release()
            except self._errors:
                pass  # it is gone already
