"""A server that speaks the protocol of SQS, and what publishers are given."""

from __future__ import annotations

import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kernel_worker.testing import envelope, eventually
from tests.servers import free_port


@dataclass
class Message:
    """What `kernel_app` hands to a publisher."""

    raw: bytes
    queue: str = "celery"
    exchange: str = ""
    exchange_type: str = "direct"
    routing_key: str = ""
    priority: int | None = None
    eta: float | None = None
    properties: dict[str, Any] = field(default_factory=dict)

    def envelope(self) -> bytes:
        return self.raw


@pytest.fixture
def message() -> Callable[..., Message]:
    """Makes messages: `message("t1", queue="other")`."""

    def make(task_id: str = "", **attributes: Any) -> Message:
        return Message(envelope(task_id=task_id), **attributes)

    return make


@pytest.fixture(scope="session")
def sqs_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of moto's server: one for all tests, so queues have names of the test's own (`sqs_options`)."""
    port = free_port()
    log = tmp_path_factory.mktemp("moto") / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )

    def answers() -> bool:
        assert process.poll() is None, f"moto's server ended: {log.read_text()[-1000:]}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        eventually(answers, within_s=30, message=f"an answer of moto's server on port {port}")
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def sqs_url(sqs_port: int) -> str:
    return f"sqs://key:secret@127.0.0.1:{sqs_port}"


@pytest.fixture
def sqs_options() -> dict[str, Any]:
    """Transport options with a prefix that no other test has."""
    return {"region": "eu-central-1", "queue_name_prefix": f"t{uuid.uuid4().hex[:8]}-"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where messages of `filesystem://` are."""
    return tmp_path / "messages"
