"""What the embedded broker does beyond the contract: order, sizes, leases, fan-out."""

from __future__ import annotations

import gc
import os
import random
import sqlite3
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from kernel_broker_sqlite import SqliteBroker, SqlitePublisher
from kernel_broker_sqlite.broadcast import Listener
from kernel_broker_sqlite.envelope import read_envelope
from kernel_broker_sqlite.reserving import FETCH_BYTES, take_turns
from kernel_worker.drivers import BrokerContext
from kernel_worker.errors import BrokerRefused, BrokerUnavailable
from kernel_worker.testing import collect, envelope, eventually
from kernel_worker.types import Delivery, QueueSpec, Settlement, Verdict

from .conftest import Message

MakeBroker = Callable[..., SqliteBroker]


def ids(deliveries: list[Delivery]) -> list[str]:
    return [delivery.headers["id"] for delivery in deliveries]


# ---------------------------------------------------------------- order


@pytest.mark.parametrize(
    ("peeked", "limit", "turns"),
    [
        ({"a": [0, 0, 0], "b": [0]}, 10, "abaa"),
        ({"a": [0, 0, 0], "b": [0, 0, 0]}, 4, "abab"),
        ({"a": [9, 9], "b": [0, 9]}, 10, "baba"),
        ({"a": [0, 5], "b": [5, 5], "c": [0]}, 3, "aca"),
        ({"a": [], "b": []}, 5, ""),
    ],
    ids=["a long and a short queue", "limit", "priority before turn", "priorities apart", "nothing"],
)
def test_queues_take_turns_within_a_priority(peeked: dict[str, list[int]], limit: int, turns: str) -> None:
    assert "".join(take_turns(peeked, limit)) == turns


def test_single_fetches_alternate_between_full_queues(make_broker: MakeBroker) -> None:
    broker = make_broker(queues=(QueueSpec("a"), QueueSpec("b"), QueueSpec("c")))
    for queue in "abc":
        for n in range(3):
            broker.publish(queue, envelope(task_id=f"{queue}{n}"))

    got = [broker.fetch(1, 1.0)[0].queue for _ in range(9)]

    assert sorted(got[:3]) == sorted(got[3:6]) == sorted(got[6:]) == ["a", "b", "c"]


def test_urgent_message_of_one_queue_comes_before_all_others_of_another(make_broker: MakeBroker) -> None:
    broker = make_broker(queues=(QueueSpec("a"), QueueSpec("b")))
    for n in range(5):
        broker.publish("a", envelope(task_id=f"a{n}"), priority=3)
    broker.publish("b", envelope(task_id="urgent"), priority=0)

    assert ids(broker.fetch(3, 1.0))[0] == "urgent"


def test_released_message_comes_before_what_was_published_after_it(broker: SqliteBroker) -> None:
    broker.publish("celery", envelope(task_id="old"))
    due = time.time() + 0.1
    broker.settle([Settlement(*collect(broker, 1), Verdict.DELAY, until=due)])
    for n in range(3):
        broker.publish("celery", envelope(task_id=f"new{n}"))
    eventually(lambda: time.time() > due, message="the time the message is due")

    assert ids(collect(broker, 4)) == ["old", "new0", "new1", "new2"]


def test_unknown_time_to_park_until_means_at_once(broker: SqliteBroker) -> None:
    broker.publish("celery", envelope(task_id="t1"))

    broker.settle([Settlement(*collect(broker, 1), Verdict.DELAY, until=float("nan"))])

    assert ids(collect(broker, 1)) == ["t1"]


def test_several_thousand_due_at_once_all_come(broker: SqliteBroker, publisher: SqlitePublisher) -> None:
    """More than one transaction brings back."""
    names = [f"t{n:04}" for n in range(2_500)]
    publisher.publish_many([Message(envelope(task_id=name)) for name in names])
    until = time.time() + 0.05
    broker.settle([Settlement(each, Verdict.DELAY, until=until) for each in collect(broker, len(names))])

    assert sorted(ids(collect(broker, len(names)))) == names


# ---------------------------------------------------------------- bytes


