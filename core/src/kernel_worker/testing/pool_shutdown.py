"""Pool contract: warm and cold shutdown, by signals to the worker and to its whole process group."""

from __future__ import annotations

import signal
import time
from types import ModuleType

import pytest

from .ledger import Ledger
from .pool_app import Release
from .pool_base import PoolSuite, StartWorker, outcome, running
from .processes import WorkerProcess
from .waiting import eventually

COLD_S = 12.0  # a cold shutdown kills what does not listen after 3 seconds; machines that run tests are busy
NO_SECOND_CHANCE = {"KW_MAX_DELIVERIES": "1"}  # if an attempt were counted, the task would be lost at once


class ShutdownTests(PoolSuite, suite=True):
    """TERM, INT, QUIT."""

    def test_idle_worker_stops_at_once(self, worker: WorkerProcess) -> None:
        began = time.monotonic()

        assert worker.stop() == 0

        assert time.monotonic() - began < COLD_S, "far less than the time running tasks would get"
        assert "the grace period is over" not in worker.output, "executors end by themselves"
        assert not worker.family()

    @pytest.mark.parametrize("whole_group", [False, True], ids=["to the worker", "to the whole group"])
    def test_term_lets_running_tasks_finish_and_returns_the_waiting_ones(
        self, start_worker: StartWorker, app: ModuleType, ledger: Ledger, release: Release, whole_group: bool
    ) -> None:
        first = start_worker()
        held = [app.hold.delay(f"h{n}") for n in range(self.slots)]
        for n in range(self.slots):
            running(ledger, f"h{n}", worker=first)
        waiting = [app.mark.delay(f"m{n}") for n in range(10)]

        (first.signal_group if whole_group else first.signal)(signal.SIGTERM)
        first.wait_for_output("stops")
        release()
        code = first.wait()
        started_by_then = ledger.count("mark")
        left = first.family()
        start_worker()

        assert code == 0
        assert not left
        assert started_by_then == 0
        assert [outcome(result) for result in held] == [f"h{n}" for n in range(self.slots)]
        assert [outcome(result) for result in waiting] == [f"m{n}" for n in range(10)]
        assert ledger.count("start") == self.slots
        assert ledger.count("mark") == 10

    def test_worker_hears_term_while_a_task_holds_the_interpreter(
        self, start_worker: StartWorker, app: ModuleType, ledger: Ledger, release: Release
    ) -> None:
        """Waiting messages go back at once, so another worker runs them while the long task goes on."""
        first = start_worker(concurrency=1)
        burning = app.burn.delay("b", 25)
        running(ledger, "b")
        waiting = app.mark.delay("m")

        first.signal(signal.SIGTERM)
        first.wait_for_output("stops")
        start_worker(concurrency=1)
        result = outcome(waiting)
        still_burning = ledger.count("end", name="b") == 0
        release("b")

        assert result == "m"
        assert still_burning
        assert first.wait() == 0
        assert outcome(burning) == "b"
        assert ledger.count("start", name="b") == 1

    def test_worker_stops_in_time_though_a_task_holds_the_interpreter(
        self, start_worker: StartWorker, app: ModuleType, ledger: Ledger
    ) -> None:
        worker = start_worker("--grace", "0.5")
        app.burn.delay("b", 40)
        running(ledger, "b", worker=worker)

        began = time.monotonic()
        worker.signal(signal.SIGTERM)
        worker.wait(within_s=20)
        took = time.monotonic() - began

        assert took < 0.5 + COLD_S
        assert not worker.family()
        assert ledger.count("end") == 0

    def test_tasks_beyond_the_grace_period_are_put_back(
        self, start_worker: StartWorker, app: ModuleType, ledger: Ledger, release: Release
    ) -> None:
        first = start_worker("--grace", "1", env=NO_SECOND_CHANCE)
        sent = app.stubborn.delay("s")
        held = app.hold.delay("h") if self.slots > 1 else None
        running(ledger, "s")

        began = time.monotonic()
        first.signal(signal.SIGTERM)
        first.wait(within_s=1 + COLD_S)
        took = time.monotonic() - began
        left = first.family()
        start_worker()
        running(ledger, "s", starts=2)
        release()

        assert took > 0.9
        assert not left
        assert held is None or outcome(held) == "h"
        assert sent.state != "FAILURE"

    @pytest.mark.parametrize("signals", [["SIGQUIT"], ["SIGINT", "SIGINT"]], ids=["QUIT", "INT twice"])
    def test_cold_shutdown_puts_running_tasks_back(
        self, start_worker: StartWorker, app: ModuleType, ledger: Ledger, release: Release, signals: list[str]
    ) -> None:
        first = start_worker("--grace", "30", env=NO_SECOND_CHANCE)
        sent = app.hold.delay("h")
        running(ledger, "h")

        began = time.monotonic()
        for name in signals:
            first.signal(signal.Signals[name])
            first.wait_for_output("stops")
        first.wait(within_s=COLD_S)
        took = time.monotonic() - began
        left = first.family()
        start_worker()
        running(ledger, "h", starts=2)
        release()

        assert took < COLD_S
        assert not left
        assert outcome(sent) == "h"

    def test_int_once_is_a_warm_shutdown(
        self, start_worker: StartWorker, app: ModuleType, ledger: Ledger, release: Release
    ) -> None:
        first = start_worker()
        sent = app.hold.delay("h")
        running(ledger, "h")

        first.signal_group(signal.SIGINT)  # as Ctrl-C at a terminal does
        first.wait_for_output("stops")
        release()

        assert first.wait() in (0, 1)
        assert outcome(sent) == "h"
        assert ledger.count("start") == 1

    def test_storm_of_signals_is_one_shutdown(
        self, worker: WorkerProcess, app: ModuleType, ledger: Ledger, release: Release
    ) -> None:
        sent = app.hold.delay("h")
        running(ledger, "h")

        for _ in range(50):
            worker.signal(signal.SIGTERM)
            worker.signal_group(signal.SIGTERM)
        worker.wait_for_output("stops")
        release()

        assert worker.wait() == 0
        assert outcome(sent) == "h"
        assert "Traceback" not in worker.output
        eventually(lambda: not worker.family(), message="the end of all processes")
