"""Fixtures of the end-to-end tests: a small application in the test's folder, a client for it, short commands."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kernel_app import App
from kernel_worker import Broker, BrokerContext, QueueInfo, QueueSpec, Secret
from kernel_worker.registry import Registry
from kernel_worker.testing import Ledger
from tests.e2e.environments import build_wheels

APP = """
import asyncio
import os
import time

from kernel_app import App
from kernel_worker.testing.ledger import Ledger

app = App("shop")
ledger = Ledger("ledger")


@app.task
def add(x, y):
    return x + y


@app.task
def fail(text):
    raise ValueError(text)


@app.task(bind=True)
def note(self, key):
    ledger.note("note", id=key, queue=self.request.queue, node=self.request.hostname)
    return key


@app.task(bind=True)
def nap(self, key, seconds):
    ledger.note("start", id=key, node=self.request.hostname)
    time.sleep(seconds)
    ledger.note("end", id=key)


@app.task(bind=True)
def hold(self, key):
    ledger.note("start", id=key, again=self.request.delivery_info["redelivered"])
    while not os.path.exists("release"):
        time.sleep(0.01)
    ledger.note("end", id=key)


@app.task(bind=True, max_retries=3)
def again(self, countdown):
    ledger.note("try", retries=self.request.retries)
    if self.request.retries < 1:
        raise self.retry(countdown=countdown)
    return self.request.retries


@app.task
async def double(n):
    await asyncio.sleep(0.01)
    return 2 * n


@app.task(ignore_result=True)
def tick():
    pass
"""

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel of each member."""
    folder = tmp_path_factory.mktemp("wheels")
    build_wheels(folder)
    return folder


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The application `shop`, written into the test's folder."""
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """`command("queues", "--json", env={})`: run `kw` to its end in the test's folder."""

    def run(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kernel_worker.cli", *arguments],
            cwd=tmp_path,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=30,
        )

    return run


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty broker of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'kw.db'}"
    redis_url: str = request.getfixturevalue("redis_url")
    return redis_url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Where workers find their messages that are told nothing else."""
    return f"sqlite:///{tmp_path / 'kw.db'}"


@contextmanager
def client(url: str, **settings: Any) -> Iterator[App]:
    """What sends the tasks, in the test's own process."""
    app = App("client", broker_url=url, result_backend=url, **settings)
    try:
        yield app
    finally:
        app.close()


@functools.cache
def _driver(url: str) -> type[Broker]:
    registry = Registry.discover()
    return registry.load_broker(registry.select(), Secret(url))


def sizes(url: str, queue: str = "celery") -> QueueInfo:
    """What the broker itself says of one queue: many times faster than `kw queues`."""
    broker = _driver(url)(BrokerContext(url, "test", (QueueSpec(queue),)))
    broker.connect()
    try:
        return broker.size(queue)
    finally:
        broker.close()


def notes(ledger: Ledger, event: str) -> list[Any]:
    """Ids of an event in the order they were written."""
    return [entry["id"] for entry in ledger.entries(event)]
