"""`async def` tasks on a real worker: many at once, limits inside the coroutine, others in threads beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_app import App, SoftTimeLimitExceeded, TimeLimitExceeded
from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw

APP = """
import asyncio, contextvars, os, time
from kernel_app import App, SoftTimeLimitExceeded
from kernel_worker.testing import Ledger

app = App("toy", broker_url="sqlite:///kw.db", result_backend="sqlite:///kw.db")
ledger = Ledger("ledger")
place = contextvars.ContextVar("place", default="empty")

@app.task(name="nap")
async def nap(seconds):
    await asyncio.sleep(seconds)
    return seconds

met = []

@app.task(name="meet")
async def meet(count):
    met.append(count)
    while len(met) < count:
        await asyncio.sleep(0.05)

@app.task(name="begun")
async def begun():
    ledger.note("began")
    await asyncio.sleep(1)
    return "ended"

@app.task(name="place", bind=True)
async def own_place(self, n):
    before = place.get()
    place.set(str(n))
    await asyncio.sleep(0.05)
    return [before, place.get(), self.request.id]

@app.task(name="soft", soft_time_limit=0.3)
async def soft():
    try:
        await asyncio.sleep(30)
    except SoftTimeLimitExceeded:
        return "cleaned up"

@app.task(name="spin", soft_time_limit=0.3)
async def spin():
    while True:
        pass

@app.task(name="hard", time_limit=0.5)
async def hard():
    await asyncio.sleep(30)

@app.task(name="fail")
async def fail():
    await asyncio.sleep(0)
    raise KeyError("own")

@app.task(name="again", bind=True, max_retries=2)
async def again(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return self.request.retries

@app.task(name="block")
def block():
    while not os.path.exists("release"):
        time.sleep(0.01)
    return "blocked"

@app.task(name="parent")
async def parent():
    return (await asyncio.to_thread(nap.delay, 0)).id

@app.task(name="leave")
async def leave():
    async def later():
        await asyncio.sleep(0.1)
        ledger.note("later")
    asyncio.ensure_future(later())
"""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[App]:
    (tmp_path / "toy.py").write_text(APP)
    url = f"sqlite:///{tmp_path}/kw.db"
    app = App("client", broker_url=url, result_backend=url)
    yield app
    app.close()


def test_hundreds_wait_at_once(client: App, kw: RunKw) -> None:
    """None ends before all have begun."""
    sent = [client.send_task("meet", [300]) for _ in range(300)]
    kw("run", "-A", "toy", "-P", "asyncio", "-c", "300")

    assert [result.get(timeout=20) for result in sent] == [None] * 300


def test_each_has_its_request_and_context_of_its_own(client: App, kw: RunKw) -> None:
    kw("run", "-A", "toy", "-P", "asyncio", "-c", "20")

    sent = [client.send_task("place", [n]) for n in range(20)]

    assert [result.get(timeout=10) for result in sent] == [["empty", str(n), sent[n].id] for n in range(20)]


def test_limits_are_raised_inside(client: App, kw: RunKw) -> None:
    kw("run", "-A", "toy", "-P", "asyncio", "-c", "20")
    beside = client.send_task("nap", [2.0])

    soft, spin, hard = client.send_task("soft"), client.send_task("spin"), client.send_task("hard")

    assert soft.get(timeout=10) == "cleaned up"
    with pytest.raises(SoftTimeLimitExceeded):
        spin.get(timeout=10)
    with pytest.raises(TimeLimitExceeded):
        hard.get(timeout=10)
    assert beside.get(timeout=10) == 2.0


def test_plain_functions_do_not_hold_the_loop(client: App, kw: RunKw, tmp_path: Path) -> None:
    kw("run", "-A", "toy", "-P", "asyncio", "-c", "10")

    blocked = [client.send_task("block") for _ in range(5)]
    assert client.send_task("nap", [0.1]).get(timeout=10) == 0.1

    (tmp_path / "release").touch()
    assert [result.get(timeout=10) for result in blocked] == ["blocked"] * 5


def test_failures_retries_and_children_are_as_on_any_pool(client: App, kw: RunKw, ledger: Ledger) -> None:
    kw("run", "-A", "toy", "-P", "asyncio", "-c", "10")

    failed, again, parent = client.send_task("fail"), client.send_task("again"), client.send_task("parent")
    client.send_task("leave")

    with pytest.raises(KeyError, match="own"):
        failed.get(timeout=10)
    assert "in fail" in str(failed.traceback)
    assert again.get(timeout=10) == 2
    assert client.AsyncResult(parent.get(timeout=10)).get(timeout=10) == 0
    eventually(lambda: parent.children, within_s=2)
    eventually(lambda: ledger.count("later") == 1)


def test_shutdown_lets_them_finish(client: App, kw: RunKw, ledger: Ledger) -> None:
    worker = kw("run", "-A", "toy", "-P", "asyncio", "-c", "5")
    sent = client.send_task("begun")
    eventually(lambda: ledger.count("began") == 1)

    assert worker.stop() == 0
    assert sent.get(timeout=5) == "ended"


def test_processes_share_the_slots(client: App, kw: RunKw) -> None:
    worker = kw("run", "-A", "toy", "-P", "asyncio", "-c", "2x50")

    sent = [client.send_task("nap", [0.5]) for _ in range(100)]

    assert [result.get(timeout=20) for result in sent] == [0.5] * 100
    assert len(worker.family()) == 3
