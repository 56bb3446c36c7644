"""The broker contract, held against AmqpBroker and a real server: priority queues, plain ones and quorum queues."""

from __future__ import annotations

import inspect
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

from kernel_broker_amqp.broker import AmqpBroker
from kernel_worker import Broker, BrokerContext, QueueSpec, Settlement, Verdict
from kernel_worker.testing import BrokerContract, MakeBroker, broker_factory
from kernel_worker.testing.broker_base import PROMPT_S, QUEUE, collect, counts, each_once, ids, nothing_comes, settle
from kernel_worker.testing.messages import body_of, envelope
from kernel_worker.testing.waiting import eventually

ALL = [name for name in dir(BrokerContract) if name.startswith("test_")]
APART = "AMQP keeps headers, properties and body apart: the envelope's JSON text is not what lies in the queue"
OWN_ONLY = "AMQP tells nobody what another connection holds: in_flight counts the worker's own"


def make_on(url: str, **arguments: Any) -> Any:
    return broker_factory(AmqpBroker, url, queues=(QueueSpec(QUEUE, arguments=arguments),))


RETURNED_FIRST = "what was given back is taken before what waits, whatever its priority"
NO_PRIORITY = "such a queue has no priorities: TestPriorityQueues asks for them"
WITHOUT_PRIORITY = dict.fromkeys(
    (
        "test_urgent_messages_come_first_and_equal_ones_in_order",
        "test_batch_is_ordered_by_priority",
        "test_requeued_message_keeps_its_priority",
    ),
    NO_PRIORITY,
)


class TestAmqpBroker(BrokerContract):
    """Classic queues as Celery declares them by default."""

    urgent_first = (9, 6, 3, 0)
    many = 1_500
    deviations: ClassVar[dict[str, str]] = {
        **WITHOUT_PRIORITY,
        "test_dead_message_is_kept_byte_identical_with_the_reason": APART,
        "test_dead_letter_is_found_by_its_id_behind_many_others": APART,
        "test_too_large_message_ends_in_the_dead_letters_and_is_not_delivered": APART,
        "test_reserved_messages_are_in_flight_and_not_waiting": OWN_ONLY,
        "test_large_mixed_batch_settles_all": "the server may count a queue before it has handled all that was returned",
    }

    @pytest.fixture
    def make_broker(self, amqp_url: str) -> Iterator[MakeBroker]:
        with make_on(amqp_url) as make:
            yield make

    @pytest.fixture
    def unreachable_broker(self) -> Iterator[Callable[[], Broker]]:
        with socket.socket() as listener:  # accepts in its backlog, and never answers
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            port = listener.getsockname()[1]
            yield lambda: AmqpBroker(BrokerContext(f"amqp://127.0.0.1:{port}//", options={"connect_timeout": 0.3}))

    def test_dead_message_is_kept_byte_identical_with_the_reason(self, broker: Broker, other: Broker) -> None:
        """Byte-identical is the body; headers and properties are equal."""
        raw = envelope("proj.add", ("ä", "\u2028"), task_id="t1")
        broker.publish(QUEUE, raw)
        began = time.time()

        settle(broker, Verdict.DEAD, *collect(broker, 1), reason="unknown task 'proj.add' – naïve\nsecond line")

        (letter,) = other.dead_letters(QUEUE)
        sent, kept = json.loads(raw), json.loads(letter.raw)
        assert letter.payload == body_of(raw)
        assert kept["headers"] == sent["headers"]
        assert kept["properties"]["correlation_id"] == "t1"
        assert letter.reason == "unknown task 'proj.add' – naïve\nsecond line"
        assert began - 2 <= letter.died_at <= time.time() + 2
        # looking at it takes it out and gives it back, which the server does by and by
        eventually(lambda: counts(broker) == {"dead": 1}, message=lambda: str(counts(broker)))
        assert nothing_comes(other)

    def test_dead_letter_is_found_by_its_id_behind_many_others(self, broker: Broker, other: Broker) -> None:
        raw = envelope(task_id="wanted")
        broker.publish(QUEUE, raw)
        settle(broker, Verdict.DEAD, *collect(broker, 1), reason="first of all")
        (wanted,) = broker.dead_letters(QUEUE)
        for n in range(450):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        settle(broker, Verdict.DEAD, *collect(broker, 450), reason="r")

        found = other.dead_letter(QUEUE, wanted.id)

        assert found == wanted
        assert (found.payload, found.reason) == (body_of(raw), "first of all")

    def test_too_large_message_ends_in_the_dead_letters_and_is_not_delivered(
        self, make_broker: MakeBroker, other: Broker
    ) -> None:
        """AMQP transfers what it delivers; it is marked, so that the kernel buries it."""
        broker = make_broker(max_message_bytes=20_000)
        huge = envelope(task_id="huge", padding=100_000)
        for raw in (envelope(task_id="before"), huge, envelope(task_id="after")):
            other.publish(QUEUE, raw)

        got = collect(broker, 3)
        settle(broker, Verdict.DEAD, got[1], reason=str(got[1].error))

        (letter,) = eventually(lambda: broker.dead_letters(QUEUE), message="the large message in the dead letters")
        assert ids(got) == ["before", "?", "after"]
        assert "too large" in letter.reason
        assert letter.payload == body_of(huge)

    def test_large_mixed_batch_settles_all(self, broker: Broker) -> None:
        names = [f"t{n:04}" for n in range(1_000)]
        for name in names:
            broker.publish(QUEUE, envelope(task_id=name))
        got = collect(broker, len(names))

        broker.settle([Settlement(each, Verdict.REQUEUE if n % 10 == 0 else Verdict.ACK) for n, each in enumerate(got)])

        eventually(lambda: counts(broker) == {"waiting": 100}, message=lambda: str(counts(broker)))
        assert each_once(names[::10], ids(collect(broker, 100)))

    def test_reserved_messages_are_in_flight_and_not_waiting(self, broker: Broker, other: Broker) -> None:
        for n in range(5):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))

        collect(broker, 2)

        assert counts(broker) == {"waiting": 3, "in_flight": 2}
        assert counts(other) == {"waiting": 3}


