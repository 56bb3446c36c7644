"""A worker that was stopped for longer than its lease: no end of what others took over is stored, and it works on."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from pathlib import Path

import pytest

from kernel_app import App
from kernel_worker.testing import Ledger, WorkerProcess, eventually
from tests.conftest import RunKw
from tests.faults.application import MODULE, OPTIONS, client, name, started

POOLS = [("-P", "prefork", "-c", "1"), ("-P", "solo")]


@pytest.mark.parametrize("pool", POOLS, ids=["prefork", "solo"])
@pytest.mark.parametrize("whole", [True, False], ids=["all of it", "only the kernel process"])
def test_stopped_worker_does_not_store_the_end_of_what_others_took_over(
    url: str, folder: Path, kw: RunKw, ledger: Ledger, pool: tuple[str, ...], whole: bool
) -> None:
    """Cause: its executor stored its result over that of the worker that had run the task meanwhile."""
    options = (*OPTIONS, "-b", url, "--result-backend", url)
    first = kw(*options, *pool, "-n", "first")
    key = name()
    with client(url) as app:
        sent = app.send_task(f"{MODULE}.sign", [key])
        started(ledger, key)
        stand_still(first, whole, folder / "kw.db")
        second = kw(*options, "-P", "solo", "-n", "second")
        started(ledger, key, times=2)
        (folder / "release-kw@first").touch()
        if not whole and pool != POOLS[1]:  # the executor ends the task while its kernel process stands still
            eventually(lambda: ledger.count("end", node="kw@first"), within_s=5)
        go_on(first, whole)
        first.wait_for_output("went to other workers", within_s=10)
        assert sent.state == "PENDING"
        (folder / "release-kw@second").touch()

        assert sent.get(timeout=10) == "kw@second"
        assert second.stop() == 0
        _works_on(app, first)
    assert ledger.count("start", id=key) == 2


def stand_still(worker: WorkerProcess, whole: bool, database: Path) -> None:
    """Stop it, but not in the middle of a write to SQLite: that keeps everybody out for as long as it stands still."""

    def stop() -> bool:
        (worker.signal_group if whole else worker.signal)(signal.SIGSTOP)
        if not database.exists():
            return True
        with contextlib.closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return True
            except sqlite3.OperationalError:
                go_on(worker, whole)
                return False

    eventually(stop, message="a moment without a write")


def go_on(worker: WorkerProcess, whole: bool) -> None:
    (worker.signal_group if whole else worker.signal)(signal.SIGCONT)


def _works_on(app: App, worker: WorkerProcess) -> None:
    assert app.send_task(f"{MODULE}.echo", ["there"]).get(timeout=10) == "there"
    assert worker.stop() == 0
    assert "Traceback" not in worker.output
