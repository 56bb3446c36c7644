"""Revokes and rate limits of a running worker, on real brokers."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel_app import App
from kernel_app.exceptions import TaskRevokedError
from kernel_worker.testing import Ledger, WorkerProcess, eventually
from tests.conftest import RunKw
from tests.servers import RabbitServer, RedisServer

APPLICATION = """
import os
import time

from kernel_app import App
from kernel_worker.testing import Ledger

app = App("limits")


@app.task(name="note")
def note(label):
    Ledger("ledger").note("start", label=label)
    return label


@app.task(name="hold")
def hold():
    Ledger("ledger").note("start", label="hold")
    while not os.path.exists("release"):
        time.sleep(0.01)


@app.task(name="limited", rate_limit="50/s")
def limited(number):
    Ledger("ledger").note("start", label=number)
"""

Start = Callable[..., WorkerProcess]


@pytest.fixture(params=["redis", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        found: str = request.getfixturevalue("redis_url")
        return found
    return f"sqlite:///{tmp_path / 'kw.db'}"


@pytest.fixture
def start(kw: RunKw, tmp_path: Path) -> Start:
    """`start(url, *arguments)`: a worker on the application."""
    (tmp_path / "application.py").write_text(APPLICATION)

    def run(url: str, *arguments: str) -> WorkerProcess:
        worker = kw(
            "run", "-A", "application", "-b", url, "--result-backend", url, "-c", "1", "-n", "w@here", *arguments
        )
        control = client(url).control
        eventually(lambda: control.ping(["w@here"], timeout=1), within_s=15)
        return worker

    return run


def client(url: str) -> App:
    return App("client", broker_url=url, result_backend=url)


@pytest.fixture
def sender(url: str) -> Iterator[App]:
    app = client(url)
    yield app
    app.close()


def labels(ledger: Ledger) -> list[object]:
    return [entry["label"] for entry in ledger.entries("start")] if ledger.path.exists() else []


def test_task_revoked_while_no_worker_was_up_does_not_run(start: Start, sender: App, url: str, ledger: Ledger) -> None:
    revoked = sender.send_task("note", ("revoked",))
    parked = sender.send_task("note", ("parked",), countdown=1.0)
    kept = sender.send_task("note", ("kept",))
    sender.control.revoke([revoked.id, parked.id])

    start(url)

    assert kept.get(timeout=10) == "kept"
    for result in (revoked, parked):
        with pytest.raises(TaskRevokedError):
            result.get(timeout=10)
    assert labels(ledger) == ["kept"]


def test_task_revoked_while_it_waits_behind_another_does_not_run(
    start: Start, sender: App, url: str, ledger: Ledger, tmp_path: Path
) -> None:
    start(url)
    sender.send_task("hold")
    eventually(lambda: labels(ledger) == ["hold"], within_s=10)
    results = [sender.send_task("note", (number,)) for number in range(5)]

    assert sender.control.revoke([result.id for result in results[:4]], reply=True, limit=1, timeout=10)
    (tmp_path / "release").touch()

    assert results[4].get(timeout=10) == 4
    for result in results[:4]:
        with pytest.raises(TaskRevokedError):
            result.get(timeout=10)
    assert labels(ledger) == ["hold", 4]


def test_parked_task_that_is_revoked_does_not_run(start: Start, sender: App, url: str, ledger: Ledger) -> None:
    start(url)
    result = sender.send_task("note", ("late",), countdown=3.0)

    assert sender.control.revoke(result.id, reply=True, limit=1, timeout=10)

    with pytest.raises(TaskRevokedError):
        result.get(timeout=10)
    assert labels(ledger) == []


def test_revoked_task_that_is_not_due_ends_when_it_arrives(start: Start, sender: App, url: str) -> None:
    start(url)
    assert sender.control.revoke("far-off", reply=True, limit=1, timeout=10)

    result = sender.send_task("note", ("late",), task_id="far-off", countdown=3600)

    with pytest.raises(TaskRevokedError):
        result.get(timeout=10)


def test_revokes_survive_a_restart_in_the_state_file(
    start: Start, redis_server: RedisServer, redis_url: str, ledger: Ledger
) -> None:
    sender = client(redis_url)
    worker = start(redis_url, "--statedb", "worker.state")
    assert sender.control.revoke("revoked-id", reply=True, limit=1, timeout=10)
    assert sender.control.revoke_by_stamped_headers({"customer": "x"}, reply=True, limit=1, timeout=10)
    worker.kill()  # at once, without a chance to save anything
    assert redis_server.command("DEL kw.revoked") == ":1"

    start(redis_url, "--statedb", "worker.state")
    sender.send_task("note", ("by id",), task_id="revoked-id")
    sender.send_task("note", ("by stamp",), stamped_headers=["customer"], customer="x")

    assert sender.send_task("note", ("kept",)).get(timeout=10) == "kept"
    assert sender.control.inspect(limit=1, timeout=10).revoked() == {"w@here": ["revoked-id"]}
    assert labels(ledger) == ["kept"]
    sender.close()


def test_foreign_state_file_is_refused_before_anything_runs(kw: RunKw, tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "application.py").write_text(APPLICATION)
    (tmp_path / "worker.state").write_bytes(b"\x80\x04other")

    worker = kw("run", "-A", "application", "-b", redis_url, "--statedb", "worker.state", ready=False)

    assert worker.wait() == 78
    assert "is not a state file of kw" in worker.output
    assert "Traceback" not in worker.output


def test_limited_tasks_keep_their_rate_and_delay_nobody(start: Start, redis_url: str, ledger: Ledger) -> None:
    sender = client(redis_url)
    for number in range(600):
        sender.send_task("limited", (number,))
    start(redis_url)
    eventually(lambda: len(labels(ledger)) > 10, within_s=10)

    begun = time.monotonic()
    assert sender.send_task("note", ("free",)).get(timeout=10) == "free"
    waited = time.monotonic() - begun
    time.sleep(3.0)  # the rate is what is measured
    starts = [entry["at"] for entry in ledger.entries("start") if entry["label"] != "free"]

    assert waited < 5.0
    # a busy machine is slower; what it missed in half a second is made up for
    assert 25 <= (len(starts) - 1) / (starts[-1] - starts[0]) <= 65
    sender.close()


@pytest.mark.faults
def test_flood_of_ten_thousand_limited_tasks_delays_nobody_for_a_second(start: Start, redis_url: str) -> None:
    """With the flood in the queue before the worker starts, and everybody else's task behind it."""
    sender = client(redis_url)
    for number in range(10_000):
        sender.send_task("limited", (number,))
    free = sender.send_task("note", ("free",))
    start(redis_url)
    begun = time.monotonic()

    free.get(timeout=10)
    waited = time.monotonic() - begun

    print(f"behind 10,000 limited tasks: {waited:.2f} s")
    assert waited < 1.0
    sender.close()


