"""A million messages that wait, or are parked until their time, are the broker's burden and not the worker's.

Figures are printed: `pytest -m faults -s tests/faults/test_millions.py`.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import psutil
import pytest
import redis

from kernel_worker import BrokerContext
from kernel_worker.testing import Ledger, WorkerProcess, envelope
from tests.conftest import RunKw
from tests.faults.application import MODULE, OPTIONS, client, name, started

MILLION = 1_000_000
SAMPLE = 30_000
TURNS = 7
"""Rates that are compared are the medians of so many: single ones differ by 15 % on a machine that others use, too."""
GROWTH_MB = 20.0
IMMEDIATE_S = 1.0

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


class Queue:
    """The queue "celery" of a broker, as a mass of messages is put into it and counted."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._path = url.removeprefix("sqlite:///") if url.startswith("sqlite") else ""

    def fill(self, messages: Iterator[bytes]) -> None:
        """Append envelopes, as many clients would."""
        if self._path:
            with contextlib.closing(sqlite3.connect(self._path, isolation_level=None, timeout=60)) as file:
                while page := list(islice(messages, 2_000)):
                    file.execute("BEGIN IMMEDIATE")
                    for raw in page:
                        file.execute("INSERT INTO kw_message (raw) VALUES (?)", (raw,))
                        file.execute("INSERT INTO kw_waiting VALUES ('celery', 0, last_insert_rowid(), 0, 0, 0)")
                    file.execute("COMMIT")
            return
        with redis.Redis.from_url(self.url) as server:
            while page := list(islice(messages, 5_000)):
                server.lpush("celery", *page)

    def waiting(self) -> int:
        """How many wait; cheap enough to be asked often."""
        if self._path:
            with contextlib.closing(sqlite3.connect(self._path, timeout=60)) as file:
                return int(file.execute("SELECT count(*) FROM kw_waiting").fetchone()[0])
        with redis.Redis.from_url(self.url) as server:
            return int(server.llen("celery"))

    def parked(self) -> int:
        if self._path:
            with contextlib.closing(sqlite3.connect(self._path, timeout=60)) as file:
                return int(file.execute("SELECT count(*) FROM kw_parked").fetchone()[0])
        with redis.Redis.from_url(self.url) as server:
            return int(server.zcard("kw.parked:celery"))


@pytest.fixture
def queue(url: str) -> Queue:
    if url.startswith("sqlite"):
        from kernel_broker_sqlite.broker import SqliteBroker

        broker = SqliteBroker(BrokerContext(url))
        broker.connect()  # makes the file
        broker.close()
    return Queue(url)


def copies(count: int, eta: str | None = None) -> Iterator[bytes]:
    """Messages of a task that does nothing, each with an id of its own."""
    marker = "00000000-0000-0000-0000-000000000000"
    parts = envelope(f"{MODULE}.nothing", task_id=marker, headers={"eta": eta}).decode().split(marker)
    for _ in range(count):
        yield str(uuid.uuid4()).join(parts).encode()


def memory_mb(worker: WorkerProcess) -> float:
    """Of all its processes, without what they share."""
    total = 0
    for pid in {worker.pid, *worker.family()}:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += psutil.Process(pid).memory_full_info().uss
    return total / 1e6


def rate_of(count: Callable[[], int], until: Callable[[int], bool]) -> float:
    """How fast a number of messages changes, per second, until it is as wanted."""
    began, first = time.monotonic(), count()
    last = first
    while not until(last):
        time.sleep(0.1)
        last = count()
    return abs(first - last) / (time.monotonic() - began)


def measured(queue: Queue, down_to: int) -> float:
    """Rate of the worker while it takes what waits down to a number."""
    return rate_of(queue.waiting, lambda left: left <= down_to)


def start_now(url: str, ledger: Ledger) -> float:
    """Seconds from sending a task to its start."""
    key = name()
    with client(url) as app:
        sent_at = time.monotonic()
        app.send_task(f"{MODULE}.work", [key, 0.0], queue="celery", ignore_result=True)
        started(ledger, key, within_s=60)
        return time.monotonic() - sent_at


def report(title: str, **figures: float) -> None:
    print(f"\n{title}: " + ", ".join(f"{name} {value:,.1f}" for name, value in figures.items()))


def worker_on(kw: RunKw, url: str) -> WorkerProcess:
    return kw(*(each for each in OPTIONS if each not in ("-l", "info")), "-b", url, "-c", "2")


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def test_million_waiting_messages_cost_a_worker_neither_memory_nor_speed(
    queue: Queue, url: str, folder: Path, kw: RunKw
) -> None:
    worker = worker_on(kw, url)
    alone = []
    for _ in range(TURNS):
        queue.fill(copies(SAMPLE))
        alone.append(measured(queue, 0))
    before_mb = memory_mb(worker)

    queue.fill(copies(MILLION))
    beside, most_mb = [], 0.0
    for _ in range(TURNS):
        beside.append(measured(queue, queue.waiting() - SAMPLE))
        most_mb = max(most_mb, memory_mb(worker))

    growth = most_mb - before_mb
    report(f"{url.partition(':')[0]}, a million waiting", alone=median(alone), beside=median(beside), growth_mb=growth)
    assert growth < GROWTH_MB
    assert median(beside) > 0.9 * median(alone)


def test_million_parked_messages_cost_a_worker_no_memory_and_hold_up_nothing(
    queue: Queue, url: str, folder: Path, kw: RunKw, ledger: Ledger
) -> None:
    worker = worker_on(kw, url)
    queue.fill(copies(SAMPLE))
    measured(queue, 0)
    before_mb = memory_mb(worker)
    later = (datetime.now(UTC) + timedelta(hours=2)).isoformat()

    queue.fill(copies(MILLION, later))
    parking = rate_of(queue.parked, lambda parked: parked >= MILLION)
    growth = memory_mb(worker) - before_mb
    delays = [start_now(url, ledger) for _ in range(5)]
    queue.fill(copies(SAMPLE))
    rate = measured(queue, 0)

    report(
        f"{url.partition(':')[0]}, a million parked",
        parking_per_s=parking,
        rate=rate,
        immediate_ms=1000 * max(delays),
        growth_mb=growth,
    )
    assert growth < GROWTH_MB
    assert max(delays) < IMMEDIATE_S
    assert queue.parked() == MILLION
