"""Addresses, credentials, TLS, alarms and restarts of the server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel_app.message import Message
from kernel_broker_amqp.broker import AmqpBroker
from kernel_broker_amqp.publisher import AmqpPublisher
from kernel_worker import BrokerContext, BrokerRefused, BrokerUnavailable, Settlement, Verdict
from kernel_worker.testing import MakeBroker, collect, envelope
from kernel_worker.testing.broker_base import QUEUE, ack, counts, ids, settle
from kernel_worker.testing.waiting import eventually
from tests.faults.proxy import Proxy
from tests.servers import RabbitServer, free_port, program


@contextlib.contextmanager
def connected(url: str, **options: object) -> Iterator[AmqpBroker]:
    broker = AmqpBroker(BrokerContext(url, options=options))
    try:
        broker.connect()
        broker.declare(broker.context.queues)
        yield broker
    finally:
        broker.close()


def refused(action: Callable[[], object]) -> str:
    """The error of the connection; "" when it went well."""
    try:
        action()
    except (BrokerUnavailable, ConnectionError) as error:
        return str(error)
    return ""


def blocked(action: Callable[[], object]) -> str:
    """The error of the connection if it says so; "" also when it says less, as before the server has told."""
    reason = refused(action)
    return reason if "blocked" in reason else ""


def message(task_id: str = "t1") -> Message:
    return Message(QUEUE, b"[[], {}, {}]", headers={"task": "t", "id": task_id}, properties={})


# --------------------------------------------------------------------------- addresses


def test_next_address_is_used_when_one_does_not_answer(amqp_url: str) -> None:
    urls = f"amqp://127.0.0.1:{free_port()}//;{amqp_url}"

    with connected(urls) as broker:
        publisher = AmqpPublisher(urls, {})
        publisher.publish(message())
        publisher.close()

        assert ids(collect(broker, 1)) == ["t1"]


def test_error_of_the_last_address_is_told_when_none_answers() -> None:
    last = free_port()
    broker = AmqpBroker(BrokerContext(f"amqp://127.0.0.1:{free_port()}//;amqp://u:hidden@127.0.0.1:{last}//"))

    with pytest.raises(BrokerUnavailable, match=str(last)) as caught:
        broker.connect()

    assert "hidden" not in str(caught.value)


def test_password_is_read_again_at_each_attempt(tmp_path: Path, rabbitmq_server: RabbitServer, amqp_url: str) -> None:
    secret = tmp_path / "secret"
    url = f"amqp://guest@127.0.0.1:{rabbitmq_server.port}//?password_file={secret}"
    broker = AmqpBroker(BrokerContext(url))

    with pytest.raises(BrokerUnavailable, match="password_file"):
        broker.connect()
    secret.write_text("outdated\n")
    with pytest.raises(BrokerRefused, match="ACCESS_REFUSED"):
        broker.connect()
    secret.write_text("guest\n")
    broker.connect()

    broker.close()


# --------------------------------------------------------------------------- TLS


def test_tls_verifies_chain_and_name(rabbitmq_server: RabbitServer, amqp_url: str) -> None:
    program("openssl")
    where = f"{rabbitmq_server.tls_port}//"
    trusted = {"ssl_ca_certs": str(rabbitmq_server.authority)}

    with pytest.raises(BrokerUnavailable, match="CERTIFICATE_VERIFY_FAILED"), connected(f"amqps://localhost:{where}"):
        pass
    with (
        pytest.raises(BrokerUnavailable, match="CERTIFICATE_VERIFY_FAILED"),
        connected(f"amqps://127.0.0.1:{where}", **trusted),
    ):
        pass
    with connected(f"amqps://localhost:{where}", **trusted) as broker:
        broker.publish(QUEUE, envelope(task_id="t1"))
        ack(broker, *collect(broker, 1))
        eventually(lambda: counts(broker) == {}, message="nothing to be left")


def test_large_messages_and_many_settlements_pass_through_tls(rabbitmq_server: RabbitServer, amqp_url: str) -> None:
    """Frames larger than TLS records, in both directions at the same time."""
    program("openssl")
    url = f"amqps://localhost:{rabbitmq_server.tls_port}//?ssl_ca_certs={rabbitmq_server.authority}"
    with connected(url) as broker:
        for n in range(40):
            broker.publish(QUEUE, envelope(task_id=f"t{n}", padding=150_000))

        for _ in range(2):
            got = collect(broker, 20, limit=5, within_s=10)
            broker.settle([Settlement(each, Verdict.ACK) for each in got])

        eventually(lambda: counts(broker) == {}, message="nothing to be left")


# --------------------------------------------------------------------------- silence


@pytest.mark.parametrize("kind", ["consuming", "settling"])
def test_half_open_connection_is_noticed_while_nothing_is_fetched(
    rabbitmq_server: RabbitServer, amqp_url: str, kind: str
) -> None:
    tunnel = Proxy(rabbitmq_server.port)
    with connected(f"amqp://127.0.0.1:{tunnel.port}//", heartbeat=2, read_timeout=30) as broker:
        broker.publish(QUEUE, envelope(task_id="t1"))
        (held,) = collect(broker, 1)
        settle(broker, Verdict.REQUEUE, held)
        (held,) = collect(broker, 1)
        began = time.monotonic()

        with tunnel.blackhole():
            if kind == "consuming":
                reason = eventually(lambda: refused(lambda: broker.renew([held])), within_s=15)
            else:
                reason = refused(lambda: settle(broker, Verdict.REQUEUE, held))
        tunnel.close()

    assert "silent" in reason
    assert time.monotonic() - began < 10


def test_connections_cut_again_and_again_lose_nothing(rabbitmq_server: RabbitServer, amqp_url: str) -> None:
    tunnel = Proxy(rabbitmq_server.port)
    names = [f"t{n}" for n in range(50)]
    done: set[str] = set()
    with connected(f"amqp://127.0.0.1:{tunnel.port}//") as broker, connected(amqp_url) as safe:
        for name in names:
            safe.publish(QUEUE, envelope(task_id=name))
        deadline = time.monotonic() + 20
        cuts = 0
        while len(done) < 50 and time.monotonic() < deadline:
            try:
                got = broker.fetch(5, 0.2)
                if cuts < 3 and got:
                    cuts += 1
                    tunnel.cut()
                settled = [Settlement(each, Verdict.REQUEUE if n % 2 else Verdict.ACK) for n, each in enumerate(got)]
                broker.settle(settled)
                done |= {str(each.headers["id"]) for each in got[::2]}
            except BrokerUnavailable:
                broker.connect()
                broker.declare(broker.context.queues)
        tunnel.close()

    assert sorted(done) == sorted(names)


# --------------------------------------------------------------------------- alarms


def test_server_that_takes_no_publishes_holds_up_no_acknowledgement(
    rabbitmq_server: RabbitServer, make_broker: MakeBroker
) -> None:
    """connection.blocked: publishers fail within their deadline and say why; consuming and acknowledging go on."""
    broker = make_broker(options={"read_timeout": 0.5})
    for n in range(4):
        broker.publish(QUEUE, envelope(task_id=f"t{n}"))
    got = collect(broker, 3)
    settle(broker, Verdict.DEAD, got.pop(), reason="opens the settle connection")
    publisher = AmqpPublisher(rabbitmq_server.url, {"read_timeout": 0.5})
    publisher.publish(message("t4"))

    rabbitmq_server.control("set_vm_memory_high_watermark", "0.00001")
    try:
        refusal = eventually(lambda: blocked(lambda: publisher.publish(message("extra"))), within_s=10)
        verdicts = [Settlement(got[0], Verdict.DEAD, "moved"), Settlement(got[1], Verdict.ACK)]
        began = time.monotonic()
        eventually(lambda: blocked(lambda: broker.settle(verdicts)), message="the settling to be refused")
        took_s = time.monotonic() - began
        fetched = broker.fetch(1, 2.0)
    finally:
        rabbitmq_server.control("set_vm_memory_high_watermark", "0.4")
    eventually(lambda: not refused(lambda: settle(broker, Verdict.DEAD, got[0], reason="moved")), within_s=10)

    assert "blocked: low on memory" in refusal
    assert took_s < 5
    assert len(fetched) == 1
    # Eventually: the server may close a connection that it had blocked.
    dead = {"opens the settle connection", "moved"}
    eventually(lambda: {letter.reason for letter in broker.dead_letters(QUEUE)} == dead, message=str(dead))
    assert counts(broker).get("in_flight") == 1  # what was fetched meanwhile
    publisher.close()


# --------------------------------------------------------------------------- restarts


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_killed_and_restarted_server_keeps_what_was_confirmed(start_rabbitmq: Callable[[], RabbitServer]) -> None:
    server = start_rabbitmq()
    names = {f"t{n}" for n in range(100)}
    with connected(server.url) as broker, contextlib.closing(AmqpPublisher(server.url, {})) as publisher:
        publisher.publish_many([message(name) for name in names])
        held = collect(broker, 10)
        settle(broker, Verdict.DELAY, *held[:5], until=time.time() + 1)
        settle(broker, Verdict.DEAD, held[5], reason="kept")

        for _ in range(3):
            server.kill()
            server.start()

        eventually(lambda: not refused(lambda: (broker.connect(), broker.declare(broker.context.queues))), within_s=20)
        letters = [letter.reason for letter in broker.dead_letters(QUEUE)]
        # What was acknowledged just before the end may come once more.
        left = names - set(ids(held[5:6]))
        eventually(lambda: left.difference_update(ids(broker.fetch(100, 0.2))) or not left, within_s=20)
        assert letters == ["kept"]


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_acknowledgement_that_takes_longer_than_the_server_allows_costs_that_message_only(
    start_rabbitmq: Callable[[], RabbitServer],
) -> None:
    """RabbitMQ's consumer_timeout, 30 minutes by default."""
    server = start_rabbitmq()
    server.control("eval", "application:set_env(rabbit, consumer_timeout, 1000).")
    server.control("eval", "application:set_env(rabbit, channel_tick_interval, 500).")
    with connected(server.url) as broker:
        broker.publish(QUEUE, envelope(task_id="slow"))
        (held,) = collect(broker, 1)

        def again() -> bool:
            broker.renew([held])
            return not held.receipt.lane.is_open

        eventually(again, within_s=30, message="the server to close the channel")
        (fresh,) = collect(broker, 1)
        ack(broker, held)

        assert (fresh.headers["id"], fresh.recovered) == ("slow", True)
        assert broker._link is not None
        assert broker._link.is_open
