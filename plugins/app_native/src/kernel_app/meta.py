"""Task meta: the JSON that a result backend keeps for a task (redis-layout §8, task meta JSON).

Written in executors, read by clients. Stored results are input nobody vouches for: reading one makes no object of
a class that is not an exception.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from . import exceptions
from .compression import mime_type, unwrap_result, wrap_result
from .exceptions import ConfigError, DecodeError, EncodeError
from .representation import printable, safe_repr
from .serialization import content_type_of, content_types, dumps, loads, quote, to_json
from .settings import Settings
from .states import READY_STATES, SUCCESS

_WIRE_MODULES = {
    **dict.fromkeys(
        ("SoftTimeLimitExceeded", "TimeLimitExceeded", "WorkerLostError", "Terminated"), "billiard.exceptions"
    ),
    **dict.fromkeys(("EncodeError", "DecodeError", "ContentDisallowed", "OperationalError"), "kombu.exceptions"),
    **dict.fromkeys(
        (
            "Retry",
            "Ignore",
            "Reject",
            "MaxRetriesExceededError",
            "TaskRevokedError",
            "NotRegistered",
            "ChordError",
            "QueueNotFound",
            "TimeoutError",
        ),
        "celery.exceptions",
    ),
}
"""Where Celery's clients have the class of the same name: written in place of our module."""

RESULT_BYTES = 1024 * 1024 * 1024
"""What a compressed result may grow to. Stores bound what they keep; this only stops a bomb."""


REPR_CHARS = 10_000
"""Longest repr that stands for a value which cannot be stored."""

_ARGS: Any = BaseException.__dict__["args"]
"""Reads an exception's arguments past whatever its class has made of the name."""


class TaskState:
    """One state of one task, with the attributes that `ResultBackend.store` reads."""

    __slots__ = ("correlation_id", "expires", "payload", "reply_to", "state", "task_id")

    def __init__(self, task_id: str, state: str, payload: bytes, expires: float | None) -> None:
        self.task_id = task_id
        self.state = state
        self.payload = payload
        self.expires = expires
        self.reply_to = self.correlation_id = ""


def address(state: Any, properties: Mapping[str, Any]) -> Any:
    """Say in a state where its task's sender waits for it: `reply_to` and `correlation_id` of the message."""
    for name in ("reply_to", "correlation_id"):
        value = properties.get(name)
        if isinstance(value, str):
            setattr(state, name, value)
    return state


