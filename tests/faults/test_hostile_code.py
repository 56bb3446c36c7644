"""What comes with a message or with the application and would run in the wrong process: pickles that run code, threads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw
from tests.faults.application import client

APPLICATION = """
import os
import threading

from kernel_app import App
from kernel_worker.testing.ledger import Ledger

app = App("hostile")
app.conf.accept_content = ["json", "pickle"]
ledger = Ledger("ledger")
awake = threading.Event()
threading.Thread(target=awake.wait, daemon=True, name="started on import").start()


@app.task
def look(value):
    ledger.note("ran", pid=os.getpid(), threads=[each.name for each in threading.enumerate()])
    return "ran"
"""


class Runs:
    """A pickle of it runs code wherever it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import os\nwith open('loaded', 'a') as file:\n    file.write(f'{os.getpid()}\\n')",)


def test_pickle_that_runs_code_is_loaded_in_the_executor_only(
    tmp_path: Path, kw: RunKw, redis_url: str, ledger: Ledger
) -> None:
    (tmp_path / "hostile.py").write_text(APPLICATION)
    worker = kw("run", "-A", "hostile", "-b", redis_url, "--result-backend", redis_url, "-c", "1")
    with client(redis_url) as app:
        assert app.send_task("hostile.look", [Runs()], serializer="pickle").get(timeout=20) == "ran"

    (ran,) = ledger.entries("ran")
    loaded = {int(line) for line in (tmp_path / "loaded").read_text().split()}
    assert loaded == {ran["pid"]}
    assert ran["pid"] not in (worker.pid, os.getpid())


def test_threads_that_importing_the_application_starts_are_told_and_keep_no_executor_from_working(
    tmp_path: Path, kw: RunKw, redis_url: str, ledger: Ledger
) -> None:
    """A fork copies the thread that forks and no other."""
    (tmp_path / "hostile.py").write_text(APPLICATION)
    worker = kw("run", "-A", "hostile", "-b", redis_url, "--result-backend", redis_url, "-c", "2")
    with client(redis_url) as app:
        sent = [app.send_task("hostile.look", [n]) for n in range(20)]
        assert [each.get(timeout=20) for each in sent] == ["ran"] * 20

    eventually(lambda: "importing the application started 1 threads" in worker.output, within_s=10)
    assert all("started on import" not in entry["threads"] for entry in ledger.entries("ran"))
    assert worker.stop() == 0
