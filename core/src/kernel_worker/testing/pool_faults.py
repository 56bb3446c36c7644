"""Pool contract: executors that are killed, end themselves, or lose their descriptors; a worker that is killed."""

from __future__ import annotations

import os
import signal
import time
from types import ModuleType

import pytest

from ..types import PoolCapability
from .contract import requires
from .ledger import Ledger
from .pool_app import Release
from .pool_base import DONE_S, LEASE_S, PoolSuite, StartWorker, error_name, outcome, running
from .processes import WorkerProcess
from .waiting import eventually

MAX_DELIVERIES = 3  # the kernel's default


class FaultTests(PoolSuite, suite=True):
    """What ends an executor, and what becomes of its tasks."""

    @requires(PoolCapability.REPLACE)
    def test_killed_executor_is_replaced_and_its_task_runs_again(
        self, start_worker: StartWorker, app: ModuleType, ledger: Ledger, release: Release
    ) -> None:
        worker = start_worker("--lease", "60", concurrency=1)  # the slot is refilled at once, not after the lease
        sent = app.hold.delay("h")
        victim = running(ledger, "h")

        os.kill(victim, signal.SIGKILL)
        replacement = running(ledger, "h", starts=2, worker=worker)
        release()

        assert outcome(sent) == "h"
        assert replacement != victim
        assert ledger.count("start", name="h") == 2

    @requires(PoolCapability.REPLACE)
    def test_killed_executor_leaves_the_other_tasks_alone(
        self, worker: WorkerProcess, app: ModuleType, ledger: Ledger, release: Release
    ) -> None:
        if not self.one_process_per_slot:
            pytest.skip("the slots of this pool share a process")
        sent = [app.hold.delay("victim"), app.hold.delay("other")]
        victim, other = running(ledger, "victim"), running(ledger, "other")

        os.kill(victim, signal.SIGKILL)
        running(ledger, "victim", starts=2, worker=worker)
        release()

        assert [outcome(result) for result in sent] == ["victim", "other"]
        assert [entry["pid"] for entry in ledger.entries("start", name="other")] == [other]

    @requires(PoolCapability.REPLACE, PoolCapability.SEVERAL_SLOTS)
    def test_all_that_killed_executors_ran_is_put_back_and_ends(
        self, start_worker: StartWorker, app: ModuleType, ledger: Ledger, release: Release
    ) -> None:
        worker = start_worker(concurrency=6)
        sent = {f"h{n}": app.hold.delay(f"h{n}") for n in range(6)}
        holders = {running(ledger, name, worker=worker) for name in sent}
        waiting = [app.echo.delay(n) for n in range(20)]

        for holder in holders:
            os.kill(holder, signal.SIGKILL)
        release()
        results = {name: outcome(result, within_s=30) for name, result in sent.items()}

        assert results == {name: name for name in sent}
        assert all(ledger.count("end", name=name) for name in sent)
        assert [outcome(result) for result in waiting] == [[[n], {}] for n in range(20)]

    @requires(PoolCapability.REPLACE)
    def test_killed_idle_executor_is_replaced(
        self, worker: WorkerProcess, app: ModuleType, ledger: Ledger, release: Release
    ) -> None:
        held = [app.hold.delay(f"h{n}") for n in range(self.slots)]  # when all run, every process is there
        before, *_ = [running(ledger, f"h{n}", worker=worker) for n in range(self.slots)]
        release()
        assert [outcome(result) for result in held] == [f"h{n}" for n in range(self.slots)]
        whole = len(worker.family())

        os.kill(before, signal.SIGKILL)
        eventually(
            lambda: before not in worker.family() and len(worker.family()) == whole,
            within_s=DONE_S,
            message=lambda: f"{whole} processes, there are {len(worker.family())}:\n{worker.output}",
        )

        assert outcome(app.echo.delay(1)) == [[1], {}]

    @requires(PoolCapability.REPLACE)
    def test_executors_killed_again_and_again_lose_no_task(
        self, worker: WorkerProcess, app: ModuleType, ledger: Ledger
    ) -> None:
        sent = {f"m{n:03}": app.mark.delay(f"m{n:03}") for n in range(200)}

        for n in range(5):
            holder = app.pid.delay()
            os.kill(outcome(holder), signal.SIGKILL)
            for extra in range(20):
                sent[f"x{n}-{extra}"] = app.mark.delay(f"x{n}-{extra}")
        results = {name: outcome(result, within_s=30) for name, result in sent.items()}

        assert results == {name: name for name in sent}
        assert {entry["name"] for entry in ledger.entries("mark")} == set(sent)

    @requires(PoolCapability.REPLACE)
    @pytest.mark.parametrize("task", ["exit 0", "exit 1", "SIGKILL"])
    def test_task_that_ends_its_process_starts_a_few_times_and_is_lost(
        self, worker: WorkerProcess, app: ModuleType, ledger: Ledger, task: str
    ) -> None:
        sent = app.kill_me.delay() if task == "SIGKILL" else app.exit_now.delay(int(task[-1]))

        error = outcome(sent, within_s=30)

        assert error_name(error) == "WorkerLostError"
        assert 1 <= ledger.count("exit") <= MAX_DELIVERIES
        assert outcome(app.echo.delay(1)) == [[1], {}]

    @requires(PoolCapability.REPLACE)
    def test_neighbours_of_a_task_that_ends_its_process_all_succeed(
        self, start_worker: StartWorker, app: ModuleType
    ) -> None:
        start_worker(concurrency=1)
        before = [app.echo.delay(n) for n in range(40)]
        lost = app.exit_now.delay(1)
        after = [app.echo.delay(n) for n in range(40)]

        assert error_name(outcome(lost, within_s=30)) == "WorkerLostError"
        assert [outcome(result) for result in before + after] == [[[n], {}] for n in range(40)] * 2

    @requires(PoolCapability.REPLACE)
    def test_task_that_closes_every_descriptor_hurts_nobody_else(
        self, worker: WorkerProcess, app: ModuleType, ledger: Ledger
    ) -> None:
        app.close_descriptors.delay()
        eventually(lambda: ledger.count("closing") >= 1, within_s=DONE_S)

        sent = [app.echo.delay(n) for n in range(30)]

        assert [outcome(result, within_s=30) for result in sent] == [[[n], {}] for n in range(30)]
        assert worker.stop() == 0

    def test_nothing_survives_a_killed_worker(
        self, worker: WorkerProcess, app: ModuleType, ledger: Ledger, release: Release
    ) -> None:
        """Even while a task holds the interpreter."""
        app.burn.delay("busy", 20)
        running(ledger, "busy")

        worker.signal(signal.SIGKILL)
        worker.wait(within_s=5)

        eventually(lambda: not worker.family(), within_s=10, message=lambda: f"orphans: {worker.family()}")

    def test_tasks_of_a_killed_worker_run_elsewhere_after_the_lease(
        self, start_worker: StartWorker, app: ModuleType, ledger: Ledger, release: Release
    ) -> None:
        first = start_worker(concurrency=1)
        sent = [app.hold.delay("h"), *(app.mark.delay(f"m{n}") for n in range(5))]
        running(ledger, "h")
        start_worker()

        first.signal(signal.SIGKILL)
        died = time.monotonic()
        running(ledger, "h", starts=2)
        took = time.monotonic() - died
        release()

        assert [outcome(result) for result in sent] == ["h", "m0", "m1", "m2", "m3", "m4"]
        assert took < LEASE_S + 10.0  # machines that run tests are busy
