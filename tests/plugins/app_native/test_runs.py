"""Runs in the worker: from a message to an outcome."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import re
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kernel_app import (
    App,
    Ignore,
    Reject,
    SoftTimeLimitExceeded,
    Task,
    TimeLimitExceeded,
    current_task,
    get_task_logger,
)
from kernel_worker.types import Job, Outcome, OutcomeKind
from tests.plugins.app_native.conftest import MakeApp, Worker, body_of, job_of, meta_of, publisher, results

MakeWorker = Callable[[App], Worker]


def test_a_return_value_is_success_with_celerys_meta(app: App, worker: MakeWorker) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    sent = add.delay(2, y=3)
    outcome = worker(app).run()

    assert outcome.kind is OutcomeKind.SUCCESS
    assert outcome.runtime > 0
    meta = meta_of(outcome)
    assert list(meta) == ["status", "result", "traceback", "children", "date_done", "task_id"]
    assert (meta["status"], meta["result"], meta["traceback"], meta["children"]) == ("SUCCESS", 5, None, [])
    assert meta["task_id"] == sent.id
    assert datetime.fromisoformat(meta["date_done"]).tzinfo is not None
    assert outcome.result is not None
    assert outcome.result.expires == 86400
    assert sent.get(timeout=1) == 5


def test_an_exception_is_failure_with_its_traceback(app: App, worker: MakeWorker) -> None:
    @app.task
    def fail() -> None:
        raise ValueError("boom", 7)

    sent = fail.delay()
    outcome = worker(app).run()

    assert outcome.kind is OutcomeKind.FAILURE
    assert outcome.error == "ValueError: ('boom', 7)"
    meta = meta_of(outcome)
    assert meta["result"] == {"exc_type": "ValueError", "exc_message": ["boom", 7], "exc_module": "builtins"}
    assert meta["traceback"].startswith("Traceback (most recent call last):\n")
    assert meta["traceback"].count("File ") == 1
    with pytest.raises(ValueError, match="boom"):
        sent.get(timeout=1)


def test_wrong_arguments_are_a_failure(app: App, worker: MakeWorker) -> None:
    @app.task(typing=False)
    def one(x: int) -> int:
        return x

    one.delay()  # type: ignore[call-arg]
    outcome = worker(app).run()

    assert outcome.kind is OutcomeKind.FAILURE
    assert "missing 1 required positional argument" in outcome.error


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class BadArgs(Exception):
    def __init__(self, a: object, b: object) -> None:
        super().__init__(a, b)


class Bare(BaseException):
    pass


class HostileArgs(Exception):
    @property
    def args(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no args")


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        RecursionError("deep"),
        HostileError(HostileError()),
        BadArgs({1}, object()),
        Bare("x"),
        HostileArgs(1),
        ExceptionGroup("several", [ValueError(1)]),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_task_raises_is_a_failure(app: App, worker: MakeWorker, error: BaseException) -> None:
    @app.task
    def fail() -> None:
        raise error

    fail.delay()
    outcome = worker(app).run()

    assert outcome.kind is OutcomeKind.FAILURE
    assert meta_of(outcome)["result"]["exc_type"] == type(error).__name__
    assert outcome.error.startswith(type(error).__name__)


def test_task_without_memory_left_is_lost_like_one_whose_process_was_killed(app: App, worker: MakeWorker) -> None:
    @app.task
    def exhaust() -> None:
        raise MemoryError

    exhaust.delay()
    outcome = worker(app).run()

    assert outcome.kind is OutcomeKind.LOST
    assert re.fullmatch(r"MemoryError in a process that held \d+ MB at most", outcome.error)
    assert outcome.result is None


def test_task_that_retries_without_memory_is_retried(app: App, worker: MakeWorker) -> None:
    @app.task(autoretry_for=(MemoryError,))
    def exhaust() -> None:
        raise MemoryError

    exhaust.delay()

    assert worker(app).run().kind is OutcomeKind.RETRY


def test_a_task_that_recurses_without_end_fails(app: App, worker: MakeWorker) -> None:
    @app.task
    def recurse() -> None:
        recurse.run()

    recurse.delay()

    assert meta_of(worker(app).run())["result"]["exc_type"] == "RecursionError"


@pytest.mark.parametrize("value", [{1}, object(), lambda: None, 10**5000], ids=["set", "object", "function", "int"])
def test_a_result_that_cannot_be_written_is_a_failure(app: App, worker: MakeWorker, value: Any) -> None:
    @app.task
    def give() -> Any:
        return value

    give.delay()
    outcome = worker(app).run()

    assert outcome.kind is OutcomeKind.FAILURE
    meta = meta_of(outcome)
    assert (meta["result"]["exc_type"], meta["result"]["exc_module"]) == ("EncodeError", "kombu.exceptions")


def test_error_text_is_safe_to_print_and_bounded(app: App, worker: MakeWorker) -> None:
    @app.task
    def fail() -> None:
        raise ValueError("line\nbreak \x1b[31m \u202e" + "x" * 10_000)

    fail.delay()
    outcome = worker(app).run()

    assert outcome.error.isprintable()
    assert len(outcome.error) < 300


def test_a_giant_traceback_is_cut(app: App, worker: MakeWorker) -> None:
    @app.task
    def fail() -> None:
        raise ValueError("x" * 1_000_000)

    fail.delay()

    assert len(meta_of(worker(app).run())["traceback"]) < 70_000


# --------------------------------------------------------------------------- what a task may say


def test_ignore_stores_nothing(app: App, worker: MakeWorker) -> None:
    @app.task
    def ignore() -> None:
        raise Ignore

    ignore.delay()
    outcome = worker(app).run()

    assert (outcome.kind, outcome.result) == (OutcomeKind.IGNORE, None)


@pytest.mark.parametrize("requeue", [True, False])
def test_reject_says_whether_to_requeue(app: App, worker: MakeWorker, requeue: bool) -> None:
    @app.task
    def reject() -> None:
        raise Reject("no", requeue=requeue)

    reject.delay()
    outcome = worker(app).run()

    assert (outcome.kind, outcome.requeue, outcome.error) == (OutcomeKind.REJECT, requeue, "no")
    if not requeue:
        wanted = {"exc_type": "Reject", "exc_message": ["no", False], "exc_module": "celery.exceptions"}
        assert meta_of(outcome)["result"] == wanted


@pytest.mark.parametrize(
    ("error", "kind", "wire"),
    [
        (SoftTimeLimitExceeded(), OutcomeKind.FAILURE, "SoftTimeLimitExceeded"),
        (TimeLimitExceeded(1), OutcomeKind.TIMEOUT, "TimeLimitExceeded"),
    ],
)
def test_limits_raised_into_a_task(
    app: App, worker: MakeWorker, error: Exception, kind: OutcomeKind, wire: str
) -> None:
    @app.task
    def slow() -> None:
        raise error

    slow.delay()
    outcome = worker(app).run()

    assert outcome.kind is kind
    meta = meta_of(outcome)["result"]
    assert (meta["exc_type"], meta["exc_module"]) == (wire, "billiard.exceptions")


def test_the_request_knows_its_message(app: App, worker: MakeWorker) -> None:
    seen: dict[str, Any] = {}

    @app.task(bind=True)
    def look(self: Task[..., Any], x: int, *, y: int) -> None:
        request = self.request
        names = ("id", "task", "args", "kwargs", "retries", "root_id", "parent_id", "hostname", "headers", "shadow")
        names += ("delivery_info", "called_directly", "is_eager", "timelimit", "time_limit", "correlation_id", "group")
        names += ("callbacks", "x_custom", "reply_to", "argsrepr", "redelivered_by")
        seen.update({name: getattr(request, name, "missing") for name in names})
        seen["current"] = (current_task.name, app.current_task, current_task.request.id)

    look.apply_async((1,), {"y": 2}, task_id="i", headers={"x_custom": "v"}, time_limit=9, queue="q", priority=3)
    message = publisher(app).sent[0]
    worker(app).run(queue="q", redelivered=True)

    assert seen.pop("current") == (look.name, look, "i")
    assert seen == {
        "id": "i", "task": look.name, "args": [1], "kwargs": {"y": 2}, "retries": 0, "root_id": "i", "parent_id": None,
        "hostname": "w1@host1", "headers": {"x_custom": "v"}, "shadow": None, "called_directly": False,
        "is_eager": False, "timelimit": [9, None], "time_limit": 9, "correlation_id": "i", "group": None,
        "delivery_info": {"exchange": "", "routing_key": "q", "priority": 3, "redelivered": True}, "callbacks": None,
        "x_custom": "v", "reply_to": message.properties["reply_to"], "argsrepr": "(1,)", "redelivered_by": "missing",
    }  # fmt: skip
    assert not current_task
    assert look.request.called_directly


def test_what_a_task_sends_knows_where_it_came_from(app: App, worker: MakeWorker) -> None:
    @app.task
    def leaf() -> None: ...

    @app.task
    def root() -> str:
        return leaf.delay().id

    sent = root.delay()
    at_work = worker(app)
    outcome = at_work.run()

    headers = publisher(app).sent[0].headers
    assert (headers["root_id"], headers["parent_id"]) == (sent.id, sent.id)
    assert meta_of(outcome)["children"] == [[[headers["id"], None], None]]
    assert [child.id for child in sent.children or []] == [headers["id"]]
    assert meta_of(at_work.run())["parent_id"] == sent.id


def test_priority_is_inherited_when_asked_for(make_app: MakeApp, worker: MakeWorker) -> None:
    app = make_app(task_inherit_parent_priority=True)

    @app.task
    def root() -> None:
        app.send_task("leaf")

    root.apply_async(priority=7)
    worker(app).run()

    assert publisher(app).sent[0].priority == 7


def test_a_coroutine_is_run_to_its_end(app: App, worker: MakeWorker) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    @app.task(bind=True)
    async def wait(self: Task[..., Any], x: int) -> list[Any]:
        variable.set("inside")
        await asyncio.sleep(0)
        return [x, self.request.id, id(asyncio.get_running_loop())]

    at_work = worker(app)
    first, second = (wait.apply_async((1,), task_id=name) for name in "ab")
    at_work.run_all()

    assert first.get()[:2] == [1, "a"]
    assert first.get()[2] == second.get()[2]


def test_nothing_of_an_interrupted_coroutine_runs_on(app: App, worker: MakeWorker) -> None:
    log = []

    @app.task
    async def interrupted() -> None:
        async def beside() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                log.append("cancelled")

        task = asyncio.create_task(beside())
        await asyncio.sleep(0)
        del task
        raise SoftTimeLimitExceeded

    interrupted.delay()
    outcome = worker(app).run()

    assert outcome.kind is OutcomeKind.FAILURE
    assert log == ["cancelled"]


def test_a_limit_raised_in_the_event_loop_ends_the_coroutine(app: App, worker: MakeWorker) -> None:
    ended: list[str] = []

    @app.task
    async def sleeps() -> None:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    def limit(*_: Any) -> None:
        raise SoftTimeLimitExceeded

    sleeps.delay()
    sleeps.delay()
    at_work = worker(app)
    before = signal.signal(signal.SIGALRM, limit)
    try:
        outcomes = [at_work.run() for _ in range(2)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert [outcome.error.partition(":")[0] for outcome in outcomes] == ["SoftTimeLimitExceeded"] * 2
    assert ended == ["cancelled"] * 2


# --------------------------------------------------------------------------- states and results


def test_started_is_stored_when_tracked(make_app: MakeApp, worker: MakeWorker) -> None:
    app = make_app(task_track_started=True)

    @app.task
    def tracked() -> str:
        return "done"

    tracked.delay()
    worker(app).run()

    history = [json.loads(stored.payload) for stored in results(app).history]
    assert [meta["status"] for meta in history] == ["STARTED", "SUCCESS"]
    assert history[0]["result"]["hostname"] == "w1@host1"


def test_a_task_runs_though_its_start_cannot_be_stored(
    make_app: MakeApp, worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cause: the error of the result backend was taken for the task's: a short outage failed what had not even run."""
    app = make_app(task_track_started=True)

    @app.task
    def tracked() -> str:
        return "done"

    tracked.delay()

    def refuse(stored: object) -> None:
        raise ConnectionError("away")

    ready = worker(app)
    with monkeypatch.context() as patch:
        patch.setattr(results(app), "store", refuse)
        outcome = ready.loaded.run(job_of(publisher(app).sent.pop(0).envelope()))

    assert outcome.kind is OutcomeKind.SUCCESS
    assert meta_of(outcome)["result"] == "done"


