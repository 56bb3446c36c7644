"""Kombu and Celery peers on the same queues: neither side loses, doubles or takes what the other holds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest

from kernel_broker_redis.broker import RedisBroker
from kernel_worker import BrokerContext, QueueSpec, Settlement, Verdict
from kernel_worker.testing import MakeBroker, collect, envelope, eventually

SEP = b"\x06\x16"


def settle(broker: Any, verdict: Verdict, *deliveries: Any, **more: Any) -> None:
    broker.settle([Settlement(each, verdict, **more) for each in deliveries])


@pytest.fixture
def kombu_peer(redis_url: str) -> Iterator[Callable[..., kombu.Connection]]:
    """`kombu_peer(**transport_options)`: a connected kombu peer."""
    opened: list[kombu.Connection] = []

    def connect(**options: Any) -> kombu.Connection:
        connection = kombu.Connection(redis_url, transport_options=options)
        opened.append(connection)
        return connection

    yield connect
    for connection in opened:
        connection.close()


def restore(peer: kombu.Connection) -> None:
    """What a kombu worker does about every hundred seconds: give back what is older than its visibility timeout."""
    peer.default_channel.qos.restore_visible(num=None, interval=1)


class TestSharedQueues:
    def test_message_of_a_kombu_client_is_delivered_with_its_headers(
        self, peer: kombu.Connection, make_broker: MakeBroker
    ) -> None:
        broker = make_broker()

        with peer.SimpleQueue("celery") as queue:
            queue.put({"x": "ä"}, headers={"task": "proj.add", "id": "t1"}, priority=4)
        (delivery,) = collect(broker, 1)

        assert delivery.headers == {"task": "proj.add", "id": "t1"}
        assert delivery.properties["priority"] == 4
        assert json.loads(delivery.raw)["content-type"] == "application/json"

    def test_kombu_peer_receives_what_was_published_in_every_priority(
        self, peer: kombu.Connection, make_broker: MakeBroker
    ) -> None:
        broker = make_broker()
        for priority in (9, 6, 3, 0):
            broker.publish("celery", envelope(task_id=f"p{priority}", priority=priority), priority=priority)

        got = []
        with peer.SimpleQueue("celery") as queue:
            for _ in range(4):
                message = queue.get(timeout=5)
                got.append(message.headers["id"])
                message.ack()

        assert got == ["p0", "p3", "p6", "p9"]
        assert broker.size("celery").in_flight == 0

    def test_priorities_of_kombu_clients_are_obeyed(self, peer: kombu.Connection, make_broker: MakeBroker) -> None:
        broker = make_broker()
        with peer.SimpleQueue("celery") as queue:
            for priority in (9, 4, 0, 7):
                queue.put({}, headers={"id": f"p{priority}"}, priority=priority)

        got = collect(broker, 4, limit=1)

        assert [each.headers["id"] for each in got] == ["p0", "p4", "p7", "p9"]

    def test_what_a_kombu_peer_holds_is_in_flight_and_not_delivered(
        self, peer: kombu.Connection, make_broker: MakeBroker
    ) -> None:
        broker = make_broker(lease_s=0.3)
        broker.publish("celery", envelope())
        with peer.SimpleQueue("celery") as queue:
            message = queue.get(timeout=5)

            got = broker.fetch(1, 0.8)  # several surveys long
            held = broker.size("celery").in_flight
            message.ack()

        assert got == []
        assert held == 1
        assert broker.size("celery").in_flight == 0

    def test_declaring_adds_the_same_bindings_as_kombu(
        self, peer: kombu.Connection, make_broker: MakeBroker, client: Any
    ) -> None:
        exchange = kombu.Exchange("metrics.topic", type="topic")
        for name, key in (("a", "one.*"), ("b", "#"), ("c", "x_y-z.#.w"), ("d", "straße.*")):
            kombu.Queue(name, exchange, routing_key=key)(peer.default_channel).declare()
        kombu.Queue("celery", kombu.Exchange("celery"), routing_key="celery")(peer.default_channel).declare()
        names = [key for key in client.keys("_kombu.*") if b"deadlines" not in key]
        theirs = {name: client.smembers(name) for name in names}
        client.flushall()

        make_broker(
            queues=(
                QueueSpec("a", "metrics.topic", "topic", "one.*"),
                QueueSpec("b", "metrics.topic", "topic", "#"),
                QueueSpec("c", "metrics.topic", "topic", "x_y-z.#.w"),
                QueueSpec("d", "metrics.topic", "topic", "straße.*"),
                QueueSpec("celery"),
            )
        )

        assert {name: client.smembers(name) for name in client.keys("_kombu.*")} == theirs
        assert len(theirs) == 4

    def test_global_keyprefix_is_shared(
        self, kombu_peer: Callable[..., Any], make_broker: MakeBroker, client: Any
    ) -> None:
        peer = kombu_peer(global_keyprefix="proj1:")
        broker = make_broker(options={"global_keyprefix": "proj1:"})
        with peer.SimpleQueue("celery") as queue:
            queue.put({}, headers={"id": "t1"})
            (delivery,) = collect(broker, 1)
            broker.publish("celery", envelope(task_id="t2"))
            message = queue.get(timeout=5)
            message.ack()
        settle(broker, Verdict.ACK, delivery)

        assert (delivery.headers["id"], message.headers["id"]) == ("t1", "t2")
        assert [key for key in client.keys("*") if not key.startswith(b"proj1:")] == []


class TestTheirRestoring:
    def test_entries_have_kombus_form(self, make_broker: MakeBroker, client: Any) -> None:
        broker = make_broker()
        raw = envelope(task_id="t1")
        broker.publish("celery", raw)

        (delivery,) = collect(broker, 1)

        (entry,) = client.hvals("unacked")
        assert entry == b"[" + raw + b', "", "celery"]'
        assert json.loads(entry) == [json.loads(raw), "", "celery"]
        assert client.zscore("unacked_index", delivery.receipt) == pytest.approx(time.time(), abs=5)

    def test_tag_is_never_the_senders(self, make_broker: MakeBroker) -> None:
        """A sender that repeats or forges a delivery tag would otherwise overwrite another message's entry."""
        broker = make_broker()
        raw = envelope(task_id="t1")
        for _ in range(2):
            broker.publish("celery", raw)

        got = collect(broker, 2)

        assert len({each.receipt for each in got}) == 2
        assert json.loads(raw)["properties"]["delivery_tag"] not in {each.receipt for each in got}

    @pytest.mark.parametrize("priority", [0, 6])
    def test_kombu_peer_restores_what_we_abandoned(
        self, kombu_peer: Callable[..., Any], make_broker: MakeBroker, priority: int
    ) -> None:
        lost = make_broker(lease_s=30)
        lost.publish("celery", envelope(task_id="t1", priority=priority), priority=priority)
        (stale,) = collect(lost, 1)
        peer = kombu_peer(visibility_timeout=0)

        restore(peer)
        (fresh,) = collect(make_broker(), 1)
        settle(lost, Verdict.DEAD, stale, reason="too late")

        assert fresh.headers["id"] == "t1"
        assert fresh.redelivered
        assert fresh.receipt.endswith(f"|{priority}")
        assert lost.size("celery").dead == 0

    def test_renewing_keeps_kombu_peers_from_restoring(
        self, kombu_peer: Callable[..., Any], make_broker: MakeBroker
    ) -> None:
        """Celery's own workers never renew: a task longer than the visibility timeout runs again and again."""
        broker = make_broker(lease_s=30)
        broker.publish("celery", envelope())
        held = collect(broker, 1)
        peer = kombu_peer(visibility_timeout=1)

        until = time.monotonic() + 1.6
        while time.monotonic() < until:
            broker.renew(held)
            restore(peer)
            assert broker.fetch(1, 0.2) == []
        settle(broker, Verdict.ACK, *held)

        assert broker.size("celery").in_flight == 0

    def test_lease_is_renewed_within_the_visibility_timeout_that_peers_were_given(
        self, make_broker: MakeBroker
    ) -> None:
        """The kernel renews three times in a lease; one longer than the visibility timeout let Celery peers take
        what we held, and it ran twice."""
        assert make_broker(lease_s=30, options={"visibility_timeout": 2}).context.lease_s == 2
        assert make_broker(lease_s=30).context.lease_s == 30

    def test_kombu_peer_restores_whole_abandoned_batches(
        self, kombu_peer: Callable[..., Any], make_broker: MakeBroker
    ) -> None:
        lost, broker = make_broker(), make_broker()
        names = [f"t{n:03}" for n in range(250)]
        for name in names:
            lost.publish("celery", envelope(task_id=name))
        collect(lost, 250)

        restore(kombu_peer(visibility_timeout=0))

        assert sorted(each.headers["id"] for each in collect(broker, 250)) == names


