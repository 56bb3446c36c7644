"""Brokers on a private redis-server, and the other programs that use its queues."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kombu
import pytest
import redis

from kernel_broker_redis.broker import RedisBroker
from kernel_worker.testing import MakeBroker, broker_factory


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """What another program sees: redis-py."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def make_broker(redis_url: str) -> Iterator[MakeBroker]:
    with broker_factory(RedisBroker, redis_url) as make:
        yield make


@pytest.fixture
def peer(redis_url: str) -> Iterator[kombu.Connection]:
    """A kombu peer on the same database that gives others up for lost after two seconds."""
    with kombu.Connection(redis_url, transport_options={"visibility_timeout": 2}) as connection:
        yield connection