def test_a_task_may_store_states_of_its_own(app: App, worker: MakeWorker) -> None:
    @app.task(bind=True)
    def work(self: Task[..., Any]) -> None:
        self.update_state(state="PROGRESS", meta={"done": 5})
        raise Ignore

    sent = work.delay()
    worker(app).run()

    assert (sent.state, sent.info) == ("PROGRESS", {"done": 5})


IGNORING: dict[str, tuple[dict[str, Any], bool | None, bool, bool]] = {
    # settings, option of the call: is success stored, is failure stored
    "default": ({}, None, True, True),
    "setting": ({"task_ignore_result": True}, None, False, False),
    "call": ({}, True, False, False),
    "call says no": ({"task_ignore_result": True}, False, True, True),
    "errors": ({"task_ignore_result": True, "task_store_errors_even_if_ignored": True}, None, False, True),
    "no backend": ({"result_backend": None}, None, False, False),
}


@pytest.mark.parametrize(("settings", "option", "success", "failure"), IGNORING.values(), ids=IGNORING.keys())
def test_results_are_ignored_as_asked(
    make_app: MakeApp,
    worker: MakeWorker,
    settings: dict[str, Any],
    option: bool | None,
    success: bool,
    failure: bool,
) -> None:
    app = make_app(**settings)

    @app.task
    def divide(by: int) -> float:
        return 1 / by

    at_work = Worker(app)
    for by, stored in ((1, success), (0, failure)):
        divide.apply_async((by,), **({} if option is None else {"ignore_result": option}))  # type: ignore[typeddict-item]
        raw = publisher(app).sent.pop(0).envelope()
        assert (at_work.loaded.run(job_of(raw)).result is not None) is stored


