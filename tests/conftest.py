"""Fixtures that several folders of tests share: private servers, `kw` as a subprocess, the ledger of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from kernel_worker.testing import Ledger, WorkerProcess
from tests.servers import RabbitServer, RedisServer

DEAR = ("proof", "victim", "flower", "ear", "site", "cannot_start")
"""Fixtures of whole modules that take seconds to make."""

SHARED = ("rabbitmq_server", "wheels")
"""Fixtures of the whole session that take seconds to make."""

ON_RABBITMQ = ("amqp", "classic", "quorum")
"""Parameters of tests that ask for that server while they run."""

Server = TypeVar("Server", RedisServer, RabbitServer)

RunKw = Callable[..., WorkerProcess]
"""`kw(*arguments, ready=True, env={})`: start `kw` with these arguments in `tmp_path`; with `ready`, wait for the line
that says so."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Side by side (`-n`), tests that share something dear to start are run by one process, so that there is one of it.
    Not later: pytest-xdist asks for the groups before other plugins may change the list of tests."""
    if not hasattr(item.config.option, "loadgroup"):  # set where tests run side by side
        return
    names = getattr(item, "fixturenames", ())
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    group = ""
    if shared := next((name for name in SHARED if name in names), ""):
        group = shared
    elif any(each in ON_RABBITMQ for each in parameters.values() if isinstance(each, str)):
        group = SHARED[0]
    elif dear := next((name for name in DEAR if name in names), ""):
        group = f"{item.nodeid.partition('::')[0]} {parameters.get(dear, '')}"
    if group:
        item.add_marker(pytest.mark.xdist_group(group))
        # pytest-xdist 3.8 hands the group on in an attribute that pytest 9.2 does not read any more: without this, each
        # process starts all of it.
        item._id = type(item.id).parse(f"{item.nodeid}@{group}")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One redis-server for all tests that do not stop it. Use `redis_url` for an empty database on it."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of an empty database."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """`start_redis(*arguments)`: a redis-server of the test's own, to be stopped, paused, restarted, configured."""
    with _starting(tmp_path, RedisServer) as start:
        yield start


@pytest.fixture
def start_rabbitmq(tmp_path: Path) -> Iterator[Callable[[], RabbitServer]]:
    """`start_rabbitmq()`: a node of the test's own, to be restarted. Takes about five seconds."""
    with _starting(tmp_path, RabbitServer) as start:
        yield start


@contextmanager
def _starting(folder: Path, make: Callable[..., Server]) -> Iterator[Callable[..., Server]]:
    """A function that starts servers in folders of their own; all are killed at the end."""
    started: list[Server] = []

    def start(*arguments: str) -> Server:
        place = folder / f"{make.__name__}{len(started)}"
        place.mkdir()
        server = make(place, *arguments)
        started.append(server)
        server.start()
        return server

    try:
        yield start
    finally:
        for server in started:
            server.kill()


@pytest.fixture(scope="session")
def rabbitmq_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """One RabbitMQ node for all tests. Queues outlive tests: use names of the test's own, or delete what you use."""
    server = RabbitServer(tmp_path_factory.mktemp("rabbitmq"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def kw(tmp_path: Path) -> Iterator[RunKw]:
    """Starts `kw` in `tmp_path`; whatever is left of it is killed after the test, and its output is shown on failure."""
    started: list[WorkerProcess] = []

    def run(*arguments: str, ready: bool = True, env: Mapping[str, str] | None = None) -> WorkerProcess:
        process = WorkerProcess(arguments, cwd=tmp_path, env=env)
        started.append(process)
        return process.wait_until_ready() if ready else process

    yield run
    for process in started:
        process.kill()
        print(f"--- kw {' '.join(process.arguments)}: exit code {process.exit_code}\n{process.output}")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """What tasks of the test write down: in the application, `Ledger("ledger").note("start", id=…)`."""
    return Ledger(tmp_path / "ledger")
