"""The two broker threads: they reconnect for ever, lose no settlement, ask for no more than was allowed, and end in time."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from kernel_worker.broker_host import BrokerHost
from kernel_worker.drivers import BrokerContext
from kernel_worker.errors import BrokerRefused, BrokerUnavailable
from kernel_worker.lease import clock
from kernel_worker.loop import Loop
from kernel_worker.testing import envelope
from kernel_worker.types import BrokerCapability, Delivery, QueueSpec, Settlement, Verdict

from .memory_broker import MemoryBroker

WITHIN_S = 10.0


class Host:
    """A broker host on a loop that the test turns."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.loop = Loop()
        self.delivered: list[Delivery] = []
        self.more: list[bool] = []
        self.events: list[str] = []
        self.held: list[Delivery] = []
        self.marked: list[Settlement] = []
        self.renewed: list[float] = []
        self.lost: list[Delivery] = []
        self.on_renewed: Callable[[], object] = lambda: None
        self.on_lost: Callable[[], object] = lambda: None
        self.host = BrokerHost(
            self.loop,
            broker,
            (QueueSpec("celery"),),
            deliver=self._deliver,
            held=lambda: self.held,
            on_up=lambda: self.events.append("up"),
            on_down=lambda error: self.events.append(f"down: {error}"),
            on_marked=self.marked.extend,
            on_renewed=self._renewed,
            on_lost=self._lost,
        )

    def _deliver(self, deliveries: list[Delivery], more: bool) -> None:
        self.delivered += deliveries
        self.more.append(more)

    def _renewed(self, held_until: float) -> None:
        self.renewed.append(held_until)
        self.on_renewed()

    def _lost(self, deliveries: list[Delivery]) -> None:
        self.lost += deliveries
        self.on_lost()

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + WITHIN_S
        while True:
            is_late = time.monotonic() > deadline  # asked first: the last look is one after the deadline
            if condition():
                return
            assert not is_late, f"not within {WITHIN_S:g} s"
            self.loop.turn(0.005)

    def connect(self) -> None:
        self.host.start()
        self.until(lambda: self.host.connected)

    def ack(self, *deliveries: Delivery) -> None:
        self.host.settle([Settlement(delivery, Verdict.ACK) for delivery in deliveries])

    def stop(self, within_s: float = WITHIN_S) -> None:
        self.host.stop(time.monotonic() + within_s)


