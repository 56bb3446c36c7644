"""Celery's built-in tasks that its clients send by name: `celery.map`, `celery.starmap`, `celery.chunks`, `celery.accumulate`.

Workers register them when they load an application. Facts: messages captured from Celery 5.7's clients; each carries a
signature, of which only the name of the task counts. Untrusted input.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .exceptions import NotRegistered

if TYPE_CHECKING:
    from .app import App
    from .task import Task


def provide(app: App) -> None:
    """Register those that the application has not defined itself."""

    def each(task: Any, it: Sequence[Any]) -> list[Any]:
        """The results of calls with one argument each, in order."""
        called = _called(app, task)
        return [_result(app, called(item)) for item in it]

    def star(task: Any, it: Sequence[Sequence[Any]]) -> list[Any]:
        """The results of calls with these arguments, in order."""
        called = _called(app, task)
        return [_result(app, called(*arguments)) for arguments in it]

    def chunks(task: Any, it: Sequence[Sequence[Any]], n: int) -> Any:
        """Send messages of `n` calls each; their results as a group's."""
        _called(app, task)
        if n < 1:
            raise ValueError(f"chunks of {n} calls: at least 1")
        parts = [
            app.send_task("celery.starmap", kwargs={"task": task, "it": list(it[at : at + n])})
            for at in range(0, len(it), n)
        ]
        return [[str(uuid.uuid4()), None], [part.as_tuple() for part in parts]]

    def accumulate(*values: Any, index: int | None = None) -> Any:
        """The arguments, or one of them."""
        return values if index is None else values[index]

    for name, function in (("map", each), ("starmap", star), ("chunks", chunks), ("accumulate", accumulate)):
        if f"celery.{name}" not in app.tasks:
            app.task(name=f"celery.{name}")(function)


def _called(app: App, signature: Any) -> Task[..., Any, Any]:
    """The task of a signature.

    :raises NotRegistered: there is none of that name here.
    """
    name = signature.get("task") if isinstance(signature, Mapping) else None
    found = app.tasks.get(name) if isinstance(name, str) else None
    if found is None:
        raise NotRegistered(name if isinstance(name, str) else "")
    return found


def _result(app: App, value: Any) -> Any:
    return app.coroutines.run(value) if inspect.iscoroutine(value) else value
