"""Broker contract: what each verdict does, once, twice and mixed."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ..drivers import Broker
from ..types import BrokerCapability, Settlement, Verdict
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
    settle,
)
from .contract import requires
from .messages import body_of, envelope


class SettlingTests(BrokerSuite, suite=True):
    """`settle`: ACK, REQUEUE, DELAY; repeated and mixed batches."""

    # ------------------------------------------------------------------ ACK

    def test_ack_removes_the_message(self, broker: Broker, other: Broker) -> None:
        broker.publish(QUEUE, envelope())

        ack(broker, *collect(broker, 1))

        assert counts(broker) == {}
        assert nothing_comes(other)

    def test_ack_of_one_leaves_its_neighbours_reserved(self, broker: Broker, other: Broker) -> None:
        for n in range(3):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        got = collect(broker, 3)

        ack(broker, got[1])

        assert counts(broker) == {"in_flight": 2}
        assert nothing_comes(other)

    def test_same_message_published_twice_is_two_messages(self, broker: Broker) -> None:
        raw = envelope(task_id="twin")  # the same delivery tag too: a client may repeat a publish that timed out
        broker.publish(QUEUE, raw)
        broker.publish(QUEUE, raw)

        first = collect(broker, 1)
        ack(broker, *first)
        settled_one = counts(broker)
        ack(broker, *collect(broker, 1))

        assert settled_one == {"waiting": 1}
        assert counts(broker) == {}

    def test_empty_batch_does_nothing(self, broker: Broker) -> None:
        broker.publish(QUEUE, envelope())

        broker.settle([])

        assert counts(broker) == {"waiting": 1}

    def test_settling_goes_on_while_another_thread_waits_in_fetch(self, broker: Broker) -> None:
        broker.publish(QUEUE, envelope())
        got = collect(broker, 1)

        with ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(broker.fetch, 10, 5.0)
            began = time.monotonic()
            pool.submit(ack, broker, *got).result(10)
            took = time.monotonic() - began
            broker.interrupt()
            waiting.result(10)

        assert took < PROMPT_S
        assert counts(broker) == {}

    # ------------------------------------------------------------------ REQUEUE

    def test_requeue_puts_the_message_to_the_front(self, broker: Broker) -> None:
        for n in range(3):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        (first,) = collect(broker, 1)

        settle(broker, Verdict.REQUEUE, first)

        assert ids(collect(broker, 3, limit=1)) == ["t0", "t1", "t2"]

    def test_requeued_batch_comes_before_what_waited(self, broker: Broker) -> None:
        for n in range(6):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        first = collect(broker, 3)

        settle(broker, Verdict.REQUEUE, *first)

        got = ids(collect(broker, 6, limit=1))
        assert set(got[:3]) == {"t0", "t1", "t2"}
        assert got[3:] == ["t3", "t4", "t5"]

    def test_requeued_message_may_be_taken_by_another_holder(self, broker: Broker, other: Broker) -> None:
        broker.publish(QUEUE, envelope(task_id="t1"))

        settle(broker, Verdict.REQUEUE, *collect(broker, 1))
        got = collect(other, 1)
        ack(other, *got)

        assert ids(got) == ["t1"]
        assert counts(broker) == {}

    def test_requeue_keeps_headers_and_body(self, broker: Broker) -> None:
        raw = envelope("proj.add", (1,), task_id="t1", headers={"retries": 2})
        broker.publish(QUEUE, raw)

        settle(broker, Verdict.REQUEUE, *collect(broker, 1))
        (again,) = collect(broker, 1)

        assert (again.headers["id"], again.headers["retries"]) == ("t1", 2)
        assert body_of(again.raw, again.payload) == body_of(raw)

    @requires(BrokerCapability.ATTEMPTS)
    def test_requeue_that_counts_raises_attempts(self, broker: Broker) -> None:
        broker.publish(QUEUE, envelope())

        seen = []
        for _ in range(3):
            (delivery,) = collect(broker, 1)
            seen.append(delivery.attempts)
            settle(broker, Verdict.REQUEUE, delivery, count=True)

        assert seen == [0, 1, 2]

    @requires(BrokerCapability.ATTEMPTS)
    def test_requeue_that_does_not_count_leaves_attempts(self, broker: Broker) -> None:
        broker.publish(QUEUE, envelope())

        settle(broker, Verdict.REQUEUE, *collect(broker, 1), count=True)
        settle(broker, Verdict.REQUEUE, *collect(broker, 1), count=False)

        assert collect(broker, 1)[0].attempts == 1

    @requires(BrokerCapability.ATTEMPTS)
    def test_counting_one_message_does_not_count_its_neighbours(self, broker: Broker) -> None:
        for n in range(3):
            broker.publish(QUEUE, envelope(task_id=f"t{n}"))
        got = collect(broker, 3)

        broker.settle([Settlement(each, Verdict.REQUEUE, count=each is got[1]) for each in got])

        assert {each.headers["id"]: each.attempts for each in collect(broker, 3)} == {"t0": 0, "t1": 1, "t2": 0}

    # ------------------------------------------------------------------ MARK

    @requires(BrokerCapability.MARK)
    def test_marked_delivery_stays_reserved(self, broker: Broker, other: Broker) -> None:
        broker.publish(QUEUE, envelope())
        (delivery,) = collect(broker, 1)

        settle(broker, Verdict.MARK, delivery)

        assert counts(broker) == {"in_flight": 1}
        assert nothing_comes(other)
        ack(broker, delivery)
        assert counts(broker) == {}

    @requires(BrokerCapability.MARK)
    @pytest.mark.parametrize("count", [False, True], ids=["given back", "lost"])
    def test_mark_counts_once_and_its_end_counts_beside_it(self, broker: Broker, count: bool) -> None:
        """Cause: what was marked and then lost was counted once for two lost runs, and started once too often."""
        broker.publish(QUEUE, envelope(task_id="marked"))
        broker.publish(QUEUE, envelope(task_id="neighbour"))
        marked, neighbour = collect(broker, 2)

        settle(broker, Verdict.MARK, marked)
        settle(broker, Verdict.MARK, marked)
        settle(broker, Verdict.REQUEUE, marked, neighbour, count=False)
        first = {each.headers["id"]: each for each in collect(broker, 2)}
        settle(broker, Verdict.MARK, first["marked"])
        settle(broker, Verdict.REQUEUE, *first.values(), count=count)
        second = {each.headers["id"]: each.attempts for each in collect(broker, 2)}

        assert {name: each.attempts for name, each in first.items()} == {"marked": 1, "neighbour": 0}
        assert second == {"marked": 2 + count, "neighbour": int(count)}

    @requires(BrokerCapability.MARK)
    def test_mark_and_end_in_one_batch(self, broker: Broker) -> None:
        for name in ("done", "lost"):
            broker.publish(QUEUE, envelope(task_id=name))
        done, lost = collect(broker, 2)

        broker.settle(
            [
                Settlement(done, Verdict.MARK),
                Settlement(lost, Verdict.MARK),
                Settlement(done, Verdict.ACK),
                Settlement(lost, Verdict.REQUEUE, count=True),
            ]
        )

        assert [(each.headers["id"], each.attempts) for each in collect(broker, 1)] == [("lost", 2)]
        assert counts(broker) == {"in_flight": 1}

    @requires(BrokerCapability.MARK, BrokerCapability.DEAD_LETTER)
    def test_marked_delivery_that_dies_is_counted_beside_its_mark(self, broker: Broker) -> None:
        broker.publish(QUEUE, envelope())
        got = collect(broker, 1)

        settle(broker, Verdict.MARK, *got)
        settle(broker, Verdict.DEAD, *got, reason="lost", count=True)

        assert broker.dead_letters(QUEUE)[0].attempts == 2

    @requires(BrokerCapability.MARK)
    def test_finished_message_leaves_its_mark_to_no_other(self, broker: Broker) -> None:
        raw = envelope(task_id="t1")
        broker.publish(QUEUE, raw)
        got = collect(broker, 1)
        settle(broker, Verdict.MARK, *got)
        ack(broker, *got)

        broker.publish(QUEUE, raw)
        (again,) = collect(broker, 1)

        assert (again.attempts, again.redelivered, again.recovered) == (0, False, False)

    # ------------------------------------------------------------------ DELAY

    @requires(BrokerCapability.DELAY)
    def test_delayed_message_comes_when_it_is_due(self, broker: Broker) -> None:
        broker.publish(QUEUE, envelope(task_id="later"))
        (delivery,) = collect(broker, 1)
        due = time.time() + 0.7

        settle(broker, Verdict.DELAY, delivery, until=due)
        parked = counts(broker)
        got = collect(broker, 1, within_s=5.0)
        came = time.time()

        assert parked == {"parked": 1}
        assert ids(got) == ["later"]
        assert due - 0.05 <= came < due + PROMPT_S

    @requires(BrokerCapability.DELAY)
    def test_delayed_message_holds_up_no_other(self, broker: Broker) -> None:
        broker.publish(QUEUE, envelope(task_id="later"))
        settle(broker, Verdict.DELAY, *collect(broker, 1), until=time.time() + 60)
        began = time.monotonic()

        broker.publish(QUEUE, envelope(task_id="soon"))
        got = collect(broker, 1)

        assert ids(got) == ["soon"]
        assert time.monotonic() - began < PROMPT_S
        assert nothing_comes(broker)

    @requires(BrokerCapability.DELAY)
    def test_delayed_messages_come_in_the_order_of_their_times(self, broker: Broker) -> None:
        for name in ("last", "first"):
            broker.publish(QUEUE, envelope(task_id=name))
        last, first = collect(broker, 2)
        now = time.time()

        broker.settle(
            [Settlement(last, Verdict.DELAY, until=now + 1.5), Settlement(first, Verdict.DELAY, until=now + 0.3)]
        )

        assert ids(collect(broker, 2)) == ["first", "last"]

    @requires(BrokerCapability.DELAY)
    def test_delay_until_the_past_is_due_at_once(self, broker: Broker) -> None:
        broker.publish(QUEUE, envelope(task_id="t1"))

        settle(broker, Verdict.DELAY, *collect(broker, 1), until=time.time() - 10)

        assert ids(collect(broker, 1)) == ["t1"]

    @requires(BrokerCapability.DELAY)
    def test_delayed_message_outlives_the_holder_that_delayed_it(self, make_broker: MakeBroker, other: Broker) -> None:
        broker = make_broker()
        broker.publish(QUEUE, envelope(task_id="later"))
        settle(broker, Verdict.DELAY, *collect(broker, 1), until=time.time() + 0.4)

        broker.close()

        assert ids(collect(other, 1)) == ["later"]

    @requires(BrokerCapability.DELAY, BrokerCapability.ATTEMPTS)
    def test_delay_keeps_attempts(self, broker: Broker) -> None:
        broker.publish(QUEUE, envelope())
        settle(broker, Verdict.REQUEUE, *collect(broker, 1), count=True)

        settle(broker, Verdict.DELAY, *collect(broker, 1), until=time.time() + 0.1)

        assert collect(broker, 1)[0].attempts == 1

    @requires(BrokerCapability.DELAY, BrokerCapability.ATTEMPTS)
    def test_delay_that_counts_raises_returns_and_not_attempts(self, broker: Broker) -> None:
        broker.publish(QUEUE, envelope())
        settle(broker, Verdict.REQUEUE, *collect(broker, 1), count=True)

        seen = []
        for _ in range(3):
            (delivery,) = collect(broker, 1)
            seen.append((delivery.attempts, delivery.returns))
            settle(broker, Verdict.DELAY, delivery, until=time.time() + 0.05, count=True)
        settle(broker, Verdict.REQUEUE, *collect(broker, 1), count=True)
        (last,) = collect(broker, 1)

        kept = int(self.keeps_returns)
        assert seen == [(1, 0), (1, kept), (1, 2 * kept)]
        assert (last.attempts, last.returns) == (2, 3 * kept)

    @requires(BrokerCapability.DELAY)
    def test_delay_of_thousands_holds_up_no_other(self, broker: Broker) -> None:
        for n in range(1_000):
            broker.publish(QUEUE, envelope(task_id=f"later{n}"))
        settle(broker, Verdict.DELAY, *collect(broker, 1_000), until=time.time() + 60)
        began = time.monotonic()

        broker.publish(QUEUE, envelope(task_id="soon"))
        got = collect(broker, 1)

        assert ids(got) == ["soon"]
        assert time.monotonic() - began < PROMPT_S
        assert counts(broker) == {"parked": 1_000, "in_flight": 1}

    # ------------------------------------------------------------------ twice, mixed

    @pytest.mark.parametrize("verdict", list(Verdict), ids=[verdict.value for verdict in Verdict])
    def test_settling_twice_is_settling_once(self, broker: Broker, verdict: Verdict) -> None:
        _skip_what_is_not_declared(broker, verdict)
        broker.publish(QUEUE, envelope())
        (delivery,) = collect(broker, 1)
        batch = [Settlement(delivery, verdict, reason="r", until=time.time() + 60)]

        broker.settle(batch)
        once = counts(broker)
        broker.settle(batch)

        assert (
            once
            == {
                Verdict.ACK: {},
                Verdict.REQUEUE: {"waiting": 1},
                Verdict.DELAY: {"parked": 1},
                Verdict.DEAD: {"dead": 1},
                Verdict.MARK: {"in_flight": 1},
            }[verdict]
        )
        assert counts(broker) == once

    @pytest.mark.parametrize("verdict", list(Verdict), ids=[verdict.value for verdict in Verdict])
    def test_repeating_a_batch_does_not_touch_the_next_delivery(self, broker: Broker, verdict: Verdict) -> None:
        """The kernel repeats a batch whose outcome it does not know; meanwhile the message may be with it again."""
        _skip_what_is_not_declared(broker, verdict)
        broker.publish(QUEUE, envelope())
        (old,) = collect(broker, 1)
        settle(broker, Verdict.REQUEUE, old)
        (new,) = collect(broker, 1)

        settle(broker, verdict, old, reason="r", until=time.time() + 60)
        repeated = counts(broker)
        ack(broker, new)

        assert repeated == {"in_flight": 1}
        assert counts(broker) == {}

    @pytest.mark.parametrize("first", [Verdict.ACK, Verdict.DEAD], ids=["after ack", "after dead"])
    def test_finished_message_cannot_be_requeued(self, broker: Broker, first: Verdict) -> None:
        _skip_what_is_not_declared(broker, first)
        broker.publish(QUEUE, envelope())
        (delivery,) = collect(broker, 1)

        settle(broker, first, delivery, reason="r")
        settle(broker, Verdict.REQUEUE, delivery)

        assert nothing_comes(broker)

    def test_mixed_batch_carries_out_each_verdict(self, broker: Broker) -> None:
        wanted = [verdict for verdict in Verdict if not _undeclared(broker, verdict)]
        for verdict in wanted:
            broker.publish(QUEUE, envelope(task_id=verdict.value))
        got = collect(broker, len(wanted))

        broker.settle(
            [
                Settlement(each, Verdict(each.headers["id"]), reason="r", until=time.time() + 60, count=False)
                for each in got
            ]
        )

        ends = {
            Verdict.REQUEUE: "waiting",
            Verdict.DELAY: "parked",
            Verdict.DEAD: "dead",
            Verdict.MARK: "in_flight",
        }
        assert counts(broker) == {ends[verdict]: 1 for verdict in wanted if verdict in ends}
        assert ids(collect(broker, 1)) == ["requeue"]

    def test_large_mixed_batch_settles_all(self, broker: Broker) -> None:
        names = [f"t{n:04}" for n in range(1_000)]
        for name in names:
            broker.publish(QUEUE, envelope(task_id=name))
        got = collect(broker, len(names))

        broker.settle([Settlement(each, Verdict.REQUEUE if n % 10 == 0 else Verdict.ACK) for n, each in enumerate(got)])

        assert counts(broker) == {"waiting": 100}
        assert each_once(names[::10], ids(collect(broker, 100)))


def _undeclared(broker: Broker, verdict: Verdict) -> bool:
    needs = {
        Verdict.DELAY: BrokerCapability.DELAY,
        Verdict.DEAD: BrokerCapability.DEAD_LETTER,
        Verdict.MARK: BrokerCapability.MARK,
    }
    return verdict in needs and needs[verdict] not in broker.capabilities


def _skip_what_is_not_declared(broker: Broker, verdict: Verdict) -> None:
    if _undeclared(broker, verdict):
        pytest.skip(f"not declared: {verdict.value}")
