"""Reading dead letters takes them out of their queue and puts them back; none may be missed by who comes next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kernel_broker_amqp import relay, wire
from kernel_broker_amqp.broker import AmqpBroker
from kernel_broker_amqp.link import Link
from kernel_broker_amqp.relay import Relay
from kernel_broker_amqp.wire import Received
from kernel_worker import Broker, QueueSpec, Verdict
from kernel_worker.testing import MakeBroker, broker_factory, collect, envelope
from kernel_worker.testing.broker_base import QUEUE, counts, settle


@pytest.fixture(params=[{}, {"x-queue-type": "quorum"}], ids=["classic", "quorum"])
def make_broker(request: pytest.FixtureRequest, amqp_url: str) -> Iterator[MakeBroker]:
    specs = (QueueSpec(QUEUE, arguments=request.param),)
    with broker_factory(AmqpBroker, amqp_url, queues=specs) as make:
        yield make


def bury(broker: Broker, *names: str) -> None:
    for name in names:
        broker.publish(QUEUE, envelope(task_id=name))
    settle(broker, Verdict.DEAD, *collect(broker, len(names)), reason="r")


def test_letters_that_were_read_are_back_before_the_channel_is_closed(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cause: the server puts back what a closed channel held only after its answer, and a replay missed it."""
    broker, other = make_broker(), make_broker()
    bury(broker, "a", "b", "c")
    closing = wire.frame(relay._SIFTING, wire.CHANNEL_CLOSE, wire.GOOD_BYE)
    send = Link.send
    found: list[int] = []

    def look_before_closing(link: Link, data: bytes) -> None:
        if closing in data:
            monkeypatch.setattr(Link, "send", send)
            found.append(len(other.dead_letters(QUEUE)))
        send(link, data)

    monkeypatch.setattr(Link, "send", look_before_closing)
    listed = len(broker.dead_letters(QUEUE))

    assert (listed, found) == (3, [3])


def test_letters_that_were_read_are_counted(amqp_url: str) -> None:
    """In classic queues; what is counted of quorum queues may be late anyway."""
    with broker_factory(AmqpBroker, amqp_url) as make:
        broker, other = make(), make()
        bury(broker, *[f"t{n}" for n in range(300)])

        found = [(len(broker.dead_letters(QUEUE, 1_000)), counts(other)) for _ in range(20)]

    assert found == [(300, {"dead": 300})] * 20


@pytest.mark.parametrize("end", ["replayed", "dropped"])
def test_all_letters_are_found_when_the_server_counts_none(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Cause: a busy server that is asked for the size of a quorum queue says 0, and "all" was none."""
    broker = make_broker()
    bury(broker, "a", "b", "c")
    monkeypatch.setattr(Relay, "sizes", lambda relay, queues: [0 for _ in queues])

    count = broker.replay_dead(QUEUE) if end == "replayed" else broker.drop_dead(QUEUE)

    assert count == 3
    assert broker.dead_letters(QUEUE) == []


def test_replay_of_all_ends_when_letters_come_meanwhile(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that dies at once would be replayed without end."""
    broker, other = make_broker(), make_broker()
    bury(broker, "a", "b")
    monkeypatch.setattr(relay, "_SIFTED_AT_ONCE", 1)
    get, coming = Relay._get, [f"t{n}" for n in range(5)]

    def bury_one_more(link: Link, queue: str) -> list[Received]:
        found = get(link, queue)
        if coming:
            bury(other, coming.pop())
        return found

    monkeypatch.setattr(Relay, "_get", staticmethod(bury_one_more))

    assert broker.replay_dead(QUEUE) == 2


def test_letters_are_kept_however_often_they_are_read(make_broker: MakeBroker) -> None:
    """RabbitMQ 4 drops what was put back into a quorum queue 20 times, unless the queue was declared to keep it."""
    broker = make_broker()
    bury(broker, "a")

    for _ in range(25):
        assert len(broker.dead_letters(QUEUE)) == 1
