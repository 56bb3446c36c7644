"""The broker restarts, goes silent, forgets everything, or cuts single connections: the worker goes on by itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import redis

from kernel_worker.testing import Ledger, eventually
from tests.conftest import RunKw
from tests.faults.application import MODULE, OPTIONS, client, name, started
from tests.faults.proxy import Proxy
from tests.servers import RedisServer

AGAIN_WITHIN_S = 10.0
"""After an outage the worker consumes again within this time."""
EX_UNAVAILABLE = 69
STARTUP_S = "4"
"""Of `--startup-timeout`: the import of the application is over by then, and the server is what it waits for."""

StartRedis = Callable[..., RedisServer]


@pytest.fixture
def stopped_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that is not running; `start()` it."""
    folder = tmp_path / "away"
    folder.mkdir()
    server = RedisServer(folder)
    yield server
    server.kill()


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str) -> Iterator[Proxy]:
    """In front of the shared server."""
    between = Proxy(redis_server.port)
    yield between
    between.close()


def behind(proxy: Proxy) -> str:
    return f"redis://127.0.0.1:{proxy.port}/0?socket_timeout=1"


def answers(url: str, results: str | None = None) -> bool:
    with client(url, results) as app:
        return bool(app.send_task(f"{MODULE}.echo", ["there"]).get(timeout=AGAIN_WITHIN_S) == "there")


def test_idle_worker_consumes_again_after_the_server_was_restarted(
    folder: Path, kw: RunKw, start_redis: StartRedis
) -> None:
    server = start_redis()
    worker = kw(*OPTIONS, "-b", server.url, "--result-backend", server.url, "-c", "1")
    assert answers(server.url)

    server.restart()

    assert answers(server.url)
    assert worker.stop() == 0
    assert "Traceback" not in worker.output


def test_running_task_outlives_three_restarts_in_a_row(
    folder: Path, kw: RunKw, start_redis: StartRedis, ledger: Ledger
) -> None:
    """The server keeps its data: the message is settled when it is back, and not run again."""
    server = start_redis("--appendonly", "yes")
    worker = kw(*OPTIONS, "-b", server.url, "--result-backend", server.url, "-c", "1")
    running, waiting = name(), name()
    with client(server.url) as app:
        sent = app.send_task(f"{MODULE}.hold", [running])
        started(ledger, running)
        later = app.send_task(f"{MODULE}.echo", [waiting])
        for _ in range(3):
            server.kill()
            server.start()
        (folder / "release-all").touch()

        assert sent.get(timeout=AGAIN_WITHIN_S) == running
        assert later.get(timeout=AGAIN_WITHIN_S) == waiting
    assert worker.stop() == 0
    assert ledger.count("start", id=running) == 1
    assert ledger.count("echo", id=waiting) == 1
    assert "Traceback" not in worker.output


@pytest.mark.parametrize("role", ["kw:fetch", "kw:settle", pytest.param("kw:other", marks=pytest.mark.faults), "all"])
def test_killed_connection_is_made_anew(
    folder: Path, kw: RunKw, redis_server: RedisServer, redis_url: str, ledger: Ledger, role: str
) -> None:
    worker = kw(*OPTIONS, "-b", redis_url, "--result-backend", redis_url, "-c", "1")
    key = name()
    with redis.Redis(port=redis_server.port) as admin, client(redis_url) as app:
        sent = app.send_task(f"{MODULE}.hold", [key])
        started(ledger, key)
        me = admin.client_id()
        for link in admin.client_list():
            if (role == "all" and int(link["id"]) != me) or link["name"].startswith(role):
                admin.client_kill_filter(_id=link["id"])
        (folder / "release-all").touch()

        assert sent.get(timeout=AGAIN_WITHIN_S) == key
    assert answers(redis_url)
    assert worker.stop() == 0
    assert ledger.count("start", id=key) == 1
    assert "Traceback" not in worker.output


def test_connections_cut_while_tasks_pour_in_lose_none(folder: Path, kw: RunKw, proxy: Proxy, redis_url: str) -> None:
    """The worker sits behind the proxy, the producer does not."""
    worker = kw(*OPTIONS, "-b", behind(proxy), "--result-backend", redis_url, "-c", "2")
    with client(redis_url) as app:
        sent = []
        for turn in range(10):
            sent += [app.send_task(f"{MODULE}.echo", [100 * turn + n]) for n in range(100)]
            proxy.cut()
        results = [result.get(timeout=AGAIN_WITHIN_S) for result in sent]

    assert results == list(range(1000))
    assert worker.stop() == 0
    assert "Traceback" not in worker.output


