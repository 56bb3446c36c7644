"""What pools go through at worst: executors killed by the hundred, tasks that compute for a minute, growing and shrinking
again and again, executors that are replaced all the time. Short forms run with the suite."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_app import App
from kernel_worker.testing import Ledger, WorkerProcess, eventually
from tests.conftest import RunKw

from .storm import ALLOWED_DELIVERIES, seed

APP = """
import os, time
from kernel_app import App
from kernel_worker.testing import Ledger

app = App("pools", task_ignore_result=True)
ledger = Ledger("ledger")
hoard = []

@app.task(name="nap")
def nap(key, seconds):
    ledger.note("start", id=key)
    time.sleep(seconds)
    ledger.note("end", id=key)

@app.task(name="burn")
def burn(seconds):
    ledger.note("burn")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))

@app.task(name="async burn")
async def async_burn(seconds):
    burn.run(seconds)

@app.task(name="leak")
def leak(key):
    hoard.append(os.urandom(1024) * 512)
    pages = int(open("/proc/self/statm").read().split()[1])
    ledger.note("end", id=key, rss=pages * os.sysconf("SC_PAGE_SIZE") // 1024)
"""
MANY_SLOTS = ["threads", "gevent", "eventlet", "asyncio"]
REPLACING = ["prefork", *MANY_SLOTS]
LAYOUT = {"prefork": "8"} | dict.fromkeys(MANY_SLOTS, "4x10")
SLOTS = {"prefork": 8} | dict.fromkeys(MANY_SLOTS, 40)
GRACE_S = 2.0
STOP_MARGIN_S = 8.0
"""What a stop may take beside the grace period on a busy machine."""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[App]:
    """Sends the tasks of workers that run in the test's folder."""
    (tmp_path / "pooled.py").write_text(APP)
    app = App("client", broker_url=f"sqlite:///{tmp_path}/kw.db", result_backend=None)
    yield app
    app.close()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _executors(worker: WorkerProcess, pool: str) -> list[int]:
    children = _children(worker.pid)
    return [each for child in children for each in _children(child)] if pool == "prefork" else children


def _stop(worker: WorkerProcess) -> float:
    begun = time.monotonic()
    assert worker.stop(within_s=GRACE_S + STOP_MARGIN_S) == 0
    return time.monotonic() - begun


# -- executors that are killed


def _kill(pid: int, how: str) -> None:
    with contextlib.suppress(ProcessLookupError):  # it died of the blow before
        if how == "STOP":
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.05)
        os.kill(pid, signal.SIGSEGV if how == "SEGV" else signal.SIGKILL)


def _wait_until_all_work(worker: WorkerProcess, pool: str, client: App, ledger: Ledger) -> None:
    """The pool has its full size, and each of its executors has run something."""
    size = 8 if pool == "prefork" else 4
    turns = itertools.count()

    def all_work() -> bool:
        executors = set(_executors(worker, pool))
        if executors <= {entry["pid"] for entry in ledger.entries("end")}:
            return len(executors) == size
        for _ in range(40):
            client.send_task("nap", [f"probe{next(turns)}", 0.02])
        time.sleep(0.2)
        return False

    eventually(all_work, within_s=30, message=lambda: f"{size} executors that work:\n{worker.output}")


def _rate(client: App, ledger: Ledger, prefix: str, slots: int) -> float:
    """Tasks per second while fifty for each slot are worked off; the best of five times.

    They wait for so long that the processor has little to do: a slot that is missing shows, what else runs on the machine
    does not.
    """
    rates = []
    for turn in range(5):
        keys = {f"{prefix}{turn}-{n}" for n in range(50 * slots)}
        for key in keys:
            client.send_task("nap", [key, 0.1])
        ends: list[float] = []

        def all_ended(keys: set[str] = keys, ends: list[float] = ends) -> bool:
            time.sleep(0.2)  # reading the ledger must not take the processor from the worker
            ends[:] = [entry["at"] for entry in ledger.entries("end") if entry["id"] in keys]
            return len(ends) >= len(keys)

        eventually(all_ended, within_s=60)
        rates.append(len(keys) / (max(ends) - min(ends)))
    return max(rates)