def test_limit_that_is_taken_away_is_felt_by_tasks_that_wait(start: Start, redis_url: str, ledger: Ledger) -> None:
    sender = client(redis_url)
    start(redis_url)
    assert sender.control.rate_limit("note", "1/h", reply=True, limit=1, timeout=10)
    results = [sender.send_task("note", (number,)) for number in range(20)]
    assert results[0].get(timeout=10) == 0

    assert sender.control.rate_limit("note", 0, reply=True, limit=1, timeout=10)

    eventually(lambda: len(labels(ledger)) >= 4, within_s=10)
    for result in results:
        result.get(timeout=10)
    sender.close()


def test_rate_is_changed_while_the_worker_runs(start: Start, redis_url: str) -> None:
    sender = client(redis_url)
    start(redis_url)

    replies = [
        sender.control.rate_limit("note", rate, reply=True, limit=1, timeout=10) for rate in ("10/m", "0", "quick")
    ]

    texts = [next(iter(reply[0]["w@here"].items())) for reply in replies if reply]
    assert texts[0] == ("ok", "new rate limit set successfully")
    assert texts[1] == ("ok", "rate limit disabled successfully")
    assert texts[2][0] == "error"
    assert texts[2][1].startswith("Invalid rate limit string: ValueError(")
    sender.close()


def test_revoke_that_has_expired_holds_for_a_task_that_is_due_later(
    kw: RunKw, sender: App, url: str, ledger: Ledger, tmp_path: Path
) -> None:
    """The revoke comes while the task is parked, and expires long before it is due; a task without an ETA runs again.
    With a restart in between, so that it is the broker's memory as well as the worker's."""
    (tmp_path / "application.py").write_text(APPLICATION)
    command = ("run", "-A", "application", "-b", url, "--result-backend", url, "-c", "1", "-n", "w@here")
    expiry = {"CELERY_WORKER_REVOKE_EXPIRES": "0.05"}
    worker = kw(*command, env=expiry)
    eventually(lambda: sender.control.ping(["w@here"], timeout=1), within_s=15)
    due = time.time() + 4.0
    sent = [sender.send_task("note", (task_id,), task_id=task_id, countdown=4.0) for task_id in ("one", "two")]
    other = sender.send_task("note", ("kept",), countdown=4.0)
    now = sender.send_task("note", ("now",), task_id="again")
    assert now.get(timeout=10) == "now"

    assert sender.control.revoke(["one", "two", "again"], reply=True, limit=1, timeout=10)
    worker.signal(signal.SIGTERM)
    worker.wait()
    kw(*command, env=expiry)
    eventually(lambda: sender.control.inspect(timeout=0.5).revoked() == {"w@here": []}, within_s=10)
    # nothing runs before the worker has read what the broker keeps
    assert sender.send_task("note", ("read",)).get(timeout=10) == "read"
    sender.send_task("note", ("once more",), task_id="again")

    assert other.get(timeout=20) == "kept"
    assert time.time() >= due
    for result in sent:
        with pytest.raises(TaskRevokedError):
            result.get(timeout=10)
    eventually(lambda: sorted(map(str, labels(ledger))) == ["kept", "now", "once more", "read"], within_s=10)


@pytest.mark.parametrize("how", ["application", "command line"])
def test_revoke_is_kept_by_rabbitmq_while_no_worker_is_up(
    how: str, kw: RunKw, rabbitmq_server: RabbitServer, ledger: Ledger, tmp_path: Path
) -> None:
    (tmp_path / "application.py").write_text(APPLICATION)
    url, results, queue = rabbitmq_server.url, f"sqlite:///{tmp_path}/results.db", f"kept-{tmp_path.name}"
    sender = App("client", broker_url=url, result_backend=results, task_default_queue=queue)
    revoked = sender.send_task("note", ("revoked",))
    parked = sender.send_task("note", ("parked",), countdown=1.0)
    kept = sender.send_task("note", ("kept",))

    if how == "application":
        sender.control.revoke([revoked.id, parked.id])
    else:
        done = kw("control", "-b", url, "-t", "0.2", "-d", "", "revoke", revoked.id, parked.id, ready=False)
        assert done.wait() in (0, 69)  # workers of other tests may hear it
    kw("run", "-A", "application", "-b", url, "--result-backend", results, "-c", "1", "-Q", queue)

    assert kept.get(timeout=20) == "kept"
    for result in (revoked, parked):
        with pytest.raises(TaskRevokedError):
            result.get(timeout=20)
    assert labels(ledger) == ["kept"]
    sender.close()
