"""Whole workers on files and on SQS: with Celery's clients and workers beside them, and killed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import celery
import pytest

from kernel_app import App
from kernel_worker.testing import Ledger, WorkerProcess, eventually
from tests.conftest import RunKw

from .peers import CeleryPeer, write_native


@dataclass
class Place:
    """Where the queues of a test are, as both libraries are told."""

    url: str
    options: dict[str, Any]
    folder: Path

    def kw(self, run: RunKw, *arguments: str, **more: Any) -> WorkerProcess:
        write_native(self.folder, self.options)
        return run("run", "-A", "native", "-b", self.url, "--result-backend", "disabled://", *arguments, **more)

    def celery_client(self) -> celery.Celery:
        client = celery.Celery("client", broker=self.url, set_as_current=False)
        client.conf.broker_transport_options = self.options
        return client

    def kw_client(self) -> App:
        return App("client", broker_url=self.url, broker_transport_options=self.options)


@pytest.fixture(params=["filesystem", "sqs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqs":
        url, options = request.getfixturevalue("sqs_url"), request.getfixturevalue("sqs_options")
        return Place(url, {**options, "wait_time_seconds": 1, "is_secure": False}, tmp_path)
    folder = tmp_path / "messages"
    folder.mkdir()
    options = {"data_folder_in": str(folder), "data_folder_out": str(folder), "control_folder": f"{tmp_path}/control"}
    return Place("filesystem://", options, tmp_path)


@pytest.fixture
def celery_worker(place: Place) -> Iterator[CeleryPeer]:
    worker = CeleryPeer(place.folder, place.url, place.options)
    yield worker
    worker.kill()


def noted(ledger: Ledger, event: str) -> list[str]:
    return [str(each["id"]) for each in ledger.entries(event)]


def test_celery_client_sends_to_kw(place: Place, kw: RunKw, ledger: Ledger) -> None:
    client = place.celery_client()
    client.send_task("peer.note", ("before",))

    place.kw(kw, "-c", "1")
    client.send_task("peer.note", ("after",))
    client.send_task("peer.note", ("later",), countdown=1.5)

    eventually(lambda: len(noted(ledger, "kw")) == 3, within_s=20, message=lambda: str(ledger.entries()))
    assert set(noted(ledger, "kw")) == {"before", "after", "later"}
    assert noted(ledger, "kw")[2] == "later"
    client.close()


def test_kw_client_sends_to_celery(place: Place, celery_worker: CeleryPeer, ledger: Ledger) -> None:
    celery_worker.wait_until_ready()
    client = place.kw_client()

    client.send_task("peer.note", ("t1",))
    client.send_task("peer.note", ("ä",), countdown=1.0)

    eventually(lambda: len(noted(ledger, "celery")) == 2, within_s=20, message=lambda: str(ledger.entries()))
    assert set(noted(ledger, "celery")) == {"t1", "ä"}
    client.close()


def test_both_workers_share_a_queue_and_run_each_task_once(
    place: Place, celery_worker: CeleryPeer, kw: RunKw, ledger: Ledger
) -> None:
    place.kw(kw, "-c", "1")
    celery_worker.wait_until_ready()
    names = [f"t{n:02}" for n in range(30)]
    client = place.kw_client()

    for name in names:
        client.send_task("peer.note", (name,))

    eventually(lambda: len(noted(ledger, "kw") + noted(ledger, "celery")) >= len(names), within_s=30)
    assert sorted(noted(ledger, "kw") + noted(ledger, "celery")) == names
    client.close()


def test_killed_worker_loses_nothing(place: Place, kw: RunKw, ledger: Ledger) -> None:
    """SIGKILL to everything of a worker that runs two tasks and holds more: all of them run elsewhere."""
    names = [f"t{n:02}" for n in range(12)]
    client = place.kw_client()
    for name in names:
        client.send_task("peer.note", (name,), {"seconds": 0.05 if name != "t03" else 1.0})
    victim = place.kw(kw, "-c", "2", "--lease", "1", "--prefetch-multiplier", "4")
    eventually(lambda: len(noted(ledger, "start")) >= 3, within_s=15)
    victim.kill()

    place.kw(kw, "-c", "2", "--lease", "1")

    eventually(
        lambda: set(noted(ledger, "kw")) == set(names), within_s=25, message=lambda: str(sorted(noted(ledger, "kw")))
    )
    client.close()


def test_warm_stop_gives_back_what_has_not_started(place: Place, kw: RunKw, ledger: Ledger) -> None:
    names = [f"t{n:02}" for n in range(10)]
    client = place.kw_client()
    for name in names:
        client.send_task("peer.note", (name,), {"seconds": 0.3})
    first = place.kw(kw, "-c", "1")
    eventually(lambda: noted(ledger, "start"), within_s=15)

    assert first.stop() == 0
    done = noted(ledger, "kw")
    place.kw(kw, "-c", "4")

    eventually(lambda: len(noted(ledger, "kw")) >= len(names), within_s=25)
    assert sorted(noted(ledger, "start")) == names, "each was started once"
    assert 0 < len(done) < len(names)
    client.close()
