"""A worker that was paused for longer than its lease wakes up: what others hold by then it neither ends nor gives back."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw
from tests.faults.application import LEASE_S, MODULE, OPTIONS, client, name

TASK_S = 5.0


@pytest.mark.parametrize("pool", ["prefork", pytest.param("solo", marks=pytest.mark.faults)])
def test_paused_holder_settles_nothing_that_another_holds(
    url: str, folder: Path, kw: RunKw, ledger: Ledger, pool: str
) -> None:
    """The paused one's run ends while the second one runs; then the second one is killed. Had the first one's
    acknowledgement counted, there would be nothing left for the third."""
    options = (*OPTIONS, "-b", url, "--result-backend", url, "-P", pool, *(("-c", "1") if pool == "prefork" else ()))
    key = name()

    def starts(count: int) -> None:
        eventually(
            lambda: ledger.count("start", id=key) == count, within_s=LEASE_S + TASK_S + 10, message=f"start {count}"
        )

    paused = kw(*options)
    with client(url) as app:
        app.send_task(f"{MODULE}.work", [key, TASK_S])
    starts(1)
    paused.signal_group(signal.SIGSTOP)
    second = kw(*options)
    starts(2)
    paused.signal_group(signal.SIGCONT)
    paused.wait_for_output("went to other workers", within_s=10)
    assert paused.stop() == 0
    second.kill()
    third = kw(*options)
    starts(3)
    eventually(lambda: any(entry["at"] for entry in ledger.entries("end", id=key)), within_s=20)

    assert third.stop() == 0
    assert ledger.count("start", id=key) == 3
