"""`kw` and a Celery worker on the same queue and the same Redis at once."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
import redis

from kernel_worker.testing import Ledger, WorkerProcess, eventually

from . import clients
from .conftest import CELERY, KW, SHARED
from .peers import CeleryWorker, ClientProcess, start_kw

TASKS = 1000
VISIBILITY_S = 2.0


@pytest.mark.parametrize("sender", [CELERY, KW])
def test_each_of_a_thousand_tasks_runs_exactly_once(
    sender: str, workers: None, clients_of: dict[str, ClientProcess], ledger: Ledger
) -> None:
    ids = clients_of[sender].do(
        clients.send_many, "compat.note", [(str(ledger.path), n) for n in range(TASKS)], queue=SHARED
    )

    answers = clients_of[KW].do(clients.wait_many, ids)
    noted = ledger.entries("start")

    assert [answer.value for answer in answers] == list(range(TASKS))
    assert Counter(entry["label"] for entry in noted) == Counter(range(TASKS))
    assert len({entry["node"] for entry in noted}) == 2, "one of the workers has run nothing"


def started(ledger: Ledger, label: str) -> None:
    eventually(lambda: ledger.count("start", label=label), within_s=10, message=f"the start of {label!r}")


def assert_ran_once(ledger: Ledger, *labels: str) -> None:
    for label in labels:
        eventually(lambda label=label: ledger.count("end", label=label), within_s=20, message=f"the end of {label!r}")
    assert Counter(entry["label"] for entry in ledger.entries("start")) == Counter(labels)


def test_celery_leaves_alone_what_kw_holds(
    url: str, clients_of: dict[str, ClientProcess], tmp_path: Path, ledger: Ledger
) -> None:
    """A Celery worker puts back everything that is reserved for longer than its visibility timeout, whoever holds it:
    when it starts, and every ten seconds. What `kw` holds is renewed."""
    options = {"broker_transport_options": {"visibility_timeout": VISIBILITY_S}}
    go = tmp_path / "go"
    holder = start_kw(tmp_path, url, "held-by-kw", "-c", "4", settings=options)
    peers: list[CeleryWorker] = []
    try:
        for label in ("a", "b"):
            args = (str(go), str(ledger.path), label)
            clients_of[KW].do(clients.send, "compat.hold", args, queue="held-by-kw")
            started(ledger, label)
        at = time.monotonic()
        eventually(lambda: time.monotonic() - at > VISIBILITY_S + 0.3, within_s=10)
        peers.append(CeleryWorker(tmp_path, url, "peer-of-kw", settings=options).wait_until_ready())
        # It looks at everything that is reserved as soon as it is up, before it takes anything: when this has run, it did.
        assert clients_of[KW].do(clients.call, "compat.add", (1, 2), queue="peer-of-kw").value == 3

        assert not ledger.count("end"), "the tasks were over before the peer looked"
        go.touch()
        assert_ran_once(ledger, "a", "b")
    finally:
        go.touch()
        for worker in (*peers, holder):
            worker.kill()


@pytest.mark.faults
@pytest.mark.timeout(120)
def test_twenty_seconds_under_a_lease_of_five_are_one_run(
    url: str, clients_of: dict[str, ClientProcess], tmp_path: Path, ledger: Ledger
) -> None:
    """A task that runs and one that waits for its time, four times longer than the lease and the visibility timeout,
    beside another `kw` and a Celery worker, which is started again so that it looks at once."""
    options = {"broker_transport_options": {"visibility_timeout": 5}}
    holder = start_kw(tmp_path, url, "twenty", "-c", "2", "--lease", "5", settings=options)
    others: list[CeleryWorker | WorkerProcess] = []
    try:
        args = (str(ledger.path), "running", 20.0)
        clients_of[CELERY].do(clients.send, "compat.sleep", args, queue="twenty")
        started(ledger, "running")
        due = time.time() + 20.0
        later = (str(ledger.path), "later", 0.1)
        clients_of[CELERY].do(clients.send, "compat.sleep", later, queue="twenty", countdown=20)
        with redis.Redis.from_url(url) as server:
            eventually(lambda: server.zcard("kw.parked:twenty") == 1, within_s=5, message="the task to be parked")
        others.append(start_kw(tmp_path, url, "twenty", "-c", "1", "--lease", "5", settings=options))
        for _ in range(2):
            at = time.monotonic()
            eventually(lambda at=at: time.monotonic() - at > 6.0, within_s=10)
            peer = CeleryWorker(tmp_path, url, "twenty", "-c", "1", settings=options).wait_until_ready()
            others.append(peer)

        assert_ran_once(ledger, "running", "later")
        (begun,) = [entry["at"] for entry in ledger.entries("start", label="later")]
        assert abs(begun - due) < 1.0
    finally:
        for worker in (*others, holder):
            worker.kill()


def test_kw_leaves_alone_what_celery_holds(
    url: str, clients_of: dict[str, ClientProcess], workers: None, tmp_path: Path, ledger: Ledger
) -> None:
    """Longer than the lease of a `kw` worker, which looks for abandoned messages three times in one."""
    holder = CeleryWorker(tmp_path, url, "held-by-celery", "-c", "2").wait_until_ready()
    peer: WorkerProcess | None = None
    try:
        for label in ("a", "b"):
            clients_of[KW].do(clients.send, "compat.sleep", (str(ledger.path), label, 4.0), queue="held-by-celery")
            started(ledger, label)
        peer = start_kw(tmp_path, url, "held-by-celery", "-c", "4", "--lease", "1")

        assert_ran_once(ledger, "a", "b")
    finally:
        holder.kill()
        if peer is not None:
            peer.kill()
