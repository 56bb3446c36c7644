"""What a worker takes in advance: never so much that tasks wait beside an idle worker, never more than it is told."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw
from tests.e2e.conftest import client, sizes


def test_two_workers_share_a_few_long_tasks(shop: Path, kw: RunKw, url: str, ledger: Ledger) -> None:
    """Of 10 tasks of half a second each takes about 5; taken unfairly, one takes all, or all but what is given back."""
    for name in ("w1", "w2"):
        kw("run", "-A", "shop", "-b", url, "-c", "1", "-n", name)

    with client(url) as app:
        for n in range(10):
            app.send_task("shop.nap", [n, 0.5])
        eventually(lambda: ledger.count("end") == 10, within_s=20)

    counts = Counter(entry["node"] for entry in ledger.entries("start"))
    assert counts.keys() == {"kw@w1", "kw@w2"}
    assert min(counts.values()) >= 3, counts


def test_long_task_leaves_the_others_to_other_workers(shop: Path, kw: RunKw, url: str, ledger: Ledger) -> None:
    """Even after a burst of short ones, when much is taken in advance."""
    kw("run", "-A", "shop", "-b", url, "-c", "1")
    with client(url) as app:
        short = [app.send_task("shop.add", [n, n]) for n in range(300)]
        app.send_task("shop.hold", ["long"])
        for n in range(20):
            app.send_task("shop.note", [n])
        eventually(lambda: ledger.count("start"), within_s=10)

        eventually(
            lambda: sizes(url).in_flight <= 2,
            within_s=15,
            message=lambda: f"what the worker holds: {sizes(url)}",
        )
        other = kw("run", "-A", "shop", "-b", url, "-c", "1")
        eventually(lambda: ledger.count("note") == 20, within_s=15)

        assert ledger.count("end") == 0
        (shop / "release").touch()
        eventually(lambda: ledger.count("end") == 1)
        assert len(short) == 300
    assert other.stop() == 0


@pytest.mark.parametrize("multiplier", [1, 3])
def test_multiplier_bounds_what_is_held(shop: Path, kw: RunKw, url: str, ledger: Ledger, multiplier: int) -> None:
    """Also right after a burst, which would make a worker without the bound take hundreds."""
    kw("run", "-A", "shop", "-b", url, "-c", "2", "--prefetch-multiplier", str(multiplier))
    with client(url) as app:
        for _ in range(300):
            app.send_task("shop.tick")
        for n in range(40):
            app.send_task("shop.hold", [n])
        eventually(lambda: ledger.count("start") == 2, within_s=10)

        eventually(
            lambda: sizes(url).in_flight <= 2 * multiplier,
            message=lambda: f"what the worker holds: {sizes(url)}",
        )
        (shop / "release").touch()
        eventually(lambda: ledger.count("end") == 40, within_s=20)

    # any worker gives back what waits behind long tasks: one without the bound, nearly all of them
    given_back = {entry["id"] for entry in ledger.entries("start") if entry["again"]}
    assert len(given_back) <= 3 * multiplier


def test_parked_task_is_held_by_nobody(shop: Path, kw: RunKw, url: str, ledger: Ledger) -> None:
    """Countdown and retry: the worker has nothing in hand meanwhile, and any worker may run it when it is due."""
    first = kw("run", "-A", "shop", "-b", url, "--result-backend", url, "-c", "1", "-n", "w1")
    with client(url) as app:
        sent = app.send_task("shop.again", [4.0])
        eventually(lambda: ledger.count("try") == 1)
        # The retry's message is parked before the one that asked for it is settled.
        eventually(lambda: (now := sizes(url)).parked == 1 and (now.waiting, now.in_flight) == (0, 0))
        assert first.stop() == 0
        kw("run", "-A", "shop", "-b", url, "--result-backend", url, "-c", "1", "-n", "w2")

        assert sent.get(timeout=20) == 1

    tries = ledger.entries("try")
    assert [entry["retries"] for entry in tries] == [0, 1]
    assert tries[1]["at"] - tries[0]["at"] > 3.9
