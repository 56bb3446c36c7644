"""A private RabbitMQ node for the length of a run, and its queue filled with the messages the drains work off."""

from __future__ import annotations

import json
import uuid
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import amqp

from tests.servers import RabbitServer

from .settings import QUEUE

FLIGHT = 1000


@contextmanager
def rabbitmq_server(folder: Path) -> Iterator[str]:
    """Start the server, give its URL, stop it. Takes about ten seconds."""
    server = RabbitServer(folder)
    try:
        server.start()
        yield server.url
    finally:
        server.stop()


@contextmanager
def _channel(url: str) -> Iterator[amqp.Channel]:
    host = url.rpartition("@")[2].partition("/")[0]
    with amqp.Connection(host, userid="guest", password="guest") as connection:
        yield connection.channel()


def empty(url: str) -> None:
    """Delete the queue."""
    with _channel(url) as channel:
        channel.queue_delete(QUEUE)


def fill(url: str, envelope: str, number: int) -> None:
    """Make the queue hold `number` messages like this envelope of Celery's client, with fresh ids."""
    message = json.loads(envelope)
    headers, properties = message["headers"], message["properties"]
    body = b64decode(message["body"])
    with _channel(url) as channel:
        channel.queue_delete(QUEUE)
        channel.queue_declare(QUEUE, durable=True, auto_delete=False)
        channel.exchange_declare(QUEUE, "direct", durable=True, auto_delete=False)
        channel.queue_bind(QUEUE, QUEUE, QUEUE)
        for _ in range(number):
            task_id = str(uuid.uuid4())
            channel.basic_publish(
                amqp.Message(
                    body,
                    application_headers={**headers, "id": task_id, "root_id": task_id},
                    content_type=message["content-type"],
                    content_encoding=message["content-encoding"],
                    delivery_mode=2,
                    priority=0,
                    correlation_id=task_id,
                    reply_to=properties["reply_to"],
                ),
                "",
                QUEUE,
            )
        # Answered behind the publishes: they are all in the queue.
        channel.queue_declare(QUEUE, passive=True)
