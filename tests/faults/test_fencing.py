"""A worker that was paused for longer than its lease wakes up: what others hold by then it neither ends nor gives back."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw
from tests.faults.application import MODULE, OPTIONS, client, name, started
from tests.faults.test_lease_lost import go_on, stand_still


@pytest.mark.parametrize("pool", ["prefork", pytest.param("solo", marks=pytest.mark.faults)])
def test_paused_holder_settles_nothing_that_another_holds(
    url: str, folder: Path, kw: RunKw, ledger: Ledger, pool: str
) -> None:
    """The paused one's run ends while the second one runs; then the second one is killed. Had the first one's
    acknowledgement counted, there would be nothing left for the third."""
    options = (*OPTIONS, "-b", url, "--result-backend", url, "-P", pool, *(("-c", "1") if pool == "prefork" else ()))
    key = name()
    paused = kw(*options, "-n", "first")
    with client(url) as app:
        app.send_task(f"{MODULE}.sign", [key], ignore_result=True)
    started(ledger, key)
    stand_still(paused, True, folder / "kw.db")
    second = kw(*options, "-n", "second")
    started(ledger, key, times=2)
    go_on(paused, True)
    paused.wait_for_output("went to other workers", within_s=10)
    (folder / "release-kw@first").touch()
    assert paused.stop() == 0
    second.kill()
    third = kw(*options, "-n", "third")
    started(ledger, key, times=3)
    (folder / "release-kw@third").touch()
    eventually(lambda: ledger.count("end", node="kw@third") == 1, within_s=20)

    assert third.stop() == 0
    assert ledger.count("start", id=key) == 3
