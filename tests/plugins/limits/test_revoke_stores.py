"""Revokes kept by the broker: what one process adds, another reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import amqp
import pytest

import kernel_broker_amqp.revokes
import kernel_broker_redis.revokes
import kernel_broker_sqlite.revokes
from kernel_broker_amqp.revokes import STREAM
from kernel_broker_redis.revokes import RedisRevokes
from kernel_limits.revokes import KEPT_S
from kernel_worker.drivers import RevokeStore
from kernel_worker.registry import Registry
from tests.servers import RedisServer, free_port


@pytest.fixture(params=["redis", "sqlite", "amqp"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        url: str = request.getfixturevalue("redis_url")
        return url
    if request.param == "amqp":
        server = request.getfixturevalue("rabbitmq_server")
        with amqp.Connection(host=server.url.partition("@")[2].partition("/")[0]) as connection:
            connection.channel().queue_delete(STREAM)
        return str(server.url)
    return f"sqlite:///{tmp_path / 'kw.db'}"


@pytest.fixture
def pair(url: str) -> Iterator[tuple[RevokeStore, RevokeStore]]:
    kind: Callable[..., RevokeStore] = Registry.discover().select().revokes[url.partition("://")[0]].point.load()
    one, two = kind(url, {}), kind(url, {})
    yield one, two
    one.close()
    two.close()


Pair = tuple[RevokeStore, RevokeStore]


def test_what_one_adds_the_other_reads_oldest_first(pair: Pair) -> None:
    one, two = pair
    until = time.time() + 100
    assert two.read() == []

    one.add(["b"], until)
    one.add(["a", "ünïcode"], until + 1)

    assert two.read() == [("b", until), ("a", until + 1), ("ünïcode", until + 1)]


def test_expired_revokes_are_kept_for_tasks_that_are_due_later_but_not_for_ever(pair: Pair) -> None:
    one, two = pair

    one.add(["ancient"], time.time() - KEPT_S - 1)
    one.add(["old"], time.time() - 1)
    one.add(["new"], time.time() + 100)

    assert [task_id for task_id, _ in two.read()] == ["old", "new"]


def test_adding_again_prolongs(pair: Pair) -> None:
    one, two = pair
    until = time.time() + 100

    one.add(["a"], until)
    one.add(["a"], until + 50)

    assert two.read() == [("a", until + 50)]


def test_only_the_newest_are_kept(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (kernel_broker_redis.revokes, kernel_broker_sqlite.revokes, kernel_broker_amqp.revokes):
        monkeypatch.setattr(module, "KEPT", 10)
    one, two = pair
    until = time.time() + 100

    for number in range(25):
        one.add([f"id{number}"], until + number)

    assert [task_id for task_id, _ in two.read()] == [f"id{number}" for number in range(15, 25)]


def test_thousands_at_once(pair: Pair) -> None:
    one, two = pair

    one.add([f"id{number}" for number in range(5000)], time.time() + 100)

    assert len(two.read()) == 5000


def test_broker_that_is_away_is_a_connection_error_without_the_password() -> None:
    away = RedisRevokes(f"redis://:geheim@127.0.0.1:{free_port()}/0", {})

    with pytest.raises(ConnectionError) as caught:
        away.read()

    assert "geheim" not in str(caught.value)


def test_key_has_the_prefix_of_the_transport(redis_server: RedisServer, redis_url: str) -> None:
    one = RedisRevokes(redis_url, {"global_keyprefix": "mine:"})

    one.add(["a"], time.time() + 100)
    one.close()

    assert redis_server.command("EXISTS mine:kw.revoked") == ":1"


@pytest.mark.parametrize("scheme", ["filesystem", "memory", "sqs"])
def test_other_brokers_keep_none(scheme: str) -> None:
    assert scheme in Registry.discover().select().brokers
    assert scheme not in Registry.discover().select().revokes
