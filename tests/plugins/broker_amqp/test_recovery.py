"""Whose fault a second delivery is: the server marks what it took from a dead holder, and nothing else is marked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import amqp
import pytest

from kernel_broker_amqp import intake, topology
from kernel_broker_amqp.broker import AmqpBroker
from kernel_broker_amqp.lane import Receipt, Session
from kernel_worker import Broker, QueueSpec, Settlement, Verdict
from kernel_worker.testing import MakeBroker, broker_factory, collect, envelope
from kernel_worker.testing.broker_base import QUEUE, ack, counts, ids, settle
from kernel_worker.testing.waiting import eventually
from tests.servers import RabbitServer

LIMITED = {"x-queue-type": "quorum", "x-delivery-limit": 1}


@pytest.fixture(params=[{}, LIMITED], ids=["classic", "quorum with a delivery limit"])
def make_broker(request: pytest.FixtureRequest, amqp_url: str) -> Iterator[MakeBroker]:
    specs = (QueueSpec(QUEUE, arguments=request.param),)
    with broker_factory(AmqpBroker, amqp_url, queues=specs) as make:
        yield make


def die(broker: Broker) -> None:
    """End as a killed process does: its sockets are closed without a word."""
    assert isinstance(broker, AmqpBroker)
    assert broker._link is not None
    broker._link.fail("killed by the test")
    broker._link.abandon()


def publish(broker: Broker, *names: str) -> None:
    for name in names:
        broker.publish(QUEUE, envelope(task_id=name))


def test_message_of_a_dead_holder_is_recovered_and_not_counted(make_broker: MakeBroker) -> None:
    broker, other = make_broker(), make_broker()
    publish(broker, "t1")
    collect(broker, 1)

    die(broker)
    (got,) = collect(other, 1)

    assert (got.recovered, got.redelivered, got.attempts) == (True, True, 0)


def test_counted_message_comes_back_counted_and_not_recovered(make_broker: MakeBroker) -> None:
    """What the kernel does before it runs a recovered message."""
    broker, other = make_broker(), make_broker()
    publish(broker, "t1")
    collect(broker, 1)
    die(broker)

    settle(other, Verdict.REQUEUE, *collect(other, 1), count=True)
    (got,) = collect(other, 1)

    assert (got.recovered, got.attempts) == (False, 1)


def test_fetch_that_waits_brings_at_once_what_went_back_to_be_counted(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel keeps a slot for it. What only goes back is no hurry, and mostly for others."""
    monkeypatch.setattr(intake, "_LOOK_IDLE_S", 60.0)
    broker = make_broker()
    assert isinstance(broker, AmqpBroker)
    publish(broker, "t1")
    (held,) = collect(broker, 1)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(broker.fetch, 1, 20.0)
        eventually(broker._intake.current().link.reading.locked, message="the fetch to wait")
        began = time.monotonic()
        settle(broker, Verdict.REQUEUE, held, count=True)
        got = waiting.result(25) or collect(broker, 1)  # it may have begun to wait only now
    took = time.monotonic() - began

    assert [(each.attempts, each.recovered) for each in got] == [(1, False)]
    assert took < 10


@pytest.mark.parametrize("how", ["requeued", "delayed", "closed"])
def test_what_the_kernel_gives_back_is_not_recovered(make_broker: MakeBroker, how: str) -> None:
    broker, other = make_broker(), make_broker()
    publish(broker, "t1")
    (held,) = collect(broker, 1)

    if how == "requeued":
        settle(broker, Verdict.REQUEUE, held)
    elif how == "delayed":
        settle(broker, Verdict.DELAY, held, until=time.time() + 0.05)
    else:
        broker.close()
    (got,) = collect(other, 1)

    assert (got.recovered, got.attempts) == (False, 0)


