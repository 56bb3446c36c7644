"""Executors that are exec'ed: real processes, kept at their number by a real supervisor."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_worker.drivers import Layout
from kernel_worker.spawn import ExecSpawner, exit_reason
from kernel_worker.testing import Ledger

from .live_pool import LivePool, call


@pytest.fixture
def pool() -> Iterator[LivePool]:
    pool = LivePool(ExecSpawner)
    yield pool
    pool.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def test_the_application_is_loaded_by_the_first_executor_which_then_serves(pool: LivePool) -> None:
    pool.start(1)
    pool.run(call("toy.noop", "a"))

    assert pool.app.name == "toy"
    assert pool.wait_for_verdicts(1) == {"a": "ack"}


def test_a_killed_executor_is_replaced_and_its_task_counted_as_lost(
    pool: LivePool, ledger: Ledger, tmp_path: Path
) -> None:
    pool.start(1)
    pool.run(call("toy.noop", "warm"))
    pool.wait_for_verdicts(1)
    gate = tmp_path / "gate"
    pool.run(call("toy.hold", "a", str(ledger.path), str(gate)))
    pool.until(lambda: ledger.count("start"))

    os.kill(pool.pids[0], signal.SIGKILL)
    pool.until(lambda: len(pool.settlements) == 2)

    assert [(each.verdict.value, each.count) for each in pool.settlements[1:]] == [("requeue", True)]
    pool.until(lambda: pool.supervisor.up_count == 1)


def test_exec_of_an_application_that_fails_is_a_failure_of_the_worker(pool: LivePool) -> None:
    pool.begin(app="tests.core.toy_app:broken")

    pool.until(lambda: pool.supervisor.failure)

    assert "setting 'x' is wrong" in str(pool.supervisor.failure)


def test_stop_ends_what_hangs_in_its_import(pool: LivePool, tmp_path: Path) -> None:
    (tmp_path / "slow_app.py").write_text("import time\ntime.sleep(60)\n")
    pool.begin(app="slow_app", workdir=str(tmp_path))
    handle = next(iter(pool.supervisor.executors.values()))
    pool.until(lambda: handle.pid)

    begun = time.monotonic()
    pool.supervisor.stop(begun + 5.0)

    assert time.monotonic() - begun < 3.0
    with pytest.raises(ProcessLookupError):
        os.kill(handle.pid, 0)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exit 0"),
        (7, "exit 7"),
        (-9, "signal SIGKILL"),
        (-11, "signal SIGSEGV"),
        (-64, "signal SIGRTMAX"),
        (-99, "signal 99"),
    ],
)
def test_an_exit_status_in_words(status: int, words: str) -> None:
    assert exit_reason(status) == words


def test_a_pool_of_real_processes_leaves_none_behind() -> None:
    pool = LivePool(ExecSpawner)
    pool.start(2)
    pids = pool.pids

    pool.supervisor.resize(Layout(1, 1))
    pool.until(lambda: len(pool.supervisor.executors) == 1)
    pool.close()

    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
