"""Tasks that end the process they run in, or use up its memory: a few starts, and nobody beside them notices."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from kernel_app import WorkerLostError
from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw
from tests.faults.application import MODULE, OPTIONS, client, name
from tests.plugins.broker_amqp.conftest import delete_queues
from tests.servers import RabbitServer

NEIGHBOURS = 100
MAX_DELIVERIES = 3
DEEDS = {
    "exit 0": "exit 0",
    "exit 1": "exit 1",
    "segfault": "SIGSEGV",
    "SIGABRT": "SIGABRT",
    "SIGKILL": "SIGKILL",
}


@pytest.fixture
def amqp_url(rabbitmq_server: RabbitServer) -> str:
    delete_queues(rabbitmq_server.port, "celery")
    return rabbitmq_server.url


def check(broker: str, results: str, kw: RunKw, ledger: Ledger, deed: str) -> None:
    """Send it among its neighbours to a prefork worker; what becomes of all of them."""
    worker = kw(*OPTIONS, "-b", broker, "--result-backend", results, "-c", "2")
    key, neighbours = name(), [name() for _ in range(NEIGHBOURS)]
    with client(broker, results) as app:
        for each in neighbours[: NEIGHBOURS // 2]:
            app.send_task(f"{MODULE}.work", [each, 0.005])
        sent = app.send_task(f"{MODULE}.end_process", [key, deed])
        for each in neighbours[NEIGHBOURS // 2 :]:
            app.send_task(f"{MODULE}.work", [each, 0.005])
        last = app.send_task(f"{MODULE}.echo", ["last"])

        error = sent.get(timeout=30, propagate=False)
        assert last.get(timeout=30) == "last"
        eventually(lambda: ledger.count("end") >= NEIGHBOURS, within_s=10, message="the end of each neighbour")
    assert worker.stop() == 0
    letters = kw("dead", "ls", "-b", broker, "--json", ready=False)
    letters.wait()

    assert type(error).__name__ == "WorkerLostError"
    assert ledger.count("start", id=key) == MAX_DELIVERIES
    (letter,) = json.loads(letters.output)
    assert DEEDS[deed] in letter["reason"], letter["reason"]
    assert "delivery 3 of at most 3" in letter["reason"]
    starts = Counter(entry["id"] for entry in ledger.entries("start") if entry["id"] != key)
    ends = Counter(entry["id"] for entry in ledger.entries("end"))
    assert starts == ends == Counter(neighbours), "each of them starts and ends once"


@pytest.mark.parametrize(
    "deed", [pytest.param(deed, marks=() if deed == "SIGKILL" else pytest.mark.faults) for deed in DEEDS]
)
def test_task_that_ends_its_process_starts_three_times_and_its_neighbours_once(
    url: str, folder: Path, kw: RunKw, ledger: Ledger, deed: str
) -> None:
    check(url, url, kw, ledger, deed)


@pytest.mark.parametrize(
    "deed", [pytest.param(deed, marks=() if deed == "exit 0" else pytest.mark.faults) for deed in DEEDS]
)
def test_the_same_holds_on_rabbitmq(
    amqp_url: str, redis_url: str, folder: Path, kw: RunKw, ledger: Ledger, deed: str
) -> None:
    check(amqp_url, redis_url, kw, ledger, deed)


@pytest.mark.parametrize("pool", [("-P", "prefork", "-c", "1"), ("-P", "solo")], ids=["prefork", "solo"])
def test_task_without_memory_is_started_three_times_and_then_dead(
    redis_url: str, folder: Path, kw: RunKw, ledger: Ledger, pool: tuple[str, ...]
) -> None:
    """There may be more memory later, or elsewhere. Its process lives on."""
    worker = kw(*OPTIONS, "-b", redis_url, "--result-backend", redis_url, *pool)
    key = name()
    with client(redis_url) as app:
        sent = app.send_task(f"{MODULE}.exhaust", [key])

        error = sent.get(timeout=20, propagate=False)
        assert app.send_task(f"{MODULE}.echo", [1]).get(timeout=20) == 1
    assert isinstance(error, WorkerLostError)
    assert "MemoryError in a process that held" in str(error)
    assert worker.stop() == 0
    assert ledger.count("start", id=key) == MAX_DELIVERIES
