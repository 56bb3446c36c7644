"""`python -m benchmarks`: run the scenarios, interleaved over the systems, and print one table."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from . import pools, scenarios
from .redis_server import redis_server
from .scenarios import Bench, Scenario, start
from .systems import CELERY, CELERY_LEAN, CONCURRENCY, KW, System
from .workers import WorkerFailed

BUDGET_S = 540.0
"""After the first round a measurement is repeated only if it will end within this time from the start."""
QUIET = 15.0
"""Percent of the machine that others may use when a measurement starts."""
QUIET_WITHIN_S = 5.0

SCENARIOS = (*scenarios.SCENARIOS, *pools.SCENARIOS)

Values = dict[System, list[float]]


def wait_quiet() -> float:
    """Give other processes a moment to finish; percent of the machine in use when the wait ended."""
    deadline = time.monotonic() + QUIET_WITHIN_S
    while (busy := psutil.cpu_percent(0.25)) > QUIET and time.monotonic() < deadline:
        pass
    return busy


class Session:
    """All measurements of one run of the harness."""

    def __init__(self, bench: Bench, scenarios: list[Scenario]) -> None:
        self._bench = bench
        self._deadline = time.monotonic() + BUDGET_S
        self._took: dict[tuple[Scenario, System], float] = {}
        self.values: dict[Scenario, Values] = {one: {system: [] for system in one.systems} for one in scenarios}
        self.busiest = 0.0  # percent of the machine that others used before a measurement
        self.is_complete = True

    def warm_up(self) -> None:
        """Start every system once, unmeasured: bytecode is compiled, files are in the page cache."""
        for system in dict.fromkeys(system for scenario in self.values for system in scenario.systems):
            try:
                start(self._bench, system)
            except (WorkerFailed, RuntimeError) as error:
                print(f"  {system.name} does not start: {error}", file=sys.stderr)

    def round(self, turn: int) -> None:
        """Measure everything once; every other round takes the systems in reverse order."""
        for scenario in self.values:
            if scenario.runs is not None and turn >= scenario.runs:
                continue
            for system in scenario.systems[:: -1 if turn % 2 else 1]:
                if time.monotonic() + self._took.get((scenario, system), 0.0) < self._deadline or turn == 0:
                    self._measure(scenario, system)

    def _measure(self, scenario: Scenario, system: System) -> None:
        self.busiest = max(self.busiest, wait_quiet())
        began = time.monotonic()
        try:
            value = scenario.measure(self._bench, system)
        except (WorkerFailed, RuntimeError, subprocess.TimeoutExpired) as error:
            self.is_complete = False
            print(f"  {scenario.label}: {system.name}: {error}", file=sys.stderr, flush=True)
            return
        finally:
            self._took[scenario, system] = time.monotonic() - began
        self.values[scenario][system].append(value)
        print(f"  {scenario.label}: {system.name}: {number(value)} {scenario.unit}", file=sys.stderr, flush=True)


def number(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(values: list[float] | None) -> str:
    """Median, with the range when there were several runs."""
    if not values:
        return "–"
    if len(values) == 1:
        return number(values[0])
    return f"{number(statistics.median(values))} ({number(min(values))}–{number(max(values))})"


def ratio(scenario: Scenario, values: Values, peer: System) -> str:
    """How many times better kw is, by the medians."""
    if not values.get(KW) or not values.get(peer):
        return "–"
    ours, theirs = statistics.median(values[KW]), statistics.median(values[peer])
    return f"{ours / theirs if scenario.more_is_better else theirs / ours:.1f} ×"


def row(scenario: Scenario, values: Values) -> str:
    """One line of the markdown table."""
    cells = [f"{scenario.label} [{scenario.unit}]"]
    cells += [cell(values.get(system)) for system in (KW, CELERY, CELERY_LEAN)]
    cells += [ratio(scenario, values, peer) for peer in (CELERY, CELERY_LEAN)]
    return f"| {' | '.join(cells)} |"


def surroundings() -> str:
    """Machine and versions, for whoever reads the table later."""
    redis_version = subprocess.run(["redis-server", "--version"], capture_output=True, text=True).stdout.split()
    server = next((word[2:] for word in redis_version if word.startswith("v=")), "unknown")
    names = ("kernel-worker-core", "celery", "kombu", "redis", "hiredis")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    python = platform.python_version()
    return f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}, Python {python}, redis-server {server}, {versions}"


def main() -> None:
    """Command line."""
    groups = list(dict.fromkeys(scenario.group for scenario in SCENARIOS))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="A,B", help=f"of: {', '.join(groups)}")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="measurements per cell [3]")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else groups
    if unknown := [name for name in chosen if name not in groups]:
        parser.error(f"no scenario named {', '.join(unknown)} (there are {', '.join(groups)})")
    if not shutil.which("redis-server"):
        parser.error("redis-server is not on PATH")
    with tempfile.TemporaryDirectory(prefix="kw-bench-") as folder, redis_server(Path(folder)) as url:
        bench = Bench(Path(folder), url)
        session = Session(bench, [one for one in SCENARIOS if one.group in chosen])
        with bench.servers:
            session.warm_up()
            for turn in range(arguments.runs):
                session.round(turn)
    report(session)


def report(session: Session) -> None:
    """Print the table; exit code 1 when something is missing in it."""
    titles = [f"concurrency {CONCURRENCY}", KW.name, CELERY.name, CELERY_LEAN.name, "kw : Celery", "kw : leanest"]
    print(f"\n| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    print("\n".join(row(scenario, values) for scenario, values in session.values.items()))
    print(f"\nMedian (min–max). {surroundings()}.")
    if session.busiest > QUIET:
        busiest = f"up to {session.busiest:.0f} % before a measurement"
        print(f"The machine was in use by others ({busiest}): read ratios rather than rates.")
    if not session.is_complete:
        sys.exit("something could not be measured, see above")


if __name__ == "__main__":
    main()
