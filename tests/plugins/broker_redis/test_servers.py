"""Which server, and with which credentials: several of them, replicas, secrets and certificates that are replaced."""

from __future__ import annotations

import logging
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from kernel_broker_redis import broker as broker_module
from kernel_broker_redis.broker import RedisBroker
from kernel_result_redis import pool as pool_module
from kernel_result_redis.pool import Pool
from kernel_result_redis.server import parse
from kernel_worker import Broker, BrokerContext, BrokerRefused, BrokerUnavailable, ConfigError, Settlement, Verdict
from kernel_worker.testing import collect, envelope
from tests.plugins.broker_redis.faulty_link import FaultyLink
from tests.servers import RedisServer, free_port

StartRedis = Callable[..., RedisServer]
BrokerAt = Callable[..., Broker]


@pytest.fixture
def broker_at() -> Iterator[BrokerAt]:
    """`broker_at(url, **fields of BrokerContext)`: not connected; closed at the end."""
    made: list[Broker] = []

    def make(url: str, **fields: Any) -> Broker:
        made.append(RedisBroker(BrokerContext(url, **fields)))
        return made[-1]

    yield make
    for broker in made:
        broker.close()


# ---------------------------------------------------------------------- several


def test_servers_are_tried_in_turn(redis_url: str, broker_at: BrokerAt) -> None:
    broker = broker_at(f"redis://127.0.0.1:{free_port()}/0;{redis_url}")

    broker.connect()
    broker.publish("celery", envelope(task_id="t1"))

    assert collect(broker, 1)[0].headers["id"] == "t1"


def test_server_that_works_is_kept_and_the_other_found_when_it_fails(
    start_redis: StartRedis, broker_at: BrokerAt
) -> None:
    one, two = start_redis(), start_redis()
    broker = broker_at(f"{one.url};{two.url}")
    one.stop()
    broker.connect()
    one.start()
    broker.connect()
    broker.publish("celery", envelope())
    assert two.command("LLEN celery") == ":1"

    two.stop()
    with pytest.raises(BrokerUnavailable):
        broker.fetch(1, 0.0)
    broker.connect()
    broker.publish("celery", envelope(task_id="t2"))

    assert collect(broker, 1)[0].headers["id"] == "t2"


def test_replica_is_passed_over(start_redis: StartRedis, redis_url: str, broker_at: BrokerAt) -> None:
    replica = start_redis("--replicaof", "127.0.0.1", "1")

    with pytest.raises(BrokerUnavailable, match="READONLY") as caught:
        broker_at(replica.url).connect()
    broker = broker_at(f"{replica.url};{redis_url}")
    broker.connect()

    assert "primary" in caught.value.hint
    assert broker.fetch(1, 0.0) == []


def test_error_of_servers_that_are_all_away_names_the_first(broker_at: BrokerAt) -> None:
    first, second = free_port(), free_port()

    with pytest.raises(BrokerUnavailable, match=f":{first}/0: Connection refused"):
        broker_at(f"redis://:secret@127.0.0.1:{first}/0;redis://:secret@127.0.0.1:{second}/0").connect()


def test_no_server_at_all_is_a_mistake(broker_at: BrokerAt) -> None:
    with pytest.raises(ConfigError, match="the URL is empty"):
        broker_at(" ; ")


# ---------------------------------------------------------------------- what is held is not elsewhere


def test_what_a_server_without_its_data_does_not_know_is_not_lost_to_others(
    start_redis: StartRedis, broker_at: BrokerAt
) -> None:
    server = start_redis()
    broker = broker_at(server.url)
    broker.connect()
    broker.publish("celery", envelope())
    held = collect(broker, 1)

    server.restart()
    broker.connect()

    assert [broker.renew(held), broker.renew(held)] == [[], []]
    broker.settle([Settlement(held[0], Verdict.ACK)])


# ---------------------------------------------------------------------- credentials


def test_password_is_read_from_its_file_at_each_connection(
    start_redis: StartRedis, broker_at: BrokerAt, tmp_path: Path
) -> None:
    server = start_redis("--requirepass", "first-secret")
    file = tmp_path / "password"
    file.write_text("wrong-secret\n")
    broker = broker_at(f"redis://127.0.0.1:{server.port}/0?password_file={file}")

    with pytest.raises(BrokerRefused, match="WRONGPASS") as caught:
        broker.connect()
    file.write_text("first-secret\n")
    broker.connect()
    with redis.Redis(port=server.port, password="first-secret") as admin:
        admin.config_set("requirepass", "second-secret")
    file.write_text("second-secret\n")
    broker.connect()

    assert "secret" not in str(caught.value)
    assert broker.fetch(1, 0.0) == []


def test_password_file_that_cannot_be_read_is_named(redis_url: str, broker_at: BrokerAt, tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match=f"password file {tmp_path}/none: No such file"):
        broker_at(f"{redis_url}?password_file={tmp_path}/none").connect()


