"""Queues, exchanges and bindings are Celery's: whoever comes first declares them, and both sides send and take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import amqp
import celery
import pytest
from kombu import Exchange, Queue

from kernel_app import App
from kernel_app.worker import NativeLoader
from kernel_broker_amqp.broker import AmqpBroker
from kernel_worker import BrokerContext
from kernel_worker.drivers import LoadContext
from kernel_worker.testing import collect
from kernel_worker.testing.broker_base import ack, ids, nothing_comes
from tests.servers import RabbitServer

QUORUM = {"x-queue-type": "quorum"}
TOPIC = Exchange("kwtest.topic", type="topic")


def settings_of(kind: str) -> dict[str, Any]:
    """Settings that both libraries read."""
    if kind == "plain":
        return {}
    if kind == "quorum by default":
        return {"task_default_queue_type": "quorum"}
    if kind == "priorities":
        return {"task_queue_max_priority": 10, "task_default_priority": 5}
    queues = {
        "direct": Queue("kwtest", Exchange("kwtest.direct", type="direct"), routing_key="key"),
        "topic": Queue("kwtest", TOPIC, routing_key="news.#", max_priority=3),
        "fanout": Queue("kwtest", Exchange("kwtest.fanout", type="fanout"), routing_key=""),
        "topic and quorum": Queue("kwtest", TOPIC, routing_key="news.sport", queue_arguments=QUORUM),
    }
    return {"task_queues": [queues[kind]], "task_default_queue": "kwtest"}


KINDS = ("plain", "quorum by default", "priorities", "direct", "topic", "fanout", "topic and quorum")


@pytest.fixture
def clean(rabbitmq_server: RabbitServer, amqp_url: str) -> Iterator[amqp.Channel]:
    with amqp.Connection(f"127.0.0.1:{rabbitmq_server.port}", userid="guest", password="guest") as connection:
        channel = connection.channel()
        yield channel
        for name in ("kwtest", "kw.returned.kwtest", *(f"celery_delayed_{n}" for n in range(28))):
            channel.queue_delete(name)
        for name in ("kwtest.direct", "kwtest.topic", "kwtest.fanout", "kwtest"):
            channel.exchange_delete(name)
        for name in ("celery_delayed_delivery", *(f"celery_delayed_{n}" for n in range(28))):
            channel.exchange_delete(name)


def declare_as_celery(app: celery.Celery) -> None:
    with app.connection() as connection:
        for queue in app.amqp.queues.values():
            queue(connection.default_channel).declare()


@pytest.mark.parametrize("first", ["celery first", "kw client first", "kw worker first"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_declare_the_same_and_reach_each_other(amqp_url: str, clean: amqp.Channel, kind: str, first: str) -> None:
    settings = settings_of(kind)
    peer = celery.Celery("peer", broker=amqp_url, set_as_current=False)
    peer.conf.update(settings)
    client = App("client", broker_url=amqp_url, result_backend=None, **settings)
    options: dict[str, Any] = {"routing_key": "news.sport"} if "topic" in kind else {}
    info = NativeLoader().load(client, LoadContext()).info
    broker = AmqpBroker(BrokerContext(amqp_url, queues=info.queues))

    if first == "celery first":
        declare_as_celery(peer)
    elif first == "kw client first":
        client.send_task("t.kw", task_id="from-kw", **options)
    broker.connect()
    broker.declare(info.queues)
    declare_as_celery(peer)
    if first != "kw client first":
        client.send_task("t.kw", task_id="from-kw", **options)
    peer.send_task("t.celery", task_id="from-celery", **options)
    got = collect(broker, 2)
    ack(broker, *got)

    assert sorted(ids(got)) == ["from-celery", "from-kw"]
    assert nothing_comes(broker)
    broker.close()
    client.close()
    peer.close()


@pytest.mark.parametrize("sender", ["kw", "celery"])
def test_delayed_message_to_a_quorum_queue_waits_in_celerys_topology(
    amqp_url: str, clean: amqp.Channel, sender: str
) -> None:
    settings = settings_of("topic and quorum")
    client = App("client", broker_url=amqp_url, result_backend=None, **settings)
    peer = celery.Celery("peer", broker=amqp_url, set_as_current=False)
    peer.conf.update(settings)
    info = NativeLoader().load(client, LoadContext()).info
    broker = AmqpBroker(BrokerContext(amqp_url, queues=info.queues))
    broker.connect()
    broker.declare(info.queues)
    began = time.time()

    if sender == "kw":
        client.send_task("t.kw", task_id="late", countdown=3.9, routing_key="news.sport")
    else:
        peer.send_task("t.kw", task_id="late", countdown=3.9, routing_key="news.sport")
    early = broker.fetch(1, 0.3)
    (got,) = collect(broker, 1, within_s=10)

    assert early == []
    assert got.properties["delivery_info"]["routing_key"] == "0." * 26 + "1.1.news.sport"
    assert 2.0 <= time.time() - began < 8
    assert got.headers["id"] == "late"
    broker.close()
    client.close()
    peer.close()
