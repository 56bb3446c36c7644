"""Broker contract: what is kept. Messages that are no envelopes, counting, purging."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest

from ..drivers import Broker
from ..types import BrokerCapability, DeadLetter, Delivery, QueueInfo, Verdict
from .broker_base import (
    QUEUE,
    BrokerSuite,
    MakeBroker,
    ack,
    collect,
    counts,
    ids,
    nothing_comes,
    settle,
)
from .contract import requires
from .messages import body_of, envelope
from .waiting import eventually

STRANGE = {
    "random bytes": bytes(range(256)),
    "truncated JSON": envelope()[:-40],
    "a JSON list": b"[1, 2, 3]",
    "a JSON number": b"7",
    "null": b"null",
    "no JSON": b"hello",
    "not UTF-8": b'{"body": "\xff\xfe", "headers": {}, "properties": {}}',
    "nested too deep": b"[" * 50_000 + b"]" * 50_000,
    "headers are a list": b'{"body": "", "content-type": "application/json", "headers": [], "properties": {}}',
    "headers are text": b'{"body": "", "content-type": "application/json", "headers": "x", "properties": {}}',
    "properties are a number": b'{"body": "", "content-type": "application/json", "headers": {}, "properties": 3}',
}


class StorageTests(BrokerSuite, suite=True):
    """`size`, `purge`, and messages that cannot be run."""

    # ------------------------------------------------------------------ strange messages

    @requires(BrokerCapability.DEAD_LETTER)
    @pytest.mark.parametrize("raw", STRANGE.values(), ids=STRANGE.keys())
    def test_message_that_is_no_envelope_ends_in_the_dead_letters(self, broker: Broker, raw: bytes) -> None:
        broker.publish(QUEUE, envelope(task_id="before"))
        broker.publish(QUEUE, raw)
        broker.publish(QUEUE, envelope(task_id="after"))

        good = _sort_out(broker, 2)

        letters = broker.dead_letters(QUEUE)
        assert ids(good) == ["before", "after"]
        assert [letter.raw for letter in letters] == [raw]
        assert letters[0].reason
        # Eventually: AMQP reads dead letters by taking them out and returning them, which it counts late.
        assert eventually(lambda: counts(broker) == {"dead": 1, "in_flight": 2})

    @requires(BrokerCapability.DEAD_LETTER)
    def test_too_large_message_ends_in_the_dead_letters_and_is_not_delivered(
        self, make_broker: MakeBroker, other: Broker
    ) -> None:
        broker = make_broker(max_message_bytes=20_000, lease_s=30.0)
        huge = envelope(task_id="huge", padding=100_000)
        for raw in (envelope(task_id="before"), huge, envelope(task_id="after")):
            other.publish(QUEUE, raw)

        good = _sort_out(broker, 2)

        def dead() -> list[DeadLetter]:
            return broker.dead_letters(QUEUE)

        (letter,) = eventually(dead, message="the large message in the dead letters")
        assert ids(good) == ["before", "after"]
        assert letter.raw == huge
        assert letter.reason

    def test_message_just_below_the_limit_is_delivered(self, make_broker: MakeBroker) -> None:
        raw = envelope(task_id="t1", padding=50_000)
        broker = make_broker(max_message_bytes=len(raw) + 1_000)

        broker.publish(QUEUE, raw)
        (delivery,) = collect(broker, 1)

        assert body_of(delivery.raw, delivery.payload) == body_of(raw)

    # ------------------------------------------------------------------ counting, purging

    def test_size_of_a_queue_nobody_used_is_zero(self, broker: Broker) -> None:
        assert broker.size("never-used") == QueueInfo("never-used", 0)

    def test_purge_deletes_what_waits_and_says_how_many(self, broker: Broker) -> None:
        for n in range(4):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        held = collect(broker, 1)

        assert broker.purge(QUEUE) == 3

        assert counts(broker) == {"in_flight": 1}
        ack(broker, *held)
        assert broker.purge(QUEUE) == 0
        assert nothing_comes(broker)

    @requires(BrokerCapability.DELAY, BrokerCapability.DEAD_LETTER)
    def test_purge_deletes_parked_messages_and_keeps_dead_ones(self, broker: Broker) -> None:
        for n in range(3):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        parked, dead = collect(broker, 2)
        settle(broker, Verdict.DELAY, parked, until=time.time() + 1.0)
        settle(broker, Verdict.DEAD, dead, reason="r")

        assert broker.purge(QUEUE) == 2

        assert counts(broker) == {"dead": 1}
        assert nothing_comes(broker, within_s=1.4)

    @requires(BrokerCapability.PRIORITY)
    def test_purge_and_size_know_every_priority(self, broker: Broker) -> None:
        for priority in self.urgent_first:
            broker.publish(QUEUE, envelope(priority=priority), priority=priority)

        assert counts(broker) == {"waiting": len(self.urgent_first)}
        assert broker.purge(QUEUE) == len(self.urgent_first)
        assert counts(broker) == {}

    def test_purge_of_one_queue_leaves_the_others(self, broker: Broker) -> None:
        broker.publish(QUEUE, envelope())
        broker.publish("another", envelope(queue="another"))

        broker.purge("another")

        assert counts(broker) == {"waiting": 1}


def _sort_out(broker: Broker, count: int) -> list[Delivery]:
    """Fetch until `count` good deliveries came and nothing else waits; bury the ones with an error, as the kernel does."""
    good: list[Delivery] = []
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        batch = broker.fetch(1, 0.1)
        for delivery in batch:
            assert isinstance(delivery.headers, Mapping)
            assert isinstance(delivery.properties, Mapping)
            if delivery.error is None:
                good.append(delivery)
            else:
                settle(broker, Verdict.DEAD, delivery, reason=delivery.error)
        if not batch and len(good) >= count:
            break
    return good
