"""Tasks that run where they are called."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_app import App, EncodeError, Ignore, Task
from tests.plugins.app_native.conftest import MakeApp, publisher, results


def test_apply_runs_with_a_request(app: App) -> None:
    @app.task(bind=True)
    def look(self: Task[..., Any], x: int) -> list[Any]:
        return [x, self.request.id, self.request.is_eager, self.request.called_directly]

    result = look.apply((1,), task_id="i")

    assert result.get() == [1, "i", True, False]
    assert (result.state, result.successful(), result.ready()) == ("SUCCESS", True, True)
    assert publisher(app).sent == []


def test_apply_keeps_what_was_raised(app: App) -> None:
    @app.task
    def fail() -> None:
        raise ValueError("boom")

    result = fail.apply()

    assert (result.state, "boom" in (result.traceback or "")) == ("FAILURE", True)
    with pytest.raises(ValueError, match="boom"):
        result.get()
    with pytest.raises(ValueError, match="boom"):
        fail.apply(throw=True)


def test_apply_retries_at_once(app: App) -> None:
    tries: list[int] = []

    @app.task(bind=True, max_retries=2)
    def flaky(self: Task[..., Any]) -> str:
        tries.append(self.request.retries)
        if len(tries) < 3:
            raise self.retry(countdown=60)
        return "done"

    assert flaky.apply().get() == "done"
    assert tries == [0, 1, 2]


def test_apply_gives_up_after_max_retries(app: App) -> None:
    @app.task(autoretry_for=(ValueError,), max_retries=1)
    def flaky() -> None:
        raise ValueError("still")

    with pytest.raises(ValueError, match="still"):
        flaky.apply().get()


def test_apply_runs_callbacks(app: App) -> None:
    got: list[int] = []

    @app.task
    def keep(value: int, more: int) -> None:
        got.append(value + more)

    @app.task
    def one() -> int:
        return 1

    one.apply(link=[keep.s(10), keep.si(5, 5)])

    assert got == [11, 10]


def test_apply_runs_coroutines(app: App) -> None:
    @app.task
    async def later() -> int:
        return 1

    assert later.apply().get() == 1


def test_requests_nest(app: App) -> None:
    @app.task(bind=True)
    def inner(self: Task[..., Any]) -> list[Any]:
        return [self.request.id, self.request.parent_id, outer.request.id]

    @app.task(bind=True)
    def outer(self: Task[..., Any]) -> list[Any]:
        found = inner.apply(task_id="i").get()
        direct = inner.request.called_directly
        return [*found, direct, self.request.id]

    assert outer.apply(task_id="o").get() == ["i", "o", "o", True, "o"]


def test_always_eager_runs_instead_of_sending(make_app: MakeApp) -> None:
    app = make_app(task_always_eager=True)

    @app.task
    def echo(x: Any) -> Any:
        return x

    assert echo.delay((1, 2)).get() == [1, 2]  # through the serializer
    assert app.send_task(echo.name, (5,)).get() == 5
    with pytest.raises(EncodeError):
        echo.delay({1})
    app.send_task("elsewhere")
    assert [message.headers["task"] for message in publisher(app).sent] == ["elsewhere"]


def test_eager_errors_propagate_when_asked(make_app: MakeApp) -> None:
    app = make_app(task_always_eager=True, task_eager_propagates=True)

    @app.task
    def fail() -> None:
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail.delay()


def test_eager_results_are_stored_when_asked(make_app: MakeApp) -> None:
    app = make_app(task_store_eager_result=True)

    @app.task
    def one() -> int:
        return 1

    one.apply(task_id="i")

    assert app.AsyncResult("i").get(timeout=1) == 1
    assert len(results(app).history) == 1


def test_eager_ignore_is_a_state(app: App) -> None:
    @app.task
    def ignore() -> None:
        raise Ignore

    assert ignore.apply().state == "IGNORED"