class MetaCodec:
    """Writes and reads task meta as the settings say. Any thread."""

    def __init__(self, conf: Settings, make: Callable[[str, str, bytes, float | None], Any] = TaskState) -> None:
        """:param make: the class of the states that are written.
        :raises ConfigError: an unknown serializer or compression, or results as pickle."""
        self._make = make
        self.serializer: str = conf.result_serializer
        self.is_json = content_type_of(self.serializer) == "application/json" and not conf.result_compression
        if "pickle" in (self.serializer, *(conf.result_accept_content or ())):
            raise ConfigError("results are not written or read as pickle; set result_serializer to json")
        self.compression = mime_type(conf.result_compression) if conf.result_compression else ""
        accept = content_types(conf.result_accept_content or conf.accept_content)
        self.accept = accept | {content_type_of(self.serializer)}
        self.extended: bool = conf.result_extended
        self.expires = _seconds(conf.result_expires)
        failed = conf.result_failure_expires
        self.failure_expires = self.expires if failed is None else _seconds(failed)

    def success(self, task_id: str, value: Any, children: list[Any] | None, extra: Mapping[str, Any] | None) -> Any:
        """The state of a task that returned `value`.

        :raises EncodeError: it cannot be written.
        """
        if not self.is_json or extra:
            meta = _meta(SUCCESS, value, None, children or [])
            return self.state(task_id, {**meta, **(extra or {})})
        # The usual case, written in one go.
        text = (
            f'{{"status": "SUCCESS", "result": {to_json(value)}, "traceback": null, "children": '
            f'{to_json(children) if children else "[]"}, "date_done": "{_now()}", "task_id": {quote(task_id)}}}'
        )
        return self._make(task_id, SUCCESS, text.encode("ascii"), self.expires)

    def other(
        self,
        task_id: str,
        state: str,
        result: Any,
        *,
        traceback: str | None = None,
        children: list[Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Any:
        """Any state. `result` may be an exception.

        :raises EncodeError: `result` is a value that cannot be written.
        """
        if isinstance(result, BaseException):
            result = exception_to_meta(result, plain=not self.is_json)
        return self.state(task_id, {**_meta(state, result, traceback, children or []), **(extra or {})})

    def state(self, task_id: str, meta: dict[str, Any]) -> Any:
        """A state from its finished meta."""
        meta["task_id"] = task_id  # last, as Celery writes it
        payload = dumps(meta, self.serializer)[2]
        if self.compression:
            payload = wrap_result(payload, self.compression)
        status = meta["status"]
        expires = self.expires if status not in ("FAILURE", "REVOKED") else self.failure_expires
        return self._make(task_id, status, payload, expires)

    def read(self, payload: bytes) -> dict[str, Any]:
        """The meta as a dict; the result of a failed task stays an exception object in JSON.

        :raises DecodeError: it is no task meta.
        """
        plain = unwrap_result(payload, RESULT_BYTES)
        content_type = content_type_of(self.serializer)
        if plain[:1] == b"{":
            content_type = "application/json"  # written by a peer that is set up otherwise
        meta = loads(plain, content_type, "utf-8", self.accept | {"application/json"})
        if not isinstance(meta, dict) or not isinstance(meta.get("status"), str):
            raise DecodeError("a stored result that is no task meta")
        return meta

    def is_final(self, payload: bytes) -> bool:
        """Whether no other state will follow."""
        return self.read(payload)["status"] in READY_STATES


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _meta(state: str, result: Any, traceback: str | None, children: list[Any]) -> dict[str, Any]:
    return {
        "status": state,
        "result": result,
        "traceback": traceback,
        "children": children,
        "date_done": _now() if state in READY_STATES else None,
    }


def _seconds(setting: Any) -> float | None:
    """Seconds to keep a result; None for ever."""
    if isinstance(setting, timedelta):
        return setting.total_seconds() or None
    return float(setting) if setting else None


# --------------------------------------------------------------------------- exceptions


def exception_to_meta(error: BaseException, plain: bool = False) -> dict[str, Any]:
    """The exception object: type, arguments (those that cannot be written as their repr), module.

    :param plain: for serializers that know less types than our JSON: other arguments than texts and numbers as repr.
    """
    kind = type(error)
    name = kind.__qualname__
    module = kind.__module__
    args = _ARGS.__get__(error)
    if module == exceptions.__name__:
        module = _WIRE_MODULES.get(name, module)
    return {"exc_type": name, "exc_message": [writable(arg, plain) for arg in args], "exc_module": module}


def writable(value: Any, plain: bool = False) -> Any:
    """The value if it can be written, else its repr."""
    if isinstance(value, BaseException) or (plain and type(value) not in (str, int, float, bool, type(None))):
        return safe_repr(value)[:REPR_CHARS]
    try:
        to_json(value)
    except EncodeError:
        return safe_repr(value)[:REPR_CHARS]
    return value


def exception_from_meta(stored: Any) -> BaseException:
    """The exception that an exception object stands for.

    Its own class if that is an `Exception` in a module which is imported already; else a class of that name
    made under `kernel_app.exceptions`. Nothing is imported, and nothing but exception classes is called.
    """
    if not isinstance(stored, Mapping):
        return exceptions.KernelAppError(safe_repr(stored))
    name = str(stored.get("exc_type") or "Exception")
    message = stored.get("exc_message")
    args = tuple(message) if isinstance(message, (list, tuple)) else (message,)
    kind = _exception_class(name, stored.get("exc_module"))
    try:
        return kind(*args)
    except Exception:  # a constructor that wants other arguments than it hands on
        pass
    try:
        bare = Exception.__new__(kind)
        bare.args = args
        return bare
    except TypeError:  # a class whose instances cannot be made so, such as ExceptionGroup
        return _stand_in(name)(*args)


def _exception_class(name: str, module: Any) -> type[Exception]:
    known: Any = None
    if isinstance(module, str):
        if _WIRE_MODULES.get(name) == module:
            known = getattr(exceptions, name)
        else:
            known = sys.modules.get(module)
            for part in name.split("."):
                # Not getattr: a module's own __getattr__ may import, a property may do anything.
                known = getattr(known, "__dict__", {}).get(part)
    # Not SystemExit and its like: reading a result must not end the reader.
    if isinstance(known, type) and issubclass(known, Exception):
        return known
    return _stand_in(name)


def _stand_in(name: str) -> type[Exception]:
    plain = printable(name.rpartition(".")[2], 100) or "Exception"
    return type(plain, (Exception,), {"__module__": exceptions.__name__})
