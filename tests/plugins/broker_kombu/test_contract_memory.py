"""The broker contract on kombu's memory transport: what holds for any transport that goes through kombu itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest

from kernel_broker_kombu import MemoryBroker
from kernel_worker.drivers import Broker
from kernel_worker.errors import BrokerRefused
from kernel_worker.testing import BrokerContract, broker_factory
from kernel_worker.testing.broker_base import QUEUE, collect, settle
from kernel_worker.testing.messages import body_of, envelope
from kernel_worker.types import Verdict

AT_THE_END = "kombu's transports put back at the end of the queue"
ENVELOPES = "kombu sends no bytes that are no envelope"
NEW_TAG = "kombu gives every message a delivery tag of its own, so the envelope is another text"


class TestMemoryBroker(BrokerContract):
    deviations: ClassVar[dict[str, str]] = {
        "test_requeue_puts_the_message_to_the_front": AT_THE_END,
        "test_requeued_batch_comes_before_what_waited": AT_THE_END,
        "test_close_gives_back_at_once_and_counts_nothing": AT_THE_END,
        "test_message_that_is_no_envelope_ends_in_the_dead_letters": ENVELOPES,
        "test_dead_message_is_kept_byte_identical_with_the_reason": NEW_TAG,
        "test_too_large_message_ends_in_the_dead_letters_and_is_not_delivered": NEW_TAG,
        "test_dead_letter_is_found_by_its_id_behind_many_others": NEW_TAG,
        "test_reserved_messages_are_in_flight_and_not_waiting": "kombu tells nobody what another connection holds",
    }

    @pytest.fixture
    def make_broker(self) -> Iterator[Callable[..., Broker]]:
        from kombu.transport import memory

        memory.Channel.queues.clear()
        memory.Transport.global_state.clear()
        with broker_factory(MemoryBroker, "memory://") as make:
            yield make

    def test_requeue_puts_the_message_to_the_front(self, broker: Broker) -> None:
        """To the end, and complete."""
        for n in range(2):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))

        settle(broker, Verdict.REQUEUE, *collect(broker, 1))

        assert [each.headers["id"] for each in collect(broker, 2, limit=1)] == ["t1", "t0"]

    def test_close_gives_back_at_once_and_counts_nothing(self, broker: Broker, other: Broker) -> None:
        for n in range(3):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        collect(broker, 2)

        broker.close()
        got = collect(other, 3, within_s=1.0)

        assert {each.headers["id"]: (each.attempts, each.redelivered) for each in got} == {
            "t0": (0, True),
            "t1": (0, True),
            "t2": (0, False),
        }

    def test_dead_message_is_kept_byte_identical_with_the_reason(self, broker: Broker, other: Broker) -> None:
        """All of it but the delivery tag."""
        raw = envelope("proj.add", ("ä", "\u2028"), task_id="t1")
        broker.publish(QUEUE, raw)

        settle(broker, Verdict.DEAD, *collect(broker, 1), reason="naïve\nsecond line")

        (letter,) = other.dead_letters(QUEUE)
        kept, sent = json.loads(letter.raw), json.loads(raw)
        for each in (kept, sent):
            del each["properties"]["delivery_tag"]
        assert kept == sent
        assert body_of(letter.raw) == body_of(raw)
        assert (letter.reason, letter.queue, letter.attempts) == ("naïve\nsecond line", QUEUE, 0)

    def test_too_large_message_ends_in_the_dead_letters_and_is_not_delivered(
        self, make_broker: Callable[..., Broker], other: Broker
    ) -> None:
        broker = make_broker(max_message_bytes=20_000)
        huge = envelope(task_id="huge", padding=100_000)
        for raw in (huge, envelope(task_id="after")):
            other.publish(QUEUE, raw)

        got = collect(broker, 1)

        (letter,) = broker.dead_letters(QUEUE)
        assert [each.headers["id"] for each in got] == ["after"]
        assert body_of(letter.raw) == body_of(huge)
        assert "too large" in letter.reason

    def test_dead_letter_is_found_by_its_id_behind_many_others(self, broker: Broker) -> None:
        for n in range(20):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        for delivery in collect(broker, 20):
            settle(broker, Verdict.DEAD, delivery, reason=delivery.headers["id"])
        oldest = broker.dead_letters(QUEUE)[-1]

        found = broker.dead_letter(QUEUE, oldest.id)

        assert found is not None
        assert (found.id, found.reason) == (oldest.id, "t0")
        assert broker.dead_letter(QUEUE, "no such id") is None

    def test_letter_that_is_no_envelope_cannot_be_replayed_and_stays(self, broker: Broker) -> None:
        broker._dead.add(QUEUE, b"nonsense", "no envelope", 0)  # type: ignore[attr-defined]

        with pytest.raises(BrokerRefused, match="cannot be sent again"):
            broker.replay_dead(QUEUE)

        assert [letter.raw for letter in broker.dead_letters(QUEUE)] == [b"nonsense"]