def messages(*task_ids: object) -> list[bytes]:
    return [envelope("t", task_id=str(task_id)) for task_id in task_ids]


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def host(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr("kernel_worker.broker_host.BACKOFF_FIRST_S", 0.004)
    monkeypatch.setattr("kernel_worker.broker_host.BACKOFF_MAX_S", 0.02)
    host = Host(broker)
    yield host
    broker.come_back()
    host.stop()
    host.loop.close()
    assert broker.offences == []


# -- room


def test_nothing_is_fetched_before_it_is_allowed(host: Host, broker: MemoryBroker) -> None:
    broker.put(*messages(1, 2))

    host.connect()
    host.loop.turn(0.02)

    assert broker.calls["fetch"] == 0
    assert broker.calls["declare"] == 1


def test_what_is_allowed_is_fetched_and_no_more(host: Host, broker: MemoryBroker) -> None:
    broker.put(*messages(*range(10)))
    host.connect()

    host.host.allow(4, 1)
    host.until(lambda: len(host.delivered) == 4)
    host.loop.turn(0.02)

    assert len(host.delivered) == 4
    assert len(broker.waiting) == 6


def test_it_is_told_whether_there_was_as_much_as_asked_for(host: Host, broker: MemoryBroker) -> None:
    broker.put(*messages(*range(6)))
    host.connect()

    host.host.allow(4, 4)
    host.until(lambda: len(host.delivered) == 4)
    host.host.allow(8, 4)
    host.until(lambda: len(host.delivered) == 6)

    assert host.more == [True, False]


def test_a_fetch_waits_until_it_is_worth_a_round_trip(host: Host, broker: MemoryBroker) -> None:
    broker.put(*messages(*range(20)))
    host.connect()
    host.host.allow(10, 5)
    host.until(lambda: len(host.delivered) == 10)

    host.host.allow(13, 5)
    host.loop.turn(0.02)
    early = len(host.delivered)
    host.host.allow(15, 5)
    host.until(lambda: len(host.delivered) == 15)

    assert early == 10


def test_large_messages_are_fetched_in_small_batches(host: Host, broker: MemoryBroker) -> None:
    """Memory is bounded by bytes too: about 64 MB in one batch, by the size of the last ones."""
    limits: list[int] = []
    fetch = broker.fetch

    def watched(limit: int, timeout: float) -> list[Delivery]:
        limits.append(limit)
        return fetch(limit, timeout)

    broker.fetch = watched  # type: ignore[method-assign]
    broker.put(envelope("t", padding=12_000_000), *messages(1))
    host.connect()

    host.host.allow(1, 1)
    host.until(lambda: len(host.delivered) == 1)
    host.host.allow(1000, 1)
    host.until(lambda: len(host.delivered) == 2)

    assert limits[0] == 1
    assert limits[1] <= 4


def test_under_stress_never_more_than_the_allowed_total_is_fetched(host: Host, broker: MemoryBroker) -> None:
    over: list[tuple[int, int]] = []
    fetched = 0
    allowed = 0
    fetch = broker.fetch

    def watched(limit: int, timeout: float) -> list[Delivery]:
        nonlocal fetched
        found = fetch(limit, timeout)
        fetched += len(found)
        if fetched > allowed:
            over.append((fetched, allowed))
        return found

    broker.fetch = watched  # type: ignore[method-assign]
    host.connect()
    feeding = threading.Event()

    def feed() -> None:
        for number in range(3000):
            broker.put(*messages(number))
        feeding.set()

    feeder = threading.Thread(target=feed)
    feeder.start()
    for step in itertools.count():
        if len(host.delivered) >= 3000:
            break
        allowed = max(allowed, len(host.delivered) + 1 + step % 17)
        host.host.allow(allowed, 1 + step % 3)
        host.loop.turn(0.001)
        host.ack(*host.delivered[-2:])
        assert step < 100_000
    feeder.join()

    assert over == []
    assert sorted(int(each.headers["id"]) for each in host.delivered) == list(range(3000))


# -- settling


def test_settlements_of_several_turns_go_out_in_one_call(host: Host, broker: MemoryBroker) -> None:
    broker.put(*messages(*range(9)))
    host.connect()
    host.host.allow(9, 9)
    host.until(lambda: len(host.delivered) == 9)
    gate = threading.Event()
    entered = threading.Event()

    def wait(batch: Sequence[Settlement]) -> None:
        entered.set()
        gate.wait(WITHIN_S)

    broker.on_settle = wait  # type: ignore[method-assign]
    host.ack(host.delivered[0])
    entered.wait(WITHIN_S)
    for delivery in host.delivered[1:]:
        host.ack(delivery)
    gate.set()
    host.until(lambda: host.host.settled)

    assert [len(batch) for batch in broker.settled_batches] == [1, 8]


def test_settled_is_false_until_the_broker_has_done_it(host: Host, broker: MemoryBroker) -> None:
    broker.put(*messages("a"))
    host.connect()
    host.host.allow(1, 1)
    host.until(lambda: host.delivered)
    gate = threading.Event()
    broker.on_settle = lambda batch: gate.wait(WITHIN_S)  # type: ignore[method-assign]

    host.ack(*host.delivered)
    before = host.host.settled
    gate.set()
    host.until(lambda: host.host.settled)

    assert not before
    assert broker.acked == ["a"]


def test_a_batch_that_failed_is_repeated_as_a_whole_when_the_broker_is_back(host: Host, broker: MemoryBroker) -> None:
    broker.put(*messages("a", "b"))
    host.connect()
    host.host.allow(2, 2)
    host.until(lambda: len(host.delivered) == 2)

    broker.go_away()
    host.ack(*host.delivered)
    host.until(lambda: "down: connection refused" in host.events)
    settled_early = host.host.settled
    broker.come_back()
    host.until(lambda: host.host.settled and len(host.events) == 3)

    assert not settled_early
    assert broker.acked == ["a", "b"]
    assert host.events == ["up", "down: connection refused", "up"]


def test_a_settling_connection_alone_that_is_lost_is_mended(
    host: Host, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel_worker.broker_host.FETCH_TIMEOUT_S", 10.0)
    broker.put(*messages("a"))
    host.connect()
    host.host.allow(1, 1)
    host.until(lambda: host.delivered)
    failures = iter([BrokerUnavailable("reset by peer")])

    def fail_once(batch: Sequence[Settlement]) -> None:
        for failure in failures:
            raise failure

    broker.on_settle = fail_once  # type: ignore[method-assign]
    begun = time.monotonic()
    host.ack(*host.delivered)
    host.until(lambda: host.host.settled)

    assert broker.acked == ["a"]
    assert broker.calls["connect"] == 2
    # Cause of a delay of that time-out: nobody told the fetch thread, which waited for room.
    assert time.monotonic() - begun < 4.0


def test_settling_never_happens_while_the_driver_connects(host: Host, broker: MemoryBroker) -> None:
    """Cause: the settle thread tried again every second, and whenever there was something new, while the fetch thread
    was connecting; a driver replaces its connections then. The fixture looks for such offences."""
    broker.put(*messages(*range(50)))
    host.connect()
    host.host.allow(50, 50)
    host.until(lambda: len(host.delivered) == 50)
    connecting, go_on = threading.Event(), threading.Event()

    def connect_slowly() -> None:
        connecting.set()
        go_on.wait(0.05)

    broker.on_connect = connect_slowly  # type: ignore[method-assign]
    broker.go_away()
    for delivery in host.delivered:
        host.ack(delivery)
        host.loop.turn(0.001)
    connecting.wait(WITHIN_S)
    broker.come_back()
    go_on.set()
    host.until(lambda: host.host.settled)

    assert sorted(map(int, broker.acked)) == list(range(50))
    assert broker.offences == []


def test_the_driver_never_connects_while_it_settles(host: Host, broker: MemoryBroker) -> None:
    broker.put(*messages("a"))
    host.connect()
    host.host.allow(2, 1)
    host.until(lambda: host.delivered)
    entered, gate = threading.Event(), threading.Event()

    def settle_slowly(batch: Sequence[Settlement]) -> None:
        entered.set()
        gate.wait(WITHIN_S)

    broker.on_settle = settle_slowly  # type: ignore[method-assign]
    host.ack(*host.delivered)
    entered.wait(WITHIN_S)
    broker.go_away()
    host.until(lambda: not host.host.connected)
    host.loop.turn(0.03)
    connects = broker.calls["connect"]
    gate.set()
    broker.come_back()
    host.until(lambda: host.host.settled)

    assert connects == 1
    assert broker.offences == []


@pytest.mark.parametrize(
    "error",
    [UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), BrokerRefused("NOPERM no such rights")],
    ids=["a bug of the driver", "refused by the broker"],
)
def test_a_settlement_that_cannot_be_carried_out_does_not_block_the_others(
    host: Host, broker: MemoryBroker, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """Cause: an unexpected error of the driver (a reason it could not encode), or a refusal that concerned one message
    (no rights to the dead letters), had the same batch repeated for ever, with a new connection each time: nothing was
    acked any more."""
    broker.put(*messages("a", "poison", "b"))
    host.connect()
    host.host.allow(3, 3)
    host.until(lambda: len(host.delivered) == 3)

    def choke(batch: Sequence[Settlement]) -> None:
        if any(each.delivery.headers["id"] == "poison" for each in batch):
            raise error

    broker.on_settle = choke  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR):
        host.ack(host.delivered[1])
        host.until(lambda: broker.calls["settle"] >= 2)
        alone = host.host.settled
        host.ack(host.delivered[0], host.delivered[2])
        host.until(lambda: host.host.settled)

    assert not alone  # it might be the broker
    assert broker.acked == ["a", "b"]
    assert "a delivery of queue celery cannot be settled (ack)" in caplog.text


def test_leases_of_what_is_held_are_renewed_three_times_in_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = MemoryBroker(BrokerContext("memory://", lease_s=0.06))
    host = Host(broker)
    host.held = [Delivery("celery", b"", {}, receipt=1)]
    try:
        begun = time.monotonic()
        host.connect()
        host.until(lambda: len(broker.renewals) >= 3)
        took = time.monotonic() - begun
    finally:
        host.stop()
        host.loop.close()

    assert broker.renewals[0] == host.held
    assert took >= 0.05
    assert broker.offences == []


def test_a_renewal_that_fails_has_the_connection_mended(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel_worker.broker_host.BACKOFF_FIRST_S", 0.004)
    broker.context = BrokerContext("memory://", lease_s=0.03)
    host = Host(broker)
    try:
        host.connect()
        broker.go_away()
        host.until(lambda: "down: connection refused" in host.events)
        broker.come_back()
        host.until(lambda: host.events[-1] == "up" and host.events.count("up") == 2)
        renewed = len(broker.renewals)
        host.until(lambda: len(broker.renewals) > renewed)
    finally:
        host.stop()
        host.loop.close()


# -- outages


def test_a_broker_that_is_away_at_first_is_waited_for_and_told_once(host: Host, broker: MemoryBroker) -> None:
    broker.go_away()
    host.host.start()
    host.until(lambda: broker.calls["connect"] >= 5 and host.events)
    told = list(host.events)

    broker.come_back()
    host.until(lambda: host.events[-1:] == ["up"])

    assert told == ["down: connection refused"]
    assert host.events == ["down: connection refused", "up"]


def test_another_trouble_is_told_again(host: Host, broker: MemoryBroker) -> None:
    broker.go_away("connection refused")
    host.host.start()
    host.until(lambda: host.events)

    broker.go_away("loading the dataset in memory")
    host.until(lambda: len(host.events) == 2)

    assert host.events[1] == "down: loading the dataset in memory"
    assert host.host.last_error == "loading the dataset in memory"


def test_attempts_become_rarer_while_the_broker_is_away(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = _attempts(broker, monkeypatch, count=6)

    assert waits == sorted(waits)
    assert waits[-1] > 4 * waits[0]


def test_a_broker_that_lets_connect_and_refuses_everything_else_is_not_stormed(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cause: the back-off began anew at each successful connect, so a read-only replica got ten connections a second."""

    def refuse(limit: int, timeout: float) -> list[Delivery]:
        raise BrokerRefused("READONLY You can't write against a read only replica")

    broker.fetch = refuse  # type: ignore[method-assign]
    waits = _attempts(broker, monkeypatch, count=6, allow=True)

    assert waits[-1] > 4 * waits[0]


def _attempts(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, *, count: int, allow: bool = False) -> list[float]:
    """Seconds it waits between attempts to connect; jitter taken away."""
    monkeypatch.setattr("kernel_worker.broker_host.BACKOFF_FIRST_S", 0.004)
    monkeypatch.setattr("kernel_worker.broker_host.random.uniform", lambda low, high: high)
    host = Host(broker)
    waits: list[float] = []
    wait = host.host._stop_fetch.wait

    def note(seconds: float) -> bool:
        waits.append(seconds)
        return wait(seconds)

    monkeypatch.setattr(host.host._stop_fetch, "wait", note)
    if allow:
        host.host.allow(10, 1)
    else:
        connect = broker.connect

        def fail() -> None:
            connect()
            raise BrokerUnavailable("connection refused")

        broker.connect = fail  # type: ignore[method-assign]
    host.host.start()
    host.until(lambda: len(waits) >= count)
    host.stop(within_s=1.0)
    host.loop.close()
    return waits[:count]


def test_the_broker_may_say_how_long_to_wait(host: Host, broker: MemoryBroker) -> None:
    times: list[float] = []

    def throttle() -> None:
        times.append(time.monotonic())
        if len(times) < 3:
            raise BrokerUnavailable("slow down", retry_after=0.08)

    broker.on_connect = throttle  # type: ignore[method-assign]
    host.connect()

    assert all(later - earlier >= 0.08 for earlier, later in itertools.pairwise(times))


def test_a_bug_of_the_driver_is_logged_and_tried_again(
    host: Host, broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    bugs = iter([ZeroDivisionError("a bug")])

    def fail_once() -> None:
        for bug in bugs:
            raise bug

    broker.on_connect = fail_once  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR):
        host.connect()

    assert "ZeroDivisionError: a bug" in caplog.text
    host.until(lambda: host.events == ["down: ZeroDivisionError: a bug", "up"])


def test_deliveries_arrive_again_after_an_outage(host: Host, broker: MemoryBroker) -> None:
    host.connect()
    host.host.allow(5, 1)
    host.until(lambda: broker.calls["fetch"])

    broker.go_away()
    host.until(lambda: not host.host.connected)
    broker.put(*messages("a"))
    broker.come_back()
    host.until(lambda: host.delivered)

    assert [each.headers["id"] for each in host.delivered] == ["a"]


# -- the end


def test_stop_interrupts_a_waiting_fetch_settles_what_is_left_and_closes(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel_worker.broker_host.FETCH_TIMEOUT_S", 10.0)
    host = Host(broker)
    broker.put(*messages("a"))
    host.connect()
    host.host.allow(2, 1)
    host.until(lambda: host.delivered and broker.calls["fetch"] >= 2)

    begun = time.monotonic()
    host.ack(*host.delivered)
    host.stop()
    took = time.monotonic() - begun
    host.loop.close()

    assert took < 5.0  # the stop itself gives a fetch six seconds
    assert broker.acked == ["a"]
    assert broker.closed
    assert host.host.settled
    assert broker.offences == []


def test_stop_fetching_does_not_wait(host: Host, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel_worker.broker_host.FETCH_TIMEOUT_S", 30.0)
    host.connect()
    host.host.allow(1, 1)
    host.until(lambda: broker.calls["fetch"])

    begun = time.monotonic()
    host.host.stop_fetching()
    took = time.monotonic() - begun
    host.until(lambda: not host.host.fetching)
    broker.put(*messages("late"))
    host.loop.turn(0.02)

    assert took < 5.0
    assert host.delivered == []


def test_stop_before_start_is_harmless(broker: MemoryBroker) -> None:
    host = Host(broker)

    host.stop()
    host.loop.close()

    assert not broker.calls


@pytest.mark.parametrize("ever_connected", [True, False], ids=["lost", "never reached"])
def test_stop_ends_in_time_while_the_broker_is_away(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, ever_connected: bool
) -> None:
    """Cause of a thread that never ended: the settle thread took the connection for usable and tried for ever."""
    monkeypatch.setattr("kernel_worker.broker_host.BACKOFF_FIRST_S", 0.004)
    host = Host(broker)
    if ever_connected:
        broker.put(*messages("a"))
        host.connect()
        host.host.allow(1, 1)
        host.until(lambda: host.delivered)
        broker.go_away()
        host.ack(*host.delivered)
    else:
        broker.go_away()
        host.host.start()
        host.until(lambda: broker.calls["connect"] >= 2)

    begun = time.monotonic()
    host.stop(within_s=0.3)
    took = time.monotonic() - begun
    host.until(lambda: not any(thread.name in ("kw-fetch", "kw-settle") for thread in threading.enumerate()))
    host.loop.close()

    assert took < 5.0
    assert host.host.settled == (not ever_connected)


def test_stop_settles_with_a_broker_that_comes_back_in_time(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel_worker.broker_host.BACKOFF_FIRST_S", 0.004)
    host = Host(broker)
    broker.put(*messages("a"))
    host.connect()
    host.host.allow(1, 1)
    host.until(lambda: host.delivered)
    broker.go_away()
    host.ack(*host.delivered)
    host.until(lambda: not host.host.connected)

    back = threading.Timer(0.05, broker.come_back)
    back.start()
    host.stop()
    back.join()
    host.loop.close()

    assert broker.acked == ["a"]
    assert host.host.settled
    assert broker.closed
    assert broker.offences == []


def test_stop_settles_everything_that_was_handed_over_although_a_call_is_slow(broker: MemoryBroker) -> None:
    """Cause: asked to end while a batch was under way, the settle thread left with the next ones still in its inbox."""
    host = Host(broker)
    broker.put(*messages(*range(5)))
    host.connect()
    host.host.allow(5, 5)
    host.until(lambda: len(host.delivered) == 5)
    entered, gate = threading.Event(), threading.Event()

    def slow(batch: Sequence[Settlement]) -> None:
        entered.set()
        gate.wait(WITHIN_S)

    broker.on_settle = slow  # type: ignore[method-assign]
    host.ack(host.delivered[0])
    entered.wait(WITHIN_S)
    for delivery in host.delivered[1:]:
        host.ack(delivery)
    host.stop(within_s=0.02)
    gate.set()
    host.until(lambda: len(broker.acked) == 5)
    host.until(lambda: not host.host._settling)
    host.loop.close()

    assert broker.acked == ["0", "1", "2", "3", "4"]


# -- marks


def test_what_goes_back_to_be_counted_is_told_and_what_only_goes_back_is_not(broker: MemoryBroker) -> None:
    """Cause of a fetch that never came: the room of what went back is free only when that is told."""
    broker.put(*messages("counted", "given back"))
    host = Host(broker)
    host.connect()
    host.host.allow(10, 1)
    host.until(lambda: len(host.delivered) == 2)
    counted, given_back = (Settlement(each, Verdict.REQUEUE, count=True) for each in host.delivered)

    host.host.mark([counted])
    host.host.settle([given_back])
    host.until(lambda: host.host.settled)
    host.until(lambda: host.marked)
    host.stop()
    host.loop.close()

    assert [id(each) for each in host.marked] == [id(counted)]


def test_marks_are_told_when_the_broker_has_counted_them(broker: MemoryBroker) -> None:
    host = Host(broker)
    broker.put(*messages("a", "b"))
    host.connect()
    host.host.allow(2, 2)
    host.until(lambda: len(host.delivered) == 2)

    broker.go_away()
    host.host.mark([Settlement(host.delivered[0], Verdict.MARK)])
    host.ack(host.delivered[1])
    host.loop.turn(0.02)
    told_while_away = list(host.marked)
    broker.come_back()
    host.until(lambda: host.marked)
    host.stop()
    host.loop.close()

    assert told_while_away == []
    assert [mark.delivery for mark in host.marked] == [host.delivered[0]]
    assert broker.marked == [host.delivered[0].receipt]


# -- the lease


class LeasedBroker(MemoryBroker):
    """One that loses messages of holders that are late."""

    capabilities = MemoryBroker.capabilities | {BrokerCapability.LEASE}

    def __init__(self, lease_s: float, lost: list[Delivery] | None) -> None:
        super().__init__(BrokerContext("memory://", lease_s=lease_s))
        self.lost = lost

    def renew(self, held: Sequence[Delivery]) -> Sequence[Delivery] | None:
        super().renew(held)
        return self.lost


def _leased(lost: list[Delivery] | None, lease_s: float = 0.3) -> tuple[Host, LeasedBroker]:
    broker = LeasedBroker(lease_s, lost)
    host = Host(broker)
    broker.put(*messages("a", "b"))
    host.connect()
    host.host.allow(2, 2)
    host.until(lambda: len(host.delivered) == 2)
    host.held = list(host.delivered)
    return host, broker


def test_each_renewal_tells_until_when_messages_are_held() -> None:
    begun = clock()
    host, _ = _leased([])

    host.until(lambda: len(host.renewed) >= 3)
    now = clock()
    host.stop()
    host.loop.close()

    assert host.renewed == sorted(host.renewed)
    assert begun + 0.4 < host.renewed[-1] <= now + 0.3  # the third is asked for 0.2 s after the first at the soonest
    assert host.lost == []


def test_what_the_broker_says_is_lost_is_told_before_the_lease_counts_again() -> None:
    host, broker = _leased([])
    order: list[str] = []
    host.on_renewed = lambda: order.append("renewed")
    host.on_lost = lambda: order.append("lost")

    broker.lost = [host.delivered[1]]
    host.until(lambda: host.lost)
    host.until(lambda: order[-1] == "renewed")
    host.stop()
    host.loop.close()

    assert host.lost[0] is host.delivered[1]
    assert order[order.index("lost") :][:2] == ["lost", "renewed"]


@pytest.mark.parametrize(("away_s", "lease_s"), [(0.0, 6.0), (0.5, 0.3)])
def test_where_the_broker_cannot_tell_all_is_lost_with_the_lease_and_nothing_before(
    away_s: float, lease_s: float
) -> None:
    host, broker = _leased(None, lease_s)

    broker.go_away()
    begun = time.monotonic()
    host.until(lambda: not host.host.connected and time.monotonic() - begun >= away_s)
    broker.come_back()
    renewals = len(host.renewed)
    host.until(lambda: len(host.renewed) > renewals)
    host.stop()
    host.loop.close()

    # A lease that is over once more, before the stop, loses them once more.
    assert host.lost[: len(host.delivered)] == (host.delivered if away_s else [])


def test_after_an_outage_longer_than_the_lease_it_is_renewed_at_once() -> None:
    """Not a third of the lease later: until then the executors store nothing."""
    host, broker = _leased([], lease_s=6.0)

    host.host.lease.held_until = clock() - 1.0
    broker.go_away()
    host.until(lambda: not host.host.connected)
    broker.come_back()
    begun = time.monotonic()
    host.until(lambda: host.host.lease.held_until > clock())
    took = time.monotonic() - begun
    host.stop()
    host.loop.close()

    assert took < 1.5


def test_a_broker_without_leases_is_asked_after_each_connect_what_was_lost(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cause: what ran when an AMQP connection was lost ran to its end beside its second run, and stored its result."""
    monkeypatch.setattr("kernel_worker.broker_host.BACKOFF_FIRST_S", 0.004)
    host = Host(broker)
    broker.put(*messages("a"))
    host.connect()
    host.host.allow(2, 1)
    host.until(lambda: host.delivered)
    host.held = list(host.delivered)
    monkeypatch.setattr(broker, "renew", list)

    broker.go_away()
    host.until(lambda: not host.host.connected)
    host.until(lambda: host.renewed[-1] <= clock())  # its executors store nothing
    broker.come_back()
    host.until(lambda: host.lost)
    host.until(lambda: host.renewed[-1] > clock())
    host.stop()
    host.loop.close()

    assert host.lost == host.delivered


def test_a_silent_connection_is_looked_for_more_often_than_a_long_lease_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kernel_worker.broker_host.RENEW_S", 0.02)
    host, broker = _leased([], lease_s=3600.0)

    host.until(lambda: len(broker.renewals) >= 3)
    host.stop()
    host.loop.close()


def test_a_broker_without_leases_never_loses_any(broker: MemoryBroker) -> None:
    host = Host(broker)
    host.connect()

    assert not host.host.lease.is_over
    host.host.lease.renewed(0.0)
    assert not host.host.lease.is_over
    host.stop()
    host.loop.close()


# -- calls that do not come back


def test_a_call_that_does_not_come_back_is_told_once_and_so_is_its_end(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Cause: a half-open connection held the settle thread, and nobody noticed until everything ran twice."""
    monkeypatch.setattr("kernel_worker.broker_host.HANG_S", 0.5)
    monkeypatch.setattr("kernel_worker.broker_host.WATCH_S", 0.02)
    host = Host(broker)
    broker.put(*messages("a"))
    host.connect()
    host.host.allow(1, 1)
    host.until(lambda: host.delivered)
    gate = threading.Event()
    broker.on_settle = lambda batch: gate.wait(WITHIN_S)  # type: ignore[method-assign]

    host.ack(*host.delivered)
    host.until(lambda: host.host.hangs)
    hanging = host.host.hangs
    gate.set()
    host.until(lambda: not host.host.hangs)
    host.stop()
    host.loop.close()

    assert hanging == "settle"
    assert host.events == ["up", "down: the driver has not come back from 'settle' for 0.5 s", "up"]
    assert broker.acked == ["a"]
