"""Messages, compared with what a Celery 5.7 client sends for the same call."""

from __future__ import annotations

import base64
import json
import os
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kernel_app import App, EncodeError, OperationalError
from tests.plugins.app_native.conftest import MakeApp, body_of, publisher, sent_by_celery

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")
ETA = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

CALLS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "plain": ((2, 2), {}, {}),
    "keywords": ((), {"x": 1, "y": "two"}, {}),
    "no arguments": ((), {}, {}),
    "one argument": ((1,), {}, {}),
    "task id": ((2, 2), {}, {"task_id": "my-id"}),
    "eta": ((2, 2), {}, {"eta": ETA}),
    "naive eta": ((2, 2), {}, {"eta": datetime(2030, 1, 2, 3, 4, 5)}),  # noqa: DTZ001
    "expires at": ((2, 2), {}, {"expires": ETA}),
    "countdown 0": ((2, 2), {}, {"countdown": 0}),
    "priority": ((2, 2), {}, {"priority": 6}),
    "queue": ((2, 2), {}, {"queue": "hipri"}),
    "routing key alone": ((2, 2), {}, {"routing_key": "rk"}),
    "exchange alone": ((2, 2), {}, {"exchange": "ex"}),
    "limits": ((2, 2), {}, {"time_limit": 30, "soft_time_limit": 20}),
    "shadow": ((2, 2), {}, {"shadow": "proj.shadowed"}),
    "ignore result": ((2, 2), {}, {"ignore_result": True}),
    "do not ignore": ((2, 2), {}, {"ignore_result": False}),
    "headers": ((2, 2), {}, {"headers": {"x-custom": "v"}}),
    "compression": ((2, 2), {}, {"compression": "gzip"}),
    "bzip2": ((2, 2), {}, {"compression": "bzip2"}),
    "lzma": ((2, 2), {}, {"compression": "lzma"}),
    "argsrepr": ((2, 2), {}, {"argsrepr": "(**,**)", "kwargsrepr": "{**}"}),
    "group": ((2, 2), {}, {"group_id": "g1", "group_index": 3}),
    "workflow": ((2, 2), {}, {"root_id": "r", "parent_id": "p", "retries": 2, "replaced_task_nesting": 1}),
    "reply to": ((2, 2), {}, {"reply_to": "somewhere"}),
    "stamps": ((2, 2), {}, {"stamped_headers": ["mystamp"], "mystamp": "abc"}),
    "delivery mode": ((2, 2), {}, {"delivery_mode": 1}),
    "pickle": ((2, 2), {}, {"serializer": "pickle"}),
    "bytes": (("a", b"abc"), {}, {}),
    "nested": (([1, {"a": [2, (3,)]}], {"k": None, "f": 1.5, "t": True}), {}, {}),
    "link": ((2, 2), {}, {"link": "S", "link_error": ["S", "S"]}),
}


