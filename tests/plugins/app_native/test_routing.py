"""Where messages go, compared with Celery's router."""

from __future__ import annotations

import re
from typing import Any

import celery
import kombu
import pytest

from kernel_app import App, ConfigError, Queue, QueueNotFound
from tests.plugins.app_native.conftest import MakeApp, publisher


def route_task(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any) -> Any:
    """A router function."""
    return {"queue": "by-function", "priority": 7} if name == "a.special" else None


class OldRouter:
    def route_for_task(self, name: str, args: Any = None, kwargs: Any = None) -> Any:
        return "old" if name == "a.special" else None


QUEUES = [
    kombu.Queue("default", kombu.Exchange("default"), routing_key="default"),
    kombu.Queue("media", kombu.Exchange("media", type="topic"), routing_key="media.#"),
]
HERE = "tests.plugins.app_native.test_routing"
ROUTES: dict[str, Any] = {
    "none": None,
    "exact": {"a.special": "q1", "a.other": {"queue": "q2"}},
    "options": {"a.special": {"queue": "q1", "priority": 3}},
    "glob": {"a.*": {"queue": "q1"}},
    "exact before glob": {"a.*": "q1", "a.special": "q2"},
    "regex": {re.compile(r"a\.(special|x)"): "q1"},
    "list of dicts": [{"a.other": "q1"}, {"a.special": "q2"}],
    "list of pairs": ([("a.*", "q1"), ("b", "q2")],),
    "function": route_task,
    "functions": [route_task, {"a.*": "q1"}],
    "path": f"{HERE}.route_task",
    "path of a class": [f"{HERE}.OldRouter"],
    "routing key": {"a.special": {"queue": "media", "routing_key": "media.video"}},
}
CALLS: list[dict[str, Any]] = [{}, {"queue": "mine"}, {"priority": 1}, {"queue": "media"}]


def celery_destination(settings: dict[str, Any], name: str, options: dict[str, Any]) -> tuple[Any, ...]:
    """Exchange, routing key and priority that Celery's client publishes with."""
    client = celery.Celery("peer", broker="memory://", set_as_current=False)
    client.conf.update(settings)
    found: list[tuple[Any, ...]] = []

    class Producer:
        def publish(self, body: Any, exchange: Any, routing_key: Any, **rest: Any) -> None:
            found.append((exchange, routing_key, rest.get("priority")))

    chosen = client.amqp.router.route(dict(options), name, (), {})
    message = client.amqp.as_task_v2("id", name)
    client.amqp.send_task_message(Producer(), name, message, **chosen)
    return found[0]


@pytest.mark.parametrize("options", CALLS, ids=str)
@pytest.mark.parametrize("queues", [None, QUEUES], ids=["no queues", "queues"])
@pytest.mark.parametrize("routes", ROUTES.values(), ids=ROUTES.keys())
def test_destination_equals_celerys(make_app: MakeApp, routes: Any, queues: Any, options: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"task_routes": routes}
    if queues:
        settings.update(task_queues=queues, task_default_queue="default")
    app = make_app(**settings)

    app.send_task("a.special", **options)
    app.send_task("a.special", **options)  # the second time from what was computed the first time

    wanted = celery_destination(settings, "a.special", options)
    for message in publisher(app).sent:
        assert (message.exchange, message.routing_key, message.priority) == wanted


def test_exchange_and_key_given_together_are_used(app: App) -> None:
    app.send_task("t", exchange="ex", routing_key="rk")

    message = publisher(app).sent[0]
    assert (message.queue, message.exchange, message.routing_key) == ("", "ex", "rk")


@pytest.mark.parametrize(
    "queues",
    [
        [Queue("media", exchange="ex", exchange_type="topic", routing_key="k")],
        {"media": {"exchange": "ex", "exchange_type": "topic", "routing_key": "k"}},
        {"media": {"exchange": "ex", "exchange_type": "topic", "binding_key": "k"}},
        [kombu.Queue("media", kombu.Exchange("ex", type="topic"), routing_key="k")],
    ],
    ids=["ours", "dict", "old dict", "kombu"],
)
def test_queues_may_be_given_in_several_forms(make_app: MakeApp, queues: Any) -> None:
    app = make_app(task_queues=queues)

    app.send_task("t", queue="media")

    message = publisher(app).sent[0]
    assert (message.queue, message.exchange, message.exchange_type) == ("media", "ex", "topic")
    assert message.routing_key == "k"


def test_a_queue_object_may_be_given_with_the_call(app: App) -> None:
    app.send_task("t", queue=Queue("mine"))
    app.send_task("t", queue=kombu.Queue("theirs"))

    assert [message.queue for message in publisher(app).sent] == ["mine", "theirs"]


def test_unknown_queues_are_refused_when_none_may_be_made(make_app: MakeApp) -> None:
    app = make_app(task_queues=[Queue("a")], task_create_missing_queues=False, task_default_queue="a")

    app.send_task("t")
    with pytest.raises(QueueNotFound, match=r"'b' is not in task_queues \(has: a\)"):
        app.send_task("t", queue="b")


@pytest.mark.parametrize("routes", ["no.such.module.route", [5]], ids=str)
def test_a_broken_route_is_named(make_app: MakeApp, routes: Any) -> None:
    with pytest.raises(ConfigError, match="task_routes"):
        make_app(task_routes=routes).send_task("t")


def test_a_broken_queue_is_named(make_app: MakeApp) -> None:
    with pytest.raises(ConfigError, match="int is no queue"):
        make_app(task_queues=[5]).send_task("t")


def test_the_worker_is_told_of_queues(make_app: MakeApp) -> None:
    from tests.plugins.app_native.conftest import Worker

    app = make_app(task_queues=[Queue("a", queue_arguments={"x-max-priority": 5}), "b"], task_default_queue="a")
    info = Worker(app).loaded.info

    assert [(queue.name, dict(queue.arguments)) for queue in info.queues] == [("a", {"x-max-priority": 5}), ("b", {})]
    assert info.default_queue == "a"
    assert [queue.name for queue in Worker(make_app()).loaded.info.queues] == ["celery"]
