"""The clock of a worker's machine is set: leases and limits do not notice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kernel_worker.testing import Ledger
from tests.conftest import RunKw
from tests.faults.application import LEASE_S, MODULE, OPTIONS, client, name, started

SHIFT = """
import time

_real = time.time


def _shifted():
    with open("clock") as file:
        return _real() + float(file.read() or 0)


time.time = _shifted
"""
HOUR_S = 3600.0


@pytest.mark.parametrize("step", ["forward", pytest.param("back", marks=pytest.mark.faults)])
def test_clock_that_is_set_takes_no_lease_and_ends_no_task(
    url: str, folder: Path, kw: RunKw, ledger: Ledger, step: str
) -> None:
    """In all Python processes of one worker, while another one with the right clock waits for what is left to it."""
    (folder / "sitecustomize.py").write_text(SHIFT)
    clock = folder / "clock"
    clock.write_text("0")
    options = (*OPTIONS, "-b", url, "--result-backend", url, "-c", "1")
    shifted = kw(*options, "--time-limit", "600", env={"PYTHONPATH": str(folder)})
    key = name()
    with client(url) as app:
        sent = app.send_task(f"{MODULE}.hold", [key])
        started(ledger, key)
        other = kw(*options)

        (folder / "clock.new").write_text(str(HOUR_S if step == "forward" else -HOUR_S))
        (folder / "clock.new").rename(clock)
        time.sleep(2 * LEASE_S)  # the fault's duration: what would lose its lease has lost it by then
        assert app.send_task(f"{MODULE}.echo", ["meanwhile"]).get(timeout=20) == "meanwhile"
        (folder / f"release-{key}").touch()

        assert sent.get(timeout=20) == key
        assert other.stop() == 0
        assert app.send_task(f"{MODULE}.echo", ["by the shifted one"]).get(timeout=20) == "by the shifted one"
    assert shifted.stop() == 0
    assert ledger.count("start", id=key) == ledger.count("end", id=key) == 1
    assert "Traceback" not in shifted.output
