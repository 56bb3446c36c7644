"""The tasks of both sides: `define(app)` gives a native and a Celery application the same ones."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from kernel_worker.testing.ledger import Ledger

REQUEST = (
    *("id", "root_id", "parent_id", "group", "group_index", "retries", "timelimit", "shadow", "correlation_id"),
    *("eta", "expires", "stamped_headers", "stamps", "hostname", "tenant", "ignore_result"),
)


class OddError(Exception):
    """A client does not have this class."""


class Demanding(Exception):
    """Its constructor does not take what it hands on."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


class Outer:
    class Inner(Exception):
        """Its name has a dot."""


ERRORS: dict[str, Any] = {
    "ValueError": lambda: ValueError("boom", 7),
    "KeyError": lambda: KeyError("missing"),
    "no arguments": RuntimeError,
    "unknown class": lambda: OddError("odd", [1, {"a": None}]),
    "nested class": lambda: Outer.Inner("within"),
    "demanding constructor": lambda: Demanding(5, "why"),
    "argument that is no JSON": lambda: ValueError({1, 2}.__class__, "text"),
    "unicode": lambda: ValueError("snow ☃ and \U0001f600"),
    "OSError": lambda: FileNotFoundError(2, "No such file or directory"),
    "UnicodeDecodeError": lambda: b"\xff".decode("utf-8"),
}


def settings() -> dict[str, Any]:
    """What the test wants of the worker's application: its queue is the default one, so that what tasks send stays
    with the worker."""
    url = os.environ["COMPAT_URL"]
    queue = os.environ["COMPAT_QUEUE"]
    queues = {
        queue: {"exchange": queue, "exchange_type": "direct", "routing_key": queue},
        f"{queue}.news": {"exchange": f"{queue}.topics", "exchange_type": "topic", "routing_key": "news.#"},
    }
    wanted: dict[str, Any] = json.loads(os.environ.get("COMPAT_SETTINGS", "{}"))
    urls = {"broker_url": url, "result_backend": url}
    return {**urls, "task_default_queue": queue, "task_queues": queues, **wanted}


def define(app: Any) -> None:
    """Define the tasks of this module on an application of either kind."""
    _define_plain(app)
    _define_timed(app)
    _define_following(app)


def _define_plain(app: Any) -> None:
    @app.task(name="compat.mirror")
    def mirror(value: Any) -> list[Any]:
        return [value, repr(value)]

    @app.task(name="compat.add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    @app.task(name="compat.total")
    def total(values: list[int]) -> int:
        return sum(values)

    @app.task(name="compat.fail")
    def fail(kind: str) -> None:
        error = ERRORS[kind]()
        raise error

    @app.task(name="compat.unwritable")
    def unwritable() -> object:
        return object()

    @app.task(name="compat.about", bind=True)
    def about(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return _describe(self.request, args, kwargs)

    @app.task(name="compat.about_again", bind=True)
    def about_again(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if not self.request.retries:
            raise self.retry(countdown=0.1)
        return _describe(self.request, args, kwargs)


def _describe(request: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    found = {name: getattr(request, name, None) for name in REQUEST}
    return {**found, "args": list(args), "kwargs": kwargs, "delivery_info": dict(request.delivery_info)}


def _define_timed(app: Any) -> None:
    @app.task(name="compat.now")
    def now() -> float:
        return time.time()

    @app.task(name="compat.note", bind=True)
    def note(self: Any, ledger: str, label: Any) -> Any:
        Ledger(ledger).note("start", label=label, node=self.request.hostname)
        return label

    @app.task(name="compat.sleep", bind=True, acks_late=True)
    def sleep(self: Any, ledger: str, label: Any, seconds: float) -> Any:
        Ledger(ledger).note("start", label=label, node=self.request.hostname)
        time.sleep(seconds)
        Ledger(ledger).note("end", label=label, node=self.request.hostname)
        return label

    @app.task(name="compat.hold", bind=True, acks_late=True)
    def hold(self: Any, until: str, ledger: str = "", label: Any = "") -> Any:
        """Runs until somebody makes that file, for a minute at most."""
        if ledger:
            Ledger(ledger).note("start", label=label, node=self.request.hostname)
        deadline = time.monotonic() + 60
        while not os.path.exists(until) and time.monotonic() < deadline:
            time.sleep(0.02)
        if ledger:
            Ledger(ledger).note("end", label=label, node=self.request.hostname)
        return label

    @app.task(name="compat.tracked", track_started=True)
    def tracked(seconds: float) -> str:
        time.sleep(seconds)
        return "done"

    @app.task(name="compat.retry", bind=True, max_retries=5)
    def retry(self: Any, times: int, countdown: float) -> int:
        if self.request.retries < times:
            raise self.retry(exc=ValueError("not yet"), countdown=countdown)
        return int(self.request.retries)

    @app.task(name="compat.give_up", bind=True, max_retries=2)
    def give_up(self: Any, reason: str | None = None) -> None:
        raise self.retry(exc=OSError(reason) if reason else None, countdown=0)

    @app.task(name="compat.automatic", bind=True, autoretry_for=(KeyError,), max_retries=3, default_retry_delay=0)
    def automatic(self: Any, times: int) -> int:
        if self.request.retries < times:
            raise KeyError("again")
        return int(self.request.retries)

    @app.task(name="compat.soft", bind=True)
    def soft(self: Any, seconds: float) -> str:
        try:
            time.sleep(seconds)
        except Exception as error:
            return type(error).__name__
        return "not interrupted"


def _define_following(app: Any) -> None:
    @app.task(name="compat.errback")
    def errback(task_id: str, ledger: str) -> None:
        Ledger(ledger).note("errback", task_id=task_id)

    @app.task(name="compat.bound_errback", bind=True)
    def bound_errback(self: Any, task_id: str, ledger: str) -> None:
        Ledger(ledger).note("bound errback", failed=task_id, own=self.request.id)

    # registered and of more than one argument: called in the worker with request, error and traceback
    @app.task(name="compat.inspect_failure")
    def inspect_failure(request: Any, error: Any, traceback: Any, ledger: str) -> None:
        Ledger(ledger).note("failure", task_id=request.id, error=repr(error), traceback=str(traceback)[:20])

    @app.task(name="compat.parent", bind=True)
    def parent(self: Any, x: int) -> str:
        child = self.app.send_task("compat.about", (x,))
        return str(child.id)
