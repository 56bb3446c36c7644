"""Events of a `kw` worker and of a Celery worker, side by side: what happened is told by the same events, with the same
keys, in the same order, and with values of the same types."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import celery
import pytest

from kernel_worker.testing import WorkerProcess, eventually
from tests.servers import RedisServer

from .peers import CeleryWorker, environment, start_kw

CELERY, KW = "celery", "kw"
QUEUES = {CELERY: "told-celery", KW: "told-kw"}
NODES = {CELERY: f"{QUEUES[CELERY]}@peer", KW: "told@kw"}
WITHIN_S = 30.0
VARYING = {"clock", "timestamp", "local_received", "pid", "hostname", "loadavg"}


@dataclass
class Ear:
    """Everything Celery's own receiver hears."""

    events: list[dict[str, Any]] = field(default_factory=list)

    def of_task(self, task_id: str) -> list[dict[str, Any]]:
        """In the order of the sender's clock."""
        return sorted((each for each in self.events if each.get("uuid") == task_id), key=lambda each: each["clock"])

    def of_worker(self, node: str, kind: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["type"] == kind and each["hostname"] == node]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("events-redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def app(broker: RedisServer) -> celery.Celery:
    return celery.Celery("told", broker=broker.url, backend=broker.url, set_as_current=False)


@pytest.fixture(scope="module")
def ear(app: celery.Celery) -> Iterator[Ear]:
    ear, ready, stop = Ear(), threading.Event(), threading.Event()

    def listen() -> None:
        with app.connection() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": ear.events.append}, app=app)
            with receiver.consumer_context(wakeup=False) as (listening, _, _):
                ready.set()
                while not stop.is_set():
                    try:
                        listening.drain_events(timeout=0.1)
                    except TimeoutError:
                        continue

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield ear
    stop.set()
    thread.join(10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("told")


@pytest.fixture(scope="module")
def workers(broker: RedisServer, ear: Ear, folder: Path) -> Iterator[dict[str, CeleryWorker | WorkerProcess]]:
    settings = {"worker_proc_alive_timeout": 20}
    theirs = CeleryWorker(folder, broker.url, QUEUES[CELERY], "-c", "2", "-E", settings=settings)
    ours = start_kw(folder, broker.url, QUEUES[KW], "-c", "2", "-E", "-n", NODES[KW])
    theirs.wait_until_ready()
    yield {CELERY: theirs, KW: ours}
    theirs.kill()
    ours.kill()
    print(f"--- Celery worker:\n{theirs.output[-3000:]}\n--- kw:\n{ours.output[-3000:]}")


Send = Callable[[celery.Celery, str, Ear], str]


def plain(name: str, *args: Any, **options: Any) -> Send:
    return lambda app, queue, ear: str(app.send_task(f"compat.{name}", args, queue=queue, **options).id)


def revoked_while_parked(app: celery.Celery, queue: str, ear: Ear) -> str:
    result = app.send_task("compat.add", (1, 2), queue=queue, countdown=4.0)
    eventually(lambda: ear.of_task(result.id), within_s=WITHIN_S)  # received before it is revoked, or it never is
    app.control.revoke(result.id)
    return str(result.id)


def terminated(app: celery.Celery, queue: str, ear: Ear) -> str:
    result = app.send_task("compat.tracked", (60,), queue=queue)
    eventually(lambda: result.state == "STARTED", within_s=WITHIN_S)
    app.control.revoke(result.id, terminate=True, signal="SIGKILL")
    return str(result.id)


def revoked_before(app: celery.Celery, queue: str, ear: Ear) -> str:
    task_id = celery.utils.uuid()
    app.control.revoke(task_id, reply=True, timeout=3, limit=2)
    return str(app.send_task("compat.add", (1, 2), queue=queue, task_id=task_id).id)


SCENES: dict[str, tuple[Send, tuple[str, ...]]] = {
    "success": (plain("add", 2, 3), ("received", "started", "succeeded")),
    "failure": (plain("fail", "unicode"), ("received", "started", "failed")),
    "eta": (plain("add", 2, 3, countdown=0.5), ("received", "started", "succeeded")),
    "shadow": (plain("add", 2, 3, shadow="other.name"), ("received", "started", "succeeded")),
    "expired": (plain("add", 2, 3, expires=-10), ("revoked",)),
    "revoked while parked": (revoked_while_parked, ("received", "revoked")),
    "revoked before it was received": (revoked_before, ("revoked",)),
    "terminated": (terminated, ("received", "started", "revoked")),
    "retries": (
        plain("retry", 1, 0.1),
        ("received", "started", "retried", "received", "started", "succeeded"),
    ),
}


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES.keys())
def test_task_is_told_of_as_celery_does(
    scene: tuple[Send, tuple[str, ...]], app: celery.Celery, ear: Ear, workers: object
) -> None:
    send, expected = scene
    told: dict[str, list[dict[str, Any]]] = {}
    for kind in (CELERY, KW):
        task_id = send(app, QUEUES[kind], ear)
        eventually(
            lambda task_id=task_id: len(ear.of_task(task_id)) >= len(expected),
            within_s=WITHIN_S,
            message=lambda task_id=task_id: f"{expected}: {ear.of_task(task_id)}",
        )
        told[kind] = ear.of_task(task_id)
    if "retried" in expected:  # the new message may be received before the end of the run that sent it is reported
        told = {kind: sorted(events, key=lambda each: str(each["type"])) for kind, events in told.items()}
        expected = tuple(sorted(expected))

    assert [each["type"] for each in told[CELERY]] == [f"task-{each}" for each in expected]
    assert [each["type"] for each in told[KW]] == [f"task-{each}" for each in expected]
    for theirs, ours in zip(told[CELERY], told[KW], strict=True):
        assert list(ours) == list(theirs)
        assert {key: type(value) for key, value in ours.items()} == {key: type(value) for key, value in theirs.items()}
        same = theirs.keys() - VARYING - {"uuid", "root_id", "parent_id", "traceback", "runtime", "eta", "expires"}
        assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}