def test_extended_results_say_what_ran(make_app: MakeApp, worker: MakeWorker) -> None:
    app = make_app(result_extended=True)

    @app.task(name="t")
    def extended(x: int) -> None: ...

    sent = extended.apply_async((1,), queue="q", group_id="g", stamped_headers=["s"], s="v")  # type: ignore[call-arg]
    meta = meta_of(worker(app).run(queue="q"))

    assert (meta["name"], meta["args"], meta["kwargs"], meta["worker"]) == ("t", [1], {}, "w1@host1")
    assert (meta["retries"], meta["queue"], meta["group_id"]) == (0, "q", "g")
    assert (meta["stamped_headers"], meta["s"]) == (["s"], "v")
    assert (sent.name, sent.args, sent.worker, sent.queue) == ("t", [1], "w1@host1", "q")


@pytest.mark.parametrize(
    ("settings", "success", "failure"),
    [
        ({"result_expires": timedelta(hours=1)}, 3600, 3600),
        ({"result_expires": None}, None, None),
        ({"result_expires": 60, "result_failure_expires": 7}, 60, 7),
    ],
)
def test_results_expire_as_set(
    make_app: MakeApp, settings: dict[str, Any], success: float | None, failure: float | None
) -> None:
    app = make_app(**settings)

    @app.task
    def divide(by: int) -> float:
        return 1 / by

    divide.delay(1)
    divide.delay(0)
    outcomes = Worker(app).run_all()

    assert [outcome.result.expires for outcome in outcomes if outcome.result] == [success, failure]


