"""Trying a task again: `Task.retry` and what `autoretry_for` does with it (task-api §2 and §4)."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .exceptions import MaxRetriesExceededError, OperationalError, Reject, Retry
from .signature import Signature

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .context import Context
    from .task import Task


def retry(
    task: Task[..., Any, Any],
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    error: BaseException | None,
    eta: datetime | None,
    countdown: float | None,
    max_retries: int | None,
    options: Mapping[str, Any],
) -> Retry:
    """Send the running task again, and make the exception that says so.

    :raises BaseException: `error` (or what is being handled) when the task was not run by a worker, or was tried
        as often as it may be; MaxRetriesExceededError if there is no error to raise.
    :raises Reject: the broker is away: the message goes back to its queue, and the try is made then.
    """
    request = task.request
    if request.called_directly:
        _raise(error or sys.exc_info()[1] or Retry("the task can be tried again", None))
    limit = task.max_retries if max_retries is None else max_retries
    retries = request.retries + 1
    args = request.args if args is None else args
    kwargs = request.kwargs if kwargs is None else kwargs
    if limit is not None and retries > limit:
        if error is not None:
            _raise(error)
        raise MaxRetriesExceededError(
            f"{task.name}[{request.id}] was tried {limit} times again, which is its max_retries",
            task_args=args,
            task_kwargs=kwargs,
        )
    if eta is None and countdown is None:
        countdown = task.default_retry_delay
    signature = Signature(
        task.name,
        args,
        kwargs,
        {**_options(request), "countdown": countdown, "eta": eta, "retries": retries, **options},
        app=task.app,
    )
    when = eta if eta is not None else countdown
    made = Retry(exc=error or sys.exc_info()[1], when=when, is_eager=request.is_eager, sig=signature)
    if not request.is_eager:
        try:
            signature.apply_async(add_to_parent=False)
        except OperationalError as away:
            if not task.acks_late:  # acknowledged already: nothing can be given back
                raise
            raise Reject(away, requeue=True) from away
    return made


def _raise(error: BaseException) -> None:
    handled = sys.exc_info()[1]
    if handled is None or handled is error:
        raise error
    raise error from handled


def _options(request: Context) -> dict[str, Any]:
    """What a new message takes over from the one that ran (wire-protocol §5, `retry`)."""
    hard, soft = request.timelimit or (None, None)
    delivery = request.delivery_info or {}
    options = {
        "task_id": request.id,
        "root_id": request.root_id,
        "parent_id": request.parent_id,
        "group_id": request.group,
        "group_index": request.group_index,
        "shadow": request.shadow,
        "chord": request.chord,
        "chain": request.chain,
        "link": request.callbacks,
        "link_error": request.errbacks,
        "expires": request.expires,
        "time_limit": hard,
        "soft_time_limit": soft,
        "headers": request.headers,
        "reply_to": request.reply_to,
        "replaced_task_nesting": request.replaced_task_nesting,
        "origin": request.origin,
        "ignore_result": request.ignore_result,
        "priority": delivery.get("priority"),
        # Back to the queue it was taken from, past any exchange: other queues of a topic exchange must not get it.
        "queue": request.queue or delivery.get("routing_key"),
        "exchange_type": "direct",
    }
    stamped = request.stamped_headers
    if stamped:
        stamps = request.stamps or {}
        options["stamped_headers"] = [name for name in stamped if isinstance(name, str) and name in stamps]
        options.update({name: stamps[name] for name in options["stamped_headers"]})
        if options["headers"]:
            options["headers"] = {k: v for k, v in options["headers"].items() if k not in stamps}
    return options


def automatic(task: Task[..., Any, Any], error: BaseException) -> Retry | None:
    """The retry that `autoretry_for` asks for this error, sent; None when it asks for none.

    :raises BaseException: see `retry`.
    """
    if not isinstance(error, task.autoretry_for) or isinstance(error, task.dont_autoretry_for):
        return None
    options = dict(task.retry_kwargs)
    if task.retry_backoff:
        options["countdown"] = backoff(
            max(1, int(task.retry_backoff)), task.request.retries, task.retry_backoff_max, task.retry_jitter
        )
    return task.retry(exc=error, throw=False, **options)


def backoff(factor: int, retries: int, most: int, jitter: bool) -> int:
    """Seconds before the next try: `factor * 2**retries`, at most `most`; with jitter anything up to that."""
    seconds = min(int(most), factor << min(retries, 64))
    if jitter:
        import random

        return random.randrange(seconds + 1)
    return max(0, seconds)
