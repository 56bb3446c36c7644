"""A real worker grows with its load, shrinks when it is idle, stays within its bounds, and interrupts nothing."""

from __future__ import annotations

import time
from pathlib import Path

from kernel_app import App
from kernel_worker.testing import Ledger, WorkerProcess, eventually
from tests.conftest import RunKw

APP = """
import time
from kernel_app import App
from kernel_worker.testing import Ledger

app = App("toy", broker_url="sqlite:///kw.db", result_backend=None)
ledger = Ledger("ledger")

@app.task(name="nap")
def nap(seconds):
    time.sleep(seconds)
    ledger.note("nap")
"""


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _size(worker: WorkerProcess) -> int:
    """Executors alive: the fork server is the worker's only child, they are its children."""
    return sum(len(_children(child)) for child in _children(worker.pid))


def test_pool_follows_the_load_within_its_bounds(kw: RunKw, tmp_path: Path, ledger: Ledger) -> None:
    (tmp_path / "toy.py").write_text(APP)
    options = ["--autoscale=5,2", "--autoscale-keepalive=1", "-l", "info", "-f", "kw.log"]
    worker = kw("run", "-A", "toy", "--plugins", "prefork,sqlite,autoscale", *options)
    sizes: set[int] = set()
    app = App("client", broker_url=f"sqlite:///{tmp_path}/kw.db", result_backend=None)

    def watched(size: int) -> bool:
        sizes.add(now := _size(worker))
        return now == size

    eventually(lambda: watched(2))
    for cycle in (1, 2):
        for _ in range(40):
            app.send_task("nap", [0.25])  # enough for five, also when it takes some seconds until they are up
        eventually(lambda: watched(5), within_s=15)
        eventually(lambda cycle=cycle: watched(2) and ledger.count("nap") == 40 * cycle, within_s=20)
    app.close()

    assert sizes <= {0, 1, 2, 3, 4, 5}
    log = (tmp_path / "kw.log").read_text()
    assert "pool grows from 2 to " in log
    assert " to 2 slots: 0 running, none waiting" in log
    assert worker.stop() == 0
    assert ledger.count("nap") == 80


def test_long_tasks_get_a_slot_each_and_none_is_interrupted(kw: RunKw, tmp_path: Path, ledger: Ledger) -> None:
    """They wait in the broker, where the worker's own prefetch does not see them."""
    (tmp_path / "toy.py").write_text(APP)
    worker = kw(
        "run", "-A", "toy", "--plugins", "prefork,sqlite,autoscale", "--autoscale=6,1", "--autoscale-keepalive=1"
    )
    app = App("client", broker_url=f"sqlite:///{tmp_path}/kw.db", result_backend=None)

    began = time.monotonic()
    for _ in range(6):
        app.send_task("nap", [3.0])
    app.close()

    eventually(lambda: _size(worker) == 6, within_s=10)
    eventually(lambda: ledger.count("nap") == 6, within_s=20)
    assert time.monotonic() - began < 15
    eventually(lambda: _size(worker) == 1, within_s=10)


def test_slots_of_one_process_follow_the_load(kw: RunKw, tmp_path: Path, ledger: Ledger) -> None:
    (tmp_path / "toy.py").write_text(APP)
    options = ["--autoscale=20,2", "--autoscale-keepalive=1", "-l", "info", "-f", "kw.log"]
    app = App("client", broker_url=f"sqlite:///{tmp_path}/kw.db", result_backend=None)
    for _ in range(200):
        app.send_task("nap", [0.2])
    app.close()

    worker = kw("run", "-A", "toy", "-P", "threads", "--plugins", "threads,sqlite,autoscale", *options)
    family = worker.family()
    eventually(lambda: ledger.count("nap") == 200, within_s=15)
    eventually(lambda: " to 2 slots: 0 running, none waiting" in (tmp_path / "kw.log").read_text(), within_s=10)

    assert " to 20 slots: " in (tmp_path / "kw.log").read_text()
    assert worker.family() == family
    assert worker.stop() == 0
