"""The RabbitMQ node of the session, with a queue of replies of the test's own."""

from __future__ import annotations

import pytest

from tests.servers import RabbitServer


@pytest.fixture
def amqp_url(rabbitmq_server: RabbitServer) -> str:
    return rabbitmq_server.url
