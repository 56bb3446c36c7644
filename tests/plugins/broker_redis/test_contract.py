"""The broker contract, held against RedisBroker and a real server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from kernel_broker_redis.broker import RedisBroker
from kernel_worker import Broker, BrokerContext
from kernel_worker.testing import BrokerContract, MakeBroker, broker_factory


class TestRedisBroker(BrokerContract):
    @pytest.fixture
    def make_broker(self, redis_url: str) -> Iterator[MakeBroker]:
        with broker_factory(RedisBroker, redis_url) as make:
            yield make

    @pytest.fixture
    def unreachable_broker(self) -> Iterator[Callable[[], Broker]]:
        with socket.socket() as listener:  # accepts in its backlog, and never answers
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            port = listener.getsockname()[1]
            yield lambda: RedisBroker(BrokerContext(f"redis://127.0.0.1:{port}/0?socket_connect_timeout=0.3"))
