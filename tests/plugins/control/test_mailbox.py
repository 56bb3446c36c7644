"""The mailboxes of the brokers: what each of them must do, whatever it is made of."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import amqp
import pytest

from kernel_broker_amqp.mailbox import AmqpMailbox
from kernel_broker_redis import mailbox as redis_mailbox
from kernel_broker_redis.mailbox import RedisMailbox
from kernel_broker_sqlite.mailbox import SqliteMailbox
from kernel_worker import Mailbox
from kernel_worker.testing import eventually
from tests.servers import RabbitServer, RedisServer

DRIVERS: dict[str, Any] = {"redis": RedisMailbox, "sqlite": SqliteMailbox, "amqp": AmqpMailbox}
AWAY = {
    "redis": "redis://:hushhush@127.0.0.1:1/0",
    "sqlite": "sqlite:////nosuchfolder/kw.db",
    "amqp": "amqp://guest:hushhush@127.0.0.1:1//",
}
Make = Callable[[], Mailbox]


@pytest.fixture(params=DRIVERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[Make]:
    """Makes mailboxes on one broker; they are closed after the test."""
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path}/kw.db"
    else:
        url = request.getfixturevalue("redis_url" if kind == "redis" else "rabbitmq_server")
        url = url if isinstance(url, str) else url.url
    made: list[Mailbox] = []

    def mailbox() -> Mailbox:
        made.append(DRIVERS[kind](url, {}, "test"))
        return made[-1]

    yield mailbox
    for each in made:
        each.close()


def gathered(mailbox: Mailbox, count: int) -> list[Any]:
    """So many letters, within five seconds."""
    found: list[Any] = []
    deadline = time.monotonic() + 5
    while len(found) < count and time.monotonic() < deadline:
        found += mailbox.receive(0.2)
    return found


def test_a_broadcast_is_heard_by_all_who_listen(make: Make) -> None:
    listeners = [make(), make()]
    for number, each in enumerate(listeners):
        each.listen(f"w{number}@host")

    make().broadcast({"clock": 7, "expires": 1.5}, b'{"method": "ping"}')

    for each in listeners:
        [(headers, content_type, body)] = gathered(each, 1)
        assert (headers["clock"], headers["expires"]) == (7, 1.5)
        assert (content_type, body) == ("application/json", b'{"method": "ping"}')


def test_broadcasts_come_in_their_order(make: Make) -> None:
    listener, sender = make(), make()
    listener.listen("w1@host")

    for number in range(200):
        sender.broadcast({}, b"%d" % number)

    assert [int(body) for _, _, body in gathered(listener, 200)] == list(range(200))


def test_replies_go_to_their_box_only(make: Make) -> None:
    worker, asking, other = make(), make(), make()
    worker.listen("w1@host")
    asking.expect("box-1")
    other.expect("box-2")

    worker.reply([("box-1", {"ticket": "t"}, b'{"w1@host": 1}'), ("nobody", {}, b"{}")])

    [(headers, _, body)] = gathered(asking, 1)
    assert (headers["ticket"], body) == ("t", b'{"w1@host": 1}')
    assert other.receive(0.05) == []


def test_the_mailbox_goes_on_after_a_reply_to_nobody(make: Make) -> None:
    worker = make()
    worker.listen("w1@host")

    worker.reply([("nobody", {}, b"{}")])
    make().broadcast({}, b"1")

    assert len(gathered(worker, 1)) == 1


def test_a_hundred_workers_are_gathered(make: Make) -> None:
    asking, worker = make(), make()
    asking.expect("box-1")
    worker.listen("w1@host")

    for number in range(100):
        worker.reply([("box-1", {"ticket": "t"}, b'{"w%d@host": {"ok": "pong"}}' % number)])

    assert len({body for _, _, body in gathered(asking, 100)}) == 100


def test_interrupt_wakes_a_waiting_receive(make: Make) -> None:
    listener = make()
    listener.listen("w1@host")
    began = time.monotonic()
    threading.Timer(0.1, listener.interrupt).start()

    found = listener.receive(10)

    assert found == []
    assert time.monotonic() - began < 5


def test_an_interrupt_before_receive_counts(make: Make) -> None:
    listener = make()
    listener.listen("w1@host")
    listener.interrupt()
    began = time.monotonic()

    listener.receive(10)

    assert time.monotonic() - began < 5


def test_nothing_comes_after_the_timeout(make: Make) -> None:
    listener = make()
    listener.listen("w1@host")
    began = time.monotonic()

    found = listener.receive(0.1)

    assert found == []
    assert time.monotonic() - began < 3


def test_close_is_idempotent_and_a_closed_one_can_begin_again(make: Make) -> None:
    listener = make()
    listener.close()
    listener.listen("w1@host")
    listener.close()
    listener.close()
    eventually(lambda: listener.listen("w1@host") is None)  # the broker may not have noticed yet that it had gone

    make().broadcast({}, b"1")

    assert len(gathered(listener, 1)) == 1


def test_a_broker_that_is_away_is_a_connection_error_without_credentials(kind: str) -> None:
    mailbox = DRIVERS[kind](AWAY[kind], {}, "test")

    for use in (lambda: mailbox.listen("w1@host"), lambda: mailbox.expect("box"), lambda: mailbox.broadcast({}, b"1")):
        with pytest.raises(ConnectionError) as caught:
            use()
        assert "hushhush" not in str(caught.value)
    mailbox.close()


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b'{"body": 7}', b'{"body": "\\u00e9", "properties": {}}'])
def test_redis_garbage_on_the_channel_is_a_letter_without_content(garbage: bytes, redis_url: str) -> None:
    listener, sender = (RedisMailbox(redis_url, {}, "test") for _ in range(2))
    listener.listen("w1@host")
    sender.expect("box")

    sender._call(("PUBLISH", sender._channel, garbage))
    sender.broadcast({}, b"1")

    letters = gathered(listener, 2)
    assert letters[-1][2] == b"1"
    assert letters[0][1] != "application/json"
    listener.close()
    sender.close()


def test_redis_keeps_nothing_of_clients_that_were_killed(
    redis_url: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = RedisMailbox(redis_url, {}, "test")
    worker.listen("w1@host")
    clients = [RedisMailbox(redis_url, {}, "test") for _ in range(50)]
    for number, client in enumerate(clients):
        client.expect(f"box-{number}")

    worker.reply([(f"box-{number}", {}, b"{}") for number in range(1, 50, 2)])
    for client in clients[1::2]:
        assert len(client.receive(10)) == 1
        client.close()
    monkeypatch.setattr(redis_mailbox, "BINDING_KEPT_S", 0.2)
    monkeypatch.setattr(redis_mailbox, "REPLY_KEPT_MS", 200)
    worker.reply([(f"box-{number}", {}, b"{}") for number in range(0, 50, 2)])
    for client in clients[::2]:
        client._hang_up()  # as if killed: nothing is said to the server

    def is_empty() -> bool:
        worker.receive(0.05)
        return redis_server.command("DBSIZE").strip() in ("0", ":0")

    eventually(is_empty, within_s=20)
    worker.close()


def test_redis_replies_expire_within_a_minute(redis_url: str, redis_server: RedisServer) -> None:
    worker, client = (RedisMailbox(redis_url, {}, "test") for _ in range(2))
    worker.listen("w1@host")
    client.expect("box")

    worker.reply([("box", {}, b"{}")])

    left = int(redis_server.command("PTTL box.reply.test.pidbox").strip().lstrip(":"))
    assert 0 < left <= 60_000
    assert redis_mailbox.BINDING_KEPT_S < 60
    worker.close()
    client.close()


def test_redis_keeps_nothing_of_a_client_and_the_worker_that_answered_when_both_are_killed(
    redis_url: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_mailbox, "LOOK_S", 0.3)
    monkeypatch.setattr(redis_mailbox, "REPLY_KEPT_MS", 200)
    other, answering, client = (RedisMailbox(redis_url, {}, "test") for _ in range(3))
    other.listen("w2@host")
    answering.listen("w1@host")
    client.expect("box")
    answering.reply([("box", {}, b"{}")])

    client._hang_up()  # as if killed: nothing is said to the server
    answering._hang_up()

    def is_empty() -> bool:
        other.receive(0.05)
        return redis_server.command("DBSIZE").strip() in ("0", ":0")

    eventually(is_empty, within_s=20)
    other.close()


def test_rabbitmq_keeps_nothing_of_clients_that_were_killed(rabbitmq_server: RabbitServer) -> None:
    worker = AmqpMailbox(rabbitmq_server.url, {}, "gone")
    worker.listen("w1@gone")
    for number in range(20):
        client = AmqpMailbox(rabbitmq_server.url, {}, "gone")
        client.expect(f"gone-{number}")
        worker.reply([(f"gone-{number}", {}, b"{}")])
        if number % 2:
            assert gathered(client, 1)
        else:  # as if killed: the connection ends without a word
            assert client._link is not None
            client._link._socket.shutdown(socket.SHUT_RDWR)
        client.close()

    def left() -> list[int]:
        """Numbers of the queues that exist: to ask for one that does not is an error of the server. Each question uses up
        a channel, and a connection has 2,047 of them."""
        found = []
        with amqp.Connection(host=rabbitmq_server.url.partition("@")[2].partition("/")[0]) as connection:
            for number in range(20):
                try:
                    connection.channel().queue_declare(f"gone-{number}.reply.gone.pidbox", passive=True)
                except amqp.NotFound:
                    continue
                except amqp.ResourceLocked:  # it is its owner's still
                    pass
                found.append(number)
        return found

    eventually(lambda: left() == [], within_s=20)
    worker.close()


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["redis", "amqp"])
def test_a_thousand_calls_of_which_half_are_killed_leave_nothing_after_a_minute(
    request: pytest.FixtureRequest, kind: str
) -> None:
    """With the real expiries: every second client says nothing to the server any more after it was answered."""
    server = request.getfixturevalue("redis_server" if kind == "redis" else "rabbitmq_server")
    if kind == "redis":
        server.flush()  # all keys are counted, so none may be another test's
    driver: Any = DRIVERS[kind]
    worker = driver(server.url, {}, "minute")
    worker.listen("w1@host")
    for number in range(1000):
        client = driver(server.url, {}, "minute")
        client.expect(f"minute-{number}")
        worker.reply([(f"minute-{number}", {"ticket": "t"}, b"{}")])
        if number % 2:
            assert gathered(client, 1)
            client.close()
        else:
            # As if killed: the connection ends without a word.
            client._hang_up() if kind == "redis" else client._link._socket.shutdown(socket.SHUT_RDWR)
            client.close()
    ended = time.monotonic()

    def left() -> int:
        worker.receive(0.5)
        if kind == "redis":
            return int(server.command("DBSIZE").lstrip(":"))
        return str(server.control("list_queues", "--quiet", "name")).count("minute-")

    eventually(lambda: left() == 0, within_s=65, message=lambda: f"{left()} left")
    print(f"{kind}: nothing left {time.monotonic() - ended:.0f} s after the last call")
    worker.close()
