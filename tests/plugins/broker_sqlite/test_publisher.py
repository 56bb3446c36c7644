"""The client's side: where messages go, threads, forks, and needing no worker."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess

import pytest

from kernel_broker_sqlite import SqliteBroker, SqlitePublisher
from kernel_worker.drivers import Publisher
from kernel_worker.testing import collect, envelope
from kernel_worker.types import QueueSpec

from .conftest import Message

MakeBroker = Callable[..., SqliteBroker]
MakeMessage = Callable[..., Message]


def test_publisher_is_one_by_the_contract(publisher: SqlitePublisher) -> None:
    assert isinstance(publisher, Publisher)


@pytest.mark.parametrize(
    ("attributes", "queue"),
    [({"queue": "a"}, "a"), ({"queue": "", "routing_key": "b"}, "b"), ({"queue": "a", "routing_key": "b"}, "a")],
    ids=["queue", "routing key", "both"],
)
def test_anonymous_exchange_leads_to_the_queue(
    publisher: SqlitePublisher, broker: SqliteBroker, message: MakeMessage, attributes: dict[str, str], queue: str
) -> None:
    publisher.publish(message(**attributes))

    assert broker.size(queue).waiting == 1


def test_named_exchange_leads_to_the_queues_bound_to_it(
    publisher: SqlitePublisher, broker: SqliteBroker, message: MakeMessage
) -> None:
    broker.declare([QueueSpec("a", "ex", routing_key="k"), QueueSpec("b", "ex", routing_key="k"), QueueSpec("c", "ex")])

    publisher.publish(message(queue="", exchange="ex", routing_key="k"))
    publisher.publish(message(queue="d", exchange="ex", routing_key="k"))

    assert [broker.size(queue).waiting for queue in "abcd"] == [2, 2, 0, 1]


def test_exchange_that_leads_nowhere_is_named_and_nothing_is_published(
    publisher: SqlitePublisher, broker: SqliteBroker, message: MakeMessage
) -> None:
    with pytest.raises(LookupError, match=r"exchange 'nowhere' with routing key 'k'"):
        publisher.publish_many([message(), message(queue="", exchange="nowhere", routing_key="k")])

    assert broker.size("celery").waiting == 0
    publisher.publish(message())
    assert broker.size("celery").waiting == 1


def test_priority_and_bytes_arrive_as_sent(
    publisher: SqlitePublisher, broker: SqliteBroker, message: MakeMessage
) -> None:
    sent = [message(f"p{priority}", priority=priority) for priority in (9, None, 3)]

    publisher.publish_many(sent)

    assert [each.raw for each in collect(broker, 3)] == [sent[1].raw, sent[2].raw, sent[0].raw]


def test_eta_is_left_to_the_worker(publisher: SqlitePublisher, broker: SqliteBroker, message: MakeMessage) -> None:
    publisher.publish(message("later", eta=4e9))

    assert broker.size("celery").waiting == 1


def test_nothing_to_publish_touches_no_file(url: str, file: object) -> None:
    SqlitePublisher(url, {}).publish_many([])

    assert not file.exists()  # type: ignore[attr-defined]


def test_many_threads_share_a_publisher(publisher: SqlitePublisher, broker: SqliteBroker) -> None:
    def publish(thread: int) -> None:
        for n in range(50):
            publisher.publish(Message(envelope(task_id=f"{thread}-{n}")))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(publish, range(8)))

    got = [delivery.headers["id"] for delivery in collect(broker, 400)]
    assert Counter(got) == Counter(f"{thread}-{n}" for thread in range(8) for n in range(50))


def test_forked_child_and_parent_publish_side_by_side(
    publisher: SqlitePublisher, broker: SqliteBroker, start: Callable[..., BaseProcess]
) -> None:
    def publish(tag: str) -> None:
        for n in range(100):
            publisher.publish(Message(envelope(task_id=f"{tag}-{n}")))

    publisher.publish(Message(envelope(task_id="before")))
    children = [start(publish, f"child{n}") for n in range(2)]
    publish("parent")
    for child in children:
        child.join(20)

    assert [child.exitcode for child in children] == [0, 0]
    tags = ("child0", "child1", "parent")
    expected = ["before", *(f"{tag}-{n}" for tag in tags for n in range(100))]
    assert Counter(each.headers["id"] for each in collect(broker, 301)) == Counter(expected)


def test_closed_publisher_opens_again(publisher: SqlitePublisher, broker: SqliteBroker, message: MakeMessage) -> None:
    publisher.publish(message())
    publisher.close()
    publisher.close()

    publisher.publish(message())

    assert broker.size("celery").waiting == 2


def test_publishing_and_reading_results_import_no_worker(url: str) -> None:
    program = f"""
import sys
from kernel_broker_sqlite.publisher import SqlitePublisher
from kernel_result_sqlite import SqliteResults
assert "sqlite3" not in sys.modules, "sqlite3 is loaded before the file is used"
class Message:
    queue, exchange, routing_key, priority = "celery", "", "", 0
    def envelope(self): return b"{{}}"
SqlitePublisher({url!r}, {{}}).publish(Message())
assert SqliteResults({url!r}, {{}}).fetch("t1") is None
sys.exit(any(name.split(".")[0] == "kernel_worker" for name in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == 0