def test_dead_letters_keep_random_bytes_and_payload(broker: SqliteBroker) -> None:
    chance = random.Random(3)
    sent = [(chance.randbytes(size), chance.randbytes(size)) for size in (0, 1, 100, 5_000, 300_000)]
    for raw, payload in sent:
        broker.publish("celery", raw, payload=payload)

    got = collect(broker, len(sent))
    broker.settle([Settlement(each, Verdict.DEAD, reason="no \ud800 envelope\0", count=True) for each in got])

    letters = broker.dead_letters("celery")
    assert all(each.error for each in got)
    assert [(each.raw, each.payload) for each in reversed(letters)] == sent
    assert {(each.attempts, each.reason) for each in letters} == {(1, "no \\ud800 envelope\0")}


def test_body_kept_apart_from_the_envelope_is_delivered_beside_it(broker: SqliteBroker) -> None:
    raw = b'{"headers": {"id": "t1"}, "properties": {"priority": 3}}'

    broker.publish("celery", raw, payload=b"\xff\0body")
    (delivery,) = collect(broker, 1)

    assert (delivery.raw, delivery.payload, delivery.error) == (raw, b"\xff\0body", None)
    assert delivery.properties == {"priority": 3}


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b'{"body": "", "headers": {}}', "'properties'"),
        (b'{"headers": {}, "properties": {}}', "'body'"),
        (b'{"body": 5, "headers": {}, "properties": {}}', "'body'"),
        (b'{"body": "", "headers": {}, "properties": {"n": ' + b"9" * 5_000 + b"}}", "not JSON"),
        ('{"body": "", "headers": {}, "properties": {}}'.encode("utf-16"), "UTF-8"),
        (b"", "not JSON"),
    ],
    ids=["no properties", "no body", "body is a number", "huge number", "UTF-16", "empty"],
)
def test_reading_an_envelope_says_what_is_wrong(raw: bytes, problem: str) -> None:
    headers, properties, error = read_envelope(raw)

    assert (headers, properties) == ({}, {})
    assert error is not None
    assert problem in error


def test_envelope_without_headers_is_one_of_protocol_1() -> None:
    assert read_envelope(b'{"body": "e30=", "headers": null, "properties": {"a": 1}}') == ({}, {"a": 1}, None)


