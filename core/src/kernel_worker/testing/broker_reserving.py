"""Broker contract: what is reserved, in which order, by whom, and how waiting ends."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ..drivers import Broker
from ..types import BrokerCapability, Delivery, Verdict
from .broker_base import (
    PROMPT_S,
    QUEUE,
    BrokerSuite,
    MakeBroker,
    ack,
    collect,
    counts,
    each_once,
    ids,
    nothing_comes,
    queues,
    settle,
)
from .contract import requires
from .messages import body_of, envelope, envelope_v1


class ReservingTests(BrokerSuite, suite=True):
    """`fetch`, `interrupt`, order, queues and priorities."""

    def test_delivery_carries_what_was_published(self, broker: Broker) -> None:
        raw = envelope("proj.add", (2, 2), task_id="t1", headers={"x-custom": "v", "timelimit": [30, 20]})

        broker.publish(QUEUE, raw)
        (delivery,) = collect(broker, 1)

        assert delivery.error is None
        assert delivery.queue == QUEUE
        assert delivery.headers["id"] == "t1"
        assert delivery.headers["task"] == "proj.add"
        assert delivery.headers["x-custom"] == "v"
        assert delivery.headers["timelimit"] == [30, 20]
        assert delivery.properties["correlation_id"] == "t1"
        assert body_of(delivery.raw, delivery.payload) == body_of(raw)
        assert (delivery.attempts, delivery.redelivered) == (0, False)

    def test_message_of_protocol_1_comes_without_headers_and_without_error(self, broker: Broker) -> None:
        raw = envelope_v1(task_id="old")

        broker.publish(QUEUE, raw)
        (delivery,) = collect(broker, 1)

        assert delivery.error is None
        assert "task" not in delivery.headers
        assert body_of(delivery.raw, delivery.payload) == body_of(raw)

    def test_message_published_by_another_holder_is_delivered(self, broker: Broker, other: Broker) -> None:
        other.publish(QUEUE, envelope(task_id="t1"))

        assert ids(collect(broker, 1)) == ["t1"]

    def test_order_is_first_in_first_out(self, broker: Broker) -> None:
        names = [f"t{n:02}" for n in range(30)]
        for name in names:
            broker.publish(QUEUE, envelope(task_id=name))

        assert ids(collect(broker, 30, limit=7)) == names

    def test_limit_is_never_exceeded(self, broker: Broker) -> None:
        for n in range(5):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))

        first = broker.fetch(3, 1.0)

        assert 1 <= len(first) <= 3
        assert len(collect(broker, 5 - len(first))) == 5 - len(first)

    @requires(BrokerCapability.BATCH_FETCH)
    def test_one_fetch_reserves_as_many_as_asked_for(self, broker: Broker) -> None:
        for n in range(5):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))

        assert ids(broker.fetch(3, 1.0)) == ["t0", "t1", "t2"]
        assert ids(broker.fetch(100, 1.0)) == ["t3", "t4"]

    def test_fetch_returns_at_once_when_fewer_than_the_limit_wait(self, broker: Broker) -> None:
        broker.publish(QUEUE, envelope())
        began = time.monotonic()

        assert len(broker.fetch(100, 3.0)) == 1
        assert time.monotonic() - began < PROMPT_S

    def test_fetch_without_time_to_wait_takes_what_is_there(self, broker: Broker) -> None:
        broker.publish(QUEUE, envelope(task_id="t1"))

        assert ids(broker.fetch(10, 0.0)) == ["t1"]
        began = time.monotonic()
        assert broker.fetch(10, 0.0) == []
        assert time.monotonic() - began < PROMPT_S

    def test_fetch_waits_until_the_time_out_and_not_longer(self, broker: Broker) -> None:
        began = time.monotonic()

        assert broker.fetch(10, 0.4) == []

        waited = time.monotonic() - began
        assert 0.3 <= waited < 0.4 + PROMPT_S

    def test_waiting_fetch_returns_as_soon_as_a_message_is_published(self, broker: Broker, other: Broker) -> None:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(_timed_fetch, broker, 3.0)
            time.sleep(0.05)  # let the fetch begin to wait; the test is valid, if weaker, when it has not
            began = time.monotonic()
            other.publish(QUEUE, envelope(task_id="t1"))
            got, ended = waiting.result(15)

        assert ids(got) == ["t1"]
        assert ended - began < PROMPT_S

    def test_interrupt_ends_a_waiting_fetch(self, broker: Broker) -> None:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(_timed_fetch, broker, 3.0)
            time.sleep(0.05)
            began = time.monotonic()
            broker.interrupt()
            got, ended = waiting.result(15)

        assert got == []
        assert ended - began < PROMPT_S

    def test_interrupt_before_fetch_makes_the_next_one_return(self, broker: Broker) -> None:
        broker.interrupt()
        began = time.monotonic()

        broker.fetch(10, 3.0)

        assert time.monotonic() - began < PROMPT_S

    def test_interrupt_is_used_up(self, broker: Broker) -> None:
        broker.interrupt()
        broker.fetch(10, 0.2)
        broker.fetch(10, 0.2)  # a driver may keep one interrupt for the fetch after the interrupted one
        began = time.monotonic()

        assert broker.fetch(10, 0.4) == []

        assert time.monotonic() - began >= 0.3

    def test_interrupts_lose_no_message(self, broker: Broker, other: Broker) -> None:
        names = [f"t{n:03}" for n in range(100)]

        def publish() -> None:
            for name in names:
                other.publish(QUEUE, envelope(task_id=name))
                broker.interrupt()

        with ThreadPoolExecutor(1) as pool:
            publishing = pool.submit(publish)
            got = _drain(broker, len(names))
            publishing.result(15)

        assert each_once(names, ids(got))

    def test_two_holders_never_share_a_message(self, broker: Broker, other: Broker) -> None:
        names = [f"t{n:03}" for n in range(200)]
        for name in names:
            broker.publish(QUEUE, envelope(task_id=name))

        with ThreadPoolExecutor(2) as pool:
            got: list[Delivery] = []
            for each in [pool.submit(_fetch_together, each, got, len(names)) for each in (broker, other)]:
                each.result(30)

        assert each_once(names, ids(got))
        assert nothing_comes(broker)

    def test_reserved_messages_are_in_flight_and_not_waiting(self, broker: Broker, other: Broker) -> None:
        for n in range(5):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))

        collect(broker, 2)

        assert counts(other) == {"waiting": 3, "in_flight": 2}

    def test_every_queue_is_served_while_another_is_full(self, make_broker: MakeBroker) -> None:
        broker = make_broker(queues=queues("busy", "quiet"), lease_s=30.0)
        for n in range(300):
            broker.publish("busy", envelope(task_id=f"b{n:03}", queue="busy"))
        for n in range(5):
            broker.publish("quiet", envelope(task_id=f"q{n}", queue="quiet"))

        got = collect(broker, 150, limit=10)

        quiet = [delivery for delivery in got if delivery.queue == "quiet"]
        assert ids(quiet) == [f"q{n}" for n in range(5)]
        assert all(delivery.headers["id"].startswith("b") for delivery in got if delivery.queue == "busy")

    def test_first_queue_is_served_while_a_later_one_is_full(self, make_broker: MakeBroker) -> None:
        broker = make_broker(queues=queues("quiet", "busy"), lease_s=30.0)
        for n in range(300):
            broker.publish("busy", envelope(task_id=f"b{n:03}", queue="busy"))
        broker.publish("quiet", envelope(task_id="q", queue="quiet"))

        assert "q" in ids(collect(broker, 150, limit=10))

    def test_queue_that_is_not_consumed_keeps_its_messages(self, broker: Broker, make_broker: MakeBroker) -> None:
        broker.publish("elsewhere", envelope(task_id="e", queue="elsewhere"))
        broker.publish(QUEUE, envelope(task_id="t1"))

        assert ids(collect(broker, 1)) == ["t1"]
        assert nothing_comes(broker)
        assert ids(collect(make_broker(queues=queues("elsewhere")), 1)) == ["e"]

    def test_declaring_again_keeps_the_messages(self, broker: Broker) -> None:
        broker.publish(QUEUE, envelope(task_id="t1"))

        broker.declare(broker.context.queues)

        assert ids(collect(broker, 1)) == ["t1"]

    @requires(BrokerCapability.PRIORITY)
    def test_urgent_messages_come_first_and_equal_ones_in_order(self, broker: Broker) -> None:
        for turn in range(3):
            for priority in reversed(self.urgent_first):
                name = f"p{priority}-{turn}"
                broker.publish(QUEUE, envelope(task_id=name, priority=priority), priority=priority)

        total = 3 * len(self.urgent_first)
        expected = [f"p{priority}-{turn}" for priority in self.urgent_first for turn in range(3)]
        assert ids(collect(broker, total, limit=1)) == expected

    @requires(BrokerCapability.PRIORITY, BrokerCapability.BATCH_FETCH)
    def test_batch_is_ordered_by_priority(self, broker: Broker) -> None:
        for priority in reversed(self.urgent_first):
            broker.publish(QUEUE, envelope(task_id=f"p{priority}", priority=priority), priority=priority)

        assert ids(broker.fetch(100, 1.0)) == [f"p{priority}" for priority in self.urgent_first]

    @requires(BrokerCapability.PRIORITY)
    def test_requeued_message_keeps_its_priority(self, broker: Broker) -> None:
        urgent, lazy = self.urgent_first[0], self.urgent_first[-1]
        for name, priority in (("lazy1", lazy), ("lazy2", lazy)):
            broker.publish(QUEUE, envelope(task_id=name, priority=priority), priority=priority)
        (first,) = collect(broker, 1)

        settle(broker, Verdict.REQUEUE, first)
        broker.publish(QUEUE, envelope(task_id="urgent", priority=urgent), priority=urgent)

        assert ids(collect(broker, 3, limit=1)) == ["urgent", "lazy1", "lazy2"]

    def test_messages_published_by_several_threads_while_fetching_all_come_in_their_order(
        self, broker: Broker, other: Broker
    ) -> None:
        def publish(thread: int) -> None:
            for n in range(50):
                other.publish(QUEUE, envelope(task_id=f"{thread}-{n:02}"))

        with ThreadPoolExecutor(4) as pool:
            publishing = [pool.submit(publish, thread) for thread in range(4)]
            got = ids(_drain(broker, 200))
            for each in publishing:
                each.result(15)

        assert each_once([f"{thread}-{n:02}" for thread in range(4) for n in range(50)], got)
        for thread in range(4):
            mine = [name for name in got if name.startswith(f"{thread}-")]
            assert mine == sorted(mine)

    @pytest.mark.parametrize("limit", [1_000, 5_000], ids=["in batches", "at once"])
    def test_thousands_of_messages_in_large_batches(self, broker: Broker, limit: int) -> None:
        names = [f"t{n:05}" for n in range(self.many)]
        for name in names:
            broker.publish(QUEUE, envelope(task_id=name))

        got = collect(broker, self.many, within_s=20.0, limit=limit)
        ack(broker, *got)

        assert ids(got) == names
        assert counts(broker) == {}

    def test_queue_that_is_added_is_consumed_by_a_waiting_fetch(self, broker: Broker, other: Broker) -> None:
        broker.declare(added := queues(QUEUE, "added"))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(_fetch_until_one_comes, broker)
            assert not waiting.done()
            broker.consume(added)
            other.publish("added", envelope(task_id="t1", queue="added"))
            (got,) = waiting.result(10)

        assert (got.queue, got.headers["id"]) == ("added", "t1")

    def test_queue_that_is_added_is_waited_for(self, broker: Broker, other: Broker) -> None:
        """The push, the poll or whatever ends a waiting fetch follows the new queues."""
        broker.declare(added := queues(QUEUE, "added"))
        broker.consume(added)
        broker.fetch(1, 0.0)  # uses the interrupt up
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(broker.fetch, 1, 20.0)
            while not waiting.running():
                time.sleep(0.001)
            began = time.monotonic()
            other.publish("added", envelope(queue="added"))
            got = waiting.result(30)

        assert [each.queue for each in got] == ["added"]
        assert time.monotonic() - began < PROMPT_S

    def test_queue_that_is_left_out_is_not_consumed_and_what_is_held_stays_held(
        self, make_broker: MakeBroker, other: Broker
    ) -> None:
        broker = make_broker(queues=queues("one", "two"), lease_s=30.0)
        other.publish("one", envelope(task_id="held", queue="one"))
        held = collect(broker, 1)

        broker.consume(queues("two"))
        broker.fetch(1, 0.0)
        other.publish("one", envelope(task_id="left", queue="one"))
        other.publish("two", envelope(task_id="taken", queue="two"))

        assert ids(collect(broker, 1)) == ["taken"]
        assert nothing_comes(broker)
        ack(broker, *held)
        assert counts(other, "one") == {"waiting": 1}

    def test_worker_of_no_queue_waits_until_one_is_added(self, broker: Broker) -> None:
        broker.publish(QUEUE, envelope(task_id="t1"))
        broker.consume(())
        broker.fetch(1, 0.0)

        assert nothing_comes(broker)
        broker.consume(queues(QUEUE))

        assert ids(collect(broker, 1)) == ["t1"]


def _timed_fetch(broker: Broker, timeout: float) -> tuple[list[Delivery], float]:
    got = broker.fetch(10, timeout)
    return got, time.monotonic()


def _fetch_together(broker: Broker, got: list[Delivery], count: int) -> None:
    """Fetch until all holders together have so many, or nothing has come for a while."""
    quiet_until = time.monotonic() + 5
    while len(got) < count and time.monotonic() < quiet_until:
        if batch := broker.fetch(7, 0.3):
            got.extend(batch)
            quiet_until = time.monotonic() + 5


def _drain(broker: Broker, count: int) -> list[Delivery]:
    """Fetch `count` deliveries, acknowledging as the kernel does: on another thread. Fewer if nothing comes for long."""
    got: list[Delivery] = []
    with ThreadPoolExecutor(1, thread_name_prefix="settle") as settler:
        quiet_until = time.monotonic() + 8
        while len(got) < count and time.monotonic() < quiet_until:
            batch = broker.fetch(16, 0.2)
            got += batch
            if batch:
                settler.submit(ack, broker, *batch).result(10)
                quiet_until = time.monotonic() + 8
    return got


def _fetch_until_one_comes(broker: Broker) -> list[Delivery]:
    deadline = time.monotonic() + 9.0
    while time.monotonic() < deadline:
        if got := broker.fetch(1, 1.0):
            return got
    return []
