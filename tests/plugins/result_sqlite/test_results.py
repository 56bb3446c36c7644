"""What the SQLite result backend does beyond the contract: expiry, waiting, many processes."""

from __future__ import annotations

import gc
import itertools
import os
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kernel_result_sqlite import SqliteResults, watch
from kernel_result_sqlite.watch import Watch
from kernel_worker.testing import task_meta
from kernel_worker.types import StoredResult


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kw.db"


@pytest.fixture
def results(file: Path) -> Iterator[SqliteResults]:
    results = SqliteResults(f"sqlite:///{file}", {})
    yield results
    results.close()


def burst(prefix: str, count: int, expires: float | None = 3600.0) -> list[StoredResult]:
    return [StoredResult(f"{prefix}{n}", "SUCCESS", task_meta(f"{prefix}{n}"), expires) for n in range(count)]


def count(file: Path) -> int:
    connection = sqlite3.connect(file)
    try:
        return int(connection.execute("SELECT count(*) FROM kw_result").fetchone()[0])
    finally:
        connection.close()


def test_expired_results_are_deleted_bit_by_bit_by_who_stores(file: Path, results: SqliteResults) -> None:
    results.store(burst("old", 1_000, expires=-1.0))
    results.store(burst("ever", 10, expires=None))

    fresh = SqliteResults(f"sqlite:///{file}", {})  # the first one has just looked for expired ones
    sizes = []
    for n in range(12):
        fresh.store(burst(f"new{n}-", 1))
        sizes.append(count(file))
    fresh.close()

    assert all(before - after <= 100 for before, after in itertools.pairwise(sizes))
    assert sizes[-1] == 10 + 12


def test_result_without_expiry_stays(results: SqliteResults) -> None:
    results.store([StoredResult("t1", "SUCCESS", b"1", None), StoredResult("t2", "SUCCESS", b"2", float("inf"))])

    assert (results.fetch("t1"), results.fetch("t2")) == (b"1", b"2")


def test_waiting_thread_sees_what_its_own_backend_stores(results: SqliteResults) -> None:
    """SQLite counts only the commits of other connections, and both threads share one."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(results.wait, "t1", 10.0, lambda meta: True)
        time.sleep(0.05)  # let it wait
        began = time.monotonic()
        results.store(burst("t", 2))
        assert waiting.result(15) == task_meta("t1")
        assert time.monotonic() - began < 1.0


def test_waiting_works_without_hints(results: SqliteResults, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no inotify, or none left."""
    monkeypatch.setattr(watch, "_watch_writes", lambda path: None)
    writer = SqliteResults(f"sqlite:///{file}", {})

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(results.wait, "t1", 10.0, lambda meta: True)
        time.sleep(0.05)
        began = time.monotonic()
        writer.store(burst("t", 2))
        assert waiting.result(15) == task_meta("t1")
        assert time.monotonic() - began < 2.0
    writer.close()


def test_waiting_ends_soon_after_the_result_is_stored(results: SqliteResults, file: Path) -> None:
    writer = SqliteResults(f"sqlite:///{file}", {})
    delays = []
    with ThreadPoolExecutor(1) as pool:
        for n in range(15):
            waiting = pool.submit(lambda n=n: (results.wait(f"t{n}", 10.0, lambda meta: True), time.perf_counter()))
            time.sleep(0.03)
            began = time.perf_counter()
            writer.store([StoredResult(f"t{n}", "SUCCESS", b"{}")])
            delays.append(waiting.result(15)[1] - began)
    writer.close()

    assert sorted(delays)[2] < 0.025, f"{sorted(delays)}"  # the others may be late with a busy machine


def test_watch_notices_that_the_log_was_deleted_and_watches_the_next(results: SqliteResults, file: Path) -> None:
    results.store(burst("t", 1))
    watched = Watch(str(file))
    watched.wait(0.0, 0.01)

    for companion in file.parent.iterdir():
        companion.unlink()
    results.store(burst("t", 1))
    for _ in range(3):
        watched.wait(0.0, 0.01)
    watched.close()

    assert results.wait("t0", 1.0, lambda meta: True) == task_meta("t0")


def test_waiting_keeps_few_descriptors_and_close_leaves_none(results: SqliteResults) -> None:
    results.store(burst("t", 1))
    results.close()
    gc.collect()  # what other tests left behind must not be closed meanwhile
    before = len(os.listdir("/proc/self/fd"))

    with ThreadPoolExecutor(40) as pool:
        metas = list(pool.map(lambda n: results.wait(f"missing{n}", 0.2, lambda meta: True), range(40)))
    kept = len(os.listdir("/proc/self/fd")) - before
    results.close()

    assert metas == [None] * 40
    assert kept <= 3 + 4  # the connection's, and four watches
    assert len(os.listdir("/proc/self/fd")) <= before


def test_forked_child_waits_for_what_the_parent_stores(results: SqliteResults) -> None:
    results.store(burst("before", 1))
    child = os.fork()
    if child == 0:
        found = results.wait("t1", 10.0, lambda meta: True)
        os._exit(0 if found == task_meta("t1") else 1)
    results.store(burst("t", 2))

    assert os.waitpid(child, 0)[1] == 0
    assert results.fetch("before0") == task_meta("before0")


def test_backend_that_was_closed_opens_again(results: SqliteResults) -> None:
    results.store(burst("t", 1))
    results.close()

    assert results.fetch("t0") == task_meta("t0")
