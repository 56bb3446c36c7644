"""Lost links, restarted and refusing servers, killed workers: nothing is lost, errors say what to do."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from kernel_broker_redis.broker import RedisBroker
from kernel_worker import Broker, BrokerContext, BrokerRefused, BrokerUnavailable, Settlement, Verdict
from kernel_worker.testing import MakeBroker, collect, envelope, eventually
from tests.plugins.broker_redis.faulty_link import FaultyLink
from tests.servers import RedisServer

PASSWORD = "s3cret-word"


@pytest.fixture
def link(redis_server: RedisServer, redis_url: str) -> Iterator[FaultyLink]:
    with FaultyLink(redis_server.port) as link:
        yield link


@pytest.fixture
def broker_at() -> Iterator[Callable[..., Broker]]:
    """`broker_at(url, **fields of BrokerContext)`: not connected; closed at the end."""
    made: list[Broker] = []

    def make(url: str, **fields: Any) -> Broker:
        made.append(RedisBroker(BrokerContext(url, **fields)))
        return made[-1]

    yield make
    for broker in made:
        broker.close()


def ack(broker: Broker, *deliveries: Any) -> None:
    broker.settle([Settlement(each, Verdict.ACK) for each in deliveries])


class TestLostLinks:
    def test_reserve_whose_reply_was_lost_is_given_back_on_the_next_connection(
        self, link: FaultyLink, broker_at: Callable[..., Broker], client: Any
    ) -> None:
        """The server registered the messages for a holder that does not know of them, and goes on renewing."""
        broker = broker_at(link.url, lease_s=30)
        broker.connect()
        broker.fetch(1, 0.0)
        for n in range(5):
            client.lpush("celery", envelope(task_id=f"t{n}"))
        link.lose_replies()

        with pytest.raises(BrokerUnavailable):
            broker.fetch(5, 1.0)
        link.release()
        assert client.hlen("unacked") == 5
        broker.connect()
        got = collect(broker, 5)

        assert [each.headers["id"] for each in got] == [f"t{n}" for n in range(5)]
        assert [each.attempts for each in got] == [0] * 5
        ack(broker, *got)
        assert client.hlen("unacked") == 0

    def test_reserve_that_the_server_carries_out_after_the_link_is_gone_is_given_back(
        self, link: FaultyLink, broker_at: Callable[..., Broker], client: Any, redis_server: RedisServer
    ) -> None:
        broker = broker_at(link.url, lease_s=1.0, options={"socket_timeout": 1.0})
        broker.connect()
        broker.fetch(1, 0.0)
        client.lpush("celery", envelope(task_id="t1", priority=0))
        link.hold_requests()

        with pytest.raises(BrokerUnavailable, match="no answer within 1 s"):
            broker.fetch(1, 1.0)
        broker.connect()  # cannot give back what has not been taken yet
        link.release()
        eventually(lambda: client.hlen("unacked") == 1)
        (got,) = collect(broker, 1)

        assert got.headers["id"] == "t1"

    def test_settling_again_after_a_lost_reply_changes_nothing_more(
        self, link: FaultyLink, broker_at: Callable[..., Broker], client: Any
    ) -> None:
        broker = broker_at(link.url, lease_s=30)
        broker.connect()
        for n in range(4):
            client.lpush("celery", envelope(task_id=f"t{n}"))
        got = collect(broker, 4)
        ends = (Verdict.ACK, Verdict.REQUEUE, Verdict.DELAY, Verdict.DEAD)
        batch = [Settlement(each, end, until=time.time() + 60) for each, end in zip(got, ends, strict=True)]
        link.lose_replies()

        with pytest.raises(BrokerUnavailable):
            broker.settle(batch)
        link.release()
        broker.connect()
        broker.settle(batch)

        info = broker.size("celery")
        assert (info.waiting, info.in_flight, info.parked, info.dead) == (1, 0, 1, 1)

    def test_killed_connection_ends_the_waiting_fetch_and_the_next_connection_works(
        self, make_broker: MakeBroker, client: Any
    ) -> None:
        broker = make_broker()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(broker.fetch, 1, 20.0)
            time.sleep(0.05)
            for each in client.client_list():
                if each["name"].startswith("kw:fetch"):
                    client.client_kill_filter(_id=each["id"])
            with pytest.raises(BrokerUnavailable):
                waiting.result(5)

        broker.connect()
        broker.publish("celery", envelope(task_id="t1"))

        assert collect(broker, 1)[0].headers["id"] == "t1"

    def test_fetch_and_settle_links_are_lost_independently(self, make_broker: MakeBroker, client: Any) -> None:
        broker = make_broker()
        broker.publish("celery", envelope())
        got = collect(broker, 1)
        for each in client.client_list():
            if each["name"].startswith("kw:settle"):
                client.client_kill_filter(_id=each["id"])

        with pytest.raises(BrokerUnavailable):
            ack(broker, *got)
        broker.fetch(1, 0.0)
        broker.connect()
        ack(broker, *got)

        assert broker.size("celery").in_flight == 0

    def test_killed_idle_connection_costs_no_publish(self, make_broker: MakeBroker, client: Any) -> None:
        broker = make_broker()
        broker.publish("celery", envelope(task_id="t1"))
        client.client_kill_filter(skipme=True, _type="normal")
        time.sleep(0.05)

        broker.publish("celery", envelope(task_id="t2"))

        assert client.llen("celery") == 2

    def test_silent_server_is_noticed_within_the_time_out(
        self, start_redis: Callable[..., RedisServer], broker_at: Callable[..., Broker]
    ) -> None:
        server = start_redis()
        broker = broker_at(server.url, options={"socket_timeout": 1.0, "socket_connect_timeout": 1.0})
        broker.connect()
        with server.paused():
            for call in (lambda: broker.fetch(1, 0.1), lambda: broker.renew([]), lambda: broker.size("celery")):
                began = time.monotonic()
                with pytest.raises(BrokerUnavailable, match="no answer within"):
                    call()
                assert time.monotonic() - began < 4
            with pytest.raises(BrokerUnavailable):
                broker.connect()

        broker.connect()
        assert broker.fetch(1, 0.0) == []


class TestRestarts:
    def test_restart_with_persistence_keeps_what_is_held_and_what_waits(
        self, start_redis: Callable[..., RedisServer], broker_at: Callable[..., Broker]
    ) -> None:
        server = start_redis("--appendonly", "yes", "--appendfsync", "always")
        broker = broker_at(server.url)
        broker.connect()
        for n in range(4):
            broker.publish("celery", envelope(task_id=f"t{n}"))
        held = collect(broker, 2)

        server.restart()
        with pytest.raises(BrokerUnavailable):
            broker.fetch(1, 0.1)
        broker.connect()
        broker.renew(held)
        ack(broker, *held)
        got = collect(broker, 2)

        assert [each.headers["id"] for each in got] == ["t2", "t3"]
        assert broker.size("celery").in_flight == 2

    def test_emptied_server_is_just_empty(self, make_broker: MakeBroker, client: Any) -> None:
        broker = make_broker()
        broker.publish("celery", envelope())
        held = collect(broker, 1)

        broker.renew(held)
        client.flushall()
        lost = [broker.renew(held), broker.renew(held)]
        broker.settle([Settlement(held[0], Verdict.REQUEUE)])

        assert lost == [[], []], "nobody took it: what runs goes to its end"

        assert broker.fetch(1, 0.1) == []
        broker.publish("celery", envelope(task_id="t2"))
        assert collect(broker, 1)[0].headers["id"] == "t2"

    def test_forgotten_scripts_are_loaded_again(self, make_broker: MakeBroker, client: Any) -> None:
        broker = make_broker()
        for n in range(3):
            broker.publish("celery", envelope(task_id=f"t{n}"))

        client.script_flush()
        got = collect(broker, 3)
        client.script_flush()
        broker.settle([Settlement(each, verdict) for each, verdict in zip(got, Verdict, strict=False)])
        client.script_flush()
        broker.renew([])
        client.script_flush()
        broker.purge("celery")

        assert broker.size("celery").in_flight == 0


class TestRefusals:
    def test_wrong_or_missing_password(
        self, start_redis: Callable[..., RedisServer], broker_at: Callable[..., Broker]
    ) -> None:
        port = start_redis("--requirepass", PASSWORD).port

        for credentials, hint in (("", "put the password into the URL"), (":wrong-one@", "check user name")):
            with pytest.raises(BrokerRefused) as caught:
                broker_at(f"redis://{credentials}127.0.0.1:{port}/0").connect()
            assert hint in str(caught.value)
            assert "wrong-one" not in str(caught.value)
        broker = broker_at(f"redis://:{PASSWORD}@127.0.0.1:{port}/3")
        broker.connect()
        assert broker.fetch(1, 0.0) == []

    def test_no_password_is_ever_shown(
        self, start_redis: Callable[..., RedisServer], broker_at: Callable[..., Broker], caplog: Any
    ) -> None:
        server = start_redis("--requirepass", PASSWORD)
        url = f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0"
        broker = broker_at(url)
        broker.connect()
        server.kill()

        texts = []
        for call in (broker.connect, lambda: broker.fetch(1, 0.0), lambda: broker.size("celery"), broker.close):
            with caplog.at_level(logging.DEBUG):
                try:
                    call()
                except (BrokerUnavailable, BrokerRefused) as error:
                    texts.append(f"{error} {error!r} {error.__cause__} {error.__cause__!r}")

        assert texts
        assert PASSWORD not in "".join(texts) + caplog.text

    def test_missing_rights(self, redis_url: str, broker_at: Callable[..., Broker], client: Any) -> None:
        client.acl_setuser("limited", enabled=True, nopass=True, commands=["+@all", "-evalsha"], keys="*")
        broker = broker_at(redis_url.replace("//", "//limited:x@"))
        broker.connect()

        with pytest.raises(BrokerRefused, match="evalsha") as caught:
            broker.fetch(1, 0.0)

        client.acl_deluser("limited")
        assert "grant the user" in caught.value.hint

    def test_database_out_of_range(self, redis_server: RedisServer, broker_at: Callable[..., Broker]) -> None:
        with pytest.raises(BrokerRefused, match="DB index is out of range"):
            broker_at(f"redis://127.0.0.1:{redis_server.port}/99").connect()

    def test_nobody_listens(self, broker_at: Callable[..., Broker], start_redis: Callable[..., RedisServer]) -> None:
        server = start_redis()
        server.stop()

        with pytest.raises(BrokerUnavailable, match="Connection refused"):
            broker_at(server.url).connect()

    def test_host_that_does_not_exist(self, broker_at: Callable[..., Broker]) -> None:
        with pytest.raises(BrokerUnavailable, match=r"no-such-host\.invalid"):
            broker_at("redis://no-such-host.invalid/0").connect()

    def test_replica_is_unavailable_until_it_is_promoted(self, make_broker: MakeBroker, client: Any) -> None:
        broker = make_broker()
        broker.publish("celery", envelope(task_id="t1"))
        client.replicaof("127.0.0.1", "1")

        try:
            with pytest.raises(BrokerUnavailable, match="READONLY") as caught:
                broker.fetch(1, 0.0)
        finally:
            client.replicaof("NO", "ONE")

        assert "primary" in caught.value.hint
        assert collect(broker, 1)[0].headers["id"] == "t1"

    def test_full_server_loses_nothing_and_still_takes_acks(self, make_broker: MakeBroker, client: Any) -> None:
        """A reserve that fails for want of memory after its pop would lose the message."""
        broker = make_broker()
        for n in range(20):
            broker.publish("celery", envelope(task_id=f"t{n:02}"))
        held = collect(broker, 5)
        client.config_set("maxmemory", 1)

        try:
            for _ in range(3):
                with pytest.raises(BrokerUnavailable, match="OOM") as caught:
                    broker.fetch(10, 0.0)
            ack(broker, *held)
        finally:
            client.config_set("maxmemory", 0)

        assert "maxmemory" in caught.value.hint
        assert [each.headers["id"] for each in collect(broker, 15)] == [f"t{n:02}" for n in range(5, 20)]

    def test_something_that_is_no_redis(self, broker_at: Callable[..., Broker]) -> None:
        import socket
        import threading

        with socket.create_server(("127.0.0.1", 0)) as listener:

            def answer() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

            thread = threading.Thread(target=answer)
            thread.start()
            with pytest.raises(BrokerUnavailable, match="not Redis protocol"):
                broker_at(f"redis://127.0.0.1:{listener.getsockname()[1]}/0").connect()
            thread.join(5)


class TestSecuredLinks:
    @pytest.fixture
    def certificates(self, tmp_path: Path) -> Path:
        program = shutil.which("openssl")
        if program is None:
            pytest.skip("openssl is not on PATH")
        for name, subject in (("good", "/CN=127.0.0.1"), ("other", "/CN=elsewhere")):
            names = "IP:127.0.0.1" if name == "good" else "DNS:elsewhere"
            command = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", subject]
            command += ["-addext", f"subjectAltName={names}"]
            command += ["-keyout", str(tmp_path / f"{name}.key"), "-out", str(tmp_path / f"{name}.pem")]
            subprocess.run(command, check=True, capture_output=True)
        return tmp_path

    @pytest.fixture
    def start_tls(self, start_redis: Callable[..., RedisServer], certificates: Path) -> Callable[[str], int]:
        from tests.servers import free_port

        def start(name: str) -> int:
            port = free_port()
            options = ["--tls-port", str(port), "--tls-cert-file", str(certificates / f"{name}.pem")]
            options += ["--tls-key-file", str(certificates / f"{name}.key"), "--tls-auth-clients", "no"]
            try:
                start_redis(*options, "--tls-ca-cert-file", str(certificates / f"{name}.pem"))
            except AssertionError as error:
                pytest.skip(f"this redis-server has no TLS: {error}")
            return port

        return start

    def test_verified_link_works_and_wakes(
        self, start_tls: Callable[[str], int], certificates: Path, broker_at: Callable[..., Broker]
    ) -> None:
        url = f"rediss://127.0.0.1:{start_tls('good')}/0?ssl_ca_certs={certificates / 'good.pem'}"
        broker, other = broker_at(url), broker_at(url)
        broker.connect()
        other.connect()

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(broker.fetch, 5, 10.0)
            time.sleep(0.05)
            other.publish("celery", envelope(task_id="t1", padding=100_000))
            (got,) = waiting.result(10)
        assert broker.fetch(1, 0.2) == []
        ack(broker, got)

        assert got.headers["id"] == "t1"

    def test_unknown_authority_and_wrong_name_are_refused(
        self, start_tls: Callable[[str], int], certificates: Path, broker_at: Callable[..., Broker]
    ) -> None:
        good, other = start_tls("good"), start_tls("other")

        with pytest.raises(BrokerRefused, match="certificate cannot be verified"):
            broker_at(f"rediss://127.0.0.1:{good}/0").connect()
        with pytest.raises(BrokerRefused, match="certificate cannot be verified"):
            broker_at(f"rediss://127.0.0.1:{other}/0?ssl_ca_certs={certificates / 'other.pem'}").connect()

    def test_verification_is_given_up_only_on_request(
        self, start_tls: Callable[[str], int], broker_at: Callable[..., Broker]
    ) -> None:
        broker = broker_at(f"rediss://127.0.0.1:{start_tls('other')}/0?ssl_cert_reqs=none")

        broker.connect()

        assert broker.fetch(1, 0.0) == []


def test_unix_socket(redis_server: RedisServer, redis_url: str, broker_at: Callable[..., Broker]) -> None:
    for scheme in ("redis+socket", "unix"):
        broker = broker_at(f"{scheme}://{redis_server.folder / 'redis.sock'}?virtual_host=2")
        broker.connect()
        broker.publish("celery", envelope(task_id="t1"))
        ack(broker, *collect(broker, 1))


RESERVING = """
import json, os, sys
from kernel_broker_redis.broker import RedisBroker
from kernel_worker import BrokerContext, Settlement, Verdict
url, done = sys.argv[1:]
broker = RedisBroker(BrokerContext(url, "victim", lease_s=0.5))
broker.connect()
out = os.open(done, os.O_WRONLY | os.O_APPEND)
print("up", flush=True)
while True:
    batch = broker.fetch(20, 0.2)
    for each in batch[:10]:
        os.write(out, (each.headers["id"] + "\\n").encode())
    broker.settle([Settlement(each, Verdict.ACK) for each in batch[:10]])
    broker.settle([Settlement(each, Verdict.REQUEUE) for each in batch[10:15]])
