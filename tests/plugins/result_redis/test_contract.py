"""The result backend contract, held against RedisResults and a real server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
import redis

from kernel_result_redis import RedisResults
from kernel_worker import ResultBackend
from kernel_worker.testing import ResultBackendContract
from kernel_worker.testing.results_base import MakeBackend, backend_factory


class TestRedisResults(ResultBackendContract):
    @pytest.fixture
    def make_backend(self, redis_url: str) -> Iterator[MakeBackend]:
        with backend_factory(RedisResults, redis_url) as make:
            yield make

    @pytest.fixture
    def leftovers(self, redis_url: str) -> Iterator[Callable[[], int]]:
        with redis.Redis.from_url(redis_url) as client:
            yield lambda: len(client.pubsub_channels())

    @pytest.fixture
    def unreachable_backend(self) -> Iterator[Callable[[], ResultBackend]]:
        with socket.socket() as listener:  # accepts in its backlog, and never answers
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            port = listener.getsockname()[1]
            yield lambda: RedisResults(f"redis://127.0.0.1:{port}/0", {"redis_socket_connect_timeout": 0.2})