def test_silent_connection_is_noticed_by_its_time_out(
    folder: Path, kw: RunKw, proxy: Proxy, redis_url: str, ledger: Ledger
) -> None:
    worker = kw(*OPTIONS, "-b", behind(proxy), "--result-backend", redis_url, "-c", "1")

    with proxy.blackhole():
        began = time.monotonic()
        worker.wait_for_output("broker is away")
        took = time.monotonic() - began

    assert took < 10.0  # one fetch of a second, and the time-out of a second
    assert answers(redis_url)
    assert worker.stop() == 0


@pytest.mark.faults
def test_slow_connection_causes_no_second_run(
    folder: Path, kw: RunKw, proxy: Proxy, redis_url: str, ledger: Ledger
) -> None:
    """A fifth of a second per packet, both ways, and a task longer than the lease."""
    proxy.delay_s = 0.2
    worker = kw(*OPTIONS, "-b", behind(proxy), "--result-backend", redis_url, "-c", "1")
    other = kw(*OPTIONS, "-b", redis_url, "--result-backend", redis_url, "-c", "1")
    key = name()
    with client(redis_url) as app:
        other.signal(signal.SIGSTOP)  # so that the slow one gets the task
        sent = app.send_task(f"{MODULE}.hold", [key])
        started(ledger, key)
        other.signal(signal.SIGCONT)
        began = time.monotonic()
        eventually(lambda: time.monotonic() - began > 3.0, within_s=5)  # one and a half leases go by
        (folder / "release-all").touch()

        assert sent.get(timeout=AGAIN_WITHIN_S) == key
    assert ledger.count("start", id=key) == 1
    assert "broker is away" not in worker.output


def test_worker_goes_on_after_the_server_forgot_everything(
    folder: Path, kw: RunKw, start_redis: StartRedis, ledger: Ledger
) -> None:
    """What ran goes to its end, settling what the server does not know is harmless, the new is consumed."""
    server = start_redis()
    worker = kw(*OPTIONS, "-b", server.url, "--result-backend", server.url, "-c", "2")
    key = name()
    with client(server.url) as app:
        sent = app.send_task(f"{MODULE}.hold", [key])
        started(ledger, key)
        server.flush()
        (folder / "release-all").touch()

        assert sent.get(timeout=AGAIN_WITHIN_S) == key
        assert app.send_task(f"{MODULE}.echo", [7]).get(timeout=AGAIN_WITHIN_S) == 7
    assert worker.stop() == 0
    assert "broker is away" not in worker.output


def test_worker_waits_for_a_server_that_is_down_at_start(folder: Path, kw: RunKw, stopped_redis: RedisServer) -> None:
    url = stopped_redis.url
    worker = kw(*OPTIONS, "-b", url, "--result-backend", url, "-c", "1", ready=False)
    worker.wait_for_output("broker is away")

    stopped_redis.start()

    worker.wait_until_ready(within_s=AGAIN_WITHIN_S)
    assert answers(url)
    assert worker.output.count("broker is away") == 1, "the same trouble is told once"
    assert worker.stop() == 0


def test_startup_timeout_ends_the_wait_for_a_server(folder: Path, kw: RunKw, stopped_redis: RedisServer) -> None:
    url = stopped_redis.url.replace("//", "//:canary-password@")
    worker = kw(*OPTIONS, "-b", url, "-c", "1", "--startup-timeout", STARTUP_S, ready=False)

    assert worker.wait(within_s=30) == EX_UNAVAILABLE
    assert "gave up after --startup-timeout" in worker.output
    assert f"127.0.0.1:{stopped_redis.port}" in worker.output
    assert "canary" not in worker.output
    assert "Traceback" not in worker.output
    assert not worker.family()


@pytest.mark.parametrize("trouble", ["password", "database"])
def test_startup_timeout_ends_the_wait_for_a_server_that_refuses(
    folder: Path, kw: RunKw, start_redis: StartRedis, trouble: str
) -> None:
    server = start_redis("--requirepass", "right") if trouble == "password" else start_redis()
    at = f"127.0.0.1:{server.port}"
    url = f"redis://:canary@{at}/0" if trouble == "password" else f"redis://{at}/99"
    worker = kw(*OPTIONS, "-b", url, "-c", "1", "--startup-timeout", STARTUP_S, ready=False)

    assert worker.wait(within_s=30) == EX_UNAVAILABLE
    assert "gave up after --startup-timeout" in worker.output
    assert at in worker.output
    assert "canary" not in worker.output
    assert "Traceback" not in worker.output


