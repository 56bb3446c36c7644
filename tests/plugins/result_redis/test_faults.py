"""Waiting and storing while the server restarts, kills connections or is away."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from kernel_result_redis import RedisResults
from kernel_worker import StoredResult
from kernel_worker.testing import eventually, task_meta
from tests.servers import RedisServer


@pytest.fixture
def make_results() -> Iterator[Callable[..., RedisResults]]:
    made: list[RedisResults] = []

    def make(url: str, **settings: Any) -> RedisResults:
        made.append(RedisResults(url, settings))
        return made[-1]

    yield make
    for results in made:
        results.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def success(task_id: str) -> StoredResult:
    return StoredResult(task_id, "SUCCESS", task_meta(task_id), 3600.0)


def is_success(meta: bytes) -> bool:
    return bool(json.loads(meta)["status"] == "SUCCESS")


def test_wait_survives_a_restart_of_the_server(
    start_redis: Callable[..., RedisServer], make_results: Callable[..., RedisResults]
) -> None:
    server = start_redis()
    results = make_results(server.url)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(results.wait, "t1", 15.0, is_success)
        eventually(lambda: server.command("PUBSUB CHANNELS") == "*1")

        server.stop()
        server.start()
        results.store([success("t1")])

        assert waiting.result(15) == task_meta("t1")


def test_wait_survives_killed_connections(
    redis_url: str, client: Any, make_results: Callable[..., RedisResults]
) -> None:
    results = make_results(redis_url)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(results.wait, "t1", 15.0, is_success)
        for _ in range(3):
            eventually(client.pubsub_channels)
            for each in client.client_list():
                if each["name"] == "kw:waiting":
                    client.client_kill_filter(_id=each["id"])
        results.store([success("t1")])

        assert waiting.result(15) == task_meta("t1")


def test_result_whose_push_was_lost_is_found(
    redis_url: str, client: Any, make_results: Callable[..., RedisResults]
) -> None:
    """Somebody wrote the key and published nothing."""
    results = make_results(redis_url, redis_socket_timeout=0.3)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(results.wait, "t1", 15.0, is_success)
        eventually(client.pubsub_channels)
        client.set("celery-task-meta-t1", task_meta("t1"))

        assert waiting.result(10) == task_meta("t1")


def test_wait_without_a_server_is_a_connection_error_when_the_time_is_over(
    start_redis: Callable[..., RedisServer], make_results: Callable[..., RedisResults]
) -> None:
    server = start_redis()
    server.stop()
    results = make_results(server.url)
    began = time.monotonic()

    with pytest.raises(ConnectionError):
        results.wait("t1", 0.4, is_success)

    assert 0.3 <= time.monotonic() - began < 2


def test_wrong_password_ends_a_wait_at_once(
    start_redis: Callable[..., RedisServer], make_results: Callable[..., RedisResults]
) -> None:
    server = start_redis("--requirepass", "right")

    with pytest.raises(ConnectionError, match="NOAUTH"):
        make_results(server.url).wait("t1", 30.0, is_success)
    with pytest.raises(ConnectionError, match="WRONGPASS") as caught:
        make_results(server.url, redis_password="wrong-one").wait("t1", 30.0, is_success)
    assert "wrong-one" not in str(caught.value)
    right = make_results(server.url, redis_password="right")
    right.store([success("t1")])
    assert right.fetch("t1") == task_meta("t1")


def test_storing_works_again_after_a_restart(
    start_redis: Callable[..., RedisServer], make_results: Callable[..., RedisResults]
) -> None:
    server = start_redis()
    results = make_results(server.url)
    results.store([success("t1")])
    server.stop()
    with pytest.raises(ConnectionError):
        results.store([success("t2")])

    server.start()
    results.store([success("t2")])

    assert results.fetch("t2") == task_meta("t2")


def test_silent_server_is_noticed(
    start_redis: Callable[..., RedisServer], make_results: Callable[..., RedisResults]
) -> None:
    server = start_redis()
    results = make_results(server.url, redis_socket_timeout=1.0, redis_socket_connect_timeout=1.0)
    results.store([success("t1")])

    with server.paused():
        for call in (lambda: results.store([success("t2")]), lambda: results.fetch("t1")):
            with pytest.raises(ConnectionError, match="no answer within"):
                call()

    assert results.fetch("t1") == task_meta("t1")


def test_full_server_refuses_with_the_reason(
    redis_url: str, client: Any, make_results: Callable[..., RedisResults]
) -> None:
    results = make_results(redis_url)
    client.config_set("maxmemory", 1)

    try:
        with pytest.raises(ConnectionError, match="OOM"):
            results.store([success("t1")])
    finally:
        client.config_set("maxmemory", 0)


def test_time_limit_in_the_middle_of_a_wait_leaves_nothing(
    redis_url: str, client: Any, make_results: Callable[..., RedisResults]
) -> None:
    class SoftTimeLimit(Exception):
        pass

    def strike(*_: Any) -> None:
        raise SoftTimeLimit

    def wait_beyond_the_limit() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        results.wait("t1", 10.0, is_success)

    results = make_results(redis_url)
    before = signal.signal(signal.SIGALRM, strike)
    try:
        with pytest.raises(SoftTimeLimit):
            wait_beyond_the_limit()
    finally:
        signal.signal(signal.SIGALRM, before)

    eventually(lambda: client.pubsub_channels() == [])
    results.store([success("t2")])
    assert results.wait("t2", 5.0, is_success) == task_meta("t2")


def test_thousands_of_waits_use_one_connection_and_leave_nothing(
    redis_url: str, client: Any, make_results: Callable[..., RedisResults]
) -> None:
    results = make_results(redis_url)
    results.store([success("t1")])
    opened = client.info("stats")["total_connections_received"]

    for _ in range(2000):
        assert results.wait("t1", 5.0, is_success) is not None
        assert results.wait("never", 0.0, is_success) is None

    assert client.pubsub_channels() == []
    assert client.info("stats")["total_connections_received"] - opened <= 1


def test_client_needs_neither_worker_nor_redis_py(redis_url: str) -> None:
    code = (
        "import sys\n"
        "from kernel_result_redis import RedisResults\n"
        "RedisResults(sys.argv[1], {}).fetch('t1')\n"
        "print([name for name in ('kernel_worker', 'redis', 'msgspec', 'ssl', 'asyncio') if name in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, redis_url], capture_output=True, text=True, check=True)

    assert ran.stdout == "[]\n"


def test_a_key_of_another_type_keeps_no_other_result_from_being_stored(
    make_results: Callable[..., RedisResults], redis_url: str, client: Any
) -> None:
    """Cause: the server refused the whole burst, which the executor then kept and stored again for ever."""
    client.rpush("celery-task-meta-t2", "no result")
    failures = [
        StoredResult(task_id, "FAILURE", task_meta(task_id, "FAILURE"), 3600.0) for task_id in ("t1", "t2", "t3")
    ]
    results = make_results(redis_url)

    results.store(failures)

    assert [results.fetch(each.task_id) for each in failures] == [each.payload for each in failures]