# ---------------------------------------------------------------------- certificates


@pytest.fixture
def certificate(tmp_path: Path) -> Callable[[str, int], str]:
    """`certificate(name, days)`: a self-signed one for 127.0.0.1; 0 days = expired. Its path without ending."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not on PATH")
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1\n")

    def make(name: str, days: int) -> str:
        path = str(tmp_path / name)
        ask = ["req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"]
        sign = ["x509", "-req", "-days", str(days), "-extfile", str(tmp_path / "names"), "-signkey", f"{path}.key"]
        for command in (
            [*ask, "-keyout", f"{path}.key", "-out", f"{path}.csr"],
            [*sign, "-in", f"{path}.csr", "-out", f"{path}.pem"],
        ):
            subprocess.run([program, *command], check=True, capture_output=True)
        return path

    return make


def test_expired_certificate_is_refused_until_it_is_renewed(
    start_redis: StartRedis, broker_at: BrokerAt, certificate: Callable[[str, int], str], tmp_path: Path
) -> None:
    old, new = certificate("old", 0), certificate("new", 2)
    authorities = tmp_path / "ca.pem"
    authorities.write_text(Path(f"{old}.pem").read_text() + Path(f"{new}.pem").read_text())
    port = free_port()
    tls = ["--tls-port", str(port), "--tls-cert-file", f"{old}.pem", "--tls-key-file", f"{old}.key"]
    try:
        server = start_redis(*tls, "--tls-ca-cert-file", str(authorities), "--tls-auth-clients", "no")
    except (AssertionError, RuntimeError) as error:
        pytest.skip(f"this redis-server has no TLS: {error}")
    broker = broker_at(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authorities}")
    time.sleep(1.1)  # a certificate of no days ends with the second it was made in

    with pytest.raises(BrokerRefused, match="certificate has expired") as caught:
        broker.connect()
    with redis.Redis(port=server.port) as admin:
        admin.execute_command("CONFIG", "SET", "tls-cert-file", f"{new}.pem", "tls-key-file", f"{new}.key")
    broker.connect()

    assert "renew the server's certificate" in caught.value.hint
    assert broker.fetch(1, 0.0) == []


# ---------------------------------------------------------------------- links nobody used for long


def test_idle_link_that_fell_silent_costs_a_publish_only_a_moment(
    redis_server: RedisServer, redis_url: str, broker_at: BrokerAt, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "_STALE_S", 0.0)
    monkeypatch.setattr(broker_module, "_SIGN_S", 0.3)
    with FaultyLink(redis_server.port) as link:
        broker = broker_at(link.url)
        broker.connect()
        broker.publish("celery", envelope(task_id="t1"))
        link.hold_requests()
        began = time.monotonic()

        broker.publish("celery", envelope(task_id="t2"))  # on a new connection, which passes

        assert time.monotonic() - began < 2.0
        assert client.llen("celery") == 2


def test_idle_links_of_a_pool_that_fell_silent_cost_a_call_only_a_moment(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_STALE_S", 0.0)
    monkeypatch.setattr(pool_module, "_FRESH_S", 0.0)
    monkeypatch.setattr(pool_module, "_SIGN_S", 0.3)
    with FaultyLink(redis_server.port) as link:
        pool = Pool(parse(link.url))
        lent = [pool.take() for _ in range(8)]
        for connection in lent:
            pool.give(connection)
        link.hold_requests()
        began = time.monotonic()

        assert pool.call("PING") == b"PONG"

        assert time.monotonic() - began < 2.0, "the first silent one speaks for all of them"
        pool.close()


def test_server_that_became_a_replica_is_asked_for_anew_by_a_pool(redis_server: RedisServer, client: Any) -> None:
    """Its name may lead to another server by then."""
    pool = Pool(parse(redis_server.url))
    pool.call("PING")
    client.replicaof("127.0.0.1", "1")

    try:
        with pytest.raises(ConnectionError, match="READONLY"):
            pool.call("SET", "x", "1")
    finally:
        client.replicaof("NO", "ONE")
    pool.call("SET", "x", "1")

    assert pool.opened == 2
    pool.close()


# ---------------------------------------------------------------------- eviction


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ("allkeys-lru", "maxmemory-policy allkeys-lru lets the server delete queues"),
        ("volatile-ttl", "maxmemory-policy volatile-ttl lets the server delete results"),
        ("noeviction", ""),
    ],
)
def test_eviction_policy_is_warned_of_once(
    policy: str, text: str, start_redis: StartRedis, broker_at: BrokerAt, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_redis("--maxmemory-policy", policy)
    broker = broker_at(server.url)

    with caplog.at_level(logging.WARNING):
        broker.connect()
        broker.connect()

    assert caplog.text.count("maxmemory-policy") == (1 if text else 0)
    assert text in caplog.text
