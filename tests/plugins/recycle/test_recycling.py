"""Real workers with executors that live for a number of tasks, or as long as they are small."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from kernel_app import App
from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw

APP = """
import os, time
from kernel_app import App
from kernel_worker.testing import Ledger

app = App("toy", broker_url="sqlite:///kw.db", result_backend=None, **SETTINGS)
ledger = Ledger("ledger")
hoard = []

@app.task(name="note")
def note(n):
    ledger.note("note", n=n)

@app.task(name="leak")
def leak(n):
    hoard.append(os.urandom(1024) * 2048)
    rss = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    ledger.note("leak", n=n, rss=rss)
    time.sleep(0.01)

@app.task(name="grow")
def grow():
    hoard.append(os.urandom(1024) * 200 * 1024)
    ledger.note("grown")
    while not os.path.exists("release"):
        time.sleep(0.02)
    ledger.note("grow")
"""


def _send(tmp_path: Path, task: str, count: int) -> None:
    app = App("client", broker_url=f"sqlite:///{tmp_path}/kw.db", result_backend=None)
    for n in range(count):
        app.send_task(task, [n])
    app.close()


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    (tmp_path / "toy.py").write_text(APP.replace("SETTINGS", "{}"))
    return tmp_path


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
def test_executors_run_so_many_tasks_and_none_is_lost_or_doubled(
    toy: Path, kw: RunKw, ledger: Ledger, pool: str
) -> None:
    count, most = (1000, 50) if pool == "prefork" else (400, 100)  # an interpreter is started for each
    _send(toy, "note", count)

    worker = kw("run", "-A", "toy", "-P", pool, "-c", "2", "--max-tasks-per-child", str(most))
    eventually(lambda: ledger.count("note") >= count, within_s=30)

    assert worker.stop() == 0
    entries = ledger.entries("note")
    assert sorted(entry["n"] for entry in entries) == list(range(count))
    by_executor = Counter(entry["pid"] for entry in entries)
    assert max(by_executor.values()) <= most
    assert len(by_executor) >= count // most


def test_application_may_set_it_by_celerys_name(tmp_path: Path, kw: RunKw, ledger: Ledger) -> None:
    (tmp_path / "toy.py").write_text(APP.replace("SETTINGS", "{'worker_max_tasks_per_child': 1}"))
    _send(tmp_path, "note", 5)

    kw("run", "-A", "toy", "-c", "1")
    eventually(lambda: ledger.count("note") == 5, within_s=20)

    assert len({entry["pid"] for entry in ledger.entries("note")}) == 5


def test_memory_stays_bounded_with_a_task_that_leaks(toy: Path, kw: RunKw, ledger: Ledger) -> None:
    _send(toy, "leak", 600)

    worker = kw(
        "run", "-A", "toy", "-c", "2", "--max-memory-per-child", "120000", "-l", "info", "-f", "kw.log",
    )  # fmt: skip
    eventually(lambda: ledger.count("leak") >= 600, within_s=40)

    assert worker.stop() == 0
    assert sorted(entry["n"] for entry in ledger.entries("leak")) == list(range(600))
    # each of two without the bound would hold 600,000
    assert max(entry["rss"] for entry in ledger.entries("leak")) < 400_000
    found = re.findall(
        r"executor (\d+) is replaced: it has (\d+) KiB of resident memory, the limit is 120000 KiB",
        (toy / "kw.log").read_text(),
    )
    assert len(found) >= 2
    assert {int(pid) for pid, _ in found} <= {entry["pid"] for entry in ledger.entries("leak")}


def test_task_that_grows_while_it_runs_is_not_interrupted(toy: Path, kw: RunKw, ledger: Ledger) -> None:
    app = App("client", broker_url=f"sqlite:///{toy}/kw.db", result_backend=None)
    app.send_task("grow")
    kw("run", "-A", "toy", "-c", "1", "--max-memory-per-child", "150000", "-l", "info", "-f", "kw.log")
    eventually(lambda: "is replaced" in (toy / "kw.log").read_text(), within_s=10)
    app.send_task("note", [1])
    app.close()

    (toy / "release").touch()
    eventually(lambda: ledger.count("note") == 1, within_s=10)

    assert ledger.count("grown") == ledger.count("grow") == 1
    assert ledger.entries("note")[0]["pid"] != ledger.entries("grow")[0]["pid"]


@pytest.mark.parametrize("option", ["--max-tasks-per-child", "--max-memory-per-child"])
def test_pool_that_cannot_replace_its_executor_is_refused(toy: Path, kw: RunKw, option: str) -> None:
    worker = kw("run", "-A", "toy", "-P", "solo", option, "100", ready=False)

    assert worker.wait() == 2
    assert f"pool 'solo' cannot replace its executor ({option} 100" in worker.output
