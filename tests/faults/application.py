"""The application of the fault tests, written into a test's folder: every run is noted in the ledger there."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernel_app import App
from kernel_worker.testing import Ledger, eventually

MODULE = "faulty"
LEASE_S = 2.0
OPTIONS = ("run", "-A", MODULE, "--lease", f"{LEASE_S:g}", "-l", "info")

TEXT = '''
import ctypes
import os
import signal
import time

from kernel_app import App
from kernel_worker.testing.ledger import Ledger

app = App("faulty")
ledger = Ledger("ledger")


@app.task(bind=True, ignore_result=True)
def work(self, key, seconds):
    again = self.request.delivery_info["redelivered"]
    ledger.note("start", id=key, node=self.request.hostname, again=again)
    time.sleep(seconds)
    ledger.note("end", id=key)


@app.task(ignore_result=True)
def nothing():
    pass


@app.task
def echo(value):
    ledger.note("echo", id=value)
    return value


@app.task
def poison(key):
    """Takes everything in its process group with it, as the system does with a container that has no memory left."""
    ledger.note("start", id=key)
    os.killpg(os.getpgrp(), signal.SIGKILL)


@app.task
def alternate(key, deeds):
    """At its first start it does the first of these deeds, and so on: W ends the whole worker, E the executor."""
    ledger.note("start", id=key)
    deed = deeds[min(ledger.count("start", id=key), len(deeds)) - 1]
    os.kill(0 if deed == "W" else os.getpid(), signal.SIGKILL)


@app.task
def end_process(key, how):
    """Ends the process it runs in. The system's OOM killer does it with SIGKILL."""
    ledger.note("start", id=key)
    if how == "segfault":
        ctypes.string_at(0)
    elif how.startswith("exit"):
        os._exit(int(how.split()[1]))
    else:
        os.kill(os.getpid(), getattr(signal, how))


@app.task
def exhaust(key):
    ledger.note("start", id=key)
    return len(bytearray(1 << 60))


@app.task(bind=True)
def hold(self, key):
    """Runs until the test releases it."""
    ledger.note("start", id=key, node=self.request.hostname, parent=os.getppid())
    while not (os.path.exists("release-" + key) or os.path.exists("release-all")):
        time.sleep(0.01)
    ledger.note("end", id=key)
    return key


@app.task(bind=True)
def sign(self, key):
    """As `hold`, for one worker: returns its name."""
    ledger.note("start", id=key, node=self.request.hostname)
    while not os.path.exists("release-" + self.request.hostname):
        time.sleep(0.01)
    ledger.note("end", id=key, node=self.request.hostname)
    return self.request.hostname


@app.task(bind=True)
def stubborn(self, key):
    """As `hold`, and ignores what is raised in it."""
    ledger.note("start", id=key)
    while not os.path.exists("release-" + key):
        try:
            time.sleep(0.05)
        except BaseException:
            pass
    ledger.note("end", id=key)
'''


def write_app(folder: Path) -> None:
    """Put the module into `folder`; workers that are started there find it."""
    (folder / f"{MODULE}.py").write_text(TEXT)


@contextmanager
def client(broker: str, results: str | None = None) -> Iterator[App]:
    """What sends the tasks, in the test's own process. Results lie with the broker unless told otherwise."""
    app = App("client", broker_url=broker, result_backend=results or broker)
    try:
        yield app
    finally:
        app.close()


def started(ledger: Ledger, key: str, *, times: int = 1, within_s: float = 20.0) -> int:
    """Wait until a task has started so many times; the process id of the last start."""

    def starts() -> list[int]:
        pids = [entry["pid"] for entry in ledger.entries("start", id=key)]
        return pids if len(pids) >= times else []

    return eventually(starts, within_s=within_s, message=f"start {times} of {key}")[-1]


def name() -> str:
    """A key that no other task has."""
    return uuid.uuid4().hex[:8]
