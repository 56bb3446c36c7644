"""The runtime on eventlet."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from greenlet import greenlet

from kernel_worker.loading import LoadError

from .runtime import GreenRuntime


class EventletRuntime(GreenRuntime):
    """Greenlets on eventlet's hub; the standard library is patched as a whole."""

    def prepare(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it says of itself that it is legacy
                import eventlet
                from eventlet import hubs
        except ImportError as error:
            raise LoadError(
                f"pool 'eventlet' needs eventlet: pip install kernel-pool-eventlet ({error})", "usage"
            ) from error
        eventlet.monkey_patch()
        self._hubs = hubs

    def spawn(self, function: Callable[..., object], *args: Any) -> greenlet:
        hub = self._hubs.get_hub()
        spawned = greenlet(function, hub.greenlet)
        hub.schedule_call_global(0, spawned.switch, *args)
        return spawned

    def new(self, function: Callable[[], object]) -> greenlet:
        return greenlet(function, self._hubs.get_hub().greenlet)

    def call_in_hub(self, function: Callable[..., object], *args: Any) -> None:
        self._hubs.get_hub().schedule_call_global(0, function, *args)

    def wait_readable(self, fd: int) -> None:
        self._hubs.trampoline(fd, read=True)

    def wait_for_switch(self) -> None:
        self._hubs.get_hub().switch()
