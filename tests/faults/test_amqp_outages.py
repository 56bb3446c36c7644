"""RabbitMQ out of reach while tasks run: what the lost connection held is another's, so its run here ends unstored."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_worker.testing import Ledger, WorkerProcess
from tests.conftest import RunKw
from tests.faults.application import MODULE, OPTIONS, client, name, started
from tests.faults.proxy import Proxy
from tests.plugins.broker_amqp.conftest import delete_queues
from tests.servers import RabbitServer

EX_UNAVAILABLE = 69


@pytest.fixture
def proxy(rabbitmq_server: RabbitServer) -> Iterator[Proxy]:
    """In front of the shared server, which has no messages."""
    delete_queues(rabbitmq_server.port, "celery")
    between = Proxy(rabbitmq_server.port)
    yield between
    between.close()


def behind(proxy: Proxy, options: str = "?heartbeat=1&read_timeout=2") -> str:
    return f"amqp://guest:guest@127.0.0.1:{proxy.port}//{options}"


def cut(proxy: Proxy, worker: WorkerProcess) -> None:
    proxy.cut()


def be_silent(proxy: Proxy, worker: WorkerProcess) -> None:
    with proxy.blackhole():
        worker.wait_for_output("broker is away", within_s=10)


@pytest.mark.parametrize("pool", [("-P", "prefork", "-c", "1"), ("-P", "solo")], ids=["prefork", "solo"])
@pytest.mark.parametrize("fault", [cut, be_silent], ids=["cut", "silent"])
def test_what_ran_when_the_connection_was_lost_ends_once(
    folder: Path,
    kw: RunKw,
    rabbitmq_server: RabbitServer,
    redis_url: str,
    ledger: Ledger,
    proxy: Proxy,
    pool: tuple[str, ...],
    fault: object,
) -> None:
    """Cause: the driver could not tell what it had lost, so the first run went on beside the second, and both stored."""
    assert callable(fault)
    worker = kw(*OPTIONS, *pool, "-b", behind(proxy), "--result-backend", redis_url)
    key = name()
    with client(rabbitmq_server.url, redis_url) as app:
        sent = app.send_task(f"{MODULE}.hold", [key])
        started(ledger, key)
        fault(proxy, worker)
        started(ledger, key, times=2)
        worker.wait_for_output("went to other workers", within_s=10)
        (folder / f"release-{key}").touch()

        assert sent.get(timeout=10) == key
        assert app.send_task(f"{MODULE}.echo", ["there"]).get(timeout=10) == "there"
    assert worker.stop() == 0
    assert ledger.count("start", id=key) == 2
    assert ledger.count("end", id=key) == 1
    assert "Traceback" not in worker.output


def test_connection_that_is_cut_again_and_again_is_not_held_against_what_ran(
    folder: Path, kw: RunKw, rabbitmq_server: RabbitServer, redis_url: str, ledger: Ledger, proxy: Proxy
) -> None:
    """Cause: what a living worker had lost with its connection was counted as if the task had killed a worker, and was
    dead after the third time."""
    worker = kw(*OPTIONS, "-c", "1", "-b", behind(proxy), "--result-backend", redis_url)
    key = name()
    with client(rabbitmq_server.url, redis_url) as app:
        sent = app.send_task(f"{MODULE}.hold", [key])
        for times in range(1, 6):
            started(ledger, key, times=times)
            if times < 5:
                proxy.cut()
        (folder / f"release-{key}").touch()

        assert sent.get(timeout=10) == key
    assert worker.stop() == 0
    assert ledger.count("end", id=key) == 1


@pytest.mark.faults
@pytest.mark.timeout(180)
def test_twenty_silent_seconds_cost_no_task_its_end(
    folder: Path, kw: RunKw, rabbitmq_server: RabbitServer, redis_url: str, ledger: Ledger, proxy: Proxy
) -> None:
    """With the default heartbeat, a lease of 15 s, four tasks that run and a hundred that wait."""
    options = [*OPTIONS, "--lease", "15", "-c", "4", "-b", behind(proxy, ""), "--result-backend", redis_url]
    worker = kw(*options)
    keys = [name() for _ in range(4)]
    with client(rabbitmq_server.url, redis_url) as app:
        sent = [app.send_task(f"{MODULE}.hold", [key]) for key in keys]
        for key in keys:
            started(ledger, key)
        waiting = [app.send_task(f"{MODULE}.echo", [n]) for n in range(100)]
        with proxy.blackhole():
            time.sleep(20.0)
        begun = time.monotonic()
        worker.wait_for_output("went to other workers", within_s=20)
        (folder / "release-all").touch()

        assert [each.get(timeout=20) for each in waiting] == list(range(100))
        assert [each.get(timeout=20) for each in sent] == keys
        print(f"all ended {time.monotonic() - begun:.1f} s after the path was back")
    assert worker.stop() == 0
    assert "Traceback" not in worker.output
    for key in keys:
        assert ledger.count("end", id=key) == 1
        assert ledger.count("start", id=key) == 2
    assert ledger.count("echo") == 100


@pytest.mark.parametrize("trouble", ["password", "vhost"])
def test_startup_timeout_ends_the_wait_for_a_server_that_refuses(
    folder: Path, kw: RunKw, rabbitmq_server: RabbitServer, trouble: str
) -> None:
    port = rabbitmq_server.port
    url = f"amqp://guest:canary@127.0.0.1:{port}//" if trouble == "password" else f"{rabbitmq_server.url}nowhere"
    worker = kw(*OPTIONS, "-b", url, "-c", "1", "--startup-timeout", "4", ready=False)

    assert worker.wait(within_s=30) == EX_UNAVAILABLE
    assert "refuses us" in worker.output
    assert "gave up after --startup-timeout" in worker.output
    assert "canary" not in worker.output
    assert "Traceback" not in worker.output
    assert not worker.family()
