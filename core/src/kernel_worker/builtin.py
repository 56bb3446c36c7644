"""The kernel's own boot steps, contributed through the same hooks as anybody's: pool, consumer, timer.

Registered last, so that a plugin's answer to the same hook wins. Loop thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .broker_host import BrokerHost
from .config import Config
from .dispatcher import Dispatcher
from .drivers import BrokerContext
from .errors import UsageError
from .hookspecs import hookimpl
from .loop import Loop
from .operations import QueueCaps
from .steps import Bootstep
from .supervisor import Supervisor
from .types import BrokerCapability, PoolCapability, Settlement, Verdict

if TYPE_CHECKING:
    from .worker import StepContext, Worker

log = logging.getLogger("kernel_worker.builtin")

ROLL_BACK_FINISH_S = 1.0
"""How long running tasks may go on when the start fails after all; killing and settling need the rest of the time."""

kw_api = 1


class TimerStep(Bootstep):
    """Periodic work on the loop thread; its API is `Timers`."""

    name = "timer"

    def __init__(self) -> None:
        self._timers: Timers | None = None

    def start(self, ctx: StepContext) -> Timers:
        self._timers = Timers(ctx.loop)
        return self._timers

    def stop(self, ctx: StepContext, deadline: float) -> None:
        if self._timers is not None:
            self._timers.cancel()

    def terminate(self, ctx: StepContext) -> None:
        self.stop(ctx, 0.0)


class Timers:
    """Calls again and again; all end with the worker."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._cancelled = False

    def every(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call `callback()` every `seconds` seconds, first in `seconds` seconds. It must not block."""

        def call() -> None:
            if self._cancelled:
                return
            self._loop.call_later(seconds, call)
            callback()

        self._loop.call_later(seconds, call)

    def cancel(self) -> None:
        """Call nothing any more."""
        self._cancelled = True


class PoolStep(Bootstep):
    """Loads the application and keeps the pool's executors alive; its API is the `Supervisor`."""

    name = "pool"

    def __init__(self) -> None:
        self._supervisor: Supervisor | None = None

    def start(self, ctx: StepContext) -> Supervisor:
        supervisor = self._supervisor = ctx.worker.supervisor
        supervisor.leave_s = ctx.config.worker.grace
        supervisor.start_loading(ctx.worker.make_spawner(), ctx.worker.hello(), ctx.worker.layout().slots)
        ctx.worker.preload_broker()  # another process is importing the application meanwhile
        ctx.wait(lambda: supervisor.app is not None, "the application to load")
        ctx.worker.adopt_application()
        supervisor.resize(ctx.worker.layout())
        return supervisor

    def close(self, ctx: StepContext) -> None:
        if self._supervisor is not None:
            self._supervisor.close()

    def stop(self, ctx: StepContext, deadline: float) -> None:
        if self._supervisor is not None:
            self._supervisor.stop(deadline)

    def terminate(self, ctx: StepContext) -> None:
        self.stop(ctx, time.monotonic())


class ConsumerStep(Bootstep):
    """Connects to the broker and moves deliveries to the pool; its API is the `Dispatcher`."""

    name = "consumer"
    requires = ("pool",)

    def __init__(self) -> None:
        self._host: BrokerHost | None = None
        self._dispatcher: Dispatcher | None = None

    def start(self, ctx: StepContext) -> Dispatcher:
        worker = ctx.worker
        options = worker.config.worker
        driver = worker.registry.load_broker(worker.selection, worker.broker_url)
        if driver.in_process and not worker.layout().inline:
            raise UsageError(
                f"broker {worker.broker_url} keeps messages in the worker's own process, and pool {worker.pool_name!r} "
                "runs tasks in others, which could neither get nor send any",
                hint="use -P solo, or a broker for several processes, e.g. sqlite:///kw.db",
            )
        queues = worker.queues()
        broker = driver(
            BrokerContext(
                worker.broker_url.reveal(),
                worker.incarnation,
                queues,
                options.lease,
                options.max_body * 4 // 3 + 1024 * 1024,  # base64, and room for headers
                worker.app.settings.get("broker_transport_options") or {},
            )
        )
        supervisor: Any = ctx.api("pool")
        self._dispatcher = dispatcher = Dispatcher(
            ctx.loop,
            supervisor,
            worker.bus,
            max_deliveries=options.max_deliveries,
            unknown_max_returns=options.unknown_max_returns,
            multiplier=options.prefetch_multiplier,
            time_limit=options.time_limit,
            soft_time_limit=options.soft_time_limit,
            can_delay=BrokerCapability.DELAY in driver.capabilities,
            can_mark=BrokerCapability.MARK in driver.capabilities,
            can_kill=PoolCapability.HARD_LIMIT in worker.pool.capabilities,
            filters=[*_queue_caps(worker), *worker.hooks.kw_admission(worker.config, worker)],
            policy=worker.hooks.kw_settle_policy(worker.config),
            on_up=worker.executor_up,
            on_down=worker.executor_down,
        )
        self._host = host = BrokerHost(
            ctx.loop,
            broker,
            queues,
            deliver=dispatcher.on_deliveries,
            held=dispatcher.held_deliveries,
            on_up=worker.broker_up,
            on_down=worker.broker_down,
            on_marked=dispatcher.on_marked,
            on_renewed=supervisor.hold_until,
            on_lost=dispatcher.fence,
        )
        dispatcher.settle_batch, dispatcher.mark, dispatcher.allow = host.settle, host.mark, host.allow
        worker.dispatcher, worker.broker_host = dispatcher, host
        host.start()
        ctx.wait(lambda: host.connected, lambda: f"the broker ({host.last_error or 'no answer yet'})")
        if options.purge:
            self._purge(ctx, host)
        dispatcher.begin(worker.app.tasks)
        ctx.wait(lambda: supervisor.up_count > 0, "an executor to come up")
        return dispatcher

    @staticmethod
    def _purge(ctx: StepContext, host: BrokerHost) -> None:
        count = sum(host.broker.purge(spec.name) for spec in host.queues)
        ctx.worker.say(f"purge: {count} messages deleted")

    def close(self, ctx: StepContext) -> None:
        if self._host is not None and self._dispatcher is not None:
            self._host.stop_fetching()
            self._dispatcher.close()

    def stop(self, ctx: StepContext, deadline: float) -> None:
        if self._dispatcher is not None:
            if self._host is not None and not self._dispatcher.closing:
                # Rolled back after it was up: what runs must have ended before its message goes back with the
                # driver's close, or it would run twice at once.
                self.close(ctx)
                ctx.worker.supervisor.close()
                ctx.worker.finish_running(min(deadline, time.monotonic() + ROLL_BACK_FINISH_S))
            self._dispatcher.closing = True
            self._dispatcher.abandon()
        if self._host is not None:
            self._host.stop(deadline)

    def terminate(self, ctx: StepContext) -> None:
        self.stop(ctx, time.monotonic())


def _queue_caps(worker: Worker) -> list[Callable[[Any], Settlement | None]]:
    """The filter for `-Q name=N`, if any queue is bounded."""
    if not worker.config.worker.queue_caps:
        return []
    caps = QueueCaps(worker.config.worker.queue_caps, worker)
    return [
        lambda request: Settlement(request.delivery, Verdict.REQUEUE) if caps.is_full(request.delivery.queue) else None
    ]


@hookimpl(trylast=True)
def kw_pool_step(config: Config) -> Bootstep:
    """The kernel's supervisor."""
    return PoolStep()


@hookimpl(trylast=True)
def kw_consumer_step(config: Config) -> Bootstep:
    """The kernel's consumer."""
    return ConsumerStep()


@hookimpl(trylast=True)
def kw_timer_step(config: Config) -> Bootstep:
    """The kernel's timers."""
    return TimerStep()
