"""Nothing left to open or to start: the worker waits for it, and goes on when it is there again."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw
from tests.faults.application import MODULE, OPTIONS, client, name, started


def open_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process are set on Linux only")
def test_worker_without_free_descriptors_goes_on_when_there_are_some_again(
    redis_url: str, folder: Path, kw: RunKw, ledger: Ledger
) -> None:
    """Neither the kernel process nor what starts executors can open anything, and an executor has to be replaced."""
    worker = kw(*OPTIONS, "-b", redis_url, "--result-backend", redis_url, "-c", "1")
    key = name()
    with client(redis_url) as app:
        sent = app.send_task(f"{MODULE}.hold", [key])
        executor = started(ledger, key)
        starting = sorted(worker.family() - {executor})
        limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in starting}
        for pid, (_, hard) in limits.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_descriptors(pid), hard))
        os.kill(executor, signal.SIGKILL)
        worker.wait_for_output("Too many open files", within_s=15)
        assert worker.exit_code is None
        for pid, limit in limits.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)

        started(ledger, key, times=2)
        (folder / "release-all").touch()
        assert sent.get(timeout=15) == key
    assert worker.stop() == 0
    eventually(lambda: not worker.family(), within_s=2)
