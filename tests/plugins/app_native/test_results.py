"""Results seen by who waits for them, and read by and from Celery 5.7."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import celery
import celery.exceptions
import pytest
from billiard import exceptions as billiard_exceptions

import kernel_app
from kernel_app import App, AsyncResult, ConfigError, DecodeError, KernelAppError, OperationalError, ResultSet
from kernel_app.meta import TaskState, exception_from_meta
from tests.plugins.app_native.conftest import MakeApp, Worker, meta_of, results


def store(app: App, task_id: str, meta: dict[str, Any] | bytes) -> None:
    payload = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
    results(app).store([TaskState(task_id, "x", payload, None)])


def success(value: Any) -> dict[str, Any]:
    return {"status": "SUCCESS", "result": value, "traceback": None, "children": [], "date_done": None}


def failure(kind: str, message: Any, module: str | None = "builtins") -> dict[str, Any]:
    stored = {"exc_type": kind, "exc_message": message, "exc_module": module}
    return {**success(stored), "status": "FAILURE", "traceback": "Traceback ..."}


def test_an_unknown_id_is_pending(app: App) -> None:
    result = app.AsyncResult("x")

    assert (result.state, result.status, result.result, result.info) == ("PENDING", "PENDING", None, None)
    assert (result.ready(), result.successful(), result.failed()) == (False, False, False)
    assert (result.traceback, result.children, result.date_done) == (None, None, None)


def test_a_stored_success_is_read_once(app: App) -> None:
    store(app, "x", {**success(5), "date_done": "2026-01-02T03:04:05+00:00"})
    result = app.AsyncResult("x")

    assert result.ready()
    results(app).forget("x")
    assert (result.get(), result.state, result.successful()) == (5, "SUCCESS", True)
    assert result.date_done == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    result.forget()
    assert result.state == "PENDING"


def test_get_waits_until_the_result_is_there(app: App) -> None:
    timer = threading.Timer(0.05, store, (app, "x", success("late")))
    timer.start()
    seen: list[Any] = []

    value = app.AsyncResult("x").get(timeout=5, callback=lambda task_id, value: seen.append((task_id, value)))
    timer.join()

    assert value == "late"
    assert seen == [("x", "late")]


def test_get_goes_on_waiting_over_states_that_are_not_final(app: App) -> None:
    store(app, "x", {**success({"done": 1}), "status": "PROGRESS"})

    with pytest.raises(kernel_app.TimeoutError, match="task x within"):
        app.AsyncResult("x").get(timeout=0.01)
    with pytest.raises(TimeoutError):  # the builtin
        app.AsyncResult("x").get(timeout=0)


def test_on_interval_is_called_while_waiting(app: App) -> None:
    ticks: list[float] = []

    with pytest.raises(TimeoutError):
        app.AsyncResult("x").get(timeout=0.5, interval=0.01, on_interval=lambda: ticks.append(time.monotonic()))

    assert 2 <= len(ticks) <= 51


def test_a_failure_is_raised_or_returned(app: App) -> None:
    store(app, "x", failure("ValueError", ["boom", 7]))
    result = app.AsyncResult("x")

    with pytest.raises(ValueError, match="boom") as caught:
        result.get()
    assert caught.value.args == ("boom", 7)
    assert isinstance(result.get(propagate=False), ValueError)
    assert (result.failed(), result.traceback) == (True, "Traceback ...")


def test_an_ignored_result_is_none_at_once(app: App) -> None:
    assert app.send_task("t", ignore_result=True).get() is None


def test_without_a_backend_asking_is_an_error(make_app: MakeApp) -> None:
    result = make_app(result_backend=None).send_task("t")

    with pytest.raises(KernelAppError, match="result_backend"):
        result.get(timeout=0)


def test_a_backend_that_is_away_is_an_operational_error(make_app: MakeApp) -> None:
    app = make_app(result_backend="memory://:secret@host")
    results(app).outages = 1

    with pytest.raises(OperationalError, match=r"memory://\*\*@host") as caught:
        _ = app.AsyncResult("x").state
    assert "secret" not in str(caught.value)


def test_waiting_inside_a_task_is_refused(app: App) -> None:
    @app.task
    def waits(allowed: bool) -> Any:
        return app.AsyncResult("x").get(disable_sync_subtasks=not allowed)

    store(app, "x", success(5))
    waits.delay(False)
    waits.delay(True)
    refused, allowed = Worker(app).run_all()

    assert "must not wait" in refused.error
    assert meta_of(allowed)["result"] == 5


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b'{"status": 5}', b"\xff", b"[" * 5000], ids=repr)
def test_a_stored_result_that_is_none_is_a_decode_error(app: App, payload: bytes) -> None:
    store(app, "x", payload)

    with pytest.raises(DecodeError):
        _ = app.AsyncResult("x").state


@pytest.mark.parametrize("task_id", ["", None, 5])
def test_an_id_is_a_text(app: App, task_id: Any) -> None:
    with pytest.raises(ValueError, match="task id"):
        AsyncResult(task_id, app)


def test_children_are_results(app: App) -> None:
    store(app, "x", {**success(1), "children": [[["a", None], None], [["g", None], [[["b", None], None]]]]})
    one, group = app.AsyncResult("x").children or []

    assert isinstance(one, AsyncResult)
    assert isinstance(group, kernel_app.GroupResult)
    assert (one.id, group.id, [member.id for member in group]) == ("a", "g", ["b"])


def test_a_set_of_results_keeps_their_order(app: App) -> None:
    for task_id in "ab":
        store(app, task_id, success(task_id))
    store(app, "f", failure("KeyError", ["k"]))
    good, bad = ResultSet(map(app.AsyncResult, "ab")), ResultSet(map(app.AsyncResult, "af"))

    assert good.get(timeout=1) == ["a", "b"]
    assert (good.ready(), good.successful(), good.failed(), good.completed_count()) == (True, True, False, 2)
    assert (bad.ready(), bad.successful(), bad.failed(), bad.completed_count()) == (True, False, True, 1)
    with pytest.raises(KeyError):
        bad.get()
    assert len(good) == 2
    assert good[0] in list(good)
    good.forget()
    assert good.waiting()


def test_results_as_pickle_are_refused(make_app: MakeApp) -> None:
    with pytest.raises(ConfigError, match="pickle"):
        _ = make_app(result_serializer="pickle").codec


# --------------------------------------------------------------------------- exceptions

HOSTILE: list[Any] = [
    {"exc_type": "system", "exc_message": ["true"], "exc_module": "os"},
    {"exc_type": "Popen", "exc_message": [["true"]], "exc_module": "subprocess"},
    {"exc_type": "__class__", "exc_message": [], "exc_module": "os"},
    {"exc_type": "eval", "exc_message": ["1/0"], "exc_module": "builtins"},
    {"exc_type": "SystemExit", "exc_message": [3], "exc_module": "builtins"},
    {"exc_type": "KeyboardInterrupt", "exc_message": [], "exc_module": "builtins"},
    {"exc_type": "Gone", "exc_message": ["x"], "exc_module": "no.such.module"},
    {"exc_type": "Gone", "exc_message": "x", "exc_module": None},
    {"exc_type": 5, "exc_message": None, "exc_module": 7},
    {"exc_type": "a.b.\x00", "exc_message": ["x"], "exc_module": "builtins"},
    {},
    "text",
    None,
    [1],
]


@pytest.mark.parametrize("stored", HOSTILE, ids=repr)
def test_nothing_but_exceptions_is_made_of_a_stored_exception(stored: Any) -> None:
    made = exception_from_meta(stored)

    assert isinstance(made, Exception)
    assert type(made).__module__ == "kernel_app.exceptions"


class Picky(Exception):
    def __init__(self, *, only: str) -> None:
        super().__init__(only)


def test_an_exception_whose_constructor_refuses_keeps_its_class() -> None:
    made = exception_from_meta({"exc_type": "Picky", "exc_message": ["x"], "exc_module": __name__})

    assert type(made) is Picky
    assert made.args == ("x",)


WIRE = {
    "SoftTimeLimitExceeded": "billiard.exceptions",
    "TimeLimitExceeded": "billiard.exceptions",
    "WorkerLostError": "billiard.exceptions",
    "TaskRevokedError": "celery.exceptions",
    "NotRegistered": "celery.exceptions",
    "MaxRetriesExceededError": "celery.exceptions",
    "Ignore": "celery.exceptions",
    "ChordError": "celery.exceptions",
    "ContentDisallowed": "kombu.exceptions",
}


@pytest.mark.parametrize(("name", "module"), WIRE.items())
def test_celerys_exceptions_become_ours(name: str, module: str) -> None:
    made = exception_from_meta({"exc_type": name, "exc_message": ["x"], "exc_module": module})

    assert type(made) is getattr(kernel_app.exceptions, name)


# --------------------------------------------------------------------------- Celery reads ours, we read Celery's

VALUES: dict[str, Any] = {
    "null": None,
    "text": "é\u2028",
    "nested": {"a": [1, {"b": 1.5}]},
    "datetime": datetime(2026, 1, 2, tzinfo=UTC),
    "date": date(2026, 1, 2),
    "decimal": Decimal("1.10"),
    "uuid": UUID(int=7),
    "bytes": b"abc",
    "other bytes": b"\xff",
}


@pytest.fixture
def peer() -> Any:
    return celery.Celery("peer", broker="memory://", backend="cache+memory://", set_as_current=False)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_celery_reads_our_success(app: App, peer: Any, value: Any) -> None:
    @app.task
    def give() -> Any:
        return value

    give.delay()
    outcome = Worker(app).run()

    assert outcome.result is not None
    meta = peer.backend.decode_result(outcome.result.payload)
    assert (meta["status"], meta["result"]) == ("SUCCESS", value)


@pytest.mark.parametrize(
    ("error", "theirs"),
    [
        (ValueError("boom", 1), ValueError),
        (kernel_app.SoftTimeLimitExceeded(), billiard_exceptions.SoftTimeLimitExceeded),
        (kernel_app.TimeLimitExceeded(1), billiard_exceptions.TimeLimitExceeded),
        (kernel_app.MaxRetriesExceededError("x"), celery.exceptions.MaxRetriesExceededError),
        (kernel_app.NotRegistered("x"), celery.exceptions.NotRegistered),
    ],
)
def test_celery_reads_our_failure(app: App, peer: Any, error: Exception, theirs: type) -> None:
    @app.task
    def fail() -> None:
        raise error

    fail.delay()
    outcome = Worker(app).run()

    assert outcome.result is not None
    meta = peer.backend.decode_result(outcome.result.payload)
    assert meta["status"] == "FAILURE"
    assert type(meta["result"]) is theirs
    assert meta["result"].args == error.args


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_we_read_celerys_success(app: App, peer: Any, value: Any, compression: str | None) -> None:
    peer.backend.compression = compression
    meta = peer.backend._get_result_meta(value, "SUCCESS", None, None)
    store(app, "x", _bytes(peer.backend.encode({**meta, "task_id": "x"})))

    assert app.AsyncResult("x").get(timeout=1) == value


@pytest.mark.parametrize(
    "error",
    [ValueError("boom", 1), billiard_exceptions.WorkerLostError("gone"), celery.exceptions.TaskRevokedError("revoked")],
)
def test_we_read_celerys_failure(app: App, peer: Any, error: Exception) -> None:
    encoded = peer.backend.encode_result(error, "FAILURE")
    meta = peer.backend._get_result_meta(encoded, "FAILURE", "tb", None)
    store(app, "x", _bytes(peer.backend.encode({**meta, "task_id": "x"})))

    with pytest.raises(Exception, match=str(error.args[0])) as caught:
        app.AsyncResult("x").get(timeout=1)
    assert type(caught.value).__name__ == type(error).__name__


def _bytes(payload: str | bytes) -> bytes:
    return payload.encode() if isinstance(payload, str) else payload


def test_an_exception_group_is_told_by_name_and_message() -> None:
    """Cause: its instances cannot be made without its members, and that error took the place of the task's."""
    stored = {"exc_type": "ExceptionGroup", "exc_message": ["two things", "[…]"], "exc_module": "builtins"}

    made = exception_from_meta(stored)

    assert type(made).__name__ == "ExceptionGroup"
    assert made.args[0] == "two things"
