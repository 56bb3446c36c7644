"""Pool contract: how many tasks run at once, hard limits, and processes that go on or are replaced."""

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
from .pool_base import DONE_S, PoolSuite, StartWorker, error_name, outcome, running
from .processes import WorkerProcess
from .waiting import eventually


class SlotTests(PoolSuite, suite=True):
    """Slots and the processes behind them; each test has a worker of its own."""

    # ------------------------------------------------------------------ at once

    @requires(PoolCapability.SEVERAL_SLOTS)
    def test_as_many_tasks_run_at_once_as_there_are_slots(
        self, start_worker: StartWorker, app: ModuleType, ledger: Ledger, release: Release
    ) -> None:
        worker = start_worker(concurrency=3)
        sent = [app.hold.delay(f"h{n}") for n in range(5)]

        eventually(lambda: ledger.count("start") >= 3, within_s=DONE_S, message=lambda: f"3 starts: {worker.output}")
        at_once = ledger.count("start")
        release()
        results = [outcome(result) for result in sent]

        assert at_once == 3
        assert results == [f"h{n}" for n in range(5)]
        assert _most_at_once(ledger) == 3

    def test_one_slot_runs_one_task_at_a_time(
        self, start_worker: StartWorker, app: ModuleType, ledger: Ledger, release: Release
    ) -> None:
        start_worker(concurrency=1)
        sent = [app.hold.delay(f"h{n}") for n in range(4)]
        running(ledger, "h0")

        release()
        for result in sent:
            outcome(result)

        assert _most_at_once(ledger) == 1
        assert [entry["name"] for entry in ledger.entries("start")] == ["h0", "h1", "h2", "h3"]

    @requires(PoolCapability.SEVERAL_SLOTS)
    def test_short_tasks_do_not_wait_behind_a_long_one(
        self, start_worker: StartWorker, app: ModuleType, ledger: Ledger, release: Release
    ) -> None:
        start_worker(concurrency=2)
        for n in range(30):  # short ones first: the worker learns to hand out many at once
            app.mark.delay(f"before{n}")
        eventually(lambda: ledger.count("mark") == 30, within_s=DONE_S)
        long = app.hold.delay("long")
        running(ledger, "long")

        sent = [app.echo.delay(n) for n in range(50)]
        results = [outcome(result) for result in sent]
        still_running = ledger.count("end", name="long") == 0
        release()

        assert results == [[[n], {}] for n in range(50)]
        assert still_running
        assert outcome(long) == "long"

    @requires(PoolCapability.HARD_LIMIT)
    def test_hard_limit_ends_a_task_that_ignores_everything(
        self, worker: WorkerProcess, app: ModuleType, ledger: Ledger
    ) -> None:
        began = time.monotonic()
        sent = app.stubborn.apply_async(("s",), soft_time_limit=0.3, time_limit=0.8)

        error = outcome(sent)
        took = time.monotonic() - began

        assert error_name(error) == "TimeLimitExceeded"
        assert took > 0.7
        assert outcome(app.echo.delay(1)) == [[1], {}]
        assert ledger.count("start", name="s") == 1, "a task that timed out is not run again"

    @requires(PoolCapability.HARD_LIMIT)
    def test_hard_limit_ends_a_task_that_holds_the_interpreter(self, worker: WorkerProcess, app: ModuleType) -> None:
        sent = app.burn.apply_async(("b", 20), time_limit=0.8)

        assert error_name(outcome(sent)) == "TimeLimitExceeded"
        assert outcome(app.echo.delay(1)) == [[1], {}]

    @requires(PoolCapability.HARD_LIMIT, PoolCapability.SEVERAL_SLOTS)
    def test_hard_limit_loses_no_task_that_ran_beside(
        self, worker: WorkerProcess, app: ModuleType, ledger: Ledger, release: Release
    ) -> None:
        beside = app.hold.delay("beside")
        running(ledger, "beside")
        sent = app.stubborn.apply_async(("s",), time_limit=0.8)

        error = outcome(sent)
        release()

        assert error_name(error) == "TimeLimitExceeded"
        assert outcome(beside) == "beside"
        if self.one_process_per_slot:
            assert ledger.count("start", name="beside") == 1

    @requires(PoolCapability.SOFT_LIMIT, PoolCapability.SEVERAL_SLOTS)
    def test_soft_limit_leaves_the_tasks_beside_alone(
        self, start_worker: StartWorker, app: ModuleType, ledger: Ledger, release: Release
    ) -> None:
        start_worker(concurrency=4)
        beside = [app.hold.delay(f"h{n}") for n in range(3)]
        for n in range(3):
            running(ledger, f"h{n}")
        sent = app.soft.apply_async((False,), soft_time_limit=0.3)

        error = outcome(sent)
        release()

        assert error_name(error) == "SoftTimeLimitExceeded"
        assert [outcome(result) for result in beside] == ["h0", "h1", "h2"]
        assert ledger.count("start") == 4

    @requires(PoolCapability.SEVERAL_SLOTS)
    def test_processes_and_slots_can_both_be_said(
        self, start_worker: StartWorker, app: ModuleType, ledger: Ledger, release: Release
    ) -> None:
        if self.one_process_per_slot:
            pytest.skip("the processes of this pool have one slot each")
        start_worker("-c", "2x2")
        sent = [app.hold.delay(f"h{n}") for n in range(4)]

        holders = {running(ledger, f"h{n}") for n in range(4)}
        release()

        assert len(holders) == 2
        assert [outcome(result) for result in sent] == ["h0", "h1", "h2", "h3"]

    # ------------------------------------------------------------------ processes that stay

    @requires(PoolCapability.SEVERAL_SLOTS)
    def test_exit_and_interrupt_in_tasks_leave_those_beside_alone(
        self, start_worker: StartWorker, app: ModuleType, ledger: Ledger, release: Release
    ) -> None:
        start_worker(concurrency=3)
        beside = app.hold.delay("beside")
        running(ledger, "beside")

        errors = [outcome(sent) for sent in (app.system_exit.delay(3), app.interrupt.delay())]
        after = outcome(app.echo.delay(1))
        release()

        assert [error_name(error) for error in errors] == ["SystemExit", "KeyboardInterrupt"]
        assert after == [[1], {}]
        assert outcome(beside) == "beside"
        assert ledger.count("start", name="beside") == 1

    @pytest.mark.parametrize("code", [0, 1], ids=["exit 0", "exit 1"])
    def test_system_exit_in_a_task_is_a_failure_and_the_process_survives(
        self, start_worker: StartWorker, app: ModuleType, code: int
    ) -> None:
        start_worker(concurrency=1)
        before = outcome(app.pid.delay())

        error = outcome(app.system_exit.delay(code))

        assert error_name(error) == "SystemExit"
        assert outcome(app.pid.delay()) == before

    def test_task_that_leaves_a_forked_child_disturbs_nothing(self, worker: WorkerProcess, app: ModuleType) -> None:
        child = outcome(app.fork_and_leave.delay(20))
        try:
            assert outcome(app.echo.delay(1)) == [[1], {}]
            assert worker.stop(within_s=15) == 0
        finally:
            os.kill(child, signal.SIGKILL)


def _most_at_once(ledger: Ledger) -> int:
    """The largest number of held tasks between their start and their end."""
    most = now = 0
    for entry in ledger.entries():
        now += {"start": 1, "end": -1}.get(entry["event"], 0)
        most = max(most, now)
    return most
