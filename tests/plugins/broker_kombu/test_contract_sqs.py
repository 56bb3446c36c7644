"""The broker contract on SQS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from kernel_broker_kombu import SqsBroker
from kernel_worker.drivers import Broker, BrokerContext
from kernel_worker.testing import BrokerContract, broker_factory
from kernel_worker.testing.broker_base import QUEUE, ack, collect, counts, each_once, ids, nothing_comes, queues, settle
from kernel_worker.testing.messages import envelope
from kernel_worker.types import Settlement, Verdict
from tests.servers import free_port

NO_ORDER = "a standard queue of SQS has no order"
MANY = "the server of the tests takes some ten milliseconds per message: the tests below ask for less of them"


@pytest.mark.faults  # a minute and a half: the emulated server answers slowly
class TestSqsBroker(BrokerContract):
    short_lease_s = 1.0
    many = 100
    deviations: ClassVar[dict[str, str]] = {
        **dict.fromkeys(
            (
                "test_dead_holders_of_many_messages_give_all_back",
                "test_delay_of_thousands_holds_up_no_other",
                "test_large_mixed_batch_settles_all",
                "test_processes_killed_while_reserving_lose_nothing",
                "test_every_queue_is_served_while_another_is_full",
                "test_first_queue_is_served_while_a_later_one_is_full",
                "test_all_of_many_letters_are_replayed_once",
                "test_dead_letter_is_found_by_its_id_behind_many_others",
                "test_interrupts_lose_no_message",
                "test_two_holders_never_share_a_message",
            ),
            MANY,
        ),
        **dict.fromkeys(
            (
                "test_close_gives_back_at_once_and_counts_nothing",
                "test_requeue_puts_the_message_to_the_front",
                "test_requeued_batch_comes_before_what_waited",
                "test_messages_published_by_several_threads_while_fetching_all_come_in_their_order",
                "test_thousands_of_messages_in_large_batches",
            ),
            NO_ORDER,
        ),
        "test_delayed_messages_come_in_the_order_of_their_times": "SQS delays by whole seconds",
    }

    @pytest.fixture
    def make_broker(self, sqs_url: str, sqs_options: dict[str, Any]) -> Iterator[Callable[..., Broker]]:
        with broker_factory(SqsBroker, sqs_url, options=sqs_options) as make:
            yield make

    @pytest.fixture
    def unreachable_broker(self) -> Callable[[], Broker]:
        return lambda: SqsBroker(BrokerContext(f"sqs://key:secret@127.0.0.1:{free_port()}"))

    # ------------------------------------------------------------------ with less, or without order

    def test_close_gives_back_at_once_and_counts_nothing(self, broker: Broker, other: Broker) -> None:
        for n in range(4):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        collect(broker, 3)

        broker.close()
        got = collect(other, 4)

        assert each_once(["t0", "t1", "t2", "t3"], ids(got))
        assert [(each.attempts, each.recovered) for each in got] == [(0, False)] * 4
        assert sorted(each.redelivered for each in got) == [False, True, True, True]

    def test_requeue_puts_the_message_to_the_front(self, broker: Broker) -> None:
        """Back into the queue, not counted, and not taken for that of a dead holder."""
        broker.publish(QUEUE, envelope(task_id="t1"))

        settle(broker, Verdict.REQUEUE, *collect(broker, 1))
        (again,) = collect(broker, 1)

        assert (again.headers["id"], again.attempts, again.redelivered, again.recovered) == ("t1", 0, True, False)

    def test_delayed_messages_come_in_the_order_of_their_times(self, broker: Broker) -> None:
        for name in ("last", "first"):
            broker.publish(QUEUE, envelope(task_id=name))
        got = {each.headers["id"]: each for each in collect(broker, 2)}
        now = time.time()

        broker.settle(
            [
                Settlement(got["last"], Verdict.DELAY, until=now + 3.5),
                Settlement(got["first"], Verdict.DELAY, until=now + 1.0),
            ]
        )

        assert ids(collect(broker, 2, within_s=10.0)) == ["first", "last"]

    def test_thousands_of_messages_in_large_batches(self, broker: Broker) -> None:
        names = [f"t{n:03}" for n in range(60)]
        for name in names:
            broker.publish(QUEUE, envelope(task_id=name))

        got = collect(broker, 60, within_s=20.0)
        ack(broker, *got)

        assert each_once(names, ids(got))
        assert counts(broker) == {}

    def test_every_queue_is_served_while_another_is_full(self, make_broker: Callable[..., Broker]) -> None:
        broker = make_broker(queues=queues("busy", "quiet"), lease_s=30.0)
        for n in range(30):
            broker.publish("busy", envelope(task_id=f"b{n}", queue="busy"))
        broker.publish("quiet", envelope(task_id="q", queue="quiet"))

        got = collect(broker, 22, limit=4, within_s=15.0)

        assert [each.headers["id"] for each in got if each.queue == "quiet"] == ["q"]

    def test_large_mixed_batch_settles_all(self, broker: Broker) -> None:
        for n in range(36):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        got = collect(broker, 36, within_s=20.0)

        verdicts = (Verdict.ACK, Verdict.REQUEUE, Verdict.DEAD)
        broker.settle([Settlement(each, verdicts[n % 3], reason="r") for n, each in enumerate(got)])

        assert counts(broker) == {"waiting": 12, "dead": 12}

    def test_dead_holders_of_many_messages_give_all_back(
        self, make_broker: Callable[..., Broker], other: Broker
    ) -> None:
        names = [f"t{n:02}" for n in range(25)]
        dead = make_broker(lease_s=2.0)
        for name in names:
            other.publish(QUEUE, envelope(task_id=name))
        collect(dead, 15)

        got = collect(other, 25, within_s=15.0)

        assert each_once(names, ids(got))
        assert sum(each.recovered for each in got) == 15

    def test_all_of_many_letters_are_replayed_once(self, broker: Broker) -> None:
        for n in range(15):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        settle(broker, Verdict.DEAD, *collect(broker, 15), reason="r")
        oldest = broker.dead_letters(QUEUE)[-1]

        assert broker.dead_letter(QUEUE, oldest.id) == oldest
        assert broker.replay_dead(QUEUE) == 15

        assert each_once([f"t{n}" for n in range(15)], ids(collect(broker, 15)))
        assert nothing_comes(broker)
        assert broker.dead_letters(QUEUE) == []

    def test_interrupts_lose_no_message(self, broker: Broker, other: Broker) -> None:
        names = [f"t{n:02}" for n in range(15)]

        def publish() -> None:
            for name in names:
                other.publish(QUEUE, envelope(task_id=name))
                broker.interrupt()

        with ThreadPoolExecutor(1) as pool:
            publishing = pool.submit(publish)
            got = collect(broker, len(names), within_s=25.0, limit=4)
            publishing.result(15)

        assert each_once(names, ids(got))

    def test_two_holders_never_share_a_message(self, broker: Broker, other: Broker) -> None:
        names = [f"t{n:02}" for n in range(30)]
        for name in names:
            broker.publish(QUEUE, envelope(task_id=name))

        with ThreadPoolExecutor(2) as pool:
            halves = [pool.submit(collect, each, 15, within_s=25.0, limit=7) for each in (broker, other)]
            got = [name for half in halves for name in ids(half.result(30))]

        assert each_once(names, got)