def test_results_may_be_compressed(make_app: MakeApp, worker: MakeWorker) -> None:
    app = make_app(result_compression="gzip")

    @app.task
    def give() -> str:
        return "x" * 10_000

    sent = give.delay()
    outcome = worker(app).run()

    assert outcome.result is not None
    assert outcome.result.payload.startswith(b"\0celery-compressed\0application/x-gzip\0")
    assert len(outcome.result.payload) < 1000
    assert sent.get(timeout=1) == "x" * 10_000


# --------------------------------------------------------------------------- expiry, hooks, logs


def test_an_expired_message_is_not_run(app: App, worker: MakeWorker) -> None:
    @app.task
    def never() -> None:
        pytest.fail("run")

    never.apply_async(expires=datetime.now(UTC) - timedelta(seconds=1))
    outcome = worker(app).run()

    assert (outcome.kind, outcome.error) == (OutcomeKind.EXPIRED, "expired")
    meta = meta_of(outcome)
    wanted = {"exc_type": "TaskRevokedError", "exc_message": ["expired"], "exc_module": "celery.exceptions"}
    assert (meta["status"], meta["result"]) == ("REVOKED", wanted)


def test_hooks_of_a_base_class_are_called_in_order(app: App, worker: MakeWorker) -> None:
    log: list[Any] = []

    class Noting(Task[..., Any]):
        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            log.append(("before", task_id, args))

        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            log.append(("success", retval))

        def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            log.append(("failure", type(exc).__name__, "ZeroDivisionError" in einfo.traceback))

        def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            log.append(("after", status))
            raise RuntimeError("a hook's bug")

    @app.task(base=Noting)
    def divide(by: int) -> float:
        return 1 / by

    divide.apply_async((1,), task_id="a")
    divide.apply_async((0,), task_id="b")
    outcomes = Worker(app).run_all()

    assert log == [
        ("before", "a", [1]), ("success", 1.0), ("after", "SUCCESS"),
        ("before", "b", [0]), ("failure", "ZeroDivisionError", True), ("after", "FAILURE"),
    ]  # fmt: skip
    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.SUCCESS, OutcomeKind.FAILURE]