"""


def test_workers_killed_at_random_moments_lose_nothing(redis_url: str, client: Any, tmp_path: Path) -> None:
    """SIGKILL in the middle of reserving, acknowledging and requeueing. Every message is either acknowledged
    or comes back; one killed between writing down and acknowledging comes twice."""
    names = [f"t{n:05}" for n in range(8_000)]
    client.lpush("celery", *[envelope(task_id=name) for name in names])
    done = tmp_path / "done"
    done.touch()
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)

    for _ in range(10):
        command = [sys.executable, "-c", RESERVING, redis_url, str(done)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == b"up\n"
            time.sleep(chance.uniform(0.0, 0.02))  # the moment of death, not a wait
            victim.send_signal(signal.SIGKILL)
    broker = RedisBroker(BrokerContext(redis_url, "heir", lease_s=30))
    broker.connect()
    left: list[str] = []
    quiet_until = time.monotonic() + 1.0  # twice the lease of the victims
    while time.monotonic() < quiet_until:
        batch = broker.fetch(500, 0.1)
        ack(broker, *batch)
        left += [each.headers["id"] for each in batch]
        if batch:
            quiet_until = time.monotonic() + 1.0
    broker.close()

    finished = done.read_text().split()
    lost = set(names) - set(finished) - set(left)
    assert not lost, f"seed {seed}: lost {sorted(lost)[:5]}"
    assert len(left) == len(set(left)), f"seed {seed}: delivered twice to one holder"
    assert len(set(finished) & set(left)) <= 10 * 10, f"seed {seed}"
    assert finished, "the victims did some work"
    assert client.hlen("unacked") == client.zcard("unacked_index") == 0


def test_sweeping_spares_a_holder_that_is_only_slow(make_broker: MakeBroker, client: Any) -> None:
    """Its lease ended, it renews before anybody looked: everything stays with it."""
    slow, heir = make_broker(lease_s=0.5), make_broker()
    slow.publish("celery", envelope())
    held = collect(slow, 1)
    eventually(lambda: client.zrange("kw.holders", 0, 0, withscores=True)[0][1] < time.time())

    slow.renew(held)

    assert heir.fetch(1, 0.0) == []
    ack(slow, *held)
    assert slow.size("celery").in_flight == 0


def test_entries_of_a_holder_without_lease_come_back_like_a_peers(redis_url: str, client: Any) -> None:
    """A safety net: somebody deleted `kw.holders`."""
    lost = RedisBroker(BrokerContext(redis_url, "lost", lease_s=0.2))
    lost.connect()
    lost.publish("celery", envelope(task_id="t1"))
    collect(lost, 1)
    client.delete("kw.holders")
    heir = RedisBroker(BrokerContext(redis_url, "heir", lease_s=0.2, options={"visibility_timeout": 0.5}))
    heir.connect()

    (got,) = collect(heir, 1)

    assert got.headers["id"] == "t1"
    assert got.redelivered
    heir.close()
    lost.close()


def test_identical_messages_in_flight_are_two(redis_url: str, make_broker: MakeBroker, client: redis.Redis) -> None:
    raw = envelope(task_id="twin")
    client.lpush("celery", raw, raw)
    broker = make_broker()

    first, second = collect(broker, 2)
    broker.settle([Settlement(first, Verdict.REQUEUE)])
    ack(broker, second)

    assert json.loads(collect(broker, 1)[0].raw) == json.loads(raw)
    assert broker.size("celery").waiting == 0
