"""How the broker suites make brokers and read from them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import pytest

from ..drivers import Broker, BrokerContext
from ..types import BrokerCapability, Delivery, QueueSpec, Settlement, Verdict
from .contract import Contract

MakeBroker = Callable[..., Broker]
"""`make_broker(**overrides)` gives a broker that is connected and declared. `overrides` are fields of
`BrokerContext`: holder (default: a new one each time), queues, lease_s, max_message_bytes, options."""

QUEUE = "celery"
PROMPT_S = 2.0  # "at once": far below any time-out a driver could be waiting for, far above a round trip
_serial = itertools.count(1)


@contextlib.contextmanager
def broker_factory(driver: type[Broker], url: str, **defaults: Any) -> Iterator[MakeBroker]:
    """A `MakeBroker` over one storage; every broker it made is closed at the end.

    :param defaults: fields of `BrokerContext` to use unless a test overrides them.
    """
    made: list[Broker] = []

    def make(**overrides: Any) -> Broker:
        holder = f"contract{next(_serial)}@localhost/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        broker = driver(BrokerContext(url, **({"holder": holder} | defaults | overrides)))
        made.append(broker)
        broker.connect()
        broker.declare(broker.context.queues)
        return broker

    yield make
    for broker in reversed(made):
        broker.close()


def collect(broker: Broker, count: int, *, within_s: float = 5.0, limit: int = 0) -> list[Delivery]:
    """Fetch until `count` deliveries are there.

    :param limit: at most so many per `fetch`; 0 = what is still missing.
    :raises AssertionError: fewer came in time, or more than asked for.
    """
    got: list[Delivery] = []
    deadline = time.monotonic() + within_s
    while len(got) < count and time.monotonic() < deadline:
        ask = min(limit or count, count - len(got))
        batch = broker.fetch(ask, min(0.25, max(0.0, deadline - time.monotonic())))
        assert len(batch) <= ask, f"fetch({ask}) gave {len(batch)} deliveries"
        got += batch
    assert len(got) == count, f"{len(got)} of {count} deliveries within {within_s:g} s"
    return got


def nothing_comes(broker: Broker, *, within_s: float = 0.15) -> bool:
    """Whether the broker has nothing to deliver for so long."""
    batch = broker.fetch(10, within_s)
    assert batch == [], f"nothing was to be delivered, but: {ids(batch)}"
    return True


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    """Task ids in the order of delivery."""
    return [str(delivery.headers.get("id", "?")) for delivery in deliveries]


def id_of(raw: bytes) -> str:
    """Task id of an envelope."""
    return str(json.loads(raw)["headers"]["id"])


def settle(broker: Broker, verdict: Verdict, *deliveries: Delivery, **more: Any) -> None:
    """Settle deliveries with one verdict in one batch."""
    broker.settle([Settlement(delivery, verdict, **more) for delivery in deliveries])


def ack(broker: Broker, *deliveries: Delivery) -> None:
    settle(broker, Verdict.ACK, *deliveries)


def counts(broker: Broker, queue: str = QUEUE) -> dict[str, int]:
    """The numbers of a queue that are not zero."""
    info = broker.size(queue)
    found = {"waiting": info.waiting, "in_flight": info.in_flight, "parked": info.parked, "dead": info.dead}
    return {name: number for name, number in found.items() if number}


def each_once(expected: Sequence[str], got: Sequence[str]) -> bool:
    """Whether both hold the same ids, each once; what is missing or doubled is shown."""
    missing = sorted(set(expected) - set(got))
    doubled = sorted(name for name, number in Counter(got).items() if number > 1)
    strange = sorted(set(got) - set(expected))
    assert not missing, f"{len(missing)} lost, e.g. {missing[:3]}"
    assert not doubled, f"{len(doubled)} delivered twice, e.g. {doubled[:3]}"
    assert not strange, f"{len(strange)} that nobody sent, e.g. {strange[:3]}"
    return True


class BrokerSuite(Contract, suite=True):
    """Fixtures of all broker tests, and what a plugin may tell about its driver."""

    short_lease_s: ClassVar[float] = 0.3
    """Lease of a holder that is to be given up for dead. The shortest the driver keeps well."""
    urgent_first: ClassVar[Sequence[int]] = (0, 3, 6, 9)
    """Priorities from the most to the least urgent. On Redis 0 is the most urgent, on AMQP the largest."""
    keeps_returns: ClassVar[bool] = True
    """Whether `Delivery.returns` is kept; see `Settlement`."""
    many: ClassVar[int] = 5_000
    """Messages in the test of large batches."""

    @pytest.fixture
    def make_broker(self) -> Iterator[MakeBroker]:
        """To be given by the plugin, over a storage that is empty at the start of every test."""
        raise NotImplementedError("a broker's test class gives a fixture make_broker, see broker_factory")

    @pytest.fixture
    def broker(self, make_broker: MakeBroker) -> Broker:
        """One broker whose lease outlasts the test."""
        return make_broker(lease_s=30.0)

    @pytest.fixture
    def other(self, make_broker: MakeBroker) -> Broker:
        """A second holder on the same storage, whose lease outlasts the test."""
        return make_broker(lease_s=30.0)

    def declared_capabilities(self, request: pytest.FixtureRequest) -> frozenset[BrokerCapability]:
        make_broker: MakeBroker = request.getfixturevalue("make_broker")
        return make_broker().capabilities

    def lose_lease(self, lost: Broker, other: Broker, count: int) -> list[Delivery]:
        """Wait until `other` holds `count` deliveries of `lost`, which stopped renewing."""
        return collect(other, count, within_s=lost.context.lease_s + 2.0)


def queues(*names: str) -> tuple[QueueSpec, ...]:
    """Specs of queues with Celery's defaults."""
    return tuple(QueueSpec(name) for name in names)
