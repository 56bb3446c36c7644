"""The @name@ plugin: a boot step that says every now and then that the worker is alive.

Kernel process, loop thread: nothing here may block. No task's code runs in this process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernel_worker import Bootstep, Config, hookimpl, option

if TYPE_CHECKING:
    from kernel_worker import StepContext

log = logging.getLogger("kernel_plugin_@name@")

kw_api = 1
"""The version of the hooks this plugin was written for."""


@dataclass(frozen=True, slots=True)
class @Name@Options:
    """Section `@name@`."""

    interval: float = option(60.0, "--@name@-interval", metavar="SECONDS", help="Say so often that the worker is alive.")

    def __post_init__(self) -> None:
        if self.interval <= 0:
            raise ValueError(f"interval {self.interval:g} s is not above 0")


class @Name@Step(Bootstep):
    """Logs one line per interval, from the start of the worker to its end."""

    name = "@name@"
    requires = ("timer",)

    def __init__(self, options: @Name@Options) -> None:
        self._interval_s = options.interval
        self._started_at = 0.0
        self._running = False

    def start(self, ctx: StepContext) -> @Name@Step:
        """Begin; what is returned is what `ctx.api("@name@")` gives to steps that require this one."""
        self._started_at = time.monotonic()
        self._running = True
        timers: Any = ctx.api("timer")
        timers.every(self._interval_s, self.tell)
        return self

    def close(self, ctx: StepContext) -> None:
        """Shutdown begins: take no new work."""
        self._running = False

    def stop(self, ctx: StepContext, deadline: float) -> None:
        """Be stopped; also after a start that failed half-way, and a second time."""
        self._running = False

    def terminate(self, ctx: StepContext) -> None:
        self.stop(ctx, 0.0)

    def tell(self) -> None:
        """Say it once. Loop thread."""
        if self._running:
            up_s = time.monotonic() - self._started_at
            log.warning("alive for %.0f s", up_s, extra={"action": "alive", "up_s": up_s})


@hookimpl
def kw_options() -> type:
    """The options of this plugin."""
    return @Name@Options


@hookimpl
def kw_bootsteps(config: Config) -> Iterable[Bootstep]:
    """The step of this plugin."""
    return [@Name@Step(config.section("@name@"))]
