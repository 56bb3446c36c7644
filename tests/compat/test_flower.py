"""Flower, started as its users start it, next to a `kw` worker: what it shows, and what its API does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel_worker.testing import WorkerProcess, eventually
from tests.servers import RedisServer, free_port

from . import clients
from .peers import ClientProcess, environment, start_kw

QUEUE = "flowers"
NODE = "gardener@kw"


class Flower:
    """One Flower process."""

    def __init__(self, folder: Path, url: str) -> None:
        self.port = free_port()
        self._log = folder / "flower.log"
        command = [sys.executable, "-m", "celery", "-A", "tests.compat.celery_app", "-b", url, "flower"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, f"--port={self.port}", "--address=127.0.0.1", "--inspect_timeout=700"],
                cwd=folder,
                env={**os.environ, **environment(url, QUEUE), "FLOWER_UNAUTHENTICATED_API": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def get(self, path: str) -> Any:
        """A page of the API.

        :raises OSError: it does not answer, or not with what was asked for.
        """
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return json.load(answer) if path.startswith("/api/") else answer.read().decode()

    def post(self, path: str, **fields: Any) -> str:
        """Carry out something; what Flower says of it, also when it failed."""
        data = urllib.parse.urlencode(fields).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                message: str = json.load(answer)["message"]
                return message
        except urllib.error.HTTPError as error:
            return f"{error.code}: {error.read().decode()}"

    def worker(self) -> dict[str, Any]:
        """What it knows of our worker, asked for anew; {} when it does not know it."""
        try:
            found = self.get("/api/workers?refresh=1")
        except OSError:
            return {}
        known: dict[str, Any] = found.get(NODE) or {}
        return known

    def task(self, task_id: str) -> dict[str, Any]:
        """What it knows of a task; {} when it does not know it."""
        try:
            found: dict[str, Any] = self.get(f"/api/task/info/{task_id}")
        except urllib.error.HTTPError:
            return {}
        return found

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """End it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("flower-redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def flower(broker: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    pytest.importorskip("flower")
    flower = Flower(tmp_path_factory.mktemp("flower"), broker.url)
    yield flower
    flower.kill()
    print(f"--- Flower:\n{flower.output[-5000:]}")


@pytest.fixture(scope="module")
def worker(broker: RedisServer, flower: Flower, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    worker = start_kw(tmp_path_factory.mktemp("gardener"), broker.url, QUEUE, "-c", "2", "-n", NODE, "-E")
    yield worker
    worker.kill()
    print(f"--- kw:\n{worker.output[-5000:]}")


@pytest.fixture(scope="module")
def client(broker: RedisServer) -> Iterator[ClientProcess]:
    client = ClientProcess("celery", broker.url)
    yield client
    client.stop()


@pytest.fixture(scope="module")
def known(flower: Flower, worker: WorkerProcess) -> dict[str, Any]:
    """Flower is up and has asked our worker all it asks."""
    found: dict[str, Any] = {}

    def is_known() -> bool:
        found.update(flower.worker())
        return {"stats", "active_queues", "registered"} <= found.keys()

    eventually(is_known, within_s=40, message=lambda: f"Flower to know {NODE}: {flower.output[-2000:]}")
    return found


def say(flower: Flower, path: str, answer: str, **fields: Any) -> None:
    """Carry out what may be done twice, until Flower says this: it waits a second for the worker's reply, no longer."""
    eventually(lambda: flower.post(path, **fields) == answer, within_s=10, message=lambda: flower.post(path, **fields))


def test_worker_is_online_with_pool_and_queues(flower: Flower, known: dict[str, Any]) -> None:
    assert known["stats"]["pool"]["max-concurrency"] == 2
    assert known["stats"]["broker"]["transport"] == "redis"
    assert [queue["name"] for queue in known["active_queues"]] == [QUEUE]
    assert "compat.add" in [name.partition(" ")[0] for name in known["registered"]]
    eventually(lambda: flower.get("/api/workers?status=1") == {NODE: True}, within_s=10)


def test_pages_of_worker_and_tasks_are_shown(flower: Flower, known: dict[str, Any]) -> None:
    assert NODE in flower.get(f"/worker/{NODE}")
    eventually(lambda: NODE in flower.get("/workers"), within_s=20)  # from events: the heartbeat may be on its way


def test_task_is_shown_with_state_runtime_and_result(flower: Flower, client: ClientProcess, known: object) -> None:
    task_id = client.do(clients.send, "compat.add", (2, 3), queue=QUEUE)

    eventually(lambda: flower.task(task_id).get("state") == "SUCCESS", within_s=10)
    task = flower.task(task_id)

    assert task["name"] == "compat.add"
    assert task["args"] == "(2, 3)"
    assert task["result"] == "5"
    assert task["runtime"] >= 0
    assert task["worker"] == NODE
    assert task["received"] <= task["started"] <= task["succeeded"]


def test_failure_is_shown_with_exception_and_traceback(flower: Flower, client: ClientProcess, known: object) -> None:
    task_id = client.do(clients.send, "compat.fail", ("value",), queue=QUEUE)

    eventually(lambda: flower.task(task_id).get("state") == "FAILURE", within_s=10)
    task = flower.task(task_id)

    assert task["exception"].endswith(")")
    assert task["traceback"].startswith("Traceback (most recent call last):")


def test_running_task_is_terminated(flower: Flower, client: ClientProcess, known: object, tmp_path: Path) -> None:
    task_id = client.do(clients.send, "compat.sleep", (str(tmp_path / "ledger"), "x", 60), queue=QUEUE)
    eventually(lambda: flower.task(task_id).get("state") == "STARTED", within_s=10)

    message = flower.post(f"/api/task/revoke/{task_id}", terminate="true", signal="SIGKILL")

    assert message == f"Revoked '{task_id}'"
    eventually(lambda: flower.task(task_id).get("state") == "REVOKED", within_s=10)
    assert client.do(clients.wait, task_id).state == "REVOKED"


def test_task_that_waits_is_revoked(flower: Flower, client: ClientProcess, known: object) -> None:
    task_id = client.do(clients.send, "compat.add", (1, 1), queue=QUEUE, countdown=5)
    eventually(lambda: flower.task(task_id).get("state") == "RECEIVED", within_s=10)

    flower.post(f"/api/task/revoke/{task_id}")

    eventually(lambda: flower.task(task_id).get("state") == "REVOKED", within_s=20)


def test_rate_limit_is_set(flower: Flower, known: object) -> None:
    path = "/api/task/rate-limit/compat.tracked"
    say(flower, path, "new rate limit set successfully", workername=NODE, ratelimit="7/s")

    eventually(lambda: "compat.tracked [rate_limit=7/s]" in flower.worker()["registered"], within_s=10)


def test_time_limits_are_set(flower: Flower, known: object) -> None:
    path = "/api/task/timeout/compat.tracked"
    say(flower, path, "time limits set successfully", workername=NODE, hard=20, soft=10)


def test_pool_grows_and_shrinks(flower: Flower, known: object) -> None:
    def processes() -> int:
        return len(flower.worker()["stats"]["pool"]["processes"])

    assert "Growing" in flower.post(f"/api/worker/pool/grow/{NODE}", n=1)
    eventually(lambda: processes() == 3, within_s=10)

    assert "Shrinking" in flower.post(f"/api/worker/pool/shrink/{NODE}", n=1)
    eventually(lambda: processes() == 2, within_s=10)


def test_queues_are_added_and_cancelled(flower: Flower, known: object) -> None:
    def queues() -> list[str]:
        return [queue["name"] for queue in flower.worker()["active_queues"]]

    say(flower, f"/api/worker/queue/add-consumer/{NODE}", "add consumer beds", queue="beds")
    eventually(lambda: queues() == [QUEUE, "beds"], within_s=10)

    say(flower, f"/api/worker/queue/cancel-consumer/{NODE}", "no longer consuming from beds", queue="beds")
    eventually(lambda: queues() == [QUEUE], within_s=10)


def test_worker_is_shut_down_and_shown_offline(flower: Flower, known: object, worker: WorkerProcess) -> None:
    """The last one: the worker is gone afterwards."""
    assert flower.post(f"/api/worker/shutdown/{NODE}") == "Shutting down!"

    eventually(lambda: worker.exit_code == 0, within_s=15, message=lambda: worker.output[-2000:])
    begun = time.monotonic()
    eventually(lambda: flower.get("/api/workers?status=1") == {NODE: False}, within_s=10)
    assert time.monotonic() - begun < 10
