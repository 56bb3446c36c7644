"""What events add up to: workers that are online, tasks and their states. Pure; bounded memory.

States and their order are Celery's: a late event of a lower state fills in fields, and does not change the state.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TASKS = 10_000
WORKERS = 5_000

_STATES = {
    "task-sent": "PENDING",
    "task-received": "RECEIVED",
    "task-started": "STARTED",
    "task-failed": "FAILURE",
    "task-retried": "RETRY",
    "task-succeeded": "SUCCESS",
    "task-revoked": "REVOKED",
    "task-rejected": "REJECTED",
}
_PRECEDENCE = ("SUCCESS", "FAILURE", None, "REVOKED", "STARTED", "RECEIVED", "REJECTED", "RETRY", "PENDING")
"""None stands for states of applications' own."""
ALIVE_BEATS = 2.0
"""A worker is online until this many heartbeats are missing."""


@dataclass
class WorkerSeen:
    """One worker. Times are unix times."""

    name: str
    heard_at: float = 0.0
    freq: float = 2.0
    is_gone: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def is_online(self, now: float) -> bool:
        """Whether it is alive, as far as anybody can tell."""
        return not self.is_gone and self.heard_at + self.freq * ALIVE_BEATS >= now


@dataclass
class TaskSeen:
    """One task."""

    id: str
    state: str = "PENDING"
    worker: str = ""
    at: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


class Picture:
    """Takes events, in any order they come."""

    def __init__(self) -> None:
        self.workers: dict[str, WorkerSeen] = {}
        self.tasks: OrderedDict[str, TaskSeen] = OrderedDict()
        """The one heard of last is the last."""
        self.counts: dict[str, int] = {}
        """Events by type."""

    def add(self, event: Mapping[str, Any], now: float) -> None:
        """One event; what lacks what it needs is passed over. Untrusted input."""
        kind, host = event.get("type"), event.get("hostname")
        if not isinstance(kind, str) or not isinstance(host, str):
            return
        if kind in self.counts or len(self.counts) < 1000:
            self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind != "task-sent":
            self._worker(kind, host, event, now)
        if kind.startswith("task-") and isinstance(event.get("uuid"), str):
            self._task(kind, host, event)

    def _worker(self, kind: str, host: str, event: Mapping[str, Any], now: float) -> None:
        worker = self.workers.get(host)
        if worker is None:
            if len(self.workers) >= WORKERS:
                return
            worker = self.workers[host] = WorkerSeen(host)
        worker.heard_at = now
        worker.is_gone = kind == "worker-offline"
        if kind.startswith("worker-"):
            worker.facts.update(event)
            freq = event.get("freq")
            if isinstance(freq, (int, float)) and freq > 0:
                worker.freq = float(freq)

    def _task(self, kind: str, host: str, event: Mapping[str, Any]) -> None:
        task_id: str = event["uuid"]
        task = self.tasks.pop(task_id, None) or TaskSeen(task_id)
        self.tasks[task_id] = task
        if len(self.tasks) > TASKS:
            self.tasks.popitem(last=False)
        task.facts = {**event, **task.facts} if kind in ("task-sent", "task-received") else {**task.facts, **event}
        if kind != "task-sent":
            task.worker = host
        state = _STATES.get(kind) or kind.removeprefix("task-").upper()
        if "RETRY" in (state, task.state) or _rank(state) <= _rank(task.state):
            task.state = state
        at = event.get("timestamp")
        task.at = float(at) if isinstance(at, (int, float)) else task.at


def _rank(state: str) -> int:
    return _PRECEDENCE.index(state if state in _PRECEDENCE else None)
