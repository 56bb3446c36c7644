"""One run of a task as the kernel knows it, and how it is read from the headers of a delivery.

The body is never decoded here: what stands only there is the executor's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeGuard

from .settle import DEFAULT_TASK
from .types import Delivery, OutcomeKind, Settlement, TaskInfo

if TYPE_CHECKING:
    from .supervisor import Handle
    from .suspects import Suspicion

UNKNOWN_S = 1.0
"""A task that nobody has seen end is taken to run for so long: next to nothing waits behind it."""
HORIZON_S = 0.2
"""Work given to one slot ahead of time: at most this much, by the run times measured per task."""
NAME_LIMIT = 255


@dataclass(slots=True, eq=False)
class Request:
    """The kernel's record of one run of a task."""

    id: str
    task: str
    delivery: Delivery
    info: TaskInfo
    hard: float = 0.0
    soft: float = 0.0
    eta: float = 0.0
    expires: float = 0.0
    cost: float = UNKNOWN_S
    tag: int = 0
    """Names this run on the wire; given with the slot, so that what one executor gets has rising tags."""
    executor: Handle | None = None
    acked: bool = False
    conclude: OutcomeKind | None = None
    """Set when the task shall not be run (to its end) but this outcome be stored, with `text`."""
    text: str = ""
    final: Settlement | None = None
    """What to do with the delivery once the conclusion is stored."""
    tries: int = 0
    """Executors that its conclusion has ended."""
    suspicion: Suspicion | None = None
    is_marking: bool = False
    """It has a slot, and starts when the broker has counted it."""
    is_fenced: bool = False
    """Its delivery became another worker's: its end is nobody's business here."""
    signum: int | None = None
    """The signal that remote control asked to end it with while it ran."""


class InvalidMessage(Exception):
    """A message that cannot become a request; the text is the reason kept with the dead letter."""


def read_request(
    delivery: Delivery, tasks: Mapping[str, TaskInfo], time_limit: float, soft_time_limit: float
) -> Request:
    """The request in a delivery, with the time limits that hold for it: the message's, else its task's, else these.

    :param time_limit: hard limit in seconds, 0 = none; `soft_time_limit` likewise.
    :raises InvalidMessage: it is none; with the reason.
    """
    if delivery.error is not None:
        raise InvalidMessage(delivery.error)
    headers = delivery.headers
    task = headers.get("task")
    if task is None:  # protocol 1: everything lies in the body, which only the executor reads
        return Request("", "", delivery, DEFAULT_TASK, time_limit, soft_time_limit)
    task_id = headers.get("id")
    if not _is_name(task):
        raise InvalidMessage(f"header 'task' is not a name: {task!r:.80}")
    if not _is_name(task_id):
        raise InvalidMessage(f"header 'id' is not an id: {task_id!r:.80}")
    info = tasks.get(task)
    request = Request(task_id, task, delivery, info or DEFAULT_TASK)
    if info is None:
        request.conclude, request.text = OutcomeKind.UNKNOWN, printable(task)
    request.hard = info.time_limit if info is not None and info.time_limit else time_limit
    request.soft = info.soft_time_limit if info is not None and info.soft_time_limit else soft_time_limit
    limits = headers.get("timelimit")
    if limits is not None and limits != [None, None]:
        _header_limits(request, limits)
    if (eta := headers.get("eta")) is not None:
        request.eta = unix_time(eta, "eta")
    if (expires := headers.get("expires")) is not None:
        request.expires = unix_time(expires, "expires")
    return request


def _header_limits(request: Request, limits: Any) -> None:
    try:
        hard, soft = limits
        for value in (hard, soft):
            if value is not None and (isinstance(value, bool) or not 0 <= value < 1e9):
                raise ValueError
    except (TypeError, ValueError):
        raise InvalidMessage(f"header 'timelimit' is not [hard, soft] in seconds: {limits!r:.80}") from None
    request.hard = hard or request.hard
    request.soft = soft or request.soft


def _is_name(value: object) -> TypeGuard[str]:
    """Whether a header may serve as name or id: short text without halves of surrogate pairs, which JSON can
    smuggle in and which nothing can send or store."""
    if type(value) is not str or not 0 < len(value) <= NAME_LIMIT:
        return False
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def unix_time(value: Any, header: str) -> float:
    """An ISO 8601 header as unix time; naive values are UTC (wire-protocol, reading rules).

    :raises InvalidMessage: it is not a time.
    """
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (TypeError, ValueError, OverflowError):
        raise InvalidMessage(f"header {header!r} is not an ISO 8601 time: {value!r:.80}") from None


def printable(text: str) -> str:
    """Untrusted text, cut and escaped for logs and terminals."""
    return ascii(text[:120])[1:-1] if not text.isascii() or not text.isprintable() else text[:120]
