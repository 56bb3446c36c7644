"""What a running task may know of itself: `task.request`.

One context variable holds the request that runs now; requests know the one they run inside of, so a task that
runs another one in place finds its own request again. Works on threads, greenlets and in coroutines alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

_DEFAULTS: dict[str, Any] = {
    "args": None,
    "callbacks": None,
    "called_directly": True,
    "chain": None,
    "chord": None,
    "correlation_id": None,
    "delivery_info": None,
    "errbacks": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "hostname": None,
    "id": None,
    "ignore_result": None,
    "is_eager": False,
    "kwargs": None,
    "logfile": None,
    "loglevel": None,
    "origin": None,
    "parent_id": None,
    "properties": None,
    "queue": None,
    "retries": 0,
    "reply_to": None,
    "replaced_task_nesting": 0,
    "root_id": None,
    "shadow": None,
    "stamped_headers": None,
    "stamps": None,
    "task": None,
    "taskset": None,
    "timelimit": None,
    "utc": None,
}
_NOT_CUSTOM = frozenset({*_DEFAULTS, "lang", "argsrepr", "kwargsrepr", "compression", "redelivered", "id"})
_PROPERTIES = frozenset({"reply_to", "correlation_id"})


class Context:
    """The request a task runs for: message headers, properties and embedded signatures as attributes.

    Made once per message, so nothing is copied out of the headers before somebody asks for it.
    """

    received: Mapping[str, Any]
    """The headers as they came."""

    def __init__(self, headers: Mapping[str, Any], outer: Context | None = None, owner: Any = None) -> None:
        self.received = headers
        self._outer = outer
        self._owner = owner

    def __getattr__(self, name: str) -> Any:
        # Only for what is not an instance attribute yet.
        if name == "received":  # a copy being made, or the like
            raise AttributeError(name)
        if name == "headers":
            return {key: value for key, value in self.received.items() if key not in _NOT_CUSTOM} or None
        if name == "children":
            self.children = found = []  # type: list[Any]
            return found
        if name in ("time_limit", "soft_time_limit"):
            limits = self.received.get("timelimit") or (None, None)
            return limits[0 if name == "time_limit" else 1]
        if name in self.received and not name.startswith("_"):
            return self.received[name]
        if name in _PROPERTIES and self.properties:
            return self.properties.get(name)
        if name in _DEFAULTS:
            return _DEFAULTS[name]
        raise AttributeError(name)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default when there is none."""
        return getattr(self, name, default)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set several attributes."""
        self.__dict__.update(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Context: {self.task} {self.id}>"


CURRENT: ContextVar[Context | None] = ContextVar("kernel_app_request", default=None)
"""The request that runs here and now, None outside of tasks."""


def request_of(task: Any) -> Context:
    """The innermost running request of this task; outside of one, a request that says `called_directly`."""
    context = CURRENT.get()
    while context is not None:
        if context._owner is task:
            return context
        context = context._outer
    return Context({}, owner=task)


def running() -> Context | None:
    """The innermost request that a worker (or `apply`) runs here; direct calls are looked through."""
    context = CURRENT.get()
    while context is not None and context.called_directly:
        context = context._outer
    return context


class CurrentTask:
    """Stands for the task that runs here and now; false and without attributes outside of one."""

    def __bool__(self) -> bool:
        return running() is not None

    def __getattr__(self, name: str) -> Any:
        context = running()
        if context is None:
            raise AttributeError(f"no task is running here, so it has no {name!r}")
        return getattr(context._owner, name)

    def __repr__(self) -> str:
        context = running()
        return f"<current task: {context._owner if context else None}>"


current_task: Any = CurrentTask()