@pytest.mark.parametrize(
    ("pool", "tasks", "kills"),
    [
        pytest.param("prefork", 600, 30, id="prefork", marks=pytest.mark.faults),  # compares rates
        *(
            pytest.param(
                pool,
                5000,
                250 if pool == "prefork" else 50,
                id=f"{pool}-long",
                marks=[pytest.mark.faults, pytest.mark.timeout(600)],
            )
            for pool in REPLACING
        ),
    ],
)
def test_pool_is_whole_and_as_fast_as_before_when_executors_were_killed(
    client: App, kw: RunKw, ledger: Ledger, pool: str, tasks: int, kills: int
) -> None:
    is_long = tasks >= 5000
    dice = random.Random(seed())
    options = ["-A", "pooled", "-P", pool, "-c", LAYOUT[pool], "--grace", f"{GRACE_S:g}"]
    worker = kw("run", *options, env={"KW_MAX_DELIVERIES": ALLOWED_DELIVERIES})
    _wait_until_all_work(worker, pool, client, ledger)
    before = _rate(client, ledger, "before", SLOTS[pool]) if is_long else 0.0

    sent = 0
    for turn in range(kills):
        for _ in range(tasks // kills):
            client.send_task("nap", [str(sent), 0.02])
            sent += 1
        if victims := _executors(worker, pool):
            _kill(dice.choice(victims), ("KILL", "SEGV", "STOP")[turn % 3])
        time.sleep(dice.uniform(0, 0.05))

    def missing() -> set[str]:
        time.sleep(0.05)
        return {str(n) for n in range(sent)} - {entry["id"] for entry in ledger.entries("end")}

    eventually(lambda: not missing(), within_s=120, message=lambda: f"stuck: {sorted(missing())[:20]}\n{worker.output}")
    _wait_until_all_work(worker, pool, client, ledger)
    if is_long:
        after = _rate(client, ledger, "after", SLOTS[pool])
        print(f"{pool}: {kills} kills, {before:.0f}/s before, {after:.0f}/s after")
        assert after >= 0.95 * before
    _stop(worker)


# -- tasks that compute


@pytest.mark.parametrize(
    ("pool", "seconds", "answer_within_s"),
    [
        pytest.param("gevent", 4.0, 5.0, id="gevent"),
        *(
            pytest.param(pool, 60.0, 1.0, id=f"{pool}-long", marks=[pytest.mark.faults, pytest.mark.timeout(200)])
            for pool in ("solo", "gevent", "asyncio")
        ),
    ],
)
def test_worker_answers_and_stops_while_a_task_computes(
    client: App, kw: RunKw, ledger: Ledger, pool: str, seconds: float, answer_within_s: float
) -> None:
    options = ["-A", "pooled", "--lease", "2", "--grace", f"{GRACE_S:g}"]
    worker = kw("run", *options, "-P", pool, "-n", "busy")
    client.send_task("async burn" if pool == "asyncio" else "burn", [seconds + 60.0])
    eventually(lambda: ledger.count("burn") == 1)
    kw("run", *options, "-P", "solo", "-n", "other")  # would take the message over if its lease ended

    slowest = 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.monotonic()
        assert client.control.ping(["kw@busy"], timeout=answer_within_s) == [{"kw@busy": {"ok": "pong"}}]
        slowest = max(slowest, time.monotonic() - begun)
        time.sleep(0.1)
    assert ledger.count("burn") == 1, "the message was taken over"
    begun = time.monotonic()
    worker.signal(signal.SIGTERM)
    worker.wait(within_s=GRACE_S + STOP_MARGIN_S)

    print(f"{pool}: slowest answer {1000 * slowest:.0f} ms, stopped after {time.monotonic() - begun:.1f} s")
    assert slowest < answer_within_s


# -- pools that follow their load


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("pool", REPLACING)
def test_autoscaled_pool_stays_within_its_bounds_for_twenty_cycles(
    client: App, kw: RunKw, ledger: Ledger, pool: str, tmp_path: Path
) -> None:
    log = tmp_path / "kw.log"
    options = ["--autoscale=10,2", "--autoscale-keepalive=1", "-l", "info", "-f", str(log)]
    worker = kw("run", "-A", "pooled", "-P", pool, *options)
    largest = 0

    def ended(count: int) -> bool:
        nonlocal largest
        largest = max(largest, len(_executors(worker, pool)))
        return ledger.count("end") == count

    for cycle in range(1, 21):
        for n in range(200):
            client.send_task("nap", [f"{cycle}-{n}", 0.05])
        eventually(lambda cycle=cycle: ended(200 * cycle), within_s=30)
        eventually(lambda cycle=cycle: log.read_text().count(" to 2 slots: ") >= cycle, within_s=15)

    assert largest <= (10 if pool == "prefork" else 1)
    assert " to 10 slots: " in log.read_text()
    assert ledger.count("start") == ledger.count("end") == 4000, "none was interrupted"
    assert worker.stop() == 0


@pytest.mark.faults
@pytest.mark.timeout(120)
def test_autoscaled_pool_is_small_again_after_a_minute_without_work(client: App, kw: RunKw, ledger: Ledger) -> None:
    worker = kw("run", "-A", "pooled", "--autoscale=10,2")
    for n in range(200):
        client.send_task("nap", [str(n), 0.1])
    eventually(lambda: len(_executors(worker, "prefork")) == 10, within_s=20)
    eventually(lambda: ledger.count("end") == 200, within_s=30)

    eventually(lambda: len(_executors(worker, "prefork")) == 2, within_s=60)


# -- executors that are replaced all the time


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("pool", REPLACING)
def test_ten_thousand_tasks_on_executors_of_a_hundred_each(client: App, kw: RunKw, ledger: Ledger, pool: str) -> None:
    for n in range(10_000):
        client.send_task("nap", [n, 0])
    worker = kw("run", "-A", "pooled", "-P", pool, "-c", "2", "--max-tasks-per-child", "100")

    eventually(lambda: time.sleep(0.2) or ledger.count("end") >= 10_000, within_s=400)

    assert worker.stop() == 0
    entries = ledger.entries("end")
    assert sorted(entry["id"] for entry in entries) == list(range(10_000))
    assert max(Counter(entry["pid"] for entry in entries).values()) <= 100


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("pool", REPLACING)
def test_memory_is_bounded_over_ten_thousand_tasks_that_leak(client: App, kw: RunKw, ledger: Ledger, pool: str) -> None:
    for n in range(10_000):
        client.send_task("leak", [n])
    worker = kw("run", "-A", "pooled", "-P", pool, "-c", "2", "--max-memory-per-child", "150000")

    eventually(lambda: time.sleep(0.2) or ledger.count("end") >= 10_000, within_s=400)

    assert worker.stop() == 0
    entries = ledger.entries("end")
    largest = max(entry["rss"] for entry in entries)
    print(f"{pool}: {len({entry['pid'] for entry in entries})} executors, largest {largest} KiB")
    assert sorted(entry["id"] for entry in entries) == list(range(10_000))
    assert largest < 450_000
