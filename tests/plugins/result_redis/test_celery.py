"""A stock Celery client reads what is stored here, and the other way round."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import celery
import pytest
import redis

from kernel_result_redis import RedisResults
from kernel_worker import StoredResult
from kernel_worker.testing import eventually, task_meta

# Celery 5.7 calls what redis-py 8 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


@pytest.fixture
def app(redis_url: str) -> Iterator[celery.Celery]:
    app = celery.Celery("client", broker="memory://", backend=redis_url)
    yield app
    app.backend.result_consumer.stop()
    app.backend.client.close()
    app.close()


@pytest.fixture
def results(redis_url: str) -> Iterator[RedisResults]:
    results = RedisResults(redis_url, {})
    yield results
    results.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def success(task_id: str, result: Any = None) -> StoredResult:
    return StoredResult(task_id, "SUCCESS", task_meta(task_id, result=result), 3600.0)


def test_celery_client_gets_a_stored_result(app: celery.Celery, results: RedisResults) -> None:
    results.store([success("t1", {"x": [1, None]})])

    assert app.AsyncResult("t1").get(timeout=5) == {"x": [1, None]}


def test_waiting_celery_client_is_told(app: celery.Celery, results: RedisResults, client: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(app.AsyncResult("t1").get, timeout=10)
        eventually(lambda: client.pubsub_numsub("celery-task-meta-t1")[0][1] == 1)
        results.store([success("t1", 42)])

        assert waiting.result(10) == 42


def test_celery_client_raises_a_stored_failure(app: celery.Celery, results: RedisResults) -> None:
    error = {"exc_type": "ValueError", "exc_message": ["boom"], "exc_module": "builtins"}
    results.store([StoredResult("t1", "FAILURE", task_meta("t1", "FAILURE", error), 3600.0)])

    with pytest.raises(ValueError, match="boom"):
        app.AsyncResult("t1").get(timeout=5)


def test_what_celery_stores_is_read_and_waited_for(app: celery.Celery, results: RedisResults, client: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(results.wait, "t1", 10.0, lambda meta: json.loads(meta)["status"] == "SUCCESS")
        eventually(lambda: client.pubsub_numsub("celery-task-meta-t1")[0][1] == 1)
        app.backend.store_result("t1", None, "STARTED")
        app.backend.store_result("t1", [1, 2], "SUCCESS")
        meta = waiting.result(10)

    assert meta is not None
    assert json.loads(meta)["result"] == [1, 2]
    assert results.fetch("t1") == meta


def test_success_that_celery_stored_is_not_replaced(app: celery.Celery, results: RedisResults) -> None:
    app.backend.store_result("t1", 1, "SUCCESS")

    results.store([StoredResult("t1", "FAILURE", task_meta("t1", "FAILURE"), 3600.0)])

    assert app.AsyncResult("t1").state == "SUCCESS"


@pytest.mark.parametrize(
    "stored",
    [
        b'{"result": {"status": "SUCCESS"}, "status": "STARTED"}',
        b'{"status": "PROGRESS", "result": {"status": "SUCCESS"}}',
        b'["status", "SUCCESS"]',
        b"garbage",
        b'{"status": 7}',
    ],
    ids=["nested, status last", "nested, status first", "a list", "no JSON", "no text"],
)
def test_only_a_stored_success_counts_as_one(results: RedisResults, client: Any, stored: bytes) -> None:
    client.set("celery-task-meta-t1", stored)
    meta = task_meta("t1", "FAILURE")

    results.store([StoredResult("t1", "FAILURE", meta, 3600.0)])

    assert results.fetch("t1") == meta


def test_status_that_stands_last_is_found(results: RedisResults, client: Any) -> None:
    client.set("celery-task-meta-t1", b'{"result": 1, "status": "SUCCESS"}')

    results.store([StoredResult("t1", "FAILURE", task_meta("t1", "FAILURE"), 3600.0)])

    assert results.fetch("t1") == b'{"result": 1, "status": "SUCCESS"}'


def test_results_expire_as_celerys_do(results: RedisResults, client: Any) -> None:
    results.store(
        [success("day"), StoredResult("ever", "SUCCESS", b"{}", None), StoredResult("zero", "SUCCESS", b"{}", 0)]
    )

    assert 3590 <= client.ttl("celery-task-meta-day") <= 3600
    assert client.ttl("celery-task-meta-ever") == client.ttl("celery-task-meta-zero") == -1


@pytest.mark.parametrize(
    ("prefix", "key"), [("p", "p_"), ("p:", "p:"), ("p_", "p_"), ("p-", "p-"), ("p.", "p."), ("", "")]
)
def test_prefix_follows_celerys_rule(redis_url: str, client: Any, prefix: str, key: str) -> None:
    settings = {"result_backend_transport_options": {"global_keyprefix": prefix}}
    app = celery.Celery("client", broker="memory://", backend=redis_url)
    app.conf.update(settings)
    results = RedisResults(redis_url, settings)

    results.store([success("t1", 7)])
    got = app.AsyncResult("t1").get(timeout=5)
    results.close()
    app.backend.result_consumer.stop()
    app.backend.client.close()
    app.close()

    assert got == 7
    assert client.keys() == [f"{key}celery-task-meta-t1".encode()]


def test_forgotten_by_either_side(app: celery.Celery, results: RedisResults, client: Any) -> None:
    results.store([success("t1"), success("t2")])

    app.AsyncResult("t1").forget()
    results.forget("t2")

    assert client.keys() == []
