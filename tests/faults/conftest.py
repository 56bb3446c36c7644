"""Fixtures of the fault tests: the application in the test's folder, brokers by URL."""

from __future__ import annotations

from pathlib import Path

import amqp
import pytest

from tests.faults.application import write_app
from tests.plugins.broker_amqp.conftest import delete_queues
from tests.servers import RabbitServer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the workers run; holds the application and the ledger."""
    write_app(tmp_path)
    return tmp_path


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, folder: Path) -> str:
    """An empty broker of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{folder / 'kw.db'}"
    redis_url: str = request.getfixturevalue("redis_url")
    return redis_url


@pytest.fixture(params=["classic", "quorum"])
def amqp_url(request: pytest.FixtureRequest, rabbitmq_server: RabbitServer) -> str:
    """RabbitMQ with an empty queue of each type, which the workers find out for themselves."""
    delete_queues(rabbitmq_server.port, "celery")
    with amqp.Connection(f"127.0.0.1:{rabbitmq_server.port}", userid="guest", password="guest") as connection:
        arguments = {"x-queue-type": request.param}
        connection.channel().queue_declare("celery", durable=True, auto_delete=False, arguments=arguments)
    return rabbitmq_server.url