class TestOurRestoring:
    def hold(self, peer: kombu.Connection, client: Any, name: str = "celery") -> None:
        """Have the peer reserve one message and never finish it."""
        before = client.hlen("unacked")
        kombu.Queue(name, channel=peer.default_channel).get(no_ack=False)
        eventually(lambda: client.hlen("unacked") == before + 1)

    def test_messages_of_a_vanished_peer_come_back_after_the_visibility_timeout(
        self, peer: kombu.Connection, make_broker: MakeBroker, client: Any
    ) -> None:
        broker = make_broker(lease_s=0.3, options={"visibility_timeout": 0.5})
        for n in range(3):
            broker.publish("celery", envelope(task_id=f"t{n}", priority=3), priority=3)
            self.hold(peer, client)

        got = collect(broker, 3)

        assert sorted(each.headers["id"] for each in got) == ["t0", "t1", "t2"]
        assert all(each.redelivered for each in got)
        assert all(each.properties["delivery_info"]["redelivered"] for each in got)
        assert [each.attempts for each in got] == [0, 0, 0]
        assert all(each.receipt.endswith("|3") for each in got)

    def test_they_follow_the_bindings_of_a_named_exchange(
        self, peer: kombu.Connection, make_broker: MakeBroker, client: Any
    ) -> None:
        exchange = kombu.Exchange("topics", type="topic")
        bound = kombu.Queue("celery", exchange, routing_key="news.#")(peer.default_channel)
        bound.declare()
        with peer.Producer() as producer:
            producer.publish({}, exchange=exchange, routing_key="news.eu.fr", headers={"id": "t1"})
        self.hold(peer, client)
        broker = make_broker(lease_s=0.3, options={"visibility_timeout": 0.3})

        (got,) = collect(broker, 1)

        assert got.headers["id"] == "t1"
        assert got.redelivered

    @pytest.mark.parametrize(
        "entry",
        [b"garbage", b'[{"properties": {}}, "no-such-exchange", "key"]', b"[1, 2, 3]", b'[{}, "", ""]'],
        ids=["no JSON", "no queue bound", "no envelope", "no queue"],
    )
    def test_what_cannot_be_restored_is_kept_as_a_dead_letter(
        self, make_broker: MakeBroker, client: Any, entry: bytes
    ) -> None:
        client.hset("unacked", "theirs", entry)
        client.zadd("unacked_index", {"theirs": time.time() - 7200})
        broker = make_broker()

        assert broker.fetch(1, 0.0) == []

        (letter,) = broker.dead_letters("celery")
        assert letter.raw == entry
        assert letter.reason
        assert client.zcard("unacked_index") == client.hlen("unacked") == 0

    def test_index_without_an_entry_is_cleaned_up(self, make_broker: MakeBroker, client: Any) -> None:
        client.zadd("unacked_index", {"gone": time.time() - 7200})

        make_broker().fetch(1, 0.0)

        assert client.zcard("unacked_index") == 0

    def test_more_than_one_survey_can_take(self, make_broker: MakeBroker, client: Any) -> None:
        for n in range(250):
            client.hset("unacked", f"tag{n}", json.dumps([json.loads(envelope(task_id=f"t{n}")), "", "celery"]))
            client.zadd("unacked_index", {f"tag{n}": time.time() - 7200})
        broker = make_broker(lease_s=30)

        assert len(collect(broker, 250)) == 250


def test_broadcast_queue_is_refused(redis_url: str) -> None:
    broker = RedisBroker(BrokerContext(redis_url))
    broker.connect()

    with pytest.raises(Exception, match="fanout exchange 'news'"):
        broker.declare([QueueSpec("bcast.1", "news", "fanout")])
    broker.close()
