"""What can go wrong on the client's side and in tasks.

    Exception
    ├── KernelAppError
    │   ├── ConfigError                a setting has an unknown name or an impossible value
    │   ├── OperationalError           the broker or the result store cannot be reached (also a ConnectionError)
    │   ├── EncodeError                a value cannot be written in the chosen serializer
    │   ├── DecodeError                bytes are not what they claim to be
    │   │   └── ContentDisallowed      the content type is not accepted; nothing was decoded
    │   ├── QueueNotFound              (also a KeyError)
    │   ├── NotRegistered              no task of that name (also a KeyError)
    │   ├── TimeoutError               no result in time (also the builtin TimeoutError)
    │   └── ChordError
    ├── TaskPredicate                  raised in a task to say how it ends
    │   ├── Retry
    │   ├── Ignore
    │   └── Reject
    ├── MaxRetriesExceededError, TaskRevokedError
    └── SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError
    BaseException
    └── Terminated

Classes for stored exceptions whose own class is unknown here are created under this module's name.
Imports nothing of the package.
"""

from __future__ import annotations

import builtins
from datetime import datetime
from typing import Any


class KernelAppError(Exception):
    """Base of the errors that this package raises on its own account."""


class ConfigError(KernelAppError):
    """A setting has an unknown name or an impossible value."""


class OperationalError(KernelAppError, ConnectionError):
    """The broker or the result store cannot be reached. URLs in the text carry no credentials."""


class EncodeError(KernelAppError):
    """A value cannot be written in the chosen serializer; the text names its type."""


class DecodeError(KernelAppError):
    """Bytes are not what they claim to be, or exceed a limit."""


class ContentDisallowed(DecodeError):
    """The content type is not in `accept_content`; nothing was decoded."""


class _NamedKeyError(KernelAppError, KeyError):
    __str__ = Exception.__str__  # KeyError would print the repr of the text


class QueueNotFound(_NamedKeyError):
    """The queue is not in `task_queues`, and `task_create_missing_queues` is off."""


class NotRegistered(_NamedKeyError):
    """The application has no task of that name, which is its argument."""

    def __str__(self) -> str:
        return f"no task named {self.args[0]!r} is registered" if len(self.args) == 1 else super().__str__()


class TimeoutError(KernelAppError, builtins.TimeoutError):
    """The result did not become ready in time."""


class ChordError(KernelAppError):
    """A member of a chord failed, or the chord cannot be completed."""


class TaskPredicate(Exception):
    """Base of what a task raises to say how it ends."""


class Retry(TaskPredicate):
    """The task is tried again; raised by `Task.retry`.

    :param exc: the error that made it necessary, or its text.
    :param when: seconds from now, or the time of the next try.
    """

    def __init__(
        self,
        message: str | None = None,
        exc: BaseException | str | None = None,
        when: float | datetime | None = None,
        is_eager: bool = False,
        sig: Any = None,
        **kwargs: Any,
    ) -> None:
        self.message = message
        self.exc: BaseException | None = exc if isinstance(exc, BaseException) else None
        self.excs: str | None = exc if isinstance(exc, str) else None
        self.when = when
        self.is_eager = is_eager
        self.sig = sig
        super().__init__(message, exc, when, **kwargs)

    def humanize(self) -> str:
        """When it is tried again, for people."""
        if isinstance(self.when, (int, float)):
            return f"in {self.when}s"
        return f"at {self.when}"

    def __str__(self) -> str:
        if self.message:
            return self.message
        cause = self.excs
        if cause is None and self.exc is not None:
            try:
                cause = repr(self.exc)
            except Exception:  # a hostile __repr__ must not hide that there is a retry
                cause = type(self.exc).__name__
        return f"Retry {self.humanize()}: {cause}" if cause else f"Retry {self.humanize()}"

    def __reduce__(self) -> Any:
        return type(self), (self.message, self.exc, self.when)


class Ignore(TaskPredicate):
    """The task ends without a state being stored; the message is acknowledged."""


class Reject(TaskPredicate):
    """The message is given back to the broker: to its queue, or to the dead letters.

    :param requeue: back to the queue; else it is kept as a dead letter.
    """

    def __init__(self, reason: Any = None, requeue: bool = False) -> None:
        self.reason = reason
        self.requeue = requeue
        super().__init__(reason, requeue)

    def __repr__(self) -> str:
        return f"reject requeue={self.requeue}: {self.reason}"


class MaxRetriesExceededError(Exception):
    """The task was retried as often as it may be."""

    def __init__(self, *args: Any, task_args: Any = (), task_kwargs: Any = None) -> None:
        self.task_args = task_args
        self.task_kwargs = task_kwargs or {}
        super().__init__(*args)


class TaskRevokedError(Exception):
    """The task was revoked, or its time to start had passed ("expired")."""


class SoftTimeLimitExceeded(Exception):
    """Raised inside a task when its soft time limit is over; it may clean up."""

    def __str__(self) -> str:
        return f"SoftTimeLimitExceeded{self.args}"


class TimeLimitExceeded(Exception):
    """The hard time limit was over; the task was ended."""

    def __str__(self) -> str:
        return f"TimeLimitExceeded{self.args}"


class WorkerLostError(Exception):
    """The process that ran the task ended while it ran."""


class Terminated(BaseException):
    """Raised inside a task that is ended by a remote-control command; `except Exception` lets it pass."""
