"""Answers between `kw` and Celery, in both directions, as real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import celery
import pytest

from kernel_app import App
from kernel_app.exceptions import OperationalError
from tests.conftest import RunKw
from tests.servers import free_port

TASKS = """
@app.task(name="peer.add")
def add(x, y):
    return x + y
@app.task(name="peer.fail")
def fail():
    raise ValueError("wanted: ä")
"""
NATIVE = "from kernel_app import App\napp = App('peer')\n" + TASKS
STOCK = "import celery\napp = celery.Celery('peer', backend='rpc://')\n" + TASKS


@contextlib.contextmanager
def celery_client(url: str) -> Iterator[celery.Celery]:
    with celery.Celery("client", broker=url, backend="rpc://", set_as_current=False) as client:
        yield client
        client.backend.result_consumer.stop()


@pytest.fixture
def queue() -> str:
    return f"rpc.{uuid.uuid4().hex[:8]}"


@pytest.fixture
def celery_worker(tmp_path: Path, amqp_url: str, queue: str) -> Iterator[None]:
    (tmp_path / "stock.py").write_text(STOCK)
    command = [sys.executable, "-m", "celery", "-A", "stock", "-b", amqp_url, "worker", "-P", "solo", "-l", "warning"]
    with (tmp_path / "celery.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "-Q", queue, "--without-gossip", "--without-mingle"],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        yield
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    print((tmp_path / "celery.log").read_text())


def test_celery_client_reads_what_kw_answers(kw: RunKw, tmp_path: Path, amqp_url: str, queue: str) -> None:
    (tmp_path / "native.py").write_text(NATIVE)
    kw("run", "-A", "native", "-b", amqp_url, "-c", "1", "-Q", queue, "--result-backend", "rpc://")
    with celery_client(amqp_url) as client:
        results = [client.send_task("peer.add", (n, 1), queue=queue) for n in range(5)]
        failed = client.send_task("peer.fail", queue=queue)

        assert [result.get(timeout=15) for result in reversed(results)] == [5, 4, 3, 2, 1]
        with pytest.raises(ValueError, match="wanted: ä"):
            failed.get(timeout=15)


def test_kw_client_reads_what_celery_answers(celery_worker: None, amqp_url: str, queue: str) -> None:
    client = App("client", broker_url=amqp_url, result_backend="rpc://")
    results = [client.send_task("peer.add", (n, 1), queue=queue) for n in range(5)]
    failed = client.send_task("peer.fail", queue=queue)

    assert [result.get(timeout=30) for result in reversed(results)] == [5, 4, 3, 2, 1]
    assert results[0].get(timeout=1) == 1
    with pytest.raises(ValueError, match="wanted: ä"):
        failed.get(timeout=15)
    client.close()


def test_last_of_a_chain_answers_to_who_sent_the_chain(kw: RunKw, tmp_path: Path, amqp_url: str, queue: str) -> None:
    (tmp_path / "native.py").write_text(NATIVE)
    kw("run", "-A", "native", "-b", amqp_url, "-c", "1", "-Q", queue, "--result-backend", "rpc://")
    with celery_client(amqp_url) as client:
        steps = [client.signature("peer.add", args, queue=queue) for args in ((1, 2), (3,), (4,))]

        assert celery.chain(*steps, app=client).apply_async().get(timeout=15) == 10


def test_broker_that_is_no_rabbitmq_is_refused_by_name() -> None:
    client = App("client", broker_url="redis://localhost:1", result_backend="rpc://")

    with pytest.raises(Exception, match="must be RabbitMQ"):
        client.send_task("peer.add", (1, 2))


def test_broker_that_is_away_is_told_at_the_send_without_credentials() -> None:
    url = f"amqp://u:hidden@127.0.0.1:{free_port()}//"
    client = App("client", broker_url=url, result_backend="rpc://", task_publish_retry=False)

    with pytest.raises(OperationalError) as caught:
        client.send_task("peer.add", (1, 2))

    assert "hidden" not in str(caught.value)
