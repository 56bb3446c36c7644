"""Two workers, two clients and one Redis for the whole folder: `pair` is every client with every worker."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kernel_worker.testing import Ledger, WorkerProcess
from tests.servers import RedisServer

from . import clients
from .clients import Answer
from .peers import CeleryWorker, ClientProcess, start_kw

SHARED = "shared"
"""Both workers consume it."""

CELERY, KW = "celery", "kw"
QUEUES = {CELERY: "for-celery", KW: "for-kw"}


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of this folder's own: the workers live longer than a test, and others empty theirs."""
    server = RedisServer(tmp_path_factory.mktemp("compat-redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the workers run."""
    return tmp_path_factory.mktemp("compat")


@pytest.fixture(scope="session")
def starting_celery(url: str, folder: Path) -> Iterator[CeleryWorker]:
    """The Celery worker, not necessarily ready: it takes a second, in which others may start, too."""
    worker = CeleryWorker(folder, url, f"{QUEUES[CELERY]},{SHARED},{QUEUES[CELERY]}.news", "-c", "2")
    yield worker
    worker.kill()
    print(f"--- Celery worker:\n{worker.output}")


@pytest.fixture(scope="session")
def kw_worker(url: str, folder: Path, starting_celery: CeleryWorker) -> Iterator[WorkerProcess]:
    """`kw` with two executors."""
    worker = start_kw(folder, url, f"{QUEUES[KW]},{SHARED},{QUEUES[KW]}.news", "-c", "2")
    yield worker
    worker.kill()
    print(f"--- kw:\n{worker.output}")


@pytest.fixture(scope="session")
def clients_of(url: str) -> Iterator[dict[str, ClientProcess]]:
    """A client of each library, by its kind."""
    started = {kind: ClientProcess(kind, url) for kind in (CELERY, KW)}
    yield started
    for client in started.values():
        client.stop()


@pytest.fixture(scope="session")
def workers(kw_worker: WorkerProcess, starting_celery: CeleryWorker, clients_of: dict[str, ClientProcess]) -> None:
    """Both workers are ready."""
    starting_celery.wait_until_ready()


@dataclass
class Pair:
    """A client and a worker."""

    client: ClientProcess
    client_kind: str
    worker_kind: str
    queue: str

    def call(self, task: str, *args: Any, settings: Any = None, **options: Any) -> Answer:
        """Send `compat.<task>` to this worker and wait for the answer."""
        found: Answer = self.client.do(
            clients.call, f"compat.{task}", args, settings=settings or {}, queue=self.queue, **options
        )
        return found

    def send(self, task: str, *args: Any, **options: Any) -> str:
        """Send `compat.<task>` to this worker; the id."""
        task_id: str = self.client.do(clients.send, f"compat.{task}", args, queue=self.queue, **options)
        return task_id

    def wait(self, task_id: str) -> Answer:
        """Wait for a task sent earlier."""
        found: Answer = self.client.do(clients.wait, task_id)
        return found

    def do(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Run any function of `clients` in the client's process."""
        return self.client.do(function, *args, **options)


def _pair(clients_of: dict[str, ClientProcess], client: str, worker: str) -> Pair:
    return Pair(clients_of[client], client, worker, QUEUES[worker])


# Celery with itself is the control: what it is held to here is really what Celery does.
PAIRS = {
    "celery to kw": (CELERY, KW),
    "kw to celery": (KW, CELERY),
    "kw to kw": (KW, KW),
    "celery to celery": (CELERY, CELERY),
}


@pytest.fixture(params=PAIRS.values(), ids=PAIRS.keys())
def pair(request: pytest.FixtureRequest, workers: None, clients_of: dict[str, ClientProcess]) -> Pair:
    """Each client with each worker."""
    return _pair(clients_of, *request.param)


@pytest.fixture(params=[KW, CELERY], ids=["celery to kw", "celery to celery"])
def from_celery(request: pytest.FixtureRequest, workers: None, clients_of: dict[str, ClientProcess]) -> Pair:
    """Celery's client with each worker: for what only its client has."""
    return _pair(clients_of, CELERY, request.param)


@pytest.fixture(params=[KW, CELERY], ids=["kw to kw", "kw to celery"])
def from_kw(request: pytest.FixtureRequest, workers: None, clients_of: dict[str, ClientProcess]) -> Pair:
    """Our client with each worker."""
    return _pair(clients_of, KW, request.param)


@pytest.fixture
def celery_to_kw(workers: None, clients_of: dict[str, ClientProcess]) -> Pair:
    return _pair(clients_of, CELERY, KW)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """What tasks of the test write down; hand `str(ledger.path)` to them."""
    return Ledger(tmp_path / f"ledger-{uuid.uuid4().hex[:8]}")
