"""Define tasks and send them; needs no worker. Public names only."""

from __future__ import annotations

from . import exceptions, states
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
    "states",
]
