"""The applications of these tests, and stock Celery workers that run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from kernel_worker.testing import eventually

NATIVE = """
import time
from kernel_app import App
from kernel_worker.testing import Ledger
app = App("peer", broker_transport_options={options!r})
@app.task(name="peer.note")
def note(name, *, seconds=0):
    Ledger("ledger").note("start", id=name)
    time.sleep(seconds)
    Ledger("ledger").note("kw", id=name)
"""
STOCK = """
import celery
from kernel_worker.testing import Ledger
app = celery.Celery("peer", broker={url!r})
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True, broker_transport_options={options!r})
@app.task(name="peer.note")
def note(name, *, seconds=0):
    Ledger("ledger").note("celery", id=name)
"""


def write_native(folder: Path, options: Mapping[str, Any]) -> None:
    """The module `native`."""
    (folder / "native.py").write_text(NATIVE.format(options=dict(options)))


class CeleryPeer:
    """A Celery worker (solo) of the module `stock`, in a process of its own."""

    def __init__(self, folder: Path, url: str, options: Mapping[str, Any]) -> None:
        (folder / "stock.py").write_text(STOCK.format(url=url, options=dict(options)))
        self._log = folder / "celery.log"
        command = [sys.executable, "-m", "celery", "-A", "stock", "worker", "-P", "solo", "-l", "info"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--without-gossip", "--without-mingle", "--without-heartbeat"],
                cwd=folder,
                env={**os.environ, "AWS_DEFAULT_REGION": "eu-central-1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self) -> Self:
        """Wait for its `ready` line."""

        def is_ready() -> bool:
            assert self._process.poll() is None, f"the Celery worker ended:\n{self.output}"
            return " ready." in self.output

        eventually(is_ready, within_s=40, message=lambda: f"a Celery worker:\n{self.output}")
        return self

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """End it at once."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        print(f"--- Celery:\n{self.output}")