@pytest.mark.parametrize("kind", ["worker-online", "worker-heartbeat"])
def test_worker_is_told_of_as_celery_does(kind: str, ear: Ear, workers: object) -> None:
    for node in NODES.values():
        eventually(lambda node=node: ear.of_worker(node, kind), within_s=WITHIN_S)
    theirs, ours = (ear.of_worker(NODES[each], kind)[-1] for each in (CELERY, KW))

    assert list(ours) == list(theirs)
    assert {key: type(value) for key, value in ours.items()} == {key: type(value) for key, value in theirs.items()}
    assert ours["freq"] == theirs["freq"] == 2.0


def test_clock_of_a_worker_only_rises(ear: Ear, app: celery.Celery, workers: object) -> None:
    first = plain("add", 1, 1)(app, QUEUES[KW], ear)
    eventually(lambda: len(ear.of_task(first)) == 3, within_s=WITHIN_S)

    clocks = [each["clock"] for each in ear.events if each["hostname"] == NODES[KW]]

    assert clocks == sorted(set(clocks))


def test_celery_events_dump_prints_them(broker: RedisServer, app: celery.Celery, folder: Path, workers: object) -> None:
    log = folder / "dump"
    with log.open("wb") as output:
        command = [sys.executable, "-u", "-m", "celery", "-A", "tests.compat.celery_app", "-b", broker.url, "events"]
        process = subprocess.Popen(
            [*command, "--dump"],
            cwd=folder,
            env={**os.environ, **environment(broker.url, QUEUES[KW])},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:

        def is_told() -> bool:
            text = log.read_text()
            if text.count("task succeeded") == 0:
                app.send_task("compat.add", (40, 2), queue=QUEUES[KW]).get(timeout=WITHIN_S)
            return all(words in text for words in (f"{NODES[KW]} [", "heartbeat", "task succeeded: compat.add"))

        eventually(is_told, within_s=WITHIN_S, message=lambda: log.read_text()[-2000:])
    finally:
        process.kill()
        process.wait(10)


def test_worker_says_good_bye(ear: Ear, workers: dict[str, Any]) -> None:
    """The last one: the worker is gone afterwards."""
    ours = workers[KW]

    ours.signal(signal.SIGTERM)

    eventually(lambda: ear.of_worker(NODES[KW], "worker-offline"), within_s=10)
    assert list(ear.of_worker(NODES[KW], "worker-offline")[0]) == list(ear.of_worker(NODES[CELERY], "worker-online")[0])
