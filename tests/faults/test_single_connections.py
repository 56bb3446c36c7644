"""Each connection to the broker alone is reset, silent, slow or narrow: only it is made anew, and nothing is lost.

The worker's and the client's connections all lead through a proxy; the fault befalls those of one kind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

from kernel_app import App, AsyncResult
from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw
from tests.faults.application import MODULE, OPTIONS, client
from tests.faults.proxy import Proxy
from tests.plugins.broker_amqp.conftest import delete_queues

KINDS = {
    "redis": {
        "consume": "kw:fetch:",
        "settle": "kw:settle:",
        "publish": "kw:publish",
        "results": "kw:results",
        "subscribe": "kw:waiting",
    },
    # What is consumed is acknowledged on the same connection.
    "amqp": {"consume": "kw:consume:", "publish": "kw:publish", "results": "kw:results", "subscribe": "kw:waiting"},
}
NOTICED_WITHIN_S = 15.0
TROUBLE_S = 2.5
LONG_S = 20.0

MakeProxy = Callable[[str, str], Proxy]


@pytest.fixture
def proxy_for(request: pytest.FixtureRequest) -> Iterator[MakeProxy]:
    """`proxy_for(broker, kind)`: a proxy whose faults befall the connections of this kind; the broker is empty."""
    made: list[Proxy] = []

    def make(broker: str, kind: str) -> Proxy:
        if broker == "amqp":
            port = request.getfixturevalue("rabbitmq_server").port
            delete_queues(port, "celery")
        else:
            request.getfixturevalue("redis_url")
            port = request.getfixturevalue("redis_server").port
        made.append(Proxy(port, only=KINDS[broker][kind]))
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
SHORT = {
    ("redis", "consume", "silence"),
    ("redis", "settle", "reset"),
    ("redis", "publish", "reset"),
    ("redis", "subscribe", "silence"),
    ("amqp", "publish", "silence"),
}


def publish(app: App, value: int) -> AsyncResult:
    """Send until it is certain that it was sent."""
    return eventually(lambda: app.send_task(f"{MODULE}.echo", [value]), within_s=LONG_S + NOTICED_WITHIN_S)


def urls(broker: str, port: int) -> tuple[str, str]:
    """Of the broker and of the result backend, with short time-outs."""
    if broker == "amqp":
        return f"amqp://guest:guest@127.0.0.1:{port}//?heartbeat=2&read_timeout=1", "rpc://"
    url = f"redis://127.0.0.1:{port}/0?socket_timeout=1"
    return url, url


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("broker", "kind", "fault"),
    [
        pytest.param(*case, id=", ".join(case), marks=() if case in SHORT else pytest.mark.faults)
        for broker, kinds in KINDS.items()
        for case in product([broker], kinds, FAULTS)
    ],
)
def test_one_connection_in_trouble_loses_nothing(
    folder: Path, kw: RunKw, proxy_for: MakeProxy, ledger: Ledger, broker: str, kind: str, fault: str
) -> None:
    proxy = proxy_for(broker, kind)
    url, results = urls(broker, proxy.port)
    worker = kw(*OPTIONS, "--lease", "10", "-b", url, "--result-backend", results, "-c", "2")
    with client(url, results) as app:
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
    # A publish whose answer was lost is repeated; what a lost connection of RabbitMQ held is delivered again.
    assert len(noted) == 301 or kind == "publish" or (broker, kind) == ("amqp", "consume")
    assert worker.stop() == 0
    assert "Traceback" not in worker.output
