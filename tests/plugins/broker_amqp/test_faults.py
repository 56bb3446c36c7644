"""What a RabbitMQ server does to a worker: deleted queues, closed connections, conflicts. None of it ends the worker."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager

import amqp
import pytest

from kernel_broker_amqp import wire
from kernel_broker_amqp.broker import AmqpBroker
from kernel_worker import BrokerContext, BrokerRefused, BrokerUnavailable, ConfigError, QueueSpec, Verdict
from kernel_worker.testing import MakeBroker, collect, envelope
from kernel_worker.testing.broker_base import QUEUE, ack, counts, ids, nothing_comes, queues, settle
from kernel_worker.testing.waiting import eventually
from tests.faults.proxy import Proxy
from tests.servers import RabbitServer


@pytest.fixture
def channel(rabbitmq_server: RabbitServer, amqp_url: str) -> Iterator[amqp.Channel]:
    with amqp.Connection(f"127.0.0.1:{rabbitmq_server.port}", userid="guest", password="guest") as connection:
        yield connection.channel()


@contextmanager
def tunnelled(server: RabbitServer, **options: float) -> Iterator[tuple[Proxy, AmqpBroker]]:
    tunnel = Proxy(server.port)
    broker = AmqpBroker(BrokerContext(f"amqp://guest:guest@127.0.0.1:{tunnel.port}//", options=options))
    broker.connect()
    broker.declare(broker.context.queues)
    try:
        yield tunnel, broker
    finally:
        broker.close()
        tunnel.close()


def fetch_for(broker: AmqpBroker, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert broker.fetch(10, 1.0) == []


def reconnect(broker: AmqpBroker) -> None:
    broker.connect()
    broker.declare(broker.context.queues)


def test_deleted_queue_is_declared_and_consumed_again(make_broker: MakeBroker, channel: amqp.Channel) -> None:
    broker, other = make_broker(), make_broker()
    assert broker.fetch(10, 0.05) == []  # its consumers stay open

    channel.queue_delete(QUEUE)
    broker.fetch(10, 0.5)
    other.publish(QUEUE, envelope(task_id="t1"))

    assert ids(collect(broker, 1)) == ["t1"]


def test_queue_that_was_deleted_between_fetches_is_declared_again(
    make_broker: MakeBroker, channel: amqp.Channel
) -> None:
    broker, other = make_broker(), make_broker()
    channel.queue_delete(QUEUE)
    broker.fetch(10, 0.5)

    other.publish(QUEUE, envelope(task_id="t1"))

    assert ids(collect(broker, 1)) == ["t1"]


@pytest.mark.parametrize("trouble", ["deleted", "closed"])
def test_trouble_with_one_queue_leaves_what_is_held_of_others(
    make_broker: MakeBroker, channel: amqp.Channel, trouble: str
) -> None:
    broker, other = make_broker(queues=queues(QUEUE, "another")), make_broker(queues=queues(QUEUE, "another"))
    other.publish("another", envelope(task_id="kept"))
    (kept,) = collect(broker, 1)

    if trouble == "deleted":
        channel.queue_delete(QUEUE)
    else:  # the server closes a channel with 406 as it does when an acknowledgement took too long
        session = broker._intake.current()
        session.link.send(wire.ack(session.of_queue[QUEUE].number, 4711))
    broker.fetch(10, 0.5)
    other.publish(QUEUE, envelope(task_id="t1"))
    got = collect(broker, 1)
    ack(broker, kept, *got)

    assert ids(got) == ["t1"]
    eventually(lambda: counts(other, "another") == counts(other) == {}, message="both to be acknowledged")
    assert nothing_comes(other)


def test_closed_channel_gives_its_messages_back_and_settles_nothing_old(make_broker: MakeBroker) -> None:
    broker = make_broker()
    broker.publish(QUEUE, envelope(task_id="t1"))
    (stale,) = collect(broker, 1)
    session = broker._intake.current()

    session.link.send(wire.ack(stale.receipt.lane.number, 4711))
    (fresh,) = collect(broker, 1)
    ack(broker, stale)

    assert (fresh.recovered, fresh.attempts) == (True, 0)
    assert counts(broker) == {"in_flight": 1}


def test_queue_that_may_not_be_consumed_is_refused_by_name(make_broker: MakeBroker, channel: amqp.Channel) -> None:
    broker = make_broker()
    channel.basic_consume(QUEUE, exclusive=True)

    with pytest.raises(BrokerRefused, match=r"queue .celery. cannot be consumed: .*ACCESS_REFUSED"):
        broker.fetch(10, 5.0)


def test_cut_connection_redelivers_and_old_deliveries_settle_nothing(
    rabbitmq_server: RabbitServer, amqp_url: str
) -> None:
    with tunnelled(rabbitmq_server) as (tunnel, broker):
        broker.publish(QUEUE, envelope(task_id="t1"))
        stale = collect(broker, 1)
        tunnel.cut()
        with pytest.raises(BrokerUnavailable):
            broker.fetch(10, 5.0)
        reconnect(broker)
        fresh = collect(broker, 1)

        for verdict in Verdict:
            settle(broker, verdict, *stale, reason="stale", count=True)
        found = broker.size(QUEUE)
        ack(broker, *fresh)

        assert fresh[0].redelivered
        assert fresh[0].recovered
        assert (found.waiting, found.in_flight, found.parked, found.dead) == (0, 1, 0, 0)


def test_settling_over_a_cut_connection_loses_and_doubles_nothing(rabbitmq_server: RabbitServer, amqp_url: str) -> None:
    with tunnelled(rabbitmq_server) as (tunnel, broker):
        broker.publish(QUEUE, envelope(task_id="t1"))
        held = collect(broker, 1)
        tunnel.cut()

        with contextlib.suppress(BrokerUnavailable):  # or it is told in time that the message is no longer ours
            settle(broker, Verdict.REQUEUE, *held)
        reconnect(broker)
        with contextlib.suppress(BrokerUnavailable):
            settle(broker, Verdict.REQUEUE, *held)

        try:
            found = collect(broker, 1)
        except BrokerUnavailable:  # another connection of the driver was noticed only now
            reconnect(broker)
            found = collect(broker, 1)
        assert set(ids(found)) == {"t1"}


def test_lost_settle_connection_is_opened_again(rabbitmq_server: RabbitServer, amqp_url: str) -> None:
    with tunnelled(rabbitmq_server) as (tunnel, broker):
        for n in range(2):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        settle(broker, Verdict.DEAD, *collect(broker, 1), reason="first")
        tunnel.cut()
        with pytest.raises(BrokerUnavailable):
            broker.fetch(10, 5.0)
        reconnect(broker)

        settle(broker, Verdict.DEAD, *collect(broker, 1), reason="second")

        assert {letter.reason for letter in broker.dead_letters(QUEUE)} == {"first", "second"}


def test_connection_that_goes_silent_is_noticed_by_its_heartbeat(rabbitmq_server: RabbitServer, amqp_url: str) -> None:
    with tunnelled(rabbitmq_server, heartbeat=1) as (tunnel, broker), tunnel.blackhole():
        began = time.monotonic()

        with pytest.raises(BrokerUnavailable, match="silent"):
            fetch_for(broker, 10)

        assert time.monotonic() - began < 8


def test_queue_with_other_arguments_is_refused_by_name(amqp_url: str, channel: amqp.Channel) -> None:
    channel.queue_declare(QUEUE, durable=True, auto_delete=False)
    broker = AmqpBroker(BrokerContext(amqp_url, queues=(QueueSpec(QUEUE, arguments={"x-max-priority": 5}),)))
    broker.connect()

    with pytest.raises(BrokerRefused, match=r"queue .celery. exists with other properties.*x-max-priority"):
        broker.declare(broker.context.queues)
    broker.close()


def test_queue_for_which_nothing_is_asked_is_used_as_it_is(amqp_url: str, channel: amqp.Channel) -> None:
    channel.queue_declare(QUEUE, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
    broker = AmqpBroker(BrokerContext(amqp_url))
    broker.connect()

    broker.declare(broker.context.queues)
    broker.publish(QUEUE, envelope(task_id="t1"))

    assert ids(collect(broker, 1)) == ["t1"]
    broker.close()


def test_messages_that_a_resting_worker_was_sent_go_back(make_broker: MakeBroker) -> None:
    """Consumers that a fetch without result left open are closed when no fetch follows."""
    resting, other = make_broker(), make_broker()
    resting.fetch(10, 0.0)
    resting.fetch(10, 0.05)
    other.publish(QUEUE, envelope(task_id="t1"))

    resting._intake.fetched_at -= 60
    eventually(lambda: resting.renew([]) or ids(other.fetch(1, 0.1)) == ["t1"], message="the message to come back")


def test_wrong_password_is_refused_without_showing_it(rabbitmq_server: RabbitServer) -> None:
    broker = AmqpBroker(BrokerContext(f"amqp://guest:hidden@127.0.0.1:{rabbitmq_server.port}//"))

    with pytest.raises(BrokerRefused, match="ACCESS_REFUSED") as caught:
        broker.connect()

    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("url", ["amqp://h:port//", "amqps://h//?ssl_cert_reqs=maybe", "amqp://h//?heartbeat=x"])
def test_address_that_makes_no_sense_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError, match="amqp broker"):
        AmqpBroker(BrokerContext(url))
