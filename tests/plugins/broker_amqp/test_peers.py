"""`kw` and Celery on the same RabbitMQ queues, in both directions, as real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import celery
import pytest

from kernel_app import App
from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw

NATIVE = """
from kernel_app import App
from kernel_worker.testing import Ledger
app = App("peer")
@app.task(name="peer.note")
def note(name, *, colour):
    Ledger("ledger").note("kw", id=name, colour=colour)
"""
STOCK = """
import celery
from kernel_worker.testing import Ledger
app = celery.Celery("peer")
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)
@app.task(name="peer.note")
def note(name, *, colour):
    Ledger("ledger").note("celery", id=name, colour=colour)
"""


@pytest.fixture
def celery_worker(tmp_path: Path, amqp_url: str) -> Iterator[subprocess.Popen[bytes]]:
    (tmp_path / "stock.py").write_text(STOCK)
    command = [sys.executable, "-m", "celery", "-A", "stock", "-b", amqp_url, "worker", "-P", "solo", "-l", "warning"]
    log = (tmp_path / "celery.log").open("wb")
    process = subprocess.Popen(
        [*command, "--without-gossip", "--without-mingle"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    log.close()
    print((tmp_path / "celery.log").read_text())


def noted(ledger: Ledger, event: str) -> list[str]:
    return [str(each["id"]) for each in ledger.entries(event)]


def test_celery_client_sends_to_kw(kw: RunKw, tmp_path: Path, amqp_url: str, ledger: Ledger) -> None:
    (tmp_path / "native.py").write_text(NATIVE)
    client = celery.Celery("client", broker=amqp_url, set_as_current=False)
    client.send_task("peer.note", ("before",), {"colour": "ä"})

    kw("run", "-A", "native", "-b", amqp_url, "-c", "1")
    client.send_task("peer.note", ("after",), {"colour": "blue"})
    client.send_task("peer.note", ("later",), {"colour": "blue"}, countdown=1.5)

    eventually(
        lambda: noted(ledger, "kw") == ["before", "after", "later"], within_s=15, message=lambda: str(ledger.entries())
    )
    client.close()


def test_kw_client_sends_to_celery(celery_worker: subprocess.Popen[bytes], amqp_url: str, ledger: Ledger) -> None:
    client = App("client", broker_url=amqp_url)

    client.send_task("peer.note", ("t1",), {"colour": "ä"})
    client.send_task("peer.note", ("t2",), {"colour": "blue"}, countdown=1.0)

    eventually(
        lambda: noted(ledger, "celery") == ["t1", "t2"],
        within_s=30,
        message=lambda: str(ledger.entries()),
    )
    client.close()
