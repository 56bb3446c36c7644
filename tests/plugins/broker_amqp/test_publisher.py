"""The client's side: what lies in RabbitMQ afterwards, missing queues, threads, forks, lost connections."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import amqp
import pytest

from kernel_app.message import Message
from kernel_broker_amqp.publisher import AmqpPublisher
from kernel_worker.testing import MakeBroker, collect
from kernel_worker.testing.results_base import fork
from tests.servers import RabbitServer, free_port

MakePublisher = Callable[..., AmqpPublisher]


@pytest.fixture
def make_publisher(amqp_url: str) -> Iterator[MakePublisher]:
    made: list[AmqpPublisher] = []

    def make(url: str = amqp_url, **options: Any) -> AmqpPublisher:
        made.append(AmqpPublisher(url, options))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close()


@pytest.fixture
def channel(rabbitmq_server: RabbitServer, amqp_url: str) -> Iterator[amqp.Channel]:
    """What another program sees: py-amqp."""
    with amqp.Connection(f"127.0.0.1:{rabbitmq_server.port}", userid="guest", password="guest") as connection:
        yield connection.channel()


def message(task_id: str = "t1", queue: str = "celery", **more: Any) -> Message:
    headers = {"task": "proj.add", "id": task_id, "retries": 0, "timelimit": [None, 2.5], "stamps": {"ä": True}}
    properties = {"correlation_id": task_id, "reply_to": "r", "delivery_mode": 2}
    return Message(queue, b"[[2, 2], {}, {}]", headers=headers, properties=properties, **more)


def drained(channel: amqp.Channel, queue: str = "celery") -> list[amqp.Message]:
    found = []
    while (got := channel.basic_get(queue, no_ack=True)) is not None:
        found.append(got)
    return found


def test_message_is_what_py_amqp_reads(make_publisher: MakePublisher, channel: amqp.Channel) -> None:
    make_publisher().publish(message(priority=5))

    (got,) = drained(channel)
    assert got.body == "[[2, 2], {}, {}]"
    assert got.headers == {
        "task": "proj.add",
        "id": "t1",
        "retries": 0,
        "timelimit": [None, 2.5],
        "stamps": {"ä": True},
    }
    assert (got.properties["content_type"], got.properties["content_encoding"]) == ("application/json", "utf-8")
    assert (got.properties["delivery_mode"], got.properties["priority"]) == (2, 5)
    assert (got.properties["correlation_id"], got.properties["reply_to"]) == ("t1", "r")


@pytest.mark.parametrize("confirm", [True, False], ids=["confirmed", "unconfirmed"])
def test_missing_queue_is_declared_and_bound_as_celery_does(
    make_publisher: MakePublisher, channel: amqp.Channel, confirm: bool
) -> None:
    publisher = make_publisher(confirm_publish=confirm)

    publisher.publish(message())
    publisher.close()
    channel.basic_publish(amqp.Message("bound"), "celery", "celery")
    channel.queue_declare("celery", durable=True, auto_delete=False)  # refused if it was declared in another way

    assert [got.body for got in drained(channel)] == ["[[2, 2], {}, {}]", "bound"]


def test_queue_with_other_arguments_is_used_as_it_is(make_publisher: MakePublisher, channel: amqp.Channel) -> None:
    channel.queue_declare("celery", durable=True, auto_delete=False, arguments={"x-max-priority": 10})

    make_publisher().publish_many([message("t1", priority=1), message("t2", priority=9)])

    assert [got.headers["id"] for got in drained(channel)] == ["t2", "t1"]


def test_message_for_an_unknown_exchange_declares_it(make_publisher: MakePublisher, channel: amqp.Channel) -> None:
    make_publisher().publish(message(exchange="kwtest.topic", exchange_type="topic", routing_key="a.b"))

    assert len(drained(channel)) == 1


def test_message_that_no_queue_takes_names_exchange_and_key(
    make_publisher: MakePublisher, channel: amqp.Channel
) -> None:
    channel.exchange_declare("kwtest.empty", "direct", durable=True, auto_delete=False)

    with pytest.raises(ConnectionError, match=r"exchange 'kwtest\.empty' with routing key 'nowhere'"):
        make_publisher().publish(message(queue="", exchange="kwtest.empty", routing_key="nowhere"))


def test_headers_larger_than_a_frame_are_refused_by_the_publisher(
    make_publisher: MakePublisher, channel: amqp.Channel
) -> None:
    """The server would end the connection, which looks like an outage: it would be tried again and again."""
    publisher = make_publisher()
    large = message("t1")
    large.headers["argsrepr"] = "x" * 200_000

    with pytest.raises(ValueError, match="headers and properties have 200,"):
        publisher.publish(large)
    publisher.publish(message("t2"))

    assert [got.headers["id"] for got in drained(channel)] == ["t2"]


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_numbers_that_end_the_connection_are_refused_by_the_publisher(
    make_publisher: MakePublisher, number: float
) -> None:
    limited = message("t1")
    limited.headers["timelimit"] = [number, None]

    with pytest.raises(ValueError, match="AMQP cannot carry"):
        make_publisher().publish(limited)


def test_publisher_goes_on_after_an_error(make_publisher: MakePublisher, channel: amqp.Channel) -> None:
    publisher = make_publisher()
    with pytest.raises(ConnectionError):
        publisher.publish(message(queue="", exchange="kwtest.none", routing_key="nowhere"))

    publisher.publish(message())

    assert len(drained(channel)) == 1


def test_many_messages_keep_their_order(make_publisher: MakePublisher, make_broker: MakeBroker) -> None:
    make_publisher().publish_many([message(f"t{n:04}") for n in range(2_500)])

    got = collect(make_broker(), 2_500, within_s=20)

    assert [each.headers["id"] for each in got] == [f"t{n:04}" for n in range(2_500)]


def test_threads_publish_at_the_same_time(make_publisher: MakePublisher, channel: amqp.Channel) -> None:
    publisher = make_publisher()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: publisher.publish(message(f"t{n}")), range(64)))

    assert sorted(got.headers["id"] for got in drained(channel)) == sorted(f"t{n}" for n in range(64))


def test_forked_child_has_connections_of_its_own(make_publisher: MakePublisher, channel: amqp.Channel) -> None:
    publisher = make_publisher()
    publisher.publish(message("before"))

    child = fork(lambda: publisher.publish_many([message(f"c{n}") for n in range(20)]))
    for n in range(20):
        publisher.publish(message(f"p{n}"))
    status = os.waitpid(child, 0)[1]

    assert status == 0
    assert len(drained(channel)) == 41


def test_server_that_is_away_is_a_connection_error_without_credentials() -> None:
    publisher = AmqpPublisher(f"amqp://someone:hidden@127.0.0.1:{free_port()}//", {})

    with pytest.raises(ConnectionError) as caught:
        publisher.publish(message())

    assert "hidden" not in str(caught.value)


def test_wrong_password_is_named_and_not_shown(rabbitmq_server: RabbitServer) -> None:
    publisher = AmqpPublisher(f"amqp://guest:hidden@127.0.0.1:{rabbitmq_server.port}//", {})

    with pytest.raises(ConnectionError, match="ACCESS_REFUSED") as caught:
        publisher.publish(message())

    assert "hidden" not in str(caught.value)


def test_importing_the_publisher_imports_neither_the_kernel_nor_py_amqp() -> None:
    code = "import sys, kernel_broker_amqp.publisher; print([n for n in sys.modules if n in ('kernel_worker', 'amqp')])"

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout == "[]\n"
