"""Remote-control commands of revokes and rate limits. Loop thread; replies have Celery's shapes and texts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kernel_worker import Permission, control_command
from kernel_worker.control import Pending

from .plugin import limits_of
from .revokes import stamps_of

if TYPE_CHECKING:
    from kernel_worker.control import ControlContext

log = logging.getLogger(__name__)

Reply = dict[str, str] | Pending
SHOWN_IDS = 20
"""Ids named in a line of the log."""


@control_command(
    permission=Permission.OPERATE, args={"task_id": object, "terminate": object, "signal": object}, variadic="task_id"
)
def revoke(context: ControlContext, task_id: Any, terminate: object = False, signal: str | int | None = None) -> Reply:
    """Do not start tasks with these ids; with terminate=True, end those that run."""
    return _revoke(context, _ids(task_id), bool(terminate), signal)


def _revoke(context: ControlContext, ids: Sequence[str], terminate: bool, signal: str | int | None) -> Reply:
    limits = limits_of(context.worker)
    limits.revoke(ids)
    if not terminate:
        log.info("Tasks flagged as revoked: %s", _shown(ids), extra={"action": "revoke"})
        return limits.when_kept({"ok": f"tasks {set(ids) or '{}'} flagged as revoked"})
    ended = limits.end(ids, signal)
    if not ended:
        return limits.when_kept({"ok": "terminate: tasks unknown"})
    log.info("Terminating %s", _shown(ended), extra={"action": "terminate"})
    return limits.when_kept({"ok": f"terminate: {', '.join(ended)}"})


@control_command(permission=Permission.OPERATE, args={"signal": object, "task_id": object}, variadic="task_id")
def terminate(context: ControlContext, signal: str | int | None, task_id: Any) -> Reply:
    """End running tasks with these ids."""
    return _revoke(context, _ids(task_id), True, signal)


@control_command(
    permission=Permission.OPERATE, args={"headers": object, "terminate": object, "signal": object}, variadic="headers"
)
def revoke_by_stamped_headers(
    context: ControlContext, headers: Any, terminate: object = False, signal: str | int | None = None
) -> Reply:
    """Do not start tasks with these stamps (header=value); with terminate=True, end those that run."""
    wanted = _stamps(headers)
    limits = limits_of(context.worker)
    limits.revoke_stamps(wanted)
    if not terminate:
        return limits.when_kept({"ok": f"headers {headers} flagged as revoked, but not terminated"})
    searched = {(header, str(value)) for header, values in wanted.items() for value in values}
    held = [request for request in limits.held() if request.id]  # without one it cannot be told from others
    found = {request.id: searched.intersection(stamps_of(request.delivery.headers)) for request in held}
    ended: dict[str, set[str]] = {}
    for task_id in limits.end([task_id for task_id, matching in found.items() if matching], signal):
        for header, value in found[task_id]:
            ended.setdefault(header, set()).add(value)
    return limits.when_kept({"ok": f"headers {ended} revoked" if ended else f"headers {headers} were not terminated"})


@control_command(aliases=("dump_revoked",))
def revoked(context: ControlContext) -> list[str]:
    """The ids of revoked tasks."""
    return limits_of(context.worker).revoked_ids()


@control_command(permission=Permission.OPERATE, args={"task_name": str, "rate_limit": object})
def rate_limit(context: ControlContext, task_name: str, rate_limit: Any) -> dict[str, str]:
    """Limit how often a task runs in this worker: 10/s, 200/m, 5/h; 0 for no limit."""
    if task_name not in context.worker.app.tasks:
        return {"error": "unknown task"}
    limits = limits_of(context.worker)
    try:
        limits.set_rate(task_name, rate_limit)
    except ValueError as error:
        return {"error": f"Invalid rate limit string: {error!r}"}
    if task_name in limits.rates:
        log.info("New rate limit for tasks of type %s: %s.", task_name, rate_limit, extra={"action": "rate_limit"})
        return {"ok": "new rate limit set successfully"}
    log.info("Rate limits disabled for tasks of type %s", task_name, extra={"action": "rate_limit"})
    return {"ok": "rate limit disabled successfully"}


def _ids(task_id: Any) -> list[str]:
    """Each once, in order.

    :raises ValueError: what was given is neither an id nor a list of ids.
    """
    given = [task_id] if isinstance(task_id, str) else task_id
    if not isinstance(given, Sequence) or not all(isinstance(each, str) and 0 < len(each) <= 255 for each in given):
        raise ValueError(f"task_id must be an id or a list of ids, not {task_id!r:.80}")
    return list(dict.fromkeys(given))


def _stamps(headers: Any) -> dict[str, list[Any]]:
    """:raises ValueError: what was given is neither an object nor a list of header=value."""
    if isinstance(headers, Mapping):
        pairs = [(header, value) for header, value in headers.items()]
    elif isinstance(headers, Sequence) and not isinstance(headers, str):
        split = [str(each).partition("=") for each in headers]
        if not all(found for _, found, _ in split):
            raise ValueError(f"headers must be header=value each, not {headers!r:.80}")
        pairs = [(header, value) for header, _, value in split]
    else:
        raise ValueError(f"headers must be an object or a list of header=value, not {headers!r:.80}")
    found: dict[str, list[Any]] = {}
    for header, value in pairs:
        found.setdefault(str(header), []).extend(value if isinstance(value, (list, tuple, set)) else [value])
    return found


def _shown(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return ascii(", ".join(ids[:SHOWN_IDS]))[1:-1] + more
