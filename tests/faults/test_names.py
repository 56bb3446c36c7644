"""Names that lead elsewhere, and names that two have."""

from __future__ import annotations

import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kernel_broker_amqp.broker import AmqpBroker
from kernel_broker_redis.broker import RedisBroker
from kernel_worker.drivers import Broker, BrokerContext
from kernel_worker.errors import BrokerUnavailable
from kernel_worker.testing import Ledger
from tests.conftest import RunKw
from tests.faults.application import MODULE, OPTIONS, client
from tests.servers import RabbitServer, RedisServer

HOST = "broker.test"


@pytest.mark.parametrize("kind", ["redis", "amqp"])
def test_name_of_the_broker_is_resolved_again_at_each_attempt(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    address, resolve = "127.0.0.9", socket.getaddrinfo

    def lead(host: Any, *args: Any, **options: Any) -> Any:
        return resolve(address if host == HOST else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lead)
    broker: Broker
    if kind == "redis":
        redis: RedisServer = request.getfixturevalue("redis_server")
        broker = RedisBroker(BrokerContext(f"redis://{HOST}:{redis.port}/0"))
    else:
        rabbit: RabbitServer = request.getfixturevalue("rabbitmq_server")
        broker = AmqpBroker(BrokerContext(f"amqp://guest:guest@{HOST}:{rabbit.port}//"))
    try:
        with pytest.raises(BrokerUnavailable):
            broker.connect()
        address = "127.0.0.1"
        broker.connect()
        broker.declare(broker.context.queues)

        assert broker.fetch(1, 0.05) == []
    finally:
        broker.close()


def test_two_workers_of_one_name_do_not_take_each_others_messages(
    url: str, folder: Path, kw: RunKw, ledger: Ledger
) -> None:
    """The lease belongs to the process, not to its name: one of them stops, the other goes on holding."""
    options = (*OPTIONS, "-b", url, "--result-backend", url, "-c", "1", "-n", "twin")
    twins = [kw(*options), kw(*options)]
    with client(url) as app:
        sent = [app.send_task(f"{MODULE}.work", [str(n), 0.01]) for n in range(100)]
        held = [app.send_task(f"{MODULE}.hold", [f"held {n}"]) for n in range(2)]
        for n in range(2):
            (folder / f"release-held {n}").touch()
        assert [each.get(timeout=20) for each in held] == ["held 0", "held 1"]
        assert twins[0].stop() == 0
        last = app.send_task(f"{MODULE}.echo", ["last"])
        assert last.get(timeout=20) == "last"
    assert twins[1].stop() == 0
    assert len(sent) == 100
    assert set(Counter(entry["id"] for entry in ledger.entries("end")).values()) == {1}
    assert ledger.count("end") == 102
