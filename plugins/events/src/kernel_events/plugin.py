"""The hooks: options, the boot step, `kw events`, statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kernel_worker.hookspecs import hookimpl
from kernel_worker.registry import Command

if TYPE_CHECKING:
    from kernel_worker.config import Config
    from kernel_worker.steps import Bootstep
    from kernel_worker.worker import Worker

    from .events import Events

kw_api = 1


def events_of(worker: Worker) -> Events | None:
    """The events of a worker; None before its step started, and on brokers that cannot carry them."""
    found: Events | None = worker.sequence.apis.get("events")
    return found


@hookimpl
def kw_options() -> type:
    """Section `events`."""
    from .options import EventsOptions

    return EventsOptions


@hookimpl
def kw_commands() -> list[Command]:
    """The command; its module is imported when it is used."""
    return [Command("events", "kernel_events.cli:events", "Watch what workers and tasks do.")]


@hookimpl
def kw_bootsteps(config: Config) -> list[Bootstep]:
    """The step `events`."""
    from .step import EventsStep

    return [EventsStep()]


@hookimpl
def kw_worker_ready(worker: Worker) -> None:
    """Say that the worker is online."""
    events = events_of(worker)
    if events is not None:
        events.online()


@hookimpl
def kw_stats(worker: Worker) -> Mapping[str, Any]:
    """How many events were sent, dropped, and wait."""
    events = events_of(worker)
    return {} if events is None else {"events": dict(events.sender.counters)}
