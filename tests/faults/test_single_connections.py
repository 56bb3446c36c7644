"""Each connection to Redis alone is reset, silent, slow or narrow: only it is made anew, and nothing is lost.

The worker's and the client's connections all lead through a proxy; the fault befalls those of one kind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kernel_app import App, AsyncResult
from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw
from tests.faults.application import MODULE, OPTIONS, client
from tests.faults.proxy import Proxy
from tests.servers import RedisServer

KINDS = {
    "consume": "kw:fetch:",
    "settle": "kw:settle:",
    "publish": "kw:publish",
    "results": "kw:results",
    "subscribe": "kw:waiting",
}
NOTICED_WITHIN_S = 15.0
TROUBLE_S = 2.5
LONG_S = 20.0

MakeProxy = Callable[[str], Proxy]


@pytest.fixture
def proxy_for(redis_server: RedisServer, redis_url: str) -> Iterator[MakeProxy]:
    """`proxy_for(kind)`: a proxy whose faults befall the connections of this kind."""
    made: list[Proxy] = []

    def make(kind: str) -> Proxy:
        made.append(Proxy(redis_server.port, only=KINDS[kind]))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


def reset(proxy: Proxy) -> None:
    proxy.cut()


def be_silent(proxy: Proxy) -> None:
    """Longer than the time-out; what is on its way arrives late."""
    with proxy.blackhole():
        time.sleep(TROUBLE_S)


def be_silent_for_long(proxy: Proxy) -> None:
    with proxy.blackhole():
        time.sleep(LONG_S)


def be_slow(proxy: Proxy) -> None:
    proxy.delay_s = 0.5
    time.sleep(TROUBLE_S)
    proxy.delay_s = 0.0


def be_narrow(proxy: Proxy) -> None:
    proxy.bytes_per_s = 10_000
    time.sleep(TROUBLE_S)
    proxy.bytes_per_s = 0.0


FAULTS = {
    "reset": reset,
    "silence": be_silent,
    "long silence": be_silent_for_long,
    "latency": be_slow,
    "throttle": be_narrow,
}
SHORT = {("consume", "silence"), ("settle", "reset"), ("publish", "reset"), ("subscribe", "silence")}


def publish(app: App, value: int) -> AsyncResult:
    """Send until it is certain that it was sent."""
    return eventually(lambda: app.send_task(f"{MODULE}.echo", [value]), within_s=LONG_S + NOTICED_WITHIN_S)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        pytest.param(kind, fault, id=f"{kind}, {fault}", marks=() if (kind, fault) in SHORT else pytest.mark.faults)
        for kind in KINDS
        for fault in FAULTS
    ],
)
def test_one_connection_in_trouble_loses_nothing(
    folder: Path, kw: RunKw, proxy_for: MakeProxy, ledger: Ledger, kind: str, fault: str
) -> None:
    proxy = proxy_for(kind)
    url = f"redis://127.0.0.1:{proxy.port}/0?socket_timeout=1"
    worker = kw(*OPTIONS, "--lease", "10", "-b", url, "--result-backend", url, "-c", "2")
    with client(url) as app:
        warm = app.send_task(f"{MODULE}.echo", ["warm"])
        assert warm.get(timeout=10) == "warm"
        before = proxy.chosen
        assert before, "the connection is not there"
        sent = [app.send_task(f"{MODULE}.echo", [n]) for n in range(100)]

        with ThreadPoolExecutor(1) as pool:
            trouble = pool.submit(FAULTS[fault], proxy)
            sent += [publish(app, n) for n in range(100, 200)]
            trouble.result()
        began = time.monotonic()
        sent += [publish(app, n) for n in range(200, 300)]

        assert [each.get(timeout=NOTICED_WITHIN_S) for each in sent] == list(range(300))
        assert time.monotonic() - began < NOTICED_WITHIN_S
    noted = [entry["id"] for entry in ledger.entries("echo")]
    assert set(noted) == {"warm", *range(300)}
    assert len(noted) == 301 or kind == "publish", "a publish whose answer was lost is repeated, nothing else"
    assert worker.stop() == 0
    assert "Traceback" not in worker.output
