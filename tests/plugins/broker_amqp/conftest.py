"""Brokers on a private RabbitMQ node whose queues are empty at the start of every test."""

from __future__ import annotations

from collections.abc import Iterator

import amqp
import pytest

from kernel_broker_amqp import topology
from kernel_broker_amqp.broker import AmqpBroker
from kernel_worker.testing import MakeBroker, broker_factory
from tests.servers import RabbitServer

NAMES = ("celery", "elsewhere", "another", "busy", "quiet", "added", "one", "two")


def delete_queues(port: int, *names: str) -> None:
    """Delete queues and all that lies beside them; missing ones do not matter."""
    connection = amqp.Connection(f"127.0.0.1:{port}", userid="guest", password="guest")
    connection.connect()
    channel = connection.channel()
    for name in names:
        delays = [topology.delay_queue(name, step) for step in topology.DELAY_STEPS_S]
        for queue in (name, topology.returned_queue(name), topology.dead_queue(name), *delays):
            channel.queue_delete(queue, nowait=True)
    channel.queue_declare("", exclusive=True)  # answered behind the deletions
    connection.close()


@pytest.fixture
def amqp_url(rabbitmq_server: RabbitServer) -> str:
    """URL of a vhost without the queues that tests use."""
    delete_queues(rabbitmq_server.port, *NAMES)
    return rabbitmq_server.url


@pytest.fixture
def make_broker(amqp_url: str) -> Iterator[MakeBroker]:
    with broker_factory(AmqpBroker, amqp_url) as make:
        yield make
