"""Tasks in the worker's own main thread, and the loop beside them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel_pool_solo import SoloPool
from kernel_worker.drivers import Layout
from kernel_worker.testing import Ledger, eventually
from kernel_worker.types import PoolCapability
from tests.core.worker_run import WorkerRun

StartWorker = Callable[..., WorkerRun]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartWorker]:
    """Start a solo worker; killed after the test, if need be."""
    runs: list[WorkerRun] = []

    def run(*messages: tuple[Any, ...], **options: Any) -> WorkerRun:
        runs.append(WorkerRun(tmp_path, *messages, pool="solo", **options))
        return runs[-1]

    yield run
    for each in runs:
        each.kill()
        print(each.output)


@pytest.fixture
def trace(tmp_path: Path) -> Ledger:
    """What tasks note."""
    return Ledger(tmp_path / "trace")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Tasks that wait for it go on when it is there."""
    return tmp_path / "gate"


def test_the_layout_is_the_main_thread_whatever_is_asked_for() -> None:
    assert SoloPool(SoloPool.Options()).layout(8) == Layout(processes=1, slots=1, inline=True)


def test_what_needs_a_process_to_be_replaced_is_not_declared() -> None:
    assert SoloPool.capabilities == {PoolCapability.SOFT_LIMIT, PoolCapability.CANCEL}


def test_tasks_run_in_the_main_thread_of_the_worker_itself(start: StartWorker, trace: Ledger) -> None:
    worker = start(("toy.where", "a", str(trace.path)))
    worker.wait_for("ack")
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert [(entry["pid"], entry["main_thread"]) for entry in trace.entries("where")] == [(worker.process.pid, True)]


def test_leases_are_renewed_while_a_task_holds_the_interpreter(start: StartWorker, trace: Ledger, gate: Path) -> None:
    worker = start(("toy.compute", "a", str(trace.path), str(gate)), lease="1")
    eventually(lambda: worker.ledger.count("renew", ids=["a"]) >= 2, within_s=15, message=lambda: worker.output)
    gate.touch()
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert worker.settled() == {"a": "ack"}


def test_a_soft_limit_is_raised_in_the_task_and_the_worker_goes_on(
    start: StartWorker, trace: Ledger, gate: Path
) -> None:
    worker = start(("toy.hold", "a", str(trace.path), str(gate)), ("toy.noop", "b"), soft_time_limit="0.1")
    worker.wait_for("ack", 2)
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert trace.count("end") == 0
    assert worker.settled() == {"a": "ack", "b": "ack"}


def test_a_messages_hard_limit_is_raised_again_and_again(start: StartWorker, trace: Ledger, gate: Path) -> None:
    headers = json.dumps({"timelimit": [1.0, None]})
    worker = start(("toy.stubborn", "a", str(trace.path), str(gate)), env={"TOY_HEADERS": headers})
    eventually(lambda: trace.count("caught", error="HardLimit") >= 2, within_s=15)
    gate.touch()
    worker.wait_for("ack")
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0


def test_a_task_that_calls_exit_fails_and_the_worker_goes_on(start: StartWorker, trace: Ledger) -> None:
    worker = start(("toy.escape", "a"), ("toy.noop", "b"))
    worker.wait_for("ack", 2)
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert worker.settled() == {"a": "ack", "b": "ack"}


def test_an_import_that_hangs_does_not_keep_the_worker_from_ending(start: StartWorker, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    (tmp_path / "slow_app.py").write_text(f"import time\nopen({str(begun)!r}, 'w')\ntime.sleep(60)\n")
    worker = start(app="slow_app", env={"PYTHONPATH": f"{Path(__file__).parents[3]}:{tmp_path}"})
    eventually(begun.exists, within_s=15)

    worker.signal(signal.SIGTERM)

    assert worker.wait(8.0) == 0


def test_unreported_outcomes_at_the_end_do_not_end_the_process_in_the_middle(
    start: StartWorker, tmp_path: Path, trace: Ledger
) -> None:
    """The executor leaves the process when its kernel is gone; here both are one, and the end is the kernel's."""
    results, pidfile = tmp_path / "results", tmp_path / "kw.pid"
    Path(f"{results}.away").touch()
    worker = start(("toy.add", "a", 1, 1), result_backend=str(results), pidfile=pidfile, grace="0.3")
    eventually(lambda: os.path.exists(f"{results}.attempts"), within_s=15)

    worker.signal(signal.SIGTERM)
    worker.wait()

    assert worker.settled() == {"a": "requeue"}
    assert worker.ledger.count("stopped") == 1
    assert not pidfile.exists()
