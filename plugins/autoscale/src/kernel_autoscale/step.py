"""The boot step `autoscaler`: looks at the load twice a second and sizes the pool. Loop thread."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from kernel_worker import Bootstep

from . import AutoscaleOptions, check_bounds
from .demand import Demand, Load, Need
from .survey import Survey

if TYPE_CHECKING:
    from kernel_worker.worker import StepContext, Worker

log = logging.getLogger("kernel_autoscale")

TICK_S = 0.5


class Autoscaler:
    """Keeps the pool between two bounds; what remote control calls.

    :param most: tasks at once at most.
    :param least: tasks at once at least.
    """

    def __init__(self, worker: Worker, most: int, least: int, keepalive_s: float, survey: Survey) -> None:
        self.most = most
        self.least = least
        self.is_active = True
        self._worker = worker
        self._demand = Demand(keepalive_s)
        self._survey = survey

    # -- remote control

    def grow(self, count: int = 1) -> int:
        """Make room for so many more tasks; MAX rises where it has to. Returns the new size.

        :raises ValueError: `count` is below 1.
        """
        size = self._worker.concurrency + _positive(count)
        self.most = max(self.most, size)
        self._resize(size, "asked for by remote control")
        return size

    def shrink(self, count: int = 1) -> int:
        """Make room for so many tasks less; MIN falls where it has to. Returns the new size.

        :raises ValueError: `count` is below 1, or nothing would be left.
        """
        size = self._worker.concurrency - _positive(count)
        if size < 1:
            raise ValueError(f"the pool has {self._worker.concurrency} slots: at least one stays")
        self.least = min(self.least, size)
        self._resize(size, "asked for by remote control")
        return size

    def set_bounds(self, most: int | None = None, least: int | None = None) -> tuple[int, int]:
        """Change one bound or both; the pool follows at once. Returns (MAX, MIN).

        :raises ValueError: MAX below MIN, or MIN below 1; nothing has changed.
        """
        new_most = self.most if most is None else most
        new_least = self.least if least is None else least
        check_bounds(new_most, new_least)
        self.most, self.least = new_most, new_least
        size = min(max(self._worker.concurrency, new_least), new_most)
        if size != self._worker.concurrency:
            self._resize(size, f"the bounds are {new_most},{new_least} now")
        return new_most, new_least

    def info(self) -> dict[str, int]:
        """Bounds, size and how many tasks want a slot, under Celery's keys."""
        return {
            "max": self.most,
            "min": self.least,
            "current": self._worker.concurrency,
            "qty": self._worker.dispatcher.held,
        }

    # -- twice a second

    def look(self) -> None:
        """Take a sample, and size the pool."""
        if not self.is_active:
            return
        load = self._load()
        if load.running >= load.slots:
            self._survey.ask()
        else:
            self._survey.forget()
        need = self._demand.measure(load)
        size = self._worker.concurrency
        if need.slots > size:
            self._grow_to(min(need.slots, self.most), need)
        elif (peak := max(self._demand.peak, self.least)) < size:
            self._shrink_to(peak, need)

    def _load(self) -> Load:
        worker = self._worker
        dispatcher = worker.dispatcher
        running = held = 0
        for handle in worker.supervisor.executors.values():
            depth = len(handle.outstanding) - len(handle.unstored)
            held += depth
            running += min(depth, handle.slots)
        waiting = held - running + len(dispatcher.ready) + self._survey.waiting
        return Load(time.monotonic(), worker.concurrency, running, waiting, dispatcher.completed)

    def _grow_to(self, size: int, need: Need) -> None:
        supervisor = self._worker.supervisor
        if supervisor.layout.slots == 1:
            # Who is on its way out still counts: there are never more than MAX.
            leaving = sum(h.retiring and h.heir is None for h in supervisor.executors.values())
            size = min(size, self.most - leaving)
        if size > self._worker.concurrency:
            self._resize(size, need.reason)

    def _shrink_to(self, size: int, need: Need) -> None:
        supervisor = self._worker.supervisor
        if supervisor.layout.slots == 1:  # only who runs nothing goes
            idle = sum(h.keeps_place and not h.outstanding for h in supervisor.executors.values())
            size = max(size, self._worker.concurrency - idle)
        if size < self._worker.concurrency:
            self._resize(size, need.reason)

    def _resize(self, size: int, reason: str) -> None:
        before = self._worker.concurrency
        if size == before:
            return
        now = self._worker.set_concurrency(size)
        log.info(
            "pool %s from %d to %d slots: %s",
            "grows" if now > before else "shrinks",
            before,
            now,
            reason,
            extra={"action": "autoscale", "before": before, "after": now, "reason": reason},
        )


def _positive(count: int) -> int:
    if count < 1:
        raise ValueError(f"{count} is not a number of slots: at least 1")
    return count


class AutoscalerStep(Bootstep):
    """Starts and stops the autoscaler; its API is the `Autoscaler`."""

    name = "autoscaler"
    requires = ("consumer", "pool", "timer")

    def __init__(self, options: AutoscaleOptions) -> None:
        self._options = options
        self._autoscaler: Autoscaler | None = None
        self._survey: Survey | None = None

    def start(self, ctx: StepContext) -> Autoscaler:
        worker = ctx.worker
        timers: Any = ctx.api("timer")
        assert self._options.bounds is not None
        most, least = self._options.bounds
        self._survey = Survey(ctx.loop, lambda: _count(worker))
        self._autoscaler = Autoscaler(worker, most, least, self._options.keepalive, self._survey)
        timers.every(TICK_S, self._autoscaler.look)
        return self._autoscaler

    def close(self, ctx: StepContext) -> None:
        if self._autoscaler is not None:
            self._autoscaler.is_active = False

    def stop(self, ctx: StepContext, deadline: float) -> None:
        self.close(ctx)
        if self._survey is not None:
            self._survey.stop(deadline)

    def terminate(self, ctx: StepContext) -> None:
        self.stop(ctx, time.monotonic())


def _count(worker: Worker) -> int:
    host = worker.broker_host
    if not host.connected:
        return 0
    return sum(host.broker.size(spec.name).waiting for spec in host.queues)
