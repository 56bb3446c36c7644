"""Single kills: of an idle, a holding and a running worker, and of its executors.

What the pool contract does on SQLite is done on Redis here.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw
from tests.faults.application import LEASE_S, MODULE, OPTIONS, client, name, started

BACK_WITHIN_S = 2.0
"""After the lease is over and there is somebody to take over."""


def test_kill_of_an_idle_worker_changes_nothing(url: str, folder: Path, kw: RunKw) -> None:
    first = kw(*OPTIONS, "-b", url, "--result-backend", url, "-P", "solo")
    first.signal(signal.SIGKILL)
    first.wait()

    with client(url) as app:
        sent = [app.send_task(f"{MODULE}.echo", [n]) for n in range(20)]
        kw(*OPTIONS, "-b", url, "--result-backend", url, "-P", "solo")
        results = [result.get(timeout=20) for result in sent]

    assert results == list(range(20))


def test_messages_of_a_killed_worker_run_elsewhere_within_lease_plus_two_seconds(
    url: str, folder: Path, kw: RunKw, ledger: Ledger
) -> None:
    """What ran and what was only held; the executors die with the worker, so nothing runs twice at once."""
    options = (*OPTIONS, "-b", url, "--result-backend", url, "-c", "1")
    first = kw(*options)
    running, held = name(), name()
    with client(url) as app:
        app.send_task(f"{MODULE}.hold", [running])
        executor = started(ledger, running)
        app.send_task(f"{MODULE}.hold", [held])  # reserved by the first worker or not: both must be right

        first.signal(signal.SIGKILL)
        killed = time.monotonic()
        eventually(lambda: executor not in first.family(), within_s=5.0, message="the end of the executor")
        kw(*options[:-1], "2")
        begun = max(killed + LEASE_S, time.monotonic())
        started(ledger, running, times=2)
        started(ledger, held)
        took = time.monotonic() - begun
        (folder / "release-all").touch()
        eventually(lambda: ledger.count("end") == 2, within_s=10)

    assert took < BACK_WITHIN_S
    assert ledger.count("start", id=running) == 2


def test_kill_of_the_worker_counts_one_delivery_of_what_ran(url: str, folder: Path, kw: RunKw, ledger: Ledger) -> None:
    """Two deliveries are allowed: the kill of the worker costs the first, the kill of the executor the second."""
    options = (*OPTIONS, "-b", url, "--result-backend", url, "-c", "1")
    allowed = {"KW_MAX_DELIVERIES": "2"}
    first = kw(*options, env=allowed)
    key = name()
    with client(url) as app:
        sent = app.send_task(f"{MODULE}.hold", [key])
        started(ledger, key)
        first.signal(signal.SIGKILL)
        second = kw(*options, env=allowed)
        os.kill(started(ledger, key, times=2), signal.SIGKILL)
        error = sent.get(timeout=20, propagate=False)
    assert second.stop() == 0  # the result is stored before the message becomes a dead letter
    letters = kw("dead", "ls", "-b", url, "--json", ready=False)
    letters.wait()

    assert type(error).__name__ == "WorkerLostError"
    assert "delivery 2 of at most 2" in letters.output


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGSEGV, marks=pytest.mark.faults),
        pytest.param(signal.SIGABRT, marks=pytest.mark.faults),
    ],
    ids=["SIGKILL", "SIGSEGV", "SIGABRT"],
)
def test_end_of_one_executor_touches_only_its_own_task(
    redis_url: str, folder: Path, kw: RunKw, ledger: Ledger, number: int
) -> None:
    kw(*OPTIONS, "-b", redis_url, "--result-backend", redis_url, "-c", "2")
    victim, other = name(), name()
    with client(redis_url) as app:
        sent = [app.send_task(f"{MODULE}.hold", [key]) for key in (victim, other)]
        pid, neighbour = started(ledger, victim), started(ledger, other)

        os.kill(pid, number)
        ended = time.monotonic()
        again = started(ledger, victim, times=2)
        took = time.monotonic() - ended
        (folder / "release-all").touch()
        results = [result.get(timeout=10) for result in sent]

    assert results == [victim, other]
    assert again not in (pid, neighbour)
    assert ledger.count("start", id=other) == 1
    assert took < 5.0, "the slot is filled again within a second, on a machine that others use, too"


def test_kill_of_the_fork_server_loses_no_task(url: str, folder: Path, kw: RunKw, ledger: Ledger) -> None:
    worker = kw(*OPTIONS, "-b", url, "--result-backend", url, "-c", "2")
    key = name()
    with client(url) as app:
        sent = app.send_task(f"{MODULE}.hold", [key])
        started(ledger, key)
        fork_server = ledger.entries("start", id=key)[0]["parent"]
        assert fork_server in worker.family() - {worker.pid}

        os.kill(fork_server, signal.SIGKILL)
        started(ledger, key, times=2)
        (folder / "release-all").touch()

        assert sent.get(timeout=20) == key
        assert app.send_task(f"{MODULE}.echo", [1]).get(timeout=20) == 1
    assert worker.stop() == 0


@pytest.mark.parametrize("moment", [0, 2])
def test_kill_of_idle_executors_loses_no_task(
    redis_url: str, folder: Path, kw: RunKw, ledger: Ledger, moment: int
) -> None:
    """Also in the middle of reading a job: tasks are sent just before, while and after the executors are killed."""
    worker = kw(*OPTIONS, "-b", redis_url, "--result-backend", redis_url, "-c", "2")
    with client(redis_url) as app:
        sent = [app.send_task(f"{MODULE}.echo", [n]) for n in range(20 * moment)]
        for pid in sorted(worker.family())[2:]:  # neither the worker nor its fork server, which were born before
            os.kill(pid, signal.SIGKILL)
        sent += [app.send_task(f"{MODULE}.echo", [n]) for n in range(20)]
        results = [result.get(timeout=20) for result in sent]

    assert results == [*range(20 * moment), *range(20)]
    assert worker.stop() == 0
