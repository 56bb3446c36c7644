"""Rates and delays, with wide margins: they hold on a busy machine, and fail when a cost stops being constant."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from kernel_broker_sqlite import SqliteBroker, SqlitePublisher
from kernel_worker.testing import envelope
from kernel_worker.types import Settlement, Verdict

from .conftest import Message

MakeBroker = Callable[..., SqliteBroker]


def cpu_per_message(broker: SqliteBroker, batches: int) -> float:
    """Seconds of this process's CPU to fetch and acknowledge one message in batches of 100: the best of several."""
    best = 1.0
    for _ in range(batches):
        began = time.process_time()
        batch = broker.fetch(100, 1.0)
        broker.settle([Settlement(delivery, Verdict.ACK) for delivery in batch])
        best = min(best, (time.process_time() - began) / len(batch))
    return best


@pytest.mark.faults  # compares times: with the long runs
def test_fetching_costs_the_same_with_few_and_with_many_waiting(
    broker: SqliteBroker, publisher: SqlitePublisher
) -> None:
    message = Message(envelope())
    publisher.publish_many([message] * 10_000)
    few = cpu_per_message(broker, 40)

    for _ in range(9):
        publisher.publish_many([message] * 10_000)
    many = cpu_per_message(broker, 40)

    assert many < 1.5 * few, f"{few * 1e6:.1f} µs per message with 10,000 waiting, {many * 1e6:.1f} with 96,000"


def test_idle_broker_sees_a_message_at_once(broker: SqliteBroker, publisher: SqlitePublisher) -> None:
    delays = []
    with ThreadPoolExecutor(1) as pool:
        for _ in range(15):
            waiting = pool.submit(lambda: (broker.fetch(10, 10.0), time.perf_counter()))
            time.sleep(0.05)  # being idle is what is tested
            began = time.perf_counter()
            publisher.publish(Message(envelope()))
            batch, ended = waiting.result(15)
            broker.settle([Settlement(delivery, Verdict.ACK) for delivery in batch])
            delays.append(ended - began)

    assert sorted(delays)[2] < 0.025, f"{sorted(delays)}"  # the others may be late with a busy machine


def test_waiting_takes_next_to_no_cpu(broker: SqliteBroker) -> None:
    broker.fetch(1, 0.5)  # looks often at first: something may follow what came last
    began = time.thread_time()

    broker.fetch(1, 1.5)

    assert time.thread_time() - began < 0.06


def test_waiting_beside_a_busy_file_takes_little_cpu(
    broker: SqliteBroker, publisher: SqlitePublisher, start: Callable[..., object], url: str
) -> None:
    """What others do must not wake a waiting worker for each of their commits."""

    def publish_elsewhere() -> None:
        mine = SqlitePublisher(url, {})
        message = Message(envelope(), queue="elsewhere")
        while True:
            mine.publish(message)

    broker.fetch(1, 0.5)
    start(publish_elsewhere)
    began = time.thread_time()

    assert broker.fetch(1, 1.0) == []

    assert time.thread_time() - began < 0.3
