"""Worker processes under measurement: started in a session of their own, watched, stopped, weighed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from . import stamps
from .systems import System

ROOT = Path(__file__).resolve().parent.parent
STOP_WITHIN_S = 10.0


class WorkerFailed(Exception):
    """A worker ended or stood still before it was done; the message holds the end of its log."""


class Worker:
    """One running worker of a system."""

    def __init__(self, system: System, environment: dict[str, str], folder: Path) -> None:
        self._log = folder / "worker.log"
        self._stamps = Path(environment["BENCH_STAMPS"])
        self._stamps.write_bytes(b"")
        with self._log.open("wb") as log:
            self.began_ns = time.monotonic_ns()
            self.process = subprocess.Popen(
                system.command(),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_done(self, number: int, within_s: float) -> list[int]:
        """Wait for `number` finished tasks; their times.

        :raises WorkerFailed: not within `within_s` seconds, or the worker ended.
        """
        deadline = time.monotonic() + within_s
        while (done := stamps.count(self._stamps)) < number:
            if self.process.poll() is not None or time.monotonic() > deadline:
                end = self._log.read_text(errors="replace")[-2000:]
                raise WorkerFailed(f"{done} of {number} tasks done, exit code {self.process.poll()}\n{end}")
            time.sleep(0.1)  # rarely: looking takes processor time from what is measured
        return stamps.read(self._stamps)

    def pss_mb(self) -> float:
        """Memory of the worker's whole process tree: shared pages are counted once (Linux)."""
        root = psutil.Process(self.process.pid)
        total = sum(process.memory_full_info().pss for process in [root, *root.children(recursive=True)])
        return total / 2**20

    def stop(self) -> None:
        """TERM, and KILL for the whole session when that is not enough."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextmanager
def running(system: System, environment: dict[str, str], folder: Path) -> Iterator[Worker]:
    """A worker that is stopped when the block ends."""
    worker = Worker(system, environment, folder)
    try:
        yield worker
    finally:
        worker.stop()