def test_message_that_is_given_back_comes_again_when_its_former_delivery_is_settled(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cause: it was begun in between. Had it ended its worker then, it would have been in the queue twice."""
    broker = make_broker()
    assert isinstance(broker, AmqpBroker)
    publish(broker, "t1")
    held = collect(broker, 1)
    acknowledge, settled = Session.acknowledge, threading.Event()
    monkeypatch.setattr(intake, "_MOVE_S", 10.0)

    def slowly(session: Session, receipts: Iterable[Receipt]) -> None:
        found = list(receipts)
        time.sleep(0.3 if found else 0.0)
        acknowledge(session, found)
        if found:
            settled.set()

    monkeypatch.setattr(Session, "acknowledge", slowly)
    with ThreadPoolExecutor(1) as pool:
        settling = pool.submit(settle, broker, Verdict.REQUEUE, *held)
        (again,) = collect(broker, 1)
        was_settled = settled.is_set()
        settling.result()

    assert again.redelivered
    assert was_settled


def test_recovered_message_that_is_given_back_uncounted_stays_recovered(make_broker: MakeBroker) -> None:
    broker, other = make_broker(), make_broker()
    publish(broker, "t1")
    collect(broker, 1)
    die(broker)

    settle(other, Verdict.REQUEUE, *collect(other, 1))
    settle(other, Verdict.DELAY, *collect(other, 1), until=time.time() + 0.05)
    (got,) = collect(other, 1)

    assert (got.recovered, got.attempts) == (True, 0)


def test_messages_given_back_many_times_are_not_taken_away_by_a_delivery_limit(make_broker: MakeBroker) -> None:
    broker = make_broker()
    publish(broker, "t1")

    for _ in range(4):
        settle(broker, Verdict.REQUEUE, *collect(broker, 1))

    assert ids(collect(broker, 1)) == ["t1"]


def test_unknown_tasks_are_counted_apart(make_broker: MakeBroker) -> None:
    broker = make_broker()
    publish(broker, "t1")

    for _ in range(2):
        settle(broker, Verdict.DELAY, *collect(broker, 1), until=time.time() + 0.05, count=True)
    (got,) = collect(broker, 1)

    assert (got.returns, got.attempts, got.recovered) == (2, 0, False)


def test_returned_message_is_taken_before_a_long_backlog_also_by_others(make_broker: MakeBroker) -> None:
    broker, other = make_broker(), make_broker()
    publish(broker, *[f"t{n}" for n in range(20)])
    first = collect(broker, 2)

    broker.settle([Settlement(first[0], Verdict.REQUEUE), Settlement(first[1], Verdict.REQUEUE, count=True)])

    assert ids(collect(other, 2)) == ["t0", "t1"]


def test_returned_message_is_within_reach_of_others_who_know_the_queue_only(
    rabbitmq_server: RabbitServer, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Celery worker beside does not know where kw puts what it gives back; after a while it is in the queue."""
    monkeypatch.setattr(topology, "_RETURNED_MS", 300)
    with broker_factory(AmqpBroker, amqp_url) as make:
        broker = make()
        publish(broker, "t1")
        settle(broker, Verdict.REQUEUE, *collect(broker, 1))
    with amqp.Connection(f"127.0.0.1:{rabbitmq_server.port}", userid="guest", password="guest") as connection:
        channel = connection.channel()

        got = eventually(lambda: channel.basic_get(QUEUE, no_ack=True), message="the message in its queue")

    assert got.headers["id"] == "t1"
    assert not got.delivery_info["redelivered"]


def test_messages_between_two_fetches_that_a_closed_broker_had_are_all_back(make_broker: MakeBroker) -> None:
    broker, other = make_broker(), make_broker()
    publish(broker, *[f"t{n}" for n in range(30)])
    ack(broker, *collect(broker, 10))
    collect(broker, 10)

    broker.close()

    eventually(lambda: counts(other).get("waiting") == 20, message=lambda: str(counts(other)))
    assert sorted(ids(collect(other, 20))) == sorted(f"t{n}" for n in range(10, 30))
