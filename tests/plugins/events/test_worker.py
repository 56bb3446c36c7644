"""Events of a running worker: switched on and off while it runs, over every broker, and over its broker's absence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import pytest

from kernel_app import App
from kernel_events.inlets import Inlet, open_inlet
from kernel_worker.testing import eventually
from tests.conftest import RunKw
from tests.servers import RedisServer

APPLICATION = """
from kernel_app import App

app = App("events")


@app.task(name="add")
def add(x, y):
    return x + y
"""
NODE = "w@here"


class Ear:
    """What is heard on a broker, from the beginning."""

    def __init__(self, url: str) -> None:
        inlet = open_inlet(url, {}, "celeryev")
        assert inlet is not None
        self._inlet: Inlet = inlet
        self._inlet.connect()
        self.events: list[dict[str, Any]] = []

    def types(self, task_id: str = "") -> list[str]:
        """Types of the events heard so far; of one task, or of all that is no heartbeat."""
        self.events += self._inlet.receive(0.05)
        wanted = [each for each in self.events if each["type"] != "worker-heartbeat"]
        return [each["type"] for each in wanted if not task_id or each.get("uuid") == task_id]

    def heartbeats(self) -> list[dict[str, Any]]:
        """Heartbeats heard so far."""
        self.events += self._inlet.receive(0.05)
        return [each for each in self.events if each["type"] == "worker-heartbeat"]

    def connect(self) -> None:
        """Again, after the broker was away."""
        self._inlet.connect()

    def close(self) -> None:
        self._inlet.close()


@pytest.fixture
def application(tmp_path: Path) -> None:
    (tmp_path / "application.py").write_text(APPLICATION)


@pytest.fixture(params=["redis", "amqp", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        found: str = request.getfixturevalue("redis_url")
        return found
    if request.param == "amqp":
        url: str = request.getfixturevalue("rabbitmq_server").url
        return url
    return f"sqlite:///{tmp_path / 'kw.db'}"


@pytest.fixture
def ear(url: str) -> Iterator[Ear]:
    ear = Ear(url)
    yield ear
    ear.close()


def arguments(url: str, *more: str) -> list[str]:
    return ["run", "-A", "application", "-b", url, "-c", "1", "-n", NODE, "-Q", "for-events", *more]


def client(url: str) -> App:
    return App("client", broker_url=url, result_backend=None, task_default_queue="for-events")


def ask(sender: App, command: str) -> Any:
    """The reply of the worker, when it listens."""
    eventually(lambda: sender.control.ping(timeout=1, limit=1), within_s=15)
    replies = sender.control.broadcast(command, reply=True, timeout=10, limit=1) or []
    return replies[0][NODE]


def test_worker_and_tasks_are_told_of_from_start_to_end(kw: RunKw, application: None, url: str, ear: Ear) -> None:
    worker = kw(*arguments(url, "-E"))
    eventually(lambda: ear.types() == ["worker-online"], within_s=10)
    sender = client(url)

    task_id = sender.send_task("add", (1, 2)).id

    eventually(lambda: ear.types(task_id) == ["task-received", "task-started", "task-succeeded"], within_s=10)
    assert next(each for each in ear.events if each["type"] == "task-succeeded")["result"] == "3"
    assert worker.stop() == 0
    eventually(lambda: ear.types()[-1] == "worker-offline", within_s=10)
    sender.close()


def test_task_events_are_switched_on_and_off_while_the_worker_runs(
    kw: RunKw, application: None, redis_url: str
) -> None:
    ear = Ear(redis_url)
    sender = App("client", broker_url=redis_url, result_backend=redis_url, task_default_queue="for-events")
    kw(*arguments(redis_url, "--result-backend", redis_url))
    eventually(lambda: sender.control.ping(timeout=0.5, limit=1), within_s=10)

    def ended() -> int:
        totals: dict[str, int] = (sender.control.inspect(NODE, timeout=10).stats() or {})[NODE]["total"]
        return totals.get("add", 0)

    def run() -> None:
        before = ended()
        assert sender.send_task("add", (1, 2)).get(timeout=10) == 3
        eventually(lambda: ended() == before + 1, within_s=10)  # its result is there before the loop has seen its end

    def say(command: str) -> str:
        text: str = ask(sender, command)["ok"]
        return text

    run()
    assert say("enable_events") == "task events enabled"
    run()
    assert say("enable_events") == "task events already enabled"
    run()
    assert say("disable_events") == "task events disabled"
    assert say("disable_events") == "task events already disabled"
    run()
    assert say("enable_events") == "task events enabled"
    run()

    eventually(lambda: ear.types().count("task-succeeded") == 3, within_s=10)
    assert ear.types() == ["worker-online", *["task-received", "task-started", "task-succeeded"] * 3]
    ear.close()
    sender.close()


def test_task_events_from_the_start_are_not_switched_off(kw: RunKw, application: None, redis_url: str) -> None:
    """As Celery has it: Flower's users, who said -E, would wonder."""
    ear, sender = Ear(redis_url), client(redis_url)
    kw(*arguments(redis_url, "-E"))

    reply = ask(sender, "disable_events")
    task_id = sender.send_task("add", (1, 2)).id

    assert reply == {"ok": "task events already disabled"}
    eventually(lambda: "task-succeeded" in ear.types(task_id), within_s=10)
    ear.close()
    sender.close()


