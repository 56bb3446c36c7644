"""What only a pool of greenlets does, or needs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_app import App
from kernel_worker.testing import WorkerProcess
from kernel_worker.wire import Frame
from tests.core.executor_process import ExecutorProcess

RUNTIME = "kernel_pool_green.on_gevent:GeventRuntime"
TASKS = """
import asyncio
import threading

from kernel_app import App, SoftTimeLimitExceeded

app = App("green", broker_url={url!r}, result_backend={url!r})


@app.task(name="nap")
async def nap(seconds):
    await asyncio.sleep(seconds)
    return seconds


@app.task(name="caught")
async def caught():
    try:
        await asyncio.sleep(20)
    except SoftTimeLimitExceeded:
        await asyncio.sleep(0)
        return "caught"


@app.task(name="own loop")
def own_loop():
    return asyncio.run(asyncio.sleep(0.01, "ran"))


@app.task(name="is patched")
def is_patched():
    return threading.Event.__module__, type(threading.Lock()).__module__
"""


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    """The sender's end of a worker with twenty greenlets."""
    url = f"sqlite:///{tmp_path}/kw.db"
    (tmp_path / "green_tasks.py").write_text(TASKS.format(url=url))
    worker = WorkerProcess(["run", "-A", "green_tasks:app", "-P", "gevent", "-c", "20"], cwd=tmp_path)
    app = App("green", broker_url=url, result_backend=url)
    try:
        worker.wait_until_ready()
        yield app
    finally:
        app.close()
        worker.kill()


def test_coroutines_of_many_tasks_wait_at_once(app: App) -> None:
    began = time.monotonic()
    naps = [app.send_task("nap", (1.0,)) for _ in range(20)]

    assert [nap.get(timeout=15) for nap in naps] == [1.0] * 20
    assert time.monotonic() - began < 10


def test_a_task_may_run_a_loop_of_its_own_beside_coroutines(app: App) -> None:
    nap = app.send_task("nap", (1.5,))

    assert app.send_task("own loop").get(timeout=15) == "ran"
    assert nap.get(timeout=15) == 1.5


def test_a_soft_limit_is_raised_where_the_coroutine_waits(app: App) -> None:
    sent = app.send_task("caught", soft_time_limit=0.3)

    assert sent.get(timeout=15) == "caught"


def test_tasks_see_the_patched_library(app: App) -> None:
    assert app.send_task("is patched").get(timeout=15)[1].startswith("gevent")


def test_a_missing_library_is_told_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gevent.py").write_text("raise ImportError('broken here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    executor = ExecutorProcess(slots=4)
    try:
        with pytest.raises(AssertionError, match="it ended with 1"):
            executor.start(runtime=RUNTIME)
        failure = json.loads(executor.frame(Frame.FAILED))
    finally:
        executor.close()

    assert failure["kind"] == "usage"
    assert failure["text"] == "pool 'gevent' needs gevent: pip install kernel-pool-gevent (broken here)"
