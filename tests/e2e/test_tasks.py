"""Kinds of tasks, and many of them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from kernel_worker.testing import eventually
from tests.conftest import RunKw
from tests.e2e.conftest import client, sizes

MANY = 20_000
MEGABYTE = 1024 * 1024


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_coroutines_functions_and_failures_give_their_results(shop: Path, kw: RunKw, url: str, pool: str) -> None:
    kw("run", "-A", "shop", "-b", url, "--result-backend", url, "-P", pool)
    with client(url) as app:
        doubled = [app.send_task("shop.double", [n]) for n in range(20)]
        added = app.send_task("shop.add", ["a", "b"])
        failed = app.send_task("shop.fail", ["on purpose"])

        assert [result.get(timeout=10) for result in doubled] == [2 * n for n in range(20)]
        assert added.get(timeout=10) == "ab"
        error = failed.get(timeout=10, propagate=False)
        assert (type(error).__name__, str(error)) == ("ValueError", "on purpose")


def test_memory_stays_flat_over_many_tasks(shop: Path, kw: RunKw, redis_url: str) -> None:
    """Worker and executors, between the first tenth and the end. A message costs 4 kB while it is held, so few are; a
    leak of one message in eight would show."""
    worker = kw("run", "-A", "shop", "-b", redis_url, "-c", "1", "--prefetch-multiplier", "50")
    processes = [psutil.Process(pid) for pid in worker.family()]
    with client(redis_url) as app:

        def run(count: int) -> int:
            for _ in range(count):
                app.send_task("shop.tick")
            eventually(lambda: sizes(redis_url).waiting == 0, within_s=30)
            return sum(process.memory_info().rss for process in processes)

        before = run(MANY // 10)
        after = run(MANY - MANY // 10)

    assert after - before < 10 * MEGABYTE, f"{before / MEGABYTE:.1f} MB became {after / MEGABYTE:.1f} MB"
    assert worker.stop() == 0
