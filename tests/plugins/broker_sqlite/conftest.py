"""Brokers, publishers and processes on one file that is new for every test."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from kernel_broker_sqlite import SqliteBroker, SqlitePublisher
from kernel_worker.testing import broker_factory, envelope


@dataclass
class Message:
    """What `kernel_app` hands to a publisher."""

    raw: bytes
    queue: str = "celery"
    exchange: str = ""
    routing_key: str = ""
    priority: int | None = None
    eta: float | None = None

    def envelope(self) -> bytes:
        return self.raw


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kw.db"


@pytest.fixture
def url(file: Path) -> str:
    return f"sqlite:///{file}"


@pytest.fixture
def make_broker(url: str) -> Iterator[Callable[..., SqliteBroker]]:
    """Brokers with a long lease, closed at the end."""
    with broker_factory(SqliteBroker, url, lease_s=30.0) as make:
        yield make  # type: ignore[misc]


@pytest.fixture
def broker(make_broker: Callable[..., SqliteBroker]) -> SqliteBroker:
    return make_broker()


@pytest.fixture
def publisher(url: str) -> Iterator[SqlitePublisher]:
    publisher = SqlitePublisher(url, {})
    yield publisher
    publisher.close()


@pytest.fixture
def message() -> Callable[..., Message]:
    """Makes messages: `message("t1", queue="other")`."""

    def make(task_id: str = "", **attributes: Any) -> Message:
        return Message(envelope(task_id=task_id), **attributes)

    return make


@pytest.fixture
def start() -> Iterator[Callable[..., BaseProcess]]:
    """Starts real processes: `start(function, *arguments)`. What still runs at the end is killed."""
    started: list[BaseProcess] = []
    context = multiprocessing.get_context("fork")

    def run(function: Callable[..., object], *arguments: Any) -> BaseProcess:
        process = context.Process(target=_run, args=(function, arguments), daemon=True)
        process.start()
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.join()
        process.close()


def _run(function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Ends without Python's shutdown: what was inherited from the test's process belongs to that."""
    code = 1
    try:
        function(*arguments)
        code = 0
    finally:
        os._exit(code)
