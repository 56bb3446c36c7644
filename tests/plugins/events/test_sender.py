"""The sending thread: batches, a bounded buffer, and a broker that comes and goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest

from kernel_events.envelope import MULTI, EventMessage
from kernel_events.sender import Sender
from kernel_worker.testing import eventually


class Outlet:
    """Keeps what it gets; refuses while `is_away`."""

    heartbeat_s: ClassVar[float] = 0.0

    def __init__(self) -> None:
        self.messages: list[EventMessage] = []
        self.is_away = False
        self.closed = 0
        self.gate = threading.Event()
        self.gate.set()

    def publish(self, messages: Sequence[EventMessage]) -> None:
        self.gate.wait(10)
        if self.is_away:
            raise ConnectionError("nobody there")
        self.messages += messages

    def keep_alive(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1

    @property
    def events(self) -> list[dict[str, Any]]:
        return [dict(event) for message in self.messages for event in message.events]


@pytest.fixture
def outlet() -> Outlet:
    return Outlet()


@pytest.fixture
def sender(outlet: Outlet) -> Iterator[Sender]:
    sender = Sender(lambda: outlet, buffer=50)
    sender.start()
    yield sender
    outlet.gate.set()
    sender.stop(time.monotonic() + 5)


def event(kind: str, number: int = 0) -> dict[str, Any]:
    return {"type": kind, "number": number}


def test_events_arrive_in_order(sender: Sender, outlet: Outlet) -> None:
    for number in range(40):
        sender.put(event("task-started", number))

    eventually(lambda: [each["number"] for each in outlet.events] == list(range(40)))


def test_neighbouring_task_events_share_a_message_and_worker_events_go_alone(
    sender: Sender, outlet: Outlet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel_events.sender.GATHER_S", 0.5)  # they are put within it
    outlet.gate.clear()
    for kind in ("worker-online", "task-received", "task-started", "worker-heartbeat", "task-succeeded"):
        sender.put(event(kind))
    outlet.gate.set()

    eventually(lambda: len(outlet.events) == 5)

    keys = [(message.routing_key, len(message.events)) for message in outlet.messages]
    assert keys == [("worker.online", 1), (MULTI, 2), ("worker.heartbeat", 1), (MULTI, 1)]


def test_what_could_not_be_sent_is_sent_when_the_broker_is_back(sender: Sender, outlet: Outlet) -> None:
    outlet.is_away = True
    sender.put(event("task-started", 1))
    eventually(lambda: sender.is_away)
    sender.put(event("task-started", 2))

    outlet.is_away = False

    eventually(lambda: [each["number"] for each in outlet.events] == [1, 2])
    eventually(lambda: not sender.is_away)
    assert outlet.closed >= 1


@pytest.fixture
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that is started now does not try again while the test runs: a second attempt makes room."""
    monkeypatch.setattr("kernel_events.sender.BACKOFF_S", (30.0, 30.0))


def test_buffer_is_bounded_and_what_is_dropped_is_counted(
    one_attempt: None, sender: Sender, outlet: Outlet, caplog: pytest.LogCaptureFixture
) -> None:
    outlet.is_away = True
    sender.put(event("task-started"))
    eventually(lambda: sender.is_away)

    for number in range(200):
        sender.put(event("task-started", number))

    assert sender.counters == {"sent": 0, "dropped": 150, "waiting": 51}
    eventually(lambda: caplog.text.count("cannot be sent") == 1)


def test_heartbeats_of_an_outage_are_not_sent_afterwards(sender: Sender, outlet: Outlet) -> None:
    outlet.is_away = True
    sender.put(event("task-started"))
    eventually(lambda: sender.is_away)

    sender.put(event("worker-heartbeat"))
    outlet.is_away = False

    eventually(lambda: outlet.events)
    assert [each["type"] for each in outlet.events] == ["task-started"]


def test_worker_events_find_room_in_a_full_buffer(sender: Sender, outlet: Outlet) -> None:
    outlet.gate.clear()
    for number in range(60):
        sender.put(event("task-started", number))

    sender.put(event("worker-offline"))
    outlet.gate.set()

    eventually(lambda: outlet.events and outlet.events[-1]["type"] == "worker-offline")


def test_stop_sends_what_waits(outlet: Outlet) -> None:
    sender = Sender(lambda: outlet)
    sender.start()
    sender.put(event("worker-offline"))

    sender.stop(time.monotonic() + 5)

    assert [each["type"] for each in outlet.events] == ["worker-offline"]
    assert outlet.closed == 1


def test_stop_does_not_wait_for_a_broker_that_is_away(outlet: Outlet) -> None:
    outlet.is_away = True
    sender = Sender(lambda: outlet)
    sender.start()
    sender.put(event("worker-offline"))
    begun = time.monotonic()

    sender.stop(begun + 1.0)

    assert time.monotonic() - begun < 1.5


def test_stop_tolerates_no_start_and_a_second_stop(outlet: Outlet) -> None:
    sender = Sender(lambda: outlet)

    sender.stop(time.monotonic())
    sender.stop(time.monotonic())


def test_each_loss_asks_for_the_next_broker(outlet: Outlet) -> None:
    away = Outlet()
    away.is_away = True
    turns = iter([away, outlet, outlet])
    sender = Sender(lambda: next(turns))
    sender.start()

    sender.put(event("task-started"))

    eventually(lambda: len(outlet.events) == 1)
    sender.stop(time.monotonic() + 5)


def test_put_costs_little(sender: Sender, outlet: Outlet) -> None:
    outlet.gate.clear()
    begun = time.perf_counter()

    for _ in range(10_000):
        sender.put({"type": "task-started"})

    assert (time.perf_counter() - begun) / 10_000 < 50e-6
