"""Reserving and waiting beyond the contract: latency, sizes, rotation, keys of other programs."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kernel_broker_redis.broker import RedisBroker
from kernel_worker import BrokerContext, BrokerRefused, ConfigError, QueueSpec, Settlement, Verdict
from kernel_worker.testing import MakeBroker, collect, envelope


def ack(broker: Any, *deliveries: Any) -> None:
    broker.settle([Settlement(each, Verdict.ACK) for each in deliveries])


class TestWaiting:
    def test_idle_worker_is_woken_at_once(self, make_broker: MakeBroker) -> None:
        """Pushed, not polled. The figure itself is measured by the benchmarks; here only its order counts."""
        broker, other = make_broker(), make_broker()
        delays = []

        with ThreadPoolExecutor(1) as pool:
            for _ in range(30):
                waiting = pool.submit(lambda: (broker.fetch(1, 5.0), time.perf_counter()))
                time.sleep(0.003)  # let it begin to wait
                began = time.perf_counter()
                other.publish("celery", envelope())
                got, ended = waiting.result(10)
                delays.append(ended - began)
                ack(broker, *got)

        # A busy machine may make most of them late; polling would make all but the first few.
        assert sorted(delays)[9] < 0.02, f"{sorted(delays)}"

    def test_waiting_asks_the_server_almost_nothing(self, make_broker: MakeBroker, client: Any) -> None:
        broker = make_broker()
        broker.fetch(1, 0.0)
        before = client.info("stats")["total_commands_processed"]

        broker.fetch(1, 0.5)

        assert client.info("stats")["total_commands_processed"] - before < 40  # commands inside scripts count as well

    def test_message_parked_by_another_while_waiting_is_delivered_when_due(self, make_broker: MakeBroker) -> None:
        broker, other = make_broker(), make_broker()
        other.publish("celery", envelope(task_id="later"))
        (held,) = collect(other, 1)

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(broker.fetch, 1, 10.0)
            time.sleep(0.05)
            due = time.time() + 0.3
            other.settle([Settlement(held, Verdict.DELAY, until=due)])
            (got,) = waiting.result(10)

        assert got.headers["id"] == "later"
        assert due - 0.05 < time.time() < due + 3

    def test_requeue_wakes_another_worker(self, make_broker: MakeBroker) -> None:
        broker, other = make_broker(), make_broker()
        other.publish("celery", envelope(task_id="t1"))
        (held,) = collect(other, 1)

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(broker.fetch, 1, 10.0)
            time.sleep(0.05)
            began = time.monotonic()
            other.settle([Settlement(held, Verdict.REQUEUE)])
            (got,) = waiting.result(10)

        assert got.headers["id"] == "t1"
        assert time.monotonic() - began < 1

    def test_many_idle_workers_share_single_messages(self, make_broker: MakeBroker) -> None:
        brokers = [make_broker() for _ in range(6)]
        names = [f"t{n:02}" for n in range(60)]
        got: list[str] = []

        def consume(broker: Any) -> None:
            while len(got) < len(names):
                batch = broker.fetch(1, 0.3)
                ack(broker, *batch)
                got.extend(each.headers["id"] for each in batch)

        with ThreadPoolExecutor(6) as pool:
            consuming = [pool.submit(consume, each) for each in brokers]
            sender = make_broker()
            for name in names:
                sender.publish("celery", envelope(task_id=name))
                time.sleep(0.002)  # one at a time, so that all are idle when it comes
            for each in consuming:
                each.result(20)

        assert sorted(got) == names

    def test_server_without_tracking_is_polled(self, redis_url: str, client: Any, caplog: Any) -> None:
        client.acl_setuser("polled", enabled=True, nopass=True, keys="*", commands=["+@all", "-client|tracking"])
        url = redis_url.replace("//", "//polled:x@")
        broker = RedisBroker(BrokerContext(url))
        with caplog.at_level(logging.WARNING):
            broker.connect()
        try:
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(broker.fetch, 1, 10.0)
                time.sleep(0.05)
                began = time.monotonic()
                client.lpush("celery", envelope(task_id="t1"))
                (got,) = waiting.result(10)
            took = time.monotonic() - began
            broker.interrupt()
            interrupted = broker.fetch(1, 10.0)
        finally:
            broker.close()
            client.acl_deluser("polled")

        assert got.headers["id"] == "t1"
        assert took < 2.0
        assert interrupted == []
        assert "polling" in caplog.text


class TestQueues:
    def test_priority_strategy_serves_the_first_queue_first(self, make_broker: MakeBroker) -> None:
        options = {"queue_order_strategy": "priority"}
        broker = make_broker(queues=(QueueSpec("high"), QueueSpec("low")), options=options)
        for n in range(3):
            broker.publish("low", envelope(task_id=f"low{n}"))
            broker.publish("high", envelope(task_id=f"high{n}"))

        got = collect(broker, 6, limit=1)

        assert [each.queue for each in got] == ["high"] * 3 + ["low"] * 3

    def test_urgent_message_of_any_queue_beats_less_urgent_ones_of_all(self, make_broker: MakeBroker) -> None:
        broker = make_broker(queues=(QueueSpec("a"), QueueSpec("b")))
        broker.publish("a", envelope(task_id="a3", priority=3), priority=3)
        broker.publish("b", envelope(task_id="b0"))

        assert [each.headers["id"] for each in collect(broker, 2)] == ["b0", "a3"]

    def test_priority_steps_are_configurable(self, make_broker: MakeBroker, client: Any) -> None:
        broker = make_broker(options={"priority_steps": [0, 5], "sep": ":"})

        broker.publish("celery", envelope(priority=7), priority=7)

        assert client.llen("celery:5") == 1
        assert collect(broker, 1)[0].receipt.endswith("|5")

    def test_names_with_colons_spaces_and_letters_of_any_language_work(self, make_broker: MakeBroker) -> None:
        names = ("a:b", "с пробелом", "{slot}", "w1@host.dq2", "x" * 500, "%s%d", "a]b[")
        broker = make_broker(queues=tuple(map(QueueSpec, names)))
        for name in names:
            broker.publish(name, envelope(task_id=name, queue=name))
        got = collect(broker, len(names))
        in_flight = [broker.size(name).in_flight for name in names]

        broker.settle([Settlement(each, Verdict.REQUEUE) for each in got])

        assert {each.queue: each.headers["id"] for each in got} == {name: name for name in names}
        assert in_flight == [1] * len(names)
        assert [broker.size(name).waiting for name in names] == [1] * len(names)

    @pytest.mark.parametrize(
        "name",
        [
            "unacked",
            "unacked_index",
            "unacked_mutex",
            "kw.dead:x",
            "_kombu.binding.x",
            "celery-task-meta-1",
            "",
            'quo"te',
            "back\\slash",
            "a\x06\x163",
            "new\nline",
            "x" * 2000,
        ],
    )
    def test_names_that_collide_with_other_keys_are_refused(
        self, redis_url: str, make_broker: MakeBroker, name: str
    ) -> None:
        with pytest.raises(ConfigError):
            RedisBroker(BrokerContext(redis_url, queues=(QueueSpec(name),)))
        with pytest.raises(BrokerRefused):
            make_broker().publish(name, envelope())

    def test_list_that_belongs_to_another_program_is_refused_and_others_are_served(
        self, make_broker: MakeBroker, client: Any
    ) -> None:
        client.set("foreign", "a string")
        broker = make_broker(queues=(QueueSpec("foreign"), QueueSpec("celery")))
        broker.publish("celery", envelope(task_id="t1"))

        got = collect(broker, 1)
        with pytest.raises(BrokerRefused, match="WRONGTYPE"):
            broker.fetch(1, 0.0)

        assert got[0].headers["id"] == "t1"
        assert client.get("foreign") == b"a string"

    def test_foreign_unacked_key_costs_no_message(self, make_broker: MakeBroker, client: Any) -> None:
        broker = make_broker()
        broker.publish("celery", envelope(task_id="t1"))
        client.set("unacked", "a string")

        with pytest.raises(BrokerRefused, match="WRONGTYPE"):
            broker.fetch(1, 0.0)
        client.delete("unacked")

        assert collect(broker, 1)[0].headers["id"] == "t1"


class TestSizes:
    def test_huge_messages_are_not_all_fetched_at_once(self, make_broker: MakeBroker) -> None:
        broker = make_broker()
        for n in range(9):
            broker.publish("celery", envelope(task_id=f"t{n}", padding=2_000_000))

        first = broker.fetch(9, 1.0)

        assert 1 <= len(first) < 9
        assert len(collect(broker, 9 - len(first))) == 9 - len(first)

    def test_too_large_messages_are_logged_and_do_not_block(self, make_broker: MakeBroker, caplog: Any) -> None:
        broker = make_broker(max_message_bytes=10_000)
        for n in range(40):
            broker.publish("celery", envelope(task_id=f"huge{n}", padding=20_000))
        broker.publish("celery", envelope(task_id="good"))

        (got,) = collect(broker, 1)

        assert got.headers["id"] == "good"
        letters = broker.dead_letters("celery")
        assert len(letters) == 40
        assert "larger than the limit of 10000 bytes" in letters[0].reason
        assert "moved to the dead letters" in caplog.text

    def test_too_large_message_that_cannot_be_buried_stays_in_its_queue(
        self, make_broker: MakeBroker, client: Any
    ) -> None:
        broker = make_broker(max_message_bytes=10_000)
        client.set("kw.dead.info:celery", "a string")
        broker.publish("celery", envelope(task_id="huge", padding=20_000))

        with pytest.raises(BrokerRefused, match="WRONGTYPE"):
            broker.fetch(5, 0.0)

        assert client.llen("celery") == 1

    def test_ten_thousand_in_one_fetch_and_one_settle(self, make_broker: MakeBroker, client: Any) -> None:
        broker = make_broker()
        raws = [envelope(task_id=f"t{n:05}") for n in range(10_000)]
        client.lpush("celery", *raws)

        got = collect(broker, 10_000)
        broker.renew(got)
        broker.settle([Settlement(each, Verdict.REQUEUE) for each in got[:5000]])
        ack(broker, *got[5000:])
        again = collect(broker, 5000)

        assert [each.raw for each in again] == raws[:5000]


class TestAttempts:
    def test_envelope_stays_byte_identical_through_all_restorings(self, make_broker: MakeBroker) -> None:
        raw = b' {"body":"e30=",  "headers":{"id":"\\u00e4","n":1.50},"properties":{"x":[]}, "extra":{} }\n'
        broker = make_broker()
        broker.publish("celery", raw)
        for verdict in (Verdict.REQUEUE, Verdict.DELAY, Verdict.REQUEUE):
            (got,) = collect(broker, 1)
            broker.settle([Settlement(got, verdict, count=True, until=0.0)])
        (got,) = collect(broker, 1)
        broker.settle([Settlement(got, Verdict.DEAD, reason="r")])

        assert got.raw == raw
        assert got.attempts == 2
        assert broker.dead_letters("celery")[0].raw == raw

    def test_counts_are_forgotten_with_the_message(self, make_broker: MakeBroker, client: Any) -> None:
        broker = make_broker()
        for verdict in (Verdict.ACK, Verdict.DEAD):
            broker.publish("celery", envelope())
            broker.settle([Settlement(collect(broker, 1)[0], Verdict.REQUEUE, count=True)])
            assert client.hlen("kw.attempts") == 1
            broker.settle([Settlement(collect(broker, 1)[0], verdict)])

        assert client.hlen("kw.attempts") == 0

    def test_counts_of_purged_messages_do_not_stay_for_ever(self, make_broker: MakeBroker, client: Any) -> None:
        broker = make_broker()
        broker.publish("celery", envelope())
        broker.settle([Settlement(collect(broker, 1)[0], Verdict.REQUEUE, count=True)])

        broker.purge("celery")

        assert 0 < client.ttl("kw.attempts") <= 7 * 24 * 3600


class TestKeys:
    def test_nothing_is_left_after_all_is_done(self, make_broker: MakeBroker, client: Any) -> None:
        broker = make_broker()
        for n in range(50):
            broker.publish("celery", envelope(task_id=f"t{n}"))
        got = collect(broker, 50)
        broker.settle([Settlement(each, Verdict.REQUEUE, count=True) for each in got[:10]])
        broker.settle([Settlement(each, Verdict.DELAY, until=0.0) for each in got[10:20]])
        ack(broker, *got[20:], *collect(broker, 20))

        broker.close()

        assert sorted(client.keys()) == [b"_kombu.binding.celery", b"_kombu.binding_permanent.celery", b"kw.epoch"]

    def test_holder_is_known_by_lease_and_gone_after_close(self, make_broker: MakeBroker, client: Any) -> None:
        broker = make_broker(holder="w1@host", lease_s=30)
        broker.publish("celery", envelope())
        collect(broker, 1)

        ((member, deadline),) = client.zrange("kw.holders", 0, -1, withscores=True)
        broker.close()

        assert member.startswith(b"w1@host/")
        assert deadline == pytest.approx(time.time() + 30, abs=5)
        assert client.zcard("kw.holders") == 0

    def test_holders_of_one_name_do_not_share_tags(self, make_broker: MakeBroker) -> None:
        first, second = make_broker(holder="same"), make_broker(holder="same")
        for n in range(2):
            first.publish("celery", envelope(task_id=f"t{n}"))

        one, two = collect(first, 1), collect(second, 1)

        assert one[0].receipt != two[0].receipt
        assert first.size("celery").in_flight == 2

    def test_connections_are_named_for_the_operator(self, make_broker: MakeBroker, client: Any) -> None:
        make_broker(holder="w1@höst name")

        names = {each["name"] for each in client.client_list()}

        assert {"kw:fetch:w1@h_st_name", "kw:settle:w1@h_st_name"} <= names
