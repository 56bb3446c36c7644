"""One worker per broker for the whole folder, and the clients that command it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel_app import App
from kernel_worker.testing import WorkerProcess, eventually
from tests.servers import RedisServer

APPLICATION = """
import time
from pathlib import Path

from kernel_app import App

app = App("proj", task_acks_late={acks_late})


@app.task
def add(x, y):
    return x + y


@app.task
def sleep(seconds):
    time.sleep(seconds)


@app.task
def burn(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@app.task
def hold(folder, name):
    with open(f"{{folder}}/{{name}}", "a") as file:
        file.write("x")
    until = time.monotonic() + 60
    while not Path(folder, "go").exists() and time.monotonic() < until:
        time.sleep(0.02)
    return name
"""

BROKERS = ("redis", "sqlite", "amqp")
Cli = Callable[..., subprocess.CompletedProcess[str]]


class Site:
    """A worker on one broker: `site.app` commands it, `site.send("add", 1, 2)` gives it work."""

    def __init__(self, folder: Path, broker: str, results: str, *, node: str = "w1@site") -> None:
        self.folder = folder
        self.broker = broker
        self.node = node
        self.app = App("client", broker_url=broker, result_backend=results)
        self._results = results
        self.workers: list[WorkerProcess] = []

    def start(self, *arguments: str, node: str = "", acks_late: bool = True) -> WorkerProcess:
        """Start `kw` and wait until it can be commanded."""
        (self.folder / "proj.py").write_text(APPLICATION.format(acks_late=acks_late))
        node = node or self.node
        command = ["run", "-A", "proj", "-b", self.broker, "--result-backend", self._results, "-n", node, "-l", "info"]
        worker = WorkerProcess([*command, *arguments], cwd=self.folder)
        self.workers.append(worker)
        return worker.wait_for_output("remote control listens")

    def ask(self, command: str, node: str = "", timeout: float = 5.0, **arguments: Any) -> Any:
        """The reply of one node."""
        node = node or self.node
        replies = self.app.control.broadcast(command, arguments, [node], reply=True, timeout=timeout)
        assert replies, f"{node} did not answer to {command}"
        return replies[0][node]

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        """Send a task; its result object."""
        return self.app.send_task(f"proj.{task}", args, **options)

    def close(self) -> None:
        """Kill what is left."""
        for worker in self.workers:
            worker.kill()
            print(f"--- kw:\n{worker.output}")
        self.app.close()


@pytest.fixture(scope="session")
def control_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of this folder's own: its worker outlives a test, and others empty theirs."""
    server = RedisServer(tmp_path_factory.mktemp("control-redis"))
    server.start()
    yield server
    server.stop()


def _site(request: pytest.FixtureRequest, kind: str, folder: Path) -> Site:
    results = f"sqlite:///{folder}/results.db"
    if kind == "sqlite":
        return Site(folder, f"sqlite:///{folder}/kw.db", results)
    server = request.getfixturevalue("control_redis" if kind == "redis" else "rabbitmq_server")
    return Site(folder, server.url, results)


@pytest.fixture(scope="session", params=BROKERS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A prefork worker with two executors, on each broker in turn."""
    site = _site(request, request.param, tmp_path_factory.mktemp(f"site-{request.param}"))
    site.start("-c", "2", "-Q", f"{request.param}-control")
    site.app.conf.task_default_queue = f"{request.param}-control"
    yield site
    site.close()


@pytest.fixture
def own_site(redis_url: str, tmp_path: Path) -> Iterator[Site]:
    """A place for workers of the test's own, on Redis."""
    site = Site(tmp_path, redis_url, redis_url)
    yield site
    site.close()


@pytest.fixture
def cli() -> Cli:
    """`cli("status", "-b", url)`."""

    def run(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kernel_worker.cli", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=30,
        )

    return run


@pytest.fixture
def running(site: Site) -> Callable[[str], dict[str, Any]]:
    """`running(task_id)`: what `active` says of it, as soon as it runs."""

    def find(task_id: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def runs() -> bool:
            found[:] = [each for each in site.ask("active") if each["id"] == task_id]
            return bool(found)

        eventually(runs, within_s=10)
        return found[0]

    return find
