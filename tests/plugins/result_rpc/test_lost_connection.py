"""The connection that answers come over is lost while nobody reads: by the server, which ends a silent one, or on the way."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from kernel_app import App
from kernel_worker.testing import eventually
from tests.conftest import RunKw
from tests.faults.proxy import Proxy
from tests.plugins.broker_amqp.conftest import delete_queues
from tests.servers import RabbitServer

APPLICATION = """
from kernel_app import App
app = App("answers")

@app.task
def double(number):
    return 2 * number
"""


@pytest.fixture
def proxy(rabbitmq_server: RabbitServer) -> Iterator[Proxy]:
    """Cuts connections that wait for answers, and no others."""
    delete_queues(rabbitmq_server.port, "celery")
    between = Proxy(rabbitmq_server.port, only="kw:waiting")
    yield between
    between.close()


def test_answers_are_read_and_asked_for_over_a_new_one(
    kw: RunKw, tmp_path: Path, rabbitmq_server: RabbitServer, proxy: Proxy
) -> None:
    """Cause: who waited longer than two heartbeats before asking for a result got an error, and no result."""
    (tmp_path / "answers.py").write_text(APPLICATION)
    kw("run", "-A", "answers", "-b", rabbitmq_server.url, "--result-backend", "rpc://", "-c", "1")
    url = f"amqp://guest:guest@127.0.0.1:{proxy.port}//"
    with closing(App("client", broker_url=url, result_backend="rpc://")) as app:
        sent = app.send_task("answers.double", [1])
        assert proxy.cut() == 1

        assert sent.get(timeout=10) == 2
        assert proxy.cut() == 1
        later = app.send_task("answers.double", [2])
        assert later.get(timeout=10) == 4
        assert proxy.cut() == 1
        assert later.state == "SUCCESS"


def test_waiting_without_a_time_out_outlives_an_outage(
    kw: RunKw, tmp_path: Path, rabbitmq_server: RabbitServer, proxy: Proxy
) -> None:
    (tmp_path / "answers.py").write_text(APPLICATION)
    url = f"amqp://guest:guest@127.0.0.1:{proxy.port}//"
    with closing(App("client", broker_url=url, result_backend="rpc://")) as app, ThreadPoolExecutor(1) as pool:
        sent = app.send_task("answers.double", [1])
        waiting = pool.submit(sent.get)
        proxy.refusing = True
        proxy.cut()
        accepted = proxy.accepted
        eventually(lambda: proxy.accepted >= accepted + 2, within_s=10, message="attempts to connect")
        proxy.refusing = False
        kw("run", "-A", "answers", "-b", rabbitmq_server.url, "--result-backend", "rpc://", "-c", "1")

        assert waiting.result(timeout=20) == 2
