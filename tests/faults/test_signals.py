"""Signals at bad moments: in storms, while starting, while the broker is away, to a closed terminal."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernel_worker.testing import Ledger, WorkerProcess, eventually
from tests.conftest import RunKw
from tests.faults.application import MODULE, OPTIONS, client, name, started
from tests.faults.storm import seed
from tests.servers import RedisServer, free_port

STOPPED_WITHIN_S = 10.0
NO_SECOND_CHANCE = {"KW_MAX_DELIVERIES": "1"}
"""If an attempt were counted, the task would become a dead letter at once."""
MIXED = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD]


def stop_in_time(worker: WorkerProcess) -> int:
    began = time.monotonic()
    code = worker.stop(within_s=2 * STOPPED_WITHIN_S)
    took = time.monotonic() - began
    assert took < STOPPED_WITHIN_S, f"{took:.1f} s:\n{worker.output}"
    return code


@pytest.mark.parametrize("pool", ["prefork", "solo"])
@pytest.mark.parametrize("phase", [pytest.param("idle", marks=pytest.mark.faults), "running"])
def test_storm_of_mixed_signals_is_one_shutdown(
    url: str, folder: Path, kw: RunKw, ledger: Ledger, pool: str, phase: str
) -> None:
    """INT twice is a quick stop, so what ran may be put back: then it is still there."""
    chance = random.Random(seed())
    options = (*OPTIONS, "-b", url, "--result-backend", url, "-P", pool)
    worker = kw(*options, "--grace", "2", env=NO_SECOND_CHANCE)
    key = name()
    with client(url) as app:
        if phase == "running":
            sent = app.send_task(f"{MODULE}.hold", [key])
            started(ledger, key)

        for _ in range(100):
            try:
                worker.signal(chance.choice(MIXED))
            except ProcessLookupError:  # it is that quick
                break
        code = worker.wait(within_s=2 + 2 + 3)
        left = worker.family()

        if phase == "running":
            (folder / "release-all").touch()
            kw(*options, "-c", "1", env=NO_SECOND_CHANCE) if pool == "prefork" else kw(*options, env=NO_SECOND_CHANCE)
            assert sent.get(timeout=20) == key
    assert code in (0, 1)
    assert not left
    assert worker.output.count(" stops (") == 1
    assert "Traceback" not in worker.output


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_term_while_the_application_is_imported_stops_the_worker(folder: Path, kw: RunKw, pool: str) -> None:
    (folder / "slow.py").write_text("import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(60)\n")
    worker = kw("run", "-A", "slow", "-P", pool, ready=False)
    eventually((folder / "importing").exists, within_s=20)

    assert stop_in_time(worker) == 0
    assert "Traceback" not in worker.output
    assert not worker.family()


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_term_while_waiting_for_the_broker_stops_the_worker(folder: Path, kw: RunKw, pool: str) -> None:
    worker = kw(*OPTIONS, "-b", f"redis://127.0.0.1:{free_port()}/0", "-P", pool, ready=False)
    worker.wait_for_output("broker is away")

    assert stop_in_time(worker) == 0
    assert "Traceback" not in worker.output
    assert not worker.family()


@pytest.mark.parametrize("outage", ["down", "silent"])
def test_term_during_an_outage_stops_an_idle_worker(folder: Path, kw: RunKw, tmp_path: Path, outage: str) -> None:
    place = tmp_path / "server"
    place.mkdir()
    server = RedisServer(place)
    server.start()
    try:
        url = f"{server.url}?socket_timeout=1"
        worker = kw(*OPTIONS, "-b", url, "--result-backend", url, "-c", "1")
        if outage == "down":
            server.kill()
            worker.wait_for_output("broker is away")
            stop_in_time(worker)
        else:
            with server.paused():
                worker.wait_for_output("broker is away")
                stop_in_time(worker)
    finally:
        server.kill()
    assert "Traceback" not in worker.output
    assert not worker.family()


def test_term_to_an_executor_alone_changes_nothing(redis_url: str, folder: Path, kw: RunKw, ledger: Ledger) -> None:
    worker = kw(*OPTIONS, "-b", redis_url, "--result-backend", redis_url, "-c", "1")
    key = name()
    with client(redis_url) as app:
        sent = app.send_task(f"{MODULE}.hold", [key])
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(started(ledger, key), number)
        (folder / "release-all").touch()

        assert sent.get(timeout=10) == key
    assert worker.stop() == 0
    assert ledger.count("start", id=key) == 1


def test_term_to_the_group_lets_the_task_finish(redis_url: str, folder: Path, kw: RunKw, ledger: Ledger) -> None:
    worker = kw(*OPTIONS, "-b", redis_url, "--result-backend", redis_url, "-c", "2")
    key = name()
    with client(redis_url) as app:
        sent = app.send_task(f"{MODULE}.hold", [key])
        started(ledger, key)
        worker.signal_group(signal.SIGTERM)
        worker.wait_for_output(" stops (")
        (folder / "release-all").touch()

        assert worker.wait() == 0
        assert sent.get(timeout=5) == key
    assert not worker.family()


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_task_beyond_the_grace_period_is_put_back_uncounted(
    redis_url: str, folder: Path, kw: RunKw, ledger: Ledger, pool: str
) -> None:
    options = (*OPTIONS, "-b", redis_url, "--result-backend", redis_url, "-P", pool)
    first = kw(*options, "--grace", "1", env=NO_SECOND_CHANCE)
    key = name()
    with client(redis_url) as app:
        app.send_task(f"{MODULE}.stubborn", [key])
        started(ledger, key)

        began = time.monotonic()
        first.signal(signal.SIGTERM)
        code = first.wait(within_s=1 + 5)
        took = time.monotonic() - began
        left = first.family()
        kw(*options, env=NO_SECOND_CHANCE)
        started(ledger, key, times=2)
        (folder / f"release-{key}").touch()
        eventually(lambda: ledger.count("end", id=key) == 1, within_s=10)

    assert took > 0.9
    assert code == 0
    assert not left


def test_closed_terminal_stops_the_worker_in_order(folder: Path, ledger: Ledger) -> None:
    """HUP comes when a terminal closes, and every write to it fails from then on."""
    url = f"sqlite:///{folder / 'kw.db'}"
    command = [sys.executable, "-m", "kernel_worker.cli", *OPTIONS, "-b", url, "--result-backend", url, "-c", "1"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        assert any(" ready." in line for line in iter(process.stdout.readline, ""))
        process.stdout.close()
        key = name()
        with client(url) as app:
            sent = app.send_task(f"{MODULE}.hold", [key])
            executor = started(ledger, key)
            os.kill(executor, signal.SIGKILL)  # something to tell, which nobody can read
            started(ledger, key, times=2)
            process.send_signal(signal.SIGHUP)
            (folder / "release-all").touch()

            assert process.wait(20) == 0
            assert sent.get(timeout=5) == key
    finally:
        process.kill()
        process.wait()