def test_one_line_is_logged_per_run(app: App, worker: MakeWorker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kernel_app.task")

    @app.task(name="t", throws=(KeyError,))
    def run(what: str) -> str:
        if what == "fail":
            raise ValueError("boom\x1b[31m")
        if what == "expected":
            raise KeyError("k")
        if what == "ignore":
            raise Ignore
        if what == "reject":
            raise Reject("no")
        return "x" * 2000

    for what in ("succeed", "fail", "expected", "ignore", "reject"):
        run.apply_async((what,), task_id=f"{what}\n1")
    Worker(app).run_all()

    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in lines] == ["INFO", "ERROR", "INFO", "INFO", "WARNING"]
    success, failure, expected, ignored, rejected = (text for _, text in lines)
    assert success.startswith("Task t[succeed\\n1] succeeded in ")
    assert len(success) < 1200
    assert failure.startswith("Task t[fail\\n1] raised unexpected: ValueError: boom\\x1b[31m\nTraceback")
    assert "\x1b" not in failure
    assert expected == "Task t[expected\\n1] raised expected: KeyError: 'k'"
    assert ignored == "Task t[ignore\\n1] ignored"
    assert rejected == "Task t[reject\\n1] reject requeue=False: no"
    assert all(getattr(record, "action", None) == "task_ended" for record in caplog.records)


def test_task_loggers_belong_to_the_workers() -> None:
    assert get_task_logger("shop").name == "kernel_app.task.shop"


def test_calls_are_wrapped_per_task(app: App) -> None:
    @app.task(name="t")
    def run() -> None: ...

    seen = []

    def wrap(name: str, call: Callable[[Job], Outcome]) -> Callable[[Job], Outcome]:
        def wrapped(job: Job) -> Outcome:
            seen.append((name, job.tag))
            return call(job)

        return wrapped

    run.delay()
    at_work = Worker(app)
    at_work.loaded.setup("n", wrap)
    at_work.run(tag=7)

    assert seen == [("t", 7)]


def test_a_body_kept_apart_by_the_broker_is_used(app: App, worker: MakeWorker) -> None:
    @app.task(name="t")
    def echo(x: Any) -> Any:
        return x

    echo.delay("é")
    message = publisher(app).sent.pop()
    envelope = {key: value for key, value in json.loads(message.envelope()).items() if key != "body"}

    outcome = worker(app).run(json.dumps(envelope).encode(), payload=message.body)

    assert meta_of(outcome)["result"] == "é"
    assert body_of(message)[0] == ["é"]
