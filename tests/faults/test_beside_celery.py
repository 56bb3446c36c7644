"""What an outage of the broker costs a `kw` and a Celery worker, in the same run. Printed; only `kw` is judged.

Both have two processes and late acknowledgements, and their own defaults for everything else.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kernel_app import App
from kernel_worker.testing import Ledger, WorkerProcess, eventually
from tests.faults.application import MODULE, client, name, write_app
from tests.faults.proxy import Proxy
from tests.servers import RabbitServer, RedisServer

Server = RedisServer | RabbitServer

AGAIN_WITHIN_S = 20.0
PATIENCE_S = 60.0
"""So long is waited for a peer."""
SILENCE_S = 20.0
RUNNING_S = 4.0
SHORT = 200

STOCK = """
import time, celery
from kernel_worker.testing.ledger import Ledger
app = celery.Celery("faulty")
app.conf.update(task_acks_late=True, task_ignore_result=True, broker_connection_retry_on_startup=True)
ledger = Ledger("ledger")
@app.task(name="faulty.work")
def work(key, seconds):
    ledger.note("start", id=key)
    time.sleep(seconds)
    ledger.note("end", id=key)
"""


def restart(server: Server, proxy: Proxy) -> None:
    """Three times in about three seconds; RabbitMQ as fast as it starts."""
    for _ in range(3):
        server.kill()
        time.sleep(0.5)
        server.start()
        time.sleep(0.5)


def reset(server: Server, proxy: Proxy) -> None:
    proxy.cut()


def be_silent(server: Server, proxy: Proxy) -> None:
    with proxy.blackhole():
        time.sleep(SILENCE_S)


FAULTS: dict[str, Callable[[Server, Proxy], None]] = {
    "restarted three times": restart,
    "every connection reset": reset,
    "every connection silent for 20 s": be_silent,
}


@contextmanager
def kw_worker(folder: Path, url: str, results: str) -> Iterator[None]:
    arguments = ["run", "-A", MODULE, "-b", url, "--result-backend", results, "-c", "2", "-l", "warning"]
    worker = WorkerProcess(arguments, cwd=folder).wait_until_ready()
    try:
        yield
    finally:
        worker.kill()


@contextmanager
def celery_worker(folder: Path, url: str, results: str) -> Iterator[None]:
    """It stores no results."""
    (folder / "stock.py").write_text(STOCK)
    command = [sys.executable, "-m", "celery", "-A", "stock", "-b", url, "worker", "-c", "2", "-l", "info"]
    with (folder / "celery.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        eventually(lambda: " ready." in (folder / "celery.log").read_text(), within_s=40)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def measure(app: App, ledger: Ledger, fault: Callable[[], None]) -> tuple[float, int, int]:
    """Seconds from the end of the fault until what was sent then has run, behind all else; ids that did not end, ids that
    started twice. The two tasks that run take a few seconds of that where the fault is shorter."""
    keys = [name() for _ in range(2 + SHORT)]
    for key in keys[:2]:
        app.send_task(f"{MODULE}.work", [key, RUNNING_S])
    eventually(lambda: ledger.count("start") >= 2, within_s=20)
    for key in keys[2:]:
        app.send_task(f"{MODULE}.work", [key, 0.01])
    fault()

    begun = time.monotonic()
    probe = name()
    eventually(lambda: app.send_task(f"{MODULE}.work", [probe, 0.0]) or True, within_s=10)

    def left() -> set[str]:
        return {probe, *keys} - {entry["id"] for entry in ledger.entries("end")}

    again_s = 0.0
    while left() and time.monotonic() - begun < PATIENCE_S:
        if not again_s and probe not in left():
            again_s = time.monotonic() - begun
        time.sleep(0.1)
    again_s = again_s or (float("inf") if probe in left() else time.monotonic() - begun)
    starts = Counter(entry["id"] for entry in ledger.entries("start"))
    return again_s, len(left()), sum(count > 1 for count in starts.values())


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
@pytest.mark.parametrize("fault", FAULTS)
def test_outage_beside_celery(
    tmp_path: Path,
    start_redis: Callable[..., RedisServer],
    start_rabbitmq: Callable[[], RabbitServer],
    capsys: pytest.CaptureFixture[str],
    fault: str,
    broker: str,
) -> None:
    found: dict[str, tuple[float, int, int]] = {}
    for peer, start in (("kw", kw_worker), ("celery", celery_worker)):
        folder = tmp_path / peer
        folder.mkdir()
        write_app(folder)
        server: Server = start_redis("--appendonly", "yes") if broker == "redis" else start_rabbitmq()
        proxy = Proxy(server.port)
        url = server.url.replace(str(server.port), str(proxy.port))
        results = url if broker == "redis" else f"sqlite:///{folder / 'results.db'}"
        try:
            with start(folder, url, results), client(server.url, results) as app:
                found[peer] = measure(app, Ledger(folder / "ledger"), lambda: FAULTS[fault](server, proxy))  # noqa: B023
        finally:
            proxy.close()
            server.kill()
    with capsys.disabled():
        print(
            f"\n{broker}, {fault}: what was sent afterwards has run after, not ended within {PATIENCE_S:g} s, "
            "started more than once"
        )
        for peer, (again_s, lost, repeated) in found.items():
            print(f"  {peer:8} {again_s:6.1f} s {lost:6} {repeated:6}")

    again_s, lost, _ = found["kw"]
    assert again_s < AGAIN_WITHIN_S
    assert lost == 0
