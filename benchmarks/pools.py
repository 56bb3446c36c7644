"""The rows of the pools: each is a pool with its concurrency and what its tasks do, for both systems."""

from __future__ import annotations

import subprocess
import sys
import time

from . import stamps
from .scenarios import SETTLED_S, Bench, Scenario
from .systems import CELERY, CONCURRENCY, KW, System, on_pool
from .work import NAP_S
from .workers import ROOT, running

NAPS = 5_000
HASHES = 2_000
NOOPS = 10_000


def _rate(bench: Bench, system: System, number: int, work: str) -> float:
    bench.fill(number)
    with running(system, bench.environment(work=work), bench.folder) as worker:
        return stamps.middle_rate(worker.wait_done(number, within_s=30 + number / 300))


def naps(pool: str, slots: int, work: str = "nap", systems: tuple[System, ...] = (KW, CELERY)) -> Scenario:
    """Tasks that wait 100 ms, as many at once as there are slots."""
    label = f"{NAPS:,} sleeps of 100 ms, {pool} -c {slots} (ideal {slots / NAP_S:,.0f})"

    def measure(bench: Bench, system: System) -> float:
        return _rate(bench, on_pool(system, pool, slots), NAPS, work)

    return Scenario("pools", label, "tasks/s", measure, systems=systems)


def noops(pool: str, slots: int) -> Scenario:
    """Tasks that do nothing."""

    def measure(bench: Bench, system: System) -> float:
        bench.fill(NOOPS)
        with running(on_pool(system, pool, slots), bench.environment(), bench.folder) as worker:
            return stamps.middle_rate(worker.wait_done(NOOPS, within_s=60))

    return Scenario("pools", f"drain {NOOPS:,} no-ops, {pool} -c {slots}", "tasks/s", measure, systems=(KW, CELERY))


def hashing(bench: Bench, system: System) -> float:
    """Tasks that compute for 5 ms each."""
    return _rate(bench, system, HASHES, "hash")


def bare_hashing(bench: Bench, system: System) -> float:
    """The same in as many processes that do nothing else: what can be had on this machine."""
    code = f"""
from benchmarks import stamps, work
for _ in range({HASHES // CONCURRENCY}):
    work.digest()
    stamps.append()
"""
    record = bench.folder / "stamps"
    record.unlink(missing_ok=True)
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, env=bench.environment(), cwd=ROOT) for _ in range(CONCURRENCY)]
    codes = [process.wait() for process in processes]  # each ends by itself
    if any(codes):
        raise RuntimeError("a process that hashes failed")
    return stamps.middle_rate(stamps.read(record))


def memory(pool: str, slots: int) -> Scenario:
    """MB (PSS) of a worker that has run a thousand sleeping tasks."""

    def measure(bench: Bench, system: System) -> float:
        bench.fill(slots)
        with running(on_pool(system, pool, slots), bench.environment(work="nap"), bench.folder) as worker:
            worker.wait_done(slots, within_s=30)
            time.sleep(SETTLED_S)
            return worker.pss_mb()

    label = f"after {slots:,} sleeps at once, {pool} (PSS)"
    return Scenario("pools", label, "MB", measure, more_is_better=False, systems=(KW, CELERY), runs=1)


SCENARIOS = (
    naps("gevent", 1000),
    naps("eventlet", 1000),
    naps("asyncio", 1000, "async nap", (KW,)),
    naps("threads", 500),
    noops("gevent", 1000),
    Scenario("pools", "5 ms of hashing, prefork -c 2 (ideal 400)", "tasks/s", hashing, systems=(KW, CELERY)),
    Scenario("pools", "the same in two processes without any worker", "tasks/s", bare_hashing, systems=(KW,)),
    memory("gevent", 1000),
)
