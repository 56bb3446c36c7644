"""The client's side: what lies in Redis afterwards, threads, forks, faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import kombu
import pytest

from kernel_broker_redis.publisher import RedisPublisher
from kernel_worker import QueueSpec
from kernel_worker.testing import MakeBroker, collect, envelope
from kernel_worker.testing.results_base import fork
from tests.plugins.broker_redis.faulty_link import FaultyLink
from tests.servers import RedisServer

MakePublisher = Callable[..., RedisPublisher]


@pytest.fixture
def make_publisher(redis_url: str) -> Iterator[MakePublisher]:
    made: list[RedisPublisher] = []

    def make(url: str = redis_url, **options: Any) -> RedisPublisher:
        made.append(RedisPublisher(url, options))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close()


def message(task_id: str = "t1", queue: str = "celery", **more: Any) -> Any:
    """What kernel_app hands over."""
    fields = {"exchange": "", "exchange_type": "direct", "routing_key": queue, "priority": None, "eta": None, **more}
    raw = envelope(task_id=task_id, priority=fields["priority"] or 0)
    return SimpleNamespace(queue=queue, envelope=lambda: raw, **fields)


class TestPublishing:
    def test_message_lies_in_the_list_of_its_queue(self, make_publisher: MakePublisher, client: Any) -> None:
        sent = message()

        make_publisher().publish(sent)

        assert client.lrange("celery", 0, -1) == [sent.envelope()]

    @pytest.mark.parametrize(
        ("priority", "key"),
        [
            (None, "q"),
            (0, "q"),
            (2, "q"),
            (3, "q\x06\x163"),
            (7, "q\x06\x166"),
            (9, "q\x06\x169"),
            (99, "q\x06\x169"),
            (-1, "q"),
        ],
    )
    def test_priority_chooses_the_list(
        self, make_publisher: MakePublisher, client: Any, priority: int | None, key: str
    ) -> None:
        make_publisher().publish(message(queue="q", priority=priority))

        assert client.llen(key) == 1

    def test_queue_is_bound_like_kombu_does_before_its_first_publish(
        self, make_publisher: MakePublisher, peer: kombu.Connection, client: Any
    ) -> None:
        kombu.Queue("q", kombu.Exchange("q"), routing_key="q")(peer.default_channel).declare()
        theirs = {name: client.smembers(name) for name in client.keys("*")}
        client.flushall()

        publisher = make_publisher()
        for _ in range(2):
            publisher.publish(message(queue="q"))

        assert {name: client.smembers(name) for name in client.keys("_kombu*")} == theirs

    def test_many_are_sent_in_their_order(self, make_publisher: MakePublisher, make_broker: MakeBroker) -> None:
        names = [f"t{n:04}" for n in range(3000)]

        make_publisher().publish_many([message(name) for name in names])

        assert [each.headers["id"] for each in collect(make_broker(), 3000)] == names

    def test_many_of_nothing_is_nothing(self, make_publisher: MakePublisher) -> None:
        make_publisher().publish_many([])

    def test_prefix_and_separator_are_obeyed(self, make_publisher: MakePublisher, client: Any) -> None:
        make_publisher(global_keyprefix="p_", sep=":", priority_steps=[0, 5]).publish(message(priority=6))

        assert client.llen("p_celery:5") == 1

    def test_impossible_queue_name_is_a_value_error(self, make_publisher: MakePublisher) -> None:
        for name in ("unacked", "kw.dead:x", 'a"b'):
            with pytest.raises(ValueError, match="queue"):
                make_publisher().publish(message(queue=name))


class TestExchanges:
    def test_direct_exchange_reaches_every_queue_bound_with_the_key(
        self, make_publisher: MakePublisher, make_broker: MakeBroker, client: Any
    ) -> None:
        make_broker(
            queues=(
                QueueSpec("a", "ex", "direct", "k"),
                QueueSpec("b", "ex", "direct", "k"),
                QueueSpec("c", "ex", "direct", "other"),
            )
        )

        make_publisher().publish(message(queue="", exchange="ex", routing_key="k"))

        assert [client.llen(name) for name in "abc"] == [1, 1, 0]

    def test_topic_exchange_matches_patterns(
        self, make_publisher: MakePublisher, make_broker: MakeBroker, client: Any
    ) -> None:
        make_broker(
            queues=(
                QueueSpec("words", "ex", "topic", "news.*"),
                QueueSpec("all", "ex", "topic", "#"),
                QueueSpec("deep", "ex", "topic", "news.#.fr"),
            )
        )
        publisher = make_publisher()

        for key in ("news.eu", "news.eu.fr", "sport"):
            publisher.publish(message(queue="", exchange="ex", exchange_type="topic", routing_key=key))

        assert {name: client.llen(name) for name in ("words", "all", "deep")} == {"words": 1, "all": 3, "deep": 1}

    def test_queue_named_by_the_message_is_bound_to_its_direct_exchange(
        self, make_publisher: MakePublisher, client: Any
    ) -> None:
        make_publisher().publish(message(queue="a", exchange="ex", routing_key="k"))

        assert client.llen("a") == 1
        assert client.smembers("_kombu.binding.ex") == {b"k\x06\x16\x06\x16a"}

    def test_binding_made_after_the_first_message_is_seen(
        self, make_publisher: MakePublisher, make_broker: MakeBroker, client: Any
    ) -> None:
        publisher = make_publisher()
        with pytest.raises(LookupError, match="no queue is bound to exchange 'ex' for routing key 'k'"):
            publisher.publish(message(queue="", exchange="ex", routing_key="k"))

        make_broker(queues=(QueueSpec("a", "ex", "direct", "k"),))
        publisher.publish(message(queue="", exchange="ex", routing_key="k"))

        assert client.llen("a") == 1

    def test_fanout_exchange_is_published_on_kombus_channel(
        self, make_publisher: MakePublisher, client: Any, peer: kombu.Connection
    ) -> None:
        queue = kombu.Queue("listener", kombu.Exchange("news", type="fanout"), exclusive=True)
        got: list[Any] = []
        with peer.Consumer(queue, callbacks=[lambda body, message: got.append(message.headers["id"])], no_ack=True):
            deadline = time.monotonic() + 5
            while not got and time.monotonic() < deadline:
                make_publisher().publish(
                    message("t1", queue="", exchange="news", exchange_type="fanout", routing_key="")
                )
                try:
                    peer.drain_events(timeout=0.1)
                except TimeoutError:
                    continue

        assert got[0] == "t1"


class TestThreadsAndProcesses:
    def test_threads_share_a_publisher(self, make_publisher: MakePublisher, client: Any) -> None:
        publisher = make_publisher()

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda n: publisher.publish(message(f"t{n}")), range(800)))

        assert client.llen("celery") == 800
        assert len({json.loads(raw)["headers"]["id"] for raw in client.lrange("celery", 0, -1)}) == 800
        assert sum(each["name"] == "kw:publish" for each in client.client_list()) <= 16

    def test_forked_child_and_parent_do_not_share_connections(self, make_publisher: MakePublisher, client: Any) -> None:
        publisher = make_publisher()
        publisher.publish(message("before"))

        child = fork(lambda: [publisher.publish(message(f"c{n}")) for n in range(100)])
        for n in range(100):
            publisher.publish(message(f"p{n}"))

        assert os.waitpid(child, 0)[1] == 0
        assert client.llen("celery") == 201

    def test_idle_connections_are_few(self, make_publisher: MakePublisher, client: Any) -> None:
        publisher = make_publisher(max_connections=2)

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(lambda n: publisher.publish(message(f"t{n}")), range(200)))

        assert sum(each["name"] == "kw:publish" for each in client.client_list()) <= 2

    def test_client_needs_neither_worker_nor_redis_py(self, redis_url: str) -> None:
        code = (
            "import sys\n"
            "from kernel_broker_redis.publisher import RedisPublisher\n"
            "RedisPublisher(sys.argv[1], {}).close()\n"
            "print([name for name in ('kernel_worker', 'redis', 'msgspec', 'ssl', 'asyncio') if name in sys.modules])\n"
            "import kernel_broker_redis, kernel_result_redis\n"
        )
        ran = subprocess.run([sys.executable, "-c", code, redis_url], capture_output=True, text=True, check=True)

        assert ran.stdout == "[]\n"


class TestFaults:
    def test_server_that_is_away_is_a_connection_error_and_later_works(
        self, start_redis: Callable[..., RedisServer], make_publisher: MakePublisher
    ) -> None:
        server = start_redis()
        publisher = make_publisher(server.url)
        publisher.publish(message())

        server.stop()
        with pytest.raises(ConnectionError):
            publisher.publish(message())
        server.start()
        publisher.publish(message())

        assert server.command("LLEN celery") == ":1"
        assert server.command("SCARD _kombu.binding.celery") == ":1"

    def test_connections_that_the_server_closed_meanwhile_are_not_used(
        self, make_publisher: MakePublisher, client: Any
    ) -> None:
        publisher = make_publisher()
        publisher.publish(message("t1"))
        client.client_kill_filter(skipme=True, _type="normal")
        time.sleep(0.15)  # longer than a connection counts as fresh

        publisher.publish(message("t2"))

        assert client.llen("celery") == 2

    def test_broken_reply_never_reaches_the_next_caller(
        self, redis_server: RedisServer, make_publisher: MakePublisher, client: Any
    ) -> None:
        with FaultyLink(redis_server.port) as link:
            publisher = make_publisher(link.url)
            publisher.publish(message("t1"))
            link.lose_replies()
            with pytest.raises(ConnectionError):
                publisher.publish(message("t2"))
            link.release()
            publisher.publish(message("t3"))
            publisher.close()

        assert client.llen("celery") == 3  # t2 arrived, only its reply did not

    def test_exception_from_outside_in_the_middle_leaves_no_reply_behind(
        self, redis_server: RedisServer, make_publisher: MakePublisher, client: Any
    ) -> None:
        """A soft time limit of the task that publishes."""
        import signal

        class SoftTimeLimit(Exception):
            pass

        def strike(*_: Any) -> None:
            raise SoftTimeLimit

        def publish_beyond_the_limit() -> None:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            publisher.publish(message("t2"))

        with FaultyLink(redis_server.port) as link:
            publisher = make_publisher(link.url)
            publisher.publish(message("t1"))
            link.hold_requests()
            before = signal.signal(signal.SIGALRM, strike)
            try:
                with pytest.raises(SoftTimeLimit):
                    publish_beyond_the_limit()
            finally:
                signal.signal(signal.SIGALRM, before)
            link.release()
            publisher.publish(message("t3"))
            publisher.close()

        assert client.llen("celery") >= 2

    def test_full_server_is_a_connection_error_with_the_reason(
        self, make_publisher: MakePublisher, client: Any
    ) -> None:
        publisher = make_publisher()
        client.config_set("maxmemory", 1)

        try:
            with pytest.raises(ConnectionError, match="OOM"):
                publisher.publish(message())
        finally:
            client.config_set("maxmemory", 0)
        publisher.publish(message())

        assert client.llen("celery") == 1

    def test_wrong_password_is_not_shown(
        self, start_redis: Callable[..., RedisServer], make_publisher: MakePublisher
    ) -> None:
        server = start_redis("--requirepass", "right")
        publisher = make_publisher(server.url.replace("//", "//:wrong-one@"))

        with pytest.raises(ConnectionError, match="WRONGPASS") as caught:
            publisher.publish(message())

        assert "wrong-one" not in str(caught.value) + repr(caught.value)