def celery_envelope(name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> dict[str, Any]:
    (envelope,) = sent_by_celery(lambda client: client.send_task(name, args, kwargs, **options))
    return envelope


def our_envelope(app: App, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> dict[str, Any]:
    app.send_task(name, args, kwargs, **options)
    decoded: dict[str, Any] = json.loads(publisher(app).sent[-1].envelope())
    return decoded


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_envelope_equals_celerys(app: App, call: tuple[Any, Any, dict[str, Any]]) -> None:
    args, kwargs, options = call
    signature = {"task": "cb", "args": [10], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False}
    as_signatures: dict[str, Any] = {"link": signature, "link_error": [signature, signature]}
    options = {key: as_signatures.get(key, value) for key, value in options.items()}
    chosen = {"task_id": "11111111-2222-4333-8444-555555555555", **options}

    theirs = celery_envelope("proj.add", args, kwargs, dict(chosen))
    ours = our_envelope(app, "proj.add", args, kwargs, chosen)

    assert ours.keys() == theirs.keys()
    assert base64.b64decode(ours["body"]) == base64.b64decode(theirs["body"])
    assert (ours["content-type"], ours["content-encoding"]) == (theirs["content-type"], theirs["content-encoding"])
    assert {**ours["headers"], "origin": ""} == {**theirs["headers"], "origin": ""}
    for random in ("delivery_tag", "argsrepr", "kwargsrepr", *(() if "reply_to" in options else ("reply_to",))):
        theirs["properties"].pop(random, None)
        ours["properties"].pop(random, None)
    # in milliseconds; kombu measures "expires" itself a moment later
    left = [int(envelope["properties"].pop("expiration", 0)) for envelope in (ours, theirs)]
    assert abs(left[0] - left[1]) < 10_000
    assert ours["properties"] == theirs["properties"]


def test_ids_of_a_message_are_random_uuids_of_version_4(app: App) -> None:
    first, second = (app.send_task("t") for _ in range(2))

    assert UUID4.match(first.id)
    assert first.id != second.id
    message = publisher(app).sent[0]
    tags = {json.loads(message.envelope())["properties"]["delivery_tag"] for _ in range(2)}
    assert all(UUID4.match(tag) for tag in tags)
    assert UUID4.match(message.properties["reply_to"])


def test_origin_names_process_and_host(app: App) -> None:
    app.send_task("t")

    origin = publisher(app).sent[0].headers["origin"]
    assert origin == f"gen{os.getpid()}@{os.uname().nodename}"


def test_a_forked_child_sends_as_itself(app: App) -> None:
    app.send_task("t")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            app.send_task("t")
            sent = publisher(app).sent[-1]
            os.write(writer, json.dumps([sent.headers["origin"], sent.properties["reply_to"]]).encode())
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    origin, reply_to = json.loads(os.read(reader, 1000))

    assert origin.startswith(f"gen{child}@")
    assert reply_to != publisher(app).sent[0].properties["reply_to"]


def test_countdown_and_expires_become_times(app: App) -> None:
    app.send_task("t", countdown=60, expires=120)

    message = publisher(app).sent[0]
    now = datetime.now(UTC)
    eta = datetime.fromisoformat(message.headers["eta"])
    assert timedelta(seconds=55) < eta - now <= timedelta(seconds=60)
    assert message.eta == eta.timestamp()
    assert timedelta(seconds=115) < datetime.fromisoformat(message.headers["expires"]) - now <= timedelta(seconds=120)
    assert message.properties["expiration"] == "120000"


def test_a_message_that_has_expired_is_sent_with_a_warning(app: App, caplog: pytest.LogCaptureFixture) -> None:
    app.send_task("t", expires=-5)

    assert publisher(app).sent[0].properties["expiration"] == "0"
    assert re.search(r"expired 5\.\d s ago", caplog.text)


@pytest.mark.parametrize("options", [{"contdown": 5}, {"producer": None}])
def test_an_unknown_option_is_refused(app: App, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="there is no option"):
        app.send_task("t", **options)

    with pytest.raises(TypeError, match="did you mean 'countdown'"):
        app.send_task("t", contdown=5)  # type: ignore[call-arg]


def test_soft_limit_above_hard_limit_is_refused(app: App) -> None:
    with pytest.raises(ValueError, match="soft_time_limit"):
        app.send_task("t", soft_time_limit=20, time_limit=10)


@pytest.mark.parametrize(("args", "kwargs"), [("ab", {}), (5, {}), ((), [1])])
def test_arguments_of_a_wrong_kind_are_refused(app: App, args: Any, kwargs: Any) -> None:
    with pytest.raises(TypeError, match="must be a"):
        app.send_task("t", args, kwargs)


def test_a_header_cannot_replace_the_id(app: App) -> None:
    with pytest.raises(ValueError, match="'id'"):
        app.send_task("t", headers={"id": "other"})


def test_a_value_that_cannot_be_sent_names_its_type(app: App) -> None:
    with pytest.raises(EncodeError, match=r"builtins\.set"):
        app.send_task("t", [{1, 2}])

    assert publisher(app).sent == []


def test_task_options_are_defaults_that_the_call_overrides(app: App) -> None:
    @app.task(queue="slow", priority=3, time_limit=9, soft_time_limit=5, ignore_result=True, compression="zlib")
    def job() -> None: ...

    job.delay()
    job.apply_async(queue="fast", priority=1, time_limit=None, ignore_result=False)

    first, second = publisher(app).sent
    assert (first.queue, first.priority, first.headers["timelimit"]) == ("slow", 3, [9, 5])
    assert first.headers["compression"] == "application/x-gzip"
    assert first.headers["ignore_result"] is True
    assert (second.queue, second.priority, second.headers["timelimit"]) == ("fast", 1, [None, 5])
    assert second.headers["ignore_result"] is False


def test_send_task_uses_the_options_of_a_registered_task(app: App) -> None:
    @app.task(name="known", queue="slow")
    def job() -> None: ...

    app.send_task("known")
    app.send_task("unknown")

    assert [message.queue for message in publisher(app).sent] == ["slow", "celery"]
    assert [message.headers["ignore_result"] for message in publisher(app).sent] == [False, None]


def test_settings_changed_later_are_obeyed(app: App) -> None:
    app.send_task("t")
    app.conf.update(task_default_queue="other", task_default_priority=4)
    app.send_task("t")

    assert [(message.queue, message.priority) for message in publisher(app).sent] == [("celery", None), ("other", 4)]


def test_protocol_1_puts_everything_into_the_body(make_app: MakeApp) -> None:
    app = make_app(task_protocol=1)
    app.send_task("proj.add", (2, 2), group_id="g", task_id="x")

    message = publisher(app).sent[0]
    assert message.headers == {}
    assert body_of(message) == {
        "task": "proj.add", "id": "x", "args": [2, 2], "kwargs": {}, "group": "g", "group_index": None,
        "retries": 0, "eta": None, "expires": None, "utc": True, "callbacks": None, "errbacks": None,
        "timelimit": [None, None], "taskset": "g", "chord": None,
    }  # fmt: skip


REPRS: dict[str, tuple[Any, str]] = {
    "quotes": (("a'b",), '("a\'b",)'),
    "deep": (([[[[1]]]],), "([[[...]]],)"),
    "dict": (({"a": 1},), "({'a': 1},)"),
    "set": (({1},), "({1},)"),
}


@pytest.mark.parametrize(("args", "text"), REPRS.values(), ids=REPRS.keys())
def test_argsrepr_is_depth_limited(app: App, args: Any, text: str) -> None:
    app.send_task("t", args, serializer="pickle")

    assert publisher(app).sent[0].headers["argsrepr"] == text


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "args",
    [("x" * 5000,), tuple(range(5000)), ({"k" * 3000: "v" * 3000},), (10**400,), ([["y" * 700] * 50] * 50,)],
    ids=["text", "many", "dict", "big int", "product"],
)
def test_argsrepr_is_bounded(app: App, args: Any) -> None:
    app.send_task("t", args)

    assert len(publisher(app).sent[0].headers["argsrepr"]) <= 1024 + 40


def test_argsrepr_survives_a_hostile_repr(app: App) -> None:
    app.send_task("t", (Hostile(),), serializer="pickle")

    assert "Hostile: repr raised RuntimeError" in publisher(app).sent[0].headers["argsrepr"]


def test_publishing_is_tried_again_as_the_policy_says(app: App) -> None:
    publisher(app).outages = 2

    app.send_task("t", retry_policy={"interval_step": 0.001})

    assert len(publisher(app).sent) == 1
    assert publisher(app).attempts == 3


@pytest.mark.parametrize(
    ("options", "attempts"),
    [({"retry": False}, 1), ({"retry_policy": {"max_retries": 1, "interval_step": 0.0}}, 2)],
    ids=["no retry", "one retry"],
)
def test_a_broker_that_is_away_is_an_operational_error_without_credentials(
    make_app: MakeApp, options: dict[str, Any], attempts: int
) -> None:
    app = make_app(broker_url="memory://user:sec/ret@host/0?password=canary")
    publisher(app).outages = 99

    with pytest.raises(OperationalError) as caught:
        app.send_task("t", **options)

    assert publisher(app).attempts == attempts
    assert isinstance(caught.value, ConnectionError)
    assert "memory://**@host/0" in str(caught.value)
    assert not re.search("sec|ret@|canary", str(caught.value))


def test_a_list_of_urls_is_for_failover(make_app: MakeApp) -> None:
    app = make_app(broker_url="memory://a;memory://b")
    app.connections._connection("kernel_worker.publishers", "memory://a").outages = 1

    app.send_task("t")

    assert len(app.connections._connection("kernel_worker.publishers", "memory://b").sent) == 1
