"""Run a task where it is called, as a worker would: `Task.apply` and `task_always_eager`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .context import CURRENT, Context, running
from .exceptions import Ignore, Reject, Retry, TaskPredicate
from .message import new_id
from .results import EagerResult
from .retrying import automatic
from .serialization import content_types, dumps, loads
from .states import FAILURE, IGNORED, REJECTED, RETRY, SUCCESS

if TYPE_CHECKING:
    from .task import Task


def apply_as_sent(
    task: Task[..., Any, Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
) -> EagerResult[Any]:
    """Run instead of sending. The arguments go through the serializer, so that what could not be sent fails."""
    serializer = options.get("serializer") or task.serializer or task.app.conf.task_serializer
    content_type, encoding, body = dumps([list(args), dict(kwargs)], serializer)
    args, kwargs = loads(body, content_type, encoding, content_types([content_type]))
    return apply(task, args, kwargs, None, options)


def apply(
    task: Task[..., Any, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    throw: bool | None,
    options: Mapping[str, Any],
) -> EagerResult[Any]:
    """Run here and now, with a request; retries run at once, callbacks after it."""
    conf = task.app.conf
    throw = conf.task_eager_propagates if throw is None else throw
    parent = running()
    task_id = options.get("task_id") or new_id()
    headers = {
        "task": task.name,
        "id": task_id,
        "retries": options.get("retries", 0),
        "root_id": options.get("root_id") or (parent.root_id or parent.id if parent else task_id),
        "parent_id": options.get("parent_id") or (parent.id if parent else None),
        "timelimit": [options.get("time_limit"), options.get("soft_time_limit")],
        **(options.get("headers") or {}),
    }
    request = Context(headers, CURRENT.get(), task)
    request.update(args=args, kwargs=kwargs, called_directly=False, is_eager=True, delivery_info={"is_eager": True})
    request.update(callbacks=_list(options.get("link")), errbacks=_list(options.get("link_error")))
    token = CURRENT.set(request)
    try:
        state, value = _run(task, request, args, kwargs)
    finally:
        CURRENT.reset(token)
    if state == RETRY and isinstance(value.sig, Mapping):
        again = value.sig
        return apply(task, again["args"], again["kwargs"], throw, again["options"])
    if state == SUCCESS:
        _follow(task, request.callbacks, value, task_id)
    elif throw and isinstance(value, BaseException) and state == FAILURE:
        raise value
    text = _traceback(value) if state == FAILURE else None
    if task.store_eager_result and state in (SUCCESS, FAILURE):
        task.app.store_state(task_id, state, value, request)
    return EagerResult(task_id, task.app, state, value, text)


def _run(task: Task[..., Any, Any], request: Context, args: Any, kwargs: Any) -> tuple[str, Any]:
    try:
        task.before_start(request.id, args, kwargs)
        value = task.app.coroutines.call(task.run, args, kwargs)
    except TaskPredicate as predicate:
        return _state(predicate), predicate
    except Exception as error:  # the boundary of a task: whatever it raises is its outcome
        try:
            retried = automatic(task, error)
        except Exception as final:  # no try left: this is what it failed with
            return FAILURE, final
        return (RETRY, retried) if retried is not None else (FAILURE, error)
    return SUCCESS, value


def _state(predicate: TaskPredicate) -> str:
    if isinstance(predicate, Retry):
        return RETRY
    return IGNORED if isinstance(predicate, Ignore) else REJECTED if isinstance(predicate, Reject) else FAILURE


def _follow(task: Task[..., Any, Any], callbacks: list[Any], value: Any, task_id: str) -> None:
    for signature in callbacks:
        follower = task.app.tasks.get(signature["task"])
        if follower is None:
            task.app.send_task(signature["task"], [value, *signature["args"]], signature["kwargs"])
            continue
        args = signature["args"] if signature["immutable"] else [value, *signature["args"]]
        apply(follower, args, signature["kwargs"], None, {"parent_id": task_id, **signature["options"]})


def _list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _traceback(error: Any) -> str | None:
    if not isinstance(error, BaseException):
        return None
    from traceback import format_exception

    return "".join(format_exception(error))
