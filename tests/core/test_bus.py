"""Subscriptions: told in order, frozen once, and not stopped by a subscriber's bug."""

from __future__ import annotations

import logging

import pytest

from kernel_worker.bus import Bus, Kind


def test_subscribers_of_a_kind_are_told_in_the_order_they_subscribed() -> None:
    bus = Bus()
    heard: list[tuple[str, object, object]] = []
    bus.on(Kind.FAILED, lambda request, outcome: heard.append(("first", request, outcome)))
    bus.on(Kind.FAILED, lambda request, outcome: heard.append(("second", request, outcome)))
    bus.on(Kind.SUCCEEDED, lambda request, outcome: heard.append(("other kind", request, outcome)))
    bus.freeze()

    bus.emit(Kind.FAILED, "request", "outcome")

    assert heard == [("first", "request", "outcome"), ("second", "request", "outcome")]


def test_nobody_is_told_before_the_bus_is_frozen() -> None:
    bus = Bus()
    heard: list[object] = []
    bus.on(Kind.STARTED, lambda request, outcome: heard.append(request))

    bus.emit(Kind.STARTED, "early")

    assert heard == []
    assert bus.subscribers == ((),) * len(Kind)


def test_a_late_subscription_is_refused_with_the_place_for_it() -> None:
    bus = Bus()
    bus.freeze()

    with pytest.raises(RuntimeError, match="kw_subscribe"):
        bus.on(Kind.STARTED, lambda request, outcome: None)


def test_a_subscriber_that_raises_is_logged_and_the_others_are_told(caplog: pytest.LogCaptureFixture) -> None:
    bus = Bus()
    heard: list[object] = []

    def broken(request: object, outcome: object) -> None:
        raise KeyError("a bug")

    bus.on(Kind.LOST, broken)
    bus.on(Kind.LOST, lambda request, outcome: heard.append(request))
    bus.freeze()
    with caplog.at_level(logging.ERROR):
        bus.emit(Kind.LOST, 1)
        bus.emit(Kind.LOST, 2)

    assert heard == [1, 2]
    assert caplog.text.count("broken") >= 2


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name.lower())
def test_every_kind_has_its_own_place(kind: Kind) -> None:
    bus = Bus()
    bus.on(kind, lambda request, outcome: None)
    bus.freeze()

    assert [len(subscribers) for subscribers in bus.subscribers] == [int(each is kind) for each in Kind]


def test_an_attached_subscription_is_told_until_it_is_detached() -> None:
    bus = Bus()
    heard: list[object] = []
    bus.on(Kind.STARTED, lambda request, outcome: heard.append(("first", request)))
    bus.freeze()

    detach = bus.attach({Kind.STARTED: lambda request, outcome: heard.append(("attached", request))})
    bus.emit(Kind.STARTED, 1)
    detach()
    detach()
    bus.emit(Kind.STARTED, 2)

    assert heard == [("first", 1), ("attached", 1), ("first", 2)]


def test_nothing_is_left_of_a_detached_subscription() -> None:
    bus = Bus()
    bus.freeze()

    bus.attach(dict.fromkeys(Kind, lambda request, outcome: None))()

    assert bus.subscribers == ((),) * len(Kind)
