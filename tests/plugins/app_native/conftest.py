"""An application on transports in memory, and a worker side that runs what it sends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import celery
import pytest
from kombu.transport.memory import Channel

from kernel_app import App
from kernel_app.transport import PUBLISHERS, RESULTS
from kernel_app.worker import NativeApp, NativeLoader
from kernel_worker.drivers import LoadContext
from kernel_worker.types import Job, Outcome
from tests.plugins.app_native.memory_transport import MemoryPublisher, MemoryResults

HERE = "tests.plugins.app_native.memory_transport"
CONTEXT = LoadContext(publishers={"memory": f"{HERE}:MemoryPublisher"}, results={"memory": f"{HERE}:MemoryResults"})

MakeApp = Callable[..., App]


def publisher(app: App) -> MemoryPublisher:
    """The publisher of an application, opened if need be."""
    found: MemoryPublisher = app.connections._connection(PUBLISHERS, app.conf.broker_url)
    return found


def results(app: App) -> MemoryResults:
    """The result backend of an application, opened if need be."""
    found: MemoryResults = app.connections._connection(RESULTS, app.conf.result_backend)
    return found


def body_of(message: Any) -> Any:
    """The decoded body of a JSON message."""
    return json.loads(message.body)


def sent_by_celery(send: Callable[[Any], object]) -> list[dict[str, Any]]:
    """The envelopes that a Celery client puts on the wire in `send(client)`, in order."""
    Channel.queues.clear()
    with celery.Celery("peer", broker="memory://host", backend="cache+memory://", set_as_current=False) as client:
        send(client)
    found = []
    for queue in list(Channel.queues.values()):
        while queue.qsize():
            found.append(queue.get())
    return found


@pytest.fixture
def make_app() -> Iterator[MakeApp]:
    """`make_app(**settings)`: an application on transports in memory."""
    made: list[App] = []

    def make(name: str = "proj", **settings: Any) -> App:
        app = App(name, **{"broker_url": "memory://", "result_backend": "memory://", **settings})
        app.connections.drivers.use(PUBLISHERS, CONTEXT.publishers)
        app.connections.drivers.use(RESULTS, CONTEXT.results)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


@pytest.fixture
def app(make_app: MakeApp) -> App:
    return make_app()


class Worker:
    """The worker side of an application: loads it as an executor does, runs what was sent, stores results."""

    def __init__(self, app: App, context: LoadContext = CONTEXT) -> None:
        self.app = app
        loaded = NativeLoader().load(app, context)
        assert isinstance(loaded, NativeApp)
        self.loaded = loaded
        loaded.setup("w1@host1", lambda name, call: call)

    def run(self, raw: bytes | None = None, **job: Any) -> Outcome:
        """Run an envelope, by default the oldest message that was sent, and store its result."""
        if raw is None:
            raw = publisher(self.app).sent.pop(0).envelope()
        outcome = self.loaded.run(self.loaded.read(job_of(raw, **job)))
        if outcome.result is not None:
            results(self.app).store([outcome.result])
        return outcome

    def run_all(self) -> list[Outcome]:
        """Run everything that was sent, and what that sends."""
        outcomes = []
        while publisher(self.app).sent:
            outcomes.append(self.run())
        return outcomes


def job_of(raw: bytes, **fields: Any) -> Job:
    """A RUN frame's job."""
    values: dict[str, Any] = {
        "tag": 1,
        "raw": raw,
        "payload": None,
        "queue": "celery",
        "attempts": 0,
        "redelivered": False,
        "hard": 0.0,
        "soft": 0.0,
    }
    return Job(**{**values, **fields})


def meta_of(outcome: Outcome) -> dict[str, Any]:
    """The stored task meta of an outcome."""
    assert outcome.result is not None
    found: dict[str, Any] = json.loads(outcome.result.payload)
    return found


@pytest.fixture
def worker() -> Callable[[App], Worker]:
    """`worker(app)`: the worker side of an application whose tasks are all defined."""
    return Worker