@pytest.mark.parametrize("away_s", [3.0, pytest.param(30.0, marks=[pytest.mark.faults, pytest.mark.timeout(180)])])
def test_store_that_is_away_under_load_costs_no_result_and_no_slot(
    folder: Path, kw: RunKw, redis_url: str, start_redis: StartRedis, ledger: Ledger, away_s: float
) -> None:
    """Fifty tasks a second, of which all have run by the time the store is back."""
    store = start_redis()
    worker = kw(*OPTIONS, "-b", redis_url, "--result-backend", store.url, "-c", "2")
    with client(redis_url, store.url) as app:
        assert app.send_task(f"{MODULE}.echo", ["before"]).get(timeout=20) == "before"
        store.stop()
        sent, begun = [], time.monotonic()
        while time.monotonic() - begun < away_s:
            sent.append(app.send_task(f"{MODULE}.echo", [len(sent)]))
            time.sleep(0.02)
        eventually(lambda: ledger.count("echo") == len(sent) + 1, within_s=10, message="all to run, before it is back")
        store.start()

        assert [result.get(timeout=30) for result in sent] == list(range(len(sent)))
    assert worker.stop() == 0
    assert ledger.count("echo") == len(sent) + 1


def test_results_of_an_outage_of_their_store_all_arrive(
    folder: Path, kw: RunKw, redis_url: str, start_redis: StartRedis, ledger: Ledger
) -> None:
    """Slots go on with other tasks meanwhile; nothing is acknowledged whose result is not stored."""
    store = start_redis()
    worker = kw(*OPTIONS, "-b", redis_url, "--result-backend", store.url, "-c", "2")
    with client(redis_url, store.url) as app:
        assert app.send_task(f"{MODULE}.echo", ["before"]).get(timeout=20) == "before"
        store.stop()
        sent = [app.send_task(f"{MODULE}.echo", [n]) for n in range(100)]
        eventually(
            lambda: ledger.count("echo") == 101, within_s=10, message=lambda: f"all to run: {ledger.count('echo')}"
        )

        store.start()

        assert [result.get(timeout=20) for result in sent] == list(range(100))
    assert worker.stop() == 0
    assert ledger.count("echo") == 101


def _all_ran(ledger: Ledger, times: int) -> bool:
    return all(ledger.count("echo", id=n) >= times for n in range(5))


def test_executors_killed_while_the_store_is_away_cost_no_result_and_no_delivery(
    folder: Path, kw: RunKw, redis_url: str, start_redis: StartRedis, ledger: Ledger
) -> None:
    """What has ended and is not stored runs again. Cause: each such kill was counted, and after three it was dead."""
    store = start_redis()
    worker = kw(*OPTIONS, "-b", redis_url, "--result-backend", store.url, "-c", "1")
    with client(redis_url, store.url) as app:
        assert app.send_task(f"{MODULE}.echo", ["before"]).get(timeout=20) == "before"
        store.stop()
        sent = [app.send_task(f"{MODULE}.echo", [n]) for n in range(5)]
        for round_ in range(1, 5):
            eventually(partial(_all_ran, ledger, round_), within_s=20)
            time.sleep(0.3)  # the kernel is told within a flush
            if round_ < 4:
                os.kill(ledger.entries("echo")[-1]["pid"], signal.SIGKILL)
        store.start()

        assert [result.get(timeout=20) for result in sent] == list(range(5))
    assert worker.stop() == 0
    assert [ledger.count("echo", id=n) for n in range(5)] == [4] * 5


def test_worker_killed_while_the_store_is_away_leaves_its_tasks_to_run_again(
    folder: Path, kw: RunKw, redis_url: str, start_redis: StartRedis, ledger: Ledger
) -> None:
    """Nothing was acknowledged, so nothing is lost: the ends it kept in memory are made anew by another worker."""
    store = start_redis()
    options = (*OPTIONS, "-b", redis_url, "--result-backend", store.url, "-c", "2")
    worker = kw(*options)
    with client(redis_url, store.url) as app:
        assert app.send_task(f"{MODULE}.echo", ["before"]).get(timeout=20) == "before"
        store.stop()
        sent = [app.send_task(f"{MODULE}.echo", [n]) for n in range(100)]
        eventually(lambda: ledger.count("echo") == 101, within_s=20)
        worker.signal(signal.SIGKILL)
        store.start()
        other = kw(*options)

        assert [result.get(timeout=30) for result in sent] == list(range(100))
    assert other.stop() == 0
    assert [ledger.count("echo", id=n) for n in range(100)] == [2] * 100


def test_store_of_results_that_is_down_at_start_does_not_keep_tasks_from_running(
    folder: Path, kw: RunKw, redis_url: str, stopped_redis: RedisServer, ledger: Ledger
) -> None:
    worker = kw(*OPTIONS, "-b", redis_url, "--result-backend", stopped_redis.url, "-c", "1")
    with client(redis_url, stopped_redis.url) as app:
        sent = app.send_task(f"{MODULE}.echo", [1])
        eventually(lambda: ledger.count("echo") == 1, within_s=10)
        stopped_redis.start()

        assert sent.get(timeout=20) == 1
    assert worker.stop() == 0