def test_too_large_message_is_never_read_into_python(make_broker: MakeBroker) -> None:
    broker = make_broker(max_message_bytes=100_000)
    broker.publish("celery", b"x" * 20_000_000)
    broker.publish("celery", envelope(task_id="small"))

    tracemalloc.start()
    got = collect(broker, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert ids(got) == ["small"]
    assert peak < 1_000_000
    (letter,) = broker.dead_letters("celery")
    assert letter.reason == "too large: 20000000 bytes, at most 100000 are delivered"
    assert letter.raw == b"x" * 20_000_000


def test_one_fetch_takes_a_bounded_number_of_bytes(broker: SqliteBroker) -> None:
    size = FETCH_BYTES // 3 + 1
    for n in range(5):
        broker.publish("celery", envelope(task_id=f"t{n}", padding=size * 3 // 4))

    first = broker.fetch(100, 1.0)

    assert len(first) == 3
    assert ids(first + collect(broker, 2)) == [f"t{n}" for n in range(5)]


# ---------------------------------------------------------------- leases


def test_lease_from_before_the_machine_was_started_is_over(file: Path, make_broker: MakeBroker) -> None:
    dead, other = make_broker(lease_s=3_000.0), make_broker(lease_s=1.0)
    dead.publish("celery", envelope(task_id="t1"))
    collect(dead, 1)

    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("UPDATE kw_holder SET boot = 'another' WHERE name = ?", (dead.context.holder,))
    connection.close()

    (delivery,) = collect(other, 1, within_s=2.0)
    assert (delivery.attempts, delivery.recovered) == (0, True)


def test_setting_the_clock_ends_no_lease(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch, broker: SqliteBroker
) -> None:
    broker.publish("celery", envelope())
    collect(broker, 1)

    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600.0)
    other = make_broker(lease_s=0.1)

    assert other.fetch(1, 0.3) == []


def test_own_lease_that_is_over_is_not_taken_from_oneself(make_broker: MakeBroker) -> None:
    """Its tasks are running in this very process: delivering them again would run them twice at once."""
    broker = make_broker(lease_s=0.1)
    broker.publish("celery", envelope(task_id="t1"))
    held = collect(broker, 1)

    assert broker.fetch(1, 0.4) == []
    broker.settle([Settlement(each, Verdict.ACK) for each in held])

    assert broker.size("celery").in_flight == broker.size("celery").waiting == 0


def test_killed_process_gives_its_messages_back_after_the_lease(
    url: str, make_broker: MakeBroker, start: Callable[..., BaseProcess]
) -> None:
    broker = make_broker(lease_s=1.0)  # looks for what the dead left three times in that time
    for n in range(10):
        broker.publish("celery", envelope(task_id=f"t{n}"))

    def hold() -> None:
        holder = SqliteBroker(BrokerContext(url, holder="doomed", lease_s=0.4))
        holder.connect()
        collect(holder, 10)
        time.sleep(60)  # until it is killed

    process = start(hold)
    eventually(lambda: broker.size("celery").in_flight == 10, message="the process to hold all")
    process.kill()
    killed = time.monotonic()

    got = collect(broker, 10)
    assert ids(got) == [f"t{n}" for n in range(10)]
    assert time.monotonic() - killed < 3.0


# ---------------------------------------------------------------- life cycle


def test_broker_that_is_not_connected_is_unavailable(url: str) -> None:
    with pytest.raises(BrokerUnavailable, match="not connected"):
        SqliteBroker(BrokerContext(url)).fetch(1, 0.0)


def test_close_ends_a_waiting_fetch(make_broker: MakeBroker) -> None:
    broker = make_broker()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(broker.fetch, 1, 30.0)
        time.sleep(0.05)  # let it begin to wait; weaker, and valid, if it has not
        began = time.monotonic()
        broker.close()
        assert time.monotonic() - began < 1.0
        error = waiting.exception(10)

    assert error is None or isinstance(error, BrokerUnavailable)


def test_close_gives_back_all_descriptors(make_broker: MakeBroker) -> None:
    make_broker().close()
    gc.collect()  # what other tests left behind must not be closed meanwhile
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(5):
        broker = make_broker()
        broker.fetch(1, 0.01)
        broker.connect()
        broker.close()

    assert len(os.listdir("/proc/self/fd")) <= before


def test_binding_to_an_exchange_that_is_not_direct_is_refused(broker: SqliteBroker) -> None:
    with pytest.raises(BrokerRefused, match=r"'news'.*topic exchange 'papers'"):
        broker.declare([QueueSpec("news", "papers", "topic", "news.#")])


# ---------------------------------------------------------------- fan-out


def hear(listener: Listener, count: int) -> list[bytes]:
    """What a listener hears, until so many came."""
    got: list[bytes] = []
    deadline = time.monotonic() + 5.0
    while len(got) < count and time.monotonic() < deadline:
        got += listener.receive(0.5)
    return got


def test_broadcast_reaches_every_listener_of_its_channel(make_broker: MakeBroker) -> None:
    one, two = make_broker(), make_broker()
    one.broadcast("control", b"before anybody listened")
    with closing(one.listen("control")) as a, closing(two.listen("control")) as b, closing(one.listen("other")) as c:
        two.broadcast("control", b"\xffping")
        one.broadcast("control", b"pong")

        assert hear(a, 2) == hear(b, 2) == [b"\xffping", b"pong"]
        assert a.receive(0.0) == c.receive(0.05) == []


def test_broadcast_from_another_process_wakes_a_listener(
    url: str, make_broker: MakeBroker, start: Callable[..., BaseProcess]
) -> None:
    def say() -> None:
        broker = SqliteBroker(BrokerContext(url, holder="speaker"))
        broker.connect()
        broker.broadcast("control", b"ping")

    with closing(make_broker().listen("control")) as listener:
        start(say)
        assert listener.receive(10.0) == [b"ping"]


def test_interrupt_ends_waiting_for_broadcasts(broker: SqliteBroker) -> None:
    with closing(broker.listen("control")) as listener:
        listener.interrupt()
        began = time.monotonic()

        assert listener.receive(10.0) == []
        assert time.monotonic() - began < 1.0
