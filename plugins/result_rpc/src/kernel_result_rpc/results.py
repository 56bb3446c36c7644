"""The result backend: each state of a task is a message to the queue that its sender named (celery 5.7, backends/rpc.py).

    default exchange, routing key = the message's `reply_to`, property correlation_id = its correlation id;
    body = the task meta; not persistent unless `result_persistent`

Only the process that sent a task can read its result. Any thread; after a fork the child has a queue of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from kernel_broker_amqp.errors import AmqpRefused, AmqpUnavailable
from kernel_broker_amqp.relay import Outgoing, Relay
from kernel_broker_amqp.server import Addresses, parse_all
from kernel_broker_amqp.tables import write_properties

from .replies import Replies

_PERSISTENT, _TRANSIENT = 2, 1


class RpcResults:
    """Sends task states to who asked, and reads those that come; see `kernel_worker.ResultBackend`.

    :param url: rpc://, which means the broker of the application.
    :param settings: the application's lowercase settings; obeyed are broker_url, broker_write_url, broker_transport_options,
        result_persistent, result_expires.
    :raises ValueError: the application's broker is not RabbitMQ.
    """

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        self._addresses = _addresses(settings)
        self._delivery_mode = _PERSISTENT if settings.get("result_persistent") else _TRANSIENT
        expires = settings.get("result_expires")
        self._unused_s = expires.total_seconds() if isinstance(expires, timedelta) else expires
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._writing = threading.Lock()
        self._relay = Relay(self._addresses, f"kw:results:{self._pid}")
        self._replies = Replies(self._addresses, self._unused_s)

    def expect_replies(self, reply_to: str) -> None:
        """Have the queue that a message about to be sent names as `reply_to`. Raises ConnectionError."""
        self._check_fork()
        self._replies.expect(reply_to)

    def store(self, results: Sequence[Any]) -> None:
        """Send each state to the queue that its task's sender reads, all confirmed together. States of tasks whose
        message names none are dropped, and so are those whose reader is gone.

        :param results: `kernel_worker.StoredResult`s.
        :raises ConnectionError: the server is away or refuses; some may have been sent.
        """
        self._check_fork()
        messages = [self._message(result) for result in results if result.reply_to]
        if messages:
            with self._writing:
                if not self._relay.is_idle_and_alive:
                    self._relay.close()
                try:
                    self._relay.publish(messages, mandatory=False)
                except (AmqpUnavailable, AmqpRefused):
                    self._relay.close()
                    raise
                except BaseException:  # a time limit of the calling task: confirms are outstanding
                    self._relay.abandon()
                    raise

    def _message(self, result: Any) -> Outgoing:
        properties = {
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "correlation_id": result.correlation_id or result.task_id,
            "delivery_mode": self._delivery_mode,
            "expiration": str(max(1, int(result.expires * 1000))) if result.expires else None,
        }
        return Outgoing("", result.reply_to, write_properties(properties, {}), result.payload)

    def fetch(self, task_id: str) -> bytes | None:
        """The latest state that has come, or None. Raises ConnectionError."""
        self._check_fork()
        return self._replies.latest(task_id)

    def wait(self, task_id: str, timeout: float | None, is_final: Callable[[bytes], bool]) -> bytes | None:
        """Wait until a state for which `is_final(meta)` holds has come; None after `timeout` seconds.

        :raises ConnectionError: there is no connection when the time is over; without a time-out, none for 20 s.
        """
        self._check_fork()
        return self._replies.wait(task_id, timeout, is_final)

    def forget(self, task_id: str) -> None:
        """Drop what has come of a task; what comes later is kept. Raises ConnectionError."""
        self._check_fork()
        self._replies.forget(task_id)

    def close(self) -> None:
        """Close the connections. What was not read is lost: the queue goes with them. Idempotent."""
        self._check_fork()
        self._replies.close()
        with self._writing:
            self._relay.close()

    def _check_fork(self) -> None:
        """In a child the connections are the parent's: close the descriptors, say nothing."""
        if self._pid != os.getpid():
            self._relay.abandon()
            self._replies.abandon()
            self._begin()


def _addresses(settings: Mapping[str, Any]) -> Addresses:
    given = settings.get("broker_write_url") or settings.get("broker_url") or ""
    urls = given if isinstance(given, str) else ";".join(given)
    try:
        return parse_all(urls, settings.get("broker_transport_options") or {})
    except ValueError as error:
        raise ValueError(
            f"rpc:// sends results over the application's broker, which must be RabbitMQ: {error}"
        ) from None