def test_heartbeats_come_at_their_interval(kw: RunKw, application: None, redis_url: str) -> None:
    ear = Ear(redis_url)
    kw(*arguments(redis_url, "--heartbeat-interval", "0.2"))

    eventually(lambda: len(ear.heartbeats()) >= 6, within_s=10)

    beats = [each["timestamp"] for each in ear.heartbeats()]
    assert 0.1 <= (beats[5] - beats[0]) / 5 < 1.0
    assert ear.heartbeats()[0]["freq"] == 0.2
    ear.close()


def test_no_heartbeats_without_them_unless_somebody_asks(kw: RunKw, application: None, redis_url: str) -> None:
    ear, sender = Ear(redis_url), client(redis_url)
    kw(*arguments(redis_url, "--without-heartbeat", "--heartbeat-interval", "0.1"))
    eventually(lambda: ear.types() == ["worker-online"], within_s=10)

    assert ask(sender, "heartbeat") is None

    eventually(ear.heartbeats, within_s=10)
    assert [each["freq"] for each in ear.heartbeats()] == [5]
    ear.close()
    sender.close()


def test_events_go_on_after_the_broker_was_away(
    kw: RunKw, application: None, start_redis: Callable[..., RedisServer]
) -> None:
    server = start_redis()
    ear = Ear(server.url)
    worker = kw(*arguments(server.url, "-E", "--heartbeat-interval", "0.2"))
    eventually(ear.heartbeats, within_s=10)

    server.stop()
    worker.wait_for_output("cannot be sent")
    server.start()
    eventually(lambda: ear.connect() is None, within_s=10)
    ear.events.clear()

    eventually(ear.heartbeats, within_s=20)
    ear.close()


def test_client_tells_what_it_sent_as_celerys_client_does(redis_url: str) -> None:
    ours = App("ours", broker_url=redis_url, task_send_sent_event=True, task_default_queue="told")
    theirs = celery.Celery("theirs", broker=redis_url, set_as_current=False)
    theirs.conf.update(task_send_sent_event=True, task_default_queue="told")
    ear = Ear(redis_url)

    for app in (ours, theirs):
        app.send_task("add", (1, 2), {"z": 3})
    eventually(lambda: len(ear.types()) == 2, within_s=10)

    by_ours, by_theirs = ear.events
    assert list(by_ours) == list(by_theirs)
    varying = {"uuid", "root_id", "timestamp", "clock"}
    assert {key: value for key, value in by_ours.items() if key not in varying} == {
        key: value for key, value in by_theirs.items() if key not in varying
    }
    ear.close()
    ours.close()


def test_sending_does_not_fail_when_nobody_can_be_told(tmp_path: Path) -> None:
    app = App("quiet", broker_url=f"sqlite:///{tmp_path / 'kw.db'}", task_send_sent_event=True)

    assert app.send_task("add", (1, 2)).id
    app.close()
