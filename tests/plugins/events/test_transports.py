"""Outlets and inlets of each broker: what goes in comes out, here and in Celery's own receiver."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel_events.envelope import MULTI, EventMessage, events_of, pack, unpack
from kernel_events.inlets import Inlet, open_inlet
from kernel_events.outlets import Outlet, open_outlet
from kernel_worker.testing import eventually
from tests.servers import free_port

EXCHANGE = "celeryev-of-this-test"
HOST = "kw@here"


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
def outlet(url: str) -> Iterator[Outlet]:
    outlet = open_outlet(url, {}, EXCHANGE, HOST)
    assert outlet is not None
    yield outlet
    outlet.close()


@pytest.fixture
def inlet(url: str) -> Iterator[Inlet]:
    inlet = open_inlet(url, {}, EXCHANGE)
    assert inlet is not None
    inlet.connect()
    yield inlet
    inlet.close()


def event(kind: str, **fields: Any) -> dict[str, Any]:
    common = {"hostname": HOST, "utcoffset": 0.0, "pid": 1, "clock": 1, "timestamp": time.time()}
    return {**common, **fields, "type": kind}


ONE = EventMessage("worker.heartbeat", (event("worker-heartbeat", freq=2.0),))
SEVERAL = EventMessage(MULTI, tuple(event("task-started", uuid=f"id{number}") for number in range(3)))


def receive(inlet: Inlet, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + 10
    while len(found) < count and time.monotonic() < deadline:
        found += inlet.receive(0.2)
    return found


def test_events_come_out_as_they_went_in(outlet: Outlet, inlet: Inlet) -> None:
    outlet.publish([ONE, SEVERAL])

    assert receive(inlet, 4) == [dict(each) for each in (*ONE.events, *SEVERAL.events)]


def test_every_receiver_hears_all(outlet: Outlet, inlet: Inlet, url: str) -> None:
    second = open_inlet(url, {}, EXCHANGE)
    assert second is not None
    second.connect()

    outlet.publish([ONE])

    assert len(receive(inlet, 1)) == len(receive(second, 1)) == 1
    second.close()


def test_publishing_to_nobody_is_no_error(outlet: Outlet) -> None:
    for _ in range(3):
        outlet.publish([ONE, SEVERAL])
        outlet.keep_alive()


def test_silence_ends_with_the_time_out(inlet: Inlet) -> None:
    begun = time.monotonic()

    assert inlet.receive(0.2) == []

    assert time.monotonic() - begun < 2


def test_other_exchange_is_another_world(inlet: Inlet, url: str) -> None:
    other = open_outlet(url, {}, "otherev", HOST)
    assert other is not None

    other.publish([ONE])

    assert inlet.receive(0.3) == []
    other.close()


def test_celerys_receiver_hears_them(outlet: Outlet, url: str) -> None:
    if url.startswith("sqlite"):
        return  # Celery has no such broker
    celery = pytest.importorskip("celery")
    app = celery.Celery(broker=url, set_as_current=False)
    app.conf.event_exchange = EXCHANGE
    heard: list[dict[str, Any]] = []
    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": heard.append}, app=app)
        ready = threading.Event()
        stop = threading.Event()

        def capture() -> None:
            with receiver.consumer_context(wakeup=False) as (_, channel, _):
                ready.set()
                while not stop.is_set():
                    try:
                        channel.connection.client.drain_events(timeout=0.1)
                    except TimeoutError:
                        continue

        thread = threading.Thread(target=capture)
        thread.start()
        assert ready.wait(10)
        try:

            def arrives() -> bool:
                if not heard:
                    outlet.publish([ONE, SEVERAL])
                return len(heard) >= 4

            eventually(arrives, within_s=10)
        finally:
            stop.set()
            thread.join(10)

    assert [each["type"] for each in heard[:4]] == ["worker-heartbeat", *["task-started"] * 3]
    assert heard[1]["uuid"] == "id0"


def test_connection_is_opened_again_after_a_loss(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    outlet = open_outlet(server.url, {}, EXCHANGE, HOST)
    assert outlet is not None
    outlet.publish([ONE])

    server.restart()

    outlet.publish([ONE])
    outlet.close()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_broker_that_is_away_is_a_connection_error_without_the_password(scheme: str) -> None:
    outlet = open_outlet(f"{scheme}://user:geheim@127.0.0.1:{free_port()}/0", {}, EXCHANGE, HOST)
    assert outlet is not None

    with pytest.raises(ConnectionError) as caught:
        outlet.publish([ONE])

    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"[]", b"{}", b'{"body": 7}', b'{"body": "e30"}', b'{"body": "!!"}', b"\xff"]
)
def test_what_is_no_event_message_is_passed_over(raw: bytes) -> None:
    assert unpack(raw) == []


def test_only_what_has_a_type_is_an_event() -> None:
    assert events_of(b'[{"type": "task-x"}, {}, 3, {"type": 7}]') == [{"type": "task-x"}]
    assert unpack(pack(b'{"type": "task-x"}', HOST, EXCHANGE, "task.x")) == [{"type": "task-x"}]


@pytest.mark.parametrize("url", ["memory://", "sqs://", "filesystem://"])
def test_other_brokers_carry_no_events(url: str) -> None:
    assert open_outlet(url, {}, EXCHANGE, HOST) is None
    assert open_inlet(url, {}, EXCHANGE) is None
