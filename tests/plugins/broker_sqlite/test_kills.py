"""Processes killed at random moments, several processes at once: nothing is lost, nothing is held twice."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from kernel_broker_sqlite import SqliteBroker, SqlitePublisher
from kernel_result_sqlite import SqliteResults
from kernel_worker.drivers import BrokerContext
from kernel_worker.testing import envelope, eventually
from kernel_worker.types import Settlement, StoredResult, Verdict

from .conftest import Message

Start = Callable[..., BaseProcess]
LEASE_S = 0.3


class Ledger:
    """Ids written down by many processes; one write each, so none is torn or lost by a kill."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND)

    def note(self, *names: str) -> None:
        os.write(self._file, "".join(f"{name}\n" for name in names).encode())

    def names(self) -> list[str]:
        size = os.fstat(self._file).st_size
        return os.pread(self._file, size, 0).decode().split()


def publish_on_and_on(url: str, ledger: Ledger, tag: str, limit: int = 1_000_000) -> None:
    """Each id is noted after the broker has it. Every tenth time ten at once."""
    publisher = SqlitePublisher(url, {})
    for turn in range(limit):
        names = [f"{tag}-{turn}-{n}" for n in range(10 if turn % 10 == 0 else 1)]
        publisher.publish_many([Message(envelope(task_id=name)) for name in names])
        ledger.note(*names)


def work_on_and_on(url: str, ledger: Ledger, tag: str, lease_s: float = LEASE_S) -> None:
    """Each id is noted before it is acknowledged. Every verdict occurs."""
    broker = SqliteBroker(BrokerContext(url, holder=tag, lease_s=lease_s))
    broker.connect()
    chance = random.Random(tag)
    while True:
        batch = []
        broker.renew([])
        for delivery in broker.fetch(20, 0.2):
            verdict = chance.choice([Verdict.ACK, Verdict.ACK, Verdict.REQUEUE, Verdict.DELAY])
            if verdict is Verdict.ACK:
                ledger.note(delivery.headers["id"])
            batch.append(Settlement(delivery, verdict, until=time.time() + 0.01, count=True))
        broker.settle(batch)


def drain(broker: SqliteBroker, quiet_s: float) -> list[str]:
    """Take and acknowledge all that comes, until nothing has come for so long."""
    got: list[str] = []
    quiet_until = time.monotonic() + quiet_s
    while time.monotonic() < quiet_until:
        batch = broker.fetch(500, 0.1)
        got += [delivery.headers["id"] for delivery in batch]
        broker.settle([Settlement(delivery, Verdict.ACK) for delivery in batch])
        broker.renew([])
        if batch:
            quiet_until = time.monotonic() + quiet_s
    return got


def rows(file: Path, table: str) -> int:
    connection = sqlite3.connect(file)
    try:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    finally:
        connection.close()


def test_kills_of_publishers_and_workers_lose_no_message(
    file: Path, url: str, tmp_path: Path, start: Start, make_broker: Callable[..., SqliteBroker]
) -> None:
    published, done = Ledger(tmp_path / "published"), Ledger(tmp_path / "done")
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    make_broker().close()

    running: list[BaseProcess] = []
    for kill in range(20):
        while len(running) < 4:
            kind = publish_on_and_on if len(running) % 2 else work_on_and_on
            running.append(start(kind, url, published if kind is publish_on_and_on else done, f"{kill}-{len(running)}"))
        time.sleep(chance.uniform(0.01, 0.1))  # the moment of death, not a wait
        victim = running.pop(chance.randrange(len(running)))
        victim.kill()
        victim.join()
    for process in running:
        process.kill()
        process.join()
    left = drain(make_broker(), LEASE_S + 1.5)

    lost = set(published.names()) - set(done.names()) - set(left)
    assert len(published.names()) > 50, f"seed {seed}: hardly anything was published"
    assert not lost, f"seed {seed}: lost {sorted(lost)[:5]} of {len(published.names())}"
    assert {table: rows(file, table) for table in ("kw_message", "kw_waiting", "kw_held", "kw_parked")} == {
        "kw_message": 0,
        "kw_waiting": 0,
        "kw_held": 0,
        "kw_parked": 0,
    }, f"seed {seed}"
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], f"seed {seed}"
    connection.close()


def test_messages_of_a_batch_are_published_all_or_none(
    url: str, tmp_path: Path, start: Start, make_broker: Callable[..., SqliteBroker]
) -> None:
    """A publisher killed inside publish_many leaves no part of a batch."""
    chance = random.Random(7)
    broker = make_broker()

    def publish(tag: str) -> None:
        publisher = SqlitePublisher(url, {})
        for batch in range(1_000):
            publisher.publish_many([Message(envelope(task_id=f"{tag}-{batch}")) for _ in range(200)])

    for kill in range(4):
        process = start(publish, str(kill))
        eventually(lambda: broker.size("celery").waiting > 0, message="the first batch")
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.join()
        sizes = Counter(drain(broker, 0.1))
        assert set(sizes.values()) == {200}


def test_processes_never_hold_the_same_message(
    url: str, tmp_path: Path, start: Start, publisher: SqlitePublisher
) -> None:
    names = [f"t{n:04}" for n in range(2_000)]
    publisher.publish_many([Message(envelope(task_id=name)) for name in names])
    ledger = Ledger(tmp_path / "taken")

    def take_all(tag: int) -> None:
        broker = SqliteBroker(BrokerContext(url, holder=f"taker{tag}", lease_s=30.0))
        broker.connect()
        while batch := broker.fetch(7, 0.2):
            ledger.note(*(delivery.headers["id"] for delivery in batch))

    takers = [start(take_all, tag) for tag in range(4)]
    for taker in takers:
        taker.join(30)

    assert [taker.exitcode for taker in takers] == [0] * 4
    assert Counter(ledger.names()) == Counter(names)


def test_broker_results_publishers_and_workers_share_one_busy_file(
    file: Path, url: str, tmp_path: Path, start: Start, make_broker: Callable[..., SqliteBroker]
) -> None:
    """No 'database is locked' reaches anybody, no message is lost, and the log does not grow without end."""
    published, done = Ledger(tmp_path / "published"), Ledger(tmp_path / "done")
    broker = make_broker()
    log = Path(f"{file}-wal")
    largest = 0
    total = 2 * (1_000 + 100 * 9)
    deadline = time.monotonic() + 40

    def work(tag: int) -> None:
        worker = SqliteBroker(BrokerContext(url, holder=f"worker{tag}", lease_s=30.0))
        worker.connect()
        results = SqliteResults(url, {})
        while len(done.names()) < total and time.monotonic() < deadline:
            batch = worker.fetch(100, 0.2)
            names = [delivery.headers["id"] for delivery in batch]
            results.store([StoredResult(name, "SUCCESS", b"{}", 3600.0) for name in names])
            worker.settle([Settlement(delivery, Verdict.ACK) for delivery in batch])
            done.note(*names)
        worker.close()

    publishers = [start(publish_on_and_on, url, published, f"p{n}", 1_000) for n in range(2)]
    workers = [start(work, n) for n in range(2)]
    while any(process.is_alive() for process in publishers + workers) and time.monotonic() < deadline:
        largest = max(largest, log.stat().st_size)
        workers[0].join(0.05)

    assert [process.exitcode for process in publishers + workers] == [0] * 4
    assert Counter(done.names()) == Counter(published.names())
    assert rows(file, "kw_result") == len(published.names()) == total
    assert rows(file, "kw_message") == 0
    assert largest < 64 * 1024 * 1024
    assert broker.size("celery").waiting == 0
