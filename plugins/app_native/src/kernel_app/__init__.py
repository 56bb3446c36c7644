"""Define tasks and send them; needs no worker. Public names only, imported lazily: the kernel process, which runs
no tasks, imports this package for its plugin `commands`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import exceptions, signals, states
    from .app import App
    from .context import current_task
    from .exceptions import (
        ChordError,
        ConfigError,
        ContentDisallowed,
        DecodeError,
        EncodeError,
        Ignore,
        KernelAppError,
        MaxRetriesExceededError,
        NotRegistered,
        OperationalError,
        QueueNotFound,
        Reject,
        Retry,
        SoftTimeLimitExceeded,
        TaskRevokedError,
        Terminated,
        TimeLimitExceeded,
        TimeoutError,
        WorkerLostError,
    )
    from .log import get_task_logger
    from .results import AsyncResult, EagerResult, GroupResult, ResultSet
    from .routing import Queue
    from .signature import Signature
    from .task import Task

__version__ = "0.1.0"

_HOME = {
    "App": "app",
    "current_task": "context",
    **dict.fromkeys(
        (
            "ChordError",
            "ConfigError",
            "ContentDisallowed",
            "DecodeError",
            "EncodeError",
            "Ignore",
            "KernelAppError",
            "MaxRetriesExceededError",
            "NotRegistered",
            "OperationalError",
            "QueueNotFound",
            "Reject",
            "Retry",
            "SoftTimeLimitExceeded",
            "TaskRevokedError",
            "Terminated",
            "TimeLimitExceeded",
            "TimeoutError",
            "WorkerLostError",
        ),
        "exceptions",
    ),
    "get_task_logger": "log",
    **dict.fromkeys(("AsyncResult", "EagerResult", "GroupResult", "ResultSet"), "results"),
    "Queue": "routing",
    "Signature": "signature",
    "Task": "task",
}
"""The module each public name comes from."""

__all__ = [
    "App",
    "AsyncResult",
    "ChordError",
    "ConfigError",
    "ContentDisallowed",
    "DecodeError",
    "EagerResult",
    "EncodeError",
    "GroupResult",
    "Ignore",
    "KernelAppError",
    "MaxRetriesExceededError",
    "NotRegistered",
    "OperationalError",
    "Queue",
    "QueueNotFound",
    "Reject",
    "ResultSet",
    "Retry",
    "Signature",
    "SoftTimeLimitExceeded",
    "Task",
    "TaskRevokedError",
    "Terminated",
    "TimeLimitExceeded",
    "TimeoutError",
    "WorkerLostError",
    "__version__",
    "current_task",
    "exceptions",
    "get_task_logger",
    "signals",
    "states",
]


def __getattr__(name: str) -> Any:
    if name in ("exceptions", "signals", "states"):
        return importlib.import_module(f".{name}", __name__)
    try:
        module = importlib.import_module(f".{_HOME[name]}", __name__)
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(module, name)
    globals()[name] = value
    return value