class TestPriorityQueues(TestAmqpBroker):
    """Classic queues with priorities: what is different with them."""

    deviations: ClassVar[dict[str, str]] = {
        name: "asked of plain queues, which take the same way" for name in ALL if not re.search("priority|urgent", name)
    }
    for _name in sorted(TestAmqpBroker.deviations.keys() & deviations.keys()):
        locals()[_name] = getattr(BrokerContract, _name)

    deviations["test_requeued_message_keeps_its_priority"] = RETURNED_FIRST

    def test_requeued_message_keeps_its_priority(self, broker: Broker) -> None:
        """Among those that were given back."""
        for name, priority in (("lazy", 0), ("urgent", 9)):
            broker.publish(QUEUE, envelope(task_id=name, priority=priority), priority=priority)

        settle(broker, Verdict.REQUEUE, *reversed(collect(broker, 2)))

        assert ids(collect(broker, 2, limit=1)) == ["urgent", "lazy"]

    @pytest.fixture
    def make_broker(self, amqp_url: str) -> Iterator[MakeBroker]:
        with make_on(amqp_url, **{"x-max-priority": 10}) as make:
            yield make


LATE = "the server counts quorum queues late"
COUNTING = {name: LATE for name in ALL if "counts(" in inspect.getsource(getattr(BrokerContract, name))}


class TestQuorumQueues(TestAmqpBroker):
    """Quorum queues."""

    deviations: ClassVar[dict[str, str]] = {
        **COUNTING,
        **TestAmqpBroker.deviations,
        "test_fetch_without_time_to_wait_takes_what_is_there": "the server may end a consumer before it delivers to it",
        "test_dead_letters_are_listed_newest_first_up_to_the_limit": LATE,
        "test_messages_published_by_several_threads_while_fetching_all_come_in_their_order": (
            "what a consumer gets while it ends may come behind what its successor gets"
        ),
    }
    test_dead_message_is_kept_byte_identical_with_the_reason = (
        BrokerContract.test_dead_message_is_kept_byte_identical_with_the_reason
    )
    test_reserved_messages_are_in_flight_and_not_waiting = (
        BrokerContract.test_reserved_messages_are_in_flight_and_not_waiting
    )
    test_large_mixed_batch_settles_all = BrokerContract.test_large_mixed_batch_settles_all
    test_dead_letter_is_found_by_its_id_behind_many_others = (
        BrokerContract.test_dead_letter_is_found_by_its_id_behind_many_others
    )

    def test_fetch_without_time_to_wait_takes_what_is_there(self, broker: Broker) -> None:
        """By and by; what came too late for one fetch is the next one's."""
        broker.publish(QUEUE, envelope(task_id="t1"))

        assert ids(eventually(lambda: broker.fetch(10, 0.0), message="the message")) == ["t1"]
        began = time.monotonic()
        assert broker.fetch(10, 0.0) == []
        assert time.monotonic() - began < PROMPT_S

    @pytest.fixture
    def make_broker(self, amqp_url: str) -> Iterator[MakeBroker]:
        with make_on(amqp_url, **{"x-queue-type": "quorum"}) as make:
            yield make
