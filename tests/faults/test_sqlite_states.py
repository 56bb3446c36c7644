"""An SQLite file that is locked, cannot grow, or is no database: the worker says so, waits, and loses nothing."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
import sys
from pathlib import Path

import pytest

from kernel_worker.testing import Ledger, WorkerProcess, eventually
from tests.conftest import RunKw
from tests.faults.application import MODULE, OPTIONS, client, name, started

if sys.platform != "linux":
    pytest.skip("limits are set on other processes as Linux does it", allow_module_level=True)


@pytest.fixture
def file(folder: Path) -> Path:
    return folder / "kw.db"


@pytest.fixture
def url(file: Path) -> str:
    return f"sqlite:///{file}"


def run_and_wait(url: str, ledger: Ledger, count: int = 20) -> tuple[str, list[str]]:
    """A task that runs until it is released, and others that wait behind it."""
    running, waiting = name(), [name() for _ in range(count)]
    with client(url) as app:
        app.send_task(f"{MODULE}.hold", [running])
        started(ledger, running)
        for each in waiting:
            app.send_task(f"{MODULE}.work", [each, 0.001])
    return running, waiting


def ended_once(ledger: Ledger, *keys: str) -> None:
    eventually(lambda: all(ledger.count("end", id=each) for each in keys), within_s=20, message="the end of all")
    assert [ledger.count("start", id=each) for each in keys] == [1] * len(keys)


def limit_files(worker: WorkerProcess, limit: int) -> None:
    """The longest file that the worker may write, but not its executors: stands for the end of the disk."""
    _, most = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (limit, most))


def test_file_that_is_locked_for_long_is_waited_for(
    folder: Path, kw: RunKw, url: str, file: Path, ledger: Ledger
) -> None:
    """Longer than the patience of a call. The lease outlasts it: nobody could renew."""
    worker = kw(*OPTIONS, "--lease", "30", "-b", url, "--result-backend", url, "-c", "1")
    running, waiting = run_and_wait(url, ledger)

    with contextlib.closing(sqlite3.connect(file, isolation_level=None, timeout=10)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        (folder / f"release-{running}").touch()
        worker.wait_for_output("was locked by another process for more than 5 s", within_s=20)
        shell.execute("ROLLBACK")

    ended_once(ledger, running, *waiting)
    assert worker.stop() == 0
    assert "Traceback" not in worker.output


def test_file_that_cannot_grow_is_waited_for(folder: Path, kw: RunKw, url: str, file: Path, ledger: Ledger) -> None:
    worker = kw(*OPTIONS, "--lease", "30", "-b", url, "--result-backend", url, "-c", "1")
    running, waiting = run_and_wait(url, ledger)
    told = worker.output.count("broker is away")

    limit_files(worker, file.with_name("kw.db-wal").stat().st_size)
    (folder / f"release-{running}").touch()
    eventually(lambda: worker.output.count("broker is away") > told, within_s=20, message="the trouble to be told")
    assert f"{file}: disk I/O error" in worker.output
    limit_files(worker, resource.RLIM_INFINITY)

    ended_once(ledger, running, *waiting)
    assert worker.stop() == 0


def test_file_that_is_no_database_is_waited_for_until_it_is_replaced(
    folder: Path, kw: RunKw, url: str, file: Path, ledger: Ledger
) -> None:
    file.write_text("This is no database, though it is long enough to have a header.\n" * 100)
    worker = kw(*OPTIONS, "-b", url, "--result-backend", url, "-c", "1", ready=False)
    worker.wait_for_output("broker refuses us")

    file.unlink()

    worker.wait_until_ready()
    with client(url) as app:
        assert app.send_task(f"{MODULE}.echo", [1]).get(timeout=20) == 1
    assert worker.output.count("broker refuses us") == 1, "the same trouble is told once"
    assert worker.stop() == 0
