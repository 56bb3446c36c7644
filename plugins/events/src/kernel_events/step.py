"""The boot step `events`. Loop thread; light to import, as every worker composes it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from kernel_worker.steps import Bootstep

if TYPE_CHECKING:
    from kernel_worker.worker import StepContext

    from .events import Events
    from .options import EventsOptions

log = logging.getLogger(__name__)

OFFLINE_S = 1.0
"""How long the end of the worker waits for its last events to be sent."""


class EventsStep(Bootstep):
    """Starts before the consumer and stops after it, so that no task's event is missed. Its API is `Events`."""

    name = "events"
    requires: tuple[str, ...] = ("pool", "timer")
    before: tuple[str, ...] = ("consumer",)

    def __init__(self) -> None:
        self._events: Events | None = None

    def start(self, ctx: StepContext) -> Events | None:
        from .events import Events  # late: composing a worker does without
        from .outlets import open_outlet

        options: EventsOptions = ctx.config.section("events")
        worker = ctx.worker
        transport = worker.app.settings.get("broker_transport_options") or {}
        # Of several brokers one after the other is tried, as each is lost.
        urls = worker.broker_url.reveal().split(";")
        outlets = [each for url in urls if (each := open_outlet(url, transport, options.exchange, worker.node))]
        if not outlets:
            log.info("no events on %s", worker.broker_url, extra={"action": "events_unavailable"})
            return None
        self._events = events = Events(worker, ctx.api("pool"), options, outlets)
        timers: Any = ctx.api("timer")
        if not options.without_heartbeat:
            timers.every(events.interval_s, events.heartbeat)
        if options.task_events:
            events.enable()
        events.sender.start()
        return events

    def stop(self, ctx: StepContext, deadline: float) -> None:
        if self._events is not None:
            self._events.stop(min(deadline, time.monotonic() + OFFLINE_S))

    def terminate(self, ctx: StepContext) -> None:
        self.stop(ctx, time.monotonic())
