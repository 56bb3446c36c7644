"""The options of the plugin: section `events`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernel_worker.options import at_least, duration, option

from .defaults import BUFFER, EXCHANGE


def _interval(value: Any) -> float:
    seconds = duration(value)
    if seconds < 0.1:
        raise ValueError(f"{seconds:g} s is too short for a heartbeat: at least 0.1 (--without-heartbeat sends none)")
    return seconds


@dataclass(frozen=True, slots=True)
class EventsOptions:
    """Section `events`."""

    task_events: bool = option(
        False,
        "-E",
        "--task-events",
        celery="worker_send_task_events",
        is_flag=True,
        help="Send an event for each step of each task from the start.",
    )
    heartbeat_interval: float = option(
        2.0,
        "--heartbeat-interval",
        parse=_interval,
        metavar="SECONDS",
        help="Time between two heartbeats; on sqlite at least 10 s.",
    )
    without_heartbeat: bool = option(False, "--without-heartbeat", is_flag=True, help="Send no heartbeats.")
    exchange: str = option(EXCHANGE, celery="event_exchange", help="Exchange (Redis: channel) of events.")
    buffer: int = option(
        BUFFER, parse=at_least(1), help="Events kept while they cannot be sent; further ones are dropped and counted."
    )
