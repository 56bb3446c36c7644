"""Signals by Celery's names: functions of the application that are called when something happens to a task or a process.

    from kernel_app.signals import task_failure

    @task_failure.connect
    def tell(sender, task_id, exception, **_):
        ...

Called where it happens: those of tasks in the executor, on the slot of the task; those of publishing wherever a message
is sent; those of processes in each executor. What a receiver raises is logged and changes nothing. A signal without
receivers costs one look at an attribute. Imports nothing of the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar, overload

Receiver = Callable[..., Any]
F = TypeVar("F", bound=Receiver)


class Signal:
    """One kind of event.

    :param name: how it is called.
    :param arguments: the keyword arguments that receivers get beside `signal` and `sender`.
    """

    __slots__ = ("arguments", "name", "receivers")

    def __init__(self, name: str, *arguments: str) -> None:
        self.name = name
        self.arguments = arguments
        self.receivers: tuple[tuple[Hashable, Any, Receiver], ...] = ()
        """(key, sender or None, function); empty when nobody listens."""

    @overload
    def connect(self, receiver: F, sender: Any = None, *, dispatch_uid: Hashable = None) -> F: ...
    @overload
    def connect(
        self, receiver: None = None, sender: Any = None, *, dispatch_uid: Hashable = None
    ) -> Callable[[F], F]: ...
    def connect(self, receiver: Any = None, sender: Any = None, *, dispatch_uid: Hashable = None) -> Any:
        """Have `receiver(signal=…, sender=…, **arguments)` called; also as a decorator, with or without arguments.

        Receivers are kept alive, and called in the order in which they were connected.

        :param sender: only for this sender: a task or its name; for publishing the task's name.
        :param dispatch_uid: connecting twice with the same one, or the same function twice, changes nothing.
        :raises TypeError: the receiver cannot be called.
        """
        if receiver is None:
            return lambda function: self.connect(function, sender, dispatch_uid=dispatch_uid)
        if not callable(receiver):
            raise TypeError(f"a receiver of {self.name} is a function, not {type(receiver).__name__}")
        key = (dispatch_uid if dispatch_uid is not None else receiver, _identity(sender))
        if all(known != key for known, _, _ in self.receivers):
            self.receivers = (*self.receivers, (key, sender, receiver))
        return receiver

    def disconnect(self, receiver: Any = None, sender: Any = None, *, dispatch_uid: Hashable = None) -> bool:
        """Call it no more; whether it was connected with the same sender."""
        key = (dispatch_uid if dispatch_uid is not None else receiver, _identity(sender))
        kept = tuple(entry for entry in self.receivers if entry[0] != key)
        was_connected = len(kept) < len(self.receivers)
        self.receivers = kept
        return was_connected

    def send(self, sender: Any, **arguments: Any) -> list[tuple[Receiver, Any]]:
        """Call the receivers one after the other: (receiver, what it returned or raised) for each."""
        answers = []
        for _, wanted, receiver in self.receivers:
            if wanted is not None and not _is_same(wanted, sender):
                continue
            try:
                answer = receiver(signal=self, sender=sender, **arguments)
            except Exception as error:  # the application's code; what happened has happened all the same
                _tell(self.name, receiver, error)
                answer = error
            answers.append((receiver, answer))
        return answers

    def __repr__(self) -> str:
        return f"<Signal {self.name}: {', '.join(self.arguments)}>"


def _identity(sender: Any) -> Hashable:
    return sender if isinstance(sender, str) else id(sender) if sender is not None else None


def _is_same(wanted: Any, sender: Any) -> bool:
    if wanted is sender:
        return True
    if isinstance(wanted, str) or isinstance(sender, str):
        return bool(getattr(wanted, "name", wanted) == getattr(sender, "name", sender))
    return False


def _tell(name: str, receiver: Receiver, error: Exception) -> None:
    import logging

    logging.getLogger("kernel_app").error(
        "receiver %s of signal %s failed",
        getattr(receiver, "__qualname__", receiver),
        name,
        exc_info=error,
        extra={"action": "receiver_failed", "signal": name},
    )


# Tasks; the sender is the task.
task_prerun = Signal("task_prerun", "task_id", "task", "args", "kwargs")
task_postrun = Signal("task_postrun", "task_id", "task", "args", "kwargs", "retval", "state")
task_success = Signal("task_success", "result")
task_retry = Signal("task_retry", "request", "reason", "einfo")
task_failure = Signal("task_failure", "task_id", "exception", "args", "kwargs", "traceback", "einfo")
task_revoked = Signal("task_revoked", "request", "terminated", "signum", "expired")
task_rejected = Signal("task_rejected", "message", "exc")
task_internal_error = Signal(
    "task_internal_error", "task_id", "args", "kwargs", "request", "exception", "traceback", "einfo"
)

# Messages that cannot be run; the sender is the application.
task_unknown = Signal("task_unknown", "message", "exc", "name", "id")

# Sending; the sender is the name of the task.
before_task_publish = Signal(
    "before_task_publish", "body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy"
)
after_task_publish = Signal("after_task_publish", "body", "exchange", "routing_key", "headers")

# Executors; the sender is the application. No code of the application runs in the kernel process, so what Celery sends
# once per worker is sent in one of its executors: when the worker is ready, and when that executor ends with it.
worker_process_init = Signal("worker_process_init")
worker_process_shutdown = Signal("worker_process_shutdown", "pid", "exitcode")
worker_ready = Signal("worker_ready")
worker_shutdown = Signal("worker_shutdown")
