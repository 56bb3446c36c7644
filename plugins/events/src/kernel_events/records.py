"""What each event says: Celery's fields, made of the kernel's requests and outcomes. Pure; loop thread.

Facts of the protocol: the fields and their order as captured from Celery 5.7 workers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kernel_worker.types import OutcomeKind

if TYPE_CHECKING:
    from kernel_worker.request import Request
    from kernel_worker.types import Outcome

SHOWN = 1024
"""Characters of a result's or an exception's repr, as Celery cuts it."""

Fields = dict[str, Any]


def utc_offset(now: float | None = None) -> float:
    """Hours west of UTC, summer time included: UTC+2 gives -2.0. Receivers compute with it."""
    east_s = time.localtime(now).tm_gmtoff
    return -east_s / 3600 + 0.0  # never -0.0


def load_average() -> list[float]:
    """The machine's load over 1, 5 and 15 minutes; zeros where it cannot be read."""
    try:
        return [round(each, 2) for each in os.getloadavg()]
    except OSError:
        return [0.0, 0.0, 0.0]


def task_id(request: Request) -> str:
    """The id of a request. Messages of protocol 1 have it in their body, and as correlation id."""
    if request.id:
        return request.id
    found = request.delivery.properties.get("correlation_id")
    return found if isinstance(found, str) else ""


def received(request: Request) -> Fields:
    """task-received: all that headers tell of the task."""
    headers: Mapping[str, Any] = request.delivery.headers
    return {
        "uuid": task_id(request),
        "name": headers.get("shadow") or request.task or None,
        "args": headers.get("argsrepr"),
        "kwargs": headers.get("kwargsrepr"),
        "root_id": headers.get("root_id"),
        "parent_id": headers.get("parent_id"),
        "retries": headers.get("retries") or 0,
        "eta": headers.get("eta"),
        "expires": headers.get("expires"),
    }


def started(request: Request) -> Fields:
    """task-started."""
    return {"uuid": task_id(request)}


cancelled = started
"""task-cancelled has the same fields."""


def succeeded(request: Request, outcome: Outcome) -> Fields:
    """task-succeeded."""
    return {"uuid": task_id(request), "result": outcome.shown[:SHOWN], "runtime": outcome.runtime}


def failed(request: Request, outcome: Outcome) -> Fields:
    """task-failed. An unknown task has no traceback; what the kernel ended has none to show, either."""
    if outcome.kind is OutcomeKind.UNKNOWN:
        return {"uuid": task_id(request), "exception": f"NotRegistered({request.task!r})"}
    return {"uuid": task_id(request), "exception": _exception(outcome), "traceback": outcome.traceback}


def retried(request: Request, outcome: Outcome) -> Fields:
    """task-retried."""
    return {"uuid": task_id(request), "exception": _exception(outcome), "traceback": outcome.traceback}


def rejected(request: Request, outcome: Outcome) -> Fields:
    """task-rejected."""
    return {"uuid": task_id(request), "requeue": outcome.requeue}


def revoked(request: Request, *, terminated: bool = False, signum: int | None = None, expired: bool = False) -> Fields:
    """task-revoked; also for what expired."""
    return {"uuid": task_id(request), "terminated": terminated, "signum": signum, "expired": expired}


def _exception(outcome: Outcome) -> str:
    if outcome.shown:
        return outcome.shown[:SHOWN]
    if outcome.kind is OutcomeKind.LOST:
        return f"WorkerLostError({outcome.error!r})"
    if outcome.kind is OutcomeKind.TIMEOUT:
        return f"TimeLimitExceeded({outcome.error})"
    return outcome.error[:SHOWN]
