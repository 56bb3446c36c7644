"""Routes, declared queues and priorities, from the application to the worker that takes the task."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw
from tests.e2e.conftest import Command, client, notes, sizes

ROUTES = """\

app.conf.update(
    task_queues={"default": {}, "mail": {"routing_key": "mail.#"}, "video": {}},
    task_default_queue="default",
    task_routes={"shop.add": {"queue": "video"}, "shop.no*": "mail"},
    task_create_missing_queues=False,
)
"""


@pytest.fixture
def routed(shop: Path) -> Path:
    """The shop with routes and queues of its own."""
    with (shop / "shop.py").open("a") as file:
        file.write(ROUTES)
    return shop


def test_worker_consumes_the_declared_queues_and_routes_lead_there(
    routed: Path, kw: RunKw, command: Command, url: str, ledger: Ledger
) -> None:
    worker = kw("run", "-A", "shop", "-b", url, "--result-backend", url, "-P", "solo")

    sent = command("call", "shop.note", "-a", '["routed"]', "-A", "shop", "-b", url)
    added = command("call", "shop.add", "-a", "[1, 2]", "-A", "shop", "-b", url)
    result = command("result", added.stdout.strip(), "--timeout", "10", "--result-backend", url)
    eventually(lambda: ledger.count("note"))

    assert "queues:   default, mail, video" in worker.output
    assert sent.returncode == 0
    assert result.stdout == "3\n"
    assert ledger.entries("note")[0]["queue"] == "mail"


def test_task_of_an_unselected_queue_stays_there(
    routed: Path, kw: RunKw, command: Command, url: str, ledger: Ledger
) -> None:
    kw("run", "-A", "shop", "-b", url, "-P", "solo", "-Q", "mail")
    command("call", "shop.add", "-a", "[1, 2]", "-A", "shop", "-b", url)
    command("call", "shop.note", "-a", "[1]", "-A", "shop", "-b", url)
    eventually(lambda: ledger.count("note"))

    assert sizes(url, "video").waiting == 1


def test_queue_that_is_not_declared_is_refused_when_it_may_not_be_created(routed: Path, kw: RunKw) -> None:
    worker = kw("run", "-A", "shop", "-Q", "mial", ready=False)

    assert worker.wait() in (2, 70)
    assert "mial" in worker.output
    assert "task_create_missing_queues" in worker.output
    assert "Traceback" not in worker.output


def test_urgent_tasks_overtake_those_that_wait(shop: Path, kw: RunKw, url: str, ledger: Ledger) -> None:
    """0 is the most urgent, as with Celery on Redis."""
    with client(url) as app:
        for n in range(3):
            for priority in (9, 6, 3, 0):
                app.send_task("shop.note", [f"{priority}-{n}"], priority=priority)
        kw("run", "-A", "shop", "-b", url, "-P", "solo")
        eventually(lambda: ledger.count("note") == 12)

    assert notes(ledger, "note") == [f"{priority}-{n}" for priority in (0, 3, 6, 9) for n in range(3)]


def test_no_queue_starves_another(shop: Path, kw: RunKw, url: str, ledger: Ledger) -> None:
    """A full queue and a small one: the small one does not wait for the end of the full one."""
    with client(url) as app:
        for n in range(60):
            app.send_task("shop.nap", [f"full-{n}", 0.01], queue="full")
        for n in range(3):
            app.send_task("shop.nap", [f"small-{n}", 0.01], queue="small")
        kw("run", "-A", "shop", "-b", url, "-c", "1", "-Q", "full,small")
        eventually(lambda: ledger.count("end") == 63, within_s=15)

    order = notes(ledger, "start")
    assert max(order.index(f"small-{n}") for n in range(3)) < 50
